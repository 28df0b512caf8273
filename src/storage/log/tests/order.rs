//! Who sees what when, and how much is shared.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::disk::Faults;
use super::*;

#[test]
fn entries_can_be_read_at_once_and_one_sync_serves_all_that_wait() {
    let (_dir, path) = place();
    let faults = Arc::<Faults>::default();
    // Reading the file may have to wait for what is held here.
    let log = faults.open(&path, u64::MAX);
    wait(|done| log.append(entries(1, 0..1), done));
    let held = faults.hold();
    let before = log.syncs();
    let results: Vec<_> = (1..500)
        .map(|index| {
            let (done, result) = promise();
            log.append(vec![entry(1, index, 100)], done);
            result
        })
        .collect();
    assert_eq!(log.bounds().last, Some(id(1, 499)));
    assert_eq!(all(&log), entries(1, 0..500));
    for result in &results {
        assert!(result.try_recv().is_err(), "told before it is durable");
    }
    drop(held);
    for result in results {
        result.recv().unwrap().unwrap();
    }
    // One is under way when the others gather; growing the file takes more.
    let syncs = log.syncs() - before;
    assert!(syncs <= 6, "{syncs} for 499 appends");
}

#[test]
fn what_replaces_entries_that_are_on_their_way_is_what_everybody_reads() {
    let (_dir, path) = place();
    let faults = Arc::<Faults>::default();
    let log = faults.open(&path, u64::MAX);
    wait(|done| log.append(entries(1, 0..10), done));
    let held = faults.hold();
    log.append(entries(1, 10..20), nobody());
    log.truncate_after(Some(id(1, 14)), nobody());
    log.append(entries(2, 15..18), nobody());
    log.truncate_after(Some(id(1, 4)), nobody());
    let (done, result) = promise();
    log.append(entries(3, 5..12), done);
    let expected = [entries(1, 0..5), entries(3, 5..12)].concat();
    assert_eq!(all(&log), expected);
    drop(held);
    result.recv().unwrap().unwrap();
    assert_eq!(all(&log), expected);
    drop(log);
    let log = open(&path);
    assert_eq!(all(&log), expected);
    assert_eq!(log.bounds().last, Some(id(3, 11)));
}

#[test]
fn nobody_waits_behind_a_long_purge() {
    let (_dir, path) = place();
    let faults = Arc::<Faults>::default();
    let log = faults.open(&path, 0);
    wait(|done| log.append(entries(1, 0..40_000), done));
    let order = Arc::<Mutex<Vec<&str>>>::default();
    let note = |what| -> Done {
        let order = Arc::clone(&order);
        Box::new(move |_| order.lock().unwrap().push(what))
    };
    let held = faults.hold();
    log.purge(id(1, 39_998), note("purge"));
    log.append(entries(1, 40_000..40_001), note("append"));
    drop(held);
    log.close().unwrap();
    assert_eq!(*order.lock().unwrap(), ["append", "purge"]);
    let log = open(&path);
    assert_eq!(log.bounds().last_purged, Some(id(1, 39_998)));
    assert_eq!(all(&log), entries(1, 39_999..40_001));
}

#[test]
fn a_reader_never_sees_two_logs_in_one_run() {
    let (_dir, path) = place();
    let log = Arc::<Faults>::default().open(&path, 0);
    wait(|done| log.append(entries(1, 0..300), done));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    let run = log.read(0..u64::MAX, u64::MAX).unwrap();
                    for pair in run.windows(2) {
                        let (a, b) = (pair[0].log_id, pair[1].log_id);
                        assert_eq!(a.index + 1, b.index);
                        assert!(a.term <= b.term, "{a} before {b}");
                    }
                }
            });
        }
        for term in 2..150 {
            let purged = term - 2;
            log.purge(id(1, purged), nobody());
            let keep = 150 + (term * 7) % 60;
            log.truncate_after(Some(id(term - 1, keep - 1)), nobody());
            let rest = keep..keep + 150;
            wait(|done| log.append(entries(term, rest), done));
        }
        over.store(true, Ordering::SeqCst);
    });
}

#[test]
fn what_would_leave_a_gap_or_stand_on_others_is_refused_and_changes_nothing() {
    let (_dir, path) = place();
    let log = open(&path);
    wait(|done| log.append(entries(1, 0..3), done));
    let gap = [entries(1, 3..4), entries(1, 5..6)].concat();
    for wrong in [entries(1, 4..5), entries(1, 2..3), gap] {
        let (done, result) = promise();
        log.append(wrong, done);
        let error = result.recv().unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
    wait(|done| log.append(Vec::new(), done));
    assert_eq!(all(&log), entries(1, 0..3));
}

#[test]
fn after_closing_nothing_is_taken_and_all_that_was_asked_for_is_there() {
    let (_dir, path) = place();
    let log = open(&path);
    let (done, result) = promise();
    log.append(entries(1, 0..1000), done);
    log.save_committed(Some(id(1, 998)));
    log.close().unwrap();
    result.recv().unwrap().unwrap();
    log.close().unwrap();
    let (done, result) = promise();
    log.append(entries(1, 1000..1001), done);
    result.recv().unwrap().unwrap_err();
    assert!(matches!(log.set_meta("a", b"b"), Err(LogError::Closed)));
    let log = open(&path);
    assert_eq!(log.bounds().last, Some(id(1, 999)));
    assert_eq!(log.committed(), Some(id(1, 998)));
}

#[test]
fn the_last_handle_may_be_dropped_by_whom_the_writer_tells() {
    let (_dir, path) = place();
    let log = open(&path);
    let (told, end) = channel();
    let held = log.clone();
    log.append(
        entries(1, 0..1),
        Box::new(move |result| {
            let _last = held;
            told.send(result).unwrap();
        }),
    );
    drop(log);
    end.recv().unwrap().unwrap();
}

/// A record that was read kept a page of redb's, but not the transaction that had kept
/// the page there: the writer could free it meanwhile, which redb found out and refused,
/// and with that the log had failed for good.
#[test]
fn records_can_be_read_while_others_are_written() {
    let (_dir, path) = place();
    let log = open(&path);
    log.set_meta("node", &[0]).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    assert!(log.meta("node").unwrap().is_some());
                }
            });
        }
        let written = (1..400_u64).try_for_each(|n| log.set_meta("node", &n.to_le_bytes()));
        stop.store(true, Ordering::Relaxed);
        written.unwrap();
    });
}
