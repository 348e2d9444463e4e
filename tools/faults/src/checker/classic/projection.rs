//! The restriction of a history to each key.

use std::collections::{BTreeMap, HashMap};

use super::search::{Action, Event};
use crate::history::{
    Call, CallResult, Condition, Consistency, History, Operand, Operation, Outcome, Record, Step, StepResult,
};

/// The operations on one key.
pub struct KeyHistory<'a> {
    operations: &'a [Operation],
    /// Operations with a definite outcome, in the order of their calls.
    pub events: Vec<Event>,
    /// Operations of unknown outcome, by the value that they would write.
    pub unknown_writes: HashMap<u32, Vec<Event>>,
    first_unknown_write_ns: Option<u64>,
    first_unknown_delete_ns: Option<u64>,
}

impl<'a> KeyHistory<'a> {
    /// The operation of an event.
    pub fn operation(&self, event: &Event) -> &'a Operation {
        &self.operations[event.operation]
    }

    fn add_unknown(&mut self, event: Event) {
        let first = match event.action {
            Action::Write(value) | Action::WriteIfMissing(value) => {
                self.unknown_writes.entry(value).or_default().push(event);
                &mut self.first_unknown_write_ns
            }
            Action::Delete => &mut self.first_unknown_delete_ns,
            Action::Read(_) | Action::SeePresent => return,
        };
        *first = Some(first.map_or(event.called_ns, |first| first.min(event.called_ns)));
    }

    /// Sorts the events, and marks those that a write of unknown outcome may precede.
    fn finish(&mut self) {
        self.events.sort_by_key(|event| event.called_ns);
        let (written_ns, deleted_ns) = (self.first_unknown_write_ns, self.first_unknown_delete_ns);
        for event in self.events.iter_mut().chain(self.unknown_writes.values_mut().flatten()) {
            event.may_be_present = written_ns.is_some_and(|first| first <= event.over_ns());
            event.may_be_missing = deleted_ns.is_some_and(|first| first <= event.over_ns());
        }
    }
}

/// Splits a history by key.
pub fn keys_of(history: &History) -> BTreeMap<&str, KeyHistory<'_>> {
    let mut projection = Projection { operations: &history.operations, keys: BTreeMap::new(), values: HashMap::new() };
    for (index, operation) in history.operations.iter().enumerate() {
        match &operation.outcome {
            Outcome::Done(answer) => projection.add_done(index, &operation.call, &answer.result),
            Outcome::Unknown => projection.add_unknown(index, &operation.call),
            Outcome::NotApplied => {}
        }
    }
    for key in projection.keys.values_mut() {
        key.finish();
    }
    projection.keys
}

struct Projection<'a> {
    operations: &'a [Operation],
    keys: BTreeMap<&'a str, KeyHistory<'a>>,
    /// A number for each value.
    values: HashMap<&'a str, u32>,
}

impl<'a> Projection<'a> {
    fn value(&mut self, value: &'a str) -> u32 {
        let next = self.values.len() as u32;
        *self.values.entry(value).or_insert(next)
    }

    fn read(&mut self, record: Option<&'a Record>) -> Action {
        Action::Read(record.map(|record| self.value(&record.value)))
    }

    fn key(&mut self, key: &'a str) -> &mut KeyHistory<'a> {
        let operations = self.operations;
        self.keys.entry(key).or_insert_with(|| KeyHistory {
            operations,
            events: Vec::new(),
            unknown_writes: HashMap::new(),
            first_unknown_write_ns: None,
            first_unknown_delete_ns: None,
        })
    }

    fn push(&mut self, operation: usize, key: &'a str, action: Action) {
        let Operation { called_ns, returned_ns, .. } = self.operations[operation];
        let event = Event::new(operation, called_ns, Some(returned_ns), action);
        self.key(key).events.push(event);
    }

    fn push_unknown(&mut self, operation: usize, key: &'a str, action: Action) {
        let event = Event::new(operation, self.operations[operation].called_ns, None, action);
        self.key(key).add_unknown(event);
    }

    fn add_done(&mut self, index: usize, call: &'a Call, result: &'a CallResult) {
        match (call, result) {
            (Call::Put { key, value, condition }, CallResult::Put { .. }) => {
                let action = self.put(value, *condition);
                self.push(index, key, action);
            }
            (Call::Delete { key, .. }, CallResult::Delete { deleted }) => self.push(index, key, delete(*deleted)),
            (Call::Put { key, .. } | Call::Delete { key, .. }, CallResult::ConditionFailed { found }) => {
                let action = if found.is_some() { Action::SeePresent } else { Action::Read(None) };
                self.push(index, key, action);
            }
            (Call::Get { key, consistency: Consistency::Linearizable }, CallResult::Get(record)) => {
                let action = self.read(record.as_ref());
                self.push(index, key, action);
            }
            (Call::Txn { compare, success, failure }, CallResult::Txn { succeeded, results }) => {
                let steps = if *succeeded { success } else { failure };
                if *succeeded {
                    for comparison in compare {
                        let action = match &comparison.operand {
                            Operand::Missing => Action::Read(None),
                            Operand::Value(value) => Action::Read(Some(self.value(value))),
                            Operand::Revision(_) => Action::SeePresent,
                        };
                        self.push(index, &comparison.key, action);
                    }
                }
                self.add_steps(index, steps, results);
            }
            _ => {}
        }
    }

    /// Adds each step as an operation of its own that spans the whole transaction: an order that explains the
    /// transaction explains its steps one after the other.
    fn add_steps(&mut self, index: usize, steps: &'a [Step], results: &'a [StepResult]) {
        for (step, result) in steps.iter().zip(results) {
            let (key, action) = match (step, result) {
                (Step::Put { key, value }, StepResult::Put) => (key, Action::Write(self.value(value))),
                (Step::Delete { key }, StepResult::Delete { deleted }) => (key, delete(*deleted)),
                (Step::Get { key }, StepResult::Get(record)) => (key, self.read(record.as_ref())),
                _ => continue,
            };
            self.push(index, key, action);
        }
    }

    fn add_unknown(&mut self, index: usize, call: &'a Call) {
        match call {
            Call::Put { key, value, condition } => {
                let action = self.put(value, *condition);
                self.push_unknown(index, key, action);
            }
            Call::Delete { key, .. } => self.push_unknown(index, key, Action::Delete),
            Call::Txn { success, failure, .. } => {
                for step in success.iter().chain(failure) {
                    let (key, action) = match step {
                        Step::Put { key, value } => (key, Action::Write(self.value(value))),
                        Step::Delete { key } => (key, Action::Delete),
                        Step::Get { .. } => continue,
                    };
                    self.push_unknown(index, key, action);
                }
            }
            Call::Get { .. } | Call::List { .. } => {}
        }
    }

    fn put(&mut self, value: &'a str, condition: Option<Condition>) -> Action {
        let value = self.value(value);
        match condition {
            Some(Condition::Missing) => Action::WriteIfMissing(value),
            None | Some(Condition::Revision(_)) => Action::Write(value),
        }
    }
}

fn delete(deleted: bool) -> Action {
    if deleted { Action::Delete } else { Action::Read(None) }
}
