//! Why a request failed: the code, the status and the outcome.
//!
//! The body is `{"Err":{"<Code>":{…}}}`, in the shape of a serialized `Result<_, ApiError>`. Every error also has its
//! outcome in the header `Raft-Outcome`:
//!
//! * `not_applied`: the request changed nothing and never will; retrying is safe.
//! * `unknown`: the request may have been applied, or may yet be.
//!
//! Only a request that was rejected before it was proposed to Raft, or by the state machine, is `not_applied`. After a
//! proposal, whatever openraft returns is `unknown`: the entry may be in the log of some node, and may still commit.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use crate::body::Outcome;
use crate::body::{ErrorAnswer, ErrorBody, Leader, Needs};
use crate::config::{MESSAGE_CHARACTERS_MAX, RETRY_AFTER};
use crate::types::{ExampleNode, NodeId};

/// The outcome of errors that always have the same one. In JSON it is [`Outcome::NotApplied`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NotApplied {
    /// The only value.
    NotApplied,
}

/// Why a request failed. The names are the codes in the body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error, ToSchema)]
#[non_exhaustive]
pub enum ApiError {
    /// The body, a parameter or a header is invalid. 400.
    #[error("{}", .0.message)]
    BadRequest(BadRequest),
    /// The request comes from a web page that must not use this node. 403.
    #[error("{}", .0.message)]
    Forbidden(Details),
    /// The request has no valid token. 401.
    #[error("{}", .0.message)]
    Unauthorized(Details),
    /// The token does not allow the request. 403.
    #[error("{}", .0.message)]
    NotPermitted(Box<NotPermitted>),
    /// No such route exists. 404.
    #[error("{}", .0.message)]
    NotFound(Details),
    /// The route does not support this method. 405.
    #[error("{}", .0.message)]
    MethodNotAllowed(Details),
    /// No token has the name. 404.
    #[error("{}", .0.message)]
    TokenNotFound(Details),
    /// The request did not arrive in time. 408.
    #[error("{}", .0.message)]
    RequestTimeout(Details),
    /// The key does not exist. 404.
    #[error("{}", .0.message)]
    KeyNotFound(KeyNotFound),
    /// The node is not a member of the cluster. 404.
    #[error("{}", .0.message)]
    MemberNotFound(Details),
    /// The state of the cluster does not allow the request. 409.
    #[error("{}", .0.message)]
    Conflict(Details),
    /// The cluster is already initialized. 409.
    #[error("{}", .0.message)]
    NotAllowed(NotAllowed),
    /// The requested revision is no longer kept. 410.
    #[error("{}", .0.message)]
    RevisionGone(RevisionGone),
    /// The node has applied entries after the requested index. 410.
    #[error("{}", .0.message)]
    AppliedPassed(AppliedPassed),
    /// The condition of the request does not hold. 412.
    #[error("{}", .0.message)]
    ConditionFailed(ConditionFailed),
    /// The request, the key or the value is too large. 413.
    #[error("{}", .0.message)]
    TooLarge(TooLarge),
    /// The body has a type or an encoding that the route does not decode. 415.
    #[error("{}", .0.message)]
    UnsupportedMediaType(Details),
    /// The `Idempotency-Key` was used for another request. 422.
    #[error("{}", .0.message)]
    IdempotencyKeyReused(Details),
    /// The head of the request is too long. 431.
    #[error("{}", .0.message)]
    HeadTooLarge(Details),
    /// This node is not the leader, and the caller does not want the request forwarded. 421.
    #[error("this node is not the leader; the leader is node {} at {}", .0.leader_id, .0.leader_node)]
    ForwardToLeader(LeaderHint),
    /// A request for one node reached another one. 421.
    #[error("{}", .0.message)]
    WrongNode(Details),
    /// The node failed to handle the request. 500.
    #[error("{}", .0.message)]
    Internal(Interrupted),
    /// No leader is known. 503.
    #[error("{}", .0.message)]
    NoLeader(Retry),
    /// The node is not a member of the cluster, or not with this data directory. 503.
    #[error("{}", .0.message)]
    NotMember(Retry),
    /// A limit of the node is reached. 503.
    #[error("{}", .0.message)]
    Overloaded(Retry),
    /// The node has not yet recovered its state after a start. 503.
    #[error("{}", .0.message)]
    Recovering(Retry),
    /// A node that the request needs does not respond. 503.
    #[error("{}", .0.message)]
    Unreachable(Retry),
    /// The node is stopping. 503.
    #[error("{}", .0.message)]
    Stopping(Retry),
    /// The deadline of the request expired. 504.
    #[error("{}", .0.message)]
    DeadlinePassed(Interrupted),
    /// The request was proposed, and then the leader changed or failed. 504.
    #[error("{}", .0.message)]
    OutcomeUnknown(Interrupted),
    /// The disk is nearly full. 507.
    #[error("{}", .0.message)]
    DiskSpaceLow(Details),
    /// The write would add data beyond the quota. 507.
    #[error("{}", .0.message)]
    QuotaExceeded(Details),
}

/// An invalid part of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BadRequest {
    /// Machine-readable code, such as `invalid_json`.
    pub code: String,
    /// Human-readable: what was expected, and what was given.
    pub message: String,
    /// The line of the body with the error, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// The column in that line, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
    /// Always `not_applied`.
    pub outcome: NotApplied,
}

/// A request that was not applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Details {
    /// Human-readable text.
    pub message: String,
    /// Always `not_applied`.
    pub outcome: NotApplied,
}

/// A request that the token does not allow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NotPermitted {
    /// Human-readable text.
    pub message: String,
    /// What the token must allow.
    pub needs: Needs,
    /// Always `not_applied`.
    pub outcome: NotApplied,
}

/// A request that was abandoned before or after it was proposed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Interrupted {
    /// Human-readable text.
    pub message: String,
    /// `unknown` if the request was proposed, `not_applied` otherwise.
    pub outcome: Outcome,
}

/// The state of a node that cannot be initialized.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NotAllowed {
    /// The last log id of the node.
    #[schema(value_type = Option<Object>)]
    pub last_log_id: Option<crate::types::LogId>,
    /// The vote of the node.
    #[schema(value_type = Object)]
    pub vote: crate::types::Vote,
    /// Human-readable text.
    pub message: String,
    /// Always `not_applied`.
    pub outcome: NotApplied,
}

/// A key, value or request that exceeds its limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TooLarge {
    /// Machine-readable code: `request_too_large`, `key_too_large` or `value_too_large`.
    pub code: String,
    /// Human-readable text.
    pub message: String,
    /// The limit, in bytes.
    pub limit: usize,
    /// The size, in bytes; a lower bound if the rest was not read.
    pub size: usize,
    /// Always `not_applied`.
    pub outcome: NotApplied,
}

/// A key that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyNotFound {
    /// Human-readable text.
    pub message: String,
    /// The revision of the store at which the key does not exist.
    pub revision: u64,
    /// Always `not_applied`.
    pub outcome: NotApplied,
}

/// A condition that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConditionFailed {
    /// Human-readable text.
    pub message: String,
    /// The key's revision; `None` if the key does not exist.
    pub current_revision: Option<u64>,
    /// Always `not_applied`.
    pub outcome: NotApplied,
}

/// A revision that is no longer kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RevisionGone {
    /// Human-readable text.
    pub message: String,
    /// The oldest revision that is kept.
    pub oldest_revision: u64,
    /// Always `not_applied`.
    pub outcome: NotApplied,
}

/// An index that the node has already passed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AppliedPassed {
    /// Human-readable text.
    pub message: String,
    /// The index of the last entry that the node has applied.
    pub applied_index: u64,
    /// Always `not_applied`.
    pub outcome: NotApplied,
}

/// The leader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaderHint {
    /// The leader's id.
    #[schema(value_type = u64)]
    pub leader_id: NodeId,
    /// The leader's address.
    pub leader_node: ExampleNode,
}

/// A request that was not applied, and when to retry it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Retry {
    /// Human-readable text.
    pub message: String,
    /// When to retry, in milliseconds.
    pub retry_after_ms: u64,
    /// Always `not_applied`.
    pub outcome: NotApplied,
}

/// The properties of an error that follow from its variant.
struct Properties<'a> {
    code: &'a str,
    status: u16,
    outcome: Outcome,
    retry_after_ms: Option<u64>,
}

impl<'a> Properties<'a> {
    fn of(code: &'a str, status: u16) -> Self {
        Properties { code, status, outcome: Outcome::NotApplied, retry_after_ms: None }
    }

    fn retry(code: &'a str, retry: &Retry) -> Self {
        Properties { retry_after_ms: Some(retry.retry_after_ms), ..Self::of(code, 503) }
    }

    fn interrupted(code: &'a str, status: u16, interrupted: &Interrupted) -> Self {
        Properties { outcome: interrupted.outcome, ..Self::of(code, status) }
    }
}

impl ApiError {
    /// A request with an invalid part.
    pub fn bad_request(code: &str, message: impl Into<String>) -> Self {
        ApiError::BadRequest(BadRequest {
            code: code.to_owned(),
            message: shortened(message.into()),
            line: None,
            column: None,
            outcome: NotApplied::NotApplied,
        })
    }

    /// A body that is not the expected JSON.
    pub fn invalid_json(error: &serde_json::Error, expected: &str) -> Self {
        let reason = explain_json(error);
        let located = error.line() > 0;
        ApiError::BadRequest(BadRequest {
            code: "invalid_json".to_owned(),
            message: format!("{}; expected {expected}", shortened(reason)),
            line: located.then_some(error.line()),
            // serde_json counts a line break as column 0 of the line after it.
            column: located.then_some(error.column().max(1)),
            outcome: NotApplied::NotApplied,
        })
    }

    /// A key, value or request that exceeds its limit.
    pub fn too_large(what: &str, limit: usize, size: usize) -> Self {
        // The rest of a request that is too large is not read.
        let least = if what == "request" { "at least " } else { "" };
        let subject = if what == "answer" { "response" } else { what };
        ApiError::TooLarge(TooLarge {
            code: format!("{what}_too_large"),
            message: format!("{subject} must be at most {limit} bytes, got {least}{size}"),
            limit,
            size,
            outcome: NotApplied::NotApplied,
        })
    }

    /// A fault of this program, before anything was proposed.
    pub fn internal(message: impl Into<String>) -> Self {
        ApiError::Internal(Interrupted::not_applied(message))
    }

    fn properties(&self) -> Properties<'_> {
        match self {
            ApiError::BadRequest(bad) => Properties::of(&bad.code, 400),
            ApiError::Forbidden(_) => Properties::of("forbidden", 403),
            ApiError::Unauthorized(_) => Properties::of("unauthorized", 401),
            ApiError::NotPermitted(_) => Properties::of("not_permitted", 403),
            ApiError::NotFound(_) => Properties::of("no_such_route", 404),
            ApiError::KeyNotFound(_) => Properties::of("key_not_found", 404),
            ApiError::MemberNotFound(_) => Properties::of("member_not_found", 404),
            ApiError::TokenNotFound(_) => Properties::of("token_not_found", 404),
            ApiError::MethodNotAllowed(_) => Properties::of("method_not_allowed", 405),
            ApiError::RequestTimeout(_) => Properties::of("request_timeout", 408),
            ApiError::Conflict(_) => Properties::of("conflict", 409),
            ApiError::NotAllowed(_) => Properties::of("not_allowed", 409),
            ApiError::RevisionGone(_) => Properties::of("revision_gone", 410),
            ApiError::AppliedPassed(_) => Properties::of("applied_passed", 410),
            ApiError::ConditionFailed(_) => Properties::of("condition_failed", 412),
            ApiError::TooLarge(large) => Properties::of(&large.code, 413),
            ApiError::UnsupportedMediaType(_) => Properties::of("unsupported_media_type", 415),
            ApiError::ForwardToLeader(_) => Properties::of("not_leader", 421),
            ApiError::WrongNode(_) => Properties::of("wrong_node", 421),
            ApiError::IdempotencyKeyReused(_) => Properties::of("idempotency_key_reused", 422),
            ApiError::HeadTooLarge(_) => Properties::of("head_too_large", 431),
            ApiError::Internal(failed) => Properties::interrupted("internal", 500, failed),
            ApiError::NoLeader(retry) => Properties::retry("no_leader", retry),
            ApiError::NotMember(retry) => Properties::retry("not_member", retry),
            ApiError::Overloaded(retry) => Properties::retry("overloaded", retry),
            ApiError::Recovering(retry) => Properties::retry("recovering", retry),
            ApiError::Unreachable(retry) => Properties::retry("unreachable", retry),
            ApiError::Stopping(retry) => Properties::retry("stopping", retry),
            ApiError::DeadlinePassed(expired) => Properties::interrupted("deadline_passed", 504, expired),
            ApiError::OutcomeUnknown(lost) => Properties::interrupted("outcome_unknown", 504, lost),
            ApiError::DiskSpaceLow(_) => Properties::of("disk_space_low", 507),
            ApiError::QuotaExceeded(_) => Properties::of("quota_exceeded", 507),
        }
    }

    /// Whether the request was applied.
    pub fn outcome(&self) -> Outcome {
        self.properties().outcome
    }

    /// The code in `/v1`.
    pub fn code(&self) -> &str {
        self.properties().code
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        self.properties().status
    }

    /// When to retry, in milliseconds, if the response says so.
    pub fn retry_after_ms(&self) -> Option<u64> {
        self.properties().retry_after_ms
    }

    /// The body of this error in `/v1`.
    pub fn to_body(&self) -> ErrorAnswer {
        let Properties { code, outcome, retry_after_ms, .. } = self.properties();
        let mut error = ErrorBody {
            code: code.to_owned(),
            message: self.to_string(),
            outcome,
            leader: None,
            retry_after_ms,
            needs: None,
            limit: None,
            size: None,
            current_revision: None,
            revision: None,
            oldest_revision: None,
            applied_index: None,
            line: None,
            column: None,
        };
        match self {
            ApiError::BadRequest(bad) => (error.line, error.column) = (bad.line, bad.column),
            ApiError::NotPermitted(denied) => error.needs = Some(Box::new(denied.needs.clone())),
            ApiError::TooLarge(large) => (error.limit, error.size) = (Some(large.limit), Some(large.size)),
            ApiError::KeyNotFound(missing) => error.revision = Some(missing.revision),
            ApiError::ConditionFailed(failed) => error.current_revision = failed.current_revision,
            ApiError::RevisionGone(gone) => error.oldest_revision = Some(gone.oldest_revision),
            ApiError::AppliedPassed(passed) => error.applied_index = Some(passed.applied_index),
            ApiError::ForwardToLeader(hint) => {
                error.leader = Some(Leader { id: hint.leader_id, addr: hint.leader_node.addr.clone() });
            }
            _ => {}
        }
        ErrorAnswer { error }
    }
}

/// Explains why a JSON text is not valid, without the position.
///
/// serde_json's messages name its grammar and Rust's types, which a client does not know.
pub fn explain_json(error: &serde_json::Error) -> String {
    let text = error.to_string();
    // The position comes last; the message before it may quote the input.
    let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
    let explained = explained_syntax(reason).map(str::to_owned).or_else(|| explained_data(reason));
    explained.unwrap_or_else(|| reason.to_owned())
}

/// Explains a text that is not JSON.
fn explained_syntax(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "EOF while parsing a list" => "the JSON ends inside a list",
        "EOF while parsing an object" => "the JSON ends inside an object",
        "EOF while parsing a string" => "the JSON ends inside a string",
        "EOF while parsing a value" => "the JSON ends where a value is expected",
        "expected `:`" => "a `:` is missing between a name and its value",
        "expected `,` or `]`" => "a `,` or the closing `]` of a list is missing",
        "expected `,` or `}`" => "a `,` or the closing `}` of an object is missing",
        "expected ident" | "expected value" => {
            "this is not a JSON value; text must be in double quotes, except true, false and null"
        }
        "expected `\"`" | "key must be a string" => "the name of a field must be in double quotes",
        "invalid escape" => {
            "a string contains a backslash that does not start a JSON escape; write `\\\\` for a backslash"
        }
        "invalid number" => "this is not a JSON number",
        "number out of range" => "this number is too large",
        "invalid unicode code point" => "a string must be valid UTF-8",
        "control character (\\u0000-\\u001F) found while parsing a string" => {
            "a string contains a control character; escape it, such as `\\n` or `\\u0000`"
        }
        "lone leading surrogate in hex escape" | "unexpected end of hex escape" => {
            "a string contains half of a surrogate pair; the escape of the other half must follow"
        }
        "trailing comma" => "the last element of a list or an object must not be followed by a `,`",
        "trailing characters" => "unexpected text after the value, or too many elements in a list",
        "recursion limit exceeded" => "the JSON is nested too deeply",
        _ => return None,
    })
}

/// Explains JSON of the wrong shape. serde quotes the input first, so the last separator is serde's own.
fn explained_data(reason: &str) -> Option<String> {
    if let Some(rest) = reason.strip_prefix("invalid type: ").or_else(|| reason.strip_prefix("invalid value: ")) {
        let (given, expected) = rest.rsplit_once(", expected ")?;
        return Some(format!("a value must be {}, got {}", expected_kind(expected), given_kind(given)));
    }
    if let Some(rest) = reason.strip_prefix("invalid length ") {
        let (given, expected) = rest.split_once(", expected ")?;
        let wanted = expected.split(|character: char| !character.is_ascii_digit()).find(|digits| !digits.is_empty());
        return Some(match wanted {
            Some(wanted) => format!("a list must have {wanted} elements, got {given}"),
            None => format!("a list has the wrong number of elements: {given}"),
        });
    }
    if let Some(field) = reason.strip_prefix("missing field ") {
        return Some(format!("the field {field} is missing"));
    }
    if let Some(field) = reason.strip_prefix("duplicate field ") {
        return Some(format!("the field {field} is given twice"));
    }
    let (kind, rest) = match reason.strip_prefix("unknown field ") {
        Some(rest) => ("field", rest),
        None => ("name", reason.strip_prefix("unknown variant ")?),
    };
    match rest.rsplit_once(", expected ") {
        Some((given, expected)) => Some(format!("unknown {kind} {given}; must be {expected}")),
        None => {
            Some(format!("unknown {kind} {}", rest.rsplit_once(", there are no ").map_or(rest, |(given, _)| given)))
        }
    }
}

/// A kind of value in JSON's terms, from serde's name for a Rust type.
fn expected_kind(expected: &str) -> &str {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a non-negative integer",
        "i8" | "i16" | "i32" | "i64" | "isize" => "an integer",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "string or map" => "a name, or an object with one field",
        _ if expected.starts_with("a tuple") => "a list",
        _ if expected.starts_with("struct") || expected.starts_with("internally tagged") => "an object",
        _ if expected.contains("variant") || expected.starts_with("enum") => "an object with one field",
        _ => expected,
    }
}

/// What was given, in JSON's terms.
fn given_kind(given: &str) -> String {
    let number = given.strip_prefix("integer `").or_else(|| given.strip_prefix("floating point `"));
    match given {
        "map" => "an object".to_owned(),
        "sequence" => "a list".to_owned(),
        "unit value" => "null".to_owned(),
        "unit variant" => "a name without a value".to_owned(),
        "newtype variant" | "tuple variant" | "struct variant" => "a name with a value".to_owned(),
        _ => match (number, given.strip_prefix("boolean `")) {
            (Some(number), _) => format!("the number {}", number.trim_end_matches('`')),
            (None, Some(boolean)) => boolean.trim_end_matches('`').to_owned(),
            (None, None) if given.starts_with("string ") => format!("the {given}"),
            (None, None) => given.to_owned(),
        },
    }
}

/// A message of bounded length: decoders quote their input, however long it is.
pub(crate) fn shortened(mut message: String) -> String {
    if let Some((end, _)) = message.char_indices().nth(MESSAGE_CHARACTERS_MAX) {
        message.truncate(end);
        message.push('…');
    }
    message
}

impl Details {
    /// A request that was not applied.
    pub fn not_applied(message: impl Into<String>) -> Self {
        Details { message: message.into(), outcome: NotApplied::NotApplied }
    }
}

impl Interrupted {
    /// A request that was abandoned before it was proposed.
    pub fn not_applied(message: impl Into<String>) -> Self {
        Interrupted { message: message.into(), outcome: Outcome::NotApplied }
    }

    /// A request that was abandoned after it was proposed.
    pub fn unknown(message: impl Into<String>) -> Self {
        Interrupted { message: message.into(), outcome: Outcome::Unknown }
    }
}

impl Retry {
    /// A request that was not applied and may be retried after [`RETRY_AFTER`].
    pub fn soon(message: impl Into<String>) -> Self {
        Retry {
            message: message.into(),
            retry_after_ms: RETRY_AFTER.as_millis() as u64,
            outcome: NotApplied::NotApplied,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Errors in JSON are explained in JSON's terms, not in Rust's.
    ///
    /// Method: one text for each message of serde_json and serde that a body can cause, with its explanation.
    #[test]
    fn json_errors_are_explained() {
        use crate::body::TxnRequest;
        use crate::types::ExampleRequest;

        fn explained<T: serde::de::DeserializeOwned>(text: &[u8]) -> String {
            let Err(error) = serde_json::from_slice::<T>(text) else { panic!("{text:?} is valid") };
            explain_json(&error)
        }
        let write = |text: &str| explained::<ExampleRequest>(text.as_bytes());
        let txn = |text: &str| explained::<TxnRequest>(text.as_bytes());
        let member = |text: &str| explained::<(u64, String)>(text.as_bytes());
        let no_value = "this is not a JSON value; text must be in double quotes, except true, false and null";
        let rows = [
            (explained::<String>(b"foo"), no_value),
            (explained::<String>(b"hello"), no_value),
            (explained::<String>(b"nulx"), no_value),
            (write(r#"{"Set":tru}"#), no_value),
            (write(r#"{"Set":{"key":"k""#), "the JSON ends inside an object"),
            (write(r#"{"Set":{"key":"k"#), "the JSON ends inside a string"),
            (write(r#"{"Set":"#), "the JSON ends where a value is expected"),
            (txn(r#"{"success":[{"delete":{"key":"k"}}"#), "the JSON ends inside a list"),
            (write(r#"{"Set":{"key" "k"}}"#), "a `:` is missing between a name and its value"),
            (write(r#"{"Set":{"key":"k" "value":"v"}}"#), "a `,` or the closing `}` of an object is missing"),
            (txn(r#"{"success":[{"delete":{"key":"k"}} 1]}"#), "a `,` or the closing `]` of a list is missing"),
            (write("{Set:1}"), "the name of a field must be in double quotes"),
            (write("{'Set':1}"), "the name of a field must be in double quotes"),
            (
                write(r#"{"Set":{"key":"k","value":"\d"}}"#),
                r"a string contains a backslash that does not start a JSON escape; write `\\` for a backslash",
            ),
            (member("[01,1]"), "this is not a JSON number"),
            (member("[1e999,1]"), "this number is too large"),
            (
                write("{\"Set\":{\"key\":\"a\nb\",\"value\":\"v\"}}"),
                r"a string contains a control character; escape it, such as `\n` or `\u0000`",
            ),
            (
                explained::<String>(br#""\ud800""#),
                "a string contains half of a surrogate pair; the escape of the other half must follow",
            ),
            (explained::<String>(b"\"\xff\""), "a string must be valid UTF-8"),
            (txn(r#"{"success":[],}"#), "the last element of a list or an object must not be followed by a `,`"),
            (write(r#"{"Delete":{"key":"k"}}x"#), "unexpected text after the value, or too many elements in a list"),
            (member(r#"[1,"a",2]"#), "unexpected text after the value, or too many elements in a list"),
            (member("[1]"), "a list must have 2 elements, got 1"),
            (member(r#"["1","a"]"#), "a value must be a non-negative integer, got the string \"1\""),
            (member("[-1,\"a\"]"), "a value must be a non-negative integer, got the number -1"),
            (member("[1.5,\"a\"]"), "a value must be a non-negative integer, got the number 1.5"),
            (member("[1,null]"), "a value must be a string, got null"),
            (member("{}"), "a value must be a list, got an object"),
            (explained::<String>(b"{}"), "a value must be a string, got an object"),
            (explained::<String>(b"[]"), "a value must be a string, got a list"),
            (write(r#"{"Set":{"key":"k","value":true}}"#), "a value must be a string, got true"),
            (write(r#"{"Set":5}"#), "a value must be an object, got the number 5"),
            (txn("5"), "a value must be an object, got the number 5"),
            (
                txn(r#"{"compare":[{"key":"k","exists":", expected x"}]}"#),
                "a value must be true or false, got the string \", expected x\"",
            ),
            (write(r#"{"Set":{"key":"k"}}"#), "the field `value` is missing"),
            (write(r#"{"Set":{"key":"k","key":"k"}}"#), "the field `key` is given twice"),
            (write(r#"{"Set":{"key":"k","ttl":"1s"}}"#), "unknown field `ttl`; must be `key` or `value`"),
            (write(r#"{"set":{"key":"k"}}"#), "unknown name `set`; must be one of `Set`, `Delete`, `Txn`"),
            (
                write(r#"{"a at line 7, expected b":1}"#),
                "unknown name `a at line 7, expected b`; must be one of `Set`, `Delete`, `Txn`",
            ),
            (write(r#""Set""#), "a value must be an object, got a name without a value"),
            (write("{}"), no_value),
        ];
        let wrong: Vec<_> = rows.into_iter().filter(|(found, expected)| found != expected).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
        let deep = "[".repeat(200);
        assert_eq!(explained::<serde_json::Value>(deep.as_bytes()), "the JSON is nested too deeply");
    }

    /// An error quotes its input, but not a megabyte of it.
    ///
    /// Method: a name that no request has, of characters of two bytes, as JSON and as what a parameter's error says.
    #[test]
    fn messages_are_short() {
        let name = "ü".repeat(1 << 20);
        let json = serde_json::from_str::<Outcome>(&format!("\"{name}\"")).unwrap_err();
        for error in [ApiError::invalid_json(&json, "an outcome"), ApiError::bad_request("invalid", name)] {
            let message = error.to_string();
            assert!(message.contains("üüü…"), "{message}");
            assert!(message.len() < 2 * MESSAGE_CHARACTERS_MAX + 100, "{} bytes", message.len());
        }
    }
}
