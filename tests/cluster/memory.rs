//! How much memory clients can make a node hold, and what it does at the limit.

use raft_key_value::config::{HISTORY_BYTES_MAX, STATE_REPLACED_BYTES_MAX};
use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::harness::{CALM, DEADLINE, TestCluster, connect_and_send, eventually, read_status};

/// The smallest budget allowed; half of it is for requests, and half for responses.
const LEAST: &[&str] = &["--client-memory-bytes", "16777216"];
const MIB: usize = 1 << 20;

/// A node does not read bodies for which it has no memory. They wait, and are rejected if that takes too long. Short
/// requests continue meanwhile, and so do long ones as soon as there is memory again.
///
/// Method: two clients announce 1 MiB each, and one sends chunks; all withhold the end. A body counts twice its length,
/// and a chunked one twice the maximum, so too little is left for another. A fourth long put gets 503, and a short one
/// 200. The three finish, and the fourth is repeated.
#[tokio::test]
async fn long_requests_wait_for_memory() {
    let cluster = TestCluster::form("request-memory", &[1], LEAST).await;
    let value = vec![b'v'; MIB];
    let mut held = Vec::new();
    for number in 0..3 {
        let head = format!("PUT /v1/kv/held-{number} HTTP/1.1\r\nhost: localhost\r\n");
        let (length, end) = if number == 0 {
            ("transfer-encoding: chunked\r\n\r\n100000\r\n".to_owned(), "v\r\n0\r\n\r\n")
        } else {
            (format!("content-length: {MIB}\r\n\r\n"), "v")
        };
        held.push((connect_and_send(cluster.addr(1), head + &length).await, end));
    }
    // The node has read their heads by the time that a later request gets its response.
    cluster.put(1, "/v1/kv/short", "v").await.done();
    let rejected = cluster.put(1, "/v1/kv/fourth", value.clone()).await;
    rejected.assert_rejected(503, "overloaded");
    cluster.put(1, "/v1/kv/short", "w").await.done();

    for (client, end) in &mut held {
        client.write_all(&value[1..]).await.unwrap();
        client.write_all(end.as_bytes()).await.unwrap();
        assert_eq!(read_status(client).await, 200);
    }
    cluster.put(1, "/v1/kv/fourth", value).await.done();
    assert_eq!(cluster.get(1, "/v1/kv?keys_only=true").await.json()["items"].as_array().unwrap().len(), 5);
}

/// Unread responses hold memory only up to the budget. After that, long reads wait and are rejected. Transactions that
/// read too much are rejected before they are applied, and short requests continue.
///
/// Method: put 1 MiB of control characters, which take six times as much in JSON. Clients request the value without
/// reading it, until a read gets 503. Then send a transaction that would change a key and read the value. When those
/// clients have gone, the read succeeds.
#[tokio::test]
async fn unread_responses_hold_little() {
    let cluster = TestCluster::form("response-memory", &[1], LEAST).await;
    cluster.put(1, "/v1/kv/long", vec![1; MIB]).await.done();
    let mut unread = Vec::new();
    for _ in 0..3 {
        let request = "GET /v1/kv/long HTTP/1.1\r\nhost: localhost\r\n\r\n";
        unread.push(connect_and_send(cluster.addr(1), request).await);
    }
    // The first client has its head, and the system buffers some of the rest.
    assert_eq!(read_status(&mut unread[0]).await, 200);
    let rejected = cluster.get(1, "/v1/kv/long").await;
    rejected.assert_rejected(503, "overloaded");
    let transaction = json!({"success": [{"put": {"key": "short", "value": "v"}}, {"get": {"key": "long"}}]});
    let rejected = cluster.txn(1, &transaction).await;
    rejected.assert_rejected(503, "overloaded");
    cluster.get(1, "/v1/kv/short").await.assert_rejected(404, "key_not_found");
    cluster.put(1, "/v1/kv/short", "w").await.done();

    drop(unread);
    let read = cluster.get(1, "/v1/kv/long").await;
    assert_eq!(read.json()["value"].as_str().unwrap().len(), MIB);
}

/// A listing keeps the values of its revision only until too much of it was replaced.
///
/// Method: read the first page of two, then put one key repeatedly, until as many bytes are replaced as allowed. The
/// second page can be read before that, and returns 410 afterwards.
#[tokio::test]
async fn a_listing_does_not_hold_all_that_is_replaced() {
    let cluster = TestCluster::form("listing-memory", &[1], &[]).await;
    cluster.put(1, "/v1/kv/a", "v").await.done();
    let value = vec![b'v'; MIB];
    let put = cluster.put(1, "/v1/kv/b", value.clone()).await;
    let page = cluster.get(1, "/v1/kv?limit=1").await;
    let next = format!("/v1/kv?limit=1&start_after=a&revision={}", page.number("raft-revision"));
    assert_eq!(page.json()["next"], "a", "{put:?}");
    for _ in 0..STATE_REPLACED_BYTES_MAX / (2 * MIB as u64) {
        cluster.put(1, "/v1/kv/b", value.clone()).await.done();
    }
    cluster.get(1, &next).await.done();
    for _ in 0..=STATE_REPLACED_BYTES_MAX / (2 * MIB as u64) {
        cluster.put(1, "/v1/kv/b", value.clone()).await.done();
    }
    eventually("the revision is no longer kept", DEADLINE, async || {
        let page = cluster.get(1, &next).await;
        if page.status == 410 { Ok(page.assert_rejected(410, "revision_gone")) } else { Err(page.status) }
    })
    .await;
}

/// A replayed response counts as much memory as the first one, whatever happened to the keys it read.
///
/// Method: a transaction with an `Idempotency-Key` reads 1 MiB of control characters, which are then deleted. Clients
/// repeat it without reading the responses, until one gets 503.
#[tokio::test]
async fn replayed_responses_are_counted() {
    let cluster = TestCluster::form("replay-memory", &[1], LEAST).await;
    cluster.put(1, "/v1/kv/long", vec![1; MIB]).await.done();
    let body = json!({"success": [{"put": {"key": "short", "value": "v"}}, {"get": {"key": "long"}}]}).to_string();
    let headers = [("content-type", "application/json"), ("idempotency-key", "once")];
    let first = cluster.v1(1, Method::POST, "/v1/txn", &headers, body.clone()).await.done();
    cluster.delete(1, "/v1/kv/long").await.done();

    let mut unread = Vec::new();
    for _ in 0..3 {
        let length = body.len();
        let head = format!("POST /v1/txn HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n");
        let head = head + "content-type: application/json\r\nidempotency-key: once\r\n\r\n";
        unread.push(connect_and_send(cluster.addr(1), head + &body).await);
    }
    assert_eq!(read_status(&mut unread[0]).await, 200);
    let rejected = cluster.v1(1, Method::POST, "/v1/txn", &headers, body.clone()).await;
    rejected.assert_rejected(503, "overloaded");

    drop(unread);
    let again = cluster.v1(1, Method::POST, "/v1/txn", &headers, body).await;
    assert_eq!(again.header("raft-replayed"), "true");
    assert_eq!(again.done(), first);
}

/// Watches that do not read their initial state hold memory only up to their part of the budget. Others wait, and end
/// with an error if that takes too long. A watch that starts after those have gone gets everything.
///
/// Method: put 1 MiB of control characters, which exceed that part as JSON. A watch with `initial` reads only the start
/// of it. A second watch ends and says why. After the first has gone, a third gets the value.
#[tokio::test]
async fn unread_watches_hold_little() {
    let cluster = TestCluster::form("watch-memory", &[1], LEAST).await;
    cluster.put(1, "/v1/kv/long", vec![1; MIB]).await.done();
    const WATCH: &str = "GET /v1/watch?key=long&initial HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let begin = || connect_and_send(cluster.addr(1), WATCH);
    let mut unread = begin().await;
    // Part of the event has arrived, so this watch holds the memory.
    let mut head = [0; 4096];
    unread.read_exact(&mut head).await.unwrap();
    let ended = read_to_end_of(&mut begin().await, "\"code\":\"overloaded\"").await;
    assert!(!ended.contains("\"type\":\"initial\""), "{ended}");
    drop(unread);
    eventually("a watch gets the value", DEADLINE, async || {
        let read = read_to_end_of(&mut begin().await, "\"type\":\"synced\"").await;
        if read.contains("\"type\":\"initial\"") { Ok(()) } else { Err(read) }
    })
    .await;
}

/// Watches that are not read hold little of what the history no longer has. The oldest are cut off, not in a way that looks
/// like the end of a response; the others get the rest of their event.
///
/// Method: 50 watches, each of an event of 1 MiB of control characters, which takes 6 MiB as JSON, more than sockets hold.
/// They read only the head, and later a little more, so that the node does not close them for reading nothing. Put more
/// than the history keeps, and wait for a key to expire: the task that removes such keys takes back events first. Read the
/// rest.
#[tokio::test]
async fn unread_watches_are_cut_off() {
    const WATCHES: usize = 50;
    const LITTLE: usize = 128 << 10;
    let cluster = TestCluster::form("watch-cut", &[1], CALM).await;
    let mut unread = Vec::new();
    for number in 0..WATCHES {
        let revision = cluster.put(1, &format!("/v1/kv/{number}"), vec![1; MIB]).await.revision();
        // A buffer that does not grow, so that most of the event stays with the node.
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(LITTLE as u32).unwrap();
        let mut watch = socket.connect(cluster.addr(1).parse().unwrap()).await.unwrap();
        let head = format!("GET /v1/watch?key={number}&from={revision} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        watch.write_all(head.as_bytes()).await.unwrap();
        let mut read = vec![0; 4096];
        watch.read_exact(&mut read).await.unwrap();
        unread.push((watch, read));
    }
    for number in 0..=HISTORY_BYTES_MAX / MIB {
        if number % 16 == 8 {
            for (watch, read) in &mut unread {
                let before = read.len();
                read.resize(before + LITTLE, 0);
                watch.read_exact(&mut read[before..]).await.unwrap();
            }
        }
        cluster.put(1, "/v1/kv/other", vec![b'v'; MIB]).await.done();
    }
    let mut expiry = cluster.watch(1, "key=short").await;
    cluster.put(1, "/v1/kv/short?ttl=100ms", "v").await.done();
    assert_eq!(expiry.take(2).await[1].kind(), "expire");
    let (mut cut, mut whole) = (0, 0);
    for (mut watch, mut read) in unread {
        while read.len() < 6 * MIB && watch.read_buf(&mut read).await.unwrap() > 0 {}
        if read.len() >= 6 * MIB {
            whole += 1;
        } else {
            assert!(!read.ends_with(b"\r\n0\r\n\r\n"), "the response must not look complete");
            assert_eq!(whole, 0, "a newer one was cut off");
            cut += 1;
        }
    }
    assert!(cut > 0 && whole > 0, "{cut} cut off, {whole} whole");
}

/// Reads until the given text has arrived, or the stream ends.
async fn read_to_end_of(client: &mut TcpStream, wanted: &str) -> String {
    let mut read = Vec::new();
    while memchr::memmem::find(&read, wanted.as_bytes()).is_none() && client.read_buf(&mut read).await.unwrap() > 0 {}
    String::from_utf8_lossy(&read).into_owned()
}
