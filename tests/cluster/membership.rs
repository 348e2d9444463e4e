//! Which nodes can join or leave a cluster, and which are rejected.

use std::collections::BTreeMap;
use std::net::TcpListener;

use serde_json::json;

use crate::harness::{ALL, CALM, DEADLINE, StandIn, TestCluster, eventually, free_port, identity_of, others, respond};

/// A cluster can shrink to one node and grow back, and accepts writes at every size.
///
/// Method: remove one voter after the other, each through another node, then add them again as learners and voters. The
/// nodes keep running and keep their directories. After each step, check the membership, a write, and all reads.
#[tokio::test]
async fn a_cluster_shrinks_and_grows() {
    let cluster = TestCluster::form("shrink-grow", &ALL, CALM).await;
    let leader = cluster.leader_of(&ALL).await;
    let rest = others(leader);
    let sizes = [vec![leader, rest[0], rest[1]], vec![leader, rest[0]], vec![leader]];
    let mut data = BTreeMap::new();
    for (step, members) in sizes.iter().chain(sizes.iter().rev().skip(1)).enumerate() {
        let mut voters = members.clone();
        voters.sort_unstable();
        if step > 2 {
            let new = *members.last().unwrap();
            // Any node of the cluster forwards this to the leader.
            let asked = members[members.len() - 2];
            cluster.add_learner(asked, new).await;
            let old: Vec<u64> = voters.iter().copied().filter(|id| *id != new).collect();
            cluster.membership_is(&voters, &old, &[new]).await;
        }
        let asked = if step > 2 { members[members.len() - 2] } else { *members.last().unwrap() };
        let answer = cluster.change_membership(asked, &voters).await;
        assert_eq!(answer["membership"]["configs"], json!([voters]), "{answer}");
        let nodes = answer["membership"]["nodes"].as_object().unwrap();
        assert_eq!(nodes.len(), voters.len(), "a node that is no longer a voter must have left entirely: {answer}");
        cluster.membership_is(&voters, &voters, &[]).await;

        let (key, value) = (format!("step {step}"), format!("with {voters:?}"));
        cluster.write(*members.last().unwrap(), &key, &value).await;
        data.insert(key, value);
        for id in &voters {
            for (key, value) in &data {
                assert_eq!(cluster.consistent_read(*id, key).await.as_ref(), Ok(value), "on node {id}");
            }
            cluster.assert_holds(*id, &data).await;
        }
    }
}

/// A leader can be asked to remove itself: the others continue, and it serves no stale reads.
#[tokio::test]
async fn the_leader_can_be_removed() {
    let mut cluster = TestCluster::form("remove-leader", &ALL, &[]).await;
    cluster.write(1, "k", "old").await;
    let leader = cluster.leader_of(&ALL).await;
    let rest = others(leader);
    let answer = cluster.change_membership(leader, &rest).await;
    assert_eq!(answer["membership"]["configs"], json!([rest]), "{answer}");
    cluster.leader_of(&rest).await;
    cluster.membership_is(&rest, &rest, &[]).await;
    cluster.write(rest[0], "k", "new").await;
    cluster.all_applied(&rest).await;

    let read = cluster.consistent_read(leader, "k").await;
    assert_ne!(read.as_deref(), Ok("old"), "a removed node must not serve its own state as the cluster's");
    let answer = cluster.post(leader, "/write", r#"{"Set":{"key":"k","value":"through the removed"}}"#).await;
    assert!(matches!(answer.status, 200 | 503 | 504), "{} {}", answer.status, answer.text());
    for id in &rest {
        let found = cluster.consistent_read(*id, "k").await.unwrap();
        match (answer.status, answer.header("raft-outcome")) {
            (200, _) => assert_eq!(found, "through the removed", "on node {id}"),
            (_, "not_applied") => assert_eq!(found, "new", "on node {id}"),
            (_, outcome) => assert_eq!(outcome, "unknown", "{}", answer.text()),
        }
    }
    reports_that_it_was_removed(&cluster, leader).await;
    // A removed node can be stopped, and the others do not need it.
    assert_eq!(cluster.stop(leader).await, Some(0));
    cluster.write(rest[1], "k", "newest").await;
}

/// Waits until a removed node knows that it was removed, and asserts that it says what to do.
async fn reports_that_it_was_removed(cluster: &TestCluster, id: u64) {
    eventually(&format!("node {id} reports that it was removed"), DEADLINE, async || {
        let answer = cluster.post(id, "/consistent_read", r#""k""#).await;
        assert_ne!(answer.status, 200, "{}", answer.text());
        if answer.error().0 == "NotMember" { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    for (path, body) in [
        ("/consistent_read", r#""k""#.to_owned()),
        ("/write", r#"{"Set":{"key":"k","value":"v"}}"#.to_owned()),
        ("/change-membership", json!(ALL).to_string()),
    ] {
        let fields = cluster.post(id, path, body).await.assert_error(503, "NotMember", "not_applied");
        let message = fields["message"].as_str().unwrap();
        assert!(message.contains(&format!("node {id} ")) && message.contains("was removed"), "{message}");
        assert!(message.contains("members add"), "{message}");
    }
    cluster.get(id, "/v1/kv/k").await.assert_rejected(503, "not_member");
}

/// A removed follower says so instead of waiting for entries that never come, even after a restart. It works again as
/// soon as it is added again.
///
/// Method: remove a follower, and send it linearizable reads: none returns 504. Its own state can still be read.
/// Restart it: it says so before any request. Read again. Then add it again.
#[tokio::test]
async fn a_removed_follower_says_so() {
    let mut cluster = TestCluster::form("remove-follower", &ALL, CALM).await;
    cluster.write(1, "k", "old").await;
    cluster.all_applied(&ALL).await;
    let leader = cluster.leader_of(&ALL).await;
    let (second, removed) = (others(leader)[0], others(leader)[1]);
    cluster.change_membership(leader, &[leader, second]).await;
    cluster.write(leader, "k", "new").await;
    cluster.post(removed, "/consistent_read", r#""k""#).await.assert_error(503, "NotMember", "not_applied");
    reports_that_it_was_removed(&cluster, removed).await;
    assert_eq!(cluster.read(removed, "k").await.as_deref(), Ok("old"), "the node must still serve its own state");
    assert_eq!(cluster.get(removed, "/v1/kv/k?consistency=stale").await.done()["value"], "old");
    assert_eq!(
        cluster.node(removed).log().matches("was removed from the cluster").count(),
        1,
        "the removal must be logged once"
    );

    cluster.kill(removed);
    cluster.restart(removed).await;
    // It asks the others, without a request of a client.
    cluster.logs(removed, &["does not have this node as a member", "was removed from the cluster"]).await;
    let probe = cluster.http().get(cluster.addr(removed), "/readyz").await.unwrap();
    assert!(probe.status == 503 && probe.text().contains("was removed from the cluster"), "{}", probe.text());
    reports_that_it_was_removed(&cluster, removed).await;

    cluster.add_learner(leader, removed).await;
    assert_eq!(cluster.consistent_read(removed, "k").await.as_deref(), Ok("new"), "as a learner");
    cluster.change_membership(removed, &ALL).await;
    cluster.write(removed, "k", "newest").await;
}

/// An impossible learner is rejected at once, and the membership does not change.
///
/// Method: request one impossible learner per row through the leader and through followers: no listener, a listener
/// that never responds, another program, another node, a node of another cluster, the leader at another address.
#[tokio::test]
async fn impossible_learners_are_rejected() {
    let mut cluster = TestCluster::form("impossible", &ALL, CALM).await;
    cluster.add_node(4).await;
    cluster.post(4, "/init", "").await.ok().unwrap();
    cluster.add_node(5).await;
    let leader = cluster.leader_of(&ALL).await;
    let unreachable = format!("127.0.0.1:{}", free_port());
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let other_program = StandIn::start(|_, _, stream| respond(stream, "200 OK", b"{}"));
    let rows = [
        ("no listener", 6, unreachable.clone(), 503, "Unreachable"),
        ("a silent listener", 6, silent.local_addr().unwrap().to_string(), 503, "Unreachable"),
        ("another program", 6, other_program.addr, 409, "Conflict"),
        ("another node's id", 6, cluster.addr(5).to_owned(), 409, "Conflict"),
        ("a voter's id", 3 - (leader == 3) as u64, cluster.addr(5).to_owned(), 409, "Conflict"),
        ("a node of another cluster", 4, cluster.addr(4).to_owned(), 409, "Conflict"),
        ("the leader at another address", leader, unreachable, 400, "BadRequest"),
    ];
    let before = cluster.metrics(leader).await;
    for (what, id, addr, status, name) in rows {
        for asked in ALL {
            eprintln!("{what}, through node {asked}");
            let answer = cluster.post(asked, "/add-learner", json!([id, addr]).to_string()).await;
            answer.assert_error(status, name, "not_applied");
            assert_eq!(answer.header("retry-after"), if status == 503 { "1" } else { "" }, "{what}");
        }
    }
    let after = cluster.metrics(leader).await;
    assert_eq!(after.membership_config, before.membership_config);
    assert_eq!(after.last_log_index, before.last_log_index, "nothing may be proposed");
    assert_eq!(
        identity_of(&cluster, 5).await.cluster_id,
        None,
        "asking a node for its identity must not make it a member"
    );
}
