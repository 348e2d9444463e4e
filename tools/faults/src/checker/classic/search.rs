//! The search for an order: Wing and Gong's, with Lowe's memory of what was tried.
//!
//! It takes the operations in the order of their calls, each as early as what it
//! was told allows, and goes back when one that is over fits nowhere. Which
//! operations were taken, together with the state they left, is remembered, and
//! not tried twice.
//!
//! It is our own because `todc-utils`, which has the same search, knows no limit of
//! steps, no operation that may be left out, and only one state to start from. The
//! tests hold the two against each other.

use std::collections::HashSet;

/// What one operation did to a key, or saw of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It has this value now.
    Write(u32),
    /// The same, and it was missing before.
    WriteIfMissing(u32),
    /// It was there, and is deleted now.
    Delete,
    /// It has this value, or is missing.
    Read(Option<u32>),
    /// It is there.
    SeePresent,
}

/// What is known of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Nothing: whatever is seen fits.
    Anything,
    /// It is missing.
    Missing,
    /// It has this value.
    Value(u32),
}

/// One operation on a key.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// Its place in the history.
    pub operation: usize,
    /// When it was called.
    pub called_ns: u64,
    /// When it was over; `None`: it may happen at any time after its call, or never.
    pub returned_ns: Option<u64>,
    /// What it did.
    pub action: Action,
    /// A write of unknown outcome may have set the key just before.
    pub may_be_present: bool,
    /// A deletion of unknown outcome may have removed the key just before.
    pub may_be_missing: bool,
}

impl Event {
    /// An event that no write of unknown outcome goes before.
    pub fn new(operation: usize, called_ns: u64, returned_ns: Option<u64>, action: Action) -> Self {
        Event { operation, called_ns, returned_ns, action, may_be_present: false, may_be_missing: false }
    }

    /// When it was over; the end of time if that is not known.
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

    /// The state after it, if it can be done on this one.
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

/// What a search found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// An order that explains everything.
    Order,
    /// That there is none. The best attempt could not place this event.
    NoOrder { stuck: usize },
    /// Nothing, within the steps it may take.
    TooManySteps,
}

/// Searches for an order of the events that begins in a state.
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
    /// Which events were taken, one bit each.
    taken: Vec<u64>,
    /// What was taken together with the state after it, each once.
    tried: HashSet<(Box<[u64]>, State)>,
    /// The events taken so far.
    way: Vec<Taken>,
    longest: usize,
    stuck: usize,
}

/// An event that was taken.
struct Taken {
    event: usize,
    before: State,
    /// It left the state as it was, so to take it at once can do no harm, and to
    /// take it later no good.
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

    /// Takes an event, if what it was told fits the state and this was not tried before.
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

    /// Takes all events under way that fit the state and leave it as it is.
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
                // What was behind its end may be under way now.
                cursor = self.line.first();
            } else {
                cursor = self.line.after(point);
            }
        }
    }

    /// Puts back what was taken last, up to an event that could be taken later instead.
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

/// A moment at which an event begins or ends.
#[derive(Clone, Copy)]
enum Point {
    Call(usize),
    Return(usize),
}

/// All moments by time, linked, so that events can be taken out and put back.
///
/// Invariant: events are put back in the opposite order of that in which they were taken.
struct TimeLine {
    points: Vec<Point>,
    /// By point; the last one stands for the ends of the line.
    next: Vec<usize>,
    previous: Vec<usize>,
    call_of: Vec<usize>,
    return_of: Vec<Option<usize>>,
}

impl TimeLine {
    fn of(events: &[Event]) -> Self {
        // At one moment calls go first: of two that touch neither was before the other.
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
