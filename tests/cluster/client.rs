//! `ExampleClient` on the key-value API: its results, and how it handles failing nodes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use raft_key_value::client::{Compare, Relation, TxnOperation, TxnResult, WatchEvent};
use raft_key_value::config::HISTORY_BYTES_MAX;
use raft_key_value::error::Outcome;
use raft_key_value::{ClientError, ExampleClient, ExampleRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{ALL, DEADLINE, TestCluster, eventually, others};

#[allow(dead_code)] // Its `main` is not used here.
#[path = "../../examples/configuration_store.rs"]
mod configuration_store;
#[allow(dead_code)] // Its `main` is not used here.
#[path = "../../examples/leader_election.rs"]
mod leader_election;
#[allow(dead_code)] // Its `main` is not used here.
#[path = "../../examples/lock.rs"]
mod lock;
#[allow(dead_code)] // Its `main` is not used here.
#[path = "../../examples/watch_cache.rs"]
mod watch_cache;

/// A client that tries these nodes first, in this order.
fn client_of(cluster: &TestCluster, ids: &[u64]) -> ExampleClient {
    ExampleClient::connect(ids.iter().map(|id| cluster.addr(*id))).unwrap()
}

/// The next event, which must arrive in time.
async fn next(events: &mut (impl futures_util::Stream<Item = Result<WatchEvent, ClientError>> + Unpin)) -> WatchEvent {
    let event = tokio::time::timeout(DEADLINE, events.next()).await;
    event.expect("no event arrived").expect("the stream ended").unwrap()
}

fn text_of(event: &WatchEvent) -> (&str, &str) {
    match event {
        WatchEvent::Put(put) => (&put.key, put.text().unwrap()),
        other => panic!("not a put: {other:?}"),
    }
}

/// Every operation preserves keys and values through the client's types, awkward ones too.
///
/// Method: on one node, check the results of put, get, touch, delete, conditions that hold and that do not, both
/// branches of a transaction, and a prefix deletion.
#[tokio::test]
async fn operations_round_trip() {
    let cluster = TestCluster::form("client-round", &[1], &[]).await;
    let client = client_of(&cluster, &[1]);
    let keys = ["a", "a/b c/%2F?&#+ü\"", "touch", "a//b", "...", " "];
    for key in keys {
        for value in [&b"text \xc3\xbc"[..], b"", b"\0\xff\xfe binary"] {
            let put = client.put(key, value).await.unwrap();
            assert!(!put.replayed);
            let found = client.get(key).await.unwrap().unwrap();
            assert_eq!((found.key.as_str(), found.bytes().as_deref()), (key, Some(value)));
            assert_eq!((found.revision, found.version), (put.revision, put.version));
            assert_eq!(client.get_stale(key).await.unwrap().unwrap().revision, found.revision);
        }
    }
    for key in ["", ".", "a/../b", "./a"] {
        let error = client.put(key, "v").await.unwrap_err();
        assert!(matches!(error, ClientError::InvalidRequest { .. }), "{key:?}: {error}");
    }
    assert_eq!(client.get("missing").await.unwrap(), None);

    // Conditions.
    let first = client.put("k", "1").if_missing().await.unwrap();
    let failed = client.put("k", "2").if_missing().await.unwrap_err();
    assert_eq!(failed.condition_failed().unwrap().current_revision, Some(first.revision), "{failed}");
    assert_eq!((failed.code(), failed.outcome()), (Some("condition_failed"), Outcome::NotApplied));
    let second = client.put("k", "2").if_revision(first.revision).await.unwrap();
    assert_eq!(second.version, 2);
    let failed = client.delete("k").if_revision(first.revision).await.unwrap_err();
    assert_eq!(failed.condition_failed().unwrap().current_revision, Some(second.revision));
    assert_eq!(client.delete("k").if_present().await.unwrap().deleted, 1);
    let failed = client.delete("k").if_present().await.unwrap_err();
    assert_eq!(failed.condition_failed().unwrap().current_revision, None);
    assert_eq!(client.delete("k").await.unwrap().deleted, 0);

    // TTLs.
    let put = client.put("lease", "v").ttl(Duration::from_secs(60)).await.unwrap();
    let touched = client.touch("lease", Duration::from_secs(3600)).if_revision(put.revision).await.unwrap();
    assert_eq!((touched.revision, touched.expires_in_ms), (put.revision, Some(3_600_000)));
    let error = client.touch("missing", Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(error.code(), Some("key_not_found"), "{error}");

    // A repeated request.
    let once = || client.put("once", "v").idempotency_key("mine");
    let (one, two) = (once().await.unwrap(), once().await.unwrap());
    assert_eq!((one.replayed, two.replayed, one.answer), (false, true, two.answer));
    let error = client.put("once", "other").idempotency_key("mine").await.unwrap_err();
    assert_eq!(error.code(), Some("idempotency_key_reused"), "{error}");

    // Transactions.
    let txn = || {
        let txn = client.txn().when(Compare::missing("t")).when(Compare::value("once", Relation::Equal, "v"));
        txn.then(TxnOperation::put("t", b"\xff")).otherwise(TxnOperation::get("t"))
    };
    let done = txn().await.unwrap();
    assert!(done.succeeded && matches!(done.results[..], [TxnResult::Put(put)] if put.revision == done.revision));
    let not_done = txn().await.unwrap();
    let [TxnResult::Get(Some(found))] = &not_done.results[..] else { panic!("{not_done:?}") };
    assert_eq!((not_done.succeeded, found.bytes().as_deref()), (false, Some(&b"\xff"[..])));

    assert_eq!(client.delete_prefix("a").await.unwrap().deleted, 3);
    let left = client.list("").keys_only().collect().await.unwrap();
    assert_eq!(
        left.iter().map(|item| item.key.as_str()).collect::<Vec<_>>(),
        [" ", "...", "lease", "once", "t", "touch"]
    );
}

/// A listing of many pages shows one revision, whatever is written meanwhile, and fails where that is impossible.
///
/// Method: list 25 keys in pages of 4, in both directions. Between two keys, change one key, delete one and add one.
/// Then restart the node in the middle of a listing, after which it no longer has that revision.
#[tokio::test]
async fn a_listing_shows_one_revision() {
    let mut cluster = TestCluster::form("client-list", &[1], &[]).await;
    let client = client_of(&cluster, &[1]);
    for number in 0..25 {
        client.put(format!("k/{number:02}"), "old").await.unwrap();
    }
    for reverse in [false, true] {
        let expected = client.list("k/").collect().await.unwrap();
        let list = client.list("k/").page_size(4);
        let mut items = if reverse { list.reverse() } else { list }.stream();
        let mut found = Vec::new();
        while let Some(item) = items.try_next().await.unwrap() {
            client.put("k/24", format!("new {}", found.len())).await.unwrap();
            client.delete(format!("k/{:02}", 20 - found.len().min(20))).await.unwrap();
            client.put(format!("k/{}-new", found.len()), "new").await.unwrap();
            found.push(item);
        }
        if reverse {
            found.reverse();
        }
        assert_eq!(found, expected);
    }
    let bounded = client.list("k/").start("k/1").end("k/2").keys_only().page_size(3).collect().await.unwrap();
    assert!(bounded.iter().all(|item| item.key.starts_with("k/1") && item.value.is_none()), "{bounded:?}");

    let mut items = client.list("k/").page_size(4).stream();
    items.try_next().await.unwrap().unwrap();
    client.put("another", "v").await.unwrap();
    cluster.kill(1);
    cluster.restart(1).await;
    let rest: Result<Vec<_>, _> = items.try_collect().await;
    let error = rest.unwrap_err();
    assert_eq!(error.code(), Some("revision_gone"), "{error}");
    assert!(error.oldest_revision().is_some());
}

/// A watch outlives its node: it continues with the next event at another one.
///
/// Method: watch at a follower while keys are written, sometimes three in one revision. Kill -9 that node after some
/// events. Every change arrives once and in order.
#[tokio::test]
async fn a_watch_outlives_its_node() {
    const ROUNDS: usize = 60;
    let mut cluster = TestCluster::form("client-watch", &ALL, &[]).await;
    let leader = cluster.leader_of(&ALL).await;
    let watched = 1 + leader % 3;
    let other = ALL.into_iter().find(|id| *id != watched).unwrap();
    let watcher = client_of(&cluster, &[watched, other]);
    let writer = Arc::new(client_of(&cluster, &[leader, other]));
    writer.put("w/before", "v").await.unwrap();
    let mut events = watcher.watch("w/").initial().stream();
    assert!(matches!(next(&mut events).await, WatchEvent::Initial(found) if found.key == "w/before"));
    assert!(matches!(next(&mut events).await, WatchEvent::Synced { .. }));

    let writing = tokio::spawn(async move {
        for round in 0..ROUNDS {
            let mut txn = writer.txn();
            for part in ["a", "b", "c"] {
                txn = txn.then(TxnOperation::put(format!("w/{part}"), round.to_string()));
            }
            txn.await.unwrap();
        }
    });
    for number in 0..3 * ROUNDS {
        if number == ROUNDS {
            cluster.kill(watched);
        }
        let event = next(&mut events).await;
        let expected = (["w/a", "w/b", "w/c"][number % 3], (number / 3).to_string());
        assert_eq!(text_of(&event), (expected.0, expected.1.as_str()), "event {number}");
    }
    writing.await.unwrap();
    drop(events);
    assert_eq!(watcher.leader().1, cluster.addr(other));
}

/// A watch delivers each event once, wherever its connections break.
///
/// Method: a proxy cuts connections after 150, 157, 164, … bytes of the response, so within the head, within the
/// initial state, and between and within the events of one revision. The watch starts with the state, and then
/// transactions change three keys each.
#[tokio::test]
async fn a_watch_outlives_every_cut() {
    let cluster = TestCluster::form("client-cuts", &[1], &[]).await;
    let direct = client_of(&cluster, &[1]);
    for key in ["c/0", "c/1", "c/2"] {
        direct.put(key, "initial").await.unwrap();
    }
    let cut = Arc::new(AtomicUsize::new(150));
    let proxy = Proxy::start(cluster.addr(1), Fault::CutAnswerAfter(cut.clone())).await;
    let watcher = ExampleClient::connect([&proxy]).unwrap().with_retry_deadline(Duration::from_secs(60));
    let mut events = watcher.watch("c/").initial().stream();
    for key in ["c/0", "c/1", "c/2"] {
        assert!(matches!(next(&mut events).await, WatchEvent::Initial(found) if found.key == key));
    }
    assert!(matches!(next(&mut events).await, WatchEvent::Synced { .. }));
    for round in 0..8 {
        let mut txn = direct.txn();
        for part in 0..3 {
            txn = txn.then(TxnOperation::put(format!("c/{part}"), round.to_string()));
        }
        txn.await.unwrap();
    }
    // Back to a length at which few events get through per connection.
    cut.store(300, Ordering::Relaxed);
    for number in 0..24 {
        let event = next(&mut events).await;
        let expected = (format!("c/{}", number % 3), (number / 3).to_string());
        assert_eq!(text_of(&event), (expected.0.as_str(), expected.1.as_str()), "event {number}");
    }
}

/// A watch from now on starts at its first connection, even if that breaks before any event.
///
/// Method: a proxy cuts each connection after the head of the response. A key is written after the first cut, and later
/// the proxy forwards everything.
#[tokio::test]
async fn a_watch_from_now_keeps_its_start() {
    let cluster = TestCluster::form("client-now", &[1], &[]).await;
    let direct = client_of(&cluster, &[1]);
    direct.put("n", "before").await.unwrap();
    let cut = Arc::new(AtomicUsize::new(0));
    let proxy = Proxy::start(cluster.addr(1), Fault::CutBodyAfter(cut.clone())).await;
    let watcher = ExampleClient::connect([&proxy]).unwrap().with_retry_deadline(Duration::ZERO);
    let mut events = watcher.watch_key("n").stream();
    let broken = events.next().await.unwrap().unwrap_err();
    assert!(matches!(broken, ClientError::AnswerLost { .. }), "{broken}");
    direct.put("n", "after").await.unwrap();
    cut.store(usize::MAX, Ordering::Relaxed);
    assert_eq!(text_of(&next(&mut events).await), ("n", "after"));
}

/// `start` returns once the node serves the watch: every later write is among its events, however late they are read.
/// `stream` connects when it is first polled.
///
/// Method: start a watch through each node, write through another, and only then read. For a stream that was created
/// and not polled, a write before the first poll is not seen, and one after it is.
#[tokio::test]
async fn a_started_watch_misses_nothing() {
    let cluster = TestCluster::form("client-start", &ALL, &[]).await;
    let leader = cluster.leader_of(&ALL).await;
    for id in ALL {
        let (watcher, writer) = (client_of(&cluster, &[id]), client_of(&cluster, &[leader]));
        writer.put("s", "before").await.unwrap();
        let mut started = watcher.watch_key("s").start().await.unwrap();
        let mut made = watcher.watch_key("s").stream();
        writer.put("s", format!("first {id}")).await.unwrap();
        assert_eq!(text_of(&next(&mut started).await), ("s", format!("first {id}").as_str()));
        // The first poll connects. The node serves the watch once a write after that shows up.
        let seen = eventually("the stream has started", DEADLINE, async || {
            writer.put("s", "later").await.unwrap();
            tokio::time::timeout(Duration::from_millis(200), next(&mut made)).await
        });
        assert_eq!(text_of(&seen.await), ("s", "later"), "a write before the first poll must not be seen");
    }
}

/// `start` returns an error if no node serves the watch, or if a node rejects it.
#[tokio::test]
async fn a_watch_that_cannot_start_says_so() {
    let unreachable = ExampleClient::connect([format!("127.0.0.1:{}", crate::harness::free_port())]).unwrap();
    let unreachable = unreachable.with_retry_deadline(Duration::from_millis(200));
    let failures = AtomicUsize::new(0);
    let watch = unreachable.watch("").on_connection(|state| {
        assert!(state.is_err(), "{state:?}");
        failures.fetch_add(1, Ordering::Relaxed);
    });
    let Err(error) = watch.start().await else { panic!("the watch started without a node") };
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    assert!(failures.load(Ordering::Relaxed) > 0, "the callback must report a failure");

    let cluster = TestCluster::form("client-start-rejected", &[1], &[]).await;
    let Err(error) = client_of(&cluster, &[1]).watch("").from(1000).start().await else {
        panic!("the watch was accepted")
    };
    assert_eq!(error.code(), Some("revision_in_future"), "{error}");
}

/// A watch that a node rejects returns that error and ends.
#[tokio::test]
async fn a_watch_from_the_future_is_rejected() {
    let cluster = TestCluster::form("client-future", &[1], &[]).await;
    let client = client_of(&cluster, &[1]);
    let mut events = client.watch("").from(1000).stream();
    let error = events.next().await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some("revision_in_future"), "{error}");
    assert!(events.next().await.is_none(), "the stream must end");
}

/// A watch that no node serves returns an error, and continues when it is polled again.
///
/// Method: kill the only node under a watch with a short retry deadline, and read the error. After a restart and a
/// write, the same stream delivers the write.
#[tokio::test]
async fn a_watch_continues_after_an_error() {
    let mut cluster = TestCluster::form("client-again", &[1], &[]).await;
    let watcher = client_of(&cluster, &[1]).with_retry_deadline(Duration::from_millis(300));
    let writer = client_of(&cluster, &[1]).with_retry_deadline(DEADLINE);
    writer.put("k", "1").await.unwrap();
    let mut events = watcher.watch("").from(1).stream();
    assert_eq!(text_of(&next(&mut events).await), ("k", "1"));
    cluster.kill(1);
    let error = events.next().await.unwrap().unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    cluster.restart(1).await;
    writer.put("k", "2").await.unwrap();
    let event = eventually("the watch continues", DEADLINE, async || events.next().await.unwrap()).await;
    assert_eq!(text_of(&event), ("k", "2"));
}

/// A watch that is read too slowly delivers the events it can, and then the oldest revision to resume from.
///
/// Method: read one event, then none until more has changed than is kept, then the rest. The events have no gap, and
/// end with an error, which ends the stream.
#[tokio::test]
async fn a_watch_that_is_too_slow_gets_an_error() {
    const KEYS: usize = 128;
    const TXNS: usize = HISTORY_BYTES_MAX / VALUE_BYTES / KEYS * 3 / 2;
    const VALUE_BYTES: usize = 4096;
    let cluster = TestCluster::form("client-slow", &[1], &[]).await;
    let client = client_of(&cluster, &[1]);
    client.put("first", "v").await.unwrap();
    let mut events = client.watch("").from(1).stream();
    assert_eq!(text_of(&next(&mut events).await), ("first", "v"));
    for _ in 0..TXNS {
        let value = "v".repeat(VALUE_BYTES);
        let txn = (0..KEYS).fold(client.txn(), |txn, key| txn.then(TxnOperation::put(format!("{key:03}"), &value)));
        txn.await.unwrap();
    }
    let mut seen = 0;
    let error = loop {
        match events.next().await.unwrap() {
            Ok(WatchEvent::Put(put)) => {
                let expected = (2 + seen / KEYS, format!("{:03}", seen % KEYS));
                assert_eq!((put.revision as usize, put.key), expected, "event {seen}");
                seen += 1;
            }
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), Some("revision_gone"), "{error}");
    assert!(error.oldest_revision() > Some(2 + (seen / KEYS) as u64), "{error} after {seen} events");
    assert!(events.next().await.is_none(), "the stream must end");
}

/// A write whose response is lost is applied once, and the client gets its result in the end.
///
/// Method: a proxy forwards each write and drops the first responses. The writes are a conditional put and a delete,
/// which would fail if they were applied twice, and a write to the original route.
#[tokio::test]
async fn a_write_whose_response_is_lost_is_applied_once() {
    let cluster = TestCluster::form("client-lost", &[1], &[]).await;
    let direct = client_of(&cluster, &[1]);
    let left = Arc::new(AtomicUsize::new(0));
    let proxy = Proxy::start(cluster.addr(1), Fault::DropAnswers(left.clone())).await;
    let lossy = || ExampleClient::connect([&proxy]).unwrap();

    left.store(1, Ordering::Relaxed);
    let put = lossy().put("k", "v").if_missing().await.unwrap();
    assert!(put.replayed);
    assert_eq!((direct.get("k").await.unwrap().unwrap().revision, put.version), (put.revision, 1));

    left.store(2, Ordering::Relaxed);
    let deleted = lossy().delete("k").await.unwrap();
    assert!(deleted.replayed);
    assert_eq!((deleted.deleted, deleted.revision), (1, put.revision + 1));

    left.store(1, Ordering::Relaxed);
    let request = ExampleRequest::Set { key: "k".into(), value: "w".into() };
    let written = lossy().write(&request).await.unwrap().data;
    assert!(written.replayed);
    assert_eq!(written.revision, Some(deleted.revision + 1));
    assert_eq!(direct.get("k").await.unwrap().unwrap().version, 1);
}

/// An outcome that stays unknown is reported as unknown, even if the last attempt was certainly not applied.
///
/// Method: a proxy drops the first response, and then stops listening.
#[tokio::test]
async fn an_unresolved_outcome_is_unknown() {
    let cluster = TestCluster::form("client-unknown", &[1], &[]).await;
    let proxy = Proxy::start(cluster.addr(1), Fault::DropAnswerAndListener).await;
    let client = ExampleClient::connect([&proxy]).unwrap().with_retry_deadline(Duration::from_secs(2));
    let error = client.put("k", "v").await.unwrap_err();
    let ClientError::Unresolved { unknown, last } = &error else { panic!("{error}") };
    assert!(matches!(**unknown, ClientError::AnswerLost { .. }), "{unknown}");
    assert!(matches!(**last, ClientError::Unreachable { .. }), "{last}");
    assert_eq!(error.outcome(), Outcome::Unknown);

    let error = client.put("k", "v").await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotApplied, "{error}");
}

/// Requests survive the death of their node, and of the leader.
///
/// Method: kill -9 the leader, which a client of three nodes talks to. The next write and read succeed without any
/// effort by the caller.
#[tokio::test]
async fn requests_outlive_the_leader() {
    let mut cluster = TestCluster::form("client-leader", &ALL, &[]).await;
    let leader = cluster.leader_of(&ALL).await;
    let others = others(leader);
    let client = client_of(&cluster, &[leader, others[0], others[1]]).with_retry_deadline(DEADLINE);
    client.put("k", "1").await.unwrap();
    cluster.kill(leader);
    let put = client.put("k", "2").if_present().await.unwrap();
    assert_eq!(client.get("k").await.unwrap().unwrap().revision, put.revision);
    client.write(&ExampleRequest::Set { key: "k".into(), value: "3".into() }).await.unwrap();
    assert_eq!(client.consistent_read(&"k".to_owned()).await.unwrap(), "3");
}

/// The examples do what they claim.
///
/// Method: run each on a cluster of three, one after the other, and the lock twice at the same time. Check the keys
/// that they leave behind.
#[tokio::test]
async fn the_examples_run() {
    let cluster = TestCluster::form("client-examples", &ALL, &[]).await;
    let client = client_of(&cluster, &ALL);
    let text = async |key: &str| client.get(key).await.unwrap().map(|found| found.text().unwrap().to_owned());
    configuration_store::run(&client).await.unwrap();
    assert_eq!(text("config/workers").await.as_deref(), Some("5"));
    assert_eq!(text("config/queue").await.as_deref(), Some("50"));
    tokio::try_join!(lock::run(&client), lock::run(&client)).unwrap();
    assert_eq!(text("printer/page").await.as_deref(), Some("5"));
    assert_eq!(client.get("printer/page").await.unwrap().unwrap().version, 10, "every page must have been printed");
    assert_eq!(text("locks/printer").await, None);
    leader_election::run(&client).await.unwrap();
    watch_cache::run(&client).await.unwrap();
    assert_eq!(text("cache/last").await.as_deref(), Some(""));
}

/// What a proxy does to the connections it forwards.
#[derive(Clone)]
enum Fault {
    /// Cuts a connection after this many bytes of responses, and each further one after seven more.
    CutAnswerAfter(Arc<AtomicUsize>),
    /// Cuts a connection after this many bytes of the response's body.
    CutBodyAfter(Arc<AtomicUsize>),
    /// Drops this many responses.
    DropAnswers(Arc<AtomicUsize>),
    /// Drops the first response, and stops listening.
    DropAnswerAndListener,
}

/// Forwards connections to a node, with faults.
struct Proxy;

impl Proxy {
    /// Starts a proxy, and returns its address.
    async fn start(addr: &str, fault: Fault) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().to_string();
        let addr = addr.to_owned();
        tokio::spawn(async move {
            while let Ok((caller, _)) = listener.accept().await {
                let node = TcpStream::connect(&addr).await.unwrap();
                if matches!(fault, Fault::DropAnswerAndListener) {
                    drop(listener);
                    pass_on(caller, node, &fault).await;
                    return;
                }
                let fault = fault.clone();
                tokio::spawn(async move { pass_on(caller, node, &fault).await });
            }
        });
        own
    }
}

/// Forwards one connection until one of its sides closes it or the fault cuts it.
async fn pass_on(caller: TcpStream, node: TcpStream, fault: &Fault) {
    let (mut from_caller, mut to_caller) = caller.into_split();
    let (mut from_node, mut to_node) = node.into_split();
    let requests = tokio::spawn(async move { tokio::io::copy(&mut from_caller, &mut to_node).await });
    let mut budget = match fault {
        Fault::CutAnswerAfter(bytes) => bytes.fetch_add(7, Ordering::Relaxed),
        _ => usize::MAX,
    };
    let mut answer = vec![0; 64 << 10];
    let mut head = true;
    while let Ok(length @ 1..) = from_node.read(&mut answer).await {
        match fault {
            Fault::DropAnswers(left)
                if left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() =>
            {
                break;
            }
            Fault::DropAnswerAndListener => break,
            Fault::CutBodyAfter(bytes) if head => {
                let end = answer[..length].windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
                budget = bytes.load(Ordering::Relaxed).saturating_add(end);
            }
            _ => {}
        }
        head = false;
        let sent = length.min(budget);
        budget -= sent;
        if to_caller.write_all(&answer[..sent]).await.is_err() || budget == 0 {
            break;
        }
    }
    // End the other direction too, so that both sockets close.
    requests.abort();
}
