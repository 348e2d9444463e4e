//! Clients' requests are read in turns, so that the responses that are due never wait behind a crowd of
//! requests: first in, first out, and [some of the newest are shed](super::load_shedding).
//!
//! A thread reads requests, and a write takes several steps of it. Whatever was ready at once would
//! be read at once, and each step of everything under way would wait until a thousand requests were
//! read. So a turn reads [`REQUESTS_A_TURN`], and lets all else go on before the next. Who comes
//! when a turn is used up is queued, in its order. The end of a connection is not, nor is what comes
//! on Raft's thread from known nodes, since a leader that is heard too late is none. (A turn counts what is read, and a request is
//! mostly read at once. Who sends several requests together, or one in many pieces, gets more
//! than a turn's worth.)
//!
//! When more comes than the node can do, the queue grows until each client waits for its
//! response before it asks for more; what is not read costs nothing.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::connection_state::ConnectionState;
use super::load_shedding::LoadShedding;
use crate::app::Room;
use crate::config::{
    LINE_WAIT_MAX, LOOKS_A_TURN, PASSED_ON_A_TURN, REFUSAL_INTERVAL_MAX, REFUSED_WAIT_MAX, REQUESTS_A_TURN, STALL_MIN,
};

/// Those who wait to be read, on one thread.
pub struct AdmissionQueue {
    /// How many requests may still be read in this turn: none while somebody is queued.
    pub(super) left: Cell<usize>,
    /// How many may still look how the node is, in this turn, ahead of the queue.
    looks_left: Cell<usize>,
    /// How many more may be under way. Who is slow to send takes up none of it.
    room: Box<dyn Fn() -> Room>,
    /// What it was when it last changed, and when that was.
    last_room: Cell<(Room, Instant)>,
    /// This node's own clients.
    own: RefCell<VecDeque<Waiting>>,
    /// What other nodes pass on to it, where it has been queued before.
    passed_on: RefCell<VecDeque<Waiting>>,
    shedding: LoadShedding,
    /// What is left of the share of those that are passed on, in parts of [`REQUESTS_A_TURN`].
    share_left: Cell<usize>,
    /// Whether there may be something to do for the task that begins turns.
    wake: Notify,
}

/// What came of a turn.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// Somebody was admitted.
    Used,
    /// There was nobody.
    Empty,
    /// There was no room for those who wait.
    Blocked,
}

struct Waiting {
    state: Weak<ConnectionState>,
    since: Instant,
}

/// What a request is, by how it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The end of a connection. It is not queued.
    End,
    /// An RPC, which Raft's thread serves.
    Rpc,
    /// What tells how the node is: [`LOOKS_A_TURN`] are not queued.
    Look,
    /// A client's of this node.
    Own,
    /// Passed on by another node, where it has been queued before. Anybody can say so, and
    /// gets a share of each turn for it, not more.
    PassedOn,
}

impl Kind {
    /// How much of a request is looked at. With a longer path than clients mostly have, one that
    /// is passed on is taken for one of this node's own.
    pub const BYTES: usize = 512;

    /// What a request is that begins so.
    pub fn of(first: &[u8]) -> Self {
        if first.is_empty() {
            Kind::End
        } else if first.starts_with(b"POST /raft-") || first.starts_with(b"GET /raft-") {
            Kind::Rpc
        } else if first.starts_with(b"GET /metrics ") || first.starts_with(b"HEAD /metrics ") {
            Kind::Look
        } else if memchr::memmem::find(first, b"\r\nraft-forwarded: ").is_some() {
            Kind::PassedOn
        } else {
            Kind::Own
        }
    }
}

impl AdmissionQueue {
    /// An empty queue.
    pub fn new(room: impl Fn() -> Room + 'static) -> Rc<Self> {
        let now = Instant::now();
        Rc::new(AdmissionQueue {
            left: Cell::new(REQUESTS_A_TURN),
            looks_left: Cell::new(LOOKS_A_TURN),
            last_room: Cell::new((room(), now)),
            room: Box::new(room),
            own: RefCell::default(),
            passed_on: RefCell::default(),
            shedding: LoadShedding::new(now),
            share_left: Cell::default(),
            wake: Notify::new(),
        })
    }

    /// Begins one turn after another, for as long as the thread runs.
    pub async fn take_turns(self: Rc<Self>) {
        loop {
            match self.begin_turn(Instant::now()) {
                // All that is ready to run goes first.
                Turn::Used => tokio::task::yield_now().await,
                Turn::Empty => self.wake.notified().await,
                Turn::Blocked => {
                    let pause = if self.shedding.is_overloaded() { REFUSAL_INTERVAL_MAX } else { STALL_MIN };
                    let _ = tokio::time::timeout(pause, self.wake.notified()).await;
                }
            }
        }
    }

    /// Admits the first in the queue, and sheds some of the last if it has come to that.
    fn begin_turn(&self, now: Instant) -> Turn {
        let (mut own, mut passed_on) = (self.own.borrow_mut(), self.passed_on.borrow_mut());
        let may_be_admitted = self.may_be_admitted(now);
        // Each its share, and what the other leaves of its own.
        let share = self.share_left.get() + may_be_admitted * PASSED_ON_A_TURN;
        self.share_left.set(share % REQUESTS_A_TURN);
        let share = share / REQUESTS_A_TURN;
        let mut left = may_be_admitted - share + admit_first(&mut passed_on, share, now);
        left = admit_first(&mut own, left, now);
        left = admit_first(&mut passed_on, left, now);
        let admitted = may_be_admitted - left;
        self.shedding.note_wait(own.front().map_or(Duration::ZERO, |first| first.waited(now)), now);
        let shed = shed_last(&mut own, self.shedding.allowance(admitted, now), now);
        if shed > 0 {
            self.shedding.note_shed(now);
        }
        self.looks_left.set(LOOKS_A_TURN);
        let is_empty = own.is_empty() && passed_on.is_empty();
        self.left.set(if is_empty { REQUESTS_A_TURN - admitted } else { 0 });
        match (admitted + shed, is_empty) {
            (1.., _) => Turn::Used,
            (0, true) => Turn::Empty,
            (0, false) => Turn::Blocked,
        }
    }

    /// How many a turn may admit. While answers come, no more than there is room for; if none
    /// come, as many as ever: they are refused, and need not wait for that.
    fn may_be_admitted(&self, now: Instant) -> usize {
        let room = (self.room)();
        let (last, changed_at) = self.last_room.get();
        if room != last {
            self.last_room.set((room, now));
        } else if now.saturating_duration_since(changed_at) >= STALL_MIN {
            return REQUESTS_A_TURN;
        }
        room.free.saturating_sub(room.kept).min(REQUESTS_A_TURN)
    }

    /// Admits a connection that has something to read, if there is a turn left or none is needed; queues
    /// it otherwise, and returns false.
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
            if left == REQUESTS_A_TURN {
                self.wake.notify_one();
            }
            self.left.set(left - 1);
            return true;
        }
        let queue = match kind() {
            Kind::End => return true,
            Kind::Look if self.looks_left.get() > 0 => {
                self.looks_left.set(self.looks_left.get() - 1);
                return true;
            }
            Kind::Rpc | Kind::Look | Kind::Own => &self.own,
            Kind::PassedOn => &self.passed_on,
        };
        self.wake.notify_one();
        queue.borrow_mut().push_back(Waiting { state: Rc::downgrade(state), since: now() });
        false
    }

    /// A request has its response.
    pub(super) fn note_end(&self) {
        if self.left.get() == 0 {
            // There may be room for one who waits.
            self.wake.notify_one();
        }
    }
}

/// Admits so many at most; how many are left of them.
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

/// Sheds so many at most of those who have just come; how many.
fn shed_last(waiting: &mut VecDeque<Waiting>, allowance: usize, now: Instant) -> usize {
    let mut shed = 0;
    while shed < allowance
        && waiting.back().is_some_and(|last| last.waited(now) < REFUSED_WAIT_MAX)
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

    /// Lets it read, unless it is gone; returns whether it did.
    fn admit(&self, is_shed: bool, now: Instant) -> bool {
        let state = self.state.upgrade();
        state.inspect(|state| state.admit_queued(is_shed, self.waited(now) > LINE_WAIT_MAX)).is_some()
    }
}

#[cfg(test)]
mod tests;
