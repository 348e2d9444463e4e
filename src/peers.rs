//! What a node remembers of the RPCs that it received.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{MutexGuard, Semaphore, watch};

use crate::config::{LARGE_RPCS_MAX, SNAPSHOT_WAIT_MAX};
use crate::error::ApiError;
use crate::types::NodeId;

/// After how long a rejection of the same kind is logged again.
const SILENCE: Duration = Duration::from_secs(600);
/// Nodes of which candidates are remembered; no cluster has so many.
const CANDIDATES_MAX: usize = 1024;
/// Kinds of rejections that are logged within that time.
const KINDS_MAX: usize = 64;

/// What a node remembers of the RPCs that it received.
#[derive(Debug)]
pub struct Peers {
    started: Instant,
    /// When a leader's append was accepted last, in milliseconds since `started`; 0 for never.
    heard_ms: AtomicU64,
    rejections: Mutex<Rejections>,
    run: u64,
    /// By the node that they claim to be.
    candidates: Mutex<HashMap<NodeId, Candidate>>,
    /// Whether there are any: an answer need not be looked at otherwise.
    has_candidates: AtomicBool,
    /// Held while a snapshot is received: there is memory and disk space for one.
    receiving: tokio::sync::Mutex<()>,
    /// The number of the newest snapshot.
    newest: watch::Sender<u64>,
    /// Places for long bodies of members' RPCs.
    pub large_from_members: Semaphore,
    /// Places for those of senders that are not known to be members, one at a time.
    pub large_from_others: Semaphore,
}

/// A process that asked for votes.
#[derive(Debug)]
struct Candidate {
    run: u64,
    since: Instant,
    /// Whether another process has answered as the same node to an RPC that was sent later.
    has_double: bool,
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
            // Without random numbers the node would not have got so far, and 0 is only less helpful.
            run: getrandom::u64().unwrap_or_default(),
            candidates: Mutex::default(),
            has_candidates: AtomicBool::new(false),
            receiving: tokio::sync::Mutex::default(),
            newest: watch::Sender::new(0),
            large_from_members: Semaphore::new(LARGE_RPCS_MAX),
            large_from_others: Semaphore::new(1),
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

    /// A random number that this process drew when it started: another process on the same data
    /// directory, or on a copy of it, has another one.
    pub fn run(&self) -> u64 {
        self.run
    }

    /// A process asked for votes as node `id`. Returns whether another process runs as the same node.
    ///
    /// That is certain after this process asked, then another one answered to an RPC that was sent
    /// later, and then this one asked again: a process that is started after another one has ended
    /// never hears of that one again.
    pub fn note_candidate(&self, id: NodeId, run: u64) -> bool {
        let mut candidates = self.candidates.lock().unwrap_or_else(PoisonError::into_inner);
        match candidates.get(&id) {
            Some(candidate) if candidate.run == run => candidate.has_double,
            _ => {
                if candidates.len() >= CANDIDATES_MAX {
                    candidates.clear();
                }
                candidates.insert(id, Candidate { run, since: Instant::now(), has_double: false });
                self.has_candidates.store(true, Ordering::Relaxed);
                false
            }
        }
    }

    /// A process answered as node `id` to an RPC that was sent at `sent`.
    pub fn note_answer(&self, id: NodeId, run: u64, sent: Instant) {
        let mut candidates = self.candidates.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(candidate) = candidates.get_mut(&id)
            && candidate.run != run
            && sent > candidate.since
        {
            candidate.has_double = true;
        }
    }

    /// Whether [`note_answer`](Self::note_answer) can matter.
    pub fn has_candidates(&self) -> bool {
        self.has_candidates.load(Ordering::Relaxed)
    }

    /// Logs a rejection, unless one to the same path, from the same host and with the
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
        // A 5xx is no rejection: the node is stopping or busy, or its disk is full or failed, which is logged where it
        // happens.
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

    /// Two processes are told from one that was started again.
    #[test]
    fn doubles() {
        let peers = Peers::default();
        let long_ago = Instant::now();
        // It asks, ends, and is started again as run 2.
        assert!(!peers.note_candidate(7, 1));
        peers.note_answer(7, 2, Instant::now());
        assert!(!peers.note_candidate(7, 2));
        peers.note_answer(7, 2, Instant::now());
        assert!(!peers.note_candidate(7, 2));
        // What run 1 answered long ago does not count, nor what another node answers.
        peers.note_answer(7, 1, long_ago);
        peers.note_answer(8, 1, Instant::now());
        assert!(!peers.note_candidate(7, 2));
        // Run 3 answers while run 2 asks.
        peers.note_answer(7, 3, Instant::now());
        assert!(peers.note_candidate(7, 2));
        assert!(!peers.note_candidate(8, 2));
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
