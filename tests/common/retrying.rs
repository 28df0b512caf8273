//! Clients as drivers and load balancers make them: what one node does not answer
//! is tried once more, on another. To them a cluster is up as long as that is
//! enough, and they count with what they write, so that nothing can be lost or
//! done twice without a word.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::client::{Client, ask};
use super::node::Answer;

/// A client that does one thing at a time.
pub(crate) struct Retrying {
    prefix: String,
    /// Its nodes, the first of them the one that it asks first.
    nodes: Vec<(SocketAddr, Client)>,
    /// How far it has counted.
    count: u64,
    /// The last index that was answered.
    index: u64,
    /// Requests that took a second node.
    pub(crate) retried: u64,
}

/// So many clients, which begin with one node after the other.
pub(crate) fn clients(count: usize, nodes: &[SocketAddr]) -> Vec<Retrying> {
    let client = |n: usize| {
        let mut nodes: Vec<_> = nodes.iter().map(|at| (*at, Client::new(*at))).collect();
        let first = n % nodes.len();
        nodes.rotate_left(first);
        Retrying {
            prefix: format!("client-{n}"),
            nodes,
            count: 0,
            index: 0,
            retried: 0,
        }
    };
    (0..count).map(client).collect()
}

/// Has all of them at work while `disturb` runs.
///
/// # Panics
/// When a request fails on two nodes, or is answered with what cannot be.
pub(crate) fn at_work<T>(clients: &mut [Retrying], disturb: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for client in clients {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    client.count_on();
                }
            });
        }
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(disturb));
        stop.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl Retrying {
    /// Counts on: a number that must follow the one before, a key that must be new,
    /// and a read that must see it.
    pub(crate) fn count_on(&mut self) {
        let before = match self.count {
            0 => Value::Null,
            count => json!(count.to_string()),
        };
        self.count += 1;
        let (prefix, count) = (self.prefix.clone(), self.count);
        self.write(&format!("{prefix}/count"), before);
        self.write(&format!("{prefix}/each/{count:06}"), Value::Null);
        let answer = self.ask("GET", &format!("{prefix}/count"), None);
        assert_eq!(answer.json()["value"], count.to_string(), "{answer:?}");
        // Whoever it asks first next time may be any.
        if rand::random::<bool>() {
            self.nodes.rotate_left(1);
        }
    }

    /// Sets a key to the count, if it holds what is expected, and once.
    fn write(&mut self, key: &str, expect: Value) {
        let body = json!({ "value": self.count.to_string(), "expect": expect });
        let answer = self.ask("PUT", key, Some(&body));
        assert_eq!(answer.status, 200, "{key}: {body} was answered {answer:?}");
        let index = answer.json()["index"].as_u64().unwrap();
        assert!(index > self.index, "{index} after {}", self.index);
        self.index = index;
    }

    /// Asks one node, and a second if that does not answer.
    fn ask(&mut self, method: &str, key: &str, body: Option<&Value>) -> Answer {
        let target = format!("/api/kv/{key}");
        // What the first node may have done, and could not say any more, the second does not
        // do again.
        let headers = match body {
            Some(_) => format!("Idempotency-Key: \"{key} {}\"\r\n", self.count),
            None => String::new(),
        };
        let mut failed = Vec::new();
        for (address, client) in self.nodes.iter_mut().take(2) {
            match client.ask_with(method, &target, &headers, body) {
                Ok(answer) if answer.status < 500 => {
                    self.retried += u64::from(!failed.is_empty());
                    return answer;
                }
                otherwise => failed.push(format!("{address}: {otherwise:?}")),
            }
        }
        panic!("{method} {key} failed on two nodes: {failed:#?}");
    }

    /// All that it wrote must be on the node, once; stale, because what is asked
    /// for is what this very node holds.
    pub(crate) fn check(&self, node: SocketAddr) {
        let mut expected = vec![(format!("{}/count", self.prefix), self.count.to_string())];
        let each =
            (1..=self.count).map(|n| (format!("{}/each/{n:06}", self.prefix), n.to_string()));
        expected.extend(each);
        assert_eq!(pairs(node, &format!("{}/", self.prefix)), expected);
    }

    /// How far it has counted.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }
}

/// All pairs that begin with `prefix`, as this node holds them.
pub(crate) fn pairs(node: SocketAddr, prefix: &str) -> Vec<(String, String)> {
    let (mut found, mut after) = (Vec::new(), String::new());
    loop {
        let target = format!("/api/kv?prefix={prefix}&limit=1000&consistency=stale{after}");
        let answer = ask(node, "GET", &target, None);
        assert_eq!(answer.status, 200, "{answer:?}");
        let page = answer.json();
        for pair in page["pairs"].as_array().unwrap() {
            let text = |name: &str| pair[name].as_str().unwrap().to_owned();
            found.push((text("key"), text("value")));
        }
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return found,
        }
    }
}
