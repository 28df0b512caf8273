//! A look at a redb file's header without redb: which format version, whether
//! it was closed cleanly, and which commit it holds.
//!
//! Source: `tree_store/page_store/header.rs` of redb 2.6.4 and 4.6.0. The first
//! 64 bytes hold the magic number, at byte 9 a byte of flags, and the layout;
//! two commit slots of 128 bytes follow, each protected by xxh3-128.
//!
//! Why look at all: the two redb releases that together read every version
//! panic on each other's files, and redb silently falls back to the previous
//! commit when the newest one's slot is damaged. A migration must neither panic
//! nor fall back in silence.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use xxhash_rust::xxh3::xxh3_128;

/// The first bytes of every redb file.
pub const MAGIC: [u8; 9] = *b"redb\x1A\x0A\xA9\x0D\x0A";
/// Bytes of the header that identify the content.
pub const HEADER_BYTES: usize = 320;

const FLAGS: usize = 9;
/// Five numbers of four bytes: page size, pages of a region's header and of its
/// data, full regions, and data pages of the last one, which is not full.
const LAYOUT: usize = 12;
const PRIMARY: u8 = 1;
const RECOVERY_REQUIRED: u8 = 2;
const TWO_PHASE_COMMIT: u8 = 4;
const SLOTS: [usize; 2] = [64, 192];
const SLOT_BYTES: usize = 128;
const SLOT_CHECKSUM: usize = 112;
const TRANSACTION_ID: usize = 104;
/// Non-null mark at byte 1; page number, checksum and row count of the user root from byte 8.
const USER_ROOT_SET: usize = 1;
const USER_ROOT: std::ops::Range<usize> = 8..40;

/// A commit slot whose checksum holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The file format version: 2 or 3 are read by this release.
    pub version: u8,
    /// The commit's transaction id; a newer commit has a larger one.
    pub transaction_id: u64,
    /// The root of all tables, with its checksum: equal roots hold equal data.
    pub user_root: Option<[u8; 32]>,
}

/// A redb file's header.
#[derive(Clone, Debug)]
pub struct Header {
    bytes: [u8; HEADER_BYTES],
    length: u64,
}

/// Why a header cannot be trusted.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// The file cannot be read.
    #[error("cannot read the header")]
    Read(#[source] io::Error),
    /// The file is shorter than any redb file.
    #[error("the file has {0} bytes, which is too short for a redb database")]
    TooShort(u64),
    /// The file does not begin as a redb file does.
    #[error("the file does not begin like a redb database")]
    NotRedb,
    /// The newest commit's slot does not match its checksum.
    #[error("the header's commit slot {0} does not match its checksum")]
    SlotDamaged(usize),
    /// The header points at the older of its two commits.
    #[error("the header points at commit {primary}, but holds the newer commit {secondary}")]
    PointsBack {
        /// The commit that the header calls current.
        primary: u64,
        /// The newer one beside it.
        secondary: u64,
    },
    /// The file ends before its last page.
    #[error(
        "it has {length} bytes and should have {laid_out}, as if a copy of it had been cut short"
    )]
    CutShort {
        /// What it has.
        length: u64,
        /// What its header says.
        laid_out: u64,
    },
    /// A version that no redb release linked here reads.
    #[error("the file format version is {0}; this release reads 2 and 3")]
    Version(u8),
}

impl Header {
    /// Reads the header of `file`; its position does not move.
    ///
    /// # Errors
    /// When the file cannot be read, is too short, or is no redb database.
    pub fn read(file: &File) -> Result<Self, HeaderError> {
        let length = file.metadata().map_err(HeaderError::Read)?.len();
        let mut bytes = [0; HEADER_BYTES];
        match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => Self::parse(bytes, length),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(HeaderError::TooShort(length))
            }
            Err(error) => Err(HeaderError::Read(error)),
        }
    }

    /// Takes a header's bytes and the length of the file that they come from.
    ///
    /// # Errors
    /// When they are not a redb database's.
    pub fn parse(bytes: [u8; HEADER_BYTES], length: u64) -> Result<Self, HeaderError> {
        if bytes.starts_with(&MAGIC) {
            Ok(Self { bytes, length })
        } else {
            Err(HeaderError::NotRedb)
        }
    }

    /// Whether the last process to write the file closed it.
    #[must_use]
    pub fn closed_cleanly(&self) -> bool {
        self.bytes[FLAGS] & RECOVERY_REQUIRED == 0
    }

    /// The format version that the current slot names, whether or not its checksum holds.
    #[must_use]
    pub fn version(&self) -> u8 {
        self.bytes[SLOTS[self.primary()]]
    }

    fn primary(&self) -> usize {
        usize::from(self.bytes[FLAGS] & PRIMARY != 0)
    }

    fn slot(&self, n: usize) -> Result<Commit, HeaderError> {
        let slot = &self.bytes[SLOTS[n]..SLOTS[n] + SLOT_BYTES];
        let (content, checksum) = slot.split_at(SLOT_CHECKSUM);
        if checksum != xxh3_128(content).to_le_bytes() {
            return Err(HeaderError::SlotDamaged(n));
        }
        let mut id = [0; 8];
        id.copy_from_slice(&slot[TRANSACTION_ID..TRANSACTION_ID + 8]);
        let mut root = [0; 32];
        root.copy_from_slice(&slot[USER_ROOT]);
        Ok(Commit {
            version: slot[0],
            transaction_id: u64::from_le_bytes(id),
            user_root: (slot[USER_ROOT_SET] != 0).then_some(root),
        })
    }

    /// The commit that a reader of this file must see.
    ///
    /// A process that dies between writing a commit and flipping the flag
    /// leaves the flag at the older one; in a file that needs recovery the
    /// newer valid slot is therefore the current one, as redb has it. In a file
    /// that was closed cleanly, and after a commit in two phases, redb trusts the
    /// flag alone, which no checksum protects. A newer commit of other data is
    /// then refused, a flipped bit being the likelier reason: a process that
    /// dies while it closes or repairs the file leaves this picture too, but
    /// with the same data in both commits.
    ///
    /// # Errors
    /// When the slot is damaged, or the flag points at the older of two commits
    /// and nothing says why.
    pub fn commit(&self) -> Result<Commit, HeaderError> {
        let primary = self.slot(self.primary())?;
        let two_phase = self.bytes[FLAGS] & TWO_PHASE_COMMIT != 0;
        // The other slot is only a rival: damaged, it holds no newer commit.
        match self.slot(self.primary() ^ 1) {
            Ok(other) if other.transaction_id > primary.transaction_id => {
                if !self.closed_cleanly() && !two_phase {
                    Ok(other)
                } else if other.user_root == primary.user_root {
                    Ok(primary)
                } else {
                    Err(HeaderError::PointsBack {
                        primary: primary.transaction_id,
                        secondary: other.transaction_id,
                    })
                }
            }
            _ => Ok(primary),
        }
    }

    /// Fails when the file ends before what its header says is in it. Without
    /// this, redb does, in words for its own developers. A file of format 3
    /// that was not closed may be of another length than its header says: the
    /// repair finds what is missing.
    ///
    /// # Errors
    /// When bytes are missing at its end.
    pub fn check_length(&self) -> Result<(), HeaderError> {
        let (length, laid_out) = (self.length, self.laid_out());
        if length < laid_out && (self.version() == 2 || self.closed_cleanly()) {
            return Err(HeaderError::CutShort { length, laid_out });
        }
        Ok(())
    }

    /// The length of all regions and the page before them.
    fn laid_out(&self) -> u64 {
        let number = |n: usize| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&self.bytes[LAYOUT + 4 * n..LAYOUT + 4 * (n + 1)]);
            u64::from(u32::from_le_bytes(bytes))
        };
        let [page, head, data, full, last] = [0, 1, 2, 3, 4].map(number);
        let last = if last == 0 { 0 } else { head + last };
        full.saturating_mul(head + data)
            .saturating_add(last + 1)
            .saturating_mul(page)
    }

    /// Identifies the content without reading it: the commit slots hold the
    /// checksum of the whole tree. The flags are left out, which change when a
    /// process opens the file and closes it again without writing.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut bytes = self.bytes;
        bytes[FLAGS] &= PRIMARY;
        let mut identity = bytes.to_vec();
        identity.extend_from_slice(&self.length.to_le_bytes());
        format!("redb-{:032x}", xxh3_128(&identity))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A header whose slots hold the given transactions, the flags as given.
    fn header(flags: u8, transactions: [u64; 2]) -> Header {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..MAGIC.len()].copy_from_slice(&MAGIC);
        bytes[FLAGS] = flags;
        for (start, transaction) in SLOTS.into_iter().zip(transactions) {
            let slot = &mut bytes[start..start + SLOT_BYTES];
            slot[0] = 2;
            slot[TRANSACTION_ID..TRANSACTION_ID + 8].copy_from_slice(&transaction.to_le_bytes());
            let checksum = xxh3_128(&slot[..SLOT_CHECKSUM]).to_le_bytes();
            slot[SLOT_CHECKSUM..].copy_from_slice(&checksum);
        }
        Header::parse(bytes, 4096).unwrap()
    }

    #[test]
    fn the_flags_choose_the_current_commit() {
        assert_eq!(header(0, [7, 6]).commit().unwrap().transaction_id, 7);
        assert_eq!(header(PRIMARY, [6, 7]).commit().unwrap().transaction_id, 7);
    }

    #[test]
    fn a_clean_file_that_points_at_its_older_commit_is_damaged() {
        let error = with_other_data(PRIMARY, [7, 6]).commit().unwrap_err();
        assert!(
            matches!(
                error,
                HeaderError::PointsBack {
                    primary: 6,
                    secondary: 7
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn a_crash_between_commit_and_flag_leaves_the_newer_commit_current() {
        let recovered = header(RECOVERY_REQUIRED, [6, 7]).commit().unwrap();
        assert_eq!(recovered.transaction_id, 7);
    }

    #[test]
    fn a_commit_in_two_phases_is_current_only_once_the_flag_says_so() {
        let flags = RECOVERY_REQUIRED | TWO_PHASE_COMMIT;
        assert_eq!(header(flags, [6, 7]).commit().unwrap().transaction_id, 6);
    }

    /// The header of [`header`] with other data in its second slot.
    fn with_other_data(flags: u8, ids: [u64; 2]) -> Header {
        let mut header = header(flags, ids);
        let slot = &mut header.bytes[SLOTS[1]..SLOTS[1] + SLOT_BYTES];
        slot[USER_ROOT_SET] = 1;
        slot[USER_ROOT].fill(9);
        let checksum = xxh3_128(&slot[..SLOT_CHECKSUM]).to_le_bytes();
        slot[SLOT_CHECKSUM..].copy_from_slice(&checksum);
        header
    }

    #[test]
    fn a_flag_that_hides_newer_data_is_not_trusted_in_two_phases_either() {
        for flags in [TWO_PHASE_COMMIT, RECOVERY_REQUIRED | TWO_PHASE_COMMIT] {
            let error = with_other_data(flags, [6, 7]).commit().unwrap_err();
            assert!(matches!(error, HeaderError::PointsBack { .. }), "{error}");
        }
    }

    /// redb marks a file as sound before the commit that ends its repair.
    #[test]
    fn a_crash_in_a_repair_leaves_two_commits_of_the_same_data() {
        let commit = header(0, [6, 7]).commit().unwrap();
        assert_eq!(commit.transaction_id, 6);
    }

    #[test]
    fn any_flipped_bit_of_the_current_slot_is_noticed() {
        let sound = header(0, [7, 6]);
        for bit in 0..SLOT_BYTES * 8 {
            let mut damaged = sound.clone();
            damaged.bytes[SLOTS[0] + bit / 8] ^= 1 << (bit % 8);
            let error = damaged.commit().unwrap_err();
            assert!(
                matches!(error, HeaderError::SlotDamaged(0)),
                "bit {bit}: {error}"
            );
        }
    }

    #[test]
    fn a_file_that_ends_before_its_last_page_was_cut_short() {
        // A page before all, two regions of 1 and 8 pages, one of 1 and 3.
        let layout = [512, 1, 8, 2, 3].map(u32::to_le_bytes).concat();
        let of = |flags, version, length| {
            let mut header = header(flags, [7, 6]);
            header.bytes[LAYOUT..LAYOUT + layout.len()].copy_from_slice(&layout);
            header.bytes[SLOTS[0]] = version;
            header.length = length;
            header.check_length()
        };
        let whole = 512 * (1 + 2 * 9 + 4);
        for flags in [0, RECOVERY_REQUIRED] {
            of(flags, 2, whole).unwrap();
            of(flags, 2, whole + 512).unwrap();
            assert_eq!(
                of(flags, 2, whole - 1).unwrap_err().to_string(),
                format!(
                    "it has {} bytes and should have {whole}, as if a copy of it had been cut short",
                    whole - 1
                )
            );
        }
        assert!(of(0, 3, whole - 1).is_err());
        of(RECOVERY_REQUIRED, 3, whole - 1).unwrap();
    }

    #[test]
    fn the_fingerprint_ignores_open_and_close_and_nothing_else() {
        let clean = header(0, [7, 6]);
        assert_eq!(
            clean.fingerprint(),
            header(RECOVERY_REQUIRED, [7, 6]).fingerprint()
        );
        assert_ne!(clean.fingerprint(), header(0, [8, 6]).fingerprint());
        assert_ne!(clean.fingerprint(), header(PRIMARY, [7, 6]).fingerprint());
        let longer = Header::parse(clean.bytes, 8192).unwrap();
        assert_ne!(clean.fingerprint(), longer.fingerprint());
    }
}
