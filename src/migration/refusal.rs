//! What a person is told when a start is refused: both sides, with what is
//! known of them, and the commands for every way out.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::backup;
use super::inspect::Inventory;
use super::plan::Refusal;
use super::source::Source;
use crate::exit::Exit;
use crate::layout::DataDir;

/// A refusal with its explanation.
#[derive(Debug, thiserror::Error)]
#[error("{explanation}")]
pub struct Refused {
    /// Why.
    pub refusal: Refusal,
    explanation: String,
}

impl Refused {
    /// The exit code that fits.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self.refusal {
            Refusal::Conflict | Refusal::OrphanedLog => Exit::Data,
            Refusal::MigratedAway | Refusal::RollbackUnfinished => Exit::Config,
        }
    }

    /// Explains `refusal`. Reads, but changes nothing.
    #[must_use]
    pub fn explain(refusal: Refusal, dir: &DataDir, inventory: &Inventory) -> Self {
        let (redb, sqlite) = (dir.redb(), dir.sqlite());
        let (r, s) = (redb.display(), sqlite.display());
        let explanation = match refusal {
            Refusal::Conflict => format!(
                "there are two state machines and neither was made from the other: {}, and {}. \
                 Nothing was changed. Decide which one holds the data, then start again. \
                 To go on with SQLite: mv {r} {r}.set-aside. \
                 To migrate redb again: mv {s} {s}.set-aside (and {s}-wal, {s}-shm where they exist)",
                describe(&redb),
                describe(&sqlite),
            ),
            Refusal::MigratedAway => {
                let mut text = format!(
                    "storage_backend = \"redb\", but there is no {r}: the data is in {s}{}. \
                     To go on with SQLite: set storage_backend = \"sqlite\".",
                    migrated_on(inventory),
                );
                if let Ok(backups) = backup::list(&redb)
                    && let Some((_, newest)) = backups.first()
                {
                    // Writing to a string cannot fail.
                    let _ = write!(
                        text,
                        " To go back to the state before the migration: rm -f {s} {s}-wal {s}-shm; cp {} {r}.",
                        newest.display()
                    );
                }
                let _ = write!(
                    text,
                    " To go back and keep what was written since: aspen-migrate --source {s} --target {r} \
                     --full-verify, then mv {s} {s}.set-aside"
                );
                text
            }
            Refusal::RollbackUnfinished => format!(
                "storage_backend = \"redb\", and both {r} and {s}{} are there. \
                 To finish a rollback: rm -f {s} {s}-wal {s}-shm (with what was written since the migration). \
                 To go on with SQLite: set storage_backend = \"sqlite\"",
                migrated_on(inventory),
            ),
            Refusal::OrphanedLog => {
                let orphans: Vec<_> = inventory
                    .orphans
                    .iter()
                    .map(|path| path.display().to_string())
                    .collect();
                format!(
                    "{} belongs to a database that is not there ({s}), and would damage a new one. \
                     If the database was moved, move it back; if it was removed, remove this too",
                    orphans.join(" and ")
                )
            }
        };
        Self {
            refusal,
            explanation,
        }
    }
}

fn migrated_on(inventory: &Inventory) -> String {
    let record = inventory
        .sqlite
        .as_ref()
        .and_then(|sqlite| sqlite.record.as_ref());
    record.map_or_else(String::new, |record| {
        format!(" (migrated on {})", record.completed_at)
    })
}

/// A state machine's path, last applied entry and time of the last change.
fn describe(path: &Path) -> String {
    let changed = path
        .metadata()
        .and_then(|about| about.modified())
        .map_or_else(
            |_| "at an unknown time".to_owned(),
            |at| {
                let at = OffsetDateTime::from(at);
                let at = at.replace_nanosecond(0).unwrap_or(at);
                at.format(&Rfc3339).unwrap_or_default()
            },
        );
    let applied =
        Source::open(path, Arc::new(AtomicBool::new(false))).and_then(|source| source.metadata());
    let applied = match applied {
        Ok(metadata) => metadata.last_applied.map_or_else(
            || "nothing applied".to_owned(),
            |id| format!("last applied {id}"),
        ),
        Err(error) => format!("unreadable: {error}"),
    };
    format!("{} ({applied}, last changed {changed})", path.display())
}
