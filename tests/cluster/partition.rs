//! How a node behaves when it is cut off from the others.

use serde_json::json;

use crate::harness::{ALL, Answer, CALM_BUT_QUICK, DEADLINE, Links, TestCluster, eventually, others};

/// A leader that is cut off acknowledges no writes, serves no stale reads, and steps down.
///
/// Method: cut both directions between the leader and the others. The others must elect one of them and accept writes,
/// while the old leader returns 503 or 504 to every write and linearizable read. Heal the links: writes reported as not
/// applied are on no node, and all nodes have the same data.
#[tokio::test]
async fn a_leader_that_is_cut_off_steps_down() {
    let links = Links::default();
    let cluster = TestCluster::form_over(&links, "partition", &ALL, CALM_BUT_QUICK).await;
    cluster.write(1, "k", "old").await;
    let leader = cluster.leader_of(&ALL).await;
    let others = others(leader);

    links.isolate(leader, &others);
    let mut not_applied = Vec::new();
    let mut attempts = 0;
    eventually("the others elect a leader and accept a write", DEADLINE, async || {
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
            assert_eq!(
                cluster.read(id, key).await.as_deref(),
                Ok(""),
                "{key} on node {id} was reported as not applied"
            );
        }
    }
}

/// A leader that is cut off changes no membership, and says so.
///
/// Method: cut both directions between the leader and the others, and at once ask it to add a node that it can reach,
/// or to become the only voter. Once it must know that it is alone, request both changes: it rejects them. The others
/// elect a leader and accept a write, so any change that the old leader started fails. After healing, the first request
/// returns an error too, and the membership is unchanged on all nodes. In the end the new leader adds the node.
#[tokio::test]
async fn a_leader_that_is_cut_off_changes_no_membership() {
    let links = Links::default();
    let mut cluster = TestCluster::form_over(&links, "cut-off-membership", &ALL, CALM_BUT_QUICK).await;
    cluster.add_node(NEW).await;
    for takes_in in [true, false] {
        cluster.write(1, "k", "v").await;
        let leader = cluster.leader_of(&ALL).await;
        let others = others(leader);
        cluster.membership_is(&ALL, &ALL, &[]).await;
        let [taking_in, leaving_others_out] = changes(&cluster, leader);
        let first = if takes_in { &taking_in } else { &leaving_others_out };

        links.isolate(leader, &others);
        eventually("the leader has lost contact with the others", DEADLINE, async || {
            let answer = cluster.http().get(cluster.addr(leader), "/metrics").await.unwrap().ok()?;
            let silent_ms = answer["millis_since_quorum_ack"].as_u64();
            // A node that no longer leads reports `null`, and waiting longer would be pointless.
            if silent_ms.is_none_or(|silent_ms| silent_ms > 600) { Ok(()) } else { Err(format!("{silent_ms:?}")) }
        })
        .await;
        let alone = async {
            rejects_all_changes_once_it_knows(&cluster, leader).await;
            let what = "the others elect a leader and accept a write";
            let body = json!({"Set": {"key": "k", "value": "new"}}).to_string();
            eventually(what, DEADLINE, async || cluster.post(others[0], "/write", body.clone()).await.ok()).await;
            links.heal();
        };
        let (answer, ()) = tokio::join!(cluster.post(leader, first.0, first.1.clone()), alone);
        assert_not_done(&answer);
        cluster.write(leader, "k", "after").await;
        cluster.membership_is(&ALL, &ALL, &[]).await;
    }
    let leader = cluster.leader_of(&ALL).await;
    let [(path, body), _] = changes(&cluster, leader);
    cluster.post(leader, path, body).await.ok().unwrap();
    cluster.membership_is(&[1, 2, 3, NEW], &ALL, &[NEW]).await;
}

/// A node that outlives all others changes no membership, and says so.
///
/// Method: kill -9 the other two nodes of a leader, then of a follower. At once request to add a node. Once a leader
/// must know that it is alone, request that again, and to be the only voter: the survivor does neither, and keeps its
/// membership. Restart the others: a change reported as not applied is on no node, and an unknown one is on all nodes
/// or on none.
#[tokio::test]
async fn a_survivor_changes_no_membership() {
    for survivor_leads in [true, false] {
        let mut cluster = TestCluster::form("survivor-membership", &ALL, CALM_BUT_QUICK).await;
        cluster.add_node(NEW).await;
        cluster.write(1, "k", "v").await;
        cluster.membership_is(&ALL, &ALL, &[]).await;
        let leader = cluster.leader_of(&ALL).await;
        let survivor = if survivor_leads { leader } else { 1 + leader % 3 };
        let dead = others(survivor);
        let committed = cluster.metrics(survivor).await.committed_membership_config;
        for id in &dead {
            cluster.kill(*id);
        }
        let [(path, body), _] = changes(&cluster, survivor);
        let first = {
            let (addr, http) = (cluster.addr(survivor).to_owned(), cluster.http().clone());
            tokio::spawn(async move { http.post(&addr, path, body).await.unwrap() })
        };
        if survivor_leads {
            rejects_all_changes_once_it_knows(&cluster, survivor).await;
        } else {
            // It still sends requests to its former leader.
            for (path, body) in changes(&cluster, survivor) {
                assert_not_done(&cluster.post(survivor, path, body).await);
            }
        }
        assert_eq!(cluster.metrics(survivor).await.committed_membership_config, committed);
        for id in &dead {
            cluster.restart(*id).await;
        }
        let answer = first.await.unwrap();
        cluster.write(survivor, "k", "after").await;
        let may_be: &[&[u64]] = match (answer.status, answer.header("raft-outcome")) {
            (200, _) => &[&[NEW]],
            (503 | 504, "not_applied") => &[&[]],
            (503 | 504, "unknown") => &[&[], &[NEW]],
            _ => panic!("{} {}", answer.status, answer.text()),
        };
        let learners: Vec<u64> = {
            let leader = cluster.leader_of(&ALL).await;
            let metrics = cluster.metrics(leader).await;
            metrics.membership_config.membership().learner_ids().collect()
        };
        assert!(may_be.contains(&learners.as_slice()), "{learners:?} after {}", answer.text());
        cluster.membership_is(&ALL, &ALL, &learners).await;
    }
}

/// A running node that is not a member yet.
const NEW: u64 = 4;

/// The requests to add the new node, and to make a node the only voter.
fn changes(cluster: &TestCluster, id: u64) -> [(&'static str, String); 2] {
    let new = json!([NEW, cluster.addr(NEW)]).to_string();
    [("/add-learner", new), ("/change-membership", json!([id]).to_string())]
}

/// Waits until a leader knows that it is alone, and asserts that it then starts no change.
async fn rejects_all_changes_once_it_knows(cluster: &TestCluster, id: u64) {
    eventually(&format!("node {id} knows that it is alone"), DEADLINE, async || {
        let answer = cluster.post(id, "/consistent_read", r#""k""#).await;
        if answer.status == 503 && answer.error().0 == "NoLeader" { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    for (path, body) in changes(cluster, id) {
        cluster.post(id, path, body).await.assert_error(503, "NoLeader", "not_applied");
    }
}

fn assert_not_done(answer: &Answer) {
    let outcome = answer.header("raft-outcome");
    let is_error = matches!((answer.status, outcome), (503 | 504, "not_applied" | "unknown"));
    assert!(is_error, "{} {outcome:?} {}", answer.status, answer.text());
}
