//! A node that was removed learns of it.
//!
//! A leader sends nothing to a node that it does not have as a member, so a node that was down or isolated while it was
//! removed would look for a leader forever. Therefore a node that hears no leader asks the members that it knows. It was
//! removed if the node that leads, with a majority, does not have it as a member. If it is added again, the leader sends
//! it entries, and it forgets that it was removed ([`ExampleApp::clear_exclusion`]).

use actix_web::web;

use super::cluster_status::status_of_leader;
use super::rejections::removed;
use crate::app::{ExampleApp, Exclusion};
use crate::config::REMOVAL_CHECK_INTERVAL;
use crate::node_status::NodeStatus;

/// Asks for the leader's members from time to time while this node hears no leader.
pub async fn watch(app: web::Data<ExampleApp>) {
    let mut heard_none = false;
    loop {
        tokio::time::sleep(REMOVAL_CHECK_INTERVAL).await;
        let identity = app.store.identity();
        let is_lost = identity.cluster_id.is_some() && app.exclusion().is_none() && !app.hears_a_leader();
        // Elections are shorter than the interval.
        if !std::mem::replace(&mut heard_none, is_lost) || !is_lost {
            continue;
        }
        let Some(leader) = status_of_leader(&app).await else { continue };
        // A leader may have heard of this node meanwhile, and sent it entries.
        let is_removed = !has(&leader, app.id, identity.incarnation);
        if is_removed && !app.hears_a_leader() && app.set_exclusion(Exclusion::Removed) {
            tracing::warn!(
                "the leader, node {}, does not have this node as a member: {}",
                leader.node,
                removed(app.id, &app.addr)
            );
        }
    }
}

/// Whether a node is a member, as its leader has it. 0 stands for an unknown directory.
fn has(leader: &NodeStatus, id: u64, incarnation: u64) -> bool {
    leader.member(id).is_some_and(|member| [0, incarnation].contains(&member.incarnation))
}
