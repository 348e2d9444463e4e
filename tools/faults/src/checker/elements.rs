//! Lists of elements, which can be checked without revisions.
//!
//! Rule: a key under the prefix `list/` holds elements separated by commas. To append an element, a client
//! puts the value that it read, a comma and the element, on the condition that the key has not changed since.
//! (The first append requires that the key is missing.) Each acknowledged element must therefore be in the
//! final list, once, after all elements whose appends had returned when its own append was called. Rejected
//! elements, and elements that no client appended, must not be in it. Every value that was read must be a
//! prefix of the final list.
//!
//! Sound: under these conditions a list only grows at its end. Keys that are written in any other way are
//! ignored.

use std::collections::{HashMap, HashSet};

use super::describe::Value;
use super::report::{Kind, Report};
use crate::history::{Call, CallResult, FinalState, History, Operation, Outcome, Step};

/// Keys with this prefix are lists of elements.
pub const LIST_PREFIX: &str = "list/";
const SEPARATOR: char = ',';

/// The requests on one list.
#[derive(Default)]
struct Requests<'a> {
    appends: HashMap<&'a str, Vec<&'a Operation>>,
    reads: Vec<(&'a Operation, &'a str)>,
    /// Whether the key was also written in another way.
    other_writes: bool,
}

/// Checks the lists on each node at the end.
pub fn check(history: &History, report: &mut Report) {
    let lists = lists_of(history);
    let mut keys: Vec<&&str> = lists.keys().collect();
    keys.sort();
    for end in &history.finals {
        for key in &keys {
            let requests = &lists[**key];
            if !requests.other_writes {
                check_list(key, requests, end, report);
            }
        }
    }
}

fn lists_of(history: &History) -> HashMap<&str, Requests<'_>> {
    let mut lists: HashMap<&str, Requests> = HashMap::new();
    for operation in history.operations.iter() {
        match &operation.call {
            Call::Put { key, value, condition } if key.starts_with(LIST_PREFIX) => {
                let requests = lists.entry(key).or_default();
                requests.appends.entry(last_element(value)).or_default().push(operation);
                requests.other_writes |= condition.is_none();
            }
            Call::Delete { key, .. } if key.starts_with(LIST_PREFIX) => {
                lists.entry(key).or_default().other_writes = true;
            }
            Call::Txn { success, failure, .. } => {
                for step in success.iter().chain(failure) {
                    if let Step::Put { key, .. } | Step::Delete { key } = step
                        && key.starts_with(LIST_PREFIX)
                    {
                        lists.entry(key).or_default().other_writes = true;
                    }
                }
            }
            Call::Get { key, .. } if key.starts_with(LIST_PREFIX) => {
                if let Outcome::Done(answer) = &operation.outcome
                    && let CallResult::Get(Some(record)) = &answer.result
                {
                    lists.entry(key).or_default().reads.push((operation, &record.value));
                }
            }
            _ => {}
        }
    }
    lists
}

fn last_element(value: &str) -> &str {
    value.rsplit(SEPARATOR).next().unwrap_or(value)
}

fn was_appended(operation: &Operation) -> bool {
    matches!(&operation.outcome, Outcome::Done(answer) if matches!(answer.result, CallResult::Put { .. }))
}

fn check_list(key: &str, requests: &Requests, end: &FinalState, report: &mut Report) {
    let node = end.node;
    let place = end.records.binary_search_by(|(other, _)| (**other).cmp(key));
    let value: &str = place.map_or("", |place| &end.records[place].1.value);
    let elements: Vec<&str> = value.split(SEPARATOR).filter(|element| !element.is_empty()).collect();
    let mut seen: HashSet<&str> = HashSet::new();
    for element in &elements {
        let appends = requests.appends.get(element).map_or(&[][..], Vec::as_slice);
        if !seen.insert(element) {
            report.violation(Kind::ElementTwice, || format!("{element} in {key} on node {node}"));
        }
        let possible = |operation: &&&Operation| was_appended(operation) || operation.outcome == Outcome::Unknown;
        if !appends.iter().any(|operation| possible(&operation)) {
            let by = appends.first().map_or_else(|| "no client".to_owned(), |operation| operation.to_string());
            report
                .violation(Kind::ElementUnexplained, || format!("{element} in {key} on node {node}, appended by {by}"));
        }
    }
    let acknowledged = requests.appends.iter().flat_map(|(element, appends)| {
        appends.iter().filter(|operation| was_appended(operation)).map(move |operation| (*element, *operation))
    });
    for (element, operation) in acknowledged {
        if !seen.contains(element) {
            let list = Value(value);
            report.violation(Kind::ElementLost, || {
                format!("{element} is not in {key} = {list} on node {node}: {operation}")
            });
        }
    }
    for (operation, read) in &requests.reads {
        let begins = value.strip_prefix(read).is_some_and(|rest| rest.is_empty() || rest.starts_with(SEPARATOR));
        if !begins {
            let list = Value(value);
            report.violation(Kind::ElementRead, || {
                format!("on node {node} {key} = {list} does not begin with the value read: {operation}")
            });
        }
    }
    check_order(key, requests, &elements, node, report);
}

/// Scans a list from its end for an element that was called for after a later one had been acknowledged.
fn check_order(key: &str, requests: &Requests, elements: &[&str], node: u64, report: &mut Report) {
    let mut returned_first: Option<&Operation> = None;
    for element in elements.iter().rev() {
        let Some([operation]) = requests.appends.get(element).map(Vec::as_slice) else { continue };
        if let Some(over) = returned_first
            && over.returned_ns < operation.called_ns
        {
            report.violation(Kind::ElementOutOfOrder, || {
                format!("in {key} on node {node} {operation} precedes {over}, which had returned before the call")
            });
        }
        let earlier = returned_first.is_none_or(|over| operation.returned_ns < over.returned_ns);
        if was_appended(operation) && earlier {
            returned_first = Some(operation);
        }
    }
}
