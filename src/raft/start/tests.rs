//! What a start refuses, and what it takes.

#![allow(clippy::unwrap_used)]
use super::*;

fn id(term: u64, index: u64) -> LogId {
    LogId {
        term,
        node_id: 1,
        index,
    }
}

fn checked(
    applied: Option<LogId>,
    last_purged: Option<LogId>,
    last: Option<LogId>,
    at_applied: Option<LogId>,
) -> Result<(), StartError> {
    let applied = Applied {
        last_applied: applied,
        ..Applied::default()
    };
    check(&Pair {
        backend: "sqlite",
        applied: &applied,
        bounds: Bounds { last_purged, last },
        at_applied,
        installing: None,
        log: Path::new("raft-log.redb"),
    })
}

#[test]
fn a_log_that_reaches_from_before_to_behind_the_state_machine_fits() {
    let fits = |applied, purged, last, at| {
        checked(applied, purged, last, at).unwrap();
    };
    fits(None, None, None, None);
    fits(None, None, Some(id(1, 9)), None);
    fits(Some(id(1, 9)), None, Some(id(1, 9)), Some(id(1, 9)));
    fits(Some(id(1, 5)), Some(id(1, 5)), Some(id(1, 9)), None);
    fits(
        Some(id(1, 5)),
        Some(id(1, 2)),
        Some(id(2, 9)),
        Some(id(1, 5)),
    );
}

#[test]
fn corruption_is_told_with_both_positions() {
    let says = |result: Result<(), StartError>, parts: &[&str]| {
        let error = result.unwrap_err();
        assert_eq!(error.exit(), Exit::Data);
        let text = error.to_string();
        assert!(text.starts_with("State machine corruption detected: "));
        for part in parts {
            assert!(text.contains(part), "{text}");
        }
    };
    let beyond = checked(Some(id(1, 9)), None, Some(id(1, 5)), None);
    says(beyond, &["term=1, index=9", "ends at term=1, index=5"]);
    let empty = checked(Some(id(1, 9)), None, None, None);
    says(empty, &["term=1, index=9", "ends at nothing"]);
    let before = checked(Some(id(1, 2)), Some(id(1, 5)), Some(id(1, 9)), None);
    says(
        before,
        &[
            "term=1, index=2",
            "purged up to term=1, index=5",
            "aspen-migrate",
        ],
    );
    let nothing = checked(None, Some(id(1, 5)), Some(id(1, 9)), None);
    says(nothing, &["applied up to nothing", "term=1, index=5"]);
    let other = checked(Some(id(1, 5)), None, Some(id(2, 9)), Some(id(2, 5)));
    says(
        other,
        &["has applied term=1, index=5", "holds term=2, index=5"],
    );
}

#[test]
fn a_log_that_ends_before_the_snapshot_that_was_just_installed_fits() {
    let installed = |installing| {
        check(&Pair {
            backend: "sqlite",
            applied: &Applied {
                last_applied: Some(id(2, 9)),
                ..Applied::default()
            },
            bounds: Bounds {
                last_purged: None,
                last: Some(id(1, 5)),
            },
            at_applied: None,
            installing,
            log: Path::new("raft-log.redb"),
        })
    };
    installed(Some(id(2, 9))).unwrap();
    assert!(installed(Some(id(2, 8))).is_err());
    assert!(installed(None).is_err());
}

#[test]
fn nodes_with_the_same_members_agree_on_the_cluster_id_and_lone_nodes_do_not() {
    let two = BTreeMap::from([(1, "a:1".to_owned()), (2, "b:1".to_owned())]);
    assert_eq!(cluster_id(&two), cluster_id(&two.clone()));
    let other = BTreeMap::from([(1, "a:1".to_owned()), (3, "b:1".to_owned())]);
    assert_ne!(cluster_id(&two), cluster_id(&other));
    let one = BTreeMap::from([(1, "a:1".to_owned())]);
    assert_ne!(cluster_id(&one), cluster_id(&one));
}

#[test]
fn data_of_another_node_is_refused_with_both_ids() {
    let identity = Identity {
        node_id: 2,
        cluster_id: "c".into(),
        provisional: false,
    };
    let path = Path::new("raft-log.redb");
    assert!(check_identity(Some(&identity), 2, path).is_ok());
    assert!(check_identity(None, 2, path).is_ok());
    let error = check_identity(Some(&identity), 1, path).unwrap_err();
    assert_eq!(error.exit(), Exit::Config);
    let text = error.to_string();
    assert!(
        text.contains("node.id is 1") && text.contains("belongs to node 2"),
        "{text}"
    );
}

/// openraft refused the first of these with words of its own, as if it were a bug of the
/// node; six voters were formed.
#[test]
fn a_cluster_is_formed_by_its_members_and_by_five_at_most() {
    let members = |ids: std::ops::RangeInclusive<u64>| -> BTreeMap<_, _> {
        ids.map(|id| (id, format!("10.0.0.{id}:7000"))).collect()
    };
    assert!(check_initial(&members(1..=5), 5).is_ok());
    let missing = check_initial(&members(1..=2), 3).unwrap_err();
    assert!(missing.to_string().contains("the nodes 1, 2;"), "{missing}");
    let many = check_initial(&members(1..=6), 1).unwrap_err();
    assert!(many.to_string().contains("names 6 nodes"), "{many}");
    for error in [missing, many] {
        assert_eq!(error.exit(), Exit::Config);
    }
}
