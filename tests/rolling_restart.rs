//! `packaging/aspen-rolling-restart` against real nodes: followers first, the
//! leader last, and never on while the cluster could not do without a node.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use common::client::{ask, until};
use common::cluster::Cluster;
use common::fixture::scratch;
use common::load::{under_load, writers};

const SCRIPT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/packaging/aspen-rolling-restart"
);

/// The program for all nodes of `cluster`; to restart one it writes its URL into
/// `asked` and waits until that is gone.
fn rolling(cluster: &Cluster, asked: &Path, more: &[&str]) -> Command {
    let mut command = Command::new("sh");
    let restart = format!(
        "echo {{url}} > {asked}.new && mv {asked}.new {asked} && while test -e {asked}; do sleep 0.05; done",
        asked = asked.display()
    );
    command.arg(SCRIPT).args(["--restart", &restart]).args(more);
    for id in cluster.ids() {
        command.arg(format!("http://{}", cluster.address(id)));
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8(both).unwrap()
}

/// Restarts the nodes that the program asks for until it ends; in which order.
fn serve(cluster: &mut Cluster, asked: &Path, mut program: Child) -> (Vec<u64>, Output) {
    let mut order = Vec::new();
    while program.try_wait().unwrap().is_none() {
        if let Ok(url) = std::fs::read_to_string(asked) {
            let is_it = |id: &u64| url.trim() == format!("http://{}", cluster.address(*id));
            let id = cluster.ids().into_iter().find(is_it).unwrap();
            cluster.stop(id);
            cluster.start(id);
            order.push(id);
            std::fs::remove_file(asked).unwrap();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    (order, program.wait_with_output().unwrap())
}

/// A cluster of which every node may restart.
fn settled() -> Cluster {
    let cluster = Cluster::all(&["sqlite"; 3]);
    for id in 1..=3 {
        let address = cluster.address(id);
        until(
            || ask(address, "GET", "/readyz?restart", None),
            |answer| answer.status == 200,
        );
    }
    cluster
}

#[test]
fn followers_are_restarted_first_and_the_leader_last_and_no_write_is_lost() {
    let dir = scratch();
    let asked = dir.join("asked");
    let mut cluster = settled();
    let leader = cluster.leader();
    let dry = rolling(&cluster, &asked, &["--dry-run"]).output().unwrap();
    assert!(dry.status.success(), "{}", text(&dry));
    assert!(
        text(&dry).contains("would hand leadership over"),
        "{}",
        text(&dry)
    );
    assert!(!asked.exists());
    let program = rolling(&cluster, &asked, &[]).spawn().unwrap();
    // On the leader, which is the last to go; its writer ends with it.
    let address = cluster.address(leader);
    let mut writers = writers(1, 100);
    let (order, output) = under_load(&mut writers, address, || {
        serve(&mut cluster, &asked, program)
    });
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(order.len(), 3, "{}", text(&output));
    assert!(
        text(&output).contains("All are restarted"),
        "{}",
        text(&output)
    );
    assert!(
        text(&output).contains("leadership handed over"),
        "{}",
        text(&output)
    );
    for writer in &mut writers {
        assert!(writer.acknowledged > 0);
        writer.check(cluster.address(1));
    }
}

#[test]
fn nothing_is_restarted_while_a_node_is_missing() {
    let dir = scratch();
    let asked = dir.join("asked");
    let mut cluster = settled();
    let leader = cluster.leader();
    let away = cluster.others(leader)[0];
    cluster.kill(away);
    let address = cluster.address(leader);
    let answer = until(
        || ask(address, "GET", "/readyz?restart&verbose", None),
        |answer| answer.status == 503,
    );
    let check = &answer.json()["checks"]["restart"];
    assert!(
        check["message"]
            .as_str()
            .unwrap()
            .contains(&format!("node {away}")),
        "{check}"
    );
    let output = rolling(&cluster, &asked, &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(69), "{}", text(&output));
    assert!(
        text(&output).contains(&format!("node {away} was last heard of")),
        "{}",
        text(&output)
    );
    assert!(!asked.exists());
}

#[test]
fn what_it_is_told_wrong_is_refused() {
    let run = |arguments: &[&str]| {
        let output = Command::new("sh").arg(SCRIPT).args(arguments).output();
        let output = output.unwrap();
        (output.status.code().unwrap(), text(&output))
    };
    assert_eq!(run(&["--help"]).0, 0);
    for (arguments, part) in [
        (&[][..], "no node is named"),
        (&["http://localhost:1"], "--restart is missing"),
        (&["--dry-run", "localhost"], "not a URL"),
        (
            &["--dry-run", "--timeout", "soon", "http://localhost:1"],
            "not a number",
        ),
        (&["--fast", "http://localhost:1"], "unknown option"),
        (&["--restart"], "needs a value"),
    ] {
        let (code, said) = run(arguments);
        assert_eq!(code, 64, "{arguments:?}: {said}");
        assert!(said.contains(part), "{arguments:?}: {said}");
    }
    let (code, said) = run(&["--dry-run", "http://127.0.0.1:1"]);
    assert_eq!(code, 69, "{said}");
}
