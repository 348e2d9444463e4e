//! Nodes that join and leave, also during other faults.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use harness::http::{self, Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Scene;
use crate::finding::Symptom;
use crate::history::NodeId;
use crate::network::Rule;
use crate::store::Client;

/// How long a change may take, including faults.
const CHANGE_DEADLINE: Duration = Duration::from_secs(60);
const ATTEMPT_DEADLINE: Duration = Duration::from_secs(20);
/// How long a node with an empty disk may take until the other nodes have told it that it is not a member.
const EXCLUSION_DEADLINE: Duration = Duration::from_secs(5);

/// A learner that has been one for less than this time must not become a voter.
const CAUGHT_UP_FOR: Duration = Duration::from_secs(1);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The fault during the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meanwhile {
    Nothing,
    /// Nodes are killed and restarted.
    Kill,
    /// The leader is isolated for a while.
    Isolate,
}

/// Replaces a node, which may be the leader, by a new one.
pub async fn replace(scene: &mut Scene<'_>, meanwhile: Meanwhile) -> Result<String> {
    let ids = scene.cluster.ids();
    let old = ids[scene.random.usize(..ids.len())];
    let new = start_new_node(scene).await?;
    let change = Change::new(scene, old, new)?;
    let change = tokio::spawn(change.make());
    match meanwhile {
        Meanwhile::Nothing => {}
        Meanwhile::Kill => {
            for _ in 0..2 {
                scene.hold(0..300).await;
                let id = ids[scene.random.usize(..ids.len())];
                scene.cluster.node(id)?.kill()?;
                scene.hold(50..700).await;
                scene.cluster.heal()?;
            }
        }
        Meanwhile::Isolate => {
            scene.hold(0..200).await;
            if let Some(leader) = current_leader(scene).await {
                isolate(scene, leader)?;
            }
            scene.hold(700..2500).await;
            scene.cluster.heal()?;
        }
    }
    change.await.context("a change panicked")??;
    scene.cluster.retire(old)?;
    Ok(format!("node {old} by node {new}"))
}

/// The leader at this moment; without one, the fault has no effect.
async fn current_leader(scene: &mut Scene<'_>) -> Option<NodeId> {
    let leader = scene.cluster.leader().await;
    if leader.is_none() {
        scene.did_nothing();
    }
    leader
}

/// Drops all packets between a node and the others.
pub fn isolate(scene: &mut Scene<'_>, id: NodeId) -> Result<()> {
    let address = scene.cluster.node(id)?.host.address;
    let mut from_others = Vec::new();
    for node in scene.cluster.nodes.iter().filter(|node| node.id() != id) {
        from_others.push(Rule::Drop(node.host.address));
        node.host.set_rules(&[Rule::Drop(address)])?;
    }
    scene.cluster.node(id)?.host.set_rules(&from_others)
}

/// An empty node joins by itself while a node is killed or the leader is isolated, and becomes a voter. A member, which
/// may be the new one or the leader, is then removed.
pub async fn join(scene: &mut Scene<'_>) -> Result<String> {
    let members = scene.cluster.ids();
    let id = start_joining(scene)?;
    scene.hold(0..1500).await;
    let meanwhile = if scene.random.bool() {
        let killed = members[scene.random.usize(..members.len())];
        scene.cluster.node(killed)?.kill()?;
        format!("node {killed} was killed")
    } else {
        match current_leader(scene).await {
            Some(leader) => isolate(scene, leader)?,
            None => return heal_and_remove(scene, id, id, "there was no leader").await,
        }
        "the leader was isolated".to_owned()
    };
    scene.hold(300..1500).await;
    let all: Vec<NodeId> = members.into_iter().chain([id]).collect();
    let removed = all[scene.random.usize(..all.len())];
    heal_and_remove(scene, id, removed, &meanwhile).await
}

async fn heal_and_remove(scene: &mut Scene<'_>, id: NodeId, removed: NodeId, meanwhile: &str) -> Result<String> {
    scene.cluster.heal()?;
    wait_until_voter(scene, id).await?;
    scene.hold(0..500).await;
    remove(scene, removed).await?;
    Ok(format!("node {id} while {meanwhile}, node {removed} removed"))
}

/// A node that joins is killed before it can have had all data for long enough to become a voter, and must not become
/// one while it is dead. It is then restarted by the same command and becomes a voter, or is removed.
pub async fn join_killed(scene: &mut Scene<'_>) -> Result<String> {
    let began = Instant::now();
    let id = start_joining(scene)?;
    scene.hold(150..800).await;
    let was_learner = is_member(scene, id).await;
    scene.cluster.node(id)?.kill()?;
    // Killed in time, unless the machine was too slow.
    if began.elapsed() < CAUGHT_UP_FOR {
        let until = Instant::now() + Duration::from_millis(scene.random.u64(500..2000));
        poll_for_early_voter(scene, id, until).await;
    } else {
        scene.did_nothing();
    }
    if !was_learner {
        scene.did_nothing();
    } else if scene.random.bool() {
        remove(scene, id).await?;
        return Ok(format!("node {id}, removed while it was dead"));
    }
    scene.cluster.heal()?;
    wait_until_voter(scene, id).await?;
    let ids = scene.cluster.ids();
    let removed = ids[scene.random.usize(..ids.len())];
    remove(scene, removed).await?;
    Ok(format!("node {id}, restarted, node {removed} removed"))
}

/// Watches for a while that a dead node does not become a voter.
async fn poll_for_early_voter(scene: &mut Scene<'_>, id: NodeId, until: Instant) {
    while Instant::now() < until {
        let statuses = scene.cluster.statuses().await;
        if let Some((through, status)) = statuses.iter().find(|(_, status)| status.voters.contains(&id)) {
            let (through, voters) = (*through, status.voters.clone());
            let text = format!(
                "node {id} died before it had all data for {CAUGHT_UP_FOR:?}, but node {through} has the voters {voters:?}"
            );
            return scene.symptom(Symptom::Membership, text);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

async fn is_member(scene: &Scene<'_>, id: NodeId) -> bool {
    scene.cluster.statuses().await.iter().any(|(_, status)| status.addresses.contains_key(&id))
}

/// Starts an empty node that joins the cluster by itself.
fn start_joining(scene: &mut Scene<'_>) -> Result<NodeId> {
    let addresses: Vec<String> = scene.cluster.nodes.iter().map(|node| node.advertised().to_string()).collect();
    let id = scene.cluster.add_node()?;
    let node = scene.cluster.node(id)?;
    node.add_flags(&["--join", &addresses.join(",")]);
    node.start()?;
    Ok(id)
}

/// Waits until all nodes know that a node votes.
async fn wait_until_voter(scene: &Scene<'_>, id: NodeId) -> Result<()> {
    let deadline = Instant::now() + CHANGE_DEADLINE;
    loop {
        let statuses = scene.cluster.statuses().await;
        let voting = statuses.iter().filter(|(_, status)| status.voters.contains(&id)).count();
        if voting == scene.cluster.nodes.len() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("node {id} did not become a voter within {CHANGE_DEADLINE:?}: {statuses:?}");
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Removes a member, running or not, and ends it.
async fn remove(scene: &mut Scene<'_>, id: NodeId) -> Result<()> {
    let asked = scene.cluster.nodes.iter().filter(|node| node.id() != id).map(|node| node.host.http()).collect();
    let requests = Requests { client: scene.cluster.client.clone(), asked };
    requests.until_done(Method::DELETE, &format!("/v1/cluster/members/{id}"), None).await?;
    scene.cluster.retire(id)?;
    let deadline = Instant::now() + CHANGE_DEADLINE;
    loop {
        let statuses = scene.cluster.statuses().await;
        let knowing = statuses.iter().filter(|(_, status)| !status.addresses.contains_key(&id)).count();
        if knowing == scene.cluster.nodes.len() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("node {id} was removed, but {statuses:?}");
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Restarts a node with an empty disk: the other nodes must not treat it as the former one. It is then
/// replaced, as the README describes.
pub async fn wipe(scene: &mut Scene<'_>) -> Result<String> {
    let ids = scene.cluster.ids();
    let old = ids[scene.random.usize(..ids.len())];
    let node = scene.cluster.node(old)?;
    node.kill()?;
    node.wipe()?;
    node.start()?;
    scene.hold(1000..3000).await;
    let host = scene.cluster.node(old)?.host.clone();
    if let Err(said) = wait_until_excluded(&scene.cluster.client, host.http()).await {
        scene.finding(format!("node {old} has an empty disk, but does not know that it is not a member: {said:#}"));
    }
    match scene.cluster.client.status(host.http()).await {
        // A higher term would come from a vote that the node gave, to itself or another.
        Ok(status) if status.applied > 0 || status.last_log > 0 || status.term > 0 || status.leader == Some(old) => {
            scene.finding(format!("node {old} has an empty disk, but was accepted as a member: {status:?}"));
        }
        Ok(_) => {}
        Err(error) => scene.finding(format!("node {old} has an empty disk and does not respond: {error:#}")),
    }
    scene.cluster.node(old)?.kill()?;
    let new = start_new_node(scene).await?;
    let Change { requests, new: (new, address), .. } = Change::new(scene, old, new)?;
    let body = json!({"id": new, "address": address});
    requests.until_done(Method::POST, &format!("/v1/cluster/members/{old}/replace"), Some(body)).await?;
    scene.cluster.retire(old)?;
    Ok(format!("node {old}, replaced by node {new}"))
}

/// Waits until the other nodes have told a node with an empty disk that it is not a member, and it rejects a
/// client for that reason.
async fn wait_until_excluded(client: &Client, node: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + EXCLUSION_DEADLINE;
    loop {
        let answer = client.http().send(node, http::get("/v1/kv/key/1"), EXCLUSION_DEADLINE).await;
        let answer = answer.context("the request of a client failed")?;
        let (status, body) = (answer.status(), answer.body());
        let code = serde_json::from_slice(body).map(|body: Value| body["error"]["code"] == "not_member");
        if status == StatusCode::SERVICE_UNAVAILABLE && code.unwrap_or_default() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("after {EXCLUSION_DEADLINE:?} it returns {status}: {}", String::from_utf8_lossy(body));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn start_new_node(scene: &mut Scene<'_>) -> Result<NodeId> {
    let id = scene.cluster.add_node()?;
    let client = scene.cluster.client.clone();
    let node = scene.cluster.node(id)?;
    node.start()?;
    let deadline = Instant::now() + ATTEMPT_DEADLINE;
    while let Err(error) = client.status(node.host.http()).await {
        if Instant::now() > deadline {
            bail!("the new node {id} does not respond: {error:#}");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(id)
}

/// A membership change by the routes of the openraft example.
struct Change {
    requests: Requests,
    new: (NodeId, String),
    voters: Vec<NodeId>,
}

impl Change {
    fn new(scene: &mut Scene<'_>, old: NodeId, new: NodeId) -> Result<Self> {
        let voters: Vec<NodeId> = scene.cluster.ids().into_iter().filter(|id| *id != old).collect();
        let asked = scene.cluster.nodes.iter().filter(|node| voters.contains(&node.id()) && node.id() != new);
        let asked = asked.map(|node| node.host.http()).collect();
        let addr = scene.cluster.node(new)?.advertised().to_string();
        let requests = Requests { client: scene.cluster.client.clone(), asked };
        Ok(Change { requests, new: (new, addr), voters })
    }

    async fn make(self) -> Result<()> {
        self.requests.until_done(Method::POST, "/add-learner", Some(json!(self.new))).await?;
        self.requests.until_done(Method::POST, "/change-membership", Some(json!(self.voters))).await
    }
}

/// Requests to any node that responds.
struct Requests {
    client: Client,
    asked: Vec<SocketAddr>,
}

impl Requests {
    /// Repeats a request until it is known to be done. Two nodes may get it.
    async fn until_done(&self, method: Method, path: &str, body: Option<Value>) -> Result<()> {
        let deadline = Instant::now() + CHANGE_DEADLINE;
        let mut turn = 0;
        loop {
            let node = self.asked[turn % self.asked.len()];
            turn += 1;
            let request = match &body {
                Some(body) => http::json(method.clone(), path, body),
                None => http::request(method.clone(), path, ""),
            };
            let said = match self.client.http().send(node, request, ATTEMPT_DEADLINE).await {
                Ok(answer) if answer.status() == StatusCode::OK => return Ok(()),
                // An earlier attempt removed it.
                Ok(answer) if method == Method::DELETE && answer.status() == StatusCode::NOT_FOUND => return Ok(()),
                Ok(answer) => String::from_utf8_lossy(answer.body()).into_owned(),
                Err(error) => format!("{error:#}"),
            };
            if Instant::now() > deadline {
                let body = body.unwrap_or_default();
                bail!("{method} {path} {body} is not done within {CHANGE_DEADLINE:?}; last response: {said}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
