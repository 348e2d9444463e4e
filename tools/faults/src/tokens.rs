//! Tokens: those of the clients, and others that are created and revoked while faults happen.
//!
//! Once a revocation is acknowledged, no node may serve a linearizable read or a write with the token.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fastrand::Rng;
use harness::http::{self, Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::cluster::Endpoints;
use crate::network::Host;
use crate::store::Client;

/// How long the first tokens may take: a new cluster must agree on its formats first.
const CREATION_DEADLINE: Duration = Duration::from_secs(30);
/// How long a request with a token may take.
const REQUEST_DEADLINE: Duration = Duration::from_secs(7);
/// How many revoked tokens are tried again after later faults.
const REVOKED_KEPT: usize = 8;
/// Longest pause between two steps.
const PAUSE_MAX: Duration = Duration::from_millis(300);
/// Longest time between two tokens.
const REST_MAX: Duration = Duration::from_millis(600);
/// Maximum number of violations that are kept; one is enough.
const WRONG_MAX: usize = 10;

/// Writes a new root token to a file in a directory; returns the token and the file.
pub fn make_root(directory: &Path, random: &mut Rng) -> Result<(String, PathBuf)> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let (token, path) = (secret(random), directory.join("root.token"));
    let file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&path);
    file.and_then(|mut file| writeln!(file, "{token}")).context("cannot write the root token")?;
    Ok((token, path))
}

fn secret(random: &mut Rng) -> String {
    format!("{:032x}{:032x}", random.u128(..), random.u128(..))
}

/// Creates a token through a node, retrying until it succeeds; returns its text.
pub async fn create(admin: &Client, node: SocketAddr, name: &str, role: &str) -> Result<String> {
    let deadline = Instant::now() + CREATION_DEADLINE;
    loop {
        match try_to_create(admin, node, &json!({"name": name, "role": role})).await {
            Ok(token) => return Ok(token),
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("cannot create the token `{name}`"));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn try_to_create(admin: &Client, node: SocketAddr, token: &Value) -> Result<String> {
    let answer = admin.http().send(node, http::json(Method::POST, "/v1/tokens", token), REQUEST_DEADLINE).await?;
    if answer.status() != StatusCode::OK {
        bail!("{}: {}", answer.status(), String::from_utf8_lossy(answer.body()));
    }
    let body: Value = serde_json::from_slice(answer.body())?;
    Ok(body["token"].as_str().context("the response has no `token`")?.to_owned())
}

/// What a lane has shown about tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub revoked: usize,
    /// Requests that were served with a token that was not revoked yet.
    pub served: usize,
    /// Requests that were rejected because the token was revoked.
    pub rejected: usize,
}

impl Counts {
    pub fn add(&mut self, other: Counts) {
        self.revoked += other.revoked;
        self.served += other.served;
        self.rejected += other.rejected;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { revoked, served, rejected } = self;
        write!(f, "tokens revoked: {revoked}; requests served before: {served}, and rejected afterwards: {rejected}")
    }
}

/// Creates tokens, uses them, revokes them, and tries them again.
#[derive(Debug)]
pub struct Revocations {
    stopped: Arc<AtomicBool>,
    task: JoinHandle<(Counts, Vec<String>)>,
}

impl Revocations {
    /// `admin` has a token of an administrator, and `anyone` has none.
    pub fn start(seed: u64, admin: &Client, anyone: &Client, endpoints: &Endpoints) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let revoker = Revoker {
            random: Rng::with_seed(seed),
            admin: admin.clone(),
            anyone: anyone.clone(),
            endpoints: endpoints.clone(),
            stopped: stopped.clone(),
            revoked: Vec::new(),
            counts: Counts::default(),
            wrong: Vec::new(),
        };
        Revocations { stopped, task: tokio::spawn(revoker.work()) }
    }

    /// Ends it after its current step; returns counts and violations.
    pub async fn stop(self) -> Result<(Counts, Vec<String>)> {
        self.stopped.store(true, Ordering::Relaxed);
        Ok(self.task.await?)
    }
}

struct Revoker {
    random: Rng,
    admin: Client,
    anyone: Client,
    endpoints: Endpoints,
    stopped: Arc<AtomicBool>,
    /// The last tokens that were revoked, with their names.
    revoked: Vec<(String, Client)>,
    counts: Counts,
    wrong: Vec<String>,
}

impl Revoker {
    async fn work(mut self) -> (Counts, Vec<String>) {
        for number in 0.. {
            if self.stopped.load(Ordering::Relaxed) {
                break;
            }
            self.one(format!("short-{number}")).await;
            if !self.revoked.is_empty() {
                let (name, client) = self.revoked[self.random.usize(..self.revoked.len())].clone();
                self.try_everywhere(&name, &client).await;
            }
            self.pause(REST_MAX).await;
        }
        (self.counts, self.wrong)
    }

    async fn pause(&mut self, max: Duration) {
        tokio::time::sleep(max.mul_f64(self.random.f64())).await;
    }

    fn hosts(&self) -> Vec<Host> {
        self.endpoints.read().expect("no thread panics while holding the lock").clone()
    }

    fn any_host(&mut self) -> Host {
        let hosts = self.hosts();
        hosts[self.random.usize(..hosts.len())].clone()
    }

    /// A token from its creation to its revocation.
    async fn one(&mut self, name: String) {
        let host = self.any_host();
        let created = try_to_create(&self.admin, host.http(), &json!({"name": name, "role": "write"})).await;
        // Without a response it may exist, but without its text it cannot be used.
        let Ok(token) = created else { return };
        let client = self.anyone.clone().with_token(&token);
        self.pause(PAUSE_MAX).await;
        let host = self.any_host();
        let used = client.http().send(host.http(), read_request(), REQUEST_DEADLINE).await;
        self.counts.served += usize::from(used.is_ok_and(|answer| is_served(answer.status())));
        if self.revoke(&name).await {
            self.counts.revoked += 1;
            self.try_everywhere(&name, &client).await;
            if self.revoked.len() == REVOKED_KEPT {
                self.revoked.remove(0);
            }
            self.revoked.push((name, client));
        }
    }

    /// Revokes a token, retrying until that is acknowledged.
    async fn revoke(&mut self, name: &str) -> bool {
        let mut is_repeated = false;
        while !self.stopped.load(Ordering::Relaxed) {
            let host = self.any_host();
            let request = http::request(Method::DELETE, &format!("/v1/tokens/{name}"), "");
            let answer = self.admin.http().send(host.http(), request, REQUEST_DEADLINE).await;
            match answer.map(|answer| answer.status()) {
                Ok(StatusCode::OK) => return true,
                // An earlier attempt was applied, and its response was lost.
                Ok(StatusCode::NOT_FOUND) if is_repeated => return true,
                Ok(StatusCode::NOT_FOUND) => {
                    self.wrong.push(format!("the token {name} does not exist, although its creation was acknowledged"));
                    return false;
                }
                _ => self.pause(PAUSE_MAX).await,
            }
            is_repeated = true;
        }
        false
    }

    /// Sends a linearizable read and a write with a revoked token to every node.
    async fn try_everywhere(&mut self, name: &str, client: &Client) {
        let hosts = self.hosts();
        let tried = hosts.iter().flat_map(|host| {
            let write = http::request(Method::PUT, &format!("/v1/kv/revoked/{name}"), "written after the revocation");
            [(host, "read", read_request()), (host, "write", write)]
        });
        let tried = tried.map(async |(host, what, request)| {
            (host.id, what, client.http().send(host.http(), request, REQUEST_DEADLINE).await)
        });
        for (node, what, answer) in futures_util::future::join_all(tried).await {
            // A node that is down, or without a leader, may respond in any other way.
            let Ok(answer) = answer else { continue };
            if is_served(answer.status()) && self.wrong.len() < WRONG_MAX {
                let (status, body) = (answer.status(), String::from_utf8_lossy(answer.body()).into_owned());
                self.wrong.push(format!(
                    "node {node} served a {what} with the token `{name}`, whose revocation was acknowledged: {status} {body}"
                ));
            }
            self.counts.rejected += usize::from(answer.status() == StatusCode::UNAUTHORIZED);
        }
    }
}

/// A linearizable read of a key.
fn read_request() -> http::Request {
    http::get("/v1/kv/key/1")
}

/// Whether the response tells something that only the holder of a token may know.
fn is_served(status: StatusCode) -> bool {
    matches!(status, StatusCode::OK | StatusCode::NOT_FOUND)
}
