//! Several nodes, and what a test asks of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use raft_key_value::types::LogId;
use raft_key_value::{ExampleClient, NodeId};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::eventually::{DEADLINE, eventually};
use super::http::{Answer, Http, Metrics};
use super::links::Links;
use super::node::TestNode;

/// Clusters that run at once, however many tests do: their nodes share the machine.
static SLOTS: Semaphore = Semaphore::const_new(3);

/// Waits until another cluster may run, for as long as the permit is held.
pub async fn cluster_slot() -> SemaphorePermit<'static> {
    SLOTS.acquire().await.unwrap()
}

/// Flags for tests that ask a certain node to lead: on a busy machine the
/// defaults would now and then have another one elected in the middle.
pub const CALM: &[&str] =
    &["--heartbeat-interval-ms", "250", "--election-timeout-min-ms", "3000", "--election-timeout-max-ms", "4000"];

/// The same for tests that also restart all nodes, and wait for an election then.
pub const CALM_BUT_QUICK: &[&str] =
    &["--heartbeat-interval-ms", "200", "--election-timeout-min-ms", "1500", "--election-timeout-max-ms", "2000"];

/// Nodes on this machine, with a temporary directory for their data and logs.
pub struct TestCluster {
    name: &'static str,
    nodes: BTreeMap<NodeId, TestNode>,
    flags: Vec<&'static str>,
    umask: Option<&'static str>,
    http: Http,
    directory: TempDir,
    _slot: SemaphorePermit<'static>,
}

impl TestCluster {
    /// Starts nodes that belong to no cluster yet.
    pub async fn start(name: &'static str, ids: &[NodeId], flags: &[&'static str]) -> Self {
        let slot = cluster_slot().await;
        let directory = tempfile::Builder::new().prefix(&format!("rkv-test-{name}-")).tempdir().unwrap();
        let http = Http::new();
        let mut cluster = TestCluster {
            name,
            nodes: BTreeMap::new(),
            flags: flags.to_vec(),
            umask: None,
            http,
            directory,
            _slot: slot,
        };
        for id in ids {
            cluster.add_node(*id).await;
        }
        cluster
    }

    /// Starts nodes, and makes them a cluster of voters that has a leader.
    pub async fn form(name: &'static str, ids: &[NodeId], flags: &[&'static str]) -> Self {
        let cluster = Self::start(name, ids, flags).await;
        let members: Vec<_> = ids.iter().map(|id| json!([id, cluster.addr(*id)])).collect();
        let answer = cluster.post(ids[0], "/init", json!(members).to_string()).await;
        answer.ok().unwrap();
        cluster.leader_of(ids).await;
        cluster
    }

    /// The same, with every link between two nodes one that can be cut.
    pub async fn form_over(links: &Links, name: &'static str, ids: &[NodeId], flags: &[&'static str]) -> Self {
        let mut cluster = Self::start(name, &[], flags).await;
        let mut members = Vec::new();
        for id in ids {
            let (proxy, target_tx) = links.proxy(*id).await;
            let flags: Vec<&str> = flags.iter().copied().chain(["--advertise-addr", &proxy]).collect();
            let node = TestNode::start(*id, cluster.directory.path(), &flags, &cluster.http).await;
            target_tx.send(node.addr.clone()).unwrap();
            cluster.nodes.insert(*id, node);
            members.push(json!([id, proxy]));
        }
        cluster.post(ids[0], "/init", json!(members).to_string()).await.ok().unwrap();
        cluster.leader_of(ids).await;
        cluster
    }

    /// Starts one more node, which belongs to no cluster yet.
    pub async fn add_node(&mut self, id: NodeId) {
        let directory = self.directory.path();
        let node = match self.umask {
            None => TestNode::start(id, directory, &self.flags, &self.http).await,
            Some(umask) => {
                let shell = format!("umask {umask}");
                TestNode::start_after(shell, id, directory, &self.flags, &self.http).await
            }
        };
        let replaced = self.nodes.insert(id, node);
        assert!(replaced.is_none(), "node {id} was there already");
    }

    /// Has nodes that are added from now on start with this umask.
    pub fn set_umask(&mut self, umask: &'static str) {
        self.umask = Some(umask);
    }

    // ---- processes ----

    /// SIGKILL.
    pub fn kill(&mut self, id: NodeId) {
        self.node_mut(id).kill();
    }

    /// SIGTERM; returns the exit code.
    pub async fn stop(&mut self, id: NodeId) -> Option<i32> {
        self.node_mut(id).stop().await
    }

    /// Starts a stopped node again, on its directory and address.
    pub async fn restart(&mut self, id: NodeId) {
        let http = self.http.clone();
        self.node_mut(id).restart(&http).await;
    }

    /// A node.
    pub fn node(&self, id: NodeId) -> &TestNode {
        &self.nodes[&id]
    }

    /// Whether there is such a node, running or not.
    pub fn has(&self, id: NodeId) -> bool {
        self.nodes.contains_key(&id)
    }

    /// A node.
    pub fn node_mut(&mut self, id: NodeId) -> &mut TestNode {
        self.nodes.get_mut(&id).unwrap_or_else(|| panic!("there is no node {id}"))
    }

    // ---- requests ----

    /// The address of a node.
    pub fn addr(&self, id: NodeId) -> &str {
        &self.node(id).addr
    }

    /// A client that turns to a node first.
    pub fn client(&self, id: NodeId) -> ExampleClient {
        ExampleClient::new(id, self.addr(id).to_owned())
    }

    /// What requests are sent with.
    pub fn http(&self) -> &Http {
        &self.http
    }

    /// `POST` to a node that is running.
    pub async fn post(&self, id: NodeId, path: &str, body: impl Into<reqwest::Body>) -> Answer {
        self.http
            .post(self.addr(id), path, body)
            .await
            .unwrap_or_else(|error| panic!("POST {path} on node {id}: {error:?}"))
    }

    /// `POST` to a node that is running, asking not to be passed on.
    pub async fn post_here(&self, id: NodeId, path: &str, body: impl Into<reqwest::Body>) -> Answer {
        let answer = self.http.post_here(self.addr(id), path, body).await;
        answer.unwrap_or_else(|error| panic!("POST {path} on node {id}: {error:?}"))
    }

    /// Writes through a node, as often as it takes.
    pub async fn write(&self, id: NodeId, key: &str, value: &str) {
        let body = json!({"Set": {"key": key, "value": value}}).to_string();
        let what = format!("a write through node {id}");
        eventually(&what, DEADLINE, async || self.try_post(id, "/write", &body).await?.ok()).await;
    }

    /// Writes `<prefix>0`, `<prefix>1`, … through a node, several at a time.
    pub async fn write_many(&self, id: NodeId, prefix: &str, count: usize) -> BTreeMap<String, String> {
        use futures_util::stream::{self, StreamExt};
        let pairs = (0..count).map(|number| (format!("{prefix}{number}"), format!("value {number} of {prefix}")));
        stream::iter(pairs)
            .map(async |(key, value)| {
                self.write(id, &key, &value).await;
                (key, value)
            })
            .buffer_unordered(16)
            .collect()
            .await
    }

    /// What a node holds now.
    pub async fn read(&self, id: NodeId, key: &str) -> Result<String, String> {
        self.value_from("/read", id, key).await
    }

    /// What a node answers linearizably.
    pub async fn consistent_read(&self, id: NodeId, key: &str) -> Result<String, String> {
        self.value_from("/consistent_read", id, key).await
    }

    async fn value_from(&self, path: &str, id: NodeId, key: &str) -> Result<String, String> {
        let value = self.try_post(id, path, &json!(key).to_string()).await?.ok()?;
        Ok(value.as_str().unwrap_or_else(|| panic!("a value is a string, not {value}")).to_owned())
    }

    async fn try_post(&self, id: NodeId, path: &str, body: &str) -> Result<Answer, String> {
        self.http.post(self.addr(id), path, body.to_owned()).await.map_err(|error| format!("{error:?}"))
    }

    /// What a node knows of itself and of the cluster.
    pub async fn metrics(&self, id: NodeId) -> Metrics {
        self.try_metrics(id).await.unwrap_or_else(|error| panic!("GET /metrics on node {id}: {error}"))
    }

    async fn try_metrics(&self, id: NodeId) -> Result<Metrics, String> {
        let answer = self.http.get(self.addr(id), "/metrics").await.map_err(|error| error.to_string())?;
        serde_json::from_value(answer.ok()?).map_err(|error| error.to_string())
    }

    // ---- conditions ----

    /// Waits until these nodes agree on one of them as leader, and returns it.
    pub async fn leader_of(&self, ids: &[NodeId]) -> NodeId {
        eventually(&format!("nodes {ids:?} agree on a leader among them"), DEADLINE, async || {
            let mut seen = Vec::new();
            for id in ids {
                let metrics = self.try_metrics(*id).await?;
                seen.push((*id, metrics.state, metrics.current_leader, metrics.current_term));
            }
            let (_, _, leader, term) = seen[0];
            let agreed = seen.iter().all(|(_, _, other, other_term)| (*other, *other_term) == (leader, term));
            let leads =
                |id| seen.iter().any(|(other, state, ..)| *other == id && *state == openraft::ServerState::Leader);
            match leader {
                Some(leader) if agreed && leads(leader) => Ok(leader),
                _ => Err(format!("{seen:?}")),
            }
        })
        .await
    }

    /// Waits until these nodes have applied all that the first of them has in its log now.
    pub async fn all_applied(&self, ids: &[NodeId]) {
        let wanted = self.metrics(ids[0]).await.last_log_index;
        for id in ids {
            eventually(&format!("node {id} has applied {wanted:?}"), DEADLINE, async || {
                let applied = self.try_metrics(*id).await?.last_applied;
                if applied.map(|log_id| log_id.index) >= wanted { Ok(()) } else { Err(format!("{applied:?}")) }
            })
            .await;
        }
    }

    /// Waits until these nodes have this membership, committed.
    pub async fn membership_is(&self, ids: &[NodeId], voters: &[NodeId], learners: &[NodeId]) {
        for id in ids {
            let what = format!("node {id} knows the voters {voters:?} and the learners {learners:?}");
            eventually(&what, DEADLINE, async || {
                let metrics = self.try_metrics(*id).await?;
                let found = membership_in(&metrics);
                let settled = metrics.membership_config == metrics.committed_membership_config;
                let wanted = (vec![voters.iter().copied().collect()], learners.iter().copied().collect());
                if settled && found == wanted { Ok(()) } else { Err(format!("{found:?}, committed: {settled}")) }
            })
            .await;
        }
    }

    /// Waits until each of these nodes holds this value of a key.
    pub async fn value_is(&self, ids: &[NodeId], key: &str, value: &str) {
        for id in ids {
            eventually(&format!("node {id} holds {key:?} = {value:?}"), DEADLINE, async || {
                match self.read(*id, key).await {
                    Ok(found) if found == value => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await;
        }
    }

    /// Asserts that a node holds all of these now.
    pub async fn assert_holds(&self, id: NodeId, data: &BTreeMap<String, String>) {
        for (key, value) in data {
            assert_eq!(self.read(id, key).await.as_ref(), Ok(value), "on node {id}, of the key {key:?}");
        }
    }

    /// Waits until a node's metrics say what is wanted of them, and returns that.
    pub async fn metrics_say<T>(&self, id: NodeId, what: &str, probe: impl Fn(&Metrics) -> Option<T>) -> T {
        eventually(&format!("node {id}: {what}"), DEADLINE, async || {
            let metrics = self.try_metrics(id).await?;
            probe(&metrics).ok_or_else(|| format!("{metrics}"))
        })
        .await
    }

    /// Asserts that all nodes that were not stopped by the test are alive.
    pub fn assert_alive(&mut self) {
        for node in self.nodes.values_mut().filter(|node| node.is_running()) {
            node.assert_alive();
        }
    }
}

/// The sets of voters (two while a change is under way), and the learners.
fn membership_in(metrics: &Metrics) -> (Vec<BTreeSet<NodeId>>, BTreeSet<NodeId>) {
    let membership = metrics.membership_config.membership();
    (membership.get_joint_config().clone(), membership.learner_ids().collect())
}

/// An index, or 0.
pub fn index_of(log_id: Option<LogId>) -> u64 {
    log_id.map_or(0, |log_id| log_id.index)
}

/// How long something took, for the test's output.
pub fn report(name: &str, what: &str, took: Duration) {
    eprintln!("{name}: {what} took {} ms", took.as_millis());
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        self.directory.disable_cleanup(true);
        eprintln!("---- {} failed; its data and logs stay in {}", self.name, self.directory.path().display());
        for node in self.nodes.values() {
            eprintln!("---- node {}, started as: {}", node.id, node.command_line());
            let log = node.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("{}", lines[lines.len().saturating_sub(200)..].join("\n"));
        }
    }
}
