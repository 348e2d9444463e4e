//! What a node remembers of the RPCs that it received.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{MutexGuard, watch};

use crate::config::SNAPSHOT_WAIT_MAX;
use crate::error::ApiError;
use crate::types::NodeId;

/// After how long a rejection of the same kind is logged again.
const SILENCE: Duration = Duration::from_secs(600);
/// Kinds of rejections that are logged within that time.
const KINDS_MAX: usize = 64;

/// What a node remembers of the RPCs that it received.
#[derive(Debug)]
pub struct Peers {
    started: Instant,
    /// When a leader's append was accepted last, in milliseconds since `started`; 0 for never.
    heard_ms: AtomicU64,
    rejections: Mutex<Rejections>,
    /// Held while a snapshot is received: there is memory and disk space for one.
    receiving: tokio::sync::Mutex<()>,
    /// The number of the newest snapshot.
    newest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Rejections {
    since: Option<Instant>,
    kinds: HashSet<(String, String, u16)>,
}

impl Default for Peers {
    fn default() -> Self {
        Peers {
            started: Instant::now(),
            heard_ms: AtomicU64::new(0),
            rejections: Mutex::default(),
            receiving: tokio::sync::Mutex::default(),
            newest: watch::Sender::new(0),
        }
    }
}

impl Peers {
    /// A leader's append was accepted.
    pub fn note_leader(&self) {
        self.heard_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// Whether a leader's append was accepted within the last `within_ms` milliseconds.
    pub fn heard_a_leader(&self, within_ms: u64) -> bool {
        let heard_ms = self.heard_ms.load(Ordering::Relaxed);
        heard_ms > 0 && self.now_ms().saturating_sub(heard_ms) < within_ms
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }

    /// Logs that an RPC was rejected, unless one to the same path, from the same host and with the
    /// same status was logged lately: nobody can fill the log. `from` is the node that it claims to be from.
    pub fn note_rejection(
        &self,
        path: &str,
        addr: Option<SocketAddr>,
        from: Option<NodeId>,
        error: &ApiError,
        why: &str,
    ) {
        let host = addr.map(|addr| addr.ip().to_string()).unwrap_or_default();
        // A 5xx is no rejection: the node is stopping, or its disk is full, which is logged where it happens.
        if error.status() >= 500 || !self.is_news((host, path.to_owned(), error.status())) {
            return;
        }
        let from = from.map(|id| format!("node {id} at ")).unwrap_or_default();
        let addr = addr.map_or_else(|| "an unknown address".to_owned(), |addr| addr.to_string());
        tracing::warn!("rejected {path} from {from}{addr}: {why}");
    }

    fn is_news(&self, kind: (String, String, u16)) -> bool {
        let mut rejections = self.rejections.lock().unwrap_or_else(PoisonError::into_inner);
        if rejections.since.is_none_or(|since| since.elapsed() > SILENCE) {
            rejections.kinds.clear();
            rejections.since = Some(Instant::now());
        }
        rejections.kinds.len() < KINDS_MAX && rejections.kinds.insert(kind)
    }

    /// Has the snapshot that is being received given up for a newer one, and waits until it is.
    /// `None`: that takes too long.
    pub async fn snapshot_turn(&self) -> Option<SnapshotTurn<'_>> {
        let mut number = 0;
        self.newest.send_modify(|newest| {
            *newest += 1;
            number = *newest;
        });
        let held = tokio::time::timeout(SNAPSHOT_WAIT_MAX, self.receiving.lock()).await.ok()?;
        Some(SnapshotTurn { number, newest: self.newest.subscribe(), _held: held })
    }
}

/// The only snapshot that is being received.
pub struct SnapshotTurn<'a> {
    number: u64,
    newest: watch::Receiver<u64>,
    _held: MutexGuard<'a, ()>,
}

impl SnapshotTurn<'_> {
    /// Done when a newer snapshot arrives: its leader gave this one up.
    pub async fn superseded(&mut self) {
        let number = self.number;
        // An error would mean that the node is gone.
        let _ = self.newest.wait_for(|newest| *newest > number).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A newer snapshot ends the one before it, and only then has its turn.
    #[tokio::test]
    async fn a_newer_snapshot_takes_the_turn() {
        let peers = Peers::default();
        let mut first = peers.snapshot_turn().await.unwrap();
        let first_ends = async {
            first.superseded().await;
            drop(first);
        };
        let (second, ()) = tokio::join!(peers.snapshot_turn(), first_ends);
        let mut second = second.unwrap();
        let waited = tokio::time::timeout(Duration::from_millis(10), second.superseded()).await;
        assert!(waited.is_err(), "nothing is newer than the second");
    }

    /// A kind of rejection is news once.
    #[test]
    fn each_kind_once() {
        let peers = Peers::default();
        let kind = |path: &str, status| ("127.0.0.1".to_owned(), path.to_owned(), status);
        assert!(peers.is_news(kind("/raft-vote", 421)));
        assert!(!peers.is_news(kind("/raft-vote", 421)));
        assert!(peers.is_news(kind("/raft-vote", 400)));
        let many = (0..1000).filter(|number| peers.is_news(kind(&format!("/{number}"), 400))).count();
        assert_eq!(many, KINDS_MAX - 2);
    }
}
