//! Nodes that join and leave, also during other faults.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use harness::http::{self, Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Scene;
use crate::history::NodeId;
use crate::network::Rule;
use crate::store::Client;

/// How long a change may take, including faults.
const CHANGE_DEADLINE: Duration = Duration::from_secs(60);
const ATTEMPT_DEADLINE: Duration = Duration::from_secs(20);
/// How long a node with an empty disk may take until the other nodes have told it that it is not a member.
const EXCLUSION_DEADLINE: Duration = Duration::from_secs(5);

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
            isolate_leader(scene).await?;
            scene.hold(700..2500).await;
            scene.cluster.heal()?;
        }
    }
    change.await.context("a change panicked")??;
    scene.cluster.retire(old)?;
    Ok(format!("node {old} by node {new}"))
}

async fn isolate_leader(scene: &mut Scene<'_>) -> Result<()> {
    // The current leader, if there is one.
    let Some(leader) = scene.cluster.leader().await else {
        scene.did_nothing();
        return Ok(());
    };
    let leader_address = scene.cluster.node(leader)?.host.address;
    let mut from_others = Vec::new();
    for node in scene.cluster.nodes.iter().filter(|node| node.id() != leader) {
        from_others.push(Rule::Drop(node.host.address));
        node.host.set_rules(&[Rule::Drop(leader_address)])?;
    }
    scene.cluster.node(leader)?.host.set_rules(&from_others)
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
    Change::new(scene, old, new)?.make().await?;
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

/// A membership change, made through any node that responds.
struct Change {
    client: Client,
    /// The nodes to send the requests to.
    asked: Vec<SocketAddr>,
    new: (NodeId, String),
    voters: Vec<NodeId>,
}

impl Change {
    fn new(scene: &mut Scene<'_>, old: NodeId, new: NodeId) -> Result<Self> {
        let voters: Vec<NodeId> = scene.cluster.ids().into_iter().filter(|id| *id != old).collect();
        let asked = scene.cluster.nodes.iter().filter(|node| voters.contains(&node.id()) && node.id() != new);
        let asked = asked.map(|node| node.host.http()).collect();
        let addr = scene.cluster.node(new)?.host.peer().to_string();
        Ok(Change { client: scene.cluster.client.clone(), asked, new: (new, addr), voters })
    }

    async fn make(self) -> Result<()> {
        self.until_done("/add-learner", json!(self.new)).await?;
        self.until_done("/change-membership", json!(self.voters)).await
    }

    /// Repeats the request until it is known to be done. Two nodes may get it.
    async fn until_done(&self, path: &str, body: Value) -> Result<()> {
        let deadline = Instant::now() + CHANGE_DEADLINE;
        let mut turn = 0;
        loop {
            let node = self.asked[turn % self.asked.len()];
            turn += 1;
            let request = http::json(Method::POST, path, &body);
            let said = match self.client.http().send(node, request, ATTEMPT_DEADLINE).await {
                Ok(answer) if answer.status().is_success() => return Ok(()),
                Ok(answer) => String::from_utf8_lossy(answer.body()).into_owned(),
                Err(error) => format!("{error:#}"),
            };
            if Instant::now() > deadline {
                bail!("{path} {body} is not done within {CHANGE_DEADLINE:?}; last response: {said}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
