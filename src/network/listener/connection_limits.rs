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

use super::admission_queue::AdmissionQueue;
use super::connection_state::{ConnectionState, IdleSince, Leave, Phase};
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
    kept: RefCell<BTreeMap<NodeId, VecDeque<Weak<ConnectionState>>>>,
    /// In the order in which they came; some are gone.
    pub(super) all: RefCell<Vec<Weak<ConnectionState>>>,
    /// The number of looks so far.
    pub(super) looks: Cell<u64>,
    pub(super) is_crowded: Cell<bool>,
    /// Whether the next connection from which nothing can be read is to be closed.
    pub(super) owes_room: Cell<bool>,
    /// How often a connection came to do nothing.
    order: Cell<u64>,
    /// The look since which no client was found idle.
    busy_at: Cell<Option<u64>>,
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
    pub(super) fn open(self: &Rc<Self>, queue: &Rc<AdmissionQueue>) -> Rc<ConnectionState> {
        let state = Rc::new(ConnectionState::new(self.clone(), queue.clone()));
        self.open.set(self.open.get() + 1);
        let mut all = self.all.borrow_mut();
        // As many again as there are may be gone, so that this is seldom.
        if all.len() >= 2 * self.open.get() {
            all.retain(|one| one.strong_count() > 0);
        }
        all.push(Rc::downgrade(&state));
        state
    }

    /// The connection that was just accepted. One place is kept free, so that the next one is accepted.
    pub fn accept(self: &Rc<Self>, queue: &Rc<AdmissionQueue>) -> Rc<ConnectionState> {
        let accepted = self.open(queue);
        self.make_room();
        accepted
    }

    /// If there is no place left, closes the oldest connection that has not shown what it is for, or else the
    /// oldest idle one; if there is none yet, the first that turns out to be one.
    ///
    /// Many connections may be accepted at once, and whoever sent a request with its connection is heard first:
    /// only those from which nothing could be read are closed.
    pub(super) fn make_room(&self) {
        if self.open.get() < self.shares.total {
            return;
        }
        let is_unknown = |one: &ConnectionState| one.may_make_room() && one.class.get() == Class::Unknown;
        let close =
            |may_leave: &dyn Fn(&ConnectionState) -> bool| self.close_oldest(may_leave, ConnectionState::make_room);
        let has_closed = close(&is_unknown) || close(&ConnectionState::may_make_room);
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

    /// From now on.
    pub(super) fn idle(&self) -> IdleSince {
        let order = self.order.get() + 1;
        self.order.set(order);
        IdleSince { look: self.looks.get(), order }
    }

    /// One is gone.
    pub(super) fn forget_one(&self) {
        self.open.set(self.open.get() - 1);
        self.owes_room.set(false);
    }

    /// Closes, by `close`, the oldest connection for which `may_leave` holds and that is not being closed yet;
    /// returns whether there was one.
    fn close_oldest(&self, may_leave: impl Fn(&ConnectionState) -> bool, close: impl Fn(&ConnectionState)) -> bool {
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
        let idle_since = |one: &ConnectionState| match one.phase.get() {
            // One that still takes its response is not idle.
            Phase::Idle(idle) if one.class.get() == Class::Client && !one.is_writing.get() && !one.is_leaving() => {
                Some(idle.order)
            }
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

impl ConnectionState {
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
                    let is_operator = |one: &ConnectionState| one.class.get() == Class::Operator;
                    self.connections.close_oldest(is_operator, ConnectionState::leave_now)
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

    /// Whether a member has sent Raft's RPCs on it.
    pub fn is_kept(&self) -> bool {
        self.is_kept.get()
    }

    /// Whether another node has shown that it is one on this connection.
    pub fn is_node(&self) -> bool {
        self.class.get() == Class::Node
    }

    pub(super) fn change_class(&self, class: Class) {
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
}

#[cfg(test)]
mod tests;
