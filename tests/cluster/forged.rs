//! RPCs that no node sent: how much harm can one of them do to a cluster?
//!
//! Any client can ask a node for the ids that a forger needs. Rows of single requests are in
//! [`bad_input`](crate::bad_input); here whole clusters must keep working afterwards.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use openraft::Membership;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest};
use openraft::vote::RaftLeaderId;
use raft_key_value::config::EVIDENCE_MIN;
use raft_key_value::network::peer::PeerIdentity;
use raft_key_value::network::rpc_check::SnapshotHead;
use raft_key_value::store::ClusterId;
use raft_key_value::store::snapshot::format;
use raft_key_value::types::{Command, Entry, ExampleNode, LogId, Payload, SnapshotMeta, StoredMembership, Vote};
use raft_key_value::{ExampleStateMachine, NodeId, TypeConfig};
use reqwest::{Body, Method};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::harness::{
    ALL, Answer, CALM, CALM_BUT_QUICK, DEADLINE, Http, Metrics, TestCluster, envelope, envelope_header, eventually,
    framed, identity_of, index_of, others,
};

pub fn vote(term: u64, node_id: NodeId, committed: bool) -> Vote {
    Vote { leader_id: RaftLeaderId::new(term, node_id), committed }
}

fn append(vote: Vote) -> AppendEntriesRequest<TypeConfig> {
    AppendEntriesRequest { vote, prev_log_id: None, entries: Vec::new(), leader_commit: None }
}

pub fn body_of(from: NodeId, to: &PeerIdentity, rpc: impl Serialize) -> Vec<u8> {
    envelope(from, to, to.cluster_id.unwrap(), rpc)
}

/// Asserts that a cluster elects a new leader when it loses the old one, and accepts and keeps writes.
async fn goes_on(cluster: &mut TestCluster) {
    cluster.assert_alive();
    let leader = cluster.leader_of(&ALL).await;
    let others = others(leader);
    cluster.kill(leader);
    cluster.leader_of(&others).await;
    cluster.write(others[0], "k", "after").await;
    cluster.restart(leader).await;
    cluster.leader_of(&ALL).await;
    cluster.value_is(&ALL, "k", "after").await;
    cluster.assert_alive();
}

/// What a forger needs to know to append as the leader of an idle cluster.
struct Forger {
    leader: NodeId,
    /// The node that receives the forged appends.
    to: PeerIdentity,
    vote: Vote,
    /// The last entry in every log.
    last: LogId,
}

impl Forger {
    async fn new(cluster: &TestCluster, ids: &[NodeId]) -> Self {
        let leader = cluster.leader_of(ids).await;
        let behind_leader: Vec<NodeId> = [leader].into_iter().chain(ids.iter().copied()).collect();
        cluster.all_applied(&behind_leader).await;
        let metrics = cluster.metrics(leader).await;
        let follower = ids.iter().copied().find(|id| *id != leader).unwrap();
        Forger {
            leader,
            to: identity_of(cluster, follower).await,
            vote: vote(metrics.current_term, leader, true),
            last: metrics.last_applied.unwrap(),
        }
    }

    fn follower(&self) -> NodeId {
        self.to.node_id
    }

    /// A log id of the leader's term.
    fn log_id(&self, index: u64) -> LogId {
        LogId { leader_id: self.vote.leader_id, index }
    }

    fn entry(&self, index: u64, payload: Payload) -> Entry {
        Entry { log_id: self.log_id(index), payload }
    }

    async fn append(
        &self,
        cluster: &TestCluster,
        prev_log_id: Option<LogId>,
        entries: Vec<Entry>,
        leader_commit: Option<LogId>,
    ) -> Answer {
        let rpc = AppendEntriesRequest::<TypeConfig> { vote: self.vote, prev_log_id, entries, leader_commit };
        cluster.post(self.follower(), "/raft-append", body_of(self.leader, &self.to, rpc)).await
    }

    /// One payload of each kind of entry. The membership has one learner more than the cluster.
    async fn payloads(&self, cluster: &TestCluster) -> [Payload; 3] {
        let membership = cluster.metrics(self.leader).await.membership_config.membership().clone();
        let node = |addr: &str| ExampleNode { addr: addr.to_owned(), incarnation: 0 };
        let mut nodes: BTreeMap<_, _> = membership.nodes().map(|(id, at)| (*id, node(&at.addr))).collect();
        nodes.insert(9, node("127.0.0.1:9"));
        let forged = Membership::new(membership.get_joint_config().clone(), nodes).unwrap();
        let set = Command::Set { key: "forged".into(), value: "forged".into() };
        [Payload::Normal(set), Payload::Membership(forged), Payload::Blank]
    }
}

fn assert_taken(answer: &Answer) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer: AppendEntriesResponse<TypeConfig> = rmp_serde::from_slice(&answer.body).unwrap();
    assert_eq!(answer, AppendEntriesResponse::Success);
}

/// An RPC of a member on a connection that a client thread serves gets its response, and the connection closes, so that
/// the next RPC arrives on a connection of the Raft thread.
///
/// Method: send a client's request and then a heartbeat in the leader's name on the same connection, and read it to its
/// end.
#[tokio::test]
async fn rpcs_leave_the_client_threads() {
    let cluster = TestCluster::form("stray", &ALL, CALM).await;
    let forger = Forger::new(&cluster, &ALL).await;
    let mut stream = TcpStream::connect(cluster.addr(forger.follower())).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"GET /no-such-route HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let mut first = [0; 12];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 404");
    let heartbeat = AppendEntriesRequest { prev_log_id: Some(forger.last), ..append(forger.vote) };
    let body = body_of(forger.leader, &forger.to, heartbeat);
    let head = format!("POST /raft-append HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), &body].concat()).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    let rest = String::from_utf8_lossy(&rest);
    let answer = &rest[rest.find("HTTP/1.1 ").expect("the heartbeat must get a response")..];
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
}

/// Asserts that these nodes reach the same data, without the forged key.
async fn have_the_same(cluster: &TestCluster, ids: &[NodeId]) {
    cluster.all_applied(ids).await;
    let first = cluster.get(ids[0], "/v1/cluster/hash").await.done();
    for id in ids {
        let path = format!("/v1/cluster/hash?applied={}", first["applied_index"]);
        let other = cluster.get(*id, &path).await.done();
        assert_eq!((&other["hash"], &other["revision"]), (&first["hash"], &first["revision"]), "on node {id}");
        assert_eq!(cluster.read(*id, "forged").await.as_deref(), Ok(""), "on node {id}");
    }
}

/// An entry that a node accepted before the leader sent its own under the same log id is never applied. The node
/// reports what happened and exits, the others continue, and it can be replaced.
///
/// Method: in the leader's name, send a heartbeat that commits all future entries. Then send an entry twice, as if a
/// response had been lost, and a third time with another payload. Then the leader writes.
async fn an_entry_before_the_leaders(name: &'static str, kind: usize) {
    let mut cluster = TestCluster::form(name, &ALL, CALM).await;
    cluster.write_many(1, "k", 5).await;
    let forger = Forger::new(&cluster, &ALL).await;
    let (leader, follower) = (forger.leader, forger.follower());
    let third = 6 - leader - follower;
    let (payloads, index) = (forger.payloads(&cluster).await, forger.last.index + 1);
    assert_taken(&forger.append(&cluster, None, vec![], Some(forger.log_id(1 << 40))).await);
    for _ in 0..2 {
        let entry = forger.entry(index, payloads[kind].clone());
        assert_taken(&forger.append(&cluster, Some(forger.last), vec![entry], None).await);
    }
    let other = forger.entry(index, payloads[(kind + 1) % 3].clone());
    let answer = forger.append(&cluster, Some(forger.last), vec![other], None).await;
    answer.assert_error(409, "Conflict", "not_applied");
    let committed = cluster.metrics(follower).await.local_committed;
    assert_eq!(committed, Some(forger.last), "the forged entry must not be committed");
    assert_eq!(cluster.read(follower, "forged").await.as_deref(), Ok(""));

    cluster.write(leader, "k", "after").await;
    assert_eq!(cluster.node_mut(follower).ends().await, Some(65), "{}", cluster.node(follower).log());
    let log = cluster.node(follower).log();
    assert_eq!(log.matches("rejected /raft-append").count(), 1, "{log}");
    let error = log.lines().last().unwrap();
    for part in
        ["error: ", &format!("at index {index} "), &format!("node {leader}"), "empty directory", "members replace"]
    {
        assert!(error.contains(part), "{part} is not in {error}");
    }
    cluster.add_node(4).await;
    cluster.add_learner(leader, 4).await;
    cluster.change_membership(leader, &[leader, third, 4]).await;
    cluster.membership_is(&[leader, third, 4], &[leader, third, 4], &[]).await;
    cluster.value_is(&[leader, third, 4], "k", "after").await;
    have_the_same(&cluster, &[leader, third, 4]).await;
    cluster.assert_alive();
}

#[tokio::test]
async fn a_write_that_was_forged_before_the_leaders() {
    an_entry_before_the_leaders("forged-write", 0).await;
}

#[tokio::test]
async fn a_membership_that_was_forged_before_the_leaders_entry() {
    an_entry_before_the_leaders("forged-members", 1).await;
}

/// A forged entry that arrives after the leader's under the same log id is rejected and stops no node, whether or not
/// the leader's entry is committed.
///
/// Method: kill three of five nodes, so that the leader's write reaches a follower's log but is not committed. Send
/// forged entries of each kind, then restart the three.
#[tokio::test]
async fn a_forged_entry_after_the_leaders() {
    let ids = [1, 2, 3, 4, 5];
    let mut cluster = TestCluster::form("forged-after", &ids, CALM).await;
    cluster.write_many(1, "k", 5).await;
    let forger = Forger::new(&cluster, &ids).await;
    let follower = forger.follower();
    let payloads = forger.payloads(&cluster).await;
    let others: Vec<NodeId> = ids.into_iter().filter(|id| ![forger.leader, follower].contains(id)).collect();
    for id in &others {
        cluster.kill(*id);
    }
    let addr = cluster.addr(forger.leader).to_owned();
    let write = tokio::spawn(async move {
        let body = r#"{"Set":{"key":"k","value":"after"}}"#;
        Http::new().post(&addr, "/write", body).await.map(|answer| answer.status)
    });
    let index = forger.last.index + 1;
    let is_logged = |metrics: &Metrics| (metrics.last_log_index == Some(index)).then_some(());
    cluster.metrics_say(follower, "the leader's write in its log", is_logged).await;
    assert_eq!(cluster.metrics(follower).await.local_committed, Some(forger.last));
    for payload in payloads {
        let entries = vec![forger.entry(index, payload), forger.entry(index + 1, Payload::Blank)];
        let answer = forger.append(&cluster, Some(forger.last), entries, Some(forger.log_id(index + 1))).await;
        answer.assert_error(409, "Conflict", "not_applied");
    }
    for id in others {
        cluster.restart(id).await;
    }
    let status = write.await.unwrap();
    eprintln!("the write returned {status:?}");
    let leader = cluster.leader_of(&ids).await;
    cluster.write(follower, "k", "later").await;
    cluster.value_is(&ids, "k", "later").await;
    have_the_same(&cluster, &[leader, 1, 2, 3, 4, 5]).await;
    cluster.assert_alive();
}

/// Forged entries in place of committed ones change nothing and stop no node, however often they are sent.
///
/// Method: send a follower entries of each kind under the log ids of its last entry and of an earlier one. Repeat them
/// for longer than the node needs to trust what a leader repeats. Then the follower restarts, so that it reads its log,
/// and the cluster elects a leader and writes.
#[tokio::test]
async fn a_forged_entry_over_a_committed_one() {
    let mut cluster = TestCluster::form("forged-over", &ALL, CALM_BUT_QUICK).await;
    let data = cluster.write_many(1, "k", 5).await;
    let forger = Forger::new(&cluster, &ALL).await;
    let follower = forger.follower();
    let last = forger.last;
    let is_committed = |metrics: &Metrics| (metrics.local_committed == Some(last)).then_some(());
    cluster.metrics_say(follower, "the last entry committed", is_committed).await;
    let payloads = forger.payloads(&cluster).await;
    let begun = Instant::now();
    while begun.elapsed() < EVIDENCE_MIN + Duration::from_secs(1) {
        for index in [last.index, last.index - 2] {
            for payload in &payloads {
                let entries = vec![forger.entry(index, payload.clone())];
                let answer = forger.append(&cluster, Some(forger.log_id(index - 1)), entries, None).await;
                assert_eq!(answer.status, 200, "{}", answer.text());
            }
        }
    }
    assert_eq!(cluster.metrics(follower).await.last_log_index, Some(last.index));
    cluster.assert_holds(follower, &data).await;
    cluster.kill(follower);
    cluster.restart(follower).await;
    goes_on(&mut cluster).await;
    for id in ALL {
        cluster.assert_holds(id, &data).await;
    }
    let leader = cluster.leader_of(&ALL).await;
    have_the_same(&cluster, &[leader, 1, 2, 3]).await;
}

/// A forged term is not adopted: every node rejects it, and the cluster still elects a leader and writes.
///
/// Method: send votes, pre-votes, appends and snapshots from each member to each other, in the last possible term and
/// in one that is 2^33 ahead, with and without the header that carries the ids. Then kill the leader.
#[tokio::test]
async fn a_forged_term_ruins_no_cluster() {
    let mut cluster = TestCluster::form("forged-term", &ALL, &[]).await;
    cluster.write(1, "k", "before").await;
    let leader = cluster.leader_of(&ALL).await;
    let own_term = cluster.metrics(leader).await.current_term;
    for to_id in ALL {
        let to = identity_of(&cluster, to_id).await;
        for from in others(to_id) {
            for term in [u64::MAX, own_term + (1 << 33)] {
                let request = VoteRequest::<TypeConfig> {
                    leadership_transfer: true,
                    ..VoteRequest::new(
                        vote(term, from, false),
                        Some(LogId::new(RaftLeaderId::new(own_term, from), 1 << 40)),
                    )
                };
                let head = SnapshotHead { vote: vote(term, from, true), meta: SnapshotMeta::default() };
                let header = envelope_header(from, &to, to.cluster_id.unwrap());
                for (path, body) in [
                    ("/raft-vote", body_of(from, &to, &request)),
                    ("/raft-pre-vote", body_of(from, &to, &request)),
                    ("/raft-append", body_of(from, &to, append(vote(term, from, true)))),
                    ("/raft-snapshot", framed(body_of(from, &to, &head), &[])),
                ] {
                    for headers in [&[][..], &[("raft-envelope", header.as_str())]] {
                        let sent =
                            cluster.http().request(Method::POST, cluster.addr(to_id), path, headers, body.clone());
                        sent.await.unwrap().assert_error(400, "BadRequest", "not_applied");
                    }
                }
            }
        }
    }
    for id in ALL {
        assert!(cluster.metrics(id).await.current_term < 1000, "node {id} adopted a forged term");
        let rejected = cluster.node(id).log().matches("rejected /raft-vote").count();
        assert_eq!(rejected, 1, "node {id} should say once that it rejected votes:\n{}", cluster.node(id).log());
    }
    goes_on(&mut cluster).await;
}

/// An empty snapshot as of a log id: its meta and its file.
pub fn empty_snapshot(last: LogId, membership: &StoredMembership) -> (SnapshotMeta, Vec<u8>) {
    let mut machine = ExampleStateMachine::default();
    machine.last_applied = Some(last);
    machine.last_membership = membership.clone();
    let meta = format::meta_of(&machine);
    let mut file = tempfile::tempfile().unwrap();
    assert!(format::write(&machine, &meta, &mut file).unwrap());
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut file).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    (meta, bytes)
}

/// A forged snapshot replaces no data and stops no node.
///
/// Method: send each node well-formed empty snapshots: of a later term, at the last committed index and beyond it; from
/// the leader in its own term; and from another node in the next term.
#[tokio::test]
async fn a_forged_snapshot_is_not_installed() {
    let mut cluster = TestCluster::form("forged-snapshot", &ALL, CALM).await;
    let data = cluster.write_many(1, "k", 20).await;
    cluster.all_applied(&ALL).await;
    let leader = cluster.leader_of(&ALL).await;
    let metrics = cluster.metrics(leader).await;
    let (term, last) = (metrics.current_term, index_of(metrics.local_committed));
    let membership = StoredMembership::clone(&metrics.membership_config);
    for to_id in ALL {
        let to = identity_of(&cluster, to_id).await;
        let from = if to_id == leader { 1 + leader % 3 } else { leader };
        let other = 6 - from - to_id;
        for (sender, vote_term, last_term, index) in [
            (from, term + 1, term + 1, last),
            (from, term + 1, term + 1, last + 1000),
            (from, term, term, last + 1000),
            (other, term + 1, term, last + 1),
        ] {
            let (meta, file) = empty_snapshot(LogId::new(RaftLeaderId::new(last_term, sender), index), &membership);
            assert!(file.len() < 1000, "{}", file.len());
            let head = SnapshotHead { vote: vote(vote_term, sender, true), meta };
            let answer = cluster.post(to_id, "/raft-snapshot", framed(body_of(sender, &to, &head), &file)).await;
            assert!(matches!(answer.status, 400 | 409), "{} {}", answer.status, answer.text());
            assert_eq!(answer.header("raft-outcome"), "not_applied", "{}", answer.text());
            cluster.assert_alive();
        }
    }
    for id in ALL {
        cluster.assert_holds(id, &data).await;
    }
    goes_on(&mut cluster).await;
}

/// A request for another node, or one that is too long, is rejected before its body is read.
///
/// Method: send only the head of a request with a body of 64 MiB, with wrong ids, or with right ids where such a long
/// body is not accepted. The response must arrive although no byte of the body was sent.
#[tokio::test]
async fn a_rejected_body_is_not_read() {
    let cluster = TestCluster::form("unread", &ALL, CALM).await;
    let to = identity_of(&cluster, 1).await;
    let cluster_id = to.cluster_id.unwrap();
    let wrong = envelope_header(2, &PeerIdentity { incarnation: to.incarnation ^ 1, ..to }, cluster_id);
    let right = envelope_header(2, &to, cluster_id);
    let paths = ["append", "vote", "pre-vote", "snapshot", "transfer-leader", "read-index"];
    for path in paths {
        let answer = head_only(cluster.addr(1), path, &wrong);
        assert!(answer.starts_with("HTTP/1.1 421 ") && answer.contains("WrongNode"), "{path}: {answer}");
        if path != "snapshot" {
            let answer = head_only(cluster.addr(1), path, &right);
            assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("TooLarge"), "{path}: {answer}");
        }
    }
}

/// Sends a head that announces 64 MiB, and returns the response.
fn head_only(addr: &str, path: &str, header: &str) -> String {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(
        stream,
        "POST /raft-{path} HTTP/1.1\r\nhost: {addr}\r\nraft-envelope: {header}\r\ncontent-length: 67108864\r\n\r\n"
    )
    .unwrap();
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    while !answer.ends_with(b"}}}") {
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&part[..count]),
            Err(error) => panic!("{path}: no response: {error}"),
        }
    }
    String::from_utf8(answer).unwrap()
}

/// Forged votes within the bound, sent to one node one after another, leave a cluster that recovers.
///
/// Method: send one node vote requests whose terms each rise by as much as a node accepts. Afterwards every node serves
/// reads and writes under one leader.
#[tokio::test]
async fn votes_within_the_bound_do_not_add_up() {
    const STEP: u64 = 1 << 31;
    let mut cluster = TestCluster::form("forged-steps", &[1, 2, 3], &[]).await;
    let leader = cluster.leader_of(&[1, 2, 3]).await;
    let (to_id, from) = if leader == 1 { (2, 3) } else { (1, 6 - 1 - leader) };
    let to = identity_of(&cluster, to_id).await;
    let first = cluster.metrics(leader).await.current_term;
    let mut statuses = Vec::new();
    for steps in 1..=6 {
        let last = LogId::new(raft_key_value::types::LeaderId { term: first, node_id: leader }, 1 << 40);
        let request = VoteRequest::<TypeConfig>::new(vote(first + steps * STEP, from, false), Some(last));
        let message = envelope(from, &to, to.cluster_id.unwrap(), &request);
        let answer = cluster.post(to_id, "/raft-vote", message).await;
        statuses.push(answer.status);
    }
    // Each step after the first exceeds the bound, unless an election followed the one before it.
    assert!(statuses[0] == 200 && statuses.contains(&400), "{statuses:?}");
    for id in [1, 2, 3] {
        cluster.write(id, "k", &format!("through {id}")).await;
        let read = eventually("a linearizable read", DEADLINE, async || cluster.consistent_read(id, "k").await).await;
        assert_eq!(read, format!("through {id}"));
    }
    cluster.leader_of(&[1, 2, 3]).await;
    cluster.assert_alive();
}

/// A million tiny entries are rejected, and use no more memory than a few times the body that carries them.
///
/// Method: send an append with entries encoded as short as possible, without field names; compare the node's memory
/// before and after.
#[tokio::test]
async fn a_million_entries_are_rejected() {
    let mut cluster = TestCluster::form("million", &[1, 2], CALM).await;
    let leader = cluster.leader_of(&[1, 2]).await;
    let (to_id, from) = (3 - leader, leader);
    let to = identity_of(&cluster, to_id).await;
    let term = cluster.metrics(leader).await.current_term;
    let entries: Vec<_> = (0..1_000_000_u64).map(|index| (((term, from), index), "Blank")).collect();
    let rpc = (vote(term, from, true), Option::<LogId>::None, entries, Option::<LogId>::None);
    let message = rmp_serde::to_vec(&(to.cluster_id.unwrap(), from, to_id, to.incarnation, rpc)).unwrap();
    let (bytes, before) = (message.len(), cluster.node(to_id).memory_kib());
    let answer = cluster.post(to_id, "/raft-append", message).await;
    let after = cluster.node(to_id).memory_kib();
    let fields = answer.assert_error(400, "BadRequest", "not_applied");
    assert!(fields["message"].as_str().unwrap().contains("4096 entries"), "{fields}");
    eprintln!("{bytes} bytes: {before} KiB before, {after} KiB after");
    // One copy for the body as it is read, one for assembling it, and a margin.
    assert!(after < before + 4 * bytes / 1024, "{bytes} bytes took {} KiB", after - before);
    cluster.write(to_id, "k", "v").await;
    cluster.assert_alive();
}

/// RPCs without the header that carries the ids are accepted, as older versions send them; so are those with it.
///
/// Method: send a heartbeat in the leader's name, with and without the header.
#[tokio::test]
async fn a_valid_rpc_is_accepted_with_and_without_its_header() {
    let cluster = TestCluster::form("header", &ALL, CALM).await;
    let leader = cluster.leader_of(&ALL).await;
    let to_id = 1 + leader % 3;
    let to = identity_of(&cluster, to_id).await;
    let term = cluster.metrics(leader).await.current_term;
    let body = body_of(leader, &to, append(vote(term, leader, true)));
    let header = envelope_header(leader, &to, to.cluster_id.unwrap());
    // A later version may append fields.
    let longer = format!("{header}/and/more");
    let all = [&[][..], &[("raft-envelope", header.as_str())], &[("raft-envelope", longer.as_str())]];
    for headers in all {
        let sent = cluster.http().request(Method::POST, cluster.addr(to_id), "/raft-append", headers, body.clone());
        let answer = sent.await.unwrap();
        assert_eq!(answer.status, 200, "{headers:?}: {}", answer.text());
        let answer: AppendEntriesResponse<TypeConfig> = rmp_serde::from_slice(&answer.body).unwrap();
        assert_eq!(answer, AppendEntriesResponse::Success, "{headers:?}");
    }
}

/// A stalled snapshot does not block others: the next one replaces it.
///
/// Method: in the leader's name, send a snapshot whose file never completes, and then another. The second is handled at
/// once, and the first is rejected.
#[tokio::test]
async fn a_snapshot_that_stalls_makes_way() {
    let mut cluster = TestCluster::form("stalled", &ALL, CALM).await;
    let leader = cluster.leader_of(&ALL).await;
    let to_id = 1 + leader % 3;
    let to = identity_of(&cluster, to_id).await;
    let term = cluster.metrics(leader).await.current_term;
    let head = SnapshotHead { vote: vote(term, leader, true), meta: SnapshotMeta::default() };
    let message = framed(body_of(leader, &to, &head), b"not a snapshot");

    let (parts_tx, parts_rx) = mpsc::channel::<Vec<u8>>(1);
    let stalled = stalled_request(cluster.addr(to_id).to_owned(), parts_rx);
    parts_tx.send(message.clone()).await.unwrap();
    let temporary = || cluster.node(to_id).files().into_iter().any(|path| path.extension().is_some_and(|e| e == "tmp"));
    eventually("the first snapshot arrives", DEADLINE, async || temporary().then_some(()).ok_or("no file")).await;
    let started = Instant::now();
    let second = cluster.post(to_id, "/raft-snapshot", message).await;
    second.assert_error(400, "BadRequest", "not_applied");
    assert!(started.elapsed() < Duration::from_secs(9), "the second snapshot waited for {:?}", started.elapsed());
    let first = stalled.await.unwrap();
    first.assert_error(409, "Conflict", "not_applied");
    drop(parts_tx);
    cluster.write(to_id, "k", "v").await;
    cluster.assert_alive();
}

fn stalled_request(addr: String, parts: mpsc::Receiver<Vec<u8>>) -> tokio::task::JoinHandle<Answer> {
    let parts = futures_util::stream::unfold(parts, |mut parts| async move {
        let part = parts.recv().await?;
        Some((Ok::<_, std::io::Error>(part), parts))
    });
    tokio::spawn(async move { Http::new().post(&addr, "/raft-snapshot", Body::wrap_stream(parts)).await.unwrap() })
}

/// An RPC that only asks does not make a node join a cluster, so the node can still join a real one.
///
/// Method: send pre-votes, leader transfers and read-index requests of an invented cluster, with and without the
/// header.
#[tokio::test]
async fn an_rpc_that_only_asks_joins_no_cluster() {
    let cluster = TestCluster::start("forged-join", &[1], CALM).await;
    let (to, invented) = (identity_of(&cluster, 1).await, ClusterId(7));
    let candidate = VoteRequest::<TypeConfig>::new(vote(3, 2, false), Some(LogId::new(RaftLeaderId::new(2, 2), 9)));
    let transfer = TransferLeaderRequest::<TypeConfig>::new(vote(3, 2, true), 1, None);
    let header = envelope_header(2, &to, invented);
    for (path, body, status) in [
        ("/raft-pre-vote", envelope(2, &to, invented, &candidate), 200),
        ("/raft-transfer-leader", envelope(2, &to, invented, &transfer), 409),
        ("/raft-read-index", envelope(2, &to, invented, ()), 503),
    ] {
        for headers in [&[][..], &[("raft-envelope", header.as_str())]] {
            let sent = cluster.http().request(Method::POST, cluster.addr(1), path, headers, body.clone());
            let answer = sent.await.unwrap();
            assert_eq!(answer.status, status, "{path}: {}", answer.text());
            assert_eq!(identity_of(&cluster, 1).await.cluster_id, None, "{path}");
        }
    }
    let metrics = cluster.metrics(1).await;
    assert_eq!((metrics.current_term, metrics.last_log_index), (0, None));
    cluster.post(1, "/init", "").await.ok().unwrap();
    assert_ne!(identity_of(&cluster, 1).await.cluster_id, Some(invented));
}
