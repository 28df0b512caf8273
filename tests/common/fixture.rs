//! The archives in `fixtures/` and their manifests; `fixtures/golden/README.md`
//! says what both hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

/// An archive and what must be found in it.
pub(crate) struct Fixture {
    pub(crate) name: String,
    pub(crate) manifest: Manifest,
    archive: PathBuf,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) expect: String,
    pub(crate) closed: String,
    pub(crate) producer: Producer,
    pub(crate) files: BTreeMap<String, FileFacts>,
    /// Parsed apart: flattened, its numeric keys would not parse, and an
    /// `Option` would hide that.
    #[serde(skip)]
    pub(crate) state: Option<State>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Producer {
    pub(crate) name: String,
    pub(crate) format: Option<u8>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct FileFacts {
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

/// What a state machine holds.
#[derive(Debug, Deserialize)]
pub(crate) struct State {
    pub(crate) rows: u64,
    pub(crate) rows_sha256: String,
    pub(crate) last_applied: Option<Position>,
    pub(crate) membership: Option<Membership>,
    pub(crate) listed_rows: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Position {
    pub(crate) term: u64,
    pub(crate) node: u64,
    pub(crate) index: u64,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Membership {
    pub(crate) log_id: Option<Position>,
    pub(crate) configs: Vec<BTreeSet<u64>>,
    pub(crate) nodes: BTreeMap<u64, String>,
}

/// All fixtures of `set`, `golden` or `legacy`, by name.
pub(crate) fn all(set: &str) -> Vec<Fixture> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut names: Vec<_> = std::fs::read_dir(dir.join(set))
        .unwrap()
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            Some(name.strip_suffix(".json")?.to_owned())
        })
        .collect();
    names.sort_unstable();
    names.iter().map(|name| one(set, name)).collect()
}

/// The fixture `name` of `set`.
pub(crate) fn one(set: &str, name: &str) -> Fixture {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let text = std::fs::read(dir.join(set).join(format!("{name}.json"))).unwrap();
    let mut manifest: Manifest = serde_json::from_slice(&text).unwrap();
    if !manifest.expect.starts_with("refused") {
        manifest.state = Some(serde_json::from_slice(&text).unwrap());
    }
    Fixture {
        name: name.to_owned(),
        manifest,
        archive: dir.join(set).join(format!("{name}.tar.zst")),
    }
}

/// A directory that is gone when this is dropped.
pub(crate) struct Scratch {
    _temporary: tempfile::TempDir,
    dir: PathBuf,
}

impl Deref for Scratch {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.dir
    }
}

/// An empty directory.
pub(crate) fn scratch() -> Scratch {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().to_owned();
    Scratch {
        _temporary: temporary,
        dir,
    }
}

impl Fixture {
    /// The directory in the archive, unpacked.
    pub(crate) fn unpack(&self) -> Scratch {
        let mut scratch = scratch();
        // Not by zstd, which a bare Debian lacks; tar it has.
        let archive = File::open(&self.archive).unwrap();
        let mut archive = ruzstd::decoding::StreamingDecoder::new(archive).unwrap();
        let mut tar = Command::new("tar")
            .arg("-xC")
            .arg(&scratch.dir)
            .stdin(Stdio::piped())
            .spawn()
            .expect("tar can be run");
        std::io::copy(&mut archive, &mut tar.stdin.take().unwrap()).unwrap();
        assert!(tar.wait().unwrap().success(), "{}", self.archive.display());
        scratch.dir.push(&self.name);
        scratch
    }

    /// The name of the state machine's file.
    pub(crate) fn file(&self) -> &'static str {
        if self.manifest.files.contains_key("state-machine.db") {
            "state-machine.db"
        } else {
            "state-machine.redb"
        }
    }

    /// The content that the manifest promises.
    pub(crate) fn state(&self) -> &State {
        self.manifest.state.as_ref().unwrap()
    }
}

impl State {
    /// The metadata as a legacy node encodes it: bincode 1.3, by hand.
    pub(crate) fn metadata(&self) -> BTreeMap<String, Vec<u8>> {
        let Some(membership) = &self.membership else {
            return BTreeMap::new();
        };
        let mut applied = Vec::new();
        put_position(&mut applied, self.last_applied);
        let mut stored = Vec::new();
        put_position(&mut stored, membership.log_id);
        put(&mut stored, membership.configs.len() as u64);
        for voters in &membership.configs {
            put(&mut stored, voters.len() as u64);
            voters.iter().for_each(|&id| put(&mut stored, id));
        }
        put(&mut stored, membership.nodes.len() as u64);
        for (&id, address) in &membership.nodes {
            put(&mut stored, id);
            put(&mut stored, address.len() as u64);
            stored.extend_from_slice(address.as_bytes());
        }
        BTreeMap::from([
            ("last_applied_log".to_owned(), applied),
            ("last_membership".to_owned(), stored),
        ])
    }
}

fn put(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_position(out: &mut Vec<u8>, position: Option<Position>) {
    out.push(u8::from(position.is_some()));
    if let Some(Position { term, node, index }) = position {
        [term, node, index].into_iter().for_each(|n| put(out, n));
    }
}
