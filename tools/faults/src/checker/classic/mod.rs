//! The classic check: does some order of the operations on a key explain their results?
//!
//! Rule: each key, taken separately, is a register with writes, deletions and reads. The check ignores
//! revisions, so it shares no assumption with the other rules.
//!
//! Sound: a history is linearizable only if its restriction to each key is. (For one key, a transaction is
//! what it does to that key.) The history of a key is cut into windows wherever no operation on it is in
//! progress. The state at a cut is known if a single operation precedes it; otherwise any state is assumed
//! until a read. Writes of unknown outcome may take effect at any later time, or never. If the value of such
//! a write is read, the search places the write; otherwise the write is only visible in that the key exists
//! or is missing, which is then allowed wherever it is possible. If a key is so busy that no cut occurs for
//! long, or if the search takes too long, the history is cut anyway: writes in progress at such a cut count
//! as writes of unknown outcome on both sides, and reads in progress are ignored. Conditions on revisions,
//! lists and stale reads are always ignored. All of these simplifications can only hide violations.

mod projection;
pub(super) mod search;

use std::collections::HashSet;

use self::projection::KeyHistory;
use self::search::{Action, Event, Found, State};
use super::describe::Seconds;
use super::report::{Kind, Report};
use crate::history::History;

/// Maximum number of operations in a window.
const WINDOW_OPERATIONS_MAX: usize = 200;
/// A window whose search takes too many steps is halved, but not below this number of operations.
const WINDOW_OPERATIONS_MIN: usize = 12;
/// Maximum number of steps in the search of a window.
const STEPS_MAX: u64 = 100_000;

/// Searches the windows of all keys.
pub fn check(history: &History, report: &mut Report) {
    for (key, key_history) in projection::keys_of(history) {
        let mut key_check = KeyCheck { key, history: &key_history, report };
        let mut window: Vec<Event> = Vec::new();
        let (mut start, mut end) = (State::Missing, State::Missing);
        for piece in pieces(&key_history.events) {
            if window.len() + piece.len() > WINDOW_OPERATIONS_MAX {
                key_check.check(start, &window, Vec::new(), u64::MAX, WINDOW_OPERATIONS_MAX);
                window.clear();
                start = end;
            }
            window.extend_from_slice(piece);
            end = state_after(piece);
        }
        key_check.check(start, &window, Vec::new(), u64::MAX, WINDOW_OPERATIONS_MAX);
    }
}

/// Splits a key's operations, in the order of their calls, wherever none is in progress.
fn pieces(events: &[Event]) -> impl Iterator<Item = &[Event]> {
    let mut rest = events;
    std::iter::from_fn(move || {
        let mut over_ns = rest.first()?.over_ns();
        let mut length = 1;
        while let Some(next) = rest.get(length)
            && next.called_ns <= over_ns
        {
            over_ns = over_ns.max(next.over_ns());
            length += 1;
        }
        let (piece, after) = rest.split_at(length);
        rest = after;
        Some(piece)
    })
}

/// The state of the key after a piece, as far as it is certain.
fn state_after(piece: &[Event]) -> State {
    match piece {
        [only] => match only.action {
            Action::Write(value) | Action::WriteIfMissing(value) | Action::Read(Some(value)) => State::Value(value),
            Action::Delete | Action::Read(None) => State::Missing,
            Action::SeePresent => State::Anything,
        },
        _ => State::Anything,
    }
}

fn over_ns(window: &[Event]) -> u64 {
    window.iter().map(Event::over_ns).max().unwrap_or_default()
}

/// The check of one key.
struct KeyCheck<'a> {
    key: &'a str,
    history: &'a KeyHistory<'a>,
    report: &'a mut Report,
}

impl KeyCheck<'_> {
    /// Checks events up to a time, in windows of a given size. The events in `under_way` began earlier.
    fn check(&mut self, start: State, events: &[Event], under_way: Vec<Event>, end_ns: u64, size: usize) {
        let (mut start, mut rest, mut under_way) = (start, events, under_way);
        while let Some(first) = rest.first() {
            let (chunk, after) = rest.split_at(rest.len().min(size));
            let chunk_end_ns = after.first().map_or(end_ns, |next| next.called_ns);
            under_way.retain(|event| event.over_ns() >= first.called_ns);
            let before = under_way.clone();
            let (window, cut): (Vec<Event>, Vec<Event>) = chunk.iter().partition(|it| it.over_ns() < chunk_end_ns);
            under_way.extend(cut);
            match search::search(start, &self.with_optional(&window, &under_way), STEPS_MAX) {
                Found::TooManySteps if size / 2 >= WINDOW_OPERATIONS_MIN => {
                    self.check(start, chunk, before, chunk_end_ns, size / 2);
                }
                found => self.report(found, &window),
            }
            start = State::Anything;
            rest = after;
        }
    }

    fn report(&mut self, found: Found, window: &[Event]) {
        let Some(first) = window.first() else { return };
        self.report.classic.windows += 1;
        self.report.classic.operations += window.len() as u64;
        let (key, called, over) = (self.key, Seconds(first.called_ns), Seconds(over_ns(window)));
        let words = || format!("{} operations on {key} from {called} to {over}", window.len());
        match found {
            Found::Order => {}
            Found::NoOrder { stuck } => self.report.violation(Kind::NotLinearizable, || {
                let operation = self.history.operation(&window[stuck]);
                format!("no order explains the {}; the operation without a place may be {operation}", words())
            }),
            Found::TooManySteps => {
                self.report.classic.undecided += 1;
                self.report.doubt(|| format!("the search for an order took too many steps: {}", words()));
            }
        }
    }

    /// A window's events, followed by those that may have taken effect in it.
    fn with_optional(&self, window: &[Event], under_way: &[Event]) -> Vec<Event> {
        let over_ns = over_ns(window);
        let mut events = window.to_vec();
        let mut values: HashSet<u32> = HashSet::new();
        for event in window {
            let Action::Read(Some(value)) = event.action else { continue };
            if values.insert(value) {
                let unknown = self.history.unknown_writes.get(&value).map_or(&[][..], Vec::as_slice);
                let writers = unknown.iter().chain(under_way.iter().filter(|event| event.written() == Some(value)));
                let in_time = writers.filter(|writer| writer.called_ns <= over_ns);
                events.extend(in_time.map(|writer| Event { returned_ns: None, ..*writer }));
            }
        }
        let first_call = |wanted: fn(&Event) -> bool| {
            under_way.iter().filter(|event| wanted(event)).map(|event| event.called_ns).min().unwrap_or(u64::MAX)
        };
        let written_ns = first_call(|event| event.written().is_some());
        let deleted_ns = first_call(|event| event.action == Action::Delete);
        for event in &mut events {
            event.may_be_present |= written_ns <= event.over_ns() && written_ns < u64::MAX;
            event.may_be_missing |= deleted_ns <= event.over_ns() && deleted_ns < u64::MAX;
        }
        events
    }
}
