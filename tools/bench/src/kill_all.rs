//! Checks that no acknowledged write is lost when all nodes are killed at once.
//!
//! In each cycle clients write, each key once, until all nodes get SIGKILL at a random moment. The nodes
//! restart on the same data, and every acknowledged write of the cycle is read back. After the last cycle the
//! writes of all cycles are read once more, because a later crash must not lose them either. The reads go to
//! all nodes in turn, so a node that serves stale reads is detected.
//!
//! SIGKILL does not discard the kernel's page cache. The test shows the order of acknowledgment and recovery,
//! but not that fsync reached the disk.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::Verdict;
use crate::arguments::KillAllArguments;
use crate::ours::{HttpConnection, OursCluster};
use crate::report::{Environment, publish};
use crate::statistics::{Spread, thousands};
use crate::target::VALUE_BYTES;
use crate::workspace::{Workspace, our_server};

const CLIENTS: u32 = 64;
const READERS: usize = 64;
/// Between the start of the load and the kill.
const LOAD_MS: std::ops::Range<u64> = 500..2_500;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const ERROR_PAUSE: Duration = Duration::from_millis(10);
const READ_ATTEMPTS_MAX: usize = 50;
const READ_PAUSE: Duration = Duration::from_millis(100);
const LOSSES_SHOWN_MAX: usize = 10;

/// Identifies one write; its key and value follow from it and the seed.
#[derive(Clone, Copy, Debug)]
struct WriteId {
    cycle: u32,
    client: u32,
    sequence: u32,
}

#[derive(Serialize)]
struct Cycle {
    cycle: u32,
    load_ms: u64,
    acknowledged: usize,
    /// Writes that failed before or at the kill. They may or may not have been applied.
    unknown: usize,
    recovery_seconds: f64,
    lost: usize,
}

#[derive(Serialize)]
struct Figures {
    environment: Environment,
    seed: u64,
    cycles: Vec<Cycle>,
    acknowledged: usize,
    /// Losses after the last cycle, among the writes of all cycles.
    lost_at_end: usize,
    losses: Vec<String>,
}

pub async fn run(arguments: &KillAllArguments) -> Result<Verdict> {
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("seed: {seed} (repeat this run with --seed {seed})");
    let options = our_server(&arguments.common)?;
    let environment = Environment::gather(&[&options.server])?;
    let mut workspace = Workspace::create(&arguments.common, "kill-all")?;
    let mut cluster = OursCluster::create(&options, &workspace.path("cluster")).await?;

    let mut random = fastrand::Rng::with_seed(seed);
    let mut all_acknowledged = Arc::new(Vec::new());
    let mut losses = Vec::new();
    let mut cycles = Vec::new();
    for number in 1..=arguments.times {
        let load_ms = random.u64(LOAD_MS);
        let (cycle, acknowledged, new_losses) = run_cycle(&mut cluster, seed, number, load_ms)
            .await
            .with_context(|| format!("cycle {number}, seed {seed}"))?;
        println!(
            "cycle {number}/{}  killed after {load_ms} ms  {} writes acknowledged, {} unknown  \
             ready again after {:.2} s  {} lost",
            arguments.times,
            thousands(cycle.acknowledged as f64),
            cycle.unknown,
            cycle.recovery_seconds,
            cycle.lost,
        );
        cycles.push(cycle);
        losses.extend(new_losses);
        Arc::make_mut(&mut all_acknowledged).extend_from_slice(&acknowledged);
    }
    println!("reading back all {} acknowledged writes", thousands(all_acknowledged.len() as f64));
    let lost_at_end = read_back(cluster.addresses(), seed, all_acknowledged.clone()).await?;
    let figures = Figures {
        environment,
        seed,
        cycles,
        acknowledged: all_acknowledged.len(),
        lost_at_end: lost_at_end.len(),
        losses: losses.into_iter().chain(lost_at_end).collect(),
    };
    cluster.stop().await?;
    let is_kept = figures.losses.is_empty();
    if !is_kept {
        workspace.keep();
    }
    workspace.finish()?;
    publish(&arguments.common, "kill-all", &markdown(&figures), &figures, true)?;
    Ok(if is_kept { Verdict::Met } else { Verdict::PromiseBroken })
}

async fn run_cycle(
    cluster: &mut OursCluster,
    seed: u64,
    number: u32,
    load_ms: u64,
) -> Result<(Cycle, Arc<Vec<WriteId>>, Vec<String>)> {
    let leader = cluster.leader().await?;
    let is_stopping = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for client in 0..CLIENTS {
        let first = WriteId { cycle: number, client, sequence: 0 };
        writers.spawn(write_until_stopped(
            HttpConnection::connect(leader.address).await?,
            leader.address,
            seed,
            first,
            is_stopping.clone(),
        ));
    }
    tokio::time::sleep(Duration::from_millis(load_ms)).await;
    cluster.kill()?;
    is_stopping.store(true, Ordering::Relaxed);
    let mut acknowledged = Vec::new();
    let mut unknown = 0;
    while let Some(written) = writers.join_next().await {
        let (by_client, failed) = written.context("a client panicked")?;
        acknowledged.extend(by_client);
        unknown += failed;
    }
    ensure!(!acknowledged.is_empty(), "no write was acknowledged in {load_ms} ms, so the cycle shows nothing");

    let restarted = Instant::now();
    cluster.revive().await?;
    let recovery_seconds = restarted.elapsed().as_secs_f64();
    let acknowledged = Arc::new(acknowledged);
    let losses = read_back(cluster.addresses(), seed, acknowledged.clone()).await?;
    let cycle = Cycle {
        cycle: number,
        load_ms,
        acknowledged: acknowledged.len(),
        unknown,
        recovery_seconds,
        lost: losses.len(),
    };
    Ok((cycle, acknowledged, losses))
}

/// Returns the acknowledged writes and the number of failed ones.
async fn write_until_stopped(
    mut connection: HttpConnection,
    leader: SocketAddr,
    seed: u64,
    first: WriteId,
    is_stopping: Arc<AtomicBool>,
) -> (Vec<WriteId>, usize) {
    let mut acknowledged = Vec::new();
    let mut failed = 0;
    let mut write = first;
    while !is_stopping.load(Ordering::Relaxed) {
        let (key, value) = (write.key(seed), write.value(seed));
        let writing = tokio::time::timeout(REQUEST_TIMEOUT, connection.write(&key, &value));
        match writing.await {
            Ok(Ok(())) => acknowledged.push(write),
            Ok(Err(_)) | Err(_) => {
                failed += 1;
                tokio::time::sleep(ERROR_PAUSE).await;
            }
        }
        if connection.is_closed()
            && let Ok(new) = HttpConnection::connect(leader).await
        {
            connection = new;
        }
        // A failed write is not retried: each key is written at most once.
        write.sequence += 1;
    }
    (acknowledged, failed)
}

/// Describes each of the `writes` that is missing or has another value.
async fn read_back(nodes: &[SocketAddr], seed: u64, writes: Arc<Vec<WriteId>>) -> Result<Vec<String>> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut readers = JoinSet::new();
    for node in nodes.iter().copied().cycle().take(READERS) {
        let (writes, next) = (writes.clone(), next.clone());
        readers.spawn(async move {
            let mut losses = Vec::new();
            let mut connection = None;
            while let Some(write) = writes.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = check(&mut connection, node, seed, *write).await {
                    let key = write.key(seed);
                    losses.push(format!("{key}, read from {node}: {error:#}"));
                }
            }
            losses
        });
    }
    let mut losses = Vec::new();
    while let Some(found) = readers.join_next().await {
        losses.extend(found.context("a reader panicked")?);
    }
    for loss in losses.iter().take(LOSSES_SHOWN_MAX) {
        eprintln!("LOST: {loss}");
    }
    Ok(losses)
}

/// Reads one write back. Only a read without a response is retried.
async fn check(connection: &mut Option<HttpConnection>, node: SocketAddr, seed: u64, write: WriteId) -> Result<()> {
    let key = write.key(seed);
    let mut attempt = 1;
    let value = loop {
        match read_once(connection, node, &key).await {
            Ok(value) => break value,
            Err(error) if attempt == READ_ATTEMPTS_MAX => {
                return Err(error.context(format!("could not be read in {READ_ATTEMPTS_MAX} attempts")));
            }
            Err(_) => tokio::time::sleep(READ_PAUSE).await,
        }
        *connection = None;
        attempt += 1;
    };
    ensure!(!value.is_empty(), "the key does not exist");
    ensure!(value == write.value(seed), "the key has another value");
    Ok(())
}

async fn read_once(connection: &mut Option<HttpConnection>, node: SocketAddr, key: &str) -> Result<bytes::Bytes> {
    let open = match connection {
        Some(open) => open,
        None => connection.insert(HttpConnection::connect(node).await?),
    };
    tokio::time::timeout(REQUEST_TIMEOUT, open.consistent_read(key))
        .await
        .map_err(|_| anyhow!("no response within {REQUEST_TIMEOUT:?}"))?
}

impl WriteId {
    fn key(self, seed: u64) -> String {
        let Self { cycle, client, sequence } = self;
        format!("kill-{seed:016x}-{cycle}-{client}-{sequence}")
    }

    /// A different value for each write, so that an exchange of keys is detected.
    fn value(self, seed: u64) -> String {
        let id = u64::from(self.cycle) << 48 | u64::from(self.client) << 32;
        let mut random = fastrand::Rng::with_seed(seed ^ id ^ u64::from(self.sequence));
        (0..VALUE_BYTES).map(|_| random.alphanumeric()).collect()
    }
}

fn markdown(figures: &Figures) -> String {
    let lost: usize = figures.cycles.iter().map(|cycle| cycle.lost).sum();
    let recovery = Spread::of(figures.cycles.iter().map(|cycle| cycle.recovery_seconds));
    let fewest = figures.cycles.iter().map(|cycle| cycle.acknowledged).min();
    let verdict = if figures.losses.is_empty() {
        "**pass**: none was lost".to_owned()
    } else {
        format!("**fail**: {lost} were lost in their own cycle, {} were missing after the last", figures.lost_at_end)
    };
    let mut text = format!(
        "## All nodes killed at once\n\n{}\n\
         {} times, all three nodes got SIGKILL while {CLIENTS} clients were writing, and restarted on \
         the same data (seed {}). {} writes were acknowledged, at least {} each time, and read back \
         after their own cycle and after the last: {verdict}.\n\n\
         Time from start until a leader serves linearizable reads: {:.2} s ({:.2}–{:.2}).\n\n\
         SIGKILL does not empty the kernel's cache, so this says nothing about power loss.\n",
        figures.environment.markdown(),
        figures.cycles.len(),
        figures.seed,
        thousands(figures.acknowledged as f64),
        thousands(fewest.unwrap_or(0) as f64),
        recovery.median,
        recovery.min,
        recovery.max,
    );
    for loss in figures.losses.iter().take(LOSSES_SHOWN_MAX) {
        text += &format!("\n- {loss}");
    }
    text
}
