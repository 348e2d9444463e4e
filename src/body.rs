//! The bodies of the key-value API (`/v1`), as JSON: what the server answers
//! and what [`ExampleClient`](crate::ExampleClient) understands.
//!
//! Values are bytes. In JSON they go as text if they are UTF-8, and otherwise as
//! base64 with `"encoding":"base64"` beside them.

use std::borrow::Cow;
use std::{fmt, io};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Writes JSON without anything in it that some program takes for the end of a line.
///
/// JSON allows U+0085, U+2028 and U+2029 inside strings, but several line splitters, such as Python's
/// `str.splitlines`, break lines there. In a server-sent event, or in output with one object a line, they would cut the
/// JSON in two. serde_json itself escapes the control characters below U+0020, so these three are all that is left.
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
    /// Base64 with padding, of the standard alphabet (RFC 4648).
    Base64,
}

/// A value as text or base64.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedValue {
    /// The text.
    pub value: String,
    /// `None` if the text is the value itself.
    pub encoding: Option<Encoding>,
}

impl EncodedValue {
    /// A value for JSON.
    pub fn of(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => EncodedValue { value: text.to_owned(), encoding: None },
            Err(_) => EncodedValue { value: BASE64_STANDARD.encode(bytes), encoding: Some(Encoding::Base64) },
        }
    }

    /// The bytes of a value from JSON; an error if it is no base64.
    pub fn decode(value: &str, encoding: Option<Encoding>) -> Result<Cow<'_, [u8]>, base64::DecodeError> {
        match encoding {
            None => Ok(Cow::Borrowed(value.as_bytes())),
            Some(Encoding::Base64) => BASE64_STANDARD.decode(value).map(Cow::Owned),
        }
    }
}

/// A key and what the store has of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// The value; not there if only keys were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// How the value is encoded, if it is not text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    /// The revision of the last change.
    pub revision: u64,
    /// The revision at which the key came to be.
    pub create_revision: u64,
    /// How often the key was changed since then: 1 when it is new.
    pub version: u64,
    /// How long the key has left, in milliseconds, if it is to expire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_ms: Option<u64>,
}

impl KeyValue {
    /// The value's bytes; `None` if only the key was asked for, or if it is no base64.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        EncodedValue::decode(self.value.as_deref()?, self.encoding).ok().map(Cow::into_owned)
    }

    /// The value as text; `None` if it is none, or if only the key was asked for.
    pub fn text(&self) -> Option<&str> {
        self.value.as_deref().filter(|_| self.encoding.is_none())
    }
}

/// The answer to a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PutAnswer {
    /// The key's revision now.
    pub revision: u64,
    /// How often the key was changed since it came to be.
    pub version: u64,
}

/// The answer to a touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TouchAnswer {
    /// The key's revision, which stays.
    pub revision: u64,
    /// The key's version, which stays.
    pub version: u64,
    /// How long the key has left, in milliseconds; not there if it does not expire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_ms: Option<u64>,
}

/// The answer to a delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeleteAnswer {
    /// The store's revision now.
    pub revision: u64,
    /// How many keys were removed.
    pub deleted: u64,
}

/// One page of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ListAnswer {
    /// The revision of the store that the page shows. Giving it as `revision`
    /// with the next page makes both show the same state.
    pub revision: u64,
    /// The keys, in order of their bytes.
    pub items: Vec<KeyValue>,
    /// What to give as `start_after` for the next page; not there on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// The body of a transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TxnRequest {
    /// What must hold, all of it. Nothing: `success` is done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 128)]
    pub compare: Vec<Compare>,
    /// Done if all comparisons hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 128)]
    pub success: Vec<TxnOperation>,
    /// Done if one of them does not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 128)]
    pub failure: Vec<TxnOperation>,
}

/// Compares one thing of a key. Exactly one of `exists`, `value`, `revision`,
/// `create_revision` and `version` is given. A key that is not there has
/// revision, create revision and version 0, and no value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Compare {
    /// The key.
    #[schema(min_length = 1, max_length = 1024)]
    pub key: String,
    /// How the key's own is to stand to what is given; `=` if not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub op: Option<Relation>,
    /// Whether the key is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exists: Option<bool>,
    /// The value, by its bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// How `value` is encoded, if it is not text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    /// The revision of the key's last change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// The revision at which the key came to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create_revision: Option<u64>,
    /// How often the key was changed since it came to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
}

/// How two things compare.
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
    /// Removes a key.
    Delete(TxnKey),
    /// Reads a key, as the operations before it left it.
    Get(TxnKey),
    /// Renews the time that a key has left.
    Touch(TxnTouch),
}

/// Sets a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TxnPut {
    /// The key.
    #[schema(min_length = 1, max_length = 1024)]
    pub key: String,
    /// The value.
    pub value: String,
    /// How `value` is encoded, if it is not text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    /// How long the key is to stay, such as `30s`; for ever if not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^0*[1-9][0-9]*(ms|s|m|h|d)$")]
    pub ttl: Option<String>,
}

/// Names a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TxnKey {
    /// The key.
    #[schema(min_length = 1, max_length = 1024)]
    pub key: String,
}

/// Renews the time that a key has left.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TxnTouch {
    /// The key.
    #[schema(min_length = 1, max_length = 1024)]
    pub key: String,
    /// How long the key is to stay from now on, such as `30s`; for ever if not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^0*[1-9][0-9]*(ms|s|m|h|d)$")]
    pub ttl: Option<String>,
}

/// The answer to a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TxnAnswer {
    /// Whether the comparisons held, so that `success` was done.
    pub succeeded: bool,
    /// The store's revision now.
    pub revision: u64,
    /// What became of each operation, in their order.
    pub results: Vec<TxnResult>,
}

/// What became of one operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TxnResult {
    /// The key was set.
    Put(PutAnswer),
    /// 1 if the key was there, else 0.
    Delete(TxnDeleted),
    /// What was read; null if the key is not there.
    Get(Option<KeyValue>),
    /// The key's time was renewed; null if the key is not there.
    Touch(Option<TouchAnswer>),
}

/// How many keys an operation of a transaction removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TxnDeleted {
    /// 1 if the key was there, else 0.
    pub deleted: u64,
}

/// One event of a watch, as the `data` of a server-sent event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum WatchEvent {
    /// A key as it was when the watch began; only if asked for.
    Initial(KeyValue),
    /// All keys as they were at this revision have been sent; changes follow.
    Synced {
        /// The revision.
        revision: u64,
    },
    /// A key was set.
    Put(KeyValue),
    /// A key was deleted.
    Delete(Removed),
    /// A key's time was over.
    Expire(Removed),
    /// The watch ends here, and may be taken up again after the last `id`.
    End(WatchEnd),
}

/// A key that is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Removed {
    /// The key.
    pub key: String,
    /// The revision at which it went.
    pub revision: u64,
}

/// Why a watch ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WatchEnd {
    /// A word for programs: `too_slow`, `stopping`, `no_leader`, or the code with which the request would
    /// have been rejected if the watch had not waited for a leader.
    pub code: String,
    /// For people.
    pub message: String,
}

/// The members of the cluster after one was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemberRemoved {
    /// The number of the node that was removed.
    pub removed: u64,
    /// The members that are left, by their number.
    pub members: Vec<Member>,
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Member {
    /// The node's number.
    pub id: u64,
    /// Whether it votes.
    pub role: MemberRole,
    /// Where the other nodes reach it, `host:port`.
    pub address: String,
}

/// What a member does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MemberRole {
    /// The voter that leads.
    Leader,
    /// It has a vote, and counts towards a majority.
    Voter,
    /// It has all data, and no vote.
    Learner,
}

/// What the data of one node is, as a hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HashAnswer {
    /// The node's number.
    pub node: u64,
    /// The last entry of the log that is in it; not there if the node has applied none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied_index: Option<u64>,
    /// The store's revision after that entry.
    pub revision: u64,
    /// 32 hexadecimal digits, the same on all nodes that have applied the same entries.
    #[schema(pattern = "^[0-9a-f]{32}$")]
    pub hash: String,
    /// When the node last compared its data with the leader's and found it to be the same; not there if that is still
    /// to come since it was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_self_check: Option<CheckedHash>,
}

/// A hash that was the same as the leader's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckedHash {
    /// The entry of the log after which it was.
    pub index: u64,
    /// 32 hexadecimal digits.
    #[schema(pattern = "^[0-9a-f]{32}$")]
    pub hash: String,
}

/// The body of every error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorAnswer {
    /// What is wrong.
    pub error: ErrorBody,
}

/// What is wrong, and what became of the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// A word for programs.
    pub code: String,
    /// For people.
    pub message: String,
    /// What became of the request.
    pub outcome: Outcome,
    /// Who leads, with `not_leader`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<Leader>,
    /// When to try again, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// The largest that is taken, if something is too large.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// The size that came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<usize>,
    /// With `condition_failed`: the key's revision; not there if the key is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_revision: Option<u64>,
    /// With `key_not_found`: the store's revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// With `revision_gone`: the oldest revision that is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_revision: Option<u64>,
    /// With `applied_passed`: the last entry that the node has applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied_index: Option<u64>,
    /// The line of the body at which it went wrong, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// The column in that line, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
}

/// What became of a request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Nothing changed, and nothing will.
    NotApplied,
    /// It may have been applied, or may yet be.
    Unknown,
}

impl Outcome {
    /// The word used in bodies and headers.
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

/// The node that leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Leader {
    /// Its number.
    pub id: u64,
    /// Where it is, `HOST:PORT`.
    pub addr: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written is one line, and the same JSON as before.
    ///
    /// Method: each character that splits lines anywhere, and its neighbors, alone and beside others, in a key and in
    /// a value.
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
