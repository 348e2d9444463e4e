//! Logs that get to the limits, which chance does not.

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

/// Applies one write, and returns what became of it.
#[track_caller]
fn write(replicas: &mut Replicas, at_ms: u64, request: Option<&str>, operation: Operation) -> WriteResult {
    let request = request.map(|key| Arc::new(RequestId { key: key.into(), fingerprint: [1, 2] }));
    let answer = replicas.apply(Payload::Normal(Command::Write(Write { at_ms, request, operation })));
    answer.result.unwrap()
}

fn txn(steps: Vec<TxnStep>) -> Operation {
    Operation::Txn(Arc::new(Txn { compare: vec![], success: steps, failure: vec![] }))
}

/// More keys than one step deletes take several steps, up to the revision of the first one: keys that are put or
/// changed between the steps remain. A request that is sent again continues, even after a snapshot, and counts all
/// keys.
///
/// Method: two steps' keys and five more; between the steps one key is changed,
/// one put, one deleted, and the state goes through a file.
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

    // Without a request id, the client says how far the first step got.
    let delete_up_to = |revision_max| Operation::DeletePrefix { prefix: "a/".into(), revision_max };
    assert_eq!(deleted_of(&write(&mut replicas, 0, None, delete_up_to(Some(all_before)))), (0, None));
    assert_eq!(replicas.plain.revision, revision, "what deletes nothing is no revision");
    assert_eq!(deleted_of(&write(&mut replicas, 0, None, delete_up_to(None))), (2, None));
    replicas.finish();
}

/// How many keys were deleted, and up to which revision more are to be.
fn deleted_of(result: &WriteResult) -> (u64, Option<u64>) {
    match result {
        WriteResult::Delete { deleted, unfinished, .. } => (*deleted, *unfinished),
        other => panic!("no deletion: {other:?}"),
    }
}

/// As many keys as one step deletes are deleted in one.
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
/// Method: keys of two times, two and a half times as many as one entry removes.
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

/// What was put long ago is forgotten once newer changes have taken all room, by
/// whole revisions, also after a snapshot.
///
/// Method: values of 6 MB that share their memory, more than are kept, two of
/// them at a revision now and then.
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

/// What was put long ago is forgotten once there are as many newer changes as are kept.
///
/// Method: transactions of 7,001 puts, which do not go into the bound evenly.
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
/// replay. One byte less is executed.
///
/// Method: values put before, and values that the transaction itself puts,
/// replaces and deletes before it reads them, so many times.
#[test]
fn answers_are_bounded() {
    let mut replicas = Replicas::default();
    let quarter = TXN_ANSWER_BYTES_MAX / 4;
    let value = |bytes: usize| Value::from(&vec![b'v'; bytes]);
    let get = |key: &str| TxnStep::Get(key.into());
    write(&mut replicas, 0, None, Operation::Put(put("k", &value(quarter - 1), None)));
    // Four times what the key and the value have is exactly what may be read.
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

/// What one put and many reads of it answer can be remembered: there is room for it in a snapshot.
///
/// Method: the largest answers, of bytes that are no text and so take a third more; through a file.
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
