//! The place of a watch in the sequence of changes.

use std::sync::Arc;

use futures_util::FutureExt;
use openraft::storage::RaftStateMachine;
use raft_key_value::config::{HISTORY_BYTES_MAX, WATCH_BATCHES_MAX, WATCH_EXAMINED_MAX, WATCH_HANDED_OUT_BYTES_MAX};
use raft_key_value::operation::{Operation, Txn, TxnStep};
use raft_key_value::store::{Filter, Subscription};

use crate::support::*;

const VALUE_BYTES: usize = 1 << 20;

/// Takes everything that is ready for a watch; returns the revisions.
fn take_all(watch: &mut Subscription) -> Vec<u64> {
    let mut revisions = Vec::new();
    while let Some(batch) = watch.next().now_or_never() {
        revisions.extend(batch.unwrap().changes().iter().map(|change| change.revision));
    }
    revisions
}

/// Entries for keys that are not watched: more than the history keeps.
fn others(first: u64) -> Vec<raft_key_value::types::Entry> {
    let count = (HISTORY_BYTES_MAX / VALUE_BYTES) as u64 + 5;
    (first..first + count).map(|index| set(1, index, "other", &"v".repeat(VALUE_BYTES - 10))).collect()
}

/// A watch of keys that seldom change does not fall behind the history while other keys change.
///
/// Method: with a watch that is up to date, apply more changes of other keys than are kept. After a heartbeat, apply
/// more changes at once than a watch may fall behind; alternatively, install a snapshot. Either way the watch continues
/// with the next change of its own.
#[test]
fn a_watch_of_seldom_changes_keeps_its_place() {
    run(async {
        let (directory, other_directory) = (scratch(), scratch());
        let (store, ahead) = (open(directory.path()), open(other_directory.path()));
        for store in [&store, &ahead] {
            store.join_cluster(CLUSTER).unwrap();
            apply(store, [membership(1, 0, &[1]), set(1, 1, "seldom", "1")]).await;
        }
        let mut watch = store.state_machine.watch(Filter::Key("seldom".into()), 1, 0);
        assert_eq!(take_all(&mut watch), [1]);

        let mut index = 2;
        for entry in others(index) {
            index += 1;
            apply(&ahead, [entry.clone()]).await;
            apply(&store, [entry]).await;
        }
        assert!(take_all(&mut watch).is_empty());
        assert_eq!(watch.caught_up(), Some(index - 1));
        let first = index;
        for _ in 0..2 * WATCH_BATCHES_MAX {
            let entry = set(1, index, "seldom", "2");
            apply(&ahead, [entry.clone()]).await;
            apply(&store, [entry]).await;
            index += 1;
        }
        assert_eq!(take_all(&mut watch), (first..index).collect::<Vec<_>>());

        // The snapshot's history begins after the last change that the watch received.
        for entry in others(index) {
            index += 1;
            apply(&ahead, [entry.clone()]).await;
            apply(&store, [entry]).await;
        }
        apply(&ahead, [set(1, index, "seldom", "3")]).await;
        build_snapshot(&ahead).await;
        install_snapshot(&ahead, &store).await;
        assert_eq!(take_all(&mut watch), [index]);
        let applied = store.state_machine.clone().applied_state().await.unwrap().0;
        assert_eq!(applied.map(|log_id| log_id.index), Some(index));
    });
}

/// A watch reads the history in short steps, between which other tasks run, and misses no change at the end of a step.
///
/// Method: write revisions of three changes each, enough for several steps. Poll a watch of a key that none of them
/// changes, with a new future each time, until it is up to date: once for each step. Watches of one key, and of
/// several, close to the end of each step must receive exactly their changes, and all watches must receive later
/// writes.
#[test]
fn the_history_is_read_in_steps() {
    // A step ends before the next revision.
    const STEP: u64 = (WATCH_EXAMINED_MAX as u64).div_ceil(3);
    const REVISIONS: u64 = 3 * STEP + 10;
    run(async {
        let directory = scratch();
        let store = open(directory.path());
        let entry = |index: u64| {
            let put = |key: &str| TxnStep::Put(put_of(key, &index.to_string()));
            let success = vec![put("first"), put(&format!("r/{index:05}")), put("third")];
            write(1, index, 0, None, Operation::Txn(Arc::new(Txn { compare: vec![], success, failure: vec![] })))
        };
        apply(&store, [membership(1, 0, &[1])]).await;
        apply(&store, (1..=REVISIONS).map(entry)).await;
        assert_eq!(store.state_machine.read(|machine| machine.history.iter().len() as u64), 3 * REVISIONS);

        let mut none = store.state_machine.watch(Filter::Key("none".into()), 1, 0);
        let mut polls = 0;
        while none.caught_up().is_none() {
            assert!(none.next().now_or_never().is_none());
            polls += 1;
        }
        assert_eq!((polls, none.caught_up()), (4, Some(REVISIONS)));

        let take_until_caught_up = |filter: Filter| {
            let mut watch = store.state_machine.watch(filter, 1, 0);
            let mut revisions = Vec::new();
            while watch.caught_up().is_none() {
                revisions.extend(take_all(&mut watch));
            }
            assert_eq!(watch.caught_up(), Some(REVISIONS));
            revisions
        };
        for end in (1..=3).map(|step| step * STEP) {
            for revision in end - 2..end + 3 {
                assert_eq!(take_until_caught_up(Filter::Key(format!("r/{revision:05}").into())), [revision]);
            }
            let prefix = format!("r/{:04}", end / 10);
            let wanted: Vec<u64> = (end / 10 * 10..end / 10 * 10 + 10).filter(|it| *it <= REVISIONS).collect();
            assert_eq!(take_until_caught_up(Filter::Prefix(prefix.as_str().into())), wanted);
        }
        assert!(take_until_caught_up(Filter::Key("first".into())).into_iter().eq(1..=REVISIONS));

        apply(&store, [set(1, REVISIONS + 1, "none", "value")]).await;
        assert_eq!(take_all(&mut none), [REVISIONS + 1]);
    });
}

/// A watch whose batch was dropped does not report that it is up to date while it reads the history, although nothing
/// else was delivered to it.
///
/// Method: apply a batch with two changes of a key. Between them, the history has more other changes than one step
/// reads. The batch is dropped because of a group that is not read. After the first of the changes, request the watch's
/// place.
#[test]
fn no_place_while_the_history_is_read() {
    run(async {
        let directory = scratch();
        let store = open(directory.path());
        apply(&store, [membership(1, 0, &[1])]).await;
        let mut watch = store.state_machine.watch(Filter::Key("key".into()), 1, 0);
        let mut unread = store.state_machine.watch(Filter::Key("other".into()), 1, 0);
        assert!(watch.next().now_or_never().is_none() && unread.next().now_or_never().is_none());

        let puts = |number: usize| TxnStep::Put(put_of(&number.to_string(), "value"));
        let txn = Txn { compare: vec![], success: (0..WATCH_EXAMINED_MAX).map(puts).collect(), failure: vec![] };
        let between = write(1, 2, 0, None, Operation::Txn(Arc::new(txn)));
        apply(&store, [set(1, 1, "key", "1"), between, set(1, 3, "key", "2")]).await;
        let count = (WATCH_HANDED_OUT_BYTES_MAX / VALUE_BYTES) as u64 + 1;
        apply(&store, (4..4 + count).map(|index| set(1, index, "other", &"v".repeat(VALUE_BYTES)))).await;

        let first = watch.next().now_or_never().map(|batch| batch.unwrap().changes()[0].revision);
        assert_eq!(first, Some(1));
        assert_eq!(watch.caught_up(), None);
        assert_eq!(take_all(&mut watch), [3]);
        assert_eq!(watch.caught_up(), Some(3 + count));
    });
}
