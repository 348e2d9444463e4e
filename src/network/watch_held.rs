//! Bounds the memory that slow watches hold in addition to the history and the state.
//!
//! While its client reads slowly, or not at all, a watch holds the rest of its batch, and the initial state until all
//! of that has been sent. Both use almost no memory while the history and the current state share them, and more as
//! the store changes. So the node owns them, and drops them from watches that fell behind.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::config::{STATE_REPLACED_BYTES_MAX, WATCH_GONE_BYTES_MAX};
use crate::store::Data;

/// What the watches of a node hold.
#[derive(Debug, Default)]
pub struct WatchesHeld(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    watches: Mutex<Watches>,
    /// The oldest revision of the history, and the replaced bytes, when the watches were last examined.
    looked_at: Mutex<(u64, u64)>,
}

#[derive(Debug, Default)]
struct Watches {
    by_number: HashMap<u64, Arc<Mutex<Inner>>>,
    next_number: u64,
}

/// What one watch holds.
#[derive(Debug)]
pub struct WatchHeld {
    inner: Arc<Mutex<Inner>>,
    number: u64,
    shared: Arc<Shared>,
}

/// The rest of a batch was dropped.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client read this watch too slowly, so it ends in the middle of an event")]
pub struct Cut;

#[derive(Debug, Default)]
struct Inner {
    unsent: VecDeque<Bytes>,
    /// The last revision of the batch of which `unsent` is the rest.
    last_revision: Option<u64>,
    initial: Option<InitialState>,
    /// Whether `unsent` was dropped.
    is_cut: bool,
}

/// The state at the revision at which a watch began.
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
    /// Registers a new watch, which holds nothing yet.
    pub fn of_new_watch(&self) -> WatchHeld {
        let inner = Arc::<Mutex<Inner>>::default();
        let mut watches = lock(&self.0.watches);
        let number = watches.next_number;
        watches.next_number += 1;
        watches.by_number.insert(number, inner.clone());
        WatchHeld { inner, number, shared: self.0.clone() }
    }

    /// Drops initial states that share little with the current one. Drops the oldest batches outside the history while
    /// they exceed the bound. Examines the watches only if the state changed. The returned values are slow to free.
    pub fn take_back(&self, oldest: u64, replaced_bytes: u64) -> Vec<impl Send + use<>> {
        let mut freed = Vec::new();
        if std::mem::replace(&mut *lock(&self.0.looked_at), (oldest, replaced_bytes)) == (oldest, replaced_bytes) {
            return freed;
        }
        let mut gone = Vec::new();
        // Watches share pieces, so each piece counts once: its bytes, and how many of these watches have it.
        let mut pieces: HashMap<*const u8, (usize, usize)> = HashMap::new();
        for held in lock(&self.0.watches).by_number.values() {
            let mut inner = lock(held);
            freed.extend(inner.take_state_back(oldest, replaced_bytes).map(Freed::State));
            // A watch cannot continue after such a batch, unless its keys did not change. But it may finish the batch,
            // and send the reason for its end.
            if let Some(revision) = inner.last_revision.filter(|revision| is_gone(*revision, oldest)) {
                for piece in &inner.unsent {
                    pieces.entry(piece.as_ptr()).or_insert((piece.len(), 0)).1 += 1;
                }
                gone.push((revision, held.clone()));
            }
        }
        gone.sort_unstable_by_key(|(revision, _)| *revision);
        let mut bytes_held: usize = pieces.values().map(|(bytes, _)| bytes).sum();
        for (revision, held) in gone {
            if bytes_held <= WATCH_GONE_BYTES_MAX {
                break;
            }
            let mut inner = lock(&held);
            // In the meantime the watch may have sent the rest, and have another batch.
            if inner.last_revision != Some(revision) {
                continue;
            }
            let batch = inner.cut();
            for piece in &batch {
                // A watch that sent some of its piece meanwhile may have one that was not counted, or counted for others.
                if let Entry::Occupied(mut counted) = pieces.entry(piece.as_ptr()) {
                    let (bytes, watches) = counted.get_mut();
                    *watches -= 1;
                    if *watches == 0 {
                        bytes_held -= *bytes;
                        counted.remove();
                    }
                }
            }
            freed.push(Freed::Batch(batch));
        }
        freed
    }
}

/// A dropped value.
#[expect(dead_code, reason = "is only dropped")]
enum Freed {
    State(InitialState),
    Batch(VecDeque<Bytes>),
}

/// Whether a watch that has everything up to this revision could not continue.
fn is_gone(revision: u64, oldest: u64) -> bool {
    oldest > revision + 1
}

impl Inner {
    fn take_state_back(&mut self, oldest: u64, replaced_bytes: u64) -> Option<InitialState> {
        self.initial.take_if(|state| {
            // The count restarts at 0 when a snapshot is installed.
            let is_shared = replaced_bytes
                .checked_sub(state.replaced_bytes)
                .is_some_and(|replaced_bytes| replaced_bytes <= STATE_REPLACED_BYTES_MAX);
            is_gone(state.revision, oldest) || !is_shared
        })
    }

    fn cut(&mut self) -> VecDeque<Bytes> {
        self.last_revision = None;
        self.is_cut = !self.unsent.is_empty();
        std::mem::take(&mut self.unsent)
    }
}

impl WatchHeld {
    /// Holds the initial state until it is sent or dropped.
    pub fn begin_with(&self, initial: InitialState) {
        lock(&self.inner).initial = Some(initial);
    }

    /// Adds a short piece, such as a heartbeat.
    pub fn push(&self, piece: Bytes) {
        lock(&self.inner).unsent.push_back(piece);
    }

    /// Adds the pieces of a batch of changes, or of the initial state, up to this revision.
    pub fn extend(&self, pieces: impl IntoIterator<Item = Bytes>, last_revision: u64) {
        let mut inner = lock(&self.inner);
        inner.unsent.extend(pieces);
        inner.last_revision = Some(last_revision);
    }

    /// The next piece, of at most this many bytes; `None` if all have been sent.
    ///
    /// # Errors
    ///
    /// [`Cut`]: the rest was dropped, possibly within an event.
    pub fn next(&self, bytes_max: usize) -> Result<Option<Bytes>, Cut> {
        let mut inner = lock(&self.inner);
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

    /// The initial state; `None` if it was dropped.
    pub fn initial(&self) -> Option<InitialState> {
        lock(&self.inner).initial.clone()
    }

    /// Drops the initial state once all of it has been sent.
    pub fn initial_is_sent(&self) {
        lock(&self.inner).initial = None;
    }
}

impl Drop for WatchHeld {
    fn drop(&mut self) {
        lock(&self.shared.watches).by_number.remove(&self.number);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAST: u64 = 7;

    /// If the batches after which watches cannot continue exceed the bound, the oldest are dropped. Pieces that were
    /// already sent do not count.
    #[test]
    fn batches_are_taken_back() {
        let all = WatchesHeld::default();
        let [slow, fast, slow_too] = [(); 3].map(|()| all.of_new_watch());
        let half = || Bytes::from(vec![b'v'; WATCH_GONE_BYTES_MAX / 2]);
        let shared = half();
        slow.extend([Bytes::from_static(b"12345"), shared.clone()], LAST);
        assert_eq!(slow.next(3).unwrap().unwrap(), "123");
        assert_eq!(slow.next(3).unwrap().unwrap(), "45");
        fast.extend([half()], LAST);
        while fast.next(1 << 20).unwrap().is_some() {}
        slow_too.extend([shared.clone()], LAST + 1);
        assert!(all.take_back(LAST + 3, 0).is_empty(), "they share half of what is allowed");
        slow_too.extend([half(), Bytes::from_static(b"1")], LAST + 1);
        assert_eq!(all.take_back(LAST + 4, 0).len(), 2, "what they share is freed with the last");
        assert_eq!(slow.next(3), Err(Cut));
        assert_eq!(fast.next(3), Ok(None));
        assert_eq!(slow_too.next(3), Err(Cut));
        drop((slow, fast, slow_too));
        assert!(lock(&all.0.watches).by_number.is_empty());
    }

    /// The initial state is dropped once the watch could not continue after it, or too many bytes were replaced. The
    /// pieces that the watch is sending at that moment are kept.
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
