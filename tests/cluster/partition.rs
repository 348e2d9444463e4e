//! What a node does that the others do not reach, and that does not reach them.

use serde_json::json;

use crate::harness::{CALM_BUT_QUICK, DEADLINE, Links, TestCluster, eventually};

const ALL: [u64; 3] = [1, 2, 3];

/// A leader that is cut off acknowledges nothing, reads nothing stale, and gives way.
///
/// Method: cut both directions between the leader and the others; the others must
/// elect one of them and take writes, while the old leader answers every write and
/// every linearizable read with 503 or 504; heal; what was said not to be applied is
/// nowhere, and all nodes hold the same.
#[tokio::test]
async fn a_leader_that_is_cut_off_gives_way() {
    let links = Links::default();
    let cluster = TestCluster::form_over(&links, "partition", &ALL, CALM_BUT_QUICK).await;
    cluster.write(1, "k", "old").await;
    let leader = cluster.leader_of(&ALL).await;
    let others: Vec<u64> = ALL.into_iter().filter(|id| *id != leader).collect();

    links.isolate(leader, &others);
    let mut not_applied = Vec::new();
    let mut attempts = 0;
    eventually("the others elect a leader, and take a write", DEADLINE, async || {
        attempts += 1;
        let key = format!("cut-off-{attempts}");
        let body = json!({"Set": {"key": key, "value": "v"}}).to_string();
        let answer = cluster.post(leader, "/write", body).await;
        assert!(matches!(answer.status, 503 | 504), "a leader without a majority wrote: {}", answer.text());
        if answer.header("raft-outcome") == "not_applied" {
            not_applied.push(key);
        }
        let body = json!({"Set": {"key": "k", "value": "new"}}).to_string();
        cluster.post(others[0], "/write", body).await.ok()
    })
    .await;
    // From now on "old" would be stale.
    let answer = cluster.post(leader, "/consistent_read", r#""k""#).await;
    assert!(matches!(answer.status, 503 | 504), "{} {}", answer.status, answer.text());
    assert_eq!(cluster.consistent_read(others[1], "k").await.as_deref(), Ok("new"));

    links.heal();
    let now = cluster.leader_of(&ALL).await;
    cluster.write(leader, "k", "after").await;
    cluster.all_applied(&[now, others[0], others[1], leader]).await;
    for id in ALL {
        assert_eq!(cluster.consistent_read(id, "k").await.as_deref(), Ok("after"), "on node {id}");
        for key in &not_applied {
            assert_eq!(cluster.read(id, key).await.as_deref(), Ok(""), "{key} on node {id}: it was said to be nothing");
        }
    }
}
