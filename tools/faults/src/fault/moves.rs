//! Nodes that come back at another address, with the same data.

use std::time::Duration;

use anyhow::{Result, bail};
use harness::http::{self, StatusCode};
use tokio::time::Instant;

use super::membership::{Meanwhile, isolate};
use super::{Scene, Who};
use crate::cluster::CONVERGENCE_DEADLINE;
use crate::history::NodeId;

/// How long a node may take to finish its work in progress.
const STOP_DEADLINE: Duration = Duration::from_secs(15);
const READ_DEADLINE: Duration = Duration::from_secs(2);

/// Stops or kills a node, which may be the leader, and starts it at another address. All nodes must learn the address.
pub async fn move_node(scene: &mut Scene<'_>, meanwhile: Meanwhile) -> Result<String> {
    let nodes = scene.choose(Who::All).await?;
    let place = scene.random.usize(..nodes.len());
    let id = nodes[place];
    // The leader, unless that moves.
    let other = nodes[usize::from(place == 0)];
    if scene.random.bool() {
        scene.cluster.node(id)?.kill()?;
    } else {
        scene.cluster.node(id)?.terminate()?;
        if scene.cluster.node(id)?.wait(STOP_DEADLINE).await?.is_none() {
            bail!("node {id} does not stop within {STOP_DEADLINE:?}");
        }
    }
    scene.hold(0..400).await;
    scene.cluster.move_node(id)?;
    let detail = match meanwhile {
        Meanwhile::Nothing => {
            scene.cluster.node(id)?.start()?;
            String::new()
        }
        Meanwhile::Kill => {
            scene.cluster.node(other)?.kill()?;
            scene.cluster.node(id)?.start()?;
            scene.hold(300..2000).await;
            format!(" while node {other} was dead")
        }
        Meanwhile::Isolate if scene.random.bool() => {
            isolate(scene, id)?;
            scene.cluster.node(id)?.start()?;
            serves_nothing(scene, id).await?;
            " while it was isolated".to_owned()
        }
        Meanwhile::Isolate => {
            isolate(scene, other)?;
            scene.cluster.node(id)?.start()?;
            scene.hold(300..2000).await;
            format!(" while node {other} was isolated")
        }
    };
    scene.cluster.heal()?;
    wait_until_known(scene, id).await?;
    let address = scene.cluster.node(id)?.advertised();
    Ok(format!("node {id} to {address}{detail}"))
}

/// Until another node has reached a node at its new address, it must not serve even a stale read.
async fn serves_nothing(scene: &mut Scene<'_>, id: NodeId) -> Result<()> {
    let node = scene.cluster.node(id)?.host.http();
    let until = Instant::now() + Duration::from_millis(scene.random.u64(500..2000));
    let mut rejected = 0;
    while Instant::now() < until {
        let request = http::get("/v1/kv?consistency=stale&limit=1");
        let status = scene.cluster.client.http().send(node, request, READ_DEADLINE).await.ok().map(|it| it.status());
        match status {
            Some(StatusCode::OK) => {
                scene.finding(format!("node {id} serves a read, although no node has reached it at its new address"));
                break;
            }
            Some(StatusCode::SERVICE_UNAVAILABLE) => rejected += 1,
            _ => {} // It is starting.
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    if rejected == 0 {
        scene.did_nothing();
    }
    Ok(())
}

/// Waits until all nodes know the current address of a node.
async fn wait_until_known(scene: &mut Scene<'_>, id: NodeId) -> Result<()> {
    let address = scene.cluster.node(id)?.advertised().to_string();
    let deadline = Instant::now() + CONVERGENCE_DEADLINE;
    loop {
        let statuses = scene.cluster.statuses().await;
        let knowing = statuses.iter().filter(|(_, status)| status.addresses.get(&id) == Some(&address)).count();
        if knowing == scene.cluster.nodes.len() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let tail = scene.cluster.node(id)?.log_tail(10);
            bail!(
                "node {id} moved to {address}, which is not known within {CONVERGENCE_DEADLINE:?}: {statuses:?}\n{tail}"
            );
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
