//! Hands requests to the HTTP library: only valid ones, and one at a time.
//!
//! The library decodes pipelined requests before it has responded to an earlier one. It then takes the method, the
//! version and whether the connection closes from the last request that it decoded, so that a GET after a HEAD gives
//! the HEAD a body. An [`Intake`] therefore follows the framing of requests, and holds the bytes after a request until
//! that request has its response.
//!
//! It checks each head ([`head`](super::head)). In place of a rejected head, it hands on a request of its own, for
//! which the [`admission`](super::admission) returns the error. So the responses to earlier requests come first, and
//! the error is written like any other response.
//!
//! A request that arrives in one read is checked in place and not copied.

use std::cell::{Cell, RefCell};
use std::mem;
use std::rc::Rc;
use std::task::{Context, Waker};

use actix_web::HttpRequest;
use bytes::{Buf, BytesMut};
use memchr::memchr;
use tokio::io::ReadBuf;

use super::chunks::Chunks;
use super::head::{self, Body, Head, LENGTH_OF_NO_BODY, Rejection, without_empty_lines};
use crate::config::{CHUNKED_BYTE_COST, HEAD_BYTES_MAX};
use crate::error::ApiError;

/// Largest buffer for held bytes that a connection keeps while it is empty, in bytes.
const KEPT_BYTES_MAX: usize = 16 << 10;

/// Follows the requests of one connection.
pub struct Intake {
    exchange: Rc<Exchange>,
    /// Longest body that a client may send, in bytes.
    body_bytes_max: usize,
    /// Bytes that were read and not handed on.
    held: BytesMut,
    /// How many of the held bytes, from the first, may be handed on.
    released: usize,
    at: At,
    /// Length of an incomplete head when it was last parsed or searched, in bytes.
    looked: usize,
    /// Length at which an incomplete head is parsed again even if no line has ended, in bytes.
    parse_at: usize,
    /// Empty lines dropped before the head, in bytes.
    dropped: usize,
}

/// Where in a request the next byte is.
enum At {
    /// In the head.
    Head,
    /// In a body with so many bytes left.
    Body(u64),
    /// In a chunked body.
    Chunks(Chunks),
    /// Behind the request.
    End,
    /// In a body with broken chunks: its end cannot be found.
    Broken,
}

/// The next step of a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Read.
    Read,
    /// Hand on held bytes of the current request.
    HandOn,
    /// Begin a held request.
    Begin,
    /// Wait until the current request has its response.
    Wait,
    /// Report the end of the input, as if the client had closed its half of the connection.
    End,
}

/// The cost of reading a body, in bytes of a body that is not chunked.
#[derive(Clone, Copy, Debug)]
pub struct BodyCost {
    a_byte: usize,
    bytes_max: usize,
}

impl BodyCost {
    /// The cost of `bytes` bytes, some of which may follow the body.
    pub fn of(self, bytes: usize) -> usize {
        bytes.min(self.bytes_max).saturating_mul(self.a_byte)
    }
}

/// State that an [`Intake`] shares with the [`admission`](super::admission).
#[derive(Debug, Default)]
pub struct Exchange {
    /// Whether a request was handed on and has no response yet.
    is_open: Cell<bool>,
    /// Whether the connection closes after the response.
    closes: Cell<bool>,
    /// The error for the next request, which stands for a rejected one.
    rejection: RefCell<Option<ApiError>>,
    /// Why the chunks of the body are broken.
    broken: Cell<Option<&'static str>>,
    /// Whether the client may still be sending bytes that are not read.
    has_unread: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Exchange {
    /// Takes the error for the current request, if it stands for a rejected one.
    pub fn take_rejection(&self) -> Option<ApiError> {
        self.rejection.take()
    }

    /// Notes that the request has its response; returns whether the connection closes after it.
    ///
    /// It closes after a response without a known length, too: such a response is the last one.
    pub fn end(&self, is_stream: bool) -> bool {
        if is_stream {
            self.closes.set(true);
        }
        let closes = self.closes.get();
        if !closes {
            self.is_open.set(false);
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
        closes
    }

    /// Why the chunks of a request's body are broken, if they are.
    pub fn broken_body(request: &HttpRequest) -> Option<&'static str> {
        request.conn_data::<Rc<Exchange>>().and_then(|exchange| exchange.broken.get())
    }

    /// Whether the client may still be sending bytes that are not read.
    pub fn has_unread(&self) -> bool {
        self.has_unread.get()
    }

    fn begin(&self, closes: bool) {
        self.is_open.set(true);
        self.closes.set(closes);
    }

    fn give_up(&self) {
        self.closes.set(true);
        self.has_unread.set(true);
    }
}

impl Intake {
    /// The intake of a new connection. A client that announces a body longer than `body_bytes_max` gets no 100. Other
    /// nodes send longer bodies without waiting for one.
    pub fn new(exchange: Rc<Exchange>, body_bytes_max: usize) -> Self {
        let held = BytesMut::new();
        Intake { exchange, body_bytes_max, held, released: 0, at: At::Head, looked: 0, parse_at: 0, dropped: 0 }
    }

    /// Takes the first bytes of a connection, which were read to find its kind.
    pub fn read_ahead(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
        self.at = At::End;
    }

    /// The state shared with `admission`.
    pub fn exchange(&self) -> &Rc<Exchange> {
        &self.exchange
    }

    /// Returns the next step. After [`Next::Wait`] the task is woken once the request has its response.
    pub fn next(&mut self, context: &Context<'_>) -> Next {
        if self.released > 0 {
            return Next::HandOn;
        }
        match self.at {
            At::Broken => Next::End,
            At::End if self.held.is_empty() => Next::Read,
            At::End if self.exchange.is_open.get() => {
                *self.exchange.waker.borrow_mut() = Some(context.waker().clone());
                Next::Wait
            }
            At::End => Next::Begin,
            At::Head | At::Body(_) | At::Chunks(_) => Next::Read,
        }
    }

    /// The cost of reading on in a body; `None` outside of bodies.
    pub fn body_cost(&self) -> Option<BodyCost> {
        match self.at {
            At::Body(left) => Some(BodyCost { a_byte: 1, bytes_max: usize::try_from(left).unwrap_or(usize::MAX) }),
            At::Chunks(_) => Some(BodyCost { a_byte: CHUNKED_BYTE_COST, bytes_max: usize::MAX }),
            At::Head | At::End | At::Broken => None,
        }
    }

    /// Bytes that were read and not handed on.
    pub fn held(&self) -> &[u8] {
        &self.held
    }

    /// Whether an incomplete head is that of a HEAD request.
    pub fn is_at_head_request(&self) -> bool {
        matches!(self.at, At::Head) && without_empty_lines(&self.held).starts_with(b"HEAD ")
    }

    /// Takes the bytes read into `buffer` from `before` on, and leaves those that may be handed on.
    pub fn take(&mut self, buffer: &mut ReadBuf<'_>, before: usize) {
        if !self.held.is_empty() {
            self.held.extend_from_slice(&buffer.filled()[before..]);
            buffer.set_filled(before);
            self.hand_on(buffer);
            return;
        }
        let fresh = &mut buffer.filled_mut()[before..];
        let step = self.follow(fresh);
        self.held.extend_from_slice(&fresh[step.bytes..]);
        if let Some(instead) = step.instead {
            buffer.set_filled(before);
            self.put_first(&instead);
            self.hand_on(buffer);
        } else {
            buffer.set_filled(before + step.bytes);
        }
    }

    /// Hands on held bytes, as many as allowed and as fit into `buffer`.
    pub fn hand_on(&mut self, buffer: &mut ReadBuf<'_>) {
        if self.released == 0 {
            let mut held = mem::take(&mut self.held);
            if matches!(self.at, At::Head | At::End) {
                let empty = held.len() - without_empty_lines(&held).len();
                held.advance(empty);
                self.dropped += empty;
                self.looked = self.looked.saturating_sub(empty);
            }
            let step = self.follow(&mut held);
            self.held = held;
            match step.instead {
                Some(instead) => {
                    self.held.advance(step.bytes);
                    self.put_first(&instead);
                }
                None => self.released = step.bytes,
            }
        }
        let count = self.released.min(buffer.remaining());
        buffer.put_slice(&self.held[..count]);
        self.held.advance(count);
        self.released -= count;
        if self.held.is_empty() && self.held.capacity() > KEPT_BYTES_MAX {
            self.held = BytesMut::new();
        }
    }

    fn put_first(&mut self, instead: &[u8]) {
        let rest = mem::take(&mut self.held);
        self.held = BytesMut::with_capacity(instead.len() + rest.len());
        self.held.extend_from_slice(instead);
        self.held.extend_from_slice(&rest);
        self.released = instead.len();
    }

    /// Follows the framing through `bytes`, up to the end of a request.
    fn follow(&mut self, bytes: &mut [u8]) -> Step {
        let mut passed = 0;
        loop {
            let rest = &mut bytes[passed..];
            match &mut self.at {
                At::Head => match self.follow_head(rest) {
                    None => return Step { bytes: passed, instead: None },
                    Some(Step { bytes, instead: None }) => passed += bytes,
                    Some(instead) => return instead,
                },
                At::Body(_) | At::Chunks(_) if rest.is_empty() => return Step { bytes: passed, instead: None },
                At::Body(left) => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    *left -= count as u64;
                    passed += count;
                    if *left == 0 {
                        self.at = At::End;
                    }
                }
                At::Chunks(chunks) => match chunks.follow(rest) {
                    Ok(count) => {
                        passed += count;
                        if chunks.is_at_end() {
                            self.at = At::End;
                        }
                    }
                    Err(why) => {
                        self.exchange.broken.set(Some(why));
                        self.exchange.give_up();
                        self.at = At::Broken;
                    }
                },
                At::End if passed == 0 && !self.exchange.is_open.get() && !rest.is_empty() => self.at = At::Head,
                At::End | At::Broken => return Step { bytes: passed, instead: None },
            }
        }
    }

    /// Parses the head at the beginning of `bytes`; `None` if it is incomplete.
    fn follow_head(&mut self, bytes: &mut [u8]) -> Option<Step> {
        let length = bytes.len();
        let is_first = self.looked == 0;
        let is_too_long = length + self.dropped > HEAD_BYTES_MAX;
        // Parse again only when a line has ended or the length has doubled: small pieces must not
        // make parsing quadratic.
        if !is_first && !is_too_long && length < self.parse_at && memchr(b'\n', &bytes[self.looked..]).is_none() {
            self.looked = length;
            return None;
        }
        let parsed = head::parse(bytes, self.body_bytes_max);
        match parsed {
            Ok(None) if !is_too_long => {
                (self.looked, self.parse_at) = (length, 2 * length);
                return None;
            }
            _ => (self.looked, self.dropped) = (0, 0),
        }
        Some(match parsed {
            Ok(Some(head)) => self.begin(&head, bytes),
            Ok(None) => self.reject(Rejection::of_empty_lines(), length),
            Err(rejection) => self.reject(rejection, length),
        })
    }

    fn begin(&mut self, head: &Head, bytes: &[u8]) -> Step {
        self.exchange.begin(head.closes);
        self.at = match head.body {
            Body::Length(0) => At::End,
            Body::Length(length) => At::Body(length),
            Body::Chunked => At::Chunks(Chunks::default()),
        };
        let instead = head.needs_length.then(|| {
            // Before the empty line.
            let fields = &bytes[..head.bytes - 2];
            [fields, LENGTH_OF_NO_BODY, b"\r\n"].concat()
        });
        Step { bytes: head.bytes, instead }
    }

    /// Hands on a request for which `admission` returns the error. The connection closes after it.
    fn reject(&mut self, rejection: Rejection, length: usize) -> Step {
        let Rejection { error, is_head, is_http_1_0 } = rejection;
        *self.exchange.rejection.borrow_mut() = Some(error);
        self.exchange.begin(true);
        self.exchange.give_up();
        self.at = At::End;
        let (method, version) = (if is_head { "HEAD" } else { "GET" }, if is_http_1_0 { 0 } else { 1 });
        let instead = format!("{method} / HTTP/1.{version}\r\nhost:\r\nconnection: close\r\n\r\n");
        Step { bytes: length, instead: Some(instead.into()) }
    }
}

/// The result of following the framing.
struct Step {
    /// How many bytes were followed; they may be handed on.
    bytes: usize,
    /// Bytes to hand on instead.
    instead: Option<Vec<u8>>,
}

#[cfg(test)]
mod tests;
