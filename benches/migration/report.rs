//! The tables: what was measured, and what it should reach.

use crate::Table;
use crate::work::{DISK_BYTES, Work};

/// One row: what it says, and what it should reach, judged from all medians.
struct Line {
    work: Work,
    what: &'static str,
    /// The figure that is to reach something, in words, and whether it does.
    reach: fn(&Medians<'_>) -> Option<(String, bool)>,
}

/// Looks up medians; NaN where something was not measured, which reaches nothing.
struct Medians<'a>(&'a Table);

impl Medians<'_> {
    fn of(&self, work: Work) -> f64 {
        self.0.get(&work).map_or(f64::NAN, |m| m.seconds.median())
    }
}

fn peak(table: &Table) -> f64 {
    [Work::Copy, Work::Verified, Work::Start]
        .iter()
        .filter_map(|work| table.get(work))
        .map(|measured| measured.peak_mib.most())
        .fold(0.0, f64::max)
}

/// `fold` times as fast as plain, where plain was measured.
fn faster(medians: &Medians<'_>, work: Work, fold: f64) -> Option<(String, bool)> {
    let ratio = medians.of(Work::Plain) / medians.of(work);
    (!ratio.is_nan()).then(|| (format!("{ratio:.1} × plain, of {fold} ×"), ratio >= fold))
}

const LINES: [Line; 9] = [
    Line {
        work: Work::Disk,
        what: "sequential write of 1 GiB",
        reach: |_| None,
    },
    Line {
        work: Work::Backup,
        what: "copying the source's bytes (floor of the backup)",
        reach: |_| None,
    },
    Line {
        work: Work::Scan,
        what: "scan of the source by redb 2.6.4 (floor of the copy)",
        reach: |_| None,
    },
    Line {
        work: Work::Plain,
        what: "plain algorithm, copy",
        reach: |_| None,
    },
    Line {
        work: Work::Copy,
        what: "our copy",
        reach: |m| faster(m, Work::Copy, 7.0),
    },
    Line {
        work: Work::Verified,
        what: "our copy, completely verified",
        reach: |m| {
            let added = m.of(Work::Verified) / m.of(Work::Copy) - 1.0;
            Some((
                format!("adds {:.0} %, of 30 %", added * 100.0),
                added <= 0.30,
            ))
        },
    },
    Line {
        work: Work::Start,
        what: "whole start-up",
        reach: |m| faster(m, Work::Start, 2.5),
    },
    Line {
        work: Work::Decide,
        what: "decision, nothing to do",
        reach: |m| Some(("of 50 ms".to_owned(), m.of(Work::Decide) < 0.050)),
    },
    Line {
        work: Work::DecideSmall,
        what: "decision, nothing to do, 10,000 rows",
        reach: |m| Some(("of 50 ms".to_owned(), m.of(Work::DecideSmall) < 0.050)),
    },
];

/// Prints one source's figures as a table in Markdown.
pub(crate) fn table(table: &Table) {
    println!("| | median | least to most | processor | peak memory | reaches |");
    println!("|---|---|---|---|---|---|");
    for line in &LINES {
        let Some(measured) = table.get(&line.work) else {
            continue;
        };
        let (least, most) = measured.seconds.spread();
        let reach = (line.reach)(&Medians(table)).map_or(String::new(), |(text, reached)| {
            format!("{}{text}", if reached { "" } else { "**no**: " })
        });
        println!(
            "| {} | {} | {} to {} | {} | {:.0} MiB | {reach} |",
            line.what,
            time(measured.seconds.median()),
            time(least),
            time(most),
            time(measured.cpu_seconds.median()),
            measured.peak_mib.most(),
        );
    }
    let most = peak(table);
    println!(
        "\nPeak memory of ours: {most:.0} MiB, of 256 MiB{}",
        if most <= 256.0 { "" } else { ": **no**" }
    );
    parts(table);
}

/// Where the time goes, and how fast the disk was meanwhile.
fn parts(table: &Table) {
    for work in [Work::Plain, Work::Verified, Work::Start] {
        let Some(measured) = table.get(&work) else {
            continue;
        };
        let parts: Vec<String> = measured
            .parts
            .iter()
            .map(|(name, runs)| format!("{name} {}", time(runs.median())))
            .collect();
        println!("Of `{}`: {}", work.name(), parts.join(", "));
    }
    if let Some(disk) = table.get(&Work::Disk) {
        #[allow(clippy::cast_precision_loss)]
        let rate = |seconds: f64| DISK_BYTES as f64 / 1e6 / seconds;
        let (least, most) = disk.seconds.spread();
        println!(
            "Disk: {:.0} MB/s sequential ({:.0} to {:.0})",
            rate(disk.seconds.median()),
            rate(most),
            rate(least)
        );
    }
}

/// Prints how time grows from source to source.
pub(crate) fn growth(sources: &[(String, Table)]) {
    println!("\n## Growth\n\n| source | copy | verified | start-up | peak memory | decision |");
    println!("|---|---|---|---|---|---|");
    for (about, table) in sources {
        let medians = Medians(table);
        println!(
            "| {about} | {} | {} | {} | {:.0} MiB | {} |",
            time(medians.of(Work::Copy)),
            time(medians.of(Work::Verified)),
            time(medians.of(Work::Start)),
            peak(table),
            time(medians.of(Work::Decide)),
        );
    }
}

fn time(seconds: f64) -> String {
    if seconds < 0.1 {
        format!("{:.1} ms", seconds * 1000.0)
    } else {
        format!("{seconds:.2} s")
    }
}
