//! The names of the HTTP headers that nodes and clients send, besides the standard ones.
//!
//! The type is actix-web's. reqwest has one of its own, and takes `as_str()`.

use actix_web::http::header::HeaderName;

/// With 401: the random number that a proof for this node must include.
pub static CHALLENGE: HeaderName = HeaderName::from_static("raft-challenge");
/// In a request: the cluster it is meant for. In a response: the cluster of the node.
pub static CLUSTER: HeaderName = HeaderName::from_static("raft-cluster");
/// The ids of an RPC: `<cluster>/<from>/<to>/<incarnation of the receiver>`. Whatever follows another `/` is reserved
/// for later versions.
pub static ENVELOPE: HeaderName = HeaderName::from_static("raft-envelope");
/// `no`: return 421 instead of forwarding the request to the leader.
pub static FORWARD: HeaderName = HeaderName::from_static("raft-forward");
/// The node that forwarded the request.
pub static FORWARDED: HeaderName = HeaderName::from_static("raft-forwarded");
/// The cluster, node and incarnation that a request was forwarded to.
pub static FORWARDED_TO: HeaderName = HeaderName::from_static("raft-forwarded-to");
/// A write with the same value is applied once.
pub static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// The `id` of the last event that the reader of a watch received.
pub static LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// The log time of the sender, in milliseconds. A leader sends it with appends, and a voter that knows it with its
/// vote. Nodes of former versions neither send nor read it.
pub static LOG_TIME: HeaderName = HeaderName::from_static("raft-log-time");
/// The same from a voter that does not know log time, by its wall clock.
pub static LOG_TIME_BY_WALL: HeaderName = HeaderName::from_static("raft-log-time-by-wall");
/// The node that returned the response.
pub static NODE: HeaderName = HeaderName::from_static("raft-node");
/// The outcome of a request that failed: `not_applied` or `unknown`.
pub static OUTCOME: HeaderName = HeaderName::from_static("raft-outcome");
/// In a request of another node: that it has the root token.
pub static PROOF: HeaderName = HeaderName::from_static("raft-proof");
/// `true`: the request was applied before, and this is the response to it.
pub static REPLAYED: HeaderName = HeaderName::from_static("raft-replayed");
/// The id of a request, taken from the client or made by the node. It is in the response, in the request that is
/// forwarded to the leader, and in log messages.
pub static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The trace and the span of the sender, and whether they are recorded, as in W3C Trace Context.
pub static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// The store's revision that the response shows.
pub static REVISION: HeaderName = HeaderName::from_static("raft-revision");
/// In an RPC and its response: a random number of the sending process.
pub static RUN: HeaderName = HeaderName::from_static("raft-run");
/// The index of the last log entry that a downloaded snapshot holds.
pub static SNAPSHOT_INDEX: HeaderName = HeaderName::from_static("raft-snapshot-index");
/// The term in which the response was given.
pub static TERM: HeaderName = HeaderName::from_static("raft-term");
/// `no`: return 503 if there is no leader, instead of waiting for one.
pub static WAIT: HeaderName = HeaderName::from_static("raft-wait");
