//! Runs the same load on raft-key-value, on etcd, and on another binary of raft-key-value, in turn.
//!
//! Each round starts each system's cluster on empty data, writes all keys, runs all points, and stops the
//! cluster before the next one starts. The systems take turns at going first, so that none always gets the
//! calmest part of a round.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::Verdict;
use crate::arguments::CompareArguments;
use crate::disk;
use crate::etcd::{EtcdCluster, connections_for};
use crate::load::{self, LoadPlan, Measurement, Workload};
use crate::ours::{OursCluster, OursOptions};
use crate::plot;
use crate::report::{Environment, Goal, Limit, publish};
use crate::statistics::{Spread, milliseconds, one_digit, thousands, two_digits};
use crate::target::{Leader, System, Target, VALUE_BYTES};
use crate::workspace::{Workspace, our_server, server_at};

const WRITE_CLIENTS: [usize; 4] = [1, 16, 64, 256];
const OTHER_CLIENTS: [usize; 1] = [64];
const FILL_CLIENTS: usize = 64;
/// The workloads that etcd supports.
const COMPARABLE: [Workload; 2] = [Workload::Write, Workload::Read];
/// In the order of the tables.
const SYSTEMS: [System; 3] = [System::Ours, System::Former, System::Etcd];

/// One kind of load that all systems are measured with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Point {
    workload: Workload,
    clients: usize,
    /// HTTP/2 connections to etcd, shared by the clients. With raft-key-value, each client has its own
    /// connection.
    etcd_connections: usize,
}

#[derive(Deserialize, Serialize)]
pub struct Record {
    round: u32,
    pub system: System,
    #[serde(flatten)]
    pub point: Point,
    /// Measured by `disk::sync_time` before the point.
    disk_sync_us: u64,
    /// An election during the point makes its figures worthless: part of the load did not go to a leader.
    leader_changed: bool,
    #[serde(flatten)]
    pub measurement: Measurement,
}

#[derive(Serialize)]
struct Figures {
    environment: Environment,
    goals: Vec<Goal>,
    records: Vec<Record>,
}

enum Cluster {
    Ours(OursCluster),
    Etcd(EtcdCluster),
}

/// The binaries to start; `None` for a system that is not measured.
struct Programs {
    ours: Option<OursOptions>,
    former: Option<OursOptions>,
    etcd: Option<PathBuf>,
}

pub async fn run(arguments: &CompareArguments) -> Result<Verdict> {
    let programs = Programs::find(arguments)?;
    let environment = Environment::gather(&programs.paths())?;
    let workspace = Workspace::create(&arguments.common, "compare")?;
    let mut records = Vec::new();
    for round in 1..=arguments.rounds {
        for system in programs.order_in(round) {
            run_round(arguments, &programs, &workspace, round, system, &mut records)
                .await
                .with_context(|| format!("round {round}, {}", system.name()))?;
        }
    }
    workspace.finish()?;

    let goals = goals(&records);
    let verdict = Goal::verdict(&goals);
    let figures = Figures { environment, goals, records };
    publish(&arguments.common, "compare", &markdown(arguments, &figures), &figures, !arguments.is_partial())?;
    if let Some(directory) = arguments.plots() {
        plot::write_all(&directory, &figures.environment, &figures.records)?;
    }
    Ok(verdict)
}

async fn run_round(
    arguments: &CompareArguments,
    programs: &Programs,
    workspace: &Workspace,
    round: u32,
    system: System,
    records: &mut Vec<Record>,
) -> Result<()> {
    let data_directory = workspace.path(&format!("round-{round}-{}", system.name()));
    let cluster = Cluster::create(system, programs, &data_directory).await?;
    let leader = cluster.leader().await?;
    let target = Point::of(Workload::Write, FILL_CLIENTS).target(system, leader);
    load::fill(&target, FILL_CLIENTS, 0..arguments.keys).await?;
    for point in points(arguments) {
        let disk_sync = disk::sync_time(&data_directory)?;
        let (leader_changed, measurement) = measure(arguments, &cluster, round, system, point).await?;
        let record =
            Record { round, system, point, disk_sync_us: disk_sync.as_micros() as u64, leader_changed, measurement };
        println!("{}", progress_line(arguments.rounds, &record));
        records.push(record);
    }
    cluster.stop().await?;
    workspace.discard(&data_directory)
}

/// Measures one point, and whether the leader changed meanwhile.
async fn measure(
    arguments: &CompareArguments,
    cluster: &Cluster,
    round: u32,
    system: System,
    point: Point,
) -> Result<(bool, Measurement)> {
    let leader = cluster.leader().await?;
    let targets = match cluster {
        Cluster::Ours(ours) if arguments.all_nodes => {
            ours.addresses().iter().map(|node| Target::our_node(*node, point.clients)).collect()
        }
        _ => vec![point.target(system, leader)],
    };
    let plan = LoadPlan {
        workload: point.workload,
        clients: point.clients,
        warm_up: Duration::from_secs(arguments.warm_up),
        measured: Duration::from_secs(arguments.seconds),
        key_count: arguments.keys,
        // All systems get the same keys in the same order.
        seed: u64::from(round),
    };
    let measurement = load::run_on_all(&targets, &plan, &cluster.pids()).await?;
    Ok((cluster.leader().await? != leader, measurement))
}

fn points(arguments: &CompareArguments) -> Vec<Point> {
    let chosen: Vec<usize> = arguments.clients.iter().copied().map(usize::from).collect();
    let workloads = match &arguments.workloads[..] {
        [] => &COMPARABLE[..],
        chosen => chosen,
    };
    let mut points = Vec::new();
    for &workload in Workload::value_variants().iter().filter(|workload| workloads.contains(workload)) {
        let default = match workload {
            Workload::Write | Workload::Put | Workload::PutOnce => &WRITE_CLIENTS[..],
            _ => &OTHER_CLIENTS,
        };
        let clients = if chosen.is_empty() { default } else { &chosen };
        for &clients in clients {
            let fastest = Point::of(workload, clients);
            if arguments.etcd_connections.is_empty() {
                points.push(fastest);
            }
            let given = arguments.etcd_connections.iter().copied();
            points.extend(
                given.map(|connections| Point { etcd_connections: usize::from(connections).min(clients), ..fastest }),
            );
        }
    }
    points
}

impl Programs {
    fn find(arguments: &CompareArguments) -> Result<Self> {
        let wanted = |system| arguments.only.is_none_or(|only| only == system);
        ensure!(
            !wanted(System::Etcd) || arguments.workloads.iter().all(|workload| COMPARABLE.contains(workload)),
            "etcd supports only the workloads write and read; leave it out with --only ours"
        );
        let ours = wanted(System::Ours).then(|| our_server(&arguments.common));
        let former = arguments.former.as_ref().map(|path| server_at(&arguments.common, path));
        let etcd = wanted(System::Etcd).then(|| arguments.etcd.binary());
        Ok(Self { ours: ours.transpose()?, former: former.transpose()?, etcd: etcd.transpose()? })
    }

    fn paths(&self) -> Vec<&Path> {
        let of_ours = self.ours.iter().chain(&self.former).map(|options| options.server.as_path());
        of_ours.chain(self.etcd.as_deref()).collect()
    }

    fn order_in(&self, round: u32) -> Vec<System> {
        let mut systems = Vec::new();
        systems.extend(self.ours.as_ref().map(|_| System::Ours));
        systems.extend(self.former.as_ref().map(|_| System::Former));
        systems.extend(self.etcd.as_ref().map(|_| System::Etcd));
        let first = (round as usize - 1) % systems.len();
        systems.rotate_left(first);
        systems
    }
}

impl Cluster {
    async fn create(system: System, programs: &Programs, directory: &Path) -> Result<Self> {
        let of_ours = match system {
            System::Ours => &programs.ours,
            System::Former => &programs.former,
            System::Etcd => &None,
        };
        Ok(match (of_ours, &programs.etcd) {
            (Some(ours), _) => Cluster::Ours(OursCluster::create(ours, directory).await?),
            (None, Some(etcd)) => Cluster::Etcd(EtcdCluster::create(etcd, directory).await?),
            _ => bail!("{} was left out", system.name()),
        })
    }

    async fn leader(&self) -> Result<Leader> {
        match self {
            Cluster::Ours(cluster) => cluster.leader().await,
            Cluster::Etcd(cluster) => cluster.leader().await,
        }
    }

    fn pids(&self) -> Vec<libc::pid_t> {
        match self {
            Cluster::Ours(cluster) => cluster.pids(),
            Cluster::Etcd(cluster) => cluster.pids(),
        }
    }

    async fn stop(self) -> Result<()> {
        match self {
            Cluster::Ours(cluster) => cluster.stop().await,
            Cluster::Etcd(cluster) => cluster.stop().await,
        }
    }
}

impl Point {
    fn of(workload: Workload, clients: usize) -> Self {
        Self { workload, clients, etcd_connections: connections_for(clients) }
    }

    fn target(self, system: System, leader: Leader) -> Target {
        Target { system, leader: leader.address, connections: self.connections(system) }
    }

    fn connections(self, system: System) -> usize {
        match system {
            System::Ours | System::Former => self.clients,
            System::Etcd => self.etcd_connections,
        }
    }

    pub fn name(self) -> &'static str {
        match self.workload {
            Workload::Write => "write",
            Workload::Read => "linearizable read",
            other => other.route(),
        }
    }

    /// The number of clients, with that of the connections if it is not the usual one.
    pub fn label(self) -> String {
        match self == Point::of(self.workload, self.clients) {
            true => self.clients.to_string(),
            false => format!("{} ({} conn.)", self.clients, self.etcd_connections),
        }
    }
}

fn progress_line(rounds: u32, record: &Record) -> String {
    let mut line = format!(
        "round {}/{rounds}  {:<14}  {:<17}  {:>3} clients on {:>3} connections  {}  fsync {} µs",
        record.round,
        record.system.name(),
        record.point.name(),
        record.point.clients,
        record.point.connections(record.system),
        record.measurement,
        record.disk_sync_us,
    );
    if record.leader_changed {
        line += "  THE LEADER CHANGED";
    }
    line
}

/// One figure of one point over all rounds of one system; `None` if the system was not measured.
pub fn spread(records: &[Record], system: System, point: Point, figure: impl Fn(&Record) -> f64) -> Option<Spread> {
    let of_point = |record: &&Record| record.system == system && record.point == point;
    let mut rounds = records.iter().filter(of_point).peekable();
    rounds.peek()?;
    Some(Spread::of(rounds.map(figure)))
}

/// The median of raft-key-value divided by the median of another system.
fn ratio(records: &[Record], other: System, point: Point, figure: impl Fn(&Record) -> f64) -> Option<f64> {
    let ours = spread(records, System::Ours, point, &figure)?;
    let other = spread(records, other, point, &figure)?;
    Some(ours.median / other.median)
}

/// Goals for the points that were measured on raft-key-value and etcd.
fn goals(records: &[Record]) -> Vec<Goal> {
    let mut goals = Vec::new();
    let mut add = |what: String, limit, measured: Option<f64>| {
        goals.extend(measured.map(|measured| Goal { what, limit, measured, unit: "×" }));
    };
    let write = |clients| Point::of(Workload::Write, clients);
    let read = Point::of(Workload::Read, 64);
    for (clients, limit) in [(1, 1.1), (16, 1.6), (64, 1.8), (256, 1.9)] {
        add(
            format!("writes/s, {clients} clients"),
            Limit::AtLeast(limit),
            ratio(records, System::Etcd, write(clients), |record| record.measurement.operations_per_second),
        );
    }
    for clients in [64, 256] {
        add(
            format!("write p99, {clients} clients"),
            Limit::AtMost(0.65),
            ratio(records, System::Etcd, write(clients), |record| record.measurement.latency_us_p99 as f64),
        );
    }
    add(
        "server CPU per write, 256 clients".to_owned(),
        Limit::AtMost(0.42),
        ratio(records, System::Etcd, write(256), |record| record.measurement.server_cpu_us_per_operation),
    );
    add(
        "linearizable reads/s, 64 clients".to_owned(),
        Limit::AtLeast(1.6),
        ratio(records, System::Etcd, read, |record| record.measurement.operations_per_second),
    );
    goals
}

fn markdown(arguments: &CompareArguments, figures: &Figures) -> String {
    let points = points(arguments);
    let mut text = format!(
        "## Beside etcd\n\n{}\n\
         Three nodes of each system on loopback, with default settings (fsync on). Values have {VALUE_BYTES} bytes. \
         Closed-loop clients send to the leader and pick keys at random from {} existing ones. Each point takes {} s \
         after {} s of warm-up. Each of the {} rounds uses new clusters, and only one system runs at a time. \
         Figures are medians over the rounds, with the minimum and maximum in parentheses.\n\n",
        figures.environment.markdown(),
        thousands(arguments.keys as f64),
        arguments.seconds,
        arguments.warm_up,
        arguments.rounds,
    );
    if !figures.goals.is_empty() {
        text += "Goals, as raft-key-value divided by etcd:\n\n";
        text += &Goal::table(&figures.goals);
        text += "\n";
    }
    for other in [System::Etcd, System::Former] {
        text += &ratio_table(&points, &figures.records, other).unwrap_or_default();
    }
    text += &point_table(&points, &figures.records);
    text += "\nServer CPU is the CPU time of all three processes. Two columns show whether the machine was quiet: \
             \"other cores\" counts cores used by neither the servers nor the load, and \"fsync\" is the time of a \
             small append with fdatasync just before the point.\n";
    text
}

/// `None` if one of the systems was not measured.
fn ratio_table(points: &[Point], records: &[Record], other: System) -> Option<String> {
    let is_measured = |system| records.iter().any(|record| record.system == system);
    if !is_measured(System::Ours) || !is_measured(other) {
        return None;
    }
    let mut table = format!(
        "| raft-key-value ÷ {} | clients | operations/s | p50 | p99 | server CPU per operation |\n\
         | --- | --- | --- | --- | --- | --- |\n",
        other.name(),
    );
    for &point in points {
        let cell = |figure: fn(&Record) -> f64| match ratio(records, other, point, figure) {
            Some(ratio) => format!("{ratio:.2}×"),
            None => "–".to_owned(),
        };
        table += &format!(
            "| {} | {} | {} | {} | {} | {} |\n",
            point.name(),
            point.clients,
            cell(|record| record.measurement.operations_per_second),
            cell(|record| record.measurement.latency_us_p50 as f64),
            cell(|record| record.measurement.latency_us_p99 as f64),
            cell(|record| record.measurement.server_cpu_us_per_operation),
        );
    }
    Some(table + "\n")
}

fn point_table(points: &[Point], records: &[Record]) -> String {
    let mut table = String::from(
        "| | clients | system | connections | operations/s | p50 ms | p90 ms | p99 ms | max ms \
         | server CPU µs/op | load CPU µs/op | other cores | fsync µs | errors |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for &point in points {
        for system in SYSTEMS {
            table += &point_row(records, system, point).unwrap_or_default();
        }
    }
    table
}

fn point_row(records: &[Record], system: System, point: Point) -> Option<String> {
    type Figure = fn(&Record) -> f64;
    let cell = |figure: Figure, format: fn(f64) -> String| Some(spread(records, system, point, figure)?.text(format));
    let of_point = |record: &&Record| record.system == system && record.point == point;
    let errors: u64 = records.iter().filter(of_point).map(|record| record.measurement.errors).sum();
    let changed = records.iter().filter(of_point).any(|record| record.leader_changed);
    let flags = match (errors, changed) {
        (0, false) => "0".to_owned(),
        (_, false) => format!("**{errors}**"),
        (_, true) => format!("**{errors}, the leader changed**"),
    };
    Some(format!(
        "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {flags} |\n",
        point.name(),
        point.clients,
        system.name(),
        point.connections(system),
        cell(|record| record.measurement.operations_per_second, thousands)?,
        cell(|record| record.measurement.latency_us_p50 as f64, milliseconds)?,
        cell(|record| record.measurement.latency_us_p90 as f64, milliseconds)?,
        cell(|record| record.measurement.latency_us_p99 as f64, milliseconds)?,
        cell(|record| record.measurement.latency_us_max as f64, milliseconds)?,
        cell(|record| record.measurement.server_cpu_us_per_operation, one_digit)?,
        cell(|record| record.measurement.load_cpu_us_per_operation, one_digit)?,
        cell(|record| record.measurement.other_cpu_cores, two_digits)?,
        cell(|record| record.disk_sync_us as f64, thousands)?,
    ))
}

#[cfg(test)]
pub mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The raw figures of one round of 16 writing clients, as JSON.
    pub fn raw_record(round: u32, system: &str, operations_per_second: u32) -> Value {
        json!({
            "round": round, "system": system, "workload": "write", "clients": 16, "etcd_connections": 2,
            "disk_sync_us": 100, "leader_changed": false, "operations": 1, "errors": 0, "first_error": null,
            "operations_per_second": operations_per_second, "latency_us_p50": 1, "latency_us_p90": 1,
            "latency_us_p99": 2500, "latency_us_max": 3000, "server_cpu_us_per_operation": 20.5,
            "load_cpu_us_per_operation": 1.0, "other_cpu_cores": 0.0,
        })
    }

    fn records(raw: &[(u32, &str, u32)]) -> Vec<Record> {
        let parsed = raw.iter().map(|&(round, system, rate)| serde_json::from_value(raw_record(round, system, rate)));
        parsed.collect::<Result<_, _>>().unwrap()
    }

    /// Each system that was measured has its own ratios, of medians.
    #[test]
    fn ratios_are_of_medians_and_for_each_other_system() {
        let records = records(&[(1, "ours", 100), (1, "former", 50), (2, "former", 70), (2, "ours", 140)]);
        let points = [Point::of(Workload::Write, 16)];
        let table = ratio_table(&points, &records, System::Former).unwrap();
        assert!(table.starts_with("| raft-key-value ÷ former |"), "{table}");
        assert!(table.ends_with("\n| write | 16 | 2.00× | 1.00× | 1.00× | 1.00× |\n\n"), "{table}");
        assert_eq!(ratio_table(&points, &records, System::Etcd), None);
    }

    /// The systems take turns at going first, and each runs once a round.
    #[test]
    fn systems_take_turns_at_going_first() {
        let ours = || Some(OursOptions { server: PathBuf::new(), server_arguments: Vec::new() });
        let all = Programs { ours: ours(), former: ours(), etcd: Some(PathBuf::new()) };
        assert_eq!(all.order_in(1), [System::Ours, System::Former, System::Etcd]);
        assert_eq!(all.order_in(2), [System::Former, System::Etcd, System::Ours]);
        assert_eq!(all.order_in(3), [System::Etcd, System::Ours, System::Former]);
        let two = Programs { former: None, ..all };
        assert_eq!(two.order_in(3), [System::Ours, System::Etcd]);
        assert_eq!(two.order_in(4), [System::Etcd, System::Ours]);
    }
}
