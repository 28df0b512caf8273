//! The change to the file's text, as a pure function.
//!
//! `toml_edit` parses and says where everything is; the change is then spliced
//! into the text at those places. Its own printer is not used, since it groups
//! dotted keys that the operator wrote apart, and turns CRLF into LF: spliced,
//! every other byte stays by construction.

use std::collections::BTreeMap;
use std::ops::Range;

use toml_edit::{Document, InlineTable, Item, Table, TableLike, Value};

use super::{Failure, Migrated};

const CLUSTER: &str = "cluster";
const BACKEND: &str = "storage_backend";
const MIGRATED: &str = "migrated";
/// The key that a record has only if something was ever applied.
const LAST_APPLIED: &str = "last_applied";
const COMMENT: &str = "# Written by aspen-node after it migrated this node's data.";

/// A key and the value that it should have.
type Row = (&'static str, Value);

fn record(migrated: &Migrated) -> Vec<Row> {
    // A count beyond TOML's integers is beyond any disk.
    let number = |n: u64| Value::from(i64::try_from(n).unwrap_or(i64::MAX));
    let mut rows = vec![
        ("from", migrated.from.name().into()),
        ("to", migrated.to.name().into()),
        ("at", migrated.at.as_str().into()),
        ("fingerprint", migrated.fingerprint.as_str().into()),
        ("keys", number(migrated.keys)),
    ];
    rows.extend(
        migrated
            .last_applied
            .map(|index| (LAST_APPLIED, number(index))),
    );
    rows.push(("backup", migrated.backup.to_string_lossy().as_ref().into()));
    rows.push(("version", migrated.version.as_str().into()));
    rows
}

fn backend(migrated: &Migrated) -> Row {
    (BACKEND, migrated.to.name().into())
}

fn line((key, value): &Row) -> String {
    format!("{key} = {value}")
}

/// What a person should write instead.
pub(super) fn by_hand(migrated: &Migrated) -> String {
    let mut lines = vec![
        format!("[{CLUSTER}]"),
        line(&backend(migrated)),
        String::new(),
    ];
    lines.push(format!("[{CLUSTER}.{MIGRATED}]"));
    lines.extend(record(migrated).iter().map(line));
    lines.join("\n")
}

/// The text that says that the node was migrated; the same text if it does already.
///
/// # Errors
/// When `text` is no TOML, or says `cluster` in a form that cannot be extended.
pub(super) fn edit(text: &str, migrated: &Migrated) -> Result<String, Failure> {
    let document = parse(text)?;
    let cluster = Form::of(document.get(CLUSTER), CLUSTER)?;
    let told = cluster.table().and_then(|table| table.get(MIGRATED));
    let told = Form::of(told, "cluster.migrated")?;

    let mut edits = Edits::new(text);
    let mut rows = vec![backend(migrated)];
    // An inline table can only be told of in line.
    let in_line = matches!(told, Form::Inline(..))
        || matches!((&cluster, &told), (Form::Inline(..), Form::Absent));
    if in_line {
        let table: InlineTable = record(migrated).into_iter().collect();
        rows.push((MIGRATED, table.into()));
    }
    edits.set(&cluster, &format!("[{CLUSTER}]"), &rows)?;
    if !in_line {
        edits.drop_stale(&told, migrated);
        let header = format!("[{CLUSTER}.{MIGRATED}]");
        edits.set(&told, &header, &record(migrated))?;
    }
    let new = edits.apply();
    check(text, &new, migrated)?;
    Ok(new)
}

fn parse(text: &str) -> Result<Document<&str>, Failure> {
    Document::parse(text).map_err(|error| {
        let start = error.span().map_or(text.len(), |span| span.start);
        Failure::Parse {
            line: text.get(..start).unwrap_or(text).matches('\n').count() + 1,
            message: error.message().replace('\n', ", "),
        }
    })
}

/// How a table is written, which decides how it is extended.
enum Form<'a> {
    Absent,
    /// Only tables inside it have headers.
    Implied(&'a Table),
    /// With a header, which ends at the offset.
    Header(&'a Table, usize),
    /// As the front of dotted keys.
    Dotted(&'a Table),
    /// Between braces, the first of which is at the offset.
    Inline(&'a InlineTable, usize),
}

impl<'a> Form<'a> {
    fn of(item: Option<&'a Item>, key: &'static str) -> Result<Self, Failure> {
        match (item, item.and_then(Item::span)) {
            (None, _) => Ok(Self::Absent),
            (Some(Item::Table(table)), _) if table.is_dotted() => Ok(Self::Dotted(table)),
            (Some(Item::Table(table)), _) if table.is_implicit() => Ok(Self::Implied(table)),
            (Some(Item::Table(table)), Some(span)) => Ok(Self::Header(table, span.end)),
            (Some(Item::Value(Value::InlineTable(table))), Some(span)) if !table.is_dotted() => {
                Ok(Self::Inline(table, span.start))
            }
            _ => Err(Failure::Form { key }),
        }
    }

    fn table(&self) -> Option<&'a dyn TableLike> {
        match self {
            Self::Absent => None,
            Self::Implied(table) | Self::Header(table, _) | Self::Dotted(table) => Some(*table),
            Self::Inline(table, _) => Some(*table),
        }
    }
}

/// Changes to a text, collected and then made together.
struct Edits<'a> {
    text: &'a str,
    line_end: &'static str,
    splices: Vec<(Range<usize>, String)>,
    /// Lines to follow the text.
    tail: Vec<String>,
}

impl<'a> Edits<'a> {
    fn new(text: &'a str) -> Self {
        let line_end = if text.contains("\r\n") { "\r\n" } else { "\n" };
        Self {
            text,
            line_end,
            splices: Vec::new(),
            tail: Vec::new(),
        }
    }

    /// Gives the keys of a table these values; `header` is what it begins with
    /// where it has to be begun.
    fn set(&mut self, form: &Form<'_>, header: &str, rows: &[Row]) -> Result<(), Failure> {
        let mut missing = Vec::new();
        for row in rows {
            match form.table().and_then(|table| table.get(row.0)) {
                None => missing.push(line(row)),
                Some(Item::Value(old)) if same(old, &row.1) => {}
                Some(item @ Item::Value(_)) => {
                    let span = item.span().ok_or(Failure::Form { key: row.0 })?;
                    self.splices.push((span, row.1.to_string()));
                }
                Some(_) => return Err(Failure::Form { key: row.0 }),
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        match form {
            Form::Absent | Form::Implied(_) => self.begin(header, missing),
            Form::Header(_, end) => self.insert_after_line(*end, missing),
            Form::Dotted(table) => self.insert_dotted(*table, &missing)?,
            Form::Inline(table, start) => {
                let comma = if table.is_empty() { " " } else { "," };
                let insert = format!(" {}{comma}", missing.join(", "));
                self.splices.push((start + 1..start + 1, insert));
            }
        }
        Ok(())
    }

    /// A new table at the end of the file, where nothing can come into its way.
    fn begin(&mut self, header: &str, lines: Vec<String>) {
        let text = self.text.trim_start_matches('\u{feff}');
        let apart = text.is_empty() || text.ends_with("\n\n") || text.ends_with("\n\r\n");
        if !self.tail.is_empty() || !apart {
            self.tail.push(String::new());
        }
        if header.ends_with(&format!(".{MIGRATED}]")) {
            self.tail.push(COMMENT.into());
        }
        self.tail.push(header.into());
        self.tail.extend(lines);
    }

    fn insert_after_line(&mut self, offset: usize, lines: Vec<String>) {
        let end = self.line_after(offset);
        if end == self.text.len() {
            self.tail.extend(lines);
        } else {
            let insert: String = lines
                .iter()
                .map(|line| format!("{line}{}", self.line_end))
                .collect();
            self.splices.push((end..end, insert));
        }
    }

    /// Before the first of the table's keys, written as that is.
    fn insert_dotted(&mut self, table: &dyn TableLike, lines: &[String]) -> Result<(), Failure> {
        let first = table
            .iter()
            .next()
            .and_then(|(name, _)| table.key(name)?.span());
        let key = first.ok_or(Failure::Form { key: CLUSTER })?;
        let start = self.line_at(key.start);
        let front = self.text.get(start..key.start).unwrap_or_default();
        let insert = lines
            .iter()
            .map(|line| format!("{front}{line}{}", self.line_end));
        self.splices.push((start..start, insert.collect()));
        Ok(())
    }

    /// Removes the line of a key that an earlier record had and this one has not.
    fn drop_stale(&mut self, told: &Form<'_>, migrated: &Migrated) {
        let Some(table) = told.table() else {
            return;
        };
        let key = table.key(LAST_APPLIED).and_then(toml_edit::Key::span);
        let value = table.get(LAST_APPLIED).and_then(Item::span);
        if let (None, Some(key), Some(value)) = (migrated.last_applied, key, value) {
            let line = self.line_at(key.start)..self.line_after(value.end);
            self.splices.push((line, String::new()));
        }
    }

    /// Where the line that holds `offset` begins.
    fn line_at(&self, offset: usize) -> usize {
        let before = self.text.get(..offset).unwrap_or_default();
        let mark = if before.starts_with('\u{feff}') {
            '\u{feff}'.len_utf8()
        } else {
            0
        };
        before.rfind('\n').map_or(mark, |at| at + 1)
    }

    /// Where the line after the one that holds `offset` begins.
    fn line_after(&self, offset: usize) -> usize {
        let after = self.text.get(offset..).unwrap_or_default();
        after
            .find('\n')
            .map_or(self.text.len(), |at| offset + at + 1)
    }

    fn apply(mut self) -> String {
        self.splices.sort_by_key(|(range, _)| range.start);
        let mut new = String::with_capacity(self.text.len() + 1024);
        let mut copied = 0;
        for (range, with) in &self.splices {
            new.push_str(self.text.get(copied..range.start).unwrap_or_default());
            new.push_str(with);
            copied = range.end;
        }
        new.push_str(self.text.get(copied..).unwrap_or_default());
        let begun = !new.trim_start_matches('\u{feff}').is_empty();
        if !self.tail.is_empty() && begun && !new.ends_with('\n') {
            new.push_str(self.line_end);
        }
        for line in &self.tail {
            new.push_str(line);
            new.push_str(self.line_end);
        }
        new
    }
}

/// Whether two values mean the same, of the kinds that a record holds.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::String(a), Value::String(b)) => a.value() == b.value(),
        (Value::Integer(a), Value::Integer(b)) => a.value() == b.value(),
        (Value::InlineTable(a), Value::InlineTable(b)) => {
            a.len() == b.len()
                && a.iter()
                    .all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        _ => false,
    }
}

/// The last look before the file is replaced: the new text says what it should,
/// and of everything else exactly what the old one said.
fn check(old: &str, new: &str, migrated: &Migrated) -> Result<(), Failure> {
    let form = |key| Failure::Form { key };
    let (old_document, new_document) = (parse(old)?, parse(new).map_err(|_| form(CLUSTER))?);
    if leaves(old, &old_document) != leaves(new, &new_document) {
        return Err(form(CLUSTER));
    }
    let cluster = new_document.get(CLUSTER).and_then(Item::as_table_like);
    let cluster = cluster.ok_or(form(CLUSTER))?;
    let says = |table: &dyn TableLike, row: &Row| {
        let value = table.get(row.0).and_then(Item::as_value);
        value.is_some_and(|value| same(value, &row.1))
    };
    if !says(cluster, &backend(migrated)) {
        return Err(form("cluster.storage_backend"));
    }
    let told = cluster.get(MIGRATED).and_then(Item::as_table_like);
    let told = told.ok_or(form("cluster.migrated"))?;
    let complete = record(migrated).iter().all(|row| says(told, row));
    let stale = migrated.last_applied.is_none() && told.contains_key(LAST_APPLIED);
    if complete && !stale {
        Ok(())
    } else {
        Err(form("cluster.migrated"))
    }
}

/// Every value as it is written, by its path; not those that a rewrite is about.
fn leaves<'a>(text: &'a str, document: &Document<&str>) -> BTreeMap<Vec<String>, &'a str> {
    let mut found = BTreeMap::new();
    collect(text, document.as_item(), &mut Vec::new(), &mut found);
    found.retain(|path, _| {
        let path: Vec<_> = path.iter().map(String::as_str).collect();
        !matches!(
            path[..],
            [] | [CLUSTER] | [CLUSTER, BACKEND] | [CLUSTER, MIGRATED, ..]
        )
    });
    found
}

fn collect<'a>(
    text: &'a str,
    item: &Item,
    path: &mut Vec<String>,
    found: &mut BTreeMap<Vec<String>, &'a str>,
) {
    let mut inside: Vec<(String, &Item)> = Vec::new();
    if let Some(table) = item.as_table_like() {
        inside.extend(table.iter().map(|(key, item)| (key.to_owned(), item)));
    }
    if let Some(tables) = item.as_array_of_tables() {
        for (at, table) in tables.iter().enumerate() {
            for (key, item) in table {
                inside.push((format!("{at}.{key}"), item));
            }
        }
    }
    if inside.is_empty() {
        let value = item.as_value().and_then(|_| text.get(item.span()?));
        found.insert(path.clone(), value.unwrap_or_default());
    }
    for (key, item) in inside {
        path.push(key);
        collect(text, item, path, found);
        path.pop();
    }
}
