//! Deliberate bugs that the fault harness must find.
//!
//! Only a build with the feature `seeded-bugs` has them, and no release build can have that feature. In such a build,
//! `RKV_SEEDED_BUG=<name>` enables one bug for the process. Without the feature, [`is_on`] is the constant `false`, so
//! the compiler removes every bug.
//!
//! `make faults-selftest` runs the harness on each of them: a harness that does not find these bugs proves nothing
//! about a program without them.

#[cfg(all(feature = "seeded-bugs", not(debug_assertions)))]
compile_error!("the feature `seeded-bugs` is for tests only; a release build must not have it");

/// A bug. Each is modeled on one that a replicated store has had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeededBug {
    /// A vote is written but not synced, so a node may vote twice in a term.
    VoteNotSynced,
    /// Entries are acknowledged before they are synced.
    AcknowledgedBeforeSync,
    /// A rename is not synced, so a power loss may undo it.
    DirectoryNotSynced,
    /// A snapshot claims to include its last entry, but lacks the change.
    SnapshotMissesLastEntry,
    /// A snapshot lacks the remembered requests.
    SnapshotMissesRequests,
    /// A linearizable read returns the node's own state.
    ReadWithoutReadIndex,
    /// A condition is checked only before the write is proposed.
    ConditionJudgedWhenProposed,
    /// A request with a remembered `Idempotency-Key` is applied again.
    NoDeduplication,
    /// A damaged record and everything after it are cut off the log.
    DamageCutAsTorn,
    /// If the leader changes during a write, clients get the outcome `not_applied`.
    ForwardReportedAsNotApplied,
    /// Two entries are applied in the wrong order.
    EntriesSwapped,
    /// Applying an entry reads the wall clock.
    ClockReadInApply,
    /// A leader stamps entries with its wall clock.
    ExpiryFollowsWallClock,
    /// A backup has the state after a later entry than it names.
    BackupOfLaterState,
    /// Once the quota was reached, growth is always rejected.
    QuotaNeverLifts,
    /// A learner becomes a voter before it has all data.
    PromotedBeforeCaughtUp,
    /// A connection is still served with a token that was revoked after its last request.
    RevocationNotNoticed,
}

impl SeededBug {
    /// All bugs.
    pub const ALL: [SeededBug; 17] = [
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
        SeededBug::BackupOfLaterState,
        SeededBug::QuotaNeverLifts,
        SeededBug::PromotedBeforeCaughtUp,
        SeededBug::RevocationNotNoticed,
    ];

    /// The bug's name in `RKV_SEEDED_BUG`.
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
            SeededBug::BackupOfLaterState => "backup-of-later-state",
            SeededBug::QuotaNeverLifts => "quota-never-lifts",
            SeededBug::PromotedBeforeCaughtUp => "promoted-before-caught-up",
            SeededBug::RevocationNotNoticed => "revocation-not-noticed",
        }
    }
}

/// Whether a bug is enabled in this process.
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

    /// Read once, so that a process has the same bug, or none, until it exits.
    fn chosen() -> &'static Result<Option<SeededBug>, String> {
        static CHOSEN: OnceLock<Result<Option<SeededBug>, String>> = OnceLock::new();
        CHOSEN.get_or_init(|| {
            let Some(value) = std::env::var_os(VARIABLE) else { return Ok(None) };
            match SeededBug::ALL.into_iter().find(|bug| value == bug.name()) {
                Some(bug) => Ok(Some(bug)),
                None => {
                    let names = SeededBug::ALL.map(SeededBug::name).join(", ");
                    Err(format!("{VARIABLE} must be one of {names}, got `{}`", value.display()))
                }
            }
        })
    }

    /// Whether a bug is enabled in this process.
    pub fn is_on(bug: SeededBug) -> bool {
        *chosen() == Ok(Some(bug))
    }

    /// The bug that is enabled, if any.
    ///
    /// # Errors
    ///
    /// If the variable names no bug: a misspelled bug would seem to be one that the harness does not find.
    pub fn check() -> Result<Option<SeededBug>, String> {
        chosen().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names are unique, and no bug is enabled by default.
    #[test]
    fn names() {
        let names: std::collections::HashSet<_> = SeededBug::ALL.into_iter().map(SeededBug::name).collect();
        assert_eq!(names.len(), SeededBug::ALL.len());
        assert!(SeededBug::ALL.into_iter().all(|bug| !is_on(bug)));
    }
}
