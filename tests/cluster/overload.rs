//! What a node does while more comes than it can do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use raft_key_value::config::LINE_WAIT_MAX;
use serde_json::json;
use tokio::task::JoinSet;

use crate::harness::{DEADLINE, TestCluster, eventually};

/// While more comes than a node can do, some of those who come last are refused and nothing of
/// theirs is done; all others are done once, and who looks after the node is answered.
///
/// Method: one node, and so many clients that each has to wait for several hundred transactions
/// of 128 writes, longer than a node lets anybody wait before it refuses some. They go on until
/// fifty were refused. Each transaction that is done adds one to the revision, so the revision
/// tells how many were. Afterwards the node takes everything again.
#[tokio::test]
async fn some_are_refused_and_the_others_done() {
    const CLIENTS: usize = 700;
    const REFUSED: u64 = 50;
    let cluster = Arc::new(TestCluster::form("crowd", &[1], &[]).await);
    let before = cluster.get(1, "/v1/kv?limit=1").await.revision();
    let refused = Arc::new(AtomicU64::new(0));
    let done = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let (cluster, refused, done) = (cluster.clone(), refused.clone(), done.clone());
        let puts: Vec<_> =
            (0..128).map(|part| json!({"put": {"key": format!("{number}/{part}"), "value": "v"}})).collect();
        let txn = json!({ "success": puts });
        clients.spawn(async move {
            while refused.load(Ordering::Relaxed) < REFUSED {
                let answer = cluster.txn(1, &txn).await;
                if answer.status == 200 {
                    done.fetch_add(1, Ordering::Relaxed);
                } else {
                    let error = answer.refused(503, "overloaded");
                    assert_eq!(error["outcome"], "not_applied", "{error}");
                    assert_eq!(answer.header("retry-after"), "1");
                    assert_eq!(answer.header("raft-node"), "1");
                    refused.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    let what = format!("{REFUSED} are refused, as all wait for more than {LINE_WAIT_MAX:?}");
    eventually(&what, DEADLINE, async || {
        let refused = refused.load(Ordering::Relaxed);
        if refused >= REFUSED { Ok(()) } else { Err(format!("{refused} so far")) }
    })
    .await;
    cluster.metrics(1).await;
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }

    let answer = cluster.put(1, "/v1/kv/after", "v").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.revision() - before, done.load(Ordering::Relaxed) + 1);
}
