//! Real time: an operation that returned before another was called precedes it in the order.
//!
//! Rule: if operation a returned before b was called, the revision of a is not above that of b, and is below
//! it if b changed something. A write of unknown outcome that is found in the order can be b, but never a. No
//! operation, including stale reads, returns a revision with a write that had not been called when the
//! response arrived.
//!
//! Sound and complete for a store with revisions: sorted by revision, with each write before the reads of its
//! revision, the operations have an order that respects real time and in which each sees the state that its
//! response reports. Stale reads guarantee nothing about earlier operations, and are neither a nor b. Of two
//! operations that touch in time, neither precedes the other.

use std::cmp::Reverse;

use super::evaluate::written_as_told;
use super::order::Order;
use super::report::{Kind, Report};
use super::unknown::Owners;
use crate::history::{Answer, Call, Consistency, History, Operation, Outcome};

/// For each operation, the one with the highest revision among those that had returned when it was called.
pub struct Floors {
    witnesses: Vec<Option<(u64, usize)>>,
}

impl Floors {
    /// Scans the operations by time.
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

    /// The highest revision among the operations that had returned when this one was called.
    pub fn revision(&self, index: usize) -> u64 {
        self.witnesses[index].map_or(0, |(revision, _)| revision)
    }

    fn witness<'a>(&self, history: &'a History, index: usize) -> Option<&'a Operation> {
        self.witnesses[index].map(|(_, witness)| &history.operations[witness])
    }
}

/// The response of an operation that guarantees real-time order.
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

/// Checks all operations against those that had returned before.
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
                format!("{operation} has revision {revision}, but was called after {over} had returned")
            });
        }
    }
}

/// Checks that no response shows a write before it was called.
pub fn check_future(history: &History, order: &Order, owners: &Owners, report: &mut Report) {
    // For each revision, the write that was called last among all up to it.
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
            report.violation(Kind::FromTheFuture, || format!("{operation} returned before {writer} was called"));
        }
    }
}
