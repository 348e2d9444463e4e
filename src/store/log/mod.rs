//! The Raft log and the vote, on raft-log.
//!
//! All records go through one queue to one thread, which writes and syncs them
//! in order; so votes and entries are never reordered, and nothing is
//! acknowledged before it is on disk.
//!
//! **Group commit.** One sync is under way at a time. What is appended meanwhile
//! waits, and is written and synced together as soon as the sync is done. A lone
//! write is synced at once, and under load a sync serves all that came during
//! the one before it, with no waiting time to tune.
//!
//! **Failure.** The first write or sync that fails ends it: every caller that
//! waits hears of it, later calls are refused, and the node stops. What the
//! kernel did with the lost pages is not knowable, so nothing is retried.
//!
//! Caveat: a read of old entries, which are no longer cached, reads the disk
//! under the lock that appends need. Such reads are bounded to
//! [`APPEND_BYTES_MAX`] each.

pub mod check;
pub mod codec;

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, Weak};
use std::time::Duration;

use futures_util::{Stream, stream};
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use openraft::type_config::alias::OneshotReceiverOf;
use openraft::{OptionalSend, RaftLogReader};
use raft_log::api::raft_log_writer::RaftLogWriter;
use raft_log::{Callback, RaftLog};

use self::check::CheckedLog;
use self::codec::{LogIdRecord, PayloadRecord, UserDataRecord, VoteRecord};
use super::error::StoreError;
use crate::config::{APPEND_BYTES_MAX, APPLY_BYTES_MAX, LogSizes};
use crate::seeded_bug::{self, SeededBug};
use crate::types::{Entry, LogId, TypeConfig, Vote};

/// What raft-log stores for us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogTypes;

impl raft_log::Types for LogTypes {
    type LogId = LogIdRecord;
    type LogPayload = PayloadRecord;
    type Vote = VoteRecord;
    type Callback = FlushCallback;
    type UserData = UserDataRecord;

    fn log_index(log_id: &LogIdRecord) -> u64 {
        log_id.0.index
    }

    fn payload_size(payload: &PayloadRecord) -> u64 {
        payload.bytes() as u64
    }
}

/// The log and the vote of one node. Clones share it.
#[derive(Clone, Debug)]
pub struct LogStore {
    owner: Arc<Owner>,
}

/// Closes the log when the last clone of its store is gone.
#[derive(Debug)]
struct Owner {
    /// There until it is dropped.
    shared: Option<Arc<RwLock<Shared>>>,
    /// Beside the lock, so that a write can look at it without waiting.
    unsynced_bytes: Arc<AtomicUsize>,
    /// Beside the lock for the same reason.
    disk_bytes: AtomicU64,
    /// Beside the lock for the same reason.
    uncommitted_bytes: AtomicUsize,
    withheld_before: AtomicU64,
}

impl Drop for Owner {
    fn drop(&mut self) {
        let mut shared = self.shared.take();
        // A callback may hold it for a moment. It must not be left to that: closing
        // the log waits for the thread that callbacks run on. And once this is
        // done, the directory can be opened again.
        while let Some(held) = shared {
            shared = Arc::try_unwrap(held).err();
            std::thread::yield_now();
        }
    }
}

/// One file of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogFile {
    /// The last entry that the log had when the file ended, or has now; `None` if it has had no entry.
    ///
    /// Its index is not always beyond that of the file before: entries may have been replaced by those of a later term.
    pub last: Option<LogId>,
    /// Where the file begins, in bytes since the log began.
    pub start: u64,
    /// Where it ends.
    pub end: u64,
}

/// How much of the log's end is not known to be committed.
#[derive(Debug, Default)]
struct Uncommitted {
    /// The last index of each append, and about how many bytes it brought.
    appends: VecDeque<(u64, usize)>,
    /// Of all of them together.
    bytes: usize,
}

impl Uncommitted {
    fn append(&mut self, last_index: u64, bytes: usize) {
        self.appends.push_back((last_index, bytes));
        self.bytes += bytes;
    }

    /// All up to `index` is committed. An append that was committed in part still counts as a whole.
    fn commit(&mut self, index: u64) {
        while let Some((_, bytes)) = self.appends.front().copied().filter(|(last_index, _)| *last_index <= index) {
            self.appends.pop_front();
            self.bytes -= bytes;
        }
    }

    /// All from `index` on is removed. An append of which a part is left no longer counts.
    fn truncate(&mut self, index: u64) {
        while let Some((_, bytes)) = self.appends.back().copied().filter(|(last_index, _)| *last_index >= index) {
            self.appends.pop_back();
            self.bytes -= bytes;
        }
    }
}

/// Invariants:
/// * `waiting` is empty, or a sync is under way that will be followed by another;
/// * once `failure` is set, it stays, and nothing is written any more.
#[derive(Debug)]
struct Shared {
    log: RaftLog<LogTypes>,
    /// Who waits for the next sync.
    waiting: Waiters,
    sync_under_way: bool,
    /// Bytes of entries that wait for the next sync.
    waiting_bytes: usize,
    /// Whether something must be synced for which nobody waits.
    sync_wanted: bool,
    unsynced_bytes: Arc<AtomicUsize>,
    uncommitted: Uncommitted,
    failure: Option<(io::ErrorKind, String)>,
}

#[derive(Default)]
struct Waiters(Vec<IOFlushed<TypeConfig>>);

impl Waiters {
    fn tell(self, result: &io::Result<()>) {
        for waiter in self.0 {
            waiter.io_completed(match result {
                Ok(()) => Ok(()),
                Err(error) => Err(copy_of(error)),
            });
        }
    }
}

impl Debug for Waiters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} waiting", self.0.len())
    }
}

/// What raft-log calls, on its own thread, when a sync is done or has failed.
pub struct FlushCallback {
    /// Taken once they are told.
    waiters: Option<Waiters>,
    /// Bytes of entries that this sync covers.
    bytes: usize,
    unsynced_bytes: Arc<AtomicUsize>,
    shared: Weak<RwLock<Shared>>,
}

impl Callback for FlushCallback {
    fn send(mut self, result: io::Result<()>) {
        // First start the next sync, then wake those whose sync is done: the
        // disk is the slower of the two.
        if let Some(shared) = self.shared.upgrade() {
            LogStore::sync_done(&shared, &result);
        }
        self.unsynced_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.waiters.take().unwrap_or_default().tell(&result);
    }
}

// raft-log's thread ends without a word to those in its queue if it cannot
// delete a file of purged entries. They must hear of it all the same.
impl Drop for FlushCallback {
    fn drop(&mut self) {
        let Some(waiters) = self.waiters.take() else { return };
        let shared = self.shared.clone();
        // Elsewhere, because whoever drops this may hold the lock.
        std::thread::spawn(move || {
            let mut error = io::Error::other(WRITER_STOPPED);
            if let Some(shared) = shared.upgrade() {
                let mut shared = shared.write().unwrap_or_else(PoisonError::into_inner);
                error = shared.why_the_writer_stopped();
                shared.fail(&error);
            }
            waiters.tell(&Err(error));
        });
    }
}

const WRITER_STOPPED: &str = "the log writer stopped";

impl Shared {
    /// Ends all writing: tells everyone who waits for the next sync, and everyone who comes later.
    fn fail(&mut self, error: &io::Error) {
        if self.failure.is_none() {
            tracing::error!("cannot write the log: {error}; the node stops, since what is on disk is not known");
            self.failure = Some((error.kind(), error.to_string()));
        }
        std::mem::take(&mut self.waiting).tell(&Err(copy_of(error)));
    }

    fn why_the_writer_stopped(&self) -> io::Error {
        // Does not wait: the thread has ended.
        self.log.wait_worker_idle().err().unwrap_or_else(|| io::Error::other(WRITER_STOPPED))
    }
}

impl LogStore {
    /// Opens the log in `directory`, and replays it.
    ///
    /// `checked` is what [`CheckedLog::read`] found there: nothing but a torn
    /// end, which is cut off now, with a warning.
    pub fn open(directory: &Path, checked: &CheckedLog, sizes: LogSizes) -> Result<Self, StoreError> {
        let Some(directory_text) = directory.to_str() else {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "the path is not UTF-8");
            return Err(StoreError::io("open the log in", directory, error));
        };
        let config = raft_log::Config {
            wal: raft_log::chunked_wal::Config {
                dir: directory_text.to_owned(),
                read_buffer_size: Some(1 << 20),
                chunk_max_size: Some(sizes.chunk_bytes_max),
                truncate_incomplete_record: Some(true),
                // Batching is done above, so the writer must not wait for more.
                flush_batch_wait: Some(Duration::ZERO),
                // What waits is bounded by `LOG_UNSYNCED_BYTES_MAX`, before it is proposed.
                flush_queue_max_bytes: Some(usize::MAX / 2),
                ..raft_log::chunked_wal::Config::default()
            },
            log_cache_max_items: Some(usize::MAX),
            log_cache_capacity: Some(sizes.cache_bytes_max),
        };
        let mut log = RaftLog::open(Arc::new(config)).map_err(|error| open_error(directory, error))?;
        // A process that was killed may leave records that are written and not
        // synced. They are there for whoever reads them now, so they must stay.
        log.flush(true, None)
            .and_then(|()| log.wait_worker_idle())
            .map_err(|error| StoreError::io("write the log in", directory, error))?;
        for torn in &checked.torn {
            tracing::warn!(
                "cut {} bytes off `{}` at offset {}: a record that was being written when the node stopped, and so was \
                 never acknowledged (unless something else cut the file)",
                torn.bytes,
                torn.path.display(),
                torn.offset,
            );
        }
        let unsynced_bytes = Arc::new(AtomicUsize::new(0));
        let disk_bytes = AtomicU64::new(log.on_disk_size());
        let uncommitted = uncommitted_at_start(&log);
        let uncommitted_bytes = AtomicUsize::new(uncommitted.bytes);
        let shared = Shared {
            log,
            waiting: Waiters::default(),
            waiting_bytes: 0,
            unsynced_bytes: unsynced_bytes.clone(),
            sync_under_way: false,
            sync_wanted: false,
            uncommitted,
            failure: None,
        };
        let shared = Some(Arc::new(RwLock::new(shared)));
        Ok(LogStore {
            owner: Arc::new(Owner {
                shared,
                unsynced_bytes,
                disk_bytes,
                uncommitted_bytes,
                withheld_before: AtomicU64::new(0),
            }),
        })
    }

    /// Writes and syncs all that was appended, and waits for it.
    pub async fn flush(&self) -> io::Result<()> {
        self.write_and_sync(|_| Ok(())).await
    }

    /// The last log id that was removed from the log's beginning, if any.
    pub fn purged(&self) -> io::Result<Option<LogId>> {
        Ok(self.read()?.log.log_state().purged().map(|record| record.0))
    }

    /// Whether nothing was ever stored: neither a vote nor an entry.
    pub fn is_pristine(&self) -> io::Result<bool> {
        let shared = self.read()?;
        let state = shared.log.log_state();
        Ok(state.vote().is_none() && state.last().is_none())
    }

    /// Where the log ends.
    pub fn last_index(&self) -> io::Result<Option<u64>> {
        let last = self.read()?.log.log_state().last().map(|record| record.0.index);
        Ok(last)
    }

    /// The last entry of the log, or the last that was purged.
    pub fn last(&self) -> io::Result<Option<LogId>> {
        Ok(self.read()?.log.log_state().last().map(|record| record.0))
    }

    /// Whether the log has an entry, or had it before it was purged.
    pub fn has(&self, log_id: LogId) -> io::Result<bool> {
        let shared = self.read()?;
        let state = shared.log.log_state();
        let (purged, last) = (state.purged().map(|record| record.0), state.last().map(|record| record.0));
        if purged.is_some_and(|purged| log_id.index <= purged.index) {
            return Ok(true);
        }
        match last {
            Some(last) if log_id.index > last.index => Ok(false),
            None => Ok(false),
            Some(last) if last == log_id => Ok(true),
            Some(_) => {
                let found = shared.log.read(log_id.index, log_id.index + 1).next().transpose()?;
                Ok(found.is_some_and(|(found, _)| found.0 == log_id))
            }
        }
    }

    /// The first of these entries, which follow one another, that the log has with the same log id and another payload.
    ///
    /// Reads nothing unless they overlap the log, and then only what equals them, and one more entry. Entries that
    /// follow one with another log id are not looked at: they will be removed. Nor are purged ones.
    pub fn first_other(&self, entries: &[Entry]) -> io::Result<Option<LogId>> {
        let Some(first) = entries.first().map(|entry| entry.log_id.index) else { return Ok(None) };
        let shared = self.read()?;
        let state = shared.log.log_state();
        let Some(last) = state.last().map(|record| record.0.index).filter(|last| first <= *last) else {
            return Ok(None);
        };
        let start = state.purged().map_or(first, |purged| first.max(purged.0.index + 1));
        let unpurged = entries.iter().filter(|entry| entry.log_id.index >= start);
        for (entry, found) in unpurged.zip(shared.log.read(start, last + 1)) {
            let (log_id, payload) = found?;
            if log_id.0 != entry.log_id {
                break;
            }
            if payload.0 != entry.payload {
                return Ok(Some(entry.log_id));
            }
        }
        Ok(None)
    }

    /// Length of all files of the log, in bytes, with what is about to be written to them.
    pub fn disk_bytes(&self) -> u64 {
        self.owner.disk_bytes.load(Ordering::Relaxed)
    }

    /// The files of the log, oldest first; the last is the one that is written to.
    pub fn files(&self) -> io::Result<Vec<LogFile>> {
        Ok(files_of(&self.read()?.log))
    }

    /// About how many bytes of entries were appended and are not on disk yet.
    pub fn unsynced_bytes(&self) -> usize {
        self.owner.unsynced_bytes.load(Ordering::Relaxed)
    }

    /// About how many bytes of entries the log has after the last that is known to be committed. After a start, up to a
    /// file more.
    pub fn uncommitted_bytes(&self) -> usize {
        self.owner.uncommitted_bytes.load(Ordering::Relaxed)
    }

    /// Sends no entries before `index` to other nodes any more: they are to be purged, and whoever needs them gets a
    /// snapshot.
    pub fn withhold_before(&self, index: u64) {
        self.owner.withheld_before.store(index, Ordering::Relaxed);
    }

    /// Whether the entry at `index` is not to be sent.
    pub fn is_withheld(&self, index: u64) -> bool {
        index < self.owner.withheld_before.load(Ordering::Relaxed)
    }

    fn shared(&self) -> &Arc<RwLock<Shared>> {
        self.owner.shared.as_ref().expect("it is taken when the last clone is dropped")
    }

    fn read(&self) -> io::Result<RwLockReadGuard<'_, Shared>> {
        self.shared().read().map_err(|_| io::Error::other("the log failed earlier"))
    }

    /// Writes to the log; the first write that fails is the last.
    fn write<T>(&self, write: impl FnOnce(&mut Shared) -> io::Result<T>) -> io::Result<T> {
        let mut shared = self.shared().write().map_err(|_| io::Error::other("the log failed earlier"))?;
        if let Some((kind, message)) = &shared.failure {
            return Err(io::Error::new(*kind, message.clone()));
        }
        let result = write(&mut shared);
        self.owner.disk_bytes.store(shared.log.on_disk_size(), Ordering::Relaxed);
        self.owner.uncommitted_bytes.store(shared.uncommitted.bytes, Ordering::Relaxed);
        if let Err(error) = &result {
            // A record that could not be encoded may have left its beginning
            // behind; whole records after it would make that damage.
            shared.fail(error);
        }
        result
    }

    /// Writes to the log, and waits until it is on disk.
    async fn write_and_sync(&self, write: impl FnOnce(&mut Shared) -> io::Result<()>) -> io::Result<()> {
        let synced = self.write(|shared| {
            write(shared)?;
            self.wait_for_sync(shared)
        })?;
        synced.await.map_err(|_| io::Error::other(WRITER_STOPPED))?
    }

    fn wait_for_sync(&self, shared: &mut Shared) -> io::Result<OneshotReceiverOf<TypeConfig, io::Result<()>>> {
        let (tx, rx) = TypeConfig::oneshot();
        self.request_sync(shared, Some(IOFlushed::signal(tx)))?;
        Ok(rx)
    }

    fn request_sync(&self, shared: &mut Shared, waiter: Option<IOFlushed<TypeConfig>>) -> io::Result<()> {
        shared.sync_wanted |= waiter.is_none();
        shared.waiting.0.extend(waiter);
        if shared.sync_under_way {
            return Ok(());
        }
        Self::start_sync(self.shared(), shared)
    }

    fn start_sync(this: &Arc<RwLock<Shared>>, shared: &mut Shared) -> io::Result<()> {
        shared.sync_under_way = true;
        shared.sync_wanted = false;
        let waiters = Some(std::mem::take(&mut shared.waiting));
        let bytes = std::mem::take(&mut shared.waiting_bytes);
        let unsynced_bytes = shared.unsynced_bytes.clone();
        let callback = FlushCallback { waiters, bytes, unsynced_bytes, shared: Arc::downgrade(this) };
        shared.log.flush(true, Some(callback)).map_err(|_| shared.why_the_writer_stopped())
    }

    fn sync_done(this: &Arc<RwLock<Shared>>, result: &io::Result<()>) {
        let mut shared = this.write().unwrap_or_else(PoisonError::into_inner);
        shared.sync_under_way = false;
        let outcome = match result {
            Err(error) => Err(copy_of(error)),
            Ok(()) if this.is_poisoned() => Err(io::Error::other("a thread panicked while it wrote the log")),
            Ok(()) if shared.failure.is_some() => return,
            Ok(()) if shared.waiting.0.is_empty() && !shared.sync_wanted => return,
            Ok(()) => Self::start_sync(this, &mut shared),
        };
        if let Err(error) = outcome {
            shared.fail(&error);
        }
    }

    /// Entries from `start` until `end` (exclusive), at least one if there is
    /// one, and no more once they take `bytes_max`.
    fn entries(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let shared = self.read()?;
        let mut bytes = 0;
        let mut entries = Vec::new();
        for record in shared.log.read(start, end) {
            let (log_id, payload) = record?;
            bytes += payload.bytes();
            entries.push(Entry { log_id: log_id.0, payload: payload.0 });
            if bytes >= bytes_max {
                break;
            }
        }
        Ok(entries)
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds_of(&range);
        self.entries(start, end, usize::MAX)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.read()?.log.log_state().vote().map(|record| record.0))
    }

    /// Replication reads through this: the bytes of one append are bounded here.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.entries(start, end, APPEND_BYTES_MAX)
    }

    /// Apply reads through this: after a restart the range may be all the log,
    /// so it is read in parts.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds_of(&range);
        let state = (self.clone(), start, end, Vec::new().into_iter());
        Box::pin(stream::unfold(state, |(log, mut start, end, mut part)| async move {
            if part.len() == 0 && start < end {
                match log.entries(start, end, APPLY_BYTES_MAX) {
                    Ok(entries) => part = entries.into_iter(),
                    Err(error) => return Some((Err(error), (log, end, end, part))),
                }
                start = part.as_slice().last().map_or(end, |entry| entry.log_id.index + 1);
            }
            part.next().map(|entry| (Ok(entry), (log, start, end, part)))
        }))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<openraft::LogState<TypeConfig>> {
        let shared = self.read()?;
        let state = shared.log.log_state();
        Ok(openraft::LogState {
            last_purged_log_id: state.purged().map(|record| record.0),
            last_log_id: state.last().map(|record| record.0),
        })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        if seeded_bug::is_on(SeededBug::VoteNotSynced) {
            return self.write(|shared| {
                shared.log.save_vote(VoteRecord(*vote))?;
                shared.log.flush(false, None)
            });
        }
        self.write_and_sync(|shared| shared.log.save_vote(VoteRecord(*vote)).map(drop)).await
    }

    /// Stored with the next sync, not with one of its own: it only says from
    /// where a restart may apply again without asking.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let Some(committed) = committed.map(LogIdRecord) else { return Ok(()) };
        self.write(|shared| {
            shared.uncommitted.commit(committed.0.index);
            let state = shared.log.log_state();
            // A snapshot may be ahead of the log while it is being installed.
            let within_log = Some(&committed) <= state.last();
            if within_log && state.committed() < Some(&committed) {
                shared.log.commit(committed)?;
            }
            Ok(())
        })
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.read()?.log.log_state().committed().map(|record| record.0))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.write(|shared| {
            let mut bytes = 0;
            let mut last_index = 0;
            shared.log.append(entries.into_iter().map(|entry| {
                let payload = PayloadRecord(entry.payload);
                bytes += payload.bytes();
                last_index = entry.log_id.index;
                (LogIdRecord(entry.log_id), payload)
            }))?;
            shared.uncommitted.append(last_index, bytes);
            shared.waiting_bytes += bytes;
            shared.unsynced_bytes.fetch_add(bytes, Ordering::Relaxed);
            if seeded_bug::is_on(SeededBug::AcknowledgedBeforeSync) {
                callback.io_completed(Ok(()));
                return self.request_sync(shared, None);
            }
            self.request_sync(shared, Some(callback))
        })
    }

    /// Waits for the sync: a snapshot that is installed next may be on disk
    /// before what comes later in the log, and must not meet the entries that
    /// contradict it.
    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let next_index = last_log_id.map_or(0, |log_id| log_id.index + 1);
        self.write_and_sync(|shared| {
            shared.uncommitted.truncate(next_index);
            let ends_before = shared.log.log_state().last().is_none_or(|last| last.0.index < next_index);
            if ends_before { Ok(()) } else { shared.log.truncate(next_index).map(drop) }
        })
        .await
    }

    /// Does not wait for the sync: without the record the log only begins earlier.
    ///
    /// A snapshot may cover more than the log has, and the log end in entries of a
    /// later term that were never committed. raft-log, which compares log ids by
    /// their terms first, would take those for what comes after the snapshot.
    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        self.write(|shared| {
            let upto = LogIdRecord(log_id);
            if let Some(index) = first_index_beyond(shared, &upto)? {
                shared.uncommitted.truncate(index);
                shared.log.truncate(index)?;
            }
            // Only what is committed is purged.
            shared.uncommitted.commit(log_id.index);
            shared.log.purge(upto)?;
            self.request_sync(shared, None)
        })
    }
}

/// The files of a log, oldest first.
fn files_of(log: &RaftLog<LogTypes>) -> Vec<LogFile> {
    let stat = log.stat();
    let files = stat.closed_chunks.iter().chain([&stat.open_chunk]);
    files
        .map(|chunk| LogFile {
            last: chunk.log_state.last().map(|record| record.0),
            start: chunk.global_start,
            end: chunk.global_end,
        })
        .collect()
}

/// What a log has after the last entry that it says is committed, counted by its files.
fn uncommitted_at_start(log: &RaftLog<LogTypes>) -> Uncommitted {
    let state = log.log_state();
    let committed = state.committed().max(state.purged()).map(|record| record.0);
    let mut uncommitted = Uncommitted::default();
    let files = files_of(log);
    let first = files.iter().find(|file| file.last > committed);
    if let (Some(first), Some(last)) = (first, files.last())
        && let Some(last_index) = last.last.map(|last| last.index)
    {
        uncommitted.append(last_index, usize::try_from(last.end - first.start).unwrap_or(usize::MAX));
    }
    uncommitted
}

/// Where the entries begin that have a later log id than `upto`, if the log ends before its index.
fn first_index_beyond(shared: &Shared, upto: &LogIdRecord) -> io::Result<Option<u64>> {
    let Some(last) = shared.log.log_state().last() else { return Ok(None) };
    let mut index = last.0.index;
    if last <= upto || index >= upto.0.index {
        return Ok(None);
    }
    // Few, if any, ever: a leader's entries that nobody else has.
    while let Some(before) = index.checked_sub(1) {
        match shared.log.read(before, index).next().transpose()? {
            Some((log_id, _)) if log_id > *upto => index = before,
            _ => break,
        }
    }
    Ok(Some(index))
}

/// The start (inclusive) and end (exclusive) of a range of indexes.
fn bounds_of(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end.max(start))
}

/// Tells damage from a failing disk.
fn open_error(directory: &Path, error: io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::InvalidData
        | io::ErrorKind::InvalidInput
        | io::ErrorKind::UnexpectedEof
        | io::ErrorKind::Other => StoreError::damaged(directory, None, error.to_string()),
        _ => StoreError::io("open the log in", directory, error),
    }
}

fn copy_of(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

#[cfg(test)]
mod tests;
