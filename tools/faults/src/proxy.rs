//! A proxy between a node and its peers, which delays, repeats and replays requests.
//!
//! Packet rules cannot repeat a request, because TCP discards duplicates. Therefore peers reach each node
//! through a proxy on the node's host that understands HTTP. Only requests between nodes (`/raft-…`) are
//! repeated or replayed, which Raft must tolerate; a forwarded client request must not be executed twice.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use fastrand::Rng;
use harness::http::{self, Client, Method};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::network::{Host, Network};

/// Number of requests that are kept for a replay.
const KEPT_MAX: usize = 300;
/// Longest request that is kept or repeated, in bytes.
const KEPT_BYTES_MAX: usize = 256 << 10;

/// The misbehavior of a proxy.
#[derive(Clone, Copy, Debug, Default)]
pub struct Misbehavior {
    /// Maximum delay of each request and each response.
    pub delay_max: Duration,
    /// Percentage of requests that are sent twice at once.
    pub repeat_percent: u8,
    /// Percentage of requests after which an old one is sent again.
    pub replay_percent: u8,
    /// Percentage of responses that are lost after the request was executed.
    pub lose_answer_percent: u8,
}

/// What a proxy has done.
#[derive(Debug, Default)]
pub struct Deeds {
    pub delayed: AtomicU64,
    pub repeated: AtomicU64,
    pub replayed: AtomicU64,
    pub answers_lost: AtomicU64,
}

/// The proxy of a node.
#[derive(Debug)]
pub struct Proxy {
    /// Where peers reach the node.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    node: SocketAddr,
    client: Client<Body>,
    misbehavior: Mutex<Misbehavior>,
    kept: Mutex<VecDeque<(String, Bytes)>>,
    random: Mutex<Rng>,
    deeds: Deeds,
    /// Connections that are still open end with their next request.
    ended: AtomicBool,
}

type Body = UnsyncBoxBody<Bytes, hyper::Error>;

impl Proxy {
    /// Starts a proxy on the host, at an address of it.
    ///
    /// `random` determines its actions, in the order of the requests.
    pub fn start(network: Network, host: &Host, address: SocketAddr, random: Rng) -> Result<Self> {
        let listener = host.listen(address)?;
        listener.set_nonblocking(true).context("cannot prepare a listener")?;
        let listener = TcpListener::from_std(listener).context("cannot prepare a listener")?;
        let shared = Arc::new(Shared {
            node: host.http(),
            client: Client::new(Some(network.proxies().into()), Duration::from_secs(1)),
            misbehavior: Mutex::default(),
            kept: Mutex::default(),
            random: Mutex::new(random),
            deeds: Deeds::default(),
            ended: AtomicBool::default(),
        });
        let accepting = tokio::spawn(accept(shared.clone(), listener));
        Ok(Proxy { address, shared, accepting })
    }

    pub fn misbehave(&self, misbehavior: Misbehavior) {
        *self.shared.misbehavior.lock().expect("no thread panics while holding the lock") = misbehavior;
    }

    pub fn behave(&self) {
        self.misbehave(Misbehavior::default());
    }

    /// The requests that this node received from its peers, by path.
    pub fn kept(&self) -> Vec<(String, Bytes)> {
        self.shared.kept.lock().expect("no thread panics while holding the lock").iter().cloned().collect()
    }

    pub fn deeds(&self) -> &Deeds {
        &self.shared.deeds
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.accepting.abort();
    }
}

async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        let shared = shared.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let shared = shared.clone();
                async move { shared.serve(request).await }
            });
            // A lost response is an error, which closes the connection.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

impl Shared {
    async fn serve(&self, request: Request<Incoming>) -> Result<Response<Body>, std::io::Error> {
        if self.ended.load(Ordering::Relaxed) {
            return Err(std::io::Error::other("the proxy has ended"));
        }
        let misbehavior = *self.misbehavior.lock().expect("no thread panics while holding the lock");
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let between_nodes = path.starts_with("/raft-");
        self.delay(misbehavior).await;
        let (head, body) = request.into_parts();
        let length = hyper::body::Body::size_hint(&body).exact();
        let body = if length.is_some_and(|length| length <= KEPT_BYTES_MAX as u64) {
            let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
            if between_nodes {
                self.repeat(misbehavior, &path, &body);
                self.keep(&path, &body);
            }
            boxed(Full::new(body))
        } else {
            body.boxed_unsync()
        };
        // If the node is not running, or was killed meanwhile, its own connection would be reset.
        let answer = self.client.open(self.node, Request::from_parts(head, body)).await;
        let answer = answer.map_err(std::io::Error::other)?;
        self.delay(misbehavior).await;
        if between_nodes && self.chance(misbehavior.lose_answer_percent) {
            self.deeds.answers_lost.fetch_add(1, Ordering::Relaxed);
            return Err(std::io::Error::other("the response is lost"));
        }
        Ok(answer.map(BodyExt::boxed_unsync))
    }

    fn draw<T>(&self, of: impl FnOnce(&mut Rng) -> T) -> T {
        of(&mut self.random.lock().expect("no thread panics while holding the lock"))
    }

    fn chance(&self, percent: u8) -> bool {
        self.draw(|random| random.u8(..100)) < percent
    }

    async fn delay(&self, misbehavior: Misbehavior) {
        if !misbehavior.delay_max.is_zero() {
            self.deeds.delayed.fetch_add(1, Ordering::Relaxed);
            let part = self.draw(Rng::f64);
            tokio::time::sleep(misbehavior.delay_max.mul_f64(part)).await;
        }
    }

    /// Sends this request or an older one again, and discards the response.
    fn repeat(&self, misbehavior: Misbehavior, path: &str, body: &Bytes) {
        if self.chance(misbehavior.repeat_percent) {
            self.deeds.repeated.fetch_add(1, Ordering::Relaxed);
            self.send_again(path.to_owned(), body.clone());
        }
        if self.chance(misbehavior.replay_percent) {
            let kept = self.kept.lock().expect("no thread panics while holding the lock");
            let old = kept.get(self.draw(|random| random.usize(..kept.len().max(1)))).cloned();
            drop(kept);
            if let Some((path, body)) = old {
                self.deeds.replayed.fetch_add(1, Ordering::Relaxed);
                self.send_again(path, body);
            }
        }
    }

    fn send_again(&self, path: String, body: Bytes) {
        let (client, node) = (self.client.clone(), self.node);
        let request = http::request(Method::POST, &path, body).map(boxed);
        tokio::spawn(async move {
            let _ = client.send(node, request, Duration::from_secs(2)).await;
        });
    }

    fn keep(&self, path: &str, body: &Bytes) {
        let mut kept = self.kept.lock().expect("no thread panics while holding the lock");
        if kept.len() < KEPT_MAX {
            kept.push_back((path.to_owned(), body.clone()));
        } else if self.chance(10) {
            // One in ten, so that some of the kept requests are old.
            let place = self.draw(|random| random.usize(..KEPT_MAX));
            kept[place] = (path.to_owned(), body.clone());
        }
    }
}

fn boxed(body: Full<Bytes>) -> Body {
    body.map_err(|error: Infallible| match error {}).boxed_unsync()
}
