//! The classic search, on its own and compared with another implementation.

use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::{Action::Call as Called, Action::Response, History as TodcHistory};
use todc_utils::specifications::Specification;

use super::simulate::{Settings, Simulation, text};
use crate::checker::classic;
use crate::checker::classic::search::{Action, Event, Found, State, search};
use crate::checker::report::{Kind, Report, Verdict};
use crate::history::{Answer, Call, CallResult, Consistency, History, Operation, Outcome, Record};

/// A register for `todc-utils` that begins as missing.
struct Register;

impl Specification for Register {
    type State = Option<u32>;
    type Operation = Action;

    fn init() -> Self::State {
        None
    }

    fn apply(operation: &Action, state: &Self::State) -> (bool, Self::State) {
        match operation {
            Action::Write(value) => (true, Some(*value)),
            Action::WriteIfMissing(value) => (state.is_none(), Some(*value)),
            Action::Delete => (state.is_some(), None),
            Action::Read(value) => (value == state, *state),
            Action::SeePresent => (state.is_some(), *state),
        }
    }
}

fn todc_finds_an_order(events: &[Event]) -> bool {
    let mut actions = Vec::new();
    for (process, event) in events.iter().enumerate() {
        actions.push((event.called_ns, false, (process, Called(event.action))));
        actions.push((event.over_ns(), true, (process, Response(event.action))));
    }
    actions.sort_by_key(|(at_ns, is_return, _)| (*at_ns, *is_return));
    let actions = actions.into_iter().map(|(_, _, action)| action).collect();
    WGLChecker::<Register>::is_linearizable(TodcHistory::from_actions(actions))
}

fn random_event(random: &mut fastrand::Rng, operation: usize) -> Event {
    let called_ns = random.u64(0..60);
    let value = random.u32(0..4);
    let action = match random.u8(0..8) {
        0..2 => Action::Write(value),
        2 => Action::WriteIfMissing(value),
        3 => Action::Delete,
        4 => Action::Read(None),
        5 => Action::SeePresent,
        _ => Action::Read(Some(value)),
    };
    Event::new(operation, called_ns, Some(called_ns + random.u64(1..30)), action)
}

/// The search agrees with that of `todc-utils`.
///
/// Method: 20,000 random histories of up to eight operations, right or wrong; both results must be frequent.
#[test]
fn agrees_with_todc() {
    let mut random = fastrand::Rng::with_seed(1);
    let mut orders = 0;
    for run in 0..20_000 {
        let events: Vec<Event> =
            (0..random.usize(1..9)).map(|operation| random_event(&mut random, operation)).collect();
        let expected = todc_finds_an_order(&events);
        let found = search(State::Missing, &events, 1_000_000);
        assert_eq!(found == Found::Order, expected, "run {run}: {found:?} for {events:?}");
        orders += u32::from(expected);
    }
    assert!((2000..18_000).contains(&orders), "{orders} have an order");
}

/// A search that reaches its limit of steps says so.
#[test]
fn steps_are_bounded() {
    let mut events: Vec<Event> =
        (0..30).map(|number| Event::new(0, number.into(), Some(1000), Action::Write(number))).collect();
    events.push(Event::new(0, 50, Some(60), Action::Read(Some(99))));
    assert_eq!(search(State::Missing, &events, 10_000), Found::TooManySteps);
}

/// A write of unknown outcome is placed, or left out.
#[test]
fn unknown_writes() {
    let read = |value, called_ns| Event::new(0, called_ns, Some(called_ns + 1), Action::Read(value));
    let unknown = Event::new(0, 5, None, Action::Write(1));
    let late = [unknown, read(None, 10), read(Some(1), 20), read(Some(1), 30)];
    assert_eq!(search(State::Missing, &late, 1000), Found::Order);
    assert_eq!(search(State::Missing, &[unknown, read(None, 10)], 1000), Found::Order);
    let back = [unknown, read(Some(1), 10), read(None, 20)];
    assert_eq!(search(State::Missing, &back, 1000), Found::NoOrder { stuck: 2 });
    let early = [unknown, read(Some(1), 1)];
    assert_eq!(search(State::Missing, &early, 1000), Found::NoOrder { stuck: 1 });
}

fn settings(seed: u64) -> Settings {
    Settings {
        operations: 400,
        clients: 1 + seed as u32 % 6,
        keys: 2,
        lists: 0,
        stale_states: 0,
        unknown: seed % 4,
        not_applied: 3,
        whole_lists: false,
        revision_before: 0,
    }
}

/// The history without its revisions: all are 0.
fn without_revisions(mut history: History) -> History {
    for operation in &mut history.operations {
        if let Outcome::Done(answer) = &mut operation.outcome {
            answer.revision = 0;
            if let CallResult::Get(Some(record)) = &mut answer.result {
                (record.revision, record.create_revision, record.version) = (0, 0, 0);
            }
        }
    }
    history
}

fn classic_report(history: &History) -> Report {
    let mut report = Report::default();
    classic::check(history, &mut report);
    report
}

/// Reads of overwritten values are found without revisions.
///
/// Method: simulated runs are right after their revisions are removed; with an additional read at the end, of
/// a value that a later write had replaced, they are not.
#[test]
fn stale_read_without_revisions() {
    for seed in 0..100 {
        let mut history = without_revisions(Simulation::run(seed, settings(seed)));
        let report = classic_report(&history);
        assert_eq!(report.verdict(), Verdict::Linearizable, "seed {seed}: {report}");
        let puts = history.operations.iter().filter_map(|operation| match (&operation.call, &operation.outcome) {
            (Call::Put { key, value, .. }, Outcome::Done(Answer { result: CallResult::Put { .. }, .. })) => {
                Some((key.clone(), value.clone()))
            }
            _ => None,
        });
        let (key, value) = puts.into_iter().next().unwrap();
        let last_ns = history.operations.iter().map(|operation| operation.returned_ns).max().unwrap();
        let mut add = |called_ns: u64, call: Call, result: CallResult| {
            let outcome = Outcome::Done(Answer { revision: 0, result });
            history.operations.push(Operation {
                client: 0,
                node: 1,
                called_ns,
                returned_ns: called_ns + 1,
                call,
                outcome,
            });
        };
        let put = Call::Put { key: key.clone(), value: text("newer"), condition: None };
        add(last_ns + 10, put, CallResult::Put { version: 0 });
        let record = Record { value, revision: 0, create_revision: 0, version: 0 };
        add(last_ns + 20, Call::Get { key, consistency: Consistency::Linearizable }, CallResult::Get(Some(record)));
        let report = classic_report(&history);
        assert_eq!(report.violation_counts.get(&Kind::NotLinearizable), Some(&1), "seed {seed}: {report}");
    }
}

/// A read that misses a write is found wherever it is, in most runs.
///
/// Method: in simulated runs one linearizable read of a value becomes one of a missing key. Some of these are
/// right by chance, because a deletion was in progress.
#[test]
fn lost_value_without_revisions() {
    let mut found = 0;
    for seed in 0..100 {
        let mut history = without_revisions(Simulation::run(seed, Settings { unknown: 0, ..settings(seed) }));
        let mut reads = history.operations.iter_mut().filter_map(|operation| {
            let linearizable = matches!(operation.call, Call::Get { consistency: Consistency::Linearizable, .. });
            match &mut operation.outcome {
                Outcome::Done(Answer { result: CallResult::Get(record), .. }) if linearizable && record.is_some() => {
                    Some(record)
                }
                _ => None,
            }
        });
        *reads.nth(10).unwrap() = None;
        found += u32::from(classic_report(&history).verdict() == Verdict::Violated);
    }
    assert!(found > 60, "{found} of 100 found");
}
