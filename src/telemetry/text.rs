//! One event, one line of text:
//! `2026-11-22T18:00:00.123456Z  INFO aspen::raft: message field=value`.
//!
//! Nothing in a message or a field can break out of its line: control
//! characters, line separators and marks that reorder text are escaped.
//! `MESSAGE_ID` and the `ASPEN_` fields are for the journal and for JSON; what
//! they say stands in the message, so they are not repeated here. Fields of the
//! enclosing spans, outermost first, follow those of the event.

use std::error::Error;
use std::fmt::{self, Write};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// Formats events and the fields of spans.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text;

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut line: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut said = Said::default();
        event.record(&mut said);

        timestamp(&mut line)?;
        level(&mut line, *event.metadata().level())?;
        let target = said.log_target.as_deref();
        let target = target.unwrap_or_else(|| event.metadata().target());
        write!(line, " {target}: {}", said.message)?;
        if !said.fields.is_empty() {
            write!(line, " {}", said.fields)?;
        }
        for span in context
            .event_scope()
            .into_iter()
            .flat_map(|scope| scope.from_root())
        {
            let extensions = span.extensions();
            let fields = extensions.get::<FormattedFields<N>>();
            if let Some(fields) = fields.map(|fields| fields.trim()).filter(|f| !f.is_empty()) {
                write!(line, " {fields}")?;
            }
        }
        writeln!(line)
    }
}

impl<'writer> FormatFields<'writer> for Text {
    fn format_fields<R: RecordFields>(
        &self,
        mut writer: Writer<'writer>,
        fields: R,
    ) -> fmt::Result {
        let mut said = Said::default();
        fields.record(&mut said);
        writer.write_str(&said.fields)
    }
}

/// The line that [`Text`] would make of an event of our own, for a place from
/// which no event can be emitted.
pub(super) fn line(at: Level, target: &str, message: &str) -> String {
    let mut text = String::new();
    let mut writer = Writer::new(&mut text);
    // Writing to a String does not fail.
    let _ = timestamp(&mut writer);
    let _ = level(&mut writer, at);
    let _ = writeln!(writer, " {target}: {message}");
    text
}

fn timestamp(line: &mut Writer<'_>) -> fmt::Result {
    let dimmed = line.has_ansi_escapes();
    if dimmed {
        line.write_str("\x1b[2m")?;
    }
    SystemTime.format_time(line)?;
    line.write_str(if dimmed { "\x1b[0m " } else { " " })
}

fn level(line: &mut Writer<'_>, level: Level) -> fmt::Result {
    if !line.has_ansi_escapes() {
        return write!(line, "{level:>5}");
    }
    let colour = match level {
        Level::ERROR => 31,
        Level::WARN => 33,
        Level::INFO => 32,
        Level::DEBUG => 34,
        Level::TRACE => 35,
    };
    write!(line, "\x1b[{colour}m{level:>5}\x1b[0m")
}

/// What an event or a span says, escaped and ready to be written.
#[derive(Default)]
struct Said {
    message: String,
    /// `name=value` pairs, separated by a space.
    fields: String,
    /// The target of an event that came through the `log` crate, where the
    /// target of its metadata is only `log`.
    log_target: Option<String>,
}

impl Said {
    fn record(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        // A `Debug` that reports an error has said what it could.
        match field.name() {
            "message" => {
                let _ = Escaped(&mut self.message).write_fmt(value);
            }
            "log.target" => {
                let target = self.log_target.insert(String::new());
                let _ = Escaped(target).write_fmt(value);
            }
            "MESSAGE_ID" => {}
            name if name.starts_with("ASPEN_") || name.starts_with("log.") => {}
            name => {
                if !self.fields.is_empty() {
                    self.fields.push(' ');
                }
                self.fields.push_str(name.trim_start_matches("r#"));
                self.fields.push('=');
                let _ = Escaped(&mut self.fields).write_fmt(value);
            }
        }
    }
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let is_prose = matches!(field.name(), "message" | "log.target");
        let is_word = |c: char| !(c.is_whitespace() || c.is_control() || matches!(c, '"' | '='));
        if is_prose || (!value.is_empty() && value.chars().all(is_word)) {
            self.record(field, format_args!("{value}"));
        } else {
            self.record(field, format_args!("{value:?}"));
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.record(field, format_args!("{}", super::Chain(value)));
    }
}

/// Writes to a string what can stand in one line.
struct Escaped<'a>(&'a mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                // Line and paragraph separators, and marks that reorder what follows.
                '\u{2028}' | '\u{2029}' => self.0.extend(c.escape_unicode()),
                '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                    self.0.extend(c.escape_unicode());
                }
                c if c.is_control() => self.0.extend(c.escape_default()),
                c => self.0.push(c),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::super::tests::{captured, text_of};
    use super::*;

    #[test]
    fn a_line_has_time_level_target_and_message_and_nothing_else() {
        let text = captured("trace", false, || {
            tracing::info!(
                target: "aspen::raft",
                MESSAGE_ID = "790a06756d6b4d16bf9b0c7bb541a2ab",
                ASPEN_STORAGE = "sqlite",
                "Storage backend initialized: sqlite",
            );
        });
        let (time, rest) = text.split_at("2026-11-22T18:00:00.123456Z".len());
        assert_eq!(
            rest,
            "  INFO aspen::raft: Storage backend initialized: sqlite\n"
        );
        let shape: String = time
            .chars()
            .map(|c| if c.is_ascii_digit() { '9' } else { c })
            .collect();
        assert_eq!(shape, "9999-99-99T99:99:99.999999Z");
    }

    #[test]
    fn other_fields_follow_the_message_and_those_of_spans_follow_them() {
        let lines = text_of("trace", || {
            let _outer = tracing::info_span!("outer", request = 7, ASPEN_KEYS = 1).entered();
            let _inner = tracing::info_span!("inner", ASPEN_PHASE = "copy").entered();
            let path = std::path::Path::new("/etc/aspen/config.toml");
            tracing::warn!(target: "aspen", rows = 3, path = %path.display(), note = "two words", word = "one", "Said");
        });
        assert_eq!(
            lines,
            [
                " WARN aspen: Said rows=3 path=/etc/aspen/config.toml note=\"two words\" word=one request=7"
            ]
        );
    }

    #[test]
    fn nothing_in_an_event_can_forge_another_line() {
        let forged =
            "a\nb\r\n2026-01-01T00:00:00Z  INFO aspen: forged\u{1b}[2J\u{85}\u{2028}\u{202e}";
        let lines = text_of("trace", || {
            let _span = tracing::info_span!("span", within = %forged).entered();
            tracing::error!(target: "aspen", shown = %forged, quoted = forged, debugged = ?forged, "{forged}");
        });
        assert_eq!(lines.len(), 1, "{lines:#?}");
        let escaped = "a\\nb\\r\\n2026-01-01T00:00:00Z  INFO aspen: forged\\u{1b}[2J\\u{85}\\u{2028}\\u{202e}";
        assert_eq!(
            lines[0],
            format!(
                "ERROR aspen: {escaped} shown={escaped} quoted=\"{escaped}\" debugged=\"{escaped}\" within={escaped}"
            )
        );
    }

    #[test]
    fn an_event_from_the_log_crate_is_shown_under_its_own_target() {
        let lines = text_of("info", || {
            tracing::warn!(
                target: "log",
                { log.target = "rustls::server", log.line = 7, rows = 3 },
                "Said",
            );
        });
        assert_eq!(lines, [" WARN rustls::server: Said rows=3"]);
    }

    #[test]
    fn an_error_is_shown_with_what_caused_it() {
        let error = super::super::TelemetryError::File {
            path: "/var/log/aspen/node.log".into(),
            source: std::io::Error::from_raw_os_error(28),
        };
        let lines = text_of("trace", || {
            let error: &dyn Error = &error;
            tracing::error!(target: "aspen", error, "Failed");
        });
        assert!(
            lines[0].ends_with(": No space left on device (os error 28)"),
            "{lines:#?}"
        );
    }

    #[test]
    fn colours_surround_the_level_only_where_they_are_wanted() {
        let emit = || tracing::warn!(target: "aspen", "Said");
        assert!(!captured("trace", false, emit).contains('\x1b'));
        let coloured = captured("trace", true, emit);
        assert!(
            coloured.ends_with("\x1b[33m WARN\x1b[0m aspen: Said\n"),
            "{coloured:?}"
        );
    }
}
