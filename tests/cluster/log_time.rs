//! Do TTLs follow true time, whatever the nodes' wall clocks show?

use std::fs::File;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use raft_key_value::NodeId;
use raft_key_value::operation::{Operation, Write};
use raft_key_value::store::clock_file::ClockFile;
use raft_key_value::store::snapshot::format::{load, meta_of, write as write_snapshot};
use raft_key_value::types::{Command, Entry, Payload};

use crate::harness::{ALL, CALM_BUT_QUICK, DEADLINE, TestCluster, eventually, others, report};

const HOUR_MS: u64 = 3_600_000;

/// How late a key may expire: the expiry interval, a commit, an election, and a margin for a busy machine.
const LATE_MAX: Duration = Duration::from_secs(10);

fn wall_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// Advances the clock in a stopped node's newest snapshot, as an entry of a leader with that wall clock would.
async fn set_state_clock(cluster: &TestCluster, id: NodeId, at_ms: u64) {
    let snapshots = cluster.node(id).directory().join("snapshots");
    let path = std::fs::read_dir(snapshots).unwrap().map(|entry| entry.unwrap().path()).max().unwrap();
    let (meta, mut machine) = load(&path).unwrap();
    let write = Write { at_ms, request: None, operation: Operation::Expire };
    machine.apply(Entry { log_id: meta.last_log_id.unwrap(), payload: Payload::Normal(Command::Write(write)) });
    assert_eq!(machine.clock_ms, at_ms);
    write_snapshot(&machine, &meta_of(&machine), &mut File::create(&path).unwrap()).unwrap();
}

/// Puts a key through a node, and asserts that all nodes expire it soon after its TTL.
async fn assert_lives(cluster: &TestCluster, id: NodeId, key: &str, ttl: Duration) {
    let sent = Instant::now();
    let path = format!("/v1/kv/{key}");
    cluster.put(id, &format!("{path}?ttl={}ms", ttl.as_millis()), "v").await.done();
    assert_gone(cluster, &ALL, key, sent, ttl).await;
}

/// Asserts that these nodes expire a key that was put at `sent` soon after its TTL.
async fn assert_gone(cluster: &TestCluster, ids: &[NodeId], key: &str, sent: Instant, ttl: Duration) {
    for id in ids {
        eventually(&format!("{key:?} is gone on node {id}"), DEADLINE, async || {
            let sent = cluster.http().get(cluster.addr(*id), &format!("/v1/kv/{key}")).await;
            let answer = sent.map_err(|error| error.to_string())?;
            if answer.status == 404 { Ok(()) } else { Err(answer.text()) }
        })
        .await;
        let took = sent.elapsed();
        report("log-time", &format!("{key:?} of {} ms on node {id}", ttl.as_millis()), took);
        assert!(took >= ttl && took < ttl + LATE_MAX, "{key:?} of {ttl:?} was gone on node {id} after {took:?}");
    }
}

/// A state whose clock an earlier leader set an hour ahead does not stop time.
///
/// Method: stop all nodes, and set the clock in their snapshots an hour ahead, as a leader with such a wall clock
/// would. Restart all nodes: a key lives as long as its TTL, before and after another restart.
#[tokio::test]
async fn a_state_ahead_of_all_wall_clocks() {
    let flags = [CALM_BUT_QUICK, &["--snapshot-entries", "20", "--snapshot-keep-entries", "5"]].concat();
    let mut cluster = TestCluster::form("log-time-ahead", &ALL, &flags).await;
    cluster.write_many(1, "k", 60).await;
    for id in ALL {
        cluster.metrics_say(id, "a snapshot", |metrics| metrics.snapshot).await;
    }
    for id in ALL {
        cluster.stop(id).await;
        set_state_clock(&cluster, id, wall_ms() + HOUR_MS).await;
    }
    for round in 0..2 {
        for id in ALL {
            cluster.restart(id).await;
        }
        let leader = cluster.leader_of(&ALL).await;
        assert_lives(&cluster, leader, &format!("short-{round}"), Duration::from_secs(2)).await;
        for id in ALL {
            cluster.kill(id);
        }
    }
}

/// Makes a stopped node see a wall clock that was changed by some hours while it was down.
fn set_wall_clock(cluster: &TestCluster, id: NodeId, hours: i64) {
    let file = ClockFile::open(&cluster.node(id).directory()).unwrap();
    let mut reading = file.recorded().unwrap();
    reading.wall_ms = reading.wall_ms.checked_add_signed(-hours * HOUR_MS as i64).unwrap();
    file.record(reading).unwrap();
}

/// Waits until all nodes have recorded their clocks.
async fn all_have_recorded(cluster: &TestCluster) {
    for id in ALL {
        eventually(&format!("node {id} has recorded its clock"), DEADLINE, async || {
            ClockFile::open(&cluster.node(id).directory()).unwrap().recorded().ok_or("no file")
        })
        .await;
    }
}

/// The time that a key has left on each node; `None` if it does not exist there.
async fn left_ms(cluster: &TestCluster, key: &str) -> Vec<Option<u64>> {
    let mut left = Vec::new();
    for id in ALL {
        let answer = cluster.persistently(id, reqwest::Method::GET, &format!("/v1/kv/{key}"), &[], "").await;
        left.push((answer.status == 200).then(|| answer.json()["expires_in_ms"].as_u64().unwrap()));
    }
    left
}

/// Asserts that a key has this many hours left on all nodes, minus a few minutes for the test itself.
async fn assert_left(cluster: &TestCluster, key: &str, hours: u64) {
    let left = left_ms(cluster, key).await;
    let expected = hours * HOUR_MS - 300_000..=hours * HOUR_MS;
    let all_are = left.iter().all(|left| left.is_some_and(|left| expected.contains(&left)));
    assert!(all_are, "{key:?} must have {hours} hours left, and has {left:?} ms");
}

/// Kills all nodes, changes their wall clocks, and restarts them; returns the leader.
async fn restart_all(cluster: &mut TestCluster, hours: impl Fn(NodeId) -> i64) -> NodeId {
    for id in ALL {
        cluster.kill(id);
    }
    for id in ALL {
        set_wall_clock(cluster, id, hours(id));
        cluster.restart(id).await;
    }
    cluster.leader_of(&ALL).await
}

/// While no node runs, the wall clock counts, once and never backwards.
///
/// Method: put keys with TTLs of 1, 4 and 9 hours. Kill all nodes, set one wall clock three hours ahead, and restart
/// them: no time passes. Do the same with all clocks two hours ahead: the first key expires, and the others have two
/// hours less. Repeat twice, with unchanged clocks and with clocks five hours back: no more time passes, and new TTLs
/// last as long as given.
#[tokio::test]
async fn time_when_no_node_ran() {
    let mut cluster = TestCluster::form("log-time-down", &ALL, CALM_BUT_QUICK).await;
    for hours in [1, 4, 9] {
        cluster.put(1, &format!("/v1/kv/{hours}h?ttl={hours}h"), "v").await.done();
    }
    all_have_recorded(&cluster).await;
    let leader = cluster.leader_of(&ALL).await;
    let only_leaders = |id| if id == leader { 3 } else { 0 };
    restart_all(&mut cluster, only_leaders).await;
    for hours in [1, 4, 9] {
        assert_left(&cluster, &format!("{hours}h"), hours).await;
    }
    for hours in [2, 0, -5] {
        let leader = restart_all(&mut cluster, |_| hours).await;
        eventually("the key with a TTL of one hour has expired", DEADLINE, async || {
            let left = left_ms(&cluster, "1h").await;
            if left == [None; 3] { Ok(()) } else { Err(left) }
        })
        .await;
        assert_left(&cluster, "4h", 2).await;
        assert_left(&cluster, "9h", 7).await;
        assert_lives(&cluster, leader, "short", Duration::from_secs(1)).await;
    }
}

/// The wall clock of a restarted node does not count while a majority was running, even if that node leads.
///
/// Method: kill the leader, set its wall clock two hours ahead, restart it, and make it the leader again, until each
/// node has led after a restart. All keys stay, with the time left that they had.
#[tokio::test]
async fn restarted_leaders_with_wall_clocks_ahead() {
    let mut cluster = TestCluster::form("log-time-restarts", &ALL, &[]).await;
    let leader = cluster.leader_of(&ALL).await;
    cluster.persistently(leader, reqwest::Method::PUT, "/v1/kv/1h?ttl=1h", &[], "v").await.done();
    all_have_recorded(&cluster).await;
    for id in ALL {
        make_leader(&cluster, id).await;
        cluster.kill(id);
        set_wall_clock(&cluster, id, 2);
        cluster.leader_of(&others(id)).await;
        cluster.restart(id).await;
        cluster.leader_of(&ALL).await;
        assert_left(&cluster, "1h", 1).await;
        make_leader(&cluster, id).await;
        assert_left(&cluster, "1h", 1).await;
    }
}

async fn make_leader(cluster: &TestCluster, id: NodeId) {
    let body = serde_json::json!({"id": id}).to_string();
    eventually(&format!("node {id} leads"), DEADLINE, async || {
        let sent = cluster.http().post(cluster.addr(id), "/v1/cluster/leader", body.clone()).await;
        let answer = sent.map_err(|error| format!("{error:?}"))?;
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    assert_eq!(cluster.leader_of(&ALL).await, id);
}

/// A node that is elected before it has contact with any leader takes the time from its voter.
///
/// Method: kill a follower, and set its wall clock two hours ahead. Pause the leader, and restart the follower, which
/// can be elected only with the vote of the third node. Repeat until it is. The key stays. (If the leader was killed,
/// the third node would notice that, and always be elected first.)
#[tokio::test]
async fn elected_at_once_with_a_wall_clock_ahead() {
    let mut cluster = TestCluster::form("log-time-elected", &ALL, &[]).await;
    let leader = cluster.leader_of(&ALL).await;
    cluster.persistently(leader, reqwest::Method::PUT, "/v1/kv/1h?ttl=1h", &[], "v").await.done();
    all_have_recorded(&cluster).await;
    for attempt in 0.. {
        assert!(attempt < 30, "the restarted node was never elected");
        let leader = cluster.leader_of(&ALL).await;
        cluster.all_applied(&ALL).await;
        let (follower, voter) = (1 + leader % 3, 1 + (leader + 1) % 3);
        cluster.kill(follower);
        set_wall_clock(&cluster, follower, 2);
        cluster.node(leader).pause();
        cluster.restart(follower).await;
        let elected = cluster.leader_of(&[follower, voter]).await;
        cluster.node(leader).resume();
        cluster.leader_of(&ALL).await;
        assert_left(&cluster, "1h", 1).await;
        if elected == follower {
            break;
        }
    }
}

/// Time without writes is not lost when a restarted node becomes the leader.
///
/// Method: put a key, and write nothing for half of its TTL. Kill and restart the followers, one after the other, with
/// wall clocks two hours back. Kill the leader. The key expires on time.
#[tokio::test]
async fn idle_time_outlives_the_leader() {
    const TTL: Duration = Duration::from_secs(24);
    let mut cluster = TestCluster::form("log-time-idle", &ALL, &[]).await;
    all_have_recorded(&cluster).await;
    let leader = cluster.leader_of(&ALL).await;
    let sent = Instant::now();
    let path = format!("/v1/kv/idle?ttl={}s", TTL.as_secs());
    cluster.persistently(leader, reqwest::Method::PUT, &path, &[], "v").await.done();
    tokio::time::sleep_until((sent + TTL / 2).into()).await;
    let rest = others(leader);
    for id in &rest {
        cluster.kill(*id);
        set_wall_clock(&cluster, *id, -2);
        cluster.restart(*id).await;
        cluster.leader_of(&ALL).await;
    }
    let leader = cluster.leader_of(&ALL).await;
    let rest = others(leader);
    cluster.kill(leader);
    assert_gone(&cluster, &rest, "idle", sent, TTL).await;
}
