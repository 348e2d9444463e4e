//! Processes that are killed, paused, or cannot write their log.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::Instant;

use super::{CLIENT_OF_FAULTS, Scene, Who};
use crate::history::{Call, NodeId, Outcome};
use crate::lane::calm;
use crate::node::LostLog;
use crate::store::CLIENT_DEADLINE;

/// How long a node may take to finish its work in progress.
const STOP_DEADLINE: Duration = Duration::from_secs(15);
/// How long a node without a log may take to complete a write.
const SERVE_DEADLINE: Duration = Duration::from_secs(15);

pub async fn kill(scene: &mut Scene<'_>, who: Who) -> Result<String> {
    let targets = scene.choose(who).await?;
    for id in &targets {
        scene.cluster.node(*id)?.kill()?;
    }
    scene.hold(100..2500).await;
    scene.cluster.heal()?;
    Ok(format!("nodes {targets:?}"))
}

/// Stops all targets together, as an operator in a hurry would.
pub async fn stop(scene: &mut Scene<'_>, who: Who) -> Result<String> {
    let targets = scene.choose(who).await?;
    stop_in_time(scene, &targets).await?;
    scene.hold(0..1500).await;
    scene.cluster.heal()?;
    Ok(format!("nodes {targets:?}"))
}

/// Sends SIGTERM to some nodes at once, and kills those that do not end in time.
async fn stop_in_time(scene: &mut Scene<'_>, targets: &[NodeId]) -> Result<()> {
    for id in targets {
        scene.cluster.node(*id)?.terminate()?;
    }
    for id in targets {
        let node = scene.cluster.node(*id)?;
        match node.wait(STOP_DEADLINE).await? {
            Some(_) => {} // An exit code other than 0 is detected at the restart.
            None => scene.finding(format!("node {id} does not stop within {STOP_DEADLINE:?}")),
        }
    }
    for id in targets {
        scene.cluster.node(*id)?.kill()?; // This node did not stop.
    }
    Ok(())
}

/// Mostly about as long as an election, sometimes much shorter or longer.
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

/// Starts all nodes except the leader with logs that are lost. They must rejoin, elect one of them as leader,
/// which logs that, serve, and stop on SIGTERM.
pub async fn lose_log(scene: &mut Scene<'_>) -> Result<String> {
    let all = scene.choose(Who::All).await?;
    let (leader, others) = all.split_first().context("a cluster without nodes")?;
    let kinds = [LostLog::FullPipe, LostLog::ClosedPipe, LostLog::FullDisk];
    let first = scene.random.usize(..kinds.len());
    let mut done = Vec::new();
    for (number, id) in others.iter().enumerate() {
        let lost = kinds[(first + number) % kinds.len()];
        done.push(format!("node {id} {lost:?}"));
        let node = scene.cluster.node(*id)?;
        node.kill()?;
        node.start_with_lost_log(lost)?;
        calm(scene.cluster).await?;
    }
    scene.cluster.node(*leader)?.kill()?;
    scene.hold(500..2500).await;
    scene.cluster.node(*leader)?.start()?;
    calm(scene.cluster).await?;
    for id in others {
        wait_until_it_writes(scene, *id).await?;
    }
    stop_in_time(scene, others).await?;
    scene.cluster.heal()?;
    Ok(done.join(", "))
}

async fn wait_until_it_writes(scene: &mut Scene<'_>, id: NodeId) -> Result<()> {
    let host = scene.cluster.node(id)?.host.clone();
    let deadline = Instant::now() + SERVE_DEADLINE;
    for number in 0_u32.. {
        let value = format!("log-lost-{}-{number}", scene.recorder.now_ns());
        let call = Call::Put { key: format!("log-lost/{id}").into(), value: value.into(), condition: None };
        let called_ns = scene.recorder.now_ns();
        let attempt = scene.cluster.client.call(host.http(), &call, None, CLIENT_DEADLINE).await;
        let is_done = matches!(attempt.outcome, Outcome::Done(_));
        scene.recorder.add(CLIENT_OF_FAULTS, host.id, called_ns, call, attempt.outcome);
        if is_done {
            break;
        }
        if Instant::now() > deadline {
            bail!("no write through node {id} succeeds while its log is lost; last response: {}", attempt.reason);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
