//! The routes for the other nodes: incoming RPCs of Raft.

use std::io;

use actix_web::http::header::HeaderValue;
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt;
use openraft::ReadPolicy;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest, VoteResponse};
use openraft::storage::Snapshot;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;

use super::crowd::Class;
use super::gate::presence_of;
use super::peer::{self, Envelope, PeerIdentity};
use super::reply::{keep_for_a_while, ok, read_body};
use super::{api, forward};
use crate::app::ExampleApp;
use crate::config::{RPC_BYTES_MAX, SNAPSHOT_PAUSE_MAX};
use crate::error::{ApiError, Details};
use crate::store::snapshot::TemporaryFile;
use crate::types::{SnapshotMeta, TypeConfig, Vote};

const READ_INDEX: &str = "/raft-read-index";

/// What comes before the bytes of a snapshot.
#[derive(Serialize, Deserialize)]
pub struct SnapshotHead {
    /// The leader's vote.
    pub vote: Vote,
    /// What the snapshot covers.
    pub meta: SnapshotMeta,
}

/// `POST /raft-append`
pub async fn append(
    app: web::Data<ExampleApp>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let clock = app.store.clock();
    let (leader_ms, arrived_ms) = (peer::log_ms_in(request.headers()), clock.elapsed_ms());
    let envelope: Envelope<AppendEntriesRequest<TypeConfig>> = receive(&app, &request, payload, check_append).await?;
    let answer = app.raft.append_entries(envelope.rpc).await.map_err(|_| forward::stopping())?;
    // Not from a former leader.
    if let Some(leader_ms) = leader_ms
        && !matches!(answer, AppendEntriesResponse::HigherVote(_))
    {
        clock.told_by_leader(leader_ms, arrived_ms);
    }
    answer_with(&answer)
}

/// `POST /raft-vote`
pub async fn vote(
    app: web::Data<ExampleApp>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let envelope: Envelope<VoteRequest<TypeConfig>> = receive(&app, &request, payload, check_candidate).await?;
    let answer = app.raft.vote(envelope.rpc).await.map_err(|_| forward::stopping())?;
    answer_candidate(&app, &answer)
}

/// `POST /raft-pre-vote`
pub async fn pre_vote(
    app: web::Data<ExampleApp>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let envelope: Envelope<VoteRequest<TypeConfig>> = receive(&app, &request, payload, check_candidate).await?;
    let answer = app.raft.pre_vote(envelope.rpc).await.map_err(|_| forward::stopping())?;
    answer_candidate(&app, &answer)
}

/// `POST /raft-transfer-leader`
pub async fn transfer_leader(
    app: web::Data<ExampleApp>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let envelope: Envelope<TransferLeaderRequest<TypeConfig>> = receive(&app, &request, payload, |_| Ok(())).await?;
    let answer = app.raft.handle_transfer_leader(envelope.rpc).await.map_err(|_| forward::stopping())?;
    answer_with(&answer)
}

/// `POST /raft-read-index`: the log id that a linearizable read on another node must have applied.
pub async fn read_index(
    app: web::Data<ExampleApp>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let envelope: Envelope<()> = receive(&app, &request, payload, |_| Ok(())).await?;
    let read_log_id = app.raft.get_read_log_id(ReadPolicy::ReadIndex).await;
    let (read_log_id, _applied) = read_log_id.map_err(|error| api::read_error(&app, &error))?;
    // Only now it is certain that this node leads and knows who is a member. One that
    // is none gets no more entries, and would wait for that log id in vain.
    if !app.has_member(envelope.from) {
        let message = format!("node {} is no member of the cluster", envelope.from);
        return Err(ApiError::Conflict(Details::not_applied(message)));
    }
    answer_with(&read_log_id)
}

/// `GET /raft-identity`
pub async fn identity(app: web::Data<ExampleApp>) -> HttpResponse {
    ok(&PeerIdentity::of(&app))
}

/// `POST /raft-snapshot`: the length of the envelope (4 bytes, big-endian), the envelope, the file.
///
/// The file goes to disk as it comes, is verified as a whole, and only then
/// handed to Raft: a broken transfer costs nothing but itself.
pub async fn snapshot(app: web::Data<ExampleApp>, mut payload: web::Payload) -> Result<HttpResponse, ApiError> {
    let result = receive_snapshot(&app, &mut payload).await;
    if result.is_err() {
        keep_for_a_while(payload);
    }
    result
}

async fn receive_snapshot(app: &ExampleApp, payload: &mut web::Payload) -> Result<HttpResponse, ApiError> {
    let mut received = BytesMut::new();
    let length = read_until(payload, &mut received, 4).await?.get_u32() as usize;
    if length > RPC_BYTES_MAX {
        return Err(ApiError::too_large("request", RPC_BYTES_MAX, length));
    }
    let head = read_until(payload, &mut received, length).await?;
    let envelope: Envelope<SnapshotHead> = peer::decode(app, &head, check_snapshot).await?;
    let SnapshotHead { vote, meta } = &envelope.rpc;
    let temporary = app.store.state_machine.snapshots().temporary_file();
    save(app, payload, received.freeze(), &temporary).await?;
    let snapshots = app.store.state_machine.snapshots().clone();
    let verified = tokio::task::spawn_blocking(move || snapshots.verify(temporary)).await;
    let (found, snapshot) = match verified {
        Ok(Ok(verified)) => verified,
        Ok(Err(error)) => return Err(invalid(&format!("the snapshot arrived damaged: {error}"))),
        Err(_) => return Err(forward::stopping()),
    };
    if &found != meta {
        return Err(invalid("the snapshot is not the one that was announced"));
    }
    let snapshot = Snapshot { meta: found, snapshot };
    let answer = app.raft.install_full_snapshot(*vote, snapshot).await.map_err(|_| forward::stopping())?;
    answer_with(&answer)
}

async fn receive<T: DeserializeOwned>(
    app: &ExampleApp,
    request: &HttpRequest,
    payload: web::Payload,
    check: impl FnOnce(&Envelope<T>) -> Result<(), ApiError>,
) -> Result<Envelope<T>, ApiError> {
    let body = read_body(request, payload, RPC_BYTES_MAX).await?;
    let envelope = peer::decode(app, &body, check).await?;
    if let Some(presence) = presence_of(request) {
        // Reads are many, and one that is closed just then is asked for again.
        if request.path() == READ_INDEX {
            presence.admit(Class::Node);
        } else {
            presence.keep_for(envelope.from);
        }
    }
    Ok(envelope)
}

/// A candidate that wins must know log time before it stamps an entry.
fn answer_candidate(app: &ExampleApp, answer: &VoteResponse<TypeConfig>) -> Result<HttpResponse, ApiError> {
    let mut response = answer_with(answer)?;
    let clock = app.store.clock();
    let (name, log_ms) = match clock.known_ms() {
        Some(log_ms) => (peer::LOG_TIME, log_ms),
        None => (peer::LOG_TIME_BY_WALL, clock.by_wall_ms()),
    };
    response.headers_mut().insert(name, HeaderValue::from(log_ms));
    Ok(response)
}

fn answer_with(answer: &impl Serialize) -> Result<HttpResponse, ApiError> {
    match rmp_serde::to_vec_named(answer) {
        Ok(body) => Ok(HttpResponse::Ok().content_type("application/msgpack").body(body)),
        Err(error) => {
            tracing::error!("an answer cannot be written as MessagePack: {error}");
            Err(forward::stopping())
        }
    }
}

/// openraft takes what a leader says at its word, so what no leader says is refused here.
pub(crate) fn check_append(envelope: &Envelope<AppendEntriesRequest<TypeConfig>>) -> Result<(), ApiError> {
    let AppendEntriesRequest { vote, prev_log_id, entries, .. } = &envelope.rpc;
    check_leader(vote, envelope.from)?;
    let mut previous = *prev_log_id;
    for entry in entries {
        let log_id = entry.log_id;
        let next_index = previous.map_or(Some(0), |previous| previous.index.checked_add(1));
        let leaders_in_order = previous.is_none_or(|previous| previous.leader_id <= log_id.leader_id);
        if Some(log_id.index) != next_index || !leaders_in_order || log_id.leader_id > vote.leader_id {
            return Err(invalid("the entries of an append must follow one another, and be no newer than the leader"));
        }
        previous = Some(log_id);
    }
    Ok(())
}

pub(crate) fn check_snapshot(envelope: &Envelope<SnapshotHead>) -> Result<(), ApiError> {
    let SnapshotHead { vote, meta } = &envelope.rpc;
    check_leader(vote, envelope.from)?;
    if meta.last_log_id.is_some_and(|log_id| log_id.leader_id > vote.leader_id) {
        return Err(invalid("a snapshot cannot be newer than the leader that sends it"));
    }
    Ok(())
}

fn check_leader(vote: &Vote, from: u64) -> Result<(), ApiError> {
    if vote.is_committed() && vote.leader_id.node_id == from {
        Ok(())
    } else {
        Err(invalid("only the leader that the vote names may send this"))
    }
}

pub(crate) fn check_candidate(envelope: &Envelope<VoteRequest<TypeConfig>>) -> Result<(), ApiError> {
    let VoteRequest { vote, .. } = &envelope.rpc;
    if !vote.is_committed() && vote.leader_id.node_id == envelope.from {
        Ok(())
    } else {
        Err(invalid("only the candidate that the vote names may ask for it"))
    }
}

fn invalid(message: &str) -> ApiError {
    ApiError::bad_request("invalid_rpc", message)
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
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            tracing::error!("{what}");
            return ApiError::DiskSpaceLow(Details::not_applied(what));
        }
        app.set_disk_failure(what);
        forward::stopping()
    };
    let mut file = tokio::fs::File::from_std(temporary.create().map_err(failed)?);
    let mut chunk = first;
    loop {
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
        Err(_) => Err(ApiError::RequestTimeout(Details::not_applied("the snapshot did not go on"))),
    }
}
