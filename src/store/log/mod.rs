//! The Raft log and the vote, on raft-log.
//!
//! All records go through one queue to one thread, which writes and syncs them
//! in order; so votes and entries are never reordered, and nothing is
//! acknowledged before it is on disk.
//!
//! **Group commit.** One sync is under way at a time. What is appended meanwhile
//! waits, and is written and synced together as soon as the sync is done. A lone
//! write is synced at once, and under load a sync serves all writes that arrived
//! during the one before it, with no waiting time to tune.
//!
//! **Failure.** The first write or sync that fails is the last: every waiting
//! caller gets the error, later calls are rejected, and the node stops. Nothing is
//! retried, because it is unknown which pages the kernel dropped.
//!
//! Caveat: a read of old entries, which are no longer cached, reads the disk
//! under the lock that appends need. Such reads are bounded to
//! [`APPEND_BYTES_MAX`] each.

pub mod check;
pub mod codec;
mod sync_times;

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, Weak};
use std::time::{Duration, Instant};

use futures_util::{Stream, stream};
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use openraft::type_config::alias::OneshotReceiverOf;
use openraft::{OptionalSend, RaftLogReader};
use raft_log::api::raft_log_writer::RaftLogWriter;
use raft_log::{Callback, RaftLog};

use self::check::CheckedLog;
use self::codec::{LogIdRecord, PayloadRecord, UserDataRecord, VoteRecord};
use self::sync_times::SyncTimes;
use super::error::StoreError;
use crate::config::{APPEND_BYTES_MAX, APPLY_BYTES_MAX, LogSizes};
use crate::seeded_bug::{self, SeededBug};
use crate::telemetry::meters::LogMeters;
use crate::types::{Entry, LogId, TypeConfig, Vote};

/// The types of our records, for raft-log.
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

/// Closes the log when the last clone of its store is dropped.
#[derive(Debug)]
struct Owner {
    /// `None` only while this is dropped.
    shared: Option<Arc<RwLock<Shared>>>,
    /// A copy of [`Shared::unsynced_bytes`] outside the lock, so that a write can read it without waiting. So are the
    /// next two.
    unsynced_bytes: Arc<AtomicUsize>,
    disk_bytes: AtomicU64,
    uncommitted_bytes: AtomicUsize,
    /// See [`LogStore::withhold_before`].
    withheld_before: AtomicU64,
    meters: Arc<LogMeters>,
    sync_times: Arc<SyncTimes>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        let mut shared = self.shared.take();
        // A callback may hold it for a moment. The callback must not be the one to close the log, because closing it
        // waits for the thread that callbacks run on. When this returns, the directory can be opened again.
        while let Some(held) = shared {
            shared = Arc::try_unwrap(held).err();
            std::thread::yield_now();
        }
    }
}

/// One file of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogFile {
    /// The last entry of the log when the file ended, or now; `None` if the log had no entry.
    ///
    /// Its index may be less than that of the file before, if entries of a later term replaced others.
    pub last: Option<LogId>,
    /// Offset of the first byte of the file, counted from the beginning of the log.
    pub start: u64,
    /// Offset after its last byte.
    pub end: u64,
}

/// The entries at the end of the log that are not known to be committed.
///
/// Invariants: `bytes` is the sum of the appends' bytes. Their indexes increase.
#[derive(Debug, Default)]
struct Uncommitted {
    /// The last index of each append, and the approximate bytes of its entries.
    appends: VecDeque<(u64, usize)>,
    bytes: usize,
}

impl Uncommitted {
    fn append(&mut self, last_index: u64, bytes: usize) {
        debug_assert!(self.appends.back().is_none_or(|(before, _)| *before < last_index), "appends are in order");
        self.appends.push_back((last_index, bytes));
        self.bytes += bytes;
    }

    /// Entries up to `index` are committed. An append of which a part is committed still counts as a whole.
    fn commit(&mut self, index: u64) {
        while let Some((_, bytes)) = self.appends.front().copied().filter(|(last_index, _)| *last_index <= index) {
            self.appends.pop_front();
            self.bytes -= bytes;
        }
    }

    /// Entries from `index` on are removed. An append of which a part remains no longer counts.
    fn truncate(&mut self, index: u64) {
        while let Some((_, bytes)) = self.appends.back().copied().filter(|(last_index, _)| *last_index >= index) {
            self.appends.pop_back();
            self.bytes -= bytes;
        }
    }
}

/// Invariants:
/// * if `waiting` is not empty or `sync_wanted` is set, a sync is under way, and another one follows it;
/// * `waiting_bytes` is at most `unsynced_bytes`;
/// * once `failure` is set, it stays, and nothing more is written.
#[derive(Debug)]
struct Shared {
    log: RaftLog<LogTypes>,
    /// The callers that wait for the next sync.
    waiting: Waiters,
    sync_under_way: bool,
    /// Bytes of entries that wait for the next sync.
    waiting_bytes: usize,
    /// Whether the next sync is necessary even without a waiting caller.
    sync_wanted: bool,
    /// Approximate bytes of entries that were appended and are not on disk.
    unsynced_bytes: Arc<AtomicUsize>,
    uncommitted: Uncommitted,
    meters: Arc<LogMeters>,
    sync_times: Arc<SyncTimes>,
    failure: Option<(io::ErrorKind, String)>,
}

/// The callers that wait for a sync, and since when.
#[derive(Default)]
struct Waiters(Vec<(Instant, IOFlushed<TypeConfig>)>);

impl Waiters {
    fn tell(self, result: &io::Result<()>) {
        for (_, waiter) in self.0 {
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

/// Called by raft-log, on its own thread, when a sync is done or has failed.
pub struct FlushCallback {
    /// Taken when they get the result.
    waiters: Option<Waiters>,
    /// Bytes of the entries that this sync covers.
    bytes: usize,
    unsynced_bytes: Arc<AtomicUsize>,
    began: Instant,
    meters: Arc<LogMeters>,
    shared: Weak<RwLock<Shared>>,
}

impl Callback for FlushCallback {
    fn send(mut self, result: io::Result<()>) {
        let now = Instant::now();
        // First start the next sync, then wake the callers of this one: the disk is the slower of the two.
        if let Some(shared) = self.shared.upgrade() {
            LogStore::sync_done(&shared, &result);
        }
        self.unsynced_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        let waiters = self.waiters.take().unwrap_or_default();
        if result.is_ok() {
            self.meters.sync.record(now.saturating_duration_since(self.began));
            for (since, _) in &waiters.0 {
                self.meters.append.record(now.saturating_duration_since(*since));
            }
        }
        waiters.tell(&result);
    }
}

// If raft-log's thread cannot delete a file of purged entries, it ends and drops the callbacks in its queue without
// calling them. Their waiters must get an error too.
impl Drop for FlushCallback {
    fn drop(&mut self) {
        let Some(waiters) = self.waiters.take() else { return };
        let shared = self.shared.clone();
        // On another thread, because the one that drops this may hold the lock.
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
    fn check(&self) {
        let is_quiet = self.waiting.0.is_empty() && !self.sync_wanted;
        debug_assert!(self.sync_under_way || is_quiet || self.failure.is_some(), "no sync will follow");
        debug_assert!(
            self.waiting_bytes <= self.unsynced_bytes.load(Ordering::Relaxed),
            "synced bytes wait for a sync"
        );
    }

    /// Ends all writing: returns the error to every caller that waits for the next sync, and to every later call.
    fn fail(&mut self, error: &io::Error) {
        if self.failure.is_none() {
            tracing::error!("cannot write the log: {error}; the node stops, since the state of the disk is unknown");
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
    /// `checked` is the result of [`CheckedLog::read`]. Torn records at the end are cut off now, with a warning.
    ///
    /// # Errors
    ///
    /// [`StoreError::Damaged`] or [`StoreError::Io`].
    pub fn open(directory: &Path, checked: &CheckedLog, sizes: LogSizes) -> Result<Self, StoreError> {
        let Some(directory_text) = directory.to_str() else {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "the path must be UTF-8");
            return Err(StoreError::io("open the log in", directory, error));
        };
        let config = raft_log::Config {
            wal: raft_log::chunked_wal::Config {
                dir: directory_text.to_owned(),
                read_buffer_size: Some(1 << 20),
                chunk_max_size: Some(sizes.chunk_bytes_max),
                truncate_incomplete_record: Some(true),
                // This store batches, so the writer must not wait for more.
                flush_batch_wait: Some(Duration::ZERO),
                // `LOG_UNSYNCED_BYTES_MAX` bounds the queue, before entries are proposed.
                flush_queue_max_bytes: Some(usize::MAX / 2),
                ..raft_log::chunked_wal::Config::default()
            },
            log_cache_max_items: Some(usize::MAX),
            log_cache_capacity: Some(sizes.cache_bytes_max),
        };
        let mut log = RaftLog::open(Arc::new(config)).map_err(|error| open_error(directory, error))?;
        // A killed process may leave records that are written but not synced. This node reads them now and acts on
        // them, so they must be on disk.
        log.flush(true, None)
            .and_then(|()| log.wait_worker_idle())
            .map_err(|error| StoreError::io("write the log in", directory, error))?;
        for torn in &checked.torn {
            tracing::warn!(
                "cut {} bytes off `{}` at offset {}: a record that was being written when the node stopped, and that was \
                 never acknowledged (unless another program truncated the file)",
                torn.bytes,
                torn.path.display(),
                torn.offset,
            );
        }
        let unsynced_bytes = Arc::new(AtomicUsize::new(0));
        let disk_bytes = AtomicU64::new(log.on_disk_size());
        let uncommitted = uncommitted_at_start(&log);
        let uncommitted_bytes = AtomicUsize::new(uncommitted.bytes);
        let meters = Arc::<LogMeters>::default();
        let sync_times = Arc::new(SyncTimes::default());
        let shared = Shared {
            log,
            waiting: Waiters::default(),
            waiting_bytes: 0,
            unsynced_bytes: unsynced_bytes.clone(),
            sync_under_way: false,
            sync_wanted: false,
            uncommitted,
            meters: meters.clone(),
            sync_times: sync_times.clone(),
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
                meters,
                sync_times,
            }),
        })
    }

    /// Writes and syncs all records, and waits until they are on disk.
    pub async fn flush(&self) -> io::Result<()> {
        self.write_and_sync(|_| Ok(())).await
    }

    /// The last log id that was removed from the log's beginning, if any.
    pub fn purged(&self) -> io::Result<Option<LogId>> {
        Ok(self.read()?.log.log_state().purged().map(|record| record.0))
    }

    /// Whether neither a vote nor an entry was ever stored.
    pub fn is_pristine(&self) -> io::Result<bool> {
        let shared = self.read()?;
        let state = shared.log.log_state();
        Ok(state.vote().is_none() && state.last().is_none())
    }

    /// The index of [`LogStore::last`].
    pub fn last_index(&self) -> io::Result<Option<u64>> {
        let last = self.read()?.log.log_state().last().map(|record| record.0.index);
        Ok(last)
    }

    /// The last entry of the log, or the last that was purged.
    pub fn last(&self) -> io::Result<Option<LogId>> {
        Ok(self.read()?.log.log_state().last().map(|record| record.0))
    }

    /// Whether the log contains this entry, or contained it before it was purged.
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
    /// Reads nothing unless they overlap the log, and then only the entries that equal them and one more. Ignores
    /// entries of the log after one with another log id, since they will be removed, and purged entries.
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

    /// Length of all files of the log, in bytes, including records that are about to be written.
    pub fn disk_bytes(&self) -> u64 {
        self.owner.disk_bytes.load(Ordering::Relaxed)
    }

    /// The files of the log, oldest first. Records are written to the last one.
    pub fn files(&self) -> io::Result<Vec<LogFile>> {
        Ok(files_of(&self.read()?.log))
    }

    /// What the log measures of itself.
    pub fn meters(&self) -> &LogMeters {
        &self.owner.meters
    }

    /// Approximate bytes of the entries that were appended and are not on disk yet.
    pub fn unsynced_bytes(&self) -> usize {
        self.owner.unsynced_bytes.load(Ordering::Relaxed)
    }

    /// Approximate bytes of the entries after the last one that is known to be committed. After a start, up to the
    /// length of a log file more.
    pub fn uncommitted_bytes(&self) -> usize {
        self.owner.uncommitted_bytes.load(Ordering::Relaxed)
    }

    /// How long writing and syncing the log takes: the 99th percentile of the last minute, in microseconds. A sync that
    /// has been under way for longer counts instead. `None` if there was none.
    pub fn sync_p99_us(&self) -> Option<u64> {
        self.owner.sync_times.p99_us()
    }

    /// From now on, entries before `index` are not sent to other nodes: they will be purged, and a follower that needs
    /// them gets a snapshot.
    pub fn withhold_before(&self, index: u64) {
        self.owner.withheld_before.store(index, Ordering::Relaxed);
    }

    /// Whether the entry at `index` must not be sent; see [`LogStore::withhold_before`].
    pub fn is_withheld(&self, index: u64) -> bool {
        index < self.owner.withheld_before.load(Ordering::Relaxed)
    }

    fn shared(&self) -> &Arc<RwLock<Shared>> {
        self.owner.shared.as_ref().expect("only dropping the last clone takes it")
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
            // A record that could not be encoded may have left a part of itself in the file. With whole records after
            // it, that part would be damage.
            shared.fail(error);
        }
        shared.check();
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
        shared.waiting.0.extend(waiter.map(|waiter| (Instant::now(), waiter)));
        if shared.sync_under_way {
            return Ok(());
        }
        Self::start_sync(self.shared(), shared)
    }

    fn start_sync(this: &Arc<RwLock<Shared>>, shared: &mut Shared) -> io::Result<()> {
        shared.sync_under_way = true;
        shared.sync_times.begin();
        shared.sync_wanted = false;
        let waiters = Some(std::mem::take(&mut shared.waiting));
        let bytes = std::mem::take(&mut shared.waiting_bytes);
        let unsynced_bytes = shared.unsynced_bytes.clone();
        let (began, meters) = (Instant::now(), shared.meters.clone());
        let callback = FlushCallback { waiters, bytes, unsynced_bytes, began, meters, shared: Arc::downgrade(this) };
        shared.log.flush(true, Some(callback)).map_err(|_| shared.why_the_writer_stopped())
    }

    fn sync_done(this: &Arc<RwLock<Shared>>, result: &io::Result<()>) {
        let mut shared = this.write().unwrap_or_else(PoisonError::into_inner);
        shared.sync_under_way = false;
        shared.sync_times.end();
        let outcome = match result {
            Err(error) => Err(copy_of(error)),
            Ok(()) if this.is_poisoned() => Err(io::Error::other("a thread panicked while writing the log")),
            Ok(()) if shared.failure.is_some() => return,
            Ok(()) if shared.waiting.0.is_empty() && !shared.sync_wanted => return,
            Ok(()) => Self::start_sync(this, &mut shared),
        };
        if let Err(error) = outcome {
            shared.fail(&error);
        }
        shared.check();
    }

    /// Entries from `start` until `end` (exclusive): at least one if any exists, and no more once they have
    /// `bytes_max` bytes.
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

    /// Apply reads through this, in parts: after a restart the range may be the whole log.
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

    /// Does not request a sync: the record only says up to where a restarted node may apply without a leader.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let Some(committed) = committed.map(LogIdRecord) else { return Ok(()) };
        self.write(|shared| {
            shared.uncommitted.commit(committed.0.index);
            let state = shared.log.log_state();
            // While a snapshot is installed, it may be ahead of the log.
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
            let mut last_index = None;
            shared.log.append(entries.into_iter().map(|entry| {
                let payload = PayloadRecord(entry.payload);
                bytes += payload.bytes();
                last_index = Some(entry.log_id.index);
                (LogIdRecord(entry.log_id), payload)
            }))?;
            if let Some(last_index) = last_index {
                shared.uncommitted.append(last_index, bytes);
            }
            shared.waiting_bytes += bytes;
            shared.unsynced_bytes.fetch_add(bytes, Ordering::Relaxed);
            if seeded_bug::is_on(SeededBug::AcknowledgedBeforeSync) {
                callback.io_completed(Ok(()));
                return self.request_sync(shared, None);
            }
            self.request_sync(shared, Some(callback))
        })
    }

    /// Waits for the sync. A snapshot that is installed next may be on disk before later records of the log, and the
    /// log must not have entries then that contradict it.
    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let next_index = last_log_id.map_or(0, |log_id| log_id.index + 1);
        self.write_and_sync(|shared| {
            let state = shared.log.log_state();
            let keeps_committed = state.committed().is_none_or(|committed| committed.0.index < next_index);
            assert!(keeps_committed, "committed entries from index {next_index} on are to be removed");
            let ends_before = state.last().is_none_or(|last| last.0.index < next_index);
            shared.uncommitted.truncate(next_index);
            if ends_before { Ok(()) } else { shared.log.truncate(next_index).map(drop) }
        })
        .await
    }

    /// Does not wait for the sync: without the record, the log only begins earlier.
    ///
    /// A snapshot may cover more than the log, while the log ends with entries of a later term that were never
    /// committed. raft-log compares log ids by their terms first, so it would keep those as entries after the snapshot.
    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        self.write(|shared| {
            let upto = LogIdRecord(log_id);
            if let Some(index) = first_index_beyond(shared, &upto)? {
                shared.uncommitted.truncate(index);
                shared.log.truncate(index)?;
            }
            // Only committed entries are purged.
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

/// The entries after the last one that the log knows to be committed, counted by whole files.
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

/// The first index of the entries with a later log id than `upto`, if the log ends before the index of `upto`.
fn first_index_beyond(shared: &Shared, upto: &LogIdRecord) -> io::Result<Option<u64>> {
    let Some(last) = shared.log.log_state().last() else { return Ok(None) };
    let mut index = last.0.index;
    if last <= upto || index >= upto.0.index {
        return Ok(None);
    }
    // They are few: entries of a leader that no other node has.
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

/// Distinguishes damage from a failing disk.
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
