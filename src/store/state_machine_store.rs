//! The state machine as openraft drives it: apply, snapshot, install.

use std::io;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine, Snapshot};
use openraft::{OptionalSend, RaftSnapshotBuilder};
use rustix::process::setpriority_process;
use rustix::thread::gettid;
use tokio::sync::{oneshot, watch};

use super::applied::{AppliedWaits, Due, TooManyWaits};
use super::error::StoreError;
use super::self_check::{self, Announced, SelfCheck, SelfChecks};
use super::snapshot::export::{self, Export, ExportError};
use super::snapshot::{SnapshotDirectory, SnapshotFile};
use super::state_machine::ExampleStateMachine;
use super::state_machine::access::{Access, AccessMode};
use super::state_machine::history::Change;
use super::state_machine::listing::Listings;
use super::state_machine::requests::Requests;
use super::watch::hub::{Batch, Filter, Hub, LongEvents};
use super::watch::subscription::Subscription;
use crate::clock::LogClock;
use crate::config::{APPLY_ENTRIES_MAX, SNAPSHOT_NICENESS};
use crate::seeded_bug::{self, SeededBug};
use crate::telemetry::meters::StateMeters;
use crate::types::{Entry, LogId, Payload, SnapshotMeta, StoredMembership, TypeConfig};

type SnapshotOf = openraft::alias::SnapshotOf<TypeConfig, SnapshotFile>;

/// The state machine of one node, with its snapshots. Clones share it.
#[derive(Clone, Debug)]
pub struct StateMachineStore {
    // Readers of keys run in parallel; a writer holds the lock for one batch.
    machine: Arc<RwLock<ExampleStateMachine>>,
    snapshots: Arc<SnapshotDirectory>,
    hub: Arc<Hub>,
    applied_waits: Arc<AppliedWaits>,
    listings: Arc<Mutex<Listings>>,
    // Locked after `machine`, if both are.
    self_checks: Arc<Mutex<SelfChecks>>,
    // Updated while `machine` is locked, so that no reader sees it behind the state's clock.
    clock: Arc<LogClock>,
    // Memory of the keys and values after the last batch.
    memory_bytes: Arc<AtomicU64>,
    meters: Arc<StateMeters>,
    // Updated while `machine` is locked, before the results of the entries are known.
    access: Arc<AccessCell>,
}

/// Who may use the cluster as of the last applied entry, without the rest of the state.
#[derive(Debug)]
pub struct AccessCell {
    now: watch::Sender<Arc<Access>>,
    /// Read with each request.
    mode: AtomicU8,
    /// The number of changes since the start. Read with each request that has a token.
    version: AtomicU64,
}

impl AccessCell {
    fn new(access: Arc<Access>) -> Self {
        let mode = AtomicU8::new(access.mode() as u8);
        AccessCell { now: watch::Sender::new(access), mode, version: AtomicU64::new(0) }
    }

    /// Whether requests need a token.
    #[inline]
    pub fn mode(&self) -> AccessMode {
        match self.mode.load(Ordering::Acquire) {
            0 => AccessMode::Open,
            1 => AccessMode::Required,
            _ => AccessMode::Disabled,
        }
    }

    /// The number of changes so far. The result of a lookup is valid until this number changes.
    #[inline]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The tokens, at least as new as a version that was read before.
    pub fn now(&self) -> Arc<Access> {
        self.now.borrow().clone()
    }

    /// Tells of each change.
    pub fn changes(&self) -> watch::Receiver<Arc<Access>> {
        self.now.subscribe()
    }

    fn set(&self, access: &Arc<Access>) {
        if !Arc::ptr_eq(&self.now.borrow(), access) {
            self.now.send_modify(|now| {
                now.clone_from(access);
                // Before a waiting task is woken and before a result is sent, so that neither checks a token by the
                // old version. Only the task that applies entries changes them.
                self.mode.store(access.mode() as u8, Ordering::Release);
                if !seeded_bug::is_on(SeededBug::RevocationNotNoticed) {
                    self.version.fetch_add(1, Ordering::Release);
                }
            });
        }
    }
}

impl StateMachineStore {
    pub(super) fn new(machine: ExampleStateMachine, snapshots: SnapshotDirectory, clock: Arc<LogClock>) -> Self {
        clock.applied(machine.clock_ms);
        let hub = Hub::default();
        hub.replaced(&machine);
        StateMachineStore {
            access: Arc::new(AccessCell::new(machine.access.clone())),
            memory_bytes: Arc::new(AtomicU64::new(machine.memory_bytes())),
            machine: Arc::new(RwLock::new(machine)),
            snapshots: Arc::new(snapshots),
            hub: Arc::new(hub),
            applied_waits: Arc::default(),
            listings: Arc::default(),
            self_checks: Arc::default(),
            clock,
            meters: Arc::default(),
        }
    }

    /// Runs `read` on the current state. Entries are not applied meanwhile.
    pub fn read<T>(&self, read: impl FnOnce(&ExampleStateMachine) -> T) -> T {
        // A panic while applying stops the node, so only requests that are already in progress see a poisoned state.
        read(&self.machine.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, write: impl FnOnce(&mut ExampleStateMachine) -> T) -> T {
        write(&mut self.machine.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Watches the keys of a filter, beginning with the change at `revision` and `position`.
    pub fn watch(&self, filter: Filter, revision: u64, position: u32) -> Subscription {
        Subscription::new(self.machine.clone(), self.hub.clone(), filter, (revision, position))
    }

    /// Waits until an entry is applied, and returns the state after it. It is the state after a later entry if that is
    /// applied already, or if a snapshot contained both. `None` if applying failed, which stops the node.
    ///
    /// # Errors
    ///
    /// [`TooManyWaits`] if [`APPLIED_WAITING_MAX`](crate::config::APPLIED_WAITING_MAX) others wait.
    pub async fn state_after(&self, index: u64) -> Result<Option<SelfCheck>, TooManyWaits> {
        let waiting = self.read(|machine| {
            if machine.last_applied.is_some_and(|applied| applied.index >= index) {
                return Err(SelfCheck::of(machine));
            }
            // The state is locked, so the entry is not applied in between.
            Ok(self.applied_waits.wait(index))
        });
        match waiting {
            Err(state) => Ok(Some(state)),
            Ok(wait) => Ok(wait?.applied().await),
        }
    }

    /// The encoded batch, in pieces. The first caller encodes it for all watches that share it.
    pub fn encoded<'a>(
        &self,
        batch: &'a Batch,
        encode: impl FnOnce(&[Change], &LongEvents) -> Vec<Bytes>,
    ) -> &'a [Bytes] {
        self.hub.encoded(batch, encode)
    }

    /// The states kept for listings of several pages.
    pub fn listings(&self) -> MutexGuard<'_, Listings> {
        lock(&self.listings)
    }

    /// The hashes of this node's states, to compare them with the leader's.
    pub fn self_checks(&self) -> MutexGuard<'_, SelfChecks> {
        lock(&self.self_checks)
    }

    /// Compares this node's state with the leader's, or records its hash, if the entry just applied requires that.
    fn check(&self, machine: &ExampleStateMachine, index: u64, announced: Option<Announced>) -> io::Result<()> {
        if let Some(announced) = announced
            && !self.self_checks().compare(announced)
        {
            // This error only stops openraft. `SelfChecks` keeps the cause for the server.
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the state differs from the leader's"));
        }
        if self_check::is_due(index) {
            self.self_checks().note(machine);
        }
        Ok(())
    }

    /// Approximate memory of all keys and values, in bytes, without waiting for the state.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes.load(Ordering::Relaxed)
    }

    /// Who may use the cluster.
    pub fn access(&self) -> &Arc<AccessCell> {
        &self.access
    }

    /// The node's clock of log time.
    pub fn clock(&self) -> &Arc<LogClock> {
        &self.clock
    }

    /// What the state machine measures of itself.
    pub fn meters(&self) -> &StateMeters {
        &self.meters
    }

    /// Begins to write a snapshot of the current state for a client, on a thread of its own, and returns it once its
    /// length is known. See [`export::write`] for `has_room`.
    ///
    /// # Errors
    ///
    /// [`ExportError`].
    pub async fn export(&self, has_room: impl Fn(u64) -> bool + Send + 'static) -> Result<Export, ExportError> {
        let machine = if seeded_bug::is_on(SeededBug::BackupOfLaterState) {
            let named = self.read(|machine| machine.last_applied);
            tokio::time::sleep(Duration::from_millis(100)).await;
            ExampleStateMachine { last_applied: named, ..self.read(ExampleStateMachine::clone) }
        } else {
            self.read(ExampleStateMachine::clone)
        };
        let snapshots = self.snapshots.clone();
        let (begun_tx, begun_rx) = oneshot::channel();
        let write = move || export::write(&machine, &snapshots, has_room, begun_tx);
        low_priority_thread("export", write).map_err(ExportError::Failed)?;
        begun_rx.await.unwrap_or_else(|_| Err(ExportError::Failed(io::Error::other("the thread that writes it ended"))))
    }

    /// Where snapshots are kept and received.
    pub fn snapshots(&self) -> &Arc<SnapshotDirectory> {
        &self.snapshots
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RaftStateMachine<TypeConfig> for StateMachineStore {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok(self.read(|machine| (machine.last_applied, machine.last_membership.clone())))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut chunks = entries.ready_chunks(APPLY_ENTRIES_MAX);
        while let Some(chunk) = chunks.next().await {
            let mut chunk = chunk.into_iter().collect::<io::Result<Vec<_>>>()?;
            if seeded_bug::is_on(SeededBug::EntriesSwapped) {
                swap_two(&mut chunk);
            }
            let (began, count) = (Instant::now(), chunk.len());
            let mut answers = Vec::with_capacity(count);
            let mut due = Due::default();
            let revision_before = self.write(|machine| {
                let revision_before = machine.revision;
                for (entry, responder) in chunk {
                    check_next(machine.last_applied, &entry)?;
                    let (index, announced) = (entry.log_id.index, Announced::in_entry(&entry));
                    let response = machine.apply(entry);
                    self.check(machine, index, announced)?;
                    self.applied_waits.take_due(machine, &mut due);
                    answers.extend(responder.map(|responder| (responder, response)));
                }
                self.clock.applied(machine.clock_ms);
                self.access.set(&machine.access);
                self.memory_bytes.store(machine.memory_bytes(), Ordering::Relaxed);
                io::Result::Ok(revision_before)
            })?;
            // Readers continue meanwhile. Only this task changes the state, so it is still the same.
            self.read(|machine| self.hub.publish(machine, revision_before));
            // Outside the lock: each wakes a request that is about to read.
            for (responder, response) in answers {
                responder.send(response);
            }
            due.tell();
            self.meters.apply.record(began.elapsed());
            self.meters.applied_entries.add(count as u64);
        }
        Ok(())
    }

    /// Takes no snapshot that the disk has no room for: it would be written in part, and given up.
    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<SnapshotBuilder> {
        let snapshots = self.snapshots.clone();
        // Not on this thread: it reads the disk, and may delete large files. If that panics, writing will show the
        // cause.
        let has_room = async { tokio::task::spawn_blocking(move || snapshots.has_room()).await.unwrap_or(true) };
        if !force && !has_room.await {
            self.meters.build_failures.increment();
            tracing::warn!("cannot take a snapshot: the disk has too little free space; free some disk space");
            return None;
        }
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder {
            machine: self.read(ExampleStateMachine::clone),
            snapshots: self.snapshots.clone(),
            self_checks: self.self_checks.clone(),
            meters: self.meters.clone(),
        }
    }

    async fn install_snapshot(&mut self, _meta: &SnapshotMeta, snapshot: SnapshotFile) -> io::Result<()> {
        let began = Instant::now();
        let snapshots = self.snapshots.clone();
        let installed = on_blocking_thread(move || snapshots.install(snapshot).map_err(io::Error::from)).await;
        let machine = installed.inspect_err(|_| self.meters.install_failures.increment())?;
        let mut due = Due::default();
        let old = self.write(|current| {
            assert!(machine.last_applied >= current.last_applied, "the snapshot lacks entries that are applied here");
            self.hub.reset(current.revision + 1);
            self.self_checks().forget();
            self.clock.applied(machine.clock_ms);
            self.access.set(&machine.access);
            self.memory_bytes.store(machine.memory_bytes(), Ordering::Relaxed);
            self.hub.replaced(&machine);
            self.applied_waits.take_due(&machine, &mut due);
            std::mem::replace(current, machine)
        });
        due.tell();
        self.meters.install.record(began.elapsed());
        // Freeing a large map is slow, so no caller waits for it.
        tokio::task::spawn_blocking(move || drop(old));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf>> {
        Ok(self.snapshots.newest()?.map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}

/// Writes a snapshot of the state as it was when this was created.
#[derive(Debug)]
pub struct SnapshotBuilder {
    machine: ExampleStateMachine,
    snapshots: Arc<SnapshotDirectory>,
    self_checks: Arc<Mutex<SelfChecks>>,
    meters: Arc<StateMeters>,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf> {
        let (snapshots, self_checks) = (self.snapshots.clone(), self.self_checks.clone());
        let machine = std::mem::take(&mut self.machine);
        let (began, last_applied) = (Instant::now(), machine.last_applied);
        let built = in_the_background(move || {
            let machine = if seeded_bug::is_on(SeededBug::SnapshotMissesLastEntry) {
                machine.without_last_change()
            } else if seeded_bug::is_on(SeededBug::SnapshotMissesRequests) {
                ExampleStateMachine { requests: Requests::default(), ..machine }
            } else {
                machine
            };
            match snapshots.build(&machine) {
                Ok((meta, snapshot)) => Ok(Snapshot { meta, snapshot }),
                Err(StoreError::MemoryChanged) => {
                    lock(&self_checks).fail(StoreError::MemoryChanged);
                    Err(StoreError::MemoryChanged.into())
                }
                Err(error) => Err(error.into()),
            }
        })
        .await;
        match &built {
            // Without room on the disk, the snapshot is empty.
            Ok(built) if built.meta.last_log_id == last_applied => self.meters.build.record(began.elapsed()),
            _ => self.meters.build_failures.increment(),
        }
        built
    }
}

/// Gives two entries each other's payloads: [`SeededBug::EntriesSwapped`].
fn swap_two(entries: &mut [EntryResponder<TypeConfig>]) {
    if let [(first, _), (second, _), ..] = entries {
        std::mem::swap(&mut first.payload, &mut second.payload);
    }
}

/// Checks that no entry is missing before `next`, and that it was not applied before: both would make this node differ
/// from the others, unnoticed until the next self-check.
///
/// Only commands must not leave a gap: openraft's conformance suite leaves gaps between other entries.
fn check_next(applied: Option<LogId>, next: &Entry) -> io::Result<()> {
    let index = applied.map_or(0, |applied| applied.index + 1);
    let may_leave_gap = !matches!(next.payload, Payload::Normal(_));
    if next.log_id.index == index || may_leave_gap && next.log_id.index > index {
        return Ok(());
    }
    let message = format!("the next entry to apply must have index {index}, got {}", next.log_id.index);
    Err(io::Error::new(io::ErrorKind::InvalidData, message))
}

/// Runs `work` on a new thread of low priority.
///
/// (Not on the blocking pool: a thread cannot raise its priority again.)
async fn in_the_background<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let (tx, rx) = oneshot::channel();
    low_priority_thread("snapshot", move || {
        // An error means that the node has stopped meanwhile.
        let _ = tx.send(work());
    })?;
    rx.await.map_err(|_| io::Error::other("the snapshot thread panicked"))?
}

fn low_priority_thread(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.into()).spawn(|| {
        // On Linux, each thread has a priority of its own. Without it, a snapshot only delays requests more.
        if let Err(error) = setpriority_process(Some(gettid()), SNAPSHOT_NICENESS) {
            tracing::debug!("cannot lower the priority of the snapshot thread: {error}");
        }
        work();
    })?;
    Ok(())
}

async fn on_blocking_thread<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::log::check::CheckedLog;
    use crate::store::state_machine::history::ChangeKind;
    use crate::store::state_machine::record::tests::new_record;

    /// Memory that changed by itself is not written into a snapshot, and stops the node.
    ///
    /// Method: behind the back of the state machine, insert a key that was never put, or change a former value or the
    /// key of a change.
    #[tokio::test]
    async fn changed_memory_is_not_written() {
        let changes: [fn(&mut ExampleStateMachine); 3] = [
            |machine| {
                let record = new_record("key", "value".into(), 1);
                machine.data.insert("key".into(), Arc::new(record));
            },
            |machine| {
                let mut record = new_record("key", "value".into(), 1);
                record.value = "other".into();
                machine.revision = 1;
                machine.history.push(1, "key".into(), ChangeKind::Put(Arc::new(record)));
            },
            |machine| {
                let record = Arc::new(new_record("key", "value".into(), 1));
                machine.revision = 1;
                machine.insert_record("key".into(), record.clone());
                machine.history.push(1, "kez".into(), ChangeKind::Put(record));
            },
        ];
        for change in changes {
            let directory = tempfile::tempdir().unwrap();
            let (snapshots, machine) = SnapshotDirectory::open(directory.path(), &CheckedLog::default()).unwrap();
            let clock = Arc::new(LogClock::new(None));
            let mut store = StateMachineStore::new(machine, snapshots, clock);
            store.get_snapshot_builder().await.build_snapshot().await.unwrap();
            store.write(change);
            let error = store.get_snapshot_builder().await.build_snapshot().await.map(drop).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            let failure = store.self_checks().take_failure();
            assert!(matches!(failure, Some(StoreError::MemoryChanged)), "{failure:?}");
        }
    }
}
