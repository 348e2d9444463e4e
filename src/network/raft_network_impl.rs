//! Outgoing RPCs of Raft, over reqwest.
//!
//! Appends, heartbeats and snapshots have connections of their own, so that a long body of one never delays another: a
//! late heartbeat would cause an election.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix_web::http::header::HeaderName;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use reqwest::header::HeaderValue;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::peer::{self, Ids};
use super::rpc_check::{SnapshotHead, is_answer_plausible};
use crate::config::{APPEND_BYTES_PER_SECOND_MIN, PEER_RESPONSE_BYTES_MAX, SNAPSHOT_FRAME_BYTES};
use crate::connection::{Dialer, is_unsent, read_response, reason_of};
use crate::headers::{CLUSTER, ENVELOPE, LOG_TIME, LOG_TIME_BY_WALL, RUN};
use crate::peers::Peers;
use crate::proofs::{self, BodyHash};
use crate::store::ExampleStore;
use crate::store::snapshot::{OpenFile, SnapshotFile};
use crate::tls::Tls;
use crate::types::{ExampleNode, NodeId, TypeConfig, Vote};

type RpcError = RPCError<TypeConfig>;
type SnapshotOf = openraft::alias::SnapshotOf<TypeConfig, SnapshotFile>;

/// Creates the connections to other nodes.
pub struct ExampleNetworkFactory {
    store: Arc<ExampleStore>,
    peers: Arc<Peers>,
    append: Arc<Dialer>,
    heartbeat: Arc<Dialer>,
    snapshot: Arc<Dialer>,
    /// Whether unreachable nodes are not logged.
    is_quiet: bool,
    /// By purpose and node. openraft makes new connections for each election, and each would log the same failure.
    troubles: HashMap<(Purpose, NodeId), Arc<Trouble>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Purpose {
    Append,
    Heartbeat,
    Snapshot,
}

/// Why the last RPC failed, if it did. Only changes are logged.
#[derive(Default)]
struct Trouble(Mutex<Option<String>>);

impl ExampleNetworkFactory {
    /// The network of the node with this store.
    pub fn new(store: Arc<ExampleStore>, peers: Arc<Peers>, tls: Option<Arc<Tls>>) -> Self {
        let dialer = || Arc::new(Dialer::new(tls.clone()));
        let (append, heartbeat, snapshot) = (dialer(), dialer(), dialer());
        ExampleNetworkFactory { store, peers, append, heartbeat, snapshot, is_quiet: false, troubles: HashMap::new() }
    }

    /// A network that does not log which nodes cannot be reached, because Raft's own network does.
    pub fn quiet(store: Arc<ExampleStore>, peers: Arc<Peers>, tls: Option<Arc<Tls>>) -> Self {
        ExampleNetworkFactory { is_quiet: true, ..Self::new(store, peers, tls) }
    }

    fn connect(&mut self, purpose: Purpose, target: NodeId, node: &ExampleNode) -> ExampleNetwork {
        let http = match purpose {
            Purpose::Append => &self.append,
            Purpose::Heartbeat => &self.heartbeat,
            Purpose::Snapshot => &self.snapshot,
        };
        ExampleNetwork {
            store: self.store.clone(),
            peers: self.peers.clone(),
            http: http.clone(),
            target,
            node: node.clone(),
            addresses_version: None,
            envelope: None,
            is_quiet: self.is_quiet,
            trouble: self.troubles.entry((purpose, target)).or_default().clone(),
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for ExampleNetworkFactory {
    type Network = ExampleNetwork;

    async fn new_client(&mut self, target: NodeId, node: &ExampleNode) -> ExampleNetwork {
        self.connect(Purpose::Append, target, node)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &ExampleNode) -> ExampleNetwork {
        self.connect(Purpose::Heartbeat, target, node)
    }

    async fn new_snapshot_client(&mut self, target: NodeId, node: &ExampleNode) -> ExampleNetwork {
        self.connect(Purpose::Snapshot, target, node)
    }
}

/// The connections for one purpose to one node.
pub struct ExampleNetwork {
    store: Arc<ExampleStore>,
    peers: Arc<Peers>,
    http: Arc<Dialer>,
    target: NodeId,
    node: ExampleNode,
    /// The version of the members' addresses to which `node` belongs.
    addresses_version: Option<u64>,
    envelope: Option<HeaderValue>,
    is_quiet: bool,
    trouble: Arc<Trouble>,
}

impl Trouble {
    /// Replaces the trouble; returns whether that changed it.
    fn set(&self, reason: Option<&str>) -> bool {
        let mut trouble = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = trouble.as_deref() != reason;
        if changed {
            *trouble = reason.map(str::to_owned);
        }
        changed
    }
}

impl ExampleNetwork {
    async fn call<Request: Serialize, Response: DeserializeOwned>(
        &mut self,
        path: &str,
        rpc: &Request,
        deadline: Duration,
    ) -> Result<Response, RpcError> {
        let body = peer::encode(&self.ids()?, rpc, 0).map_err(network_error)?;
        self.send(path, body.into(), deadline, None).await
    }

    /// Notices that the member has another address now: openraft would dial the old one until the next election.
    fn follow_moves(&mut self) {
        let version = self.peers.addresses_version();
        if self.addresses_version.replace(version) != Some(version)
            && let Some(addr) = self.peers.address_of(self.target, self.node.incarnation)
        {
            self.node.addr = addr;
        }
    }

    fn ids(&mut self) -> Result<Ids, RpcError> {
        Ids::to(&self.store, self.target, self.node.incarnation).map_err(network_error)
    }

    /// The ids as a header, which is encoded once.
    fn envelope(&mut self) -> Result<HeaderValue, RpcError> {
        if let Some(envelope) = &self.envelope {
            return Ok(envelope.clone());
        }
        let envelope =
            HeaderValue::from_str(&self.ids()?.header()).map_err(|error| network_error(error.to_string()))?;
        Ok(self.envelope.insert(envelope).clone())
    }

    /// Rejects an implausible vote in a response, before Raft adopts its term.
    fn check_vote(&self, answered: &Vote, own: &Vote) -> Result<(), RpcError> {
        if is_answer_plausible(answered, own) {
            return Ok(());
        }
        let reason =
            format!("its term {} is too far above this node's, {}", answered.leader_id.term, own.leader_id.term);
        tracing::warn!("rejecting a response of node {} at {}: {reason}", self.target, self.node);
        Err(unreachable(reason))
    }

    async fn send<Response: DeserializeOwned>(
        &mut self,
        path: &str,
        body: reqwest::Body,
        deadline: Duration,
        log_ms: Option<u64>,
    ) -> Result<Response, RpcError> {
        self.send_hashed(path, body, None, deadline, log_ms).await
    }

    /// The same with the hash of a body that is read while it is sent.
    async fn send_hashed<Response: DeserializeOwned>(
        &mut self,
        path: &str,
        body: reqwest::Body,
        hash: Option<BodyHash>,
        deadline: Duration,
        log_ms: Option<u64>,
    ) -> Result<Response, RpcError> {
        self.follow_moves();
        let url = self.http.url(&self.node.addr, path);
        let envelope = self.envelope()?;
        let sent = Instant::now();
        let request = self.http.to(Some(self.target)).post(url).timeout(deadline).header(ENVELOPE.as_str(), envelope);
        let mut request = request.header(RUN.as_str(), self.peers.run()).body(body);
        if let Some(log_ms) = log_ms {
            request = request.header(LOG_TIME.as_str(), log_ms);
        }
        let answer = match self.peers.proofs.send_hashed(request, proofs::Purpose::Own, hash).await {
            Ok(answer) => answer,
            Err(error) => {
                let reason = reason_of(&error);
                self.note_unreached(path, &reason);
                // Unreachable makes openraft wait before the next attempt.
                return Err(if is_unsent(&error) { unreachable(reason) } else { network_error(reason) });
            }
        };
        if self.peers.has_candidates()
            && let Some(run) = answer.headers().get(RUN.as_str()).and_then(|run| peer::parse_run(run.as_bytes()))
        {
            self.peers.note_answer(self.target, run, sent);
        }
        let status = answer.status();
        let cluster = answer.headers().get(CLUSTER.as_str()).cloned();
        if status.is_success() {
            self.note_log_time(answer.headers());
        }
        let body = match read_response(answer, PEER_RESPONSE_BYTES_MAX).await {
            Ok(body) => body,
            Err(error) => {
                let reason = error.to_string();
                self.note_unreached(path, &reason);
                return Err(network_error(reason));
            }
        };
        if !status.is_success() {
            let reason = match self.other_cluster(cluster.as_ref()) {
                Some(other) => {
                    format!("the address belongs to a node of cluster {other}: do two clusters share an address?")
                }
                None => rejection_of(status.as_u16(), &body),
            };
            self.note_unreached(path, &reason);
            return Err(unreachable(reason));
        }
        if self.trouble.set(None) {
            tracing::info!("{path} to node {} at {} succeeds again", self.target, self.node);
        }
        rmp_serde::from_slice(&body).map_err(|error| network_error(format!("cannot decode its response: {error}")))
    }

    /// Notes the log time of a voter, before openraft counts its vote.
    fn note_log_time(&self, headers: &reqwest::header::HeaderMap) {
        let log_ms = |name: &HeaderName| peer::parse_log_ms(headers.get(name.as_str())?.as_bytes());
        if let Some(log_ms) = log_ms(&LOG_TIME) {
            self.store.clock().told_by_voter(log_ms);
        } else if let Some(log_ms) = log_ms(&LOG_TIME_BY_WALL) {
            self.store.clock().told_by_wall(log_ms);
        }
    }

    /// The cluster that sent a response, if it is another one.
    fn other_cluster<'a>(&self, found: Option<&'a HeaderValue>) -> Option<&'a str> {
        let own = self.store.identity().cluster_id?.to_string();
        found.and_then(|found| found.to_str().ok()).filter(|found| *found != own)
    }

    fn note_unreached(&self, path: &str, reason: &str) {
        if !self.is_quiet && self.trouble.set(Some(reason)) {
            tracing::warn!("{path} to node {} at {} failed: {reason}", self.target, self.node);
        }
    }
}

impl RaftNetworkV2<TypeConfig> for ExampleNetwork {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        if rpc.entries.first().is_some_and(|entry| self.store.log.is_withheld(entry.log_id.index)) {
            return Err(network_error(
                "it is so far behind that it will get a snapshot instead of these entries".into(),
            ));
        }
        let bytes = peer::entries_bytes(&rpc.entries);
        // A follower with a slow disk may need several syncs for the entries, and a slow network time for many bytes.
        // Resending them would only add work for both. Heartbeats have other connections, so nothing waits for this
        // RPC.
        let deadline = if rpc.entries.is_empty() {
            option.soft_ttl()
        } else {
            option.hard_ttl() * 5 + Duration::from_secs_f64(bytes as f64 / APPEND_BYTES_PER_SECOND_MIN)
        };
        let body = peer::encode(&self.ids()?, &rpc, bytes).map_err(network_error)?;
        // Only a leader appends.
        let log_ms = self.store.clock().leader_now_ms();
        let answer = self.send("/raft-append", body.into(), deadline, Some(log_ms)).await?;
        if let AppendEntriesResponse::HigherVote(vote) = &answer {
            self.check_vote(vote, &rpc.vote)?;
        }
        Ok(answer)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        self.peers.elections.note_election(rpc.vote.leader_id.term);
        let answer: VoteResponse<TypeConfig> = self.call("/raft-vote", &rpc, option.soft_ttl()).await?;
        self.check_vote(&answer.vote, &rpc.vote)?;
        Ok(answer)
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let answer: VoteResponse<TypeConfig> = self.call("/raft-pre-vote", &rpc, option.soft_ttl()).await?;
        self.check_vote(&answer.vote, &rpc.vote)?;
        Ok(answer)
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        self.call("/raft-transfer-leader", &rpc, option.soft_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        tracing::info!("sending a snapshot of {} bytes to node {}", snapshot.snapshot.bytes, self.target);
        let head = SnapshotHead { vote, meta: snapshot.meta };
        let head = peer::encode(&self.ids()?, &head, 0).map_err(network_error)?;
        let mut start = Vec::from((head.len() as u32).to_be_bytes());
        start.extend_from_slice(&head);
        let (start, file) = (Bytes::from(start), snapshot.snapshot);
        let sent = async {
            // Before the deadline of the request begins.
            let hash = match self.peers.proofs.cover_bodies() {
                true => Some(hash_of_snapshot(start.clone(), file.file.clone()).await.map_err(network_error)?),
                false => None,
            };
            let start = stream::iter([Ok(start)]);
            let body = reqwest::Body::wrap_stream(start.chain(file_stream(file)));
            self.send_hashed::<SnapshotResponse<TypeConfig>>("/raft-snapshot", body, hash, option.hard_ttl(), None)
                .await
        };
        let answer = tokio::select! {
            closed = cancel => return Err(StreamingError::Closed(closed)),
            result = sent => result,
        };
        let elections = &self.peers.elections;
        let counter = if answer.is_ok() { &elections.snapshots_sent } else { &elections.snapshots_unsent };
        counter.increment();
        let answer = answer?;
        self.check_vote(&answer.vote, &vote)?;
        Ok(answer)
    }
}

/// The hash of a snapshot RPC, which begins with `start`.
async fn hash_of_snapshot(start: Bytes, file: Arc<OpenFile>) -> Result<BodyHash, String> {
    let hash = move || BodyHash::of_parts(&start, FromStart { file: &file, offset: 0 });
    match tokio::task::spawn_blocking(hash).await {
        Ok(hash) => hash.map_err(|error| format!("cannot read the snapshot: {error}")),
        Err(error) => Err(error.to_string()),
    }
}

/// Reads a file from its start, without its position, which other readers share.
struct FromStart<'a> {
    file: &'a OpenFile,
    offset: u64,
}

impl io::Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use std::os::unix::fs::FileExt;
        let length = self.file.read_at(buffer, self.offset)?;
        self.offset += length as u64;
        Ok(length)
    }
}

/// Reads the bytes of a snapshot as they are sent.
fn file_stream(snapshot: SnapshotFile) -> impl Stream<Item = io::Result<Bytes>> {
    use std::os::unix::fs::FileExt;
    stream::try_unfold((snapshot.file, 0), |(file, offset)| async move {
        let read = tokio::task::spawn_blocking(move || {
            let mut chunk = vec![0; SNAPSHOT_FRAME_BYTES];
            let length = file.read_at(&mut chunk, offset)?;
            chunk.truncate(length);
            io::Result::Ok((file, chunk))
        });
        let (file, chunk) = read.await.map_err(io::Error::other)??;
        let offset = offset + chunk.len() as u64;
        Ok((!chunk.is_empty()).then_some((Bytes::from(chunk), (file, offset))))
    })
}

fn network_error(reason: String) -> RpcError {
    RPCError::Network(NetworkError::from_string(reason))
}

fn unreachable(reason: String) -> RpcError {
    RPCError::Unreachable(Unreachable::from_string(reason))
}

fn rejection_of(status: u16, body: &[u8]) -> String {
    match serde_json::from_slice::<Result<(), crate::error::ApiError>>(body) {
        Ok(Err(error)) => format!("it rejected the RPC ({status}): {error}"),
        _ => format!("it rejected the RPC ({status})"),
    }
}
