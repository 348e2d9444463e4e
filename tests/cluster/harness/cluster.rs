//! Several nodes, and the requests that tests send to them.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use raft_key_value::tls::{ClientTls, issue};
use raft_key_value::types::LogId;
use raft_key_value::{ExampleClient, NodeId};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::eventually::{DEADLINE, eventually};
use super::http::{Answer, Http, Metrics};
use super::links::Links;
use super::node::TestNode;
use super::process::BINARY;

/// Limits how many clusters run at once, whatever the number of tests, since their nodes share the machine.
static SLOTS: Semaphore = Semaphore::const_new(3);

thread_local! {
    /// Slots of the test on this thread.
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// The right to run clusters.
pub struct Slot {
    _permit: Option<SemaphorePermit<'static>>,
}

/// Waits until another cluster may run, for as long as the slot is held. Further clusters of the same test do not wait:
/// tests that wait for one another's slots would wait forever.
pub async fn cluster_slot() -> Slot {
    let permit = if HELD.get() == 0 { Some(SLOTS.acquire().await.unwrap()) } else { None };
    HELD.set(HELD.get() + 1);
    Slot { _permit: permit }
}

impl Drop for Slot {
    fn drop(&mut self) {
        HELD.set(HELD.get() - 1);
    }
}

/// Flags for tests that need the same leader throughout: with the defaults, a busy machine would sometimes elect
/// another one.
pub const CALM: &[&str] =
    &["--heartbeat-interval-ms", "250", "--election-timeout-min-ms", "3000", "--election-timeout-max-ms", "4000"];

/// The same for tests that also restart all nodes, and then wait for an election.
pub const CALM_BUT_QUICK: &[&str] =
    &["--heartbeat-interval-ms", "200", "--election-timeout-min-ms", "1500", "--election-timeout-max-ms", "2000"];

/// The same for tests that never need another leader, and must not get one.
pub const STEADY: &[&str] =
    &["--heartbeat-interval-ms", "1000", "--election-timeout-min-ms", "30000", "--election-timeout-max-ms", "60000"];

/// Flags for snapshots and purges so frequent that a test with some hundred writes sees several.
pub const OFTEN: &[&str] = &["--snapshot-entries", "50", "--snapshot-keep-entries", "20"];

/// The nodes of most clusters.
pub const ALL: [NodeId; 3] = [1, 2, 3];

/// The nodes of [`ALL`] except this one.
pub fn others(id: NodeId) -> Vec<NodeId> {
    ALL.into_iter().filter(|other| *other != id).collect()
}

/// Makes a CA, and certificates for nodes 1 to 5 and a client.
pub fn make_certificates(directory: &Path) {
    let hosts = vec!["127.0.0.1".to_owned()];
    let nodes: Vec<_> = (1..=5).map(|id| issue::NewNode { id, hosts: hosts.clone() }).collect();
    issue::init(directory, &nodes, 90).unwrap();
}

/// Nodes on this machine, with a temporary directory for their data and logs.
pub struct TestCluster {
    name: &'static str,
    nodes: BTreeMap<NodeId, TestNode>,
    flags: Vec<&'static str>,
    umask: Option<&'static str>,
    /// The program of nodes that are added, if it is not the one under test.
    program: Option<PathBuf>,
    http: Http,
    has_tls: bool,
    directory: TempDir,
    _slot: Slot,
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
            program: None,
            http,
            has_tls: false,
            directory,
            _slot: slot,
        };
        for id in ids {
            cluster.add_node(*id).await;
        }
        cluster
    }

    /// Makes all further requests have this token.
    pub fn set_token(&mut self, token: &str) {
        self.http = self.http.clone().with_token(token);
    }

    /// Starts nodes, and forms a cluster of voters with a leader.
    pub async fn form(name: &'static str, ids: &[NodeId], flags: &[&'static str]) -> Self {
        let cluster = Self::start(name, ids, flags).await;
        cluster.found(ids).await;
        cluster
    }

    /// Forms a cluster of running nodes, with a leader.
    pub async fn found(&self, ids: &[NodeId]) {
        let members: Vec<_> = ids.iter().map(|id| json!([id, self.addr(*id)])).collect();
        self.post(ids[0], "/init", json!(members).to_string()).await.ok().unwrap();
        self.leader_of(ids).await;
    }

    /// The same over TLS, with the certificates of `tls init` for nodes 1 to 5 and a client.
    pub async fn form_tls(name: &'static str, ids: &[NodeId], flags: &[&'static str]) -> Self {
        let mut cluster = Self::start_tls(name, flags).await;
        for id in ids {
            cluster.add_node(*id).await;
        }
        cluster.found(ids).await;
        cluster
    }

    /// No node yet, and those that are added speak TLS.
    pub async fn start_tls(name: &'static str, flags: &[&'static str]) -> Self {
        let mut cluster = Self::start(name, &[], flags).await;
        make_certificates(&cluster.tls_directory());
        cluster.has_tls = true;
        cluster.http = Http::with_tls(&cluster.client_tls().config());
        cluster
    }

    /// Where the certificates are.
    pub fn tls_directory(&self) -> PathBuf {
        self.directory.path().join("tls")
    }

    /// The settings of a client with the client's certificate, read from the current files.
    pub fn client_tls(&self) -> ClientTls {
        let file = |name: &str| self.tls_directory().join(name);
        ClientTls::from_files(&file("ca.pem"), &file("client.pem"), &file("client-key.pem")).unwrap()
    }

    /// Makes further requests use the client's current files.
    pub fn read_client_files(&mut self) {
        self.http = Http::with_tls(&self.client_tls().config());
    }

    /// The same, with links between the nodes that can be cut.
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

    /// Starts another node, which belongs to no cluster yet.
    pub async fn add_node(&mut self, id: NodeId) {
        let directory = self.directory.path();
        let tls = self.tls_directory();
        let tls = [("cert", format!("node-{id}.pem")), ("key", format!("node-{id}-key.pem")), ("ca", "ca.pem".into())]
            .map(|(flag, name)| format!("--tls-{flag}={}", tls.join(name).display()));
        let tls = tls.iter().filter(|_| self.has_tls).map(String::as_str);
        let flags: Vec<&str> = self.flags.iter().copied().chain(tls).collect();
        let node = match self.umask {
            None => {
                let program = self.program.as_deref().unwrap_or(Path::new(BINARY));
                TestNode::start_program(program, id, directory, &flags, &self.http).await
            }
            Some(umask) => {
                let shell = format!("umask {umask}");
                TestNode::start_after(shell, id, directory, &self.flags, &self.http).await
            }
        };
        let replaced = self.nodes.insert(id, node);
        assert!(replaced.is_none(), "node {id} already exists");
    }

    /// Adds a node at this address without starting it: `restart` does.
    pub fn prepare_node(&mut self, id: NodeId, addr: String, flags: &[&str]) {
        let flags: Vec<&str> = self.flags.iter().copied().chain(flags.iter().copied()).collect();
        let node = TestNode::at(addr, id, self.directory.path(), &flags);
        let replaced = self.nodes.insert(id, node);
        assert!(replaced.is_none(), "node {id} already exists");
    }

    /// Starts a stopped node, waits until it exits by itself, and returns its exit code.
    pub async fn exits(&mut self, id: NodeId) -> Option<i32> {
        let http = self.http.clone();
        let node = self.node_mut(id);
        match node.try_to_start(&http).await {
            Ok(()) => node.ends().await,
            Err(code) => code,
        }
    }

    /// Deletes the data of a stopped node.
    pub fn wipe(&self, id: NodeId) {
        std::fs::remove_dir_all(self.node(id).directory()).unwrap();
    }

    /// Waits until a line of a node's log contains all of these parts.
    pub async fn logs(&self, id: NodeId, parts: &[&str]) {
        eventually(&format!("node {id} logs {parts:?}"), DEADLINE, async || {
            let log = self.node(id).log();
            let is_said = log.lines().any(|line| parts.iter().all(|part| line.contains(part)));
            if is_said { Ok(()) } else { Err(log) }
        })
        .await;
    }

    /// Makes nodes that are added later start with this umask.
    pub fn set_umask(&mut self, umask: &'static str) {
        self.umask = Some(umask);
    }

    /// Makes nodes that are added later run this program.
    pub fn set_program(&mut self, program: &Path) {
        self.program = Some(program.to_owned());
    }

    // ---- processes ----

    /// Sends SIGKILL.
    pub fn kill(&mut self, id: NodeId) {
        self.node_mut(id).kill();
    }

    /// Sends SIGTERM; returns the exit code.
    pub async fn stop(&mut self, id: NodeId) -> Option<i32> {
        self.node_mut(id).stop().await
    }

    /// Restarts a stopped node on its directory and address.
    pub async fn restart(&mut self, id: NodeId) {
        let http = self.http.clone();
        self.node_mut(id).restart(&http).await;
    }

    /// Restarts stopped nodes, and waits until they have a leader.
    pub async fn restart_all(&mut self, ids: &[NodeId]) {
        for id in ids {
            self.restart(*id).await;
        }
        self.leader_of(ids).await;
    }

    /// Kills nodes, restarts them, and waits until they have a leader.
    pub async fn crash(&mut self, ids: &[NodeId]) {
        for id in ids {
            self.kill(*id);
        }
        self.restart_all(ids).await;
    }

    /// Crashes nodes that must not have more open files than this from then on.
    pub async fn limit_files(&mut self, ids: &[NodeId], files_max: u64) {
        for id in ids {
            self.node_mut(*id).limit_files(files_max);
        }
        self.crash(ids).await;
    }

    /// A node of the cluster, running or not.
    pub fn node(&self, id: NodeId) -> &TestNode {
        &self.nodes[&id]
    }

    /// Whether the cluster has this node, running or not.
    pub fn has(&self, id: NodeId) -> bool {
        self.nodes.contains_key(&id)
    }

    /// The same, for changing it.
    pub fn node_mut(&mut self, id: NodeId) -> &mut TestNode {
        self.nodes.get_mut(&id).unwrap_or_else(|| panic!("no node {id}"))
    }

    // ---- requests ----

    /// The address of a node, as `HOST:PORT`.
    pub fn addr(&self, id: NodeId) -> &str {
        &self.node(id).addr
    }

    /// A client that tries a node first.
    pub fn client(&self, id: NodeId) -> ExampleClient {
        ExampleClient::new(id, self.addr(id).to_owned())
    }

    /// The HTTP client of the tests.
    pub fn http(&self) -> &Http {
        &self.http
    }

    /// Sends a `POST` to a running node.
    pub async fn post(&self, id: NodeId, path: &str, body: impl Into<reqwest::Body>) -> Answer {
        self.http
            .post(self.addr(id), path, body)
            .await
            .unwrap_or_else(|error| panic!("POST {path} on node {id}: {error:?}"))
    }

    /// Sends a `POST` that must not be forwarded to a running node.
    pub async fn post_here(&self, id: NodeId, path: &str, body: impl Into<reqwest::Body>) -> Answer {
        let answer = self.http.post_here(self.addr(id), path, body).await;
        answer.unwrap_or_else(|error| panic!("POST {path} on node {id}: {error:?}"))
    }

    /// Adds a node of this cluster as a learner; returns the content of the response.
    pub async fn add_learner(&self, through: NodeId, id: NodeId) -> Value {
        self.post(through, "/add-learner", json!([id, self.addr(id)]).to_string()).await.ok().unwrap()
    }

    /// Makes these nodes the voters; returns the content of the response.
    pub async fn change_membership(&self, through: NodeId, voters: &[NodeId]) -> Value {
        self.post(through, "/change-membership", json!(voters).to_string()).await.ok().unwrap()
    }

    /// Writes through a node, retrying until it succeeds.
    pub async fn write(&self, id: NodeId, key: &str, value: &str) {
        let body = json!({"Set": {"key": key, "value": value}}).to_string();
        let what = format!("a write through node {id}");
        eventually(&what, DEADLINE, async || self.try_post(id, "/write", &body).await?.ok()).await;
    }

    /// Writes the keys `<prefix>0`, `<prefix>1`, … through a node, several at a time; returns them with their values.
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

    /// Reads a key from a node's own state; a missing key is empty.
    pub async fn read(&self, id: NodeId, key: &str) -> Result<String, String> {
        self.value_from("/read", id, key).await
    }

    /// Reads a key linearizably through a node; a missing key is empty.
    pub async fn consistent_read(&self, id: NodeId, key: &str) -> Result<String, String> {
        self.value_from("/consistent_read", id, key).await
    }

    async fn value_from(&self, path: &str, id: NodeId, key: &str) -> Result<String, String> {
        let value = self.try_post(id, path, &json!(key).to_string()).await?.ok()?;
        Ok(value.as_str().unwrap_or_else(|| panic!("a value must be a string, got {value}")).to_owned())
    }

    async fn try_post(&self, id: NodeId, path: &str, body: &str) -> Result<Answer, String> {
        self.http.post(self.addr(id), path, body.to_owned()).await.map_err(|error| format!("{error:?}"))
    }

    /// A node's metrics.
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

    /// Waits until these nodes have applied all entries that the first of them has in its log now.
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

    /// Waits until these nodes have committed this membership.
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

    /// Waits until each of these nodes has this value of a key in its own state.
    pub async fn value_is(&self, ids: &[NodeId], key: &str, value: &str) {
        for id in ids {
            eventually(&format!("node {id} has {key:?} = {value:?}"), DEADLINE, async || {
                match self.read(*id, key).await {
                    Ok(found) if found == value => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await;
        }
    }

    /// Asserts that a node's own state has all of these keys and values now.
    pub async fn assert_holds(&self, id: NodeId, data: &BTreeMap<String, String>) {
        for (key, value) in data {
            assert_eq!(self.read(id, key).await.as_ref(), Ok(value), "on node {id}, key {key:?}");
        }
    }

    /// Waits until `probe` finds something in a node's metrics, and returns it; `what` names it in a failure.
    pub async fn metrics_say<T>(&self, id: NodeId, what: &str, probe: impl Fn(&Metrics) -> Option<T>) -> T {
        eventually(&format!("node {id}: {what}"), DEADLINE, async || {
            let metrics = self.try_metrics(id).await?;
            probe(&metrics).ok_or_else(|| format!("{metrics}"))
        })
        .await
    }

    /// Asserts that all nodes that the test did not stop are alive.
    pub fn assert_alive(&mut self) {
        for node in self.nodes.values_mut().filter(|node| node.is_running()) {
            node.assert_alive();
        }
    }
}

/// The sets of voters (two during a joint membership change), and the learners.
fn membership_in(metrics: &Metrics) -> (Vec<BTreeSet<NodeId>>, BTreeSet<NodeId>) {
    let membership = metrics.membership_config.membership();
    (membership.get_joint_config().clone(), membership.learner_ids().collect())
}

/// The index of a log id, or 0.
pub fn index_of(log_id: Option<LogId>) -> u64 {
    log_id.map_or(0, |log_id| log_id.index)
}

/// Prints how long something took.
pub fn report(name: &str, what: &str, took: Duration) {
    eprintln!("{name}: {what} took {} ms", took.as_millis());
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        self.directory.disable_cleanup(true);
        eprintln!("---- {} failed; its data and logs are kept in {}", self.name, self.directory.path().display());
        for node in self.nodes.values() {
            eprintln!("---- node {}, started as: {}", node.id, node.command_line());
            let log = node.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("{}", lines[lines.len().saturating_sub(200)..].join("\n"));
        }
    }
}
