//! What a node remembers about incoming RPCs: the leader, candidates, rejections, and the snapshot in progress.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::{MutexGuard, Semaphore, watch};

use crate::config::{LARGE_RPCS_MAX, SNAPSHOT_WAIT_MAX};
use crate::error::ApiError;
use crate::proofs::Proofs;
use crate::secret::Secret;
use crate::telemetry::meters::ElectionMeters;
use crate::types::{ExampleNode, NodeId, Vote};

/// Interval after which a rejection of the same kind is logged again.
const SILENCE: Duration = Duration::from_secs(600);
/// Candidates that are remembered; no cluster has so many nodes.
const CANDIDATES_MAX: usize = 1024;
/// Most kinds of rejections that are logged in that interval.
const KINDS_MAX: usize = 64;

/// What a node remembers about incoming RPCs.
#[derive(Debug)]
pub struct Peers {
    started: Instant,
    /// When a leader's append was last accepted, in milliseconds since `started`; 0 means never.
    heard_ms: AtomicU64,
    rejections: Mutex<Rejections>,
    run: u64,
    /// By the id that they claim.
    candidates: Mutex<HashMap<NodeId, Candidate>>,
    /// Whether there are any. Otherwise responses need not be examined.
    has_candidates: AtomicBool,
    /// How many connections are open on which each member sends RPCs.
    links: Mutex<HashMap<NodeId, usize>>,
    /// Incremented when one of them is closed.
    links_closed: watch::Sender<u64>,
    /// The leader whose process has certainly ended.
    gone: watch::Sender<Option<Vote>>,
    /// Held while a snapshot is received: there is memory and disk space for only one.
    receiving: tokio::sync::Mutex<()>,
    /// The number of the newest snapshot.
    newest: watch::Sender<u64>,
    /// The members' addresses, and a number that grows with each change of them.
    addresses: RwLock<Addresses>,
    addresses_version: AtomicU64,
    /// Whether members were found elsewhere. Otherwise the membership has their addresses.
    has_found: AtomicBool,
    /// Permits for long bodies of members' RPCs.
    pub large_from_members: Semaphore,
    /// Permit for long bodies of senders that are not known to be members, one at a time.
    pub large_from_others: Semaphore,
    /// What the node measures of elections and snapshots.
    pub elections: ElectionMeters,
    /// Proofs of the root token.
    pub proofs: Proofs,
}

/// Where the members are.
#[derive(Debug, Default)]
struct Addresses {
    /// Their incarnations and addresses in the membership.
    members: HashMap<NodeId, (u64, String)>,
    /// Where members responded instead.
    found: HashMap<NodeId, String>,
}

/// A process that requested votes.
#[derive(Debug)]
struct Candidate {
    run: u64,
    since: Instant,
    /// Whether another process with the same id has responded to an RPC that was sent later.
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
            // Without random numbers the node would not have started; 0 only disables the detection of doubles.
            run: getrandom::u64().unwrap_or_default(),
            candidates: Mutex::default(),
            has_candidates: AtomicBool::new(false),
            links: Mutex::default(),
            links_closed: watch::Sender::new(0),
            gone: watch::Sender::new(None),
            receiving: tokio::sync::Mutex::default(),
            newest: watch::Sender::new(0),
            addresses: RwLock::default(),
            addresses_version: AtomicU64::new(0),
            has_found: AtomicBool::new(false),
            large_from_members: Semaphore::new(LARGE_RPCS_MAX),
            large_from_others: Semaphore::new(1),
            elections: ElectionMeters::default(),
            proofs: Proofs::default(),
        }
    }
}

impl Peers {
    /// As the default, with proofs by this root token of node `id`, or by certificates.
    pub fn with_proofs(root: Option<&Secret>, id: NodeId, has_tls: bool) -> Self {
        let peers = Peers::default();
        let proofs = if has_tls { Proofs::ByCertificate } else { Proofs::new(root, id, peers.run) };
        Peers { proofs, ..peers }
    }

    /// Notes that a leader's append was accepted.
    pub fn note_leader(&self) {
        self.heard_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// Whether a leader's append was accepted within the last `within_ms` milliseconds.
    pub fn heard_a_leader(&self, within_ms: u64) -> bool {
        let heard_ms = self.heard_ms.load(Ordering::Relaxed);
        heard_ms > 0 && self.now_ms().saturating_sub(heard_ms) < within_ms
    }

    /// Counts a connection on which a member sends RPCs, until the link is dropped.
    pub fn link(self: &Arc<Self>, member: NodeId) -> Link {
        *self.links().entry(member).or_default() += 1;
        self.gone.send_if_modified(|gone| gone.take_if(|vote| vote.leader_id.node_id == member).is_some());
        Link { peers: self.clone(), member }
    }

    /// Whether a connection is open on which this member sends RPCs.
    pub fn has_link(&self, member: NodeId) -> bool {
        self.links().contains_key(&member)
    }

    /// Changes when such a connection is closed.
    pub fn closed_links(&self) -> watch::Receiver<u64> {
        self.links_closed.subscribe()
    }

    /// Notes that the process of the leader with this vote has ended.
    pub fn set_gone(&self, leader: Vote) {
        self.gone.send_replace(Some(leader));
    }

    /// Whether the process of the leader with this vote has ended, for certain.
    pub fn is_gone(&self, leader: &Vote) -> bool {
        *self.gone.borrow() == Some(*leader) && !self.has_link(leader.leader_id.node_id)
    }

    /// Changes when a leader turns out to be gone, or not to be.
    pub fn gone(&self) -> watch::Receiver<Option<Vote>> {
        self.gone.subscribe()
    }

    fn links(&self) -> std::sync::MutexGuard<'_, HashMap<NodeId, usize>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }

    /// Notes the members. openraft keeps its connections to a member whose address changes.
    pub fn set_addresses(&self, members: impl Iterator<Item = (NodeId, u64, String)>) {
        let members: HashMap<_, _> = members.map(|(id, incarnation, addr)| (id, (incarnation, addr))).collect();
        let mut addresses = self.addresses.write().unwrap_or_else(PoisonError::into_inner);
        if addresses.members != members {
            let former = std::mem::replace(&mut addresses.members, members);
            let Addresses { members, found } = &mut *addresses;
            // The membership is newer.
            found.retain(|id, _| members.get(id) == former.get(id));
            self.has_found.store(!found.is_empty(), Ordering::Release);
            self.addresses_version.fetch_add(1, Ordering::Release);
        }
    }

    /// Notes that a member responded at another address than the membership has, which is dialed instead until the
    /// membership has a new one. Returns whether that is new. Every RPC names its receiver, so another node there
    /// rejects it.
    pub fn note_found(&self, id: NodeId, incarnation: u64, addr: &str) -> bool {
        let mut addresses = self.addresses.write().unwrap_or_else(PoisonError::into_inner);
        let is_elsewhere = addresses.members.get(&id).is_some_and(|(of, known)| *of == incarnation && known != addr);
        let is_new = is_elsewhere && addresses.found.get(&id).is_none_or(|known| known != addr);
        if is_new {
            addresses.found.insert(id, addr.to_owned());
            self.has_found.store(true, Ordering::Release);
            self.addresses_version.fetch_add(1, Ordering::Release);
        }
        is_new
    }

    /// A member with the address at which it was found, if that is another one.
    pub fn located(&self, id: NodeId, node: ExampleNode) -> ExampleNode {
        if !self.has_found.load(Ordering::Acquire) {
            return node;
        }
        let addr = self.address_of(id, node.incarnation);
        ExampleNode { addr: addr.unwrap_or(node.addr), ..node }
    }

    /// A number that differs after each change of the members' addresses.
    pub fn addresses_version(&self) -> u64 {
        self.addresses_version.load(Ordering::Acquire)
    }

    /// The address of a member, if it is one with this incarnation.
    pub fn address_of(&self, id: NodeId, incarnation: u64) -> Option<String> {
        let addresses = self.addresses.read().unwrap_or_else(PoisonError::into_inner);
        let (_, addr) = addresses.members.get(&id).filter(|(found, _)| *found == incarnation)?;
        Some(addresses.found.get(&id).unwrap_or(addr).clone())
    }

    /// A random number that identifies this process, even among those on the same data directory or on a copy of it.
    pub fn run(&self) -> u64 {
        self.run
    }

    /// Notes that process `run` requested votes as node `id`. Returns whether another process runs as the same node.
    ///
    /// That is certain if this process requested votes, then another one responded to an RPC that was sent later, and
    /// then this one requests votes again: a process that had ended before the other one started could not do so.
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

    /// Notes that process `run` responded as node `id` to an RPC that was sent at `sent`.
    pub fn note_answer(&self, id: NodeId, run: u64, sent: Instant) {
        let mut candidates = self.candidates.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(candidate) = candidates.get_mut(&id)
            && candidate.run != run
            && sent > candidate.since
        {
            candidate.has_double = true;
        }
    }

    /// Whether [`note_answer`](Self::note_answer) can have an effect.
    pub fn has_candidates(&self) -> bool {
        self.has_candidates.load(Ordering::Relaxed)
    }

    /// Logs a rejected RPC, unless one with the same path, host and status was logged recently, so that no sender can
    /// fill the log. `from` is the id that the sender claims.
    pub fn note_rejection(
        &self,
        path: &str,
        addr: Option<SocketAddr>,
        from: Option<NodeId>,
        error: &ApiError,
        why: &str,
    ) {
        let host = addr.map(|addr| addr.ip().to_string()).unwrap_or_default();
        // A 5xx is not a rejection: the node is stopping or busy, or its disk is full or failed, which is logged
        // elsewhere.
        if error.status() >= 500 || !self.is_news((host, path.to_owned(), error.status())) {
            return;
        }
        let from = from.map(|id| format!("node {id} at ")).unwrap_or_default();
        let addr = addr.map_or_else(|| "an unknown address".to_owned(), |addr| addr.to_string());
        tracing::warn!("rejected {path} from {from}{addr}: {why}");
    }

    /// Logs a TLS handshake that failed, unless one with the same reason and host was logged recently.
    pub fn note_failed_handshake(&self, addr: Option<SocketAddr>, why: &str) {
        let host = addr.map(|addr| addr.ip().to_string()).unwrap_or_default();
        if self.is_news((host, why.to_owned(), 0)) {
            let addr = addr.map_or_else(|| "an unknown address".to_owned(), |addr| addr.to_string());
            tracing::warn!("the TLS handshake with {addr} failed: {why}");
        }
    }

    fn is_news(&self, kind: (String, String, u16)) -> bool {
        let mut rejections = self.rejections.lock().unwrap_or_else(PoisonError::into_inner);
        if rejections.since.is_none_or(|since| since.elapsed() > SILENCE) {
            rejections.kinds.clear();
            rejections.since = Some(Instant::now());
        }
        rejections.kinds.len() < KINDS_MAX && rejections.kinds.insert(kind)
    }

    /// Aborts the snapshot that is being received in favor of a newer one, and waits until it has ended. `None` if that
    /// takes longer than [`SNAPSHOT_WAIT_MAX`].
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

/// An open connection on which a member sends RPCs.
#[derive(Debug)]
pub struct Link {
    peers: Arc<Peers>,
    member: NodeId,
}

impl Drop for Link {
    fn drop(&mut self) {
        {
            let mut links = self.peers.links();
            if let Entry::Occupied(mut count) = links.entry(self.member) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
        self.peers.links_closed.send_modify(|closed| *closed += 1);
    }
}

/// The only snapshot that is being received.
pub struct SnapshotTurn<'a> {
    number: u64,
    newest: watch::Receiver<u64>,
    _held: MutexGuard<'a, ()>,
}

impl SnapshotTurn<'_> {
    /// Resolves when a newer snapshot arrives: the leader has abandoned this one.
    pub async fn superseded(&mut self) {
        let number = self.number;
        // The sender lives as long as `Peers`, so this cannot fail.
        let _ = self.newest.wait_for(|newest| *newest > number).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A newer snapshot aborts the one before it, and is received after that has ended.
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

    /// Two processes with the same id are distinguished from one that was restarted.
    #[test]
    fn doubles() {
        let peers = Peers::default();
        let long_ago = Instant::now();
        // Run 1 requests votes, ends, and is restarted as run 2.
        assert!(!peers.note_candidate(7, 1));
        peers.note_answer(7, 2, Instant::now());
        assert!(!peers.note_candidate(7, 2));
        peers.note_answer(7, 2, Instant::now());
        assert!(!peers.note_candidate(7, 2));
        // An old response of run 1 does not count, nor does a response of another node.
        peers.note_answer(7, 1, long_ago);
        peers.note_answer(8, 1, Instant::now());
        assert!(!peers.note_candidate(7, 2));
        // Run 3 responds while run 2 is a candidate.
        peers.note_answer(7, 3, Instant::now());
        assert!(peers.note_candidate(7, 2));
        assert!(!peers.note_candidate(8, 2));
    }

    /// A leader is gone from when that is noted until it opens a connection again. A connection of another member, or
    /// one of two of the leader, changes nothing.
    #[test]
    fn links() {
        let peers = Arc::new(Peers::default());
        let vote = |term, node_id| Vote { leader_id: crate::types::LeaderId { term, node_id }, committed: true };
        let mut closed = peers.closed_links();
        let (first, second, other) = (peers.link(1), peers.link(1), peers.link(2));
        drop(first);
        assert!(closed.has_changed().unwrap() && peers.has_link(1));
        closed.borrow_and_update();
        drop(second);
        assert!(closed.has_changed().unwrap() && !peers.has_link(1) && peers.has_link(2));
        assert!(!peers.is_gone(&vote(3, 1)), "that was not noted");
        peers.set_gone(vote(3, 1));
        let _more = peers.link(2);
        drop(other);
        assert!(peers.is_gone(&vote(3, 1)) && !peers.is_gone(&vote(4, 1)) && !peers.is_gone(&vote(3, 2)));
        let again = peers.link(1);
        assert!(!peers.is_gone(&vote(3, 1)));
        drop(again);
        assert!(!peers.is_gone(&vote(3, 1)), "it may still run");
    }

    /// The address of a member is the newest, and belongs to one incarnation.
    #[test]
    fn addresses() {
        let peers = Peers::default();
        let member = |addr: &str| std::iter::once((7, 1, addr.to_owned()));
        assert_eq!((peers.address_of(7, 1), peers.addresses_version()), (None, 0));
        for (addr, version) in [("a:1", 1), ("a:1", 1), ("b:1", 2)] {
            peers.set_addresses(member(addr));
            assert_eq!((peers.address_of(7, 1).as_deref(), peers.addresses_version()), (Some(addr), version));
        }
        assert_eq!((peers.address_of(7, 2), peers.address_of(8, 1)), (None, None));
        // It has moved once more, and is found there until the membership has an address for it.
        assert!(!peers.note_found(7, 1, "b:1") && !peers.note_found(7, 2, "c:1") && !peers.note_found(8, 1, "c:1"));
        assert!(peers.note_found(7, 1, "c:1") && !peers.note_found(7, 1, "c:1"));
        assert_eq!((peers.address_of(7, 1).as_deref(), peers.addresses_version()), (Some("c:1"), 3));
        let node = |addr: &str| ExampleNode { addr: addr.to_owned(), incarnation: 1 };
        assert_eq!((peers.located(7, node("b:1")), peers.located(8, node("a:1"))), (node("c:1"), node("a:1")));
        peers.set_addresses(member("b:1"));
        assert_eq!(peers.address_of(7, 1).as_deref(), Some("c:1"), "nothing is new");
        peers.set_addresses(member("d:1"));
        assert_eq!((peers.address_of(7, 1).as_deref(), peers.addresses_version()), (Some("d:1"), 4));
        peers.set_addresses(std::iter::empty());
        assert_eq!((peers.address_of(7, 1), peers.addresses_version()), (None, 5));
    }

    /// Each kind of rejection is logged once, up to the limit.
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
