//! Stores that are consistently wrong: watches, nodes and later responses all agree with the mistake.

use super::script::*;
use super::simulate::{Settings, Simulation};
use crate::checker::check;
use crate::checker::report::{Kind, VIOLATIONS_OF_A_KIND_MAX, Verdict};
use crate::history::{Answer, Call, CallResult, Condition, History, Outcome};

fn assert_caught(script: &Script, kind: Kind) {
    let report = check(&script.history());
    assert!(report.violation_counts.contains_key(&kind), "{kind:?} is missing: {report}");
    println!("{report}");
}

/// An acknowledged write that is lost before anything else happens is found.
#[test]
fn lost_write_at_the_end() {
    let mut script = Script::default();
    script.done(put("a", "1"));
    script.lie(put("a", "2"), Answer { revision: 2, result: CallResult::Put { version: 2 } });
    assert_caught(&script, Kind::LostWrite);
    assert_caught(&script, Kind::FinalRevision);
}

/// An acknowledged write that is lost, and whose revision is reused, is found.
#[test]
fn lost_write_overwritten() {
    let mut script = Script::default();
    script.done(put("a", "1"));
    script.lie(put("a", "2"), Answer { revision: 2, result: CallResult::Put { version: 2 } });
    script.done(put("b", "3"));
    assert_caught(&script, Kind::RevisionTwice);
    let mut history = script.history();
    history.operations.pop();
    let report = check(&history);
    assert!(report.violation_counts.contains_key(&Kind::LostWrite), "{report}");
}

/// A request that was sent twice and applied twice is found, acknowledged or not.
#[test]
fn applied_twice() {
    for acknowledged in [true, false] {
        let mut script = Script::default();
        if acknowledged {
            script.done(put("a", "1"));
        } else {
            script.unknown(put("a", "1"), true);
        }
        script.done(put("b", "2"));
        script.silently(put("a", "1"));
        assert_caught(&script, Kind::AppliedTwice);
    }
}

/// A deletion of unknown outcome that was applied twice is found.
#[test]
fn deletion_applied_twice() {
    let mut script = Script::default();
    script.done(put("a", "1"));
    script.unknown(delete("a"), true);
    script.done(put("a", "2"));
    script.silently(delete("a"));
    assert_caught(&script, Kind::Unexplained);
}

/// A deletion of unknown outcome cannot precede an operation that had returned when it was called.
#[test]
fn deletion_before_its_call() {
    let mut script = Script::default();
    script.done(put("a", "1"));
    script.silently(delete("a"));
    script.done(get("a"));
    script.unknown(delete("a"), false);
    assert_caught(&script, Kind::Unexplained);
}

/// A rejected request that was applied is found.
#[test]
fn refused_but_applied() {
    let mut script = Script::default();
    script.refused(put("a", "1"));
    script.silently(put("a", "1"));
    assert_caught(&script, Kind::RefusedButApplied);
}

/// A deleted key that reappears is found.
#[test]
fn resurrected() {
    let mut script = Script::default();
    script.done(put("a", "1"));
    script.done(delete("a"));
    script.silently(put("a", "1"));
    script.done(get("a"));
    assert_caught(&script, Kind::AppliedTwice);
    assert_caught(&script, Kind::NotLinearizable);
}

/// A linearizable read of an old state is found; a stale read may return it.
#[test]
fn old_state_read() {
    let mut script = Script::default();
    script.done(put("a", "1"));
    let old = script.store.clone().apply(&get("a"));
    script.done(put("a", "2"));
    script.lie(get_stale("a"), old.clone());
    assert_eq!(check(&script.history()).verdict(), Verdict::Linearizable);
    script.lie(get("a"), old);
    assert_caught(&script, Kind::OutOfOrder);
    assert_caught(&script, Kind::NotLinearizable);
}

/// A condition that is evaluated on an old state is found.
#[test]
fn condition_judged_early() {
    let mut script = Script::default();
    script.done(put("a", "1"));
    let put_at_1 = |value| put_if("a", value, Condition::Revision(1));
    script.done(put_at_1("2"));
    let answer = script.store.apply(&put("a", "3"));
    script.lie(put_at_1("3"), answer);
    assert_caught(&script, Kind::ConditionIgnored);
}

/// A retried request may get the result of the first attempt, with a later revision.
#[test]
fn refusal_told_again() {
    let mut script = Script::default();
    script.done(put("a", "1"));
    let refusal = script.store.apply(&put_if("a", "2", Condition::Missing));
    script.done(put("a", "3"));
    let told = Answer { revision: 2, ..refusal };
    script.lie(put_if("a", "2", Condition::Missing), told);
    let mut history = script.history();
    assert_eq!(check(&history).verdict(), Verdict::Violated, "the second put had returned before the call");
    history.operations[2].called_ns = 12;
    let report = check(&history);
    assert_eq!(report.verdict(), Verdict::Linearizable, "{report}");
}

/// Of two equal requests, one rejected and one applied, each is recognized.
#[test]
fn same_value_sent_again() {
    let mut script = Script::default();
    script.refused(put("a", "1"));
    script.done(put("a", "1"));
    script.unknown(put("a", "1"), true);
    let report = check(&script.history());
    assert_eq!(report.verdict(), Verdict::Linearizable, "{report}");
    script.silently(put("a", "1"));
    assert_caught(&script, Kind::AppliedTwice);
}

/// Without watches nothing is certain.
#[test]
fn no_watches() {
    let mut script = Script::default();
    script.done(put("a", "1"));
    let history = History { watches: Vec::new(), ..script.history() };
    assert_eq!(check(&history).verdict(), Verdict::Undecided);
}

/// All violations are counted, and some of each kind are kept.
#[test]
fn many_violations() {
    let mut script = Script::default();
    script.done(put("a", "1"));
    for _ in 0..100 {
        script.lie(get("a"), Answer { revision: 1, result: CallResult::Get(None) });
    }
    let report = check(&script.history());
    assert_eq!(report.violation_counts[&Kind::WrongRead], 100);
    let kept = report.violations.iter().filter(|violation| violation.kind == Kind::WrongRead).count();
    assert_eq!(kept as u64, VIOLATIONS_OF_A_KIND_MAX);
}

/// In any run, a response that belongs to another request is found.
///
/// Method: simulated runs in which one response is given to another request of the same kind, if that changes
/// the response.
#[test]
fn answers_exchanged() {
    let settings = Settings {
        operations: 200,
        clients: 4,
        keys: 3,
        lists: 1,
        stale_states: 5,
        unknown: 10,
        not_applied: 5,
        whole_lists: true,
        revision_before: 0,
    };
    let mut exchanged = 0;
    for seed in 0..500 {
        let mut history = Simulation::run(seed, settings);
        let mut random = fastrand::Rng::with_seed(seed);
        let (one, other) = (random.usize(0..200), random.usize(0..200));
        let (first, second) = (&history.operations[one], &history.operations[other]);
        let wrong = match (&first.call, &second.call, &first.outcome, &second.outcome) {
            (Call::Put { .. }, Call::Put { .. }, Outcome::Done(first), Outcome::Done(second)) => {
                matches!((&first.result, &second.result), (CallResult::Put { .. }, CallResult::Put { .. }))
                    && first != second
            }
            (Call::List { .. }, Call::List { .. }, Outcome::Done(first), Outcome::Done(second)) => {
                first.result != second.result
            }
            _ => false,
        };
        if wrong {
            exchanged += 1;
            let outcome = history.operations[other].outcome.clone();
            match (&mut history.operations[one].outcome, outcome) {
                // A list keeps its own revision, at which it is now wrong.
                (Outcome::Done(told), Outcome::Done(from)) if matches!(told.result, CallResult::List(_)) => {
                    told.result = from.result;
                }
                (told, from) => *told = from,
            }
            let report = check(&history);
            assert_eq!(report.verdict(), Verdict::Violated, "seed {seed}: {report}");
        }
    }
    assert!(exchanged > 20, "{exchanged} exchanged");
}
