//! What a node does that the others do not reach, and that does not reach them.

use serde_json::json;

use crate::harness::{Answer, CALM_BUT_QUICK, DEADLINE, Links, TestCluster, eventually};

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

/// A leader that is cut off changes no membership, and says so.
///
/// Method: cut both directions between the leader and the others, and at once ask it to take a
/// node in that it does reach, or to be the only voter; once it must know that it is alone, ask it
/// for both: it refuses. The others elect a leader and take a write, so whatever the old one has
/// begun can come to nothing: after healing the first answer is an error too, and the membership is
/// what it was, on all nodes. In the end the node is taken in by whoever leads.
#[tokio::test]
async fn a_leader_that_is_cut_off_changes_no_membership() {
    let links = Links::default();
    let mut cluster = TestCluster::form_over(&links, "cut-off-membership", &ALL, CALM_BUT_QUICK).await;
    cluster.add_node(NEW).await;
    for takes_in in [true, false] {
        cluster.write(1, "k", "v").await;
        let leader = cluster.leader_of(&ALL).await;
        let others: Vec<u64> = ALL.into_iter().filter(|id| *id != leader).collect();
        cluster.membership_is(&ALL, &ALL, &[]).await;
        let [taking_in, leaving_others_out] = changes(&cluster, leader);
        let first = if takes_in { &taking_in } else { &leaving_others_out };

        links.isolate(leader, &others);
        eventually("the leader hears nothing from the others", DEADLINE, async || {
            let answer = cluster.http().get(cluster.addr(leader), "/metrics").await.unwrap().ok()?;
            let silent_ms = answer["millis_since_quorum_ack"].as_u64();
            // Of a node that led no more nothing would be known, and it would be late.
            if silent_ms.is_none_or(|silent_ms| silent_ms > 600) { Ok(()) } else { Err(format!("{silent_ms:?}")) }
        })
        .await;
        let alone = async {
            refuses_all_changes_once_it_knows(&cluster, leader).await;
            let what = "the others elect a leader, and take a write";
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

/// A node that all others have left by dying changes no membership, and says so.
///
/// Method: kill -9 the other two of a leader, then of a follower. At once ask for a node to be
/// taken in; once a leader must know that it is alone, ask the survivor for that, and to be the only
/// voter: it does neither, and has the membership that it had. Start the others again: what was said
/// not to be done is not, and what was unknown is, or is not, on all nodes alike.
#[tokio::test]
async fn a_survivor_changes_no_membership() {
    for survivor_leads in [true, false] {
        let mut cluster = TestCluster::form("survivor-membership", &ALL, CALM_BUT_QUICK).await;
        cluster.add_node(NEW).await;
        cluster.write(1, "k", "v").await;
        cluster.membership_is(&ALL, &ALL, &[]).await;
        let leader = cluster.leader_of(&ALL).await;
        let survivor = if survivor_leads { leader } else { 1 + leader % 3 };
        let dead: Vec<u64> = ALL.into_iter().filter(|id| *id != survivor).collect();
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
            refuses_all_changes_once_it_knows(&cluster, survivor).await;
        } else {
            // It goes on asking the leader that it had.
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

/// A node that is started, and no member yet.
const NEW: u64 = 4;

/// The requests that take the new node in, and that make a node the only voter.
fn changes(cluster: &TestCluster, id: u64) -> [(&'static str, String); 2] {
    let new = json!([NEW, cluster.addr(NEW)]).to_string();
    [("/add-learner", new), ("/change-membership", json!([id]).to_string())]
}

/// Waits until a leader knows that it is alone, and asserts that it begins no change then.
async fn refuses_all_changes_once_it_knows(cluster: &TestCluster, id: u64) {
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
