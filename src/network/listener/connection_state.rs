//! The phase of one connection, and whether it is about to be closed.
//!
//! ```text
//!          ┌────────────────────────────────────────────────┐
//!          ▼                                                │
//!        Idle ──▶ Queued ──▶ Admitted ──▶ Arriving ──▶ Processing ──▶ Streaming
//!          │ ▲                ▲   │
//!          │ └────────────────┼───┘  nothing to read
//!          └──────────────────┘
//! ```
//!
//! Besides, a request of empty lines alone goes from `Idle` to `Processing`: it is rejected once they are too many.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::admission_queue::{AdmissionQueue, Kind};
use super::connection_limits::{Class, Connections};
use super::handshake::Caller;
use super::head::without_empty_lines;
use crate::auth::LastToken;
use crate::config::QUEUE_WAIT_MAX;
use crate::network::observer::{Observer, Spent};
use crate::peers::Link;

/// The state of one connection, shared by the connection, its requests, the admission queue and the limits.
///
/// Invariants, asserted on every change: the phase changes only as above, and a kept connection is of [`Class::Node`].
pub struct ConnectionState {
    pub(super) connections: Rc<Connections>,
    /// Where the time of the current request goes.
    pub spent: Spent,
    /// The last valid token of its requests.
    pub last_token: LastToken,
    queue: Rc<AdmissionQueue>,
    pub(super) phase: Cell<Phase>,
    pub(super) class: Cell<Class>,
    /// Whether a member sends Raft's RPCs on the connection, which is then not closed to make room.
    pub(super) is_kept: Cell<bool>,
    pub(super) leave: Cell<Leave>,
    /// Whether everything received was read, and nothing was left to write, at the last poll.
    was_read: Cell<bool>,
    /// Whether a part of a response waits until the client reads it.
    pub(super) is_writing: Cell<bool>,
    /// Whether it is being closed to make room for an accepted connection. If it stays, another one must be closed.
    makes_room: Cell<bool>,
    /// The task of the connection.
    waker: RefCell<Option<Waker>>,
    /// Set once a member sends Raft's RPCs on the connection.
    link: OnceCell<Link>,
    /// Whether a TLS handshake is under way.
    pub(super) is_in_handshake: Cell<bool>,
    /// What the TLS handshake told of the other side; empty without TLS.
    caller: OnceCell<Caller>,
}

/// The phase of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// No request is under way, and no byte of the next one is known to have arrived.
    Idle(IdleSince),
    /// A request has arrived and waits in the admission queue.
    Queued,
    /// The connection may read. It stays admitted until it does.
    Admitted {
        /// Set if it did not wait: since when it has been idle. It is still idle if there is nothing to read.
        idle: Option<IdleSince>,
        /// Whether it waited so long that its client may have disconnected.
        is_late: bool,
        /// Whether the request is to be shed.
        is_shed: bool,
    },
    /// A part of a request was read. The rest is read as it arrives.
    Arriving {
        /// The number of sweeps of idle reaping before.
        since: u64,
        /// Whether the request is to be shed.
        is_shed: bool,
    },
    /// A request is being processed, and its body is read as it arrives.
    Processing,
    /// A response without an end, such as a watch, is being sent. It is the last one of the connection.
    Streaming,
}

impl Phase {
    /// Whether `next` may follow. A connection that stays idle begins a new idle time.
    fn precedes(self, next: Phase) -> bool {
        use Phase::{Admitted, Arriving, Idle, Processing, Queued, Streaming};
        matches!(
            (self, next),
            (Idle(_), Idle(_) | Queued | Admitted { .. } | Processing)
                | (Queued, Admitted { .. })
                | (Admitted { .. }, Idle(_) | Arriving { .. })
                | (Arriving { .. }, Processing)
                | (Processing, Idle(_) | Streaming)
        )
    }
}

/// The beginning of an idle time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IdleSince {
    /// The number of sweeps of idle reaping before.
    pub sweep: u64,
    /// Larger for a connection that became idle later.
    pub order: u64,
}

/// Whether a connection is about to be closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Leave {
    /// It stays.
    #[default]
    No,
    /// It closes unless something turns out to be under way.
    IfIdle,
    /// It closes, whatever its phase.
    Now,
}

impl ConnectionState {
    /// The state of a new connection, which is idle.
    pub(super) fn new(connections: Rc<Connections>, queue: Rc<AdmissionQueue>) -> Self {
        ConnectionState {
            phase: Cell::new(Phase::Idle(connections.idle())),
            connections,
            spent: Spent::default(),
            last_token: LastToken::default(),
            queue,
            class: Cell::new(Class::Unknown),
            is_kept: Cell::default(),
            leave: Cell::default(),
            was_read: Cell::default(),
            is_writing: Cell::default(),
            makes_room: Cell::default(),
            waker: RefCell::default(),
            link: OnceCell::new(),
            is_in_handshake: Cell::default(),
            caller: OnceCell::new(),
        }
    }

    /// Notes what the TLS handshake told of the other side, once.
    pub fn set_caller(&self, caller: Caller) {
        let is_first = self.caller.set(caller).is_ok();
        debug_assert!(is_first, "a connection has one handshake");
    }

    /// What the TLS handshake told of the other side; `None` without TLS.
    pub fn caller(&self) -> Option<&Caller> {
        self.caller.get()
    }

    /// Counts the connection as a member's until it is closed.
    pub fn count_as(&self, link: impl FnOnce() -> Link) {
        self.link.get_or_init(link);
    }

    /// Ready if the connection, which has something to read, may read it. Otherwise its task is woken when it may.
    /// `kind` is called only if it makes a difference.
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
                    self.set_phase(Phase::Admitted { idle: Some(idle), is_late: false, is_shed: false });
                    return Poll::Ready(());
                }
                self.enter(Phase::Queued);
            }
            Phase::Queued => {}
            // A streaming connection reads only to notice that its client disconnects.
            Phase::Admitted { .. } | Phase::Arriving { .. } | Phase::Processing | Phase::Streaming => {
                return Poll::Ready(());
            }
        }
        self.wake_by(context);
        Poll::Pending
    }

    /// What its thread observes of requests.
    pub fn observer(&self) -> &Observer {
        &self.connections.observer
    }

    /// Admits a connection that was queued for `waited`.
    pub(super) fn admit_queued(&self, is_shed: bool, waited: Duration) {
        debug_assert_eq!(self.phase.get(), Phase::Queued);
        let is_late = waited > QUEUE_WAIT_MAX;
        self.spent.admission.set(waited);
        self.observer().meters.admission.record(waited);
        self.set_phase(Phase::Admitted { idle: None, is_late, is_shed });
        self.wake();
    }

    /// Whether it waited so long to be admitted that its client may have disconnected.
    pub fn is_late(&self) -> bool {
        matches!(self.phase.get(), Phase::Admitted { is_late: true, .. })
    }

    /// Notes what was read; nothing if the client sends no more.
    pub fn note_read(&self, bytes: &[u8]) {
        let Phase::Admitted { is_shed, .. } = self.phase.get() else {
            debug_assert!(!matches!(self.phase.get(), Phase::Idle(_) | Phase::Queued));
            return;
        };
        // An empty line may follow the body of the previous request.
        if without_empty_lines(bytes).is_empty() {
            return self.note_nothing();
        }
        self.enter(Phase::Arriving { since: self.connections.sweeps.get(), is_shed });
    }

    /// Notes that there was nothing to read, which ends the turn.
    pub fn note_nothing(&self) {
        if let Phase::Admitted { idle, .. } = self.phase.get() {
            self.spent.admission.take();
            match idle {
                Some(idle) => self.set_phase(Phase::Idle(idle)),
                None => self.enter(Phase::Idle(self.connections.idle())),
            }
        }
    }

    /// Begins to process a request whose head was read; returns whether to shed it.
    pub fn begin_request(&self) -> bool {
        let phase = self.phase.get();
        self.enter(Phase::Processing);
        matches!(phase, Phase::Arriving { is_shed: true, .. })
    }

    /// Notes that a request has its response, or the beginning of a stream.
    pub fn end_request(&self, is_stream: bool) {
        debug_assert_eq!(self.phase.get(), Phase::Processing);
        self.enter(if is_stream { Phase::Streaming } else { Phase::Idle(self.connections.idle()) });
        self.queue.note_end();
    }

    fn set_phase(&self, next: Phase) {
        let phase = self.phase.replace(next);
        debug_assert!(phase.precedes(next), "from {phase:?} to {next:?}");
    }

    fn enter(&self, phase: Phase) {
        self.set_phase(phase);
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

    /// Keeps the connection open: something is under way after all, if only a response that is still being written.
    /// Its idle time begins anew.
    pub fn stay(&self) {
        self.was_read.set(false);
        match self.phase.get() {
            Phase::Idle(_) => self.enter(Phase::Idle(self.connections.idle())),
            _ => self.may_stay(),
        }
    }

    /// Whether the connection may be closed to make room for an accepted one: it is idle or its class is unknown, and
    /// everything received was read.
    pub(super) fn may_make_room(&self) -> bool {
        let may_leave = match self.phase.get() {
            Phase::Idle(_) => !self.is_kept.get(),
            Phase::Queued | Phase::Admitted { .. } => false,
            Phase::Arriving { .. } | Phase::Processing | Phase::Streaming => self.class.get() == Class::Unknown,
        };
        may_leave && self.was_read.get()
    }

    /// Closes the connection to make room for an accepted one.
    pub(super) fn make_room(&self) {
        match self.phase.get() {
            Phase::Idle(_) => {
                self.makes_room.set(true);
                self.leave_for(Leave::IfIdle);
            }
            _ => self.leave_now(),
        }
    }

    /// Closes the connection if it is still in that phase.
    pub(super) fn close_if_still(&self, phase: Phase) {
        if self.phase.get() == phase && !self.is_leaving() {
            self.leave_for(Leave::IfIdle);
        }
    }

    /// Closes the connection, whatever its phase.
    pub(super) fn leave_now(&self) {
        self.leave_for(Leave::Now);
    }

    fn leave_for(&self, leave: Leave) {
        self.leave.set(leave);
        self.wake();
    }

    /// Whether the connection is about to be closed, whatever its phase.
    pub fn is_leaving(&self) -> bool {
        self.leave.get() == Leave::Now
    }

    /// Whether a request is being processed, or its response is a stream.
    pub fn is_responding(&self) -> bool {
        matches!(self.phase.get(), Phase::Processing | Phase::Streaming)
    }

    /// Ready once the connection must be closed, whatever its phase.
    pub fn poll_leaving(&self, context: &Context<'_>) -> Poll<()> {
        self.wake_by(context);
        if self.is_leaving() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Ready once the connection must be closed unless something can be read from it. While a response is still being
    /// written (`is_writing`), the connection does not make room.
    pub fn poll_closing(&self, context: &Context<'_>, is_writing: bool) -> Poll<()> {
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
        self.is_kept.set(false);
        self.change_class(Class::Unknown);
        self.connections.forget_one();
    }
}
