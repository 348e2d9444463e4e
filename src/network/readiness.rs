//! Whether this node can serve a kind of request now, and why not if it cannot.
//!
//! | request | condition |
//! | --- | --- |
//! | write | [`leader`] names a node, and that node passes [`proposal`] |
//! | linearizable read, membership change | [`leader`] names a node |
//! | stale read | [`stale_read`] |
//!
//! A node is ready, for a load balancer, if all of [`checks`] hold.

use std::sync::atomic::{AtomicBool, Ordering};

use super::rejections::{excluded, no_leader, recovering, stopping};
use crate::app::{ExampleApp, Role};
use crate::config::{KEY_MEMORY_BYTES, LOG_UNCOMMITTED_BYTES_MAX, LOG_UNSYNCED_BYTES_MAX};
use crate::disk::DiskSpace;
use crate::error::{ApiError, Details, Retry};
use crate::operation::Operation;
use crate::seeded_bug::{self, SeededBug};
use crate::types::{ExampleNode, NodeId};

/// The node that serves a request which needs the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// This node, which leads.
    Here,
    /// The leader.
    Leader {
        /// The leader's id.
        leader_id: NodeId,
        /// The leader's address.
        leader_node: ExampleNode,
    },
}

/// The node that can serve a request which needs the leader.
///
/// # Errors
///
/// 503: the node is stopping, is not a member, or knows no leader.
pub fn leader(app: &ExampleApp) -> Result<Destination, ApiError> {
    if app.is_stopping() {
        return Err(stopping());
    }
    not_excluded(app)?;
    match app.role() {
        Role::Leader => Ok(Destination::Here),
        // Its leader dials another address. It would wait in vain for entries.
        Role::Follower { .. } if !app.hears_a_leader() && app.moved().is_some() => Err(no_leader(app)),
        Role::Follower { leader_id, leader_node } => Ok(Destination::Leader { leader_id, leader_node }),
        Role::NoLeader => Err(no_leader(app)),
    }
}

/// One condition of [`checks`].
pub struct Check {
    /// Its name, for operators.
    pub name: &'static str,
    /// Why it does not hold, if it does not.
    pub result: Result<(), ApiError>,
}

impl Check {
    /// The name and the reason, if the condition does not hold.
    pub fn failure(&self) -> Option<String> {
        self.result.as_ref().err().map(|error| format!("{}: {error}", self.name))
    }
}

/// The conditions under which this node serves every kind of request, for probes and metrics.
pub fn checks(app: &ExampleApp) -> [Check; 4] {
    [
        Check { name: "running", result: if app.will_stop() || app.is_stopping() { Err(stopping()) } else { Ok(()) } },
        Check { name: "leader", result: hears_a_leader(app) },
        Check { name: "recovered", result: recovered(app) },
        Check { name: "disk", result: disk(app) },
    ]
}

/// Whether this node has data to show. Why it belongs to no cluster is the reason of the check before.
fn recovered(app: &ExampleApp) -> Result<(), ApiError> {
    if app.store.identity().cluster_id.is_none() {
        return Err(ApiError::NoLeader(Retry::soon("this node has no data yet, not even old data")));
    }
    stale_read(app)
}

/// Whether there is a leader that this node has heard lately. A follower knows its leader until there is another one,
/// even if that one is dead.
fn hears_a_leader(app: &ExampleApp) -> Result<(), ApiError> {
    leader(app)?;
    if app.hears_a_leader() { Ok(()) } else { Err(no_leader(app)) }
}

/// Whether the disk has space for entries. While it is only low, a leader rejects puts, and everything else works.
fn disk(app: &ExampleApp) -> Result<(), ApiError> {
    match app.disk.space() {
        DiskSpace::Enough | DiskSpace::Low => Ok(()),
        DiskSpace::Exhausted => {
            Err(ApiError::DiskSpaceLow(Details::not_applied("the disk is full: this node accepts no entries")))
        }
    }
}

/// Whether no other node has told this one that it is not a member.
///
/// # Errors
///
/// 503 [`ApiError::NotMember`].
pub fn not_excluded(app: &ExampleApp) -> Result<(), ApiError> {
    excluded(app).map_or(Ok(()), Err)
}

/// Whether this node can show its own state, which may be behind the leader's.
///
/// # Errors
///
/// 503: the node belongs to no cluster, so its empty state is not even an old one; or it is recovering.
pub fn stale_read(app: &ExampleApp) -> Result<(), ApiError> {
    if app.store.identity().cluster_id.is_none() {
        return Err(no_leader(app));
    }
    if app.recovered() { Ok(()) } else { Err(recovering(app)) }
}

/// Whether this node, as leader, has room for an entry. The caller has already set disk space aside for it.
///
/// # Errors
///
/// 507 if the disk has no room for the operation. Operations that store nothing pass while any room is left, so that
/// clients can free space and keys expire. 507 if the operation adds data beyond the quota, too. 503 if the log cannot
/// take more until it is synced, committed or purged.
pub fn proposal(app: &ExampleApp, operation: &Operation) -> Result<(), ApiError> {
    let full = match app.disk.space() {
        DiskSpace::Enough => None,
        DiskSpace::Low if operation.stores_nothing() => None,
        DiskSpace::Low => Some(
            "the leader's disk is nearly full, so it accepts only deletes, touches and transactions without a put: \
             free some space, or move the leader",
        ),
        DiskSpace::Exhausted => Some("the leader's disk is full: free some space, or move the leader"),
    };
    if let Some(full) = full {
        return Err(ApiError::DiskSpaceLow(Details::not_applied(full)));
    }
    if exceeds_quota(app, operation) {
        app.quota_rejections.note();
        return Err(ApiError::QuotaExceeded(Details::not_applied(format!(
            "the write would exceed the quota of {} bytes; deletes, touches and writes that add no data are accepted: \
             delete keys, or restart all nodes with a greater --quota-bytes",
            app.quota_bytes
        ))));
    }
    let log = &app.store.log;
    let why = if app.log_is_full() {
        "the leader's log has reached its limit of files; it accepts writes again after the next snapshot"
    } else if log.unsynced_bytes() > LOG_UNSYNCED_BYTES_MAX {
        // A majority can commit without this node's disk, so nothing else bounds what waits for it.
        "the leader's disk is not keeping up with the writes"
    } else if log.uncommitted_bytes() > LOG_UNCOMMITTED_BYTES_MAX {
        // Requests that wait for a majority time out, but their entries stay, and no snapshot shortens that log.
        "too few nodes are keeping up with the leader"
    } else {
        return Ok(());
    };
    Err(ApiError::Overloaded(Retry::soon(why)))
}

/// Whether a write would add data beyond the quota. Writes in progress do not count.
fn exceeds_quota(app: &ExampleApp, operation: &Operation) -> bool {
    let machine = &app.store.state_machine;
    let puts = operation.puts() as u64;
    // As much as it can add at most: far from the quota, the state need not be read.
    let added_bytes_max = operation.payload_bytes() as u64 + puts * KEY_MEMORY_BYTES;
    let exceeds = puts > 0
        && machine.memory_bytes().saturating_add(added_bytes_max) > app.quota_bytes
        && machine.read(|machine| {
            let growth_bytes = machine.growth_bytes(operation);
            growth_bytes > 0 && machine.memory_bytes() + growth_bytes > app.quota_bytes
        });
    if seeded_bug::is_on(SeededBug::QuotaNeverLifts) {
        static REACHED: AtomicBool = AtomicBool::new(false);
        let was_reached = REACHED.fetch_or(exceeds, Ordering::Relaxed);
        return exceeds || was_reached && machine.read(|machine| machine.growth_bytes(operation) > 0);
    }
    exceeds
}
