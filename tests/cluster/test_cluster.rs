//! The demo of `test-cluster.sh` through `ExampleClient`, and which node serves which request.

use std::collections::BTreeSet;

use openraft::ServerState;
use raft_key_value::{ExampleClient, ExampleRequest, NodeId};
use serde_json::json;

use crate::harness::{CALM, DEADLINE, TestCluster, eventually};

fn set(key: &str, value: &str) -> ExampleRequest {
    ExampleRequest::Set { key: key.into(), value: value.into() }
}

fn ids(ids: &[NodeId]) -> BTreeSet<NodeId> {
    ids.iter().copied().collect()
}

/// The original demo works: one node becomes three, and a write on one is read on all.
///
/// Method: run the steps of `test-cluster.sh` through `ExampleClient`: init, two learners, a membership change, a write
/// on the leader and one on a follower. Check the membership after each step.
#[tokio::test]
async fn the_demo_works() {
    let cluster = TestCluster::start("demo", &[1, 2, 3], CALM).await;
    let client = cluster.client(1);

    client.init().await.unwrap();
    cluster.membership_is(&[1], &[1], &[]).await;
    let metrics = client.metrics().await.unwrap();
    assert_eq!((metrics.id, metrics.state, metrics.current_leader), (1, ServerState::Leader, Some(1)));

    for (id, learners) in [(2, vec![2]), (3, vec![2, 3])] {
        let answer = client.add_learner((id, cluster.addr(id).to_owned())).await.unwrap();
        let membership = answer.membership.expect("a membership change must return the membership");
        assert_eq!(membership.get_joint_config(), &[ids(&[1])]);
        assert_eq!(membership.learner_ids().collect::<Vec<_>>(), learners);
        assert_eq!(membership.get_node(&id).unwrap().addr, cluster.addr(id));
        assert_eq!(answer.data.value, None);
        cluster.membership_is(&[1], &[1], &learners).await;
    }

    let answer = client.change_membership(&ids(&[1, 2, 3])).await.unwrap();
    let membership = answer.membership.expect("a membership change must return the membership");
    assert_eq!(membership.get_joint_config(), &[ids(&[1, 2, 3])]);
    cluster.membership_is(&[1, 2, 3], &[1, 2, 3], &[]).await;

    let answer = client.write(&set("foo", "bar")).await.unwrap();
    assert_eq!(answer.data.value.as_deref(), Some("bar"));
    assert_eq!(answer.membership, None);
    reads_everywhere(&cluster, "foo", "bar").await;

    // A follower directs the client to the leader.
    let client = cluster.client(2);
    assert_eq!(client.leader(), (Some(2), cluster.addr(2).to_owned()));
    client.write(&set("foo", "wow")).await.unwrap();
    assert_eq!(client.leader(), (Some(1), cluster.addr(1).to_owned()));
    reads_everywhere(&cluster, "foo", "wow").await;
    assert_eq!(cluster.client(3).consistent_read(&"missing".to_owned()).await.unwrap(), "");
}

/// A linearizable read sees a write at once, and a stale read sees it eventually.
async fn reads_everywhere(cluster: &TestCluster, key: &str, value: &str) {
    for id in [1, 2, 3] {
        let client: ExampleClient = cluster.client(id);
        assert_eq!(client.consistent_read(&key.to_owned()).await.unwrap(), value, "through ExampleClient at node {id}");
        assert_eq!(cluster.consistent_read(id, key).await.unwrap(), value, "on node {id} itself");
        let what = format!("node {id} itself has {key} = {value}");
        let client = cluster.client(id);
        eventually(&what, DEADLINE, async || match client.read(&key.to_owned()).await {
            Ok(found) if found == value => Ok(()),
            other => Err(other),
        })
        .await;
        assert_eq!(client.leader().0, Some(id), "a stale read is not redirected");
    }
}

/// A request that must not be forwarded returns the leader's address, in exactly these bytes, and nothing is written.
///
/// Method: send every request that needs the leader to a follower, with `Raft-Forward: no` in several spellings, and
/// with the mark of a request that was already forwarded.
#[tokio::test]
async fn a_follower_names_the_leader() {
    let cluster = TestCluster::form("names-leader", &[1, 2, 3], CALM).await;
    let leader = cluster.leader_of(&[1, 2, 3]).await;
    let follower = 1 + leader % 3;
    let before = cluster.metrics(leader).await.last_log_index;
    let expected = format!(
        r#"{{"Err":{{"ForwardToLeader":{{"leader_id":{leader},"leader_node":{{"addr":"{}"}}}}}}}}"#,
        cluster.addr(leader)
    );
    let requests = [
        ("/write", r#"{"Set":{"key":"k","value":"v"}}"#.to_owned()),
        ("/consistent_read", r#""k""#.to_owned()),
        ("/add-learner", json!([9, "127.0.0.1:1"]).to_string()),
        ("/change-membership", "[1,2]".to_owned()),
    ];
    for (path, body) in requests {
        let twice = [("raft-forward", "yes"), ("raft-forward", "no")];
        for headers in [&[("raft-forward", "no")][..], &[("Raft-Forward", "NO")], &[("raft-forwarded", "3")], &twice] {
            let method = reqwest::Method::POST;
            let answer = cluster.http().request(method, cluster.addr(follower), path, headers, body.clone()).await;
            let answer = answer.unwrap();
            assert_eq!((answer.status, answer.text()), (421, expected.clone()), "{path} with {headers:?}");
            answer.assert_error(421, "ForwardToLeader", "not_applied");
        }
    }
    assert_eq!(cluster.metrics(leader).await.last_log_index, before, "nothing may be proposed");
    // The leader serves such a request.
    cluster.post_here(leader, "/write", r#"{"Set":{"key":"k","value":"v"}}"#).await.ok().unwrap();
}

/// A follower forwards a write, and returns the leader's response unchanged.
///
/// Method: send the same write to each node, without the header, with another value of the header, and as `curl -d`
/// sends it.
#[tokio::test]
async fn a_follower_forwards_writes() {
    let cluster = TestCluster::form("passes-on", &[1, 2, 3], CALM).await;
    for id in [1, 2, 3] {
        for headers in
            [vec![], vec![("raft-forward", "yes")], vec![("content-type", "application/x-www-form-urlencoded")]]
        {
            let index = cluster.metrics(cluster.leader_of(&[1, 2, 3]).await).await.last_log_index.unwrap() + 1;
            let body = r#"{"Set":{"key":"foo","value":"bar"}}"#;
            let answer =
                cluster.http().request(reqwest::Method::POST, cluster.addr(id), "/write", &headers, body).await;
            let answer = answer.unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert_eq!(answer.header("content-type"), "application/json");
            let leader_id = answer.json()["Ok"]["log_id"]["leader_id"].clone();
            assert_eq!(leader_id["node_id"], cluster.leader_of(&[1, 2, 3]).await);
            let revision = answer.json()["Ok"]["data"]["revision"].clone();
            assert!(revision.is_u64(), "{}", answer.text());
            let expected = json!({"Ok": {
                "log_id": {"leader_id": leader_id, "index": index},
                "data": {"value": "bar", "revision": revision},
                "membership": null,
            }});
            assert_eq!(answer.json(), expected, "through node {id} with {headers:?}");
        }
    }
    // The leader's rejection is returned the same way.
    for id in [1, 2, 3] {
        let answer = cluster.post(id, "/change-membership", "[1,2,3,77]").await;
        answer.assert_error(409, "Conflict", "not_applied");
    }
}

/// Each form of an empty body makes a node a cluster of its own, once.
#[tokio::test]
async fn a_node_is_initialized_once() {
    let bodies = ["", "{}", "[]", " \n[ ] "];
    let cluster = TestCluster::start("init-once", &[1, 2, 3, 4], CALM).await;
    for (id, body) in (1..).zip(bodies) {
        let answer = cluster.post(id, "/write", r#"{"Set":{"key":"k","value":"v"}}"#).await;
        answer.assert_error(503, "NoLeader", "not_applied");
        assert_eq!(answer.header("retry-after"), "1");
        assert_eq!(cluster.read(id, "k").await.as_deref(), Ok(""), "a node without a cluster must be empty");

        let answer = cluster.post(id, "/init", body).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, r#"{"Ok":null}"#), "with the body {body:?}");
        // The node leads as soon as the response arrives.
        let answer = cluster.post(id, "/write", r#"{"Set":{"key":"k","value":"v"}}"#).await;
        answer.ok().unwrap();
        cluster.membership_is(&[id], &[id], &[]).await;

        for again in bodies {
            let answer = cluster.post(id, "/init", again).await;
            let fields = answer.assert_error(409, "NotAllowed", "not_applied");
            assert!(fields["last_log_id"]["index"].as_u64() > Some(0), "{fields}");
            assert_eq!(fields["vote"]["leader_id"]["node_id"], id, "{fields}");
        }
        assert_eq!(cluster.consistent_read(id, "k").await.as_deref(), Ok("v"), "the second init must change nothing");
    }
}

/// A node that belongs to no cluster rejects every `/v1` read, stale ones too, and says why.
///
/// Method: each way of reading, linearizable and stale, returns 503 and what to do. Only the original `/read` responds
/// as in the original.
#[tokio::test]
async fn a_node_without_a_cluster_has_nothing_to_read() {
    let cluster = TestCluster::start("no-cluster", &[1], CALM).await;
    for path in ["/v1/kv/k", "/v1/kv/k?raw", "/v1/kv", "/v1/kv?prefix=a", "/v1/watch", "/v1/watch?initial"] {
        let stale = format!("{path}{}consistency=stale", if path.contains('?') { '&' } else { '?' });
        for path in [path, &stale] {
            let answer = cluster.http().get(cluster.addr(1), path).await.unwrap();
            let error = answer.assert_rejected(503, "no_leader");
            assert_eq!(answer.header("retry-after"), "1", "{path}");
            let message = error["message"].as_str().unwrap();
            assert!(message.contains("/init") && message.contains("members add"), "{path}: {message}");
        }
    }
    assert_eq!(cluster.post(1, "/read", "\"k\"").await.text(), r#"{"Ok":""}"#);
    cluster.post(1, "/init", "").await.ok().unwrap();
    let listed = cluster.get(1, "/v1/kv?consistency=stale").await.done();
    assert_eq!(listed, json!({"revision": 0, "items": []}));
}

/// A list founds a cluster of all its nodes at once.
///
/// Method: send `/init` with three nodes to one of them. Then write on each node, and send `/init` to each again, which
/// must be rejected.
#[tokio::test]
async fn a_list_forms_a_cluster_at_once() {
    let cluster = TestCluster::start("init-list", &[1, 2, 3], CALM).await;
    let members = json!([[1, cluster.addr(1)], [2, cluster.addr(2)], [3, cluster.addr(3)]]).to_string();
    let answer = cluster.post(2, "/init", members.clone()).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, r#"{"Ok":null}"#));
    cluster.membership_is(&[1, 2, 3], &[1, 2, 3], &[]).await;
    cluster.leader_of(&[1, 2, 3]).await;
    for id in [1, 2, 3] {
        let value = format!("from {id}");
        cluster.client(id).write(&set("k", &value)).await.unwrap();
        reads_everywhere(&cluster, "k", &value).await;
        cluster.post(id, "/init", members.clone()).await.assert_error(409, "NotAllowed", "not_applied");
        cluster.post(id, "/init", "").await.assert_error(409, "NotAllowed", "not_applied");
    }
}

/// A cluster is not formed with a node that is unreachable, has another id, or belongs to a cluster.
///
/// Method: request clusters from node 1 that are impossible in one way each. Afterwards it still belongs to none, and
/// can be initialized.
#[tokio::test]
async fn an_impossible_list_changes_nothing() {
    let cluster = TestCluster::start("init-rejected", &[1, 2, 3], CALM).await;
    cluster.post(3, "/init", "").await.ok().unwrap();
    let (own, second, third) = (cluster.addr(1), cluster.addr(2), cluster.addr(3));
    let unreachable = format!("127.0.0.1:{}", crate::harness::free_port());
    let rows = [
        ("node 2 is unreachable", json!([[1, own], [2, unreachable]]), 503, "Unreachable"),
        ("node 2 is node 3", json!([[1, own], [2, third]]), 409, "Conflict"),
        ("node 3 has a cluster", json!([[1, own], [2, second], [3, third]]), 409, "Conflict"),
        ("node 1 is not in the list", json!([[2, second]]), 400, "BadRequest"),
        ("node 1 has another address", json!([[1, second]]), 400, "BadRequest"),
        ("node 2 twice", json!([[1, own], [2, second], [2, second]]), 400, "BadRequest"),
    ];
    for (what, list, status, name) in rows {
        eprintln!("{what}: {list}");
        cluster.post(1, "/init", list.to_string()).await.assert_error(status, name, "not_applied");
    }
    for id in [1, 2] {
        let identity = cluster.http().get(cluster.addr(id), "/raft-identity").await.unwrap().json();
        assert_eq!(identity["Ok"]["cluster_id"], json!(null), "node {id} must belong to no cluster");
        assert_eq!(cluster.metrics(id).await.last_log_index, None);
    }
    cluster.post(1, "/init", json!([[1, own], [2, second]]).to_string()).await.ok().unwrap();
    cluster.membership_is(&[1, 2], &[1, 2], &[]).await;
}
