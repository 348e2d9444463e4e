//! Snapshot files: the whole state machine at one log id.
//!
//! `<index>.snap`, all numbers big-endian:
//!
//! | part | bytes |
//! | --- | --- |
//! | header | `RKVSNAP` and a zero byte, format version 4, length 4, meta (MessagePack with field names), CRC-32 of all that 4 |
//! | frame, repeated | length 4 (never 0), CRC-32 of the payload 4, payload: records (MessagePack with field names) one after another |
//! | footer | zero 4, number of records 8, number of frames 8, CRC-32 of the header's, the frames' checksums and these numbers 4 |
//!
//! Nothing may follow the footer. A frame is about [`SNAPSHOT_FRAME_BYTES`]
//! long, so writing, sending and reading need no more memory than that beyond
//! the data itself.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::durable::{self, TEMPORARY_EXTENSION};
use super::error::StoreError;
use super::state_machine::ExampleStateMachine;
use crate::config::{SNAPSHOT_FRAME_BYTES, SNAPSHOT_FRAME_BYTES_MAX, SNAPSHOTS_KEPT};
use crate::types::{LogId, SnapshotMeta};

const MAGIC: &[u8; 8] = b"RKVSNAP\0";
const FORMAT_VERSION: u32 = 1;
const META_BYTES_MAX: usize = 16 << 20;
const EXTENSION: &str = "snap";

#[derive(Serialize, Deserialize)]
struct Record {
    key: Arc<str>,
    value: Arc<str>,
}

/// A snapshot that can be sent or installed.
#[derive(Debug)]
pub struct SnapshotFile {
    /// The file, open for reading from any position.
    pub file: Arc<File>,
    /// Its length.
    pub bytes: u64,
    /// Set if it came from another node and is not installed yet.
    received: Option<ReceivedSnapshot>,
}

/// A snapshot that came from another node: verified, decoded, not yet published.
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
    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        // After it was published there is nothing here; and what cannot be
        // deleted now is deleted at the next start.
        let _ = fs::remove_file(&self.path);
    }
}

/// The directory of a node's snapshots, of which it keeps the newest [`SNAPSHOTS_KEPT`].
#[derive(Debug)]
pub struct SnapshotDirectory {
    path: PathBuf,
    /// The usable snapshots, oldest first.
    kept: Mutex<Vec<SnapshotMeta>>,
    received_count: AtomicU64,
}

impl SnapshotDirectory {
    /// Opens the directory, and loads the newest snapshot that is whole.
    ///
    /// A damaged one is passed over with a warning if the log still has what
    /// followed the one before it; `purged` says from where on the log has entries.
    pub fn open(path: &Path, purged: Option<LogId>) -> Result<(Self, ExampleStateMachine), StoreError> {
        let removed = durable::remove_temporary_files(path).map_err(|error| StoreError::io("clean", path, error))?;
        for path in removed {
            tracing::info!("deleted `{}`, which was being written when the node stopped", path.display());
        }
        let mut machine = ExampleStateMachine::default();
        let mut kept = Vec::new();
        let mut damaged = None;
        for file in snapshot_paths(path)?.into_iter().rev() {
            match load(&file) {
                Ok((meta, loaded)) => {
                    if kept.is_empty() {
                        machine = loaded;
                    }
                    kept.insert(0, meta);
                    // The rest is not needed now, and would only cost time to verify.
                    break;
                }
                Err(error @ (StoreError::Damaged { .. } | StoreError::Io { .. })) => {
                    tracing::warn!("{error}");
                    damaged.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        // Entries up to `purged` are only in snapshots: without them there is a gap.
        if machine.last_applied < purged {
            return Err(damaged.unwrap_or_else(|| {
                StoreError::damaged(
                    path,
                    None,
                    format!(
                        "the log begins after {}, and no snapshot here reaches that far",
                        purged.map_or_else(|| "its start".to_owned(), |log_id| log_id.to_string())
                    ),
                )
            }));
        }
        if damaged.is_some() {
            tracing::warn!("using the snapshot before the damaged one; the log has all that followed it");
        }
        let directory =
            SnapshotDirectory { path: path.to_owned(), kept: Mutex::new(kept), received_count: AtomicU64::new(0) };
        Ok((directory, machine))
    }

    /// Writes a snapshot of `machine` and publishes it. Blocks on the disk.
    pub fn build(&self, machine: &ExampleStateMachine) -> Result<SnapshotMeta, StoreError> {
        let meta = meta_of(machine);
        let path = self.path_of(&meta);
        let temporary = TemporaryFile { path: durable::temporary_path(&path) };
        let failed = |error| StoreError::io("write", &temporary.path, error);
        let mut file = File::create(&temporary.path).map_err(failed)?;
        write(machine, &meta, &mut file).map_err(failed)?;
        self.publish(file, &temporary, meta)
    }

    /// The newest snapshot, if there is one.
    pub fn newest(&self) -> Result<Option<(SnapshotMeta, SnapshotFile)>, StoreError> {
        let Some(meta) = self.kept().last().cloned() else { return Ok(None) };
        let path = self.path_of(&meta);
        let failed = |error| StoreError::io("open", &path, error);
        let file = File::open(&path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        Ok(Some((meta, SnapshotFile { file: Arc::new(file), bytes, received: None })))
    }

    /// A new temporary file to receive a snapshot into.
    pub fn temporary_file(&self) -> TemporaryFile {
        let number = self.received_count.fetch_add(1, Ordering::Relaxed);
        TemporaryFile { path: self.path.join(format!("received-{number}.{TEMPORARY_EXTENSION}")) }
    }

    /// Verifies and decodes a snapshot that was received. Blocks on the disk.
    pub fn verify(&self, temporary: TemporaryFile) -> Result<(SnapshotMeta, SnapshotFile), StoreError> {
        let (meta, machine) = load(&temporary.path)?;
        let failed = |error| StoreError::io("open", &temporary.path, error);
        let file = File::open(&temporary.path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        let received = Some(ReceivedSnapshot { machine, temporary });
        Ok((meta, SnapshotFile { file: Arc::new(file), bytes, received }))
    }

    /// Publishes a snapshot that was received, and returns the state it holds. Blocks on the disk.
    pub fn install(&self, snapshot: SnapshotFile) -> Result<ExampleStateMachine, StoreError> {
        let Some(ReceivedSnapshot { machine, temporary }) = snapshot.received else {
            return Err(StoreError::damaged(&self.path, None, "only a received snapshot can be installed"));
        };
        let file = File::open(&temporary.path).map_err(|error| StoreError::io("open", &temporary.path, error))?;
        self.publish(file, &temporary, meta_of(&machine))?;
        Ok(machine)
    }

    fn publish(&self, file: File, temporary: &TemporaryFile, meta: SnapshotMeta) -> Result<SnapshotMeta, StoreError> {
        let path = self.path_of(&meta);
        durable::publish(file, &temporary.path, &path).map_err(|error| StoreError::io("publish", &path, error))?;
        let mut kept = self.kept();
        kept.retain(|other| other.last_log_id != meta.last_log_id);
        kept.push(meta.clone());
        kept.sort_by_key(|meta| meta.last_log_id);
        let surplus = kept.len().saturating_sub(SNAPSHOTS_KEPT);
        kept.drain(..surplus);
        let keep: Vec<PathBuf> = kept.iter().map(|meta| self.path_of(meta)).collect();
        for path in snapshot_paths(&self.path)?.into_iter().filter(|path| !keep.contains(path)) {
            // Only space is lost by keeping it, so this must not fail the snapshot.
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!("cannot delete the old snapshot `{}`: {error}", path.display());
            }
        }
        Ok(meta)
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Vec<SnapshotMeta>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path_of(&self, meta: &SnapshotMeta) -> PathBuf {
        let index = meta.last_log_id.map_or(0, |log_id| log_id.index);
        self.path.join(format!("{index}.{EXTENSION}"))
    }
}

/// The snapshot files of a directory, those of the highest index last.
pub fn snapshot_paths(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let failed = |error| StoreError::io("list", directory, error);
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let is_snapshot = path.extension().is_some_and(|extension| extension == EXTENSION);
        let index = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<u64>().ok());
        if let (true, Some(index)) = (is_snapshot, index) {
            paths.push((index, path));
        }
    }
    paths.sort();
    Ok(paths.into_iter().map(|(_, path)| path).collect())
}

fn meta_of(machine: &ExampleStateMachine) -> SnapshotMeta {
    SnapshotMeta { last_log_id: machine.last_applied, last_membership: machine.last_membership.clone() }
}

fn write(machine: &ExampleStateMachine, meta: &SnapshotMeta, file: &mut File) -> io::Result<()> {
    let mut writer = BufWriter::with_capacity(SNAPSHOT_FRAME_BYTES, file);
    let mut checksums = crc32fast::Hasher::new();

    let meta = rmp_serde::to_vec_named(meta).map_err(io::Error::other)?;
    let mut header = Vec::from(MAGIC);
    header.extend_from_slice(&FORMAT_VERSION.to_be_bytes());
    header.extend_from_slice(&(meta.len() as u32).to_be_bytes());
    header.extend_from_slice(&meta);
    let header_checksum = crc32fast::hash(&header).to_be_bytes();
    checksums.update(&header_checksum);
    writer.write_all(&header)?;
    writer.write_all(&header_checksum)?;

    let mut frames = 0u64;
    let mut frame = Vec::with_capacity(2 * SNAPSHOT_FRAME_BYTES);
    let mut write_frame = |frame: &mut Vec<u8>, checksums: &mut crc32fast::Hasher| {
        let checksum = crc32fast::hash(frame).to_be_bytes();
        checksums.update(&checksum);
        writer.write_all(&(frame.len() as u32).to_be_bytes())?;
        writer.write_all(&checksum)?;
        writer.write_all(frame)?;
        frame.clear();
        frames += 1;
        io::Result::Ok(())
    };
    for (key, value) in &machine.data {
        let record = Record { key: key.clone(), value: value.clone() };
        rmp_serde::encode::write_named(&mut frame, &record).map_err(io::Error::other)?;
        if frame.len() >= SNAPSHOT_FRAME_BYTES {
            write_frame(&mut frame, &mut checksums)?;
        }
    }
    if !frame.is_empty() {
        write_frame(&mut frame, &mut checksums)?;
    }

    let mut footer = Vec::from((machine.data.len() as u64).to_be_bytes());
    footer.extend_from_slice(&frames.to_be_bytes());
    checksums.update(&footer);
    writer.write_all(&0u32.to_be_bytes())?;
    writer.write_all(&footer)?;
    writer.write_all(&checksums.finalize().to_be_bytes())?;
    writer.flush()
}

/// Reads a snapshot file, and refuses it unless every byte of it is accounted for.
fn load(path: &Path) -> Result<(SnapshotMeta, ExampleStateMachine), StoreError> {
    let file = File::open(path).map_err(|error| StoreError::io("open", path, error))?;
    let mut reader = SnapshotReader { path, reader: BufReader::with_capacity(1 << 16, file), offset: 0 };

    let mut header: Vec<u8> = reader.array::<16>()?.into();
    let number_at =
        |header: &[u8], at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if !header.starts_with(MAGIC) {
        return Err(reader.damaged("it is not a snapshot"));
    }
    let version = number_at(&header, 8);
    let meta_length = number_at(&header, 12) as usize;
    if meta_length > META_BYTES_MAX {
        return Err(reader.damaged("its header is too long"));
    }
    let mut meta = vec![0; meta_length];
    reader.read(&mut meta)?;
    header.extend_from_slice(&meta);
    let header_checksum = reader.array::<4>()?;
    if crc32fast::hash(&header).to_be_bytes() != header_checksum {
        return Err(reader.damaged("the checksum of its header does not match"));
    }
    if version != FORMAT_VERSION {
        return Err(StoreError::NewerFormat { path: path.to_owned(), found: version, known: FORMAT_VERSION });
    }
    let meta: SnapshotMeta =
        rmp_serde::from_slice(&meta).map_err(|error| reader.damaged(format!("its header says: {error}")))?;

    let mut machine = ExampleStateMachine {
        last_applied: meta.last_log_id,
        last_membership: meta.last_membership.clone(),
        ..ExampleStateMachine::default()
    };
    let mut checksums = crc32fast::Hasher::new();
    checksums.update(&header_checksum);
    let mut frames = 0u64;
    let mut frame = Vec::new();
    loop {
        let length = u32::from_be_bytes(reader.array()?) as usize;
        if length == 0 {
            break;
        }
        if length > SNAPSHOT_FRAME_BYTES_MAX {
            return Err(reader.damaged("a frame is too long"));
        }
        let checksum = reader.array::<4>()?;
        frame.resize(length, 0);
        reader.read(&mut frame)?;
        if crc32fast::hash(&frame).to_be_bytes() != checksum {
            return Err(reader.damaged("the checksum of a frame does not match"));
        }
        checksums.update(&checksum);
        frames += 1;
        let mut records = frame.as_slice();
        while !records.is_empty() {
            let record: Record = rmp_serde::from_read(&mut records)
                .map_err(|error| reader.damaged(format!("a record cannot be decoded: {error}")))?;
            machine.data.insert(record.key, record.value);
        }
    }
    let footer = reader.array::<16>()?;
    checksums.update(&footer);
    if checksums.finalize().to_be_bytes() != reader.array::<4>()? {
        return Err(reader.damaged("the checksum of its footer does not match"));
    }
    let counts = [machine.data.len() as u64, frames].map(u64::to_be_bytes).concat();
    if counts != footer {
        return Err(reader.damaged("its footer counts other records than it has"));
    }
    if !reader.is_at_end()? {
        return Err(reader.damaged("something follows its footer"));
    }
    Ok((meta, machine))
}

struct SnapshotReader<'a> {
    path: &'a Path,
    reader: BufReader<File>,
    offset: u64,
}

impl SnapshotReader<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> Result<(), StoreError> {
        match self.reader.read_exact(bytes) {
            Ok(()) => {
                self.offset += bytes.len() as u64;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(self.damaged("it ends too early")),
            Err(error) => Err(StoreError::io("read", self.path, error)),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StoreError> {
        let mut bytes = [0; N];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    fn is_at_end(&mut self) -> Result<bool, StoreError> {
        let mut byte = [0];
        let count = self.reader.read(&mut byte).map_err(|error| StoreError::io("read", self.path, error))?;
        Ok(count == 0)
    }

    fn damaged(&self, what: impl Into<String>) -> StoreError {
        StoreError::damaged(self.path, Some(self.offset), what)
    }
}
