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
    /// that was closed cleanly the same picture means damage.
    ///
    /// # Errors
    /// When the slot is damaged, or a clean file points at its older commit.
    pub fn commit(&self) -> Result<Commit, HeaderError> {
        let primary = self.slot(self.primary())?;
        let two_phase = self.bytes[FLAGS] & TWO_PHASE_COMMIT != 0;
        // The other slot is only a rival: damaged, it holds no newer commit.
        match self.slot(self.primary() ^ 1) {
            Ok(other) if other.transaction_id > primary.transaction_id && !two_phase => {
                if self.closed_cleanly() {
                    Err(HeaderError::PointsBack {
                        primary: primary.transaction_id,
                        secondary: other.transaction_id,
                    })
                } else {
                    Ok(other)
                }
            }
            _ => Ok(primary),
        }
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
