//! The bodies of the key-value API (`/v1`), as JSON, for the server and for
//! [`ExampleClient`](crate::ExampleClient).
//!
//! They are only sent. Logs, snapshots and hashes have types of their own.
//!
//! Values are bytes. In JSON they are text if they are UTF-8, and otherwise base64
//! together with `"encoding":"base64"`.

use std::borrow::Cow;
use std::{fmt, io};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::access::TokenRole;

/// Writes JSON without characters that some program takes for the end of a line.
///
/// JSON allows U+0085, U+2028 and U+2029 inside strings, but several line splitters, such as Python's
/// `str.splitlines`, break lines there. In a server-sent event, or in output with one object per line, they would split
/// the JSON. serde_json itself escapes the control characters below U+0020, so only these three remain.
///
/// # Errors
///
/// See [`serde_json::to_writer`].
pub fn write_json_line(writer: impl io::Write, value: &(impl Serialize + ?Sized)) -> serde_json::Result<()> {
    value.serialize(&mut serde_json::Serializer::with_formatter(writer, OneLine))
}

/// Compact JSON in which the remaining line separators are escaped.
struct OneLine;

impl serde_json::ser::Formatter for OneLine {
    fn write_string_fragment<W: io::Write + ?Sized>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let bytes = fragment.as_bytes();
        let mut written = 0;
        // Both are first bytes of characters, so they are never inside one.
        for position in memchr::memchr2_iter(0xc2, 0xe2, bytes) {
            let (escaped, length) = match bytes[position..] {
                [0xc2, 0x85, ..] => (r"\u0085", 2),
                [0xe2, 0x80, 0xa8, ..] => (r"\u2028", 3),
                [0xe2, 0x80, 0xa9, ..] => (r"\u2029", 3),
                _ => continue,
            };
            writer.write_all(&bytes[written..position])?;
            writer.write_all(escaped.as_bytes())?;
            written = position + length;
        }
        writer.write_all(&bytes[written..])
    }
}

/// How a value is written as a JSON string.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Base64 with padding and the standard alphabet (RFC 4648).
    Base64,
}

/// A value as a JSON string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedValue {
    /// The text, or the base64.
    pub value: String,
    /// `None` if the value is text.
    pub encoding: Option<Encoding>,
}

impl EncodedValue {
    /// Encodes a value.
    pub fn of(bytes: &[u8]) -> Self {
        let (value, encoding) = Self::borrowed(bytes);
        EncodedValue { value: value.into_owned(), encoding }
    }

    /// A value for JSON, which is not copied if it is text.
    fn borrowed(bytes: &[u8]) -> (Cow<'_, str>, Option<Encoding>) {
        match std::str::from_utf8(bytes) {
            Ok(text) => (Cow::Borrowed(text), None),
            Err(_) => (Cow::Owned(BASE64_STANDARD.encode(bytes)), Some(Encoding::Base64)),
        }
    }

    /// Decodes a value.
    ///
    /// # Errors
    ///
    /// The value must be base64, but is not.
    pub fn decode(value: &str, encoding: Option<Encoding>) -> Result<Cow<'_, [u8]>, base64::DecodeError> {
        match encoding {
            None => Ok(Cow::Borrowed(value.as_bytes())),
            Some(Encoding::Base64) => BASE64_STANDARD.decode(value).map(Cow::Owned),
        }
    }
}

/// A key with its value and revisions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyValue {
    /// 1 to 1,024 bytes, unless the node has another limit.
    pub key: String,
    /// The value; missing if the request had `keys_only`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Missing if the value is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    /// The revision of the last change.
    pub revision: u64,
    /// The revision at which the key was created.
    pub create_revision: u64,
    /// Number of puts since the key was created: 1 for a new key.
    pub version: u64,
    /// Milliseconds until the key expires; missing if it never does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_ms: Option<u64>,
}

impl KeyValue {
    /// The bytes of the value; `None` if it is missing, or if its base64 is invalid.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        EncodedValue::decode(self.value.as_deref()?, self.encoding).ok().map(Cow::into_owned)
    }

    /// The value as text; `None` if it is missing, or if it is not text.
    pub fn text(&self) -> Option<&str> {
        self.value.as_deref().filter(|_| self.encoding.is_none())
    }
}

/// A [`KeyValue`] to be written, without copies of the key and of a value that is text.
#[derive(Serialize)]
pub(crate) struct KeyValueRef<'a> {
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<Encoding>,
    revision: u64,
    create_revision: u64,
    version: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_in_ms: Option<u64>,
}

impl<'a> KeyValueRef<'a> {
    /// A key without its value. `numbers`: the revision, the create revision and the version.
    pub(crate) fn new(key: &'a str, numbers: [u64; 3], expires_in_ms: Option<u64>) -> Self {
        let [revision, create_revision, version] = numbers;
        KeyValueRef { key, value: None, encoding: None, revision, create_revision, version, expires_in_ms }
    }

    pub(crate) fn with_value(self, bytes: &'a [u8]) -> Self {
        let (value, encoding) = EncodedValue::borrowed(bytes);
        KeyValueRef { value: Some(value), encoding, ..self }
    }
}

/// The response to a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PutAnswer {
    /// The revision of the key after the put.
    pub revision: u64,
    /// Number of puts since the key was created, including this one.
    pub version: u64,
}

/// The response to a touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TouchAnswer {
    /// The revision of the key, which a touch does not change.
    pub revision: u64,
    /// The version of the key, which a touch does not change.
    pub version: u64,
    /// Milliseconds until the key expires; missing if it never does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_ms: Option<u64>,
}

/// The response to a delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeleteAnswer {
    /// The revision of the store after the delete.
    pub revision: u64,
    /// Number of deleted keys.
    pub deleted: u64,
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ListAnswer {
    /// The revision of the store that the page shows. A next page with this `revision` shows the same state.
    pub revision: u64,
    /// The keys, ordered by their bytes.
    pub items: Vec<KeyValue>,
    /// The `start_after` of the next page; missing on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// The body of a transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TxnRequest {
    /// If all of these hold, or if there are none, `success` is executed, otherwise `failure`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 128)]
    pub compare: Vec<Compare>,
    /// Executed if all comparisons hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 128)]
    pub success: Vec<TxnOperation>,
    /// Executed if a comparison does not hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 128)]
    pub failure: Vec<TxnOperation>,
}

/// Compares a property of a key with exactly one of `exists`, `value`, `revision`, `create_revision` and `version`. A
/// key that does not exist has revision, create revision and version 0, and no value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Compare {
    /// The key. It may not exist.
    #[schema(min_length = 1, max_length = 1024)]
    pub key: String,
    /// The relation of the property, on the left, to the given operand; `=` if omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub op: Option<Relation>,
    /// Whether the key exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exists: Option<bool>,
    /// The value; compared bytewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Omit it if `value` is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    /// The revision of the last change of the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// The revision at which the key was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create_revision: Option<u64>,
    /// Number of puts since the key was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
}

/// How two values compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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

/// One operation of a transaction, such as `{"put":{"key":"a","value":"1"}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TxnOperation {
    /// Sets a key.
    Put(TxnPut),
    /// Deletes a key.
    Delete(TxnKey),
    /// Reads a key, including the changes of the operations before.
    Get(TxnKey),
    /// Sets the expiry time of a key.
    Touch(TxnTouch),
}

/// Sets a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TxnPut {
    /// The key to create or to change.
    #[schema(min_length = 1, max_length = 1024)]
    pub key: String,
    /// The new value.
    pub value: String,
    /// Omit it if `value` is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    /// Time until the key expires, such as `30s`. If omitted, the key is permanent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^0*[1-9][0-9]*(ms|s|m|h|d)$")]
    pub ttl: Option<String>,
}

/// The key of an operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TxnKey {
    /// The key. It may not exist.
    #[schema(min_length = 1, max_length = 1024)]
    pub key: String,
}

/// Sets the expiry time of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TxnTouch {
    /// The key. If it does not exist, nothing changes.
    #[schema(min_length = 1, max_length = 1024)]
    pub key: String,
    /// Time until the key expires, such as `30s`. If omitted, the key becomes permanent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^0*[1-9][0-9]*(ms|s|m|h|d)$")]
    pub ttl: Option<String>,
}

/// The response to a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TxnAnswer {
    /// Whether all comparisons held, so that `success` was executed.
    pub succeeded: bool,
    /// The revision of the store after the transaction.
    pub revision: u64,
    /// The result of each operation, in their order.
    pub results: Vec<TxnResult>,
}

/// The result of an operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TxnResult {
    /// The key was set.
    Put(PutAnswer),
    /// The number of deleted keys.
    Delete(TxnDeleted),
    /// The key; null if it does not exist.
    Get(Option<KeyValue>),
    /// The expiry time was set; null if the key does not exist.
    Touch(Option<TouchAnswer>),
}

/// The result of a delete in a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TxnDeleted {
    /// Number of deleted keys: 1, or 0 if the key did not exist.
    pub deleted: u64,
}

/// One event of a watch, as the `data` of a server-sent event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum WatchEvent {
    /// A key as it was when the watch began; only with `initial`.
    Initial(KeyValue),
    /// All keys have been sent; changes follow.
    Synced {
        /// The revision at which the keys were read.
        revision: u64,
    },
    /// A key was set.
    Put(KeyValue),
    /// A key was deleted.
    Delete(Removed),
    /// A key expired.
    Expire(Removed),
    /// The watch ends. It can be resumed after the last `id`.
    End(WatchEnd),
}

/// A key that was deleted or expired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Removed {
    /// The removed key.
    pub key: String,
    /// The revision of the removal.
    pub revision: u64,
}

/// Why a watch ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WatchEnd {
    /// For programs: `too_slow`, `stopping`, `no_leader`, or the code of the error with which the request
    /// would have been rejected if the watch had not waited for a leader.
    pub code: String,
    /// Human-readable; may change.
    pub message: String,
}

/// A node to add to the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddMember {
    /// The id of the node.
    #[schema(minimum = 1, format = "uint64")]
    pub id: u64,
    /// Its address for other nodes, `HOST:PORT`.
    pub address: String,
    /// The role that the node gets; `voter` if omitted.
    #[serde(default)]
    #[schema(required = false)]
    pub role: AddedRole,
}

/// The role of a node that is added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AddedRole {
    /// It votes, once it has all data.
    #[default]
    Voter,
    /// It receives all data, and does not vote.
    Learner,
}

/// A node to put in the place of a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplaceMember {
    /// The id of the new node.
    #[schema(minimum = 1, format = "uint64")]
    pub id: u64,
    /// Its address for other nodes, `HOST:PORT`.
    pub address: String,
}

/// How far a membership change is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemberChanged {
    /// The id of the node that is added or promoted.
    pub id: u64,
    /// Whether the change is complete. If it is not, the status is 202, and the same request continues it.
    pub done: bool,
    /// For people: what was done, or what is missing.
    pub message: String,
    /// The members now, ordered by id; with `dry_run`, as they would be at the end.
    pub members: Vec<Member>,
    /// Whether the request had `dry_run`, so that nothing was changed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// Why the request would have been rejected without `force`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub risk: Option<String>,
}

/// The members of the cluster after one was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemberRemoved {
    /// The id of the removed node.
    pub removed: u64,
    /// The remaining members, ordered by id.
    pub members: Vec<Member>,
    /// Whether the request had `dry_run`, so that nothing was changed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// Why the request would have been rejected without `force`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub risk: Option<String>,
}

/// The leader after its leadership was transferred.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaderTransferred {
    /// The id of the new leader.
    pub id: u64,
    /// Its address for other nodes, `HOST:PORT`.
    pub address: String,
    /// Its term.
    pub term: u64,
}

/// A node that a request names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NextLeader {
    /// The id of the node that is to lead.
    #[schema(format = "uint64")]
    pub id: u64,
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Member {
    /// The id of the node.
    pub id: u64,
    /// Whether it votes, and whether it is the leader.
    pub role: MemberRole,
    /// Its address for other nodes, `HOST:PORT`.
    pub address: String,
}

/// The members of the cluster, with the state of each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterAnswer {
    /// The id of the cluster, 16 hexadecimal digits; null if the node belongs to none.
    pub cluster_id: Option<String>,
    /// The id of the leader; null if none is known.
    pub leader: Option<u64>,
    /// The term.
    pub term: u64,
    /// The level of formats: what the log and the snapshots may contain. Null if it is unknown.
    #[serde(default)]
    pub format_level: Option<u32>,
    /// The members, ordered by id.
    pub members: Vec<ClusterMember>,
    /// Missing if the leader responded. Otherwise why the response is only what the node itself knows; for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partial: Option<String>,
}

/// The state of a member. A figure is null if it is unknown: the member does not respond, or its version does not have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterMember {
    /// The id of the node.
    pub id: u64,
    /// Whether it votes, and whether it is the leader.
    pub role: MemberRole,
    /// Its address for other nodes, `HOST:PORT`.
    pub address: String,
    /// The version of its program.
    pub version: Option<String>,
    /// The highest level of formats that its program supports.
    #[serde(default)]
    pub format_level: Option<u32>,
    /// Whether it responded to the node that returns this, within about a second.
    pub reachable: bool,
    /// The index of the last entry that it has applied.
    pub applied_index: Option<u64>,
    /// How many entries of the leader's log it has not acknowledged; null if it has acknowledged none to this leader.
    pub lag_entries: Option<u64>,
    /// How long ago the leader appended the oldest of these, in milliseconds; 0 if there are none. Up to 100 ms, or a
    /// twentieth, too low. A leader knows no more than the time since it became leader.
    pub lag_ms: Option<u64>,
    /// The index of the last entry in its newest snapshot; null if it has none.
    pub snapshot_index: Option<u64>,
    /// How long ago it wrote that snapshot, in milliseconds.
    pub snapshot_age_ms: Option<u64>,
    /// Bytes of its log and its snapshots.
    pub disk_used_bytes: Option<u64>,
    /// Free bytes of its disk.
    pub disk_free_bytes: Option<u64>,
    /// Memory that its keys and values use, as the quota counts them, in bytes.
    pub quota_used_bytes: Option<u64>,
    /// Its quota, beyond which it accepts no growth while it leads, in bytes.
    pub quota_bytes: Option<u64>,
    /// The 99th percentile of the times that writing and syncing its log took in the last minute, in microseconds, or
    /// the time of a sync that has been under way for longer; null if there was none.
    pub fsync_p99_us: Option<u64>,
    /// How many milliseconds its wall clock is ahead of that of the node that responds, exact to half of the round
    /// trip between them; null if that took more than 200 ms.
    pub clock_offset_ms: Option<i64>,
}

/// The role of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MemberRole {
    /// The voter that is the leader.
    Leader,
    /// It votes, and counts toward a majority.
    Voter,
    /// It receives all data, and does not vote.
    Learner,
}

/// The hash of the data of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HashAnswer {
    /// The id of the node.
    pub node: u64,
    /// The index of the last applied log entry; missing if the node has not applied any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied_index: Option<u64>,
    /// The revision of the store after that entry.
    pub revision: u64,
    /// 32 hexadecimal digits; equal on all nodes that applied the same entries.
    #[schema(pattern = "^[0-9a-f]{32}$")]
    pub hash: String,
    /// The last state of the node that was equal to the leader's; missing if none was compared since the node started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_self_check: Option<CheckedHash>,
}

/// A hash that was equal to the leader's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckedHash {
    /// The index of the last log entry in that state.
    pub index: u64,
    /// 32 hexadecimal digits.
    #[schema(pattern = "^[0-9a-f]{32}$")]
    pub hash: String,
}

/// The body of every error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorAnswer {
    /// The error.
    pub error: ErrorBody,
}

/// What a token must allow for a request: a role, and keys if the request names some.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Needs {
    /// The role.
    pub role: TokenRole,
    /// The key that the token does not include.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The beginning of keys that it does not all include.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// The first key, and the end, of a range that it does not include.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<(String, String)>,
}

/// The body of `POST /v1/tokens`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// 1 to 64 letters, digits, `.`, `_` and `-`.
    #[schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9._-]+$")]
    pub name: String,
    /// What the token allows.
    pub role: TokenRole,
    /// Beginnings of the keys for which it allows that; without it, all keys. A token for `admin` has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_items = 1, max_items = 32)]
    pub prefixes: Option<Vec<String>>,
    /// Time until it expires, such as `12h`; without it, it never does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
}

/// A token that was created.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenCreated {
    /// Its name.
    pub name: String,
    /// The token itself. No later response has it.
    pub token: String,
}

// The token must not be logged.
impl fmt::Debug for TokenCreated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenCreated").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The response of `GET /v1/tokens`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenList {
    /// Whether requests need a token.
    pub required: bool,
    /// All tokens, by name. The root token is not among them.
    pub tokens: Vec<ListedToken>,
}

/// A token, without its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ListedToken {
    /// Its name.
    pub name: String,
    /// What it allows.
    pub role: TokenRole,
    /// Beginnings of the keys for which it allows that; empty for all keys.
    pub prefixes: Vec<String>,
    /// Milliseconds until it expires; missing if it never does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_ms: Option<u64>,
}

/// The response of `DELETE /v1/tokens/{name}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenRevoked {
    /// The name of the token that was removed.
    pub revoked: String,
}

/// The body of `POST /v1/auth`, and its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AuthRequired {
    /// Whether requests need a token.
    pub required: bool,
}

/// An error, and the outcome of the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// Machine-readable code, such as `key_not_found`.
    pub code: String,
    /// Human-readable; may change.
    pub message: String,
    /// Whether the request may have been applied.
    pub outcome: Outcome,
    /// With `not_leader`: the leader, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<Leader>,
    /// Milliseconds after which to retry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// With `not_permitted`: what the token must allow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needs: Option<Box<Needs>>,
    /// The limit that the request exceeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// The size that exceeds the limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<usize>,
    /// With `condition_failed`: the revision of the key; missing if the key does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_revision: Option<u64>,
    /// With `key_not_found`: the revision of the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// With `revision_gone`: the oldest revision that the history has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_revision: Option<u64>,
    /// With `applied_passed`: the index of the last applied entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied_index: Option<u64>,
    /// The line of the error in the body, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// The column of the error in that line, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
}

/// Whether a failed request may have been applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was not applied, and never will be.
    NotApplied,
    /// It may have been applied, or may be applied later.
    Unknown,
}

impl Outcome {
    /// The word in bodies and headers.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::NotApplied => "not_applied",
            Outcome::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The leader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Leader {
    /// The id of its node.
    pub id: u64,
    /// Its address, `HOST:PORT`.
    pub addr: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key that is written without copies reads as what it is.
    ///
    /// Method: no value, a text and bytes, each with and without a time to expire.
    #[test]
    fn borrowed_keys_are_read_as_they_are() {
        for bytes in [None, Some(&b"a \"text\""[..]), Some(b""), Some(&[0xff, 0, 1])] {
            for expires_in_ms in [None, Some(5)] {
                let written = KeyValueRef::new("k", [7, 3, 2], expires_in_ms);
                let written = bytes.into_iter().fold(written, KeyValueRef::with_value);
                let read: KeyValue = serde_json::from_slice(&serde_json::to_vec(&written).unwrap()).unwrap();
                assert_eq!(read.bytes().as_deref(), bytes);
                assert_eq!(read.encoding.is_some(), bytes.is_some_and(|bytes| bytes.contains(&0xff)));
                let KeyValue { key, revision, create_revision, version, expires_in_ms: left, .. } = read;
                assert_eq!((key.as_str(), revision, create_revision, version, left), ("k", 7, 3, 2, expires_in_ms));
            }
        }
    }

    /// The JSON is one line, and decodes to the same value.
    ///
    /// Method: each character that splits lines in some program, and its neighbors, alone and next to others, in a key
    /// and in a value.
    #[test]
    fn json_lines_are_not_split() {
        const SPLITTERS: &str = "\n\r\u{b}\u{c}\u{1c}\u{1d}\u{1e}\u{85}\u{2028}\u{2029}";
        let neighbors = "\u{84}\u{86}\u{2027}\u{202a}“ü…\u{c2}\u{e2}\u{10ffff}\u{7f}";
        let mut texts: Vec<String> =
            SPLITTERS.chars().flat_map(|it| [format!("{it}"), format!("a{it}{it}ü")]).collect();
        texts.extend([SPLITTERS.to_owned(), neighbors.to_owned(), format!("{neighbors}{SPLITTERS}{neighbors}")]);
        for text in &texts {
            let value = std::collections::BTreeMap::from([(text, text)]);
            let mut written = Vec::new();
            write_json_line(&mut written, &value).unwrap();
            let written = String::from_utf8(written).unwrap();
            assert!(!written.contains(|character| SPLITTERS.contains(character)), "{written:?}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&written).unwrap(), serde_json::json!(value));
        }
        let mut unchanged = Vec::new();
        write_json_line(&mut unchanged, &neighbors).unwrap();
        assert_eq!(unchanged, serde_json::to_vec(&neighbors).unwrap());
    }
}
