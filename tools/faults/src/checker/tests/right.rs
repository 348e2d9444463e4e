//! Histories of a correct store.

use super::simulate::{Settings, Simulation};
use crate::checker::check;
use crate::checker::report::{Report, Verdict};
use crate::history::History;

const SETTINGS: Settings = Settings {
    operations: 300,
    clients: 5,
    keys: 4,
    lists: 2,
    stale_states: 10,
    unknown: 10,
    not_applied: 5,
    whole_lists: true,
    revision_before: 0,
};

fn assert_linearizable(history: &History, name: &str) -> Report {
    let report = check(history);
    assert_eq!(report.verdict(), Verdict::Linearizable, "{name}: {report}");
    report
}

/// No history of a correct store is reported as wrong or undecided.
///
/// Method: 2,000 simulated runs of one to nine clients on one to eight keys, with delays, rejected requests,
/// requests of unknown outcome (which take effect at any later time, or never), retried requests, stale
/// reads, and watches that begin late or end early, also in the middle of a revision.
#[test]
fn never_a_false_alarm() {
    let mut unknown_applied = 0;
    for seed in 0..2000 {
        let settings = Settings {
            operations: 20 + seed as usize % 280,
            clients: 1 + seed as u32 % 9,
            keys: 1 + seed % 8,
            lists: seed % 3,
            unknown: seed % 31,
            not_applied: seed % 11,
            revision_before: seed % 2,
            ..SETTINGS
        };
        let report = assert_linearizable(&Simulation::run(seed, settings), &format!("seed {seed}"));
        unknown_applied += report.operations.unknown_applied;
    }
    assert!(unknown_applied > 1000, "too few unknown writes were done: {unknown_applied}");
}

/// The report counts the operations.
///
/// Method: one run, counted by hand.
#[test]
fn counts() {
    let history = Simulation::run(7, SETTINGS);
    let report = assert_linearizable(&history, "the run");
    let counts = report.operations;
    assert_eq!(counts.done + counts.not_applied + counts.unknown, 300);
    let longest = history.watches.iter().max_by_key(|watch| watch.len()).unwrap();
    assert_eq!(report.changes, longest.len() as u64);
    assert_eq!(report.revision, history.finals[0].revision);
    assert!(report.classic.windows >= 6 && report.classic.operations > 100, "{report}");
    assert!(counts.unknown_applied > 0 && counts.unknown_applied < counts.unknown, "{report}");
}

/// An empty history is right.
#[test]
fn nothing() {
    assert_linearizable(&History::default(), "nothing");
}

/// A watch that was cut off without a replacement leaves the verdict open.
///
/// Method: the watches of a run are cut at every change. No cut may be reported as wrong, and every cut must
/// be a doubt.
#[test]
fn watches_that_end_early() {
    let whole = Simulation::run(3, Settings { operations: 120, ..SETTINGS });
    let longest = whole.watches.iter().max_by_key(|watch| watch.len()).unwrap().clone();
    for length in 0..longest.len() {
        let history = History { watches: vec![longest[..length].to_vec()], ..whole.clone() };
        let report = check(&history);
        assert_eq!(report.verdict(), Verdict::Undecided, "cut to {length}: {report}");
    }
}

/// A watch that begins late leaves the verdict open, unless another watch delivers the missing changes.
///
/// Method: a run whose single watch is cut at the front; then together with the complete watch.
#[test]
fn watch_that_begins_late() {
    let whole = Simulation::run(3, Settings { operations: 120, ..SETTINGS });
    let longest = whole.watches.iter().max_by_key(|watch| watch.len()).unwrap().clone();
    let late: Vec<_> = longest.iter().filter(|change| change.revision > 5).cloned().collect();
    let mut history = History { watches: vec![late], ..whole };
    let report = check(&history);
    assert_eq!(report.verdict(), Verdict::Undecided, "{report}");
    history.watches.push(longest);
    assert_linearizable(&history, "with the whole");
}

/// A key that many clients write at once is still decided.
///
/// Method: 30 clients on one key, so that some are in progress at nearly every moment, with many unknown
/// outcomes.
#[test]
fn crowded_key() {
    for seed in 0..20 {
        let settings = Settings { operations: 3000, clients: 30, keys: 1, lists: 0, unknown: seed % 5 * 5, ..SETTINGS };
        let report = assert_linearizable(&Simulation::run(seed, settings), &format!("seed {seed}"));
        assert!(report.classic.operations > 1000, "{report}");
    }
}

/// Many operations do not take much time or memory.
///
/// Method: 100,000 by default; `FAULTS_CHECK_OPERATIONS=1000000` for more.
#[test]
fn many_operations() {
    let wanted = std::env::var("FAULTS_CHECK_OPERATIONS").ok().and_then(|number| number.parse().ok());
    let operations = wanted.unwrap_or(100_000);
    let settings = Settings {
        operations,
        clients: 10,
        keys: 200,
        lists: 0,
        stale_states: 0,
        unknown: 1,
        whole_lists: false,
        ..SETTINGS
    };
    let history = Simulation::run(1, settings);
    let started = std::time::Instant::now();
    let report = assert_linearizable(&history, "many operations");
    eprintln!("{operations} operations checked in {:?}\n{report}", started.elapsed());
}
