//! Which connections are admitted, and which are closed for others.
//!
//! A connection takes an open file, and there is a limit of those. So that clients cannot take what
//! a cluster needs to go on, a node admits fewer clients than it accepts connections ([`Shares`]):
//! the rest is for other nodes, and the last few are for operators. What a connection is used for
//! is known from its requests. It counts as a node's only after a request that only a node can
//! make, since it names the receiver's incarnation. A client beyond the clients' share is answered
//! with 503, and its connection closed. A watch keeps its connection for as long as it likes, so watches
//! have a share of their own.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use crate::config::{CLIENTS_A_RESERVED_CONNECTION, CONNECTIONS_KEPT_A_MEMBER, NODE_CONNECTIONS_MIN, OPERATORS_MIN};
use crate::types::NodeId;

/// How many connections there may be, and whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// Connections that are accepted.
    pub total: usize,
    /// Of those, how many may be clients'.
    pub clients: usize,
    /// How many neither clients nor requests passed on by other nodes may take.
    pub operators: usize,
    /// How many of the clients' may be watches.
    pub watches: usize,
}

impl Shares {
    /// The shares of a node that admits so many clients.
    pub fn of_clients(clients: usize) -> Self {
        let reserved = (clients / CLIENTS_A_RESERVED_CONNECTION).max(2);
        Shares { total: clients + reserved, clients, operators: (reserved / 4).max(1), watches: clients.div_ceil(2) }
    }

    /// The shares of Raft's thread, which serves other nodes only, beside so many clients.
    pub fn of_nodes(clients: usize) -> Self {
        let total = (clients / CLIENTS_A_RESERVED_CONNECTION).max(NODE_CONNECTIONS_MIN);
        Shares { total, clients: 0, operators: 0, watches: 0 }
    }
}

/// What a connection is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Nothing yet, or what anybody may ask of a node without being admitted.
    Unknown,
    /// Data.
    Client,
    /// Looking after the cluster.
    Operator,
    /// Another node of the cluster.
    Node,
}

/// The connections of one thread.
pub struct Connections {
    pub(super) shares: Shares,
    pub(super) open: Cell<usize>,
    pub(super) clients: Cell<usize>,
    nodes: Cell<usize>,
    operators: Cell<usize>,
    watches: Cell<usize>,
    /// The connections that each member sends Raft's RPCs on, oldest first.
    kept: RefCell<BTreeMap<NodeId, VecDeque<Weak<Presence>>>>,
    /// In the order in which they came; some are gone.
    pub(super) all: RefCell<Vec<Weak<Presence>>>,
    /// The number of looks so far.
    pub(super) looks: Cell<u64>,
    pub(super) is_crowded: Cell<bool>,
    /// Whether the next connection from which nothing can be read is to be closed.
    owes_room: Cell<bool>,
    /// How often a connection came to do nothing.
    order: Cell<u64>,
    /// The look since which no client was found idle.
    busy_at: Cell<Option<u64>>,
}

/// What one connection is doing.
pub struct Presence {
    connections: Rc<Connections>,
    pub(super) doing: Cell<Doing>,
    class: Cell<Class>,
    /// Whether another node sends Raft's RPCs on it: it is not closed to make room.
    pub(super) is_kept: Cell<bool>,
    leave: Cell<Leave>,
    /// Whether all was read that came on it, and nothing was left to be written, when it was last looked at.
    was_read: Cell<bool>,
    /// Whether it is closed for one that was accepted: if it stays, another one has to go.
    makes_room: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// Whether a connection is to be closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Leave {
    #[default]
    No,
    /// Unless there is something to do on it after all.
    IfIdle,
    /// Whatever it is doing.
    Now,
}

/// A permit from the watch limit, held until the watch ends.
pub struct WatchPermit {
    connections: Rc<Connections>,
}

impl Drop for WatchPermit {
    fn drop(&mut self) {
        self.connections.watches.set(self.connections.watches.get() - 1);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    /// Nothing, since there had been so many looks; `order` is larger for those that came to it later.
    Nothing { since: u64, order: u64 },
    /// A request has begun to come, when there had been so many looks.
    Coming { since: u64 },
    /// A request is to be read when its turn comes.
    Line,
    /// A request is under way.
    Request,
    /// An answer that goes on, such as a watch; whatever comes meanwhile waits for its end.
    Stream,
}

impl Connections {
    /// None yet.
    pub fn new(shares: Shares) -> Rc<Self> {
        Rc::new(Connections {
            shares,
            open: Cell::default(),
            clients: Cell::default(),
            nodes: Cell::default(),
            operators: Cell::default(),
            watches: Cell::default(),
            kept: RefCell::default(),
            all: RefCell::default(),
            looks: Cell::default(),
            is_crowded: Cell::default(),
            owes_room: Cell::default(),
            order: Cell::default(),
            busy_at: Cell::default(),
        })
    }

    /// A new one, which has done nothing yet.
    pub fn open(self: &Rc<Self>) -> Rc<Presence> {
        let presence = Rc::new(Presence {
            connections: self.clone(),
            doing: Cell::new(self.nothing()),
            class: Cell::new(Class::Unknown),
            is_kept: Cell::default(),
            leave: Cell::default(),
            was_read: Cell::default(),
            makes_room: Cell::default(),
            waker: RefCell::default(),
        });
        self.open.set(self.open.get() + 1);
        let mut all = self.all.borrow_mut();
        // As many again as there are may be gone, so that this is seldom.
        if all.len() >= 2 * self.open.get() {
            all.retain(|one| one.strong_count() > 0);
        }
        all.push(Rc::downgrade(&presence));
        presence
    }

    /// The connection that was just accepted. One place is kept free, so that the next one is accepted.
    pub fn accept(self: &Rc<Self>) -> Rc<Presence> {
        let accepted = self.open();
        self.make_room();
        accepted
    }

    /// If there is no place left, closes the oldest connection that has not shown what it is for, or else the
    /// oldest idle one; if there is none yet, the first that turns out to be one.
    ///
    /// Many connections may be accepted at once, and whoever sent a request with its connection is heard first:
    /// only those from which nothing could be read are closed.
    fn make_room(&self) {
        if self.open.get() < self.shares.total {
            return;
        }
        let is_unknown = |one: &Presence| one.may_make_room() && one.class.get() == Class::Unknown;
        let close = |may_leave: &dyn Fn(&Presence) -> bool| self.close_oldest(may_leave, Presence::make_room);
        let has_closed = close(&is_unknown) || close(&Presence::may_make_room);
        self.owes_room.set(!has_closed);
    }

    /// Whether so many are open that one more cannot be taken before some are gone.
    pub fn is_overfull(&self) -> bool {
        self.open.get() >= 2 * self.shares.total
    }

    /// Whether they are other nodes' only.
    pub fn are_nodes(&self) -> bool {
        self.shares.clients == 0
    }

    fn nothing(&self) -> Doing {
        let order = self.order.get() + 1;
        self.order.set(order);
        Doing::Nothing { since: self.looks.get(), order }
    }

    /// Closes, by `close`, the oldest connection for which `may_leave` holds and that is not being closed yet;
    /// returns whether there was one.
    fn close_oldest(&self, may_leave: impl Fn(&Presence) -> bool, close: impl Fn(&Presence)) -> bool {
        let all = self.all.borrow();
        let mut open = all.iter().filter_map(Weak::upgrade);
        let oldest = open.find(|one| one.leave.get() == Leave::No && may_leave(one));
        oldest.inspect(|one| close(one)).is_some()
    }

    /// Closes the client that has been idle for longest; returns whether there was one.
    fn close_idle_client(&self) -> bool {
        // A crowd of clients that are all busy must not be looked through again for each that comes.
        if self.busy_at.get() == Some(self.looks.get()) {
            return false;
        }
        let idle_since = |one: &Presence| match one.doing.get() {
            Doing::Nothing { order, .. } if one.class.get() == Class::Client && !one.is_leaving() => Some(order),
            _ => None,
        };
        let all = self.all.borrow();
        let idle = all.iter().filter_map(Weak::upgrade).filter_map(|one| Some((idle_since(&one)?, one)));
        let longest = idle.min_by_key(|(order, _)| *order);
        let has_closed = longest.inspect(|(_, one)| one.leave_now()).is_some();
        self.busy_at.set((!has_closed).then(|| self.looks.get()));
        has_closed
    }
}

impl Presence {
    /// Admits the connection to a class, unless it is in it already; returns false if the class is full.
    ///
    /// An idle client makes room for another, and the oldest operator for another. A node's connection
    /// stays one, and a client's is good enough for what an operator asks.
    pub fn admit(&self, class: Class) -> bool {
        let held = self.class.get();
        if held == class || held == Class::Node || (held, class) == (Class::Client, Class::Operator) {
            return true;
        }
        let Connections { shares, clients, nodes, operators, .. } = &*self.connections;
        let is_full = clients.get() + nodes.get() >= shares.total - shares.operators;
        let has_room = match class {
            Class::Client => !is_full && clients.get() < shares.clients || self.connections.close_idle_client(),
            Class::Node => !is_full || held == Class::Client,
            Class::Operator => {
                operators.get() < shares.operators.max(OPERATORS_MIN) || {
                    let is_operator = |one: &Presence| one.class.get() == Class::Operator;
                    self.connections.close_oldest(is_operator, Presence::leave_now)
                }
            }
            Class::Unknown => true,
        };
        if has_room {
            self.change_class(class);
        }
        has_room
    }

    /// A member sends Raft's RPCs on it: it is admitted in any case, and never closed to make room,
    /// unless the member has begun to send them on others.
    pub fn keep_for(self: &Rc<Self>, member: NodeId) {
        if self.is_kept.replace(true) {
            return;
        }
        self.change_class(Class::Node);
        let mut kept = self.connections.kept.borrow_mut();
        let kept = kept.entry(member).or_default();
        kept.retain(|one| one.strong_count() > 0);
        kept.push_back(Rc::downgrade(self));
        if kept.len() > CONNECTIONS_KEPT_A_MEMBER
            && let Some(oldest) = kept.pop_front().and_then(|oldest| oldest.upgrade())
        {
            oldest.is_kept.set(false);
            oldest.change_class(Class::Unknown);
        }
    }

    /// Whether the connection is served by Raft's thread, and anything but an RPC on it is a mistake.
    pub fn is_for_nodes(&self) -> bool {
        self.connections.are_nodes()
    }

    /// Whether another node has shown that it is one on this connection.
    pub fn is_node(&self) -> bool {
        self.class.get() == Class::Node
    }

    fn change_class(&self, class: Class) {
        let Connections { clients, nodes, operators, .. } = &*self.connections;
        for (counted, count) in [(Class::Client, clients), (Class::Node, nodes), (Class::Operator, operators)] {
            let change = (usize::from(class == counted), usize::from(self.class.get() == counted));
            count.set(count.get() + change.0 - change.1);
        }
        self.class.set(class);
    }

    /// A permit for a watch; `None` if the watch limit is reached.
    pub fn admit_watch(&self) -> Option<WatchPermit> {
        let watches = &self.connections.watches;
        if watches.get() >= self.connections.shares.watches {
            return None;
        }
        watches.set(watches.get() + 1);
        Some(WatchPermit { connections: self.connections.clone() })
    }

    /// Some of a request has been read.
    pub fn come(&self) {
        if self.doing.get() != Doing::Stream {
            self.set(Doing::Coming { since: self.connections.looks.get() });
        }
    }

    /// There is something to be read, and others were there before.
    pub fn wait(&self) {
        if self.doing.get() != Doing::Stream {
            self.set(Doing::Line);
        }
    }

    /// There was nothing to be read after all.
    pub fn wait_no_more(&self) {
        if self.doing.get() == Doing::Line {
            self.end(false);
        }
    }

    /// A request is under way.
    pub fn begin(&self) {
        self.set(Doing::Request);
    }

    /// It has its answer, or the beginning of one that goes on.
    pub fn end(&self, is_stream: bool) {
        self.set(if is_stream { Doing::Stream } else { self.connections.nothing() });
    }

    fn set(&self, doing: Doing) {
        self.doing.set(doing);
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

    /// There is something to do on it after all, if only an answer that is still being written: it
    /// is none of those that have done nothing for longest.
    pub fn stay(&self) {
        self.was_read.set(false);
        match self.doing.get() {
            Doing::Nothing { .. } => self.set(self.connections.nothing()),
            _ => self.may_stay(),
        }
    }

    /// Whether it may be closed for one that is accepted: it is idle, or has not shown what it is for, and
    /// all that came on it was read.
    fn may_make_room(&self) -> bool {
        let may_leave = match self.doing.get() {
            Doing::Nothing { .. } => !self.is_kept.get(),
            Doing::Line => false,
            Doing::Coming { .. } | Doing::Request | Doing::Stream => self.class.get() == Class::Unknown,
        };
        may_leave && self.was_read.get()
    }

    /// Has the connection closed for one that is accepted.
    fn make_room(&self) {
        match self.doing.get() {
            Doing::Nothing { .. } => {
                self.makes_room.set(true);
                self.leave_for(Leave::IfIdle);
            }
            _ => self.leave_now(),
        }
    }

    /// Has the connection closed, unless it is doing something else by now.
    pub(super) fn let_go(&self, doing: Doing) {
        if self.doing.get() == doing && !self.is_leaving() {
            self.leave_for(Leave::IfIdle);
        }
    }

    /// Has the connection closed, whatever it is doing.
    fn leave_now(&self) {
        self.leave_for(Leave::Now);
    }

    fn leave_for(&self, leave: Leave) {
        self.leave.set(leave);
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
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

    /// Ready once the connection is to be closed, if there is nothing to be read from it. While an answer is still
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

    fn wake_by(&self, context: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.change_class(Class::Unknown);
        self.connections.open.set(self.connections.open.get() - 1);
        self.connections.owes_room.set(false);
    }
}

#[cfg(test)]
mod tests;
