//! Clients that write all the time, and know from the answers alone what must
//! be there afterwards: what was acknowledged, nothing that was refused, and
//! of what nobody answered either all or nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::client::Client;
use super::node::Answer;

/// Keys of one writer: few, so that each is written again and again.
const KEYS: u64 = 12;
/// How long a writer leaves a node alone that takes no writes.
const PAUSE: Duration = Duration::from_millis(5);

/// What one writer's keys hold.
type Pairs = BTreeMap<String, String>;

/// A client that writes keys of its own, one request at a time.
pub(crate) struct Writer {
    prefix: String,
    /// Every content that the answers so far allow; one, unless some answer is missing.
    possible: BTreeSet<Pairs>,
    /// Requests so far, so that no two values are the same.
    requests: u64,
    /// Bytes of a value, at least.
    bytes: usize,
    /// The last index that was answered.
    pub(crate) index: u64,
    pub(crate) acknowledged: u64,
    pub(crate) refused: u64,
    pub(crate) unknown: u64,
    /// Codes of refusals.
    pub(crate) codes: BTreeSet<String>,
}

/// One write.
#[derive(Debug)]
enum Write {
    Set(String, String),
    Compare(String, Option<String>, String),
    Delete(String),
    Batch(Vec<(String, String)>, Vec<String>),
    /// One that must be refused, whatever there is.
    Invalid(String, Value),
}

impl Write {
    /// Method, path and body.
    fn request(&self) -> (&'static str, String, Option<Value>) {
        let path = |key: &String| format!("/api/kv/{key}");
        match self {
            Self::Set(key, value) => ("PUT", path(key), Some(json!({ "value": value }))),
            Self::Compare(key, expect, value) => {
                let body = json!({ "value": value, "expect": expect });
                ("POST", path(key), Some(body))
            }
            Self::Delete(key) => ("DELETE", path(key), None),
            Self::Batch(set, delete) => {
                let pair = |(key, value): &(String, String)| json!({ "key": key, "value": value });
                let set: Vec<_> = set.iter().map(pair).collect();
                let body = json!({ "set": set, "delete": delete });
                ("POST", "/api/kv".into(), Some(body))
            }
            Self::Invalid(key, body) => ("PUT", path(key), Some(body.clone())),
        }
    }

    /// What it makes of `pairs`, and what the answer then is: 200, 404 or 409.
    fn applied(&self, pairs: &Pairs) -> (Pairs, u16) {
        let mut after = pairs.clone();
        let status = match self {
            Self::Set(key, value) => {
                after.insert(key.clone(), value.clone());
                200
            }
            Self::Compare(key, expect, _) if pairs.get(key) != expect.as_ref() => 409,
            Self::Compare(key, _, value) => {
                after.insert(key.clone(), value.clone());
                200
            }
            Self::Delete(key) => match after.remove(key) {
                Some(_) => 200,
                None => 404,
            },
            Self::Batch(set, delete) => {
                after.extend(set.iter().cloned());
                delete.iter().for_each(|key| drop(after.remove(key)));
                200
            }
            Self::Invalid(..) => 400,
        };
        (after, status)
    }
}

/// So many writers, with values of `bytes`.
pub(crate) fn writers(count: usize, bytes: usize) -> Vec<Writer> {
    let writer = |n| Writer {
        prefix: format!("w{n}/"),
        possible: BTreeSet::from([Pairs::new()]),
        requests: 0,
        bytes,
        index: 0,
        acknowledged: 0,
        refused: 0,
        unknown: 0,
        codes: BTreeSet::new(),
    };
    (0..count).map(writer).collect()
}

/// Has all of them write while `disturb` runs.
pub(crate) fn under_load<T>(
    writers: &mut [Writer],
    address: SocketAddr,
    disturb: impl FnOnce() -> T,
) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for writer in writers {
            scope.spawn(|| writer.write_until(&stop, address));
        }
        // Ends them also when a check in it fails.
        let _end = OnDrop(|| stop.store(true, Ordering::Relaxed));
        disturb()
    })
}

struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

impl Writer {
    /// Writes until told to stop, or until the node is gone.
    fn write_until(&mut self, stop: &AtomicBool, address: SocketAddr) {
        let mut client = Client::new(address);
        while !stop.load(Ordering::Relaxed) {
            let write = self.next();
            let (method, target, body) = write.request();
            match client.ask(method, &target, body.as_ref()) {
                Ok(answer) => self.hears(&write, &answer),
                Err(_) => {
                    self.never_hears(&write);
                    return;
                }
            }
        }
    }

    /// Some write, mostly sensible.
    fn next(&mut self) -> Write {
        self.requests += 1;
        let (prefix, requests) = (self.prefix.clone(), self.requests);
        let mut value = format!("{prefix}{requests} ");
        value.extend(std::iter::repeat_n('x', self.bytes));
        let key = |n: u64| format!("{prefix}{}", n % KEYS);
        let random: u64 = rand::random();
        let some = random >> 8;
        let known = self.possible.first().unwrap().get(&key(some)).cloned();
        match random % 16 {
            0..6 => Write::Set(key(some), value),
            6..9 => Write::Compare(key(some), known, value),
            9 => Write::Compare(key(some), Some("never there".into()), value),
            10 | 11 => Write::Delete(key(some)),
            12 | 13 => {
                let set = [0, 1, 2].map(|n| (key(some + n), format!("{value}{n}")));
                Write::Batch(set.into(), vec![key(some + 3), key(some + 4)])
            }
            14 => Write::Invalid(key(some), json!({ "value": requests })),
            _ => Write::Invalid(key(some), json!({ "value": value, "no such field": 1 })),
        }
    }

    /// Learns from an answer.
    fn hears(&mut self, write: &Write, answer: &Answer) {
        let possible = std::mem::take(&mut self.possible);
        match answer.status {
            200 | 404 | 409 => {
                let results = possible.iter().map(|pairs| (pairs, write.applied(pairs)));
                let fitting = results.filter(|(pairs, (_, status))| {
                    *status == answer.status && tells_what_is_there(write, pairs, answer)
                });
                self.possible = fitting.map(|(_, (after, _))| after).collect();
                assert!(
                    !self.possible.is_empty(),
                    "{write:?} on one of {possible:#?} was answered with {answer:?}"
                );
                self.acknowledged += 1;
                if let Some(index) = answer.json()["index"].as_u64() {
                    assert!(index > self.index, "{index} after {}", self.index);
                    self.index = index;
                }
                assert!(answer.status != 200 || answer.json()["index"].is_u64());
            }
            // It entered the log, and nobody knows what became of it.
            500 | 504 => {
                self.possible = possible;
                self.never_hears(write);
            }
            400 | 503 | 507 => {
                let expected = matches!(write, Write::Invalid(..));
                assert!(answer.status != 400 || expected, "{write:?}: {answer:?}");
                self.possible = possible;
                self.codes.insert(answer.error_code());
                self.refused += 1;
                if answer.status != 400 {
                    std::thread::sleep(PAUSE);
                }
            }
            _ => panic!("{write:?} was answered with {answer:?}"),
        }
    }

    fn never_hears(&mut self, write: &Write) {
        self.unknown += 1;
        let done = self.possible.iter().filter_map(|pairs| {
            let (after, status) = write.applied(pairs);
            (status == 200).then_some(after)
        });
        let done: Vec<_> = done.collect();
        self.possible.extend(done);
    }

    /// Writes once more, which must be acknowledged: what is in the log without
    /// an answer is before this.
    pub(crate) fn writes_again(&mut self, address: SocketAddr) {
        self.requests += 1;
        let write = Write::Set(format!("{}0", self.prefix), format!("{}", self.requests));
        let (method, target, body) = write.request();
        let mut client = Client::new(address);
        let answer = super::client::until(
            || client.ask(method, &target, body.as_ref()).unwrap(),
            |answer| answer.status != 507,
        );
        assert_eq!(answer.status, 200, "{answer:?}");
        self.hears(&write, &answer);
    }

    /// Reads all that there is of this writer; it must be what the answers allow.
    pub(crate) fn check(&mut self, address: SocketAddr) {
        let target = format!("/api/kv?prefix={}&limit=1000", self.prefix);
        let answer = Client::new(address).ask("GET", &target, None).unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        let pairs = answer.json()["pairs"].as_array().unwrap().clone();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let pairs = pairs
            .iter()
            .map(|pair| (text(&pair["key"]), text(&pair["value"])));
        let found: Pairs = pairs.collect();
        assert!(
            self.possible.contains(&found),
            "found {found:#?}, and the answers allow {:#?}",
            self.possible
        );
        self.possible = BTreeSet::from([found]);
    }
}

/// A conflict names what the key holds.
fn tells_what_is_there(write: &Write, pairs: &Pairs, answer: &Answer) -> bool {
    match write {
        Write::Compare(key, ..) if answer.status == 409 => {
            answer.json()["current"].as_str() == pairs.get(key).map(String::as_str)
        }
        _ => true,
    }
}

/// Few by default, many where everything is tried.
pub(crate) fn times(few: u32, many: u32) -> u32 {
    match std::env::var("ASPEN_TEST_EXHAUSTIVE").is_ok_and(|value| value == "1") {
        true => many,
        false => few,
    }
}

pub(crate) fn wait_up_to(milliseconds: u64) {
    let time = rand::random::<u64>() % (milliseconds * 1000);
    std::thread::sleep(Duration::from_micros(time));
}
