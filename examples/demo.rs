//! The main job in one command, with nothing installed and nothing left behind:
//!
//! ```text
//! cargo run --release --example demo
//! ```
//!
//! Unpacks the data directory of a legacy node (`tests/fixtures/golden`), runs
//! the node on it as a service would, reads and writes over HTTP, and stops it.

use std::error::Error;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use aspen::exit::Exit;
use aspen::supervisor::{Arguments, run};
use clap::Parser as _;
use nix::sys::signal::{Signal, kill};
use ruzstd::decoding::StreamingDecoder;

const LEGACY: &[u8] = include_bytes!("../tests/fixtures/golden/alone-redb-2.6-clean.tar.zst");
const CONFIG: &str = "[cluster]\nstorage_backend = \"sqlite\"  # was \"redb\"\n";
/// A key that the legacy node wrote.
const KEY: &str = "user/00169261cf68af73";

fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let (data, config) = (
        dir.path().join("alone-redb-2.6-clean"),
        dir.path().join("config.toml"),
    );
    unpack(LEGACY, dir.path())?;
    std::fs::write(&config, CONFIG)?;
    show("What a legacy node left", &list(&data)?);
    show("The configuration, one word of it changed", CONFIG);

    // A port that was free a moment ago; the node's own default may be taken.
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let arguments = Arguments::parse_from([
        "aspen-node".as_ref(),
        "--config".as_ref(),
        config.as_os_str(),
        "--data-dir".as_ref(),
        data.as_os_str(),
        "--http-addr".as_ref(),
        address.to_string().as_ref(),
    ]);
    show("The node starts", "");
    let node = std::thread::spawn(move || run(&arguments));
    while !node.is_finished()
        && !ask(address, "GET", "/readyz", "")
            .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    {
        std::thread::sleep(Duration::from_millis(10));
    }
    if !node.is_finished() {
        let legacy = format!("/api/kv/{KEY}");
        for (method, path, body) in [
            ("GET", "/health", ""),
            ("GET", &legacy, ""),
            ("POST", "/api/kv/greeting", r#"{"value":"hello"}"#),
            ("GET", "/api/kv/greeting", ""),
        ] {
            let answer = ask(address, method, path, body)?;
            let answer = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
            let title = format!("{method} http://{address}{path} {body}");
            show(title.trim_end(), answer);
        }
        show("The node is told to stop", "");
        kill(nix::unistd::getpid(), Signal::SIGTERM)?;
    }
    let exit = node.join().map_err(|_| "the node panicked")?;
    show("What there is now", &list(&data)?);
    show("The configuration now", &std::fs::read_to_string(&config)?);
    match exit {
        Exit::Ok => Ok(()),
        failed => Err(format!("the node ended with exit code {}", failed.code()).into()),
    }
}

/// Unpacks a `.tar.zst` without zstd, which a bare Debian lacks; tar it has.
fn unpack(archive: &[u8], into: &Path) -> Result<(), Box<dyn Error>> {
    let mut command = Command::new("tar");
    command.arg("-xC").arg(into).stdin(Stdio::piped());
    let mut tar = command.spawn()?;
    if let Some(mut input) = tar.stdin.take() {
        std::io::copy(&mut StreamingDecoder::new(archive)?, &mut input)?;
    }
    match tar.wait()?.success() {
        true => Ok(()),
        false => Err("tar failed".into()),
    }
}

/// Sizes and names, as `ls` would show them.
fn list(dir: &Path) -> std::io::Result<String> {
    let mut lines = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let (bytes, name) = (entry.metadata()?.len(), entry.file_name());
        lines.push((name.clone(), format!("{bytes:>9}  {}", name.display())));
    }
    lines.sort_unstable();
    Ok(lines.into_iter().map(|(_, line)| line + "\n").collect())
}

/// One request, the whole answer.
fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn show(title: &str, text: &str) {
    println!("\n== {title}");
    if !text.is_empty() {
        println!("{}", text.trim_end());
    }
}
