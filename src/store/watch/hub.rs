//! The watches of a node in groups, and the batches of changes that it hands out to them.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use bytes::Bytes;
use tokio::sync::broadcast::{Receiver, Sender};

use super::prefixes::Prefixes;
use crate::config::{
    WATCH_BATCHES_MAX, WATCH_HANDED_OUT_BATCH_BYTES, WATCH_HANDED_OUT_BYTES_MAX, WATCH_LONG_EVENT_BYTES,
    WATCH_LONG_EVENTS_BYTES_MAX,
};
use crate::operation::Key;
use crate::store::state_machine::ExampleStateMachine;
use crate::store::state_machine::history::Change;

/// The keys of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// One key.
    Key(Key),
    /// All keys that begin with this.
    Prefix(Key),
}

/// Consecutive changes, of whole revisions.
#[derive(Debug)]
pub struct Batch {
    changes: Vec<Change>,
    /// The batch as it is sent, in pieces: encoded once for all watches of the same keys.
    encoded: OnceLock<Vec<Bytes>>,
    /// The bytes that its changes count in [`HandedOut`]; 0 if it is not in there. Changes only while that is locked.
    counted_bytes: AtomicUsize,
    /// Whether `encoded` counts in there too. Changes only while that is locked.
    encoded_is_counted: AtomicBool,
}

/// A message to the watches of a group.
#[derive(Clone, Debug)]
pub(super) enum Handed {
    /// The next batch, which exists for as long as the node keeps it, and the revision of its first change. All changes
    /// of the group before that have been handed out.
    Batch(Weak<Batch>, u64),
    /// The group ends: all changes before this revision have been handed out.
    Last(u64),
}

/// All watches of one node.
#[derive(Debug, Default)]
pub(in crate::store) struct Hub {
    groups: Mutex<Groups>,
    /// Whether any group exists. Each write reads it.
    watched: AtomicBool,
    /// All changes up to this revision have been handed out. The state may be ahead of it.
    pub(super) published: AtomicU64,
    // Taken after `groups`, if both are.
    handed_out: Mutex<HandedOut>,
    long_events: LongEvents,
}

/// The newest batches that were handed out, oldest first.
///
/// Each byte in memory counts once, however many groups share it. A change counts [`Change::FIXED_BYTES`] in each
/// batch. Its key and value count in the last batch that has it: batches are dropped in order, so these bytes count for
/// as long as a batch in here holds them. An encoded piece counts once for all batches that have it, from when the
/// first of them is encoded.
///
/// Invariant: `bytes` is the sum of the batches' `counted_bytes` and of the pieces of those whose
/// `encoded_is_counted`, and at most [`WATCH_HANDED_OUT_BYTES_MAX`] unless only one batch is kept.
#[derive(Debug, Default)]
struct HandedOut {
    batches: VecDeque<Arc<Batch>>,
    /// Number of batches that have each piece, by its address, which is unique while a batch has it.
    pieces: HashMap<usize, usize>,
    bytes: usize,
}

/// The data of long events, by revision and position. It is the same for every watch, so groups and readers of the
/// history share it: an event is encoded again only if it is not one of the last and no watch holds it.
#[derive(Debug, Default)]
pub struct LongEvents {
    encoded: Mutex<Encoded>,
}

#[derive(Debug, Default)]
struct Encoded {
    events: HashMap<(u64, u32), Weak<Bytes>>,
    /// The events that were encoded last, and their bytes.
    last: VecDeque<Arc<Bytes>>,
    last_bytes: usize,
}

/// An event that a watch holds, in its batch or while it is being sent.
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
    /// Changes of the batches that are being assembled.
    pending: Vec<Pending>,
    /// The sum of their [`Change::bytes`].
    pending_bytes: usize,
}

#[derive(Debug)]
struct Pending {
    change: Change,
    /// [`Change::bytes`].
    bytes: usize,
    /// The bytes that it counts in [`HandedOut`].
    counted_bytes: usize,
}

impl Filter {
    /// Whether the watch includes a key.
    pub fn matches(&self, key: &str) -> bool {
        match self {
            Filter::Key(wanted) => key == wanted.as_str(),
            Filter::Prefix(prefix) => key.starts_with(prefix.as_str()),
        }
    }
}

impl Batch {
    /// `counted_bytes`: the bytes that it counts in [`HandedOut`]; 0 if it will not be in there.
    pub(super) fn new(changes: Vec<Change>, counted_bytes: usize) -> Arc<Self> {
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

    /// Bytes of the changes that no other watch shares: 0 for a batch that was handed out. Long events do not count.
    pub fn unshared_bytes(&self) -> usize {
        if self.counted_bytes() > 0 {
            return 0;
        }
        let bytes = self.changes.iter().map(Change::bytes);
        bytes.filter(|bytes| *bytes < WATCH_LONG_EVENT_BYTES).sum()
    }

    /// Bytes of the changes, unless they are encoded already.
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

    /// Drops the oldest batches while they have too many bytes, and batches that all readers have taken.
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
        debug_assert!(self.bytes <= WATCH_HANDED_OUT_BYTES_MAX || self.batches.len() == 1, "{} bytes", self.bytes);
        debug_assert!(!self.batches.is_empty() || self.bytes == 0 && self.pieces.is_empty(), "{} bytes", self.bytes);
    }
}

impl LongEvents {
    /// Whether the event of a change is long, and its data must be taken from here.
    pub fn is_for(&self, change: &Change) -> bool {
        change.bytes() >= WATCH_LONG_EVENT_BYTES
    }

    /// The data of a change's event as `encode` returns it.
    pub fn get_or_encode(&self, change: &Change, encode: impl FnOnce() -> Bytes) -> Bytes {
        let place = (change.revision, change.position);
        if let Some(found) = self.lock().events.get(&place).and_then(Weak::upgrade) {
            return Bytes::from_owner(Held(found));
        }
        // Without the lock: another thread may encode the same event, which is harmless.
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

impl Hub {
    /// The encoded batch, in pieces. The first caller encodes it for all watches that share it.
    pub(in crate::store) fn encoded<'a>(
        &self,
        batch: &'a Batch,
        encode: impl FnOnce(&[Change], &LongEvents) -> Vec<Bytes>,
    ) -> &'a [Bytes] {
        let mut is_first = false;
        let pieces = batch.encoded.get_or_init(|| {
            is_first = true;
            encode(&batch.changes, &self.long_events)
        });
        if is_first {
            self.handed_out().count_encoded(batch, pieces);
        }
        pieces
    }

    /// Hands out all changes after a revision. Watches may read them from the history before this is done; such a watch
    /// drops the changes that it is handed again.
    ///
    /// `machine` is the state after the last entry applied, and all changes up to `revision_before` have
    /// been handed out.
    pub(in crate::store) fn publish(&self, machine: &ExampleStateMachine, revision_before: u64) {
        if self.watched.load(Ordering::Acquire) && machine.revision != revision_before {
            self.hand_out(machine, revision_before);
        }
        self.published.store(machine.revision, Ordering::Release);
    }

    /// The state was replaced, or is the first one: watches read its history.
    pub(in crate::store) fn replaced(&self, machine: &ExampleStateMachine) {
        self.published.store(machine.revision, Ordering::Release);
    }

    fn hand_out(&self, machine: &ExampleStateMachine, revision_before: u64) {
        if machine.history.oldest() > revision_before + 1 {
            // One batch of entries made more changes than the history keeps. The watches must notice that some are
            // missing.
            return self.reset(revision_before + 1);
        }
        let mut groups = self.groups();
        let Groups { by_key, by_prefix } = &mut *groups;
        // In the order of their changes, a shorter prefix before the longer ones that begin with it.
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
        // The shortest prefix of a change last, since its batch counts the key and value.
        prefixes.iter().rev().for_each(|number| send(by_prefix.get_numbered(*number)));
    }

    /// Sends all watches back to the history, after it was replaced or has lost changes that were not handed out. All
    /// changes before `revision` were.
    pub(in crate::store) fn reset(&self, revision: u64) {
        let groups = {
            let mut groups = self.groups();
            // Under the lock: a watch that joins after this must receive later changes.
            self.watched.store(false, Ordering::Release);
            std::mem::take(&mut *groups)
        };
        for group in groups.by_key.values().chain(groups.by_prefix.values()) {
            // An error means that the last watch has just left.
            let _ = group.sender.send(Handed::Last(revision));
        }
    }

    pub(super) fn join(&self, filter: &Filter) -> Receiver<Handed> {
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

    /// Removes the group of a filter if no watch is in it.
    pub(super) fn leave(&self, filter: &Filter) {
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

    /// Hands out the assembled changes.
    fn send(&mut self, handed_out: &mut HandedOut) {
        let changes = std::mem::take(&mut self.pending);
        for batch in batches_of(changes, std::mem::take(&mut self.pending_bytes)) {
            let first = batch.changes.first().map_or(0, |change| change.revision);
            // An error means that the last watch has just left. The batch may count bytes that others hold, so keep it.
            let _ = self.sender.send(Handed::Batch(Arc::downgrade(&batch), first));
            handed_out.add(batch);
        }
    }
}

/// Batches of whole revisions, of `bytes` in total: short ones, and at most half as many as a watch may fall behind.
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
