//! The history of a run: the clients' requests and the responses to them, which the checker judges.
//!
//! The model is that of a store with revisions, like raft-key-value and etcd: one counter for the whole
//! store, incremented by each request that changes something. All written values are different, so a value
//! identifies its write.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Number of a client, which does one operation at a time.
pub type ClientId = u32;
/// Number of a node in the cluster.
pub type NodeId = u64;
/// A text that many operations share.
pub type Text = Arc<str>;

/// Values of at least this length, in bytes, are abridged in a history.
const ABRIDGED_BYTES_MIN: usize = 24 << 10;

/// A value as recorded in a history. A long one is recorded as its beginning, length and hash: this
/// identifies the write, shows damage, and keeps the history small.
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

/// A client's request, with all its attempts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    pub client: ClientId,
    /// The node of the last attempt.
    pub node: NodeId,
    /// When the first attempt was sent, in nanoseconds since the run began.
    pub called_ns: u64,
    /// When the response arrived, or the client gave up.
    pub returned_ns: u64,
    pub call: Call,
    pub outcome: Outcome,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// Sets a key.
    Put { key: Text, value: Text, condition: Option<Condition> },
    /// Removes a key.
    Delete { key: Text, condition: Option<Condition> },
    /// Compares, and applies one of the lists, atomically.
    Txn { compare: Vec<Comparison>, success: Vec<Step>, failure: Vec<Step> },
    /// Reads a key.
    Get { key: Text, consistency: Consistency },
    /// Reads all keys with a prefix at one revision, over as many pages as needed.
    List { prefix: Text, consistency: Consistency },
}

/// What a node must do before it responds to a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Consistency {
    /// Ensure that nothing newer was acknowledged before the read was sent.
    Linearizable,
    /// Nothing: it returns its own state, however old.
    Stale,
}

/// The condition of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// The key is missing.
    Missing,
    /// The key's last change has this revision.
    Revision(u64),
}

/// A comparison of a transaction, all of which must hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparison {
    pub key: Text,
    pub operand: Operand,
}

/// What a key is compared with, for equality.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operand {
    /// The key is missing.
    Missing,
    /// The key has this value.
    Value(Text),
    /// The key's last change has this revision.
    Revision(u64),
}

/// A step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    Put { key: Text, value: Text },
    Delete { key: Text },
    Get { key: Text },
}

/// The outcome of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The response is definite.
    Done(Answer),
    /// The store reported that the request was not applied, and never will be.
    NotApplied,
    /// The request may have been applied, or may be at any later time.
    Unknown,
}

/// A definite response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The revision of the change. If nothing changed, the store's revision when the request was applied or
    /// read.
    pub revision: u64,
    pub result: CallResult,
}

/// The result of a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CallResult {
    /// The key is set, and has this version now.
    Put { version: u64 },
    /// The key is missing; `deleted` tells whether it existed before.
    Delete { deleted: bool },
    /// The condition did not hold. `found` is the revision of the key, if it exists.
    ConditionFailed { found: Option<u64> },
    /// The list that was applied, and the result of each of its steps.
    Txn { succeeded: bool, results: Vec<StepResult> },
    /// The key, if it exists.
    Get(Option<Record>),
    /// The keys, in order.
    List(Vec<(Text, Record)>),
}

/// The result of a step of a transaction.
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
    /// Revision of its last change.
    pub revision: u64,
    /// Revision at which it was created.
    pub create_revision: u64,
    /// Number of changes since its creation; 1 for a new key.
    pub version: u64,
}

/// One change of one key, as a watch delivers it. The changes of a revision arrive in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub revision: u64,
    pub key: Text,
    pub kind: ChangeKind,
}

/// The kind of change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeKind {
    /// The key has this value now.
    Put { value: Text, create_revision: u64, version: u64 },
    /// The key was deleted.
    Delete,
}

/// The state of a node at the end, after all faults are healed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalState {
    pub node: NodeId,
    /// The store's revision on this node.
    pub revision: u64,
    /// All keys, in order.
    pub records: Vec<(Text, Record)>,
    /// The hash of the node's replicated state, as the node reports it.
    pub hash: String,
}

/// Everything that the checker needs of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The store's revision when the run began: 0 for an empty raft-key-value, 1 for an empty etcd. The store
    /// had no keys, and the first change gets the next revision.
    #[serde(default)]
    pub revision_before: u64,
    /// In the order of their calls.
    pub operations: Vec<Operation>,
    /// The changes that each watch from the first revision delivered, complete or not, in the order of their
    /// arrival.
    pub watches: Vec<Vec<Change>>,
    /// One for each node that is a member at the end.
    pub finals: Vec<FinalState>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Long values are short in a history, and differ there if they differ in the store.
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
