//! Watching redb at work: it reads for seconds or minutes and says nothing,
//! but what it has read can be counted, and counting is progress.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::backup;
use super::overlay::Overlay;
use super::progress::{Control, Event, Phase};
use super::source::{Holds, Identity, LockedSource, Source, SourceError};

/// How often bytes read by the integrity check are reported.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// Locks and opens. A file that was not closed is recovered meanwhile, which
/// takes as long as the check.
pub(super) fn open(path: &Path, control: &Control<'_>) -> Result<Source, SourceError> {
    let locked = LockedSource::lock(path, Arc::clone(&control.stop))?;
    let watched = Watched {
        overlay: locked.overlay(),
        interrupter: None,
        total: bytes_to_read(locked.identity(), locked.file()),
    };
    while_watched(watched, control, || locked.open())
}

/// Verifies the source's own checksums, and that it holds what it should.
pub(super) fn check(
    source: &mut Source,
    holds: Holds,
    control: &Control<'_>,
) -> Result<(), SourceError> {
    let watched = Watched {
        overlay: source.overlay(),
        interrupter: source.interrupter(),
        total: bytes_to_read(source.identity(), source.file()),
    };
    while_watched(watched, control, || source.check_integrity(holds))?;
    control.observer.event(&Event::Finished(Phase::Check));
    if source.rebuilt_bookkeeping() {
        control
            .observer
            .event(&Event::BookkeepingRebuilt(source.path()));
    }
    Ok(())
}

/// About what redb reads until the check is done: every page in use twice,
/// and twice again where a v3 file has to be recovered first. (Recovering v2 is
/// its check.) Of what a legacy file takes on disk, half is in use as a rule.
fn bytes_to_read(identity: &Identity, file: &File) -> u64 {
    let on_disk = file
        .metadata()
        .map_or(identity.length, |about| backup::bytes_needed(&about));
    match (identity.closed_cleanly, identity.version) {
        (false, Some(3)) => 2 * on_disk,
        _ => on_disk,
    }
}

/// What shows how far a long step is, and what ends it early.
struct Watched {
    overlay: Option<Overlay>,
    interrupter: Option<rusqlite::InterruptHandle>,
    total: u64,
}

/// Does `work` while another thread reports the bytes that redb has read, and
/// a third has the kernel read ahead.
fn while_watched<T: Send>(
    watched: Watched,
    control: &Control<'_>,
    work: impl FnOnce() -> Result<T, SourceError>,
) -> Result<T, SourceError> {
    let Watched {
        overlay,
        interrupter,
        total,
    } = watched;
    let finished = AtomicBool::new(false);
    let result = std::thread::scope(|scope| {
        let reporter = scope.spawn(|| {
            while !finished.load(Ordering::Acquire) {
                if let Some(overlay) = &overlay {
                    let done = overlay.bytes_read().min(total);
                    control.observer.work(Phase::Check, done, total);
                }
                if let Some(interrupter) = interrupter.as_ref().filter(|_| control.stopped()) {
                    interrupter.interrupt();
                }
                std::thread::park_timeout(REPORT_INTERVAL);
            }
        });
        if let Some(overlay) = &overlay {
            scope.spawn(|| overlay.read_ahead(&finished));
        }
        let result = work();
        finished.store(true, Ordering::Release);
        reporter.thread().unpark();
        result
    });
    match result {
        Err(_) if control.stopped() => Err(SourceError::Stopped),
        result => result,
    }
}
