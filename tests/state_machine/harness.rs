//! A state machine, its model, and a second state machine that passes through snapshots.

use std::collections::HashMap;
use std::path::Path;

use openraft::vote::RaftLeaderId;
use raft_key_value::ExampleStateMachine;
use raft_key_value::store::snapshot::format::{load, meta_of, write};
use raft_key_value::store::state_machine::access::AccessMode;
use raft_key_value::store::{ChangeKind, StateHash};
use raft_key_value::types::{Entry, ExampleResponse, LogId, Payload};
use tempfile::NamedTempFile;

use crate::model::{Item, Model, What};

/// A step between two entries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Between {
    Nothing,
    /// The second replica is written to a file and loaded from it.
    Snapshot,
    /// A copy of the state is kept, and must not change.
    Copy,
}

/// Two replicas that apply the same entries, and the expected state.
#[derive(Default)]
pub struct Replicas {
    /// Never passes through a snapshot.
    pub plain: ExampleStateMachine,
    restored: ExampleStateMachine,
    pub model: Model,
    copies: Vec<(ExampleStateMachine, Model)>,
    hashes: HashMap<StateHash, ExampleStateMachine>,
    next_index: u64,
}

impl Replicas {
    /// Applies one entry everywhere, and compares everything.
    #[track_caller]
    pub fn apply(&mut self, payload: Payload) -> ExampleResponse {
        let entry = Entry { log_id: LogId::new(RaftLeaderId::new(1, 1), self.next_index), payload };
        self.next_index += 1;
        let expected = self.model.apply(&entry);
        let answer = self.plain.apply(entry.clone());
        assert_eq!(answer, expected, "the answer");
        assert_eq!(self.restored.apply(entry), expected, "the answer of the one that goes through snapshots");
        assert_same(&self.plain, &self.model);
        // Compare all fields, even private ones.
        assert!(self.restored == self.plain, "the one that goes through snapshots differs");
        answer
    }

    /// Executes the step between two entries.
    pub fn between(&mut self, between: Between) {
        match between {
            Between::Nothing => {}
            Between::Snapshot => self.restored = through_a_file(&self.restored),
            Between::Copy => self.copies.push((self.plain.clone(), self.model.clone())),
        }
    }

    /// Asserts that the hash is that of everything in the state, and that no other state seen so far has the same hash.
    ///
    /// It is slow for large states, so tests with those do not call it.
    pub fn check_hash(&mut self) {
        // The hash does not cover these.
        let stripped = |machine: &ExampleStateMachine| {
            let mut machine = machine.clone();
            (machine.last_applied, machine.last_membership) = Default::default();
            machine
        };
        let state = stripped(&self.plain);
        let hash = self.plain.hash();
        assert_eq!(hash, self.plain.hash_of_all(), "the hash has drifted");
        assert_eq!(self.restored.hash(), hash, "the hash of the one that goes through snapshots");
        let before = self.hashes.entry(hash).or_insert_with(|| state.clone());
        assert!(*before == state, "two states have the same hash");
    }

    /// Asserts that the copies are unchanged, and that the state is the same after a snapshot.
    pub fn finish(mut self) {
        for (copy, model) in &self.copies {
            assert_same(copy, model);
        }
        self.between(Between::Snapshot);
        assert!(self.restored == self.plain, "the last snapshot");
        self.check_hash();
    }
}

/// Writes a state to a file, and loads it from the file.
pub fn through_a_file(machine: &ExampleStateMachine) -> ExampleStateMachine {
    let file = file_of(machine);
    let (meta, loaded) = load(file.path()).unwrap();
    assert_eq!(meta, meta_of(machine));
    assert!(loaded == *machine, "a state that is loaded is another");
    loaded
}

/// A snapshot of a state.
pub fn file_of(machine: &ExampleStateMachine) -> NamedTempFile {
    let in_memory = Path::new("/dev/shm");
    let file = NamedTempFile::new_in(in_memory).or_else(|_| NamedTempFile::new());
    let mut file = file.unwrap();
    assert!(write(machine, &meta_of(machine), file.as_file_mut()).unwrap(), "it is not what was applied");
    file
}

/// Compares the observable state.
#[track_caller]
fn assert_same(machine: &ExampleStateMachine, model: &Model) {
    assert_eq!(machine.last_applied, model.applied);
    assert_eq!(machine.last_membership, model.membership);
    assert_eq!((machine.revision, machine.clock_ms), (model.revision, model.clock), "revision and clock");
    assert_eq!(machine.next_expiry_ms(), model.next_expiry(), "the next expiry");

    let keys: Vec<&str> = machine.data.keys().map(|key| &**key).collect();
    let wanted: Vec<&str> = model.items.keys().map(String::as_str).collect();
    assert_eq!(keys, wanted, "the keys");
    for (key, item) in &model.items {
        let record = machine.get(key).unwrap();
        assert!(same_record(&record, item), "{key:?} is {record:?}, not {item:?}");
    }

    let mode = match model.tokens_required {
        None => AccessMode::Open,
        Some(true) => AccessMode::Required,
        Some(false) => AccessMode::Disabled,
    };
    assert_eq!(machine.access.mode(), mode, "whether requests need a token");
    let tokens = machine.access.tokens();
    assert!(tokens.keys().map(|name| &**name).eq(model.tokens.keys()), "the names of the tokens");
    for (token, (wanted, expires_at)) in tokens.values().zip(model.tokens.values()) {
        let found = (token.role, &*token.prefixes, token.hash, token.expires_at_ms);
        assert_eq!(found, (wanted.role, &*wanted.prefixes, wanted.hash, expires_at.unwrap_or(0)), "a token");
    }

    assert_eq!(machine.history.oldest(), model.oldest, "the oldest revision that is kept");
    assert_eq!(machine.history.iter().len(), model.events.len(), "the number of changes");
    let mut place = (0, 0);
    for (change, event) in machine.history.iter().zip(&model.events) {
        let position = if change.revision == place.0 { place.1 + 1 } else { 0 };
        place = (change.revision, position);
        let same_kind = match (&change.kind, &event.what) {
            (ChangeKind::Put(record), What::Set(item)) => same_record(record, item),
            (ChangeKind::Delete, What::Deleted) | (ChangeKind::Expire, What::Expired) => true,
            _ => false,
        };
        let same = (change.revision, &*change.key, change.position) == (event.revision, event.key.as_str(), position);
        assert!(same && same_kind, "in the history is {change:?}, not {event:?}");
    }

    let requests: Vec<_> = machine.requests.iter().collect();
    assert_eq!(requests.len(), model.done.len(), "the number of requests");
    for ((key, remembered), done) in requests.into_iter().zip(&model.done) {
        let found = (&**key, remembered.fingerprint, &remembered.result);
        assert_eq!(found, (done.key.as_str(), done.fingerprint, &done.result), "a request that is remembered");
        assert!(machine.requests.get(key) == Some(remembered));
    }
}

fn same_record(record: &raft_key_value::store::Record, item: &Item) -> bool {
    record.value.as_bytes() == item.value
        && (record.revision, record.create_revision, record.version) == (item.revision, item.created_at, item.changes)
        && record.expires_at_ms == item.expires_at.unwrap_or(0)
}
