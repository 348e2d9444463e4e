use std::task::{Context, Waker};

use super::*;
use crate::config::{OVERLOAD_AFTER, QUEUE_WAIT_MAX, SERVED_PER_SHED};
use crate::network::listener::connection_limits::{Connections, Shares};
use crate::network::listener::connection_state::Phase;
use crate::network::observer::Observer;

/// A queue and its clock.
struct Scene {
    queue: Rc<AdmissionQueue>,
    room: Rc<Cell<usize>>,
    now: Instant,
}

impl Scene {
    fn new(room: usize) -> Self {
        let room = Rc::new(Cell::new(room));
        let queue = AdmissionQueue::new({
            let room = room.clone();
            move || Room { free: room.get() + 10, kept: 10 }
        });
        let now = queue.shedding.short_at.get();
        Scene { queue, room, now }
    }

    /// Connections with something to read.
    fn come(&self, count: usize, kind: Kind) -> Vec<Rc<ConnectionState>> {
        let states = (0..count).map(|_| {
            let state = Connections::new(Shares::of_clients(1), Observer::default()).open(&self.queue);
            self.read_if_called(&state, kind);
            state
        });
        states.collect()
    }

    fn read_if_called(&self, state: &Rc<ConnectionState>, kind: Kind) {
        self.read_if_called_with(state, kind, "PUT /v1/kv/a HTTP/1.1");
    }

    fn read_if_called_with(&self, state: &Rc<ConnectionState>, kind: Kind, first: &str) {
        let mut context = Context::from_waker(Waker::noop());
        if state.poll_turn_at(|| self.now, &mut context, |_| kind).is_ready() {
            state.note_read(first.as_bytes());
        }
    }

    fn turn_after(&mut self, pause: Duration, bursts: &[&[Rc<ConnectionState>]]) {
        self.now += pause;
        self.queue.begin_turn(self.now);
        bursts.iter().flat_map(|burst| burst.iter()).for_each(|state| {
            if matches!(state.phase.get(), Phase::Admitted { .. }) {
                self.read_if_called(state, Kind::Own);
            }
        });
    }
}

fn under_way(burst: &[Rc<ConnectionState>]) -> usize {
    burst.iter().filter(|state| matches!(state.phase.get(), Phase::Arriving { .. })).count()
}

fn is_shed(state: &ConnectionState) -> bool {
    matches!(state.phase.get(), Phase::Admitted { is_shed: true, .. } | Phase::Arriving { is_shed: true, .. })
}

fn shed(burst: &[Rc<ConnectionState>]) -> usize {
    burst.iter().filter(|state| is_shed(state)).count()
}

/// A turn admits a limited number, first in, first out. A closed connection does not count.
#[test]
fn one_turn_after_another() {
    let mut scene = Scene::new(1000);
    let mut burst = scene.come(3 * REQUESTS_PER_TURN, Kind::Own);
    assert_eq!(under_way(&burst), REQUESTS_PER_TURN);
    scene.turn_after(Duration::ZERO, &[&burst]);
    assert_eq!(under_way(&burst), 2 * REQUESTS_PER_TURN);
    assert_eq!(under_way(&burst[..2 * REQUESTS_PER_TURN]), 2 * REQUESTS_PER_TURN);
    let newcomer = scene.come(1, Kind::Own);
    assert_eq!(under_way(&newcomer), 0, "a new one is queued too");
    burst.truncate(2 * REQUESTS_PER_TURN);
    scene.turn_after(Duration::ZERO, &[&newcomer]);
    assert_eq!(under_way(&newcomer), 1);
}

/// No connection is admitted while as many requests are under way as may be, and some are as soon as one completes.
#[test]
fn not_too_many_at_once() {
    let mut scene = Scene::new(0);
    scene.come(REQUESTS_PER_TURN, Kind::Own);
    let burst = scene.come(3, Kind::Own);
    assert_eq!(scene.queue.begin_turn(scene.now), Turn::Blocked);
    scene.turn_after(STALL_MIN / 2, &[&burst]);
    assert_eq!(under_way(&burst), 0);
    scene.room.set(2);
    assert_eq!(scene.queue.begin_turn(scene.now), Turn::Used);
    scene.room.set(0);
    scene.turn_after(Duration::ZERO, &[&burst]);
    assert_eq!(under_way(&burst), 2);
    scene.turn_after(STALL_MIN, &[&burst]);
    assert_eq!(under_way(&burst), 3, "while no request completes, none waits for room");
    assert_eq!(scene.queue.begin_turn(scene.now), Turn::Empty);
}

/// Forwarded requests and the node's own have their shares of each turn. A few requests for `/metrics` bypass the queue.
#[test]
fn shares() {
    let mut scene = Scene::new(1000);
    scene.come(REQUESTS_PER_TURN, Kind::Own);
    let own = scene.come(REQUESTS_PER_TURN, Kind::Own);
    let forwarded = scene.come(2 * REQUESTS_PER_TURN, Kind::Forwarded);
    assert_eq!(under_way(&scene.come(1, Kind::End)), 1);
    assert_eq!(under_way(&scene.come(1, Kind::Rpc)), 0);
    let node = Connections::new(Shares::of_nodes(1), Observer::default()).open(&scene.queue);
    node.keep_for(1);
    scene.read_if_called(&node, Kind::Rpc);
    assert_eq!(under_way(&[node]), 1);
    assert_eq!(under_way(&scene.come(METRICS_REQUESTS_PER_TURN + 1, Kind::Metrics)), METRICS_REQUESTS_PER_TURN);
    scene.turn_after(Duration::ZERO, &[&own, &forwarded]);
    assert_eq!(under_way(&forwarded), FORWARDED_PER_TURN);
    assert_eq!(under_way(&own), REQUESTS_PER_TURN - FORWARDED_PER_TURN);
    scene.turn_after(Duration::ZERO, &[&own, &forwarded]);
    scene.turn_after(Duration::ZERO, &[&own, &forwarded]);
    assert_eq!(under_way(&own) + under_way(&forwarded), 3 * REQUESTS_PER_TURN, "no turn is wasted");
}

/// With little room, each kind still has its share.
#[test]
fn shares_of_little_room() {
    let mut scene = Scene::new(1000);
    scene.come(REQUESTS_PER_TURN, Kind::Own);
    let own = scene.come(3 * REQUESTS_PER_TURN, Kind::Own);
    let forwarded = scene.come(3 * REQUESTS_PER_TURN, Kind::Forwarded);
    for turn in 0..REQUESTS_PER_TURN {
        scene.room.set(1 + turn % 2);
        scene.turn_after(Duration::ZERO, &[&own, &forwarded]);
    }
    let (own, forwarded) = (under_way(&own), under_way(&forwarded));
    assert_eq!(own + forwarded, REQUESTS_PER_TURN / 2 * 3);
    assert_eq!(forwarded, REQUESTS_PER_TURN / 2 * 3 * FORWARDED_PER_TURN / REQUESTS_PER_TURN);
}

/// The first bytes of a request tell its kind.
#[test]
fn kinds() {
    let rows: [(&str, Kind); 18] = [
        ("", Kind::End),
        ("POST /raft-append HTTP/1.1\r\n", Kind::Rpc),
        ("GET /raft-identity HTTP/1.1\r\n", Kind::Rpc),
        ("GET /metrics HTTP/1.1\r\n", Kind::Metrics),
        ("HEAD /metrics HTTP/1.1\r\n", Kind::Metrics),
        ("GET /v1/metrics HTTP/1.1\r\n", Kind::Metrics),
        ("GET /livez HTTP/1.1\r\n", Kind::Metrics),
        ("GET /readyz?verbose HTTP/1.1\r\n", Kind::Metrics),
        ("GET /livez", Kind::Own),
        ("POST /livez HTTP/1.1\r\n", Kind::Own),
        ("GET /v1/cluster HTTP/1.1\r\n", Kind::Metrics),
        ("GET /v1/cluster/hash HTTP/1.1\r\n", Kind::Own),
        ("GET /raft-status HTTP/1.1\r\n", Kind::Metrics),
        ("GET /raft-status?x HTTP/1.1\r\n", Kind::Metrics),
        ("POST /raft-status HTTP/1.1\r\n", Kind::Own),
        ("GET /v1/kv/metrics HTTP/1.1\r\n", Kind::Own),
        ("PUT /v1/kv/a HTTP/1.1\r\nraft-forwarded: 2\r\n\r\n", Kind::Forwarded),
        ("PUT /v1/kv/a HTTP/1.1\r\nhost: raft-forwarded: 2\r\n\r\n", Kind::Own),
    ];
    for (first, kind) in rows {
        assert_eq!(Kind::of(first.as_bytes()), kind, "{first:?}");
    }
}

/// A connection that has nothing to read when it is admitted takes no turn, and its next request is not shed.
#[test]
fn a_turn_that_is_not_taken() {
    let mut scene = Scene::new(1000);
    scene.come(REQUESTS_PER_TURN, Kind::Own);
    let mut burst = scene.come(4, Kind::Own);
    burst.remove(0);
    for (state, first) in burst.iter().zip([Some(""), Some("\r\n"), None]) {
        state.admit_queued(true, 2 * QUEUE_WAIT_MAX);
        match first {
            Some(first) => state.note_read(first.as_bytes()),
            None => state.note_nothing(),
        }
        assert!(!state.is_late() && matches!(state.phase.get(), Phase::Idle(_)), "{first:?}");
    }
    scene.queue.own.borrow_mut().truncate(1);
    scene.turn_after(Duration::ZERO, &[]);
    assert_eq!(scene.queue.left.get(), REQUESTS_PER_TURN);
    scene.read_if_called(&burst[0], Kind::Own);
    assert!(!burst[0].begin_request(), "it is not shed");
}

/// A connection that is polled several times before it reads takes one turn.
#[test]
fn a_turn_is_taken_once() {
    let scene = Scene::new(1000);
    let state = Connections::new(Shares::of_clients(1), Observer::default()).open(&scene.queue);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..2 {
        assert!(state.poll_turn(&mut context, |_| unreachable!("the turn has reads left")).is_ready());
    }
    state.note_read(b"GET / HTTP/1.1");
    assert_eq!(scene.queue.left.get(), REQUESTS_PER_TURN - 1);
}

/// Requests of known nodes on Raft's thread take no turn. Others there do, and all on the threads of clients.
#[test]
fn nodes_take_no_turn() {
    for (shares, turns) in [(Shares::of_nodes(1), 1), (Shares::of_clients(1), 2)] {
        let scene = Scene::new(1000);
        let state = Connections::new(shares, Observer::default()).open(&scene.queue);
        for _ in 0..2 {
            scene.read_if_called_with(&state, Kind::Rpc, "POST /raft-append");
            state.begin_request();
            state.end_request(false);
            state.keep_for(1);
        }
        assert_eq!(scene.queue.left.get(), REQUESTS_PER_TURN - turns, "{shares:?}");
    }
}

/// Only a request that has waited too long is late.
#[test]
fn who_is_late() {
    let mut scene = Scene::new(1000);
    scene.come(REQUESTS_PER_TURN, Kind::Own);
    for (waited, kind, is_late) in [
        (QUEUE_WAIT_MAX, Kind::Own, false),
        (QUEUE_WAIT_MAX + STALL_MIN, Kind::Own, true),
        (QUEUE_WAIT_MAX + STALL_MIN, Kind::Forwarded, true),
    ] {
        scene.queue.left.set(0);
        let burst = scene.come(1, kind);
        scene.now += waited;
        scene.queue.begin_turn(scene.now);
        assert_eq!(burst[0].is_late(), is_late, "{kind:?} after {waited:?}");
        burst[0].note_read(b"GET / HTTP/1.1");
        assert!(!burst[0].is_late());
    }
}

/// Long turns do not count as a suspended process: under large requests, too, some are shed.
#[test]
fn long_turns_are_overload() {
    let mut scene = Scene::new(1000);
    let burst = scene.come(40 * REQUESTS_PER_TURN, Kind::Own);
    for _ in 0..=(QUEUE_WAIT_MAX + OVERLOAD_AFTER).as_millis() / (2 * STALL_MIN).as_millis() {
        scene.turn_after(STALL_MIN * 3, &[&burst]);
    }
    let last = scene.come(REQUESTS_PER_TURN, Kind::Own);
    scene.turn_after(Duration::ZERO, &[&burst]);
    assert_ne!(shed(&last), 0);
}

/// Time while the process is suspended does not count as waiting.
#[test]
fn a_pause_is_no_overload() {
    let mut scene = Scene::new(1000);
    let burst = scene.come(4 * REQUESTS_PER_TURN, Kind::Own);
    scene.turn_after(QUEUE_WAIT_MAX + OVERLOAD_AFTER * 2, &[&burst]);
    let last = scene.come(REQUESTS_PER_TURN, Kind::Own);
    scene.turn_after(Duration::ZERO, &[&burst]);
    assert_eq!(shed(&last), 0);
}

/// Some of the newest are shed once the first have waited too long for half a second, until they no longer do.
#[test]
fn overload_begins_and_ends() {
    let mut scene = Scene::new(1000);
    let burst = scene.come(20 * REQUESTS_PER_TURN, Kind::Own);
    // Hardly any more requests may be under way.
    while scene.now + STALL_MIN <= scene.queue.shedding.short_at.get() + OVERLOAD_AFTER {
        scene.room.set(1 + scene.room.get() % 2);
        scene.turn_after(STALL_MIN, &[&burst]);
    }
    let pause = scene.queue.shedding.short_at.get() + OVERLOAD_AFTER - scene.now;
    scene.turn_after(pause, &[&burst]);
    scene.room.set(1000);
    let last = scene.come(REQUESTS_PER_TURN, Kind::Own);
    scene.turn_after(Duration::ZERO, &[&burst]);
    assert_eq!(shed(&last), 0, "a short burst is served");
    scene.turn_after(Duration::from_millis(1), &[&burst]);
    let share = REQUESTS_PER_TURN / SERVED_PER_SHED;
    assert_eq!(shed(&last), share);
    assert_eq!(shed(&last[REQUESTS_PER_TURN - share..]), share, "the newest are shed first");
    scene.turn_after(SHED_WAIT_MAX, &[&burst]);
    assert_eq!(shed(&burst) + shed(&last), share, "those that have waited are not shed");
    while burst.iter().chain(&last).any(|state| state.phase.get() == Phase::Queued) {
        scene.turn_after(Duration::ZERO, &[&burst, &last]);
    }
    assert_eq!(shed(&burst) + shed(&last), share);
    assert!(!scene.queue.shedding.is_overloaded());
}

/// Even if hardly any request completes, new ones are shed at once.
#[test]
fn shedding_continues_without_room() {
    let mut scene = Scene::new(0);
    scene.come(REQUESTS_PER_TURN, Kind::Own);
    let first = scene.come(1, Kind::Own);
    let turn = |scene: &mut Scene, pause| {
        // A request has just completed.
        scene.queue.last_room.set(((scene.queue.room)(), scene.now + pause));
        scene.turn_after(pause, &[]);
    };
    for _ in 0..=(QUEUE_WAIT_MAX + OVERLOAD_AFTER).as_millis() / STALL_MIN.as_millis() + 1 {
        turn(&mut scene, STALL_MIN);
    }
    let last = scene.come(2, Kind::Own);
    turn(&mut scene, SHED_INTERVAL_MAX);
    turn(&mut scene, Duration::ZERO);
    assert_eq!((shed(&first), shed(&last)), (0, 1));
    turn(&mut scene, SHED_INTERVAL_MAX);
    assert_eq!((shed(&first), shed(&last)), (0, 2));
}
