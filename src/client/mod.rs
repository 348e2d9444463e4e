//! A client of a cluster.
//!
//! | module | question |
//! | --- | --- |
//! | this one | which node is asked, and what of the original's routes |
//! | `request` | how one attempt goes |
//! | `retry` | when there is another, and what is known when there is none |
//! | `kv`, `list`, `txn`, `watch` | what can be asked of the key-value API |
//! | `events` | how a watch is read |
//! | `error` | what went wrong, and what became of the request |

mod error;
pub(crate) mod events;
mod kv;
mod list;
mod request;
mod retry;
mod txn;
mod watch;

use std::collections::BTreeSet;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use openraft::metrics::RaftMetrics;
use openraft::raft::ClientWriteResponse;
use reqwest::Method;
use serde::de::DeserializeOwned;

pub use self::error::ClientError;
pub use self::kv::{KeyWrite, Written};
pub use self::list::List;
use self::request::{Effect, Request};
use self::retry::Retries;
pub use self::txn::Txn;
pub use self::watch::{Watch, WatchStream};
pub use crate::body::{Compare, KeyValue, Relation, TxnOperation, TxnResult, WatchEvent};
use crate::config::{FORWARD_DEADLINE, MEMBERSHIP_DEADLINE, RETRY_DEADLINE_DEFAULT, check_address};
use crate::connection::connections;
use crate::error::ApiError;
use crate::headers::FORWARD;
use crate::types::{ExampleRequest, NodeId, TypeConfig};

/// How many nodes a request is sent to at most, each naming the next as leader.
pub const HOPS_MAX: usize = 3;

/// Talks to a cluster.
///
/// ```no_run
/// # async fn example() -> Result<(), raft_key_value::ClientError> {
/// use raft_key_value::ExampleClient;
///
/// let client = ExampleClient::connect(["127.0.0.1:21001", "127.0.0.1:21002", "127.0.0.1:21003"])?;
/// let put = client.put("config/color", "green").await?;
/// let found = client.get("config/color").await?.expect("it was just put");
/// assert_eq!((found.text(), found.revision), (Some("green"), put.revision));
/// # Ok(())
/// # }
/// ```
///
/// Every write carries an `Idempotency-Key`, the same in all its attempts, so that
/// trying again after a lost answer applies nothing twice.
///
/// A client belongs to the cluster of the first node that answers it. It names that cluster in every
/// further request, and nodes of another cluster reject it ([`ClientError::OtherCluster`]).
#[derive(Debug)]
pub struct ExampleClient {
    /// The node that the next request goes to. A lock, so that one client serves many tasks.
    current: Mutex<(NodeId, String)>,
    /// Whom to turn to when that one is gone: the next of these, and after the last the first.
    nodes: Vec<(NodeId, String)>,
    /// Whether it asks to be told who leads (`Raft-Forward: no`) and goes there
    /// itself, so that its next request takes no detour.
    follows_leader: bool,
    http: reqwest::Client,
    /// The cluster of the first node that answered.
    cluster: OnceLock<String>,
    deadline: Duration,
    retry_deadline: Duration,
}

impl ExampleClient {
    /// A client that turns to one of these nodes (`HOST:PORT`), and to the next
    /// one when that fails. Any nodes of the cluster will do. Nothing is sent yet.
    ///
    /// # Errors
    ///
    /// [`ClientError::InvalidRequest`] if there is none, or one is no `HOST:PORT`.
    pub fn connect(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Result<Self, ClientError> {
        let nodes: Vec<(NodeId, String)> = endpoints.into_iter().map(|endpoint| (0, endpoint.into())).collect();
        let invalid = |reason: String| ClientError::InvalidRequest { reason };
        for (_, addr) in &nodes {
            check_address("the endpoint", addr).map_err(|error| invalid(error.to_string()))?;
        }
        let Some(current) = nodes.first().cloned() else { return Err(invalid("no endpoint is given".to_owned())) };
        Ok(ExampleClient {
            current: Mutex::new(current),
            nodes,
            follows_leader: false,
            http: connections(),
            cluster: OnceLock::new(),
            deadline: FORWARD_DEADLINE,
            retry_deadline: RETRY_DEADLINE_DEFAULT,
        })
    }

    /// A client that first turns to `leader_id` at `leader_addr` (`HOST:PORT`).
    ///
    /// Any node will do: one that does not lead names the one that does. Nothing
    /// is tried again by itself, unless [`with_retry_deadline`](Self::with_retry_deadline) says so.
    pub fn new(leader_id: NodeId, leader_addr: String) -> Self {
        let leader = (leader_id, leader_addr);
        ExampleClient {
            current: Mutex::new(leader.clone()),
            nodes: vec![leader],
            follows_leader: true,
            http: connections(),
            cluster: OnceLock::new(),
            deadline: FORWARD_DEADLINE,
            retry_deadline: Duration::ZERO,
        }
    }

    /// The same client, with another time limit for each request to one node
    /// than 6 s. Changes of the membership have at least 66 s.
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The same client, with another time after which no further attempt begins
    /// than 10 s; zero: each request is sent once; [`Duration::MAX`]: without end.
    ///
    /// Reads and writes are tried again, with growing and random pauses and at the
    /// next node, after 503, 504, and where no answer came; nothing else is, and no
    /// change of the membership. The nodes remember the last 250,000 writes, so a
    /// write that is tried again must not come after that many others.
    pub fn with_retry_deadline(mut self, deadline: Duration) -> Self {
        self.retry_deadline = deadline;
        self
    }

    /// The node that the next request goes to; its number is 0 if it is not known.
    pub fn leader(&self) -> (NodeId, String) {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    // ---- the original's routes ----

    /// Writes, through the leader; returns once a majority has it on disk.
    pub async fn write(&self, request: &ExampleRequest) -> Result<ClientWriteResponse<TypeConfig>, ClientError> {
        let write = Request::new(Method::POST, "/write", Effect::Changes, self.deadline);
        let write = &write.json(request)?.once(None)?;
        self.with_retries(|_| self.send_to_leader(write)).await
    }

    /// Reads what the node itself holds, which may be behind; empty if the key is not there.
    pub async fn read(&self, key: &String) -> Result<String, ClientError> {
        let read = &Request::new(Method::POST, "/read", Effect::ReadsOnly, self.deadline).json(key)?;
        self.with_retries(|_| self.send(read)).await
    }

    /// Reads what was written before, through the leader; empty if the key is not there.
    pub async fn consistent_read(&self, key: &String) -> Result<String, ClientError> {
        let read = &Request::new(Method::POST, "/consistent_read", Effect::ReadsOnly, self.deadline).json(key)?;
        self.with_retries(|_| self.send_to_leader(read)).await
    }

    // ---- management ----

    /// Makes the node a cluster of one, which leads itself.
    pub async fn init(&self) -> Result<(), ClientError> {
        let nobody: [(NodeId, &str); 0] = [];
        self.send(&self.membership_request("/init").json(&nobody)?).await
    }

    /// Takes a node in that gets all data and has no vote; returns once it has the data.
    pub async fn add_learner(&self, request: (NodeId, String)) -> Result<ClientWriteResponse<TypeConfig>, ClientError> {
        self.send_to_leader(&self.membership_request("/add-learner").json(&request)?).await
    }

    /// Makes these nodes the voters. Those that are not there yet must be learners.
    pub async fn change_membership(
        &self,
        voters: &BTreeSet<NodeId>,
    ) -> Result<ClientWriteResponse<TypeConfig>, ClientError> {
        self.send_to_leader(&self.membership_request("/change-membership").json(voters)?).await
    }

    /// What the node that is asked knows of itself and of the cluster.
    pub async fn metrics(&self) -> Result<RaftMetrics<TypeConfig>, ClientError> {
        let request = &Request::new(Method::GET, "/metrics", Effect::ReadsOnly, self.deadline);
        self.with_retries(|_| self.send(request)).await
    }

    fn membership_request(&self, path: &str) -> Request {
        let deadline = self.deadline.max(MEMBERSHIP_DEADLINE + FORWARD_DEADLINE);
        Request::new(Method::POST, path, Effect::Changes, deadline)
    }

    // ---- which node is asked ----

    /// Attempts until one succeeds, or no other is to be made; each at the node that is current then.
    async fn with_retries<T, Attempt>(&self, attempt: impl Fn(String) -> Attempt) -> Result<T, ClientError>
    where
        Attempt: Future<Output = Result<T, ClientError>>,
    {
        let mut retry = Retries::new(self.retry_deadline);
        loop {
            let (_, addr) = self.leader();
            let error = match attempt(addr).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if let Some(addr) = error.addr().filter(|_| error.retry_after().is_some()) {
                self.turn_from(addr);
            }
            retry.pause(error).await?;
        }
    }

    /// Sends to whom the client takes for the leader, and goes on from there; or
    /// to any node, which passes it on.
    async fn send_to_leader<Response: DeserializeOwned>(&self, request: &Request) -> Result<Response, ClientError> {
        if !self.follows_leader {
            return self.send(request).await;
        }
        let mut hops_left = HOPS_MAX;
        loop {
            let result = self.send(request).await;
            hops_left -= 1;
            match result {
                Err(ClientError::Api { error: ApiError::ForwardToLeader(hint), .. }) => {
                    self.turn_to((hint.leader_id, hint.leader_node.addr.clone()));
                    if hops_left == 0 {
                        return Err(ClientError::TooManyRedirects(hint));
                    }
                }
                // Nothing was sent, so the first node may be asked who leads now.
                Err(ClientError::Unreachable { .. }) if hops_left > 0 && self.leader() != self.nodes[0] => {
                    self.turn_to(self.nodes[0].clone());
                }
                other => return other,
            }
        }
    }

    fn turn_to(&self, node: (NodeId, String)) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = node;
    }

    /// Turns to the next node, unless another task has done so meanwhile.
    fn turn_from(&self, failed_addr: &str) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.1 == failed_addr {
            let position = self.nodes.iter().position(|node| *node == *current);
            let next = position.map_or(0, |position| (position + 1) % self.nodes.len());
            *current = self.nodes[next].clone();
        }
    }

    /// Sends to one node, once, and decodes its answer.
    async fn send<Response: DeserializeOwned>(&self, request: &Request) -> Result<Response, ClientError> {
        let (_, addr) = self.leader();
        let mut request = request.clone();
        if self.follows_leader {
            request = request.header(FORWARD.as_str(), "no");
        }
        let answer = self.exchange(&addr, &request).await?;
        let decoded: Result<Response, ApiError> = serde_json::from_slice(&answer.body)
            .map_err(|error| request.lost(&addr, format!("it is not what this client understands: {error}")))?;
        decoded.map_err(|error| ClientError::Api { addr, error })
    }
}
