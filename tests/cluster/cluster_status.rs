//! `GET /v1/cluster`: does every node describe its cluster truly, whatever does not respond?

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use futures_util::stream::{self, StreamExt};
use raft_key_value::NodeId;
use serde_json::{Value, json};

use crate::harness::{ALL, Answer, CALM, DEADLINE, OFTEN, StandIn, TestCluster, eventually, others, respond};

/// The fields of the response if it is complete.
const FIELDS: [&str; 5] = ["cluster_id", "format_level", "leader", "members", "term"];
/// The fields of a member.
const MEMBER_FIELDS: [&str; 17] = [
    "address",
    "applied_index",
    "clock_offset_ms",
    "disk_free_bytes",
    "disk_used_bytes",
    "format_level",
    "fsync_p99_us",
    "id",
    "lag_entries",
    "lag_ms",
    "quota_bytes",
    "quota_used_bytes",
    "reachable",
    "role",
    "snapshot_age_ms",
    "snapshot_index",
    "version",
];
/// Those that only the member itself knows.
const ITS_OWN: [&str; 11] = [
    "applied_index",
    "clock_offset_ms",
    "disk_free_bytes",
    "disk_used_bytes",
    "format_level",
    "fsync_p99_us",
    "quota_bytes",
    "quota_used_bytes",
    "snapshot_age_ms",
    "snapshot_index",
    "version",
];

/// Requests under way at once, which each have a connection.
const AT_ONCE: usize = 100;

async fn described(cluster: &TestCluster, id: NodeId) -> Value {
    cluster.get(id, "/v1/cluster").await.done()
}

/// The row of a member.
fn member(description: &Value, id: NodeId) -> &Value {
    let members = description["members"].as_array().unwrap();
    members.iter().find(|member| member["id"] == id).unwrap_or_else(|| panic!("no node {id} in {description}"))
}

fn names(object: &Value) -> BTreeSet<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

/// Waits until the description that a node gives is as expected.
async fn describes(cluster: &TestCluster, id: NodeId, what: &str, is_expected: impl Fn(&Value) -> bool) -> Value {
    eventually(&format!("node {id} describes {what}"), DEADLINE, async || {
        let description = described(cluster, id).await;
        if is_expected(&description) { Ok(description) } else { Err(description) }
    })
    .await
}

/// Every node describes the whole cluster, with exactly the documented fields and true figures.
///
/// Method: three voters and a learner with snapshots; compare the description of each node with the metrics of all.
#[tokio::test]
async fn every_node_describes_the_whole_cluster() {
    let flags = [CALM, OFTEN].concat();
    let mut cluster = TestCluster::form("describes", &ALL, &flags).await;
    cluster.add_node(4).await;
    cluster.add_learner(1, 4).await;
    cluster.write_many(1, "k", 120).await;
    let ids = [1, 2, 3, 4];
    cluster.all_applied(&ids).await;
    for id in ids {
        cluster.metrics_say(id, "a snapshot", |metrics| metrics.snapshot).await;
    }
    let leader = cluster.leader_of(&ids).await;
    let term = cluster.metrics(leader).await.current_term;
    let applied = cluster.metrics(leader).await.last_applied.unwrap().index;
    for asked in ids {
        let description = describes(&cluster, asked, "members without lag", |description| {
            let rows = description["members"].as_array().unwrap();
            let is_complete = |row: &Value| row["lag_entries"] == 0 && row["reachable"] == true;
            rows.len() == 4 && rows.iter().all(is_complete)
        })
        .await;
        assert_eq!(names(&description), FIELDS.into(), "of node {asked}: {description}");
        assert_eq!((&description["leader"], &description["term"]), (&json!(leader), &json!(term)));
        let cluster_id = cluster.get(asked, "/v1/cluster").await.header("raft-cluster").to_owned();
        assert_eq!(description["cluster_id"], cluster_id);
        for id in ids {
            let row = member(&description, id);
            assert_eq!(names(row), MEMBER_FIELDS.into());
            let role = if id == 4 {
                "learner"
            } else if id == leader {
                "leader"
            } else {
                "voter"
            };
            assert_eq!((&row["role"], &row["address"]), (&json!(role), &json!(cluster.addr(id))), "{row}");
            assert_eq!(row["version"], env!("CARGO_PKG_VERSION"));
            assert_eq!((&row["applied_index"], &row["lag_ms"]), (&json!(applied), &json!(0)), "{row}");
            // It may have taken another one since.
            let snapshot = cluster.metrics(id).await.snapshot.unwrap().index;
            assert!((1..=snapshot).contains(&row["snapshot_index"].as_u64().unwrap()), "{snapshot}: {row}");
            let (used, quota) = (row["quota_used_bytes"].as_u64().unwrap(), row["quota_bytes"].as_u64().unwrap());
            assert!(used > 0 && used < quota, "{row}");
            for field in ["snapshot_age_ms", "disk_free_bytes", "fsync_p99_us", "disk_used_bytes"] {
                assert!(row[field].is_u64(), "{field} of {row}");
            }
            let used_bytes = row["disk_used_bytes"].as_u64().unwrap();
            assert!((1000..1 << 20).contains(&used_bytes), "{row}");
            // All nodes of the test have one clock.
            let offset_ms = row["clock_offset_ms"].as_i64();
            assert!(offset_ms.is_none_or(|offset_ms| offset_ms.abs() <= 200), "{row}");
        }
    }
    let head = cluster.http().request(reqwest::Method::HEAD, cluster.addr(1), "/v1/cluster", &[], "").await.unwrap();
    assert_eq!((head.status, head.body.len()), (200, 0));
    cluster.assert_alive();
}

/// A follower that is down has a growing lag in entries and in time, and no figures of its own.
#[tokio::test]
async fn a_follower_that_is_down_lags() {
    let mut cluster = TestCluster::form("describes-down", &ALL, CALM).await;
    let leader = cluster.leader_of(&ALL).await;
    let down = others(leader)[0];
    cluster.write(leader, "before", "v").await;
    cluster.all_applied(&ALL).await;
    cluster.kill(down);
    cluster.write_many(leader, "k", 30).await;
    for asked in others(down) {
        let description =
            describes(&cluster, asked, "a lag", |description| member(description, down)["lag_ms"].as_u64() > Some(500))
                .await;
        let row = member(&description, down);
        assert_eq!((&row["reachable"], &row["lag_entries"]), (&json!(false), &json!(30)), "{row}");
        assert!(ITS_OWN.iter().all(|field| row[*field].is_null()), "{row}");
        assert!(description.get("partial").is_none(), "the leader responds: {description}");
        let other = others(leader).into_iter().find(|id| *id != down).unwrap();
        assert_eq!(member(&description, other)["reachable"], true);
    }
    cluster.restart(down).await;
    describes(&cluster, leader, "no lag", |description| {
        let row = member(description, down);
        row["lag_entries"] == 0 && row["lag_ms"] == 0 && row["reachable"] == true
    })
    .await;
}

/// Without a leader, and with a leader that hangs, a node still responds, and says that it does not know everything. So
/// does a node without a cluster.
///
/// Method: pause the leader, then kill it and another node of three.
#[tokio::test]
async fn a_description_without_a_leader_is_partial() {
    let mut cluster = TestCluster::form("describes-partly", &ALL, CALM).await;
    let leader = cluster.leader_of(&ALL).await;
    let [left, other] = others(leader)[..] else { unreachable!() };
    cluster.node(leader).pause();
    // At first the others still take the leader for one, since it heartbeat just now.
    let paused = described(&cluster, left).await;
    assert_eq!(member(&paused, leader)["reachable"], false, "{paused}");
    cluster.node(leader).resume();
    cluster.kill(leader);
    cluster.kill(other);
    let description = describes(&cluster, left, "no leader", |description| description["leader"].is_null()).await;
    assert_eq!(names(&description), ["cluster_id", "format_level", "leader", "members", "partial", "term"].into());
    assert!(description["partial"].as_str().unwrap().contains("knows no leader"), "{description}");
    for id in ALL {
        let row = member(&description, id);
        assert_eq!((&row["reachable"], &row["lag_entries"]), (&json!(id == left), &Value::Null), "{row}");
        assert_eq!(row["role"], "voter");
    }
    cluster.add_node(9).await;
    let alone = cluster.http().get(cluster.addr(9), "/v1/cluster").await.unwrap().done();
    assert_eq!(alone["partial"], "node 9 belongs to no cluster");
    assert_eq!((&alone["cluster_id"], &alone["members"]), (&Value::Null, &json!([])));
}

/// A member whose version does not have the status route counts as reachable. However many requests arrive at once,
/// each member receives only a few for its status.
///
/// Method: add a learner that is a stand-in, which introduces itself, counts the requests for its status and returns 404
/// to them; then send 1,000 requests to the leader, and 1,000 to a follower, 100 at a time.
#[tokio::test]
async fn many_requests_ask_each_member_once() {
    let cluster = TestCluster::form("describes-once", &ALL, CALM).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    let older = StandIn::start(move |path, _, stream| {
        if path == "/raft-identity" {
            let identity = json!({"Ok": {"node_id": 4, "cluster_id": null, "incarnation": 77, "format_level": 5}});
            return respond(stream, "200 OK", identity.to_string().as_bytes());
        }
        if path == "/raft-status" {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        respond(stream, "404 Not Found", b"{}");
    });
    let leader = cluster.leader_of(&ALL).await;
    // It never catches up, so the request would take a minute.
    let body = json!([4, older.addr]).to_string();
    let adding = cluster.post(leader, "/add-learner", body);
    let added = describes(&cluster, leader, "the learner", |description| {
        description["members"].as_array().unwrap().iter().any(|member| member["id"] == 4)
    });
    let description = tokio::select! {
        answer = adding => panic!("{answer:?}"),
        description = added => description,
    };
    let row = member(&description, 4);
    assert_eq!((&row["reachable"], &row["role"], &row["version"]), (&json!(true), &json!("learner"), &Value::Null));
    for asked_node in [leader, others(leader)[0]] {
        let before = asked.load(Ordering::Relaxed);
        let begun = Instant::now();
        let requests = stream::iter(0..1000).map(|_| cluster.get(asked_node, "/v1/cluster"));
        let answers: Vec<Answer> = requests.buffer_unordered(AT_ONCE).collect().await;
        // A response is kept for 250 ms.
        let rounds_max = begun.elapsed().as_millis() / 250 + 2;
        let bodies: BTreeSet<String> = answers.iter().map(|answer| answer.done().to_string()).collect();
        let rounds = asked.load(Ordering::Relaxed) - before;
        assert!(rounds as u128 <= rounds_max, "{rounds} rounds of at most {rounds_max}");
        assert!(bodies.len() as u128 <= rounds_max, "{} responses", bodies.len());
    }
}

/// A node describes itself to other nodes.
#[tokio::test]
async fn a_node_describes_itself() {
    let cluster = TestCluster::form("describes-itself", &[1], CALM).await;
    let status = cluster.http().get(cluster.addr(1), "/raft-status").await.unwrap().ok().unwrap();
    assert_eq!((&status["node"], &status["leader"], &status["is_member"]), (&json!(1), &json!(1), &json!(true)));
    assert_eq!(status["address"], cluster.addr(1), "{status}");
    assert_eq!((&status["heartbeat_interval_ms"], &status["election_timeout_ms"]), (&json!(250), &json!(3000)));
}
