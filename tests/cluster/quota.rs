//! The quota: writes that add data beyond it are rejected, and everything else still works.

use raft_key_value::NodeId;
use raft_key_value::config::QUOTA_BYTES_LEAST;
use reqwest::Method;
use serde_json::json;

use crate::harness::{ALL, Answer, CALM, DEADLINE, TestCluster, eventually};

/// The least quota.
const QUOTA: &str = "--quota-bytes=1048576";
/// The longest value that is put; the quota holds a few of them.
const VALUE_BYTES: usize = 200 << 10;

/// Puts shorter and shorter values until not even an empty one fits; returns the number of keys and the last response.
async fn fill(cluster: &TestCluster, id: NodeId) -> (usize, Answer) {
    let (mut count, mut bytes, mut value_bytes) = (0, 0, VALUE_BYTES);
    loop {
        let answer = cluster.put(id, &format!("/v1/kv/full/{count}"), "v".repeat(value_bytes)).await;
        if answer.status == 507 {
            if value_bytes == 0 {
                return (count, answer);
            }
            value_bytes /= 2;
            continue;
        }
        answer.done();
        (count, bytes) = (count + 1, bytes + value_bytes);
        assert!(bytes <= QUOTA_BYTES_LEAST as usize, "{count} values of {bytes} bytes were accepted");
    }
}

/// Beyond the quota, every node rejects writes that add data with 507 `quota_exceeded`, and stores nothing of them.
/// Reads, deletes, touches, expiry, puts that do not lengthen a value, and membership changes still work. Deleting data
/// ends it, and a restart does not.
///
/// Method: fill a cluster with the least quota, and send each kind of request to each node. Restart a node, and ask
/// again. Then delete half of the data, and put a new key.
#[tokio::test]
async fn growth_is_rejected() {
    let mut cluster = TestCluster::form("quota", &ALL, &[CALM, &[QUOTA]].concat()).await;
    cluster.put(1, "/v1/kv/kept", "value").await.done();
    for id in ALL {
        cluster.put(1, &format!("/v1/kv/counter-{id}"), "100").await.done();
        cluster.put(1, &format!("/v1/kv/deleted-{id}"), "v").await.done();
    }
    cluster.put(1, "/v1/kv/lock?ttl=1h", "v").await.done();
    let (count, rejected) = fill(&cluster, 1).await;
    assert!(count > QUOTA_BYTES_LEAST as usize / VALUE_BYTES, "{count}");
    let message = rejected.assert_rejected(507, "quota_exceeded").to_string();
    assert!(message.contains("--quota-bytes"), "{message}");

    // Longer than what is left, in which a short key may fit.
    let long = "v".repeat(1000);
    for id in ALL {
        cluster.put(id, "/v1/kv/new", long.clone()).await.assert_rejected(507, "quota_exceeded");
        cluster.put(id, "/v1/kv/kept", long.clone()).await.assert_rejected(507, "quota_exceeded");
        let txn = json!({"success": [{"get": {"key": "kept"}}], "failure": [{"put": {"key": "new", "value": long}}]});
        cluster.txn(id, &txn).await.assert_rejected(507, "quota_exceeded");
        let set = cluster.post(id, "/write", json!({"Set": {"key": "new", "value": long}}).to_string()).await;
        set.assert_error(507, "QuotaExceeded", "not_applied");
        cluster.get(id, "/v1/kv/new").await.assert_rejected(404, "key_not_found");
        assert_eq!(cluster.get(id, "/v1/kv/kept").await.done()["value"], "value");

        let counter = format!("counter-{id}");
        cluster.put(id, &format!("/v1/kv/{counter}"), "101").await.done();
        let txn =
            json!({"success": [{"put": {"key": counter, "value": "9"}}, {"touch": {"key": "lock", "ttl": "2h"}}]});
        cluster.txn(id, &txn).await.done();
        cluster.put(id, &format!("/v1/kv/{counter}"), long.clone()).await.assert_rejected(507, "quota_exceeded");
        let deleted = cluster.delete(id, &format!("/v1/kv/deleted-{id}")).await.done();
        assert_eq!(deleted["deleted"], 1);
        cluster.v1(id, Method::POST, "/v1/kv/lock/touch?ttl=1h", &[], "").await.done();
    }
    cluster.change_membership(1, &[1, 2, 3]).await;

    // The count is that of the data, wherever it comes from.
    let leader = cluster.leader_of(&ALL).await;
    cluster.stop(leader).await;
    cluster.restart(leader).await;
    let leader = cluster.leader_of(&ALL).await;
    cluster.put(leader, "/v1/kv/new", long.clone()).await.assert_rejected(507, "quota_exceeded");

    cluster.v1(leader, Method::POST, "/v1/kv/lock/touch?ttl=1s", &[], "").await.done();
    eventually("the lock expires", DEADLINE, async || {
        let lock = cluster.get(leader, "/v1/kv/lock").await;
        if lock.status == 404 { Ok(()) } else { Err(lock.text()) }
    })
    .await;
    for index in 0..count / 2 {
        cluster.delete(leader, &format!("/v1/kv/full/{index}")).await.done();
    }
    cluster.put(leader, "/v1/kv/new", "v").await.done();
    cluster.assert_alive();
}
