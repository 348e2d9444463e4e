//! What all routes of the key-value API share: the way of a write, the readiness
//! of a read, the headers and the errors of an answer.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderMap, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use serde::Serialize;

use super::api::{linearize, propose};
use super::conditions::{Guarded, condition_failed};
use super::forward::{self, Destination};
use super::memory::HeldMemory;
use super::parameters::request_id;
use super::reply::{self, encode, json};
use crate::app::ExampleApp;
use crate::error::{ApiError, ConditionFailed, Details, Outcome, Retry};
use crate::headers::{NODE, REPLAYED, REVISION, TERM};
use crate::operation::{Operation, RequestId, WriteResult};
use crate::types::ExampleResponse;

/// What became of a write.
pub enum Written {
    /// This node leads, and it was applied. The memory is for the response.
    Here(ExampleResponse, HeldMemory),
    /// It was answered: by the leader that it was passed on to, or with what the
    /// state machine refused.
    Answered(HttpResponse),
}

/// Does a write here if this node leads, else has the leader do it. `memory` is that of the request.
pub async fn write(
    app: &ExampleApp,
    request: &HttpRequest,
    body: Bytes,
    memory: HeldMemory,
    write: impl Into<Guarded>,
) -> Result<Written, ApiError> {
    let Guarded { operation, reading } = write.into();
    let request_id = request_id(request, &operation)?;
    let for_result = memory_for_result(app, &operation, request_id.as_deref(), memory.waited()).await?;
    let Ok(_permit) = app.writes_waiting.try_acquire() else {
        return Err(ApiError::Overloaded(Retry::soon("as many writes are waiting as this node takes on at once")));
    };
    match forward::destination(app, request.headers())? {
        Destination::Here => {
            let mut response = propose(app, request_id, operation, for_result.waited()).await?.data;
            response.result = reading.result_of(response.result);
            match check_result(&response) {
                Ok(()) => Ok(Written::Here(response, for_result)),
                Err(refused) => {
                    let mut answer = replay_marked(error_answer(&refused), response.replayed);
                    // Where it was refused, not where the store is by now.
                    if let Some(revision) = response.revision {
                        answer.headers_mut().insert(REVISION.clone(), HeaderValue::from(revision));
                    }
                    Ok(Written::Answered(answer))
                }
            }
        }
        Destination::Leader { leader_id, leader_node } => {
            let answer = forward::pass_on(app, request, body, leader_id, &leader_node).await?;
            Ok(Written::Answered(for_result.until_written(answer)))
        }
    }
}

/// Memory for the response to a write, taken before anything is done, so that a request that gets none can be rejected.
///
/// It is for what the operation would read now, or for what the request read when it was applied before. The request has
/// waited for `waited` before.
pub async fn memory_for_result(
    app: &ExampleApp,
    operation: &Operation,
    request_id: Option<&RequestId>,
    waited: Duration,
) -> Result<HeldMemory, ApiError> {
    // Of all others the response is short.
    let Operation::Txn(_) = operation else { return app.client_memory.for_response(0, waited).await };
    let data_bytes = app.store.state_machine.read(|machine| {
        let before = request_id.and_then(|request_id| machine.replay(request_id));
        let before_bytes = before.map_or(0, |(result, _)| result.value_bytes());
        machine.answer_bytes_now(operation).max(before_bytes)
    });
    app.client_memory.for_response(data_bytes, waited).await
}

/// What the state machine refused, as errors.
pub fn check_result(response: &ExampleResponse) -> Result<(), ApiError> {
    match response.result.as_ref() {
        Some(WriteResult::ConditionFailed { revision }) => Err(condition_failed(*revision)),
        Some(WriteResult::NoSuchKey) => Err(key_not_found(response.revision.unwrap_or_default())),
        Some(WriteResult::AnswerTooLarge { bytes }) => {
            let bytes = usize::try_from(*bytes).unwrap_or(usize::MAX);
            Err(ApiError::too_large("answer", crate::config::TXN_ANSWER_BYTES_MAX, bytes))
        }
        Some(WriteResult::RequestIdReused) => Err(ApiError::IdempotencyKeyReused(Details::not_applied(
            "this Idempotency-Key was used for a request that asks for something else; give each request its own",
        ))),
        _ => Ok(()),
    }
}

/// A key that is not there.
pub fn key_not_found(revision: u64) -> ApiError {
    ApiError::KeyNotFound(crate::error::KeyNotFound {
        message: "there is no such key".to_owned(),
        revision,
        outcome: Outcome::NotApplied,
    })
}

/// Encodes the response to a write that was applied here, on another thread if it is long: it has values of so many bytes.
///
/// # Errors
///
/// [`ApiError::OutcomeUnknown`] if the node stops meanwhile.
pub async fn encode_done(
    app: &ExampleApp,
    value_bytes: usize,
    encode: impl FnOnce() -> Vec<u8> + Send + 'static,
) -> Result<Vec<u8>, ApiError> {
    let body = app.long_work.run(|| value_bytes, move || Ok(encode())).await;
    // The write is done, whatever hinders its response.
    body.map_err(|_| ApiError::OutcomeUnknown(Details::unknown("this node is stopping")))
}

/// The answer to a write that was applied here.
pub fn written(response: &ExampleResponse, body: &impl Serialize, etag: Option<u64>) -> HttpResponse {
    written_as(response, encode(body, 256), etag)
}

/// The same, with a body that is JSON already.
pub fn written_as(response: &ExampleResponse, body: Vec<u8>, etag: Option<u64>) -> HttpResponse {
    let mut answer = json(StatusCode::OK, body);
    let headers = answer.headers_mut();
    if let Some(revision) = etag {
        headers.insert(header::ETAG, etag_of(revision));
    }
    if let Some(revision) = response.revision {
        headers.insert(REVISION.clone(), HeaderValue::from(revision));
    }
    replay_marked(answer, response.replayed)
}

/// An answer that says whether it was given before.
pub fn replay_marked(mut answer: HttpResponse, replayed: bool) -> HttpResponse {
    if replayed {
        answer.headers_mut().insert(REPLAYED.clone(), HeaderValue::from_static("true"));
    }
    answer
}

/// A result that does not belong to the operation: a fault of this program.
pub fn unexpected(result: Option<&WriteResult>) -> ApiError {
    tracing::error!("a write was answered with {:?}", result.map(std::mem::discriminant));
    ApiError::OutcomeUnknown(Details::unknown("the write was answered with what does not belong to it; read it back"))
}

/// Makes sure that what this node holds now may be read: all that was written
/// before the request came, or, if `stale` is good enough, what it was once.
pub async fn ready_to_read(app: &ExampleApp, request: &HttpRequest, stale: bool) -> Result<(), ApiError> {
    may_read(app, request.headers(), stale).await
}

/// The same for a request with these headers.
pub async fn may_read(app: &ExampleApp, headers: &HeaderMap, stale: bool) -> Result<(), ApiError> {
    if !stale {
        return linearize(app, headers).await;
    }
    // It holds nothing, and its nothing is not even an old state of anything.
    if app.store.identity().cluster_id.is_none() {
        return Err(forward::no_leader(app));
    }
    if app.recovered() {
        return Ok(());
    }
    Err(ApiError::Recovering(Retry::soon(
        "this node was started a moment ago and has not yet heard from a leader that it is up to date",
    )))
}

/// The answer to any request, with the headers that all answers have.
pub fn answer(app: &ExampleApp, result: Result<HttpResponse, ApiError>) -> HttpResponse {
    let mut response = result.unwrap_or_else(|error| error_answer(&error));
    let headers = response.headers_mut();
    // A leader that a request was passed on to has put in its own.
    if !headers.contains_key(&NODE) {
        headers.insert(NODE.clone(), HeaderValue::from(app.id));
        headers.insert(TERM.clone(), HeaderValue::from(app.term()));
    }
    if !headers.contains_key(&REVISION) {
        headers.insert(REVISION.clone(), HeaderValue::from(app.store.state_machine.read(|machine| machine.revision)));
    }
    response
}

/// An error, in the shape of `/v1`.
pub fn error_answer(error: &ApiError) -> HttpResponse {
    let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json_answer(status, &error.to_body());
    reply::insert_error_headers(error, response.headers_mut());
    if let ApiError::ConditionFailed(ConditionFailed { current_revision: Some(revision), .. }) = error {
        response.headers_mut().insert(header::ETAG, etag_of(*revision));
    }
    response
}

/// A body as JSON.
pub fn json_answer(status: StatusCode, body: &impl Serialize) -> HttpResponse {
    json(status, encode(body, 256))
}

/// `"<revision>"`
pub fn etag_of(revision: u64) -> HeaderValue {
    // Digits in quotes are always a valid value.
    HeaderValue::from_str(&format!("\"{revision}\"")).unwrap_or_else(|_| HeaderValue::from(revision))
}

/// For a method that the keys as a whole do not take.
pub async fn only_list_methods(app: web::Data<ExampleApp>, request: HttpRequest) -> HttpResponse {
    wrong_method(&app, &request, "GET, HEAD, DELETE")
}

/// For a method that a `GET` route does not take.
pub async fn only_get(app: web::Data<ExampleApp>, request: HttpRequest) -> HttpResponse {
    wrong_method(&app, &request, "GET, HEAD")
}

/// For a method that a `DELETE` route does not take.
pub async fn only_delete(app: web::Data<ExampleApp>, request: HttpRequest) -> HttpResponse {
    wrong_method(&app, &request, "DELETE")
}

/// For a method that a `POST` route does not take.
pub async fn only_post(app: web::Data<ExampleApp>, request: HttpRequest) -> HttpResponse {
    wrong_method(&app, &request, "POST")
}

/// For a method that a route does not take.
pub fn wrong_method(app: &ExampleApp, request: &HttpRequest, allowed: &'static str) -> HttpResponse {
    let message = format!("{} takes {allowed}, not {}", request.path(), request.method());
    let mut response = answer(app, Err(ApiError::MethodNotAllowed(Details::not_applied(message))));
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}
