//! Measures how fast an empty node becomes a voter of a cluster with many keys, and what that does to the latency of
//! writes.
//!
//! A cluster is loaded once, and its peak throughput is measured. Then the same few clients write in turn with and
//! without a node that joins meanwhile: an empty one, started with `--join` and nothing else. Afterwards it is removed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::Verdict;
use crate::arguments::JoinArguments;
use crate::load::{self, LoadPlan, Measurement, Workload};
use crate::ours::OursCluster;
use crate::report::{Environment, Goal, Limit, publish};
use crate::statistics::{Spread, milliseconds, thousands, two_digits};
use crate::target::{Target, VALUE_BYTES};
use crate::workspace::{Workspace, our_server};

const FILL_CLIENTS: usize = 128;
/// Clients with which the peak throughput is measured.
const PEAK_CLIENTS: usize = 256;
const PEAK_SECONDS: u64 = 5;
const WARM_UP: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
const JOIN_DEADLINE: Duration = Duration::from_secs(300);
const JOIN_SECONDS_MAX: f64 = 10.0;
const WRITE_P99_RATIO_MAX: f64 = 2.0;
/// The first node that joins; each further one is a new node.
const FIRST_ID: u64 = 4;

#[derive(Serialize)]
struct Record {
    round: u32,
    /// From the start of the process until the leader's membership has it as a voter; `None` in a run without.
    join_seconds: Option<f64>,
    #[serde(flatten)]
    measurement: Measurement,
}

#[derive(Serialize)]
struct Figures {
    environment: Environment,
    goals: Vec<Goal>,
    peak_writes_per_second: f64,
    records: Vec<Record>,
}

pub async fn run(arguments: &JoinArguments) -> Result<Verdict> {
    let options = our_server(&arguments.common)?;
    let environment = Environment::gather(&[&options.server])?;
    let workspace = Workspace::create(&arguments.common, "join")?;
    let mut cluster = OursCluster::create(&options, &workspace.path("cluster")).await?;
    let leader = cluster.leader().await?;
    load::fill(&Target::ours(leader, FILL_CLIENTS), FILL_CLIENTS, 0..arguments.keys).await?;
    let plan = |clients, seconds, round: u32| LoadPlan {
        workload: Workload::Write,
        clients,
        warm_up: WARM_UP,
        measured: Duration::from_secs(seconds),
        key_count: arguments.keys,
        seed: u64::from(round),
    };
    let target = Target::ours(leader, PEAK_CLIENTS);
    let peak = load::run(&target, &plan(PEAK_CLIENTS, PEAK_SECONDS, 0), &cluster.pids()).await?;
    let peak_writes_per_second = peak.operations_per_second;
    println!("peak: {} writes/s", thousands(peak_writes_per_second));

    let mut records = Vec::new();
    for round in 1..=arguments.rounds {
        let mut order = [true, false];
        if round.is_multiple_of(2) {
            order.reverse();
        }
        for with_join in order {
            let leader = cluster.leader().await?;
            let (target, pids) = (Target::ours(leader, arguments.clients), cluster.pids());
            let plan = plan(arguments.clients, arguments.seconds, round);
            let load = load::run(&target, &plan, &pids);
            let joining = async {
                if !with_join {
                    return anyhow::Ok(None);
                }
                tokio::time::sleep(WARM_UP).await;
                let id = FIRST_ID + u64::from(round) - 1;
                let began = Instant::now();
                cluster.start_joining(id)?;
                while !cluster.voters(leader.id).await?.contains(&id) {
                    ensure!(began.elapsed() < JOIN_DEADLINE, "node {id} is no voter after {JOIN_DEADLINE:?}");
                    cluster.check_running()?;
                    tokio::time::sleep(POLL_INTERVAL).await;
                }
                Ok(Some((id, began.elapsed().as_secs_f64())))
            };
            let (measurement, joined) = tokio::join!(load, joining);
            let joined = joined.context("a node did not join")?;
            if let Some((id, seconds)) = joined {
                let is_within = seconds < arguments.seconds as f64;
                ensure!(is_within, "node {id} joined after {seconds:.1} s, longer than the load: use more --seconds");
            }
            if let Some((id, _)) = joined {
                cluster.remove_joined(id).await?;
            }
            let record = Record { round, join_seconds: joined.map(|(_, seconds)| seconds), measurement: measurement? };
            println!("{}", progress_line(&record, peak_writes_per_second));
            records.push(record);
        }
    }
    cluster.stop().await?;
    workspace.finish()?;

    let p99 = |with_join| of(&records, with_join, |m| m.latency_us_p99 as f64).median;
    let goals = vec![
        Goal {
            what: "time until an empty node is a voter".to_owned(),
            limit: Limit::AtMost(JOIN_SECONDS_MAX),
            measured: Spread::of(records.iter().filter_map(|record| record.join_seconds)).median,
            unit: " s",
        },
        Goal {
            what: "write p99 of a run with a join, to that without".to_owned(),
            limit: Limit::AtMost(WRITE_P99_RATIO_MAX),
            measured: p99(true) / p99(false),
            unit: "×",
        },
    ];
    let verdict = Goal::verdict(&goals);
    ensure!(records.iter().all(|record| record.measurement.errors == 0), "a write failed");
    let figures = Figures { environment, goals, peak_writes_per_second, records };
    publish(&arguments.common, "join", &markdown(arguments, &figures), &figures, true)?;
    Ok(verdict)
}

fn of(records: &[Record], with_join: bool, figure: impl Fn(&Measurement) -> f64) -> Spread {
    let chosen = records.iter().filter(|record| record.join_seconds.is_some() == with_join);
    Spread::of(chosen.map(|record| figure(&record.measurement)))
}

fn joined_in(record: &Record) -> String {
    record.join_seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{} s", two_digits(seconds)))
}

fn progress_line(record: &Record, peak: f64) -> String {
    let measurement = &record.measurement;
    format!(
        "round {}  joined in: {}  {}/s ({:.0} % of the peak)  p50 {} p99 {} max {} ms  errors: {}",
        record.round,
        joined_in(record),
        thousands(measurement.operations_per_second),
        measurement.operations_per_second / peak * 100.0,
        milliseconds(measurement.latency_us_p50 as f64),
        milliseconds(measurement.latency_us_p99 as f64),
        milliseconds(measurement.latency_us_max as f64),
        measurement.errors,
    )
}

fn markdown(arguments: &JoinArguments, figures: &Figures) -> String {
    let mut text = format!(
        "## A node that joins\n\n{}\n\
         {} keys with values of {VALUE_BYTES} bytes. {} clients write random keys for {} s a run; with {PEAK_CLIENTS} \
         clients, the peak, the cluster has {} writes/s. In every other run an empty node is started with `--join`.\n\n{}\n\
         | round | joined in | writes/s | p50 ms | p99 ms | max ms | errors |\n\
         | --- | --- | --- | --- | --- | --- | --- |\n",
        figures.environment.markdown(),
        thousands(arguments.keys as f64),
        arguments.clients,
        arguments.seconds,
        thousands(figures.peak_writes_per_second),
        Goal::table(&figures.goals),
    );
    for record in &figures.records {
        let measurement = &record.measurement;
        text += &format!(
            "| {} | {} | {} | {} | {} | {} | {} |\n",
            record.round,
            joined_in(record),
            thousands(measurement.operations_per_second),
            milliseconds(measurement.latency_us_p50 as f64),
            milliseconds(measurement.latency_us_p99 as f64),
            milliseconds(measurement.latency_us_max as f64),
            measurement.errors,
        );
    }
    text
}
