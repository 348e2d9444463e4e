//! Compares every response to a request that changed nothing with the state at its revision.
//!
//! Rule: a read of a key, a list, a transaction that changed nothing, and a deletion of a missing key return
//! exactly the state that the order produces from an empty store up to the revision of the response. A list
//! contains all keys with its prefix, in order. This includes stale reads: they may be old, but not wrong.
//!
//! A failed condition is judged less strictly. At some revision between the highest one that had been
//! returned when the call was made and the one in the response, the key was as the response says, and the
//! condition does not hold for it. A retried request gets the key found by the first attempt with the
//! revision of the retry.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::describe::found;
use super::evaluate::{condition_holds, evaluate, written_as_told};
use super::order::{Order, record_of};
use super::real_time::Floors;
use super::report::{Kind, Report};
use super::writes::kind_of_difference;
use crate::history::{Answer, Call, CallResult, History, Operation, Outcome, Record, Text};

/// Checks all responses that changed nothing, as far as the order is known.
pub fn check(history: &History, order: &Order, floors: &Floors, report: &mut Report) {
    let mut lists: Vec<List> = Vec::new();
    for (index, operation) in history.operations.iter().enumerate() {
        let Outcome::Done(answer) = &operation.outcome else { continue };
        if answer.revision > order.last_revision() {
            continue;
        }
        match (&operation.call, &answer.result) {
            (Call::List { prefix, .. }, CallResult::List(records)) => {
                lists.push(List { operation, prefix, records, revision: answer.revision });
            }
            (call, CallResult::ConditionFailed { found }) => {
                let first = floors.revision(index).min(answer.revision);
                check_refusal(operation, call, *found, (first, answer.revision), order, report);
            }
            (call, result) if written_as_told(call, result).is_empty() => {
                check_answer(operation, answer, order, report)
            }
            _ => {}
        }
    }
    lists.sort_by_key(|list| list.revision);
    check_lists(&lists, order, report);
}

fn check_answer(operation: &Operation, answer: &Answer, order: &Order, report: &mut Report) {
    let right = evaluate(order, &operation.call, answer.revision).result;
    if right != answer.result {
        let kind = kind_of_difference(&right, &answer.result);
        report.violation(kind, || format!("{operation}, but at revision {} it is {right}", answer.revision));
    }
}

fn check_refusal(
    operation: &Operation,
    call: &Call,
    told: Option<u64>,
    (first, last): (u64, u64),
    order: &Order,
    report: &mut Report,
) {
    let (Call::Put { key, condition, .. } | Call::Delete { key, condition }) = call else {
        report.violation(Kind::WrongRefusal, || format!("{operation}, but the call has no condition"));
        return;
    };
    if condition_holds(*condition, told) {
        report.violation(Kind::WrongRefusal, || format!("{operation}, but the condition holds for that"));
    } else if !order.was_within(key, told, first, last) {
        let record = order.record(key, last);
        report.violation(Kind::WrongRefusal, || {
            format!(
                "{operation}, but it never was so from revision {first} to {last}; at {last} it was {}",
                found(record.as_ref())
            )
        });
    }
}

/// A list in a response.
struct List<'a> {
    operation: &'a Operation,
    prefix: &'a str,
    records: &'a [(Text, Record)],
    revision: u64,
}

/// Scans the order once, and compares each list, by revision, with the state there.
fn check_lists(lists: &[List], order: &Order, report: &mut Report) {
    let mut state: BTreeMap<&str, Record> = BTreeMap::new();
    let mut changes = order.changes().iter().peekable();
    for list in lists {
        while let Some(change) = changes.next_if(|change| change.revision <= list.revision) {
            match record_of(change) {
                Some(record) => state.insert(&change.key, record),
                None => state.remove(&*change.key),
            };
        }
        let from = (Bound::Included(list.prefix), Bound::Unbounded);
        let right = state.range::<str, _>(from).take_while(|(key, _)| key.starts_with(list.prefix));
        let told = list.records.iter().map(|(key, record)| (&**key, record));
        if let Some(difference) = first_difference(told, right.map(|(key, record)| (*key, record))) {
            let (operation, revision) = (list.operation, list.revision);
            report.violation(Kind::WrongList, || format!("{operation}, but at revision {revision} {difference}"));
        }
    }
}

/// Describes the first difference between a result and the right one.
pub fn first_difference<'a>(
    told: impl Iterator<Item = (&'a str, &'a Record)>,
    right: impl Iterator<Item = (&'a str, &'a Record)>,
) -> Option<String> {
    let (mut told, mut right) = (told.fuse(), right.fuse());
    let words = |entry: Option<(&str, &Record)>| {
        entry.map_or_else(|| "the end".to_owned(), |(key, record)| format!("{key} = {record}"))
    };
    for place in 0.. {
        match (told.next(), right.next()) {
            (None, None) => break,
            (told, right) if told == right => {}
            (told, right) => {
                return Some(format!("the key at position {place} is {}, not {}", words(right), words(told)));
            }
        }
    }
    None
}
