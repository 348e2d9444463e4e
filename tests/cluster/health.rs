//! Do `/livez`, `/readyz` and `/health` say whether a node works and can serve requests?

use reqwest::Method;

use crate::harness::{ALL, Answer, CALM_BUT_QUICK, DEADLINE, TestCluster, eventually, others, send_signal};

async fn probe(cluster: &TestCluster, id: u64, path: &str) -> Answer {
    cluster.http().get(cluster.addr(id), path).await.unwrap_or_else(|error| panic!("{path} of node {id}: {error:?}"))
}

/// Waits until a node is ready, or until it is not because of this check. It is alive in either case.
async fn readiness_is(cluster: &TestCluster, id: u64, failed: Option<&str>) {
    eventually(&format!("the failed check of node {id} is {failed:?}"), DEADLINE, async || {
        let alive = probe(cluster, id, "/livez").await;
        assert_eq!((alive.status, alive.text().as_str()), (200, "ok\n"));
        let ready = probe(cluster, id, "/readyz").await;
        let (status, start) = match failed {
            None => (200, "ok\n".to_owned()),
            Some(name) => (503, format!("[-]{name}: ")),
        };
        if ready.status == status && ready.text().starts_with(&start) { Ok(()) } else { Err(ready.text()) }
    })
    .await;
}

/// A node is alive as long as it runs, and ready only while it belongs to a cluster with a leader. `/health` agrees
/// with `/readyz`.
///
/// Method: ask a node that belongs to no cluster; form a cluster; kill the leader and a follower, so that the other
/// follower still remembers its leader; start one of them again; and kill the follower of the new leader.
#[tokio::test]
async fn a_node_is_ready_while_it_has_a_leader() {
    let mut cluster = TestCluster::start("health", &ALL, CALM_BUT_QUICK).await;
    readiness_is(&cluster, 1, Some("leader")).await;
    let text = probe(&cluster, 1, "/readyz").await.text();
    assert!(text.contains("POST /init"), "it says what to do: {text}");
    let health = probe(&cluster, 1, "/health").await;
    assert_eq!((health.status, health.json()["health"].as_str()), (503, Some("false")));
    assert!(health.json()["reason"].as_str().unwrap().starts_with("leader: "), "{}", health.text());

    let members: Vec<_> = ALL.iter().map(|id| serde_json::json!([id, cluster.addr(*id)])).collect();
    cluster.post(1, "/init", serde_json::json!(members).to_string()).await.ok().unwrap();
    for id in ALL {
        readiness_is(&cluster, id, None).await;
        let health = probe(&cluster, id, "/health").await;
        assert_eq!((health.status, health.text().as_str()), (200, r#"{"health":"true"}"#));
        assert_eq!(health.header("cache-control"), "no-store");
        let verbose = probe(&cluster, id, "/readyz?verbose").await;
        assert_eq!(verbose.text(), "[+]running: ok\n[+]leader: ok\n[+]recovered: ok\n[+]disk: ok\nok\n");
        assert_eq!(probe(&cluster, id, "/livez?verbose").await.text(), "[+]raft: ok\nok\n");
        let head = cluster.http().request(Method::HEAD, cluster.addr(id), "/readyz", &[], "").await.unwrap();
        assert_eq!((head.status, head.text().as_str()), (200, ""));
    }

    let leader = cluster.leader_of(&ALL).await;
    let [follower, other] = others(leader)[..] else { panic!("there are three nodes") };
    cluster.kill(leader);
    cluster.kill(other);
    readiness_is(&cluster, follower, Some("leader")).await;
    cluster.restart(other).await;
    for id in [follower, other] {
        readiness_is(&cluster, id, None).await;
    }
    let leader = cluster.leader_of(&[follower, other]).await;
    cluster.kill(if leader == other { follower } else { other });
    readiness_is(&cluster, leader, Some("leader")).await;
}

/// While a leader that stops waits for another leader, it is alive and not ready.
///
/// Method: pause the followers, so that none can become the leader, send the leader SIGTERM, and ask it.
#[tokio::test]
async fn a_node_that_stops_is_not_ready() {
    let mut cluster = TestCluster::form("health-stop", &ALL, CALM_BUT_QUICK).await;
    let leader = cluster.leader_of(&ALL).await;
    readiness_is(&cluster, leader, None).await;
    for id in others(leader) {
        cluster.node(id).pause();
    }
    send_signal(cluster.node(leader).pid(), "TERM");
    readiness_is(&cluster, leader, Some("running")).await;
    for id in others(leader) {
        cluster.node(id).resume();
    }
    assert_eq!(cluster.node_mut(leader).ends().await, Some(0));
}
