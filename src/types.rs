//! The request and response types, and what Raft is configured with.
//!
//! [`ExampleRequest`] and [`ExampleResponse`] are what clients send and get, as
//! JSON. [`Command`] is what the log holds, as MessagePack with field names. The
//! two are apart so that either can grow without the other: a log written by an
//! old version must stay readable, and a client's body must stay valid.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::body::TxnRequest;
use crate::operation::{Key, Write, WriteResult};

/// A node's number, chosen by whoever starts it. No other node of the cluster can
/// have it for as long as it is a member.
pub type NodeId = u64;

openraft::declare_raft_types!(
    /// The types that Raft works on.
    pub TypeConfig:
        D = Command,
        R = ExampleResponse,
        NodeId = NodeId,
        Node = ExampleNode,
);

/// A leader: its term and its number.
pub type LeaderId = openraft::alias::LeaderIdOf<TypeConfig>;
/// A log id: the leader that proposed the entry (term and node id) and its index.
pub type LogId = openraft::alias::LogIdOf<TypeConfig>;
/// A vote: a term, the node it is for, and whether a quorum granted it.
pub type Vote = openraft::alias::VoteOf<TypeConfig>;
/// A log entry.
pub type Entry = openraft::alias::EntryOf<TypeConfig>;
/// What a log entry carries: nothing, a [`Command`], or a membership.
pub type Payload = openraft::alias::PayloadOf<TypeConfig>;
/// A membership together with the log id it was proposed at.
pub type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
/// What identifies a snapshot: the last log id it covers, and its membership.
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;

/// A change that a client asks for, as the body of `POST /write`.
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
#[schema(description = "A change that a client asks for.")]
pub enum ExampleRequest {
    /// Sets a key to a value, whether or not the key is there.
    Set {
        /// 1 to 1,024 bytes of UTF-8.
        #[schema(min_length = 1, max_length = 1024)]
        key: String,
        /// At most 1 MiB of UTF-8.
        value: String,
    },
    /// Removes a key, whether or not it is there.
    Delete {
        /// 1 to 1,024 bytes of UTF-8.
        #[schema(min_length = 1, max_length = 1024)]
        key: String,
    },
    /// Compares, and does one or the other, all or nothing: the body of `POST /v1/txn`.
    Txn(TxnRequest),
}

/// What a write answers with, in `data`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ExampleResponse {
    /// The value that was written by `Set`, else `None`.
    pub value: Option<String>,
    /// The store's revision after the write; `None` for a change of the membership.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// What became of the write, other than a `Set`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<WriteResult>,
    /// Whether the request was done before, and this is what became of it then.
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

/// A change as the log holds it.
///
/// Keys and values are shared, not copied, between the log's cache, the
/// replication to each follower and the state machine.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Sets a key to a value: how version 0.1 of the log had it. Only read.
    Set {
        /// The key.
        key: Key,
        /// The value.
        value: Arc<str>,
    },
    /// Any write.
    Write(Write),
}

impl Command {
    /// About how many bytes of memory the keys and values take.
    pub fn payload_bytes(&self) -> usize {
        match self {
            Command::Set { key, value } => key.len() + value.len(),
            Command::Write(write) => write.operation.payload_bytes(),
        }
    }
}

// Sizes only: openraft prints entries when it traces, and data must not be logged.
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

/// Where a node is and which life of it is meant, as the membership holds it.
///
/// In JSON only the address shows (`{"addr":"127.0.0.1:21001"}`); the log, the
/// snapshots and the RPCs carry the incarnation too.
#[derive(Clone, Debug, Default, PartialEq, Eq, utoipa::ToSchema)]
#[schema(description = "Where a node is.")]
pub struct ExampleNode {
    /// What other nodes dial, `HOST:PORT`.
    #[schema(example = "127.0.0.1:21001")]
    pub addr: String,
    /// The random number the node drew when its data directory was made. A node
    /// that comes back with an empty directory has another one, and is refused:
    /// it may have forgotten a vote it gave. 0: not known.
    #[schema(ignore)]
    pub incarnation: u64,
}

impl fmt::Display for ExampleNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.addr)
    }
}

#[derive(Serialize)]
struct ExampleNodeJson<'a> {
    addr: &'a str,
}

#[derive(Serialize)]
struct ExampleNodeBinary<'a> {
    addr: &'a str,
    incarnation: u64,
}

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
