//! Requests that no client should send. Each must be rejected, and change nothing.
//!
//! Every one is certainly invalid, so a successful response is a finding. So is a request without any end: a
//! node closes a connection at the latest when the rest of a request is overdue. Changes show in the history:
//! a change without a client's request is a violation.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Scene;

/// Requests per fault.
const REQUESTS: usize = 600;
/// Number of requests in progress at once.
const CONNECTIONS: usize = 16;
/// Connections that do nothing useful, or are slow.
const SLOW_CLIENTS: usize = 300;
/// How long a request may take to end. A node may wait ten seconds for the rest of one
/// (`REQUEST_BODY_DEADLINE` of the server), and these machines are busy.
const END_DEADLINE: Duration = Duration::from_secs(30);

/// Requests that are not HTTP, or not part of the API.
pub async fn malformed(scene: &mut Scene<'_>) -> Result<String> {
    let requests = (0..REQUESTS).map(|_| malformed_request(scene)).collect();
    send_all(scene, requests).await
}

/// Requests between nodes that are truncated, mixed up, or for another node or cluster.
pub async fn forged(scene: &mut Scene<'_>) -> Result<String> {
    let kept: Vec<(String, bytes::Bytes)> =
        scene.cluster.nodes.iter().filter_map(|node| node.proxy.as_ref()).flat_map(|proxy| proxy.kept()).collect();
    let requests = (0..REQUESTS).map(|_| forged_request(scene, &kept)).collect();
    send_all(scene, requests).await
}

async fn send_all(scene: &mut Scene<'_>, requests: Vec<Vec<u8>>) -> Result<String> {
    let nodes: Vec<SocketAddr> = scene.cluster.nodes.iter().map(|node| node.host.http()).collect();
    let mut waiting = requests.into_iter().enumerate();
    let mut running = FuturesUnordered::new();
    let mut ends = Ends::default();
    // One request without an end is enough, because each takes long.
    while ends.silent == 0 {
        while running.len() < CONNECTIONS {
            let Some((number, request)) = waiting.next() else { break };
            let node = nodes[number % nodes.len()];
            running.push(async move { (send(node, &request, END_DEADLINE).await, request) });
        }
        let Some((end, request)) = running.next().await else { break };
        if let Some(what) = ends.count(end) {
            scene.finding(format!("{what}: {}", request.escape_ascii()));
        }
    }
    scene.inputs(ends.sent());
    if ends.sent() == 0 {
        scene.did_nothing();
    }
    Ok(ends.to_string())
}

/// The end of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// No connection, so nothing was sent.
    Unreached,
    /// The status of the response; `None` if the response is not HTTP.
    Answered(Option<u16>),
    /// The node closed the connection without a response.
    Closed,
    /// Neither before the deadline.
    Silent,
}

/// The number of requests with each end.
#[derive(Debug, Default)]
struct Ends {
    unreached: usize,
    refused: usize,
    closed: usize,
    silent: usize,
    wrong: usize,
}

impl Ends {
    /// Counts the end of a request; returns the fault of the node, if it has one.
    fn count(&mut self, end: End) -> Option<&'static str> {
        let (count, wrong) = match end {
            End::Unreached => (&mut self.unreached, None),
            End::Answered(Some(400..600)) => (&mut self.refused, None),
            End::Answered(Some(200..300)) => (&mut self.wrong, Some("the response is a success")),
            End::Answered(_) => (&mut self.wrong, Some("the response is not a rejection")),
            End::Closed => (&mut self.closed, None),
            End::Silent => (&mut self.silent, Some("neither a response nor a close")),
        };
        *count += 1;
        wrong
    }

    /// The number of requests that reached a node.
    fn sent(&self) -> usize {
        self.refused + self.closed + self.silent + self.wrong
    }
}

impl fmt::Display for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ends { unreached, refused, closed, silent, wrong } = self;
        write!(f, "{} requests: {refused} rejected, {closed} closed, {silent} left open, {wrong} ", self.sent())?;
        write!(f, "wrong responses; {unreached} more without a connection")
    }
}

/// Sends a request, announces that nothing follows, and waits for the end.
pub async fn send(node: SocketAddr, request: &[u8], deadline: Duration) -> End {
    let Ok(Ok(mut stream)) = tokio::time::timeout(deadline, TcpStream::connect(node)).await else {
        return End::Unreached;
    };
    let exchange = async {
        // A node that rejects an oversized request need not read all of it.
        let _ = stream.write_all(request).await;
        // An incomplete request must end here: nothing more follows.
        let _ = stream.shutdown().await;
        let mut answer = [0; 12];
        match stream.read_exact(&mut answer).await {
            Ok(_) => End::Answered(status_of(&answer)),
            Err(_) => End::Closed,
        }
    };
    tokio::time::timeout(deadline, exchange).await.unwrap_or(End::Silent)
}

/// Parses `HTTP/1.1 400`.
fn status_of(answer: &[u8; 12]) -> Option<u16> {
    std::str::from_utf8(answer).ok()?.strip_prefix("HTTP/1.1 ")?.parse().ok()
}

/// A request with a `Content-Length`. Each of `headers` ends with a line break.
pub fn with_body(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head =
        format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n{headers}content-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn malformed_request(scene: &mut Scene<'_>) -> Vec<u8> {
    let random = &mut *scene.random;
    let noise: Vec<u8> = (0..random.usize(1..400)).map(|_| random.u8(..)).collect();
    let letters: String = (0..random.usize(1..40)).map(|_| random.alphabetic()).collect();
    let json_routes = ["/write", "/read", "/consistent_read", "/init", "/add-learner", "/change-membership", "/v1/txn"];
    let json_route = json_routes[random.usize(..json_routes.len())];
    let bad_json = [
        "{",
        "[[[[",
        "{\"Set\":",
        "{\"Set\":{\"key\":1,\"value\":2}}",
        "{\"compare\":7}",
        "nul",
        "{\"a\":1}{\"b\":2}",
        "[1,\"x\",{}]",
        "{\"success\":[{\"put\":{}}]}",
        "\u{1}",
        "{\"Delete\":{}}",
        "[99999999999999999999]",
        "\"\\ud800\"",
    ];
    let bad_queries = [
        "ttl=1",
        "ttl=-5s",
        "ttl=99999d",
        "ttl=1s&ttl=2s",
        "nothing=here",
        "ttl=%zz",
        "ttl",
        "ttl=1h1h",
        "ttl=0s",
        "%00=1",
    ];
    let bad_list =
        ["limit=0", "limit=x", "revision=-1", "limit=1&limit=2", "prefix=%ff", "consistency=maybe", "reverse=7"];
    match random.u8(..16) {
        0 => noise,
        1 => [b"GET ".as_slice(), &noise, b" HTTP/1.1\r\n\r\n"].concat(),
        2 => with_body(&format!("X{}", letters.to_uppercase()), "/v1/kv/a", "", b""),
        3 => with_body("POST", json_route, "", bad_json[random.usize(..bad_json.len())].as_bytes()),
        4 => with_body("POST", json_route, "", &"[".repeat(random.usize(200..5000)).into_bytes()),
        5 => with_body("POST", json_route, "", &[b"{\"k\":\"", noise.as_slice(), b"\xff\"}"].concat()),
        6 => with_body("PUT", &format!("/v1/kv/a?{}", bad_queries[random.usize(..bad_queries.len())]), "", b"v"),
        7 => with_body("GET", &format!("/v1/kv?{}", bad_list[random.usize(..bad_list.len())]), "", b""),
        8 => with_body("PUT", &format!("/v1/kv/{}", "k".repeat(random.usize(1025..4000))), "", b"v"),
        9 => with_body("PUT", "/v1/kv/a", &format!("if-match: {letters}\r\n"), b"v"),
        10 => {
            with_body("PUT", "/v1/kv/a", &format!("idempotency-key: {}\r\n", "i".repeat(random.usize(129..900))), b"v")
        }
        11 => with_body(["PATCH", "POST", "PURGE"][random.usize(..3)], "/v1/kv/a%2Fb", "", b"v"),
        12 => with_body("GET", &format!("/{letters}/{letters}"), "", b""),
        13 => {
            format!("PUT /v1/kv/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\nshort", random.u32(6..9999))
                .into()
        }
        14 => format!("PUT /v1/kv/a HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n{letters}\r\n")
            .into(),
        _ => with_body("GET", "/v1/kv/a", &format!("x: {}\r\n", "h".repeat(random.usize(140_000..300_000))), b""),
    }
}

fn forged_request(scene: &mut Scene<'_>, kept: &[(String, bytes::Bytes)]) -> Vec<u8> {
    const ROUTES: [&str; 7] = [
        "/raft-append",
        "/raft-vote",
        "/raft-pre-vote",
        "/raft-snapshot",
        "/raft-transfer-leader",
        "/raft-read-index",
        "/raft-found",
    ];
    let random = &mut *scene.random;
    let route = ROUTES[random.usize(..ROUTES.len())];
    let noise: Vec<u8> = (0..random.usize(0..600)).map(|_| random.u8(..)).collect();
    let Some((path, body)) = kept.get(random.usize(..kept.len().max(1))) else {
        return with_body("POST", route, "", &noise);
    };
    match random.u8(..4) {
        0 => with_body("POST", route, "", &noise),
        1 => with_body("POST", path, "", &body[..random.usize(..body.len().max(1))]),
        2 => match spoiled(body, "to_incarnation", random.u64(1..)) {
            Some(spoiled) => with_body("POST", path, "", &spoiled),
            None => with_body("POST", path, "", &noise),
        },
        _ => match spoiled(body, "cluster_id", random.u64(1..)) {
            Some(spoiled) => with_body("POST", path, "", &spoiled),
            None => with_body("POST", path, "", &noise),
        },
    }
}

/// A request between nodes in which one field has another eight-byte number.
fn spoiled(body: &[u8], field: &str, mask: u64) -> Option<Vec<u8>> {
    const UINT_64: u8 = 0xcf; // The marker in MessagePack.
    let end = body.windows(field.len()).position(|window| window == field.as_bytes())? + field.len();
    let number = body.get(end + 1..end + 9).filter(|_| body[end] == UINT_64)?;
    let number = u64::from_be_bytes(number.try_into().ok()?) ^ mask;
    let mut spoiled = body.to_vec();
    spoiled[end + 1..end + 9].copy_from_slice(&number.to_be_bytes());
    Some(spoiled)
}

/// Clients that send a head or a body slowly, or do not read the responses.
pub async fn slow(scene: &mut Scene<'_>) -> Result<String> {
    let nodes: Vec<SocketAddr> = scene.cluster.nodes.iter().map(|node| node.host.http()).collect();
    let connected = Arc::new(AtomicUsize::new(0));
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..SLOW_CLIENTS {
        clients.spawn(slow_client(nodes[number % nodes.len()], number, connected.clone()));
    }
    scene.hold(3000..5000).await;
    // Their progress is irrelevant; only their presence matters.
    clients.shutdown().await;
    let connected = connected.load(Ordering::Relaxed);
    scene.inputs(connected);
    if connected == 0 {
        scene.did_nothing();
    }
    Ok(format!("{connected} clients of {SLOW_CLIENTS}"))
}

async fn slow_client(node: SocketAddr, number: usize, connected: Arc<AtomicUsize>) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(node).await?;
    connected.fetch_add(1, Ordering::Relaxed);
    let text: &[u8] = match number % 4 {
        0 => b"GET /v1/kv/a HTTP/1.1\r\nhost: localhost\r\nx: 1\r\nx: 2\r\nx: 3\r\n",
        1 => b"PUT /v1/kv/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000\r\n\r\n................",
        // Many responses, none of which is read.
        2 => {
            return ask_and_not_read(&mut stream, b"GET /v1/kv?prefix=key/ HTTP/1.1\r\nhost: localhost\r\n\r\n", 200)
                .await;
        }
        _ => {
            return ask_and_not_read(&mut stream, b"GET /v1/watch?from=1 HTTP/1.1\r\nhost: localhost\r\n\r\n", 1).await;
        }
    };
    for byte in text {
        stream.write_all(&[*byte]).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    std::future::pending().await
}

async fn ask_and_not_read(stream: &mut TcpStream, request: &[u8], times: usize) -> std::io::Result<()> {
    for _ in 0..times {
        stream.write_all(request).await?;
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Each end of a request is distinguished.
    ///
    /// Method: a server that accepts one connection and does what the row says.
    #[tokio::test]
    async fn ends_are_told_apart() {
        let rows: [(&[u8], bool, End); 5] = [
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", false, End::Answered(Some(400))),
            (b"what is this?", false, End::Answered(None)),
            (b"HTTP/1.1", false, End::Closed),
            (b"", false, End::Closed),
            (b"HTTP/1.1", true, End::Silent),
        ];
        for (said, stays_open, end) in rows {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let node = listener.local_addr().unwrap();
            let server = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.read_to_end(&mut Vec::new()).await.unwrap();
                stream.write_all(said).await.unwrap();
                if stays_open {
                    std::future::pending::<()>().await;
                }
            });
            let deadline = Duration::from_secs(if stays_open { 1 } else { 60 });
            assert_eq!(send(node, b"GET", deadline).await, end, "{}", said.escape_ascii());
            server.abort();
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let node = listener.local_addr().unwrap();
        drop(listener);
        assert_eq!(send(node, b"GET", Duration::from_secs(60)).await, End::Unreached);
    }

    /// A request without a connection is not an input, and only a rejection or a closed connection is right.
    #[test]
    fn what_counts_and_what_is_wrong() {
        let mut ends = Ends::default();
        for right in [End::Unreached, End::Closed, End::Answered(Some(408)), End::Answered(Some(503))] {
            assert_eq!(ends.count(right), None, "{right:?}");
        }
        assert_eq!(ends.sent(), 3);
        for wrong in [End::Silent, End::Answered(Some(200)), End::Answered(Some(304)), End::Answered(None)] {
            assert!(ends.count(wrong).is_some(), "{wrong:?}");
        }
        let counts = "7 requests: 2 rejected, 1 closed, 1 left open, 3 wrong responses; 1 more without a connection";
        assert_eq!(ends.to_string(), counts);
    }
}
