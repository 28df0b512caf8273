//! Why the SQLite state machine has ordinary rowid tables and pages of 4 KiB.
//!
//! ```text
//! cargo bench --bench layout [-- --rows N --value-bytes M] [--runs R]
//! ```
//!
//! For each table kind and page size: bulk load in key order, SQLite's checks,
//! and what a node does afterwards, which is random keys, singly and in
//! batches, through a write-ahead log. Rounds alternate; medians are printed.

#[path = "common/mod.rs"]
mod common;

use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

use common::{Result, Runs, empty_dir, settle};
use rusqlite::Connection;

/// Keys are `k` and this many digits, as in the fixtures.
const KEY_DIGITS: usize = 20;
/// Writes that each node-like measurement makes.
const BATCHED: u64 = 32_000;
const SINGLE_FULL: u64 = 500;
const SINGLE_NORMAL: u64 = 10_000;
/// Writes in one transaction, as a node applies entries.
const BATCH: u64 = 64;

/// One column of the printed table: what, and whether it is a rate.
const COLUMNS: [&str; 9] = [
    "file, MB",
    "bulk load, s",
    "quick_check, s",
    "integrity_check, s",
    "update, 64 a transaction, /s",
    "new keys, 64 a transaction, /s",
    "update, single, FULL, /s",
    "update, single, NORMAL, /s",
    "new key, single, NORMAL, /s",
];

#[derive(Clone, Copy)]
struct Layout {
    without_rowid: bool,
    page_bytes: u32,
}

impl Layout {
    const ALL: [Self; 6] = [
        Self::new(false, 4096),
        Self::new(false, 8192),
        Self::new(false, 16384),
        Self::new(true, 4096),
        Self::new(true, 8192),
        Self::new(true, 16384),
    ];

    const fn new(without_rowid: bool, page_bytes: u32) -> Self {
        Self {
            without_rowid,
            page_bytes,
        }
    }

    fn name(self) -> String {
        let kind = if self.without_rowid {
            "WITHOUT ROWID"
        } else {
            "rowid"
        };
        format!("{kind}, {}", self.page_bytes)
    }
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (mut shapes, mut runs) = (vec![(1_000_000, 100), (200_000, 1_000)], 3_usize);
    let (mut rows, mut value_bytes) = (None, 100);
    let mut words = words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word {
            "--bench" => {} // what cargo adds
            "--rows" => rows = Some(value()?.parse()?),
            "--value-bytes" => value_bytes = value()?.parse()?,
            "--runs" => runs = value()?.parse()?,
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    if let Some(rows) = rows {
        shapes = vec![(rows, value_bytes)];
    }
    for (rows, value_bytes) in shapes {
        measure(rows, value_bytes, runs)?;
    }
    Ok(())
}

fn measure(rows: u64, value_bytes: usize, runs: usize) -> Result<()> {
    println!("\n{rows} rows of {} bytes\n", KEY_DIGITS + 1 + value_bytes);
    let mut table = vec![vec![Runs::default(); COLUMNS.len()]; Layout::ALL.len()];
    for _ in 0..runs {
        for (layout, cells) in Layout::ALL.into_iter().zip(&mut table) {
            let figures = run(layout, rows, value_bytes)?;
            for (cell, figure) in cells.iter_mut().zip(figures) {
                cell.0.push(figure);
            }
        }
    }
    println!("| | {} |", COLUMNS.join(" | "));
    println!("|---|{}", "---|".repeat(COLUMNS.len()));
    for (layout, cells) in Layout::ALL.iter().zip(&table) {
        let cells = cells.iter().map(|cell| number(cell.median()));
        let cells: Vec<String> = cells.collect();
        println!("| {} | {} |", layout.name(), cells.join(" | "));
    }
    Ok(())
}

fn number(figure: f64) -> String {
    match figure {
        small if small < 100.0 => format!("{small:.2}"),
        large => format!("{large:.0}"),
    }
}

#[allow(clippy::cast_precision_loss)]
fn run(layout: Layout, rows: u64, value_bytes: usize) -> Result<[f64; COLUMNS.len()]> {
    let path = empty_dir("layout")?.join("state-machine.db");
    settle();
    let value = "v".repeat(value_bytes);
    let load = seconds(|| load(&path, layout, rows, &value))?;
    let megabytes = path.metadata()?.len() as f64 / 1e6;
    let db = Connection::open(&path)?;
    let quick = seconds(|| check(&db, "PRAGMA quick_check"))?;
    let full = seconds(|| check(&db, "PRAGMA integrity_check"))?;
    db.execute_batch("PRAGMA journal_mode = WAL; PRAGMA cache_size = -8192")?;
    let mut random = Random(1);
    // Every even number has a key; the odd ones are new.
    let mut write = |sync: &str, count: u64, batch: u64, new: bool| -> Result<f64> {
        db.pragma_update(None, "synchronous", sync)?;
        let changed = value.replace('v', if new { "n" } else { "u" });
        let taken = seconds(|| {
            for _ in 0..count / batch {
                db.execute_batch("BEGIN IMMEDIATE")?;
                for _ in 0..batch {
                    let id = 2 * (random.next() % rows) + u64::from(new);
                    upsert(&db, id, &changed)?;
                }
                db.execute_batch("COMMIT")?;
            }
            Ok(())
        })?;
        Ok(count as f64 / taken)
    };
    Ok([
        megabytes,
        load,
        quick,
        full,
        write("FULL", BATCHED, BATCH, false)?,
        write("FULL", BATCHED, BATCH, true)?,
        write("FULL", SINGLE_FULL, 1, false)?,
        write("NORMAL", SINGLE_NORMAL, 1, false)?,
        write("NORMAL", SINGLE_NORMAL, 1, true)?,
    ])
}

/// In key order, without a journal, durable at the end: as the migration writes.
fn load(path: &Path, layout: Layout, rows: u64, value: &str) -> Result<()> {
    let db = Connection::open(path)?;
    db.pragma_update(None, "page_size", layout.page_bytes)?;
    db.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")?;
    let kind = match layout.without_rowid {
        true => "WITHOUT ROWID",
        false => "",
    };
    db.execute_batch(&format!(
        "CREATE TABLE state_machine_kv(key TEXT PRIMARY KEY, value TEXT NOT NULL) {kind}; BEGIN"
    ))?;
    for id in 0..rows {
        upsert(&db, 2 * id, value)?;
    }
    db.execute_batch("COMMIT")?;
    drop(db);
    Ok(std::fs::File::open(path)?.sync_all()?)
}

fn upsert(db: &Connection, id: u64, value: &str) -> Result<()> {
    let mut key = String::with_capacity(KEY_DIGITS + 1);
    write!(key, "k{id:0KEY_DIGITS$}")?;
    db.prepare_cached(
        "INSERT INTO state_machine_kv VALUES (?1, ?2) \
         ON CONFLICT (key) DO UPDATE SET value = excluded.value",
    )?
    .execute((key, value))?;
    Ok(())
}

fn check(db: &Connection, pragma: &str) -> Result<()> {
    let verdict: String = db.query_row(pragma, [], |row| row.get(0))?;
    match verdict.as_str() {
        "ok" => Ok(()),
        complaint => Err(complaint.to_owned().into()),
    }
}

fn seconds(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed().as_secs_f64())
}

/// splitmix64 (<https://prng.di.unimi.it/splitmix64.c>): the same keys in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
