//! Whether a history is one that a correct store can have.
//!
//! Every answer carries the store's revision, so the order of all operations need
//! not be searched for: it was told. What is left is to see that it is one order,
//! that it explains every answer, and that it keeps real time, which takes
//! O(n log n) for n operations:
//!
//! | module | asks |
//! | --- | --- |
//! | [`order`] | do the watches tell one and the same order of changes? |
//! | [`writes`] | is each acknowledged write in the order as it was told? |
//! | [`unknown`] | is everything else there the work of one operation each, done once? |
//! | [`evaluate`] | what does a call do, and answer, on a known state? |
//! | [`reads`] | was everything else told the state at its revision? |
//! | [`real_time`] | is what was over before a call also before it in the order? |
//! | [`coverage`] | was anything answered that the order does not reach to? |
//! | [`finals`] | do all nodes end with what the order makes? |
//!
//! Two more do without revisions, lest a mistake in the above, or a store that
//! tells a consistent lie, go unseen: [`elements`] looks at lists that grow, and
//! [`classic`] searches for an order of the operations on each key.
//!
//! Never a false alarm comes first: each module says why its rule is sound. Where
//! something cannot be decided the verdict is [`Verdict::Undecided`], and that is
//! no pass.
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
