//! Watches deliver every change exactly once, whatever happens to the nodes.

use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use raft_key_value::client::WatchEvent;
use raft_key_value::config::{WATCH_HEARTBEAT, WATCH_LEADER_DEADLINE, WRITE_STALL_MAX};
use raft_key_value::{ExampleClient, NodeId};
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{
    ALL, CALM, CALM_BUT_QUICK, DEADLINE, Event, Metrics, OFTEN, STEADY, TestCluster, Watch, eventually, index_of,
    others, path_of, report,
};

/// Makes changes of every kind, some with several keys in one revision; returns the last revision.
async fn change(cluster: &TestCluster, id: NodeId, name: &str) -> u64 {
    let put = |key: &str, value: &str| json!({"put": {"key": format!("{name}/{key}"), "value": value}});
    let delete = |key: &str| json!({"delete": {"key": format!("{name}/{key}")}});
    for operations in [
        vec![put("a", "1")],
        vec![put("a", "2"), put("b", "ü\n\n"), put("c", "3")],
        vec![delete("b"), put("a", "4")],
        vec![delete("missing")],
        vec![delete("a")],
        vec![put("c", "5"), put("d", ""), delete("missing"), put("e", "6"), put("f", "7")],
    ] {
        cluster.txn(id, &json!({"success": operations})).await.done();
    }
    let removed = cluster.delete(id, &format!("/v1/kv?prefix={name}/")).await.done();
    assert_eq!(removed["deleted"], 4);
    removed["revision"].as_u64().unwrap()
}

/// The number of revisions that [`change`] makes.
const CHANGE_REVISIONS: u64 = 6;
/// The number of events that [`change`] causes.
const CHANGE_EVENTS: usize = 1 + 3 + 2 + 1 + 4 + 4;

/// All changes of a range of revisions, as a watch returns them afterwards.
async fn recorded(cluster: &TestCluster, id: NodeId, query: &str, from: u64, to: u64) -> Vec<Event> {
    cluster.reaches(id, to).await;
    cluster.watch(id, &format!("{query}&from={from}")).await.until_revision(to).await
}

/// Asserts that the events of a revision are consecutive, and that their ids follow the format.
fn assert_well_formed(events: &[Event]) {
    for (number, event) in events.iter().enumerate() {
        let revision = event.revision();
        let next = events.get(number + 1).map(Event::revision);
        assert!(next.is_none_or(|next| next >= revision), "{events:?}");
        let id = event.id.as_deref().unwrap();
        if next == Some(revision) {
            let position = id.strip_prefix(&format!("{revision}.")).unwrap_or_else(|| panic!("{id} of {event:?}"));
            assert!(position.parse::<u32>().is_ok(), "{id} of {event:?}");
        } else {
            assert_eq!(id, revision.to_string());
        }
    }
}

/// Each change arrives once and in order, with the key's full metadata, on every node.
///
/// Method: watch all keys, a prefix and a key on all nodes, and make changes of every kind, some with several keys in
/// one revision. Compare the events with what the requests should cause, and each filtered watch with the filtered
/// events of the full one.
#[tokio::test]
async fn every_change_comes_once_and_in_order() {
    let cluster = TestCluster::form("watch-all", &ALL, CALM).await;
    let mut watches = Vec::new();
    for id in ALL {
        for query in ["", "prefix=two/", "key=two/a", "prefix=two/a", "key=two/", "consistency=stale"] {
            watches.push((id, query, cluster.watch(id, query).await));
        }
    }
    change(&cluster, 1, "one").await;
    let last = change(&cluster, 2, "two").await;
    let end = cluster.put(3, "/v1/kv/two/a", "end").await.revision();
    assert_eq!(end, last + 1);
    let all = recorded(&cluster, 1, "", 1, end).await;
    assert_well_formed(&all);
    assert_eq!(all.len(), 2 * CHANGE_EVENTS + 1);
    let first: Vec<Value> = all[..7].iter().map(|event| event.data.clone()).collect();
    let put = |key: &str, value: &str, revision: u64, create_revision: u64, version: u64| {
        json!({"type": "put", "key": key, "value": value, "revision": revision, "create_revision": create_revision,
            "version": version})
    };
    let expected = [
        put("one/a", "1", 1, 1, 1),
        put("one/a", "2", 2, 1, 2),
        put("one/b", "ü\n\n", 2, 2, 1),
        put("one/c", "3", 2, 2, 1),
        json!({"type": "delete", "key": "one/b", "revision": 3}),
        put("one/a", "4", 3, 1, 3),
        json!({"type": "delete", "key": "one/a", "revision": 4}),
    ];
    assert_eq!(first, expected);
    for (id, query, mut watch) in watches {
        let wanted: Vec<&Value> = all
            .iter()
            .map(|event| &event.data)
            .filter(|data| {
                let key = data["key"].as_str().unwrap();
                match query.split_once('=') {
                    Some(("prefix", prefix)) => key.starts_with(prefix),
                    Some(("key", only)) => key == only,
                    _ => true,
                }
            })
            .collect();
        if wanted.is_empty() {
            // `two/` is a prefix of keys, but no such key exists.
            continue;
        }
        let events = watch.until_revision(end).await;
        assert_well_formed(&events);
        let found: Vec<&Value> = events.iter().map(|event| &event.data).collect();
        assert_eq!(found, wanted, "{query:?} on node {id}");
    }
}

/// A watch with `initial` starts with the state, followed by every change after it.
///
/// Method: start watches while tasks on all nodes write without pause. The initial state with the changes applied to it
/// must equal the final state, and no change after `synced` may be missing.
#[tokio::test]
async fn the_initial_state_with_the_changes_is_the_final_state() {
    const WRITES: usize = 100;
    let cluster = TestCluster::form("watch-initial", &ALL, CALM).await;
    let value = "v".repeat(2000);
    for first in (0..300).step_by(100) {
        let put = |number| json!({"put": {"key": format!("k{number}"), "value": value}});
        let puts: Vec<Value> = (first..first + 100).map(put).collect();
        cluster.txn(1, &json!({"success": puts})).await.done();
    }
    let write = async |id: NodeId| {
        for number in 0..WRITES {
            let key = format!("/v1/kv/k{}", (number * 7) % 40 + id as usize);
            if number % 5 == 4 {
                cluster.delete(id, &key).await.done();
            } else {
                cluster.put(id, &key, format!("{id} wrote {number}")).await.done();
            }
        }
        cluster.put(id, &format!("/v1/kv/end-{id}"), "end").await.revision()
    };
    let watch = async |id: NodeId, query: &'static str| {
        let watch = cluster.watch(id, &format!("{query}&initial")).await;
        // Read slowly at first, so that changes happen while the state is still being sent.
        tokio::time::sleep(Duration::from_millis(100)).await;
        watch
    };
    let (first, second, third, one, two, three) =
        tokio::join!(write(1), write(2), write(3), watch(1, ""), watch(2, "prefix=k"), watch(3, "key=k7"));
    let end = first.max(second).max(third);
    let end = cluster.txn(1, &json!({"success": [{"put": {"key": "k7", "value": "end"}}]})).await.revision().max(end);
    for (id, query, mut watch) in [(1, "", one), (2, "prefix=k", two), (3, "key=k7", three)] {
        let events = watch.until_revision(end).await;
        let synced = events.iter().position(|event| event.kind() == "synced").unwrap();
        let (initial, changes) = (&events[..synced], &events[synced + 1..]);
        assert!(initial.iter().all(|event| event.kind() == "initial" && event.id.is_none()), "{query:?}");
        assert!(initial.is_sorted_by(|left, right| left.key() < right.key()), "{query:?}");
        let begin = events[synced].revision();
        assert_eq!(events[synced].id, Some(begin.to_string()));
        assert_eq!(changes, recorded(&cluster, id, query, begin + 1, end).await, "{query:?} on node {id}");

        let mut state = std::collections::BTreeMap::new();
        for event in initial.iter().chain(changes) {
            match event.kind() {
                "initial" | "put" => {
                    let mut fields = event.data.clone();
                    fields.as_object_mut().unwrap().remove("type");
                    state.insert(event.key().to_owned(), fields);
                }
                _ => drop(state.remove(event.key())),
            }
        }
        let listed = match query {
            "key=k7" => vec![cluster.get(id, "/v1/kv/k7").await.done()],
            query => cluster.list_all(id, query).await,
        };
        assert_eq!(state.into_values().collect::<Vec<_>>(), listed, "{query:?} on node {id}");
    }
}

/// A watch resumed after any event delivers exactly the remaining events, on any node.
///
/// Method: record the events of all keys and of a prefix. Resume after each id, also in the middle of a revision, on
/// each node in turn, with and without parameters that contradict the id. The events must be the recorded ones.
#[tokio::test]
async fn a_watch_is_resumed_after_any_event() {
    let cluster = TestCluster::form("watch-resume", &ALL, CALM).await;
    change(&cluster, 1, "one").await;
    let last = change(&cluster, 2, "two").await;
    let last = cluster.put(1, "/v1/kv/one/c", "end").await.revision().max(last);
    let mut resumed = 0;
    for query in ["", "prefix=one/", "prefix=one/c", "key=one/c"] {
        let all = recorded(&cluster, 1, query, 1, last).await;
        for (number, event) in all.iter().enumerate().take(all.len() - 1) {
            let id = ALL[number % ALL.len()];
            let query = format!("{query}{}", if number % 4 == 0 { "&from=1" } else { "" });
            let mut watch = cluster.watch_after(id, &query, event.id.as_deref()).await.unwrap();
            let rest = watch.until_revision(last).await;
            assert_eq!(rest, all[number + 1..], "{query:?} after {:?} on node {id}", event.id);
            resumed += 1;
        }
        // No event remains after the last one; the next change is the next event.
        let mut watch = cluster.watch_after(2, query, Some(&last.to_string())).await.unwrap();
        assert_eq!(watch.next_within(Duration::from_millis(30)).await, None);
    }
    // A resumed watch does not send the initial state again.
    let mut watch = cluster.watch_after(3, "initial", Some("1")).await.unwrap();
    assert_eq!(watch.take(1).await[0].id.as_deref(), Some("2.0"));
    eprintln!("resumed {resumed} times");
}

/// A watch can be resumed after all nodes died: no event is lost, even if only snapshots hold it.
///
/// Method: record a watch and kill -9 all nodes, twice, with snapshots so frequent that most changes are only in them.
/// Resuming on every node, after every eleventh event, returns the same events as before.
#[tokio::test]
async fn a_watch_is_resumed_after_the_death_of_all() {
    const REPEATS: u64 = 9;
    let mut cluster = TestCluster::form("watch-restart", &ALL, &[CALM_BUT_QUICK, OFTEN].concat()).await;
    let mut all: Vec<Event> = Vec::new();
    for round in 1..=2 {
        let from = all.last().map_or(1, |event| event.revision() + 1);
        let mut live = cluster.watch_after(round, "", all.last().and_then(|event| event.id.as_deref())).await.unwrap();
        let mut last = 0;
        for number in 0..REPEATS {
            last = change(&cluster, 1 + number % 3, &format!("round-{round}-{number}")).await;
        }
        assert_eq!(last, from - 1 + REPEATS * CHANGE_REVISIONS);
        all.extend(live.until_revision(last).await);
        assert_eq!(all.len(), round as usize * REPEATS as usize * CHANGE_EVENTS);
        assert_well_formed(&all);
        for id in ALL {
            cluster.metrics_say(id, "a purged log", |metrics| metrics.purged).await;
        }
        for id in ALL {
            cluster.kill(id);
        }
        assert_eq!(live.next().await, None, "the stream must break off");
        cluster.restart_all(&ALL).await;
        for id in ALL {
            assert_eq!(recorded(&cluster, id, "", 1, last).await, all, "on node {id}");
            for number in (0..all.len() - 1).step_by(11 * round as usize) {
                let mut watch = cluster.watch_after(id, "", all[number].id.as_deref()).await.unwrap();
                let rest = watch.until_revision(last).await;
                assert_eq!(rest, all[number + 1..], "after {:?} on node {id}", all[number].id);
            }
        }
    }
}

/// A watch continues across an installed snapshot, with no event missing or repeated.
///
/// Method: on a follower, watch all keys and a key that seldom changes. Pause the follower, and write until the
/// leader's log no longer reaches back to it. After the follower resumes, it must install a snapshot, and its watches
/// must see every change.
#[tokio::test]
async fn a_watch_continues_across_an_installed_snapshot() {
    let cluster = TestCluster::form("watch-install", &ALL, &[CALM, OFTEN].concat()).await;
    let leader = cluster.leader_of(&ALL).await;
    let follower = 1 + leader % 3;
    let mut watches: Vec<(&str, Watch)> = Vec::new();
    for query in ["", "prefix=round-", "prefix=round-4/", "key=seldom"] {
        watches.push((query, cluster.watch(follower, query).await));
    }
    cluster.put(leader, "/v1/kv/seldom", "before").await.done();
    change(&cluster, leader, "round-0").await;
    cluster.all_applied(&ALL).await;
    let had = cluster.metrics(follower).await.last_log_index.unwrap();
    cluster.node(follower).pause();
    for round in 1..30 {
        change(&cluster, leader, &format!("round-{round}")).await;
    }
    for id in others(follower) {
        let purged = |metrics: &Metrics| (index_of(metrics.purged) > had).then_some(());
        cluster.metrics_say(id, "a log that begins after the follower's last entry", purged).await;
    }
    cluster.node(follower).resume();
    let last = cluster.put(leader, "/v1/kv/seldom", "after").await.revision();
    cluster.reaches(follower, last).await;
    assert!(index_of(cluster.metrics(follower).await.snapshot) > had, "the follower must have installed a snapshot");
    let end = json!({"success": [
        {"put": {"key": "seldom", "value": "end"}}, {"put": {"key": "round-4/end", "value": "end"}}
    ]});
    let last = cluster.txn(leader, &end).await.revision();
    for (query, mut watch) in watches {
        let events = watch.until_revision(last).await;
        assert_eq!(events, recorded(&cluster, leader, query, 1, last).await, "{query:?}");
    }
}

/// A watch from a revision that is no longer kept is rejected, not silently shortened.
///
/// Method: make more than 100,000 changes. A watch from the first of them returns 410 and the oldest revision, also
/// after a restart. A watch from that oldest revision delivers every change.
#[tokio::test]
async fn a_revision_that_is_no_longer_kept_is_gone() {
    const CHANGES: usize = 100_000;
    let mut cluster = TestCluster::form("watch-gone", &[1], CALM).await;
    let first = cluster.put(1, "/v1/kv/first", "v").await.revision();
    let mut last = 0;
    let started = Instant::now();
    for round in 0..4 {
        last = cluster.put_many(1, &format!("{round}/"), CHANGES / 4).await;
    }
    report("watch-gone", &format!("{CHANGES} changes"), started.elapsed());
    // One change more than are kept, so exactly the first revision is gone.
    for restarted in [false, true] {
        if restarted {
            cluster.crash(&[1]).await;
        }
        let rejections = [
            cluster.watch_after(1, &format!("from={first}"), None).await.unwrap_err(),
            cluster.watch_after(1, "", Some("0")).await.unwrap_err(),
            cluster.watch_after(1, "prefix=first", Some("1.0")).await.unwrap_err(),
        ];
        for rejected in rejections {
            assert_eq!(rejected.assert_rejected(410, "revision_gone")["oldest_revision"], first + 1, "{rejected:?}");
        }
        let rest =
            cluster.watch_after(1, "prefix=3/", Some(&first.to_string())).await.unwrap().until_revision(last).await;
        assert_eq!(rest.len(), CHANGES / 4);
    }
    let events = recorded(&cluster, 1, "", first + 1, last).await;
    assert_eq!(events.len(), CHANGES);
}

/// A reader that does not read costs no memory, and its watch says so when it has missed events.
///
/// Method: open watches without reading them, and write more than twice what is kept. The node's memory stays below the
/// sum of the data, what is kept and a margin. Then read: a watch has the first changes without a gap, and then `end`
/// with `too_slow`. On a machine where the writes take longer than a node waits for a reader, the connection may be
/// closed before that. Other watches receive their events throughout.
#[tokio::test]
async fn a_slow_reader_is_told_and_cut_off() {
    const VALUE_BYTES: usize = 1 << 20;
    const VALUES: usize = 150;
    const READERS: usize = 8;
    // 64 MiB are kept for watches and 24 MiB are the log's cache and open file; the rest are temporary copies. If the
    // node buffered for the eight readers, it would need 1.2 GiB.
    const MEMORY_KIB_MAX: usize = 500 << 10;
    let cluster = TestCluster::form("watch-slow", &[1], CALM).await;
    let first = cluster.put(1, "/v1/kv/k", "first").await.revision();
    let mut slow = Vec::new();
    let opened_at = Instant::now();
    for _ in 0..READERS {
        slow.push(cluster.watch(1, &format!("from={first}")).await);
    }
    let mut quick = cluster.watch(1, "key=seldom").await;
    let mut memory_kib = 0;
    for number in 0..VALUES {
        let value = format!("{number} {}", "v".repeat(VALUE_BYTES - 10));
        cluster.put(1, "/v1/kv/k", value).await.done();
        memory_kib = memory_kib.max(cluster.node(1).memory_kib());
    }
    report("watch-slow", &format!("{memory_kib} KiB of memory, which"), Duration::ZERO);
    assert!(memory_kib < MEMORY_KIB_MAX, "the node used {memory_kib} KiB");
    let seldom = cluster.put(1, "/v1/kv/seldom", "v").await.revision();
    assert_eq!(quick.take(1).await[0].revision(), seldom, "a watch of a key that seldom changes must continue");
    for watch in &mut slow {
        let events = watch.until_end().await;
        let before = match events.split_last().unwrap() {
            (end, before) if end.kind() == "end" => {
                assert_eq!(end.data["code"], "too_slow", "{}", end.data["message"]);
                assert!(end.id.is_none(), "an `end` must have no id to resume after");
                before
            }
            _ => {
                assert!(opened_at.elapsed() > WRITE_STALL_MAX, "the connection was closed too early and without `end`");
                &events[..]
            }
        };
        let revisions: Vec<u64> = before.iter().map(Event::revision).collect();
        let expected: Vec<u64> = (first..first + before.len() as u64).collect();
        assert_eq!(revisions, expected, "there must be no gap before the end");
        assert!(before.len() < VALUES, "a slow watch cannot have received everything");
        let again = cluster.watch_after(1, "", watch.last_id.as_deref()).await.unwrap_err();
        again.assert_rejected(410, "revision_gone");
    }
}

/// A watch on a node that is cut off ends with an error, instead of staying open without changes.
///
/// Method: pause the other two nodes, one of which leads. At its next heartbeat the node finds that it cannot confirm
/// its state. A watch with `consistency=stale` continues.
#[tokio::test]
async fn a_watch_on_a_node_that_is_cut_off_ends() {
    let cluster = TestCluster::form("watch-cut-off", &ALL, CALM).await;
    let cut_off = 1 + cluster.leader_of(&ALL).await % 3;
    let mut watch = cluster.watch(cut_off, "").await;
    let mut stale = cluster.watch(cut_off, "consistency=stale").await;
    let others = others(cut_off);
    others.iter().for_each(|id| cluster.node(*id).pause());
    let events = watch.until_end().await;
    let end = events.last().unwrap();
    assert_eq!((events.len(), end.kind(), &end.data["code"]), (1, "end", &json!("no_leader")), "{events:?}");
    others.iter().for_each(|id| cluster.node(*id).resume());
    cluster.write(others[0], "after", "v").await;
    assert_eq!(stale.next().await.unwrap().key(), "after");
}

/// A watch whose heartbeat waits for an unresponsive leader still ends properly when its own node stops.
///
/// Method: watch on a follower. Pause the other two nodes, one of which leads, a second before the heartbeat. Stop the
/// follower a second after it, while it still considers the paused node the leader.
#[tokio::test]
async fn a_watch_that_waits_for_the_leader_ends_with_its_node() {
    let mut cluster = TestCluster::form("watch-asks", &ALL, STEADY).await;
    let id = 1 + cluster.leader_of(&ALL).await % 3;
    let mut watch = cluster.watch(id, "").await;
    assert_eq!(watch.next_within(WATCH_HEARTBEAT - Duration::from_secs(1)).await, None);
    let others = others(id);
    others.iter().for_each(|other| cluster.node(*other).pause());
    assert_eq!(watch.next_within(Duration::from_secs(2)).await, None);
    assert_eq!(cluster.stop(id).await, Some(0));
    let end = watch.next().await.unwrap();
    assert_eq!((end.kind(), &end.data["code"]), ("end", &json!("stopping")), "{end:?}");
    others.iter().for_each(|other| cluster.node(*other).resume());
}

/// A watch that waits for a leader starts soon after one is elected, even if the former leader never responds to it.
///
/// Method: pause the leader, and watch through a follower at once, until the followers have elected a leader that has
/// written. The request to the former leader would take about 3 seconds longer to time out. A busy machine may be that
/// slow, but not in every round.
#[tokio::test]
async fn a_watch_that_waits_asks_the_new_leader() {
    const ROUNDS: usize = 5;
    let cluster = TestCluster::form("watch-new-leader", &ALL, CALM_BUT_QUICK).await;
    let mut fastest = Duration::MAX;
    for round in 0..ROUNDS {
        let former = cluster.leader_of(&ALL).await;
        let others = others(former);
        cluster.node(former).pause();
        let mut watch = cluster.watch(others[0], "").await;
        let leader = cluster.leader_of(&others).await;
        let revision = cluster.persistently(leader, Method::PUT, "/v1/kv/k", &[], &format!("{round}")).await.revision();
        let written = Instant::now();
        watch.until_revision(revision).await;
        fastest = fastest.min(written.elapsed());
        cluster.node(former).resume();
        if fastest < Duration::from_secs(2) {
            return;
        }
    }
    panic!("the fastest of {ROUNDS} watches started {fastest:?} after the write");
}

/// The data of an event is one line, whatever a client treats as the end of a line.
///
/// Method: put keys and values with each character that some line splitter breaks at. Split the raw bytes of a watch
/// (initial state, history and live) as Python's `str.splitlines` does. Each line of data must be complete JSON with
/// the key and the value as they were put. The client must return the same.
#[tokio::test]
async fn no_character_splits_an_event() {
    const SPLITTERS: [char; 10] =
        ['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];
    let cluster = TestCluster::form("watch-lines", &[1], &[]).await;
    let texts: Vec<String> = SPLITTERS.iter().map(|splitter| format!("ü{splitter}{splitter}“z")).collect();
    let raw = async |query: &str| {
        let path = format!("/v1/watch?{query}");
        cluster.http().open(Method::GET, cluster.addr(1), &path, &[], "").await.unwrap()
    };
    let live = raw("").await;
    for text in &texts {
        cluster.put(1, &path_of(text), text.clone()).await.done();
    }
    let state = raw("initial").await;
    for text in &texts {
        cluster.delete(1, &path_of(text)).await.done();
    }
    let history = raw("from=1").await;
    let count = texts.len();
    for (what, mut watch, expected) in
        [("live", live, 2 * count), ("initial", state, 2 * count + 1), ("history", history, 2 * count)]
    {
        let mut bytes = Vec::new();
        while bytes.windows(7).filter(|window| window == b"data: {").count() < expected || !bytes.ends_with(b"\n\n") {
            let chunk = tokio::time::timeout(DEADLINE, watch.chunk()).await.expect("the watch must send more").unwrap();
            bytes.extend_from_slice(&chunk.expect("the watch must not end"));
        }
        let stream = String::from_utf8(bytes).unwrap();
        let lines = stream.split(SPLITTERS).filter(|line| !line.is_empty());
        let (data, other): (Vec<&str>, Vec<&str>) = lines.partition(|line| line.starts_with("data: "));
        assert!(other.iter().all(|line| line.starts_with("id: ") || line.starts_with(':')), "{what}: {other:?}");
        let events: Vec<Value> = data.iter().map(|line| serde_json::from_str(&line[6..]).unwrap()).collect();
        for text in &texts {
            let of_key: Vec<&Value> = events.iter().filter(|event| event["key"] == **text).collect();
            assert_eq!(of_key.len(), 2, "{what}: {text:?} in {stream}");
            assert_eq!((&of_key[0]["value"], &of_key[1]["type"]), (&json!(text), &json!("delete")), "{what}");
        }
    }
    let client = ExampleClient::connect([cluster.addr(1)]).unwrap();
    let mut events = client.watch("").from(1).stream();
    for text in &texts {
        let event = tokio::time::timeout(DEADLINE, events.try_next()).await.expect("an event must arrive").unwrap();
        let Some(WatchEvent::Put(put)) = event else { panic!("not a put: {event:?}") };
        assert_eq!((put.key.as_str(), put.text()), (text.as_str(), Some(text.as_str())));
    }
}

/// A node that stops ends its watches with an event, and does not wait for their readers.
///
/// Method: open watches that are read, one that is not, and one in the middle of its initial state; send SIGTERM. Those
/// that are read receive `end` with `stopping`, the process exits with code 0 in time, and each watch can be resumed on
/// another node with no event missing.
#[tokio::test]
async fn a_node_that_stops_ends_its_watches() {
    const STOP_DEADLINE: Duration = Duration::from_secs(20);
    let mut cluster = TestCluster::form("watch-stop", &ALL, CALM).await;
    for number in 0..24 {
        cluster.put(1, &format!("/v1/kv/k{number}"), "v".repeat(1 << 19)).await.done();
    }
    let leader = cluster.leader_of(&ALL).await;
    let follower = 1 + leader % 3;
    let other = 1 + follower % 3;
    let mut rest: Vec<NodeId> = ALL.to_vec();
    for stopped in [follower, leader] {
        rest.retain(|id| *id != stopped);
        let mut unread = Vec::new();
        if stopped == follower {
            unread.push(cluster.watch(stopped, "from=1").await);
            unread.push(cluster.watch(stopped, "initial").await);
        }
        let mut watches = Vec::new();
        for query in ["", "prefix=k", "key=seen"] {
            watches.push(cluster.watch(stopped, query).await);
        }
        let seen = cluster.put(stopped, "/v1/kv/seen", format!("by {stopped}")).await.revision();
        watches[0].until_revision(seen).await;
        watches[2].until_revision(seen).await;
        let started = Instant::now();
        let ((), code) = tokio::join!(
            async {
                for watch in &mut watches {
                    let events = watch.until_end().await;
                    let end = events.last().unwrap();
                    assert_eq!(
                        (events.len(), end.kind(), &end.data["code"]),
                        (1, "end", &json!("stopping")),
                        "{events:?}"
                    );
                }
                report("watch-stop", "the end of the watches", started.elapsed());
            },
            async {
                let code = cluster.stop(stopped).await;
                assert!(started.elapsed() < STOP_DEADLINE, "node {stopped} took {:?}", started.elapsed());
                report("watch-stop", "the end of the process", started.elapsed());
                code
            }
        );
        assert_eq!(code, Some(0));
        drop(unread);
        if stopped == follower {
            let next = cluster.put(other, "/v1/kv/seen", "later").await.revision();
            let mut taken_up = cluster.watch_after(other, "", watches[0].last_id.as_deref()).await.unwrap();
            let events = taken_up.until_revision(next).await;
            assert_eq!(
                events.iter().map(Event::revision).collect::<Vec<_>>(),
                [next],
                "the resumed watch must have exactly the remaining events"
            );
            cluster.restart(stopped).await;
            rest.push(stopped);
            cluster.reaches(stopped, next).await;
        }
    }
    cluster.leader_of(&rest).await;
}

async fn knows_no_leader(cluster: &TestCluster, id: NodeId) {
    eventually(&format!("node {id} knows no leader"), DEADLINE, async || {
        let answer = cluster.get(id, "/v1/kv/k").await;
        if answer.status == 503 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
}

/// A watch that starts while there is no leader waits for one with the connection open, and then delivers every change.
/// So a browser's `EventSource` continues, which would give up on an error status.
///
/// Method: stop two of three nodes, and open every kind of watch through the third. Restart the nodes, put a key, and
/// read the event on the same connection. A client that asks not to wait gets 503, and an invalid request 400.
#[tokio::test]
async fn a_watch_waits_for_a_leader() {
    let mut cluster = TestCluster::form("watch-waits", &ALL, CALM_BUT_QUICK).await;
    let first = cluster.put(1, "/v1/kv/k", "first").await.revision();
    cluster.reaches(3, first).await;
    for id in [1, 2] {
        cluster.kill(id);
    }
    knows_no_leader(&cluster, 3).await;
    let rejected = cluster.http().request(Method::GET, cluster.addr(3), "/v1/watch", &[("raft-wait", "no")], "").await;
    assert_eq!(rejected.unwrap().status, 503);
    assert_eq!(cluster.get(3, "/v1/watch?from=0").await.status, 400);

    let mut from_now = cluster.watch(3, "key=k").await;
    let mut cut_off = cluster.watch(3, "key=k").await;
    assert_eq!(cut_off.next_within(Duration::from_millis(500)).await, None);
    let cut_off_at = cut_off.last_id.expect("a waiting watch must have an id to resume after");
    let mut from_first = cluster.watch(3, &format!("key=k&from={first}")).await;
    let mut initial = cluster.watch(3, "initial").await;
    let mut resumed = cluster.watch_after(3, "", Some(&first.to_string())).await.unwrap();
    let mut never = cluster.watch(3, "from=1000000").await;
    for id in [1, 2] {
        cluster.restart(id).await;
    }
    assert_eq!(initial.next().await.unwrap().kind(), "initial");
    assert_eq!(initial.next().await.unwrap().kind(), "synced");
    // No write after the request is missed, although the watch had not started yet.
    let second = cluster.persistently(1, Method::PUT, "/v1/kv/k", &[], "second").await.revision();
    let third = cluster.persistently(2, Method::PUT, "/v1/kv/k", &[], "third").await.revision();
    for watch in [&mut from_now, &mut from_first, &mut initial, &mut resumed] {
        let events = watch.until_revision(third).await;
        let revisions: Vec<u64> = events.iter().map(Event::revision).collect();
        assert!(revisions.contains(&second) && revisions.is_sorted(), "{revisions:?}");
    }
    let mut resumed = cluster.watch_after(1, "key=k", Some(&cut_off_at)).await.unwrap();
    let events = resumed.until_revision(third).await;
    assert!(events.iter().any(|event| event.revision() == second), "{events:?}");
    let end = never.next().await.unwrap();
    assert_eq!((end.kind(), end.data["code"].as_str()), ("end", Some("revision_in_future")), "{end:?}");
    assert!(never.next().await.is_none(), "`end` must be the last event");
}

/// A watch that waits for a leader in vain ends with an event, in bounded time; so does one whose node stops.
///
/// Method: kill one of two nodes, and watch through the other: once until the wait is given up, and once until the node
/// is stopped.
#[tokio::test]
async fn a_watch_that_waits_ends_with_an_event() {
    let mut cluster = TestCluster::form("watch-waits-in-vain", &[1, 2], CALM_BUT_QUICK).await;
    cluster.kill(2);
    knows_no_leader(&cluster, 1).await;
    let started = Instant::now();
    let mut in_vain = cluster.watch(1, "").await;
    let end = in_vain.next_within(2 * WATCH_LEADER_DEADLINE).await.expect("the watch must end with an event");
    assert_eq!((end.kind(), end.data["code"].as_str()), ("end", Some("no_leader")), "{end:?}");
    assert!(started.elapsed() >= WATCH_LEADER_DEADLINE, "the watch waited for only {:?}", started.elapsed());
    assert!(in_vain.next().await.is_none());
    let mut stopped = cluster.watch(1, "").await;
    assert_eq!(cluster.stop(1).await, Some(0));
    let end = stopped.next().await.unwrap();
    assert_eq!((end.kind(), end.id.as_deref()), ("end", None), "{end:?}");
    assert!(stopped.next().await.is_none());
}
