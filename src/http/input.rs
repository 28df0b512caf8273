//! What clients send, checked: from here on a request is one that may enter the
//! log. Pure functions of text and bytes, so that they can be fuzzed; they are
//! public for that alone.
//!
//! - Unknown names and names that stand twice are refused, in bodies and in
//!   queries: a slip in `expect` must not turn into an unconditional write.
//! - What is written is limited; what is read or deleted is not, or data of
//!   legacy nodes beyond the limits would be out of reach.
//! - U+0000 is refused in keys to be written. It is legal in SQLite, but its
//!   shell and every C string end there, so that two keys would look the same.

use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;

use super::error::{ApiError, Code};
use super::limits::{
    MAX_BATCH_BYTES, MAX_BATCH_KEYS, MAX_KEY_BYTES, MAX_LAG_MS, MAX_PAGE, MAX_PAGE_BYTES,
    MAX_VALUE_BYTES, USUAL_PAGE,
};
use crate::config::is_address;
use crate::config::settings::MIN_NODE_ID;
use crate::format::entry::Plain;
use crate::format::idempotency;
use crate::raft::Consistency;
use crate::storage::Range;

/// What precedes the key in a path.
const PREFIX: &str = "/api/kv/";

/// What a key is set to.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Set)]
pub(super) struct SetBody {
    /// The new value, at most 8 MiB of UTF-8.
    value: String,
    /// What the key must hold for the write to happen, at most 8 MiB; null if
    /// it must not exist. Without this field the write happens in any case.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    expect: Option<Option<String>>,
}

/// Keys to set and to delete at once.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Batch)]
pub(super) struct BatchBody {
    /// Keys and their new values. Together with `delete` at most 1024 keys and 8 MiB.
    #[serde(default)]
    #[schema(value_type = Vec<PairBody>, max_items = 1024)]
    set: Vec<Object<PairBody>>,
    /// Keys to remove; those that do not exist are passed over.
    #[serde(default)]
    #[schema(max_items = 1024)]
    delete: Vec<String>,
}

/// A key and its new value.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Pair)]
pub(super) struct PairBody {
    /// Not empty, at most 4096 bytes of UTF-8, without U+0000.
    #[schema(min_length = 1, max_length = 4096, pattern = "^[^\\u0000]+$")]
    key: String,
    /// At most 8 MiB of UTF-8.
    value: String,
}

/// Who shall lead.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Lead)]
pub(super) struct LeadBody {
    /// A voter's id; without it, the voter that has most of the log.
    #[serde(default)]
    id: Option<u64>,
}

/// Who shall be a member.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewMember)]
pub(super) struct MemberBody {
    /// Its id, never used before by another node.
    #[schema(minimum = 1)]
    id: u64,
    /// Where its peers reach it: a host and a port.
    #[schema(example = "10.0.0.4:7000")]
    peer: String,
    /// `learner`, or `voter` as soon as it has caught up.
    role: Role,
}

/// What a member does.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Role {
    Learner,
    Voter,
}

/// Who shall be a member.
#[derive(Debug)]
pub struct NewMember {
    /// Its id.
    pub id: u64,
    /// Where its peers reach it.
    pub peer: String,
    /// Whether it shall vote.
    pub voter: bool,
}

/// Tells a field that is null from one that is not there.
fn given<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(from).map(Some)
}

/// A struct that is written as an object: serde takes an array of its fields too.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        from.deserialize_map(Fields(PhantomData))
    }
}

fn body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice::<Object<T>>(bytes)
        .map(|Object(body)| body)
        .map_err(|error| ApiError::bad_request(format!("the body is not understood: {error}")))
}

/// The key in a path: whatever follows the prefix, percent-decoded. Slashes and
/// dots stand for themselves.
///
/// # Errors
/// When it is not UTF-8.
pub fn key(path: &str) -> Result<String, ApiError> {
    let encoded = path.strip_prefix(PREFIX).unwrap_or_default();
    let key = percent_decode_str(encoded).decode_utf8();
    key.map(String::from)
        .map_err(|_| ApiError::bad_request("the key is not UTF-8"))
}

/// The write of `key` that a body asks for.
///
/// # Errors
/// When the key must not be written, the body is not understood, or a value is
/// over its limit.
pub fn set(key: String, bytes: &[u8]) -> Result<Plain, ApiError> {
    check_key(&key, Code::PathTooLong)?;
    let SetBody { value, expect } = body(bytes)?;
    check_value(&value)?;
    Ok(match expect {
        None => Plain::Set { key, value },
        Some(expect) => {
            expect.as_deref().map_or(Ok(()), check_value)?;
            Plain::CompareAndSet { key, expect, value }
        }
    })
}

/// The batch that a body asks for, which may be of no keys at all.
///
/// # Errors
/// When the body is not understood, a key must not be written or stands twice,
/// or a limit is passed.
pub fn batch(bytes: &[u8]) -> Result<Plain, ApiError> {
    let BatchBody { set, delete } = body(bytes)?;
    let count = set.len() + delete.len();
    if count > MAX_BATCH_KEYS {
        let message = format!("the batch names {count} keys; at most {MAX_BATCH_KEYS} are taken");
        return Err(ApiError::new(Code::BatchTooLarge, message));
    }
    let mut bytes = 0;
    let mut seen = HashSet::with_capacity(count);
    for Object(PairBody { key, value }) in &set {
        check_key(key, Code::KeyTooLong)?;
        check_value(value)?;
        bytes += key.len() + value.len();
    }
    let set_keys = set.iter().map(|Object(pair)| &pair.key);
    for key in set_keys.chain(&delete) {
        if !seen.insert(key) {
            let message =
                "a key stands twice in the batch, and which is meant to come last is unclear";
            return Err(ApiError::new(Code::DuplicateKey, message));
        }
    }
    bytes += delete.iter().map(String::len).sum::<usize>();
    if bytes > MAX_BATCH_BYTES {
        let message = format!("the batch holds {bytes} bytes; at most {MAX_BATCH_BYTES} are taken");
        return Err(ApiError::new(Code::BatchTooLarge, message));
    }
    let set = set.into_iter().map(|Object(pair)| (pair.key, pair.value));
    let set = set.collect();
    Ok(Plain::Batch { set, delete })
}

/// The key in an `Idempotency-Key`: a string as structured fields have it
/// (RFC 8941, 3.3.3), in quotes, or the same without quotes where it needs none.
///
/// # Errors
/// When it is neither, empty, or over [`idempotency::MAX_KEY_BYTES`].
pub fn idempotency_key(field: &[u8]) -> Result<String, ApiError> {
    let key = match field {
        [b'"', quoted @ .., b'"'] => unquoted(quoted),
        bare => {
            let is_bare = |byte: &u8| byte.is_ascii_graphic() && !b"\"\\,;".contains(byte);
            bare.iter().all(is_bare).then(|| bare.to_vec())
        }
    };
    let key = key.filter(|key| (1..=idempotency::MAX_KEY_BYTES).contains(&key.len()));
    key.and_then(|key| String::from_utf8(key).ok())
        .ok_or_else(|| {
            let most = idempotency::MAX_KEY_BYTES;
            let message = format!(
                "the Idempotency-Key is no string of 1 to {most} printable ASCII characters, \
                 such as \"8e03978e-40d5-43dd-bc93-6894a57f9324\""
            );
            ApiError::new(Code::InvalidIdempotencyKey, message)
        })
}

/// What stands between the quotes of a string.
fn unquoted(quoted: &[u8]) -> Option<Vec<u8>> {
    let mut key = Vec::with_capacity(quoted.len());
    let mut bytes = quoted.iter();
    while let Some(&byte) = bytes.next() {
        key.push(match byte {
            b'\\' => *bytes.next().filter(|byte| b"\"\\".contains(byte))?,
            b'"' => return None,
            b' '..=b'~' => byte,
            _ => return None,
        });
    }
    Some(key)
}

/// Who shall lead, if the body says so.
///
/// # Errors
/// When the body is not understood.
pub fn lead(bytes: &[u8]) -> Result<Option<u64>, ApiError> {
    let LeadBody { id } = body(bytes)?;
    Ok(id)
}

/// The member that a body describes.
///
/// # Errors
/// When the body is not understood, the id is none, or the address is none.
pub fn member(bytes: &[u8]) -> Result<NewMember, ApiError> {
    let MemberBody { id, peer, role } = body(bytes)?;
    if id < MIN_NODE_ID {
        return Err(ApiError::bad_request(format!(
            "an id is at least {MIN_NODE_ID}"
        )));
    }
    if !is_address(&peer) {
        let message = "peer is not a host and a port, such as \"10.0.0.4:7000\"";
        return Err(ApiError::bad_request(message));
    }
    let voter = role == Role::Voter;
    Ok(NewMember { id, peer, voter })
}

fn check_key(key: &str, too_long: Code) -> Result<(), ApiError> {
    if key.len() > MAX_KEY_BYTES {
        let length = key.len();
        let message = format!("the key has {length} bytes; at most {MAX_KEY_BYTES} are taken");
        return Err(ApiError::new(too_long, message));
    }
    let message = match key {
        "" => "a key must not be empty",
        key if key.contains('\0') => "a key must not hold U+0000, where many programs end it",
        _ => return Ok(()),
    };
    Err(ApiError::new(Code::InvalidKey, message))
}

fn check_value(value: &str) -> Result<(), ApiError> {
    if value.len() <= MAX_VALUE_BYTES {
        return Ok(());
    }
    let length = value.len();
    let message = format!("a value has {length} bytes; at most {MAX_VALUE_BYTES} are taken");
    Err(ApiError::new(Code::ValueTooLarge, message))
}

/// How fresh a read of one key shall be.
///
/// # Errors
/// When the query is not understood.
pub fn consistency(query: Option<&str>) -> Result<Consistency, ApiError> {
    let [consistency, max_lag] = parameters(query, ["consistency", "max_lag"])?;
    parse_consistency(consistency.as_deref(), max_lag.as_deref())
}

/// Which page is asked for, and how fresh.
///
/// # Errors
/// When the query is not understood.
pub fn range(query: Option<&str>) -> Result<(Range, Consistency), ApiError> {
    let names = ["prefix", "after", "limit", "consistency", "max_lag"];
    let [prefix, after, limit, consistency, max_lag] = parameters(query, names)?;
    let consistency = parse_consistency(consistency.as_deref(), max_lag.as_deref())?;
    let limit = match limit {
        None => USUAL_PAGE,
        Some(text) => {
            let limit = text.parse().ok();
            let limit = limit.filter(|limit| (1..=MAX_PAGE).contains(limit));
            limit.ok_or_else(|| {
                ApiError::bad_request(format!("limit is not a number from 1 to {MAX_PAGE}"))
            })?
        }
    };
    let range = Range {
        prefix: prefix.unwrap_or_default(),
        after,
        limit,
        max_bytes: MAX_PAGE_BYTES,
    };
    Ok((range, consistency))
}

/// Whether more is asked for than a word: `?verbose`, as Kubernetes has it.
///
/// # Errors
/// When the query is not understood.
pub fn verbose(query: Option<&str>) -> Result<bool, ApiError> {
    let [verbose] = parameters(query, ["verbose"])?;
    flag("verbose", verbose.as_deref())
}

/// What a probe asks: whether more is asked for than a word, and whether it is
/// about a restart.
///
/// # Errors
/// When the query is not understood.
pub fn probe(query: Option<&str>) -> Result<(bool, bool), ApiError> {
    let [verbose, restart] = parameters(query, ["verbose", "restart"])?;
    Ok((
        flag("verbose", verbose.as_deref())?,
        flag("restart", restart.as_deref())?,
    ))
}

fn flag(name: &str, value: Option<&str>) -> Result<bool, ApiError> {
    match value {
        None | Some("false") => Ok(false),
        Some("" | "true") => Ok(true),
        Some(_) => Err(ApiError::bad_request(format!(
            "{name} is neither true nor false"
        ))),
    }
}

/// Refuses a query where none means anything.
///
/// # Errors
/// When there is one.
pub fn nothing(query: Option<&str>) -> Result<(), ApiError> {
    let [] = parameters(query, [])?;
    Ok(())
}

fn parse_consistency(
    consistency: Option<&str>,
    max_lag: Option<&str>,
) -> Result<Consistency, ApiError> {
    match (consistency, max_lag) {
        (None | Some("linearizable"), None) => Ok(Consistency::Linearizable),
        (Some("lease"), None) => Ok(Consistency::Lease),
        (Some("stale"), None) => Ok(Consistency::Stale),
        (Some("stale"), Some(text)) => {
            let lag = text.parse().ok();
            let lag = lag.filter(|lag| (0..=MAX_LAG_MS).contains(lag));
            let lag = lag.map(Duration::from_millis).map(Consistency::Bounded);
            lag.ok_or_else(|| {
                let message =
                    format!("max_lag is not a number of milliseconds from 0 to {MAX_LAG_MS}");
                ApiError::bad_request(message)
            })
        }
        (None | Some("linearizable" | "lease"), Some(_)) => Err(ApiError::bad_request(
            "max_lag means something with consistency=stale only: other reads have no lag",
        )),
        (Some(_), _) => Err(ApiError::bad_request(
            "consistency is neither linearizable nor lease nor stale",
        )),
    }
}

/// The values of a query's parameters by `names`, as forms encode them.
fn parameters<const N: usize>(
    query: Option<&str>,
    names: [&'static str; N],
) -> Result<[Option<String>; N], ApiError> {
    let mut values = [const { None }; N];
    let pairs = query.unwrap_or_default().split('&');
    for pair in pairs.filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (name, value) = (decode(name)?, decode(value)?);
        let Some(at) = names.iter().position(|known| *known == name) else {
            let message = match N {
                0 => "the query has a parameter, and none is known here".to_owned(),
                _ => format!(
                    "the query has an unknown parameter; known: {}",
                    names.join(", ")
                ),
            };
            return Err(ApiError::bad_request(message));
        };
        if values[at].replace(value).is_some() {
            let message = format!("the query has {} more than once", names[at]);
            return Err(ApiError::bad_request(message));
        }
    }
    Ok(values)
}

fn decode(text: &str) -> Result<String, ApiError> {
    let spaced = text.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8();
    decoded
        .map(String::from)
        .map_err(|_| ApiError::bad_request("the query is not UTF-8"))
}

#[cfg(test)]
mod tests;
