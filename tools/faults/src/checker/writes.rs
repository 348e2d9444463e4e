//! Compares every write with the order, and the order with every write.
//!
//! Rule: an acknowledged write is in the order at its revision, with its keys and values and nothing else,
//! and had the right effect on the state before (see [`super::evaluate`]). Every other revision is the work
//! of one operation of unknown outcome (see [`super::unknown`]).
//!
//! Sound: a store that acknowledges a write has assigned it the revision in the response, and assigns that
//! revision to no other write.

use std::collections::HashMap;

use super::describe;
use super::evaluate::{evaluate, is_written, written_as_told};
use super::order::Order;
use super::real_time::Floors;
use super::report::{Kind, Report};
use super::unknown::{Owners, Unknown};
use crate::history::{Answer, CallResult, History, Operation, Outcome};

/// Finds the operation of each revision, and checks that both agree.
pub fn check<'a>(history: &'a History, order: &mut Order<'a>, floors: &Floors, report: &mut Report) -> Owners {
    let claims = claims_of(history, order, report);
    let mut unknown = Unknown::of(history, floors);
    for revision in order.revisions() {
        let claim = claims.get(&revision).copied();
        if revision == order.last_revision() && is_cut(history, order, &unknown, claim) {
            report.doubt(|| format!("the watches end in the middle of revision {revision}"));
            order.forget_last_revision();
            break;
        }
        match claim {
            Some(index) if is_as_told(&history.operations[index], order, report) => unknown.owners.set(revision, index),
            _ => unknown.explain(revision, order, report),
        }
    }
    report.operations.unknown_applied = unknown.applied;
    unknown.owners
}

/// The acknowledged write of each revision.
fn claims_of(history: &History, order: &Order, report: &mut Report) -> HashMap<u64, usize> {
    let mut claims: HashMap<u64, usize> = HashMap::new();
    for (index, operation) in history.operations.iter().enumerate() {
        let Outcome::Done(Answer { revision, result }) = &operation.outcome else { continue };
        if written_as_told(&operation.call, result).is_empty() {
            continue;
        }
        if *revision <= history.revision_before {
            let first = *order.revisions().start();
            report.violation(Kind::LostWrite, || format!("{operation}, but the first revision is {first}"));
        } else if let Some(other) = claims.insert(*revision, index) {
            let other = &history.operations[other];
            report.violation(Kind::RevisionTwice, || format!("{other} and {operation}"));
        }
    }
    claims
}

/// Whether the order ends in the middle of an operation's changes, because the watches were cut off there.
fn is_cut<'a>(history: &'a History, order: &Order<'a>, unknown: &Unknown<'a>, claim: Option<usize>) -> bool {
    let last = order.last_revision();
    let here = order.at(last);
    let written = |writer: &usize| {
        let operation = &history.operations[*writer];
        match &operation.outcome {
            Outcome::Done(answer) => written_as_told(&operation.call, &answer.result),
            _ => evaluate(order, &operation.call, last - 1).written,
        }
    };
    let is_whole_of = |writer: &usize| is_written(&written(writer), here);
    let is_cut_of = |writer: &usize| {
        let written = written(writer);
        here.len() < written.len() && is_written(&written[..here.len()], here)
    };
    match claim {
        Some(claim) => is_cut_of(&claim),
        None if unknown.deletion(last, order).is_some() => false,
        None => {
            let candidates = unknown.candidates(here);
            !candidates.iter().any(is_whole_of) && candidates.iter().any(is_cut_of)
        }
    }
}

/// Whether an acknowledged write is in the order as its response says.
fn is_as_told(operation: &Operation, order: &Order, report: &mut Report) -> bool {
    let Outcome::Done(answer) = &operation.outcome else { return false };
    let here = order.at(answer.revision);
    if !is_written(&written_as_told(&operation.call, &answer.result), here) {
        report.violation(Kind::LostWrite, || format!("{operation}, but the revision is {}", describe::changes(here)));
        return false;
    }
    let evaluated = evaluate(order, &operation.call, answer.revision - 1);
    if evaluated.result != answer.result {
        let kind = kind_of_difference(&evaluated.result, &answer.result);
        let before = answer.revision - 1;
        report.violation(kind, || {
            format!("{operation}, but on revision {before} it has this effect: {}", evaluated.result)
        });
    }
    true
}

/// The rule that a result breaks if another result is right.
pub fn kind_of_difference(right: &CallResult, told: &CallResult) -> Kind {
    match (right, told) {
        (CallResult::ConditionFailed { .. }, _) => Kind::ConditionIgnored,
        (CallResult::Txn { succeeded: right, .. }, CallResult::Txn { succeeded: told, .. }) if right != told => {
            Kind::WrongBranch
        }
        (CallResult::Get(_), CallResult::Get(_)) => Kind::WrongRead,
        _ => Kind::WrongResult,
    }
}
