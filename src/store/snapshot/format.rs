//! The bytes of a snapshot file: the whole state machine at one log id.
//!
//! **On disk: frozen.** All numbers are big-endian. MessagePack has field names.
//!
//! | part | offset in it | bytes | field |
//! | --- | --- | --- | --- |
//! | header | 0 | 8 | `RKVSNAP` and a zero byte |
//! | | 8 | 4 | version of the format: 1 without revisions, 2, or the level of the state if that is 4 or more |
//! | | 12 | 4 | length of the meta, *m* |
//! | | 16 | *m* | meta: the last log id and the membership (MessagePack) |
//! | | 16 + *m* | 4 | CRC-32 of the header up to here |
//! | frame, repeated | 0 | 4 | length of the payload, *n*; never 0 |
//! | | 4 | 4 | CRC-32 of the payload |
//! | | 8 | *n* | payload: records (MessagePack), one after another |
//! | footer | 0 | 4 | 0 |
//! | | 4 | 8 | number of records |
//! | | 12 | 8 | number of frames |
//! | | 20 | 4 | CRC-32 of the checksums of the header and of all frames, and of these two numbers |
//!
//! The file ends with the footer. A payload has about [`SNAPSHOT_FRAME_BYTES`] bytes, so writing, sending and reading
//! need no more memory than that in addition to the data itself, except for a table of the recent keys while writing.
//! Every later format keeps the header, except for the
//! content of the meta, so that a newer file can be distinguished from a damaged one.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::key_record;
use crate::access::{TokenHash, TokenRole};
use crate::config::{
    HISTORY_BYTES_MAX, HISTORY_CHANGES_MAX, REQUEST_BYTES_MAX_LIMIT, SNAPSHOT_FRAME_BYTES, SNAPSHOT_FRAME_BYTES_MAX,
    SNAPSHOT_FRAMES_PER_SYNC, TXN_OPERATIONS_MAX_LIMIT,
};
use crate::hash::StateHash;
use crate::level::Level;
use crate::operation::{Key, RequestId, Value};
use crate::store::durable;
use crate::store::error::StoreError;
use crate::store::state_machine::access::{Access, AccessMode, Token};
use crate::store::state_machine::history::{Change, ChangeKind, History};
use crate::store::state_machine::record::{Record, RecordParts, RecordRef};
use crate::store::state_machine::requests::Remembered;
use crate::store::state_machine::stored_results::StoredResult;
use crate::store::state_machine::{ExampleStateMachine, former_record};
use crate::types::SnapshotMeta;

const MAGIC: &[u8; 8] = b"RKVSNAP\0";
/// The format of states of the first level. A state of a higher level has the format of the level's number.
const FORMAT_VERSION: u32 = 2;
/// The format without revisions: each record is a key with its value.
const FORMER_FORMAT_VERSION: u32 = 1;
const META_BYTES_MAX: usize = 16 << 20;
const CHECKSUM_BYTES: u64 = 4;
/// The length and the checksum of a frame.
const FRAME_HEAD_BYTES: u64 = 8;
const FOOTER_BYTES: u64 = 24;
/// Bytes that are read before they are asked for, so that reading the head of a frame is no read by itself.
const READ_AHEAD_BYTES: usize = 8 << 10;
/// Memory that is allocated before the bytes for it arrive: a damaged length must not cost more.
const ALLOCATED_AHEAD_BYTES: usize = 256 << 10;

/// A record to write, except that of a key, see [`key_record`]. It borrows the data, since counting references would
/// contend with the Raft thread.
#[derive(Serialize)]
enum StoredRecordRef<'a> {
    /// Everything that exists once; always the first record. The keys follow, in order.
    State {
        revision: u64,
        clock_ms: u64,
        oldest_revision: u64,
        hash: StateHash,
    },
    /// A change, oldest first, after all keys. A put without `former` set the current record of its key.
    Put {
        revision: u64,
        key: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        former: Option<FormerRef<'a>>,
    },
    Delete {
        revision: u64,
        key: &'a str,
    },
    Expire {
        revision: u64,
        key: &'a str,
    },
    /// A remembered request, oldest first, after all changes.
    Request {
        key: &'a str,
        fingerprint: [u64; 2],
        result: StoredResult<'a>,
    },
    /// Whether requests need a token, after all requests. Formats below 5 do not have it, and this and all tokens are missing
    /// if the cluster never had any.
    Access {
        mode: AccessMode,
    },
    /// A token; they are in the order of their names.
    Token {
        name: &'a str,
        role: TokenRole,
        #[serde(skip_serializing_if = "<[Key]>::is_empty")]
        prefixes: &'a [Key],
        #[serde(skip_serializing_if = "is_zero")]
        expires_at_ms: u64,
        hash: TokenHash,
    },
}

/// The record that a put set and that is no longer the current one of its key.
#[derive(Serialize)]
struct FormerRef<'a> {
    value: &'a Value,
    create_revision: u64,
    version: u64,
    #[serde(skip_serializing_if = "is_zero")]
    expires_at_ms: u64,
}

/// A record that was read.
#[derive(Deserialize)]
enum StoredRecord {
    State {
        revision: u64,
        clock_ms: u64,
        oldest_revision: u64,
        /// The hash of the whole state. `None` in snapshots of directories of format 2.
        #[serde(default)]
        hash: Option<StateHash>,
    },
    Key {
        key: Key,
        value: Value,
        revision: u64,
        create_revision: u64,
        version: u64,
        #[serde(default)]
        expires_at_ms: u64,
    },
    Put {
        revision: u64,
        key: Key,
        #[serde(default)]
        former: Option<Former>,
    },
    Delete {
        revision: u64,
        key: Key,
    },
    Expire {
        revision: u64,
        key: Key,
    },
    Request {
        key: Key,
        fingerprint: [u64; 2],
        result: StoredResult<'static>,
    },
    Access {
        mode: AccessMode,
    },
    Token {
        name: Key,
        role: TokenRole,
        #[serde(default)]
        prefixes: Vec<Key>,
        #[serde(default)]
        expires_at_ms: u64,
        hash: TokenHash,
    },
}

#[derive(Deserialize)]
struct Former {
    value: Value,
    create_revision: u64,
    version: u64,
    #[serde(default)]
    expires_at_ms: u64,
}

/// A record of format 1.
#[derive(Deserialize)]
struct FormerFormatRecord {
    key: Key,
    value: Arc<str>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The meta of a snapshot of `machine`.
pub fn meta_of(machine: &ExampleStateMachine) -> SnapshotMeta {
    SnapshotMeta { last_log_id: machine.last_applied, last_membership: machine.last_membership.clone() }
}

/// The length of the file that [`write`] makes of the same state, in bytes.
///
/// Adds up the lengths of the keys, encodes the rest, and keeps nothing of it.
///
/// # Errors
///
/// If a part of the state cannot be encoded.
pub fn length_of(machine: &ExampleStateMachine, meta: &SnapshotMeta) -> io::Result<u64> {
    let header_bytes = header_of(version_of(machine), meta)?.len() as u64 + CHECKSUM_BYTES;
    let mut length = Length { bytes: header_bytes, frame: Counter(0) };
    length.add(&state_ref(machine))?;
    let mut current = CurrentRecords::of(machine);
    for (key, record) in &machine.data {
        current.note(key, record);
        key_record::encode(&mut length.frame, key, record.borrowed());
        length.end_record();
    }
    machine.history.iter().try_for_each(|change| length.add(&change_ref(&current, change)))?;
    machine.requests.iter().try_for_each(|(key, remembered)| length.add(&request_ref(key, remembered)))?;
    access_refs(&machine.access).try_for_each(|record| length.add(&record))?;
    if length.frame.0 > 0 {
        length.end_frame();
    }
    Ok(length.bytes + FOOTER_BYTES)
}

/// The length of a file so far.
struct Length {
    /// Bytes of the header and of all frames before the current one.
    bytes: u64,
    /// Bytes of the current frame's payload.
    frame: Counter,
}

impl Length {
    fn add(&mut self, record: &StoredRecordRef<'_>) -> io::Result<()> {
        rmp_serde::encode::write_named(&mut self.frame, record).map_err(io::Error::other)?;
        self.end_record();
        Ok(())
    }

    fn end_record(&mut self) {
        if self.frame.0 >= SNAPSHOT_FRAME_BYTES {
            self.end_frame();
        }
    }

    fn end_frame(&mut self) {
        self.bytes += FRAME_HEAD_BYTES + self.frame.0 as u64;
        self.frame.0 = 0;
    }
}

/// Counts the bytes that are written to it.
struct Counter(usize);

impl key_record::Encoded for Counter {
    #[inline]
    fn add(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }
}

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The current records that the history may refer to, which are those of at least its oldest revision, each with its key.
/// At most [`RECENT_KEYS_MAX`]: a history of other nodes' making may claim to begin earlier than it does.
///
/// To look for the key of each change in the state instead would take a fifth of the time of writing a snapshot, since
/// the keys of successive changes are far apart in memory.
struct CurrentRecords<'a> {
    oldest_revision: u64,
    keys: HashMap<*const Record, &'a Key>,
}

impl<'a> CurrentRecords<'a> {
    /// None yet: [`note`](Self::note) must be called with each key.
    fn of(machine: &ExampleStateMachine) -> Self {
        CurrentRecords { oldest_revision: machine.history.oldest(), keys: HashMap::new() }
    }

    fn note(&mut self, key: &'a Key, record: &Arc<Record>) {
        // Any other record is written like a former one.
        if record.revision >= self.oldest_revision && self.keys.len() < RECENT_KEYS_MAX {
            self.keys.insert(Arc::as_ptr(record), key);
        }
    }

    fn has(&self, key: &Key, record: &Arc<Record>) -> bool {
        // If the key of a change differs from the key of its record, memory has changed. The change is then written with
        // a former record, which detects it.
        self.keys.get(&Arc::as_ptr(record)).is_some_and(|&current| current == key)
    }
}

/// Writes a snapshot of `machine` with this `meta`. Returns whether the state is as it was applied: the hashes of
/// everything that is written are computed again.
///
/// # Errors
///
/// Those of writing the file; [`io::ErrorKind::StorageFull`] also if the disk would have less than
/// [`SNAPSHOT_LEAVES_BYTES`](crate::config::SNAPSHOT_LEAVES_BYTES) free bytes.
pub fn write(machine: &ExampleStateMachine, meta: &SnapshotMeta, file: &mut File) -> io::Result<bool> {
    write_watched(machine, meta, file, &mut |_| Ok(()))
}

/// As [`write`]. Calls `watch` with the bytes that are on disk after each sync, and once the file is complete except for
/// its footer. An error of `watch` ends the writing.
pub fn write_watched(
    machine: &ExampleStateMachine,
    meta: &SnapshotMeta,
    file: &mut File,
    watch: &mut dyn FnMut(u64) -> io::Result<()>,
) -> io::Result<bool> {
    let mut frames = FrameWriter {
        writer: BufWriter::with_capacity(SNAPSHOT_FRAME_BYTES, file),
        frame: Vec::with_capacity(2 * SNAPSHOT_FRAME_BYTES),
        checksums: crc32fast::Hasher::new(),
        count: 0,
        records: 0,
        bytes: 0,
        watch,
    };
    frames.write_header(version_of(machine), meta)?;
    frames.write_record(&state_ref(machine))?;
    let (mut keys, mut requests) = (StateHash::default(), StateHash::default());
    let mut current = CurrentRecords::of(machine);
    for (key, record) in &machine.data {
        keys += record.computed_hash(key);
        current.note(key, record);
        frames.write_key(key, record)?;
    }
    let mut is_history_as_applied = true;
    for change in machine.history.iter() {
        let change_ref = change_ref(&current, change);
        // No sum includes values that are no longer the current ones.
        if let (ChangeKind::Put(record), StoredRecordRef::Put { former: Some(_), .. }) = (&change.kind, &change_ref) {
            is_history_as_applied &= record.computed_hash(&change.key) == record.hash();
        }
        frames.write_record(&change_ref)?;
    }
    for (key, remembered) in machine.requests.iter() {
        requests += remembered.computed_hash(key);
        frames.write_record(&request_ref(key, remembered))?;
    }
    access_refs(&machine.access).try_for_each(|record| frames.write_record(&record))?;
    frames.write_footer()?;
    let access = machine.access.computed_hash();
    let hash = machine.hash_with(machine.data.len(), keys, requests, access);
    Ok(is_history_as_applied && hash == machine.hash())
}

/// Copies the records of a snapshot under another meta. Every checksum is verified on the way; the records are not
/// decoded, see [`scan`].
///
/// # Errors
///
/// [`StoreError::Damaged`], [`StoreError::NewerFormat`] or [`StoreError::Io`].
pub fn copy_with_meta(from: &Path, meta: &SnapshotMeta, to: &Path, file: &mut File) -> Result<(), StoreError> {
    let mut source = FrameReader::open(from)?;
    let (version, _) = source.read_header()?;
    let mut frames = FrameWriter {
        writer: BufWriter::with_capacity(SNAPSHOT_FRAME_BYTES, file),
        frame: Vec::new(),
        checksums: crc32fast::Hasher::new(),
        count: 0,
        records: 0,
        bytes: 0,
        watch: &mut |_| Ok(()),
    };
    let failed = |error| StoreError::io("write", to, error);
    frames.write_header(version, meta).map_err(failed)?;
    while source.read_frame(&mut frames.frame)? {
        frames.write_frame().and_then(|()| frames.sync_if_due()).map_err(failed)?;
    }
    frames.records = source.read_footer(None)?.0;
    frames.write_footer().map_err(failed)
}

fn state_ref(machine: &ExampleStateMachine) -> StoredRecordRef<'_> {
    StoredRecordRef::State {
        revision: machine.revision,
        clock_ms: machine.clock_ms,
        oldest_revision: machine.history.oldest(),
        hash: machine.hash(),
    }
}

fn request_ref<'a>(key: &'a Key, remembered: &'a Remembered) -> StoredRecordRef<'a> {
    let Remembered { fingerprint, result, .. } = remembered;
    StoredRecordRef::Request { key, fingerprint: *fingerprint, result: result.into() }
}

fn access_refs(access: &Access) -> impl Iterator<Item = StoredRecordRef<'_>> {
    let mode = (*access != Access::default()).then(|| StoredRecordRef::Access { mode: access.mode() });
    mode.into_iter().chain(access.tokens().iter().map(|(name, token)| {
        let Token { role, prefixes, expires_at_ms, hash } = token.as_ref();
        StoredRecordRef::Token { name, role: *role, prefixes, expires_at_ms: *expires_at_ms, hash: *hash }
    }))
}

fn change_ref<'a>(current: &CurrentRecords<'_>, change: &'a Change) -> StoredRecordRef<'a> {
    let (key, revision) = (change.key.as_ref(), change.revision);
    match &change.kind {
        ChangeKind::Delete => StoredRecordRef::Delete { revision, key },
        ChangeKind::Expire => StoredRecordRef::Expire { revision, key },
        ChangeKind::Put(record) => {
            let former = (!current.has(&change.key, record)).then(|| {
                let Record { value, create_revision, version, expires_at_ms, .. } = record.as_ref();
                let (create_revision, version, expires_at_ms) = (*create_revision, *version, *expires_at_ms);
                FormerRef { value, create_revision, version, expires_at_ms }
            });
            StoredRecordRef::Put { revision, key, former }
        }
    }
}

struct FrameWriter<'a> {
    writer: BufWriter<&'a mut File>,
    /// The payload of the next frame.
    frame: Vec<u8>,
    checksums: crc32fast::Hasher,
    count: u64,
    records: u64,
    /// Bytes of the file so far.
    bytes: u64,
    watch: &'a mut dyn FnMut(u64) -> io::Result<()>,
}

impl FrameWriter<'_> {
    fn write_header(&mut self, version: u32, meta: &SnapshotMeta) -> io::Result<()> {
        let header = header_of(version, meta)?;
        self.bytes += header.len() as u64 + CHECKSUM_BYTES;
        let checksum = crc32fast::hash(&header).to_be_bytes();
        self.checksums.update(&checksum);
        self.writer.write_all(&header)?;
        self.writer.write_all(&checksum)
    }

    fn write_record(&mut self, record: &StoredRecordRef<'_>) -> io::Result<()> {
        rmp_serde::encode::write_named(&mut self.frame, record).map_err(io::Error::other)?;
        self.end_record()
    }

    fn write_key(&mut self, key: &str, record: &Record) -> io::Result<()> {
        key_record::encode(&mut self.frame, key, record.borrowed());
        self.end_record()
    }

    fn end_record(&mut self) -> io::Result<()> {
        self.records += 1;
        if self.frame.len() < SNAPSHOT_FRAME_BYTES {
            return Ok(());
        }
        self.write_frame()?;
        self.sync_if_due()
    }

    fn sync_if_due(&mut self) -> io::Result<()> {
        if self.count.is_multiple_of(SNAPSHOT_FRAMES_PER_SYNC) {
            // One sync at the end would take long, and the log's syncs would wait for it.
            self.writer.flush()?;
            self.writer.get_ref().sync_data()?;
            super::check_room(0, durable::free_bytes_of(self.writer.get_ref())).map_err(|free_bytes| {
                io::Error::new(io::ErrorKind::StorageFull, format!("the disk has {free_bytes} bytes left"))
            })?;
            (self.watch)(self.bytes)?;
        }
        Ok(())
    }

    fn write_frame(&mut self) -> io::Result<()> {
        check_length("frame", self.frame.len(), SNAPSHOT_FRAME_BYTES_MAX)?;
        let checksum = crc32fast::hash(&self.frame).to_be_bytes();
        self.checksums.update(&checksum);
        self.writer.write_all(&(self.frame.len() as u32).to_be_bytes())?;
        self.writer.write_all(&checksum)?;
        self.writer.write_all(&self.frame)?;
        self.bytes += FRAME_HEAD_BYTES + self.frame.len() as u64;
        self.frame.clear();
        self.count += 1;
        Ok(())
    }

    fn write_footer(mut self) -> io::Result<()> {
        if !self.frame.is_empty() {
            self.write_frame()?;
        }
        self.writer.flush()?;
        (self.watch)(self.bytes)?;
        let footer = footer_of(self.records, self.count);
        self.checksums.update(&footer);
        self.writer.write_all(&0u32.to_be_bytes())?;
        self.writer.write_all(&footer)?;
        self.writer.write_all(&self.checksums.finalize().to_be_bytes())?;
        self.writer.flush()
    }
}

/// The version of the format in which this state is written.
fn version_of(machine: &ExampleStateMachine) -> u32 {
    if machine.level == Level::FIRST { FORMAT_VERSION } else { machine.level.0 }
}

/// The level of a state in this version of the format.
pub fn level_of(version: u32) -> Level {
    if version <= FORMAT_VERSION { Level::FIRST } else { Level(version) }
}

/// The header without its checksum.
fn header_of(version: u32, meta: &SnapshotMeta) -> io::Result<Vec<u8>> {
    let meta = rmp_serde::to_vec_named(meta).map_err(io::Error::other)?;
    check_length("header", meta.len(), META_BYTES_MAX)?;
    let mut header = Vec::from(MAGIC);
    header.extend_from_slice(&version.to_be_bytes());
    header.extend_from_slice(&(meta.len() as u32).to_be_bytes());
    header.extend_from_slice(&meta);
    Ok(header)
}

/// A part that is too long to be read must not be written: the log is purged once the snapshot exists.
fn check_length(part: &str, bytes: usize, bytes_max: usize) -> io::Result<()> {
    if bytes <= bytes_max {
        return Ok(());
    }
    let what = format!("a snapshot's {part} of {bytes} bytes exceeds the limit of {bytes_max}");
    Err(io::Error::new(io::ErrorKind::InvalidData, what))
}

fn footer_of(records: u64, frames: u64) -> [u8; 16] {
    ((u128::from(records) << 64) | u128::from(frames)).to_be_bytes()
}

/// Reads a snapshot file.
///
/// # Errors
///
/// [`StoreError::Damaged`] unless every byte of the file is accounted for and its records make a state that could have
/// been written like this; [`StoreError::NewerFormat`] or [`StoreError::Io`].
pub fn load(path: &Path) -> Result<(SnapshotMeta, ExampleStateMachine), StoreError> {
    let (summary, machine) = read_all(FrameReader::open(path)?, true, &mut |_| Ok(()))?;
    Ok((summary.meta, machine))
}

/// Verifies a snapshot file as strictly as [`load`], and calls `visit` with each record. Holds the history and the
/// remembered requests in memory, which are bounded, and not the other keys.
///
/// # Errors
///
/// As [`load`], and [`StoreError::Io`] with the error of `visit`. Records that were visited before an error may be
/// damaged.
pub fn scan(path: &Path, visit: Visit<'_>) -> Result<Summary, StoreError> {
    Ok(read_all(FrameReader::open(path)?, false, visit)?.0)
}

/// As [`scan`], of bytes that are not in a file yet. Errors name `path`.
pub fn scan_from(source: impl Read, path: &Path, visit: Visit<'_>) -> Result<Summary, StoreError> {
    Ok(read_all(FrameReader::of(source, path), false, visit)?.0)
}

/// Reads the format and the meta of a snapshot file, and verifies its header alone.
///
/// # Errors
///
/// As [`load`].
pub fn read_meta(path: &Path) -> Result<(u32, SnapshotMeta), StoreError> {
    FrameReader::open(path)?.read_header()
}

/// Called with each record of a snapshot.
pub type Visit<'a> = &'a mut dyn FnMut(Scanned<'_>) -> io::Result<()>;

/// A record of a snapshot.
#[derive(Clone, Copy, Debug)]
pub enum Scanned<'a> {
    /// The state as a whole, before all other records.
    State(&'a ExampleStateMachine),
    /// A key; keys are in order.
    Key(&'a str, RecordRef<'a>),
    /// A change of the history, oldest first, after all keys.
    Change(&'a Change),
    /// A remembered request, oldest first, after all changes.
    Request(&'a Key, &'a Remembered),
    /// Whether requests need a token, after all requests. Missing if the cluster never had one.
    Access(AccessMode),
    /// A token, by its name.
    Token(&'a Key, &'a Token),
}

/// What a snapshot file holds.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Version of its format.
    pub format: u32,
    /// The last log id that it covers, and the membership.
    pub meta: SnapshotMeta,
    /// Length of the file.
    pub bytes: u64,
    /// Number of frames.
    pub frames: u64,
    /// Number of records.
    pub records: u64,
    /// Number of keys.
    pub keys: usize,
    /// Number of keys that expire.
    pub expiring_keys: usize,
    /// Total length of the keys, in bytes.
    pub key_bytes: u64,
    /// Total length of their values, in bytes.
    pub value_bytes: u64,
    /// Number of changes in the history.
    pub changes: usize,
    /// Number of remembered requests.
    pub requests: usize,
    /// Number of tokens.
    pub tokens: usize,
    /// The revision of the state.
    pub revision: u64,
    /// The oldest revision from which a watch can resume.
    pub oldest_revision: u64,
    /// Log time, in milliseconds since 1970.
    pub clock_ms: u64,
    /// The hash of the state, as `GET /v1/cluster/hash` returns it.
    pub hash: StateHash,
}

fn read_all<R: Read>(
    mut frames: FrameReader<'_, R>,
    keeps_all: bool,
    visit: Visit<'_>,
) -> Result<(Summary, ExampleStateMachine), StoreError> {
    let (format, meta) = frames.read_header()?;
    let machine = ExampleStateMachine {
        last_applied: meta.last_log_id,
        last_membership: meta.last_membership.clone(),
        level: level_of(format),
        ..ExampleStateMachine::default()
    };
    let mut state = Loading { machine, keeps_all, ..Loading::default() };
    let mut frame = Vec::new();
    let mut records = 0;
    while frames.read_frame(&mut frame)? {
        let mut rest = frame.as_slice();
        while !rest.is_empty() {
            let loaded = match format {
                FORMER_FORMAT_VERSION => state.load_former(&mut rest, visit),
                _ => state.load(format, records == 0, &mut rest, visit),
            };
            loaded.map_err(|failed| match failed {
                Unloaded::Damaged(what) => frames.damaged(what),
                Unloaded::Visit(error) => StoreError::io("pass on the records of", frames.path, error),
            })?;
            records += 1;
        }
    }
    if format != FORMER_FORMAT_VERSION && records == 0 {
        return Err(frames.damaged(NO_STATE));
    }
    let (count, path) = (frames.count, frames.path);
    let bytes = frames.read_footer(Some(records))?.1;
    let Loading { machine, hash, keys, expiring_keys, key_bytes, value_bytes, keys_hash, .. } = state;
    let found = machine.hash_with(keys, keys_hash, machine.requests.hash(), machine.access.hash());
    if hash.is_some_and(|hash| hash != found) {
        return Err(StoreError::damaged(path, None, "the hash of its state does not match"));
    }
    let summary = Summary {
        format,
        meta,
        bytes,
        frames: count,
        records,
        keys,
        expiring_keys,
        key_bytes,
        value_bytes,
        changes: machine.history.iter().len(),
        requests: machine.requests.len(),
        tokens: machine.access.tokens().len(),
        revision: machine.revision,
        oldest_revision: machine.history.oldest(),
        clock_ms: machine.clock_ms,
        hash: found,
    };
    Ok((summary, machine))
}

// Errors do not include the decoder's message: it may quote user data.
const NO_RECORD: &str = "a record cannot be decoded";
const NO_STATE: &str = "its first record, and no other, must have the revision of the state";

/// The largest revision and version of a file. No store reaches it, and counting on from it does not overflow.
const NUMBER_MAX: u64 = u64::MAX / 2;

/// Most keys that the history refers to: what it keeps, and one request.
const RECENT_KEYS_MAX: usize = HISTORY_CHANGES_MAX + TXN_OPERATIONS_MAX_LIMIT;
/// The same in bytes.
const RECENT_BYTES_MAX: usize = HISTORY_BYTES_MAX + REQUEST_BYTES_MAX_LIMIT;

/// A state whose records are being read.
#[derive(Default)]
struct Loading {
    /// Without `keeps_all`, it has only those keys whose last change can be in the history.
    machine: ExampleStateMachine,
    keeps_all: bool,
    /// The hash of the whole state in the file.
    hash: Option<StateHash>,
    /// Empty before the first key.
    last_key: String,
    keys: usize,
    expiring_keys: usize,
    key_bytes: u64,
    value_bytes: u64,
    keys_hash: StateHash,
    /// Bytes of the keys in `machine`, unless it has all.
    recent_bytes: usize,
}

enum Unloaded {
    Damaged(&'static str),
    Visit(io::Error),
}

impl From<&'static str> for Unloaded {
    fn from(what: &'static str) -> Self {
        Unloaded::Damaged(what)
    }
}

impl From<io::Error> for Unloaded {
    fn from(error: io::Error) -> Self {
        Unloaded::Visit(error)
    }
}

impl Loading {
    fn load_former(&mut self, bytes: &mut &[u8], visit: Visit<'_>) -> Result<(), Unloaded> {
        let record: FormerFormatRecord = rmp_serde::from_read(bytes).map_err(|_| NO_RECORD)?;
        let value = Value::from(record.value.as_bytes());
        let former = former_record(&record.key, value.clone());
        self.count(&record.key, former.borrowed(), former.hash());
        visit(Scanned::Key(&record.key, former.borrowed()))?;
        if self.keeps_all {
            self.machine.insert_former(record.key, value);
        } else {
            self.machine.begin_revisions();
        }
        Ok(())
    }

    fn load(&mut self, format: u32, is_first: bool, bytes: &mut &[u8], visit: Visit<'_>) -> Result<(), Unloaded> {
        if !is_first && let Some((key, record)) = key_record::decode(bytes) {
            return self.load_key(key, record, visit);
        }
        let record: StoredRecord = rmp_serde::from_read(bytes).map_err(|_| NO_RECORD)?;
        if is_first != matches!(record, StoredRecord::State { .. }) {
            return Err(NO_STATE.into());
        }
        let machine = &mut self.machine;
        match record {
            StoredRecord::State { revision, clock_ms, oldest_revision, hash } => {
                ensure(revision <= NUMBER_MAX && oldest_revision <= revision + 1, "its revisions are inconsistent")?;
                (machine.revision, machine.clock_ms, self.hash) = (revision, clock_ms, hash);
                machine.history = History::starting_at(oldest_revision);
                return Ok(visit(Scanned::State(machine))?);
            }
            StoredRecord::Key { key, value, revision, create_revision, version, expires_at_ms } => {
                let value = value.as_bytes();
                let record = RecordRef { value, revision, create_revision, version, expires_at_ms };
                return self.load_key(&key, record, visit);
            }
            StoredRecord::Put { revision, key, former: None } => {
                let (key, record) = machine.data.get_key_value(&key).ok_or("it has a change of a missing key")?;
                ensure(record.revision == revision, "a change is not the last one of its key")?;
                let (key, kind) = (key.clone(), ChangeKind::Put(record.clone()));
                load_change(machine, revision, key, kind)?;
            }
            StoredRecord::Put { revision, key, former: Some(former) } => {
                let Former { value, create_revision, version, expires_at_ms } = former;
                let record =
                    Record::new(&key, RecordParts { value, revision, create_revision, version, expires_at_ms });
                load_change(machine, revision, key, ChangeKind::Put(Arc::new(record)))?;
            }
            StoredRecord::Delete { revision, key } => load_change(machine, revision, key, ChangeKind::Delete)?,
            StoredRecord::Expire { revision, key } => load_change(machine, revision, key, ChangeKind::Expire)?,
            StoredRecord::Request { key, fingerprint, result } => {
                let result = result.try_into().map_err(|_| "it has an invalid result of a request")?;
                machine.requests.remember(&RequestId { key: key.clone(), fingerprint }, result);
                if let Some(remembered) = machine.requests.get(&key) {
                    visit(Scanned::Request(&key, remembered))?;
                }
                return Ok(());
            }
            StoredRecord::Access { mode } => {
                ensure(level_of(format) >= Level::TOKENS, NO_RECORD)?;
                ensure(*machine.access == Access::default(), "it says twice whether requests need a token")?;
                machine.access = Arc::new(Access::in_mode(mode));
                return Ok(visit(Scanned::Access(mode))?);
            }
            StoredRecord::Token { name, role, prefixes, expires_at_ms, hash } => {
                ensure(level_of(format) >= Level::TOKENS, NO_RECORD)?;
                let is_next = machine.access.tokens().last_key_value().is_none_or(|(last, _)| *last < name);
                ensure(is_next, "its tokens are not in order")?;
                let token = Token { role, prefixes: prefixes.into(), expires_at_ms, hash };
                visit(Scanned::Token(&name, &token))?;
                ensure(Arc::make_mut(&mut machine.access).load(name, token), "it has too many tokens")?;
                return Ok(());
            }
        }
        if let Some(change) = machine.history.iter().next_back() {
            visit(Scanned::Change(change))?;
        }
        Ok(())
    }

    fn load_key(&mut self, key: &str, record: RecordRef<'_>, visit: Visit<'_>) -> Result<(), Unloaded> {
        ensure(self.keys == 0 || *self.last_key < *key, "its keys are not in order")?;
        ensure(record.revision <= self.machine.revision, "a key has a later revision than the store")?;
        ensure(record.version <= NUMBER_MAX, "a key has an impossible version")?;
        let hash = record.hash(key);
        self.count(key, record, hash);
        self.last_key.clear();
        self.last_key.push_str(key);
        visit(Scanned::Key(key, record))?;
        Ok(self.keep(key, record, hash)?)
    }

    fn count(&mut self, key: &str, record: RecordRef<'_>, hash: StateHash) {
        self.keys += 1;
        self.expiring_keys += usize::from(record.expires_at_ms > 0);
        self.key_bytes += key.len() as u64;
        self.value_bytes += record.value.len() as u64;
        self.keys_hash += hash;
    }

    fn keep(&mut self, key: &str, record: RecordRef<'_>, hash: StateHash) -> Result<(), &'static str> {
        if self.keeps_all {
            self.machine.insert_record(key.into(), Arc::new(record.to_owned(hash)));
        } else if record.revision >= self.machine.history.oldest() {
            self.recent_bytes += key.len() + record.value.len();
            let is_plausible = self.recent_bytes <= RECENT_BYTES_MAX && self.machine.data.len() <= RECENT_KEYS_MAX;
            ensure(is_plausible, "it has more recent keys than a history has changes")?;
            self.machine.data.insert(key.into(), Arc::new(record.to_owned(hash)));
        }
        Ok(())
    }
}

fn load_change(
    machine: &mut ExampleStateMachine,
    revision: u64,
    key: Key,
    kind: ChangeKind,
) -> Result<(), &'static str> {
    let before = machine.history.newest().unwrap_or(machine.history.oldest());
    ensure((before..=machine.revision).contains(&revision), "its changes are not in order")?;
    machine.history.push(revision, key, kind);
    Ok(())
}

fn ensure(holds: bool, otherwise: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(otherwise) }
}

struct FrameReader<'a, R> {
    path: &'a Path,
    reader: BufReader<R>,
    checksums: crc32fast::Hasher,
    count: u64,
    offset: u64,
    /// The offset of the header, frame or footer that is being read.
    part_offset: u64,
}

impl<'a> FrameReader<'a, File> {
    fn open(path: &'a Path) -> Result<Self, StoreError> {
        let file = File::open(path).map_err(|error| StoreError::io("open", path, error))?;
        Ok(FrameReader::of(file, path))
    }
}

impl<'a, R: Read> FrameReader<'a, R> {
    fn of(source: R, path: &'a Path) -> Self {
        // A small buffer: most of a frame is read directly into the memory of the frame, without a copy.
        let reader = BufReader::with_capacity(READ_AHEAD_BYTES, source);
        FrameReader { path, reader, checksums: crc32fast::Hasher::new(), count: 0, offset: 0, part_offset: 0 }
    }

    /// Returns the version of the format, and the meta.
    fn read_header(&mut self) -> Result<(u32, SnapshotMeta), StoreError> {
        let magic: [u8; 8] = self.array()?;
        if &magic != MAGIC {
            return Err(self.damaged("it is not a snapshot"));
        }
        let version: [u8; 4] = self.array()?;
        let length: [u8; 4] = self.array()?;
        let mut meta = Vec::new();
        self.read_part(self.length(length, META_BYTES_MAX)?, &mut meta)?;
        let checksum: [u8; 4] = self.array()?;
        let header = [magic.as_slice(), &version, &length, &meta].concat();
        if crc32fast::hash(&header).to_be_bytes() != checksum {
            return Err(self.damaged("the checksum of its header does not match"));
        }
        self.checksums.update(&checksum);
        let version = u32::from_be_bytes(version);
        match version {
            FORMER_FORMAT_VERSION | FORMAT_VERSION => {}
            found if found > Level::NEWEST.0 => {
                return Err(StoreError::NewerFormat { path: self.path.to_owned(), found, known: Level::NEWEST.0 });
            }
            found if found > Level::FIRST.0 => {}
            found => return Err(self.damaged(format!("format {found} does not exist"))),
        }
        let meta = rmp_serde::from_slice(&meta).map_err(|_| self.damaged("its header cannot be decoded"))?;
        Ok((version, meta))
    }

    /// Reads the next frame; false if the footer follows.
    fn read_frame(&mut self, frame: &mut Vec<u8>) -> Result<bool, StoreError> {
        self.part_offset = self.offset;
        let length = self.array()?;
        if length == [0; 4] {
            return Ok(false);
        }
        let checksum: [u8; 4] = self.array()?;
        self.read_part(self.length(length, SNAPSHOT_FRAME_BYTES_MAX)?, frame)?;
        if crc32fast::hash(frame).to_be_bytes() != checksum {
            return Err(self.damaged("the checksum of a frame does not match"));
        }
        self.checksums.update(&checksum);
        self.count += 1;
        Ok(true)
    }

    /// Reads the rest of the file, and returns the number of records in it and its length. The number must be `records`
    /// if the caller has counted them.
    fn read_footer(mut self, records: Option<u64>) -> Result<(u64, u64), StoreError> {
        let footer: [u8; 16] = self.array()?;
        self.checksums.update(&footer);
        let checksum = self.array()?;
        if self.checksums.clone().finalize().to_be_bytes() != checksum {
            return Err(self.damaged("the checksum of its footer does not match"));
        }
        let announced = (u128::from_be_bytes(footer) >> 64) as u64;
        if footer != footer_of(records.unwrap_or(announced), self.count) {
            return Err(self.damaged("its footer has the wrong number of records or frames"));
        }
        self.part_offset = self.offset;
        let mut byte = [0];
        match self.reader.read(&mut byte) {
            Ok(0) => Ok((announced, self.offset)),
            Ok(_) => Err(self.damaged("data follows its footer")),
            Err(error) => Err(StoreError::io("read", self.path, error)),
        }
    }

    fn read_part(&mut self, length: usize, bytes: &mut Vec<u8>) -> Result<(), StoreError> {
        let mut filled = 0;
        while filled < length {
            let end = length.min(filled + ALLOCATED_AHEAD_BYTES);
            // `bytes` usually holds the previous frame, so hardly any byte is set to zero first.
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            let read = self.reader.read_exact(&mut bytes[filled..end]);
            self.note(read, end - filled)?;
            filled = end;
        }
        bytes.truncate(length);
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StoreError> {
        let mut bytes = [0; N];
        let read = self.reader.read_exact(&mut bytes);
        self.note(read, N)?;
        Ok(bytes)
    }

    fn note(&mut self, read: io::Result<()>, bytes: usize) -> Result<(), StoreError> {
        match read {
            Ok(()) => {
                self.offset += bytes as u64;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(self.damaged("it ends too early")),
            Err(error) => Err(StoreError::io("read", self.path, error)),
        }
    }

    fn length(&self, length: [u8; 4], bytes_max: usize) -> Result<usize, StoreError> {
        let length = u32::from_be_bytes(length) as usize;
        if length > bytes_max { Err(self.damaged("a part of it is too long")) } else { Ok(length) }
    }

    fn damaged(&self, what: impl Into<String>) -> StoreError {
        StoreError::damaged(self.path, Some(self.part_offset), what)
    }
}

#[cfg(test)]
mod tests {
    use openraft::vote::RaftLeaderId;

    use super::*;
    use crate::access::{AccessChange, NewToken};
    use crate::operation::{Operation, Put, Write};
    use crate::types::{Command, Entry, LogId, Payload, StoredMembership};

    fn written(machine: &ExampleStateMachine) -> (tempfile::NamedTempFile, Vec<u8>) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        write(machine, &meta_of(machine), file.as_file_mut()).unwrap();
        let bytes = std::fs::read(file.path()).unwrap();
        (file, bytes)
    }

    fn put(index: u64, key: &str, value: &str) -> Entry {
        let put = Put { key: key.into(), value: value.into(), ttl_ms: None, condition: None };
        let request = Some(Arc::new(RequestId { key: format!("request {index}").into(), fingerprint: [7, 8] }));
        let command = Command::Write(Write { at_ms: 5, request, operation: Operation::Put(put) });
        Entry { log_id: LogId::new(RaftLeaderId::new(3, 2), index), payload: Payload::Normal(command) }
    }

    /// A file of one frame, with its checksums.
    fn file_of(version: u8, frame: &[u8], records: u8) -> Vec<u8> {
        let log_id = b"\x82\xa9leader_id\x82\xa4term\x03\xa7node_id\x02\xa5index\xcd\x01\x02";
        let membership = b"\x82\xa6log_id\xc0\xaamembership\x82\xa7configs\x90\xa5nodes\x80";
        let meta = [
            b"\x83\xablast_log_id".as_slice(),
            log_id,
            b"\xaflast_membership",
            membership,
            b"\xabsnapshot_id\xa0", // openraft writes it for its older versions, and no longer reads it.
        ]
        .concat();
        let meta_bytes = (meta.len() as u32).to_be_bytes();
        let header = [b"RKVSNAP\0\0\0\0".as_slice(), &[version], &meta_bytes, &meta].concat();
        let frame_bytes = (frame.len() as u32).to_be_bytes();
        let checksums = [crc32fast::hash(&header), crc32fast::hash(frame)].map(u32::to_be_bytes);
        let counts = [b"\0\0\0\0\0\0\0".as_slice(), &[records], b"\0\0\0\0\0\0\0\x01"].concat();
        let footer = crc32fast::hash(&[checksums[0].as_slice(), &checksums[1], &counts].concat()).to_be_bytes();
        let parts: [&[u8]; 8] =
            [&header, &checksums[0], &frame_bytes, &checksums[1], frame, b"\0\0\0\0", &counts, &footer];
        parts.concat()
    }

    /// The records of a state with one key, which begin with that of the state as a whole.
    fn frame_of(state: &[u8]) -> Vec<u8> {
        let records = [
            b"\x81\xa3Key\x85\xa3key\xa1k\xa5value\xc4\x01v\xa8revision\x01\xafcreate_revision\x01\xa7version\x01"
                .as_slice(),
            b"\x81\xa3Put\x82\xa8revision\x01\xa3key\xa1k",
            b"\x81\xa7Request\x83\xa3key\xabrequest 258\xabfingerprint\x92\x07\x08\xa6result",
            b"\x81\xa3Put\x82\xa8revision\x01\xa7version\x01",
        ];
        [state, &records.concat()].concat()
    }

    /// The bytes on disk of format 2 are these. The hash was added later, and may be missing.
    #[test]
    fn bytes_are_fixed() {
        let mut machine = ExampleStateMachine::default();
        machine.apply(put(258, "k", "v"));
        let (file, bytes) = written(&machine);
        let state = b"\xa8revision\x01\xa8clock_ms\x05\xafoldest_revision\x00".as_slice();
        let hash = b"\xa4hash\x92\xcf\x03\xcf\xca\x78\x66\xb6\x56\x3f\xcf\x25\xa2\xfa\x7c\xc9\x26\x41\x11".as_slice();
        let with_hash = frame_of(&[b"\x81\xa5State\x84".as_slice(), state, hash].concat());
        assert_eq!(bytes, file_of(2, &with_hash, 4));
        let (meta, loaded) = load(file.path()).unwrap();
        assert_eq!((&meta, &loaded), (&meta_of(&machine), &machine));

        let without = frame_of(&[b"\x81\xa5State\x83".as_slice(), state].concat());
        std::fs::write(file.path(), file_of(2, &without, 4)).unwrap();
        let (meta, loaded) = load(file.path()).unwrap();
        assert_eq!((meta, loaded), (meta_of(&machine), machine));
    }

    /// The bytes of records with optional fields are these.
    #[test]
    fn records_are_fixed() {
        let value = Value::from(b"\xff".as_slice());
        let value = &value;
        let numbers = b"\xafcreate_revision\x02\xa7version\x03".as_slice();
        let former = |expires_at_ms| Some(FormerRef { value, create_revision: 2, version: 3, expires_at_ms });
        let put = |former| StoredRecordRef::Put { revision: 7, key: "k", former };
        let former_head = b"\x81\xa3Put\x83\xa8revision\x07\xa3key\xa1k\xa6former".as_slice();
        let rows: [(_, &[&[u8]]); 4] = [
            (StoredRecordRef::Delete { revision: 7, key: "k" }, &[b"\x81\xa6Delete\x82\xa8revision\x07\xa3key\xa1k"]),
            (StoredRecordRef::Expire { revision: 7, key: "k" }, &[b"\x81\xa6Expire\x82\xa8revision\x07\xa3key\xa1k"]),
            (put(former(0)), &[former_head, b"\x83\xa5value\xc4\x01\xff", numbers]),
            (put(former(9)), &[former_head, b"\x84\xa5value\xc4\x01\xff", numbers, b"\xadexpires_at_ms\x09"]),
        ];
        for (number, (record, expected)) in rows.into_iter().enumerate() {
            assert_eq!(rmp_serde::to_vec_named(&record).unwrap(), expected.concat(), "row {number}");
        }
    }

    /// A state with tokens: one of each kind of record that only format 3 has.
    fn with_tokens() -> ExampleStateMachine {
        let mut machine = ExampleStateMachine::default();
        machine.apply(put(258, "k", "v"));
        let token = |name: &str, prefixes: &[&str], ttl_ms| {
            let prefixes = prefixes.iter().copied().map(Key::from).collect();
            let hash = TokenHash::of(b"abc");
            AccessChange::Create(NewToken { name: name.into(), role: TokenRole::Write, prefixes, ttl_ms, hash })
        };
        let changes = [AccessChange::Require { required: true }, token("a", &["p"], Some(4)), token("b", &[], None)];
        for (index, change) in (259..).zip(changes) {
            let operation = Operation::Access(Arc::new(change));
            let payload = Payload::Normal(Command::Write(Write { at_ms: 5, request: None, operation }));
            machine.apply(Entry { log_id: LogId::new(RaftLeaderId::new(3, 2), index), payload });
        }
        machine
    }

    /// A state with tokens has format 5, and these bytes.
    #[test]
    fn tokens_are_fixed() {
        let machine = with_tokens();
        let (file, bytes) = written(&machine);
        assert_eq!(bytes[8..12], [0, 0, 0, 5]);
        let hash = TokenHash::of(b"abc");
        let expected = [
            b"\x81\xa6Access\x81\xa4mode\xa8Required".as_slice(),
            b"\x81\xa5Token\x85\xa4name\xa1a\xa4role\xa5write\xa8prefixes\x91\xa1p\xadexpires_at_ms\x09\xa4hash\xc4\x20",
            hash.as_bytes(),
            b"\x81\xa5Token\x83\xa4name\xa1b\xa4role\xa5write\xa4hash\xc4\x20",
            hash.as_bytes(),
        ]
        .concat();
        // The footer of 24 bytes follows.
        assert!(bytes[..bytes.len() - 24].ends_with(&expected), "{}", bytes.escape_ascii());
        assert_eq!(length_of(&machine, &meta_of(&machine)).unwrap(), bytes.len() as u64);
        assert_eq!(load(file.path()).unwrap(), (meta_of(&machine), machine.clone()));
        let mut visited = Vec::new();
        let summary = scan(file.path(), &mut |record| {
            match record {
                Scanned::Access(mode) => visited.push(format!("{mode:?}")),
                Scanned::Token(name, token) => visited.push(format!("{name} {}", token.expires_at_ms)),
                _ => {}
            }
            Ok(())
        });
        let summary = summary.unwrap();
        assert_eq!((summary.format, summary.tokens, summary.hash), (5, 2, machine.hash()));
        assert_eq!(visited, ["Required", "a 9", "b 0"]);
    }

    /// A token that is changed, missing or in another order is damage, even with correct checksums. So is one in a file
    /// of a format without tokens.
    #[test]
    fn tokens_that_contradict() {
        let state = b"\x81\xa5State\x83\xa8revision\x05\xa8clock_ms\x00\xafoldest_revision\x03".as_slice();
        let mode = b"\x81\xa6Access\x81\xa4mode\xa8Required".as_slice();
        let token = |name: &str| {
            let hash = TokenHash::of(b"abc");
            let head = [b"\x81\xa5Token\x83\xa4name\xa1", name.as_bytes(), b"\xa4role\xa5write\xa4hash\xc4\x20"];
            [head.concat().as_slice(), hash.as_bytes()].concat()
        };
        let (a, b, short) = (&token("a"), &token("b"), &token("a")[..50]);
        let rows: [(u8, &[&[u8]], &str); 7] = [
            (5, &[state, mode, a, b], ""),
            (4, &[state, mode, a, b], "cannot be decoded"),
            (2, &[state, a], "cannot be decoded"),
            (5, &[state, mode, b, a], "not in order"),
            (5, &[state, mode, a, a], "not in order"),
            (5, &[state, mode, mode], "it says twice"),
            (5, &[state, mode, short], "cannot be decoded"),
        ];
        for (number, (format, records, expected)) in rows.into_iter().enumerate() {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), file_of(format, &records.concat(), records.len() as u8)).unwrap();
            match load(file.path()) {
                Ok(_) => assert_eq!(expected, "", "row {number} is taken"),
                Err(StoreError::Damaged { what, .. }) => {
                    assert!(!expected.is_empty() && what.contains(expected), "row {number}: {what}");
                }
                Err(other) => panic!("row {number}: {other}"),
            }
        }
        // The hash of the state includes them.
        for change in [
            (|machine| machine.access = Arc::new(Access::in_mode(AccessMode::Required)))
                as fn(&mut ExampleStateMachine),
            |machine| machine.access = Arc::default(),
        ] {
            let machine = with_tokens();
            let (mut changed, hash) = (machine.clone(), machine.hash());
            change(&mut changed);
            assert_ne!(changed.hash(), hash);
        }
    }

    /// A file with correct checksums whose state does not have the hash in it is damaged.
    ///
    /// Method: another value, no key, and a key too many.
    #[test]
    fn another_state_than_the_hash_says() {
        type Change = fn(&mut ExampleStateMachine);
        let mut machine = ExampleStateMachine::default();
        machine.apply(put(258, "k", "v"));
        let changes: [Change; 3] = [
            |machine| Arc::make_mut(machine.data.get_mut("k").unwrap()).value = "w".into(),
            |machine| drop(machine.data.remove("k")),
            |machine| drop(machine.data.insert("l".into(), machine.data["k"].clone())),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut changed = machine.clone();
            change(&mut changed);
            let (file, _) = written(&changed);
            let rejected = load(file.path()).map(drop);
            assert!(matches!(rejected, Err(StoreError::Damaged { .. })), "change {number}: {rejected:?}");
        }
    }

    /// A file of format 1 is read: its keys have the revision of keys from before there were revisions.
    #[test]
    fn former_format() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), file_of(1, b"\x82\xa3key\xa1k\xa5value\xa1v", 1)).unwrap();
        let (_, loaded) = load(file.path()).unwrap();
        let record = loaded.get("k").unwrap();
        assert_eq!((record.value.as_text(), record.revision, record.version), (Some("v"), 1, 1));
        assert_eq!((loaded.revision, loaded.history.oldest()), (1, 2));
    }

    /// Records that do not make a state are damage, even with correct checksums.
    ///
    /// Method: the records of one state in another order, repeated, omitted or changed.
    #[test]
    fn records_that_contradict() {
        let state = b"\x81\xa5State\x83\xa8revision\x05\xa8clock_ms\x00\xafoldest_revision\x03".as_slice();
        let key = |key: &str, revision: u8| {
            let names = [b"\x81\xa3Key\x85\xa3key\xa1", key.as_bytes(), b"\xa5value\xc4\x01v\xa8revision"].concat();
            [names.as_slice(), &[revision], b"\xafcreate_revision\x01\xa7version\x01"].concat()
        };
        let put = |key: &str, revision: u8| {
            [b"\x81\xa3Put\x82\xa8revision", [revision].as_slice(), b"\xa3key\xa1", key.as_bytes()].concat()
        };
        let (a, b) = (&key("a", 5), &key("b", 4));
        let (put_a, put_b) = (&put("a", 5), &put("b", 4));
        let later = &key("c", 6);
        let rows: [(&[&[u8]], &str); 11] = [
            (&[state, a, b, put_b, put_a], ""),
            (&[], "its first record"),
            (&[a, b], "its first record"),
            (&[state, state], "its first record"),
            (&[state, b, a], "its keys are not in order"),
            (&[state, a, a], "its keys are not in order"),
            (&[state, later], "a later revision than the store"),
            (&[state, a, b, put_a, put_b], "its changes are not in order"),
            (&[state, a, &put("a", 4)], "not the last one of its key"),
            (&[state, &key("a", 2), &put("a", 2)], "its changes are not in order"),
            (&[state, put_a], "of a missing key"),
        ];
        for (number, (records, expected)) in rows.into_iter().enumerate() {
            let file = tempfile::NamedTempFile::new().unwrap();
            let mut bytes = file_of(2, &records.concat(), records.len() as u8);
            if records.is_empty() {
                // A frame is never empty, so the footer of 24 bytes follows the header.
                let header_end = bytes.len() - 24 - 8;
                let counts = [&[0; 4][..], &[0; 16]].concat();
                let checksum = crc32fast::hash(&[&bytes[header_end - 4..header_end], &counts[4..]].concat());
                bytes.truncate(header_end);
                bytes.extend_from_slice(&counts);
                bytes.extend_from_slice(&checksum.to_be_bytes());
            }
            std::fs::write(file.path(), bytes).unwrap();
            match load(file.path()) {
                Ok(_) => assert_eq!(expected, "", "row {number} is taken"),
                Err(StoreError::Damaged { what, .. }) => {
                    assert!(!expected.is_empty() && what.contains(expected), "row {number}: {what}");
                }
                Err(other) => panic!("row {number}: {other}"),
            }
        }
    }

    /// A state with keys, former values, deletions and remembered requests, in several frames.
    fn varied() -> ExampleStateMachine {
        let mut machine = ExampleStateMachine::default();
        for index in 0..900 {
            machine.apply(put(index, &format!("key {}", index % 300), &"v".repeat((index % 700) as usize)));
        }
        let delete = crate::operation::Delete { key: "key 7".into(), condition: None };
        let command = Command::Write(Write { at_ms: 9, request: None, operation: Operation::Delete(delete) });
        machine.apply(Entry { log_id: LogId::new(RaftLeaderId::new(3, 2), 900), payload: Payload::Normal(command) });
        machine
    }

    /// The announced length is that of the file.
    #[test]
    fn length_is_announced() {
        for machine in [ExampleStateMachine::default(), varied(), with_tokens()] {
            let (_file, bytes) = written(&machine);
            assert_eq!(length_of(&machine, &meta_of(&machine)).unwrap(), bytes.len() as u64);
        }
    }

    /// Scanning a file visits all that is in it, and finds the same state as loading it, without keeping old keys.
    #[test]
    fn scanning_is_loading() {
        let machine = varied();
        let (file, bytes) = written(&machine);
        let (mut keys, mut changes, mut requests) = (0, 0, 0);
        let summary = scan(file.path(), &mut |record| {
            match record {
                Scanned::State(state) => assert_eq!(state.revision, machine.revision),
                Scanned::Key(key, record) => {
                    assert_eq!(machine.get(key).as_deref(), Some(&record.to_owned(record.hash(key))));
                    keys += 1;
                }
                Scanned::Change(change) => {
                    assert_eq!(machine.history.iter().nth(changes), Some(change));
                    changes += 1;
                }
                Scanned::Request(key, remembered) => {
                    assert_eq!(machine.requests.get(key).map(Arc::as_ref), Some(remembered));
                    requests += 1;
                }
                Scanned::Access(_) | Scanned::Token(..) => unreachable!("the state has no tokens"),
            }
            Ok(())
        })
        .unwrap();
        assert_eq!((keys, changes, requests), (299, 901, 900));
        assert_eq!((summary.keys, summary.changes, summary.requests), (keys, changes, requests));
        assert_eq!((summary.hash, summary.bytes), (machine.hash(), bytes.len() as u64));
        assert_eq!((summary.meta, summary.revision), (meta_of(&machine), machine.revision));

        // Only what the history refers to is kept.
        let mut old = ExampleStateMachine { history: History::starting_at(800), ..machine.clone() };
        machine.history.since(800, 0).for_each(|change| {
            old.history.push(change.revision, change.key.clone(), change.kind.clone());
        });
        let (file, _) = written(&old);
        let (_, kept) = read_all(FrameReader::open(file.path()).unwrap(), false, &mut |_| Ok(())).unwrap();
        assert_eq!(kept.data.len(), 101);
        assert_eq!(load(file.path()).unwrap().1, old);
    }

    /// A copy under another meta has the same state.
    #[test]
    fn copies_have_the_same_state() {
        let machine = varied();
        let (file, _) = written(&machine);
        let meta = SnapshotMeta { last_log_id: machine.last_applied, last_membership: StoredMembership::default() };
        let mut copy = tempfile::NamedTempFile::new().unwrap();
        let path = copy.path().to_owned();
        copy_with_meta(file.path(), &meta, &path, copy.as_file_mut()).unwrap();
        let (found, loaded) = load(&path).unwrap();
        assert_eq!((found, loaded.hash()), (meta, machine.hash()));
    }

    /// A state without keys can be written and read.
    #[test]
    fn empty_state() {
        let machine = ExampleStateMachine::default();
        let (file, _) = written(&machine);
        let (meta, loaded) = load(file.path()).unwrap();
        assert_eq!((meta, loaded.data.len()), (meta_of(&machine), 0));
    }
}
