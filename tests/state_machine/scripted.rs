//! Logs that reach the limits, which random logs seldom do.

use std::sync::Arc;

use raft_key_value::config::{
    DELETE_STEP_KEYS_MAX, EXPIRE_KEYS_MAX, HISTORY_BYTES_MAX, HISTORY_CHANGES_MAX, SNAPSHOT_FRAME_BYTES_MAX,
    TXN_ANSWER_BYTES_MAX,
};
use raft_key_value::operation::{Delete, Operation, Put, RequestId, Txn, TxnStep, Value, Write, WriteResult};
use raft_key_value::types::{Command, Payload};

use crate::harness::{Between, Replicas};
use crate::operations::put_many;

fn put(key: &str, value: &Value, ttl_ms: Option<u64>) -> Put {
    Put { key: key.into(), value: value.clone(), ttl_ms, condition: None }
}

/// Applies one write, and returns its result.
#[track_caller]
fn write(replicas: &mut Replicas, at_ms: u64, request: Option<&str>, operation: Operation) -> WriteResult {
    let request = request.map(|key| Arc::new(RequestId { key: key.into(), fingerprint: [1, 2] }));
    let answer = replicas.apply(Payload::Normal(Command::Write(Write { at_ms, request, operation })));
    answer.result.unwrap()
}

fn txn(steps: Vec<TxnStep>) -> Operation {
    Operation::Txn(Arc::new(Txn { compare: vec![], success: steps, failure: vec![] }))
}

/// Keys beyond the limit of one step take several steps, up to the revision of the first one: keys that are put or
/// changed between the steps remain. A retried request continues, even after a snapshot, and counts all keys.
///
/// Method: delete the keys of two steps and five more. Between the steps, change one key, put one and delete one, and
/// pass the state through a file.
#[test]
fn deletion_in_steps() {
    let mut replicas = Replicas::default();
    let count = 2 * DELETE_STEP_KEYS_MAX + 5;
    for start in (0..count).step_by(4000) {
        write(&mut replicas, 0, None, put_many("a/", start..count.min(start + 4000), None));
    }
    write(&mut replicas, 0, None, Operation::Put(put("b", &Value::from("stays"), None)));
    let all_before = replicas.plain.revision;
    let delete = || Operation::DeletePrefix { prefix: "a/".into(), revision_max: None };
    let step = DELETE_STEP_KEYS_MAX as u64;

    let first = write(&mut replicas, 0, Some("request"), delete());
    assert_eq!(deleted_of(&first), (step, Some(all_before)));
    assert_eq!(replicas.plain.revision, all_before + 1);
    let last_key = |number: usize| format!("a/{:06}", count - number);
    write(&mut replicas, 0, None, Operation::Put(put(&last_key(1), &Value::from("changed"), None)));
    write(&mut replicas, 0, None, Operation::Put(put("a/new", &Value::from("new"), None)));
    write(&mut replicas, 0, None, Operation::Delete(Delete { key: last_key(2).into(), condition: None }));
    replicas.between(Between::Snapshot);

    let second = write(&mut replicas, 0, Some("request"), delete());
    assert_eq!(deleted_of(&second), (2 * step, Some(all_before)));
    let third = write(&mut replicas, 0, Some("request"), delete());
    assert_eq!(deleted_of(&third), (2 * step + 3, None));
    let revision = replicas.plain.revision;
    assert_eq!(write(&mut replicas, 0, Some("request"), delete()), third, "it is not done again");
    assert_eq!(replicas.plain.revision, revision);
    let left: Vec<&str> = replicas.plain.data.keys().map(|key| &**key).collect();
    assert_eq!(left, [&*last_key(1), "a/new", "b"]);

    // Without a request id, the client passes the revision that the first step returned.
    let delete_up_to = |revision_max| Operation::DeletePrefix { prefix: "a/".into(), revision_max };
    assert_eq!(deleted_of(&write(&mut replicas, 0, None, delete_up_to(Some(all_before)))), (0, None));
    assert_eq!(replicas.plain.revision, revision, "what deletes nothing is no revision");
    assert_eq!(deleted_of(&write(&mut replicas, 0, None, delete_up_to(None))), (2, None));
    replicas.finish();
}

/// The number of deleted keys, and the revision up to which keys remain to be deleted.
fn deleted_of(result: &WriteResult) -> (u64, Option<u64>) {
    match result {
        WriteResult::Delete { deleted, unfinished, .. } => (*deleted, *unfinished),
        other => panic!("no deletion: {other:?}"),
    }
}

/// The number of keys that one step can delete are deleted in one step.
#[test]
fn deletion_in_one_step() {
    let mut replicas = Replicas::default();
    write(&mut replicas, 0, None, put_many("a/", 0..DELETE_STEP_KEYS_MAX, None));
    let delete = Operation::DeletePrefix { prefix: "".into(), revision_max: None };
    let deleted = DELETE_STEP_KEYS_MAX as u64;
    assert_eq!(deleted_of(&write(&mut replicas, 0, None, delete)), (deleted, None));
    replicas.finish();
}

/// An entry removes a bounded number of expired keys, the oldest first. The next entries remove the others, at one
/// revision each, even entries that do nothing else.
///
/// Method: use keys with two expiry times, two and a half times as many as one entry removes.
#[test]
fn expiry_in_steps() {
    let mut replicas = Replicas::default();
    let step = EXPIRE_KEYS_MAX;
    write(&mut replicas, 0, None, put_many("late/", 0..step, Some(20)));
    write(&mut replicas, 0, None, put_many("early/", 0..step + step / 2, Some(10)));
    assert_eq!(replicas.plain.next_expiry_ms(), Some(10));
    write(&mut replicas, 9, None, Operation::Expire);
    assert_eq!((replicas.plain.data.len(), replicas.plain.revision), (5 * step / 2, 2));
    for (left, revision) in [(3 * step / 2, 3), (step / 2, 4), (0, 5), (0, 5)] {
        write(&mut replicas, 20, None, Operation::Expire);
        assert_eq!((replicas.plain.data.len(), replicas.plain.revision), (left, revision));
        replicas.between(Between::Snapshot);
    }
    assert_eq!(replicas.plain.next_expiry_ms(), None);
    replicas.finish();
}

/// Old changes are dropped once newer ones have used all the space, by whole revisions, even after a snapshot.
///
/// Method: put values of 6 MB that share their memory, more than are kept, and occasionally two of them at one
/// revision.
#[test]
fn history_is_bounded_in_bytes() {
    let mut replicas = Replicas::default();
    let large = Value::from(&vec![b'v'; 6 << 20]);
    let kept = HISTORY_BYTES_MAX / (6 << 20);
    for number in 0..kept + 6 {
        let (one, other) = (put("a", &large, None), put(&format!("b{}", number % 2), &large, Some(5)));
        let operation = match number % 3 {
            0 => txn(vec![TxnStep::Put(one), TxnStep::Put(other)]),
            1 => Operation::Put(one),
            _ => Operation::Delete(Delete { key: "a".into(), condition: None }),
        };
        write(&mut replicas, 4 * number as u64, None, operation);
        if number == kept + 2 {
            replicas.between(Between::Snapshot);
        }
    }
    assert!(replicas.plain.history.oldest() > 1, "nothing was forgotten");
    replicas.finish();
}

/// Old changes are dropped once there are as many newer ones as are kept.
///
/// Method: apply transactions of 7,001 puts, which do not divide the bound evenly.
#[test]
fn history_is_bounded_in_changes() {
    let mut replicas = Replicas::default();
    let transactions = HISTORY_CHANGES_MAX / 7001 + 1;
    for number in 0..transactions {
        write(&mut replicas, 0, None, put_many("a/", 0..7001, None));
        assert_eq!(replicas.plain.history.oldest(), if number == transactions - 1 { 2 } else { 0 });
    }
    replicas.finish();
}

/// A transaction that reads more than a response may have is rejected, changes nothing, and is rejected again on a
/// replay. With one byte less it is executed.
///
/// Method: read values that were put before, and values that the transaction itself puts, replaces and deletes before
/// it reads them, as often as necessary.
#[test]
fn answers_are_bounded() {
    let mut replicas = Replicas::default();
    let quarter = TXN_ANSWER_BYTES_MAX / 4;
    let value = |bytes: usize| Value::from(&vec![b'v'; bytes]);
    let get = |key: &str| TxnStep::Get(key.into());
    write(&mut replicas, 0, None, Operation::Put(put("k", &value(quarter - 1), None)));
    // Four times the key and the value is exactly the limit.
    let largest = vec![get("k"), get("k"), get("k"), get("k")];
    assert!(matches!(write(&mut replicas, 0, None, txn(largest.clone())), WriteResult::Txn(_)));
    let too_large = WriteResult::AnswerTooLarge { bytes: TXN_ANSWER_BYTES_MAX as u64 + 1 };
    let steps = [vec![TxnStep::Put(put("other", &value(1), None))], largest, vec![get("m")]].concat();
    for _ in 0..2 {
        assert_eq!(write(&mut replicas, 0, Some("too large"), txn(steps.clone())), too_large);
        assert!(replicas.plain.get("other").is_none());
    }

    // It reads values that it has just put, and not those that it has replaced or deleted.
    let puts = |bytes| TxnStep::Put(put("n", &value(bytes), None));
    let delete = TxnStep::Delete(Delete { key: "n".into(), condition: None });
    let mut steps = vec![puts(quarter * 3), delete, get("n"), puts(quarter / 8)];
    steps.extend(vec![get("n"); 31]);
    assert!(matches!(write(&mut replicas, 0, Some("many"), txn(steps.clone())), WriteResult::Txn(_)));
    steps.push(get("n"));
    assert!(matches!(write(&mut replicas, 0, Some("too many"), txn(steps)), WriteResult::AnswerTooLarge { .. }));
    replicas.finish();
}

/// The largest results of transactions can be remembered, because they fit into a snapshot.
///
/// Method: make the largest results, with bytes that are not text and so take a third more, and pass the state through
/// a file.
#[test]
fn largest_answers_have_room_in_a_snapshot() {
    let mut replicas = Replicas::default();
    let value = Value::from(&vec![0xff; TXN_ANSWER_BYTES_MAX / 100]);
    let mut steps = vec![TxnStep::Put(put("k", &value, None))];
    steps.extend(vec![TxnStep::Get("k".into()); 99]);
    assert!(matches!(write(&mut replicas, 0, Some("largest"), txn(steps)), WriteResult::Txn(_)));
    let twice = TxnStep::Get("k".into());
    let again = txn(vec![twice; 2 * SNAPSHOT_FRAME_BYTES_MAX / value.as_bytes().len()]);
    assert!(matches!(write(&mut replicas, 0, Some("over"), again), WriteResult::AnswerTooLarge { .. }));
    replicas.between(Between::Snapshot);
    replicas.finish();
}
