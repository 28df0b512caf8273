//! The journal as the place for the log: when, and in which shape.

use std::io;
use tracing_journald::{Layer, Priority, PriorityMappings};

/// Whether standard error is the stream that systemd connected to the journal.
///
/// `JOURNAL_STREAM` alone does not tell: it is inherited by children whose
/// standard error goes elsewhere. See systemd.exec(5).
pub(super) fn is_stderr() -> bool {
    let Ok(stderr) = nix::sys::stat::fstat(io::stderr()) else {
        return false;
    };
    std::env::var("JOURNAL_STREAM").is_ok_and(|stream| names(&stream, stderr.st_dev, stderr.st_ino))
}

/// Says on standard error that the process fails before it has a log. In the
/// journal each line carries its priority, as `sd-daemon(3)` has it.
pub fn say_failed(program: &str, error: &(dyn std::error::Error + 'static)) {
    let priority = if is_stderr() { "<3>" } else { "" };
    for line in format!("{program}: {}", super::Chain(error)).lines() {
        eprintln!("{priority}{line}");
    }
}

/// Whether `stream`, `DEVICE:INODE` in decimal, names this file.
fn names(stream: &str, device: u64, inode: u64) -> bool {
    stream
        .split_once(':')
        .is_some_and(|(d, i)| d.parse() == Ok(device) && i.parse() == Ok(inode))
}

/// Connects to the journal.
///
/// Field names get no prefix: `MESSAGE_ID` works only under its own name, and
/// `ASPEN_` is prefix enough. `SYSLOG_IDENTIFIER` is the name of the program.
/// Like `sd_journal_send`, sending waits while the journal's queue is full.
pub(super) fn connect() -> io::Result<Layer> {
    Ok(Layer::new()?
        .with_field_prefix(None)
        .with_priority_mappings(PriorityMappings {
            error: Priority::Error,
            warn: Priority::Warning,
            info: Priority::Informational,
            debug: Priority::Debug,
            trace: Priority::Debug,
        }))
}

#[cfg(test)]
mod tests {
    use super::names;

    #[test]
    fn the_journal_stream_is_compared_by_device_and_inode() {
        assert!(names("8:34567", 8, 34567));
        assert!(!names("9:34567", 8, 34567));
        assert!(!names("8:34568", 8, 34567));
        for nonsense in ["", "8", "8:", ":34567", "8:34567:1", "x:y"] {
            assert!(!names(nonsense, 8, 34567), "{nonsense:?}");
        }
    }
}
