//! Compares the store with a model in memory, and reopens the store after every operation.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use openraft::storage::RaftLogStorage;
use raft_key_value::operation::{Operation as WriteOperation, Write};
use raft_key_value::store::ExampleStore;
use raft_key_value::types::{Command, Entry, LogId, Payload, SnapshotMeta, StoredMembership};
use tempfile::TempDir;

use crate::support::*;

/// An operation that openraft performs on a store. Indexes are random numbers that are reduced modulo the valid range,
/// so that any number makes a valid operation.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Append {
        count: u64,
        random: u64,
    },
    SaveVote {
        term: u64,
        committed: bool,
    },
    SaveCommitted {
        index: u64,
    },
    Truncate {
        index: u64,
    },
    Apply {
        index: u64,
    },
    BuildSnapshot,
    Purge {
        index: u64,
    },
    /// Installs a snapshot that covers this many entries more than are committed.
    Install {
        beyond: u64,
    },
    Flush,
}

use Operation::{Append, Apply, BuildSnapshot, Flush, Install, Purge, SaveCommitted, SaveVote, Truncate};

/// How the process ends between two operations.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// The store is closed.
    Close,
    /// The directory is copied while the store is still open.
    Kill,
}

/// What a store must hold.
#[derive(Default)]
struct Model {
    /// The observable state of the store, updated by hand with each operation.
    expected: Observed,
    /// All entries that were in the log and were not truncated, including purged ones.
    history: BTreeMap<u64, Entry>,
    term: u64,
}

fn index_of(log_id: Option<LogId>) -> Option<u64> {
    log_id.map(|log_id| log_id.index)
}

fn next_index(log_id: Option<LogId>) -> u64 {
    log_id.map_or(0, |log_id| log_id.index + 1)
}

/// A number from `low` to `high`, both included; `None` if the range is empty.
fn choose(number: u64, low: u64, high: u64) -> Option<u64> {
    (low <= high).then(|| low + number % (high - low + 1))
}

impl Model {
    fn entry(&self, index: u64, random: u64) -> Entry {
        let value = "v".repeat((random >> 8) as usize % 90);
        match random % 8 {
            0 => blank(self.term, index),
            1 => membership(self.term, index, &[1, 2 + random % 3]),
            key => set(self.term, index, &format!("key {key}"), &format!("{value}{index}")),
        }
    }

    /// The state after the entries up to `last`, by an independent implementation.
    fn state_at(&self, last: Option<u64>) -> (StoredMembership, BTreeMap<String, String>) {
        let (mut membership, mut data) = (StoredMembership::default(), BTreeMap::new());
        let Some(last) = last else { return (membership, data) };
        for entry in self.history.range(..=last).map(|(_, entry)| entry) {
            match &entry.payload {
                Payload::Blank => {}
                Payload::Normal(Command::Write(Write { operation: WriteOperation::Put(put), .. })) => {
                    data.insert(put.key.to_string(), text_of(&put.value));
                }
                Payload::Normal(other) => panic!("the model makes no {other}"),
                Payload::Membership(new) => membership = StoredMembership::new(Some(entry.log_id), new.clone()),
            }
        }
        (membership, data)
    }

    fn set_applied(&mut self, last: Option<LogId>) {
        (self.expected.membership, self.expected.data) = self.state_at(index_of(last));
        self.expected.applied = last;
    }

    fn cut(&mut self, next: u64) {
        self.history.split_off(&next);
        self.expected.entries.retain(|entry| entry.log_id.index < next);
        self.expected.last = self.expected.entries.last().map_or(self.expected.purged, |entry| Some(entry.log_id));
    }

    fn purge(&mut self, log_id: LogId) {
        self.expected.purged = Some(log_id);
        self.expected.last = self.expected.last.max(Some(log_id));
        self.expected.entries.retain(|entry| entry.log_id.index > log_id.index);
    }

    fn snapshot_meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.expected.applied, last_membership: self.expected.membership.clone() }
    }
}

/// A store, its model, and another node that sends it snapshots.
struct Run {
    directory: TempDir,
    store: ExampleStore,
    leader: Option<(ExampleStore, TempDir)>,
    model: Model,
    /// What a crash may lose: the store does not wait for committed log ids or purges to be on disk.
    committed_on_disk: Option<LogId>,
    before_purges: Vec<Observed>,
}

impl Run {
    fn new() -> Self {
        let directory = scratch();
        let store = open_small(directory.path()).unwrap();
        store.join_cluster(CLUSTER).unwrap();
        let model = Model { term: 1, ..Model::default() };
        Run { directory, store, leader: None, model, committed_on_disk: None, before_purges: Vec::new() }
    }

    async fn perform(&mut self, operation: Operation) {
        self.perform_unwaited(operation).await;
        // These operations wait until everything before them is on disk.
        if matches!(operation, Append { .. } | SaveVote { .. } | Flush) {
            self.all_on_disk();
        }
    }

    fn all_on_disk(&mut self) {
        self.committed_on_disk = self.model.expected.committed;
        self.before_purges.clear();
    }

    fn purge(&mut self, log_id: LogId) {
        self.before_purges.push(self.model.expected.clone());
        self.model.purge(log_id);
    }

    async fn perform_unwaited(&mut self, operation: Operation) {
        let (model, mut log) = (&mut self.model, self.store.log.clone());
        let expected = &model.expected;
        let (last, committed, applied) = (expected.last, expected.committed, expected.applied);
        match operation {
            Append { count, random } => {
                let next = next_index(last);
                let number = |index: u64| random.wrapping_mul(index + 0x9e37_79b9) >> 7;
                let entries: Vec<_> =
                    (next..=next + count % 4).map(|index| model.entry(index, number(index))).collect();
                append(&self.store, entries.clone()).await;
                model.expected.last = entries.last().map(|entry| entry.log_id);
                model.history.extend(entries.iter().map(|entry| (entry.log_id.index, entry.clone())));
                model.expected.entries.extend(entries);
            }
            SaveVote { term, committed } => {
                model.term += term % 2;
                let vote = vote(model.term, committed || expected.vote.is_some_and(|vote| vote.committed));
                log.save_vote(&vote).await.unwrap();
                model.expected.vote = Some(vote);
            }
            SaveCommitted { index } => {
                let Some(index) = choose(index, next_index(committed.max(applied)), next_index(last).max(1) - 1) else {
                    return;
                };
                let Some(log_id) = model.history.get(&index).map(|entry| entry.log_id) else { return };
                log.save_committed(Some(log_id)).await.unwrap();
                model.expected.committed = Some(log_id);
            }
            Truncate { index } => {
                // openraft truncates only entries that are neither committed nor purged.
                let first = next_index(committed.max(applied).max(expected.purged));
                let Some(next) = choose(index, first, next_index(last)) else { return };
                let kept = next.checked_sub(1).map(|index| model.history[&index].log_id);
                log.truncate_after(kept).await.unwrap();
                model.cut(next);
                model.term += 1;
            }
            Apply { index } => {
                let first = next_index(applied);
                let Some(index) = index_of(committed).and_then(|committed| choose(index, first, committed)) else {
                    return;
                };
                apply_from_log(&self.store, index).await;
                model.set_applied(Some(model.history[&index].log_id));
            }
            BuildSnapshot => {
                if applied.is_none() {
                    return;
                }
                let meta = build_snapshot(&self.store).await;
                assert_eq!(meta, model.snapshot_meta());
                model.expected.snapshot = Some(meta);
            }
            Purge { index } => {
                let covered = expected.snapshot.as_ref().and_then(|meta| index_of(meta.last_log_id));
                let first = next_index(expected.purged);
                let Some(index) = covered.and_then(|covered| choose(index, first, covered)) else { return };
                let log_id = model.history[&index].log_id;
                log.purge(log_id).await.unwrap();
                self.purge(log_id);
            }
            Install { beyond } => self.install(1 + beyond % 5).await,
            Flush => log.flush().await.unwrap(),
        }
    }

    /// As openraft does it: truncate entries that contradict the snapshot, install the snapshot, purge up to it.
    async fn install(&mut self, beyond: u64) {
        let (model, mut log) = (&mut self.model, self.store.log.clone());
        let known = model.expected.committed.max(model.expected.applied).max(model.expected.purged);
        let next = next_index(known);
        if next < next_index(model.expected.last) {
            log.truncate_after(known).await.unwrap();
            model.cut(next);
        }
        model.term += 1;
        for index in next..next + beyond {
            let entry = model.entry(index, 31 * index + beyond);
            model.history.insert(index, entry);
        }
        let (leader, _) = self.leader.get_or_insert_with(|| {
            let directory = scratch();
            (open_small(directory.path()).unwrap(), directory)
        });
        let applied = leader.state_machine.read(|machine| machine.last_applied);
        apply(leader, model.history.range(next_index(applied)..).map(|(_, entry)| entry.clone())).await;
        build_snapshot(leader).await;
        install_snapshot(leader, &self.store).await;

        let last = model.history.last_key_value().map(|(_, entry)| entry.log_id);
        model.set_applied(last);
        model.expected.snapshot = Some(model.snapshot_meta());
    }

    /// Ends the process, restarts it, and compares.
    fn reopen(mut self, end: End, context: &str) -> Self {
        assert_eq!(observe(&self.store), self.model.expected, "{context}, before it is closed");
        if end == End::Close {
            self.all_on_disk();
        }
        let Run { directory, store, leader, mut model, committed_on_disk, before_purges } = self;
        let directory = match end {
            End::Close => {
                drop(store);
                directory
            }
            End::Kill => copy(directory.path()),
        };
        let store = open_small(directory.path()).unwrap_or_else(|error| panic!("{context}, reopened: {error}"));
        let found = observe(&store);
        assert!((committed_on_disk..=model.expected.committed).contains(&found.committed), "{context}: {found:?}");
        model.expected.committed = found.committed;
        if let Some(before) = before_purges.into_iter().find(|before| before.purged == found.purged) {
            model.expected =
                Observed { purged: before.purged, last: before.last, entries: before.entries, ..model.expected };
        }
        // The state machine is in memory: it starts from the newest snapshot.
        model.set_applied(model.expected.snapshot.as_ref().and_then(|meta| meta.last_log_id));
        assert_eq!(found, model.expected, "{context}, reopened");
        let (committed_on_disk, before_purges) = (found.committed, Vec::new());
        Run { directory, store, leader, model, committed_on_disk, before_purges }.close_the_hole()
    }

    /// As openraft does it at the start: a log that ends before the snapshot is purged up to it.
    fn close_the_hole(mut self) -> Self {
        let applied = self.model.expected.applied;
        if self.model.expected.last < applied {
            let log_id = applied.unwrap();
            run(self.store.log.clone().purge(log_id)).unwrap();
            self.purge(log_id);
        }
        self
    }
}

fn check(sequence: &[(Operation, End)]) {
    let mut state = Run::new();
    for (step, (operation, end)) in sequence.iter().enumerate() {
        run(state.perform(*operation));
        let sequence = &sequence[..=step];
        state = state.reopen(*end, &format!("after {sequence:?}"));
    }
    // Whatever happened to the store, it must accept writes.
    run(state.perform(Append { count: 1, random: 3 }));
    state.reopen(End::Close, &format!("after {sequence:?} and one entry more"));
}

/// The state after a restart is the same after each operation, in a sequence that uses all operations.
///
/// Method: perform a fixed sequence, and close or kill the store after each operation.
#[test]
fn scripted() {
    let operations = [
        SaveVote { term: 0, committed: false },
        Append { count: 3, random: 2 },
        SaveCommitted { index: 1 },
        SaveVote { term: 1, committed: true },
        Append { count: 2, random: 8 },
        Truncate { index: 2 },
        Append { count: 3, random: 5 },
        SaveCommitted { index: 3 },
        Flush,
        Apply { index: 2 },
        BuildSnapshot,
        Apply { index: 9 },
        BuildSnapshot,
        Purge { index: 1 },
        Append { count: 3, random: 7 },
        Purge { index: 5 },
        SaveCommitted { index: 0 },
        Install { beyond: 3 },
        Append { count: 3, random: 11 },
        SaveCommitted { index: 2 },
        Apply { index: 1 },
        BuildSnapshot,
        Install { beyond: 0 },
        Purge { index: 0 },
        SaveVote { term: 1, committed: false },
    ];
    check(&operations.map(|operation| (operation, End::Close)));
    check(&operations.map(|operation| (operation, End::Kill)));
}

/// A generator of numbers that depend only on the seed (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn operation(&mut self) -> Operation {
        let number = self.next();
        match self.next() % 16 {
            0..4 => Append { count: number, random: self.next() },
            4 => SaveVote { term: number, committed: number.is_multiple_of(4) },
            5..8 => SaveCommitted { index: number },
            8 => Truncate { index: number },
            9..11 => Apply { index: number },
            11..13 => BuildSnapshot,
            13 => Purge { index: number },
            14 => Install { beyond: number },
            _ => Flush,
        }
    }

    fn sequence(&mut self) -> Vec<(Operation, End)> {
        let length = 2 + self.next() % 10;
        let end = |number: u64| if number.is_multiple_of(3) { End::Kill } else { End::Close };
        (0..length).map(|_| (self.operation(), end(self.next()))).collect()
    }
}

/// Stops the other threads, and prints how to repeat a failed case.
struct Case<'a> {
    seed: u64,
    next: &'a AtomicU64,
}

impl Drop for Case<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // With 200,000 cases, the remaining ones would take long and scroll the failure away.
            self.next.store(u64::MAX / 2, Ordering::Relaxed);
            let seed = self.seed;
            tell(&format!("again: RKV_STORE_SEED={seed} RKV_STORE_CASES=1 cargo test --test store model::random"));
        }
    }
}

/// Prints a line, for runs with `--nocapture` and for failures.
fn tell(what: &str) {
    #[expect(clippy::print_stderr, reason = "the only way out of a test")]
    {
        eprintln!("{what}");
    }
}

/// Prints the progress every 10 seconds.
struct Progress {
    started: Instant,
    cases: u64,
    done: AtomicU64,
    /// The time in units of 10 seconds.
    told: AtomicU64,
}

impl Progress {
    fn of(cases: u64) -> Self {
        Progress { started: Instant::now(), cases, done: AtomicU64::new(0), told: AtomicU64::new(0) }
    }

    fn case_is_done(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        let elapsed = self.started.elapsed();
        let due = elapsed.as_secs() / 10;
        if self.told.fetch_max(due, Ordering::Relaxed) < due || done == self.cases {
            tell(&format!("{done} of {} cases in {:.0} s", self.cases, elapsed.as_secs_f64()));
        }
    }
}

fn number_from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// The state after each restart is the same, for any valid sequence of operations.
///
/// Method: perform 2,000 random sequences of 2 to 11 operations (RKV_STORE_CASES: another number, which `make faults`
/// and `make soak` set), seeded by the clock (RKV_STORE_SEED: by that number).
#[test]
fn random() {
    let now = || std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let first_seed = number_from_environment("RKV_STORE_SEED").unwrap_or_else(now);
    let cases = number_from_environment("RKV_STORE_CASES").unwrap_or(2000);
    tell(&format!("{cases} cases from RKV_STORE_SEED={first_seed} on"));
    let (next, progress) = (AtomicU64::new(0), Progress::of(cases));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let case = next.fetch_add(1, Ordering::Relaxed);
                    if case >= cases {
                        return;
                    }
                    let case = Case { seed: first_seed.wrapping_add(case), next: &next };
                    // Neighboring seeds produce similar first numbers.
                    let mut random = Random(case.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
                    random.next();
                    check(&random.sequence());
                    progress.case_is_done();
                }
            });
        }
    });
}
