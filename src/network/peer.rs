//! What the nodes say to each other, around the RPCs of Raft.
//!
//! Every RPC is wrapped into an envelope that says which node of which cluster
//! it is from, and which life of which node it is meant for. A node answers 421
//! to anything else: to what was meant for another node that once had its
//! address, for another cluster, or for a life of its own that it has
//! forgotten, together with the votes it then gave.
//!
//! The same ids are in the header `Raft-Envelope`, so that a body is read only if it is for this
//! node. Nodes of former versions send no such header; their RPCs are checked once the body is read.

use std::time::{Duration, Instant};

use actix_web::HttpRequest;
use actix_web::http::header::HeaderMap;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::forward;
use super::worker::Worker;
use crate::app::{ExampleApp, Exclusion, Known};
use crate::config::{CONNECT_DEADLINE, LOG_TIME_MS_MAX, PEER_RESPONSE_BYTES_MAX, RPC_DEPTH_MAX};
use crate::connection::{BodyError, read_response, resolves_to_every_address};
use crate::error::{ApiError, Details, Retry};
use crate::headers::{ENVELOPE, LOG_TIME};
use crate::store::{ClusterId, ExampleStore};
use crate::types::{ExampleNode, LogId, NodeId};

/// The log time that a leader sent.
pub fn log_ms_in(headers: &HeaderMap) -> Option<u64> {
    parse_log_ms(headers.get(&LOG_TIME)?.as_bytes())
}

/// The value of [`LOG_TIME`] or [`LOG_TIME_BY_WALL`](crate::headers::LOG_TIME_BY_WALL), if it is a possible time.
pub fn parse_log_ms(value: &[u8]) -> Option<u64> {
    let log_ms = std::str::from_utf8(value).ok()?.parse().ok()?;
    (log_ms <= LOG_TIME_MS_MAX).then_some(log_ms)
}

/// How an error begins that says that a body is no RPC.
pub(super) const NOT_AN_RPC: &str = "not an RPC of this version";

/// An RPC and whom it is for, as MessagePack with field names.
#[derive(Serialize, Deserialize)]
pub struct Envelope<T> {
    /// The cluster of the sender.
    pub cluster_id: ClusterId,
    /// The sender.
    pub from: NodeId,
    /// The receiver.
    pub to: NodeId,
    /// The life of the receiver, as the membership has it.
    pub to_incarnation: u64,
    /// The request itself.
    pub rpc: T,
}

/// Whom an RPC is from and for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    /// The cluster of the sender.
    pub cluster_id: ClusterId,
    /// The sender.
    pub from: NodeId,
    /// The receiver.
    pub to: NodeId,
    /// The life of the receiver, as the membership has it.
    pub to_incarnation: u64,
}

impl Ids {
    /// Those of an RPC from the node whose data this is.
    pub fn to(store: &ExampleStore, to: NodeId, to_incarnation: u64) -> Result<Self, String> {
        let identity = store.identity();
        let Some(cluster_id) = identity.cluster_id else {
            return Err("this node belongs to no cluster".to_owned());
        };
        Ok(Ids { cluster_id, from: identity.node_id, to, to_incarnation })
    }

    /// As they are in the header [`ENVELOPE`].
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

/// Wraps and encodes an RPC. `bytes` is about how long it will be.
pub fn encode<T: Serialize>(ids: &Ids, rpc: &T, bytes: usize) -> Result<Vec<u8>, String> {
    let Ids { cluster_id, from, to, to_incarnation } = *ids;
    let envelope = Envelope { cluster_id, from, to, to_incarnation, rpc };
    let mut body = Vec::with_capacity(bytes + 256);
    rmp_serde::encode::write_named(&mut body, &envelope).map_err(|error| error.to_string())?;
    Ok(body)
}

/// The ids in the headers of an RPC, if it has them. Rejects it if they are not for this node: its
/// body need not be read then.
pub fn announced(app: &ExampleApp, request: &HttpRequest) -> Result<Option<Ids>, ApiError> {
    let Some(header) = request.headers().get(&ENVELOPE) else { return Ok(None) };
    let ids = Ids::parse(header.as_bytes()).ok_or_else(|| {
        let message = "the header Raft-Envelope must be <cluster>/<from>/<to>/<incarnation>";
        ApiError::bad_request("invalid_rpc", message)
    })?;
    check_receiver(app, &ids)?;
    Ok(Some(ids))
}

/// Rejects an RPC whose header, if it has one, names other ids than its body.
pub fn check_announced<T>(announced: Option<Ids>, envelope: &Envelope<T>) -> Result<(), ApiError> {
    if announced.is_none_or(|announced| announced == envelope.ids()) {
        return Ok(());
    }
    let message = "the header Raft-Envelope and the body of the RPC have different ids";
    Err(ApiError::bad_request("invalid_rpc", message))
}

/// Decodes an RPC, and rejects it unless it is meant for this node and passes `check`.
///
/// A node that belongs to no cluster yet then joins the one that the RPC is from, if `joins`.
pub async fn decode<T: DeserializeOwned>(
    app: &ExampleApp,
    announced: Option<Ids>,
    body: &[u8],
    joins: bool,
    check: impl FnOnce(&Envelope<T>, &Known) -> Result<(), ApiError>,
) -> Result<Envelope<T>, ApiError> {
    let envelope = parse(body)?;
    let ids = envelope.ids();
    check_announced(announced, &envelope)?;
    if announced.is_none() {
        check_receiver(app, &ids)?;
    }
    check(&envelope, &app.known())?;
    let joined = match app.store.identity().cluster_id {
        Some(cluster_id) => cluster_id,
        None if joins => join_cluster(app, envelope.cluster_id).await?,
        None => return Ok(envelope),
    };
    // Two clusters may have asked at the same time.
    if joined != envelope.cluster_id {
        return Err(wrong_cluster(app.id, joined, &ids));
    }
    // Whoever sends this has this very node as a member, whatever others said before.
    app.clear_exclusion();
    Ok(envelope)
}

/// The number in the header [`RUN`](crate::headers::RUN).
pub(super) fn parse_run(header: &[u8]) -> Option<u64> {
    std::str::from_utf8(header).ok()?.parse().ok()
}

/// Decodes an RPC, whomever it is for.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<Envelope<T>, ApiError> {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(body);
    deserializer.set_max_depth(RPC_DEPTH_MAX);
    Envelope::<T>::deserialize(&mut deserializer)
        .map_err(|error| ApiError::bad_request("invalid_rpc", format!("{NOT_AN_RPC}: {error}")))
}

/// The cluster first: if two share an address by mistake, nothing else that differs is the cause.
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
        return wrong(format!("this is node {}, and another process claims to be it", own.node_id));
    }
    if ids.to_incarnation != own.incarnation {
        if own.cluster_id.is_none() {
            note_other_directory(app, ids.cluster_id, ids.from);
        }
        return wrong(format!(
            "node {} has another data directory than the one it joined with, and may have forgotten votes it gave: \
             add a node with a new number and an empty directory, and put it in the place of this one with \
             POST /change-membership",
            own.node_id
        ));
    }
    Ok(())
}

/// Remembers that a cluster has this node's number as a member with another data
/// directory, lest it found a second cluster that clients take for the first.
fn note_other_directory(app: &ExampleApp, cluster_id: ClusterId, from: NodeId) {
    if app.set_exclusion(Exclusion::OtherDirectory { cluster_id }) {
        tracing::warn!("node {from} says: {}", forward::other_directory(app.id, cluster_id));
    }
}

fn wrong_cluster(own_id: NodeId, own: ClusterId, ids: &Ids) -> ApiError {
    ApiError::WrongNode(Details::not_applied(format!(
        "this is node {own_id} of cluster {own}, and the RPC is from node {} of cluster {}: \
         do two clusters share an address?",
        ids.from, ids.cluster_id
    )))
}

/// Makes this node a member of a cluster, durably; returns the one it belongs to afterwards.
pub async fn join_cluster(app: &ExampleApp, cluster_id: ClusterId) -> Result<ClusterId, ApiError> {
    // Held until it is on disk, so that it cannot be reserved for another cluster meanwhile.
    let founding = app.founding.lock().await;
    let reserved = founding.filter(|hold| hold.cluster_id != cluster_id && hold.until > Instant::now());
    if let Some(hold) = reserved.filter(|_| app.store.identity().cluster_id.is_none()) {
        let message =
            format!("node {} is just being made a member of another new cluster, by node {}", app.id, hold.founder);
        return Err(ApiError::WrongNode(Details::not_applied(message)));
    }
    let store = app.store.clone();
    let joined = tokio::task::spawn_blocking(move || store.join_cluster(cluster_id)).await;
    let failed = |error: String| {
        // What is on disk is not known now, so the node must not go on.
        app.set_disk_failure(format!("cannot join cluster {cluster_id}: {error}"));
        ApiError::Stopping(Retry::soon("the disk of this node failed"))
    };
    joined.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
}

/// Who a node is, as `GET /raft-identity` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerIdentity {
    /// Its number.
    pub node_id: NodeId,
    /// The cluster it belongs to, if any.
    pub cluster_id: Option<ClusterId>,
    /// Which life of it this is.
    pub incarnation: u64,
    /// The cluster that has its number as a member with another data directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former_cluster_id: Option<ClusterId>,
}

impl PeerIdentity {
    /// Who this node is.
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

/// Asks the node at `addr` who it is, and refuses it if it is not node `id`.
pub async fn identify(app: &ExampleApp, id: NodeId, addr: &str) -> Result<PeerIdentity, ApiError> {
    if id == app.id {
        if addr != app.addr {
            let message = format!("node {id} is this node, and it is reached at {}", app.addr);
            return Err(ApiError::bad_request("wrong_address", message));
        }
        return Ok(PeerIdentity::of(app));
    }
    if resolves_to_every_address(addr).await {
        let message = format!("the address {addr} resolves to every address of a machine, which is not one to dial");
        return Err(ApiError::bad_request("invalid_address", message));
    }
    let request = app.http.get(format!("http://{addr}/raft-identity"));
    // The address may be a name that the other node does not know for its own (`network::browser`).
    let sent = request.header("host", "localhost").timeout(CONNECT_DEADLINE).send();
    let answer = sent.await.map_err(|error| unreachable(id, addr, &error))?;
    let body = match read_response(answer, PEER_RESPONSE_BYTES_MAX).await {
        Ok(body) => body,
        Err(BodyError::Broken(error)) => return Err(unreachable(id, addr, &error)),
        Err(BodyError::TooLong { .. }) => return Err(not_a_node(addr)),
    };
    let found: Result<Result<PeerIdentity, ApiError>, _> = serde_json::from_slice(&body);
    match found {
        Ok(Ok(identity)) if identity.node_id == id => Ok(identity),
        Ok(Ok(identity)) => {
            let message = format!("the node at {addr} is node {}, not node {id}", identity.node_id);
            Err(ApiError::Conflict(Details::not_applied(message)))
        }
        _ => Err(not_a_node(addr)),
    }
}

/// What is reached at an address speaks another protocol.
pub(super) fn not_a_node(addr: &str) -> ApiError {
    ApiError::Conflict(Details::not_applied(format!("what answers at {addr} is not a node of this program")))
}

/// Asks the leader for the log id up to which a linearizable read must have applied.
pub async fn ask_read_index(
    app: &ExampleApp,
    leader_id: NodeId,
    leader: &ExampleNode,
    deadline: Duration,
) -> Result<LogId, ApiError> {
    let failed = |message: String| ApiError::Unreachable(Retry::soon(message));
    let ids = Ids::to(&app.store, leader_id, leader.incarnation).map_err(failed)?;
    let body = encode(&ids, &(), 0).map_err(failed)?;
    let url = format!("http://{}/raft-read-index", leader.addr);
    let lost = |error: reqwest::Error| unreachable(leader_id, &leader.addr, &error);
    let http = Worker::current().map_or_else(|| app.http.clone(), |worker| worker.http.clone());
    let sent = http.post(url).timeout(deadline).header(ENVELOPE.as_str(), ids.header()).body(body).send();
    let answer = sent.await.map_err(lost)?;
    let succeeded = answer.status().is_success();
    let body: Bytes = match read_response(answer, PEER_RESPONSE_BYTES_MAX).await {
        Ok(body) => body,
        Err(BodyError::Broken(error)) => return Err(lost(error)),
        Err(error) => return Err(failed(format!("the leader, node {leader_id}, cannot be asked: {error}"))),
    };
    if !succeeded {
        return Err(match serde_json::from_slice::<Result<(), ApiError>>(&body) {
            // It led a moment ago.
            Ok(Err(ApiError::NoLeader(_) | ApiError::NotMember(_))) | Err(_) | Ok(Ok(())) => forward::no_leader(app),
            // So the leader says of this node.
            Ok(Err(ApiError::Conflict(_))) => {
                if app.set_exclusion(Exclusion::Removed) {
                    tracing::warn!("node {leader_id}, which leads, says: {}", forward::removed(app.id));
                }
                forward::removed(app.id)
            }
            Ok(Err(error)) => failed(format!("the leader, node {leader_id}, refused: {error}")),
        });
    }
    rmp_serde::from_slice(&body).map_err(|error| failed(format!("the leader's answer cannot be read: {error}")))
}

/// A peer that is needed does not answer.
pub(super) fn unreachable(id: NodeId, addr: &str, error: &reqwest::Error) -> ApiError {
    let reason = if error.is_timeout() { "it does not answer" } else { "nothing answers there" };
    ApiError::Unreachable(Retry::soon(format!("node {id} cannot be reached at {addr}: {reason}; is it started?")))
}
