//! Older copies of a data directory: which ones a node detects, and that it suspects no other directory.

use std::fs;
use std::path::Path;

use raft_key_value::NodeId;

use crate::harness::{ALL, CALM, CALM_BUT_QUICK, OFTEN, STEADY, TestCluster, Writers, copy_directory, others};

const SAID: &str = "lacks entries that this node acknowledged";

/// Replaces a stopped node's directory with an older copy.
fn put_back(cluster: &TestCluster, id: NodeId, copy: &Path) {
    let directory = cluster.node(id).directory();
    fs::remove_dir_all(&directory).unwrap();
    copy_directory(copy, &directory);
}

/// A follower on an older copy exits with code 65 and says why; the others continue, and it is replaced.
///
/// Method: stop a follower, copy its directory, and restart it. Write until it has acknowledged more, and stop it.
/// Restore the copy and start it, with or without writes at the same time, in the middle of the log or with a log that
/// was purged beyond the copy.
async fn is_detected(name: &'static str, under_writes: bool, flags: &[&'static str]) {
    let mut cluster = TestCluster::form(name, &ALL, &[STEADY, flags].concat()).await;
    cluster.write_many(1, "before-", 20).await;
    let leader = cluster.leader_of(&ALL).await;
    let (follower, third) = (others(leader)[0], others(leader)[1]);
    let copy = tempfile::tempdir().unwrap();
    cluster.all_applied(&[leader, follower]).await;
    cluster.kill(follower);
    copy_directory(&cluster.node(follower).directory(), copy.path());
    cluster.restart(follower).await;
    let data = cluster.write_many(leader, "k", 200).await;
    cluster.all_applied(&[leader, follower]).await;
    cluster.kill(follower);
    put_back(&cluster, follower, copy.path());
    let writers = under_writes.then(|| Writers::start(&cluster, &[leader, third], 3, "w"));
    if let Some(writers) = &writers {
        writers.acknowledged_more(20).await;
    }
    cluster.restart(follower).await;
    assert_eq!(cluster.node_mut(follower).ends().await, Some(65), "{}", cluster.node(follower).log());
    let log = cluster.node(follower).log();
    let error = log.lines().last().unwrap();
    assert!(error.starts_with("error: ") && error.contains(SAID), "{error}");
    for part in [&format!("node {leader}"), "empty directory", "members replace", "node-"] {
        assert!(error.contains(part), "{part} is not in {error}");
    }
    let history = match writers {
        Some(writers) => {
            writers.acknowledged_more(20).await;
            Some(writers.finish().await)
        }
        None => None,
    };
    cluster.assert_alive();
    assert_eq!(cluster.leader_of(&[leader, third]).await, leader, "the leader must not change");

    cluster.add_node(4).await;
    cluster.add_learner(leader, 4).await;
    cluster.change_membership(leader, &[leader, third, 4]).await;
    cluster.membership_is(&[4], &[leader, third, 4], &[]).await;
    cluster.assert_holds(4, &data).await;
    if let Some(history) = history {
        history.assert_on(&cluster, 4).await;
    }
}

#[tokio::test]
async fn a_follower_on_an_older_copy_says_so() {
    is_detected("older-idle", false, &[]).await;
}

#[tokio::test]
async fn a_follower_on_an_older_copy_says_so_under_writes() {
    is_detected("older-writes", true, &[]).await;
}

#[tokio::test]
async fn a_follower_on_a_copy_from_before_a_snapshot_says_so() {
    is_detected("older-purged", true, OFTEN).await;
}

/// A learner on an older copy says so too, although its vote never counted.
#[tokio::test]
async fn a_learner_on_an_older_copy_says_so() {
    let mut cluster = TestCluster::form("older-learner", &ALL, CALM).await;
    cluster.add_node(4).await;
    cluster.add_learner(1, 4).await;
    let leader = cluster.leader_of(&ALL).await;
    let copy = tempfile::tempdir().unwrap();
    cluster.kill(4);
    copy_directory(&cluster.node(4).directory(), copy.path());
    cluster.restart(4).await;
    cluster.write(leader, "k", "forgotten").await;
    cluster.all_applied(&[leader, 4]).await;
    cluster.kill(4);
    put_back(&cluster, 4, copy.path());
    cluster.restart(4).await;
    assert_eq!(cluster.node_mut(4).ends().await, Some(65), "{}", cluster.node(4).log());
    assert!(cluster.node(4).log().contains(SAID));
    cluster.write(leader, "k", "remembered").await;
    cluster.assert_alive();
}

/// A node that has everything it acknowledged is never taken for an older copy.
///
/// Method: under writes, with a log that is purged quickly, kill and restart a follower, at once and after the log was
/// purged. Kill and restart the leader, pause a follower, and add a learner. Kill all nodes, and start them in another
/// order. No node exits or suspects itself, and all hold every acknowledged write.
#[tokio::test]
async fn no_other_node_is_taken_for_an_older_copy() {
    let flags = [CALM_BUT_QUICK, OFTEN].concat();
    let mut cluster = TestCluster::form("no-older", &ALL, &flags).await;
    let writers = Writers::start(&cluster, &ALL, 3, "w");
    for _ in 0..2 {
        let leader = cluster.leader_of(&ALL).await;
        let follower = others(leader)[0];
        cluster.kill(follower);
        cluster.restart(follower).await;
        writers.acknowledged_more(20).await;
        cluster.kill(follower);
        writers.acknowledged_more(80).await;
        cluster.restart(follower).await;
        writers.acknowledged_more(20).await;
        cluster.node(follower).pause();
        writers.acknowledged_more(80).await;
        cluster.node(follower).resume();
        cluster.kill(leader);
        writers.acknowledged_more(20).await;
        cluster.restart(leader).await;
        writers.acknowledged_more(20).await;
    }
    cluster.add_node(4).await;
    let leader = cluster.leader_of(&ALL).await;
    cluster.add_learner(leader, 4).await;
    for id in [1, 2, 3, 4] {
        cluster.kill(id);
    }
    for id in [4, 3, 2, 1] {
        cluster.restart(id).await;
    }
    writers.acknowledged_more(50).await;
    let history = writers.finish().await;
    let leader = cluster.leader_of(&ALL).await;
    cluster.all_applied(&[leader, 1, 2, 3, 4]).await;
    cluster.assert_alive();
    for id in [1, 2, 3, 4] {
        history.assert_on(&cluster, id).await;
        let log = cluster.node(id).log();
        assert!(!log.contains("an older copy") && !log.contains(SAID), "node {id} was suspected:\n{log}");
    }
}

/// A node on a copy from before an election is not detected, and gets everything again.
///
/// The new leader knows only what the node acknowledged to that leader, as the documentation says.
///
/// Method: copy the leader's directory, write, and kill the leader. Once another node leads, start the former leader on
/// the copy.
#[tokio::test]
async fn a_copy_from_before_an_election_catches_up() {
    let mut cluster = TestCluster::form("older-leader", &ALL, CALM_BUT_QUICK).await;
    let leader = cluster.leader_of(&ALL).await;
    cluster.kill(leader);
    let copy = tempfile::tempdir().unwrap();
    copy_directory(&cluster.node(leader).directory(), copy.path());
    cluster.restart(leader).await;
    let data = cluster.write_many(leader, "k", 50).await;
    cluster.all_applied(&[leader, others(leader)[0], others(leader)[1]]).await;
    let second = cluster.leader_of(&ALL).await;
    cluster.kill(second);
    if second != leader {
        cluster.kill(leader);
        cluster.restart(second).await;
    }
    cluster.leader_of(&others(leader)).await;
    put_back(&cluster, leader, copy.path());
    cluster.restart(leader).await;
    cluster.write(leader, "after", "v").await;
    cluster.value_is(&ALL, "after", "v").await;
    for id in ALL {
        cluster.assert_holds(id, &data).await;
    }
    cluster.assert_alive();
}
