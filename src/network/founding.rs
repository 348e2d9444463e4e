//! Founding a cluster: `POST /init`.
//!
//! The same list may be sent to any or all of its nodes, at once and repeatedly, and makes one cluster:
//!
//! * The cluster id is a hash of the list and the incarnations of its nodes, so all nodes compute the same one. A node
//!   that stopped after it had joined continues when the list is sent again.
//! * Before anything is written, each listed node is reserved for that id, in the order of the node ids. Of two
//!   lists that share a node only one gets it; the other is rejected. Of several nodes that were sent the same list,
//!   the first to reserve the node with the lowest id founds the cluster; the others wait until it has a leader.
//!
//! A founder that is rejected ends its reservations. Reservations are in memory and expire, so a founder that dies
//! blocks no other.

use std::collections::BTreeMap;
use std::time::Instant;

use actix_web::{HttpRequest, HttpResponse, web};
use futures_util::future::join_all;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{InitializeError, RaftError};
use openraft::metrics::RaftMetrics;
use serde::{Deserialize, Serialize};

use super::access::Peer;
use super::levels;
use super::peer::{self, Envelope, Introduction, PeerIdentity};
use super::rejections::{other_directory, raft_ended, stopping};
use super::reply::ok;
use super::request_body::{keep_for_a_while, read_body};
use crate::app::{ExampleApp, FoundingHold};
use crate::config::{CONNECT_DEADLINE, FOUNDING_HOLD, PEER_RESPONSE_BYTES_MAX, REQUEST_DEADLINE};
use crate::connection::{BodyError, read_response};
use crate::error::{ApiError, Details, Interrupted, NotAllowed, NotApplied, Retry};
use crate::level::Level;
use crate::proofs::Purpose;
use crate::store::ClusterId;
use crate::types::{ExampleNode, NodeId, TypeConfig};

/// Makes the listed nodes a cluster; returns once a leader has committed an entry.
pub async fn found(app: &ExampleApp, members: BTreeMap<NodeId, String>) -> Result<(), ApiError> {
    if is_founded(app).await? {
        return Err(already_initialized(app));
    }
    let mut nodes = BTreeMap::new();
    let mut found = Vec::new();
    let mut are_new = true;
    for (id, addr) in members {
        let Introduction { identity, format_level, .. } = peer::introduced_as(app, id, &addr).await?;
        are_new &= format_level >= Level::NEWEST.0;
        nodes.insert(id, ExampleNode { addr, incarnation: identity.incarnation });
        found.push(identity);
    }
    let cluster_id = cluster_id_of(&nodes);
    for identity in &found {
        check_free(app, identity, &nodes, cluster_id)?;
    }
    found_unless_reserved(app, nodes, cluster_id).await?;
    wait_for_leader(app).await?;
    if are_new {
        levels::wait_for_newest(app).await;
    }
    Ok(())
}

/// Founds the cluster on this node, unless another node does so.
async fn found_unless_reserved(
    app: &ExampleApp,
    nodes: BTreeMap<NodeId, ExampleNode>,
    cluster_id: ClusterId,
) -> Result<(), ApiError> {
    // One request at a time: otherwise one could end the reservations of another.
    let _turn = app.founding_turn.lock().await;
    match reserve_all(app, &nodes, cluster_id).await {
        Ok(true) => {}
        Ok(false) => return Ok(()),
        Err(error) => {
            join_all(nodes.iter().map(|(id, node)| release(app, *id, node, cluster_id))).await;
            return Err(error);
        }
    }
    if peer::join_cluster(app, cluster_id).await? != cluster_id {
        return Err(belongs_to_a_cluster(app.id));
    }
    match app.raft.initialize(nodes).await {
        // `NotAllowed`: another node has founded this same cluster, and has already requested a vote.
        Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
        Err(RaftError::APIError(InitializeError::NotInMembers(error))) => {
            Err(ApiError::bad_request("not_in_members", error.to_string()))
        }
        Err(RaftError::Fatal(_)) => Err(ApiError::OutcomeUnknown(Interrupted::unknown(
            "this node stopped during the request: the cluster may or may not be initialized; start the node again and \
             check /metrics",
        ))),
    }
}

/// Whether this node belongs to an initialized cluster, rather than to one that is being founded.
async fn is_founded(app: &ExampleApp) -> Result<bool, ApiError> {
    if !app.raft.is_initialized().await.map_err(|fatal| raft_ended(&fatal))? {
        return Ok(false);
    }
    let metrics = app.raft.metrics();
    let metrics = metrics.borrow_watched();
    // The membership is at index 0, and the first leader's own entry at index 1.
    Ok(is_led(&metrics) || metrics.last_log_index > Some(1))
}

/// Whether a leader has committed an entry. Before that, openraft accepts no membership change.
fn is_led(metrics: &RaftMetrics<TypeConfig>) -> bool {
    let led = metrics.current_leader.map(|leader| (metrics.current_term, leader));
    let committed = metrics.cluster_committed.map(|log_id| (log_id.leader_id.term, log_id.leader_id.node_id));
    led.is_some() && committed == led
}

/// Rejects a node that belongs to another cluster.
fn check_free(
    app: &ExampleApp,
    identity: &PeerIdentity,
    nodes: &BTreeMap<NodeId, ExampleNode>,
    cluster_id: ClusterId,
) -> Result<(), ApiError> {
    let id = identity.node_id;
    if identity.cluster_id.is_some_and(|other| other != cluster_id) {
        if id == app.id {
            return Err(belongs_to_a_cluster(id));
        }
        let addr = nodes.get(&id).map_or("", |node| &node.addr);
        let message = format!("node {id} at {addr} already belongs to another cluster");
        return Err(ApiError::Conflict(Details::not_applied(message)));
    }
    match identity.former_cluster_id {
        // Clients would take the new cluster for the one with their data.
        Some(former) => Err(ApiError::Conflict(Details::not_applied(other_directory(id, former)))),
        None => Ok(()),
    }
}

/// Whether this node is reserved for a cluster that is being founded.
pub async fn is_reserved_for(app: &ExampleApp, cluster_id: ClusterId) -> bool {
    let founding = app.founding.lock().await;
    founding.is_some_and(|hold| hold.cluster_id == cluster_id && hold.until > Instant::now())
}

/// The id of the cluster that a list founds: the same on all nodes, and different for any other list or directory.
fn cluster_id_of(nodes: &BTreeMap<NodeId, ExampleNode>) -> ClusterId {
    let mut hashed = b"raft-key-value cluster".to_vec();
    for (id, node) in nodes {
        hashed.extend_from_slice(&id.to_le_bytes());
        hashed.extend_from_slice(&node.incarnation.to_le_bytes());
        hashed.extend_from_slice(&(node.addr.len() as u64).to_le_bytes());
        hashed.extend_from_slice(node.addr.as_bytes());
    }
    ClusterId(xxhash_rust::xxh3::xxh3_64(&hashed).max(1))
}

/// Reserves all nodes for a cluster; returns whether this node must found it.
async fn reserve_all(
    app: &ExampleApp,
    nodes: &BTreeMap<NodeId, ExampleNode>,
    cluster_id: ClusterId,
) -> Result<bool, ApiError> {
    let begun = Instant::now();
    for (position, (id, node)) in nodes.iter().enumerate() {
        let reserved = match *id == app.id {
            true => reserve(app, cluster_id, app.id).await,
            false => ask_for(app, *id, node, cluster_id, Step::Reserve).await,
        };
        let Reserved { founder } = reserved.map_err(|error| match error {
            // It joined another cluster, or its directory was replaced, since it sent its identity.
            ApiError::WrongNode(details) => ApiError::Conflict(details),
            other => other,
        })?;
        // The founder that holds the lowest id holds the others, or is about to.
        if position == 0 && founder != app.id {
            return Ok(false);
        }
    }
    if begun.elapsed() > FOUNDING_HOLD / 2 {
        // The first reservations may expire before the nodes join the cluster.
        let message = "the listed nodes took too long to respond; nothing was changed";
        return Err(ApiError::Unreachable(Retry::soon(message)));
    }
    Ok(true)
}

/// A request of a founder to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Reserve the node.
    Reserve,
    /// End the reservation.
    Release,
}

/// The response of a node.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Reserved {
    /// The node that founds the cluster: the first to reserve this one.
    pub founder: NodeId,
}

/// Reserves this node for a cluster.
async fn reserve(app: &ExampleApp, cluster_id: ClusterId, founder: NodeId) -> Result<Reserved, ApiError> {
    let mut founding = app.founding.lock().await;
    if app.store.identity().cluster_id.is_some_and(|other| other != cluster_id) {
        return Err(belongs_elsewhere(app.id));
    }
    let held = founding.filter(|hold| hold.until > Instant::now());
    match held {
        Some(hold) if hold.cluster_id != cluster_id => Err(ApiError::Conflict(Details::not_applied(format!(
            "node {} is being added to a different new cluster by node {}",
            app.id, hold.founder
        )))),
        Some(hold) if hold.founder != founder => Ok(Reserved { founder: hold.founder }),
        _ => {
            *founding = Some(FoundingHold { cluster_id, founder, until: Instant::now() + FOUNDING_HOLD });
            Ok(Reserved { founder })
        }
    }
}

/// Ends a reservation of this node.
async fn end(app: &ExampleApp, cluster_id: ClusterId, founder: NodeId) {
    let mut founding = app.founding.lock().await;
    founding.take_if(|hold| (hold.cluster_id, hold.founder) == (cluster_id, founder));
}

/// Ends the reservation of a node for a cluster that this node does not found after all.
async fn release(app: &ExampleApp, id: NodeId, node: &ExampleNode, cluster_id: ClusterId) {
    if id == app.id {
        return end(app, cluster_id, app.id).await;
    }
    // A reservation that cannot be ended expires.
    let _ = ask_for(app, id, node, cluster_id, Step::Release).await;
}

/// Asks another node to reserve itself for a cluster that this node founds, or to end the reservation.
async fn ask_for(
    app: &ExampleApp,
    id: NodeId,
    node: &ExampleNode,
    cluster_id: ClusterId,
    step: Step,
) -> Result<Reserved, ApiError> {
    let envelope = Envelope { cluster_id, from: app.id, to: id, to_incarnation: node.incarnation, rpc: step };
    let body = rmp_serde::to_vec_named(&envelope)
        .map_err(|error| ApiError::internal(format!("cannot encode the request to node {id}: {error}")))?;
    let url = app.http.url(&node.addr, "/raft-found");
    let lost = |error: reqwest::Error| peer::unreachable(id, &node.addr, &error);
    let request = app.http.to(Some(id)).post(url).timeout(CONNECT_DEADLINE).body(body);
    let response = app.peers.proofs.send(request, Purpose::Own).await.map_err(lost)?;
    if response.status().as_u16() == 404 {
        // A node of a former version has no reservations, and works without them.
        return Ok(Reserved { founder: app.id });
    }
    let body = match read_response(response, PEER_RESPONSE_BYTES_MAX).await {
        Ok(body) => body,
        Err(BodyError::Broken(error)) => return Err(lost(error)),
        Err(BodyError::TooLong { .. }) => return Err(peer::not_a_node(&node.addr)),
    };
    let answered: Result<Result<Reserved, ApiError>, _> = serde_json::from_slice(&body);
    match answered {
        Ok(Ok(reserved)) => Ok(reserved),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(peer::not_a_node(&node.addr)),
    }
}

/// `POST /raft-found`: reserves this node for the cluster of the envelope, which the sender founds, or ends the
/// reservation.
pub async fn receive(app: Peer, request: HttpRequest, payload: web::Payload) -> Result<HttpResponse, ApiError> {
    let announced = match peer::announced(&app, &request) {
        Ok(announced) => announced,
        Err(error) => {
            keep_for_a_while(payload);
            return Err(error);
        }
    };
    let body = read_body(&request, payload, PEER_RESPONSE_BYTES_MAX).await?;
    let envelope: Envelope<Step> = peer::parse(&body)?;
    peer::check_announced(announced, &envelope)?;
    let own = app.store.identity();
    if (envelope.to, envelope.to_incarnation) != (own.node_id, own.incarnation) || envelope.from == own.node_id {
        let message = format!("this is node {}, but the request is for its previous data directory", own.node_id);
        return Err(ApiError::WrongNode(Details::not_applied(message)));
    }
    if own.cluster_id.is_some_and(|other| other != envelope.cluster_id) {
        return Err(belongs_elsewhere(own.node_id));
    }
    if envelope.cluster_id.0 == 0 || envelope.from == 0 {
        return Err(ApiError::bad_request("invalid_rpc", "the cluster id and the node id must not be 0"));
    }
    if app.is_stopping() {
        return Err(stopping());
    }
    let reserved = match envelope.rpc {
        Step::Reserve => reserve(&app, envelope.cluster_id, envelope.from).await?,
        Step::Release => {
            end(&app, envelope.cluster_id, envelope.from).await;
            Reserved { founder: envelope.from }
        }
    };
    Ok(ok(&reserved))
}

fn belongs_elsewhere(id: NodeId) -> ApiError {
    ApiError::WrongNode(Details::not_applied(format!("node {id} already belongs to another cluster")))
}

fn belongs_to_a_cluster(id: NodeId) -> ApiError {
    ApiError::Conflict(Details::not_applied(format!(
        "node {id} was added to a cluster, or stopped during /init: add it to that cluster, send the same list to \
         /init again, or start the node with an empty --data-dir"
    )))
}

fn already_initialized(app: &ExampleApp) -> ApiError {
    let metrics = app.raft.metrics();
    let metrics = metrics.borrow_watched();
    ApiError::NotAllowed(NotAllowed {
        last_log_id: metrics.last_applied, // What is known for certain of the log.
        vote: metrics.vote,
        message: "this node already belongs to an initialized cluster".to_owned(),
        outcome: NotApplied::NotApplied,
    })
}

/// Waits for a leader, so that the cluster accepts requests once `/init` has returned.
async fn wait_for_leader(app: &ExampleApp) -> Result<(), ApiError> {
    let wait = app.raft.wait(Some(REQUEST_DEADLINE));
    match wait.metrics(is_led, "a leader with a committed entry").await {
        Ok(_) => Ok(()),
        Err(_) => Err(ApiError::DeadlinePassed(Interrupted::unknown(
            "the cluster has no leader yet: start a majority of the listed nodes; if /metrics still shows no leader, \
             send the same list again",
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cluster id differs for each part of the list, and for nothing else.
    #[test]
    fn cluster_ids() {
        let list = |nodes: &[(NodeId, &str, u64)]| {
            let node = |addr: &str, incarnation| ExampleNode { addr: addr.to_owned(), incarnation };
            cluster_id_of(&nodes.iter().map(|(id, addr, incarnation)| (*id, node(addr, *incarnation))).collect())
        };
        let ids = [
            list(&[(1, "a:1", 7), (2, "b:1", 8)]),
            list(&[(1, "a:1", 7), (2, "b:1", 9)]),
            list(&[(1, "a:1", 7), (2, "b:2", 8)]),
            list(&[(1, "a:1", 7), (3, "b:1", 8)]),
            list(&[(1, "a:1", 7)]),
            list(&[(1, "a:1", 7), (2, "b:1", 8), (3, "c:1", 9)]),
        ];
        for (position, id) in ids.iter().enumerate() {
            assert!(!ids[..position].contains(id), "the lists up to {position} have {ids:?}");
        }
        assert_eq!(ids[0], list(&[(2, "b:1", 8), (1, "a:1", 7)]), "the order does not matter");
    }
}
