//! The requests that were done, so that one which comes again is not done again.
//!
//! Like [`super::history`] it is a part of the replicated state: which requests
//! are remembered depends on nothing but the requests themselves.

use std::sync::Arc;

use imbl::{HashMap, Vector};

use crate::body::TxnResult;
use crate::config::{REQUESTS_REMEMBERED_BYTES_MAX, REQUESTS_REMEMBERED_MAX};
use crate::operation::{RequestId, WriteResult};

/// A request that was done, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// A hash of what was asked for.
    pub fingerprint: [u64; 2],
    /// What became of it.
    pub result: WriteResult,
}

/// The last requests that had an `Idempotency-Key`.
///
/// Invariants: `order` has the keys of `by_key`, each once, in the order in which
/// they first came; there are at most [`REQUESTS_REMEMBERED_MAX`] of them, of at
/// most [`REQUESTS_REMEMBERED_BYTES_MAX`], except that the last one always stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    by_key: HashMap<Arc<str>, Arc<Remembered>>,
    order: Vector<Arc<str>>,
    bytes: usize,
}

impl Requests {
    /// What became of a request, if it is remembered.
    pub fn get(&self, key: &str) -> Option<&Arc<Remembered>> {
        self.by_key.get(key)
    }

    /// Remembers what became of a request, and forgets the oldest if there are too many.
    pub(super) fn remember(&mut self, request: &RequestId, result: WriteResult) {
        let remembered = Remembered { fingerprint: request.fingerprint, result };
        self.bytes += bytes_of(&request.key, &remembered);
        match self.by_key.insert(request.key.clone(), Arc::new(remembered)) {
            // It goes on, and keeps its place.
            Some(before) => self.bytes -= bytes_of(&request.key, &before),
            None => self.order.push_back(request.key.clone()),
        }
        while self.order.len() > 1
            && (self.order.len() > REQUESTS_REMEMBERED_MAX || self.bytes > REQUESTS_REMEMBERED_BYTES_MAX)
        {
            let Some(oldest) = self.order.pop_front() else { break };
            if let Some(forgotten) = self.by_key.remove(&oldest) {
                self.bytes -= bytes_of(&oldest, &forgotten);
            }
        }
    }

    /// All that are remembered, in the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Remembered>)> {
        self.order.iter().filter_map(|key| self.by_key.get(key).map(|remembered| (key, remembered)))
    }
}

/// About how much memory a remembered request takes, in bytes.
fn bytes_of(key: &str, remembered: &Remembered) -> usize {
    const REQUEST_BYTES: usize = 256;
    const RESULT_BYTES: usize = 128;
    let answer_bytes = match &remembered.result {
        WriteResult::Txn(answer) => answer.results.iter().map(|result| match result {
            TxnResult::Get(Some(found)) => RESULT_BYTES + found.key.len() + found.value.as_ref().map_or(0, String::len),
            _ => RESULT_BYTES,
        }),
        _ => return REQUEST_BYTES + key.len(),
    };
    REQUEST_BYTES + key.len() + answer_bytes.sum::<usize>()
}
