//! The last changes, so that a watch can be resumed, on any node and after any restart.
//!
//! It is a part of the replicated state: what is kept depends on nothing but the
//! changes themselves, so all nodes keep the same.

use std::sync::Arc;

use imbl::Vector;

use super::state_machine::Record;
use crate::config::{HISTORY_BYTES_MAX, HISTORY_CHANGES_MAX};

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The revision at which it was made. Several keys may change at one.
    pub revision: u64,
    /// Which change of its revision this is, from 0.
    pub position: u32,
    /// The key.
    pub key: Arc<str>,
    /// What became of it.
    pub kind: ChangeKind,
}

/// What became of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It was set.
    Put(Arc<Record>),
    /// It was deleted.
    Delete,
    /// Its time was over.
    Expire,
}

/// The last changes, oldest first.
///
/// Invariants: revisions never fall; of a revision all changes are kept or none;
/// there are at most [`HISTORY_CHANGES_MAX`] of them, of at most
/// [`HISTORY_BYTES_MAX`], except that the newest revision is always whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    changes: Vector<Change>,
    bytes: usize,
    /// All changes of this revision and of those after it are kept.
    oldest: u64,
}

impl Change {
    /// About how much memory it takes, in bytes.
    fn bytes(&self) -> usize {
        const CHANGE_BYTES: usize = 128;
        let value_bytes = match &self.kind {
            ChangeKind::Put(record) => record.value.as_bytes().len(),
            ChangeKind::Delete | ChangeKind::Expire => 0,
        };
        CHANGE_BYTES + self.key.len() + value_bytes
    }
}

impl History {
    /// A history in which the next change is of `next_revision`.
    pub(super) fn starting_at(next_revision: u64) -> Self {
        History { oldest: next_revision, ..History::default() }
    }

    /// All changes from this revision on are kept.
    pub fn oldest(&self) -> u64 {
        self.oldest
    }

    /// Adds a change, and lets go of the oldest if there are too many.
    pub(super) fn push(&mut self, revision: u64, key: Arc<str>, kind: ChangeKind) {
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
    }

    fn forget(&mut self, revision: u64) {
        while self.changes.front().is_some_and(|front| front.revision == revision) {
            self.bytes -= self.changes.pop_front().map_or(0, |change| change.bytes());
        }
        self.oldest = revision + 1;
    }

    /// All that is kept, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Change> + ExactSizeIterator {
        self.changes.iter()
    }

    /// The changes from one on, oldest first: those of `revision` from `position` on, and all later ones.
    pub fn since(&self, revision: u64, position: u32) -> impl Iterator<Item = &Change> {
        let found =
            self.changes.binary_search_by(|change| (change.revision, change.position).cmp(&(revision, position)));
        let start = found.unwrap_or_else(|start| start);
        self.changes.focus().narrow(start..).into_iter()
    }
}
