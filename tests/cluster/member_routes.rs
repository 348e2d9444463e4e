//! `/v1/cluster/members`: what the routes do, what they refuse, and what they only pretend to do.

use futures_util::future::join_all;
use raft_key_value::NodeId;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{ALL, Answer, CALM, CALM_BUT_QUICK, TestCluster, others};

async fn post(cluster: &TestCluster, asked: NodeId, path: &str, body: Value) -> Answer {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    cluster.v1(asked, Method::POST, &format!("/v1/cluster/members{path}"), &[], body).await
}

async fn remove(cluster: &TestCluster, asked: NodeId, id: NodeId, query: &str) -> Answer {
    cluster.v1(asked, Method::DELETE, &format!("/v1/cluster/members/{id}{query}"), &[], "").await
}

fn node(cluster: &TestCluster, id: NodeId) -> Value {
    json!({"id": id, "address": cluster.addr(id)})
}

/// The ids and roles in a response; the leader counts as a voter.
fn roles(answer: &Value) -> Vec<(u64, &str)> {
    let members = answer["members"].as_array().unwrap().iter();
    let role = |member: &Value| if member["role"] == "learner" { "learner" } else { "voter" };
    members.map(|member| (member["id"].as_u64().unwrap(), role(member))).collect()
}

fn message(answer: &Value) -> &str {
    answer["message"].as_str().unwrap()
}

/// A removal after which no further voter may fail is rejected if one may now, and made by force.
///
/// Method: three live voters. Remove one through each node, with every combination of the parameters. Then remove one of
/// the two that remain, which needs no force.
#[tokio::test]
async fn the_last_spare_voter_is_removed_only_by_force() {
    let cluster = TestCluster::form("last-spare", &ALL, CALM_BUT_QUICK).await;
    let leader = cluster.leader_of(&ALL).await;
    let (removed, left) = (others(leader)[0], others(leader)[1]);
    let before = cluster.metrics(leader).await.membership_config;
    for asked in ALL {
        for query in ["", "?dry_run", "?force=false", "?dry_run=true&force=false"] {
            let fields = remove(&cluster, asked, removed, query).await.assert_rejected(409, "conflict");
            for part in ["not proposed", "one more node may fail", "replace", "`force`"] {
                assert!(message(&fields).contains(part), "{query}: {fields}");
            }
        }
        let answer = remove(&cluster, asked, removed, "?force&dry_run").await.done();
        assert_eq!((&answer["removed"], &answer["dry_run"]), (&json!(removed), &json!(true)), "{answer}");
        assert!(answer["risk"].as_str().unwrap().contains("one more node may fail"), "{answer}");
        let rest: Vec<u64> = others(removed);
        assert_eq!(roles(&answer), [(rest[0], "voter"), (rest[1], "voter")], "{answer}");
    }
    assert_eq!(cluster.metrics(leader).await.membership_config, before);
    let answer = remove(&cluster, left, removed, "?force").await.done();
    assert!(answer["risk"].is_string() && answer.get("dry_run").is_none(), "{answer}");
    cluster.membership_is(&[leader, left], &others(removed), &[]).await;
    let answer = remove(&cluster, left, left, "").await.done();
    assert_eq!(roles(&answer), [(leader, "voter")], "{answer}");
    assert!(answer.get("risk").is_none(), "{answer}");
    cluster.write(leader, "k", "v").await;
}

/// A removed dead voter was no spare one: its removal needs no force.
#[tokio::test]
async fn a_dead_voter_is_removed_without_force() {
    let mut cluster = TestCluster::form("dead-no-spare", &ALL, CALM_BUT_QUICK).await;
    let leader = cluster.leader_of(&ALL).await;
    let (dead, alive) = (others(leader)[0], others(leader)[1]);
    cluster.kill(dead);
    let answer = remove(&cluster, alive, dead, "?dry_run").await.done();
    assert!(answer.get("risk").is_none(), "{answer}");
    // Nor can the live one be removed, even to replace it by nothing.
    let fields = remove(&cluster, leader, alive, "").await.assert_rejected(409, "conflict");
    assert!(message(&fields).contains(&format!("node {dead} has not responded")), "{fields}");
    remove(&cluster, alive, dead, "").await.done();
    cluster.membership_is(&[leader, alive], &others(dead), &[]).await;
    cluster.write(alive, "k", "v").await;
}

/// With `dry_run`, a request says what it would lead to, or why it would be rejected, and changes nothing.
///
/// Method: three voters, a learner and a node outside. Send every kind of request through the leader and a follower.
#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let mut cluster = TestCluster::form("dry-run", &ALL, CALM).await;
    let leader = cluster.leader_of(&ALL).await;
    for id in [4, 5] {
        cluster.add_node(id).await;
    }
    let answer = post(&cluster, leader, "", json!({"id": 4, "address": cluster.addr(4), "role": "learner"})).await;
    assert_eq!(message(&answer.done()), "node 4 is a learner");
    cluster.membership_is(&[1, 2, 3, 4], &ALL, &[4]).await;
    let before = cluster.metrics(leader).await.last_log_index;
    let (third, fifth) = (others(leader)[0], node(&cluster, 5));
    let voters = [(1, "voter"), (2, "voter"), (3, "voter")];
    let with = |more: &[(u64, &'static str)]| [&voters[..], more].concat();
    let without = |id: NodeId, more: &[(u64, &'static str)]| {
        let mut left = with(more);
        left.retain(|(other, _)| *other != id);
        left
    };
    let as_learner = json!({"id": 5, "address": cluster.addr(5), "role": "learner"});
    for asked in [leader, third] {
        for (path, body, expected, part) in [
            (
                "?dry_run".to_owned(),
                fifth.clone(),
                with(&[(4, "learner"), (5, "voter")]),
                "would be a learner, and a voter",
            ),
            ("?dry_run".to_owned(), as_learner.clone(), with(&[(4, "learner"), (5, "learner")]), "would be a learner"),
            ("?dry_run".to_owned(), node(&cluster, 4), with(&[(4, "voter")]), "would be a voter"),
            ("?dry_run".to_owned(), node(&cluster, 1), with(&[(4, "learner")]), "node 1 is a voter"),
            ("/4/promote?dry_run".to_owned(), Value::Null, with(&[(4, "voter")]), "would be a voter"),
            (
                format!("/{third}/replace?dry_run"),
                fifth.clone(),
                without(third, &[(4, "learner"), (5, "voter")]),
                "would be a learner, and take the place",
            ),
            (
                format!("/{third}/replace?dry_run"),
                node(&cluster, 4),
                without(third, &[(4, "voter")]),
                "would take the place",
            ),
            ("/4/replace?dry_run".to_owned(), fifth.clone(), with(&[(5, "learner")]), "take the place of node 4"),
        ] {
            let answer = post(&cluster, asked, &path, body).await.done();
            assert_eq!(answer["dry_run"], true, "{path}: {answer}");
            assert!(message(&answer).contains(part), "{path}: {answer}");
            assert_eq!(roles(&answer), expected, "{path}: {answer}");
        }
        let answer = remove(&cluster, asked, 4, "?dry_run").await.done();
        assert_eq!(roles(&answer), voters, "{answer}");
        post(&cluster, asked, "/77/promote?dry_run", Value::Null).await.assert_rejected(404, "member_not_found");
        let dead = json!({"id": 6, "address": "127.0.0.1:1"});
        post(&cluster, asked, "?dry_run", dead).await.assert_rejected(503, "unreachable");
    }
    assert_eq!(cluster.metrics(leader).await.last_log_index, before, "nothing may be proposed");
    cluster.membership_is(&[1, 2, 3, 4], &ALL, &[4]).await;
}

/// A new node takes the place of a voter in one step, whether that one is dead, alive or the leader. The same request
/// succeeds again.
///
/// Method: replace a dead follower, then the leader, through itself, then a live follower by a learner that is already
/// a member.
#[tokio::test]
async fn members_are_replaced() {
    let mut cluster = TestCluster::form("replaced", &ALL, CALM_BUT_QUICK).await;
    cluster.write(1, "k", "v").await;
    let leader = cluster.leader_of(&ALL).await;
    for id in [4, 5, 6] {
        cluster.add_node(id).await;
    }
    let (dead, alive) = (others(leader)[0], others(leader)[1]);
    cluster.kill(dead);
    for _ in 0..2 {
        let answer = post(&cluster, alive, &format!("/{dead}/replace"), node(&cluster, 4)).await.done();
        assert_eq!((&answer["id"], &answer["done"]), (&json!(4), &json!(true)), "{answer}");
        let mut expected = vec![(leader, "voter"), (alive, "voter"), (4, "voter")];
        expected.sort_unstable();
        assert_eq!(roles(&answer), expected, "{answer}");
    }
    let answer = post(&cluster, leader, &format!("/{leader}/replace"), node(&cluster, 5)).await.done();
    assert_eq!(roles(&answer), [(alive, "voter"), (4, "voter"), (5, "voter")], "{answer}");
    cluster.leader_of(&[alive, 4, 5]).await;
    post(&cluster, 4, "", json!({"id": 6, "address": cluster.addr(6), "role": "learner"})).await.done();
    let fields = post(&cluster, 4, &format!("/{alive}/replace"), node(&cluster, 5)).await;
    assert!(message(&fields.assert_rejected(409, "conflict")).contains("voter already"));
    post(&cluster, 5, &format!("/{alive}/replace"), node(&cluster, 6)).await.done();
    cluster.membership_is(&[4, 5, 6], &[4, 5, 6], &[]).await;
    cluster.value_is(&[4, 5, 6], "k", "v").await;
    post(&cluster, 5, "/77/replace", json!({"id": 78, "address": "127.0.0.1:1"}))
        .await
        .assert_rejected(404, "member_not_found");
    cluster.write(6, "k", "after").await;
}

/// A node that does not respond takes no place, unless by force, and then only if the others have a majority anyway.
///
/// Method: a paused new node. Replacing a voter by it returns 202, and promoting it as well; with force it becomes the
/// fourth voter, and the response names the risk. With the leader alone alive, force cannot help: no majority confirms
/// it.
#[tokio::test]
async fn force_makes_a_risky_change() {
    let mut cluster = TestCluster::form("forced", &ALL, CALM_BUT_QUICK).await;
    let leader = cluster.leader_of(&ALL).await;
    let follower = others(leader)[0];
    cluster.add_node(4).await;
    post(&cluster, leader, "", json!({"id": 4, "address": cluster.addr(4), "role": "learner"})).await.done();
    cluster.node(4).pause();
    let promoted = post(&cluster, leader, "/4/promote", Value::Null).await;
    assert_eq!(promoted.status, 202, "{}", promoted.text());
    let fields = post(&cluster, leader, "/4/promote?dry_run", Value::Null).await.assert_rejected(409, "conflict");
    assert!(message(&fields).contains("node 4 has not responded"), "{fields}");
    assert!(message(&fields).contains("`force`"), "{fields}");
    cluster.membership_is(&[leader], &ALL, &[4]).await;
    let answer = post(&cluster, follower, "/4/promote?force", Value::Null).await.done();
    assert!(answer["risk"].as_str().unwrap().contains("node 4 has not responded"), "{answer}");
    cluster.membership_is(&[leader], &[1, 2, 3, 4], &[]).await;
    cluster.logs(leader, &["made by force", "node 4 has not responded"]).await;
    cluster.write(follower, "k", "v").await;
    cluster.node(4).resume();
    for id in others(leader).into_iter().chain([4]) {
        cluster.node(id).pause();
    }
    let answer = remove(&cluster, leader, follower, "?force").await;
    assert_eq!((answer.status, answer.header("raft-outcome")), (503, "not_applied"), "{}", answer.text());
    for id in others(leader).into_iter().chain([4]) {
        cluster.node(id).resume();
    }
    cluster.membership_is(&[1, 2, 3, 4], &[1, 2, 3, 4], &[]).await;
}

/// Nodes that are added at the same time, through all nodes, all become voters, by one request each.
#[tokio::test]
async fn nodes_are_added_at_once() {
    let mut cluster = TestCluster::form("added-at-once", &ALL, CALM).await;
    for id in [4, 5, 6, 7] {
        cluster.add_node(id).await;
    }
    cluster.write_many(1, "k", 100).await;
    let requests = [(1, 4), (2, 5), (3, 6), (1, 7), (2, 7)];
    let answers = join_all(requests.map(|(asked, id)| post(&cluster, asked, "", node(&cluster, id)))).await;
    for (answer, (_, id)) in answers.iter().zip(requests) {
        assert_eq!(message(&answer.done()), format!("node {id} is a voter"));
    }
    let all: Vec<NodeId> = (1..=7).collect();
    cluster.membership_is(&all, &all, &[]).await;
    cluster.write(7, "k", "v").await;
}
