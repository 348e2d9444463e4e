//! What a run has shown.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::checker;
use crate::fault::{Fault, Sight};
use crate::finding::{Finding, Symptom};
use crate::history::{Call, Consistency, History, Outcome};
use crate::hostile::{Misuse, Misuses};
use crate::load::{Recorder, is_done_write};
use crate::verdict::Verdict;

/// How soon writes should succeed once a fault is healed.
const RECOVERY_WANTED: Duration = Duration::from_secs(2);

/// From how many calls of a kind on it is no chance that none of them was done.
const CALLS_MIN: usize = 50;

/// One fault, from its beginning until it was healed.
#[derive(Clone, Debug)]
pub struct Window {
    pub fault: Fault,
    pub detail: String,
    pub began_ns: u64,
    pub healed_ns: u64,
    /// From healing to the first write that was done.
    pub recovery: Duration,
    /// Operations that were done inside.
    pub operations: usize,
    /// There was nothing to break.
    pub did_nothing: bool,
}

impl Window {
    /// It shows nothing of its fault: there was nothing to break, or nobody had an answer although some could have.
    pub fn shows_nothing(&self) -> bool {
        self.did_nothing || (self.operations == 0 && self.fault.leaves_a_majority())
    }
}

/// What came up while a lane ran.
#[derive(Debug)]
pub struct Found {
    pub windows: Vec<Window>,
    /// How many faults there were to be.
    pub planned: usize,
    /// Faults that were not begun before the lane ended: by its time limit, or because a fault failed.
    pub not_begun: usize,
    /// Violations, and what the harness itself could not do.
    pub findings: Vec<Finding>,
    /// Requests that were sent to be refused.
    pub bad_inputs: usize,
    /// What the hostile client did.
    pub misuses: Misuses,
    /// What the faults were there for, and came.
    pub sights: Vec<Sight>,
    /// How often a node said what its vote is, and how far it has come.
    pub monitored: usize,
    /// By system call, how often a node was killed at it.
    pub kills_at_calls: BTreeMap<&'static str, usize>,
    /// Keys whose expiry was compared with true time.
    pub leases: usize,
    pub checked: checker::Report,
}

impl Found {
    fn add(&mut self, other: Found) {
        self.windows.extend(other.windows);
        self.planned += other.planned;
        self.not_begun += other.not_begun;
        self.findings.extend(other.findings);
        self.bad_inputs += other.bad_inputs;
        for (misuse, count) in other.misuses {
            *self.misuses.entry(misuse).or_default() += count;
        }
        self.sights.extend(other.sights);
        self.monitored += other.monitored;
        self.leases += other.leases;
        for (call, count) in other.kills_at_calls {
            *self.kills_at_calls.entry(call).or_default() += count;
        }
        self.checked.extend(other.checked);
    }

    /// What no correct cluster does. A doubt of the checker is none.
    fn all(&self) -> impl Iterator<Item = Finding> {
        let violations = self.checked.violations.iter();
        let violations = violations.map(|one| Finding::new(one.kind.into(), one.to_string()));
        violations.chain(self.findings.iter().cloned())
    }

    /// The first that shows in one of these ways.
    pub fn first_of(&self, symptoms: &[Symptom]) -> Option<Finding> {
        self.all().find(|finding| symptoms.contains(&finding.symptom))
    }

    /// The first violation.
    pub fn violation(&self) -> Option<Finding> {
        self.all().find(Finding::is_violation)
    }

    /// What the harness could not do, and what the checker could not decide.
    pub fn gaps(&self) -> impl Iterator<Item = Finding> {
        let doubts = self.checked.doubts.iter().map(|doubt| Finding::harness(format!("undecided: {doubt}")));
        self.findings.iter().filter(|finding| !finding.is_violation()).cloned().chain(doubts)
    }

    /// Whether the harness could not do its part.
    pub fn is_broken(&self) -> bool {
        self.findings.iter().any(|finding| !finding.is_violation())
    }

    /// How often a fault found nothing to break.
    fn attempts_in_vain(&self, fault: Fault) -> usize {
        self.windows.iter().filter(|window| window.fault == fault && window.did_nothing).count()
    }
}

/// What a lane has shown.
#[derive(Debug)]
pub struct LaneReport {
    pub name: &'static str,
    /// How many were checked.
    pub operations: usize,
    /// Requests that were sent again and told the first answer.
    pub replayed: usize,
    answers_dropped: u64,
    longest_outage: Duration,
    /// What there was of each kind of fault.
    kinds: BTreeMap<Fault, Kind>,
    /// How often each kind of fault has to come; empty if the lane need not be complete.
    required: BTreeMap<Fault, usize>,
    /// By kind of call, what calls came to.
    outcomes: BTreeMap<&'static str, Outcomes>,
    pub found: Found,
}

#[derive(Clone, Copy, Debug, Default)]
struct Outcomes {
    done: usize,
    not_applied: usize,
    unknown: usize,
}

#[derive(Clone, Debug, Default)]
struct Kind {
    count: usize,
    /// How many of them operations were done in.
    busy: usize,
    operations: usize,
    recoveries: Vec<Duration>,
}

impl LaneReport {
    pub fn new(name: &'static str, history: &History, found: Found, recorder: &Recorder) -> Self {
        let mut kinds: BTreeMap<Fault, Kind> = BTreeMap::new();
        for window in found.windows.iter().filter(|window| !window.did_nothing) {
            let kind = kinds.entry(window.fault).or_default();
            kind.count += 1;
            kind.busy += usize::from(window.operations > 0);
            kind.operations += window.operations;
            kind.recoveries.push(window.recovery);
        }
        let outcomes = outcomes(history);
        let mut found = found;
        for (kind, counts) in &outcomes {
            let calls = counts.done + counts.not_applied + counts.unknown;
            if counts.done == 0 && calls >= CALLS_MIN {
                let text = format!("none of {calls} calls of the kind {kind} was ever done");
                found.findings.push(Finding::other(text));
            }
        }
        LaneReport {
            name,
            outcomes,
            operations: found.checked.operations.sum() as usize,
            replayed: recorder.replayed.load(Ordering::Relaxed) as usize,
            answers_dropped: recorder.answers_dropped.load(Ordering::Relaxed),
            longest_outage: longest_outage(history),
            kinds,
            required: BTreeMap::new(),
            found,
        }
    }

    /// The lane is complete only if each of these faults came as often as it says here.
    pub fn require(&mut self, planned: &[(Fault, usize)]) {
        self.required = planned.iter().copied().collect();
    }

    /// The faults that did not come as often as they have to.
    fn shortfalls(&self) -> Vec<String> {
        let short = self.required.iter().filter(|(fault, wanted)| self.count(**fault) < **wanted);
        let mut texts: Vec<String> = short
            .map(|(fault, wanted)| {
                let (count, in_vain) = (self.count(*fault), self.found.attempts_in_vain(*fault));
                format!("{fault} came {count} of {wanted} times; {in_vain} attempts found nothing to break")
            })
            .collect();
        if !texts.is_empty() && self.found.not_begun > 0 {
            texts.push(format!("{} faults were not begun before the lane ended", self.found.not_begun));
        }
        texts
    }

    /// Why the lane is not complete.
    pub fn gaps(&self) -> Vec<String> {
        self.found.gaps().map(|gap| gap.to_string()).chain(self.shortfalls()).collect()
    }

    pub fn verdict(&self) -> Verdict {
        if self.found.violation().is_some() {
            Verdict::Violation
        } else if self.gaps().is_empty() {
            Verdict::Passed
        } else {
            Verdict::Incomplete
        }
    }

    /// How often a fault was in force.
    pub fn count(&self, fault: Fault) -> usize {
        self.kinds.get(&fault).map_or(0, |kind| kind.count)
    }

    /// How often a fault was in force while operations were done.
    pub fn busy_count(&self, fault: Fault) -> usize {
        self.kinds.get(&fault).map_or(0, |kind| kind.busy)
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
            total.busy += kind.busy;
            total.operations += kind.operations;
            total.recoveries.extend(kind.recoveries);
        }
        for (fault, wanted) in other.required {
            *self.required.entry(fault).or_default() += wanted;
        }
        for (kind, counts) in other.outcomes {
            let total = self.outcomes.entry(kind).or_default();
            total.done += counts.done;
            total.not_applied += counts.not_applied;
            total.unknown += counts.unknown;
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

    /// How often the hostile client did this.
    pub fn misuses(&self, misuse: Misuse) -> usize {
        self.found.misuses.get(&misuse).copied().unwrap_or_default()
    }

    /// How often it was seen.
    pub fn sights(&self, sight: Sight) -> usize {
        self.found.sights.iter().filter(|seen| **seen == sight).count()
    }
}

fn outcomes(history: &History) -> BTreeMap<&'static str, Outcomes> {
    let mut outcomes: BTreeMap<&'static str, Outcomes> = BTreeMap::new();
    for operation in &history.operations {
        let counts = outcomes.entry(kind_of(&operation.call)).or_default();
        match operation.outcome {
            Outcome::Done(_) => counts.done += 1,
            Outcome::NotApplied => counts.not_applied += 1,
            Outcome::Unknown => counts.unknown += 1,
        }
    }
    outcomes
}

fn kind_of(call: &Call) -> &'static str {
    match call {
        Call::Put { condition: None, .. } => "put",
        Call::Put { condition: Some(_), .. } => "put if",
        Call::Delete { condition: None, .. } => "delete",
        Call::Delete { condition: Some(_), .. } => "delete if",
        Call::Txn { .. } => "transaction",
        Call::Get { consistency: Consistency::Linearizable, .. } => "get",
        Call::Get { consistency: Consistency::Stale, .. } => "stale get",
        Call::List { consistency: Consistency::Linearizable, .. } => "list",
        Call::List { consistency: Consistency::Stale, .. } => "stale list",
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
        let verdict = self.verdict();
        let word = if verdict.passed() { verdict.to_string() } else { verdict.to_string().to_uppercase() };
        writeln!(f, "Lane {}: {word}", self.name)?;
        writeln!(
            f,
            "  answers thrown away: {}; repeats told the first answer: {}",
            self.answers_dropped, self.replayed
        )?;
        writeln!(f, "  votes, terms and indexes told by nodes: {} times", self.found.monitored)?;
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
        for sight in Sight::ALL.into_iter().filter(|sight| self.sights(*sight) > 0) {
            writeln!(f, "    {sight}: {}", self.sights(sight))?;
        }
        let kills = &self.found.kills_at_calls;
        if !kills.is_empty() {
            let by_call: Vec<String> = kills.iter().map(|(call, count)| format!("{call} {count}")).collect();
            writeln!(f, "  killed at {} system calls: {}", kills.values().sum::<usize>(), by_call.join(", "))?;
        }
        let misuses = &self.found.misuses;
        if !misuses.is_empty() {
            let by_kind: Vec<String> = misuses.iter().map(|(misuse, count)| format!("{misuse} {count}")).collect();
            writeln!(f, "  misused by a hostile client: {}", by_kind.join(", "))?;
        }
        writeln!(f, "    {:<26} {:>11} {:>11} {:>11}", "call", "done", "not applied", "unknown")?;
        for (kind, Outcomes { done, not_applied, unknown }) in &self.outcomes {
            writeln!(f, "    {kind:<26} {done:>11} {not_applied:>11} {unknown:>11}")?;
        }
        if self.operations == 0 {
            writeln!(f, "  no history was checked here: the nodes were held against each other")?;
            writeln!(f, "  leases held against true time: {}", self.found.leases)?;
        } else {
            for line in self.found.checked.to_string().lines() {
                writeln!(f, "  {line}")?;
            }
        }
        for finding in self.found.findings.iter().filter(|finding| finding.is_violation()) {
            writeln!(f, "  FOUND: {finding}")?;
        }
        for gap in self.gaps() {
            writeln!(f, "  INCOMPLETE: {gap}")?;
        }
        Ok(())
    }
}
