//! The place of one watch in the sequence of all changes.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::hub::{Batch, Filter, Handed, Hub, LongEvents};
use crate::config::{WATCH_BATCH_BYTES, WATCH_EXAMINED_MAX};
use crate::store::state_machine::ExampleStateMachine;
use crate::store::state_machine::history::Change;

/// Why a watch cannot continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The history no longer has the next changes of the watch.
    #[error("the oldest revision that is kept is {oldest}")]
    Gone {
        /// The oldest revision from which all changes are kept.
        oldest: u64,
    },
}

/// The place of a watch in the sequence of all changes.
pub struct Subscription {
    machine: Arc<RwLock<ExampleStateMachine>>,
    hub: Arc<Hub>,
    filter: Filter,
    /// The first revision and position that the watch has not passed.
    cursor: (u64, u32),
    /// Its place in its group, kept when it falls behind.
    receiver: Option<Receiver<Handed>>,
    /// Whether the receiver has all changes from the cursor on. Otherwise they are read from the history.
    follows: bool,
}

impl Subscription {
    pub(in crate::store) fn new(
        machine: Arc<RwLock<ExampleStateMachine>>,
        hub: Arc<Hub>,
        filter: Filter,
        cursor: (u64, u32),
    ) -> Self {
        Subscription { machine, hub, filter, cursor, receiver: None, follows: false }
    }

    /// The next changes, as soon as any exist. Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// [`WatchError::Gone`] if the watch fell behind the history.
    pub async fn next(&mut self) -> Result<Arc<Batch>, WatchError> {
        loop {
            let batch = match &mut self.receiver {
                Some(receiver) if self.follows => match receiver.recv().await {
                    Ok(Handed::Last(revision)) => {
                        self.skip_to(revision);
                        None
                    }
                    Ok(Handed::Batch(batch, first)) => match batch.upgrade() {
                        Some(batch) => self.wanted_of(batch),
                        // It fell behind by more bytes than the node keeps, which may be those of other groups.
                        None => {
                            self.skip_to(first);
                            self.follows = false;
                            None
                        }
                    },
                    // It fell behind by more batches than the group keeps.
                    Err(RecvError::Lagged(_)) => {
                        self.follows = false;
                        None
                    }
                    // The group has ended.
                    Err(RecvError::Closed) => {
                        self.leave();
                        None
                    }
                },
                _ => {
                    let found = self.catch_up()?;
                    if found.is_none() && !self.follows {
                        // Let other tasks of this thread run.
                        tokio::task::yield_now().await;
                    }
                    found
                }
            };
            if let Some(batch) = batch {
                if let Some(last) = batch.changes().last() {
                    self.cursor = self.cursor.max((last.revision, last.position + 1));
                }
                return Ok(batch);
            }
        }
    }

    /// See [`StateMachineStore::encoded`](crate::store::StateMachineStore::encoded).
    pub fn encoded<'a>(
        &self,
        batch: &'a Batch,
        encode: impl FnOnce(&[Change], &LongEvents) -> Vec<Bytes>,
    ) -> &'a [Bytes] {
        self.hub.encoded(batch, encode)
    }

    /// The revision up to which the watch has received all its changes; `None` if some may be waiting.
    pub fn caught_up(&mut self) -> Option<u64> {
        // Read it before checking the receiver: changes that are handed out in between do not count as received.
        let published = self.hub.published.load(Ordering::Acquire);
        let receiver = self.receiver.as_ref()?;
        // A closed receiver is empty too, but it did not have the changes of the snapshot that closed it.
        if !self.follows || !receiver.is_empty() || receiver.is_closed() {
            return None;
        }
        self.skip_to(published + 1);
        // In the middle of a revision, the rest of it is still being handed out.
        (self.cursor.1 == 0).then(|| self.cursor.0 - 1)
    }

    /// Moves the place forward to a revision before which nothing is left, so that a watch of quiet keys does not fall
    /// behind the history.
    fn skip_to(&mut self, revision: u64) {
        self.cursor = self.cursor.max((revision, 0));
    }

    /// Reads the next part of the history. At its end the watch joins its group, or follows it again.
    fn catch_up(&mut self) -> Result<Option<Arc<Batch>>, WatchError> {
        let machine = self.machine.read().unwrap_or_else(PoisonError::into_inner);
        let oldest = machine.history.oldest();
        if self.cursor.0 < oldest {
            return Err(WatchError::Gone { oldest });
        }
        let (changes, end) = changes_from(&machine, &self.filter, self.cursor);
        let next = end.unwrap_or(machine.revision + 1);
        if end.is_none() {
            // The state stays locked, so no change falls between the history and the group. What the group was handed
            // before is in the history. If the group has ended, so has the new receiver.
            let receiver = self.receiver.as_ref();
            self.receiver = Some(receiver.map_or_else(|| self.hub.join(&self.filter), Receiver::resubscribe));
            self.follows = true;
        }
        drop(machine);
        self.skip_to(next);
        Ok((!changes.is_empty()).then(|| Batch::new(changes, 0)))
    }

    /// The changes of a batch that the watch has not passed; `None` if there are none.
    fn wanted_of(&self, batch: Arc<Batch>) -> Option<Arc<Batch>> {
        let wanted = |change: &Change| (change.revision, change.position) >= self.cursor;
        if batch.changes().first().is_some_and(wanted) {
            return Some(batch);
        }
        let changes: Vec<Change> = batch.changes().iter().filter(|change| wanted(change)).cloned().collect();
        (!changes.is_empty()).then(|| Batch::new(changes, 0))
    }

    fn leave(&mut self) {
        self.follows = false;
        if self.receiver.take().is_some() {
            self.hub.leave(&self.filter);
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Changes from a place on, of whole revisions, and the revision before which they end; `None` if they are all.
fn changes_from(machine: &ExampleStateMachine, filter: &Filter, cursor: (u64, u32)) -> (Vec<Change>, Option<u64>) {
    let mut changes: Vec<Change> = Vec::new();
    let mut bytes = 0;
    let mut last_revision = None;
    for (looked_at, change) in machine.history.since(cursor.0, cursor.1).enumerate() {
        let is_enough = bytes >= WATCH_BATCH_BYTES || looked_at >= WATCH_EXAMINED_MAX;
        if is_enough && last_revision != Some(change.revision) {
            return (changes, Some(change.revision));
        }
        last_revision = Some(change.revision);
        if filter.matches(&change.key) {
            bytes += change.bytes();
            changes.push(change.clone());
        }
    }
    (changes, None)
}
