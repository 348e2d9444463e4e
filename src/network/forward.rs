//! Which way a request takes: any node takes any request.
//!
//! A node that is not the leader passes a request on to the leader and returns
//! its answer. A passed-on request carries `Raft-Forwarded` and is never passed
//! on again, so it takes one hop at most. A caller that wants to be told where
//! the leader is instead sends `Raft-Forward: no`.

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderMap, HeaderValue};
use actix_web::{HttpRequest, HttpResponse};
use bytes::Bytes;

use super::parameters::says_no;
use super::worker::Worker;
use crate::app::{ExampleApp, Exclusion, Role};
use crate::config::{FORWARD_DEADLINE, MEMBERSHIP_DEADLINE, PASSED_ON_RESPONSE_BYTES_MAX};
use crate::connection::{BodyError, read_response};
use crate::error::{ApiError, Details, LeaderHint, Retry};
use crate::headers::{
    CLUSTER, FORWARD, FORWARDED, FORWARDED_TO, IDEMPOTENCY_KEY, NODE, OUTCOME, REPLAYED, REVISION, TERM,
};
use crate::store::ClusterId;
use crate::types::{ExampleNode, NodeId};

/// Where a request is to be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Here: this node leads.
    Here,
    /// At the leader.
    Leader {
        /// The leader's number.
        leader_id: NodeId,
        /// Where the leader is.
        leader_node: ExampleNode,
    },
}

/// Decides where a request that needs the leader is to be answered.
pub fn destination(app: &ExampleApp, headers: &HeaderMap) -> Result<Destination, ApiError> {
    if app.is_stopping() {
        return Err(stopping());
    }
    check_passed_on(app, headers)?;
    check_not_excluded(app)?;
    match app.role() {
        Role::Leader => Ok(Destination::Here),
        // It remembers who led, and would wait in vain for what it is not sent.
        Role::Follower { .. } if !app.hears_a_leader() && app.moved().is_some() => Err(no_leader(app)),
        Role::Follower { leader_id, leader_node } => {
            if says_no(headers, &FORWARD) || headers.contains_key(&FORWARDED) {
                Err(ApiError::ForwardToLeader(LeaderHint { leader_id, leader_node }))
            } else {
                Ok(Destination::Leader { leader_id, leader_node })
            }
        }
        Role::NoLeader if headers.contains_key(&FORWARDED) && app.is_left_out() => {
            // For whoever passed it on; its client asked a node that is no less a member.
            Err(ApiError::WrongNode(Details::not_applied("this node led, and was removed from the cluster")))
        }
        Role::NoLeader => Err(no_leader(app)),
    }
}

/// Whether another node of the cluster passed a request on to this very node.
pub fn is_passed_on(app: &ExampleApp, headers: &HeaderMap) -> bool {
    let Some(receiver) = headers.get(&FORWARDED_TO).and_then(|value| value.to_str().ok()) else { return false };
    let own = app.store.identity();
    headers.contains_key(&FORWARDED) && receiver == receiver_text(own.cluster_id, own.node_id, own.incarnation)
}

/// Refuses what was passed on to another node that once had this address.
fn check_passed_on(app: &ExampleApp, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(receiver) = headers.get(&FORWARDED_TO).and_then(|value| value.to_str().ok()) else { return Ok(()) };
    let own = app.store.identity();
    if receiver == receiver_text(own.cluster_id, own.node_id, own.incarnation) {
        return Ok(());
    }
    let message = "the request was passed on to another node, which once had this address";
    Err(ApiError::WrongNode(Details::not_applied(message)))
}

fn receiver_text(cluster_id: Option<ClusterId>, node_id: NodeId, incarnation: u64) -> String {
    let cluster_id = cluster_id.map(|id| id.to_string()).unwrap_or_default();
    format!("{cluster_id}/{node_id}/{incarnation:016x}")
}

/// Refuses what only a member can do, if the others say that this node is none.
pub fn check_not_excluded(app: &ExampleApp) -> Result<(), ApiError> {
    match app.exclusion() {
        None => Ok(()),
        Some(Exclusion::Removed) => Err(removed(app.id)),
        Some(Exclusion::OtherDirectory { cluster_id }) => {
            Err(ApiError::NotMember(Retry::soon(other_directory(app.id, cluster_id))))
        }
    }
}

/// A node was removed from the membership.
pub fn removed(id: NodeId) -> ApiError {
    ApiError::NotMember(Retry::soon(format!(
        "node {id} was removed from the cluster: ask another node; stop this one, \
         or have the cluster take it in again with POST /add-learner on another node"
    )))
}

/// What to do with a node whose number is a member with another data directory.
pub fn other_directory(id: NodeId, cluster_id: ClusterId) -> String {
    format!(
        "node {id} is a member of cluster {cluster_id} with another data directory than this one: \
         start it with that again; if that is lost, start this node with a new --id and an empty --data-dir, \
         and have another node take it in (POST /add-learner) and put it in the place of node {id} \
         (POST /change-membership)"
    )
}

/// Why there is no leader, as far as this node can tell.
pub fn no_leader(app: &ExampleApp) -> ApiError {
    if let Err(excluded) = check_not_excluded(app) {
        return excluded;
    }
    if app.is_left_out() {
        // Nobody has told it so, and what it has of the log may be old.
        return ApiError::NotMember(Retry::soon(format!(
            "node {} was removed from the cluster, unless it is just being taken in: ask another node; if it was \
             removed, stop it, or have the cluster take it in again with POST /add-learner on another node",
            app.id
        )));
    }
    let message = if app.store.identity().cluster_id.is_none() {
        "this node belongs to no cluster yet: POST /init makes it one of its own, \
         and POST /add-learner on a node of a cluster takes it in"
            .to_owned()
    } else if let Some(moved) = app.moved() {
        format!("no leader is known now, probably because {moved}")
    } else {
        "no leader is known now: an election is under way, or too few nodes can be reached".to_owned()
    };
    ApiError::NoLeader(Retry::soon(message))
}

/// The node is about to end.
pub fn stopping() -> ApiError {
    ApiError::Stopping(Retry::soon("this node is stopping; another one takes the request"))
}

/// Passes a request on to the leader, and returns its answer.
pub async fn pass_on(
    app: &ExampleApp,
    request: &HttpRequest,
    body: Bytes,
    leader_id: NodeId,
    leader_node: &ExampleNode,
) -> Result<HttpResponse, ApiError> {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    // In a URL a backslash would become a slash, and another key would be meant.
    let url = format!("http://{}{}", leader_node.addr, path.replace('\\', "%5C"));
    let receiver = receiver_text(app.store.identity().cluster_id, leader_id, leader_node.incarnation);
    let method = reqwest::Method::from_bytes(request.method().as_str().as_bytes()).unwrap_or(reqwest::Method::POST);
    let http = Worker::current().map_or_else(|| app.http.clone(), |worker| worker.passing_http.clone());
    let mut passed_on = http
        .request(method, url)
        .header(FORWARDED.as_str(), app.id)
        .header(FORWARDED_TO.as_str(), receiver)
        .timeout(deadline_of(request));
    for name in [&header::CONTENT_TYPE, &header::IF_MATCH, &header::IF_NONE_MATCH, &IDEMPOTENCY_KEY] {
        // A list may be spread over several lines of a header.
        for value in request.headers().get_all(name) {
            passed_on = passed_on.header(name.as_str(), value.as_bytes());
        }
    }
    if !body.is_empty() {
        passed_on = passed_on.body(body);
    }
    let answer = match passed_on.send().await {
        Ok(answer) => answer,
        Err(error) if error.is_connect() => {
            return Err(ApiError::Unreachable(Retry::soon(format!(
                "the leader, node {leader_id}, cannot be reached at {leader_node}: an election may follow"
            ))));
        }
        Err(error) => return Err(lost_answer(leader_id, reason_of_loss(&error))),
    };
    let is_json = answer.headers().get("content-type").is_some_and(|value| value == "application/json");
    if !is_json {
        return Err(lost_answer(leader_id, "is not what answers at its address"));
    }
    let status = answer.status().as_u16();
    let cluster = answer.headers().get(CLUSTER.as_str());
    if status == 421
        && let Some(cluster) = cluster.and_then(|cluster| cluster.to_str().ok())
        && app.cluster_header().is_some_and(|own| own != cluster)
    {
        return Err(ApiError::Unreachable(Retry::soon(format!(
            "the leader, node {leader_id}, cannot be reached: cluster {cluster} answers at {leader_node}"
        ))));
    }
    if status == 421 {
        // It led a moment ago. It refused before it proposed anything.
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
        Err(BodyError::TooLong { .. }) => Err(lost_answer(leader_id, "sent a longer response than any node sends")),
    }
}

fn deadline_of(request: &HttpRequest) -> std::time::Duration {
    match request.path() {
        "/add-learner" | "/change-membership" => MEMBERSHIP_DEADLINE + FORWARD_DEADLINE,
        path if path.starts_with("/v1/cluster/members/") => MEMBERSHIP_DEADLINE + FORWARD_DEADLINE,
        _ => FORWARD_DEADLINE,
    }
}

fn reason_of_loss(error: &reqwest::Error) -> &'static str {
    if error.is_timeout() { "did not answer in time" } else { "broke the connection" }
}

fn lost_answer(leader_id: NodeId, what: &str) -> ApiError {
    ApiError::OutcomeUnknown(Details::unknown(format!(
        "the leader, node {leader_id}, {what} after the request was passed on to it; read before trying again"
    )))
}
