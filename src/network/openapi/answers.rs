//! Responses of the routes, for the document of the API: the bodies without a type of their own, the errors with
//! examples, and the headers.

use std::collections::BTreeMap;

use openraft::vote::RaftLeaderId;
use serde_json::json;
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::example::ExampleBuilder;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::{Header, Object, OpenApi, Ref, RefOr};
use utoipa::{IntoResponses, Modify, ToSchema};

use crate::access::TokenRole;
use crate::body::{ErrorAnswer, Needs};
use crate::config::{KEY_BYTES_MAX_DEFAULT, VALUE_BYTES_MAX_DEFAULT};
use crate::error::{
    ApiError, AppliedPassed, ConditionFailed, Details, Interrupted, LeaderHint, NotAllowed, NotApplied, NotPermitted,
    Retry, RevisionGone,
};
use crate::network::reply::is_v1;
use crate::network::{parameters, rejections, v1};
use crate::types::{ExampleNode, ExampleResponse, LogId, Vote};

/// Any bytes.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
pub struct RawValue(pub Vec<u8>);

/// A key, as a JSON string of 1 to 1,024 bytes.
pub struct KeyBody;

impl utoipa::PartialSchema for KeyBody {
    fn schema() -> RefOr<Schema> {
        let text = ObjectBuilder::new().schema_type(Type::String);
        text.min_length(Some(1)).max_length(Some(KEY_BYTES_MAX_DEFAULT)).into()
    }
}

impl ToSchema for KeyBody {}

/// Server-sent events: lines of `id:` and `data:`, the latter with a `WatchEvent` as JSON.
#[derive(ToSchema)]
#[schema(value_type = String)]
pub struct EventStream(pub String);

/// A successful response of a route of the openraft example.
#[derive(ToSchema)]
pub struct OkAnswer<T: ToSchema> {
    /// The result.
    #[schema(rename = "Ok")]
    pub ok: T,
}

/// The response to founding a cluster.
#[derive(ToSchema)]
pub struct InitAnswer {
    /// Always null.
    #[schema(rename = "Ok", value_type = Option<Object>, required = true)]
    pub ok: (),
}

/// An error response of a route of the openraft example.
#[derive(ToSchema)]
pub struct ErrAnswer {
    /// The error: an object with its name as the only field.
    #[schema(rename = "Err")]
    pub err: ApiError,
}

/// An entry that was applied.
#[derive(ToSchema)]
pub struct EntryAnswer {
    /// The entry's log id.
    pub log_id: LogIdBody,
    /// The result of the write.
    pub data: ExampleResponse,
    /// The membership, if the request changed it.
    pub membership: Option<MembershipBody>,
}

/// The position of an entry in the log.
#[derive(ToSchema)]
pub struct LogIdBody {
    /// The leader that proposed the entry.
    pub leader_id: LeaderIdBody,
    /// The number of entries before it.
    pub index: u64,
}

/// A leader and its term.
#[derive(ToSchema)]
pub struct LeaderIdBody {
    /// The term.
    pub term: u64,
    /// The node's id.
    pub node_id: u64,
}

/// The members of the cluster.
#[derive(ToSchema)]
pub struct MembershipBody {
    /// The voters. Two lists while a change is under way.
    pub configs: Vec<Vec<u64>>,
    /// All members by their id, including learners.
    pub nodes: BTreeMap<String, ExampleNode>,
}

/// The state of a node: the most stable fields of openraft's `RaftMetrics`.
#[derive(ToSchema)]
pub struct MetricsBody {
    /// The node's id.
    pub id: u64,
    /// `Learner`, `Follower`, `Candidate`, `Leader` or `Shutdown`.
    pub state: String,
    /// The term.
    pub current_term: u64,
    /// The leader's id, as far as this node knows.
    pub current_leader: Option<u64>,
    /// The index of the last entry in the log.
    pub last_log_index: Option<u64>,
    /// The last entry that the node has applied.
    pub last_applied: Option<LogIdBody>,
    /// The last entry that the snapshot covers.
    pub snapshot: Option<LogIdBody>,
}

/// The response of `/health`.
#[derive(ToSchema, serde::Serialize)]
pub struct HealthBody {
    /// `true` or `false`.
    pub health: &'static str,
    /// The checks that failed, if any did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A probe that failed: the checks that do not hold, as text.
pub struct ProbeErrors;

impl IntoResponses for ProbeErrors {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let text = ContentBuilder::new()
            .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
            .example(Some(json!("[-]leader: no leader is known: an election is under way\nreadyz failed\n")))
            .build();
        let failed = ResponseBuilder::new()
            .description("One line for each check that failed.")
            .content("text/plain; charset=utf-8", text)
            .build();
        let mut responses = Shape::Original.references(&[400]);
        responses.insert("503".to_owned(), failed.into());
        responses
    }
}

/// The shapes of errors.
#[derive(Clone, Copy)]
enum Shape {
    /// `{"error":{…}}`
    V1,
    /// `{"Err":{…}}`
    Original,
}

impl Shape {
    fn component(self, status: u16) -> String {
        match self {
            Shape::V1 => format!("v1-{status}"),
            Shape::Original => format!("original-{status}"),
        }
    }

    fn references(self, statuses: &[u16]) -> BTreeMap<String, RefOr<Response>> {
        let reference = |status: &u16| Ref::from_response_name(self.component(*status)).into();
        // Any route may need a token, be called by a web page, or fail.
        statuses.iter().chain(&[401, 403, 500]).map(|status| (status.to_string(), reference(status))).collect()
    }
}

/// Declares the errors of a kind of route, for its `responses(…)`.
macro_rules! errors_of {
    ($($(#[$doc:meta])* $name:ident: $shape:ident $statuses:expr;)*) => {$(
        $(#[$doc])*
        pub struct $name;
        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                Shape::$shape.references(&$statuses)
            }
        }
    )*};
}

errors_of! {
    /// Errors of reading a key.
    ReadErrors: V1 [400, 404, 408, 412, 413, 421, 503, 504];
    /// Errors of listing keys.
    ListErrors: V1 [400, 408, 410, 413, 421, 503, 504];
    /// Errors of a watch.
    WatchErrors: V1 [400, 408, 410, 413, 421, 503, 504];
    /// Errors of the status of the cluster.
    ClusterErrors: V1 [400, 408, 503];
    /// Errors of the hash of a node.
    HashErrors: V1 [400, 408, 410, 503, 504];
    /// Errors of downloading a snapshot.
    SnapshotErrors: V1 [400, 408, 421, 503, 504, 507];
    /// Errors of setting a key.
    PutErrors: V1 [400, 408, 412, 413, 415, 421, 422, 503, 504, 507];
    /// Errors of deleting a key.
    DeleteErrors: V1 [400, 408, 412, 413, 421, 422, 503, 504, 507];
    /// Errors of renewing a TTL.
    TouchErrors: V1 [400, 404, 408, 412, 413, 421, 422, 503, 504, 507];
    /// Errors of deleting keys by prefix.
    DeletePrefixErrors: V1 [400, 408, 413, 421, 422, 503, 504, 507];
    /// Errors of a transaction.
    TxnErrors: V1 [400, 408, 413, 415, 421, 422, 503, 504, 507];
    /// Errors of `/write`.
    OriginalWriteErrors: Original [400, 408, 413, 421, 422, 503, 504, 507];
    /// Errors of `/read`.
    OriginalReadErrors: Original [400, 408, 413, 503];
    /// Errors of `/consistent_read`.
    OriginalConsistentReadErrors: Original [400, 408, 413, 421, 503, 504];
    /// Errors of founding a cluster.
    InitErrors: Original [400, 408, 409, 413, 503, 504];
    /// Errors of changing the membership.
    MembershipErrors: Original [400, 408, 409, 413, 421, 503, 504];
    /// Errors of the metrics.
    MetricsErrors: V1 [400, 503];
    /// Errors of `/health`, except that the node cannot serve requests.
    HealthErrors: Original [400];
    /// Errors of adding, promoting and removing members.
    MemberErrors: V1 [400, 404, 408, 409, 413, 421, 503, 504];
    /// Errors of transferring the leadership.
    LeaderErrors: V1 [400, 408, 409, 413, 421, 503, 504];
    /// Errors of managing tokens.
    TokenErrors: V1 [400, 404, 408, 409, 413, 421, 503, 504, 507];
}

/// Adds what all routes share: the errors, and the headers of every response.
pub struct SharedAnswers;

impl Modify for SharedAnswers {
    fn modify(&self, openapi: &mut OpenApi) {
        let components = openapi.components.get_or_insert_default();
        for (path, item) in &mut openapi.paths.paths {
            let is_v1 = is_v1(path);
            let shape = if is_v1 { Shape::V1 } else { Shape::Original };
            for operation in operations_of(item) {
                let is_write = operation.parameters.iter().flatten().any(|it| it.name == "Idempotency-Key");
                for (status, response) in &mut operation.responses.responses {
                    match response {
                        RefOr::Ref(_) => {
                            let status = status.parse().unwrap_or_default();
                            let error = || error_response(shape, status).into();
                            components.responses.entry(shape.component(status)).or_insert_with(error);
                        }
                        RefOr::T(response) if is_v1 => response.headers.extend(success_headers(is_write)),
                        RefOr::T(_) => {}
                    }
                }
            }
        }
    }
}

/// The operations on a path.
pub fn operations_of(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let PathItem { get, head, put, delete, post, .. } = item;
    [get, head, put, delete, post].into_iter().flatten()
}

fn success_headers(is_write: bool) -> impl Iterator<Item = (String, Header)> {
    let description = "`true`: the request was applied before, and this is its original response.";
    let replayed = is_write.then(|| ("Raft-Replayed".to_owned(), text_header(description, &["true"])));
    shared_headers().into_iter().chain(replayed)
}

const ERROR_STATUSES: &[(u16, &str)] = &[
    (400, "The request is invalid."),
    (401, "The request needs a token, and has none or one that is not valid."),
    (403, "The token does not allow the request, or it comes from a web page that must not use this node."),
    (404, "The key, the member, or the token does not exist."),
    (408, "The body did not arrive in time."),
    (409, "The state of the cluster does not allow it."),
    (410, "The revision is no longer kept, or the node has applied entries after the index."),
    (412, "The condition does not hold."),
    (413, "The request, the key or the value is too large."),
    (415, "The body has a type or an encoding that the route does not decode."),
    (421, "This node is not the leader, and the client does not want the request forwarded."),
    (422, "The `Idempotency-Key` was used for another request."),
    (500, "The node failed to handle the request."),
    (503, "The request was not applied; retrying is safe."),
    (504, "The outcome is unknown; a read changes nothing."),
    (507, "The disk is nearly full, or the quota is used up."),
];

fn error_response(shape: Shape, status: u16) -> Response {
    let description = ERROR_STATUSES.iter().find(|(other, _)| *other == status).map_or("", |(_, text)| text);
    let schema = match shape {
        Shape::V1 => ErrorAnswer::name(),
        Shape::Original => ErrAnswer::name(),
    };
    let examples = examples().into_iter().filter(|error| error.status() == status).map(|error| {
        let body = match shape {
            Shape::V1 => json!(error.to_body()),
            Shape::Original => json!(Err::<(), _>(&error)),
        };
        (error.code().to_owned(), RefOr::T(ExampleBuilder::new().value(Some(body)).build()))
    });
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name(schema)))
        .examples_from_iter(examples.collect::<BTreeMap<_, _>>())
        .build();
    let outcome = text_header("Whether the request was applied.", &["not_applied", "unknown"]);
    let response = ResponseBuilder::new().description(description).content("application/json", content);
    let mut response = response.header("Raft-Outcome", outcome).build();
    if status == 503 {
        let retry_after = "When to retry, in seconds.";
        response.headers.insert("Retry-After".to_owned(), number_header(retry_after));
    }
    if let Shape::V1 = shape {
        response.headers.extend(shared_headers());
        if status == 412 {
            let etag = text_header("The key's revision in quotes, if the key exists.", &[]);
            response.headers.insert("ETag".to_owned(), etag);
        }
    }
    response
}

fn shared_headers() -> [(String, Header); 5] {
    [
        ("Raft-Revision".to_owned(), number_header("The store's revision that the response shows.")),
        ("Raft-Term".to_owned(), number_header("The term of the node that returned the response.")),
        ("Raft-Node".to_owned(), number_header("The id of the node that returned the response.")),
        ("Raft-Cluster".to_owned(), text_header("The id of the node's cluster, if it belongs to one.", &[])),
        (
            "X-Request-Id".to_owned(),
            text_header("The id of the request: the client's, or one that the node made.", &[]),
        ),
    ]
}

fn number_header(description: &str) -> Header {
    let schema = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0));
    HeaderBuilder::new().schema(Object::from(schema)).description(Some(description)).build()
}

fn text_header(description: &str, words: &[&str]) -> Header {
    let schema = ObjectBuilder::new().schema_type(Type::String);
    let schema = if words.is_empty() { schema } else { schema.enum_values(Some(words.iter().copied())) };
    HeaderBuilder::new().schema(Object::from(schema)).description(Some(description)).build()
}

/// An error of each code, as the handlers make them.
fn examples() -> Vec<ApiError> {
    let details = |message| Details::not_applied(message);
    let retry = |message| Retry::soon(message);
    vec![
        parameters::invalid("limit", "must be an integer from 1 to 1000, got `-1`"),
        ApiError::Forbidden(details("pages from the origin \"https://other.example\" must not use this node")),
        ApiError::Unauthorized(details("the request needs a token: Authorization: Bearer <token>")),
        ApiError::NotPermitted(Box::new(NotPermitted {
            message: "the request needs a token with the role `write` for this key".to_owned(),
            needs: Needs { role: TokenRole::Write, key: Some("config/color".to_owned()), prefix: None, range: None },
            outcome: NotApplied::NotApplied,
        })),
        v1::key_not_found(4),
        ApiError::MemberNotFound(details("node 9 is not a member of the cluster")),
        ApiError::TokenNotFound(details("no token has this name")),
        ApiError::RequestTimeout(details("the body did not arrive within 10 seconds")),
        ApiError::Conflict(details("node 2 at 127.0.0.1:21002 already belongs to another cluster")),
        ApiError::NotAllowed(NotAllowed {
            last_log_id: Some(LogId::new(RaftLeaderId::new(1, 1), 1)),
            vote: Vote::new_committed(1, 1),
            message: "this node already belongs to an initialized cluster".to_owned(),
            outcome: NotApplied::NotApplied,
        }),
        ApiError::RevisionGone(RevisionGone {
            message: "changes before revision 12 are no longer kept".to_owned(),
            oldest_revision: 12,
            outcome: NotApplied::NotApplied,
        }),
        ApiError::AppliedPassed(AppliedPassed {
            message: "this node has already applied entry 12345 and no longer has the hash of its state after entry \
                9000"
                .to_owned(),
            applied_index: 12345,
            outcome: NotApplied::NotApplied,
        }),
        ApiError::ConditionFailed(ConditionFailed {
            message: "the condition does not hold: the key is at revision 4".to_owned(),
            current_revision: Some(4),
            outcome: NotApplied::NotApplied,
        }),
        ApiError::too_large("key", KEY_BYTES_MAX_DEFAULT, KEY_BYTES_MAX_DEFAULT + 1),
        ApiError::too_large("value", VALUE_BYTES_MAX_DEFAULT, VALUE_BYTES_MAX_DEFAULT + 1),
        ApiError::UnsupportedMediaType(details("the body is stored unchanged, so it must not be a form")),
        ApiError::ForwardToLeader(LeaderHint {
            leader_id: 1,
            leader_node: ExampleNode { addr: "127.0.0.1:21001".to_owned(), incarnation: 0 },
        }),
        ApiError::IdempotencyKeyReused(details("this Idempotency-Key was used for another request")),
        ApiError::internal("this node failed to handle the request; its log says why"),
        ApiError::NoLeader(retry("no leader is known: an election is in progress")),
        rejections::removed(3, "127.0.0.1:21003"),
        ApiError::Overloaded(retry("this node has reached its limit of writes in progress")),
        ApiError::Recovering(retry("this node has just started")),
        ApiError::Unreachable(retry("cannot reach node 2 at 127.0.0.1:21002: no connection")),
        rejections::stopping(),
        ApiError::DeadlinePassed(Interrupted::unknown(
            "too few nodes confirmed the write in time: read before retrying",
        )),
        ApiError::OutcomeUnknown(Interrupted::unknown("the leader changed during the request: read before retrying")),
        ApiError::DiskSpaceLow(details("the leader's disk is nearly full")),
        ApiError::QuotaExceeded(details("the write would exceed the quota of 1073741824 bytes")),
    ]
}
