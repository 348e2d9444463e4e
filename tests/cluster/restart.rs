//! What is left after kill, stop and pause.

use std::time::{Duration, Instant};

use crate::harness::{Answer, CALM, DEADLINE, Http, TestCluster, Writers, eventually, report};

const ALL: [u64; 3] = [1, 2, 3];

/// The nodes other than one.
fn others(id: u64) -> Vec<u64> {
    ALL.into_iter().filter(|other| *other != id).collect()
}

/// The death of the leader costs an election, and no acknowledged write.
///
/// Method: write without pause through all nodes; kill -9 the leader; writes
/// must be acknowledged again; start it again; it catches up, and every node
/// holds every acknowledged write and no refused one.
#[tokio::test]
async fn writes_go_on_after_the_leader_is_killed() {
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

/// What was acknowledged before all nodes died at once is there when they are back.
///
/// Method: write without pause; kill -9 all three under the writes; start them
/// again; read every acknowledged key on every node, linearizably and from the
/// node's own state. Twice, since a restarted cluster must survive it too.
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
        for id in ALL {
            cluster.restart(id).await;
        }
        cluster.leader_of(&ALL).await;
        for id in ALL {
            history.assert_on(&cluster, id).await;
        }
        report("kill-all", "a round", started.elapsed());
    }
}

/// The first linearizable read that succeeds after a restart of all sees the last acknowledged write.
///
/// Method: write, kill -9 all at the moment of the acknowledgement, start all,
/// and read on each node from the moment it listens. Several rounds, since the
/// answer to catch is given within milliseconds.
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
        assert_eq!(found, (value.clone(), value.clone(), value), "in round {round}, on the nodes 1, 2 and 3");
    }
}

/// A leader that was killed and comes back at once does not lead on in its term.
///
/// It may have forgotten entries that it had sent before it had them on its own
/// disk, and that the others acknowledged: in the same term it would give other
/// entries the same log ids.
///
/// Method: kill -9 the leader and start it again before anyone misses it; the
/// next leader, whichever node it is, must lead in a later term.
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

/// A node that was just started answers a stale read only once it knows that it is up to date.
///
/// Method: kill -9 all three, start one of them alone: it cannot know what the
/// others have, so it must refuse. With a second one, both answer.
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

/// SIGTERM ends a node in order: exit code 0, within the time that requests may
/// take, and no acknowledged write is lost.
///
/// Method: SIGTERM the leader under writes, which go on with another leader;
/// start it again; then SIGTERM all three under writes, start all, read all.
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
    for id in ALL {
        cluster.restart(id).await;
    }
    cluster.leader_of(&ALL).await;
    for id in ALL {
        history.assert_on(&cluster, id).await;
    }
}

/// Without a majority there is neither a write nor a linearizable read, and the
/// answers say what became of the write.
///
/// Method: kill -9 both followers; write and read on the leader until it finds
/// out that it is alone; start the followers; a write that was said not to be
/// applied must not be there, and new ones work. Then the same with a follower
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
        let mut refused = Vec::new();
        // Sooner or later the node knows that it has no majority, and says so at once.
        eventually("a write is refused at once", DEADLINE, async || {
            let started = Instant::now();
            let key = format!("alone-{alone}-{}", refused.len());
            let body = serde_json::json!({"Set": {"key": key, "value": "v"}}).to_string();
            let answer = cluster.post(alone, "/write", body).await;
            let (_, fields) = answer.error();
            match answer.status {
                503 => assert_eq!(answer.header("raft-outcome"), "not_applied", "{}", answer.text()),
                504 => assert_eq!(answer.header("raft-outcome"), "unknown", "{}", answer.text()),
                other => panic!("{other} {}", answer.text()),
            }
            assert_eq!(fields["outcome"], answer.header("raft-outcome"), "{}", answer.text());
            refused.push((key, answer.status == 503));
            if started.elapsed() < Duration::from_secs(1) { Ok(()) } else { Err(answer.text()) }
        })
        .await;
        let answer = cluster.post(alone, "/consistent_read", r#""k""#).await;
        assert!(matches!(answer.status, 503 | 504), "{} {}", answer.status, answer.text());
        assert_eq!(answer.header("raft-outcome"), "not_applied", "a read changes nothing: {}", answer.text());
        assert_eq!(cluster.read(alone, "k").await.as_deref(), Ok("old"), "its own state can be read all the same");

        for id in &rest {
            cluster.restart(*id).await;
        }
        cluster.leader_of(&ALL).await;
        let value = format!("after {alone} was alone");
        cluster.write(alone, "k2", &value).await;
        for id in ALL {
            assert_eq!(cluster.consistent_read(id, "k2").await, Ok(value.clone()), "on node {id}");
            for (key, not_applied) in &refused {
                let found = cluster.read(id, key).await.unwrap();
                assert!(found.is_empty() || !not_applied, "{key:?} = {found:?}: it was said not to be applied");
            }
        }
    }
}

/// A leader that slept through its own deposition does not answer with what it remembers.
///
/// Method: SIGSTOP the leader; write through the next one; SIGCONT; the first
/// linearizable read on the old leader must see the write, or be refused.
#[tokio::test]
async fn a_paused_leader_answers_nothing_stale() {
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
        assert_ne!(found.as_deref(), Ok("old"), "a linearizable read answered what was overwritten before it");
        if found.as_deref() == Ok("new") { Ok(()) } else { Err(found) }
    })
    .await;
    cluster.value_is(&ALL, "k", "new").await;
}

/// A node that was started again says nothing of itself before it knows it: neither term 0 nor an empty log.
///
/// Method: one node is killed and started ten times, and asked for `/metrics` all the while. The first answer, and all
/// that follow, have the term that it had before.
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
                        assert!(term >= before, "term {term} after term {before}, in answer {answers}");
                    }
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        tokio::join!(ask, cluster.restart(1));
    }
}
