//! What slow watches hold beyond what the node keeps anyway.
//!
//! A client that reads slowly, or not at all, keeps its watch from taking the next piece. Meanwhile the watch holds
//! the rest of its batch, and the state at its beginning if it has not sent all of that. Both cost next to nothing
//! while the history and the current state share them, and more and more as the store changes. So they belong to
//! the node, which takes them back from watches that fell behind.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;

use crate::config::{STATE_REPLACED_BYTES_MAX, WATCH_GONE_BYTES_MAX};
use crate::store::Data;

/// What the watches of a node hold.
#[derive(Debug, Default)]
pub struct WatchesHeld {
    all: Mutex<Vec<Weak<Mutex<Inner>>>>,
    /// The oldest revision of the history, and the replaced bytes, when it was last looked through.
    looked_at: Mutex<(u64, u64)>,
}

/// What one watch holds.
#[derive(Debug)]
pub struct WatchHeld(Arc<Mutex<Inner>>);

/// The rest of a batch was taken back.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("this watch was read too slowly, and is cut off within an event")]
pub struct Cut;

#[derive(Debug, Default)]
struct Inner {
    unsent: VecDeque<Bytes>,
    /// The last revision of the batch of which `unsent` is the rest.
    last_revision: Option<u64>,
    initial: Option<InitialState>,
    /// Whether `unsent` was taken back.
    is_cut: bool,
}

/// The state at the beginning of a watch, until all of it has been sent.
#[derive(Clone, Debug)]
pub struct InitialState {
    /// The keys.
    pub data: Data,
    /// Its revision.
    pub revision: u64,
    /// How many bytes of values had been replaced then.
    pub replaced_bytes: u64,
}

impl WatchesHeld {
    /// For a watch that holds nothing yet.
    pub fn of_new_watch(&self) -> WatchHeld {
        let held = Arc::default();
        lock(&self.all).push(Arc::downgrade(&held));
        WatchHeld(held)
    }

    /// Takes back states that the current one no longer shares much with, and batches that the history no longer has, as
    /// far as there are too many of these: the oldest first. Looks at the watches only if the state changed. What it
    /// returns takes long to free.
    pub fn take_back(&self, oldest: u64, replaced_bytes: u64) -> Vec<impl Send + use<>> {
        let mut freed = Vec::new();
        if std::mem::replace(&mut *lock(&self.looked_at), (oldest, replaced_bytes)) == (oldest, replaced_bytes) {
            return freed;
        }
        let mut gone = Vec::new();
        lock(&self.all).retain(|held| {
            let Some(held) = held.upgrade() else { return false };
            let mut inner = lock(&held);
            freed.extend(inner.take_state_back(oldest, replaced_bytes).map(Freed::State));
            // A watch cannot go on after such a batch, but it may finish it, and say why it ends.
            if let Some(revision) = inner.last_revision.filter(|revision| is_gone(*revision, oldest)) {
                let bytes: usize = inner.unsent.iter().map(Bytes::len).sum();
                drop(inner);
                gone.push((revision, bytes, held));
            }
            true
        });
        gone.sort_unstable_by_key(|(revision, ..)| *revision);
        let mut bytes_held: usize = gone.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, held) in gone {
            if bytes_held <= WATCH_GONE_BYTES_MAX {
                break;
            }
            bytes_held -= bytes;
            freed.push(Freed::Batch(lock(&held).cut()));
        }
        freed
    }
}

/// What was taken back.
#[expect(dead_code, reason = "is only dropped")]
enum Freed {
    State(InitialState),
    Batch(VecDeque<Bytes>),
}

/// Whether a watch that has all up to this revision could not go on.
fn is_gone(revision: u64, oldest: u64) -> bool {
    oldest > revision + 1
}

impl Inner {
    fn take_state_back(&mut self, oldest: u64, replaced_bytes: u64) -> Option<InitialState> {
        self.initial.take_if(|state| {
            is_gone(state.revision, oldest)
                || replaced_bytes.saturating_sub(state.replaced_bytes) > STATE_REPLACED_BYTES_MAX
        })
    }

    fn cut(&mut self) -> VecDeque<Bytes> {
        self.last_revision = None;
        self.is_cut = !self.unsent.is_empty();
        std::mem::take(&mut self.unsent)
    }
}

impl WatchHeld {
    /// Holds the state at the beginning.
    pub fn begin_with(&self, initial: InitialState) {
        lock(&self.0).initial = Some(initial);
    }

    /// Adds something short.
    pub fn push(&self, piece: Bytes) {
        lock(&self.0).unsent.push_back(piece);
    }

    /// Adds the pieces of a batch of changes, or of the state at the beginning, up to this revision.
    pub fn extend(&self, pieces: impl IntoIterator<Item = Bytes>, last_revision: u64) {
        let mut inner = lock(&self.0);
        inner.unsent.extend(pieces);
        inner.last_revision = Some(last_revision);
    }

    /// The next piece, of at most so many bytes; `None` if all have been taken.
    ///
    /// # Errors
    ///
    /// [`Cut`]: the rest is missing, perhaps in the middle of an event.
    pub fn next(&self, bytes_max: usize) -> Result<Option<Bytes>, Cut> {
        let mut inner = lock(&self.0);
        if inner.is_cut {
            return Err(Cut);
        }
        let next = match inner.unsent.front_mut() {
            Some(first) if first.len() > bytes_max => Some(first.split_to(bytes_max)),
            _ => inner.unsent.pop_front(),
        };
        if next.is_none() {
            inner.last_revision = None;
        }
        Ok(next)
    }

    /// The state at the beginning; `None` if it was taken back.
    pub fn initial(&self) -> Option<InitialState> {
        lock(&self.0).initial.clone()
    }

    /// All of the state at the beginning has been sent.
    pub fn initial_is_sent(&self) {
        lock(&self.0).initial = None;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAST: u64 = 7;

    /// Of batches after which a watch cannot go on, the oldest are taken back if there are too many. What was sent before
    /// is not missed.
    #[test]
    fn batches_are_taken_back() {
        let all = WatchesHeld::default();
        let [slow, fast, slow_too] = [(); 3].map(|()| all.of_new_watch());
        let half = Bytes::from(vec![b'v'; WATCH_GONE_BYTES_MAX / 2]);
        slow.extend([Bytes::from_static(b"12345"), half.clone()], LAST);
        assert_eq!(slow.next(3).unwrap().unwrap(), "123");
        assert_eq!(slow.next(3).unwrap().unwrap(), "45");
        fast.extend([half.clone()], LAST);
        while fast.next(1 << 20).unwrap().is_some() {}
        slow_too.extend([half.clone(), Bytes::from_static(b"1")], LAST + 1);
        assert!(all.take_back(LAST + 2, 0).is_empty(), "half of what is allowed");
        assert_eq!(all.take_back(LAST + 3, 0).len(), 1);
        assert_eq!(slow.next(3), Err(Cut));
        assert_eq!(fast.next(3), Ok(None));
        assert_eq!(slow_too.next(3), Ok(Some(half.slice(..3))));
        drop((slow, fast, slow_too));
        assert!(all.take_back(LAST + 4, 0).is_empty());
        assert!(lock(&all.all).is_empty());
    }

    /// The state at the beginning is taken back once the watch could not go on after it, or too much was replaced. What the
    /// watch sends at that moment is not.
    #[test]
    fn states_are_taken_back() {
        let all = WatchesHeld::default();
        let (first, second) = (all.of_new_watch(), all.of_new_watch());
        first.begin_with(InitialState { data: Data::default(), revision: LAST, replaced_bytes: 0 });
        second.begin_with(InitialState { data: Data::default(), revision: LAST, replaced_bytes: 1 });
        assert!(all.take_back(LAST + 1, STATE_REPLACED_BYTES_MAX).is_empty());
        assert_eq!(all.take_back(LAST + 1, STATE_REPLACED_BYTES_MAX + 1).len(), 1);
        assert!(first.initial().is_none() && second.initial().is_some());
        second.extend([Bytes::from_static(b"piece")], LAST);
        assert_eq!(all.take_back(LAST + 2, STATE_REPLACED_BYTES_MAX + 1).len(), 1);
        assert!(second.initial().is_none());
        assert_eq!(second.next(5).unwrap().unwrap(), "piece");
    }
}
