//! The results of a lane.

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
use crate::tokens;
use crate::verdict::Verdict;

/// Time within which writes should succeed after a fault is healed.
const RECOVERY_WANTED: Duration = Duration::from_secs(2);

/// If this many calls of a kind were made, it is no coincidence that none succeeded.
const CALLS_MIN: usize = 50;

/// One fault, from its beginning until it was healed.
#[derive(Clone, Debug)]
pub struct Window {
    pub fault: Fault,
    pub detail: String,
    pub began_ns: u64,
    pub healed_ns: u64,
    /// Time from healing to the first successful write.
    pub recovery: Duration,
    /// Operations that succeeded during the fault.
    pub operations: usize,
    /// The fault had no effect.
    pub did_nothing: bool,
}

impl Window {
    /// Whether it shows nothing about its fault: the fault had no effect, or no operation succeeded although
    /// some could have.
    pub fn shows_nothing(&self) -> bool {
        self.did_nothing || (self.operations == 0 && self.fault.leaves_a_majority())
    }
}

/// Observations during a lane.
#[derive(Debug)]
pub struct Found {
    pub windows: Vec<Window>,
    /// Number of planned faults.
    pub planned: usize,
    /// Number of faults that did not begin before the lane ended, because of its time limit or a failed
    /// fault.
    pub not_begun: usize,
    /// Violations, and failures of the harness itself.
    pub findings: Vec<Finding>,
    /// Number of requests that must be rejected.
    pub bad_inputs: usize,
    /// The misuses of the hostile client.
    pub misuses: Misuses,
    /// The effects of faults that were seen.
    pub sights: Vec<Sight>,
    /// Number of times that a node reported its vote and progress.
    pub monitored: usize,
    /// Number of kills at each system call.
    pub kills_at_calls: BTreeMap<&'static str, usize>,
    /// Number of keys whose expiry was compared with true time.
    pub leases: usize,
    /// What became of tokens that were revoked.
    pub tokens: tokens::Counts,
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
        self.tokens.add(other.tokens);
        for (call, count) in other.kills_at_calls {
            *self.kills_at_calls.entry(call).or_default() += count;
        }
        self.checked.extend(other.checked);
    }

    /// All observations that no correct cluster permits. A doubt of the checker is not among them.
    fn all(&self) -> impl Iterator<Item = Finding> {
        let violations = self.checked.violations.iter();
        let violations = violations.map(|one| Finding::new(one.kind.into(), one.to_string()));
        violations.chain(self.findings.iter().cloned())
    }

    /// The first finding with one of these symptoms.
    pub fn first_of(&self, symptoms: &[Symptom]) -> Option<Finding> {
        self.all().find(|finding| symptoms.contains(&finding.symptom))
    }

    /// The first violation.
    pub fn violation(&self) -> Option<Finding> {
        self.all().find(Finding::is_violation)
    }

    /// Failures of the harness, and doubts of the checker.
    pub fn gaps(&self) -> impl Iterator<Item = Finding> {
        let doubts = self.checked.doubts.iter().map(|doubt| Finding::harness(format!("undecided: {doubt}")));
        self.findings.iter().filter(|finding| !finding.is_violation()).cloned().chain(doubts)
    }

    /// Whether the harness failed.
    pub fn is_broken(&self) -> bool {
        self.findings.iter().any(|finding| !finding.is_violation())
    }

    /// The number of faults of this kind without an effect.
    fn attempts_in_vain(&self, fault: Fault) -> usize {
        self.windows.iter().filter(|window| window.fault == fault && window.did_nothing).count()
    }
}

/// The results of a lane.
#[derive(Debug)]
pub struct LaneReport {
    pub name: &'static str,
    /// Number of checked operations.
    pub operations: usize,
    /// Number of retried requests that got the first response.
    pub replayed: usize,
    answers_dropped: u64,
    longest_outage: Duration,
    /// The results of each kind of fault.
    kinds: BTreeMap<Fault, Kind>,
    /// Required number of faults of each kind; empty if the lane need not be complete.
    required: BTreeMap<Fault, usize>,
    /// The outcomes of calls, by kind.
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
    /// The number of those during which operations succeeded.
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
                let text = format!("none of {calls} calls of the kind {kind} succeeded");
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

    /// Requires each of these faults as often as planned.
    pub fn require(&mut self, planned: &[(Fault, usize)]) {
        self.required = planned.iter().copied().collect();
    }

    /// The faults that occurred less often than required.
    fn shortfalls(&self) -> Vec<String> {
        let short = self.required.iter().filter(|(fault, wanted)| self.count(**fault) < **wanted);
        let mut texts: Vec<String> = short
            .map(|(fault, wanted)| {
                let (count, in_vain) = (self.count(*fault), self.found.attempts_in_vain(*fault));
                format!("{fault} occurred {count} of {wanted} times; {in_vain} attempts had no effect")
            })
            .collect();
        if !texts.is_empty() && self.found.not_begun > 0 {
            texts.push(format!("{} faults did not begin before the lane ended", self.found.not_begun));
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

    /// How often a fault was in force while operations succeeded.
    pub fn busy_count(&self, fault: Fault) -> usize {
        self.kinds.get(&fault).map_or(0, |kind| kind.busy)
    }

    /// Adds the results of the same lane in another run.
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

    /// The number of misuses of this kind.
    pub fn misuses(&self, misuse: Misuse) -> usize {
        self.found.misuses.get(&misuse).copied().unwrap_or_default()
    }

    /// The number of times that this effect was seen.
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

/// The longest time without a successful write.
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
            "  responses discarded: {}; retries that got the first response: {}",
            self.answers_dropped, self.replayed
        )?;
        writeln!(f, "  votes, terms and indexes reported by nodes: {}", self.found.monitored)?;
        writeln!(f, "  longest time without a write: {:.2} s", self.longest_outage.as_secs_f64())?;
        writeln!(f, "  {} faults of {} planned:", self.faults(), self.found.planned)?;
        writeln!(f, "    {:<26} {:>5} {:>11} {:>16} {:>8}", "fault", "times", "operations", "recovery ms", "slowest")?;
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
            writeln!(f, "  misuses by the hostile client: {}", by_kind.join(", "))?;
        }
        if self.found.tokens != tokens::Counts::default() {
            writeln!(f, "  {}", self.found.tokens)?;
        }
        writeln!(f, "    {:<26} {:>11} {:>11} {:>11}", "call", "done", "not applied", "unknown")?;
        for (kind, Outcomes { done, not_applied, unknown }) in &self.outcomes {
            writeln!(f, "    {kind:<26} {done:>11} {not_applied:>11} {unknown:>11}")?;
        }
        if self.operations == 0 {
            writeln!(f, "  no history was checked; the nodes' states were compared")?;
            writeln!(f, "  leases compared with true time: {}", self.found.leases)?;
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
