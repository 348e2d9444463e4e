//! The application's routes: write and read.

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::HeaderMap;
use actix_web::{HttpRequest, HttpResponse, ResponseError, web};
use bytes::Bytes;
use futures_util::future::Either;
use openraft::errors::{ClientWriteError, Fatal, LinearizableReadError, RaftError};
use openraft::raft::ClientWriteResponse;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::conditions::refuse_conditions;
use super::forward::{self, Destination};
use super::openapi::answers::{
    EntryAnswer, KeyBody, OkAnswer, OriginalConsistentReadErrors, OriginalReadErrors, OriginalWriteErrors,
};
use super::openapi::parameters::{ForwardHeader, WriteHeaders};
use super::parameters::{check_key_length, check_value_length, request_id};
use super::read_index;
use super::reply::{check_lists, json, ok, ok_body, parse_json, read_client_body};
use super::txn::txn_operation;
use super::v1::{check_result, encode_done, memory_for_result, replay_marked};
use super::worker::Worker;
use crate::app::{ExampleApp, Role};
use crate::config::{LOG_UNCOMMITTED_BYTES_MAX, LOG_UNSYNCED_BYTES_MAX, Limits, REQUEST_DEADLINE};
use crate::disk::DiskSpace;
use crate::error::{ApiError, Details, Retry};
use crate::operation::{Delete, Operation, Put, RequestId, Value, Write, WriteResult};
use crate::seeded_bug::{self, SeededBug};
use crate::types::{Command, ExampleRequest, ExampleResponse, TypeConfig};

const WRITE_BODY: &str = r#"{"Set":{"key":"…","value":"…"}}, {"Delete":{"key":"…"}} or {"Txn":{…}}"#;
const READ_BODY: &str = r#"a key as a JSON string, such as "foo""#;

/// Writes.
///
/// Sets a key, deletes one, or does a transaction. Answers once a majority has it on disk.
#[utoipa::path(
    post,
    path = "/write",
    operation_id = "write",
    tag = "The original's routes",
    params(WriteHeaders),
    request_body(content = ExampleRequest, example = json!({"Set": {"key": "foo", "value": "bar"}})),
    responses(
        (
            status = 200,
            description = "The entry's log id, the revision, and the value or the result.",
            body = OkAnswer<EntryAnswer>,
            example = json!({"Ok": {
                "log_id": {"leader_id": {"term": 1, "node_id": 1}, "index": 6},
                "data": {"value": "bar", "revision": 1},
                "membership": null
            }}),
        ),
        OriginalWriteErrors,
    ),
)]
pub async fn write(
    app: web::Data<ExampleApp>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let (body, memory) = read_client_body(&app, &request, payload).await?;
    refuse_conditions(&request)?;
    let (operation, value) = decode(&app, &body, parse_write).await?;
    let request_id = request_id(&request, &operation)?;
    let for_result = match &value {
        // It is repeated.
        Some(value) => app.client_memory.for_response(value.len(), memory.waited()).await?,
        None => memory_for_result(&app, &operation, request_id.as_deref(), memory.waited()).await?,
    };
    let Ok(_permit) = app.writes_waiting.try_acquire() else {
        return Err(ApiError::Overloaded(Retry::soon("as many writes are waiting as this node takes on at once")));
    };
    match forward::destination(&app, request.headers())? {
        Destination::Here => {
            let mut response = propose(&app, request_id, operation, for_result.waited()).await?;
            let replayed = response.data.replayed;
            if let Err(refused) = check_result(&response.data) {
                return Ok(replay_marked(refused.error_response(), replayed));
            }
            if value.is_some() {
                // The revision, which is beside it, is all there is to say of it.
                response.data.result = None;
                response.data.value = value;
            }
            let value_bytes = match (&response.data.value, &response.data.result) {
                (Some(value), _) => value.len(),
                (None, result) => result.as_ref().map_or(0, WriteResult::value_bytes),
            };
            let body = encode_done(&app, value_bytes, move || ok_body(&response)).await?;
            Ok(for_result.until_written(replay_marked(json(StatusCode::OK, body), replayed)))
        }
        Destination::Leader { leader_id, leader_node } => {
            forward::pass_on(&app, &request, body, leader_id, &leader_node)
                .await
                .map(|answer| for_result.until_written(answer))
        }
    }
}

/// Reads what this node holds.
///
/// It may be behind. A key that is not there is `""`.
#[utoipa::path(
    post,
    path = "/read",
    operation_id = "read",
    tag = "The original's routes",
    request_body(content = KeyBody, description = "The key.", example = json!("foo")),
    responses(
        (status = 200, description = "The value.", body = OkAnswer<String>, example = json!({"Ok": "bar"})),
        OriginalReadErrors,
    ),
)]
pub async fn read(
    app: web::Data<ExampleApp>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let (body, _memory) = read_client_body(&app, &request, payload).await?;
    let key = decode(&app, &body, parse_key).await?;
    // A node without a cluster says `""`, as the original's does; but not one that lost its data.
    if app.store.identity().cluster_id.is_none() {
        forward::check_not_excluded(&app)?;
    }
    if !app.recovered() {
        return Err(ApiError::Recovering(Retry::soon(
            "this node was started a moment ago and has not yet heard from a leader that it is up to date",
        )));
    }
    value_of(&app, &key).await
}

/// Reads what was written before the request came, on any node.
///
/// A key that is not there is `""`.
#[utoipa::path(
    post,
    path = "/consistent_read",
    operation_id = "consistent_read",
    tag = "The original's routes",
    params(ForwardHeader),
    request_body(content = KeyBody, description = "The key.", example = json!("foo")),
    responses(
        (status = 200, description = "The value.", body = OkAnswer<String>, example = json!({"Ok": "bar"})),
        OriginalConsistentReadErrors,
    ),
)]
pub async fn consistent_read(
    app: web::Data<ExampleApp>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let (body, _memory) = read_client_body(&app, &request, payload).await?;
    let key = decode(&app, &body, parse_key).await?;
    linearize(&app, request.headers()).await?;
    value_of(&app, &key).await
}

/// Waits until this node has all that was written before.
pub async fn linearize(app: &ExampleApp, headers: &HeaderMap) -> Result<(), ApiError> {
    if seeded_bug::is_on(SeededBug::ReadWithoutReadIndex) {
        return Ok(());
    }
    let destination = forward::destination(app, headers)?;
    let confirm = async {
        match Worker::current().map(|worker| worker.shared_reads.confirm(destination.clone())) {
            Some(confirmed) => confirmed.await.unwrap_or_else(|_| Err(forward::stopping())),
            None => read_index::confirm(app, &destination, REQUEST_DEADLINE).await,
        }
    };
    in_time(confirm).await
}

/// The same, shared with no other request. A leader that is another node must answer within `answer_deadline`.
pub async fn linearize_if_answered(
    app: &ExampleApp,
    headers: &HeaderMap,
    answer_deadline: Duration,
) -> Result<(), ApiError> {
    if seeded_bug::is_on(SeededBug::ReadWithoutReadIndex) {
        return Ok(());
    }
    let destination = forward::destination(app, headers)?;
    let confirm = read_index::confirm(app, &destination, answer_deadline);
    in_time(confirm).await
}

async fn in_time(confirm: impl Future<Output = Result<(), ApiError>>) -> Result<(), ApiError> {
    match tokio::time::timeout(REQUEST_DEADLINE, confirm).await {
        Ok(result) => result,
        Err(_) => Err(ApiError::DeadlinePassed(Details::not_applied(
            "the read could not be confirmed in time: too few nodes answer; nothing was changed",
        ))),
    }
}

async fn value_of(app: &ExampleApp, key: &str) -> Result<HttpResponse, ApiError> {
    let Some(record) = app.store.state_machine.read(|machine| machine.get(key)) else { return Ok(ok("")) };
    let value = record.value.as_bytes();
    let memory = app.client_memory.for_response(value.len(), Duration::ZERO).await?;
    let length = value.len();
    // This route knows text only; what is none was put by another route.
    let encode = move || Ok(ok_body(&String::from_utf8_lossy(record.value.as_bytes())));
    let body = app.long_work.run(|| length, encode).await?;
    Ok(memory.until_written(json(StatusCode::OK, body)))
}

/// Decodes a body, on another thread if it is long.
async fn decode<T: Send + 'static>(
    app: &ExampleApp,
    body: &Bytes,
    parse: fn(&[u8], &Limits) -> Result<T, ApiError>,
) -> Result<T, ApiError> {
    let (body, limits) = (body.clone(), app.limits);
    let length = body.len();
    app.long_work.run(|| length, move || parse(&body, &limits)).await
}

/// What is to be done, and the value that the answer repeats.
pub(crate) fn parse_write(body: &[u8], limits: &Limits) -> Result<(Operation, Option<String>), ApiError> {
    let write = parse_json(body, WRITE_BODY).map_err(|error| order_book_error(body).unwrap_or(error))?;
    // Most bodies have none at all.
    if body.contains(&b'[') {
        check_lists(body, 2, WRITE_BODY)?;
    }
    Ok(match write {
        ExampleRequest::Set { key, value } => {
            check_key_length(&key, limits)?;
            check_value_length(value.as_bytes(), limits)?;
            let put = Put { key: key.into(), value: Value::from(&value), ttl_ms: None, condition: None };
            (Operation::Put(put), Some(value))
        }
        ExampleRequest::Delete { key } => {
            check_key_length(&key, limits)?;
            (Operation::Delete(Delete { key: key.into(), condition: None }), None)
        }
        ExampleRequest::Txn(txn) => (txn_operation(txn, limits)?, None),
    })
}

/// The error for a request of the order-book example, if that is what the body is.
fn order_book_error(body: &[u8]) -> Option<ApiError> {
    #[derive(Deserialize)]
    enum OrderBookRequest {
        Place(IgnoredAny),
        Cancel(IgnoredAny),
    }
    let name = match serde_json::from_slice(body).ok()? {
        OrderBookRequest::Place(_) => "Place",
        OrderBookRequest::Cancel(_) => "Cancel",
    };
    let message = format!(
        "`{name}` is a request of the order-book example, which is not part of this store; expected {WRITE_BODY}"
    );
    Some(ApiError::bad_request("order_book_request", message))
}

pub(crate) fn parse_key(body: &[u8], limits: &Limits) -> Result<String, ApiError> {
    let key: String = parse_json(body, READ_BODY)?;
    check_key_length(&key, limits)?;
    Ok(key)
}

/// What an entry takes besides its keys and values: the names of the fields, and the request's id.
const ENTRY_BYTES: usize = 512;

/// Proposes a write as leader, and waits until it is applied. Its request has waited for `waited` before.
pub async fn propose(
    app: &ExampleApp,
    request: Option<Arc<RequestId>>,
    operation: Operation,
    waited: Duration,
) -> Result<ClientWriteResponse<TypeConfig>, ApiError> {
    // First, since nothing is done while it waits.
    let place = app.client_memory.for_proposal(operation.payload_bytes(), waited).await?;
    // It may have been deposed meanwhile, and nothing is proposed yet.
    if app.role() != Role::Leader {
        return Err(forward::no_leader(app));
    }
    let taken = app.disk.take(ENTRY_BYTES + operation.payload_bytes());
    if let Err(rejected) = check_disk_space(app, &operation).and_then(|()| check_log(app)) {
        taken.release();
        return request.and_then(|request| replay(app, &request)).ok_or(rejected);
    }
    let judged_now = seeded_bug::is_on(SeededBug::ConditionJudgedWhenProposed);
    let operation = if judged_now { judge_now(app, operation)? } else { operation };
    let command = Command::Write(Write { at_ms: app.store.clock().leader_now_ms(), request, operation });
    let propose = async {
        // The task may go to another thread while it waits, and must not take the worker along.
        let proposed = match Worker::current() {
            Some(worker) => Either::Left(worker.proposals.propose(command, place)),
            None => Either::Right((command, place)),
        };
        match proposed {
            Either::Left(proposed) => proposed.await.unwrap_or(Err(RaftError::Fatal(Fatal::Stopped))),
            Either::Right((command, _place)) => app.raft.client_write(command).await,
        }
    };
    match tokio::time::timeout(REQUEST_DEADLINE, propose).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => Err(write_error(&error)),
        Err(_) => Err(deadline_passed()),
    }
}

/// Rejects what the leader's disk has no room for. What only deletes, touches or reads passes, so that
/// clients can make space and keys expire.
fn check_disk_space(app: &ExampleApp, operation: &Operation) -> Result<(), ApiError> {
    let why = match app.disk.space() {
        DiskSpace::Enough => return Ok(()),
        DiskSpace::Low if operation.stores_nothing() => return Ok(()),
        DiskSpace::Low => {
            "the leader's disk is nearly full, and only takes deletes, touches and transactions without a put: \
             free some space, or move the leader"
        }
        DiskSpace::Exhausted => "the leader's disk is full: free some space, or move the leader",
    };
    Err(ApiError::DiskSpaceLow(Details::not_applied(why)))
}

/// Rejects what the leader's log would only pile up.
fn check_log(app: &ExampleApp) -> Result<(), ApiError> {
    let log = &app.store.log;
    let why = if app.log_is_full() {
        "the leader's log has no more files until a snapshot is written"
    } else if log.unsynced_bytes() > LOG_UNSYNCED_BYTES_MAX {
        // A majority goes on without this node's disk, so nothing else holds back what waits for it.
        "the leader's disk does not keep up"
    } else if log.uncommitted_bytes() > LOG_UNCOMMITTED_BYTES_MAX {
        // Requests that wait for a majority give up, but their entries stay, and no snapshot shortens the log of them.
        "too few nodes keep up with the leader"
    } else {
        return Ok(());
    };
    Err(ApiError::Overloaded(Retry::soon(why)))
}

/// The first response to a request that was applied before, without an entry for it.
fn replay(app: &ExampleApp, request: &RequestId) -> Option<ClientWriteResponse<TypeConfig>> {
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
    match judged {
        Ok(()) => Ok(operation),
        Err(failed) => {
            check_result(&ExampleResponse { result: Some(failed), ..Default::default() })?;
            Ok(operation)
        }
    }
}

/// The outcome of a proposal that was not answered in time.
fn deadline_passed() -> ApiError {
    ApiError::DeadlinePassed(Details::unknown(
        "too few nodes confirmed in time: it may or may not have been applied; read before trying again",
    ))
}

/// What an error of openraft means after something was proposed.
pub fn write_error(error: &RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> ApiError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(_) | ClientWriteError::LogEntryDiscarded(_))
            if seeded_bug::is_on(SeededBug::ForwardReportedAsNotApplied) =>
        {
            ApiError::NoLeader(Retry::soon("the leader changed meanwhile"))
        }
        RaftError::APIError(ClientWriteError::ForwardToLeader(_) | ClientWriteError::LogEntryDiscarded(_)) => {
            ApiError::OutcomeUnknown(Details::unknown(
                "the leader changed meanwhile: it may or may not have been applied; read before trying again",
            ))
        }
        // Decided before anything is proposed.
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => {
            ApiError::Conflict(Details::not_applied(error.to_string()))
        }
        // openraft's own, between the two steps of a change: another one came between.
        RaftError::APIError(ClientWriteError::PreconditionFailed(_)) => ApiError::OutcomeUnknown(Details::unknown(
            "another change of the membership came between: look at /metrics, and ask again if need be",
        )),
        RaftError::Fatal(_) => ApiError::OutcomeUnknown(Details::unknown(
            "this node stopped meanwhile: it may or may not have been applied; read before trying again",
        )),
    }
}

/// What an error of openraft means for a read, which changes nothing.
pub fn read_error(app: &ExampleApp, error: &RaftError<TypeConfig, LinearizableReadError<TypeConfig>>) -> ApiError {
    match error {
        RaftError::APIError(LinearizableReadError::ForwardToLeader(_)) => forward::no_leader(app),
        RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => {
            ApiError::Unreachable(Retry::soon("too few nodes can be reached to confirm that this one still leads"))
        }
        RaftError::Fatal(_) => forward::stopping(),
    }
}
