//! Errors that several routes return, each with what the user can do about it.

use std::sync::PoisonError;

use openraft::errors::Fatal;
use tokio::task::JoinError;

use crate::app::{ExampleApp, Exclusion};
use crate::error::{ApiError, Retry};
use crate::store::ClusterId;
use crate::types::{NodeId, TypeConfig};

/// How the error of a node without a cluster begins.
pub(super) const NO_CLUSTER: &str = "this node belongs to no cluster yet";

/// The node is about to stop.
pub fn stopping() -> ApiError {
    ApiError::Stopping(Retry::soon("this node is stopping; retry on another node"))
}

/// Why no leader is known, as far as this node can tell.
pub fn no_leader(app: &ExampleApp) -> ApiError {
    if let Some(excluded) = excluded(app) {
        return excluded;
    }
    if app.is_left_out() {
        // No other node has confirmed it, and the log of this node may be old.
        return ApiError::NotMember(Retry::soon(format!(
            "node {} is not a member of the cluster: it was removed, or is being added right now. Use another node. If \
             this node was removed, stop it, or add it again: `raft-key-value members add {} {}`",
            app.id, app.id, app.addr
        )));
    }
    let message = if app.store.identity().cluster_id.is_none() {
        match app.joining.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Some(joining) => format!("{NO_CLUSTER}: {joining}"),
            None => format!(
                "{NO_CLUSTER}: POST /init with a list such as [[1,\"127.0.0.1:21001\"],[2,\"127.0.0.1:21002\"]] forms a \
                 cluster of those nodes, and without a list a cluster of this node alone; `raft-key-value members add \
                 {} {}` adds this node to an existing cluster",
                app.id, app.addr
            ),
        }
    } else if let Some(moved) = app.moved() {
        format!("no leader is known, probably because {moved}")
    } else {
        "no leader is known: an election is in progress, or too few nodes can be reached".to_owned()
    };
    ApiError::NoLeader(Retry::soon(message))
}

/// Why this node is not a member, if other nodes told it so.
pub fn excluded(app: &ExampleApp) -> Option<ApiError> {
    Some(match app.exclusion()? {
        Exclusion::Removed => removed(app.id, &app.addr),
        Exclusion::OtherDirectory { cluster_id } => {
            ApiError::NotMember(Retry::soon(other_directory(app.id, cluster_id)))
        }
    })
}

/// The node was removed from the membership.
pub fn removed(id: NodeId, addr: &str) -> ApiError {
    ApiError::NotMember(Retry::soon(format!(
        "node {id} was removed from the cluster: use another node; stop this node, or add it again: `raft-key-value \
         members add {id} {addr}`"
    )))
}

/// What to do with a node whose id belongs to a member with another data directory.
pub fn other_directory(id: NodeId, cluster_id: ClusterId) -> String {
    format!(
        "node {id} is a member of cluster {cluster_id} with a different data directory: start it with that directory. \
         If that directory is lost, start this node with a new --id and an empty --data-dir, and put it in the place of \
         node {id}: `raft-key-value members replace {id} NEW_ID ADDRESS`"
    )
}

/// The node has not yet applied everything that was in its log when it started.
pub fn recovering(app: &ExampleApp) -> ApiError {
    let message = "this node has just started, and no leader has confirmed yet that it is up to date";
    // The leader dials another address.
    let why = app.moved().map(|moved| format!(", probably because {moved}")).unwrap_or_default();
    ApiError::Recovering(Retry::soon(format!("{message}{why}")))
}

/// The leader cannot confirm that it still leads.
pub fn unconfirmed() -> ApiError {
    ApiError::Unreachable(Retry::soon("this node reaches too few other nodes to confirm that it is still the leader"))
}

/// Raft has ended, and the node ends with it.
pub fn raft_ended(fatal: &Fatal<TypeConfig>) -> ApiError {
    match fatal {
        Fatal::Stopped => stopping(),
        Fatal::Panicked | Fatal::StorageError(_) => ApiError::internal("this node failed and is about to exit"),
    }
}

/// A task ended without a result: it panicked, or the runtime is shutting down.
pub fn task_ended(error: &JoinError) -> ApiError {
    if error.is_panic() {
        ApiError::internal("this node failed to handle the request; its log says why")
    } else {
        stopping()
    }
}
