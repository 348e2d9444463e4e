//! Whether a node gets what the logs no longer have.

use std::collections::BTreeMap;

use serde_json::json;

use crate::harness::{TestCluster, Writers, index_of};

/// Snapshots and purges so often that a test of some hundred writes sees several.
const OFTEN: &[&str] = &["--snapshot-entries", "50", "--snapshot-keep-entries", "20"];

/// A follower that missed more than the leader's log keeps gets a snapshot, and
/// starts again from it.
///
/// Method: kill -9 a follower; write until the leader's log begins after what
/// the follower has; start the follower: its metrics must show a snapshot that
/// it never built, and its data must be equal. Then kill -9 it and start it
/// again: what it got must be on its own disk.
#[tokio::test]
async fn a_follower_far_behind_gets_a_snapshot() {
    let mut cluster = TestCluster::form("far-behind", &[1, 2, 3], OFTEN).await;
    let mut data = cluster.write_many(1, "early-", 30).await;
    let leader = cluster.leader_of(&[1, 2, 3]).await;
    let follower = 1 + leader % 3;
    let rest: Vec<u64> = [1, 2, 3].into_iter().filter(|id| *id != follower).collect();
    cluster.all_applied(&[1, 2, 3]).await;
    let follower_had = cluster.metrics(follower).await.last_log_index.unwrap();
    cluster.kill(follower);

    data.append(&mut cluster.write_many(rest[0], "missed-", 300).await);
    for id in &rest {
        // Whoever leads when the follower is back has no log for it any more.
        cluster
            .metrics_say(*id, "its log begins after what the follower has", |metrics| {
                (index_of(metrics.purged) > follower_had).then_some(())
            })
            .await;
    }
    cluster.restart(follower).await;
    cluster.leader_of(&[1, 2, 3]).await;
    cluster.all_applied(&[rest[0], follower]).await;
    let snapshot = index_of(cluster.metrics(follower).await.snapshot);
    assert!(snapshot > follower_had, "it had up to {follower_had}, and has a snapshot up to {snapshot}");
    for id in [1, 2, 3] {
        cluster.assert_holds(id, &data).await;
    }

    data.append(&mut cluster.write_many(follower, "after-", 10).await);
    cluster.all_applied(&[rest[0], follower]).await;
    cluster.kill(follower);
    cluster.restart(follower).await;
    cluster.leader_of(&[1, 2, 3]).await;
    cluster.all_applied(&[rest[0], follower]).await;
    assert!(index_of(cluster.metrics(follower).await.snapshot) >= snapshot, "the snapshot is on its own disk");
    cluster.assert_holds(follower, &data).await;
}

/// A learner that comes after the log was purged gets everything, values of every size too.
///
/// Method: a cluster of one with a purged log, and with values large enough
/// that the snapshot takes many frames; add a node; compare; let it vote, and
/// have it lead alone.
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
    let purged = cluster.metrics_say(1, "its log was purged", |metrics| metrics.purged).await;

    cluster.add_node(2).await;
    let answer = cluster.post(1, "/add-learner", json!([2, cluster.addr(2)]).to_string()).await;
    let log_index = answer.ok().unwrap()["log_id"]["index"].as_u64();
    // The answer itself says that the learner has the data.
    assert!(cluster.metrics(2).await.last_log_index >= log_index);
    cluster.membership_is(&[1, 2], &[1], &[2]).await;
    cluster.all_applied(&[1, 2]).await;
    assert!(index_of(cluster.metrics(2).await.snapshot) >= purged.index, "it can only have come by snapshot");
    cluster.assert_holds(2, &data).await;

    cluster.post(1, "/change-membership", "[2]").await.ok().unwrap();
    cluster.leader_of(&[2]).await;
    cluster.kill(1);
    cluster.write(2, "alone", "yes").await;
    cluster.assert_holds(2, &data).await;
}

/// A cluster comes back from snapshots and purged logs with every acknowledged write.
///
/// Method: write without pause, so that snapshots and purges are under way;
/// kill -9 all; start all; every acknowledged key is on every node.
#[tokio::test]
async fn a_restart_from_snapshot_and_log_loses_nothing() {
    let mut cluster = TestCluster::form("snapshot-restart", &[1, 2, 3], OFTEN).await;
    for round in 1..=2 {
        let writers = Writers::start(&cluster, &[1, 2, 3], 4, &format!("round-{round}"));
        writers.acknowledged_more(150).await;
        let purged = cluster.metrics_say(1, "its log was purged", |metrics| metrics.purged).await;
        for id in [1, 2, 3] {
            cluster.kill(id);
        }
        let history = writers.finish().await;
        for id in [1, 2, 3] {
            cluster.restart(id).await;
        }
        cluster.leader_of(&[1, 2, 3]).await;
        let metrics = cluster.metrics(1).await;
        assert!(metrics.purged >= Some(purged), "what was purged stays so: {metrics}");
        assert!(index_of(metrics.snapshot) >= purged.index, "a snapshot covers what was purged: {metrics}");
        for id in [1, 2, 3] {
            history.assert_on(&cluster, id).await;
        }
    }
}
