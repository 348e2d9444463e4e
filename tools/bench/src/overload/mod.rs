//! Measures what a cluster does when it is offered several times the load that it can carry.
//!
//! Each node gets a small share of a core, so that the load generator has enough CPU time to offer that much
//! on the same machine. Closed loops first find the cluster's peak. Requests then become due at a multiple of
//! the peak, whether or not earlier ones have completed. A machine is not always as fast, so the overload comes in
//! parts, and the closed loop at the peak runs again before and after each of them.

mod cpu_limit;
mod markdown;
mod open_loop;
mod plain_http;
mod watch;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::Verdict;
use crate::arguments::{OverloadArguments, Receivers};
use crate::cpu;
use crate::load::{self, LoadPlan, Measurement, Workload};
use crate::ours::OursCluster;
use crate::process::raise_open_files_limit;
use crate::report::{Environment, Goal, Limit, publish};
use crate::statistics::{Spread, thousands};
use crate::target::{Leader, Target};
use crate::workspace::{Workspace, our_server};

use cpu_limit::CpuLimits;
use open_loop::{Counts, OpenLoop, OpenPlan, Tally, Tasks};
use watch::{Memory, Views};

const KEYS: u64 = 10_000;
const FILL_CLIENTS: usize = 64;
const PEAK_CLIENTS: [usize; 5] = [32, 64, 128, 256, 512];
const PEAK_WARM_UP: Duration = Duration::from_secs(1);
/// Pause between a part of the overload and the measurement of the peak after it.
const REST: Duration = Duration::from_secs(1);

const GOODPUT_RATIO_MIN: f64 = 0.85;
const REFUSED_P99_MS_MAX: f64 = 100.0;
const MEMORY_GROWTH_MIB_MAX: f64 = 256.0;

#[derive(Serialize)]
struct Figures {
    environment: Environment,
    goals: Vec<Goal>,
    node_cores: f64,
    receivers: Receivers,
    connections: u16,
    factor: f64,
    peak: Vec<PeakPoint>,
    overload: Overload,
    memory: Memory,
    /// The leader when the peak had been measured.
    leader_id: u64,
    term: u64,
    views: Views,
    parts: Vec<Part>,
}

/// A part of the overload, between two measurements of the peak.
#[derive(Serialize)]
struct Part {
    before: PeakPoint,
    done_per_second: f64,
    after: PeakPoint,
}

#[derive(Clone, Serialize)]
struct PeakPoint {
    clients: usize,
    #[serde(flatten)]
    measurement: Measurement,
}

#[derive(Serialize)]
struct Overload {
    seconds: u64,
    offered: u64,
    #[serde(flatten)]
    counts: Counts,
    refusals_by_code: BTreeMap<String, u64>,
    first_error: Option<String>,
    done_latency: Latency,
    done_latency_since_due: Latency,
    refused_latency: Latency,
    done_by_second: Vec<u64>,
    node_cores_used: Vec<f64>,
    load_cores_used: f64,
    other_cores_used: f64,
    schedule_late_us_max: u64,
}

#[derive(Serialize)]
struct Latency {
    count: u64,
    us_p50: u64,
    us_p90: u64,
    us_p99: u64,
    us_max: u64,
}

pub async fn run(arguments: &OverloadArguments) -> Result<Verdict> {
    ensure!(arguments.node_cores > 0.0, "--node-cores must be more than 0, not {}", arguments.node_cores);
    ensure!(arguments.factor > 0.0, "--factor must be more than 0, not {}", arguments.factor);
    let options = our_server(&arguments.common)?;
    let environment = Environment::gather(&[&options.server])?;
    // Declared before the cluster, so that it is dropped after it: only an empty group can be removed.
    let mut limits = CpuLimits::prepare()?;
    raise_open_files_limit()?;
    let workspace = Workspace::create(&arguments.common, "overload")?;
    let cluster = OursCluster::create(&options, &workspace.path("cluster")).await?;
    load::fill(&Target::ours(cluster.leader().await?, FILL_CLIENTS), FILL_CLIENTS, 0..KEYS).await?;
    limits.apply(&cluster.pids(), arguments.node_cores)?;
    println!("each node may use {} of a core from now on", arguments.node_cores);

    let peak = measure_peak(arguments, &cluster).await?;
    let best = best_of(&peak).context("no peak was measured")?;
    let leader = cluster.leader().await?;
    println!(
        "peak: {}/s with {} clients; node {} leads in term {}",
        thousands(best.measurement.operations_per_second),
        best.clients,
        leader.id,
        leader.term
    );
    let mut memory = Memory::new(&cluster)?;
    let mut views = Views::default();
    let rate_per_second = best.measurement.operations_per_second * arguments.factor;
    let mut parts = Vec::new();
    let mut overload: Option<Offered> = None;
    let mut before = measure_closed(arguments, &cluster, best.clients).await?;
    for _ in 0..arguments.parts {
        let offered = offer(arguments, &cluster, leader, rate_per_second, &mut memory, &mut views).await?;
        tokio::time::sleep(REST).await;
        let after = measure_closed(arguments, &cluster, best.clients).await?;
        parts.push(Part { before, done_per_second: offered.done_per_second(), after: after.clone() });
        match &mut overload {
            None => overload = Some(offered),
            Some(overload) => overload.append(offered)?,
        }
        before = after;
    }
    let overload = Overload::new(overload.context("the overload has no parts")?);
    for node_id in cluster.node_ids() {
        views.look(&cluster, node_id).await;
    }
    cluster.stop().await?;
    drop(limits);
    workspace.finish()?;

    let goals = goals(&parts, &overload, &memory, views.elections(leader));
    let verdict = match views.elections(leader) {
        0 => Goal::verdict(&goals),
        _ => Verdict::PromiseBroken,
    };
    let figures = Figures {
        environment,
        goals,
        node_cores: arguments.node_cores,
        receivers: arguments.spread,
        connections: arguments.connections,
        factor: arguments.factor,
        peak,
        overload,
        memory,
        leader_id: leader.id,
        term: leader.term,
        views,
        parts,
    };
    publish(&arguments.common, "overload", &figures.markdown(), &figures, true)?;
    Ok(verdict)
}

async fn measure_peak(arguments: &OverloadArguments, cluster: &OursCluster) -> Result<Vec<PeakPoint>> {
    let mut points = Vec::new();
    for clients in PEAK_CLIENTS {
        points.push(measure_closed(arguments, cluster, clients).await?);
    }
    Ok(points)
}

fn best_of(points: &[PeakPoint]) -> Option<&PeakPoint> {
    let rate = |point: &PeakPoint| point.measurement.operations_per_second;
    points.iter().max_by(|one, other| rate(one).total_cmp(&rate(other))).filter(|best| rate(best) > 0.0)
}

async fn measure_closed(arguments: &OverloadArguments, cluster: &OursCluster, clients: usize) -> Result<PeakPoint> {
    let targets: Vec<Target> = cluster.addresses().iter().map(|node| Target::our_node(*node, clients)).collect();
    let plan = LoadPlan {
        workload: Workload::Put,
        clients,
        warm_up: PEAK_WARM_UP,
        measured: Duration::from_secs(arguments.peak_seconds),
        key_count: KEYS,
        seed: clients as u64,
    };
    let measurement = load::run_on_all(&targets, &plan, &cluster.pids()).await?;
    println!("{clients} clients  {measurement}");
    Ok(PeakPoint { clients, measurement })
}

/// Runs the open loop for one part, and records memory, terms and leaders meanwhile.
async fn offer(
    arguments: &OverloadArguments,
    cluster: &OursCluster,
    leader: Leader,
    rate_per_second: f64,
    memory: &mut Memory,
    views: &mut Views,
) -> Result<Offered> {
    let addresses: Vec<SocketAddr> = match arguments.spread {
        Receivers::All => cluster.addresses().to_vec(),
        Receivers::Leader => vec![leader.address],
    };
    let plan = OpenPlan {
        rate_per_second,
        seconds: (arguments.seconds / u64::from(arguments.parts)).max(1),
        connections: arguments.connections.into(),
        key_count: KEYS,
    };
    println!("offering {} requests/s for {} s", thousands(rate_per_second), plan.seconds);
    let (load, tasks) = OpenLoop::start(&plan, &addresses).await?;
    let pids = cluster.pids();
    let cores = tokio::select! {
        cores = run_to_end(&load, tasks, &pids) => cores?,
        ended = memory.watch(cluster, &load) => match ended? {},
        never = views.watch(cluster) => match never {},
    };
    Ok(Offered {
        seconds: load.schedule.seconds,
        offered: load.schedule.due_until(load.schedule.end()),
        tally: load.tally()?,
        cores,
        late_us_max: load.late_us_max(),
    })
}

/// Returns the cores used while requests became due; also waits for the last responses.
async fn run_to_end(load: &OpenLoop, tasks: Tasks, pids: &[libc::pid_t]) -> Result<cpu::Cores> {
    tokio::time::sleep_until(load.schedule.begin.into()).await;
    let before = cpu::Sample::take(pids)?;
    tokio::time::sleep_until(load.schedule.end().into()).await;
    let cores = cpu::Sample::take(pids)?.cores_since(&before);
    open_loop::finish(tasks).await?;
    Ok(cores)
}

/// What an open loop was offered, and what became of it.
struct Offered {
    seconds: u64,
    offered: u64,
    tally: Tally,
    cores: cpu::Cores,
    late_us_max: u64,
}

impl Offered {
    /// Counts requests that completed while requests became due, and not those that completed later.
    fn done_per_second(&self) -> f64 {
        self.tally.done_by_second.iter().sum::<u64>() as f64 / self.seconds as f64
    }

    /// Adds a later part.
    fn append(&mut self, later: Offered) -> Result<()> {
        let share = later.seconds as f64 / (self.seconds + later.seconds) as f64;
        let mean = |one: &mut f64, other: f64| *one += (other - *one) * share;
        self.cores.servers.iter_mut().zip(later.cores.servers).for_each(|(one, other)| mean(one, other));
        mean(&mut self.cores.load, later.cores.load);
        mean(&mut self.cores.other, later.cores.other);
        self.seconds += later.seconds;
        self.offered += later.offered;
        self.late_us_max = self.late_us_max.max(later.late_us_max);
        self.tally.append(later.tally)
    }
}

impl Part {
    /// The throughput of the part, to the mean of the peaks before and after it.
    fn ratio(&self) -> f64 {
        let peaks = [&self.before, &self.after].map(|point| point.measurement.operations_per_second);
        self.done_per_second * 2.0 / peaks.iter().sum::<f64>()
    }
}

impl Overload {
    fn new(offered: Offered) -> Self {
        let Offered { seconds, offered, tally, cores, late_us_max } = offered;
        Self {
            seconds,
            offered,
            counts: tally.counts,
            done_latency: Latency::of(&tally.done_us),
            done_latency_since_due: Latency::of(&tally.done_since_due_us),
            refused_latency: Latency::of(&tally.refused_us),
            refusals_by_code: tally.refusals_by_code,
            first_error: tally.first_error,
            done_by_second: tally.done_by_second,
            node_cores_used: cores.servers,
            load_cores_used: cores.load,
            other_cores_used: cores.other,
            schedule_late_us_max: late_us_max,
        }
    }

    fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.seconds as f64
    }

    fn done_in_a_second(&self) -> Spread {
        Spread::of(self.done_by_second.iter().map(|count| *count as f64))
    }
}

impl Latency {
    fn of(histogram_us: &Histogram<u32>) -> Self {
        Self {
            count: histogram_us.len(),
            us_p50: histogram_us.value_at_quantile(0.50),
            us_p90: histogram_us.value_at_quantile(0.90),
            us_p99: histogram_us.value_at_quantile(0.99),
            us_max: histogram_us.max(),
        }
    }
}

fn goals(parts: &[Part], overload: &Overload, memory: &Memory, elections: u64) -> Vec<Goal> {
    let goal = |what: &str, limit, measured, unit| Goal { what: what.to_owned(), limit, measured, unit };
    vec![
        goal(
            "writes/s under overload ÷ peak, median of the parts",
            Limit::AtLeast(GOODPUT_RATIO_MIN),
            Spread::of(parts.iter().map(Part::ratio)).median,
            "×",
        ),
        goal(
            "p99 of a rejection",
            Limit::AtMost(REFUSED_P99_MS_MAX),
            overload.refused_latency.us_p99 as f64 / 1000.0,
            " ms",
        ),
        goal("rejected", Limit::AtLeast(1.0), overload.counts.refused as f64, ""),
        goal(
            "neither done nor rejected",
            Limit::AtMost(0.0),
            (overload.counts.unknown + overload.counts.other + overload.counts.broken) as f64,
            "",
        ),
        goal("elections", Limit::AtMost(0.0), elections as f64, ""),
        goal(
            "memory growth of the node that grew most",
            Limit::AtMost(MEMORY_GROWTH_MIB_MAX),
            memory.growth_bytes_max() as f64 / f64::from(1 << 20),
            " MiB",
        ),
    ]
}
