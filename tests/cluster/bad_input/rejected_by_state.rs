//! Valid requests that the current state rejects: the error describes the state, and nothing changes.

use raft_key_value::NodeId;
use reqwest::Method;
use serde_json::json;

use super::{MARKER, Row, flags, send_all, silent_and_working, states};
use crate::harness::TestCluster;

/// The requests for a store at `revision`, whose key `known` is at revision `known` and was put with the
/// `Idempotency-Key` in `used`.
fn rows(known: u64, revision: u64, used: &str) -> Vec<Row> {
    const MISSING: &str = "/v1/kv/missing";
    const KNOWN: &str = "/v1/kv/known";
    let mut rows = Vec::new();
    for path in [MISSING, "/v1/kv/missing?raw", "/v1/kv/known%2F", "/v1/kv/Known", "/v1/kv/%20known"] {
        let row = Row::bare(Method::GET, path, "a missing key");
        rows.push(row.gives_v1(404, "key_not_found").field("revision", revision));
    }
    rows.push(Row::bare(Method::HEAD, MISSING, "a missing key").gives_v1(404, "key_not_found"));
    let touch = Row::post(&format!("{MISSING}/touch?ttl=30s"), "a missing key", "");
    rows.push(touch.gives_v1(404, "key_not_found").field("revision", revision));

    let writes = |path: &str, what: &str| {
        [
            Row::bare(Method::PUT, path, what).body(MARKER),
            Row::bare(Method::PUT, &format!("{path}?ttl=30s"), what).body("value"),
            Row::bare(Method::DELETE, path, what),
            Row::post(&format!("{path}/touch?ttl=30s"), what, ""),
        ]
    };
    let wrong = [
        "0".to_owned(),
        "\"0\"".to_owned(),
        format!("\"{}\"", known - 1),
        format!("\"{}\"", known + 1),
        u64::MAX.to_string(),
        // Tags as proxies and clients produce them, and tags without a revision.
        format!("W/\"{}\"", known - 1),
        format!("\"{}-gzip\"", known + 1),
        format!("\"{}\", \"{}\", W/\"x\"", known - 1, known + 1),
        "\"abc\"".to_owned(),
        "\"\"".to_owned(),
        "\"*\"".to_owned(),
        "\"-1\", \"99999999999999999999\", \"ü\"".to_owned(),
    ];
    let reads =
        [format!("{KNOWN}?raw"), KNOWN.to_owned()].map(|path| Row::bare(Method::GET, &path, "another revision"));
    for (row, tag) in reads.into_iter().zip(&wrong) {
        rows.push(row.header("if-match", tag).gives_v1(412, "condition_failed").field("current_revision", known));
    }
    for tag in &wrong {
        for row in writes(KNOWN, "another revision") {
            let row = row.header("if-match", tag.clone()).gives_v1(412, "condition_failed");
            rows.push(row.field("current_revision", known));
        }
    }
    for tag in ["*".to_owned(), format!("\"{known}\""), format!("\"x\", W/\"{known}-gzip\", \"0\"")] {
        for row in writes(KNOWN, "an existing key") {
            let row = row.header("if-none-match", tag.clone()).gives_v1(412, "condition_failed");
            rows.push(row.field("current_revision", known));
        }
    }
    for (if_match, if_none_match) in [("*", known), ("\"1000000\", \"2000000\"", known + 1), ("\"abc\"", known + 1)] {
        for row in writes(KNOWN, "both conditions") {
            let row = row.header("if-match", if_match).header("if-none-match", format!("\"{if_none_match}\""));
            rows.push(row.gives_v1(412, "condition_failed").field("current_revision", known));
        }
    }
    for tag in ["*".to_owned(), "0".to_owned(), format!("\"{known}\""), format!("\"{known}\", \"1\"")] {
        for row in writes(MISSING, "a missing key") {
            rows.push(row.header("if-match", tag.clone()).gives_v1(412, "condition_failed"));
        }
    }

    for revision in [0, known - 1] {
        let row = Row::bare(Method::GET, &format!("/v1/kv?revision={revision}"), "a revision that is not kept");
        rows.push(row.gives_v1(410, "revision_gone"));
    }

    let reused = [
        Row::bare(Method::PUT, KNOWN, "another value").body(MARKER),
        Row::bare(Method::PUT, "/v1/kv/other", "another key").body("value"),
        Row::bare(Method::PUT, &format!("{KNOWN}?ttl=30s"), "another time").body("value"),
        Row::bare(Method::PUT, KNOWN, "another condition").body("value").header("if-match", "*"),
        Row::bare(Method::DELETE, KNOWN, "another method"),
        Row::post(&format!("{KNOWN}/touch?ttl=30s"), "another method", ""),
        Row::bare(Method::DELETE, "/v1/kv?prefix=known", "another method"),
        Row::bare(Method::DELETE, "/v1/kv?all", "another method"),
        Row::post("/v1/txn", "another route", r#"{"success":[{"put":{"key":"known","value":"value"}}]}"#),
    ];
    rows.extend(reused.map(|row| row.header("idempotency-key", used).gives_v1(422, "idempotency_key_reused")));
    let write = json!({"Set": {"key": "known", "value": MARKER}}).to_string();
    let row = Row::post("/write", "another value", write).header("idempotency-key", used);
    rows.push(row.gives(422, "IdempotencyKeyReused"));
    rows
}

/// A request that the state rejects changes no key and no revision, and its error describes the state.
///
/// Method: send every row to a node of its own, and to the leader and a follower of three. Compare each response with
/// the revisions read before, and the keys and revisions of all nodes before and after.
#[tokio::test]
async fn a_request_that_the_state_rejects_changes_nothing() {
    for ids in [vec![1], vec![1, 2, 3]] {
        let mut cluster = TestCluster::form("bad-state", &ids, &flags()).await;
        let leader = cluster.leader_of(&ids).await;
        let mut targets: Vec<NodeId> = vec![leader, 1 + leader % ids.len() as u64];
        targets.dedup();
        for target in targets {
            cluster.write(target, "before", "value").await;
            let used = format!("used on {target}");
            let id = [("idempotency-key", used.as_str())];
            let known = cluster.v1(target, Method::PUT, "/v1/kv/known", &id, "value").await.revision();
            cluster.write(target, "after", "value").await;
            let before = states(&cluster, &ids).await;
            let revision = before[&target].data.listing["revision"].as_u64().unwrap();
            assert!(revision > known);
            send_all(&mut cluster, target, &rows(known, revision, &used)).await;
            let after = states(&cluster, &ids).await;
            for id in &ids {
                assert_eq!(after[id].data, before[id].data, "on node {id}");
            }
            silent_and_working(&cluster, &ids).await;
            cluster.delete_all(target).await;
        }
    }
}
