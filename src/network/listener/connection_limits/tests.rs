use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use super::*;
use crate::app::Room;
use crate::network::listener::admission_queue::Kind;
use crate::network::listener::idle_reaping::HEAD_LOOKS;

fn queue() -> Rc<AdmissionQueue> {
    AdmissionQueue::new(|| Room { free: 1000, kept: 0 })
}

fn open(connections: &Rc<Connections>) -> Rc<ConnectionState> {
    connections.open(&queue())
}

fn accept(connections: &Rc<Connections>) -> Rc<ConnectionState> {
    connections.accept(&queue())
}

/// What happens to a connection.
trait Happening {
    /// Some of a request is read.
    fn come(&self);
    /// It is queued.
    fn wait(&self);
    /// A request is processed.
    fn begin(&self);
    /// The request has its response.
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
        let open = (0..count).map(|_| open(&connections));
        let admitted = open.filter(|presence| presence.admit(class));
        admitted.inspect(|presence| presence.begin()).collect::<Vec<_>>()
    };
    let mut clients = admitted(45, Class::Client);
    assert_eq!(clients.len(), 40);
    assert!(clients[0].admit(Class::Client) && clients[0].admit(Class::Operator), "it has a place");
    let nodes = admitted(10, Class::Node);
    assert_eq!(nodes.len(), 8, "the last two are for operators");
    assert_eq!(admitted(5, Class::Operator).len(), 5);
    clients[2].end();
    clients[2].is_writing.set(true);
    clients[3].end();
    look(&connections);
    assert_eq!(admitted(2, Class::Client).len(), 1, "one that is idle makes room");
    assert!(clients[3].is_leaving() && !clients[2].is_leaving(), "not one that still takes its response");
    let mut operators = admitted(OPERATORS_MIN, Class::Operator);
    operators.extend(admitted(1, Class::Operator));
    assert!(operators[0].is_leaving() && !operators[1].is_leaving(), "the oldest makes room for another");
    let proven: Vec<_> = (0..3).map(|_| open(&connections)).collect();
    proven.iter().for_each(|presence| presence.keep_for(1));
    assert!(proven.iter().all(|presence| presence.is_node()), "Raft goes on in any case");
    assert!(admitted(1, Class::Node).is_empty());
    clients.truncate(25);
    assert_eq!(admitted(1, Class::Node).len(), 1, "clients have left");
    let watches: Vec<_> = (0..25).filter_map(|_| clients[0].admit_watch()).collect();
    assert_eq!(watches.len(), 20);
    drop(watches);
    assert!(clients[0].admit_watch().is_some());
    let more: Vec<_> = (0..CONNECTIONS_KEPT_A_MEMBER).map(|_| open(&connections)).collect();
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
    let presences: Vec<_> = (0..5).map(|_| accept(&connections)).collect();
    presences[0].begin();
    assert!(presences[0].admit(Class::Client));
    presences[1].wait();
    presences[2].begin();
    assert!(let_go(&presences).is_empty());
    let last = accept(&connections);
    assert_eq!(let_go(&presences), [2]);
    assert!(!last.is_leaving());
}

/// Of many that are accepted at once, those that sent a request stay: the first goes from which
/// nothing can be read. One that is to go and has something to do after all is replaced by another.
#[test]
fn those_that_sent_a_request_stay() {
    let connections = Connections::new(Shares::of_clients(4));
    let mut presences: Vec<_> = (0..6).map(|_| accept(&connections)).collect();
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
    presences.push(accept(&connections));
    assert_eq!(let_go(&presences), [1], "the oldest that is not known");
}

fn look(connections: &Connections) {
    connections.look().iter().for_each(|(one, doing)| one.let_go(*doing));
}

fn let_go(presences: &[Rc<ConnectionState>]) -> Vec<usize> {
    let context = Context::from_waker(Waker::noop());
    let is_let_go = |one: &Rc<ConnectionState>| one.poll_let_go(&context, false).is_ready();
    (0..presences.len()).filter(|number| is_let_go(&presences[*number])).collect()
}

/// Nobody is let go while an eighth is free; then it is those that have done nothing for
/// longest, until a quarter would be free, and nobody that sends RPCs.
#[test]
fn who_has_done_nothing_for_longest_goes_first() {
    let connections = connections(16);
    let mut presences: Vec<_> = (0..14).map(|_| open(&connections)).collect();
    presences[5].keep_for(1);
    for _ in 0..5 {
        look(&connections);
    }
    assert!(let_go(&presences).is_empty());
    for number in [0, 1, 3] {
        presences[number].begin();
        presences[number].end();
    }
    presences[2].begin();
    presences.extend([open(&connections), open(&connections)]);
    look(&connections);
    assert_eq!(let_go(&presences), [4, 6, 7, 8]);
    // They are gone for others to come.
    for number in [8, 7, 6, 4] {
        presences.remove(number);
    }
    presences.extend([open(&connections), open(&connections), open(&connections)]);
    look(&connections);
    assert_eq!(let_go(&presences), [5, 6, 7]);
}

/// Neither is one with a request, nor one that has done nothing for less than a look, however many there are.
#[test]
fn who_has_something_to_do_stays() {
    let connections = connections(8);
    let presences: Vec<_> = (0..8).map(|_| open(&connections)).collect();
    presences[..7].iter().for_each(|one| one.begin());
    look(&connections);
    assert!(let_go(&presences).is_empty());
    look(&connections);
    assert_eq!(let_go(&presences), [7]);
    presences[7].begin();
    assert!(let_go(&presences).is_empty());
    presences[7].end();
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
    let presences: Vec<_> = (0..3).map(|_| open(&connections)).collect();
    presences.iter().for_each(|one| one.come());
    presences[1].begin();
    for _ in 0..HEAD_LOOKS {
        look(&connections);
        assert!(let_go(&presences).is_empty());
        presences[2].begin();
        presences[2].end();
        presences[2].come();
    }
    look(&connections);
    assert_eq!(let_go(&presences), [0]);
}

/// Those that cannot go do not keep others from it, and a stream is never let go, whatever comes on it.
#[test]
fn who_cannot_go_makes_way() {
    let connections = connections(8);
    let presences: Vec<_> = (0..8).map(|_| open(&connections)).collect();
    presences[0].begin();
    presences[0].end_request(true);
    presences[0].come();
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
    let presences: Vec<_> = (0..5).map(|_| accept(&connections)).collect();
    presences.iter().for_each(|one| one.begin());
    assert!(presences[..4].iter().all(|one| one.admit(Class::Client)));
    presences[0].end();
    let wakes = Arc::new(Wakes(AtomicUsize::new(0)));
    let waker = Waker::from(wakes.clone());
    let context = Context::from_waker(&waker);
    let poll = || (presences[0].poll_let_go(&context, true), presences[0].poll_leaving(&context));
    assert_eq!(poll(), (Poll::Pending, Poll::Pending));
    let last = accept(&connections);
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
    let presences: Vec<_> = (0..8).map(|_| open(&connections)).collect();
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
    let kept: Vec<_> = (0..10).map(|_| open(&connections)).collect();
    for _ in 0..1000 {
        drop(open(&connections));
    }
    assert_eq!(connections.open.get(), kept.len());
    assert!(connections.all.borrow().len() <= 2 * (kept.len() + 1));
}
