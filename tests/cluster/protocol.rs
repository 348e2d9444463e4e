//! A node speaks HTTP/1.1 and HTTP/1.0 as clients and proxies expect.

use crate::harness::{CALM, TestCluster, Wire, WireResponse};

/// The headers that the JDK's HTTP client adds to each request over plain HTTP.
const JDK: &str = "Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA\r\n\
                   Upgrade: h2c\r\nUser-Agent: Java-http-client/17.0.15\r\n";
/// The headers that Apache HttpClient 5.4 adds.
const APACHE: &str = "Upgrade: TLS/1.2\r\nConnection: Upgrade\r\nUser-Agent: Apache-HttpClient/5.4 (Java/17)\r\n";

/// A request with this body, or without one if it is empty.
fn request(line: &str, headers: &str, body: &str) -> String {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    format!("{line}\r\nHost: 127.0.0.1\r\n{headers}{length}\r\n{body}")
}

fn assert_kept_open(response: &WireResponse, what: &str) {
    assert_eq!((response.header("connection"), response.header("upgrade")), (None, None), "{what}: {response:?}");
}

/// A request to upgrade is served without an upgrade, and the connection stays open.
///
/// Method: send headers as clients do, with and without bodies, in turn and all at once, on one connection. Every
/// response must arrive on it, without `Connection: upgrade`.
#[tokio::test]
async fn upgrades_are_ignored() {
    let cluster = TestCluster::form("protocol-upgrade", &[1], CALM).await;
    let rows = [
        ("the JDK", JDK),
        ("Apache HttpClient", APACHE),
        ("a WebSocket", "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"),
        ("a WebSocket in capitals", "UPGRADE: WebSocket\r\nCONNECTION: UPGRADE\r\n"),
        ("only the Connection header", "Connection: upgrade\r\n"),
        ("only the Upgrade header", "Upgrade: websocket\r\n"),
        ("two lines", "Connection: keep-alive\r\nConnection: ,upgrade ,\r\nUpgrade: h2c, websocket\r\n"),
        ("a WebSocket with tabs", "Upgrade:\twebsocket\t\r\nConnection:\tUpgrade\t\r\n"),
    ];
    for (what, headers) in rows {
        let key = what.replace(' ', "-");
        let requests = [
            ("PUT", request(&format!("PUT /v1/kv/{key} HTTP/1.1"), headers, "first")),
            ("GET", request(&format!("GET /v1/kv/{key}?raw HTTP/1.1"), headers, "")),
            ("PUT", request(&format!("PUT /v1/kv/{key} HTTP/1.1"), headers, "second")),
            ("HEAD", request(&format!("HEAD /v1/kv/{key} HTTP/1.1"), headers, "")),
            ("GET", request(&format!("GET /v1/kv/{key}?raw HTTP/1.1"), headers, "")),
            ("POST", request("POST /read HTTP/1.1", headers, &format!("{key:?}"))),
            ("DELETE", request(&format!("DELETE /v1/kv/{key} HTTP/1.1"), headers, "")),
            ("GET", request(&format!("GET /v1/kv/{key}?raw HTTP/1.1"), headers, "")),
        ];
        let statuses = [200, 200, 200, 200, 200, 200, 200, 404];
        let bodies = [None, Some("first"), None, None, Some("second"), Some("{\"Ok\":\"second\"}"), None, None];
        for all_at_once in [false, true] {
            let what = format!("{what}, all at once: {all_at_once}");
            let mut wire = Wire::open(cluster.addr(1)).await;
            if all_at_once {
                wire.send(requests.iter().map(|(_, request)| request.as_str()).collect::<String>()).await;
            }
            for (((method, request), status), body) in requests.iter().zip(statuses).zip(bodies) {
                if !all_at_once {
                    wire.send(request).await;
                }
                let response = wire.response_to(method).await;
                assert_eq!(response.status, status, "{what}, {request:?}: {response:?}");
                assert_kept_open(&response, &what);
                assert!(body.is_none_or(|body| response.text() == body), "{what}, {request:?}: {response:?}");
            }
        }
    }
}

/// `Connection: close` closes the connection, whatever other options there are.
///
/// Method: send two requests at once, the first with `close`; only that one is served.
#[tokio::test]
async fn close_is_obeyed() {
    let cluster = TestCluster::form("protocol-close", &[1], CALM).await;
    let rows = [
        "Connection: close\r\n",
        "Connection: Upgrade, close\r\nUpgrade: h2c\r\n",
        "Connection: keep-alive, CLOSE\r\n",
        "Connection: keep-alive\r\nConnection: close\r\n",
        "Connection: close\r\nConnection: keep-alive\r\n",
        "Connection: close, \u{e9}\r\n",
    ];
    for headers in rows {
        let mut wire = Wire::open(cluster.addr(1)).await;
        let first = request("GET /metrics HTTP/1.1", headers, "");
        wire.send(first + &request("PUT /v1/kv/second HTTP/1.1", "", "not served")).await;
        let response = wire.response_to("GET").await;
        assert_eq!((response.status, response.header("connection")), (200, Some("close")), "{headers:?}");
        wire.assert_closed(headers).await;
        assert_eq!(cluster.get(1, "/v1/kv/second").await.status, 404, "{headers:?}");
    }
}

/// Pipelined requests get their own responses, in order.
///
/// Method: send HEAD and GET requests of existing and missing keys, values of many lengths, and bodies with a length,
/// without one and in chunks: all at once, and in pieces of seven bytes.
#[tokio::test]
async fn pipelined_requests_get_their_own_responses() {
    let cluster = TestCluster::form("protocol-pipeline", &[1], CALM).await;
    let (middle, large) = ("m".repeat(3000), "l".repeat(300_000));
    let values = [("small", "s"), ("middle", middle.as_str()), ("large", &large), ("heads", "HTTP/1.1 400 \r\n\r\n")];
    for (key, value) in values {
        assert_eq!(cluster.put(1, &format!("/v1/kv/{key}"), value.to_owned()).await.status, 200);
    }
    let mut rows: Vec<(&str, String, u16, Option<String>)> = Vec::new();
    for (key, value) in values {
        let get = |method: &str| request(&format!("{method} /v1/kv/{key}?raw HTTP/1.1"), "", "");
        rows.push(("HEAD", get("HEAD"), 200, None));
        rows.push(("GET", get("GET"), 200, Some(value.to_owned())));
        rows.push(("HEAD", get("HEAD"), 200, None));
        rows.push(("HEAD", request("HEAD /v1/kv/none HTTP/1.1", "", ""), 404, None));
        rows.push(("GET", get("GET"), 200, Some(value.to_owned())));
        rows.push(("POST", request("POST /read HTTP/1.1", "", r#""small""#), 200, Some(r#"{"Ok":"s"}"#.to_owned())));
        let chunked = "Host: localhost\r\nTransfer-Encoding: Chunked\r\n\r\n3;a=\"b;c\"\r\n\"sm\r\n04 \r\nall\"\r\n0\r\nx: y\r\n\r\n";
        let chunked = format!("POST /read HTTP/1.1\r\n{chunked}");
        rows.push(("POST", chunked, 200, Some(r#"{"Ok":"s"}"#.to_owned())));
        rows.push(("PUT", request("PUT /v1/kv/written HTTP/1.1", "", key), 200, None));
        rows.push(("HEAD", request("HEAD /write HTTP/1.1", "", ""), 405, None));
        rows.push(("GET", request("GET /v1/kv/written?raw HTTP/1.1", "", ""), 200, Some(key.to_owned())));
        rows.push(("HEAD", request("HEAD /nowhere HTTP/1.1", "", ""), 404, None));
        rows.push(("GET", format!("\r\n{}", get("GET")), 200, Some(value.to_owned())));
    }
    let requests: Vec<u8> = rows.iter().flat_map(|(_, request, ..)| request.bytes()).collect();
    for piece in [requests.len(), 7] {
        let mut wire = Wire::open(cluster.addr(1)).await;
        for piece in requests.chunks(piece) {
            wire.send(piece).await;
            tokio::task::yield_now().await;
        }
        for (number, (method, request, status, body)) in rows.iter().enumerate() {
            let response = wire.response_to(method).await;
            let what = format!("row {number} in pieces of {piece}: {method}");
            assert_eq!((response.status, response.header("connection")), (*status, None), "{what} {request:?}");
            let is_own = body.as_ref().is_none_or(|body| response.text() == *body);
            assert!(is_own, "{what} {request:?}: {} bytes", response.body.len());
        }
        wire.finish().await;
        wire.assert_closed("afterwards").await;
    }
}

/// Pipelined requests of two HTTP versions get responses of their own version.
///
/// Method: send requests of both versions at once on one connection.
#[tokio::test]
async fn pipelined_requests_of_two_versions() {
    let cluster = TestCluster::form("protocol-versions", &[1], CALM).await;
    let new = request("GET /v1/kv?prefix=a HTTP/1.1", "", "");
    let old = request("GET /v1/kv?prefix=a HTTP/1.0", "Connection: keep-alive\r\n", "");
    let last = request("GET /v1/kv?prefix=a HTTP/1.0", "", "");
    let mut wire = Wire::open(cluster.addr(1)).await;
    wire.send([new.as_str(), &old, &new, &last, &new].concat()).await;
    for (version, connection) in
        [("HTTP/1.1", None), ("HTTP/1.0", Some("keep-alive")), ("HTTP/1.1", None), ("HTTP/1.0", None)]
    {
        let response = wire.response_to("GET").await;
        let found = (response.version.as_str(), response.header("connection"), response.status);
        assert_eq!(found, (version, connection, 200));
    }
    wire.assert_closed("after a request of HTTP/1.0 without keep-alive").await;
}

/// Requests that arrive together with the end of the client's half are all served.
///
/// Method: send three writes and shut down the sending half at once.
#[tokio::test]
async fn a_half_that_is_closed_after_requests() {
    let cluster = TestCluster::form("protocol-half", &[1], CALM).await;
    let mut wire = Wire::open(cluster.addr(1)).await;
    wire.send((0..3).map(|n| request(&format!("PUT /v1/kv/{n} HTTP/1.1"), "", "value")).collect::<String>()).await;
    wire.finish().await;
    for _ in 0..3 {
        assert_eq!(wire.response_to("PUT").await.status, 200);
    }
    wire.assert_closed("after three writes").await;
}

/// Every route that accepts GET accepts HEAD, with the same status and headers and without a body.
///
/// Method: send both on one connection, for every such route and for every kind of error.
#[tokio::test]
async fn head_is_accepted_wherever_get_is() {
    let cluster = TestCluster::form("protocol-head", &[1], CALM).await;
    cluster.put(1, "/v1/kv/a%20b", "value").await.done();
    let not_utf8: &[u8] = b"\xff\0";
    cluster.put(1, "/v1/kv/bytes", not_utf8).await.done();
    let rows = [
        ("/v1/kv", "", 200),
        ("/v1/kv?prefix=a&keys_only", "", 200),
        ("/v1/kv/a%20b", "", 200),
        ("/v1/kv/a%20b?raw", "", 200),
        ("/v1/kv/a%20b?consistency=stale", "", 200),
        ("/v1/kv/bytes", "", 200),
        ("/v1/kv/a%20b", "If-None-Match: \"1\"\r\n", 304),
        ("/v1/cluster/hash", "", 200),
        ("/v1/snapshot", "", 200),
        ("/metrics", "", 200),
        ("/v1/metrics", "", 200),
        ("/livez", "", 200),
        ("/readyz?verbose", "", 200),
        ("/health", "", 200),
        ("/docs", "", 200),
        ("/openapi.json", "", 200),
        ("/raft-identity", "", 200),
        // Errors.
        ("/v1/kv/missing", "", 404),
        ("/v1/kv?limit=0", "", 400),
        ("/v1/kv/%", "", 400),
        ("/v1/watch?from=x", "", 400),
        ("/v1/watch?from=999", "", 400),
        ("/v1/cluster/hash?applied=0", "", 410),
        ("/v1/kv?revision=0", "", 410),
        ("/v1/nothing", "", 404),
        ("/nothing", "", 404),
        ("/write", "", 405),
        ("/v1/txn", "", 405),
    ];
    let mut wire = Wire::open(cluster.addr(1)).await;
    for (path, headers, status) in rows {
        for _ in 0..2 {
            wire.send(request(&format!("HEAD {path} HTTP/1.1"), headers, "")).await;
            let head = wire.response_to("HEAD").await;
            wire.send(request(&format!("GET {path} HTTP/1.1"), headers, "")).await;
            let get = wire.response_to("GET").await;
            assert_eq!((head.status, get.status), (status, status), "{path}: {head:?} {get:?}");
            let comparable = |response: &WireResponse| {
                let mut headers = response.headers.clone();
                headers.retain(|header| !header.starts_with("date:") && !header.starts_with("x-request-id:"));
                // The metrics change between requests.
                headers.retain(|header| !path.ends_with("/metrics") || !header.starts_with("content-length:"));
                headers
            };
            assert_eq!(comparable(&head), comparable(&get), "{path}");
        }
    }
}

/// An error in response to HEAD has no body, whichever part of the node reports it.
///
/// Method: on a connection each, send a body where none is allowed, a target that is rejected, a head that is too long,
/// and an unfinished head.
#[tokio::test]
async fn errors_to_head_have_no_body() {
    let cluster = TestCluster::form("protocol-head-errors", &[1], CALM).await;
    let rows = [
        ("a body", request("HEAD /v1/kv/a HTTP/1.1", "Connection: close\r\n", "abc"), 400),
        ("a long body", "HEAD /v1/kv/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n\r\n".to_owned(), 400),
        ("a fragment", request("HEAD /v1/kv/a#b HTTP/1.1", "", ""), 400),
        ("a header that is too long", format!("HEAD / HTTP/1.1\r\nx: {}", "y".repeat(140_000)), 431),
        ("half a head", "HEAD /v1/kv/a HTTP/1.1\r\nHost:".to_owned(), 408),
    ];
    for (what, request, status) in rows {
        let mut wire = Wire::open(cluster.addr(1)).await;
        wire.send(request).await;
        let response = wire.response_to("HEAD").await;
        assert_eq!((response.status, response.header("connection")), (status, Some("close")), "{what}: {response:?}");
        assert_eq!(response.header("raft-outcome"), Some("not_applied"), "{what}");
        wire.assert_closed(what).await;
    }
}

/// HEAD of a watch returns the headers of a watch, and opens none.
///
/// Method: alternate HEAD of watches and writes on one connection. Only the responses to the writes may follow.
#[tokio::test]
async fn head_of_a_watch_opens_none() {
    let cluster = TestCluster::form("protocol-head-watch", &[1], CALM).await;
    let mut wire = Wire::open(cluster.addr(1)).await;
    for path in ["/v1/watch", "/v1/watch?prefix=a&initial", "/v1/watch?from=1"] {
        wire.send(request(&format!("HEAD {path} HTTP/1.1"), "", "")).await;
        let head = wire.response_to("HEAD").await;
        assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")), "{head:?}");
        assert_eq!((head.header("content-length"), head.header("connection")), (None, None), "{head:?}");
        wire.send(request("PUT /v1/kv/a HTTP/1.1", "", "value")).await;
        assert_eq!(wire.response_to("PUT").await.status, 200);
    }
}

/// The `Allow` header of a route that accepts GET lists HEAD.
///
/// Method: send a method that no route accepts to each route.
#[tokio::test]
async fn allow_names_head() {
    let cluster = TestCluster::form("protocol-allow", &[1], CALM).await;
    let rows = [
        ("/v1/kv", "GET, HEAD, DELETE"),
        ("/v1/kv/a", "GET, HEAD, PUT, DELETE"),
        ("/v1/kv/a/touch", "GET, HEAD, PUT, DELETE, POST"),
        ("/v1/watch", "GET, HEAD"),
        ("/v1/cluster", "GET, HEAD"),
        ("/v1/cluster/hash", "GET, HEAD"),
        ("/v1/snapshot", "GET, HEAD"),
        ("/metrics", "GET, HEAD"),
        ("/docs", "GET, HEAD"),
        ("/openapi.json", "GET, HEAD"),
        ("/raft-identity", "GET, HEAD"),
        ("/raft-status", "GET, HEAD"),
        ("/write", "POST"),
        ("/v1/txn", "POST"),
    ];
    let mut wire = Wire::open(cluster.addr(1)).await;
    for (path, allow) in rows {
        wire.send(request(&format!("PATCH {path} HTTP/1.1"), "", "")).await;
        let response = wire.response_to("PATCH").await;
        assert_eq!((response.status, response.header("allow")), (405, Some(&*allow.to_lowercase())), "{path}");
    }
}

/// A head that starts behind another request and never ends does not keep its connection open.
///
/// Method: send a request and half of the next one at once. The first must get its response, and the connection must
/// close.
#[tokio::test]
async fn half_a_head_behind_a_request_times_out() {
    let cluster = TestCluster::form("protocol-half-head", &[1], CALM).await;
    let mut wire = Wire::open(cluster.addr(1)).await;
    wire.send(request("PUT /v1/kv/a HTTP/1.1", "", "value") + "GET /v1/kv/a HTTP/1.1\r\nHost: ").await;
    assert_eq!(wire.response_to("PUT").await.status, 200);
    wire.assert_closed("half a head").await;
}

/// A client that waits for `100 Continue` gets it for each request, and then sends the body.
///
/// Method: three writes on one connection, the second with its body at once and the third in chunks.
#[tokio::test]
async fn expect_gets_a_response_before_the_body() {
    let cluster = TestCluster::form("protocol-expect", &[1], CALM).await;
    let mut wire = Wire::open(cluster.addr(1)).await;
    let head = |body: &str| format!("PUT /v1/kv/a HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n{body}\r\n");
    wire.send(head("Content-Length: 3\r\n")).await;
    assert_eq!(wire.read_head().await.status, 100);
    wire.send("one").await;
    assert_eq!(wire.response_to("PUT").await.status, 200);
    wire.send(head("Content-Length: 3\r\n") + "two").await;
    assert_eq!(wire.read_head().await.status, 100);
    assert_eq!(wire.response_to("PUT").await.status, 200);
    wire.send(head("Transfer-Encoding: chunked\r\n")).await;
    assert_eq!(wire.read_head().await.status, 100);
    wire.send("5\r\nthree\r\n0\r\n\r\n").await;
    assert_eq!(wire.response_to("PUT").await.status, 200);
    wire.send(request("GET /v1/kv/a?raw HTTP/1.1", "", "")).await;
    assert_eq!(wire.response_to("GET").await.text(), "three");
}

/// An HTTP/1.0 client is served by its rules: a request without a length has no body, the connection closes unless the
/// client asks to keep it, and no response is chunked.
///
/// Method: send requests as nginx sends them upstream by default, and with keep-alive.
#[tokio::test]
async fn http_1_0_is_served() {
    let cluster = TestCluster::form("protocol-1-0", &[1], CALM).await;
    let with_body =
        |line: &str, body: &str| format!("{line} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {}\r\n", body.len());
    let bare = |line: &str| format!("{line} HTTP/1.0\r\nHost: localhost\r\n");
    // Method, head without its last line, body, status, a part of the response.
    let rows = [
        ("PUT", with_body("PUT /v1/kv/a", "value"), "value", 200, "\"version\":1"),
        ("GET", bare("GET /v1/kv/a"), "", 200, "\"value\":\"value\""),
        ("GET", bare("GET /v1/kv/a?raw"), "", 200, "value"),
        ("HEAD", bare("HEAD /v1/kv/a?raw"), "", 200, ""),
        ("GET", "GET /v1/kv/a?raw HTTP/1.0\r\n".to_owned(), "", 200, "value"),
        ("GET", bare("GET /v1/kv?prefix=a"), "", 200, "\"value\":\"value\""),
        ("POST", bare("POST /v1/kv/a/touch?ttl=1d"), "", 200, "\"expires_in_ms\":86400000"),
        ("POST", with_body("POST /v1/kv/a/touch?ttl=1d", ""), "", 200, "\"expires_in_ms\":86400000"),
        ("POST", bare("POST /write"), "", 400, "the body is empty"),
        ("POST", bare("POST /v1/txn"), "", 400, "the body is empty"),
        ("POST", with_body("POST /read", r#""a""#), r#""a""#, 200, r#"{"Ok":"value"}"#),
        ("POST", bare("POST /init"), "", 409, "initialized"),
        ("PUT", bare("PUT /v1/kv/a"), "", 200, "\"version\":2"),
        ("GET", bare("GET /v1/kv/a"), "", 200, "\"value\":\"\""),
        ("DELETE", bare("DELETE /v1/kv/a"), "", 200, "\"deleted\":1"),
        ("GET", bare("GET /v1/kv/a"), "", 404, "key_not_found"),
    ];
    for (connection, kept) in [("", false), ("Connection: close\r\n", false), ("Connection: Keep-Alive\r\n", true)] {
        let mut wire = Wire::open(cluster.addr(1)).await;
        for (method, head, body, status, part) in &rows {
            let what = format!("{head:?} with {connection:?}");
            wire.send(format!("{head}{connection}\r\n{body}")).await;
            let response = wire.response_to(method).await;
            assert_eq!(response.status, *status, "{what}: {}", response.text());
            assert!(response.text().contains(part), "{what}: {}", response.text());
            assert!(response.header("content-length").is_some(), "{what}: {response:?}");
            assert_eq!(response.header("transfer-encoding"), None, "{what}");
            if kept {
                assert_eq!(response.header("connection"), Some("keep-alive"), "{what}");
            } else {
                wire.assert_closed(&what).await;
                wire = Wire::open(cluster.addr(1)).await;
            }
        }
    }
}

/// A watch over HTTP/1.0 is not chunked, and lasts until the connection ends.
///
/// Method: open a watch with and without keep-alive, and write. The event arrives without a chunk length before it, and
/// the connection ends when the node stops.
#[tokio::test]
async fn a_watch_of_http_1_0_is_not_chunked() {
    for connection in ["", "Connection: close\r\n", "Connection: keep-alive\r\n"] {
        let mut cluster = TestCluster::form("protocol-1-0-watch", &[1], CALM).await;
        let mut wire = Wire::open(cluster.addr(1)).await;
        wire.send(format!("GET /v1/watch?prefix=a HTTP/1.0\r\nHost: localhost\r\n{connection}\r\n")).await;
        let head = wire.read_head().await;
        assert_eq!((head.version.as_str(), head.status), ("HTTP/1.0", 200));
        for name in ["transfer-encoding", "content-length", "connection"] {
            assert_eq!(head.header(name), None, "{connection:?}: {head:?}");
        }
        cluster.put(1, "/v1/kv/a", "value").await.done();
        let event = wire.read_until("\n\n").await;
        assert!(event.starts_with("id: 1\ndata: {\"type\":\"put\",\"key\":\"a\","), "{connection:?}: {event:?}");
        cluster.node_mut(1).stop().await;
        assert!(wire.read_until("\n\n").await.starts_with("data: {\"type\":\"end\""));
        wire.assert_closed(connection).await;
    }
}

/// A request without a length has an empty body in HTTP/1.1, too.
///
/// Method: `PUT` as `curl -X PUT` sends it.
#[tokio::test]
async fn no_length_is_no_body() {
    let cluster = TestCluster::form("protocol-no-length", &[1], CALM).await;
    let mut wire = Wire::open(cluster.addr(1)).await;
    wire.send(request("PUT /v1/kv/a HTTP/1.1", "Accept: */*\r\n", "")).await;
    assert_eq!(wire.response_to("PUT").await.status, 200);
    wire.send(request("GET /v1/kv/a?raw HTTP/1.1", "", "")).await;
    let response = wire.response_to("GET").await;
    assert_eq!((response.status, response.header("content-length"), response.text().as_str()), (200, Some("0"), ""));
}
