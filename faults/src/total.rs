//! What some runs came to, by lane.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::fault::Fault;
use crate::report::LaneReport;

/// What some runs came to.
#[derive(Debug, Default)]
pub struct Total {
    runs: usize,
    /// By lane, over all runs.
    lanes: BTreeMap<&'static str, LaneReport>,
    failed: usize,
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

    pub fn passed(&self) -> bool {
        self.failed == 0
    }
}

impl fmt::Display for Total {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for report in self.lanes.values() {
            writeln!(f, "{report}")?;
        }
        let sum = |of: fn(&LaneReport) -> usize| self.lanes.values().map(of).sum::<usize>();
        let kinds: BTreeSet<Fault> = self.lanes.values().flat_map(LaneReport::kinds).collect();
        let (operations, faults) = (sum(|report| report.operations), sum(LaneReport::faults));
        let (kinds, inputs) = (kinds.len(), sum(LaneReport::bad_inputs));
        write!(f, "In all {operations} operations, {faults} faults of {kinds} kinds, {inputs} bad inputs, ")?;
        match (self.failed, self.runs) {
            (0, 1) => f.write_str("no violation."),
            (0, runs) => write!(f, "{runs} runs, no violation."),
            (failed, _) => write!(f, "{failed} lanes FAILED."),
        }
    }
}
