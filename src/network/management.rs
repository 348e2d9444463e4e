//! Routes for operators.

use std::collections::{BTreeMap, BTreeSet};

use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use openraft::metrics::RaftMetrics;
use tokio::task::JoinError;

use super::access::{self, Caller, ToManage, ToMeasure};
use super::conditions::reject_conditions;
use super::consensus::{check_on_leader, write_error};
use super::forward;
use super::founding;
use super::members::{self, Wanted};
use super::metrics::{self, Format};
use super::openapi::answers::{EntryAnswer, InitAnswer, InitErrors, MembershipErrors, MetricsBody, OkAnswer};
use super::openapi::parameters::{AcceptHeader, ForwardHeader};
use super::peer::{self, Introduction};
use super::readiness::Destination;
use super::reply::ok;
use super::request_body::{parse_json, read_client_body};
use crate::app::ExampleApp;
use crate::config::{INIT_MEMBERS_MAX, MEMBERSHIP_DEADLINE, check_dialable};
use crate::error::{ApiError, Details, Interrupted};
use crate::types::{ExampleNode, LogId, NodeId, TypeConfig};

const INIT_BODY: &str = r#"nothing, or a list of members, such as [[1,"127.0.0.1:21001"]]"#;
const ADD_LEARNER_BODY: &str = r#"a node's id and address, such as [2,"127.0.0.1:21002"]"#;
const CHANGE_MEMBERSHIP_BODY: &str = "the ids of the voters, such as [1,2,3]";

/// Forms a cluster.
///
/// The body is a list of nodes, which must be running and include this one. An empty body, `{}` or `[]` forms a cluster
/// of this node alone. The same list may be sent to all of its nodes, at once and repeatedly: it forms one cluster.
#[utoipa::path(
    post,
    path = "/init",
    operation_id = "init",
    tag = "The cluster",
    request_body(
        content = Vec<(u64, String)>,
        content_type = "application/json",
        description = "The id and the address of each node.",
        example = json!([[1, "127.0.0.1:21001"]]),
    ),
    responses(
        (
            status = 200,
            description = "The cluster exists and has a leader.",
            body = InitAnswer,
            example = json!({"Ok": null}),
        ),
        InitErrors,
    ),
)]
pub async fn init(
    app: Caller<ToManage>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let (body, _memory) = read_client_body(&app, &request, payload).await?;
    reject_conditions(&request)?;
    access::check_again(&app, app.who())?;
    let members = parse_members(app.id, &app.addr, &body)?;
    // A task of its own, so that founding completes even if the client disconnects.
    let founding = tokio::spawn(async move { founding::found(&app, members).await });
    founding.await.unwrap_or_else(|error| Err(change_lost(&error))).map(|()| ok(&()))
}

/// Adds a node as a learner, and waits until it has all data.
///
/// The node must be running, with an empty data directory. It has no vote.
#[utoipa::path(
    post,
    path = "/add-learner",
    operation_id = "add_learner",
    tag = "The cluster",
    params(ForwardHeader),
    request_body(
        content = (u64, String),
        content_type = "application/json",
        description = "The node's id and address.",
        example = json!([2, "127.0.0.1:21002"]),
    ),
    responses(
        (
            status = 200,
            description = "The node has all data.",
            body = OkAnswer<EntryAnswer>,
            example = json!({"Ok": {
                "log_id": {"leader_id": {"term": 1, "node_id": 1}, "index": 2},
                "data": {"value": null},
                "membership": {
                    "configs": [[1]],
                    "nodes": {"1": {"addr": "127.0.0.1:21001"}, "2": {"addr": "127.0.0.1:21002"}}
                }
            }}),
        ),
        MembershipErrors,
    ),
)]
pub async fn add_learner(
    app: Caller<ToManage>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let (body, _memory) = read_client_body(&app, &request, payload).await?;
    let (id, addr): (NodeId, String) = parse_json(&body, ADD_LEARNER_BODY)?;
    check_member(id, &addr)?;
    let leader = web::Data::clone(&app);
    let change = async move {
        let app = leader;
        let (node, _) = member_at(&app, id, addr).await?;
        check_same_address(&app, id, &node)?;
        let response = app.raft.add_learner(id, node, false).await.map_err(|error| write_error(&error))?;
        wait_for_data(&app, id, response.log_id).await?;
        Ok(response)
    };
    on_leader(&app, &request, body, change, ok).await
}

/// The member that node `id` at `addr` would be, and the number of its process. Rejects a node of another cluster, and
/// one with another data directory than the member with its id.
pub(super) async fn member_at(
    app: &ExampleApp,
    id: NodeId,
    addr: String,
) -> Result<(ExampleNode, Option<u64>), ApiError> {
    let Introduction { identity, run, format_level, .. } = peer::introduced_as(app, id, &addr).await?;
    let needed = app.store.state_machine.read(|machine| machine.level);
    if format_level < needed.0 {
        let message = format!(
            "node {id} at {addr} supports formats up to level {format_level}, but the cluster has level {needed}: start \
             it with the version of the other nodes"
        );
        return Err(ApiError::Conflict(Details::not_applied(message)));
    }
    let ours = app.store.identity().cluster_id;
    if identity.cluster_id.is_some() && identity.cluster_id != ours {
        let message = format!("node {id} at {addr} belongs to another cluster; start it with an empty --data-dir");
        return Err(ApiError::Conflict(Details::not_applied(message)));
    }
    let node = ExampleNode { addr, incarnation: identity.incarnation };
    check_same_directory(app, id, &node)?;
    Ok((node, run))
}

/// Waits until a learner has all entries that were in the log when it was added.
///
/// openraft's own wait counts a learner that lags by a whole snapshot as caught up.
async fn wait_for_data(app: &ExampleApp, id: NodeId, log_id: LogId) -> Result<(), ApiError> {
    let matched = |metrics: &RaftMetrics<TypeConfig>| {
        let replication = metrics.replication.as_ref();
        replication.and_then(|replication| replication.get(&id).copied().flatten()) >= Some(log_id)
    };
    let own = app.id;
    let wait = app.raft.wait(Some(MEMBERSHIP_DEADLINE));
    let removed = |metrics: &RaftMetrics<TypeConfig>| {
        metrics.membership_config.membership().get_node(&id).is_none()
            && *metrics.membership_config.log_id() > Some(log_id)
    };
    let done =
        |metrics: &RaftMetrics<TypeConfig>| matched(metrics) || removed(metrics) || metrics.current_leader != Some(own);
    match wait.metrics(done, "the learner has the data").await {
        Ok(metrics) if matched(&metrics) => Ok(()),
        Ok(metrics) if removed(&metrics) => Err(ApiError::OutcomeUnknown(Interrupted::unknown(
            "the node was added, and was removed before it had all data",
        ))),
        Ok(_) => Err(ApiError::OutcomeUnknown(Interrupted::unknown(
            "the leader changed during the request: the node may or may not be a learner; check /metrics",
        ))),
        Err(_) => Err(ApiError::DeadlinePassed(Interrupted::unknown(
            "the node was added, but does not have all data yet; check /metrics",
        ))),
    }
}

/// Sets the voters.
///
/// Voters that are not listed leave the cluster. Returns 409 unless a majority of the new voters, and of the current
/// ones, responds and is caught up.
#[utoipa::path(
    post,
    path = "/change-membership",
    operation_id = "change_membership",
    tag = "The cluster",
    params(ForwardHeader),
    request_body(content = Vec<u64>, description = "The ids of the voters.", example = json!([1, 2, 3])),
    responses(
        (
            status = 200,
            description = "The listed nodes are the voters.",
            body = OkAnswer<EntryAnswer>,
            example = json!({"Ok": {
                "log_id": {"leader_id": {"term": 1, "node_id": 1}, "index": 5},
                "data": {"value": null},
                "membership": {
                    "configs": [[1, 2, 3]],
                    "nodes": {
                        "1": {"addr": "127.0.0.1:21001"},
                        "2": {"addr": "127.0.0.1:21002"},
                        "3": {"addr": "127.0.0.1:21003"}
                    }
                }
            }}),
        ),
        MembershipErrors,
    ),
)]
pub async fn change_membership(
    app: Caller<ToManage>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let (body, _memory) = read_client_body(&app, &request, payload).await?;
    let listed: Vec<NodeId> = parse_json(&body, CHANGE_MEMBERSHIP_BODY)?;
    let mut ids = BTreeSet::new();
    // Most likely another id was meant, and its node would lose its vote.
    if let Some(id) = listed.into_iter().find(|id| !ids.insert(*id)) {
        return Err(listed_twice(id));
    }
    if ids.is_empty() {
        return Err(ApiError::bad_request(
            "no_voters",
            format!("a cluster must have at least one voter; expected {CHANGE_MEMBERSHIP_BODY}"),
        ));
    }
    let leader = web::Data::clone(&app);
    let change = async move { members::change(&leader, &Wanted::Voters(ids)).await };
    on_leader(&app, &request, body, change, ok).await
}

/// Returns the metrics of this node.
///
/// State, term, leader, log, membership and replication, in the shape of openraft's `RaftMetrics`. If `Accept` prefers
/// `text/plain` or OpenMetrics to JSON, as that of Prometheus does, the response is that of `/v1/metrics` in this format.
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "metrics",
    tag = "The cluster",
    params(AcceptHeader),
    responses((
        status = 200,
        description = "The metrics.",
        content(
            (OkAnswer<MetricsBody> = "application/json"),
            (String = "text/plain; version=0.0.4; charset=utf-8"),
            (String = "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        ),
    ))
)]
pub async fn metrics(app: Caller<ToMeasure>, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let mut response = match Format::preferred(request.headers()) {
        Some(format) => metrics::in_format(&app, format).await?,
        None => {
            let metrics = app.raft.metrics().borrow_watched().clone();
            ok(&metrics)
        }
    };
    response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept"));
    Ok(response)
}

/// Changes the membership if this node leads, and forwards the request to the leader otherwise.
pub(super) async fn on_leader<T: Send + 'static>(
    app: &Caller<ToManage>,
    request: &HttpRequest,
    body: Bytes,
    change: impl Future<Output = Result<T, ApiError>> + Send + 'static,
    answer: impl FnOnce(&T) -> HttpResponse,
) -> Result<HttpResponse, ApiError> {
    reject_conditions(request)?;
    match forward::next_destination(app, request.headers()).await? {
        Destination::Here => {
            check_on_leader(app, app.who()).await?;
            // A task of its own: a change has two steps, and must complete even if the client disconnects or the
            // deadline expires.
            let change = tokio::spawn(change);
            match tokio::time::timeout(MEMBERSHIP_DEADLINE, change).await {
                Ok(Ok(result)) => result.map(|response| answer(&response)),
                Ok(Err(error)) => Err(change_lost(&error)),
                Err(_) => Err(ApiError::DeadlinePassed(Interrupted::unknown(
                    "the membership change is still in progress: check /metrics, and retry if it was not made",
                ))),
            }
        }
        Destination::Leader { leader_id, leader_node } => {
            forward::to_leader(app, request, body, leader_id, &leader_node).await
        }
    }
}

pub(crate) fn parse_members(own_id: NodeId, own_addr: &str, body: &[u8]) -> Result<BTreeMap<NodeId, String>, ApiError> {
    let body = body.trim_ascii();
    let list: Vec<(NodeId, String)> = match body {
        b"" => Vec::new(),
        // The original's client sends `{}`.
        _ if body.starts_with(b"{") => {
            #[derive(serde::Deserialize)]
            #[serde(deny_unknown_fields)]
            struct Nothing {}
            let Nothing {} = parse_json(body, INIT_BODY)?;
            Vec::new()
        }
        _ => parse_json(body, INIT_BODY)?,
    };
    if list.is_empty() {
        return Ok(BTreeMap::from([(own_id, own_addr.to_owned())]));
    }
    if list.len() > INIT_MEMBERS_MAX {
        let message = format!("the list must have at most {INIT_MEMBERS_MAX} nodes, got {}", list.len());
        return Err(ApiError::bad_request("too_many_nodes", message));
    }
    let mut members = BTreeMap::new();
    let mut addresses = BTreeSet::new();
    for (id, addr) in list {
        check_member(id, &addr)?;
        if !addresses.insert(addr.to_ascii_lowercase()) && !members.contains_key(&id) {
            return Err(ApiError::bad_request(
                "address_twice",
                format!("two nodes in the list have the address {addr}"),
            ));
        }
        if members.insert(id, addr).is_some() {
            return Err(listed_twice(id));
        }
    }
    if !members.contains_key(&own_id) {
        let message = format!("the list must contain this node, node {own_id}");
        return Err(ApiError::bad_request("not_in_members", message));
    }
    Ok(members)
}

fn listed_twice(id: NodeId) -> ApiError {
    ApiError::bad_request("node_twice", format!("node {id} is listed twice"))
}

pub(crate) fn check_member(id: NodeId, addr: &str) -> Result<(), ApiError> {
    if id == 0 {
        return Err(ApiError::bad_request("invalid_node_id", "a node id must be at least 1"));
    }
    check_dialable("the address", addr).map_err(|error| ApiError::bad_request("invalid_address", error.to_string()))
}

/// Rejects a node with another data directory than the member with its id.
pub(super) fn check_same_directory(app: &ExampleApp, id: NodeId, node: &ExampleNode) -> Result<(), ApiError> {
    let metrics = app.raft.server_metrics();
    let metrics = metrics.borrow_watched();
    match metrics.membership_config.membership().get_node(&id) {
        // It may have forgotten its votes.
        Some(member) if member.incarnation != node.incarnation => {
            Err(ApiError::Conflict(Details::not_applied(format!(
                "node {id} is a member, but the node at {node} has a different data directory: start that node with a \
                 new id, and put it in the place of node {id}: `raft-key-value members replace {id} NEW_ID ADDRESS`; or \
                 remove node {id} first: `raft-key-value members remove {id}`"
            ))))
        }
        _ => Ok(()),
    }
}

/// Rejects a member at another address than the one of the membership.
fn check_same_address(app: &ExampleApp, id: NodeId, node: &ExampleNode) -> Result<(), ApiError> {
    let metrics = app.raft.server_metrics();
    let metrics = metrics.borrow_watched();
    match metrics.membership_config.membership().get_node(&id) {
        Some(member) if member.addr != node.addr => Err(ApiError::Conflict(Details::not_applied(format!(
            "node {id} is a member at {member}: start it with --advertise-addr {node}, and it moves by itself, or use \
             POST /v1/cluster/members"
        )))),
        _ => Ok(()),
    }
}

/// The task of a change ended without a result: it panicked, or the node is stopping.
fn change_lost(error: &JoinError) -> ApiError {
    let lost =
        Interrupted::unknown("the membership change was interrupted: check /metrics, and retry if it was not made");
    if error.is_panic() { ApiError::Internal(lost) } else { ApiError::OutcomeUnknown(lost) }
}
