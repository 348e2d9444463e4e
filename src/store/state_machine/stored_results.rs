//! Results of requests, as snapshots store them and as the state's hash and the bound of remembered requests count
//! them.
//!
//! **On disk and in the hash: frozen.** Old snapshots must load, and nodes of all versions must agree on hashes and
//! on which requests are remembered. So these types are separate from those in memory
//! ([`crate::operation::WriteResult`]) and from those that clients get ([`crate::body`]). A field may be added to the
//! latter; here it requires another format of the data directory.
//!
//! A result is MessagePack with field names. A value that a transaction read is text if it is UTF-8, and otherwise
//! base64 with `"encoding": "base64"`. The hash and the bound count it in that form too.

use std::borrow::Cow;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::body::{PutAnswer, TouchAnswer, TxnDeleted};
use crate::hash::StateHash;
use crate::operation::{Found, Key, StepResult, TxnDone, Value, WriteResult};

/// The result of a write.
#[derive(Serialize, Deserialize)]
pub(in crate::store) enum StoredResult<'a> {
    Put(StoredPut),
    Touch(StoredTouch),
    Delete {
        deleted: u64,
        #[serde(default)]
        revision: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unfinished: Option<u64>,
    },
    Txn(StoredTxn<'a>),
    ConditionFailed {
        revision: Option<u64>,
    },
    NoSuchKey,
    AnswerTooLarge {
        bytes: u64,
    },
    RequestIdReused,
}

#[derive(Serialize, Deserialize)]
pub(in crate::store) struct StoredPut {
    revision: u64,
    version: u64,
}

#[derive(Serialize, Deserialize)]
pub(in crate::store) struct StoredTouch {
    revision: u64,
    version: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_in_ms: Option<u64>,
}

#[derive(Serialize, Deserialize)]
pub(in crate::store) struct StoredTxn<'a> {
    succeeded: bool,
    revision: u64,
    results: Vec<StoredStep<'a>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredStep<'a> {
    Put(StoredPut),
    Delete(StoredDeleted),
    Get(Option<StoredFound<'a>>),
    Touch(Option<StoredTouch>),
}

#[derive(Serialize, Deserialize)]
struct StoredDeleted {
    deleted: u64,
}

#[derive(Serialize, Deserialize)]
struct StoredFound<'a> {
    key: Cow<'a, str>,
    value: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    encoding: Option<StoredEncoding>,
    revision: u64,
    create_revision: u64,
    version: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_in_ms: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StoredEncoding {
    Base64,
}

/// A value that a transaction read, in the form in which it is stored and counted.
#[derive(Clone, Copy)]
pub(in crate::store) enum StoredValue<'a> {
    /// The text itself.
    Text(&'a str),
    /// The base64 of these bytes, which are not UTF-8.
    Base64(&'a [u8]),
}

impl<'a> StoredValue<'a> {
    pub fn of(value: &'a Value) -> Self {
        value.as_text().map_or_else(|| StoredValue::Base64(value.as_bytes()), StoredValue::Text)
    }

    pub fn is_base64(self) -> bool {
        matches!(self, StoredValue::Base64(_))
    }

    /// The length of the stored text, in bytes.
    pub fn len(self) -> usize {
        match self {
            StoredValue::Text(text) => text.len(),
            StoredValue::Base64(bytes) => bytes.len().div_ceil(3) * 4,
        }
    }

    /// XXH3 of the stored text, with 128 bits.
    pub fn hash(self) -> StateHash {
        // Only the last piece may have a length that base64 pads.
        const PIECE_BYTES: usize = 3 * 512;
        match self {
            StoredValue::Text(text) => StateHash::of_bytes(text.as_bytes()),
            StoredValue::Base64(bytes) => {
                let (mut hasher, mut text) = (Xxh3::new(), [0; PIECE_BYTES / 3 * 4]);
                for piece in bytes.chunks(PIECE_BYTES) {
                    let length = BASE64_STANDARD.encode_slice(piece, &mut text).expect("a piece has room");
                    hasher.update(&text[..length]);
                }
                StateHash(hasher.digest128())
            }
        }
    }

    fn into_text(self) -> Cow<'a, str> {
        match self {
            StoredValue::Text(text) => Cow::Borrowed(text),
            StoredValue::Base64(bytes) => Cow::Owned(BASE64_STANDARD.encode(bytes)),
        }
    }
}

// Each type is destructured, so that a field that is added to a type in memory cannot be lost unnoticed.

impl<'a> From<&'a WriteResult> for StoredResult<'a> {
    fn from(result: &'a WriteResult) -> Self {
        match result {
            WriteResult::Put(put) => StoredResult::Put(put.into()),
            WriteResult::Touch(touch) => StoredResult::Touch(touch.into()),
            &WriteResult::Delete { deleted, revision, unfinished } => {
                StoredResult::Delete { deleted, revision, unfinished }
            }
            WriteResult::Txn(done) => {
                let TxnDone { succeeded, revision, results } = done.as_ref();
                let results = results.iter().map(StoredStep::from).collect();
                StoredResult::Txn(StoredTxn { succeeded: *succeeded, revision: *revision, results })
            }
            &WriteResult::ConditionFailed { revision } => StoredResult::ConditionFailed { revision },
            WriteResult::NoSuchKey => StoredResult::NoSuchKey,
            &WriteResult::AnswerTooLarge { bytes } => StoredResult::AnswerTooLarge { bytes },
            WriteResult::RequestIdReused => StoredResult::RequestIdReused,
        }
    }
}

impl<'a> From<&'a StepResult> for StoredStep<'a> {
    fn from(result: &'a StepResult) -> Self {
        match result {
            StepResult::Put(put) => StoredStep::Put(put.into()),
            &StepResult::Delete(TxnDeleted { deleted }) => StoredStep::Delete(StoredDeleted { deleted }),
            StepResult::Get(found) => StoredStep::Get(found.as_ref().map(StoredFound::from)),
            StepResult::Touch(touch) => StoredStep::Touch(touch.as_ref().map(StoredTouch::from)),
        }
    }
}

impl<'a> From<&'a Found> for StoredFound<'a> {
    fn from(found: &'a Found) -> Self {
        let Found { key, value, revision, create_revision, version, expires_in_ms } = found;
        let value = StoredValue::of(value);
        StoredFound {
            key: Cow::Borrowed(key),
            value: value.into_text(),
            encoding: value.is_base64().then_some(StoredEncoding::Base64),
            revision: *revision,
            create_revision: *create_revision,
            version: *version,
            expires_in_ms: *expires_in_ms,
        }
    }
}

impl From<&PutAnswer> for StoredPut {
    fn from(&PutAnswer { revision, version }: &PutAnswer) -> Self {
        StoredPut { revision, version }
    }
}

impl From<&TouchAnswer> for StoredTouch {
    fn from(&TouchAnswer { revision, version, expires_in_ms }: &TouchAnswer) -> Self {
        StoredTouch { revision, version, expires_in_ms }
    }
}

/// A result that no version has written.
#[derive(Debug)]
pub(in crate::store) struct NoResult;

impl TryFrom<StoredResult<'_>> for WriteResult {
    type Error = NoResult;

    fn try_from(stored: StoredResult<'_>) -> Result<Self, NoResult> {
        Ok(match stored {
            StoredResult::Put(put) => WriteResult::Put(put.into()),
            StoredResult::Touch(touch) => WriteResult::Touch(touch.into()),
            StoredResult::Delete { deleted, revision, unfinished } => {
                WriteResult::Delete { deleted, revision, unfinished }
            }
            StoredResult::Txn(StoredTxn { succeeded, revision, results }) => {
                let results = results.into_iter().map(StepResult::try_from).collect::<Result<_, _>>()?;
                WriteResult::Txn(TxnDone { succeeded, revision, results }.into())
            }
            StoredResult::ConditionFailed { revision } => WriteResult::ConditionFailed { revision },
            StoredResult::NoSuchKey => WriteResult::NoSuchKey,
            StoredResult::AnswerTooLarge { bytes } => WriteResult::AnswerTooLarge { bytes },
            StoredResult::RequestIdReused => WriteResult::RequestIdReused,
        })
    }
}

impl TryFrom<StoredStep<'_>> for StepResult {
    type Error = NoResult;

    fn try_from(stored: StoredStep<'_>) -> Result<Self, NoResult> {
        Ok(match stored {
            StoredStep::Put(put) => StepResult::Put(put.into()),
            StoredStep::Delete(StoredDeleted { deleted }) => StepResult::Delete(TxnDeleted { deleted }),
            StoredStep::Get(found) => StepResult::Get(found.map(Found::try_from).transpose()?),
            StoredStep::Touch(touch) => StepResult::Touch(touch.map(TouchAnswer::from)),
        })
    }
}

impl TryFrom<StoredFound<'_>> for Found {
    type Error = NoResult;

    fn try_from(stored: StoredFound<'_>) -> Result<Self, NoResult> {
        let StoredFound { key, value, encoding, revision, create_revision, version, expires_in_ms } = stored;
        let value = match encoding {
            None => Value::from(value.as_bytes()),
            Some(StoredEncoding::Base64) => {
                let value = Value::from(&BASE64_STANDARD.decode(value.as_bytes()).map_err(|_| NoResult)?);
                // A version of this program would have stored it as text, with another hash.
                if value.as_text().is_some() {
                    return Err(NoResult);
                }
                value
            }
        };
        Ok(Found { key: Key::from(key), value, revision, create_revision, version, expires_in_ms })
    }
}

impl From<StoredPut> for PutAnswer {
    fn from(StoredPut { revision, version }: StoredPut) -> Self {
        PutAnswer { revision, version }
    }
}

impl From<StoredTouch> for TouchAnswer {
    fn from(StoredTouch { revision, version, expires_in_ms }: StoredTouch) -> Self {
        TouchAnswer { revision, version, expires_in_ms }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn txn(results: Vec<StepResult>) -> WriteResult {
        WriteResult::Txn(Arc::new(TxnDone { succeeded: true, revision: 1, results }))
    }

    fn get(key: &str, value: &[u8], expires_in_ms: Option<u64>) -> WriteResult {
        let (key, value) = (key.into(), value.into());
        txn(vec![StepResult::Get(Some(Found {
            key,
            value,
            revision: 3,
            create_revision: 1,
            version: 2,
            expires_in_ms,
        }))])
    }

    fn written(result: &WriteResult) -> Vec<u8> {
        rmp_serde::to_vec_named(&StoredResult::from(result)).unwrap()
    }

    fn read(bytes: &[u8]) -> Result<WriteResult, ()> {
        let stored: StoredResult<'_> = rmp_serde::from_slice(bytes).map_err(drop)?;
        stored.try_into().map_err(|NoResult| ())
    }

    /// Each result is stored as these bytes, and decoded from them.
    #[test]
    fn bytes_are_fixed() {
        let put = PutAnswer { revision: 1, version: 2 };
        let touch = |expires_in_ms| TouchAnswer { revision: 1, version: 2, expires_in_ms };
        let numbers = b"\xa8revision\x01\xa7version\x02".as_slice();
        let txn_of = |step: &[u8]| {
            let fields = b"\x81\xa3Txn\x83\xa9succeeded\xc3\xa8revision\x01\xa7results\x91\x81".as_slice();
            [fields, step].concat()
        };
        let found = |fields: u8, value: &[u8], expires: &[u8]| {
            let numbers = b"\xa8revision\x03\xafcreate_revision\x01\xa7version\x02".as_slice();
            txn_of(
                &[b"\xa3get".as_slice(), &[0x80 + fields], b"\xa3key\xa1k\xa5value", value, numbers, expires].concat(),
            )
        };
        let deleted = |unfinished| WriteResult::Delete { deleted: 2, revision: 258, unfinished };
        let expires = b"\xadexpires_in_ms\xcd\x01\x02".as_slice();
        let rows: [(WriteResult, Vec<u8>); 19] = [
            (WriteResult::Put(put), [b"\x81\xa3Put\x82", numbers].concat()),
            (WriteResult::Touch(touch(None)), [b"\x81\xa5Touch\x82", numbers].concat()),
            (WriteResult::Touch(touch(Some(258))), [b"\x81\xa5Touch\x83", numbers, expires].concat()),
            (deleted(None), b"\x81\xa6Delete\x82\xa7deleted\x02\xa8revision\xcd\x01\x02".into()),
            (deleted(Some(7)), b"\x81\xa6Delete\x83\xa7deleted\x02\xa8revision\xcd\x01\x02\xaaunfinished\x07".into()),
            (WriteResult::ConditionFailed { revision: None }, b"\x81\xafConditionFailed\x81\xa8revision\xc0".into()),
            (WriteResult::ConditionFailed { revision: Some(7) }, b"\x81\xafConditionFailed\x81\xa8revision\x07".into()),
            (WriteResult::NoSuchKey, b"\xa9NoSuchKey".into()),
            (WriteResult::AnswerTooLarge { bytes: 7 }, b"\x81\xaeAnswerTooLarge\x81\xa5bytes\x07".into()),
            (WriteResult::RequestIdReused, b"\xafRequestIdReused".into()),
            (txn(vec![]), b"\x81\xa3Txn\x83\xa9succeeded\xc3\xa8revision\x01\xa7results\x90".into()),
            (txn(vec![StepResult::Put(put)]), txn_of(&[b"\xa3put\x82", numbers].concat())),
            (txn(vec![StepResult::Delete(TxnDeleted { deleted: 1 })]), txn_of(b"\xa6delete\x81\xa7deleted\x01")),
            (txn(vec![StepResult::Touch(None)]), txn_of(b"\xa5touch\xc0")),
            (
                txn(vec![StepResult::Touch(Some(touch(Some(258))))]),
                txn_of(&[b"\xa5touch\x83", numbers, expires].concat()),
            ),
            (txn(vec![StepResult::Get(None)]), txn_of(b"\xa3get\xc0")),
            (get("k", "é".as_bytes(), None), found(5, b"\xa2\xc3\xa9", b"")),
            (get("k", b"", Some(258)), found(6, b"\xa0", expires)),
            (get("k", b"\xff\0", None), found(6, b"\xa4/wA=\xa8encoding\xa6base64", b"")),
        ];
        for (result, bytes) in rows {
            assert_eq!(written(&result).escape_ascii().to_string(), bytes.escape_ascii().to_string(), "{result:?}");
            assert_eq!(read(&bytes), Ok(result));
        }
        // From before deletions had revisions.
        let former = WriteResult::Delete { deleted: 2, revision: 0, unfinished: None };
        assert_eq!(read(b"\x81\xa6Delete\x81\xa7deleted\x02"), Ok(former));
    }

    /// A result that no version has written is rejected: it would be written differently than it was read.
    #[test]
    fn values_of_no_version() {
        let stored = written(&get("k", b"\xff\0", None));
        let with_value = |value: &[u8; 4]| {
            let position = stored.windows(4).position(|bytes| bytes == b"/wA=").unwrap();
            [&stored[..position], value, &stored[position + 4..]].concat()
        };
        assert_eq!(read(&with_value(b"/gA=")), Ok(get("k", b"\xfe\0", None)));
        for (value, what) in [(b"YWE=", "text"), (b"/wA*", "not base64"), (b"/wB=", "with unused bits")] {
            assert_eq!(read(&with_value(value)), Err(()), "{what}");
        }
    }

    /// A value that is not text is counted and hashed as its base64.
    ///
    /// Method: all lengths around those at which a piece ends.
    #[test]
    fn base64_in_pieces() {
        for length in (1..10).chain(1530..1542).chain(3066..3078).chain([100_000]) {
            let value = Value::from(&vec![0xff; length]);
            let stored = StoredValue::of(&value);
            let text = BASE64_STANDARD.encode(value.as_bytes());
            assert!(stored.is_base64());
            assert_eq!(
                (stored.len(), stored.hash()),
                (text.len(), StateHash::of_bytes(text.as_bytes())),
                "{length} bytes"
            );
            assert_eq!(stored.into_text(), text);
        }
    }
}
