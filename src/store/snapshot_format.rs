//! The bytes of a snapshot file: the whole state machine at one log id.
//!
//! All numbers are big-endian:
//!
//! | part | bytes |
//! | --- | --- |
//! | header | `RKVSNAP` and a zero byte, format version 4, length 4, meta (MessagePack with field names), CRC-32 of all that 4 |
//! | frame, repeated | length 4 (never 0), CRC-32 of the payload 4, payload: records (MessagePack with field names) one after another |
//! | footer | zero 4, number of records 8, number of frames 8, CRC-32 of the header's, the frames' checksums and these numbers 4 |
//!
//! Nothing may follow the footer. A frame is about [`SNAPSHOT_FRAME_BYTES`]
//! long, so writing, sending and reading need no more memory than that beyond
//! the data itself. Every later format keeps the header as it is, up to what
//! the meta holds, so that a newer file is told from a damaged one.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::state_machine::ExampleStateMachine;
use crate::config::{SNAPSHOT_FRAME_BYTES, SNAPSHOT_FRAME_BYTES_MAX, SNAPSHOT_FRAMES_PER_SYNC};
use crate::types::SnapshotMeta;

const MAGIC: &[u8; 8] = b"RKVSNAP\0";
const FORMAT_VERSION: u32 = 1;
const META_BYTES_MAX: usize = 16 << 20;

/// A record as it is written. Borrowed, since counting references would contend with the Raft thread for them.
#[derive(Serialize)]
struct RecordRef<'a> {
    key: &'a str,
    value: &'a str,
}

#[derive(Deserialize)]
struct Record {
    key: Arc<str>,
    value: Arc<str>,
}

/// What identifies a snapshot of `machine`.
pub fn meta_of(machine: &ExampleStateMachine) -> SnapshotMeta {
    SnapshotMeta { last_log_id: machine.last_applied, last_membership: machine.last_membership.clone() }
}

/// Writes a snapshot of `machine`, as one that is named by `meta`.
pub fn write(machine: &ExampleStateMachine, meta: &SnapshotMeta, file: &mut File) -> io::Result<()> {
    let mut frames = FrameWriter {
        writer: BufWriter::with_capacity(SNAPSHOT_FRAME_BYTES, file),
        checksums: crc32fast::Hasher::new(),
        count: 0,
    };
    frames.write_header(meta)?;
    let mut frame = Vec::with_capacity(2 * SNAPSHOT_FRAME_BYTES);
    for (key, value) in &machine.data {
        rmp_serde::encode::write_named(&mut frame, &RecordRef { key, value }).map_err(io::Error::other)?;
        if frame.len() >= SNAPSHOT_FRAME_BYTES {
            frames.write_frame(&mut frame)?;
            if frames.count.is_multiple_of(SNAPSHOT_FRAMES_PER_SYNC) {
                // Little by little: one sync of it all at the end would make the
                // log's syncs wait until it is done.
                frames.writer.flush()?;
                frames.writer.get_ref().sync_data()?;
            }
        }
    }
    if !frame.is_empty() {
        frames.write_frame(&mut frame)?;
    }
    frames.write_footer(machine.data.len() as u64)
}

struct FrameWriter<'a> {
    writer: BufWriter<&'a mut File>,
    checksums: crc32fast::Hasher,
    count: u64,
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

    fn write_frame(&mut self, frame: &mut Vec<u8>) -> io::Result<()> {
        check_length("frame", frame.len(), SNAPSHOT_FRAME_BYTES_MAX)?;
        let checksum = crc32fast::hash(frame).to_be_bytes();
        self.checksums.update(&checksum);
        self.writer.write_all(&(frame.len() as u32).to_be_bytes())?;
        self.writer.write_all(&checksum)?;
        self.writer.write_all(frame)?;
        frame.clear();
        self.count += 1;
        Ok(())
    }

    fn write_footer(mut self, records: u64) -> io::Result<()> {
        let footer = footer_of(records, self.count);
        self.checksums.update(&footer);
        self.writer.write_all(&0u32.to_be_bytes())?;
        self.writer.write_all(&footer)?;
        self.writer.write_all(&self.checksums.finalize().to_be_bytes())?;
        self.writer.flush()
    }
}

/// What is too long to be read must not be written: the log is purged once a snapshot is there.
fn check_length(part: &str, bytes: usize, bytes_max: usize) -> io::Result<()> {
    if bytes <= bytes_max {
        return Ok(());
    }
    let what = format!("a snapshot's {part} of {bytes} bytes is over the limit of {bytes_max}");
    Err(io::Error::new(io::ErrorKind::InvalidData, what))
}

fn footer_of(records: u64, frames: u64) -> [u8; 16] {
    ((u128::from(records) << 64) | u128::from(frames)).to_be_bytes()
}

/// Reads a snapshot file, and refuses it unless every byte of it is accounted for.
pub fn load(path: &Path) -> Result<(SnapshotMeta, ExampleStateMachine), StoreError> {
    let file = File::open(path).map_err(|error| StoreError::io("open", path, error))?;
    let reader = BufReader::with_capacity(SNAPSHOT_FRAME_BYTES, file);
    let mut frames =
        FrameReader { path, reader, checksums: crc32fast::Hasher::new(), count: 0, offset: 0, part_offset: 0 };
    let meta = frames.read_header()?;
    let mut machine = ExampleStateMachine {
        last_applied: meta.last_log_id,
        last_membership: meta.last_membership.clone(),
        ..ExampleStateMachine::default()
    };
    let mut frame = Vec::new();
    while frames.read_frame(&mut frame)? {
        let mut records = frame.as_slice();
        while !records.is_empty() {
            // What the decoder says is kept out of the error: it may quote the data.
            let Ok(record) = rmp_serde::from_read::<_, Record>(&mut records) else {
                return Err(frames.damaged("a record cannot be decoded"));
            };
            machine.data.insert(record.key, record.value);
        }
    }
    frames.read_footer(machine.data.len() as u64)?;
    Ok((meta, machine))
}

struct FrameReader<'a> {
    path: &'a Path,
    reader: BufReader<File>,
    checksums: crc32fast::Hasher,
    count: u64,
    offset: u64,
    /// Where the header, frame or footer begins that is being read.
    part_offset: u64,
}

impl FrameReader<'_> {
    fn read_header(&mut self) -> Result<SnapshotMeta, StoreError> {
        let magic: [u8; 8] = self.array()?;
        if &magic != MAGIC {
            return Err(self.damaged("it is not a snapshot"));
        }
        let version: [u8; 4] = self.array()?;
        let length: [u8; 4] = self.array()?;
        let mut meta = vec![0; self.length(length, META_BYTES_MAX)?];
        self.read(&mut meta)?;
        let checksum: [u8; 4] = self.array()?;
        let header = [magic.as_slice(), &version, &length, &meta].concat();
        if crc32fast::hash(&header).to_be_bytes() != checksum {
            return Err(self.damaged("the checksum of its header does not match"));
        }
        self.checksums.update(&checksum);
        match u32::from_be_bytes(version) {
            FORMAT_VERSION => {}
            found if found > FORMAT_VERSION => {
                return Err(StoreError::NewerFormat { path: self.path.to_owned(), found, known: FORMAT_VERSION });
            }
            found => return Err(self.damaged(format!("there is no format {found}"))),
        }
        rmp_serde::from_slice(&meta).map_err(|_| self.damaged("its header cannot be decoded"))
    }

    /// Reads the next frame; false if the footer follows.
    fn read_frame(&mut self, frame: &mut Vec<u8>) -> Result<bool, StoreError> {
        self.part_offset = self.offset;
        let length = self.array()?;
        if length == [0; 4] {
            return Ok(false);
        }
        let checksum: [u8; 4] = self.array()?;
        frame.resize(self.length(length, SNAPSHOT_FRAME_BYTES_MAX)?, 0);
        self.read(frame)?;
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
            return Err(self.damaged("its footer counts other records than it has"));
        }
        self.part_offset = self.offset;
        let mut byte = [0];
        match self.reader.read(&mut byte) {
            Ok(0) => Ok(()),
            Ok(_) => Err(self.damaged("something follows its footer")),
            Err(error) => Err(StoreError::io("read", self.path, error)),
        }
    }

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
    use crate::types::{Command, Entry, LogId, Payload};

    fn written(machine: &ExampleStateMachine) -> (tempfile::NamedTempFile, Vec<u8>) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        write(machine, &meta_of(machine), file.as_file_mut()).unwrap();
        let bytes = std::fs::read(file.path()).unwrap();
        (file, bytes)
    }

    /// The bytes on disk are these, for as long as format 1 is read.
    #[test]
    fn bytes_are_fixed() {
        let mut machine = ExampleStateMachine::default();
        let command = Command::Set { key: "k".into(), value: "v".into() };
        machine.apply(Entry { log_id: LogId::new(RaftLeaderId::new(3, 2), 258), payload: Payload::Normal(command) });
        let (file, bytes) = written(&machine);

        let log_id = b"\x82\xa9leader_id\x82\xa4term\x03\xa7node_id\x02\xa5index\xcd\x01\x02";
        let membership = b"\x82\xa6log_id\xc0\xaamembership\x82\xa7configs\x90\xa5nodes\x80";
        let meta = [
            b"\x83\xablast_log_id".as_slice(),
            log_id,
            b"\xaflast_membership",
            membership,
            b"\xabsnapshot_id\xa0", // openraft writes it for its older versions, and reads it no more.
        ]
        .concat();
        let meta_bytes = (meta.len() as u32).to_be_bytes();
        let header = [b"RKVSNAP\0\0\0\0\x01".as_slice(), &meta_bytes, &meta].concat();
        let frame = b"\x82\xa3key\xa1k\xa5value\xa1v";
        let checksums = [crc32fast::hash(&header), crc32fast::hash(frame)].map(u32::to_be_bytes);
        let counts = b"\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x01";
        let footer = crc32fast::hash(&[checksums[0].as_slice(), &checksums[1], counts].concat()).to_be_bytes();
        let expected: [&[u8]; 8] =
            [&header, &checksums[0], b"\0\0\0\x0f", &checksums[1], frame, b"\0\0\0\0", counts, &footer];
        assert_eq!(bytes, expected.concat());

        let (meta, loaded) = load(file.path()).unwrap();
        assert_eq!((meta, loaded.data), (meta_of(&machine), machine.data));
    }

    /// A state without keys has a snapshot too.
    #[test]
    fn empty_state() {
        let machine = ExampleStateMachine::default();
        let (file, _) = written(&machine);
        let (meta, loaded) = load(file.path()).unwrap();
        assert_eq!((meta, loaded.data.len()), (meta_of(&machine), 0));
    }
}
