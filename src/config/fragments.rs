//! Fragments: one value of one key from one source, with the place where it
//! was written. Each is checked alone, where its place is still known; figment
//! then puts them together by precedence and remembers whence each came.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, Read as _};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Map, Value};
use figment::{Metadata, Profile, Provider};
use toml_edit::TableLike;

use super::keys::{self, ENV_PREFIX, KEYS, Key, Known};
use super::kind::{Kind, Raw};

/// The largest configuration file that is read, in bytes: thousands of members
/// fit, and a device or a data file named by mistake does not fill the memory.
pub(super) const MAX_FILE: u64 = 1 << 20;
/// The variable that names the configuration file.
pub(super) const CONFIG_VARIABLE: &str = "ASPEN_CONFIG";
/// The variable in which systemd names the service's state directories.
const STATE_DIRECTORY: &str = "STATE_DIRECTORY";
/// The variable in which systemd names the directory of the service's credentials.
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";
/// Most bytes of a credential; longer ones are another file.
const MAX_CREDENTIAL: u64 = 4096;
/// Names for the tests of this crate, which debug builds alone read.
const TEST_PREFIX: &str = "ASPEN_TEST_";
/// The table of members, which a source may also give as a whole.
const MEMBERS: &str = "cluster.initial_members";

/// What the command line says; each value as it was typed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--config`
    pub config: Option<PathBuf>,
    /// `--node-id`
    pub node_id: Option<OsString>,
    /// `--data-dir`
    pub data_dir: Option<OsString>,
    /// `--http-addr`
    pub http_addr: Option<OsString>,
    /// `--storage-backend`
    pub storage_backend: Option<OsString>,
}

/// Where a value comes from. Displayed as operators are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nothing gives it.
    Default,
    /// The configuration file.
    File {
        /// The file, as it was named.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column in characters, from 1.
        column: usize,
    },
    /// A file that systemd gives the service as a credential; its name.
    Credential(&'static str),
    /// A variable of the environment.
    Environment(String),
    /// An option of the command line.
    CommandLine(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => write!(f, "default"),
            Self::File { path, line, .. } => write!(f, "file {} line {line}", path.display()),
            Self::Credential(name) => write!(f, "credential {name}"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::CommandLine(option) => write!(f, "command line {option}"),
        }
    }
}

/// One thing that is wrong with the configuration.
///
/// Displayed as place, key, what was found and what was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where: a file with line and column, a variable, or an option.
    pub place: String,
    /// The key, unless the place holds no key at all.
    pub key: Option<String>,
    /// What was found and what was expected.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        write!(f, "{}", self.message)
    }
}

/// One value of one key from one source.
#[derive(Clone, Debug)]
pub(super) struct Fragment {
    pub(super) key: &'static Key,
    /// The key's path with the member's id in it.
    pub(super) path: String,
    pub(super) value: Value,
    pub(super) origin: Origin,
}

impl Provider for Fragment {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.to_string())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        match figment::util::nest(&self.path, self.value.clone()) {
            Value::Dict(_, dict) => Ok(Profile::Default.collect(dict)),
            _ => Ok(Map::new()),
        }
    }
}

/// What one source gave.
#[derive(Debug, Default)]
pub(super) struct Source {
    /// Later ones win.
    pub(super) fragments: Vec<Fragment>,
    pub(super) problems: Vec<Problem>,
    /// Where the whole table of members was given, replacing that of weaker sources.
    pub(super) members: Option<Origin>,
}

impl Source {
    /// The values of last resort.
    pub(super) fn defaults() -> Self {
        let mut source = Self::default();
        for key in KEYS {
            if let Some(text) = key.default {
                source.take(key, key.path.into(), Raw::Text(text), Origin::Default);
            }
        }
        source
    }

    /// What the configuration file says.
    pub(super) fn file(path: &Path, bytes: &[u8]) -> Self {
        let mut source = Self::default();
        if bytes.len() as u64 > MAX_FILE {
            let message = format!("found a file of more than {MAX_FILE} bytes, expected less");
            source.refuse(&locate(path, "", 0), None, message);
            return source;
        }
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
                let valid = std::str::from_utf8(valid).unwrap_or_default();
                let at = locate(path, valid, valid.len());
                source.refuse(
                    &at,
                    None,
                    "found a byte that is not UTF-8, expected TOML".into(),
                );
                return source;
            }
        };
        match toml_edit::Document::parse(text) {
            Ok(document) => {
                let place = |span: Option<Range<usize>>| {
                    locate(path, text, span.map_or(0, |span| span.start))
                };
                source.walk(&[], document.as_table(), &place);
            }
            Err(error) => {
                let start = error.span().map_or(text.len(), |span| span.start);
                let message = format!("not valid TOML: {}", one_line(error.message()));
                source.refuse(&locate(path, text, start), None, message);
            }
        }
        source
    }

    /// What systemd's credentials say: a secret key is the content of the file of
    /// its name, without the line break that editors leave. Others are not ours.
    pub(super) fn credentials(variables: &[(OsString, OsString)]) -> Self {
        let mut source = Self::default();
        let dir = variables
            .iter()
            .find(|(name, value)| name == CREDENTIALS_DIRECTORY && !value.is_empty());
        let Some((_, dir)) = dir else {
            return source;
        };
        for key in KEYS.iter().filter(|key| key.secret) {
            let origin = Origin::Credential(key.path);
            let mut bytes = Vec::new();
            let read = std::fs::File::open(Path::new(dir).join(key.path))
                .and_then(|file| file.take(MAX_CREDENTIAL).read_to_end(&mut bytes));
            match read {
                Ok(_) => {
                    let text = bytes.trim_ascii_end();
                    let path: Vec<_> = key.path.split('.').collect();
                    source.take_text(&path, OsStr::from_bytes(text), origin);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let message = format!("cannot be read: {error}");
                    source.refuse(&origin, Some(key.path.into()), message);
                }
            }
        }
        source
    }

    /// What the environment says. Names that are not ours are left alone, an
    /// empty value counts as none.
    pub(super) fn environment(variables: &[(OsString, OsString)]) -> Self {
        let mut source = Self::default();
        let mut ours: Vec<_> = variables
            .iter()
            .filter(|(name, value)| is_ours(name, value))
            .collect();
        // Short names first, so that the long name wins; then by name, so that
        // messages come in the same order each time.
        let is_short = |name: &OsStr| KEYS.iter().any(|key| key.short.is_some_and(|s| name == s));
        ours.sort_by_key(|(name, _)| (!is_short(name), name));
        for (name, value) in ours {
            let shown = name.to_string_lossy().replace(char::is_control, "\u{fffd}");
            let origin = Origin::Environment(shown.clone());
            let Some(path) = name.to_str().and_then(keys::env_path) else {
                if shown != CONFIG_VARIABLE {
                    source.refuse(&origin, None, keys::about_unknown_env(&shown));
                } else if value.to_str().is_none() {
                    source.refuse(&origin, None, NOT_UNICODE.into());
                }
                continue;
            };
            let path: Vec<_> = path.iter().map(String::as_str).collect();
            source.take_text(&path, value, origin);
        }
        source
    }

    /// What the command line says.
    pub(super) fn command_line(overrides: &Overrides) -> Self {
        let mut source = Self::default();
        let options = [
            ("--node-id", ["node", "id"], &overrides.node_id),
            ("--data-dir", ["node", "data_dir"], &overrides.data_dir),
            ("--http-addr", ["http", "listen"], &overrides.http_addr),
            (
                "--storage-backend",
                ["cluster", "storage_backend"],
                &overrides.storage_backend,
            ),
        ];
        for (option, path, value) in options {
            if let Some(value) = value {
                source.take_text(&path, value, Origin::CommandLine(option));
            }
        }
        source
    }

    /// The data directory of last resort: the first that systemd gives the
    /// service, else one named after the node.
    pub(super) fn data_dir(variables: &[(OsString, OsString)], id: u64) -> Self {
        let mut source = Self::default();
        let path = ["node", "data_dir"];
        if let Some((_, value)) = variables.iter().find(|(name, _)| name == STATE_DIRECTORY) {
            let mut dirs = value.as_bytes().split(|byte| *byte == b':');
            if let Some(first) = dirs.find(|dir| !dir.is_empty()) {
                let origin = Origin::Environment(STATE_DIRECTORY.into());
                source.take_text(&path, OsStr::from_bytes(first), origin);
            }
        }
        if source.fragments.is_empty() {
            let dir = format!("./data/node-{id}");
            source.take_text(&path, OsStr::new(&dir), Origin::Default);
        }
        source
    }

    /// Takes a value that is given as text; `path` leads to a key.
    fn take_text(&mut self, path: &[&str], value: &OsStr, origin: Origin) {
        let Some(Known::Key(key)) = keys::lookup(path) else {
            return;
        };
        let Some(text) = value.to_str() else {
            return self.refuse(&origin, Some(path.join(".")), NOT_UNICODE.into());
        };
        if !matches!(key.kind, Kind::Members) {
            return self.take_at(key, path, Raw::Text(text), origin);
        }
        match text.parse::<toml_edit::Value>() {
            Ok(toml_edit::Value::InlineTable(table)) => {
                self.members = Some(origin.clone());
                self.walk(path, &table, &|_| origin.clone());
            }
            _ => self.refuse_value(key, path.join("."), Raw::Text(text), &origin),
        }
    }

    /// Takes everything in a table of TOML, all of it known or refused.
    fn walk(
        &mut self,
        above: &[&str],
        table: &dyn TableLike,
        place: &dyn Fn(Option<Range<usize>>) -> Origin,
    ) {
        for (name, item) in table.iter() {
            let path: Vec<&str> = above.iter().copied().chain([name]).collect();
            let name_at = || place(table.key(name).and_then(toml_edit::Key::span));
            let value_at = || place(item.span());
            let Some(known) = keys::lookup(&path) else {
                let message = keys::about_unknown(&path);
                self.refuse(&name_at(), Some(shown(&path)), message);
                continue;
            };
            let members = matches!(known, Known::Key(key) if matches!(key.kind, Kind::Members));
            let record = matches!(known, Known::Key(key) if matches!(key.kind, Kind::Record));
            match (known, item.as_table_like(), item.as_value()) {
                (_, Some(_), _) if record => {}
                (Known::Section, Some(inner), _)
                    if inner.is_empty() && is_member(&path.join(".")) =>
                {
                    let message = "found a member without addresses, expected peer and http";
                    self.refuse(&name_at(), Some(shown(&path)), message.into());
                }
                (known, Some(inner), _) if members || matches!(known, Known::Section) => {
                    self.walk(&path, inner, place);
                }
                (Known::Key(key), None, Some(value)) => {
                    self.take_at(key, &path, Raw::Toml(value), value_at());
                }
                (known, _, value) => {
                    let (found, at) = match value {
                        Some(value) => (Raw::Toml(value).to_string(), value_at()),
                        None if item.is_table() => ("a table".into(), name_at()),
                        None => ("an array of tables".into(), name_at()),
                    };
                    let message = format!("found {found}, expected {}", known.expected());
                    self.refuse(&at, Some(shown(&path)), message);
                }
            }
        }
    }

    /// As [`Self::take`], having checked the member's id in the path.
    fn take_at(&mut self, key: &'static Key, path: &[&str], raw: Raw<'_>, origin: Origin) {
        let ids = key
            .path
            .split('.')
            .zip(path)
            .filter(|(own, _)| *own == keys::ANY_ID);
        for (_, id) in ids {
            // One way of writing each id, so that 1 and 01 are not two members.
            if !id
                .parse::<u64>()
                .is_ok_and(|n| n > 0 && n.to_string() == **id)
            {
                let message =
                    format!("found the member id {id:?}, expected an integer of at least 1");
                return self.refuse(&origin, Some(shown(path)), message);
            }
        }
        self.take(key, path.join("."), raw, origin);
    }

    fn take(&mut self, key: &'static Key, path: String, raw: Raw<'_>, origin: Origin) {
        match key.kind.accept(raw) {
            Some(value) => self.fragments.push(Fragment {
                key,
                path,
                value,
                origin,
            }),
            None => self.refuse_value(key, path, raw, &origin),
        }
    }

    fn refuse_value(&mut self, key: &Key, path: String, raw: Raw<'_>, origin: &Origin) {
        let expected = key.kind.expected();
        let message = if key.secret {
            format!("found a value that is not shown, expected {expected}")
        } else {
            let meant = key.kind.suggestion(raw);
            let meant =
                meant.map_or_else(String::new, |meant| format!("; did you mean \"{meant}\"?"));
            format!("found {raw}, expected {expected}{meant}")
        };
        self.refuse(origin, Some(path), message);
    }

    fn refuse(&mut self, origin: &Origin, key: Option<String>, message: String) {
        let place = match origin {
            Origin::File { column, .. } => format!("{origin} column {column}"),
            _ => origin.to_string(),
        };
        self.problems.push(Problem {
            place,
            key,
            message,
        });
    }
}

const NOT_UNICODE: &str = "found a value that is not Unicode, expected UTF-8";

/// Whether a variable is meant for the configuration.
fn is_ours(name: &OsStr, value: &OsStr) -> bool {
    let bytes = name.as_encoded_bytes();
    let for_tests = cfg!(debug_assertions) && bytes.starts_with(TEST_PREFIX.as_bytes());
    let short = KEYS
        .iter()
        .any(|key| key.short.is_some_and(|short| name == short));
    !value.is_empty() && !for_tests && (short || bytes.starts_with(ENV_PREFIX.as_bytes()))
}

/// Whether a path is one of the table of members.
pub(super) fn is_member(path: &str) -> bool {
    path.strip_prefix(MEMBERS)
        .is_some_and(|rest| rest.starts_with('.'))
}

/// A path as TOML writes it, on one line whatever is in it.
fn shown(path: &[&str]) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let segments = path.iter().map(|segment| {
        if segment.chars().all(bare) && !segment.is_empty() {
            (*segment).to_owned()
        } else {
            format!("{segment:?}")
        }
    });
    segments.collect::<Vec<_>>().join(".")
}

/// Line and column of a byte offset, which may be the end.
fn locate(path: &Path, text: &str, offset: usize) -> Origin {
    let before = text.get(..offset).unwrap_or(text);
    let before = before.strip_prefix('\u{feff}').unwrap_or(before);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    Origin::File {
        path: path.to_owned(),
        line: before.matches('\n').count() + 1,
        column: before.get(line_start..).unwrap_or_default().chars().count() + 1,
    }
}

/// The parser's messages may hold line breaks; a problem is one line.
fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
