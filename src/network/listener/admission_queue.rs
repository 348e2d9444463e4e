//! The admission queue: clients' requests are read first in, first out, a bounded number per turn of a thread's event
//! loop, so that responses that are due never wait behind a burst of requests. Under overload [some of the newest are
//! shed](super::load_shedding).
//!
//! A thread reads requests, and each write takes several steps of that thread. Without a bound, a thousand requests
//! that are ready together would all be read first, and every step of the requests under way would wait for them. So a
//! turn reads at most [`REQUESTS_PER_TURN`], and then all other tasks run before the next turn. Requests that arrive
//! when a turn is used up are queued. The end of a connection is not queued, nor are RPCs of known nodes on Raft's
//! thread: a late heartbeat causes an election. (A turn counts reads. A client that sends several requests together, or
//! one in many pieces, gets more than its share.)
//!
//! Under overload the queue grows until each client waits for its response before it sends the next request. Requests
//! that are not read take no memory of the node.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::connection_state::ConnectionState;
use super::load_shedding::LoadShedding;
use crate::app::Room;
use crate::config::{
    FORWARDED_PER_TURN, METRICS_REQUESTS_PER_TURN, REQUESTS_PER_TURN, SHED_INTERVAL_MAX, SHED_WAIT_MAX, STALL_MIN,
};

/// The connections of one thread that wait to be read.
///
/// Invariant, asserted when a connection is admitted: the queue is empty while the current turn has reads left.
pub struct AdmissionQueue {
    /// How many requests may still be read in this turn; 0 while any is queued.
    pub(super) left: Cell<usize>,
    /// How many requests that observe the node may still bypass the queue in this turn.
    metrics_left: Cell<usize>,
    /// How many more requests may be under way. A request that is still arriving does not count.
    room: Box<dyn Fn() -> Room>,
    /// The room at its last change, and the time of that change.
    last_room: Cell<(Room, Instant)>,
    /// Requests of this node's own clients.
    own: RefCell<VecDeque<Waiting>>,
    /// Requests that other nodes forward, which have already been queued there.
    forwarded: RefCell<VecDeque<Waiting>>,
    shedding: LoadShedding,
    /// The rest of the share of forwarded requests, in parts of [`REQUESTS_PER_TURN`].
    share_left: Cell<usize>,
    /// Wakes the task that begins turns.
    wake: Notify,
}

/// The result of a turn.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// A connection was admitted or shed.
    Used,
    /// The queue was empty.
    Empty,
    /// Connections wait, but no more requests may be under way.
    Blocked,
}

struct Waiting {
    state: Weak<ConnectionState>,
    since: Instant,
}

/// The kind of a request, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The end of a connection, which is not queued.
    End,
    /// An RPC, which Raft's thread serves.
    Rpc,
    /// A request that observes the node ([`is_look`]). [`METRICS_REQUESTS_PER_TURN`] of them are not queued.
    Metrics,
    /// A request of a client of this node.
    Own,
    /// A request that another node forwards, which has already been queued there. A client can claim this too, and gets
    /// no more than the share of forwarded requests in each turn.
    Forwarded,
}

/// Whether a request for this target is served on Raft's thread.
fn is_for_raft(target: &[u8]) -> bool {
    target.starts_with(b"/raft-") && !target.starts_with(b"/raft-status")
}

impl Kind {
    /// The number of first bytes that decide the kind. A forwarded request with an unusually long path counts as one of
    /// this node's own clients.
    pub const BYTES: usize = 512;

    /// The kind of a request that begins with these bytes.
    pub fn of(first: &[u8]) -> Self {
        if first.is_empty() {
            Kind::End
        } else if path_of_get(first).is_some_and(is_look) {
            Kind::Metrics
        } else if [&b"POST "[..], b"GET "].iter().any(|method| first.strip_prefix(*method).is_some_and(is_for_raft)) {
            Kind::Rpc
        } else if memchr::memmem::find(first, b"\r\nraft-forwarded: ").is_some() {
            Kind::Forwarded
        } else {
            Kind::Own
        }
    }
}

/// Whether a path only observes this node: probes and metrics.
pub fn is_look(path: &str) -> bool {
    matches!(path, "/metrics" | "/v1/metrics" | "/livez" | "/readyz" | "/health" | "/v1/cluster" | "/raft-status")
}

/// The path of a `GET` or `HEAD` request that begins with these bytes.
fn path_of_get(first: &[u8]) -> Option<&str> {
    let target = first.strip_prefix(b"GET ").or_else(|| first.strip_prefix(b"HEAD "))?;
    let end = target.iter().position(|byte| matches!(byte, b' ' | b'?'))?;
    std::str::from_utf8(&target[..end]).ok()
}

impl AdmissionQueue {
    /// An empty queue.
    pub fn new(room: impl Fn() -> Room + 'static) -> Rc<Self> {
        let now = Instant::now();
        Rc::new(AdmissionQueue {
            left: Cell::new(REQUESTS_PER_TURN),
            metrics_left: Cell::new(METRICS_REQUESTS_PER_TURN),
            last_room: Cell::new((room(), now)),
            room: Box::new(room),
            own: RefCell::default(),
            forwarded: RefCell::default(),
            shedding: LoadShedding::new(now),
            share_left: Cell::default(),
            wake: Notify::new(),
        })
    }

    /// Begins one turn after another until the thread ends.
    pub async fn take_turns(self: Rc<Self>) {
        loop {
            match self.begin_turn(Instant::now()) {
                // Let all other tasks that are ready run first.
                Turn::Used => tokio::task::yield_now().await,
                Turn::Empty => self.wake.notified().await,
                Turn::Blocked => {
                    let pause = if self.shedding.is_overloaded() { SHED_INTERVAL_MAX } else { STALL_MIN };
                    let _ = tokio::time::timeout(pause, self.wake.notified()).await;
                }
            }
        }
    }

    /// Admits the first in the queue, and sheds some of the last under overload.
    fn begin_turn(&self, now: Instant) -> Turn {
        let (mut own, mut forwarded) = (self.own.borrow_mut(), self.forwarded.borrow_mut());
        let may_be_admitted = self.may_be_admitted(now);
        // Each queue gets its share, and what the other leaves of its own.
        let share = self.share_left.get() + may_be_admitted * FORWARDED_PER_TURN;
        self.share_left.set(share % REQUESTS_PER_TURN);
        let share = share / REQUESTS_PER_TURN;
        let mut left = may_be_admitted - share + admit_first(&mut forwarded, share, now);
        left = admit_first(&mut own, left, now);
        left = admit_first(&mut forwarded, left, now);
        let admitted = may_be_admitted - left;
        self.shedding.note_wait(own.front().map_or(Duration::ZERO, |first| first.waited(now)), now);
        let shed = shed_last(&mut own, self.shedding.allowance(admitted, now), now);
        if shed > 0 {
            self.shedding.note_shed(now);
        }
        self.metrics_left.set(METRICS_REQUESTS_PER_TURN);
        let is_empty = own.is_empty() && forwarded.is_empty();
        self.left.set(if is_empty { REQUESTS_PER_TURN - admitted } else { 0 });
        match (admitted + shed, is_empty) {
            (1.., _) => Turn::Used,
            (0, true) => Turn::Empty,
            (0, false) => Turn::Blocked,
        }
    }

    /// How many requests a turn may admit: while requests are completed, as many as there is room for. If none
    /// completes, as many as in any turn: they are rejected, and need not wait for that.
    fn may_be_admitted(&self, now: Instant) -> usize {
        let room = (self.room)();
        let (last, changed_at) = self.last_room.get();
        if room != last {
            self.last_room.set((room, now));
        } else if now.saturating_duration_since(changed_at) >= STALL_MIN {
            return REQUESTS_PER_TURN;
        }
        room.free.saturating_sub(room.kept).min(REQUESTS_PER_TURN)
    }

    /// Admits a connection with something to read if the turn has reads left or it needs none. Otherwise queues the
    /// connection and returns false.
    pub(super) fn admits_at_once(
        &self,
        state: &Rc<ConnectionState>,
        now: impl FnOnce() -> Instant,
        kind: impl FnOnce() -> Kind,
    ) -> bool {
        if state.is_for_nodes() && state.is_node() {
            return true;
        }
        let left = self.left.get();
        if left > 0 {
            debug_assert!(self.own.borrow().is_empty() && self.forwarded.borrow().is_empty());
            if left == REQUESTS_PER_TURN {
                self.wake.notify_one();
            }
            self.left.set(left - 1);
            return true;
        }
        let queue = match kind() {
            Kind::End => return true,
            Kind::Metrics if self.metrics_left.get() > 0 => {
                self.metrics_left.set(self.metrics_left.get() - 1);
                return true;
            }
            Kind::Rpc | Kind::Metrics | Kind::Own => &self.own,
            Kind::Forwarded => &self.forwarded,
        };
        self.wake.notify_one();
        queue.borrow_mut().push_back(Waiting { state: Rc::downgrade(state), since: now() });
        false
    }

    /// Notes that a request has its response.
    pub(super) fn note_end(&self) {
        if self.left.get() == 0 {
            // There may be room for a queued one.
            self.wake.notify_one();
        }
    }
}

/// Admits at most `left`; returns how many more could be admitted.
fn admit_first(waiting: &mut VecDeque<Waiting>, mut left: usize, now: Instant) -> usize {
    while left > 0
        && let Some(first) = waiting.pop_front()
    {
        if first.admit(false, now) {
            left -= 1;
        }
    }
    left
}

/// Sheds at most `allowance` of the newest; returns how many.
fn shed_last(waiting: &mut VecDeque<Waiting>, allowance: usize, now: Instant) -> usize {
    let mut shed = 0;
    while shed < allowance
        && waiting.back().is_some_and(|last| last.waited(now) < SHED_WAIT_MAX)
        && let Some(last) = waiting.pop_back()
    {
        if last.admit(true, now) {
            shed += 1;
        }
    }
    shed
}

impl Waiting {
    fn waited(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// Admits the connection if it is still open; returns whether it is.
    fn admit(&self, is_shed: bool, now: Instant) -> bool {
        let state = self.state.upgrade();
        state.inspect(|state| state.admit_queued(is_shed, self.waited(now))).is_some()
    }
}

#[cfg(test)]
mod tests;
