//! The lanes, and runs of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::task::JoinSet;

use crate::arguments::{ControlArguments, RunArguments, ScheduleArguments, SoakArguments};
use crate::cluster::Plan;
use crate::disk::FileSystem;
use crate::fault::quota::QUOTA_BYTES;
use crate::fault::{Fault, Who};
use crate::finding::Finding;
use crate::lane::{self, LanePlan};
use crate::load::LoadPlan;
use crate::record;
use crate::store::System;
use crate::total::{LaneResult, Total, verdict_of_end};
use crate::verdict::Verdict;

/// Faults of processes and networks, on five nodes.
const NETWORK: [(Fault, usize); 29] = [
    (Fault::Kill(Who::Leader), 12),
    (Fault::Kill(Who::Follower), 5),
    (Fault::Kill(Who::Majority), 5),
    (Fault::Kill(Who::All), 5),
    (Fault::Stop(Who::Leader), 5),
    (Fault::Stop(Who::All), 5),
    (Fault::Pause(Who::Leader), 15),
    (Fault::Pause(Who::Follower), 5),
    (Fault::Pause(Who::Majority), 5),
    (Fault::LogLost, 5),
    (Fault::Isolate(Who::Leader), 6),
    (Fault::Isolate(Who::Follower), 5),
    (Fault::Isolate(Who::Majority), 5),
    (Fault::Reject(Who::Leader), 5),
    (Fault::Halves, 5),
    (Fault::Deaf(Who::Leader), 5),
    (Fault::Deaf(Who::Follower), 5),
    (Fault::Mute(Who::Leader), 5),
    (Fault::Mute(Who::Follower), 5),
    (Fault::Ring, 5),
    (Fault::ClientsCut(Who::Leader), 5),
    (Fault::Loss, 5),
    (Fault::Delay, 5),
    (Fault::Repeat, 5),
    (Fault::Replay, 5),
    (Fault::AnswersLost, 5),
    (Fault::Malformed, 7),
    (Fault::Forged, 6),
    (Fault::SlowClients, 5),
];

/// Faults of disks, on three nodes.
const DISK: [(Fault, usize); 17] = [
    (Fault::PowerCut(Who::Leader), 8),
    (Fault::PowerCut(Who::Follower), 6),
    (Fault::PowerCut(Who::Majority), 8),
    (Fault::PowerCut(Who::All), 8),
    (Fault::PowerCutInSync(Who::Majority), 5),
    (Fault::PowerCutInSync(Who::All), 5),
    (Fault::PowerCutInElection, 5),
    (Fault::SyncFails, 10),
    (Fault::WriteFails, 8),
    (Fault::WriteFindsNoSpace, 8),
    (Fault::StartFails, 5),
    (Fault::SlowSync, 7),
    (Fault::DiskFull, 7),
    (Fault::KillAtCall, 28),
    (Fault::Flip, 10),
    (Fault::Kill(Who::Leader), 6),
    (Fault::Kill(Who::All), 5),
];

/// Faults of members, leadership, snapshots and clocks, on three nodes and those that join.
const MEMBERS: [(Fault, usize); 16] = [
    (Fault::Replace, 5),
    (Fault::ReplaceUnderKill, 5),
    (Fault::ReplaceUnderPartition, 5),
    (Fault::Wipe, 5),
    (Fault::Join, 5),
    (Fault::JoinKilled, 5),
    (Fault::Transfer, 5),
    (Fault::RollingRestart, 5),
    (Fault::Lag, 7),
    (Fault::LagKillSender, 7),
    (Fault::LagKillReceiver, 7),
    (Fault::LagLeader, 5),
    (Fault::Clock(Who::Leader), 5),
    (Fault::Clock(Who::All), 5),
    (Fault::ClockRestart, 5),
    (Fault::Pause(Who::Leader), 5),
];

/// What operators do and what grows, on three nodes with a small quota.
const UPKEEP: [(Fault, usize); 7] = [
    (Fault::Move, 5),
    (Fault::MoveUnderKill, 5),
    (Fault::MoveUnderPartition, 5),
    (Fault::Backup, 5),
    (Fault::BackupUnderKill, 5),
    (Fault::Quota, 5),
    (Fault::QuotaUnderKill, 5),
];

/// Faults of processes, packets and clocks, on three nodes with TLS and tokens: each of them makes nodes connect again,
/// or moves the leadership while tokens are created and revoked. Certificates are judged by wall clocks.
const TLS: [(Fault, usize); 19] = [
    (Fault::Kill(Who::Leader), 5),
    (Fault::Kill(Who::Follower), 5),
    (Fault::Kill(Who::Majority), 5),
    (Fault::Kill(Who::All), 5),
    (Fault::Stop(Who::Leader), 5),
    (Fault::Pause(Who::Leader), 5),
    (Fault::Pause(Who::Majority), 5),
    (Fault::Isolate(Who::Leader), 5),
    (Fault::Isolate(Who::Follower), 5),
    (Fault::Halves, 5),
    (Fault::Deaf(Who::Leader), 5),
    (Fault::Mute(Who::Leader), 5),
    (Fault::ClientsCut(Who::Leader), 5),
    (Fault::Loss, 5),
    (Fault::Transfer, 5),
    (Fault::RollingRestart, 5),
    (Fault::Clock(Who::Leader), 5),
    (Fault::Clock(Who::All), 5),
    (Fault::ClockRestart, 5),
];

/// Faults that may affect when keys expire, on three nodes.
const EXPIRY: [(Fault, usize); 6] = [
    (Fault::Clock(Who::Leader), 5),
    (Fault::Clock(Who::Follower), 5),
    (Fault::Clock(Who::All), 5),
    (Fault::ClockRestart, 5),
    (Fault::Kill(Who::Leader), 5),
    (Fault::Pause(Who::Leader), 5),
];

/// The lanes with their faults, in the order of their networks.
const LANES: [(&str, &[(Fault, usize)]); 6] = [
    ("network", &NETWORK),
    ("disk", &DISK),
    ("members", &MEMBERS),
    ("expiry", &EXPIRY),
    ("upkeep", &UPKEEP),
    ("tls", &TLS),
];

/// Faults of the control: those of processes and packets, on three nodes. Delays and repeats need proxies
/// that understand the requests between nodes.
const CONTROL: [(Fault, usize); 17] = [
    (Fault::Kill(Who::Leader), 6),
    (Fault::Kill(Who::Follower), 5),
    (Fault::Kill(Who::Majority), 5),
    (Fault::Kill(Who::All), 5),
    (Fault::Pause(Who::Leader), 6),
    (Fault::Pause(Who::Follower), 5),
    (Fault::Pause(Who::Majority), 5),
    (Fault::Isolate(Who::Leader), 6),
    (Fault::Isolate(Who::Follower), 5),
    (Fault::Isolate(Who::Majority), 5),
    (Fault::Halves, 5),
    (Fault::Deaf(Who::Leader), 5),
    (Fault::Deaf(Who::Follower), 5),
    (Fault::Mute(Who::Leader), 5),
    (Fault::Mute(Who::Follower), 5),
    (Fault::ClientsCut(Who::Leader), 5),
    (Fault::Loss, 5),
];

const SEED_MAX: u64 = 1_000_000;
/// A soak ends after this many consecutive rounds in which the harness itself failed.
const BROKEN_ROUNDS_MAX: usize = 3;
/// Frequent snapshots and a short log.
const SNAPSHOT_FLAGS: [&str; 4] = ["--snapshot-entries", "100", "--snapshot-keep-entries", "20"];

/// A small quota, and a log that is long enough for a node that was isolated during a backup.
pub fn upkeep_flags() -> Vec<String> {
    let quota = QUOTA_BYTES.to_string();
    let flags = ["--quota-bytes", &quota, "--snapshot-entries", "1000", "--snapshot-keep-entries", "2000"];
    flags.map(str::to_owned).to_vec()
}

/// Runs all lanes once.
pub async fn run(arguments: &RunArguments) -> Result<Verdict> {
    let seed = seed(&arguments.schedule);
    let began = Instant::now();
    let reports = round(arguments, seed).await?;
    let mut total = Total::default();
    total.add(reports);
    if is_whole(arguments) && arguments.schedule.is_complete() && total.verdict() != Verdict::Violation {
        total.check_faults(all_faults());
        total.check_sights();
        total.check_misuses();
        total.check_amounts();
    }
    let figures = format!("{total}\n{} s, seed {seed}", began.elapsed().as_secs());
    finish(&arguments.schedule, &total, "run", &figures)?;
    Ok(verdict_and_command(&total, &arguments.command_again(seed)))
}

/// Whether the run includes all lanes with all faults. Only then the totals of all lanes can be required.
fn is_whole(arguments: &RunArguments) -> bool {
    arguments.schedule.only.is_empty() && LANES.iter().all(|(name, _)| arguments.wants(name))
}

fn all_faults() -> impl Iterator<Item = Fault> {
    LANES.iter().flat_map(|(_, faults)| faults.iter().map(|(fault, _)| *fault))
}

/// Repeats the run until the time is up, or a violation is found.
///
/// An incomplete round does not end it: the rounds are judged together.
pub async fn soak(arguments: &SoakArguments) -> Result<Verdict> {
    let first = seed(&arguments.run.schedule);
    let began = Instant::now();
    let hours = || began.elapsed().as_secs_f64() / 3600.0;
    let mut total = Total::default();
    let mut broken_rounds = 0;
    for seed in first.. {
        if hours() > arguments.hours || broken_rounds == BROKEN_ROUNDS_MAX {
            break;
        }
        let results = round(&arguments.run, seed).await?;
        let is_broken = |result: &LaneResult| result.as_ref().map_or(true, |report| report.found.is_broken());
        broken_rounds = if results.iter().any(is_broken) { broken_rounds + 1 } else { 0 };
        total.add(results);
        if verdict_and_command(&total, &arguments.run.command_again(seed)) == Verdict::Violation {
            break;
        }
        println!("\nafter {:.2} h:\n{total}", hours());
    }
    // A single round may have too few of each fault; the rounds of an hour must not.
    if is_whole(&arguments.run) && arguments.hours >= 1.0 && total.verdict() != Verdict::Violation {
        total.check_faults(all_faults());
        total.check_sights();
        total.check_misuses();
    }
    let figures = format!("{total}\n{:.2} h, seeds from {first}", hours());
    let nodes = arguments.run.nodes.map_or_else(|| "soak".to_owned(), |nodes| format!("soak-{nodes}"));
    finish(&arguments.run.schedule, &total, &nodes, &figures)?;
    Ok(total.verdict())
}

fn finish(arguments: &ScheduleArguments, total: &Total, name: &str, figures: &str) -> Result<()> {
    println!("\n{figures}");
    match &arguments.record {
        Some(document) if total.verdict().passed() => record::record(document, name, figures),
        _ => Ok(()),
    }
}

/// Returns the verdict. Unless all lanes passed, prints the command that repeats the faults.
fn verdict_and_command(total: &Total, command: &str) -> Verdict {
    let verdict = total.verdict();
    if !verdict.passed() {
        println!("{}; to repeat these faults:\n  {command}", verdict.to_string().to_uppercase());
    }
    verdict
}

fn seed(schedule: &ScheduleArguments) -> u64 {
    schedule.seed.unwrap_or_else(|| fastrand::u64(..SEED_MAX))
}

pub fn our_binary(path: &Path) -> Result<PathBuf> {
    fs::canonicalize(path).with_context(|| format!("no binary at `{}`: run `cargo build --release`", path.display()))
}

/// An absolute path, because nodes start in another directory, to an empty directory.
pub fn empty_folder(path: &Path) -> Result<PathBuf> {
    let folder = std::path::absolute(path).context("invalid path")?;
    if folder.exists() {
        fs::remove_dir_all(&folder).context("cannot remove the files of an earlier run")?;
    }
    Ok(folder)
}

/// Runs one lane on etcd.
pub async fn control(arguments: &ControlArguments) -> Result<Verdict> {
    let seed = seed(&arguments.schedule);
    let began = Instant::now();
    let binary = arguments.etcd.binary()?;
    let folder = empty_folder(&arguments.schedule.folder.join(format!("control-{seed}")))?;
    let cluster = Plan {
        system: System::Etcd,
        binary,
        folder: folder.join("control"),
        number: 1,
        nodes: 3,
        disks: Vec::new(),
        proxies: false,
        secured: false,
        flags: Vec::new(),
        bug: None,
        traces_renames: false,
    };
    let lane = lane("control", cluster, &CONTROL, &arguments.schedule, seed);
    let mut total = Total::default();
    total.add(run_lanes(lane.into_iter().collect(), &arguments.schedule, seed, &folder).await?);
    let is_whole = arguments.schedule.is_complete() && arguments.schedule.only.is_empty();
    if is_whole && total.verdict() != Verdict::Violation {
        total.check_faults(CONTROL.map(|(fault, _)| fault));
    }
    let figures = format!("{total}\n{} s, seed {seed}", began.elapsed().as_secs());
    finish(&arguments.schedule, &total, "control", &figures)?;
    Ok(verdict_and_command(&total, &arguments.command_again(seed)))
}

/// The lanes of one seed.
async fn round(arguments: &RunArguments, seed: u64) -> Result<Vec<LaneResult>> {
    let binary = our_binary(&arguments.binary)?;
    let folder = empty_folder(&arguments.schedule.folder.join(seed.to_string()))?;
    run_lanes(lanes(arguments, seed, &binary, &folder), &arguments.schedule, seed, &folder).await
}

async fn run_lanes(
    lanes: Vec<LanePlan>,
    schedule: &ScheduleArguments,
    seed: u64,
    folder: &Path,
) -> Result<Vec<LaneResult>> {
    println!("seed {seed}, files in {}", folder.display());
    if lanes.is_empty() {
        bail!("no lane has the given names and faults; --help lists the options");
    }
    let mut running = JoinSet::new();
    for plan in lanes {
        running.spawn(lane::run(plan));
    }
    let mut results: Vec<LaneResult> = Vec::new();
    while let Some(joined) = running.join_next().await {
        let result = match joined {
            Ok(result) => result.map_err(|error| Finding::of_error(&error)),
            Err(panic) => Err(Finding::harness(format!("the harness panicked in a lane: {panic}"))),
        };
        if let Err(finding) = &result {
            println!("\n{}: {finding}", verdict_of_end(finding).to_string().to_uppercase());
        }
        results.push(result);
    }
    if !results.iter().all(|result| result.as_ref().is_ok_and(|report| report.verdict().passed())) {
        println!("Histories, logs and data: {}", folder.display());
    } else if !schedule.keep
        && let Err(error) = fs::remove_dir_all(folder)
    {
        // The result of the run does not depend on this.
        eprintln!("warning: cannot remove `{}`: {error}", folder.display());
    }
    Ok(results)
}

fn lanes(arguments: &RunArguments, seed: u64, binary: &Path, folder: &Path) -> Vec<LanePlan> {
    let plan = |number: u8, nodes: u64| Plan {
        system: System::Ours,
        binary: PathBuf::from(binary),
        folder: folder.join(LANES[usize::from(number) - 1].0),
        number,
        nodes: arguments.nodes.unwrap_or(nodes),
        disks: Vec::new(),
        proxies: true,
        secured: false,
        flags: Vec::new(),
        bug: None,
        traces_renames: false,
    };
    let disks = vec![FileSystem::Xfs, FileSystem::Ext4, FileSystem::Xfs];
    let snapshot_flags: Vec<String> = SNAPSHOT_FLAGS.map(str::to_owned).to_vec();
    let clusters = [
        plan(1, 5),
        Plan { disks, flags: snapshot_flags.clone(), ..plan(2, 3) },
        Plan { flags: snapshot_flags.clone(), ..plan(3, 3) },
        Plan { flags: snapshot_flags, ..plan(4, 3) },
        Plan { flags: upkeep_flags(), ..plan(5, 3) },
        Plan { secured: true, proxies: false, ..plan(6, 3) },
    ];
    let wanted = LANES.into_iter().zip(clusters).filter(|((name, _), _)| arguments.wants(name));
    wanted.filter_map(|((name, faults), cluster)| lane(name, cluster, faults, &arguments.schedule, seed)).collect()
}

/// A lane with the selected faults; `None` if none is selected.
fn lane(
    name: &'static str,
    cluster: Plan,
    faults: &[(Fault, usize)],
    schedule: &ScheduleArguments,
    seed: u64,
) -> Option<LanePlan> {
    let wanted = |fault: &Fault| schedule.only.is_empty() || schedule.only.contains(&fault.to_string());
    let times = |count: usize| ((count as f64 * schedule.scale).round() as usize).max(1);
    let faults: Vec<(Fault, usize)> =
        faults.iter().filter(|(fault, _)| wanted(fault)).map(|(fault, count)| (*fault, times(*count))).collect();
    if faults.is_empty() {
        return None;
    }
    let load = LoadPlan {
        seed: seed.wrapping_add(u64::from(cluster.number)),
        clients: 8,
        pause_max: Duration::from_millis(160),
        probe_interval: Duration::from_millis(50),
        retry_pause_max: Duration::ZERO,
        expiring: name == "expiry",
    };
    // A larger state makes the transfer of a snapshot take longer.
    let ballast_keys = if name == "members" { 500 } else { 0 };
    let (time_max, is_complete) = (schedule.time_max(), schedule.is_complete());
    // It would use up a small quota, and it speaks no TLS and has no token.
    let hostile = cluster.system == System::Ours && name != "upkeep" && !cluster.secured;
    Some(LanePlan { name, cluster, load, hostile, ballast_keys, faults, time_max, is_complete })
}
