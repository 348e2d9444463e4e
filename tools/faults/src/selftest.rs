//! Tests the harness: servers with one seeded bug each, which it must find.
//!
//! For each bug there is a short lane with the faults and the load that should expose it. The lane is
//! repeated with other seeds until the bug shows as expected, or until its time limit. A bug that, for
//! example, only prevents a cluster from writing does not count as caught. The same lanes must pass without a
//! bug, because a failure there would be found whatever the bug. A lane that could not run, or whose faults
//! had no effect, shows neither.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::Instant;

use crate::arguments::SelftestArguments;
use crate::cluster::{Bug, Plan};
use crate::disk::FileSystem;
use crate::fault::{Fault, Who};
use crate::finding::{Finding, Symptom, is_of_harness};
use crate::lane::{self, LanePlan};
use crate::load::LoadPlan;
use crate::node::BUG_VARIABLE;
use crate::plans::upkeep_flags;
use crate::report::LaneReport;
use crate::store::System;
use crate::verdict::Verdict;

/// Number of nodes in each cluster.
const NODES: u64 = 3;
/// The node with the bug, if only one node has it.
const ONE_NODE: u64 = 2;
/// The search for a bug ends after this many consecutive incomplete rounds.
const INCOMPLETE_ROUNDS_MAX: usize = 5;
/// Length of a violation's description in the table.
const WORDS_MAX: usize = 160;
/// Frequent snapshots and a short log.
const SNAPSHOT_FLAGS: [&str; 4] = ["--snapshot-entries", "100", "--snapshot-keep-entries", "20"];

/// How to find a bug.
#[derive(Clone, Copy, Debug)]
struct Trial {
    bug: &'static str,
    only: Option<u64>,
    faults: &'static [(Fault, usize)],
    means: Means,
    /// The symptoms by which it counts as caught.
    symptoms: &'static [Symptom],
}

/// Requirements of a lane in addition to its faults.
#[derive(Clone, Copy, Debug)]
struct Means {
    disks: bool,
    snapshots: bool,
    traces_renames: bool,
    /// Many clients without pauses, for high concurrency.
    busy: bool,
    /// Requests are retried only after seconds.
    late_retries: bool,
    /// Keys expire, and only the nodes' states are compared.
    expiring: bool,
    /// The flags of the lane `upkeep`, with a small quota.
    upkeep: bool,
    /// TLS and tokens, as in the lane `tls`.
    secured: bool,
}

/// No requirements.
const MEANS: Means = Means {
    disks: false,
    snapshots: false,
    traces_renames: false,
    busy: false,
    late_retries: false,
    expiring: false,
    upkeep: false,
    secured: false,
};

const fn trial(bug: &'static str, faults: &'static [(Fault, usize)], means: Means) -> Trial {
    Trial { bug, only: None, faults, means, symptoms: &[Symptom::History] }
}

/// All bugs of the server's `src/seeded_bug.rs`.
const TRIALS: [Trial; 17] = [
    // Only a power cut loses data that was written but not synced.
    Trial {
        symptoms: &[Symptom::WentBack],
        ..trial("vote-not-synced", &[(Fault::PowerCutInElection, 2)], Means { disks: true, ..MEANS })
    },
    trial(
        "acknowledged-before-sync",
        &[(Fault::PowerCutInSync(Who::All), 2), (Fault::PowerCutInSync(Who::Majority), 1)],
        Means { disks: true, ..MEANS },
    ),
    Trial {
        symptoms: &[Symptom::SystemCall],
        ..trial("directory-not-synced", &[(Fault::Lag, 1)], Means { traces_renames: true, snapshots: true, ..MEANS })
    },
    // One node starts from its own snapshot, and one receives another node's.
    Trial {
        symptoms: &[Symptom::History, Symptom::States],
        ..trial(
            "snapshot-misses-last-entry",
            &[(Fault::Kill(Who::All), 2), (Fault::Lag, 1)],
            Means { snapshots: true, ..MEANS },
        )
    },
    // A snapshot must be built between the two attempts of a request.
    trial(
        "snapshot-misses-requests",
        &[(Fault::Kill(Who::All), 3)],
        Means { snapshots: true, busy: true, late_retries: true, ..MEANS },
    ),
    trial("read-without-read-index", &[(Fault::Isolate(Who::Follower), 2)], MEANS),
    // Conditions on the same keys, and a long time between proposal and application.
    trial("condition-judged-when-proposed", &[(Fault::SlowSync, 2)], Means { busy: true, ..MEANS }),
    trial("no-deduplication", &[(Fault::Kill(Who::Leader), 1)], MEANS),
    // A log that is long enough for most bits to be far from its end.
    Trial {
        symptoms: &[Symptom::Start],
        ..trial("damage-cut-as-torn", &[(Fault::Flip, 6)], Means { busy: true, ..MEANS })
    },
    // Raft reports this for entries that a snapshot has replaced.
    trial("forward-reported-as-not-applied", &[(Fault::LagLeader, 2)], Means { busy: true, snapshots: true, ..MEANS }),
    // Swapping needs two requests at once.
    Trial {
        only: Some(ONE_NODE),
        symptoms: &[Symptom::History, Symptom::States],
        ..trial("entries-swapped", &[(Fault::Pause(Who::Follower), 2)], Means { busy: true, ..MEANS })
    },
    // The effects of a wrong clock must survive a restart. The leader's clock counts on every node.
    Trial {
        symptoms: &[Symptom::States],
        ..trial(
            "clock-read-in-apply",
            &[(Fault::Clock(Who::Follower), 2), (Fault::Pause(Who::Follower), 1)],
            Means { snapshots: true, expiring: true, ..MEANS },
        )
    },
    // A node with a wrong clock must lead.
    Trial {
        symptoms: &[Symptom::Expiry],
        ..trial("expiry-follows-wall-clock", &[(Fault::Clock(Who::Leader), 2)], Means { expiring: true, ..MEANS })
    },
    Trial {
        symptoms: &[Symptom::Backup],
        ..trial("backup-of-later-state", &[(Fault::Backup, 1)], Means { upkeep: true, ..MEANS })
    },
    Trial {
        symptoms: &[Symptom::Quota],
        ..trial("quota-never-lifts", &[(Fault::Quota, 1)], Means { upkeep: true, ..MEANS })
    },
    // The node that joins must have been added before it is killed.
    Trial { symptoms: &[Symptom::Membership], ..trial("promoted-before-caught-up", &[(Fault::JoinKilled, 2)], MEANS) },
    // The connections on which the token was used must stay open, and tokens be revoked meanwhile.
    Trial {
        symptoms: &[Symptom::Token],
        ..trial("revocation-not-noticed", &[(Fault::Transfer, 4)], Means { secured: true, ..MEANS })
    },
];

/// The outcome of a round.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// The round passed.
    Nothing,
    /// The bug shows with one of its symptoms.
    Caught(Finding),
    /// A finding that need not be caused by the bug.
    Unexpected(Finding),
    /// The lane could not run as required, or not everything could be checked.
    Incomplete(String),
}

impl Outcome {
    fn of(report: &LaneReport, symptoms: &[Symptom]) -> Self {
        let (found, gaps) = (&report.found, report.gaps());
        match (found.first_of(symptoms), found.violation(), gaps.into_iter().next()) {
            (Some(finding), _, _) => Outcome::Caught(finding),
            (None, Some(finding), _) => Outcome::Unexpected(finding),
            (None, None, Some(gap)) => Outcome::Incomplete(gap),
            (None, None, None) => Outcome::Nothing,
        }
    }

    /// The outcome of a lane without a report.
    fn of_error(error: &anyhow::Error) -> Self {
        if is_of_harness(error) {
            return Outcome::Incomplete(format!("{error:#}"));
        }
        Outcome::Unexpected(Finding::of_error(error))
    }

    fn finding(&self) -> Option<&Finding> {
        match self {
            Outcome::Nothing | Outcome::Incomplete(_) => None,
            Outcome::Caught(finding) | Outcome::Unexpected(finding) => Some(finding),
        }
    }

    fn is_incomplete(&self) -> bool {
        matches!(self, Outcome::Incomplete(_))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Nothing => f.write_str("nothing"),
            Outcome::Caught(finding) => f.write_str(&first_words(&finding.text)),
            Outcome::Unexpected(finding) => write!(f, "unexpected: {}", first_words(&finding.text)),
            Outcome::Incomplete(gap) => write!(f, "could not run: {}", first_words(gap)),
        }
    }
}

/// The result of a trial.
#[derive(Debug)]
struct Row {
    bug: &'static str,
    faults: String,
    seconds: f64,
    rounds: usize,
    /// The outcome of the last meaningful round.
    outcome: Outcome,
    is_control: bool,
}

impl Row {
    fn verdict(&self) -> Verdict {
        match self.outcome {
            Outcome::Incomplete(_) => Verdict::Incomplete,
            Outcome::Nothing if self.is_control => Verdict::Passed,
            Outcome::Caught(_) if !self.is_control => Verdict::Passed,
            Outcome::Nothing | Outcome::Caught(_) | Outcome::Unexpected(_) => Verdict::Violation,
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row { bug, faults, seconds, rounds, outcome, .. } = self;
        let mark = match self.verdict() {
            Verdict::Passed => "",
            Verdict::Incomplete => "  INCOMPLETE",
            Verdict::Violation if self.is_control => "  WRONG",
            Verdict::Violation => "  NOT CAUGHT",
        };
        write!(f, "{bug:<32} {faults:<36} {seconds:>4.0} s {rounds:>2}  {outcome}{mark}")
    }
}

pub async fn run(arguments: &SelftestArguments) -> Result<Verdict> {
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let binary = fs::canonicalize(&arguments.binary)
        .with_context(|| format!("no binary at `{}`: run `make faults-selftest`", arguments.binary.display()))?;
    check_that_none_is_left_out(&bugs_of(&binary)?)?;
    let folder = std::path::absolute(arguments.folder.join(seed.to_string())).context("invalid path")?;
    if folder.exists() {
        fs::remove_dir_all(&folder).context("cannot remove the files of an earlier run")?;
    }
    let wanted = |trial: &&Trial| arguments.only.is_empty() || arguments.only.iter().any(|bug| bug == trial.bug);
    let trials: Vec<&Trial> = TRIALS.iter().filter(wanted).collect();
    if trials.is_empty() {
        bail!("unknown bug");
    }
    println!("seed {seed}, files in {}", folder.display());
    let mut bench = Bench { binary, folder, seed, networks: 0 };
    let time_max = Duration::from_secs(arguments.seconds);
    let mut rows = Vec::new();
    for trial in &trials {
        for row in [bench.control(trial).await?, bench.look_for(trial, time_max).await?] {
            println!("{row}");
            rows.push(row);
        }
    }
    println!("\n{:<32} {:<36} {:>6} {:>2}  caught by", "bug", "faults in force", "time", "n");
    for row in &rows {
        println!("{row}");
    }
    println!("\n{}", summary(&rows));
    Ok(rows.iter().map(Row::verdict).max().unwrap_or_default())
}

fn summary(rows: &[Row]) -> String {
    let count = |is_control: bool, verdict: Option<Verdict>| {
        let wanted =
            |row: &&Row| row.is_control == is_control && verdict.is_none_or(|verdict| row.verdict() == verdict);
        rows.iter().filter(wanted).count()
    };
    let [bugs, controls] = [false, true].map(|is_control| {
        let [passed, wrong, incomplete] =
            [Verdict::Passed, Verdict::Violation, Verdict::Incomplete].map(|verdict| count(is_control, Some(verdict)));
        (count(is_control, None), passed, wrong, incomplete)
    });
    format!(
        "{} bugs: {} caught, {} not caught, {} could not be looked for\n\
         {} controls: {} passed, {} with a finding, {} could not run",
        bugs.0, bugs.1, bugs.2, bugs.3, controls.0, controls.1, controls.2, controls.3
    )
}

/// The bugs that a server reports to have.
fn bugs_of(binary: &Path) -> Result<Vec<String>> {
    // No host has this address, so a server without bugs exits too, with another message.
    let mut server = Command::new(binary);
    server.args(["--id", "1", "--http-addr", "203.0.113.1:1", "--insecure"]).env(BUG_VARIABLE, "?");
    let output = server.output().with_context(|| format!("cannot start `{}`", binary.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let names = said.trim_end().split_once("be one of ");
    let (_, names) = names.with_context(|| format!("`{}` has no seeded bugs: {said}", binary.display()))?;
    let names = names.split_once(", got ").map_or(names, |(names, _)| names);
    Ok(names.split(", ").map(str::to_owned).collect())
}

fn check_that_none_is_left_out(bugs: &[String]) -> Result<()> {
    match bugs.iter().find(|bug| TRIALS.iter().all(|trial| trial.bug != *bug)) {
        Some(bug) => bail!("no trial looks for the bug `{bug}`"),
        None => Ok(()),
    }
}

/// Runs trials one after another.
#[derive(Debug)]
struct Bench {
    binary: PathBuf,
    folder: PathBuf,
    seed: u64,
    /// Number of clusters so far: each has a network of its own.
    networks: u8,
}

impl Bench {
    /// The trial's lane with a server without bugs.
    async fn control(&mut self, trial: &Trial) -> Result<Row> {
        let began = Instant::now();
        let outcome = self.round(trial, None).await?;
        Ok(row(trial, "(none)", began, 1, outcome, true))
    }

    /// Repeats the trial's lane until the bug is caught.
    async fn look_for(&mut self, trial: &Trial, time_max: Duration) -> Result<Row> {
        let began = Instant::now();
        let bug = Bug { name: trial.bug, only: trial.only };
        let (mut rounds, mut incomplete_rounds) = (0, 0);
        let mut best = Outcome::Incomplete("no time for a round".to_owned());
        while !matches!(best, Outcome::Caught(_))
            && began.elapsed() < time_max
            && incomplete_rounds < INCOMPLETE_ROUNDS_MAX
        {
            rounds += 1;
            let outcome = self.round(trial, Some(bug)).await?;
            incomplete_rounds = if outcome.is_incomplete() { incomplete_rounds + 1 } else { 0 };
            // A round that could not run does not replace the outcome of an earlier one.
            if best.is_incomplete() || !outcome.is_incomplete() {
                best = outcome;
            }
        }
        Ok(row(trial, trial.bug, began, rounds, best, false))
    }

    /// Runs one lane with a cluster of its own. Without a bug there is nothing to catch.
    async fn round(&mut self, trial: &Trial, bug: Option<Bug>) -> Result<Outcome> {
        self.networks = self.networks.checked_add(1).context("too many rounds")?;
        let folder = self.folder.join(format!("{}-{}", self.networks, bug.map_or("none", |bug| bug.name)));
        let plan = lane_of(trial, bug, &self.binary, &folder, self.networks, self.seed);
        let symptoms = if bug.is_some() { trial.symptoms } else { &[] };
        let mut outcome = match lane::run(plan).await {
            Ok(mut report) => {
                // A fault that never had an effect shows nothing about a bug.
                report.require(&trial.faults.iter().map(|(fault, _)| (*fault, 1)).collect::<Vec<_>>());
                Outcome::of(&report, symptoms)
            }
            Err(error) => Outcome::of_error(&error),
        };
        if let Outcome::Caught(finding) | Outcome::Unexpected(finding) = &mut outcome {
            // File names are long enough without this prefix.
            finding.text = finding.text.replace(&format!("{}/", folder.display()), "");
        }
        Ok(outcome)
    }
}

fn row(trial: &Trial, bug: &'static str, began: Instant, rounds: usize, outcome: Outcome, is_control: bool) -> Row {
    let faults = faults_in_force(trial, &outcome);
    Row { bug, faults, seconds: began.elapsed().as_secs_f64(), rounds, outcome, is_control }
}

/// The fault during which a finding was made; all faults of the trial if that is unknown, as for a history.
fn faults_in_force(trial: &Trial, outcome: &Outcome) -> String {
    let known = outcome.finding().and_then(|finding| finding.fault);
    let all = || trial.faults.iter().map(|(fault, _)| fault.to_string()).collect::<Vec<_>>().join(", ");
    known.map_or_else(all, |fault| fault.to_string())
}

fn lane_of(trial: &Trial, bug: Option<Bug>, binary: &Path, folder: &Path, number: u8, seed: u64) -> LanePlan {
    let Means { disks, snapshots, traces_renames, busy, late_retries, expiring, upkeep, secured } = trial.means;
    let snapshot_flags = SNAPSHOT_FLAGS.map(str::to_owned).to_vec();
    let flags = if snapshots { snapshot_flags } else { Vec::new() };
    LanePlan {
        name: trial.bug,
        cluster: Plan {
            system: System::Ours,
            binary: binary.to_owned(),
            folder: folder.to_owned(),
            number,
            nodes: NODES,
            disks: if disks { vec![FileSystem::Xfs, FileSystem::Ext4] } else { Vec::new() },
            // The nodes know each other by the proxies' addresses. No proxy supports TLS.
            proxies: !secured,
            secured,
            flags: if upkeep { upkeep_flags() } else { flags },
            bug,
            traces_renames,
        },
        load: LoadPlan {
            seed: seed.wrapping_add(u64::from(number)),
            clients: if busy { 24 } else { 8 },
            pause_max: Duration::from_millis(if busy { 10 } else { 80 }),
            probe_interval: Duration::from_millis(50),
            retry_pause_max: Duration::from_secs(if late_retries { 3 } else { 0 }),
            expiring,
        },
        hostile: false,
        ballast_keys: 0,
        faults: trial.faults.to_vec(),
        time_max: Duration::from_secs(60),
        is_complete: false,
    }
}

fn first_words(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(WORDS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker;
    use crate::checker::report::Kind;
    use crate::finding::HarnessError;
    use crate::history::History;
    use crate::load::Recorder;
    use crate::report::Found;

    fn report(findings: Vec<Finding>, checked: checker::Report) -> LaneReport {
        let found = Found {
            windows: Vec::new(),
            planned: 0,
            not_begun: 0,
            findings,
            bad_inputs: 0,
            misuses: Default::default(),
            sights: Vec::new(),
            monitored: 0,
            kills_at_calls: Default::default(),
            leases: 0,
            tokens: Default::default(),
            checked,
        };
        LaneReport::new("lane", &History::default(), found, &Recorder::new())
    }

    fn row_of(report: &LaneReport, symptoms: &[Symptom], is_control: bool) -> Row {
        row(&TRIALS[1], "bug", Instant::now(), 1, Outcome::of(report, symptoms), is_control)
    }

    /// Only a bug's own symptoms count as caught, even after another finding. A control passes only without
    /// findings. Unchecked operations, failed tools and faults that were never in force make both incomplete,
    /// unless something was found.
    #[tokio::test]
    async fn only_what_is_expected_counts() {
        let other = Finding::other("no write succeeds".to_owned());
        let start = Finding::new(Symptom::Start, "it starts".to_owned());
        let mut violated = checker::Report::default();
        violated.violation(Kind::LostWrite, || "a write".to_owned());
        let mut differing = checker::Report::default();
        differing.violation(Kind::FinalState, || "a key".to_owned());
        let mut undecided = checker::Report::default();
        undecided.doubt(|| "a window".to_owned());
        let history: &[Symptom] = &[Symptom::History];
        let right = checker::Report::default;
        let tool = || Finding::harness("`nft` failed".to_owned());
        let mut idle = report(vec![], right());
        idle.require(&[(Fault::Flip, 1)]);
        let (passed, violation, incomplete) = (Verdict::Passed, Verdict::Violation, Verdict::Incomplete);
        let rows: [(LaneReport, &[Symptom], Verdict, Verdict); 11] = [
            (report(vec![], right()), history, violation, passed),
            (report(vec![other.clone()], right()), history, violation, violation),
            (report(vec![other.clone(), start.clone()], right()), history, violation, violation),
            (report(vec![other.clone(), start.clone()], right()), &[Symptom::Start], passed, violation),
            (report(vec![other.clone()], violated.clone()), history, passed, violation),
            (report(vec![], differing.clone()), history, violation, violation),
            (report(vec![], differing), &[Symptom::History, Symptom::States], passed, violation),
            (report(vec![], undecided), history, incomplete, incomplete),
            (report(vec![tool()], right()), history, incomplete, incomplete),
            (report(vec![tool()], violated), history, passed, violation),
            (idle, history, incomplete, incomplete),
        ];
        for (place, (report, symptoms, of_bug, of_control)) in rows.iter().enumerate() {
            assert_eq!(row_of(report, symptoms, false).verdict(), *of_bug, "bug {place}");
            assert_eq!(row_of(report, &[], true).verdict(), *of_control, "control {place}");
        }
        let no_cluster = Outcome::of_error(&anyhow::anyhow!("no leader within 30s"));
        assert!(matches!(no_cluster, Outcome::Unexpected(_)), "{no_cluster}");
        let no_host = Outcome::of_error(&HarnessError("`ip` failed".to_owned()).into());
        assert!(no_host.is_incomplete(), "{no_host}");
        let all: Vec<Row> = rows
            .iter()
            .flat_map(|(report, symptoms, ..)| [row_of(report, symptoms, false), row_of(report, &[], true)])
            .collect();
        let words = "11 bugs: 4 caught, 4 not caught, 3 could not be looked for\n\
                     11 controls: 1 passed, 7 with a finding, 3 could not run";
        assert_eq!(summary(&all), words);
    }

    /// A finding is shown with its own fault if it has one, and otherwise with all faults of its trial.
    #[tokio::test]
    async fn the_fault_in_force_is_shown() {
        let mut finding = Finding::new(Symptom::WentBack, "back".to_owned());
        let shown = |finding: &Finding| {
            row_of(&report(vec![finding.clone()], checker::Report::default()), &[Symptom::WentBack], false).faults
        };
        assert_eq!(shown(&finding), "power-cut-in-sync all, power-cut-in-sync majority");
        finding.fault = Some(Fault::Lag);
        assert_eq!(shown(&finding), "lag");
    }
}
