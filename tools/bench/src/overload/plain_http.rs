//! An HTTP/1.1 connection that costs as little CPU time as possible.
//!
//! The cost of a request bounds the load that can be offered, so this client does not use hyper. The bytes of
//! a request are constant except for the digits of its key and are sent by one write; of the response, only
//! the parts that the figures need are parsed.

use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use harness::http::connect_socket;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::load;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than a node's own deadline of 5 s, after which no response is expected.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: usize = 64 * 1024;

pub struct PlainConnection {
    stream: TcpStream,
    request: Vec<u8>,
    /// Position of the key in `request`.
    key_at: usize,
    key: String,
    answer: Vec<u8>,
    is_closed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// Not applied, because the node had no capacity for it.
    Refused,
    Unknown,
    Other,
}

/// A response, with the times when its request was sent and its last byte arrived.
pub struct Answer<'connection> {
    pub outcome: Outcome,
    pub status: u16,
    pub sent: Instant,
    pub received: Instant,
    pub body: &'connection [u8],
}

impl PlainConnection {
    pub async fn connect(address: SocketAddr) -> Result<Self> {
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connect_socket(address, None, None))
            .await
            .unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
            .with_context(|| format!("cannot connect to {address}"))?;
        let path = "PUT /v1/kv/";
        let mut key = String::new();
        load::key(0, &mut key);
        let value = load::value();
        let request =
            format!("{path}{key} HTTP/1.1\r\nhost: {address}\r\ncontent-length: {}\r\n\r\n{value}", value.len());
        Ok(Self {
            stream,
            request: request.into_bytes(),
            key_at: path.len(),
            key,
            answer: Vec::with_capacity(1024),
            is_closed: false,
        })
    }

    /// Whether the node announced the end of the connection, or the connection broke.
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// `PUT /v1/kv/{key}`. After an error the connection must not be used again.
    pub async fn put(&mut self, key_number: u64) -> Result<Answer<'_>> {
        load::key(key_number, &mut self.key);
        let mut place = &mut self.request[self.key_at..][..self.key.len()];
        place.write_all(self.key.as_bytes())?;
        self.is_closed = true; // Until a response keeps it open.
        let sent = Instant::now();
        let (head, end) = tokio::time::timeout(ANSWER_TIMEOUT, self.exchange())
            .await
            .map_err(|_| anyhow!("no response within {ANSWER_TIMEOUT:?}"))
            .flatten()?;
        let received = Instant::now();
        self.is_closed = head.closes;
        let body = &self.answer[head.bytes..end];
        Ok(Answer { outcome: head.outcome(), status: head.status, sent, received, body })
    }

    /// Returns the head of the response and the position of the response's end.
    async fn exchange(&mut self) -> Result<(Head, usize)> {
        self.stream.write_all(&self.request).await.context("cannot send")?;
        self.answer.clear();
        loop {
            let count = self.stream.read_buf(&mut self.answer).await.context("cannot receive")?;
            ensure!(count > 0, "the node closed the connection before the response was complete");
            let Some(head) = Head::parse(&self.answer)? else {
                ensure!(self.answer.len() <= ANSWER_BYTES_MAX, "the response's head is too long");
                continue;
            };
            let end = head.bytes + head.body_bytes;
            ensure!(end <= ANSWER_BYTES_MAX, "the response to a put has {end} bytes");
            // Only one request is in progress, so bytes after its response belong to none.
            ensure!(self.answer.len() <= end, "bytes after the end of the response");
            if self.answer.len() == end {
                return Ok((head, end));
            }
        }
    }
}

/// The parts of a response's head that are used.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    /// Length of the head, including the empty line.
    bytes: usize,
    status: u16,
    body_bytes: usize,
    raft_outcome: Option<RaftOutcome>,
    closes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RaftOutcome {
    NotApplied,
    Unknown,
}

impl Head {
    /// `None` while the head is incomplete.
    fn parse(answer: &[u8]) -> Result<Option<Self>> {
        const END: &[u8] = b"\r\n\r\n";
        let Some(end) = answer.windows(END.len()).position(|window| window == END) else {
            return Ok(None);
        };
        let text = std::str::from_utf8(&answer[..end]).context("the response's head is not UTF-8")?;
        let mut lines = text.split("\r\n");
        let status_line = lines.next().unwrap_or_default();
        let status = status_line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let status = status.with_context(|| format!("invalid status line: {status_line}"))?;
        let mut body_bytes = None;
        let mut head = Head { bytes: end + END.len(), status, body_bytes: 0, raft_outcome: None, closes: false };
        for line in lines {
            let (name, value) = line.split_once(':').with_context(|| format!("invalid header: {line}"))?;
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                body_bytes = Some(value.parse().with_context(|| format!("invalid length: {value}"))?);
            } else if name.eq_ignore_ascii_case("raft-outcome") {
                head.raft_outcome = Some(match value {
                    "not_applied" => RaftOutcome::NotApplied,
                    "unknown" => RaftOutcome::Unknown,
                    _ => bail!("unknown outcome: {value}"),
                });
            } else if name.eq_ignore_ascii_case("connection") {
                head.closes = value.eq_ignore_ascii_case("close");
            }
        }
        // A put is never answered in chunks, or by a body that ends with the connection.
        head.body_bytes = body_bytes.context("the response has no content-length")?;
        Ok(Some(head))
    }

    fn outcome(&self) -> Outcome {
        match (self.status, self.raft_outcome) {
            (200, _) => Outcome::Done,
            (504, _) | (_, Some(RaftOutcome::Unknown)) => Outcome::Unknown,
            (429 | 503, Some(RaftOutcome::NotApplied)) => Outcome::Refused,
            _ => Outcome::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSED: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\nRaft-Outcome: not_applied\r\n\
                           connection: close\r\n\r\n{}";

    /// A response split into reads at any place is incomplete until its empty line.
    #[test]
    fn a_head_is_parsed_once_it_is_complete() {
        let bytes = REFUSED.len() - 2;
        for end in 0..bytes {
            assert_eq!(Head::parse(&REFUSED.as_bytes()[..end]).unwrap(), None, "{end} bytes");
        }
        let head =
            Head { bytes, status: 503, body_bytes: 2, raft_outcome: Some(RaftOutcome::NotApplied), closes: true };
        for end in bytes..=REFUSED.len() {
            assert_eq!(Head::parse(&REFUSED.as_bytes()[..end]).unwrap().as_ref(), Some(&head));
        }
    }

    #[test]
    fn what_is_no_answer_to_a_put_is_refused() {
        for answer in [
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nraft-outcome: perhaps\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno header\r\n\r\n",
            "SSH-2.0-OpenSSH\r\n\r\n",
        ] {
            assert!(Head::parse(answer.as_bytes()).is_err(), "{answer}");
        }
    }

    #[test]
    fn the_outcome_follows_from_status_and_header() {
        let outcome =
            |status, raft_outcome| Head { bytes: 0, status, body_bytes: 0, raft_outcome, closes: false }.outcome();
        let (not_applied, unknown) = (Some(RaftOutcome::NotApplied), Some(RaftOutcome::Unknown));
        assert_eq!(outcome(200, None), Outcome::Done);
        assert_eq!(outcome(503, not_applied), Outcome::Refused);
        assert_eq!(outcome(429, not_applied), Outcome::Refused);
        assert_eq!(outcome(503, None), Outcome::Other);
        assert_eq!(outcome(503, unknown), Outcome::Unknown);
        assert_eq!(outcome(504, None), Outcome::Unknown);
        assert_eq!(outcome(400, not_applied), Outcome::Other);
    }
}
