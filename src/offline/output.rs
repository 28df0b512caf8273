//! What the tool prints: the guide's lines on standard output, a progress bar
//! on standard error when that is a terminal, or one JSON object.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::OfflineError;
use crate::format::Kind;
use crate::migration::MigrationError;
use crate::migration::progress::{Event, Observer, Phase, Unit};
use crate::migration::record::{Record, Verified};
use crate::migration::target::TargetError;
use crate::telemetry::Chain;

/// In which form results are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    Text,
    Json,
    Nothing,
}

/// Standard output and standard error of one run.
pub(super) struct Output {
    shown: Shown,
    source: PathBuf,
    target: PathBuf,
    to: Mutex<Kind>,
    bar: Mutex<Option<(Phase, ProgressBar)>>,
    bars: bool,
}

/// An engine as the guide spells it.
fn spelled(kind: Kind) -> &'static str {
    match kind {
        Kind::Sqlite => "SQLite",
        _ => "redb",
    }
}

fn other(kind: Kind) -> Kind {
    match kind {
        Kind::Sqlite => Kind::Redb,
        _ => Kind::Sqlite,
    }
}

impl Output {
    pub(super) fn new(shown: Shown, source: &Path, target: &Path) -> Self {
        Self {
            shown,
            source: source.to_owned(),
            target: target.to_owned(),
            to: Mutex::new(Kind::Sqlite),
            bar: Mutex::new(None),
            bars: shown == Shown::Text && std::io::stderr().is_terminal(),
        }
    }

    fn to(&self) -> Kind {
        *self.to.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prints a line where text is wanted. A reader that has gone is no error.
    fn line(&self, text: &str) {
        self.finish_bar();
        if self.shown == Shown::Text {
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "{text}").and_then(|()| out.flush());
        }
    }

    fn finish_bar(&self) {
        if let Some((_, bar)) = self
            .bar
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            bar.finish_and_clear();
        }
    }

    pub(super) fn begin(&self, to: Kind) {
        *self.to.lock().unwrap_or_else(PoisonError::into_inner) = to;
        let (from_label, to_label) = (spelled(other(to)), spelled(to));
        self.line("Aspen State Machine Migration Tool");
        self.line("===================================");
        // The guide aligns neither label; both are kept as they are printed there.
        let gap = if to == Kind::Sqlite { "  " } else { " " };
        self.line(&format!(
            "Source ({from_label}):{gap}{}",
            self.source.display()
        ));
        self.line(&format!("Target ({to_label}): {}", self.target.display()));
        self.line("");
    }

    pub(super) fn summary(&self, record: &Record, dry_run: bool) {
        self.finish_bar();
        match self.shown {
            Shown::Nothing => {}
            Shown::Json => {
                let status = if dry_run { "checked" } else { "migrated" };
                let mut object = json!(record);
                object["status"] = status.into();
                object["verified"] = (record.verified != Verified::None).into();
                object["verification"] = json!(record.verified);
                print_json(&object);
            }
            Shown::Text if dry_run => {
                self.line("");
                self.line(
                    "Dry run: nothing was written, and nothing is in the way of the migration.",
                );
            }
            Shown::Text => self.text_summary(record),
        }
    }

    fn text_summary(&self, record: &Record) {
        let to = self.to();
        self.line("");
        self.line("Migration Summary");
        self.line("=================");
        self.line(&format!("  Keys migrated:  {}", record.keys));
        self.line(&format!("  Source:         {}", self.source.display()));
        self.line(&format!("  Target:         {}", self.target.display()));
        self.line(&format!(
            "  Verified:       {}",
            record.verified != Verified::None
        ));
        self.line("");
        self.line("Next steps:");
        if to == Kind::Sqlite {
            self.line("  1. Backup the original redb file");
            self.line("  2. Update configuration to use SQLite storage");
        } else {
            self.line("  1. Move the original SQLite file aside");
            self.line("  2. Update configuration to use redb storage");
        }
        self.line("  3. Restart the Aspen node");
    }

    pub(super) fn failure(&self, error: &OfflineError) {
        self.finish_bar();
        if self.shown == Shown::Json {
            print_json(&json!({
                "status": "failed",
                "exit_code": error.exit().code(),
                "error": Chain(error).to_string(),
                "source": self.source.display().to_string(),
                "target": self.target.display().to_string(),
            }));
        }
        let _ = writeln!(std::io::stderr(), "Error: {}", Chain(error));
        if let OfflineError::Migration(MigrationError::Target(TargetError::Value { key, .. })) =
            error
        {
            let _ = writeln!(std::io::stderr(), "       the key is {key:?}");
        }
    }
}

fn print_json(object: &serde_json::Value) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{object:#}").and_then(|()| out.flush());
}

impl Observer for Output {
    fn event(&self, event: &Event<'_>) {
        let to = self.to();
        let (to, from) = (spelled(to), spelled(other(to)));
        match event {
            Event::Opening => self.line(&format!("[1/6] Opening source {from} database...")),
            Event::Counted(rows) => {
                self.line(&format!("[2/6] Reading all key-value pairs from {from}..."));
                self.line(&format!("      Found {rows} key-value pairs"));
            }
            Event::Metadata(metadata) => {
                self.line(&format!("[3/6] Reading metadata from {from}..."));
                match metadata.last_applied {
                    Some(id) => self.line(&format!("      Last applied log: {id}")),
                    None => self.line("      Last applied log: none"),
                }
            }
            Event::Creating => self.line(&format!("[4/6] Creating target {to} database...")),
            Event::Copying => self.line(&format!("[5/6] Migrating data to {to}...")),
            Event::Copied(_) => self.line("      Migration complete!"),
            Event::Verifying(true) => self.line("[6/6] Verifying migration integrity..."),
            Event::Verifying(false) => {
                self.line("[6/6] Skipping verification (use --verify to enable)");
            }
            Event::CountVerified(rows) => {
                self.line(&format!("      Count verification: {rows} keys"));
            }
            Event::RowsVerified { sampled: None, of } => {
                self.line(&format!("      Data verification: all {of} keys verified"));
            }
            Event::RowsVerified {
                sampled: Some(sampled),
                of,
            } => {
                self.line(&format!(
                    "      Data verification: {sampled} of {of} keys sampled"
                ));
            }
            Event::MetadataVerified => self.line("      Metadata verification: passed"),
            Event::DigestVerified(digest) => {
                self.line(&format!("      Checksum verification: passed ({digest})"));
            }
            Event::Verified => self.line("      Verification passed!"),
            Event::BookkeepingRebuilt(_) => {
                let _ = writeln!(
                    std::io::stderr(),
                    "Warning: the source's allocator state is damaged and was rebuilt in memory; \
                     every row passes its checksum"
                );
            }
            _ => {}
        }
    }

    fn work(&self, phase: Phase, done: u64, total: u64) {
        if !self.bars {
            return;
        }
        let mut current = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_none_or(|(shown, _)| *shown != phase) {
            let unit = match phase.unit() {
                Unit::Keys | Unit::Entries => "{human_pos}/{human_len} keys",
                Unit::Bytes => "{bytes}/{total_bytes}",
            };
            let template = format!("      {{msg}} {{wide_bar}} {unit} {{eta}}");
            let style = ProgressStyle::with_template(&template)
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(total)
                .with_style(style)
                .with_message(phase.name());
            *current = Some((phase, bar));
        }
        if let Some((_, bar)) = current.as_ref().filter(|_| total > 1) {
            bar.set_length(total);
            bar.set_position(done);
        }
    }
}
