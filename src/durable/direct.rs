//! Copying past the page cache.
//!
//! A backup is written once and not read again. Through the page cache it
//! would need as much memory as it has bytes, drive the source out while that
//! is still being read, and make every other writer wait for the dirty pages.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// What offsets, lengths and memory are aligned to: no disk has larger sectors.
const ALIGNMENT: usize = 4096;

/// Writes to a file past the page cache, until dropped.
pub(super) struct Direct<'a> {
    to: &'a File,
    flags: OFlag,
    buffer: Vec<u8>,
    /// Where the aligned part of the buffer begins.
    start: usize,
}

impl<'a> Direct<'a> {
    /// `None` where the file system cannot.
    pub(super) fn begin(to: &'a File, chunk: usize) -> Option<Self> {
        let flags = OFlag::from_bits_retain(fcntl(to, FcntlArg::F_GETFL).ok()?);
        fcntl(to, FcntlArg::F_SETFL(flags | OFlag::O_DIRECT)).ok()?;
        let buffer = vec![0; chunk + ALIGNMENT];
        let start = buffer.as_ptr().align_offset(ALIGNMENT);
        Some(Self {
            to,
            flags,
            buffer,
            start,
        })
    }

    /// Copies a range of at most a chunk; false, with nothing done, when it
    /// cannot be done this way: a file's last, broken block.
    pub(super) fn copy(&mut self, from: &File, at: u64, length: u64) -> io::Result<bool> {
        let block = ALIGNMENT as u64;
        if !at.is_multiple_of(block) || !length.is_multiple_of(block) {
            return Ok(false);
        }
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let Some(bytes) = self.buffer.get_mut(self.start..self.start + length) else {
            return Ok(false);
        };
        from.read_exact_at(bytes, at)?;
        match self.to.write_all_at(bytes, at) {
            Ok(()) => Ok(true),
            // Alignment that is stricter still, or a file system that only took the flag.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Direct<'_> {
    fn drop(&mut self) {
        // Where this fails, so does the next unaligned write, which is reported.
        let _ = fcntl(self.to, FcntlArg::F_SETFL(self.flags));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::durable::{COPY_CHUNK, copy};

    #[test]
    fn a_copy_has_every_byte_of_whole_chunks_holes_and_a_broken_last_block() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let bytes: Vec<u8> = (0..5_000_u32).flat_map(u32::to_le_bytes).collect();
        let source = File::create(&from).unwrap();
        source.write_all_at(&bytes, 0).unwrap();
        source
            .write_all_at(&bytes, 2 * COPY_CHUNK + 12_345)
            .unwrap();
        let target = File::create(&to).unwrap();
        let mut told = 0;
        let source = File::open(&from).unwrap();
        copy(&source, &target, &to, &mut |bytes| {
            told += bytes;
            Ok(())
        })
        .unwrap();
        let (wanted, found) = (std::fs::read(&from).unwrap(), std::fs::read(&to).unwrap());
        assert!(wanted == found);
        assert_eq!(told, wanted.len() as u64);
        let flags = OFlag::from_bits_retain(fcntl(&target, FcntlArg::F_GETFL).unwrap());
        assert!(!flags.contains(OFlag::O_DIRECT));
    }
}
