//! The record of a key in a snapshot, encoded and decoded without a derived implementation.
//!
//! Nearly all records of a large snapshot are keys. Copying and comparing their constant field names as a whole takes a
//! fraction of the time that a general encoder and decoder take. Decoding copies nothing.
//!
//! **On disk: frozen.** MessagePack, in this order:
//!
//! | bytes | field |
//! | --- | --- |
//! | `81 a3 Key 85`, or `81 a3 Key 86` if the key expires | |
//! | `a3 key`, a string | the key |
//! | `a5 value`, binary | the value |
//! | `a8 revision`, a number | the revision of its last change |
//! | `af create_revision`, a number | the revision at which it was created |
//! | `a7 version`, a number | the number of puts since then |
//! | `ad expires_at_ms`, a number; missing unless the key expires | when it expires |
//!
//! Strings, binaries and numbers have the shortest form. Longer forms of them are decoded, too. Any other record is left
//! to the general decoder.

use crate::store::state_machine::record::RecordRef;

const START: &[u8] = b"\x81\xa3Key";
const FIELDS: u8 = 0x85;
const FIELDS_WITH_EXPIRY: u8 = 0x86;
const KEY: &[u8] = b"\xa3key";
const VALUE: &[u8] = b"\xa5value";
const REVISION: &[u8] = b"\xa8revision";
const CREATE_REVISION: &[u8] = b"\xafcreate_revision";
const VERSION: &[u8] = b"\xa7version";
const EXPIRES_AT_MS: &[u8] = b"\xadexpires_at_ms";

/// Receives the parts of an encoded record.
pub trait Encoded {
    /// Adds these bytes.
    fn add(&mut self, bytes: &[u8]);
}

impl Encoded for Vec<u8> {
    #[inline]
    fn add(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Encodes the record of `key`, whose value must be shorter than 4 GiB.
#[inline]
pub fn encode(encoded: &mut impl Encoded, key: &str, record: RecordRef<'_>) {
    let RecordRef { value, revision, create_revision, version, expires_at_ms } = record;
    let expires = expires_at_ms > 0;
    encoded.add(START);
    encoded.add(&[if expires { FIELDS_WITH_EXPIRY } else { FIELDS }]);
    encoded.add(KEY);
    match key.len() {
        length @ 0..32 => encoded.add(&[0xa0 | length as u8]),
        length => add_length(encoded, 0xd9, length),
    }
    encoded.add(key.as_bytes());
    encoded.add(VALUE);
    add_length(encoded, 0xc4, value.len());
    encoded.add(value);
    let numbers = [(REVISION, revision), (CREATE_REVISION, create_revision), (VERSION, version)];
    for (name, number) in numbers {
        encoded.add(name);
        add_number(encoded, number);
    }
    if expires {
        encoded.add(EXPIRES_AT_MS);
        add_number(encoded, expires_at_ms);
    }
}

/// A length of 8, 16 or 32 bits. The markers of these three follow one another.
#[inline]
fn add_length(encoded: &mut impl Encoded, marker: u8, length: usize) {
    match length {
        0..=0xff => encoded.add(&[marker, length as u8]),
        0x100..=0xffff => {
            let [high, low] = (length as u16).to_be_bytes();
            encoded.add(&[marker + 1, high, low]);
        }
        _ => {
            encoded.add(&[marker + 2]);
            encoded.add(&(length as u32).to_be_bytes());
        }
    }
}

#[inline]
fn add_number(encoded: &mut impl Encoded, number: u64) {
    match number {
        0..=0x7f => encoded.add(&[number as u8]),
        0x80..=0xff => encoded.add(&[0xcc, number as u8]),
        0x100..=0xffff => {
            let [high, low] = (number as u16).to_be_bytes();
            encoded.add(&[0xcd, high, low]);
        }
        0x1_0000..=0xffff_ffff => {
            encoded.add(&[0xce]);
            encoded.add(&(number as u32).to_be_bytes());
        }
        _ => {
            encoded.add(&[0xcf]);
            encoded.add(&number.to_be_bytes());
        }
    }
}

/// Decodes the record of a key at the start of `bytes`, and advances `bytes` past it. Returns `None`, without advancing,
/// if the general decoder must decode it.
#[inline]
pub fn decode<'a>(bytes: &mut &'a [u8]) -> Option<(&'a str, RecordRef<'a>)> {
    let mut rest = Rest(bytes);
    rest.expect(START)?;
    let expires = match rest.byte()? {
        FIELDS => false,
        FIELDS_WITH_EXPIRY => true,
        _ => return None,
    };
    rest.expect(KEY)?;
    let key_bytes = match rest.byte()? {
        head @ 0xa0..0xc0 => usize::from(head & 0x1f),
        marker => rest.length(marker.checked_sub(0xd9)?)?,
    };
    let key = std::str::from_utf8(rest.take(key_bytes)?).ok()?;
    rest.expect(VALUE)?;
    let marker = rest.byte()?;
    let value_bytes = rest.length(marker.checked_sub(0xc4)?)?;
    let value = rest.take(value_bytes)?;
    let revision = rest.number(REVISION)?;
    let create_revision = rest.number(CREATE_REVISION)?;
    let version = rest.number(VERSION)?;
    let expires_at_ms = if expires { rest.number(EXPIRES_AT_MS)? } else { 0 };
    *bytes = rest.0;
    Some((key, RecordRef { value, revision, create_revision, version, expires_at_ms }))
}

struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    #[inline]
    fn expect(&mut self, expected: &[u8]) -> Option<()> {
        self.0 = self.0.strip_prefix(expected)?;
        Some(())
    }

    #[inline]
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    #[inline]
    fn byte(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    /// A length; `size` is 0 for one of 8 bits, 1 for 16, and 2 for 32.
    #[inline]
    fn length(&mut self, size: u8) -> Option<usize> {
        match size {
            0 => self.byte().map(usize::from),
            1 => self.array().map(|bytes| usize::from(u16::from_be_bytes(bytes))),
            2 => self.array().map(|bytes| u32::from_be_bytes(bytes) as usize),
            _ => None,
        }
    }

    #[inline]
    fn number(&mut self, name: &[u8]) -> Option<u64> {
        self.expect(name)?;
        match self.byte()? {
            number @ 0..=0x7f => Some(u64::from(number)),
            0xcc => self.byte().map(u64::from),
            0xcd => self.array().map(|bytes| u64::from(u16::from_be_bytes(bytes))),
            0xce => self.array().map(|bytes| u64::from(u32::from_be_bytes(bytes))),
            0xcf => self.array().map(u64::from_be_bytes),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::operation::{Key, Value};

    /// The record for the general encoder and decoder.
    #[derive(Serialize, Deserialize)]
    enum General {
        Key {
            key: Key,
            value: Value,
            revision: u64,
            create_revision: u64,
            version: u64,
            #[serde(default, skip_serializing_if = "is_zero")]
            expires_at_ms: u64,
        },
    }

    fn is_zero(number: &u64) -> bool {
        *number == 0
    }

    type Parts = (String, Vec<u8>, [u64; 4]);

    fn record_of((_, value, [revision, create_revision, version, expires_at_ms]): &Parts) -> RecordRef<'_> {
        let [revision, create_revision, version, expires_at_ms] =
            [*revision, *create_revision, *version, *expires_at_ms];
        RecordRef { value, revision, create_revision, version, expires_at_ms }
    }

    fn encoded(parts: &Parts) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(&mut bytes, &parts.0, record_of(parts));
        bytes
    }

    fn generally_decoded(bytes: &mut &[u8]) -> Option<Parts> {
        let General::Key { key, value, revision, create_revision, version, expires_at_ms } =
            rmp_serde::from_read(bytes).ok()?;
        let numbers = [revision, create_revision, version, expires_at_ms];
        Some((key.to_string(), value.as_bytes().to_vec(), numbers))
    }

    fn decoded(bytes: &mut &[u8]) -> Option<Parts> {
        let (key, record) = decode(bytes)?;
        let RecordRef { value, revision, create_revision, version, expires_at_ms } = record;
        Some((key.to_owned(), value.to_vec(), [revision, create_revision, version, expires_at_ms]))
    }

    /// Keys, values and numbers of all lengths at which their form changes.
    fn samples() -> Vec<Parts> {
        let numbers = [0, 1, 0x7f, 0x80, 0xff, 0x100, 0xffff, 0x1_0000, 0xffff_ffff, 0x1_0000_0000, u64::MAX];
        let mut samples = Vec::new();
        for key_bytes in [0, 1, 31, 32, 255, 256, 0xffff, 0x1_0000] {
            samples.push(("k".repeat(key_bytes), b"v".to_vec(), [1, 1, 1, 0]));
        }
        for value_bytes in [0, 1, 255, 256, 0xffff, 0x1_0000] {
            samples.push(("kéy".to_owned(), vec![0xff; value_bytes], [1, 1, 1, 0]));
        }
        for (position, number) in (0..4).flat_map(|position| numbers.map(|number| (position, number))) {
            let mut parts = ("key".to_owned(), b"value".to_vec(), [3, 2, 1, 0]);
            parts.2[position] = number;
            samples.push(parts);
        }
        samples
    }

    /// The bytes on disk are these.
    #[test]
    fn bytes_are_fixed() {
        let fixed =
            b"\x81\xa3Key\x86\xa3key\xa1k\xa5value\xc4\x01\xff\xa8revision\x07\xafcreate_revision\x02\xa7version\x03\
            \xadexpires_at_ms\x09";
        assert_eq!(encoded(&("k".to_owned(), vec![0xff], [7, 2, 3, 9])), fixed);
    }

    /// A record has the bytes that the general encoder makes of it, and is decoded as what it was.
    #[test]
    fn encoding_is_that_of_the_general_encoder() {
        for parts in samples() {
            let (key, value, [revision, create_revision, version, expires_at_ms]) = parts.clone();
            let (key, value) = (Key::from(key), Value::from(&value));
            let general = General::Key { key, value, revision, create_revision, version, expires_at_ms };
            let bytes = encoded(&parts);
            assert_eq!(bytes, rmp_serde::to_vec_named(&general).unwrap());
            let followed = [bytes.as_slice(), b"rest"].concat();
            let mut rest = followed.as_slice();
            assert_eq!((decoded(&mut rest), rest), (Some(parts), b"rest".as_slice()));
        }
    }

    /// What is decoded, the general decoder decodes to the same. Bytes that are not decoded remain for it.
    ///
    /// Method: change each byte of each short sample to some others, and cut it off at each length.
    #[test]
    fn decoding_is_that_of_the_general_decoder() {
        let (mut same, mut left) = (0, 0);
        let mut check = |bytes: &[u8]| {
            let mut rest = bytes;
            match decoded(&mut rest) {
                None => {
                    assert_eq!(rest, bytes);
                    left += 1;
                }
                found => {
                    let mut general_rest = bytes;
                    assert_eq!((generally_decoded(&mut general_rest), general_rest), (found, rest), "{bytes:02x?}");
                    same += 1;
                }
            }
        };
        for bytes in samples().iter().map(encoded).filter(|bytes| bytes.len() < 400) {
            (0..bytes.len()).for_each(|length| check(&bytes[..length]));
            let followed = [bytes.as_slice(), &[0; 20]].concat();
            for position in 0..bytes.len() {
                let mut changed = followed.clone();
                for other in [0, 1, 0x7f, 0x80, 0x85, 0x86, 0xa1, 0xc0, 0xc4, 0xc5, 0xcc, 0xcd, 0xd0, 0xd9, 0xff] {
                    changed[position] = other;
                    check(&changed);
                }
            }
        }
        assert!(same > 1000 && left > 1000, "{same} were decoded, {left} were not");
    }
}
