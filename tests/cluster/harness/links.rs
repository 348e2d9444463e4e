//! The links between nodes, which can be cut one by one.
//!
//! Each node is known to the others by the address of a proxy in the test. The
//! proxy tells by the first request on a connection which node it is from, since a
//! node keeps its connections to itself.

use std::collections::BTreeSet;
use std::time::Duration;

use raft_key_value::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};

/// How much of a connection is read to learn who it is from.
const FIRST_BYTES_MAX: usize = 256 << 10;
/// How long the beginning of a request may take to tell, once there is some of it.
const FIRST_BYTES_DEADLINE: Duration = Duration::from_millis(500);

/// What is cut: who does not reach whom.
pub type Cuts = BTreeSet<(NodeId, NodeId)>;

/// The links of one cluster.
#[derive(Debug, Default)]
pub struct Links {
    cuts: watch::Sender<Cuts>,
}

impl Links {
    /// Starts the proxy of a node. Returns its address, and what takes the node's own.
    pub async fn proxy(&self, id: NodeId) -> (String, oneshot::Sender<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let (target_tx, target_rx) = oneshot::channel::<String>();
        let cuts = self.cuts.subscribe();
        tokio::spawn(async move {
            let Ok(target) = target_rx.await else { return };
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(pass_on(id, stream, target.clone(), cuts.clone()));
            }
        });
        (addr, target_tx)
    }

    /// Cuts all links between a node and others, in both directions.
    pub fn isolate(&self, id: NodeId, others: &[NodeId]) {
        let both = others.iter().flat_map(|other| [(id, *other), (*other, id)]);
        self.cuts.send_modify(|cuts| cuts.extend(both));
    }

    /// Makes all links whole again.
    pub fn heal(&self) {
        self.cuts.send_modify(Cuts::clear);
    }
}

async fn pass_on(to: NodeId, mut stream: TcpStream, target: String, mut cuts: watch::Receiver<Cuts>) {
    let mut first = Vec::new();
    // A node may open a connection and use it much later.
    if !matches!(stream.read_buf(&mut first).await, Ok(1..)) {
        return;
    }
    let from = tokio::time::timeout(FIRST_BYTES_DEADLINE, sender(&mut stream, &mut first)).await.ok().flatten();
    let is_cut = |cuts: &Cuts| from.is_some_and(|from| cuts.contains(&(from, to)));
    if is_cut(&cuts.borrow()) {
        // Nothing comes through, and nobody is told.
        let _ = cuts.wait_for(|cuts| !is_cut(cuts)).await;
        return;
    }
    let Ok(mut onward) = TcpStream::connect(target).await else { return };
    if onward.write_all(&first).await.is_err() {
        return;
    }
    let mut until_cut = cuts.clone();
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut stream, &mut onward) => return,
        _ = until_cut.wait_for(is_cut) => {}
    }
    // The connection stands, and is dead.
    let _ = cuts.wait_for(|cuts| !is_cut(cuts)).await;
}

/// Which node a connection is from; what was read of it is in `first`.
async fn sender(stream: &mut TcpStream, first: &mut Vec<u8>) -> Option<NodeId> {
    while first.len() < FIRST_BYTES_MAX {
        // The field of an RPC's envelope as MessagePack, or the header of a request that is passed on.
        if let Some(end) = end_of(first, b"\xa4from") {
            return first.get(end).map(|id| u64::from(*id));
        }
        if let Some(end) = end_of(first, b"raft-forwarded: ") {
            return std::str::from_utf8(&first[end..]).ok()?.split('\r').next()?.parse().ok();
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
