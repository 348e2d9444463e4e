//! The directory of a node's snapshots: `<index>.snap`, the newest two.
//!
//! A snapshot is built or received under a temporary name, synced, and then
//! published by renaming it. So a file with a snapshot's name is whole unless
//! the disk damaged it. The second newest is kept for that case: it and the log
//! give the same state, as long as the log has all entries after it.
//!
//! (The bytes of a file: [`mod@format`].)

pub mod export;
pub mod format;
mod key_record;

use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use self::format::meta_of;
use super::durable;
use super::error::{StoreError, is_out_of_space};
use super::log::check::CheckedLog;
use super::ownership::{self, TEMPORARY_EXTENSION};
use super::state_machine::ExampleStateMachine;
use crate::config::{SNAPSHOT_FRAME_BYTES, SNAPSHOT_LEAVES_BYTES, SNAPSHOTS_KEPT};
use crate::level::Level;
use crate::types::{LogId, SnapshotMeta, StoredMembership};

const EXTENSION: &str = "snap";

/// A snapshot to send or to install.
#[derive(Debug)]
pub struct SnapshotFile {
    /// Open for reading from any position.
    pub file: Arc<OpenFile>,
    /// The length of the file.
    pub bytes: u64,
    /// Set if another node sent it and it is not installed yet.
    received: Option<ReceivedSnapshot>,
}

impl SnapshotFile {
    /// The level of formats of the state that another node sent.
    pub fn received_level(&self) -> Option<Level> {
        self.received.as_ref().map(|received| received.machine.level)
    }
}

/// The open file of a snapshot. It is closed on a thread that may block: closing the last descriptor of a deleted file
/// frees its space, which is slow.
#[derive(Debug)]
pub struct OpenFile(Option<File>);

impl OpenFile {
    fn new(file: File) -> Arc<Self> {
        Arc::new(OpenFile(Some(file)))
    }
}

impl Deref for OpenFile {
    type Target = File;

    fn deref(&self) -> &File {
        self.0.as_ref().expect("only dropping this takes the file")
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        let file = self.0.take();
        where_it_may_block(move || drop(file));
    }
}

/// Runs slow work on the blocking pool if this thread belongs to a runtime, otherwise here.
fn where_it_may_block(work: impl FnOnce() + Send + 'static) {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(work)),
        Err(_) => work(),
    }
}

/// A snapshot of another node: verified, decoded, not yet published.
#[derive(Debug)]
struct ReceivedSnapshot {
    machine: ExampleStateMachine,
    temporary: TemporaryFile,
}

/// A file that is deleted unless it gets its final name.
#[derive(Debug)]
pub struct TemporaryFile {
    path: PathBuf,
}

impl TemporaryFile {
    /// The temporary name. The file may not exist yet.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Creates the file, for writing.
    ///
    /// # Errors
    ///
    /// As [`File::create_new`].
    pub fn create(&self) -> io::Result<File> {
        ownership::create_file(&self.path)
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.path);
        // It does not exist if it was published. If it cannot be deleted now, the next start deletes it.
        where_it_may_block(move || drop(fs::remove_file(path)));
    }
}

/// Disk space of the snapshots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotSizes {
    /// Length of the newest; 0 if there is no snapshot.
    pub newest_bytes: u64,
    /// Total length of the older ones, which [`SnapshotDirectory::delete_older`] deletes.
    pub older_bytes: u64,
    /// The index of the last of those.
    pub former_index: Option<u64>,
    /// Total length of those that are being written or received.
    pub unfinished_bytes: u64,
}

/// The directory of a node's snapshots, of which it keeps the newest [`SNAPSHOTS_KEPT`].
#[derive(Debug)]
pub struct SnapshotDirectory {
    path: PathBuf,
    /// The snapshots known to be good, oldest first. Other files stay until [`SNAPSHOTS_KEPT`] newer good ones exist.
    ///
    /// Invariants: log ids strictly increase; at most [`SNAPSHOTS_KEPT`].
    kept: Mutex<Vec<SnapshotMeta>>,
    temporary_count: AtomicU64,
}

impl SnapshotDirectory {
    /// Loads the newest snapshot that is whole. Changes nothing; the directory may be missing.
    ///
    /// Skips a damaged one with a warning if `log` has all entries from the one before it up to the damaged one.
    /// (The log must reach the damaged one because this node acknowledged its entries to the leader that sent it.)
    ///
    /// # Errors
    ///
    /// [`StoreError::Damaged`], [`StoreError::NewerFormat`] or [`StoreError::Io`].
    pub fn open(path: &Path, log: &CheckedLog) -> Result<(Self, ExampleStateMachine), StoreError> {
        for file in files(path)? {
            // A copy that a person made; it is neither used nor deleted.
            if index_in_name(&file).is_none() && file.extension().is_some_and(|extension| extension == EXTENSION) {
                tracing::warn!("ignoring `{}`: its name is not that of a snapshot", file.display());
            }
        }
        let mut found = None;
        let mut damaged = None;
        for (index, file) in snapshot_files(path)?.into_iter().rev() {
            match load_named(&file, index) {
                // The older ones are not needed now, and verifying them takes time.
                Ok(loaded) => {
                    found = Some(loaded);
                    break;
                }
                Err((reached, error @ StoreError::Damaged { .. })) => {
                    let (reached_max, first) = damaged.take().unwrap_or((reached, error));
                    damaged = Some((reached_max.max(reached), first));
                }
                Err((_, error)) => return Err(error),
            }
        }
        let mut kept = Vec::new();
        let mut machine = ExampleStateMachine::default();
        if let Some((meta, loaded)) = found {
            kept.push(meta);
            machine = loaded;
        }
        check_log_covers(path, log, machine.last_applied, damaged)?;
        let (kept, temporary_count) = (Mutex::new(kept), AtomicU64::new(0));
        Ok((SnapshotDirectory { path: path.to_owned(), kept, temporary_count }, machine))
    }

    /// Whether the disk has room for another snapshot of the size of the newest; makes room if necessary, see
    /// [`SnapshotDirectory::make_room`]. The next one may be larger: then [`SnapshotDirectory::build`] gives up.
    pub fn has_room(&self) -> bool {
        let newest_bytes = self.newest().ok().flatten().map_or(0, |(_, snapshot)| snapshot.bytes);
        self.make_room(newest_bytes).is_ok()
    }

    /// Checks that a snapshot may take `bytes` more of the disk. If it may not, deletes the snapshots before the
    /// newest, which only stand in for it, and checks again. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// The free bytes of the disk, if they are too few.
    pub fn make_room(&self, bytes: u64) -> Result<(), u64> {
        let check = || check_room(bytes, durable::free_bytes(&self.path));
        check().or_else(|free_bytes| if self.delete_older() { check() } else { Err(free_bytes) })
    }

    /// The disk space of the snapshots. Blocks on the disk.
    pub fn sizes(&self) -> Result<SnapshotSizes, StoreError> {
        let newest = self.kept().last().map(index_of);
        let mut sizes = SnapshotSizes::default();
        for path in files(&self.path)? {
            // A file that was deleted meanwhile takes no space.
            let bytes = || fs::metadata(&path).map_or(0, |metadata| metadata.len());
            match index_in_name(&path) {
                Some(index) if Some(index) == newest => sizes.newest_bytes = bytes(),
                Some(index) if Some(index) < newest => {
                    sizes.older_bytes += bytes();
                    sizes.former_index = sizes.former_index.max(Some(index));
                }
                // It is damaged, or just being published; neither is deleted for its space.
                Some(_) => {}
                None if path.extension().is_some_and(|extension| extension == TEMPORARY_EXTENSION) => {
                    sizes.unfinished_bytes += bytes();
                }
                None => {}
            }
        }
        Ok(sizes)
    }

    /// How long ago the newest snapshot was written, by the wall clock. Blocks on the disk.
    pub fn newest_age(&self) -> Option<Duration> {
        let path = self.path_of(self.kept().last()?);
        let written_at = fs::metadata(path).and_then(|metadata| metadata.modified()).ok()?;
        // The clock may have been set back.
        Some(SystemTime::now().duration_since(written_at).unwrap_or_default())
    }

    /// Deletes the snapshots before the newest, for their space. Returns whether there were any. Blocks on the disk.
    pub fn delete_older(&self) -> bool {
        let mut kept = self.kept();
        let Some(newest) = kept.pop() else { return false };
        kept.clear();
        let newest_index = index_of(&newest);
        kept.push(newest);
        let Ok(mut older) = snapshot_files(&self.path) else { return false };
        // A file with a higher index is damaged, or a snapshot of another node that is just being published.
        older.retain(|(index, _)| *index < newest_index);
        drop(kept);
        if older.is_empty() {
            return false;
        }
        tracing::info!("the disk is low on space: deleting the snapshots before the one at index {newest_index}");
        delete(older);
        true
    }

    /// Whether there is no good snapshot.
    pub fn is_empty(&self) -> bool {
        self.kept().is_empty()
    }

    /// Deletes snapshots that were being written when the node stopped.
    pub fn clean(&self) -> Result<(), StoreError> {
        let removed = durable::remove_temporary_files(&self.path);
        for path in removed.map_err(|error| StoreError::io("clean", &self.path, error))? {
            tracing::info!("deleted `{}`, which was being written when the node stopped", path.display());
        }
        Ok(())
    }

    /// Writes a snapshot of `machine` and publishes it. Blocks on the disk.
    ///
    /// Returns it even if a newer one was installed meanwhile. That one stays the newest. If the disk has too little
    /// room, returns an empty snapshot that replaces none: a node without a new snapshot need not stop.
    ///
    /// # Errors
    ///
    /// [`StoreError::MemoryChanged`] if the state is not as it was applied. Such a snapshot is not published, since the
    /// log is purged of the entries that a snapshot covers. [`StoreError::Io`] if the disk fails.
    pub fn build(&self, machine: &ExampleStateMachine) -> Result<(SnapshotMeta, SnapshotFile), StoreError> {
        let meta = meta_of(machine);
        let mut written = self.write(machine, &meta);
        // Its length is known only now. The space of those before the newest counts as room for it.
        if written.as_ref().is_err_and(StoreError::is_out_of_space) && self.delete_older() {
            written = self.write(machine, &meta);
        }
        match written {
            Ok(readable) => Ok((meta, readable)),
            Err(StoreError::Io { source, .. }) if is_out_of_space(&source) => {
                let index = index_of(&meta);
                tracing::warn!(
                    "cannot take a snapshot at index {index}: the disk is full ({source}); free some disk space"
                );
                let nothing = SnapshotMeta { last_log_id: None, last_membership: StoredMembership::default() };
                // Not the file that was written: its space is free only when all its descriptors are closed. The file
                // of an empty snapshot is never read.
                let file = File::open(&self.path).map_err(|error| StoreError::io("open", &self.path, error))?;
                Ok((nothing, SnapshotFile { file: OpenFile::new(file), bytes: 0, received: None }))
            }
            Err(error) => Err(error),
        }
    }

    fn write(&self, machine: &ExampleStateMachine, meta: &SnapshotMeta) -> Result<SnapshotFile, StoreError> {
        let temporary = self.temporary_file();
        let failed = |error| StoreError::io("write", &temporary.path, error);
        let mut file = temporary.create().map_err(failed)?;
        let is_as_applied = format::write(machine, meta, &mut file).map_err(failed)?;
        if !is_as_applied {
            return Err(StoreError::MemoryChanged);
        }
        let readable = open_for_reading(&temporary.path)?;
        self.publish(&file, &temporary, meta)?;
        Ok(readable)
    }

    /// The newest snapshot, open for reading.
    pub fn newest(&self) -> Result<Option<(SnapshotMeta, SnapshotFile)>, StoreError> {
        // The lock keeps the file from being deleted before it is open.
        let kept = self.kept();
        let Some(meta) = kept.last() else { return Ok(None) };
        Ok(Some((meta.clone(), open_for_reading(&self.path_of(meta))?)))
    }

    /// A new name for a snapshot that is to be built or received.
    pub fn temporary_file(&self) -> TemporaryFile {
        let number = self.temporary_count.fetch_add(1, Ordering::Relaxed);
        TemporaryFile { path: self.path.join(format!("new-{number}.{TEMPORARY_EXTENSION}")) }
    }

    /// Verifies and decodes a received snapshot. Blocks on the disk.
    pub fn verify(&self, temporary: TemporaryFile) -> Result<(SnapshotMeta, SnapshotFile), StoreError> {
        let (meta, machine) = format::load(&temporary.path)?;
        let snapshot = open_for_reading(&temporary.path)?;
        Ok((meta, SnapshotFile { received: Some(ReceivedSnapshot { machine, temporary }), ..snapshot }))
    }

    /// Publishes a snapshot of another node, and returns its state. Blocks on the disk.
    pub fn install(&self, snapshot: SnapshotFile) -> Result<ExampleStateMachine, StoreError> {
        let ReceivedSnapshot { machine, temporary } = match snapshot.received {
            Some(received) => received,
            None => self.receive(&snapshot)?,
        };
        let file = File::open(&temporary.path).map_err(|error| StoreError::io("open", &temporary.path, error))?;
        self.publish(&file, &temporary, &meta_of(&machine))?;
        Ok(machine)
    }

    fn receive(&self, snapshot: &SnapshotFile) -> Result<ReceivedSnapshot, StoreError> {
        let temporary = self.temporary_file();
        copy(snapshot, &temporary.path).map_err(|error| StoreError::io("write", &temporary.path, error))?;
        let (_, machine) = format::load(&temporary.path)?;
        Ok(ReceivedSnapshot { machine, temporary })
    }

    fn publish(&self, file: &File, temporary: &TemporaryFile, meta: &SnapshotMeta) -> Result<(), StoreError> {
        let path = self.path_of(meta);
        let failed = |error| StoreError::io("publish", &path, error);
        // Sync before taking the lock: syncing a large file is slow.
        file.sync_all().map_err(failed)?;
        // Under the lock: otherwise a snapshot that is built could delete one that is just being installed.
        let mut kept = self.kept();
        durable::publish(file, &temporary.path, &path).map_err(failed)?;
        kept.retain(|other| other.last_log_id != meta.last_log_id);
        kept.push(meta.clone());
        kept.sort_by_key(|meta| meta.last_log_id);
        let surplus = kept.len().saturating_sub(SNAPSHOTS_KEPT);
        kept.drain(..surplus);
        debug_assert!(kept.is_sorted_by(|one, next| one.last_log_id < next.last_log_id), "log ids strictly increase");
        if kept.len() < SNAPSHOTS_KEPT {
            return Ok(());
        }
        let keep: Vec<PathBuf> = kept.iter().map(|meta| self.path_of(meta)).collect();
        let mut surplus = snapshot_files(&self.path)?;
        surplus.retain(|(_, path)| !keep.contains(path));
        drop(kept); // Deleting a large file is slow, too.
        delete(surplus);
        Ok(())
    }

    fn kept(&self) -> MutexGuard<'_, Vec<SnapshotMeta>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path_of(&self, meta: &SnapshotMeta) -> PathBuf {
        self.path.join(file_name_of(meta))
    }
}

/// The name of the file of a snapshot.
pub(super) fn file_name_of(meta: &SnapshotMeta) -> String {
    format!("{}.{EXTENSION}", index_of(meta))
}

/// Checks that a snapshot may take `bytes` more of a disk with this many free bytes, and returns these if it may not.
///
/// [`SNAPSHOT_LEAVES_BYTES`] must remain for the log: a log that cannot be written stops the node, while a snapshot can
/// wait. A disk whose free space cannot be determined has room.
fn check_room(bytes: u64, free_bytes: io::Result<u64>) -> Result<(), u64> {
    match free_bytes {
        Ok(free_bytes) if free_bytes < bytes.saturating_add(SNAPSHOT_LEAVES_BYTES) => Err(free_bytes),
        _ => Ok(()),
    }
}

/// Deletes snapshots. A failure is only logged: a file that stays costs nothing but space.
fn delete(files: Vec<(u64, PathBuf)>) {
    for (_, path) in files {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("cannot delete the old snapshot `{}`: {error}", path.display());
            }
            _ => {}
        }
    }
}

/// The index for a snapshot's name.
pub(super) fn index_of(meta: &SnapshotMeta) -> u64 {
    meta.last_log_id.map_or(0, |log_id| log_id.index)
}

/// Loads a snapshot file with `index` in its name. On failure also returns the index up to which it reached.
fn load_named(path: &Path, index: u64) -> Result<(SnapshotMeta, ExampleStateMachine), (u64, StoreError)> {
    let (meta, machine) = format::load(path).map_err(|error| (index, error))?;
    let found = index_of(&meta);
    if found != index {
        let what = format!("it is the snapshot at index {found} under another name");
        return Err((found.max(index), StoreError::damaged(path, None, what)));
    }
    Ok((meta, machine))
}

/// Checks that the log has all entries that the snapshots lack.
pub(super) fn check_log_covers(
    directory: &Path,
    log: &CheckedLog,
    applied: Option<LogId>,
    damaged: Option<(u64, StoreError)>,
) -> Result<(), StoreError> {
    let describe = |log_id: Option<LogId>| log_id.map_or_else(|| "nothing".to_owned(), |log_id| log_id.to_string());
    // Entries up to `purged` are only in snapshots.
    let no_gap = log.purged <= applied;
    let Some((reached, error)) = damaged else {
        if no_gap {
            return Ok(());
        }
        let (purged, applied) = (describe(log.purged), describe(applied));
        let what = format!("the log begins after {purged}, but the snapshots end at {applied}");
        return Err(StoreError::damaged(directory, None, what));
    };
    let reaches = log.last.is_some_and(|last| last.index >= reached);
    if !(no_gap && reaches) {
        return Err(error);
    }
    let applied = describe(applied);
    tracing::warn!(
        "skipping a damaged snapshot: {}; the log has all entries from {applied} up to {reached}",
        error.finding()
    );
    Ok(())
}

/// The files of a directory; none if it is missing.
fn files(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let failed = |error| StoreError::io("list", directory, error);
    match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries.map_err(failed)?.map(|entry| Ok(entry.map_err(failed)?.path())).collect(),
    }
}

/// The index in a file's name, if that is the name of a snapshot.
fn index_in_name(path: &Path) -> Option<u64> {
    let stem = path.extension().filter(|extension| *extension == EXTENSION).and(path.file_stem())?.to_str()?;
    stem.parse::<u64>().ok().filter(|index| index.to_string() == stem)
}

/// The snapshot files of a directory, those of the highest index last.
pub(super) fn snapshot_files(directory: &Path) -> Result<Vec<(u64, PathBuf)>, StoreError> {
    let named = files(directory)?.into_iter().filter_map(|path| Some((index_in_name(&path)?, path)));
    let mut files: Vec<_> = named.collect();
    files.sort();
    Ok(files)
}

fn open_for_reading(path: &Path) -> Result<SnapshotFile, StoreError> {
    let failed = |error| StoreError::io("open", path, error);
    let file = File::open(path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    Ok(SnapshotFile { file: OpenFile::new(file), bytes, received: None })
}

fn copy(snapshot: &SnapshotFile, path: &Path) -> io::Result<()> {
    let mut file = ownership::create_file(path)?;
    let mut part = vec![0; SNAPSHOT_FRAME_BYTES];
    let mut offset = 0;
    loop {
        match snapshot.file.read_at(&mut part, offset)? {
            0 => return Ok(()),
            count => {
                file.write_all(&part[..count])?;
                offset += count as u64;
            }
        }
    }
}
