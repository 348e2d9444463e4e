//! A hash of the replicated state that is kept up to date with each change, at a
//! cost that does not depend on how much data there is.
//!
//! Each key with its record, and each remembered request with its result, has a
//! hash of its own; the sum of them (modulo 2^128) does not depend on their order.
//! What is replaced or removed is subtracted: the hash that the record or the request
//! keeps, except where its content lives on in what replaces it, as after a touch. When a
//! snapshot is written, all is worked out again, and memory which has changed underneath is
//! noticed. What a put or a delete has replaced by then is gone but for the history, whose
//! records are held against the hashes that they keep. A request that was forgotten by then
//! is gone.
//!
//! All of it is XXH3 with 128 bits, of these bytes, numbers little-endian:
//!
//! | of | bytes |
//! | --- | --- |
//! | key | revision 8, create revision 8, version 8, expiry 8, hash of the key 16, hash of the value 16 |
//! | request | hash of its key 16, fingerprint 16, kind of result 8, what there is in it 24: numbers, or for a transaction the hash of its answer |
//! | change | kind 8, position 8; of a put the hash of the key with its record 16, else revision 8, hash of the key 16 |
//! | state | revision 8, clock 8, keys: count 8, sum 16; requests: count 8, sum 16; history: oldest revision 8, count 8, first change 16, last change 16 |
//!
//! Caveats: of the history only its bounds are in it, since what is between them
//! can differ only if the keys did; the order of the requests is not. It finds
//! faults, and withstands nobody who looks for two states with the same hash.
//!
//! Nodes compare it and snapshots hold it, so it must stay the same: another way
//! to hash needs another format of the data directory.

use std::fmt;
use std::iter::Sum;
use std::ops::{AddAssign, SubAssign};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use super::history::{Change, ChangeKind};
use super::requests::Remembered;
use super::state_machine::Record;
use super::stored_results::StoredValue;
use crate::body::TxnDeleted;
use crate::operation::{Found, StepResult, TxnDone, WriteResult};

/// A hash, or a sum of hashes. As text it has 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "[u64; 2]", into = "[u64; 2]")]
pub struct StateHash(pub u128);

/// All that the hash of a state is made of.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub revision: u64,
    pub clock_ms: u64,
    pub keys: (usize, StateHash),
    pub requests: (usize, StateHash),
    pub oldest_revision: u64,
    pub changes: usize,
    pub first_change: Option<&'a Change>,
    pub last_change: Option<&'a Change>,
}

impl Parts<'_> {
    /// The hash of the state.
    pub fn hash(&self) -> StateHash {
        let [keys_0, keys_1] = self.keys.1.into();
        let [requests_0, requests_1] = self.requests.1.into();
        let [first_0, first_1] = self.first_change.map(of_change).unwrap_or_default().into();
        let [last_0, last_1] = self.last_change.map(of_change).unwrap_or_default().into();
        of_numbers([
            self.revision,
            self.clock_ms,
            self.keys.0 as u64,
            keys_0,
            keys_1,
            self.requests.0 as u64,
            requests_0,
            requests_1,
            self.oldest_revision,
            self.changes as u64,
            first_0,
            first_1,
            last_0,
            last_1,
        ])
    }
}

/// The hash of a key with its record. (Public so that `bench/` can tell what it costs.)
#[doc(hidden)]
#[inline]
pub fn of_record(key: &str, record: &Record) -> StateHash {
    let [key_0, key_1] = of_bytes(key.as_bytes());
    let [value_0, value_1] = of_bytes(record.value.as_bytes());
    let Record { revision, create_revision, version, expires_at_ms, .. } = *record;
    of_numbers([revision, create_revision, version, expires_at_ms, key_0, key_1, value_0, value_1])
}

/// The hash of a remembered request.
pub(super) fn of_request(key: &str, remembered: &Remembered) -> StateHash {
    let [key_0, key_1] = of_bytes(key.as_bytes());
    let [fingerprint_0, fingerprint_1] = remembered.fingerprint;
    let of_result =
        |kind, one, two, three| of_numbers([key_0, key_1, fingerprint_0, fingerprint_1, kind, one, two, three]);
    match &remembered.result {
        WriteResult::Put(put) => of_result(1, put.revision, put.version, 0),
        WriteResult::Touch(touch) => of_result(2, touch.revision, touch.version, plus_one(touch.expires_in_ms)),
        WriteResult::Delete { deleted, revision, unfinished } => {
            of_result(3, *deleted, *revision, plus_one(*unfinished))
        }
        WriteResult::Txn(done) => {
            let [done_0, done_1] = of_txn(done).into();
            of_result(4, done_0, done_1, 0)
        }
        WriteResult::ConditionFailed { revision } => of_result(5, plus_one(*revision), 0, 0),
        WriteResult::NoSuchKey => of_result(6, 0, 0, 0),
        WriteResult::AnswerTooLarge { bytes } => of_result(7, *bytes, 0, 0),
        WriteResult::RequestIdReused => of_result(8, 0, 0, 0),
    }
}

/// Each result is hashed with all before it, since their order counts.
fn of_txn(done: &TxnDone) -> StateHash {
    let TxnDone { succeeded, revision, results } = done;
    let mut hash = of_numbers([u64::from(*succeeded), *revision, results.len() as u64]);
    for result in results {
        let [before_0, before_1] = hash.into();
        let [result_0, result_1] = of_step(result).into();
        hash = of_numbers([before_0, before_1, result_0, result_1]);
    }
    hash
}

fn of_step(result: &StepResult) -> StateHash {
    match result {
        StepResult::Put(put) => of_numbers([1, put.revision, put.version]),
        StepResult::Delete(TxnDeleted { deleted }) => of_numbers([2, *deleted]),
        StepResult::Get(None) => of_numbers([3]),
        StepResult::Get(Some(found)) => {
            let Found { key, value, revision, create_revision, version, expires_in_ms } = found;
            let [key_0, key_1] = of_bytes(key.as_bytes());
            let value = StoredValue::of(value);
            let [value_0, value_1] = StateHash(value.hash()).into();
            let (encoded, expires) = (u64::from(value.is_base64()), plus_one(*expires_in_ms));
            let numbers = [*revision, *create_revision, *version, expires];
            let [numbers_0, numbers_1] = of_numbers(numbers).into();
            of_numbers([4, key_0, key_1, value_0, value_1, encoded, numbers_0, numbers_1])
        }
        StepResult::Touch(None) => of_numbers([5]),
        StepResult::Touch(Some(touch)) => of_numbers([6, touch.revision, touch.version, plus_one(touch.expires_in_ms)]),
    }
}

/// An optional number, apart from all numbers that are there.
fn plus_one(number: Option<u64>) -> u64 {
    number.map_or(0, |number| number.wrapping_add(1))
}

fn of_change(change: &Change) -> StateHash {
    let position = u64::from(change.position);
    let removed = |kind| {
        let [key_0, key_1] = of_bytes(change.key.as_bytes());
        of_numbers([kind, position, change.revision, key_0, key_1])
    };
    match &change.kind {
        ChangeKind::Put(record) => {
            let [record_0, record_1] = of_record(&change.key, record).into();
            of_numbers([1, position, record_0, record_1])
        }
        ChangeKind::Delete => removed(2),
        ChangeKind::Expire => removed(3),
    }
}

#[inline]
fn of_bytes(bytes: &[u8]) -> [u64; 2] {
    StateHash(xxh3_128(bytes)).into()
}

#[inline]
fn of_numbers<const N: usize>(numbers: [u64; N]) -> StateHash {
    StateHash(xxh3_128(numbers.map(u64::to_le_bytes).as_flattened()))
}

impl From<StateHash> for [u64; 2] {
    #[inline]
    fn from(StateHash(hash): StateHash) -> Self {
        [(hash >> 64) as u64, hash as u64]
    }
}

impl From<[u64; 2]> for StateHash {
    fn from([high, low]: [u64; 2]) -> Self {
        StateHash(u128::from(high) << 64 | u128::from(low))
    }
}

impl AddAssign for StateHash {
    #[inline]
    fn add_assign(&mut self, other: Self) {
        self.0 = self.0.wrapping_add(other.0);
    }
}

impl SubAssign for StateHash {
    #[inline]
    fn sub_assign(&mut self, other: Self) {
        self.0 = self.0.wrapping_sub(other.0);
    }
}

impl Sum for StateHash {
    fn sum<I: Iterator<Item = Self>>(hashes: I) -> Self {
        let mut sum = StateHash::default();
        hashes.for_each(|hash| sum += hash);
        sum
    }
}

impl fmt::Display for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::body::{PutAnswer, TouchAnswer};

    /// A record, a change and every result have the hash that they had in all
    /// versions before: nodes compare them, and snapshots hold the sums.
    #[test]
    fn hashes_are_fixed() {
        let record = Record::new("key", "value".into(), [7, 5, 2], 0);
        let of_key = of_record("key", &record);
        let change = |kind| of_change(&Change { revision: 7, position: 1, key: "key".into(), kind });
        let changes =
            [change(ChangeKind::Put(Arc::new(record))), change(ChangeKind::Delete), change(ChangeKind::Expire)];
        let hashes: Vec<StateHash> = results().into_iter().map(of_result).collect();
        for (number, hash) in hashes.iter().enumerate() {
            assert!(!hashes[..number].contains(hash), "result {number} has the hash of another");
        }
        let sums = [of_key, changes.into_iter().sum(), hashes.into_iter().sum()].map(|hash| hash.to_string());
        assert_eq!(
            sums,
            [
                "59e907a329ae93b194afb55aaeedaceb",
                "088932435f45c05ff7696b9c98e8b124",
                "c55a2b8ebf8fb2af4c513d9f39dd6eaf"
            ]
        );
    }

    fn of_result(result: WriteResult) -> StateHash {
        of_request("request", &Remembered::new("request", [1, 2], result))
    }

    fn results() -> Vec<WriteResult> {
        let (put, touch) =
            (PutAnswer { revision: 1, version: 2 }, TouchAnswer { revision: 1, version: 2, expires_in_ms: None });
        let renewed = TouchAnswer { expires_in_ms: Some(0), ..touch };
        let delete = |deleted, unfinished| WriteResult::Delete { deleted, revision: 1, unfinished };
        let found = Found {
            key: "key".into(),
            value: "/w==".into(),
            revision: 1,
            create_revision: 1,
            version: 1,
            expires_in_ms: None,
        };
        let txn = |results: &[StepResult]| {
            WriteResult::Txn(Arc::new(TxnDone { succeeded: true, revision: 1, results: results.to_vec() }))
        };
        let get = |found: Found| txn(&[StepResult::Get(Some(found))]);
        let deleted = |deleted| StepResult::Delete(TxnDeleted { deleted });
        vec![
            WriteResult::Put(put),
            WriteResult::Put(PutAnswer { revision: 2, version: 1 }),
            WriteResult::Touch(touch),
            WriteResult::Touch(renewed),
            delete(2, None),
            delete(2, Some(0)),
            delete(2, Some(1)),
            WriteResult::ConditionFailed { revision: None },
            WriteResult::ConditionFailed { revision: Some(0) },
            WriteResult::NoSuchKey,
            WriteResult::AnswerTooLarge { bytes: 1 },
            WriteResult::RequestIdReused,
            txn(&[]),
            WriteResult::Txn(Arc::new(TxnDone { succeeded: false, revision: 1, results: Vec::new() })),
            txn(&[StepResult::Put(put)]),
            txn(&[deleted(1)]),
            txn(&[deleted(0), deleted(1)]),
            txn(&[deleted(1), deleted(0)]),
            txn(&[StepResult::Get(None)]),
            txn(&[StepResult::Touch(None)]),
            txn(&[StepResult::Touch(Some(touch))]),
            txn(&[StepResult::Touch(Some(renewed))]),
            get(found.clone()),
            get(Found { key: "other".into(), ..found.clone() }),
            get(Found { value: "other".into(), ..found.clone() }),
            get(Found { value: "".into(), ..found.clone() }),
            get(Found { value: (&[0xff_u8]).into(), ..found.clone() }),
            get(Found { revision: 2, ..found.clone() }),
            get(Found { create_revision: 2, ..found.clone() }),
            get(Found { version: 2, ..found.clone() }),
            get(Found { expires_in_ms: Some(0), ..found }),
        ]
    }
}
