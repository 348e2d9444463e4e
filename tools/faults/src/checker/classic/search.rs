//! The search for an order: the algorithm of Wing and Gong with Lowe's memory of tried states.
//!
//! It places the operations in the order of their calls, each as early as its result allows, and backtracks
//! when an operation that has returned fits nowhere. Each set of placed operations is remembered together
//! with the resulting state, and not tried twice.
//!
//! We have our own implementation because that of `todc-utils` has no limit on steps, no optional operations,
//! and only one initial state. The tests compare the two.

use std::collections::HashSet;

/// The effect of one operation on a key, or its observation of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Sets this value.
    Write(u32),
    /// Sets this value; the key was missing before.
    WriteIfMissing(u32),
    /// Deletes the key, which existed.
    Delete,
    /// Observes this value, or that the key is missing.
    Read(Option<u32>),
    /// Observes that the key exists.
    SeePresent,
}

/// Knowledge of a key's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Unknown: every observation is possible.
    Anything,
    /// The key is missing.
    Missing,
    /// The key has this value.
    Value(u32),
}

/// One operation on a key.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// Its index in the history.
    pub operation: usize,
    /// When it was called.
    pub called_ns: u64,
    /// When it returned. `None`: it may take effect at any time after its call, or never.
    pub returned_ns: Option<u64>,
    /// Its effect or observation.
    pub action: Action,
    /// A write of unknown outcome may have set the key just before.
    pub may_be_present: bool,
    /// A deletion of unknown outcome may have removed the key just before.
    pub may_be_missing: bool,
}

impl Event {
    /// An event that no write of unknown outcome precedes.
    pub fn new(operation: usize, called_ns: u64, returned_ns: Option<u64>, action: Action) -> Self {
        Event { operation, called_ns, returned_ns, action, may_be_present: false, may_be_missing: false }
    }

    /// When it returned; the end of time if that is unknown.
    pub fn over_ns(&self) -> u64 {
        self.returned_ns.unwrap_or(u64::MAX)
    }

    /// The value that it writes.
    pub fn written(&self) -> Option<u32> {
        match self.action {
            Action::Write(value) | Action::WriteIfMissing(value) => Some(value),
            Action::Delete | Action::Read(_) | Action::SeePresent => None,
        }
    }

    /// The state after the event, if the event is possible in this state.
    fn apply(&self, state: State) -> Option<State> {
        let missing = self.may_be_missing || matches!(state, State::Missing | State::Anything);
        let present = self.may_be_present || matches!(state, State::Value(_) | State::Anything);
        match self.action {
            Action::Write(value) => Some(State::Value(value)),
            Action::WriteIfMissing(value) => missing.then_some(State::Value(value)),
            Action::Delete => present.then_some(State::Missing),
            Action::Read(None) => missing.then_some(State::Missing),
            Action::Read(Some(value)) => {
                (state == State::Value(value) || state == State::Anything).then_some(State::Value(value))
            }
            Action::SeePresent => match state {
                State::Value(_) | State::Anything => Some(state),
                State::Missing => present.then_some(State::Anything),
            },
        }
    }
}

/// The result of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// An order that explains all events.
    Order,
    /// No order exists. The best attempt could not place this event.
    NoOrder { stuck: usize },
    /// The search reached its limit of steps.
    TooManySteps,
}

/// Searches for an order of the events, starting from a state.
pub fn search(start: State, events: &[Event], steps_max: u64) -> Found {
    let mut search = Search::of(start, events);
    let mut cursor = search.line.first();
    for _ in 0..steps_max {
        let Some(point) = cursor else { return Found::Order };
        cursor = match search.line.points[point] {
            Point::Call(event) => {
                if search.try_event(event) {
                    search.take_what_only_looks();
                    search.line.first()
                } else {
                    search.line.after(point)
                }
            }
            Point::Return(event) => match search.go_back(event) {
                Some(last) => search.line.after(search.line.call_of[last]),
                None => return Found::NoOrder { stuck: search.stuck },
            },
        };
    }
    Found::TooManySteps
}

struct Search<'a> {
    events: &'a [Event],
    line: TimeLine,
    state: State,
    /// The placed events, one bit each.
    taken: Vec<u64>,
    /// Sets of placed events, each with the resulting state.
    tried: HashSet<(Box<[u64]>, State)>,
    /// The placed events, in order.
    way: Vec<Taken>,
    longest: usize,
    stuck: usize,
}

/// A placed event.
struct Taken {
    event: usize,
    before: State,
    /// The event did not change the state. Placing it at once does no harm, and placing it later gains
    /// nothing.
    only_looked: bool,
}

impl<'a> Search<'a> {
    fn of(start: State, events: &'a [Event]) -> Self {
        let mut search = Search {
            events,
            line: TimeLine::of(events),
            state: start,
            taken: vec![0; events.len().div_ceil(64)],
            tried: HashSet::new(),
            way: Vec::new(),
            longest: 0,
            stuck: 0,
        };
        search.take_what_only_looks();
        search
    }

    /// Places an event if its result fits the state and the resulting set was not tried before.
    fn try_event(&mut self, event: usize) -> bool {
        let Some(next) = self.events[event].apply(self.state) else { return false };
        self.flip(event);
        if !self.tried.insert((self.taken.clone().into_boxed_slice(), next)) {
            self.flip(event);
            return false;
        }
        self.way.push(Taken { event, before: self.state, only_looked: false });
        self.state = next;
        self.line.take(event);
        true
    }

    /// Places all events in progress that fit the state without changing it.
    fn take_what_only_looks(&mut self) {
        let mut cursor = self.line.first();
        while let Some(point) = cursor {
            let Point::Call(event) = self.line.points[point] else { break };
            let Event { action, .. } = self.events[event];
            let looks = matches!(action, Action::Read(_) | Action::SeePresent);
            if looks && self.events[event].apply(self.state) == Some(self.state) {
                self.flip(event);
                self.way.push(Taken { event, before: self.state, only_looked: true });
                self.line.take(event);
                // Events behind the end of this one may be in progress now.
                cursor = self.line.first();
            } else {
                cursor = self.line.after(point);
            }
        }
    }

    /// Removes placed events, up to one that could be placed later instead.
    fn go_back(&mut self, stuck: usize) -> Option<usize> {
        if self.way.len() >= self.longest {
            (self.longest, self.stuck) = (self.way.len(), stuck);
        }
        loop {
            let Taken { event, before, only_looked } = self.way.pop()?;
            self.flip(event);
            self.state = before;
            self.line.put_back(event);
            if !only_looked {
                return Some(event);
            }
        }
    }

    fn flip(&mut self, event: usize) {
        self.taken[event / 64] ^= 1 << (event % 64);
    }
}

/// The beginning or end of an event.
#[derive(Clone, Copy)]
enum Point {
    Call(usize),
    Return(usize),
}

/// All beginnings and ends by time, linked so that events can be removed and reinserted.
///
/// Invariant: events are reinserted in the reverse order of their removal.
struct TimeLine {
    points: Vec<Point>,
    /// By point; the last one is the end of the list.
    next: Vec<usize>,
    previous: Vec<usize>,
    call_of: Vec<usize>,
    return_of: Vec<Option<usize>>,
}

impl TimeLine {
    fn of(events: &[Event]) -> Self {
        // At the same time, calls come first: of two operations that touch in time neither precedes the
        // other.
        let mut sorted: Vec<(u64, bool, usize)> = Vec::with_capacity(events.len() * 2);
        for (event, Event { called_ns, returned_ns, .. }) in events.iter().enumerate() {
            sorted.push((*called_ns, false, event));
            if let Some(returned_ns) = returned_ns {
                sorted.push((*returned_ns, true, event));
            }
        }
        sorted.sort_unstable();
        let (mut call_of, mut return_of) = (vec![0; events.len()], vec![None; events.len()]);
        let mut points = Vec::with_capacity(sorted.len());
        for (place, (_, is_return, event)) in sorted.into_iter().enumerate() {
            points.push(if is_return { Point::Return(event) } else { Point::Call(event) });
            if is_return {
                return_of[event] = Some(place);
            } else {
                call_of[event] = place;
            }
        }
        let ends = points.len();
        let next = (1..=ends).chain([0]).collect();
        let previous = [ends].into_iter().chain(0..ends).collect();
        TimeLine { points, next, previous, call_of, return_of }
    }

    fn first(&self) -> Option<usize> {
        self.after(self.points.len())
    }

    fn after(&self, point: usize) -> Option<usize> {
        let next = self.next[point];
        (next < self.points.len()).then_some(next)
    }

    fn take(&mut self, event: usize) {
        self.unlink(self.call_of[event]);
        if let Some(point) = self.return_of[event] {
            self.unlink(point);
        }
    }

    fn put_back(&mut self, event: usize) {
        if let Some(point) = self.return_of[event] {
            self.link(point);
        }
        self.link(self.call_of[event]);
    }

    fn unlink(&mut self, point: usize) {
        let (previous, next) = (self.previous[point], self.next[point]);
        self.next[previous] = next;
        self.previous[next] = previous;
    }

    fn link(&mut self, point: usize) {
        let (previous, next) = (self.previous[point], self.next[point]);
        self.next[previous] = point;
        self.previous[next] = point;
    }
}
