//! The state machine: applies the log's entries to the data.
//!
//! Nothing here reads a clock, a file or a random number. So every node that
//! applied the same entries has the same state. Time comes from the entries, into
//! which the leaders wrote it.
//!
//! The data is a persistent ordered map: copying it takes no time and shares all
//! memory. So snapshots and long listings read from a copy while writes continue.
//! A write after a copy copies the few tree nodes above the key that it changes.

pub mod access;
pub mod history;
mod least_revisions;
pub mod listing;
pub mod record;
pub mod requests;
pub(super) mod stored_results;

use std::collections::HashMap;
use std::sync::Arc;

use imbl::OrdSet;

use self::access::Access;
use self::history::{Change, ChangeKind, History};
use self::least_revisions::LeastRevisions;
use self::record::{Data, Record, RecordParts};
use self::requests::Requests;
use crate::body::{PutAnswer, TouchAnswer, TxnDeleted};
use crate::config::{DELETE_STEP_KEYS_MAX, EXPIRE_KEYS_MAX, KEY_MEMORY_BYTES, TXN_ANSWER_BYTES_MAX};
use crate::hash::StateHash;
use crate::level::Level;
use crate::operation::{
    Comparison, Condition, Delete, Found, Key, Operand, Operation, Put, RequestId, StepResult, Touch, Txn, TxnDone,
    TxnStep, Value, Write, WriteResult,
};
use crate::seeded_bug::{self, SeededBug};
use crate::types::{Command, Entry, ExampleResponse, LogId, Payload, StoredMembership};

/// The revision, create revision and version of keys from before there were revisions.
const FORMER_REVISION: u64 = 1;

/// The replicated state of one node.
///
/// Invariants:
/// * it is the result of applying the entries up to `last_applied` to an empty state;
/// * `expiring` has exactly the keys of `data` that expire, with their times;
/// * no key and no change has a revision above `revision`, which never decreases;
/// * `keys_hash` is the sum of [`Record::hash`] of all records, and `data_bytes` that of the lengths of keys and values;
/// * `least_revisions` was updated for each change of `data`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExampleStateMachine {
    /// The last entry that was applied; `None` before the first.
    pub last_applied: Option<LogId>,
    /// The last membership that was applied. It may not be the current one: Raft uses a membership before it is
    /// committed.
    pub last_membership: StoredMembership,
    /// All keys. Those that are due to expire remain until an entry removes them.
    pub data: Data,
    /// Increases by one for each request that changed a key, and for each entry that removed expired keys.
    pub revision: u64,
    /// Log time as of the last write: the largest time any leader stamped an entry with, in milliseconds since 1970.
    pub clock_ms: u64,
    /// The last changes, for watches.
    pub history: History,
    /// The last requests with an `Idempotency-Key`, and their results.
    pub requests: Requests,
    /// The level of formats.
    pub level: Level,
    /// Who may use the cluster. Shared: nodes check requests against it without the state.
    pub access: Arc<Access>,
    pub(super) expiring: OrdSet<(u64, Key)>,
    pub(super) keys_hash: StateHash,
    pub(super) data_bytes: u64,
    pub(super) replaced: Replaced,
    pub(super) least_revisions: LeastRevisions,
}

/// Bytes of values that were replaced or removed since the node started. Not a part of the state, so all are equal.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Replaced(u64);

impl PartialEq for Replaced {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Replaced {}

/// Whether a request was executed before.
enum Executed {
    /// No such request is remembered.
    Never,
    /// A deletion in steps that is not finished: the number of keys that it deleted, and the largest revision of keys
    /// that it deletes.
    Partly { deleted: u64, revision_max: u64 },
    /// The result is known: that of the same request, or the rejection because its key is that of another request.
    Done { result: WriteResult, replayed: bool },
}

impl ExampleStateMachine {
    /// Applies one entry, and returns the response for its proposer.
    pub fn apply(&mut self, entry: Entry) -> ExampleResponse {
        self.last_applied = Some(entry.log_id);
        let response = self.apply_payload(entry.log_id, entry.payload);
        self.assert_invariants();
        response
    }

    fn apply_payload(&mut self, log_id: LogId, payload: Payload) -> ExampleResponse {
        match payload {
            Payload::Blank => ExampleResponse::default(),
            Payload::Normal(Command::Write(write)) => self.apply_write(write),
            Payload::Normal(Command::Set { key, value }) => self.apply_former_set(key, &value),
            Payload::Membership(membership) => {
                self.last_membership = StoredMembership::new(Some(log_id), membership);
                ExampleResponse::default()
            }
        }
    }

    /// Asserts the invariants, of small states only, since that reads all keys.
    fn assert_invariants(&self) {
        const KEYS_MAX: usize = 64;
        if !cfg!(debug_assertions) || self.data.len() > KEYS_MAX {
            return;
        }
        let expiring = self.data.iter().filter(|(_, record)| record.expires_at_ms > 0);
        let expiring: OrdSet<(u64, Key)> = expiring.map(|(key, record)| (record.expires_at_ms, key.clone())).collect();
        assert!(expiring == self.expiring, "`expiring` differs from the keys that expire");
        assert!(self.data.values().all(|record| record.revision <= self.revision), "a key is ahead of the store");
        assert!(self.history.newest() <= Some(self.revision), "a change is ahead of the store");
        let keys_hash: StateHash = self.data.values().map(|record| record.hash()).sum();
        assert_eq!(self.keys_hash, keys_hash, "the sum of the hashes has drifted");
        let data_bytes: u64 = self.data.iter().map(|(key, record)| bytes_of(key, record)).sum();
        assert_eq!(self.data_bytes, data_bytes, "the count of bytes has drifted");
    }

    /// The record of a key; `None` if the key does not exist.
    pub fn get(&self, key: &str) -> Option<Arc<Record>> {
        self.data.get(key).cloned()
    }

    /// When the next key or token expires, in milliseconds of log time; `None` if none does.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        let key_ms = self.expiring.get_min().map(|(at_ms, _)| *at_ms);
        let token_ms = self.access.next_expiry_ms();
        key_ms.into_iter().chain(token_ms).min()
    }

    fn apply_write(&mut self, write: Write) -> ExampleResponse {
        self.clock_ms = self.clock_ms.max(write.at_ms);
        if seeded_bug::is_on(SeededBug::ClockReadInApply) {
            self.clock_ms = self.clock_ms.max(crate::clock::wall_ms());
        }
        self.access.expire(self.clock_ms);
        self.expire();
        let Write { request, operation, .. } = write;
        let Some(request) = request else {
            let result = self.execute(operation, None);
            return ExampleResponse { revision: Some(self.revision), result: Some(result), ..Default::default() };
        };
        let (result, replayed) = self.execute_once(&request, operation);
        ExampleResponse { revision: Some(self.revision), result: Some(result), replayed, ..Default::default() }
    }

    /// The result of a request that was executed before, and whether it is a replay. It is not one if another request
    /// had the same `Idempotency-Key`. `None` if the request must be executed.
    pub fn replay(&self, request: &RequestId) -> Option<(WriteResult, bool)> {
        match self.executed_before(request) {
            Executed::Done { result, replayed } => Some((result, replayed)),
            Executed::Partly { .. } | Executed::Never => None,
        }
    }

    fn executed_before(&self, request: &RequestId) -> Executed {
        let before = self.requests.get(&request.key).map(|remembered| remembered.as_ref());
        match before.filter(|_| !seeded_bug::is_on(SeededBug::NoDeduplication)) {
            // A request that was sent while no tokens were required has no owner. It may be this one, so this one is not
            // executed again; and it may be somebody else's, so its result is not shown.
            None if request.key_without_owner().is_some_and(|key| self.requests.get(key).is_some()) => {
                Executed::Done { result: WriteResult::RequestIdReused, replayed: false }
            }
            None => Executed::Never,
            Some(remembered) if remembered.fingerprint != request.fingerprint => {
                Executed::Done { result: WriteResult::RequestIdReused, replayed: false }
            }
            Some(remembered) => match &remembered.result {
                &WriteResult::Delete { deleted, unfinished: Some(revision_max), .. } => {
                    Executed::Partly { deleted, revision_max }
                }
                result => Executed::Done { result: result.clone(), replayed: true },
            },
        }
    }

    /// Executes a request unless it was executed before. Returns the result, and whether it is a replay.
    fn execute_once(&mut self, request: &RequestId, operation: Operation) -> (WriteResult, bool) {
        let done = match self.executed_before(request) {
            Executed::Done { result, replayed } => return (result, replayed),
            Executed::Partly { deleted, revision_max } => Some((deleted, revision_max)),
            Executed::Never => None,
        };
        let result = self.execute(operation, done);
        self.requests.remember(request, result.clone());
        (result, false)
    }

    /// `done`: the [`Executed::Partly`] of a deletion in steps.
    fn execute(&mut self, operation: Operation, done: Option<(u64, u64)>) -> WriteResult {
        let revision = self.revision + 1;
        match operation {
            Operation::Put(put) => match self.check(&put.key, put.condition) {
                Ok(()) => WriteResult::Put(self.put(revision, put)),
                Err(failed) => failed,
            },
            Operation::Delete(Delete { key, condition }) => match self.check(&key, condition) {
                Ok(()) => {
                    let deleted = u64::from(self.remove(revision, &key, ChangeKind::Delete));
                    WriteResult::Delete { deleted, revision: self.revision, unfinished: None }
                }
                Err(failed) => failed,
            },
            Operation::DeletePrefix { prefix, revision_max } => {
                let (deleted_before, revision_max) = match done {
                    Some((deleted, revision_max)) => (deleted, revision_max),
                    None => (0, revision_max.unwrap_or(self.revision)),
                };
                self.delete_prefix(&prefix, revision_max, deleted_before)
            }
            Operation::Touch(touch) => match self.check(&touch.key, touch.condition) {
                Ok(()) => self.touch(&touch).map_or(WriteResult::NoSuchKey, WriteResult::Touch),
                Err(failed) => failed,
            },
            Operation::Txn(txn) => self.txn(&txn),
            Operation::RaiseLevel { level } => {
                self.level = self.level.max(level);
                WriteResult::Delete { deleted: 0, revision: self.revision, unfinished: None }
            }
            Operation::Access(change) => {
                // It is proposed only at that level. Its snapshot would not be readable otherwise.
                self.level = self.level.max(Level::TOKENS);
                self.access.apply(&change, self.clock_ms, self.revision)
            }
            // `StateMachineStore` compares the states, before it applies the next entry.
            Operation::Expire | Operation::SelfCheck { .. } => {
                WriteResult::Delete { deleted: 0, revision: self.revision, unfinished: None }
            }
        }
    }

    pub(crate) fn check(&self, key: &str, condition: Option<Condition>) -> Result<(), WriteResult> {
        let Some(condition) = condition else { return Ok(()) };
        let revision = self.data.get(key).map(|record| record.revision);
        let holds = match condition {
            Condition::Missing => revision.is_none(),
            Condition::Present => revision.is_some(),
            Condition::Revision(wanted) => revision == Some(wanted),
        };
        if holds { Ok(()) } else { Err(WriteResult::ConditionFailed { revision }) }
    }

    /// Sets a key at `revision`, which becomes the revision of the store. A put of the current value with a TTL only
    /// renews the expiry time, and changes no revision.
    fn put(&mut self, revision: u64, put: Put) -> PutAnswer {
        let Put { key, value, ttl_ms, .. } = put;
        let expires_at_ms = self.expiry_of(ttl_ms);
        let Some((key, record)) = self.data.get_key_value_mut(&key) else {
            return self.create(revision, key, value, expires_at_ms);
        };
        let (expired_at_ms, revision_before) = (record.expires_at_ms, record.revision);
        let renewed = ttl_ms.is_some() && record.value == value;
        if renewed {
            record.set_expiry(key, expires_at_ms, &mut self.keys_hash);
        } else {
            let (create_revision, version) = (record.create_revision, record.version + 1);
            self.keys_hash -= record.hash();
            let (len_before, len) = (record.value.as_bytes().len() as u64, value.as_bytes().len() as u64);
            self.replaced.0 += len_before;
            self.data_bytes = self.data_bytes - len_before + len;
            let parts = RecordParts { value, revision, create_revision, version, expires_at_ms };
            *record = Arc::new(Record::new(key, parts));
            self.keys_hash += record.hash();
        }
        let answer = PutAnswer { revision: record.revision, version: record.version };
        if expired_at_ms != expires_at_ms {
            reschedule(&mut self.expiring, key, expired_at_ms, expires_at_ms);
        }
        if !renewed {
            let (key, record) = (key.clone(), record.clone());
            self.least_revisions.update(&self.data, &key, Some(revision_before), Some(revision));
            self.note_change(revision, key, ChangeKind::Put(record));
        }
        answer
    }

    fn create(&mut self, revision: u64, key: Key, value: Value, expires_at_ms: u64) -> PutAnswer {
        let parts = RecordParts { value, revision, create_revision: revision, version: 1, expires_at_ms };
        let record = Arc::new(Record::new(&key, parts));
        self.insert_record(key.clone(), record.clone());
        self.note_change(revision, key, ChangeKind::Put(record));
        PutAnswer { revision, version: 1 }
    }

    /// Adds a change to the history. Its revision becomes that of the store.
    fn note_change(&mut self, revision: u64, key: Key, kind: ChangeKind) {
        debug_assert!((self.revision..=self.revision + 1).contains(&revision), "{revision} after {}", self.revision);
        self.history.push(revision, key, kind);
        self.revision = revision;
    }

    fn expiry_of(&self, ttl_ms: Option<u64>) -> u64 {
        ttl_ms.map_or(0, |ttl_ms| self.clock_ms.saturating_add(ttl_ms))
    }

    fn touch(&mut self, touch: &Touch) -> Option<TouchAnswer> {
        let expires_at_ms = self.expiry_of(touch.ttl_ms);
        let (key, record) = self.data.get_key_value_mut(&touch.key)?;
        reschedule(&mut self.expiring, key, record.expires_at_ms, expires_at_ms);
        if record.expires_at_ms != expires_at_ms {
            record.set_expiry(key, expires_at_ms, &mut self.keys_hash);
        }
        Some(TouchAnswer { revision: record.revision, version: record.version, expires_in_ms: touch.ttl_ms })
    }

    /// Removes a key at `revision`, which becomes the revision of the store. Returns false if the key does not exist.
    fn remove(&mut self, revision: u64, key: &str, kind: ChangeKind) -> bool {
        let Some((key, record)) = self.data.remove_with_key(key) else { return false };
        self.keys_hash -= record.hash();
        self.data_bytes -= bytes_of(&key, &record);
        self.replaced.0 += record.value.as_bytes().len() as u64;
        reschedule(&mut self.expiring, &key, record.expires_at_ms, 0);
        self.least_revisions.update(&self.data, &key, Some(record.revision), None);
        self.note_change(revision, key, kind);
        true
    }

    /// Removes up to [`DELETE_STEP_KEYS_MAX`] keys with a prefix that were not changed after `revision_max`.
    fn delete_prefix(&mut self, prefix: &str, revision_max: u64, deleted_before: u64) -> WriteResult {
        let count = DELETE_STEP_KEYS_MAX + 1;
        let mut keys = self.least_revisions.first_unchanged(&self.data, prefix, revision_max, count);
        let unfinished = (keys.len() > DELETE_STEP_KEYS_MAX).then_some(revision_max);
        keys.truncate(DELETE_STEP_KEYS_MAX);
        let revision = self.revision + 1;
        for key in &keys {
            self.remove(revision, key, ChangeKind::Delete);
        }
        WriteResult::Delete { deleted: deleted_before + keys.len() as u64, revision: self.revision, unfinished }
    }

    /// Removes up to [`EXPIRE_KEYS_MAX`] keys that have expired, since an entry must not take long. The next entries
    /// remove the others.
    fn expire(&mut self) {
        let revision = self.revision + 1;
        for _ in 0..EXPIRE_KEYS_MAX {
            let Some((at_ms, key)) = self.expiring.get_min() else { return };
            if *at_ms > self.clock_ms {
                return;
            }
            let key = key.clone();
            self.remove(revision, &key, ChangeKind::Expire);
        }
    }

    fn txn(&mut self, txn: &Txn) -> WriteResult {
        let succeeded = txn.compare.iter().all(|comparison| self.holds(comparison));
        let steps = if succeeded { &txn.success } else { &txn.failure };
        let bytes = self.answer_bytes(steps);
        if bytes > TXN_ANSWER_BYTES_MAX {
            return WriteResult::AnswerTooLarge { bytes: bytes as u64 };
        }
        let revision = self.revision + 1;
        let results = steps.iter().map(|step| self.txn_step(revision, step)).collect();
        WriteResult::Txn(Arc::new(TxnDone { succeeded, revision: self.revision, results }))
    }

    /// Length of all keys and values, in bytes.
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Approximate memory of all keys and values, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.data_bytes + self.data.len() as u64 * KEY_MEMORY_BYTES
    }

    /// Approximate memory that a write would add if it were applied now, in bytes: for new keys, and for values longer
    /// than those that they replace. Of a transaction, that of the list that adds more.
    pub fn growth_bytes(&self, operation: &Operation) -> u64 {
        let growth = |put: &Put| match self.data.get(&put.key) {
            Some(record) => put.value.as_bytes().len().saturating_sub(record.value.as_bytes().len()) as u64,
            None => (put.key.len() + put.value.as_bytes().len()) as u64 + KEY_MEMORY_BYTES,
        };
        match operation {
            Operation::Put(put) => growth(put),
            Operation::Txn(txn) => {
                let of_list = |steps: &[TxnStep]| {
                    steps.iter().map(|step| if let TxnStep::Put(put) = step { growth(put) } else { 0 }).sum::<u64>()
                };
                of_list(&txn.success).max(of_list(&txn.failure))
            }
            _ => 0,
        }
    }

    /// Bytes of values that were replaced or removed since this node started.
    pub fn replaced_bytes(&self) -> u64 {
        self.replaced.0
    }

    /// Approximate bytes of keys and values in the response to an operation, if it were applied now.
    pub fn answer_bytes_now(&self, operation: &Operation) -> usize {
        match operation {
            Operation::Txn(txn) => self.answer_bytes(&txn.success).max(self.answer_bytes(&txn.failure)),
            _ => 0,
        }
    }

    /// Bytes of the keys and values that a transaction reads.
    ///
    /// It counts values that the transaction itself puts: otherwise one put with many reads of it could make a result
    /// that does not fit into a snapshot.
    fn answer_bytes(&self, steps: &[TxnStep]) -> usize {
        let value_bytes = |key: &Key| self.data.get(key).map_or(0, |record| record.value.as_bytes().len());
        if !steps.iter().any(|step| matches!(step, TxnStep::Get(_))) {
            return 0;
        }
        let mut changed: HashMap<&str, usize> = HashMap::new();
        let mut bytes = 0;
        for step in steps {
            match step {
                TxnStep::Put(put) => {
                    changed.insert(&put.key, put.value.as_bytes().len());
                }
                TxnStep::Delete(delete) => {
                    changed.insert(&delete.key, 0);
                }
                TxnStep::Touch(_) => {}
                TxnStep::Get(key) => {
                    bytes += key.len() + changed.get(key.as_str()).copied().unwrap_or_else(|| value_bytes(key));
                }
            }
        }
        bytes
    }

    fn txn_step(&mut self, revision: u64, step: &TxnStep) -> StepResult {
        match step {
            TxnStep::Put(put) => StepResult::Put(self.put(revision, put.clone())),
            TxnStep::Delete(delete) => {
                let deleted = u64::from(self.remove(revision, &delete.key, ChangeKind::Delete));
                StepResult::Delete(TxnDeleted { deleted })
            }
            TxnStep::Touch(touch) => StepResult::Touch(self.touch(touch)),
            TxnStep::Get(key) => {
                let found = self.data.get(key);
                StepResult::Get(found.map(|record| Found {
                    key: key.clone(),
                    value: record.value.clone(),
                    revision: record.revision,
                    create_revision: record.create_revision,
                    version: record.version,
                    expires_in_ms: record.expires_in_ms(self.clock_ms),
                }))
            }
        }
    }

    fn holds(&self, comparison: &Comparison) -> bool {
        let record = self.data.get(&comparison.key);
        let relation = comparison.relation;
        let number = |of: fn(&Record) -> u64| record.map_or(0, |record| of(record));
        match &comparison.operand {
            Operand::Exists(wanted) => relation.holds(record.is_some(), *wanted),
            Operand::Value(wanted) => {
                relation.holds(record.map(|record| record.value.as_bytes()), Some(wanted.as_bytes()))
            }
            Operand::Revision(wanted) => relation.holds(number(|record| record.revision), *wanted),
            Operand::CreateRevision(wanted) => relation.holds(number(|record| record.create_revision), *wanted),
            Operand::Version(wanted) => relation.holds(number(|record| record.version), *wanted),
        }
    }

    // ---- from before there were revisions ----

    /// Applies an entry from before there were revisions.
    ///
    /// The result must not depend on when a node began to count revisions, since each node begins at another snapshot.
    /// So all keys that were set before the first [`Write`] have the same revision, whether they come from a snapshot
    /// or from the log. (The first write that changes anything adds to the history, which is never empty again.)
    fn apply_former_set(&mut self, key: Key, value: &str) -> ExampleResponse {
        let former = Value::from(value);
        if self.revision <= FORMER_REVISION && self.history.iter().len() == 0 {
            self.insert_former(key, former);
        } else {
            self.put(self.revision + 1, Put { key, value: former, ttl_ms: None, condition: None });
        }
        ExampleResponse { value: Some(value.to_owned()), ..Default::default() }
    }

    /// Inserts a key from before there were revisions.
    pub(super) fn insert_former(&mut self, key: Key, value: Value) {
        let record = Arc::new(former_record(&key, value));
        self.keys_hash += record.hash();
        self.data_bytes += bytes_of(&key, &record);
        let former = self.data.insert(key.clone(), record);
        if let Some(former) = &former {
            self.keys_hash -= former.hash();
            self.data_bytes -= bytes_of(&key, former);
            reschedule(&mut self.expiring, &key, former.expires_at_ms, 0);
        }
        let revision_before = former.map(|former| former.revision);
        self.least_revisions.update(&self.data, &key, revision_before, Some(FORMER_REVISION));
        self.begin_revisions();
    }

    /// Sets the revision of a state from before there were revisions.
    pub(super) fn begin_revisions(&mut self) {
        self.revision = FORMER_REVISION;
        self.history = History::starting_at(FORMER_REVISION + 1);
    }

    /// Inserts a key that does not exist, with this record.
    pub(in crate::store) fn insert_record(&mut self, key: Key, record: Arc<Record>) {
        self.keys_hash += record.hash();
        self.data_bytes += bytes_of(&key, &record);
        reschedule(&mut self.expiring, &key, 0, record.expires_at_ms);
        let revision = record.revision;
        let former = self.data.insert(key.clone(), record);
        assert!(former.is_none(), "an existing key is inserted again");
        self.least_revisions.update(&self.data, &key, None, Some(revision));
    }

    /// The state without the keys that were changed last: [`SeededBug::SnapshotMissesLastEntry`].
    pub(super) fn without_last_change(mut self) -> Self {
        let changed = self.data.iter().filter(|(_, record)| record.revision == self.revision);
        let keys: Vec<Key> = changed.map(|(key, _)| key.clone()).collect();
        for key in keys {
            let Some((key, record)) = self.data.remove_with_key(&key) else { continue };
            self.keys_hash -= record.hash();
            self.data_bytes -= bytes_of(&key, &record);
            reschedule(&mut self.expiring, &key, record.expires_at_ms, 0);
            self.least_revisions.update(&self.data, &key, Some(record.revision), None);
        }
        self
    }

    // ---- the hash of the state ----

    /// The hash of the replicated state: nodes that applied the same entries have the same. Its cost does not depend on
    /// how much data there is.
    pub fn hash(&self) -> StateHash {
        self.hash_with(self.data.len(), self.keys_hash, self.requests.hash(), self.access.hash())
    }

    /// The same hash, computed from everything in memory. It differs only if memory changed underneath, or if this
    /// program has a fault.
    pub fn hash_of_all(&self) -> StateHash {
        let keys = self.data.iter().map(|(key, record)| record.computed_hash(key)).sum();
        let requests = self.requests.iter().map(|(key, remembered)| remembered.computed_hash(key)).sum();
        self.hash_with(self.data.len(), keys, requests, self.access.computed_hash())
    }

    /// The hash of the state, with this number of keys, these sums of the hashes of its keys and of its remembered
    /// requests, and this hash of who may use the cluster.
    ///
    /// **In the hash: frozen.** It is of these numbers, where each hash is two numbers: revision, clock; number and
    /// sum of the keys; number and sum of the requests; oldest revision and number of changes of the history, its
    /// first and its last change (0 if it is empty). The changes between those two can differ only if the keys did. The
    /// hash of [`Access`] follows, but only if it is not 0, which it is in a cluster that never had a token.
    /// The order of the requests and `last_applied` are not included. If the level is not the first one, which
    /// older nodes do not know, the hash is of that hash, as two numbers, and the level.
    pub(super) fn hash_with(
        &self,
        keys_count: usize,
        keys: StateHash,
        requests: StateHash,
        access: StateHash,
    ) -> StateHash {
        let mut changes = self.history.iter();
        let count = changes.len() as u64;
        let hash_of = |change: Option<&Change>| change.map(Change::hash).unwrap_or_default().halves();
        let ([first_0, first_1], [last_0, last_1]) =
            (hash_of(changes.next()), hash_of(self.history.iter().next_back()));
        let ([keys_0, keys_1], [requests_0, requests_1]) = (keys.halves(), requests.halves());
        let numbers = [
            self.revision,
            self.clock_ms,
            keys_count as u64,
            keys_0,
            keys_1,
            self.requests.len() as u64,
            requests_0,
            requests_1,
            self.history.oldest(),
            count,
            first_0,
            first_1,
            last_0,
            last_1,
        ];
        let mut hash = StateHash::of_numbers(numbers);
        if access != StateHash::default() {
            let mut with_access = [0; 16];
            with_access[..14].copy_from_slice(&numbers);
            with_access[14..].copy_from_slice(&access.halves());
            hash = StateHash::of_numbers(with_access);
        }
        if self.level == Level::FIRST {
            return hash;
        }
        let [hash_0, hash_1] = hash.halves();
        StateHash::of_numbers([hash_0, hash_1, self.level.0.into()])
    }
}

/// Bytes of a key and its value.
fn bytes_of(key: &Key, record: &Record) -> u64 {
    (key.len() + record.value.as_bytes().len()) as u64
}

/// The record of a key from before there were revisions.
pub(super) fn former_record(key: &str, value: Value) -> Record {
    let (revision, create_revision, version) = (FORMER_REVISION, FORMER_REVISION, FORMER_REVISION);
    Record::new(key, RecordParts { value, revision, create_revision, version, expires_at_ms: 0 })
}

/// Changes when a key expires, in milliseconds of log time; 0 for never.
fn reschedule(expiring: &mut OrdSet<(u64, Key)>, key: &Key, before_ms: u64, now_ms: u64) {
    if before_ms == now_ms {
        return;
    }
    if before_ms > 0 {
        expiring.remove(&(before_ms, key.clone()));
    }
    if now_ms > 0 {
        expiring.insert((now_ms, key.clone()));
    }
}

#[cfg(test)]
mod tests {
    use openraft::vote::RaftLeaderId;

    use super::*;
    use crate::access::{AccessChange, NewToken, TokenHash, TokenRole};

    fn put(index: u64, key: &str, value: &str) -> Entry {
        let put = Put { key: key.into(), value: value.into(), ttl_ms: None, condition: None };
        let write = Write { at_ms: 0, request: None, operation: Operation::Put(put) };
        Entry { log_id: LogId::new(RaftLeaderId::new(1, 1), index), payload: Payload::Normal(Command::Write(write)) }
    }

    /// A copy does not change when entries are applied to the original: snapshots rely on it.
    #[test]
    fn a_copy_does_not_change() {
        let value = |machine: &ExampleStateMachine, key| machine.get(key).map(|record| record.value.clone());
        let mut machine = ExampleStateMachine::default();
        machine.apply(put(1, "foo", "1"));
        let copy = machine.clone();
        machine.apply(put(2, "foo", "2"));
        machine.apply(put(3, "bar", "3"));
        assert_eq!(value(&copy, "foo"), Some("1".into()));
        assert_eq!(value(&copy, "bar"), None);
        assert_eq!(copy.last_applied.map(|log_id| log_id.index), Some(1));
        assert_eq!(value(&machine, "foo"), Some("2".into()));
        assert_eq!(machine.last_applied.map(|log_id| log_id.index), Some(3));
    }

    /// The hash includes every part of the state except `last_applied` and the changes between the first and the last.
    /// It detects memory that changed by itself.
    ///
    /// Method: a state that has one of everything; each number and text in it changed by itself, and each part removed;
    /// all hashes must differ.
    #[test]
    fn hash_of_every_field() {
        type Change = fn(&mut ExampleStateMachine);
        fn of_record(machine: &mut ExampleStateMachine, change: fn(&mut Record)) {
            change(Arc::make_mut(machine.data.get_mut("foo").unwrap()));
        }
        fn put_of(change: fn(&mut Record)) -> History {
            let (value, revision, create_revision, version) = ("1".into(), 1, 1, 1);
            let mut record =
                Record::new("foo", RecordParts { value, revision, create_revision, version, expires_at_ms: 9 });
            change(&mut record);
            let mut history = History::starting_at(1);
            history.push(1, "foo".into(), ChangeKind::Put(Arc::new(record)));
            history
        }
        fn with_delete(revision: u64, key: &str, kind: ChangeKind) -> History {
            let mut history = put_of(|_| {});
            history.push(revision, key.into(), kind);
            history
        }
        fn requests(key: &str, fingerprint: [u64; 2], deleted: u64) -> Requests {
            let mut requests = Requests::default();
            let result = WriteResult::Delete { deleted, revision: 1, unfinished: None };
            requests.remember(&RequestId { key: key.into(), fingerprint }, result);
            requests
        }
        fn access(
            required: Option<bool>,
            name: &str,
            role: TokenRole,
            prefixes: &[&str],
            ttl_ms: u64,
            secret: &[u8],
        ) -> Arc<Access> {
            let mut access = Arc::default();
            let (prefixes, hash) = (prefixes.iter().copied().map(Key::from).collect(), TokenHash::of(secret));
            let token = NewToken { name: name.into(), role, prefixes, ttl_ms: Some(ttl_ms), hash };
            Access::apply(&mut access, &AccessChange::Create(token), 0, 0);
            if let Some(required) = required {
                Access::apply(&mut access, &AccessChange::Require { required }, 0, 0);
            }
            access
        }
        let mut state = ExampleStateMachine::default();
        state.apply(put(1, "foo", "1"));
        state.history = with_delete(2, "bar", ChangeKind::Delete);
        state.requests = requests("request", [1, 2], 1);
        state.access = access(Some(true), "ci", TokenRole::Read, &["a", "b"], 9, b"secret");
        let changes: [Change; 33] = [
            |machine| machine.revision += 1,
            |machine| machine.clock_ms += 1,
            |machine| drop(machine.data.remove("foo")),
            |machine| drop(machine.data.insert("fop".into(), machine.data["foo"].clone())),
            |machine| of_record(machine, |record| record.value = "2".into()),
            |machine| of_record(machine, |record| record.value = "".into()),
            |machine| of_record(machine, |record| record.revision += 1),
            |machine| of_record(machine, |record| record.create_revision += 1),
            |machine| of_record(machine, |record| record.version += 1),
            |machine| of_record(machine, |record| record.expires_at_ms += 1),
            |machine| machine.history = History::starting_at(1),
            |machine| machine.history = History::starting_at(2),
            |machine| machine.history = put_of(|_| {}),
            |machine| machine.history = put_of(|record| record.value = "2".into()),
            |machine| machine.history = put_of(|record| record.revision += 1),
            |machine| machine.history = put_of(|record| record.create_revision += 1),
            |machine| machine.history = put_of(|record| record.version += 1),
            |machine| machine.history = put_of(|record| record.expires_at_ms += 1),
            |machine| machine.history = with_delete(3, "bar", ChangeKind::Delete),
            |machine| machine.history = with_delete(2, "baz", ChangeKind::Delete),
            |machine| machine.history = with_delete(2, "bar", ChangeKind::Expire),
            |machine| machine.requests = Requests::default(),
            |machine| machine.requests = requests("another", [1, 2], 1),
            |machine| machine.requests = requests("request", [1, 3], 1),
            |machine| machine.requests = requests("request", [1, 2], 2),
            |machine| machine.access = access(None, "ci", TokenRole::Read, &["a", "b"], 9, b"secret"),
            |machine| machine.access = access(Some(false), "ci", TokenRole::Read, &["a", "b"], 9, b"secret"),
            |machine| machine.access = access(Some(true), "cj", TokenRole::Read, &["a", "b"], 9, b"secret"),
            |machine| machine.access = access(Some(true), "ci", TokenRole::Write, &["a", "b"], 9, b"secret"),
            |machine| machine.access = access(Some(true), "ci", TokenRole::Read, &["ab"], 9, b"secret"),
            |machine| machine.access = access(Some(true), "ci", TokenRole::Read, &["a", "b"], 8, b"secret"),
            |machine| machine.access = access(Some(true), "ci", TokenRole::Read, &["a", "b"], 9, b"secreu"),
            |machine| machine.access = Arc::default(),
        ];
        let mut hashes = HashMap::from([(state.hash_of_all(), usize::MAX)]);
        for (number, change) in changes.into_iter().enumerate() {
            let mut changed = state.clone();
            change(&mut changed);
            let other = hashes.insert(changed.hash_of_all(), number);
            assert_eq!(other, None, "change {number} has the hash of this one");
            if changed.data != state.data {
                assert_ne!(changed.hash(), changed.hash_of_all(), "change {number} is not noticed");
                // A touch does not hide the change.
                changed.touch(&Touch { key: "foo".into(), ttl_ms: Some(7), condition: None });
                assert_ne!(changed.hash(), changed.hash_of_all(), "change {number} is hidden by a touch");
            }
        }
        let mut further = state.clone();
        further.last_applied = Some(LogId::new(RaftLeaderId::new(1, 1), 7));
        assert_eq!(further.hash(), state.hash());
    }
}
