//! The log: to the journal in its own fields, or to standard error as text or
//! JSON, and beside either to a file.
//!
//! [`init`] is called once, when the settings are known; from then on whatever
//! is said with the macros of `tracing` arrives. How to say what an operator
//! may want to find: [`events`].
//!
//! Logging never fails and never stops the node: whatever cannot be written is
//! lost, and where another way is left, that is said there.

pub mod count;
pub mod events;
mod file;
mod journal;
mod text;

pub use journal::say_failed;

use crate::config::filter::{self, FilterError};
use crate::config::settings::LogFormat;
use crate::exit::Exit;
use file::LogFile;
use std::error::Error;
use std::fmt;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tracing::Subscriber;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, Layered, SubscriberExt};
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Registry, fmt as lines, reload};

/// What is logged, and where to.
#[derive(Clone, Copy, Debug)]
pub struct LogOptions<'a> {
    /// A level, or levels by target: see [`filter::parse`].
    pub filter: &'a str,
    /// The main output.
    pub format: LogFormat,
    /// A file that gets every line as well, always as text.
    pub file: Option<&'a Path>,
}

/// Why the log cannot be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter means nothing.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The log file could not be opened again.
    #[error("Cannot open the log file {path}; create its directory, or let the node write to it")]
    File {
        /// The log file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The process has a log already: [`init`] was called twice.
    #[error("Cannot set up the log; please report this as a bug")]
    Init(#[source] TryInitError),
    /// The log has been taken down.
    #[error("Cannot change the log filter; restart the node to change it")]
    Reload(#[source] reload::Error),
}

impl TelemetryError {
    /// The exit code that fits.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Filter(_) => Exit::Config,
            Self::File { source, .. } => Exit::of_io(source),
            Self::Init(_) | Self::Reload(_) => Exit::Software,
        }
    }
}

/// An error and what caused it, in one line: `Display` of an error never
/// repeats its source, so a log line needs both.
#[derive(Clone, Copy, Debug)]
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        std::iter::successors(self.0.source(), |&error| error.source())
            .try_for_each(|error| write!(f, ": {error}"))
    }
}

/// What can be changed about the log while the node runs. Clones change the same log.
#[derive(Clone, Debug)]
pub struct Handle {
    filter: reload::Handle<Targets, Registry>,
    file: Option<Arc<LogFile>>,
}

impl Handle {
    /// Replaces the filter at once.
    ///
    /// # Errors
    ///
    /// When the filter means nothing; the one before stays.
    pub fn set_filter(&self, filter: &str) -> Result<(), TelemetryError> {
        let filter = filter::parse(filter)?;
        self.filter.reload(filter).map_err(TelemetryError::Reload)
    }

    /// Opens the log file under its name, after it has been rotated or what was
    /// wrong with it has been cured. Does nothing where none is configured.
    ///
    /// # Errors
    ///
    /// When it cannot be opened; the file that was open stays in use.
    pub fn reopen_file(&self) -> Result<(), TelemetryError> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        file.reopen().map_err(|source| TelemetryError::File {
            path: file.path().to_owned(),
            source,
        })
    }
}

/// Sets up the log of this process.
///
/// A journal that cannot be reached is replaced by text on standard error, and a
/// log file that cannot be opened is done without until
/// [`Handle::reopen_file`]; a warning in the log says so.
///
/// # Errors
///
/// When the filter means nothing, or the process has a log already.
pub fn init(options: &LogOptions<'_>) -> Result<Handle, TelemetryError> {
    let filter = filter::parse(options.filter)?;
    let (main, unreachable) = main_output(options.format, journal::is_stderr, journal::connect);
    let (subscriber, handle) = assemble(filter, main, options.file);
    let opened = handle.reopen_file();
    subscriber.try_init().map_err(TelemetryError::Init)?;

    if let Some(error) = unreachable {
        tracing::warn!(
            target: "aspen::telemetry",
            "Cannot reach the journal: {error}; logging to standard error instead",
        );
    }
    if let (Err(error), Some(path)) = (opened, options.file) {
        tracing::warn!(
            target: "aspen::telemetry",
            MESSAGE_ID = events::LOG_FILE_UNAVAILABLE,
            ASPEN_LOG_FILE = %path.display(),
            "{}; going on without it",
            Chain(&error),
        );
    }
    Ok(handle)
}

/// The part of the subscriber that filters, on which the outputs are stacked.
type Filtered = Layered<reload::Layer<Targets, Registry>, Registry>;
type Output = Box<dyn Layer<Filtered> + Send + Sync>;

/// Puts the subscriber together; the file is named in the handle and not open yet.
fn assemble(
    filter: Targets,
    main: Output,
    file: Option<&Path>,
) -> (impl Subscriber + Send + Sync + use<>, Handle) {
    let (filter, filter_handle) = reload::Layer::new(filter);
    let file = file.map(|path| Arc::new(LogFile::new(path)));
    let handle = Handle {
        filter: filter_handle,
        file: file.clone(),
    };
    let file = file.map(|file| text_output(file, false));
    let outputs: Vec<Output> = std::iter::once(main).chain(file).collect();
    let subscriber = tracing_subscriber::registry().with(filter).with(outputs);
    (subscriber, handle)
}

/// The main output, and why it is not the journal although it should be.
fn main_output<L>(
    format: LogFormat,
    stderr_is_journal: impl FnOnce() -> bool,
    connect: impl FnOnce() -> io::Result<L>,
) -> (Output, Option<io::Error>)
where
    L: Layer<Filtered> + Send + Sync,
{
    let wants_journal = match format {
        LogFormat::Json => return (json_output(io::stderr), None),
        LogFormat::Text => false,
        LogFormat::Journald => true,
        LogFormat::Auto => stderr_is_journal(),
    };
    match wants_journal.then(connect) {
        Some(Ok(layer)) => (Box::new(layer), None),
        refused => {
            let stderr = text_output(io::stderr, stderr_has_colours());
            (stderr, refused.and_then(Result::err))
        }
    }
}

/// Colours only for a person, and only one who has not said no (<https://no-color.org>).
fn stderr_has_colours() -> bool {
    let declined = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    io::stderr().is_terminal() && !declined
}

/// Lines of text. Errors of the writer are dropped: `tracing-subscriber` would
/// report them on standard error, and panic where that is what failed.
fn text_output<W>(writer: W, colours: bool) -> Output
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    lines::layer()
        .event_format(text::Text)
        .fmt_fields(text::Text)
        .with_ansi(colours)
        .with_writer(writer)
        .log_internal_errors(false)
        .boxed()
}

/// One JSON object a line. Errors of the writer are dropped, as for text.
fn json_output<W>(writer: W) -> Output
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    lines::layer()
        .json()
        .with_writer(writer)
        .log_internal_errors(false)
        .boxed()
}

#[cfg(test)]
pub(crate) mod tests;
