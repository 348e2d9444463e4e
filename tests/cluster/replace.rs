//! Lost disks: a member that returns with an empty directory, and its replacement.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use openraft::raft::{AppendEntriesRequest, VoteRequest};
use openraft::vote::RaftLeaderId;
use raft_key_value::network::peer::PeerIdentity;
use raft_key_value::types::Vote;
use raft_key_value::{NodeId, TypeConfig};
use reqwest::Method;
use serde_json::json;

use crate::harness::{ALL, CALM, DEADLINE, TestCluster, Writers, envelope, eventually, identity_of, others};

/// Restarts nodes on empty directories, as if they had new disks.
async fn wipe(cluster: &mut TestCluster, ids: &[NodeId]) {
    for id in ids {
        cluster.kill(*id);
        fs::remove_dir_all(cluster.node(*id).directory()).unwrap();
    }
    for id in ids {
        cluster.restart(*id).await;
    }
}

/// Waits until a node knows that its id belongs to a member with another directory.
async fn knows_that_it_lost_its_data(cluster: &TestCluster, wiped: NodeId, before: &PeerIdentity) {
    let found = eventually(&format!("node {wiped} knows that it lost its data"), DEADLINE, async || {
        let identity = identity_of(cluster, wiped).await;
        if identity.former_cluster_id.is_some() { Ok(identity) } else { Err(identity) }
    })
    .await;
    assert_eq!((found.former_cluster_id, found.cluster_id), (before.cluster_id, None), "{found:?}");
    assert_ne!(found.incarnation, before.incarnation);
}

/// Asserts that a wiped node founds no cluster, serves no request from its empty state, and says what to do.
async fn assert_rejects_all(cluster: &TestCluster, wiped: NodeId) {
    let says_what_to_do = |message: &serde_json::Value| {
        let message = message.as_str().unwrap();
        for part in ["--id", "--data-dir", &format!("members replace {wiped} "), &format!("node {wiped}")] {
            assert!(message.contains(part), "{part} is not in {message:?}");
        }
    };
    for body in [String::new(), "{}".to_owned(), json!([[wiped, cluster.addr(wiped)]]).to_string()] {
        let answer = cluster.post(wiped, "/init", body).await;
        says_what_to_do(&answer.assert_error(409, "Conflict", "not_applied")["message"]);
    }
    for (path, body) in [
        ("/write", r#"{"Set":{"key":"k","value":"lost"}}"#),
        ("/read", r#""k""#),
        ("/consistent_read", r#""k""#),
        ("/add-learner", r#"[9,"127.0.0.1:1"]"#),
        ("/change-membership", "[1]"),
    ] {
        let answer = cluster.post(wiped, path, body).await;
        says_what_to_do(&answer.assert_error(503, "NotMember", "not_applied")["message"]);
        assert_eq!(answer.header("retry-after"), "1", "{path}");
    }
    for (method, path, body) in [
        (Method::PUT, "/v1/kv/k", "lost"),
        (Method::DELETE, "/v1/kv/k", ""),
        (Method::GET, "/v1/kv/k", ""),
        (Method::GET, "/v1/kv/k?consistency=stale", ""),
        (Method::GET, "/v1/kv", ""),
        (Method::GET, "/v1/kv?consistency=stale", ""),
        (Method::DELETE, "/v1/kv?all", ""),
        (Method::GET, "/v1/watch", ""),
        (Method::GET, "/v1/watch?initial&consistency=stale", ""),
        (Method::POST, "/v1/txn", r#"{"success":[{"get":{"key":"k"}}]}"#),
    ] {
        let what = format!("{method} {path}");
        let answer = cluster.http().request(method, cluster.addr(wiped), path, &[], body).await.expect(&what);
        says_what_to_do(&answer.assert_rejected(503, "not_member")["message"]);
    }
    let metrics = cluster.metrics(wiped).await;
    assert_eq!((metrics.last_log_index, metrics.current_leader, metrics.current_term), (None, None, 0), "{metrics}");
    assert_eq!(metrics.membership_config.voter_ids().count(), 0, "{metrics}");
}

/// Asserts that a wiped node rejects RPCs addressed to the node it was before.
async fn assert_rejects_former_peers(cluster: &TestCluster, from: NodeId, before: &PeerIdentity) {
    let vote = |committed| Vote { leader_id: RaftLeaderId::new(99, from), committed };
    let append = AppendEntriesRequest::<TypeConfig> {
        vote: vote(true),
        prev_log_id: None,
        entries: Vec::new(),
        leader_commit: None,
    };
    let request = VoteRequest::<TypeConfig>::new(vote(false), None);
    let cluster_id = before.cluster_id.unwrap();
    for (path, message) in [
        ("/raft-append", envelope(from, before, cluster_id, &append)),
        ("/raft-vote", envelope(from, before, cluster_id, &request)),
        ("/raft-pre-vote", envelope(from, before, cluster_id, &request)),
    ] {
        eprintln!("{path} to the wiped node {}", before.node_id);
        cluster.post(before.node_id, path, message).await.assert_error(421, "WrongNode", "not_applied");
    }
}

/// Writes through a node without a majority until it rejects a write at once; no attempt may succeed.
async fn assert_accepts_no_writes(cluster: &TestCluster, id: NodeId) {
    eventually(&format!("node {id} rejects a write at once"), DEADLINE, async || {
        let sent = Instant::now();
        let answer = cluster.post(id, "/write", r#"{"Set":{"key":"without a majority","value":"v"}}"#).await;
        assert!(matches!(answer.status, 503 | 504), "{} {}", answer.status, answer.text());
        let is_quick = sent.elapsed() < Duration::from_secs(1);
        if answer.status == 503 && is_quick { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    let read = cluster.consistent_read(id, "k").await;
    assert!(read.is_err(), "a linearizable read succeeded without a majority: {read:?}");
}

/// A node that lost its disk is excluded, knows it, and does not count toward a majority. It is replaced as
/// docs/operations.md describes while writes continue, and the new node gets everything.
async fn is_kept_out_and_replaced(name: &'static str, leader_is_lost: bool) {
    let mut cluster = TestCluster::form(name, &ALL, &[]).await;
    cluster.write(1, "k", "v").await;
    let leader = cluster.leader_of(&ALL).await;
    let wiped = if leader_is_lost { leader } else { others(leader)[0] };
    let rest = others(wiped);
    let before = identity_of(&cluster, wiped).await;
    let writers = Writers::start(&cluster, &rest, 3, "w");
    writers.acknowledged_more(30).await;
    let log_before = cluster.node(wiped).log().len();
    wipe(&mut cluster, &[wiped]).await;
    knows_that_it_lost_its_data(&cluster, wiped, &before).await;
    assert_rejects_all(&cluster, wiped).await;
    assert_rejects_former_peers(&cluster, rest[0], &before).await;
    writers.acknowledged_more(30).await;
    let history = writers.finish().await;

    // Two of three nodes have a majority. With one of them down there is none, although the wiped node listens.
    cluster.kill(rest[1]);
    assert_accepts_no_writes(&cluster, rest[0]).await;
    assert_rejects_all(&cluster, wiped).await;
    cluster.restart(rest[1]).await;
    cluster.leader_of(&rest).await;
    let logs = rest.iter().map(|id| cluster.node(*id).log()).collect::<String>();
    assert!(logs.contains("it rejected the RPC (421)"), "the others must log why node {wiped} does not count: {logs}");

    let writers = Writers::start(&cluster, &rest, 3, "during");
    writers.acknowledged_more(10).await;
    cluster.add_node(4).await;
    cluster.add_learner(rest[0], 4).await;
    let members = [rest[0], rest[1], 4];
    let answer = cluster.change_membership(rest[1], &members).await;
    assert_eq!(answer["membership"]["configs"], json!([members]), "{answer}");
    cluster.membership_is(&members, &members, &[]).await;
    writers.acknowledged_more(30).await;
    let during = writers.finish().await;
    for id in members {
        history.assert_on(&cluster, id).await;
        during.assert_on(&cluster, id).await;
    }

    // The new node counts toward the majority, and the wiped one never did.
    cluster.kill(rest[0]);
    cluster.leader_of(&members[1..]).await;
    cluster.write(4, "k", "with the new node").await;
    assert_rejects_all(&cluster, wiped).await;
    let log = cluster.node(wiped).log()[log_before..].to_owned();
    assert_eq!(log.matches("with a different data directory").count(), 1, "the loss must be logged once: {log}");
    assert!(!log.contains("leads in term"), "node {wiped} took part in an election: {log}");
    cluster.assert_alive();
}

/// Method: wipe a follower under writes, and send it every kind of request. Stop another node, so that writes fail.
/// Replace the wiped node under writes, read everything on all nodes, and stop a node again.
#[tokio::test]
async fn a_wiped_follower_is_kept_out_and_replaced() {
    is_kept_out_and_replaced("wiped-follower", false).await;
}

/// Method: the same with the leader, which returns before any node misses it.
#[tokio::test]
async fn a_wiped_leader_is_kept_out_and_replaced() {
    is_kept_out_and_replaced("wiped-leader", true).await;
}

/// When a majority of the disks is lost, the cluster stops; acknowledged writes are neither forgotten nor silently
/// rolled back.
///
/// Method: write, and wipe two of three nodes, with the leader or with a follower remaining. The remaining node accepts
/// no writes although the wiped ones run, even after a restart, and holds all data. The wiped nodes found no cluster,
/// alone or together.
#[tokio::test]
async fn a_wiped_majority_accepts_no_writes() {
    for leader_remains in [true, false] {
        let mut cluster = TestCluster::form("wiped-majority", &ALL, &[]).await;
        let data = cluster.write_many(1, "before-", 20).await;
        cluster.all_applied(&ALL).await;
        let leader = cluster.leader_of(&ALL).await;
        let remaining = if leader_remains { leader } else { others(leader)[0] };
        let wiped = others(remaining);
        let before = [identity_of(&cluster, wiped[0]).await, identity_of(&cluster, wiped[1]).await];
        wipe(&mut cluster, &wiped).await;
        assert_accepts_no_writes(&cluster, remaining).await;
        cluster.assert_holds(remaining, &data).await;
        for identity in &before {
            knows_that_it_lost_its_data(&cluster, identity.node_id, identity).await;
            assert_rejects_all(&cluster, identity.node_id).await;
        }
        let members = json!([[wiped[0], cluster.addr(wiped[0])], [wiped[1], cluster.addr(wiped[1])]]);
        for id in &wiped {
            cluster.post(*id, "/init", members.to_string()).await.assert_error(409, "Conflict", "not_applied");
        }
        // A new node cannot found a cluster with them either.
        cluster.add_node(4).await;
        let members = json!([[4, cluster.addr(4)], [wiped[0], cluster.addr(wiped[0])]]);
        cluster.post(4, "/init", members.to_string()).await.assert_error(409, "Conflict", "not_applied");
        assert_eq!(identity_of(&cluster, 4).await.cluster_id, None);

        cluster.kill(remaining);
        cluster.restart(remaining).await;
        assert_accepts_no_writes(&cluster, remaining).await;
        for id in &wiped {
            assert_rejects_all(&cluster, *id).await;
        }
        cluster.assert_alive();
    }
}

/// A wiped node cannot join under its id while that id is a member. Once it is removed, the id is free, and the node
/// with the empty directory is a new one.
///
/// Method: wipe a follower, and request it as a learner, which is rejected. Remove it, and request it again. It gets
/// all data, reads linearizably, and counts toward a majority.
#[tokio::test]
async fn an_id_is_free_once_it_is_removed() {
    let mut cluster = TestCluster::form("wiped-number", &ALL, CALM).await;
    let leader = cluster.leader_of(&ALL).await;
    let (second, wiped) = (others(leader)[0], others(leader)[1]);
    let data: BTreeMap<String, String> = cluster.write_many(leader, "before-", 20).await;
    let before = identity_of(&cluster, wiped).await;
    wipe(&mut cluster, &[wiped]).await;
    knows_that_it_lost_its_data(&cluster, wiped, &before).await;
    let membership = cluster.metrics(leader).await.membership_config;
    let learner = json!([wiped, cluster.addr(wiped)]).to_string();
    let answer = cluster.post(leader, "/add-learner", learner.clone()).await;
    answer.assert_error(409, "Conflict", "not_applied");
    assert_eq!(cluster.metrics(leader).await.membership_config, membership);

    cluster.change_membership(second, &[leader, second]).await;
    cluster.post(second, "/add-learner", learner).await.ok().unwrap();
    cluster.change_membership(second, &ALL).await;
    cluster.membership_is(&ALL, &ALL, &[]).await;
    let found = identity_of(&cluster, wiped).await;
    assert_eq!(
        (found.cluster_id, found.former_cluster_id),
        (before.cluster_id, None),
        "the node must be a member again"
    );
    cluster.assert_holds(wiped, &data).await;
    cluster.kill(second);
    cluster.write(wiped, "k", "with its vote").await;
    assert_eq!(cluster.consistent_read(wiped, "k").await.as_deref(), Ok("with its vote"));
}
