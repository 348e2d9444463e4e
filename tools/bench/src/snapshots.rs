//! Measures what snapshots do to the latency of writes.
//!
//! A cluster with many keys is loaded once. The same load then runs on it in turn with snapshots and without;
//! between the runs the nodes restart on the same data with the other setting.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::Verdict;
use crate::arguments::SnapshotsArguments;
use crate::load::{self, LoadPlan, Measurement, Workload};
use crate::ours::OursCluster;
use crate::report::{Environment, Goal, Limit, publish};
use crate::statistics::{Spread, thousands};
use crate::target::{Target, VALUE_BYTES};
use crate::workspace::{Workspace, our_server};

const CLIENTS: usize = 64;
const FILL_CLIENTS: usize = 128;
const WARM_UP: Duration = Duration::from_secs(3);
/// More entries than any run writes, so that no snapshot is built.
const SNAPSHOT_ENTRIES_NEVER: u64 = 1_000_000_000;
const WRITE_P99_RATIO_MAX: f64 = 2.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Snapshots {
    On,
    Off,
}

#[derive(Serialize)]
struct Record {
    round: u32,
    snapshots: Snapshots,
    /// The log index of each node's snapshot, at the beginning and at the end of the measured window.
    snapshot_index_before: Vec<u64>,
    snapshot_index_after: Vec<u64>,
    #[serde(flatten)]
    measurement: Measurement,
}

#[derive(Serialize)]
struct Figures {
    environment: Environment,
    goals: Vec<Goal>,
    records: Vec<Record>,
}

pub async fn run(arguments: &SnapshotsArguments) -> Result<Verdict> {
    let mut options = our_server(&arguments.common)?;
    let environment = Environment::gather(&[&options.server])?;
    let workspace = Workspace::create(&arguments.common, "snapshots")?;
    let data_directory = workspace.path("cluster");
    options.server_arguments = server_arguments(arguments, Snapshots::On);
    let mut cluster = OursCluster::create(&options, &data_directory).await?;
    fill(&cluster, arguments.keys).await?;

    let mut records = Vec::new();
    for round in 1..=arguments.rounds {
        let mut order = [Snapshots::On, Snapshots::Off];
        if round.is_multiple_of(2) {
            order.reverse();
        }
        for snapshots in order {
            cluster
                .restart(server_arguments(arguments, snapshots))
                .await
                .context("cannot restart the nodes with another setting")?;
            let record = measure(arguments, &cluster, round, snapshots).await?;
            println!(
                "round {round}/{}  snapshots {snapshots:?}  {}  snapshot made on node 1, 2, 3: {}",
                arguments.rounds,
                record.measurement,
                record.snapshot_summary(),
            );
            records.push(record);
        }
    }
    cluster.stop().await?;
    workspace.finish()?;

    let goals = vec![Goal {
        what: format!("write p99 with snapshots, {CLIENTS} clients"),
        limit: Limit::AtMost(WRITE_P99_RATIO_MAX),
        measured: write_p99_ratio(&records),
        unit: "×",
    }];
    let is_met = goals.iter().all(Goal::is_met) && records.iter().all(Record::is_as_intended);
    let figures = Figures { environment, goals, records };
    publish(&arguments.common, "snapshots", &markdown(arguments, &figures), &figures, true)?;
    Ok(if is_met { Verdict::Met } else { Verdict::GoalMissed })
}

fn server_arguments(arguments: &SnapshotsArguments, snapshots: Snapshots) -> Vec<String> {
    let entries = match snapshots {
        Snapshots::On => arguments.snapshot_entries,
        Snapshots::Off => SNAPSHOT_ENTRIES_NEVER,
    };
    let mut all = arguments.common.server_arguments.clone();
    all.extend(["--snapshot-entries".to_owned(), entries.to_string()]);
    all
}

async fn fill(cluster: &OursCluster, keys: u64) -> Result<()> {
    const STEPS: u64 = 10;
    let target = Target::ours(cluster.leader().await?, FILL_CLIENTS);
    let started = Instant::now();
    for step in 0..STEPS {
        let range = keys * step / STEPS..keys * (step + 1) / STEPS;
        load::fill(&target, FILL_CLIENTS, range.clone()).await?;
        println!("loaded {} keys in {:.1} s", thousands(range.end as f64), started.elapsed().as_secs_f64());
    }
    Ok(())
}

async fn measure(
    arguments: &SnapshotsArguments,
    cluster: &OursCluster,
    round: u32,
    snapshots: Snapshots,
) -> Result<Record> {
    let target = Target::ours(cluster.leader().await?, CLIENTS);
    let plan = LoadPlan {
        workload: Workload::Write,
        clients: CLIENTS,
        warm_up: WARM_UP,
        measured: Duration::from_secs(arguments.seconds),
        key_count: arguments.keys,
        seed: u64::from(round),
    };
    let pids = cluster.pids();
    let at_begin = async {
        tokio::time::sleep(WARM_UP).await;
        snapshot_indexes(cluster).await
    };
    let (measurement, before) = tokio::join!(load::run(&target, &plan, &pids), at_begin);
    Ok(Record {
        round,
        snapshots,
        measurement: measurement?,
        snapshot_index_before: before?,
        snapshot_index_after: snapshot_indexes(cluster).await?,
    })
}

async fn snapshot_indexes(cluster: &OursCluster) -> Result<Vec<u64>> {
    let mut indexes = Vec::new();
    for node_id in cluster.node_ids() {
        indexes.push(cluster.metrics(node_id).await?.snapshot.map_or(0, |log_id| log_id.index));
    }
    Ok(indexes)
}

impl Record {
    /// For each node, whether it built a snapshot in the measured window.
    fn snapshot_made(&self) -> impl Iterator<Item = bool> {
        let pairs = self.snapshot_index_before.iter().zip(&self.snapshot_index_after);
        pairs.map(|(before, after)| after > before)
    }

    /// Whether every node built a snapshot in a run with snapshots, and none did in a run without. Otherwise
    /// the run shows nothing.
    fn is_as_intended(&self) -> bool {
        self.measurement.errors == 0
            && match self.snapshots {
                Snapshots::On => self.snapshot_made().all(|made| made),
                Snapshots::Off => !self.snapshot_made().any(|made| made),
            }
    }

    fn snapshot_summary(&self) -> String {
        let made: Vec<&str> = self.snapshot_made().map(|made| if made { "yes" } else { "no" }).collect();
        let summary = made.join(", ");
        if self.is_as_intended() { summary } else { format!("**{summary}: not as intended**") }
    }
}

fn of(records: &[Record], snapshots: Snapshots, figure: impl Fn(&Measurement) -> f64) -> Spread {
    let chosen = records.iter().filter(|record| record.snapshots == snapshots);
    Spread::of(chosen.map(|record| figure(&record.measurement)))
}

fn write_p99_ratio(records: &[Record]) -> f64 {
    let p99 = |snapshots| of(records, snapshots, |m| m.latency_us_p99 as f64).median;
    p99(Snapshots::On) / p99(Snapshots::Off)
}

fn markdown(arguments: &SnapshotsArguments, figures: &Figures) -> String {
    let mut text = format!(
        "## Snapshots and the latency of writes\n\n{}\n\
         {} keys with values of {VALUE_BYTES} bytes. {CLIENTS} clients write random keys for {} s a run. \
         {} runs with a snapshot every {} entries alternate with as many runs without snapshots, \
         on the same data.\n\n{}\n\
         | round | snapshots | writes/s | p50 ms | p99 ms | max ms | server CPU µs/write \
         | errors | snapshot made in the window, node 1, 2, 3 |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
        figures.environment.markdown(),
        thousands(arguments.keys as f64),
        arguments.seconds,
        arguments.rounds,
        thousands(arguments.snapshot_entries as f64),
        Goal::table(&figures.goals),
    );
    for record in &figures.records {
        text += &format!(
            "| {} | {:?} | {} | {} | {} |\n",
            record.round,
            record.snapshots,
            record.measurement.cells(),
            record.measurement.errors,
            record.snapshot_summary(),
        );
    }
    let rate = |snapshots| of(&figures.records, snapshots, |m| m.operations_per_second).median;
    text += &format!(
        "\nMedians: {} writes/s with snapshots, {} without ({:.2}×).\n",
        thousands(rate(Snapshots::On)),
        thousands(rate(Snapshots::Off)),
        rate(Snapshots::On) / rate(Snapshots::Off),
    );
    text
}
