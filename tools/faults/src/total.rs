//! The results of several runs, by lane.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::fault::{Fault, Sight};
use crate::finding::Finding;
use crate::hostile::Misuse;
use crate::report::LaneReport;
use crate::verdict::Verdict;

/// How often each kind of fault must occur, and be in force while operations succeed.
const WINDOWS_MIN: usize = 5;
/// Minimum totals of a complete run.
const OPERATIONS_MIN: usize = 60_000;
const FAULTS_MIN: usize = 160;
const KINDS_MIN: usize = 12;
const BAD_INPUTS_MIN: usize = 6_000;
/// Retried requests that got the first response.
const REPLAYED_MIN: usize = 2_000;

/// Minimum number of misuses of each kind in a complete run.
const MISUSES_MIN: usize = 20;

/// The results of several runs.
#[derive(Debug, Default)]
pub struct Total {
    runs: usize,
    /// By lane, over all runs.
    lanes: BTreeMap<&'static str, LaneReport>,
    /// Why lanes have no report.
    ended: Vec<Finding>,
    /// What all lanes together failed to show.
    missing: Vec<String>,
}

/// A lane's report, or the reason why there is none.
pub type LaneResult = Result<LaneReport, Finding>;

impl Total {
    pub fn add(&mut self, results: Vec<LaneResult>) {
        self.runs += 1;
        for result in results {
            match result {
                Ok(report) => match self.lanes.get_mut(report.name) {
                    Some(total) => total.add(report),
                    None => _ = self.lanes.insert(report.name, report),
                },
                Err(finding) => self.ended.push(finding),
            }
        }
    }

    /// Requires that each of these faults occurred and was in force under load. An effect that depends on
    /// chance need not occur in every window, but in enough of them over all lanes and runs.
    pub fn check_faults(&mut self, faults: impl IntoIterator<Item = Fault>) {
        for fault in BTreeSet::from_iter(faults) {
            let (count, busy) = (self.sum(|report| report.count(fault)), self.sum(|report| report.busy_count(fault)));
            if count < WINDOWS_MIN {
                self.missing.push(format!("{fault} occurred {count} times, at least {WINDOWS_MIN} are required"));
            } else if busy < WINDOWS_MIN && fault.leaves_a_majority() {
                self.missing.push(format!("operations succeeded in {busy} of {count} windows of {fault}"));
            }
        }
    }

    /// Requires that each effect of the faults was seen at least once.
    pub fn check_sights(&mut self) {
        let unseen = Sight::ALL.into_iter().filter(|sight| self.sum(|report| report.sights(*sight)) == 0);
        let unseen: Vec<String> = unseen.map(|sight| format!("no {sight}")).collect();
        self.missing.extend(unseen);
    }

    /// Requires that the hostile client did each kind of misuse often enough, over all lanes and runs.
    pub fn check_misuses(&mut self) {
        for misuse in Misuse::ALL {
            let count = self.sum(|report| report.misuses(misuse));
            if count < MISUSES_MIN {
                self.missing.push(format!("{misuse} occurred {count} times, at least {MISUSES_MIN} are required"));
            }
        }
    }

    /// Requires the minimum totals of a complete run.
    pub fn check_amounts(&mut self) {
        let amounts = [
            (self.sum(|report| report.operations), OPERATIONS_MIN, "checked operations"),
            (self.sum(LaneReport::faults), FAULTS_MIN, "faults"),
            (self.kinds(), KINDS_MIN, "kinds of faults"),
            (self.sum(LaneReport::bad_inputs), BAD_INPUTS_MIN, "bad inputs"),
            (self.sum(|report| report.replayed), REPLAYED_MIN, "retries that got the first response"),
        ];
        let too_few = amounts.into_iter().filter(|(amount, least, _)| amount < least);
        self.missing.extend(too_few.map(|(amount, least, of_what)| format!("{amount} of {least} {of_what}")));
    }

    fn kinds(&self) -> usize {
        BTreeSet::from_iter(self.lanes.values().flat_map(LaneReport::kinds)).len()
    }

    fn sum(&self, of: impl Fn(&LaneReport) -> usize) -> usize {
        self.lanes.values().map(of).sum()
    }

    pub fn verdict(&self) -> Verdict {
        let of_lanes = self.lanes.values().map(LaneReport::verdict);
        let of_ended = self.ended.iter().map(verdict_of_end);
        let of_amounts = if self.missing.is_empty() { Verdict::Passed } else { Verdict::Incomplete };
        of_lanes.chain(of_ended).max().unwrap_or_default().max(of_amounts)
    }
}

/// The verdict on a lane without a report.
pub fn verdict_of_end(finding: &Finding) -> Verdict {
    if finding.is_violation() { Verdict::Violation } else { Verdict::Incomplete }
}

impl fmt::Display for Total {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for report in self.lanes.values() {
            writeln!(f, "{report}")?;
        }
        for finding in &self.ended {
            writeln!(f, "{}: {finding}", verdict_of_end(finding).to_string().to_uppercase())?;
        }
        for missing in &self.missing {
            writeln!(f, "INCOMPLETE: {missing}")?;
        }
        let (operations, faults) = (self.sum(|report| report.operations), self.sum(LaneReport::faults));
        let (kinds, inputs) = (self.kinds(), self.sum(LaneReport::bad_inputs));
        let misuses = self.sum(|report| report.found.misuses.values().sum());
        write!(f, "In all {operations} operations, {faults} faults of {kinds} kinds, {inputs} bad inputs, ")?;
        write!(f, "{misuses} misuses, ")?;
        if self.runs > 1 {
            write!(f, "{} runs, ", self.runs)?;
        }
        match self.verdict() {
            Verdict::Passed => f.write_str("no violation."),
            Verdict::Incomplete => f.write_str("no violation, but INCOMPLETE."),
            Verdict::Violation => f.write_str("VIOLATION."),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::checker;
    use crate::fault::Who;
    use crate::history::History;
    use crate::load::Recorder;
    use crate::report::{Found, Window};

    /// A lane with a window for each number of operations that succeeded in it.
    fn lane(windows: &[(Fault, usize)], bad_inputs: usize, sights: &[Sight]) -> LaneReport {
        let window = |(fault, operations): &(Fault, usize)| Window {
            fault: *fault,
            detail: String::new(),
            began_ns: 0,
            healed_ns: 1,
            recovery: Duration::ZERO,
            operations: *operations,
            did_nothing: false,
        };
        let windows: Vec<Window> = windows.iter().map(window).collect();
        let (sights, checked) = (sights.to_vec(), checker::check(&History::default()));
        let found = Found {
            planned: windows.len(),
            not_begun: 0,
            windows,
            findings: Vec::new(),
            bad_inputs,
            misuses: BTreeMap::new(),
            sights,
            monitored: 0,
            kills_at_calls: BTreeMap::new(),
            leases: 0,
            tokens: Default::default(),
            checked,
        };
        LaneReport::new("lane", &History::default(), found, &Recorder::new())
    }

    /// Five windows of a fault are enough if operations succeeded in each of the five, in whatever lanes.
    ///
    /// Method: one more window at a time, each in a lane of its own; then a window without operations
    /// instead.
    #[test]
    fn wants_each_fault_often_and_under_load() {
        let missing = |windows: &[(Fault, usize)], fault: Fault| {
            let mut total = Total::default();
            windows.iter().for_each(|window| total.add(vec![Ok(lane(&[*window], 0, &[]))]));
            total.check_faults([fault]);
            let is_missing = !total.missing.is_empty();
            assert_eq!(total.verdict(), if is_missing { Verdict::Incomplete } else { Verdict::Passed });
            total.missing
        };
        for fault in [Fault::Ring, Fault::Kill(Who::Leader), Fault::Kill(Who::All)] {
            for count in 0..WINDOWS_MIN {
                let came = format!("{fault} occurred {count} times, at least 5 are required");
                assert_eq!(missing(&vec![(fault, 1); count], fault), [came]);
            }
            assert_eq!(missing(&[(fault, 1); WINDOWS_MIN], fault), [] as [String; 0]);
        }
        let one_idle = |fault| [(fault, 3), (fault, 3), (fault, 0), (fault, 3), (fault, 3)];
        let ring = missing(&one_idle(Fault::Ring), Fault::Ring);
        assert_eq!(ring, ["operations succeeded in 4 of 5 windows of ring"]);
        // No operation can succeed while all nodes are down.
        let all = Fault::Kill(Who::All);
        assert_eq!(missing(&one_idle(all), all), [] as [String; 0]);
    }

    /// A complete run needs minimum totals over all lanes; the report names each total that is too small.
    #[test]
    fn wants_as_much_as_a_complete_run_has() {
        let kinds = [Who::Leader, Who::Follower, Who::Majority].map(|who| {
            [Fault::Kill(who), Fault::Pause(who), Fault::Isolate(who), Fault::PowerCut(who)].map(|kind| (kind, 1))
        });
        let enough = || {
            let mut lane = lane(&kinds.as_flattened().repeat(7), BAD_INPUTS_MIN / 2, &[]);
            (lane.operations, lane.replayed) = (OPERATIONS_MIN / 2, REPLAYED_MIN / 2);
            lane
        };
        let missing = |second: LaneReport| {
            let mut total = Total::default();
            total.add(vec![Ok(enough()), Ok(second)]);
            total.check_amounts();
            total.missing
        };
        assert_eq!(missing(enough()), [] as [String; 0]);
        let mut one_less = enough();
        one_less.operations -= 1;
        assert_eq!(missing(one_less), ["59999 of 60000 checked operations"]);
        let few = ["30000 of 60000 checked operations", "84 of 160 faults", "3000 of 6000 bad inputs"];
        assert_eq!(missing(lane(&[], 0, &[]))[..3], few);
        assert_eq!(missing(lane(&[], 0, &[]))[3..], ["1000 of 2000 retries that got the first response"]);
    }

    /// Each effect must have been seen, in whatever lane.
    #[test]
    fn wants_to_have_seen_what_faults_are_for() {
        let missing = |sights: &[&[Sight]]| {
            let mut total = Total::default();
            sights.iter().for_each(|sights| total.add(vec![Ok(lane(&[], 0, sights))]));
            total.check_sights();
            total.missing
        };
        let [write, start] = Sight::ALL;
        assert_eq!(missing(&[&[write], &[start, start]]), [] as [String; 0]);
        assert_eq!(missing(&[&[start]]), [format!("no {write}")]);
        assert_eq!(missing(&[&[]]), [format!("no {write}"), format!("no {start}")]);
    }

    /// Each kind of misuse must have occurred often enough, over all lanes.
    #[test]
    fn wants_each_kind_of_misuse() {
        let missing = |counts: [usize; 2]| {
            let mut total = Total::default();
            for count in counts {
                let mut lane = lane(&[], 0, &[]);
                lane.found.misuses = Misuse::ALL.map(|misuse| (misuse, MISUSES_MIN)).into();
                lane.found.misuses.insert(Misuse::Resets, count);
                total.add(vec![Ok(lane)]);
            }
            total.check_misuses();
            total.missing
        };
        assert_eq!(missing([5, MISUSES_MIN - 5]), [] as [String; 0]);
        assert_eq!(missing([5, MISUSES_MIN - 6]), ["resets occurred 19 times, at least 20 are required"]);
    }

    /// Everything except a violation makes a run incomplete, with the reason: a fault that occurred too
    /// seldom, a lane that the harness could not run, a tool that failed, and doubts of the checker. An
    /// additional violation makes the run a violation.
    #[test]
    fn an_incomplete_run_is_no_violation() {
        let planned = [(Fault::LagKillSender, 2), (Fault::Lag, 1)];
        let mut windows = lane(&[(Fault::Lag, 1), (Fault::LagKillSender, 1), (Fault::LagKillSender, 1)], 0, &[]);
        windows.require(&planned);
        assert_eq!((windows.verdict(), windows.gaps()), (Verdict::Passed, vec![]));

        let mut short = lane(&[(Fault::Lag, 1), (Fault::LagKillSender, 1)], 0, &[]);
        let vain = Window { did_nothing: true, ..short.found.windows[1].clone() };
        (short.found.windows, short.found.not_begun) = (vec![vain; 21], 3);
        short.require(&planned);
        let gaps = [
            "lag-kill-sender occurred 1 of 2 times; 21 attempts had no effect",
            "3 faults did not begin before the lane ended",
        ];
        assert_eq!((short.verdict(), short.gaps()), (Verdict::Incomplete, gaps.map(str::to_owned).to_vec()));
        assert!(short.to_string().starts_with("Lane lane: INCOMPLETE\n"));

        let mut broken = lane(&[], 0, &[]);
        broken.found.findings.push(Finding::harness("`nft` failed".to_owned()));
        let mut undecided = lane(&[], 0, &[]);
        undecided.found.checked.doubt(|| "a window".to_owned());
        for (report, gap) in [(broken, "`nft` failed"), (undecided, "undecided: a window")] {
            assert_eq!((report.verdict(), report.gaps()), (Verdict::Incomplete, vec![gap.to_owned()]));
        }

        let verdict = |results: Vec<LaneResult>| {
            let mut total = Total::default();
            total.add(results);
            (total.verdict(), total.to_string().ends_with("no violation, but INCOMPLETE."))
        };
        let ended = |is_violation: bool| {
            let text = "no cluster".to_owned();
            Err(if is_violation { Finding::other(text) } else { Finding::harness(text) })
        };
        let passed = || lane(&[], 0, &[]);
        let mut violated = passed();
        violated.found.findings.push(Finding::other("a node ended".to_owned()));
        assert_eq!(verdict(vec![Ok(passed())]), (Verdict::Passed, false));
        assert_eq!(verdict(vec![Ok(passed()), ended(false)]), (Verdict::Incomplete, true));
        assert_eq!(verdict(vec![ended(false), ended(true)]), (Verdict::Violation, false));
        assert_eq!(verdict(vec![Ok(short), Ok(passed())]), (Verdict::Incomplete, true));
        assert_eq!(verdict(vec![ended(false), Ok(violated)]), (Verdict::Violation, false));
    }

    /// Several runs are judged by their sums: a fault that occurred too seldom in one may have occurred more
    /// often in another.
    #[test]
    fn several_runs_make_up_for_each_other() {
        let mut total = Total::default();
        for count in [1, 3] {
            let mut report = lane(&vec![(Fault::Lag, 1); count], 0, &[]);
            report.require(&[(Fault::Lag, 2)]);
            total.add(vec![Ok(report)]);
            assert_eq!(total.verdict(), if count == 1 { Verdict::Incomplete } else { Verdict::Passed });
        }
    }
}
