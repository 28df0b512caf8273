//! The digest of a table: one number that depends on every byte of every row
//! and on nothing else, so that two engines can be compared.
//!
//! It is xxh3-128 over the rows in ascending byte order of their keys, each as
//! `key length (u64 LE), key, value length (u64 LE), value`. xxh3 finds damage,
//! not forgery; whoever can forge a row can as well replace the file.

use std::fmt;

use xxhash_rust::xxh3::Xxh3;

/// Bytes that precede each key and each value.
const LENGTH: usize = size_of::<u64>();
/// Bytes that [`Digester::drain`] lets gather: they stay in the processor's cache.
const DRAIN_BYTES: usize = 64 << 10;

/// The digest of a number of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    /// How many rows.
    pub rows: u64,
    /// xxh3-128 of all of them.
    pub hash: u128,
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.hash)
    }
}

/// Computes a [`Digest`] row by row.
#[derive(Default)]
pub struct Digester {
    rows: u64,
    hash: Xxh3,
}

impl Digester {
    /// Adds the next row in key order.
    pub fn row(&mut self, key: &[u8], value: &[u8]) {
        self.rows += 1;
        self.hash.update(&(key.len() as u64).to_le_bytes());
        self.hash.update(key);
        self.hash.update(&(value.len() as u64).to_le_bytes());
        self.hash.update(value);
    }

    /// Adds the rows of a batch once it holds enough to be worth it, and empties it.
    pub fn drain(&mut self, batch: &mut Batch) {
        if batch.bytes() >= DRAIN_BYTES {
            self.batch(batch);
            batch.clear(2 * DRAIN_BYTES);
        }
    }

    /// Adds the rows of a batch, which holds them as they are hashed.
    pub fn batch(&mut self, batch: &Batch) {
        self.rows += batch.rows.len() as u64;
        self.hash.update(&batch.bytes);
    }

    /// The digest of all rows added so far.
    #[must_use]
    pub fn finish(&self) -> Digest {
        Digest {
            rows: self.rows,
            hash: self.hash.digest128(),
        }
    }
}

/// Rows on their way from one engine to another, in one allocation, laid out
/// as [`Digester`] hashes them: one long update costs a tenth of four short
/// ones for each row.
#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    /// For each row, where its key ends and where its value ends.
    rows: Vec<(usize, usize)>,
}

impl Batch {
    /// Appends a row; both are UTF-8.
    pub fn push(&mut self, key: &[u8], value: &[u8]) {
        self.bytes
            .extend_from_slice(&(key.len() as u64).to_le_bytes());
        self.bytes.extend_from_slice(key);
        let key_end = self.bytes.len();
        self.bytes
            .extend_from_slice(&(value.len() as u64).to_le_bytes());
        self.bytes.extend_from_slice(value);
        self.rows.push((key_end, self.bytes.len()));
    }

    /// The `n`-th row as UTF-8 bytes, key and value.
    #[must_use]
    pub fn get(&self, n: usize) -> Option<(&[u8], &[u8])> {
        let &(key_end, end) = self.rows.get(n)?;
        let start = n.checked_sub(1).map_or(0, |before| self.rows[before].1);
        Some((
            &self.bytes[start + LENGTH..key_end],
            &self.bytes[key_end + LENGTH..end],
        ))
    }

    /// How many rows it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether it holds no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Bytes of keys, values and their lengths.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Forgets the rows and keeps the memory, unless one huge row had swollen it past `keep` bytes.
    pub fn clear(&mut self, keep: usize) {
        self.rows.clear();
        self.bytes.clear();
        self.bytes.shrink_to(keep);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_and_its_rows_have_the_same_digest() {
        let rows = [
            ("", ""),
            ("a", "\0"),
            ("b\0c", "värde"),
            ("long", &"x".repeat(3000)),
        ];
        let (mut by_row, mut by_batch, mut batch) =
            (Digester::default(), Digester::default(), Batch::default());
        for (key, value) in rows {
            by_row.row(key.as_bytes(), value.as_bytes());
            batch.push(key.as_bytes(), value.as_bytes());
        }
        by_batch.batch(&batch);
        assert_eq!(by_row.finish(), by_batch.finish());
        for (n, (key, value)) in rows.iter().enumerate() {
            assert_eq!(batch.get(n), Some((key.as_bytes(), value.as_bytes())));
        }
        assert_eq!(batch.get(rows.len()), None);
    }

    #[test]
    fn moving_a_byte_from_key_to_value_changes_the_digest() {
        let digest = |key: &str, value: &str| {
            let mut digester = Digester::default();
            digester.row(key.as_bytes(), value.as_bytes());
            digester.finish()
        };
        assert_ne!(digest("ab", "c"), digest("a", "bc"));
    }

    #[test]
    fn the_digest_is_pinned_so_that_records_stay_comparable() {
        let mut digester = Digester::default();
        digester.row(b"key", b"value");
        assert_eq!(
            digester.finish().to_string(),
            "7c1438f51c25bd25332d478576070434"
        );
    }
}
