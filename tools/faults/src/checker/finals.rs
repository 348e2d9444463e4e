//! The nodes' states at the end.
//!
//! Rule: all nodes have the same revision, which is not below any revision that a response reported. They
//! hold exactly the state that the order produces from an empty store, and their hashes are equal.
//!
//! Sound: the final states are read after all faults are healed, each node has caught up, and all clients
//! have stopped writing.

use std::collections::BTreeMap;

use super::order::{Order, record_of};
use super::reads::first_difference;
use super::report::{Kind, Report};
use crate::history::{FinalState, History, Operation, Outcome, Record};

/// Checks the final states.
pub fn check(history: &History, order: &Order, report: &mut Report) {
    let Some(first) = history.finals.first() else { return };
    let highest = highest_answered(history);
    let mut states: BTreeMap<u64, BTreeMap<&str, Record>> = BTreeMap::new();
    for end in &history.finals {
        let FinalState { node, revision, .. } = end;
        if end.revision != first.revision {
            report.violation(Kind::FinalRevision, || {
                format!("node {node} ends at revision {revision}, and node {} at {}", first.node, first.revision)
            });
        }
        if let Some((answered, operation)) = highest
            && *revision < answered
        {
            report.violation(Kind::FinalRevision, || {
                format!("node {node} ends at revision {revision}, but it was at {answered}: {operation}")
            });
        }
        if *revision > order.last_revision() {
            continue;
        }
        let state = states.entry(*revision).or_insert_with(|| state_at(order, *revision));
        let told = end.records.iter().map(|(key, record)| (&**key, record));
        let right = state.iter().map(|(key, record)| (*key, record));
        if let Some(difference) = first_difference(told, right) {
            report.violation(Kind::FinalState, || format!("on node {node} at revision {revision} {difference}"));
        }
    }
    check_hashes(history, report);
}

fn check_hashes(history: &History, report: &mut Report) {
    let Some((first, others)) = history.finals.split_first() else { return };
    for other in others.iter().filter(|other| other.hash != first.hash) {
        report.violation(Kind::FinalHash, || {
            format!("node {} has {}, and node {} has {}", other.node, other.hash, first.node, first.hash)
        });
    }
}

fn highest_answered(history: &History) -> Option<(u64, &Operation)> {
    let answered = history.operations.iter().filter_map(|operation| match &operation.outcome {
        Outcome::Done(answer) => Some((answer.revision, operation)),
        _ => None,
    });
    answered.max_by_key(|(revision, _)| *revision)
}

fn state_at<'a>(order: &Order<'a>, revision: u64) -> BTreeMap<&'a str, Record> {
    let mut state = BTreeMap::new();
    for change in order.changes().iter().take_while(|change| change.revision <= revision) {
        match record_of(change) {
            Some(record) => state.insert(&*change.key, record),
            None => state.remove(&*change.key),
        };
    }
    state
}
