//! Routes for other nodes: incoming RPCs of Raft.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt;
use openraft::ReadPolicy;
use openraft::errors::RaftError;
use openraft::raft::{AppendEntriesResponse, TransferLeaderRequest, VoteRequest, VoteResponse};
use openraft::storage::Snapshot;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncWriteExt;
use tokio::runtime::Handle;
use tokio::sync::SemaphorePermit;

use super::access::{self, Peer};
use super::consensus::read_error;
use super::leader_loss;
use super::listener::admission::state_of;
use super::listener::connection_limits::Class;
use super::peer::{self, Announced, Envelope, Ids, Introduction};
use super::rejections::{raft_ended, task_ended};
use super::reply::ok;
use super::request_body::{keep_for_a_while, read_body};
use super::rpc_check::{self, Append, SnapshotHead};
use crate::app::{ExampleApp, Known};
use crate::config::{
    APPEND_RPC_BYTES_MAX, LARGE_RPC_WAIT_MAX, LEADER_VIEW_INTERVALS, SMALL_RPC_BYTES_MAX, SNAPSHOT_BYTES_PER_CHECK,
    SNAPSHOT_DEADLINE, SNAPSHOT_HEAD_BYTES_MAX, SNAPSHOT_PAUSE_MAX, SNAPSHOT_WAIT_MAX,
};
use crate::disk::{DiskSpace, Taken};
use crate::error::{ApiError, Details, Interrupted, Retry};
use crate::headers::{ENVELOPE, LOG_TIME, LOG_TIME_BY_WALL, RUN};
use crate::store::error::is_out_of_space;
use crate::store::snapshot::TemporaryFile;
use crate::types::{Entry, NodeId, Payload, TypeConfig};

const APPEND: &str = "/raft-append";
const VOTE: &str = "/raft-vote";
const READ_INDEX: &str = "/raft-read-index";

/// `POST /raft-append`
pub async fn append(app: Peer, request: HttpRequest, payload: web::Payload) -> Result<HttpResponse, ApiError> {
    let clock = app.store.clock();
    let (leader_ms, arrived_ms) = (peer::log_ms_in(request.headers()), clock.elapsed_ms());
    let check = |envelope: &Envelope<Append>, known: &Known, bytes: usize| {
        check_sender(&app, envelope.from)?;
        rpc_check::check_append(&envelope.rpc, envelope.from, bytes, known)
    };
    // Hold the permit until Raft has the entries: entries that wait take memory, too.
    let (envelope, _permit) = receive(&app, &request, payload, APPEND_RPC_BYTES_MAX, check).await?;
    let append = envelope.rpc;
    check_agreement(&app, &append).await?;
    let (vote, last_covered) = (append.vote, append.last_covered());
    let answer = hand_to_raft(&app, &request, append).await?;
    if matches!(answer, AppendEntriesResponse::Success | AppendEntriesResponse::PartialSuccess(_)) {
        app.agreement.note_accepted(&vote, last_covered);
    }
    // A former leader does not count.
    if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
        app.peers.note_leader();
        if let Some(leader_ms) = leader_ms {
            clock.told_by_leader(leader_ms, arrived_ms);
        }
    }
    answer_with(&app, &answer)
}

/// `POST /raft-vote`
pub async fn vote(app: Peer, request: HttpRequest, payload: web::Payload) -> Result<HttpResponse, ApiError> {
    let rpc = receive_candidate(&app, &request, payload).await?;
    let answer = app.raft.vote(rpc).await.map_err(|error| raft_failed(&error))?;
    answer_candidate(&app, &answer)
}

/// `POST /raft-pre-vote`
pub async fn pre_vote(app: Peer, request: HttpRequest, payload: web::Payload) -> Result<HttpResponse, ApiError> {
    let rpc = receive_candidate(&app, &request, payload).await?;
    let answer = match leader_loss::pre_vote(&app, &rpc) {
        Some(answer) => answer,
        None => app.raft.pre_vote(rpc).await.map_err(|error| raft_failed(&error))?,
    };
    answer_candidate(&app, &answer)
}

async fn receive_candidate(
    app: &ExampleApp,
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<VoteRequest<TypeConfig>, ApiError> {
    let check = |envelope: &Envelope<VoteRequest<TypeConfig>>, known: &Known, _| {
        check_sender(app, envelope.from)?;
        rpc_check::check_candidate(&envelope.rpc, envelope.from, known, app.hears_a_leader())
    };
    let (envelope, _) = receive(app, request, payload, SMALL_RPC_BYTES_MAX, check).await?;
    let run = request.headers().get(&RUN).and_then(|run| peer::parse_run(run.as_bytes()));
    if run.is_some_and(|run| app.peers.note_candidate(envelope.from, run)) {
        let error = ApiError::Conflict(Details::not_applied(format!(
            "two processes run as node {}, and the sender is not the one at the node's address: stop the process that \
             runs on a copy of the data directory",
            envelope.from
        )));
        note_rejection(app, request, &error);
        return Err(error);
    }
    Ok(envelope.rpc)
}

/// `POST /raft-transfer-leader`
pub async fn transfer_leader(app: Peer, request: HttpRequest, payload: web::Payload) -> Result<HttpResponse, ApiError> {
    let check = |envelope: &Envelope<TransferLeaderRequest<TypeConfig>>, known: &Known, _| {
        rpc_check::check_transfer(&envelope.rpc, envelope.from, known)
    };
    let (envelope, _) = receive(&app, &request, payload, SMALL_RPC_BYTES_MAX, check).await?;
    let answer = app.raft.handle_transfer_leader(envelope.rpc).await.map_err(|fatal| raft_ended(&fatal))?;
    answer_with(&app, &answer)
}

/// `POST /raft-read-index`: the log id that a linearizable read on another node must have applied.
pub async fn read_index(app: Peer, request: HttpRequest, payload: web::Payload) -> Result<HttpResponse, ApiError> {
    let (envelope, _) = receive::<()>(&app, &request, payload, SMALL_RPC_BYTES_MAX, |_, _, _| Ok(())).await?;
    let read_log_id = app.raft.get_read_log_id(ReadPolicy::ReadIndex).await;
    let (read_log_id, _applied) = read_log_id.map_err(|error| read_error(&app, &error))?;
    // Only now is it certain that this node is the leader and knows the members. A node that is not a member gets no
    // more entries, and would wait for that log id in vain.
    if !app.has_member(envelope.from) {
        return Err(no_member(envelope.from));
    }
    answer_with(&app, &read_log_id)
}

/// `GET /raft-identity`
pub async fn identity(app: Peer) -> HttpResponse {
    ok(&Introduction::of(&app))
}

/// `POST /raft-snapshot`: the length of the envelope (4 bytes, big-endian), the envelope, the file.
///
/// The file is written to disk as it arrives, verified as a whole, and only then passed to Raft. A broken transfer has
/// no other effect.
pub async fn snapshot(app: Peer, request: HttpRequest, mut payload: web::Payload) -> Result<HttpResponse, ApiError> {
    let result = match peer::announced(&app, &request) {
        Ok(announced) => {
            let received = receive_snapshot(&app, &request, announced, &mut payload);
            let result = tokio::time::timeout(SNAPSHOT_DEADLINE, received).await;
            result.unwrap_or_else(|_| Err(too_slow("the snapshot did not arrive in time")))
        }
        Err(error) => Err(error),
    };
    if let Err(error) = &result {
        keep_for_a_while(payload);
        note_rejection(&app, &request, error);
    }
    result
}

async fn receive_snapshot(
    app: &ExampleApp,
    request: &HttpRequest,
    announced: Announced,
    payload: &mut web::Payload,
) -> Result<HttpResponse, ApiError> {
    let mut received = BytesMut::new();
    let length = read_until(payload, &mut received, 4).await?.get_u32() as usize;
    if length > SNAPSHOT_HEAD_BYTES_MAX {
        return Err(ApiError::too_large("request", SNAPSHOT_HEAD_BYTES_MAX, length));
    }
    let head = read_until(payload, &mut received, length).await?;
    let check = |envelope: &Envelope<SnapshotHead>, known: &Known| {
        check_sender(app, envelope.from)?;
        rpc_check::check_snapshot(&envelope.rpc, envelope.from, known)
    };
    let start = [(length as u32).to_be_bytes().as_slice(), &head].concat();
    let envelope = peer::decode(app, announced, &head, true, check).await?;
    note_node(app, request, envelope.from);
    let head = envelope.rpc;
    if app.agreement.is_in_doubt(&head.vote) {
        return Err(missing_entry());
    }
    wait_for_leader(app, &head).await?;
    let Some(mut turn) = app.peers.snapshot_turn().await else {
        return Err(ApiError::Overloaded(Retry::soon("this node is still receiving an earlier snapshot")));
    };
    let temporary = app.store.state_machine.snapshots().temporary_file();
    tokio::select! {
        checked = async {
            save(app, payload, received.freeze(), &temporary).await?;
            // Until here, only what the HMAC of the proof covers was used: the ids of the nodes and of the cluster.
            access::check_body_with_file(request, start, temporary.path().to_owned()).await
        } => checked?,
        () = turn.superseded() => {
            return Err(ApiError::Conflict(Details::not_applied("a newer snapshot arrived")));
        }
    }
    let snapshots = app.store.state_machine.snapshots().clone();
    let verified = tokio::task::spawn_blocking(move || snapshots.verify(temporary)).await;
    let (found, snapshot) = match verified {
        Ok(Ok(verified)) => verified,
        Ok(Err(error)) => return Err(invalid(&format!("the snapshot is damaged: {error}"))),
        Err(error) => return Err(task_ended(&error)),
    };
    if found != head.meta {
        return Err(invalid("the snapshot does not match its announced metadata"));
    }
    // More entries were committed while it arrived.
    rpc_check::check_snapshot(&head, envelope.from, &app.known())?;
    peer::raise_level(app, snapshot.received_level().unwrap_or_default()).await?;
    let snapshot = Snapshot { meta: found, snapshot };
    let answer = app.raft.install_full_snapshot(head.vote, snapshot).await.map_err(|fatal| raft_ended(&fatal))?;
    answer_with(app, &answer)
}

/// Reads and checks an RPC; returns it with the permit of a long one. `check` also gets the length of the body.
async fn receive<'a, T: DeserializeOwned>(
    app: &'a ExampleApp,
    request: &HttpRequest,
    payload: web::Payload,
    bytes_max: usize,
    check: impl FnOnce(&Envelope<T>, &Known, usize) -> Result<(), ApiError>,
) -> Result<(Envelope<T>, Option<SemaphorePermit<'a>>), ApiError> {
    let received = async {
        let announced = match peer::announced(app, request) {
            Ok(announced) => announced,
            Err(error) => {
                keep_for_a_while(payload);
                return Err(error);
            }
        };
        let permit = match body_permit(app, request, announced).await {
            Ok(permit) => permit,
            Err(error) => {
                keep_for_a_while(payload);
                return Err(error);
            }
        };
        let body = read_body(request, payload, bytes_max).await?;
        let check = |envelope: &Envelope<T>, known: &Known| check(envelope, known, body.len());
        let envelope = peer::decode(app, announced, &body, joins(request.path()), check).await?;
        Ok((envelope, permit))
    };
    let (envelope, permit) = received.await.inspect_err(|error| note_rejection(app, request, error))?;
    note_node(app, request, envelope.from);
    Ok((envelope, permit))
}

/// A permit for the body of an RPC, unless it is short: the permits bound the memory for long bodies.
///
/// Members have permits of their own, so that other senders cannot delay a leader.
async fn body_permit<'a>(
    app: &'a ExampleApp,
    request: &HttpRequest,
    announced: Announced,
) -> Result<Option<SemaphorePermit<'a>>, ApiError> {
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: usize| length <= SMALL_RPC_BYTES_MAX) {
        return Ok(None);
    }
    let is_member = announced.ids.is_some_and(|ids| app.has_member(ids.from));
    let permits = if is_member { &app.peers.large_from_members } else { &app.peers.large_from_others };
    match tokio::time::timeout(LARGE_RPC_WAIT_MAX, permits.acquire()).await {
        Ok(Ok(permit)) => Ok(Some(permit)),
        _ => Err(ApiError::Overloaded(Retry::soon("this node has reached its limit of long RPCs"))),
    }
}

/// Whether an RPC makes a node without a cluster join the sender's cluster, durably.
///
/// A leader's appends do, and so do requests for a vote, because a vote is durable and counts in one cluster only. The
/// first leader of a cluster needs votes of nodes that have not received an append, and so does the second one if the
/// first died before it reached all nodes. All other RPCs only need a response.
fn joins(path: &str) -> bool {
    matches!(path, APPEND | VOTE)
}

/// Marks the connection of an RPC as a node's.
fn note_node(app: &ExampleApp, request: &HttpRequest, from: NodeId) {
    let Some(state) = state_of(request).filter(|_| app.has_member(from)) else { return };
    // Reads are frequent, and a node retries one whose connection is closed.
    if request.path() == READ_INDEX {
        state.admit(Class::Node);
    } else {
        state.keep_for(from);
        state.count_as(|| app.peers.link(from));
    }
}

/// A candidate that wins must know log time before it stamps an entry.
fn answer_candidate(app: &ExampleApp, answer: &VoteResponse<TypeConfig>) -> Result<HttpResponse, ApiError> {
    let mut response = answer_with(app, answer)?;
    let clock = app.store.clock();
    let (name, log_ms) = match clock.known_ms() {
        Some(log_ms) => (&LOG_TIME, log_ms),
        None => (&LOG_TIME_BY_WALL, clock.by_wall_ms()),
    };
    response.headers_mut().insert(name.clone(), HeaderValue::from(log_ms));
    Ok(response)
}

/// Waits until this node follows the sender. A leader sends a heartbeat before a snapshot, and a snapshot contains only
/// entries that the leader has declared committed. So an up-to-date node never installs a snapshot, not even a forged
/// one.
async fn wait_for_leader(app: &ExampleApp, head: &SnapshotHead) -> Result<(), ApiError> {
    let is_expected = |known: &Known| {
        known.vote == head.vote
            && rpc_check::is_known_committed(&head.vote, head.meta.last_log_id, known) != Some(false)
    };
    // The heartbeat may arrive a moment later, on another connection.
    let heard = app.wait_for_leader(&head.vote, is_expected);
    tokio::time::timeout(SNAPSHOT_WAIT_MAX, heard).await.map_err(|_| {
        ApiError::Conflict(Details::not_applied(
            "a snapshot must be from the current leader, and must contain only entries that the leader has declared \
             committed",
        ))
    })
}

fn note_rejection(app: &ExampleApp, request: &HttpRequest, error: &ApiError) {
    let ids = request.headers().get(&ENVELOPE).and_then(|header| Ids::parse(header.as_bytes()));
    // Do not log the decoder's message: it may quote data.
    let message = error.to_string();
    let why = if message.starts_with(peer::NOT_AN_RPC) { peer::NOT_AN_RPC } else { &message };
    app.peers.note_rejection(request.path(), request.peer_addr(), ids.map(|ids| ids.from), error, why);
}

/// Rejects an append that this node cannot confirm: see [`agreement`](crate::agreement).
async fn check_agreement(app: &ExampleApp, append: &Append) -> Result<(), ApiError> {
    let vote = &append.vote;
    let Some(previous) = append.prev_log_id else { return Ok(()) };
    if app.agreement.is_with(vote) {
        return Ok(());
    }
    let known = app.known();
    let is_committed = known.committed.is_some_and(|committed| previous.index <= committed.index);
    let has = |log_id| app.store.log.has(log_id).map_err(|error| unreadable_log(app, &error));
    // Raft itself rejects a deposed leader.
    if vote.leader_id < known.vote.leader_id || is_committed || has(previous)? {
        return Ok(());
    }
    if !append.entries.is_empty() {
        let within = app.heartbeat_interval() * LEADER_VIEW_INTERVALS;
        return if app.agreement.wait_for(vote, within).await {
            Ok(())
        } else {
            let message = "this node waits for a heartbeat, to compare its log with the leader's";
            Err(ApiError::Recovering(Retry::soon(message)))
        };
    }
    let last = app.store.log.last().map_err(|error| unreadable_log(app, &error))?;
    if let Some(found) = app.agreement.note_missing(vote, previous, last) {
        app.set_older_copy(found);
    }
    Err(missing_entry())
}

/// Passes an append to Raft, unless the log has its entries with other content, or no room for them.
async fn hand_to_raft(
    app: &ExampleApp,
    request: &HttpRequest,
    append: Append,
) -> Result<AppendEntriesResponse<TypeConfig>, ApiError> {
    if append.entries.is_empty() {
        note_said_committed(app, &append);
        return app.raft.append_entries(append.into()).await.map_err(|error| raft_failed(&error));
    }
    // One at a time: the log must have the entries of the previous append. A leader sends a node one append at a time.
    let turn = app.appending.clone().lock_owned().await;
    check_overlap(app, &append).inspect_err(|error| note_rejection(app, request, error))?;
    let taken = take_disk_space(app, &append).inspect_err(|error| note_rejection(app, request, error))?;
    // After the disk was found to have room: the file that this replaces is on it, too.
    let levels = append.entries.iter().filter_map(|entry| match &entry.payload {
        Payload::Normal(command) => Some(command.level()),
        Payload::Blank | Payload::Membership(_) => None,
    });
    peer::raise_level(app, levels.max().unwrap_or_default()).await?;
    note_said_committed(app, &append);
    let raft = app.raft.clone();
    let answer = Completing::new(async move {
        let answer = raft.append_entries(append.into()).await;
        drop((taken, turn));
        answer
    });
    answer.await.map_err(|error| raft_failed(&error))
}

/// An RPC can only fail because Raft has ended.
fn raft_failed(error: &RaftError<TypeConfig>) -> ApiError {
    match error {
        RaftError::Fatal(fatal) => raft_ended(fatal),
        RaftError::APIError(never) => match *never {},
    }
}

fn note_said_committed(app: &ExampleApp, append: &Append) {
    if let Some(leader_commit) = append.leader_commit {
        app.note_said_committed(leader_commit);
    }
}

/// Rejects entries that the log has with other content. Raft compares only log ids, so it would take them for the same,
/// and the nodes would differ from then on. Raft skips entries that are committed here.
fn check_overlap(app: &ExampleApp, append: &Append) -> Result<(), ApiError> {
    let Append { vote, entries, .. } = append;
    let log = &app.store.log;
    let last = log.last_index().map_err(|error| unreadable_log(app, &error))?;
    // Nearly every append begins where the log ends.
    if entries.first().map(|entry| entry.log_id.index) > last {
        return Ok(());
    }
    let known = app.known();
    // Raft itself rejects a deposed leader.
    if vote.leader_id < known.vote.leader_id {
        return Ok(());
    }
    let is_committed = |entry: &Entry| known.committed.is_some_and(|committed| entry.log_id.index <= committed.index);
    let open = &entries[entries.partition_point(is_committed)..];
    let Some(log_id) = log.first_other(open).map_err(|error| unreadable_log(app, &error))? else { return Ok(()) };
    // Either of the two may be the leader's. The leader resends its own until this node has it.
    if let Some(found) = app.agreement.note_other_entry(vote, log_id) {
        app.set_other_entry(found);
    }
    Err(ApiError::Conflict(Details::not_applied(format!(
        "the entry at index {} of term {} differs from the one in this node's log; one of the two is not the leader's",
        log_id.index, log_id.leader_id.term
    ))))
}

/// The log cannot be read: the node must exit, since it cannot tell which entries it has.
fn unreadable_log(app: &ExampleApp, error: &io::Error) -> ApiError {
    app.set_disk_failure(format!("cannot read the log: {error}"));
    ApiError::internal("this node cannot read its log, so it is about to exit")
}

/// A future that completes even if it is dropped before, for example because a client disconnected.
struct Completing<F: Future<Output: Send> + Send + 'static>(Option<Pin<Box<F>>>);

impl<F: Future<Output: Send> + Send + 'static> Completing<F> {
    fn new(future: F) -> Self {
        Completing(Some(Box::pin(future)))
    }
}

impl<F: Future<Output: Send> + Send + 'static> Future for Completing<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Some(future) = &mut self.0 else { return Poll::Pending };
        let output = std::task::ready!(future.as_mut().poll(context));
        self.0 = None;
        Poll::Ready(output)
    }
}

impl<F: Future<Output: Send> + Send + 'static> Drop for Completing<F> {
    fn drop(&mut self) {
        // Without a runtime the node has stopped.
        if let (Some(future), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(future);
        }
    }
}

/// Sets disk space aside for the entries of an append until they are on disk, or rejects them: a node whose disk is
/// full exits, but until then it can vote and free space. Heartbeats do not need space.
fn take_disk_space(app: &ExampleApp, append: &Append) -> Result<Taken, ApiError> {
    if app.log_is_full() {
        let message = "this node's log has reached its limit of files; it accepts entries again after the next \
            snapshot";
        return Err(ApiError::Overloaded(Retry::soon(message)));
    }
    let taken = app.disk.take(peer::entries_bytes(&append.entries));
    if app.disk.space() == DiskSpace::Exhausted {
        taken.release();
        let message = "this node's disk is full: free some disk space";
        return Err(ApiError::DiskSpaceLow(Details::not_applied(message)));
    }
    Ok(taken)
}

fn missing_entry() -> ApiError {
    ApiError::Conflict(Details::not_applied(
        "this node lacks an entry that it acknowledged to the leader: its data directory may be an older copy",
    ))
}

/// Rejects an RPC of a node that is not a member, unless it may be a leader or a candidate that this node does not know
/// yet.
fn check_sender(app: &ExampleApp, from: NodeId) -> Result<(), ApiError> {
    if app.has_member(from) || !app.hears_a_leader() { Ok(()) } else { Err(no_member(from)) }
}

fn no_member(id: NodeId) -> ApiError {
    ApiError::Conflict(Details::not_applied(format!("node {id} is not a member of the cluster")))
}

fn answer_with(app: &ExampleApp, answer: &impl Serialize) -> Result<HttpResponse, ApiError> {
    match rmp_serde::to_vec_named(answer) {
        Ok(body) => {
            Ok(HttpResponse::Ok().insert_header((&RUN, app.peers.run())).content_type("application/msgpack").body(body))
        }
        Err(error) => {
            tracing::error!("cannot encode the response to an RPC as MessagePack: {error}");
            Err(ApiError::Internal(Interrupted::unknown("this node cannot encode its response")))
        }
    }
}

fn invalid(message: &str) -> ApiError {
    ApiError::bad_request("invalid_rpc", message)
}

fn too_slow(message: &str) -> ApiError {
    ApiError::RequestTimeout(Details::not_applied(message))
}

/// Takes the first `length` bytes of the body.
async fn read_until(payload: &mut web::Payload, received: &mut BytesMut, length: usize) -> Result<Bytes, ApiError> {
    while received.len() < length {
        match next_chunk(payload).await? {
            Some(chunk) => received.extend_from_slice(&chunk),
            None => return Err(invalid("the snapshot is truncated")),
        }
    }
    Ok(received.split_to(length).freeze())
}

/// Writes a snapshot to disk. If there is no space for it, the node loses nothing of its own: it rejects the snapshot,
/// and the leader resends it.
async fn save(
    app: &ExampleApp,
    payload: &mut web::Payload,
    first: Bytes,
    temporary: &TemporaryFile,
) -> Result<(), ApiError> {
    let failed = |error: io::Error| {
        let what = format!("cannot receive a snapshot into `{}`: {error}", temporary.path().display());
        if is_out_of_space(&error) {
            tracing::error!("{what}");
            return ApiError::DiskSpaceLow(Details::not_applied(what));
        }
        app.set_disk_failure(what);
        ApiError::internal("this node cannot write a snapshot, so it is about to exit")
    };
    let mut file = tokio::fs::File::from_std(temporary.create().map_err(failed)?);
    let mut chunk = first;
    let mut unchecked_bytes = SNAPSHOT_BYTES_PER_CHECK;
    loop {
        unchecked_bytes += chunk.len() as u64;
        if unchecked_bytes >= SNAPSHOT_BYTES_PER_CHECK {
            unchecked_bytes = 0;
            check_room(app).await?;
        }
        file.write_all(&chunk).await.map_err(failed)?;
        match next_chunk(payload).await? {
            Some(next) => chunk = next,
            None => return file.flush().await.map_err(failed),
        }
    }
}

async fn next_chunk(payload: &mut web::Payload) -> Result<Option<Bytes>, ApiError> {
    match tokio::time::timeout(SNAPSHOT_PAUSE_MAX, payload.next()).await {
        Ok(None) => Ok(None),
        Ok(Some(Ok(chunk))) => Ok(Some(chunk)),
        Ok(Some(Err(error))) => Err(invalid(&format!("the snapshot is truncated: {error}"))),
        Err(_) => Err(too_slow("the rest of the snapshot did not arrive in time")),
    }
}

/// Checks that the disk has room for more of a snapshot; deletes older snapshots if necessary.
async fn check_room(app: &ExampleApp) -> Result<(), ApiError> {
    let snapshots = app.store.state_machine.snapshots().clone();
    match tokio::task::spawn_blocking(move || snapshots.make_room(0)).await {
        Ok(Err(free_bytes)) => Err(ApiError::DiskSpaceLow(Details::not_applied(format!(
            "the disk has only {free_bytes} bytes left, too few to receive a snapshot"
        )))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Raft gets the entries of a sender that disconnected, and no others before they are in the log.
    ///
    /// Method: drop the future while it waits.
    #[tokio::test]
    async fn completing() {
        let lock = std::sync::Arc::new(tokio::sync::Mutex::new(0));
        let (ready_tx, ready_rx) = tokio::sync::oneshot::channel();
        let mut turn = lock.clone().lock_owned().await;
        let completing = Completing::new(async move {
            *turn = ready_rx.await.unwrap();
        });
        assert!(futures_util::FutureExt::now_or_never(completing).is_none());
        assert!(lock.try_lock().is_err(), "it still runs");
        ready_tx.send(7).unwrap();
        assert_eq!(*lock.lock().await, 7);
        assert_eq!(Completing::new(async { 5 }).await, 5);
    }
}
