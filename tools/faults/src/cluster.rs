//! A cluster of nodes on hosts of their own, and operations on the cluster as a whole.

use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fastrand::Rng;
use futures_util::future::join_all;
use harness::tls;
use tokio::time::Instant;

use crate::disk::{Disk, FileSystem};
use crate::finding::{Finding, Symptom};
use crate::history::NodeId;
use crate::monitor::Monitor;
use crate::network::{Host, Network};
use crate::node::Node;
use crate::proxy::Proxy;
use crate::store::{Client, NodeStatus, System};
use crate::tokens;

/// How long a healed cluster may take until all its nodes hold the same state.
pub const CONVERGENCE_DEADLINE: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The parts of a cluster.
#[derive(Clone, Debug)]
pub struct Plan {
    pub system: System,
    pub binary: PathBuf,
    /// Directory of all its files.
    pub folder: PathBuf,
    /// Distinguishes its network from the others of the run.
    pub number: u8,
    pub nodes: u64,
    /// The nodes' file systems, in turn. `None`: a plain directory.
    pub disks: Vec<FileSystem>,
    /// Whether requests between nodes go through proxies.
    pub proxies: bool,
    /// Whether all connections are encrypted, and requests need tokens. Proxies then cannot read requests.
    pub secured: bool,
    pub flags: Vec<String>,
    /// The seeded bug of the server.
    pub bug: Option<Bug>,
    /// Whether all calls that rename and sync files are traced.
    pub traces_renames: bool,
}

/// A seeded bug, which the harness must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bug {
    /// The name by which the server knows it.
    pub name: &'static str,
    /// The only node with the bug; `None` for all nodes.
    pub only: Option<NodeId>,
}

/// The addresses that the load may use at the moment.
pub type Endpoints = Arc<RwLock<Vec<Host>>>;

/// A cluster.
#[derive(Debug)]
pub struct Cluster {
    pub plan: Plan,
    pub network: Network,
    pub nodes: Vec<Node>,
    /// A client that may do everything: with the root token, where requests need one.
    pub client: Client,
    /// Clients of the load: one with a token to write, and one with a token to read.
    pub writer: Client,
    pub reader: Client,
    /// A client without a token.
    pub anyone: Client,
    pub endpoints: Endpoints,
    pub monitor: Monitor,
    next_id: NodeId,
    /// Source of randomness for its proxies.
    random: Rng,
    /// Findings on nodes that were removed.
    findings: Vec<String>,
}

impl Cluster {
    /// Creates the hosts, starts the nodes, and waits until they form a cluster.
    pub async fn start(mut plan: Plan, mut random: Rng) -> Result<Self> {
        std::fs::create_dir_all(&plan.folder).context("cannot create a directory for a cluster")?;
        let network = Network::create(plan.number)?;
        let peers: Result<Vec<_>> = (1..=plan.nodes).map(|id| Ok((id, network.peer_of(id)?))).collect();
        let peers = peers?;
        plan.flags.extend(plan.system.cluster_flags(&peers));
        let mut anyone = plan.system.client();
        let mut client = anyone.clone();
        if plan.secured {
            let certificates = plan.folder.join("certificates");
            let nodes: Vec<_> = peers.iter().map(|(id, peer)| (*id, peer.ip())).collect();
            tls::make_certificates(&plan.binary, &certificates, &nodes)?;
            plan.flags.extend(tls::arguments(&certificates));
            anyone = anyone.with_tls(tls::connector(&certificates, false)?);
            let (root, file) = tokens::make_root(&plan.folder, &mut random)?;
            plan.flags.extend(["--root-token-file".to_owned(), file.display().to_string()]);
            client = anyone.clone().with_token(&root);
        }
        let mut cluster = Cluster {
            network,
            nodes: Vec::new(),
            writer: client.clone(),
            reader: client.clone(),
            client,
            anyone,
            endpoints: Endpoints::default(),
            monitor: Monitor::default(),
            next_id: 1,
            random,
            findings: Vec::new(),
            plan,
        };
        for _ in 0..cluster.plan.nodes {
            cluster.add_node()?;
        }
        for node in &mut cluster.nodes {
            node.start()?;
        }
        cluster.wait_until_all_answer().await?;
        cluster.plan.system.form(&cluster.client, &cluster.nodes).await?;
        cluster.wait_for_leader(CONVERGENCE_DEADLINE).await.context("the new cluster")?;
        if cluster.plan.secured {
            cluster.make_tokens().await?;
        }
        Ok(cluster)
    }

    /// Creates the tokens of the load, and waits until every node knows them.
    async fn make_tokens(&mut self) -> Result<()> {
        let node = self.nodes[0].host.http();
        let writer = tokens::create(&self.client, node, "writer", "write").await?;
        let reader = tokens::create(&self.client, node, "reader", "read").await?;
        self.writer = self.anyone.clone().with_token(&writer);
        self.reader = self.anyone.clone().with_token(&reader);
        self.converge(CONVERGENCE_DEADLINE).await
    }

    /// Creates a node with a new id that does not belong to the cluster, without starting it.
    pub fn create_node(&mut self) -> Result<Node> {
        let id = self.next_id;
        self.next_id += 1;
        let host = self.network.add_host(id)?;
        let folder: &Path = &self.plan.folder.join(format!("node-{id}"));
        std::fs::create_dir_all(folder).context("cannot create a node's directory")?;
        let flags = self.plan.flags.iter().map(|flag| flag.replace("{id}", &id.to_string())).collect();
        let mut node = Node::new(self.plan.system, &self.plan.binary, folder, host, flags);
        node.bug = self.plan.bug.filter(|bug| bug.only.is_none_or(|only| only == id)).map(|bug| bug.name);
        node.traces_renames = self.plan.traces_renames;
        Ok(node)
    }

    /// Creates a node with a new id, without starting it.
    pub fn add_node(&mut self) -> Result<NodeId> {
        let mut node = self.create_node()?;
        let (id, host) = (node.id(), node.host.clone());
        if self.plan.proxies {
            node.proxy = Some(Proxy::start(self.network, &host, host.peer(), self.random.fork())?);
        }
        if !self.plan.disks.is_empty() {
            let file_system = self.plan.disks[(id as usize - 1) % self.plan.disks.len()];
            let folder = self.plan.folder.join(format!("node-{id}"));
            node.disk = Some(Disk::create(file_system, &folder, "data")?);
        }
        if self.plan.system == System::Ours {
            self.monitor.watch(&self.client, &node);
        }
        self.nodes.push(node);
        self.endpoints.write().expect("no thread panics while holding the lock").push(host);
        Ok(id)
    }

    /// Gives a stopped node another address for its peers.
    pub fn move_node(&mut self, id: NodeId) -> Result<()> {
        let (network, random) = (self.network, self.random.fork());
        let node = self.node(id)?;
        node.moves += 1;
        let address = node.host.peer_after(node.moves);
        node.proxy = Some(Proxy::start(network, &node.host, address, random)?);
        Ok(())
    }

    /// Ends a node for good. Clients no longer use it.
    pub fn retire(&mut self, id: NodeId) -> Result<()> {
        self.endpoints.write().expect("no thread panics while holding the lock").retain(|host| host.id != id);
        let place = self.nodes.iter().position(|node| node.id() == id).context("no such node")?;
        let mut node = self.nodes.remove(place);
        node.host.set_rules(&[])?;
        node.kill()?;
        self.findings.extend(node.take_findings());
        Ok(())
    }

    /// Unexpected ends of nodes, and values that went back on a node, since the last call.
    pub fn take_findings(&mut self) -> Result<Vec<Finding>> {
        let mut ends = std::mem::take(&mut self.findings);
        for node in &mut self.nodes {
            node.notice_end()?;
            ends.extend(node.take_findings());
        }
        let went_back = self.monitor.take_findings().into_iter().map(|text| Finding::new(Symptom::WentBack, text));
        Ok(ends.into_iter().map(Finding::other).chain(went_back).collect())
    }

    /// The lines in all nodes' logs that report a panic, including nodes that were removed.
    pub fn panics(&self) -> Result<Vec<String>> {
        let mut panics = Vec::new();
        for id in 1..self.next_id {
            let path = self.plan.folder.join(format!("node-{id}")).join(format!("node-{id}.log"));
            let log = match std::fs::read(&path) {
                Ok(log) => log,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue, // The node was never started.
                Err(error) => return Err(error).with_context(|| format!("cannot read `{}`", path.display())),
            };
            let log = String::from_utf8_lossy(&log);
            let lines = log.lines().filter(|line| line.contains("panicked at"));
            panics.extend(lines.map(|line| format!("node {id}: {line}")));
        }
        Ok(panics)
    }

    /// Ends all nodes, and removes their disks and hosts. Their files stay.
    pub fn close(self) -> Result<()> {
        let Cluster { nodes, network, next_id, .. } = self;
        drop(nodes);
        network.remove(next_id - 1)
    }

    pub fn node(&mut self, id: NodeId) -> Result<&mut Node> {
        self.nodes.iter_mut().find(|node| node.id() == id).with_context(|| format!("no node {id} in the cluster"))
    }

    pub fn ids(&self) -> Vec<NodeId> {
        self.nodes.iter().map(Node::id).collect()
    }

    /// Undoes every fault (rules, proxies, pauses, clocks) and starts the nodes that are not running.
    pub fn heal(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.host.set_rules(&[])?;
            if let Some(proxy) = &node.proxy {
                proxy.behave();
            }
            if node.is_paused() {
                node.resume()?;
            }
            if !node.is_running()? {
                node.start()?;
            }
            node.expect_no_end()?;
        }
        Ok(())
    }

    /// Returns an error if a node has ended.
    pub fn check_that_all_run(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.notice_end()?;
            if !node.is_running()? {
                bail!("node {} is not running:\n{}", node.id(), node.log_tail(10));
            }
        }
        Ok(())
    }

    /// The status of each node that responds.
    pub async fn statuses(&self) -> Vec<(NodeId, NodeStatus)> {
        let asked = self.nodes.iter().map(async |node| {
            let status = self.client.status(node.host.http()).await;
            status.ok().map(|status| (node.id(), status))
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// The leader that a majority of the voters reports.
    pub async fn leader(&self) -> Option<NodeId> {
        let statuses = self.statuses().await;
        // A node that was just added may know the leader, but not the voters.
        let newest =
            statuses.iter().max_by_key(|(_, status)| (status.term, status.leader.is_some(), status.voters.len()))?;
        let leader = newest.1.leader?;
        let followers = statuses
            .iter()
            .filter(|(id, status)| {
                newest.1.voters.contains(id) && status.leader == Some(leader) && status.term == newest.1.term
            })
            .count();
        (followers * 2 > newest.1.voters.len()).then_some(leader)
    }

    pub async fn wait_for_leader(&self, limit: Duration) -> Result<NodeId> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(leader) = self.leader().await {
                return Ok(leader);
            }
            if Instant::now() > deadline {
                bail!("no leader within {limit:?}");
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    async fn wait_until_all_answer(&mut self) -> Result<()> {
        let deadline = Instant::now() + CONVERGENCE_DEADLINE;
        for place in 0..self.nodes.len() {
            while let Err(error) = self.client.status(self.nodes[place].host.http()).await {
                let node = &mut self.nodes[place];
                if !node.is_running()? {
                    bail!("node {} ended:\n{}", node.id(), node.log_tail(10));
                }
                if Instant::now() > deadline {
                    bail!("node {} does not respond: {error:#}\n{}", node.id(), node.log_tail(10));
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
        Ok(())
    }

    /// Waits until all nodes run, agree on a leader, and have applied all entries.
    pub async fn converge(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let statuses = self.statuses().await;
            let first = statuses.first().map(|(_, status)| (status.leader, status.term, status.last_log));
            let agreed = statuses.iter().all(|(_, status)| {
                status.leader.is_some()
                    && status.applied == status.last_log
                    && Some((status.leader, status.term, status.last_log)) == first
            });
            if agreed && statuses.len() == self.nodes.len() {
                return Ok(());
            }
            self.check_that_all_run()?;
            if Instant::now() > deadline {
                bail!("the nodes do not agree within {limit:?}: {statuses:?}");
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}
