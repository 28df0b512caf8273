//! What the nodes say, with the moments of the simulation.

use std::fmt;

use tracing::Level;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

struct Simulated;

impl FormatTime for Simulated {
    fn format_time(&self, to: &mut Writer<'_>) -> fmt::Result {
        match turmoil::sim_elapsed() {
            Some(elapsed) => write!(to, "{:10.6}", elapsed.as_secs_f64()),
            None => write!(to, "{:10}", ""),
        }
    }
}

/// Writes it on standard error, if `ASPEN_TEST_LOG` names a level.
pub(crate) fn write() {
    let level = std::env::var("ASPEN_TEST_LOG").ok();
    if let Some(level) = level.and_then(|level| level.parse::<Level>().ok()) {
        let log = tracing_subscriber::fmt().with_max_level(level);
        log.with_timer(Simulated)
            .with_ansi(false)
            .with_writer(std::io::stderr)
            .init();
    }
}
