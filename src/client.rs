//! A client that tracks the leader.
//!
//! It asks to be told where the leader is (`Raft-Forward: no`) and goes there
//! itself, so that its next request takes no detour.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use openraft::metrics::RaftMetrics;
use openraft::raft::ClientWriteResponse;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::{FORWARD_DEADLINE, MEMBERSHIP_DEADLINE};
use crate::connection::{connections, reason_of};
use crate::error::{ApiError, LeaderHint, Outcome};
use crate::types::{ExampleRequest, NodeId, TypeConfig};

/// How many nodes a request is sent to at most, each naming the next as leader.
pub const HOPS_MAX: usize = 3;

/// Talks to a cluster through the node it believes to be the leader.
///
/// ```no_run
/// # async fn example() -> Result<(), raft_key_value::ClientError> {
/// use raft_key_value::{ExampleClient, ExampleRequest};
///
/// let client = ExampleClient::new(1, "127.0.0.1:21001".to_string());
/// client.write(&ExampleRequest::Set { key: "foo".into(), value: "bar".into() }).await?;
/// assert_eq!(client.consistent_read(&"foo".to_string()).await?, "bar");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ExampleClient {
    /// The leader as it was last heard of. A lock, so that one client serves many tasks.
    leader: Mutex<(NodeId, String)>,
    /// Whom to turn to when that one is gone.
    first: (NodeId, String),
    http: reqwest::Client,
    deadline: Duration,
}

/// Why a request failed, and what became of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// A node answered with an error.
    #[error("node at {addr} answered {}: {error}", .error.status())]
    Api {
        /// The node that answered.
        addr: String,
        /// Its answer.
        error: ApiError,
    },
    /// No connection came about, so the request was never sent.
    #[error("cannot connect to {addr}: {reason}")]
    Unreachable {
        /// The node.
        addr: String,
        /// Why.
        reason: String,
    },
    /// The request was sent, and its answer was lost, late, or not understood.
    #[error("the answer of {addr} was lost, and the request may have been applied: {reason}")]
    AnswerLost {
        /// The node.
        addr: String,
        /// Why.
        reason: String,
        /// `unknown` for what would change something, else `not_applied`.
        outcome: Outcome,
    },
    /// Each node named another one as leader: an election is under way.
    #[error("no leader was found in {HOPS_MAX} steps; the last node named node {} at {}", .0.leader_id, .0.leader_node)]
    TooManyRedirects(LeaderHint),
}

impl ClientError {
    /// What became of the request. After `NotApplied`, trying again is safe.
    pub fn outcome(&self) -> Outcome {
        match self {
            ClientError::Api { error, .. } => error.outcome(),
            ClientError::AnswerLost { outcome, .. } => *outcome,
            ClientError::Unreachable { .. } | ClientError::TooManyRedirects(_) => Outcome::NotApplied,
        }
    }

    /// Who leads, if the error says so.
    pub fn forward_to_leader(&self) -> Option<&LeaderHint> {
        match self {
            ClientError::Api { error: ApiError::ForwardToLeader(hint), .. } | ClientError::TooManyRedirects(hint) => {
                Some(hint)
            }
            _ => None,
        }
    }
}

/// Whether losing the answer leaves a doubt.
#[derive(Clone, Copy)]
enum Effect {
    Changes,
    ReadsOnly,
}

impl ExampleClient {
    /// A client that first turns to `leader_id` at `leader_addr` (`HOST:PORT`).
    ///
    /// Any node will do: one that does not lead names the one that does.
    pub fn new(leader_id: NodeId, leader_addr: String) -> Self {
        let http = connections();
        let first = (leader_id, leader_addr);
        ExampleClient { leader: Mutex::new(first.clone()), first, http, deadline: FORWARD_DEADLINE }
    }

    /// The same client, with another time limit for each request to one node
    /// than 6 s. Changes of the membership have at least 66 s.
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The node that the next request goes to.
    pub fn leader(&self) -> (NodeId, String) {
        self.leader.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    // ---- application ----

    /// Writes, through the leader; returns once a majority has it on disk.
    pub async fn write(&self, request: &ExampleRequest) -> Result<ClientWriteResponse<TypeConfig>, ClientError> {
        self.send_to_leader("/write", request, self.deadline, Effect::Changes).await
    }

    /// Reads what the node itself holds, which may be behind; empty if the key is not there.
    pub async fn read(&self, key: &String) -> Result<String, ClientError> {
        self.send("/read", Some(key), self.deadline, Effect::ReadsOnly).await
    }

    /// Reads what was written before, through the leader; empty if the key is not there.
    pub async fn consistent_read(&self, key: &String) -> Result<String, ClientError> {
        self.send_to_leader("/consistent_read", key, self.deadline, Effect::ReadsOnly).await
    }

    // ---- management ----

    /// Makes the node a cluster of one, which leads itself.
    pub async fn init(&self) -> Result<(), ClientError> {
        let nobody: [(NodeId, &str); 0] = [];
        self.send("/init", Some(&nobody), self.membership_deadline(), Effect::Changes).await
    }

    /// Takes a node in that gets all data and has no vote; returns once it has the data.
    pub async fn add_learner(&self, request: (NodeId, String)) -> Result<ClientWriteResponse<TypeConfig>, ClientError> {
        self.send_to_leader("/add-learner", &request, self.membership_deadline(), Effect::Changes).await
    }

    /// Makes these nodes the voters. Those that are not there yet must be learners.
    pub async fn change_membership(
        &self,
        voters: &BTreeSet<NodeId>,
    ) -> Result<ClientWriteResponse<TypeConfig>, ClientError> {
        self.send_to_leader("/change-membership", voters, self.membership_deadline(), Effect::Changes).await
    }

    /// What the node knows of itself and of the cluster.
    pub async fn metrics(&self) -> Result<RaftMetrics<TypeConfig>, ClientError> {
        self.send("/metrics", None::<&()>, self.deadline, Effect::ReadsOnly).await
    }

    fn membership_deadline(&self) -> Duration {
        self.deadline.max(MEMBERSHIP_DEADLINE + FORWARD_DEADLINE)
    }

    /// Sends to whom the client takes for the leader, and goes on from there.
    async fn send_to_leader<Request: Serialize, Response: DeserializeOwned>(
        &self,
        path: &str,
        request: &Request,
        deadline: Duration,
        effect: Effect,
    ) -> Result<Response, ClientError> {
        let mut hops_left = HOPS_MAX;
        loop {
            let result = self.send(path, Some(request), deadline, effect).await;
            hops_left -= 1;
            match result {
                Err(ClientError::Api { error: ApiError::ForwardToLeader(hint), .. }) => {
                    self.turn_to((hint.leader_id, hint.leader_node.addr.clone()));
                    if hops_left == 0 {
                        return Err(ClientError::TooManyRedirects(hint));
                    }
                }
                // Nothing was sent, so the first node may be asked who leads now.
                Err(ClientError::Unreachable { .. }) if hops_left > 0 && self.leader() != self.first => {
                    self.turn_to(self.first.clone());
                }
                other => return other,
            }
        }
    }

    fn turn_to(&self, leader: (NodeId, String)) {
        *self.leader.lock().unwrap_or_else(PoisonError::into_inner) = leader;
    }

    /// Sends to one node and decodes its answer.
    async fn send<Request: Serialize, Response: DeserializeOwned>(
        &self,
        path: &str,
        body: Option<&Request>,
        deadline: Duration,
        effect: Effect,
    ) -> Result<Response, ClientError> {
        let (_, addr) = self.leader();
        let lost = |reason: String| ClientError::AnswerLost {
            addr: addr.clone(),
            reason,
            outcome: match effect {
                Effect::Changes => Outcome::Unknown,
                Effect::ReadsOnly => Outcome::NotApplied,
            },
        };
        let unreachable = |reason: String| ClientError::Unreachable { addr: addr.clone(), reason };
        let url = format!("http://{addr}{path}");
        let request = match body {
            None => self.http.get(url),
            Some(body) => {
                let body = serde_json::to_vec(body).map_err(|error| unreachable(error.to_string()))?;
                self.http.post(url).header("content-type", "application/json").body(body)
            }
        };
        let answer = request.header("raft-forward", "no").timeout(deadline).send().await;
        let answer = answer.map_err(|error| {
            if error.is_connect() || error.is_builder() {
                unreachable(reason_of(&error))
            } else {
                lost(reason_of(&error))
            }
        })?;
        let body = answer.bytes().await.map_err(|error| lost(reason_of(&error)))?;
        let answer: Result<Response, ApiError> = serde_json::from_slice(&body)
            .map_err(|error| lost(format!("it is not what this client understands: {error}")))?;
        answer.map_err(|error| ClientError::Api { addr: addr.clone(), error })
    }
}
