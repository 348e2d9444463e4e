//! Does a node detect that its state differs from the leader's, or from what it computed itself?

use std::fs::File;

use futures_util::stream;
use openraft::storage::RaftStateMachine;
use raft_key_value::config::SELF_CHECK_ENTRIES;
use raft_key_value::operation::Operation;
use raft_key_value::store::snapshot::format::{load, meta_of, write as write_snapshot};
use raft_key_value::store::{ExampleStore, SelfCheck, StoreError};
use raft_key_value::types::Entry;
use tempfile::TempDir;

use crate::support::*;

/// A node in a cluster that has applied entries from the first one on, and its directory.
fn node(entries: &[Entry]) -> (TempDir, ExampleStore) {
    let directory = scratch();
    let store = open(directory.path());
    store.join_cluster(CLUSTER).unwrap();
    run(append(&store, entries.iter().cloned()));
    run(apply(&store, entries.iter().cloned()));
    (directory, store)
}

/// The first entries of a log, with writes of every kind.
fn entries(count: u64) -> Vec<Entry> {
    let of = |index| match index {
        0 => membership(1, 0, &[NODE]),
        _ if index % 500 < KINDS => varied(1, index),
        _ => blank(1, index),
    };
    (0..count).map(of).collect()
}

/// An entry with the leader's hash.
fn announcement(index: u64, own: SelfCheck) -> Entry {
    write(1, index, 0, None, Operation::SelfCheck { index: own.index, hash: own.hash })
}

/// Applies an entry as openraft does, and returns the reason if the node must exit.
fn failure_at(store: &ExampleStore, entry: Entry) -> Option<StoreError> {
    let result = run(store.state_machine.clone().apply(stream::iter([Ok((entry, None))])));
    let failure = store.state_machine.self_checks().take_failure();
    assert_eq!(result.is_err(), failure.is_some(), "{result:?}");
    failure
}

/// Nodes that applied the same entries record the same hash at the same index, even if one of them started from a
/// snapshot. They confirm the leader's hash.
///
/// Method: use a leader, a follower with the whole log, and one that gets the leader's snapshot from before the check.
/// Apply the leader's hash to all of them. Another follower, which gets a snapshot from after the check, has nothing to
/// compare.
#[test]
fn equal_nodes_confirm_each_other() {
    let due = SELF_CHECK_ENTRIES;
    let all = entries(due + 3);
    let (first, rest) = all.split_at(due as usize - 5);
    let (_leader_directory, leader) = node(first);
    run(build_snapshot(&leader));
    let (_late_directory, late) = node(&[]);
    run(install_snapshot(&leader, &late));
    let (_directory, follower) = node(first);
    for store in [&leader, &late, &follower] {
        assert_eq!(store.state_machine.self_checks().to_announce(), None);
        run(apply(store, rest.iter().cloned()));
    }
    run(build_snapshot(&leader));
    let (_later_directory, later) = node(&[]);
    run(install_snapshot(&leader, &later));

    let own = leader.state_machine.self_checks().to_announce().unwrap();
    assert_eq!((own.index, leader.state_machine.self_checks().at(due)), (due, Some(own)));
    let (before, hash) = leader.state_machine.read(|machine| (machine.revision, machine.hash()));
    for (store, expected) in [(&leader, Some(own)), (&late, Some(own)), (&follower, Some(own)), (&later, None)] {
        let failure = failure_at(store, announcement(due + 3, own));
        assert!(failure.is_none(), "{failure:?}");
        let checks = store.state_machine.self_checks();
        assert_eq!((checks.confirmed(), checks.to_announce()), (expected, None));
        let after = store.state_machine.read(|machine| (machine.revision, machine.hash()));
        assert_eq!(after, (before, hash), "it changes nothing");
    }
}

/// A node whose data differs from the leader's exits when it applies the leader's hash, and its error has both hashes.
///
/// Method: start a follower from an intact snapshot that has one additional write.
#[test]
fn a_node_with_other_data_stops() {
    let due = SELF_CHECK_ENTRIES;
    let all = entries(due + 1);
    let (first, rest) = all.split_at(due as usize - 5);
    let (_leader_directory, leader) = node(&all);
    let (directory, follower) = node(first);
    run(build_snapshot(&follower));
    drop(follower);
    let path = snapshot_path(directory.path(), due - 6);
    let (_, mut machine) = load(&path).unwrap();
    let last_applied = machine.last_applied;
    machine.apply(set(1, due, "other", "value"));
    machine.last_applied = last_applied;
    write_snapshot(&machine, &meta_of(&machine), &mut File::create(&path).unwrap()).unwrap();

    let follower = open(directory.path());
    run(apply(&follower, rest.iter().cloned()));
    let own = leader.state_machine.self_checks().to_announce().unwrap();
    let followers = follower.state_machine.self_checks().at(due).unwrap();
    assert_ne!(own.hash, followers.hash);
    let failure = failure_at(&follower, announcement(due + 1, own)).unwrap();
    let found = match &failure {
        StoreError::OtherState { index, own, leader_id, leaders } => (*index, *own, *leader_id, *leaders),
        other => panic!("{other}"),
    };
    assert_eq!(found, (due, followers.hash, NODE, own.hash));
    for part in [due.to_string(), own.hash.to_string(), followers.hash.to_string()] {
        assert!(failure.to_string().contains(&part), "{failure} should name {part}");
    }
}
