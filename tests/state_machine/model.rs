//! A second, independent implementation of the state machine: plain collections, no sharing, and no derived state.
//!
//! It is slow and copies everything, so it is easy to verify, for example that a rejected transaction changes nothing.

use std::collections::BTreeMap;

use raft_key_value::access::{AccessChange, NewToken};
use raft_key_value::body::{PutAnswer, TouchAnswer, TxnDeleted};
use raft_key_value::config::{
    DELETE_STEP_KEYS_MAX, EXPIRE_KEYS_MAX, HISTORY_BYTES_MAX, HISTORY_CHANGES_MAX, TXN_ANSWER_BYTES_MAX,
};
use raft_key_value::operation::{
    Comparison, Condition, Found, Operand, Operation, Put, Relation, StepResult, Touch, Txn, TxnDone, TxnStep, Write,
    WriteResult,
};
use raft_key_value::types::{Command, Entry, ExampleResponse, LogId, Payload, StoredMembership};

/// The value and the numbers of a key.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    pub value: Vec<u8>,
    pub revision: u64,
    pub created_at: u64,
    pub changes: u64,
    /// The time at which the key expires.
    pub expires_at: Option<u64>,
}

/// The kind of a change.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    Set(Item),
    Deleted,
    Expired,
}

/// A change in the history.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub revision: u64,
    pub key: String,
    pub what: What,
}

/// A remembered request.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    pub key: String,
    pub fingerprint: [u64; 2],
    pub result: WriteResult,
}

/// The whole state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    pub items: BTreeMap<String, Item>,
    pub revision: u64,
    pub clock: u64,
    pub events: Vec<Event>,
    /// The first revision from which `events` is complete.
    pub oldest: u64,
    pub done: Vec<Done>,
    pub applied: Option<LogId>,
    pub membership: StoredMembership,
    /// Whether requests need a token, once that was said.
    pub tokens_required: Option<bool>,
    /// Tokens, and when they expire.
    pub tokens: BTreeMap<String, (NewToken, Option<u64>)>,
}

impl Event {
    fn bytes(&self) -> usize {
        let value = if let What::Set(item) = &self.what { item.value.len() } else { 0 };
        128 + self.key.len() + value
    }
}

impl Model {
    pub fn apply(&mut self, entry: &Entry) -> ExampleResponse {
        self.applied = Some(entry.log_id);
        match &entry.payload {
            Payload::Blank => ExampleResponse::default(),
            Payload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                ExampleResponse::default()
            }
            Payload::Normal(Command::Set { key, value }) => {
                self.former_set(key, value);
                ExampleResponse { value: Some(value.to_string()), ..ExampleResponse::default() }
            }
            Payload::Normal(Command::Write(write)) => {
                let (result, replayed) = self.write(write);
                ExampleResponse { value: None, revision: Some(self.revision), result: Some(result), replayed }
            }
        }
    }

    /// The time at which the next key or token expires.
    pub fn next_expiry(&self) -> Option<u64> {
        let tokens = self.tokens.values().filter_map(|(_, expires_at)| *expires_at);
        self.items.values().filter_map(|item| item.expires_at).chain(tokens).min()
    }

    /// All keys set before the first write of the new format have revision 1, and the history begins after that.
    fn former_set(&mut self, key: &str, value: &str) {
        let value = value.as_bytes().to_vec();
        let written_to = self.revision > 1 || !self.events.is_empty();
        if written_to {
            self.at_next_revision(|state, revision| {
                state.set(revision, key, value, None);
            });
            return;
        }
        self.items.insert(key.to_owned(), Item { value, revision: 1, created_at: 1, changes: 1, expires_at: None });
        (self.revision, self.oldest) = (1, 2);
    }

    fn write(&mut self, write: &Write) -> (WriteResult, bool) {
        self.clock = self.clock.max(write.at_ms);
        let clock = self.clock;
        self.tokens.retain(|_, (_, expires_at)| expires_at.is_none_or(|at| at > clock));
        self.expire();
        let Some(request) = &write.request else { return (self.execute(&write.operation, None), false) };
        let place = self.done.iter().position(|done| done.key == *request.key);
        let mut begun = None;
        let without_owner = request.key.split_once('\n').map(|(_, key)| key);
        if place.is_none() && self.done.iter().any(|done| Some(done.key.as_str()) == without_owner) {
            return (WriteResult::RequestIdReused, false);
        }
        if let Some(done) = place.map(|place| &self.done[place]) {
            if done.fingerprint != request.fingerprint {
                return (WriteResult::RequestIdReused, false);
            }
            match done.result {
                WriteResult::Delete { deleted, unfinished: Some(up_to), .. } => begun = Some((deleted, up_to)),
                ref finished => return (finished.clone(), true),
            }
        }
        let result = self.execute(&write.operation, begun);
        let done = Done { key: request.key.to_string(), fingerprint: request.fingerprint, result: result.clone() };
        match place {
            Some(place) => self.done[place] = done,
            None => self.done.push(done),
        }
        (result, false)
    }

    /// Runs `change` at the next revision, which is used only if something changed.
    fn at_next_revision<T>(&mut self, change: impl FnOnce(&mut Self, u64) -> T) -> T {
        let (events_before, revision) = (self.events.len(), self.revision + 1);
        let result = change(self, revision);
        if self.events.len() > events_before {
            self.revision = revision;
            self.trim();
        }
        result
    }

    /// Drops the oldest revisions, each as a whole, until the rest is within the bounds or only the newest revision
    /// remains.
    fn trim(&mut self) {
        let mut kept = self.events.len();
        let mut bytes: usize = self.events.iter().map(Event::bytes).sum();
        let mut start = 0;
        while kept > HISTORY_CHANGES_MAX || bytes > HISTORY_BYTES_MAX {
            let oldest = self.events[start].revision;
            if oldest == self.revision {
                break;
            }
            while self.events[start].revision == oldest {
                bytes -= self.events[start].bytes();
                kept -= 1;
                start += 1;
            }
            self.oldest = oldest + 1;
        }
        self.events.drain(..start);
    }

    fn expire(&mut self) {
        let clock = self.clock;
        let mut due: Vec<(u64, String)> = self
            .items
            .iter()
            .filter_map(|(key, item)| item.expires_at.filter(|at| *at <= clock).map(|at| (at, key.clone())))
            .collect();
        due.sort();
        due.truncate(EXPIRE_KEYS_MAX);
        self.at_next_revision(|state, revision| {
            for (_, key) in due {
                state.items.remove(&key);
                state.events.push(Event { revision, key, what: What::Expired });
            }
        });
    }

    fn set(&mut self, revision: u64, key: &str, value: Vec<u8>, ttl: Option<u64>) -> PutAnswer {
        let expires_at = ttl.map(|ttl| self.clock.saturating_add(ttl));
        let before = self.items.get(key);
        let item = match before {
            // The value stays the same and a TTL is given: this renews the TTL and is not a change.
            Some(before) if ttl.is_some() && before.value == value => {
                let item = Item { expires_at, ..before.clone() };
                self.items.insert(key.to_owned(), item.clone());
                return PutAnswer { revision: item.revision, version: item.changes };
            }
            Some(before) => {
                Item { value, revision, created_at: before.created_at, changes: before.changes + 1, expires_at }
            }
            None => Item { value, revision, created_at: revision, changes: 1, expires_at },
        };
        let answer = PutAnswer { revision, version: item.changes };
        self.items.insert(key.to_owned(), item.clone());
        self.events.push(Event { revision, key: key.to_owned(), what: What::Set(item) });
        answer
    }

    fn delete(&mut self, revision: u64, key: &str) -> u64 {
        if self.items.remove(key).is_none() {
            return 0;
        }
        self.events.push(Event { revision, key: key.to_owned(), what: What::Deleted });
        1
    }

    fn touch(&mut self, key: &str, ttl: Option<u64>) -> Option<TouchAnswer> {
        let expires_at = ttl.map(|ttl| self.clock.saturating_add(ttl));
        let item = self.items.get_mut(key)?;
        item.expires_at = expires_at;
        Some(TouchAnswer { revision: item.revision, version: item.changes, expires_in_ms: ttl })
    }

    /// The result if the condition does not hold.
    fn refusal(&self, key: &str, condition: Option<Condition>) -> Option<WriteResult> {
        let revision = self.items.get(key).map(|item| item.revision);
        let refused = match condition {
            None => false,
            Some(Condition::Missing) => revision.is_some(),
            Some(Condition::Present) => revision.is_none(),
            Some(Condition::Revision(wanted)) => revision != Some(wanted),
        };
        refused.then_some(WriteResult::ConditionFailed { revision })
    }

    fn execute(&mut self, operation: &Operation, begun: Option<(u64, u64)>) -> WriteResult {
        match operation {
            Operation::Put(Put { key, value, ttl_ms, condition }) => {
                let refusal = self.refusal(key, *condition);
                refusal.unwrap_or_else(|| {
                    let value = value.as_bytes().to_vec();
                    WriteResult::Put(self.at_next_revision(|state, revision| state.set(revision, key, value, *ttl_ms)))
                })
            }
            Operation::Delete(delete) => {
                let refusal = self.refusal(&delete.key, delete.condition);
                refusal.unwrap_or_else(|| {
                    let deleted = self.at_next_revision(|state, revision| state.delete(revision, &delete.key));
                    WriteResult::Delete { deleted, revision: self.revision, unfinished: None }
                })
            }
            Operation::Touch(Touch { key, ttl_ms, condition }) => {
                let refusal = self.refusal(key, *condition);
                refusal.unwrap_or_else(|| match self.touch(key, *ttl_ms) {
                    Some(answer) => WriteResult::Touch(answer),
                    None => WriteResult::NoSuchKey,
                })
            }
            Operation::DeletePrefix { prefix, revision_max } => {
                let (deleted, up_to) = begun.unwrap_or((0, revision_max.unwrap_or(self.revision)));
                self.delete_prefix(prefix, deleted, up_to)
            }
            Operation::Txn(txn) => self.txn(txn),
            Operation::Access(change) => self.change_access(change),
            Operation::Expire | Operation::SelfCheck { .. } | Operation::RaiseLevel { .. } => {
                WriteResult::Delete { deleted: 0, revision: self.revision, unfinished: None }
            }
        }
    }

    fn change_access(&mut self, change: &AccessChange) -> WriteResult {
        let mut deleted = 0;
        match change {
            AccessChange::Require { required } => self.tokens_required = Some(*required),
            AccessChange::Create(token) if self.tokens.contains_key(&*token.name) => {
                return WriteResult::ConditionFailed { revision: None };
            }
            AccessChange::Create(token) => {
                let expires_at = token.ttl_ms.map(|ttl| self.clock.saturating_add(ttl));
                self.tokens.insert(token.name.to_string(), (token.clone(), expires_at));
            }
            AccessChange::Revoke { name } => match self.tokens.remove(&**name) {
                Some(_) => deleted = 1,
                None => return WriteResult::NoSuchKey,
            },
        }
        WriteResult::Delete { deleted, revision: self.revision, unfinished: None }
    }

    fn delete_prefix(&mut self, prefix: &str, deleted: u64, up_to: u64) -> WriteResult {
        let found = self.items.iter().filter(|(key, item)| key.starts_with(prefix) && item.revision <= up_to);
        let found: Vec<String> = found.map(|(key, _)| key.clone()).collect();
        let step = &found[..found.len().min(DELETE_STEP_KEYS_MAX)];
        self.at_next_revision(|state, revision| step.iter().for_each(|key| assert_eq!(state.delete(revision, key), 1)));
        let unfinished = (step.len() < found.len()).then_some(up_to);
        WriteResult::Delete { deleted: deleted + step.len() as u64, revision: self.revision, unfinished }
    }

    /// Works on a copy, which is discarded if the transaction reads too much.
    fn txn(&mut self, txn: &Txn) -> WriteResult {
        let succeeded = txn.compare.iter().all(|comparison| self.holds(comparison));
        let steps = if succeeded { &txn.success } else { &txn.failure };
        let mut after = self.clone();
        let mut bytes_read = 0;
        let results = after.at_next_revision(|state, revision| {
            let mut results = Vec::new();
            for step in steps {
                results.push(match step {
                    TxnStep::Put(put) => {
                        StepResult::Put(state.set(revision, &put.key, put.value.as_bytes().to_vec(), put.ttl_ms))
                    }
                    TxnStep::Delete(delete) => {
                        StepResult::Delete(TxnDeleted { deleted: state.delete(revision, &delete.key) })
                    }
                    TxnStep::Touch(touch) => StepResult::Touch(state.touch(&touch.key, touch.ttl_ms)),
                    TxnStep::Get(key) => {
                        bytes_read += key.len() + state.items.get(&**key).map_or(0, |item| item.value.len());
                        StepResult::Get(state.items.get(&**key).map(|item| read(key, item, state.clock)))
                    }
                });
            }
            results
        });
        if bytes_read > TXN_ANSWER_BYTES_MAX {
            return WriteResult::AnswerTooLarge { bytes: bytes_read as u64 };
        }
        *self = after;
        WriteResult::Txn(TxnDone { succeeded, revision: self.revision, results }.into())
    }

    fn holds(&self, comparison: &Comparison) -> bool {
        let item = self.items.get(&*comparison.key);
        match &comparison.operand {
            Operand::Exists(wanted) => stands(&item.is_some(), comparison.relation, wanted),
            Operand::Value(wanted) => match item {
                Some(item) => stands(&item.value.as_slice(), comparison.relation, &wanted.as_bytes()),
                // A missing value is less than any other.
                None => matches!(comparison.relation, Relation::NotEqual | Relation::Less | Relation::LessOrEqual),
            },
            Operand::Revision(wanted) => stands(&item.map_or(0, |item| item.revision), comparison.relation, wanted),
            Operand::CreateRevision(wanted) => {
                stands(&item.map_or(0, |item| item.created_at), comparison.relation, wanted)
            }
            Operand::Version(wanted) => stands(&item.map_or(0, |item| item.changes), comparison.relation, wanted),
        }
    }
}

fn stands<T: Ord>(left: &T, relation: Relation, right: &T) -> bool {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let wanted: &[_] = match relation {
        Relation::Equal => &[Equal],
        Relation::NotEqual => &[Less, Greater],
        Relation::Less => &[Less],
        Relation::LessOrEqual => &[Less, Equal],
        Relation::Greater => &[Greater],
        Relation::GreaterOrEqual => &[Greater, Equal],
    };
    wanted.contains(&left.cmp(right))
}

fn read(key: &str, item: &Item, clock: u64) -> Found {
    Found {
        key: key.into(),
        value: (&item.value).into(),
        revision: item.revision,
        create_revision: item.created_at,
        version: item.changes,
        expires_in_ms: item.expires_at.map(|at| at.saturating_sub(clock)),
    }
}
