//! The last changes, so that a watch can be resumed on any node and after any restart.
//!
//! The history is a part of the replicated state: which changes it keeps depends
//! only on the changes themselves, so all nodes keep the same.

use std::sync::Arc;

use imbl::Vector;

use super::record::Record;
use crate::config::{HISTORY_BYTES_MAX, HISTORY_CHANGES_MAX};
use crate::hash::StateHash;
use crate::operation::Key;

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The revision of the change. Several keys may change at one revision.
    pub revision: u64,
    /// The number of the change within its revision, from 0.
    pub position: u32,
    /// The key that changed.
    pub key: Key,
    /// How it changed.
    pub kind: ChangeKind,
}

/// How a key changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// A write set it; this is its record afterwards.
    Put(Arc<Record>),
    /// A write deleted it.
    Delete,
    /// It expired.
    Expire,
}

/// The last changes, oldest first.
///
/// Invariants:
/// * revisions never decrease, and the positions of each revision count from 0;
/// * of a revision, all changes are kept or none;
/// * `bytes` is the sum of the changes' bytes;
/// * at most [`HISTORY_CHANGES_MAX`] changes of at most [`HISTORY_BYTES_MAX`] bytes are kept, unless all of them have
///   the newest revision;
/// * no change has a revision below `oldest`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    changes: Vector<Change>,
    bytes: usize,
    /// All changes from this revision on are kept.
    oldest: u64,
}

impl Change {
    /// The part of [`Change::bytes`] that does not depend on the key and the value.
    pub(crate) const FIXED_BYTES: usize = 128;

    /// Approximate bytes of the change in memory, and as an event.
    ///
    /// **Frozen**: which changes all nodes keep depends on it.
    pub(crate) fn bytes(&self) -> usize {
        let value_bytes = match &self.kind {
            ChangeKind::Put(record) => record.value.as_bytes().len(),
            ChangeKind::Delete | ChangeKind::Expire => 0,
        };
        Self::FIXED_BYTES + self.key.len() + value_bytes
    }

    /// The hash of the change.
    ///
    /// **In the hash: frozen.** It is of these numbers: kind (1 put, 2 delete, 3 expiry), position; of a put the two
    /// halves of the hash of the key with its record, otherwise the revision and the two halves of the key's hash.
    pub(crate) fn hash(&self) -> StateHash {
        let position = u64::from(self.position);
        let removed = |kind| {
            let [key_0, key_1] = StateHash::of_bytes(self.key.as_bytes()).halves();
            StateHash::of_numbers([kind, position, self.revision, key_0, key_1])
        };
        match &self.kind {
            ChangeKind::Put(record) => {
                let [record_0, record_1] = record.computed_hash(&self.key).halves();
                StateHash::of_numbers([1, position, record_0, record_1])
            }
            ChangeKind::Delete => removed(2),
            ChangeKind::Expire => removed(3),
        }
    }
}

impl History {
    /// An empty history whose next change has at least this revision.
    pub(in crate::store) fn starting_at(next_revision: u64) -> Self {
        History { oldest: next_revision, ..History::default() }
    }

    /// Approximate bytes of the changes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The revision from which on all changes are kept.
    pub fn oldest(&self) -> u64 {
        self.oldest
    }

    /// The revision of the last change; `None` if there is none.
    pub(in crate::store) fn newest(&self) -> Option<u64> {
        self.changes.last().map(|change| change.revision)
    }

    /// Adds a change, and removes the oldest revisions if there are too many changes or bytes.
    pub(in crate::store) fn push(&mut self, revision: u64, key: Key, kind: ChangeKind) {
        let newest = self.newest().unwrap_or(self.oldest);
        assert!(newest <= revision, "a change of revision {revision} follows one of {newest}");
        let position = match self.changes.last() {
            Some(last) if last.revision == revision => last.position + 1,
            _ => 0,
        };
        let change = Change { revision, position, key, kind };
        self.bytes += change.bytes();
        self.changes.push_back(change);
        while self.changes.len() > HISTORY_CHANGES_MAX || self.bytes > HISTORY_BYTES_MAX {
            match self.changes.front() {
                Some(front) if front.revision < revision => self.forget(front.revision),
                _ => break,
            }
        }
        debug_assert!(self.changes.front().is_some_and(|front| front.position == 0 && front.revision >= self.oldest));
    }

    fn forget(&mut self, revision: u64) {
        while self.changes.front().is_some_and(|front| front.revision == revision) {
            self.bytes -= self.changes.pop_front().map_or(0, |change| change.bytes());
        }
        self.oldest = revision + 1;
    }

    /// All changes, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Change> + ExactSizeIterator {
        self.changes.iter()
    }

    /// The changes of `revision` from `position` on, and all later ones, oldest first.
    pub fn since(&self, revision: u64, position: u32) -> impl Iterator<Item = &Change> {
        let found =
            self.changes.binary_search_by(|change| (change.revision, change.position).cmp(&(revision, position)));
        let start = found.unwrap_or_else(|start| start);
        self.changes.focus().narrow(start..).into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::Value;
    use crate::store::state_machine::record::RecordParts;
    use crate::store::state_machine::record::tests::new_record;

    fn put_of(value: &Value) -> ChangeKind {
        ChangeKind::Put(Arc::new(new_record("key", value.clone(), 1)))
    }

    /// Asserts the invariants. `pushed` is the revision of each push.
    fn check(history: &History, pushed: &[u64]) {
        let kept: Vec<u64> = history.iter().map(|change| change.revision).collect();
        assert_eq!(kept, pushed[pushed.len() - kept.len()..], "the last changes are kept");
        if let Some((forgotten, _)) = pushed.split_at(pushed.len() - kept.len()).0.split_last() {
            assert_eq!(history.oldest(), forgotten + 1, "the oldest is the one after what was forgotten");
            assert_ne!(kept.first(), Some(forgotten), "a revision is kept in part");
        }
        assert_eq!(history.bytes, history.iter().map(Change::bytes).sum::<usize>(), "the count of bytes has drifted");
        let newest_alone = kept.first() == kept.last();
        let within = history.changes.len() <= HISTORY_CHANGES_MAX && history.bytes <= HISTORY_BYTES_MAX;
        assert!(within || newest_alone, "{} changes of {} bytes", history.changes.len(), history.bytes);
        let mut loaded = History::starting_at(history.oldest());
        for Change { revision, key, kind, .. } in history.iter() {
            loaded.push(*revision, key.clone(), kind.clone());
        }
        assert!(loaded == *history, "a history that is loaded is another");
    }

    /// The history keeps the newest revisions, whole and within its bounds, knows from which revision on it is
    /// complete, and is the same after it is loaded.
    ///
    /// Method: revisions of 1 to 5 changes, of values of up to 9 MB (which share their memory), far past the bound of
    /// bytes; the invariants are checked after each change.
    #[test]
    fn bound_of_bytes() {
        let values: Vec<Value> =
            [0, 1000, 1 << 20, 9_000_000].iter().map(|bytes| Value::from(&vec![b'v'; *bytes])).collect();
        let mut history = History::default();
        let mut pushed = Vec::new();
        for step in 0..300_u64 {
            let number = step.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
            for change in 0..1 + number % 5 {
                let kind = match (number >> 8).wrapping_add(change) % 6 {
                    0 => ChangeKind::Delete,
                    1 => ChangeKind::Expire,
                    size => put_of(&values[size as usize - 2]),
                };
                history.push(step * 2 + 1, format!("key {number}").into(), kind);
                pushed.push(step * 2 + 1);
                check(&history, &pushed);
            }
        }
        assert!(history.oldest() > 300, "almost nothing was removed");
    }

    /// A newest revision that exceeds the bound by itself is kept whole, and alone.
    ///
    /// Method: 10 changes of 9 MB each at one revision, between others.
    #[test]
    fn newest_revision_is_whole() {
        let (large, small) = (Value::from(&vec![0; 9_000_000]), Value::from(""));
        let mut history = History::default();
        let mut pushed = Vec::new();
        for revision in [1, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3] {
            history.push(revision, "key".into(), put_of(if revision == 3 { &large } else { &small }));
            pushed.push(revision);
            check(&history, &pushed);
        }
        assert_eq!((history.oldest(), history.iter().len()), (3, 10));
        assert!(history.bytes > HISTORY_BYTES_MAX);
        history.push(4, "key".into(), ChangeKind::Delete);
        pushed.push(4);
        check(&history, &pushed);
        assert_eq!((history.oldest(), history.iter().len()), (4, 1));
    }

    /// The number of changes stays within its bound, and whole revisions are removed.
    ///
    /// Method: revisions of 3 changes, past the bound by 100.
    #[test]
    fn bound_of_changes() {
        let mut history = History::default();
        let mut pushed = Vec::new();
        for number in 0..HISTORY_CHANGES_MAX as u64 + 300 {
            history.push(1 + number / 3, "key".into(), ChangeKind::Delete);
            pushed.push(1 + number / 3);
            if number.is_multiple_of(20_000) || number > HISTORY_CHANGES_MAX as u64 + 296 {
                check(&history, &pushed);
            }
        }
        assert!(history.iter().len() > HISTORY_CHANGES_MAX - 3);
    }

    /// Reading from a place returns all changes from there on.
    ///
    /// Method: revisions with gaps between them and up to 3 changes each; from every place, including places between
    /// changes and after the last one.
    #[test]
    fn since() {
        let mut history = History::starting_at(4);
        for revision in [4, 6, 6, 6, 7, 9, 9] {
            history.push(revision, "key".into(), ChangeKind::Delete);
        }
        let places: Vec<(u64, u32)> = history.iter().map(|change| (change.revision, change.position)).collect();
        assert_eq!(places, [(4, 0), (6, 0), (6, 1), (6, 2), (7, 0), (9, 0), (9, 1)]);
        for revision in (0..12).chain([u64::MAX]) {
            for position in [0, 1, 2, 3, u32::MAX] {
                let found: Vec<_> = history.since(revision, position).map(|it| (it.revision, it.position)).collect();
                let wanted: Vec<_> = places.iter().copied().filter(|place| *place >= (revision, position)).collect();
                assert_eq!(found, wanted, "since {revision}.{position}");
            }
        }
    }

    /// Changes have the hashes that they had in all versions before: nodes compare them.
    #[test]
    fn hashes_are_fixed() {
        let parts =
            RecordParts { value: "value".into(), revision: 7, create_revision: 5, version: 2, expires_at_ms: 0 };
        let record = Arc::new(Record::new("key", parts));
        let kinds = [ChangeKind::Put(record), ChangeKind::Delete, ChangeKind::Expire];
        let hash_of = |kind| Change { revision: 7, position: 1, key: "key".into(), kind }.hash();
        let sum: StateHash = kinds.into_iter().map(hash_of).sum();
        assert_eq!(sum.to_string(), "088932435f45c05ff7696b9c98e8b124");
    }
}
