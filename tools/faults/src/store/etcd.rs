//! etcd 3.5, through its JSON gateway: the control.
//!
//! The gateway encodes 64-bit numbers as strings and bytes in base64, and omits fields that are zero, empty
//! or false.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use harness::http::{self, Client, Method, Request, StatusCode, with_header};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, de};
use serde_json::{Value, json};

use super::{Attempt, NodeStatus, Sink, WatchPlace, WatchStream};
use crate::history::{
    Call, CallResult, Change, ChangeKind, Comparison, Condition, Consistency, FinalState, NodeId, Operand, Record,
    Step, StepResult, Text,
};
use crate::network::PEER_PORT;
use crate::node::Node;

/// How long a request about a node's own state may take.
const STATUS_DEADLINE: Duration = Duration::from_secs(2);
/// Page size of the listings in the load: small, so that there are several pages.
const PAGE_KEYS: usize = 16;
/// A listing is given up after this many pages.
const PAGES_MAX: usize = 1000;
/// The byte 0 in base64. As the first key it means the first existing key, as the end it means no end.
const NO_BOUND: &str = "AA==";
/// Errors by which a node reports that it proposed nothing. All others count as unknown: most of them only
/// mean that the log did not respond in time.
const REFUSED_BEFORE_PROPOSING: [&str; 3] =
    ["etcdserver: no leader", "etcdserver: too many requests", "raft proposal dropped"];

/// Each member's name is its number; its timings are the defaults.
pub fn add_command(command: &mut Command, binary: &Path, node: &Node) {
    command.arg(binary);
    let (name, data_directory) = (node.id().to_string(), node.data_directory());
    harness::etcd::add_arguments(command, &name, &data_directory, node.host.http(), node.host.peer());
}

pub async fn call(http: &Client, node: SocketAddr, call: &Call, deadline: Duration) -> Attempt {
    if let Call::List { prefix, consistency } = call {
        return match tokio::time::timeout(deadline, list(http, node, prefix, *consistency, PAGE_KEYS)).await {
            Ok(Ok((revision, items))) => Attempt::done(revision, CallResult::List(items)),
            Ok(Err(error)) => Attempt::not_applied(format!("{error:#}")),
            Err(_) => Attempt::not_applied("no response in time".to_owned()),
        };
    }
    let reads = matches!(call, Call::Get { .. });
    match http.send(node, request_of(call), deadline).await {
        Ok(answer) => understand(call, answer.status(), answer.body())
            .unwrap_or_else(|error| Attempt::failed(reads, format!("{error:#}"))),
        Err(error) => Attempt::of_error(reads, &error),
    }
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode(bytes)
}

fn post(path: &str, body: &Value) -> Request {
    http::json(Method::POST, &format!("/v3/{path}"), body)
}

fn request_of(call: &Call) -> Request {
    match call {
        Call::Put { key, value, condition: None } => post("kv/put", &put(key, value)),
        Call::Put { key, value, condition: Some(condition) } => {
            post("kv/txn", &conditional(key, condition, json!({"request_put": put(key, value)})))
        }
        Call::Delete { key, condition: None } => post("kv/deleterange", &one(key)),
        Call::Delete { key, condition: Some(condition) } => {
            post("kv/txn", &conditional(key, condition, json!({"request_delete_range": one(key)})))
        }
        Call::Txn { compare, success, failure } => {
            let compare: Vec<Value> = compare.iter().map(comparison).collect();
            let steps = |steps: &[Step]| steps.iter().map(step).collect::<Vec<_>>();
            let body = json!({"compare": compare, "success": steps(success), "failure": steps(failure)});
            post("kv/txn", &body)
        }
        Call::Get { key, consistency } => {
            let body = json!({"key": encode(&**key), "serializable": *consistency == Consistency::Stale});
            post("kv/range", &body)
        }
        Call::List { prefix, consistency } => {
            let (first, end) = range_of_prefix(prefix);
            let body = json!({"key": first, "range_end": end, "serializable": *consistency == Consistency::Stale});
            post("kv/range", &body)
        }
    }
}

fn one(key: &str) -> Value {
    json!({"key": encode(key)})
}

/// Requests the previous key-value pair, which contains the version.
fn put(key: &str, value: &str) -> Value {
    json!({"key": encode(key), "value": encode(value), "prev_kv": true})
}

/// A change under a condition. If the condition does not hold, the same transaction reads the key.
fn conditional(key: &str, condition: &Condition, change: Value) -> Value {
    let compare = match condition {
        Condition::Missing => is_missing(key),
        Condition::Revision(revision) => has_revision(key, *revision),
    };
    json!({"compare": [compare], "success": [change], "failure": [{"request_range": one(key)}]})
}

fn is_missing(key: &str) -> Value {
    json!({"key": encode(key), "target": "CREATE", "result": "EQUAL", "create_revision": "0"})
}

fn has_revision(key: &str, revision: u64) -> Value {
    json!({"key": encode(key), "target": "MOD", "result": "EQUAL", "mod_revision": revision.to_string()})
}

fn comparison(comparison: &Comparison) -> Value {
    let key = &*comparison.key;
    match &comparison.operand {
        Operand::Missing => is_missing(key),
        Operand::Value(value) => {
            json!({"key": encode(key), "target": "VALUE", "result": "EQUAL", "value": encode(&**value)})
        }
        Operand::Revision(revision) => has_revision(key, *revision),
    }
}

fn step(step: &Step) -> Value {
    match step {
        Step::Put { key, value } => json!({"request_put": {"key": encode(&**key), "value": encode(&**value)}}),
        Step::Delete { key } => json!({"request_delete_range": one(key)}),
        Step::Get { key } => json!({"request_range": one(key)}),
    }
}

/// The first key with a prefix, and the first key after all of them.
fn range_of_prefix(prefix: &str) -> (String, String) {
    let mut end = prefix.as_bytes().to_vec();
    // UTF-8 has no byte 255, so the last byte can be incremented.
    match end.last_mut() {
        Some(last) => *last += 1,
        None => return (NO_BOUND.to_owned(), NO_BOUND.to_owned()),
    }
    (encode(prefix), encode(end))
}

fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
}

fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Text, D::Error> {
    let bytes = STANDARD.decode(String::deserialize(deserializer)?).map_err(de::Error::custom)?;
    String::from_utf8(bytes).map(Text::from).map_err(de::Error::custom)
}

#[derive(Deserialize)]
struct Header {
    #[serde(default, deserialize_with = "number")]
    revision: u64,
}

#[derive(Deserialize)]
struct KeyValue {
    #[serde(deserialize_with = "text")]
    key: Text,
    #[serde(default, deserialize_with = "text")]
    value: Text,
    #[serde(deserialize_with = "number")]
    mod_revision: u64,
    #[serde(default, deserialize_with = "number")]
    create_revision: u64,
    #[serde(default, deserialize_with = "number")]
    version: u64,
}

impl KeyValue {
    fn into_record(self) -> (Text, Record) {
        let KeyValue { key, value, mod_revision, create_revision, version } = self;
        (key, Record { value, revision: mod_revision, create_revision, version })
    }
}

#[derive(Deserialize)]
struct Put {
    header: Header,
    prev_kv: Option<KeyValue>,
}

impl Put {
    fn version(&self) -> u64 {
        self.prev_kv.as_ref().map_or(0, |before| before.version) + 1
    }
}

#[derive(Deserialize)]
struct DeleteRange {
    header: Header,
    #[serde(default, deserialize_with = "number")]
    deleted: u64,
}

#[derive(Deserialize)]
struct Range {
    header: Header,
    #[serde(default)]
    kvs: Vec<KeyValue>,
    #[serde(default)]
    more: bool,
}

impl Range {
    fn into_first(self) -> Option<Record> {
        self.kvs.into_iter().next().map(|found| found.into_record().1)
    }
}

#[derive(Deserialize)]
struct Txn {
    header: Header,
    #[serde(default)]
    succeeded: bool,
    #[serde(default)]
    responses: Vec<TxnResponse>,
}

#[derive(Deserialize)]
enum TxnResponse {
    #[serde(rename = "response_put")]
    Put(Put),
    #[serde(rename = "response_delete_range")]
    DeleteRange(DeleteRange),
    #[serde(rename = "response_range")]
    Range(Range),
}

fn understand(call: &Call, status: StatusCode, body: &[u8]) -> Result<Attempt> {
    if !status.is_success() {
        return refusal(matches!(call, Call::Get { .. }), status, body);
    }
    let (revision, result) = match call {
        Call::Put { condition: None, .. } => {
            let put: Put = serde_json::from_slice(body)?;
            (put.header.revision, CallResult::Put { version: put.version() })
        }
        Call::Delete { condition: None, .. } => {
            let delete: DeleteRange = serde_json::from_slice(body)?;
            (delete.header.revision, CallResult::Delete { deleted: delete.deleted > 0 })
        }
        Call::Put { .. } | Call::Delete { .. } => {
            let mut txn: Txn = serde_json::from_slice(body)?;
            let result =
                match txn.responses.pop().context("the response to a transaction lacks the result of its step")? {
                    TxnResponse::Put(put) => CallResult::Put { version: put.version() },
                    TxnResponse::DeleteRange(delete) => CallResult::Delete { deleted: delete.deleted > 0 },
                    TxnResponse::Range(range) => {
                        CallResult::ConditionFailed { found: range.into_first().map(|found| found.revision) }
                    }
                };
            (txn.header.revision, result)
        }
        Call::Txn { .. } => {
            let txn: Txn = serde_json::from_slice(body)?;
            let results = txn.responses.into_iter().map(|response| match response {
                TxnResponse::Put(_) => StepResult::Put,
                TxnResponse::DeleteRange(delete) => StepResult::Delete { deleted: delete.deleted > 0 },
                TxnResponse::Range(range) => StepResult::Get(range.into_first()),
            });
            (txn.header.revision, CallResult::Txn { succeeded: txn.succeeded, results: results.collect() })
        }
        Call::Get { .. } => {
            let range: Range = serde_json::from_slice(body)?;
            (range.header.revision, CallResult::Get(range.into_first()))
        }
        Call::List { .. } => bail!("a listing is read page by page"),
    };
    Ok(Attempt::done(revision, result))
}

#[derive(Deserialize)]
struct Refused {
    error: String,
}

fn refusal(reads: bool, status: StatusCode, body: &[u8]) -> Result<Attempt> {
    let Refused { error } = serde_json::from_slice(body)
        .with_context(|| format!("{status} with the body {:?}", String::from_utf8_lossy(body)))?;
    let reason = format!("{} {error}", status.as_u16());
    if REFUSED_BEFORE_PROPOSING.contains(&error.as_str()) {
        return Ok(Attempt::not_applied(reason));
    }
    Ok(Attempt::failed(reads, reason))
}

/// Sends a request that must be served at once.
async fn ask<T: DeserializeOwned>(http: &Client, node: SocketAddr, request: Request, deadline: Duration) -> Result<T> {
    let answer = http.send(node, request, deadline).await?;
    let body = answer.body();
    if !answer.status().is_success() {
        bail!("{}: {}", answer.status(), String::from_utf8_lossy(body));
    }
    serde_json::from_slice(body).with_context(|| format!("unexpected response: {}", String::from_utf8_lossy(body)))
}

/// All keys with a prefix, at the revision of the first page.
async fn list(
    http: &Client,
    node: SocketAddr,
    prefix: &str,
    consistency: Consistency,
    page_keys: usize,
) -> Result<(u64, Vec<(Text, Record)>)> {
    let mut items: Vec<(Text, Record)> = Vec::new();
    let (mut first, end) = range_of_prefix(prefix);
    // Revision 0 is the newest.
    let mut revision = 0;
    for _ in 0..PAGES_MAX {
        let body = json!({
            "key": first,
            "range_end": end,
            "limit": page_keys.to_string(),
            "revision": revision.to_string(),
            "serializable": consistency == Consistency::Stale,
        });
        let page: Range = ask(http, node, post("kv/range", &body), super::CLIENT_DEADLINE).await?;
        if revision == 0 {
            revision = page.header.revision;
        }
        items.extend(page.kvs.into_iter().map(KeyValue::into_record));
        match items.last() {
            // The smallest key after the last one.
            Some((last, _)) if page.more => first = encode(format!("{last}\0")),
            _ => return Ok((revision, items)),
        }
    }
    bail!("a listing exceeds {PAGES_MAX} pages")
}

#[derive(Deserialize)]
struct Status {
    #[serde(default, deserialize_with = "number")]
    leader: u64,
    #[serde(default, rename = "raftTerm", deserialize_with = "number")]
    term: u64,
    #[serde(default, rename = "raftAppliedIndex", deserialize_with = "number")]
    applied: u64,
    /// The last committed entry: etcd reports no later ones.
    #[serde(default, rename = "raftIndex", deserialize_with = "number")]
    committed: u64,
}

#[derive(Deserialize)]
struct Members {
    members: Vec<Member>,
}

#[derive(Deserialize)]
struct Member {
    #[serde(rename = "ID", deserialize_with = "number")]
    id: u64,
    /// The node's number.
    name: String,
    #[serde(default, rename = "isLearner")]
    learner: bool,
}

pub async fn status(http: &Client, node: SocketAddr) -> Result<NodeStatus> {
    let empty = json!({});
    let status = ask::<Status>(http, node, post("maintenance/status", &empty), STATUS_DEADLINE);
    let members = ask::<Members>(http, node, post("cluster/member/list", &empty), STATUS_DEADLINE);
    let (status, Members { members }) = tokio::try_join!(status, members)?;
    // A member has no name until it has registered with the cluster.
    let number_of = |member: &Member| member.name.parse::<NodeId>().ok();
    let leader = members.iter().find(|member| member.id == status.leader).and_then(number_of);
    let voters = members.iter().filter(|member| !member.learner).filter_map(number_of).collect();
    let (term, applied, last_log) = (status.term, status.applied, status.committed);
    Ok(NodeStatus { leader, term, applied, last_log, voters, addresses: BTreeMap::new(), raft: None })
}

pub async fn final_state(http: &Client, id: NodeId, node: SocketAddr) -> Result<FinalState> {
    let (revision, records) = list(http, node, "", Consistency::Stale, 1000).await?;
    Ok(FinalState { node: id, revision, records, hash: hash(http, node, revision).await? })
}

#[derive(Deserialize)]
struct Hash {
    hash: u32,
    /// The first revision whose history is part of the hash.
    #[serde(default)]
    compact_revision: i64,
}

/// The hash of a node's keys and their history up to a revision. The gateway only provides a hash of the
/// whole file; this is the one by which members compare themselves.
async fn hash(http: &Client, node: SocketAddr, revision: u64) -> Result<String> {
    let peer = SocketAddr::new(node.ip(), PEER_PORT);
    let request = http::json(Method::GET, "/members/hashkv", &json!({"revision": revision}));
    let Hash { hash, compact_revision } = ask(http, peer, request, STATUS_DEADLINE).await?;
    Ok(format!("{hash:08x} from {compact_revision}"))
}

/// A message of a watch contains complete revisions, so the watch is resumed at the revision after the last
/// one.
pub async fn watch(http: &Client, node: SocketAddr, place: &mut WatchPlace, sink: Sink<'_>) -> Result<()> {
    let start_revision = place.revision.max(super::System::Etcd.first_revision()) + 1;
    let create = json!({"key": NO_BOUND, "range_end": NO_BOUND, "start_revision": start_revision.to_string()});
    let request = post("watch", &json!({"create_request": create}));
    // With this header, a node that is cut off from the others ends the watch instead of being silent.
    let request = with_header(request, "grpc-metadata-hasleader", "true");
    let mut messages = WatchStream::open(http, node, request, b"\n").await?;
    while let Some(message) = messages.next().await? {
        take_message(&message, place, sink)?;
    }
    Ok(())
}

/// A line of a watch.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Message {
    Result(WatchResponse),
    Error(Value),
}

#[derive(Deserialize)]
struct WatchResponse {
    #[serde(default)]
    canceled: bool,
    #[serde(default)]
    cancel_reason: String,
    #[serde(default)]
    events: Vec<Event>,
}

#[derive(Deserialize)]
struct Event {
    #[serde(default, rename = "type")]
    kind: EventKind,
    kv: KeyValue,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum EventKind {
    #[default]
    Put,
    Delete,
}

/// Advances the place only past revisions whose changes were all delivered.
fn take_message(line: &[u8], place: &mut WatchPlace, sink: Sink<'_>) -> Result<()> {
    let message = serde_json::from_slice(line)
        .with_context(|| format!("unexpected message: {}", String::from_utf8_lossy(line)))?;
    let response = match message {
        Message::Result(WatchResponse { canceled: true, cancel_reason, .. }) => {
            bail!("the node ended the watch: {cancel_reason}")
        }
        Message::Result(response) => response,
        Message::Error(error) => bail!("the node ended the watch: {error}"),
    };
    for Event { kind, kv } in response.events {
        let (key, Record { value, revision, create_revision, version }) = kv.into_record();
        let kind = match kind {
            EventKind::Put => ChangeKind::Put { value, create_revision, version },
            EventKind::Delete => ChangeKind::Delete,
        };
        place.revision = revision;
        sink(place, Change { revision, key, kind });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::history::Outcome;

    /// A prefix ends where the next one of its length begins; an empty prefix has no bounds.
    ///
    /// Method: the bounds of some prefixes, decoded by hand.
    #[test]
    fn a_prefix_has_bounds() {
        assert_eq!(range_of_prefix("key/"), (encode("key/"), encode("key0")));
        assert_eq!(range_of_prefix("key/1"), (encode("key/1"), encode("key/2")));
        assert_eq!(range_of_prefix(""), (NO_BOUND.to_owned(), NO_BOUND.to_owned()));
    }

    /// A watch delivers puts and deletions in order, and resumes after the last delivered revision.
    ///
    /// Method: messages as etcd wrote them; the first one only acknowledges the watch.
    #[test]
    fn a_watch_is_read() {
        let created = br#"{"result":{"header":{"revision":"5","raft_term":"2"},"created":true}}"#;
        let changes = br#"{"result":{"header":{"revision":"5"},"events":[
            {"kv":{"key":"YQ==","create_revision":"2","mod_revision":"4","version":"3","value":"eg=="}},
            {"type":"DELETE","kv":{"key":"YQ==","mod_revision":"5"}}]}}"#;
        let seen = Mutex::new(Vec::new());
        let sink =
            |_: &WatchPlace, change: Change| seen.lock().expect("no thread panics while holding the lock").push(change);
        let mut place = WatchPlace::default();
        take_message(created, &mut place, &sink).expect("the message is valid");
        assert_eq!(place.revision, 0);
        take_message(changes, &mut place, &sink).expect("the message is valid");
        assert_eq!(place.revision, 5);
        let put = ChangeKind::Put { value: "z".into(), create_revision: 2, version: 3 };
        let expected = [
            Change { revision: 4, key: "a".into(), kind: put },
            Change { revision: 5, key: "a".into(), kind: ChangeKind::Delete },
        ];
        assert_eq!(seen.into_inner().expect("no thread panics while holding the lock"), expected);
    }

    /// Only an error from before the proposal counts as not applied; a read never has an effect.
    ///
    /// Method: errors as the gateway writes them.
    #[test]
    fn refusals_are_told_apart() {
        let outcome = |reads, error: &str| {
            let body = format!(r#"{{"error":"{error}","message":"{error}","code":14}}"#);
            refusal(reads, StatusCode::SERVICE_UNAVAILABLE, body.as_bytes()).expect("the error is valid").outcome
        };
        assert_eq!(outcome(false, "raft proposal dropped"), Outcome::NotApplied);
        assert_eq!(outcome(false, "etcdserver: request timed out"), Outcome::Unknown);
        assert_eq!(outcome(false, "etcdserver: leader changed"), Outcome::Unknown);
        assert_eq!(outcome(true, "etcdserver: leader changed"), Outcome::NotApplied);
    }
}
