//! Clients on raw sockets, which send requests that no HTTP library would send and use little memory.
//!
//! Thousands of these clients run at once, so none has a buffer of its own: requests are shared [`Bytes`],
//! and all tasks of a thread read into one buffer.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use harness::http::connect_socket;
use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

/// The receive buffer that [`Client::connect_unread`] asks for. The kernel doubles it and has a minimum.
const SMALL_RECEIVE_BUFFER_BYTES: u32 = 4096;
const READ_BYTES: usize = 64 * 1024;
const HEAD_BYTES_MAX: usize = 64 * 1024;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// A request as it is sent: head and body.
#[derive(Clone)]
pub struct Request {
    pub head: Bytes,
    pub body: Bytes,
}

impl Request {
    pub fn get(target: &str) -> Self {
        Self::new("GET", target, &[], Bytes::new())
    }

    /// Adds a `Content-Length` unless the body is empty.
    pub fn new(method: &str, target: &str, headers: &[(&str, &str)], body: Bytes) -> Self {
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        head += "\r\n";
        Self { head: head.into(), body }
    }

    pub fn put(key: &str, value: Bytes) -> Self {
        Self::new("PUT", &format!("/v1/kv/{key}"), &[], value)
    }

    pub fn txn(body: impl Into<Bytes>) -> Self {
        Self::new("POST", "/v1/txn", &[], body.into())
    }
}

/// Outcomes of the requests of a load.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Connections opened.
    pub connected: u64,
    /// Connections that could not be opened.
    pub not_connected: u64,
    /// Requests of which at least some bytes were sent.
    pub sent: u64,
    pub by_status: BTreeMap<u16, u64>,
    /// Responses that leave the outcome of a write unknown.
    pub unknown: u64,
    /// Connections that ended before the response was complete, including watches that ended.
    pub closed: u64,
}

impl Counts {
    pub fn answered(&self) -> u64 {
        self.by_status.values().sum()
    }

    /// The number of responses with this status.
    pub fn of(&self, status: u16) -> u64 {
        self.by_status.get(&status).copied().unwrap_or_default()
    }
}

/// [`Counts`] that all clients of a load share.
#[derive(Clone, Default)]
pub struct Tally(Arc<Mutex<Counts>>);

impl Tally {
    pub fn counts(&self) -> Counts {
        self.with(|counts| counts.clone())
    }

    pub fn sent(&self, requests: u64) {
        self.with(|counts| counts.sent += requests);
    }

    pub fn closed(&self) {
        self.with(|counts| counts.closed += 1);
    }

    fn connected(&self, is_connected: bool) {
        self.with(|counts| if is_connected { counts.connected += 1 } else { counts.not_connected += 1 });
    }

    fn answered(&self, head: &Head) {
        self.with(|counts| {
            *counts.by_status.entry(head.status).or_default() += 1;
            counts.unknown += u64::from(head.is_unknown);
        });
    }

    fn with<T>(&self, change: impl FnOnce(&mut Counts) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}

/// One connection. It counts its own requests and outcomes.
pub struct Client {
    stream: TcpStream,
    tally: Tally,
    answer: Answer,
}

impl Client {
    pub async fn connect(address: SocketAddr, tally: &Tally) -> Result<Self> {
        Self::connect_with(address, tally, None).await
    }

    /// Connects a client that reads nothing, with receive buffers as small as the kernel allows.
    pub async fn connect_unread(address: SocketAddr, tally: &Tally) -> Result<Self> {
        Self::connect_with(address, tally, Some(SMALL_RECEIVE_BUFFER_BYTES)).await
    }

    async fn connect_with(address: SocketAddr, tally: &Tally, receive_buffer: Option<u32>) -> Result<Self> {
        let connected = connect_socket(address, None, receive_buffer).await;
        tally.connected(connected.is_ok());
        Ok(Self { stream: connected?, tally: tally.clone(), answer: Answer::default() })
    }

    /// Sends the request and reads the complete response.
    pub async fn call(&mut self, request: &Request) -> Result<u16> {
        self.send(request).await?;
        self.finish(|_| ()).await
    }

    pub async fn send(&mut self, request: &Request) -> Result<()> {
        self.tally.sent(1);
        self.send_bytes(&request.head).await?;
        self.send_bytes(&request.body).await
    }

    /// Sends bytes that do not count as a request. The node may respond, or close the connection, while they
    /// are sent. A send error is therefore ignored: the next read returns that response or the end of the
    /// connection.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        match self.stream.write_all(bytes).await {
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => Ok(()),
            result => result,
        }
    }

    /// Reads the complete response and passes its body on in pieces.
    pub async fn finish(&mut self, mut body: impl FnMut(&[u8])) -> Result<u16> {
        let status = loop {
            if let Some(status) = self.answer.take_complete() {
                break status;
            }
            self.read(&mut body).await?;
        };
        Ok(status)
    }

    /// Reads until the head of the response is complete. Body bytes that arrive with it are dropped.
    pub async fn head(&mut self) -> Result<u16> {
        loop {
            if let Some(head) = &self.answer.head {
                return Ok(head.status);
            }
            self.read(&mut |_| ()).await?;
        }
    }

    /// Reads some bytes and passes on those that belong to the body.
    pub async fn read(&mut self, body: &mut impl FnMut(&[u8])) -> Result<()> {
        self.read_at_most(READ_BYTES, body).await
    }

    /// Reads up to `limit` bytes, including the head.
    async fn read_at_most(&mut self, limit: usize, body: &mut impl FnMut(&[u8])) -> Result<()> {
        let read = loop {
            self.stream.readable().await?;
            let read = BUFFER.with_borrow_mut(|buffer| {
                let count = self.stream.try_read(&mut buffer[..limit])?;
                if count == 0 {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
                self.answer.take(&buffer[..count], &mut |head| self.tally.answered(head), body)
            });
            match read {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => break read,
            }
        };
        if read.is_err() {
            self.tally.closed();
        }
        read
    }

    /// Reads at least this many bytes of the body.
    pub async fn read_body(&mut self, bytes: usize) -> Result<()> {
        let mut left = bytes;
        while left > 0 {
            self.read(&mut |bytes| left = left.saturating_sub(bytes.len())).await?;
        }
        Ok(())
    }

    /// Waits until the node responds, closes the connection, or the deadline passes. Reads only the head of
    /// the response.
    pub async fn hold(mut self, deadline: Instant) {
        if let Ok(Ok(_)) = timeout_at(deadline, self.head()).await {
            tokio::time::sleep_until(deadline).await;
        }
    }

    /// Closes the connection with a reset.
    pub fn reset(self) -> Result<()> {
        self.stream.set_zero_linger()
    }

    /// Reads up to `bytes` bytes after each `pause`, until the node closes the connection.
    pub async fn sip(mut self, bytes: usize, pause: Duration) -> Result<()> {
        loop {
            tokio::time::sleep(pause).await;
            self.read_at_most(bytes.min(READ_BYTES), &mut |_| ()).await?;
        }
    }

    /// Keeps the connection open without reading from it.
    pub async fn ignore(self, deadline: Instant) {
        tokio::time::sleep_until(deadline).await;
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    is_unknown: bool,
    framing: Framing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunked,
}

/// A response while it arrives. Its body is not kept.
#[derive(Default)]
struct Answer {
    head: Option<Head>,
    /// The part of the head that has arrived.
    head_bytes: Vec<u8>,
    body: Body,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Body {
    #[default]
    Before,
    Length(u64),
    /// The part of a chunk's length that has arrived.
    ChunkLength(u64),
    /// Bytes of the chunk that have not arrived yet.
    Chunk(u64),
    /// Bytes of line ends that have not arrived yet, and whether that chunk was the last.
    ChunkEnd(u8, bool),
    Complete,
}

impl Answer {
    /// Returns the status if the response is complete. The next bytes then begin another response.
    fn take_complete(&mut self) -> Option<u16> {
        if self.body != Body::Complete {
            return None;
        }
        self.body = Body::Before;
        self.head.take().map(|head| head.status)
    }

    fn take(&mut self, mut bytes: &[u8], new_head: &mut impl FnMut(&Head), body: &mut impl FnMut(&[u8])) -> Result<()> {
        while !bytes.is_empty() {
            let taken = match self.body {
                Body::Before => {
                    let taken = self.take_head(bytes)?;
                    self.head.iter().for_each(&mut *new_head);
                    taken
                }
                Body::Length(left) | Body::Chunk(left) => {
                    let count = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    body(&bytes[..count]);
                    let left = left - count as u64;
                    self.body = match self.body {
                        Body::Length(_) if left == 0 => Body::Complete,
                        Body::Length(_) => Body::Length(left),
                        _ if left == 0 => Body::ChunkEnd(2, false),
                        _ => Body::Chunk(left),
                    };
                    count
                }
                Body::ChunkLength(length) => {
                    self.body = match bytes[0] {
                        b'\r' => Body::ChunkLength(length),
                        b'\n' if length == 0 => Body::ChunkEnd(2, true),
                        b'\n' => Body::Chunk(length),
                        digit => {
                            let digit = char::from(digit).to_digit(16).ok_or(ErrorKind::InvalidData)?;
                            Body::ChunkLength(length * 16 + u64::from(digit))
                        }
                    };
                    1
                }
                Body::ChunkEnd(left, is_last) => {
                    self.body = match (left, is_last) {
                        (1, false) => Body::ChunkLength(0),
                        (1, true) => Body::Complete,
                        (left, is_last) => Body::ChunkEnd(left - 1, is_last),
                    };
                    1
                }
                // No response is due: this is the response to a pipelined request.
                Body::Complete => {
                    self.take_complete();
                    0
                }
            };
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// Returns how many of the bytes belong to the head.
    fn take_head(&mut self, bytes: &[u8]) -> Result<usize> {
        const END: &[u8] = b"\r\n\r\n";
        let before = self.head_bytes.len();
        self.head_bytes.extend_from_slice(&bytes[..bytes.len().min(HEAD_BYTES_MAX)]);
        let from = before.saturating_sub(END.len() - 1);
        let Some(end) = self.head_bytes[from..].windows(END.len()).position(|window| window == END) else {
            if self.head_bytes.len() >= HEAD_BYTES_MAX {
                return Err(Error::new(ErrorKind::InvalidData, "the response's head is too long"));
            }
            return Ok(bytes.len());
        };
        let end = from + end + END.len();
        let head = Head::parse(&self.head_bytes[..end])?;
        self.head_bytes = Vec::new();
        self.body = match head.framing {
            Framing::Length(0) => Body::Complete,
            Framing::Length(length) => Body::Length(length),
            Framing::Chunked => Body::ChunkLength(0),
        };
        self.head = Some(head);
        Ok(end - before)
    }
}

impl Head {
    fn parse(bytes: &[u8]) -> Result<Self> {
        let invalid = |message: &str| Error::new(ErrorKind::InvalidData, message);
        let text = std::str::from_utf8(bytes).map_err(|_| invalid("the head is not UTF-8"))?;
        let mut lines = text.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok());
        let status = status.ok_or_else(|| invalid("the response has no status line"))?;
        let mut head = Self { status, is_unknown: status == 504, framing: Framing::Length(0) };
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                head.framing = Framing::Length(
                    value.parse().map_err(|_| invalid("the response has an invalid `Content-Length`"))?,
                );
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                head.framing = Framing::Chunked;
            } else if name.eq_ignore_ascii_case("raft-outcome") {
                head.is_unknown = value == "unknown";
            }
        }
        Ok(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A response split into reads at any place has the same status and body.
    #[test]
    fn answers_are_read_in_any_pieces() {
        let length = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 5\r\nRaft-Outcome: not_applied\r\n\r\nhello";
        let chunked =
            "HTTP/1.1 503 Service Unavailable\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhell\r\n1\r\no\r\n0\r\n\r\n";
        for text in [length, chunked] {
            for size in 1..=text.len() {
                let mut answer = Answer::default();
                let mut body = Vec::new();
                for piece in text.as_bytes().chunks(size) {
                    assert_eq!(answer.take_complete(), None);
                    answer.take(piece, &mut |_| (), &mut |bytes| body.extend_from_slice(bytes)).unwrap();
                }
                assert_eq!((answer.take_complete(), body.as_slice()), (Some(503), b"hello".as_slice()), "{size}");
            }
        }
    }

    /// Each head is counted, also when several responses arrive in one read.
    #[test]
    fn pipelined_answers_all_count() {
        let text = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1HTTP/1.1 404 Not Found\r\n\r\n";
        let mut statuses = Vec::new();
        let mut answer = Answer::default();
        answer.take(text.as_bytes(), &mut |head| statuses.push(head.status), &mut |_| ()).unwrap();
        assert_eq!(statuses, [200, 404]);
    }

    #[test]
    fn an_outcome_is_unknown_if_the_node_says_so() {
        let is_unknown = |text: &str| Head::parse(text.as_bytes()).unwrap().is_unknown;
        assert!(is_unknown("HTTP/1.1 504 Gateway Timeout\r\n\r\n"));
        assert!(is_unknown("HTTP/1.1 503 Service Unavailable\r\nRaft-Outcome: unknown\r\n\r\n"));
        assert!(!is_unknown("HTTP/1.1 504 Gateway Timeout\r\nRaft-Outcome: not_applied\r\n\r\n"));
        assert!(!is_unknown("HTTP/1.1 503 Service Unavailable\r\nRaft-Outcome: not_applied\r\n\r\n"));
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        for text in ["SSH-2.0-OpenSSH\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"] {
            assert!(Answer::default().take(text.as_bytes(), &mut |_| (), &mut |_| ()).is_err(), "{text}");
        }
    }
}
