//! What the clients asked, and what they were told: the history that is checked.
//!
//! The model is that of a store with revisions, as raft-key-value and etcd both
//! are: one counter for the whole store, one more for each request that changes
//! something. All values ever written are different, so that a value names the
//! write it comes from.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The number of a client; it does one operation at a time.
pub type ClientId = u32;
/// The number of a node, as the cluster has it.
pub type NodeId = u64;
/// A text that many operations share.
pub type Text = Arc<str>;

/// Values from this length on, in bytes, are abridged in a history.
const ABRIDGED_BYTES_MIN: usize = 24 << 10;

/// A value as a history has it. Of a long one it has the beginning, the length and a hash: it names the write that
/// the value comes from, and shows a value that is damaged, and the history stays small.
pub fn abridged(value: &str) -> Text {
    const BEGINNING_CHARACTERS: usize = 40;
    if value.len() < ABRIDGED_BYTES_MIN {
        return value.into();
    }
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    let beginning: String = value.chars().take(BEGINNING_CHARACTERS).collect();
    format!("{beginning}, {} bytes of hash {:016x}", value.len(), hasher.finish()).into()
}

/// One request of a client, over all its attempts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Who asked.
    pub client: ClientId,
    /// Which node was asked last.
    pub node: NodeId,
    /// When the first attempt was sent, in nanoseconds since the run began.
    pub called_ns: u64,
    /// When the answer was there, or the client gave up.
    pub returned_ns: u64,
    /// What was asked.
    pub call: Call,
    /// What became of it.
    pub outcome: Outcome,
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// Sets a key.
    Put { key: Text, value: Text, condition: Option<Condition> },
    /// Removes a key.
    Delete { key: Text, condition: Option<Condition> },
    /// Compares, and does one or the other list, all or nothing.
    Txn { compare: Vec<Comparison>, success: Vec<Step>, failure: Vec<Step> },
    /// Reads a key.
    Get { key: Text, consistency: Consistency },
    /// Reads all keys with a prefix, over as many pages as it takes, at one revision.
    List { prefix: Text, consistency: Consistency },
}

/// What a node must do before it answers a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Consistency {
    /// Be sure that nothing newer was acknowledged before the read was sent.
    Linearizable,
    /// Nothing: it answers from what it has, however old.
    Stale,
}

/// What must hold for a write to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// The key is not there.
    Missing,
    /// The key's last change is of this revision.
    Revision(u64),
}

/// A comparison of a transaction: all must hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparison {
    pub key: Text,
    pub operand: Operand,
}

/// What a key is compared with, for equality.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operand {
    /// The key is not there.
    Missing,
    /// The key has this value.
    Value(Text),
    /// The key's last change is of this revision.
    Revision(u64),
}

/// A step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    Put { key: Text, value: Text },
    Delete { key: Text },
    Get { key: Text },
}

/// What became of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It was answered, and this is the answer.
    Done(Answer),
    /// The store said that it did nothing, and never will.
    NotApplied,
    /// It may have been done, or be done at any later time.
    Unknown,
}

/// A definite answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The revision of the change, if it changed something, else the store's
    /// revision when it was done or read.
    pub revision: u64,
    /// What else it said.
    pub result: CallResult,
}

/// What a call returned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CallResult {
    /// The key is set, and this is its version now.
    Put { version: u64 },
    /// The key is gone; whether it was there.
    Delete { deleted: bool },
    /// The condition did not hold: the revision of the key, if it is there.
    ConditionFailed { found: Option<u64> },
    /// Which list was done, and what each of its steps returned.
    Txn { succeeded: bool, results: Vec<StepResult> },
    /// The key, if it is there.
    Get(Option<Record>),
    /// The keys, in order.
    List(Vec<(Text, Record)>),
}

/// What a step of a transaction returned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepResult {
    Put,
    Delete { deleted: bool },
    Get(Option<Record>),
}

/// A key as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub value: Text,
    /// Of its last change.
    pub revision: u64,
    /// At which it came to be.
    pub create_revision: u64,
    /// How many changes there were since then: 1 when it is new.
    pub version: u64,
}

/// One change of one key, as a watch tells it. The changes of a revision come in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub revision: u64,
    pub key: Text,
    pub kind: ChangeKind,
}

/// What happened to a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeKind {
    /// It has this value now.
    Put { value: Text, create_revision: u64, version: u64 },
    /// It is gone.
    Delete,
}

/// What a node holds at the end, when all is healed and quiet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalState {
    pub node: NodeId,
    /// The store's revision there.
    pub revision: u64,
    /// All keys, in order.
    pub records: Vec<(Text, Record)>,
    /// The hash of the node's replicated state, by its own word.
    pub hash: String,
}

/// All that a run leaves behind for the checker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The store's revision when the run began: 0 for an empty raft-key-value, 1 for an
    /// empty etcd. The store had no keys then, and the first change is of the next one.
    #[serde(default)]
    pub revision_before: u64,
    /// In the order of their calls.
    pub operations: Vec<Operation>,
    /// What a watch from revision 1 saw, one for each node that was watched, complete
    /// or not: each is the changes in the order in which they came.
    pub watches: Vec<Vec<Change>>,
    /// One for each node that is a member at the end.
    pub finals: Vec<FinalState>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Long values are short in a history, and differ there as they do in the store.
    #[test]
    fn long_values_are_abridged() {
        let short = "x".repeat(ABRIDGED_BYTES_MIN - 1);
        assert_eq!(&*abridged(&short), short);
        let long = "x".repeat(1 << 20);
        assert!(abridged(&long).len() < 100);
        assert_eq!(abridged(&long), abridged(&long.clone()));
        let mut others = vec![format!("{long}x"), format!("y{}", &long[1..])];
        others.push(format!("{}y{}", &long[..9999], &long[10_000..]));
        for other in others {
            assert_ne!(abridged(&other), abridged(&long));
        }
    }
}
