//! What some runs came to, by lane.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::fault::{Fault, Sight};
use crate::report::LaneReport;

/// How often each kind of fault must come, and be in force while operations are done.
const WINDOWS_MIN: usize = 5;
/// What a complete run must come to at least.
const OPERATIONS_MIN: usize = 60_000;
const FAULTS_MIN: usize = 160;
const KINDS_MIN: usize = 12;
const BAD_INPUTS_MIN: usize = 6_000;
/// Requests that were sent again and told the first answer.
const REPLAYED_MIN: usize = 2_000;

/// What some runs came to.
#[derive(Debug, Default)]
pub struct Total {
    runs: usize,
    /// By lane, over all runs.
    lanes: BTreeMap<&'static str, LaneReport>,
    failed: usize,
    /// What the lanes did not show, all together.
    missing: Vec<String>,
}

impl Total {
    pub fn add(&mut self, reports: Vec<Option<LaneReport>>) {
        self.runs += 1;
        for report in reports {
            self.failed += usize::from(!report.as_ref().is_some_and(LaneReport::passed));
            let Some(report) = report else { continue };
            match self.lanes.get_mut(report.name) {
                Some(total) => total.add(report),
                None => _ = self.lanes.insert(report.name, report),
            }
        }
    }

    /// Each of these faults must have come, and have been in force under load. What came by chance in one
    /// window need not come in another: only many of them must have shown it, over all lanes and runs.
    pub fn check_faults(&mut self, faults: impl IntoIterator<Item = Fault>) {
        for fault in BTreeSet::from_iter(faults) {
            let (count, busy) = (self.sum(|report| report.count(fault)), self.sum(|report| report.busy_count(fault)));
            if count < WINDOWS_MIN {
                self.missing.push(format!("{fault} came {count} times, and should {WINDOWS_MIN} times"));
            } else if busy < WINDOWS_MIN && fault.leaves_a_majority() {
                self.missing.push(format!("operations were done in {busy} windows of {count} under {fault}"));
            }
        }
    }

    /// What the faults are there to show must have been seen, at least once.
    pub fn check_sights(&mut self) {
        let unseen = Sight::ALL.into_iter().filter(|sight| self.sum(|report| report.sights(*sight)) == 0);
        let unseen: Vec<String> = unseen.map(|sight| format!("no {sight}")).collect();
        self.missing.extend(unseen);
    }

    /// There must have been as much of everything as a complete run is to have.
    pub fn check_amounts(&mut self) {
        let amounts = [
            (self.sum(|report| report.operations), OPERATIONS_MIN, "operations that were checked"),
            (self.sum(LaneReport::faults), FAULTS_MIN, "faults"),
            (self.kinds(), KINDS_MIN, "kinds of faults"),
            (self.sum(LaneReport::bad_inputs), BAD_INPUTS_MIN, "bad inputs"),
            (self.sum(|report| report.replayed), REPLAYED_MIN, "repeats that were told the first answer"),
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

    pub fn passed(&self) -> bool {
        self.failed == 0 && self.missing.is_empty()
    }
}

impl fmt::Display for Total {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for report in self.lanes.values() {
            writeln!(f, "{report}")?;
        }
        for missing in &self.missing {
            writeln!(f, "MISSING: {missing}")?;
        }
        let (operations, faults) = (self.sum(|report| report.operations), self.sum(LaneReport::faults));
        let (kinds, inputs) = (self.kinds(), self.sum(LaneReport::bad_inputs));
        write!(f, "In all {operations} operations, {faults} faults of {kinds} kinds, {inputs} bad inputs, ")?;
        match (self.failed, self.runs) {
            (0, _) if !self.missing.is_empty() => f.write_str("too little: FAILED."),
            (0, 1) => f.write_str("no violation."),
            (0, runs) => write!(f, "{runs} runs, no violation."),
            (failed, _) => write!(f, "{failed} lanes FAILED."),
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

    /// A lane with a window for each number, which is that of the operations done in it.
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
            windows,
            findings: Vec::new(),
            bad_inputs,
            sights,
            monitored: 0,
            kills_at_calls: BTreeMap::new(),
            checked,
        };
        LaneReport::new("lane", &History::default(), found, &Recorder::new())
    }

    /// Five windows of a fault are enough if operations were done in each of the five, wherever they were.
    ///
    /// Method: one more window at a time, in lanes of their own; then one without operations instead.
    #[test]
    fn wants_each_fault_often_and_under_load() {
        let missing = |windows: &[(Fault, usize)], fault: Fault| {
            let mut total = Total::default();
            windows.iter().for_each(|window| total.add(vec![Some(lane(&[*window], 0, &[]))]));
            total.check_faults([fault]);
            assert_eq!(total.passed(), total.missing.is_empty());
            total.missing
        };
        for fault in [Fault::Ring, Fault::Kill(Who::Leader), Fault::Kill(Who::All)] {
            for count in 0..WINDOWS_MIN {
                let came = format!("{fault} came {count} times, and should 5 times");
                assert_eq!(missing(&vec![(fault, 1); count], fault), [came]);
            }
            assert_eq!(missing(&[(fault, 1); WINDOWS_MIN], fault), [] as [String; 0]);
        }
        let one_idle = |fault| [(fault, 3), (fault, 3), (fault, 0), (fault, 3), (fault, 3)];
        let ring = missing(&one_idle(Fault::Ring), Fault::Ring);
        assert_eq!(ring, ["operations were done in 4 windows of 5 under ring"]);
        // Nothing can be done while all are gone.
        let all = Fault::Kill(Who::All);
        assert_eq!(missing(&one_idle(all), all), [] as [String; 0]);
    }

    /// A complete run has so much of everything over all lanes, and is told what it has too little of.
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
            total.add(vec![Some(enough()), Some(second)]);
            total.check_amounts();
            total.missing
        };
        assert_eq!(missing(enough()), [] as [String; 0]);
        let mut one_less = enough();
        one_less.operations -= 1;
        assert_eq!(missing(one_less), ["59999 of 60000 operations that were checked"]);
        let few = ["30000 of 60000 operations that were checked", "84 of 160 faults", "3000 of 6000 bad inputs"];
        assert_eq!(missing(lane(&[], 0, &[]))[..3], few);
        assert_eq!(missing(lane(&[], 0, &[]))[3..], ["1000 of 2000 repeats that were told the first answer"]);
    }

    /// Each sight must have been seen, in whatever lane.
    #[test]
    fn wants_to_have_seen_what_faults_are_for() {
        let missing = |sights: &[&[Sight]]| {
            let mut total = Total::default();
            sights.iter().for_each(|sights| total.add(vec![Some(lane(&[], 0, sights))]));
            total.check_sights();
            total.missing
        };
        let [write, start] = Sight::ALL;
        assert_eq!(missing(&[&[write], &[start, start]]), [] as [String; 0]);
        assert_eq!(missing(&[&[start]]), [format!("no {write}")]);
        assert_eq!(missing(&[&[]]), [format!("no {write}"), format!("no {start}")]);
    }
}
