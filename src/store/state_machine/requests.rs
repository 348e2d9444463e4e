//! The last requests with an `Idempotency-Key`, so that a request that is sent again is not executed again.
//!
//! Like [`super::history`], they are a part of the replicated state: which requests are remembered depends only on the
//! requests themselves.

use std::sync::Arc;

use imbl::{HashMap, Vector};

use super::stored_results::StoredValue;
use crate::body::TxnDeleted;
use crate::config::{REQUESTS_REMEMBERED_BYTES_MAX, REQUESTS_REMEMBERED_MAX};
use crate::hash::{StateHash, plus_one};
use crate::operation::{Found, Key, RequestId, StepResult, TxnDone, WriteResult};

/// A request that was executed, and its result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// See [`RequestId::fingerprint`].
    pub fingerprint: [u64; 2],
    /// The result; of a deletion in steps, that of the last step.
    pub result: WriteResult,
    hash: StateHash,
    bytes: usize,
}

impl Remembered {
    /// The request with this key. It keeps its hash and its size ([`bytes_of`]), since computing them reads the whole
    /// result and encodes values that are not UTF-8.
    pub(super) fn new(key: &str, fingerprint: [u64; 2], result: WriteResult) -> Remembered {
        let mut remembered = Remembered { fingerprint, result, hash: StateHash::default(), bytes: 0 };
        remembered.hash = remembered.computed_hash(key);
        remembered.bytes = bytes_of(key, &remembered);
        remembered
    }

    /// The hash of the request with its key, computed from what is in memory now.
    ///
    /// **In the hash: frozen.** It is of these numbers: the two halves of the key's hash, the fingerprint, the kind of
    /// the result, and three numbers of the result. Of a transaction, the first two of these are a hash.
    pub(in crate::store) fn computed_hash(&self, key: &str) -> StateHash {
        let [key_0, key_1] = StateHash::of_bytes(key.as_bytes()).halves();
        let [fingerprint_0, fingerprint_1] = self.fingerprint;
        let of_result = |kind, one, two, three| {
            StateHash::of_numbers([key_0, key_1, fingerprint_0, fingerprint_1, kind, one, two, three])
        };
        match &self.result {
            WriteResult::Put(put) => of_result(1, put.revision, put.version, 0),
            WriteResult::Touch(touch) => of_result(2, touch.revision, touch.version, plus_one(touch.expires_in_ms)),
            WriteResult::Delete { deleted, revision, unfinished } => {
                of_result(3, *deleted, *revision, plus_one(*unfinished))
            }
            WriteResult::Txn(done) => {
                let [done_0, done_1] = hash_of_txn(done).halves();
                of_result(4, done_0, done_1, 0)
            }
            WriteResult::ConditionFailed { revision } => of_result(5, plus_one(*revision), 0, 0),
            WriteResult::NoSuchKey => of_result(6, 0, 0, 0),
            WriteResult::AnswerTooLarge { bytes } => of_result(7, *bytes, 0, 0),
            WriteResult::RequestIdReused => of_result(8, 0, 0, 0),
        }
    }
}

/// The last requests that had an `Idempotency-Key`.
///
/// Invariants:
/// * `order` has the keys of `by_key`, each once, in the order in which they first came;
/// * at most [`REQUESTS_REMEMBERED_MAX`] requests of at most [`REQUESTS_REMEMBERED_BYTES_MAX`] bytes are remembered,
///   except that the last one always is;
/// * `hash` and `bytes` are the sums of the hashes and sizes that the requests keep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    by_key: HashMap<Key, Arc<Remembered>>,
    order: Vector<Key>,
    bytes: usize,
    hash: StateHash,
}

impl Requests {
    /// Number of remembered requests.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Approximate bytes of the remembered requests and their results.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether no request is remembered.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The sum of the hashes of all remembered requests.
    pub(in crate::store) fn hash(&self) -> StateHash {
        self.hash
    }

    /// The request with this `Idempotency-Key`, if it is remembered.
    pub fn get(&self, key: &str) -> Option<&Arc<Remembered>> {
        self.by_key.get(key)
    }

    /// Remembers the result of a request, and forgets the oldest requests if there are too many requests or bytes.
    pub(in crate::store) fn remember(&mut self, request: &RequestId, result: WriteResult) {
        let remembered = Remembered::new(&request.key, request.fingerprint, result);
        self.bytes += remembered.bytes;
        self.hash += remembered.hash;
        match self.by_key.insert(request.key.clone(), Arc::new(remembered)) {
            // The next step of a deletion; it keeps its place. Its result was made from the one before. If memory
            // changed that one, the new hash includes the change. So subtract the hash of the former result as it is in
            // memory now: then the sum differs from then on.
            Some(before) => {
                self.bytes -= before.bytes;
                self.hash -= before.computed_hash(&request.key);
            }
            None => self.order.push_back(request.key.clone()),
        }
        while self.order.len() > 1
            && (self.order.len() > REQUESTS_REMEMBERED_MAX || self.bytes > REQUESTS_REMEMBERED_BYTES_MAX)
        {
            let oldest = self.order.pop_front();
            let forgotten = oldest.and_then(|key| self.by_key.remove(&key)).expect("`order` has the keys of `by_key`");
            self.bytes -= forgotten.bytes;
            self.hash -= forgotten.hash;
        }
        debug_assert_eq!(self.order.len(), self.by_key.len(), "`order` has each key once");
    }

    /// All remembered requests, in the order in which they first came.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Arc<Remembered>)> {
        self.order.iter().map(|key| (key, &self.by_key[key]))
    }
}

/// Each result is hashed together with the hash of those before it, since their order counts.
fn hash_of_txn(done: &TxnDone) -> StateHash {
    let TxnDone { succeeded, revision, results } = done;
    let mut hash = StateHash::of_numbers([u64::from(*succeeded), *revision, results.len() as u64]);
    for result in results {
        let ([before_0, before_1], [result_0, result_1]) = (hash.halves(), hash_of_step(result).halves());
        hash = StateHash::of_numbers([before_0, before_1, result_0, result_1]);
    }
    hash
}

fn hash_of_step(result: &StepResult) -> StateHash {
    match result {
        StepResult::Put(put) => StateHash::of_numbers([1, put.revision, put.version]),
        StepResult::Delete(TxnDeleted { deleted }) => StateHash::of_numbers([2, *deleted]),
        StepResult::Get(None) => StateHash::of_numbers([3]),
        StepResult::Get(Some(found)) => {
            let Found { key, value, revision, create_revision, version, expires_in_ms } = found;
            let value = StoredValue::of(value);
            let [key_0, key_1] = StateHash::of_bytes(key.as_bytes()).halves();
            let [value_0, value_1] = value.hash().halves();
            let numbers = [*revision, *create_revision, *version, plus_one(*expires_in_ms)];
            let [numbers_0, numbers_1] = StateHash::of_numbers(numbers).halves();
            let encoded = u64::from(value.is_base64());
            StateHash::of_numbers([4, key_0, key_1, value_0, value_1, encoded, numbers_0, numbers_1])
        }
        StepResult::Touch(None) => StateHash::of_numbers([5]),
        StepResult::Touch(Some(touch)) => {
            StateHash::of_numbers([6, touch.revision, touch.version, plus_one(touch.expires_in_ms)])
        }
    }
}

/// Approximate bytes of a remembered request.
///
/// **Frozen**: which requests all nodes forget depends on it. A value that was read counts with its stored length, even
/// while it shares its memory with the data, because how long it does depends on other requests.
fn bytes_of(key: &str, remembered: &Remembered) -> usize {
    const REQUEST_BYTES: usize = 256;
    const RESULT_BYTES: usize = 128;
    let answer_bytes = match &remembered.result {
        WriteResult::Txn(done) => done.results.iter().map(|result| match result {
            StepResult::Get(Some(found)) => RESULT_BYTES + found.key.len() + StoredValue::of(&found.value).len(),
            _ => RESULT_BYTES,
        }),
        _ => return REQUEST_BYTES + key.len(),
    };
    REQUEST_BYTES + key.len() + answer_bytes.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::{PutAnswer, TouchAnswer};

    fn request(number: usize) -> RequestId {
        RequestId { key: format!("request {number}").into(), fingerprint: [number as u64, 1] }
    }

    fn deleted(deleted: u64) -> WriteResult {
        WriteResult::Delete { deleted, revision: 1, unfinished: None }
    }

    /// The result of a transaction that read a value of this size.
    fn read_of(bytes: usize) -> WriteResult {
        let found = Found {
            key: "key".into(),
            value: "v".repeat(bytes).as_str().into(),
            revision: 1,
            create_revision: 1,
            version: 1,
            expires_in_ms: None,
        };
        let results = vec![StepResult::Get(Some(found)), StepResult::Get(None)];
        WriteResult::Txn(Arc::new(TxnDone { succeeded: true, revision: 1, results }))
    }

    fn hash_of_all(requests: &Requests) -> StateHash {
        requests.iter().map(|(key, remembered)| remembered.computed_hash(key)).sum()
    }

    /// Asserts the invariants. `first_came` has the requests in the order in which they first came.
    fn check(requests: &Requests, first_came: &[usize]) {
        let kept: Vec<&Key> = requests.iter().map(|(key, _)| key).collect();
        assert_eq!((kept.len(), kept.len()), (requests.order.len(), requests.by_key.len()));
        let expected = first_came[first_came.len() - kept.len()..].iter().map(|number| request(*number).key);
        assert!(expected.eq(kept.iter().copied().cloned()), "the last requests are kept, in their order");
        let bytes: usize = requests.iter().map(|(key, remembered)| bytes_of(key, remembered)).sum();
        assert_eq!(requests.bytes, bytes, "the count of bytes has drifted");
        assert_eq!(requests.hash, hash_of_all(requests), "the hash has drifted");
        let within = kept.len() <= REQUESTS_REMEMBERED_MAX && bytes <= REQUESTS_REMEMBERED_BYTES_MAX;
        assert!(within || kept.len() == 1, "{} requests of {bytes} bytes", kept.len());
        let mut loaded = Requests::default();
        for (key, remembered) in requests.iter() {
            let request = RequestId { key: key.clone(), fingerprint: remembered.fingerprint };
            loaded.remember(&request, remembered.result.clone());
        }
        assert!(loaded == *requests, "requests that are loaded are others");
    }

    /// The last requests are remembered, up to the bound, in their order. A request that is continued keeps its place.
    ///
    /// Method: 100 more than the bound; every 5,000th time an earlier request comes again, with another result.
    #[test]
    fn bound_of_requests() {
        let mut requests = Requests::default();
        let mut first_came = Vec::new();
        for number in 0..REQUESTS_REMEMBERED_MAX + 100 {
            requests.remember(&request(number), deleted(0));
            first_came.push(number);
            if number % 5_000 == 4_999 {
                requests.remember(&request(number - 4_000), deleted(1));
            }
            if number % 25_000 == 0 || number > REQUESTS_REMEMBERED_MAX + 97 {
                check(&requests, &first_came);
            }
        }
        assert_eq!(requests.order.len(), REQUESTS_REMEMBERED_MAX);
        assert!(requests.get("request 99").is_none());
        assert_eq!(requests.get("request 100").map(|it| it.result.clone()), Some(deleted(0)));
        assert_eq!(requests.get("request 95999").map(|it| it.result.clone()), Some(deleted(1)));
    }

    /// Large results make the oldest requests be forgotten. The newest stays, whatever its size.
    ///
    /// Method: results of 0 to 20 MB, and one that exceeds the bound by itself; the invariants are checked after each.
    #[test]
    fn bound_of_bytes() {
        let large = read_of(20_000_000);
        let mut requests = Requests::default();
        let mut first_came = Vec::new();
        for number in 0..60 {
            let result = match number % 4 {
                0 => large.clone(),
                1 => read_of(number * 1000),
                2 if number == 50 => read_of(REQUESTS_REMEMBERED_BYTES_MAX),
                _ => deleted(number as u64),
            };
            requests.remember(&request(number), result);
            first_came.push(number);
            check(&requests, &first_came);
            if number == 50 {
                assert_eq!(requests.order.len(), 1);
            }
            // A request that comes again with a larger result keeps its place.
            if number % 7 == 6 {
                requests.remember(&request(number - 1), read_of(1_000_000));
                check(&requests, &first_came);
            }
        }
        assert!(requests.order.len() < 20);
    }

    /// A result that changes by itself in memory is noticed, even after the next step of the request.
    ///
    /// Method: change the result of an unfinished deletion underneath; the next step counts on from it.
    #[test]
    fn result_changed_in_memory() {
        let unfinished = |deleted| WriteResult::Delete { deleted, revision: 1, unfinished: Some(1) };
        let mut requests = Requests::default();
        requests.remember(&request(0), unfinished(1_000));
        requests.remember(&request(1), deleted(1));
        assert_eq!(requests.hash, hash_of_all(&requests));
        let remembered = Arc::make_mut(requests.by_key.get_mut("request 0").unwrap());
        remembered.result = unfinished(1_001);
        assert_ne!(requests.hash, hash_of_all(&requests), "the change is not noticed");
        requests.remember(&request(0), unfinished(2_001));
        assert_ne!(requests.hash, hash_of_all(&requests), "the change is hidden by the next step");
    }

    /// A request counts as many bytes as in all versions before: otherwise nodes would forget different requests.
    #[test]
    fn bytes_are_fixed() {
        let read = |value: &[u8]| {
            let key = "key".into();
            let value = value.into();
            let found = Found { key, value, revision: 1, create_revision: 1, version: 1, expires_in_ms: None };
            let results = vec![StepResult::Get(Some(found)), StepResult::Get(None)];
            WriteResult::Txn(Arc::new(TxnDone { succeeded: true, revision: 1, results }))
        };
        let rows = [
            (deleted(1), 263),
            (WriteResult::Txn(Arc::new(TxnDone { succeeded: false, revision: 1, results: vec![] })), 263),
            (read(b""), 522),
            (read("é".as_bytes()), 524),
            (read(b"\xff"), 526),
            (read(b"\xff\xff\xff"), 526),
            (read(b"\xff\xff\xff\xff"), 530),
        ];
        for (result, expected) in rows {
            assert_eq!(
                bytes_of("request", &Remembered::new("request", [1, 2], result.clone())),
                expected,
                "{result:?}"
            );
        }
    }

    /// Every result has the hash that it had in all versions before: nodes compare sums of them, and snapshots hold
    /// those.
    #[test]
    fn hashes_are_fixed() {
        let hash_of = |result| Remembered::new("request", [1, 2], result).hash;
        let hashes: Vec<StateHash> = results().into_iter().map(hash_of).collect();
        for (number, hash) in hashes.iter().enumerate() {
            assert!(!hashes[..number].contains(hash), "result {number} has the hash of another");
        }
        let sum: StateHash = hashes.into_iter().sum();
        assert_eq!(sum.to_string(), "c55a2b8ebf8fb2af4c513d9f39dd6eaf");
    }

    fn results() -> Vec<WriteResult> {
        let (put, touch) =
            (PutAnswer { revision: 1, version: 2 }, TouchAnswer { revision: 1, version: 2, expires_in_ms: None });
        let renewed = TouchAnswer { expires_in_ms: Some(0), ..touch };
        let delete = |deleted, unfinished| WriteResult::Delete { deleted, revision: 1, unfinished };
        let found = Found {
            key: "key".into(),
            value: "/w==".into(),
            revision: 1,
            create_revision: 1,
            version: 1,
            expires_in_ms: None,
        };
        let txn = |results: &[StepResult]| {
            WriteResult::Txn(Arc::new(TxnDone { succeeded: true, revision: 1, results: results.to_vec() }))
        };
        let get = |found: Found| txn(&[StepResult::Get(Some(found))]);
        let deleted = |deleted| StepResult::Delete(TxnDeleted { deleted });
        vec![
            WriteResult::Put(put),
            WriteResult::Put(PutAnswer { revision: 2, version: 1 }),
            WriteResult::Touch(touch),
            WriteResult::Touch(renewed),
            delete(2, None),
            delete(2, Some(0)),
            delete(2, Some(1)),
            WriteResult::ConditionFailed { revision: None },
            WriteResult::ConditionFailed { revision: Some(0) },
            WriteResult::NoSuchKey,
            WriteResult::AnswerTooLarge { bytes: 1 },
            WriteResult::RequestIdReused,
            txn(&[]),
            WriteResult::Txn(Arc::new(TxnDone { succeeded: false, revision: 1, results: Vec::new() })),
            txn(&[StepResult::Put(put)]),
            txn(&[deleted(1)]),
            txn(&[deleted(0), deleted(1)]),
            txn(&[deleted(1), deleted(0)]),
            txn(&[StepResult::Get(None)]),
            txn(&[StepResult::Touch(None)]),
            txn(&[StepResult::Touch(Some(touch))]),
            txn(&[StepResult::Touch(Some(renewed))]),
            get(found.clone()),
            get(Found { key: "other".into(), ..found.clone() }),
            get(Found { value: "other".into(), ..found.clone() }),
            get(Found { value: "".into(), ..found.clone() }),
            get(Found { value: (&[0xff_u8]).into(), ..found.clone() }),
            get(Found { revision: 2, ..found.clone() }),
            get(Found { create_revision: 2, ..found.clone() }),
            get(Found { version: 2, ..found.clone() }),
            get(Found { expires_in_ms: Some(0), ..found }),
        ]
    }
}
