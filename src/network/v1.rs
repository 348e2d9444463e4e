//! Common parts of the routes of the key-value API: writes, reads, and the headers and errors of responses.

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, ResponseError};
use bytes::Bytes;
use serde::Serialize;

use super::access::{Permit, Permitted};
use super::conditions::condition_failed;
use super::consensus::{Submitted, linearize, submit};
use super::memory::HeldMemory;
use super::observer::{Part, timed};
use super::readiness;
use super::reply::{self, encode, json};
use crate::app::ExampleApp;
use crate::body::KeyValueRef;
use crate::error::{ApiError, ConditionFailed, Details, Interrupted, KeyNotFound, NotApplied};
use crate::headers::{NODE, REPLAYED, REVISION, TERM};
use crate::operation::WriteResult;
use crate::store::Record;
use crate::types::ExampleResponse;

/// The outcome of a write.
pub enum WriteOutcome {
    /// This node leads, and the write is applied. The memory is for the response.
    Here(ExampleResponse, HeldMemory),
    /// The response of the leader, or the error of the state machine.
    Response(HttpResponse),
}

/// Applies a write if this node leads, and forwards it to the leader otherwise. `memory` holds the memory of the
/// request.
pub async fn write(
    app: &ExampleApp,
    request: &HttpRequest,
    body: Bytes,
    memory: HeldMemory,
    write: Permitted,
) -> Result<WriteOutcome, ApiError> {
    Ok(match submit(app, request, body, memory, 0, write).await? {
        Submitted::Here(response, memory) => WriteOutcome::Here(response.data, memory),
        Submitted::Rejected { error, revision, replayed } => {
            let mut response = replay_marked(error_answer(&error), replayed);
            // The revision at which the write was rejected, not the store's current one.
            if let Some(revision) = revision {
                response.headers_mut().insert(REVISION.clone(), HeaderValue::from(revision));
            }
            WriteOutcome::Response(response)
        }
        Submitted::Forwarded(response) => WriteOutcome::Response(response),
    })
}

/// The error for a write that the state machine rejected.
pub fn check_result(response: &ExampleResponse) -> Result<(), ApiError> {
    match response.result.as_ref() {
        Some(WriteResult::ConditionFailed { revision }) => Err(condition_failed(*revision)),
        Some(WriteResult::NoSuchKey) => Err(key_not_found(response.revision.unwrap_or_default())),
        Some(WriteResult::AnswerTooLarge { bytes }) => {
            let bytes = usize::try_from(*bytes).unwrap_or(usize::MAX);
            Err(ApiError::too_large("answer", crate::config::TXN_ANSWER_BYTES_MAX, bytes))
        }
        Some(WriteResult::RequestIdReused) => Err(ApiError::IdempotencyKeyReused(Details::not_applied(
            "this Idempotency-Key was used for another request; give each request its own",
        ))),
        _ => Ok(()),
    }
}

/// A key that does not exist.
pub fn key_not_found(revision: u64) -> ApiError {
    let message = "the key does not exist".to_owned();
    ApiError::KeyNotFound(KeyNotFound { message, revision, outcome: NotApplied::NotApplied })
}

/// Encodes the response to a write that was applied here. `value_bytes` is the length of the values in it; a long one
/// is encoded on another thread.
///
/// # Errors
///
/// The node stops or fails meanwhile; the outcome is unknown to the client, although the write is applied.
pub async fn encode_done(
    app: &ExampleApp,
    value_bytes: usize,
    encode: impl FnOnce() -> Vec<u8> + Send + 'static,
) -> Result<Vec<u8>, ApiError> {
    let body = app.long_work.run(|| value_bytes, move || Ok(encode())).await;
    body.map_err(|error| match error {
        ApiError::Internal(failed) => ApiError::Internal(Interrupted::unknown(failed.message)),
        _ => ApiError::OutcomeUnknown(Interrupted::unknown("this node is stopping")),
    })
}

/// The response to a write that was applied here.
pub fn written(response: &ExampleResponse, body: &impl Serialize, etag: Option<u64>) -> HttpResponse {
    written_as(response, encode(body, 256), etag)
}

/// The response to a write that was applied here, with a body that is already JSON.
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

/// Marks a response as one to a request that was applied before.
pub fn replay_marked(mut answer: HttpResponse, replayed: bool) -> HttpResponse {
    if replayed {
        answer.headers_mut().insert(REPLAYED.clone(), HeaderValue::from_static("true"));
    }
    answer
}

/// A result that does not belong to the operation: a fault of this program.
pub fn unexpected(result: Option<&WriteResult>) -> ApiError {
    tracing::error!("a write returned the result of a different operation: {:?}", result.map(std::mem::discriminant));
    ApiError::Internal(Interrupted::unknown(
        "the write returned the result of a different operation; read the key to check whether it was applied",
    ))
}

/// Waits until this node's own state may be read: at once if it may be stale, otherwise once it has all that was
/// written before the call.
///
/// With a permit whose token was revoked while the request arrived or waited, the read is rejected: once a revocation is
/// acknowledged, no linearizable read succeeds, and no stale one on a node that has applied it.
pub async fn ready_to_read(
    app: &ExampleApp,
    request: &HttpRequest,
    permit: &Permit,
    stale: bool,
) -> Result<(), ApiError> {
    if stale {
        readiness::stale_read(app)?;
        return permit.check_again(app);
    }
    timed(request, Part::Confirmation, linearize(app, request.headers(), None)).await?;
    permit.check_again(app)
}

/// A key without its value, for JSON.
pub(super) fn outline<'a>(key: &'a str, record: &Record, expires_in_ms: Option<u64>) -> KeyValueRef<'a> {
    KeyValueRef::new(key, [record.revision, record.create_revision, record.version], expires_in_ms)
}

/// A key and its value, for JSON.
pub(super) fn key_value<'a>(key: &'a str, record: &'a Record, expires_in_ms: Option<u64>) -> KeyValueRef<'a> {
    outline(key, record, expires_in_ms).with_value(record.value.as_bytes())
}

/// The response to any request, with the headers that all responses have.
pub fn answer(app: &ExampleApp, result: Result<HttpResponse, ApiError>) -> HttpResponse {
    // A rejected client must not even learn how often the data changes.
    let is_denied = matches!(result, Err(ApiError::Unauthorized(_) | ApiError::NotPermitted(_)));
    let mut response = result.unwrap_or_else(|error| error_answer(&error));
    let headers = response.headers_mut();
    // A leader that the request was forwarded to has inserted its own.
    if !headers.contains_key(&NODE) {
        headers.insert(NODE.clone(), HeaderValue::from(app.id));
        headers.insert(TERM.clone(), HeaderValue::from(app.term()));
    }
    if !is_denied && !headers.contains_key(&REVISION) {
        headers.insert(REVISION.clone(), HeaderValue::from(app.store.state_machine.read(|machine| machine.revision)));
    }
    response
}

/// An error in the shape of `/v1`.
pub fn error_answer(error: &ApiError) -> HttpResponse {
    let mut response = json_answer(error.status_code(), &error.to_body());
    reply::insert_error_headers(error, response.headers_mut());
    if let ApiError::ConditionFailed(ConditionFailed { current_revision: Some(revision), .. }) = error {
        response.headers_mut().insert(header::ETAG, etag_of(*revision));
    }
    response
}

/// A response with a JSON body.
pub fn json_answer(status: StatusCode, body: &impl Serialize) -> HttpResponse {
    json(status, encode(body, 256))
}

/// `"<revision>"`
pub fn etag_of(revision: u64) -> HeaderValue {
    // Digits in quotes are always a valid value.
    HeaderValue::from_str(&format!("\"{revision}\"")).unwrap_or_else(|_| HeaderValue::from(revision))
}
