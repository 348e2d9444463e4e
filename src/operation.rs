//! What a write asks for, as the log holds it, and what became of it.
//!
//! The log keeps these as MessagePack with field names: a field may be added,
//! with a default for the logs that lack it, and none may be renamed.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use smol_str::SmolStr;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;
use utoipa::{PartialSchema, ToSchema};
use xxhash_rust::xxh3::Xxh3;

use crate::body::{self, EncodedValue, KeyValue, PutAnswer, TouchAnswer, TxnAnswer, TxnDeleted, TxnResult};
use crate::hash::StateHash;

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

impl RequestId {
    /// The id of a request that has this `Idempotency-Key` and asks for this.
    ///
    /// # Errors
    ///
    /// What is asked for cannot be written to a log.
    pub fn new(key: Key, operation: &Operation) -> Result<Self, rmp_serde::encode::Error> {
        // What is hashed is in the log anyway, so it is the same in every version that reads the log.
        let mut hasher = Xxh3::new();
        rmp_serde::encode::write_named(&mut hasher, operation)?;
        let hash = hasher.digest128();
        Ok(RequestId { key, fingerprint: [(hash >> 64) as u64, hash as u64] })
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {:x?}", self.fingerprint)
    }
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
///
/// Serialized, it is what clients get as JSON. What a snapshot holds has types of its own (`store/state_machine/stored_results.rs`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(description = "What became of a write.")]
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
    Txn(Arc<TxnDone>),
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

/// What became of a transaction. Values that it read are shared, not copied, with the state machine: entries are
/// applied one after another, and each one waits for the copies of those before. What clients get, a [`TxnAnswer`], is
/// made of it when it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnDone {
    /// Whether the comparisons held, so that `success` was done.
    pub succeeded: bool,
    /// The store's revision after it.
    pub revision: u64,
    /// What became of each step, in their order.
    pub results: Vec<StepResult>,
}

/// What became of one step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepResult {
    /// The key was set.
    Put(PutAnswer),
    /// 1 if the key existed, otherwise 0.
    Delete(TxnDeleted),
    /// What was read; `None` if the key does not exist.
    Get(Option<Found>),
    /// The key's time was renewed; `None` if the key does not exist.
    Touch(Option<TouchAnswer>),
}

/// A key as a transaction found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The key.
    pub key: Key,
    /// The value.
    pub value: Value,
    /// The revision of the last change.
    pub revision: u64,
    /// The revision at which the key came to be.
    pub create_revision: u64,
    /// How often the key was changed since then: 1 when it is new.
    pub version: u64,
    /// How long the key had left when it was read, in milliseconds, if it is to expire. A replay shows the same.
    pub expires_in_ms: Option<u64>,
}

impl WriteResult {
    /// How many bytes the values in it have.
    pub fn value_bytes(&self) -> usize {
        let WriteResult::Txn(done) = self else { return 0 };
        let bytes = |result: &StepResult| match result {
            StepResult::Get(Some(found)) => found.value.0.len(),
            _ => 0,
        };
        done.results.iter().map(bytes).sum()
    }
}

impl From<&TxnDone> for TxnAnswer {
    fn from(done: &TxnDone) -> Self {
        let results = done.results.iter().map(TxnResult::from).collect();
        TxnAnswer { succeeded: done.succeeded, revision: done.revision, results }
    }
}

impl From<&StepResult> for TxnResult {
    fn from(result: &StepResult) -> Self {
        match result {
            StepResult::Put(put) => TxnResult::Put(*put),
            StepResult::Delete(deleted) => TxnResult::Delete(*deleted),
            StepResult::Get(found) => TxnResult::Get(found.as_ref().map(KeyValue::from)),
            StepResult::Touch(touch) => TxnResult::Touch(*touch),
        }
    }
}

impl From<&Found> for KeyValue {
    fn from(found: &Found) -> Self {
        let EncodedValue { value, encoding } = EncodedValue::of(found.value.as_bytes());
        KeyValue {
            key: found.key.to_string(),
            value: Some(value),
            encoding,
            revision: found.revision,
            create_revision: found.create_revision,
            version: found.version,
            expires_in_ms: found.expires_in_ms,
        }
    }
}

// For clients it is the `TxnAnswer` that it is serialized as.

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
        TxnAnswer::from(self).serialize(serializer)
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

    /// Clients get the result of a transaction as it was when results were kept as JSON.
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

    /// A request has the fingerprint that it had in all versions before, or what comes again is rejected as another one.
    ///
    /// Method: operations of all kinds; that of the MessagePack in one piece, and some by their numbers.
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
            let RequestId { key, fingerprint: [high, low] } = RequestId::new("request".into(), &operation).unwrap();
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
