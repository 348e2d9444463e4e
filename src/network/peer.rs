//! The envelope of RPCs, and requests between nodes besides Raft's.
//!
//! Every RPC is wrapped into an envelope that names the cluster, the sender, the receiver and the receiver's
//! incarnation. A node returns 421 to an RPC for another node that once had its address, for another cluster, or for an
//! earlier incarnation of its own, whose votes it has forgotten.
//!
//! The header `Raft-Envelope` has the same ids, so that a node reads the body only if the RPC is for it. Nodes of
//! former versions do not send the header; their RPCs are checked once the body is read.

use std::time::{Duration, Instant};

use actix_web::HttpRequest;
use actix_web::http::header::HeaderMap;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::listener::admission::state_of;
use super::rejections::{no_leader, other_directory, removed};
use super::worker::Worker;
use crate::app::{ExampleApp, Exclusion, Known};
use crate::config::{CONNECT_DEADLINE, JoinAs, LOG_TIME_MS_MAX, PEER_RESPONSE_BYTES_MAX, RPC_DEPTH_MAX};
use crate::connection::{BodyError, certified_node, read_response, resolves_to_every_address};
use crate::error::{ApiError, Details, Retry};
use crate::headers::{ENVELOPE, LOG_TIME};
use crate::level::Level;
use crate::proofs::Purpose;
use crate::store::log::codec::PayloadRecord;
use crate::store::{ClusterId, ExampleStore};
use crate::types::{Entry, ExampleNode, LogId, NodeId};

/// The log time of a leader.
pub fn log_ms_in(headers: &HeaderMap) -> Option<u64> {
    parse_log_ms(headers.get(&LOG_TIME)?.as_bytes())
}

/// The value of [`LOG_TIME`] or [`LOG_TIME_BY_WALL`](crate::headers::LOG_TIME_BY_WALL), if it is a valid time.
pub fn parse_log_ms(value: &[u8]) -> Option<u64> {
    let log_ms = std::str::from_utf8(value).ok()?.parse().ok()?;
    (log_ms <= LOG_TIME_MS_MAX).then_some(log_ms)
}

/// The beginning of the error for a body that is not an RPC.
pub(super) const NOT_AN_RPC: &str = "not an RPC of this version";

/// An RPC and its ids, as MessagePack with field names.
#[derive(Serialize, Deserialize)]
pub struct Envelope<T> {
    /// The cluster of the sender.
    pub cluster_id: ClusterId,
    /// The sender.
    pub from: NodeId,
    /// The receiver.
    pub to: NodeId,
    /// The incarnation of the receiver, as the membership has it.
    pub to_incarnation: u64,
    /// The request itself.
    pub rpc: T,
}

/// The ids of an RPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    /// The cluster of the sender.
    pub cluster_id: ClusterId,
    /// The sender.
    pub from: NodeId,
    /// The receiver.
    pub to: NodeId,
    /// The incarnation of the receiver, as the membership has it.
    pub to_incarnation: u64,
}

impl Ids {
    /// The ids of an RPC from the node with this store.
    pub fn to(store: &ExampleStore, to: NodeId, to_incarnation: u64) -> Result<Self, String> {
        let identity = store.identity();
        let Some(cluster_id) = identity.cluster_id else {
            return Err("this node belongs to no cluster".to_owned());
        };
        Ok(Ids { cluster_id, from: identity.node_id, to, to_incarnation })
    }

    /// The value of the header [`ENVELOPE`].
    pub fn header(&self) -> String {
        format!("{}/{}/{}/{:016x}", self.cluster_id, self.from, self.to, self.to_incarnation)
    }

    pub(crate) fn parse(header: &[u8]) -> Option<Self> {
        let mut parts = std::str::from_utf8(header).ok()?.split('/');
        let mut next = |radix| {
            let part = parts.next()?;
            let is_number = part.bytes().all(|byte| byte.is_ascii_alphanumeric());
            u64::from_str_radix(part, radix).ok().filter(|_| is_number)
        };
        let cluster_id = ClusterId(next(16)?);
        Some(Ids { cluster_id, from: next(10)?, to: next(10)?, to_incarnation: next(16)? })
    }
}

impl<T> Envelope<T> {
    fn ids(&self) -> Ids {
        let Envelope { cluster_id, from, to, to_incarnation, .. } = *self;
        Ids { cluster_id, from, to, to_incarnation }
    }
}

/// About how many bytes entries take in an RPC and in the log.
pub fn entries_bytes(entries: &[Entry]) -> usize {
    const ENTRY_BYTES: usize = 96; // The names of the fields, and the log id.
    entries.iter().map(|entry| ENTRY_BYTES + PayloadRecord::bytes_of(&entry.payload)).sum()
}

/// Wraps and encodes an RPC of about `bytes` bytes.
pub fn encode<T: Serialize>(ids: &Ids, rpc: &T, bytes: usize) -> Result<Vec<u8>, String> {
    let Ids { cluster_id, from, to, to_incarnation } = *ids;
    let envelope = Envelope { cluster_id, from, to, to_incarnation, rpc };
    let mut body = Vec::with_capacity(bytes + 256);
    rmp_serde::encode::write_named(&mut body, &envelope).map_err(|error| error.to_string())?;
    Ok(body)
}

/// What is known of an RPC before its body is read.
#[derive(Clone, Copy, Debug)]
pub struct Announced {
    /// The ids in the headers, if it has them.
    pub ids: Option<Ids>,
    /// The node whose certificate the connection has; `None` without TLS.
    pub certified: Option<NodeId>,
}

impl Announced {
    /// Rejects an RPC that claims to be from another node than its connection: a node must not speak for a third.
    fn check_sender(&self, from: NodeId) -> Result<(), ApiError> {
        match self.certified {
            Some(certified) if certified != from => Err(ApiError::Forbidden(Details::not_applied(format!(
                "the RPC claims to be from node {from}, and the certificate of its connection is of node {certified}"
            )))),
            _ => Ok(()),
        }
    }
}

/// What is known of an RPC before its body is read. Rejects an RPC for another node, from an impostor, or over TLS from a
/// caller without a node's certificate. The body of a rejected RPC need not be read.
pub fn announced(app: &ExampleApp, request: &HttpRequest) -> Result<Announced, ApiError> {
    let certified = state_of(request).and_then(|state| state.caller()).and_then(|caller| caller.node);
    // The listener rejects such requests by their path, which the router also understands in other spellings.
    if app.tls.is_some() && certified.is_none() {
        let message = "this route is for other nodes, and this connection does not have the certificate of a node";
        return Err(ApiError::Forbidden(Details::not_applied(message)));
    }
    let Some(header) = request.headers().get(&ENVELOPE) else { return Ok(Announced { ids: None, certified }) };
    let ids = Ids::parse(header.as_bytes()).ok_or_else(|| {
        let message = "the header Raft-Envelope must be <cluster>/<from>/<to>/<incarnation>";
        ApiError::bad_request("invalid_rpc", message)
    })?;
    let announced = Announced { ids: Some(ids), certified };
    announced.check_sender(ids.from)?;
    check_receiver(app, &ids)?;
    Ok(announced)
}

/// Rejects an RPC whose body has other ids than its header, or another sender than its connection.
pub fn check_announced<T>(announced: Announced, envelope: &Envelope<T>) -> Result<(), ApiError> {
    announced.check_sender(envelope.from)?;
    if announced.ids.is_none_or(|ids| ids == envelope.ids()) {
        return Ok(());
    }
    let message = "the header Raft-Envelope and the body of the RPC have different ids";
    Err(ApiError::bad_request("invalid_rpc", message))
}

/// Decodes an RPC, and rejects it unless it is for this node and passes `check`.
///
/// If `joins`, a node that belongs to no cluster then joins the cluster of the RPC.
pub async fn decode<T: DeserializeOwned>(
    app: &ExampleApp,
    announced: Announced,
    body: &[u8],
    joins: bool,
    check: impl FnOnce(&Envelope<T>, &Known) -> Result<(), ApiError>,
) -> Result<Envelope<T>, ApiError> {
    let envelope = parse(body)?;
    let ids = envelope.ids();
    check_announced(announced, &envelope)?;
    if announced.ids.is_none() {
        check_receiver(app, &ids)?;
    }
    check(&envelope, &app.known())?;
    let joined = match app.store.identity().cluster_id {
        Some(cluster_id) => cluster_id,
        None if joins => join_cluster(app, envelope.cluster_id).await?,
        None => return Ok(envelope),
    };
    // Two clusters may have sent an RPC at the same time.
    if joined != envelope.cluster_id {
        return Err(wrong_cluster(app.id, joined, &ids));
    }
    // The sender has this node as a member, whatever other nodes said before.
    app.clear_exclusion();
    Ok(envelope)
}

/// The value of the header [`RUN`](crate::headers::RUN).
pub(super) fn parse_run(header: &[u8]) -> Option<u64> {
    std::str::from_utf8(header).ok()?.parse().ok()
}

/// Decodes an RPC for any node.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<Envelope<T>, ApiError> {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(body);
    deserializer.set_max_depth(RPC_DEPTH_MAX);
    Envelope::<T>::deserialize(&mut deserializer)
        .map_err(|error| ApiError::bad_request("invalid_rpc", format!("{NOT_AN_RPC}: {error}")))
}

/// Checks the cluster first: if two clusters share an address, that explains every other difference.
fn check_receiver(app: &ExampleApp, ids: &Ids) -> Result<(), ApiError> {
    let own = app.store.identity();
    let wrong = |message: String| Err(ApiError::WrongNode(Details::not_applied(message)));
    if let Some(cluster_id) = own.cluster_id
        && cluster_id != ids.cluster_id
    {
        return Err(wrong_cluster(own.node_id, cluster_id, ids));
    }
    if ids.to != own.node_id {
        return wrong(format!("this is node {}, and the RPC is for node {}", own.node_id, ids.to));
    }
    if ids.from == own.node_id {
        return wrong(format!("this is node {}, and the RPC claims to be from it too", own.node_id));
    }
    if ids.to_incarnation != own.incarnation {
        if own.cluster_id.is_none() {
            note_other_directory(app, ids.cluster_id, ids.from);
        }
        return wrong(format!(
            "the data directory of node {} is not the one with which it joined, so its votes may be lost: start a \
             node with a new id and an empty directory, and put it in the place of this one: `raft-key-value members \
             replace {} NEW_ID ADDRESS`",
            own.node_id, own.node_id
        ));
    }
    Ok(())
}

/// Remembers that a cluster has this node's id as a member with another data directory, so that this node does not
/// found a second cluster, which clients could take for the first.
fn note_other_directory(app: &ExampleApp, cluster_id: ClusterId, from: NodeId) {
    if app.set_exclusion(Exclusion::OtherDirectory { cluster_id }) {
        tracing::warn!("node {from} reports: {}", other_directory(app.id, cluster_id));
    }
}

fn wrong_cluster(own_id: NodeId, own: ClusterId, ids: &Ids) -> ApiError {
    ApiError::WrongNode(Details::not_applied(format!(
        "this is node {own_id} of cluster {own}, and the RPC is from node {} of cluster {}: \
         do two clusters share an address?",
        ids.from, ids.cluster_id
    )))
}

/// Makes this node a member of a cluster, durably; returns the cluster to which it belongs afterwards.
pub async fn join_cluster(app: &ExampleApp, cluster_id: ClusterId) -> Result<ClusterId, ApiError> {
    // Held until the membership is on disk, so that the node cannot be reserved for another cluster meanwhile.
    let founding = app.founding.lock().await;
    let reserved = founding.filter(|hold| hold.cluster_id != cluster_id && hold.until > Instant::now());
    if let Some(hold) = reserved.filter(|_| app.store.identity().cluster_id.is_none()) {
        let message = format!("node {} is being added to a different new cluster by node {}", app.id, hold.founder);
        return Err(ApiError::WrongNode(Details::not_applied(message)));
    }
    let store = app.store.clone();
    let joined = tokio::task::spawn_blocking(move || store.join_cluster(cluster_id)).await;
    let failed = |error: String| {
        // The contents of the disk are unknown, so the node must exit.
        app.set_disk_failure(format!("cannot join cluster {cluster_id}: {error}"));
        ApiError::internal("the disk of this node failed, so the node is about to exit")
    };
    joined.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
}

/// Makes the format of this node's directory at least this level, durably, before anything of that level is written.
pub async fn raise_level(app: &ExampleApp, level: Level) -> Result<(), ApiError> {
    if app.store.identity().level >= level {
        return Ok(());
    }
    let store = app.store.clone();
    let raised = tokio::task::spawn_blocking(move || store.raise_level(level)).await;
    let failed = |error: String| {
        // The contents of the disk are unknown, so the node must exit.
        app.set_disk_failure(format!("cannot write format {level} to IDENTITY: {error}"));
        ApiError::internal("the disk of this node failed, so the node is about to exit")
    };
    raised.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
}

/// The identity of a node, in the response of `GET /raft-identity`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerIdentity {
    /// The node's id.
    pub node_id: NodeId,
    /// The node's cluster, if it belongs to one.
    pub cluster_id: Option<ClusterId>,
    /// The node's incarnation.
    pub incarnation: u64,
    /// The cluster that has the node's id as a member with another data directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former_cluster_id: Option<ClusterId>,
}

impl PeerIdentity {
    /// The identity of this node.
    pub fn of(app: &ExampleApp) -> Self {
        let own = app.store.identity();
        let former_cluster_id = match app.exclusion() {
            Some(Exclusion::OtherDirectory { cluster_id }) => Some(cluster_id),
            Some(Exclusion::Removed) | None => None,
        };
        PeerIdentity {
            node_id: own.node_id,
            cluster_id: own.cluster_id,
            incarnation: own.incarnation,
            former_cluster_id,
        }
    }
}

/// The response of `GET /raft-identity`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Introduction {
    /// The node's identity.
    #[serde(flatten)]
    pub identity: PeerIdentity,
    /// The address that the node advertises. Nodes of former versions do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The role in which the node wants to join a cluster, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joins_as: Option<JoinAs>,
    /// A number that identifies the process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<u64>,
    /// The highest level of formats that the node supports. Nodes without it support the first one.
    #[serde(default = "first_level")]
    pub format_level: u32,
}

fn first_level() -> u32 {
    Level::FIRST.0
}

impl Introduction {
    /// The introduction of this node.
    pub fn of(app: &ExampleApp) -> Self {
        Introduction {
            identity: PeerIdentity::of(app),
            address: Some(app.addr.clone()),
            joins_as: app.joins_as,
            run: Some(app.peers.run()),
            format_level: Level::NEWEST.0,
        }
    }
}

/// Asks the node at `addr` to introduce itself; an error unless it is node `id`.
pub async fn introduced_as(app: &ExampleApp, id: NodeId, addr: &str) -> Result<Introduction, ApiError> {
    if id == app.id {
        if addr != app.addr {
            let message = format!("node {id} is this node, and its address is {}", app.addr);
            return Err(ApiError::bad_request("wrong_address", message));
        }
        return Ok(Introduction::of(app));
    }
    if resolves_to_every_address(addr).await {
        let message = format!("the address {addr} means every address of a machine; use one that other nodes can dial");
        return Err(ApiError::bad_request("invalid_address", message));
    }
    let introduction = introduced(app, addr).await.map_err(|error| error.of_node(id, addr))?;
    if introduction.identity.node_id == id {
        return Ok(introduction);
    }
    let message = format!("the node at {addr} is node {}, not node {id}", introduction.identity.node_id);
    Err(ApiError::Conflict(Details::not_applied(message)))
}

/// Why a node did not introduce itself.
pub enum Silence {
    /// The address does not respond.
    Unreachable(reqwest::Error),
    /// Another kind of server responds.
    NotANode,
}

impl Silence {
    fn of_node(self, id: NodeId, addr: &str) -> ApiError {
        match self {
            Silence::Unreachable(error) => unreachable(id, addr, &error),
            Silence::NotANode => not_a_node(addr),
        }
    }
}

/// Asks whichever node is at `addr` to introduce itself.
pub async fn introduced(app: &ExampleApp, addr: &str) -> Result<Introduction, Silence> {
    let request = app.http.to(None).get(app.http.url(addr, "/raft-identity"));
    // The other node may not know the name in `addr` as its own (`network::browser`).
    let request = request.header("host", "localhost").timeout(CONNECT_DEADLINE);
    let answer = app.peers.proofs.send(request, Purpose::Own).await.map_err(Silence::Unreachable)?;
    let certified = certified_node(&answer);
    let body = match read_response(answer, PEER_RESPONSE_BYTES_MAX).await {
        Ok(body) => body,
        Err(BodyError::Broken(error)) => return Err(Silence::Unreachable(error)),
        Err(BodyError::TooLong { .. }) => return Err(Silence::NotANode),
    };
    let found: Result<Result<Introduction, ApiError>, _> = serde_json::from_slice(&body);
    let found = found.ok().and_then(Result::ok).ok_or(Silence::NotANode)?;
    // With TLS a node cannot introduce itself as another one.
    if app.tls.is_some() && certified != Some(found.identity.node_id) {
        return Err(Silence::NotANode);
    }
    Ok(found)
}

/// The server at an address is not a node.
pub(super) fn not_a_node(addr: &str) -> ApiError {
    ApiError::Conflict(Details::not_applied(format!("the server at {addr} is not a raft-key-value node")))
}

/// Asks the leader for the log id that a linearizable read must have applied.
pub async fn ask_read_index(
    app: &ExampleApp,
    leader_id: NodeId,
    leader: &ExampleNode,
    deadline: Duration,
) -> Result<LogId, ApiError> {
    let failed = |message: String| ApiError::Unreachable(Retry::soon(message));
    let ids = Ids::to(&app.store, leader_id, leader.incarnation).map_err(failed)?;
    let body = encode(&ids, &(), 0).map_err(ApiError::internal)?;
    let url = app.http.url(&leader.addr, "/raft-read-index");
    let lost = |error: reqwest::Error| unreachable(leader_id, &leader.addr, &error);
    let http = Worker::current().map_or_else(|| app.http.to(Some(leader_id)), |worker| worker.http.to(Some(leader_id)));
    let request = http.post(url).timeout(deadline).header(ENVELOPE.as_str(), ids.header()).body(body);
    let answer = app.peers.proofs.send(request, Purpose::Own).await.map_err(lost)?;
    let succeeded = answer.status().is_success();
    let body: Bytes = match read_response(answer, PEER_RESPONSE_BYTES_MAX).await {
        Ok(body) => body,
        Err(BodyError::Broken(error)) => return Err(lost(error)),
        Err(error) => return Err(failed(format!("the leader, node {leader_id}, sent no read index: {error}"))),
    };
    if !succeeded {
        return Err(match serde_json::from_slice::<Result<(), ApiError>>(&body) {
            // It was the leader until now.
            Ok(Err(ApiError::NoLeader(_) | ApiError::NotMember(_))) | Err(_) | Ok(Ok(())) => no_leader(app),
            // The leader does not have this node as a member.
            Ok(Err(ApiError::Conflict(_))) => {
                if app.set_exclusion(Exclusion::Removed) {
                    tracing::warn!("the leader, node {leader_id}, reports: {}", removed(app.id, &app.addr));
                }
                removed(app.id, &app.addr)
            }
            Ok(Err(error)) => failed(format!("the leader, node {leader_id}, rejected the request: {error}")),
        });
    }
    rmp_serde::from_slice(&body).map_err(|error| failed(format!("cannot decode the leader's response: {error}")))
}

/// A node that is needed does not respond.
pub(super) fn unreachable(id: NodeId, addr: &str, error: &reqwest::Error) -> ApiError {
    let reason = if error.is_timeout() { "no response" } else { "no connection" };
    ApiError::Unreachable(Retry::soon(format!("cannot reach node {id} at {addr}: {reason}; is it running?")))
}
