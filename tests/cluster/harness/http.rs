//! Requests as any program would send them, and their answers as they came.

use std::time::Duration;

use raft_key_value::TypeConfig;
use reqwest::header::HeaderMap;
use reqwest::{Body, Method, Response};
use serde_json::Value;

/// `RaftMetrics` of a node.
pub type Metrics = openraft::metrics::RaftMetrics<TypeConfig>;

/// Longer than a node may take for a change of the membership.
const DEADLINE: Duration = Duration::from_secs(70);

/// Sends requests.
#[derive(Clone, Debug)]
pub struct Http {
    client: reqwest::Client,
    /// Connections for RPCs, as nodes have them: one that carried an RPC is for nothing else.
    rpc_client: reqwest::Client,
}

/// What a node answered.
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
    /// Connections of their own.
    pub fn new() -> Self {
        let client = || reqwest::Client::builder().no_proxy().timeout(DEADLINE).build().unwrap();
        Http { client: client(), rpc_client: client() }
    }

    /// `POST`, without any header that says what the body is.
    pub async fn post(&self, addr: &str, path: &str, body: impl Into<Body>) -> Result<Answer, reqwest::Error> {
        self.request(Method::POST, addr, path, &[], body).await
    }

    /// `POST`, asking not to be passed on to the leader.
    pub async fn post_here(&self, addr: &str, path: &str, body: impl Into<Body>) -> Result<Answer, reqwest::Error> {
        self.request(Method::POST, addr, path, &[("raft-forward", "no")], body).await
    }

    /// `GET`.
    pub async fn get(&self, addr: &str, path: &str) -> Result<Answer, reqwest::Error> {
        self.request(Method::GET, addr, path, &[], "").await
    }

    /// Any request.
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

    /// Any request; the body of its answer is still to be read.
    pub async fn open(
        &self,
        method: Method,
        addr: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Result<Response, reqwest::Error> {
        let client = if path.starts_with("/raft-") { &self.rpc_client } else { &self.client };
        let mut request = client.request(method, format!("http://{addr}{path}")).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await
    }
}

impl Answer {
    /// A header's value, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// A header's value as a number.
    #[track_caller]
    pub fn number(&self, name: &str) -> u64 {
        self.header(name).parse().unwrap_or_else(|_| panic!("{name} is no number: {self:?}"))
    }

    /// The store's revision, as each answer of `/v1` has it.
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

    /// Asserts that the answer is 200, and returns its body.
    #[track_caller]
    pub fn done(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// Asserts an error of `/v1` that changed nothing, by its status and code; returns its fields.
    #[track_caller]
    pub fn refused(&self, status: u16, code: &str) -> Value {
        let error = self.json()["error"].take();
        let found = (self.status, error["code"].as_str(), self.header("raft-outcome"), error["outcome"].as_str());
        assert_eq!(found, (status, Some(code), "not_applied", Some("not_applied")), "in {}", self.text());
        error
    }

    /// What is in `{"Ok":…}`, if the answer is a success.
    pub fn ok(&self) -> Result<Value, String> {
        let described = || format!("{} {}", self.status, self.text());
        if self.status != 200 {
            return Err(described());
        }
        let mut json: Value = serde_json::from_slice(&self.body).map_err(|_| described())?;
        json.get_mut("Ok").map(Value::take).ok_or_else(described)
    }

    /// The name and the fields in `{"Err":{"<name>":{…}}}`.
    pub fn error(&self) -> (String, Value) {
        let json = self.json();
        let error = json.get("Err").and_then(Value::as_object);
        let error = error.unwrap_or_else(|| panic!("not an error: {} {}", self.status, self.text()));
        assert_eq!(error.len(), 1, "an error has one name: {json}");
        let (name, fields) = error.iter().next().unwrap();
        (name.clone(), fields.clone())
    }

    /// Asserts an error's status, name and outcome; returns its fields.
    ///
    /// The outcome stands in the header, and in the body too, except in the one
    /// error whose body is older than the outcomes.
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
