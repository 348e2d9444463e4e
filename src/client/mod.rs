//! A client of a cluster: [`ExampleClient`], its requests, responses and errors.

// This module chooses the node for each request, and has the original's routes. `request` makes one attempt, `retry`
// decides on the next. `kv`, `list`, `txn`, `snapshot` and `watch` are the key-value API; `events` reads a watch;
// `members` and `status` are for operators.

mod error;
pub(crate) mod events;
mod kv;
mod list;
mod members;
mod request;
mod retry;
mod snapshot;
mod status;
mod tokens;
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
pub use self::members::MemberOptions;
use self::request::{Effect, Request};
use self::retry::Retries;
pub use self::snapshot::SnapshotDownload;
pub use self::txn::Txn;
pub use self::watch::{Watch, WatchStream};
pub use crate::access::TokenRole;
use crate::body::NextLeader;
pub use crate::body::{
    AddMember, AddedRole, AuthRequired, ClusterAnswer, ClusterMember, Compare, CreateToken, DeleteAnswer, Encoding,
    ErrorBody, KeyValue, Leader, LeaderTransferred, ListAnswer, ListedToken, Member, MemberChanged, MemberRemoved,
    MemberRole, Needs, PutAnswer, Relation, Removed, ReplaceMember, TokenCreated, TokenList, TokenRevoked, TouchAnswer,
    TxnAnswer, TxnDeleted, TxnKey, TxnOperation, TxnPut, TxnRequest, TxnResult, TxnTouch, WatchEnd, WatchEvent,
};
use crate::config::{FORWARD_DEADLINE, MEMBERS_ANSWER_MAX, MEMBERSHIP_DEADLINE, RETRY_DEADLINE_DEFAULT, check_address};
use crate::connection::{connections, connections_with};
use crate::error::ApiError;
use crate::headers::FORWARD;
use crate::secret::Secret;
use crate::tls::ClientTls;
use crate::types::{ExampleRequest, NodeId, TypeConfig};

/// Most nodes that a request is sent to while each names the next as leader.
pub const HOPS_MAX: usize = 3;

/// A node's id, if it is known, and its address.
type Node = (Option<NodeId>, String);

/// Sends requests to a cluster.
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
/// Every attempt of a write carries the same `Idempotency-Key`, so that a retry after a lost response applies nothing
/// twice.
///
/// A client belongs to the cluster of the first node that responds. It names that cluster in every further request, and
/// nodes of another cluster reject them ([`ClientError::OtherCluster`]).
#[derive(Debug)]
pub struct ExampleClient {
    /// The node that the next request goes to. A lock, so that many tasks can share one client.
    current: Mutex<Node>,
    /// The endpoints. If a node fails, the client turns to the next of them, and after the last to the first.
    nodes: Vec<Node>,
    /// Whether requests say `Raft-Forward: no`, so that a follower names the leader instead of forwarding them. The
    /// client then sends to the leader directly.
    follows_leader: bool,
    http: reqwest::Client,
    /// `http` or `https`.
    scheme: &'static str,
    /// The cluster of the first node that responded.
    cluster: OnceLock<String>,
    deadline: Duration,
    retry_deadline: Duration,
    token: Option<Secret>,
}

impl ExampleClient {
    /// A client that sends requests to one of these nodes (`HOST:PORT`), and to the next one when that fails. Any nodes
    /// of the cluster are suitable. This sends nothing yet.
    ///
    /// # Errors
    ///
    /// [`ClientError::InvalidRequest`] if there are no endpoints, or if one is not `HOST:PORT`.
    pub fn connect(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Result<Self, ClientError> {
        let nodes: Vec<Node> = endpoints.into_iter().map(|endpoint| (None, endpoint.into())).collect();
        let invalid = |reason: String| ClientError::InvalidRequest { reason };
        for (_, addr) in &nodes {
            check_address("the endpoint", addr).map_err(|error| invalid(error.to_string()))?;
        }
        let Some(current) = nodes.first().cloned() else { return Err(invalid("no endpoints are given".to_owned())) };
        Ok(ExampleClient {
            current: Mutex::new(current),
            nodes,
            follows_leader: false,
            http: connections(),
            scheme: "http",
            cluster: OnceLock::new(),
            deadline: FORWARD_DEADLINE,
            retry_deadline: RETRY_DEADLINE_DEFAULT,
            token: None,
        })
    }

    /// A client that first sends to node `leader_id` at `leader_addr` (`HOST:PORT`), and then follows the leader.
    ///
    /// Any node is suitable: a follower names the leader. The client retries nothing unless
    /// [`with_retry_deadline`](Self::with_retry_deadline) is called.
    pub fn new(leader_id: NodeId, leader_addr: String) -> Self {
        let leader = (Some(leader_id), leader_addr);
        ExampleClient {
            current: Mutex::new(leader.clone()),
            nodes: vec![leader],
            follows_leader: true,
            http: connections(),
            scheme: "http",
            cluster: OnceLock::new(),
            deadline: FORWARD_DEADLINE,
            retry_deadline: Duration::ZERO,
            token: None,
        }
    }

    /// Makes the client speak TLS with every node, with these certificates. The nodes must be started with
    /// `--tls-cert`. Call it before the first request.
    pub fn with_tls(mut self, tls: &ClientTls) -> Self {
        self.http = connections_with(tls.config());
        self.scheme = "https";
        self
    }

    /// Sets the deadline of each attempt, 8 s by default. Membership changes have at least 68 s.
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets the time after which no further attempt begins. The default is 10 s with [`connect`](Self::connect) and
    /// zero with [`new`](Self::new). Zero sends each request once; with [`Duration::MAX`] retries never end.
    ///
    /// The client retries reads and writes after 503, after 504, and without a response, at the next node and with
    /// random, growing pauses. It retries membership changes only where repeating them is safe. The nodes remember the
    /// last 250,000 writes, so a retry must not follow more than that many other writes.
    pub fn with_retry_deadline(mut self, deadline: Duration) -> Self {
        self.retry_deadline = deadline;
        self
    }

    /// Sends this token with every request. Any endpoint gets it, so use only endpoints that may have it.
    pub fn with_token(mut self, token: Secret) -> Self {
        self.token = Some(token);
        self
    }

    /// The node that the next request goes to, with its id if that is known, and its address.
    pub fn leader(&self) -> (Option<NodeId>, String) {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    // ---- the original's routes ----

    /// Writes through the leader. Returns once a majority has the write on disk.
    pub async fn write(&self, request: &ExampleRequest) -> Result<ClientWriteResponse<TypeConfig>, ClientError> {
        let write = Request::new(Method::POST, "/write", Effect::Changes, self.deadline);
        let write = &write.json(request)?.once(None)?;
        self.with_retries(|_| self.send_to_leader(write)).await
    }

    /// Reads the state of one node, which may be stale. Returns an empty string if the key does not exist.
    pub async fn read(&self, key: &String) -> Result<String, ClientError> {
        let read = &Request::new(Method::POST, "/read", Effect::ReadsOnly, self.deadline).json(key)?;
        self.with_retries(|_| self.send(read)).await
    }

    /// Reads linearizably. Returns an empty string if the key does not exist.
    pub async fn consistent_read(&self, key: &String) -> Result<String, ClientError> {
        let read = &Request::new(Method::POST, "/consistent_read", Effect::ReadsOnly, self.deadline).json(key)?;
        self.with_retries(|_| self.send_to_leader(read)).await
    }

    // ---- management ----

    /// Founds a cluster of one node, which becomes its leader.
    pub async fn init(&self) -> Result<(), ClientError> {
        let others: [(NodeId, &str); 0] = [];
        self.send(&self.membership_request("/init").json(&others)?).await
    }

    /// Adds a node that receives all data and has no vote. Returns once it has caught up.
    pub async fn add_learner(&self, request: (NodeId, String)) -> Result<ClientWriteResponse<TypeConfig>, ClientError> {
        self.send_to_leader(&self.membership_request("/add-learner").json(&request)?).await
    }

    /// Makes these nodes the voters. Each of them must be a voter or a learner already.
    pub async fn change_membership(
        &self,
        voters: &BTreeSet<NodeId>,
    ) -> Result<ClientWriteResponse<TypeConfig>, ClientError> {
        self.send_to_leader(&self.membership_request("/change-membership").json(voters)?).await
    }

    /// Makes a voter the leader. Returns once it leads; a retry of a transfer that has happened changes nothing.
    pub async fn transfer_leader(&self, id: NodeId) -> Result<LeaderTransferred, ClientError> {
        let deadline = self.deadline.max(MEMBERS_ANSWER_MAX + FORWARD_DEADLINE);
        let request = Request::new(Method::POST, "/v1/cluster/leader", Effect::Changes, deadline);
        let (answer, _) = self.ask(None, &request.json(&NextLeader { id })?).await?;
        Ok(answer)
    }

    /// The metrics of one node: its own state, and its view of the cluster.
    pub async fn metrics(&self) -> Result<RaftMetrics<TypeConfig>, ClientError> {
        let request = &Request::new(Method::GET, "/metrics", Effect::ReadsOnly, self.deadline);
        self.with_retries(|_| self.send(request)).await
    }

    fn membership_request(&self, path: &str) -> Request {
        let deadline = self.deadline.max(MEMBERSHIP_DEADLINE + FORWARD_DEADLINE);
        Request::new(Method::POST, path, Effect::Changes, deadline)
    }

    // ---- the node of each request ----

    /// Makes attempts, each at the current node, until one succeeds or a retry is useless or too late.
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

    /// Sends to the current node. A client that follows the leader sends again to the node that a follower
    /// names; any other client leaves it to the follower to forward the request.
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
                    self.turn_to((Some(hint.leader_id), hint.leader_node.addr.clone()));
                    if hops_left == 0 {
                        return Err(ClientError::TooManyRedirects(hint));
                    }
                }
                // Nothing was sent. The first node may name the new leader.
                Err(ClientError::Unreachable { .. }) if hops_left > 0 && self.leader() != self.nodes[0] => {
                    self.turn_to(self.nodes[0].clone());
                }
                other => return other,
            }
        }
    }

    fn turn_to(&self, node: Node) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = node;
    }

    /// Turns to the next node, unless another task already has.
    fn turn_from(&self, failed_addr: &str) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.1 == failed_addr {
            let position = self.nodes.iter().position(|node| *node == *current);
            let next = position.map_or(0, |position| (position + 1) % self.nodes.len());
            *current = self.nodes[next].clone();
        }
    }

    /// Makes one attempt at the current node, and decodes the response.
    async fn send<Response: DeserializeOwned>(&self, request: &Request) -> Result<Response, ClientError> {
        let (_, addr) = self.leader();
        let mut request = request.clone();
        if self.follows_leader {
            request = request.header(FORWARD.as_str(), "no");
        }
        let answer = self.exchange(&addr, &request).await?;
        let decoded: Result<Response, ApiError> = serde_json::from_slice(&answer.body)
            .map_err(|error| request.lost(&addr, format!("it is invalid: {error}")))?;
        decoded.map_err(|error| ClientError::Api { addr, error })
    }
}
