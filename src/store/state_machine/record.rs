//! What the state has of each key.

use std::sync::Arc;

use imbl::OrdMap;

use crate::hash::StateHash;
use crate::operation::{Key, Value};

/// The keys, and the record of each.
pub type Data = OrdMap<Key, Arc<Record>>;

/// A value, and how often and when its key changed.
///
/// Invariant, unless memory changed underneath: `hash` is [`Record::computed_hash`] with the record's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The value as the last put set it.
    pub value: Value,
    /// The revision of the last change.
    pub revision: u64,
    /// The revision at which the key was created.
    pub create_revision: u64,
    /// Number of puts since the key was created: 1 for a new key.
    pub version: u64,
    /// When the key expires, in milliseconds of log time; 0 for never.
    pub expires_at_ms: u64,
    hash: StateHash,
}

/// The parts of a [`Record`], without its hash.
#[derive(Clone, Debug)]
pub struct RecordParts {
    /// See [`Record::value`].
    pub value: Value,
    /// See [`Record::revision`].
    pub revision: u64,
    /// See [`Record::create_revision`].
    pub create_revision: u64,
    /// See [`Record::version`].
    pub version: u64,
    /// See [`Record::expires_at_ms`].
    pub expires_at_ms: u64,
}

impl Record {
    /// The record of `key`.
    pub fn new(key: &str, parts: RecordParts) -> Self {
        let RecordParts { value, revision, create_revision, version, expires_at_ms } = parts;
        let mut record =
            Record { value, revision, create_revision, version, expires_at_ms, hash: StateHash::default() };
        record.hash = record.computed_hash(key);
        record
    }

    /// The hash of the record with its key, as it was when the record was created or last got another expiry time.
    ///
    /// It is kept so that replacing the record does not read its value again, which is seldom in the processor's
    /// cache: that would cost more than all the rest of a put.
    pub fn hash(&self) -> StateHash {
        self.hash
    }

    /// The hash of the record with its key, computed from what is in memory now. It differs from [`Record::hash`]
    /// only if memory changed underneath.
    #[inline]
    pub fn computed_hash(&self, key: &str) -> StateHash {
        self.borrowed().hash(key)
    }

    /// The record without its hash.
    #[inline]
    pub fn borrowed(&self) -> RecordRef<'_> {
        let Record { ref value, revision, create_revision, version, expires_at_ms, .. } = *self;
        RecordRef { value: value.as_bytes(), revision, create_revision, version, expires_at_ms }
    }

    /// Sets another expiry time, and updates `keys_hash`, the sum of the hashes of all records.
    ///
    /// The hash that is subtracted is computed from the record in memory, and not the one that it keeps: if memory
    /// changed underneath, the sum differs from then on.
    pub(super) fn set_expiry(self: &mut Arc<Self>, key: &str, expires_at_ms: u64, keys_hash: &mut StateHash) {
        *keys_hash -= self.computed_hash(key);
        let record = Arc::make_mut(self);
        record.expires_at_ms = expires_at_ms;
        record.hash = record.computed_hash(key);
        *keys_hash += record.hash;
    }

    /// Milliseconds until the key expires; `None` if it never does, 0 if it is due.
    pub fn expires_in_ms(&self, clock_ms: u64) -> Option<u64> {
        self.borrowed().expires_in_ms(clock_ms)
    }
}

/// A [`Record`] whose value is elsewhere, such as in a file that is being read, and that does not keep its hash.
#[derive(Clone, Copy, Debug)]
pub struct RecordRef<'a> {
    /// The bytes of [`Record::value`].
    pub value: &'a [u8],
    /// See [`Record::revision`].
    pub revision: u64,
    /// See [`Record::create_revision`].
    pub create_revision: u64,
    /// See [`Record::version`].
    pub version: u64,
    /// See [`Record::expires_at_ms`].
    pub expires_at_ms: u64,
}

impl RecordRef<'_> {
    /// The hash of the record with its key.
    ///
    /// **In the hash: frozen.** It is of these numbers: revision, create revision, version, expiry time, the two
    /// halves of the key's hash, the two halves of the value's hash.
    #[inline]
    pub fn hash(&self, key: &str) -> StateHash {
        let [key_0, key_1] = StateHash::of_bytes(key.as_bytes()).halves();
        let [value_0, value_1] = StateHash::of_bytes(self.value).halves();
        let RecordRef { revision, create_revision, version, expires_at_ms, .. } = *self;
        StateHash::of_numbers([revision, create_revision, version, expires_at_ms, key_0, key_1, value_0, value_1])
    }

    /// See [`Record::expires_in_ms`].
    pub fn expires_in_ms(&self, clock_ms: u64) -> Option<u64> {
        (self.expires_at_ms > 0).then(|| self.expires_at_ms.saturating_sub(clock_ms))
    }

    /// Copies the value. `hash` must be the [`hash`](Self::hash) with the record's key.
    pub(in crate::store) fn to_owned(self, hash: StateHash) -> Record {
        let RecordRef { value, revision, create_revision, version, expires_at_ms } = self;
        Record { value: Value::from(value), revision, create_revision, version, expires_at_ms, hash }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The record of a key that was put once, at this revision, and does not expire.
    pub(crate) fn new_record(key: &str, value: Value, revision: u64) -> Record {
        let parts = RecordParts { value, revision, create_revision: revision, version: 1, expires_at_ms: 0 };
        Record::new(key, parts)
    }

    /// A record has the hash that it had in all versions before: nodes compare sums of them, and snapshots hold those.
    #[test]
    fn hash_is_fixed() {
        let parts =
            RecordParts { value: "value".into(), revision: 7, create_revision: 5, version: 2, expires_at_ms: 0 };
        assert_eq!(Record::new("key", parts).hash().to_string(), "59e907a329ae93b194afb55aaeedaceb");
    }
}
