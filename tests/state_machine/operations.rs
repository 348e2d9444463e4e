//! Random entries. There are few keys, values and request ids, so that they coincide often.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use openraft::Membership;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use raft_key_value::ExampleNode;
use raft_key_value::access::{AccessChange, NewToken, TokenHash, TokenRole};
use raft_key_value::level::Level;
use raft_key_value::operation::{
    Comparison, Condition, Delete, Key, Operand, Operation, Put, Relation, RequestId, Touch, Txn, TxnStep, Value, Write,
};
use raft_key_value::store::StateHash;
use raft_key_value::types::{Command, Payload};
use serde::Serialize;

use crate::harness::Between;
use crate::model::Model;

const KEYS: [&str; 8] = ["a", "a/", "a/b", "a/b/c", "b", "é", "é/x", "\u{10ffff}"];
const PREFIXES: [&str; 7] = ["", "a", "a/", "a/b", "é", "\u{10ffff}", "z"];
const VALUES: [&[u8]; 5] = [b"", b"1", b"2", b"\xff\xfe", b"a longer value"];
/// The prefix of keys that are put by the hundred, to expire.
const MANY: &str = "many/";

/// Makes data visible in failures; the program itself must not log it.
#[derive(Clone)]
pub struct Shown<T>(T);

impl<T: Serialize> fmt::Debug for Shown<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(&self.0).map_err(|_| fmt::Error)?)
    }
}

/// An entry of a log, and the step after it.
#[derive(Clone, Debug)]
pub struct Step {
    pub entry: AnEntry,
    pub between: Between,
}

/// An entry whose details depend on the state when it is applied.
#[derive(Clone, Debug)]
pub enum AnEntry {
    Blank,
    Membership(u64),
    FormerSet(Key, Arc<str>),
    Write { time: Time, request: Option<Arc<RequestId>>, operation: AnOperation },
}

/// The time of the leader's clock.
#[derive(Clone, Copy, Debug)]
pub enum Time {
    Same,
    Forwards(u64),
    Backwards(u64),
    /// Exactly when the next key expires, or one millisecond earlier.
    NextExpiry {
        earlier: u64,
    },
    Jump(u64),
}

/// An operation whose conditions depend on the state.
#[derive(Clone, Debug)]
pub enum AnOperation {
    Put(Shown<Put>, ACondition),
    Delete(Key, ACondition),
    Touch(Shown<Touch>, ACondition),
    DeletePrefix(Key, Option<u64>),
    Txn { compare: Vec<(Shown<Comparison>, bool)>, success: Vec<Shown<TxnStep>>, failure: Vec<Shown<TxnStep>> },
    PutMany { count: usize, ttl_ms: u64 },
    Expire,
    SelfCheck,
    RaiseLevel,
    Access(AccessChange),
}

#[derive(Clone, Copy, Debug)]
pub enum ACondition {
    None,
    Some(Condition),
    /// The key's current revision, so that the condition holds.
    OwnRevision,
}

fn key() -> impl Strategy<Value = Key> {
    (0..KEYS.len()).prop_map(|number| KEYS[number].into())
}

fn prefix() -> impl Strategy<Value = Key> {
    (0..PREFIXES.len()).prop_map(|number| PREFIXES[number].into())
}

fn value() -> impl Strategy<Value = Value> {
    (0..VALUES.len()).prop_map(|number| Value::from(VALUES[number]))
}

fn ttl() -> impl Strategy<Value = Option<u64>> {
    prop_oneof![
        4 => Just(None),
        6 => (1..30_u64).prop_map(Some),
        2 => Just(Some(100)),
        1 => Just(Some(u64::MAX)),
    ]
}

fn put() -> impl Strategy<Value = Shown<Put>> {
    (key(), value(), ttl()).prop_map(|(key, value, ttl_ms)| Shown(Put { key, value, ttl_ms, condition: None }))
}

fn touch() -> impl Strategy<Value = Shown<Touch>> {
    (key(), ttl()).prop_map(|(key, ttl_ms)| Shown(Touch { key, ttl_ms, condition: None }))
}

fn condition() -> impl Strategy<Value = ACondition> {
    prop_oneof![
        6 => Just(ACondition::None),
        1 => Just(ACondition::Some(Condition::Missing)),
        1 => Just(ACondition::Some(Condition::Present)),
        2 => Just(ACondition::OwnRevision),
        1 => (0..20_u64).prop_map(|revision| ACondition::Some(Condition::Revision(revision))),
    ]
}

fn relation() -> impl Strategy<Value = Relation> {
    use Relation::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual};
    let all = [Equal, NotEqual, Less, LessOrEqual, Greater, GreaterOrEqual];
    (0..all.len()).prop_map(move |number| all[number])
}

fn operand() -> impl Strategy<Value = Shown<Operand>> {
    prop_oneof![
        any::<bool>().prop_map(|own| Shown(Operand::Exists(own))),
        value().prop_map(|own| Shown(Operand::Value(own))),
        (0..20_u64).prop_map(|own| Shown(Operand::Revision(own))),
        (0..20_u64).prop_map(|own| Shown(Operand::CreateRevision(own))),
        (0..4_u64).prop_map(|own| Shown(Operand::Version(own))),
    ]
}

fn comparison() -> impl Strategy<Value = (Shown<Comparison>, bool)> {
    let comparison = (key(), relation(), operand())
        .prop_map(|(key, relation, Shown(operand))| Shown(Comparison { key, relation, operand }));
    (comparison, any::<bool>())
}

fn txn_step() -> impl Strategy<Value = Shown<TxnStep>> {
    prop_oneof![
        3 => put().prop_map(|Shown(put)| Shown(TxnStep::Put(put))),
        2 => key().prop_map(|key| Shown(TxnStep::Delete(Delete { key, condition: None }))),
        1 => touch().prop_map(|Shown(touch)| Shown(TxnStep::Touch(touch))),
        2 => key().prop_map(|key| Shown(TxnStep::Get(key))),
    ]
}

fn access() -> impl Strategy<Value = AccessChange> {
    let name = || (0..3_usize).prop_map(|number| ["ci", "app", "é"][number].into());
    let role = (0..3_usize).prop_map(|number| [TokenRole::Read, TokenRole::Write, TokenRole::Admin][number]);
    let hash = (0..3_u8).prop_map(|secret| TokenHash::of(&[secret]));
    let create = (name(), role, vec(prefix(), 0..3), ttl(), hash).prop_map(|(name, role, prefixes, ttl_ms, hash)| {
        AccessChange::Create(NewToken { name, role, prefixes, ttl_ms, hash })
    });
    prop_oneof![
        4 => create,
        2 => name().prop_map(|name| AccessChange::Revoke { name }),
        1 => any::<bool>().prop_map(|required| AccessChange::Require { required }),
    ]
}

fn operation() -> impl Strategy<Value = AnOperation> {
    prop_oneof![
        12 => (put(), condition()).prop_map(|(put, condition)| AnOperation::Put(put, condition)),
        4 => (key(), condition()).prop_map(|(key, condition)| AnOperation::Delete(key, condition)),
        4 => (touch(), condition()).prop_map(|(touch, condition)| AnOperation::Touch(touch, condition)),
        2 => (prefix(), option::weighted(0.3, 0..20_u64))
            .prop_map(|(prefix, revision_max)| AnOperation::DeletePrefix(prefix, revision_max)),
        8 => (vec(comparison(), 0..3), vec(txn_step(), 0..6), vec(txn_step(), 0..6))
            .prop_map(|(compare, success, failure)| AnOperation::Txn { compare, success, failure }),
        2 => Just(AnOperation::Expire),
        1 => Just(AnOperation::SelfCheck),
        1 => Just(AnOperation::RaiseLevel),
        3 => access().prop_map(AnOperation::Access),
    ]
}

fn rare_operation() -> impl Strategy<Value = AnOperation> {
    (900..1200_usize, 1..30_u64).prop_map(|(count, ttl_ms)| AnOperation::PutMany { count, ttl_ms })
}

fn time() -> impl Strategy<Value = Time> {
    prop_oneof![
        40 => Just(Time::Same),
        40 => (1..20_u64).prop_map(Time::Forwards),
        20 => (1..200_u64).prop_map(Time::Backwards),
        60 => (0..2_u64).prop_map(|earlier| Time::NextExpiry { earlier }),
        20 => (0..100_000_u64).prop_map(Time::Jump),
        1 => Just(Time::Jump(u64::MAX)),
    ]
}

fn request() -> impl Strategy<Value = Option<Arc<RequestId>>> {
    let id = (0..4_u64, 0..10_u64, 0..3_u64).prop_map(|(key, other, owner)| {
        // Usually the same request again, and occasionally another one with its key, or that of another owner.
        let fingerprint = [key, u64::from(other == 0)];
        let owner = if owner == 0 { "owner\n" } else { "" };
        Arc::new(RequestId { key: format!("{owner}request {key}").into(), fingerprint })
    });
    option::weighted(0.25, id)
}

fn write(operation: impl Strategy<Value = AnOperation>) -> impl Strategy<Value = AnEntry> {
    (time(), request(), operation).prop_map(|(time, request, operation)| AnEntry::Write { time, request, operation })
}

/// An entry, and the step after it.
pub fn step() -> impl Strategy<Value = Step> {
    let entry = prop_oneof![
        200 => write(operation()),
        1 => write(rare_operation()),
        5 => Just(AnEntry::Blank),
        3 => (1..4_u64).prop_map(AnEntry::Membership),
        8 => former_set(),
    ];
    let between = prop_oneof![6 => Just(Between::Nothing), 2 => Just(Between::Snapshot), 1 => Just(Between::Copy)];
    (entry, between).prop_map(|(entry, between)| Step { entry, between })
}

/// An entry of the old format.
pub fn former_set() -> impl Strategy<Value = AnEntry> {
    (key(), 0..3_usize).prop_map(|(key, value)| AnEntry::FormerSet(key, ["", "1", "former"][value].into()))
}

impl AnEntry {
    /// The payload to apply to this state.
    pub fn payload(&self, state: &Model) -> Payload {
        match self {
            AnEntry::Blank => Payload::Blank,
            AnEntry::Membership(voters) => Payload::Membership(membership(*voters)),
            AnEntry::FormerSet(key, value) => Payload::Normal(Command::Set { key: key.clone(), value: value.clone() }),
            AnEntry::Write { time, request, operation } => {
                let (at_ms, request) = (time.of(state), request.clone());
                Payload::Normal(Command::Write(Write { at_ms, request, operation: operation.of(state) }))
            }
        }
    }
}

fn membership(voters: u64) -> Membership<u64, ExampleNode> {
    let node = |id| (id, ExampleNode { addr: format!("127.0.0.1:{}", 21000 + id), incarnation: 7 * id });
    let nodes: BTreeMap<_, _> = (1..=voters).map(node).collect();
    Membership::new(vec![nodes.keys().copied().collect::<BTreeSet<_>>()], nodes).unwrap()
}

impl Time {
    fn of(self, state: &Model) -> u64 {
        let clock = state.clock;
        match self {
            Time::Same => clock,
            Time::Forwards(by) => clock.saturating_add(by),
            Time::Backwards(by) => clock.saturating_sub(by),
            Time::NextExpiry { earlier } => state.next_expiry().unwrap_or(clock).saturating_sub(earlier),
            Time::Jump(to) => to,
        }
    }
}

impl ACondition {
    fn of(self, state: &Model, key: &str) -> Option<Condition> {
        match self {
            ACondition::None => None,
            ACondition::Some(condition) => Some(condition),
            ACondition::OwnRevision => Some(Condition::Revision(state.items.get(key).map_or(0, |item| item.revision))),
        }
    }
}

impl AnOperation {
    fn of(&self, state: &Model) -> Operation {
        match self.clone() {
            AnOperation::Put(Shown(put), condition) => {
                Operation::Put(Put { condition: condition.of(state, &put.key), ..put })
            }
            AnOperation::Delete(key, condition) => {
                Operation::Delete(Delete { condition: condition.of(state, &key), key })
            }
            AnOperation::Touch(Shown(touch), condition) => {
                Operation::Touch(Touch { condition: condition.of(state, &touch.key), ..touch })
            }
            AnOperation::DeletePrefix(prefix, revision_max) => Operation::DeletePrefix { prefix, revision_max },
            AnOperation::Txn { compare, success, failure } => {
                let compare =
                    compare.into_iter().map(|(Shown(comparison), own)| with_own(comparison, own, state)).collect();
                let [success, failure] =
                    [success, failure].map(|steps| steps.into_iter().map(|Shown(step)| step).collect());
                Operation::Txn(Arc::new(Txn { compare, success, failure }))
            }
            AnOperation::PutMany { count, ttl_ms } => put_many(MANY, 0..count, Some(ttl_ms)),
            AnOperation::Access(change) => Operation::Access(Arc::new(change)),
            AnOperation::Expire => Operation::Expire,
            AnOperation::SelfCheck => Operation::SelfCheck { index: 10_000, hash: StateHash(1) },
            AnOperation::RaiseLevel => Operation::RaiseLevel { level: Level::NEWEST },
        }
    }
}

/// A comparison with what the key has, if requested, so that it is at the boundary.
fn with_own(comparison: Comparison, own: bool, state: &Model) -> Comparison {
    let item = state.items.get(&*comparison.key);
    let operand = match (own, item, comparison.operand) {
        (true, Some(item), Operand::Value(_)) => Operand::Value(Value::from(&item.value)),
        (true, Some(item), Operand::Revision(_)) => Operand::Revision(item.revision),
        (true, Some(item), Operand::CreateRevision(_)) => Operand::CreateRevision(item.created_at),
        (true, Some(item), Operand::Version(_)) => Operand::Version(item.changes),
        (_, _, operand) => operand,
    };
    Comparison { operand, ..comparison }
}

/// A transaction that puts many keys.
pub fn put_many(prefix: &str, numbers: std::ops::Range<usize>, ttl_ms: Option<u64>) -> Operation {
    let put = |number| {
        let (key, value) = (format!("{prefix}{number:06}").into(), Value::from("v"));
        TxnStep::Put(Put { key, value, ttl_ms, condition: None })
    };
    Operation::Txn(Arc::new(Txn { compare: vec![], success: numbers.map(put).collect(), failure: vec![] }))
}
