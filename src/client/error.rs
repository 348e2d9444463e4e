//! Why a request failed, and what became of it.

use std::borrow::Cow;
use std::time::Duration;

use super::HOPS_MAX;
use crate::body::ErrorBody;
use crate::error::{ApiError, ConditionFailed, LeaderHint, NotApplied, Outcome};

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
    /// A node answered a request of the key-value API with an error.
    #[error("node at {addr} answered {status} {}: {}", .error.code, .error.message)]
    Refused {
        /// The node that answered.
        addr: String,
        /// The HTTP status.
        status: u16,
        /// Its answer.
        error: Box<ErrorBody>,
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
    #[error("the answer of {addr} was lost{}: {reason}", doubt(*outcome))]
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
    /// One attempt may have been applied, and none after it brought certainty.
    #[error("{unknown}; and at last: {last}")]
    Unresolved {
        /// The first attempt of which it is not known.
        unknown: Box<ClientError>,
        /// Why the last attempt failed.
        last: Box<ClientError>,
    },
    /// The node belongs to another cluster than the first one that answered this client.
    #[error(
        "the node at {addr} belongs to cluster {found}, and this client talks to cluster {expected}{}: the list of \
         endpoints holds nodes of two clusters, or an address has a new owner",
        doubt(*outcome)
    )]
    OtherCluster {
        /// The node.
        addr: String,
        /// Its cluster.
        found: String,
        /// The cluster of the nodes that answered before.
        expected: String,
        /// `not_applied`, unless a node of a former version may have done the request.
        outcome: Outcome,
    },
    /// The request cannot be sent at all, to no node.
    #[error("the request cannot be sent: {reason}")]
    InvalidRequest {
        /// What is wrong with it.
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
    /// What became of the request, over all attempts. After `NotApplied`, trying again is safe.
    pub fn outcome(&self) -> Outcome {
        match self {
            ClientError::Api { error, .. } => error.outcome(),
            ClientError::Refused { error, .. } => error.outcome,
            ClientError::AnswerLost { outcome, .. } | ClientError::OtherCluster { outcome, .. } => *outcome,
            ClientError::Unresolved { .. } => Outcome::Unknown,
            ClientError::Unreachable { .. } | ClientError::TooManyRedirects(_) | ClientError::InvalidRequest { .. } => {
                Outcome::NotApplied
            }
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

    /// What a node answered, in the shape of the key-value API, if one did.
    pub fn answer(&self) -> Option<Cow<'_, ErrorBody>> {
        match self {
            ClientError::Api { error, .. } => Some(Cow::Owned(error.to_body().error)),
            ClientError::Refused { error, .. } => Some(Cow::Borrowed(error)),
            _ => None,
        }
    }

    /// The word for programs that a node answered with, such as `key_not_found`.
    pub fn code(&self) -> Option<&str> {
        match self {
            ClientError::Api { error, .. } => Some(error.code()),
            ClientError::Refused { error, .. } => Some(&error.code),
            _ => None,
        }
    }

    /// The condition of a write that does not hold, and the revision that the key has instead.
    pub fn condition_failed(&self) -> Option<ConditionFailed> {
        let error = self.answer().filter(|error| error.code == "condition_failed")?.into_owned();
        let ErrorBody { message, current_revision, .. } = error;
        Some(ConditionFailed { message, current_revision, outcome: NotApplied::NotApplied })
    }

    /// The oldest revision that can be had, if the one that was asked for is no longer kept.
    pub fn oldest_revision(&self) -> Option<u64> {
        self.answer()?.oldest_revision
    }

    /// The HTTP status that a node answered with.
    pub fn status(&self) -> Option<u16> {
        match self {
            ClientError::Api { error, .. } => Some(error.status()),
            ClientError::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// The node at which it failed, if it was one.
    pub(super) fn addr(&self) -> Option<&str> {
        match self {
            ClientError::Api { addr, .. }
            | ClientError::Refused { addr, .. }
            | ClientError::Unreachable { addr, .. }
            | ClientError::AnswerLost { addr, .. }
            | ClientError::OtherCluster { addr, .. } => Some(addr),
            ClientError::TooManyRedirects(_) | ClientError::Unresolved { .. } | ClientError::InvalidRequest { .. } => {
                None
            }
        }
    }

    /// How long to wait at least before trying again; `None` if that is of no use.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            ClientError::Unreachable { .. } | ClientError::AnswerLost { .. } | ClientError::TooManyRedirects(_) => {
                Some(Duration::ZERO)
            }
            ClientError::Api { .. } | ClientError::Refused { .. } => match self.status() {
                Some(503) => {
                    Some(Duration::from_millis(self.answer().and_then(|error| error.retry_after_ms).unwrap_or(0)))
                }
                Some(504) => Some(Duration::ZERO),
                _ => None,
            },
            ClientError::OtherCluster { .. } | ClientError::Unresolved { .. } | ClientError::InvalidRequest { .. } => {
                None
            }
        }
    }

    /// Whether the replicated state itself decided so. It remembers that, so an
    /// earlier attempt with the same `Idempotency-Key` was not applied either.
    pub(super) fn is_decided(&self) -> bool {
        const DECIDED: &[&str] = &["condition_failed", "key_not_found", "idempotency_key_reused", "answer_too_large"];
        self.code().is_some_and(|code| DECIDED.contains(&code))
    }
}
