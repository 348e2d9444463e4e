//! A connection that reads one request after another, each when the admission queue admits it.
//!
//! A request that is not HTTP, or whose head is too long or too slow, never reaches a handler: the HTTP library writes
//! an error with an empty body, and has no hook to change it. So the connection is wrapped, and replaces an empty error
//! by one that explains the fault. For all other responses this costs a comparison of the last four bytes.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use actix_http::Extensions;
use actix_web::HttpRequest;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::admission_queue::Kind;
use super::connection_state::ConnectionState;
use super::intake::{Exchange, Intake, Next};
use super::slices::{Slice, Slices};
use super::stream::Stream;
use crate::config::{
    DISCONNECT_DEADLINE, FIRST_READ_BYTES, REJECTED_BYTES_READ_MAX, REQUEST_HEAD_DEADLINE, SLICE_BYTES,
    SLICE_BYTES_MIN, WRITE_STALL_MAX,
};
use crate::error::{ApiError, Details, Interrupted};
use crate::headers::OUTCOME;

/// Whether the next bytes are written unchanged: a value that a client chose may look like an error of the HTTP
/// library.
#[derive(Clone, Debug, Default)]
pub struct AsItIs(Rc<Cell<bool>>);

impl AsItIs {
    /// Marks the connection of a request: the next bytes that are written are a client's value.
    pub fn set(request: &HttpRequest) {
        if let Some(AsItIs(as_it_is)) = request.conn_data() {
            as_it_is.set(true);
        }
    }
}

/// A connection that reads one request after another, each when it is admitted, and adds bodies to the HTTP library's
/// own errors.
pub struct Connection {
    as_it_is: AsItIs,
    state: Rc<ConnectionState>,
    stream: Stream,
    /// Decides which bytes the HTTP library gets, and when.
    intake: Intake,
    /// The kind of the first request.
    kind: Cell<Kind>,
    /// Slices of long bodies, to read and to write. Connections of other nodes need none.
    slices: Option<(Slice, Slice)>,
    /// Whether the rest of a body waits for a later turn.
    waits_for_turn: bool,
    /// The rest of the bytes that replace an empty error.
    replacement: Vec<u8>,
    /// Set while the client reads nothing. Completes when that has lasted too long.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Set while a rejected client may still be sending: until when its bytes are dropped, and how many more.
    lingering: Option<(Pin<Box<Sleep>>, usize)>,
}

impl Connection {
    /// A new connection. A client gets 100 for announced bodies of at most `body_bytes_max` bytes.
    pub fn new(stream: Stream, state: Rc<ConnectionState>, body_bytes_max: usize) -> Self {
        let (as_it_is, kind, replacement) = (AsItIs::default(), Cell::new(Kind::Own), Vec::new());
        let intake = Intake::new(Rc::new(Exchange::default()), body_bytes_max);
        Connection {
            as_it_is,
            state,
            stream,
            intake,
            kind,
            slices: None,
            waits_for_turn: false,
            replacement,
            stalled: None,
            lingering: None,
        }
    }

    /// Stores the state of the connection where its requests find it.
    pub fn share_with_requests(&self, extensions: &mut Extensions) {
        extensions.insert(self.as_it_is.clone());
        extensions.insert(self.state.clone());
        extensions.insert(self.intake.exchange().clone());
    }

    /// The state of the connection.
    pub fn state(&self) -> &Rc<ConnectionState> {
        &self.state
    }

    /// The stream and the bytes read from it, for another thread that serves the connection.
    pub fn into_parts(self) -> (Stream, Box<[u8]>) {
        (self.stream, self.intake.held().into())
    }

    /// Makes the connection read and write long bodies in slices.
    pub fn in_slices(mut self, slices: &Rc<Slices>) -> Self {
        self.slices = Some((Slice::new(slices.clone()), Slice::new(slices.clone())));
        self
    }

    /// Reads the first bytes of the connection, which tell its kind.
    pub fn poll_first(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Kind>> {
        let mut first = [0; FIRST_READ_BYTES];
        let mut first = ReadBuf::new(&mut first);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut first))?;
        self.begin_with(first.filled());
        // With TLS, a certificate tells nodes from clients. Without, requests that only nodes send do, for now.
        let is_client = self.state.caller().is_some_and(|caller| caller.node.is_none());
        if is_client && matches!(self.kind.get(), Kind::Rpc | Kind::Forwarded) {
            self.kind.set(Kind::Own);
        }
        Poll::Ready(Ok(self.kind.get()))
    }

    /// Takes the first bytes of the connection, which were already read.
    pub fn begin_with(&mut self, first: &[u8]) {
        self.kind.set(Kind::of(&first[..first.len().min(Kind::BYTES)]));
        self.intake.read_ahead(first);
    }

    /// The kind of the next request, of which something has arrived. It is the kind of the first request, because
    /// clients mostly repeat what they do. So a request for `/metrics` after one for data is queued.
    fn next_kind(&self, context: &mut Context<'_>) -> Kind {
        if self.is_given_up(context) { Kind::End } else { self.kind.get() }
    }

    /// Whether the client sends no more, as far as the runtime knew at its last poll. A client that closes half of a
    /// connection and waits gets no response if it is admitted late. Far more such clients have disconnected, and each
    /// would take up a place.
    fn is_given_up(&self, context: &mut Context<'_>) -> bool {
        self.stream.is_read_closed(context)
    }

    /// Writes as much as this turn allows.
    fn poll_slice(&mut self, context: &mut Context<'_>, mut bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.len() >= SLICE_BYTES_MIN
            && let Some((_, slice)) = &self.slices
        {
            // A connection takes a slice only if its socket has room.
            ready!(self.stream.poll_write_ready(context))?;
            bytes = &bytes[..bytes.len().min(SLICE_BYTES)];
            ready!(slice.poll_turn(context, bytes.len()));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    /// Writes, and gives up on a reader that reads nothing: the response takes memory.
    fn poll_stream(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = self.poll_slice(context, bytes);
        self.bound_stall(context, written)
    }

    /// Bounds how long `written` may be pending.
    fn bound_stall<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            self.state.is_writing.set(false);
            return written;
        }
        if self.state.poll_leaving(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        self.state.is_writing.set(true);
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_STALL_MAX)));
        stalled.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Whether nothing waits to be read or written.
    pub fn has_nothing_to_do(&self) -> bool {
        !self.is_writing() && self.stream.has_nothing_to_read()
    }

    /// Whether something waits to be written.
    fn is_writing(&self) -> bool {
        self.stalled.is_some() || !self.replacement.is_empty()
    }

    /// Reads if the connection is admitted, and passes on the bytes that the HTTP library may get.
    fn poll_read_in_turn(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let length_before = buffer.filled().len();
        self.waits_for_turn = false;
        loop {
            let next = self.intake.next(context);
            let cost = self.intake.body_cost();
            match next {
                Next::Wait => return Poll::Pending,
                Next::End => return Poll::Ready(Ok(())),
                Next::HandOn => {
                    self.intake.hand_on(buffer);
                    return Poll::Ready(Ok(()));
                }
                Next::Read => {
                    ready!(self.stream.poll_read_ready(context))?;
                    if let (Some((slice, _)), Some(cost)) = (&self.slices, cost) {
                        self.waits_for_turn = slice.poll_turn(context, cost.of(buffer.remaining())).is_pending();
                        if self.waits_for_turn {
                            return Poll::Pending;
                        }
                    }
                }
                Next::Begin => {}
            }
            ready!(self.state.poll_turn(context, |context| self.next_kind(context)));
            if self.state.is_late() && self.is_given_up(context) {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            if next == Next::Begin {
                self.state.note_read(self.intake.held());
                self.intake.hand_on(buffer);
            } else {
                let read = Pin::new(&mut self.stream).poll_read(context, buffer);
                if read.is_pending() {
                    self.state.note_nothing();
                }
                ready!(read)?;
                let read = &buffer.filled()[length_before..];
                if let (Some((slice, _)), Some(cost)) = (&self.slices, cost) {
                    slice.settle(cost.of(read.len() + buffer.remaining()), cost.of(read.len()));
                }
                self.state.note_read(read);
                if read.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                self.intake.take(buffer, length_before);
            }
            if buffer.filled().len() > length_before {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Drops the bytes that a rejected client still sends. Closing a socket with unread bytes resets the
    /// connection, and the client might not get the response.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some((deadline, left)) = &mut self.lingering else { return Poll::Ready(()) };
        let mut dropped = [0; 4096];
        while *left > 0 && deadline.as_mut().poll(context).is_pending() {
            let mut dropped = ReadBuf::new(&mut dropped);
            match ready!(Pin::new(&mut self.stream).poll_read(context, &mut dropped)) {
                Ok(()) if !dropped.filled().is_empty() => *left = left.saturating_sub(dropped.filled().len()),
                _ => return Poll::Ready(()),
            }
        }
        Poll::Ready(())
    }

    fn poll_replacement(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.replacement.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, &self.replacement))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.replacement.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = self.poll_read_in_turn(context, buffer);
        let is_writing = self.is_writing();
        // A connection that waits to be admitted has something to read, so it must not be closed.
        if read.is_pending() && !self.waits_for_turn && self.state.poll_closing(context, is_writing).is_ready() {
            // If the client seemed to have closed its half of the connection, the HTTP library would send the rest of a
            // response, and a watch has no end.
            if self.state.is_leaving() && self.state.is_responding() {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            if self.has_nothing_to_do() {
                // As if the client had closed the connection.
                return Poll::Ready(Ok(()));
            }
            if self.state.is_leaving() {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            self.state.stay();
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_replacement(context))?;
        let replacement =
            if self.as_it_is.0.get() { None } else { replace_empty_error(bytes, self.intake.is_at_head_request()) };
        match replacement {
            None => self.poll_stream(context, bytes),
            Some(replacement) => {
                self.replacement = replacement;
                Poll::Ready(Ok(bytes.len()))
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_replacement(context))?;
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            // It may hold encrypted bytes that the client does not read.
            Stream::Tls(session) => {
                let flushed = Pin::new(session).poll_flush(context);
                self.bound_stall(context, flushed)
            }
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_replacement(context))?;
        if self.lingering.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
            if self.intake.exchange().has_unread() {
                let deadline = Box::pin(tokio::time::sleep(DISCONNECT_DEADLINE));
                self.lingering = Some((deadline, REJECTED_BYTES_READ_MAX));
            }
        }
        self.poll_linger(context).map(Ok)
    }
}

/// Adds a body to an error of the HTTP library at the end of `bytes`.
///
/// Only those end with an empty line: every response of a handler has a body, and [`AsItIs`] marks the bodies that a
/// client chose.
fn replace_empty_error(bytes: &[u8], is_head_request: bool) -> Option<Vec<u8>> {
    if !bytes.ends_with(b"\r\n\r\n") {
        return None;
    }
    // The error comes last. Earlier responses on the connection may precede it.
    let start = bytes.windows(9).rposition(|window| window == b"HTTP/1.1 ")?;
    let (before, head) = bytes.split_at(start);
    let head = std::str::from_utf8(head).ok()?;
    if !head.contains("content-length: 0\r\n") {
        return None;
    }
    let error = match head.get(9..12)? {
        "400" => ApiError::bad_request("invalid_http", "this is not an HTTP/1.1 request"),
        "408" => ApiError::RequestTimeout(Details::not_applied(format!(
            "the head of the request did not arrive within {} seconds",
            REQUEST_HEAD_DEADLINE.as_secs()
        ))),
        // A service of the library failed, perhaps after a write was proposed.
        "500" => ApiError::Internal(Interrupted::unknown("this node failed to handle the request")),
        "431" => ApiError::HeadTooLarge(Details::not_applied("the head of the request is too long")),
        _ => return None,
    };
    let body = serde_json::to_string(&Err::<(), _>(&error)).ok()?;
    let outcome = format!("content-type: application/json\r\n{OUTCOME}: {}\r\n", error.outcome());
    let head = head.replace("content-length: 0\r\n", &format!("content-length: {}\r\n{outcome}", body.len()));
    let body = if is_head_request { "" } else { body.as_str() };
    Some([before, head.as_bytes(), body.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use std::future;
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpStream;

    use super::*;
    use crate::app::Room;
    use crate::network::listener::admission_queue::AdmissionQueue;
    use crate::network::listener::connection_limits::{Connections, Shares};
    use crate::network::observer::Observer;

    /// An empty error gets a body, after whatever was written before it.
    #[test]
    fn empty_errors_get_a_body() {
        let before = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ntrue";
        for (status, code) in [("400 Bad Request", "BadRequest"), ("408 Request Timeout", "RequestTimeout")] {
            for before in ["", before] {
                let written = format!("{before}HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                let replaced = String::from_utf8(replace_empty_error(written.as_bytes(), false).unwrap()).unwrap();
                assert!(replaced.starts_with(&format!("{before}HTTP/1.1 {status}\r\n")), "{replaced}");
                let (head, body) = replaced.rsplit_once("\r\n\r\n").unwrap();
                assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{replaced}");
                assert!(body.starts_with(&format!("{{\"Err\":{{\"{code}\":{{")), "{replaced}");
            }
        }
    }

    /// The first request tells the kind of a connection until the client sends no more.
    ///
    /// Method: one connection a row, whose first bytes are read; then its end.
    #[tokio::test]
    async fn what_comes_on_a_connection() {
        for (request, kind) in [
            ("PUT /v1/kv/a HTTP/1.1\r\n\r\n", Kind::Own),
            ("PUT /v1/kv/a HTTP/1.1\r\nraft-forwarded: x\r\n\r\n", Kind::Forwarded),
            ("GET /metrics HTTP/1.1\r\n\r\n", Kind::Metrics),
            ("POST /raft-append HTTP/1.1\r\n\r\n", Kind::Rpc),
            ("PUT /v1/kv/a HTTP/1.1\r\n", Kind::Own),
        ] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            let queue = AdmissionQueue::new(|| Room { free: 1, kept: 0 });
            let stream = Stream::Plain(stream);
            let mut connection =
                Connection::new(stream, Connections::new(Shares::of_clients(1), Observer::default()).open(&queue), 10);
            client.write_all(request.as_bytes()).await.unwrap();
            let found = future::poll_fn(|context| connection.poll_first(context)).await.unwrap();
            assert_eq!(found, kind, "{request:?}");
            assert_eq!(connection.intake.held(), request.as_bytes());
            let found = future::poll_fn(|context| Poll::Ready(connection.next_kind(context))).await;
            assert_eq!(found, kind, "the request after {request:?}");
            client.shutdown().await.unwrap();
            while !future::poll_fn(|context| Poll::Ready(connection.is_given_up(context))).await {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let found = future::poll_fn(|context| Poll::Ready(connection.next_kind(context))).await;
            assert_eq!(found, Kind::End, "the end, after {request:?}");
        }
    }

    /// All other responses are written unchanged.
    #[test]
    fn other_answers_are_left_alone() {
        let rows: [&[u8]; 5] = [
            b"",
            b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ntrue",
            b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 5\r\n\r\n",
            b"a value that ends with an empty line\r\n\r\n",
        ];
        for row in rows {
            assert_eq!(replace_empty_error(row, false), None, "{}", String::from_utf8_lossy(row));
        }
    }
}
