//! The systems under test: raft-key-value, and etcd as the control.
//!
//! Both implement the same operations and are judged by the same rules. Lanes for one system leave out what
//! it does not support.

mod etcd;
mod ours;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use harness::http;
pub use harness::node::{LeaderId, LogId};
use harness::tls::TlsConnector;

use crate::history::{Answer, Call, CallResult, Change, FinalState, NodeId, Outcome};
use crate::node::Node;

/// How long a client waits by default before the outcome is unknown: longer than a node's own deadline.
pub const CLIENT_DEADLINE: Duration = Duration::from_secs(7);

/// How long a client waits for a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(1);

/// A watch is given up after this time without data. raft-key-value sends heartbeats every 10 seconds. etcd
/// sends none, but the load is never quiet for that long.
const WATCH_SILENCE_MAX: Duration = Duration::from_secs(15);

/// Maximum number of invalid responses that are kept; one is enough.
const WRONG_ANSWERS_MAX: usize = 10;

/// A system under test.
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

/// The result of one attempt at a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub outcome: Outcome,
    /// The response is that of an earlier attempt with the same idempotency key.
    pub replayed: bool,
    /// Details of a failure.
    pub reason: String,
    /// The response is complete, but the system's API does not permit it.
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

    /// The outcome is unknown; a read without a response had no effect.
    fn failed(reads: bool, reason: String) -> Self {
        let outcome = if reads { Outcome::NotApplied } else { Outcome::Unknown };
        Attempt { outcome, replayed: false, reason, is_wrong: false }
    }

    /// The outcome of a request without a response.
    fn of_error(reads: bool, error: &http::Error) -> Self {
        match error {
            http::Error::Connect { .. } => Attempt::not_applied(error.to_string()),
            _ => Attempt::failed(reads, error.to_string()),
        }
    }

    /// The API does not permit the response, so it carries no information.
    fn wrong(reads: bool, reason: String) -> Self {
        Attempt { is_wrong: true, ..Attempt::failed(reads, reason) }
    }
}

/// The status of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    pub leader: Option<NodeId>,
    pub term: u64,
    /// The index of the last applied entry.
    pub applied: u64,
    /// The index of the last entry in the log; that of the last applied entry if the system does not report
    /// it.
    pub last_log: u64,
    pub voters: Vec<NodeId>,
    /// The members' addresses, if the system reports them.
    pub addresses: BTreeMap<NodeId, String>,
    /// Additional state that raft-key-value reports.
    pub raft: Option<RaftState>,
}

/// A node's Raft state, as it reports it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RaftState {
    /// The synced vote: the candidate or leader that the node voted for last.
    pub vote: LeaderId,
    /// The last entry that it has and knows to be committed.
    pub committed: Option<LogId>,
    /// The last applied entry.
    pub applied: Option<LogId>,
    /// The last entry in its newest snapshot.
    pub snapshot: Option<LogId>,
}

/// A client of a system; clones share their connections.
#[derive(Clone, Debug)]
pub struct Client {
    system: System,
    http: http::Client,
    wrong_answers: Arc<Mutex<Vec<String>>>,
}

impl System {
    /// Adds the program and the flags that start a node.
    pub fn add_command(self, command: &mut Command, binary: &Path, node: &Node) {
        match self {
            System::Ours => ours::add_command(command, binary, node),
            System::Etcd => etcd::add_command(command, binary, node),
        }
    }

    pub fn client(self) -> Client {
        Client { system: self, http: http::Client::new(None, CONNECT_DEADLINE), wrong_answers: Arc::default() }
    }

    /// The store's revision before the first write.
    pub fn first_revision(self) -> u64 {
        match self {
            System::Ours => 0,
            System::Etcd => 1,
        }
    }

    /// The flags by which every node of a new cluster knows the others, if the system uses flags.
    pub fn cluster_flags(self, peers: &[(NodeId, SocketAddr)]) -> Vec<String> {
        match self {
            System::Ours => Vec::new(), // `form` tells one of the nodes.
            System::Etcd => harness::etcd::cluster_arguments(peers.iter().map(|(id, peer)| (id.to_string(), *peer))),
        }
    }

    /// Makes the running nodes one cluster.
    pub async fn form(self, client: &Client, nodes: &[Node]) -> Result<()> {
        match self {
            System::Ours => ours::form(&client.http, nodes).await,
            System::Etcd => Ok(()), // The nodes know each other by their flags.
        }
    }
}

impl Client {
    /// The same client with encrypted connections.
    pub fn with_tls(self, connector: TlsConnector) -> Self {
        Client { http: self.http.with_tls(connector), ..self }
    }

    /// The same client, which sends a token with each request.
    pub fn with_token(self, token: &str) -> Self {
        Client { http: self.http.with_token(token), ..self }
    }

    /// Makes one attempt at a call. `request_key` makes a write safe to retry.
    pub async fn call(&self, node: SocketAddr, call: &Call, request_key: Option<&str>, deadline: Duration) -> Attempt {
        let attempt = match self.system {
            System::Ours => ours::call(&self.http, node, call, request_key, deadline).await,
            System::Etcd => etcd::call(&self.http, node, call, deadline).await,
        };
        if attempt.is_wrong {
            let mut wrong_answers = self.wrong_answers.lock().expect("no thread panics while holding the lock");
            if wrong_answers.len() < WRONG_ANSWERS_MAX {
                wrong_answers.push(format!("{node} returns an invalid response to {call:?}: {}", attempt.reason));
            }
        }
        attempt
    }

    /// The first complete responses that the API does not permit.
    pub fn wrong_answers(&self) -> Vec<String> {
        self.wrong_answers.lock().expect("no thread panics while holding the lock").clone()
    }

    /// The status that a node reports; an error if it does not respond.
    pub async fn status(&self, node: SocketAddr) -> Result<NodeStatus> {
        match self.system {
            System::Ours => ours::status(&self.http, node).await,
            System::Etcd => etcd::status(&self.http, node).await,
        }
    }

    /// The node's local state; an error if it has applied an entry after `applied`, where entries are
    /// counted.
    pub async fn final_state(&self, id: NodeId, node: SocketAddr, applied: u64) -> Result<FinalState> {
        match self.system {
            System::Ours => ours::final_state(&self.http, id, node, applied).await,
            System::Etcd => etcd::final_state(&self.http, id, node).await,
        }
    }

    /// Passes each change to `sink` until the stream breaks or ends.
    pub async fn watch(&self, node: SocketAddr, place: &mut WatchPlace, sink: Sink<'_>) -> Result<()> {
        match self.system {
            System::Ours => ours::watch(&self.http, node, place, sink).await,
            System::Etcd => etcd::watch(&self.http, node, place, sink).await,
        }
    }

    pub fn http(&self) -> &http::Client {
        &self.http
    }
}

/// The stream of a watch, in parts that end with the same bytes.
struct WatchStream {
    body: http::Incoming,
    end: &'static [u8],
    unread: Vec<u8>,
    /// Where the search for the end of a part resumes: a long part arrives in many pieces.
    searched: usize,
}

impl WatchStream {
    async fn open(
        http: &http::Client,
        node: SocketAddr,
        request: http::Request,
        end: &'static [u8],
    ) -> Result<WatchStream> {
        let opened = tokio::time::timeout(CLIENT_DEADLINE, http.open(node, request));
        let answer = opened.await.context("no response in time")??;
        if !answer.status().is_success() {
            bail!("the node rejected the watch with {}", answer.status());
        }
        Ok(WatchStream { body: answer.into_body(), end, unread: Vec::new(), searched: 0 })
    }

    /// The next part; `None` at the end of the stream, where an incomplete part is discarded.
    async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            if let Some(at) = self.unread[self.searched..].windows(self.end.len()).position(|bytes| bytes == self.end) {
                let part = self.unread.drain(..self.searched + at + self.end.len()).collect();
                self.searched = 0;
                return Ok(Some(part));
            }
            self.searched = self.unread.len().saturating_sub(self.end.len() - 1);
            let chunk = tokio::time::timeout(WATCH_SILENCE_MAX, http::next_chunk(&mut self.body));
            match chunk.await.context("no data from the watch in time")?? {
                Some(chunk) => self.unread.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
    }
}

/// Receives the changes of a watch, each with the place after it.
pub type Sink<'a> = &'a (dyn Fn(&WatchPlace, Change) + Send + Sync);

/// The progress of a watch, in the terms of its system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchPlace {
    /// Token to resume the watch; empty at the beginning.
    pub resume: String,
    /// The last revision that was seen, completely or partially.
    pub revision: u64,
}
