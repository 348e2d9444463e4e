//! Requests to the key-value API.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use raft_key_value::NodeId;
use reqwest::{Body, Method};
use serde_json::{Value, json};

use super::cluster::TestCluster;
use super::eventually::{DEADLINE, eventually};
use super::http::Answer;

/// The path of a key.
pub fn path_of(key: &str) -> String {
    format!("/v1/kv/{}", utf8_percent_encode(key, NON_ALPHANUMERIC))
}

/// A value of 1 MiB that repeats a text of up to 16 bytes.
pub fn mib_of(text: &str) -> String {
    format!("{text:>16}").repeat(1 << 16)
}

impl TestCluster {
    /// Sends a request to a running node, and checks the headers that every response has.
    pub async fn v1(
        &self,
        id: NodeId,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        let answer = self.http().request(method.clone(), self.addr(id), path, headers, body).await;
        let answer = answer.unwrap_or_else(|error| panic!("{method} {path} on node {id}: {error:?}"));
        let node = answer.number("raft-node");
        assert!(self.has(node), "{method} {path} on node {id} names node {node}");
        assert!(answer.number("raft-term") > 0, "{answer:?}");
        assert!(!answer.header("raft-revision").is_empty(), "{answer:?}");
        answer
    }

    /// Sends a `GET` to a node.
    pub async fn get(&self, id: NodeId, path: &str) -> Answer {
        self.v1(id, Method::GET, path, &[], "").await
    }

    /// Sends a `PUT` to a node.
    pub async fn put(&self, id: NodeId, path: &str, value: impl Into<Body>) -> Answer {
        self.v1(id, Method::PUT, path, &[], value).await
    }

    /// Sends a `DELETE` to a node.
    pub async fn delete(&self, id: NodeId, path: &str) -> Answer {
        self.v1(id, Method::DELETE, path, &[], "").await
    }

    /// Sends a transaction to a node.
    pub async fn txn(&self, id: NodeId, body: &Value) -> Answer {
        self.v1(id, Method::POST, "/v1/txn", &[], body.to_string()).await
    }

    /// Deletes all keys.
    pub async fn delete_all(&self, id: NodeId) {
        self.delete(id, "/v1/kv?all").await.done();
    }

    /// Repeats a request until a leader responds. A 503 means that it was not applied, and a request with an
    /// `Idempotency-Key` is applied once, however often it is sent.
    pub async fn persistently(
        &self,
        id: NodeId,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let repeatable = method == Method::GET || headers.iter().any(|(name, _)| *name == "idempotency-key");
        eventually(&format!("{method} {path} on node {id}"), DEADLINE, async || {
            let sent = self.http().request(method.clone(), self.addr(id), path, headers, body.to_owned()).await;
            let answer = sent.map_err(|error| format!("{error:?}"))?;
            let again = answer.status == 503 || (repeatable && answer.status == 504);
            if again { Err(answer.text()) } else { Ok(answer) }
        })
        .await
    }

    /// Puts `count` small keys, `<prefix>000000` and so on, with as few transactions as possible; returns the last
    /// revision.
    pub async fn put_many(&self, id: NodeId, prefix: &str, count: usize) -> u64 {
        const OPERATIONS_MAX: usize = 128;
        let mut revision = 0;
        for first in (0..count).step_by(OPERATIONS_MAX) {
            let numbers = first..(first + OPERATIONS_MAX).min(count);
            let puts: Vec<Value> =
                numbers.map(|number| json!({"put": {"key": format!("{prefix}{number:06}"), "value": "v"}})).collect();
            revision = self.txn(id, &json!({"success": puts})).await.done()["revision"].as_u64().unwrap();
        }
        revision
    }

    /// All keys of a listing through a node, read linearizably from all its pages.
    pub async fn list_all(&self, id: NodeId, query: &str) -> Vec<Value> {
        let mut items: Vec<Value> = Vec::new();
        let mut after = String::new();
        let mut revision = String::new();
        loop {
            let mut page = self.get(id, &format!("/v1/kv?{query}{after}{revision}")).await.done();
            items.append(page["items"].as_array_mut().unwrap());
            let Some(next) = page["next"].as_str() else { return items };
            after = format!("&start_after={}", utf8_percent_encode(next, NON_ALPHANUMERIC));
            revision = format!("&revision={}", page["revision"]);
        }
    }

    /// Asserts that a key has the value of [`mib_of`] for a text.
    pub async fn assert_mib(&self, id: NodeId, key: &str, text: &str) {
        let value = self.get(id, &path_of(key)).await.done()["value"].as_str().unwrap().to_owned();
        let start: String = value.chars().take(16).collect();
        assert!(value == mib_of(text), "on node {id}: {} bytes that start with {start:?}, not {text:?}", value.len());
    }

    /// Waits until a node's own state has reached a revision.
    pub async fn reaches(&self, id: NodeId, revision: u64) {
        eventually(&format!("node {id} is at revision {revision}"), DEADLINE, async || {
            let sent = self.http().get(self.addr(id), "/v1/kv?limit=1&consistency=stale").await;
            let answer = sent.map_err(|error| format!("{error:?}"))?;
            if answer.status == 200 && answer.revision() >= revision { Ok(()) } else { Err(format!("{answer:?}")) }
        })
        .await;
    }
}

/// A pseudorandom number generator that returns the same numbers for the same seed (SplitMix64).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// A generator with a printed seed, so that a run can be repeated.
    pub fn new(name: &str) -> Self {
        let seed = match std::env::var("RKV_TEST_SEED") {
            Ok(seed) => seed.parse().unwrap(),
            Err(_) => u64::from(std::process::id()),
        };
        eprintln!("{name}: the seed is {seed}; RKV_TEST_SEED={seed} repeats this run");
        Random(seed)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        usize::try_from(mixed % end as u64).unwrap()
    }

    /// One of these elements.
    pub fn one_of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }
}
