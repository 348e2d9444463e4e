//! The routes for whoever runs the cluster.

use std::collections::{BTreeMap, BTreeSet};

use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, InitializeError, RaftError};
use openraft::raft::ClientWriteResponse;

use super::api::{deadline_passed, write_error};
use super::forward::{self, Destination};
use super::peer;
use super::reply::{ok, parse_json, read_body};
use crate::app::ExampleApp;
use crate::config::{MEMBERSHIP_DEADLINE, REQUEST_DEADLINE, check_address};
use crate::error::{ApiError, Details, NotAllowed, Outcome, Retry};
use crate::store::ClusterId;
use crate::types::{ExampleNode, NodeId, TypeConfig};

const INIT_BODY: &str = r#"nothing, or a list of members, such as [[1,"127.0.0.1:21001"]]"#;
const ADD_LEARNER_BODY: &str = r#"a node's number and address, such as [2,"127.0.0.1:21002"]"#;
const CHANGE_MEMBERSHIP_BODY: &str = "the numbers of the voters, such as [1,2,3]";

type WriteResult = Result<ClientWriteResponse<TypeConfig>, RaftError<TypeConfig, ClientWriteError<TypeConfig>>>;

/// `POST /init`: makes this node, or the nodes given, a new cluster.
pub async fn init(
    app: web::Data<ExampleApp>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let body = read_body(&request, payload, app.request_bytes_max).await?;
    let members = parse_members(&app, &body)?;
    if app.raft.is_initialized().await.map_err(|_| forward::stopping())? {
        return Err(already_initialized(&app));
    }
    let mut nodes = BTreeMap::new();
    for (id, addr) in members {
        let identity = peer::identify(&app, id, &addr).await?;
        if id != app.id && identity.cluster_id.is_some() {
            let message = format!("node {id} at {addr} belongs to a cluster already");
            return Err(ApiError::Conflict(Details::not_applied(message)));
        }
        nodes.insert(id, ExampleNode { addr, incarnation: identity.incarnation });
    }
    let cluster_id = ClusterId::random()
        .map_err(|error| ApiError::Conflict(Details::not_applied(format!("cannot draw a cluster id: {error}"))))?;
    peer::join_cluster(&app, cluster_id).await?;
    match app.raft.initialize(nodes).await {
        Ok(()) => {
            wait_for_leader(&app).await;
            Ok(ok(&()))
        }
        Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Err(already_initialized(&app)),
        Err(RaftError::APIError(InitializeError::NotInMembers(error))) => {
            Err(ApiError::bad_request("not_in_members", error.to_string()))
        }
        Err(RaftError::Fatal(_)) => Err(forward::stopping()),
    }
}

/// `POST /add-learner`: takes a node in, and waits until it has all data.
pub async fn add_learner(
    app: web::Data<ExampleApp>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let body = read_body(&request, payload, app.request_bytes_max).await?;
    let (id, addr): (NodeId, String) = parse_json(&body, ADD_LEARNER_BODY)?;
    check_member(id, &addr)?;
    let change = async {
        let identity = peer::identify(&app, id, &addr).await?;
        let ours = app.store.identity().cluster_id;
        if identity.cluster_id.is_some() && identity.cluster_id != ours {
            let message = format!("node {id} at {addr} belongs to another cluster; start it with an empty --data-dir");
            return Err(ApiError::Conflict(Details::not_applied(message)));
        }
        check_same_life(&app, id, identity.incarnation)?;
        let node = ExampleNode { addr, incarnation: identity.incarnation };
        Ok(app.raft.add_learner(id, node, true).await)
    };
    on_leader(&app, &request, body.clone(), change).await
}

/// `POST /change-membership`: makes these nodes the voters.
pub async fn change_membership(
    app: web::Data<ExampleApp>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let body = read_body(&request, payload, app.request_bytes_max).await?;
    let ids: BTreeSet<NodeId> = parse_json(&body, CHANGE_MEMBERSHIP_BODY)?;
    if ids.is_empty() {
        return Err(ApiError::bad_request(
            "no_voters",
            format!("a cluster needs a voter; expected {CHANGE_MEMBERSHIP_BODY}"),
        ));
    }
    let change = async { Ok(app.raft.change_membership(ids, false).await) };
    on_leader(&app, &request, body.clone(), change).await
}

/// `GET /metrics`: what this node knows of itself and the cluster.
pub async fn metrics(app: web::Data<ExampleApp>) -> HttpResponse {
    let metrics = app.raft.metrics().borrow_watched().clone();
    ok(&metrics)
}

/// Changes the membership here if this node leads, else has the leader do it.
async fn on_leader(
    app: &ExampleApp,
    request: &HttpRequest,
    body: Bytes,
    change: impl Future<Output = Result<WriteResult, ApiError>>,
) -> Result<HttpResponse, ApiError> {
    match forward::destination(app, request.headers())? {
        Destination::Here => match tokio::time::timeout(MEMBERSHIP_DEADLINE, change).await {
            Ok(result) => result?.map(|response| ok(&response)).map_err(|error| write_error(&error)),
            Err(_) => Err(deadline_passed()),
        },
        Destination::Leader { leader_id, leader_node } => {
            forward::pass_on(app, request, body, leader_id, &leader_node).await
        }
    }
}

fn parse_members(app: &ExampleApp, body: &[u8]) -> Result<BTreeMap<NodeId, String>, ApiError> {
    let body = body.trim_ascii();
    let list: Vec<(NodeId, String)> = match body {
        b"" => Vec::new(),
        // `{}` is what the original's client sends.
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
        return Ok(BTreeMap::from([(app.id, app.addr.clone())]));
    }
    let mut members = BTreeMap::new();
    for (id, addr) in list {
        check_member(id, &addr)?;
        if members.insert(id, addr).is_some() {
            return Err(ApiError::bad_request("node_twice", format!("node {id} is listed twice")));
        }
    }
    if !members.contains_key(&app.id) {
        let message = format!("the list must contain the node that is asked, which is node {}", app.id);
        return Err(ApiError::bad_request("not_in_members", message));
    }
    Ok(members)
}

fn check_member(id: NodeId, addr: &str) -> Result<(), ApiError> {
    if id == 0 {
        return Err(ApiError::bad_request("invalid_node_id", "a node's number is at least 1"));
    }
    if addr.ends_with(":0") {
        return Err(ApiError::bad_request(
            "invalid_address",
            "the address must name a port that can be dialled, not 0",
        ));
    }
    check_address("the address", addr).map_err(|error| ApiError::bad_request("invalid_address", error.to_string()))
}

/// A member that comes back with an empty directory may have forgotten votes it gave.
fn check_same_life(app: &ExampleApp, id: NodeId, incarnation: u64) -> Result<(), ApiError> {
    let metrics = app.raft.server_metrics();
    let metrics = metrics.borrow_watched();
    match metrics.membership_config.membership().get_node(&id) {
        Some(member) if member.incarnation != incarnation => Err(ApiError::Conflict(Details::not_applied(format!(
            "node {id} is a member, and what is at that address has another data directory: \
             remove node {id} from the membership, and add this one under a new number"
        )))),
        _ => Ok(()),
    }
}

fn already_initialized(app: &ExampleApp) -> ApiError {
    let metrics = app.raft.metrics();
    let metrics = metrics.borrow_watched();
    ApiError::NotAllowed(NotAllowed {
        last_log_id: metrics.last_applied,
        vote: metrics.vote,
        message: "this node belongs to an initialized cluster already".to_owned(),
        outcome: Outcome::NotApplied,
    })
}

/// The answer to `/init` should be followed by a cluster that takes requests.
async fn wait_for_leader(app: &ExampleApp) {
    let wait = app.raft.wait(Some(REQUEST_DEADLINE));
    if wait.metrics(|metrics| metrics.current_leader.is_some(), "a leader").await.is_err() {
        tracing::warn!("the cluster is initialized, and has no leader yet");
    }
}

/// A peer that is needed does not answer.
pub(super) fn unreachable(id: NodeId, addr: &str, error: &reqwest::Error) -> ApiError {
    let reason = if error.is_timeout() { "it does not answer" } else { "nothing answers there" };
    ApiError::Unreachable(Retry::soon(format!("node {id} cannot be reached at {addr}: {reason}; is it started?")))
}
