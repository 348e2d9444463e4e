//! The bytes of log records on disk, inside raft-log's frames.
//!
//! **On disk: frozen.** raft-log frames a record as a type number (4 bytes), a
//! body, and a CRC-32. It takes a record that runs past the end of the file for a
//! torn write, and cuts it off. So no body here may run past the end because of a
//! flipped byte: each begins with a letter of its own, and the length of a payload
//! has a checksum of its own. All numbers are big-endian.
//!
//! | body | bytes |
//! | --- | --- |
//! | vote | `V`, term 8, node id 8, committed 1 |
//! | log id | `L`, term 8, node id 8, index 8 |
//! | payload | `P`, length 4, CRC-32 of the length 4, MessagePack with field names |
//! | user data | `U` (raft-log's state record has room for it; not used) |

use std::cell::RefCell;
use std::io::{self, Read, Write};

use openraft::vote::RaftLeaderId;
use raft_log::codeq::{Decode, Encode};

use crate::config::LOG_PAYLOAD_BYTES_MAX;
use crate::types::{LogId, Payload, Vote};

/// A [`LogId`] on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogIdRecord(pub LogId);

/// A [`Vote`] on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub struct VoteRecord(pub Vote);

/// A [`Payload`] on disk.
#[derive(Clone, Debug)]
pub struct PayloadRecord(pub Payload);

/// The unused field of raft-log's state record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserDataRecord;

impl PayloadRecord {
    /// Approximate bytes of memory of the payload.
    pub fn bytes(&self) -> usize {
        Self::bytes_of(&self.0)
    }

    /// Approximate bytes of memory of a payload.
    pub fn bytes_of(payload: &Payload) -> usize {
        // For the entry itself, so that many small entries count too.
        const ENTRY_BYTES: usize = 64;
        match payload {
            Payload::Blank => ENTRY_BYTES,
            Payload::Normal(command) => ENTRY_BYTES + command.payload_bytes(),
            Payload::Membership(membership) => ENTRY_BYTES * (1 + membership.nodes().count()),
        }
    }
}

impl Encode for LogIdRecord {
    fn encode<W: Write>(&self, mut writer: W) -> io::Result<usize> {
        let mut bytes = [0; 25];
        bytes[0] = b'L';
        bytes[1..9].copy_from_slice(&self.0.leader_id.term.to_be_bytes());
        bytes[9..17].copy_from_slice(&self.0.leader_id.node_id.to_be_bytes());
        bytes[17..25].copy_from_slice(&self.0.index.to_be_bytes());
        writer.write_all(&bytes)?;
        Ok(bytes.len())
    }
}

impl Decode for LogIdRecord {
    fn decode<R: Read>(mut reader: R) -> io::Result<Self> {
        expect_letter(&mut reader, b'L')?;
        let term = read_u64(&mut reader)?;
        let node_id = read_u64(&mut reader)?;
        let index = read_u64(&mut reader)?;
        Ok(LogIdRecord(LogId::new(RaftLeaderId::new(term, node_id), index)))
    }
}

impl Encode for VoteRecord {
    fn encode<W: Write>(&self, mut writer: W) -> io::Result<usize> {
        let mut bytes = [0; 18];
        bytes[0] = b'V';
        bytes[1..9].copy_from_slice(&self.0.leader_id.term.to_be_bytes());
        bytes[9..17].copy_from_slice(&self.0.leader_id.node_id.to_be_bytes());
        bytes[17] = u8::from(self.0.committed);
        writer.write_all(&bytes)?;
        Ok(bytes.len())
    }
}

impl Decode for VoteRecord {
    fn decode<R: Read>(mut reader: R) -> io::Result<Self> {
        expect_letter(&mut reader, b'V')?;
        let term = read_u64(&mut reader)?;
        let node_id = read_u64(&mut reader)?;
        let committed = match read_array::<1>(&mut reader)? {
            [0] => false,
            [1] => true,
            [other] => return Err(invalid(format!("a vote must be committed (1) or not (0), got {other}"))),
        };
        Ok(VoteRecord(Vote { leader_id: RaftLeaderId::new(term, node_id), committed }))
    }
}

thread_local! {
    // Records are encoded one after another; the buffer keeps its capacity.
    static PAYLOAD_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Encode for PayloadRecord {
    fn encode<W: Write>(&self, mut writer: W) -> io::Result<usize> {
        PAYLOAD_BUFFER.with_borrow_mut(|buffer| {
            buffer.clear();
            buffer.extend_from_slice(&[0; PAYLOAD_HEADER_BYTES]);
            rmp_serde::encode::write_named(buffer, &self.0).map_err(io::Error::other)?;
            let length = buffer.len() - PAYLOAD_HEADER_BYTES;
            if length > LOG_PAYLOAD_BYTES_MAX {
                return Err(invalid(format!("a payload of {length} bytes exceeds the limit")));
            }
            let length = (length as u32).to_be_bytes();
            buffer[0] = b'P';
            buffer[1..5].copy_from_slice(&length);
            buffer[5..9].copy_from_slice(&crc32fast::hash(&length).to_be_bytes());
            writer.write_all(buffer)?;
            Ok(buffer.len())
        })
    }
}

impl Decode for PayloadRecord {
    fn decode<R: Read>(mut reader: R) -> io::Result<Self> {
        expect_letter(&mut reader, b'P')?;
        let length: [u8; 4] = read_array(&mut reader)?;
        let checksum = u32::from_be_bytes(read_array(&mut reader)?);
        if crc32fast::hash(&length) != checksum {
            return Err(invalid("the checksum of a payload's length does not match"));
        }
        let length = u32::from_be_bytes(length) as usize;
        if length > LOG_PAYLOAD_BYTES_MAX {
            return Err(invalid(format!("a payload of {length} bytes exceeds the limit")));
        }
        let mut bytes = Vec::new();
        read_part(&mut reader, length, &mut bytes)?;
        // Do not propagate the decoder's error: its message may contain user data, and its kind UnexpectedEof would
        // count as a torn write.
        rmp_serde::from_slice(&bytes).map(PayloadRecord).map_err(|_| invalid("a payload cannot be decoded"))
    }
}

impl Encode for UserDataRecord {
    fn encode<W: Write>(&self, mut writer: W) -> io::Result<usize> {
        writer.write_all(b"U")?;
        Ok(1)
    }
}

impl Decode for UserDataRecord {
    fn decode<R: Read>(mut reader: R) -> io::Result<Self> {
        expect_letter(&mut reader, b'U').map(|()| UserDataRecord)
    }
}

const PAYLOAD_HEADER_BYTES: usize = 9;

fn read_array<const N: usize>(reader: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Reads `length` bytes. Allocates memory for bytes that exist, not for those that a damaged length announces.
pub(in crate::store) fn read_part(reader: &mut impl Read, length: usize, bytes: &mut Vec<u8>) -> io::Result<()> {
    const RESERVED_BYTES_MAX: usize = 256 << 10;
    bytes.clear();
    bytes.reserve(length.min(RESERVED_BYTES_MAX));
    let count = reader.take(length as u64).read_to_end(bytes)?;
    if count == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn read_u64(reader: &mut impl Read) -> io::Result<u64> {
    read_array(reader).map(u64::from_be_bytes)
}

fn expect_letter(reader: &mut impl Read, expected: u8) -> io::Result<()> {
    let [found] = read_array(reader)?;
    if found == expected {
        Ok(())
    } else {
        Err(invalid(format!("expected `{}`, found byte {found}", char::from(expected))))
    }
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use openraft::Membership;

    use super::*;
    use crate::access::{AccessChange, NewToken, TokenHash, TokenRole};
    use crate::hash::StateHash;
    use crate::level::Level;
    use crate::operation::{
        Comparison, Condition, Delete, Key, Operand, Operation, Put, Relation, RequestId, Touch, Txn, TxnStep, Write,
    };
    use crate::types::{Command, ExampleNode};

    fn encoded(record: &impl Encode) -> Vec<u8> {
        let mut bytes = Vec::new();
        let length = record.encode(&mut bytes).unwrap();
        assert_eq!(length, bytes.len());
        bytes
    }

    fn put(key: &str, value: &[u8]) -> Payload {
        let put = Put { key: key.into(), value: value.into(), ttl_ms: None, condition: None };
        Payload::Normal(Command::Write(Write { at_ms: 258, request: None, operation: Operation::Put(put) }))
    }

    fn log_id() -> LogIdRecord {
        LogIdRecord(LogId::new(RaftLeaderId::new(3, 2), 258))
    }

    fn vote() -> VoteRecord {
        VoteRecord(Vote { leader_id: RaftLeaderId::new(3, 2), committed: true })
    }

    /// Every record is decoded as it was encoded, and decoding consumes exactly its bytes.
    #[test]
    fn round_trip() {
        let nodes = BTreeMap::from([(1, ExampleNode { addr: "127.0.0.1:21001".into(), incarnation: 9 })]);
        let membership = Membership::new(vec![[1].into()], nodes).unwrap();
        let payloads = [
            Payload::Blank,
            Payload::Normal(Command::Set { key: "foo".into(), value: "bar".into() }),
            put("foo", b"bar"),
            put("foo", b"\xff\0"),
            Payload::Membership(membership),
        ];
        for payload in payloads {
            let mut bytes = encoded(&PayloadRecord(payload.clone()));
            bytes.extend_from_slice(b"next");
            let mut reader = bytes.as_slice();
            assert_eq!(PayloadRecord::decode(&mut reader).unwrap().0, payload);
            assert_eq!(reader, b"next");
        }
        assert_eq!(LogIdRecord::decode(encoded(&log_id()).as_slice()).unwrap(), log_id());
        assert_eq!(VoteRecord::decode(encoded(&vote()).as_slice()).unwrap(), vote());
        assert_eq!(UserDataRecord::decode(encoded(&UserDataRecord).as_slice()).unwrap(), UserDataRecord);
    }

    /// The bytes on disk are these, for as long as formats 1 and 2 are read.
    #[test]
    fn bytes_are_fixed() {
        assert_eq!(encoded(&log_id()), b"L\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\x01\x02");
        assert_eq!(encoded(&vote()), b"V\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x02\x01");
        let former = Payload::Normal(Command::Set { key: "k".into(), value: "v".into() });
        assert_eq!(
            &encoded(&PayloadRecord(former))[PAYLOAD_HEADER_BYTES..],
            b"\x81\xa6Normal\x81\xa3Set\x82\xa3key\xa1k\xa5value\xa1v"
        );
        let expected: [&[u8]; 3] = [
            b"\x81\xa6Normal\x81\xa5Write\x82\xa5at_ms\xcd\x01\x02\xa9operation",
            b"\x81\xa3Put\x82\xa3key\xa1k\xa5value\xc4\x01",
            b"\xff",
        ];
        assert_eq!(&encoded(&PayloadRecord(put("k", b"\xff")))[PAYLOAD_HEADER_BYTES..], expected.concat());
    }

    /// The bytes of every kind of write on disk are these.
    #[test]
    fn writes_are_fixed() {
        let key = || Key::from("k");
        let put = |ttl_ms, condition| Put { key: key(), value: "v".into(), ttl_ms, condition };
        let delete = |condition| Delete { key: key(), condition };
        let touch = |ttl_ms, condition| Touch { key: key(), ttl_ms, condition };
        let operands = [
            (Relation::Equal, Operand::Exists(true)),
            (Relation::NotEqual, Operand::Value("v".into())),
            (Relation::Less, Operand::Revision(1)),
            (Relation::LessOrEqual, Operand::CreateRevision(2)),
            (Relation::Greater, Operand::Version(3)),
            (Relation::GreaterOrEqual, Operand::Version(4)),
        ];
        let compare = operands.map(|(relation, operand)| Comparison { key: key(), relation, operand });
        let success = vec![TxnStep::Put(put(None, None)), TxnStep::Get(key())];
        let failure = vec![TxnStep::Delete(delete(None)), TxnStep::Touch(touch(None, None))];
        let txn = Txn { compare: compare.into(), success, failure };
        let token = |prefixes, ttl_ms| NewToken {
            name: key(),
            role: TokenRole::Admin,
            prefixes,
            ttl_ms,
            hash: TokenHash::of(b"abc"),
        };
        let hash = format!(r"\xa4hash\xc4 {}", TokenHash::of(b"abc").as_bytes().escape_ascii());
        let rows: [(Operation, &str); 13] = [
            (
                Operation::Put(put(Some(7), Some(Condition::Missing))),
                r"\x81\xa3Put\x84\xa3key\xa1k\xa5value\xc4\x01v\xa6ttl_ms\x07\xa9condition\xa7Missing",
            ),
            (
                Operation::Delete(delete(Some(Condition::Present))),
                r"\x81\xa6Delete\x82\xa3key\xa1k\xa9condition\xa7Present",
            ),
            (
                Operation::Touch(touch(Some(7), Some(Condition::Revision(7)))),
                r"\x81\xa5Touch\x83\xa3key\xa1k\xa6ttl_ms\x07\xa9condition\x81\xa8Revision\x07",
            ),
            (Operation::DeletePrefix { prefix: key(), revision_max: None }, r"\x81\xacDeletePrefix\x81\xa6prefix\xa1k"),
            (
                Operation::DeletePrefix { prefix: key(), revision_max: Some(7) },
                r"\x81\xacDeletePrefix\x82\xa6prefix\xa1k\xacrevision_max\x07",
            ),
            (
                Operation::Txn(txn.into()),
                &[
                    r"\x81\xa3Txn\x83\xa7compare\x96",
                    r"\x83\xa3key\xa1k\xa8relation\xa1=\xa7operand\x81\xa6Exists\xc3",
                    r"\x83\xa3key\xa1k\xa8relation\xa2!=\xa7operand\x81\xa5Value\xc4\x01v",
                    r"\x83\xa3key\xa1k\xa8relation\xa1<\xa7operand\x81\xa8Revision\x01",
                    r"\x83\xa3key\xa1k\xa8relation\xa2<=\xa7operand\x81\xaeCreateRevision\x02",
                    r"\x83\xa3key\xa1k\xa8relation\xa1>\xa7operand\x81\xa7Version\x03",
                    r"\x83\xa3key\xa1k\xa8relation\xa2>=\xa7operand\x81\xa7Version\x04",
                    r"\xa7success\x92\x81\xa3Put\x82\xa3key\xa1k\xa5value\xc4\x01v\x81\xa3Get\xa1k",
                    r"\xa7failure\x92\x81\xa6Delete\x81\xa3key\xa1k\x81\xa5Touch\x81\xa3key\xa1k",
                ]
                .concat(),
            ),
            (Operation::Expire, r"\xa6Expire"),
            (
                Operation::SelfCheck { index: 7, hash: StateHash(1 << 64 | 2) },
                r"\x81\xa9SelfCheck\x82\xa5index\x07\xa4hash\x92\x01\x02",
            ),
            (Operation::RaiseLevel { level: Level(4) }, r"\x81\xaaRaiseLevel\x81\xa5level\x04"),
            (
                Operation::Access(Arc::new(AccessChange::Require { required: true })),
                r"\x81\xa6Access\x81\xa7Require\x81\xa8required\xc3",
            ),
            (
                Operation::Access(Arc::new(AccessChange::Revoke { name: key() })),
                r"\x81\xa6Access\x81\xa6Revoke\x81\xa4name\xa1k",
            ),
            (
                Operation::Access(Arc::new(AccessChange::Create(token(vec![], None)))),
                &format!(r"\x81\xa6Access\x81\xa6Create\x83\xa4name\xa1k\xa4role\xa5admin{hash}"),
            ),
            (
                Operation::Access(Arc::new(AccessChange::Create(token(vec![key()], Some(7))))),
                &format!(
                    r"\x81\xa6Access\x81\xa6Create\x85\xa4name\xa1k\xa4role\xa5admin\xa8prefixes\x91\xa1k\xa6ttl_ms\x07{hash}"
                ),
            ),
        ];
        let request = Some(Arc::new(RequestId { key: "request".into(), fingerprint: [1, 2] }));
        for (operation, expected) in rows {
            let write = Write { at_ms: 258, request: request.clone(), operation };
            let payload = Payload::Normal(Command::Write(write));
            let bytes = encoded(&PayloadRecord(payload.clone()));
            assert_eq!(PayloadRecord::decode(bytes.as_slice()).unwrap().0, payload);
            let text = bytes[PAYLOAD_HEADER_BYTES..].escape_ascii().to_string();
            let head = r"\x81\xa6Normal\x81\xa5Write\x83\xa5at_ms\xcd\x01\x02";
            let request = r"\xa7request\x82\xa3key\xa7request\xabfingerprint\x92\x01\x02\xa9operation";
            assert_eq!(text, format!("{head}{request}{expected}"));
        }
    }

    /// A length takes no memory before its bytes exist.
    ///
    /// Method: the header of the longest possible payload, followed by two bytes.
    #[test]
    fn memory_is_for_bytes_that_are_there() {
        let mut bytes = Vec::new();
        let error = read_part(&mut b"ab".as_slice(), LOG_PAYLOAD_BYTES_MAX, &mut bytes).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(bytes.capacity() < 1 << 20, "{} bytes were allocated", bytes.capacity());
        let length = (LOG_PAYLOAD_BYTES_MAX as u32).to_be_bytes();
        let record = [b"P".as_slice(), &length, &crc32fast::hash(&length).to_be_bytes(), b"ab"].concat();
        let error = PayloadRecord::decode(record.as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    /// No flipped bit makes a payload run past the end of the file, which raft-log would take for a torn write.
    #[test]
    fn damage_is_never_an_early_end() {
        let bytes = encoded(&PayloadRecord(put("k", b"value")));
        for position in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[position / 8] ^= 1 << (position % 8);
            if let Err(error) = PayloadRecord::decode(damaged.as_slice()) {
                assert_ne!(error.kind(), io::ErrorKind::UnexpectedEof, "bit {position}: {error}");
            }
        }
    }
}
