//! Small file systems for root: what is full there is full for nobody else.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use nix::sys::statvfs::statvfs;

use super::fixture::{Scratch, scratch};

/// What all file systems here allocate at least.
const BLOCK: u64 = 4096;
/// Bytes from the end at which filling goes on block by block.
const MARGIN: u64 = 256 << 10;

/// A mounted file system of its own, gone when dropped.
pub(crate) struct Disk(Scratch);

/// Says why a test is left out, unless it must not be.
pub(crate) fn is_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        assert!(!super::all_tests_required(), "{test} needs root");
        println!("{test}: left out, only root can mount a file system");
    }
    root
}

impl Disk {
    /// One in memory.
    pub(crate) fn tmpfs(bytes: u64) -> Self {
        let size = format!("size={bytes},mode=0755");
        Self::mount(&["-t", "tmpfs", "-o", &size, "tmpfs"], scratch())
    }

    /// One with blocks, extents and a journal.
    pub(crate) fn ext4(bytes: u64) -> Self {
        let images = scratch();
        let image = images.join("image");
        File::create(&image).unwrap().set_len(bytes).unwrap();
        let mut mkfs = Command::new("mkfs.ext4");
        run(mkfs.args(["-q", "-m", "0"]).arg(&image));
        // The loop device keeps the image when its name is gone.
        Self::mount(&["-o", "loop", image.to_str().unwrap()], scratch())
    }

    fn mount(arguments: &[&str], dir: Scratch) -> Self {
        run(Command::new("mount").args(arguments).arg(&*dir));
        Self(dir)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Lets nobody write any more.
    pub(crate) fn make_read_only(&self) {
        let mut mount = Command::new("mount");
        run(mount.args(["-o", "remount,ro"]).arg(self.path()));
    }

    /// Bytes free for anybody.
    pub(crate) fn free(&self) -> u64 {
        let stat = statvfs(self.path()).unwrap();
        stat.blocks_available() * stat.fragment_size()
    }

    /// Takes so much away that `bytes` are left, or a few blocks fewer; gives
    /// back first what was taken before.
    pub(crate) fn leave(&self, bytes: u64) {
        self.free_up();
        let free = self.free();
        assert!(bytes <= free, "only {free} bytes are free");
        self.take_all_but(bytes);
        let free = self.free();
        assert!(free <= bytes, "{free} bytes are still free");
    }

    /// Leaves nothing, as another program may while a test runs.
    pub(crate) fn fill(&self) {
        self.take_all_but(0);
    }

    fn take_all_but(&self, bytes: u64) {
        let path = self.path().join("filler");
        let filler = File::options()
            .append(true)
            .create(true)
            .open(path)
            .unwrap();
        let (mut length, mut most) = (filler.metadata().unwrap().len(), u64::MAX);
        // Block by block towards the end: the file system takes some for itself.
        while self.free() > bytes && most >= BLOCK {
            let step = self.free().saturating_sub(bytes + MARGIN);
            let step = step.clamp(BLOCK, most.max(BLOCK));
            if !allocate(&filler, length, step) {
                most = step / 2;
            }
            length += step;
        }
    }

    /// Gives back what was taken.
    pub(crate) fn free_up(&self) {
        let _ = std::fs::remove_file(self.path().join("filler"));
    }
}

/// False when the disk is full.
fn allocate(file: &File, offset: u64, length: u64) -> bool {
    use nix::fcntl::{FallocateFlags, fallocate};
    let (offset, length) = (offset.try_into().unwrap(), length.try_into().unwrap());
    match fallocate(file, FallocateFlags::empty(), offset, length) {
        Ok(()) => true,
        Err(nix::Error::ENOSPC) => false,
        Err(error) => panic!("cannot fill the disk: {error}"),
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Also when a test fails while files are open.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}
