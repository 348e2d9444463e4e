//! Three members of etcd on loopback.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::GrpcConnection;
use crate::process::{ServerProcess, free_ports, loopback, stop_all};
use crate::target::Leader;

const MEMBER_COUNT: usize = 3;
const READY_TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

pub struct EtcdCluster {
    client_addresses: Vec<SocketAddr>,
    processes: Vec<ServerProcess>,
}

impl EtcdCluster {
    /// Creates a cluster in `data_directory`, which must not exist yet. All settings are etcd's defaults,
    /// including fsync, except the log level: logging is not measured.
    pub async fn create(etcd: &Path, data_directory: &Path) -> Result<Self> {
        std::fs::create_dir_all(data_directory)
            .with_context(|| format!("cannot create `{}`", data_directory.display()))?;
        let ports = free_ports(2 * MEMBER_COUNT)?;
        let (client_ports, peer_ports) = ports.split_at(MEMBER_COUNT);
        let members = (1..).zip(peer_ports).map(|(id, port)| (format!("member-{id}"), loopback(*port)));
        let cluster_arguments = harness::etcd::cluster_arguments(members);

        let mut processes = Vec::new();
        for (index, (client_port, peer_port)) in client_ports.iter().zip(peer_ports).enumerate() {
            let name = format!("member-{}", index + 1);
            let mut command = Command::new(etcd);
            let data = data_directory.join(&name);
            harness::etcd::add_arguments(&mut command, &name, &data, loopback(*client_port), loopback(*peer_port));
            command.args(&cluster_arguments).args(["--log-level", "error"]);
            let log_path = data_directory.join(format!("{name}.log"));
            processes.push(ServerProcess::start(&format!("etcd {name}"), command, &log_path)?);
        }
        let mut cluster = Self { client_addresses: client_ports.iter().copied().map(loopback).collect(), processes };
        cluster.wait_until_ready().await?;
        Ok(cluster)
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            for process in &mut self.processes {
                process.check_running()?;
            }
            match self.leader().await {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() >= deadline => {
                    let context = format!("etcd had no leader within {READY_TIMEOUT:?}");
                    return Err(error.context(context));
                }
                Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
            }
        }
    }

    /// The leader that all three members report.
    pub async fn leader(&self) -> Result<Leader> {
        // The (term, leader) that each member reports.
        let mut views = Vec::new();
        let mut leader_address = None;
        for address in &self.client_addresses {
            let status = GrpcConnection::connect(*address).await?.status().await?;
            let member_id = status.header.map_or(0, |header| header.member_id);
            ensure!(status.leader != 0, "{address} knows no leader");
            if status.leader == member_id {
                leader_address = Some(*address);
            }
            views.push((status.raft_term, status.leader));
        }
        let (term, member_id) = views[0];
        if views.iter().any(|view| *view != views[0]) {
            bail!("etcd's members differ on (term, leader): {views:?}");
        }
        Ok(Leader { id: member_id, term, address: leader_address.context("no member reports itself as the leader")? })
    }

    pub fn pids(&self) -> Vec<libc::pid_t> {
        self.processes.iter().map(ServerProcess::pid).collect()
    }

    pub async fn stop(self) -> Result<()> {
        stop_all(self.processes).await
    }
}
