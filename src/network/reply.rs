//! Responses that belong to no single route, and their encoding.

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderMap, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, ResponseError, web};
use serde::Serialize;

use super::v1;
use crate::app::ExampleApp;
use crate::error::{ApiError, Details};
use crate::headers::{OUTCOME, REVISION};

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// `{"Ok":…}`.
pub fn ok(value: &(impl Serialize + ?Sized)) -> HttpResponse {
    json(StatusCode::OK, ok_body(value))
}

/// The body of [`ok`].
pub fn ok_body(value: &(impl Serialize + ?Sized)) -> Vec<u8> {
    let answer: Result<_, ()> = Ok(value);
    encode(&answer, 512)
}

/// Encodes a value as JSON. Only maps with names that are not strings cannot be encoded, and no response has any.
pub fn encode(value: &impl Serialize, bytes_expected: usize) -> Vec<u8> {
    let mut body = Vec::with_capacity(bytes_expected);
    serde_json::to_writer(&mut body, value).expect("the names in a response are strings");
    body
}

/// A response with a body that is already JSON.
pub fn json(status: StatusCode, body: Vec<u8>) -> HttpResponse {
    HttpResponse::build(status).insert_header((header::CONTENT_TYPE, JSON)).body(body)
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.status()).expect("errors have valid statuses")
    }

    fn error_response(&self) -> HttpResponse {
        let answer: Result<(), _> = Err(self);
        let mut response = json(self.status_code(), encode(&answer, 256));
        insert_error_headers(self, response.headers_mut());
        response
    }
}

/// Inserts the outcome of the request, and when to retry it.
pub fn insert_error_headers(error: &ApiError, headers: &mut HeaderMap) {
    headers.insert(OUTCOME.clone(), HeaderValue::from_static(error.outcome().as_str()));
    if let ApiError::Unauthorized(_) = error {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(retry_after_ms) = error.retry_after_ms() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after_ms.div_ceil(1000)));
    }
}

/// An error in the shape of the routes at `path`: `{"error":…}` in `/v1`, `{"Err":…}` elsewhere.
pub fn error_at(app: &ExampleApp, path: &str, error: ApiError) -> HttpResponse {
    if !is_v1(path) {
        return error.error_response();
    }
    let mut response = v1::answer(app, Err(error));
    if app.auth.is_required() {
        // These errors come before the check of the token, which would tell whether the client may know it.
        response.headers_mut().remove(&REVISION);
    }
    response
}

/// Whether a path belongs to the key-value API.
pub fn is_v1(path: &str) -> bool {
    path == "/v1" || path.starts_with("/v1/")
}

/// Serves paths without a route.
pub async fn unknown_route(app: web::Data<ExampleApp>, request: HttpRequest) -> HttpResponse {
    const V1: &str = "/v1/kv, /v1/kv/<key>, /v1/txn, /v1/watch, /v1/snapshot, /v1/metrics, /v1/cluster, /v1/cluster/hash, \
                      /v1/cluster/members, /v1/cluster/leader, /v1/tokens, /v1/auth";
    let path = request.path();
    let others = if is_v1(path) {
        ""
    } else {
        ", POST /write, /read, /consistent_read, /init, /add-learner, /change-membership, and GET /livez, /readyz, \
         /health, /metrics; GET /docs describes them"
    };
    let message = format!("no route {path}; the routes are {V1}{others}");
    error_at(&app, path, ApiError::NotFound(Details::not_applied(message)))
}

/// Rejects methods that a `GET` route does not accept.
pub async fn only_get(app: web::Data<ExampleApp>, request: HttpRequest) -> HttpResponse {
    wrong_method(&app, &request, "GET, HEAD")
}

/// Rejects methods that a `POST` route does not accept.
pub async fn only_post(app: web::Data<ExampleApp>, request: HttpRequest) -> HttpResponse {
    wrong_method(&app, &request, "POST")
}

/// Rejects methods that a route for `GET` and `POST` does not accept.
pub async fn only_get_and_post(app: web::Data<ExampleApp>, request: HttpRequest) -> HttpResponse {
    wrong_method(&app, &request, "GET, HEAD, POST")
}

/// Rejects methods that a `DELETE` route does not accept.
pub async fn only_delete(app: web::Data<ExampleApp>, request: HttpRequest) -> HttpResponse {
    wrong_method(&app, &request, "DELETE")
}

/// Rejects methods that the route of all keys does not accept.
pub async fn only_list_methods(app: web::Data<ExampleApp>, request: HttpRequest) -> HttpResponse {
    wrong_method(&app, &request, "GET, HEAD, DELETE")
}

/// Rejects the method of a request; the route accepts those in `allowed`.
pub fn wrong_method(app: &ExampleApp, request: &HttpRequest, allowed: &'static str) -> HttpResponse {
    let message = format!("{} accepts {allowed}, got {}", request.path(), request.method());
    let error = ApiError::MethodNotAllowed(Details::not_applied(message));
    let mut response = error_at(app, request.path(), error);
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}
