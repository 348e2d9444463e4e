//! `GET /raft-status`: the status of a node, for other nodes and for `doctor`.
//!
//! Unlike the other `/raft-` routes it is served on the clients' threads. All of it is read from memory, except for the
//! space on disk, which is examined at most a few times a second, and not waited for if the disk hangs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::HttpResponse;
use openraft::async_runtime::WatchReceiver;
use openraft::metrics::RaftMetrics;
use openraft::{Instant as _, ServerState};
use tokio::sync::Semaphore;

use super::access::{Caller, ToRead};
use super::reply::ok;
use crate::app::{ExampleApp, Role};
use crate::body::MemberRole;
use crate::clock::wall_ms;
use crate::config::{CLUSTER_STATUS_KEPT, DISK_STATUS_DEADLINE};
use crate::level::Level;
use crate::node_status::{KnownFollower, KnownMember, NodeStatus};
use crate::store::durable;
use crate::types::{NodeId, TypeConfig};

/// `GET /raft-status`
pub async fn node_status(app: Caller<ToRead>) -> HttpResponse {
    ok(&own_status(&app).await)
}

/// The status of this node now.
pub async fn own_status(app: &ExampleApp) -> NodeStatus {
    let on_disk = app.cluster_view.disk.get(CLUSTER_STATUS_KEPT, look_at_disk(app)).await;
    let identity = app.store.identity();
    // A node that was just cut off still knows its last leader.
    let leader = match app.role() {
        Role::Leader => Some(app.id),
        Role::Follower { leader_id, .. } if app.hears_a_leader() => Some(leader_id),
        Role::Follower { .. } | Role::NoLeader => None,
    };
    let is_member = identity.cluster_id.is_some() && app.has_member(app.id) && app.exclusion().is_none();
    let (sync_p99_us, limits) = (app.store.log.sync_p99_us(), app.disk.limits());
    let metrics = app.raft.metrics();
    let metrics = metrics.borrow_watched();
    NodeStatus {
        node: app.id,
        incarnation: identity.incarnation,
        cluster_id: identity.cluster_id.map(|cluster_id| cluster_id.to_string()),
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        format_level: Some(Level::NEWEST.0),
        state_level: Some(app.store.state_machine.read(|machine| machine.level.0)),
        address: Some(app.addr.clone()),
        is_member,
        term: metrics.vote.leader_id.term,
        leader,
        members: members_in(&metrics),
        last_log_index: metrics.last_log_index,
        applied_index: metrics.last_applied.map(|log_id| log_id.index),
        snapshot_index: metrics.snapshot.map(|log_id| log_id.index),
        snapshot_age_ms: on_disk.snapshot_age.map(millis),
        disk_used_bytes: on_disk.used_bytes,
        disk_free_bytes: on_disk.free_bytes,
        disk_low_bytes: Some(limits.low),
        quota_used_bytes: Some(app.store.state_machine.memory_bytes()),
        quota_bytes: Some(app.quota_bytes),
        quota_rejected_ms_ago: app.quota_rejections.last().map(|at| millis(at.elapsed())),
        fsync_p99_us: sync_p99_us,
        heartbeat_interval_ms: Some(millis(app.heartbeat_interval())),
        election_timeout_ms: Some(app.cluster_view.election_timeout_ms),
        certificate_expires_s: app.tls.as_ref().map(|tls| tls.expires_s()),
        tls_files_rejected: app.tls.as_ref().and_then(|tls| tls.rejected()),
        // Last, since the asking node compares it with the time at which the response arrives.
        followers: followers_in(app, &metrics),
        clock_ms: Some(wall_ms()),
    }
}

fn members_in(metrics: &RaftMetrics<TypeConfig>) -> Vec<KnownMember> {
    let membership = metrics.membership_config.membership();
    let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
    let role_of = |id: &NodeId| if voters.contains(id) { MemberRole::Voter } else { MemberRole::Learner };
    let members = membership.nodes().map(|(id, node)| KnownMember {
        id: *id,
        role: role_of(id),
        address: node.addr.clone(),
        incarnation: node.incarnation,
    });
    members.collect()
}

/// What this node knows of the others if it leads.
fn followers_in(app: &ExampleApp, metrics: &RaftMetrics<TypeConfig>) -> Vec<KnownFollower> {
    if metrics.state != ServerState::Leader {
        return Vec::new();
    }
    let (Some(replication), Some(heartbeats)) = (&metrics.replication, &metrics.heartbeat) else { return Vec::new() };
    let last_index = metrics.last_log_index.unwrap_or_default();
    let now = Instant::now();
    let others = metrics.membership_config.membership().nodes().map(|(id, _)| *id).filter(|id| *id != app.id);
    let followers = others.map(|id| {
        let matched = replication.get(&id).copied().flatten().map(|log_id| log_id.index);
        let lag_of = |index: u64| match last_index.saturating_sub(index) {
            0 => Duration::ZERO,
            _ => app.cluster_view.log_ends.age_after(index, now),
        };
        let answered = heartbeats.get(&id).copied().flatten();
        KnownFollower {
            id,
            lag_entries: matched.map(|index| last_index.saturating_sub(index)),
            lag_ms: matched.map(|index| millis(lag_of(index))),
            silent_ms: answered.map(|answered| millis(answered.into_inner().elapsed())),
        }
    });
    followers.collect()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What a node takes on its disk, and what is left; unknown while the disk hangs.
#[derive(Clone, Copy, Debug, Default)]
pub struct OnDisk {
    used_bytes: Option<u64>,
    free_bytes: Option<u64>,
    snapshot_age: Option<Duration>,
}

/// Examines the disk on a thread that may block. Of a disk that hangs, no second thread waits.
async fn look_at_disk(app: &ExampleApp) -> OnDisk {
    let Ok(permit) = app.cluster_view.disk_turn.clone().try_acquire_owned() else { return OnDisk::default() };
    let store = app.store.clone();
    let look = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let snapshots = store.state_machine.snapshots();
        let sizes = snapshots.sizes().ok();
        OnDisk {
            used_bytes: sizes.map(|sizes| {
                let snapshot_bytes = sizes.newest_bytes + sizes.older_bytes + sizes.unfinished_bytes;
                store.log.disk_bytes() + snapshot_bytes
            }),
            free_bytes: durable::free_bytes(store.directory()).ok(),
            snapshot_age: snapshots.newest_age(),
        }
    });
    tokio::time::timeout(DISK_STATUS_DEADLINE, look).await.ok().and_then(Result::ok).unwrap_or_default()
}

/// Lets one task at a time examine the disk.
pub fn disk_turn() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(1))
}
