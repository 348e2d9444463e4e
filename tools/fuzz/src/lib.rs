//! Mutations of files that have checksums.
//!
//! A random change outside of the checksum is detected by the checksum, so the decoder behind it never sees
//! the change. These mutators therefore split a file into parts, change a part, and reassemble the file with
//! matching lengths and checksums. Occasionally they change raw bytes.

use std::io::Cursor;

use libfuzzer_sys::fuzzer_mutate;
use raft_key_value::store::log::LogTypes;
use raft_log::RaftLogRecord;
use raft_log::codeq::Decode;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// A part of a file, without its length and checksum.
type Part = Vec<u8>;

/// A pseudorandom sequence that follows from the seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        // Knuth's MMIX generator; its upper bits are the better ones.
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % end.max(1)
    }
}

/// Mutates a log file, with libFuzzer's interface: the first `length` of `bytes` are the file, and the new
/// file, whose length is returned, has at most `length_max` bytes.
pub fn mutate_log_file(bytes: &mut [u8], length: usize, length_max: usize, seed: u32) -> usize {
    let mut random = Random(seed.into());
    let (mut records, torn) = log_records(&bytes[..length]);
    if records.is_empty() || random.below(16) == 0 {
        return fuzzer_mutate(bytes, length, length_max);
    }
    let room = length_max - length;
    mutate_list(&mut records, &mut random, |record, random| mutate_log_record(record, room, random));
    let mut file: Vec<u8> = records.iter().flat_map(|record| sealed_record(record)).collect();
    file.extend_from_slice(torn);
    put(&file, bytes, length, length_max)
}

/// The complete records at the beginning of a file, without their checksums, and the bytes after them.
fn log_records(bytes: &[u8]) -> (Vec<Part>, &[u8]) {
    let mut records = Vec::new();
    let mut rest = bytes;
    loop {
        let mut reader = Cursor::new(rest);
        if RaftLogRecord::<LogTypes>::decode(&mut reader).is_err() {
            return (records, rest);
        }
        let (record, following) = rest.split_at(reader.position() as usize);
        records.push(record[..record.len() - size_of::<u64>()].to_vec());
        rest = following;
    }
}

/// An entry's record: type 4, log id 25, `P`, payload length 4, CRC-32 of that length 4, payload.
const PAYLOAD_OFFSET: usize = 38;

fn mutate_log_record(record: &mut Part, room: usize, random: &mut Random) {
    if record.starts_with(&[0, 0, 0, 1]) && record.len() > PAYLOAD_OFFSET && random.below(4) > 0 {
        let mut payload = record.split_off(PAYLOAD_OFFSET);
        mutate_part(&mut payload, room);
        let length = (payload.len() as u32).to_be_bytes();
        record.truncate(PAYLOAD_OFFSET - 8);
        record.extend_from_slice(&length);
        record.extend_from_slice(&crc32fast::hash(&length).to_be_bytes());
        record.extend_from_slice(&payload);
    } else {
        mutate_part(record, room);
    }
}

fn sealed_record(record: &[u8]) -> Vec<u8> {
    let checksum = u64::from(crc32fast::hash(record));
    [record, &checksum.to_be_bytes()].concat()
}

/// The parts of a snapshot file.
struct Snapshot {
    version: [u8; 4],
    meta: Part,
    /// The records of each frame.
    frames: Vec<Vec<Part>>,
}

/// Mutates a snapshot file; see [`mutate_log_file`].
pub fn mutate_snapshot(bytes: &mut [u8], length: usize, length_max: usize, seed: u32) -> usize {
    let mut random = Random(seed.into());
    let snapshot = Snapshot::of(&bytes[..length]).filter(|_| random.below(16) > 0);
    let Some(mut snapshot) = snapshot else { return fuzzer_mutate(bytes, length, length_max) };
    let room = length_max - length;
    match random.below(16) {
        0 => mutate_part(&mut snapshot.meta, room),
        1 => snapshot.version[3] = 1 + random.below(3) as u8,
        2 => mutate_list(&mut snapshot.frames, &mut random, |_, _| {}),
        _ if snapshot.frames.is_empty() => snapshot.frames.push(vec![vec![0x80]]),
        _ => {
            let frame = random.below(snapshot.frames.len());
            mutate_list(&mut snapshot.frames[frame], &mut random, |record, _| mutate_part(record, room));
        }
    }
    put(&snapshot.to_bytes(), bytes, length, length_max)
}

impl Snapshot {
    fn of(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes.strip_prefix(b"RKVSNAP\0")?;
        let version = take(&mut rest, 4)?.try_into().ok()?;
        let length = number(take(&mut rest, 4)?)?;
        let meta = take(&mut rest, length)?.to_vec();
        take(&mut rest, 4)?;
        let mut frames = Vec::new();
        loop {
            match number(take(&mut rest, 4)?)? {
                0 => return Some(Snapshot { version, meta, frames }),
                length => {
                    take(&mut rest, 4)?;
                    frames.push(values(take(&mut rest, length)?));
                }
            }
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut file = b"RKVSNAP\0".to_vec();
        file.extend_from_slice(&self.version);
        file.extend_from_slice(&(self.meta.len() as u32).to_be_bytes());
        file.extend_from_slice(&self.meta);
        let mut checksums = crc32fast::hash(&file).to_be_bytes().to_vec();
        file.extend_from_slice(&checksums.clone());
        let frames = || self.frames.iter().map(|records| records.concat()).filter(|frame| !frame.is_empty());
        for frame in frames() {
            let checksum = crc32fast::hash(&frame).to_be_bytes();
            checksums.extend_from_slice(&checksum);
            file.extend_from_slice(&(frame.len() as u32).to_be_bytes());
            file.extend_from_slice(&checksum);
            file.extend_from_slice(&frame);
        }
        // A mutated record may have become several.
        let records: usize = frames().map(|frame| values(&frame).len()).sum();
        let counts = ((records as u128) << 64 | frames().count() as u128).to_be_bytes();
        checksums.extend_from_slice(&counts);
        file.extend_from_slice(&[0; 4]);
        file.extend_from_slice(&counts);
        file.extend_from_slice(&crc32fast::hash(&checksums).to_be_bytes());
        file
    }
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, following) = rest.split_at_checked(length)?;
    *rest = following;
    Some(taken)
}

fn number(bytes: &[u8]) -> Option<usize> {
    Some(u32::from_be_bytes(bytes.try_into().ok()?) as usize)
}

/// Consecutive MessagePack values; the last may be incomplete.
fn values(bytes: &[u8]) -> Vec<Part> {
    let mut values = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let mut reader = Cursor::new(rest);
        let found = IgnoredAny::deserialize(&mut rmp_serde::Deserializer::new(&mut reader));
        let (value, following) = rest.split_at(found.map_or(rest.len(), |_| reader.position() as usize));
        values.push(value.to_vec());
        rest = following;
    }
    values
}

/// Mutates one element of a list, or the selection or order of its elements.
fn mutate_list<T: Clone>(list: &mut Vec<T>, random: &mut Random, mutate: impl FnOnce(&mut T, &mut Random)) {
    if list.is_empty() {
        return;
    }
    let (one, other) = (random.below(list.len()), random.below(list.len()));
    match random.below(8) {
        0 => drop(list.remove(one)),
        1 => list.insert(other, list[one].clone()),
        2 => list.swap(one, other),
        _ => mutate(&mut list[one], random),
    }
}

/// Mutates bytes, which may grow by `room`.
fn mutate_part(part: &mut Part, room: usize) {
    let length = part.len();
    part.resize(length + room, 0);
    let length = fuzzer_mutate(part, length, length + room);
    part.truncate(length);
}

/// Replaces the old file by the new one, unless that is too long.
fn put(file: &[u8], bytes: &mut [u8], length: usize, length_max: usize) -> usize {
    if file.len() > length_max {
        return fuzzer_mutate(bytes, length, length_max);
    }
    bytes[..file.len()].copy_from_slice(file);
    file.len()
}
