//! Configuration: fragments from the command line, the environment and the
//! file become validated settings, every value knowing whence it came.
//!
//! The command line wins over the environment, that over systemd's credentials
//! (secrets alone), those over the file, that over defaults. Everything that is wrong is reported at once, by place and key.
//!
//! [`keys`] is the table of what may be set, [`settings`] the types that the
//! rest of the program sees, [`rewrite`] what a migration writes back.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use figment::Figment;

pub mod filter;
mod fragments;
pub mod keys;
mod kind;
mod peers;
mod report;
pub mod rewrite;
pub mod settings;
#[cfg(test)]
mod tests;

pub use fragments::{Origin, Overrides, Problem};
pub use kind::is_address;
pub use settings::Settings;

use crate::exit::Exit;
use fragments::{Fragment, Source};
use settings::Backend;

/// The configuration file that is read when none is named, if it is there.
pub const DEFAULT_FILE: &str = "/etc/aspen/config.toml";

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that was named is not there.
    #[error("the configuration file {} does not exist; create it, or correct {named_by}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The option or variable that names it.
        named_by: &'static str,
    },
    /// A symbolic link is there, and not the file that it means. Defaults in its place could
    /// migrate data that its settings say is to stay as it is.
    #[error(
        "the configuration file {} is a symbolic link to a file that does not exist; \
         create or mount that, or remove the link", path.display()
    )]
    Dangling {
        /// The link.
        path: PathBuf,
    },
    /// The file is there and cannot be read.
    #[error("cannot read the configuration file {}; check that it is a file that this user may read (ls -l)", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// Something in it is wrong: all that is.
    #[error(
        "the configuration is wrong; correct this and try it with `aspen-node --check-config`:{}",
        lines(.0)
    )]
    Invalid(Vec<Problem>),
}

fn lines(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(|problem| format!("\n  {problem}"))
        .collect()
}

impl ConfigError {
    /// The exit code: [`Exit::Config`], unless a file that is there cannot be read.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Read { source, .. } if source.kind() != io::ErrorKind::IsADirectory => {
                Exit::of_io(source)
            }
            Self::Read { .. } | Self::Missing { .. } | Self::Dangling { .. } | Self::Invalid(_) => {
                Exit::Config
            }
        }
    }
}

/// Settings, and where each of them came from.
#[derive(Debug)]
pub struct Loaded {
    /// The validated settings.
    pub settings: Settings,
    /// The file that was read.
    pub file: Option<PathBuf>,
    figment: Figment,
    /// All that the file, the environment and the command line give, weakest first.
    given: Vec<Fragment>,
    /// What replaced the file's table of members as a whole.
    members: Option<Origin>,
}

/// Loads the configuration. `environment` is that of the process
/// ([`std::env::vars_os`]) and `default_file` is [`DEFAULT_FILE`], except in tests.
///
/// # Errors
/// When a file cannot be read, or with everything that is wrong in what was read.
pub fn load(
    overrides: &Overrides,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    default_file: &Path,
) -> Result<Loaded, ConfigError> {
    let variables: Vec<_> = environment.into_iter().collect();
    let file = read_file(overrides, &variables, default_file)?;

    let from_file = file.as_ref().map(|(path, bytes)| Source::file(path, bytes));
    let mut from_file = from_file.unwrap_or_default();
    let mut credentials = Source::credentials(&variables);
    let mut environment = Source::environment(&variables);
    let mut command_line = Source::command_line(overrides);

    let mut figment = merge(&from_file, &credentials, &environment, &command_line);
    // The one default that depends on another value.
    let id = figment
        .extract_inner("node.id")
        .unwrap_or(settings::MIN_NODE_ID);
    let mut fallback = Source::data_dir(&variables, id);
    for fragment in &fallback.fragments {
        figment = figment.join(fragment);
    }

    let mut problems = std::mem::take(&mut from_file.problems);
    problems.append(&mut credentials.problems);
    problems.append(&mut environment.problems);
    problems.append(&mut fallback.problems);
    problems.append(&mut command_line.problems);
    let settings = settings_of(&figment, problems)?;
    let mut given = from_file.fragments;
    given.append(&mut credentials.fragments);
    given.append(&mut environment.fragments);
    given.append(&mut command_line.fragments);
    Ok(Loaded {
        settings,
        file: file.map(|(path, _)| path),
        figment,
        given,
        members: environment.members,
    })
}

/// All values by precedence.
fn merge(
    from_file: &Source,
    credentials: &Source,
    environment: &Source,
    command_line: &Source,
) -> Figment {
    let defaults = Source::defaults();
    let replaced = |fragment: &&Fragment| {
        environment.members.is_some() && fragments::is_member(&fragment.path)
    };
    let weakest_first = defaults
        .fragments
        .iter()
        .chain(from_file.fragments.iter().filter(|f| !replaced(f)))
        .chain(&credentials.fragments)
        .chain(&environment.fragments)
        .chain(&command_line.fragments);
    weakest_first.fold(Figment::new(), |figment, fragment| figment.merge(fragment))
}

/// The settings, unless something is wrong with a value or between values.
fn settings_of(figment: &Figment, mut problems: Vec<Problem>) -> Result<Settings, ConfigError> {
    let settings = match figment.extract::<Settings>() {
        Ok(settings) => settings,
        // Every fragment was checked, so this is all but impossible; it is no reason to panic.
        Err(errors) => {
            problems.extend(errors.into_iter().map(|error| {
                Problem {
                    place: error
                        .metadata
                        .map_or_else(|| "default".into(), |m| m.name.into_owned()),
                    key: Some(error.path.join(".")),
                    message: error.kind.to_string(),
                }
            }));
            return Err(ConfigError::Invalid(problems));
        }
    };
    // Where a source could not be read whole, or a value was refused, a conflict
    // with what stands in for it would be a consequence and no news.
    let unread = problems.iter().any(|problem| problem.key.is_none());
    let refused: Vec<_> = problems
        .iter()
        .filter_map(|problem| problem.key.clone())
        .collect();
    for conflict in settings::conflicts(&settings) {
        let consequence = conflict
            .with
            .iter()
            .chain([&conflict.key])
            .any(|key| refused.contains(key));
        if !unread && !consequence {
            problems.push(Problem {
                place: origin_of(figment, &conflict.key),
                key: Some(conflict.key),
                message: conflict.message,
            });
        }
    }
    if problems.is_empty() {
        Ok(settings)
    } else {
        Err(ConfigError::Invalid(problems))
    }
}

/// The file that is to be read, if any, and its bytes.
fn read_file(
    overrides: &Overrides,
    variables: &[(OsString, OsString)],
    default_file: &Path,
) -> Result<Option<(PathBuf, Vec<u8>)>, ConfigError> {
    let variable = variables.iter().find(|(name, value)| {
        // One that is not Unicode is refused with the rest of the environment.
        name == fragments::CONFIG_VARIABLE && !value.is_empty() && value.to_str().is_some()
    });
    let (path, named_by) = match (&overrides.config, variable) {
        (Some(path), _) => (path.as_path(), Some("--config")),
        (None, Some((_, value))) => (Path::new(value), Some(fragments::CONFIG_VARIABLE)),
        (None, None) => (default_file, None),
    };
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path)
        .and_then(|file| file.take(fragments::MAX_FILE + 1).read_to_end(&mut bytes));
    match (read, named_by) {
        (Ok(_), _) => Ok(Some((path.to_owned(), bytes))),
        (Err(source), _) if source.kind() == io::ErrorKind::NotFound && path.is_symlink() => {
            Err(ConfigError::Dangling {
                path: path.to_owned(),
            })
        }
        (Err(source), None) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        (Err(source), Some(named_by)) if source.kind() == io::ErrorKind::NotFound => {
            Err(ConfigError::Missing {
                path: path.to_owned(),
                named_by,
            })
        }
        (Err(source), _) => Err(ConfigError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

fn origin_of(figment: &Figment, path: &str) -> String {
    let metadata = figment.find_metadata(path);
    metadata.map_or_else(
        || Origin::Default.to_string(),
        |found| found.name.to_string(),
    )
}

/// A value that was given and is overridden by a different one, for the log at
/// start. Values are as TOML writes them; secret ones are not shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contradiction {
    /// The key.
    pub key: String,
    /// What was given and has no effect.
    pub given: String,
    /// Where it was given.
    pub given_by: Origin,
    /// What has effect.
    pub value: String,
    /// Where that comes from.
    pub origin: String,
}

impl fmt::Display for Contradiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            key,
            given,
            given_by,
            value,
            origin,
        } = self;
        write!(
            f,
            "{key} is {value} by {origin}, although {given_by} says {given}"
        )
    }
}

impl Loaded {
    /// What is given in one place and overridden by something else in another.
    #[must_use]
    pub fn contradictions(&self) -> Vec<Contradiction> {
        let overridden = self.given.iter().filter_map(|fragment| {
            let value = self.figment.find_value(&fragment.path).ok();
            let origin = match (&value, &self.members) {
                (Some(value), _) if *value == fragment.value => return None,
                (None, Some(members)) => members.to_string(),
                _ => origin_of(&self.figment, &fragment.path),
            };
            let shown = |value| report::shown(fragment.key, value);
            Some(Contradiction {
                key: fragment.path.clone(),
                given: shown(&fragment.value),
                given_by: fragment.origin.clone(),
                value: value.as_ref().map_or_else(|| "not set".into(), shown),
                origin,
            })
        });
        overridden.collect()
    }

    /// The backend that the file itself names, whatever overrides it.
    #[must_use]
    pub fn storage_backend_in_file(&self) -> Option<Backend> {
        let in_file = self.given.iter().find(|fragment| {
            fragment.path == "cluster.storage_backend"
                && matches!(fragment.origin, Origin::File { .. })
        });
        in_file.and_then(|fragment| fragment.value.deserialize().ok())
    }

    /// Where the value of a key such as `cluster.storage_backend` comes from:
    /// `file /etc/aspen/config.toml line 3`, `environment ASPEN_STORAGE_BACKEND`,
    /// `command line --node-id` or `default`.
    #[must_use]
    pub fn origin(&self, key: &str) -> String {
        origin_of(&self.figment, key)
    }
}
