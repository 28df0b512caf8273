//! A disk for a Raft log that takes its time, and that forgets at a power cut what was
//! not synced: each write since is there as a whole, in part or not at all.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aspen::storage::log::{Disk, Hand, Part};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use redb::StorageBackend;
use redb::backends::FileBackend;
use tokio::runtime::Handle;
use tokio::time::sleep;

/// What a disk writes as a whole.
const SECTOR: usize = 512;

/// Milliseconds from a request to write until it is durable, mostly.
pub(crate) const QUICK: Range<u64> = 0..4;

#[derive(Clone, Debug)]
pub(crate) struct SimulatedDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    dice: StdRng,
    /// Milliseconds that a write takes.
    takes: Range<u64>,
    /// Says that it has synced, and has not.
    lies: bool,
    /// Counts the starts of its machine: what was opened before has no power any more.
    power: u64,
    on: bool,
    /// The log and its journal.
    files: Vec<Arc<FileBackend>>,
    /// Whether somebody is about to write.
    writing: bool,
    /// Since the last sync, in order.
    unsynced: Vec<Write>,
}

#[derive(Debug)]
struct Write {
    file: Arc<FileBackend>,
    offset: u64,
    before: Vec<u8>,
    after: Vec<u8>,
}

/// What redb sees of it, while there is power.
#[derive(Debug)]
struct Attached {
    disk: SimulatedDisk,
    file: Arc<FileBackend>,
    power: u64,
}

impl SimulatedDisk {
    pub(crate) fn new(seed: u64, lies: bool) -> Self {
        Self(Arc::new(Mutex::new(State {
            dice: StdRng::seed_from_u64(seed),
            takes: QUICK,
            lies,
            power: 0,
            on: true,
            files: Vec::new(),
            writing: false,
            unsynced: Vec::new(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long a write takes from now on, in milliseconds.
    pub(crate) fn takes(&self, milliseconds: Range<u64>) {
        self.state().takes = milliseconds;
    }

    /// The machine's process is killed: nothing more is written.
    pub(crate) fn kill(&self) {
        let mut state = self.state();
        state.on = false;
        state.files.clear();
    }

    /// The machine's power is cut.
    pub(crate) fn cut_power(&self) {
        let mut state = self.state();
        state.on = false;
        if std::mem::take(&mut state.files).is_empty() {
            return;
        }
        let writes = std::mem::take(&mut state.unsynced);
        for write in writes.iter().rev() {
            write.file.write(write.offset, &write.before).unwrap();
        }
        for write in &writes {
            let sectors = write.after.len().div_ceil(SECTOR);
            let written = match state.dice.random_range(0..3) {
                0 => 0..0,
                1 => 0..sectors,
                _ => {
                    let first = state.dice.random_range(0..=sectors);
                    first..state.dice.random_range(first..=sectors)
                }
            };
            let (from, to) = (written.start * SECTOR, written.end * SECTOR);
            let part = &write.after[from.min(write.after.len())..to.min(write.after.len())];
            let at = write.offset + from as u64;
            write.file.write(at, part).unwrap();
        }
    }

    /// Another one takes its place, with nothing on it.
    pub(crate) fn replace(&self) {
        self.state().unsynced.clear();
    }

    async fn write_with(self, hand: Hand, power: u64) {
        loop {
            let pause = {
                let mut state = self.state();
                let takes = state.takes.clone();
                Duration::from_millis(state.dice.random_range(takes))
            };
            sleep(pause).await;
            let there = hand.write();
            let mut state = self.state();
            if state.power != power {
                return;
            }
            if !there {
                state.writing = false;
                return;
            }
        }
    }
}

impl Disk for SimulatedDisk {
    fn attach(&self, part: Part, file: FileBackend) -> Box<dyn StorageBackend> {
        let file = Arc::new(file);
        let mut state = self.state();
        if part == Part::Log {
            state.power += 1;
            (state.on, state.writing) = (true, false);
            state.files.clear();
        }
        // What the process before had written and not synced is in the system's cache.
        state.files.push(Arc::clone(&file));
        Box::new(Attached {
            disk: self.clone(),
            file,
            power: state.power,
        })
    }

    fn asked(&self, hand: Hand) {
        let mut state = self.state();
        // A node that is being killed may ask for more outside of its runtime.
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        if state.on && !state.writing {
            state.writing = true;
            runtime.spawn(self.clone().write_with(hand, state.power));
        }
    }
}

impl Attached {
    /// Fails once the power is gone.
    fn powered(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.state();
        match state.on && state.power == self.power {
            true => Ok(state),
            false => Err(io::Error::other("there is no power")),
        }
    }
}

impl StorageBackend for Attached {
    fn len(&self) -> io::Result<u64> {
        drop(self.powered()?);
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        drop(self.powered()?);
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        drop(self.powered()?);
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.powered()?;
        if !state.lies {
            let others = |write: &Write| !Arc::ptr_eq(&write.file, &self.file);
            state.unsynced.retain(others);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.powered()?;
        let mut before = vec![0; data.len()];
        self.file.read(offset, &mut before)?;
        self.file.write(offset, data)?;
        state.unsynced.push(Write {
            file: Arc::clone(&self.file),
            offset,
            before,
            after: data.to_vec(),
        });
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
}
