//! Who waits for which changes.
//!
//! A watch first reads [`super::history`] from where it wants to begin. Once it
//! has come to the end it joins the group of those that watch the same keys, and
//! is handed what is applied from then on. One that falls behind its group goes
//! back to the history; one that falls behind the history has lost, and is told.
//! So a slow reader holds little more than its own place: a few short batches,
//! which it shares with its group. What is long is not handed out at all.
//!
//! A write looks its key up once for each length of prefix that is watched, not
//! once for each watch.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::broadcast::{Receiver, Sender};

use super::history::{Change, ChangeKind};
use super::state_machine::ExampleStateMachine;
use super::state_machine_store::StateMachineStore;
use crate::config::{WATCH_BATCH_BYTES, WATCH_BATCHES_MAX, WATCH_ENCODED_BYTES_MAX, WATCH_HANDED_OUT_BYTES_MAX};
use crate::operation::Key;

/// Which keys are watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// One key.
    Key(Key),
    /// All keys that begin with this.
    Prefix(Key),
}

/// Changes that follow each other, of whole revisions.
#[derive(Debug)]
pub struct Batch {
    changes: Vec<Change>,
    /// Set in the last batch of a group, which has no changes: those before this
    /// revision have all been handed out.
    all_before: Option<u64>,
    /// As it is sent, so that it is encoded once for all that watch the same.
    encoded: OnceLock<Bytes>,
}

/// Why a watch cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// Changes that it should see are no longer kept.
    #[error("the oldest revision that is kept is {oldest}")]
    Gone {
        /// The oldest revision from which all changes are kept.
        oldest: u64,
    },
}

/// The place of a watch in the sequence of all changes.
pub struct Subscription {
    store: StateMachineStore,
    filter: Filter,
    /// The revision and position of the next change that is wanted.
    cursor: (u64, u32),
    receiver: Option<Receiver<Arc<Batch>>>,
}

/// All watches of one node.
#[derive(Debug, Default)]
pub(super) struct Hub {
    groups: Mutex<Groups>,
    /// Whether there are any; looked at by each write.
    watched: AtomicBool,
}

#[derive(Debug, Default)]
struct Groups {
    by_key: HashMap<Key, Group>,
    by_prefix: HashMap<Key, Group>,
    /// How many prefixes there are of each length.
    prefix_lengths: BTreeMap<usize, usize>,
}

#[derive(Debug)]
struct Group {
    sender: Sender<Arc<Batch>>,
    /// Changes of the batch that is being put together.
    pending: Vec<Change>,
    /// About how long they are when they are sent.
    pending_bytes: usize,
}

impl Filter {
    /// Whether a key is watched.
    pub fn matches(&self, key: &str) -> bool {
        match self {
            Filter::Key(wanted) => key == wanted.as_str(),
            Filter::Prefix(prefix) => key.starts_with(prefix.as_str()),
        }
    }
}

impl Batch {
    fn new(changes: Vec<Change>) -> Arc<Self> {
        Arc::new(Batch { changes, all_before: None, encoded: OnceLock::new() })
    }

    fn last(all_before: u64) -> Arc<Self> {
        Arc::new(Batch { changes: Vec::new(), all_before: Some(all_before), encoded: OnceLock::new() })
    }

    /// The changes, in order; at least one.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// The batch as `encode` writes it.
    pub fn encoded(&self, encode: impl FnOnce(&[Change]) -> Bytes) -> Bytes {
        if let Some(encoded) = self.encoded.get() {
            return encoded.clone();
        }
        let encoded = encode(&self.changes);
        // A large one is not kept for slow readers.
        if encoded.len() <= WATCH_ENCODED_BYTES_MAX {
            let _ = self.encoded.set(encoded.clone());
        }
        encoded
    }
}

impl Subscription {
    pub(super) fn new(store: StateMachineStore, filter: Filter, cursor: (u64, u32)) -> Self {
        Subscription { store, filter, cursor, receiver: None }
    }

    /// The next changes, as soon as there are any. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Result<Arc<Batch>, WatchError> {
        loop {
            let batch = match &mut self.receiver {
                Some(receiver) => match receiver.recv().await {
                    Ok(batch) => {
                        if let Some(revision) = batch.all_before {
                            self.skip_to(revision);
                        }
                        self.wanted_of(batch)
                    }
                    // It fell behind, or the changes that come next were not handed out.
                    Err(RecvError::Lagged(_) | RecvError::Closed) => {
                        self.leave();
                        None
                    }
                },
                None => self.catch_up()?,
            };
            if let Some(batch) = batch {
                if let Some(last) = batch.changes.last() {
                    self.cursor = (last.revision, last.position + 1);
                }
                return Ok(batch);
            }
        }
    }

    /// The revision up to which all has been taken that is wanted, if nothing is waiting.
    pub fn caught_up(&mut self) -> Option<u64> {
        let receiver = self.receiver.as_ref()?;
        // One that is closed is empty too, and the changes that a snapshot brought were not in it.
        let has_all = |receiver: &Receiver<_>| receiver.is_empty() && !receiver.is_closed();
        let revision = self.store.read(|machine| has_all(receiver).then_some(machine.revision))?;
        self.skip_to(revision + 1);
        Some(self.cursor.0 - 1)
    }

    /// Notes that there is nothing more for it before a revision, so that a watch
    /// of quiet keys does not lose its place when the history moves on.
    fn skip_to(&mut self, revision: u64) {
        self.cursor = self.cursor.max((revision, 0));
    }

    /// Reads on in the history, and joins the group at its end.
    fn catch_up(&mut self) -> Result<Option<Arc<Batch>>, WatchError> {
        let hub = self.store.hub().clone();
        let (filter, cursor) = (&self.filter, self.cursor);
        let (changes, joined) = self.store.read(|machine| {
            let oldest = machine.history.oldest();
            if cursor.0 < oldest {
                return Err(WatchError::Gone { oldest });
            }
            match changes_from(machine, filter, cursor) {
                // Nothing is applied meanwhile, so nothing falls between the two.
                (changes, true) => Ok((changes, Some((hub.join(filter), machine.revision)))),
                (changes, false) => Ok((changes, None)),
            }
        })?;
        if let Some((receiver, revision)) = joined {
            self.receiver = Some(receiver);
            if changes.is_empty() {
                self.skip_to(revision + 1);
            }
        }
        Ok((!changes.is_empty()).then(|| Batch::new(changes)))
    }

    /// A batch without what was wanted later, or was taken before.
    fn wanted_of(&self, batch: Arc<Batch>) -> Option<Arc<Batch>> {
        let wanted = |change: &Change| (change.revision, change.position) >= self.cursor;
        if batch.changes.first().is_some_and(wanted) {
            return Some(batch);
        }
        let changes: Vec<Change> = batch.changes.iter().filter(|change| wanted(change)).cloned().collect();
        (!changes.is_empty()).then(|| Batch::new(changes))
    }

    fn leave(&mut self) {
        if self.receiver.take().is_some() {
            self.store.hub().leave(&self.filter);
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Changes from a place on, of whole revisions, and whether these are all there are.
fn changes_from(machine: &ExampleStateMachine, filter: &Filter, cursor: (u64, u32)) -> (Vec<Change>, bool) {
    let mut changes: Vec<Change> = Vec::new();
    let mut bytes = 0;
    for change in machine.history.since(cursor.0, cursor.1) {
        if bytes >= WATCH_BATCH_BYTES && changes.last().is_some_and(|last| last.revision != change.revision) {
            return (changes, false);
        }
        if filter.matches(&change.key) {
            bytes += bytes_of(change);
            changes.push(change.clone());
        }
    }
    (changes, true)
}

/// About how long a change is when it is sent, in bytes.
fn bytes_of(change: &Change) -> usize {
    const EVENT_BYTES: usize = 128;
    let value_bytes = match &change.kind {
        ChangeKind::Put(record) => record.value.as_bytes().len(),
        ChangeKind::Delete | ChangeKind::Expire => 0,
    };
    EVENT_BYTES + change.key.len() + value_bytes
}

impl Hub {
    /// Hands out all changes after a revision. Called before anybody can read them.
    pub(super) fn publish(&self, machine: &ExampleStateMachine, revision_before: u64) {
        if !self.watched.load(Ordering::Acquire) || machine.revision == revision_before {
            return;
        }
        if machine.history.oldest() > revision_before + 1 {
            // So much was applied at once that some of it is already forgotten:
            // who waits for it must not miss that.
            return self.reset(revision_before + 1);
        }
        let mut groups = self.groups();
        let Groups { by_key, by_prefix, prefix_lengths } = &mut *groups;
        // In the order in which their changes came.
        let mut keys: Vec<Key> = Vec::new();
        let mut prefixes: Vec<Key> = Vec::new();
        for change in machine.history.since(revision_before + 1, 0) {
            if let Some(group) = by_key.get_mut(&change.key) {
                group.add(change, || keys.push(change.key.clone()));
            }
            for length in prefix_lengths.keys() {
                let Some(prefix) = change.key.get(..*length) else { continue };
                if let Some(group) = by_prefix.get_mut(prefix) {
                    group.add(change, || prefixes.push(prefix.into()));
                }
            }
        }
        let send = |group: Option<&mut Group>| {
            if let Some(group) = group {
                group.send(revision_before);
            }
        };
        keys.iter().for_each(|key| send(by_key.get_mut(key)));
        prefixes.iter().for_each(|prefix| send(by_prefix.get_mut(prefix)));
    }

    /// Sends all watches back to the history, after that was replaced, or has lost
    /// what they were to be handed. All changes before `revision` have been.
    pub(super) fn reset(&self, revision: u64) {
        let groups = std::mem::take(&mut *self.groups());
        let last = Batch::last(revision);
        for group in groups.by_key.values().chain(groups.by_prefix.values()) {
            // An error means that the last one has just left.
            let _ = group.sender.send(last.clone());
        }
        self.watched.store(false, Ordering::Release);
    }

    fn join(&self, filter: &Filter) -> Receiver<Arc<Batch>> {
        let mut groups = self.groups();
        self.watched.store(true, Ordering::Release);
        let new = || Group { sender: Sender::new(WATCH_BATCHES_MAX), pending: Vec::new(), pending_bytes: 0 };
        let group = match filter {
            Filter::Key(key) => groups.by_key.entry(key.clone()).or_insert_with(new),
            Filter::Prefix(prefix) => {
                if !groups.by_prefix.contains_key(prefix) {
                    *groups.prefix_lengths.entry(prefix.len()).or_default() += 1;
                }
                groups.by_prefix.entry(prefix.clone()).or_insert_with(new)
            }
        };
        group.sender.subscribe()
    }

    /// Removes a group that nobody is in any more.
    fn leave(&self, filter: &Filter) {
        let mut groups = self.groups();
        let abandoned = |group: &Group| group.sender.receiver_count() == 0;
        match filter {
            Filter::Key(key) => {
                if groups.by_key.get(key).is_some_and(abandoned) {
                    groups.by_key.remove(key);
                }
            }
            Filter::Prefix(prefix) => {
                if groups.by_prefix.get(prefix).is_some_and(abandoned) {
                    groups.by_prefix.remove(prefix);
                    if let Some(count) = groups.prefix_lengths.get_mut(&prefix.len()) {
                        *count -= 1;
                        if *count == 0 {
                            groups.prefix_lengths.remove(&prefix.len());
                        }
                    }
                }
            }
        }
        if groups.by_key.is_empty() && groups.by_prefix.is_empty() {
            self.watched.store(false, Ordering::Release);
        }
    }

    fn groups(&self) -> MutexGuard<'_, Groups> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Group {
    fn add(&mut self, change: &Change, first: impl FnOnce()) {
        if self.pending.is_empty() {
            first();
        }
        self.pending_bytes += bytes_of(change);
        self.pending.push(change.clone());
    }

    /// Hands out what was put together. What is long is left to the history, from
    /// which each watch reads it as it gets on: those that are slow would hold it.
    fn send(&mut self, revision_before: u64) {
        let changes = std::mem::take(&mut self.pending);
        // An error of a send means that the last one has just left.
        if std::mem::take(&mut self.pending_bytes) > WATCH_HANDED_OUT_BYTES_MAX {
            let _ = self.sender.send(Batch::last(revision_before + 1));
            // Whoever listens to the former one finds it closed.
            self.sender = Sender::new(WATCH_BATCHES_MAX);
            return;
        }
        for batch in batches_of(changes) {
            let _ = self.sender.send(batch);
        }
    }
}

/// Batches of whole revisions, short enough to be kept as they are sent.
fn batches_of(changes: Vec<Change>) -> Vec<Arc<Batch>> {
    let mut batches = Vec::new();
    let mut batch: Vec<Change> = Vec::new();
    let mut bytes = 0;
    for change in changes {
        if bytes > WATCH_ENCODED_BYTES_MAX / 2 && batch.last().is_some_and(|last| last.revision != change.revision) {
            batches.push(Batch::new(std::mem::take(&mut batch)));
            bytes = 0;
        }
        bytes += bytes_of(&change);
        batch.push(change);
    }
    batches.push(Batch::new(batch));
    batches
}
