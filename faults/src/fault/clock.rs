//! Clocks on the wall that are wrong, and jump.

use anyhow::Result;

use super::{Scene, Who};

/// An hour, in seconds.
const JUMP_SECONDS_MAX: i64 = 3600;

/// The nodes are started again with a clock that is wrong; it jumps while they
/// run; and they are started again with the right one. What measures how long
/// something takes goes on as it should: that is another clock.
pub async fn jump(scene: &mut Scene<'_>, who: Who) -> Result<String> {
    let targets = scene.choose(who).await?;
    let mut jumps = Vec::new();
    for id in &targets {
        let ahead = scene.random.i64(-JUMP_SECONDS_MAX..=JUMP_SECONDS_MAX);
        let node = scene.cluster.node(*id)?;
        node.set_clock(ahead)?;
        node.kill()?;
        node.start()?;
        jumps.push(ahead);
    }
    scene.hold(500..2000).await;
    for id in &targets {
        let ahead = scene.random.i64(-JUMP_SECONDS_MAX..=JUMP_SECONDS_MAX);
        scene.cluster.node(*id)?.set_clock(ahead)?;
        jumps.push(ahead);
    }
    scene.hold(500..2000).await;
    for id in &targets {
        let node = scene.cluster.node(*id)?;
        node.true_clock();
        node.kill()?;
        node.start()?;
    }
    Ok(format!("nodes {targets:?} by {jumps:?} s"))
}
