//! How a node sheds load when it receives more requests than it can handle.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use raft_key_value::config::QUEUE_WAIT_MAX;
use serde_json::json;
use tokio::task::JoinSet;

use crate::harness::{DEADLINE, TestCluster, eventually};

/// An overloaded node rejects some of the newest requests, none of which it applies. It applies every other request
/// once, and still serves metrics and probes.
///
/// Method: one node, and so many clients that each waits for several hundred transactions of 128 writes, longer than a
/// node queues requests before it rejects some. They continue until fifty requests were rejected. Each applied
/// transaction adds one to the revision, so the revision counts them. Afterwards the node accepts every request again.
#[tokio::test]
async fn some_are_rejected_and_the_others_applied() {
    const CLIENTS: usize = 700;
    const REJECTED: u64 = 50;
    let cluster = Arc::new(TestCluster::form("crowd", &[1], &[]).await);
    let before = cluster.get(1, "/v1/kv?limit=1").await.revision();
    let rejected = Arc::new(AtomicU64::new(0));
    let done = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let (cluster, rejected, done) = (cluster.clone(), rejected.clone(), done.clone());
        let puts: Vec<_> =
            (0..128).map(|part| json!({"put": {"key": format!("{number}/{part}"), "value": "v"}})).collect();
        let txn = json!({ "success": puts });
        clients.spawn(async move {
            while rejected.load(Ordering::Relaxed) < REJECTED {
                let answer = cluster.txn(1, &txn).await;
                if answer.status == 200 {
                    done.fetch_add(1, Ordering::Relaxed);
                } else {
                    let error = answer.assert_rejected(503, "overloaded");
                    assert_eq!(error["outcome"], "not_applied", "{error}");
                    assert_eq!(answer.header("retry-after"), "1");
                    assert_eq!(answer.header("raft-node"), "1");
                    rejected.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    let what = format!("{REJECTED} requests are rejected, since the queue is longer than {QUEUE_WAIT_MAX:?}");
    eventually(&what, DEADLINE, async || {
        let rejected = rejected.load(Ordering::Relaxed);
        if rejected >= REJECTED { Ok(()) } else { Err(format!("{rejected} so far")) }
    })
    .await;
    cluster.metrics(1).await;
    for path in ["/livez", "/readyz", "/health", "/v1/metrics"] {
        let answer = cluster.http().get(cluster.addr(1), path).await.unwrap();
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    eventually("the metrics count what was shed", DEADLINE, async || {
        let text = cluster.get(1, "/v1/metrics").await.text();
        let shed = text.lines().find_map(|line| line.strip_prefix("rkv_http_requests_shed_total ")).unwrap();
        if (1..=rejected.load(Ordering::Relaxed)).contains(&shed.parse().unwrap()) { Ok(()) } else { Err(text) }
    })
    .await;

    let answer = cluster.put(1, "/v1/kv/after", "v").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.revision() - before, done.load(Ordering::Relaxed) + 1);
}
