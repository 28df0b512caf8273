//! Whether what clients saw of one key can have happened one operation after
//! the other, each at some moment between its request and its answer.
//!
//! The search is Wing and Gong's with Lowe's memory: operations are put into an
//! order one by one, and a set of operations that has once led nowhere from the
//! value that it left is not tried again. An operation without an answer may
//! have happened at any later moment or never.

use std::collections::HashSet;

/// A value; none is written twice to the same key.
pub(crate) type Value = u32;

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Get,
    Put(Value),
    /// Sets the second if the key holds the first.
    Compare(Option<Value>, Value),
    Delete,
}

/// What was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// To a get: what the key holds.
    Read(Option<Value>),
    /// To anything else: it was done.
    Done,
    /// To a compare: what the key holds instead.
    Conflict(Option<Value>),
    /// To a delete: there is no such key.
    Missing,
    /// Nobody knows.
    Unknown,
}

/// One request, with the moments of a clock that all clients share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) action: Action,
    pub(crate) outcome: Outcome,
    /// Before it was sent.
    pub(crate) invoked: u64,
    /// After it was answered; without meaning where the outcome is unknown.
    pub(crate) completed: u64,
}

/// How far the longest order got that could be found.
#[derive(Debug)]
pub(crate) struct Contradiction {
    /// Operations in that order.
    pub(crate) order: Vec<Operation>,
    /// What the key then holds.
    pub(crate) holds: Option<Value>,
    /// Operations one of which would have to be next, and none can.
    pub(crate) next: Vec<Operation>,
}

impl Operation {
    fn is_known(&self) -> bool {
        self.outcome != Outcome::Unknown
    }

    /// What the key holds after it, if it can happen and be answered like this
    /// where the key holds `held`.
    pub(crate) fn after(&self, held: Option<Value>) -> Option<Option<Value>> {
        use Action::{Compare, Delete, Get, Put};
        use Outcome::{Conflict, Done, Missing, Read, Unknown};
        let (possible, then) = match (self.action, self.outcome) {
            (Get, Read(read)) => (read == held, held),
            (Put(value), Done | Unknown) => (true, Some(value)),
            (Compare(expect, value), Done) => (expect == held, Some(value)),
            (Compare(expect, _), Conflict(told)) => (told == held && expect != held, held),
            (Compare(expect, value), Unknown) if expect == held => (true, Some(value)),
            (Delete, Done) => (held.is_some(), None),
            (Delete, Missing) => (held.is_none(), None),
            (Delete, Unknown) => (true, None),
            (Get | Compare(..), Unknown) => (true, held),
            (action, outcome) => panic!("{outcome:?} is no answer to {action:?}"),
        };
        possible.then_some(then)
    }

    /// Whether it makes a difference to this one that one without an answer came
    /// right before, and left `held`.
    fn notices(&self, held: Option<Value>) -> bool {
        match (self.action, self.is_known()) {
            (Action::Put(_), _) => false,
            (Action::Compare(expect, _), false) => expect == held,
            (_, known) => known,
        }
    }
}

/// Looks for an order of `operations`, all on one key that does not exist at first.
pub(crate) fn check(operations: &[Operation]) -> Result<(), Box<Contradiction>> {
    let mut operations = operations.to_vec();
    // What is known is tried first: what has no answer only where nothing else fits.
    operations.sort_by_key(|operation| (!operation.is_known(), operation.invoked));
    let known = operations.iter().filter(|operation| operation.is_known());
    let search = Search {
        left: known.count(),
        placed: vec![0; operations.len().div_ceil(64)],
        operations: &operations,
        held: None,
        unnoticed: false,
    };
    search.run()
}

/// An order that grows and shrinks.
struct Search<'a> {
    /// Known ones first, each kind in the order of the requests.
    operations: &'a [Operation],
    /// Which of them are in the order, bit by bit.
    placed: Vec<u64>,
    /// How many known ones are not.
    left: usize,
    held: Option<Value>,
    /// The last one in the order has no answer: what comes next must notice it.
    /// Else the order would be as good without it, and need not be tried. This
    /// keeps many of them from multiplying all orders there are.
    unnoticed: bool,
}

/// How it was before an operation was placed.
struct Step {
    operation: usize,
    held: Option<Value>,
    unnoticed: bool,
}

impl Search<'_> {
    fn run(mut self) -> Result<(), Box<Contradiction>> {
        let (mut steps, mut tried) = (Vec::<Step>::new(), HashSet::new());
        let (mut from, mut farthest) = (0, None);
        while self.left > 0 {
            match self.next(from) {
                Some((operation, then)) => {
                    let step = self.place(operation, then);
                    let state = (self.placed.clone(), self.held, self.unnoticed);
                    if tried.insert(state) {
                        steps.push(step);
                        from = 0;
                    } else {
                        self.take_back(&step);
                        from = operation + 1;
                    }
                }
                None => {
                    if farthest.as_ref().is_none_or(|(left, _)| self.left < *left) {
                        farthest = Some((self.left, self.contradiction(&steps)));
                    }
                    let Some(step) = steps.pop() else {
                        return Err(Box::new(farthest.unwrap().1));
                    };
                    self.take_back(&step);
                    from = step.operation + 1;
                }
            }
        }
        Ok(())
    }

    fn is_placed(&self, operation: usize) -> bool {
        self.placed[operation / 64] >> (operation % 64) & 1 == 1
    }

    /// Those that are not placed, and were asked for before any of them was answered.
    fn candidates(&self) -> impl Iterator<Item = usize> {
        let open = || (0..self.operations.len()).filter(|at| !self.is_placed(*at));
        let answers = open().map(|at| &self.operations[at]);
        let answers = answers.take_while(|operation| operation.is_known());
        let answered = answers.map(|operation| operation.completed).min();
        let answered = answered.unwrap_or(u64::MAX);
        open().filter(move |at| self.operations[*at].invoked <= answered)
    }

    /// The first candidate from `from` on that can be next, and what it leaves.
    fn next(&self, from: usize) -> Option<(usize, Option<Value>)> {
        let mut candidates = self.candidates().filter(|at| *at >= from);
        candidates.find_map(|at| {
            let operation = &self.operations[at];
            let then = operation.after(self.held)?;
            let idle = !operation.is_known() && then == self.held;
            let useless = idle || (self.unnoticed && !operation.notices(self.held));
            (!useless).then_some((at, then))
        })
    }

    fn place(&mut self, operation: usize, then: Option<Value>) -> Step {
        let step = Step {
            operation,
            held: self.held,
            unnoticed: self.unnoticed,
        };
        let known = self.operations[operation].is_known();
        self.placed[operation / 64] |= 1 << (operation % 64);
        self.left -= usize::from(known);
        (self.held, self.unnoticed) = (then, !known);
        step
    }

    fn take_back(&mut self, step: &Step) {
        self.placed[step.operation / 64] &= !(1 << (step.operation % 64));
        self.left += usize::from(self.operations[step.operation].is_known());
        (self.held, self.unnoticed) = (step.held, step.unnoticed);
    }

    fn contradiction(&self, steps: &[Step]) -> Contradiction {
        let placed = steps.iter().map(|step| self.operations[step.operation]);
        Contradiction {
            order: placed.collect(),
            holds: self.held,
            next: self.candidates().map(|at| self.operations[at]).collect(),
        }
    }
}
