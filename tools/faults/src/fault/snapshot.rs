//! Nodes that fall so far behind that they need a snapshot.

use std::fs::{self, Metadata};
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use tokio::time::Instant;

use super::{Scene, Who};
use crate::history::NodeId;
use crate::load;
use crate::network::{Host, Rule};

/// More than a node keeps in its log after a snapshot, including entries that it removes in batches.
const BURST_WRITES: u64 = 1500;
/// How long the other nodes may take to elect a leader among them.
const ELECTION_DEADLINE: Duration = Duration::from_secs(15);
/// How long until a node that lags behind gets a snapshot.
const TRANSFER_DEADLINE: Duration = Duration::from_secs(10);
/// Maximum time from the start of a snapshot's transfer to the kill, in milliseconds. The transfer may be
/// faster: each time the kill comes too late, the limit is halved for the next time.
const KILL_MS_MAX: u64 = 10;

/// The node that is killed during the transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Killed {
    Nobody,
    Sender,
    Receiver,
}

pub async fn lag(scene: &mut Scene<'_>, killed: Killed) -> Result<String> {
    let target = scene.choose(Who::Follower).await?[0];
    let written = fall_behind(scene, target).await?;
    let transfer = Transfer::to(scene, target);
    scene.cluster.node(target)?.start()?;
    let came = match killed {
        Killed::Nobody => transfer.wait_until_installed(scene).await?,
        Killed::Sender | Killed::Receiver => match transfer.wait_until_under_way(scene).await? {
            None => false,
            Some(sender) => {
                scene.hold(0..(KILL_MS_MAX >> scene.repeats.min(8)).max(1)).await;
                let victim = if killed == Killed::Sender { sender } else { target };
                kill_in_transfer(scene, &transfer, victim).await?
            }
        },
    };
    scene.hold(0..500).await;
    scene.cluster.heal()?;
    if !came {
        scene.did_nothing();
    }
    let sent = transfer.attempts(scene)?;
    Ok(format!("node {target} by {written} writes, snapshots sent: {sent:?}"))
}

/// Kills a node unless the snapshot is already installed; returns whether it killed the node.
///
/// The receiver is frozen meanwhile. Otherwise it could install the data in its socket buffers between the
/// look at its files and the kill, and the kill would be too late without any sign of it.
async fn kill_in_transfer(scene: &mut Scene<'_>, transfer: &Transfer, victim: NodeId) -> Result<bool> {
    let target = transfer.target;
    scene.cluster.node(target)?.pause()?;
    scene.cluster.node(target)?.freeze().await?;
    let is_under_way = !transfer.is_installed(scene)?;
    if is_under_way {
        scene.cluster.node(victim)?.kill()?;
    }
    if victim != target || !is_under_way {
        scene.cluster.node(target)?.resume()?;
    }
    Ok(is_under_way)
}

/// Kills a node, and writes until it needs a snapshot; returns the number of writes.
pub async fn fall_behind(scene: &mut Scene<'_>, target: NodeId) -> Result<u64> {
    scene.cluster.node(target)?.kill()?;
    let others = others_than(scene, target);
    Ok(load::burst(&scene.cluster.client, &others, scene.recorder, BURST_WRITES).await)
}

fn others_than(scene: &Scene<'_>, id: NodeId) -> Vec<Host> {
    scene.cluster.nodes.iter().filter(|node| node.id() != id).map(|node| node.host.clone()).collect()
}

/// The transfer of a snapshot to a node that lags behind, from some moment on.
#[derive(Debug)]
struct Transfer {
    target: NodeId,
    since: SystemTime,
    /// The length of the other nodes' logs at that moment.
    said_before: Vec<(NodeId, usize)>,
}

impl Transfer {
    /// Starts now.
    fn to(scene: &Scene<'_>, target: NodeId) -> Self {
        let others = scene.cluster.nodes.iter().filter(|node| node.id() != target);
        let said_before = others.map(|node| (node.id(), node.log().len())).collect();
        Transfer { target, since: SystemTime::now(), said_before }
    }

    /// The senders of a snapshot since then and its length: each attempt, according to the senders' logs.
    fn attempts(&self, scene: &mut Scene<'_>) -> Result<Vec<(NodeId, u64)>> {
        let mut attempts = Vec::new();
        for (id, said_before) in &self.said_before {
            let log = scene.cluster.node(*id)?.log();
            let said = log.get(*said_before..).unwrap_or_default();
            attempts.extend(snapshots_sent(said, self.target).map(|bytes| (*id, bytes)));
        }
        Ok(attempts)
    }

    /// Waits until the node writes the snapshot to its disk, and returns the sender; `None` if that does not
    /// happen.
    async fn wait_until_under_way(&self, scene: &mut Scene<'_>) -> Result<Option<NodeId>> {
        let directory = scene.cluster.node(self.target)?.snapshot_directory();
        let deadline = Instant::now() + TRANSFER_DEADLINE;
        while Instant::now() < deadline {
            if is_written_since(&directory, self.since)
                && let Some((sender, _)) = self.attempts(scene)?.last()
            {
                return Ok(Some(*sender));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(None)
    }

    async fn wait_until_installed(&self, scene: &mut Scene<'_>) -> Result<bool> {
        let deadline = Instant::now() + TRANSFER_DEADLINE;
        while Instant::now() < deadline {
            if self.is_installed(scene)? {
                return Ok(true);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(false)
    }

    /// Whether the node has a snapshot of the length of one that it was sent.
    fn is_installed(&self, scene: &mut Scene<'_>) -> Result<bool> {
        let directory = scene.cluster.node(self.target)?.snapshot_directory();
        let sent = self.attempts(scene)?;
        Ok(files_with(&directory, "snap").any(|file| sent.iter().any(|(_, bytes)| *bytes == file.len())))
    }
}

/// The leader receives nothing for a moment, so that the other nodes have writes which it does not know to be
/// committed. It is then paused, and falls behind. A client that still waits for such a write must not get
/// the outcome "not applied".
pub async fn lag_leader(scene: &mut Scene<'_>) -> Result<String> {
    let leader = scene.choose(Who::Leader).await?[0];
    let others = others_than(scene, leader);
    let deaf: Vec<Rule> = others.iter().map(|host| Rule::Drop(host.address)).collect();
    let node = scene.cluster.node(leader)?;
    node.host.set_rules(&deaf)?;
    scene.hold(30..120).await;
    scene.cluster.node(leader)?.pause()?;
    let transfer = Transfer::to(scene, leader);
    wait_for_another_leader(scene, leader, &others).await?;
    let written = load::burst(&scene.cluster.client, &others, scene.recorder, BURST_WRITES).await;
    scene.cluster.heal()?;
    if !transfer.wait_until_installed(scene).await? {
        scene.did_nothing();
    }
    scene.hold(500..1500).await;
    Ok(format!("node {leader} by {written} writes"))
}

/// The lengths of the snapshots that, according to its log, a node sends to another.
fn snapshots_sent(said: &str, target: NodeId) -> impl Iterator<Item = u64> {
    let end = format!(" bytes to node {target}");
    said.lines().filter_map(move |line| {
        let (_, rest) = line.split_once("sending a snapshot of ")?;
        rest.strip_suffix(&end)?.parse().ok()
    })
}

/// Whether an incomplete snapshot has been written to since then.
fn is_written_since(directory: &Path, since: SystemTime) -> bool {
    files_with(directory, "tmp").any(|file| file.modified().is_ok_and(|modified| modified >= since))
}

/// The files of a directory with an extension. Files created or removed meanwhile may be missing.
fn files_with(directory: &Path, extension: &str) -> impl Iterator<Item = Metadata> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let found = entries.filter(move |entry| entry.path().extension().is_some_and(|found| found == extension));
    found.filter_map(|entry| entry.metadata().ok())
}

/// Asks only the other nodes: a paused node would not respond.
async fn wait_for_another_leader(scene: &Scene<'_>, former: NodeId, others: &[Host]) -> Result<()> {
    let deadline = Instant::now() + ELECTION_DEADLINE;
    loop {
        for host in others {
            let status = scene.cluster.client.status(host.http()).await.context("cannot get the status of a node")?;
            if status.leader.is_some_and(|leader| leader != former) {
                return Ok(());
            }
        }
        if Instant::now() > deadline {
            bail!("no other leader within {ELECTION_DEADLINE:?} after node {former} was paused");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only snapshots that were sent to this node are found in the log.
    #[test]
    fn finds_snapshots_that_are_sent() {
        let said = "INFO node 3 leads in term 2\nINFO sending a snapshot of 5120 bytes to node 3\n\
                    INFO sending a snapshot of 77 bytes to node 31\nINFO sending a snapshot of 9 bytes to node 3\n";
        assert_eq!(snapshots_sent(said, 3).collect::<Vec<_>>(), [5120, 9]);
    }
}
