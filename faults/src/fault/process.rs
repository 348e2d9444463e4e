//! Processes that are killed, or stand still.

use std::time::Duration;

use anyhow::Result;

use super::{Scene, Who};

/// How long a node may take to finish what is under way.
const STOP_DEADLINE: Duration = Duration::from_secs(15);

pub async fn kill(scene: &mut Scene<'_>, who: Who) -> Result<String> {
    let targets = scene.choose(who).await?;
    for id in &targets {
        scene.cluster.node(*id)?.kill()?;
    }
    scene.hold(100..2500).await;
    scene.cluster.heal()?;
    Ok(format!("nodes {targets:?}"))
}

/// All of them together, as an operator in a hurry would.
pub async fn stop(scene: &mut Scene<'_>, who: Who) -> Result<String> {
    let targets = scene.choose(who).await?;
    for id in &targets {
        scene.cluster.node(*id)?.terminate()?;
    }
    for id in &targets {
        let node = scene.cluster.node(*id)?;
        match node.wait(STOP_DEADLINE).await? {
            Some(_) => {} // With another status than 0 it is found when it is started again.
            None => scene.finding(format!("node {id} does not stop within {STOP_DEADLINE:?}")),
        }
    }
    scene.hold(0..1500).await;
    for id in &targets {
        scene.cluster.node(*id)?.kill()?; // One that did not stop.
    }
    scene.cluster.heal()?;
    Ok(format!("nodes {targets:?}"))
}

/// Mostly about as long as an election takes, sometimes much shorter or longer.
pub async fn pause(scene: &mut Scene<'_>, who: Who) -> Result<String> {
    let targets = scene.choose(who).await?;
    for id in &targets {
        scene.cluster.node(*id)?.pause()?;
    }
    let milliseconds = match scene.random.u8(..10) {
        0..3 => 100..500,
        3..9 => 500..3000,
        _ => 9000..10_000,
    };
    scene.hold(milliseconds).await;
    scene.cluster.heal()?;
    Ok(format!("nodes {targets:?}"))
}
