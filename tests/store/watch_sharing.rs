//! What the watches of a node share, and what a slow reader can hold.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures_util::FutureExt;
use raft_key_value::config::{HISTORY_BYTES_MAX, WATCH_HANDED_OUT_BYTES_MAX};
use raft_key_value::operation::{Operation, Txn, TxnStep};
use raft_key_value::store::{Change, ChangeKind, ExampleStore, Filter, LongEvents, Record, Subscription};

use crate::support::*;

const VALUE_BYTES: usize = 1 << 20;
const WATCHES: usize = 100;

/// Takes all that waits for a watch, encoded. Counts in `batches` and `long_events` what had to be encoded for it.
fn take_all(watch: &mut Subscription, batches: &Cell<usize>, long_events: &Cell<usize>) -> Vec<Bytes> {
    let encode = |changes: &[Change], shared: &LongEvents| {
        batches.set(batches.get() + 1);
        let piece = |change: &Change| {
            let text = || Bytes::from(format!("{} {}\n", change.revision, change.key));
            if !shared.is_for(change) {
                return text();
            }
            shared.get_or_encode(change, || {
                long_events.set(long_events.get() + 1);
                text()
            })
        };
        changes.iter().map(piece).collect()
    };
    let mut pieces = Vec::new();
    // Tokio would let no task take so much at once.
    while let Some(batch) = tokio::task::unconstrained(watch.next()).now_or_never() {
        pieces.extend_from_slice(watch.encoded(&batch.unwrap(), encode));
    }
    pieces
}

fn put_large(index: u64, key: &str) -> raft_key_value::types::Entry {
    set(1, index, key, &"v".repeat(VALUE_BYTES))
}

/// What many watches are handed is encoded once for each group, however long it is, and a long event
/// once for the node.
///
/// Method: 100 watches of a key and 100 of each of two prefixes, all with everything they want. A value of
/// 1 MiB, a transaction of 2,000 puts, and the first step of a deletion; then a watch that reads all of it from the history.
#[test]
fn each_batch_is_encoded_once() {
    run(async {
        let directory = scratch();
        let store = open(directory.path());
        apply(&store, [membership(1, 0, &[1])]).await;
        let filters = [Filter::Key("a/key".into()), Filter::Prefix("a/".into()), Filter::Prefix("a".into())];
        let begin = |filter: &Filter| store.state_machine.watch(filter.clone(), 1, 0);
        let mut watches: Vec<_> = (0..WATCHES).flat_map(|_| filters.iter().map(begin)).collect();
        for watch in &mut watches {
            assert!(watch.next().now_or_never().is_none());
        }
        let puts = |number| TxnStep::Put(put_of(&format!("a/{number}"), "value"));
        let txn = Txn { compare: vec![], success: (0..2000).map(puts).collect(), failure: vec![] };
        let entries = [
            (put_large(1, "a/key"), [3, 1], 3),
            (write(1, 2, 0, None, Operation::Txn(Arc::new(txn))), [2, 0], 2),
            (write(1, 3, 0, None, Operation::DeletePrefix { prefix: "a".into(), revision_max: None }), [2, 0], 2),
        ];
        for (entry, encodings, groups) in entries {
            apply(&store, [entry]).await;
            let (batches, long_events) = (Cell::new(0), Cell::new(0));
            let taken: Vec<_> = watches.iter_mut().map(|it| take_all(it, &batches, &long_events)).collect();
            assert_eq!([batches.get(), long_events.get()], encodings);
            assert_eq!(taken.iter().filter(|pieces| !pieces.is_empty()).count(), groups * WATCHES);
        }
        let long_events = Cell::new(0);
        let pieces = take_all(&mut begin(&filters[2]), &Cell::new(0), &long_events);
        assert_eq!((pieces.len(), long_events.get()), (3001, 0));
    });
}

/// The values in the history, by which it is seen how long they are held.
fn records(store: &ExampleStore, key: &str) -> Vec<Weak<Record>> {
    store.state_machine.read(|machine| {
        let of_change = |change: &Change| match &change.kind {
            ChangeKind::Put(record) if change.key == key => Some(Arc::downgrade(record)),
            _ => None,
        };
        machine.history.iter().filter_map(of_change).collect()
    })
}

/// A watch that is not read keeps no more of the changes than the node's bound of bytes, in however few batches they come.
///
/// Method: a watch that is at the end and is not read then; two batches of entries with 40 MiB for it, and
/// so many others that the history forgets those. The values still in memory are counted.
#[test]
fn a_slow_reader_holds_a_bounded_number_of_bytes() {
    run(async {
        let directory = scratch();
        let store = open(directory.path());
        apply(&store, [membership(1, 0, &[1])]).await;
        let mut watch = store.state_machine.watch(Filter::Key("key".into()), 1, 0);
        assert!(watch.next().now_or_never().is_none());
        let mut values = Vec::new();
        for first in [1, 41] {
            apply(&store, (first..first + 40).map(|index| put_large(index, "key"))).await;
            values = [values, records(&store, "key")].concat();
        }
        let others = (HISTORY_BYTES_MAX / VALUE_BYTES) as u64 + 1;
        apply(&store, (81..81 + others).map(|index| put_large(index, "other"))).await;
        assert!(records(&store, "key").is_empty(), "the history still has them");
        let held = values.iter().filter(|record| record.upgrade().is_some()).count();
        // And the one that is the key's value.
        assert!(held <= WATCH_HANDED_OUT_BYTES_MAX / VALUE_BYTES + 1, "{held} values are held");
        assert!(watch.next().now_or_never().expect("it is told").is_err());
    });
}

/// A watch misses nothing while another thread applies entries, and is not told that it has what is still to come.
///
/// Method: one thread applies 20,000 puts, each in a batch of its own, while another begins watches, polls them and
/// asks for their place. Each revision must follow the one before, and the place be that of the last one taken.
#[test]
fn nothing_is_missed_while_entries_are_applied() {
    const PUTS: u64 = 20_000;
    let directory = scratch();
    let store = open(directory.path());
    run(apply(&store, [membership(1, 0, &[1])]));
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for index in 1..=PUTS {
                run(apply(&store, [write(1, index, 0, None, Operation::Put(put_of("key", &index.to_string())))]));
            }
            is_done.store(true, Ordering::Release);
        });
        let mut taken = 0;
        let mut places = 0;
        loop {
            let was_done = is_done.load(Ordering::Acquire);
            let mut watch = store.state_machine.watch(Filter::Key("key".into()), taken + 1, 0);
            for _ in 0..200 {
                while let Some(batch) = tokio::task::unconstrained(watch.next()).now_or_never() {
                    for change in batch.unwrap().changes() {
                        assert_eq!(change.revision, taken + 1);
                        taken = change.revision;
                    }
                }
                if let Some(place) = watch.caught_up() {
                    assert_eq!(place, taken);
                    places += 1;
                }
            }
            if was_done {
                break;
            }
        }
        assert_eq!(taken, PUTS);
        assert!(places > 0);
    });
}
