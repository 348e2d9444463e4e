//! Nodes that fall so far behind that only a snapshot helps.

use anyhow::Result;

use super::{Scene, Who};
use crate::load;

/// More than a node keeps in its log after a snapshot, with what it removes at once.
const BURST_WRITES: u64 = 1500;

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
    Ok(format!("node {target} by {written} writes, leader {leader}"))
}
