//! What the writer guarantees its waiters, with a callback that the tests control.

use std::time::Instant;

use openraft::vote::RaftLeaderId;
use tempfile::TempDir;

use super::*;
use crate::config::LOG_PAYLOAD_BYTES_MAX;
use crate::operation::{Operation, Put, Write};
use crate::types::{Command, Payload};

type Waiting = OneshotReceiverOf<TypeConfig, io::Result<()>>;

fn open(directory: &TempDir) -> LogStore {
    let checked = CheckedLog::read(directory.path(), true).unwrap();
    LogStore::open(directory.path(), &checked, LogSizes::default()).unwrap()
}

fn entry(index: u64, value: &str) -> Entry {
    let put = Put { key: "key".into(), value: value.into(), ttl_ms: None, condition: None };
    let command = Command::Write(Write { at_ms: 0, request: None, operation: Operation::Put(put) });
    Entry { log_id: LogId::new(RaftLeaderId::new(1, 1), index), payload: Payload::Normal(command) }
}

fn vote(term: u64) -> Vote {
    Vote { leader_id: RaftLeaderId::new(term, 1), committed: false }
}

async fn append(log: &LogStore, index: u64) -> Waiting {
    let (tx, rx) = TypeConfig::oneshot();
    log.clone().append([entry(index, "value")], IOFlushed::signal(tx)).await.unwrap();
    rx
}

/// Makes the store believe that a sync is under way, so that later ones wait only for the returned callback.
fn pretend_sync(log: &LogStore) -> (FlushCallback, Waiting) {
    let (tx, rx) = TypeConfig::oneshot();
    log.shared().write().unwrap().sync_under_way = true;
    let began = Instant::now();
    let waiters = Some(Waiters(vec![(began, IOFlushed::signal(tx))]));
    let (unsynced_bytes, meters) = (Arc::default(), Arc::default());
    let shared = Arc::downgrade(log.shared());
    (FlushCallback { waiters, bytes: 0, unsynced_bytes, began, meters, shared }, rx)
}

fn writer_is_idle(log: &LogStore) {
    log.read().unwrap().log.wait_worker_idle().unwrap();
}

async fn assert_rejected(log: &LogStore, message: &str) {
    let (tx, mut rx) = TypeConfig::oneshot();
    let errors = [
        log.clone().append([entry(9, "value")], IOFlushed::signal(tx)).await,
        log.clone().save_vote(&vote(9)).await,
        log.clone().save_committed(Some(LogId::new(RaftLeaderId::new(1, 1), 0))).await,
        log.clone().truncate_after(None).await,
        log.clone().purge(LogId::new(RaftLeaderId::new(1, 1), 0)).await,
        log.flush().await,
    ];
    for error in errors {
        assert_eq!(error.unwrap_err().to_string(), message);
    }
    assert!(rx.try_recv().is_err(), "a rejected append must not be acknowledged");
}

/// Nothing is acknowledged before the sync that follows it is done.
///
/// Method: an entry, a vote and a truncation are written while a sync is under way;
/// none is acknowledged, however long that takes, until it and one more sync are done.
#[tokio::test]
async fn acknowledged_after_the_next_sync() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(&directory);
    let (callback, mut before) = pretend_sync(&log);
    let mut appended = append(&log, 0).await;
    let saved = tokio::spawn({
        let mut log = log.clone();
        async move { log.save_vote(&vote(1)).await }
    });
    tokio::task::yield_now().await;
    let truncated = tokio::spawn({
        let mut log = log.clone();
        async move { log.truncate_after(None).await }
    });
    tokio::task::yield_now().await;
    writer_is_idle(&log);
    assert_eq!(log.read().unwrap().waiting.0.len(), 3);
    assert!(before.try_recv().is_err() && appended.try_recv().is_err());
    assert!(!saved.is_finished() && !truncated.is_finished());

    callback.send(Ok(()));
    before.try_recv().unwrap().unwrap();
    appended.await.unwrap().unwrap();
    saved.await.unwrap().unwrap();
    truncated.await.unwrap().unwrap();
    writer_is_idle(&log);
    assert!(!log.read().unwrap().sync_under_way);
}

/// Records that are appended during a sync are written and synced together after it.
///
/// Method: append 100 entries while a sync is under way, and count the syncs.
#[tokio::test]
async fn one_sync_for_all_that_wait() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(&directory);
    let syncs = || log.read().unwrap().log.stat().flush_metrics.sync_batch_count;
    let before = syncs();
    let (callback, _) = pretend_sync(&log);
    let mut waiting = Vec::new();
    for index in 0..100 {
        waiting.push(append(&log, index).await);
    }
    assert_eq!(syncs(), before);
    callback.send(Ok(()));
    for acknowledged in waiting {
        acknowledged.await.unwrap().unwrap();
    }
    assert_eq!(syncs(), before + 1);
}

/// Records that a killed process wrote without syncing are synced before the node relies on them.
///
/// Method: count the syncs of opening a log.
#[tokio::test]
async fn opening_syncs() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(&directory);
    append(&log, 0).await.await.unwrap().unwrap();
    drop(log);
    let log = open(&directory);
    assert_eq!(log.read().unwrap().log.stat().flush_metrics.sync_batch_count, 1);
}

/// A sync that fails is reported to its callers, to those that wait for the next one, and to all later ones.
#[tokio::test]
async fn failed_sync() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(&directory);
    let (callback, this_batch) = pretend_sync(&log);
    let next_batch = append(&log, 0).await;
    callback.send(Err(io::Error::new(io::ErrorKind::StorageFull, "no space left")));
    for waiting in [this_batch, next_batch] {
        let error = waiting.await.unwrap().unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (io::ErrorKind::StorageFull, "no space left"));
    }
    assert_rejected(&log, "no space left").await;
}

/// A writer that ends without calling its callbacks fails every caller, too.
///
/// Method: a file of purged entries that cannot be deleted, because it was replaced by a directory; raft-log's thread
/// ends on that error.
#[tokio::test]
async fn writer_that_ends() {
    let directory = tempfile::tempdir().unwrap();
    let sizes = LogSizes { chunk_bytes_max: 260, ..LogSizes::default() };
    let log = LogStore::open(directory.path(), &CheckedLog::default(), sizes).unwrap();
    for index in 0..10 {
        append(&log, index).await.await.unwrap().unwrap();
    }
    let first = directory.path().join("r-00_000_000_000_000_000_000.wal");
    std::fs::remove_file(&first).unwrap();
    std::fs::create_dir(&first).unwrap();

    let (callback, before) = pretend_sync(&log);
    log.clone().purge(LogId::new(RaftLeaderId::new(1, 1), 8)).await.unwrap();
    let this_batch = append(&log, 10).await;
    callback.send(Ok(()));
    before.await.unwrap().unwrap();
    this_batch.await.unwrap().unwrap();

    let started = Instant::now();
    let mut index = 11;
    let error = loop {
        let (tx, rx) = TypeConfig::oneshot();
        let result = log.clone().append([entry(index, "value")], IOFlushed::signal(tx)).await;
        let Ok(()) = result else { break result.unwrap_err() };
        if let Err(error) = rx.await.unwrap() {
            break error;
        }
        index += 1;
        assert!(started.elapsed() < Duration::from_secs(30), "the failure was never reported");
    };
    assert_eq!(error.kind(), io::ErrorKind::IsADirectory, "{error}");
    assert_rejected(&log, &error.to_string()).await;
}

/// A dropped callback returns an error to its waiters and to those of the next sync, even if it is dropped under the
/// lock.
#[tokio::test]
async fn dropped_callback() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(&directory);
    let (callback, this_batch) = pretend_sync(&log);
    let next_batch = append(&log, 0).await;
    let shared = log.shared().write().unwrap();
    drop(callback);
    drop(shared);
    for waiting in [this_batch, next_batch] {
        assert_eq!(waiting.await.unwrap().unwrap_err().to_string(), WRITER_STOPPED);
    }
    assert_rejected(&log, WRITER_STOPPED).await;
}

/// After a log is dropped it can be opened again, even if a callback was running.
#[test]
fn dropped_while_a_callback_runs() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(&directory);
    let held = log.shared().clone();
    let callback = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        drop(held);
    });
    drop(log);
    drop(open(&directory));
    callback.join().unwrap();
}

/// A record that cannot be written ends the log: acknowledged entries remain, and nothing follows the partial record.
///
/// Method: a payload over the limit between two within it.
#[tokio::test]
async fn payload_over_the_limit() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(&directory);
    append(&log, 0).await.await.unwrap().unwrap();
    let (tx, _) = TypeConfig::oneshot();
    let entries = [entry(1, &"v".repeat(LOG_PAYLOAD_BYTES_MAX)), entry(2, "value")];
    let error = log.clone().append(entries, IOFlushed::signal(tx)).await.unwrap_err();
    assert!(error.to_string().contains("exceeds the limit"), "{error}");
    assert_rejected(&log, &error.to_string()).await;
    drop(log);
    let log = open(&directory);
    let state = log.clone().get_log_state().await.unwrap();
    assert_eq!(state.last_log_id, Some(LogId::new(RaftLeaderId::new(1, 1), 0)));
    append(&log, 1).await.await.unwrap().unwrap();
}

/// Records are on disk in the order in which they were written, no matter which callers wait.
#[tokio::test]
async fn order_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(&directory);
    let mut waiting = Vec::new();
    for index in 0..20 {
        waiting.push(append(&log, index).await);
        if index % 5 == 0 {
            log.clone().save_vote(&vote(2 + index)).await.unwrap();
            // The vote is on disk, so the records before it are.
            for acknowledged in waiting.drain(..) {
                acknowledged.await.unwrap().unwrap();
            }
            let checked = CheckedLog::read(directory.path(), false).unwrap();
            assert_eq!(checked.vote, Some(vote(2 + index)));
            assert_eq!(checked.last.map(|log_id| log_id.index), Some(index));
        }
    }
}

/// A range that begins before the log is read from the beginning of the log, each entry once.
#[tokio::test]
async fn stream_of_entries() {
    use futures_util::StreamExt;
    let directory = tempfile::tempdir().unwrap();
    let log = open(&directory);
    for index in 0..6 {
        let large = "v".repeat(APPLY_BYTES_MAX / 2);
        let (tx, rx) = TypeConfig::oneshot();
        log.clone().append([entry(index, &large)], IOFlushed::signal(tx)).await.unwrap();
        rx.await.unwrap().unwrap();
    }
    log.clone().purge(LogId::new(RaftLeaderId::new(1, 1), 1)).await.unwrap();
    let indexes = async |range: std::ops::Range<u64>| {
        let mut log = log.clone();
        let entries = log.entries_stream(range).await;
        entries.map(|entry| entry.unwrap().log_id.index).collect::<Vec<_>>().await
    };
    assert_eq!(indexes(2..6).await, [2, 3, 4, 5]);
    assert_eq!(indexes(0..9).await, [2, 3, 4, 5]);
    assert_eq!(indexes(3..5).await, [3, 4]);
    assert_eq!(indexes(0..2).await, [0u64; 0]);
}

/// Replication reads a bounded number of bytes at once, and at least one entry.
#[tokio::test]
async fn limited_read() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(&directory);
    let large = "v".repeat(APPEND_BYTES_MAX / 2 + 1);
    for index in 0..3 {
        let (tx, rx) = TypeConfig::oneshot();
        let value = if index == 2 { large.repeat(2) } else { large.clone() };
        log.clone().append([entry(index, &value)], IOFlushed::signal(tx)).await.unwrap();
        rx.await.unwrap().unwrap();
    }
    for (start, end, expected) in [(0, 3, 2), (1, 3, 2), (2, 3, 1), (0, 1, 1), (3, 9, 0)] {
        let entries = log.clone().limited_get_log_entries(start, end).await.unwrap();
        assert_eq!(entries.len(), expected, "{start}..{end}");
    }
}

/// `first_other` finds an entry that the log has with another payload.
///
/// Method: entries 0 to 4 of term 1, up to 1 purged; ranges with one payload changed, with other log ids, before,
/// across and beyond the log.
#[tokio::test]
async fn other_entries() {
    let directory = tempfile::tempdir().unwrap();
    let mut log = open(&directory);
    let range = |indexes: std::ops::Range<u64>| indexes.map(|index| entry(index, "value")).collect::<Vec<_>>();
    let changed = |indexes: std::ops::Range<u64>, at: u64| {
        let start = indexes.start;
        let mut entries = range(indexes);
        entries[(at - start) as usize] = entry(at, "other");
        entries
    };
    assert_eq!(log.first_other(&range(0..9)).unwrap(), None, "the log is empty");
    log.append(range(0..5), IOFlushed::noop()).await.unwrap();
    log.purge(entry(1, "").log_id).await.unwrap();
    let mut later_term = changed(2..9, 4);
    for entry in &mut later_term[1..] {
        entry.log_id.leader_id.term = 2;
    }
    for (what, entries, expected) in [
        ("nothing", vec![], None),
        ("the same", range(2..5), None),
        ("the same and more", range(0..9), None),
        ("what follows", changed(5..9, 5), None),
        ("the first", changed(2..9, 2), Some(2)),
        ("the last", changed(2..9, 4), Some(4)),
        ("the last alone", changed(4..5, 4), Some(4)),
        ("a purged one", changed(0..9, 1), None),
        ("only purged ones", changed(0..2, 0), None),
        ("one that will be removed", later_term, None),
        ("another kind", vec![Entry { payload: Payload::Blank, ..entry(3, "") }], Some(3)),
    ] {
        let found = log.first_other(&entries).unwrap();
        assert_eq!(found, expected.map(|index| entry(index, "").log_id), "{what}");
    }
}

/// A snapshot that covers more than a log whose tail has a later term and was never committed replaces that tail. The
/// log continues after the snapshot, even when it is opened again.
///
/// Method: entries of term 1, then one of term 3; purge up to a later log id of term 2; append the next entry; open
/// again.
#[tokio::test]
async fn a_snapshot_beyond_a_tail_of_a_later_term() {
    let directory = tempfile::tempdir().unwrap();
    let mut log = open(&directory);
    let of_term = |term, index| Entry { log_id: LogId::new(RaftLeaderId::new(term, 1), index), ..entry(index, "v") };
    for (term, index) in [(1, 0), (1, 1), (3, 2)] {
        log.append([of_term(term, index)], IOFlushed::noop()).await.unwrap();
    }
    let covered = LogId::new(RaftLeaderId::new(2, 1), 5);
    log.purge(covered).await.unwrap();
    log.append([of_term(4, 6)], IOFlushed::noop()).await.unwrap();
    log.flush().await.unwrap();
    let last =
        |state: openraft::LogState<TypeConfig>| (state.last_purged_log_id, state.last_log_id.map(|last| last.index));
    assert_eq!(last(log.get_log_state().await.unwrap()), (Some(covered), Some(6)));
    drop(log);
    assert_eq!(last(open(&directory).get_log_state().await.unwrap()), (Some(covered), Some(6)));
}

/// Appended entries count as uncommitted until they are committed, truncated or purged. After a start, whole files
/// count.
#[tokio::test]
async fn uncommitted_bytes_are_counted() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(&directory);
    let log_id = |index| LogId::new(RaftLeaderId::new(1, 1), index);
    assert_eq!(log.uncommitted_bytes(), 0);
    let mut bytes_of_one = 0;
    for index in 0..6 {
        let _ = append(&log, index).await.await;
        bytes_of_one = log.uncommitted_bytes() / (index as usize + 1);
    }
    assert!(bytes_of_one > "keyvalue".len(), "{bytes_of_one}");
    assert_eq!(log.uncommitted_bytes(), 6 * bytes_of_one);
    let mut writer = log.clone();
    writer.save_committed(Some(log_id(1))).await.unwrap();
    assert_eq!(log.uncommitted_bytes(), 4 * bytes_of_one);
    writer.truncate_after(Some(log_id(4))).await.unwrap();
    assert_eq!(log.uncommitted_bytes(), 3 * bytes_of_one);
    writer.purge(log_id(2)).await.unwrap();
    assert_eq!(log.uncommitted_bytes(), 2 * bytes_of_one);
    writer.flush().await.unwrap();
    drop((log, writer));

    let log = open(&directory);
    assert!(log.uncommitted_bytes() >= 2 * bytes_of_one, "{} bytes", log.uncommitted_bytes());
    log.clone().save_committed(Some(log_id(4))).await.unwrap();
    assert_eq!(log.uncommitted_bytes(), 0);
    log.flush().await.unwrap();
    drop(log);
    assert_eq!(open(&directory).uncommitted_bytes(), 0);
}
