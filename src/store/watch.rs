//! Who waits for which changes.
//!
//! A watch first reads [`super::history`] from where it wants to begin. Once it
//! has come to the end it joins the group of those that watch the same keys, and
//! is handed what is applied from then on. One that falls behind its group goes
//! back to the history; one that falls behind the history has lost, and is told.
//!
//! Each batch is encoded once for its group, however long it is, and each long
//! event once for all groups. A slow reader holds only its place and the batch
//! that is being sent to it: the others belong to the node, which keeps the
//! newest up to a number of bytes.
//!
//! A write looks its key up once among the keys that are watched, and once among
//! the prefixes, however many there are.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use bytes::Bytes;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::broadcast::{Receiver, Sender};

use super::history::Change;
use super::prefixes::Prefixes;
use super::state_machine::ExampleStateMachine;
use super::state_machine_store::StateMachineStore;
use crate::config::{
    WATCH_BATCH_BYTES, WATCH_BATCHES_MAX, WATCH_HANDED_OUT_BATCH_BYTES, WATCH_HANDED_OUT_BYTES_MAX,
    WATCH_LONG_EVENT_BYTES, WATCH_LONG_EVENTS_BYTES_MAX, WATCH_LOOKED_AT_MAX,
};
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
    /// As it is sent, in pieces, so that it is encoded once for all that watch the same.
    encoded: OnceLock<Vec<Bytes>>,
    /// The bytes its changes count for in [`HandedOut`]; 0 if it is not there. Changed while that is locked.
    counted_bytes: AtomicUsize,
    /// Whether `encoded` is counted there too. Changed while that is locked.
    encoded_is_counted: AtomicBool,
}

/// What the watches of a group receive.
#[derive(Clone, Debug)]
enum Handed {
    /// The next batch, for as long as the node keeps it, and the revision of its first change. All changes of the
    /// group before that have been handed out.
    Batch(Weak<Batch>, u64),
    /// The group ends: all changes before this revision have been handed out.
    Last(u64),
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
    /// Its place in its group, which it keeps when it falls behind.
    receiver: Option<Receiver<Handed>>,
    /// Whether the receiver has all that comes after the cursor. Otherwise that is read from the history.
    follows: bool,
}

/// All watches of one node.
#[derive(Debug, Default)]
pub(super) struct Hub {
    groups: Mutex<Groups>,
    /// Whether there are any; looked at by each write.
    watched: AtomicBool,
    /// All changes up to this revision have been handed out. The state may be further.
    published: AtomicU64,
    // Taken after `groups`, if both are.
    handed_out: Mutex<HandedOut>,
    long_events: LongEvents,
}

/// The newest batches that were handed out, oldest first.
///
/// Each byte in memory is counted once, however many groups share it. A change counts
/// [`Change::FIXED_BYTES`] in each batch. Its key and value count in the last batch that has it: batches
/// are dropped in their order, so these bytes are counted for as long as a batch here holds them.
/// A piece as it is sent is counted once for all batches that have it, from when the first is encoded.
///
/// Invariant: `bytes` is the sum of the batches' `counted_bytes` and of the pieces of those whose
/// `encoded_is_counted`, and at most [`WATCH_HANDED_OUT_BYTES_MAX`] unless there is only one batch.
#[derive(Debug, Default)]
struct HandedOut {
    batches: VecDeque<Arc<Batch>>,
    /// How many batches have each piece, by its address, which is no other's while one has it.
    pieces: HashMap<usize, usize>,
    bytes: usize,
}

/// The data of long events, by revision and position. It is the same for every watch, so groups and readers of
/// the history share it: an event is encoded again only if it is not one of the last and no watch holds it.
#[derive(Debug, Default)]
pub struct LongEvents {
    encoded: Mutex<Encoded>,
}

#[derive(Debug, Default)]
struct Encoded {
    events: HashMap<(u64, u32), Weak<Bytes>>,
    /// Those that were encoded last, and their bytes.
    last: VecDeque<Arc<Bytes>>,
    last_bytes: usize,
}

/// An event that a watch holds, in its batch or in what it sends.
struct Held(Arc<Bytes>);

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[derive(Debug, Default)]
struct Groups {
    by_key: HashMap<Key, Group>,
    by_prefix: Prefixes<Group>,
}

#[derive(Debug)]
struct Group {
    sender: Sender<Handed>,
    /// Changes of the batches that are being put together.
    pending: Vec<Pending>,
    /// About how long they are when they are sent.
    pending_bytes: usize,
}

#[derive(Debug)]
struct Pending {
    change: Change,
    /// As [`Change::bytes`] says.
    bytes: usize,
    /// What it counts for in [`HandedOut`].
    counted_bytes: usize,
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
    /// `counted_bytes` is what it counts for in [`HandedOut`]; 0 if it is not to be there.
    fn new(changes: Vec<Change>, counted_bytes: usize) -> Arc<Self> {
        Arc::new(Batch {
            changes,
            encoded: OnceLock::new(),
            counted_bytes: AtomicUsize::new(counted_bytes),
            encoded_is_counted: AtomicBool::new(false),
        })
    }

    /// The changes, in order; at least one.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// How many bytes of keys and values it has that no other watch shares: none of a batch that was handed out, nor
    /// of long events.
    pub fn unshared_bytes(&self) -> usize {
        if self.counted_bytes() > 0 {
            return 0;
        }
        let bytes = self.changes.iter().map(Change::bytes);
        bytes.filter(|bytes| *bytes < WATCH_LONG_EVENT_BYTES).sum()
    }

    /// How many bytes of keys and values are still to be encoded.
    pub fn bytes_to_encode(&self) -> usize {
        if self.encoded.get().is_some() { 0 } else { self.changes.iter().map(Change::bytes).sum() }
    }

    fn counted_bytes(&self) -> usize {
        self.counted_bytes.load(Ordering::Relaxed)
    }
}

impl HandedOut {
    fn add(&mut self, batch: Arc<Batch>) {
        self.bytes += batch.counted_bytes();
        self.batches.push_back(batch);
        self.trim();
    }

    /// Counts the pieces of a batch that was just encoded.
    fn count_encoded(&mut self, batch: &Batch, pieces: &[Bytes]) {
        if batch.counted_bytes() == 0 {
            return;
        }
        batch.encoded_is_counted.store(true, Ordering::Relaxed);
        for piece in pieces {
            let holders = self.pieces.entry(piece.as_ptr() as usize).or_default();
            if *holders == 0 {
                self.bytes += piece.len();
            }
            *holders += 1;
        }
        self.trim();
    }

    /// Drops the oldest batches while there are too many bytes, and those that all readers have taken.
    fn trim(&mut self) {
        while let Some(oldest) = self.batches.front() {
            let is_too_much = self.bytes > WATCH_HANDED_OUT_BYTES_MAX && self.batches.len() > 1;
            if !is_too_much && Arc::weak_count(oldest) > 0 {
                break;
            }
            let Some(oldest) = self.batches.pop_front() else { break };
            self.bytes -= oldest.counted_bytes.swap(0, Ordering::Relaxed);
            if !oldest.encoded_is_counted.load(Ordering::Relaxed) {
                continue;
            }
            for piece in oldest.encoded.get().into_iter().flatten() {
                if let Entry::Occupied(mut holders) = self.pieces.entry(piece.as_ptr() as usize) {
                    *holders.get_mut() -= 1;
                    if *holders.get() == 0 {
                        holders.remove();
                        self.bytes -= piece.len();
                    }
                }
            }
        }
    }
}

impl LongEvents {
    /// Whether the data of a change is to be taken from here.
    pub fn is_for(&self, change: &Change) -> bool {
        change.bytes() >= WATCH_LONG_EVENT_BYTES
    }

    /// The data of a change's event as `encode` returns it.
    pub fn get_or_encode(&self, change: &Change, encode: impl FnOnce() -> Bytes) -> Bytes {
        let place = (change.revision, change.position);
        if let Some(found) = self.lock().events.get(&place).and_then(Weak::upgrade) {
            return Bytes::from_owner(Held(found));
        }
        // Unlocked meanwhile: another thread may encode the same, which does no harm.
        let event = Arc::new(encode());
        let mut encoded = self.lock();
        encoded.events.retain(|_, event| event.strong_count() > 0);
        encoded.events.insert(place, Arc::downgrade(&event));
        encoded.last_bytes += event.len();
        encoded.last.push_back(event.clone());
        while encoded.last_bytes > WATCH_LONG_EVENTS_BYTES_MAX && encoded.last.len() > 1 {
            encoded.last_bytes -= encoded.last.pop_front().map_or(0, |event| event.len());
        }
        Bytes::from_owner(Held(event))
    }

    fn lock(&self) -> MutexGuard<'_, Encoded> {
        self.encoded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscription {
    pub(super) fn new(store: StateMachineStore, filter: Filter, cursor: (u64, u32)) -> Self {
        Subscription { store, filter, cursor, receiver: None, follows: false }
    }

    /// The next changes, as soon as there are any. Nothing is lost if the future is dropped.
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
                        // It fell behind by more bytes than are kept, if only by those of other groups.
                        None => {
                            self.skip_to(first);
                            self.follows = false;
                            None
                        }
                    },
                    // It fell behind by more batches than are kept.
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
                        // Others of this thread go first.
                        tokio::task::yield_now().await;
                    }
                    found
                }
            };
            if let Some(batch) = batch {
                if let Some(last) = batch.changes.last() {
                    self.cursor = self.cursor.max((last.revision, last.position + 1));
                }
                return Ok(batch);
            }
        }
    }

    /// See [`StateMachineStore::encoded`].
    pub fn encoded<'a>(
        &self,
        batch: &'a Batch,
        encode: impl FnOnce(&[Change], &LongEvents) -> Vec<Bytes>,
    ) -> &'a [Bytes] {
        self.store.encoded(batch, encode)
    }

    /// The revision up to which all has been taken that is wanted, if nothing is waiting.
    pub fn caught_up(&mut self) -> Option<u64> {
        // Before looking at what waits: what is handed out in between is not counted as taken.
        let published = self.store.hub().published.load(Ordering::Acquire);
        let receiver = self.receiver.as_ref()?;
        // One that is closed is empty too, and the changes that a snapshot brought were not in it.
        if !self.follows || !receiver.is_empty() || receiver.is_closed() {
            return None;
        }
        self.skip_to(published + 1);
        // In the middle of a revision it has a change that is only being handed out to others.
        (self.cursor.1 == 0).then(|| self.cursor.0 - 1)
    }

    /// Notes that there is nothing more for it before a revision, so that a watch
    /// of quiet keys does not lose its place when the history moves on.
    fn skip_to(&mut self, revision: u64) {
        self.cursor = self.cursor.max((revision, 0));
    }

    /// Reads on in the history, some of it. At its end the watch joins the group, or follows it again.
    fn catch_up(&mut self) -> Result<Option<Arc<Batch>>, WatchError> {
        let hub = self.store.hub().clone();
        let (filter, receiver, cursor) = (&self.filter, &self.receiver, self.cursor);
        let (changes, next, joined) = self.store.read(|machine| {
            let oldest = machine.history.oldest();
            if cursor.0 < oldest {
                return Err(WatchError::Gone { oldest });
            }
            Ok(match changes_from(machine, filter, cursor) {
                (changes, Some(next)) => (changes, next, None),
                // Nothing is applied meanwhile, so nothing falls between the two. What was handed out before is of
                // the history. If the group has ended, so has the new receiver.
                (changes, None) => {
                    let receiver = receiver.as_ref().map_or_else(|| hub.join(filter), Receiver::resubscribe);
                    (changes, machine.revision + 1, Some(receiver))
                }
            })
        })?;
        if let Some(receiver) = joined {
            self.receiver = Some(receiver);
            self.follows = true;
        }
        self.skip_to(next);
        Ok((!changes.is_empty()).then(|| Batch::new(changes, 0)))
    }

    /// A batch without what was wanted later, or was taken before.
    fn wanted_of(&self, batch: Arc<Batch>) -> Option<Arc<Batch>> {
        let wanted = |change: &Change| (change.revision, change.position) >= self.cursor;
        if batch.changes.first().is_some_and(wanted) {
            return Some(batch);
        }
        let changes: Vec<Change> = batch.changes.iter().filter(|change| wanted(change)).cloned().collect();
        (!changes.is_empty()).then(|| Batch::new(changes, 0))
    }

    fn leave(&mut self) {
        self.follows = false;
        if self.receiver.take().is_some() {
            self.store.hub().leave(&self.filter);
        }
    }
}

impl StateMachineStore {
    /// A batch as `encode` writes it, in pieces: encoded by the first that asks, for all that share it.
    pub fn encoded<'a>(
        &self,
        batch: &'a Batch,
        encode: impl FnOnce(&[Change], &LongEvents) -> Vec<Bytes>,
    ) -> &'a [Bytes] {
        let hub = self.hub();
        let mut is_first = false;
        let pieces = batch.encoded.get_or_init(|| {
            is_first = true;
            encode(&batch.changes, &hub.long_events)
        });
        if is_first {
            hub.handed_out().count_encoded(batch, pieces);
        }
        pieces
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Changes from a place on, of whole revisions, and the revision before which they end; `None` if these are all.
fn changes_from(machine: &ExampleStateMachine, filter: &Filter, cursor: (u64, u32)) -> (Vec<Change>, Option<u64>) {
    let mut changes: Vec<Change> = Vec::new();
    let mut bytes = 0;
    let mut last_revision = None;
    for (looked_at, change) in machine.history.since(cursor.0, cursor.1).enumerate() {
        let is_enough = bytes >= WATCH_BATCH_BYTES || looked_at >= WATCH_LOOKED_AT_MAX;
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

impl Hub {
    /// Hands out all changes after a revision. Requests may read them before this, or while it goes on;
    /// a watch that did drops what it is then handed.
    ///
    /// `machine` is the state after the last entry applied, and all changes up to `revision_before` have
    /// been handed out.
    pub(super) fn publish(&self, machine: &ExampleStateMachine, revision_before: u64) {
        if self.watched.load(Ordering::Acquire) && machine.revision != revision_before {
            self.hand_out(machine, revision_before);
        }
        self.published.store(machine.revision, Ordering::Release);
    }

    /// The state is another one, or the first: watches read the history of this one.
    pub(super) fn replaced(&self, machine: &ExampleStateMachine) {
        self.published.store(machine.revision, Ordering::Release);
    }

    fn hand_out(&self, machine: &ExampleStateMachine, revision_before: u64) {
        if machine.history.oldest() > revision_before + 1 {
            // So much was applied at once that some of it is already forgotten:
            // who waits for it must not miss that.
            return self.reset(revision_before + 1);
        }
        let mut groups = self.groups();
        let Groups { by_key, by_prefix } = &mut *groups;
        // In the order in which their changes came, a shorter prefix before the longer ones that begin with it.
        let mut keys: Vec<Key> = Vec::new();
        let mut prefixes: Vec<usize> = Vec::new();
        for change in machine.history.since(revision_before + 1, 0) {
            let bytes = change.bytes();
            let mut of_key = by_key.get_mut(&change.key);
            if let Some(group) = &mut of_key {
                group.add(change, bytes, || keys.push(change.key.clone()));
            }
            let prefixes_before = prefixes.len();
            let mut shortest = None;
            by_prefix.for_each_of(&change.key, |number, group| {
                group.add(change, bytes, || prefixes.push(number));
                shortest = Some(number);
            });
            prefixes[prefixes_before..].reverse();
            let last = shortest.and_then(|number| by_prefix.get_numbered(number)).or(of_key);
            if let Some(added) = last.and_then(|group| group.pending.last_mut()) {
                added.counted_bytes = bytes;
            }
        }
        let mut handed_out = self.handed_out();
        let mut send = |group: Option<&mut Group>| {
            if let Some(group) = group {
                group.send(&mut handed_out);
            }
        };
        keys.iter().for_each(|key| send(by_key.get_mut(key)));
        // The shortest prefix of a change last, as that counts its key and value.
        prefixes.iter().rev().for_each(|number| send(by_prefix.get_numbered(*number)));
    }

    /// Sends all watches back to the history, after that was replaced, or has lost
    /// what they were to be handed. All changes before `revision` have been.
    pub(super) fn reset(&self, revision: u64) {
        let groups = {
            let mut groups = self.groups();
            // Locked still: whoever joins again after this must be handed what comes.
            self.watched.store(false, Ordering::Release);
            std::mem::take(&mut *groups)
        };
        for group in groups.by_key.values().chain(groups.by_prefix.values()) {
            // An error means that the last one has just left.
            let _ = group.sender.send(Handed::Last(revision));
        }
    }

    fn join(&self, filter: &Filter) -> Receiver<Handed> {
        let mut groups = self.groups();
        self.watched.store(true, Ordering::Release);
        let new = || Group { sender: Sender::new(WATCH_BATCHES_MAX), pending: Vec::new(), pending_bytes: 0 };
        match filter {
            Filter::Key(key) => groups.by_key.entry(key.clone()).or_insert_with(new).sender.subscribe(),
            Filter::Prefix(prefix) => match groups.by_prefix.get(prefix) {
                Some(group) => group.sender.subscribe(),
                None => {
                    let group = new();
                    let receiver = group.sender.subscribe();
                    groups.by_prefix.insert(prefix.clone(), group);
                    receiver
                }
            },
        }
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
                }
            }
        }
        if groups.by_key.is_empty() && groups.by_prefix.is_empty() {
            self.watched.store(false, Ordering::Release);
        }
    }

    fn handed_out(&self) -> MutexGuard<'_, HandedOut> {
        self.handed_out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn groups(&self) -> MutexGuard<'_, Groups> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Group {
    fn add(&mut self, change: &Change, bytes: usize, first: impl FnOnce()) {
        if self.pending.is_empty() {
            first();
        }
        self.pending_bytes += bytes;
        self.pending.push(Pending { change: change.clone(), bytes, counted_bytes: Change::FIXED_BYTES });
    }

    /// Hands out what was put together.
    fn send(&mut self, handed_out: &mut HandedOut) {
        let changes = std::mem::take(&mut self.pending);
        for batch in batches_of(changes, std::mem::take(&mut self.pending_bytes)) {
            let first = batch.changes.first().map_or(0, |change| change.revision);
            // An error means that the last one has just left. It may count what others hold, so it is added all the same.
            let _ = self.sender.send(Handed::Batch(Arc::downgrade(&batch), first));
            handed_out.add(batch);
        }
    }
}

/// Batches of whole revisions, of `bytes` in all: short ones, and no more than half of those that a
/// watch may fall behind.
fn batches_of(pending: Vec<Pending>, bytes: usize) -> Vec<Arc<Batch>> {
    let batch_bytes = WATCH_HANDED_OUT_BATCH_BYTES.max(bytes.div_ceil(WATCH_BATCHES_MAX / 2));
    let mut batches = Vec::new();
    let mut batch: Vec<Change> = Vec::new();
    let (mut bytes, mut counted_bytes) = (0, 0);
    for it in pending {
        if bytes >= batch_bytes && batch.last().is_some_and(|last| last.revision != it.change.revision) {
            batches.push(Batch::new(std::mem::take(&mut batch), counted_bytes));
            (bytes, counted_bytes) = (0, 0);
        }
        bytes += it.bytes;
        counted_bytes += it.counted_bytes;
        batch.push(it.change);
    }
    batches.push(Batch::new(batch, counted_bytes));
    batches
}
