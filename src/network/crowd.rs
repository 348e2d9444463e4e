//! What the connections of a node are doing: which are admitted, and which are closed because they
//! only take up room.
//!
//! A connection takes an open file, and there is a limit of those. So that clients cannot take what
//! a cluster needs to go on, a node admits fewer clients than it accepts connections ([`Shares`]):
//! the rest is for other nodes, and the last few are for operators. What a connection is used for
//! is known from its requests. It counts as a node's only after a request that only a node can
//! make, since it names the receiver's incarnation. A client beyond the clients' share is answered
//! with 503, and its connection closed. A watch keeps its connection for as long as it likes, so watches
//! have a share of their own.
//!
//! Clients keep connections for later, and some open them and never ask for anything. While there
//! is room they may, for [`KEEP_ALIVE`](crate::config::KEEP_ALIVE). A node with hardly any room closes
//! those that have been without a request for longest, except those on which another node sends
//! Raft's RPCs. A client that sends a request just then has to send it again, as with every idle
//! connection that is closed.
//!
//! A request whose head does not come to its end is given up at any time. (The HTTP library does
//! so for the first one of a connection, and answers it with 408; whoever has used a connection
//! before could take that for the answer to another request, and gets none. The time of a head that
//! arrives during the request before it begins when that request ends.)

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use crate::config::{
    CLIENTS_A_RESERVED_CONNECTION, CONNECTIONS_KEPT_A_MEMBER, CROWD_LOOK, NODE_CONNECTIONS_MIN, OPERATORS_MIN,
    REQUEST_HEAD_DEADLINE, REQUESTS_A_TURN,
};
use crate::types::NodeId;

/// How many looks a request may take to come.
const HEAD_LOOKS: u64 = (REQUEST_HEAD_DEADLINE.as_millis() / CROWD_LOOK.as_millis()) as u64;

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
    shares: Shares,
    open: Cell<usize>,
    clients: Cell<usize>,
    nodes: Cell<usize>,
    operators: Cell<usize>,
    watches: Cell<usize>,
    /// The connections that each member sends Raft's RPCs on, oldest first.
    kept: RefCell<BTreeMap<NodeId, VecDeque<Weak<Presence>>>>,
    /// In the order in which they came; some are gone.
    all: RefCell<Vec<Weak<Presence>>>,
    /// The number of looks so far.
    looks: Cell<u64>,
    is_crowded: Cell<bool>,
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
    doing: Cell<Doing>,
    class: Cell<Class>,
    /// Whether another node sends Raft's RPCs on it: it is not closed to make room.
    is_kept: Cell<bool>,
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
enum Doing {
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

    /// Lets go of those that only take up room, for as long as the thread runs.
    pub async fn keep_room(self: Rc<Self>) {
        loop {
            tokio::time::sleep(CROWD_LOOK).await;
            for some in self.look().chunks(REQUESTS_A_TURN) {
                some.iter().for_each(|(one, doing)| one.let_go(*doing));
                // All that is ready to run goes first, Raft too.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Whom to let go, and what each is doing: those whose request does not come to an end; and once
    /// an eighth of all is not free any more, as many of those that do nothing as it takes until a
    /// quarter is, or as there are.
    fn look(&self) -> Vec<(Rc<Presence>, Doing)> {
        let looks = self.looks.get() + 1;
        self.looks.set(looks);
        let (open, max) = (self.open.get(), self.shares.total);
        let clients_max = self.shares.clients;
        let is_short = open + max / 8 > max || self.clients.get() + clients_max / 8 > clients_max;
        self.note_crowd(is_short);
        let (mut leaving, mut idle) = (Vec::new(), Vec::new());
        for one in self.all.borrow().iter().filter_map(Weak::upgrade) {
            let doing = one.doing.get();
            match doing {
                Doing::Coming { since } if since + HEAD_LOOKS < looks => {
                    leaving.push((one, doing));
                }
                Doing::Nothing { since, .. } if is_short && since + 1 < looks && !one.is_kept.get() => {
                    idle.push((since, one, doing));
                }
                _ => {}
            }
        }
        // Of those that have done nothing for as long, those that came first.
        idle.sort_by_key(|(since, ..)| *since);
        let wanted =
            open.saturating_sub(max - max / 4).max(self.clients.get().saturating_sub(clients_max - clients_max / 4));
        leaving.extend(idle.into_iter().take(wanted).map(|(_, one, doing)| (one, doing)));
        leaving
    }

    fn note_crowd(&self, is_short: bool) {
        let (open, max) = (self.open.get(), self.shares.total);
        if is_short && !self.is_crowded.replace(true) {
            tracing::warn!(
                "{open} of the {max} connections that this node accepts are taken: those that have done nothing for \
                 longest are closed (a higher limit of open files may allow more)"
            );
        } else if open <= max / 2 && self.is_crowded.replace(false) {
            tracing::info!("there is room for connections again");
        }
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
    fn let_go(&self, doing: Doing) {
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
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    fn connections(total: usize) -> Rc<Connections> {
        Connections::new(Shares { total, clients: total, operators: 0, watches: total })
    }

    /// Clients leave room for nodes, and both leave some for operators; a place is free again when
    /// its connection is gone.
    #[test]
    fn shares() {
        let shares = Shares::of_clients(40);
        assert_eq!(shares, Shares { total: 50, clients: 40, operators: 2, watches: 20 });
        let connections = Connections::new(shares);
        let admitted = |count: usize, class| {
            let open = (0..count).map(|_| connections.open());
            let admitted = open.filter(|presence| presence.admit(class));
            admitted.inspect(|presence| presence.begin()).collect::<Vec<_>>()
        };
        let mut clients = admitted(45, Class::Client);
        assert_eq!(clients.len(), 40);
        assert!(clients[0].admit(Class::Client) && clients[0].admit(Class::Operator), "it has a place");
        let nodes = admitted(10, Class::Node);
        assert_eq!(nodes.len(), 8, "the last two are for operators");
        assert_eq!(admitted(5, Class::Operator).len(), 5);
        clients[3].end(false);
        look(&connections);
        assert_eq!(admitted(2, Class::Client).len(), 1, "one that is idle makes room");
        assert!(clients[3].is_leaving());
        let mut operators = admitted(OPERATORS_MIN, Class::Operator);
        operators.extend(admitted(1, Class::Operator));
        assert!(operators[0].is_leaving() && !operators[1].is_leaving(), "the oldest makes room for another");
        let proven: Vec<_> = (0..3).map(|_| connections.open()).collect();
        proven.iter().for_each(|presence| presence.keep_for(1));
        assert!(proven.iter().all(|presence| presence.is_node()), "Raft goes on in any case");
        assert!(admitted(1, Class::Node).is_empty());
        clients.truncate(25);
        assert_eq!(admitted(1, Class::Node).len(), 1, "clients have left");
        let watches: Vec<_> = (0..25).filter_map(|_| clients[0].admit_watch()).collect();
        assert_eq!(watches.len(), 20);
        drop(watches);
        assert!(clients[0].admit_watch().is_some());
        let more: Vec<_> = (0..CONNECTIONS_KEPT_A_MEMBER).map(|_| connections.open()).collect();
        more.iter().for_each(|presence| presence.keep_for(1));
        assert!(!proven[0].is_kept.get() && more.iter().all(|presence| presence.is_kept.get()), "a member's last ones");
        drop((clients, nodes, proven, operators, more));
        let Connections { open, clients, nodes, watches, .. } = &*connections;
        assert_eq!([open.get(), clients.get(), nodes.get(), watches.get()], [0; 4]);
    }

    /// While a connection is accepted that takes the last place, the oldest that has not shown what it is
    /// for is closed, whatever it is doing; or else one that is idle.
    #[test]
    fn the_last_place_is_kept_free() {
        let connections = Connections::new(Shares::of_clients(4));
        let presences: Vec<_> = (0..5).map(|_| connections.accept()).collect();
        presences[0].begin();
        assert!(presences[0].admit(Class::Client));
        presences[1].wait();
        presences[2].begin();
        assert!(let_go(&presences).is_empty());
        let last = connections.accept();
        assert_eq!(let_go(&presences), [2]);
        assert!(!last.is_leaving());
    }

    /// Of many that are accepted at once, those that sent a request stay: the first goes from which
    /// nothing can be read. One that is to go and has something to do after all is replaced by another.
    #[test]
    fn those_that_sent_a_request_stay() {
        let connections = Connections::new(Shares::of_clients(4));
        let mut presences: Vec<_> = (0..6).map(|_| connections.accept()).collect();
        assert!(presences.iter().all(|one| one.leave.get() == Leave::No));
        presences[0].begin();
        assert!(presences[0].admit(Class::Client));
        assert_eq!(let_go(&presences), [1]);
        presences[1].stay();
        assert_eq!(let_go(&presences[2..]), [0]);
        presences[2].begin();
        assert!(presences[2].admit(Class::Client));
        assert_eq!(let_go(&presences[3..]), [0], "another one goes");
        presences.remove(3);
        assert!(let_go(&presences).is_empty(), "there is a place");
        presences.push(connections.accept());
        assert_eq!(let_go(&presences), [1], "the oldest that is not known");
    }

    fn look(connections: &Connections) {
        connections.look().iter().for_each(|(one, doing)| one.let_go(*doing));
    }

    fn let_go(presences: &[Rc<Presence>]) -> Vec<usize> {
        let context = Context::from_waker(Waker::noop());
        let is_let_go = |one: &Rc<Presence>| one.poll_let_go(&context, false).is_ready();
        (0..presences.len()).filter(|number| is_let_go(&presences[*number])).collect()
    }

    /// Nobody is let go while an eighth is free; then it is those that have done nothing for
    /// longest, until a quarter would be free, and nobody that sends RPCs.
    #[test]
    fn who_has_done_nothing_for_longest_goes_first() {
        let connections = connections(16);
        let mut presences: Vec<_> = (0..14).map(|_| connections.open()).collect();
        presences[5].keep_for(1);
        for _ in 0..5 {
            look(&connections);
        }
        assert!(let_go(&presences).is_empty());
        for number in [0, 1, 3] {
            presences[number].begin();
            presences[number].end(false);
        }
        presences[2].begin();
        presences.extend([connections.open(), connections.open()]);
        look(&connections);
        assert_eq!(let_go(&presences), [4, 6, 7, 8]);
        // They are gone for others to come.
        for number in [8, 7, 6, 4] {
            presences.remove(number);
        }
        presences.extend([connections.open(), connections.open(), connections.open()]);
        look(&connections);
        assert_eq!(let_go(&presences), [5, 6, 7]);
    }

    /// Neither is one with a request, nor one that has done nothing for less than a look, however many there are.
    #[test]
    fn who_has_something_to_do_stays() {
        let connections = connections(8);
        let presences: Vec<_> = (0..8).map(|_| connections.open()).collect();
        presences[..7].iter().for_each(|one| one.begin());
        look(&connections);
        assert!(let_go(&presences).is_empty());
        look(&connections);
        assert_eq!(let_go(&presences), [7]);
        presences[7].begin();
        assert!(let_go(&presences).is_empty());
        presences[7].end(false);
        assert!(let_go(&presences).is_empty());
        look(&connections);
        assert!(let_go(&presences).is_empty());
        let chosen = {
            connections.looks.set(connections.looks.get() + 1);
            connections.look()
        };
        assert_eq!(chosen.len(), 1);
        presences[7].begin();
        chosen.iter().for_each(|(one, doing)| one.let_go(*doing));
        assert!(let_go(&presences).is_empty(), "it was chosen, and then had something to do");
    }

    /// A head that does not end is given up, however much room there is.
    #[test]
    fn a_head_that_does_not_end() {
        let connections = connections(100);
        let presences: Vec<_> = (0..3).map(|_| connections.open()).collect();
        presences.iter().for_each(|one| one.come());
        presences[1].begin();
        for _ in 0..HEAD_LOOKS {
            look(&connections);
            assert!(let_go(&presences).is_empty());
            presences[2].come();
        }
        look(&connections);
        assert_eq!(let_go(&presences), [0]);
    }

    /// Those that cannot go do not keep others from it, and a stream is never let go, whatever comes on it.
    #[test]
    fn who_cannot_go_makes_way() {
        let connections = connections(8);
        let presences: Vec<_> = (0..8).map(|_| connections.open()).collect();
        presences[0].end(true);
        presences[0].come();
        presences[0].wait();
        look(&connections);
        look(&connections);
        assert_eq!(let_go(&presences), [1, 2]);
        presences[1..3].iter().for_each(|one| one.stay());
        look(&connections);
        assert_eq!(let_go(&presences), [3, 4]);
        presences[3..].iter().for_each(|one| one.begin());
        for _ in 0..=HEAD_LOOKS {
            look(&connections);
        }
        assert_eq!(let_go(&presences), [1, 2]);
    }

    /// A client that does not read its answer neither makes room nor is woken for it again and again.
    #[test]
    fn who_does_not_read_is_left_alone() {
        let connections = Connections::new(Shares::of_clients(4));
        let presences: Vec<_> = (0..5).map(|_| connections.accept()).collect();
        presences.iter().for_each(|one| one.begin());
        assert!(presences[..4].iter().all(|one| one.admit(Class::Client)));
        presences[0].end(false);
        let wakes = Arc::new(Wakes(AtomicUsize::new(0)));
        let waker = Waker::from(wakes.clone());
        let context = Context::from_waker(&waker);
        let poll = || (presences[0].poll_let_go(&context, true), presences[0].poll_leaving(&context));
        assert_eq!(poll(), (Poll::Pending, Poll::Pending));
        let last = connections.accept();
        last.begin();
        for _ in 0..3 {
            assert_eq!(poll(), (Poll::Pending, Poll::Pending));
        }
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
        assert_eq!(let_go(&presences[4..]), [0], "one that has not shown what it is for goes instead");
        assert_eq!(presences[0].poll_let_go(&context, false), Poll::Pending, "it has read, and nobody owes room");
    }

    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// One that is let go in vain, as something came just then, is woken when it is let go again.
    #[test]
    fn who_is_let_go_is_woken_each_time() {
        let connections = connections(8);
        let presences: Vec<_> = (0..8).map(|_| connections.open()).collect();
        presences[1..].iter().for_each(|one| one.begin());
        let wakes = Arc::new(Wakes(AtomicUsize::new(0)));
        let waker = Waker::from(wakes.clone());
        let context = Context::from_waker(&waker);
        assert!(presences[0].poll_let_go(&context, false).is_pending());
        for wanted in 1..=3 {
            look(&connections);
            assert_eq!(wakes.0.load(Ordering::Relaxed), wanted - 1);
            look(&connections);
            assert_eq!(wakes.0.load(Ordering::Relaxed), wanted);
            assert!(presences[0].poll_let_go(&context, false).is_ready());
            presences[0].stay();
        }
    }

    /// Those that are gone take no memory for long.
    #[test]
    fn gone_connections_are_forgotten() {
        let connections = connections(100);
        let kept: Vec<_> = (0..10).map(|_| connections.open()).collect();
        for _ in 0..1000 {
            drop(connections.open());
        }
        assert_eq!(connections.open.get(), kept.len());
        assert!(connections.all.borrow().len() <= 2 * (kept.len() + 1));
    }
}
