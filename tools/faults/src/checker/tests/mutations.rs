//! One right history, and mutations that each make it wrong.

use super::script::*;
use super::simulate::text;
use crate::checker::check;
use crate::checker::report::{Kind, Verdict};
use crate::history::{
    Answer, CallResult, ChangeKind, Condition, History, Operand, Operation, Outcome, Record, StepResult,
};

/// A history with all kinds of operations; the comments give their indexes.
fn right() -> History {
    let mut script = Script::default();
    script.done(put("a", "1")); // 0, revision 1
    script.done(put("b", "2")); // 1, revision 2
    script.done(get("a")); // 2
    script.done(put_if("a", "3", Condition::Revision(1))); // 3, revision 3
    script.done(put_if("a", "4", Condition::Missing)); // 4, refused
    let steps = vec![step_put("c", "5"), step_get("b"), step_delete("b")];
    script.done(txn(vec![compare("a", Operand::Revision(3))], steps, vec![step_put("c", "6")])); // 5, revision 4
    script.done(list("")); // 6
    script.done(delete("b")); // 7, nothing to delete
    script.unknown(put("d", "7"), true); // 8, revision 5
    script.refused(put("e", "8")); // 9
    script.done(get("d")); // 10
    script.done(delete("d")); // 11, revision 6
    script.done(get_stale("a")); // 12
    script.done(put_if("list/x", "e1", Condition::Missing)); // 13, revision 7
    script.done(put_if("list/x", "e1,e2", Condition::Revision(7))); // 14, revision 8
    script.done(get("list/x")); // 15
    script.unknown(delete("c"), true); // 16, revision 9
    script.done(get("c")); // 17
    script.done(txn(vec![compare("a", Operand::Missing)], vec![], vec![step_get("a")])); // 18
    script.unknown(put("f", "9"), false); // 19
    script.done(delete("a")); // 20, revision 10
    script.refused(put("g", "10")); // 21
    script.done(put("h", "11")); // 22, revision 11
    script.history()
}

fn answer(history: &mut History, place: usize) -> &mut Answer {
    match &mut history.operations[place].outcome {
        Outcome::Done(answer) => answer,
        other => panic!("operation {place} is {other:?}"),
    }
}

fn record(history: &mut History, place: usize) -> &mut Record {
    match &mut answer(history, place).result {
        CallResult::Get(Some(record)) => record,
        other => panic!("operation {place} is {other:?}"),
    }
}

fn listed(history: &mut History) -> &mut Vec<(crate::history::Text, Record)> {
    match &mut answer(history, 6).result {
        CallResult::List(records) => records,
        other => panic!("no list: {other:?}"),
    }
}

fn results(history: &mut History, place: usize) -> (&mut bool, &mut Vec<StepResult>) {
    match &mut answer(history, place).result {
        CallResult::Txn { succeeded, results } => (succeeded, results),
        other => panic!("no transaction: {other:?}"),
    }
}

fn swap_times(history: &mut History, one: usize, other: usize) {
    let times = |operation: &Operation| (operation.called_ns, operation.returned_ns);
    let (first, second) = (times(&history.operations[one]), times(&history.operations[other]));
    (history.operations[one].called_ns, history.operations[one].returned_ns) = second;
    (history.operations[other].called_ns, history.operations[other].returned_ns) = first;
}

type Mutation = fn(&mut History);

/// A mutation of the history, and the kind of violation that it causes.
const MUTATIONS: &[(&str, Kind, Mutation)] = &[
    ("a watch skips a revision", Kind::WatchGap, |it| drop(it.watches[1].remove(5))),
    ("a watch delivers a change twice", Kind::WatchDisorder, |it| {
        let again = it.watches[0][2].clone();
        it.watches[0].insert(3, again);
    }),
    ("a watch delivers two changes in the wrong order", Kind::WatchGap, |it| it.watches[1].swap(5, 6)),
    ("a watch begins again", Kind::WatchDisorder, |it| {
        let again = it.watches[1].clone();
        it.watches[1].extend(again);
    }),
    ("a watch misses a part of a transaction", Kind::WatchDisagreement, |it| drop(it.watches[1].remove(4))),
    ("a watch delivers another key", Kind::WatchDisagreement, |it| it.watches[1][2].key = text("b")),
    ("a watch delivers a change from before the run", Kind::WatchDisorder, |it| it.revision_before = 1),
    ("all watches deliver a wrong version", Kind::VersionInOrder, |it| {
        for watch in &mut it.watches {
            let ChangeKind::Put { version, .. } = &mut watch[2].kind else { panic!("no put") };
            *version = 1;
        }
    }),
    ("all watches deliver a wrong create revision", Kind::VersionInOrder, |it| {
        for watch in &mut it.watches {
            let ChangeKind::Put { create_revision, .. } = &mut watch[2].kind else { panic!("no put") };
            *create_revision = 3;
        }
    }),
    ("a missing key is deleted", Kind::DeleteOfMissing, |it| {
        it.watches.iter_mut().for_each(|watch| watch[4].key = text("z"));
    }),
    ("the order has another value than was written", Kind::LostWrite, |it| {
        for watch in &mut it.watches {
            let ChangeKind::Put { value, .. } = &mut watch[1].kind else { panic!("no put") };
            *value = text("20");
        }
    }),
    ("a put returns the revision of another", Kind::RevisionTwice, |it| answer(it, 1).revision = 1),
    ("a put returns a revision that does not exist", Kind::LostWrite, |it| answer(it, 22).revision = 12),
    ("a put returns a revision from before the run", Kind::LostWrite, |it| answer(it, 0).revision = 0),
    ("a deletion returns that the key was missing", Kind::Unexplained, |it| {
        answer(it, 11).result = CallResult::Delete { deleted: false };
    }),
    ("a deletion returns that the key existed", Kind::RevisionTwice, |it| {
        answer(it, 7).result = CallResult::Delete { deleted: true };
    }),
    ("a put returns a wrong version", Kind::WrongResult, |it| answer(it, 3).result = CallResult::Put { version: 3 }),
    ("a rejected put is in the order", Kind::RefusedButApplied, |it| it.operations[8].outcome = Outcome::NotApplied),
    ("a rejected deletion is in the order", Kind::Unexplained, |it| it.operations[16].outcome = Outcome::NotApplied),
    ("a write with a failed condition is in the order", Kind::RefusedButApplied, |it| {
        it.operations[3].outcome =
            Outcome::Done(Answer { revision: 3, result: CallResult::ConditionFailed { found: Some(2) } });
    }),
    ("a condition did not hold", Kind::ConditionIgnored, |it| {
        it.operations[3].call = put_if("a", "3", Condition::Revision(2));
    }),
    ("a condition of unknown outcome did not hold", Kind::ConditionIgnored, |it| {
        it.operations[8].call = put_if("d", "7", Condition::Revision(2));
    }),
    ("a rejected condition held", Kind::WrongRefusal, |it| {
        it.operations[4].call = put_if("a", "4", Condition::Revision(3));
    }),
    ("a rejection reports a revision that the key never had", Kind::WrongRefusal, |it| {
        answer(it, 4).result = CallResult::ConditionFailed { found: Some(2) };
    }),
    ("a rejection reports an outdated revision", Kind::WrongRefusal, |it| {
        answer(it, 4).result = CallResult::ConditionFailed { found: Some(1) };
    }),
    ("an acknowledged transaction did the wrong branch", Kind::WrongBranch, |it| {
        it.operations[5].call = match right().operations[5].call.clone() {
            crate::history::Call::Txn { success, failure, .. } => {
                txn(vec![compare("a", Operand::Revision(1))], success, failure)
            }
            other => other,
        };
    }),
    ("a transaction of unknown outcome did the wrong branch", Kind::WrongBranch, |it| {
        let never = vec![compare("a", Operand::Missing)];
        it.operations[8].call = txn(never, vec![step_put("d", "7")], vec![step_put("e", "70")]);
    }),
    ("a transaction of unknown outcome was done in part", Kind::TornRevision, |it| {
        it.operations[8].call = txn(vec![], vec![step_put("d", "7"), step_put("e", "70")], vec![]);
    }),
    ("a transaction that only read did the wrong branch", Kind::WrongBranch, |it| {
        let (succeeded, results) = results(it, 18);
        *succeeded = true;
        results.clear();
    }),
    ("a transaction's read is wrong", Kind::WrongResult, |it| results(it, 5).1[1] = StepResult::Get(None)),
    ("a transaction that only read is wrong", Kind::WrongResult, |it| results(it, 18).1[0] = StepResult::Get(None)),
    ("a read misses a key", Kind::WrongRead, |it| answer(it, 2).result = CallResult::Get(None)),
    ("a read finds another value", Kind::WrongRead, |it| record(it, 2).value = text("2")),
    ("a read finds another revision", Kind::WrongRead, |it| record(it, 2).revision = 2),
    ("a read finds another create revision", Kind::WrongRead, |it| record(it, 10).create_revision = 1),
    ("a stale read finds another version", Kind::WrongRead, |it| record(it, 12).version = 1),
    ("a read finds a deleted key", Kind::WrongRead, |it| {
        let record = record(it, 10).clone();
        answer(it, 17).result = CallResult::Get(Some(record));
    }),
    ("a list misses a key", Kind::WrongList, |it| drop(listed(it).pop())),
    ("a list is empty", Kind::WrongList, |it| listed(it).clear()),
    ("a list has a key twice", Kind::WrongList, |it| {
        let first = listed(it)[0].clone();
        listed(it).insert(0, first);
    }),
    ("a list is in the wrong order", Kind::WrongList, |it| listed(it).swap(0, 1)),
    ("a list has a wrong record", Kind::WrongList, |it| listed(it)[0].1.version = 7),
    ("a write precedes one that had returned", Kind::OutOfOrder, |it| swap_times(it, 0, 1)),
    ("a deletion precedes a read that had returned", Kind::OutOfOrder, |it| swap_times(it, 11, 10)),
    ("an unknown write precedes a read that had returned", Kind::OutOfOrder, |it| {
        it.operations[8].called_ns = 128;
        it.operations[8].returned_ns = 129;
    }),
    ("a read returns before its write was called", Kind::FromTheFuture, |it| swap_times(it, 10, 7)),
    ("a stale read returns before its write was called", Kind::FromTheFuture, |it| swap_times(it, 12, 1)),
    ("a node ends with a wrong value", Kind::FinalState, |it| it.finals[1].records[0].1.value = text("x")),
    ("a node ends without a key", Kind::FinalState, |it| drop(it.finals[0].records.remove(0))),
    ("a node ends with a deleted key", Kind::FinalState, |it| {
        let (mut deleted, record) = it.finals[0].records[0].clone();
        deleted = text(format!("{deleted}2"));
        it.finals[0].records.insert(1, (deleted, record));
    }),
    ("a node ends behind", Kind::FinalRevision, |it| it.finals[1].revision = 10),
    ("a node has another hash", Kind::FinalHash, |it| it.finals[1].hash = "other".to_owned()),
    ("an element is lost", Kind::ElementLost, |it| set_list(it, "e2")),
    ("a list contains an element twice", Kind::ElementTwice, |it| set_list(it, "e1,e2,e1")),
    ("a list contains an element that no client appended", Kind::ElementUnexplained, |it| set_list(it, "e1,e2,e3")),
    ("a list contains an element that was rejected", Kind::ElementUnexplained, |it| {
        it.operations[14].outcome = Outcome::NotApplied;
    }),
    ("elements are out of order", Kind::ElementOutOfOrder, |it| set_list(it, "e2,e1")),
    ("a read returns a list that never existed", Kind::ElementRead, |it| record(it, 15).value = text("e2")),
    ("a read returns a key that did not exist yet", Kind::NotLinearizable, |it| swap_times(it, 2, 0)),
    ("a read misses a write", Kind::NotLinearizable, |it| answer(it, 2).result = CallResult::Get(None)),
    ("an existing key is created", Kind::NotLinearizable, |it| {
        it.operations[3].call = put_if("a", "3", Condition::Missing);
    }),
];

fn set_list(history: &mut History, value: &str) {
    for end in &mut history.finals {
        for (key, record) in &mut end.records {
            if **key == *"list/x" {
                record.value = text(value);
            }
        }
    }
}

/// Every mutation of a right history is found, by the rule that it breaks.
///
/// Method: each mutation separately; the report must contain a violation of its kind.
#[test]
fn each_is_caught() {
    let report = check(&right());
    assert_eq!(report.verdict(), Verdict::Linearizable, "{report}");
    let mut missed = Vec::new();
    for (name, kind, mutate) in MUTATIONS {
        let mut history = right();
        mutate(&mut history);
        let report = check(&history);
        match report.violations.iter().find(|violation| violation.kind == *kind) {
            Some(violation) => println!("{name}: {violation}"),
            None => missed.push(format!("{name}: no {kind:?} in {report}")),
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
