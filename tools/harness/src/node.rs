//! Nodes of raft-key-value.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use serde::Deserialize;

use crate::process::remove_variables;

/// Adds the flags of a node, without settings from the environment.
pub fn add_arguments(command: &mut Command, id: u64, http: SocketAddr, data_directory: &Path) {
    remove_variables(command, "RKV_");
    command.args(["--id", &id.to_string(), "--http-addr", &http.to_string()]);
    command.arg("--data-dir").arg(data_directory);
    if !http.ip().is_loopback() {
        // A variable, since former versions have no such flag.
        command.env("RKV_INSECURE", "true");
    }
}

/// The `Ok` field of the responses to management requests, `/metrics` and the original routes.
#[derive(Debug, Deserialize)]
pub struct Envelope<T> {
    #[serde(rename = "Ok")]
    pub ok: T,
}

/// A leader: its term and its id. Leaders take over from one another in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct LeaderId {
    pub term: u64,
    pub node_id: u64,
}

impl fmt::Display for LeaderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} in term {}", self.node_id, self.term)
    }
}

/// A log entry: its proposer and its index. Committed entries are in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct LogId {
    pub leader_id: LeaderId,
    pub index: u64,
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "entry {} of {}", self.index, self.leader_id)
    }
}

/// The part of `GET /metrics` that the tools use.
#[derive(Debug, Deserialize)]
pub struct Metrics {
    pub current_term: u64,
    pub current_leader: Option<u64>,
    pub vote: Vote,
    pub local_committed: Option<LogId>,
    pub last_applied: Option<LogId>,
    pub last_log_index: Option<u64>,
    pub snapshot: Option<LogId>,
    membership_config: StoredMembership,
}

#[derive(Debug, Deserialize)]
pub struct Vote {
    pub leader_id: LeaderId,
}

#[derive(Debug, Deserialize)]
struct StoredMembership {
    membership: Membership,
}

#[derive(Debug, Deserialize)]
struct Membership {
    configs: Vec<Vec<u64>>,
    nodes: BTreeMap<u64, Member>,
}

#[derive(Debug, Deserialize)]
struct Member {
    addr: String,
}

impl Metrics {
    /// The sets of voters: two during a membership change, otherwise one.
    pub fn configs(&self) -> &[Vec<u64>] {
        &self.membership_config.membership.configs
    }

    /// The address of each member.
    pub fn addresses(&self) -> BTreeMap<u64, String> {
        let nodes = self.membership_config.membership.nodes.iter();
        nodes.map(|(id, member)| (*id, member.addr.clone())).collect()
    }
}
