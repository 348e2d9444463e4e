//! Decides whether a correct store can have produced a history.
//!
//! Every response carries the store's revision, so the order of the operations is known and need not be
//! searched for. The checker verifies that it is a single order, that it explains every response, and that it
//! respects real time. This takes O(n log n) for n operations:
//!
//! | module | question |
//! | --- | --- |
//! | [`order`] | Do the watches deliver one and the same order of changes? |
//! | [`writes`] | Is each acknowledged write in the order as its response says? |
//! | [`unknown`] | Is everything else in the order the work of one operation each, applied once? |
//! | [`evaluate`] | What are the effect and the result of a call on a known state? |
//! | [`reads`] | Does every other response match the state at its revision? |
//! | [`real_time`] | Does an operation that returned before a call precede it in the order? |
//! | [`coverage`] | Does any response lie beyond the end of the order? |
//! | [`finals`] | Do all nodes end with the state that the order produces? |
//!
//! Two more rules work without revisions, in case the rules above are wrong or a store is wrong consistently:
//! [`elements`] checks lists that only grow, and [`classic`] searches for an order of the operations on each
//! key.
//!
//! The checker must never raise a false alarm: each module states why its rule is sound. If something cannot
//! be decided, the verdict is [`Verdict::Undecided`], which is not a pass.
//!
//! [`Verdict::Undecided`]: report::Verdict::Undecided

mod classic;
mod coverage;
mod describe;
mod elements;
mod evaluate;
mod finals;
mod order;
mod reads;
mod real_time;
pub mod report;
#[cfg(test)]
mod tests;
mod unknown;
mod writes;

pub use report::Report;

use crate::history::{History, Outcome};

/// Checks a history by all rules.
pub fn check(history: &History) -> Report {
    let mut report = Report::default();
    for operation in &history.operations {
        let counts = &mut report.operations;
        *match operation.outcome {
            Outcome::Done(_) => &mut counts.done,
            Outcome::NotApplied => &mut counts.not_applied,
            Outcome::Unknown => &mut counts.unknown,
        } += 1;
    }
    let floors = real_time::Floors::of(history);
    let mut order = order::Order::of(history, &mut report);
    let owners = writes::check(history, &mut order, &floors, &mut report);
    report.changes = order.changes().len() as u64;
    report.revision = order.last_revision();
    report.keys = order.keys() as u64;
    reads::check(history, &order, &floors, &mut report);
    real_time::check(history, &floors, &owners, &mut report);
    real_time::check_future(history, &order, &owners, &mut report);
    coverage::check(history, &order, &mut report);
    finals::check(history, &order, &mut report);
    elements::check(history, &mut report);
    classic::check(history, &mut report);
    report
}
