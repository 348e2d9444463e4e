//! Proofs of the root token, as nodes without TLS send them to each other.

use std::sync::atomic::{AtomicU64, Ordering};

use hmac::{Hmac, Mac};
use reqwest::Method;
use sha2::{Digest, Sha256};

use super::http::{Answer, Http};

type Key = Hmac<Sha256>;

/// The headers that a proof covers.
const COVERED: [&str; 5] = ["raft-envelope", "raft-forwarded", "raft-forwarded-to", "raft-log-time", "raft-run"];

/// A node accepts each count of a process once.
static COUNT: AtomicU64 = AtomicU64::new(1);

/// Sends requests to a node, with proofs of a root token.
pub struct Prover<'a> {
    key: Key,
    http: &'a Http,
    addr: &'a str,
    challenge: Vec<u8>,
}

fn keyed(key: &[u8]) -> Key {
    Key::new_from_slice(key).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl<'a> Prover<'a> {
    /// Asks a node for its challenge.
    pub async fn new(root: &str, http: &'a Http, addr: &'a str) -> Self {
        let derived = keyed(root.as_bytes()).chain_update(b"raft-key-value: proofs between nodes, 2");
        let asked = http.get(addr, "/raft-identity").await.unwrap();
        let challenge = asked.header("raft-challenge");
        assert_eq!((asked.status, challenge.len()), (401, 32), "{}", asked.text());
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        Prover {
            key: keyed(&derived.finalize().into_bytes()),
            http,
            addr,
            challenge: challenge.as_bytes().chunks(2).map(byte).collect(),
        }
    }

    /// The proof for a request, as node 9.
    pub fn proof(&self, method: &Method, target: &str, headers: &[(&str, &str)], body: &[u8]) -> String {
        let count = COUNT.fetch_add(1, Ordering::Relaxed).to_string();
        let body = hex(&Sha256::digest(body));
        let run = "00000000000000ff";
        let parts = ["own", "9", run, &count, &body, method.as_str(), target].map(Some);
        let header = |name: &str| headers.iter().find(|(found, _)| *found == name).map(|(_, value)| *value);
        let mut mac = self.key.clone();
        mac.update(&self.challenge);
        for part in parts.into_iter().chain(COVERED.map(header)) {
            mac.update(&part.map_or(u64::MAX, |part| part.len() as u64).to_le_bytes());
            mac.update(part.unwrap_or_default().as_bytes());
        }
        format!("own/9/{run}/{count}/{body}/{}", hex(&mac.finalize().into_bytes()))
    }

    /// Sends a request with the proof for a request with the body `proven`.
    pub async fn send(
        &self,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        proven: &[u8],
        body: &[u8],
    ) -> Answer {
        let proof = self.proof(&method, target, headers, proven);
        let headers = [headers, &[("raft-proof", &proof), ("authorization", "")]].concat();
        self.http.request(method, self.addr, target, &headers, body.to_vec()).await.unwrap()
    }
}
