//! Responses beyond the end of the order.
//!
//! Rule: a write acknowledged at a revision above the final revisions of all nodes is lost. Any other
//! response above the last revision that a watch delivered means that the watches ended too early, and that
//! not everything could be checked.
//!
//! Sound: a store's revision never decreases, and the final states are read after the last response.

use super::evaluate::written_as_told;
use super::order::Order;
use super::report::{Kind, Report};
use crate::history::{FinalState, History, Outcome};

/// Looks for responses and final states beyond the order.
pub fn check(history: &History, order: &Order, report: &mut Report) {
    let last = order.last_revision();
    let final_revision = history.finals.iter().map(|end| end.revision).max();
    let mut beyond = 0_u64;
    let mut first = None;
    for operation in &history.operations {
        let Outcome::Done(answer) = &operation.outcome else { continue };
        if answer.revision <= last {
            continue;
        }
        let lost = final_revision.is_some_and(|end| end < answer.revision);
        if lost && !written_as_told(&operation.call, &answer.result).is_empty() {
            let end = final_revision.unwrap_or_default();
            report
                .violation(Kind::LostWrite, || format!("{operation}, but at the end no node is above revision {end}"));
        } else {
            beyond += 1;
            first.get_or_insert(operation);
        }
    }
    if let Some(first) = first {
        report.doubt(|| {
            format!("the watches end at revision {last}, and {beyond} responses are above it, such as {first}")
        });
    }
    let ends_later = |end: &&FinalState| end.revision > last;
    if let Some(end) = history.finals.iter().find(ends_later) {
        let (node, revision) = (end.node, end.revision);
        report.doubt(|| format!("the watches end at revision {last}, and node {node} at revision {revision}"));
    }
}
