//! What no HTTP library would send: broken heads, broken bodies, and silence.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{MARKER, states, unharmed};
use crate::harness::{CALM, TestCluster, path_of};

/// After this a node has given up every slow client: 5 s for a head, 10 s for a body, and some more.
const SILENCE_DEADLINE: Duration = Duration::from_secs(18);
/// While slow clients hold connections, the requests of others take this at most.
const OTHERS_DEADLINE: Duration = Duration::from_secs(2);

/// Sends bytes as they are, and reads until the node closes; returns what came and how long it took.
async fn exchange(addr: &str, bytes: &[u8]) -> (String, Duration) {
    let started = Instant::now();
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let write = async {
        // The node may have refused and closed before all of it was sent.
        let _ = writer.write_all(bytes).await;
    };
    let mut answer = Vec::new();
    let read = async {
        // A reset after the answer is the answer's end too.
        let _ = reader.read_to_end(&mut answer).await;
    };
    let exchanged = tokio::time::timeout(SILENCE_DEADLINE, async { tokio::join!(write, read) }).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(exchanged.is_ok(), "the node did not close within {SILENCE_DEADLINE:?}; it answered {answer:?}");
    (answer, started.elapsed())
}

fn head(line: &str, headers: &str) -> Vec<u8> {
    format!("{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n").into_bytes()
}

/// Asserts that an answer has a body like every other error, though the HTTP library gave it.
fn assert_json_error(what: &str, answer: &str) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{what}: {answer:?}"));
    let head = head.to_ascii_lowercase();
    assert!(head.contains("\r\nraft-outcome: not_applied"), "{what}: {answer:?}");
    assert!(head.contains("\r\ncontent-type: application/json"), "{what}: {answer:?}");
    let json: serde_json::Value =
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{what}: {error}: {answer:?}"));
    if let Some(error) = json["error"].as_object() {
        assert_eq!(error["outcome"], "not_applied", "{what}: {answer:?}");
        return;
    }
    let errors = json["Err"].as_object().unwrap_or_else(|| panic!("{what}: {answer:?}"));
    assert!(errors.values().all(|fields| fields["outcome"] == "not_applied"), "{what}: {answer:?}");
}

/// Bytes that are no request are refused or cut off at once, and change nothing.
///
/// Method: one connection a row; the answer must be a 4xx, and come quickly.
#[tokio::test]
async fn broken_requests_do_no_harm() {
    let mut cluster = TestCluster::form("raw-broken", &[1], CALM).await;
    cluster.write(1, "known", "value").await;
    let before = states(&cluster, &[1]).await;
    let write = |headers: &str, body: &[u8]| [head("POST /write", headers), body.to_vec()].concat();
    let body = format!(r#"{{"Set":{{"key":"known","value":"{MARKER}"}}}}"#);
    let many_headers: String = (0..2000).map(|number| format!("x-{number}: {MARKER}\r\n")).collect();
    let rows: Vec<(&str, Vec<u8>, &[u16])> = vec![
        ("garbage", format!("{MARKER} {MARKER}\r\n\r\n").into_bytes(), &[400]),
        (
            "a TLS greeting",
            [b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".as_slice(), &[7; 200], b"\r\n\r\n"].concat(),
            &[400],
        ),
        ("zeros", vec![0; 1000], &[400]),
        ("an HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), &[400]),
        ("a version of its own", b"GET /metrics HTTP/9.9\r\n\r\n".to_vec(), &[400]),
        ("a header without a colon", head("GET /metrics", &format!("{MARKER}\r\n")), &[400]),
        ("a NUL in a header", head("GET /metrics", "x: a\0b\r\n"), &[400]),
        ("a space before the colon", head("GET /metrics", "x : y\r\n"), &[400]),
        ("a path of bytes", b"GET /\xff\xfe HTTP/1.1\r\nconnection: close\r\n\r\n".to_vec(), &[400]),
        ("a length that is a word", write("content-length: many\r\n", b""), &[400]),
        ("a negative length", write("content-length: -1\r\n", b""), &[400]),
        ("a length beyond all numbers", write("content-length: 99999999999999999999999\r\n", b""), &[400]),
        ("two lengths", write("content-length: 1\r\ncontent-length: 2\r\n", b"ab"), &[400]),
        ("a length and chunks", write("content-length: 1\r\ntransfer-encoding: chunked\r\n", b"0\r\n\r\n"), &[400]),
        ("an unknown encoding", write("transfer-encoding: secret\r\n", body.as_bytes()), &[400]),
        ("chunks without a length", write("transfer-encoding: chunked\r\n", b"zz\r\nabc\r\n0\r\n\r\n"), &[400]),
        ("a chunk of endless length", write("transfer-encoding: chunked\r\n", b"fffffffffffffffff\r\nabc"), &[400]),
        ("a body longer than may be", write("content-length: 1572865\r\n", b"{"), &[413]),
        ("an RPC longer than may be", head("POST /raft-append", "content-length: 67108865\r\n"), &[413]),
        ("a header of 1 MiB", head("GET /metrics", &format!("x: {}\r\n", "a".repeat(1 << 20))), &[400, 431]),
        ("2,000 headers", head("GET /metrics", &many_headers), &[400, 431]),
        ("a path of 1 MiB", head(&format!("GET /{}", "a".repeat(1 << 20)), ""), &[400, 404, 414, 431]),
        ("a tunnel", head("CONNECT 127.0.0.1:1", ""), &[400, 404, 405]),
        ("no path", head("GET metrics", ""), &[400, 404]),
    ];
    let addr = cluster.addr(1).to_owned();
    for (what, bytes, statuses) in rows {
        let (answer, took) = exchange(&addr, &bytes).await;
        let line = answer.lines().next().unwrap_or_default();
        eprintln!("{what}: {line}, {} ms", took.as_millis());
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        assert!(status.is_some_and(|status| statuses.contains(&status)), "{what}: {answer:?}");
        assert!(took < Duration::from_secs(4), "{what} took {took:?}");
        assert_json_error(what, &answer);
        cluster.assert_alive();
    }
    unharmed(&mut cluster, &[1], before).await;
}

/// Keys that no library would put into a path are refused, by whoever is asked.
///
/// Method: a put, a read and a deletion for each path, on a single node and on a
/// follower of three; each is refused with its code, and nothing has changed.
#[tokio::test]
async fn paths_that_no_library_sends_do_no_harm() {
    let long = "k".repeat(60_000);
    let endless = "k".repeat(200_000);
    let rows: Vec<(&str, Vec<u8>, u16, &str)> = vec![
        ("..", b"..".to_vec(), 400, "invalid_key"),
        (".", b".".to_vec(), 400, "invalid_key"),
        (".. in the middle", b"a/../known".to_vec(), 400, "invalid_key"),
        (". in the middle", b"./known".to_vec(), 400, "invalid_key"),
        (".. at the end", b"known/..".to_vec(), 400, "invalid_key"),
        (".. encoded", b"%2e%2e".to_vec(), 400, "invalid_key"),
        (".. encoded in the middle", b"a/%2E%2e/known".to_vec(), 400, "invalid_key"),
        (".. half encoded", b".%2e/known".to_vec(), 400, "invalid_key"),
        (". encoded", b"%2e".to_vec(), 400, "invalid_key"),
        ("bytes that are no UTF-8", b"known\xff\xfe".to_vec(), 400, ""),
        ("a NUL", b"known\0".to_vec(), 400, ""),
        ("a space", b"known known".to_vec(), 400, ""),
        ("a tab", b"known\tknown".to_vec(), 400, ""),
        ("a line break", b"known\nknown".to_vec(), 400, ""),
        ("a deletion", b"known\x7f".to_vec(), 400, ""),
        ("a key of 60,000 bytes", long.into_bytes(), 413, "key_too_large"),
        ("a key of 200,000 bytes", endless.into_bytes(), 431, ""),
        ("a name that is cut off", b"known%".to_vec(), 400, "invalid_encoding"),
        ("a query that is cut off", b"known?%".to_vec(), 400, "invalid_encoding"),
        ("a query of bytes", b"known?\xff=1".to_vec(), 400, ""),
    ];
    for ids in [vec![1], vec![1, 2, 3]] {
        let mut cluster = TestCluster::form("raw-paths", &ids, CALM).await;
        let target = 1 + cluster.leader_of(&ids).await % ids.len() as u64;
        cluster.write(target, "known", "value").await;
        let before = states(&cluster, &ids).await;
        let addr = cluster.addr(target).to_owned();
        for (what, key, status, code) in &rows {
            for (method, headers, body) in [("GET", "", ""), ("PUT", "content-length: 1\r\n", "v"), ("DELETE", "", "")]
            {
                let line = [method.as_bytes(), b" /v1/kv/", key].concat();
                let rest = format!(" HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n{body}");
                let (answer, _) = exchange(&addr, &[line, rest.into_bytes()].concat()).await;
                assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{method}, {what}: {answer:?}");
                assert_json_error(what, &answer);
                let expected = format!("\"code\":\"{code}\"");
                assert!(code.is_empty() || answer.contains(&expected), "{method}, {what}: {answer:?}");
                cluster.assert_alive();
            }
        }
        unharmed(&mut cluster, &ids, before).await;
    }
}

/// A path means the same key on a follower as on the leader, whatever characters it has.
///
/// Method: put through each node of three, as bytes on a socket, keys with
/// characters that a URL would rather have encoded; read each on every node by its
/// encoded name.
#[tokio::test]
async fn a_path_means_the_same_key_on_every_node() {
    const ALL: [u64; 3] = [1, 2, 3];
    let cluster = TestCluster::form("raw-keys", &ALL, CALM).await;
    let keys = [
        "a\\b", "a\\..\\b", "\\", "a|b", "a^b", "a[b]", "a//b", "/a", "a/", "//", "a;b=c", "a,b", "a+b", "a'b",
        "a:b@c", "~", "a...b", "...", "a&b=c",
    ];
    for id in ALL {
        for key in keys {
            let value = format!("{key} through {id}");
            let headers = format!("content-length: {}\r\n", value.len());
            let request = [head(&format!("PUT /v1/kv/{key}"), &headers), value.clone().into_bytes()].concat();
            let (answer, _) = exchange(cluster.addr(id), &request).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{key:?} through {id}: {answer:?}");
            for other in ALL {
                let found = cluster.get(other, &path_of(key)).await.done();
                assert_eq!((&found["key"], &found["value"]), (&key.into(), &value.clone().into()), "on node {other}");
            }
        }
        let listed = cluster.list_all(id, "").await;
        assert_eq!(listed.len(), keys.len(), "{listed:?}");
    }
}

/// Clients that stop in the middle of a request are cut off, and disturb nobody.
///
/// Method: 200 connections with half a head, 50 with half a body, some with
/// nothing at all; meanwhile requests of others must be answered quickly.
#[tokio::test]
async fn slow_clients_disturb_nobody() {
    let mut cluster = TestCluster::form("raw-slow", &[1], CALM).await;
    cluster.write(1, "known", "value").await;
    let before = states(&cluster, &[1]).await;
    let addr = cluster.addr(1).to_owned();
    let rows: Vec<(&str, usize, Vec<u8>, Duration)> = vec![
        ("half a line", 100, b"POST /wri".to_vec(), Duration::from_secs(7)),
        ("half a header", 100, format!("POST /write HTTP/1.1\r\nhost: {MARKER}").into_bytes(), Duration::from_secs(7)),
        (
            "half a body",
            50,
            [head("POST /write", "content-length: 100\r\n"), b"{\"Set\":".to_vec()].concat(),
            SILENCE_DEADLINE,
        ),
        ("half a message", 10, head("POST /raft-append", "content-length: 100\r\n"), SILENCE_DEADLINE),
        (
            "half a snapshot",
            10,
            [head("POST /raft-snapshot", "content-length: 100\r\n"), vec![0, 0]].concat(),
            SILENCE_DEADLINE,
        ),
    ];
    let mut clients = tokio::task::JoinSet::new();
    for (what, count, bytes, deadline) in rows {
        for _ in 0..count {
            let (addr, bytes) = (addr.clone(), bytes.clone());
            clients.spawn(async move { (what, exchange(&addr, &bytes).await, deadline) });
        }
    }
    // Who says nothing at all, and goes away again, is no reason to stop either.
    for _ in 0..50 {
        drop(TcpStream::connect(&addr).await.unwrap());
    }
    let mut slowest = Duration::ZERO;
    while !clients.is_empty() {
        let started = Instant::now();
        assert_eq!(cluster.consistent_read(1, "known").await.as_deref(), Ok("value"));
        slowest = slowest.max(started.elapsed());
        assert!(slowest < OTHERS_DEADLINE, "a request of another client took {slowest:?}");
        let next = tokio::time::timeout(Duration::from_millis(20), clients.join_next()).await;
        let Ok(Some(ended)) = next else { continue };
        let (what, (answer, took), deadline) = ended.unwrap();
        assert!(answer.starts_with("HTTP/1.1 408 "), "{what}: {answer:?}");
        assert_json_error(what, &answer);
        assert!(took < deadline, "{what}: the node gave up after {took:?}");
    }
    eprintln!("the slowest request of another client took {} ms", slowest.as_millis());
    unharmed(&mut cluster, &[1], before).await;
}

/// A client that stops in the middle of a chunked body is cut off too.
///
/// Method: half a chunk, and nothing between two chunks, for each way in which
/// bodies are read.
#[tokio::test]
async fn a_stalled_chunked_body_is_cut_off() {
    let cluster = TestCluster::form("raw-chunk", &[1], CALM).await;
    let mut clients = tokio::task::JoinSet::new();
    for path in ["/write", "/raft-append", "/raft-snapshot"] {
        for chunks in [b"9\r\n{\"S".as_slice(), b"2\r\n\0\0\r\n"] {
            let addr = cluster.addr(1).to_owned();
            let request = [head(&format!("POST {path}"), "transfer-encoding: chunked\r\n"), chunks.to_vec()].concat();
            clients.spawn(async move { (path, exchange(&addr, &request).await) });
        }
    }
    while let Some(ended) = clients.join_next().await {
        let (path, (answer, _)) = ended.unwrap();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408 "), "{path}: {answer:?}");
    }
}

/// A body without end is refused once it is too long, and is then not read for ever.
///
/// Method: send a chunk now and then until the node closes the connection.
#[tokio::test]
async fn an_endless_body_is_cut_off() {
    const PAUSE: Duration = Duration::from_millis(20);
    let cluster = TestCluster::form("raw-endless", &[1], CALM).await;
    let chunk = [b"20000\r\n".as_slice(), &[b' '; 0x20000], b"\r\n"].concat();
    for path in ["/write", "/change-membership"] {
        let mut stream = TcpStream::connect(cluster.addr(1)).await.unwrap();
        let (mut reader, mut writer) = stream.split();
        writer.write_all(&head(&format!("POST {path}"), "transfer-encoding: chunked\r\n")).await.unwrap();
        let mut taken = 0;
        let send = async {
            while writer.write_all(&chunk).await.is_ok() {
                taken += chunk.len();
                tokio::time::sleep(PAUSE).await;
            }
        };
        let mut answer = Vec::new();
        let receive = async {
            // A reset after the answer is the answer's end too.
            let _ = reader.read_to_end(&mut answer).await;
        };
        let exchanged = tokio::time::timeout(SILENCE_DEADLINE, async { tokio::join!(send, receive) }).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413 "), "{path}: {answer:?}");
        assert!(exchanged.is_ok(), "{path}: after {SILENCE_DEADLINE:?} and {taken} bytes the node still reads");
    }
}
