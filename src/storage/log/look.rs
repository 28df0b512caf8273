//! What an opened file holds, as far as it costs little to know.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Place;
use std::path::Path;
use std::sync::Arc;

use redb::{
    Database, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _,
    TableHandle as _,
};

use super::file::{ENTRIES, META, cannot_open, contained, damaged, decode, missing};
use super::journal::MARK;
use super::tail::ENTRY_OVERHEAD;
use super::{Bounds, LogError};
use crate::format::entry::{COMMITTED, LAST_PURGED, VOTE, Vote};
use crate::format::record::{self, LogId, RecordError};
use crate::format::tables;

/// Entries looked at when the log is opened, to tell how large they are: a power of two.
const SAMPLE: u64 = 64;
/// Once they take so many bytes, no more of them are looked at than [`FEWEST`]: a
/// start beside large entries takes no longer than one beside small ones.
const SAMPLE_BYTES: u64 = 1 << 20;
/// Fewer would say too little of entries that differ.
const FEWEST: u64 = 8;

/// What an opened file holds.
pub(super) struct Found {
    pub(super) bounds: Bounds,
    /// The index of the first entry, or of the one to come.
    pub(super) begin: u64,
    /// Bytes of all entries, about.
    pub(super) bytes: u64,
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    /// What it says about a journal that it goes on with.
    pub(super) mark: Option<Vec<u8>>,
}

/// Reads the records and checks what costs little: the first and the last entry
/// and some between them are there and are what their keys say, there are as
/// many as should be, and they begin where purging ended.
pub(super) fn look(path: &Path, database: &Database) -> Result<Found, LogError> {
    let failed = |error| cannot_open(path, error);
    let read = contained(|| {
        let read = database.begin_read()?;
        let there: Vec<_> = read.list_tables()?.map(|t| t.name().to_owned()).collect();
        let missing = [tables::RAFT_LOG, tables::RAFT_META]
            .into_iter()
            .find(|table| !there.iter().any(|name| name == table));
        Ok((read, missing))
    });
    let (read, missing) = read.map_err(failed)?;
    if let Some(table) = missing {
        let path = path.to_owned();
        return Err(LogError::NoTable { path, table });
    }
    let record = |source| LogError::Record {
        path: path.to_owned(),
        source: Arc::new(source),
    };
    let meta = |name| {
        let bytes = contained(|| {
            let bytes = read.open_table(META)?.get(name)?;
            Ok(bytes.map(|bytes| bytes.value().to_vec()))
        });
        bytes.map_err(failed)
    };
    let position_of = |name| match meta(name)? {
        Some(bytes) => position(name, &bytes).map_err(record),
        None => Ok(None),
    };
    let vote = meta(VOTE)?.map(|bytes| Vote::decode(&bytes).map_err(record));
    let last_purged = position_of(LAST_PURGED)?;
    let committed = position_of(COMMITTED)?;

    let sample = contained(|| sample(path, &read.open_table(ENTRIES)?)).map_err(failed)?;
    let behind = last_purged.map_or(0, |purged| purged.index.saturating_add(1));
    let mut found = Found {
        bounds: Bounds {
            last_purged,
            last: last_purged,
        },
        begin: behind,
        bytes: sample.bytes,
        vote: vote.transpose()?,
        committed,
        mark: meta(MARK)?,
    };
    let ends = sample
        .ids
        .first_key_value()
        .zip(sample.ids.last_key_value());
    let ends = ends.map(|((first, _), (last, _))| (*first, *last));
    for id in sample.ids.into_values() {
        let id = id?;
        // The last one counts, unless all of them are left over from a purge.
        if id.index >= behind {
            found.bounds.last = Some(id);
        }
    }
    if let Some((first, last)) = ends {
        let what = match (last - first).saturating_add(1) {
            _ if last == u64::MAX => Some(format!("no log reaches entry {last}")),
            _ if first > behind => Some(format!(
                "it begins with entry {first} though it was purged only up to entry {behind}, exclusive"
            )),
            count if count != sample.count => Some(format!(
                "it holds {} of the {count} entries from {first} to {last}",
                sample.count
            )),
            _ => None,
        };
        if let Some(what) = what {
            return Err(damaged(path, what));
        }
    }
    Ok(found)
}

/// Some entries of a log.
struct Sample {
    /// How many the table holds.
    count: u64,
    /// The first, the last, and some between them, or what is wrong with them.
    ids: BTreeMap<u64, Result<LogId, LogError>>,
    /// What all take if the others are like these.
    bytes: u64,
}

fn sample(
    path: &Path,
    entries: &redb::ReadOnlyTable<u64, &'static [u8]>,
) -> Result<Sample, redb::Error> {
    let (first, last) = (entries.first()?, entries.last()?);
    let mut sample = Sample {
        count: entries.len()?,
        ids: BTreeMap::new(),
        bytes: 0,
    };
    let (Some((first, _)), Some((last, _))) = (first, last) else {
        return Ok(sample);
    };
    let mut bytes = 0;
    for index in places(first.value(), last.value()) {
        let taken = sample.ids.len() as u64;
        if taken >= FEWEST && bytes >= SAMPLE_BYTES {
            break;
        }
        let Place::Vacant(place) = sample.ids.entry(index) else {
            continue;
        };
        let entry = entries.get(index)?;
        bytes += ENTRY_OVERHEAD + entry.as_ref().map_or(0, |entry| entry.value().len() as u64);
        place.insert(match &entry {
            Some(entry) => decode(path, index, entry.value()).map(|entry| entry.log_id),
            None => Err(missing(path, index)),
        });
    }
    sample.bytes = (bytes / sample.ids.len() as u64).saturating_mul(sample.count);
    Ok(sample)
}

/// The ends, then places between them: however many are taken, they are spread evenly.
fn places(first: u64, last: u64) -> impl Iterator<Item = u64> {
    let between = (1..SAMPLE).map(move |n| {
        // The bits of n in reverse order: 1/2, 1/4, 3/4, 1/8, 5/8, ...
        let part = n.reverse_bits() >> (u64::BITS - SAMPLE.ilog2());
        let offset = u128::from(last - first) * u128::from(part) / u128::from(SAMPLE);
        first + u64::try_from(offset).unwrap_or(0)
    });
    [first, last].into_iter().chain(between)
}

/// A position as legacy nodes wrote it, bare, or else as an option.
fn position(name: &'static str, bytes: &[u8]) -> Result<Option<LogId>, RecordError> {
    let bare = record::position(name, bytes).map(Some);
    bare.or_else(|error| record::last_applied(bytes).map_err(|_| error))
}
