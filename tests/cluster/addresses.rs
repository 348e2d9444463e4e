//! Nodes whose address differs from the membership's: moved nodes, copies, and nodes of another cluster.

use std::fs;
use std::path::Path;
use std::time::Duration;

use raft_key_value::error::Outcome;
use raft_key_value::{ClientError, ExampleClient, NodeId};
use reqwest::Method;

use crate::harness::{ALL, CALM, DEADLINE, TestCluster, copy_directory, eventually, free_port, identity_of};

/// Makes a stopped node run on a copy of another directory from its next start.
fn run_on_copy(cluster: &TestCluster, id: NodeId, of: &Path) {
    let directory = cluster.node(id).directory();
    fs::remove_dir_all(&directory).unwrap();
    copy_directory(of, &directory);
}

async fn logs(cluster: &TestCluster, id: NodeId, parts: &[&str]) {
    eventually(&format!("node {id} logs {parts:?}"), DEADLINE, async || {
        let log = cluster.node(id).log();
        let is_said = |line: &str| parts.iter().all(|part| line.contains(part));
        if log.lines().any(is_said) { Ok(()) } else { Err(log) }
    })
    .await;
}

/// A member that was started at another address logs that once, and names it as the reason why it cannot serve.
///
/// Method: stop a follower, and start it at another port. Check its log and its responses, and move it back.
#[tokio::test]
async fn a_node_that_moved_says_so() {
    let mut cluster = TestCluster::form("moved", &ALL, &[]).await;
    cluster.write(1, "k", "v").await;
    cluster.all_applied(&ALL).await;
    let leader = cluster.leader_of(&ALL).await;
    let follower = 1 + leader % 3;
    for id in ALL {
        let log = cluster.node(id).log();
        assert!(!log.contains("the membership has node"), "node {id} did not move: {log}");
    }
    let member_addr = cluster.addr(follower).to_owned();
    cluster.kill(follower);
    let new_addr = format!("127.0.0.1:{}", free_port());
    cluster.node_mut(follower).addr.clone_from(&new_addr);
    cluster.restart(follower).await;
    let named =
        [&format!("has node {follower} at {member_addr}"), &format!("advertises {new_addr}"), "--advertise-addr"];
    logs(&cluster, follower, &named).await;
    eventually("the node says why it has no leader", DEADLINE, async || {
        let answer = cluster.post(follower, "/write", r#"{"Set":{"key":"k","value":"moved"}}"#).await;
        let is_named = answer.status == 503 && named.iter().all(|part| answer.text().contains(part));
        if is_named { Ok(answer) } else { Err(answer.text()) }
    })
    .await
    .assert_error(503, "NoLeader", "not_applied");
    cluster.write(leader, "k", "without it").await;
    let warnings = cluster.node(follower).log().matches("WARN the membership has node").count();
    assert_eq!(warnings, 1, "{}", cluster.node(follower).log());

    cluster.kill(follower);
    cluster.node_mut(follower).addr = member_addr;
    cluster.restart(follower).await;
    cluster.write(follower, "k", "back").await;
    let warnings = cluster.node(follower).log().matches("WARN the membership has node").count();
    assert_eq!(warnings, 1, "{}", cluster.node(follower).log());
}

/// A second process on a copy of a node's directory says that it is one, and the cluster continues.
///
/// Method: copy a follower's directory, and start the copy at another address while the follower runs.
#[tokio::test]
async fn a_copy_that_runs_beside_its_node_says_so() {
    let mut cluster = TestCluster::form("original", &ALL, CALM).await;
    cluster.write(1, "k", "v").await;
    cluster.all_applied(&ALL).await;
    let leader = cluster.leader_of(&ALL).await;
    let follower = 1 + leader % 3;
    let mut copies = TestCluster::start("copy", &[follower], CALM).await;
    copies.kill(follower);
    run_on_copy(&copies, follower, &cluster.node(follower).directory());
    copies.restart(follower).await;
    let member_addr = cluster.addr(follower).to_owned();
    logs(&copies, follower, &[&format!("has node {follower} at {member_addr}"), "a copy of the data"]).await;
    let answer = copies.post(follower, "/write", r#"{"Set":{"key":"k","value":"copy"}}"#).await;
    let message = answer.assert_error(503, "NoLeader", "not_applied")["message"].to_string();
    assert!(message.contains(&member_addr), "{message}");
    cluster.write(follower, "k", "original").await;
    cluster.value_is(&ALL, "k", "original").await;
    assert_eq!(cluster.leader_of(&ALL).await, leader);
    cluster.assert_alive();
    copies.assert_alive();
}

/// The leader detects a copy that advertises the address of its original, and the copy learns of it too.
///
/// Method: the same with `--advertise-addr`. No node connects to the copy, so it requests votes while its original
/// responds to the leader. It gets none.
#[tokio::test]
async fn a_copy_that_advertises_the_same_address_is_detected() {
    let mut cluster = TestCluster::form("twin", &ALL, CALM).await;
    cluster.write(1, "k", "v").await;
    cluster.all_applied(&ALL).await;
    let leader = cluster.leader_of(&ALL).await;
    let follower = 1 + leader % 3;
    let member_addr: &'static str = cluster.addr(follower).to_owned().leak();
    let mut copies = TestCluster::start("twin-copy", &[follower], &["--advertise-addr", member_addr]).await;
    copies.kill(follower);
    run_on_copy(&copies, follower, &cluster.node(follower).directory());
    copies.restart(follower).await;
    let said = format!("two processes run as node {follower}");
    logs(&cluster, leader, &["rejected /raft-pre-vote", &said]).await;
    logs(&copies, follower, &["/raft-pre-vote", &said]).await;
    cluster.write(follower, "k", "original").await;
    cluster.value_is(&ALL, "k", "original").await;
    for id in ALL {
        let own = format!("rejected /raft-pre-vote from node {id} ");
        assert!(id == follower || !cluster.node(leader).log().contains(&own), "node {id} has no copy");
    }
    cluster.assert_alive();
    copies.assert_alive();
}

/// Two clusters that share an address say so, name each other, and do not mix data; nor does a client that knows both.
///
/// Method: run a node of another cluster at the address of a stopped follower. Check both logs, and the header of all
/// kinds of responses. Send requests that name the wrong cluster, and use a client with endpoints of both.
#[tokio::test]
async fn clusters_that_share_an_address_say_so() {
    let mut cluster = TestCluster::form("shared", &ALL, CALM).await;
    cluster.write(1, "k", "first cluster").await;
    let leader = cluster.leader_of(&ALL).await;
    let (second, taken) = (1 + leader % 3, 1 + (leader + 1) % 3);
    let mut other = TestCluster::form("sharing", &[taken], CALM).await;
    other.write(taken, "k", "second cluster").await;
    let ids = [identity_of(&cluster, leader).await, identity_of(&other, taken).await];
    let [first_id, other_id] = ids.map(|identity| identity.cluster_id.unwrap().to_string());
    other.kill(taken);
    cluster.kill(taken);
    run_on_copy(&cluster, taken, &other.node(taken).directory());
    cluster.restart(taken).await;

    logs(&cluster, leader, &[&format!("the address belongs to a node of cluster {other_id}")]).await;
    logs(&cluster, taken, &["rejected /raft-append", &format!("cluster {other_id}"), &format!("cluster {first_id}")])
        .await;
    cluster.write(leader, "k", "still the first").await;
    cluster.write(taken, "k", "still the second").await;

    for (id, cluster_id) in [(leader, &first_id), (second, &first_id), (taken, &other_id)] {
        for (method, path, body) in [
            (Method::GET, "/v1/kv/k", ""),
            (Method::GET, "/v1/kv/missing", ""),
            (Method::GET, "/v1/nothing", ""),
            (Method::PUT, "/v1/kv/k2", "v"),
            (Method::GET, "/metrics", ""),
            (Method::GET, "/nothing", ""),
            (Method::POST, "/write", "nothing"),
            (Method::POST, "/raft-vote", "nothing"),
            (Method::POST, "/consistent_read", r#""k""#),
        ] {
            let answer = cluster.http().request(method, cluster.addr(id), path, &[], body).await.unwrap();
            assert_eq!(answer.header("raft-cluster"), cluster_id, "{path} of node {id}: {}", answer.text());
        }
    }
    let header = [("raft-cluster", first_id.as_str())];
    let put = cluster.http().request(Method::PUT, cluster.addr(taken), "/v1/kv/k", &header, "mixed").await.unwrap();
    assert!(put.assert_rejected(421, "wrong_node")["message"].as_str().unwrap().contains(&other_id));
    let body = r#"{"Set":{"key":"k","value":"mixed"}}"#;
    let write = cluster.http().request(Method::POST, cluster.addr(taken), "/write", &header, body).await.unwrap();
    write.assert_error(421, "WrongNode", "not_applied");
    let put = cluster.http().request(Method::PUT, cluster.addr(leader), "/v1/kv/k", &header, "right").await.unwrap();
    put.done();
    // Ids are compared as numbers, and every given id counts.
    let (upper, short) = (first_id.to_ascii_uppercase(), first_id.trim_start_matches('0'));
    let long = format!("0{first_id}");
    let rows: [(&[&str], u16); 11] = [
        (&[&upper], 200),
        (&[short], 200),
        (&[&first_id, &upper], 200),
        (&[&first_id, &other_id], 421),
        (&[&other_id, &first_id], 421),
        (&[""], 400),
        (&["g"], 400),
        (&["+1"], 400),
        (&[&long], 400),
        (&["1, 1"], 400),
        (&[&first_id, "x"], 400),
    ];
    for (ids, status) in rows {
        let headers: Vec<_> = ids.iter().map(|id| ("raft-cluster", *id)).collect();
        for (method, path, body) in [(Method::PUT, "/v1/kv/k", "v"), (Method::POST, "/consistent_read", r#""k""#)] {
            let answer = cluster.http().request(method, cluster.addr(leader), path, &headers, body).await.unwrap();
            assert_eq!(answer.status, status, "{path} for {ids:?}: {}", answer.text());
            assert_eq!(answer.header("raft-cluster"), first_id, "{path} for {ids:?}");
        }
    }

    let client = ExampleClient::connect([cluster.addr(second), cluster.addr(taken)]).unwrap();
    let client = client.with_retry_deadline(Duration::from_secs(5));
    client.put("k", "by the client").await.unwrap();
    cluster.kill(second);
    // Read first, since the lost connection may leave the outcome of a write unknown.
    let error = client.get("k").await.unwrap_err();
    assert!(matches!(error, ClientError::OtherCluster { .. }), "{error}");
    let error = client.put("k", "mixed").await.unwrap_err();
    assert!(matches!(error, ClientError::OtherCluster { .. }), "{error}");
    assert_eq!(error.outcome(), Outcome::NotApplied);
    assert!(error.to_string().contains(&first_id) && error.to_string().contains(&other_id), "{error}");
    assert_eq!(cluster.read(taken, "k").await.as_deref(), Ok("still the second"));
}
