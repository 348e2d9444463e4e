//! The application's routes: `/write`, `/read` and `/consistent_read`.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, ResponseError, web};
use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::access::{Caller, Permit, ToRead};
use super::conditions::reject_conditions;
use super::consensus::{Submitted, linearize, submit};
use super::observer::{Part, timed};
use super::openapi::answers::{
    EntryAnswer, KeyBody, OkAnswer, OriginalConsistentReadErrors, OriginalReadErrors, OriginalWriteErrors,
};
use super::openapi::parameters::{ForwardHeader, WriteHeaders};
use super::parameters::{check_key_length, check_value_length};
use super::readiness;
use super::reply::{json, ok, ok_body};
use super::request_body::{check_lists, parse_json, read_client_body};
use super::txn::txn_operation;
use super::v1::{encode_done, replay_marked};
use crate::app::ExampleApp;
use crate::auth::Keys;
use crate::config::Limits;
use crate::error::ApiError;
use crate::operation::{Delete, Operation, Put, Value, WriteResult};
use crate::types::ExampleRequest;

const WRITE_BODY: &str = r#"{"Set":{"key":"…","value":"…"}}, {"Delete":{"key":"…"}} or {"Txn":{…}}"#;
const READ_BODY: &str = r#"a key as a JSON string, such as "foo""#;

/// Applies a write.
///
/// Sets a key, deletes a key, or runs a transaction. Returns once a majority of the nodes has the write on disk.
#[utoipa::path(
    post,
    path = "/write",
    operation_id = "write",
    tag = "Routes of the openraft example",
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
pub async fn write(app: Caller<ToRead>, request: HttpRequest, payload: web::Payload) -> Result<HttpResponse, ApiError> {
    let (body, memory) = read_client_body(&app, &request, payload).await?;
    reject_conditions(&request)?;
    let (operation, value) = decode(&app, &body, parse_write).await?;
    let repeated_bytes = value.as_ref().map_or(0, String::len);
    let (mut response, memory) =
        match submit(&app, &request, body, memory, repeated_bytes, app.may_write(operation)?).await? {
            Submitted::Here(response, memory) => (response, memory),
            Submitted::Rejected { error, replayed, .. } => return Ok(replay_marked(error.error_response(), replayed)),
            Submitted::Forwarded(response) => return Ok(response),
        };
    let replayed = response.data.replayed;
    if value.is_some() {
        // The result is the revision alone, which the response has beside it.
        response.data.result = None;
        response.data.value = value;
    }
    let result_bytes = response.data.result.as_ref().map_or(0, WriteResult::value_bytes);
    let body = encode_done(&app, repeated_bytes.max(result_bytes), move || ok_body(&response)).await?;
    Ok(memory.until_written(replay_marked(json(StatusCode::OK, body), replayed)))
}

/// Reads this node's own state.
///
/// The value may be stale. A key that does not exist reads as `""`.
#[utoipa::path(
    post,
    path = "/read",
    operation_id = "read",
    tag = "Routes of the openraft example",
    request_body(content = KeyBody, description = "The key.", example = json!("foo")),
    responses(
        (status = 200, description = "The value.", body = OkAnswer<String>, example = json!({"Ok": "bar"})),
        OriginalReadErrors,
    ),
)]
pub async fn read(app: Caller<ToRead>, request: HttpRequest, payload: web::Payload) -> Result<HttpResponse, ApiError> {
    let (body, _memory) = read_client_body(&app, &request, payload).await?;
    let key = decode(&app, &body, parse_key).await?;
    let permit = app.may_read(Keys::One(&key))?;
    // A node without a cluster has no keys, as in the original. But one that lost its data had some.
    if app.store.identity().cluster_id.is_none() {
        readiness::not_excluded(&app)?;
    } else {
        readiness::stale_read(&app)?;
    }
    value_of(&app, &permit, &key).await
}

/// Reads linearizably, on any node.
///
/// The value includes every write that was acknowledged before the request. A key that does not exist reads as `""`.
#[utoipa::path(
    post,
    path = "/consistent_read",
    operation_id = "consistent_read",
    tag = "Routes of the openraft example",
    params(ForwardHeader),
    request_body(content = KeyBody, description = "The key.", example = json!("foo")),
    responses(
        (status = 200, description = "The value.", body = OkAnswer<String>, example = json!({"Ok": "bar"})),
        OriginalConsistentReadErrors,
    ),
)]
pub async fn consistent_read(
    app: Caller<ToRead>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let (body, _memory) = read_client_body(&app, &request, payload).await?;
    let key = decode(&app, &body, parse_key).await?;
    let permit = app.may_read(Keys::One(&key))?;
    timed(&request, Part::Confirmation, linearize(&app, request.headers(), None)).await?;
    value_of(&app, &permit, &key).await
}

async fn value_of(app: &ExampleApp, permit: &Permit, key: &str) -> Result<HttpResponse, ApiError> {
    permit.check_again(app)?;
    let Some(record) = app.store.state_machine.read(|machine| machine.get(key)) else { return Ok(ok("")) };
    let value = record.value.as_bytes();
    let memory = app.client_memory.for_response(value.len(), Duration::ZERO).await?;
    let length = value.len();
    // The value may be bytes that another route put. This one returns text only.
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

/// The operation, and the value that the response repeats.
pub(crate) fn parse_write(body: &[u8], limits: &Limits) -> Result<(Operation, Option<String>), ApiError> {
    let write = parse_json(body, WRITE_BODY).map_err(|error| order_book_error(body).unwrap_or(error))?;
    // Most bodies have no list.
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

/// The error for a body that is a request of the order-book example.
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
