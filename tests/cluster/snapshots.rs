//! A node that lacks entries which the logs no longer hold gets a snapshot.

use std::collections::BTreeMap;
use std::fs;

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use raft_key_value::store::{ExampleStore, LogSizes};
use raft_key_value::types::{Entry, LogId, Payload};
use raft_key_value::{NodeId, TypeConfig};
use reqwest::Method;
use serde_json::json;

use crate::harness::{
    CALM, CALM_BUT_QUICK, DEADLINE, Links, Metrics, OFTEN, TestCluster, TestNode, Writers, eventually, index_of,
    mib_of, others,
};

/// A follower that missed more than the leader's log keeps gets a snapshot, and can restart from it.
///
/// Method: kill -9 a follower, and write until the leader's log starts after the follower's last entry. Restart the
/// follower: its metrics must show a snapshot that it did not build, and its data must be equal. Then kill -9 and
/// restart it again: the snapshot must be on its own disk.
#[tokio::test]
async fn a_follower_far_behind_gets_a_snapshot() {
    let mut cluster = TestCluster::form("far-behind", &[1, 2, 3], OFTEN).await;
    let mut data = cluster.write_many(1, "early-", 30).await;
    let leader = cluster.leader_of(&[1, 2, 3]).await;
    let follower = 1 + leader % 3;
    let rest = others(follower);
    cluster.all_applied(&[1, 2, 3]).await;
    let follower_had = cluster.metrics(follower).await.last_log_index.unwrap();
    cluster.kill(follower);

    data.append(&mut cluster.write_many(rest[0], "missed-", 300).await);
    for id in &rest {
        // No node that may lead when the follower returns still has the entries it needs.
        cluster
            .metrics_say(*id, "a log that starts after the follower's last entry", |metrics| {
                (index_of(metrics.purged) > follower_had).then_some(())
            })
            .await;
    }
    cluster.restart(follower).await;
    cluster.leader_of(&[1, 2, 3]).await;
    cluster.all_applied(&[rest[0], follower]).await;
    let snapshot = index_of(cluster.metrics(follower).await.snapshot);
    assert!(snapshot > follower_had, "the follower had entry {follower_had}, and its snapshot ends at {snapshot}");
    for id in [1, 2, 3] {
        cluster.assert_holds(id, &data).await;
    }

    data.append(&mut cluster.write_many(follower, "after-", 10).await);
    cluster.all_applied(&[rest[0], follower]).await;
    cluster.kill(follower);
    cluster.restart(follower).await;
    cluster.leader_of(&[1, 2, 3]).await;
    cluster.all_applied(&[rest[0], follower]).await;
    assert!(
        index_of(cluster.metrics(follower).await.snapshot) >= snapshot,
        "the snapshot must be on the follower's own disk"
    );
    cluster.assert_holds(follower, &data).await;
}

/// A learner that joins after the log was purged gets everything, including values of every size.
///
/// Method: a cluster of one with a purged log, and with values so large that the snapshot has many frames. Add a node,
/// compare its data, make it a voter, and have it lead alone.
#[tokio::test]
async fn a_late_learner_gets_everything() {
    let mut cluster = TestCluster::form("late-learner", &[1], OFTEN).await;
    let mut data = BTreeMap::new();
    for (number, bytes) in [1, 0, 1 << 10, 128 << 10, 1 << 20].into_iter().enumerate() {
        let (key, value) = (format!("large-{number}"), "€".repeat(bytes / 3) + &"x".repeat(bytes % 3));
        assert_eq!(value.len(), bytes);
        cluster.write(1, &key, &value).await;
        data.insert(key, value);
    }
    data.append(&mut cluster.write_many(1, "small-", 200).await);
    let purged = cluster.metrics_say(1, "a purged log", |metrics| metrics.purged).await;

    cluster.add_node(2).await;
    let answer = cluster.post(1, "/add-learner", json!([2, cluster.addr(2)]).to_string()).await;
    let log_index = answer.ok().unwrap()["log_id"]["index"].as_u64();
    // The response itself promises that the learner has the data.
    assert!(cluster.metrics(2).await.last_log_index >= log_index);
    cluster.membership_is(&[1, 2], &[1], &[2]).await;
    cluster.all_applied(&[1, 2]).await;
    assert!(index_of(cluster.metrics(2).await.snapshot) >= purged.index, "the learner must have installed a snapshot");
    cluster.assert_holds(2, &data).await;

    cluster.change_membership(1, &[2]).await;
    cluster.leader_of(&[2]).await;
    cluster.kill(1);
    cluster.write(2, "alone", "yes").await;
    cluster.assert_holds(2, &data).await;
}

/// A cluster recovers every acknowledged write from snapshots and purged logs.
///
/// Method: write without pause, so that snapshots and purges are in progress. Kill -9 and restart all nodes. Every
/// acknowledged key is on every node.
#[tokio::test]
async fn a_restart_from_snapshot_and_log_loses_nothing() {
    let mut cluster = TestCluster::form("snapshot-restart", &[1, 2, 3], OFTEN).await;
    for round in 1..=2 {
        let writers = Writers::start(&cluster, &[1, 2, 3], 4, &format!("round-{round}"));
        writers.acknowledged_more(150).await;
        let purged = cluster.metrics_say(1, "a purged log", |metrics| metrics.purged).await;
        for id in [1, 2, 3] {
            cluster.kill(id);
        }
        let history = writers.finish().await;
        cluster.restart_all(&[1, 2, 3]).await;
        let metrics = cluster.metrics(1).await;
        assert!(metrics.purged >= Some(purged), "purged entries must not come back: {metrics}");
        assert!(index_of(metrics.snapshot) >= purged.index, "a snapshot must cover the purged entries: {metrics}");
        for id in [1, 2, 3] {
            history.assert_on(&cluster, id).await;
        }
    }
}

const MIB: u64 = 1 << 20;
/// With this flag a log file holds 1 MiB.
const SHORT: &str = "--snapshot-bytes=8388608";
const KEEP_LITTLE: &str = "--snapshot-keep-bytes=1048576";

/// The total length of a node's log files, in bytes.
fn log_bytes(node: &TestNode) -> u64 {
    // A file may be deleted at any time.
    let files = fs::read_dir(node.directory().join("log")).unwrap();
    files.map(|file| file.unwrap().metadata().map_or(0, |metadata| metadata.len())).sum()
}

/// Puts 1 MiB to one key `count` times, and calls `look` after each put.
async fn rewrite(cluster: &TestCluster, through: NodeId, name: &str, count: usize, mut look: impl FnMut()) {
    for number in 0..count {
        let key = format!("{name}-{number}");
        let headers = [("idempotency-key", key.as_str())];
        cluster.persistently(through, Method::PUT, "/v1/kv/rewritten", &headers, &mib_of(&key)).await.done();
        look();
    }
}

/// A key that is rewritten without end exhausts neither the disk nor the open files: bytes bound the log.
///
/// Method: a node with a limit of 256 open files, and with log files of 1 MiB. It may have 80 of those: 24 for
/// followers, 24 until the next snapshot, and the rest while that is written. Put 160 MiB to one key, and check the
/// files after each put. Then kill -9 and restart it.
#[tokio::test]
async fn the_log_of_one_large_key_is_bounded() {
    const COUNT: usize = 160;
    let mut cluster = TestCluster::form("large-key", &[1], &[&[SHORT], CALM].concat()).await;
    cluster.limit_files(&[1], 256).await;
    let (mut log_bytes_max, mut open_files_max) = (0, 0);
    rewrite(&cluster, 1, "one", COUNT, || {
        log_bytes_max = log_bytes_max.max(log_bytes(cluster.node(1)));
        open_files_max = open_files_max.max(cluster.node(1).open_files());
    })
    .await;
    eprintln!("large-key: the log had at most {log_bytes_max} bytes, and the node {open_files_max} open files");
    assert!(log_bytes_max < 90 * MIB, "{log_bytes_max} bytes of log");
    assert!(open_files_max < 128, "{open_files_max} open files");
    cluster.crash(&[1]).await;
    cluster.assert_mib(1, "rewritten", &format!("one-{}", COUNT - 1)).await;
    assert!(log_bytes(cluster.node(1)) < 90 * MIB);
}

/// A follower that missed more bytes than the logs keep gets a snapshot.
///
/// Method: kill -9 a follower, put large values to one key until the other logs start after its last entry, and restart
/// it.
#[tokio::test]
async fn a_follower_that_missed_many_bytes_gets_a_snapshot() {
    const COUNT: usize = 30;
    let mut cluster = TestCluster::form("missed-bytes", &[1, 2, 3], &[&[SHORT, KEEP_LITTLE], CALM].concat()).await;
    let leader = cluster.leader_of(&[1, 2, 3]).await;
    let follower = 1 + leader % 3;
    let rest = others(follower);
    cluster.all_applied(&[1, 2, 3]).await;
    let follower_had = cluster.metrics(follower).await.last_log_index.unwrap();
    cluster.kill(follower);
    rewrite(&cluster, rest[0], "missed", COUNT, || {}).await;
    for id in &rest {
        let is_purged = |metrics: &Metrics| (index_of(metrics.purged) > follower_had).then_some(());
        cluster.metrics_say(*id, "a log that starts after the follower's last entry", is_purged).await;
    }
    cluster.restart(follower).await;
    cluster.all_applied(&[rest[0], follower]).await;
    assert!(
        index_of(cluster.metrics(follower).await.snapshot) > follower_had,
        "the follower must have installed a snapshot"
    );
    cluster.assert_mib(follower, "rewritten", &format!("missed-{}", COUNT - 1)).await;
    rewrite(&cluster, follower, "after", 3, || {}).await;
    cluster.all_applied(&[1, 2, 3]).await;
}

/// A node that stopped between a snapshot and the purge after it purges when it is restarted.
///
/// Method: kill -9 a node that keeps its whole log, and start it with a setting that keeps little. Its log must shrink
/// without a write. Kill it twice meanwhile, before and after the purge: no data is lost.
#[tokio::test]
async fn an_interrupted_purge_is_completed() {
    const COUNT: usize = 24;
    let mut cluster = TestCluster::form("late-purge", &[1], &[&[SHORT], CALM].concat()).await;
    rewrite(&cluster, 1, "all", COUNT, || {}).await;
    let snapshot = cluster.metrics_say(1, "a snapshot", |metrics| metrics.snapshot).await;
    cluster.kill(1);
    let before = log_bytes(cluster.node(1));
    assert!(before > COUNT as u64 * MIB, "entries that {snapshot} covers must be kept: {before} bytes");
    cluster.node_mut(1).add_flag(KEEP_LITTLE);
    cluster.restart(1).await;
    cluster.kill(1);
    for _ in 0..2 {
        cluster.restart(1).await;
        eventually("the log is shorter", DEADLINE, async || match log_bytes(cluster.node(1)) {
            bytes if bytes < before / 2 + 4 * MIB => Ok(()),
            bytes => Err(bytes),
        })
        .await;
        cluster.kill(1);
    }
    cluster.restart(1).await;
    cluster.leader_of(&[1]).await;
    cluster.assert_mib(1, "rewritten", &format!("all-{}", COUNT - 1)).await;
}

/// Appends entries that no other node has to the log of a stopped node, until the log has this many files.
async fn lengthen_log(node: &TestNode, files: usize) {
    let sizes = LogSizes { chunk_bytes_max: 1024, ..LogSizes::default() };
    let store = ExampleStore::open_with(node.data_dir(), node.id, sizes).unwrap();
    let mut log = store.log.clone();
    let mut last = log.last().unwrap().unwrap();
    while store.log.files().unwrap().len() < files {
        last = LogId::new(last.leader_id, last.index + 1);
        let (tx, rx) = TypeConfig::oneshot();
        log.append([Entry { log_id: last, payload: Payload::Blank }], IOFlushed::signal(tx)).await.unwrap();
        rx.await.unwrap().unwrap();
    }
}

/// Waits until a node's log has fewer files than [`lengthen_log`] made.
async fn log_has_fewer_files(node: &TestNode) {
    eventually("the log has fewer files", DEADLINE, async || {
        let files = fs::read_dir(node.directory().join("log")).unwrap().count();
        if files < 80 { Ok(()) } else { Err(files) }
    })
    .await;
}

/// A node whose log has more files than allowed, as an older version may leave it, accepts writes as soon as it starts,
/// and then reduces its files.
///
/// Method: lengthen the log of a stopped node, start it, put, and wait until the log has fewer files.
#[tokio::test]
async fn a_log_with_many_files_is_reduced() {
    let mut cluster = TestCluster::form("many-files", &[1], CALM_BUT_QUICK).await;
    cluster.put(1, "/v1/kv/before", "v").await.done();
    assert_eq!(cluster.stop(1).await, Some(0));
    lengthen_log(cluster.node(1), 100).await;
    cluster.restart(1).await;
    cluster.leader_of(&[1]).await;
    cluster.put(1, "/v1/kv/after", "v").await.done();
    log_has_fewer_files(cluster.node(1)).await;
    let log = cluster.node(1).log();
    assert!(!log.contains("as many as it may have"), "{log}");
    cluster.crash(&[1]).await;
    for key in ["before", "after"] {
        assert_eq!(cluster.get(1, &format!("/v1/kv/{key}")).await.done()["value"], "v");
    }
}

/// Nodes whose logs have too many files of uncommitted entries keep working. No snapshot could reduce the files, and
/// the entries can only be committed if the logs accept more.
///
/// Method: lengthen the logs of two of three stopped nodes, which may have 256 open files, by the same entries. Start
/// the two, and put. Each logs the problem once.
#[tokio::test]
async fn too_many_files_of_uncommitted_entries_block_nothing() {
    const PAIR: [NodeId; 2] = [1, 2];
    let mut cluster = TestCluster::form("uncommitted-files", &[1, 2, 3], CALM_BUT_QUICK).await;
    cluster.put(1, "/v1/kv/before", "v").await.done();
    cluster.all_applied(&[1, 2, 3]).await;
    for id in [3, 2, 1] {
        cluster.kill(id);
    }
    for id in PAIR {
        cluster.node_mut(id).limit_files(256);
        lengthen_log(cluster.node(id), 140).await;
    }
    for id in PAIR {
        cluster.restart(id).await;
    }
    cluster.leader_of(&PAIR).await;
    for id in PAIR {
        cluster.persistently(id, Method::PUT, "/v1/kv/after", &[], "v").await.done();
    }
    for id in PAIR {
        log_has_fewer_files(cluster.node(id)).await;
        let log = cluster.node(id).log();
        assert_eq!(log.matches("files, above its limit").count(), 1, "{log}");
    }
    cluster.restart(3).await;
    cluster.all_applied(&[1, 2, 3]).await;
}

/// A follower that appends entries more slowly than they are written does not keep the leader from purging them: it
/// gets a snapshot instead.
///
/// Method: send a follower only 1 MiB per second, and put 60 MiB to one key. The leader's log must start after the
/// follower's last entry long before the follower has everything. Then make the link fast again.
#[tokio::test]
async fn a_slow_follower_does_not_keep_the_log_long() {
    const COUNT: usize = 60;
    let links = Links::default();
    let flags = [&[SHORT, KEEP_LITTLE], CALM].concat();
    let cluster = TestCluster::form_over(&links, "slow-follower", &[1, 2, 3], &flags).await;
    let leader = cluster.leader_of(&[1, 2, 3]).await;
    let follower = 1 + leader % 3;
    cluster.all_applied(&[1, 2, 3]).await;
    links.slow_down(follower);
    rewrite(&cluster, leader, "slow", COUNT, || {}).await;
    eventually("the log starts after the follower's last entry", DEADLINE, async || {
        let purged = index_of(cluster.metrics(leader).await.purged);
        let last = cluster.metrics(follower).await.last_log_index.unwrap();
        // The follower's last entry is the last one of an append or of an installed snapshot.
        if purged > last { Ok(()) } else { Err((purged, last)) }
    })
    .await;
    links.heal();
    cluster.all_applied(&[1, 2, 3]).await;
    cluster.assert_mib(follower, "rewritten", &format!("slow-{}", COUNT - 1)).await;
}
