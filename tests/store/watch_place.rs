//! The place of a watch in the sequence of changes.

use futures_util::FutureExt;
use openraft::storage::RaftStateMachine;
use raft_key_value::config::{HISTORY_BYTES_MAX, WATCH_BATCHES_MAX};
use raft_key_value::store::{Filter, Subscription};

use crate::support::*;

const VALUE_BYTES: usize = 1 << 20;

/// Takes what there is for a watch now; returns the revisions.
fn take_all(watch: &mut Subscription) -> Vec<u64> {
    let mut revisions = Vec::new();
    while let Some(batch) = watch.next().now_or_never() {
        revisions.extend(batch.unwrap().changes().iter().map(|change| change.revision));
    }
    revisions
}

/// Entries for other keys than those that are watched: more than the history keeps.
fn others(first: u64) -> Vec<raft_key_value::types::Entry> {
    let count = (HISTORY_BYTES_MAX / VALUE_BYTES) as u64 + 5;
    (first..first + count).map(|index| set(1, index, "other", &"v".repeat(VALUE_BYTES - 10))).collect()
}

/// A watch of keys that seldom change does not fall behind the history while others do.
///
/// Method: a watch that has everything, and then more changes of other keys than
/// are kept. After a heartbeat, more changes at once than a watch may fall behind;
/// and instead of that, the installation of a snapshot. Either way the watch goes
/// on with the next change of its own.
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

        // What the snapshot's history begins with is later than what the watch saw last.
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
