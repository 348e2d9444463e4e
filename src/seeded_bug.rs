//! Bugs that are put in on purpose, to see that the fault harness finds them.
//!
//! Only a build with the feature `seeded-bugs` has any, and no release build can
//! have that feature. There, `RKV_SEEDED_BUG=<name>` switches one of them on in a
//! process; all else is as ever. Without the feature [`is_on`] is `false` when it
//! is compiled, and nothing of a bug is left in the program.
//!
//! `make faults-selftest` builds and runs them all: a harness that finds nothing
//! in a program with a bug proves nothing of one without.

#[cfg(all(feature = "seeded-bugs", not(debug_assertions)))]
compile_error!("the feature `seeded-bugs` is for testing the tests: no release build may have it");

/// A bug. Each stands for one that some replicated store has had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeededBug {
    /// A vote is written and not synced: a node may vote twice in a term.
    VoteNotSynced,
    /// Entries are acknowledged before they are synced.
    AcknowledgedBeforeSync,
    /// A file that was renamed may lose its name with the power.
    DirectoryNotSynced,
    /// A snapshot says that it has an entry whose change it lacks.
    SnapshotMissesLastEntry,
    /// A snapshot forgets which requests were done.
    SnapshotMissesRequests,
    /// A linearizable read answers with what the node has.
    ReadWithoutReadIndex,
    /// A condition is held against the state before the write is proposed, and not again.
    ConditionJudgedWhenProposed,
    /// A request that comes again is done again.
    NoDeduplication,
    /// A damaged record is cut off the log, with all that follows it.
    DamageCutAsTorn,
    /// Clients are told that nothing was done when the leader changed meanwhile.
    ForwardReportedAsNotApplied,
    /// Two entries are applied in the wrong order.
    EntriesSwapped,
    /// Applying an entry asks the clock on the wall.
    ClockReadInApply,
    /// A leader stamps entries with its wall clock.
    ExpiryFollowsWallClock,
}

impl SeededBug {
    /// All of them.
    pub const ALL: [SeededBug; 13] = [
        SeededBug::VoteNotSynced,
        SeededBug::AcknowledgedBeforeSync,
        SeededBug::DirectoryNotSynced,
        SeededBug::SnapshotMissesLastEntry,
        SeededBug::SnapshotMissesRequests,
        SeededBug::ReadWithoutReadIndex,
        SeededBug::ConditionJudgedWhenProposed,
        SeededBug::NoDeduplication,
        SeededBug::DamageCutAsTorn,
        SeededBug::ForwardReportedAsNotApplied,
        SeededBug::EntriesSwapped,
        SeededBug::ClockReadInApply,
        SeededBug::ExpiryFollowsWallClock,
    ];

    /// The name by which `RKV_SEEDED_BUG` switches it on.
    pub fn name(self) -> &'static str {
        match self {
            SeededBug::VoteNotSynced => "vote-not-synced",
            SeededBug::AcknowledgedBeforeSync => "acknowledged-before-sync",
            SeededBug::DirectoryNotSynced => "directory-not-synced",
            SeededBug::SnapshotMissesLastEntry => "snapshot-misses-last-entry",
            SeededBug::SnapshotMissesRequests => "snapshot-misses-requests",
            SeededBug::ReadWithoutReadIndex => "read-without-read-index",
            SeededBug::ConditionJudgedWhenProposed => "condition-judged-when-proposed",
            SeededBug::NoDeduplication => "no-deduplication",
            SeededBug::DamageCutAsTorn => "damage-cut-as-torn",
            SeededBug::ForwardReportedAsNotApplied => "forward-reported-as-not-applied",
            SeededBug::EntriesSwapped => "entries-swapped",
            SeededBug::ClockReadInApply => "clock-read-in-apply",
            SeededBug::ExpiryFollowsWallClock => "expiry-follows-wall-clock",
        }
    }
}

/// Whether a bug is switched on in this process.
#[cfg(not(feature = "seeded-bugs"))]
#[inline(always)]
pub const fn is_on(_bug: SeededBug) -> bool {
    false
}

#[cfg(feature = "seeded-bugs")]
pub use self::switch::{check, is_on};

#[cfg(feature = "seeded-bugs")]
mod switch {
    use std::sync::OnceLock;

    use super::SeededBug;

    /// The environment variable that names the bug.
    const VARIABLE: &str = "RKV_SEEDED_BUG";

    /// Read once: a process has the same bug, or none, for all its life.
    fn chosen() -> &'static Result<Option<SeededBug>, String> {
        static CHOSEN: OnceLock<Result<Option<SeededBug>, String>> = OnceLock::new();
        CHOSEN.get_or_init(|| {
            let Some(value) = std::env::var_os(VARIABLE) else { return Ok(None) };
            match SeededBug::ALL.into_iter().find(|bug| value == bug.name()) {
                Some(bug) => Ok(Some(bug)),
                None => {
                    let names = SeededBug::ALL.map(SeededBug::name).join(", ");
                    Err(format!("{VARIABLE} is `{}`, and may be one of {names}", value.display()))
                }
            }
        })
    }

    /// Whether a bug is switched on in this process.
    pub fn is_on(bug: SeededBug) -> bool {
        *chosen() == Ok(Some(bug))
    }

    /// Which bug is switched on, if any.
    ///
    /// # Errors
    ///
    /// What is wrong with the variable: a misspelt bug would pass for one that nobody finds.
    pub fn check() -> Result<Option<SeededBug>, String> {
        chosen().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every bug has a name of its own, and none is on unless it was asked for.
    #[test]
    fn names() {
        let names: std::collections::HashSet<_> = SeededBug::ALL.into_iter().map(SeededBug::name).collect();
        assert_eq!(names.len(), SeededBug::ALL.len());
        assert!(SeededBug::ALL.into_iter().all(|bug| !is_on(bug)));
    }
}
