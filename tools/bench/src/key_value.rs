//! Measures the cost of the key-value API.
//!
//! The first cluster has few keys. On it, each new operation runs in turn with the original route that does
//! the same, and puts run with and without watches on other keys. The second cluster has many keys, and shows
//! how much memory they take, what a listing costs, and whether writes wait for it.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::Verdict;
use crate::arguments::KeyValueArguments;
use crate::load::{self, BATCH_KEYS, LoadPlan, Measurement, Workload, batch_of};
use crate::ours::{HttpConnection, OursCluster};
use crate::report::{Environment, Goal, Limit, publish};
use crate::statistics::{Spread, distinct, mebibytes, milliseconds, one_digit, thousands};
use crate::target::{Leader, Target, VALUE_BYTES};
use crate::workspace::{Workspace, our_server};

const KEYS: u64 = 100_000;
const CLIENTS: usize = 64;
const CLIENTS_MANY: usize = 256;
const FILL_CLIENTS: usize = 8;
/// Memory is first measured when this fraction of the keys is stored. By then the log's cache, the history,
/// and everything else that does not grow with the keys has reached its final size.
const FIRST_PART: u64 = 5;
const WARM_UP: Duration = Duration::from_secs(2);
/// Size of the values in the listings and in the memory figures.
const SMALL_VALUE_BYTES: usize = 100;
const KEY_BYTES: usize = 12;

/// One kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Point {
    workload: Workload,
    clients: usize,
    keys: u64,
    watchers: u64,
    /// Whether it is compared with a point with watches.
    beside_watchers: bool,
    /// Whether a client lists keys continuously during the measurement.
    lister: bool,
}

#[derive(Serialize)]
struct Record {
    #[serde(flatten)]
    point: Point,
    #[serde(flatten)]
    measurement: Measurement,
}

/// Resident memory of the three nodes.
#[derive(Serialize)]
struct Memory {
    bytes_empty: Vec<u64>,
    /// With the first part of the keys.
    bytes_first: Vec<u64>,
    bytes_after: Vec<u64>,
}

#[derive(Serialize)]
struct Figures {
    environment: Environment,
    goals: Vec<Goal>,
    records: Vec<Record>,
    memory: Memory,
}

pub async fn run(arguments: &KeyValueArguments) -> Result<Verdict> {
    let options = our_server(&arguments.common)?;
    let environment = Environment::gather(&[&options.server])?;
    let workspace = Workspace::create(&arguments.common, "key-value")?;
    let mut records = Vec::new();

    let data_directory = workspace.path("few-keys");
    let cluster = OursCluster::create(&options, &data_directory).await?;
    load::fill(&Target::ours(cluster.leader().await?, CLIENTS), CLIENTS, 0..KEYS).await?;
    for round in 1..=arguments.rounds {
        for point in
            points_with_few_keys(round, arguments.watchers).into_iter().filter(|point| point.is_chosen(arguments))
        {
            records.push(measure(arguments, &cluster, point, round).await?);
        }
    }
    cluster.stop().await?;
    workspace.discard(&data_directory)?;

    if !arguments.only.is_empty() {
        return workspace.finish().map(|()| Verdict::Met);
    }
    let data_directory = workspace.path("many-keys");
    let cluster = OursCluster::create(&options, &data_directory).await?;
    let bytes_empty = cluster.resident_bytes()?;
    let batches = arguments.keys / BATCH_KEYS as u64;
    fill_with_small_values(cluster.leader().await?, arguments.keys, 0..batches / FIRST_PART).await?;
    let bytes_first = cluster.resident_bytes()?;
    fill_with_small_values(cluster.leader().await?, arguments.keys, batches / FIRST_PART..batches).await?;
    let memory = Memory { bytes_empty, bytes_first, bytes_after: cluster.resident_bytes()? };
    for round in 1..=arguments.rounds {
        for point in points_with_many_keys(round, arguments.keys) {
            records.push(measure(arguments, &cluster, point, round).await?);
        }
    }
    cluster.stop().await?;
    workspace.finish()?;

    let goals = goals(&records, &memory, arguments);
    let verdict = Goal::verdict(&goals);
    let figures = Figures { environment, goals, records, memory };
    publish(&arguments.common, "key-value", &markdown(arguments, &figures), &figures, true)?;
    Ok(verdict)
}

impl Point {
    fn of(workload: Workload, clients: usize) -> Self {
        Point { workload, clients, keys: KEYS, watchers: 0, beside_watchers: false, lister: false }
    }

    fn beside_watchers(watchers: u64) -> Self {
        Point { watchers, beside_watchers: true, ..Point::of(Workload::Put, CLIENTS) }
    }

    fn is_chosen(self, arguments: &KeyValueArguments) -> bool {
        let name = format!("{:?}", self.workload).to_lowercase();
        arguments.only.is_empty() || arguments.only.contains(&name)
    }

    fn name(self) -> String {
        let mut name = self.workload.route().to_owned();
        if self.beside_watchers {
            name += &format!(", {} watches of other keys", thousands(self.watchers as f64));
        }
        if self.lister {
            name += ", while one client lists";
        }
        name
    }
}

/// Points that are compared run one after the other, in alternating order.
fn points_with_few_keys(round: u32, watchers: u64) -> Vec<Point> {
    let pairs = [
        [Point::of(Workload::Write, CLIENTS), Point::of(Workload::Put, CLIENTS)],
        [Point::of(Workload::Write, CLIENTS_MANY), Point::of(Workload::Put, CLIENTS_MANY)],
        [Point::of(Workload::Read, CLIENTS), Point::of(Workload::Get, CLIENTS)],
        [Point::of(Workload::PutOnce, CLIENTS_MANY), Point::of(Workload::Batch, CLIENTS)],
        [Point::beside_watchers(watchers), Point::beside_watchers(0)],
    ];
    in_changing_order(round, pairs)
}

fn points_with_many_keys(round: u32, keys: u64) -> Vec<Point> {
    let write = Point { keys, ..Point::of(Workload::Put, CLIENTS) };
    let mut points = vec![Point { keys, ..Point::of(Workload::List, 1) }];
    points.extend(in_changing_order(round, [[write, Point { lister: true, ..write }]]));
    points
}

fn in_changing_order(round: u32, pairs: impl IntoIterator<Item = [Point; 2]>) -> Vec<Point> {
    let ordered = pairs.into_iter().map(
        |[first, second]| {
            if round.is_multiple_of(2) { [second, first] } else { [first, second] }
        },
    );
    ordered.flatten().collect()
}

async fn measure(arguments: &KeyValueArguments, cluster: &OursCluster, point: Point, round: u32) -> Result<Record> {
    let leader = cluster.leader().await?;
    let mut beside = JoinSet::new();
    for number in 0..point.watchers {
        beside.spawn(watch(leader, number).await?);
    }
    if point.lister {
        beside.spawn(list_all_the_time(leader, point.keys));
    }
    let plan = LoadPlan {
        workload: point.workload,
        clients: point.clients,
        warm_up: WARM_UP,
        measured: Duration::from_secs(arguments.seconds),
        key_count: point.keys,
        seed: u64::from(round),
    };
    let measurement = load::run(&Target::ours(leader, point.clients), &plan, &cluster.pids()).await?;
    if let Some(ended) = beside.try_join_next() {
        ended.context("a background task of the load panicked")??;
        bail!("the node closed a watch");
    }
    println!("round {round}/{}  {} clients  {}: {measurement}", arguments.rounds, point.clients, point.name());
    Ok(Record { point, measurement })
}

/// Opens a watch on keys that are never written. The returned future reads it until it ends.
async fn watch(leader: Leader, number: u64) -> Result<impl Future<Output = Result<()>> + use<>> {
    let mut stream = TcpStream::connect(leader.address).await?;
    let request = format!("GET /v1/watch?prefix=elsewhere/{number}/ HTTP/1.1\r\nhost: {}\r\n\r\n", leader.address);
    stream.write_all(request.as_bytes()).await?;
    let mut buffer = [0; 512];
    let count = stream.read(&mut buffer).await?;
    ensure!(buffer[..count].starts_with(b"HTTP/1.1 200"), "the node rejected a watch");
    Ok(async move {
        while stream.read(&mut buffer).await? > 0 {}
        Ok(())
    })
}

async fn list_all_the_time(leader: Leader, key_count: u64) -> Result<()> {
    let mut connection = HttpConnection::connect(leader.address).await?;
    let mut name = String::new();
    loop {
        load::key(fastrand::u64(..key_count), &mut name);
        connection.list(&name).await?;
    }
}

/// Writes all keys once, in an order different from the key order.
async fn fill_with_small_values(leader: Leader, key_count: u64, batches: Range<u64>) -> Result<()> {
    let started = Instant::now();
    let loaded = (batches.end - batches.start) * BATCH_KEYS as u64;
    let mut filling: JoinSet<Result<()>> = JoinSet::new();
    for client in 0..FILL_CLIENTS as u64 {
        let batches = batches.clone();
        filling.spawn(async move {
            let mut connection = HttpConnection::connect(leader.address).await?;
            for first in (batches.start + client..batches.end).step_by(FILL_CLIENTS) {
                connection.batch(batch_of(first, key_count), &load::value()[..SMALL_VALUE_BYTES]).await?;
            }
            Ok(())
        });
    }
    while let Some(outcome) = filling.join_next().await {
        outcome.context("a client panicked")?.context("cannot load the keys")?;
    }
    println!("loaded {} keys in {:.1} s", thousands(loaded as f64), started.elapsed().as_secs_f64());
    Ok(())
}

impl Memory {
    /// The largest memory that any node needs per key in addition to key and value, in bytes.
    fn bytes_beside(&self, keys: u64) -> f64 {
        let grown = self.bytes_first.iter().zip(&self.bytes_after).map(|(first, after)| after.saturating_sub(*first));
        let more_keys = keys - keys / FIRST_PART;
        grown.max().unwrap_or_default() as f64 / more_keys as f64 - (KEY_BYTES + SMALL_VALUE_BYTES) as f64
    }
}

fn of(records: &[Record], point: Point, figure: impl Fn(&Measurement) -> f64) -> Spread {
    Spread::of(records.iter().filter(|record| record.point == point).map(|record| figure(&record.measurement)))
}

fn goals(records: &[Record], memory: &Memory, arguments: &KeyValueArguments) -> Vec<Goal> {
    let cpu = |point| of(records, point, |m| m.server_cpu_us_per_operation).median;
    let rate = |point| of(records, point, |m| m.operations_per_second).median;
    let p99 = |point| of(records, point, |m| m.latency_us_p99 as f64).median;
    let put = Point::of(Workload::Put, CLIENTS);
    let (watched, unwatched) = (Point::beside_watchers(arguments.watchers), Point::beside_watchers(0));
    let beside = Point { keys: arguments.keys, ..put };
    let listed = Point { lister: true, ..beside };
    let list = Point { keys: arguments.keys, ..Point::of(Workload::List, 1) };
    let batch_keys_per_second = rate(Point::of(Workload::Batch, CLIENTS)) * BATCH_KEYS as f64;
    // Appears with few keys and with many; both are the same point.
    let ratio = |what: &str, limit, measured| Goal { what: what.to_owned(), limit, measured, unit: "×" };
    vec![
        ratio(
            "server CPU of a put ÷ `/write`, 64 clients",
            Limit::AtMost(1.1),
            cpu(put) / cpu(Point::of(Workload::Write, CLIENTS)),
        ),
        ratio(
            "server CPU of a put ÷ `/write`, 256 clients",
            Limit::AtMost(1.1),
            cpu(Point::of(Workload::Put, CLIENTS_MANY)) / cpu(Point::of(Workload::Write, CLIENTS_MANY)),
        ),
        ratio(
            "server CPU of a get ÷ `/consistent_read`, 64 clients",
            Limit::AtMost(1.1),
            cpu(Point::of(Workload::Get, CLIENTS)) / cpu(Point::of(Workload::Read, CLIENTS)),
        ),
        ratio("keys/s of batches ÷ single puts, 64 clients", Limit::AtLeast(8.0), batch_keys_per_second / rate(put)),
        ratio(
            "server CPU of a put with watches on other keys ÷ without",
            Limit::AtMost(1.05),
            cpu(watched) / cpu(unwatched),
        ),
        ratio("p99 of a put while one client lists ÷ without", Limit::AtMost(1.5), p99(listed) / p99(beside)),
        Goal {
            what: "server CPU of listing 1,000 keys".to_owned(),
            limit: Limit::AtMost(1.5),
            measured: cpu(list) / 1000.0,
            unit: " ms",
        },
        Goal {
            what: "memory per key in addition to key and value".to_owned(),
            limit: Limit::AtMost(200.0),
            measured: memory.bytes_beside(arguments.keys),
            unit: " bytes",
        },
    ]
}

fn markdown(arguments: &KeyValueArguments, figures: &Figures) -> String {
    let mut text = format!(
        "## The key-value API\n\n{}\n\
         Three nodes, with the load on the leader, {} s per point, {} rounds. Figures are medians, and points that are \
         compared run in turn. Values have {VALUE_BYTES} bytes on {} keys; for the last three rows, \
         {} keys have values of {SMALL_VALUE_BYTES} bytes.\n\n{}\n\
         | | clients | operations/s | p50 ms | p99 ms | server CPU µs/op | other cores | errors |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- |\n",
        figures.environment.markdown(),
        arguments.seconds,
        arguments.rounds,
        thousands(KEYS as f64),
        thousands(arguments.keys as f64),
        Goal::table(&figures.goals),
    );
    for point in distinct(figures.records.iter().map(|record| record.point)) {
        let figure = |figure: fn(&Measurement) -> f64| of(&figures.records, point, figure);
        text += &format!(
            "| {} | {} | {} | {} | {} | {} | {:.2} | {} |\n",
            point.name(),
            point.clients,
            thousands(figure(|m| m.operations_per_second).median),
            milliseconds(figure(|m| m.latency_us_p50 as f64).median),
            milliseconds(figure(|m| m.latency_us_p99 as f64).median),
            figure(|m| m.server_cpu_us_per_operation).text(one_digit),
            figure(|m| m.other_cpu_cores).median,
            figure(|m| m.errors as f64).max,
        );
    }
    text += &format!(
        "\nResident memory of the three nodes: {} MiB empty, {} MiB with {} keys, \
         {} MiB with {}. Memory per key is measured between the two, because the log's cache and the history are full \
         by then.\n",
        mebibytes(&figures.memory.bytes_empty),
        mebibytes(&figures.memory.bytes_first),
        thousands((arguments.keys / FIRST_PART) as f64),
        mebibytes(&figures.memory.bytes_after),
        thousands(arguments.keys as f64),
    );
    text
}
