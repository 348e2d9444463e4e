//! Histories that make no sense.

use super::simulate::{Settings, Simulation};
use crate::checker::check;
use crate::history::{CallResult, ChangeKind, History, Outcome, StepResult};

const SETTINGS: Settings = Settings {
    operations: 60,
    clients: 4,
    keys: 3,
    lists: 1,
    stale_states: 5,
    unknown: 20,
    not_applied: 10,
    whole_lists: true,
    revision_before: 1,
};

fn garble_answer(history: &mut History, random: &mut fastrand::Rng, number: u64) {
    let place = random.usize(0..history.operations.len());
    let other = random.usize(0..history.operations.len());
    let outcome = history.operations[other].outcome.clone();
    let operation = &mut history.operations[place];
    match (random.u8(0..6), &mut operation.outcome) {
        (0, _) => operation.called_ns = number,
        (1, _) => operation.returned_ns = number,
        (2, _) => operation.outcome = outcome,
        (_, Outcome::Done(answer)) => match &mut answer.result {
            CallResult::Put { version } => *version = number,
            CallResult::ConditionFailed { found } => *found = Some(number),
            CallResult::Get(Some(record)) => record.revision = number,
            CallResult::List(records) => drop(records.pop()),
            CallResult::Txn { results, .. } if random.bool() => drop(results.pop()),
            CallResult::Txn { results, .. } => results.push(StepResult::Put),
            _ => answer.revision = number,
        },
        _ => {}
    }
}

fn garble_change(history: &mut History, random: &mut fastrand::Rng, number: u64) {
    let Some(watch) = random.choice(history.watches.iter_mut()) else { return };
    let Some(change) = random.choice(watch.iter_mut()) else { return };
    match (random.u8(0..4), &mut change.kind) {
        (0, _) => change.revision = number,
        (1, ChangeKind::Put { version, .. }) => *version = number,
        (2, ChangeKind::Put { create_revision, .. }) => *create_revision = number,
        (_, kind) => *kind = ChangeKind::Delete,
    }
}

/// Whatever a history contains, the checker terminates, and its report can be printed.
///
/// Method: 2,000 simulated runs, each garbled in one to twenty places, including numbers at the ends of their
/// range.
#[test]
fn never_panics() {
    for seed in 0..2000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut history = Simulation::run(seed, SETTINGS);
        for _ in 0..random.u8(1..20) {
            let number = [0, 1, 2, random.u64(0..60), u64::MAX - 1, u64::MAX][random.usize(0..6)];
            match random.u8(0..5) {
                0 => garble_change(&mut history, &mut random, number),
                1 if random.bool() => history.finals[0].revision = number,
                1 => drop(history.finals[1].records.pop()),
                2 if random.u8(0..10) == 0 => history.revision_before = number,
                _ => garble_answer(&mut history, &mut random, number),
            }
        }
        assert!(check(&history).to_string().contains("verdict"));
    }
}
