//! Clients: each asks for one thing at a time, of any node, and writes down what it hears.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aspen::format::entry::{Change, Idempotent, Outcome as Applied, Plain, Request};
use aspen::raft::{Consistency, Node, RequestError, Written};
use aspen::storage::Range;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::sleep;

use crate::common::history::{Fate, History};
use crate::common::linearizable::{Action, Operation, Outcome, Value};

/// Clients in all.
const CLIENTS: u64 = 8;
/// Keys that are written again and again, at a time; and for how long, in nanoseconds.
const KEYS: u32 = 4;
const KEYS_LAST: u64 = 2_000_000_000;
/// What keys begin with that are written once.
const KEPT: &str = "kept/";
/// Most milliseconds between an answer and the next request.
const THINKS: u64 = 150;
/// Milliseconds that a read with a bound may be behind.
const LAGS: std::ops::Range<u64> = 0..1500;

pub(crate) struct Clients {
    pub(crate) history: History,
    /// Whether reads that may be old are passed off as linearizable.
    stale: bool,
    /// Those that nobody serves at the moment.
    waiting: Mutex<VecDeque<Client>>,
    /// What was last seen of keys.
    seen: Mutex<BTreeMap<u32, Option<Value>>>,
    /// What the simulation's clock showed last, in nanoseconds.
    pub(crate) clock: AtomicU64,
    pub(crate) stop: AtomicBool,
}

struct Client {
    dice: StdRng,
    /// What it has asked for and does not know the end of.
    asked: Option<Asked>,
    /// When it goes on.
    at: u64,
}

/// A write.
#[derive(Clone)]
struct Asked {
    what: What,
    change: Plain,
    /// The name under which it is repeated until its end is known.
    once: Option<String>,
    invoked: u64,
    /// Whether it may have happened.
    maybe: bool,
}

#[derive(Clone, Copy)]
enum What {
    Operation(u32, Action),
    Keep(Value),
}

/// Nanoseconds on the clock of the simulation; on a host only.
fn now() -> u64 {
    let elapsed = turmoil::sim_elapsed().expect("outside of a host");
    u64::try_from(elapsed.as_nanos()).unwrap()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn key(number: u32) -> String {
    format!("contended/{number}")
}

fn number(value: &str) -> Value {
    value.parse().unwrap()
}

impl Clients {
    pub(crate) fn new(dice: &mut StdRng, stale: bool) -> Arc<Self> {
        let client = |_| Client {
            dice: StdRng::seed_from_u64(dice.random()),
            asked: None,
            at: 0,
        };
        Arc::new(Self {
            history: History::new(),
            stale,
            waiting: Mutex::new((0..CLIENTS).map(client).collect()),
            seen: Mutex::default(),
            clock: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        })
    }

    /// Has one client after the other use the node that there is.
    pub(crate) async fn use_while(self: Arc<Self>, node: impl Fn() -> Option<Node>) {
        while let Some(node) = node()
            && !self.stop.load(Ordering::Relaxed)
        {
            let turn = self.next();
            if let Some(mut turn) = turn {
                turn.ask(&node).await;
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    fn next(self: &Arc<Self>) -> Option<Turn> {
        let (mut waiting, now) = (lock(&self.waiting), now());
        let at = waiting.iter().position(|client| client.at <= now)?;
        Some(Turn {
            clients: Arc::clone(self),
            client: waiting.remove(at),
            under_way: false,
        })
    }

    /// Whether every client knows what it ever will.
    pub(crate) fn rest(&self) -> bool {
        lock(&self.waiting).len() as u64 == CLIENTS
    }

    /// What was never answered is written down.
    pub(crate) fn give_up(&self) {
        for client in lock(&self.waiting).iter_mut() {
            if let Some(asked) = client.asked.take() {
                self.record_unknown(&asked);
            }
        }
    }

    fn saw(&self, key: u32, value: Option<Value>) {
        lock(&self.seen).insert(key, value);
    }

    fn record_unknown(&self, asked: &Asked) {
        match (asked.what, asked.maybe) {
            (What::Keep(number), true) => self.history.kept(number, Fate::Unknown),
            (What::Keep(number), false) => self.history.kept(number, Fate::Refused),
            (What::Operation(..), false) => {}
            (What::Operation(key, action), true) => {
                let operation = Operation {
                    action,
                    outcome: Outcome::Unknown,
                    invoked: asked.invoked,
                    completed: u64::MAX,
                };
                self.history.operation(key, operation);
            }
        }
    }

    fn record_done(&self, asked: &Asked, written: &Written) {
        let (invoked, completed) = (asked.invoked, now());
        self.history.placed(invoked, completed, written.index);
        let (key, action) = match asked.what {
            What::Keep(number) => return self.history.kept(number, Fate::Acknowledged),
            What::Operation(key, action) => (key, action),
        };
        let outcome = match (&written.outcome, action) {
            (Applied::Done { deleted: 0 }, Action::Delete) => Outcome::Missing,
            (Applied::Done { .. }, _) => Outcome::Done,
            (Applied::Conflict { current }, _) => Outcome::Conflict(current.as_deref().map(number)),
            (other, _) => panic!("{other:?} to a write"),
        };
        match (action, outcome) {
            (Action::Put(value) | Action::Compare(_, value), Outcome::Done) => {
                self.saw(key, Some(value));
            }
            (_, Outcome::Conflict(value)) => self.saw(key, value),
            _ => self.saw(key, None),
        }
        let operation = Operation {
            action,
            outcome,
            invoked,
            completed,
        };
        self.history.operation(key, operation);
    }

    /// Reads a key, and writes down what it holds.
    async fn read(&self, node: &Node, number_: u32, consistency: Consistency) -> bool {
        let invoked = now();
        let read = node.get(key(number_), consistency).await;
        let Ok(value) = read else {
            return false;
        };
        let value = value.as_deref().map(number);
        self.saw(number_, value);
        // A read with a bound sees what there was at some moment since then.
        let behind = match consistency {
            Consistency::Bounded(most) => u64::try_from(most.as_nanos()).unwrap(),
            _ => 0,
        };
        let operation = Operation {
            action: Action::Get,
            outcome: Outcome::Read(value),
            invoked: invoked.saturating_sub(behind),
            completed: now(),
        };
        self.history.operation(number_, operation);
        true
    }

    /// Reads every key that ever was written, until it is answered.
    pub(crate) async fn read_all(&self, node: &Node) {
        for key in self.history.keys() {
            while !self.read(node, key, Consistency::Linearizable).await {
                sleep(Duration::from_millis(10)).await;
            }
        }
    }

    /// Of all that was to be written once: how many of the two keys `node` has.
    pub(crate) async fn kept(node: &Node) -> BTreeMap<u32, usize> {
        let mut kept = BTreeMap::new();
        let mut range = Range {
            prefix: KEPT.into(),
            after: None,
            limit: 1000,
            max_bytes: 1 << 20,
        };
        loop {
            let page = node.scan(range.clone(), Consistency::Stale).await.unwrap();
            for (key, value) in &page.pairs {
                let written = key.strip_prefix(KEPT).unwrap().split('/').next();
                assert_eq!(written.map(number), Some(number(value)), "{key}");
                *kept.entry(number(value)).or_default() += 1;
            }
            range.after = page.pairs.last().map(|(key, _)| key.clone());
            if !page.more {
                return kept;
            }
        }
    }
}

/// A client that is served.
struct Turn {
    clients: Arc<Clients>,
    client: Option<Client>,
    /// Whether what it has asked for may be on its way.
    under_way: bool,
}

impl Turn {
    async fn ask(&mut self, node: &Node) {
        let Some(client) = &mut self.client else {
            return;
        };
        let pause = client.dice.random_range(1..THINKS) * 1_000_000;
        match client.asked.is_some() || client.dice.random_ratio(6, 10) {
            true => self.write(node).await,
            false => {
                let key = self.some_key();
                let consistency = self.consistency();
                self.clients.read(node, key, consistency).await;
            }
        }
        if let Some(client) = &mut self.client {
            client.at = now() + pause;
        }
    }

    fn dice(&mut self) -> &mut StdRng {
        &mut self.client.as_mut().unwrap().dice
    }

    fn some_key(&mut self) -> u32 {
        let round = u32::try_from(now() / KEYS_LAST).unwrap();
        round * KEYS + self.dice().random_range(0..KEYS)
    }

    fn consistency(&mut self) -> Consistency {
        match self.dice().random_range(0..4) {
            _ if self.clients.stale => Consistency::Stale,
            0 => Consistency::Bounded(Duration::from_millis(self.dice().random_range(LAGS))),
            1 | 2 => Consistency::Lease,
            _ => Consistency::Linearizable,
        }
    }

    fn new_write(&mut self) -> Asked {
        let number_ = self.some_key();
        let value = self.clients.history.value();
        let seen = lock(&self.clients.seen).get(&number_).copied().flatten();
        let key = key(number_);
        let (what, change) = match self.dice().random_range(0..10) {
            0..4 => {
                let set = Change::Set {
                    key,
                    value: value.to_string(),
                };
                (What::Operation(number_, Action::Put(value)), set)
            }
            4..7 => {
                let set = Change::CompareAndSet {
                    key,
                    expect: seen.map(|seen| seen.to_string()),
                    value: value.to_string(),
                };
                (What::Operation(number_, Action::Compare(seen, value)), set)
            }
            7 => (
                What::Operation(number_, Action::Delete),
                Change::Delete { key },
            ),
            _ => {
                let half = |half| (format!("{KEPT}{value}/{half}"), value.to_string());
                let set = vec![half("a"), half("b")];
                let delete = Vec::new();
                (What::Keep(value), Change::Batch { set, delete })
            }
        };
        let named: bool = self.dice().random();
        Asked {
            what,
            change,
            once: named.then(|| format!("write {value}")),
            invoked: now(),
            maybe: false,
        }
    }

    async fn write(&mut self, node: &Node) {
        let asked = match self.client.as_mut().and_then(|client| client.asked.take()) {
            Some(asked) => asked,
            None => self.new_write(),
        };
        let request: Request = match &asked.once {
            Some(name) => {
                let once = Idempotent::new(name.clone(), asked.change.clone()).unwrap();
                Change::Idempotent(Box::new(once))
            }
            None => asked.change.clone().into(),
        };
        self.client.as_mut().unwrap().asked = Some(asked);
        self.under_way = true;
        let written = node.write(request).await;
        self.under_way = false;
        self.heard(written);
    }

    fn heard(&mut self, written: Result<Written, RequestError>) {
        let client = self.client.as_mut().unwrap();
        let Some(mut asked) = client.asked.take() else {
            return;
        };
        match written {
            Ok(written) => return self.clients.record_done(&asked, &written),
            Err(RequestError::KeyReused) => panic!("a name was taken for another's"),
            Err(
                error @ (RequestError::NoLeader
                | RequestError::NoMember(_)
                | RequestError::DiskFull(_)),
            ) => self.clients.history.refused(&error.to_string()),
            Err(_) => asked.maybe = true,
        }
        match asked.once {
            Some(_) => client.asked = Some(asked),
            None => self.clients.record_unknown(&asked),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.under_way {
            // Its node was killed.
            self.heard(Err(RequestError::Unconfirmed));
        }
        if let Some(mut client) = self.client.take() {
            client.at = client.at.max(self.clients.clock.load(Ordering::Relaxed));
            lock(&self.clients.waiting).push_back(client);
        }
    }
}
