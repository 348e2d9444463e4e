//! Keys expire on all nodes at the same revision and never early, whichever nodes die.

use std::time::{Duration, Instant};

use raft_key_value::NodeId;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{
    ALL, CALM, CALM_BUT_QUICK, DEADLINE, Event, OFTEN, TestCluster, Watch, eventually, others, report,
};

/// Asserts that the next events of a watch of all keys expire these keys, all at one revision, and returns it.
async fn expired(watch: &mut Watch, keys: &[&str]) -> u64 {
    let events = watch.take(keys.len()).await;
    let found: Vec<(&str, &str)> = events.iter().map(|event| (event.kind(), event.key())).collect();
    let wanted: Vec<(&str, &str)> = keys.iter().map(|key| ("expire", *key)).collect();
    assert_eq!(found, wanted, "{events:?}");
    let revisions: Vec<u64> = events.iter().map(Event::revision).collect();
    assert!(revisions.iter().all(|revision| *revision == revisions[0]), "{events:?}");
    revisions[0]
}

async fn touch(cluster: &TestCluster, id: NodeId, key: &str, ttl: &str) -> Value {
    cluster.v1(id, Method::POST, &format!("/v1/kv/{key}/touch?ttl={ttl}"), &[], "").await.done()
}

/// A key expires on all nodes at the same revision, and on none before its TTL has passed.
///
/// Method: watch all nodes, and put keys with TTLs through each. By the clock of this test, no expiry arrives before
/// the TTL has passed since the put was sent, and every node reports the same revision. A key without a TTL stays.
#[tokio::test]
async fn a_key_expires_everywhere_at_once_and_never_early() {
    let cluster = TestCluster::form("ttl-all", &ALL, CALM).await;
    let mut watches = Vec::new();
    cluster.put(1, "/v1/kv/stays", "v").await.done();
    for (id, ttl_ms) in ALL.into_iter().zip([100, 350, 700]) {
        let from = cluster.put(1, "/v1/kv/stays", format!("{id}")).await.revision() + 1;
        for id in ALL {
            watches.push(cluster.watch(id, &format!("from={from}")).await);
        }
        let sent = Instant::now();
        let put = cluster.put(id, &format!("/v1/kv/k?ttl={ttl_ms}ms"), "v").await;
        let left = cluster.get(id, "/v1/kv/k").await;
        if left.status == 200 {
            assert!(left.json()["expires_in_ms"].as_u64().unwrap() <= ttl_ms, "{left:?}");
        }
        let mut revisions = Vec::new();
        for watch in &mut watches {
            assert_eq!(watch.take(1).await[0].kind(), "put");
            revisions.push(expired(watch, &["k"]).await);
            let took = sent.elapsed();
            assert!(took >= Duration::from_millis(ttl_ms), "a key of {ttl_ms} ms expired after {took:?}");
            report("ttl-all", &format!("a key of {ttl_ms} ms"), took);
        }
        assert_eq!(revisions, [put.revision() + 1; 3], "an expiry must have one revision, the same on all nodes");
        for id in ALL {
            let gone = cluster.get(id, "/v1/kv/k").await;
            assert_eq!(gone.assert_rejected(404, "key_not_found")["revision"], put.revision() + 1);
            cluster.get(id, "/v1/kv/stays").await.done();
        }
        watches.clear();
    }
}

/// Renewing a TTL changes nothing else, and a change replaces the TTL.
///
/// Method: put the same value again with a TTL, and touch it: revision and version stay, no event arrives, and the TTL
/// is the new one. A touch with a shorter TTL shortens it. Another value with a TTL, and a put without one, are
/// changes. By the clock of this test, the key must outlive its first TTL.
#[tokio::test]
async fn renewal_keeps_the_revision() {
    let cluster = TestCluster::form("ttl-renew", &ALL, CALM).await;
    let mut watch = cluster.watch(1, "").await;
    let sent = Instant::now();
    let first = cluster.put(2, "/v1/kv/lock?ttl=10s", "me").await.done();
    assert_eq!(first, json!({"revision": 1, "version": 1}));
    // Longer than the first TTL, which leaves a busy machine time for each round.
    while sent.elapsed() < Duration::from_secs(12) {
        for id in ALL {
            assert_eq!(cluster.put(id, "/v1/kv/lock?ttl=10s", "me").await.done(), first);
            assert_eq!(
                touch(&cluster, id, "lock", "10s").await,
                json!({"revision": 1, "version": 1, "expires_in_ms": 10_000})
            );
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let found = cluster.get(3, "/v1/kv/lock").await;
    assert_eq!((found.revision(), &found.done()["create_revision"]), (1, &json!(1)));
    // A put of the same value without a TTL is a change, and makes the key permanent.
    let forever = cluster.put(2, "/v1/kv/lock", "me").await.done();
    assert_eq!(forever, json!({"revision": 2, "version": 2}));
    assert!(cluster.get(1, "/v1/kv/lock").await.done()["expires_in_ms"].is_null());
    assert_eq!(touch(&cluster, 3, "lock", "1h").await["revision"], 2);
    assert_eq!(cluster.put(3, "/v1/kv/lock?ttl=1d", "you").await.done(), json!({"revision": 3, "version": 3}));
    let left = cluster.get(1, "/v1/kv/lock").await.done()["expires_in_ms"].as_u64().unwrap();
    assert!((86_000_000..=86_400_000).contains(&left), "{left}");
    touch(&cluster, 1, "lock", "100ms").await;
    let events = watch.until_revision(3).await;
    let kinds: Vec<_> = events.iter().map(|event| (event.kind(), event.revision())).collect();
    assert_eq!(kinds, [("put", 1), ("put", 2), ("put", 3)]);
    assert_eq!(expired(&mut watch, &["lock"]).await, 4);

    let missing = cluster.v1(2, Method::POST, "/v1/kv/lock/touch?ttl=1s", &[], "").await;
    assert_eq!(missing.assert_rejected(404, "key_not_found")["revision"], 4);
}

/// Keys expire on time although the leader dies, each once and never early.
///
/// Method: put keys with different TTLs, kill -9 the leader, and watch the others from before that. Each key must
/// expire on both at the same revision, and none before its TTL has passed.
#[tokio::test]
async fn keys_expire_after_the_leader_is_killed() {
    let mut cluster = TestCluster::form("ttl-kill", &ALL, &[]).await;
    let leader = cluster.leader_of(&ALL).await;
    let rest = others(leader);
    let sent = Instant::now();
    let put = async |path: &str| {
        let answer = cluster.persistently(leader, Method::PUT, path, &[], "v").await;
        answer.done();
        answer.revision()
    };
    let first = put("/v1/kv/a?ttl=500ms").await;
    put("/v1/kv/b?ttl=1s").await;
    put("/v1/kv/c?ttl=1h").await;
    cluster.kill(leader);
    let next_leader = cluster.leader_of(&rest).await;
    let mut seen = Vec::new();
    for id in rest {
        let mut watch = eventually("a watch is accepted", DEADLINE, async || {
            cluster.watch_after(id, &format!("from={first}"), None).await
        })
        .await;
        // Three puts and two expiries; on a slow machine an expiry may come before the last put.
        let events = watch.take(5).await;
        assert!(sent.elapsed() >= Duration::from_secs(1), "after {:?}: {events:?}", sent.elapsed());
        let gone: Vec<_> = events.iter().filter(|event| event.kind() == "expire").map(Event::key).collect();
        assert_eq!(gone, ["a", "b"]);
        seen.push(events);
    }
    assert_eq!(seen[0], seen[1], "both nodes must send the same events");
    let left = cluster.list_all(next_leader, "").await;
    assert_eq!(left.iter().map(|item| item["key"].as_str().unwrap()).collect::<Vec<_>>(), ["c"]);
}

/// TTLs survive a restart of all nodes, from snapshots and logs.
///
/// Method: put keys with TTLs, some before and some after a snapshot. Kill -9 and restart all nodes. Keys whose TTL has
/// passed expire, and the others stay with less time left.
#[tokio::test]
async fn keys_expire_after_a_restart_of_all() {
    let flags = [CALM_BUT_QUICK, OFTEN].concat();
    let mut cluster = TestCluster::form("ttl-restart", &ALL, &flags).await;
    for (key, ttl) in [("early-short", "2s"), ("early-long", "1h")] {
        cluster.put(1, &format!("/v1/kv/{key}?ttl={ttl}"), "v").await.done();
    }
    cluster.write_many(2, "k", 60).await;
    for id in ALL {
        cluster.metrics_say(id, "a snapshot", |metrics| metrics.snapshot).await;
    }
    cluster.put(3, "/v1/kv/late-short?ttl=1s", "v").await.done();
    cluster.put(3, "/v1/kv/late-long?ttl=2h", "v").await.done();
    cluster.crash(&ALL).await;
    for id in ALL {
        eventually(&format!("the short-lived keys have expired on node {id}"), DEADLINE, async || {
            let sent =
                cluster.http().get(cluster.addr(id), "/v1/kv?prefix=").await.map_err(|error| error.to_string())?;
            if sent.status == 200 && !sent.text().contains("-short") { Ok(()) } else { Err(sent.text()) }
        })
        .await;
        for (key, ttl_ms) in [("early-long", 3_600_000), ("late-long", 7_200_000)] {
            let left = cluster.get(id, &format!("/v1/kv/{key}")).await.done()["expires_in_ms"].as_u64().unwrap();
            assert!(left < ttl_ms && left > ttl_ms - 60_000, "{key} has {left} ms left on node {id}");
        }
    }
}

/// More keys than one entry can remove expire in several entries, each key once.
///
/// Method: put 2,500 keys with the same TTL; a watch sees each of them expire exactly once.
#[tokio::test]
async fn many_keys_expire_at_once() {
    const KEYS: usize = 2500;
    let cluster = TestCluster::form("ttl-many", &ALL, CALM).await;
    let mut watch = cluster.watch(2, "").await;
    let put = |number: usize| json!({"put": {"key": format!("k{number:04}"), "value": "v", "ttl": "1s"}});
    for first in (0..KEYS).step_by(125) {
        let puts: Vec<_> = (first..first + 125).map(put).collect();
        cluster.txn(1, &json!({"success": puts})).await.done();
    }
    let events = watch.take(2 * KEYS).await;
    let mut gone: Vec<&str> = events.iter().filter(|event| event.kind() == "expire").map(Event::key).collect();
    assert_eq!(gone.len(), KEYS);
    gone.sort_unstable();
    gone.dedup();
    assert_eq!(gone.len(), KEYS, "a key expired twice");
    assert!(cluster.list_all(3, "").await.is_empty());
}
