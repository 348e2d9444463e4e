//! A lane: one cluster, its load, a sequence of faults, and the verdict.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use fastrand::Rng;
use futures_util::future::join_all;
use tokio::time::Instant;

use crate::checker;
use crate::cluster::{CONVERGENCE_DEADLINE, Cluster, Plan};
use crate::fault::{Fault, Scene};
use crate::finding::{Finding, Symptom};
use crate::history::{Call, Consistency, FinalState, History, Outcome};
use crate::hostile::{Hostile, Misuses};
use crate::lease::{self, Judge};
use crate::load::{self, Load, LoadPlan, Recorder};
use crate::network::Host;
use crate::node::Node;
use crate::renames;
use crate::report::{Found, LaneReport, Window};
use crate::stall::{StallMeter, finding_of_error};
use crate::store::{CLIENT_DEADLINE, System};
use crate::tokens::{self, Revocations};
use crate::watcher::Watcher;

/// Watches of the whole store, each starting at another node.
const WATCHERS: usize = 3;
/// How often a fault that had no effect, or during which no operation succeeded, is repeated for each time
/// that its kind is planned.
const REPEATS_PER_FAULT_MAX: usize = 10;
/// Minimum number of expiring leases in a complete lane.
const LEASES_MIN: usize = 100;
/// How long a healed cluster may take until all nodes have the entries that existed when it was healed.
const CALM_DEADLINE: Duration = CONVERGENCE_DEADLINE;
/// Pause before a failed call at the end is retried.
const LAST_PAUSE: Duration = Duration::from_millis(200);
/// Minimum time between two faults, in milliseconds.
const REST_MS: std::ops::Range<u64> = 100..600;

/// The plan of a lane.
#[derive(Clone, Debug)]
pub struct LanePlan {
    pub name: &'static str,
    pub cluster: Plan,
    pub load: LoadPlan,
    /// Whether the load includes a hostile client.
    pub hostile: bool,
    /// Number of keys of ten thousand bytes that are written first.
    pub ballast_keys: u64,
    /// The faults, with the number of times each occurs. The seed determines their order.
    pub faults: Vec<(Fault, usize)>,
    /// Time after which no further fault begins.
    pub time_max: Duration,
    /// Whether each fault must occur as often as planned.
    pub is_complete: bool,
}

/// Runs a lane to its verdict. Its files stay on disk, to investigate a failure.
pub async fn run(plan: LanePlan) -> Result<LaneReport> {
    let folder: PathBuf = plan.cluster.folder.clone();
    let name = plan.name;
    let report = run_in(plan).await.with_context(|| format!("lane {name}"))?;
    fs::write(folder.join("report.txt"), report.to_string()).context("cannot write a report")?;
    Ok(report)
}

async fn run_in(plan: LanePlan) -> Result<LaneReport> {
    let mut random = Rng::with_seed(plan.load.seed);
    let mut schedule = Schedule::new(&plan.faults, &mut random);
    let system = plan.cluster.system;
    let mut cluster = Cluster::start(plan.cluster.clone(), random.fork()).await?;
    let recorder = Recorder::new();
    // Expiring keys and reads of them are not part of the history.
    let watcher_count = if plan.load.expiring { 0 } else { WATCHERS };
    let watchers: Vec<Watcher> =
        (0..watcher_count).map(|first| Watcher::start(&cluster.reader, &cluster.endpoints, first)).collect();
    let hosts: Vec<Host> = cluster.nodes.iter().map(|node| node.host.clone()).collect();
    load::ballast(&cluster.writer, &hosts, &recorder, plan.ballast_keys).await;
    let load = Load::start(plan.load, system, &cluster.writer, &cluster.endpoints, &recorder);
    let hostile = plan.hostile.then(|| Hostile::start(plan.load.seed, &cluster.client, &cluster.endpoints, &recorder));
    let revocations = plan
        .cluster
        .secured
        .then(|| Revocations::start(plan.load.seed, &cluster.client, &cluster.anyone, &cluster.endpoints));
    let mut findings: Vec<Finding> = Vec::new();
    let mut windows = Vec::new();
    let mut bad_inputs = 0;
    let mut sights = Vec::new();
    let mut kills_at_calls = BTreeMap::new();
    let stalls = StallMeter::start();
    let began = Instant::now();
    let planned = schedule.len();
    while began.elapsed() <= plan.time_max
        && let Some(fault) = schedule.next()
    {
        let found_before = findings.len();
        let mut scene = Scene {
            cluster: &mut cluster,
            random: &mut random,
            recorder: &recorder,
            findings: &mut findings,
            bad_inputs: &mut bad_inputs,
            sights: &mut sights,
            kills_at_calls: &mut kills_at_calls,
            repeats: schedule.repeats(fault),
            did_nothing: false,
        };
        stalls.take();
        let struck = strike(fault, &mut scene).await;
        match cluster.take_findings() {
            Ok(found) => findings.extend(found),
            Err(error) => findings.push(Finding::of_error(&error)),
        }
        let failed = struck.as_ref().err().map(|error| finding_of_error(error, stalls.take()));
        findings.extend(failed);
        for finding in &mut findings[found_before..] {
            finding.fault = Some(fault);
        }
        let Ok(window) = struck else { break };
        progress(plan.name, windows.len() + 1, planned, &window, recorder.count());
        if window.shows_nothing() {
            schedule.make_again(fault);
        }
        windows.push(window);
        tokio::time::sleep(Duration::from_millis(random.u64(REST_MS))).await;
    }
    if let Err(error) = load.stop().await {
        findings.push(Finding::harness(format!("a client ended early: {error:#}")));
    }
    let misuses = stop_hostile(hostile, &mut findings).await;
    let tokens = stop_revocations(revocations, &mut findings).await;
    if plan.load.expiring {
        // Afterwards nothing changes any more without a request.
        tokio::time::sleep(lease::TTL_MAX + lease::TOLERANCE).await;
    }
    let history = finish(&mut cluster, watchers, &recorder, &mut findings).await;
    fs::write(plan.cluster.folder.join("history.json"), serde_json::to_vec(&history)?)
        .context("cannot write the history")?;
    match cluster.take_findings().and_then(|found| Ok((found, cluster.panics()?))) {
        Ok((found, panics)) => findings.extend(found.into_iter().chain(panics.into_iter().map(Finding::other))),
        Err(error) => findings.push(Finding::harness(format!("cannot tell how the nodes ended: {error:#}"))),
    }
    findings.extend(cluster.client.wrong_answers().into_iter().map(Finding::other));
    let monitored = cluster.monitor.answers();
    if monitored == 0 && system == System::Ours {
        findings.push(Finding::harness("no node ever reported its vote to the monitor".to_owned()));
    }
    if let Err(error) = cluster.close() {
        findings.push(Finding::harness(format!("cannot remove the cluster: {error:#}")));
    }
    let leases = recorder.take_leases();
    let checked = if plan.load.expiring {
        hold_against_each_other(&history, &mut findings);
        findings.extend(Judge::new(&history.operations, &windows).findings(&leases));
        if plan.is_complete && leases.len() < LEASES_MIN {
            findings.push(Finding::harness(format!("{} of {LEASES_MIN} leases were seen", leases.len())));
        }
        checker::Report::default()
    } else {
        checker::check(&history)
    };
    let not_begun = schedule.len();
    let found = Found {
        windows,
        planned,
        not_begun,
        findings,
        bad_inputs,
        misuses,
        sights,
        monitored,
        kills_at_calls,
        leases: leases.len(),
        tokens,
        checked,
    };
    let mut report = LaneReport::new(plan.name, &history, found, &recorder);
    if plan.is_complete {
        report.require(&plan.faults);
    }
    Ok(report)
}

/// Ends the hostile client, if there is one; returns its misuses.
async fn stop_hostile(hostile: Option<Hostile>, findings: &mut Vec<Finding>) -> Misuses {
    let Some(hostile) = hostile else { return Misuses::new() };
    match hostile.stop().await {
        Ok((misuses, wrong)) => {
            findings.extend(wrong.into_iter().map(Finding::other));
            misuses
        }
        Err(error) => {
            findings.push(Finding::harness(format!("the hostile client ended early: {error:#}")));
            Misuses::new()
        }
    }
}

/// Ends the revocations, if there are any; returns what they have shown.
async fn stop_revocations(revocations: Option<Revocations>, findings: &mut Vec<Finding>) -> tokens::Counts {
    let Some(revocations) = revocations else { return tokens::Counts::default() };
    match revocations.stop().await {
        Ok((counts, wrong)) => {
            findings.extend(wrong.into_iter().map(|text| Finding::new(Symptom::Token, text)));
            let tokens::Counts { revoked, served, rejected } = counts;
            if revoked == 0 || served == 0 || rejected == 0 {
                findings.push(Finding::harness(format!("tokens were not tested: {counts}")));
            }
            counts
        }
        Err(error) => {
            findings.push(Finding::harness(format!("the revocations ended early: {error:#}")));
            tokens::Counts::default()
        }
    }
}

/// The remaining faults of a lane.
#[derive(Debug)]
struct Schedule {
    upcoming: VecDeque<Fault>,
    /// For each kind, the number of repeats so far and the maximum.
    repeats: HashMap<Fault, (usize, usize)>,
}

impl Schedule {
    /// The planned faults in random order.
    fn new(faults: &[(Fault, usize)], random: &mut Rng) -> Self {
        let mut upcoming: Vec<Fault> =
            faults.iter().flat_map(|(fault, count)| std::iter::repeat_n(*fault, *count)).collect();
        random.shuffle(&mut upcoming);
        let repeats = faults.iter().map(|(fault, count)| (*fault, (0, count * REPEATS_PER_FAULT_MAX))).collect();
        Schedule { upcoming: VecDeque::from(upcoming), repeats }
    }

    fn next(&mut self) -> Option<Fault> {
        self.upcoming.pop_front()
    }

    fn len(&self) -> usize {
        self.upcoming.len()
    }

    /// The number of repeats of this kind so far.
    fn repeats(&self, fault: Fault) -> usize {
        self.repeats.get(&fault).map_or(0, |(count, _)| *count)
    }

    /// Schedules a fault again that had no effect, unless that happened too often.
    fn make_again(&mut self, fault: Fault) {
        if let Some((count, max)) = self.repeats.get_mut(&fault)
            && count < max
        {
            *count += 1;
            self.upcoming.push_back(fault);
        }
    }
}

/// Breaks something, heals it, and waits until the cluster has recovered.
async fn strike(fault: Fault, scene: &mut Scene<'_>) -> Result<Window> {
    let began_ns = scene.recorder.now_ns();
    let detail = fault.run(scene).await?;
    let healed_ns = scene.recorder.now_ns();
    let written_ns = wait_for_write(scene, healed_ns).await?;
    calm(scene.cluster).await?;
    let recovery = Duration::from_nanos(written_ns - healed_ns);
    let operations = scene.recorder.done_between(began_ns, healed_ns);
    Ok(Window { fault, detail, began_ns, healed_ns, recovery, operations, did_nothing: scene.did_nothing })
}

async fn wait_for_write(scene: &Scene<'_>, healed_ns: u64) -> Result<u64> {
    let deadline = Instant::now() + CALM_DEADLINE;
    loop {
        if let Some(written_ns) = scene.recorder.first_write_after(healed_ns) {
            return Ok(written_ns);
        }
        if Instant::now() > deadline {
            anyhow::bail!("no write succeeds within {CALM_DEADLINE:?} after all faults are healed");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until all nodes agree on a leader, and each has applied the entries that existed at the beginning.
pub async fn calm(cluster: &mut Cluster) -> Result<()> {
    let deadline = Instant::now() + CALM_DEADLINE;
    let mut target = None;
    loop {
        let statuses = cluster.statuses().await;
        let leader = statuses.first().and_then(|(_, status)| status.leader);
        let newest = statuses.iter().map(|(_, status)| status.last_log).max();
        let agreed = leader.is_some() && statuses.iter().all(|(_, status)| status.leader == leader);
        if agreed && statuses.len() == cluster.nodes.len() {
            let target = *target.get_or_insert(newest.unwrap_or_default());
            if statuses.iter().all(|(_, status)| status.applied >= target) {
                return Ok(());
            }
        }
        cluster.check_that_all_run()?;
        if Instant::now() > deadline {
            anyhow::bail!("the nodes do not agree within {CALM_DEADLINE:?}: {statuses:?}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// After all faults are healed: every node serves, all have the same state, and the watches have delivered
/// every change.
async fn finish(
    cluster: &mut Cluster,
    watchers: Vec<Watcher>,
    recorder: &Recorder,
    findings: &mut Vec<Finding>,
) -> History {
    if findings.is_empty() {
        serve_everywhere(cluster, recorder, findings).await;
    }
    if let Err(error) = cluster.converge(CONVERGENCE_DEADLINE).await {
        findings.push(Finding::other(format!("at the end: {error:#}")));
    }
    let mut history = History {
        revision_before: cluster.plan.system.first_revision(),
        operations: recorder.take(),
        ..History::default()
    };
    for node in cluster.nodes.iter().filter(|node| node.traces_renames) {
        match renames::check(&node.renames_path()) {
            Ok(unsynced) => findings.extend(unsynced.into_iter().map(|text| Finding::new(Symptom::SystemCall, text))),
            Err(error) => findings.push(Finding::harness(format!("node {}: {error:#}", node.id()))),
        }
    }
    history.finals = final_states(cluster, findings).await;
    let revision = history.finals.iter().map(|state| state.revision).max().unwrap_or_default();
    let watches = watchers.into_iter().map(|watcher| watcher.finish(revision));
    for watch in join_all(watches).await {
        match watch {
            Ok(changes) => history.watches.push(changes),
            Err(error) => findings.push(Finding::other(format!("{error:#}"))),
        }
    }
    history
}

/// The state of all nodes after the same entry. Entries may arrive without a client, such as those by which
/// nodes compare their states. All nodes are then asked again.
async fn final_states(cluster: &Cluster, findings: &mut Vec<Finding>) -> Vec<FinalState> {
    let deadline = Instant::now() + CONVERGENCE_DEADLINE;
    loop {
        let statuses = cluster.statuses().await;
        let applied = statuses.iter().map(|(_, status)| status.applied).max().unwrap_or_default();
        let asked = cluster.nodes.iter().map(async |node| {
            let state = cluster.client.final_state(node.id(), node.host.http(), applied).await;
            state.map_err(|error| format!("node {} does not return its state: {error:#}", node.id()))
        });
        let states = join_all(asked).await;
        if Instant::now() > deadline || states.iter().all(Result::is_ok) {
            let (held, failed): (Vec<_>, Vec<_>) = states.into_iter().partition(Result::is_ok);
            findings.extend(failed.into_iter().filter_map(Result::err).map(Finding::other));
            return held.into_iter().filter_map(Result::ok).collect();
        }
        tokio::time::sleep(LAST_PAUSE).await;
    }
}

/// Without a model: the nodes have applied the same entries, so they must have the same state.
fn hold_against_each_other(history: &History, findings: &mut Vec<Finding>) {
    let Some((first, others)) = history.finals.split_first() else { return };
    let mut differ = |text: String| findings.push(Finding::new(Symptom::States, text));
    for other in others {
        let (one, two) = (first.node, other.node);
        if first.revision != other.revision {
            differ(format!("node {one} is at revision {}, and node {two} at {}", first.revision, other.revision));
        }
        for record in first.records.iter().filter(|record| !other.records.contains(record)) {
            differ(format!("node {one} has {record:?}, and node {two} has not"));
        }
        for record in other.records.iter().filter(|record| !first.records.contains(record)) {
            differ(format!("node {two} has {record:?}, and node {one} has not"));
        }
        if first.hash != other.hash {
            differ(format!("node {one} has the hash {}, and node {two} has {}", first.hash, other.hash));
        }
    }
}

/// Each node must accept a write and serve a read at the latest when the cluster must have recovered. On a
/// busy machine there may be one more election.
async fn serve_everywhere(cluster: &Cluster, recorder: &Recorder, findings: &mut Vec<Finding>) {
    for node in &cluster.nodes {
        for is_write in [true, false] {
            let deadline = Instant::now() + CONVERGENCE_DEADLINE;
            let mut number = 0;
            while let Err(reason) = serve_once(cluster, recorder, node, is_write.then_some(number)).await {
                if Instant::now() > deadline {
                    findings.push(Finding::other(format!("node {} does not serve at the end: {reason}", node.id())));
                    break;
                }
                number += 1;
                tokio::time::sleep(LAST_PAUSE).await;
            }
        }
    }
}

/// Sends a write with this number, or a linearizable read; the error says why it failed.
async fn serve_once(cluster: &Cluster, recorder: &Recorder, node: &Node, write: Option<u32>) -> Result<(), String> {
    let key = format!("last/{}", node.id()).into();
    let call = match write {
        Some(number) => Call::Put { key, value: format!("last-{}-{number}", node.id()).into(), condition: None },
        None => Call::Get { key, consistency: Consistency::Linearizable },
    };
    let called_ns = recorder.now_ns();
    let attempt = cluster.writer.call(node.host.http(), &call, None, CLIENT_DEADLINE).await;
    let is_done = matches!(attempt.outcome, Outcome::Done(_));
    recorder.add(u32::MAX, node.id(), called_ns, call, attempt.outcome);
    if is_done { Ok(()) } else { Err(attempt.reason) }
}

fn progress(lane: &str, number: usize, planned: usize, window: &Window, operations: usize) {
    let held = Duration::from_nanos(window.healed_ns - window.began_ns);
    println!(
        "{lane:<10} {number:>3}/{planned} {:<24} {:>5.1} s, writes after {:>5} ms, \
         {:>5} operations inside, {operations:>6} in all  {}",
        window.fault.to_string(),
        held.as_secs_f64(),
        window.recovery.as_millis(),
        window.operations,
        window.detail
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fault without an effect is repeated until it has one, up to a limit.
    ///
    /// Method: one of two kinds of faults always has an effect; the other has one at each fifth attempt, or
    /// never.
    #[test]
    fn faults_that_show_nothing_are_made_again() {
        let made = |succeeds_at_each: usize| {
            let planned = [(Fault::LagKillSender, 7), (Fault::Lag, 3)];
            let mut schedule = Schedule::new(&planned, &mut Rng::with_seed(1));
            let (mut attempts, mut lag_kills, mut lags) = (0, 0, 0);
            while let Some(fault) = schedule.next() {
                if fault == Fault::Lag {
                    lags += 1;
                    continue;
                }
                attempts += 1;
                if attempts % succeeds_at_each == 0 {
                    lag_kills += 1;
                } else {
                    schedule.make_again(fault);
                }
            }
            assert_eq!((lags, schedule.len(), schedule.repeats(Fault::Lag)), (3, 0, 0));
            assert_eq!(schedule.repeats(Fault::LagKillSender), attempts - 7);
            (attempts, lag_kills)
        };
        assert_eq!(made(1), (7, 7));
        assert_eq!(made(5), (35, 7));
        assert_eq!(made(1000), (7 + 7 * REPEATS_PER_FAULT_MAX, 0));
    }
}
