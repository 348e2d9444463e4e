use std::task::{Context, Waker};

use super::*;
use crate::config::{OVERLOAD_AFTER, REQUESTS_A_REFUSAL};
use crate::network::listener::connection_limits::{Connections, Shares};
use crate::network::listener::connection_state::Phase;

/// A queue, and the time in it.
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

    /// So many connections that have something to read.
    fn come(&self, count: usize, kind: Kind) -> Vec<Rc<ConnectionState>> {
        let places = (0..count).map(|_| {
            let place = Connections::new(Shares::of_clients(1)).open(&self.queue);
            self.read_if_called(&place, kind);
            place
        });
        places.collect()
    }

    fn read_if_called(&self, place: &Rc<ConnectionState>, kind: Kind) {
        self.read_if_called_with(place, kind, "PUT /v1/kv/a HTTP/1.1");
    }

    fn read_if_called_with(&self, place: &Rc<ConnectionState>, kind: Kind, first: &str) {
        let mut context = Context::from_waker(Waker::noop());
        if place.poll_turn_at(|| self.now, &mut context, |_| kind).is_ready() {
            place.note_read(first.as_bytes());
        }
    }

    fn turn_after(&mut self, pause: Duration, crowds: &[&[Rc<ConnectionState>]]) {
        self.now += pause;
        self.queue.begin_turn(self.now);
        crowds.iter().flat_map(|crowd| crowd.iter()).for_each(|place| {
            if matches!(place.phase.get(), Phase::Admitted { .. }) {
                self.read_if_called(place, Kind::Own);
            }
        });
    }
}

fn under_way(crowd: &[Rc<ConnectionState>]) -> usize {
    crowd.iter().filter(|place| matches!(place.phase.get(), Phase::Arriving { .. })).count()
}

fn is_shed(place: &ConnectionState) -> bool {
    matches!(place.phase.get(), Phase::Admitted { is_shed: true, .. } | Phase::Arriving { is_shed: true, .. })
}

fn refused(crowd: &[Rc<ConnectionState>]) -> usize {
    crowd.iter().filter(|place| is_shed(place)).count()
}

/// A turn takes so many, in the order in which they came, and whoever is gone takes no one's turn.
#[test]
fn one_turn_after_another() {
    let mut scene = Scene::new(1000);
    let mut crowd = scene.come(3 * REQUESTS_A_TURN, Kind::Own);
    assert_eq!(under_way(&crowd), REQUESTS_A_TURN);
    scene.turn_after(Duration::ZERO, &[&crowd]);
    assert_eq!(under_way(&crowd), 2 * REQUESTS_A_TURN);
    assert_eq!(under_way(&crowd[..2 * REQUESTS_A_TURN]), 2 * REQUESTS_A_TURN);
    let newcomer = scene.come(1, Kind::Own);
    assert_eq!(under_way(&newcomer), 0, "the line is for all");
    crowd.truncate(2 * REQUESTS_A_TURN);
    scene.turn_after(Duration::ZERO, &[&newcomer]);
    assert_eq!(under_way(&newcomer), 1);
}

/// Nobody is called for whom there is no room, and some are as soon as there is.
#[test]
fn not_too_many_at_once() {
    let mut scene = Scene::new(0);
    scene.come(REQUESTS_A_TURN, Kind::Own);
    let crowd = scene.come(3, Kind::Own);
    assert_eq!(scene.queue.begin_turn(scene.now), Turn::Blocked);
    scene.turn_after(STALL_MIN / 2, &[&crowd]);
    assert_eq!(under_way(&crowd), 0);
    scene.room.set(2);
    assert_eq!(scene.queue.begin_turn(scene.now), Turn::Used);
    scene.room.set(0);
    scene.turn_after(Duration::ZERO, &[&crowd]);
    assert_eq!(under_way(&crowd), 2);
    scene.turn_after(STALL_MIN, &[&crowd]);
    assert_eq!(under_way(&crowd), 3, "when nothing moves, nobody waits for room");
    assert_eq!(scene.queue.begin_turn(scene.now), Turn::Empty);
}

/// What is passed on has its share of each turn, and so have the others; Raft needs none, nor
/// do a few who look how the node is.
#[test]
fn shares() {
    let mut scene = Scene::new(1000);
    scene.come(REQUESTS_A_TURN, Kind::Own);
    let own = scene.come(REQUESTS_A_TURN, Kind::Own);
    let passed_on = scene.come(2 * REQUESTS_A_TURN, Kind::PassedOn);
    assert_eq!(under_way(&scene.come(1, Kind::End)), 1);
    assert_eq!(under_way(&scene.come(1, Kind::Rpc)), 0);
    let node = Connections::new(Shares::of_nodes(1)).open(&scene.queue);
    node.keep_for(1);
    scene.read_if_called(&node, Kind::Rpc);
    assert_eq!(under_way(&[node]), 1);
    assert_eq!(under_way(&scene.come(LOOKS_A_TURN + 1, Kind::Look)), LOOKS_A_TURN);
    scene.turn_after(Duration::ZERO, &[&own, &passed_on]);
    assert_eq!(under_way(&passed_on), PASSED_ON_A_TURN);
    assert_eq!(under_way(&own), REQUESTS_A_TURN - PASSED_ON_A_TURN);
    scene.turn_after(Duration::ZERO, &[&own, &passed_on]);
    scene.turn_after(Duration::ZERO, &[&own, &passed_on]);
    assert_eq!(under_way(&own) + under_way(&passed_on), 3 * REQUESTS_A_TURN, "no turn is wasted");
}

/// With little room each still has its share.
#[test]
fn shares_of_little_room() {
    let mut scene = Scene::new(1000);
    scene.come(REQUESTS_A_TURN, Kind::Own);
    let own = scene.come(3 * REQUESTS_A_TURN, Kind::Own);
    let passed_on = scene.come(3 * REQUESTS_A_TURN, Kind::PassedOn);
    for turn in 0..REQUESTS_A_TURN {
        scene.room.set(1 + turn % 2);
        scene.turn_after(Duration::ZERO, &[&own, &passed_on]);
    }
    let (own, passed_on) = (under_way(&own), under_way(&passed_on));
    assert_eq!(own + passed_on, REQUESTS_A_TURN / 2 * 3);
    assert_eq!(passed_on, REQUESTS_A_TURN / 2 * 3 * PASSED_ON_A_TURN / REQUESTS_A_TURN);
}

/// What a request is, by its first bytes.
#[test]
fn kinds() {
    let rows: [(&str, Kind); 8] = [
        ("", Kind::End),
        ("POST /raft-append HTTP/1.1\r\n", Kind::Rpc),
        ("GET /raft-identity HTTP/1.1\r\n", Kind::Rpc),
        ("GET /metrics HTTP/1.1\r\n", Kind::Look),
        ("HEAD /metrics HTTP/1.1\r\n", Kind::Look),
        ("GET /v1/kv/metrics HTTP/1.1\r\n", Kind::Own),
        ("PUT /v1/kv/a HTTP/1.1\r\nraft-forwarded: 2\r\n\r\n", Kind::PassedOn),
        ("PUT /v1/kv/a HTTP/1.1\r\nhost: raft-forwarded: 2\r\n\r\n", Kind::Own),
    ];
    for (first, kind) in rows {
        assert_eq!(Kind::of(first.as_bytes()), kind, "{first:?}");
    }
}

/// Who has gone before its turn, or has nothing to say when it comes, takes nobody's, and
/// is not refused later for it.
#[test]
fn a_turn_that_is_not_taken() {
    let mut scene = Scene::new(1000);
    scene.come(REQUESTS_A_TURN, Kind::Own);
    let mut crowd = scene.come(4, Kind::Own);
    crowd.remove(0);
    for (place, first) in crowd.iter().zip([Some(""), Some("\r\n"), None]) {
        place.admit_queued(true, true);
        match first {
            Some(first) => place.note_read(first.as_bytes()),
            None => place.note_nothing(),
        }
        assert!(!place.is_late() && matches!(place.phase.get(), Phase::Idle(_)), "{first:?}");
    }
    scene.queue.own.borrow_mut().truncate(1);
    scene.turn_after(Duration::ZERO, &[]);
    assert_eq!(scene.queue.left.get(), REQUESTS_A_TURN);
    scene.read_if_called(&crowd[0], Kind::Own);
    assert!(!crowd[0].begin_request(), "it is not refused");
}

/// A connection that asks several times before it reads takes one turn.
#[test]
fn a_turn_is_taken_once() {
    let scene = Scene::new(1000);
    let place = Connections::new(Shares::of_clients(1)).open(&scene.queue);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..2 {
        assert!(place.poll_turn(&mut context, |_| unreachable!("there is a turn left")).is_ready());
    }
    place.note_read(b"GET / HTTP/1.1");
    assert_eq!(scene.queue.left.get(), REQUESTS_A_TURN - 1);
}

/// What comes from a known node on Raft's thread takes up no turn; from others there it does, and from
/// everybody on the threads of clients.
#[test]
fn nodes_take_no_turn() {
    for (shares, turns) in [(Shares::of_nodes(1), 1), (Shares::of_clients(1), 2)] {
        let scene = Scene::new(1000);
        let place = Connections::new(shares).open(&scene.queue);
        for _ in 0..2 {
            scene.read_if_called_with(&place, Kind::Rpc, "POST /raft-append");
            place.begin_request();
            place.end_request(false);
            place.keep_for(1);
        }
        assert_eq!(scene.queue.left.get(), REQUESTS_A_TURN - turns, "{shares:?}");
    }
}

/// Only a request that has waited for long is late.
#[test]
fn who_is_late() {
    let mut scene = Scene::new(1000);
    scene.come(REQUESTS_A_TURN, Kind::Own);
    for (waited, kind, is_late) in [
        (LINE_WAIT_MAX, Kind::Own, false),
        (LINE_WAIT_MAX + STALL_MIN, Kind::Own, true),
        (LINE_WAIT_MAX + STALL_MIN, Kind::PassedOn, true),
    ] {
        scene.queue.left.set(0);
        let crowd = scene.come(1, kind);
        scene.now += waited;
        scene.queue.begin_turn(scene.now);
        assert_eq!(crowd[0].is_late(), is_late, "{kind:?} after {waited:?}");
        crowd[0].note_read(b"GET / HTTP/1.1");
        assert!(!crowd[0].is_late());
    }
}

/// Turns that take long are no pause: under large requests, too, some are refused.
#[test]
fn long_turns_are_overload() {
    let mut scene = Scene::new(1000);
    let crowd = scene.come(40 * REQUESTS_A_TURN, Kind::Own);
    for _ in 0..=(LINE_WAIT_MAX + OVERLOAD_AFTER).as_millis() / (2 * STALL_MIN).as_millis() {
        scene.turn_after(STALL_MIN * 3, &[&crowd]);
    }
    let last = scene.come(REQUESTS_A_TURN, Kind::Own);
    scene.turn_after(Duration::ZERO, &[&crowd]);
    assert_ne!(refused(&last), 0);
}

/// A process that stood still has not made anybody wait.
#[test]
fn a_pause_is_no_overload() {
    let mut scene = Scene::new(1000);
    let crowd = scene.come(4 * REQUESTS_A_TURN, Kind::Own);
    scene.turn_after(LINE_WAIT_MAX + OVERLOAD_AFTER * 2, &[&crowd]);
    let last = scene.come(REQUESTS_A_TURN, Kind::Own);
    scene.turn_after(Duration::ZERO, &[&crowd]);
    assert_eq!(refused(&last), 0);
}

/// Some of the last are refused once the first have waited for long for half a second, and until they do not.
#[test]
fn overload_begins_and_ends() {
    let mut scene = Scene::new(1000);
    let crowd = scene.come(20 * REQUESTS_A_TURN, Kind::Own);
    // There is room for hardly anybody.
    while scene.now + STALL_MIN <= scene.queue.shedding.short_at.get() + OVERLOAD_AFTER {
        scene.room.set(1 + scene.room.get() % 2);
        scene.turn_after(STALL_MIN, &[&crowd]);
    }
    let pause = scene.queue.shedding.short_at.get() + OVERLOAD_AFTER - scene.now;
    scene.turn_after(pause, &[&crowd]);
    scene.room.set(1000);
    let last = scene.come(REQUESTS_A_TURN, Kind::Own);
    scene.turn_after(Duration::ZERO, &[&crowd]);
    assert_eq!(refused(&last), 0, "a crowd is served");
    scene.turn_after(Duration::from_millis(1), &[&crowd]);
    let share = REQUESTS_A_TURN / REQUESTS_A_REFUSAL;
    assert_eq!(refused(&last), share);
    assert_eq!(refused(&last[REQUESTS_A_TURN - share..]), share, "who came last goes first");
    scene.turn_after(REFUSED_WAIT_MAX, &[&crowd]);
    assert_eq!(refused(&crowd) + refused(&last), share, "who has waited is done");
    while crowd.iter().chain(&last).any(|place| place.phase.get() == Phase::Queued) {
        scene.turn_after(Duration::ZERO, &[&crowd, &last]);
    }
    assert_eq!(refused(&crowd) + refused(&last), share);
    assert!(!scene.queue.shedding.is_overloaded());
}

/// With next to nothing done, whoever comes still hears of it.
#[test]
fn refusals_go_on_without_room() {
    let mut scene = Scene::new(0);
    scene.come(REQUESTS_A_TURN, Kind::Own);
    let first = scene.come(1, Kind::Own);
    let turn = |scene: &mut Scene, pause| {
        // Something moved a moment ago.
        scene.queue.last_room.set(((scene.queue.room)(), scene.now + pause));
        scene.turn_after(pause, &[]);
    };
    for _ in 0..=(LINE_WAIT_MAX + OVERLOAD_AFTER).as_millis() / STALL_MIN.as_millis() + 1 {
        turn(&mut scene, STALL_MIN);
    }
    let last = scene.come(2, Kind::Own);
    turn(&mut scene, REFUSAL_INTERVAL_MAX);
    turn(&mut scene, Duration::ZERO);
    assert_eq!((refused(&first), refused(&last)), (0, 1));
    turn(&mut scene, REFUSAL_INTERVAL_MAX);
    assert_eq!((refused(&first), refused(&last)), (0, 2));
}
