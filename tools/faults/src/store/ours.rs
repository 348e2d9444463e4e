//! raft-key-value, through its HTTP API.

use std::error::Error;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use harness::http::{self, Client, HeaderMap, Method, Request, StatusCode, with_header};
use harness::node::{Envelope, Metrics};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Attempt, NodeStatus, RaftState, Sink, WatchPlace, WatchStream};
use crate::history::{
    Call, CallResult, Change, ChangeKind, Comparison, Condition, Consistency, FinalState, NodeId, Operand, Outcome,
    Record, Step, StepResult, Text, abridged,
};
use crate::node::Node;

/// How long a request about a node's own state may take.
const STATUS_DEADLINE: Duration = Duration::from_secs(2);
/// Maximum time until a new cluster has the level of formats of its nodes, and the interval between checks.
const FORMING_DEADLINE: Duration = Duration::from_secs(60);
const FORMING_INTERVAL: Duration = Duration::from_millis(50);
/// Page size of the listings in the load: small, so that there are several pages.
const PAGE_KEYS: usize = 16;
/// A listing is given up after this many pages.
const PAGES_MAX: usize = 1000;
/// All error statuses in `docs/openapi.json`, except 304, which no request here can cause, and 500.
const REFUSALS: [u16; 15] = [400, 404, 408, 409, 410, 412, 413, 415, 421, 422, 429, 431, 503, 504, 507];

/// Ends the message of a node that has failed, the only one that may return 500. Such a node ends, and an end that no
/// fault permits is a finding.
const EXITS: &str = "is about to exit";

pub fn add_command(command: &mut Command, binary: &Path, node: &Node) {
    command.arg(binary);
    harness::node::add_arguments(command, node.id(), node.host.http(), &node.data_directory());
    command.args(["--advertise-addr", &node.advertised().to_string()]);
}

pub async fn form(http: &Client, nodes: &[Node]) -> Result<()> {
    let members: Vec<(NodeId, String)> = nodes.iter().map(|node| (node.id(), node.advertised().to_string())).collect();
    let request = http::json(Method::POST, "/init", &members);
    let answer = http.send(nodes[0].host.http(), request, super::CLIENT_DEADLINE).await?;
    if !answer.status().is_success() {
        bail!("cannot form the cluster: {}", String::from_utf8_lossy(answer.body()));
    }
    wait_for_level(http, nodes[0].host.http()).await
}

/// Waits until the cluster has the level of formats that all its nodes support. Raising it changes the hash of the
/// state, so a backup from before has another hash than the cluster that is restored from it.
async fn wait_for_level(http: &Client, node: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + FORMING_DEADLINE;
    loop {
        let last = match http.send(node, http::get("/v1/cluster"), super::CLIENT_DEADLINE).await {
            Ok(answer) if has_highest_level(answer.body()) => return Ok(()),
            Ok(answer) => format!("{} {}", answer.status(), String::from_utf8_lossy(answer.body())),
            Err(error) => format!("{error:#}"),
        };
        if Instant::now() > deadline {
            bail!("the level of formats of the cluster is not raised: {last}");
        }
        tokio::time::sleep(FORMING_INTERVAL).await;
    }
}

/// Whether a response to `/v1/cluster` says that the cluster has the highest level that all its members support.
fn has_highest_level(body: &[u8]) -> bool {
    let cluster: Value = serde_json::from_slice(body).unwrap_or_default();
    let Some(members) = cluster["members"].as_array() else { return false };
    let levels: Option<Vec<u64>> = members.iter().map(|member| member["format_level"].as_u64()).collect();
    let supported = levels.and_then(|levels| levels.into_iter().min());
    supported.is_some() && cluster["format_level"].as_u64() == supported
}

pub async fn call(
    http: &Client,
    node: SocketAddr,
    call: &Call,
    request_key: Option<&str>,
    deadline: Duration,
) -> Attempt {
    if let Call::List { prefix, consistency } = call {
        return match tokio::time::timeout(deadline, list(http, node, prefix, *consistency, PAGE_KEYS)).await {
            Ok(Ok((revision, items))) => Attempt::done(revision, CallResult::List(items)),
            Ok(Err(ListError::Wrong(error))) => Attempt::wrong(true, format!("{error:#}")),
            Ok(Err(error)) => Attempt::not_applied(format!("{error:#}")),
            Err(_) => Attempt::not_applied("no response in time".to_owned()),
        };
    }
    let mut request = request_of(call);
    if let Some(request_key) = request_key {
        request = with_header(request, "idempotency-key", request_key);
    }
    let reads = matches!(call, Call::Get { .. });
    match http.send(node, request, deadline).await {
        Ok(answer) => understand(call, answer.status(), answer.headers(), answer.body()).unwrap_or_else(|error| {
            Attempt::wrong(reads, format!("{}: {error:#}: {:?}", answer.status(), answer.body()))
        }),
        Err(error) => Attempt::of_error(reads, &error),
    }
}

fn request_of(call: &Call) -> Request {
    let target = |key: &str| format!("/v1/kv/{key}");
    let with = |request: Request, condition: &Option<Condition>| match condition {
        None => request,
        Some(Condition::Missing) => with_header(request, "if-none-match", "*"),
        Some(Condition::Revision(revision)) => with_header(request, "if-match", &format!("\"{revision}\"")),
    };
    match call {
        Call::Put { key, value, condition } => {
            with(http::request(Method::PUT, &target(key), value.to_string()), condition)
        }
        Call::Delete { key, condition } => with(http::request(Method::DELETE, &target(key), ""), condition),
        Call::Txn { compare, success, failure } => {
            let compare: Vec<Value> = compare.iter().map(comparison).collect();
            let steps = |steps: &[Step]| steps.iter().map(step).collect::<Vec<_>>();
            let body = json!({"compare": compare, "success": steps(success), "failure": steps(failure)});
            http::json(Method::POST, "/v1/txn", &body)
        }
        Call::Get { key, consistency: Consistency::Linearizable } => http::get(&target(key)),
        Call::Get { key, consistency: Consistency::Stale } => http::get(&format!("{}?consistency=stale", target(key))),
        Call::List { prefix, .. } => http::get(&format!("/v1/kv?prefix={prefix}")),
    }
}

fn comparison(comparison: &Comparison) -> Value {
    let key = &*comparison.key;
    match &comparison.operand {
        Operand::Missing => json!({"key": key, "exists": false}),
        Operand::Value(value) => json!({"key": key, "value": &**value}),
        Operand::Revision(revision) => json!({"key": key, "revision": revision}),
    }
}

fn step(step: &Step) -> Value {
    match step {
        Step::Put { key, value } => json!({"put": {"key": &**key, "value": &**value}}),
        Step::Delete { key } => json!({"delete": {"key": &**key}}),
        Step::Get { key } => json!({"get": {"key": &**key}}),
    }
}

/// A key, as in all responses.
#[derive(Deserialize)]
struct KeyValue {
    key: Text,
    value: String,
    revision: u64,
    create_revision: u64,
    version: u64,
}

impl KeyValue {
    fn into_record(self) -> (Text, Record) {
        let KeyValue { key, value, revision, create_revision, version } = self;
        (key, Record { value: abridged(&value), revision, create_revision, version })
    }
}

#[derive(Deserialize)]
struct Put {
    revision: u64,
    version: u64,
}

#[derive(Deserialize)]
struct Delete {
    revision: u64,
    deleted: u64,
}

#[derive(Deserialize)]
struct Txn {
    succeeded: bool,
    revision: u64,
    results: Vec<TxnResult>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum TxnResult {
    Put {},
    Delete { deleted: u64 },
    Get(Option<KeyValue>),
}

#[derive(Deserialize)]
struct Refused {
    error: RefusedBody,
}

#[derive(Deserialize)]
struct RefusedBody {
    code: String,
    message: String,
    outcome: String,
    current_revision: Option<u64>,
    revision: Option<u64>,
}

/// Interprets a response; an error if the API does not permit it.
fn understand(call: &Call, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Result<Attempt> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let revision: Option<u64> = header("raft-revision").and_then(|revision| revision.parse().ok());
    let replayed = header("raft-replayed") == Some("true");
    if !status.is_success() {
        return refusal(call, status, revision, replayed, body);
    }
    if status != StatusCode::OK {
        bail!("the API has no such status");
    }
    let (revision, result) = match call {
        Call::Put { .. } => {
            let put: Put = serde_json::from_slice(body)?;
            (put.revision, CallResult::Put { version: put.version })
        }
        Call::Delete { .. } => {
            let delete: Delete = serde_json::from_slice(body)?;
            (delete.revision, CallResult::Delete { deleted: delete.deleted > 0 })
        }
        Call::Txn { .. } => {
            let txn: Txn = serde_json::from_slice(body)?;
            let results = txn.results.into_iter().map(|result| match result {
                TxnResult::Put {} => StepResult::Put,
                TxnResult::Delete { deleted } => StepResult::Delete { deleted: deleted > 0 },
                TxnResult::Get(found) => StepResult::Get(found.map(|found| found.into_record().1)),
            });
            (txn.revision, CallResult::Txn { succeeded: txn.succeeded, results: results.collect() })
        }
        Call::Get { .. } => {
            let found: KeyValue = serde_json::from_slice(body)?;
            let revision = revision.context("the response has no `Raft-Revision`")?;
            (revision, CallResult::Get(Some(found.into_record().1)))
        }
        Call::List { .. } => bail!("a listing is read page by page"),
    };
    Ok(Attempt { replayed, ..Attempt::done(revision, result) })
}

fn refusal(call: &Call, status: StatusCode, revision: Option<u64>, replayed: bool, body: &[u8]) -> Result<Attempt> {
    let RefusedBody { code, message, outcome, current_revision, revision: missing_at } = refusal_body(status, body)?;
    match (status, call) {
        (StatusCode::NOT_FOUND, Call::Get { .. }) => Ok(Attempt::done(
            missing_at.context("the response for a missing key has no revision")?,
            CallResult::Get(None),
        )),
        (StatusCode::PRECONDITION_FAILED, _) => {
            let revision = revision.context("the response has no `Raft-Revision`")?;
            let result = CallResult::ConditionFailed { found: current_revision };
            Ok(Attempt { replayed, ..Attempt::done(revision, result) })
        }
        _ => {
            let outcome = match outcome.as_str() {
                "not_applied" => Outcome::NotApplied,
                "unknown" => Outcome::Unknown,
                other => bail!("unknown outcome {other:?}"),
            };
            let reason = format!("{} {code}: {message}", status.as_u16());
            Ok(Attempt { outcome, replayed, reason, is_wrong: false })
        }
    }
}

fn refusal_body(status: StatusCode, body: &[u8]) -> Result<RefusedBody> {
    let refused: Refused = serde_json::from_slice(body)?;
    let exits = status == StatusCode::INTERNAL_SERVER_ERROR && refused.error.message.ends_with(EXITS);
    if !exits && !REFUSALS.contains(&status.as_u16()) {
        bail!("the API has no such status");
    }
    Ok(refused.error)
}

#[derive(Deserialize)]
struct Page {
    revision: u64,
    items: Vec<KeyValue>,
    next: Option<String>,
}

/// Why a listing failed.
#[derive(Debug)]
enum ListError {
    /// A page was lost.
    Lost(http::Error),
    /// A page was rejected.
    Refused(String),
    /// The API does not permit a page.
    Wrong(anyhow::Error),
}

impl fmt::Display for ListError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListError::Lost(error) => write!(f, "{error:#}"),
            ListError::Refused(reason) => f.write_str(reason),
            ListError::Wrong(error) => write!(f, "{error:#}"),
        }
    }
}

impl Error for ListError {}

/// All keys with a prefix, at the revision of the first page.
async fn list(
    http: &Client,
    node: SocketAddr,
    prefix: &str,
    consistency: Consistency,
    page_keys: usize,
) -> Result<(u64, Vec<(Text, Record)>), ListError> {
    let mut items = Vec::new();
    let (mut revision, mut start_after) = (None, None::<String>);
    for _ in 0..PAGES_MAX {
        let mut target = format!("/v1/kv?prefix={prefix}&limit={page_keys}");
        if consistency == Consistency::Stale {
            target.push_str("&consistency=stale");
        }
        if let (Some(revision), Some(start_after)) = (revision, &start_after) {
            target.push_str(&format!("&revision={revision}&start_after={start_after}"));
        }
        let answer = http.send(node, http::get(&target), super::CLIENT_DEADLINE).await.map_err(ListError::Lost)?;
        let page = page_of(answer.status(), answer.body())?;
        if *revision.get_or_insert(page.revision) != page.revision {
            return Err(ListError::Wrong(anyhow!("a page has another revision than requested")));
        }
        items.extend(page.items.into_iter().map(KeyValue::into_record));
        match page.next {
            Some(next) => start_after = Some(next),
            None => return Ok((page.revision, items)),
        }
    }
    Err(ListError::Wrong(anyhow!("a listing exceeds {PAGES_MAX} pages")))
}

fn page_of(status: StatusCode, body: &[u8]) -> Result<Page, ListError> {
    let wrong = |error: anyhow::Error| {
        ListError::Wrong(error.context(format!("{status} with the body {}", body.escape_ascii())))
    };
    if status == StatusCode::OK {
        return serde_json::from_slice(body).map_err(|error| wrong(error.into()));
    }
    let RefusedBody { code, message, .. } = refusal_body(status, body).map_err(wrong)?;
    Err(ListError::Refused(format!("{} {code}: {message}", status.as_u16())))
}

pub async fn status(http: &Client, node: SocketAddr) -> Result<NodeStatus> {
    let answer = http.send(node, http::get("/metrics"), STATUS_DEADLINE).await?;
    let Envelope::<Metrics> { ok: metrics } =
        serde_json::from_slice(answer.body()).context("unexpected response to `/metrics`")?;
    let voters = metrics.configs().last().cloned().unwrap_or_default();
    let applied = metrics.last_applied.map_or(0, |log_id| log_id.index);
    let last_log = metrics.last_log_index.unwrap_or(applied);
    let raft = RaftState {
        vote: metrics.vote.leader_id,
        committed: metrics.local_committed,
        applied: metrics.last_applied,
        snapshot: metrics.snapshot,
    };
    let (leader, term, addresses) = (metrics.current_leader, metrics.current_term, metrics.addresses());
    Ok(NodeStatus { leader, term, applied, last_log, voters, addresses, raft: Some(raft) })
}

pub async fn final_state(http: &Client, id: NodeId, node: SocketAddr, applied: u64) -> Result<FinalState> {
    let (revision, records) = list(http, node, "", Consistency::Stale, 1000).await?;
    Ok(FinalState { node: id, revision, records, hash: hash(http, node, applied).await? })
}

/// The node's hash of its state after an entry; an error if it has applied another entry.
async fn hash(http: &Client, node: SocketAddr, applied: u64) -> Result<String> {
    let request = http::get(&format!("/v1/cluster/hash?applied={applied}"));
    let answer = http.send(node, request, STATUS_DEADLINE).await?;
    if !answer.status().is_success() {
        bail!("{}: {}", answer.status(), String::from_utf8_lossy(answer.body()));
    }
    let body: Value = serde_json::from_slice(answer.body())?;
    Ok(body["hash"].as_str().context("the response has no `hash`")?.to_owned())
}

pub async fn watch(http: &Client, node: SocketAddr, place: &mut WatchPlace, sink: Sink<'_>) -> Result<()> {
    let mut request = http::get("/v1/watch?from=1");
    if !place.resume.is_empty() {
        request = with_header(request, "last-event-id", &place.resume);
    }
    let mut events = WatchStream::open(http, node, request, b"\n\n").await?;
    while let Some(event) = events.next().await? {
        take_event(std::str::from_utf8(&event)?, place, sink)?;
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Event {
    Put(KeyValue),
    #[serde(alias = "expire")]
    Delete {
        key: Text,
        revision: u64,
    },
    End {
        code: String,
    },
}

fn take_event(event: &str, place: &mut WatchPlace, sink: Sink<'_>) -> Result<()> {
    let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
    if let Some(id) = field("id: ") {
        id.clone_into(&mut place.resume);
    }
    if let Some(data) = field("data: ") {
        let change = match serde_json::from_str(data).with_context(|| format!("unexpected event: {data}"))? {
            Event::Put(key_value) => {
                let (key, Record { value, revision, create_revision, version }) = key_value.into_record();
                Change { revision, key, kind: ChangeKind::Put { value, create_revision, version } }
            }
            Event::Delete { key, revision } => Change { revision, key, kind: ChangeKind::Delete },
            Event::End { code } => bail!("the node ended the watch: {code}"),
        };
        place.revision = change.revision;
        sink(place, change);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A response that the API does not permit is an error, and not some outcome.
    #[test]
    fn refuses_what_is_no_answer() {
        let put = Call::Put { key: "a".into(), value: "b".into(), condition: None };
        let refusal = br#"{"error":{"code":"no_leader","message":"none","outcome":"not_applied"}}"#.as_slice();
        let exits =
            br#"{"error":{"code":"internal","message":"this node failed and is about to exit","outcome":"unknown"}}"#;
        let right: [(u16, &[u8]); 3] = [(200, br#"{"revision":7,"version":1}"#), (503, refusal), (500, exits)];
        for (status, body) in right {
            let status = StatusCode::from_u16(status).unwrap();
            assert!(understand(&put, status, &HeaderMap::new(), body).is_ok(), "{status}");
        }
        let wrong: [(u16, &[u8]); 7] = [
            (200, b"{\"revision\":7"),
            (200, b"{}"),
            (201, br#"{"revision":7,"version":1}"#),
            (500, refusal),
            (503, b"Service Unavailable"),
            (503, br#"{"error":{"code":"no_leader","message":"none","outcome":"maybe"}}"#),
            (412, refusal), // The response has no revision.
        ];
        for (status, body) in wrong {
            let status = StatusCode::from_u16(status).unwrap();
            let answer = understand(&put, status, &HeaderMap::new(), body);
            assert!(answer.is_err(), "{status} {}", body.escape_ascii());
        }
    }
}
