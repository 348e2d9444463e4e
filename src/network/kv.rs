//! One key: get, put, delete, touch.

use std::time::Duration;

use actix_web::http::header::{self, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;

use super::conditions::{Conditions, KeyWrite, ReadVerdict};
use super::listener::connection::AsItIs;
use super::memory::HeldMemory;
use super::openapi::answers::{DeleteErrors, PutErrors, RawValue, ReadErrors, TouchErrors};
use super::openapi::parameters::{
    ConditionHeaders, KeyInPath, PutParameters, ReadHeaders, ReadParameters, TouchParameters, WriteHeaders,
};
use super::parameters::{Parameters, check_body_type, check_value_length, encoded_key, key_of, key_with_action};
use super::reply::{encode, json, read_client_body, refuse_body};
use super::v1::{self, Written, etag_of, key_not_found, ready_to_read, unexpected, written};
use crate::app::ExampleApp;
use crate::body::{DeleteAnswer, KeyValue, PutAnswer, TouchAnswer};
use crate::error::ApiError;
use crate::headers;
use crate::operation::{Delete, Put, Touch, WriteResult};

/// Any method on `/v1/kv/{key}`.
pub async fn any(app: web::Data<ExampleApp>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    // A key may end with `/touch` itself; the method tells which is meant.
    let is_touch = encoded_key(&request).ends_with("/touch");
    match *request.method() {
        Method::GET => get(app, request, payload).await,
        Method::PUT => put(app, request, payload).await,
        Method::DELETE => delete(app, request, payload).await,
        Method::POST if is_touch => touch(app, request, payload).await,
        _ if is_touch => v1::wrong_method(&app, &request, "GET, HEAD, PUT, DELETE, POST"),
        _ => v1::wrong_method(&app, &request, "GET, HEAD, PUT, DELETE"),
    }
}

/// Reads a key.
///
/// Values that are no UTF-8 come as base64, with `"encoding":"base64"` beside them.
#[utoipa::path(
    get,
    path = "/v1/kv/{key}",
    operation_id = "get_key",
    tag = "Keys",
    params(KeyInPath, ReadParameters, ReadHeaders),
    responses(
        (
            status = 200,
            description = "The key; with `raw` only the bytes of its value.",
            headers(("ETag" = String, description = "The key's revision in quotes.")),
            content(
                (KeyValue = "application/json", example = json!({
                    "key": "config/color", "value": "green", "revision": 3, "create_revision": 3, "version": 1
                })),
                (RawValue = "application/octet-stream"),
            ),
        ),
        (
            status = 304,
            description = "The key is at the revision that is known already.",
            headers(("ETag" = String, description = "The key's revision in quotes.")),
        ),
        ReadErrors,
    ),
)]
pub async fn get(app: web::Data<ExampleApp>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    v1::answer(&app, get_key(&app, &request, payload).await)
}

/// Sets a key.
///
/// The value is the body as it is, of whatever `Content-Type`. With a `ttl`, putting the same value again renews the
/// time that the key has left, and nothing else.
#[utoipa::path(
    put,
    path = "/v1/kv/{key}",
    operation_id = "put_key",
    tag = "Keys",
    params(KeyInPath, PutParameters, ConditionHeaders, WriteHeaders),
    request_body(
        content = RawValue,
        content_type = "application/octet-stream",
        description = "The value: at most 1 MiB, and none at all is a value too.",
        example = json!("green"),
    ),
    responses(
        (
            status = 200,
            description = "A majority has it on disk.",
            body = PutAnswer,
            headers(("ETag" = String, description = "The key's revision in quotes.")),
            example = json!({"revision": 3, "version": 1}),
        ),
        PutErrors,
    ),
)]
pub async fn put(app: web::Data<ExampleApp>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    v1::answer(&app, put_key(&app, &request, payload).await)
}

/// Removes a key.
///
/// That it is not there is no error, unless `If-Match` says that it must be.
#[utoipa::path(
    delete,
    path = "/v1/kv/{key}",
    operation_id = "delete_key",
    tag = "Keys",
    params(KeyInPath, ConditionHeaders, WriteHeaders),
    responses(
        (
            status = 200,
            description = "The key is gone.",
            body = DeleteAnswer,
            example = json!({"revision": 5, "deleted": 1}),
        ),
        DeleteErrors,
    ),
)]
pub async fn delete(app: web::Data<ExampleApp>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    v1::answer(&app, delete_key(&app, &request, payload).await)
}

/// Renews the time that a key has left.
///
/// Value, revision and version stay, so a lock that is kept alive keeps the revision it is fenced by.
#[utoipa::path(
    post,
    path = "/v1/kv/{key}/touch",
    operation_id = "touch_key",
    tag = "Keys",
    params(KeyInPath, TouchParameters, ConditionHeaders, WriteHeaders),
    responses(
        (
            status = 200,
            description = "The key stays as long as was asked.",
            body = TouchAnswer,
            headers(("ETag" = String, description = "The key's revision in quotes.")),
            example = json!({"revision": 3, "version": 1, "expires_in_ms": 30000}),
        ),
        TouchErrors,
    ),
)]
pub async fn touch(app: web::Data<ExampleApp>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    v1::answer(&app, touch_key(&app, &request, payload).await)
}

async fn get_key(app: &ExampleApp, request: &HttpRequest, payload: web::Payload) -> Result<HttpResponse, ApiError> {
    refuse_body(app, request, payload).await?;
    let key = key_of(request, &app.limits)?;
    let parameters = Parameters::of(request, &["raw", "consistency"])?;
    let raw = parameters.flag("raw")?;
    let conditions = Conditions::of(request)?;
    ready_to_read(app, request, parameters.stale()?).await?;
    let (record, revision) = app.store.state_machine.read(|machine| (machine.get(&key), machine.revision));
    let Some(record) = record else { return Err(key_not_found(revision)) };
    let mut response = if conditions.judge_read(record.revision)? == ReadVerdict::NotModified {
        HttpResponse::new(StatusCode::NOT_MODIFIED)
    } else if raw {
        let memory = app.client_memory.for_response(record.value.as_bytes().len(), Duration::ZERO).await?;
        AsItIs::set(request);
        let value = Bytes::copy_from_slice(record.value.as_bytes());
        let octets = (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        // Whatever the bytes are, a browser that shows them runs nothing.
        let response = HttpResponse::Ok()
            .insert_header(octets)
            .insert_header((header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")))
            .insert_header((header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox")))
            .body(value);
        memory.until_written(response)
    } else {
        let memory = app.client_memory.for_response(record.value.as_bytes().len(), Duration::ZERO).await?;
        let (length, now_ms, record) = (record.value.as_bytes().len(), app.store.clock().now_ms(), record.clone());
        let encode = move || Ok(encode(&record.to_key_value(&key, now_ms), 256));
        memory.until_written(json(StatusCode::OK, app.long_work.run(|| length, encode).await?))
    };
    let sent = response.headers_mut();
    sent.insert(header::ETAG, etag_of(record.revision));
    sent.insert(headers::REVISION.clone(), HeaderValue::from(revision));
    Ok(response)
}

async fn put_key(app: &ExampleApp, request: &HttpRequest, payload: web::Payload) -> Result<HttpResponse, ApiError> {
    let (body, memory) = read_client_body(app, request, payload).await?;
    let key = key_of(request, &app.limits)?;
    let parameters = Parameters::of(request, &["ttl"])?;
    let ttl_ms = parameters.ttl_ms()?;
    let condition = Conditions::of(request)?.of_write(&app.limits)?;
    check_body_type(request)?;
    check_value_length(&body, &app.limits)?;
    // Copied: the body is a part of the connection's buffer, which is larger and used again.
    let put = Put { key: key.into(), value: (&body).into(), ttl_ms, condition: None };
    match v1::write(app, request, body, memory, condition.guard(KeyWrite::Put(put))).await? {
        Written::Answered(answer) => Ok(answer),
        Written::Here(response, _) => match &response.result {
            Some(WriteResult::Put(put)) => Ok(written(&response, put, Some(put.revision))),
            other => Err(unexpected(other.as_ref())),
        },
    }
}

async fn delete_key(app: &ExampleApp, request: &HttpRequest, payload: web::Payload) -> Result<HttpResponse, ApiError> {
    refuse_body(app, request, payload).await?;
    let key = key_of(request, &app.limits)?;
    Parameters::of(request, &[])?;
    let condition = Conditions::of(request)?.of_write(&app.limits)?;
    let delete = Delete { key: key.into(), condition: None };
    match v1::write(app, request, Bytes::new(), HeldMemory::default(), condition.guard(KeyWrite::Delete(delete)))
        .await?
    {
        Written::Answered(answer) => Ok(answer),
        Written::Here(response, _) => match response.result {
            Some(WriteResult::Delete { deleted, revision, .. }) => {
                Ok(written(&response, &DeleteAnswer { revision, deleted }, None))
            }
            ref other => Err(unexpected(other.as_ref())),
        },
    }
}

async fn touch_key(app: &ExampleApp, request: &HttpRequest, payload: web::Payload) -> Result<HttpResponse, ApiError> {
    refuse_body(app, request, payload).await?;
    let key = key_with_action(request, "touch", &app.limits)?;
    let parameters = Parameters::of(request, &["ttl"])?;
    let Some(ttl_ms) = parameters.ttl_ms()? else {
        let message = "a touch takes a time to live, such as ?ttl=30s";
        return Err(ApiError::bad_request("invalid_ttl", message));
    };
    let condition = Conditions::of(request)?.of_write(&app.limits)?;
    let touch = Touch { key: key.into(), ttl_ms: Some(ttl_ms), condition: None };
    match v1::write(app, request, Bytes::new(), HeldMemory::default(), condition.guard(KeyWrite::Touch(touch))).await? {
        Written::Answered(answer) => Ok(answer),
        Written::Here(response, _) => match &response.result {
            Some(WriteResult::Touch(touch)) => Ok(written(&response, touch, Some(touch.revision))),
            other => Err(unexpected(other.as_ref())),
        },
    }
}
