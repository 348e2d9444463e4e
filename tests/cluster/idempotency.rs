//! A request with an `Idempotency-Key` is applied once, however often and wherever it is sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use raft_key_value::NodeId;
use reqwest::Method;
use serde_json::json;

use crate::harness::{ALL, Answer, CALM, CALM_BUT_QUICK, DEADLINE, Metrics, OFTEN, TestCluster, eventually, index_of};

/// One request of each kind, which has an effect each time it is applied.
struct Request {
    method: Method,
    path: &'static str,
    body: &'static str,
    id: &'static str,
    status: u16,
}

const fn request(method: Method, path: &'static str, body: &'static str, id: &'static str, status: u16) -> Request {
    Request { method, path, body, id, status }
}

/// [`prepare`] creates the keys that these requests change.
const REQUESTS: &[Request] = &[
    request(Method::PUT, "/v1/kv/put", "v", "put", 200),
    request(Method::PUT, "/v1/kv/timed?ttl=1h", "v", "put with a TTL", 200),
    request(Method::DELETE, "/v1/kv/deleted", "", "delete", 200),
    request(Method::DELETE, "/v1/kv?prefix=prefix/", "", "delete a prefix", 200),
    request(Method::POST, "/v1/kv/touched/touch?ttl=1h", "", "touch", 200),
    request(Method::POST, "/v1/kv/missing/touch?ttl=1h", "", "touch a missing key", 404),
    request(
        Method::POST,
        "/v1/txn",
        r#"{"compare":[{"key":"txn","exists":true}],
            "success":[{"put":{"key":"txn","value":"again"}},{"get":{"key":"txn"}}],
            "failure":[{"put":{"key":"txn","value":"first"}},{"get":{"key":"txn"}},{"delete":{"key":"put"}}]}"#,
        "txn",
        200,
    ),
    request(Method::POST, "/write", r#"{"Set":{"key":"set","value":"v"}}"#, "set", 200),
    request(Method::POST, "/write", r#"{"Delete":{"key":"touched"}}"#, "original delete", 200),
    request(Method::POST, "/write", r#"{"Txn":{"success":[{"put":{"key":"t","value":"v"}}]}}"#, "original txn", 200),
];

/// Puts the keys that the requests delete or touch.
async fn prepare(cluster: &TestCluster, id: NodeId) {
    for key in ["deleted", "prefix/1", "prefix/2", "touched"] {
        cluster.put(id, &format!("/v1/kv/{key}"), "prepared").await.done();
    }
}

async fn send(cluster: &TestCluster, id: NodeId, request: &Request) -> Answer {
    let headers = [("idempotency-key", request.id)];
    let answer = cluster.persistently(id, request.method.clone(), request.path, &headers, request.body).await;
    assert_eq!(answer.status, request.status, "{}: {}", request.id, answer.text());
    answer
}

async fn send_all(cluster: &TestCluster, id: NodeId) -> Vec<Answer> {
    let mut answers = Vec::new();
    for request in REQUESTS {
        answers.push(send(cluster, id, request).await);
    }
    answers
}

/// Asserts that all requests get their first response, and are not applied again.
///
/// All their effects are undone before, and must stay undone.
async fn assert_replayed(cluster: &TestCluster, id: NodeId, first: &[Answer]) {
    for key in ["put", "timed", "txn", "set", "t"] {
        cluster.persistently(id, Method::PUT, &format!("/v1/kv/{key}"), &[], "undone").await;
    }
    for key in ["deleted", "prefix/1", "touched"] {
        cluster.persistently(id, Method::PUT, &format!("/v1/kv/{key}"), &[], "back").await;
    }
    let before = cluster.list_all(id, "").await;
    for (request, first) in REQUESTS.iter().zip(first) {
        let again = send(cluster, id, request).await;
        assert_eq!(again.header("raft-replayed"), "true", "{} on node {id}: {again:?}", request.id);
        assert_eq!(again.header("etag"), first.header("etag"), "{}", request.id);
        assert_eq!(again.header("raft-outcome"), first.header("raft-outcome"), "{}", request.id);
        if request.path == "/write" {
            // The log id is that of the repeated entry.
            let (again, first) = (again.ok().unwrap()["data"].take(), first.ok().unwrap()["data"].take());
            assert_eq!((&again["value"], &again["result"]), (&first["value"], &first["result"]), "{}", request.id);
        } else if request.status == 404 {
            // The error contains the store's current revision.
            assert_eq!(again.json()["error"]["code"], first.json()["error"]["code"], "{}", request.id);
        } else {
            assert_eq!(again.json(), first.json(), "{} on node {id}", request.id);
        }
    }
    assert_eq!(cluster.list_all(id, "").await, before, "a request was applied again through node {id}");
}

/// A repeated request gets its first response, and is not applied again.
///
/// Method: send each kind of request once. Then undo its effects and send it again through each node: the responses are
/// equal, and nothing changes. Another request with the same key is rejected.
#[tokio::test]
async fn a_request_is_applied_once_on_any_node() {
    let cluster = TestCluster::form("once", &ALL, CALM).await;
    prepare(&cluster, 1).await;
    let first = send_all(&cluster, 2).await;
    assert!(first.iter().all(|answer| answer.header("raft-replayed").is_empty()));
    assert_eq!(first[3].json()["deleted"], 2);
    for id in ALL {
        assert_replayed(&cluster, id, &first).await;
    }
    for (request, other) in REQUESTS.iter().zip(REQUESTS.iter().cycle().skip(1)) {
        let headers = [("idempotency-key", request.id)];
        let before = cluster.list_all(1, "").await;
        let answer = cluster
            .http()
            .request(other.method.clone(), cluster.addr(3), other.path, &headers, other.body)
            .await
            .unwrap();
        assert_eq!((answer.status, answer.header("raft-outcome")), (422, "not_applied"), "{}", answer.text());
        assert_eq!(cluster.list_all(1, "").await, before);
    }
    // The same request by the other route counts as a repetition.
    let set = cluster.post(1, "/write", r#"{"Set":{"key":"two routes","value":"v"}}"#).await;
    set.ok().unwrap();
    let headers = [("idempotency-key", "two routes")];
    let body = r#"{"Set":{"key":"two routes","value":"w"}}"#;
    let first = cluster.persistently(1, Method::POST, "/write", &headers, body).await;
    first.ok().unwrap();
    let again = cluster.v1(2, Method::PUT, "/v1/kv/two%20routes", &headers, "w").await;
    assert_eq!((again.header("raft-replayed"), &again.done()["version"]), ("true", &json!(2)));
}

/// A request whose condition failed fails again when it is repeated.
///
/// Method: fail a put by each condition, and then make the condition true. The repeated request gets its first
/// response.
#[tokio::test]
async fn a_failed_condition_stays_failed() {
    let cluster = TestCluster::form("once-rejected", &ALL, CALM).await;
    let revision = cluster.put(1, "/v1/kv/k", "v").await.revision();
    let put = async |id: NodeId, key: &str, name: &str, tag: &str, request: &str| {
        let headers = [(name, tag), ("idempotency-key", request)];
        cluster.v1(id, Method::PUT, &format!("/v1/kv/{key}"), &headers, "w").await
    };
    let rows = [("k", "if-none-match", "*", "a"), ("k", "if-match", "\"99\"", "b"), ("missing", "if-match", "*", "c")];
    let mut first = Vec::new();
    for (key, name, tag, request) in rows {
        first.push(put(2, key, name, tag, request).await);
    }
    assert_eq!(first[0].assert_rejected(412, "condition_failed")["current_revision"], revision);
    cluster.delete(1, "/v1/kv/k").await.done();
    cluster.put(1, "/v1/kv/missing", "v").await.done();
    for id in ALL {
        for ((key, name, tag, request), first) in rows.into_iter().zip(&first) {
            let again = put(id, key, name, tag, request).await;
            again.assert_rejected(412, "condition_failed");
            assert_eq!((again.header("raft-replayed"), again.header("etag")), ("true", first.header("etag")));
            assert_eq!(again.json(), first.json());
        }
    }
    cluster.get(1, "/v1/kv/k").await.assert_rejected(404, "key_not_found");
}

/// A request whose response is discarded, and which is repeated until it gets one, is applied once.
///
/// Method: tasks count by transactions with an `Idempotency-Key`. Each sends a request twice at the same time and
/// discards the slower response, while the leader is killed and restarted, twice. Each key's version must then be the
/// number of requests.
#[tokio::test]
async fn requests_are_applied_once_while_leaders_die() {
    const TASKS: usize = 6;
    const REQUESTS_EACH: usize = 84;
    let mut cluster = TestCluster::form("once-kill", &ALL, &[]).await;
    let addrs: Vec<String> = ALL.into_iter().map(|id| cluster.addr(id).to_owned()).collect();
    let mut tasks = tokio::task::JoinSet::new();
    let done = Arc::new(AtomicUsize::new(0));
    for task in 0..TASKS {
        let (addrs, done, http) = (addrs.clone(), done.clone(), cluster.http().clone());
        tasks.spawn(async move {
            for number in 0..REQUESTS_EACH {
                let id = format!("task {task}, request {number}");
                let headers = [("idempotency-key", id.as_str())];
                let body = json!({"success": [{"put": {"key": format!("task-{task}"), "value": format!("{number}")}}]});
                let mut attempt = task + number;
                loop {
                    attempt += 1;
                    let send = |addr| http.request(Method::POST, addr, "/v1/txn", &headers, body.to_string());
                    let (here, there) = (send(&addrs[attempt % 3]), send(&addrs[(attempt + 1) % 3]));
                    // Use the faster response, and discard the other.
                    let answered = tokio::select! { answer = here => answer, answer = there => answer };
                    match answered {
                        Ok(answer) if answer.status == 200 => break,
                        Ok(answer) => assert!([503, 504].contains(&answer.status), "{}", answer.text()),
                        Err(_) => {}
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    for round in 1..=2 {
        let wanted = round * TASKS * REQUESTS_EACH / 3;
        eventually("{wanted} requests succeeded", 2 * DEADLINE, async || {
            let found = done.load(Ordering::Relaxed);
            if found >= wanted { Ok(()) } else { Err(found) }
        })
        .await;
        let leader = cluster.leader_of(&ALL).await;
        cluster.kill(leader);
        cluster.restart(leader).await;
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    let leader = cluster.leader_of(&ALL).await;
    // A duplicate may still be in progress; the log orders it before this write.
    cluster.write(leader, "after", "v").await;
    for id in ALL {
        let items = cluster.list_all(id, "prefix=task-").await;
        assert_eq!(items.len(), TASKS);
        for item in items {
            let found = (&item["version"], &item["value"]);
            assert_eq!(found, (&json!(REQUESTS_EACH), &json!((REQUESTS_EACH - 1).to_string())), "on node {id}: {item}");
        }
    }
}

/// Applied requests are remembered through restarts and snapshots, even by a node that got everything by snapshot.
///
/// Method: send each kind of request. Write until the requests are only in snapshots, and the logs start after them.
/// Kill -9 and restart all nodes: each request is replayed. Then add a node, which can get the requests by snapshot
/// only, let it lead alone, and send each request again.
#[tokio::test]
async fn requests_are_remembered_in_snapshots() {
    let mut cluster = TestCluster::form("once-snapshot", &ALL, &[CALM_BUT_QUICK, OFTEN].concat()).await;
    prepare(&cluster, 1).await;
    let first = send_all(&cluster, 1).await;
    cluster.all_applied(&ALL).await;
    let done = cluster.metrics(1).await.last_log_index.unwrap();
    cluster.write_many(2, "filler-", 150).await;
    for id in ALL {
        let purged = |metrics: &Metrics| (index_of(metrics.purged) > done).then_some(());
        cluster.metrics_say(id, "a log that starts after the requests", purged).await;
    }
    cluster.crash(&ALL).await;
    for id in ALL {
        assert_replayed(&cluster, id, &first).await;
    }

    cluster.add_node(4).await;
    let leader = cluster.leader_of(&ALL).await;
    cluster.add_learner(leader, 4).await;
    assert!(index_of(cluster.metrics(4).await.snapshot) > done, "the learner must have installed a snapshot");
    cluster.change_membership(leader, &[4]).await;
    cluster.leader_of(&[4]).await;
    for id in ALL {
        cluster.kill(id);
    }
    assert_replayed(&cluster, 4, &first).await;
}
