//! The status of a node: the response of `GET /raft-status`, for other nodes and for `doctor`.
//!
//! Every field may be missing, and unknown ones are ignored, so that nodes of different versions understand each other.

use serde::{Deserialize, Serialize};

use crate::body::MemberRole;

/// A node as it sees itself and its cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// The node's id.
    pub node: u64,
    /// The random number of its data directory.
    pub incarnation: u64,
    /// Its cluster; `None` if it belongs to none.
    pub cluster_id: Option<String>,
    /// The version of the program.
    pub version: Option<String>,
    /// The highest level of formats that it supports.
    pub format_level: Option<u32>,
    /// The level of formats of its state.
    pub state_level: Option<u32>,
    /// The address that it advertises.
    pub address: Option<String>,
    /// Whether it belongs to the membership that it knows, and no other node told it otherwise.
    pub is_member: bool,
    /// The term.
    pub term: u64,
    /// The leader, if the node has one: the node itself only if a majority responds to it, another node only if it
    /// heartbeats.
    pub leader: Option<u64>,
    /// The members that it knows.
    pub members: Vec<KnownMember>,
    /// The last index of its log.
    pub last_log_index: Option<u64>,
    /// The last entry that it has applied.
    pub applied_index: Option<u64>,
    /// The last entry in its newest snapshot.
    pub snapshot_index: Option<u64>,
    /// How long ago that was written.
    pub snapshot_age_ms: Option<u64>,
    /// Bytes of its log and its snapshots.
    pub disk_used_bytes: Option<u64>,
    /// Free bytes of its disk.
    pub disk_free_bytes: Option<u64>,
    /// Below this many free bytes, it rejects writes.
    pub disk_low_bytes: Option<u64>,
    /// Memory of its keys and values, as the quota counts them.
    pub quota_used_bytes: Option<u64>,
    /// Its quota.
    pub quota_bytes: Option<u64>,
    /// How long ago it last rejected a write that would have exceeded the quota; `None` if it has rejected none.
    pub quota_rejected_ms_ago: Option<u64>,
    /// How long writing and syncing the log takes: 99th percentile of the last minute.
    pub fsync_p99_us: Option<u64>,
    /// Interval between a leader's heartbeats.
    pub heartbeat_interval_ms: Option<u64>,
    /// The shortest election timeout.
    pub election_timeout_ms: Option<u64>,
    /// Its wall clock, in milliseconds since 1970.
    pub clock_ms: Option<u64>,
    /// When its TLS certificate expires, in seconds since 1970; `None` without TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_expires_s: Option<i64>,
    /// Why its TLS files on disk are not in use, if they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_files_rejected: Option<String>,
    /// What it knows of the other members if it leads.
    pub followers: Vec<KnownFollower>,
}

/// A member as a node knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KnownMember {
    /// The member's id.
    pub id: u64,
    /// `Leader` is never used here.
    pub role: MemberRole,
    /// Its address for other nodes.
    pub address: String,
    /// The random number of its data directory; 0 if unknown.
    #[serde(default)]
    pub incarnation: u64,
}

/// Another member as its leader knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct KnownFollower {
    /// The member's id.
    pub id: u64,
    /// How many entries of the leader's log it lacks; `None` if it has not acknowledged any to this leader.
    pub lag_entries: Option<u64>,
    /// How old the oldest of these is, at least.
    pub lag_ms: Option<u64>,
    /// How long ago the last request was sent to which it responded; `None` if it has not responded to this leader.
    pub silent_ms: Option<u64>,
}

impl NodeStatus {
    /// Whether the node leads.
    pub fn leads(&self) -> bool {
        self.leader == Some(self.node)
    }

    /// A member that this node knows.
    pub fn member(&self, id: u64) -> Option<&KnownMember> {
        self.members.iter().find(|member| member.id == id)
    }

    /// What this node, as leader, knows of another member.
    pub fn follower(&self, id: u64) -> Option<&KnownFollower> {
        self.followers.iter().find(|follower| follower.id == id)
    }
}
