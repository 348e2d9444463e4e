//! Nodes that fall so far behind that only a snapshot helps.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::Instant;

use super::{Scene, Who};
use crate::history::NodeId;
use crate::load;
use crate::network::{Host, Rule};

/// More than a node keeps in its log after a snapshot, with what it removes at once.
const BURST_WRITES: u64 = 1500;
/// How long the others may take to elect a leader of theirs.
const ELECTION_DEADLINE: Duration = Duration::from_secs(15);

/// Who is killed while the snapshot is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Killed {
    Nobody,
    Sender,
    Receiver,
}

pub async fn lag(scene: &mut Scene<'_>, killed: Killed) -> Result<String> {
    let target = scene.choose(Who::Follower).await?[0];
    scene.cluster.node(target)?.kill()?;
    let others: Vec<_> =
        scene.cluster.nodes.iter().filter(|node| node.id() != target).map(|node| node.host.clone()).collect();
    let written = load::burst(&scene.cluster.client, &others, scene.recorder, BURST_WRITES).await;
    let leader = scene.choose(Who::Leader).await?[0];
    scene.cluster.node(target)?.start()?;
    // From when the node listens to after the snapshot is installed.
    scene.hold(0..400).await;
    match killed {
        Killed::Nobody => {}
        Killed::Sender => scene.cluster.node(leader)?.kill()?,
        Killed::Receiver => scene.cluster.node(target)?.kill()?,
    }
    scene.hold(0..500).await;
    scene.cluster.heal()?;
    if written == 0 {
        scene.did_nothing();
    }
    Ok(format!("node {target} by {written} writes, leader {leader}"))
}

/// The leader hears nothing for a moment, so that writes of its own are with the
/// others and it does not know; then it stands still, and falls behind. Whoever still
/// waits for such a write must not be told that nothing was done.
pub async fn lag_leader(scene: &mut Scene<'_>) -> Result<String> {
    let leader = scene.choose(Who::Leader).await?[0];
    let others: Vec<Host> =
        scene.cluster.nodes.iter().filter(|node| node.id() != leader).map(|node| node.host.clone()).collect();
    let deaf: Vec<Rule> = others.iter().map(|host| Rule::Drop(host.address)).collect();
    let node = scene.cluster.node(leader)?;
    node.host.set_rules(&deaf)?;
    scene.hold(30..120).await;
    scene.cluster.node(leader)?.pause()?;
    wait_for_another_leader(scene, leader, &others).await?;
    let written = load::burst(&scene.cluster.client, &others, scene.recorder, BURST_WRITES).await;
    scene.cluster.heal()?;
    if written == 0 {
        scene.did_nothing();
    }
    scene.hold(500..1500).await;
    Ok(format!("node {leader} by {written} writes"))
}

/// Asks the others only: one that stands still would be waited for.
async fn wait_for_another_leader(scene: &Scene<'_>, former: NodeId, others: &[Host]) -> Result<()> {
    let deadline = Instant::now() + ELECTION_DEADLINE;
    loop {
        for host in others {
            let status = scene.cluster.client.status(host.http()).await.context("to wait for another leader")?;
            if status.leader.is_some_and(|leader| leader != former) {
                return Ok(());
            }
        }
        if Instant::now() > deadline {
            bail!("no other leader within {ELECTION_DEADLINE:?} after node {former} stands still");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
