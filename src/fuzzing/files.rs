//! Decoders of a node's files. Snapshots also arrive from other nodes.

use std::fs::{self, File};
use std::io::Cursor;
use std::path::{Path, PathBuf};

use futures_util::FutureExt;
use openraft::RaftLogReader;
use openraft::vote::RaftLeaderId;
use raft_log::codeq::{Decode, Encode};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tempfile::TempDir;

use crate::config::LOG_TIME_MS_MAX;
use crate::operation::{Key, Operation, Put, Write};
use crate::store::clock_file;
use crate::store::identity::Identity;
use crate::store::log::check::CheckedLog;
use crate::store::log::codec::{LogIdRecord, PayloadRecord, UserDataRecord, VoteRecord};
use crate::store::snapshot::format::{self, meta_of};
use crate::store::{ExampleStateMachine, LogSizes, LogStore, StoreError};
use crate::types::{Command, Entry, LogId, Payload};

/// A `CLOCK` that is accepted is encoded as the same bytes, and has a possible log time.
pub fn clock(bytes: &[u8]) {
    let path = Path::new("CLOCK");
    match clock_file::decode(path, bytes) {
        Ok(reading) => {
            assert_eq!(clock_file::encode(reading), bytes, "{reading:?} is encoded otherwise");
            assert!(reading.log_ms <= LOG_TIME_MS_MAX, "{reading:?}");
        }
        Err(error) => assert_rejected(&error),
    }
}

/// An `IDENTITY` that is accepted is byte for byte one that this program or an older version wrote.
pub fn identity(bytes: &[u8]) {
    let path = Path::new("IDENTITY");
    let identity = match Identity::decode(path, bytes) {
        Ok(identity) => identity,
        Err(error) => return assert_rejected(&error),
    };
    assert_eq!(identity.encode(), bytes, "{identity:?} is written otherwise");
}

/// Payloads of entries that are accepted survive a round trip, and a snapshot can hold the state after applying them.
///
/// The bytes are concatenated MessagePack payloads; this adds lengths and checksums. They are also decoded as each kind
/// of record.
pub fn log_entries(bytes: &[u8]) {
    let _ = VoteRecord::decode(bytes).map(|vote| assert_eq!(VoteRecord::decode(&*encoded(&vote)).ok(), Some(vote)));
    let _ = LogIdRecord::decode(bytes).map(|id| assert_eq!(LogIdRecord::decode(&*encoded(&id)).ok(), Some(id)));
    let _ = UserDataRecord::decode(bytes);
    let _ = PayloadRecord::decode(bytes);
    let mut machine = ExampleStateMachine::default();
    for (index, payload) in values(bytes).enumerate() {
        let Ok(PayloadRecord(payload)) = PayloadRecord::decode(&*sealed(payload)) else { continue };
        let again = PayloadRecord::decode(&*encoded(&PayloadRecord(payload.clone())));
        assert!(again.is_ok_and(|again| again.0 == payload), "{payload:?} is read as something else");
        machine.apply(entry(index as u64, payload));
    }
    assert_snapshot_holds(&machine);
}

/// raft-log opens every log that passes the check, and finds what the check reported: all entries from the first to the
/// last. A torn tail that was cut off does not return.
pub fn log_file(bytes: &[u8]) {
    let directory = scratch();
    fs::write(directory.path().join("r-00_000_000_000_000_000_000.wal"), bytes).expect("the file is written");
    let checked = match CheckedLog::read(directory.path(), true) {
        Ok(checked) => checked,
        Err(error) => return assert_rejected(&error),
    };
    let log = LogStore::open(directory.path(), &checked, LogSizes::default());
    let mut log = log.unwrap_or_else(|error| panic!("{checked:?} is rejected: {error}"));
    let vote = log.read_vote().now_or_never().and_then(Result::ok).flatten();
    let purged = log.purged().ok().flatten();
    let entries = log.try_get_log_entries(..).now_or_never().expect("it does not wait").expect("they can be read");
    drop(log);
    let last = entries.last().map_or(purged, |entry| Some(entry.log_id));
    assert_eq!((vote, purged, last), (checked.vote, checked.purged, checked.last));
    let first_index = purged.map_or(0, |purged| purged.index + 1);
    let indexes = entries.iter().map(|entry| entry.log_id.index);
    assert!(indexes.eq(first_index..first_index + entries.len() as u64), "an entry is missing between two others");
    let again = CheckedLog::read(directory.path(), false);
    assert_eq!(again.ok(), Some(CheckedLog { torn: Vec::new(), ..checked }));
}

/// A snapshot that is accepted holds a state that another snapshot can hold, and to which the next write applies.
pub fn snapshot(bytes: &[u8]) {
    let directory = scratch();
    let path = directory.path().join("received");
    fs::write(&path, bytes).expect("the file is written");
    match format::load(&path) {
        Ok((meta, mut machine)) => {
            assert_eq!(meta, meta_of(&machine));
            assert_snapshot_holds(&machine);
            let revision = machine.revision;
            let key = machine.data.get_max().map_or("key".into(), |(key, _)| key.clone());
            machine.apply(entry(0, put(key, "a value that no seed has")));
            assert!(machine.revision > revision);
            assert_snapshot_holds(&machine);
        }
        Err(error) => assert_rejected(&error),
    }
}

fn put(key: Key, value: &str) -> Payload {
    let put = Put { key, value: value.into(), ttl_ms: None, condition: None };
    Payload::Normal(Command::Write(Write { at_ms: 0, request: None, operation: Operation::Put(put) }))
}

pub(super) fn entry(index: u64, payload: Payload) -> Entry {
    Entry { log_id: LogId::new(RaftLeaderId::new(1, 1), index), payload }
}

/// Checks that a snapshot of a state is loaded as the same state.
pub(super) fn assert_snapshot_holds(machine: &ExampleStateMachine) {
    let directory = scratch();
    let path: PathBuf = directory.path().join("written");
    let mut file = File::create(&path).expect("the file is made");
    format::write(machine, &meta_of(machine), &mut file).expect("the state is written");
    let (meta, loaded) = format::load(&path).expect("what was written is read");
    assert_eq!(meta, meta_of(machine));
    assert!(loaded == *machine, "the snapshot holds something else");
    assert_eq!(loaded.hash_of_all(), machine.hash_of_all());
    assert_eq!(loaded.hash(), loaded.hash_of_all());
}

/// Checks that bytes were rejected as damaged or as a newer format, the only valid reasons.
fn assert_rejected(error: &StoreError) {
    assert!(matches!(error, StoreError::Damaged { .. } | StoreError::NewerFormat { .. }), "{error}");
}

fn encoded(record: &impl Encode) -> Vec<u8> {
    let mut bytes = Vec::new();
    let length = record.encode(&mut bytes).expect("what was read is written");
    assert_eq!(length, bytes.len());
    bytes
}

/// A record with this payload.
fn sealed(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [b"P".as_slice(), &length, &crc32fast::hash(&length).to_be_bytes(), payload].concat()
}

/// Splits concatenated MessagePack values; the last may be invalid.
fn values(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut reader = Cursor::new(rest);
        let found = IgnoredAny::deserialize(&mut rmp_serde::Deserializer::new(&mut reader));
        let length = found.map_or(rest.len(), |_| reader.position() as usize);
        let value;
        (value, rest) = rest.split_at(length);
        Some(value)
    })
}

/// A directory in memory if possible: these tests do not need durability.
pub(super) fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("there is room for a directory")
}
