//! Wall clocks that are wrong, and jump.

use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use harness::http;
use tokio::time::Instant;

use super::{Scene, Who};
use crate::finding::HarnessError;
use crate::history::NodeId;
use crate::lane::calm;

/// An hour, in seconds.
const JUMP_SECONDS_MAX: i64 = 3600;
/// Maximum number of leaders that are killed until a node with a wrong clock leads.
const ELECTIONS_MAX: usize = 3;
/// How long an election may take.
const ELECTION_DEADLINE: Duration = Duration::from_secs(20);
/// How long a node may take until it reports the time that it was given.
const TELL_DEADLINE: Duration = Duration::from_secs(15);
/// Maximum difference between the reported and the given time: a node reports whole seconds, and rarely reads
/// the clock.
const TELL_SECONDS_MAX: u64 = 5;

/// Restarts nodes with wrong clocks, lets the clocks jump while the nodes run, and restarts the nodes with
/// right clocks. The monotonic clocks stay right.
///
/// One node is restarted at a time, so that a majority keeps running.
pub async fn jump(scene: &mut Scene<'_>, who: Who) -> Result<String> {
    let mut targets = scene.choose(who).await?;
    if who == Who::Leader {
        // The other targets take over from the leader.
        let leader = targets[0];
        targets = scene.cluster.ids().into_iter().filter(|id| *id != leader).collect();
    }
    let mut jumps = Vec::new();
    for id in &targets {
        let ahead = ahead(scene);
        let node = scene.cluster.node(*id)?;
        node.set_clock(ahead)?;
        node.kill()?;
        node.start()?;
        jumps.push(ahead);
        calm(scene.cluster).await?;
    }
    wait_until_told(scene, &targets, &jumps).await?;
    if who == Who::Leader {
        let new = let_one_lead(scene, &targets).await?;
        scene.hold(500..2000).await;
        // Starts the killed nodes with right clocks.
        scene.cluster.heal()?;
        calm(scene.cluster).await?;
        if new.is_none() {
            scene.did_nothing();
        }
    }
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
        calm(scene.cluster).await?;
    }
    Ok(format!("nodes {targets:?} by {first_jumps:?} s, then {jumps:?} s"))
}

/// Kills the leader until one of the targets leads; `None` if that does not happen.
async fn let_one_lead(scene: &mut Scene<'_>, targets: &[NodeId]) -> Result<Option<NodeId>> {
    for _ in 0..ELECTIONS_MAX {
        let leader = scene.cluster.wait_for_leader(ELECTION_DEADLINE).await?;
        if targets.contains(&leader) {
            return Ok(Some(leader));
        }
        scene.cluster.heal()?;
        scene.cluster.node(leader)?.kill()?;
        let deadline = Instant::now() + ELECTION_DEADLINE;
        while Instant::now() < deadline && scene.cluster.leader().await.is_none_or(|now| now == leader) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let leader = scene.cluster.wait_for_leader(ELECTION_DEADLINE).await?;
    Ok(targets.contains(&leader).then_some(leader))
}

/// Kills all nodes, starts them at once with wrong clocks, and restarts them later with the right ones. Until
/// then no node knows how long it was down.
pub async fn restart(scene: &mut Scene<'_>) -> Result<String> {
    let targets = scene.choose(Who::All).await?;
    let jumps: Vec<i64> = targets.iter().map(|_| ahead(scene)).collect();
    for (id, ahead) in targets.iter().zip(&jumps) {
        let node = scene.cluster.node(*id)?;
        node.set_clock(*ahead)?;
        node.kill()?;
    }
    scene.hold(0..500).await;
    scene.cluster.heal()?;
    wait_until_told(scene, &targets, &jumps).await?;
    calm(scene.cluster).await?;
    scene.hold(500..2000).await;
    for id in &targets {
        let node = scene.cluster.node(*id)?;
        node.true_clock();
        node.kill()?;
    }
    scene.cluster.heal()?;
    Ok(format!("nodes {targets:?} by {jumps:?} s"))
}

/// Far enough from the true time to be distinguishable.
fn ahead(scene: &mut Scene<'_>) -> i64 {
    let seconds = scene.random.i64(4 * TELL_SECONDS_MAX as i64..=JUMP_SECONDS_MAX);
    if scene.random.bool() { seconds } else { -seconds }
}

/// Waits until the nodes report the times that they were given: a clock that did not move would be no fault.
async fn wait_until_told(scene: &mut Scene<'_>, targets: &[NodeId], jumps: &[i64]) -> Result<()> {
    for (id, ahead) in targets.iter().zip(jumps) {
        let node = scene.cluster.node(*id)?.host.http();
        let deadline = Instant::now() + TELL_DEADLINE;
        loop {
            let answer = scene.cluster.client.http().send(node, http::get("/metrics"), TELL_DEADLINE).await;
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

/// Seconds since 1970, of a time in HTTP's format.
fn seconds_of(date: &str) -> Result<u64> {
    let output = Command::new("date").args(["-u", "+%s", "-d", date]).output().context("cannot start `date`")?;
    let seconds = String::from_utf8_lossy(&output.stdout);
    seconds.trim().parse().with_context(|| format!("`{date}` is not a time"))
}
