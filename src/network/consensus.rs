//! Writes and linearizable reads: what the cluster must agree on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::http::header::HeaderMap;
use actix_web::{HttpRequest, HttpResponse};
use bytes::Bytes;
use futures_util::future::Either;
use openraft::errors::{ClientWriteError, Fatal, ForwardReason, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::metrics::RaftMetrics;
use openraft::raft::ClientWriteResponse;

use super::access::{self, Permitted};
use super::conditions::Guarded;
use super::memory::HeldMemory;
use super::observer::{Part, timed, timed_proposal};
use super::parameters::request_id;
use super::readiness::{self, Destination};
use super::rejections::{no_leader, raft_ended, stopping, unconfirmed};
use super::v1::check_result;
use super::worker::Worker;
use super::{forward, read_index, tokens};
use crate::app::{ExampleApp, Role};
use crate::auth::Who;
use crate::config::REQUEST_DEADLINE;
use crate::error::{ApiError, Details, Interrupted, Retry};
use crate::operation::{Operation, RequestId, Write};
use crate::seeded_bug::{self, SeededBug};
use crate::store::state_machine::access::AccessMode;
use crate::types::{Command, ExampleResponse, TypeConfig};

/// The response of Raft to a write that is applied.
type Applied = ClientWriteResponse<TypeConfig>;

/// The outcome of a write that did not fail.
pub enum Submitted {
    /// This node leads, and the write is applied. The memory is for the response.
    Here(Applied, HeldMemory),
    /// The state machine rejected the write, now or when the same request was applied before.
    Rejected {
        /// Why.
        error: ApiError,
        /// The store's revision at which it was rejected.
        revision: Option<u64>,
        /// Whether the request was rejected before, and this is the error it got then.
        replayed: bool,
    },
    /// The response of the leader.
    Forwarded(HttpResponse),
}

/// Applies a write if this node leads, and forwards it to the leader otherwise.
///
/// `memory` holds the memory of the request. The response repeats `repeated_bytes` of the request.
pub async fn submit(
    app: &ExampleApp,
    request: &HttpRequest,
    body: Bytes,
    memory: HeldMemory,
    repeated_bytes: usize,
    write: Permitted,
) -> Result<Submitted, ApiError> {
    let (Guarded { operation, reading }, who) = write.into_parts();
    let request_id = request_id(request, who.owner(), &operation)?;
    let is_access = matches!(operation, Operation::Access(_));
    let result_bytes = result_bytes(app, &operation, request_id.as_deref()).max(repeated_bytes);
    // Before anything is proposed, so that a request that gets no memory can be rejected.
    let memory = app.client_memory.for_response(result_bytes, memory.waited()).await?;
    let Ok(_permit) = app.writes_waiting.try_acquire() else {
        return Err(ApiError::Overloaded(Retry::soon("this node has reached its limit of writes in progress")));
    };
    let mut destination = timed(request, Part::Leader, forward::next_destination(app, request.headers())).await?;
    if let Destination::Leader { leader_id, leader_node } = &destination {
        let before = app.term_and_leader();
        let forwarded = forward::to_leader(app, request, body.clone(), *leader_id, leader_node);
        match timed(request, Part::Leader, forwarded).await {
            Err(error) if forward::is_worth_another_leader(app, &error) => {
                timed(request, Part::Leader, forward::wait_for_change(app, before)).await;
                destination = forward::next_destination(app, request.headers()).await?;
            }
            response => return Ok(Submitted::Forwarded(memory.until_written(response?))),
        }
    }
    match destination {
        Destination::Here => {
            check_on_leader(app, &who).await?;
            if is_access {
                tokens::check_level(app).await?;
            }
            let busy = || (app.store.log.meters().sync.total(), app.store.state_machine.meters().apply.total());
            let proposal = propose(app, request_id, operation, memory.waited(), Some(&who));
            let mut response = timed_proposal(request, busy, proposal).await?;
            response.data.result = reading.result_of(response.data.result);
            let rejected =
                if is_access { tokens::rejected(response.data.result.as_ref()) } else { check_result(&response.data) };
            Ok(match rejected {
                Ok(()) => Submitted::Here(response, memory),
                Err(error) => {
                    let ExampleResponse { revision, replayed, .. } = response.data;
                    Submitted::Rejected { error, revision, replayed }
                }
            })
        }
        Destination::Leader { leader_id, leader_node } => {
            let forwarded = forward::to_leader(app, request, body, leader_id, &leader_node);
            let response = timed(request, Part::Leader, forwarded).await?;
            Ok(Submitted::Forwarded(memory.until_written(response)))
        }
    }
}

/// Checks again whether someone may be served, with all that was committed before this node became the leader. Time may
/// have passed since the first check, while the body arrived.
///
/// A new leader may not have applied the last entries of the former one yet, and a revocation may be among them. It has
/// applied them once it has applied an entry of its own term.
pub async fn check_on_leader(app: &ExampleApp, who: &Who) -> Result<(), ApiError> {
    let term = app.term();
    let depends_on_entries = match who {
        Who::Root | Who::Peer => false,
        Who::Holder { .. } => true,
        // In a cluster that has nothing to do with tokens there is nothing to wait for.
        Who::Anyone => app.auth.mode() != AccessMode::Open,
    };
    if depends_on_entries && !app.auth.is_current_in(term) {
        let applied_own = |metrics: &RaftMetrics<TypeConfig>| {
            metrics.last_applied.is_some_and(|applied| applied.leader_id.term >= term)
        };
        let wait = app.raft.wait(Some(REQUEST_DEADLINE));
        wait.metrics(applied_own, "an entry of this term is applied").await.map_err(|_| no_leader(app))?;
        app.auth.note_current_in(term);
    }
    access::check_again(app, who)
}

/// The bytes of the values that the response to a write will contain: those the operation would read now, or those
/// that the same request read when it was applied before.
fn result_bytes(app: &ExampleApp, operation: &Operation, request_id: Option<&RequestId>) -> usize {
    // The result of any other operation is short.
    let Operation::Txn(_) = operation else { return 0 };
    app.store.state_machine.read(|machine| {
        let before = request_id.and_then(|request_id| machine.replay(request_id));
        let before_bytes = before.map_or(0, |(result, _)| result.value_bytes());
        machine.answer_bytes_now(operation).max(before_bytes)
    })
}

/// Size of an entry without its keys and values: the names of the fields, and the request's id.
const ENTRY_BYTES: usize = 512;

/// Proposes a write as leader, and waits until it is applied. The request has waited for `waited` before, and is of
/// `who`; `None` for a write of the node's own.
///
/// # Errors
///
/// `not_applied` until the write is proposed, `unknown` after that.
pub async fn propose(
    app: &ExampleApp,
    request: Option<Arc<RequestId>>,
    operation: Operation,
    waited: Duration,
    who: Option<&Who>,
) -> Result<Applied, ApiError> {
    // First, because waiting for memory must come before everything that is judged as of now.
    let memory = app.client_memory.for_proposal(operation.payload_bytes(), waited).await?;
    if let Some(who) = who {
        access::check_again(app, who)?;
    }
    // This node may have lost the lead while it waited, and nothing is proposed yet.
    if app.role() != Role::Leader {
        return Err(no_leader(app));
    }
    let taken = app.disk.take(ENTRY_BYTES + operation.payload_bytes());
    if let Err(rejected) = readiness::proposal(app, &operation) {
        taken.release();
        return request.and_then(|request| replay(app, &request)).ok_or(rejected);
    }
    let judged_now = seeded_bug::is_on(SeededBug::ConditionJudgedWhenProposed);
    let operation = if judged_now { judge_now(app, operation)? } else { operation };
    let command = Command::Write(Write { at_ms: app.store.clock().leader_now_ms(), request, operation });
    let propose = async {
        // The task may move to another thread while it waits, and must not take the worker along.
        let proposed = match Worker::current() {
            Some(worker) => Either::Left(worker.proposals.propose(command, memory)),
            None => Either::Right((command, memory)),
        };
        match proposed {
            Either::Left(proposed) => proposed.await.unwrap_or(Err(RaftError::Fatal(Fatal::Stopped))),
            Either::Right((command, _memory)) => app.raft.client_write(command).await,
        }
    };
    match tokio::time::timeout(REQUEST_DEADLINE, propose).await {
        Ok(Ok(response)) => Ok(response),
        // openraft checks this before it appends anything.
        Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(ForwardToLeader {
            reason: ForwardReason::LeadershipTransfer | ForwardReason::LeaseExpired,
            ..
        })))) => Err(no_leader(app)),
        Ok(Err(error)) => Err(write_error(&error)),
        Err(_) => Err(ApiError::DeadlinePassed(Interrupted::unknown(
            "too few nodes confirmed the write in time: it may or may not have been applied; read before retrying",
        ))),
    }
}

/// The first response to a request that was applied before, without an entry for it.
fn replay(app: &ExampleApp, request: &RequestId) -> Option<Applied> {
    app.store.state_machine.read(|machine| {
        let (result, replayed) = machine.replay(request)?;
        let data =
            ExampleResponse { revision: Some(machine.revision), result: Some(result), replayed, ..Default::default() };
        Some(ClientWriteResponse { log_id: machine.last_applied?, data, membership: None })
    })
}

/// The operation without its condition, which holds now: [`SeededBug::ConditionJudgedWhenProposed`].
fn judge_now(app: &ExampleApp, mut operation: Operation) -> Result<Operation, ApiError> {
    let (key, condition) = match &mut operation {
        Operation::Put(put) => (&put.key, &mut put.condition),
        Operation::Delete(delete) => (&delete.key, &mut delete.condition),
        _ => return Ok(operation),
    };
    let judged = app.store.state_machine.read(|machine| machine.check(key, condition.take()));
    if let Err(failed) = judged {
        check_result(&ExampleResponse { result: Some(failed), ..Default::default() })?;
    }
    Ok(operation)
}

/// The meaning of an error that openraft returns after a proposal.
pub fn write_error(error: &RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> ApiError {
    let why = match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(_) | ClientWriteError::LogEntryDiscarded(_))
            if seeded_bug::is_on(SeededBug::ForwardReportedAsNotApplied) =>
        {
            return ApiError::NoLeader(Retry::soon("the leader changed during the request"));
        }
        // openraft rejects these before it proposes anything.
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => {
            return ApiError::Conflict(Details::not_applied(error.to_string()));
        }
        RaftError::APIError(ClientWriteError::ForwardToLeader(_) | ClientWriteError::LogEntryDiscarded(_)) => {
            "the leader changed during the request: the write may or may not have been applied; read before retrying"
        }
        // openraft checks this between the two steps of a membership change.
        RaftError::APIError(ClientWriteError::PreconditionFailed(_)) => {
            "another membership change was made first: check /metrics, and retry if needed"
        }
        RaftError::Fatal(_) => {
            "this node stopped during the request: the write may or may not have been applied; read before retrying"
        }
    };
    ApiError::OutcomeUnknown(Interrupted::unknown(why))
}

/// Waits until this node has applied all that was written before the call.
///
/// Reads of one thread share a confirmation by the leader. With `alone_within`, the read has its own, and a leader that
/// is another node must respond within that time.
pub async fn linearize(app: &ExampleApp, headers: &HeaderMap, alone_within: Option<Duration>) -> Result<(), ApiError> {
    if seeded_bug::is_on(SeededBug::ReadWithoutReadIndex) {
        return Ok(());
    }
    let before = app.term_and_leader();
    match linearize_once(app, headers, alone_within).await {
        Err(error) if alone_within.is_none() && forward::is_worth_another_leader(app, &error) => {
            forward::wait_for_change(app, before).await;
            linearize_once(app, headers, alone_within).await
        }
        result => result,
    }
}

async fn linearize_once(app: &ExampleApp, headers: &HeaderMap, alone_within: Option<Duration>) -> Result<(), ApiError> {
    let destination = forward::next_destination(app, headers).await?;
    let confirm = async {
        let worker = Worker::current().filter(|_| alone_within.is_none());
        match worker.map(|worker| worker.shared_reads.confirm(destination.clone())) {
            Some(confirmed) => {
                let (began, confirmed) = (Instant::now(), confirmed.await);
                if let (Ok(Ok(())), Some(worker)) = (&confirmed, Worker::current()) {
                    worker.connections.observer().meters.confirmations.record(began.elapsed());
                }
                confirmed.unwrap_or_else(|_| Err(stopping()))
            }
            None => read_index::confirm(app, &destination, alone_within.unwrap_or(REQUEST_DEADLINE)).await,
        }
    };
    match tokio::time::timeout(REQUEST_DEADLINE, confirm).await {
        Ok(result) => result,
        Err(_) => Err(ApiError::DeadlinePassed(Interrupted::not_applied(
            "too few nodes confirmed the read in time; nothing was changed",
        ))),
    }
}

/// The meaning of an error that openraft returns for a read, which changes nothing.
pub fn read_error(app: &ExampleApp, error: &RaftError<TypeConfig, LinearizableReadError<TypeConfig>>) -> ApiError {
    match error {
        RaftError::APIError(LinearizableReadError::ForwardToLeader(_)) => no_leader(app),
        RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => unconfirmed(),
        RaftError::Fatal(fatal) => raft_ended(fatal),
    }
}
