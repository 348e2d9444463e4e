//! What the watches of a node share, and how much a slow reader can hold.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures_util::FutureExt;
use raft_key_value::config::{
    HISTORY_BYTES_MAX, WATCH_HANDED_OUT_BATCH_BYTES, WATCH_HANDED_OUT_BYTES_MAX, WATCH_LONG_EVENTS_BYTES_MAX,
};
use raft_key_value::operation::{Operation, Txn, TxnStep};
use raft_key_value::store::{Change, ChangeKind, ExampleStore, Filter, LongEvents, Record, Subscription};

use crate::support::*;

const VALUE_BYTES: usize = 1 << 20;
const WATCHES: usize = 100;

/// Takes everything that waits for a watch, encoded. Counts in `batches` and `long_events` what had to be encoded for
/// it.
fn take_all(watch: &mut Subscription, batches: &Cell<usize>, long_events: &Cell<usize>) -> Vec<Bytes> {
    let encode = |changes: &[Change], shared: &LongEvents| {
        batches.set(batches.get() + 1);
        let piece = |change: &Change| {
            if !shared.is_for(change) {
                return Bytes::from(format!("{} {}\n", change.revision, change.key));
            }
            shared.get_or_encode(change, || {
                long_events.set(long_events.get() + 1);
                Bytes::from(vec![b'e'; VALUE_BYTES])
            })
        };
        changes.iter().map(piece).collect()
    };
    let mut pieces = Vec::new();
    // Tokio's cooperative budget would not let a task take so much at once.
    while let Some(batch) = tokio::task::unconstrained(watch.next()).now_or_never() {
        pieces.extend_from_slice(watch.encoded(&batch.unwrap(), encode));
    }
    pieces
}

fn put_large(index: u64, key: &str) -> raft_key_value::types::Entry {
    set(1, index, key, &"v".repeat(VALUE_BYTES))
}

/// Changes for many watches are encoded once for each group, however long they are, and a long event once for the node.
///
/// Method: use 100 watches of a key and 100 of each of two prefixes, all up to date. Write a value of 1 MiB, a
/// transaction of 2,000 puts, and the first step of a deletion. Then a watch reads all of it from the history.
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

/// The values in the history, which show how long they are held.
fn records(store: &ExampleStore, key: &str) -> Vec<Weak<Record>> {
    store.state_machine.read(|machine| {
        let of_change = |change: &Change| match &change.kind {
            ChangeKind::Put(record) if change.key == key => Some(Arc::downgrade(record)),
            _ => None,
        };
        machine.history.iter().filter_map(of_change).collect()
    })
}

/// A watch that is not read holds no more of the changes than the node's bound of bytes, however few batches they are
/// in.
///
/// Method: leave an up-to-date watch unread. Apply two batches of entries with 40 MiB for it, and so many other changes
/// that the history drops these. Count the values that are still in memory.
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
        // One more is the key's value.
        assert!(held <= WATCH_HANDED_OUT_BYTES_MAX / VALUE_BYTES + 1, "{held} values are held");
        assert!(watch.next().now_or_never().expect("it ends").is_err());
    });
}

/// Memory that groups share is counted once, so that a long change for many groups is dropped for none of them.
///
/// Method: use two watches of each of 1,000 nested prefixes, and put 1 MiB to a key that begins with all of them. One
/// watch of each prefix takes the change, and then the other ones in the opposite order. If a batch had been dropped, a
/// watch would read the history, and its events would be encoded for it alone.
#[test]
fn a_long_change_for_many_groups_is_kept_for_all() {
    const GROUPS: usize = 1000;
    run(async {
        let directory = scratch();
        let store = open(directory.path());
        apply(&store, [membership(1, 0, &[1])]).await;
        let begin = |length| store.state_machine.watch(Filter::Prefix("k".repeat(length).as_str().into()), 1, 0);
        let mut watches: Vec<_> = (1..=GROUPS).chain((1..=GROUPS).rev()).map(begin).collect();
        for watch in &mut watches {
            assert!(watch.next().now_or_never().is_none());
        }
        for index in 1..=3 {
            apply(&store, [put_large(index, &"k".repeat(GROUPS))]).await;
            let (batches, long_events) = (Cell::new(0), Cell::new(0));
            for watch in &mut watches {
                assert!(!take_all(watch, &batches, &long_events).is_empty());
            }
            assert_eq!([batches.get(), long_events.get()], [GROUPS, 1]);
        }
    });
}

/// A change that some groups have read is counted for as long as another group holds it.
///
/// Method: use watches of a key and of nested prefixes of it, of which one is not read, each in turn. Apply two batches
/// of entries with 40 MiB, after each of which the other watches take everything, and so many other changes that the
/// history drops these. Count the values that are still in memory.
#[test]
fn a_slow_group_beside_fast_ones_holds_a_bounded_number_of_bytes() {
    let filters = [Filter::Key("key".into()), Filter::Prefix("key".into()), Filter::Prefix("k".into())];
    for slow in 0..filters.len() {
        run(async {
            let directory = scratch();
            let store = open(directory.path());
            apply(&store, [membership(1, 0, &[1])]).await;
            let begin = |filter: &Filter| store.state_machine.watch(filter.clone(), 1, 0);
            let mut watches: Vec<_> = filters.iter().map(begin).collect();
            for watch in &mut watches {
                assert!(watch.next().now_or_never().is_none());
            }
            let mut values = Vec::new();
            for first in [1, 41] {
                apply(&store, (first..first + 40).map(|index| put_large(index, "key"))).await;
                values = [values, records(&store, "key")].concat();
                for (number, watch) in watches.iter_mut().enumerate() {
                    if number != slow {
                        take_all(watch, &Cell::new(0), &Cell::new(0));
                    }
                }
            }
            let others = (HISTORY_BYTES_MAX / VALUE_BYTES) as u64 + 1;
            apply(&store, (81..81 + others).map(|index| put_large(index, "other"))).await;
            assert!(records(&store, "key").is_empty(), "the history still has them");
            let held = values.iter().filter(|record| record.upgrade().is_some()).count();
            // One more is the key's value.
            assert!(held <= WATCH_HANDED_OUT_BYTES_MAX / VALUE_BYTES + 1, "{held} values are held");
        });
    }
}

/// Long events that are being sent stay within the node's bounds of memory, even if groups take them so far apart in
/// time that each is encoded more than once.
///
/// Method: use 200 pairs of nested prefixes, and 17 changes, whose events count as a MiB each. The watches of a pair
/// take them side by side, so that both have the same events, and then each holds only its place.
#[test]
fn long_events_hold_a_bounded_number_of_bytes() {
    const GROUPS: usize = 400;
    run(async {
        let directory = scratch();
        let store = open(directory.path());
        apply(&store, [membership(1, 0, &[1])]).await;
        let begin = |length| store.state_machine.watch(Filter::Prefix("k".repeat(length).as_str().into()), 1, 0);
        let mut watches: Vec<_> = (1..=GROUPS).map(begin).collect();
        for watch in &mut watches {
            assert!(watch.next().now_or_never().is_none());
        }
        let value = "v".repeat(WATCH_HANDED_OUT_BATCH_BYTES);
        apply(&store, (1..=17).map(|index| set(1, index, &"k".repeat(GROUPS), &value))).await;
        let counter = Arc::new(());
        let mut held_max = 0;
        let mut encode_next = |watch: &mut Subscription| {
            let Some(batch) = tokio::task::unconstrained(watch.next()).now_or_never() else { return false };
            let batch = batch.unwrap();
            let new_event = || Bytes::from_owner(Counted(vec![0; VALUE_BYTES], counter.clone()));
            watch.encoded(&batch, |changes, shared| {
                changes.iter().map(|change| shared.get_or_encode(change, new_event)).collect()
            });
            held_max = held_max.max(Arc::strong_count(&counter) - 1);
            true
        };
        for group in 0..GROUPS / 2 {
            while encode_next(&mut watches[group]) && encode_next(&mut watches[GROUPS / 2 + group]) {}
        }
        let bound = (WATCH_HANDED_OUT_BYTES_MAX + WATCH_LONG_EVENTS_BYTES_MAX) / VALUE_BYTES;
        assert!(held_max > WATCH_LONG_EVENTS_BYTES_MAX / VALUE_BYTES, "{held_max}");
        assert!(held_max <= bound + 3, "{held_max} events are held");
    });
}

/// An event that a watch still holds is not encoded again for another one, however many were encoded since.
///
/// Method: use 10 slow readers of 60 events of a MiB each, one after the other, and then drop them.
#[test]
fn long_events_are_shared_by_slow_readers() {
    const EVENTS: u64 = 60;
    let (long_events, counter) = (LongEvents::default(), Arc::new(()));
    let new_event = || Bytes::from_owner(Counted(vec![0; VALUE_BYTES], counter.clone()));
    let event = |revision| {
        let change = Change { revision, position: 0, key: "key".into(), kind: ChangeKind::Delete };
        long_events.get_or_encode(&change, new_event)
    };
    let held: Vec<Bytes> = (0..10).flat_map(|_| 0..EVENTS).map(event).collect();
    assert_eq!(Arc::strong_count(&counter) - 1, EVENTS as usize);
    drop(held);
    assert_eq!(Arc::strong_count(&counter) - 1, WATCH_LONG_EVENTS_BYTES_MAX / VALUE_BYTES);
}

/// Bytes that can be counted.
struct Counted(Vec<u8>, #[expect(dead_code, reason = "only its clones are counted")] Arc<()>);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A watch misses no change while another thread applies entries, and does not report a place ahead of them.
///
/// Method: one thread applies 20,000 puts, each in its own batch. Another thread begins watches, polls them and
/// requests their place. Each revision must follow the one before, and the place must be that of the last received one.
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
