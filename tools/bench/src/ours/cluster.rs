//! Three nodes of raft-key-value on loopback.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use harness::http::Method;
use harness::node::Metrics;
use serde_json::Value;

use super::HttpConnection;
use crate::process::{ServerProcess, free_ports, kill_all, loopback, stop_all};
use crate::target::Leader;

const NODE_COUNT: u64 = 3;
const READY_TIMEOUT: Duration = Duration::from_secs(120);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

#[derive(Clone)]
pub struct OursOptions {
    pub server: PathBuf,
    /// Given to every node after the bench's own arguments. `{id}` stands for the node's id.
    pub server_arguments: Vec<String>,
}

pub struct OursCluster {
    options: OursOptions,
    data_directory: PathBuf,
    addresses: Vec<SocketAddr>,
    /// Empty while the nodes are down, as in `kill-all`.
    processes: Vec<ServerProcess>,
    joining: Option<ServerProcess>,
}

impl OursCluster {
    /// Creates a cluster of three voters in `data_directory`, which must not exist yet.
    pub async fn create(options: &OursOptions, data_directory: &Path) -> Result<Self> {
        let ports = free_ports(NODE_COUNT as usize)?;
        std::fs::create_dir_all(data_directory)
            .with_context(|| format!("cannot create `{}`", data_directory.display()))?;
        let mut cluster = Self {
            options: options.clone(),
            data_directory: data_directory.to_owned(),
            addresses: ports.into_iter().map(loopback).collect(),
            processes: Vec::new(),
            joining: None,
        };
        cluster.start_nodes()?;
        for node_id in 1..=NODE_COUNT {
            cluster
                .eventually(&format!("node {node_id} responds"), async |cluster| {
                    cluster.metrics(node_id).await.map(|_| ())
                })
                .await?;
        }
        cluster.form().await?;
        cluster.wait_until_ready().await?;
        Ok(cluster)
    }

    /// Makes all nodes voters of a new cluster.
    async fn form(&self) -> Result<()> {
        let members: Vec<(u64, String)> = self.node_ids().map(|id| (id, self.address(id).to_string())).collect();
        let mut first = HttpConnection::connect(self.addresses[0]).await?;
        first.call::<Value>(Method::POST, "/init", &members).await.map(drop)
    }

    /// Stops the nodes and restarts them with `server_arguments` on the same data.
    pub async fn restart(&mut self, server_arguments: Vec<String>) -> Result<()> {
        stop_all(std::mem::take(&mut self.processes)).await?;
        self.options.server_arguments = server_arguments;
        self.start_nodes()?;
        self.wait_until_ready().await
    }

    /// Kills all nodes at once. They stay down until `revive`.
    pub fn kill(&mut self) -> Result<()> {
        kill_all(std::mem::take(&mut self.processes))
    }

    pub async fn revive(&mut self) -> Result<()> {
        self.start_nodes()?;
        self.wait_until_ready().await
    }

    pub async fn stop(self) -> Result<()> {
        stop_all(self.processes).await
    }

    fn start_nodes(&mut self) -> Result<()> {
        for node_id in 1..=NODE_COUNT {
            let mut command = Command::new(&self.options.server);
            harness::node::add_arguments(&mut command, node_id, self.address(node_id), &self.data_directory);
            let id = node_id.to_string();
            command.args(self.options.server_arguments.iter().map(|argument| argument.replace("{id}", &id)));
            let log_path = self.data_directory.join(format!("node-{node_id}.log"));
            let name = format!("node {node_id}");
            self.processes.push(ServerProcess::start(&name, command, &log_path)?);
        }
        Ok(())
    }

    /// Starts an empty node that makes itself a member.
    pub fn start_joining(&mut self, id: u64) -> Result<()> {
        let port = free_ports(1)?[0];
        let mut command = Command::new(&self.options.server);
        harness::node::add_arguments(&mut command, id, loopback(port), &self.data_directory);
        let addresses: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        command.args(["--join", &addresses.join(",")]);
        let log_path = self.data_directory.join(format!("node-{id}.log"));
        self.joining = Some(ServerProcess::start(&format!("node {id}"), command, &log_path)?);
        Ok(())
    }

    /// Removes the node that joined, and its data.
    pub async fn remove_joined(&mut self, id: u64) -> Result<()> {
        let endpoints = self.addresses[0].to_string();
        let mut command = Command::new(&self.options.server);
        harness::process::remove_variables(&mut command, "RKV_");
        command.args(["members", "remove", &id.to_string(), "--endpoints", &endpoints]);
        let removed = command.output().context("cannot run `members remove`")?;
        ensure!(removed.status.success(), "`members remove` failed: {}", String::from_utf8_lossy(&removed.stderr));
        if let Some(process) = self.joining.take() {
            kill_all(vec![process])?;
        }
        std::fs::remove_dir_all(self.data_directory.join(format!("node-{id}"))).context("cannot remove its data")?;
        self.wait_until_ready().await
    }

    /// The voters, according to a node; none during a change of them.
    pub async fn voters(&self, node_id: u64) -> Result<Vec<u64>> {
        let metrics = self.metrics(node_id).await?;
        let [voters] = metrics.configs() else { return Ok(Vec::new()) };
        Ok(voters.clone())
    }

    /// Waits until all three nodes are voters and agree on a leader that serves reads.
    async fn wait_until_ready(&mut self) -> Result<()> {
        self.eventually("the cluster is ready", async |cluster| {
            let leader = cluster.leader().await?;
            let mut connection = HttpConnection::connect(leader.address).await?;
            connection.consistent_read("no-such-key").await.map(|_| ())
        })
        .await
    }

    async fn eventually(&mut self, what: &str, probe: impl AsyncFn(&Self) -> Result<()>) -> Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            for process in &mut self.processes {
                process.check_running()?;
            }
            match probe(self).await {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() >= deadline => {
                    let logs = self.data_directory.display();
                    return Err(error.context(format!(
                        "timed out after {READY_TIMEOUT:?} waiting until {what} (logs: `{logs}/node-*.log`)"
                    )));
                }
                Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
            }
        }
    }

    fn address(&self, node_id: u64) -> SocketAddr {
        self.addresses[node_id as usize - 1]
    }

    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    pub fn node_ids(&self) -> impl Iterator<Item = u64> + use<> {
        1..=NODE_COUNT
    }

    pub fn pids(&self) -> Vec<libc::pid_t> {
        self.processes.iter().map(ServerProcess::pid).collect()
    }

    /// Resident memory of each node.
    pub fn resident_bytes(&self) -> Result<Vec<u64>> {
        self.processes.iter().map(ServerProcess::resident_bytes).collect()
    }

    /// Maximum resident memory of each node since `reset_peaks`.
    pub fn peak_bytes(&self) -> Result<Vec<u64>> {
        self.processes.iter().map(ServerProcess::peak_bytes).collect()
    }

    pub fn reset_peaks(&self) -> Result<()> {
        self.processes.iter().try_for_each(ServerProcess::reset_peak)
    }

    /// Returns an error with the reason if a node has ended.
    pub fn check_running(&mut self) -> Result<()> {
        self.processes.iter_mut().try_for_each(ServerProcess::check_running)
    }

    pub async fn metrics(&self, node_id: u64) -> Result<Metrics> {
        let mut connection = HttpConnection::connect(self.address(node_id)).await?;
        connection.call(Method::GET, "/metrics", ()).await.with_context(|| format!("node {node_id}"))
    }

    /// The leader that all three nodes report.
    pub async fn leader(&self) -> Result<Leader> {
        let voters: Vec<u64> = self.node_ids().collect();
        let mut agreed = None;
        for node_id in self.node_ids() {
            let metrics = self.metrics(node_id).await?;
            let configs = metrics.configs();
            ensure!(configs == [voters.clone()], "node {node_id} still has the voters {configs:?}");
            let Some(leader_id) = metrics.current_leader else {
                bail!("node {node_id} knows no leader");
            };
            let leader = Leader { id: leader_id, term: metrics.current_term, address: self.address(leader_id) };
            let first = *agreed.get_or_insert(leader);
            ensure!(first == leader, "nodes 1 and {node_id} report different leaders: {first:?} and {leader:?}");
        }
        agreed.context("the cluster has no nodes")
    }
}
