//! What both benches share.

#![allow(dead_code, reason = "each bench uses a part of what is here")]

use std::path::{Path, PathBuf};

/// An error ends a bench; its text is all that matters.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Several runs of one measurement.
#[derive(Clone, Debug, Default)]
pub(crate) struct Runs(pub(crate) Vec<f64>);

impl Runs {
    /// The middle run; the mean of the two middle ones of an even number.
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[n / 2],
            n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
        }
    }

    /// The fastest and the slowest.
    pub(crate) fn spread(&self) -> (f64, f64) {
        let least = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        (least, most)
    }

    /// The largest run.
    pub(crate) fn most(&self) -> f64 {
        self.spread().1
    }
}

/// Where sources are kept and measurements write: on the disk of the build,
/// since a `/tmp` in memory would measure nothing.
pub(crate) fn data_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench-data")
}

/// An empty directory of that name in [`data_dir`].
pub(crate) fn empty_dir(name: &str) -> Result<PathBuf> {
    let dir = data_dir().join(name);
    if dir.exists() {
        std::fs::remove_dir_all(&dir)?;
    }
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// Waits until the disk has nothing left to write of what went before.
pub(crate) fn settle() {
    nix::unistd::sync();
}
