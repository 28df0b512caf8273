//! How fast data migrates, beside the plain algorithm of the operators' guide.
//!
//! ```text
//! cargo bench --bench migration                          both shapes of docs/benchmarks.md
//! cargo bench --bench migration -- --small               a source of seconds, to try it out
//! cargo bench --bench migration -- --rows N --value-bytes M
//! cargo bench --bench migration -- --source FILE         may be repeated: growth from one to the next
//!     --runs R     rounds, default 5       --without-plain   leave the peer out
//!     --cold       as root: one more round that begins with an empty page cache
//! ```
//!
//! Every measurement is a process of its own, so that its peak memory is its
//! own. A round does all of them one after the other, and rounds repeat, so
//! that a disk that changes its speed changes it for all. Before each, the
//! source is read into the page cache and earlier writes are waited for.

#[path = "../common/mod.rs"]
mod common;
mod report;
mod source;
mod work;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Result, Runs, data_dir, empty_dir, settle};
use work::Work;

/// Rows of the source that is migrated to time a decision about little data.
const SMALL_ROWS: u64 = 10_000;
/// Bytes of a key, as the fixtures' generator makes them.
pub(crate) const KEY_BYTES: u64 = 21;

struct Arguments {
    sources: Vec<PathBuf>,
    runs: usize,
    cold: bool,
    plain: bool,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let ["child", work, source, dir] = words[..] {
        let sample = Work::named(work)?.run(Path::new(source), Path::new(dir))?;
        println!("{}", serde_json::to_string(&sample)?);
        return Ok(());
    }
    let arguments = parse(&words)?;
    let small = source::make(SMALL_ROWS, 100)?;
    let mut growth = Vec::new();
    for source in &arguments.sources {
        let about = source::describe(source)?;
        println!("\n## {about}\n");
        let rounds = (0..arguments.runs).map(|_| Start::Warm);
        let warm = measure(source, &small, rounds.collect(), arguments.plain)?;
        report::table(&warm);
        growth.push((about, warm));
        if arguments.cold {
            let cold = measure(source, &small, vec![Start::Cold], arguments.plain)?;
            println!("\nOne round from a cold page cache:\n");
            report::table(&cold);
        }
    }
    if growth.len() > 1 {
        report::growth(&growth);
    }
    Ok(())
}

fn parse(words: &[&str]) -> Result<Arguments> {
    let mut sources = Vec::new();
    let (mut rows, mut value_bytes) = (None, 100);
    let (mut runs, mut cold, mut plain) = (5, false, true);
    let mut words = words.iter();
    while let Some(&word) = words.next() {
        let mut value = || words.next().copied().ok_or(format!("{word} needs a value"));
        match word {
            "--bench" => {} // what cargo adds
            "--small" => (rows, runs) = (Some(100_000), 3),
            "--rows" => rows = Some(value()?.parse()?),
            "--value-bytes" => value_bytes = value()?.parse()?,
            "--source" => sources.push(PathBuf::from(value()?)),
            "--runs" => runs = value()?.parse()?,
            "--cold" => cold = true,
            "--without-plain" => plain = false,
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    if let Some(rows) = rows {
        sources.push(source::make(rows, value_bytes)?);
    }
    if sources.is_empty() {
        sources.push(source::make(4_000_000, 100)?);
        sources.push(source::make(1_000_000, 1_000)?);
    }
    if cold && !nix::unistd::geteuid().is_root() {
        return Err("--cold empties the page cache, which only root may".into());
    }
    Ok(Arguments {
        sources,
        runs,
        cold,
        plain,
    })
}

/// How a measurement finds the page cache.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Start {
    Warm,
    Cold,
}

/// Runs of one kind of work.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured {
    seconds: Runs,
    cpu_seconds: Runs,
    peak_mib: Runs,
    parts: BTreeMap<String, Runs>,
}

impl Measured {
    fn add(&mut self, sample: work::Sample) {
        self.seconds.0.push(sample.seconds);
        self.cpu_seconds.0.push(sample.cpu_seconds);
        self.peak_mib.0.push(sample.peak_mib);
        for (name, value) in sample.parts {
            self.parts.entry(name).or_default().0.push(value);
        }
    }
}

type Table = BTreeMap<Work, Measured>;

fn measure(source: &Path, small: &Path, rounds: Vec<Start>, plain: bool) -> Result<Table> {
    let mut table = Table::new();
    for start in rounds {
        for work in Work::ALL {
            if work == Work::Plain && !plain {
                continue;
            }
            // A decision about a lot of data begins where the start-up ended.
            let dir = match work {
                Work::Decide => data_dir().join("run"),
                _ => empty_dir("run")?,
            };
            let source = if work == Work::DecideSmall {
                small
            } else {
                source
            };
            prepare(work, source, &dir)?;
            settle();
            match start {
                Start::Warm => drop(std::io::copy(
                    &mut std::fs::File::open(source)?,
                    &mut std::io::sink(),
                )?),
                Start::Cold => std::fs::write("/proc/sys/vm/drop_caches", "3")?,
            }
            let sample = child(work, source, &dir)?;
            table.entry(work).or_default().add(sample);
        }
    }
    std::fs::remove_dir_all(data_dir().join("run"))?;
    Ok(table)
}

/// Makes the directory in which `work` begins. A hard link is as good as a
/// copy: the source is only ever read, then unlinked.
fn prepare(work: Work, source: &Path, dir: &Path) -> Result<()> {
    let name = dir.join(aspen::layout::STATE_MACHINE_REDB);
    if work.needs_data_dir() && std::fs::hard_link(source, &name).is_err() {
        std::fs::copy(source, &name)?;
    }
    if work == Work::DecideSmall {
        child(Work::Start, source, dir)?;
    }
    Ok(())
}

fn child(work: Work, source: &Path, dir: &Path) -> Result<work::Sample> {
    let output = Command::new(std::env::current_exe()?)
        .args(["child", work.name()])
        .args([source, dir])
        .stderr(std::process::Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("{} failed: {}", work.name(), output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}
