//! A client's HTTP/1.1 connection.

use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use harness::http::{Connection, Method, Request, StatusCode};
use harness::node::Envelope;
use harness::tls::TlsConnector;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Uri};
use http_body_util::Full;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::target::VALUE_BYTES;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Long enough for management calls: adding a learner waits until it has caught up.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
const QUOTED_BODY_BYTES_MAX: usize = 200;

/// Set while the nodes speak TLS.
static TLS: Mutex<Option<TlsConnector>> = Mutex::new(None);

/// Makes further connections use TLS, or not.
pub fn use_tls(connector: Option<TlsConnector>) {
    *TLS.lock().unwrap_or_else(PoisonError::into_inner) = connector;
}

fn tls() -> Option<TlsConnector> {
    TLS.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Set while the nodes require tokens.
static AUTHORIZATION_VALUE: Mutex<Option<HeaderValue>> = Mutex::new(None);

/// Makes further connections send this token, or none.
pub fn use_token(token: Option<&str>) -> Result<()> {
    let value = token.map(|token| HeaderValue::from_str(&format!("Bearer {token}"))).transpose()?;
    *AUTHORIZATION_VALUE.lock().unwrap_or_else(PoisonError::into_inner) = value;
    Ok(())
}

fn authorization() -> Option<HeaderValue> {
    AUTHORIZATION_VALUE.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

pub struct HttpConnection {
    connection: Connection,
    authorization: Option<HeaderValue>,
}

impl HttpConnection {
    pub async fn connect(address: SocketAddr) -> Result<Self> {
        let connection = Connection::connect(address, None, tls().as_ref(), CONNECT_TIMEOUT).await?;
        Ok(Self { connection, authorization: authorization() })
    }

    pub fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    /// `key` and `value` must need no escaping in JSON: the body is concatenated instead of serialized, to
    /// keep the load cheap.
    pub async fn write(&mut self, key: &str, value: &str) -> Result<()> {
        let mut body = String::with_capacity(key.len() + value.len() + 32);
        body.push_str(r#"{"Set":{"key":""#);
        body.push_str(key);
        body.push_str(r#"","value":""#);
        body.push_str(value);
        body.push_str(r#""}}"#);
        let uri = Uri::from_static("/write");
        self.request(Method::POST, uri, body.into()).await?;
        Ok(())
    }

    /// The value as encoded in the response; empty if the key does not exist.
    pub async fn consistent_read(&mut self, key: &str) -> Result<Bytes> {
        let mut body = String::with_capacity(key.len() + 2);
        body.push('"');
        body.push_str(key);
        body.push('"');
        let uri = Uri::from_static("/consistent_read");
        let answer = self.request(Method::POST, uri, body.into()).await?;
        let quoted = answer.slice(br#"{"Ok":"#.len()..answer.len() - 1);
        ensure!(
            quoted.len() >= 2 && quoted.starts_with(b"\"") && quoted.ends_with(b"\""),
            "unexpected response to a read: {}",
            quote(&answer)
        );
        Ok(quoted.slice(1..quoted.len() - 1))
    }

    /// `PUT /v1/kv/{key}`. With a number, the request carries an `Idempotency-Key`.
    pub async fn put(&mut self, key: &str, value: &'static str, once: Option<u128>) -> Result<()> {
        let uri = Uri::try_from(format!("/v1/kv/{key}"))?;
        let mut request = new_request(Method::PUT, uri, Bytes::from_static(value.as_bytes()));
        if let Some(number) = once {
            request.headers_mut().insert("idempotency-key", HeaderValue::from_str(&format!("{number:032x}"))?);
        }
        self.send(request).await.map(drop)
    }

    /// `GET /v1/kv/{key}` of an existing key.
    pub async fn get(&mut self, key: &str) -> Result<()> {
        let uri = Uri::try_from(format!("/v1/kv/{key}"))?;
        let answer = self.send(new_request(Method::GET, uri, Bytes::new())).await?;
        ensure!(answer.len() > VALUE_BYTES, "unexpected response to a get: {}", quote(&answer));
        Ok(())
    }

    /// `POST /v1/txn` that puts these keys.
    pub async fn batch(&mut self, keys: impl Iterator<Item = u64>, value: &str) -> Result<()> {
        let mut body = String::from(r#"{"success":["#);
        for number in keys {
            let comma = if body.ends_with('[') { "" } else { "," };
            write!(body, r#"{comma}{{"put":{{"key":"key-{number:08}","value":"{value}"}}}}"#)?;
        }
        body.push_str("]}");
        let uri = Uri::from_static("/v1/txn");
        self.send(new_request(Method::POST, uri, body.into())).await.map(drop)
    }

    /// Lists the keys that differ from this one only in the last three digits.
    pub async fn list(&mut self, key: &str) -> Result<()> {
        let prefix = &key[..key.len() - 3];
        let uri = Uri::try_from(format!("/v1/kv?prefix={prefix}"))?;
        let answer = self.send(new_request(Method::GET, uri, Bytes::new())).await?;
        ensure!(answer.len() > 100_000, "unexpected response to a list: {}", quote(&answer));
        Ok(())
    }

    /// A management call; returns the `Ok` field of the response.
    pub async fn call<Answer: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &'static str,
        body: impl Serialize,
    ) -> Result<Answer> {
        // `()` is an empty body, as `/init` and GET require.
        let body = match serde_json::to_string(&body)? {
            null if null == "null" => String::new(),
            json => json,
        };
        let request = self.request(method, Uri::from_static(path), body.into());
        let answer = tokio::time::timeout(CALL_TIMEOUT, request)
            .await
            .map_err(|_| anyhow!("no response within {CALL_TIMEOUT:?}"))
            .flatten()
            .with_context(|| format!("{path} failed"))?;
        let envelope: Envelope<Answer> = serde_json::from_slice(&answer)
            .with_context(|| format!("unexpected response to {path}: {}", quote(&answer)))?;
        Ok(envelope.ok)
    }

    async fn request(&mut self, method: Method, uri: Uri, body: Bytes) -> Result<Bytes> {
        let mut request = new_request(method, uri, body);
        request.headers_mut().insert(CONTENT_TYPE, const { HeaderValue::from_static("application/json") });
        let body = self.send(request).await?;
        ensure!(body.starts_with(br#"{"Ok":"#), "the node returned {}", quote(&body));
        Ok(body)
    }

    async fn send(&mut self, mut request: Request) -> Result<Bytes> {
        if let Some(value) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, value.clone());
        }
        let response = self.connection.send(request).await?;
        let status = response.status();
        let body = response.into_body();
        ensure!(status == StatusCode::OK, "the node returned {status}: {}", quote(&body));
        Ok(body)
    }
}

fn new_request(method: Method, uri: Uri, body: Bytes) -> Request {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    request
}

fn quote(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(QUOTED_BODY_BYTES_MAX)]).into_owned()
}
