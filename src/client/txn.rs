//! Transactions: several operations, all or nothing.

use std::future::IntoFuture;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use reqwest::Method;

use super::error::ClientError;
use super::request::{Effect, Request};
use super::{ExampleClient, Written};
use crate::body::{Compare, EncodedValue, Relation, TxnAnswer, TxnKey, TxnOperation, TxnPut, TxnRequest, TxnTouch};
use crate::duration::ttl_text;

/// A transaction. Awaiting it sends it.
///
/// ```no_run
/// # async fn example(client: &raft_key_value::ExampleClient) -> Result<(), raft_key_value::ClientError> {
/// use raft_key_value::client::{Compare, TxnOperation};
///
/// let answer = client
///     .txn()
///     .when(Compare::missing("color"))
///     .then(TxnOperation::put("color", "green"))
///     .otherwise(TxnOperation::get("color"))
///     .await?;
/// println!("{} at revision {}", answer.succeeded, answer.revision);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "nothing is sent until it is awaited"]
pub struct Txn<'a> {
    client: &'a ExampleClient,
    request: TxnRequest,
    idempotency_key: Option<String>,
}

impl ExampleClient {
    /// An empty transaction.
    pub fn txn(&self) -> Txn<'_> {
        self.txn_of(TxnRequest::default())
    }

    /// A transaction from a complete request.
    pub fn txn_of(&self, request: TxnRequest) -> Txn<'_> {
        Txn { client: self, request, idempotency_key: None }
    }
}

impl Txn<'_> {
    /// Adds a comparison.
    pub fn when(mut self, compare: Compare) -> Self {
        self.request.compare.push(compare);
        self
    }

    /// Adds an operation that is applied if all comparisons hold, or if there are none.
    pub fn then(mut self, operation: TxnOperation) -> Self {
        self.request.success.push(operation);
        self
    }

    /// Adds an operation that is applied if a comparison does not hold.
    pub fn otherwise(mut self, operation: TxnOperation) -> Self {
        self.request.failure.push(operation);
        self
    }

    /// Sets the `Idempotency-Key`, 1 to 128 printable ASCII characters, instead of a random one.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }
}

impl<'a> IntoFuture for Txn<'a> {
    type Output = Result<Written<TxnAnswer>, ClientError>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        async move {
            let request = Request::new(Method::POST, "/v1/txn", Effect::Changes, self.client.deadline);
            self.client.ask_write(request.json(&self.request)?, self.idempotency_key).await
        }
        .boxed()
    }
}

impl Compare {
    /// Holds if the key exists.
    pub fn present(key: impl Into<String>) -> Self {
        Compare { key: key.into(), exists: Some(true), ..Compare::default() }
    }

    /// Holds if the key does not exist.
    pub fn missing(key: impl Into<String>) -> Self {
        Compare { key: key.into(), exists: Some(false), ..Compare::default() }
    }

    /// Compares the value of the key, byte by byte.
    pub fn value(key: impl Into<String>, relation: Relation, value: impl AsRef<[u8]>) -> Self {
        let EncodedValue { value, encoding } = EncodedValue::of(value.as_ref());
        Compare { value: Some(value), encoding, ..Self::number(key, relation) }
    }

    /// Compares the revision of the key's last change, 0 if the key does not exist.
    pub fn revision(key: impl Into<String>, relation: Relation, revision: u64) -> Self {
        Compare { revision: Some(revision), ..Self::number(key, relation) }
    }

    /// Compares the revision at which the key was created, 0 if the key does not exist.
    pub fn create_revision(key: impl Into<String>, relation: Relation, revision: u64) -> Self {
        Compare { create_revision: Some(revision), ..Self::number(key, relation) }
    }

    /// Compares the number of changes since the key was created, 0 if the key does not exist.
    pub fn version(key: impl Into<String>, relation: Relation, version: u64) -> Self {
        Compare { version: Some(version), ..Self::number(key, relation) }
    }

    fn number(key: impl Into<String>, relation: Relation) -> Self {
        Compare { key: key.into(), op: Some(relation), ..Compare::default() }
    }
}

impl TxnOperation {
    /// Sets a key permanently.
    pub fn put(key: impl Into<String>, value: impl AsRef<[u8]>) -> Self {
        let EncodedValue { value, encoding } = EncodedValue::of(value.as_ref());
        TxnOperation::Put(TxnPut { key: key.into(), value, encoding, ttl: None })
    }

    /// Sets a key that expires after this duration, from 100 ms to ten years.
    pub fn put_with_ttl(key: impl Into<String>, value: impl AsRef<[u8]>, ttl: Duration) -> Self {
        let EncodedValue { value, encoding } = EncodedValue::of(value.as_ref());
        TxnOperation::Put(TxnPut { key: key.into(), value, encoding, ttl: Some(ttl_text(ttl)) })
    }

    /// Deletes a key, if it exists.
    pub fn delete(key: impl Into<String>) -> Self {
        TxnOperation::Delete(TxnKey { key: key.into() })
    }

    /// Reads a key, after the operations before this one.
    pub fn get(key: impl Into<String>) -> Self {
        TxnOperation::Get(TxnKey { key: key.into() })
    }

    /// Sets the TTL of a key, from 100 ms to ten years, without changing its value.
    pub fn touch(key: impl Into<String>, ttl: Duration) -> Self {
        TxnOperation::Touch(TxnTouch { key: key.into(), ttl: Some(ttl_text(ttl)) })
    }
}
