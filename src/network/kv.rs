//! One key: get, put, delete, touch.

use actix_web::http::header::{self, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;

use super::parameters::{
    Parameters, check_body_type, check_no_body, check_value_length, condition_of, key_of, key_with_action,
    known_revision,
};
use super::reply::{keep_for_a_while, read_body};
use super::v1::{self, Written, etag_of, json_answer, key_not_found, ready_to_read, unexpected, written};
use crate::app::ExampleApp;
use crate::body::DeleteAnswer;
use crate::error::ApiError;
use crate::operation::{Delete, Operation, Put, Touch, WriteResult};

/// Any method on `/v1/kv/{key}`.
pub async fn any(app: web::Data<ExampleApp>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    match *request.method() {
        Method::GET | Method::HEAD => get(app, request, payload).await,
        Method::PUT => put(app, request, payload).await,
        Method::DELETE => delete(app, request, payload).await,
        Method::POST => touch(app, request, payload).await,
        _ => v1::wrong_method(&app, &request, "GET, HEAD, PUT, DELETE, POST"),
    }
}

/// `GET /v1/kv/{key}`
pub async fn get(app: web::Data<ExampleApp>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    v1::answer(&app, get_key(&app, &request, payload).await)
}

/// `PUT /v1/kv/{key}`
pub async fn put(app: web::Data<ExampleApp>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    v1::answer(&app, put_key(&app, &request, payload).await)
}

/// `DELETE /v1/kv/{key}`
pub async fn delete(app: web::Data<ExampleApp>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    v1::answer(&app, delete_key(&app, &request, payload).await)
}

/// `POST /v1/kv/{key}/touch`
pub async fn touch(app: web::Data<ExampleApp>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    v1::answer(&app, touch_key(&app, &request, payload).await)
}

async fn get_key(app: &ExampleApp, request: &HttpRequest, payload: web::Payload) -> Result<HttpResponse, ApiError> {
    refuse_body(app, request, payload)?;
    let key = key_of(request, &app.limits)?;
    let parameters = Parameters::of(request, &["raw", "consistency"])?;
    let raw = parameters.flag("raw")?;
    let known = known_revision(request)?;
    ready_to_read(app, request, parameters.stale()?).await?;
    let (record, revision) = app.store.state_machine.read(|machine| (machine.get(&key), machine.revision));
    let Some(record) = record else { return Err(key_not_found(revision)) };
    let mut response = if known == Some(record.revision) {
        HttpResponse::new(StatusCode::NOT_MODIFIED)
    } else if raw {
        let value = Bytes::copy_from_slice(record.value.as_bytes());
        let octets = (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        HttpResponse::Ok().insert_header(octets).body(value)
    } else {
        json_answer(StatusCode::OK, &record.to_key_value(&key, app.clock.now_ms()))
    };
    let headers = response.headers_mut();
    headers.insert(header::ETAG, etag_of(record.revision));
    headers.insert(v1::REVISION, HeaderValue::from(revision));
    Ok(response)
}

async fn put_key(app: &ExampleApp, request: &HttpRequest, payload: web::Payload) -> Result<HttpResponse, ApiError> {
    let body = read_body(request, payload, app.limits.request_bytes).await?;
    let key = key_of(request, &app.limits)?;
    let parameters = Parameters::of(request, &["ttl"])?;
    let ttl_ms = parameters.ttl_ms()?;
    let condition = condition_of(request)?;
    check_body_type(request)?;
    check_value_length(&body, &app.limits)?;
    // Copied: the body is a part of the connection's buffer, which is larger and used again.
    let put = Put { key: key.into(), value: (&body).into(), ttl_ms, condition };
    match v1::write(app, request, body, Operation::Put(put)).await? {
        Written::Answered(answer) => Ok(answer),
        Written::Here(response) => match &response.result {
            Some(WriteResult::Put(put)) => Ok(written(&response, put, Some(put.revision))),
            other => Err(unexpected(other.as_ref())),
        },
    }
}

async fn delete_key(app: &ExampleApp, request: &HttpRequest, payload: web::Payload) -> Result<HttpResponse, ApiError> {
    refuse_body(app, request, payload)?;
    let key = key_of(request, &app.limits)?;
    Parameters::of(request, &[])?;
    let condition = condition_of(request)?;
    let delete = Delete { key: key.into(), condition };
    match v1::write(app, request, Bytes::new(), Operation::Delete(delete)).await? {
        Written::Answered(answer) => Ok(answer),
        Written::Here(response) => match response.result {
            Some(WriteResult::Delete { deleted, .. }) => {
                let revision = response.revision.unwrap_or_default();
                Ok(written(&response, &DeleteAnswer { revision, deleted }, None))
            }
            ref other => Err(unexpected(other.as_ref())),
        },
    }
}

async fn touch_key(app: &ExampleApp, request: &HttpRequest, payload: web::Payload) -> Result<HttpResponse, ApiError> {
    refuse_body(app, request, payload)?;
    let key = key_with_action(request, "touch", &app.limits)?;
    let parameters = Parameters::of(request, &["ttl"])?;
    let Some(ttl_ms) = parameters.ttl_ms()? else {
        let message = "a touch takes a time to live, such as ?ttl=30s";
        return Err(ApiError::bad_request("invalid_ttl", message));
    };
    let condition = condition_of(request)?;
    let touch = Touch { key: key.into(), ttl_ms: Some(ttl_ms), condition };
    match v1::write(app, request, Bytes::new(), Operation::Touch(touch)).await? {
        Written::Answered(answer) => Ok(answer),
        Written::Here(response) => match &response.result {
            Some(WriteResult::Touch(touch)) => Ok(written(&response, touch, Some(touch.revision))),
            other => Err(unexpected(other.as_ref())),
        },
    }
}

/// Refuses a body where none is taken.
pub fn refuse_body(app: &ExampleApp, request: &HttpRequest, payload: web::Payload) -> Result<(), ApiError> {
    let checked = check_no_body(app, request);
    if checked.is_err() {
        keep_for_a_while(payload);
    }
    checked
}
