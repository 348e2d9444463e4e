//! Records what a cluster does during a load: its terms, the writes of one ordinary client, and memory.
//!
//! All of this runs on a thread of its own, so that the load's own delays do not show in the figures. The
//! thread still shares the cores with the load and the nodes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use harness::http::Method;
use harness::node::Metrics;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, timeout};

use super::client::{Client, Request, Tally};
use crate::load::latency_histogram;
use crate::ours::HttpConnection;
use crate::target::Leader;

/// Interval between the puts of the probe.
const PROBE_INTERVAL: Duration = Duration::from_millis(10);
const PROBE_VALUE: &[u8] = b"a small value";
pub const PROBE_KEY: &str = "probe";
/// Longer than a node's own deadline of 5 s. An attempt also ends when another node becomes leader.
const PROBE_TIMEOUT: Duration = Duration::from_secs(6);
/// Pause between a failed attempt and the next.
const PROBE_PAUSE: Duration = Duration::from_millis(10);
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// The puts of the probe.
#[derive(Serialize)]
pub struct Probe {
    pub puts: u64,
    /// Attempts that did not return 200.
    pub failed_attempts: u64,
    /// From the first attempt to the 200.
    pub us_p50: u64,
    pub us_p99: u64,
    /// Longest time between two 200s, between the start and the first, or between the last and the end.
    pub gap_us: u64,
}

#[derive(Serialize)]
pub struct Observed {
    pub probe: Probe,
    /// Requests for `/metrics`, to all nodes.
    pub looks: u64,
    pub looks_unanswered: u64,
}

/// Observes until it is dropped.
pub struct Observer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<Probe>>>,
}

struct Shared {
    is_over: AtomicBool,
    term: AtomicU64,
    looks: AtomicU64,
    looks_unanswered: AtomicU64,
}

impl Observer {
    pub fn start(nodes: Vec<SocketAddr>, leader: Leader) -> Result<Self> {
        let shared = Arc::new(Shared {
            is_over: AtomicBool::new(false),
            term: AtomicU64::new(leader.term),
            looks: AtomicU64::new(0),
            looks_unanswered: AtomicU64::new(0),
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the observer's runtime")?;
        let observer = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("observer".to_owned())
            .spawn(move || runtime.block_on(observe(&observer, nodes, leader)))
            .context("cannot start the observer")?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The highest term that any node has reported.
    pub fn term(&self) -> u64 {
        self.shared.term.load(Ordering::Relaxed)
    }

    pub fn finish(mut self) -> Result<Observed> {
        self.shared.is_over.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("the observer has finished")?;
        let probe = thread.join().map_err(|_| anyhow!("the observer panicked"))??;
        Ok(Observed {
            probe,
            looks: self.shared.looks.load(Ordering::Relaxed),
            looks_unanswered: self.shared.looks_unanswered.load(Ordering::Relaxed),
        })
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
    }
}

async fn observe(shared: &Arc<Shared>, nodes: Vec<SocketAddr>, leader: Leader) -> Result<Probe> {
    let (leads, leader_seen) = watch::channel((leader.term, leader.address));
    let leads = Arc::new(leads);
    for node in &nodes {
        tokio::spawn(look(Arc::clone(shared), *node, nodes.clone(), Arc::clone(&leads)));
    }
    probe(shared, &nodes, leader_seen).await
}

/// Polls one node for its term and leader.
async fn look(
    shared: Arc<Shared>,
    node: SocketAddr,
    nodes: Vec<SocketAddr>,
    leads: Arc<watch::Sender<(u64, SocketAddr)>>,
) {
    let mut kept = None;
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        shared.looks.fetch_add(1, Ordering::Relaxed);
        let metrics = timeout(LOOK_TIMEOUT, ask(&mut kept, node)).await;
        let Ok(Ok(metrics)) = metrics else {
            shared.looks_unanswered.fetch_add(1, Ordering::Relaxed);
            kept = None;
            continue;
        };
        shared.term.fetch_max(metrics.current_term, Ordering::Relaxed);
        let address = metrics.current_leader.and_then(|id| nodes.get(usize::try_from(id).ok()?.checked_sub(1)?));
        if let Some(address) = address {
            leads.send_if_modified(|(term, leader)| {
                let is_newer = metrics.current_term > *term;
                if is_newer {
                    (*term, *leader) = (metrics.current_term, *address);
                }
                is_newer
            });
        }
    }
}

async fn ask(kept: &mut Option<HttpConnection>, node: SocketAddr) -> Result<Metrics> {
    let mut connection = match kept.take() {
        Some(connection) if !connection.is_closed() => connection,
        _ => HttpConnection::connect(node).await?,
    };
    let metrics = connection.call(Method::GET, "/metrics", ()).await?;
    *kept = Some(connection);
    Ok(metrics)
}

/// One client that puts; it retries each put until the put succeeds.
async fn probe(
    shared: &Shared,
    nodes: &[SocketAddr],
    mut leader_seen: watch::Receiver<(u64, SocketAddr)>,
) -> Result<Probe> {
    let request = Request::put(PROBE_KEY, Bytes::from_static(PROBE_VALUE));
    let mut latencies_us = latency_histogram()?;
    let (mut puts, mut failed_attempts) = (0, 0);
    let mut gap = Duration::ZERO;
    let mut done_at = Instant::now();
    let mut connection: Option<Client> = None;
    let mut ticks = tokio::time::interval(PROBE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let is_over = || shared.is_over.load(Ordering::Relaxed);
    while !is_over() {
        ticks.tick().await;
        let began_at = Instant::now();
        let mut attempts = 0;
        loop {
            let (_, leader) = *leader_seen.borrow_and_update();
            // Try the leader first and every second time, and the other nodes in between: the observed leader may
            // be outdated.
            let node = if attempts % 2 == 0 { leader } else { nodes[attempts / 2 % nodes.len()] };
            attempts += 1;
            let is_done = tokio::select! {
                is_done = attempt(&mut connection, node, &request) => is_done,
                // The node may hang after another one has become leader.
                _ = leader_seen.changed() => false,
                () = over(shared) => false,
            };
            if is_done {
                let now = Instant::now();
                latencies_us.record((now - began_at).as_micros() as u64)?;
                gap = gap.max(now - done_at);
                done_at = now;
                puts += 1;
                break;
            }
            connection = None;
            if is_over() {
                break;
            }
            failed_attempts += 1;
            tokio::time::sleep(PROBE_PAUSE).await;
        }
    }
    let gap = gap.max(done_at.elapsed());
    Ok(Probe {
        puts,
        failed_attempts,
        us_p50: latencies_us.value_at_quantile(0.5),
        us_p99: latencies_us.value_at_quantile(0.99),
        gap_us: gap.as_micros() as u64,
    })
}

async fn over(shared: &Shared) {
    while !shared.is_over.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn attempt(connection: &mut Option<Client>, node: SocketAddr, request: &Request) -> bool {
    let put = async {
        let mut client = match connection.take() {
            Some(client) => client,
            None => Client::connect(node, &Tally::default()).await?,
        };
        let status = client.call(request).await?;
        *connection = Some(client);
        std::io::Result::Ok(status == 200)
    };
    matches!(timeout(PROBE_TIMEOUT, put).await, Ok(Ok(true)))
}
