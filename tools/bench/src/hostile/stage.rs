//! The environment of a load: a new cluster, ways to fill it, and the figures recorded during the load.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use raft_key_value::body::ErrorAnswer;
use raft_key_value::config::{
    CLIENT_MEMORY_BYTES_DEFAULT, HISTORY_BYTES_MAX, LOG_CACHE_BYTES_MAX, LOG_CHUNK_BYTES_MAX,
    REQUESTS_REMEMBERED_BYTES_MAX, WATCH_HANDED_OUT_BYTES_MAX, WATCH_LONG_EVENTS_BYTES_MAX,
};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::client::{Client, Counts, Request, Tally};
use super::observer::{Observer, Probe};
use crate::cpu;
use crate::ours::{OursCluster, OursOptions};
use crate::target::Leader;

/// How long the cluster is observed before a load begins.
const LEAD: Duration = Duration::from_millis(200);
const FILL_CLIENTS: usize = 16;
const FILL_OPERATIONS: usize = 128;
const FILL_BODY_BYTES: usize = 1 << 20;
const FILL_ATTEMPTS_MAX: usize = 100;
const FILL_PAUSE: Duration = Duration::from_millis(50);
/// How long the nodes may take to agree on a leader, before a load begins and after it.
const CALM_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause before a client opens its next connection.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
/// Pause after a rejection, so that the load generator leaves the nodes some CPU time.
const REFUSED_PAUSE: Duration = Duration::from_millis(10);

/// Memory that a node is configured to use for data that any load leaves behind.
const CONFIGURED_BYTES: usize = CLIENT_MEMORY_BYTES_DEFAULT
    + HISTORY_BYTES_MAX
    + LOG_CACHE_BYTES_MAX
    + LOG_CHUNK_BYTES_MAX
    + WATCH_HANDED_OUT_BYTES_MAX
    + WATCH_LONG_EVENTS_BYTES_MAX;

pub struct Stage {
    cluster: OursCluster,
    directory: PathBuf,
    leader: Leader,
    scale: f64,
    /// Maximum length of the load. A load may shorten it before it begins.
    pub length: Duration,
    /// Maximum size of the live keys and values that the load adds on each node.
    pub data_bytes: u64,
    /// Whether the load sends an `Idempotency-Key`, so that results are remembered.
    pub remembers: bool,
    /// Remarks for the report.
    pub notes: Vec<String>,
    pub crowd: Crowd,
    begun: Option<Begun>,
}

/// State of each client of a load.
#[derive(Clone)]
pub struct Crowd {
    pub leader: SocketAddr,
    pub follower: SocketAddr,
    pub tally: Tally,
    /// When the load ends.
    pub deadline: Instant,
}

struct Begun {
    at: Instant,
    observer: Observer,
    cpu: cpu::Sample,
    idle_bytes: Vec<u64>,
}

#[derive(Serialize)]
pub struct Figures {
    pub seconds: f64,
    pub counts: Counts,
    pub elections_during: u64,
    pub elections_after: u64,
    pub probe: Probe,
    pub looks: u64,
    pub looks_unanswered: u64,
    /// Resident memory of each node: when the load began, and its maximum since.
    pub idle_bytes: Vec<u64>,
    pub peak_bytes: Vec<u64>,
    /// Memory that a node may use for the load's data and for what it is configured to keep.
    pub expected_bytes: u64,
    pub node_cores: Vec<f64>,
    pub load_cores: f64,
    pub other_cores: f64,
    pub notes: Vec<String>,
}

impl Figures {
    /// Memory growth of the node that grew most.
    pub fn growth_bytes(&self) -> u64 {
        let grown = self.idle_bytes.iter().zip(&self.peak_bytes).map(|(idle, peak)| peak.saturating_sub(*idle));
        grown.max().unwrap_or_default()
    }

    pub fn unexpected_bytes(&self) -> u64 {
        self.growth_bytes().saturating_sub(self.expected_bytes)
    }

    pub fn elections(&self) -> u64 {
        self.elections_during + self.elections_after
    }
}

impl Stage {
    pub async fn create(options: &OursOptions, directory: &Path, scale: f64, length: Duration) -> Result<Self> {
        let cluster = OursCluster::create(options, directory).await?;
        let leader = cluster.leader().await?;
        let (leads, follows) = roles(&cluster, leader)?;
        let crowd = Crowd { leader: leads, follower: follows, tally: Tally::default(), deadline: Instant::now() };
        Ok(Self {
            cluster,
            directory: directory.to_owned(),
            leader,
            scale,
            length,
            data_bytes: 0,
            remembers: false,
            notes: Vec::new(),
            crowd,
            begun: None,
        })
    }

    /// A number of clients or keys, scaled.
    pub fn count(&self, full: usize) -> usize {
        ((full as f64 * self.scale).round() as usize).max(1)
    }

    pub fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Ends the preparation and begins the measurement.
    pub async fn begin(&mut self) -> Result<()> {
        self.cluster.check_running()?;
        // The preparation may have caused an election.
        let leader = self.wait_for_leader().await?;
        self.leader = leader;
        (self.crowd.leader, self.crowd.follower) = roles(&self.cluster, leader)?;
        self.cluster.reset_peaks()?;
        let idle_bytes = self.cluster.resident_bytes()?;
        let observer = Observer::start(self.cluster.addresses().to_vec(), leader)?;
        tokio::time::sleep(LEAD).await;
        let cpu = cpu::Sample::take(&self.cluster.pids())?;
        let at = Instant::now();
        self.crowd.deadline = at + self.length;
        self.begun = Some(Begun { at, observer, cpu, idle_bytes });
        Ok(())
    }

    /// Clients that run at once, until all are done or the load ends.
    pub async fn run<Running>(&self, clients: usize, run: impl Fn(Crowd, usize) -> Running) -> Result<()>
    where
        Running: Future<Output = std::io::Result<()>> + Send + 'static,
    {
        let running = self.start(clients, run);
        self.finish_clients(running).await
    }

    /// Runs clients that send one request repeatedly until the load ends.
    pub async fn repeat(&self, clients: usize, request: Request) -> Result<()> {
        self.run(clients, |crowd, _| crowd.repeat(request.clone())).await
    }

    pub fn start<Running>(&self, clients: usize, run: impl Fn(Crowd, usize) -> Running) -> JoinSet<std::io::Result<()>>
    where
        Running: Future<Output = std::io::Result<()>> + Send + 'static,
    {
        (0..clients).map(|client| run(self.crowd.clone(), client)).collect()
    }

    /// Waits for the clients, or for the end of the load. The clients have already counted their errors.
    pub async fn finish_clients(&self, mut running: JoinSet<std::io::Result<()>>) -> Result<()> {
        let all = async {
            while let Some(ended) = running.join_next().await {
                if let Err(error) = ended {
                    bail!("a client panicked: {error}");
                }
            }
            Ok(())
        };
        timeout_at(self.crowd.deadline, all).await.unwrap_or(Ok(()))
    }

    /// Puts this many keys, `<prefix>00000000` and so on, each with `value`; replaces existing ones.
    pub async fn fill(&self, prefix: &'static str, keys: usize, value: &str) -> Result<()> {
        let value: Arc<str> = value.into();
        self.fill_with(keys, prefix.len() + value.len(), move |number, _| {
            format!(r#"{{"put":{{"key":"{prefix}{number:08}","value":"{value}"}}}}"#)
        })
        .await
    }

    /// Sends operations as transactions. `operation` gets the number of each operation when it is sent.
    pub async fn fill_with(
        &self,
        operations: usize,
        operation_bytes: usize,
        operation: impl Fn(usize, Instant) -> String + Clone + Send + 'static,
    ) -> Result<()> {
        let a_request = (FILL_BODY_BYTES / (operation_bytes + 64)).clamp(1, FILL_OPERATIONS);
        let next = Arc::new(AtomicUsize::new(0));
        let address = self.crowd.leader;
        let mut fillers: JoinSet<Result<()>> = (0..FILL_CLIENTS)
            .map(|_| {
                let (next, operation) = (Arc::clone(&next), operation.clone());
                async move {
                    let tally = Tally::default();
                    let mut client = Client::connect(address, &tally).await?;
                    loop {
                        let first = next.fetch_add(a_request, Ordering::Relaxed);
                        if first >= operations {
                            return Ok(());
                        }
                        let numbers = first..operations.min(first + a_request);
                        let body: Vec<String> = numbers.map(|number| operation(number, Instant::now())).collect();
                        let request = Request::txn(format!(r#"{{"success":[{}]}}"#, body.join(",")));
                        call_until_done(&mut client, &request).await?;
                    }
                }
            })
            .collect();
        while let Some(ended) = fillers.join_next().await {
            ended.context("a client that fills panicked")?.context("cannot fill the cluster")?;
        }
        Ok(())
    }

    /// Puts one value, before the load or as part of it.
    pub async fn put(&self, key: &str, value: Bytes) -> Result<()> {
        let mut client = Client::connect(self.crowd.leader, &Tally::default()).await?;
        call_until_done(&mut client, &Request::put(key, value)).await.with_context(|| format!("cannot put {key}"))
    }

    pub async fn revision(&self) -> Result<u64> {
        #[derive(serde::Deserialize)]
        struct Hash {
            revision: u64,
        }

        let mut client = Client::connect(self.crowd.leader, &Tally::default()).await?;
        client.send(&Request::get("/v1/cluster/hash")).await?;
        let mut body = Vec::new();
        client.finish(|bytes| body.extend_from_slice(bytes)).await?;
        let hash: Hash = serde_json::from_slice(&body).context("unexpected response to a request for the hash")?;
        Ok(hash.revision)
    }

    /// Bytes in each node's log directory.
    pub fn log_bytes(&self) -> Result<Vec<u64>> {
        let of_node = |node_id| {
            let log = self.directory.join(format!("node-{node_id}/log"));
            let files = std::fs::read_dir(&log).with_context(|| format!("cannot read `{}`", log.display()))?;
            // The node may remove a file meanwhile.
            Ok(files.flatten().filter_map(|file| Some(file.metadata().ok()?.len())).sum())
        };
        self.cluster.node_ids().map(of_node).collect()
    }

    /// Ends the load, and observes the cluster for a while longer.
    pub async fn finish(&mut self, rest: Duration) -> Result<Figures> {
        let begun = self.begun.take().context("the load never began")?;
        let seconds = begun.at.elapsed().as_secs_f64();
        let cores = cpu::Sample::take(&self.cluster.pids())?.cores_since(&begun.cpu);
        let counts = self.crowd.tally.counts();
        let term_during = begun.observer.term();
        tokio::time::sleep(rest).await;
        let leader = self.wait_for_leader().await?;
        let term = leader.term.max(begun.observer.term());
        let observed = begun.observer.finish()?;
        let remembered = if self.remembers { REQUESTS_REMEMBERED_BYTES_MAX } else { 0 };
        Ok(Figures {
            seconds,
            counts,
            elections_during: term_during - self.leader.term,
            elections_after: term - term_during,
            probe: observed.probe,
            looks: observed.looks,
            looks_unanswered: observed.looks_unanswered,
            idle_bytes: begun.idle_bytes,
            peak_bytes: self.cluster.peak_bytes()?,
            expected_bytes: self.data_bytes + (CONFIGURED_BYTES + remembered) as u64,
            node_cores: cores.servers,
            load_cores: cores.load,
            other_cores: cores.other,
            notes: std::mem::take(&mut self.notes),
        })
    }

    async fn wait_for_leader(&self) -> Result<Leader> {
        let agreed = async {
            loop {
                if let Ok(leader) = self.cluster.leader().await {
                    return leader;
                }
                tokio::time::sleep(FILL_PAUSE).await;
            }
        };
        let waited = timeout(CALM_TIMEOUT, agreed).await;
        waited.with_context(|| format!("the nodes did not agree on a leader within {CALM_TIMEOUT:?}"))
    }

    /// An error that quotes a node's log, if one has ended.
    pub fn check_running(&mut self) -> Result<()> {
        self.cluster.check_running()
    }

    /// Kills the nodes: their data is no longer needed.
    pub fn kill(mut self) {
        // An error only reports that a node had ended, which was detected earlier.
        let _ = self.cluster.kill();
    }
}

/// The addresses of the leader and of a follower.
fn roles(cluster: &OursCluster, leader: Leader) -> Result<(SocketAddr, SocketAddr)> {
    let follower = cluster.addresses().iter().find(|address| **address != leader.address);
    Ok((leader.address, *follower.context("the cluster has no follower")?))
}

async fn call_until_done(client: &mut Client, request: &Request) -> Result<()> {
    let mut status = 0;
    for _ in 0..FILL_ATTEMPTS_MAX {
        status = client.call(request).await?;
        if status == 200 {
            return Ok(());
        }
        tokio::time::sleep(FILL_PAUSE).await;
    }
    bail!("the node returned {status} {FILL_ATTEMPTS_MAX} times")
}

/// Sends a request; returns how long the response asks to wait before the next one.
async fn call_for_pause(client: &mut Client, request: &Request) -> std::io::Result<Duration> {
    client.send(request).await?;
    let mut body = Vec::new();
    client.finish(|bytes| body.extend_from_slice(bytes)).await?;
    let error = serde_json::from_slice::<ErrorAnswer>(&body).map(|answer| answer.error);
    Ok(error.ok().and_then(|error| error.retry_after_ms).map_or(REFUSED_PAUSE, Duration::from_millis))
}

impl Crowd {
    pub async fn connect(&self) -> std::io::Result<Client> {
        Client::connect(self.leader, &self.tally).await
    }

    /// Opens a connection that reads nothing.
    pub async fn connect_unread(&self) -> std::io::Result<Client> {
        Client::connect_unread(self.leader, &self.tally).await
    }

    /// Repeats a request, each time after the response to the one before. Never returns.
    pub async fn repeat(self, request: Request) -> std::io::Result<()> {
        loop {
            if let Ok(mut client) = self.connect().await {
                while let Ok(status) = client.call(&request).await {
                    if status >= 500 {
                        tokio::time::sleep(REFUSED_PAUSE).await;
                    }
                }
            }
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
    }

    /// Like [`Crowd::repeat`], but waits as long as each rejection asks.
    pub async fn repeat_as_asked(self, request: Request) -> std::io::Result<()> {
        loop {
            if let Ok(mut client) = self.connect().await {
                while let Ok(pause) = call_for_pause(&mut client, &request).await {
                    tokio::time::sleep(pause).await;
                }
            }
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
    }
}
