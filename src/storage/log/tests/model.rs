//! Any order of operations against a list in memory.

use proptest::prelude::*;

use super::disk::{Faults, copy_of};
use super::*;
use crate::format::entry::Vote;

#[derive(Clone, Debug)]
enum Step {
    Append {
        count: u64,
        size: usize,
        wait: bool,
    },
    /// Takes off so many.
    Truncate(u64),
    /// So many from the first on; more than there are lets the log go on behind a gap.
    Purge(u64),
    Vote(u64, bool),
    Committed(u64),
    Meta(u8),
    Read {
        from: u64,
        count: u64,
        most: u64,
    },
    Reopen,
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..30_u64, 0..3000_usize, any::<bool>())
            .prop_map(|(count, size, wait)| Step::Append { count, size, wait }),
        2 => (0..40_u64).prop_map(Step::Truncate),
        2 => (0..60_u64).prop_map(Step::Purge),
        1 => (0..9_u64, any::<bool>()).prop_map(|(term, committed)| Step::Vote(term, committed)),
        1 => (0..50_u64).prop_map(Step::Committed),
        1 => any::<u8>().prop_map(Step::Meta),
        4 => (0..80_u64, 0..80_u64, prop_oneof![Just(u64::MAX), 0..20_000_u64])
            .prop_map(|(from, count, most)| Step::Read { from, count, most }),
        1 => Just(Step::Reopen),
        1 => Just(Step::Kill),
    ]
}

#[derive(Default)]
struct Model {
    entries: Vec<Entry>,
    last_purged: Option<LogId>,
    term: u64,
    vote: Option<Vote>,
    committed: Option<LogId>,
    meta: Option<Vec<u8>>,
}

impl Model {
    fn begin(&self) -> u64 {
        self.last_purged.map_or(0, |purged| purged.index + 1)
    }

    fn end(&self) -> u64 {
        self.begin() + self.entries.len() as u64
    }

    fn bounds(&self) -> Bounds {
        let last = self.entries.last().map(|entry| entry.log_id);
        Bounds {
            last_purged: self.last_purged,
            last: last.or(self.last_purged),
        }
    }

    fn position(&self, index: u64) -> Option<LogId> {
        let at = index.checked_sub(self.begin());
        match at.and_then(|at| self.entries.get(usize::try_from(at).unwrap())) {
            Some(entry) => Some(entry.log_id),
            None => self.last_purged,
        }
    }

    fn within(&self, range: Range<u64>) -> Vec<Entry> {
        let there = self.entries.iter();
        there
            .filter(|entry| range.contains(&entry.log_id.index))
            .cloned()
            .collect()
    }

    /// What is not there is not committed.
    fn reopened(&mut self) {
        let end = self.end();
        self.committed = self.committed.filter(|id| id.index < end);
    }

    /// The committed position may be an older one, and a purge is asked for once more.
    fn survived(&self, log: &Log) {
        assert!(log.committed().is_none_or(|id| id.index < self.end()));
        log.save_committed(self.committed);
        if let Some(purged) = self.last_purged {
            wait(|done| log.purge(purged, done));
        }
        self.check(log);
    }

    fn check(&self, log: &Log) {
        assert_eq!(log.bounds(), self.bounds());
        assert_eq!(log.vote(), self.vote);
        assert_eq!(log.committed(), self.committed);
        assert_eq!(log.meta("node").unwrap(), self.meta);
        assert_eq!(all(log), self.entries);
        assert_eq!(log.index_for_last(u64::MAX), self.begin());
        assert_eq!(log.index_for_last(0), self.end());
    }

    fn append(&mut self, log: &Log, count: u64, size: usize, now: bool) {
        self.term += 1;
        let range = self.end()..self.end() + count;
        let new: Vec<_> = range.map(|index| entry(self.term, index, size)).collect();
        self.entries.extend(new.clone());
        match now {
            true => wait(|done| log.append(new, done)),
            false => log.append(new, nobody()),
        }
    }

    fn truncate(&mut self, log: &Log, count: u64) {
        let left = self
            .entries
            .len()
            .saturating_sub(usize::try_from(count).unwrap());
        self.entries.truncate(left);
        log.truncate_after(self.bounds().last, nobody());
    }

    fn purge(&mut self, log: &Log, count: u64) {
        let Some(upto) = (self.begin() + count).checked_sub(1) else {
            return;
        };
        let there = self.entries.iter().find(|e| e.log_id.index == upto);
        let upto = there.map_or(id(self.term, upto), |entry| entry.log_id);
        let upto = if count == 0 {
            self.last_purged.unwrap()
        } else {
            upto
        };
        self.entries.retain(|entry| entry.log_id.index > upto.index);
        self.last_purged = Some(upto);
        log.purge(upto, nobody());
    }

    fn read(&self, log: &Log, range: Range<u64>, most: u64) {
        let read = log.read(range.clone(), most).unwrap();
        let expected = self.within(range);
        assert_eq!(read, expected[..read.len()]);
        assert_eq!(read.is_empty(), expected.is_empty());
        let size = |entry: &Entry| entry.encode().unwrap().len() as u64;
        let taken: u64 = read.iter().map(size).sum();
        assert!(taken <= most || read.len() == 1);
        if let Some(next) = expected.get(read.len()) {
            assert!(taken + size(next) > most);
        }
    }

    fn take(&mut self, log: &Log, step: &Step) {
        match *step {
            Step::Append { count, size, wait } => self.append(log, count, size, wait),
            Step::Truncate(count) => self.truncate(log, count),
            Step::Purge(count) => self.purge(log, count),
            Step::Vote(term, committed) => {
                let vote = Vote {
                    term,
                    node_id: 2,
                    committed,
                };
                self.vote = Some(vote);
                log.save_vote(vote, nobody());
            }
            Step::Committed(n) => {
                self.committed = self.position(self.begin() + n);
                log.save_committed(self.committed);
            }
            Step::Meta(value) => {
                self.meta = Some(vec![value]);
                log.set_meta("node", &[value]).unwrap();
            }
            Step::Read { from, count, most } => {
                let from = self.begin().saturating_sub(5) + from;
                self.read(log, from..from + count, most);
            }
            Step::Reopen | Step::Kill => {}
        }
    }
}

fn run(steps: &[Step], tail_bytes: u64) {
    let (_dir, path) = place();
    let faults = Arc::<Faults>::default();
    let mut log = faults.open(&path, tail_bytes);
    let mut model = Model::default();
    for step in steps {
        model.take(&log, step);
        model.check(&log);
        if matches!(step, Step::Reopen) {
            drop(log);
            log = faults.open(&path, tail_bytes);
            model.reopened();
            model.check(&log);
        }
        if matches!(step, Step::Kill) {
            // All that comes before is then durable, but for the committed position.
            wait(|done| log.append(Vec::new(), done));
            let (_dir, copy) = place();
            copy_of(&path, &copy);
            let survivor = open(&copy);
            model.survived(&survivor);
        }
    }
    log.close().unwrap();
    model.reopened();
    model.check(&open(&path));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_order_of_operations_leaves_what_was_asked_for(
        steps in prop::collection::vec(step(), 1..60),
        tail_bytes in prop_oneof![Just(0), Just(20_000_u64), Just(u64::MAX)],
    ) {
        run(&steps, tail_bytes);
    }
}
