//! That an acknowledged put is on disk: the system calls of a node between a
//! put that arrives and the answer that leaves. In between, an fdatasync of the
//! Raft log must begin and return.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::common::Result;
use crate::data::Shape;
use crate::server::{Peer, Server, Wrapping};
use crate::{Bench, find};

/// Single puts that are traced; each must hold.
const PUTS: u64 = 20;
/// What is traced: how requests arrive, how answers leave, and what changes files.
const CALLS: &str = "trace=read,recvfrom,write,writev,sendto,sendmsg,pwrite64,pwritev,fsync,fdatasync,msync,sync_file_range";
/// The journal of the Raft log and the log itself, as the data directory names them: the
/// first puts of a node, before it has a journal, go to the log at once.
const RAFT_LOG: [&str; 2] = ["raft-log.journal", "raft-log.redb"];
/// Characters of a line that are shown.
const WIDTH: usize = 140;
/// How long strace may go on writing when the node has ended.
const WRITTEN_WITHIN: Duration = Duration::from_secs(10);

/// Traces, checks each put, and prints one.
pub(crate) async fn run(bench: &Bench) -> Result<()> {
    let Some(strace) = find("strace") else {
        println!("\nNot traced: there is no strace in PATH (Debian: apt-get install strace).");
        return Ok(());
    };
    println!("\n## Every acknowledged put is on disk");
    for peer in [Peer::Sqlite, Peer::Redb] {
        let dir = bench.empty_dir("trace")?;
        let trace = dir.join("trace");
        // -D: the node is our child, strace looks on.
        let prefix = [
            strace.as_os_str(),
            "-D".as_ref(),
            "-f".as_ref(),
            "-tt".as_ref(),
            "-yy".as_ref(),
            "-s".as_ref(),
            "48".as_ref(),
            "-e".as_ref(),
            CALLS.as_ref(),
            "-o".as_ref(),
            trace.as_os_str(),
        ];
        let wrapping = Wrapping {
            prefix: prefix.map(Into::into).into(),
            ..Wrapping::default()
        };
        let server = Server::start_wrapped(&bench.programs, peer, &dir, &wrapping)?;
        let mut client = Client::connect_when_ready(peer, server.port)
            .await
            .map_err(|error| server.blame(error))?;
        let shape = Shape {
            keys: PUTS,
            value_bytes: bench.value_bytes.unwrap_or(100),
        };
        for id in 0..PUTS {
            let put = client.put(&shape.pair(id, 0)).await;
            put.map_err(|error| server.blame(error))?;
        }
        drop(client);
        server.stop()?;
        let text = complete(&trace)?;
        let lines: Vec<&str> = text.lines().collect();
        let mut last = &lines[..0];
        for id in 0..PUTS {
            last = exchange(&lines, &shape.key(id))?;
            durable(last).map_err(|error| format!("{}: {error}", last.join("\n")))?;
        }
        print(peer, last);
        std::fs::remove_dir_all(dir)?;
    }
    Ok(())
}

/// The trace, once strace has written its last line.
fn complete(trace: &Path) -> Result<String> {
    let began = Instant::now();
    loop {
        // Values may be cut in the middle of a character.
        let text = String::from_utf8_lossy(&std::fs::read(trace)?).into_owned();
        let ended = text
            .lines()
            .next_back()
            .is_some_and(|line| line.contains("+++ "));
        if ended || began.elapsed() > WRITTEN_WITHIN {
            return Ok(text);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The lines from the arrival of the put of `key` to its answer.
fn exchange<'a>(lines: &'a [&'a str], key: &str) -> Result<&'a [&'a str]> {
    let request = format!("\"POST /api/kv/{key} ");
    let arrived = lines.iter().position(|line| line.contains(&request));
    let arrived = arrived.ok_or_else(|| format!("no put of {key} arrives in the trace"))?;
    let answered = lines[arrived..]
        .iter()
        .position(|line| line.contains("\"HTTP/1.1 200 "));
    let answered = answered.ok_or_else(|| format!("no answer to the put of {key}"))?;
    Ok(&lines[arrived..=arrived + answered])
}

/// That an fdatasync of the log or its journal began and returned 0 within these lines,
/// after something was written to the same of them.
fn durable(lines: &[&str]) -> Result<()> {
    let [journal, log] = RAFT_LOG;
    durable_in(journal, lines).or_else(|_| durable_in(log, lines))
}

fn durable_in(name: &str, lines: &[&str]) -> Result<()> {
    let thread = |line: &str| line.split_whitespace().next().map(str::to_owned);
    let of_log = |line: &str, calls: &[&str]| {
        line.contains(name) && calls.iter().any(|call| line.contains(&format!(" {call}(")))
    };
    let written = lines
        .iter()
        .position(|line| of_log(line, &["pwrite64", "pwritev", "write"]));
    let written = written.ok_or("nothing is written to the log before the answer")?;
    for (at, line) in lines.iter().enumerate().skip(written) {
        if !of_log(line, &["fdatasync", "fsync"]) {
            continue;
        }
        let returned = line.contains(") = 0") || {
            let mut later = lines[at..]
                .iter()
                .filter(|later| thread(later) == thread(line));
            later.any(|later| later.contains("sync resumed>) ") && later.contains("= 0"))
        };
        if returned {
            return Ok(());
        }
    }
    Err("no fdatasync of the log returns before the answer".into())
}

fn print(peer: Peer, lines: &[&str]) {
    println!(
        "\n{}: in each of {PUTS} single puts the log is written and an fdatasync of it returns \
         before the answer is written. The last, as `strace -f -tt -yy` shows it (thread, time, call):\n\n```text",
        peer.name()
    );
    // One thread waking another tells nothing either.
    for line in lines.iter().filter(|line| !line.contains("[eventfd]")) {
        let mut line: String = line.to_string();
        // The directory says nothing.
        while let (Some(open), Some(name)) = (line.find("</"), line.find("/data/")) {
            if open >= name {
                break;
            }
            line.replace_range(open + 1..name + "/data/".len(), "");
        }
        let cut: String = line.chars().take(WIDTH).collect();
        println!("{cut}{}", if cut.len() < line.len() { " …" } else { "" });
    }
    println!("```");
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: &str = "7 10:00:00.1 pwrite64(9</d/data/raft-log.redb>, \"x\", 1, 0) = 1";
    const SYNC: &str = "7 10:00:00.2 fdatasync(9</d/data/raft-log.redb>) = 0";
    const BEGUN: &str = "7 10:00:00.2 fdatasync(9</d/data/raft-log.redb> <unfinished ...>";
    const RETURNED: &str = "7 10:00:00.3 <... fdatasync resumed>) = 0";

    #[test]
    fn a_put_is_durable_once_the_log_is_written_and_synced() {
        durable(&[WRITE, SYNC]).unwrap();
        durable(&[WRITE, BEGUN, RETURNED]).unwrap();
    }

    #[test]
    fn a_sync_that_fails_or_has_not_returned_or_was_for_something_else_does_not_count() {
        for lines in [
            vec![WRITE],
            vec![SYNC, WRITE],
            vec![WRITE, BEGUN],
            vec![WRITE, BEGUN, "8 10:00:00.3 <... fdatasync resumed>) = 0"],
            vec![
                WRITE,
                BEGUN,
                "7 10:00:00.3 <... fdatasync resumed>) = -1 EIO",
            ],
            vec![
                WRITE,
                "7 10:00:00.2 fdatasync(9</d/data/raft-log.redb>) = -1 EIO",
            ],
            vec![
                WRITE,
                "7 10:00:00.2 fdatasync(9</d/data/state-machine.db>) = 0",
            ],
        ] {
            durable(&lines).unwrap_err();
        }
    }
}
