//! Tests of the log as a whole, and the capture that the other tests use.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use std::fs;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard};

/// A place that keeps what is written to it.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Kept {
    fn text(&self) -> String {
        String::from_utf8(self.bytes().clone()).unwrap()
    }

    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap()
    }
}

impl io::Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What text output shows of the events that `emit` emits.
pub(super) fn captured(filter: &str, colours: bool, emit: impl FnOnce()) -> String {
    let kept = Kept::default();
    let writer = kept.clone();
    let main = text_output(move || writer.clone(), colours);
    let (subscriber, _handle) = assemble(filter::parse(filter).unwrap(), main, None);
    tracing::subscriber::with_default(subscriber, emit);
    kept.text()
}

/// The same in lines, without colours and without the time and the space after it.
pub(crate) fn text_of(filter: &str, emit: impl FnOnce()) -> Vec<String> {
    untimed(&captured(filter, false, emit))
}

fn untimed(text: &str) -> Vec<String> {
    let after_time = |line: &str| line.split_once("Z ").unwrap().1.to_owned();
    text.lines().map(after_time).collect()
}

#[test]
fn the_filter_decides_by_level_and_target_and_can_be_replaced_while_running() {
    let kept = Kept::default();
    let writer = kept.clone();
    let main = text_output(move || writer.clone(), false);
    let filter = filter::parse("warn,aspen::raft=info").unwrap();
    let (subscriber, handle) = assemble(filter, main, None);
    let emit = |when: &str| {
        tracing::info!(target: "aspen::raft", "{when} raft");
        tracing::info!(target: "aspen::http", "{when} http");
        tracing::debug!(target: "aspen::http", "{when} detail");
    };
    tracing::subscriber::with_default(subscriber, || {
        emit("before");
        handle.set_filter("debug,aspen::raft=off").unwrap();
        emit("after");
        handle.set_filter("inof").unwrap_err();
        emit("still");
    });
    assert_eq!(
        untimed(&kept.text()),
        [
            " INFO aspen::raft: before raft",
            " INFO aspen::http: after http",
            "DEBUG aspen::http: after detail",
            " INFO aspen::http: still http",
            "DEBUG aspen::http: still detail",
        ]
    );
}

#[test]
fn json_is_one_object_a_line_with_every_field() {
    let kept = Kept::default();
    let writer = kept.clone();
    let main = json_output(move || writer.clone());
    let (subscriber, _handle) = assemble(filter::parse("info").unwrap(), main, None);
    tracing::subscriber::with_default(subscriber, || {
        events::storage_initialized("sqlite");
        tracing::info!(target: "aspen", ASPEN_KEYS = 7_u64, "two\nlines");
    });
    let text = kept.text();
    let objects: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(objects.len(), 2);
    assert_eq!(objects[0]["level"], "INFO");
    assert_eq!(objects[0]["target"], "aspen::raft");
    assert_eq!(
        objects[0]["fields"],
        serde_json::json!({
            "message": "Storage backend initialized: sqlite",
            "MESSAGE_ID": events::STORAGE_INITIALIZED,
            "ASPEN_STORAGE": "sqlite",
        })
    );
    assert_eq!(objects[1]["fields"]["message"], "two\nlines");
    assert_eq!(objects[1]["fields"]["ASPEN_KEYS"], 7);
}

#[test]
fn the_file_gets_the_same_lines_as_the_main_output_without_colours() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.log");
    let kept = Kept::default();
    let writer = kept.clone();
    let main = text_output(move || writer.clone(), true);
    let (subscriber, handle) = assemble(filter::parse("info").unwrap(), main, Some(&path));
    handle.reopen_file().unwrap();
    tracing::subscriber::with_default(subscriber, || {
        let _span = tracing::info_span!("request", number = 7).entered();
        tracing::info!(target: "aspen", rows = 3, "Said");
        fs::rename(&path, dir.path().join("node.log.1")).unwrap();
        handle.reopen_file().unwrap();
        tracing::info!(target: "aspen", "Said again");
    });
    assert!(kept.text().contains('\x1b'));
    let rotated = fs::read_to_string(dir.path().join("node.log.1")).unwrap();
    let current = fs::read_to_string(&path).unwrap();
    assert_eq!(untimed(&rotated), [" INFO aspen: Said rows=3 number=7"]);
    assert_eq!(untimed(&current), [" INFO aspen: Said again number=7"]);
}

#[test]
fn a_journal_that_cannot_be_reached_is_reported_and_replaced() {
    let unreachable = || Err::<tracing_journald::Layer, _>(io::ErrorKind::NotFound.into());
    for (format, stderr_is_journal, reported) in [
        (LogFormat::Journald, false, true),
        (LogFormat::Auto, true, true),
        (LogFormat::Auto, false, false),
        (LogFormat::Text, true, false),
        (LogFormat::Json, true, false),
    ] {
        let (_output, error) = main_output(format, || stderr_is_journal, unreachable);
        assert_eq!(error.is_some(), reported, "{format:?}");
    }
}

#[test]
fn a_journal_that_can_be_reached_is_the_only_main_output() {
    let kept = Kept::default();
    let journal = || {
        let writer = kept.clone();
        Ok(text_output(move || writer.clone(), false))
    };
    let (output, error) = main_output(LogFormat::Auto, || true, journal);
    assert!(error.is_none());
    let (subscriber, _handle) = assemble(filter::parse("info").unwrap(), output, None);
    tracing::subscriber::with_default(subscriber, || tracing::info!(target: "aspen", "Said"));
    assert_eq!(untimed(&kept.text()), [" INFO aspen: Said"]);
}

#[test]
fn exit_codes_tell_a_wrong_filter_from_a_file_that_may_not_be_written() {
    let filter = TelemetryError::from(crate::config::filter::parse("inof").unwrap_err());
    assert_eq!(filter.exit(), Exit::Config);
    let file = TelemetryError::File {
        path: "/var/log/aspen/node.log".into(),
        source: io::ErrorKind::PermissionDenied.into(),
    };
    assert_eq!(file.exit(), Exit::Permission);
}

/// Runs [`a_process_that_logs`] as a process of its own, since a process has one log.
fn logging_process(file: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "telemetry::tests::a_process_that_logs"])
        .arg("--nocapture")
        .env("ASPEN_TEST_LOG_FILE", file)
        .env("JOURNAL_STREAM", "1:1")
        .stdout(Stdio::null());
    command
}

/// Does its work only in the process that [`logging_process`] starts.
#[test]
fn a_process_that_logs() {
    let Some(file) = std::env::var_os("ASPEN_TEST_LOG_FILE").map(PathBuf::from) else {
        return;
    };
    let options = LogOptions {
        filter: "info",
        format: LogFormat::Auto,
        file: Some(&file),
    };
    init(&options).unwrap();
    events::storage_initialized("sqlite");
    tracing::info!(target: "aspen", "Going on");
    assert!(matches!(init(&options), Err(TelemetryError::Init(_))));
}

#[test]
fn a_log_file_on_a_full_disk_costs_one_warning() {
    let output = logging_process(Path::new("/dev/full")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        untimed(&String::from_utf8(output.stderr).unwrap()),
        [
            " INFO aspen::raft: Storage backend initialized: sqlite",
            " WARN aspen::telemetry: Cannot write to the log file /dev/full: No space left on device (os error 28); lines are missing from it until this is cured",
            " INFO aspen: Going on",
        ]
    );
}

#[test]
fn a_log_file_that_cannot_be_opened_costs_one_warning() {
    let output = logging_process(Path::new("/nonexistent/node.log"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        untimed(&String::from_utf8(output.stderr).unwrap()),
        [
            " WARN aspen::telemetry: Cannot open the log file /nonexistent/node.log; create its directory, or let the node write to it: No such file or directory (os error 2); going on without it",
            " INFO aspen::raft: Storage backend initialized: sqlite",
            " INFO aspen: Going on",
        ]
    );
}

#[test]
fn a_standard_error_that_nobody_reads_stops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.log");
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let status = logging_process(&file).stderr(writer).status().unwrap();
    assert!(status.success(), "{status:?}");
    assert_eq!(
        untimed(&fs::read_to_string(&file).unwrap()),
        [
            " INFO aspen::raft: Storage backend initialized: sqlite",
            " INFO aspen: Going on",
        ]
    );
}
