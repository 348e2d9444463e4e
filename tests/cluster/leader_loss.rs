//! A leader whose process has ended is replaced without waiting for the election timeout, and no other leader is.

use raft_key_value::NodeId;

use crate::harness::{ALL, DEADLINE, Links, TestCluster, eventually, others};

/// Settings with which no election timeout expires while a test waits for something.
const NEVER: &[&str] =
    &["--heartbeat-interval-ms", "1000", "--election-timeout-min-ms", "59000", "--election-timeout-max-ms", "60000"];
const _: () = assert!(DEADLINE.as_millis() < 59_000);

/// Waits until a node has logged this many lines with these texts.
async fn logs(cluster: &TestCluster, id: NodeId, texts: &[&str], times: usize) {
    eventually(&format!("node {id} logs {texts:?} {times} times"), DEADLINE, async || {
        let log = cluster.node(id).log();
        let found = log.lines().filter(|line| texts.iter().all(|text| line.contains(text))).count();
        if found >= times { Ok(()) } else { Err(found) }
    })
    .await;
}

/// Asserts that all nodes follow this leader in this term, and that they accept writes.
async fn assert_led_by(cluster: &TestCluster, leader: NodeId, term: u64) {
    assert_eq!(cluster.leader_of(&ALL).await, leader);
    cluster.write(leader, "k", "after").await;
    cluster.value_is(&ALL, "k", "after").await;
    for id in ALL {
        assert_eq!(cluster.metrics(id).await.current_term, term, "on node {id}");
    }
}

/// After kill -9 of the leader, the others elect another one without waiting for the election timeout.
///
/// Method: with election timeouts that never expire, kill each leader during writes, and restart it. Each time the
/// others must have a leader and accept writes. The last write before each kill exists on all nodes afterwards.
#[tokio::test]
async fn a_killed_leader_is_replaced_at_once() {
    let mut cluster = TestCluster::form("loss-kill", &ALL, NEVER).await;
    for round in ["first", "second", "third"] {
        let leader = cluster.leader_of(&ALL).await;
        cluster.write(leader, round, "v").await;
        cluster.all_applied(&ALL).await;
        cluster.kill(leader);
        let rest = others(leader);
        let next = cluster.leader_of(&rest).await;
        for id in rest {
            cluster.write(id, &format!("{round} through node {id}"), "v").await;
        }
        assert_ne!(next, leader);
        cluster.restart(leader).await;
        cluster.leader_of(&ALL).await;
        cluster.value_is(&ALL, round, "v").await;
    }
}

/// A leader that is paused for less than the election timeout stays the leader.
///
/// Method: SIGSTOP the leader until a write through a follower has timed out, and SIGCONT.
#[tokio::test]
async fn a_paused_leader_stays() {
    let cluster = TestCluster::form("loss-pause", &ALL, NEVER).await;
    cluster.write(1, "k", "v").await;
    let leader = cluster.leader_of(&ALL).await;
    let term = cluster.metrics(leader).await.current_term;
    cluster.node(leader).pause();
    let answer = cluster.put(others(leader)[0], "/v1/kv/k", "lost").await;
    assert_eq!((answer.status, answer.header("raft-outcome")), (504, "unknown"), "{}", answer.text());
    cluster.node(leader).resume();
    assert_led_by(&cluster, leader, term).await;
}

/// A leader that can open neither files nor connections stays the leader, even for a follower to which it has lost its
/// connections.
///
/// Method: take all descriptors from the leader, and pause a follower until the leader has given up its connections to
/// it. The follower then finds them closed, and the leader's address accepting connections that it does not serve.
#[tokio::test]
async fn a_leader_out_of_descriptors_stays() {
    let cluster = TestCluster::form("loss-files", &ALL, NEVER).await;
    cluster.write(1, "k", "v").await;
    let leader = cluster.leader_of(&ALL).await;
    cluster.all_applied(&ALL).await;
    let term = cluster.metrics(leader).await.current_term;
    // A connection that the leader has accepted.
    cluster.put(leader, "/v1/kv/k", "before").await.done();
    let follower = others(leader)[0];
    cluster.node(leader).set_out_of_files(true);
    cluster.node(follower).pause();
    cluster.put(leader, "/v1/kv/k", "meanwhile").await.done();
    // The connections for appends and for heartbeats.
    let failed = format!("/raft-append to node {follower} ");
    logs(&cluster, leader, &[&failed, "Too many open files"], 2).await;
    cluster.node(follower).resume();
    logs(&cluster, follower, &["its address accepts new ones"], 1).await;
    cluster.node(leader).set_out_of_files(false);
    assert_led_by(&cluster, leader, term).await;
}

/// A follower that alone finds the leader gone, because of a firewall for example, does not depose it.
///
/// Method: close the leader's connections to one follower, and make the leader's address refuse new ones. The other
/// follower denies its vote.
#[tokio::test]
async fn a_leader_that_others_hear_stays() {
    let links = Links::default();
    let cluster = TestCluster::form_over(&links, "loss-alone", &ALL, NEVER).await;
    cluster.write(1, "k", "v").await;
    let leader = cluster.leader_of(&ALL).await;
    cluster.all_applied(&ALL).await;
    let term = cluster.metrics(leader).await.current_term;
    let [alone, other] = others(leader)[..] else { panic!("three nodes") };
    links.refuse(leader);
    links.close(leader, alone);
    logs(&cluster, alone, &[&format!("node {leader} has ended")], 1).await;
    logs(&cluster, alone, &["not standing for election"], 1).await;
    cluster.put(leader, "/v1/kv/k", "meanwhile").await.done();
    assert!(!cluster.node(other).log().contains("has ended"));
    links.heal();
    assert_led_by(&cluster, leader, term).await;
}
