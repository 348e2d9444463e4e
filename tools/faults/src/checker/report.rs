//! What the checker found.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// So many violations of a kind are kept with their words; all are counted.
pub const VIOLATIONS_OF_A_KIND_MAX: u64 = 20;
/// So many reasons to be in doubt are kept with their words; all are counted.
pub const DOUBTS_MAX: u64 = 20;

/// What may be wrong with a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A watch told a change after one of a higher revision, or twice.
    WatchDisorder,
    /// A watch left out a revision.
    WatchGap,
    /// Two watches told different changes of one revision.
    WatchDisagreement,
    /// A change's version or create revision does not follow from the change before.
    VersionInOrder,
    /// A key was deleted that was not there.
    DeleteOfMissing,
    /// A write was acknowledged at a revision that holds something else, or does not exist.
    LostWrite,
    /// Two operations were told that they made the same revision.
    RevisionTwice,
    /// What one operation wrote is in the order more than once.
    AppliedTwice,
    /// What the store refused, or said it would never do, was done.
    RefusedButApplied,
    /// No operation can have made a change.
    Unexplained,
    /// A revision holds a part of what its operation does, or more.
    TornRevision,
    /// A write was done though its condition did not hold.
    ConditionIgnored,
    /// A write was refused though its condition held, or it was told a key that never was so.
    WrongRefusal,
    /// A transaction did the wrong one of its lists.
    WrongBranch,
    /// The version, whether something was deleted, or a step's result is wrong.
    WrongResult,
    /// A read of a key differs from the state at the revision it was answered at.
    WrongRead,
    /// A list differs from the state at the revision it was answered at.
    WrongList,
    /// An operation went before one that was over when it was called.
    OutOfOrder,
    /// An operation was answered at a revision whose write had not been called.
    FromTheFuture,
    /// A node's state at the end differs from what the order makes of an empty store.
    FinalState,
    /// The nodes' revisions at the end differ, or are below one that was acknowledged.
    FinalRevision,
    /// The nodes' hashes at the end differ.
    FinalHash,
    /// An element that was acknowledged is not in its list at the end.
    ElementLost,
    /// An element is more than once in its list at the end.
    ElementTwice,
    /// An element that was refused, or that nobody appended, is in a list.
    ElementUnexplained,
    /// An element stands before one whose append was over when its own was called.
    ElementOutOfOrder,
    /// A list that was read is not the beginning of the list at the end.
    ElementRead,
    /// No order of the operations on one key explains what they were told.
    NotLinearizable,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::WatchDisorder => "a watch in disorder",
            Kind::WatchGap => "a watch with a gap",
            Kind::WatchDisagreement => "watches that disagree",
            Kind::VersionInOrder => "a wrong version in the order",
            Kind::DeleteOfMissing => "a deletion of what was not there",
            Kind::LostWrite => "a lost write",
            Kind::RevisionTwice => "a revision given twice",
            Kind::AppliedTwice => "applied twice",
            Kind::RefusedButApplied => "refused but applied",
            Kind::Unexplained => "a change that nobody asked for",
            Kind::TornRevision => "a torn revision",
            Kind::ConditionIgnored => "a condition ignored",
            Kind::WrongRefusal => "wrongly refused",
            Kind::WrongBranch => "the wrong branch of a transaction",
            Kind::WrongResult => "a wrong result",
            Kind::WrongRead => "a wrong read",
            Kind::WrongList => "a wrong list",
            Kind::OutOfOrder => "out of order",
            Kind::FromTheFuture => "from the future",
            Kind::FinalState => "a wrong final state",
            Kind::FinalRevision => "a wrong final revision",
            Kind::FinalHash => "final hashes that differ",
            Kind::ElementLost => "a lost element",
            Kind::ElementTwice => "an element twice",
            Kind::ElementUnexplained => "an element that should not be",
            Kind::ElementOutOfOrder => "an element out of order",
            Kind::ElementRead => "a wrong read of elements",
            Kind::NotLinearizable => "a key that is not linearizable",
        })
    }
}

/// Something that a correct store cannot have told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Which rule is broken.
    pub kind: Kind,
    /// By what: the operations, changes and nodes, and what they should have been.
    pub details: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.details)
    }
}

/// What the checker says of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// All rules hold.
    Linearizable,
    /// A rule is broken.
    Violated,
    /// No rule is seen to be broken, but not all could be checked: the run is incomplete.
    Undecided,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Linearizable => "linearizable",
            Verdict::Violated => "violated",
            Verdict::Undecided => "undecided",
        })
    }
}

/// How many operations there were, by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OperationCounts {
    /// With a definite answer.
    pub done: u64,
    /// That the store said it would never do.
    pub not_applied: u64,
    /// That may have been done.
    pub unknown: u64,
    /// How many of the unknown ones are found in the order, and so were done.
    pub unknown_applied: u64,
}

impl OperationCounts {
    /// All of them.
    pub fn sum(&self) -> u64 {
        self.done + self.not_applied + self.unknown
    }
}

/// How much the classic search looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ClassicCounts {
    /// Pieces of a key's history that were searched by themselves.
    pub windows: u64,
    /// Operations in them.
    pub operations: u64,
    /// Windows that took too many steps.
    pub undecided: u64,
}

/// All that the checker found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The first [`VIOLATIONS_OF_A_KIND_MAX`] of each kind.
    pub violations: Vec<Violation>,
    /// How many there are of each kind.
    pub violation_counts: BTreeMap<Kind, u64>,
    /// Why not all could be checked: the first [`DOUBTS_MAX`] reasons.
    pub doubts: Vec<String>,
    /// How many reasons there are.
    pub doubt_count: u64,
    /// The operations.
    pub operations: OperationCounts,
    /// How many changes the order has.
    pub changes: u64,
    /// The last revision of the order.
    pub revision: u64,
    /// How many keys were ever changed.
    pub keys: u64,
    /// The classic search.
    pub classic: ClassicCounts,
}

impl Report {
    /// Adds a violation; the words are made only if they are kept.
    pub fn violation(&mut self, kind: Kind, details: impl FnOnce() -> String) {
        let count = self.violation_counts.entry(kind).or_default();
        *count += 1;
        if *count <= VIOLATIONS_OF_A_KIND_MAX {
            self.violations.push(Violation { kind, details: details() });
        }
    }

    /// Adds a reason why not all could be checked.
    pub fn doubt(&mut self, reason: impl FnOnce() -> String) {
        self.doubt_count += 1;
        if self.doubt_count <= DOUBTS_MAX {
            self.doubts.push(reason());
        }
    }

    /// Adds what was found in another history; keys that both have count twice.
    pub fn extend(&mut self, other: Report) {
        self.violations.extend(other.violations);
        for (kind, count) in other.violation_counts {
            *self.violation_counts.entry(kind).or_default() += count;
        }
        self.doubts.extend(other.doubts);
        self.doubt_count += other.doubt_count;
        self.operations.done += other.operations.done;
        self.operations.not_applied += other.operations.not_applied;
        self.operations.unknown += other.operations.unknown;
        self.operations.unknown_applied += other.operations.unknown_applied;
        self.changes += other.changes;
        self.revision = self.revision.max(other.revision);
        self.keys += other.keys;
        self.classic.windows += other.classic.windows;
        self.classic.operations += other.classic.operations;
        self.classic.undecided += other.classic.undecided;
    }

    /// What it comes to.
    pub fn verdict(&self) -> Verdict {
        if !self.violation_counts.is_empty() {
            Verdict::Violated
        } else if self.doubt_count > 0 {
            Verdict::Undecided
        } else {
            Verdict::Linearizable
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OperationCounts { done, not_applied, unknown, unknown_applied } = self.operations;
        let ClassicCounts { windows, operations, undecided } = self.classic;
        writeln!(f, "verdict: {}", self.verdict())?;
        writeln!(
            f,
            "operations: {done} done, {not_applied} not applied, {unknown} unknown ({unknown_applied} of them were done)"
        )?;
        writeln!(f, "order: {} changes of {} keys up to revision {}", self.changes, self.keys, self.revision)?;
        writeln!(f, "classic search: {operations} operations in {windows} windows, {undecided} undecided")?;
        for (kind, count) in &self.violation_counts {
            writeln!(f, "{count} × {kind}")?;
        }
        for violation in &self.violations {
            writeln!(f, "- {violation}")?;
        }
        for reason in &self.doubts {
            writeln!(f, "- in doubt: {reason}")?;
        }
        Ok(())
    }
}
