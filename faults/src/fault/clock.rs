//! Clocks on the wall that are wrong, and jump.

use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use tokio::time::Instant;

use super::{Scene, Who};
use crate::finding::HarnessError;
use crate::history::NodeId;

/// An hour, in seconds.
const JUMP_SECONDS_MAX: i64 = 3600;
/// How long a node may take until it tells the time that it was given.
const TELL_DEADLINE: Duration = Duration::from_secs(15);
/// How far off what it tells may be: it tells whole seconds, and rarely looks.
const TELL_SECONDS_MAX: u64 = 5;

/// The nodes are started again with a clock that is wrong; it jumps while they
/// run; and they are started again with the right one. What measures how long
/// something takes goes on as it should: that is another clock.
pub async fn jump(scene: &mut Scene<'_>, who: Who) -> Result<String> {
    let targets = scene.choose(who).await?;
    let mut jumps = Vec::new();
    for id in &targets {
        let ahead = ahead(scene);
        let node = scene.cluster.node(*id)?;
        node.set_clock(ahead)?;
        node.kill()?;
        node.start()?;
        jumps.push(ahead);
    }
    wait_until_told(scene, &targets, &jumps).await?;
    scene.hold(500..2000).await;
    let first_jumps = std::mem::take(&mut jumps);
    for id in &targets {
        let ahead = ahead(scene);
        scene.cluster.node(*id)?.set_clock(ahead)?;
        jumps.push(ahead);
    }
    wait_until_told(scene, &targets, &jumps).await?;
    scene.hold(500..2000).await;
    for id in &targets {
        let node = scene.cluster.node(*id)?;
        node.true_clock();
        node.kill()?;
        node.start()?;
    }
    Ok(format!("nodes {targets:?} by {first_jumps:?} s, then {jumps:?} s"))
}

/// Far enough from the true time to be told from it.
fn ahead(scene: &mut Scene<'_>) -> i64 {
    let seconds = scene.random.i64(4 * TELL_SECONDS_MAX as i64..=JUMP_SECONDS_MAX);
    if scene.random.bool() { seconds } else { -seconds }
}

/// Waits until the nodes themselves tell the times that they were given: a clock that
/// did not move would be no fault.
async fn wait_until_told(scene: &mut Scene<'_>, targets: &[NodeId], jumps: &[i64]) -> Result<()> {
    for (id, ahead) in targets.iter().zip(jumps) {
        let node = scene.cluster.node(*id)?.host.http();
        let deadline = Instant::now() + TELL_DEADLINE;
        loop {
            let url = format!("http://{node}/metrics");
            let answer = scene.cluster.client.http().get(url).timeout(TELL_DEADLINE).send().await;
            let date = answer.ok().and_then(|answer| Some(answer.headers().get("date")?.to_str().ok()?.to_owned()));
            let told = date.as_deref().map(seconds_of).transpose()?;
            let wanted = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs().saturating_add_signed(*ahead);
            if told.is_some_and(|told| told.abs_diff(wanted) <= TELL_SECONDS_MAX) {
                break;
            }
            if Instant::now() > deadline {
                let Some(date) = date else { bail!("node {id} does not respond after its clock was set") };
                let text = format!("node {id} was given a clock that is {ahead} s ahead, and it responds at {date}");
                bail!(HarnessError(text));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

/// Seconds since 1970 of a time as HTTP has it.
fn seconds_of(date: &str) -> Result<u64> {
    let output = Command::new("date").args(["-u", "+%s", "-d", date]).output().context("cannot start `date`")?;
    let seconds = String::from_utf8_lossy(&output.stdout);
    seconds.trim().parse().with_context(|| format!("{date:?} is no time"))
}
