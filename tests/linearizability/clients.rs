//! Clients on all nodes, who write down what they ask for and what they hear.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value as Json, json};

use crate::common::client::Client;
use crate::common::history::{Fate, History};
use crate::common::linearizable::{Action, Operation, Outcome, Value};
use crate::common::node::Answer;

/// What keys begin with that all clients use.
pub(crate) const CONTENDED: &str = "contended/";
/// What keys begin with that are written once.
pub(crate) const KEPT: &str = "kept/";
/// Keys that are in use at a time: few, so that operations meet.
const KEYS: u32 = 3;
/// Requests after which all clients go on to new keys: what a check of one key
/// has to remember stays small.
const REQUESTS_EACH: u32 = 450;
/// How long a client waits for an answer; what it then does not know, it never learns.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How long it leaves a node alone that does not take its requests.
const PAUSE: Duration = Duration::from_millis(20);
/// Bounds of stale reads, in milliseconds: from less than a round takes to some elections.
const LAGS: std::ops::Range<u64> = 0..2000;
/// How often a write with a name is sent again.
const AGAIN: u32 = 8;
/// What comes after the number in a value: about 100 bytes in all.
const PADDING: &str =
    "the rest makes it as long as values are in the field, and is the same in each of them";

/// Where the nodes' APIs are; it changes with the members.
pub(crate) type Addresses = Arc<RwLock<BTreeMap<u64, SocketAddr>>>;

/// Which reads a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reads {
    Linearizable,
    /// Linearizable ones, some of them by the leader's lease, and ones with a bound.
    Any,
    /// Without a bound, passed off as being no older than this.
    Stale(Duration),
}

/// How a read is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    Majority,
    Lease,
    Bounded(Duration),
    Stale(Duration),
}

impl Read {
    /// By how much its answer may be older than the request, in nanoseconds.
    fn age(self) -> u64 {
        match self {
            Self::Majority | Self::Lease => 0,
            Self::Bounded(most) | Self::Stale(most) => u64::try_from(most.as_nanos()).unwrap(),
        }
    }

    fn query(self) -> String {
        match self {
            Self::Majority => String::new(),
            Self::Lease => "?consistency=lease".to_owned(),
            Self::Stale(_) => "?consistency=stale".to_owned(),
            Self::Bounded(most) => format!("?consistency=stale&max_lag={}", most.as_millis()),
        }
    }
}

/// What clients share.
pub(crate) struct Clients {
    pub(crate) history: History,
    pub(crate) addresses: Addresses,
    pub(crate) stop: AtomicBool,
    requests: AtomicU32,
    /// What somebody last saw under a key: what a compare expects, mostly.
    seen: RwLock<BTreeMap<u32, Option<Value>>>,
}

/// One client.
pub(crate) struct Session<'a> {
    shared: &'a Clients,
    dice: StdRng,
    reads: Reads,
    at: SocketAddr,
    client: Client,
}

/// What is known after an answer, or without one.
enum Heard {
    Known(Outcome, Option<u64>),
    Refused(String),
    Unknown,
}

impl Clients {
    pub(crate) fn new(addresses: Addresses) -> Self {
        Self {
            history: History::new(),
            addresses,
            stop: AtomicBool::new(false),
            requests: AtomicU32::new(0),
            seen: RwLock::default(),
        }
    }

    /// A client whose choices follow from `seed`.
    pub(crate) fn client(&self, seed: u64, reads: Reads) -> Session<'_> {
        let mut dice = StdRng::seed_from_u64(seed);
        let at = self.some_node(&mut dice);
        Session {
            shared: self,
            dice,
            reads,
            at,
            client: Client::patient(at, PATIENCE),
        }
    }

    fn some_node(&self, dice: &mut StdRng) -> SocketAddr {
        let addresses = self.addresses.read().unwrap();
        let nth = dice.random_range(0..addresses.len());
        *addresses.values().nth(nth).unwrap()
    }

    fn saw(&self, key: u32, value: Option<Value>) {
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        seen.insert(key, value);
    }
}

impl Session<'_> {
    /// Asks and writes down until told to stop.
    pub(crate) fn run(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            if self.dice.random_ratio(1, 10) {
                self.go_elsewhere();
            }
            let number = self.shared.requests.fetch_add(1, Ordering::Relaxed);
            let key = number / REQUESTS_EACH * KEYS + self.dice.random_range(0..KEYS);
            let served = match self.dice.random_range(0..100) {
                0..38 => self.operate(key, Action::Get),
                38..62 => self.operate(key, Action::Put(self.shared.history.value())),
                62..80 => self.compare(key),
                80..88 => self.operate(key, Action::Delete),
                _ => self.keep(),
            };
            // Never in step with the others, nor with what disturbs the nodes.
            std::thread::sleep(Duration::from_micros(self.dice.random_range(0..3000)));
            if !served {
                std::thread::sleep(PAUSE);
                self.go_elsewhere();
            }
        }
    }

    fn go_elsewhere(&mut self) {
        let shared = self.shared;
        let at = shared.some_node(&mut self.dice);
        self.go_to(at);
    }

    /// Reads `key` on the node at `address` until it is answered.
    pub(crate) fn reads_at_last(&mut self, address: SocketAddr, key: u32) {
        self.go_to(address);
        let answered = (0..100).any(|_| self.operate(key, Action::Get));
        assert!(answered, "{address} never answers a read");
    }

    pub(crate) fn go_to(&mut self, address: SocketAddr) {
        if self.at != address {
            self.at = address;
            self.client = Client::patient(address, PATIENCE);
        }
    }

    /// What somebody last saw, or what nobody ever wrote.
    fn compare(&mut self, key: u32) -> bool {
        let seen = self.shared.seen.read().unwrap().get(&key).copied();
        let expect = match self.dice.random_ratio(1, 8) {
            true => Some(Value::MAX),
            false => seen.flatten(),
        };
        self.operate(key, Action::Compare(expect, self.shared.history.value()))
    }

    /// Carries out one operation; false when it was refused or not answered.
    pub(crate) fn operate(&mut self, key: u32, action: Action) -> bool {
        let read = self.read();
        let (method, target, body) = request(key, action, read);
        // Every other write has a name, by which it is sent again until it is answered.
        let named = action != Action::Get && self.dice.random();
        let invoked = self.shared.history.now();
        let heard = match named {
            true => self.insist(action, method, &target, body.as_ref()),
            false => self.ask(action, "", method, &target, body.as_ref()),
        };
        let completed = self.shared.history.now();
        let (outcome, index) = match heard {
            Heard::Known(outcome, index) => (outcome, index),
            Heard::Unknown => (Outcome::Unknown, None),
            Heard::Refused(code) => {
                self.shared.history.refused(&code);
                return false;
            }
        };
        if let Some(index) = index {
            self.shared.history.placed(invoked, completed, index);
        }
        // A read with a bound sees what there was at some moment since then.
        let since = match action {
            Action::Get => invoked.saturating_sub(read.age()),
            _ => invoked,
        };
        let operation = Operation {
            action,
            outcome,
            invoked: since,
            completed,
        };
        self.shared.history.operation(key, operation);
        match (action, outcome) {
            (Action::Get, Outcome::Read(value)) | (_, Outcome::Conflict(value)) => {
                self.shared.saw(key, value);
            }
            (Action::Put(value) | Action::Compare(_, value), Outcome::Done) => {
                self.shared.saw(key, Some(value));
            }
            (Action::Delete, Outcome::Done | Outcome::Missing) => self.shared.saw(key, None),
            _ => {}
        }
        outcome != Outcome::Unknown
    }

    /// How the next read is asked for.
    fn read(&mut self) -> Read {
        match self.reads {
            Reads::Linearizable => Read::Majority,
            Reads::Stale(age) => Read::Stale(age),
            Reads::Any => match self.dice.random_range(0..4) {
                0 => Read::Bounded(Duration::from_millis(self.dice.random_range(LAGS))),
                1 | 2 => Read::Lease,
                _ => Read::Majority,
            },
        }
    }

    /// Writes a batch of two keys of its own, which nobody writes again.
    fn keep(&mut self) -> bool {
        let number = self.shared.history.value();
        let pair = |half| json!({ "key": format!("{KEPT}{number}/{half}"), "value": text(number) });
        let body = json!({ "set": [pair("a"), pair("b")], "delete": [] });
        let invoked = self.shared.history.now();
        let heard = self.ask(Action::Put(number), "", "POST", "/api/kv", Some(&body));
        let completed = self.shared.history.now();
        let fate = match heard {
            Heard::Known(_, index) => {
                let index = index.expect("a write without its place in the log");
                self.shared.history.placed(invoked, completed, index);
                Fate::Acknowledged
            }
            Heard::Unknown => Fate::Unknown,
            Heard::Refused(code) => {
                self.shared.history.refused(&code);
                Fate::Refused
            }
        };
        self.shared.history.kept(number, fate);
        fate == Fate::Acknowledged
    }

    /// Sends a write under a name of its own, to one node after the other, until one
    /// knows what became of it: it must not happen twice.
    fn insist(&mut self, action: Action, method: &str, target: &str, body: Option<&Json>) -> Heard {
        let header = format!("Idempotency-Key: \"{}\"\r\n", self.shared.history.value());
        let mut last = Heard::Unknown;
        let mut maybe_done = false;
        for _ in 0..AGAIN {
            last = self.ask(action, &header, method, target, body);
            match &last {
                Heard::Known(..) => return last,
                Heard::Unknown => maybe_done = true,
                Heard::Refused(_) => {}
            }
            std::thread::sleep(PAUSE);
            self.go_elsewhere();
        }
        // One that is refused has not happened, but an earlier one may have.
        if maybe_done { Heard::Unknown } else { last }
    }

    fn ask(
        &mut self,
        action: Action,
        headers: &str,
        method: &str,
        target: &str,
        body: Option<&Json>,
    ) -> Heard {
        // Without a connection nobody can have done anything.
        if self.client.connect().is_err() {
            return Heard::Refused("no connection".into());
        }
        match self.client.ask_with(method, target, headers, body) {
            Ok(answer) => hear(action, &answer),
            Err(_) => Heard::Unknown,
        }
    }
}

fn text(value: Value) -> String {
    format!("{value} {PADDING}")
}

/// The number in a value.
pub(crate) fn number(text: &str) -> Value {
    text.split(' ').next().unwrap().parse().unwrap()
}

fn request(key: u32, action: Action, read: Read) -> (&'static str, String, Option<Json>) {
    let path = format!("/api/kv/{CONTENDED}{key}");
    match action {
        Action::Get => ("GET", path + &read.query(), None),
        Action::Put(value) => ("PUT", path, Some(json!({ "value": text(value) }))),
        Action::Compare(expect, value) => {
            let body = json!({ "value": text(value), "expect": expect.map(text) });
            ("POST", path, Some(body))
        }
        Action::Delete => ("DELETE", path, None),
    }
}

/// What an answer tells.
fn hear(action: Action, answer: &Answer) -> Heard {
    let value = |field: &str| answer.json()[field].as_str().map(number);
    let index = || answer.json()["index"].as_u64();
    match (action, answer.status) {
        (Action::Get, 200) => Heard::Known(Outcome::Read(value("value")), None),
        (Action::Get, 404) => Heard::Known(Outcome::Read(None), None),
        (Action::Delete, 404) => Heard::Known(Outcome::Missing, None),
        (Action::Compare(..), 409) => Heard::Known(Outcome::Conflict(value("current")), None),
        (_, 200) => Heard::Known(Outcome::Done, index()),
        // These promise that nothing was done, which the history will show.
        (_, 429 | 503 | 507) => Heard::Refused(answer.error_code()),
        (_, 500 | 504) => Heard::Unknown,
        _ => panic!("{action:?} was answered with {answer:?}"),
    }
}
