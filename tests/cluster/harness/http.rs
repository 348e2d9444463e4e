//! HTTP requests and their responses, without any interpretation.

use std::time::Duration;

use raft_key_value::TypeConfig;
use raft_key_value::tls::no_tls;
use reqwest::header::HeaderMap;
use reqwest::{Body, Method, Response};
use rustls::ClientConfig;
use serde_json::Value;

/// The Raft metrics of a node.
pub type Metrics = openraft::metrics::RaftMetrics<TypeConfig>;

/// Longer than a node may take for a membership change.
const DEADLINE: Duration = Duration::from_secs(70);

/// An HTTP client.
#[derive(Clone, Debug)]
pub struct Http {
    client: reqwest::Client,
    /// Connections for RPCs. As between nodes, a connection that carried an RPC serves nothing else.
    rpc_client: reqwest::Client,
    scheme: &'static str,
    /// The token that requests have, unless they have the header `authorization`.
    token: Option<String>,
}

/// A client without TLS and proxies.
pub fn plain_client() -> reqwest::ClientBuilder {
    client_with(no_tls())
}

/// A client with these TLS settings.
fn client_with(tls: ClientConfig) -> reqwest::ClientBuilder {
    reqwest::Client::builder().no_proxy().tls_backend_preconfigured(tls)
}

/// A response.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Vec<u8>,
}

impl Http {
    /// A client with new connections.
    pub fn new() -> Self {
        let client = || plain_client().timeout(DEADLINE).build().unwrap();
        Http { client: client(), rpc_client: client(), scheme: "http", token: None }
    }

    /// The same over TLS with these settings.
    pub fn with_tls(tls: &ClientConfig) -> Self {
        let client = || client_with(tls.clone()).timeout(DEADLINE).build().unwrap();
        Http { client: client(), rpc_client: client(), scheme: "https", token: None }
    }

    /// The same, with a token in each request. A request with an empty header `authorization` has none.
    pub fn with_token(self, token: &str) -> Self {
        Http { token: Some(format!("Bearer {token}")), ..self }
    }

    /// Sends a `POST` without a `Content-Type`.
    pub async fn post(&self, addr: &str, path: &str, body: impl Into<Body>) -> Result<Answer, reqwest::Error> {
        self.request(Method::POST, addr, path, &[], body).await
    }

    /// Sends a `POST` that must not be forwarded to the leader.
    pub async fn post_here(&self, addr: &str, path: &str, body: impl Into<Body>) -> Result<Answer, reqwest::Error> {
        self.request(Method::POST, addr, path, &[("raft-forward", "no")], body).await
    }

    /// Sends a `GET`.
    pub async fn get(&self, addr: &str, path: &str) -> Result<Answer, reqwest::Error> {
        self.request(Method::GET, addr, path, &[], "").await
    }

    /// Sends a request, and reads the whole response.
    pub async fn request(
        &self,
        method: Method,
        addr: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Result<Answer, reqwest::Error> {
        let answer = self.open(method, addr, path, headers, body).await?;
        let status = answer.status().as_u16();
        let headers = answer.headers().clone();
        let body = answer.bytes().await?.into();
        Ok(Answer { status, headers, body })
    }

    /// Sends a request, and leaves the body of the response unread.
    pub async fn open(
        &self,
        method: Method,
        addr: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Result<Response, reqwest::Error> {
        let is_rpc = path.starts_with("/raft-") && path != "/raft-status";
        let client = if is_rpc { &self.rpc_client } else { &self.client };
        let mut request = client.request(method, format!("{}://{addr}{path}", self.scheme)).body(body);
        if let Some(token) = self.token.as_ref().filter(|_| headers.iter().all(|(name, _)| *name != "authorization")) {
            request = request.header("authorization", token);
        }
        for (name, value) in headers.iter().filter(|header| **header != ("authorization", "")) {
            request = request.header(*name, *value);
        }
        request.send().await
    }
}

impl Answer {
    /// The value of a header; empty if it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The value of a header as a number.
    #[track_caller]
    pub fn number(&self, name: &str) -> u64 {
        self.header(name).parse().unwrap_or_else(|_| panic!("{name} is not a number: {self:?}"))
    }

    /// The store's revision, which each response of `/v1` has.
    #[track_caller]
    pub fn revision(&self) -> u64 {
        self.number("raft-revision")
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}"))
    }

    /// Asserts that the status is 200, and returns the body.
    #[track_caller]
    pub fn done(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// Asserts a `/v1` error that changed nothing by its status and code, and returns its fields.
    #[track_caller]
    pub fn assert_rejected(&self, status: u16, code: &str) -> Value {
        let error = self.json()["error"].take();
        let found = (self.status, error["code"].as_str(), self.header("raft-outcome"), error["outcome"].as_str());
        assert_eq!(found, (status, Some(code), "not_applied", Some("not_applied")), "in {}", self.text());
        error
    }

    /// The content of `{"Ok":…}`, or an error with the whole response.
    pub fn ok(&self) -> Result<Value, String> {
        let described = || format!("{} {}", self.status, self.text());
        if self.status != 200 {
            return Err(described());
        }
        let mut json: Value = serde_json::from_slice(&self.body).map_err(|_| described())?;
        json.get_mut("Ok").map(Value::take).ok_or_else(described)
    }

    /// The name and the fields of `{"Err":{"<name>":{…}}}`.
    pub fn error(&self) -> (String, Value) {
        let json = self.json();
        let error = json.get("Err").and_then(Value::as_object);
        let error = error.unwrap_or_else(|| panic!("not an error: {} {}", self.status, self.text()));
        assert_eq!(error.len(), 1, "an error must have one name: {json}");
        let (name, fields) = error.iter().next().unwrap();
        (name.clone(), fields.clone())
    }

    /// Asserts an error by its status, name and outcome, and returns its fields.
    ///
    /// The outcome is in the header and in the body, except for the one error whose body is older than outcomes.
    #[track_caller]
    pub fn assert_error(&self, status: u16, name: &str, outcome: &str) -> Value {
        let (found_name, fields) = self.error();
        let found = (self.status, found_name.as_str(), self.header("raft-outcome"));
        assert_eq!(found, (status, name, outcome), "in {}", self.text());
        if name != "ForwardToLeader" {
            assert_eq!(fields["outcome"], outcome, "in {}", self.text());
        }
        assert_eq!(self.header("content-type"), "application/json", "in {}", self.text());
        fields
    }
}
