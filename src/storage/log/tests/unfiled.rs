//! What is in the journal and not in the file.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::disk::{Faults, copy_of};
use super::*;
use crate::exit::Exit;
use crate::format::entry::Vote;
use crate::layout;

/// A log that writes to its journal, with some of its entries in there.
fn log_with_journal(path: &Path) -> (Arc<Faults>, Log) {
    let faults = Arc::<Faults>::default();
    let log = faults.open(path, 0);
    let mut next = 0;
    // Its journal is made beside the first ones, and used from the first that are entered.
    let is_used =
        || std::fs::read(layout::journal(path)).is_ok_and(|bytes| bytes.iter().any(|b| *b != 0));
    while next < 40 || !is_used() {
        wait(|done| log.append(entries(1, next..next + 1), done));
        next += 1;
    }
    (faults, log)
}

/// What the log is whose process is killed now.
fn killed(path: &Path) -> (tempfile::TempDir, PathBuf) {
    let (dir, copy) = place();
    copy_of(path, &copy);
    (dir, copy)
}

#[test]
fn what_was_confirmed_is_there_after_a_kill_whatever_is_filed_and_whatever_is_not() {
    let (_dir, path) = place();
    let (_faults, log) = log_with_journal(&path);
    let first = log.bounds().last.unwrap().index + 1;
    // Some of the journal's segments.
    for index in first..first + 100 {
        wait(|done| log.append(vec![entry(1, index, 100)], done));
        log.save_committed(Some(id(1, index - 1)));
        if index % 5 == 0 {
            let (_dir, copy) = killed(&path);
            let survivor = open(&copy);
            assert_eq!(all(&survivor), entries(1, 0..index + 1));
            if index > first + 1 {
                assert!(survivor.committed() >= Some(id(1, index - 2)));
            }
            assert!(!layout::journal(&copy).exists());
            // It goes on, and is whole once more.
            wait(|done| survivor.append(entries(2, index + 1..index + 2), done));
            survivor.close().unwrap();
            assert_eq!(all(&open(&copy)).len() as u64, index + 2);
        }
    }
}

#[test]
fn what_was_taken_off_the_log_does_not_come_back_from_the_journal() {
    let (_dir, path) = place();
    let (_faults, log) = log_with_journal(&path);
    let last = log.bounds().last.unwrap().index;
    wait(|done| log.truncate_after(Some(id(1, last - 5)), done));
    let (_one, copy) = killed(&path);
    assert_eq!(all(&open(&copy)), entries(1, 0..last - 4));
    wait(|done| log.append(entries(2, last - 4..last), done));
    let expected = [entries(1, 0..last - 4), entries(2, last - 4..last)].concat();
    let (_two, copy) = killed(&path);
    assert_eq!(all(&open(&copy)), expected);
    wait(|done| log.purge(id(3, last + 100), done));
    let (_three, copy) = killed(&path);
    let survivor = open(&copy);
    assert_eq!(all(&survivor), []);
    assert_eq!(survivor.bounds().last, Some(id(3, last + 100)));
}

#[test]
fn a_log_that_was_closed_is_all_in_its_file() {
    let (_dir, path) = place();
    let (_faults, log) = log_with_journal(&path);
    let there = all(&log);
    let foreign = path.with_extension("kept");
    std::fs::copy(layout::journal(&path), &foreign).unwrap();
    log.close().unwrap();
    assert!(!layout::journal(&path).exists());
    // One that is left over or of another log is none.
    std::fs::copy(&foreign, layout::journal(&path)).unwrap();
    assert_eq!(all(&open(&path)), there);
    assert!(!layout::journal(&path).exists());
}

#[test]
fn a_log_whose_journal_is_missing_damaged_or_newer_does_not_open() {
    let (_dir, path) = place();
    let (_faults, log) = log_with_journal(&path);
    let old = killed(&path);
    let refused = |copy: &Path, word: &str| {
        let error = Log::open(copy, None).err().expect("it opened");
        let text = error.to_string();
        assert_eq!(error.exit(), Exit::Data, "{text}");
        for word in [word, "confirmed entries", "restore", "raft-log.redb"] {
            assert!(text.contains(word), "{word} is not in: {text}");
        }
    };
    let (_one, copy) = killed(&path);
    std::fs::remove_file(layout::journal(&copy)).unwrap();
    refused(&copy, "missing");
    let (_short, copy) = killed(&path);
    let whole = std::fs::read(layout::journal(&copy)).unwrap();
    std::fs::write(layout::journal(&copy), &whole[..whole.len() / 2]).unwrap();
    refused(&copy, "a part of");

    // Every record but the last is known to have been confirmed.
    let next = log.bounds().last.unwrap().index + 1;
    wait(|done| log.save_vote(vote(), done));
    wait(|done| log.append(entries(1, next..next + 1), done));
    wait(|done| log.append(entries(1, next + 1..next + 2), done));
    let (_two, copy) = killed(&path);
    let mut bytes = std::fs::read(layout::journal(&copy)).unwrap();
    let text = format!("key {next}");
    let at = bytes
        .windows(text.len())
        .position(|found| found == text.as_bytes());
    bytes[at.unwrap()] ^= 1;
    std::fs::write(layout::journal(&copy), bytes).unwrap();
    refused(&copy, "damaged");

    // One of another log.
    let (_other, foreign) = place();
    let (_foreign_faults, _foreign_log) = log_with_journal(&foreign);
    let (_four, copy) = killed(&path);
    std::fs::copy(layout::journal(&foreign), layout::journal(&copy)).unwrap();
    refused(&copy, "of another log");

    // Epochs later.
    for term in 2..6 {
        wait(|done| log.save_vote(Vote { term, ..vote() }, done));
        let next = log.bounds().last.unwrap().index + 1;
        wait(|done| log.append(entries(term, next..next + 1), done));
    }
    let (_three, copy) = old;
    std::fs::copy(layout::journal(&path), layout::journal(&copy)).unwrap();
    refused(&copy, "older than its journal");
}

#[test]
fn entries_that_are_too_large_for_the_journal_are_in_the_log_all_the_same() {
    let (_dir, path) = place();
    let (_faults, log) = log_with_journal(&path);
    let first = log.bounds().last.unwrap().index + 1;
    let sizes = [1, 70_000, 1, 60_000, 300_000, 1, 1, 65_400, 1];
    for (index, size) in (first..).zip(sizes) {
        wait(|done| log.append(vec![entry(1, index, size)], done));
        let (_dir, copy) = killed(&path);
        let there = all(&open(&copy));
        assert_eq!(there.last(), Some(&entry(1, index, size)));
        assert_eq!(there.len() as u64, index + 1);
    }
}

fn vote() -> Vote {
    Vote {
        term: 1,
        node_id: 1,
        committed: true,
    }
}

#[test]
fn while_the_file_has_no_room_what_has_room_in_the_journal_is_confirmed() {
    let (_dir, path) = place();
    let (faults, log) = log_with_journal(&path);
    *faults.only.lock().unwrap() = Some(Part::Log);
    faults.write.store(nix::libc::ENOSPC, Ordering::SeqCst);
    let mut next = log.bounds().last.unwrap().index + 1;
    // Until both segments are full.
    let held = loop {
        let (done, result) = promise();
        log.append(entries(1, next..next + 1), done);
        next += 1;
        let confirmed = match result.recv_timeout(Duration::from_millis(500)) {
            Err(_) if log.stalled().is_none() => result.recv().ok(),
            told => told.ok(),
        };
        match confirmed {
            Some(told) => told.unwrap(),
            None => break result,
        }
    };
    assert_eq!(all(&log), entries(1, 0..next));
    let (_copied, copy) = killed(&path);
    let there = all(&open(&copy));
    assert!(there.len() as u64 >= next - 1);
    assert_eq!(there, entries(1, 0..there.len() as u64));
    faults.write.store(0, Ordering::SeqCst);
    held.recv().unwrap().unwrap();
    wait(|done| log.append(entries(1, next..next + 1), done));
    log.close().unwrap();
    assert_eq!(all(&open(&path)), entries(1, 0..next + 1));
}

#[test]
fn a_log_that_is_closed_while_its_file_has_no_room_keeps_in_its_journal_what_it_confirmed() {
    let (_dir, path) = place();
    let (faults, log) = log_with_journal(&path);
    *faults.only.lock().unwrap() = Some(Part::Log);
    faults.write.store(nix::libc::ENOSPC, Ordering::SeqCst);
    let mut next = log.bounds().last.unwrap().index + 1;
    while log.stalled().is_none() {
        wait(|done| log.append(entries(1, next..next + 1), done));
        next += 1;
    }
    assert!(log.close().is_err());
    let log = open(&path);
    assert_eq!(all(&log), entries(1, 0..next));
}

#[test]
fn an_error_of_either_file_is_final_and_what_was_confirmed_is_there_afterwards() {
    for (part, number) in [
        (Part::Journal, nix::libc::EIO),
        // After a failed fsync even space that comes back helps nobody.
        (Part::Journal, nix::libc::ENOSPC),
        (Part::Log, nix::libc::EIO),
    ] {
        let (_dir, path) = place();
        let (faults, log) = log_with_journal(&path);
        *faults.only.lock().unwrap() = Some(part);
        faults.sync.store(number, Ordering::SeqCst);
        let first = log.bounds().last.unwrap().index + 1;
        let mut next = first;
        let error = loop {
            let (done, result) = promise();
            log.append(entries(1, next..next + 1), done);
            match result.recv().unwrap() {
                Ok(()) => next += 1,
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("raft-log.redb"), "{error}");
        assert!(part == Part::Log || next == first);
        let (done, result) = promise();
        log.save_vote(vote(), done);
        result.recv().unwrap().unwrap_err();
        assert!(log.close().is_err());
        faults.sync.store(0, Ordering::SeqCst);
        drop(log);
        let there = all(&open(&path));
        assert!(
            there.len() as u64 >= next,
            "{part:?}: {} of {next}",
            there.len()
        );
        assert_eq!(there, entries(1, 0..there.len() as u64));
    }
}

#[test]
fn a_journal_without_room_is_left_for_the_file() {
    let (_dir, path) = place();
    let (faults, log) = log_with_journal(&path);
    *faults.only.lock().unwrap() = Some(Part::Journal);
    faults.write.store(nix::libc::ENOSPC, Ordering::SeqCst);
    let next = log.bounds().last.unwrap().index + 1;
    for index in next..next + 20 {
        wait(|done| log.append(entries(1, index..index + 1), done));
        let (_copied, copy) = killed(&path);
        assert_eq!(all(&open(&copy)), entries(1, 0..index + 1));
    }
    faults.write.store(0, Ordering::SeqCst);
    wait(|done| log.append(entries(1, next + 20..next + 21), done));
    let (_copied, copy) = killed(&path);
    assert_eq!(all(&open(&copy)), entries(1, 0..next + 21));
}

/// A leader that others had answered before its own disk did told its file of a committed
/// entry that it did not hold, and a cut of its power left a log that could not be opened.
#[test]
fn what_is_said_to_be_committed_is_there() {
    let (_dir, path) = place();
    let log = open(&path);
    wait(|done| log.append(entries(1, 0..3), done));
    log.save_committed(Some(id(1, 9)));
    log.close().unwrap();
    assert_eq!(open(&path).committed(), None);
}
