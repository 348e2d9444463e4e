//! The parameters and headers that the routes take, as the document of the API
//! says them. They are read by [`parameters`](crate::network::parameters); a test
//! compares the names here with those that the server knows.
//!
//! The bounds are those of a node that was started without flags for its limits.

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{IntoParams, ToSchema};

/// The key in the path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct KeyInPath {
    /// 1 to 1,024 bytes of UTF-8 without NUL, percent-encoded where a URL needs it.
    /// It may hold slashes; no part between them is `.` or `..`.
    #[param(min_length = 1, max_length = 1024, pattern = r"^[^\x00]+$", example = "config/color")]
    pub key: String,
}

/// The member in the path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct MemberInPath {
    /// The node's number.
    #[param(pattern = "^[1-9][0-9]{0,18}$", example = "3")]
    pub id: String,
}

/// Something that is given alone, as `?raw`, or said to be `true` or `false`.
pub struct Flag;

impl utoipa::PartialSchema for Flag {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["", "true", "false"])).into()
    }
}

impl ToSchema for Flag {}

/// How fresh what is read has to be.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum Consistency {
    /// All that was written before the request came.
    Linearizable,
    /// What this node holds, which may be behind.
    Stale,
}

/// How a key is read.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ReadParameters {
    /// Answer with the bytes of the value, and nothing around them.
    #[param(inline)]
    pub raw: Option<Flag>,
    /// `linearizable` if not said. `stale`: what this node holds, which may be behind, and needs no other node.
    #[param(inline)]
    pub consistency: Option<Consistency>,
}

/// The time to live of a put.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PutParameters {
    /// How long the key is to stay: `500ms`, `30s`, `5m`, `12h` or `7d`, from 100 ms to 3,650 days. For ever if not
    /// said, even if the key had a time to live before.
    #[param(pattern = "^0*[1-9][0-9]*(ms|s|m|h|d)$")]
    pub ttl: Option<String>,
}

/// The time to live of a touch.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct TouchParameters {
    /// How long the key is to stay from now on: `500ms`, `30s`, `5m`, `12h` or `7d`, from 100 ms to 3,650 days.
    #[param(pattern = "^0*[1-9][0-9]*(ms|s|m|h|d)$", example = "30s")]
    pub ttl: String,
}

/// What is listed, and how.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListParameters {
    /// Only keys that begin with this.
    #[param(max_length = 1024, example = "config/")]
    pub prefix: Option<String>,
    /// Only this key and those after it.
    #[param(max_length = 1024)]
    pub start: Option<String>,
    /// Only keys before this one.
    #[param(max_length = 1024)]
    pub end: Option<String>,
    /// Only keys after this one, or before it with `reverse`: the `next` of the page before.
    #[param(max_length = 1024)]
    pub start_after: Option<String>,
    /// How many keys the page may have.
    #[param(minimum = 1, maximum = 1000, default = 1000)]
    pub limit: Option<u64>,
    /// Leave the values out.
    #[param(inline)]
    pub keys_only: Option<Flag>,
    /// From the last key to the first.
    #[param(inline)]
    pub reverse: Option<Flag>,
    /// The `revision` of the first page: all pages then show the same state. It is kept for a minute after each page,
    /// on the node that served it.
    pub revision: Option<u64>,
    /// `linearizable` if not said. `stale`: what this node holds, which may be behind, and needs no other node.
    #[param(inline)]
    pub consistency: Option<Consistency>,
}

/// Which keys are deleted: one of the two must be given.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DeletePrefixParameters {
    /// Delete the keys that begin with this, which is not empty.
    #[param(min_length = 1, max_length = 1024, example = "scratch/")]
    pub prefix: Option<String>,
    /// Delete every key.
    #[param(inline)]
    pub all: Option<Flag>,
}

/// What is watched, and from when.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct WatchParameters {
    /// Only keys that begin with this; every key if neither this nor `key` is given.
    #[param(max_length = 1024, example = "config/")]
    pub prefix: Option<String>,
    /// Only this key. Not together with `prefix`.
    #[param(min_length = 1, max_length = 1024)]
    pub key: Option<String>,
    /// The first revision that is wanted; what comes from now on if not said.
    #[param(minimum = 1)]
    pub from: Option<u64>,
    /// Send the current state first, then `synced`, then every change after it. Not together with `from`.
    #[param(inline)]
    pub initial: Option<Flag>,
    /// `linearizable` if not said: the watch knows all that was written before it began, and ends if the node loses its
    /// leader. `stale`: it goes on with what this node learns.
    #[param(inline)]
    pub consistency: Option<Consistency>,
}

/// Which state is meant.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct HashParameters {
    /// The state after this entry of the log, which is waited for up to 5 seconds, by 64 requests a node at most. The state as it is now if
    /// not said.
    pub applied: Option<u64>,
}

/// The headers that a read of one key takes.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct ReadHeaders {
    /// `"7"`: only if the key is at revision 7, otherwise 412. A list of entity tags; judged before `If-None-Match`.
    #[param(
        rename = "If-Match",
        pattern = r#"^(\*|([0-9]{1,19}|(W/)?"[!#-~]*")([ \t]*,[ \t]*([0-9]{1,19}|(W/)?"[!#-~]*"))*)$"#
    )]
    pub if_match: Option<String>,
    /// `"7"`: the client has revision 7 already. While the key is at it, the response is 304 without a body. A list of
    /// entity tags, weak ones too.
    #[param(
        rename = "If-None-Match",
        pattern = r#"^(\*|([0-9]{1,19}|(W/)?"[!#-~]*")([ \t]*,[ \t]*([0-9]{1,19}|(W/)?"[!#-~]*"))*)$"#
    )]
    pub if_none_match: Option<String>,
    /// `no`: answer 421 with the leader's address, instead of asking it.
    #[param(rename = "Raft-Forward")]
    pub raft_forward: Option<String>,
}

/// The conditions of a write: lists of entity tags. A tag names a revision, so `W/"7"` and `"7-gzip"`, which is what
/// proxies make of `"7"`, count as `"7"` in both.
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

/// The headers that every write takes.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct WriteHeaders {
    /// Tells this request from all others, in up to 128 bytes. Sent again with the same one, it is not done again, but
    /// answered as it was the first time.
    #[param(rename = "Idempotency-Key", min_length = 1, max_length = 128)]
    pub idempotency_key: Option<String>,
    /// `no`: answer 421 with the leader's address, instead of passing the request on to it.
    #[param(rename = "Raft-Forward")]
    pub raft_forward: Option<String>,
}

/// The header that every request takes which needs the leader.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct ForwardHeader {
    /// `no`: answer 421 with the leader's address, instead of passing the request on to it.
    #[param(rename = "Raft-Forward")]
    pub raft_forward: Option<String>,
}

/// Where a watch goes on.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct WatchHeaders {
    /// The `id` of the last event that was read; goes before `from` and `initial`. Browsers send it by themselves.
    #[param(rename = "Last-Event-ID", pattern = r"^[0-9]+(\.[0-9]+)?$")]
    pub last_event_id: Option<String>,
    /// `no`: return 503 if no leader is known, instead of waiting for one with the connection open.
    #[param(rename = "Raft-Wait")]
    pub raft_wait: Option<String>,
    /// `no`: answer 421 with the leader's address, instead of asking it.
    #[param(rename = "Raft-Forward")]
    pub raft_forward: Option<String>,
}
