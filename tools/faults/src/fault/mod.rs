//! The faults: what each breaks, for how long, and how it is healed.

mod backup;
mod clock;
mod disk;
mod filler;
pub mod input;
mod leadership;
mod membership;
mod moves;
mod network;
mod process;
pub mod quota;
mod snapshot;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use fastrand::Rng;

use crate::cluster::Cluster;
use crate::finding::{Finding, Symptom};
use crate::history::{ClientId, NodeId};
use crate::load::Recorder;

/// The targets of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Who {
    Leader,
    Follower,
    /// With or without the leader.
    Majority,
    All,
}

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// SIGKILL, and a restart after a while.
    Kill(Who),
    /// SIGTERM, which must end the process with code 0, and a restart.
    Stop(Who),
    /// SIGSTOP, and SIGCONT after a while.
    Pause(Who),
    /// The leadership is moved by request.
    Transfer,
    /// All nodes are stopped and restarted, one after another.
    RollingRestart,
    /// The logs of all nodes except the leader go to full or closed pipes, and to a full disk.
    LogLost,
    /// No packets between a node and the others; clients reach it.
    Isolate(Who),
    /// Like `Isolate`, but the senders get an error at once.
    Reject(Who),
    /// A partition into two halves.
    Halves,
    /// A node receives nothing from the others, but can send.
    Deaf(Who),
    /// A node receives from the others, but cannot send.
    Mute(Who),
    /// Each node reaches only its neighbors.
    Ring,
    /// Clients cannot reach a node, but the other nodes can.
    ClientsCut(Who),
    /// Some of the packets between nodes are lost.
    Loss,
    /// Requests between nodes are delayed.
    Delay,
    /// Requests between nodes arrive twice.
    Repeat,
    /// Requests between nodes arrive again much later.
    Replay,
    /// Requests between nodes are executed, but their responses are lost.
    AnswersLost,
    /// The power of hosts is cut: data that was not synced is lost.
    PowerCut(Who),
    /// A power cut during slow syncs: all data that waits for one is lost.
    PowerCutInSync(Who),
    /// A power cut in an election whose votes wait for a sync.
    PowerCutInElection,
    /// A sync of the log, of a new snapshot or of its directory fails with EIO.
    SyncFails,
    /// A write to the log or to a new snapshot fails with EIO.
    WriteFails,
    /// A write to the log or to a new snapshot fails with ENOSPC.
    WriteFindsNoSpace,
    /// A node starts on a read-only disk, and on one from which a file cannot be read.
    StartFails,
    /// Syncs are slow.
    SlowSync,
    /// A disk is full for a while.
    DiskFull,
    /// Nodes are killed at a system call, one after another.
    KillAtCall,
    /// A bit in one of a node's files is flipped.
    Flip,
    /// A node is added, and another removed.
    Replace,
    /// A replacement while nodes are killed.
    ReplaceUnderKill,
    /// A replacement while the leader is isolated.
    ReplaceUnderPartition,
    /// A node returns under its id with an empty disk, and is replaced.
    Wipe,
    /// An empty node joins by itself while a node is killed or the leader is isolated, and a member is removed.
    Join,
    /// A node that joins is killed while it catches up.
    JoinKilled,
    /// A node comes back at another address.
    Move,
    /// A node moves while another is dead.
    MoveUnderKill,
    /// A node moves while it is isolated, or another is.
    MoveUnderPartition,
    /// A backup is saved while a follower is isolated, and restored.
    Backup,
    /// A backup is saved while its sender or the command is killed, and restored.
    BackupUnderKill,
    /// Keys and values reach the quota, and are deleted.
    Quota,
    /// Nodes are killed while the quota is reached.
    QuotaUnderKill,
    /// A node falls behind by more than the log holds, and gets a snapshot.
    Lag,
    /// Like `Lag`, but the node that sends the snapshot is killed.
    LagKillSender,
    /// Like `Lag`, but the node that receives the snapshot is killed.
    LagKillReceiver,
    /// A leader with writes that it does not know to be committed is paused until it needs a snapshot.
    LagLeader,
    /// Nodes restart one after another with wall clocks that are wrong by up to an hour and jump. `Leader`:
    /// until one of them leads.
    Clock(Who),
    /// All nodes restart at once with such clocks.
    ClockRestart,
    /// Requests that are not HTTP, or not part of the API.
    Malformed,
    /// Requests in the name of other nodes.
    Forged,
    /// Clients that send or read slowly, or not at all.
    SlowClients,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, who) = match self {
            Fault::Kill(who) => ("kill", Some(who)),
            Fault::Stop(who) => ("stop", Some(who)),
            Fault::Pause(who) => ("pause", Some(who)),
            Fault::Transfer => ("transfer", None),
            Fault::RollingRestart => ("rolling-restart", None),
            Fault::LogLost => ("log-lost", None),
            Fault::Isolate(who) => ("isolate", Some(who)),
            Fault::Reject(who) => ("reject", Some(who)),
            Fault::Halves => ("halves", None),
            Fault::Deaf(who) => ("deaf", Some(who)),
            Fault::Mute(who) => ("mute", Some(who)),
            Fault::Ring => ("ring", None),
            Fault::ClientsCut(who) => ("clients-cut", Some(who)),
            Fault::Loss => ("loss", None),
            Fault::Delay => ("delay", None),
            Fault::Repeat => ("repeat", None),
            Fault::Replay => ("replay", None),
            Fault::AnswersLost => ("answers-lost", None),
            Fault::PowerCut(who) => ("power-cut", Some(who)),
            Fault::PowerCutInSync(who) => ("power-cut-in-sync", Some(who)),
            Fault::PowerCutInElection => ("power-cut-in-election", None),
            Fault::SyncFails => ("sync-fails", None),
            Fault::WriteFails => ("write-fails", None),
            Fault::WriteFindsNoSpace => ("no-space", None),
            Fault::StartFails => ("start-fails", None),
            Fault::SlowSync => ("slow-sync", None),
            Fault::DiskFull => ("disk-full", None),
            Fault::KillAtCall => ("kill-at-call", None),
            Fault::Flip => ("flip", None),
            Fault::Replace => ("replace", None),
            Fault::ReplaceUnderKill => ("replace-under-kill", None),
            Fault::ReplaceUnderPartition => ("replace-under-partition", None),
            Fault::Wipe => ("wipe", None),
            Fault::Join => ("join", None),
            Fault::JoinKilled => ("join-killed", None),
            Fault::Move => ("move", None),
            Fault::MoveUnderKill => ("move-under-kill", None),
            Fault::MoveUnderPartition => ("move-under-partition", None),
            Fault::Backup => ("backup", None),
            Fault::BackupUnderKill => ("backup-under-kill", None),
            Fault::Quota => ("quota", None),
            Fault::QuotaUnderKill => ("quota-under-kill", None),
            Fault::Lag => ("lag", None),
            Fault::LagKillSender => ("lag-kill-sender", None),
            Fault::LagKillReceiver => ("lag-kill-receiver", None),
            Fault::LagLeader => ("lag-leader", None),
            Fault::Clock(who) => ("clock", Some(who)),
            Fault::ClockRestart => ("clock-restart", None),
            Fault::Malformed => ("malformed", None),
            Fault::Forged => ("forged", None),
            Fault::SlowClients => ("slow-clients", None),
        };
        match who {
            Some(who) => write!(f, "{what} {}", format!("{who:?}").to_lowercase()),
            None => f.write_str(what),
        }
    }
}

/// Effects that faults must have. A single window may lack them by chance, but not all windows of a run: two
/// thirds of the filled disks belong to a leader, and three quarters of the flipped bits prevent the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sight {
    /// A leader with a full disk rejected a write with 507.
    WriteRefused,
    /// A node refused to start because of a flipped bit in a file.
    StartRefused,
}

impl Sight {
    pub const ALL: [Sight; 2] = [Sight::WriteRefused, Sight::StartRefused];
}

impl fmt::Display for Sight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Sight::WriteRefused => "writes rejected with 507 by a leader with a full disk",
            Sight::StartRefused => "starts refused because of a flipped bit",
        })
    }
}

/// The environment of a fault: the cluster, and the run's source of randomness.
pub struct Scene<'a> {
    pub cluster: &'a mut Cluster,
    pub random: &'a mut Rng,
    pub recorder: &'a Arc<Recorder>,
    /// Observations that no correct cluster permits.
    pub findings: &'a mut Vec<Finding>,
    /// Number of requests that must be rejected.
    pub bad_inputs: &'a mut usize,
    /// Effects that were seen.
    pub sights: &'a mut Vec<Sight>,
    /// Number of kills at each system call.
    pub kills_at_calls: &'a mut BTreeMap<&'static str, usize>,
    /// Number of repeats of faults of this kind that had shown nothing.
    pub repeats: usize,
    /// The fault had no effect, and does not count.
    pub did_nothing: bool,
}

/// The client of requests that faults send, one after another.
const CLIENT_OF_FAULTS: ClientId = u32::MAX - 1;

impl Fault {
    /// Whether enough nodes remain for operations to succeed during the fault. Otherwise only operations in
    /// progress, and stale reads at nodes that are merely cut off, can succeed.
    pub fn leaves_a_majority(self) -> bool {
        match self {
            Fault::Kill(who)
            | Fault::Stop(who)
            | Fault::Pause(who)
            | Fault::Isolate(who)
            | Fault::Reject(who)
            | Fault::Deaf(who)
            | Fault::Mute(who)
            | Fault::ClientsCut(who)
            | Fault::PowerCut(who)
            | Fault::PowerCutInSync(who) => !matches!(who, Who::Majority | Who::All),
            Fault::PowerCutInElection | Fault::ClockRestart => false,
            // Other faults break a minority, or too little to prevent responses; a clock fault only misleads.
            _ => true,
        }
    }

    /// Whether a majority of the processes ends, so that no node may have measured how long it took.
    pub fn stops_a_majority(self) -> bool {
        let majority = |who| matches!(who, Who::Majority | Who::All);
        match self {
            Fault::Kill(who) | Fault::Stop(who) | Fault::PowerCut(who) | Fault::PowerCutInSync(who) => majority(who),
            Fault::PowerCutInElection | Fault::ClockRestart | Fault::LogLost => true,
            _ => false,
        }
    }

    /// Breaks, holds and heals; returns a description of what was done.
    pub async fn run(self, scene: &mut Scene<'_>) -> Result<String> {
        match self {
            Fault::Kill(who) => process::kill(scene, who).await,
            Fault::Stop(who) => process::stop(scene, who).await,
            Fault::Pause(who) => process::pause(scene, who).await,
            Fault::Transfer => leadership::transfer(scene).await,
            Fault::RollingRestart => leadership::rolling_restart(scene).await,
            Fault::LogLost => process::lose_log(scene).await,
            Fault::Isolate(who) => network::isolate(scene, who, network::Cut::Drop).await,
            Fault::Reject(who) => network::isolate(scene, who, network::Cut::Reject).await,
            Fault::Halves => network::halves(scene).await,
            Fault::Deaf(who) => network::deaf(scene, who).await,
            Fault::Mute(who) => network::mute(scene, who).await,
            Fault::Ring => network::ring(scene).await,
            Fault::ClientsCut(who) => network::clients_cut(scene, who).await,
            Fault::Loss => network::loss(scene).await,
            Fault::Delay | Fault::Repeat | Fault::Replay | Fault::AnswersLost => network::misbehave(scene, self).await,
            Fault::PowerCut(who) => disk::cut_power(scene, who).await,
            Fault::PowerCutInSync(who) => disk::cut_power_in_sync(scene, who).await,
            Fault::PowerCutInElection => disk::cut_power_in_election(scene).await,
            Fault::SyncFails => disk::call_fails(scene, disk::Failing::Sync).await,
            Fault::WriteFails => disk::call_fails(scene, disk::Failing::Write).await,
            Fault::WriteFindsNoSpace => disk::call_fails(scene, disk::Failing::NoSpace).await,
            Fault::StartFails => disk::start_fails(scene).await,
            Fault::SlowSync => disk::slow_sync(scene).await,
            Fault::DiskFull => disk::fill(scene).await,
            Fault::KillAtCall => disk::kill_at_call(scene).await,
            Fault::Flip => disk::flip(scene).await,
            Fault::Replace => membership::replace(scene, membership::Meanwhile::Nothing).await,
            Fault::ReplaceUnderKill => membership::replace(scene, membership::Meanwhile::Kill).await,
            Fault::ReplaceUnderPartition => membership::replace(scene, membership::Meanwhile::Isolate).await,
            Fault::Wipe => membership::wipe(scene).await,
            Fault::Join => membership::join(scene).await,
            Fault::JoinKilled => membership::join_killed(scene).await,
            Fault::Move => moves::move_node(scene, membership::Meanwhile::Nothing).await,
            Fault::MoveUnderKill => moves::move_node(scene, membership::Meanwhile::Kill).await,
            Fault::MoveUnderPartition => moves::move_node(scene, membership::Meanwhile::Isolate).await,
            Fault::Backup => backup::backup(scene).await,
            Fault::BackupUnderKill => backup::backup_under_kill(scene).await,
            Fault::Quota => quota::quota(scene, false).await,
            Fault::QuotaUnderKill => quota::quota(scene, true).await,
            Fault::Lag => snapshot::lag(scene, snapshot::Killed::Nobody).await,
            Fault::LagKillSender => snapshot::lag(scene, snapshot::Killed::Sender).await,
            Fault::LagKillReceiver => snapshot::lag(scene, snapshot::Killed::Receiver).await,
            Fault::LagLeader => snapshot::lag_leader(scene).await,
            Fault::Clock(who) => clock::jump(scene, who).await,
            Fault::ClockRestart => clock::restart(scene).await,
            Fault::Malformed => input::malformed(scene).await,
            Fault::Forged => input::forged(scene).await,
            Fault::SlowClients => input::slow(scene).await,
        }
    }
}

impl Scene<'_> {
    /// Keeps the fault in force for a while under load.
    async fn hold(&mut self, milliseconds: std::ops::Range<u64>) {
        tokio::time::sleep(Duration::from_millis(self.random.u64(milliseconds))).await;
    }

    /// Chooses the targets, with the leader first if it is among them.
    async fn choose(&mut self, who: Who) -> Result<Vec<NodeId>> {
        let leader =
            self.cluster.wait_for_leader(Duration::from_secs(20)).await.context("cannot choose the targets")?;
        let mut others: Vec<NodeId> = self.cluster.ids().into_iter().filter(|id| *id != leader).collect();
        self.random.shuffle(&mut others);
        let all = others.len() + 1;
        Ok(match who {
            Who::Leader => vec![leader],
            Who::Follower => others[..1].to_vec(),
            Who::Majority if self.random.bool() => others[..all / 2 + 1].to_vec(),
            Who::Majority => std::iter::once(leader).chain(others.into_iter().take(all / 2)).collect(),
            Who::All => std::iter::once(leader).chain(others).collect(),
        })
    }

    fn did_nothing(&mut self) {
        self.did_nothing = true;
    }

    fn finding(&mut self, text: String) {
        self.findings.push(Finding::other(text));
    }

    fn symptom(&mut self, symptom: Symptom, text: String) {
        self.findings.push(Finding::new(symptom, text));
    }

    fn saw(&mut self, sight: Sight) {
        self.sights.push(sight);
    }

    fn killed_at(&mut self, call: &'static str) {
        *self.kills_at_calls.entry(call).or_default() += 1;
    }

    /// Counts requests that must be rejected.
    fn inputs(&mut self, count: usize) {
        *self.bad_inputs += count;
    }
}
