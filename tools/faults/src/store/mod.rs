//! The systems that the harness drives: raft-key-value, and etcd as the control.
//!
//! Each does the same few things in its own words, and is held against the same
//! rules. What one cannot do, the lanes for it leave out.

mod etcd;
mod ours;

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use serde::Deserialize;

use crate::history::{Answer, Call, CallResult, Change, FinalState, NodeId, Outcome};
use crate::node::Node;

/// How long a client waits for an answer before it calls the outcome unknown,
/// unless it says otherwise: longer than a node takes to call it so itself.
pub const CLIENT_DEADLINE: Duration = Duration::from_secs(7);

/// How many wrong answers are kept: one is enough.
const WRONG_ANSWERS_MAX: usize = 10;

/// Which system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    Ours,
    Etcd,
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            System::Ours => "raft-key-value",
            System::Etcd => "etcd",
        })
    }
}

/// What one attempt at a call came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub outcome: Outcome,
    /// The answer is that of an earlier attempt with the same key of the request.
    pub replayed: bool,
    /// What else is to be told of it, if it was no success.
    pub reason: String,
    /// The answer is whole, and none that the system gives by its own description.
    pub is_wrong: bool,
}

impl Attempt {
    fn done(revision: u64, result: CallResult) -> Self {
        let outcome = Outcome::Done(Answer { revision, result });
        Attempt { outcome, replayed: false, reason: String::new(), is_wrong: false }
    }

    fn not_applied(reason: String) -> Self {
        Attempt { outcome: Outcome::NotApplied, replayed: false, reason, is_wrong: false }
    }

    /// Nothing is known of what was sent; a read that is lost did nothing.
    fn failed(reads: bool, reason: String) -> Self {
        let outcome = if reads { Outcome::NotApplied } else { Outcome::Unknown };
        Attempt { outcome, replayed: false, reason, is_wrong: false }
    }

    /// The answer is none that there is, so nothing can be taken from it.
    fn wrong(reads: bool, reason: String) -> Self {
        Attempt { is_wrong: true, ..Attempt::failed(reads, reason) }
    }
}

/// How a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    pub leader: Option<NodeId>,
    pub term: u64,
    /// The index of the last entry that it applied.
    pub applied: u64,
    /// The index of the last entry of its log; what it applied, if the system does not say.
    pub last_log: u64,
    pub voters: Vec<NodeId>,
    /// What else raft-key-value says.
    pub raft: Option<RaftState>,
}

/// A node's part in Raft, by its own word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RaftState {
    /// For whom it voted last, or whom it follows, synced.
    pub vote: LeaderId,
    /// The last entry that it has, and knows to be committed.
    pub committed: Option<LogId>,
    /// The last entry that it applied.
    pub applied: Option<LogId>,
    /// The last entry of its newest snapshot.
    pub snapshot: Option<LogId>,
}

/// A leader: its term and its number. In this order leaders take over from one another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct LeaderId {
    pub term: u64,
    pub node_id: NodeId,
}

impl fmt::Display for LeaderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} in term {}", self.node_id, self.term)
    }
}

/// An entry of the log: who proposed it, and its place. Those that are committed are in this order.
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

/// A client's way to a system; clones share their connections.
#[derive(Clone, Debug)]
pub struct Client {
    system: System,
    http: reqwest::Client,
    wrong_answers: Arc<Mutex<Vec<String>>>,
}

impl System {
    /// Adds the program and the flags by which a node is started.
    pub fn add_command(self, command: &mut Command, binary: &Path, node: &Node) {
        match self {
            System::Ours => ours::add_command(command, binary, node),
            System::Etcd => etcd::add_command(command, binary, node),
        }
    }

    pub fn client(self) -> Result<Client> {
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_millis(1000))
            .tcp_nodelay(true)
            .no_proxy()
            .build()?;
        Ok(Client { system: self, http, wrong_answers: Arc::default() })
    }

    /// The store's revision before anything was written.
    pub fn first_revision(self) -> u64 {
        match self {
            System::Ours => 0,
            System::Etcd => 1,
        }
    }

    /// The flags by which every node of a new cluster learns of the others, if it learns it so.
    pub fn cluster_flags(self, peers: &[(NodeId, SocketAddr)]) -> Vec<String> {
        match self {
            System::Ours => Vec::new(), // One of them is told by `form`.
            System::Etcd => etcd::cluster_flags(peers),
        }
    }

    /// Makes the nodes one cluster; they run already, and know nothing.
    pub async fn form(self, client: &Client, nodes: &[Node]) -> Result<()> {
        match self {
            System::Ours => ours::form(&client.http, nodes).await,
            System::Etcd => Ok(()), // They were told by their flags.
        }
    }
}

impl Client {
    /// One attempt at a call. `request_key` makes a write safe to repeat.
    pub async fn call(&self, node: SocketAddr, call: &Call, request_key: Option<&str>, deadline: Duration) -> Attempt {
        let attempt = match self.system {
            System::Ours => ours::call(&self.http, node, call, request_key, deadline).await,
            System::Etcd => etcd::call(&self.http, node, call, deadline).await,
        };
        if attempt.is_wrong {
            let mut wrong_answers = self.wrong_answers.lock().expect("no thread panics with it");
            if wrong_answers.len() < WRONG_ANSWERS_MAX {
                wrong_answers.push(format!("{node} answers {call:?} as nothing should: {}", attempt.reason));
            }
        }
        attempt
    }

    /// The first answers that came whole, and that the system never gives by its own description.
    pub fn wrong_answers(&self) -> Vec<String> {
        self.wrong_answers.lock().expect("no thread panics with it").clone()
    }

    /// How a node is, by its own word; an error if it does not answer.
    pub async fn status(&self, node: SocketAddr) -> Result<NodeStatus> {
        match self.system {
            System::Ours => ours::status(&self.http, node).await,
            System::Etcd => etcd::status(&self.http, node).await,
        }
    }

    /// All that a node holds by itself; an error if it has gone on from that entry, where entries are counted.
    pub async fn final_state(&self, id: NodeId, node: SocketAddr, applied: u64) -> Result<FinalState> {
        match self.system {
            System::Ours => ours::final_state(&self.http, id, node, applied).await,
            System::Etcd => etcd::final_state(&self.http, id, node).await,
        }
    }

    /// Hands each change to `sink` until the stream breaks or ends.
    pub async fn watch(&self, node: SocketAddr, place: &mut WatchPlace, sink: Sink<'_>) -> Result<()> {
        match self.system {
            System::Ours => ours::watch(&self.http, node, place, sink).await,
            System::Etcd => etcd::watch(&self.http, node, place, sink).await,
        }
    }

    pub fn http(&self) -> &reqwest::Client {
        &self.http
    }
}

/// What takes the changes of a watch, each with the place after it.
pub type Sink<'a> = &'a (dyn Fn(&WatchPlace, Change) + Send + Sync);

/// Where a watch has come to, in the words of its system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchPlace {
    /// What to give the node to go on; empty at the beginning.
    pub resume: String,
    /// The last revision that was seen, whole or in part.
    pub revision: u64,
}
