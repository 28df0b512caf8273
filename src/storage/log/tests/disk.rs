//! Full disks, failing disks, and disks that take their time.

use std::fs::File;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

use super::*;
use crate::layout;

/// What a test does to the file below redb.
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// Error numbers that writing, growing and syncing fail with; 0 for none.
    pub(super) write: AtomicI32,
    grow: AtomicI32,
    pub(super) sync: AtomicI32,
    /// Whether they do so with one of the files alone.
    pub(super) only: Mutex<Option<Part>>,
    /// Bytes that were read.
    read: AtomicU64,
    /// Whether syncing waits.
    held: Mutex<bool>,
    released: Condvar,
    /// Where the file is copied to at every sync, and how often it was.
    copies: Mutex<Option<(PathBuf, PathBuf, usize)>>,
}

impl Faults {
    /// Syncing waits until the value is dropped.
    pub(super) fn hold(&self) -> Held<'_> {
        *self.held.lock().unwrap() = true;
        Held(self)
    }

    /// Keeps what a crash at any sync from now on would leave.
    pub(super) fn copy(&self, from: &Path, to: &Path) {
        *self.copies.lock().unwrap() = Some((from.into(), to.into(), 0));
    }

    /// The copies, in their order.
    pub(super) fn copied(&self) -> Vec<PathBuf> {
        let (_, to, count) = self.copies.lock().unwrap().take().unwrap();
        (0..count).map(|n| nth(&to, n)).collect()
    }

    pub(super) fn open(self: &Arc<Self>, path: &Path, tail_bytes: u64) -> Log {
        let disk = Arc::new(FaultyDisk(Arc::clone(self)));
        Log::open_with(path, None, tail_bytes, disk).unwrap()
    }

    fn wrap(self: &Arc<Self>, part: Part, file: FileBackend) -> Faulty {
        let faults = Arc::clone(self);
        Faulty { part, file, faults }
    }
}

/// A log lies on it, whose journal has small segments.
#[derive(Debug)]
struct FaultyDisk(Arc<Faults>);

impl Disk for FaultyDisk {
    fn attach(&self, part: Part, file: FileBackend) -> Box<dyn StorageBackend> {
        Box::new(self.0.wrap(part, file))
    }

    fn asked(&self, _: Hand) {}
}

pub(super) struct Held<'f>(&'f Faults);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        *self.0.held.lock().unwrap() = false;
        self.0.released.notify_all();
    }
}

#[derive(Debug)]
struct Faulty {
    part: Part,
    file: FileBackend,
    faults: Arc<Faults>,
}

/// A log in a directory of its own.
fn nth(dir: &Path, n: usize) -> PathBuf {
    dir.join(n.to_string()).join("raft-log.redb")
}

/// What a process that is killed now leaves of a log, in another directory.
pub(super) fn copy_of(log: &Path, to: &Path) {
    std::fs::create_dir_all(to.parent().unwrap()).unwrap();
    std::fs::copy(log, to).unwrap();
    let journal = layout::journal(log);
    if journal.exists() {
        std::fs::copy(journal, layout::journal(to)).unwrap();
    }
}

impl Faulty {
    fn fails(&self, number: &AtomicI32) -> io::Result<()> {
        let spared = self
            .faults
            .only
            .lock()
            .unwrap()
            .is_some_and(|part| part != self.part);
        match number.load(Ordering::SeqCst) {
            number if number != 0 && !spared => Err(io::Error::from_raw_os_error(number)),
            _ => Ok(()),
        }
    }
}

impl StorageBackend for Faulty {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = out.len() as u64;
        self.faults.read.fetch_add(bytes, Ordering::SeqCst);
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.fails(&self.faults.grow)?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let held = self.faults.held.lock().unwrap();
        drop(self.faults.released.wait_while(held, |held| *held).unwrap());
        self.fails(&self.faults.sync)?;
        self.file.sync_data()?;
        if let Some((from, to, count)) = &mut *self.faults.copies.lock().unwrap() {
            copy_of(from, &nth(to, *count));
            *count += 1;
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.fails(&self.faults.write)?;
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(
        &self,
        start: std::ops::Bound<u64>,
        end: std::ops::Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }
}

pub(super) fn until_stalled(log: &Log) -> String {
    loop {
        if let Some(reason) = log.stalled() {
            return reason;
        }
        std::thread::yield_now();
    }
}

#[test]
fn on_a_full_disk_nothing_fails_and_nothing_is_lost() {
    for number in [nix::libc::ENOSPC, nix::libc::EDQUOT] {
        let (_dir, path) = place();
        let faults = Arc::<Faults>::default();
        // Nothing is kept in memory that is durable.
        let log = faults.open(&path, 0);
        wait(|done| log.append(entries(1, 0..2000), done));
        faults.write.store(number, Ordering::SeqCst);
        let results: Vec<_> = (2000..2100)
            .map(|index| {
                let (done, result) = promise();
                log.append(vec![entry(1, index, 100)], done);
                result
            })
            .collect();
        let reason = until_stalled(&log);
        assert!(reason.contains("the disk is full"), "{reason}");
        for result in &results {
            assert!(result.try_recv().is_err(), "told while the disk is full");
        }
        // What is in the file and what is not yet there can both be read.
        assert_eq!(all(&log), entries(1, 0..2100));
        faults.write.store(0, Ordering::SeqCst);
        for result in results {
            result.recv().unwrap().unwrap();
        }
        assert_eq!(log.stalled(), None);
        wait(|done| log.append(entries(1, 2100..2101), done));
        drop(log);
        assert_eq!(all(&open(&path)), entries(1, 0..2101));
    }
}

#[test]
fn a_file_that_may_not_grow_is_waited_for_as_well() {
    let (_dir, path) = place();
    let faults = Arc::<Faults>::default();
    let log = faults.open(&path, u64::MAX);
    faults.grow.store(nix::libc::EDQUOT, Ordering::SeqCst);
    let (done, result) = promise();
    // More than a new file has room for.
    log.append((0..100).map(|n| entry(1, n, 100_000)).collect(), done);
    until_stalled(&log);
    assert_eq!(all(&log).len(), 100);
    faults.grow.store(0, Ordering::SeqCst);
    result.recv().unwrap().unwrap();
    drop(log);
    assert_eq!(all(&open(&path)).len(), 100);
}

#[test]
fn a_log_that_is_closed_while_the_disk_is_full_confirms_nothing_and_keeps_what_it_confirmed() {
    let (_dir, path) = place();
    let faults = Arc::<Faults>::default();
    let log = faults.open(&path, 0);
    wait(|done| log.append(entries(1, 0..10), done));
    faults.write.store(nix::libc::ENOSPC, Ordering::SeqCst);
    let (done, result) = promise();
    log.append(entries(1, 10..20), done);
    until_stalled(&log);
    assert!(log.close().is_err());
    let error = result.recv().unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    let log = open(&path);
    let there = all(&log);
    assert!(there.len() >= 10);
    assert_eq!(there, entries(1, 0..there.len() as u64));
}

#[test]
fn an_error_of_the_device_is_final_and_everybody_is_told() {
    type Fault = fn(&Faults) -> &AtomicI32;
    let faulty: [(Fault, i32); 3] = [
        (|faults| &faults.write, nix::libc::EIO),
        (|faults| &faults.sync, nix::libc::EIO),
        // After a failed fsync even space that comes back helps nobody.
        (|faults| &faults.sync, nix::libc::ENOSPC),
    ];
    for (fault, number) in faulty {
        let (_dir, path) = place();
        let faults = Arc::<Faults>::default();
        let log = faults.open(&path, u64::MAX);
        wait(|done| log.append(entries(1, 0..10), done));
        fault(&faults).store(number, Ordering::SeqCst);
        let (done, result) = promise();
        log.append(entries(1, 10..20), done);
        let error = result.recv().unwrap().unwrap_err();
        assert_eq!(
            error.kind(),
            io::Error::from_raw_os_error(number).kind(),
            "{error}"
        );
        assert!(error.to_string().contains("raft-log.redb"), "{error}");
        fault(&faults).store(0, Ordering::SeqCst);
        for ask in [
            (|log, done| log.append(entries(1, 20..21), done)) as fn(&Log, Done),
            |log, done| log.purge(id(1, 5), done),
            |log, done| log.truncate_after(Some(id(1, 5)), done),
        ] {
            let (done, result) = promise();
            ask(&log, done);
            result.recv().unwrap().unwrap_err();
        }
        assert!(log.set_meta("x", b"y").is_err());
        // What is in memory is still there for others to fetch.
        assert_eq!(all(&log), entries(1, 0..20));
        assert!(log.close().is_err());
        drop(log);
        let there = all(&open(&path));
        assert_eq!(there[..10], entries(1, 0..10));
    }
}

#[test]
fn a_purge_and_its_record_survive_any_crash_together() {
    let (dir, path) = place();
    let faults = Arc::<Faults>::default();
    let log = faults.open(&path, 0);
    wait(|done| log.append(entries(1, 0..12_000), done));
    faults.copy(&path, dir.path());
    wait(|done| log.purge(id(1, 9_999), done));
    wait(|done| log.purge(id(3, 20_000), done));
    wait(|done| log.append(entries(3, 20_001..20_011), done));
    let mut purged = Vec::new();
    for copy in faults.copied() {
        // Opening alone finds any gap between record and entries.
        let log = open(&copy);
        let bounds = log.bounds();
        let there = all(&log);
        assert_eq!(
            there.last().map(|e| e.log_id).or(bounds.last_purged),
            bounds.last
        );
        let first = bounds.last_purged.map_or(0, |purged| purged.index + 1);
        assert!(
            there
                .first()
                .is_none_or(|entry| entry.log_id.index == first)
        );
        purged.push(bounds.last_purged.map(|purged| purged.index));
    }
    assert!(purged.is_sorted(), "{purged:?}");
    for step in [Some(4095), Some(8191), Some(9_999), Some(20_000)] {
        assert!(purged.contains(&step), "{step:?} of {purged:?}");
    }
}

/// Looking at 64 of them whatever their size was most of a start beside 1 GB, and
/// with the largest values half a gigabyte of memory.
#[test]
fn opening_reads_few_of_the_entries_that_are_large() {
    const SIZE: usize = 256 << 10;
    let (_dir, path) = place();
    let log = open(&path);
    for index in 0..64 {
        wait(|done| log.append(vec![entry(1, index, SIZE)], done));
    }
    drop(log);
    // A debug build of redb reads all of the file.
    let faults = Arc::new(Faults::default());
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let file = faults.wrap(Part::Log, FileBackend::new(file).unwrap());
    drop(redb::Builder::new().create_with_backend(file).unwrap());
    let anyway = faults.read.swap(0, Ordering::SeqCst);

    let log = faults.open(&path, TAIL_BYTES);
    // All of them take 32 MiB, since redb's pages are powers of two.
    let read = faults.read.load(Ordering::SeqCst);
    let more = read.saturating_sub(anyway);
    assert!(more < 8 << 20, "{read} bytes, {anyway} of them anyway");
    let index = log.index_for_last(16 * SIZE as u64);
    assert!((48..=49).contains(&index), "{index}");
}
