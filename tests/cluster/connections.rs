//! Slow or numerous clients must not deprive others of service.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use raft_key_value::NodeId;
use raft_key_value::config::{CONNECTION_IDLE_MAX, KEEP_ALIVE, WRITE_STALL_MAX};
use reqwest::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::harness::{
    ALL, CALM, DEADLINE, Http, Metrics, OFTEN, TestCluster, connect_and_send, eventually, others, raise_open_files,
    read_status,
};

/// Enough for the connections of all tests here at once.
const OPEN_FILES: u64 = 3000;

/// Slow clients of every kind do not stop others from reading and writing, and are disconnected in the end.
///
/// Method: open slow clients on each of three nodes. A hundred send requests that never end (half a head or half a
/// body), and are replaced as the node gives up on them. Twenty never read their responses (sixteen large values
/// requested at once, or a watch of large changes). Meanwhile reads and writes succeed through each node, and no node
/// uses memory for everything unread. In the end the nodes have closed all of these connections.
#[tokio::test]
async fn slow_clients_do_not_block_others() {
    const UNENDING: usize = 100;
    const UNREAD: usize = 20;
    const VALUES: usize = 16;
    const VALUE_BYTES: usize = 1 << 20;
    const ROUNDS: usize = 20;
    // The unread responses amount to 320 MiB.
    const MEMORY_KIB_MAX: usize = UNREAD * VALUES * VALUE_BYTES / 2 / 1024;
    raise_open_files(OPEN_FILES);
    let cluster = TestCluster::form("slow-clients", &ALL, CALM).await;
    for number in 0..VALUES {
        cluster.put(1, "/v1/kv/large", format!("{number} {}", "v".repeat(VALUE_BYTES - 10))).await.done();
    }
    let revision = cluster.put(1, "/v1/kv/small", "v").await.revision();
    let mut before = BTreeMap::new();
    for id in ALL {
        cluster.reaches(id, revision).await;
        before.insert(id, (cluster.node(id).open_files(), cluster.node(id).memory_kib()));
    }

    let mut unending = JoinSet::new();
    let given_up = Arc::new(AtomicUsize::new(0));
    for id in ALL {
        for number in 0..UNENDING {
            let addr = cluster.addr(id).to_owned();
            let half =
                ["PUT /v1/kv/k HT", "PUT /v1/kv/k HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\nhalf"];
            unending.spawn(never_end(addr, half[number % 2], given_up.clone()));
        }
    }
    for id in ALL {
        // Not all are connected at any one time, since the node keeps giving up on some.
        let wanted = before[&id].0 + UNENDING * 9 / 10;
        eventually(&format!("node {id} has {wanted} files open"), DEADLINE, async || {
            let found = cluster.node(id).open_files();
            if found >= wanted { Ok(()) } else { Err(found) }
        })
        .await;
    }
    let gets = "GET /v1/kv/large?raw&consistency=stale HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(VALUES);
    let watch = "GET /v1/watch?key=large&from=1&consistency=stale HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut unread = Vec::new();
    for id in ALL {
        for number in 0..UNREAD {
            let request = if number % 2 == 0 { &gets } else { watch };
            unread.push(ask_and_read_nothing(cluster.addr(id), request).await);
        }
    }
    let mut memory_kib_max = 0;
    for number in 0..ROUNDS {
        for id in ALL {
            let value = format!("{number} through {id}");
            cluster.write(id, "small", &value).await;
            let read = eventually("a read", DEADLINE, async || cluster.consistent_read(id, "small").await).await;
            assert_eq!(read, value, "on node {id}");
            let memory_kib = cluster.node(id).memory_kib().saturating_sub(before[&id].1);
            memory_kib_max = memory_kib_max.max(memory_kib);
        }
    }
    let held = held_by_nodes(&unread);
    eprintln!("slow-clients: a node used {memory_kib_max} KiB for them; {held} are still open and unread");
    assert!(memory_kib_max < MEMORY_KIB_MAX, "a node used {memory_kib_max} KiB for them");

    let wanted = ALL.len() * UNENDING;
    eventually(&format!("the nodes gave up on {wanted} unfinished requests"), DEADLINE, async || {
        let found = given_up.load(Ordering::Relaxed);
        if found >= wanted { Ok(()) } else { Err(found) }
    })
    .await;
    // A client only ends if it received an unexpected response.
    if let Some(ended) = unending.try_join_next() {
        ended.unwrap();
    }
    unending.shutdown().await;
    eventually("the nodes have closed all connections that are not read", WRITE_STALL_MAX + DEADLINE, async || {
        let held = held_by_nodes(&unread);
        if held == 0 { Ok(()) } else { Err(held) }
    })
    .await;
}

/// Sends half a request, waits until the node gives up on it, and starts again.
async fn never_end(addr: String, half: &str, given_up: Arc<AtomicUsize>) {
    loop {
        let mut stream = TcpStream::connect(&addr).await.unwrap();
        stream.write_all(half.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // A reset after the response ends it as well.
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 408 "), "{half:?}: {answer:?}");
        given_up.fetch_add(1, Ordering::Relaxed);
    }
}

/// Sends a request, waits for the start of the response, and leaves it unread in a small receive buffer.
async fn ask_and_read_nothing(addr: &str, request: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(addr.parse().unwrap()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut beginning = [0; 13];
    stream.peek(&mut beginning).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&beginning), "HTTP/1.1 200 ", "{request}");
    stream
}

/// How many of these connections the nodes have not closed yet. The client's end cannot tell, since it has not read
/// what precedes the close.
fn held_by_nodes(streams: &[TcpStream]) -> usize {
    const ESTABLISHED: &str = "01";
    let ports = |stream: &TcpStream| (stream.peer_addr().unwrap().port(), stream.local_addr().unwrap().port());
    let connections = fs::read_to_string("/proc/net/tcp").unwrap();
    let established: BTreeSet<(u16, u16)> = connections
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields[3] == ESTABLISHED)
        .map(|fields| (port_of(fields[1]), port_of(fields[2])))
        .collect();
    streams.iter().filter(|stream| established.contains(&ports(stream))).count()
}

/// The port of an address in `/proc/net/tcp`, such as `0100007F:1F90`.
fn port_of(addr: &str) -> u16 {
    u16::from_str_radix(addr.rsplit(':').next().unwrap(), 16).unwrap()
}

/// Clients that put repeatedly until they are told to leave.
struct Crowd {
    clients: JoinSet<()>,
    done: Arc<Mutex<BTreeMap<usize, usize>>>,
    leaving: Arc<AtomicBool>,
}

impl Crowd {
    /// Starts `count` clients in total, spread over these nodes in turn, whose requests have these headers.
    fn start(cluster: &TestCluster, ids: &[NodeId], count: usize, headers: Headers) -> Self {
        let done = Arc::new(Mutex::new(BTreeMap::new()));
        let leaving = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for client in 0..count {
            let addr = cluster.addr(ids[client % ids.len()]).to_owned();
            let (done, leaving) = (done.clone(), leaving.clone());
            clients.spawn(async move {
                // Each client has its own connection.
                let http = Http::new();
                loop {
                    put(&http, &addr, client, headers).await;
                    *done.lock().unwrap().entry(client).or_default() += 1;
                    if leaving.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        Crowd { clients, done, leaving }
    }

    /// How many clients have put at least once, and the total number of puts.
    fn done(&mut self) -> (usize, usize) {
        // A client ends early only if it received an unexpected response.
        if let Some(ended) = self.clients.try_join_next() {
            ended.unwrap();
        }
        let done = self.done.lock().unwrap();
        (done.len(), done.values().sum())
    }

    /// Lets each client leave after its next put, waits for all, and asserts that a node has their values.
    async fn leave(mut self, cluster: &mut TestCluster, id: NodeId) {
        self.leaving.store(true, Ordering::Relaxed);
        eventually("all clients have left", CROWD_DEADLINE, async || {
            cluster.assert_alive();
            while let Some(ended) = self.clients.try_join_next() {
                ended.unwrap();
            }
            if self.clients.is_empty() { Ok(()) } else { Err(self.clients.len()) }
        })
        .await;
        let (served, _) = self.done();
        for client in 0..served {
            // The node may not have noticed yet that the crowd has left. It rejects clients above its limit, and closes
            // idle connections, possibly under the next request.
            let path = format!("/v1/kv/crowd-{client}?raw");
            let answer = eventually("a client is admitted", DEADLINE, async || {
                let sent = cluster.http().request(Method::GET, cluster.addr(id), &path, &[], Vec::new());
                let answer = sent.await.map_err(|error| error.to_string())?;
                if answer.status == 503 { Err(answer.text().to_owned()) } else { Ok(answer) }
            })
            .await;
            assert_eq!(answer.status, 200, "client {client}: {}", answer.text());
            assert!(answer.body == value_of(client).as_bytes(), "client {client} has another value");
        }
    }
}

type Headers = &'static [(&'static str, &'static str)];

/// How long a crowd may take on a machine that runs other tests at the same time.
const CROWD_DEADLINE: Duration = Duration::from_secs(3 * DEADLINE.as_secs());

/// 64 KiB, to fill log files quickly.
fn value_of(client: usize) -> String {
    format!("{client:08}").repeat(8 << 10)
}

/// Puts, retrying until it succeeds.
async fn put(http: &Http, addr: &str, client: usize, headers: Headers) {
    const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(50);
    loop {
        match http.request(Method::PUT, addr, &format!("/v1/kv/crowd-{client}"), headers, value_of(client)).await {
            Ok(answer) if answer.status == 200 => return,
            Ok(answer) => assert!([503, 504].contains(&answer.status), "{} {}", answer.status, answer.text()),
            // The system may have closed a connection that waited for long.
            Err(_) => {}
        }
        tokio::time::sleep(PAUSE_AFTER_ERROR).await;
    }
}

const FILES_MAX: u64 = 256;
/// 19 MiB of values; a log file holds 16 MiB.
const WRITES: usize = 300;

/// A node with more clients than its limit of open files allows serves as many as it can, and the others when those
/// leave. It never fails because its own files cannot be opened.
///
/// Method: one node with a limit of 256 open files, and 400 clients with a connection each. The admitted clients put
/// until the node has started new log files and written snapshots; the others wait throughout. Then each client leaves
/// after it was served, and all are.
#[tokio::test]
async fn clients_beyond_the_limit_of_open_files_wait() {
    const CLIENTS: usize = 400;
    raise_open_files(OPEN_FILES);
    let mut cluster = TestCluster::form("few-files", &[1], &[CALM, OFTEN].concat()).await;
    cluster.limit_files(&[1], FILES_MAX).await;
    let mut crowd = Crowd::start(&cluster, &[1], CLIENTS, &[]);
    let served = eventually(&format!("{WRITES} writes"), CROWD_DEADLINE, async || {
        cluster.assert_alive();
        let (served, writes) = crowd.done();
        if writes >= WRITES { Ok(served) } else { Err((served, writes)) }
    })
    .await;
    let open_files = cluster.node(1).open_files();
    eprintln!("few-files: {served} of {CLIENTS} clients were admitted, and the node has {open_files} files open");
    assert!(served < usize::try_from(FILES_MAX).unwrap(), "{served} clients have a connection each");
    crowd.leave(&mut cluster, 1).await;
    let snapshot = |metrics: &Metrics| metrics.snapshot.is_some().then_some(());
    cluster.metrics_say(1, "a snapshot", snapshot).await;
    cluster.assert_alive();
}

/// A follower keeps running when its clients need as many files as it may have, for their own connections and for those
/// to the leader.
///
/// Method: three nodes with a limit of 256 open files each, and on each follower more clients than it admits at once.
/// Each client puts, for which the follower needs a connection to the leader, and reconnects, until log files and
/// snapshots were written. Then each client leaves after it was served, and all nodes serve reads and writes.
#[tokio::test]
async fn followers_with_few_open_files_keep_serving() {
    const CLIENTS: usize = 360;
    raise_open_files(OPEN_FILES);
    let mut cluster = TestCluster::form("few-files-passed-on", &ALL, &[CALM, OFTEN].concat()).await;
    cluster.limit_files(&ALL, FILES_MAX).await;
    let leader = cluster.leader_of(&ALL).await;
    let followers = others(leader);
    let mut crowd = Crowd::start(&cluster, &followers, CLIENTS, &[("connection", "close")]);
    let mut open_files_max = 0;
    let what = format!("{WRITES} writes through nodes {followers:?}");
    eventually(&what, CROWD_DEADLINE, async || {
        cluster.assert_alive();
        open_files_max = followers.iter().map(|id| cluster.node(*id).open_files()).fold(open_files_max, usize::max);
        let (served, writes) = crowd.done();
        if writes >= WRITES { Ok(()) } else { Err((served, writes, open_files_max)) }
    })
    .await;
    eprintln!("few-files-passed-on: a follower had {open_files_max} files open");
    crowd.leave(&mut cluster, leader).await;
    for id in ALL {
        let value = format!("through {id}");
        cluster.write(id, "after", &value).await;
        // Connections that the other follower left open may use up all that the leader accepts for a while.
        let deadline = CONNECTION_IDLE_MAX + DEADLINE;
        let read = eventually("a linearizable read", deadline, async || cluster.consistent_read(id, "after").await);
        assert_eq!(read.await, value, "on node {id}");
    }
}

/// With [`FILES_MAX`] a node admits 17 clients, at most 9 of them watches, and accepts 21 connections.
const CLIENTS_ADMITTED: usize = 17;
const WATCHES_ADMITTED: usize = 9;

/// Asserts that a leader whose files are in use still serves reads and writes through the followers, and requests for
/// metrics.
async fn still_leads(cluster: &mut TestCluster, leader: NodeId, round: usize) {
    for id in others(leader) {
        let value = format!("{round} through {id}");
        cluster.write(id, "shared", &value).await;
        let read = eventually("a linearizable read", DEADLINE, async || cluster.consistent_read(id, "shared").await);
        assert_eq!(read.await, value, "on node {id}");
    }
    eventually("the leader returns its metrics", DEADLINE, async || {
        // Use a new connection each time, as a scraper may.
        let answer = Http::new().get(cluster.addr(leader), "/metrics").await.map_err(|error| error.to_string())?;
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    assert_eq!(cluster.leader_of(&ALL).await, leader, "the leader must not change");
    cluster.assert_alive();
}

/// Three nodes with a low limit of open files, and their leader.
async fn few_files(name: &'static str) -> (TestCluster, NodeId) {
    raise_open_files(OPEN_FILES);
    let mut cluster = TestCluster::form(name, &ALL, CALM).await;
    cluster.limit_files(&ALL, FILES_MAX).await;
    let leader = cluster.leader_of(&ALL).await;
    (cluster, leader)
}

/// Watches get their share of a node's connections, and no more.
///
/// Method: on a leader with few files, open more watches than it accepts connections. Those above the share get 503 on
/// connections that stay open, and the others see what is written through the followers. When a watch ends, another is
/// admitted.
#[tokio::test]
async fn watches_leave_room() {
    const WATCHES: usize = 40;
    const WATCH: &str = "GET /v1/watch?key=shared HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let (mut cluster, leader) = few_files("watches-leave-room").await;
    let addr = cluster.addr(leader).to_owned();
    let (mut admitted, mut rejected) = (Vec::new(), 0);
    for _ in 0..WATCHES {
        let mut watch = connect_and_send(&addr, WATCH).await;
        let status = read_status(&mut watch).await;
        match status {
            200 => admitted.push(watch),
            503 => rejected += 1,
            _ => panic!("a watch returned {status}"),
        }
    }
    assert_eq!((admitted.len(), rejected), (WATCHES_ADMITTED, WATCHES - WATCHES_ADMITTED));
    still_leads(&mut cluster, leader, 0).await;
    for watch in &mut admitted {
        read_until(watch, "0 through").await;
    }
    admitted.pop();
    eventually("another watch is admitted", DEADLINE, async || {
        let status = read_status(&mut connect_and_send(&addr, WATCH).await).await;
        if status == 200 { Ok(()) } else { Err(status) }
    })
    .await;
}

/// Clients whose requests never end get their share of a node's connections, and no more.
///
/// Method: on a leader with few files, open more clients that send half a body, and replace each as soon as the node
/// gives up on it. Those above the share get 503. Meanwhile the followers can forward requests.
#[tokio::test]
async fn unfinished_requests_leave_room() {
    const HALF: &str = "PUT /v1/kv/half HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\nhalf";
    let (mut cluster, leader) = few_files("unfinished-leave-room").await;
    let addr = cluster.addr(leader).to_owned();
    let (waited, rejected) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut clients = JoinSet::new();
    for _ in 0..2 * CLIENTS_ADMITTED {
        let (addr, waited, rejected) = (addr.clone(), waited.clone(), rejected.clone());
        clients.spawn(async move {
            loop {
                // The system may refuse a connection, or the node may reset it.
                let Ok(mut stream) = TcpStream::connect(&addr).await else { continue };
                let _ = stream.write_all(HALF.as_bytes()).await;
                let mut answer = Vec::new();
                let _ = stream.read_to_end(&mut answer).await;
                let answer = String::from_utf8_lossy(&answer).into_owned();
                match answer.get(9..12) {
                    Some("408") => waited.fetch_add(1, Ordering::Relaxed),
                    Some("503") => rejected.fetch_add(1, Ordering::Relaxed),
                    _ => 0,
                };
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    }
    for round in 0..5 {
        still_leads(&mut cluster, leader, round).await;
    }
    eventually("some requests time out and some are rejected", DEADLINE, async || {
        let found = (waited.load(Ordering::Relaxed), rejected.load(Ordering::Relaxed));
        if found.0 > 0 && found.1 > 0 { Ok(()) } else { Err(found) }
    })
    .await;
    clients.shutdown().await;
}

/// Clients that keep idle connections do not lock others out.
///
/// Method: on a node with few files, as many clients as it admits send a request each and keep their connections. As
/// many again then connect, and each is served at its first attempt. More watches than the node admits do not lock
/// clients out either.
#[tokio::test]
async fn idle_clients_make_room_for_others() {
    const GET: &str = "GET /v1/kv?limit=1 HTTP/1.1\r\nhost: localhost\r\n\r\n";
    const WATCH: &str = "GET /v1/watch HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let (mut cluster, leader) = few_files("idle-clients").await;
    let addr = cluster.addr(leader).to_owned();
    let mut idle = Vec::new();
    for number in 0..2 * CLIENTS_ADMITTED {
        let mut client = connect_and_send(&addr, GET).await;
        assert_eq!(read_status(&mut client).await, 200, "client {number}");
        idle.push(client);
    }
    for _ in 0..2 * CLIENTS_ADMITTED {
        idle.push(connect_and_send(&addr, WATCH).await);
    }
    still_leads(&mut cluster, leader, 0).await;
    cluster.put(leader, "/v1/kv/k", "v").await.done();
}

/// Unfinished requests leave room for others, also on routes that do not count as clients.
///
/// Method: on a leader with few files, keep many more connections open than it accepts, with half a head, or half a
/// body for a peer's or an operator's route. Each is reopened when it is closed.
#[tokio::test]
async fn unfinished_requests_do_not_hold_the_reserved_connections() {
    const HALVES: [&str; 4] = [
        "GET /v1/kv/a HTTP/1.1\r\nhost: local",
        "POST /raft-append HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\nhalf",
        "POST /raft-snapshot HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\nhalf",
        "POST /init HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\nhalf",
    ];
    for half in HALVES {
        let (mut cluster, leader) = few_files("reserved").await;
        let mut clients = JoinSet::new();
        for _ in 0..4 * CLIENTS_ADMITTED {
            let addr = cluster.addr(leader).to_owned();
            clients.spawn(async move {
                loop {
                    let Ok(mut stream) = TcpStream::connect(&addr).await else { continue };
                    let _ = stream.write_all(half.as_bytes()).await;
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            });
        }
        for round in 0..2 {
            still_leads(&mut cluster, leader, round).await;
        }
        clients.shutdown().await;
    }
}

/// A client cannot keep a connection by pretending to be a node.
///
/// Method: on a leader with few files, open more connections than it accepts. Each sends a request that any caller may
/// send to a peer route, or an invalid RPC, and then stays idle. They make room for others long before they are closed
/// for their age.
#[tokio::test]
async fn only_nodes_keep_connections() {
    let requests = [
        "GET /raft-identity HTTP/1.1\r\nhost: localhost\r\n\r\n",
        "POST /raft-append HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4\r\n\r\nnone",
        "GET /raft-no-such-route HTTP/1.1\r\nhost: localhost\r\n\r\n",
        "GET /v1/kv HTTP/1.1\r\nhost: localhost\r\nraft-forwarded: 2\r\nraft-forwarded-to: 1/2/3\r\n\r\n",
    ];
    for request in requests {
        let (mut cluster, leader) = few_files("pretenders").await;
        let addr = cluster.addr(leader).to_owned();
        let mut idle = Vec::new();
        for _ in 0..2 * CLIENTS_ADMITTED {
            idle.push(connect_and_send(&addr, request).await);
        }
        let started = Instant::now();
        still_leads(&mut cluster, leader, 0).await;
        assert!(
            started.elapsed() < KEEP_ALIVE / 2,
            "the leader waited for idle connections to expire: {:?}",
            started.elapsed()
        );
    }
}

/// Idle connections make room for new clients, the longest idle first. Watches, unfinished requests and active clients
/// stay.
///
/// Method: one node with a limit of 256 open files, which accepts 21 connections. First come a watch, half a request
/// and a client that sends requests continuously; then more connections than there is room for, half of which were used
/// once. A client that connects last can put, long before an idle connection is closed for its age, and the watch sees
/// the event. (The half request has 10 s to complete, of which it needs those until the first connection is closed.)
#[tokio::test]
async fn idle_connections_make_room() {
    const IDLE: usize = 36;
    const GET: &str = "GET /v1/kv?limit=1 HTTP/1.1\r\nhost: localhost\r\n\r\n";
    const HALF: &str = "PUT /v1/kv/half HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4\r\n\r\nha";
    raise_open_files(OPEN_FILES);
    let mut cluster = TestCluster::form("idle-connections", &[1], CALM).await;
    cluster.limit_files(&[1], FILES_MAX).await;
    let addr = cluster.addr(1).to_owned();
    let mut watch = connect_and_send(&addr, "GET /v1/watch?key=k HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    read_until(&mut watch, "200 OK").await;
    let mut half = connect_and_send(&addr, HALF).await;
    // Wait for a response, so that the node has read everything sent before: to the node, a connection whose request is
    // still unread in the socket looks idle.
    let mut busy = connect_and_send(&addr, GET).await;
    read_until(&mut busy, "\"revision\"").await;
    let busy = tokio::spawn(async move {
        loop {
            busy.write_all(GET.as_bytes()).await.unwrap();
            read_until(&mut busy, "\"revision\"").await;
        }
    });
    let mut idle = Vec::new();
    for number in 0..IDLE {
        idle.push(connect_and_send(&addr, if number % 2 == 0 { "" } else { GET }).await);
    }
    // The connection that was idle for longest is closed first, without any bytes that could pass for a response.
    assert_eq!(read_to_end(&mut idle[0]).await, "");
    half.write_all(b"lf").await.unwrap();
    read_until(&mut half, "200 OK").await;
    let used = read_to_end(&mut idle[1]).await;
    assert!(used.starts_with("HTTP/1.1 200 OK") && used.matches("HTTP/1.1").count() == 1, "{used:?}");

    let http = Http::new();
    let request = http.request(Method::PUT, &addr, "/v1/kv/k", &[], "v".to_owned());
    let answer = tokio::time::timeout(KEEP_ALIVE / 2, request).await.expect("the client must be admitted").unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    read_until(&mut watch, "\"put\"").await;
    assert!(!busy.is_finished(), "an active connection was closed");
    busy.abort();
    cluster.assert_alive();
}

/// A head that never ends is given up on a reused connection too, without any bytes that could pass for the response to
/// another request.
///
/// Method: complete one request on a connection, then send half the head of another one, and the rest byte by byte.
#[tokio::test]
async fn a_second_head_that_does_not_end_times_out() {
    const PAUSE: Duration = Duration::from_millis(500);
    let cluster = TestCluster::form("second-head", &[1], CALM).await;
    let mut stream = connect_and_send(cluster.addr(1), "GET /v1/kv?limit=1 HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    read_until(&mut stream, "\"revision\"").await;
    stream.write_all(b"PUT /v1/kv/k HTTP/1.1\r\nx: ").await.unwrap();
    let (mut read_half, mut write_half) = stream.into_split();
    let trickle = tokio::spawn(async move {
        while write_half.write_all(b"x").await.is_ok() {
            tokio::time::sleep(PAUSE).await;
        }
    });
    let mut rest = Vec::new();
    // The node resets a connection on which bytes arrive after the close.
    let _ = tokio::time::timeout(DEADLINE, read_half.read_to_end(&mut rest))
        .await
        .expect("the node must close the connection");
    assert_eq!(String::from_utf8_lossy(&rest), "");
    trickle.abort();
}

async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    tokio::time::timeout(DEADLINE, stream.read_to_end(&mut read))
        .await
        .expect("the node must close the connection")
        .unwrap();
    String::from_utf8(read).unwrap()
}

/// Reads until the given text has arrived.
async fn read_until(stream: &mut TcpStream, wanted: &str) {
    let mut read = Vec::with_capacity(4096);
    while !String::from_utf8_lossy(&read).contains(wanted) {
        let came = tokio::time::timeout(DEADLINE, stream.read_buf(&mut read)).await;
        let came =
            came.unwrap_or_else(|_| panic!("{wanted} has not arrived, only {:?}", String::from_utf8_lossy(&read)));
        assert_ne!(came.unwrap(), 0, "the connection was closed after {:?}", String::from_utf8_lossy(&read));
    }
}
