//! A damaged source is refused by name, or it was not damaged where data is:
//! never a panic, a hang, or a result that differs in silence.
//!
//! The damage is the same each time: positions come from a seed. redb's
//! releases are tried as their own files are: both formats, closed and not,
//! committed in one phase, in two, and with what a quick repair needs.
//!
//! Twice this has found a bit that changed the result. In a v2 file made ready
//! for a quick repair redb opens without a look at any checksum. And after a
//! commit in two phases one flag, which no checksum covers, chooses between the
//! last two commits.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex};

use common::fixture::{self, Scratch, scratch};
use common::{contents, convert, each, listing, read};
use serde_json::Value;

/// redb's page; the first holds the header.
const PAGE: usize = 4096;
/// The byte of flags: current commit slot, recovery required, two phases.
const FLAGS: usize = 9;
/// Page size, regions, and what is unused.
const LAYOUT: std::ops::Range<usize> = 10..64;
/// The two commit slots.
const SLOTS: std::ops::Range<usize> = 64..320;

const SUBJECTS: [&str; 10] = [
    "legacy/plain",
    "legacy/unclean",
    "golden/ordinary-redb-2.0-unclean",
    "golden/ordinary-redb-2.6-v3-clean",
    "golden/ordinary-redb-2.6-upgraded-unclean",
    "golden/ordinary-redb-4.6-clean",
    "golden/ordinary-redb-4.6-unclean",
    "golden/two-phase-redb-2.6-unclean",
    "golden/quick-repair-redb-2.6-unclean",
    "golden/quick-repair-redb-4.6-unclean",
];

/// An undamaged source.
struct Subject {
    name: &'static str,
    bytes: Vec<u8>,
    found: Found,
}

/// What a conversion takes from its source.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    keys: u64,
    checksum: String,
    metadata: BTreeMap<String, Vec<u8>>,
}

fn subjects() -> &'static [Subject] {
    static READ: LazyLock<Vec<Subject>> =
        LazyLock::new(|| SUBJECTS.iter().map(|name| subject(name)).collect());
    &READ
}

fn subject(name: &'static str) -> Subject {
    let (set, file) = name.split_once('/').unwrap();
    let fixture = fixture::one(set, file);
    let bytes = std::fs::read(fixture.unpack().join("state-machine.redb")).unwrap();
    let found = attempt(&bytes).unwrap();
    // That the rows are those of the manifest is shown in golden_files.rs.
    assert_eq!(found.keys, fixture.state().rows);
    assert_eq!(found.metadata, fixture.state().metadata());
    Subject { name, bytes, found }
}

/// Converts `bytes`: what was found in them, or the error that names the file.
fn attempt(bytes: &[u8]) -> Result<Found, String> {
    let dir = scratch();
    let (source, target) = (dir.join("damaged.redb"), dir.join("target.db"));
    std::fs::write(&source, bytes).unwrap();
    let run = convert(&source, &target, &["--full-verify", "--json"]);
    assert!(
        std::fs::read(&source).unwrap() == bytes,
        "the source changed"
    );
    let object: Value = serde_json::from_str(&run.out).unwrap();
    if run.code == 0 {
        return Ok(Found {
            keys: object["keys"].as_u64().unwrap(),
            checksum: object["checksum"].as_str().unwrap().to_owned(),
            metadata: metadata(&target),
        });
    }
    assert_eq!(run.code, 65, "{}", run.err);
    assert_eq!(object["exit_code"], 65);
    assert!(run.err.contains(source.to_str().unwrap()), "{}", run.err);
    assert_eq!(listing(&dir), ["damaged.redb"]);
    Err(run.err)
}

fn metadata(target: &Path) -> BTreeMap<String, Vec<u8>> {
    let connection = rusqlite::Connection::open(target).unwrap();
    let select = "SELECT key, value FROM state_machine_meta";
    let mut select = connection.prepare(select).unwrap();
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
    rows.unwrap().map(Result::unwrap).collect()
}

/// One way to damage a file.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Flip { byte: usize, bit: usize },
    Cut { length: usize },
    Pad { bytes: usize, with: u8 },
    Fill { page: usize, with: u8 },
    Swap { pages: [usize; 2] },
    Overwrite { page: usize, by: usize },
}

impl Damage {
    fn done_to(self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        let at = |page: usize| page * PAGE..(page + 1) * PAGE;
        match self {
            Self::Flip { byte, bit } => bytes[byte] ^= 1 << bit,
            Self::Cut { length } => bytes.truncate(length),
            Self::Pad { bytes: more, with } => bytes.resize(bytes.len() + more, with),
            Self::Fill { page, with } => bytes[at(page)].fill(with),
            Self::Swap { pages: [a, b] } => {
                let kept = bytes[at(a)].to_vec();
                bytes.copy_within(at(b), at(a).start);
                bytes[at(b)].copy_from_slice(&kept);
            }
            Self::Overwrite { page, by } => bytes.copy_within(at(by), at(page).start),
        }
        bytes
    }
}

/// Does each of `damages` to its subject and tells how many were refused.
fn refused(subjects: &[Subject], damages: &[(usize, Damage)]) -> usize {
    let refused = AtomicUsize::new(0);
    let name = |(n, damage): &(usize, Damage)| format!("{} {damage:?}", subjects[*n].name);
    each(damages, name, |&(n, damage)| {
        let subject = &subjects[n];
        let bytes = damage.done_to(&subject.bytes);
        match attempt(&bytes) {
            Ok(found) => assert_eq!(found, subject.found),
            Err(_) => {
                refused.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    refused.into_inner()
}

/// A sequence that looks random and is the same each time (splitmix64).
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % limit as u64).unwrap()
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn flip(&mut self, within: std::ops::Range<usize>) -> Damage {
        let byte = within.start + self.below(within.len());
        let bit = self.below(8);
        Damage::Flip { byte, bit }
    }
}

/// What a page's first byte says that it holds. Bookkeeping is v2's bitmaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Leaf,
    Branch,
    Bookkeeping,
    Zeros,
}

fn pages(bytes: &[u8]) -> BTreeMap<Class, Vec<usize>> {
    let mut pages: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (number, page) in bytes.chunks_exact(PAGE).enumerate().skip(1) {
        let class = match page[0] {
            1 => Class::Leaf,
            2 => Class::Branch,
            _ if page.iter().all(|&byte| byte == 0) => Class::Zeros,
            _ => Class::Bookkeeping,
        };
        pages.entry(class).or_default().push(number);
    }
    pages
}

#[test]
fn a_flipped_bit_in_the_header_is_refused_or_changes_nothing() {
    let (subjects, mut seeded) = (subjects(), Seeded(1));
    let mut damages = Vec::new();
    for n in 0..subjects.len() {
        damages.extend((0..8).map(|bit| (n, Damage::Flip { byte: FLAGS, bit })));
        damages.extend((0..14).map(|_| (n, seeded.flip(LAYOUT))));
        damages.extend((0..14).map(|_| (n, seeded.flip(SLOTS))));
    }
    let refused = refused(subjects, &damages);
    assert!(
        refused > damages.len() / 4,
        "{refused} of {}",
        damages.len()
    );
}

#[test]
fn a_flipped_bit_in_a_page_is_refused_or_changes_nothing() {
    let (subjects, mut seeded) = (subjects(), Seeded(2));
    let mut damages = Vec::new();
    for (n, subject) in subjects.iter().enumerate() {
        for (class, pages) in pages(&subject.bytes) {
            let flips = if class == Class::Zeros { 4 } else { 14 };
            for round in 0..flips {
                let start = seeded.pick(&pages) * PAGE;
                // Half of them where a page says what it is and how much is in it.
                let length = if round % 2 == 0 { 64 } else { PAGE };
                damages.push((n, seeded.flip(start..start + length)));
            }
        }
    }
    let refused = refused(subjects, &damages);
    assert!(
        refused > damages.len() / 8,
        "{refused} of {}",
        damages.len()
    );
}

/// Old pages may hold the same value; flipped in all of them, the one that
/// counts is hit for certain.
#[test]
fn a_bit_of_a_value_that_flips_is_always_found() {
    for name in SUBJECTS {
        let (set, file) = name.split_once('/').unwrap();
        let dir = fixture::one(set, file).unpack();
        let (source, target) = (dir.join("state-machine.redb"), dir.join("target.db"));
        assert_eq!(convert(&source, &target, &[]).code, 0);
        let rows = read::sqlite_table(&target, "state_machine_kv");
        let bytes = std::fs::read(source).unwrap();
        let value = rows.values().max_by_key(|value| value.len()).unwrap();
        let mut damaged = bytes.clone();
        let found = bytes.windows(value.len()).enumerate();
        for (at, _) in found.filter(|(_, window)| window == value) {
            damaged[at + value.len() / 2] ^= 1;
        }
        assert_ne!(damaged, bytes);
        let refused = attempt(&damaged).expect_err(name);
        assert!(refused.contains("is damaged"), "{refused}");
    }
}

#[test]
fn a_file_cut_short_is_refused_or_loses_nothing() {
    let (subjects, mut seeded) = (subjects(), Seeded(3));
    let mut damages = Vec::new();
    for (n, subject) in subjects.iter().enumerate() {
        let length = subject.bytes.len();
        let (pages, some) = (length / PAGE, seeded.below(length));
        let page = seeded.below(pages) * PAGE;
        let lengths = [
            0,
            1,
            9,
            10,
            64,
            192,
            319,
            320,
            321,
            PAGE - 1,
            PAGE,
            PAGE + 1,
            2 * PAGE,
            page,
            some,
            length / 2 / PAGE * PAGE,
            length - PAGE,
            length - PAGE + 1,
            length - 1,
        ];
        damages.extend(lengths.map(|length| (n, Damage::Cut { length })));
    }
    let refused = refused(subjects, &damages);
    assert!(
        refused > damages.len() / 2,
        "{refused} of {}",
        damages.len()
    );
}

/// A disk that was full when the file was copied: the operator reads what happened, not what redb
/// had assumed.
#[test]
fn a_copy_that_was_cut_short_is_told_as_such() {
    for subject in subjects().iter().filter(|s| !s.name.contains("unclean")) {
        let length = subject.bytes.len();
        let cut = length / 2;
        let told = attempt(&subject.bytes[..cut]).unwrap_err();
        let wanted = format!("it has {cut} bytes and should have {length}");
        assert!(told.contains(&wanted), "{}: {told}", subject.name);
    }
}

#[test]
fn a_file_with_something_behind_it_is_refused_or_loses_nothing() {
    let subjects = subjects();
    let paddings = [
        (1, 0),
        (1, 255),
        (PAGE - 1, 7),
        (PAGE, 0),
        (PAGE, 1),
        (1 << 20, 0),
    ];
    let damages: Vec<_> = (0..subjects.len())
        .flat_map(|n| paddings.map(|(bytes, with)| (n, Damage::Pad { bytes, with })))
        .collect();
    let refused = refused(subjects, &damages);
    assert!(
        refused < damages.len(),
        "a file that grew is not damaged by that"
    );
}

#[test]
fn a_page_that_is_lost_moved_or_stale_is_refused_or_changes_nothing() {
    let (subjects, mut seeded) = (subjects(), Seeded(4));
    let mut damages = Vec::new();
    for (n, subject) in subjects.iter().enumerate() {
        for (class, pages) in pages(&subject.bytes) {
            let rounds = if class == Class::Zeros { 1 } else { 4 };
            for _ in 0..rounds {
                let [page, by] = [seeded.pick(&pages), seeded.pick(&pages)];
                damages.push((n, Damage::Fill { page, with: 0 }));
                damages.push((n, Damage::Fill { page, with: 255 }));
                damages.push((n, Damage::Swap { pages: [page, by] }));
                damages.push((n, Damage::Overwrite { page, by }));
            }
        }
        damages.push((n, Damage::Fill { page: 0, with: 0 }));
        damages.push((n, Damage::Swap { pages: [0, 1] }));
    }
    let refused = refused(subjects, &damages);
    assert!(
        refused > damages.len() / 4,
        "{refused} of {}",
        damages.len()
    );
}

#[test]
fn what_was_never_a_database_is_refused() {
    let mut seeded = Seeded(5);
    let mut noise = || -> Vec<u8> {
        let bytes = (0..3 * PAGE).map(|_| u8::try_from(seeded.below(256)));
        bytes.map(Result::unwrap).collect()
    };
    let magic = b"redb\x1A\x0A\xA9\x0D\x0A";
    let mut after_magic = noise();
    after_magic[..magic.len()].copy_from_slice(magic);
    let mut zeros_after_magic = vec![0; 3 * PAGE];
    zeros_after_magic[..magic.len()].copy_from_slice(magic);
    let mut program = std::fs::read(common::MIGRATE).unwrap();
    program.truncate(1 << 20);
    let archive = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/legacy/plain.tar.zst"
    );
    let foreign = [
        noise(),
        after_magic,
        zeros_after_magic,
        magic.to_vec(),
        program,
        std::fs::read(archive).unwrap(),
        vec![0; 1 << 20],
        b"[cluster]\nstorage_backend = \"redb\"\n".to_vec(),
    ];
    for bytes in foreign {
        attempt(&bytes).unwrap_err();
    }
}

/// SQLite has no checksums: a flipped bit of a value is a value like any other.
/// What can be promised is the way it ends, and that the source is not touched.
#[test]
fn a_damaged_sqlite_source_is_read_or_refused_and_never_changed() {
    let fixture = fixture::one("golden", "ordinary-sqlite-unclean");
    let original: Scratch = fixture.unpack();
    let mut seeded = Seeded(6);
    let mut flips = Vec::new();
    for (file, count) in [("state-machine.db", 60), ("state-machine.db-wal", 40)] {
        let length = fixture.manifest.files[file].bytes;
        let length = usize::try_from(length).unwrap();
        // The file's own header, then anywhere.
        flips.extend((0..count / 3).map(|_| (file, seeded.flip(0..100))));
        flips.extend((0..count).map(|_| (file, seeded.flip(0..length))));
    }
    let codes = Mutex::new(BTreeMap::new());
    let name = |flip: &(&str, Damage)| format!("{flip:?}");
    each(&flips, name, |&(file, damage)| {
        let (dir, elsewhere) = (scratch(), scratch());
        for name in fixture.manifest.files.keys() {
            std::fs::copy(original.join(name), dir.join(name)).unwrap();
        }
        let bytes = std::fs::read(dir.join(file)).unwrap();
        std::fs::write(dir.join(file), damage.done_to(&bytes)).unwrap();
        let before = contents(&dir);
        let (source, target) = (dir.join("state-machine.db"), elsewhere.join("target.redb"));
        let run = convert(&source, &target, &["--full-verify"]);
        let mut after = contents(&dir);
        after.remove("aspen.lock");
        assert_eq!(after, before);
        if run.code == 0 {
            read::redb_tables(&target);
        } else {
            assert!([65, 74].contains(&run.code), "{}", run.err);
            assert!(run.err.contains(source.to_str().unwrap()), "{}", run.err);
            assert_eq!(listing(&elsewhere), [""; 0]);
        }
        *codes.lock().unwrap().entry(run.code).or_insert(0) += 1;
    });
    let codes = codes.into_inner().unwrap();
    assert!(codes.len() > 1, "{codes:?}");
}
