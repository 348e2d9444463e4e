//! What survives kill, stop and pause.

use std::time::{Duration, Instant};

use crate::harness::{ALL, Answer, CALM, DEADLINE, Http, TestCluster, Writers, eventually, others, report};

/// The death of the leader costs an election, and no acknowledged write.
///
/// Method: write without pause through all nodes, and kill -9 the leader. Writes must be acknowledged again. Restart
/// it: it catches up, and every node holds every acknowledged write and no rejected one.
#[tokio::test]
async fn writes_continue_after_the_leader_is_killed() {
    let mut cluster = TestCluster::form("kill-leader", &ALL, &[]).await;
    let writers = Writers::start(&cluster, &ALL, 3, "w");
    writers.acknowledged_more(30).await;
    let leader = cluster.leader_of(&ALL).await;
    cluster.kill(leader);
    let killed = Instant::now();
    let rest = others(leader);
    let next_leader = cluster.leader_of(&rest).await;
    writers.acknowledged_more(1).await;
    report("kill-leader", "the next acknowledged write", killed.elapsed());
    assert_ne!(next_leader, leader);
    writers.acknowledged_more(30).await;

    cluster.restart(leader).await;
    let history = writers.finish().await;
    cluster.leader_of(&ALL).await;
    cluster.all_applied(&[rest[0], rest[1], leader]).await;
    for id in ALL {
        history.assert_on(&cluster, id).await;
    }
}

/// Every acknowledged write survives the death of all nodes at once.
///
/// Method: write without pause, and kill -9 and restart all three nodes. Read every acknowledged key on every node,
/// linearizably and from the node's own state. Do so twice, since a restarted cluster must survive it too.
#[tokio::test]
async fn all_acknowledged_writes_survive_the_death_of_all() {
    let mut cluster = TestCluster::form("kill-all", &ALL, &[]).await;
    for round in 1..=2 {
        let started = Instant::now();
        let writers = Writers::start(&cluster, &ALL, 4, &format!("round-{round}"));
        writers.acknowledged_more(60).await;
        for id in ALL {
            cluster.kill(id);
        }
        let history = writers.finish().await;
        cluster.restart_all(&ALL).await;
        for id in ALL {
            history.assert_on(&cluster, id).await;
        }
        report("kill-all", "a round", started.elapsed());
    }
}

/// The first linearizable read that succeeds after a restart of all nodes sees the last acknowledged write.
///
/// Method: write, kill -9 all nodes at the moment of the acknowledgement, restart them, and read on each node from the
/// moment it listens. Run several rounds, since a wrong response would only occur within milliseconds.
#[tokio::test]
async fn the_first_linearizable_read_after_a_restart_is_not_stale() {
    let mut cluster = TestCluster::form("first-read", &ALL, &[]).await;
    for round in 1..=5 {
        let value = format!("round {round}");
        cluster.write(1, "k", &value).await;
        for id in ALL {
            cluster.kill(id);
        }
        for id in ALL {
            cluster.restart(id).await;
        }
        let first = async |id| {
            let what = format!("node {id} reads linearizably");
            eventually(&what, DEADLINE, async || cluster.consistent_read(id, "k").await).await
        };
        let found = tokio::join!(first(1), first(2), first(3));
        assert_eq!(found, (value.clone(), value.clone(), value), "in round {round}, on nodes 1, 2 and 3");
    }
}

/// A leader that is killed and restarted at once does not continue to lead in its term.
///
/// It may have lost entries that it sent before they were on its own disk, and that the others acknowledged. In the
/// same term it would give other entries the same log ids.
///
/// Method: kill -9 and restart the leader before any follower misses it. The next leader, whichever node it is, must
/// lead in a later term.
#[tokio::test]
async fn a_restarted_leader_must_be_elected_again() {
    let mut cluster = TestCluster::form("restored", &ALL, CALM).await;
    cluster.write(1, "k", "v").await;
    let leader = cluster.leader_of(&ALL).await;
    let term = cluster.metrics(leader).await.current_term;
    cluster.kill(leader);
    cluster.restart(leader).await;
    cluster.write(leader, "k", "again").await;
    let next_leader = cluster.leader_of(&ALL).await;
    let next_term = cluster.metrics(next_leader).await.current_term;
    assert!(next_term > term, "node {next_leader} leads in term {next_term}, and node {leader} led in term {term}");
}

/// A restarted node serves a stale read only once it knows that it is up to date.
///
/// Method: kill -9 all three nodes and start one of them. It cannot know what the others have, so it must reject reads.
/// With a second node, both serve them.
#[tokio::test]
async fn a_node_that_has_not_recovered_does_not_read() {
    let mut cluster = TestCluster::form("recovering", &ALL, &[]).await;
    cluster.write(1, "k", "v").await;
    cluster.all_applied(&ALL).await;
    for id in ALL {
        cluster.kill(id);
    }
    cluster.restart(1).await;
    let answer = cluster.post(1, "/read", r#""k""#).await;
    answer.assert_error(503, "Recovering", "not_applied");
    assert_eq!(answer.header("retry-after"), "1");
    let answer = cluster.post(1, "/consistent_read", r#""k""#).await;
    assert_eq!((answer.status, answer.header("raft-outcome")), (503, "not_applied"), "{}", answer.text());
    cluster.restart(2).await;
    cluster.value_is(&[1, 2], "k", "v").await;
}

/// SIGTERM stops a node gracefully: exit code 0, within the time that requests may take, and no acknowledged write is
/// lost.
///
/// Method: send SIGTERM to the leader under writes, which continue with another leader. Restart it. Then send SIGTERM
/// to all three under writes, restart them, and read everything.
#[tokio::test]
async fn sigterm_loses_nothing() {
    let mut cluster = TestCluster::form("sigterm", &ALL, &[]).await;
    let writers = Writers::start(&cluster, &ALL, 3, "w");
    writers.acknowledged_more(20).await;
    let leader = cluster.leader_of(&ALL).await;
    let started = Instant::now();
    assert_eq!(cluster.stop(leader).await, Some(0), "the leader, node {leader}");
    report("sigterm", "stopping the leader under writes", started.elapsed());
    writers.acknowledged_more(20).await;
    cluster.restart(leader).await;
    cluster.leader_of(&ALL).await;
    writers.acknowledged_more(20).await;
    for id in ALL {
        let started = Instant::now();
        assert_eq!(cluster.stop(id).await, Some(0), "node {id}");
        report("sigterm", &format!("stopping node {id} under writes"), started.elapsed());
    }
    let history = writers.finish().await;
    cluster.restart_all(&ALL).await;
    for id in ALL {
        history.assert_on(&cluster, id).await;
    }
}

/// Without a majority, neither writes nor linearizable reads succeed, and the responses say whether a write may be
/// applied.
///
/// Method: kill -9 both followers. Write and read on the leader until it notices that it is alone. Restart the
/// followers: a write reported as not applied must not exist, and new writes succeed. Then do the same with a follower
/// that is left alone.
#[tokio::test]
async fn a_minority_neither_writes_nor_reads() {
    let mut cluster = TestCluster::form("minority", &ALL, &[]).await;
    let leader = cluster.leader_of(&ALL).await;
    cluster.write(leader, "k", "old").await;
    for alone in [leader, others(leader)[0]] {
        cluster.leader_of(&ALL).await;
        cluster.all_applied(&ALL).await;
        let rest = others(alone);
        for id in &rest {
            cluster.kill(*id);
        }
        let mut rejected = Vec::new();
        // Eventually the node knows that it has no majority, and rejects writes at once.
        eventually("a write is rejected at once", DEADLINE, async || {
            let started = Instant::now();
            let key = format!("alone-{alone}-{}", rejected.len());
            let body = serde_json::json!({"Set": {"key": key, "value": "v"}}).to_string();
            let answer = cluster.post(alone, "/write", body).await;
            let (_, fields) = answer.error();
            match answer.status {
                503 => assert_eq!(answer.header("raft-outcome"), "not_applied", "{}", answer.text()),
                504 => assert_eq!(answer.header("raft-outcome"), "unknown", "{}", answer.text()),
                other => panic!("{other} {}", answer.text()),
            }
            assert_eq!(fields["outcome"], answer.header("raft-outcome"), "{}", answer.text());
            rejected.push((key, answer.status == 503));
            if started.elapsed() < Duration::from_secs(1) { Ok(()) } else { Err(answer.text()) }
        })
        .await;
        let answer = cluster.post(alone, "/consistent_read", r#""k""#).await;
        assert!(matches!(answer.status, 503 | 504), "{} {}", answer.status, answer.text());
        assert_eq!(answer.header("raft-outcome"), "not_applied", "a read changes nothing: {}", answer.text());
        assert_eq!(cluster.read(alone, "k").await.as_deref(), Ok("old"), "the node must still serve its own state");

        for id in &rest {
            cluster.restart(*id).await;
        }
        cluster.leader_of(&ALL).await;
        let value = format!("after {alone} was alone");
        cluster.write(alone, "k2", &value).await;
        for id in ALL {
            assert_eq!(cluster.consistent_read(id, "k2").await, Ok(value.clone()), "on node {id}");
            for (key, not_applied) in &rejected {
                let found = cluster.read(id, key).await.unwrap();
                assert!(found.is_empty() || !not_applied, "{key:?} = {found:?}: the write was reported as not applied");
            }
        }
    }
}

/// A leader that was paused while another one was elected does not serve stale reads.
///
/// Method: SIGSTOP the leader, write through the next one, and SIGCONT. A linearizable read on the old leader must see
/// the write, or be rejected.
#[tokio::test]
async fn a_paused_leader_serves_no_stale_reads() {
    let cluster = TestCluster::form("paused", &ALL, &[]).await;
    cluster.write(1, "k", "old").await;
    let leader = cluster.leader_of(&ALL).await;
    cluster.all_applied(&ALL).await;
    cluster.node(leader).pause();
    let rest = others(leader);
    cluster.leader_of(&rest).await;
    cluster.write(rest[0], "k", "new").await;
    cluster.node(leader).resume();
    eventually("a linearizable read on the old leader", DEADLINE, async || {
        let found = cluster.consistent_read(leader, "k").await;
        assert_ne!(found.as_deref(), Ok("old"), "a linearizable read returned an overwritten value");
        if found.as_deref() == Ok("new") { Ok(()) } else { Err(found) }
    })
    .await;
    cluster.value_is(&ALL, "k", "new").await;
}

/// A restarted node does not report its state before it has loaded it: never term 0 or an empty log.
///
/// Method: kill and restart one node ten times while requesting `/metrics`. The first response and all later ones show
/// at least the term from before.
#[tokio::test]
async fn a_node_reports_no_term_that_it_never_had() {
    let mut cluster = TestCluster::form("first-metrics", &[1], &[]).await;
    let addr = cluster.addr(1).to_owned();
    let term_of = |answer: &Answer| answer.done()["Ok"]["vote"]["leader_id"]["term"].as_u64().unwrap();
    for _ in 0..10 {
        let before = term_of(&cluster.http().get(&addr, "/metrics").await.unwrap());
        assert!(before > 0);
        cluster.kill(1);
        let http = Http::new();
        let ask = async {
            let mut answers = 0;
            while answers < 20 {
                match http.get(&addr, "/metrics").await {
                    Ok(answer) => {
                        answers += 1;
                        let term = term_of(&answer);
                        assert!(term >= before, "term {term} after term {before}, in response {answers}");
                    }
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        tokio::join!(ask, cluster.restart(1));
    }
}
