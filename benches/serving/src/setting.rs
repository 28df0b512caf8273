//! On what a run was made: figures without it say little.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::{Result, Runs};
use crate::server::Programs;

/// How long each measurement of the disk takes.
const DISK_TIME: Duration = Duration::from_secs(2);
/// What is written before each fdatasync, and where in turn.
const BLOCK: [u8; 4096] = [b'x'; 4096];
const BLOCKS: u64 = 1024;

/// The kind of file system that holds `dir`.
///
/// # Errors
/// When it is in memory, where a disk is to be measured.
pub(crate) fn file_system(dir: &Path) -> Result<String> {
    let dir = dir.canonicalize()?;
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    let holding = mounts.filter(|(mount, _)| dir.starts_with(mount));
    // The last of equals lies on top.
    let nearest = holding.max_by_key(|(mount, _)| mount.len());
    let (mount, kind) = nearest.ok_or("no file system is mounted")?;
    if ["tmpfs", "ramfs"].contains(&kind) {
        return Err(format!("{mount} is in memory, where nothing is durable; give --dir").into());
    }
    Ok(kind.to_owned())
}

/// How often a block of a file that is there already reaches the disk, each second.
pub(crate) fn fdatasync_rate(dir: &Path) -> Result<f64> {
    let path = dir.join("fdatasync");
    let file = File::create(&path)?;
    for block in 0..BLOCKS {
        file.write_all_at(&BLOCK, block * BLOCK.len() as u64)?;
    }
    file.sync_all()?;
    let (began, mut count) = (Instant::now(), 0);
    while began.elapsed() < DISK_TIME {
        file.write_all_at(&BLOCK, count % BLOCKS * BLOCK.len() as u64)?;
        file.sync_data()?;
        count += 1;
    }
    let rate = count as f64 / began.elapsed().as_secs_f64();
    std::fs::remove_file(path)?;
    Ok(rate)
}

/// One line about the machine and the programs.
pub(crate) fn describe(programs: &Programs, dir: &Path, disk: &Runs) -> Result<String> {
    let cores = std::thread::available_parallelism()?;
    let cpus = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("", |model| model.trim_start_matches([' ', '\t', ':']));
    let (least, most) = disk.spread();
    let etcd = match &programs.etcd {
        Some(etcd) => version(etcd)?,
        None => "no etcd".to_owned(),
    };
    Ok(format!(
        "{cores} cores ({model}), {}; {:.0} fdatasync of 4 KiB a second ({least:.0} to {most:.0}); {}; {etcd}",
        file_system(dir)?,
        disk.median(),
        version(&programs.node)?,
    ))
}

fn version(program: &Path) -> Result<String> {
    let output = Command::new(program).arg("--version").output()?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}
