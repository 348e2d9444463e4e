//! One key: get, put, delete, touch. And deletes by prefix.

use std::future::IntoFuture;
use std::marker::PhantomData;
use std::ops::Deref;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use reqwest::Method;
use serde::de::DeserializeOwned;

use super::ExampleClient;
use super::error::ClientError;
use super::request::{Effect, Request, path_of, target_of};
use crate::body::{DeleteAnswer, KeyValue, PutAnswer, TouchAnswer};
use crate::duration::ttl_text;

/// The result of a write that was applied. It dereferences to the node's response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written<Answer> {
    /// The node's response, with the revision.
    pub answer: Answer,
    /// Whether an earlier request with the same `Idempotency-Key` was applied instead, and this is its response.
    pub replayed: bool,
}

impl<Answer> Deref for Written<Answer> {
    type Target = Answer;

    fn deref(&self) -> &Answer {
        &self.answer
    }
}

/// A write to one key. Awaiting it sends it. If several conditions are set, the last one applies.
#[derive(Debug)]
#[must_use = "nothing is sent until it is awaited"]
pub struct KeyWrite<'a, Answer> {
    client: &'a ExampleClient,
    method: Method,
    key: String,
    action: &'static str,
    value: Bytes,
    ttl: Option<Duration>,
    condition: Option<(&'static str, String)>,
    idempotency_key: Option<String>,
    answer: PhantomData<fn() -> Answer>,
}

impl ExampleClient {
    /// Reads a key linearizably; `None` if it does not exist.
    pub async fn get(&self, key: &str) -> Result<Option<KeyValue>, ClientError> {
        self.get_with(key, &[]).await
    }

    /// Reads a key from the state of one node, which may be stale; `None` if it does not exist there.
    pub async fn get_stale(&self, key: &str) -> Result<Option<KeyValue>, ClientError> {
        self.get_with(key, &[("consistency", "stale".to_owned())]).await
    }

    async fn get_with(
        &self,
        key: &str,
        parameters: &[(&'static str, String)],
    ) -> Result<Option<KeyValue>, ClientError> {
        let target = target_of(&path_of(key, "")?, parameters)?;
        let request = Request::new(Method::GET, target, Effect::ReadsOnly, self.deadline);
        match self.ask(None, &request).await {
            Ok((found, _)) => Ok(Some(found)),
            Err(error) if error.code() == Some("key_not_found") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets a key. Without [`ttl`](KeyWrite::ttl) the key is permanent.
    ///
    /// ```no_run
    /// # async fn example(client: &raft_key_value::ExampleClient) -> Result<(), raft_key_value::ClientError> {
    /// use std::time::Duration;
    ///
    /// let put = client.put("lock", "me").if_missing().ttl(Duration::from_secs(30)).await?;
    /// println!("at revision {}", put.revision);
    /// # Ok(())
    /// # }
    /// ```
    pub fn put(&self, key: impl Into<String>, value: impl AsRef<[u8]>) -> KeyWrite<'_, PutAnswer> {
        let value = Bytes::copy_from_slice(value.as_ref());
        KeyWrite { value, ..self.write_key(Method::PUT, key.into(), "") }
    }

    /// Deletes a key. Without a condition this succeeds even if the key does not exist.
    pub fn delete(&self, key: impl Into<String>) -> KeyWrite<'_, DeleteAnswer> {
        self.write_key(Method::DELETE, key.into(), "")
    }

    /// Sets the TTL of a key, from 100 ms to ten years, without changing its value.
    ///
    /// # Errors
    ///
    /// With the code `key_not_found` if the key does not exist.
    pub fn touch(&self, key: impl Into<String>, ttl: Duration) -> KeyWrite<'_, TouchAnswer> {
        KeyWrite { ttl: Some(ttl), ..self.write_key(Method::POST, key.into(), "/touch") }
    }

    fn write_key<Answer>(&self, method: Method, key: String, action: &'static str) -> KeyWrite<'_, Answer> {
        KeyWrite {
            client: self,
            method,
            key,
            action,
            value: Bytes::new(),
            ttl: None,
            condition: None,
            idempotency_key: None,
            answer: PhantomData,
        }
    }

    /// Removes all keys with a prefix, which must not be empty. The response says how many.
    pub async fn delete_prefix(&self, prefix: &str) -> Result<Written<DeleteAnswer>, ClientError> {
        let target = target_of("/v1/kv", &[("prefix", prefix.to_owned())])?;
        self.ask_write(Request::new(Method::DELETE, target, Effect::Changes, self.deadline), None).await
    }
}

impl KeyWrite<'_, PutAnswer> {
    /// Expires the key after this duration, from 100 ms to ten years.
    pub fn ttl(self, ttl: Duration) -> Self {
        KeyWrite { ttl: Some(ttl), ..self }
    }
}

impl<Answer> KeyWrite<'_, Answer> {
    /// Applies the write only if the key does not exist. Otherwise the error has a
    /// [`condition_failed`](ClientError::condition_failed).
    pub fn if_missing(self) -> Self {
        KeyWrite { condition: Some(("if-none-match", "*".to_owned())), ..self }
    }

    /// Applies the write only if the key exists.
    pub fn if_present(self) -> Self {
        KeyWrite { condition: Some(("if-match", "*".to_owned())), ..self }
    }

    /// Applies the write only if the key was last changed at this revision.
    pub fn if_revision(self, revision: u64) -> Self {
        KeyWrite { condition: Some(("if-match", format!("\"{revision}\""))), ..self }
    }

    /// Sets the `Idempotency-Key`, 1 to 128 printable ASCII characters, instead of a random one. A program that may
    /// send the same request again after a restart needs this.
    pub fn idempotency_key(self, key: impl Into<String>) -> Self {
        KeyWrite { idempotency_key: Some(key.into()), ..self }
    }
}

impl<'a, Answer: DeserializeOwned + Send + 'a> IntoFuture for KeyWrite<'a, Answer> {
    type Output = Result<Written<Answer>, ClientError>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        async move {
            let parameters: Vec<_> = self.ttl.map(|ttl| ("ttl", ttl_text(ttl))).into_iter().collect();
            let target = target_of(&path_of(&self.key, self.action)?, &parameters)?;
            let mut request = Request::new(self.method, target, Effect::Changes, self.client.deadline);
            request.headers.extend(self.condition);
            request.body = self.value;
            self.client.ask_write(request, self.idempotency_key).await
        }
        .boxed()
    }
}
