//! Keys and values. A value says which put of which key it is and the rest of
//! it follows from that, so whoever reads it can tell whether it is right.

use std::fmt::Write as _;

use serde::Serialize;

use crate::client::Failure;

/// Digits of a key's number and of the number of a put, with what stands between.
const KEY_DIGITS: usize = 7;
const PUT_DIGITS: usize = 16;
/// The shortest value.
pub(crate) const LEAST_VALUE_BYTES: usize = KEY_DIGITS + PUT_DIGITS + 2;

/// What one put writes.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Pair {
    pub(crate) key: String,
    pub(crate) value: String,
}

/// Which keys there are and how long the values are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) keys: u64,
    pub(crate) value_bytes: usize,
}

impl Shape {
    /// The pair that put number `put` writes to key number `id`.
    pub(crate) fn pair(self, id: u64, put: u64) -> Pair {
        Pair {
            key: self.key(id),
            value: self.value(id, put),
        }
    }

    pub(crate) fn key(self, id: u64) -> String {
        format!("key-{id:0KEY_DIGITS$}")
    }

    /// Bytes of all keys and values.
    pub(crate) fn bytes(self) -> u64 {
        self.keys * (self.key(0).len() + self.value_bytes) as u64
    }

    /// Whether `value` is what some put wrote to key number `id`.
    pub(crate) fn check(self, id: u64, value: Option<&str>) -> Result<(), Failure> {
        let key = self.key(id);
        let value = value.ok_or_else(|| format!("{key} is gone"))?;
        let put = value.get(KEY_DIGITS + 1..KEY_DIGITS + 1 + PUT_DIGITS);
        let put = put.and_then(|digits| digits.parse().ok());
        match put {
            Some(put) if value == self.value(id, put) => Ok(()),
            _ => Err(format!("{key} has a value that nobody put: {value}").into()),
        }
    }

    fn value(self, id: u64, put: u64) -> String {
        let mut random = Random(put ^ id.rotate_left(40));
        let mut value = String::with_capacity(self.value_bytes + 16);
        let _ = write!(value, "{id:0KEY_DIGITS$}-{put:0PUT_DIGITS$}-");
        while value.len() < self.value_bytes {
            value.extend(random.next().to_le_bytes().map(letter));
        }
        value.truncate(self.value_bytes);
        value
    }
}

fn letter(byte: u8) -> char {
    char::from(b'A' + byte % 26)
}

/// splitmix64 (<https://prng.di.unimi.it/splitmix64.c>): the same keys for every peer.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
