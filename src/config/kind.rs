//! What a key may hold, and how a value of any source is checked against it.

use std::fmt;
use std::net::SocketAddr;

use figment::value::Value;

use super::keys::closest;

/// Characters of a wrong value that a message shows; enough to recognise it.
const SHOWN: usize = 80;

/// What a key may hold.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A whole number within bounds, both included.
    Integer {
        /// The smallest.
        min: u64,
        /// The largest.
        max: u64,
    },
    /// `true` or `false`.
    Bool,
    /// One of these names.
    Choice(&'static [&'static str]),
    /// An IP address and a port to listen on.
    Listen,
    /// A host (name or IP address) and a port that others connect to.
    Address,
    /// A path; it need not exist.
    Path,
    /// A log filter: see [`filter::parse`](super::filter::parse).
    Filter,
    /// The table of members, whose keys have rows of their own here.
    Members,
    /// A table that the program itself writes and never reads back as a setting.
    Record,
}

/// A value as a source gives it.
#[derive(Clone, Copy)]
pub(super) enum Raw<'a> {
    /// From the environment, the command line or the table of defaults.
    Text(&'a str),
    /// From the file, with a type.
    Toml(&'a toml_edit::Value),
}

impl Raw<'_> {
    fn integer(&self) -> Option<u64> {
        match self {
            Self::Text(text) => text.parse().ok(),
            Self::Toml(value) => u64::try_from(value.as_integer()?).ok(),
        }
    }

    fn bool(&self) -> Option<bool> {
        match self {
            Self::Text(text) => text.parse().ok(),
            Self::Toml(value) => value.as_bool(),
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Toml(value) => value.as_str(),
        }
    }
}

/// As a message shows it: quoted where it is text, with its type where it is not.
impl fmt::Display for Raw<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(text) = self.text() {
            let shown: String = text.chars().take(SHOWN).collect();
            let more = if shown.len() < text.len() { "..." } else { "" };
            return write!(f, "{shown:?}{more}");
        }
        let Self::Toml(value) = self else {
            return Ok(());
        };
        match value {
            toml_edit::Value::Integer(v) => write!(f, "the integer {}", v.value()),
            toml_edit::Value::Float(v) => write!(f, "the float {}", v.value()),
            toml_edit::Value::Boolean(v) => write!(f, "the boolean {}", v.value()),
            toml_edit::Value::Datetime(v) => write!(f, "the date {}", v.value()),
            toml_edit::Value::InlineTable(_) => write!(f, "a table"),
            _ => write!(f, "an array"),
        }
    }
}

impl Kind {
    /// The value, if this kind takes it.
    pub(super) fn accept(&self, raw: Raw<'_>) -> Option<Value> {
        let text = raw.text();
        match self {
            Self::Integer { min, max } => {
                let number = raw.integer()?;
                (min..=max).contains(&&number).then(|| number.into())
            }
            Self::Bool => raw.bool().map(Value::from),
            Self::Choice(names) => text.filter(|t| names.contains(t)).map(Value::from),
            Self::Listen => {
                let address: SocketAddr = text?.parse().ok()?;
                Some(address.to_string().into())
            }
            Self::Address => text.filter(|t| is_address(t)).map(Value::from),
            Self::Path => {
                let usable = |t: &&str| !t.is_empty() && !t.contains('\0');
                text.filter(usable).map(Value::from)
            }
            Self::Filter => {
                let parses = |t: &&str| super::filter::parse(t).is_ok();
                text.filter(parses).map(Value::from)
            }
            Self::Members | Self::Record => None,
        }
    }

    /// What it takes, in words that follow "expected".
    pub(super) fn expected(&self) -> String {
        match self {
            Self::Integer { min, max: u64::MAX } => format!("an integer of at least {min}"),
            Self::Integer { min, max } => format!("an integer from {min} to {max}"),
            Self::Bool => "true or false".into(),
            Self::Choice(names) => {
                let quoted: Vec<_> = names.iter().map(|name| format!("\"{name}\"")).collect();
                format!("one of {}", quoted.join(", "))
            }
            Self::Listen => "an IP address and a port, such as \"127.0.0.1:8080\"".into(),
            Self::Address => "a host and a port, such as \"10.0.0.1:7000\"".into(),
            Self::Path => "a path".into(),
            Self::Filter => "a log filter, such as \"info\" or \"info,aspen=debug\"".into(),
            Self::Members => {
                "a table of members, each ID = { peer = \"HOST:PORT\", http = \"HOST:PORT\" }"
                    .into()
            }
            Self::Record => "a table".into(),
        }
    }

    /// A name that a misspelt one may have meant.
    pub(super) fn suggestion(&self, raw: Raw<'_>) -> Option<&'static str> {
        match self {
            Self::Choice(names) => closest(raw.text()?, names.iter().copied()),
            _ => None,
        }
    }
}

/// A host name or an IP address that can be connected to, and a port.
fn is_address(text: &str) -> bool {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return address.port() != 0 && !address.ip().is_unspecified();
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let in_names = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let named = host.starts_with(|c: char| c.is_ascii_alphanumeric()) && host.chars().all(in_names);
    // A name that ends in a number is read as an IPv4 address everywhere: a wrong one here.
    let numeric = host
        .rsplit('.')
        .next()
        .is_some_and(|last| last.parse::<u64>().is_ok());
    let digits = port.bytes().all(|b| b.is_ascii_digit());
    // 253 is the longest name that DNS can hold.
    named && !numeric && host.len() <= 253 && digits && port.parse::<u16>().is_ok_and(|p| p != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_that_can_be_connected_to_and_a_port() {
        for good in [
            "10.0.0.1:7000",
            "[::1]:1",
            "node-1:65535",
            "a.example.org:80",
        ] {
            assert!(is_address(good), "{good}");
        }
        for bad in [
            "",
            ":",
            "10.0.0.1",
            ":7000",
            "node:0",
            "node:65536",
            "0.0.0.0:7000",
            "[::]:7000",
            "::1:7000",
            "10.0.0.256:7000",
            "10.0.0:7000",
            "-x:7000",
            "a b:7000",
            "http://a:80",
            "node:+1",
            "[::1:7000",
        ] {
            assert!(!is_address(bad), "{bad}");
        }
    }
}
