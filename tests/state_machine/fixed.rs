//! What must be the same for nodes of all versions: hashes, snapshots, and the set of remembered requests.

use std::sync::Arc;

use openraft::vote::RaftLeaderId;
use raft_key_value::config::{DELETE_STEP_KEYS_MAX, TXN_ANSWER_BYTES_MAX};
use raft_key_value::level::Level;
use raft_key_value::operation::{
    Comparison, Condition, Delete, Operand, Operation, Put, Relation, RequestId, Touch, Txn, TxnStep, Write,
};
use raft_key_value::store::ExampleStateMachine;
use raft_key_value::types::{Command, Entry, LogId, Payload};

use crate::harness::{Replicas, file_of};
use crate::operations::put_many;

/// Applies one write at this time, as its own request.
fn write(replicas: &mut Replicas, at_ms: u64, key: &str, operation: Operation) {
    let request = Some(Arc::new(RequestId { key: key.into(), fingerprint: [1, 2] }));
    replicas.apply(Payload::Normal(Command::Write(Write { at_ms, request, operation })));
}

fn put(key: &str, value: &[u8], ttl_ms: Option<u64>) -> Put {
    Put { key: key.into(), value: value.into(), ttl_ms, condition: None }
}

fn touch(key: &str, ttl_ms: Option<u64>) -> Touch {
    Touch { key: key.into(), ttl_ms, condition: None }
}

fn delete(key: &str) -> Delete {
    Delete { key: key.into(), condition: None }
}

fn txn(success: Vec<TxnStep>) -> Operation {
    Operation::Txn(Arc::new(Txn { compare: vec![], success, failure: vec![] }))
}

/// The level is a part of the state, of its hash and of its snapshot, and never decreases. A state of the first level
/// has the hash and the snapshot that it had before there were levels, whose format is 2.
#[test]
fn levels_are_fixed() {
    let mut replicas = Replicas::default();
    write(&mut replicas, 1000, "put", Operation::Put(put("key", b"value", None)));
    let format_of = |machine: &ExampleStateMachine| std::fs::read(file_of(machine).path()).unwrap()[8..12].to_vec();
    let before = replicas.plain.hash();
    assert_eq!(format_of(&replicas.plain), 2_u32.to_be_bytes());
    for level in [Level(4), Level(3)] {
        write(&mut replicas, 1000, &format!("level {level}"), Operation::RaiseLevel { level });
        assert_eq!(replicas.plain.level, Level(4));
        assert_eq!(format_of(&replicas.plain), 4_u32.to_be_bytes());
    }
    let mut first = replicas.plain.clone();
    first.level = Level(3);
    assert_ne!(first.hash(), replicas.plain.hash());
    let hashes = [before, replicas.plain.hash()].map(|hash| hash.to_string());
    assert_eq!(hashes, ["731aff9e9d259ed197631de9abc445c6", "bbce3e710c1c1c2fbe6e23d2a8d1ca80"]);
    replicas.finish();
}

/// A log whose remembered requests have results of all kinds has this hash, and its snapshot has these bytes, because
/// nodes of other versions compare the hash and load the snapshot.
///
/// Method: use results of all kinds. The values in those of transactions are text or not, with and without a TTL, and
/// of lengths close to those at which base64 is padded or divided into pieces.
#[test]
fn results_are_fixed() {
    let mut replicas = Replicas::default();
    let long_key = "a key that is longer than those that need no memory, é";
    let bytes = |length: usize| -> Vec<u8> { (0..length).map(|number| 0xff - (number % 251) as u8).collect() };
    write(&mut replicas, 1000, "put", Operation::Put(put("text", "value é".as_bytes(), None)));
    write(&mut replicas, 1000, "put again", Operation::Put(put("text", "value é\u{2028}".as_bytes(), None)));
    for (number, condition) in [Condition::Missing, Condition::Revision(1)].into_iter().enumerate() {
        let refused = Put { condition: Some(condition), ..put("text", b"", None) };
        write(&mut replicas, 1001, &format!("refused {number}"), Operation::Put(refused));
    }
    let refused = Delete { condition: Some(Condition::Present), ..delete("none") };
    write(&mut replicas, 1002, "refused", Operation::Delete(refused));
    write(&mut replicas, 1003, "expiring", Operation::Put(put("expiring", b"", Some(500))));
    write(&mut replicas, 1004, "touch", Operation::Touch(touch("expiring", Some(60_000))));
    write(&mut replicas, 1005, "touch for ever", Operation::Touch(touch("text", None)));
    write(&mut replicas, 1006, "touch none", Operation::Touch(touch("none", Some(1000))));
    write(&mut replicas, 1007, "put to delete", Operation::Put(put("gone", b"x", None)));
    for number in 0..2 {
        write(&mut replicas, 1008, &format!("delete {number}"), Operation::Delete(delete("gone")));
    }
    write(&mut replicas, 1009, "many", put_many("many/", 0..DELETE_STEP_KEYS_MAX + 1, None));
    let delete_many = || Operation::DeletePrefix { prefix: "many/".into(), revision_max: None };
    write(&mut replicas, 1010, "delete many", delete_many());
    write(&mut replicas, 1011, "delete in part", put_many("many/", 0..DELETE_STEP_KEYS_MAX + 1, None));
    write(&mut replicas, 1012, "unfinished", delete_many());

    let lengths = [1, 2, 3, 4, 1535, 1536, 1537, 3071, 3072, 3073, 6144, 12_289];
    for length in lengths {
        write(&mut replicas, 1013, &format!("bytes {length}"), Operation::Put(put(long_key, &bytes(length), None)));
        let steps = vec![TxnStep::Get(long_key.into()), TxnStep::Get("expiring".into())];
        write(&mut replicas, 1014 + length as u64, &format!("get {length}"), txn(steps));
    }
    let steps = vec![
        TxnStep::Put(put("text", b"changed", Some(9000))),
        TxnStep::Get("text".into()),
        TxnStep::Touch(touch("expiring", None)),
        TxnStep::Touch(touch("text", Some(100_000))),
        TxnStep::Get("text".into()),
        TxnStep::Touch(touch("none", None)),
        TxnStep::Delete(delete("none")),
        TxnStep::Get("none".into()),
        TxnStep::Get(long_key.into()),
        TxnStep::Delete(delete(long_key)),
    ];
    write(&mut replicas, 14_000, "steps", txn(steps));
    let compare = vec![Comparison { key: "text".into(), relation: Relation::Equal, operand: Operand::Exists(false) }];
    let failure = vec![TxnStep::Get("text".into())];
    let not_done = Txn { compare, success: vec![], failure };
    write(&mut replicas, 14_001, "not succeeded", Operation::Txn(Arc::new(not_done)));
    write(&mut replicas, 14_002, "nothing", txn(vec![]));
    let too_many = vec![TxnStep::Get("text".into()); TXN_ANSWER_BYTES_MAX / "textchanged".len() + 1];
    write(&mut replicas, 14_003, "too large", txn(too_many));
    write(&mut replicas, 14_004, "expire", Operation::Expire);

    let file = std::fs::read(file_of(&replicas.plain)).unwrap();
    let hash = replicas.plain.hash().to_string();
    assert_eq!(hash, "d2178ca8f70ef809ebf627d0f5f8aa38");
    assert_eq!(
        format!("{} bytes, {:032x}", file.len(), xxhash_rust::xxh3::xxh3_128(&file)),
        "370683 bytes, 2c0bcbc204a868767ebeaeb2827e2046"
    );
    replicas.finish();
}

/// The set of forgotten requests depends on the length of their results as JSON, and must be the same on all nodes.
///
/// Method: add results of 4 MiB, of text and of other bytes, until some are forgotten, and count the remembered ones.
#[test]
fn what_is_remembered_is_fixed() {
    for (byte, expected) in
        [(b'v', (31, "b22bfbfc8b8dc8fdfbb48b2f8323b4ec")), (0xff, (23, "1d591fc6e8d11ea3a4287fe304ab75dc"))]
    {
        let mut machine = ExampleStateMachine::default();
        let value = vec![byte; TXN_ANSWER_BYTES_MAX / 4 - 1];
        let mut operation = Operation::Put(put("k", &value, None));
        for index in 0..36 {
            let request = Some(Arc::new(RequestId { key: format!("{index}").into(), fingerprint: [1, 2] }));
            let payload = Payload::Normal(Command::Write(Write { at_ms: 0, request, operation }));
            machine.apply(Entry { log_id: LogId::new(RaftLeaderId::new(1, 1), index), payload });
            operation = txn(vec![TxnStep::Get("k".into()); 4]);
        }
        assert_eq!((machine.requests.len(), machine.hash().to_string().as_str()), expected);
        assert_eq!(machine.hash(), machine.hash_of_all());
    }
}
