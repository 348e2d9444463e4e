//! Forwarding: any node accepts any request.
//!
//! A node that is not the leader forwards a request to the leader and returns the leader's response. A forwarded
//! request has the header `Raft-Forwarded` and is never forwarded again, so it takes at most one hop. A client that
//! wants to learn the leader's address instead sends `Raft-Forward: no`.

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderMap, HeaderValue};
use actix_web::{HttpRequest, HttpResponse};
use bytes::Bytes;

use super::access;
use super::listener::admission::state_of;
use super::parameters::says_no;
use super::readiness::{self, Destination};
use super::rejections::no_leader;
use super::worker::Worker;
use crate::app::{ExampleApp, TermAndLeader};
use crate::config::{
    FORWARD_DEADLINE, MEMBERS_ANSWER_MAX, MEMBERSHIP_DEADLINE, NEXT_LEADER_WAIT_MAX, PASSED_ON_RESPONSE_BYTES_MAX,
};
use crate::connection::{BodyError, is_unsent, read_response};
use crate::error::{ApiError, Details, Interrupted, LeaderHint, Retry};
use crate::headers::{
    CLUSTER, FORWARD, FORWARDED, FORWARDED_TO, IDEMPOTENCY_KEY, NODE, OUTCOME, REPLAYED, REQUEST_ID, REVISION, TERM,
    TRACEPARENT,
};
use crate::proofs::Purpose;
use crate::store::ClusterId;
use crate::types::{ExampleNode, NodeId};

/// The node that serves a request which needs the leader.
///
/// # Errors
///
/// 421 if the client does not want the request forwarded, or another node forwarded it; otherwise see
/// [`readiness::leader`].
pub fn destination(app: &ExampleApp, headers: &HeaderMap) -> Result<Destination, ApiError> {
    check_receiver(app, headers)?;
    let is_forwarded = headers.contains_key(&FORWARDED);
    match readiness::leader(app) {
        Ok(Destination::Leader { leader_id, leader_node }) if is_forwarded || says_no(headers, &FORWARD) => {
            Err(ApiError::ForwardToLeader(LeaderHint { leader_id, leader_node }))
        }
        // The node that forwarded the request is a member, and its client must not be told otherwise.
        Err(ApiError::NotMember(_)) if is_forwarded => {
            Err(ApiError::WrongNode(Details::not_applied("this node was the leader, and was removed from the cluster")))
        }
        destination => destination,
    }
}

/// The same, but waits a moment for the next leader if this node has just lost the last one.
///
/// # Errors
///
/// See [`destination`].
pub async fn next_destination(app: &ExampleApp, headers: &HeaderMap) -> Result<Destination, ApiError> {
    match destination(app, headers) {
        Err(ApiError::NoLeader(_)) if app.is_between_leaders() => {
            app.wait_between_leaders().await;
            destination(app, headers)
        }
        known => known,
    }
}

/// Whether a request that the leader rejected may succeed with the next leader, and should be sent again once this node
/// knows it: the leader is no longer the leader, or cannot be reached, and nothing was proposed.
pub fn is_worth_another_leader(app: &ExampleApp, error: &ApiError) -> bool {
    matches!(error, ApiError::NoLeader(_) | ApiError::Unreachable(_))
        && !app.is_stopping()
        && app.has_just_heard_a_leader()
}

/// Waits until the leader or the term is another one than `before`, for a bounded time.
pub async fn wait_for_change(app: &ExampleApp, before: TermAndLeader) {
    // If nothing changes, the next attempt gets the error.
    let _ = tokio::time::timeout(NEXT_LEADER_WAIT_MAX, app.leader_changed_since(before)).await;
}

/// Whether another node of the cluster forwarded the request to this node.
pub fn is_forwarded(app: &ExampleApp, headers: &HeaderMap) -> bool {
    let Some(receiver) = headers.get(&FORWARDED_TO).and_then(|value| value.to_str().ok()) else { return false };
    let own = app.store.identity();
    headers.contains_key(&FORWARDED) && receiver == receiver_text(own.cluster_id, own.node_id, own.incarnation)
}

/// Rejects a request that was forwarded to another node, which once had this address.
fn check_receiver(app: &ExampleApp, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(receiver) = headers.get(&FORWARDED_TO).and_then(|value| value.to_str().ok()) else { return Ok(()) };
    let own = app.store.identity();
    if receiver == receiver_text(own.cluster_id, own.node_id, own.incarnation) {
        return Ok(());
    }
    let message = "the request was forwarded to another node, which had this address before";
    Err(ApiError::WrongNode(Details::not_applied(message)))
}

fn receiver_text(cluster_id: Option<ClusterId>, node_id: NodeId, incarnation: u64) -> String {
    let cluster_id = cluster_id.map(|id| id.to_string()).unwrap_or_default();
    format!("{cluster_id}/{node_id}/{incarnation:016x}")
}

/// Forwards a request to the leader, and returns its response.
pub async fn to_leader(
    app: &ExampleApp,
    request: &HttpRequest,
    body: Bytes,
    leader_id: NodeId,
    leader_node: &ExampleNode,
) -> Result<HttpResponse, ApiError> {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    // In a URL a backslash would become a slash, and name another key.
    let url = app.http.url(&leader_node.addr, &path.replace('\\', "%5C"));
    let receiver = receiver_text(app.store.identity().cluster_id, leader_id, leader_node.incarnation);
    let method = reqwest::Method::from_bytes(request.method().as_str().as_bytes()).unwrap_or(reqwest::Method::POST);
    let http = Worker::current()
        .map_or_else(|| app.http.to(Some(leader_id)), |worker| worker.forwarding_http.to(Some(leader_id)));
    let mut forwarded = http
        .request(method, url)
        .header(FORWARDED.as_str(), app.id)
        .header(FORWARDED_TO.as_str(), receiver)
        .timeout(deadline_of(request));
    for name in [&header::CONTENT_TYPE, &header::IF_MATCH, &header::IF_NONE_MATCH, &IDEMPOTENCY_KEY] {
        // A list may be spread over several lines of a header.
        for value in request.headers().get_all(name) {
            forwarded = forwarded.header(name.as_str(), value.as_bytes());
        }
    }
    if let Some(id) = state_of(request).and_then(|state| state.spent.request_id()) {
        forwarded = forwarded.header(REQUEST_ID.as_str(), id.as_bytes());
    }
    if let Some(parent) = state_of(request).and_then(|state| state.spent.traceparent()) {
        forwarded = forwarded.header(TRACEPARENT.as_str(), parent);
    }
    if !body.is_empty() {
        forwarded = forwarded.body(body);
    }
    if let Some(token) = request.headers().get(header::AUTHORIZATION)
        && let Ok(mut token) = reqwest::header::HeaderValue::from_bytes(token.as_bytes())
    {
        token.set_sensitive(true);
        forwarded = forwarded.header(header::AUTHORIZATION.as_str(), token);
    }
    let purpose = if access::is_of_peer(request) { Purpose::Own } else { Purpose::Forwarded };
    let answer = match app.peers.proofs.send(forwarded, purpose).await {
        Ok(answer) => answer,
        Err(error) if is_unsent(&error) => {
            return Err(ApiError::Unreachable(Retry::soon(format!(
                "the leader, node {leader_id}, cannot be reached at {leader_node}: an election may follow"
            ))));
        }
        Err(error) => return Err(lost_answer(leader_id, reason_of_loss(&error))),
    };
    let is_json = answer.headers().get("content-type").is_some_and(|value| value == "application/json");
    if !is_json {
        return Err(lost_answer(leader_id, "did not send the response (another server has its address)"));
    }
    let status = answer.status().as_u16();
    let cluster = answer.headers().get(CLUSTER.as_str());
    if status == 421
        && let Some(cluster) = cluster.and_then(|cluster| cluster.to_str().ok())
        && app.cluster_header().is_some_and(|own| own != cluster)
    {
        return Err(ApiError::Unreachable(Retry::soon(format!(
            "the leader, node {leader_id}, cannot be reached: {leader_node} belongs to a node of cluster {cluster}"
        ))));
    }
    if status == 421 {
        // It was the leader until now, and rejected the request before it proposed anything.
        return Err(no_leader(app));
    }
    let mut response = HttpResponse::build(StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY));
    let own = [&OUTCOME, &REVISION, &TERM, &NODE, &REPLAYED];
    for name in [&header::CONTENT_TYPE, &header::RETRY_AFTER, &header::ETAG].into_iter().chain(own) {
        let value = answer.headers().get(name.as_str());
        if let Some(Ok(value)) = value.map(|value| HeaderValue::from_bytes(value.as_bytes())) {
            response.insert_header((name, value));
        }
    }
    match read_response(answer, PASSED_ON_RESPONSE_BYTES_MAX).await {
        Ok(body) => Ok(response.body(body)),
        Err(BodyError::Broken(error)) => Err(lost_answer(leader_id, reason_of_loss(&error))),
        Err(BodyError::TooLong { .. }) => Err(lost_answer(leader_id, "sent a response that is too long")),
    }
}

fn deadline_of(request: &HttpRequest) -> std::time::Duration {
    match request.path() {
        "/add-learner" | "/change-membership" => MEMBERSHIP_DEADLINE + FORWARD_DEADLINE,
        "/v1/cluster/leader" => MEMBERS_ANSWER_MAX + FORWARD_DEADLINE,
        path if path.starts_with("/v1/cluster/members") => MEMBERSHIP_DEADLINE + FORWARD_DEADLINE,
        _ => FORWARD_DEADLINE,
    }
}

fn reason_of_loss(error: &reqwest::Error) -> &'static str {
    if error.is_timeout() { "did not respond in time" } else { "closed the connection" }
}

fn lost_answer(leader_id: NodeId, what: &str) -> ApiError {
    ApiError::OutcomeUnknown(Interrupted::unknown(format!(
        "the leader, node {leader_id}, {what} after the request was forwarded to it; read before retrying"
    )))
}
