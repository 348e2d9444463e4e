//! The answers of the routes, as the document of the API says them: the bodies
//! that have no type of their own, the errors with their examples, the headers.

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

use crate::body::ErrorAnswer;
use crate::config::{KEY_BYTES_MAX_DEFAULT, VALUE_BYTES_MAX_DEFAULT};
use crate::error::{
    ApiError, AppliedPassed, ConditionFailed, Details, LeaderHint, NotAllowed, Outcome, Retry, RevisionGone,
};
use crate::network::{forward, parameters, v1};
use crate::types::{ExampleNode, ExampleResponse, LogId, Vote};

/// Bytes, whatever they are.
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

/// The answer of the original's routes to what went well.
#[derive(ToSchema)]
pub struct OkAnswer<T: ToSchema> {
    /// What was asked for.
    #[schema(rename = "Ok")]
    pub ok: T,
}

/// The answer to making a cluster.
#[derive(ToSchema)]
pub struct InitAnswer {
    /// There is nothing to say.
    #[schema(rename = "Ok", value_type = Option<Object>, required = true)]
    pub ok: (),
}

/// The answer of the original's routes to what went wrong.
#[derive(ToSchema)]
pub struct ErrAnswer {
    /// The error by its name, and what is to be said of it.
    #[schema(rename = "Err")]
    pub err: ApiError,
}

/// An entry that was applied.
#[derive(ToSchema)]
pub struct EntryAnswer {
    /// The entry's log id.
    pub log_id: LogIdBody,
    /// What the write did.
    pub data: ExampleResponse,
    /// The membership, if that is what was changed.
    pub membership: Option<MembershipBody>,
}

/// Where an entry stands in the log.
#[derive(ToSchema)]
pub struct LogIdBody {
    /// Who proposed it.
    pub leader_id: LeaderIdBody,
    /// How many entries were before it.
    pub index: u64,
}

/// A leader in its term.
#[derive(ToSchema)]
pub struct LeaderIdBody {
    /// The term.
    pub term: u64,
    /// The node's number.
    pub node_id: u64,
}

/// Who belongs to the cluster.
#[derive(ToSchema)]
pub struct MembershipBody {
    /// The voters; two lists while a change is under way.
    pub configs: Vec<Vec<u64>>,
    /// All members by their number, learners too.
    pub nodes: BTreeMap<String, ExampleNode>,
}

/// What a node knows of itself and of the cluster: openraft's `RaftMetrics`, of which these are the steadiest.
#[derive(ToSchema)]
pub struct MetricsBody {
    /// The node's number.
    pub id: u64,
    /// `Learner`, `Follower`, `Candidate`, `Leader` or `Shutdown`.
    pub state: String,
    /// The term.
    pub current_term: u64,
    /// The number of the node that leads, as far as this one knows.
    pub current_leader: Option<u64>,
    /// The index of the last entry in its log.
    pub last_log_index: Option<u64>,
    /// The last entry that it applied.
    pub last_applied: Option<LogIdBody>,
    /// The last entry that its snapshot covers.
    pub snapshot: Option<LogIdBody>,
}

/// The shapes that errors have.
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
        // Any route may be asked by a web page.
        statuses.iter().chain(&[403]).map(|status| (status.to_string(), reference(status))).collect()
    }
}

/// Names the errors that a kind of route has, for its `responses(…)`.
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
    /// Errors of comparing nodes.
    HashErrors: V1 [400, 408, 410, 503, 504];
    /// Errors of setting a key.
    PutErrors: V1 [400, 408, 412, 413, 415, 421, 422, 503, 504, 507];
    /// Errors of removing a key.
    DeleteErrors: V1 [400, 408, 412, 413, 421, 422, 503, 504, 507];
    /// Errors of renewing the time of a key.
    TouchErrors: V1 [400, 404, 408, 412, 413, 421, 422, 503, 504, 507];
    /// Errors of removing keys by their prefix.
    DeletePrefixErrors: V1 [400, 408, 413, 421, 422, 503, 504, 507];
    /// Errors of a transaction.
    TxnErrors: V1 [400, 408, 413, 415, 421, 422, 503, 504, 507];
    /// Errors of `/write`.
    OriginalWriteErrors: Original [400, 408, 413, 421, 422, 503, 504, 507];
    /// Errors of `/read`.
    OriginalReadErrors: Original [400, 408, 413, 503];
    /// Errors of `/consistent_read`.
    OriginalConsistentReadErrors: Original [400, 408, 413, 421, 503, 504];
    /// Errors of making a cluster.
    InitErrors: Original [400, 408, 409, 413, 503, 504];
    /// Errors of changing who belongs to the cluster.
    MembershipErrors: Original [400, 408, 409, 413, 421, 503, 504];
    /// Errors of changing one member.
    MemberErrors: V1 [400, 404, 408, 409, 421, 503, 504];
}

/// Adds what all routes share: the errors, and the headers of every answer.
pub struct SharedAnswers;

impl Modify for SharedAnswers {
    fn modify(&self, openapi: &mut OpenApi) {
        let components = openapi.components.get_or_insert_default();
        for (path, item) in &mut openapi.paths.paths {
            let is_v1 = path.starts_with("/v1/");
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
    let description = "`true`: the request was done before, and this is the answer it got then.";
    let replayed = is_write.then(|| ("Raft-Replayed".to_owned(), text_header(description, &["true"])));
    shared_headers().into_iter().chain(replayed)
}

const ERROR_STATUSES: &[(u16, &str)] = &[
    (400, "The request is not what the route takes."),
    (403, "The request comes from a web page that may not use this node."),
    (404, "There is no such key, or no such member."),
    (408, "The body did not arrive in time."),
    (409, "The state of the cluster does not allow it."),
    (410, "The revision is no longer kept, or the node has gone on from the index."),
    (412, "The condition does not hold."),
    (413, "Something is too large."),
    (415, "The body is of a type that would be misunderstood."),
    (421, "This node does not lead, and the caller asked not to be passed on."),
    (422, "The `Idempotency-Key` was used for another request."),
    (503, "Nothing was done; trying again is safe."),
    (504, "The outcome is not known; for a read, nothing was changed."),
    (507, "The disk is nearly full."),
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
    let outcome = text_header("What became of the request.", &["not_applied", "unknown"]);
    let response = ResponseBuilder::new().description(description).content("application/json", content);
    let mut response = response.header("Raft-Outcome", outcome).build();
    if status == 503 {
        let retry_after = "When to try again, in seconds.";
        response.headers.insert("Retry-After".to_owned(), number_header(retry_after));
    }
    if let Shape::V1 = shape {
        response.headers.extend(shared_headers());
        if status == 412 {
            let etag = text_header("The key's revision in quotes, if it is there.", &[]);
            response.headers.insert("ETag".to_owned(), etag);
        }
    }
    response
}

fn shared_headers() -> [(String, Header); 4] {
    [
        ("Raft-Revision".to_owned(), number_header("The store's revision that the answer shows.")),
        ("Raft-Term".to_owned(), number_header("The term in which the answer was given.")),
        ("Raft-Node".to_owned(), number_header("The number of the node that answered.")),
        ("Raft-Cluster".to_owned(), text_header("The id of the node's cluster, if it belongs to one.", &[])),
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

/// An error of each code that a client may meet, made as the handlers make them.
fn examples() -> Vec<ApiError> {
    let details = |message| Details::not_applied(message);
    let retry = |message| Retry::soon(message);
    vec![
        parameters::invalid("limit", "is a whole number from 1 to 1000"),
        ApiError::Forbidden(details("pages from the origin \"https://other.example\" may not use this node")),
        v1::key_not_found(4),
        ApiError::MemberNotFound(details("node 9 is not a member of the cluster")),
        ApiError::RequestTimeout(details("the body did not arrive within 10 seconds")),
        ApiError::Conflict(details("node 2 at 127.0.0.1:21002 belongs to a cluster already")),
        ApiError::NotAllowed(NotAllowed {
            last_log_id: Some(LogId::new(RaftLeaderId::new(1, 1), 1)),
            vote: Vote::new_committed(1, 1),
            message: "this node belongs to an initialized cluster already".to_owned(),
            outcome: Outcome::NotApplied,
        }),
        ApiError::RevisionGone(RevisionGone {
            message: "changes before revision 12 are no longer kept".to_owned(),
            oldest_revision: 12,
            outcome: Outcome::NotApplied,
        }),
        ApiError::AppliedPassed(AppliedPassed {
            message: "this node has gone on from entry 9000 to 12345".to_owned(),
            applied_index: 12345,
            outcome: Outcome::NotApplied,
        }),
        ApiError::ConditionFailed(ConditionFailed {
            message: "the condition does not hold: the key is there, at revision 4".to_owned(),
            current_revision: Some(4),
            outcome: Outcome::NotApplied,
        }),
        ApiError::too_large("key", KEY_BYTES_MAX_DEFAULT, KEY_BYTES_MAX_DEFAULT + 1),
        ApiError::too_large("value", VALUE_BYTES_MAX_DEFAULT, VALUE_BYTES_MAX_DEFAULT + 1),
        ApiError::UnsupportedMediaType(details("the body is taken as it is, and no form is unpacked")),
        ApiError::ForwardToLeader(LeaderHint {
            leader_id: 1,
            leader_node: ExampleNode { addr: "127.0.0.1:21001".to_owned(), incarnation: 0 },
        }),
        ApiError::IdempotencyKeyReused(details("this Idempotency-Key was used for a request for something else")),
        ApiError::NoLeader(retry("no leader is known now: an election is under way")),
        forward::removed(3),
        ApiError::Overloaded(retry("as many writes are waiting as this node takes on at once")),
        ApiError::Recovering(retry("this node was started a moment ago")),
        ApiError::Unreachable(retry("node 2 cannot be reached at 127.0.0.1:21002: nothing answers there")),
        forward::stopping(),
        ApiError::DeadlinePassed(Details::unknown("too few nodes confirmed in time: read before trying again")),
        ApiError::OutcomeUnknown(Details::unknown("the leader changed meanwhile: read before trying again")),
        ApiError::DiskSpaceLow(details("the leader's disk is nearly full")),
    ]
}
