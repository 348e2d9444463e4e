//! What a proof of the root token is for, and when nodes without TLS demand one.

use std::collections::BTreeMap;

use openraft::Membership;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest};
use openraft::vote::RaftLeaderId;
use raft_key_value::network;
use raft_key_value::network::peer::{Ids, PeerIdentity};
use raft_key_value::network::rpc_check::SnapshotHead;
use raft_key_value::store::ClusterId;
use raft_key_value::types::{Command, Entry, ExampleNode, LogId, Payload, StoredMembership};
use raft_key_value::{NodeId, TypeConfig};
use reqwest::Method;
use serde::Serialize;
use serde_json::json;

use crate::auth::{ROOT, root_file, secured};
use crate::forged::{empty_snapshot, vote};
use crate::harness::{Answer, CALM, OFTEN, Prover, STEADY, TestCluster, envelope, framed, free_port};

const CLUSTER: ClusterId = ClusterId(7);

/// A captured proof is of no use for another body, on every route on which nodes send one.
///
/// Method: for each of these routes, a request with a proof for its body, which is not rejected for its proof, and one
/// with a proof for another body, which is, and so quickly that nothing is decoded. The bodies are as short and as long as
/// those that are hashed at once and on another thread. (Snapshots have a row in the test below.)
#[tokio::test]
async fn a_proof_is_for_one_body() {
    let cluster = secured("proof-bodies", &[1], CALM).await;
    let prover = Prover::new(ROOT, cluster.http(), cluster.addr(1)).await;
    let of_nodes: Vec<&str> = network::table()
        .iter()
        .filter_map(|endpoint| endpoint.of_nodes)
        .filter(|(method, path)| *method == "post" && *path != "/raft-snapshot")
        .map(|(_, path)| path)
        .collect();
    assert!(of_nodes.len() >= 6 && of_nodes.contains(&"/raft-append") && of_nodes.contains(&"/raft-found"));
    let of_clients = ["/v1/cluster/members", "/v1/cluster/members/9/promote", "/add-learner"];
    for path in of_nodes.into_iter().chain(of_clients) {
        let lengths: &[usize] = if path == "/raft-append" { &[1, 300_000] } else { &[1] };
        for length in lengths {
            let (proven, other) = (vec![b'x'; *length], [&vec![b'x'; length - 1][..], b"y"].concat());
            let right = prover.send(Method::POST, path, &[], &proven, &proven).await;
            assert!(![401, 403].contains(&right.status), "{path}: {} {}", right.status, right.text());
            if path.ends_with("promote") {
                continue; // It has no body, and rejects any.
            }
            let altered = prover.send(Method::POST, path, &[], &proven, &other).await;
            assert_other_body(&altered, path);
        }
    }
    // Nor for a request at another time.
    let time = [("raft-log-time", "1")];
    let proof = prover.proof(&Method::POST, "/raft-append", &[], b"x");
    for (headers, is_proven) in [(&time[..], false), (&[], true)] {
        let headers = [headers, &[("raft-proof", proof.as_str())]].concat();
        let sent = cluster.http().request(Method::POST, cluster.addr(1), "/raft-append", &headers, "x").await.unwrap();
        assert_eq!(sent.status != 401, is_proven, "{headers:?}: {}", sent.text());
    }
    assert_eq!(cluster.get(1, "/v1/cluster").await.done()["members"].as_array().unwrap().len(), 1);
}

#[track_caller]
fn assert_other_body(answer: &Answer, what: &str) {
    assert_eq!(answer.status, 401, "{what}: {}", answer.text());
    assert!(answer.text().contains("for another body"), "{what}: {}", answer.text());
    // Otherwise the sender would send it once more.
    assert_eq!(answer.header("raft-challenge"), "", "{what}");
}

/// Node 1, which the test plays, as it sends RPCs to node 2.
struct Leader<'a> {
    prover: Prover<'a>,
    to: PeerIdentity,
}

impl Leader<'_> {
    fn body(&self, rpc: impl Serialize) -> Vec<u8> {
        envelope(1, &self.to, CLUSTER, rpc)
    }

    fn envelope(&self) -> String {
        let PeerIdentity { node_id, incarnation, .. } = self.to;
        Ids { cluster_id: CLUSTER, from: 1, to: node_id, to_incarnation: incarnation }.header()
    }

    /// Sends an RPC with a proof for the body `proven`.
    async fn send(&self, path: &str, proven: &[u8], body: &[u8]) -> Answer {
        let envelope = self.envelope();
        self.prover.send(Method::POST, path, &[("raft-envelope", &envelope)], proven, body).await
    }

    async fn append(&self, prev_log_id: Option<LogId>, entries: Vec<Entry>) {
        let leader_commit = entries.last().map(|entry| entry.log_id);
        let rpc = AppendEntriesRequest::<TypeConfig> { vote: vote(1, 1, true), prev_log_id, entries, leader_commit };
        let body = self.body(rpc);
        let answer = self.send("/raft-append", &body, &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let answer: AppendEntriesResponse<TypeConfig> = rmp_serde::from_slice(&answer.body).unwrap();
        assert_eq!(answer, AppendEntriesResponse::Success);
    }
}

fn log_id(index: u64) -> LogId {
    LogId { leader_id: RaftLeaderId::new(1, 1), index }
}

fn members(addr: &str) -> Membership<NodeId, ExampleNode> {
    let node = |addr: &str| ExampleNode { addr: addr.to_owned(), incarnation: 0 };
    let nodes = BTreeMap::from([(1, node("127.0.0.1:9")), (2, node(addr))]);
    Membership::new(vec![[1].into()], nodes).unwrap()
}

/// Nodes prove long bodies to each other, too: a snapshot, and entries that are hashed on another thread.
///
/// Method: node 2 joins when node 1 has only a snapshot of the first writes, and then gets values of 1 MiB.
#[tokio::test]
async fn long_bodies_are_proven() {
    let mut cluster = secured("proof-long", &[1], &[CALM, OFTEN].concat()).await;
    cluster.write_many(1, "before-", 150).await;
    let join = cluster.addr(1).to_owned();
    cluster.prepare_node(2, format!("127.0.0.1:{}", free_port()), &["--join", &join]);
    cluster.restart(2).await;
    cluster.membership_is(&[1, 2], &[1, 2], &[]).await;
    cluster.logs(1, &["sending a snapshot"]).await;
    for number in 0..3 {
        let path = format!("/v1/kv/long-{number}");
        cluster.put(2, &path, vec![b'x'; 1 << 20]).await.done();
        assert_eq!(cluster.get(2, &path).await.done()["value"].as_str().unwrap().len(), 1 << 20);
    }
    assert!(!cluster.node(1).log().contains("for another body"));
    assert!(!cluster.node(2).log().contains("for another body"));
}

/// A node that joins with the root token, without TLS, accepts only proven RPCs from its start on, also once it has the
/// first entries of its cluster and has not applied yet that the cluster requires tokens. And an altered snapshot with a
/// valid proof is rejected.
///
/// Method: the test plays the leader, whose first entries do not say that tokens are required. Send RPCs of each kind
/// without a proof, with the root token as a client has it, and with garbage as proof: before the first entries, and
/// after them. Nothing may change. Then send snapshots with proofs for another and for the same file.
#[tokio::test]
async fn a_joining_node_demands_proofs() {
    let mut cluster = TestCluster::start("proof-joining", &[], STEADY).await;
    cluster.set_token(ROOT);
    let join = format!("127.0.0.1:{}", free_port());
    let flags = ["--root-token-file", root_file(ROOT, 0o600), "--join", &join];
    cluster.prepare_node(2, format!("127.0.0.1:{}", free_port()), &flags);
    cluster.restart(2).await;
    let addr = cluster.addr(2).to_owned();
    let prover = Prover::new(ROOT, cluster.http(), &addr).await;
    let introduced = async || {
        let answer = prover.send(Method::GET, "/raft-identity", &[], b"", b"").await;
        serde_json::from_value::<PeerIdentity>(answer.ok().unwrap()).unwrap()
    };
    let to = introduced().await;
    assert_eq!(to.cluster_id, None);
    let leader = Leader { prover: Prover::new(ROOT, cluster.http(), &addr).await, to };

    let forged = async |when: &str| {
        let set = Payload::Normal(Command::Set { key: "forged".into(), value: "forged".into() });
        let append = AppendEntriesRequest::<TypeConfig> {
            vote: vote(1, 1, true),
            prev_log_id: Some(log_id(1)),
            entries: vec![Entry { log_id: log_id(2), payload: set }],
            leader_commit: Some(log_id(2)),
        };
        let candidate = VoteRequest::<TypeConfig>::new(vote(2, 1, false), Some(log_id(1)));
        let stored = StoredMembership::new(Some(log_id(0)), members(&addr));
        let (meta, file) = empty_snapshot(log_id(1), &stored);
        let transfer = TransferLeaderRequest::<TypeConfig>::new(vote(1, 1, true), 2, Some(log_id(1)));
        let rpcs = [
            ("/raft-append", leader.body(append)),
            ("/raft-vote", leader.body(&candidate)),
            ("/raft-pre-vote", leader.body(&candidate)),
            ("/raft-snapshot", framed(leader.body(SnapshotHead { vote: vote(1, 1, true), meta }), &file)),
            ("/raft-transfer-leader", leader.body(transfer)),
            ("/raft-read-index", leader.body(())),
            ("/raft-found", leader.body(())),
        ];
        let envelope = leader.envelope();
        let bearer = format!("Bearer {ROOT}");
        for (path, body) in rpcs {
            for more in [("authorization", ""), ("authorization", &bearer), ("raft-proof", "own/1/01/1/00/00")] {
                let headers = [("raft-envelope", envelope.as_str()), more];
                let sent = cluster.http().request(Method::POST, &addr, path, &headers, body.clone()).await.unwrap();
                assert_eq!(sent.status, 401, "{when}: {path} {more:?}: {}", sent.text());
                assert_eq!(sent.header("raft-challenge").len(), 32, "{when}: {path}");
            }
        }
    };
    forged("before its first entries").await;
    assert_eq!(introduced().await.cluster_id, None);
    let first = Entry { log_id: log_id(0), payload: Payload::Membership(members(&addr)) };
    leader.append(None, vec![first, Entry { log_id: log_id(1), payload: Payload::Blank }]).await;
    assert_eq!(introduced().await.cluster_id, Some(CLUSTER));
    let applied = |metrics: &crate::harness::Metrics| metrics.last_applied.filter(|applied| applied.index == 1);
    cluster.metrics_say(2, "the first entries are applied", applied).await;
    let tokens = cluster.get(2, "/v1/tokens?consistency=stale").await;
    assert!(!tokens.text().contains(r#""required":true"#), "{}", tokens.text());
    forged("after its first entries").await;
    let metrics = cluster.metrics(2).await;
    assert_eq!((metrics.current_term, metrics.last_log_index), (1, Some(1)));

    let stored = StoredMembership::new(Some(log_id(0)), members(&addr));
    let (meta, file) = empty_snapshot(log_id(5), &stored);
    let blanks = (2..=5).map(|index| Entry { log_id: log_id(index), payload: Payload::Blank });
    let snapshot = framed(leader.body(SnapshotHead { vote: vote(1, 1, true), meta }), &file);
    let mut altered = snapshot.clone();
    *altered.last_mut().unwrap() ^= 1;
    leader.append(Some(log_id(1)), blanks.collect()).await;
    assert_other_body(&leader.send("/raft-snapshot", &snapshot, &altered).await, "an altered snapshot");
    let damaged = leader.send("/raft-snapshot", &altered, &altered).await;
    assert!(damaged.status == 400 && damaged.text().contains("damaged"), "{}", damaged.text());
    let right = leader.send("/raft-snapshot", &snapshot, &snapshot).await;
    assert_eq!(right.status, 200, "{}", right.text());
    let answer = cluster.http().get(&addr, "/raft-status").await.unwrap();
    assert_eq!(answer.json()["Ok"]["node"], json!(2), "{}", answer.text());
}
