//! Routes of one key: get, put, delete, touch.

use std::time::Duration;

use actix_web::http::header::{self, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;

use super::access::{Caller, ToRead, ToWrite, Unchecked};
use super::conditions::{Conditions, KeyWrite, ReadVerdict};
use super::listener::connection::AsItIs;
use super::memory::HeldMemory;
use super::openapi::answers::{DeleteErrors, PutErrors, RawValue, ReadErrors, TouchErrors};
use super::openapi::parameters::{
    ConditionHeaders, KeyInPath, PutParameters, ReadHeaders, ReadParameters, TouchParameters, WriteHeaders,
};
use super::parameters::{Parameters, check_body_type, check_value_length, encoded_key, key_of, key_with_action};
use super::reply::{encode, json};
use super::request_body::{read_client_body, reject_body};
use super::v1::{self, WriteOutcome, etag_of, key_not_found, ready_to_read, unexpected, written};
use crate::auth::Keys;
use crate::body::{DeleteAnswer, KeyValue, PutAnswer, TouchAnswer};
use crate::config::KEY_VALUE_EXTRA_BYTES;
use crate::error::ApiError;
use crate::headers;
use crate::operation::{Delete, Put, Touch, WriteResult};

/// Serves `/v1/kv/{key}` with any method.
pub async fn any(unchecked: Unchecked, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    // A key may itself end with `/touch`. The method tells the two apart.
    let is_touch = encoded_key(&request).ends_with("/touch");
    match *request.method() {
        Method::GET => match unchecked.caller(&request, payload) {
            Ok((app, payload)) => get(app, request, payload).await,
            Err(denied) => *denied,
        },
        Method::PUT => match unchecked.caller(&request, payload) {
            Ok((app, payload)) => put(app, request, payload).await,
            Err(denied) => *denied,
        },
        Method::DELETE => match unchecked.caller(&request, payload) {
            Ok((app, payload)) => delete(app, request, payload).await,
            Err(denied) => *denied,
        },
        Method::POST if is_touch => match unchecked.caller(&request, payload) {
            Ok((app, payload)) => touch(app, request, payload).await,
            Err(denied) => *denied,
        },
        _ if is_touch => unchecked.wrong_method(&request, "GET, HEAD, PUT, DELETE, POST"),
        _ => unchecked.wrong_method(&request, "GET, HEAD, PUT, DELETE"),
    }
}

/// Reads a key.
/// A value that is not UTF-8 is returned as base64, with `"encoding":"base64"`.
#[utoipa::path(
    get,
    path = "/v1/kv/{key}",
    operation_id = "get_key",
    tag = "Keys",
    params(KeyInPath, ReadParameters, ReadHeaders),
    responses(
        (
            status = 200,
            description = "The key; with `raw`, only the bytes of its value.",
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
            description = "The key has not changed since the revision that the client has.",
            headers(("ETag" = String, description = "The key's revision in quotes.")),
        ),
        ReadErrors,
    ),
)]
pub async fn get(app: Caller<ToRead>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    v1::answer(&app, get_key(&app, &request, payload).await)
}

/// Sets a key.
///
/// The value is the body, whatever its `Content-Type`. If a put with a `ttl` does not change the value, it only renews
/// the TTL.
#[utoipa::path(
    put,
    path = "/v1/kv/{key}",
    operation_id = "put_key",
    tag = "Keys",
    params(KeyInPath, PutParameters, ConditionHeaders, WriteHeaders),
    request_body(
        content = RawValue,
        content_type = "application/octet-stream",
        description = "The value, at most 1 MiB. It may be empty.",
        example = json!("green"),
    ),
    responses(
        (
            status = 200,
            description = "A majority of the nodes has the write on disk.",
            body = PutAnswer,
            headers(("ETag" = String, description = "The key's revision in quotes.")),
            example = json!({"revision": 3, "version": 1}),
        ),
        PutErrors,
    ),
)]
pub async fn put(app: Caller<ToWrite>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    v1::answer(&app, put_key(&app, &request, payload).await)
}

/// Deletes a key.
///
/// Deleting a key that does not exist is not an error, unless `If-Match` requires that it exists.
#[utoipa::path(
    delete,
    path = "/v1/kv/{key}",
    operation_id = "delete_key",
    tag = "Keys",
    params(KeyInPath, ConditionHeaders, WriteHeaders),
    responses(
        (
            status = 200,
            description = "The key no longer exists.",
            body = DeleteAnswer,
            example = json!({"revision": 5, "deleted": 1}),
        ),
        DeleteErrors,
    ),
)]
pub async fn delete(app: Caller<ToWrite>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    v1::answer(&app, delete_key(&app, &request, payload).await)
}

/// Renews the TTL of a key.
///
/// The value, the revision and the version stay the same, so a lock that is kept alive keeps its fencing revision.
#[utoipa::path(
    post,
    path = "/v1/kv/{key}/touch",
    operation_id = "touch_key",
    tag = "Keys",
    params(KeyInPath, TouchParameters, ConditionHeaders, WriteHeaders),
    responses(
        (
            status = 200,
            description = "The key has the new TTL.",
            body = TouchAnswer,
            headers(("ETag" = String, description = "The key's revision in quotes.")),
            example = json!({"revision": 3, "version": 1, "expires_in_ms": 30000}),
        ),
        TouchErrors,
    ),
)]
pub async fn touch(app: Caller<ToWrite>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    v1::answer(&app, touch_key(&app, &request, payload).await)
}

async fn get_key(app: &Caller<ToRead>, request: &HttpRequest, payload: web::Payload) -> Result<HttpResponse, ApiError> {
    reject_body(app, request, payload).await?;
    let key = key_of(request, &app.limits)?;
    let parameters = Parameters::of(request, &["raw", "consistency"])?;
    let raw = parameters.flag("raw")?;
    let conditions = Conditions::of(request)?;
    let permit = app.may_read(Keys::One(&key))?;
    ready_to_read(app, request, &permit, parameters.stale()?).await?;
    let (record, revision) = app.store.state_machine.read(|machine| (machine.get(&key), machine.revision));
    let Some(record) = record else { return Err(key_not_found(revision)) };
    let mut response = if conditions.judge_read(record.revision)? == ReadVerdict::NotModified {
        HttpResponse::new(StatusCode::NOT_MODIFIED)
    } else if raw {
        let memory = app.client_memory.for_response(record.value.as_bytes().len(), Duration::ZERO).await?;
        AsItIs::set(request);
        let value = Bytes::copy_from_slice(record.value.as_bytes());
        let octets = (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        // A browser that shows the bytes must not run them.
        let response = HttpResponse::Ok()
            .insert_header(octets)
            .insert_header((header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")))
            .insert_header((header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox")))
            .body(value);
        memory.until_written(response)
    } else {
        let memory = app.client_memory.for_response(record.value.as_bytes().len(), Duration::ZERO).await?;
        let (length, now_ms, record) = (record.value.as_bytes().len(), app.store.clock().now_ms(), record.clone());
        let encode = move || {
            let expires_in_ms = record.expires_in_ms(now_ms);
            Ok(encode(&v1::key_value(&key, &record, expires_in_ms), KEY_VALUE_EXTRA_BYTES + key.len() + length))
        };
        memory.until_written(json(StatusCode::OK, app.long_work.run(|| length, encode).await?))
    };
    let sent = response.headers_mut();
    sent.insert(header::ETAG, etag_of(record.revision));
    sent.insert(headers::REVISION.clone(), HeaderValue::from(revision));
    Ok(response)
}

async fn put_key(
    app: &Caller<ToWrite>,
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let (body, memory) = read_client_body(app, request, payload).await?;
    let key = key_of(request, &app.limits)?;
    let parameters = Parameters::of(request, &["ttl"])?;
    let ttl_ms = parameters.ttl_ms()?;
    let condition = Conditions::of(request)?.of_write(&app.limits)?;
    check_body_type(request)?;
    check_value_length(&body, &app.limits)?;
    // The value is copied, because the body is a part of the connection's larger buffer, which is reused.
    let put = Put { key: key.into(), value: (&body).into(), ttl_ms, condition: None };
    match v1::write(app, request, body, memory, app.may_write(condition.guard(KeyWrite::Put(put)))?).await? {
        WriteOutcome::Response(answer) => Ok(answer),
        WriteOutcome::Here(response, _) => match &response.result {
            Some(WriteResult::Put(put)) => Ok(written(&response, put, Some(put.revision))),
            other => Err(unexpected(other.as_ref())),
        },
    }
}

async fn delete_key(
    app: &Caller<ToWrite>,
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    reject_body(app, request, payload).await?;
    let key = key_of(request, &app.limits)?;
    Parameters::of(request, &[])?;
    let condition = Conditions::of(request)?.of_write(&app.limits)?;
    let delete = Delete { key: key.into(), condition: None };
    match v1::write(
        app,
        request,
        Bytes::new(),
        HeldMemory::default(),
        app.may_write(condition.guard(KeyWrite::Delete(delete)))?,
    )
    .await?
    {
        WriteOutcome::Response(answer) => Ok(answer),
        WriteOutcome::Here(response, _) => match response.result {
            Some(WriteResult::Delete { deleted, revision, .. }) => {
                Ok(written(&response, &DeleteAnswer { revision, deleted }, None))
            }
            ref other => Err(unexpected(other.as_ref())),
        },
    }
}

async fn touch_key(
    app: &Caller<ToWrite>,
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    reject_body(app, request, payload).await?;
    let key = key_with_action(request, "touch", &app.limits)?;
    let parameters = Parameters::of(request, &["ttl"])?;
    let Some(ttl_ms) = parameters.ttl_ms()? else {
        let message = "a touch must have a TTL, such as ?ttl=30s";
        return Err(ApiError::bad_request("invalid_ttl", message));
    };
    let condition = Conditions::of(request)?.of_write(&app.limits)?;
    let touch = Touch { key: key.into(), ttl_ms: Some(ttl_ms), condition: None };
    match v1::write(
        app,
        request,
        Bytes::new(),
        HeldMemory::default(),
        app.may_write(condition.guard(KeyWrite::Touch(touch)))?,
    )
    .await?
    {
        WriteOutcome::Response(answer) => Ok(answer),
        WriteOutcome::Here(response, _) => match &response.result {
            Some(WriteResult::Touch(touch)) => Ok(written(&response, touch, Some(touch.revision))),
            other => Err(unexpected(other.as_ref())),
        },
    }
}
