//! The verdict of a command, and its exit code.
//!
//! A violation and a run that did not show enough are different results. The first is a bug in the system
//! under test (or in the checker); the second says nothing about the system.

use std::fmt;

use crate::checker::report::Verdict as CheckerVerdict;

/// The text of `--help` and the table in `tools/faults/README.md` also list these codes.
const EXIT_PASSED: u8 = 0;
const EXIT_VIOLATION: u8 = 1;
// Code 2 is clap's, for an invalid command line.
const EXIT_INCOMPLETE: u8 = 3;
/// The harness ended with an error before it reached a verdict.
pub const EXIT_ERROR: u8 = 4;

/// The result of a lane, a run or another command.
///
/// Ordered by severity: the result of several lanes is their maximum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// No violation, and everything required was shown.
    #[default]
    Passed,
    /// No violation, but not everything required was shown.
    Incomplete,
    /// A guarantee is broken: the system under test did something that a correct one never does.
    Violation,
}

impl Verdict {
    pub fn exit_code(self) -> u8 {
        match self {
            Verdict::Passed => EXIT_PASSED,
            Verdict::Incomplete => EXIT_INCOMPLETE,
            Verdict::Violation => EXIT_VIOLATION,
        }
    }

    pub fn passed(self) -> bool {
        self == Verdict::Passed
    }

    /// The last line of a command's output.
    pub fn conclusion(self) -> String {
        let meaning = match self {
            Verdict::Passed => return "PASSED".to_owned(),
            Verdict::Incomplete => "no violation was found, but the run did not show everything that it must",
            Verdict::Violation => "a guarantee is broken; see above",
        };
        format!("{} (exit code {}): {meaning}", self.to_string().to_uppercase(), self.exit_code())
    }
}

impl From<CheckerVerdict> for Verdict {
    fn from(verdict: CheckerVerdict) -> Self {
        match verdict {
            CheckerVerdict::Linearizable => Verdict::Passed,
            CheckerVerdict::Violated => Verdict::Violation,
            CheckerVerdict::Undecided => Verdict::Incomplete,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Passed => "passed",
            Verdict::Incomplete => "incomplete",
            Verdict::Violation => "violation",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A violation outranks an incomplete lane, which outranks one that passed. Each has a word and an exit
    /// code of its own, and none uses clap's code for an invalid command line.
    #[test]
    fn verdicts_are_told_apart() {
        let worst = |verdicts: &[Verdict]| verdicts.iter().copied().max().unwrap_or_default();
        assert_eq!(worst(&[]), Verdict::Passed);
        assert_eq!(worst(&[Verdict::Passed, Verdict::Incomplete]), Verdict::Incomplete);
        assert_eq!(worst(&[Verdict::Violation, Verdict::Incomplete, Verdict::Passed]), Verdict::Violation);
        let codes = [Verdict::Passed, Verdict::Violation, Verdict::Incomplete].map(Verdict::exit_code);
        assert_eq!(codes, [0, 1, 3]);
        assert_eq!(EXIT_ERROR, 4);
        assert!(Verdict::Incomplete.conclusion().starts_with("INCOMPLETE (exit code 3): no violation"));
        assert!(Verdict::Violation.conclusion().starts_with("VIOLATION (exit code 1): "));
    }
}
