//! The text of `aspen-node --check-config`.

use std::fmt::Write as _;

use figment::value::Value;

use super::Loaded;
use super::keys::{ANY_ID, KEYS, Key, Kind};

/// What stands for a secret value.
const HIDDEN: &str = "\"(hidden)\"";

/// A value as TOML writes it, unless it is secret.
pub(super) fn shown(key: &Key, value: &Value) -> String {
    if key.secret {
        return HIDDEN.into();
    }
    if let Some(text) = value.as_str() {
        return toml_edit::Value::from(text).to_string();
    }
    match (value.to_bool(), value.to_u128()) {
        (Some(value), _) => value.to_string(),
        (_, Some(number)) => number.to_string(),
        _ => String::new(),
    }
}

impl Loaded {
    /// Every value that has effect and where it comes from, aligned. It is TOML
    /// itself: saved to a file, it is this configuration. Secrets are hidden.
    #[must_use]
    pub fn report(&self) -> String {
        let rows = self.rows();
        let width = |column: fn(&(String, String, String)) -> &String| {
            rows.iter()
                .map(|row| column(row).chars().count())
                .max()
                .unwrap_or_default()
        };
        let (key_width, value_width) = (width(|row| &row.0), width(|row| &row.1));

        let mut text = match &self.file {
            Some(file) => format!("# The configuration is valid. File: {}\n", file.display()),
            None => "# The configuration is valid. No file was read.\n".into(),
        };
        for (key, value, origin) in &rows {
            // Writing to a String does not fail.
            let _ = writeln!(text, "{key:key_width$} = {value:value_width$} # {origin}");
        }
        for (key, meaning) in self.unset() {
            let _ = writeln!(text, "# {key} is not set: {meaning}");
        }
        for contradiction in self.contradictions() {
            let _ = writeln!(text, "# Note: {contradiction}");
        }
        text
    }

    /// Key, value and origin of everything that is set.
    fn rows(&self) -> Vec<(String, String, String)> {
        let mut rows = Vec::new();
        let mut push = |key, path: String| {
            // A table has no value of its own, only its rows have.
            let value = self.figment.find_value(&path).ok();
            if let Some(value) = value.filter(|value| value.as_dict().is_none()) {
                let origin = self.origin(&path);
                rows.push((path, shown(key, &value), origin));
            }
        };
        for key in KEYS.iter().filter(|key| !key.path.contains(ANY_ID)) {
            push(key, key.path.into());
            if matches!(key.kind, Kind::Members) {
                for id in self.settings.cluster.initial_members.keys() {
                    for key in KEYS.iter().filter(|key| key.path.contains(ANY_ID)) {
                        push(key, key.path.replace(ANY_ID, &id.to_string()));
                    }
                }
            }
        }
        rows
    }

    /// Keys that have no value, with what follows from that.
    fn unset(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let unset = |key: &&Key| {
            let settable = !matches!(key.kind, Kind::Record) && !key.path.contains(ANY_ID);
            settable && !self.figment.contains(key.path)
        };
        KEYS.iter().filter(unset).map(|key| (key.path, key.doc))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_secret_value_is_never_shown() {
        let mut key = KEYS[0].clone();
        assert_eq!(shown(&key, &Value::from("token")), "\"token\"");
        key.secret = true;
        assert_eq!(shown(&key, &Value::from("token")), "\"(hidden)\"");
    }
}
