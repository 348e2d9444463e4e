use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use super::*;
use crate::app::Room;
use crate::network::listener::admission_queue::Kind;
use crate::network::listener::idle_reaping::HEAD_SWEEPS;

fn queue() -> Rc<AdmissionQueue> {
    AdmissionQueue::new(|| Room { free: 1000, kept: 0 })
}

fn open(connections: &Rc<Connections>) -> Rc<ConnectionState> {
    connections.open(&queue())
}

fn accept(connections: &Rc<Connections>) -> Rc<ConnectionState> {
    connections.accept(&queue())
}

/// Steps of a connection.
trait Happening {
    /// Reads a part of a request.
    fn come(&self);
    /// Waits in the admission queue.
    fn wait(&self);
    /// Begins to process a request.
    fn begin(&self);
    /// Completes the response.
    fn end(&self);
}

impl Happening for Rc<ConnectionState> {
    fn come(&self) {
        let mut context = Context::from_waker(Waker::noop());
        assert!(self.poll_turn(&mut context, |_| Kind::Own).is_ready());
        self.note_read(b"GET / HTTP/1.1");
    }

    fn wait(&self) {
        self.queue().left.set(0);
        let mut context = Context::from_waker(Waker::noop());
        assert!(self.poll_turn(&mut context, |_| Kind::Own).is_pending());
    }

    fn begin(&self) {
        if !matches!(self.phase.get(), Phase::Arriving { .. }) {
            self.come();
        }
        assert!(!self.begin_request());
    }

    fn end(&self) {
        self.end_request(false);
    }
}

fn connections(total: usize) -> Rc<Connections> {
    Connections::new(Shares { total, clients: total, operators: 0, watches: total }, Observer::default())
}

/// Clients leave connections for nodes, and both leave some for operators. A closed connection counts no more.
#[test]
fn shares() {
    let shares = Shares::of_clients(40);
    assert_eq!(shares, Shares { total: 50, clients: 40, operators: 2, watches: 20 });
    let connections = Connections::new(shares, Observer::default());
    let admitted = |count: usize, class| {
        let open = (0..count).map(|_| open(&connections));
        let admitted = open.filter(|state| state.admit(class));
        admitted.inspect(|state| state.begin()).collect::<Vec<_>>()
    };
    let mut clients = admitted(45, Class::Client);
    assert_eq!(clients.len(), 40);
    assert!(clients[0].admit(Class::Client) && clients[0].admit(Class::Operator), "it is already admitted");
    let nodes = admitted(10, Class::Node);
    assert_eq!(nodes.len(), 8, "the last two are reserved for operators");
    assert_eq!(admitted(5, Class::Operator).len(), 5);
    clients[2].end();
    clients[2].is_writing.set(true);
    clients[3].end();
    sweep(&connections);
    assert_eq!(admitted(2, Class::Client).len(), 1, "an idle client makes room");
    assert!(
        clients[3].is_leaving() && !clients[2].is_leaving(),
        "a client that is still reading its response does not"
    );
    let mut operators = admitted(OPERATORS_MIN, Class::Operator);
    operators.extend(admitted(1, Class::Operator));
    assert!(operators[0].is_leaving() && !operators[1].is_leaving(), "the oldest operator makes room");
    let proven: Vec<_> = (0..3).map(|_| open(&connections)).collect();
    proven.iter().for_each(|state| state.keep_for(1));
    assert!(proven.iter().all(|state| state.is_node()), "members are always admitted");
    assert!(admitted(1, Class::Node).is_empty());
    clients.truncate(25);
    assert_eq!(admitted(1, Class::Node).len(), 1, "clients have disconnected");
    let watches: Vec<_> = (0..25).filter_map(|_| clients[0].admit_watch()).collect();
    assert_eq!(watches.len(), 20);
    drop(watches);
    assert!(clients[0].admit_watch().is_some());
    let more: Vec<_> = (0..CONNECTIONS_KEPT_PER_MEMBER).map(|_| open(&connections)).collect();
    more.iter().for_each(|state| state.keep_for(1));
    assert!(
        !proven[0].is_kept.get() && more.iter().all(|state| state.is_kept.get()),
        "only the newest of a member are kept"
    );
    drop((clients, nodes, proven, operators, more));
    let Connections { open, clients, nodes, watches, .. } = &*connections;
    assert_eq!([open.get(), clients.get(), nodes.get(), watches.get()], [0; 4]);
}

/// When the limit is reached, the oldest connection of an unknown class is closed, whatever its phase; otherwise an idle
/// one.
#[test]
fn the_last_place_is_kept_free() {
    let connections = Connections::new(Shares::of_clients(4), Observer::default());
    let states: Vec<_> = (0..5).map(|_| accept(&connections)).collect();
    states[0].begin();
    assert!(states[0].admit(Class::Client));
    states[1].wait();
    states[2].begin();
    assert!(closing(&states).is_empty());
    let last = accept(&connections);
    assert_eq!(closing(&states), [2]);
    assert!(!last.is_leaving());
}

/// Of many connections that are accepted at once, those with a request stay: the first from which nothing can be read is
/// closed. If that one turns out to have a request, another is closed instead.
#[test]
fn those_that_sent_a_request_stay() {
    let connections = Connections::new(Shares::of_clients(4), Observer::default());
    let mut states: Vec<_> = (0..6).map(|_| accept(&connections)).collect();
    assert!(states.iter().all(|one| one.leave.get() == Leave::No));
    states[0].begin();
    assert!(states[0].admit(Class::Client));
    assert_eq!(closing(&states), [1]);
    states[1].stay();
    assert_eq!(closing(&states[2..]), [0]);
    states[2].begin();
    assert!(states[2].admit(Class::Client));
    assert_eq!(closing(&states[3..]), [0], "another one is closed instead");
    states.remove(3);
    assert!(closing(&states).is_empty(), "the limit is not reached");
    states.push(accept(&connections));
    assert_eq!(closing(&states), [1], "the oldest of an unknown class");
}

fn sweep(connections: &Connections) {
    connections.sweep().iter().for_each(|(one, phase)| one.close_if_still(*phase));
}

fn closing(states: &[Rc<ConnectionState>]) -> Vec<usize> {
    let context = Context::from_waker(Waker::noop());
    let is_closing = |one: &Rc<ConnectionState>| one.poll_closing(&context, false).is_ready();
    (0..states.len()).filter(|number| is_closing(&states[*number])).collect()
}

/// No connection is reaped while an eighth is free. After that the ones that have been idle for longest are closed, until
/// a quarter is free, but none on which a member sends RPCs.
#[test]
fn who_has_done_nothing_for_longest_goes_first() {
    let connections = connections(16);
    let mut states: Vec<_> = (0..14).map(|_| open(&connections)).collect();
    states[5].keep_for(1);
    for _ in 0..5 {
        sweep(&connections);
    }
    assert!(closing(&states).is_empty());
    for number in [0, 1, 3] {
        states[number].begin();
        states[number].end();
    }
    states[2].begin();
    states.extend([open(&connections), open(&connections)]);
    sweep(&connections);
    assert_eq!(closing(&states), [4, 6, 7, 8]);
    // Others take their share.
    for number in [8, 7, 6, 4] {
        states.remove(number);
    }
    states.extend([open(&connections), open(&connections), open(&connections)]);
    sweep(&connections);
    assert_eq!(closing(&states), [5, 6, 7]);
}

/// A connection with a request is not reaped, nor one that has been idle for less than a sweep, however many are open.
#[test]
fn who_has_something_to_do_stays() {
    let connections = connections(8);
    let states: Vec<_> = (0..8).map(|_| open(&connections)).collect();
    states[..7].iter().for_each(|one| one.begin());
    sweep(&connections);
    assert!(closing(&states).is_empty());
    sweep(&connections);
    assert_eq!(closing(&states), [7]);
    states[7].begin();
    assert!(closing(&states).is_empty());
    states[7].end();
    assert!(closing(&states).is_empty());
    sweep(&connections);
    assert!(closing(&states).is_empty());
    let chosen = {
        connections.sweeps.set(connections.sweeps.get() + 1);
        connections.sweep()
    };
    assert_eq!(chosen.len(), 1);
    states[7].begin();
    chosen.iter().for_each(|(one, phase)| one.close_if_still(*phase));
    assert!(closing(&states).is_empty(), "it was chosen, and then had a request");
}

/// A connection with an incomplete head is closed, however few are open.
#[test]
fn a_head_that_does_not_end() {
    let connections = connections(100);
    let states: Vec<_> = (0..3).map(|_| open(&connections)).collect();
    states.iter().for_each(|one| one.come());
    states[1].begin();
    for _ in 0..HEAD_SWEEPS {
        sweep(&connections);
        assert!(closing(&states).is_empty());
        states[2].begin();
        states[2].end();
        states[2].come();
    }
    sweep(&connections);
    assert_eq!(closing(&states), [0]);
}

/// Connections that cannot be closed do not keep others open, and a stream is never reaped, whatever its client sends.
#[test]
fn who_cannot_go_makes_way() {
    let connections = connections(8);
    let states: Vec<_> = (0..8).map(|_| open(&connections)).collect();
    states[0].begin();
    states[0].end_request(true);
    states[0].come();
    sweep(&connections);
    sweep(&connections);
    assert_eq!(closing(&states), [1, 2]);
    states[1..3].iter().for_each(|one| one.stay());
    sweep(&connections);
    assert_eq!(closing(&states), [3, 4]);
    states[3..].iter().for_each(|one| one.begin());
    for _ in 0..=HEAD_SWEEPS {
        sweep(&connections);
    }
    assert_eq!(closing(&states), [1, 2]);
}

/// A client that does not read its response neither makes room nor is woken repeatedly.
#[test]
fn who_does_not_read_is_left_alone() {
    let connections = Connections::new(Shares::of_clients(4), Observer::default());
    let states: Vec<_> = (0..5).map(|_| accept(&connections)).collect();
    states.iter().for_each(|one| one.begin());
    assert!(states[..4].iter().all(|one| one.admit(Class::Client)));
    states[0].end();
    let wakes = Arc::new(Wakes(AtomicUsize::new(0)));
    let waker = Waker::from(wakes.clone());
    let context = Context::from_waker(&waker);
    let poll = || (states[0].poll_closing(&context, true), states[0].poll_leaving(&context));
    assert_eq!(poll(), (Poll::Pending, Poll::Pending));
    let last = accept(&connections);
    last.begin();
    for _ in 0..3 {
        assert_eq!(poll(), (Poll::Pending, Poll::Pending));
    }
    assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
    assert_eq!(closing(&states[4..]), [0], "one of an unknown class is closed instead");
    assert_eq!(states[0].poll_closing(&context, false), Poll::Pending, "it has read its response, and no room is owed");
}

struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A connection that stays because a request arrived is woken when it must close later.
#[test]
fn who_is_closing_is_woken_each_time() {
    let connections = connections(8);
    let states: Vec<_> = (0..8).map(|_| open(&connections)).collect();
    states[1..].iter().for_each(|one| one.begin());
    let wakes = Arc::new(Wakes(AtomicUsize::new(0)));
    let waker = Waker::from(wakes.clone());
    let context = Context::from_waker(&waker);
    assert!(states[0].poll_closing(&context, false).is_pending());
    for wanted in 1..=3 {
        sweep(&connections);
        assert_eq!(wakes.0.load(Ordering::Relaxed), wanted - 1);
        sweep(&connections);
        assert_eq!(wakes.0.load(Ordering::Relaxed), wanted);
        assert!(states[0].poll_closing(&context, false).is_ready());
        states[0].stay();
    }
}

/// Closed connections do not take memory for long.
#[test]
fn gone_connections_are_forgotten() {
    let connections = connections(100);
    let kept: Vec<_> = (0..10).map(|_| open(&connections)).collect();
    for _ in 0..1000 {
        drop(open(&connections));
    }
    assert_eq!(connections.open.get(), kept.len());
    assert!(connections.all.borrow().len() <= 2 * (kept.len() + 1));
}
