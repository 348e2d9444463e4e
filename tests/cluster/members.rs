//! Harmful membership changes are rejected, and members can be removed whether they are alive or dead.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use futures_util::future::join;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};
use raft_key_value::network::peer::Envelope;
use raft_key_value::{NodeId, TypeConfig};
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{ALL, Answer, CALM, CALM_BUT_QUICK, DEADLINE, StandIn, TestCluster, eventually, others, respond};

async fn add_learner(cluster: &mut TestCluster, asked: NodeId, id: NodeId) {
    cluster.add_node(id).await;
    cluster.add_learner(asked, id).await;
}

async fn change(cluster: &TestCluster, asked: NodeId, voters: &[NodeId]) -> Answer {
    cluster.post(asked, "/change-membership", json!(voters).to_string()).await
}

/// Asserts that a change is rejected before it is proposed, with a message that contains all of `named`.
async fn assert_rejected(cluster: &TestCluster, asked: NodeId, voters: &[NodeId], named: &[&str]) {
    let before = cluster.metrics(asked).await;
    let answer = change(cluster, asked, voters).await;
    let fields = answer.assert_error(409, "Conflict", "not_applied");
    let message = fields["message"].as_str().unwrap();
    for name in named {
        assert!(message.contains(name), "{name:?} is not in {message:?}");
    }
    let after = cluster.metrics(asked).await;
    assert_eq!(after.membership_config, before.membership_config, "{voters:?}: {message}");
    cluster.write(asked, "k", &format!("after {voters:?}")).await;
}

async fn remove(cluster: &TestCluster, asked: NodeId, id: NodeId) -> Answer {
    cluster.v1(asked, Method::DELETE, &format!("/v1/cluster/members/{id}"), &[], "").await
}

/// The ids and roles in the response to a removal.
fn roles(answer: &Value) -> Vec<(u64, &str)> {
    let members = answer["members"].as_array().unwrap();
    members.iter().map(|member| (member["id"].as_u64().unwrap(), member["role"].as_str().unwrap())).collect()
}

/// Voters that are down cannot become a majority: the change is rejected before it is proposed, and the message names
/// them.
///
/// Method: with three voters and two killed learners, request every kind of majority that is impossible, through the
/// leader and a follower. Each time the membership stays the same, and writes continue. A change that needs none of the
/// dead nodes succeeds.
#[tokio::test]
async fn a_change_to_dead_voters_is_rejected() {
    let mut cluster = TestCluster::form("dead-learners", &ALL, CALM_BUT_QUICK).await;
    let leader = cluster.leader_of(&ALL).await;
    for id in [4, 5] {
        add_learner(&mut cluster, leader, id).await;
    }
    for id in [4, 5] {
        cluster.kill(id);
    }
    for asked in [leader, others(leader)[0]] {
        assert_rejected(&cluster, asked, &[1, 4, 5], &["new voters [1, 4, 5]", "node 4", "node 5", "not responded"])
            .await;
    }
    for voters in [&[4_u64] as &[u64], &[4, 5], &[2, 4], &[1, 2, 4, 5]] {
        assert_rejected(&cluster, leader, voters, &["node 4", "not responded"]).await;
    }
    let fields = change(&cluster, leader, &[1, 2, 3, 77]).await.assert_error(409, "Conflict", "not_applied");
    assert!(fields["message"].as_str().unwrap().contains("node 77 is not a member"), "{fields}");
    // A majority of these nodes is alive.
    change(&cluster, leader, &[1, 2, 3, 4]).await.ok().unwrap();
    change(&cluster, leader, &ALL).await.ok().unwrap();
    cluster.membership_is(&ALL, &ALL, &[5]).await;
    cluster.write(leader, "k", "v").await;
}

/// A single node does not accept a dead learner as a voter, not even right after its own restart.
#[tokio::test]
async fn a_single_node_accepts_no_dead_voter() {
    let mut cluster = TestCluster::form("single-dead", &[1], &[]).await;
    add_learner(&mut cluster, 1, 2).await;
    cluster.kill(2);
    assert_rejected(&cluster, 1, &[1, 2], &["node 2"]).await;
    assert_rejected(&cluster, 1, &[2], &["node 2"]).await;
    cluster.crash(&[1]).await;
    cluster.write(1, "k", "v").await;
    assert_rejected(&cluster, 1, &[1, 2], &["node 2"]).await;
    cluster.restart(2).await;
    // The change succeeds as soon as node 2 responds.
    eventually("node 2 is a voter", DEADLINE, async || change(&cluster, 1, &[1, 2]).await.ok()).await;
    cluster.membership_is(&[1, 2], &[1, 2], &[]).await;
}

/// A change that leaves a dead or paused voter in a majority is rejected; one that only removes it succeeds.
///
/// Method: stop a follower by SIGSTOP or by SIGKILL. Request a change to the leader and that follower, one to both
/// followers, the removal of the other follower, and the removal of the stopped one.
#[tokio::test]
async fn a_change_that_only_removes_the_dead_succeeds() {
    for paused in [true, false] {
        let mut cluster = TestCluster::form("removes-dead", &ALL, CALM_BUT_QUICK).await;
        let leader = cluster.leader_of(&ALL).await;
        let (alive, dead) = (others(leader)[0], others(leader)[1]);
        if paused {
            cluster.node(dead).pause();
        } else {
            cluster.kill(dead);
        }
        let named = format!("node {dead} has not responded");
        assert_rejected(&cluster, leader, &[leader, dead], &[&named]).await;
        assert_rejected(&cluster, alive, &[alive, dead], &[&named]).await;
        let answer = remove(&cluster, alive, alive).await;
        let message = answer.assert_rejected(409, "conflict")["message"].take();
        assert!(message.as_str().unwrap().contains(&named), "{message}");
        change(&cluster, leader, &[leader, alive]).await.ok().unwrap();
        cluster.membership_is(&[leader, alive], &[leader, alive], &[]).await;
        if paused {
            cluster.node(dead).resume();
        }
        cluster.write(alive, "k", "v").await;
    }
}

/// A slow heartbeat does not delay the check: the leader queries the voters at once.
///
/// Method: with a heartbeat every 20 s, a change that needs a paused follower is rejected within 10 s. It succeeds
/// after the follower has resumed.
#[tokio::test]
async fn slow_heartbeats_do_not_delay_the_check() {
    const SLOW: &[&str] = &[
        "--heartbeat-interval-ms",
        "20000",
        "--election-timeout-min-ms",
        "45000",
        "--election-timeout-max-ms",
        "60000",
    ];
    let cluster = TestCluster::form("slow-heartbeats", &ALL, SLOW).await;
    let leader = cluster.leader_of(&ALL).await;
    let paused = others(leader)[0];
    change(&cluster, leader, &ALL).await.ok().unwrap();
    cluster.node(paused).pause();
    let asked_at = Instant::now();
    assert_rejected(&cluster, leader, &[leader, paused], &[&format!("node {paused} has not responded")]).await;
    assert!(asked_at.elapsed() < Duration::from_secs(10), "{:?}", asked_at.elapsed());
    cluster.node(paused).resume();
    change(&cluster, leader, &[leader, paused]).await.ok().unwrap();
}

/// A newly elected leader knows nothing about the other nodes yet, and queries them before it decides.
///
/// Method: kill the leader. The first response of the new one that is neither 503 nor 504 is a success.
#[tokio::test]
async fn a_new_leader_asks_before_it_decides() {
    let mut cluster = TestCluster::form("new-leader", &ALL, &[]).await;
    let leader = cluster.leader_of(&ALL).await;
    cluster.kill(leader);
    let rest = others(leader);
    let answer = eventually("a new leader responds", DEADLINE, async || {
        let answer = change(&cluster, rest[0], &rest).await;
        if answer.status == 503 || answer.status == 504 { Err(answer.text()) } else { Ok(answer) }
    })
    .await;
    answer.ok().unwrap();
    cluster.membership_is(&rest, &rest, &[]).await;
}

/// A learner that responds to heartbeats but lacks the log cannot become a voter; the message says how far it is
/// behind.
///
/// Method: a stand-in for node 9 responds to heartbeats, and never to appends with entries.
#[tokio::test]
async fn a_learner_that_lags_is_not_made_a_voter() {
    let cluster = TestCluster::form("lagging", &[1], CALM).await;
    cluster.write_many(1, "k", 300).await;
    let stand_in = StandIn::start(|path, body, stream| match path {
        "/raft-identity" => {
            respond(stream, "200 OK", br#"{"Ok":{"node_id":9,"cluster_id":null,"incarnation":5,"format_level":5}}"#)
        }
        "/raft-append" => {
            let sent: Envelope<AppendEntriesRequest<TypeConfig>> = rmp_serde::from_slice(body).unwrap();
            if sent.rpc.entries.is_empty() {
                let success = AppendEntriesResponse::<TypeConfig>::Success;
                respond(stream, "200 OK", &rmp_serde::to_vec_named(&success).unwrap());
            }
        }
        _ => respond(stream, "503 Service Unavailable", b""),
    });
    let (http, addr) = (cluster.http().clone(), cluster.addr(1).to_owned());
    let body = json!([9, stand_in.addr]).to_string();
    let adding = tokio::spawn(async move { http.post(&addr, "/add-learner", body).await.unwrap() });
    cluster.membership_is(&[1], &[1], &[9]).await;
    assert_rejected(&cluster, 1, &[1, 9], &["node 9 responds", "entries"]).await;
    assert_rejected(&cluster, 1, &[9], &["node 9 responds", "entries"]).await;
    remove(&cluster, 1, 9).await.done();
    // The leader stops waiting for a learner that was removed.
    let answer = adding.await.unwrap();
    answer.assert_error(504, "OutcomeUnknown", "unknown");
}

/// A member can be removed whether it is alive or dead, a learner, a voter or the leader, and through any node.
///
/// Method: five voters and two learners. Remove a dead and a live learner, a dead and a live voter, each through
/// another node, and the leader through itself. Repeat each removal.
#[tokio::test]
async fn members_are_removed() {
    let mut cluster = TestCluster::form("remove", &[1, 2, 3, 4, 5], CALM_BUT_QUICK).await;
    let leader = cluster.leader_of(&[1, 2, 3, 4, 5]).await;
    for id in [6, 7] {
        add_learner(&mut cluster, leader, id).await;
    }
    let rest: Vec<NodeId> = (1..=5).filter(|id| *id != leader).collect();
    cluster.kill(6);
    cluster.kill(rest[0]);
    let removals = [(6, leader), (7, rest[1]), (rest[0], rest[2]), (rest[1], rest[1])];
    let mut left: BTreeSet<NodeId> = (1..=7).collect();
    for (removed, asked) in removals {
        let answer = remove(&cluster, asked, removed).await.done();
        left.remove(&removed);
        assert_eq!(answer["removed"], removed);
        let expected: Vec<(u64, &str)> = left
            .iter()
            .map(|id| {
                (
                    *id,
                    if *id > 5 {
                        "learner"
                    } else if *id == leader {
                        "leader"
                    } else {
                        "voter"
                    },
                )
            })
            .collect();
        assert_eq!(roles(&answer), expected, "{answer}");
        let leader_member = answer["members"].as_array().unwrap().iter().find(|member| member["id"] == leader);
        assert_eq!(leader_member.unwrap()["address"], cluster.addr(leader));
        let fields = remove(&cluster, leader, removed).await.assert_rejected(404, "member_not_found");
        assert!(fields["message"].as_str().unwrap().contains(&format!("node {removed} ")), "{fields}");
    }
    // Afterwards no voter may fail any more.
    let answer = cluster.v1(leader, Method::DELETE, &format!("/v1/cluster/members/{leader}?force"), &[], "").await;
    let answer = answer.done();
    assert_eq!(roles(&answer), [(rest[2], "voter"), (rest[3], "voter")], "{answer}");
    cluster.leader_of(&rest[2..]).await;
    cluster.membership_is(&rest[2..], &rest[2..], &[]).await;
    cluster.write(rest[2], "k", "v").await;
    for id in [0_u64, 77] {
        let answer = cluster.delete(rest[2], &format!("/v1/cluster/members/{id}")).await;
        let (status, code) = if id == 0 { (400, "invalid_node_id") } else { (404, "member_not_found") };
        answer.assert_rejected(status, code);
    }
    remove(&cluster, rest[3], rest[3]).await.done();
    cluster.leader_of(&rest[2..3]).await;
    let fields = remove(&cluster, rest[2], rest[2]).await.assert_rejected(409, "conflict");
    assert!(fields["message"].as_str().unwrap().contains("only voter"), "{fields}");
    cluster.write(rest[2], "k", "alone").await;
}

/// Repeats a request as long as it returns 503, which means that it was not applied.
async fn until_not_503(what: &str, mut send: impl AsyncFnMut() -> Answer) -> Answer {
    eventually(what, DEADLINE, async || {
        let answer = send().await;
        if answer.status == 503 { Err(answer.text()) } else { Ok(answer) }
    })
    .await
}

/// A leader that is removed still responds, even if the only voter left becomes leader before it learns of the commit.
///
/// Method: ten rounds in a cluster of two, with the shortest ticks allowed. Remove the leader through itself, by either
/// route; each response is a success within 10 s. Then add it again with an empty directory. The log still names the
/// former node with its id as the only voter once, but that does not make it lead.
#[tokio::test]
async fn a_leader_that_is_removed_responds() {
    const QUICK: &[&str] = &["--heartbeat-interval-ms", "20"];
    let mut cluster = TestCluster::form("leader-leaves", &[1, 2], QUICK).await;
    for round in 0..10 {
        let leader = cluster.leader_of(&[1, 2]).await;
        let other = 3 - leader;
        // On a busy machine a node may miss such quick heartbeats. Then the request returns 503.
        let answer = until_not_503("the leader leaves", async || {
            let asked_at = Instant::now();
            let answer = if round % 2 == 0 {
                remove(&cluster, leader, leader).await
            } else {
                change(&cluster, leader, &[other]).await
            };
            assert!(asked_at.elapsed() < Duration::from_secs(10), "round {round} took {:?}", asked_at.elapsed());
            answer
        })
        .await;
        if round % 2 == 0 {
            let answer = answer.done();
            // On a busy machine the other node may already be the leader.
            let roles = roles(&answer);
            assert!(roles == [(other, "voter")] || roles == [(other, "leader")], "{answer}");
        } else {
            let answer = answer.ok().unwrap();
            assert_eq!(answer["membership"]["configs"], json!([[other]]), "{answer}");
            assert!(answer["log_id"]["index"].as_u64() > Some(0), "{answer}");
        }
        cluster.leader_of(&[other]).await;
        cluster.membership_is(&[other], &[other], &[]).await;
        cluster.kill(leader);
        fs::remove_dir_all(cluster.node(leader).directory()).unwrap();
        cluster.restart(leader).await;
        let learner = json!([leader, cluster.addr(leader)]).to_string();
        let added = until_not_503("the removed node is added", async || {
            cluster.post(other, "/add-learner", learner.clone()).await
        })
        .await;
        added.ok().unwrap();
        let changed = until_not_503("the node is a voter again", async || change(&cluster, other, &[1, 2]).await).await;
        changed.ok().unwrap();
        cluster.membership_is(&[1, 2], &[1, 2], &[]).await;
    }
}

/// The id of a learner with a lost disk is free once the learner was removed. A removed learner that returns with its
/// disk knows that it was removed.
///
/// Method: kill a learner and start it with an empty directory: its id is rejected. Remove it and add it again: it gets
/// the data and becomes a voter. Remove another learner and restart it on its old directory: it reports that it was
/// removed.
#[tokio::test]
async fn a_removed_learner_frees_its_id() {
    let mut cluster = TestCluster::form("remove-number", &[1], CALM).await;
    cluster.write(1, "k", "v").await;
    for id in [2, 3] {
        add_learner(&mut cluster, 1, id).await;
        cluster.kill(id);
    }
    fs::remove_dir_all(cluster.node(2).directory()).unwrap();
    cluster.restart(2).await;
    let learner = json!([2, cluster.addr(2)]).to_string();
    let fields = cluster.post(1, "/add-learner", learner.clone()).await.assert_error(409, "Conflict", "not_applied");
    assert!(fields["message"].as_str().unwrap().contains("members remove 2"), "{fields}");
    for id in [2, 3] {
        remove(&cluster, 1, id).await.done();
    }
    cluster.membership_is(&[1], &[1], &[]).await;
    cluster.post(1, "/add-learner", learner).await.ok().unwrap();
    change(&cluster, 1, &[1, 2]).await.ok().unwrap();
    cluster.membership_is(&[1, 2], &[1, 2], &[]).await;
    assert_eq!(cluster.consistent_read(2, "k").await.as_deref(), Ok("v"));

    cluster.restart(3).await;
    eventually("node 3 reports that it was removed", DEADLINE, async || {
        let answer = cluster.post(3, "/consistent_read", r#""k""#).await;
        if answer.status == 503 && answer.error().0 == "NotMember" { Ok(()) } else { Err(answer.text()) }
    })
    .await;
}

/// Two removals that are harmless alone, but not together, are decided one after the other.
///
/// Method: with one of three voters dead, remove both others of the leader at once. The membership must match the
/// responses, and the cluster must accept writes.
#[tokio::test]
async fn simultaneous_removals_are_decided_one_after_the_other() {
    let mut cluster = TestCluster::form("remove-at-once", &[1, 2, 3], CALM_BUT_QUICK).await;
    let leader = cluster.leader_of(&ALL).await;
    let (first, second) = (others(leader)[0], others(leader)[1]);
    cluster.kill(second);
    // Without `first`, the leader would be left with only the dead node.
    let remove_at_last = async |id| loop {
        let answer = remove(&cluster, leader, id).await;
        // A removal that arrives between the two steps of the other one has an unknown outcome, so repeat it.
        if answer.status != 504 {
            break answer;
        }
    };
    let (removed, rejected) = join(remove_at_last(second), remove_at_last(first)).await;
    let mut left = BTreeSet::from(ALL);
    for (answer, id) in [(removed, second), (rejected, first)] {
        match answer.status {
            // 404 if the first attempt succeeded.
            200 | 404 => drop(left.remove(&id)),
            _ => drop(answer.assert_rejected(409, "conflict")),
        }
    }
    let left: Vec<NodeId> = left.into_iter().collect();
    let alive: Vec<NodeId> = left.iter().copied().filter(|id| *id != second).collect();
    cluster.membership_is(&alive, &left, &[]).await;
    cluster.write(leader, "k", "v").await;
}

/// An endless response costs the node that reads it neither memory nor time, and results in a clear error.
///
/// Method: a server at a learner's address sends without end: quickly, slowly, after announcing 4 GiB, or within the
/// head. Another server returns a valid identity, and then endless responses to every RPC.
#[tokio::test]
async fn an_endless_response_is_not_read() {
    let cluster = TestCluster::form("endless", &[1], CALM).await;
    cluster.post(1, "/add-learner", r#"[9,"127.0.0.1:1"]"#).await.assert_error(503, "Unreachable", "not_applied");
    let before = cluster.node(1).memory_peak_kib();
    const GROWTH_KIB_MAX: usize = 24 << 10;
    const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
    let begin_chunked = format!("{HEAD}transfer-encoding: chunked\r\n\r\n");
    let chunk = [b"10000\r\n".as_slice(), &[b' '; 0x10000], b"\r\n"].concat();
    let slow = [b"1\r\n ".as_slice(), b"\r\n"].concat();
    let rows: Vec<(&str, String, Vec<u8>, u64)> = vec![
        ("endless chunks", begin_chunked.clone(), chunk.clone(), 0),
        ("a chunk now and then", begin_chunked.clone(), slow, 50),
        ("a length of 4 GiB", format!("{HEAD}content-length: 4294967296\r\n\r\n"), chunk.clone(), 0),
        ("no length", format!("{HEAD}connection: close\r\n\r\n"), chunk.clone(), 0),
        ("an endless head", HEAD.to_owned(), b"x-filler: abcdefghijklmnopqrstuvwxyz\r\n".to_vec(), 0),
    ];
    for (what, begin, piece, pause_ms) in rows {
        eprintln!("{what}");
        let endless = StandIn::start(move |_, _, stream| send_without_end(stream, begin.as_bytes(), &piece, pause_ms));
        let asked_at = Instant::now();
        let answer = cluster.post(1, "/add-learner", json!([9, endless.addr]).to_string()).await;
        assert!(matches!(answer.status, 409 | 503), "{what}: {} {}", answer.status, answer.text());
        assert_eq!(answer.header("raft-outcome"), "not_applied", "{what}");
        assert!(asked_at.elapsed() < Duration::from_secs(10), "{what} took {:?}", asked_at.elapsed());
        let grown = cluster.node(1).memory_peak_kib().saturating_sub(before);
        assert!(grown < GROWTH_KIB_MAX, "{what}: the node grew by {grown} KiB");
    }

    let addr_of_member = StandIn::start(move |path, _, stream| match path {
        "/raft-identity" => {
            respond(stream, "200 OK", br#"{"Ok":{"node_id":9,"cluster_id":null,"incarnation":5,"format_level":5}}"#)
        }
        _ => send_without_end(stream, begin_chunked.as_bytes(), &chunk, 0),
    });
    let (http, addr) = (cluster.http().clone(), cluster.addr(1).to_owned());
    let body = json!([9, addr_of_member.addr]).to_string();
    let adding = tokio::spawn(async move { http.post(&addr, "/add-learner", body).await.unwrap() });
    eventually("the node logs that the response is too long", DEADLINE, async || {
        let log = cluster.node(1).log();
        if log.matches("longer than").count() > 0 { Ok(()) } else { Err("not yet") }
    })
    .await;
    cluster.write(1, "k", "v").await;
    remove(&cluster, 1, 9).await.done();
    assert_eq!(adding.await.unwrap().status, 504);
    let grown = cluster.node(1).memory_peak_kib().saturating_sub(before);
    assert!(grown < GROWTH_KIB_MAX, "the node grew by {grown} KiB");
}

fn send_without_end(stream: &mut TcpStream, begin: &[u8], piece: &[u8], pause_ms: u64) {
    let mut result = stream.write_all(begin);
    while result.is_ok() {
        // This sets the pace of the stand-in; the test does not wait for it.
        std::thread::sleep(Duration::from_millis(pause_ms));
        result = stream.write_all(piece);
    }
}
