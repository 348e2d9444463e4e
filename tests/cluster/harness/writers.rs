//! Clients that write without pause, and record the outcome of each write.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use raft_key_value::error::Outcome;
use raft_key_value::{ExampleClient, ExampleRequest, NodeId};
use tokio::task::JoinSet;

use super::cluster::TestCluster;
use super::eventually::{DEADLINE, eventually};

/// The outcome of each write. No key is written twice.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Keys that must exist.
    pub acknowledged: BTreeMap<String, String>,
    /// Keys that may exist.
    pub unknown: BTreeMap<String, String>,
    /// Keys that must not exist.
    pub not_applied: BTreeMap<String, String>,
}

/// Tasks that write until this is dropped.
pub struct Writers {
    history: Arc<Mutex<History>>,
    stopped: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Writers {
    /// Starts writers that use these nodes, and move to the next one after an error. Their keys start with `prefix`.
    pub fn start(cluster: &TestCluster, ids: &[NodeId], count: usize, prefix: &str) -> Self {
        let history = Arc::new(Mutex::new(History::default()));
        let stopped = Arc::new(AtomicBool::new(false));
        let nodes: Vec<(NodeId, String)> = ids.iter().map(|id| (*id, cluster.addr(*id).to_owned())).collect();
        let mut tasks = JoinSet::new();
        for writer in 0..count {
            let prefix = format!("{prefix}-{writer}");
            tasks.spawn(write_on(nodes.clone(), writer, prefix, history.clone(), stopped.clone()));
        }
        Writers { history, stopped, tasks }
    }

    /// Waits until this many further writes are acknowledged.
    pub async fn acknowledged_more(&self, count: usize) {
        let acknowledged = || self.history.lock().unwrap().acknowledged.len();
        let wanted = acknowledged() + count;
        let what = format!("{wanted} writes are acknowledged");
        eventually(&what, DEADLINE, async || {
            let found = acknowledged();
            if found >= wanted { Ok(()) } else { Err(found) }
        })
        .await;
    }

    /// Lets each writer finish its write, and returns all outcomes.
    pub async fn finish(mut self) -> History {
        self.stopped.store(true, Ordering::Relaxed);
        while let Some(result) = self.tasks.join_next().await {
            result.unwrap();
        }
        let history = self.history.lock().unwrap().clone();
        eprintln!(
            "writers: {} acknowledged, {} unknown, {} not applied",
            history.acknowledged.len(),
            history.unknown.len(),
            history.not_applied.len()
        );
        history
    }
}

async fn write_on(
    nodes: Vec<(NodeId, String)>,
    first: usize,
    prefix: String,
    history: Arc<Mutex<History>>,
    stopped: Arc<AtomicBool>,
) {
    // Pause between writes, so that checking every key later is quick, and longer after an error, to leave time for an
    // election.
    const PAUSE: Duration = Duration::from_millis(2);
    const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(50);
    let client_of = |attempt: usize| {
        let (id, addr) = nodes[attempt % nodes.len()].clone();
        ExampleClient::new(id, addr)
    };
    let mut attempt = first;
    let mut client = client_of(attempt);
    for number in 0.. {
        if stopped.load(Ordering::Relaxed) {
            return;
        }
        let (key, value) = (format!("{prefix}-{number}"), format!("value-{prefix}-{number}"));
        let result = client.write(&ExampleRequest::Set { key: key.clone(), value: value.clone() }).await;
        let failed = result.is_err();
        {
            let mut history = history.lock().unwrap();
            match result {
                Ok(_) => history.acknowledged.insert(key, value),
                Err(error) if error.outcome() == Outcome::NotApplied => history.not_applied.insert(key, value),
                Err(_) => history.unknown.insert(key, value),
            };
        }
        if failed {
            attempt += 1;
            client = client_of(attempt);
        }
        tokio::time::sleep(if failed { PAUSE_AFTER_ERROR } else { PAUSE }).await;
    }
}

impl History {
    /// Asserts that a node has every key that must exist, and none that must not.
    pub async fn assert_on(&self, cluster: &TestCluster, id: NodeId) {
        for (key, value) in &self.acknowledged {
            let found =
                eventually("a linearizable read", DEADLINE, async || cluster.consistent_read(id, key).await).await;
            assert_eq!(&found, value, "on node {id}, acknowledged key {key:?}");
        }
        // After a linearizable read, the node's own state has every write before it.
        cluster.assert_holds(id, &self.acknowledged).await;
        for (key, value) in &self.unknown {
            let found = cluster.read(id, key).await.unwrap();
            assert!(
                found.is_empty() || found == *value,
                "on node {id}: {key:?} = {found:?}, only {value:?} was written"
            );
        }
        for key in self.not_applied.keys() {
            let found = cluster.read(id, key).await.unwrap();
            assert_eq!(found, "", "on node {id}: {key:?} was reported as not applied");
        }
    }
}
