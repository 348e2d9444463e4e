//! The closed-loop load: each client sends its next request after the response to the one before.
//!
//! Throughput counts the operations that completed in the measured window. Latency covers all operations in
//! progress at any time in the window, so a stall shows even if it began before the window or outlasts it.

use std::fmt::{self, Display, Write};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cpu;
use crate::statistics::{milliseconds, thousands};
use crate::target::{Connection, Target, VALUE_BYTES};

/// After the window. An operation without a response by then counts as failed.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);
/// Pause after a failed operation, so that the clients do not hammer a dead server.
const ERROR_PAUSE: Duration = Duration::from_millis(10);
const FILL_ATTEMPTS_MAX: usize = 20;
const HISTOGRAM_SIGNIFICANT_DIGITS: u8 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Workload {
    /// `POST /write`, or etcd's put.
    Write,
    /// A linearizable read.
    Read,
    /// `PUT /v1/kv/{key}`
    Put,
    /// The same with an `Idempotency-Key`.
    PutOnce,
    /// `GET /v1/kv/{key}`, linearizable.
    Get,
    /// `POST /v1/txn` with [`BATCH_KEYS`] puts.
    Batch,
    /// `GET /v1/kv?prefix=` of a thousand keys.
    List,
}

impl Workload {
    /// What it calls of raft-key-value.
    pub fn route(self) -> &'static str {
        match self {
            Workload::Write => "`POST /write`",
            Workload::Read => "`POST /consistent_read`",
            Workload::Put => "`PUT /v1/kv/{key}`",
            Workload::PutOnce => "`PUT /v1/kv/{key}` with an `Idempotency-Key`",
            Workload::Get => "`GET /v1/kv/{key}`",
            Workload::Batch => "`POST /v1/txn` of 125 puts",
            Workload::List => "`GET /v1/kv?prefix=` of 1,000 keys",
        }
    }
}

/// Puts per batch: nearly the maximum, and a divisor of the numbers of keys.
pub const BATCH_KEYS: usize = 125;

#[derive(Clone, Debug)]
pub struct LoadPlan {
    pub workload: Workload,
    pub clients: usize,
    pub warm_up: Duration,
    pub measured: Duration,
    /// Keys are drawn uniformly from the first `key_count`.
    pub key_count: u64,
    pub seed: u64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Measurement {
    /// Operations that succeeded within the window.
    pub operations: u64,
    /// Failed operations, including those of the warm-up.
    pub errors: u64,
    pub first_error: Option<String>,
    pub operations_per_second: f64,
    pub latency_us_p50: u64,
    pub latency_us_p90: u64,
    pub latency_us_p99: u64,
    pub latency_us_max: u64,
    /// CPU time of all server processes together.
    pub server_cpu_us_per_operation: f64,
    pub load_cpu_us_per_operation: f64,
    /// Cores used by neither the servers nor the load: by the kernel's own threads and by other processes. A
    /// point with a high value is worthless.
    pub other_cpu_cores: f64,
}

/// Figures of one client.
struct ClientFigures {
    operations: u64,
    latency_us: Histogram<u32>,
    errors: u64,
    first_error: Option<String>,
}

#[derive(Clone, Copy)]
struct Window {
    begin: Instant,
    end: Instant,
}

pub fn key(number: u64, into: &mut String) {
    into.clear();
    // Writing to a `String` cannot fail.
    let _ = write!(into, "key-{number:08}");
}

/// One value for all writes: neither system depends on its bytes. It is alphanumeric, so JSON need not escape
/// it.
pub fn value() -> &'static str {
    static VALUE: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    VALUE.get_or_init(|| {
        let mut random = fastrand::Rng::with_seed(1);
        (0..VALUE_BYTES).map(|_| random.alphanumeric()).collect()
    })
}

pub async fn run(target: &Target, plan: &LoadPlan, servers: &[libc::pid_t]) -> Result<Measurement> {
    run_on_all(std::slice::from_ref(target), plan, servers).await
}

/// Like [`run`], with the clients spread evenly over several targets.
pub async fn run_on_all(targets: &[Target], plan: &LoadPlan, servers: &[libc::pid_t]) -> Result<Measurement> {
    let mut connections = Vec::with_capacity(plan.clients);
    for (target, share) in targets.iter().zip(shares(plan.clients, targets.len())) {
        connections.extend(target.connect_all(share).await?.into_iter().map(|connection| (*target, connection)));
    }
    let begin = Instant::now() + plan.warm_up;
    let window = Window { begin, end: begin + plan.measured };
    let mut clients = JoinSet::new();
    for ((target, connection), client) in connections.into_iter().zip(0..) {
        let random = fastrand::Rng::with_seed(plan.seed.wrapping_mul(1_000_003) + client);
        clients.spawn(run_client(target, connection, plan.clone(), window, random));
    }

    tokio::time::sleep_until(window.begin).await;
    let before = cpu::Sample::take(servers)?;
    tokio::time::sleep_until(window.end).await;
    let after = cpu::Sample::take(servers)?;

    let mut total = ClientFigures::new()?;
    while let Some(figures) = clients.join_next().await {
        let figures = figures.context("a client panicked")??;
        total.operations += figures.operations;
        total.latency_us.add(&figures.latency_us)?;
        total.errors += figures.errors;
        total.first_error = total.first_error.or(figures.first_error);
    }
    Ok(Measurement::new(total, plan.measured, &before, &after))
}

/// Splits `count` into `parts` that differ by at most one.
pub fn shares(count: usize, parts: usize) -> impl Iterator<Item = usize> {
    (0..parts).map(move |part| (count + part) / parts)
}

async fn run_client(
    target: Target,
    mut connection: Connection,
    plan: LoadPlan,
    window: Window,
    random: fastrand::Rng,
) -> Result<ClientFigures> {
    let mut figures = ClientFigures::new()?;
    let looping = closed_loop(target, &mut connection, &plan, window, random, &mut figures);
    if tokio::time::timeout_at(window.end + DRAIN_TIMEOUT, looping).await.is_err() {
        figures.fail(&anyhow!("no response {DRAIN_TIMEOUT:?} after the window"));
    }
    Ok(figures)
}

async fn closed_loop(
    target: Target,
    connection: &mut Connection,
    plan: &LoadPlan,
    window: Window,
    mut random: fastrand::Rng,
    figures: &mut ClientFigures,
) {
    let mut name = String::new();
    let mut started = Instant::now();
    while started < window.end {
        key(random.u64(..plan.key_count), &mut name);
        let outcome = match plan.workload {
            Workload::Write => connection.write(&name, value()).await,
            Workload::Read => connection.read(&name).await,
            Workload::Put => connection.http().put(&name, value(), None).await,
            Workload::PutOnce => connection.http().put(&name, value(), Some(random.u128(..))).await,
            Workload::Get => connection.http().get(&name).await,
            Workload::Batch => {
                let first = random.u64(..plan.key_count);
                let numbers = batch_of(first, plan.key_count);
                connection.http().batch(numbers, value()).await
            }
            Workload::List => connection.http().list(&name).await,
        };
        let finished = Instant::now();
        match outcome {
            Ok(()) => figures.succeed(window, started, finished),
            Err(error) => {
                figures.fail(&error);
                tokio::time::sleep(ERROR_PAUSE).await;
                reconnect_if_closed(&target, connection).await;
            }
        }
        started = Instant::now();
    }
}

/// The keys of a batch: all different, and spread over the whole range.
pub fn batch_of(first: u64, key_count: u64) -> impl Iterator<Item = u64> {
    let stride = key_count / BATCH_KEYS as u64;
    (0..BATCH_KEYS as u64).map(move |number| (first + number * stride) % key_count)
}

async fn reconnect_if_closed(target: &Target, connection: &mut Connection) {
    if connection.is_closed()
        && let Ok(new) = target.connect().await
    {
        *connection = new;
    }
}

/// Writes every key of `keys` once; retries a write that fails.
pub async fn fill(target: &Target, clients: usize, keys: Range<u64>) -> Result<()> {
    let next = Arc::new(AtomicU64::new(keys.start));
    let mut filling: JoinSet<Result<()>> = JoinSet::new();
    for mut connection in target.connect_all(clients).await? {
        let (target, next, end) = (*target, next.clone(), keys.end);
        filling.spawn(async move {
            let mut name = String::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= end {
                    return Ok(());
                }
                key(number, &mut name);
                write_with_retries(&target, &mut connection, &name).await?;
            }
        });
    }
    while let Some(outcome) = filling.join_next().await {
        outcome.context("a client panicked")?.context("cannot load the keys")?;
    }
    Ok(())
}

async fn write_with_retries(target: &Target, connection: &mut Connection, name: &str) -> Result<()> {
    let mut attempts = 1;
    while let Err(error) = connection.write(name, value()).await {
        if attempts == FILL_ATTEMPTS_MAX {
            return Err(error.context(format!("gave up after {attempts} attempts")));
        }
        attempts += 1;
        tokio::time::sleep(ERROR_PAUSE * 10).await;
        reconnect_if_closed(target, connection).await;
    }
    Ok(())
}

pub fn latency_histogram() -> Result<Histogram<u32>> {
    let mut histogram = Histogram::new(HISTOGRAM_SIGNIFICANT_DIGITS)?;
    // Otherwise latencies above 2 ms would be cut off.
    histogram.auto(true);
    Ok(histogram)
}

impl ClientFigures {
    fn new() -> Result<Self> {
        Ok(Self { operations: 0, latency_us: latency_histogram()?, errors: 0, first_error: None })
    }

    fn succeed(&mut self, window: Window, started: Instant, finished: Instant) {
        if finished < window.begin {
            return;
        }
        if finished <= window.end {
            self.operations += 1;
        }
        let latency_us = (finished - started).as_micros() as u64;
        self.latency_us.record(latency_us).expect("an auto-resizing histogram accepts every latency");
    }

    fn fail(&mut self, error: &anyhow::Error) {
        self.errors += 1;
        self.first_error.get_or_insert_with(|| format!("{error:#}"));
    }
}

impl Measurement {
    /// Cells of a table: operations/s, p50, p99 and maximum in milliseconds, server CPU in microseconds.
    pub fn cells(&self) -> String {
        format!(
            "{} | {} | {} | {} | {:.1}",
            thousands(self.operations_per_second),
            milliseconds(self.latency_us_p50 as f64),
            milliseconds(self.latency_us_p99 as f64),
            milliseconds(self.latency_us_max as f64),
            self.server_cpu_us_per_operation,
        )
    }

    fn new(figures: ClientFigures, measured: Duration, before: &cpu::Sample, after: &cpu::Sample) -> Self {
        let histogram = &figures.latency_us;
        let operations = figures.operations;
        let operations_per_second = operations as f64 / measured.as_secs_f64();
        let cores = after.cores_since(before);
        let us_per_operation = |cores: f64| match operations {
            0 => 0.0,
            _ => cores * 1e6 / operations_per_second,
        };
        Self {
            operations,
            errors: figures.errors,
            first_error: figures.first_error,
            operations_per_second,
            latency_us_p50: histogram.value_at_quantile(0.50),
            latency_us_p90: histogram.value_at_quantile(0.90),
            latency_us_p99: histogram.value_at_quantile(0.99),
            latency_us_max: histogram.max(),
            server_cpu_us_per_operation: us_per_operation(cores.servers.iter().sum()),
            load_cpu_us_per_operation: us_per_operation(cores.load),
            other_cpu_cores: cores.other,
        }
    }
}

/// A line of progress for the terminal.
impl Display for Measurement {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{:>6}/s  p50 {} p90 {} p99 {} max {} ms  CPU/op: servers {:.1} load {:.1} µs  other {:.2} cores",
            thousands(self.operations_per_second),
            milliseconds(self.latency_us_p50 as f64),
            milliseconds(self.latency_us_p90 as f64),
            milliseconds(self.latency_us_p99 as f64),
            milliseconds(self.latency_us_max as f64),
            self.server_cpu_us_per_operation,
            self.load_cpu_us_per_operation,
            self.other_cpu_cores,
        )?;
        match &self.first_error {
            Some(first_error) => write!(formatter, "  {} ERRORS, first: {first_error}", self.errors),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Throughput counts operations that completed in the window; latency covers those that overlapped it.
    ///
    /// Method: one operation ends before the window, one begins before it and ends within it, one lies within
    /// it, one ends after it, and one spans it. Each length is a different power of two.
    #[test]
    fn operations_belong_to_the_window_they_overlap() {
        let zero = Instant::now();
        let at = |ms| zero + Duration::from_millis(ms);
        let window = Window { begin: at(100), end: at(200) };
        let mut figures = ClientFigures::new().unwrap();
        for (started, finished) in [(90, 91), (99, 101), (150, 154), (199, 207), (90, 218)] {
            figures.succeed(window, at(started), at(finished));
        }
        assert_eq!(figures.operations, 2);
        assert_eq!(figures.latency_us.len(), 4);
        assert_eq!(figures.latency_us.min() / 1000, 2);
        assert_eq!(figures.latency_us.max() / 1000, 128);
    }

    #[test]
    fn shares_are_even_and_add_up() {
        assert_eq!(shares(32, 3).collect::<Vec<_>>(), [10, 11, 11]);
        assert_eq!(shares(2, 3).collect::<Vec<_>>(), [0, 1, 1]);
        assert_eq!(shares(1024, 1).collect::<Vec<_>>(), [1024]);
    }

    #[test]
    fn values_need_no_escaping() {
        assert_eq!(value().len(), VALUE_BYTES);
        assert!(value().bytes().all(|byte| byte.is_ascii_alphanumeric()));
    }
}
