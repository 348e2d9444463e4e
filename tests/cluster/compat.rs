//! Can a node use the data that an older version left (see `tests/compat/README.md`)?

use std::path::Path;

use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Answer, DEADLINE, Http, TestNode, copy_directory, eventually};

async fn request(node: &TestNode, method: Method, path: &str, body: &'static str) -> Answer {
    Http::new().request(method, &node.addr, path, &[], body).await.unwrap()
}

/// Waits until the node leads and has applied its log, and returns the response to a GET.
async fn read(node: &TestNode, path: &str) -> Value {
    eventually(&format!("node {} serves {path}", node.id), DEADLINE, async || {
        let answer = request(node, Method::GET, path, "").await;
        if answer.status == 503 { Err(answer.text()) } else { Ok(answer.json()) }
    })
    .await
}

/// Checks a node before and after it is killed, and after it is stopped.
async fn through_ends(node: &mut TestNode, http: &Http, check: impl AsyncFn(&TestNode, &str)) {
    for end in ["killed", "stopped", "running"] {
        check(node, end).await;
        match end {
            "killed" => node.kill(),
            "stopped" => assert_eq!(node.stop().await, Some(0)),
            _ => return,
        }
        node.restart(http).await;
    }
}

/// A directory for a test with a copy of an older version's data.
fn copy_of(fixture: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compat").join(fixture);
    copy_directory(&fixture, &directory.path().join("data"));
    directory
}

/// An upgraded node has all its data, continues to count revisions, and keeps both after it was killed.
///
/// Method: start the binary on a copy of the directory, at another address (it is alone in its cluster). Read old keys.
/// Write to one of them, to new ones, and to an old one with a condition. Kill -9, and read all keys again. Send
/// SIGTERM, and read them again.
#[tokio::test]
async fn a_node_of_format_1_keeps_its_data() {
    let directory = copy_of("format-1");
    let http = Http::new();
    let mut node = TestNode::start(1, directory.path(), &[], &http).await;

    let old =
        |key: &str, value: &str| json!({"key": key, "value": value, "revision": 1, "create_revision": 1, "version": 1});
    assert_eq!(read(&node, "/v1/kv/key-7").await, old("key-7", "value 87 é"));
    assert_eq!(read(&node, "/v1/kv/key-39").await, old("key-39", "value 79 é"));
    assert_eq!(read(&node, "/v1/kv/empty").await, old("empty", ""));
    assert_eq!(read(&node, "/v1/kv/a/b%20%C3%BC").await, old("a/b ü", "last"));
    let list = read(&node, "/v1/kv?keys_only").await;
    assert_eq!((list["items"].as_array().unwrap().len(), &list["revision"]), (42, &json!(1)));
    let gone = request(&node, Method::GET, "/v1/watch?prefix=&from=1", "").await;
    assert_eq!((gone.status, &gone.json()["error"]["oldest_revision"]), (410, &json!(2)));

    let answer = request(&node, Method::PUT, "/v1/kv/new", "1").await;
    assert_eq!((answer.status, answer.json()), (200, json!({"revision": 2, "version": 1})));
    let answer = request(&node, Method::PUT, "/v1/kv/key-7", "changed").await;
    assert_eq!((answer.status, answer.json()), (200, json!({"revision": 3, "version": 2})));
    let condition = [("if-match", "\"1\"")];
    let answer = http.request(Method::PUT, &node.addr, "/v1/kv/empty", &condition, "full").await.unwrap();
    assert_eq!((answer.status, answer.json()), (200, json!({"revision": 4, "version": 2})));
    let answer = request(&node, Method::DELETE, "/v1/kv/key-8", "").await;
    assert_eq!((answer.status, answer.json()), (200, json!({"revision": 5, "deleted": 1})));

    through_ends(&mut node, &http, async |node, end| {
        let changed = json!({"key": "key-7", "value": "changed", "revision": 3, "create_revision": 1, "version": 2});
        assert_eq!(read(node, "/v1/kv/key-7").await, changed, "before it is {end}");
        assert_eq!(read(node, "/v1/kv/key-39").await, old("key-39", "value 79 é"), "before it is {end}");
        let full = json!({"key": "empty", "value": "full", "revision": 4, "create_revision": 1, "version": 2});
        assert_eq!(read(node, "/v1/kv/empty").await, full, "before it is {end}");
        assert_eq!(read(node, "/v1/kv/key-8").await["error"]["code"], "key_not_found", "before it is {end}");
        assert_eq!(read(node, "/v1/kv?limit=1").await["revision"], 5, "before it is {end}");
    })
    .await;
}

/// A node of format 2 keeps its data and the requests that it remembers, and still has both after it was killed.
///
/// Method: as above, with a repetition of an earlier request.
#[tokio::test]
async fn a_node_of_format_2_keeps_its_data() {
    let directory = copy_of("format-2");
    let http = Http::new();
    let mut node = TestNode::start(1, directory.path(), &[], &http).await;
    let of = |key: &str, value: &str, revision: u64, create_revision: u64, version: u64| json!({"key": key, "value": value, "revision": revision, "create_revision": create_revision, "version": version});
    assert_eq!(read(&node, "/v1/kv/key-7").await, of("key-7", "value 87 é", 94, 13, 3));
    assert_eq!(read(&node, "/v1/kv/txn").await, of("txn", "2", 110, 2, 2));
    assert_eq!(read(&node, "/v1/kv/key-30").await["error"]["code"], "key_not_found");
    let again = [("idempotency-key", "request-2")];
    let answer = http.request(Method::PUT, &node.addr, "/v1/kv/once", &again, "2").await.unwrap();
    assert_eq!((answer.json(), answer.header("raft-replayed")), (json!({"revision": 109, "version": 2}), "true"));
    let answer = request(&node, Method::PUT, "/v1/kv/new", "1").await;
    assert_eq!((answer.status, answer.json()), (200, json!({"revision": 115, "version": 1})));

    through_ends(&mut node, &http, async |node, end| {
        assert_eq!(read(node, "/v1/kv/new").await, of("new", "1", 115, 115, 1), "before it is {end}");
        assert_eq!(read(node, "/v1/kv/key-7").await, of("key-7", "value 87 é", 94, 13, 3), "before it is {end}");
    })
    .await;
}
