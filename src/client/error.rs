//! Why a request failed, and its outcome.

use std::borrow::Cow;
use std::time::Duration;

use super::HOPS_MAX;
use crate::body::ErrorBody;
use crate::error::{ApiError, ConditionFailed, LeaderHint, NotApplied, Outcome};

/// Why a request failed. [`outcome`](Self::outcome) says whether it may have been applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// A node returned an error on a route of the openraft example.
    #[error("the node at {addr} returned {}: {error}", .error.status())]
    Api {
        /// The node's address.
        addr: String,
        /// The error in the response.
        error: ApiError,
    },
    /// A node returned an error on a route of the key-value API.
    #[error("the node at {addr} returned {status} {}: {}", .error.code, .error.message)]
    Rejected {
        /// The node's address.
        addr: String,
        /// The HTTP status.
        status: u16,
        /// The error in the response.
        error: Box<ErrorBody>,
    },
    /// The client could not connect, so the request was never sent.
    #[error("cannot connect to {addr}: {reason}")]
    Unreachable {
        /// The node's address.
        addr: String,
        /// The cause, as readable text.
        reason: String,
    },
    /// The request was sent, and its response was lost, late, or invalid.
    #[error("the response from {addr} was lost{}: {reason}", doubt(*outcome))]
    AnswerLost {
        /// The node's address.
        addr: String,
        /// The cause, as readable text.
        reason: String,
        /// `Unknown` for a write, `NotApplied` for a read.
        outcome: Outcome,
    },
    /// Each node named another one as leader: an election is in progress.
    #[error("found no leader in {HOPS_MAX} hops; the last one named node {} at {}", .0.leader_id, .0.leader_node)]
    TooManyRedirects(LeaderHint),
    /// One attempt may have been applied, and no later one settled it.
    #[error("{unknown}; the last attempt failed too: {last}")]
    Unresolved {
        /// Why the first attempt with an unknown outcome failed.
        unknown: Box<ClientError>,
        /// Why the last attempt failed.
        last: Box<ClientError>,
    },
    /// The node belongs to another cluster than the first one that responded to this client.
    #[error(
        "the node at {addr} belongs to cluster {found}, but the others belong to cluster {expected}{}: the endpoints \
         are nodes of two clusters, or an address was reassigned",
        doubt(*outcome)
    )]
    OtherCluster {
        /// The node's address.
        addr: String,
        /// The node's cluster.
        found: String,
        /// The cluster of the nodes that responded before.
        expected: String,
        /// `NotApplied`, unless a node of an older version may have applied the request.
        outcome: Outcome,
    },
    /// The request is invalid, so it was not sent.
    #[error("cannot send the request: {reason}")]
    InvalidRequest {
        /// The cause, as readable text.
        reason: String,
    },
}

fn doubt(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Unknown => ", and the request may have been applied",
        Outcome::NotApplied => "",
    }
}

impl ClientError {
    /// The outcome of the request, over all attempts. After `NotApplied` it is safe to send it again.
    pub fn outcome(&self) -> Outcome {
        match self {
            ClientError::Api { error, .. } => error.outcome(),
            ClientError::Rejected { error, .. } => error.outcome,
            ClientError::AnswerLost { outcome, .. } | ClientError::OtherCluster { outcome, .. } => *outcome,
            ClientError::Unresolved { .. } => Outcome::Unknown,
            ClientError::Unreachable { .. } | ClientError::TooManyRedirects(_) | ClientError::InvalidRequest { .. } => {
                Outcome::NotApplied
            }
        }
    }

    /// The leader, if the error names one.
    pub fn forward_to_leader(&self) -> Option<&LeaderHint> {
        match self {
            ClientError::Api { error: ApiError::ForwardToLeader(hint), .. } | ClientError::TooManyRedirects(hint) => {
                Some(hint)
            }
            _ => None,
        }
    }

    /// The error in the node's response, as the key-value API returns it; `None` if there was no response.
    pub fn answer(&self) -> Option<Cow<'_, ErrorBody>> {
        match self {
            ClientError::Api { error, .. } => Some(Cow::Owned(error.to_body().error)),
            ClientError::Rejected { error, .. } => Some(Cow::Borrowed(error)),
            _ => None,
        }
    }

    /// The error code in the node's response, such as `key_not_found`.
    pub fn code(&self) -> Option<&str> {
        match self {
            ClientError::Api { error, .. } => Some(error.code()),
            ClientError::Rejected { error, .. } => Some(&error.code),
            _ => None,
        }
    }

    /// The condition that does not hold, if that is why the write failed, and the key's current revision.
    pub fn condition_failed(&self) -> Option<ConditionFailed> {
        let error = self.answer().filter(|error| error.code == "condition_failed")?.into_owned();
        let ErrorBody { message, current_revision, .. } = error;
        Some(ConditionFailed { message, current_revision, outcome: NotApplied::NotApplied })
    }

    /// The oldest revision that is still kept, if the requested one is not.
    pub fn oldest_revision(&self) -> Option<u64> {
        self.answer()?.oldest_revision
    }

    /// The HTTP status of the node's response.
    pub fn status(&self) -> Option<u16> {
        match self {
            ClientError::Api { error, .. } => Some(error.status()),
            ClientError::Rejected { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// The address of the node where the request failed.
    pub(super) fn addr(&self) -> Option<&str> {
        match self {
            ClientError::Api { addr, .. }
            | ClientError::Rejected { addr, .. }
            | ClientError::Unreachable { addr, .. }
            | ClientError::AnswerLost { addr, .. }
            | ClientError::OtherCluster { addr, .. } => Some(addr),
            ClientError::TooManyRedirects(_) | ClientError::Unresolved { .. } | ClientError::InvalidRequest { .. } => {
                None
            }
        }
    }

    /// Least pause before a retry; `None` if a retry is useless.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            ClientError::Unreachable { .. } | ClientError::AnswerLost { .. } | ClientError::TooManyRedirects(_) => {
                Some(Duration::ZERO)
            }
            ClientError::Api { .. } | ClientError::Rejected { .. } => match self.status() {
                Some(503) => {
                    Some(Duration::from_millis(self.answer().and_then(|error| error.retry_after_ms).unwrap_or(0)))
                }
                // A node that failed is about to exit; another one may serve the request.
                Some(500 | 504) => Some(Duration::ZERO),
                _ => None,
            },
            ClientError::OtherCluster { .. } | ClientError::Unresolved { .. } | ClientError::InvalidRequest { .. } => {
                None
            }
        }
    }

    /// Whether the replicated state itself decided this. It remembers its decision, so no earlier attempt with the same
    /// `Idempotency-Key` was applied either.
    pub(super) fn is_decided(&self) -> bool {
        const DECIDED: &[&str] = &["condition_failed", "key_not_found", "idempotency_key_reused", "answer_too_large"];
        self.code().is_some_and(|code| DECIDED.contains(&code))
    }
}
