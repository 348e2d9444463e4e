//! What one connection is doing, and whether it is to be closed.
//!
//! ```text
//!          ┌────────────────────────────────────────────────┐
//!          ▼                                                │
//!        Idle ──▶ Queued ──▶ Admitted ──▶ Arriving ──▶ Processing ──▶ Streaming
//!          │ ▲                ▲   │
//!          │ └────────────────┼───┘  nothing to read
//!          └──────────────────┘
//! ```

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use super::admission_queue::{AdmissionQueue, Kind};
use super::connection_limits::{Class, Connections};
use super::head::without_empty_lines;

/// The state of one connection. The connection, its requests, the admission queue and the limits share it.
pub struct ConnectionState {
    pub(super) connections: Rc<Connections>,
    queue: Rc<AdmissionQueue>,
    pub(super) phase: Cell<Phase>,
    pub(super) class: Cell<Class>,
    /// Whether another node sends Raft's RPCs on it: it is not closed to make room.
    pub(super) is_kept: Cell<bool>,
    pub(super) leave: Cell<Leave>,
    /// Whether all was read that came on it, and nothing was left to be written, when it was last looked at.
    was_read: Cell<bool>,
    /// Whether some of a response waits for its client to take it.
    pub(super) is_writing: Cell<bool>,
    /// Whether it is closed for one that was accepted: if it stays, another one has to go.
    makes_room: Cell<bool>,
    /// Wakes the task of the connection.
    waker: RefCell<Option<Waker>>,
}

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// No request is under way, and nothing is known to have come.
    Idle(IdleSince),
    /// There is something to be read, in its turn.
    Queued,
    /// It may read, however often it asks until it does.
    Admitted {
        /// Since when it has been idle if it did not wait; it still is if there is nothing to be read.
        idle: Option<IdleSince>,
        /// Whether it has waited for long, so that its client may be gone.
        is_late: bool,
        /// Whether the request is to be shed.
        is_shed: bool,
    },
    /// Some of a request was read, at that look of idle reaping. The rest is read as it comes.
    Arriving {
        /// The number of looks before.
        since: u64,
        /// Whether the request is to be shed.
        is_shed: bool,
    },
    /// A request is being processed, and its body read as it comes.
    Processing,
    /// A response that goes on, such as a watch. It is the last of the connection.
    Streaming,
}

/// Since when a connection has been idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IdleSince {
    /// How many looks there had been.
    pub look: u64,
    /// Larger for those that became idle later.
    pub order: u64,
}

/// Whether a connection is to be closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Leave {
    /// It stays.
    #[default]
    No,
    /// Unless there is something to do on it after all.
    IfIdle,
    /// Whatever it is doing.
    Now,
}

impl ConnectionState {
    /// A new connection, which is idle.
    pub(super) fn new(connections: Rc<Connections>, queue: Rc<AdmissionQueue>) -> Self {
        ConnectionState {
            phase: Cell::new(Phase::Idle(connections.idle())),
            connections,
            queue,
            class: Cell::new(Class::Unknown),
            is_kept: Cell::default(),
            leave: Cell::default(),
            was_read: Cell::default(),
            is_writing: Cell::default(),
            makes_room: Cell::default(),
            waker: RefCell::default(),
        }
    }

    /// Whether the connection, which has something to read, may read it; if not, it is woken when
    /// it may. What it is that comes is asked only if it makes a difference.
    pub fn poll_turn(
        self: &Rc<Self>,
        context: &mut Context<'_>,
        kind: impl FnOnce(&mut Context<'_>) -> Kind,
    ) -> Poll<()> {
        self.poll_turn_at(Instant::now, context, kind)
    }

    pub(super) fn poll_turn_at(
        self: &Rc<Self>,
        now: impl FnOnce() -> Instant,
        context: &mut Context<'_>,
        kind: impl FnOnce(&mut Context<'_>) -> Kind,
    ) -> Poll<()> {
        match self.phase.get() {
            Phase::Idle(idle) => {
                if self.queue.admits_at_once(self, now, || kind(context)) {
                    self.phase.set(Phase::Admitted { idle: Some(idle), is_late: false, is_shed: false });
                    return Poll::Ready(());
                }
                self.enter(Phase::Queued);
            }
            Phase::Queued => {}
            // A stream's connection only hears that its client has gone, or more that is not answered.
            Phase::Admitted { .. } | Phase::Arriving { .. } | Phase::Processing | Phase::Streaming => {
                return Poll::Ready(());
            }
        }
        self.wake_by(context);
        Poll::Pending
    }

    /// Its turn has come.
    pub(super) fn admit_queued(&self, is_shed: bool, is_late: bool) {
        debug_assert_eq!(self.phase.get(), Phase::Queued);
        self.phase.set(Phase::Admitted { idle: None, is_late, is_shed });
        self.wake();
    }

    /// Whether it reads after it has waited for long, so that its client may be gone.
    pub fn is_late(&self) -> bool {
        matches!(self.phase.get(), Phase::Admitted { is_late: true, .. })
    }

    /// Something was read, or the end of it.
    pub fn note_read(&self, bytes: &[u8]) {
        let Phase::Admitted { is_shed, .. } = self.phase.get() else {
            debug_assert!(!matches!(self.phase.get(), Phase::Idle(_) | Phase::Queued));
            return;
        };
        // An empty line may follow the body of the request before.
        if without_empty_lines(bytes).is_empty() {
            return self.note_nothing();
        }
        self.enter(Phase::Arriving { since: self.connections.looks.get(), is_shed });
    }

    /// There was nothing to read after all: its turn is over.
    pub fn note_nothing(&self) {
        if let Phase::Admitted { idle, .. } = self.phase.get() {
            match idle {
                Some(idle) => self.phase.set(Phase::Idle(idle)),
                None => self.enter(Phase::Idle(self.connections.idle())),
            }
        }
    }

    /// A request begins to be processed, after its head was read; returns whether it is to be shed.
    pub fn begin_request(&self) -> bool {
        let phase = self.phase.get();
        // It is still idle if only empty lines came, which are rejected like a request once they are too many.
        debug_assert!(matches!(phase, Phase::Arriving { .. } | Phase::Idle(_)), "{phase:?}");
        self.enter(Phase::Processing);
        matches!(phase, Phase::Arriving { is_shed: true, .. })
    }

    /// A request has its response; or the beginning of one, to which more is added as it comes.
    pub fn end_request(&self, is_stream: bool) {
        debug_assert_eq!(self.phase.get(), Phase::Processing);
        self.enter(if is_stream { Phase::Streaming } else { Phase::Idle(self.connections.idle()) });
        self.queue.note_end();
    }

    fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.was_read.set(false);
        self.may_stay();
    }

    fn may_stay(&self) {
        if self.leave.get() == Leave::IfIdle {
            self.leave.set(Leave::No);
            if self.makes_room.take() {
                self.connections.make_room();
            }
        }
    }

    /// There is something to do on it after all, if only a response that is still being written: it
    /// is none of those that have been idle for longest.
    pub fn stay(&self) {
        self.was_read.set(false);
        match self.phase.get() {
            Phase::Idle(_) => self.enter(Phase::Idle(self.connections.idle())),
            _ => self.may_stay(),
        }
    }

    /// Whether it may be closed for one that is accepted: it is idle, or has not shown what it is for, and
    /// all that came on it was read.
    pub(super) fn may_make_room(&self) -> bool {
        let may_leave = match self.phase.get() {
            Phase::Idle(_) => !self.is_kept.get(),
            Phase::Queued | Phase::Admitted { .. } => false,
            Phase::Arriving { .. } | Phase::Processing | Phase::Streaming => self.class.get() == Class::Unknown,
        };
        may_leave && self.was_read.get()
    }

    /// Has the connection closed for one that is accepted.
    pub(super) fn make_room(&self) {
        match self.phase.get() {
            Phase::Idle(_) => {
                self.makes_room.set(true);
                self.leave_for(Leave::IfIdle);
            }
            _ => self.leave_now(),
        }
    }

    /// Has the connection closed, unless it is doing something else by now.
    pub(super) fn let_go(&self, phase: Phase) {
        if self.phase.get() == phase && !self.is_leaving() {
            self.leave_for(Leave::IfIdle);
        }
    }

    /// Has the connection closed, whatever it is doing.
    pub(super) fn leave_now(&self) {
        self.leave_for(Leave::Now);
    }

    fn leave_for(&self, leave: Leave) {
        self.leave.set(leave);
        self.wake();
    }

    /// Whether the connection is to be closed, whatever it is doing.
    pub fn is_leaving(&self) -> bool {
        self.leave.get() == Leave::Now
    }

    /// Ready once the connection is to be closed, whatever it is doing.
    pub fn poll_leaving(&self, context: &Context<'_>) -> Poll<()> {
        self.wake_by(context);
        if self.is_leaving() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Ready once the connection is to be closed, if there is nothing to be read from it. While a response is still
    /// being written (`is_writing`), it is not among those that make room.
    pub fn poll_let_go(&self, context: &Context<'_>, is_writing: bool) -> Poll<()> {
        self.wake_by(context);
        self.was_read.set(!is_writing);
        if self.connections.owes_room.get() && self.leave.get() == Leave::No && self.may_make_room() {
            self.connections.owes_room.set(false);
            self.make_room();
        }
        if self.leave.get() == Leave::No { Poll::Pending } else { Poll::Ready(()) }
    }

    #[cfg(test)]
    pub(super) fn queue(&self) -> &AdmissionQueue {
        &self.queue
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    fn wake_by(&self, context: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
    }
}

impl Drop for ConnectionState {
    fn drop(&mut self) {
        self.change_class(Class::Unknown);
        self.connections.forget_one();
    }
}
