//! Routes of tokens: create, list, revoke, and whether requests need one.

use std::sync::Arc;

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;

use super::access::{Caller, ToManageTokens};
use super::conditions::reject_conditions;
use super::levels;
use super::memory::HeldMemory;
use super::openapi::answers::TokenErrors;
use super::openapi::parameters::{ForwardHeader, TokenInPath};
use super::parameters::{Parameters, check_key, ttl_ms};
use super::request_body::{check_lists, parse_json, read_client_body, reject_body};
use super::v1::{self, WriteOutcome, json_answer, ready_to_read, unexpected};
use crate::access::{AccessChange, NewToken, TokenHash, TokenRole};
use crate::app::ExampleApp;
use crate::body::{AuthRequired, CreateToken, ListedToken, TokenCreated, TokenList, TokenRevoked};
use crate::config::{Limits, TOKEN_NAME_BYTES_MAX, TOKEN_PREFIXES_MAX, TOKENS_MAX};
use crate::error::{ApiError, Details};
use crate::headers::IDEMPOTENCY_KEY;
use crate::level::Level;
use crate::operation::{Operation, WriteResult};
use crate::secret::Secret;
use crate::store::state_machine::access::AccessMode;

const CREATE_BODY: &str = r#"{"name":"app","role":"write","prefixes":["app/"],"ttl":"12h"}"#;
const AUTH_BODY: &str = r#"{"required":false}"#;

/// Creates a token.
///
/// The response is the only one that has the token itself: the cluster stores a hash. If the response is lost, revoke
/// the token and create it again.
#[utoipa::path(
    post,
    path = "/v1/tokens",
    operation_id = "create_token",
    tag = "Tokens",
    params(ForwardHeader),
    request_body(content = CreateToken, example = json!({
        "name": "app", "role": "write", "prefixes": ["app/"], "ttl": "12h"
    })),
    responses(
        (
            status = 200,
            description = "The token.",
            body = TokenCreated,
            example = json!({"name": "app", "token": "rkv_4mJq1mWn9aQxw8v2nC6b7S0d3F5g1H2j4K6l8Z0x9Y8"}),
        ),
        TokenErrors,
    ),
)]
pub async fn create_token(app: Caller<ToManageTokens>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    let mut answer = v1::answer(&app, create(&app, &request, payload).await);
    // It has a secret.
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// Lists the tokens.
///
/// Expired tokens are not listed, and neither is the root token.
#[utoipa::path(
    get,
    path = "/v1/tokens",
    operation_id = "list_tokens",
    tag = "Tokens",
    params(ForwardHeader),
    responses(
        (
            status = 200,
            description = "The tokens, without their texts.",
            body = TokenList,
            example = json!({"required": true, "tokens": [
                {"name": "app", "role": "write", "prefixes": ["app/"], "expires_in_ms": 43200000}
            ]}),
        ),
        TokenErrors,
    ),
)]
pub async fn list_tokens(app: Caller<ToManageTokens>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    v1::answer(&app, list(&app, &request, payload).await)
}

/// Revokes a token.
///
/// Its requests are rejected from the response on, except stale reads on nodes that have not applied it yet. Its
/// watches end.
#[utoipa::path(
    delete,
    path = "/v1/tokens/{name}",
    operation_id = "revoke_token",
    tag = "Tokens",
    params(TokenInPath, ForwardHeader),
    responses(
        (status = 200, description = "The token is removed.", body = TokenRevoked, example = json!({"revoked": "app"})),
        TokenErrors,
    ),
)]
pub async fn revoke_token(app: Caller<ToManageTokens>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    v1::answer(&app, revoke(&app, &request, payload).await)
}

/// Makes requests need a token, or none.
///
/// A cluster whose leader was started with a root token needs tokens without this request. Only this request ends that.
#[utoipa::path(
    post,
    path = "/v1/auth",
    operation_id = "require_tokens",
    tag = "Tokens",
    params(ForwardHeader),
    request_body(content = AuthRequired, example = json!({"required": false})),
    responses(
        (
            status = 200,
            description = "Whether requests need a token from now on.",
            body = AuthRequired,
            example = json!({"required": false}),
        ),
        TokenErrors,
    ),
)]
pub async fn require_tokens(app: Caller<ToManageTokens>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    v1::answer(&app, require(&app, &request, payload).await)
}

async fn create(
    app: &Caller<ToManageTokens>,
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let (body, memory) = read_client_body(app, request, payload).await?;
    reject_headers(request)?;
    let (wanted, ttl_ms) = parse_wanted(&body, &app.limits)?;
    let secret = Secret::generate().map_err(|error| ApiError::internal(format!("no random numbers: {error}")))?;
    let token = NewToken {
        name: wanted.name.as_str().into(),
        role: wanted.role,
        prefixes: wanted.prefixes.unwrap_or_default().into_iter().map(Into::into).collect(),
        ttl_ms,
        hash: TokenHash::of(secret.reveal().as_bytes()),
    };
    match change(app, request, body, memory, AccessChange::Create(token)).await? {
        Changed::Forwarded(response) => Ok(response),
        Changed::Here => {
            let created = TokenCreated { name: wanted.name, token: secret.reveal().to_owned() };
            Ok(json_answer(StatusCode::OK, &created))
        }
    }
}

/// The token that a body describes, and its TTL in milliseconds.
///
/// # Errors
///
/// 400.
pub fn parse_wanted(body: &[u8], limits: &Limits) -> Result<(CreateToken, Option<u64>), ApiError> {
    let wanted: CreateToken = parse_json(body, CREATE_BODY)?;
    check_lists(body, 1, CREATE_BODY)?;
    check_name(&wanted.name)?;
    let ttl_ms = wanted.ttl.as_deref().map(ttl_ms).transpose()?;
    let prefixes = wanted.prefixes.as_deref().unwrap_or_default();
    // A body without prefixes is a list of none, which must not become a token for all keys by mistake.
    if body_names_no_prefix(body, prefixes) || prefixes.len() > TOKEN_PREFIXES_MAX {
        let message = format!("`prefixes` must have 1 to {TOKEN_PREFIXES_MAX} entries; omit it for all keys");
        return Err(ApiError::bad_request("invalid_token", message));
    }
    if wanted.role == TokenRole::Admin && !prefixes.is_empty() {
        let message = "a token with the role `admin` must not have prefixes: it allows everything";
        return Err(ApiError::bad_request("invalid_token", message));
    }
    for prefix in prefixes {
        check_key(prefix, limits)?;
    }
    Ok((wanted, ttl_ms))
}

/// Whether a body requires tokens from now on, or none.
///
/// # Errors
///
/// 400.
pub fn parse_required(body: &[u8]) -> Result<AuthRequired, ApiError> {
    let wanted = parse_json(body, AUTH_BODY)?;
    check_lists(body, usize::MAX, AUTH_BODY)?;
    Ok(wanted)
}

/// Whether the body has an empty list of prefixes, or `null`.
fn body_names_no_prefix(body: &[u8], prefixes: &[String]) -> bool {
    let has_field =
        |body| serde_json::from_slice::<serde_json::Value>(body).is_ok_and(|body| body.get("prefixes").is_some());
    prefixes.is_empty() && has_field(body)
}

async fn list(
    app: &Caller<ToManageTokens>,
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    reject_body(app, request, payload).await?;
    Parameters::of(request, &[])?;
    ready_to_read(app, request, &app.may_read_all()?, false).await?;
    let (access, now_ms) = (app.auth.access(), app.store.clock().now_ms());
    let tokens = access.tokens().iter().map(|(name, token)| ListedToken {
        name: name.to_string(),
        role: token.role,
        prefixes: token.prefixes.iter().map(ToString::to_string).collect(),
        expires_in_ms: (token.expires_at_ms > 0).then(|| token.expires_at_ms.saturating_sub(now_ms)),
    });
    let required = access.mode() == AccessMode::Required;
    Ok(json_answer(StatusCode::OK, &TokenList { required, tokens: tokens.collect() }))
}

async fn revoke(
    app: &Caller<ToManageTokens>,
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    reject_body(app, request, payload).await?;
    reject_headers(request)?;
    let name = request.match_info().query("name");
    check_name(name)?;
    let revoke = AccessChange::Revoke { name: name.into() };
    match change(app, request, Bytes::new(), HeldMemory::default(), revoke).await? {
        Changed::Forwarded(response) => Ok(response),
        Changed::Here => Ok(json_answer(StatusCode::OK, &TokenRevoked { revoked: name.to_owned() })),
    }
}

async fn require(
    app: &Caller<ToManageTokens>,
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let (body, memory) = read_client_body(app, request, payload).await?;
    reject_headers(request)?;
    let wanted = parse_required(&body)?;
    match change(app, request, body, memory, AccessChange::Require { required: wanted.required }).await? {
        Changed::Forwarded(response) => Ok(response),
        Changed::Here => Ok(json_answer(StatusCode::OK, &wanted)),
    }
}

enum Changed {
    Here,
    Forwarded(HttpResponse),
}

/// Makes a change as leader, or forwards the request to the leader.
///
/// The leader proposes it only if the cluster has the level of formats that has tokens ([`check_level`]).
async fn change(
    app: &Caller<ToManageTokens>,
    request: &HttpRequest,
    body: Bytes,
    memory: HeldMemory,
    change: AccessChange,
) -> Result<Changed, ApiError> {
    let write = app.may_write(Operation::Access(Arc::new(change)))?;
    match v1::write(app, request, body, memory, write).await {
        Ok(WriteOutcome::Response(response)) => Ok(Changed::Forwarded(response)),
        Ok(WriteOutcome::Here(response, _)) => match response.result {
            Some(WriteResult::Delete { .. }) => Ok(Changed::Here),
            ref other => Err(unexpected(other.as_ref())),
        },
        Err(error) => Err(error),
    }
}

/// Rejects changes of tokens before all members can read them. In a new cluster that takes a moment.
///
/// # Errors
///
/// 409.
pub async fn check_level(app: &ExampleApp) -> Result<(), ApiError> {
    if levels::level_of(app) < Level::TOKENS {
        levels::wait_for_newest(app).await;
    }
    let level = levels::level_of(app);
    if level >= Level::TOKENS {
        return Ok(());
    }
    Err(ApiError::Conflict(Details::not_applied(format!(
        "tokens need formats of level {}, and the cluster has level {level} until all its members respond and have a \
         version that supports tokens: upgrade them, and retry (`raft-key-value cluster status` shows their versions)",
        Level::TOKENS
    ))))
}

/// The error for a change of tokens that the state machine rejected (see `Access::apply`).
pub fn rejected(result: Option<&WriteResult>) -> Result<(), ApiError> {
    let message = match result {
        Some(WriteResult::ConditionFailed { revision: None }) => "a token with this name exists; revoke it first",
        Some(WriteResult::ConditionFailed { revision: Some(_) }) => {
            return Err(ApiError::Conflict(Details::not_applied(format!(
                "the cluster has its limit of {TOKENS_MAX} tokens; revoke one first"
            ))));
        }
        Some(WriteResult::NoSuchKey) => {
            return Err(ApiError::TokenNotFound(Details::not_applied("no token has this name")));
        }
        _ => return Ok(()),
    };
    Err(ApiError::Conflict(Details::not_applied(message)))
}

/// Rejects headers that have no meaning here: a token cannot be created twice, because the cluster does not have it.
fn reject_headers(request: &HttpRequest) -> Result<(), ApiError> {
    reject_conditions(request)?;
    Parameters::of(request, &[])?;
    if request.headers().contains_key(&IDEMPOTENCY_KEY) {
        let message = "Idempotency-Key must not be given with tokens: no later response can have the token";
        return Err(ApiError::bad_request("invalid_header", message));
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), ApiError> {
    let is_valid = (1..=TOKEN_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        // In a URL they stand for other paths.
        && name != "."
        && name != "..";
    if is_valid {
        return Ok(());
    }
    let message = format!(
        "a token's name must be 1 to {TOKEN_NAME_BYTES_MAX} letters, digits, `.`, `_` and `-`, and not `.` or `..`"
    );
    Err(ApiError::bad_request("invalid_token", message))
}
