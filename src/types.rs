//! The request and response types, and the types that Raft is configured with.
//!
//! Clients send [`ExampleRequest`] and get [`ExampleResponse`], as JSON. The log
//! stores [`Command`], as MessagePack with field names. They are separate so that
//! either can change without the other: logs of old versions must stay readable,
//! and requests of old clients must stay valid.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::body::TxnRequest;
use crate::level::Level;
use crate::operation::{Key, Write, WriteResult};

/// The id of a node, set by `--id`. It is unique among the members of a cluster.
pub type NodeId = u64;

openraft::declare_raft_types!(
    /// The types that Raft works on.
    pub TypeConfig:
        D = Command,
        R = ExampleResponse,
        NodeId = NodeId,
        Node = ExampleNode,
);

/// A leader: its term and its id.
pub type LeaderId = openraft::alias::LeaderIdOf<TypeConfig>;
/// A log id: the leader that proposed the entry (term and node id) and its index.
pub type LogId = openraft::alias::LogIdOf<TypeConfig>;
/// A vote: a term, the node it is for, and whether a quorum granted it.
pub type Vote = openraft::alias::VoteOf<TypeConfig>;
/// A log entry.
pub type Entry = openraft::alias::EntryOf<TypeConfig>;
/// The content of a log entry: nothing, a [`Command`], or a membership.
pub type Payload = openraft::alias::PayloadOf<TypeConfig>;
/// The members of a cluster.
pub type Membership = openraft::Membership<NodeId, ExampleNode>;
/// A membership, and the log id of its entry.
pub type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
/// The meta of a snapshot: the last log id that it covers, and the membership.
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;

/// A change that a client requests, as the body of `POST /write`.
///
/// ```
/// use raft_key_value::ExampleRequest;
///
/// let request = ExampleRequest::Set { key: "foo".into(), value: "bar".into() };
/// let json = serde_json::to_string(&request).unwrap();
/// assert_eq!(json, r#"{"Set":{"key":"foo","value":"bar"}}"#);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(description = "A change that a client requests.")]
pub enum ExampleRequest {
    /// Sets a key to a value, whether or not the key exists.
    Set {
        /// 1 to 1,024 bytes of UTF-8.
        #[schema(min_length = 1, max_length = 1024)]
        key: String,
        /// At most 1 MiB of UTF-8.
        value: String,
    },
    /// Deletes a key, whether or not it exists.
    Delete {
        /// 1 to 1,024 bytes of UTF-8.
        #[schema(min_length = 1, max_length = 1024)]
        key: String,
    },
    /// Compares, and executes one of two lists of operations atomically: the body of `POST /v1/txn`.
    Txn(TxnRequest),
}

/// The response to a write, in `data`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ExampleResponse {
    /// The value that `Set` wrote; null for other writes.
    pub value: Option<String>,
    /// The revision of the store after the write; missing for a membership change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// The result of the write, unless it is a `Set`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<WriteResult>,
    /// Whether the request was executed before, and this is its original result.
    #[serde(default, skip_serializing_if = "is_false")]
    pub replayed: bool,
}

fn is_false(it: &bool) -> bool {
    !*it
}

impl fmt::Display for ExampleResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.revision {
            None => f.write_str("no revision"),
            Some(revision) => write!(f, "revision {revision}"),
        }
    }
}

/// A change as the log stores it.
///
/// **In the log: frozen.** Keys and values are shared, not copied, between the log's
/// cache, the replication to each follower and the state machine.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Sets a key to a value. Only logs of format 1 have it; it is no longer written.
    Set {
        /// The key to create or to change.
        key: Key,
        /// The new value.
        value: Arc<str>,
    },
    /// Any write.
    Write(Write),
}

impl Command {
    /// Approximate bytes of memory of the keys and values.
    pub fn payload_bytes(&self) -> usize {
        match self {
            Command::Set { key, value } => key.len() + value.len(),
            Command::Write(write) => write.operation.payload_bytes(),
        }
    }

    /// The level that a node must support to read this.
    pub fn level(&self) -> Level {
        match self {
            Command::Set { .. } => Level::FIRST,
            Command::Write(write) => write.operation.level(),
        }
    }
}

// Sizes only: openraft prints entries when it traces, and user data must not be logged.
impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::Set { key, value } => {
                write!(f, "set a key of {} bytes to a value of {} bytes", key.len(), value.len())
            }
            Command::Write(write) => write.fmt(f),
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The address and the incarnation of a node, as the membership has them.
///
/// JSON has only the address (`{"addr":"127.0.0.1:21001"}`); the log, snapshots and
/// RPCs have the incarnation too, in types of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq, utoipa::ToSchema)]
#[schema(description = "The address of a node.")]
pub struct ExampleNode {
    /// The address for other nodes, `HOST:PORT`.
    #[schema(example = "127.0.0.1:21001")]
    pub addr: String,
    /// The random number that the node drew when it created its data directory; 0 if unknown. A node that lost its
    /// directory draws another one, and is rejected under its old id: it may have forgotten a vote.
    #[schema(ignore)]
    pub incarnation: u64,
}

impl fmt::Display for ExampleNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.addr)
    }
}

/// A node as JSON shows it.
#[derive(Serialize)]
struct ExampleNodeJson<'a> {
    addr: &'a str,
}

/// A node in the log, in snapshots and in RPCs.
///
/// **On disk: frozen.**
#[derive(Serialize)]
struct ExampleNodeBinary<'a> {
    addr: &'a str,
    incarnation: u64,
}

/// A node in either form. Logs of the first versions have no incarnations either.
#[derive(Deserialize)]
struct ExampleNodeOwned {
    addr: String,
    #[serde(default)]
    incarnation: u64,
}

impl Serialize for ExampleNode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let addr = &self.addr;
        if serializer.is_human_readable() {
            ExampleNodeJson { addr }.serialize(serializer)
        } else {
            ExampleNodeBinary { addr, incarnation: self.incarnation }.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for ExampleNode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ExampleNodeOwned { addr, incarnation } = ExampleNodeOwned::deserialize(deserializer)?;
        Ok(ExampleNode { addr, incarnation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of a node in logs and snapshots are these, and JSON has no incarnation. A node without one is read.
    #[test]
    fn nodes_are_fixed() {
        let node = ExampleNode { addr: "a:1".into(), incarnation: 258 };
        let stored = rmp_serde::to_vec_named(&node).unwrap();
        assert_eq!(stored, b"\x82\xa4addr\xa3a:1\xabincarnation\xcd\x01\x02");
        assert_eq!(rmp_serde::from_slice::<ExampleNode>(&stored).unwrap(), node);
        assert_eq!(serde_json::to_string(&node).unwrap(), r#"{"addr":"a:1"}"#);
        let without = rmp_serde::from_slice::<ExampleNode>(b"\x81\xa4addr\xa3a:1").unwrap();
        assert_eq!(without, ExampleNode { incarnation: 0, ..node });
    }
}
