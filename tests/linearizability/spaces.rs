//! A network namespace for each node, with a router between them that drops
//! packets: what a broken network really does, connections in their first and
//! last moments included. Only root can make them, with iproute2 and util-linux.
//!
//! All of them end with the thread that made them, or with its process.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::process::{Child, Command};
use std::sync::Mutex;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

use crate::common::disk::is_root;
use crate::site::eventually;

/// A narrow way: less than the load needs.
const NARROW: [&str; 6] = ["rate", "300kbit", "burst", "8kb", "latency", "400ms"];

/// The router, in this thread's namespace, and the nodes' namespaces around it.
#[derive(Default)]
pub(crate) struct Spaces {
    /// Each keeps a node's namespace; by id from 1.
    holders: Vec<Child>,
    cut: Mutex<BTreeSet<(u64, u64)>>,
}

/// Has `body` run in a network of its own, if that is possible here.
pub(crate) fn in_a_network_of_its_own(test: &str, body: impl FnOnce() + Send) {
    if !is_root(test) {
        return;
    }
    // Threads and programs that it starts are in there too.
    let ended = std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            run("ip", &["link", "set", "lo", "up"]);
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            body();
        });
        inside.join()
    });
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

/// Where a node is.
pub(crate) fn ip(id: u64) -> Ipv4Addr {
    Ipv4Addr::new(10, id.try_into().unwrap(), 0, 2)
}

impl Spaces {
    /// Makes the namespace of the next node.
    pub(crate) fn add(&mut self) {
        let id = self.holders.len() + 1;
        let here = inode("/proc/thread-self/ns/net");
        let mut holder = Command::new("setpriv");
        holder.args([
            "--pdeathsig",
            "KILL",
            "unshare",
            "--net",
            "sleep",
            "infinity",
        ]);
        let holder = holder.spawn().unwrap();
        let (pid, link) = (holder.id().to_string(), format!("n{id}"));
        self.holders.push(holder);
        let space = format!("/proc/{pid}/ns/net");
        eventually("a namespace is never made", || {
            (inode(&space) != here).then_some(())
        });
        let [router, node] = [1, 2].map(|last| format!("10.{id}.0.{last}"));
        let veth = ["type", "veth", "peer", "name", "eth0", "netns", &pid];
        run("ip", &[&["link", "add", &link][..], &veth].concat());
        run(
            "ip",
            &["address", "add", &format!("{router}/24"), "dev", &link],
        );
        run("ip", &["link", "set", &link, "up"]);
        let inside = |arguments: &[&str]| {
            let enter = format!("--net={space}");
            run("nsenter", &[&[&enter, "ip"][..], arguments].concat());
        };
        inside(&["address", "add", &format!("{node}/24"), "dev", "eth0"]);
        inside(&["link", "set", "lo", "up"]);
        inside(&["link", "set", "eth0", "up"]);
        inside(&["route", "add", "default", "via", &router]);
    }

    /// What starts a program in a node's namespace.
    pub(crate) fn through(&self, id: u64) -> Vec<String> {
        let holder = &self.holders[usize::try_from(id).unwrap() - 1];
        vec![
            "nsenter".into(),
            format!("--net=/proc/{}/ns/net", holder.id()),
        ]
    }

    /// Drops all packets from one node to another.
    pub(crate) fn cut(&self, from: u64, to: u64) {
        if from != to && self.cut.lock().unwrap().insert((from, to)) {
            rule("add", from, to);
        }
    }

    /// Makes the way to a node narrow, for everybody.
    pub(crate) fn narrow(&self, to: u64) {
        let link = format!("n{to}");
        let begin = ["qdisc", "replace", "dev", &link, "root", "tbf"];
        run("tc", &[&begin[..], &NARROW].concat());
    }

    /// Pulls a node's cable for a while.
    pub(crate) fn unplug(&self, id: u64, time: Duration) {
        let link = format!("n{id}");
        run("ip", &["link", "set", &link, "down"]);
        std::thread::sleep(time);
        run("ip", &["link", "set", &link, "up"]);
    }

    /// Makes all ways as they were.
    pub(crate) fn heal(&self) {
        for (from, to) in std::mem::take(&mut *self.cut.lock().unwrap()) {
            rule("delete", from, to);
        }
        for id in 1..=self.holders.len() {
            // There is none, mostly.
            let link = format!("n{id}");
            let mut tc = Command::new("tc");
            tc.args(["qdisc", "delete", "dev", &link, "root"]);
            let _ = tc.output().unwrap();
        }
    }
}

impl Drop for Spaces {
    fn drop(&mut self) {
        for holder in &mut self.holders {
            // Already gone at worst.
            let _ = holder.kill();
            let _ = holder.wait();
        }
    }
}

/// A rule of the router: what comes from one node for another disappears.
fn rule(what: &str, from: u64, to: u64) {
    let (from, to) = (format!("n{from}"), format!("{}/32", ip(to)));
    run("ip", &["rule", what, "iif", &from, "to", &to, "blackhole"]);
}

fn inode(path: &str) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).unwrap().ino()
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
}
