//! Measures how long writes fail after the leader was killed, stopped or paused, of raft-key-value and etcd in
//! turn.
//!
//! Both clusters run all the time, with three nodes each and their systems' default timings; the one that is
//! not measured is idle. The losses alternate between the systems, so that other work on the machine affects
//! both alike.
//!
//! After `kill -9` the machine of the leader lives, so its followers can be certain that it is gone. SIGTERM is
//! a planned stop. After SIGSTOP the followers cannot know: the leader may be slow, and the election timeout
//! rules, as it does after a partition.
//!
//! The probes begin a write at each node every 10 ms, whether or not earlier ones have returned. The figures
//! are therefore independent of client timeouts: a write that hangs at a dead leader does not delay later
//! ones.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Error, Result, bail};
use fastrand::Rng;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use crate::arguments::OutageArguments;
use crate::cluster::{CONVERGENCE_DEADLINE, Cluster, Plan};
use crate::finding::{Finding, HarnessError};
use crate::history::{Call, NodeId, Outcome, Text};
use crate::network::Host;
use crate::plans::{empty_folder, our_binary};
use crate::record;
use crate::store::{Client, System};
use crate::total::verdict_of_end;
use crate::verdict::Verdict;

const SYSTEMS: [System; 2] = [System::Ours, System::Etcd];
const NODES: u64 = 3;
/// A subdirectory of the given directory, because everything in it is removed first.
const RUN_FOLDER: &str = "run";
/// Interval between writes at each node.
const PROBE_INTERVAL: Duration = Duration::from_millis(10);
/// How long a probe waits for a write. It limits the number of writes in progress to 200 per node.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);
/// How long writes succeed before the kill; a random time of up to the same length is added.
const CALM: Duration = Duration::from_millis(700);
/// How long a stopped leader may take to end.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// How long a cluster may take until writes succeed again.
const OUTAGE_MAX: Duration = Duration::from_secs(30);
/// How long the probes continue after writes succeed again: the new leader may be lost at once.
const AFTERWARDS: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// How a cluster loses its leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Loss {
    /// `kill -9`.
    Kill,
    /// SIGTERM.
    Stop,
    /// SIGSTOP.
    Pause,
}

impl Loss {
    pub const ALL: [Loss; 3] = [Loss::Kill, Loss::Stop, Loss::Pause];

    fn signal(self) -> &'static str {
        match self {
            Loss::Kill => "kill -9",
            Loss::Stop => "SIGTERM",
            Loss::Pause => "SIGSTOP",
        }
    }

    /// The most that the median and the longest time without a write may be, with our default timings.
    fn goals(self) -> Option<(Duration, Duration)> {
        match self {
            Loss::Kill => Some((Duration::from_millis(150), Duration::from_millis(400))),
            Loss::Stop => Some((Duration::from_millis(100), Duration::from_millis(100))),
            Loss::Pause => None,
        }
    }
}

/// The longest times without a successful write, of each system.
type Outages = [Vec<Duration>; 2];

/// Compares the longest times without a write. Ours must be within the goals; where there are none, our median must be
/// at most etcd's.
pub async fn run(arguments: &OutageArguments) -> Result<Verdict> {
    let binaries = [our_binary(&arguments.binary)?, arguments.etcd.binary()?];
    let folder = empty_folder(&arguments.folder.join(RUN_FOLDER))?;
    println!("{} losses of each leader and kind, files in {}", arguments.repetitions, folder.display());
    let outages = match measure_all(arguments.repetitions, &arguments.losses, binaries, &folder).await {
        Ok(outages) => outages,
        Err(error) => {
            let finding = Finding::of_error(&error);
            let verdict = verdict_of_end(&finding);
            println!("{}: {finding}", verdict.to_string().to_uppercase());
            return Ok(verdict);
        }
    };
    let figures = summary(&outages);
    println!("\n{figures}");
    let broken: Vec<String> = outages.iter().filter_map(|(loss, outages)| broken_promise(*loss, outages)).collect();
    if !broken.is_empty() {
        println!("VIOLATION: {}", broken.join("; "));
        return Ok(Verdict::Violation);
    }
    if let Some(document) = &arguments.record {
        record::record(document, "outage", &figures)?;
    }
    Ok(Verdict::Passed)
}

fn broken_promise(loss: Loss, outages: &Outages) -> Option<String> {
    let [ours, etcd] = outages.each_ref().map(|outages| median(outages));
    let Some((median_max, longest_max)) = loss.goals() else {
        let is_longer = ours > etcd;
        return is_longer.then(|| format!("after {}, writes fail for longer than with etcd", loss.signal()));
    };
    (ours > median_max || longest(&outages[0]) > longest_max).then(|| {
        format!(
            "after {}, writes fail for longer than {} ms in the median or {} ms at most",
            loss.signal(),
            median_max.as_millis(),
            longest_max.as_millis()
        )
    })
}

async fn measure_all(
    repetitions: u32,
    losses: &[Loss],
    binaries: [PathBuf; 2],
    folder: &Path,
) -> Result<BTreeMap<Loss, Outages>> {
    let mut clusters = Vec::new();
    for ((number, system), binary) in (1..).zip(SYSTEMS).zip(binaries) {
        // There are no proxies, so only the time of each loss is random.
        let started = Cluster::start(plan(system, number, binary, folder), Rng::new()).await;
        clusters.push(started.map_err(|error| blame(system, error))?);
    }
    let mut outages: BTreeMap<Loss, Outages> = BTreeMap::new();
    for repetition in 1..=repetitions {
        for loss in losses {
            let measured = outages.entry(*loss).or_default();
            for (cluster, outages) in clusters.iter_mut().zip(measured) {
                let system = cluster.plan.system;
                let (leader, outage) = measure(cluster, *loss).await.map_err(|error| blame(system, error))?;
                let (signal, outage_ms) = (loss.signal(), outage.as_millis());
                println!("{repetition:>4}  {system:<15} node {leader}, {signal}: {outage_ms:>6} ms");
                outages.push(outage);
            }
        }
    }
    Ok(outages)
}

/// A failure of etcd says nothing about raft-key-value: the comparison is incomplete.
fn blame(system: System, error: Error) -> Error {
    match system {
        System::Ours => error.context(system),
        System::Etcd => HarnessError(format!("{system}: {error:#}")).into(),
    }
}

fn plan(system: System, number: u8, binary: PathBuf, folder: &Path) -> Plan {
    Plan {
        system,
        binary,
        folder: folder.join(system.to_string()),
        number,
        nodes: NODES,
        disks: Vec::new(),
        proxies: false,
        secured: false,
        flags: Vec::new(),
        bug: None,
        traces_renames: false,
    }
}

/// Makes the leader fail during writes; returns the leader and the longest time without a successful write
/// since then. The cluster is whole again afterwards.
async fn measure(cluster: &mut Cluster, loss: Loss) -> Result<(NodeId, Duration)> {
    cluster.converge(CONVERGENCE_DEADLINE).await?;
    let probes = Probes::start(cluster);
    let began = Instant::now();
    tokio::time::sleep(CALM.mul_f64(1.0 + fastrand::f64())).await;
    let leader = cluster.wait_for_leader(CONVERGENCE_DEADLINE).await?;
    if !probes.has_write_begun_after(began) {
        bail!(HarnessError(format!("no write succeeds within {CALM:?} before the loss: the machine is too slow")));
    }
    let lost = Instant::now();
    let node = cluster.node(leader)?;
    match loss {
        Loss::Kill => node.kill()?,
        Loss::Pause => node.pause()?,
        Loss::Stop => {
            node.terminate()?;
            if node.wait(STOP_DEADLINE).await?.is_none() {
                bail!("node {leader} does not end within {STOP_DEADLINE:?} after SIGTERM");
            }
        }
    }
    let gone = Instant::now();
    // A write that began before the loss may have been applied before it, and acknowledged late by another
    // node.
    while !probes.has_write_begun_after(gone) {
        if gone.elapsed() > OUTAGE_MAX {
            bail!("no write succeeds within {OUTAGE_MAX:?} after the leader was lost by {}", loss.signal());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    tokio::time::sleep(AFTERWARDS).await;
    let outage = probes.longest_gap_after(lost);
    drop(probes);
    cluster.heal()?;
    cluster.converge(CONVERGENCE_DEADLINE).await?;
    match cluster.take_findings()?.first() {
        Some(finding) => bail!("{finding}"),
        None => Ok((leader, outage)),
    }
}

/// A successful write.
#[derive(Clone, Copy, Debug)]
struct Success {
    began: Instant,
    returned: Instant,
}

/// Writes to all nodes until dropped.
struct Probes {
    successes: Arc<Mutex<Vec<Success>>>,
    /// Dropping the tasks ends them.
    _tasks: JoinSet<()>,
}

impl Probes {
    fn start(cluster: &Cluster) -> Self {
        let successes = Arc::new(Mutex::default());
        let mut tasks = JoinSet::new();
        for node in &cluster.nodes {
            tasks.spawn(probe(cluster.client.clone(), node.host.clone(), Arc::clone(&successes)));
        }
        Probes { successes, _tasks: tasks }
    }

    fn has_write_begun_after(&self, moment: Instant) -> bool {
        let successes = self.successes.lock().expect("no thread panics while holding the lock");
        successes.iter().any(|success| success.began >= moment)
    }

    fn longest_gap_after(&self, moment: Instant) -> Duration {
        let successes = self.successes.lock().expect("no thread panics while holding the lock");
        let returned = successes.iter().map(|success| success.returned).filter(|returned| *returned >= moment);
        let mut moments: Vec<Instant> = returned.chain([moment, Instant::now()]).collect();
        moments.sort_unstable();
        moments.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }
}

async fn probe(client: Client, host: Host, successes: Arc<Mutex<Vec<Success>>>) {
    let mut ticks = tokio::time::interval(PROBE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut under_way = JoinSet::new();
    let key: Text = format!("probe/{}", host.id).into();
    for number in 0_u64.. {
        ticks.tick().await;
        while under_way.try_join_next().is_some() {}
        let (client, node, successes) = (client.clone(), host.http(), Arc::clone(&successes));
        let call = Call::Put { key: key.clone(), value: number.to_string().into(), condition: None };
        under_way.spawn(async move {
            let began = Instant::now();
            let attempt = client.call(node, &call, None, PROBE_DEADLINE).await;
            if matches!(attempt.outcome, Outcome::Done(_)) {
                let success = Success { began, returned: Instant::now() };
                successes.lock().expect("no thread panics while holding the lock").push(success);
            }
        });
    }
}

fn summary(outages: &BTreeMap<Loss, Outages>) -> String {
    let mut lines = vec!["longest time without a successful write, in ms, default timings:".to_owned()];
    for (loss, outages) in outages {
        lines.push(format!(
            "{:<17} {:>6} {:>7} {:>7}",
            format!("after {}", loss.signal()),
            "median",
            "longest",
            "times"
        ));
        for (system, outages) in SYSTEMS.iter().zip(outages) {
            let (median, longest) = (median(outages).as_millis(), longest(outages).as_millis());
            lines.push(format!("  {system:<15} {median:>6} {longest:>7} {:>7}", outages.len()));
        }
        let [ours, etcd] = outages;
        let median = median(ours).as_secs_f64() / median(etcd).as_secs_f64();
        let longest = longest(ours).as_secs_f64() / longest(etcd).as_secs_f64();
        lines.push(format!("  {:<15} {median:>6.2} {longest:>7.2}", "ours / etcd"));
        if let Some((median, longest)) = loss.goals() {
            lines.push(format!("  {:<15} {:>6} {:>7}", "goal, at most", median.as_millis(), longest.as_millis()));
        }
    }
    lines.join("\n")
}

/// The middle value, or the mean of the two middle ones.
fn median(outages: &[Duration]) -> Duration {
    let mut sorted = outages.to_vec();
    sorted.sort_unstable();
    (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2
}

fn longest(outages: &[Duration]) -> Duration {
    outages.iter().copied().max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A failure of etcd or of the machine makes the comparison incomplete; a failure of raft-key-value is a
    /// violation.
    #[test]
    fn failures_are_blamed_on_the_right_system() {
        let verdict = |system, error| verdict_of_end(&Finding::of_error(&blame(system, error)));
        let failed = || anyhow::anyhow!("no leader");
        assert_eq!(verdict(System::Ours, failed()), Verdict::Violation);
        assert_eq!(verdict(System::Etcd, failed()), Verdict::Incomplete);
        assert_eq!(verdict(System::Ours, HarnessError("too slow".to_owned()).into()), Verdict::Incomplete);
    }

    fn milliseconds(all: &[u64]) -> Vec<Duration> {
        all.iter().map(|one| Duration::from_millis(*one)).collect()
    }

    /// The figures are those of each system, and the ratio between them.
    #[test]
    fn the_summary_compares_both() {
        let outages = [milliseconds(&[1500, 900, 1100]), milliseconds(&[1000, 3000, 2000, 1500])];
        let figures = summary(&BTreeMap::from([(Loss::Kill, outages)]));
        let rows: Vec<Vec<&str>> = figures.lines().skip(2).map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["raft-key-value", "1100", "1500", "3"]);
        assert_eq!(rows[1], ["etcd", "1750", "3000", "4"]);
        assert_eq!(rows[2][3..], ["0.63", "0.50"]);
        assert_eq!(rows[3][3..], ["150", "400"]);
    }

    /// Our median and longest time must be within the goals; where there are none, our median must be at most etcd's.
    #[test]
    fn promises() {
        let rows = [
            (Loss::Kill, [100, 150, 400], true),
            (Loss::Kill, [100, 150, 401], false),
            (Loss::Kill, [100, 151, 160], false),
            (Loss::Stop, [10, 20, 100], true),
            (Loss::Stop, [10, 20, 101], false),
            (Loss::Pause, [900, 1000, 9000], true),
            (Loss::Pause, [900, 1001, 1100], false),
        ];
        for (loss, ours, kept) in rows {
            let broken = broken_promise(loss, &[milliseconds(&ours), milliseconds(&[1000, 1000, 1000])]);
            assert_eq!(broken.is_none(), kept, "{loss:?} {ours:?}: {broken:?}");
        }
    }
}
