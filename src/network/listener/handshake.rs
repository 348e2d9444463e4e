//! TLS handshakes, on the threads that serve clients.
//!
//! A node that speaks TLS speaks nothing else: a plain HTTP request gets an error that says so. A handshake costs as
//! much as many requests, and a client may begin one and never end it. So a thread makes one step of a handshake per
//! turn of its event loop, has a limited number of them under way, each for a limited time, and closes the oldest for
//! one more. Until its end a handshake counts as an idle connection, which is closed when connections run out.
//!
//! The client's first message costs little, and comes at once from a client that means it. So its arrival waits for no
//! turn, and handshakes that wait for it are counted apart from those that have it: thousands of clients that never send
//! it close each other's connections, and not those of others.
//!
//! Raft's thread makes no handshakes: connections of other nodes move there after theirs.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll};

use actix_web::ResponseError;
use rustls::pki_types::CertificateDer;
use rustls::server::Acceptor;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;

use super::connection_state::ConnectionState;
use super::slices::{Slice, Slices};
use super::stream::{Socket, Stream};
use crate::app::ExampleApp;
use crate::config::{
    DISCONNECT_DEADLINE, REJECTED_BYTES_READ_MAX, TLS_HANDSHAKE_DEADLINE, TLS_HANDSHAKE_STEPS_PER_TURN,
    TLS_HANDSHAKES_MAX,
};
use crate::error::ApiError;
use crate::network::reply::is_v1;
use crate::network::v1;
use crate::tls::{Tls, node_of, why_invalid};
use crate::types::NodeId;

/// The first byte of every TLS connection: the type of a handshake record.
const HANDSHAKE_RECORD: u8 = 22;
/// Bytes of a plain request that are examined to reject it.
const PLAIN_BYTES: usize = 512;

/// The handshakes of one thread.
pub struct Handshakes {
    /// Steps per turn, one each, in the order in which they became possible.
    pub steps: Rc<Slices>,
    /// Those that wait for the client's first message.
    begun: Stage,
    /// Those that have it.
    answered: Stage,
}

/// The handshakes that are at one stage.
#[derive(Default)]
struct Stage {
    /// Oldest first. Some have left the stage.
    places: RefCell<VecDeque<Weak<Place>>>,
    count: Cell<usize>,
}

/// A handshake at a stage. The connection lives longer, so its own count of owners does not tell when it leaves.
struct Place(Rc<ConnectionState>);

/// Counts a handshake until it is dropped.
struct AtStage<'a> {
    stage: &'a Stage,
    _place: Rc<Place>,
}

impl Drop for AtStage<'_> {
    fn drop(&mut self) {
        self.stage.count.set(self.stage.count.get() - 1);
    }
}

impl Stage {
    /// Adds a handshake. Closes the oldest one if they are too many.
    fn enter(&self, state: &Rc<ConnectionState>) -> AtStage<'_> {
        let mut places = self.places.borrow_mut();
        if places.len() >= 2 * TLS_HANDSHAKES_MAX {
            places.retain(|place| place.strong_count() > 0);
        }
        while self.count.get() >= TLS_HANDSHAKES_MAX
            && let Some(oldest) = places.pop_front()
        {
            if let Some(oldest) = oldest.upgrade() {
                oldest.0.leave_now();
                // It is still counted, until its task has run.
                break;
            }
        }
        let place = Rc::new(Place(state.clone()));
        places.push_back(Rc::downgrade(&place));
        self.count.set(self.count.get() + 1);
        AtStage { stage: self, _place: place }
    }
}

impl Handshakes {
    /// None.
    pub fn new() -> Self {
        let steps = Slices::with(TLS_HANDSHAKE_STEPS_PER_TURN);
        Handshakes { steps, begun: Stage::default(), answered: Stage::default() }
    }
}

/// What the other side of a TLS connection has shown of itself.
#[derive(Clone, Debug)]
pub struct Caller {
    tls: Arc<Tls>,
    /// The node, if it is one.
    pub node: Option<NodeId>,
    /// Empty if it showed no certificate.
    chain: Vec<CertificateDer<'static>>,
    /// The number of the TLS files with which the chain was checked.
    checked: Cell<u64>,
}

impl Caller {
    fn of(tls: Arc<Tls>, number: u64, chain: &[CertificateDer<'_>]) -> Self {
        let chain: Vec<_> = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        let node = chain.first().and_then(|certificate| node_of(certificate));
        Caller { tls, node, chain, checked: Cell::new(number) }
    }

    /// Whether it showed a certificate.
    pub fn has_certificate(&self) -> bool {
        !self.chain.is_empty()
    }

    /// Whether the node still trusts it, after its TLS files were reloaded.
    pub fn is_trusted(&self) -> bool {
        let number = self.tls.number();
        if self.checked.get() != number {
            if !self.tls.accepts(&self.chain) {
                return false;
            }
            self.checked.set(number);
        }
        true
    }
}

/// Ready once the first byte of a connection has arrived, which stays unread. Whether it begins TLS; `None` at the end.
pub fn poll_begins_tls(stream: &TcpStream, context: &mut Context<'_>) -> Poll<io::Result<Option<bool>>> {
    let mut first = [0; 1];
    let mut first = ReadBuf::new(&mut first);
    stream.poll_peek(context, &mut first).map_ok(|_| first.filled().first().map(|byte| *byte == HANDSHAKE_RECORD))
}

/// Makes the handshake on a connection of which the first bytes have arrived. `None` if it fails, or takes too long.
pub async fn shake_hands(
    app: &ExampleApp,
    tls: &Arc<Tls>,
    handshakes: &Handshakes,
    state: &Rc<ConnectionState>,
    stream: TcpStream,
) -> Option<(Stream, Caller)> {
    let meters = &state.observer().meters;
    let addr = stream.peer_addr().ok();
    // Before the settings are read: if they change meanwhile, the caller is checked again.
    let number = tls.number();
    let accepted = async {
        let begun = handshakes.begun.enter(state);
        let mut hello = LazyConfigAcceptor::new(Acceptor::default(), Socket::new(stream));
        let hello = match (&mut hello).await {
            Ok(hello) => hello,
            Err(error) => return Err((error, hello.take_io())),
        };
        drop(begun);
        let _answered = handshakes.answered.enter(state);
        let mut accept = hello.into_stream(tls.server()).into_fallible();
        let step = Slice::new(handshakes.steps.clone());
        let accepted = future::poll_fn(|context| {
            if step.poll_turn(context, 1).is_pending() {
                return Poll::Pending;
            }
            Pin::new(&mut accept).poll(context)
        });
        accepted.await.map_err(|(error, socket)| (error, Some(socket)))
    };
    state.is_in_handshake.set(true);
    let accepted = tokio::select! {
        biased;
        accepted = accepted => Some(accepted),
        () = future::poll_fn(|context| state.poll_closing(context, false)) => None,
        () = tokio::time::sleep(TLS_HANDSHAKE_DEADLINE) => None,
    };
    state.is_in_handshake.set(false);
    match accepted {
        Some(Ok(session)) => {
            meters.tls_handshakes.increment();
            let chain = session.get_ref().1.peer_certificates().unwrap_or_default();
            let caller = Caller::of(tls.clone(), number, chain);
            Some((Stream::Tls(Box::new(session)), caller))
        }
        Some(Err((error, socket))) => {
            meters.tls_handshakes_failed.increment();
            note_failure(app, addr, &error);
            if let Some(stream) = socket.and_then(Socket::into_inner) {
                end_with(stream, &[]).await;
            }
            None
        }
        None => {
            meters.tls_handshakes_failed.increment();
            None
        }
    }
}

/// Logs why a handshake failed, once in a while for each address and reason. A client that goes away is no news.
fn note_failure(app: &ExampleApp, addr: Option<SocketAddr>, error: &io::Error) {
    let found = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    if let Some(found) = found {
        app.peers.note_failed_handshake(addr, &why_invalid(found));
    }
}

/// Rejects a plain HTTP request, and ends its connection.
pub async fn reject_plain(stream: TcpStream) {
    let mut first = [0; PLAIN_BYTES];
    // At least one byte has arrived. More than the first line is not needed.
    let length = stream.try_read(&mut first).unwrap_or_default();
    let bytes = rejection(&first[..length]);
    end_with(stream, &bytes).await;
}

/// The response to a plain HTTP request that begins with these bytes.
pub fn rejection(first: &[u8]) -> Vec<u8> {
    let target = first.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    let path = std::str::from_utf8(target).unwrap_or_default().split('?').next().unwrap_or_default();
    let error = ApiError::bad_request("tls_required", "this node speaks TLS: send the request to https:// instead");
    let response = if is_v1(path) { v1::error_answer(&error) } else { error.error_response() };
    let (head, body) = response.into_parts();
    let body = actix_http::body::MessageBody::try_into_bytes(body).unwrap_or_default();
    let mut bytes = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n".to_vec();
    for (name, value) in head.headers() {
        bytes.extend_from_slice(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    bytes.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

/// Sends the last bytes of a connection, and drops for a while what still arrives: otherwise the connection would be
/// reset, and the other side might not get them.
pub async fn end_with(mut stream: TcpStream, bytes: &[u8]) {
    let end = async {
        stream.write_all(bytes).await?;
        stream.shutdown().await?;
        let mut dropped = [0; 4096];
        let mut left = REJECTED_BYTES_READ_MAX;
        while left > 0 {
            match stream.read(&mut dropped).await? {
                0 => break,
                length => left = left.saturating_sub(length),
            }
        }
        io::Result::Ok(())
    };
    // It has failed in any case.
    let _ = tokio::time::timeout(DISCONNECT_DEADLINE, end).await;
}
