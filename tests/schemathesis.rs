//! A stranger's tool reads `/openapi.json` and asks for everything that it
//! promises and forbids: no answer is undocumented, and none is 5xx.
//!
//! The tool is <https://schemathesis.io>, from PyPI:
//! `python3 -m venv target/schemathesis && target/schemathesis/bin/pip install schemathesis`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::fixture::scratch;
use common::node::node_on;

/// Requests for each operation and phase, beside those that follow from the
/// description itself.
const EXAMPLES: &str = "60";

fn tool() -> Option<PathBuf> {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/schemathesis/bin/schemathesis");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let theirs = std::env::split_paths(&path).map(|dir| dir.join("schemathesis"));
    std::iter::once(ours)
        .chain(theirs)
        .find(|program| program.is_file())
}

#[test]
fn every_answer_is_as_the_description_says() {
    let Some(tool) = tool() else {
        assert!(!common::all_tests_required(), "schemathesis is not there");
        println!("left out: schemathesis is not installed");
        return;
    };
    for backend in ["sqlite", "redb"] {
        let (dir, work) = (scratch(), scratch());
        let mut node = node_on(&dir).env("ASPEN_STORAGE_BACKEND", backend).start();
        let address = node.ready();
        let run = Command::new(&tool)
            .current_dir(&*work)
            .arg("--config-file")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/schemathesis.toml"))
            .args([
                "run",
                "--checks=all",
                "--no-color",
                "--max-examples",
                EXAMPLES,
            ])
            // It would end what is asked next.
            .args(["--exclude-path", "/admin/shutdown"])
            .arg(format!("http://{address}/openapi.json"))
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&run.stdout);
        assert!(run.status.success(), "{told}");
        assert!(told.contains(" passed"), "{told}");
        node.stop().with(0);
    }
}
