//! What a write asks for, as the log holds it, and what became of it.
//!
//! The log keeps these as MessagePack with field names: a field may be added,
//! with a default for the logs that lack it, and none may be renamed.

use std::fmt;
use std::sync::Arc;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use smol_str::SmolStr;

use crate::body::{PutAnswer, TouchAnswer, TxnAnswer};
use crate::config::IDEMPOTENCY_KEY_BYTES_MAX;
use crate::store::StateHash;

/// A key. One of up to 23 bytes has no memory of its own, which spares the ordered
/// map a look there at each comparison; a longer one is shared, and never copied.
pub type Key = SmolStr;

/// A value: bytes, shared and never copied between the log's cache, the
/// replication to each follower, and the state machine.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Value(Arc<[u8]>);

impl Value {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as text, if that is what they are.
    pub fn as_text(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

impl<Bytes: AsRef<[u8]> + ?Sized> From<&Bytes> for Value {
    fn from(bytes: &Bytes) -> Self {
        Value(bytes.as_ref().into())
    }
}

// Sizes only, here and below: data must not be logged.
impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BytesVisitor;
        impl Visitor<'_> for BytesVisitor {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Value, E> {
                Ok(Value(bytes.into()))
            }
        }
        deserializer.deserialize_bytes(BytesVisitor)
    }
}

/// A write as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    /// Log time when the leader proposed this, in milliseconds since 1970.
    pub at_ms: u64,
    /// Set if the same request may come again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Arc<RequestId>>,
    /// What is to be done.
    pub operation: Operation,
}

/// What tells a request from all others, and that it is the same one.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestId {
    /// The client's `Idempotency-Key`.
    pub key: Key,
    /// A hash of what is asked for.
    pub fingerprint: [u64; 2],
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {:x?}", self.fingerprint)
    }
}

/// Checks an `Idempotency-Key`, for clients and nodes alike.
///
/// # Errors
///
/// What the key must be, if it is not.
pub fn check_idempotency_key(key: &str) -> Result<(), String> {
    // A tab may be in a header, too.
    let is_printable = key.bytes().all(|byte| matches!(byte, b' ' | b'\t') || byte.is_ascii_graphic());
    if is_printable && (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len()) {
        return Ok(());
    }
    Err(format!("an Idempotency-Key must be 1 to {IDEMPOTENCY_KEY_BYTES_MAX} printable ASCII characters"))
}

/// What a write does.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Sets a key.
    Put(Put),
    /// Removes a key.
    Delete(Delete),
    /// Removes keys that begin with a prefix, up to
    /// [`DELETE_STEP_KEYS_MAX`](crate::config::DELETE_STEP_KEYS_MAX) of them.
    DeletePrefix {
        /// What the keys begin with.
        prefix: Key,
        /// Keys changed after this revision stay. `None`: it is the first step.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        revision_max: Option<u64>,
    },
    /// Renews the time that a key has left.
    Touch(Touch),
    /// Several of these, all or none.
    Txn(Arc<Txn>),
    /// Nothing but what each write does first: removing keys whose time is over.
    Expire,
    /// The same, and says what the leader's state was once, for each node to compare with its own.
    SelfCheck {
        /// After which entry.
        index: u64,
        /// The hash of the state.
        hash: StateHash,
    },
}

/// Sets a key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Put {
    /// The key.
    pub key: Key,
    /// The value.
    pub value: Value,
    /// How long the key is to stay; `None`: until it is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    /// What must hold for this to be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<Condition>,
}

/// Removes a key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delete {
    /// The key.
    pub key: Key,
    /// What must hold for this to be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<Condition>,
}

/// Renews the time that a key has left; its value and revision stay.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touch {
    /// The key.
    pub key: Key,
    /// How long the key is to stay from now on; `None`: until it is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    /// What must hold for this to be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<Condition>,
}

/// What must hold for one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// The key is not there.
    Missing,
    /// The key is there.
    Present,
    /// The key was last changed at this revision.
    Revision(u64),
}

/// Compares, and does one or the other.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Txn {
    /// What must hold, all of it, for `success` to be done, else `failure` is.
    pub compare: Vec<Comparison>,
    /// Done, all of it at one revision, if the comparisons hold.
    pub success: Vec<TxnStep>,
    /// Done, all of it at one revision, if not.
    pub failure: Vec<TxnStep>,
}

/// Compares something of a key with an operand.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparison {
    /// The key.
    pub key: Key,
    /// How the key's own is to stand to the operand.
    pub relation: Relation,
    /// What is compared, and with what.
    pub operand: Operand,
}

/// How two things stand to each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub enum Relation {
    /// `=`
    #[default]
    #[serde(rename = "=")]
    Equal,
    /// `!=`
    #[serde(rename = "!=")]
    NotEqual,
    /// `<`
    #[serde(rename = "<")]
    Less,
    /// `<=`
    #[serde(rename = "<=")]
    LessOrEqual,
    /// `>`
    #[serde(rename = ">")]
    Greater,
    /// `>=`
    #[serde(rename = ">=")]
    GreaterOrEqual,
}

/// What a key is compared with. A key that is not there has revision,
/// create revision and version 0, and no value that anything is equal to.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operand {
    /// Whether the key is there.
    Exists(bool),
    /// The value, by its bytes.
    Value(Value),
    /// The revision of the last change.
    Revision(u64),
    /// The revision at which the key came to be.
    CreateRevision(u64),
    /// How often the key was changed since it came to be.
    Version(u64),
}

/// One operation of a transaction; conditions are in its comparisons.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TxnStep {
    /// Sets a key.
    Put(Put),
    /// Removes a key.
    Delete(Delete),
    /// Renews the time that a key has left.
    Touch(Touch),
    /// Reads a key.
    Get(Key),
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub enum WriteResult {
    /// The key was set.
    Put(PutAnswer),
    /// The key's time was renewed.
    Touch(TouchAnswer),
    /// This many keys were removed.
    Delete {
        /// How many, over all steps.
        deleted: u64,
        /// The store's revision after it.
        #[serde(default)]
        revision: u64,
        /// Set if some are left: the request goes on with this as `revision_max`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unfinished: Option<u64>,
    },
    /// The transaction was done.
    Txn(Arc<TxnAnswer>),
    /// The condition does not hold; nothing was done.
    ConditionFailed {
        /// The key's revision; `None` if it is not there.
        revision: Option<u64>,
    },
    /// The key to be touched is not there; nothing was done.
    NoSuchKey,
    /// What the transaction reads is too large for an answer; nothing was done.
    AnswerTooLarge {
        /// How large it would be, in bytes.
        bytes: u64,
    },
    /// The `Idempotency-Key` was that of another request; nothing was done.
    RequestIdReused,
}

impl Operation {
    /// Whether the operation leaves no more data than before, so that it can pass while the disk is nearly full.
    pub fn stores_nothing(&self) -> bool {
        match self {
            Operation::Delete(_) | Operation::DeletePrefix { .. } | Operation::Touch(_) | Operation::Expire => true,
            Operation::Txn(txn) => !txn.success.iter().chain(&txn.failure).any(|step| matches!(step, TxnStep::Put(_))),
            // A self-check can wait.
            Operation::Put(_) | Operation::SelfCheck { .. } => false,
        }
    }

    /// About how many bytes of memory the keys and values take.
    pub fn payload_bytes(&self) -> usize {
        match self {
            Operation::Put(put) => put.payload_bytes(),
            Operation::Delete(delete) => delete.key.len(),
            Operation::DeletePrefix { prefix, .. } => prefix.len(),
            Operation::Touch(touch) => touch.key.len(),
            Operation::Txn(txn) => txn.payload_bytes(),
            Operation::Expire | Operation::SelfCheck { .. } => 0,
        }
    }
}

impl Put {
    fn payload_bytes(&self) -> usize {
        self.key.len() + self.value.0.len()
    }
}

impl Txn {
    fn payload_bytes(&self) -> usize {
        // A fixed part for each, so that many small ones count too.
        const PART_BYTES: usize = 64;
        let comparison = |part: &Comparison| match &part.operand {
            Operand::Value(value) => part.key.len() + value.0.len(),
            _ => part.key.len(),
        };
        let step = |part: &TxnStep| match part {
            TxnStep::Put(put) => put.payload_bytes(),
            TxnStep::Delete(delete) => delete.key.len(),
            TxnStep::Touch(touch) => touch.key.len(),
            TxnStep::Get(key) => key.len(),
        };
        let parts = self.compare.iter().map(comparison).chain(self.success.iter().chain(&self.failure).map(step));
        parts.map(|bytes| bytes + PART_BYTES).sum()
    }
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Operation::Put(_) => "put",
            Operation::Delete(_) => "delete",
            Operation::DeletePrefix { .. } => "delete a prefix",
            Operation::Touch(_) => "touch",
            Operation::Txn(_) => "txn",
            Operation::Expire => "expire",
            Operation::SelfCheck { .. } => "self-check",
        };
        write!(f, "{name} of {} bytes", self.payload_bytes())
    }
}

impl Relation {
    /// Whether `left` stands so to `right`.
    pub fn holds<T: Ord>(self, left: T, right: T) -> bool {
        match self {
            Relation::Equal => left == right,
            Relation::NotEqual => left != right,
            Relation::Less => left < right,
            Relation::LessOrEqual => left <= right,
            Relation::Greater => left > right,
            Relation::GreaterOrEqual => left >= right,
        }
    }
}
