//! One client's HTTP/1.1 connection.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Management calls: a learner is added when it has caught up.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
const QUOTED_BODY_BYTES_MAX: usize = 200;

pub struct HttpConnection {
    requests: SendRequest<Full<Bytes>>,
    host: HeaderValue,
}

impl HttpConnection {
    pub async fn connect(address: SocketAddr) -> Result<Self> {
        let connecting = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let (requests, connection) = http1::handshake(TokioIo::new(stream)).await?;
            // Its errors reach the requests that were waiting for it.
            tokio::spawn(connection);
            anyhow::Ok(requests)
        };
        let requests = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_| anyhow!("timed out"))
            .flatten()
            .with_context(|| format!("cannot connect to {address}"))?;
        Ok(Self { requests, host: HeaderValue::from_str(&address.to_string())? })
    }

    pub fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }

    /// `key` and `value` must need no escaping in JSON: the body is put together
    /// rather than serialised, as the load is to cost as little as it can.
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

    /// The value as it stands in the answer; empty when there is no such key.
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
            "unexpected answer to a read: {}",
            quote(&answer)
        );
        Ok(quoted.slice(1..quoted.len() - 1))
    }

    /// A management call; gives what stands in the answer under `Ok`.
    pub async fn call<Answer: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &'static str,
        body: impl Serialize,
    ) -> Result<Answer> {
        #[derive(serde::Deserialize)]
        struct Envelope<Answer> {
            #[serde(rename = "Ok")]
            ok: Answer,
        }

        // `()` is an empty body: `/init` wants it so, and a GET has none.
        let body = match serde_json::to_string(&body)? {
            null if null == "null" => String::new(),
            json => json,
        };
        let request = self.request(method, Uri::from_static(path), body.into());
        let answer = tokio::time::timeout(CALL_TIMEOUT, request)
            .await
            .map_err(|_| anyhow!("no answer within {CALL_TIMEOUT:?}"))
            .flatten()
            .with_context(|| format!("{path} failed"))?;
        let envelope: Envelope<Answer> = serde_json::from_slice(&answer)
            .with_context(|| format!("unexpected answer to {path}: {}", quote(&answer)))?;
        Ok(envelope.ok)
    }

    async fn request(&mut self, method: Method, uri: Uri, body: Bytes) -> Result<Bytes> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        request.headers_mut().insert(HOST, self.host.clone());
        request.headers_mut().insert(CONTENT_TYPE, const { HeaderValue::from_static("application/json") });
        self.requests.ready().await?;
        let response = self.requests.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        ensure!(status == StatusCode::OK && body.starts_with(br#"{"Ok":"#), "answered {status}: {}", quote(&body));
        Ok(body)
    }
}

fn quote(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(QUOTED_BODY_BYTES_MAX)]).into_owned()
}
