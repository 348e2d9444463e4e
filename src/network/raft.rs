//! The routes for the other nodes: incoming RPCs of Raft.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt;
use openraft::ReadPolicy;
use openraft::raft::{AppendEntriesResponse, TransferLeaderRequest, VoteRequest, VoteResponse};
use openraft::storage::Snapshot;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncWriteExt;
use tokio::runtime::Handle;
use tokio::sync::SemaphorePermit;

use super::listener::admission::state_of;
use super::listener::connection_limits::Class;
use super::peer::{self, Envelope, Ids, PeerIdentity};
use super::reply::{keep_for_a_while, ok, read_body};
use super::rpc_check::{self, Append, SnapshotHead};
use super::{api, forward};
use crate::app::{ExampleApp, Known};
use crate::config::{
    APPEND_RPC_BYTES_MAX, LARGE_RPC_WAIT_MAX, LEADER_VIEW_INTERVALS, SMALL_RPC_BYTES_MAX, SNAPSHOT_BYTES_A_LOOK,
    SNAPSHOT_DEADLINE, SNAPSHOT_HEAD_BYTES_MAX, SNAPSHOT_PAUSE_MAX, SNAPSHOT_WAIT_MAX,
};
use crate::disk::{DiskSpace, Taken};
use crate::error::{ApiError, Details, Retry};
use crate::store::error::is_out_of_space;
use crate::store::log::codec::PayloadRecord;
use crate::headers::{ENVELOPE, LOG_TIME, LOG_TIME_BY_WALL, RUN};
use crate::store::snapshot::TemporaryFile;
use crate::types::{Entry, NodeId, TypeConfig};

const APPEND: &str = "/raft-append";
const VOTE: &str = "/raft-vote";
const READ_INDEX: &str = "/raft-read-index";

/// `POST /raft-append`
pub async fn append(
    app: web::Data<ExampleApp>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let clock = app.store.clock();
    let (leader_ms, arrived_ms) = (peer::log_ms_in(request.headers()), clock.elapsed_ms());
    let check = |envelope: &Envelope<Append>, known: &Known, bytes: usize| {
        check_sender(&app, envelope.from)?;
        rpc_check::check_append(&envelope.rpc, envelope.from, bytes, known)
    };
    // The place is held until Raft has the entries: those that wait take memory, too.
    let (envelope, _place) = receive(&app, &request, payload, APPEND_RPC_BYTES_MAX, check).await?;
    let append = envelope.rpc;
    check_agreement(&app, &append).await?;
    let (vote, last_covered) = (append.vote, append.last_covered());
    let answer = hand_to_raft(&app, &request, append).await?;
    if matches!(answer, AppendEntriesResponse::Success | AppendEntriesResponse::PartialSuccess(_)) {
        app.agreement.note_accepted(&vote, last_covered);
    }
    // Not from a former leader.
    if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
        app.peers.note_leader();
        if let Some(leader_ms) = leader_ms {
            clock.told_by_leader(leader_ms, arrived_ms);
        }
    }
    answer_with(&app, &answer)
}

/// `POST /raft-vote`
pub async fn vote(
    app: web::Data<ExampleApp>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let rpc = receive_candidate(&app, &request, payload).await?;
    let answer = app.raft.vote(rpc).await.map_err(|_| forward::stopping())?;
    answer_candidate(&app, &answer)
}

/// `POST /raft-pre-vote`
pub async fn pre_vote(
    app: web::Data<ExampleApp>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let rpc = receive_candidate(&app, &request, payload).await?;
    let answer = app.raft.pre_vote(rpc).await.map_err(|_| forward::stopping())?;
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
            "two processes run as node {}, and another than this one answers at its address: stop the one that runs on \
             a copy of the data directory",
            envelope.from
        )));
        note_refusal(app, request, &error);
        return Err(error);
    }
    Ok(envelope.rpc)
}

/// `POST /raft-transfer-leader`
pub async fn transfer_leader(
    app: web::Data<ExampleApp>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let check = |envelope: &Envelope<TransferLeaderRequest<TypeConfig>>, known: &Known, _| {
        rpc_check::check_transfer(&envelope.rpc, envelope.from, known)
    };
    let (envelope, _) = receive(&app, &request, payload, SMALL_RPC_BYTES_MAX, check).await?;
    let answer = app.raft.handle_transfer_leader(envelope.rpc).await.map_err(|_| forward::stopping())?;
    answer_with(&app, &answer)
}

/// `POST /raft-read-index`: the log id that a linearizable read on another node must have applied.
pub async fn read_index(
    app: web::Data<ExampleApp>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let (envelope, _) = receive::<()>(&app, &request, payload, SMALL_RPC_BYTES_MAX, |_, _, _| Ok(())).await?;
    let read_log_id = app.raft.get_read_log_id(ReadPolicy::ReadIndex).await;
    let (read_log_id, _applied) = read_log_id.map_err(|error| api::read_error(&app, &error))?;
    // Only now it is certain that this node leads and knows who is a member. One that
    // is none gets no more entries, and would wait for that log id in vain.
    if !app.has_member(envelope.from) {
        return Err(no_member(envelope.from));
    }
    answer_with(&app, &read_log_id)
}

/// `GET /raft-identity`
pub async fn identity(app: web::Data<ExampleApp>) -> HttpResponse {
    ok(&PeerIdentity::of(&app))
}

/// `POST /raft-snapshot`: the length of the envelope (4 bytes, big-endian), the envelope, the file.
///
/// The file goes to disk as it comes, is verified as a whole, and only then
/// handed to Raft: a broken transfer costs nothing but itself.
pub async fn snapshot(
    app: web::Data<ExampleApp>,
    request: HttpRequest,
    mut payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let result = match peer::announced(&app, &request) {
        Ok(announced) => {
            let received = receive_snapshot(&app, &request, announced, &mut payload);
            let result = tokio::time::timeout(SNAPSHOT_DEADLINE, received).await;
            result.unwrap_or_else(|_| Err(too_slow("the snapshot took too long")))
        }
        Err(error) => Err(error),
    };
    if let Err(error) = &result {
        keep_for_a_while(payload);
        note_refusal(&app, &request, error);
    }
    result
}

async fn receive_snapshot(
    app: &ExampleApp,
    request: &HttpRequest,
    announced: Option<Ids>,
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
    let envelope = peer::decode(app, announced, &head, true, check).await?;
    note_node(app, request, envelope.from);
    let head = envelope.rpc;
    if app.agreement.is_in_doubt(&head.vote) {
        return Err(missing_entry());
    }
    wait_for_leader(app, &head).await?;
    let Some(mut turn) = app.peers.snapshot_turn().await else {
        return Err(ApiError::Overloaded(Retry::soon("this node is still busy with the snapshot before this one")));
    };
    let temporary = app.store.state_machine.snapshots().temporary_file();
    tokio::select! {
        saved = save(app, payload, received.freeze(), &temporary) => saved?,
        () = turn.superseded() => {
            return Err(ApiError::Conflict(Details::not_applied("a newer snapshot arrived")));
        }
    }
    let snapshots = app.store.state_machine.snapshots().clone();
    let verified = tokio::task::spawn_blocking(move || snapshots.verify(temporary)).await;
    let (found, snapshot) = match verified {
        Ok(Ok(verified)) => verified,
        Ok(Err(error)) => return Err(invalid(&format!("the snapshot arrived damaged: {error}"))),
        Err(_) => return Err(forward::stopping()),
    };
    if found != head.meta {
        return Err(invalid("the snapshot is not the one that was announced"));
    }
    // While it arrived, more was committed.
    rpc_check::check_snapshot(&head, envelope.from, &app.known())?;
    let snapshot = Snapshot { meta: found, snapshot };
    let answer = app.raft.install_full_snapshot(head.vote, snapshot).await.map_err(|_| forward::stopping())?;
    answer_with(app, &answer)
}

/// Reads and checks an RPC; returns the place of a long one with it. `check` gets the length of the body, too.
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
        let place = match place_for_body(app, request, announced).await {
            Ok(place) => place,
            Err(error) => {
                keep_for_a_while(payload);
                return Err(error);
            }
        };
        let body = read_body(request, payload, bytes_max).await?;
        let check = |envelope: &Envelope<T>, known: &Known| check(envelope, known, body.len());
        let envelope = peer::decode(app, announced, &body, joins(request.path()), check).await?;
        Ok((envelope, place))
    };
    let (envelope, place) = received.await.inspect_err(|error| note_refusal(app, request, error))?;
    note_node(app, request, envelope.from);
    Ok((envelope, place))
}

/// A place for the body of an RPC, if it is long: together they take as much memory as there are places.
///
/// Members have places of their own, so that those who do not claim to be one cannot hold up what a leader sends.
async fn place_for_body<'a>(
    app: &'a ExampleApp,
    request: &HttpRequest,
    announced: Option<Ids>,
) -> Result<Option<SemaphorePermit<'a>>, ApiError> {
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: usize| length <= SMALL_RPC_BYTES_MAX) {
        return Ok(None);
    }
    let is_member = announced.is_some_and(|ids| app.has_member(ids.from));
    let places = if is_member { &app.peers.large_from_members } else { &app.peers.large_from_others };
    match tokio::time::timeout(LARGE_RPC_WAIT_MAX, places.acquire()).await {
        Ok(Ok(place)) => Ok(Some(place)),
        _ => Err(ApiError::Overloaded(Retry::soon("this node is busy with other long RPCs"))),
    }
}

/// Whether an RPC makes a node that belongs to no cluster join the one that it is from, durably.
///
/// A leader's appends do, and so do requests for a vote. A vote is durable, and what it promises holds in one cluster.
/// The first leader of a cluster needs votes of nodes that nobody has sent an append. So does the second one if the
/// first died before it reached all of them. Nothing else needs more than an answer.
fn joins(path: &str) -> bool {
    matches!(path, APPEND | VOTE)
}

/// The connection of an RPC is a node's from now on.
fn note_node(app: &ExampleApp, request: &HttpRequest, from: NodeId) {
    let Some(state) = state_of(request).filter(|_| app.has_member(from)) else { return };
    // Reads are many, and one whose connection is closed just then is asked for again.
    if request.path() == READ_INDEX {
        state.admit(Class::Node);
    } else {
        state.keep_for(from);
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

/// A leader heartbeats before it sends a snapshot, and sends only what it said is committed. So no
/// node that is up to date installs a snapshot, not even a forged one.
async fn wait_for_leader(app: &ExampleApp, head: &SnapshotHead) -> Result<(), ApiError> {
    let is_expected = |known: &Known| {
        known.vote == head.vote
            && rpc_check::is_known_committed(&head.vote, head.meta.last_log_id, known) != Some(false)
    };
    // The heartbeat may arrive a moment later, on another connection.
    let heard = app.wait_for_leader(&head.vote, is_expected);
    tokio::time::timeout(SNAPSHOT_WAIT_MAX, heard).await.map_err(|_| {
        ApiError::Conflict(Details::not_applied(
            "a snapshot must be from the current leader, and hold only what the leader said is committed",
        ))
    })
}

fn note_refusal(app: &ExampleApp, request: &HttpRequest, error: &ApiError) {
    let ids = request.headers().get(&ENVELOPE).and_then(|header| Ids::parse(header.as_bytes()));
    // Do not log what the decoder says: it may quote data.
    let message = error.to_string();
    let why = if message.starts_with(peer::NOT_AN_RPC) { peer::NOT_AN_RPC } else { &message };
    app.peers.note_rejection(request.path(), request.peer_addr(), ids.map(|ids| ids.from), error, why);
}

/// Passes an append that this node can respond to: see [`agreement`](crate::agreement).
async fn check_agreement(app: &ExampleApp, append: &Append) -> Result<(), ApiError> {
    let vote = &append.vote;
    let Some(previous) = append.prev_log_id else { return Ok(()) };
    if app.agreement.is_with(vote) {
        return Ok(());
    }
    let known = app.known();
    let is_committed = known.committed.is_some_and(|committed| previous.index <= committed.index);
    let has = |log_id| app.store.log.has(log_id).map_err(|error| unreadable_log(app, &error));
    // Raft rejects a deposed leader by itself.
    if vote.leader_id < known.vote.leader_id || is_committed || has(previous)? {
        return Ok(());
    }
    if !append.entries.is_empty() {
        let within = app.heartbeat_interval() * LEADER_VIEW_INTERVALS;
        return if app.agreement.wait_for(vote, within).await {
            Ok(())
        } else {
            let message = "this node waits for a heartbeat, to learn what the leader counts on";
            Err(ApiError::Recovering(Retry::soon(message)))
        };
    }
    let last = app.store.log.last().map_err(|error| unreadable_log(app, &error))?;
    if let Some(found) = app.agreement.note_missing(vote, previous, last) {
        app.set_older_copy(found);
    }
    Err(missing_entry())
}

/// Hands an append to Raft, unless the log has its entries with another content, or no room for them.
async fn hand_to_raft(
    app: &ExampleApp,
    request: &HttpRequest,
    append: Append,
) -> Result<AppendEntriesResponse<TypeConfig>, ApiError> {
    if append.entries.is_empty() {
        note_said_committed(app, &append);
        return app.raft.append_entries(append.into()).await.map_err(|_| forward::stopping());
    }
    // One at a time: the log must have the entries of the append before this one. A leader sends a node one at a time.
    let turn = app.appending.clone().lock_owned().await;
    check_overlap(app, &append).inspect_err(|error| note_refusal(app, request, error))?;
    let taken = take_disk_space(app, &append).inspect_err(|error| note_refusal(app, request, error))?;
    note_said_committed(app, &append);
    let raft = app.raft.clone();
    let answer = Completing::new(async move {
        let answer = raft.append_entries(append.into()).await;
        drop((taken, turn));
        answer
    });
    answer.await.map_err(|_| forward::stopping())
}

fn note_said_committed(app: &ExampleApp, append: &Append) {
    if let Some(leader_commit) = append.leader_commit {
        app.note_said_committed(leader_commit);
    }
}

/// Rejects entries that the log has with another content. Raft would take them for the same, since it compares log ids
/// only, and the nodes would differ from then on. Raft skips what is committed here.
fn check_overlap(app: &ExampleApp, append: &Append) -> Result<(), ApiError> {
    let Append { vote, entries, .. } = append;
    let log = &app.store.log;
    let last = log.last_index().map_err(|error| unreadable_log(app, &error))?;
    // Nearly every append begins where the log ends.
    if entries.first().map(|entry| entry.log_id.index) > last {
        return Ok(());
    }
    let known = app.known();
    // Raft rejects a deposed leader by itself.
    if vote.leader_id < known.vote.leader_id {
        return Ok(());
    }
    let is_committed = |entry: &Entry| known.committed.is_some_and(|committed| entry.log_id.index <= committed.index);
    let open = &entries[entries.partition_point(is_committed)..];
    let Some(log_id) = log.first_other(open).map_err(|error| unreadable_log(app, &error))? else { return Ok(()) };
    // Either of the two may be the leader's. The leader sends its own until this node has it.
    if let Some(found) = app.agreement.note_other_entry(vote, log_id) {
        app.set_other_entry(found);
    }
    Err(ApiError::Conflict(Details::not_applied(format!(
        "the log of this node has another entry at index {} of term {}: one of the two is not the leader's",
        log_id.index, log_id.leader_id.term
    ))))
}

/// The log cannot be read: the node must end, since it cannot tell what it has.
fn unreadable_log(app: &ExampleApp, error: &io::Error) -> ApiError {
    app.set_disk_failure(format!("cannot read the log: {error}"));
    forward::stopping()
}

/// A future that runs to its end even if it is dropped before, for example because a client hung up.
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
        // Without a runtime the node has ended.
        if let (Some(future), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(future);
        }
    }
}

/// Sets disk space aside for the entries of an append, until they are on disk, or rejects them: a node whose disk is
/// full stops, and until then it votes and makes room by itself. Heartbeats do not come here.
fn take_disk_space(app: &ExampleApp, append: &Append) -> Result<Taken, ApiError> {
    const ENTRY_BYTES: usize = 96; // The names of the fields, and the log id.
    if app.log_is_full() {
        let message = "this node's log has no more files until a snapshot is written";
        return Err(ApiError::Overloaded(Retry::soon(message)));
    }
    let bytes = append.entries.iter().map(|entry| ENTRY_BYTES + PayloadRecord::bytes_of(&entry.payload)).sum();
    let taken = app.disk.take(bytes);
    if app.disk.space() == DiskSpace::Exhausted {
        taken.release();
        let message = "this node's disk is full: free some space";
        return Err(ApiError::DiskSpaceLow(Details::not_applied(message)));
    }
    Ok(taken)
}

fn missing_entry() -> ApiError {
    ApiError::Conflict(Details::not_applied(
        "this node lacks an entry that it acknowledged to the leader: its data directory may be an older copy",
    ))
}

/// Rejects what nodes say that are no members, unless one of them may be a leader or a candidate
/// that this node has not yet heard of.
fn check_sender(app: &ExampleApp, from: NodeId) -> Result<(), ApiError> {
    if app.has_member(from) || !app.hears_a_leader() { Ok(()) } else { Err(no_member(from)) }
}

fn no_member(id: NodeId) -> ApiError {
    ApiError::Conflict(Details::not_applied(format!("node {id} is not a member of the cluster")))
}

fn answer_with(app: &ExampleApp, answer: &impl Serialize) -> Result<HttpResponse, ApiError> {
    match rmp_serde::to_vec_named(answer) {
        Ok(body) => Ok(HttpResponse::Ok()
            .insert_header((&RUN, app.peers.run()))
            .content_type("application/msgpack")
            .body(body)),
        Err(error) => {
            tracing::error!("an answer cannot be written as MessagePack: {error}");
            Err(forward::stopping())
        }
    }
}

fn invalid(message: &str) -> ApiError {
    ApiError::bad_request("invalid_rpc", message)
}

fn too_slow(message: &str) -> ApiError {
    ApiError::RequestTimeout(Details::not_applied(message))
}

/// Takes `length` bytes off the front of what comes.
async fn read_until(payload: &mut web::Payload, received: &mut BytesMut, length: usize) -> Result<Bytes, ApiError> {
    while received.len() < length {
        match next_chunk(payload).await? {
            Some(chunk) => received.extend_from_slice(&chunk),
            None => return Err(invalid("the snapshot ends too early")),
        }
    }
    Ok(received.split_to(length).freeze())
}

/// Nothing of the node's own is lost if there is no space for it: it is refused, and sent again.
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
        forward::stopping()
    };
    let mut file = tokio::fs::File::from_std(temporary.create().map_err(failed)?);
    let mut chunk = first;
    let mut unlooked_bytes = SNAPSHOT_BYTES_A_LOOK;
    loop {
        unlooked_bytes += chunk.len() as u64;
        if unlooked_bytes >= SNAPSHOT_BYTES_A_LOOK {
            unlooked_bytes = 0;
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
        Ok(Some(Err(error))) => Err(invalid(&format!("the snapshot breaks off: {error}"))),
        Err(_) => Err(too_slow("no more of the snapshot arrived")),
    }
}

/// Checks that the disk has room for more of a snapshot; deletes older snapshots if necessary.
async fn check_room(app: &ExampleApp) -> Result<(), ApiError> {
    let snapshots = app.store.state_machine.snapshots().clone();
    match tokio::task::spawn_blocking(move || snapshots.make_room(0)).await {
        Ok(Err(free_bytes)) => Err(ApiError::DiskSpaceLow(Details::not_applied(format!(
            "the disk has {free_bytes} bytes left, too few to receive a snapshot"
        )))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Raft gets the entries of a sender that hung up, and no others before they are in the log.
    ///
    /// Method: drop the future while what it waits for is not there.
    #[tokio::test]
    async fn completing() {
        let lock = std::sync::Arc::new(tokio::sync::Mutex::new(0));
        let (ready_tx, ready_rx) = tokio::sync::oneshot::channel();
        let mut turn = lock.clone().lock_owned().await;
        let completing = Completing::new(async move {
            *turn = ready_rx.await.unwrap();
        });
        assert!(futures_util::FutureExt::now_or_never(completing).is_none());
        assert!(lock.try_lock().is_err(), "it goes on");
        ready_tx.send(7).unwrap();
        assert_eq!(*lock.lock().await, 7);
        assert_eq!(Completing::new(async { 5 }).await, 5);
    }
}
