//! Several operations at once, all or nothing.

use std::future::IntoFuture;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use reqwest::Method;

use super::error::ClientError;
use super::request::{Effect, Request, ttl_text};
use super::{ExampleClient, Written};
use crate::body::{Compare, EncodedValue, Relation, TxnAnswer, TxnKey, TxnOperation, TxnPut, TxnRequest, TxnTouch};

/// A transaction, which is sent when it is awaited.
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
    /// A transaction that does nothing yet.
    pub fn txn(&self) -> Txn<'_> {
        self.txn_of(TxnRequest::default())
    }

    /// A transaction that was put together elsewhere.
    pub fn txn_of(&self, request: TxnRequest) -> Txn<'_> {
        Txn { client: self, request, idempotency_key: None }
    }
}

impl Txn<'_> {
    /// Compares; all comparisons together decide.
    pub fn when(mut self, compare: Compare) -> Self {
        self.request.compare.push(compare);
        self
    }

    /// Done if all comparisons hold, or if there are none.
    pub fn then(mut self, operation: TxnOperation) -> Self {
        self.request.success.push(operation);
        self
    }

    /// Done if one of the comparisons does not hold.
    pub fn otherwise(mut self, operation: TxnOperation) -> Self {
        self.request.failure.push(operation);
        self
    }

    /// What tells this request from all others, instead of a random number. 1 to 128 printable ASCII characters.
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
    /// The key is there.
    pub fn present(key: impl Into<String>) -> Self {
        Compare { key: key.into(), exists: Some(true), ..Compare::default() }
    }

    /// The key is not there.
    pub fn missing(key: impl Into<String>) -> Self {
        Compare { key: key.into(), exists: Some(false), ..Compare::default() }
    }

    /// The key's value stands so to this one, by its bytes.
    pub fn value(key: impl Into<String>, relation: Relation, value: impl AsRef<[u8]>) -> Self {
        let EncodedValue { value, encoding } = EncodedValue::of(value.as_ref());
        Compare { value: Some(value), encoding, ..Self::number(key, relation) }
    }

    /// The revision of the key's last change stands so to this one; 0 if the key is not there.
    pub fn revision(key: impl Into<String>, relation: Relation, revision: u64) -> Self {
        Compare { revision: Some(revision), ..Self::number(key, relation) }
    }

    /// The revision at which the key came to be stands so to this one; 0 if the key is not there.
    pub fn create_revision(key: impl Into<String>, relation: Relation, revision: u64) -> Self {
        Compare { create_revision: Some(revision), ..Self::number(key, relation) }
    }

    /// The number of the key's changes stands so to this one; 0 if the key is not there.
    pub fn version(key: impl Into<String>, relation: Relation, version: u64) -> Self {
        Compare { version: Some(version), ..Self::number(key, relation) }
    }

    fn number(key: impl Into<String>, relation: Relation) -> Self {
        Compare { key: key.into(), op: Some(relation), ..Compare::default() }
    }
}

impl TxnOperation {
    /// Sets a key, for ever.
    pub fn put(key: impl Into<String>, value: impl AsRef<[u8]>) -> Self {
        let EncodedValue { value, encoding } = EncodedValue::of(value.as_ref());
        TxnOperation::Put(TxnPut { key: key.into(), value, encoding, ttl: None })
    }

    /// Sets a key that expires after this time.
    pub fn put_with_ttl(key: impl Into<String>, value: impl AsRef<[u8]>, ttl: Duration) -> Self {
        let EncodedValue { value, encoding } = EncodedValue::of(value.as_ref());
        TxnOperation::Put(TxnPut { key: key.into(), value, encoding, ttl: Some(ttl_text(ttl)) })
    }

    /// Removes a key, whether or not it is there.
    pub fn delete(key: impl Into<String>) -> Self {
        TxnOperation::Delete(TxnKey { key: key.into() })
    }

    /// Reads a key, as the operations before it left it.
    pub fn get(key: impl Into<String>) -> Self {
        TxnOperation::Get(TxnKey { key: key.into() })
    }

    /// Renews the time that a key has left.
    pub fn touch(key: impl Into<String>, ttl: Duration) -> Self {
        TxnOperation::Touch(TxnTouch { key: key.into(), ttl: Some(ttl_text(ttl)) })
    }
}
