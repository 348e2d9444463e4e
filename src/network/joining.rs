//! A node forms or joins a cluster by itself: `--bootstrap` and `--join`.
//!
//! A directory that belongs to a cluster ignores both, so that the same command restarts a node.
//!
//! * `--bootstrap` founds a cluster of this node, as `POST /init` does.
//! * `--bootstrap --join B,C` founds a cluster of this node, B and C, as `POST /init` with that list does, once all of
//!   them respond and belong to no cluster. If one belongs to a cluster, the node exits: its directory may have been
//!   lost, and a second cluster would answer in the place of the first. The first cluster has had a leader only if a
//!   majority of the three belongs to it, so B or C does, and no stage of founding is without a witness.
//! * `--join B,C` asks any of them to add this node, until the leader does. A learner that wants to vote then asks for
//!   that until it does. No node remembers the wish: a new leader gets the next request.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use serde::Serialize;

use super::founding;
use super::peer::{self, Introduction, PeerIdentity, Silence};
use super::rejections::{NO_CLUSTER, other_directory};
use crate::app::{ExampleApp, Exclusion, Role};
use crate::body::{AddMember, AddedRole, ErrorAnswer, MemberChanged};
use crate::config::{
    Config, FORWARD_DEADLINE, JOIN_PAUSE_MAX, JOIN_PAUSE_MIN, JoinAs, MEMBERSHIP_DEADLINE, PASSED_ON_RESPONSE_BYTES_MAX,
};
use crate::connection::{read_response, reason_of};
use crate::error::{ApiError, shortened};
use crate::proofs::Purpose;
use crate::store::ClusterId;
use crate::types::NodeId;

/// Forms or joins a cluster if the settings say so; returns once that is done, or is not for this node to do.
pub async fn run(app: &ExampleApp, config: &Config) {
    let targets: Vec<String> = config.join_targets(&app.addr).cloned().collect();
    if config.bootstrap {
        form(app, &targets).await;
    } else if !targets.is_empty() {
        join(app, config.join_as, targets).await;
    }
    waits_for(app, None);
}

/// Says in the log, once for each change, what the node waits for.
fn waits_for(app: &ExampleApp, what: Option<String>) {
    let mut joining = app.joining.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(what) = what.as_ref().filter(|what| joining.as_ref() != Some(*what)) {
        tracing::info!("{what}");
    }
    *joining = what;
}

/// Growing pauses between attempts.
struct Pause(Duration);

impl Pause {
    fn new() -> Self {
        Pause(JOIN_PAUSE_MIN)
    }

    async fn wait(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (2 * self.0).min(JOIN_PAUSE_MAX);
    }
}

// ---- forming ----

/// Why a node cannot form a cluster now.
enum Obstacle {
    /// It may be able to later.
    Wait(String),
    /// It never must.
    SecondCluster(String),
}

/// Whether the node belongs to a cluster that it knows something of. Otherwise it may have stopped while it founded
/// one, which it then continues.
fn belongs(app: &ExampleApp) -> bool {
    app.store.identity().cluster_id.is_some() && app.raft.metrics().borrow_watched().last_log_index.is_some()
}

async fn form(app: &ExampleApp, targets: &[String]) {
    let mut pause = Pause::new();
    while !belongs(app) {
        match try_to_form(app, targets).await {
            Ok(nodes) => {
                let cluster_id = app.store.identity().cluster_id.map(|id| id.to_string()).unwrap_or_default();
                tracing::info!("formed cluster {cluster_id} of {}", named(&nodes));
                return;
            }
            Err(Obstacle::SecondCluster(why)) => {
                app.set_second_cluster(why);
                // The node exits.
                return std::future::pending().await;
            }
            Err(Obstacle::Wait(why)) => waits_for(app, Some(format!("waiting to form a cluster: {why}"))),
        }
        pause.wait().await;
    }
}

fn named(nodes: &BTreeMap<NodeId, String>) -> String {
    let nodes: Vec<String> = nodes.iter().map(|(id, addr)| format!("node {id} at {addr}")).collect();
    nodes.join(", ")
}

async fn try_to_form(app: &ExampleApp, targets: &[String]) -> Result<BTreeMap<NodeId, String>, Obstacle> {
    if let Some(Exclusion::OtherDirectory { cluster_id }) = app.exclusion() {
        return Err(Obstacle::SecondCluster(other_directory(app.id, cluster_id)));
    }
    let mut nodes = BTreeMap::from([(app.id, app.addr.clone())]);
    let mut missing = Vec::new();
    let own = app.store.identity();
    for target in targets {
        let Introduction { identity, address, joins_as, .. } = match peer::introduced(app, target).await {
            Ok(introduction) => introduction,
            Err(Silence::Unreachable(error)) => {
                missing.push(format!("{target} does not respond ({})", reason_of(&error)));
                continue;
            }
            Err(Silence::NotANode) => {
                missing.push(format!("the server at {target} is not a node of this program"));
                continue;
            }
        };
        if let Some(cluster_id) = identity.former_cluster_id.or(identity.cluster_id) {
            // Unless that node founds the cluster at this moment, with this node.
            let is_own = app.store.identity().cluster_id == Some(cluster_id);
            if !is_own && !founding::is_reserved_for(app, cluster_id).await {
                return Err(Obstacle::SecondCluster(second_cluster(app.id, target, cluster_id)));
            }
        }
        if (identity.node_id, identity.incarnation) == (own.node_id, own.incarnation) {
            continue; // This node, by another name.
        }
        // A learner joins by itself later.
        if joins_as == Some(JoinAs::Learner) {
            continue;
        }
        let address = address.unwrap_or_else(|| target.clone());
        match nodes.insert(identity.node_id, address.clone()) {
            Some(other) if other != address => {
                missing.push(format!("the nodes at {other} and {address} both have the id {}", identity.node_id));
            }
            _ => {}
        }
    }
    if !missing.is_empty() {
        return Err(Obstacle::Wait(missing.join("; ")));
    }
    // Checks the nodes again, and reserves all of them before it changes anything.
    match founding::found(app, nodes.clone()).await {
        Ok(()) => Ok(nodes),
        Err(error) => Err(Obstacle::Wait(error.to_string())),
    }
}

fn second_cluster(id: NodeId, target: &str, cluster_id: ClusterId) -> String {
    format!(
        "the node at {target} belongs to cluster {cluster_id}, and this one, with a new data directory, must not found a \
         second cluster: if the directory of node {id} is lost, start it with a new --id and an empty --data-dir, with \
         --join {target} instead of --bootstrap, and remove node {id}: `raft-key-value members remove {id}`; if that \
         cluster is another one, correct --join; and if it was never completed, so that none of its nodes has a leader \
         (/metrics), start all of them with empty directories"
    )
}

// ---- joining ----

async fn join(app: &ExampleApp, join_as: JoinAs, targets: Vec<String>) {
    // A node with entries of a cluster was a member. If it is none any more, it was removed, and must not add itself.
    let mut may_be_added = !belongs(app);
    let mut joins = false;
    let mut next = 0;
    let mut pause = Pause::new();
    loop {
        let role = app.own_role();
        if role == Some(JoinAs::Voter) || role == Some(join_as) {
            if joins {
                say_joined(app);
            }
            return;
        }
        joins = true;
        let request = match role {
            None if may_be_added => Some(("/v1/cluster/members".to_owned(), add_body(app, join_as))),
            // A learner may not have received the membership yet.
            _ if join_as == JoinAs::Voter => Some((format!("/v1/cluster/members/{}/promote", app.id), None)),
            _ => None,
        };
        let Some((path, body)) = request else {
            waits_for(app, Some(format!("waiting for the data of the cluster, in which node {} is a learner", app.id)));
            pause.wait().await;
            continue;
        };
        let mut addresses = targets.clone();
        addresses.extend(app.other_members().into_iter().filter(|addr| !targets.contains(addr)));
        let addr = &addresses[next % addresses.len()];
        match ask(app, addr, &path, body.as_ref()).await {
            Ok(changed) => {
                may_be_added = false;
                pause = Pause::new();
                if changed.done {
                    say_joined(app);
                    return;
                }
                waits_for(app, Some(format!("joining: {}", changed.message)));
            }
            Err(Rejected { code, message }) if code == "member_not_found" => {
                tracing::warn!(
                    "not joining any further: {message}; to add it again, use POST /v1/cluster/members, or start it with \
                     an empty --data-dir"
                );
                return;
            }
            // What the other node waits for is in its own log, and may be this one.
            Err(Rejected { message, .. }) if message.starts_with(NO_CLUSTER) => {
                next += 1;
                waits_for(app, Some(format!("waiting to join a cluster: {addr} belongs to no cluster yet")));
            }
            Err(Rejected { message, .. }) => {
                next += 1;
                waits_for(app, Some(format!("waiting to join a cluster: {addr}: {message}")));
            }
        }
        pause.wait().await;
    }
}

fn say_joined(app: &ExampleApp) {
    let cluster_id = app.store.identity().cluster_id.map(|id| id.to_string()).unwrap_or_default();
    tracing::info!("joined cluster {cluster_id}");
}

/// Reports this node's address to the members once, or, as leader, commits it.
///
/// A leader that moved leads only until the others elect one that they reach, unless they are too few: it then does so
/// itself.
pub async fn report_address(app: &ExampleApp, config: &Config) {
    let mut pause = Pause::new();
    let mut said = None;
    while app.moved().is_some() {
        let mut addresses = app.other_members();
        addresses.extend(config.join_targets(&app.addr).cloned());
        // The role does not change.
        let Some(role) = app.last_known_role() else {
            pause.wait().await;
            continue;
        };
        let mut reasons = Vec::new();
        if !app.hears_a_leader() {
            find_members(app, config).await;
        }
        if app.role() == Role::Leader {
            addresses.insert(0, app.addr.clone());
        }
        for addr in addresses {
            match ask(app, &addr, "/v1/cluster/members", add_body(app, role).as_ref()).await {
                Ok(_) => {
                    reasons.clear();
                    break;
                }
                Err(Rejected { message, .. }) => reasons.push(format!("{addr}: {message}")),
            }
        }
        let why = reasons.join("; ");
        if !why.is_empty() && said.as_ref() != Some(&why) {
            tracing::info!("the new address is not committed yet: {why}");
            said = Some(why);
        }
        pause.wait().await;
    }
}

/// Looks for members at the addresses of `--join`. If all nodes were started at other addresses, they find one another
/// only there: the membership has their new addresses once there is a leader.
async fn find_members(app: &ExampleApp, config: &Config) {
    for target in config.join_targets(&app.addr) {
        let Ok(Introduction { identity, address, .. }) = peer::introduced(app, target).await else { continue };
        let is_of_cluster = identity.cluster_id.is_some() && identity.cluster_id == app.store.identity().cluster_id;
        let (id, incarnation, address) = (identity.node_id, identity.incarnation, address.as_ref().unwrap_or(target));
        if is_of_cluster
            && !responds_at_its_address(app, &identity).await
            && app.peers.note_found(id, incarnation, address)
        {
            tracing::info!("node {id} runs at {address}, not at its address in the membership");
        }
    }
}

/// Whether a process responds as this node at its address in the membership. Then the other one may run on a copy of
/// its data.
async fn responds_at_its_address(app: &ExampleApp, identity: &PeerIdentity) -> bool {
    let Some(member) = app.membership().get_node(&identity.node_id).cloned() else { return false };
    let found = peer::introduced(app, &member.addr).await.map(|found| found.identity);
    found.is_ok_and(|found| (found.node_id, found.incarnation) == (identity.node_id, identity.incarnation))
}

fn add_body(app: &ExampleApp, join_as: JoinAs) -> Option<AddMember> {
    let role = match join_as {
        JoinAs::Voter => AddedRole::Voter,
        JoinAs::Learner => AddedRole::Learner,
    };
    Some(AddMember { id: app.id, address: app.addr.clone(), role })
}

/// Why a request was not served.
struct Rejected {
    /// Empty if there was no response.
    code: String,
    message: String,
}

/// Sends a request about this node to a node of the cluster, which forwards it to the leader.
async fn ask(
    app: &ExampleApp,
    addr: &str,
    path: &str,
    body: Option<&impl Serialize>,
) -> Result<MemberChanged, Rejected> {
    let lost = |message: String| Rejected { code: String::new(), message };
    // The other node may not know the name in `addr` as its own (`network::browser`).
    let mut request = app.http.to(None).post(app.http.url(addr, path)).header("host", "localhost");
    request = request.timeout(MEMBERSHIP_DEADLINE + FORWARD_DEADLINE);
    if let Some(body) = body {
        let body = serde_json::to_vec(body).map_err(|error| lost(error.to_string()))?;
        request = request.header("content-type", "application/json").body(body);
    }
    let response = app.peers.proofs.send(request, Purpose::Own).await.map_err(|error| lost(reason_of(&error)))?;
    let succeeded = response.status().is_success();
    let body = read_response(response, PASSED_ON_RESPONSE_BYTES_MAX).await.map_err(|error| lost(error.to_string()))?;
    if succeeded {
        let changed: MemberChanged = serde_json::from_slice(&body).map_err(|_| lost(not_a_node(addr)))?;
        return Ok(MemberChanged { message: for_the_log(changed.message), ..changed });
    }
    let ErrorAnswer { error } = serde_json::from_slice(&body).map_err(|_| lost(not_a_node(addr)))?;
    Err(Rejected { code: error.code, message: for_the_log(error.message) })
}

/// The message of any server, which may be none of ours.
fn for_the_log(message: String) -> String {
    shortened(message.replace(char::is_control, " "))
}

fn not_a_node(addr: &str) -> String {
    let error: ApiError = peer::not_a_node(addr);
    error.to_string()
}
