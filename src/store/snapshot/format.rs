//! The bytes of a snapshot file: the whole state machine at one log id.
//!
//! **On disk: frozen.** All numbers are big-endian. MessagePack has field names.
//!
//! | part | offset in it | bytes | field |
//! | --- | --- | --- | --- |
//! | header | 0 | 8 | `RKVSNAP` and a zero byte |
//! | | 8 | 4 | version of the format |
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
//! need no more memory than that in addition to the data itself. Every later format keeps the header, except for the
//! content of the meta, so that a newer file can be distinguished from a damaged one.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::{SNAPSHOT_FRAME_BYTES, SNAPSHOT_FRAME_BYTES_MAX, SNAPSHOT_FRAMES_PER_SYNC};
use crate::hash::StateHash;
use crate::operation::{Key, RequestId, Value};
use crate::store::durable;
use crate::store::error::StoreError;
use crate::store::log::codec::read_part;
use crate::store::state_machine::ExampleStateMachine;
use crate::store::state_machine::history::{Change, ChangeKind, History};
use crate::store::state_machine::record::{Record, RecordParts};
use crate::store::state_machine::requests::Remembered;
use crate::store::state_machine::stored_results::StoredResult;
use crate::types::SnapshotMeta;

const MAGIC: &[u8; 8] = b"RKVSNAP\0";
const FORMAT_VERSION: u32 = 2;
/// The format without revisions: each record is a key with its value.
const FORMER_FORMAT_VERSION: u32 = 1;
const META_BYTES_MAX: usize = 16 << 20;

/// A record to write. It borrows the data, since counting references would contend with the Raft thread.
#[derive(Serialize)]
enum StoredRecordRef<'a> {
    /// Everything that exists once; always the first record.
    State {
        revision: u64,
        clock_ms: u64,
        oldest_revision: u64,
        hash: StateHash,
    },
    /// A key and its record; keys are in order.
    Key {
        key: &'a str,
        value: &'a Value,
        revision: u64,
        create_revision: u64,
        version: u64,
        #[serde(skip_serializing_if = "is_zero")]
        expires_at_ms: u64,
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

/// Writes a snapshot of `machine` with this `meta`. Returns whether the state is as it was applied: the hashes of
/// everything that is written are computed again.
///
/// # Errors
///
/// Those of writing the file; [`io::ErrorKind::StorageFull`] also if the disk would have less than
/// [`SNAPSHOT_LEAVES_BYTES`](crate::config::SNAPSHOT_LEAVES_BYTES) free bytes.
pub fn write(machine: &ExampleStateMachine, meta: &SnapshotMeta, file: &mut File) -> io::Result<bool> {
    let mut frames = FrameWriter {
        writer: BufWriter::with_capacity(SNAPSHOT_FRAME_BYTES, file),
        frame: Vec::with_capacity(2 * SNAPSHOT_FRAME_BYTES),
        checksums: crc32fast::Hasher::new(),
        count: 0,
        records: 0,
    };
    frames.write_header(meta)?;
    let state = StoredRecordRef::State {
        revision: machine.revision,
        clock_ms: machine.clock_ms,
        oldest_revision: machine.history.oldest(),
        hash: machine.hash(),
    };
    frames.write_record(&state)?;
    let (mut keys, mut requests) = (StateHash::default(), StateHash::default());
    for (key, record) in &machine.data {
        keys += record.computed_hash(key);
        let Record { value, revision, create_revision, version, expires_at_ms, .. } = record.as_ref();
        let (revision, create_revision, version) = (*revision, *create_revision, *version);
        let expires_at_ms = *expires_at_ms;
        frames.write_record(&StoredRecordRef::Key { key, value, revision, create_revision, version, expires_at_ms })?;
    }
    let mut is_history_as_applied = true;
    for change in machine.history.iter() {
        let change_ref = change_ref(machine, change);
        // No sum includes values that are no longer the current ones.
        if let (ChangeKind::Put(record), StoredRecordRef::Put { former: Some(_), .. }) = (&change.kind, &change_ref) {
            is_history_as_applied &= record.computed_hash(&change.key) == record.hash();
        }
        frames.write_record(&change_ref)?;
    }
    for (key, remembered) in machine.requests.iter() {
        requests += remembered.computed_hash(key);
        let Remembered { fingerprint, result, .. } = remembered.as_ref();
        frames.write_record(&StoredRecordRef::Request { key, fingerprint: *fingerprint, result: result.into() })?;
    }
    frames.write_footer()?;
    Ok(is_history_as_applied && machine.hash_with(keys, requests) == machine.hash())
}

fn change_ref<'a>(machine: &'a ExampleStateMachine, change: &'a Change) -> StoredRecordRef<'a> {
    let (key, revision) = (change.key.as_ref(), change.revision);
    match &change.kind {
        ChangeKind::Delete => StoredRecordRef::Delete { revision, key },
        ChangeKind::Expire => StoredRecordRef::Expire { revision, key },
        ChangeKind::Put(record) => {
            let current = machine.data.get(key).is_some_and(|current| Arc::ptr_eq(current, record));
            let Record { value, create_revision, version, expires_at_ms, .. } = record.as_ref();
            let (create_revision, version, expires_at_ms) = (*create_revision, *version, *expires_at_ms);
            let former = (!current).then_some(FormerRef { value, create_revision, version, expires_at_ms });
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
}

impl FrameWriter<'_> {
    fn write_header(&mut self, meta: &SnapshotMeta) -> io::Result<()> {
        let meta = rmp_serde::to_vec_named(meta).map_err(io::Error::other)?;
        check_length("header", meta.len(), META_BYTES_MAX)?;
        let mut header = Vec::from(MAGIC);
        header.extend_from_slice(&FORMAT_VERSION.to_be_bytes());
        header.extend_from_slice(&(meta.len() as u32).to_be_bytes());
        header.extend_from_slice(&meta);
        let checksum = crc32fast::hash(&header).to_be_bytes();
        self.checksums.update(&checksum);
        self.writer.write_all(&header)?;
        self.writer.write_all(&checksum)
    }

    fn write_record(&mut self, record: &StoredRecordRef<'_>) -> io::Result<()> {
        rmp_serde::encode::write_named(&mut self.frame, record).map_err(io::Error::other)?;
        self.records += 1;
        if self.frame.len() < SNAPSHOT_FRAME_BYTES {
            return Ok(());
        }
        self.write_frame()?;
        if self.count.is_multiple_of(SNAPSHOT_FRAMES_PER_SYNC) {
            // One sync at the end would take long, and the log's syncs would wait for it.
            self.writer.flush()?;
            self.writer.get_ref().sync_data()?;
            super::check_room(0, durable::free_bytes_of(self.writer.get_ref())).map_err(|free_bytes| {
                io::Error::new(io::ErrorKind::StorageFull, format!("the disk has {free_bytes} bytes left"))
            })?;
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
        self.frame.clear();
        self.count += 1;
        Ok(())
    }

    fn write_footer(mut self) -> io::Result<()> {
        if !self.frame.is_empty() {
            self.write_frame()?;
        }
        let footer = footer_of(self.records, self.count);
        self.checksums.update(&footer);
        self.writer.write_all(&0u32.to_be_bytes())?;
        self.writer.write_all(&footer)?;
        self.writer.write_all(&self.checksums.finalize().to_be_bytes())?;
        self.writer.flush()
    }
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
    let file = File::open(path).map_err(|error| StoreError::io("open", path, error))?;
    let reader = BufReader::with_capacity(SNAPSHOT_FRAME_BYTES, file);
    let mut frames =
        FrameReader { path, reader, checksums: crc32fast::Hasher::new(), count: 0, offset: 0, part_offset: 0 };
    let (version, meta) = frames.read_header()?;
    let mut machine = ExampleStateMachine {
        last_applied: meta.last_log_id,
        last_membership: meta.last_membership.clone(),
        ..ExampleStateMachine::default()
    };
    let mut frame = Vec::new();
    let mut records = 0;
    let mut hash = None;
    while frames.read_frame(&mut frame)? {
        let mut rest = frame.as_slice();
        while !rest.is_empty() {
            let loaded = match version {
                FORMER_FORMAT_VERSION => load_former_record(&mut machine, &mut rest),
                _ => load_record(&mut machine, &mut hash, records == 0, &mut rest),
            };
            loaded.map_err(|what| frames.damaged(what))?;
            records += 1;
        }
    }
    if version != FORMER_FORMAT_VERSION && records == 0 {
        return Err(frames.damaged(NO_STATE));
    }
    frames.read_footer(records)?;
    if hash.is_some_and(|hash| hash != machine.hash()) {
        return Err(StoreError::damaged(path, None, "the hash of its state does not match"));
    }
    Ok((meta, machine))
}

// Errors do not include the decoder's message: it may quote user data.
const NO_RECORD: &str = "a record cannot be decoded";
const NO_STATE: &str = "its first record, and no other, must have the revision of the state";

/// The largest revision and version of a file. No store reaches it, and counting on from it does not overflow.
const NUMBER_MAX: u64 = u64::MAX / 2;

fn load_former_record(machine: &mut ExampleStateMachine, bytes: &mut &[u8]) -> Result<(), &'static str> {
    let record: FormerFormatRecord = rmp_serde::from_read(bytes).map_err(|_| NO_RECORD)?;
    machine.insert_former(record.key, Value::from(record.value.as_bytes()));
    Ok(())
}

fn load_record(
    machine: &mut ExampleStateMachine,
    whole: &mut Option<StateHash>,
    is_first: bool,
    bytes: &mut &[u8],
) -> Result<(), &'static str> {
    let record: StoredRecord = rmp_serde::from_read(bytes).map_err(|_| NO_RECORD)?;
    if is_first != matches!(record, StoredRecord::State { .. }) {
        return Err(NO_STATE);
    }
    match record {
        StoredRecord::State { revision, clock_ms, oldest_revision, hash } => {
            ensure(revision <= NUMBER_MAX && oldest_revision <= revision + 1, "its revisions are inconsistent")?;
            (machine.revision, machine.clock_ms, *whole) = (revision, clock_ms, hash);
            machine.history = History::starting_at(oldest_revision);
        }
        StoredRecord::Key { key, value, revision, create_revision, version, expires_at_ms } => {
            let is_next = machine.data.get_max().is_none_or(|(last, _)| *last < key);
            ensure(is_next, "its keys are not in order")?;
            ensure(revision <= machine.revision, "a key has a later revision than the store")?;
            ensure(version <= NUMBER_MAX, "a key has an impossible version")?;
            let record = Record::new(&key, RecordParts { value, revision, create_revision, version, expires_at_ms });
            machine.insert_record(key, Arc::new(record));
        }
        StoredRecord::Put { revision, key, former: None } => {
            let (key, record) = machine.data.get_key_value(&key).ok_or("it has a change of a missing key")?;
            ensure(record.revision == revision, "a change is not the last one of its key")?;
            let (key, kind) = (key.clone(), ChangeKind::Put(record.clone()));
            load_change(machine, revision, key, kind)?;
        }
        StoredRecord::Put { revision, key, former: Some(former) } => {
            let Former { value, create_revision, version, expires_at_ms } = former;
            let record = Record::new(&key, RecordParts { value, revision, create_revision, version, expires_at_ms });
            load_change(machine, revision, key, ChangeKind::Put(Arc::new(record)))?;
        }
        StoredRecord::Delete { revision, key } => load_change(machine, revision, key, ChangeKind::Delete)?,
        StoredRecord::Expire { revision, key } => load_change(machine, revision, key, ChangeKind::Expire)?,
        StoredRecord::Request { key, fingerprint, result } => {
            let result = result.try_into().map_err(|_| "it has an invalid result of a request")?;
            machine.requests.remember(&RequestId { key, fingerprint }, result);
        }
    }
    Ok(())
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

struct FrameReader<'a> {
    path: &'a Path,
    reader: BufReader<File>,
    checksums: crc32fast::Hasher,
    count: u64,
    offset: u64,
    /// The offset of the header, frame or footer that is being read.
    part_offset: u64,
}

impl FrameReader<'_> {
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
            found if found > FORMAT_VERSION => {
                return Err(StoreError::NewerFormat { path: self.path.to_owned(), found, known: FORMAT_VERSION });
            }
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

    fn read_footer(mut self, records: u64) -> Result<(), StoreError> {
        let footer: [u8; 16] = self.array()?;
        self.checksums.update(&footer);
        let checksum = self.array()?;
        if self.checksums.clone().finalize().to_be_bytes() != checksum {
            return Err(self.damaged("the checksum of its footer does not match"));
        }
        if footer != footer_of(records, self.count) {
            return Err(self.damaged("its footer has the wrong number of records or frames"));
        }
        self.part_offset = self.offset;
        let mut byte = [0];
        match self.reader.read(&mut byte) {
            Ok(0) => Ok(()),
            Ok(_) => Err(self.damaged("data follows its footer")),
            Err(error) => Err(StoreError::io("read", self.path, error)),
        }
    }

    fn read_part(&mut self, length: usize, bytes: &mut Vec<u8>) -> Result<(), StoreError> {
        let read = read_part(&mut self.reader, length, bytes);
        self.note(read, length)
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
    use crate::operation::{Operation, Put, Write};
    use crate::types::{Command, Entry, LogId, Payload};

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
        let key =
            StoredRecordRef::Key { key: "k", value, revision: 7, create_revision: 2, version: 3, expires_at_ms: 9 };
        let former_head = b"\x81\xa3Put\x83\xa8revision\x07\xa3key\xa1k\xa6former".as_slice();
        let rows: [(_, &[&[u8]]); 5] = [
            (StoredRecordRef::Delete { revision: 7, key: "k" }, &[b"\x81\xa6Delete\x82\xa8revision\x07\xa3key\xa1k"]),
            (StoredRecordRef::Expire { revision: 7, key: "k" }, &[b"\x81\xa6Expire\x82\xa8revision\x07\xa3key\xa1k"]),
            (put(former(0)), &[former_head, b"\x83\xa5value\xc4\x01\xff", numbers]),
            (put(former(9)), &[former_head, b"\x84\xa5value\xc4\x01\xff", numbers, b"\xadexpires_at_ms\x09"]),
            (
                key,
                &[
                    b"\x81\xa3Key\x86\xa3key\xa1k\xa5value\xc4\x01\xff\xa8revision\x07",
                    numbers,
                    b"\xadexpires_at_ms\x09",
                ],
            ),
        ];
        for (number, (record, expected)) in rows.into_iter().enumerate() {
            assert_eq!(rmp_serde::to_vec_named(&record).unwrap(), expected.concat(), "row {number}");
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

    /// A state without keys can be written and read.
    #[test]
    fn empty_state() {
        let machine = ExampleStateMachine::default();
        let (file, _) = written(&machine);
        let (meta, loaded) = load(file.path()).unwrap();
        assert_eq!((meta, loaded.data.len()), (meta_of(&machine), 0));
    }
}
