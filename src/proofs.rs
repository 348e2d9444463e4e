//! Proofs of the root token: how nodes without TLS tell each other from clients.
//!
//! A node that was started with the root token sends with each request to another node the header `Raft-Proof`:
//!
//! ```text
//! <purpose>/<sender>/<run>/<count>/<HMAC-SHA-256 in hexadecimal digits>
//! ```
//!
//! The key of the HMAC is derived from the root token. It covers the receiver's challenge (a random number that the
//! receiver drew), the fields before it, the method, the target, and the header that names the receiver:
//! `Raft-Envelope`, with the cluster, or `Raft-Forwarded-To`. So a captured request is of no use for another node, for
//! another cluster, for another route, or after a restart of the receiver. The receiver accepts each count of a run
//! once ([`Window`]), so it is of no use for the same node either.
//!
//! A node returns its challenge with each 401, and the sender repeats the request with a proof. It remembers the
//! challenge, so this happens once for each process of the receiver.
//!
//! Caveat: bodies are not covered, and responses are not authenticated. An attacker who can change the traffic
//! can replace the body behind a proof. Only TLS defends against that.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use actix_web::http::header::{HeaderMap, HeaderValue};
use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::config::{CHALLENGES_MAX, PROOF_RUNS_MAX, PROOF_WINDOW};
use crate::headers::{CHALLENGE, ENVELOPE, FORWARDED_TO, PROOF};
use crate::secret::Secret;
use crate::types::NodeId;

type Key = Hmac<Sha256>;

/// A random number of a receiver.
type Challenge = [u8; 16];

/// What a node asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Something of its own.
    Own,
    /// Something that a client asked it for, whose token the receiver must check.
    Forwarded,
}

impl Purpose {
    const fn as_str(self) -> &'static str {
        match self {
            Purpose::Own => "own",
            Purpose::Forwarded => "forwarded",
        }
    }

    /// The purpose with this name.
    pub fn parse(text: &str) -> Option<Self> {
        [Purpose::Own, Purpose::Forwarded].into_iter().find(|purpose| purpose.as_str() == text)
    }
}

/// The proofs that a node makes and checks.
#[derive(Debug, Default)]
pub enum Proofs {
    /// None: the node can neither make nor check any.
    #[default]
    None,
    /// With the root token.
    ByRoot(Box<Root>),
    /// With TLS: the certificate of a connection proves that the other side is a node. The header `Raft-Proof` has only
    /// the purpose, and counts only on such connections.
    ByCertificate,
}

/// What a node needs for proofs with the root token.
pub struct Root {
    key: Key,
    own_id: NodeId,
    run: u64,
    count: AtomicU64,
    /// The challenges of other nodes, by their addresses.
    known: Mutex<HashMap<String, Challenge>>,
    own: Mutex<Own>,
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a root token")
    }
}

/// This node's challenge, and the proofs that were made for it.
struct Own {
    challenge: Challenge,
    used: HashMap<u64, Window>,
}

/// The part of a request that a proof covers.
struct Covered<'a> {
    purpose: &'a str,
    from: &'a str,
    run: &'a str,
    count: &'a str,
    method: &'a str,
    target: &'a str,
    /// The header that names the receiver.
    receiver: &'a [u8],
}

impl Covered<'_> {
    fn mac(&self, key: &Key, challenge: &Challenge) -> Key {
        let mut mac = key.clone();
        mac.update(challenge);
        let parts = [self.purpose, self.from, self.run, self.count, self.method, self.target];
        for part in parts.map(str::as_bytes).into_iter().chain([self.receiver]) {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        mac
    }
}

impl Proofs {
    /// The proofs of node `own_id` in a process that has the random number `run`.
    pub fn new(root: Option<&Secret>, own_id: NodeId, run: u64) -> Self {
        root.map_or(Proofs::None, |secret| {
            let keyed = |key: &[u8]| Key::new_from_slice(key).expect("an HMAC takes keys of any length");
            let derived = keyed(secret.reveal().as_bytes()).chain_update(b"raft-key-value: proofs between nodes, 1");
            let own = Own { challenge: random(), used: HashMap::new() };
            let key = keyed(&derived.finalize().into_bytes());
            let (count, known) = (AtomicU64::new(1), Mutex::default());
            Proofs::ByRoot(Box::new(Root { key, own_id, run, count, known, own: Mutex::new(own) }))
        })
    }

    /// Whether this node can tell other nodes from clients.
    pub fn can_tell_nodes(&self) -> bool {
        !matches!(self, Proofs::None)
    }

    fn root(&self) -> Option<&Root> {
        match self {
            Proofs::ByRoot(root) => Some(root),
            Proofs::None | Proofs::ByCertificate => None,
        }
    }

    /// Sends a request to another node, with a proof if this node can make one.
    ///
    /// # Errors
    ///
    /// Those of the request.
    pub async fn send(
        &self,
        request: reqwest::RequestBuilder,
        purpose: Purpose,
    ) -> Result<reqwest::Response, reqwest::Error> {
        let root = match self {
            Proofs::None => return request.send().await,
            Proofs::ByCertificate => return request.header(PROOF.as_str(), purpose.as_str()).send().await,
            Proofs::ByRoot(root) => root,
        };
        let (http, request) = request.build_split();
        let mut request = request?;
        // A body that is read while it is sent cannot be sent again.
        let again = request.try_clone();
        root.add_proof(&mut request, purpose);
        let response = http.execute(request).await?;
        match again {
            Some(mut again) if response.status().as_u16() == 401 && root.note_challenge(&again, &response) => {
                root.add_proof(&mut again, purpose);
                http.execute(again).await
            }
            _ => Ok(response),
        }
    }

    /// This node's challenge, for a response.
    pub fn challenge(&self) -> Option<HeaderValue> {
        let challenge = lock(&self.root()?.own).challenge;
        HeaderValue::from_str(&hex(&challenge)).ok()
    }

    /// Checks the proof of a request, which is used up thereby; returns its purpose if it is valid.
    pub fn check(&self, method: &str, target: &str, headers: &HeaderMap) -> Option<Purpose> {
        let root = self.root()?;
        let mut proofs = headers.get_all(&PROOF);
        let proof = proofs.next()?.to_str().ok()?;
        if proofs.next().is_some() {
            return None;
        }
        let mut parts = proof.split('/');
        let mut next = || parts.next();
        let (purpose, from, run, count, mac) = (next()?, next()?, next()?, next()?, next()?);
        let receiver = receiver_of(|name| headers.get(name).map(HeaderValue::as_bytes));
        let covered = Covered { purpose, from, run, count, method, target, receiver };
        let mut own = lock(&root.own);
        covered.mac(&root.key, &own.challenge).verify_slice(&unhex(mac)?).ok()?;
        let (run, count) = (u64::from_str_radix(run, 16).ok()?, count.parse().ok()?);
        if !own.used.contains_key(&run) && own.used.len() >= PROOF_RUNS_MAX {
            // Forgetting used proofs would let them be used again, unless they are of no use anyway.
            *own = Own { challenge: random(), used: HashMap::new() };
            return None;
        }
        let is_first = own.used.entry(run).or_default().take(count);
        is_first.then(|| Purpose::parse(purpose)).flatten()
    }
}

impl Root {
    fn add_proof(&self, request: &mut reqwest::Request, purpose: Purpose) {
        let Some(challenge) = lock(&self.known).get(&address_of(request)).copied() else { return };
        let (from, run) = (self.own_id.to_string(), format!("{:016x}", self.run));
        let count = self.count.fetch_add(1, Ordering::Relaxed).to_string();
        let receiver = receiver_of(|name| request.headers().get(name).map(reqwest::header::HeaderValue::as_bytes));
        let url = request.url();
        let target = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        let covered = Covered {
            purpose: purpose.as_str(),
            from: &from,
            run: &run,
            count: &count,
            method: request.method().as_str(),
            target: &target,
            receiver,
        };
        let mac = hex(&covered.mac(&self.key, &challenge).finalize().into_bytes());
        let proof = format!("{}/{from}/{run}/{count}/{mac}", purpose.as_str());
        if let Ok(mut proof) = reqwest::header::HeaderValue::from_str(&proof) {
            proof.set_sensitive(true);
            request.headers_mut().insert(PROOF.as_str(), proof);
        }
    }

    /// Remembers the challenge of a response; returns whether there is one.
    fn note_challenge(&self, request: &reqwest::Request, response: &reqwest::Response) -> bool {
        let challenge = response.headers().get(CHALLENGE.as_str()).and_then(|value| unhex(value.to_str().ok()?));
        let Some(challenge) = challenge.and_then(|bytes| Challenge::try_from(bytes).ok()) else { return false };
        let mut known = lock(&self.known);
        if known.len() >= CHALLENGES_MAX {
            // Those that are needed are learned again.
            known.clear();
        }
        known.insert(address_of(request), challenge);
        true
    }
}

#[cfg(any(test, fuzzing))]
impl Proofs {
    /// A proof with these fields, `PURPOSE/ID/RUN/COUNT`, for a request to this node, as another node would make it.
    pub fn seal(&self, fields: &str, method: &str, target: &str, headers: &HeaderMap) -> Option<String> {
        let root = self.root()?;
        let mut parts = fields.split('/');
        let mut next = || parts.next();
        let (purpose, from, run, count) = (next()?, next()?, next()?, next()?);
        let receiver = receiver_of(|name| headers.get(name).map(HeaderValue::as_bytes));
        let covered = Covered { purpose, from, run, count, method, target, receiver };
        let mac = hex(&covered.mac(&root.key, &lock(&root.own).challenge).finalize().into_bytes());
        Some(format!("{purpose}/{from}/{run}/{count}/{mac}"))
    }
}

/// The counts of one run that were used: the greatest, and which of those just below it.
///
/// Requests of several connections may overtake each other, so counts arrive out of order. One that is too far behind
/// is rejected, and the sender repeats the request with a new one.
#[derive(Debug)]
struct Window {
    greatest: u64,
    /// The bit of a count is at the count modulo [`PROOF_WINDOW`].
    used: [u64; PROOF_WINDOW / 64],
}

impl Default for Window {
    fn default() -> Self {
        Window { greatest: 0, used: [0; PROOF_WINDOW / 64] }
    }
}

impl Window {
    /// Uses a count; returns false if it was used before, or if that is not known any more.
    fn take(&mut self, count: u64) -> bool {
        const WINDOW: u64 = PROOF_WINDOW as u64;
        let place = |count: u64| ((count % WINDOW / 64) as usize, 1 << (count % 64));
        if count == 0 || self.greatest.saturating_sub(count) >= WINDOW {
            return false;
        }
        if count > self.greatest {
            // The counts in between have not been used.
            if count - self.greatest >= WINDOW {
                self.used = [0; PROOF_WINDOW / 64];
            } else {
                for skipped in self.greatest + 1..=count {
                    let (word, bit) = place(skipped);
                    self.used[word] &= !bit;
                }
            }
            self.greatest = count;
        }
        let (word, bit) = place(count);
        let is_new = self.used[word] & bit == 0;
        self.used[word] |= bit;
        is_new
    }
}

/// The header of a request that names its receiver; empty if it has none.
fn receiver_of<'a>(header: impl Fn(&str) -> Option<&'a [u8]>) -> &'a [u8] {
    header(ENVELOPE.as_str()).or_else(|| header(FORWARDED_TO.as_str())).unwrap_or_default()
}

fn address_of(request: &reqwest::Request) -> String {
    let url = request.url();
    format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or_default())
}

fn random() -> Challenge {
    let mut bytes = Challenge::default();
    getrandom::fill(&mut bytes).expect("without random numbers the node would not have started");
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let is_hex = digits.len().is_multiple_of(2) && digits.len() <= 64 && digits.iter().all(u8::is_ascii_hexdigit);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    if is_hex { digits.chunks(2).map(byte).collect() } else { None }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderName;

    use super::*;

    fn node(secret: &str, id: NodeId) -> Proofs {
        Proofs::new(Some(&Secret::new(secret).unwrap()), id, id)
    }

    /// A request of `sender` with a proof for `receiver`, as the receiver gets it.
    fn request(sender: &Proofs, receiver: &Proofs, envelope: &str) -> HeaderMap {
        let root = sender.root().unwrap();
        let http = crate::connection::connections();
        let mut request = http.post("http://h:1/raft-vote?x=1").header(ENVELOPE.as_str(), envelope).build().unwrap();
        lock(&root.known).insert("h:1".to_owned(), lock(&receiver.root().unwrap().own).challenge);
        root.add_proof(&mut request, Purpose::Own);
        let mut headers = HeaderMap::new();
        for (name, value) in request.headers() {
            let name = HeaderName::from_bytes(name.as_str().as_bytes()).unwrap();
            headers.insert(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    /// A proof is valid once, for the request and the receiver that it was made for, and only with the same root token.
    #[test]
    fn proofs_are_for_one_request() {
        let (one, two, other) = (node("secret", 1), node("secret", 2), node("another", 3));
        let check = |receiver: &Proofs, headers: &HeaderMap| receiver.check("POST", "/raft-vote?x=1", headers);
        let valid = request(&one, &two, "a");
        assert_eq!(check(&two, &valid), Some(Purpose::Own));
        assert_eq!(check(&two, &valid), None, "replayed");
        let valid = request(&one, &two, "a");
        assert_eq!(two.check("GET", "/raft-vote?x=1", &valid), None);
        assert_eq!(two.check("POST", "/raft-append", &valid), None);
        assert_eq!(check(&node("secret", 2), &valid), None, "after a restart of the receiver");
        assert_eq!(check(&other, &valid), None);
        for (header, value) in
            [(&ENVELOPE, "b"), (&PROOF, "own/1/0000000000000001/9/00"), (&PROOF, "own//"), (&PROOF, "")]
        {
            let mut changed = valid.clone();
            changed.insert(header.clone(), HeaderValue::from_str(value).unwrap());
            assert_eq!(check(&two, &changed), None, "{header}: {value}");
        }
        let mut forwarded = valid.clone();
        let text = valid.get(&PROOF).unwrap().to_str().unwrap().replace("own", "forwarded");
        forwarded.insert(PROOF.clone(), HeaderValue::from_str(&text).unwrap());
        assert_eq!(check(&two, &forwarded), None, "for another purpose");
        assert_eq!(check(&two, &valid), Some(Purpose::Own), "a rejected one was not used up");
        assert_eq!(check(&two, &request(&other, &two, "a")), None, "with another root token");
        assert_eq!(check(&Proofs::default(), &request(&one, &two, "a")), None);
    }

    /// Each count is accepted once, in any order within the window.
    #[test]
    fn windows() {
        let mut window = Window::default();
        let mut counts: Vec<u64> = (1..=3 * PROOF_WINDOW as u64).collect();
        counts.chunks_mut(PROOF_WINDOW / 2).for_each(<[u64]>::reverse);
        for count in &counts {
            assert!(window.take(*count), "{count}");
            assert!(!window.take(*count), "{count} again");
        }
        assert!(counts.iter().all(|count| !window.take(*count)));
        assert!(window.take(u64::MAX) && !window.take(u64::MAX) && !window.take(1) && !window.take(0));
        assert!(window.take(u64::MAX - 1), "it was skipped");
    }

    /// When too many processes have sent proofs, all former proofs become invalid at once, and none can be replayed.
    #[test]
    fn runs_are_bounded() {
        let receiver = node("secret", 1);
        let first = request(&node("secret", 2), &receiver, "a");
        assert!(receiver.check("POST", "/raft-vote?x=1", &first).is_some());
        for id in 3..2 * PROOF_RUNS_MAX as u64 {
            let _ = receiver.check("POST", "/raft-vote?x=1", &request(&node("secret", id), &receiver, "a"));
            assert!(receiver.check("POST", "/raft-vote?x=1", &first).is_none());
            assert!(lock(&receiver.root().unwrap().own).used.len() <= PROOF_RUNS_MAX);
        }
    }
}
