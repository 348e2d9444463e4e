//! Clients' requests are read in turns, so that the answers that are due never wait behind a crowd of
//! them: admission control, first in first out, which sheds some of the newest.
//!
//! A thread reads requests, and a write takes several steps of it. Whatever was ready at once would
//! be read at once, and each step of everything under way would wait until a thousand requests were
//! read. So a turn reads [`REQUESTS_A_TURN`], and lets all else go on before the next. Who comes
//! when a turn is used up stands in line, in its order. The end of a connection does not, nor do the
//! nodes' own requests. (A turn counts what is read, and a request is
//! mostly read at once. Who sends several requests together, or one in many pieces, gets more
//! than a turn's worth.)
//!
//! When more comes than the node can do, the line grows until each client waits for its
//! answer before it asks for more; what is not read costs nothing. To refuse a request costs
//! a third to a half of what a write costs the leader, so whoever refused all that is too much
//! would have no time for the rest. Once the first in line have waited for more than
//! [`LINE_WAIT_MAX`] for [`OVERLOAD_AFTER`], a few of the last are refused with each turn:
//! they have just come, and hear of it at once. The others are done, later than they would
//! like, but each after those that came before.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::connection_limits::Presence;
use crate::app::Room;
use crate::config::{
    FIRST_RPCS_A_TURN, LINE_WAIT_MAX, LOOKS_A_TURN, OVERLOAD_AFTER, PASSED_ON_A_TURN, REFUSAL_INTERVAL_MAX,
    REFUSED_WAIT_MAX, REQUESTS_A_REFUSAL, REQUESTS_A_TURN, STALL_MIN,
};

/// Those who wait to be read, on one thread.
pub struct Line {
    /// How many requests may still be read in this turn: none while somebody stands in line.
    left: Cell<usize>,
    /// How many may still look how the node is, in this turn, ahead of the line.
    looks_left: Cell<usize>,
    /// How many RPCs may still be read, in this turn, ahead of the line, from whoever has not yet shown
    /// to be a node.
    first_rpcs_left: Cell<usize>,
    /// How many more may be under way. Who is slow to send takes up none of it.
    room: Box<dyn Fn() -> Room>,
    /// What it was when it last changed, and when that was.
    last_room: Cell<(Room, Instant)>,
    /// This node's own clients.
    own: RefCell<VecDeque<Waiting>>,
    /// What other nodes pass on to it, where it has stood in line before.
    passed_on: RefCell<VecDeque<Waiting>>,
    /// When the first in line last had waited for no longer than [`LINE_WAIT_MAX`].
    short_at: Cell<Instant>,
    is_overloaded: Cell<bool>,
    /// Requests that were called and do not yet make up for one that is refused.
    called_unpaid: Cell<usize>,
    /// What is left of the share of those that are passed on, in parts of [`REQUESTS_A_TURN`].
    share_left: Cell<usize>,
    turn_at: Cell<Instant>,
    refused_at: Cell<Instant>,
    /// Whether there may be something to do for the task that begins turns.
    wake: Notify,
}

/// What came of a turn.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// Somebody was called.
    Used,
    /// There was nobody.
    Empty,
    /// There was no room for those who wait.
    Blocked,
}

struct Waiting {
    place: Weak<Place>,
    since: Instant,
}

/// A connection's place in the line.
pub struct Place {
    line: Rc<Line>,
    /// What the connection is doing, and whether it is to be closed.
    pub presence: Rc<Presence>,
    state: Cell<State>,
    /// Whether the request that is read next is to be refused.
    is_refused: Cell<bool>,
    /// Whether it has waited for long, so that its client may be gone.
    is_late: Cell<bool>,
    /// Whether the last request was an RPC: so most likely is the next, which then takes up no turn.
    was_rpc: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// No request is under way.
    Idle,
    /// There is something to be read, and others were there before.
    InLine,
    /// It may read now.
    Called,
    /// A request has begun, and its answer has not: what it sends is read as it comes.
    UnderWay,
}

/// What a request is, by how it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The end of a connection. It stands in no line.
    End,
    /// An RPC. It stands in no line, since a leader that is heard too late is none; of those that come
    /// on connections that are not known to be a node's, [`FIRST_RPCS_A_TURN`] do not.
    Rpc,
    /// What tells how the node is: [`LOOKS_A_TURN`] stand in no line.
    Look,
    /// A client's of this node.
    Own,
    /// Passed on by another node, where it has stood in line before. Anybody can say so, and
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
        } else if is_rpc(first) {
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

fn is_rpc(first: &[u8]) -> bool {
    first.starts_with(b"POST /raft-") || first.starts_with(b"GET /raft-")
}

impl Line {
    /// An empty line.
    pub fn new(room: impl Fn() -> Room + 'static) -> Rc<Self> {
        let now = Instant::now();
        Rc::new(Line {
            left: Cell::new(REQUESTS_A_TURN),
            looks_left: Cell::new(LOOKS_A_TURN),
            first_rpcs_left: Cell::new(FIRST_RPCS_A_TURN),
            last_room: Cell::new((room(), now)),
            room: Box::new(room),
            own: RefCell::default(),
            passed_on: RefCell::default(),
            short_at: Cell::new(now),
            is_overloaded: Cell::default(),
            called_unpaid: Cell::default(),
            share_left: Cell::default(),
            turn_at: Cell::new(now),
            refused_at: Cell::new(now),
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
                    let pause = if self.is_overloaded.get() { REFUSAL_INTERVAL_MAX } else { STALL_MIN };
                    let _ = tokio::time::timeout(pause, self.wake.notified()).await;
                }
            }
        }
    }

    /// Calls the first in line, and refuses some of the last if it has come to that.
    fn begin_turn(&self, now: Instant) -> Turn {
        let (mut own, mut passed_on) = (self.own.borrow_mut(), self.passed_on.borrow_mut());
        let may_be_called = self.may_be_called(now);
        // Each its share, and what the other leaves of its own.
        let share = self.share_left.get() + may_be_called * PASSED_ON_A_TURN;
        self.share_left.set(share % REQUESTS_A_TURN);
        let share = share / REQUESTS_A_TURN;
        let mut left = may_be_called - share + call_first(&mut passed_on, share, now);
        left = call_first(&mut own, left, now);
        left = call_first(&mut passed_on, left, now);
        let called = may_be_called - left;
        self.note_wait(own.front().map_or(Duration::ZERO, |first| first.waited(now)), now);
        let refused = if self.is_overloaded.get() { self.refuse_last(called, &mut own, now) } else { 0 };
        self.looks_left.set(LOOKS_A_TURN);
        self.first_rpcs_left.set(FIRST_RPCS_A_TURN);
        let is_empty = own.is_empty() && passed_on.is_empty();
        self.left.set(if is_empty { REQUESTS_A_TURN - called } else { 0 });
        match (called + refused, is_empty) {
            (1.., _) => Turn::Used,
            (0, true) => Turn::Empty,
            (0, false) => Turn::Blocked,
        }
    }

    /// How many a turn may call. While answers come, no more than there is room for; if none
    /// come, as many as ever: they are refused, and need not wait for that.
    fn may_be_called(&self, now: Instant) -> usize {
        let room = (self.room)();
        let (last, changed_at) = self.last_room.get();
        if room != last {
            self.last_room.set((room, now));
        } else if now.saturating_duration_since(changed_at) >= STALL_MIN {
            return REQUESTS_A_TURN;
        }
        room.free.saturating_sub(room.kept).min(REQUESTS_A_TURN)
    }

    /// Takes down for how long the first in line has waited.
    fn note_wait(&self, waited: Duration, now: Instant) {
        // Nobody can be called while the whole process stands still: that is not counted, but for
        // what a turn of large requests takes.
        let stood_still = now.saturating_duration_since(self.turn_at.replace(now)).saturating_sub(2 * STALL_MIN);
        self.short_at.set(self.short_at.get() + stood_still);
        if waited <= LINE_WAIT_MAX {
            if self.is_overloaded.get() && waited <= LINE_WAIT_MAX / 2 {
                self.is_overloaded.set(false);
                self.called_unpaid.set(0);
                tracing::info!("requests no longer wait for long: all are taken again");
            }
            if !self.is_overloaded.get() {
                self.short_at.set(now);
            }
        } else if !self.is_overloaded.get() && now.saturating_duration_since(self.short_at.get()) > OVERLOAD_AFTER {
            self.is_overloaded.set(true);
            tracing::warn!("more requests come than this node can do: they wait, and some are refused");
        }
    }

    /// Calls some of those who have just come to be refused; how many.
    fn refuse_last(&self, called: usize, waiting: &mut VecDeque<Waiting>, now: Instant) -> usize {
        let unpaid = self.called_unpaid.get() + called;
        let mut left = unpaid / REQUESTS_A_REFUSAL;
        // What nobody is there for is not made up for later.
        self.called_unpaid.set(unpaid % REQUESTS_A_REFUSAL);
        if left == 0 && now.saturating_duration_since(self.refused_at.get()) >= REFUSAL_INTERVAL_MAX {
            left = 1;
        }
        let mut refused = 0;
        while refused < left
            && waiting.back().is_some_and(|last| last.waited(now) < REFUSED_WAIT_MAX)
            && let Some(last) = waiting.pop_back()
        {
            if last.call(true, now) {
                refused += 1;
            }
        }
        if refused > 0 {
            self.refused_at.set(now);
        }
        refused
    }
}

/// Calls so many at most to be done; how many are left of them.
fn call_first(waiting: &mut VecDeque<Waiting>, mut left: usize, now: Instant) -> usize {
    while left > 0
        && let Some(first) = waiting.pop_front()
    {
        if first.call(false, now) {
            left -= 1;
        }
    }
    left
}

impl Waiting {
    fn waited(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// Lets it read, unless it is gone or does not wait any more; says whether it did.
    fn call(&self, is_refused: bool, now: Instant) -> bool {
        self.place.upgrade().is_some_and(|place| place.call(is_refused, self.waited(now) > LINE_WAIT_MAX))
    }
}

impl Place {
    /// The place of a new connection.
    pub fn new(line: Rc<Line>, presence: Rc<Presence>) -> Rc<Self> {
        Rc::new(Place {
            line,
            presence,
            state: Cell::new(State::Idle),
            is_refused: Cell::default(),
            is_late: Cell::default(),
            was_rpc: Cell::default(),
            waker: RefCell::default(),
        })
    }

    /// Whether the connection, which has something to read, may read it; if not, it is woken when
    /// it may. What it is that comes is asked only if it makes a difference: that costs a system call.
    pub fn poll_turn(
        self: &Rc<Self>,
        context: &mut Context<'_>,
        kind: impl FnOnce(&mut Context<'_>) -> Poll<io::Result<Kind>>,
    ) -> Poll<io::Result<()>> {
        self.poll_turn_at(Instant::now, context, kind)
    }

    fn poll_turn_at(
        self: &Rc<Self>,
        now: impl FnOnce() -> Instant,
        context: &mut Context<'_>,
        kind: impl FnOnce(&mut Context<'_>) -> Poll<io::Result<Kind>>,
    ) -> Poll<io::Result<()>> {
        match self.state.get() {
            State::Called | State::UnderWay => return Poll::Ready(Ok(())),
            State::InLine => {}
            State::Idle => {
                let Some(waiting) = ready!(self.poll_line(context, kind))? else {
                    // However often it asks until it reads.
                    self.state.set(State::Called);
                    return Poll::Ready(Ok(()));
                };
                waiting.borrow_mut().push_back(Waiting { place: Rc::downgrade(self), since: now() });
                self.state.set(State::InLine);
                self.presence.wait();
            }
        }
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
        Poll::Pending
    }

    /// Where to stand in line; nowhere, if there is a turn left, or none is needed.
    fn poll_line(
        &self,
        context: &mut Context<'_>,
        kind: impl FnOnce(&mut Context<'_>) -> Poll<io::Result<Kind>>,
    ) -> Poll<io::Result<Option<&RefCell<VecDeque<Waiting>>>>> {
        let line = &self.line;
        let left = line.left.get();
        if left > 0 {
            if self.was_rpc.get() && self.presence.is_node() {
                return Poll::Ready(Ok(None));
            }
            if left == REQUESTS_A_TURN {
                line.wake.notify_one();
            }
            line.left.set(left - 1);
            return Poll::Ready(Ok(None));
        }
        let waiting = match ready!(kind(context))? {
            Kind::End => return Poll::Ready(Ok(None)),
            Kind::Rpc if self.presence.is_node() => return Poll::Ready(Ok(None)),
            Kind::Rpc if line.first_rpcs_left.get() > 0 => {
                line.first_rpcs_left.set(line.first_rpcs_left.get() - 1);
                return Poll::Ready(Ok(None));
            }
            Kind::Look if line.looks_left.get() > 0 => {
                line.looks_left.set(line.looks_left.get() - 1);
                return Poll::Ready(Ok(None));
            }
            Kind::Rpc | Kind::Look | Kind::Own => &line.own,
            Kind::PassedOn => &line.passed_on,
        };
        line.wake.notify_one();
        Poll::Ready(Ok(Some(waiting)))
    }

    /// Lets it read, unless it does not wait any more; says whether it did.
    fn call(&self, is_refused: bool, is_late: bool) -> bool {
        if self.state.get() != State::InLine {
            return false;
        }
        self.state.set(State::Called);
        self.is_refused.set(is_refused);
        self.is_late.set(is_late);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        true
    }

    /// Whether it reads after it has waited for long, so that its client may be gone.
    pub fn is_called_late(&self) -> bool {
        self.state.get() == State::Called && self.is_late.get()
    }

    /// Something was read, or the end of it.
    pub fn note_read(&self, bytes: &[u8]) {
        if self.state.get() == State::UnderWay {
            return;
        }
        self.is_late.set(false);
        if bytes.is_empty() {
            self.state.set(State::Idle);
            self.is_refused.set(false);
        } else {
            self.was_rpc.set(is_rpc(bytes));
            // An empty line may follow the body of the request before.
            if !bytes.starts_with(b"\r") {
                self.presence.come();
            }
            self.state.set(State::UnderWay);
        }
    }

    /// There was nothing to read after all: its turn is over.
    pub fn note_nothing(&self) {
        if self.state.get() == State::Called {
            self.state.set(State::Idle);
            self.is_refused.set(false);
            self.is_late.set(false);
            self.presence.wait_no_more();
        }
    }

    /// A request begins to be answered, after its head was read; says whether it is refused.
    pub fn begin_request(&self) -> bool {
        // The second one of two that were read together begins when the first has ended.
        self.state.set(State::UnderWay);
        self.presence.begin();
        self.is_refused.take()
    }

    /// A request has its answer; or the beginning of one, to which more is added as it comes.
    pub fn end_request(&self, is_stream: bool) {
        self.state.set(State::Idle);
        self.presence.end(is_stream);
        if self.line.left.get() == 0 {
            // There may be room for one who waits.
            self.line.wake.notify_one();
        }
    }
}

#[cfg(test)]
mod tests;
