//! The effect and result of a call on a known state.
//!
//! Rule: conditions and comparisons are evaluated on the state in which the call is applied. The steps of a
//! transaction are applied one after the other, and each sees the effects of those before it. All changes of
//! a call belong to the next revision.
//!
//! Sound: none of this is up to the store. Two stores that follow the model of [`crate::history`] cannot
//! respond differently.

use std::collections::HashMap;

use super::order::Order;
use crate::history::{
    Call, CallResult, Change, ChangeKind, Comparison, Condition, Operand, Record, Step, StepResult, Text,
};

/// The effect of a call.
#[derive(Debug, PartialEq, Eq)]
pub struct Evaluated<'a> {
    /// The changed keys with their new values; `None` for a deletion.
    pub written: Vec<Written<'a>>,
    /// The result that the client must get.
    pub result: CallResult,
}

/// A key with its new value; `None` for a deletion.
pub type Written<'a> = (&'a Text, Option<&'a Text>);

/// The effect of a call on the state at a revision. Lists are not supported.
pub fn evaluate<'a>(order: &Order, call: &'a Call, revision: u64) -> Evaluated<'a> {
    match call {
        Call::Put { key, value, condition } => conditional(order, key, *condition, revision, |record| {
            let version = record.map_or(1, |record| record.version.saturating_add(1));
            Evaluated { written: vec![(key, Some(value))], result: CallResult::Put { version } }
        }),
        Call::Delete { key, condition } => conditional(order, key, *condition, revision, |record| {
            let written = if record.is_some() { vec![(key, None)] } else { Vec::new() };
            Evaluated { written, result: CallResult::Delete { deleted: record.is_some() } }
        }),
        Call::Txn { compare, success, failure } => {
            let succeeded = compare.iter().all(|comparison| comparison_holds(order, comparison, revision));
            let (written, results) = do_steps(order, if succeeded { success } else { failure }, revision);
            Evaluated { written, result: CallResult::Txn { succeeded, results } }
        }
        Call::Get { key, .. } => {
            Evaluated { written: Vec::new(), result: CallResult::Get(order.record(key, revision)) }
        }
        Call::List { .. } => Evaluated { written: Vec::new(), result: CallResult::List(Vec::new()) },
    }
}

/// What a call wrote, according to its response.
pub fn written_as_told<'a>(call: &'a Call, result: &CallResult) -> Vec<Written<'a>> {
    match (call, result) {
        (Call::Put { key, value, .. }, CallResult::Put { .. }) => vec![(key, Some(value))],
        (Call::Delete { key, .. }, CallResult::Delete { deleted: true }) => vec![(key, None)],
        (Call::Txn { success, failure, .. }, CallResult::Txn { succeeded, results }) => {
            let steps = if *succeeded { success } else { failure };
            let told = steps.iter().zip(results);
            told.filter_map(|(step, result)| match (step, result) {
                (Step::Put { key, value }, _) => Some((key, Some(value))),
                (Step::Delete { key }, StepResult::Delete { deleted: true }) => Some((key, None)),
                _ => None,
            })
            .collect()
        }
        _ => Vec::new(),
    }
}

/// Whether a revision holds exactly these writes. Their order within the revision is up to the store.
pub fn is_written(written: &[Written], changes: &[&Change]) -> bool {
    let is_here = |(key, value): &Written| {
        changes.iter().any(|change| {
            change.key == **key
                && match (&change.kind, value) {
                    (ChangeKind::Put { value: here, .. }, Some(value)) => here == *value,
                    (ChangeKind::Delete, None) => true,
                    _ => false,
                }
        })
    };
    written.len() == changes.len() && written.iter().all(is_here)
}

/// Whether a condition holds for a key with this revision.
pub fn condition_holds(condition: Option<Condition>, found: Option<u64>) -> bool {
    match condition {
        None => true,
        Some(Condition::Missing) => found.is_none(),
        Some(Condition::Revision(revision)) => found == Some(revision),
    }
}

fn conditional<'a>(
    order: &Order,
    key: &str,
    condition: Option<Condition>,
    revision: u64,
    write: impl FnOnce(Option<Record>) -> Evaluated<'a>,
) -> Evaluated<'a> {
    let record = order.record(key, revision);
    let found = record.as_ref().map(|record| record.revision);
    if condition_holds(condition, found) {
        write(record)
    } else {
        Evaluated { written: Vec::new(), result: CallResult::ConditionFailed { found } }
    }
}

fn comparison_holds(order: &Order, comparison: &Comparison, revision: u64) -> bool {
    let record = order.record(&comparison.key, revision);
    match &comparison.operand {
        Operand::Missing => record.is_none(),
        Operand::Value(value) => record.is_some_and(|record| record.value == *value),
        Operand::Revision(revision) => record.is_some_and(|record| record.revision == *revision),
    }
}

fn do_steps<'a>(order: &Order, steps: &'a [Step], before: u64) -> (Vec<Written<'a>>, Vec<StepResult>) {
    let mut changed: HashMap<&str, Option<Record>> = HashMap::new();
    let mut written = Vec::new();
    let mut results = Vec::with_capacity(steps.len());
    for step in steps {
        let (Step::Put { key, .. } | Step::Delete { key } | Step::Get { key }) = step;
        let record = changed.get(&**key).cloned().unwrap_or_else(|| order.record(key, before));
        results.push(match step {
            Step::Put { value, .. } => {
                let revision = before + 1;
                let (create_revision, version) =
                    record.map_or((revision, 1), |record| (record.create_revision, record.version.saturating_add(1)));
                changed.insert(key, Some(Record { value: value.clone(), revision, create_revision, version }));
                written.push((key, Some(value)));
                StepResult::Put
            }
            Step::Delete { .. } => {
                let deleted = record.is_some();
                if deleted {
                    changed.insert(key, None);
                    written.push((key, None));
                }
                StepResult::Delete { deleted }
            }
            Step::Get { .. } => StepResult::Get(record),
        });
    }
    (written, results)
}
