//! What a key may hold, and how a value of any source is checked against it.

use std::fmt;
use std::net::SocketAddr;

use figment::value::Value;

use super::keys::closest;
use super::settings::{MAX_TOKEN, MIN_TOKEN};

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
    /// An amount of memory or disk within bounds, both included: a number of
    /// bytes, or text with a unit such as `256MiB`.
    Bytes {
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
    /// A token: [`MIN_TOKEN`] to [`MAX_TOKEN`] visible ASCII characters.
    Token,
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
            Self::Bytes { min, max } => {
                let bytes = raw.integer().or_else(|| bytes(text?))?;
                (min..=max).contains(&&bytes).then(|| bytes.into())
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
            Self::Token => {
                let fits = |t: &&str| (MIN_TOKEN..=MAX_TOKEN).contains(&t.len());
                // What a header can carry as one word.
                let visible = |t: &&str| t.bytes().all(|byte| byte.is_ascii_graphic());
                text.filter(fits).filter(visible).map(Value::from)
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
            Self::Bytes { min, max } => {
                let (min, max) = (in_units(*min), in_units(*max));
                format!("bytes from {min} to {max}, such as 1048576 or \"1MiB\"")
            }
            Self::Bool => "true or false".into(),
            Self::Choice(names) => {
                let quoted: Vec<_> = names.iter().map(|name| format!("\"{name}\"")).collect();
                format!("one of {}", quoted.join(", "))
            }
            Self::Listen => "an IP address and a port, such as \"127.0.0.1:8080\"".into(),
            Self::Address => "a host and a port, such as \"10.0.0.1:7000\"".into(),
            Self::Path => "a path".into(),
            Self::Token => format!(
                "{MIN_TOKEN} to {MAX_TOKEN} visible ASCII characters, such as `openssl rand -hex 24` makes"
            ),
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

/// Units of [`Kind::Bytes`], largest first.
const UNITS: [(&str, u64); 4] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
];

/// The number of bytes that a whole number with a unit stands for.
fn bytes(text: &str) -> Option<u64> {
    let (name, unit) = UNITS.iter().find(|(name, _)| text.ends_with(name))?;
    let number = text.strip_suffix(name)?.trim_end();
    // `parse` would take a sign.
    let digits = number.bytes().all(|byte| byte.is_ascii_digit());
    number
        .parse::<u64>()
        .ok()
        .filter(|_| digits)?
        .checked_mul(*unit)
}

/// As `bytes` reads it, in the largest unit that leaves no rest.
fn in_units(bytes: u64) -> String {
    let whole = UNITS.iter().find(|(_, unit)| bytes.is_multiple_of(*unit));
    whole.map_or_else(
        || bytes.to_string(),
        |(name, unit)| format!("{}{name}", bytes / unit),
    )
}

/// A host name or an IP address that can be connected to, and a port.
pub fn is_address(text: &str) -> bool {
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
    fn bytes_are_a_number_or_a_number_with_a_unit() {
        let kind = Kind::Bytes {
            min: 1,
            max: 1 << 40,
        };
        let read = |text| kind.accept(Raw::Text(text))?.to_u128();
        assert_eq!(read("1048576"), Some(1 << 20));
        for (text, bytes) in [
            ("1KiB", 1 << 10),
            ("256MiB", 1 << 28),
            ("2 GiB", 1 << 31),
            ("1TiB", 1 << 40),
        ] {
            assert_eq!(read(text), Some(bytes), "{text}");
            assert_eq!(u128::from(super::bytes(text).unwrap_or_default()), bytes);
        }
        for bad in [
            "",
            "0",
            "MiB",
            "1MB",
            "1mib",
            "-1MiB",
            "+1MiB",
            "1.5GiB",
            "2TiB",
            "99999999TiB",
            "1 MiB ",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert_eq!(
            kind.expected(),
            "bytes from 1 to 1TiB, such as 1048576 or \"1MiB\""
        );
    }

    #[test]
    fn a_token_is_long_enough_and_one_word() {
        let read = |text: &str| Kind::Token.accept(Raw::Text(text)).is_some();
        for good in [
            &"x".repeat(MIN_TOKEN),
            &"~".repeat(MAX_TOKEN),
            "0123456789abcdef+/=_-.~",
        ] {
            assert!(read(good), "{good}");
        }
        for bad in [
            "",
            "short",
            &"x".repeat(MIN_TOKEN - 1),
            &"x".repeat(MAX_TOKEN + 1),
            "0123456789 abcdef",
            "0123456789abcdefä",
            "0123456789abcdef\n",
            "(openssl rand -hex 24)",
        ] {
            assert!(!read(bad), "{bad}");
        }
    }

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
