//! Proofs of the root token: how nodes without TLS tell each other from clients.
//!
//! A node that was started with the root token sends with each request to another node the header `Raft-Proof`:
//!
//! ```text
//! <purpose>/<sender>/<run>/<count>/<SHA-256 of the body>/<HMAC-SHA-256>
//! ```
//!
//! The key of the HMAC is derived from the root token. It covers the receiver's challenge (a random number that the
//! receiver drew), the fields before it, the method, the target, and the headers in [`COVERED`], which name the
//! receiver and its cluster. So a captured request is of no use for another node, for another cluster, for another
//! route, with another body, or after a restart of the receiver. The receiver accepts each count of a run once
//! ([`Window`]), so it is of no use for the same node either.
//!
//! The receiver checks the HMAC before it reads the body, and the hash once it has the body ([`BodyHash`]). Long bodies
//! are hashed on another thread, so that the thread that runs Raft does not wait.
//!
//! A node returns its challenge with each 401, and the sender repeats the request with a proof. It remembers the
//! challenge, so this happens once for each process of the receiver.
//!
//! Caveat: responses are not authenticated. An attacker who can change the traffic, or who responds at an address that a
//! node dials, can forge them, and a vote is a response. Only TLS defends against that.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::config::{CHALLENGES_MAX, HASHED_AT_ONCE_BYTES_MAX, PROOF_RUNS_MAX, PROOF_WINDOW};
use crate::headers::{CHALLENGE, ENVELOPE, FORWARDED, FORWARDED_TO, LOG_TIME, PROOF, RUN};
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

/// A request for which its sender has proved that it is a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proven {
    /// What it asks for.
    pub purpose: Purpose,
    /// The hash of the body that the proof is for; `None` with TLS, which protects the body.
    pub body: Option<BodyHash>,
}

/// The SHA-256 hash of a body.
#[derive(Clone, Copy, Debug)]
pub struct BodyHash([u8; 32]);

impl PartialEq for BodyHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for BodyHash {}

impl BodyHash {
    fn of(body: &[u8]) -> Self {
        BodyHash(Sha256::digest(body).into())
    }

    /// The hash of a body that was received.
    pub async fn of_bytes(body: &Bytes) -> Self {
        if body.len() > HASHED_AT_ONCE_BYTES_MAX {
            let shared = body.clone();
            if let Ok(hash) = tokio::task::spawn_blocking(move || Self::of(&shared)).await {
                return hash;
            }
        }
        Self::of(body)
    }

    /// The hash of a body that is to be sent.
    async fn of_request(request: &reqwest::Request) -> Self {
        let body = |request: &reqwest::Request| request.body().and_then(|body| body.as_bytes()).map(Self::of);
        let bytes = request.body().and_then(|body| body.as_bytes()).map_or(0, <[u8]>::len);
        if bytes > HASHED_AT_ONCE_BYTES_MAX
            && let Some(shared) = request.try_clone()
            && let Ok(Some(hash)) = tokio::task::spawn_blocking(move || body(&shared)).await
        {
            return hash;
        }
        body(request).unwrap_or_else(|| Self::of(b""))
    }

    /// The hash of a body that begins with `start` and continues with what `rest` reads. Blocks on it.
    ///
    /// # Errors
    ///
    /// `rest` cannot be read.
    pub fn of_parts(start: &[u8], mut rest: impl Read) -> io::Result<Self> {
        let mut hash = Sha256::new_with_prefix(start);
        let mut chunk = vec![0; HASHED_AT_ONCE_BYTES_MAX];
        loop {
            match rest.read(&mut chunk) {
                Ok(0) => return Ok(BodyHash(hash.finalize().into())),
                Ok(length) => hash.update(&chunk[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// The headers that a proof covers: they name the sender and the receiver, and have the time of the sender.
pub static COVERED: [&HeaderName; 5] = [&ENVELOPE, &FORWARDED, &FORWARDED_TO, &LOG_TIME, &RUN];

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
    /// The fields of each proof that name this node and its process.
    own_id: String,
    run: String,
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
    body: &'a str,
    method: &'a str,
    target: &'a str,
    /// Those of [`COVERED`] that the request has.
    headers: [Option<&'a [u8]>; COVERED.len()],
}

impl Covered<'_> {
    fn mac(&self, key: &Key, challenge: &Challenge) -> Key {
        let mut mac = key.clone();
        mac.update(challenge);
        let parts = [self.purpose, self.from, self.run, self.count, self.body, self.method, self.target];
        for part in parts.map(|part| Some(part.as_bytes())).into_iter().chain(self.headers) {
            mac.update(&part.map_or(u64::MAX, |part| part.len() as u64).to_le_bytes());
            mac.update(part.unwrap_or_default());
        }
        mac
    }
}

impl Proofs {
    /// The proofs of node `own_id` in a process that has the random number `run`.
    pub fn new(root: Option<&Secret>, own_id: NodeId, run: u64) -> Self {
        root.map_or(Proofs::None, |secret| {
            let keyed = |key: &[u8]| Key::new_from_slice(key).expect("an HMAC takes keys of any length");
            let derived = keyed(secret.reveal().as_bytes()).chain_update(b"raft-key-value: proofs between nodes, 2");
            let own = Own { challenge: random(), used: HashMap::new() };
            let key = keyed(&derived.finalize().into_bytes());
            let (own_id, run) = (own_id.to_string(), format!("{run:016x}"));
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
        self.send_hashed(request, purpose, None).await
    }

    /// The same with the hash of a body that is read while it is sent.
    ///
    /// # Errors
    ///
    /// Those of the request.
    pub async fn send_hashed(
        &self,
        request: reqwest::RequestBuilder,
        purpose: Purpose,
        body: Option<BodyHash>,
    ) -> Result<reqwest::Response, reqwest::Error> {
        let root = match self {
            Proofs::None => return request.send().await,
            Proofs::ByCertificate => return request.header(PROOF.as_str(), purpose.as_str()).send().await,
            Proofs::ByRoot(root) => root,
        };
        let (http, request) = request.build_split();
        let mut request = request?;
        let body = match body {
            Some(body) => body,
            None => BodyHash::of_request(&request).await,
        };
        // A body that is read while it is sent cannot be sent again.
        let again = request.try_clone();
        root.add_proof(&mut request, purpose, body);
        let response = http.execute(request).await?;
        match again {
            Some(mut again) if response.status().as_u16() == 401 && root.note_challenge(&again, &response) => {
                root.add_proof(&mut again, purpose, body);
                http.execute(again).await
            }
            _ => Ok(response),
        }
    }

    /// Whether the bodies of requests to other nodes must be hashed.
    pub fn cover_bodies(&self) -> bool {
        self.root().is_some()
    }

    /// This node's challenge, for a response.
    pub fn challenge(&self) -> Option<HeaderValue> {
        let challenge = lock(&self.root()?.own).challenge;
        HeaderValue::from_str(&hex(&challenge)).ok()
    }

    /// Checks the proof of a request, which is used up thereby; returns what it proves. The caller must compare the hash in
    /// that with the body.
    pub fn check(&self, method: &str, target: &str, headers: &HeaderMap) -> Option<Proven> {
        let root = self.root()?;
        let mut proofs = headers.get_all(&PROOF);
        let proof = proofs.next()?.to_str().ok()?;
        if proofs.next().is_some() {
            return None;
        }
        let mut parts = proof.split('/');
        let mut next = || parts.next();
        let (purpose, from, run, count) = (next()?, next()?, next()?, next()?);
        let (body, mac) = (next()?, next()?);
        let headers = COVERED.map(|name| headers.get(name).map(HeaderValue::as_bytes));
        let covered = Covered { purpose, from, run, count, body, method, target, headers };
        let mut own = lock(&root.own);
        covered.mac(&root.key, &own.challenge).verify_slice(&unhex(mac)?).ok()?;
        let (run, count) = (u64::from_str_radix(run, 16).ok()?, count.parse().ok()?);
        let body = BodyHash(unhex(body)?.try_into().ok()?);
        if !own.used.contains_key(&run) && own.used.len() >= PROOF_RUNS_MAX {
            // Forgetting used proofs would let them be used again, unless they are of no use anyway.
            *own = Own { challenge: random(), used: HashMap::new() };
            return None;
        }
        let is_first = own.used.entry(run).or_default().take(count);
        let purpose = Purpose::parse(purpose).filter(|_| is_first)?;
        Some(Proven { purpose, body: Some(body) })
    }
}

impl Root {
    fn add_proof(&self, request: &mut reqwest::Request, purpose: Purpose, body: BodyHash) {
        let Some(challenge) = lock(&self.known).get(&address_of(request)).copied() else { return };
        let (from, run) = (&self.own_id, &self.run);
        let count = self.count.fetch_add(1, Ordering::Relaxed).to_string();
        let body = hex(&body.0);
        let headers =
            COVERED.map(|name| request.headers().get(name.as_str()).map(reqwest::header::HeaderValue::as_bytes));
        let url = request.url();
        let target = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        let covered = Covered {
            purpose: purpose.as_str(),
            from,
            run,
            count: &count,
            body: &body,
            method: request.method().as_str(),
            target: &target,
            headers,
        };
        let mac = hex(&covered.mac(&self.key, &challenge).finalize().into_bytes());
        let proof = format!("{}/{from}/{run}/{count}/{body}/{mac}", purpose.as_str());
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
    /// A proof with these fields, `PURPOSE/ID/RUN/COUNT/BODY`, for a request to this node, as another node would make it.
    pub fn seal(&self, fields: &str, method: &str, target: &str, headers: &HeaderMap) -> Option<String> {
        let root = self.root()?;
        let mut parts = fields.split('/');
        let mut next = || parts.next();
        let (purpose, from, run, count, body) = (next()?, next()?, next()?, next()?, next()?);
        let headers = COVERED.map(|name| headers.get(name).map(HeaderValue::as_bytes));
        let covered = Covered { purpose, from, run, count, body, method, target, headers };
        let mac = hex(&covered.mac(&root.key, &lock(&root.own).challenge).finalize().into_bytes());
        Some(format!("{purpose}/{from}/{run}/{count}/{body}/{mac}"))
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
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        text.extend([byte >> 4, byte & 15].map(|digit| char::from(DIGITS[usize::from(digit)])));
    }
    text
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks();
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = |[high, low]: &[u8; 2]| Some((digit(*high)? << 4 | digit(*low)?) as u8);
    if rest.is_empty() && pairs.len() <= 32 { pairs.iter().map(byte).collect() } else { None }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = b"a body";

    fn node(secret: &str, id: NodeId) -> Proofs {
        Proofs::new(Some(&Secret::new(secret).unwrap()), id, id)
    }

    /// A request of `sender` with a proof for `receiver`, as the receiver gets it.
    fn request(sender: &Proofs, receiver: &Proofs, envelope: &str) -> HeaderMap {
        let root = sender.root().unwrap();
        let http = crate::connection::connections();
        let mut request = http.post("http://h:1/raft-vote?x=1").header(ENVELOPE.as_str(), envelope).build().unwrap();
        lock(&root.known).insert("h:1".to_owned(), lock(&receiver.root().unwrap().own).challenge);
        root.add_proof(&mut request, Purpose::Own, BodyHash::of(BODY));
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
        let own = Some(Proven { purpose: Purpose::Own, body: Some(BodyHash::of(BODY)) });
        assert_ne!(own, Some(Proven { purpose: Purpose::Own, body: Some(BodyHash::of(b"another body")) }));
        let valid = request(&one, &two, "a");
        assert_eq!(check(&two, &valid), own);
        assert_eq!(check(&two, &valid), None, "replayed");
        let valid = request(&one, &two, "a");
        assert_eq!(two.check("GET", "/raft-vote?x=1", &valid), None);
        assert_eq!(two.check("POST", "/raft-append", &valid), None);
        assert_eq!(check(&node("secret", 2), &valid), None, "after a restart of the receiver");
        assert_eq!(check(&other, &valid), None);
        for (header, value) in [
            (&ENVELOPE, "b"),
            (&RUN, "1"),
            (&LOG_TIME, "1"),
            (&PROOF, "own/1/0000000000000001/9/00"),
            (&PROOF, "own//"),
            (&PROOF, ""),
        ] {
            let mut changed = valid.clone();
            changed.insert(header.clone(), HeaderValue::from_str(value).unwrap());
            assert_eq!(check(&two, &changed), None, "{header}: {value}");
        }
        let mut forwarded = valid.clone();
        let text = valid.get(&PROOF).unwrap().to_str().unwrap().replace("own", "forwarded");
        forwarded.insert(PROOF.clone(), HeaderValue::from_str(&text).unwrap());
        assert_eq!(check(&two, &forwarded), None, "for another purpose");
        let mut altered = valid.clone();
        let text = valid.get(&PROOF).unwrap().to_str().unwrap();
        let text = text.replace(&hex(&BodyHash::of(BODY).0), &hex(&BodyHash::of(b"another body").0));
        altered.insert(PROOF.clone(), HeaderValue::from_str(&text).unwrap());
        assert_eq!(check(&two, &altered), None, "for another body");
        assert_eq!(check(&two, &valid), own, "a rejected one was not used up");
        assert_eq!(check(&two, &request(&other, &two, "a")), None, "with another root token");
        assert_eq!(check(&Proofs::default(), &request(&one, &two, "a")), None);
    }

    /// A body has the same hash however it is hashed: at once, on another thread, as a request, and in parts.
    #[tokio::test]
    async fn bodies() {
        for length in [0, 1, HASHED_AT_ONCE_BYTES_MAX, HASHED_AT_ONCE_BYTES_MAX + 1, 3 * HASHED_AT_ONCE_BYTES_MAX + 7] {
            let body: Bytes = (0..length).map(|place| place as u8).collect();
            let hash = BodyHash::of(&body);
            assert_eq!(BodyHash::of_bytes(&body).await, hash, "{length}");
            let request = crate::connection::connections().post("http://h:1/").body(body.clone()).build().unwrap();
            assert_eq!(BodyHash::of_request(&request).await, hash, "{length}");
            let (start, rest) = body.split_at(length / 3);
            assert_eq!(BodyHash::of_parts(start, rest).unwrap(), hash, "{length}");
        }
    }

    /// Bytes and their digits become each other, and anything else is no digits.
    #[test]
    fn digits() {
        assert_eq!(hex(&[0, 0x1f, 0xa0, 0xff]), "001fa0ff");
        let bytes: Vec<u8> = (0..32).map(|place| place * 7 + 3).collect();
        assert_eq!(unhex(&hex(&bytes)), Some(bytes));
        assert_eq!(unhex("A0fF").as_deref(), Some(&[0xa0, 0xff][..]));
        for wrong in ["0", "0g", "g0", "+1", "0x", "é", &"00".repeat(33)] {
            assert_eq!(unhex(wrong), None, "{wrong}");
        }
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
