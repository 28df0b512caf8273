//! Legacy state machines to migrate, made once and kept.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::KEY_BYTES;
use crate::common::{Result, data_dir};

/// A source with `rows` rows in random order of their keys, written by redb
/// 2.6.4 through the fixtures' generator; an earlier one is used again.
pub(crate) fn make(rows: u64, value_bytes: u64) -> Result<PathBuf> {
    let dir = data_dir().join(format!("{rows}x{}", KEY_BYTES + value_bytes));
    let (path, facts) = (dir.join("state-machine.redb"), dir.join("facts.json"));
    if facts.exists() {
        return Ok(path);
    }
    if dir.exists() {
        std::fs::remove_dir_all(&dir)?; // interrupted: the facts are written last
    }
    eprintln!("making {}", path.display());
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let status = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--manifest-path"])
        .arg(root.join("tests/fixtures/generator/Cargo.toml"))
        .arg("--target-dir")
        .arg(root.join("target/generator"))
        .args(["--", "bench", "--rows", &rows.to_string()])
        .args(["--key-bytes", &KEY_BYTES.to_string()])
        .args(["--value-bytes", &value_bytes.to_string(), "--out"])
        .arg(&dir)
        .stdout(std::process::Stdio::null())
        .status()?;
    match status.success() {
        true => Ok(path),
        false => Err(format!("the generator failed: {status}").into()),
    }
}

/// What a table is headed with: how large the source is.
pub(crate) fn describe(source: &Path) -> Result<String> {
    let about = source.metadata()?;
    let facts = source.with_file_name("facts.json");
    let rows = std::fs::read_to_string(facts)
        .ok()
        .and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok())
        .map_or(String::new(), |facts| {
            format!("{} rows of {} bytes, ", facts["rows"], facts["row_bytes"])
        });
    #[allow(clippy::cast_precision_loss)]
    let gb = |bytes: u64| bytes as f64 / 1e9;
    let (length, data) = (gb(about.len()), gb(about.blocks() * 512));
    Ok(format!(
        "{rows}{length:.2} GB of redb v2 ({data:.2} GB on disk)"
    ))
}
