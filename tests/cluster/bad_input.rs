//! Does an invalid request do harm?
//!
//! The modules below contain the rows, and this one sends them. Each must return its status, its error as JSON and
//! `raft-outcome: not_applied`. Afterwards every node is alive and in the same state as before, and no log contains
//! anything from the requests.

mod application_rows;
mod cluster_rows;
mod kv_rows;
mod list_rows;
mod management_rows;
mod peer_rows;
mod raw_sockets;
mod rejected_by_state;
mod route_rows;
mod shapes;
mod token_rows;
mod txn_rows;
mod watch_rows;

use std::collections::BTreeMap;

use raft_key_value::types::{LogId, StoredMembership, Vote};
use reqwest::{Body, Method};
use serde_json::json;

use self::token_rows::KNOWN_TOKEN;
use crate::auth::secured;
use crate::harness::{ALL, Answer, CALM, DEADLINE, Http, OFTEN, STEADY, TestCluster, eventually, identity_of};

/// Part of the rows' bodies and paths, to detect that a node logs what clients send.
const MARKER: &str = "mArKeR-must-not-be-logged";

/// The longest request body that the nodes of these tests accept, below the default so that rows about it are quick.
const REQUEST_BYTES_MAX: usize = 1_100_000;

/// A request that must be rejected, and the expected error.
struct Row {
    what: String,
    method: Method,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: RowBody,
    status: u16,
    error: &'static str,
    code: Option<&'static str>,
    allow: Option<&'static str>,
    /// Further fields of the error.
    fields: Vec<(&'static str, serde_json::Value)>,
    /// Strings that the message must contain.
    named: Vec<&'static str>,
}

enum RowBody {
    Whole(Vec<u8>),
    Chunked(Vec<Vec<u8>>),
}

impl Row {
    fn new(method: Method, path: &str, what: &str, body: RowBody) -> Self {
        let (what, path) = (what.to_owned(), path.to_owned());
        Row {
            what,
            method,
            path,
            headers: Vec::new(),
            body,
            status: 0,
            error: "",
            code: None,
            allow: None,
            fields: Vec::new(),
            named: Vec::new(),
        }
    }

    /// A request without a body.
    fn bare(method: Method, path: &str, what: &str) -> Self {
        Row::new(method, path, what, RowBody::Whole(Vec::new()))
    }

    fn post(path: &str, what: &str, body: impl Into<Vec<u8>>) -> Self {
        Row::new(Method::POST, path, what, RowBody::Whole(body.into()))
    }

    /// A `POST` without a length.
    fn post_chunked(path: &str, what: &str, chunks: Vec<Vec<u8>>) -> Self {
        Row::new(Method::POST, path, what, RowBody::Chunked(chunks))
    }

    fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn body(self, body: impl Into<Vec<u8>>) -> Self {
        Row { body: RowBody::Whole(body.into()), ..self }
    }

    /// A body without a length.
    fn body_in(self, chunks: Vec<Vec<u8>>) -> Self {
        Row { body: RowBody::Chunked(chunks), ..self }
    }

    fn gives(mut self, status: u16, error: &'static str) -> Self {
        (self.status, self.error) = (status, error);
        self
    }

    fn gives_bad_request(self, code: &'static str) -> Self {
        Row { code: Some(code), ..self.gives(400, "BadRequest") }
    }

    fn gives_bad_json(self) -> Self {
        self.gives_bad_request("invalid_json")
    }

    fn gives_too_large(self, code: &'static str) -> Self {
        Row { code: Some(code), ..self.gives(413, "TooLarge") }
    }

    fn gives_wrong_method(self, allow: &'static str) -> Self {
        let row = match self.path.starts_with("/v1/") {
            true => self.gives_v1(405, "method_not_allowed"),
            false => self.gives(405, "MethodNotAllowed"),
        };
        Row { allow: Some(allow), ..row }
    }

    /// An error in the form that the path requires.
    fn gives_code(self, status: u16, code: &'static str) -> Self {
        match status {
            _ if self.path.starts_with("/v1/") => self.gives_v1(status, code),
            400 => self.gives_bad_request(code),
            413 => self.gives_too_large(code),
            _ => panic!("no error of the original routes has status {status} and a code"),
        }
    }

    /// An error of the key-value API.
    fn gives_v1(mut self, status: u16, code: &'static str) -> Self {
        (self.status, self.code) = (status, Some(code));
        self
    }

    /// A field of the error in addition to the usual ones.
    fn field(mut self, name: &'static str, value: impl Into<serde_json::Value>) -> Self {
        self.fields.push((name, value.into()));
        self
    }

    /// Names that the message must contain.
    fn naming(mut self, names: &[&'static str]) -> Self {
        self.named.extend(names);
        self
    }

    async fn send(&self, http: &Http, addr: &str) -> Result<Answer, reqwest::Error> {
        let body = match &self.body {
            RowBody::Whole(bytes) => Body::from(bytes.clone()),
            RowBody::Chunked(chunks) => {
                let chunks: Vec<_> = chunks.iter().cloned().map(Ok::<_, std::io::Error>).collect();
                Body::wrap_stream(futures_util::stream::iter(chunks))
            }
        };
        let headers: Vec<(&str, &str)> = self.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        http.request(self.method.clone(), addr, &self.path, &headers, body).await
    }

    /// How the response differs from the expected one, if it does.
    fn complaint(&self, answer: &Answer) -> Option<String> {
        let in_v1 = self.error.is_empty();
        let mut checks = vec![
            ("status", json!(self.status), json!(answer.status)),
            ("raft-outcome", json!("not_applied"), json!(answer.header("raft-outcome"))),
            ("content-type", json!("application/json"), json!(answer.header("content-type"))),
            ("allow", json!(self.allow.unwrap_or_default()), json!(answer.header("allow"))),
        ];
        if in_v1 {
            for name in ["raft-revision", "raft-term", "raft-node"] {
                checks.push((name, json!(true), json!(answer.header(name).parse::<u64>().is_ok())));
            }
            let current = self.fields.iter().find(|(name, _)| *name == "current_revision");
            let etag = current.map(|(_, revision)| format!("\"{revision}\"")).unwrap_or_default();
            checks.push(("etag", json!(etag), json!(answer.header("etag"))));
        }
        if self.method != Method::HEAD {
            let json: serde_json::Value = match serde_json::from_slice(&answer.body) {
                Ok(json) => json,
                Err(error) => return Some(format!("the body is not JSON: {error}")),
            };
            let fields = if in_v1 { &json["error"] } else { &json["Err"][self.error] };
            let message = fields["message"].as_str().unwrap_or_default();
            checks.extend([
                ("error", json!(true), json!(fields.is_object())),
                ("code", json!(self.code), fields["code"].clone()),
                ("message", json!(true), json!(!message.is_empty())),
                ("outcome", json!("not_applied"), fields["outcome"].clone()),
            ]);
            checks.extend(self.fields.iter().map(|(name, value)| (*name, value.clone(), fields[*name].clone())));
            checks.extend(self.named.iter().map(|name| (*name, json!(true), json!(message.contains(name)))));
        }
        let wrong = checks.into_iter().find(|(_, expected, found)| expected != found);
        wrong.map(|(what, expected, found)| format!("{what} should be {expected}, got {found}"))
    }
}

/// The state that a rejected request must not change.
#[derive(Debug, PartialEq)]
struct State {
    raft: RaftState,
    data: DataState,
}

/// The state that a request which never got into the log must not change.
#[derive(Debug, PartialEq)]
struct RaftState {
    vote: Vote,
    last_log_index: Option<u64>,
    last_applied: Option<LogId>,
    membership: StoredMembership,
    incarnation: u64,
}

/// The state that no rejected request may change.
#[derive(Debug, PartialEq)]
struct DataState {
    value: Result<String, String>,
    /// Every key with its value and revisions, and the revision of the store.
    listing: serde_json::Value,
}

/// The state of each node, once all have applied the first one's entries.
async fn states(cluster: &TestCluster, ids: &[u64]) -> BTreeMap<u64, State> {
    cluster.all_applied(ids).await;
    let mut states = BTreeMap::new();
    for id in ids {
        let metrics = cluster.metrics(*id).await;
        let raft = RaftState {
            vote: metrics.vote,
            last_log_index: metrics.last_log_index,
            last_applied: metrics.last_applied,
            membership: StoredMembership::clone(&metrics.membership_config),
            incarnation: identity_of(cluster, *id).await.incarnation,
        };
        let listing = cluster.get(*id, "/v1/kv?consistency=stale").await.json();
        assert!(listing["next"].is_null(), "the keys of these tests must fit on one page");
        let data = DataState { value: cluster.read(*id, "known").await, listing };
        states.insert(*id, State { raft, data });
    }
    states
}

/// Sends all rows to one node of a cluster, and then asserts that none did harm.
async fn reject_all(cluster: &mut TestCluster, ids: &[u64], target: u64, rows: &[Row]) {
    cluster.write(target, "known", "value").await;
    let before = states(cluster, ids).await;
    send_all(cluster, target, rows).await;
    unharmed(cluster, ids, before).await;
}

/// Sends all rows to one node of a cluster, and compares each response with its row.
async fn send_all(cluster: &mut TestCluster, target: u64, rows: &[Row]) {
    let mut complaints = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        // Use a new connection, so that the remains of one row cannot reach the next.
        let (answer, complaint) = match row.send(&Http::new(), cluster.addr(target)).await {
            Ok(answer) => (shortened(&answer.text()), row.complaint(&answer)),
            Err(error) => (String::new(), Some(format!("no response: {error:?}"))),
        };
        if let Some(complaint) = complaint {
            let path = shortened(&row.path);
            complaints.push(format!("row {number}: {} {path}: {}: {complaint}; {answer}", row.method, row.what));
        }
        cluster.assert_alive();
    }
    eprintln!("{} rows were sent to node {target}", rows.len());
    assert!(complaints.is_empty(), "{} of {} rows:\n{}", complaints.len(), rows.len(), complaints.join("\n"));
}

/// Asserts that all nodes are alive and in the same state as before, and logged nothing from the requests.
async fn unharmed(cluster: &mut TestCluster, ids: &[u64], before: BTreeMap<u64, State>) {
    cluster.assert_alive();
    assert_eq!(states(cluster, ids).await, before);
    silent_and_working(cluster, ids).await;
}

/// Asserts that no node logged anything from the requests or left a file, and that all of them still work.
async fn silent_and_working(cluster: &TestCluster, ids: &[u64]) {
    for id in ids {
        let log = cluster.node(*id).log();
        assert!(!log.contains(MARKER), "node {id} logged part of a request:\n{log}");
        assert!(!log.contains("panicked"), "node {id} panicked:\n{log}");
        // A node rewrites `CLOCK` regularly; its temporary file disappears at once.
        eventually("no temporary file is left", DEADLINE, async || {
            let files = cluster.node(*id).files();
            let left: Vec<_> = files
                .into_iter()
                .filter(|path| path.extension().is_some_and(|e| e == "tmp") && path.exists())
                .collect();
            if left.is_empty() { Ok(()) } else { Err(format!("of node {id}: {left:?}")) }
        })
        .await;
    }
    for id in ids {
        cluster.write(*id, "known", &format!("afterwards {id}")).await;
        assert_eq!(cluster.consistent_read(*id, "known").await, Ok(format!("afterwards {id}")));
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(300).collect()
}

fn flags() -> Vec<&'static str> {
    let mut flags = STEADY.to_vec();
    flags.extend(["--max-request-bytes", "1100000"]);
    assert_eq!(REQUEST_BYTES_MAX.to_string(), flags[flags.len() - 1]);
    flags
}

/// All rows that are rejected for their form, as they are sent to one node.
fn all_rows(cluster: &TestCluster, target: u64) -> Vec<Row> {
    let addr = cluster.addr(target);
    let lists = [
        shapes::rows(target, addr),
        route_rows::rows(),
        application_rows::rows(),
        management_rows::rows(target, addr),
        kv_rows::rows(),
        list_rows::rows(),
        txn_rows::rows(),
        watch_rows::rows(),
        cluster_rows::rows(),
    ];
    let rows: Vec<Row> = lists.into_iter().flatten().collect();
    let v1 = rows.iter().filter(|row| row.path.starts_with("/v1")).count();
    eprintln!("{} rows for the original routes, {v1} for /v1", rows.len() - v1);
    assert!(rows.len() - v1 >= 700 && v1 >= 1500, "{} and {v1} rows", rows.len() - v1);
    rows
}

/// Malformed requests of applications and operators are rejected and change nothing.
///
/// Method: send every row to a node that is a cluster of its own.
#[tokio::test]
async fn bad_requests_do_no_harm_to_a_single_node() {
    let mut cluster = TestCluster::form("bad-single", &[1], &flags()).await;
    let rows = all_rows(&cluster, 1);
    reject_all(&mut cluster, &[1], 1, &rows).await;
}

/// A follower rejects malformed requests itself instead of forwarding them, just as the leader does.
///
/// Method: send every row to a follower of a cluster of three.
#[tokio::test]
async fn bad_requests_do_no_harm_to_a_cluster() {
    let mut cluster = TestCluster::form("bad-cluster", &[1, 2, 3], &flags()).await;
    let follower = 1 + cluster.leader_of(&[1, 2, 3]).await % 3;
    let rows = all_rows(&cluster, follower);
    reject_all(&mut cluster, &[1, 2, 3], follower, &rows).await;
}

/// Malformed requests about tokens are rejected, by a follower as by the leader, and change nothing.
///
/// Method: send every row with the root token to a follower of a cluster that requires tokens, and compare the tokens and
/// the keys.
#[tokio::test]
async fn bad_requests_about_tokens_do_no_harm() {
    let mut cluster = secured("bad-tokens", &ALL, &flags()).await;
    let follower = 1 + cluster.leader_of(&ALL).await % 3;
    let body = json!({"name": KNOWN_TOKEN, "role": "read"}).to_string();
    cluster.v1(follower, Method::POST, "/v1/tokens", &[], body).await.done();
    let state = async |cluster: &TestCluster| {
        let mut state = Vec::new();
        for id in ALL {
            state.push([
                cluster.get(id, "/v1/tokens").await.done(),
                cluster.get(id, "/v1/kv").await.done(),
                cluster.get(id, "/v1/cluster/hash").await.done()["revision"].clone(),
            ]);
        }
        state
    };
    let before = state(&cluster).await;
    send_all(&mut cluster, follower, &token_rows::rows()).await;
    assert_eq!(state(&cluster).await, before);
    silent_and_working(&cluster, &ALL).await;
}

/// RPCs that no node of the cluster sent are rejected and change nothing.
///
/// Method: send garbage, other formats, broken envelopes, envelopes for other nodes, and valid envelopes with
/// impossible content, to the leader and to a follower of a cluster of three, which has a snapshot to tamper with.
#[tokio::test]
async fn bad_messages_between_nodes_do_no_harm() {
    let mut flags = flags();
    flags.extend(OFTEN);
    let mut cluster = TestCluster::form("bad-peers", &[1, 2, 3], &flags).await;
    cluster.write_many(1, "k", 60).await;
    let leader = cluster.leader_of(&[1, 2, 3]).await;
    for target in [leader, 1 + leader % 3] {
        cluster.metrics_say(target, "a snapshot", |metrics| metrics.snapshot).await;
        let rows = peer_rows::rows(&cluster, leader, target).await;
        reject_all(&mut cluster, &[1, 2, 3], target, &rows).await;
    }
}

/// Keys and values of the maximum size are accepted.
#[tokio::test]
async fn the_largest_key_and_value_are_accepted() {
    let cluster = TestCluster::form("largest", &[1], CALM).await;
    let value = "v".repeat(1 << 20);
    for key in ["k".repeat(1024), "é".repeat(512)] {
        cluster.post(1, "/write", json!({"Set": {"key": key, "value": value}}).to_string()).await.ok().unwrap();
        assert_eq!(cluster.consistent_read(1, &key).await.as_ref(), Ok(&value));
        assert_eq!(cluster.read(1, &key).await.as_ref(), Ok(&value));
    }
    for (key, value) in [("empty value", ""), ("\u{0}", "a NUL, escaped"), ("😀", "\u{10ffff}\"\\\n")] {
        cluster.post(1, "/write", json!({"Set": {"key": key, "value": value}}).to_string()).await.ok().unwrap();
        assert_eq!(cluster.consistent_read(1, key).await.as_deref(), Ok(value));
    }
}
