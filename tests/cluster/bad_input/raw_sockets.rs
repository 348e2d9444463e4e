//! Requests that no HTTP library sends: broken heads, broken bodies, and silence.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{MARKER, State, states, unharmed};
use crate::harness::{ALL, CALM, STEADY, TestCluster, connect_and_send, path_of};

/// By then a node has given up on every client with a slow head: after 5 s, plus a margin.
const HEAD_SILENCE_DEADLINE: Duration = Duration::from_millis(9500);
/// By then it has given up on every client with a slow body: after 10 s, plus a margin.
const SILENCE_DEADLINE: Duration = Duration::from_secs(18);
/// The longest that requests of other clients may take while slow clients hold connections. It is less than the node
/// waits for a head, so that no request can wait for a slow client.
const OTHERS_DEADLINE: Duration = Duration::from_millis(4500);

/// Sends these bytes, and reads until the node closes the connection; returns the response and the time it took.
async fn exchange(addr: &str, bytes: &[u8]) -> (String, Duration) {
    let started = Instant::now();
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let write = async {
        // The node may reject the request and close before it has read everything.
        let _ = writer.write_all(bytes).await;
    };
    let mut answer = Vec::new();
    let read = async {
        // A reset after the response ends it as well.
        let _ = reader.read_to_end(&mut answer).await;
    };
    let exchanged = tokio::time::timeout(SILENCE_DEADLINE, async { tokio::join!(write, read) }).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(exchanged.is_ok(), "the node did not close within {SILENCE_DEADLINE:?}; the response was {answer:?}");
    (answer, started.elapsed())
}

/// A cluster with the key `known`, a node of it that is a follower if there is one, and the state of all nodes.
async fn with_known_key(name: &'static str, ids: &[u64]) -> (TestCluster, u64, BTreeMap<u64, State>) {
    let cluster = TestCluster::form(name, ids, STEADY).await;
    let target = 1 + cluster.leader_of(ids).await % ids.len() as u64;
    cluster.write(target, "known", "value").await;
    let before = states(&cluster, ids).await;
    (cluster, target, before)
}

fn head(line: &str, headers: &str) -> Vec<u8> {
    format!("{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n").into_bytes()
}

/// Asserts that a response of the HTTP library has a body like every other error.
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

/// Asserts that a response is an `invalid_http` whose message contains all these words, and that it closes the
/// connection.
fn assert_invalid_http(what: &str, answer: &str, words: &[&str]) {
    assert_json_error(what, answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let is_old = head.starts_with("HTTP/1.0 ");
    assert!(is_old || head.to_ascii_lowercase().contains("\r\nconnection: close"), "{what}: {answer:?}");
    let json: serde_json::Value = serde_json::from_str(body).unwrap();
    let error = &json["Err"]["BadRequest"];
    assert_eq!(error["code"], "invalid_http", "{what}: {answer:?}");
    let message = error["message"].as_str().unwrap();
    assert!(words.iter().all(|word| message.contains(word)), "{what}: {message:?} lacks one of {words:?}");
}

/// Bytes that are not a request are rejected or cut off at once, and change nothing.
///
/// Method: one connection per row; the response must be a 4xx, and come quickly.
#[tokio::test]
async fn broken_requests_do_no_harm() {
    let (mut cluster, _, before) = with_known_key("raw-broken", &[1]).await;
    let rows: Vec<(&str, Vec<u8>, &[u16])> = vec![
        ("garbage", format!("{MARKER} {MARKER}\r\n\r\n").into_bytes(), &[400]),
        (
            "a TLS greeting",
            [b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".as_slice(), &[7; 200], b"\r\n\r\n"].concat(),
            &[400],
        ),
        ("zeros", vec![0; 1000], &[400]),
        ("an unknown version", b"GET /metrics HTTP/9.9\r\n\r\n".to_vec(), &[400]),
        ("a path of raw bytes", b"GET /\xff\xfe HTTP/1.1\r\nconnection: close\r\n\r\n".to_vec(), &[400]),
        ("a body that is too long", head("POST /write", "content-length: 1572865\r\n"), &[413]),
        ("an RPC that is too long", head("POST /raft-append", "content-length: 67108865\r\n"), &[413]),
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

/// Keys that no library would put into a path are rejected by leaders and followers.
///
/// Method: a put, a get and a delete for each path, on a single node and on a follower of three. Each returns its
/// status and code, and nothing changes.
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
        ("a line break", b"known\nknown".to_vec(), 400, ""),
        ("a DEL character", b"known\x7f".to_vec(), 400, ""),
        ("a key of 60,000 bytes", long.into_bytes(), 413, "key_too_large"),
        ("a key of 200,000 bytes", endless.into_bytes(), 431, ""),
        ("an escape cut short in a key", b"known%".to_vec(), 400, "invalid_encoding"),
        ("an escape cut short in a query", b"known?%".to_vec(), 400, "invalid_encoding"),
        ("a query of raw bytes", b"known?\xff=1".to_vec(), 400, ""),
    ];
    for ids in [vec![1], vec![1, 2, 3]] {
        let (mut cluster, target, before) = with_known_key("raw-paths", &ids).await;
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

/// A target that the HTTP library would truncate or misread is rejected, and the message says why.
///
/// Method: a GET, PUT, DELETE, POST and HEAD of each target, to a single node and to a follower of three. Each must
/// return 400 with a message that contains the words of its row, and change nothing.
#[tokio::test]
async fn targets_that_would_be_truncated_do_no_harm() {
    let rows: &[(&str, &[u8], &[&str])] = &[
        ("a fragment after a key", b"/v1/kv/known#tag", &["#", "%23"]),
        ("a fragment after a prefix", b"/v1/kv?prefix=known#tag", &["#", "%23"]),
        ("a fragment that would turn a prefix into all", b"/v1/kv?all#tag", &["#", "%23"]),
        ("an empty fragment", b"/v1/kv/known#", &["#", "%23"]),
        ("a fragment with a query", b"/v1/kv/known#?raw", &["#", "%23"]),
        ("a fragment between slashes", b"/v1/kv/known#/touch", &["#", "%23"]),
        ("only a fragment", b"#", &["#"]),
        ("a fragment after the root", b"/#/v1/kv/known", &["#"]),
        ("a fragment of an absolute target", b"http://localhost/v1/kv/known#tag", &["#", "%23"]),
        ("a fragment after an authority", b"http://localhost#/v1/kv/known", &["#"]),
        ("another scheme", b"https://x/v1/kv/known", &["http://"]),
        ("no scheme", b"//x\\..#/v1/kv/known", &["#"]),
        ("a user in the authority", b"http://user@x/v1/kv/known", &["authority"]),
        ("no authority", b"http:///v1/kv/known", &["authority"]),
        ("an authority with two ports", b"http://a:1:2/v1/kv/known", &["authority"]),
        ("an authority with an open bracket", b"http://[::1/v1/kv/known", &["authority"]),
        ("an authority", b"x:80", &["begin with /"]),
        ("a path without a slash", b"v1/kv/known", &["begin with /"]),
        ("a star", b"*", &["begin with /"]),
        ("a query", b"?prefix=known", &["begin with /"]),
        ("a backslash", b"\\v1\\kv\\known", &["begin with /"]),
        ("UTF-8", "/v1/kv/kn\u{f6}wn".as_bytes(), &["`\u{f6}`", "%C3%B6"]),
        ("UTF-8 before bytes that are not", b"/v1/kv/\xe6\xbc\xa2\xff", &["`\u{6f22}`", "%E6%BC%A2"]),
        ("UTF-8 in a query", "/v1/kv?prefix=\u{e9}".as_bytes(), &["`\u{e9}`", "%C3%A9"]),
        ("a line separator", "/v1/kv/\u{2028}".as_bytes(), &["U+2028", "%E2%80%A8"]),
        ("bytes that are not UTF-8", b"/v1/kv/known\xff", &["0xFF", "not UTF-8"]),
        ("a space", b"/v1/kv/known known", &["space", "%20"]),
        ("a space at the end", b"/v1/kv/known ", &["space"]),
        ("a space at the start", b" /v1/kv/known", &["space"]),
        ("a tab", b"/v1/kv/known\tknown", &["0x09", "percent-encode"]),
        ("a NUL", b"/v1/kv/known\0", &["0x00", "percent-encode"]),
        ("a carriage return", b"/v1/kv/known\rknown", &["CR"]),
        ("an angle bracket", b"/v1/kv/<known>", &["`<`", "%3C"]),
        ("a backquote", b"/v1/kv/`known`", &["%60"]),
        ("a quote in a query", b"/v1/kv?prefix=\"known\"", &["%22"]),
    ];
    for ids in [vec![1], vec![1, 2, 3]] {
        let (mut cluster, target, before) = with_known_key("raw-targets", &ids).await;
        let addr = cluster.addr(target).to_owned();
        for (what, path, words) in rows {
            for (method, body) in [("GET", ""), ("PUT", "v"), ("DELETE", ""), ("POST", "v")] {
                let rest = format!(
                    " HTTP/1.1\r\nhost: localhost\r\nraft-forward: no\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
                let request = [method.as_bytes(), b" ", path, rest.as_bytes()].concat();
                let (answer, took) = exchange(&addr, &request).await;
                assert!(answer.starts_with("HTTP/1.1 400 "), "{method}, {what}: {answer:?}");
                assert_invalid_http(&format!("{method}, {what}"), &answer, words);
                assert!(took < Duration::from_secs(4), "{method}, {what} took {took:?}");
                cluster.assert_alive();
            }
            let head = [b"HEAD ".as_slice(), path, b" HTTP/1.1\r\nhost: localhost\r\n\r\n"].concat();
            let (answer, _) = exchange(&addr, &head).await;
            let is_bare = answer.starts_with("HTTP/1.1 400 ") && answer.ends_with("\r\n\r\n");
            assert!(is_bare, "HEAD, {what}: {answer:?}");
        }
        unharmed(&mut cluster, &ids, before).await;
    }
}

/// Headers that are rejected with any request line, and the words of the message.
const BAD_HEADERS: &[(&str, &str, &[&str])] = &[
    ("a length that is a word", "Host: localhost\r\nContent-Length: one\r\n", &["Content-Length"]),
    ("a negative length", "Host: localhost\r\nContent-Length: -1\r\n", &["Content-Length"]),
    ("a length with a sign", "Host: localhost\r\nContent-Length: +1\r\n", &["Content-Length"]),
    ("a length in hexadecimal", "Host: localhost\r\nContent-Length: 0x1\r\n", &["Content-Length"]),
    ("an empty length", "Host: localhost\r\nContent-Length:\r\n", &["Content-Length"]),
    ("a list of lengths", "Host: localhost\r\nContent-Length: 1, 1\r\n", &["Content-Length"]),
    (
        "a length that is too large for an integer",
        "Host: localhost\r\nContent-Length: 18446744073709551616\r\n",
        &["Content-Length"],
    ),
    ("two lengths", "Host: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n", &["Content-Length"]),
    ("the same length twice", "Host: localhost\r\nContent-Length: 1\r\nContent-Length: 1\r\n", &["Content-Length"]),
    (
        "a length and chunks",
        "Host: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        &["Content-Length", "Transfer-Encoding"],
    ),
    ("an unknown coding", "Host: localhost\r\nTransfer-Encoding: gzip, chunked\r\n", &["Transfer-Encoding", "chunked"]),
    ("no coding", "Host: localhost\r\nTransfer-Encoding: identity\r\n", &["Transfer-Encoding", "chunked"]),
    (
        "two codings",
        "Host: localhost\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        &["Transfer-Encoding"],
    ),
    ("a header without a colon", "Host: localhost\r\nwhat is this\r\n", &["header", "0x20"]),
    ("a space before the colon", "Host: localhost\r\nIf-Match : *\r\n", &["header", "space"]),
    ("a header without a name", "Host: localhost\r\n: x\r\n", &["header", "name"]),
    ("a header name that is not a token", "Host: localhost\r\nIf(Match): *\r\n", &["header", "`(`"]),
    ("a folded header", "Host: localhost\r\nX: a\r\n b\r\n", &["header", "fold"]),
    ("a NUL in a value", "Host: localhost\r\nX: a\0b\r\n", &["header", "0x00"]),
    ("an escape in a value", "Host: localhost\r\nX: a\x1bb\r\n", &["header", "0x1B"]),
    ("a bare CR in a value", "Host: localhost\r\nX: a\rIf-Match: *\r\n", &["CR"]),
    ("a bare LF after a value", "Host: localhost\r\nX: a\nIf-Match: *\r\n", &["CR LF"]),
    ("no Host", "content-length: 1\r\n", &["Host"]),
    ("two Hosts", "Host: localhost\r\nHost: localhost\r\ncontent-length: 1\r\n", &["Host"]),
    ("a Host that is a URL", "Host: http://localhost/\r\ncontent-length: 1\r\n", &["Host"]),
    ("a Host with a space", "Host: a b\r\ncontent-length: 1\r\n", &["Host"]),
    ("a space before the first header", " Host: localhost\r\n", &["header", "fold"]),
];

/// The message of an `invalid_http` names the fault.
///
/// Method: one connection per row; the message must contain the words of its row.
#[tokio::test]
async fn invalid_http_says_what_is_wrong() {
    let (mut cluster, _, before) = with_known_key("raw-messages", &[1]).await;
    let tls = [b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".as_slice(), &[7; 506]].concat();
    let requests: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("TLS", tls, &["TLS", "plain HTTP"]),
        ("an HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04".to_vec(), &["HTTP/2", "HTTP/1.1"]),
        (
            "HTTP/2.0 in the request line",
            b"PUT /v1/kv/known HTTP/2.0\r\nHost: localhost\r\n\r\n".to_vec(),
            &["HTTP/2.0", "HTTP/1.1"],
        ),
        ("HTTP/1.2", b"PUT /v1/kv/known HTTP/1.2\r\nHost: localhost\r\n\r\n".to_vec(), &["HTTP/1.2", "HTTP/1.1"]),
        ("HTTP/0.9", b"GET /v1/kv/known\r\n".to_vec(), &["version"]),
        ("a version in lower case", b"GET /v1/kv/known http/1.1\r\nHost: localhost\r\n\r\n".to_vec(), &["version"]),
        ("two Hosts in HTTP/1.0", b"GET /metrics HTTP/1.0\r\nHost: localhost\r\nhost: y\r\n\r\n".to_vec(), &["Host"]),
        (
            "chunks in HTTP/1.0",
            b"PUT /v1/kv/known HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(),
            &["Transfer-Encoding", "HTTP/1.0"],
        ),
        ("lines that end with LF", b"GET /metrics HTTP/1.1\nHost: localhost\n\n".to_vec(), &["CR LF"]),
        ("a tunnel", b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n".to_vec(), &["CONNECT"]),
        ("a tunnel to a key", b"CONNECT /v1/kv/known HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(), &["CONNECT"]),
        (
            "a method that is not a token",
            b"P{}T /v1/kv/known HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
            &["method"],
        ),
        ("a method that begins with #", b"#GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(), &["method"]),
        ("a method in quotes", b"\"PUT\" /v1/kv/known HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(), &["method"]),
        ("no method", b" /v1/kv/known HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(), &["method"]),
        ("no target", b"PUT  HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(), &["space"]),
        ("two spaces", b"PUT /v1/kv/known  HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(), &["space"]),
    ];
    let mut rows: Vec<(String, Vec<u8>, &[&str])> =
        requests.into_iter().map(|(what, bytes, words)| (what.to_owned(), bytes, words)).collect();
    for line in ["PUT /v1/kv/known", "POST /write", "GET /metrics"] {
        for (what, headers, words) in BAD_HEADERS {
            let request = format!("{line} HTTP/1.1\r\n{headers}x-marker: {MARKER}\r\n\r\nv");
            rows.push((format!("{line}, {what}"), request.into(), words));
        }
    }
    let addr = cluster.addr(1).to_owned();
    for (what, bytes, words) in rows {
        // Alone, and after a request whose response comes first.
        let (answer, took) = exchange(&addr, &bytes).await;
        assert!(answer.starts_with("HTTP/1."), "{what}: {answer:?}");
        assert_invalid_http(&what, &answer, words);
        assert!(took < Duration::from_secs(4), "{what} took {took:?}");
        let first = b"GET /v1/kv/known?raw HTTP/1.1\r\nhost: localhost\r\n\r\n";
        let (answer, _) = exchange(&addr, &[first.as_slice(), &bytes].concat()).await;
        let second = answer.strip_prefix("HTTP/1.1 200 OK\r\n").and_then(|answer| answer.split_once("\r\n\r\nvalue"));
        let (_, second) = second.unwrap_or_else(|| panic!("{what}, pipelined: {answer:?}"));
        assert_invalid_http(&format!("{what}, pipelined"), second, words);
        cluster.assert_alive();
    }
    unharmed(&mut cluster, &[1], before).await;
}

/// A head that is too long, as a whole or in one part, is rejected with 431, and the message says what is too long.
///
/// Method: one connection per row. A header name longer than the HTTP library can store would make the library panic.
#[tokio::test]
async fn a_head_that_is_too_long_is_rejected() {
    let (mut cluster, _, before) = with_known_key("raw-long", &[1]).await;
    let headers = |count: usize| (0..count).map(|number| format!("x-{number}: y\r\n")).collect::<String>();
    let old = |headers: &str| format!("POST /read HTTP/1.0\r\n{headers}\r\n").into_bytes();
    let old_of = |bytes: usize| old(&format!("x: {}\r\n", "v".repeat(bytes - old("x: \r\n").len())));
    let rows: Vec<(&str, Vec<u8>, &str)> = vec![
        ("a target of 65,535 bytes", head(&format!("GET /{}", "a".repeat(65_534)), ""), "target"),
        ("a target of 100,000 bytes", head(&format!("GET /{}", "a".repeat(99_999)), ""), "target"),
        ("a target of 1 MiB", head(&format!("GET /{}", "a".repeat(1 << 20)), ""), "target"),
        ("an unfinished target", format!("GET /{}", "a".repeat(200_000)).into_bytes(), "target"),
        ("95 more headers", head("GET /metrics", &headers(95)), "96 header"),
        ("2,000 headers", head("GET /metrics", &headers(2000)), "96 header"),
        ("a name of 70,000 bytes", head("GET /metrics", &format!("{}: y\r\n", "n".repeat(70_000))), "name"),
        ("a value of 1 MiB", head("GET /metrics", &format!("x: {}\r\n", "v".repeat(1 << 20))), "131072 bytes"),
        ("empty lines", b"\r\n".repeat(100_000), "131072 bytes"),
        // The Content-Length that these requests lack is added, and counts toward the limit.
        ("96 headers in HTTP/1.0", old(&headers(96)), "96 header"),
        ("131,054 bytes in HTTP/1.0", old_of(131_054), "131072 bytes"),
    ];
    let addr = cluster.addr(1).to_owned();
    for (what, bytes, word) in rows {
        let (answer, took) = exchange(&addr, &bytes).await;
        let version = if what.ends_with("HTTP/1.0") { "HTTP/1.0" } else { "HTTP/1.1" };
        assert!(answer.starts_with(&format!("{version} 431 ")), "{what}: {answer:?}");
        assert_json_error(what, &answer);
        assert!(answer.contains("HeadTooLarge") && answer.contains(word), "{what}: {answer:?}");
        assert!(took < Duration::from_secs(4), "{what} took {took:?}");
        cluster.assert_alive();
    }
    for (what, bytes, status) in [
        ("a target of 65,534 bytes", head(&format!("GET /{}", "a".repeat(65_533)), ""), 404),
        ("94 more headers", head("GET /metrics", &headers(94)), 200),
        ("a value of 120,000 bytes", head("GET /metrics", &format!("x: {}\r\n", "v".repeat(120_000))), 200),
    ] {
        let (answer, _) = exchange(&addr, &bytes).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {answer:?}");
    }
    let longest = head("GET /metrics", "x: \r\n").len();
    let longest = head("GET /metrics", &format!("x: {}\r\n", "v".repeat(131_072 - longest)));
    assert!(exchange(&addr, &longest).await.0.starts_with("HTTP/1.1 200 "), "131,072 bytes");
    for (what, bytes) in [("95 headers in HTTP/1.0", old(&headers(95))), ("131,053 bytes in HTTP/1.0", old_of(131_053))]
    {
        let (answer, _) = exchange(&addr, &bytes).await;
        assert!(answer.starts_with("HTTP/1.0 400 ") && answer.contains("invalid_json"), "{what}: {answer:?}");
    }
    unharmed(&mut cluster, &[1], before).await;
}

/// Unusual requests that RFC 9110 and RFC 9112 allow are served.
///
/// Method: read the same key with each of them.
#[tokio::test]
async fn unusual_but_valid_requests_are_served() {
    let cluster = TestCluster::form("raw-unusual", &[1], CALM).await;
    cluster.write(1, "known", "value").await;
    let line = |line: &str| format!("{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").into_bytes();
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("an absolute target", line("GET http://localhost/v1/kv/known?raw")),
        ("an absolute target in capitals", line("GET HTTP://LOCALHOST:80/v1/kv/known?raw")),
        ("an absolute target of an IPv6 address", line("GET http://[::1]:21001/v1/kv/known?raw")),
        ("an escaped key", line("GET /v1/kv/%6b%6E%6Fwn?raw")),
        ("an escaped path", line("GET /%761/kv/known?raw")),
        (
            "a Host with a zone",
            b"GET /v1/kv/known?raw HTTP/1.1\r\nHost: [fe80::1%25eth0]:80\r\nConnection: close\r\n\r\n".to_vec(),
        ),
        ("an empty Host", b"GET /v1/kv/known?raw HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n".to_vec()),
        (
            "no space after the colon",
            b"GET /v1/kv/known?raw HTTP/1.1\r\nHost:localhost\r\nConnection:close\r\n\r\n".to_vec(),
        ),
        ("tabs", b"GET /v1/kv/known?raw HTTP/1.1\r\nHost:\tlocalhost\t\r\nConnection:\t close \r\n\r\n".to_vec()),
        ("an empty line before the request", [b"\r\n".to_vec(), line("GET /v1/kv/known?raw")].concat()),
        ("a header value in Latin-1", head("GET /v1/kv/known?raw", "x: \u{e9}\r\n")),
        ("a length of zero", head("GET /v1/kv/known?raw", "content-length: 0\r\n")),
    ];
    for (what, bytes) in rows {
        let (answer, _) = exchange(cluster.addr(1), &bytes).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nvalue"), "{what}: {answer:?}");
    }
}

/// An empty chunked body counts as no body; some clients send one with every request.
///
/// Method: on one connection, send requests with empty chunked bodies, with and without a trailer, to each route that
/// takes no body.
#[tokio::test]
async fn an_empty_body_in_chunks_is_no_body() {
    let cluster = TestCluster::form("raw-empty", &[1], CALM).await;
    let rows = [
        ("PUT /v1/kv/known", 200),
        ("GET /v1/kv/known?raw", 200),
        ("HEAD /v1/kv/known", 200),
        ("POST /v1/kv/known/touch?ttl=1h", 200),
        ("GET /v1/kv", 200),
        ("GET /v1/cluster/hash", 200),
        ("GET /metrics", 200),
        ("DELETE /v1/cluster/members/77", 404),
        ("DELETE /v1/kv?prefix=unknown", 200),
        ("DELETE /v1/kv/known", 200),
        ("GET /v1/kv/known", 404),
        ("GET /v1/watch?from=9", 400),
    ];
    for end in ["0\r\n\r\n", "000;e\r\nx: y\r\n\r\n"] {
        let request = |line| format!("{line} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n{end}");
        let stream: String = rows.iter().map(|(line, _)| request(line)).collect();
        let (answers, _) = exchange(cluster.addr(1), &[stream.into_bytes(), head("GET /docs", "")].concat()).await;
        let mut statuses: Vec<&str> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
        assert_eq!(statuses.pop(), Some("200"), "{answers:?}");
        let expected: Vec<String> = rows.iter().map(|(_, status)| status.to_string()).collect();
        assert_eq!(statuses, expected, "{answers:?}");
        assert!(answers.contains("revision_in_future"), "{answers:?}");
    }
}

/// A client that is still sending its body when the request is rejected can read why.
///
/// Method: send a rejected head with a long body as a whole before reading anything.
#[tokio::test]
async fn a_client_that_is_still_sending_reads_why() {
    let cluster = TestCluster::form("raw-linger", &[1], CALM).await;
    for (headers, words) in [("", ["#", "%23"]), ("expect: 100-continue\r\n", ["#", "%23"])] {
        let body = vec![b'v'; 1 << 20];
        let request =
            [head("PUT /v1/kv/known#tag", &format!("{headers}content-length: {}\r\n", body.len())), body].concat();
        let mut stream = connect_and_send(cluster.addr(1), &request).await;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_invalid_http("a long body", &answer, &words);
    }
}

/// A body that ends early is rejected, and the message says so.
///
/// Method: send part of a body, with a length and in chunks, and then close the sending half of the connection.
#[tokio::test]
async fn a_body_that_ends_early_is_rejected() {
    let (mut cluster, _, before) = with_known_key("raw-early", &[1]).await;
    for (framing, part) in [
        ("content-length: 5", "ab"),
        ("transfer-encoding: chunked", "5\r\nab"),
        ("transfer-encoding: chunked", "2\r\nab\r\n"),
    ] {
        let mut stream = TcpStream::connect(cluster.addr(1)).await.unwrap();
        let head = head("PUT /v1/kv/known", &format!("{framing}\r\n"));
        stream.write_all(&[head, part.into()].concat()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{part:?}: {answer:?}");
        assert_json_error(part, &answer);
        assert!(answer.contains("broken_body") && answer.contains("before the end"), "{part:?}: {answer:?}");
    }
    unharmed(&mut cluster, &[1], before).await;
}

/// A body that is too long is rejected before the client sends it; any other body is requested with `100 Continue`.
///
/// Method: heads with `Expect: 100-continue` and a length; the client sends nothing else until the node has responded.
#[tokio::test]
async fn a_long_body_is_rejected_before_it_is_sent() {
    let cluster = TestCluster::form("raw-expect", &[1], CALM).await;
    let limit: u64 = 3 << 19;
    for (line, length, first) in [
        ("PUT /v1/kv/known", limit + 1, "HTTP/1.1 413 "),
        ("POST /write", limit + 1, "HTTP/1.1 413 "),
        ("POST /init", 1 << 40, "HTTP/1.1 413 "),
        ("POST /v1/txn", limit, "HTTP/1.1 100 Continue\r\n\r\n"),
        ("PUT /v1/kv/known", 1, "HTTP/1.1 100 Continue\r\n\r\n"),
    ] {
        let mut stream = TcpStream::connect(cluster.addr(1)).await.unwrap();
        let headers = format!("content-length: {length}\r\nexpect: 100-continue\r\n");
        stream.write_all(&head(line, &headers)).await.unwrap();
        let mut answer = vec![0; first.len()];
        let read = tokio::time::timeout(SILENCE_DEADLINE, stream.read_exact(&mut answer)).await;
        read.unwrap_or_else(|_| panic!("{line}, {length}: no response")).unwrap();
        assert_eq!(String::from_utf8_lossy(&answer), first, "{line}, {length}");
        if length == 1 {
            stream.write_all(b"v").await.unwrap();
        }
        if length != limit {
            let mut rest = String::new();
            stream.read_to_string(&mut rest).await.unwrap();
            let is_done =
                if length == 1 { rest.starts_with("HTTP/1.1 200 ") } else { rest.contains("request_too_large") };
            assert!(is_done, "{line}, {length}: {rest:?}");
        }
    }
}

/// A request with broken chunks gets one response, and the connection closes.
///
/// Method: send chunks that are broken in every way to routes that read a body and to routes that do not. The request
/// behind them must not be served.
#[tokio::test]
async fn broken_chunks_end_the_connection() {
    let (mut cluster, _, before) = with_known_key("raw-chunks", &[1]).await;
    let long = format!("1;{}\r\nx\r\n", "e".repeat(20_000));
    let trailer = format!("1\r\nx\r\n0\r\nx: {}\r\n\r\n", "t".repeat(20_000));
    let rows = [
        ("no size", "\r\n"),
        ("a size with a letter", "g\r\n"),
        ("a size with a sign", "+1\r\nx\r\n"),
        ("a size with 0x", "0x1\r\nx\r\n"),
        ("a size that is too large for an integer", "10000000000000000\r\nx\r\n"),
        ("a size that ends with LF", "1\nx\r\n"),
        ("a chunk that is longer than its size", "1\r\nxx\r\n"),
        ("a chunk without its end", "1\r\nx0\r\n\r\n"),
        ("a control character in an extension", "1;a\x01\r\nx\r\n"),
        ("a LF in an extension", "1;a\nb\r\nx\r\n"),
        ("a CR in an extension", "1;a\rb\r\nx\r\n"),
        ("a trailer without a colon", "1\r\nx\r\n0\r\nx\r\n\r\n"),
        ("a trailer without a name", "1\r\nx\r\n0\r\n: x\r\n\r\n"),
        ("a space before the colon of a trailer", "1\r\nx\r\n0\r\nx : y\r\n\r\n"),
        ("a folded trailer", "1\r\nx\r\n0\r\nx: y\r\n z\r\n\r\n"),
        ("a trailer name that is not ASCII", "1\r\nx\r\n0\r\n\u{e9}: y\r\n\r\n"),
        ("a CR in a trailer", "1\r\nx\r\n0\r\nx: a\rb\r\n\r\n"),
        ("a LF in a trailer", "1\r\nx\r\n0\r\nx: a\nb\r\n\r\n"),
        ("an extension of 20,000 bytes", &long),
        ("a trailer of 20,000 bytes", &trailer),
    ];
    let addr = cluster.addr(1).to_owned();
    for (what, chunks) in rows {
        for line in ["POST /write", "PUT /v1/kv/known", "GET /v1/kv/known", "POST /nowhere"] {
            let follows = "PUT /v1/kv/known HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\n\r\nv";
            let request =
                format!("{line} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n{chunks}{follows}");
            let (answer, _) = exchange(&addr, request.as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 4"), "{what}, {line}: {answer:?}");
            assert_json_error(&format!("{what}, {line}"), &answer);
        }
        cluster.assert_alive();
    }
    unharmed(&mut cluster, &[1], before).await;
}

/// A path means the same key on a follower as on the leader, whatever characters it has.
///
/// Method: put keys with characters that a URL should escape, through each of three nodes, as bytes on a socket. Read
/// each key on every node by its escaped path.
#[tokio::test]
async fn a_path_means_the_same_key_on_every_node() {
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

/// Clients that stop in the middle of a request are disconnected, and do not slow others down.
///
/// Method: 200 connections with half a head, 70 with half a body, and 50 that send nothing and close. Meanwhile another
/// client's requests must be served quickly.
#[tokio::test]
async fn slow_clients_do_not_slow_others_down() {
    let (mut cluster, _, before) = with_known_key("raw-slow", &[1]).await;
    let addr = cluster.addr(1).to_owned();
    let rows: Vec<(&str, usize, Vec<u8>, Duration)> = vec![
        ("half a line", 100, b"POST /wri".to_vec(), HEAD_SILENCE_DEADLINE),
        ("half a header", 100, format!("POST /write HTTP/1.1\r\nhost: {MARKER}").into_bytes(), HEAD_SILENCE_DEADLINE),
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
    // A client that connects and leaves without a byte must not matter either.
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

/// A client that stops in the middle of a chunked body is disconnected too.
///
/// Method: stop within a chunk and between two chunks, for each way in which bodies are read.
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
        // Only one RPC body of unknown length is read at a time.
        let is_overloaded = path == "/raft-append" && answer.starts_with("HTTP/1.1 503 ");
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408 ") || is_overloaded, "{path}: {answer:?}");
    }
}

/// An endless body is rejected once it is too long, and the node stops reading it.
///
/// Method: keep sending chunks until the node closes the connection.
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
            // A reset after the response ends it as well.
            let _ = reader.read_to_end(&mut answer).await;
        };
        let exchanged = tokio::time::timeout(SILENCE_DEADLINE, async { tokio::join!(send, receive) }).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413 "), "{path}: {answer:?}");
        assert!(exchanged.is_ok(), "{path}: after {SILENCE_DEADLINE:?} and {taken} bytes the node still reads");
    }
}
