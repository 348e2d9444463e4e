//! Histories written by hand: one operation after the other, 10 ns each.

use super::simulate::{Store, text};
use crate::history::{Answer, Call, Comparison, Condition, Consistency, History, Operand, Operation, Outcome, Step};

/// A history under construction, and the store that responds.
#[derive(Default)]
pub struct Script {
    pub store: Store,
    operations: Vec<Operation>,
}

impl Script {
    /// An operation that is applied and acknowledged.
    pub fn done(&mut self, call: Call) -> Answer {
        let answer = self.store.apply(&call);
        self.add(call, Outcome::Done(answer.clone()));
        answer
    }

    /// An operation that gets a response, but is never applied.
    pub fn lie(&mut self, call: Call, answer: Answer) {
        self.add(call, Outcome::Done(answer));
    }

    /// An operation of unknown outcome, applied or not.
    pub fn unknown(&mut self, call: Call, done: bool) {
        if done {
            self.store.apply(&call);
        }
        self.add(call, Outcome::Unknown);
    }

    /// An operation that is reported as not applied.
    pub fn refused(&mut self, call: Call) {
        self.add(call, Outcome::NotApplied);
    }

    /// An effect without a request.
    pub fn silently(&mut self, call: Call) {
        self.store.apply(&call);
    }

    fn add(&mut self, call: Call, outcome: Outcome) {
        let called_ns = self.operations.len() as u64 * 10;
        self.operations.push(Operation { client: 1, node: 1, called_ns, returned_ns: called_ns + 5, call, outcome });
    }

    /// The history, with two watched nodes.
    pub fn history(&self) -> History {
        History {
            revision_before: 0,
            operations: self.operations.clone(),
            watches: vec![self.store.changes.clone(); 2],
            finals: vec![self.store.final_state(1), self.store.final_state(2)],
        }
    }
}

pub fn put(key: &str, value: &str) -> Call {
    Call::Put { key: text(key), value: text(value), condition: None }
}

pub fn put_if(key: &str, value: &str, condition: Condition) -> Call {
    Call::Put { key: text(key), value: text(value), condition: Some(condition) }
}

pub fn delete(key: &str) -> Call {
    Call::Delete { key: text(key), condition: None }
}

pub fn get(key: &str) -> Call {
    Call::Get { key: text(key), consistency: Consistency::Linearizable }
}

pub fn get_stale(key: &str) -> Call {
    Call::Get { key: text(key), consistency: Consistency::Stale }
}

pub fn list(prefix: &str) -> Call {
    Call::List { prefix: text(prefix), consistency: Consistency::Linearizable }
}

pub fn txn(compare: Vec<Comparison>, success: Vec<Step>, failure: Vec<Step>) -> Call {
    Call::Txn { compare, success, failure }
}

pub fn compare(key: &str, operand: Operand) -> Comparison {
    Comparison { key: text(key), operand }
}

pub fn step_put(key: &str, value: &str) -> Step {
    Step::Put { key: text(key), value: text(value) }
}

pub fn step_delete(key: &str) -> Step {
    Step::Delete { key: text(key) }
}

pub fn step_get(key: &str) -> Step {
    Step::Get { key: text(key) }
}
