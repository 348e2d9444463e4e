//! The checker's findings.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// Number of violations of each kind that are kept with their details; all are counted.
pub const VIOLATIONS_OF_A_KIND_MAX: u64 = 20;
/// Number of doubts that are kept with their reasons; all are counted.
pub const DOUBTS_MAX: u64 = 20;

/// Kinds of violations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A watch delivered a change after one of a higher revision, or twice.
    WatchDisorder,
    /// A watch skipped a revision.
    WatchGap,
    /// Two watches delivered different changes of one revision.
    WatchDisagreement,
    /// A change's version or create revision does not follow from the change before.
    VersionInOrder,
    /// A key was deleted that did not exist.
    DeleteOfMissing,
    /// A write was acknowledged at a revision that holds something else, or does not exist.
    LostWrite,
    /// Two operations got the same revision for their changes.
    RevisionTwice,
    /// The change of one operation is in the order more than once.
    AppliedTwice,
    /// A change is in the order although the store rejected it or reported it as not applied.
    RefusedButApplied,
    /// No operation can have made a change.
    Unexplained,
    /// A revision holds only a part of its operation's changes, or more than those.
    TornRevision,
    /// A write was applied although its condition did not hold.
    ConditionIgnored,
    /// A write was rejected although its condition held, or the response shows a state that the key never
    /// had.
    WrongRefusal,
    /// A transaction applied the wrong one of its lists.
    WrongBranch,
    /// The version, whether something was deleted, or a step's result is wrong.
    WrongResult,
    /// A read of a key differs from the state at the response's revision.
    WrongRead,
    /// A list differs from the state at the response's revision.
    WrongList,
    /// An operation precedes one that had returned before its call.
    OutOfOrder,
    /// A response has a revision whose write had not been called.
    FromTheFuture,
    /// A node's final state differs from the one that the order produces.
    FinalState,
    /// The nodes' final revisions differ, or are below an acknowledged one.
    FinalRevision,
    /// The nodes' final hashes differ.
    FinalHash,
    /// An acknowledged element is not in its list at the end.
    ElementLost,
    /// An element is in its list more than once at the end.
    ElementTwice,
    /// An element is in a list although its append was rejected or never requested.
    ElementUnexplained,
    /// An element precedes one whose append had returned before its own was called.
    ElementOutOfOrder,
    /// A list that was read is not a prefix of the list at the end.
    ElementRead,
    /// No order of the operations on one key explains their results.
    NotLinearizable,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::WatchDisorder => "a watch out of order",
            Kind::WatchGap => "a watch with a gap",
            Kind::WatchDisagreement => "watches that disagree",
            Kind::VersionInOrder => "a wrong version in the order",
            Kind::DeleteOfMissing => "a deletion of a missing key",
            Kind::LostWrite => "a lost write",
            Kind::RevisionTwice => "a revision given twice",
            Kind::AppliedTwice => "applied twice",
            Kind::RefusedButApplied => "rejected but applied",
            Kind::Unexplained => "a change without a request",
            Kind::TornRevision => "a torn revision",
            Kind::ConditionIgnored => "a condition ignored",
            Kind::WrongRefusal => "wrongly rejected",
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
            Kind::ElementUnexplained => "an unexpected element",
            Kind::ElementOutOfOrder => "an element out of order",
            Kind::ElementRead => "a wrong read of elements",
            Kind::NotLinearizable => "a key that is not linearizable",
        })
    }
}

/// Something that a correct store cannot have produced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// The broken rule.
    pub kind: Kind,
    /// The operations, changes and nodes involved, and what is expected.
    pub details: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.details)
    }
}

/// The checker's verdict on a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// All rules hold.
    Linearizable,
    /// A rule is broken.
    Violated,
    /// No rule is known to be broken, but not everything could be checked: the run is incomplete.
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

/// The number of operations by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OperationCounts {
    /// Operations with a definite outcome.
    pub done: u64,
    /// Operations that the store reported as not applied.
    pub not_applied: u64,
    /// Operations that may have been applied.
    pub unknown: u64,
    /// Operations of unknown outcome that are in the order, and so were applied.
    pub unknown_applied: u64,
}

impl OperationCounts {
    /// All operations.
    pub fn sum(&self) -> u64 {
        self.done + self.not_applied + self.unknown
    }
}

/// Extent of the classic search.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ClassicCounts {
    /// Pieces of a key's history that were searched separately.
    pub windows: u64,
    /// Operations in them.
    pub operations: u64,
    /// Windows whose search reached the limit of steps.
    pub undecided: u64,
}

/// All findings of the checker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The first [`VIOLATIONS_OF_A_KIND_MAX`] of each kind.
    pub violations: Vec<Violation>,
    /// The number of violations of each kind.
    pub violation_counts: BTreeMap<Kind, u64>,
    /// Why not everything could be checked: the first [`DOUBTS_MAX`] reasons.
    pub doubts: Vec<String>,
    /// The number of doubts.
    pub doubt_count: u64,
    pub operations: OperationCounts,
    /// The number of changes in the order.
    pub changes: u64,
    /// The last revision of the order.
    pub revision: u64,
    /// The number of keys that were ever changed.
    pub keys: u64,
    pub classic: ClassicCounts,
}

impl Report {
    /// Adds a violation; the details are only formatted if they are kept.
    pub fn violation(&mut self, kind: Kind, details: impl FnOnce() -> String) {
        let count = self.violation_counts.entry(kind).or_default();
        *count += 1;
        if *count <= VIOLATIONS_OF_A_KIND_MAX {
            self.violations.push(Violation { kind, details: details() });
        }
    }

    /// Adds a reason why not everything could be checked.
    pub fn doubt(&mut self, reason: impl FnOnce() -> String) {
        self.doubt_count += 1;
        if self.doubt_count <= DOUBTS_MAX {
            self.doubts.push(reason());
        }
    }

    /// Adds the findings on another history; keys in both count twice.
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

    /// The verdict.
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
            "operations: {done} done, {not_applied} not applied, {unknown} unknown ({unknown_applied} of them were applied)"
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
