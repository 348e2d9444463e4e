//! Writes as the log stores them, and their results in memory.
//!
//! **In the log: frozen.** The log stores [`Write`] as MessagePack with field names.
//! A field may be added, with a default for logs that lack it; none may be renamed.
//! Results ([`WriteResult`]) are not stored in this form.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use smol_str::SmolStr;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;
use utoipa::{PartialSchema, ToSchema};
use xxhash_rust::xxh3::Xxh3;

use crate::access::AccessChange;
use crate::body::{self, KeyValue, KeyValueRef, PutAnswer, TouchAnswer, TxnAnswer, TxnDeleted, TxnResult};
use crate::hash::StateHash;
use crate::level::Level;

/// A key. A key of up to 23 bytes is stored inline, which saves the ordered map a
/// memory access at each comparison; a longer one is shared, and never copied.
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

    /// The bytes as text; `None` if they are not UTF-8.
    pub fn as_text(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

impl<Bytes: AsRef<[u8]> + ?Sized> From<&Bytes> for Value {
    fn from(bytes: &Bytes) -> Self {
        Value(bytes.as_ref().into())
    }
}

// Sizes only, here and below: user data must not be logged.
impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// A value that is not text, in JSON for people.
#[derive(Serialize)]
struct Base64Value {
    base64: String,
}

/// As bytes. In JSON, which no node stores or sends, as text or as an object with the bytes as base64.
impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !serializer.is_human_readable() {
            return serializer.serialize_bytes(&self.0);
        }
        match self.as_text() {
            Some(text) => serializer.serialize_str(text),
            None => Base64Value { base64: BASE64_STANDARD.encode(&self.0) }.serialize(serializer),
        }
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

/// A write in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    /// Log time when the leader proposed the write, in milliseconds since 1970.
    pub at_ms: u64,
    /// Set if the request has an `Idempotency-Key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Arc<RequestId>>,
    /// The change that the write requests.
    pub operation: Operation,
}

/// Separates the owner from the client's key. No value of a header contains it.
const AFTER_OWNER: char = '\n';

/// Identifies a request, so that it is executed once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestId {
    /// The client's `Idempotency-Key`, after the owner and a line break if it has an owner.
    pub key: Key,
    /// XXH3 with 128 bits of the operation as MessagePack with field names; the upper 64 bits first.
    pub fingerprint: [u64; 2],
}

impl RequestId {
    /// The id of a request with this `Idempotency-Key` and operation.
    ///
    /// With an `owner`, the name of a token, the request of another owner is another request, even if it is the same
    /// operation with the same key. So an owner neither sees nor blocks the requests of others.
    ///
    /// # Errors
    ///
    /// The operation cannot be encoded.
    pub fn new(key: Key, owner: Option<&str>, operation: &Operation) -> Result<Self, rmp_serde::encode::Error> {
        // The encoding is that of the log, so it is the same in every version that reads the log. It is hashed piece by
        // piece: a value of 1 MiB is not copied.
        let mut hasher = Xxh3::new();
        rmp_serde::encode::write_named(&mut hasher, operation)?;
        if let Some(owner) = owner {
            // After the operation, which is complete in itself, so that no other operation has these bytes.
            rmp_serde::encode::write_named(&mut hasher, owner)?;
        }
        let key = owner.map_or(key.clone(), |owner| format!("{owner}{AFTER_OWNER}{key}").into());
        let hash = hasher.digest128();
        Ok(RequestId { key, fingerprint: [(hash >> 64) as u64, hash as u64] })
    }
}

impl RequestId {
    /// The key of the same request without an owner, if it has one.
    pub fn key_without_owner(&self) -> Option<&str> {
        self.key.split_once(AFTER_OWNER).map(|(_, key)| key)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {:x?}", self.fingerprint)
    }
}

/// The change of a write.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Sets a key if a condition holds.
    Put(Put),
    /// Deletes a key if a condition holds.
    Delete(Delete),
    /// Removes keys that begin with a prefix, up to
    /// [`DELETE_STEP_KEYS_MAX`](crate::config::DELETE_STEP_KEYS_MAX) of them.
    DeletePrefix {
        /// The common beginning of the keys; empty for all keys.
        prefix: Key,
        /// Keys that were changed after this revision remain. `None` in the first step.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        revision_max: Option<u64>,
    },
    /// Sets the expiry time of a key if a condition holds.
    Touch(Touch),
    /// Executes several steps, all or none.
    Txn(Arc<Txn>),
    /// Only removes expired keys, which every write does first.
    Expire,
    /// As [`Operation::Expire`]. It also carries the hash of an earlier state of the leader, which each node compares
    /// with its own.
    SelfCheck {
        /// The index of the last entry in that state.
        index: u64,
        /// The hash of that state.
        hash: StateHash,
    },
    /// As [`Operation::Expire`]. It also raises the level of formats.
    RaiseLevel {
        /// The level from this entry on, unless that is already higher.
        level: Level,
    },
    /// Changes who may use the cluster.
    Access(Arc<AccessChange>),
}

/// Sets a key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Put {
    /// The key to create or to change.
    pub key: Key,
    /// The new value.
    pub value: Value,
    /// Milliseconds until the key expires; `None` for a permanent key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    /// The condition of the write; `None` for an unconditional one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<Condition>,
}

/// Deletes a key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delete {
    /// The key to remove. It may not exist.
    pub key: Key,
    /// The condition of the write; `None` for an unconditional one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<Condition>,
}

/// Sets the expiry time of a key. Its value and revision remain.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touch {
    /// The key, which must exist.
    pub key: Key,
    /// Milliseconds until the key expires; `None` makes it permanent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    /// The condition of the write; `None` for an unconditional one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<Condition>,
}

/// A condition on a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// The key does not exist.
    Missing,
    /// The key exists.
    Present,
    /// The key exists, and its last change was at this revision.
    Revision(u64),
}

/// A transaction: compares, and executes one of two lists of steps.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Txn {
    /// If all of these hold, `success` is executed, otherwise `failure`.
    pub compare: Vec<Comparison>,
    /// Executed if all comparisons hold. All its changes have one revision.
    pub success: Vec<TxnStep>,
    /// Executed otherwise. All its changes have one revision.
    pub failure: Vec<TxnStep>,
}

/// Compares a property of a key with an operand.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparison {
    /// The key. It may not exist.
    pub key: Key,
    /// The relation that must hold between the property, on the left, and the operand.
    pub relation: Relation,
    /// The property, and the operand.
    pub operand: Operand,
}

/// How two things compare.
///
/// **In the log and in fingerprints: frozen.** Requests have a type of their own ([`body::Relation`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Relation {
    /// `=`
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

impl From<body::Relation> for Relation {
    fn from(relation: body::Relation) -> Self {
        match relation {
            body::Relation::Equal => Relation::Equal,
            body::Relation::NotEqual => Relation::NotEqual,
            body::Relation::Less => Relation::Less,
            body::Relation::LessOrEqual => Relation::LessOrEqual,
            body::Relation::Greater => Relation::Greater,
            body::Relation::GreaterOrEqual => Relation::GreaterOrEqual,
        }
    }
}

/// The property of a key that is compared, and what it is compared with. A key that does not exist has revision, create
/// revision and version 0, and its value is less than every value.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operand {
    /// Whether the key exists.
    Exists(bool),
    /// The value; compared bytewise.
    Value(Value),
    /// The revision of the last change.
    Revision(u64),
    /// The revision at which the key was created.
    CreateRevision(u64),
    /// Number of puts since the key was created.
    Version(u64),
}

/// A step of a transaction. Its `condition`s are ignored: the transaction has comparisons.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TxnStep {
    /// Sets a key.
    Put(Put),
    /// Deletes a key.
    Delete(Delete),
    /// Sets the expiry time of a key.
    Touch(Touch),
    /// Reads a key, including changes of the steps before.
    Get(Key),
}

/// The result of a write.
///
/// Its serialized form is the JSON for clients. Snapshots have types of their own
/// (`store/state_machine/stored_results.rs`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(description = "The result of a write.")]
pub enum WriteResult {
    /// The key was set.
    Put(PutAnswer),
    /// The expiry time of the key was set.
    Touch(TouchAnswer),
    /// Keys were deleted.
    Delete {
        /// Number of keys that all steps so far removed.
        deleted: u64,
        /// The revision of the store after the write.
        #[serde(default)]
        revision: u64,
        /// Set if keys remain: the next step has this `revision_max`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unfinished: Option<u64>,
    },
    /// The transaction was executed.
    Txn(Arc<TxnDone>),
    /// The condition does not hold. Nothing changed.
    ConditionFailed {
        /// The revision of the key; `None` if it does not exist.
        revision: Option<u64>,
    },
    /// The key to touch does not exist. Nothing changed.
    NoSuchKey,
    /// The values that the transaction reads are too long for a response. Nothing changed.
    AnswerTooLarge {
        /// Bytes of the keys and values that it reads.
        bytes: u64,
    },
    /// Another request had the same `Idempotency-Key`. Nothing changed.
    RequestIdReused,
}

/// The result of a transaction. It shares the values that it read with the state machine: entries are applied one after
/// another, so copying values would delay all later ones. The [`TxnAnswer`] for clients is made when it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnDone {
    /// Whether all comparisons held, so that `success` was executed.
    pub succeeded: bool,
    /// The revision of the store after the transaction.
    pub revision: u64,
    /// The result of each step, in their order.
    pub results: Vec<StepResult>,
}

/// The result of a step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepResult {
    /// The key was set.
    Put(PutAnswer),
    /// The number of deleted keys: 1, or 0 if the key did not exist.
    Delete(TxnDeleted),
    /// The key as it was read; `None` if it does not exist.
    Get(Option<Found>),
    /// The expiry time of the key was set; `None` if the key does not exist.
    Touch(Option<TouchAnswer>),
}

/// A key as a transaction read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The key that the step reads.
    pub key: Key,
    /// Its value, shared with the state machine.
    pub value: Value,
    /// The revision of the last change.
    pub revision: u64,
    /// The revision at which the key was created.
    pub create_revision: u64,
    /// Number of puts since the key was created: 1 for a new key.
    pub version: u64,
    /// Milliseconds until the key expires, counted when it was read; `None` if it never does. A replay has the same.
    pub expires_in_ms: Option<u64>,
}

impl WriteResult {
    /// Bytes of the values in the result.
    pub fn value_bytes(&self) -> usize {
        let WriteResult::Txn(done) = self else { return 0 };
        let bytes = |result: &StepResult| match result {
            StepResult::Get(Some(found)) => found.value.0.len(),
            _ => 0,
        };
        done.results.iter().map(bytes).sum()
    }
}

// For clients: it is serialized as a `TxnAnswer`.

impl PartialSchema for TxnDone {
    fn schema() -> RefOr<Schema> {
        TxnAnswer::schema()
    }
}

impl ToSchema for TxnDone {
    fn name() -> Cow<'static, str> {
        TxnAnswer::name()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        TxnAnswer::schemas(schemas);
    }
}

impl Serialize for TxnDone {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Answer<'a> {
            succeeded: bool,
            revision: u64,
            results: Vec<StepAnswer<'a>>,
        }
        // As a `TxnResult`, without copies of the values.
        #[derive(Serialize)]
        #[serde(rename_all = "snake_case")]
        enum StepAnswer<'a> {
            Put(PutAnswer),
            Delete(TxnDeleted),
            Get(Option<KeyValueRef<'a>>),
            Touch(Option<TouchAnswer>),
        }
        fn key_value(found: &Found) -> KeyValueRef<'_> {
            let numbers = [found.revision, found.create_revision, found.version];
            KeyValueRef::new(&found.key, numbers, found.expires_in_ms).with_value(found.value.as_bytes())
        }
        let results = self.results.iter().map(|result| match result {
            StepResult::Put(put) => StepAnswer::Put(*put),
            StepResult::Delete(deleted) => StepAnswer::Delete(*deleted),
            StepResult::Get(read) => StepAnswer::Get(read.as_ref().map(key_value)),
            StepResult::Touch(touch) => StepAnswer::Touch(*touch),
        });
        let TxnDone { succeeded, revision, .. } = *self;
        Answer { succeeded, revision, results: results.collect() }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for TxnDone {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let TxnAnswer { succeeded, revision, results } = TxnAnswer::deserialize(deserializer)?;
        let found = |found: KeyValue| {
            let value = found.bytes().ok_or_else(|| D::Error::custom("a key that was read has no value"))?;
            Ok(Found {
                key: found.key.into(),
                value: Value::from(&value),
                revision: found.revision,
                create_revision: found.create_revision,
                version: found.version,
                expires_in_ms: found.expires_in_ms,
            })
        };
        let step = |result| {
            Ok(match result {
                TxnResult::Put(put) => StepResult::Put(put),
                TxnResult::Delete(deleted) => StepResult::Delete(deleted),
                TxnResult::Get(read) => StepResult::Get(read.map(found).transpose()?),
                TxnResult::Touch(touch) => StepResult::Touch(touch),
            })
        };
        let results = results.into_iter().map(step).collect::<Result<_, _>>()?;
        Ok(TxnDone { succeeded, revision, results })
    }
}

impl Operation {
    /// Whether the operation does not add data, so that it is allowed while the disk is nearly full.
    pub fn stores_nothing(&self) -> bool {
        match self {
            Operation::Delete(_) | Operation::DeletePrefix { .. } | Operation::Touch(_) | Operation::Expire => true,
            Operation::Txn(_) => self.puts() == 0,
            // A self-check and another level are not urgent.
            Operation::Put(_) | Operation::SelfCheck { .. } | Operation::RaiseLevel { .. } => false,
            // Small, bounded in number, and needed most when something is wrong.
            Operation::Access(_) => true,
        }
    }

    /// The level that a node must support to read this.
    pub fn level(&self) -> Level {
        match self {
            Operation::RaiseLevel { level } => *level,
            Operation::Access(_) => Level::TOKENS,
            _ => Level::FIRST,
        }
    }

    /// How many puts it has.
    pub fn puts(&self) -> usize {
        match self {
            Operation::Put(_) => 1,
            Operation::Txn(txn) => {
                let steps = txn.success.iter().chain(&txn.failure);
                steps.filter(|step| matches!(step, TxnStep::Put(_))).count()
            }
            _ => 0,
        }
    }

    /// Approximate bytes of memory of the keys and values.
    pub fn payload_bytes(&self) -> usize {
        match self {
            Operation::Put(put) => put.payload_bytes(),
            Operation::Delete(delete) => delete.key.len(),
            Operation::DeletePrefix { prefix, .. } => prefix.len(),
            Operation::Touch(touch) => touch.key.len(),
            Operation::Txn(txn) => txn.payload_bytes(),
            Operation::Access(change) => change.payload_bytes(),
            Operation::Expire | Operation::SelfCheck { .. } | Operation::RaiseLevel { .. } => 0,
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
        // For each part, so that many small ones count too.
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
            Operation::RaiseLevel { .. } => "raise the level",
            Operation::Access(_) => "access",
        };
        write!(f, "{name} of {} bytes", self.payload_bytes())
    }
}

impl Relation {
    /// Whether the relation holds between `left` and `right`.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn get(value: &[u8], expires_in_ms: Option<u64>) -> StepResult {
        let key = "key".into();
        StepResult::Get(Some(Found {
            key,
            value: value.into(),
            revision: 3,
            create_revision: 1,
            version: 2,
            expires_in_ms,
        }))
    }

    /// The JSON of a transaction's result for clients is fixed.
    #[test]
    fn results_are_sent_as_json() {
        let put = PutAnswer { revision: 4, version: 1 };
        let touch = TouchAnswer { revision: 3, version: 2, expires_in_ms: Some(5) };
        let rows = [
            (get("é\u{2028}".as_bytes(), None), "{\"get\":{\"key\":\"key\",\"value\":\"é\u{2028}\",NUMBERS}}"),
            (get(b"", Some(0)), r#"{"get":{"key":"key","value":"",NUMBERS,"expires_in_ms":0}}"#),
            (get(b"\xff\0", None), r#"{"get":{"key":"key","value":"/wA=","encoding":"base64",NUMBERS}}"#),
            (StepResult::Get(None), r#"{"get":null}"#),
            (StepResult::Put(put), r#"{"put":{"revision":4,"version":1}}"#),
            (StepResult::Delete(TxnDeleted { deleted: 1 }), r#"{"delete":{"deleted":1}}"#),
            (StepResult::Touch(Some(touch)), r#"{"touch":{"revision":3,"version":2,"expires_in_ms":5}}"#),
            (StepResult::Touch(None), r#"{"touch":null}"#),
        ];
        for (result, expected) in rows {
            let result = WriteResult::Txn(TxnDone { succeeded: true, revision: 4, results: vec![result] }.into());
            let expected = expected.replace("NUMBERS", r#""revision":3,"create_revision":1,"version":2"#);
            let expected = format!(r#"{{"Txn":{{"succeeded":true,"revision":4,"results":[{expected}]}}}}"#);
            assert_eq!(serde_json::to_string(&result).unwrap(), expected);
            assert_eq!(serde_json::from_str::<WriteResult>(&expected).unwrap(), result);
        }
        let without_value = r#"{"get":{"key":"key","revision":3,"create_revision":1,"version":2}}"#;
        let without_value = format!(r#"{{"succeeded":true,"revision":4,"results":[{without_value}]}}"#);
        assert!(serde_json::from_str::<TxnDone>(&without_value).is_err());
    }

    /// A request has the fingerprint that it had in all versions before. Otherwise a request that is sent again would
    /// be rejected as another one.
    ///
    /// Method: for operations of all kinds, compare with the hash of the MessagePack in one piece, and some with known
    /// numbers.
    #[test]
    fn fingerprints_are_fixed() {
        let put = |bytes: usize| Put {
            key: "key".into(),
            value: (&vec![0xff; bytes]).into(),
            ttl_ms: Some(7),
            condition: Some(Condition::Revision(u64::MAX)),
        };
        let delete = || Delete { key: "key".into(), condition: Some(Condition::Missing) };
        let touch = || Touch { key: "a key that is longer than others".into(), ttl_ms: None, condition: None };
        let compare = [Operand::Exists(true), Operand::Value("value".into()), Operand::Revision(1)]
            .map(|operand| Comparison { key: "key".into(), relation: Relation::NotEqual, operand });
        let success = vec![TxnStep::Put(put(300)), TxnStep::Delete(delete()), TxnStep::Get("key".into())];
        let txn = Txn { compare: compare.into(), success, failure: vec![TxnStep::Touch(touch())] };
        let operations = [
            Operation::Put(put(1)),
            Operation::Put(put(1 << 20)),
            Operation::Delete(delete()),
            Operation::DeletePrefix { prefix: "prefix".into(), revision_max: Some(300) },
            Operation::Touch(touch()),
            Operation::Txn(Arc::new(txn)),
            Operation::Expire,
        ];
        let fingerprints = operations.map(|operation| {
            let RequestId { key, fingerprint: [high, low] } =
                RequestId::new("request".into(), None, &operation).unwrap();
            let [one, other] =
                ["a", "b"].map(|owner| RequestId::new("request".into(), Some(owner), &operation).unwrap());
            assert!(one.fingerprint != other.fingerprint && one.fingerprint != [high, low], "{operation:?}");
            assert_eq!((one.key.as_str(), other.key.as_str()), ("a\nrequest", "b\nrequest"));
            assert_eq!(one.key_without_owner(), Some("request"));
            let fingerprint = u128::from(high) << 64 | u128::from(low);
            let in_one_piece = xxhash_rust::xxh3::xxh3_128(&rmp_serde::to_vec_named(&operation).unwrap());
            assert_eq!((key.as_str(), fingerprint), ("request", in_one_piece), "{operation:?}");
            format!("{fingerprint:032x}")
        });
        assert_eq!(
            [&fingerprints[0], &fingerprints[1], &fingerprints[5]],
            [
                "9886dea0f088b1fc2d507916a1050dea",
                "525ded788b46c55429edea80199250d5",
                "f3856976e697f270afb57a487efd8a26"
            ]
        );
    }
}
