//! Nodes whose address differs from the membership's: moved nodes, copies, and nodes of another cluster.

use std::fs;
use std::path::Path;
use std::time::Duration;

use raft_key_value::error::Outcome;
use raft_key_value::{ClientError, ExampleClient, NodeId};
use reqwest::Method;
use serde_json::json;

use crate::harness::{
    ALL, CALM, CALM_BUT_QUICK, DEADLINE, Metrics, TestCluster, copy_directory, eventually, free_port, identity_of,
    others,
};

/// Makes a stopped node run on a copy of another directory from its next start.
fn run_on_copy(cluster: &TestCluster, id: NodeId, of: &Path) {
    let directory = cluster.node(id).directory();
    fs::remove_dir_all(&directory).unwrap();
    copy_directory(of, &directory);
}

async fn logs(cluster: &TestCluster, id: NodeId, parts: &[&str]) {
    cluster.logs(id, parts).await;
}

/// Starts a stopped node at another port, and returns its former address.
async fn start_elsewhere(cluster: &mut TestCluster, id: NodeId) -> String {
    let former = cluster.addr(id).to_owned();
    cluster.node_mut(id).addr = format!("127.0.0.1:{}", free_port());
    cluster.restart(id).await;
    former
}

/// Waits until nodes know the current addresses of members.
async fn addresses_are_known(cluster: &TestCluster, ids: &[NodeId], members: &[NodeId]) {
    for id in ids {
        let what = "the membership has all current addresses";
        let is_known = |metrics: &Metrics| {
            let membership = metrics.committed_membership_config.membership();
            let has =
                |member: &NodeId| membership.get_node(member).is_some_and(|node| node.addr == cluster.addr(*member));
            members.iter().all(has).then_some(())
        };
        cluster.metrics_say(*id, what, is_known).await;
    }
}

/// A member that was started at another address says so until a leader has committed it, and then serves there.
///
/// Method: stop all nodes, and start a follower alone at another port. Check its log and its responses, those to stale
/// reads as well. Then start the others: all nodes know the new address, and the node serves.
#[tokio::test]
async fn a_node_that_moved_says_so_until_that_is_committed() {
    let mut cluster = TestCluster::form("moved", &ALL, &[]).await;
    cluster.write(1, "k", "v").await;
    cluster.all_applied(&ALL).await;
    let leader = cluster.leader_of(&ALL).await;
    let follower = 1 + leader % 3;
    for id in ALL {
        let log = cluster.node(id).log();
        assert!(!log.contains("the membership has node"), "node {id} did not move: {log}");
        cluster.kill(id);
    }
    let former = start_elsewhere(&mut cluster, follower).await;
    let new_addr = cluster.addr(follower).to_owned();
    let named = [&format!("has node {follower} at {former}"), &format!("advertises {new_addr}"), "--advertise-addr"];
    cluster.logs(follower, &named).await;
    cluster.logs(follower, &["the new address is not committed yet", cluster.addr(leader)]).await;
    let write = r#"{"Set":{"key":"k","value":"moved"}}"#;
    for (path, body, code) in [("/write", write, "NoLeader"), ("/consistent_read", r#""k""#, "NoLeader")] {
        eventually(&format!("{path} says why there is no leader"), DEADLINE, async || {
            let answer = cluster.post(follower, path, body).await;
            let is_named = answer.status == 503 && named.iter().all(|part| answer.text().contains(part));
            if is_named { Ok(answer) } else { Err(answer.text()) }
        })
        .await
        .assert_error(503, code, "not_applied");
    }
    let answer = cluster.v1(follower, Method::GET, "/v1/kv/k?consistency=stale", &[], "").await;
    let message = answer.assert_rejected(503, "recovering")["message"].to_string();
    assert!(message.contains(&former), "{message}");

    for id in others(follower) {
        cluster.restart(id).await;
    }
    addresses_are_known(&cluster, &ALL, &ALL).await;
    cluster.logs(follower, &["INFO the membership has node", &new_addr, "which it advertises"]).await;
    cluster.write(follower, "k", "moved").await;
    cluster.value_is(&ALL, "k", "moved").await;
    let warnings = cluster.node(follower).log().matches("WARN the membership has node").count();
    assert_eq!(warnings, 1, "{}", cluster.node(follower).log());
    cluster.kill(follower);
    cluster.restart(follower).await;
    cluster.write(follower, "k", "restarted").await;
    let warnings = cluster.node(follower).log().matches("WARN the membership has node").count();
    assert_eq!(warnings, 1, "{}", cluster.node(follower).log());
}

/// Every kind of member moves: a learner, a follower, the leader, two of three at once, and the only node of a cluster.
///
/// Method: kill nodes, and start them at other ports. Each time all nodes learn the addresses, and entries reach every
/// node under the same leader, without a restart of the others.
#[tokio::test]
async fn every_kind_of_member_moves() {
    let mut cluster = TestCluster::form("movers", &ALL, CALM_BUT_QUICK).await;
    cluster.add_node(4).await;
    cluster.add_learner(1, 4).await;
    const NODES: [NodeId; 4] = [1, 2, 3, 4];
    let leader = cluster.leader_of(&ALL).await;
    for (round, moved) in [vec![4], vec![1 + leader % 3], vec![leader], ALL[..2].to_vec()].into_iter().enumerate() {
        for id in &moved {
            cluster.kill(*id);
        }
        for id in &moved {
            start_elsewhere(&mut cluster, *id).await;
        }
        addresses_are_known(&cluster, &NODES, &NODES).await;
        let value = format!("after round {round}");
        cluster.write(moved[0], "k", &value).await;
        cluster.value_is(&NODES, "k", &value).await;
    }
    cluster.membership_is(&NODES, &ALL, &[4]).await;
    cluster.assert_alive();

    let mut single = TestCluster::form("moves-alone", &[1], &[]).await;
    single.write(1, "k", "v").await;
    single.kill(1);
    start_elsewhere(&mut single, 1).await;
    addresses_are_known(&single, &[1], &[1]).await;
    single.value_is(&[1], "k", "v").await;
}

/// All members move at once if `--join` names their new addresses: they find one another there, elect a leader, and the
/// leader commits the addresses. Data and ids stay, and the nodes need the flag no more.
///
/// Method: stop all nodes, and start each at another port, with the new addresses of the others. Then write on each, and
/// restart all of them without the flag.
#[tokio::test]
async fn all_members_move_at_once() {
    let mut cluster = TestCluster::form("move-all", &ALL, CALM_BUT_QUICK).await;
    cluster.write(1, "k", "before").await;
    cluster.all_applied(&ALL).await;
    for id in ALL {
        assert_eq!(cluster.stop(id).await, Some(0));
        cluster.node_mut(id).addr = format!("127.0.0.1:{}", free_port());
    }
    let flag_of = |id: NodeId, cluster: &TestCluster| {
        let targets: Vec<&str> = others(id).into_iter().map(|other| cluster.addr(other)).collect();
        format!("--join={}", targets.join(","))
    };
    for id in ALL {
        let flag = flag_of(id, &cluster);
        cluster.node_mut(id).add_flag(&flag);
    }
    cluster.restart_all(&ALL).await;
    addresses_are_known(&cluster, &ALL, &ALL).await;
    cluster.membership_is(&ALL, &ALL, &[]).await;
    for id in ALL {
        let value = format!("by node {id}");
        cluster.write(id, "k", &value).await;
        cluster.value_is(&ALL, "k", &value).await;
    }
    for id in ALL {
        assert_eq!(cluster.stop(id).await, Some(0));
        let flag = flag_of(id, &cluster);
        cluster.node_mut(id).remove_flag(&flag);
    }
    cluster.restart_all(&ALL).await;
    cluster.leader_of(&ALL).await;
    cluster.write(1, "k", "after").await;
    cluster.value_is(&ALL, "k", "after").await;
}

/// A member moves on request, and the request says what it would do. Only the same data directory may move.
///
/// Method: through a proxy address that leads to the same process; to an address where another node runs; and to one
/// where the node has another directory.
#[tokio::test]
async fn only_the_same_directory_moves() {
    let mut cluster = TestCluster::form("moves-by-request", &ALL, CALM).await;
    let leader = cluster.leader_of(&ALL).await;
    let follower = others(leader)[0];
    let port = cluster.addr(follower).rsplit_once(':').unwrap().1.to_owned();
    let other_name = format!("localhost:{port}");
    let body = |id: NodeId, addr: &str| json!({"id": id, "address": addr}).to_string();
    let path = "/v1/cluster/members";
    let answer = cluster.v1(leader, Method::POST, &format!("{path}?dry_run"), &[], body(follower, &other_name)).await;
    assert_eq!(answer.done()["message"], format!("node {follower} would move to {other_name}"));
    addresses_are_known(&cluster, &ALL, &ALL).await;
    cluster.v1(leader, Method::POST, path, &[], body(follower, &other_name)).await.done();
    cluster.logs(follower, &["WARN the membership has node", &other_name]).await;
    // It reports the address that it advertises, and moves back.
    addresses_are_known(&cluster, &ALL, &ALL).await;
    cluster.write(follower, "k", "v").await;

    let taken = cluster.addr(leader).to_owned();
    let answer = cluster.v1(leader, Method::POST, path, &[], body(follower, &taken)).await;
    answer.assert_rejected(409, "conflict");
    let others_directory = TestCluster::start("moves-elsewhere", &[follower], CALM).await;
    let addr = others_directory.addr(follower).to_owned();
    let fields = cluster.v1(leader, Method::POST, path, &[], body(follower, &addr)).await;
    let message = fields.assert_rejected(409, "conflict")["message"].to_string();
    assert!(message.contains("different data directory"), "{message}");
    addresses_are_known(&cluster, &ALL, &ALL).await;
    cluster.kill(follower);
    let fields = cluster.v1(leader, Method::POST, path, &[], body(follower, &addr)).await;
    fields.assert_rejected(409, "conflict");
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
    // The leader does not commit the address of the copy.
    let refused = format!("another process runs as node {follower} at {member_addr}");
    logs(&copies, follower, &["the new address is not committed yet", &refused]).await;
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
