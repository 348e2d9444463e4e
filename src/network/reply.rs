//! How bodies are read and answers are written.

use actix_web::error::PayloadError;
use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderMap, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, ResponseError, web};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use memchr::memchr2;
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::listener::intake::Exchange;
use super::memory::HeldMemory;
use super::v1;
use crate::app::ExampleApp;
use crate::config::{BODY_BYTES_RESERVED_MAX, REFUSED_BODY_KEPT, REQUEST_BODY_DEADLINE};
use crate::error::{ApiError, Details};
use crate::headers::OUTCOME;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The body of a client's request, in whatever type it is said to be, and the memory for it. That is taken before
/// the body is read; what has not been read stays with the client.
///
/// # Errors
///
/// The body is longer than is allowed, is broken, or does not come; or others hold all memory.
pub async fn read_client_body(
    app: &ExampleApp,
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<(Bytes, HeldMemory), ApiError> {
    let bytes_max = app.limits.request_bytes;
    let bytes = if request.headers().contains_key(header::TRANSFER_ENCODING) {
        bytes_max
    } else {
        announced_bytes(request).unwrap_or_default().min(bytes_max)
    };
    match app.client_memory.for_request(bytes).await {
        Ok(mut held) => {
            let body = read_body(request, payload, bytes_max).await?;
            // Of a chunked one it is known only now how long it is.
            held.keep_for_request(body.len());
            Ok((body, held))
        }
        Err(error) => {
            keep_for_a_while(payload);
            Err(error)
        }
    }
}

fn announced_bytes(request: &HttpRequest) -> Option<usize> {
    request.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The body of a request, in whatever type it is said to be.
pub async fn read_body(request: &HttpRequest, payload: web::Payload, bytes_max: usize) -> Result<Bytes, ApiError> {
    let announced = announced_bytes(request);
    if let Some(size) = announced.filter(|size| *size > bytes_max) {
        return Err(ApiError::too_large("request", bytes_max, size));
    }
    let mut payload = payload;
    // More is made room for as it comes: a length is quickly announced.
    let announced = announced.unwrap_or_default().min(BODY_BYTES_RESERVED_MAX);
    let collected = collect(request, &mut payload, bytes_max, announced);
    let result = tokio::time::timeout(REQUEST_BODY_DEADLINE, collected).await;
    if !matches!(result, Ok(Ok(_))) {
        keep_for_a_while(payload);
    }
    match result {
        Ok(result) => result,
        Err(_) => Err(ApiError::RequestTimeout(Details::not_applied(format!(
            "the body did not arrive within {} seconds",
            REQUEST_BODY_DEADLINE.as_secs()
        )))),
    }
}

/// Refuses a body where none is taken. One that comes in chunks may turn out to be empty, which is no body.
pub async fn refuse_body(app: &ExampleApp, request: &HttpRequest, payload: web::Payload) -> Result<(), ApiError> {
    let headers = request.headers();
    let unexpected = || {
        let message = format!("{} {} takes no body on node {}", request.method(), request.path(), app.id);
        Err(ApiError::bad_request("unexpected_body", message))
    };
    if headers.contains_key(header::TRANSFER_ENCODING) {
        return match read_body(request, payload, 0).await {
            Err(ApiError::TooLarge(_)) => unexpected(),
            read => read.map(drop),
        };
    }
    if headers.get(header::CONTENT_LENGTH).is_some_and(|length| length.as_bytes().iter().any(|digit| *digit != b'0')) {
        keep_for_a_while(payload);
        return unexpected();
    }
    Ok(())
}

async fn collect(
    request: &HttpRequest,
    payload: &mut web::Payload,
    bytes_max: usize,
    announced: usize,
) -> Result<Bytes, ApiError> {
    let mut next = async || match payload.next().await {
        None => Ok(None),
        Some(Ok(chunk)) => Ok(Some(chunk)),
        Some(Err(error)) => {
            let why = match (Exchange::broken_body(request), error) {
                (Some(why), _) => why.to_owned(),
                (None, PayloadError::Incomplete(_)) => "the client stopped sending before its end".to_owned(),
                (None, error) => error.to_string(),
            };
            Err(ApiError::bad_request("broken_body", format!("the body is broken: {why}")))
        }
    };
    // Nearly every body comes in one piece, and is not copied.
    let Some(first) = next().await? else { return Ok(Bytes::new()) };
    if first.len() > bytes_max {
        return Err(ApiError::too_large("request", bytes_max, first.len()));
    }
    let Some(second) = next().await? else { return Ok(first) };
    let mut body = BytesMut::with_capacity(announced.max(first.len() + second.len()));
    body.extend_from_slice(&first);
    let mut chunk = second;
    loop {
        if body.len() + chunk.len() > bytes_max {
            return Err(ApiError::too_large("request", bytes_max, body.len() + chunk.len()));
        }
        body.extend_from_slice(&chunk);
        match next().await? {
            Some(next) => chunk = next,
            None => return Ok(body.freeze()),
        }
    }
}

/// Keeps a body that is refused until the answer is out, which closes the connection.
pub fn keep_for_a_while(payload: impl Stream + 'static) {
    tokio::task::spawn_local(async move {
        tokio::time::sleep(REFUSED_BODY_KEPT).await;
        drop(payload);
    });
}

/// Decodes a JSON body; `expected` is what the error says that it should be.
pub fn parse_json<T: DeserializeOwned>(body: &[u8], expected: &str) -> Result<T, ApiError> {
    if body.trim_ascii().is_empty() {
        return Err(ApiError::bad_request("invalid_json", format!("the body is empty; expected {expected}")));
    }
    serde_json::from_slice(body).map_err(|error| {
        // serde also says so of a value that has another shape than an enum.
        let is_shape = error.to_string().starts_with("expected value");
        if is_shape && serde_json::from_slice::<IgnoredAny>(body).is_ok() {
            return ApiError::bad_request("invalid_json", format!("the JSON has the wrong shape; expected {expected}"));
        }
        ApiError::invalid_json(&error, expected)
    })
}

/// Refuses lists other than those that stand in so many objects, after the body was decoded.
///
/// The decoder takes a list of values in place of an object with names, which would
/// mean something else as soon as a name is added.
pub fn check_lists(body: &[u8], objects: usize, expected: &str) -> Result<(), ApiError> {
    let mut depth = 0;
    let mut rest = body.iter();
    while let Some(byte) = rest.next() {
        match byte {
            b'"' => rest = after_text(rest.as_slice()).iter(),
            b'[' if depth != objects => {
                let message = format!("a list stands where an object belongs; expected {expected}");
                return Err(ApiError::bad_request("invalid_json", message));
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
    }
    Ok(())
}

/// What follows a text in JSON whose first quote has been read.
fn after_text(mut rest: &[u8]) -> &[u8] {
    while let Some(position) = memchr2(b'"', b'\\', rest) {
        if rest[position] == b'"' {
            return &rest[position + 1..];
        }
        rest = rest.get(position + 2..).unwrap_or_default();
    }
    &[]
}

/// `{"Ok":…}`.
pub fn ok(value: &(impl Serialize + ?Sized)) -> HttpResponse {
    json(StatusCode::OK, ok_body(value))
}

/// The body of that.
pub fn ok_body(value: &(impl Serialize + ?Sized)) -> Vec<u8> {
    let answer: Result<_, ()> = Ok(value);
    encode(&answer, 512)
}

/// What is sent, as JSON. All of it has texts as names, and no other value can fail.
pub fn encode(value: &impl Serialize, bytes_expected: usize) -> Vec<u8> {
    let mut body = Vec::with_capacity(bytes_expected);
    serde_json::to_writer(&mut body, value).expect("responses are values that JSON has");
    body
}

/// A body that is JSON already.
pub fn json(status: StatusCode, body: Vec<u8>) -> HttpResponse {
    HttpResponse::build(status).insert_header((header::CONTENT_TYPE, JSON)).body(body)
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        let answer: Result<(), _> = Err(self);
        let body = serde_json::to_vec(&answer).unwrap_or_default();
        let mut response = json(self.status_code(), body);
        insert_error_headers(self, response.headers_mut());
        response
    }
}

/// What became of the request, and when to try again.
pub fn insert_error_headers(error: &ApiError, headers: &mut HeaderMap) {
    headers.insert(OUTCOME.clone(), HeaderValue::from_static(error.outcome().as_str()));
    if let Some(retry_after_ms) = error.retry_after_ms() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after_ms.div_ceil(1000)));
    }
}

/// For a path that no route has.
pub async fn unknown_route(app: web::Data<ExampleApp>, request: HttpRequest) -> HttpResponse {
    let path = request.path();
    if path == "/v1" || path.starts_with("/v1/") {
        let message = format!(
            "there is no route {path}; there are /v1/kv, /v1/kv/<key>, /v1/txn, /v1/watch, /v1/cluster/hash and \
             /v1/cluster/members/<id>"
        );
        return v1::answer(&app, Err(ApiError::NotFound(Details::not_applied(message))));
    }
    let message = format!(
        "there is no route {path}; there are /v1/kv, /v1/kv/<key>, /v1/txn, /v1/watch, /v1/cluster/hash, \
         /v1/cluster/members/<id>, POST /write, /read, /consistent_read, /init, /add-learner, /change-membership, and GET /metrics; GET /docs describes them"
    );
    ApiError::NotFound(Details::not_applied(message)).error_response()
}

/// For a method that a `GET` route does not take.
pub async fn only_get(request: HttpRequest) -> HttpResponse {
    wrong_method(&request, "GET, HEAD")
}

/// For a method that a `POST` route does not take.
pub async fn only_post(request: HttpRequest) -> HttpResponse {
    wrong_method(&request, "POST")
}

fn wrong_method(request: &HttpRequest, allowed: &'static str) -> HttpResponse {
    let message = format!("{} takes {allowed}, not {}", request.path(), request.method());
    let mut response = ApiError::MethodNotAllowed(Details::not_applied(message)).error_response();
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}
