//! Requests that wait until an entry is applied.
//!
//! Each is woken once, when its entry is applied, and gets the state after it. An entry for which no request waits
//! costs one comparison.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::self_check::SelfCheck;
use super::state_machine::ExampleStateMachine;
use crate::config::APPLIED_WAITING_MAX;

/// All waiting requests of one node.
///
/// Invariant: `next_index` is the least index in `waiting`, whenever that is unlocked.
#[derive(Debug)]
pub(super) struct AppliedWaits {
    waiting: Mutex<Waiting>,
    /// The least index for which a request waits; `u64::MAX` if none does. Read after each entry.
    next_index: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    /// By the index and a unique number; at most [`APPLIED_WAITING_MAX`].
    by_index: BTreeMap<(u64, u64), oneshot::Sender<SelfCheck>>,
    numbers: u64,
}

/// Waits for one entry. Dropping it ends the wait.
#[derive(Debug)]
pub(super) struct AppliedWait {
    waits: Arc<AppliedWaits>,
    place: (u64, u64),
    receiver: oneshot::Receiver<SelfCheck>,
}

/// Requests whose entries were applied, and the states for them.
#[derive(Debug, Default)]
#[must_use = "they wait"]
pub(super) struct Due(Vec<(oneshot::Sender<SelfCheck>, SelfCheck)>);

/// As many requests wait as a node allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyWaits;

impl Default for AppliedWaits {
    fn default() -> Self {
        AppliedWaits { waiting: Mutex::default(), next_index: AtomicU64::new(u64::MAX) }
    }
}

impl AppliedWaits {
    /// Waits for an entry. Called while the state is locked and the entry is not applied.
    pub(super) fn wait(self: &Arc<Self>, index: u64) -> Result<AppliedWait, TooManyWaits> {
        let mut waiting = self.lock();
        if waiting.by_index.len() >= APPLIED_WAITING_MAX {
            return Err(TooManyWaits);
        }
        let (sender, receiver) = oneshot::channel();
        waiting.numbers += 1;
        let place = (index, waiting.numbers);
        waiting.by_index.insert(place, sender);
        self.note_next(&waiting);
        Ok(AppliedWait { waits: self.clone(), place, receiver })
    }

    /// Takes the requests that wait for an entry up to the last one applied. Called while the state is locked.
    pub(super) fn take_due(&self, machine: &ExampleStateMachine, due: &mut Due) {
        let index = machine.last_applied.map_or(0, |log_id| log_id.index);
        if index < self.next_index.load(Ordering::Acquire) {
            return;
        }
        let state = SelfCheck::of(machine);
        let mut waiting = self.lock();
        while let Some(first) = waiting.by_index.first_entry()
            && first.key().0 <= index
        {
            due.0.push((first.remove(), state));
        }
        self.note_next(&waiting);
    }

    fn note_next(&self, waiting: &Waiting) {
        let next = waiting.by_index.first_key_value().map_or(u64::MAX, |((index, _), _)| *index);
        self.next_index.store(next, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AppliedWait {
    /// The state after the entry, or after a later one if a snapshot contained both. `None` if applying it failed,
    /// which stops the node.
    pub(super) async fn applied(&mut self) -> Option<SelfCheck> {
        (&mut self.receiver).await.ok()
    }
}

impl Drop for AppliedWait {
    fn drop(&mut self) {
        let mut waiting = self.waits.lock();
        if waiting.by_index.remove(&self.place).is_some() {
            self.waits.note_next(&waiting);
        }
    }
}

impl Due {
    /// Wakes the requests. Called after the state is unlocked.
    pub(super) fn tell(self) {
        for (sender, state) in self.0 {
            // An error means that the request no longer waits.
            let _ = sender.send(state);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use openraft::vote::RaftLeaderId;

    use super::*;
    use crate::types::LogId;

    fn at(index: u64) -> ExampleStateMachine {
        let last_applied = Some(LogId::new(RaftLeaderId::new(1, 1), index));
        ExampleStateMachine { last_applied, ..ExampleStateMachine::default() }
    }

    /// Applies up to an index, and returns how many were woken.
    fn apply(waits: &AppliedWaits, index: u64) -> usize {
        let mut due = Due::default();
        waits.take_due(&at(index), &mut due);
        let woken = due.0.len();
        due.tell();
        woken
    }

    /// Each request is woken once, by its own entry or by a later one. The number of waiting requests is bounded, and
    /// requests that end make room.
    #[test]
    fn each_is_woken_by_its_entry() {
        let waits = Arc::new(AppliedWaits::default());
        let mut waiting: Vec<_> = (0..APPLIED_WAITING_MAX as u64).map(|it| waits.wait(10 + it / 2).unwrap()).collect();
        assert_eq!(waits.wait(5).map(drop), Err(TooManyWaits));
        assert_eq!(apply(&waits, 9), 0);
        assert_eq!(apply(&waits, 10), 2);
        assert_eq!(waiting[0].applied().now_or_never().flatten().map(|state| state.index), Some(10));
        assert!(waiting[2].applied().now_or_never().is_none());
        assert_eq!(apply(&waits, 10), 0);
        drop(waiting.drain(..4));
        assert_eq!(waits.next_index.load(Ordering::Relaxed), 12);
        assert_eq!(apply(&waits, 11), 0);
        assert_eq!(apply(&waits, 20), 18);
        assert_eq!(waiting[0].applied().now_or_never().flatten().map(|state| state.index), Some(20));
        waiting.clear();
        assert_eq!(waits.next_index.load(Ordering::Relaxed), u64::MAX);
        assert_eq!(apply(&waits, 1000), 0);
    }
}
