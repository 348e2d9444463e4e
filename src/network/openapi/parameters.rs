//! Parameters and headers of the routes, for the document of the API. [`parameters`](crate::network::parameters) reads
//! them; a test compares the names here with those that the server knows.
//!
//! The bounds are the defaults of the limits.

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{IntoParams, ToSchema};

/// The key in the path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct KeyInPath {
    /// 1 to 1,024 bytes of UTF-8 without NUL, percent-encoded where a URL requires it. It may contain slashes; no part
    /// between them may be `.` or `..`.
    #[param(min_length = 1, max_length = 1024, pattern = r"^[^\x00]+$", example = "config/color")]
    pub key: String,
}

/// The member in the path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct MemberInPath {
    /// The node's id.
    #[param(pattern = "^[1-9][0-9]{0,18}$", example = "3")]
    pub id: String,
}

/// The token in the path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct TokenInPath {
    /// The name of the token.
    #[param(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9._-]+$", example = "app")]
    pub name: String,
}

/// Parameters of a membership change.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct MemberParameters {
    /// Return what would happen, and change nothing.
    #[param(inline)]
    pub dry_run: Option<Flag>,
    /// Make the change in spite of its risk: that no majority responds or is caught up afterwards, so that no write
    /// succeeds until enough nodes are back, or that no further node may fail.
    #[param(inline)]
    pub force: Option<Flag>,
}

/// A flag: given alone, as in `?raw`, or as `true` or `false`.
pub struct Flag;

impl utoipa::PartialSchema for Flag {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["", "true", "false"])).into()
    }
}

impl ToSchema for Flag {}

/// The consistency of a read.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum Consistency {
    /// The read includes every write that was acknowledged before the request.
    Linearizable,
    /// The read returns this node's own state, which may be stale.
    Stale,
}

/// Parameters of reading a key.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ReadParameters {
    /// Return only the bytes of the value.
    #[param(inline)]
    pub raw: Option<Flag>,
    /// `linearizable` (the default), or `stale`: this node's own state, which may be stale.
    #[param(inline)]
    pub consistency: Option<Consistency>,
}

/// Parameters of a put.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PutParameters {
    /// TTL of the key: `500ms`, `30s`, `5m`, `12h` or `7d`, from 100 ms to 3,650 days. A put without `ttl` makes the
    /// key permanent.
    #[param(pattern = "^0*[1-9][0-9]*(ms|s|m|h|d)$")]
    pub ttl: Option<String>,
}

/// Parameters of a touch.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct TouchParameters {
    /// New TTL of the key: `500ms`, `30s`, `5m`, `12h` or `7d`, from 100 ms to 3,650 days.
    #[param(pattern = "^0*[1-9][0-9]*(ms|s|m|h|d)$", example = "30s")]
    pub ttl: String,
}

/// Parameters of listing keys.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListParameters {
    /// Only keys with this prefix.
    #[param(max_length = 1024, example = "config/")]
    pub prefix: Option<String>,
    /// Only this key and those after it.
    #[param(max_length = 1024)]
    pub start: Option<String>,
    /// Only keys before this one.
    #[param(max_length = 1024)]
    pub end: Option<String>,
    /// Only keys after this one, or before it with `reverse`: the `next` of the previous page.
    #[param(max_length = 1024)]
    pub start_after: Option<String>,
    /// The maximum number of keys on the page.
    #[param(minimum = 1, maximum = 1000, default = 1000)]
    pub limit: Option<u64>,
    /// Omit the values.
    #[param(inline)]
    pub keys_only: Option<Flag>,
    /// List from the last key to the first.
    #[param(inline)]
    pub reverse: Option<Flag>,
    /// The `revision` of the first page, so that all pages show the same state. The node that served a page keeps its
    /// state for a minute.
    pub revision: Option<u64>,
    /// `linearizable` (the default), or `stale`: this node's own state, which may be stale.
    #[param(inline)]
    pub consistency: Option<Consistency>,
}

/// Parameters of deleting keys: exactly one of the two.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DeletePrefixParameters {
    /// Delete the keys with this prefix, which must not be empty.
    #[param(min_length = 1, max_length = 1024, example = "scratch/")]
    pub prefix: Option<String>,
    /// Delete every key.
    #[param(inline)]
    pub all: Option<Flag>,
}

/// Parameters of a watch.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct WatchParameters {
    /// Only keys with this prefix. Without `prefix` and `key`, the watch covers all keys.
    #[param(max_length = 1024, example = "config/")]
    pub prefix: Option<String>,
    /// Only this key. Must not be given together with `prefix`.
    #[param(min_length = 1, max_length = 1024)]
    pub key: Option<String>,
    /// The first revision of the watch. Without it, the watch begins with the next change.
    #[param(minimum = 1)]
    pub from: Option<u64>,
    /// Send the current state first, then `synced`, then every later change. Must not be given together with `from`.
    #[param(inline)]
    pub initial: Option<Flag>,
    /// `linearizable` (the default): the watch includes every write that was acknowledged before it began, and ends if
    /// the node loses its leader. `stale`: the watch continues with the changes that reach this node.
    #[param(inline)]
    pub consistency: Option<Consistency>,
}

/// Parameters of a node's hash.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct HashParameters {
    /// The index of the last entry in the state. The node waits for it for up to 5 seconds; at most 64 requests may
    /// wait on a node. Without it, the response is for the current state.
    pub applied: Option<u64>,
}

/// Header of the metrics.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct AcceptHeader {
    /// `text/plain` or `application/openmetrics-text`: the text format of Prometheus, or OpenMetrics, instead of JSON.
    #[param(rename = "Accept")]
    pub accept: Option<String>,
}

/// Parameters of a probe.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ProbeParameters {
    /// Return one line for each check, not only for those that failed.
    #[param(inline)]
    pub verbose: Option<Flag>,
}

/// Parameters of downloading a snapshot.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct SnapshotParameters {
    /// `linearizable` (the default): the snapshot holds every write that was acknowledged before the request. `stale`:
    /// it holds this node's own state, which may be stale; no leader is needed.
    #[param(inline)]
    pub consistency: Option<Consistency>,
}

/// Headers of reading a key.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct ReadHeaders {
    /// `"7"`: only if the key is at revision 7, otherwise 412. A list of entity tags, which is evaluated before
    /// `If-None-Match`.
    #[param(
        rename = "If-Match",
        pattern = r#"^(\*|([0-9]{1,19}|(W/)?"[!#-~]*")([ \t]*,[ \t]*([0-9]{1,19}|(W/)?"[!#-~]*"))*)$"#
    )]
    pub if_match: Option<String>,
    /// `"7"`: the client has revision 7. If the key is still at it, the response is 304 without a body. A list of
    /// entity tags; weak tags match, too.
    #[param(
        rename = "If-None-Match",
        pattern = r#"^(\*|([0-9]{1,19}|(W/)?"[!#-~]*")([ \t]*,[ \t]*([0-9]{1,19}|(W/)?"[!#-~]*"))*)$"#
    )]
    pub if_none_match: Option<String>,
    /// `no`: return 421 with the leader's address, instead of asking the leader for the read index.
    #[param(rename = "Raft-Forward")]
    pub raft_forward: Option<String>,
}

/// Conditions of a write: lists of entity tags. A tag names a revision. Proxies turn `"7"` into `W/"7"` or `"7-gzip"`,
/// which both count as `"7"`.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct ConditionHeaders {
    /// `"7"`: only if the key is at revision 7. `"7", "9"`: only if it is at one of these. `*`: only if it exists.
    #[param(
        rename = "If-Match",
        pattern = r#"^(\*|([0-9]{1,19}|(W/)?"[!#-~]*")([ \t]*,[ \t]*([0-9]{1,19}|(W/)?"[!#-~]*"))*)$"#
    )]
    pub if_match: Option<String>,
    /// `*`: only if the key does not exist. `"7"`: only if it is not at revision 7.
    #[param(
        rename = "If-None-Match",
        pattern = r#"^(\*|([0-9]{1,19}|(W/)?"[!#-~]*")([ \t]*,[ \t]*([0-9]{1,19}|(W/)?"[!#-~]*"))*)$"#
    )]
    pub if_none_match: Option<String>,
}

/// Headers of a write.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct WriteHeaders {
    /// Identifies the request, in up to 128 bytes. A repeated request with the same key is not applied again, and gets
    /// the first response.
    #[param(rename = "Idempotency-Key", min_length = 1, max_length = 128)]
    pub idempotency_key: Option<String>,
    /// `no`: return 421 with the leader's address, instead of forwarding the request to the leader.
    #[param(rename = "Raft-Forward")]
    pub raft_forward: Option<String>,
}

/// The header of all requests that need the leader.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct ForwardHeader {
    /// `no`: return 421 with the leader's address, instead of forwarding the request to the leader.
    #[param(rename = "Raft-Forward")]
    pub raft_forward: Option<String>,
}

/// Headers of a watch.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct WatchHeaders {
    /// The `id` of the last event that was read. Takes precedence over `from` and `initial`. Browsers send it by
    /// themselves.
    #[param(rename = "Last-Event-ID", pattern = r"^[0-9]+(\.[0-9]+)?$")]
    pub last_event_id: Option<String>,
    /// `no`: return 503 if no leader is known, instead of waiting for one with the connection open.
    #[param(rename = "Raft-Wait")]
    pub raft_wait: Option<String>,
    /// `no`: return 421 with the leader's address, instead of asking the leader for the read index.
    #[param(rename = "Raft-Forward")]
    pub raft_forward: Option<String>,
}
