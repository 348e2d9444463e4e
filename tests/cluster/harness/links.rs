//! Links between nodes, which can be cut one by one.
//!
//! The membership has the address of a proxy in the test for each node. The first request on a connection tells the
//! proxy which node it is from, since nodes do not share connections.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use raft_key_value::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch::error::RecvError;
use tokio::sync::{oneshot, watch};

/// How much of a connection is read to find out its sender.
const FIRST_BYTES_MAX: usize = 256 << 10;
/// How long the first request may take to arrive, once it has started.
const FIRST_BYTES_DEADLINE: Duration = Duration::from_secs(5);

/// 1 MiB per second in total.
const SLOW_PART_BYTES: usize = 32 << 10;
const SLOW_PART_PAUSE: Duration = Duration::from_micros(31_250);

/// Pairs of nodes of which the first cannot reach the second.
pub type Cuts = BTreeSet<(NodeId, NodeId)>;

/// The faults of the links.
#[derive(Debug, Default)]
struct Faults {
    cuts: Cuts,
    /// Pairs of nodes whose connections are closed, those that exist and new ones.
    closed: Cuts,
    /// Nodes that refuse all new connections.
    refusing: BTreeSet<NodeId>,
}

/// The links of one cluster.
#[derive(Debug, Default)]
pub struct Links {
    faults: watch::Sender<Faults>,
    slow: Arc<AtomicU64>,
}

impl Links {
    /// Starts the proxy of a node; returns its address, and a channel for the node's own address.
    pub async fn proxy(&self, id: NodeId) -> (String, oneshot::Sender<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let (target_tx, target_rx) = oneshot::channel::<String>();
        let mut faults = self.faults.subscribe();
        let slow = self.slow.clone();
        let listens_on = addr.clone();
        tokio::spawn(async move {
            let Ok(target) = target_rx.await else { return };
            let mut listener = listener;
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { return };
                        tokio::spawn(pass_on(id, stream, target.clone(), faults.clone(), slow.clone()));
                    }
                    Ok(_) = refuses(&mut faults, id, true) => {
                        drop(listener);
                        let Ok(()) = refuses(&mut faults, id, false).await else { return };
                        listener = TcpListener::bind(&listens_on).await.unwrap();
                    }
                }
            }
        });
        (addr, target_tx)
    }

    /// Cuts all links between a node and the others, in both directions.
    pub fn isolate(&self, id: NodeId, others: &[NodeId]) {
        let both = others.iter().flat_map(|other| [(id, *other), (*other, id)]);
        self.faults.send_modify(|faults| faults.cuts.extend(both));
    }

    /// Closes the connections of a node to another, now and whenever there are new ones.
    pub fn close(&self, from: NodeId, to: NodeId) {
        self.faults.send_modify(|faults| {
            faults.closed.insert((from, to));
        });
    }

    /// Makes the address of a node refuse new connections. Those that are open stay.
    pub fn refuse(&self, id: NodeId) {
        self.faults.send_modify(|faults| {
            faults.refusing.insert(id);
        });
    }

    /// Limits each connection to a node to 1 MiB per second.
    pub fn slow_down(&self, id: NodeId) {
        self.slow.store(id, Ordering::Relaxed);
    }

    /// Restores all links, and their speed.
    pub fn heal(&self) {
        self.faults.send_modify(|faults| *faults = Faults::default());
        self.slow.store(0, Ordering::Relaxed);
    }
}

async fn refuses(faults: &mut watch::Receiver<Faults>, id: NodeId, wanted: bool) -> Result<(), RecvError> {
    faults.wait_for(|faults| faults.refusing.contains(&id) == wanted).await.map(|_| ())
}

async fn pass_on(
    to: NodeId,
    mut stream: TcpStream,
    target: String,
    mut faults: watch::Receiver<Faults>,
    slow: Arc<AtomicU64>,
) {
    let mut first = Vec::new();
    // A node may open a connection and use it much later.
    if !matches!(stream.read_buf(&mut first).await, Ok(1..)) {
        return;
    }
    let from = tokio::time::timeout(FIRST_BYTES_DEADLINE, sender(&mut stream, &mut first)).await.ok().flatten();
    let is_cut = |faults: &Faults| from.is_some_and(|from| faults.cuts.contains(&(from, to)));
    let is_closed = |faults: &Faults| from.is_some_and(|from| faults.closed.contains(&(from, to)));
    if is_closed(&faults.borrow()) {
        return;
    }
    if is_cut(&faults.borrow()) {
        // Drop everything without an error to the sender.
        let _ = faults.wait_for(|faults| !is_cut(faults)).await;
        return;
    }
    let Ok(mut onward) = TcpStream::connect(target).await else { return };
    if onward.write_all(&first).await.is_err() {
        return;
    }
    let (mut until_cut, mut until_closed) = (faults.clone(), faults.clone());
    let (mut from_sender, mut to_sender) = stream.split();
    let (mut from_target, mut to_target) = onward.split();
    let to_node = async {
        let mut part = vec![0; SLOW_PART_BYTES];
        loop {
            let length = from_sender.read(&mut part).await?;
            to_target.write_all(&part[..length]).await?;
            if length == 0 {
                return to_target.shutdown().await;
            }
            if slow.load(Ordering::Relaxed) == to {
                tokio::time::sleep(SLOW_PART_PAUSE * length as u32 / SLOW_PART_BYTES as u32).await;
            }
        }
    };
    let from_node = async {
        tokio::io::copy(&mut from_target, &mut to_sender).await?;
        to_sender.shutdown().await
    };
    tokio::select! {
        _ = async { tokio::try_join!(to_node, from_node) } => return,
        _ = until_closed.wait_for(is_closed) => return,
        _ = until_cut.wait_for(is_cut) => {}
    }
    // The connection stays open, and is dead.
    let _ = faults.wait_for(|faults| !is_cut(faults)).await;
}

/// The node that opened a connection; `first` has the bytes read so far.
async fn sender(stream: &mut TcpStream, first: &mut Vec<u8>) -> Option<NodeId> {
    while first.len() < FIRST_BYTES_MAX {
        // The field of an RPC's envelope in MessagePack, or the header of a forwarded request.
        if let Some(end) = end_of(first, b"\xa4from") {
            return first.get(end).map(|id| u64::from(*id));
        }
        if let Some(end) = end_of(first, b"raft-forwarded: ") {
            return std::str::from_utf8(&first[end..]).ok()?.split('\r').next()?.parse().ok();
        }
        // A request without a body names its sender in the header, or not at all.
        if first.starts_with(b"GET ") && first.ends_with(b"\r\n\r\n") {
            let ids = &first[end_of(first, b"raft-envelope: ")?..];
            return std::str::from_utf8(ids).ok()?.split('/').nth(1)?.parse().ok();
        }
        if stream.read_buf(first).await.ok()? == 0 {
            return None;
        }
    }
    None
}

fn end_of(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part).map(|start| start + part.len())
}
