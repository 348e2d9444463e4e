//! Measures how fast `snapshot save` is, and what it does to the latency of writes.
//!
//! A cluster with many keys is loaded once. The command then runs once without load. After that the same load runs in
//! turn with the command, again and again until the load ends, and without it.

use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::Verdict;
use crate::arguments::SnapshotSaveArguments;
use crate::load::{self, LoadPlan, Measurement, Workload};
use crate::ours::OursCluster;
use crate::report::{Environment, Goal, Limit, publish};
use crate::statistics::{Spread, milliseconds, thousands};
use crate::target::{Target, VALUE_BYTES};
use crate::workspace::{Workspace, our_server};

const FILL_CLIENTS: usize = 128;
const WARM_UP: Duration = Duration::from_secs(3);
/// More entries than any run writes, so that no node takes a snapshot by itself.
const SNAPSHOT_ENTRIES_NEVER: u64 = 1_000_000_000;
const SAVE_MB_PER_SECOND_MIN: f64 = 200.0;
const WRITE_P99_RATIO_MAX: f64 = 2.0;

/// One run of the command.
#[derive(Clone, Copy, Debug, Serialize)]
struct Save {
    bytes: u64,
    seconds: f64,
}

impl Save {
    fn mb_per_second(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.seconds
    }
}

#[derive(Serialize)]
struct Record {
    round: u32,
    with_saves: bool,
    saves: Vec<Save>,
    #[serde(flatten)]
    measurement: Measurement,
}

#[derive(Serialize)]
struct Figures {
    environment: Environment,
    goals: Vec<Goal>,
    without_load: Save,
    records: Vec<Record>,
}

pub async fn run(arguments: &SnapshotSaveArguments) -> Result<Verdict> {
    let mut options = our_server(&arguments.common)?;
    let environment = Environment::gather(&[&options.server])?;
    let workspace = Workspace::create(&arguments.common, "snapshot-save")?;
    options.server_arguments.extend(["--snapshot-entries".to_owned(), SNAPSHOT_ENTRIES_NEVER.to_string()]);
    let cluster = OursCluster::create(&options, &workspace.path("cluster")).await?;
    let leader = Target::ours(cluster.leader().await?, FILL_CLIENTS);
    load::fill(&leader, FILL_CLIENTS, 0..arguments.keys).await?;
    let (server, file) = (options.server.as_path(), workspace.path("backup.snap"));

    let without_load = save(server, &cluster, &file).await?;
    println!("without load: {:.0} MB/s", without_load.mb_per_second());
    let mut records = Vec::new();
    for round in 1..=arguments.rounds {
        let mut order = [true, false];
        if round.is_multiple_of(2) {
            order.reverse();
        }
        for with_saves in order {
            let record = measure(arguments, server, &cluster, &file, round, with_saves).await?;
            println!("{}", progress_line(&record));
            records.push(record);
        }
    }
    cluster.stop().await?;
    workspace.finish()?;

    let goal = |what: String, limit, measured, unit| Goal { what, limit, measured, unit };
    let speed = goal(
        format!("save while {} clients write", arguments.clients),
        Limit::AtLeast(SAVE_MB_PER_SECOND_MIN),
        Spread::of(records.iter().flat_map(|it| &it.saves).map(Save::mb_per_second)).median,
        "MB/s",
    );
    let speed_without_load = goal(
        "save without load".to_owned(),
        Limit::AtLeast(SAVE_MB_PER_SECOND_MIN),
        without_load.mb_per_second(),
        "MB/s",
    );
    let latency = goal(
        format!("write p99 during saves, {} clients", arguments.clients),
        Limit::AtMost(WRITE_P99_RATIO_MAX),
        write_p99_ratio(&records),
        "×",
    );
    let goals = vec![speed_without_load, speed, latency];
    let is_met = goals.iter().all(Goal::is_met) && records.iter().all(|record| record.measurement.errors == 0);
    let figures = Figures { environment, goals, without_load, records };
    publish(&arguments.common, "snapshot-save", &markdown(arguments, &figures), &figures, true)?;
    Ok(if is_met { Verdict::Met } else { Verdict::GoalMissed })
}

async fn measure(
    arguments: &SnapshotSaveArguments,
    server: &Path,
    cluster: &OursCluster,
    file: &Path,
    round: u32,
    with_saves: bool,
) -> Result<Record> {
    let target = Target::ours(cluster.leader().await?, arguments.clients);
    let plan = LoadPlan {
        workload: Workload::Write,
        clients: arguments.clients,
        warm_up: WARM_UP,
        measured: Duration::from_secs(arguments.seconds),
        key_count: arguments.keys,
        seed: u64::from(round),
    };
    let pids = cluster.pids();
    let is_done = AtomicBool::new(!with_saves);
    let load = async {
        let measurement = load::run(&target, &plan, &pids).await;
        is_done.store(true, Ordering::Relaxed);
        measurement
    };
    let saves = async {
        let mut saves = Vec::new();
        if with_saves {
            tokio::time::sleep(WARM_UP).await;
        }
        while !is_done.load(Ordering::Relaxed) {
            saves.push(save(server, cluster, file).await?);
        }
        anyhow::Ok(saves)
    };
    let (measurement, saves) = tokio::join!(load, saves);
    Ok(Record { round, with_saves, saves: saves?, measurement: measurement? })
}

/// Runs the command once, from any node.
async fn save(server: &Path, cluster: &OursCluster, file: &Path) -> Result<Save> {
    let endpoints: Vec<String> = cluster.addresses().iter().map(ToString::to_string).collect();
    let began = Instant::now();
    let mut command = tokio::process::Command::new(server);
    command.args(["snapshot", "save"]).arg(file).args(["--endpoints", &endpoints.join(",")]);
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().await;
    let status = status.with_context(|| format!("cannot run {}", server.display()))?;
    let seconds = began.elapsed().as_secs_f64();
    ensure!(status.success(), "`snapshot save` ended with {status}");
    Ok(Save { bytes: std::fs::metadata(file)?.len(), seconds })
}

fn of(records: &[Record], with_saves: bool, figure: impl Fn(&Measurement) -> f64) -> Spread {
    let chosen = records.iter().filter(|record| record.with_saves == with_saves);
    Spread::of(chosen.map(|record| figure(&record.measurement)))
}

fn write_p99_ratio(records: &[Record]) -> f64 {
    let p99 = |with_saves| of(records, with_saves, |m| m.latency_us_p99 as f64).median;
    p99(true) / p99(false)
}

fn speeds(record: &Record) -> String {
    if record.saves.is_empty() {
        return "-".to_owned();
    }
    let speed = Spread::of(record.saves.iter().map(Save::mb_per_second));
    format!("{:.0} ({})", speed.median, record.saves.len())
}

fn progress_line(record: &Record) -> String {
    let measurement = &record.measurement;
    format!(
        "round {}  {}/s  p50 {} p99 {} max {} ms  saves at MB/s: {}  errors: {}",
        record.round,
        thousands(measurement.operations_per_second),
        milliseconds(measurement.latency_us_p50 as f64),
        milliseconds(measurement.latency_us_p99 as f64),
        milliseconds(measurement.latency_us_max as f64),
        speeds(record),
        measurement.errors,
    )
}

fn markdown(arguments: &SnapshotSaveArguments, figures: &Figures) -> String {
    let mut text = format!(
        "## Saving snapshots\n\n{}\n\
         {} keys with values of {VALUE_BYTES} bytes, a file of {:.0} MB. {} clients write random keys for {} s a run. \
         {} runs during which `snapshot save` runs again and again alternate with as many runs without it.\n\n{}\n\
         | round | saves, MB/s (number) | writes/s | p50 ms | p99 ms | max ms | server CPU µs/write | errors |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- |\n",
        figures.environment.markdown(),
        thousands(arguments.keys as f64),
        figures.without_load.bytes as f64 / 1e6,
        arguments.clients,
        arguments.seconds,
        arguments.rounds,
        Goal::table(&figures.goals),
    );
    for record in &figures.records {
        let measurement = &record.measurement;
        text += &format!(
            "| {} | {} | {} | {} | {} | {} | {:.1} | {} |\n",
            record.round,
            speeds(record),
            thousands(measurement.operations_per_second),
            milliseconds(measurement.latency_us_p50 as f64),
            milliseconds(measurement.latency_us_p99 as f64),
            milliseconds(measurement.latency_us_max as f64),
            measurement.server_cpu_us_per_operation,
            measurement.errors,
        );
    }
    text
}
