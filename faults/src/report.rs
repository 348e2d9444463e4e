//! What a run has shown.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::checker;
use crate::checker::report::Verdict;
use crate::fault::Fault;
use crate::history::{History, Outcome};
use crate::load::{Recorder, is_done_write};

/// How soon writes should succeed once a fault is healed.
const RECOVERY_WANTED: Duration = Duration::from_secs(2);

/// One fault, from its beginning until it was healed.
#[derive(Clone, Debug)]
pub struct Window {
    pub fault: Fault,
    pub detail: String,
    pub began_ns: u64,
    pub healed_ns: u64,
    /// From healing to the first write that was done.
    pub recovery: Duration,
}

/// What came up while a lane ran.
#[derive(Debug)]
pub struct Found {
    pub windows: Vec<Window>,
    /// How many faults there were to be.
    pub planned: usize,
    /// What no correct cluster does.
    pub findings: Vec<String>,
    /// Requests that were sent to be refused.
    pub bad_inputs: usize,
    pub checked: checker::Report,
}

impl Found {
    fn add(&mut self, other: Found) {
        self.windows.extend(other.windows);
        self.planned += other.planned;
        self.findings.extend(other.findings);
        self.bad_inputs += other.bad_inputs;
        self.checked.extend(other.checked);
    }
}

/// What a lane has shown.
#[derive(Debug)]
pub struct LaneReport {
    pub name: &'static str,
    /// How many were checked.
    pub operations: usize,
    replayed: u64,
    answers_dropped: u64,
    longest_outage: Duration,
    /// By kind: how often, operations done inside, the slowest recovery.
    kinds: BTreeMap<Fault, Kind>,
    found: Found,
}

#[derive(Clone, Debug, Default)]
struct Kind {
    count: usize,
    operations: usize,
    recoveries: Vec<Duration>,
}

impl LaneReport {
    pub fn new(name: &'static str, history: &History, found: Found, recorder: &Recorder) -> Self {
        let mut returned: Vec<u64> = history
            .operations
            .iter()
            .filter(|operation| matches!(operation.outcome, Outcome::Done(_)))
            .map(|operation| operation.returned_ns)
            .collect();
        returned.sort_unstable();
        let mut kinds: BTreeMap<Fault, Kind> = BTreeMap::new();
        for window in &found.windows {
            let kind = kinds.entry(window.fault).or_default();
            kind.count += 1;
            let inside = |bound: u64| returned.partition_point(|returned| *returned < bound);
            kind.operations += inside(window.healed_ns) - inside(window.began_ns);
            kind.recoveries.push(window.recovery);
        }
        LaneReport {
            name,
            operations: found.checked.operations.sum() as usize,
            replayed: recorder.replayed.load(Ordering::Relaxed),
            answers_dropped: recorder.answers_dropped.load(Ordering::Relaxed),
            longest_outage: longest_outage(history),
            kinds,
            found,
        }
    }

    /// Adds what the same lane has shown in another run.
    pub fn add(&mut self, other: LaneReport) {
        self.operations += other.operations;
        self.replayed += other.replayed;
        self.answers_dropped += other.answers_dropped;
        self.longest_outage = self.longest_outage.max(other.longest_outage);
        for (fault, kind) in other.kinds {
            let total = self.kinds.entry(fault).or_default();
            total.count += kind.count;
            total.operations += kind.operations;
            total.recoveries.extend(kind.recoveries);
        }
        self.found.add(other.found);
    }

    /// How many faults were in force.
    pub fn faults(&self) -> usize {
        self.kinds.values().map(|kind| kind.count).sum()
    }

    pub fn kinds(&self) -> impl Iterator<Item = Fault> {
        self.kinds.keys().copied()
    }

    pub fn bad_inputs(&self) -> usize {
        self.found.bad_inputs
    }

    /// What no correct cluster does, if there was such a thing. A doubt of the checker is none.
    pub fn first_violation(&self) -> Option<String> {
        let violation = self.found.checked.violations.first().map(ToString::to_string);
        violation.or_else(|| self.found.findings.first().cloned())
    }

    pub fn passed(&self) -> bool {
        self.found.findings.is_empty() && self.found.checked.verdict() == Verdict::Linearizable
    }
}

/// The longest time without a write that was done.
fn longest_outage(history: &History) -> Duration {
    let mut returned: Vec<u64> =
        history.operations.iter().filter(|one| is_done_write(one)).map(|one| one.returned_ns).collect();
    returned.sort_unstable();
    let gaps = returned.windows(2).map(|pair| pair[1] - pair[0]);
    Duration::from_nanos(gaps.max().unwrap_or_default())
}

impl fmt::Display for LaneReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Lane {}: {}", self.name, if self.passed() { "passed" } else { "FAILED" })?;
        writeln!(
            f,
            "  answers thrown away: {}; repeats told the first answer: {}",
            self.answers_dropped, self.replayed
        )?;
        writeln!(f, "  longest time without a write: {:.2} s", self.longest_outage.as_secs_f64())?;
        writeln!(f, "  {} faults of {} planned:", self.faults(), self.found.planned)?;
        writeln!(
            f,
            "    {:<26} {:>5} {:>11} {:>16} {:>8}",
            "fault", "times", "operations", "writes after ms", "slowest"
        )?;
        for (fault, kind) in &self.kinds {
            let mut recoveries = kind.recoveries.clone();
            recoveries.sort_unstable();
            let median = recoveries[recoveries.len() / 2];
            let slowest = recoveries[recoveries.len() - 1];
            writeln!(
                f,
                "    {:<26} {:>5} {:>11} {:>16} {:>8}{}",
                fault.to_string(),
                kind.count,
                kind.operations,
                median.as_millis(),
                slowest.as_millis(),
                if slowest > RECOVERY_WANTED { "  > 2 s" } else { "" }
            )?;
        }
        if self.operations == 0 {
            writeln!(f, "  no history was checked here: the nodes were held against each other")?;
        } else {
            for line in self.found.checked.to_string().lines() {
                writeln!(f, "  {line}")?;
            }
        }
        for finding in &self.found.findings {
            writeln!(f, "  FOUND: {finding}")?;
        }
        Ok(())
    }
}
