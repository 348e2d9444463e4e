//! A hostile client: raw connections that misbehave for the whole length of a lane.
//!
//! Each of its tasks goes through all kinds of [`Misuse`], one after another, in an order and at nodes that
//! the seed determines. It must cause no violation: the ordinary clients, the watches and the nodes'
//! processes are judged as in a lane without it. Its keys begin with [`PREFIX`]. A write that a node may
//! apply is part of the history, and its effects are checked like those of any other write. A write that is
//! not sent completely is not part of the history: if a node applies it, the change has no request, which is
//! a violation.
//!
//! It is bounded so that two cores are left for the load: by [`TASKS`], by the connections of each misuse, by
//! the time for which they are held, and by [`STORED_BYTES_MAX`], because every snapshot contains the stored
//! values.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io::Result;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use futures_util::future::join_all;
use harness::http::connect_socket;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::cluster::Endpoints;
use crate::fault::input::{End, send, with_body};
use crate::history::{Call, ClientId, NodeId, Outcome, Text, abridged};
use crate::load::Recorder;
use crate::store::{CLIENT_DEADLINE, Client};

/// Prefix of all its keys.
const PREFIX: &str = "hostile/";
/// Number of misuses in progress at once.
const TASKS: usize = 3;
/// How long the connections of a misuse are held, in milliseconds.
const HOLD_MS: std::ops::Range<u64> = 500..3000;
/// Maximum duration of a misuse. A paused node accepts no bytes.
const DEADLINE: Duration = Duration::from_secs(4);
/// Longest pause of a task between two misuses.
const PAUSE_MAX_MS: u64 = 1500;
/// Maximum number of value bytes that it sends completely. All snapshots, and the history in them, contain
/// these bytes.
const STORED_BYTES_MAX: usize = 12 << 20;
/// Longest value in the default configuration.
const LARGE_VALUE_BYTES: usize = 1 << 20;
/// Longest request in the default configuration.
const LONG_BODY_BYTES: usize = 3 << 19;
/// Number of keys with large values, of which the large responses consist.
const LARGE_KEYS: usize = 3;
/// Interval between writes of large values, after the first of each key.
const LARGE_INTERVAL: Duration = Duration::from_secs(45);
/// Length of a value that is sent in chunks of one byte.
const CHUNKED_VALUE_BYTES: usize = 16 << 10;
/// Length of a value whose client hangs up. It consists of control characters, which JSON escapes to six
/// times their length.
const HANG_UP_VALUE_BYTES: usize = 32 << 10;
/// Number of keys of each of the other kinds that write.
const KEYS: u64 = 8;
/// The receive buffer of connections that are not read. The kernel doubles it, and enforces a minimum.
const SMALL_RECEIVE_BUFFER_BYTES: u32 = 4096;
/// Its client number in the history. Its operations overlap.
const CLIENT_OF_HOSTILE: ClientId = u32::MAX - 2;

/// Kinds of misuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Misuse {
    /// Transactions of the maximum length, without the last byte.
    BodiesHeldBack,
    /// Values in chunks of one byte.
    TinyChunks,
    /// JSON that consists of one long escaped string, within the length limit and above it.
    LongJson,
    /// JSON that consists of opening brackets.
    NestedJson,
    /// Watches that begin with the whole state and are read slowly.
    WatchesOfAll,
    /// Watches from the first revision that are not read.
    WatchesUnread,
    /// Listings of large values that are not read.
    ListingsUnread,
    /// Transactions that get large values and are not read.
    TransactionsUnread,
    /// Connections that are reset in the middle of a head.
    Resets,
    /// Pipelined gets that are not read.
    PipelinedUnread,
    /// Heads that are sent byte by byte.
    BytesOfHeads,
    /// Ninety headers of 1 KiB.
    ManyHeaders,
    /// RPC paths with bytes that are not an RPC.
    RpcGarbage,
    /// RPC paths with half a head, or a long body that is never sent.
    RpcHeldBack,
    /// Values of the maximum length.
    LargeValues,
    /// Puts whose client hangs up at once.
    HangUps,
}

impl Misuse {
    pub const ALL: [Misuse; 16] = [
        Misuse::BodiesHeldBack,
        Misuse::TinyChunks,
        Misuse::LongJson,
        Misuse::NestedJson,
        Misuse::WatchesOfAll,
        Misuse::WatchesUnread,
        Misuse::ListingsUnread,
        Misuse::TransactionsUnread,
        Misuse::Resets,
        Misuse::PipelinedUnread,
        Misuse::BytesOfHeads,
        Misuse::ManyHeaders,
        Misuse::RpcGarbage,
        Misuse::RpcHeldBack,
        Misuse::LargeValues,
        Misuse::HangUps,
    ];

    /// Number of connections at once, or of consecutive resets.
    fn connections(self) -> usize {
        match self {
            // Each holds several MiB of a node's memory for clients.
            Misuse::TransactionsUnread | Misuse::LargeValues => 1,
            Misuse::HangUps | Misuse::TinyChunks | Misuse::WatchesOfAll => 2,
            Misuse::Resets => 8,
            _ => 4,
        }
    }
}

impl fmt::Display for Misuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Misuse::BodiesHeldBack => "bodies held back",
            Misuse::TinyChunks => "tiny chunks",
            Misuse::LongJson => "long JSON",
            Misuse::NestedJson => "nested JSON",
            Misuse::WatchesOfAll => "watches of all",
            Misuse::WatchesUnread => "watches unread",
            Misuse::ListingsUnread => "listings unread",
            Misuse::TransactionsUnread => "transactions unread",
            Misuse::Resets => "resets",
            Misuse::PipelinedUnread => "pipelined unread",
            Misuse::BytesOfHeads => "heads by bytes",
            Misuse::ManyHeaders => "many headers",
            Misuse::RpcGarbage => "RPC garbage",
            Misuse::RpcHeldBack => "RPCs held back",
            Misuse::LargeValues => "large values",
            Misuse::HangUps => "hang-ups",
        })
    }
}

/// For each kind, how often it reached a node.
pub type Misuses = BTreeMap<Misuse, usize>;

/// The running client.
#[derive(Debug)]
pub struct Hostile {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stopped: AtomicBool,
    done: Mutex<Done>,
}

#[derive(Debug, Default)]
struct Done {
    misuses: Misuses,
    /// Requests that succeeded although a node must reject them.
    wrong: Vec<String>,
    stored_bytes: usize,
    large_values: usize,
    large_value_at: Option<Instant>,
    values: u64,
}

impl Hostile {
    pub fn start(seed: u64, client: &Client, endpoints: &Endpoints, recorder: &Arc<Recorder>) -> Self {
        let shared = Arc::new(Shared::default());
        let tasks = (0..TASKS as u64).map(|number| {
            let task = Task {
                random: Rng::with_seed(seed.wrapping_mul(1_000_033).wrapping_add(number)),
                client: client.clone(),
                endpoints: endpoints.clone(),
                recorder: recorder.clone(),
                shared: shared.clone(),
            };
            tokio::spawn(task.work())
        });
        Hostile { tasks: tasks.collect(), shared }
    }

    /// Lets each task finish its misuse. Returns the number of misuses, and the successful responses to
    /// requests that a node must reject.
    pub async fn stop(self) -> anyhow::Result<(Misuses, Vec<String>)> {
        self.shared.stopped.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await?;
        }
        let mut done = self.shared.done.lock().expect("no thread panics while holding the lock");
        Ok((std::mem::take(&mut done.misuses), std::mem::take(&mut done.wrong)))
    }
}

impl Shared {
    fn with<T>(&self, change: impl FnOnce(&mut Done) -> T) -> T {
        change(&mut self.done.lock().expect("no thread panics while holding the lock"))
    }
}

impl Done {
    /// Whether a misuse may store this many bytes, which are counted if so.
    fn may_store(&mut self, misuse: Misuse, bytes: usize) -> bool {
        let large_too_soon = misuse == Misuse::LargeValues
            && self.large_values >= LARGE_KEYS
            && self.large_value_at.is_some_and(|at| at.elapsed() < LARGE_INTERVAL);
        if large_too_soon || self.stored_bytes + bytes > STORED_BYTES_MAX {
            return false;
        }
        self.stored_bytes += bytes;
        if misuse == Misuse::LargeValues {
            self.large_values += 1;
            self.large_value_at = Some(Instant::now());
        }
        true
    }
}

struct Task {
    random: Rng,
    client: Client,
    endpoints: Endpoints,
    recorder: Arc<Recorder>,
    shared: Arc<Shared>,
}

/// The work of one connection. It returns whether it reached a node.
type Connection = Pin<Box<dyn Future<Output = bool> + Send>>;

impl Task {
    async fn work(mut self) {
        let mut kinds = Misuse::ALL;
        loop {
            self.random.shuffle(&mut kinds);
            for misuse in kinds {
                if self.shared.stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (id, node) = self.any_node();
                self.misuse(misuse, id, node).await;
                tokio::time::sleep(Duration::from_millis(self.random.u64(..PAUSE_MAX_MS))).await;
            }
        }
    }

    async fn misuse(&mut self, misuse: Misuse, id: NodeId, node: SocketAddr) {
        let bytes = match misuse {
            Misuse::LargeValues => LARGE_VALUE_BYTES,
            Misuse::TinyChunks => CHUNKED_VALUE_BYTES,
            Misuse::HangUps => HANG_UP_VALUE_BYTES,
            _ => 0,
        };
        if !self.shared.with(|done| done.may_store(misuse, bytes * misuse.connections())) {
            return;
        }
        let hold = Duration::from_millis(self.random.u64(HOLD_MS));
        // All random choices are made here, so that they do not depend on the connections.
        let connections: Vec<Connection> =
            (0..misuse.connections()).map(|_| self.connection(misuse, id, node, hold)).collect();
        let reached = join_all(connections).await.into_iter().any(|reached| reached);
        if reached {
            self.shared.with(|done| *done.misuses.entry(misuse).or_default() += 1);
        }
    }

    fn any_node(&mut self) -> (NodeId, SocketAddr) {
        let endpoints = self.endpoints.read().expect("no thread panics while holding the lock");
        let host = &endpoints[self.random.usize(..endpoints.len())];
        (host.id, host.http())
    }

    /// One of the keys of a kind.
    fn key(&mut self, kind: &str, keys: u64) -> String {
        format!("{PREFIX}{kind}/{}", self.random.u64(..keys))
    }

    /// A unique value, filled up with one character.
    fn value(&self, bytes: usize, filler: char) -> String {
        let number = self.shared.with(|done| {
            done.values += 1;
            done.values
        });
        let mut value = format!("hostile-{number}-");
        value.extend(std::iter::repeat_n(filler, bytes.saturating_sub(value.len())));
        value
    }

    /// A put that is sent completely, but whose response is not awaited. It is recorded before it is sent.
    fn unanswered_put(&self, id: NodeId, key: &str, value: &str) {
        let call = Call::Put { key: key.into(), value: abridged(value), condition: None };
        self.recorder.add(CLIENT_OF_HOSTILE, id, self.recorder.now_ns(), call, Outcome::Unknown);
    }

    fn connection(&mut self, misuse: Misuse, id: NodeId, node: SocketAddr, hold: Duration) -> Connection {
        match misuse {
            Misuse::BodiesHeldBack => {
                let key = self.key("held", KEYS);
                let mut request = with_body("POST", "/v1/txn", "", &long_transaction(&key));
                request.pop();
                Box::pin(hold_open(node, request, hold))
            }
            Misuse::TinyChunks => {
                let (key, value) = (self.key("chunks", KEYS), self.value(CHUNKED_VALUE_BYTES, 'x'));
                self.unanswered_put(id, &key, &value);
                Box::pin(hold_open(node, put_in_chunks(&key, &value), hold))
            }
            Misuse::LongJson => {
                let bytes = if self.random.bool() { LONG_BODY_BYTES } else { LONG_BODY_BYTES * 3 / 2 };
                let key = r"\u0001".repeat((bytes - 64) / 6);
                let body = format!(r#"{{"success":[{{"get":{{"key":"{key}"}}}}]}}"#);
                Box::pin(self.rejected(misuse, node, with_body("POST", "/v1/txn", "", body.as_bytes())))
            }
            Misuse::NestedJson => {
                let start = ["", r#"{"success":"#, r#"{"compare":[{"key":"#][self.random.usize(..3)];
                let brackets = ["[", r#"{"a":"#][self.random.usize(..2)];
                let body = start.to_owned() + &brackets.repeat((LONG_BODY_BYTES - start.len()) / brackets.len());
                Box::pin(self.rejected(misuse, node, with_body("POST", "/v1/txn", "", body.as_bytes())))
            }
            Misuse::WatchesOfAll => Box::pin(sip(node, get("/v1/watch?prefix=&initial"), hold)),
            Misuse::WatchesUnread => Box::pin(leave_unread(node, get("/v1/watch?from=1"), hold)),
            Misuse::ListingsUnread => {
                let request = get(&format!("/v1/kv?prefix={PREFIX}"));
                Box::pin(leave_unread(node, request.repeat(4), hold))
            }
            Misuse::TransactionsUnread => {
                let gets: Vec<String> =
                    (0..LARGE_KEYS).map(|number| format!(r#"{{"get":{{"key":"{PREFIX}large/{number}"}}}}"#)).collect();
                let body = format!(r#"{{"success":[{}]}}"#, gets.join(","));
                Box::pin(leave_unread(node, with_body("POST", "/v1/txn", "", body.as_bytes()), hold))
            }
            Misuse::Resets => Box::pin(reset(node, Duration::from_millis(self.random.u64(..200)))),
            Misuse::PipelinedUnread => {
                let key = if self.random.u8(..4) == 0 { "large/0" } else { "hang-up/0" };
                Box::pin(leave_unread(node, get(&format!("/v1/kv/{PREFIX}{key}")).repeat(200), hold))
            }
            Misuse::BytesOfHeads => {
                let key = self.key("slow", KEYS);
                let request = get(&format!("/v1/kv/{key}"));
                let bytes = self.random.usize(1..=request.len());
                Box::pin(send_by_bytes(node, request[..bytes].to_vec(), hold))
            }
            Misuse::ManyHeaders => {
                let value = "h".repeat(1024);
                let headers: String = (0..90).map(|number| format!("x-header-{number}: {value}\r\n")).collect();
                let request = with_body("GET", &format!("/v1/kv/{PREFIX}missing"), &headers, b"");
                Box::pin(hold_open(node, request, hold))
            }
            Misuse::RpcGarbage => {
                let bytes = self.random.usize(..100_000);
                let noise: Vec<u8> = (0..bytes).map(|_| self.random.u8(..)).collect();
                let path = self.rpc_path();
                Box::pin(self.rejected(misuse, node, with_body("POST", path, "", &noise)))
            }
            Misuse::RpcHeldBack => {
                let path = self.rpc_path();
                let request = if self.random.bool() {
                    format!("POST {path} HTTP/1.1\r\nhost: localh").into_bytes()
                } else {
                    let head =
                        format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", 40 << 20);
                    [head.as_bytes(), &vec![b' '; 256 << 10]].concat()
                };
                Box::pin(hold_open(node, request, hold))
            }
            Misuse::LargeValues => {
                let (key, value) = (self.key("large", LARGE_KEYS as u64), self.value(LARGE_VALUE_BYTES, 'x'));
                let (client, recorder) = (self.client.clone(), self.recorder.clone());
                Box::pin(put_and_remember(client, recorder, id, node, key.into(), value.into()))
            }
            Misuse::HangUps => {
                let (key, value) = (self.key("hang-up", KEYS), self.value(HANG_UP_VALUE_BYTES, '\u{1}'));
                self.unanswered_put(id, &key, &value);
                let request = with_body("PUT", &format!("/v1/kv/{key}"), "", value.as_bytes());
                Box::pin(hold_open(node, request, Duration::ZERO))
            }
        }
    }

    fn rpc_path(&mut self) -> &'static str {
        ["/raft-append", "/raft-append", "/raft-vote", "/raft-snapshot", "/raft-read-index"][self.random.usize(..5)]
    }

    /// Sends a request that a node must reject. A stopped node need not respond.
    fn rejected(&self, misuse: Misuse, node: SocketAddr, request: Vec<u8>) -> impl Future<Output = bool> + use<> {
        let shared = self.shared.clone();
        async move {
            let end = send(node, &request, DEADLINE).await;
            if end == End::Unreached {
                return false;
            }
            if let End::Answered(Some(status @ 200..400)) = end {
                let start = &request[..request.len().min(200)];
                let text = format!("{misuse}: {node} returns {status}: {}", start.escape_ascii());
                shared.with(|done| done.wrong.push(text));
            }
            true
        }
    }
}

/// Sends a put, waits for the response, and records it.
async fn put_and_remember(
    client: Client,
    recorder: Arc<Recorder>,
    id: NodeId,
    node: SocketAddr,
    key: Text,
    value: Text,
) -> bool {
    let called_ns = recorder.now_ns();
    let call = Call::Put { key: key.clone(), value: value.clone(), condition: None };
    let attempt = client.call(node, &call, None, CLIENT_DEADLINE).await;
    let remembered = Call::Put { key, value: abridged(&value), condition: None };
    let is_done = matches!(attempt.outcome, Outcome::Done(_));
    recorder.add(CLIENT_OF_HOSTILE, id, called_ns, remembered, attempt.outcome);
    is_done
}

/// `{"success":[{"put":…},{"put":…}]}` of the maximum length.
fn long_transaction(key: &str) -> Vec<u8> {
    let body = |value: &str| {
        format!(
            r#"{{"success":[{{"put":{{"key":"{key}/a","value":"{value}"}}}},{{"put":{{"key":"{key}/b","value":"{value}"}}}}]}}"#
        )
    };
    let value = "x".repeat((LONG_BODY_BYTES - body("").len()) / 2);
    body(&value).into_bytes()
}

fn put_in_chunks(key: &str, value: &str) -> Vec<u8> {
    let mut request = format!("PUT /v1/kv/{key} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n");
    for byte in value.chars() {
        request.extend(['1', '\r', '\n', byte, '\r', '\n']);
    }
    request.push_str("0\r\n\r\n");
    request.into_bytes()
}

fn get(target: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nhost: localhost\r\n\r\n").into_bytes()
}

/// Connects, runs `act` until a deadline, and closes the connection; returns whether it was connected.
async fn with_connection(
    node: SocketAddr,
    receive_buffer_bytes: Option<u32>,
    act: impl AsyncFnOnce(TcpStream) -> Result<()>,
) -> bool {
    let connecting = connect_socket(node, None, receive_buffer_bytes);
    let Ok(Ok(stream)) = timeout(DEADLINE, connecting).await else { return false };
    // The node may close the connection at any moment.
    let _ = timeout(DEADLINE, act(stream)).await;
    true
}

/// Sends a request, and keeps the connection for some time, or until the node closes it. Reads the response.
async fn hold_open(node: SocketAddr, request: Vec<u8>, hold: Duration) -> bool {
    let act = async |mut stream: TcpStream| {
        stream.write_all(&request).await?;
        let _ = timeout(hold, tokio::io::copy(&mut stream, &mut tokio::io::sink())).await;
        Ok(())
    };
    with_connection(node, None, act).await
}

/// Sends a request, and reads nothing.
async fn leave_unread(node: SocketAddr, request: Vec<u8>, hold: Duration) -> bool {
    let act = async |mut stream: TcpStream| {
        stream.write_all(&request).await?;
        tokio::time::sleep(hold).await;
        Ok(())
    };
    with_connection(node, Some(SMALL_RECEIVE_BUFFER_BYTES), act).await
}

/// Sends a request, and occasionally reads some of the response.
async fn sip(node: SocketAddr, request: Vec<u8>, hold: Duration) -> bool {
    const BYTES: usize = 16 << 10;
    const PAUSE: Duration = Duration::from_millis(20);
    let act = async |mut stream: TcpStream| {
        stream.write_all(&request).await?;
        let (end, mut buffer) = (Instant::now() + hold, vec![0; BYTES]);
        while Instant::now() < end {
            let read = timeout(hold, stream.read(&mut buffer)).await;
            if !matches!(read, Ok(Ok(1..))) {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    };
    with_connection(node, Some(SMALL_RECEIVE_BUFFER_BYTES), act).await
}

async fn reset(node: SocketAddr, after: Duration) -> bool {
    let act = async |mut stream: TcpStream| {
        stream.write_all(b"GET /v1/kv/x HTTP/1.1\r\nHost: loc").await?;
        tokio::time::sleep(after).await;
        stream.set_zero_linger()
    };
    with_connection(node, None, act).await
}

async fn send_by_bytes(node: SocketAddr, request: Vec<u8>, hold: Duration) -> bool {
    let act = async |mut stream: TcpStream| {
        let pause = hold / request.len() as u32;
        for byte in &request {
            stream.write_all(&[*byte]).await?;
            tokio::time::sleep(pause).await;
        }
        Ok(())
    };
    with_connection(node, None, act).await
}

#[cfg(test)]
mod tests {
    use std::sync::RwLock;

    use tokio::net::TcpListener;

    use super::*;
    use crate::store::System;

    fn task(recorder: &Arc<Recorder>, shared: &Arc<Shared>) -> Task {
        Task {
            random: Rng::with_seed(7),
            client: System::Ours.client(),
            endpoints: Arc::new(RwLock::default()),
            recorder: recorder.clone(),
            shared: shared.clone(),
        }
    }

    async fn do_all(node: SocketAddr) -> (Arc<Recorder>, Arc<Shared>) {
        let (recorder, shared) = (Recorder::new(), Arc::<Shared>::default());
        let all = Misuse::ALL.map(|misuse| {
            let mut task = task(&recorder, &shared);
            async move { task.misuse(misuse, 1, node).await }
        });
        join_all(all).await;
        (recorder, shared)
    }

    /// Each misuse counts once a node was reached, is recorded only if it may change something, and writes
    /// only to keys of its own. A successful response that a node must not send is found.
    ///
    /// Method: a server that responds to everything as to a put; then no server.
    #[tokio::test]
    async fn what_counts_and_what_is_remembered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let node = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let mut buffer = vec![0; 1 << 20];
                    if stream.read(&mut buffer).await? == 0 {
                        return Ok(());
                    }
                    let body = r#"{"revision":7,"version":1}"#;
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                    stream.write_all((head + body).as_bytes()).await?;
                    while stream.read(&mut buffer).await? > 0 {}
                    Result::Ok(())
                });
            }
        });
        let (recorder, shared) = do_all(node).await;
        server.abort();
        assert!(server.await.unwrap_err().is_cancelled());
        let counts = shared.with(|done| done.misuses.clone());
        assert_eq!(counts, Misuse::ALL.map(|misuse| (misuse, 1)).into());
        let wrong = shared.with(|done| std::mem::take(&mut done.wrong));
        for misuse in [Misuse::LongJson, Misuse::NestedJson, Misuse::RpcGarbage] {
            let of_kind = wrong.iter().filter(|text| text.starts_with(&format!("{misuse}: "))).count();
            assert_eq!(of_kind, misuse.connections(), "{misuse}: {wrong:?}");
        }
        assert_eq!(wrong.len(), 12);

        let operations = recorder.take();
        let puts: BTreeMap<Text, Text> = operations
            .iter()
            .map(|operation| match &operation.call {
                Call::Put { key, value, condition: None } => (value.clone(), key.clone()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!((puts.len(), operations.len()), (5, 5), "all values differ");
        assert!(puts.values().all(|key| key.starts_with(PREFIX)), "{puts:?}");
        let unknown = operations.iter().filter(|operation| operation.outcome == Outcome::Unknown).count();
        assert_eq!(unknown, 4, "only one response is awaited");

        let (_, shared) = do_all(node).await;
        assert_eq!(shared.with(|done| done.misuses.clone()), Misuses::new(), "no server listens any more");
    }

    /// The stored bytes are bounded, and only the first large values may be written at once.
    #[test]
    fn what_it_stores_is_bounded() {
        let mut done = Done::default();
        let at_once = (0..100).filter(|_| done.may_store(Misuse::LargeValues, LARGE_VALUE_BYTES)).count();
        assert_eq!(at_once, LARGE_KEYS);
        assert!((0..1000).filter(|_| done.may_store(Misuse::HangUps, HANG_UP_VALUE_BYTES)).count() > 100);
        assert_eq!(done.stored_bytes, STORED_BYTES_MAX);
        assert!(!done.may_store(Misuse::TinyChunks, 1));
        assert!(done.may_store(Misuse::Resets, 0));
    }
}
