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

use std::fmt::Debug;
use std::fs;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::time::Duration;

use futures_util::{Stream, stream};
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use openraft::{OptionalSend, RaftLogReader};
use raft_log::api::raft_log_writer::RaftLogWriter;
use raft_log::{Callback, RaftLog};

use super::codec::{LogIdRecord, LogTypes, PayloadRecord, VoteRecord};
use super::error::StoreError;
use crate::config::{APPEND_BYTES_MAX, APPLY_BYTES_MAX, LOG_CACHE_BYTES_MAX, LOG_CHUNK_BYTES_MAX};
use crate::types::{Entry, LogId, TypeConfig, Vote};

/// The log and the vote of one node. Clones share it.
#[derive(Clone, Debug)]
pub struct LogStore {
    shared: Arc<RwLock<Shared>>,
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
    /// Whether something must be synced for which nobody waits.
    sync_wanted: bool,
    failure: Option<(io::ErrorKind, String)>,
}

#[derive(Default)]
struct Waiters(Vec<IOFlushed<TypeConfig>>);

impl Debug for Waiters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} waiting", self.0.len())
    }
}

/// What raft-log calls, on its own thread, when a sync is done or has failed.
pub struct FlushCallback {
    waiters: Waiters,
    shared: Weak<RwLock<Shared>>,
}

impl Callback for FlushCallback {
    fn send(self, result: io::Result<()>) {
        // First start the next sync, then wake those whose sync is done: the
        // disk is the slower of the two.
        if let Some(shared) = self.shared.upgrade() {
            LogStore::sync_done(&shared, &result);
            if let Some(last_owner) = Arc::into_inner(shared) {
                // Dropping the log waits for the thread that we are on.
                std::thread::spawn(move || drop(last_owner));
            }
        }
        for waiter in self.waiters.0 {
            waiter.io_completed(match &result {
                Ok(()) => Ok(()),
                Err(error) => Err(copy_of(error)),
            });
        }
    }
}

impl LogStore {
    /// Length of the record that every log file begins with, at its shortest: its
    /// type 4, a version 1, five empty options, its checksum 8.
    pub const FIRST_RECORD_BYTES: u64 = 18;

    /// Opens the log in `directory`, and replays it.
    ///
    /// A torn record at the end, as a crash during a write leaves it, is cut off
    /// with a warning. Any other damage is an error.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let last_chunk = last_chunk(directory)?;
        let config = raft_log::Config {
            wal: raft_log::chunked_wal::Config {
                dir: directory.display().to_string(),
                read_buffer_size: Some(1 << 20),
                chunk_max_size: Some(LOG_CHUNK_BYTES_MAX),
                truncate_incomplete_record: Some(true),
                // Batching is done above, so the writer must not wait for more.
                flush_batch_wait: Some(Duration::ZERO),
                // The queue holds one batch; bounded by what is appended at once.
                flush_queue_max_bytes: Some(usize::MAX / 2),
                ..raft_log::chunked_wal::Config::default()
            },
            log_cache_max_items: Some(usize::MAX),
            log_cache_capacity: Some(LOG_CACHE_BYTES_MAX),
        };
        let mut log = RaftLog::open(Arc::new(config)).map_err(|error| open_error(directory, error))?;
        if last_chunk.is_none() {
            // A log that was once there must be told from one that never was.
            let synced = log.flush(true, None).and_then(|()| log.wait_worker_idle());
            synced.map_err(|error| StoreError::io("write the log in", directory, error))?;
        }
        if let Some((path, bytes_before)) = last_chunk {
            let bytes_after = match fs::metadata(&path) {
                Ok(metadata) => metadata.len(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
                Err(error) => return Err(StoreError::io("inspect", &path, error)),
            };
            if bytes_after < bytes_before {
                tracing::warn!(
                    "cut {} bytes off `{}` at offset {bytes_after}: a record that was being written when the node \
                     stopped, and that was never acknowledged",
                    bytes_before - bytes_after,
                    path.display(),
                );
            }
        }
        let shared =
            Shared { log, waiting: Waiters::default(), sync_under_way: false, sync_wanted: false, failure: None };
        Ok(LogStore { shared: Arc::new(RwLock::new(shared)) })
    }

    /// Writes and syncs all that was appended, and waits for it.
    pub async fn flush(&self) -> io::Result<()> {
        let (tx, rx) = TypeConfig::oneshot();
        {
            let mut shared = self.write()?;
            self.request_sync(&mut shared, Some(IOFlushed::signal(tx)))?;
        }
        rx.await.map_err(|_| io::Error::other("the log writer stopped"))?
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

    fn read(&self) -> io::Result<RwLockReadGuard<'_, Shared>> {
        self.shared.read().map_err(|_| io::Error::other("the log failed earlier"))
    }

    fn write(&self) -> io::Result<RwLockWriteGuard<'_, Shared>> {
        let shared = self.shared.write().map_err(|_| io::Error::other("the log failed earlier"))?;
        match &shared.failure {
            None => Ok(shared),
            Some((kind, message)) => Err(io::Error::new(*kind, message.clone())),
        }
    }

    fn request_sync(&self, shared: &mut Shared, waiter: Option<IOFlushed<TypeConfig>>) -> io::Result<()> {
        shared.sync_wanted |= waiter.is_none();
        shared.waiting.0.extend(waiter);
        if shared.sync_under_way {
            return Ok(());
        }
        Self::start_sync(&self.shared, shared)
    }

    fn start_sync(this: &Arc<RwLock<Shared>>, shared: &mut Shared) -> io::Result<()> {
        shared.sync_under_way = true;
        shared.sync_wanted = false;
        let waiters = std::mem::take(&mut shared.waiting);
        let callback = FlushCallback { waiters, shared: Arc::downgrade(this) };
        shared.log.flush(true, Some(callback))
    }

    fn sync_done(this: &Arc<RwLock<Shared>>, result: &io::Result<()>) {
        let Ok(mut shared) = this.write() else { return };
        shared.sync_under_way = false;
        let outcome = match result {
            Ok(()) if shared.waiting.0.is_empty() && !shared.sync_wanted => return,
            Ok(()) => Self::start_sync(this, &mut shared),
            Err(error) => Err(copy_of(error)),
        };
        if let Err(error) = outcome {
            tracing::error!("cannot write the log: {error}; the node stops, since what is on disk is not known");
            shared.failure = Some((error.kind(), error.to_string()));
            for waiter in std::mem::take(&mut shared.waiting).0 {
                waiter.io_completed(Err(copy_of(&error)));
            }
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
                start = if part.len() == 0 { end } else { start + part.len() as u64 };
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
        let (tx, rx) = TypeConfig::oneshot();
        {
            let mut shared = self.write()?;
            shared.log.save_vote(VoteRecord(*vote))?;
            self.request_sync(&mut shared, Some(IOFlushed::signal(tx)))?;
        }
        rx.await.map_err(|_| io::Error::other("the log writer stopped"))?
    }

    /// Stored with the next sync, not with one of its own: it only says from
    /// where a restart may apply again without asking.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let Some(committed) = committed.map(LogIdRecord) else { return Ok(()) };
        let mut shared = self.write()?;
        let state = shared.log.log_state();
        // A snapshot may be ahead of the log while it is being installed.
        let within_log = Some(&committed) <= state.last();
        if within_log && state.committed() < Some(&committed) {
            shared.log.commit(committed)?;
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.read()?.log.log_state().committed().map(|record| record.0))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut shared = self.write()?;
        let records = entries.into_iter().map(|entry| (LogIdRecord(entry.log_id), PayloadRecord(entry.payload)));
        shared.log.append(records)?;
        self.request_sync(&mut shared, Some(callback))
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let mut shared = self.write()?;
        let next_index = last_log_id.map_or(0, |log_id| log_id.index + 1);
        shared.log.truncate(next_index)?;
        self.request_sync(&mut shared, None)
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        let mut shared = self.write()?;
        shared.log.purge(LogIdRecord(log_id))?;
        self.request_sync(&mut shared, None)
    }
}

/// The start (inclusive) and end (exclusive) of a range of indexes.
fn bounds_of(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last + 1,
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end.max(start))
}

/// The newest chunk file and its length, if there is one.
fn last_chunk(directory: &Path) -> Result<Option<(PathBuf, u64)>, StoreError> {
    let Some(path) = chunk_paths(directory)?.pop() else { return Ok(None) };
    let bytes = fs::metadata(&path).map_err(|error| StoreError::io("inspect", &path, error))?.len();
    Ok(Some((path, bytes)))
}

/// All chunk files of a log, oldest first.
pub fn chunk_paths(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let failed = |error| StoreError::io("list", directory, error);
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "wal") {
            paths.push(path);
        }
    }
    paths.sort(); // The names are offsets of a fixed width.
    Ok(paths)
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
