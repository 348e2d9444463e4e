//! What watches receive, whenever they begin, end, fall behind or are slow.

use std::sync::Arc;

use futures_util::FutureExt;
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use raft_key_value::ExampleStateMachine;
use raft_key_value::config::{HISTORY_BYTES_MAX, WATCH_BATCHES_MAX};
use raft_key_value::operation::{Delete, Operation, Put, Txn, TxnStep, Value};
use raft_key_value::store::{Change, ExampleStore, Filter, Subscription, WatchError};
use raft_key_value::types::Entry;
use tempfile::TempDir;

use crate::support::*;

const KEYS: [&str; 6] = ["a", "a/1", "a/2", "b", "é", "é1"];
const LARGE_BYTES: usize = 6 << 20;

/// A step of a case. Numbers of watches are taken modulo the number of watches.
#[derive(Clone, Debug)]
enum Action {
    /// Applies these entries in one batch.
    Apply(Vec<Change1>),
    /// Puts a key this many times, each in its own batch: more than a watch may fall behind.
    Burst {
        key: usize,
        count: usize,
    },
    /// Applies this many puts of large values in one batch: they displace older changes from the history, and each
    /// other.
    Large {
        key: usize,
        count: usize,
    },
    /// Installs the snapshot of a node that is this much ahead.
    Install(Vec<Change1>),
    /// Begins a watch this many revisions before the next one, or after it.
    Watch {
        filter: usize,
        before: u64,
        after: u64,
        position: u32,
    },
    Poll {
        watch: usize,
        times: usize,
    },
    /// Ends a watch, and resumes it at the same place.
    Resume {
        watch: usize,
    },
    End {
        watch: usize,
    },
    /// Asks for the watch's place, as a heartbeat does.
    CaughtUp {
        watch: usize,
    },
}

#[derive(Clone, Debug)]
enum Change1 {
    Put {
        key: usize,
        ttl_ms: Option<u64>,
    },
    Delete {
        key: usize,
    },
    /// Both at one revision.
    Two(usize, usize),
    DeleteAll,
    Later(u64),
    Blank,
}

fn change() -> impl Strategy<Value = Change1> {
    let key = || 0..KEYS.len();
    prop_oneof![
        6 => (key(), prop_oneof![Just(None), (1..20_u64).prop_map(Some)])
            .prop_map(|(key, ttl_ms)| Change1::Put { key, ttl_ms }),
        2 => key().prop_map(|key| Change1::Delete { key }),
        3 => (key(), key()).prop_map(|(one, other)| Change1::Two(one, other)),
        1 => Just(Change1::DeleteAll),
        2 => (1..20_u64).prop_map(Change1::Later),
        1 => Just(Change1::Blank),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let key = || 0..KEYS.len();
    let watch = any::<usize>;
    let large = 2 * HISTORY_BYTES_MAX / LARGE_BYTES;
    prop_oneof![
        24 => vec(change(), 1..6).prop_map(Action::Apply),
        4 => (key(), 1..3 * WATCH_BATCHES_MAX).prop_map(|(key, count)| Action::Burst { key, count }),
        2 => (key(), 1..large).prop_map(|(key, count)| Action::Large { key, count }),
        3 => vec(change(), 0..8).prop_map(Action::Install),
        12 => (0..FILTERS, 0..30_u64, 0..4_u64, 0..3_u32)
            .prop_map(|(filter, before, after, position)| Action::Watch { filter, before, after, position }),
        30 => (watch(), 1..6_usize).prop_map(|(watch, times)| Action::Poll { watch, times }),
        6 => watch().prop_map(|watch| Action::Resume { watch }),
        2 => watch().prop_map(|watch| Action::End { watch }),
        4 => watch().prop_map(|watch| Action::CaughtUp { watch }),
    ]
}

const FILTERS: usize = 8;

fn filter_of(number: usize) -> Filter {
    match number {
        0 => Filter::Prefix("".into()),
        1 => Filter::Prefix("a".into()),
        2 => Filter::Prefix("a/".into()),
        3 => Filter::Prefix("é".into()),
        4 => Filter::Key("a".into()),
        5 => Filter::Key("b".into()),
        6 => Filter::Key("é".into()),
        _ => Filter::Prefix("nothing".into()),
    }
}

/// A watch, and the place of its reader.
struct Watch {
    subscription: Subscription,
    filter: Filter,
    cursor: (u64, u32),
}

struct Run {
    store: ExampleStore,
    leader: ExampleStore,
    _directories: [TempDir; 2],
    /// All entries, and all changes that they made, including those that the history no longer has.
    entries: Vec<Entry>,
    changes: Vec<Change>,
    reference: ExampleStateMachine,
    watches: Vec<Watch>,
    now_ms: u64,
    has_large: bool,
    large: Value,
    gone: u64,
}

impl Run {
    fn new(large: &Value) -> Self {
        let directories = [scratch(), scratch()];
        let [store, leader] = [0, 1].map(|number| open(directories[number].path()));
        Run {
            store,
            leader,
            _directories: directories,
            entries: Vec::new(),
            changes: Vec::new(),
            reference: ExampleStateMachine::default(),
            watches: Vec::new(),
            now_ms: 1,
            has_large: false,
            large: large.clone(),
            gone: 0,
        }
    }

    /// Adds an entry to the log, records its changes, and returns it.
    fn entry(&mut self, operation: Option<Operation>) -> Entry {
        let index = self.entries.len() as u64;
        let entry = match operation {
            None => blank(1, index),
            Some(operation) => write(1, index, self.now_ms, None, operation),
        };
        let before = self.reference.revision;
        self.reference.apply(entry.clone());
        self.changes.extend(self.reference.history.since(before + 1, 0).cloned());
        self.entries.push(entry.clone());
        entry
    }

    fn change(&mut self, change: &Change1) -> Entry {
        // Every value is different, so that no put only renews the TTL.
        let value = format!("{}", self.entries.len());
        let put = |key: usize, ttl_ms| Put { ttl_ms, ..put_of(KEYS[key], &value) };
        let operation = match change {
            Change1::Put { key, ttl_ms } => Operation::Put(put(*key, *ttl_ms)),
            Change1::Delete { key } => Operation::Delete(Delete { key: KEYS[*key].into(), condition: None }),
            Change1::Two(one, other) => {
                let success = vec![TxnStep::Put(put(*one, None)), TxnStep::Put(put(*other, Some(5)))];
                Operation::Txn(Arc::new(Txn { compare: vec![], success, failure: vec![] }))
            }
            Change1::DeleteAll => Operation::DeletePrefix { prefix: "".into(), revision_max: None },
            Change1::Later(by) => {
                self.now_ms += by;
                Operation::Expire
            }
            Change1::Blank => return self.entry(None),
        };
        self.entry(Some(operation))
    }

    fn perform(&mut self, action: &Action) {
        let watches = self.watches.len();
        match action {
            Action::Apply(changes) => {
                let entries: Vec<Entry> = changes.iter().map(|change| self.change(change)).collect();
                run(apply(&self.store, entries));
            }
            Action::Burst { key, count } => {
                for _ in 0..*count {
                    let entry = self.change(&Change1::Put { key: *key, ttl_ms: None });
                    run(apply(&self.store, [entry]));
                }
            }
            Action::Large { key, count } => {
                let put = Put { key: KEYS[*key].into(), value: self.large.clone(), ttl_ms: None, condition: None };
                let entries: Vec<_> = (0..*count).map(|_| self.entry(Some(Operation::Put(put.clone())))).collect();
                run(apply(&self.store, entries));
                self.has_large = true;
            }
            // Writing such a large snapshot would take too long.
            Action::Install(_) if self.has_large => {}
            Action::Install(changes) => {
                changes.iter().for_each(|change| drop(self.change(change)));
                let applied = self.leader.state_machine.read(|machine| machine.last_applied);
                let next = applied.map_or(0, |log_id| log_id.index as usize + 1);
                if self.entries.is_empty() {
                    return;
                }
                run(async {
                    apply(&self.leader, self.entries[next..].to_vec()).await;
                    build_snapshot(&self.leader).await;
                    install_snapshot(&self.leader, &self.store).await;
                });
            }
            Action::Watch { filter, before, after, position } => {
                let revision = (self.reference.revision + 1 + after).saturating_sub(*before);
                let cursor = (revision, *position);
                let filter = filter_of(*filter);
                self.watches.push(self.watch(filter, cursor));
            }
            _ if watches == 0 => {}
            Action::Poll { watch, times } => {
                for _ in 0..*times {
                    self.poll(watch % watches);
                }
            }
            Action::Resume { watch } => {
                let Watch { filter, cursor, .. } = self.watches.remove(watch % watches);
                self.watches.push(self.watch(filter, cursor));
            }
            Action::End { watch } => drop(self.watches.remove(watch % watches)),
            Action::CaughtUp { watch } => self.caught_up(watch % watches),
        }
    }

    fn watch(&self, filter: Filter, cursor: (u64, u32)) -> Watch {
        let subscription = self.store.state_machine.watch(filter.clone(), cursor.0, cursor.1);
        Watch { subscription, filter, cursor }
    }

    /// The changes that a watch has yet to receive.
    fn waiting(&self, watch: usize) -> Vec<Change> {
        let Watch { filter, cursor, .. } = &self.watches[watch];
        let wanted = |change: &&Change| (change.revision, change.position) >= *cursor && filter.matches(&change.key);
        self.changes.iter().filter(wanted).cloned().collect()
    }

    /// Polls a watch once; returns false if it has nothing.
    fn poll(&mut self, number: usize) -> bool {
        let waiting = self.waiting(number);
        let watch = &mut self.watches[number];
        match watch.subscription.next().now_or_never() {
            None => {
                assert!(waiting.is_empty(), "{:?} from {:?} waits beside {waiting:?}", watch.filter, watch.cursor);
                false
            }
            Some(Ok(batch)) => {
                let found = batch.changes();
                assert_eq!(found, &waiting[..found.len().min(waiting.len())], "from {:?}", watch.cursor);
                let last = found.last().expect("a batch has changes");
                let next = waiting.get(found.len());
                assert!(next.is_none_or(|next| next.revision > last.revision), "a part of a revision: {found:?}");
                watch.cursor = (last.revision, last.position + 1);
                true
            }
            Some(Err(WatchError::Gone { oldest })) => {
                assert_eq!(oldest, self.reference.history.oldest());
                assert!(watch.cursor.0 < oldest, "from {:?}, but the history begins at {oldest}", watch.cursor);
                self.gone += 1;
                let filter = watch.filter.clone();
                self.watches[number] = self.watch(filter, (oldest, 0));
                true
            }
        }
    }

    fn caught_up(&mut self, number: usize) {
        let waiting = self.waiting(number);
        let revision = self.reference.revision;
        let watch = &mut self.watches[number];
        if let Some(found) = watch.subscription.caught_up() {
            assert!(waiting.is_empty(), "{:?} from {:?} has not had {waiting:?}", watch.filter, watch.cursor);
            assert!(found >= revision.min(watch.cursor.0), "{found} of {revision}");
            assert!(found <= revision.max(watch.cursor.0), "{found} of {revision}");
            watch.cursor = watch.cursor.max((found + 1, 0));
        }
    }
}

fn check(actions: &[Action], large: &Value) -> u64 {
    let mut state = Run::new(large);
    for action in actions {
        state.perform(action);
    }
    for number in 0..state.watches.len() {
        while state.poll(number) {}
    }
    assert!(state.store.state_machine.read(|machine| *machine == state.reference));
    state.gone
}

/// A watch receives every change of its keys from its beginning on, in order, once, and by whole revisions, or an error
/// that the changes are no longer kept.
///
/// Method: run 500 random sequences (PROPTEST_CASES: another number; PROPTEST_RNG_SEED: one seed), and compare the
/// result with all changes that were ever made. A sequence applies batches and installs snapshots. Its watches begin
/// before and after the newest revision, are polled occasionally, end and are resumed, and fall behind by more batches
/// than are kept for them, or behind the history.
#[test]
fn any_watch() {
    let large = Value::from(&vec![b'v'; LARGE_BYTES]);
    any_of("any_watch", 500, vec(action(), 1..80), |actions| {
        check(&actions, &large);
    });
}

/// A batch of entries that displaces its own changes from the history does not deliver the remaining ones as if they
/// were complete: a watch that is too slow gets an error.
///
/// Method: with a watch that is up to date, apply a batch with twice as many bytes as the history keeps.
#[test]
fn a_batch_that_is_larger_than_the_history() {
    let large = Value::from(&vec![b'v'; LARGE_BYTES]);
    let count = 2 * HISTORY_BYTES_MAX / LARGE_BYTES;
    let actions = [
        Action::Apply(vec![Change1::Put { key: 0, ttl_ms: None }]),
        Action::Watch { filter: 0, before: 1, after: 0, position: 0 },
        Action::Poll { watch: 0, times: 2 },
        Action::Large { key: 1, count },
        Action::Poll { watch: 0, times: 1 },
    ];
    assert_eq!(check(&actions, &large), 1, "it was not told");
}

/// A watch of keys that do not change keeps its place while other keys do.
///
/// Method: use a watch that has had its heartbeat, and one that was only polled. Apply so many entries that the history
/// drops everything before them, and then change a watched key.
#[test]
fn quiet_keys() {
    let large = Value::from(&vec![b'v'; LARGE_BYTES]);
    let quiet = |key| Action::Apply(vec![Change1::Put { key, ttl_ms: None }]);
    let mut actions = vec![quiet(3), quiet(4)];
    for filter in [5, 6] {
        actions.push(Action::Watch { filter, before: 30, after: 0, position: 0 });
    }
    actions.extend([Action::Poll { watch: 0, times: 2 }, Action::Poll { watch: 1, times: 2 }]);
    for _ in 0..4 {
        actions.push(Action::Large { key: 1, count: HISTORY_BYTES_MAX / LARGE_BYTES / 2 });
    }
    actions.extend([Action::CaughtUp { watch: 0 }, Action::CaughtUp { watch: 1 }]);
    actions.push(Action::Large { key: 1, count: HISTORY_BYTES_MAX / LARGE_BYTES / 2 });
    actions.extend([quiet(3), quiet(4), Action::Poll { watch: 0, times: 2 }, Action::Poll { watch: 1, times: 2 }]);
    assert_eq!(check(&actions, &large), 0, "one lost its place");
}
