//! Does a cluster detect that a node's data differs from the leader's?

use std::fs::File;

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use raft_key_value::NodeId;
use raft_key_value::config::{APPLIED_WAITING_MAX, SELF_CHECK_ENTRIES};
use raft_key_value::operation::{Operation, Put, Write};
use raft_key_value::store::snapshot::format::{load, meta_of, write as write_snapshot};
use raft_key_value::types::{Command, Entry, Payload};
use serde_json::{Value, json};

use crate::harness::{ALL, CALM, DEADLINE, TestCluster, eventually, index_of, others};

/// Occasional snapshots, and a log that keeps all entries after the first one.
const FLAGS: &[&str] = &["--snapshot-entries", "2000", "--snapshot-keep-entries", "20000"];

async fn hash(cluster: &TestCluster, id: NodeId, query: &str) -> Value {
    let answer = cluster.get(id, &format!("/v1/cluster/hash{query}")).await;
    let body = answer.done();
    assert_eq!((answer.number("raft-node"), body["node"].as_u64()), (id, Some(id)));
    assert_eq!(Some(answer.revision()), body["revision"].as_u64());
    assert_eq!(body["hash"].as_str().map(str::len), Some(32), "{body}");
    body
}

/// The fields that must be the same on all nodes.
fn state_in(body: &Value) -> [&Value; 3] {
    ["applied_index", "revision", "hash"].map(|name| &body[name])
}

/// Writes through a node, many writes at a time, until the node has applied more than this index.
async fn write_past(cluster: &TestCluster, id: NodeId, index: u64) {
    const WRITES_AT_ONCE: usize = 64;
    while index_of(cluster.metrics(id).await.last_applied) <= index {
        let applied = index_of(cluster.metrics(id).await.last_applied);
        let puts = (applied..=index).take(2000).map(|number| format!("/v1/kv/key-{}", number % 1000));
        let put = async |path: String| drop(cluster.put(id, &path, format!("value of {path}")).await.done());
        stream::iter(puts).map(put).buffer_unordered(WRITES_AT_ONCE).collect::<()>().await;
    }
}

/// Waits until a node has confirmed that its state at an index is the leader's, and returns the check.
async fn checked(cluster: &TestCluster, id: NodeId, index: u64) -> Value {
    eventually(&format!("node {id} has checked itself at {index}"), DEADLINE, async || {
        let body = hash(cluster, id, "").await;
        if body["last_self_check"]["index"] == index { Ok(body["last_self_check"].clone()) } else { Err(body) }
    })
    .await
}

/// Nodes with the same entries return the same hash, each for exactly the requested index, even after they were killed.
/// They also compare their hashes by themselves.
///
/// Method: send a few writes of each kind. Read the hash of one node, and of the others at its index. Request an index
/// that comes next, one that never comes, and one in the past. Write past the index of a check, until all nodes report
/// it. Kill -9 all nodes.
#[tokio::test]
async fn equal_nodes_have_the_same_hash() {
    let mut cluster = TestCluster::form("self-check", &ALL, &[CALM, FLAGS].concat()).await;
    let leader = cluster.leader_of(&ALL).await;
    let empty = hash(&cluster, leader, "").await;
    assert!(empty["last_self_check"].is_null(), "{empty}");
    cluster.put(1, "/v1/kv/k?ttl=1h", "1").await.done();
    cluster.v1(2, reqwest::Method::PUT, "/v1/kv/k", &[("idempotency-key", "request")], "2").await.done();
    cluster.delete(3, "/v1/kv/k").await.done();

    let leaders = hash(&cluster, leader, "").await;
    assert_ne!(leaders["hash"], empty["hash"], "a deleted key must leave a trace in the hash: the revision");
    let applied = leaders["applied_index"].as_u64().unwrap();
    for id in ALL {
        let found = hash(&cluster, id, &format!("?applied={applied}")).await;
        assert_eq!(state_in(&found), state_in(&leaders), "node {id}");
        let passed = cluster.get(id, &format!("/v1/cluster/hash?applied={}", applied - 1)).await;
        assert_eq!(passed.assert_rejected(410, "applied_passed")["applied_index"], applied);
    }
    let to_come = format!("?applied={}", applied + 1);
    let (found, _) = tokio::join!(hash(&cluster, 1, &to_come), cluster.put(1, "/v1/kv/k", "3"));
    assert_eq!(found["applied_index"], applied + 1);
    let never = cluster.get(2, &format!("/v1/cluster/hash?applied={}", i64::MAX)).await;
    assert_eq!(never.assert_rejected(504, "deadline_passed")["outcome"], "not_applied");

    let due = SELF_CHECK_ENTRIES;
    write_past(&cluster, leader, due).await;
    let first = checked(&cluster, 1, due).await;
    for id in ALL {
        assert_eq!(checked(&cluster, id, due).await, first);
        let found = hash(&cluster, id, &format!("?applied={due}")).await;
        assert_eq!((&found["applied_index"], &found["hash"]), (&json!(due), &first["hash"]));
    }
    let before = hash(&cluster, leader, "").await;
    cluster.crash(&ALL).await;
    cluster.all_applied(&ALL).await;
    for id in ALL {
        let after = hash(&cluster, id, "").await;
        assert_eq!(state_in(&after)[1..], state_in(&before)[1..], "node {id} may differ only in its log");
    }
    cluster.assert_alive();
}

/// The requests that wait for an entry on one node are bounded, and each gets the state after exactly its entry,
/// although others follow at once.
///
/// Method: send one more request than may wait, for an entry that never comes. Then send as many as may wait, for one
/// entry each, while writes continue. The hashes of two nodes at the same entry must be equal.
#[tokio::test]
async fn waiting_for_an_entry_is_bounded_and_exact() {
    const WAITING: u64 = APPLIED_WAITING_MAX as u64;
    const AHEAD: u64 = 60;
    let cluster = TestCluster::form("self-check-waits", &ALL, &[CALM, FLAGS].concat()).await;
    let path = |index: u64| format!("/v1/cluster/hash?applied={index}");
    let never = join_all((0..=WAITING).map(|_| async { cluster.get(2, &path(i64::MAX as u64)).await })).await;
    let crowded: Vec<_> = never.iter().filter(|answer| answer.status == 503).collect();
    assert_eq!(crowded.len(), 1);
    crowded[0].assert_rejected(503, "overloaded");
    assert_eq!(never.iter().filter(|answer| answer.status == 504).count(), APPLIED_WAITING_MAX);

    let applied = hash(&cluster, 1, "").await["applied_index"].as_u64().unwrap();
    let wanted: Vec<u64> = (applied + AHEAD..).take(APPLIED_WAITING_MAX).collect();
    let asked = [2, 3].map(|id| {
        join_all(wanted.iter().map({
            let cluster = &cluster;
            move |index| async move { hash(cluster, id, &format!("?applied={index}")).await }
        }))
    });
    let writes = async {
        for number in 0..AHEAD + WAITING {
            cluster.put(1, "/v1/kv/k", number.to_string()).await.done();
        }
    };
    let [second, third] = asked;
    let (second, third, ()) = tokio::join!(second, third, writes);
    for ((index, second), third) in wanted.iter().zip(&second).zip(&third) {
        assert_eq!(second["applied_index"], *index);
        assert_eq!(state_in(second), state_in(third));
    }
}

/// A node whose data differs from the leader's stops at the next check, and says so; the others continue.
///
/// Method: stop a follower and add a write to its snapshot, which is then valid but has different data. Restart it, and
/// write past the index of a check. The follower must exit with code 65 and report both hashes, and the others must
/// confirm each other and accept writes. The check does not prevent a restart.
#[tokio::test]
async fn a_node_with_other_data_stops() {
    let mut cluster = TestCluster::form("other-data", &ALL, &[CALM, FLAGS].concat()).await;
    let leader = cluster.leader_of(&ALL).await;
    let follower = 1 + leader % 3;
    let rest = others(follower);
    write_past(&cluster, leader, 2100).await;
    let snapshot = cluster.metrics_say(follower, "a snapshot", |metrics| metrics.snapshot).await;
    assert_eq!(cluster.stop(follower).await, Some(0));

    let path = cluster.node(follower).directory().join(format!("snapshots/{}.snap", snapshot.index));
    let (_, mut machine) = load(&path).unwrap();
    let put = Put { key: "key-1".into(), value: "another".into(), ttl_ms: None, condition: None };
    let write = Write { at_ms: 0, request: None, operation: Operation::Put(put) };
    let payload = Payload::Normal(Command::Write(write));
    machine.apply(Entry { log_id: snapshot, payload });
    write_snapshot(&machine, &meta_of(&machine), &mut File::create(&path).unwrap()).unwrap();
    cluster.restart(follower).await;

    write_past(&cluster, leader, SELF_CHECK_ENTRIES).await;
    assert_eq!(cluster.node_mut(follower).ends().await, Some(65));
    let first = checked(&cluster, rest[0], SELF_CHECK_ENTRIES).await;
    assert_eq!(checked(&cluster, rest[1], SELF_CHECK_ENTRIES).await, first);
    let log = cluster.node(follower).log();
    let said = log.lines().last().unwrap_or_default();
    for part in ["error: ", "log index 10000", first["hash"].as_str().unwrap(), "/v1/cluster/hash", "majority"] {
        assert!(said.contains(part), "{part:?} is not in {said:?}");
    }
    for id in &rest {
        cluster.put(*id, "/v1/kv/after", "1").await.done();
    }
    // If the leader were the wrong one, two nodes would have to come back.
    cluster.restart(follower).await;
    cluster.value_is(&[follower], "after", "1").await;
    cluster.assert_alive();
}
