//! How long it takes to apply entries that visit many keys.

#![allow(clippy::print_stdout)] // The test prints its measurements.

use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::vote::RaftLeaderId;
use raft_key_value::operation::{Operation, Put, RequestId, Txn, TxnStep, Value, Write, WriteResult};
use raft_key_value::store::ExampleStateMachine;
use raft_key_value::types::{Command, Entry, LogId, Payload};

const KEYS: u64 = 1_000_000;
const DELETIONS: u64 = 256;

#[derive(Default)]
struct Node {
    machine: ExampleStateMachine,
    index: u64,
}

impl Node {
    fn apply(&mut self, request: Option<u64>, operation: Operation) -> (Duration, Option<WriteResult>) {
        let request = request.map(|number| RequestId { key: format!("{number}").into(), fingerprint: [number, 0] });
        self.apply_as(request, operation)
    }

    fn apply_as(&mut self, request: Option<RequestId>, operation: Operation) -> (Duration, Option<WriteResult>) {
        self.index += 1;
        let request = request.map(Arc::new);
        let payload = Payload::Normal(Command::Write(Write { at_ms: 0, request, operation }));
        let entry = Entry { log_id: LogId::new(RaftLeaderId::new(1, 1), self.index), payload };
        let start = Instant::now();
        let response = self.machine.apply(entry);
        (start.elapsed(), response.result)
    }

    fn put(&mut self, number: u64) {
        let put = Put { key: format!("key/{number:07}").into(), value: "value".into(), ttl_ms: None, condition: None };
        self.apply(None, Operation::Put(put));
    }

    /// Puts keys in this order; returns the mean time of a put.
    fn put_all(&mut self, numbers: impl Iterator<Item = u64>) -> Duration {
        let (start, before) = (Instant::now(), self.index);
        numbers.for_each(|number| self.put(number));
        start.elapsed() / u32::try_from(self.index - before).unwrap()
    }

    fn delete(&mut self, request: u64) -> (Duration, bool) {
        let delete = Operation::DeletePrefix { prefix: "key/".into(), revision_max: None };
        match self.apply(Some(request), delete) {
            (time, Some(WriteResult::Delete { unfinished, .. })) => (time, unfinished.is_some()),
            (_, other) => panic!("{other:?}"),
        }
    }
}

/// A name, the order in which keys are put, and a filter of the keys.
type Case = (&'static str, fn(u64) -> u64, fn(u64) -> bool);

/// A step of a deletion by prefix skips keys that were put after it began: among a million of them it takes less than a
/// millisecond if it deletes none, and a few milliseconds if it deletes every 50th.
///
/// Method: 256 deletions execute a step each. Then keys are put again, in four ways, and each deletion executes another
/// step. The medians count, because other processes may interfere.
#[test]
#[ignore = "measures, in a release build: cargo test --release --test state_machine apply_time -- --ignored --nocapture"]
fn deletions_by_prefix() {
    let mut node = Node::default();
    println!("creating keys takes {:?} each", node.put_all(0..KEYS));
    let cases: [Case; 4] = [
        ("all", |number| number, |_| true),
        // By a prime, so that each number occurs once.
        ("all in another order", |number| number * 611_953 % KEYS, |_| true),
        ("all but each 1,000th", |number| number, |number| number % 1000 != 0),
        ("all but each 50th", |number| number, |number| number % 50 != 0),
    ];
    let (mut first, mut of_none, mut of_some) = (Vec::new(), Vec::new(), Vec::new());
    for (case, (name, order, is_put)) in (0..).zip(cases) {
        let requests = case * DELETIONS..(case + 1) * DELETIONS;
        for request in requests.clone() {
            let (time, unfinished) = node.delete(request);
            assert!(unfinished);
            first.push(time);
        }
        let each = node.put_all((0..KEYS).map(order).filter(|number| is_put(*number)));
        println!("putting {name} takes {each:?} each");
        for request in requests {
            let (time, unfinished) = node.delete(request);
            if unfinished { of_some.push(time) } else { of_none.push(time) }
        }
    }
    println!("first steps take {:?}", median(&mut first));
    let (of_none, of_some) = (median(&mut of_none), median(&mut of_some));
    println!("steps take {of_none:?} if they find fewer than 1,000 keys, and {of_some:?} if they find as many");
    assert!(of_none < Duration::from_millis(1) && of_some < Duration::from_millis(20));
}

/// A value that an entry reads or sets is not copied: four gets of 1 MiB take microseconds, and an `Idempotency-Key`
/// costs only the time of hashing.
///
/// Method: apply 101 entries of each kind to a node with one key. The medians count.
#[test]
#[ignore = "measures, in a release build: cargo test --release --test state_machine apply_time -- --ignored --nocapture"]
fn long_values() {
    let values = [("text", vec![b'v'; 1 << 20]), ("no text", vec![0xff; 1 << 20])];
    for (name, value) in values {
        // The key counts toward the limit of a transaction's reads.
        let value = Value::from(&value[1..]);
        let mut node = Node::default();
        let put = || Operation::Put(Put { key: "k".into(), value: value.clone(), ttl_ms: None, condition: None });
        let gets = vec![TxnStep::Get("k".into()); 4];
        let txn = Operation::Txn(Arc::new(Txn { compare: vec![], success: gets, failure: vec![] }));
        node.apply(None, put());
        let mut time = |request: fn(u64) -> Option<u64>, operation: &Operation| {
            let mut times: Vec<Duration> =
                (0..101).map(|number| node.apply(request(number), operation.clone()).0).collect();
            median(&mut times)
        };
        println!("four gets of 1 MiB ({name}) take {:?}", time(|_| None, &txn));
        println!("with an Idempotency-Key {:?}", time(Some, &txn));
        println!("replayed {:?}", time(|_| Some(100), &txn));
        println!("a put of 1 MiB ({name}) takes {:?}", time(|_| None, &put()));
        println!("with an Idempotency-Key {:?}", time(|number| Some(1000 + number), &put()));
        let mut fingerprints: Vec<Duration> = (0..101)
            .map(|_| {
                let start = Instant::now();
                std::hint::black_box(fingerprint(&put()));
                start.elapsed()
            })
            .collect();
        println!("and the fingerprint for it, before, {:?}", median(&mut fingerprints));
    }
}

fn fingerprint(operation: &Operation) -> [u64; 2] {
    RequestId::new("key".into(), None, operation).unwrap().fingerprint
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}
