//! Real time: what was over before an operation was called is before it in the order.
//!
//! Rule: for operations a and b of which a returned before b was called, a's
//! revision is not above b's, and is below it if b changed something; a write of
//! unknown outcome that is found in the order is such a b, and never such an a. No
//! operation, stale reads too, is answered at a revision that holds a write which
//! had not been called when the answer came.
//!
//! Sound and complete for a store with revisions: sorted by revision, each write
//! before the reads of its revision, the operations then have an order that keeps
//! real time and in which each sees the state it was told. Stale reads promise
//! nothing about what was over, and are no a and no b. Of two that touch in time
//! neither was before the other.

use std::cmp::Reverse;

use super::evaluate::written_as_told;
use super::order::Order;
use super::report::{Kind, Report};
use super::unknown::Owners;
use crate::history::{Answer, Call, Consistency, History, Operation, Outcome};

/// For each operation, which of those that were over when it was called has the
/// highest revision.
pub struct Floors {
    witnesses: Vec<Option<(u64, usize)>>,
}

impl Floors {
    /// Sweeps over the operations by time.
    pub fn of(history: &History) -> Self {
        let operations = &history.operations;
        let mut by_call: Vec<usize> = (0..operations.len()).collect();
        by_call.sort_by_key(|index| operations[*index].called_ns);
        let revision_of = |index: &usize| linearizable_answer(&operations[*index]).map(|answer| answer.revision);
        let mut by_return: Vec<usize> = by_call.iter().copied().filter(|index| revision_of(index).is_some()).collect();
        by_return.sort_by_key(|index| Reverse(operations[*index].returned_ns));
        let mut highest: Option<(u64, usize)> = None;
        let mut witnesses = vec![None; operations.len()];
        for index in by_call {
            while let Some(over) = by_return.last().copied()
                && operations[over].returned_ns < operations[index].called_ns
            {
                by_return.pop();
                let revision = revision_of(&over).unwrap_or_default();
                if highest.is_none_or(|(before, _)| before < revision) {
                    highest = Some((revision, over));
                }
            }
            witnesses[index] = highest;
        }
        Floors { witnesses }
    }

    /// The highest revision among the operations that were over when this one was called.
    pub fn revision(&self, index: usize) -> u64 {
        self.witnesses[index].map_or(0, |(revision, _)| revision)
    }

    fn witness<'a>(&self, history: &'a History, index: usize) -> Option<&'a Operation> {
        self.witnesses[index].map(|(_, witness)| &history.operations[witness])
    }
}

/// The answer of an operation that promises to keep real time.
fn linearizable_answer(operation: &Operation) -> Option<&Answer> {
    let stale = matches!(
        operation.call,
        Call::Get { consistency: Consistency::Stale, .. } | Call::List { consistency: Consistency::Stale, .. }
    );
    match &operation.outcome {
        Outcome::Done(answer) if !stale => Some(answer),
        _ => None,
    }
}

/// Checks all operations against those that were over before.
pub fn check(history: &History, floors: &Floors, owners: &Owners, report: &mut Report) {
    for (index, operation) in history.operations.iter().enumerate() {
        let placed = match &operation.outcome {
            Outcome::Done(_) => linearizable_answer(operation)
                .map(|answer| (answer.revision, !written_as_told(&operation.call, &answer.result).is_empty())),
            Outcome::NotApplied => None,
            Outcome::Unknown => owners.revision_of(index).map(|revision| (revision, true)),
        };
        let (Some((revision, changed)), Some(over)) = (placed, floors.witness(history, index)) else { continue };
        let floor = floors.revision(index);
        if revision < floor || (changed && revision == floor) {
            report.violation(Kind::OutOfOrder, || {
                format!("{operation} has revision {revision}, and was called after {over} was over")
            });
        }
    }
}

/// Checks that no answer shows a write before it was called.
pub fn check_future(history: &History, order: &Order, owners: &Owners, report: &mut Report) {
    // By revision: of all writes up to there the one that was called last.
    let mut called_last: Vec<Option<usize>> = Vec::with_capacity(order.changes().len());
    let mut last: Option<usize> = None;
    for revision in order.revisions() {
        if let Some(owner) = owners.owner_of(revision) {
            let called = |index: usize| history.operations[index].called_ns;
            if last.is_none_or(|last| called(last) < called(owner)) {
                last = Some(owner);
            }
        }
        called_last.push(last);
    }
    for operation in &history.operations {
        let Outcome::Done(answer) = &operation.outcome else { continue };
        let known = answer.revision.min(order.last_revision());
        let Some(place) = known.checked_sub(history.revision_before.saturating_add(1)) else { continue };
        let Some(writer) = called_last.get(place as usize).copied().flatten() else { continue };
        let writer = &history.operations[writer];
        if operation.returned_ns < writer.called_ns {
            report.violation(Kind::FromTheFuture, || format!("{operation} came before {writer} was called"));
        }
    }
}
