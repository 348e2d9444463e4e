//! A request, and one attempt at one node.

use std::time::Duration;

use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::ClientError;
use super::retry::idempotency_key;
use super::{ExampleClient, Written};
use crate::body::ErrorAnswer;
use crate::config::{KEY_BYTES_MAX_LIMIT, RESPONSE_BYTES_MAX, check_idempotency_key};
use crate::connection::{is_unsent, read_response, reason_of};
use crate::error::Outcome;
use crate::headers::{CLUSTER, IDEMPOTENCY_KEY, REPLAYED};

/// Bytes that are percent-encoded in a parameter.
const PARAMETER: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Bytes that are percent-encoded in a path.
const PATH: &AsciiSet = &PARAMETER.remove(b'/');

/// Whether a lost response leaves the outcome unknown.
#[derive(Clone, Copy, Debug)]
pub(super) enum Effect {
    Changes,
    ReadsOnly,
}

/// A request that any node accepts.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub method: Method,
    /// The path and the parameters, encoded.
    pub target: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: Bytes,
    pub effect: Effect,
    /// Deadline of one attempt.
    pub deadline: Duration,
}

/// A node's response.
#[derive(Debug)]
pub(super) struct Answer {
    pub addr: String,
    pub status: u16,
    pub replayed: bool,
    pub body: Bytes,
}

impl Request {
    /// A request without a body.
    pub fn new(method: Method, target: impl Into<String>, effect: Effect, deadline: Duration) -> Self {
        Request { method, target: target.into(), headers: Vec::new(), body: Bytes::new(), effect, deadline }
    }

    /// Sets a JSON body.
    pub fn json(mut self, body: &impl Serialize) -> Result<Self, ClientError> {
        let body =
            serde_json::to_vec(body).map_err(|error| ClientError::InvalidRequest { reason: error.to_string() })?;
        self.body = body.into();
        Ok(self.header("content-type", "application/json"))
    }

    /// Adds a header.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Adds an `Idempotency-Key`, a random one unless `key` is given, so that all attempts count as one request.
    pub fn once(self, key: Option<String>) -> Result<Self, ClientError> {
        let key = key.map_or_else(idempotency_key, Ok)?;
        check_idempotency_key(&key).map_err(|reason| ClientError::InvalidRequest { reason })?;
        Ok(self.header(IDEMPOTENCY_KEY.as_str(), key))
    }

    /// The error of a request whose response was lost.
    pub fn lost(&self, addr: &str, reason: impl Into<String>) -> ClientError {
        let outcome = match self.effect {
            Effect::Changes => Outcome::Unknown,
            Effect::ReadsOnly => Outcome::NotApplied,
        };
        ClientError::AnswerLost { addr: addr.to_owned(), reason: reason.into(), outcome }
    }
}

/// A part of a path, encoded.
pub(super) fn encoded_part(text: &str) -> String {
    utf8_percent_encode(text, PARAMETER).to_string()
}

impl ExampleClient {
    /// Makes one attempt, and returns the response once its head has arrived.
    pub(super) async fn begin(&self, addr: &str, request: &Request) -> Result<reqwest::Response, ClientError> {
        let mut sent = self.http.request(request.method.clone(), format!("{}://{addr}{}", self.scheme, request.target));
        for (name, value) in &request.headers {
            sent = sent.header(*name, value);
        }
        if let Some(token) = &self.token {
            sent = sent.header(reqwest::header::AUTHORIZATION, token.authorization());
        }
        if let Some(cluster) = self.cluster.get() {
            // So that a node of another cluster rejects the request.
            sent = sent.header(CLUSTER.as_str(), cluster);
        }
        if !request.body.is_empty() || request.method == Method::PUT {
            sent = sent.body(request.body.clone());
        }
        let answer = sent.send().await.map_err(|error| {
            if error.is_builder() {
                ClientError::InvalidRequest { reason: reason_of(&error) }
            } else if is_unsent(&error) {
                ClientError::Unreachable { addr: addr.to_owned(), reason: reason_of(&error) }
            } else {
                request.lost(addr, reason_of(&error))
            }
        })?;
        self.check_cluster(addr, request, &answer)?;
        Ok(answer)
    }

    /// Rejects a response from another cluster than the first one that responded.
    fn check_cluster(&self, addr: &str, request: &Request, answer: &reqwest::Response) -> Result<(), ClientError> {
        let Some(found) = answer.headers().get(CLUSTER.as_str()).and_then(|value| value.to_str().ok()) else {
            return Ok(());
        };
        let expected = self.cluster.get_or_init(|| found.to_owned());
        if expected == found {
            return Ok(());
        }
        let is_unknown = answer.status() != 421 && matches!(request.effect, Effect::Changes);
        Err(ClientError::OtherCluster {
            addr: addr.to_owned(),
            found: found.to_owned(),
            expected: expected.clone(),
            outcome: if is_unknown { Outcome::Unknown } else { Outcome::NotApplied },
        })
    }

    /// Makes one attempt, and returns the whole response.
    pub(super) async fn exchange(&self, addr: &str, request: &Request) -> Result<Answer, ClientError> {
        let exchange = async {
            let answer = self.begin(addr, request).await?;
            let status = answer.status().as_u16();
            let replayed = answer.headers().contains_key(REPLAYED.as_str());
            let body = read_response(answer, RESPONSE_BYTES_MAX).await;
            let body = body.map_err(|error| request.lost(addr, error.to_string()))?;
            Ok(Answer { addr: addr.to_owned(), status, replayed, body })
        };
        let answer = tokio::time::timeout(request.deadline, exchange).await;
        answer.unwrap_or_else(|_| Err(request.lost(addr, "it timed out")))
    }

    /// Sends a request of the key-value API to `addr`, or to any node if that is `None`, with retries.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        addr: Option<&str>,
        request: &Request,
    ) -> Result<(T, Answer), ClientError> {
        self.with_retries(|node| async move {
            let answer = self.exchange(addr.unwrap_or(&node), request).await?;
            let decoded = decode(&answer, request)?;
            Ok((decoded, answer))
        })
        .await
    }

    /// Sends a write of the key-value API with an `Idempotency-Key`, with retries.
    pub(super) async fn ask_write<T: DeserializeOwned>(
        &self,
        request: Request,
        key: Option<String>,
    ) -> Result<Written<T>, ClientError> {
        let (answer, Answer { replayed, .. }) = self.ask(None, &request.once(key)?).await?;
        Ok(Written { answer, replayed })
    }
}

/// Decodes a response of the key-value API.
pub(super) fn decode<T: DeserializeOwned>(answer: &Answer, request: &Request) -> Result<T, ClientError> {
    let Answer { addr, status, body, .. } = answer;
    let invalid =
        |error: serde_json::Error| request.lost(addr, format!("it is invalid, with status {status}: {error}"));
    if matches!(*status, 200 | 202) {
        return serde_json::from_slice(body).map_err(invalid);
    }
    Err(rejection(addr, *status, body).unwrap_or_else(invalid))
}

/// Decodes an error of the key-value API.
pub(super) fn rejection(addr: &str, status: u16, body: &[u8]) -> Result<ClientError, serde_json::Error> {
    let ErrorAnswer { error } = serde_json::from_slice(body)?;
    Ok(ClientError::Rejected { addr: addr.to_owned(), status, error: Box::new(error) })
}

/// The path of a key, followed by `action`.
pub(super) fn path_of(key: &str, action: &str) -> Result<String, ClientError> {
    // HTTP libraries remove such parts from a path, however they are encoded.
    if key.is_empty() || key.split('/').any(|part| part == "." || part == "..") {
        let reason = "a key must not be empty, and no part of it between slashes may be `.` or `..`".to_owned();
        return Err(ClientError::InvalidRequest { reason });
    }
    check_length("key", key)?;
    Ok(format!("/v1/kv/{}{action}", utf8_percent_encode(key, PATH)))
}

/// A path with parameters.
pub(super) fn target_of(path: &str, parameters: &[(&'static str, String)]) -> Result<String, ClientError> {
    parameters.iter().try_for_each(|(name, value)| check_length(name, value))?;
    let pairs = parameters.iter().map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, PARAMETER)));
    let query = pairs.collect::<Vec<_>>().join("&");
    Ok(if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") })
}

/// Checks that a key, or a part of one, is not longer than any node allows. A much longer one does not fit into a
/// request.
fn check_length(name: &str, text: &str) -> Result<(), ClientError> {
    if text.len() <= KEY_BYTES_MAX_LIMIT {
        return Ok(());
    }
    let reason = format!("the {name} must be at most {KEY_BYTES_MAX_LIMIT} bytes, got {}", text.len());
    Err(ClientError::InvalidRequest { reason })
}
