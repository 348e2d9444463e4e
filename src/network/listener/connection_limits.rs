//! Concurrency limits: which connections are admitted, and which are closed to make room.
//!
//! Each connection takes an open file, and their number is limited. A node admits fewer clients than it accepts
//! connections ([`Shares`]), so that clients cannot take the connections that the cluster needs: the rest is reserved
//! for other nodes, and the last few for operators. The requests on a connection tell its class. It becomes a node's
//! only after a request that names the receiver's incarnation, which only nodes know. A client beyond the clients'
//! share gets 503, and its connection is closed. A watch keeps its connection for as long as it wants, so watches have
//! a share of their own.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::{Rc, Weak};

use super::admission_queue::AdmissionQueue;
use super::connection_state::{ConnectionState, IdleSince, Leave, Phase};
use crate::config::{
    CLIENTS_PER_RESERVED_CONNECTION, CONNECTIONS_KEPT_PER_MEMBER, NODE_CONNECTIONS_MIN, OPERATORS_MIN,
};
use crate::network::observer::Observer;
use crate::types::NodeId;

/// Limits of the connections of one thread, by their use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// All accepted connections.
    pub total: usize,
    /// Of the total, how many clients may take.
    pub clients: usize,
    /// Of the total, how many are reserved for operators.
    pub operators: usize,
    /// Of the clients' share, how many watches may take.
    pub watches: usize,
}

impl Shares {
    /// The shares of a thread that admits `clients` clients.
    pub fn of_clients(clients: usize) -> Self {
        let reserved = (clients / CLIENTS_PER_RESERVED_CONNECTION).max(2);
        Shares { total: clients + reserved, clients, operators: (reserved / 4).max(1), watches: clients.div_ceil(2) }
    }

    /// The shares of Raft's thread, which serves only other nodes, if a node admits `clients` clients.
    pub fn of_nodes(clients: usize) -> Self {
        let total = (clients / CLIENTS_PER_RESERVED_CONNECTION).max(NODE_CONNECTIONS_MIN);
        Shares { total, clients: 0, operators: 0, watches: 0 }
    }
}

/// The use of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Not known yet, or requests that need no admission.
    Unknown,
    /// Reads and writes of data.
    Client,
    /// Requests that observe or manage the cluster.
    Operator,
    /// Another node of the cluster.
    Node,
}

/// The connections of one thread.
///
/// Invariant, asserted on every change: the connections of all classes together are at most the open ones.
pub struct Connections {
    pub(super) shares: Shares,
    pub(super) observer: Observer,
    pub(super) open: Cell<usize>,
    pub(super) clients: Cell<usize>,
    nodes: Cell<usize>,
    operators: Cell<usize>,
    watches: Cell<usize>,
    /// The connections on which each member sends Raft's RPCs, oldest first.
    kept: RefCell<BTreeMap<NodeId, VecDeque<Weak<ConnectionState>>>>,
    /// In the order in which they were accepted. Some are closed.
    pub(super) all: RefCell<Vec<Weak<ConnectionState>>>,
    /// The number of sweeps of idle reaping so far.
    pub(super) sweeps: Cell<u64>,
    pub(super) is_reaping: Cell<bool>,
    /// Whether the next connection from which nothing can be read must be closed.
    pub(super) owes_room: Cell<bool>,
    /// How often a connection became idle.
    order: Cell<u64>,
    /// The sweep at which the last search found no idle client.
    busy_at: Cell<Option<u64>>,
}

/// A permit from the watch limit, held until the watch ends.
pub struct WatchPermit {
    connections: Rc<Connections>,
}

impl Drop for WatchPermit {
    fn drop(&mut self) {
        self.connections.watches.set(self.connections.watches.get() - 1);
        self.connections.observer.meters.watches.decrement();
    }
}

impl Connections {
    /// A thread without connections.
    pub fn new(shares: Shares, observer: Observer) -> Rc<Self> {
        Rc::new(Connections {
            shares,
            observer,
            open: Cell::default(),
            clients: Cell::default(),
            nodes: Cell::default(),
            operators: Cell::default(),
            watches: Cell::default(),
            kept: RefCell::default(),
            all: RefCell::default(),
            sweeps: Cell::default(),
            is_reaping: Cell::default(),
            owes_room: Cell::default(),
            order: Cell::default(),
            busy_at: Cell::default(),
        })
    }

    /// Adds a connection, which is idle.
    pub(super) fn open(self: &Rc<Self>, queue: &Rc<AdmissionQueue>) -> Rc<ConnectionState> {
        let state = Rc::new(ConnectionState::new(self.clone(), queue.clone()));
        self.open.set(self.open.get() + 1);
        self.observer.meters.connections.increment();
        let mut all = self.all.borrow_mut();
        // Closed connections are removed only once they are half of the list, so that this is rare.
        if all.len() >= 2 * self.open.get() {
            all.retain(|one| one.strong_count() > 0);
        }
        all.push(Rc::downgrade(&state));
        state
    }

    /// Adds the connection that was just accepted. One connection fewer than the limit stays open, so that the next one
    /// is accepted.
    pub fn accept(self: &Rc<Self>, queue: &Rc<AdmissionQueue>) -> Rc<ConnectionState> {
        let accepted = self.open(queue);
        self.make_room();
        accepted
    }

    /// If the limit is reached, closes the oldest connection of an unknown class, otherwise the oldest idle one. If
    /// neither exists yet, the first connection that becomes one of them is closed.
    ///
    /// Many connections may be accepted at once, and some already have a request. Only connections from which nothing
    /// could be read are closed.
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

    /// Whether so many are open that no more can be accepted until some are closed.
    pub fn is_overfull(&self) -> bool {
        self.open.get() >= 2 * self.shares.total
    }

    /// What the thread observes of its requests.
    pub fn observer(&self) -> &Observer {
        &self.observer
    }

    /// Whether the thread serves only other nodes.
    pub fn are_nodes(&self) -> bool {
        self.shares.clients == 0
    }

    /// An idle time that begins now.
    pub(super) fn idle(&self) -> IdleSince {
        let order = self.order.get() + 1;
        self.order.set(order);
        IdleSince { sweep: self.sweeps.get(), order }
    }

    /// Removes a connection, which was in no class.
    pub(super) fn forget_one(&self) {
        self.open.set(self.open.get() - 1);
        self.observer.meters.connections.decrement();
        self.check_counts();
        self.owes_room.set(false);
    }

    fn check_counts(&self) {
        debug_assert!(self.clients.get() + self.nodes.get() + self.operators.get() <= self.open.get());
    }

    /// Closes, by `close`, the oldest connection for which `may_leave` holds and that is not being closed yet;
    /// returns whether it found one.
    fn close_oldest(&self, may_leave: impl Fn(&ConnectionState) -> bool, close: impl Fn(&ConnectionState)) -> bool {
        let all = self.all.borrow();
        let mut open = all.iter().filter_map(Weak::upgrade);
        let oldest = open.find(|one| one.leave.get() == Leave::No && may_leave(one));
        oldest.inspect(|one| close(one)).is_some()
    }

    /// Closes the client that has been idle for longest; returns whether it found one.
    fn close_idle_client(&self) -> bool {
        // While all clients are busy, do not search all of them again for each new one.
        if self.busy_at.get() == Some(self.sweeps.get()) {
            return false;
        }
        let idle_since = |one: &ConnectionState| match one.phase.get() {
            // A client that is still reading its response is not idle.
            Phase::Idle(idle) if one.class.get() == Class::Client && !one.is_writing.get() && !one.is_leaving() => {
                Some(idle.order)
            }
            _ => None,
        };
        let all = self.all.borrow();
        let idle = all.iter().filter_map(Weak::upgrade).filter_map(|one| Some((idle_since(&one)?, one)));
        let longest = idle.min_by_key(|(order, _)| *order);
        let has_closed = longest.inspect(|(_, one)| one.leave_now()).is_some();
        self.busy_at.set((!has_closed).then(|| self.sweeps.get()));
        has_closed
    }
}

impl ConnectionState {
    /// Admits the connection to a class, unless it is in it already; returns false if the class is full.
    ///
    /// An idle client makes room for another client, and the oldest operator for another operator. A node's connection
    /// stays a node's, and a client's connection may also carry an operator's requests.
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

    /// Notes that a member sends Raft's RPCs on the connection. It is always admitted and never closed to make room,
    /// until the member uses enough newer ones.
    pub fn keep_for(self: &Rc<Self>, member: NodeId) {
        if self.is_kept.get() {
            return;
        }
        self.change_class(Class::Node);
        self.is_kept.set(true);
        let mut kept = self.connections.kept.borrow_mut();
        let kept = kept.entry(member).or_default();
        kept.retain(|one| one.strong_count() > 0);
        kept.push_back(Rc::downgrade(self));
        if kept.len() > CONNECTIONS_KEPT_PER_MEMBER
            && let Some(oldest) = kept.pop_front().and_then(|oldest| oldest.upgrade())
        {
            oldest.is_kept.set(false);
            oldest.change_class(Class::Unknown);
        }
    }

    /// Whether Raft's thread serves the connection, which must then carry nothing but RPCs.
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
        debug_assert!(class == Class::Node || !self.is_kept.get(), "a kept connection is a node's");
        let Connections { clients, nodes, operators, .. } = &*self.connections;
        for (counted, count) in [(Class::Client, clients), (Class::Node, nodes), (Class::Operator, operators)] {
            let change = (usize::from(class == counted), usize::from(self.class.get() == counted));
            count.set(count.get() + change.0 - change.1);
        }
        self.class.set(class);
        self.connections.check_counts();
    }

    /// A permit for a watch; `None` if the watch limit is reached.
    pub fn admit_watch(&self) -> Option<WatchPermit> {
        let watches = &self.connections.watches;
        if watches.get() >= self.connections.shares.watches {
            return None;
        }
        watches.set(watches.get() + 1);
        self.connections.observer.meters.watches.increment();
        Some(WatchPermit { connections: self.connections.clone() })
    }
}

#[cfg(test)]
mod tests;
