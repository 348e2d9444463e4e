//! Leader transfer, by request and before a leader stops.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use raft_key_value::NodeId;
use reqwest::Method;
use serde_json::json;
use tokio::task::JoinSet;

use crate::harness::{ALL, Answer, CALM, DEADLINE, Http, Links, STEADY, TestCluster, eventually, others};

async fn transfer(cluster: &TestCluster, through: NodeId, to: NodeId) -> Answer {
    cluster.v1(through, Method::POST, "/v1/cluster/leader", &[], json!({"id": to}).to_string()).await
}

/// Asserts that a transfer is rejected for this reason, and that the leader stays the same.
async fn assert_stays(cluster: &TestCluster, leader: NodeId, to: NodeId, reason: &str) {
    let term = cluster.metrics(leader).await.current_term;
    let error = transfer(cluster, leader, to).await.assert_rejected(409, "conflict");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains(&format!("node {to}")) && message.contains(reason), "{message}");
    let metrics = cluster.metrics(leader).await;
    assert_eq!((metrics.current_term, metrics.current_leader), (term, Some(leader)));
    cluster.write(leader, "after a rejection", reason).await;
}

/// The leadership moves to the voter that a request names, through whichever node it is sent, and is known once the
/// request returns. Nodes that cannot lead are rejected, and nothing changes.
///
/// Method: with election timeouts that never expire, move the leadership through each node, twice to the same one. Then
/// name a learner, an unknown node, and a voter that was killed.
#[tokio::test]
async fn the_leadership_moves_on_request() {
    let mut cluster = TestCluster::form("transfer", &ALL, STEADY).await;
    cluster.add_node(4).await;
    cluster.add_learner(1, 4).await;
    cluster.membership_is(&[1, 2, 3, 4], &ALL, &[4]).await;
    let mut leader = cluster.leader_of(&ALL).await;
    for through in [1, 2, 3, 4] {
        let to = others(leader)[0];
        let before = cluster.metrics(leader).await.current_term;
        let moved = transfer(&cluster, through, to).await.done();
        assert_eq!(moved, json!({"id": to, "address": cluster.addr(to), "term": before + 1}), "through node {through}");
        let repeated = transfer(&cluster, to, to).await.done();
        assert_eq!(repeated, moved, "a repeated request changes nothing");
        cluster.write(through, "k", &format!("{through}")).await;
        leader = cluster.leader_of(&ALL).await;
        assert_eq!(leader, to);
    }
    let follower = others(leader)[0];
    let body = json!({"id": follower}).to_string();
    let answer = cluster.v1(follower, Method::POST, "/v1/cluster/leader", &[("raft-forward", "no")], body).await;
    assert_eq!(answer.assert_rejected(421, "not_leader")["leader"]["id"], leader);

    assert_stays(&cluster, leader, 4, "not a voter").await;
    assert_stays(&cluster, leader, 77, "not a member").await;
    cluster.kill(follower);
    assert_stays(&cluster, leader, follower, "has not responded").await;
}

/// The leadership is not moved to a voter that responds and lacks many entries, and writes continue meanwhile.
///
/// Method: limit the link to a voter to 1 MiB per second, and write 50 MiB in 200 entries.
#[tokio::test]
async fn a_voter_that_is_behind_does_not_become_the_leader() {
    let links = Links::default();
    let cluster = TestCluster::form_over(&links, "transfer-behind", &ALL, CALM).await;
    let leader = cluster.leader_of(&ALL).await;
    let behind = others(leader)[0];
    links.slow_down(behind);
    // Connections that are already open become slow, too.
    let value = "v".repeat(256 << 10);
    let paths = (0..200).map(|number| format!("/v1/kv/key-{number}"));
    let puts = stream::iter(paths).map(async |path| cluster.put(leader, &path, value.clone()).await.done());
    puts.buffer_unordered(16).for_each(async |_| ()).await;
    assert_stays(&cluster, leader, behind, "entries behind").await;
    let up_to_date = others(leader)[1];
    assert_eq!(transfer(&cluster, leader, up_to_date).await.done()["id"], up_to_date);
    links.heal();
    cluster.leader_of(&ALL).await;
}

/// A leader that stops first makes a voter the leader that responds, not one that does not.
///
/// Method: with election timeouts that never expire, pause a follower and stop the leader; then continue the follower.
#[tokio::test]
async fn a_leader_that_stops_hands_over() {
    let mut cluster = TestCluster::form("transfer-stop", &ALL, STEADY).await;
    cluster.write(1, "k", "v").await;
    let leader = cluster.leader_of(&ALL).await;
    cluster.all_applied(&ALL).await;
    let [paused, next] = others(leader)[..] else { panic!("three nodes") };
    cluster.node(paused).pause();
    assert_eq!(cluster.stop(leader).await, Some(0));
    cluster.node(paused).resume();
    assert_eq!(cluster.leader_of(&[paused, next]).await, next);
    assert!(cluster.node(leader).log().contains(&format!("node {next} leads now")));
    cluster.write(paused, "k", "after").await;
    cluster.restart(leader).await;
    cluster.value_is(&ALL, "k", "after").await;
}

/// A rolling restart of all nodes, each of them while it leads, loses no acknowledged write, and costs each client at
/// most one retry per restart. So does moving the leadership by request.
///
/// Method: with election timeouts that never expire, 12 clients put new keys all the time, four through each node, and
/// send a failed put again to the next node with the same `Idempotency-Key`. Make each node the leader in turn, stop
/// it with SIGTERM and restart it. Read every key on every node.
#[tokio::test]
async fn a_rolling_restart_costs_each_client_at_most_one_retry() {
    let mut cluster = TestCluster::form("rolling", &ALL, STEADY).await;
    let clients = Clients::start(&cluster, 12);
    clients.acknowledged_more(100).await;
    for id in ALL {
        clients.next_phase();
        transfer(&cluster, id, id).await.done();
        clients.acknowledged_more(100).await;
        clients.next_phase();
        assert_eq!(cluster.stop(id).await, Some(0), "node {id}");
        clients.acknowledged_more(100).await;
        cluster.restart(id).await;
        cluster.leader_of(&ALL).await;
        clients.acknowledged_more(100).await;
    }
    let (acknowledged, _) = clients.finish(1).await;
    cluster.all_applied(&ALL).await;
    for id in ALL {
        cluster.consistent_read(id, "any").await.unwrap();
        cluster.assert_holds(id, &acknowledged).await;
    }
}

/// A leader transfer by request leaves no outcome unknown: writes wait until the next leader can take them, even those
/// that reach it before a majority has responded to it. If that takes too long, they are rejected as not applied.
///
/// Method: with election timeouts that never expire, 12 clients put new keys all the time, four through each node, while
/// the leadership moves 24 times.
#[tokio::test]
async fn a_transfer_leaves_no_outcome_unknown() {
    let cluster = TestCluster::form("transfer-load", &ALL, STEADY).await;
    let clients = Clients::start(&cluster, 12);
    clients.acknowledged_more(100).await;
    let mut leader = cluster.leader_of(&ALL).await;
    for turn in 0..24 {
        let to = others(leader)[turn % 2];
        clients.next_phase();
        transfer(&cluster, leader, to).await.done();
        leader = to;
        clients.acknowledged_more(30).await;
    }
    // A slow disk may make a client wait for several leaders.
    let (acknowledged, failures) = clients.finish(usize::MAX).await;
    let unknown: Vec<&String> = failures.iter().filter(|failure| !failure.contains("\"not_applied\"")).collect();
    assert!(unknown.is_empty(), "{unknown:#?}");
    cluster.all_applied(&ALL).await;
    cluster.assert_holds(leader, &acknowledged).await;
}

/// Clients that put new keys all the time.
struct Clients {
    shared: Arc<Shared>,
    tasks: JoinSet<Client>,
}

#[derive(Default)]
struct Shared {
    phase: AtomicUsize,
    acknowledged: AtomicUsize,
    is_stopped: AtomicBool,
}

/// What one client has seen.
#[derive(Default)]
struct Client {
    acknowledged: BTreeMap<String, String>,
    /// The failed attempts, by the phase in which they began.
    failures: BTreeMap<usize, Vec<String>>,
}

impl Clients {
    fn start(cluster: &TestCluster, count: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let addrs: Vec<String> = ALL.iter().map(|id| cluster.addr(*id).to_owned()).collect();
        let mut tasks = JoinSet::new();
        for number in 0..count {
            tasks.spawn(Client::default().run(number, addrs.clone(), shared.clone()));
        }
        Clients { shared, tasks }
    }

    fn next_phase(&self) {
        self.shared.phase.fetch_add(1, Ordering::SeqCst);
    }

    async fn acknowledged_more(&self, count: usize) {
        let acknowledged = || self.shared.acknowledged.load(Ordering::SeqCst);
        let wanted = acknowledged() + count;
        let is_done = async || if acknowledged() >= wanted { Ok(()) } else { Err(acknowledged()) };
        eventually(&format!("{wanted} puts are acknowledged"), DEADLINE, is_done).await;
    }

    /// Asserts that no client needed more than so many retries per phase; returns all acknowledged keys, and the failures.
    async fn finish(mut self, retries_max: usize) -> (BTreeMap<String, String>, Vec<String>) {
        self.shared.is_stopped.store(true, Ordering::SeqCst);
        let mut acknowledged = BTreeMap::new();
        let mut all_failures = Vec::new();
        while let Some(client) = self.tasks.join_next().await {
            let client = client.unwrap();
            for (phase, failures) in &client.failures {
                eprintln!("in phase {phase}: {failures:?}");
                assert!(failures.len() <= retries_max, "in phase {phase}: {failures:#?}");
                all_failures.extend(failures.iter().cloned());
            }
            acknowledged.extend(client.acknowledged);
        }
        eprintln!("{} puts acknowledged, {} retries", acknowledged.len(), all_failures.len());
        (acknowledged, all_failures)
    }
}

impl Client {
    async fn run(mut self, number: usize, addrs: Vec<String>, shared: Arc<Shared>) -> Self {
        let http = Http::new();
        let mut node = number;
        for put in 0.. {
            if shared.is_stopped.load(Ordering::SeqCst) {
                break;
            }
            let (key, value) = (format!("{number}-{put}"), format!("value {put}"));
            loop {
                let phase = shared.phase.load(Ordering::SeqCst);
                let addr = &addrs[node % addrs.len()];
                let path = format!("/v1/kv/{key}");
                let headers = [("idempotency-key", key.as_str())];
                let failure = match http.request(Method::PUT, addr, &path, &headers, value.clone()).await {
                    Ok(answer) if answer.status == 200 => break,
                    Ok(answer) => format!("{addr}: {}", answer.text()),
                    Err(error) => format!("{addr}: {error:?}"),
                };
                self.failures.entry(phase).or_default().push(failure);
                node += 1;
            }
            self.acknowledged.insert(key, value);
            shared.acknowledged.fetch_add(1, Ordering::SeqCst);
            // So that reading every key later is quick.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self
    }
}
