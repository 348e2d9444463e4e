//! Hands requests to the HTTP library: only valid ones, and one at a time.
//!
//! The library decodes pipelined requests while it still answers an earlier one. It then takes the
//! method, the version and whether the connection closes from the last request that it decoded, so
//! that a GET behind a HEAD gives the HEAD a body. An [`Intake`] therefore follows the framing of
//! requests, and holds the bytes behind a request until that request has its response.
//!
//! It checks each head ([`head`](super::head)). In place of a head that it rejects, it hands on a
//! request of its own, which the [`gate`](super::gate) answers with the error. So the responses
//! to earlier requests come first, and the error is written like any other response.
//!
//! A request that arrives in one read is checked where it lies and not copied.

use std::cell::{Cell, RefCell};
use std::mem;
use std::rc::Rc;
use std::task::{Context, Waker};

use actix_web::HttpRequest;
use bytes::{Buf, BytesMut};
use memchr::memchr;
use tokio::io::ReadBuf;

use super::head::{self, Body, Head, LENGTH_OF_NO_BODY, Rejection, without_empty_lines};
use crate::config::{CHUNK_EXTRAS_BYTES_MAX, CHUNKED_BYTE_COST, HEAD_BYTES_MAX};
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

/// What it costs to read a body, in bytes of a plain one.
#[derive(Clone, Copy, Debug)]
pub struct BodyCost {
    a_byte: usize,
    bytes_max: usize,
}

impl BodyCost {
    /// The cost of so many bytes, of which some may belong to what follows the body.
    pub fn of(self, bytes: usize) -> usize {
        bytes.min(self.bytes_max).saturating_mul(self.a_byte)
    }
}

/// State that an [`Intake`] shares with the [`gate`](super::gate).
#[derive(Debug, Default)]
pub struct Exchange {
    /// Whether a request was handed on and has no response yet.
    is_open: Cell<bool>,
    /// Whether the connection closes after the response.
    closes: Cell<bool>,
    /// The error that answers the next request, which stands for a rejected one.
    rejection: RefCell<Option<ApiError>>,
    /// Why the chunks of the body are broken.
    broken: Cell<Option<&'static str>>,
    /// Whether the client may still be sending bytes that are not read.
    has_unread: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Exchange {
    /// Takes the error that answers the current request, if it stands for a rejected one.
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
    /// The intake of a new connection. A client that announces a longer body is not asked for it with 100; nodes
    /// send longer ones, and do not wait to be asked.
    pub fn new(exchange: Rc<Exchange>, body_bytes_max: usize) -> Self {
        let held = BytesMut::new();
        Intake { exchange, body_bytes_max, held, released: 0, at: At::Head, looked: 0, parse_at: 0, dropped: 0 }
    }

    /// Takes the first bytes of a connection, which were read to see what it is for.
    pub fn read_ahead(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
        self.at = At::End;
    }

    /// State that the gate shares.
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

    /// What it costs to read on in a body; `None` if what comes is no body.
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

    /// Hands on held bytes, as many as may be and as `buffer` has room for.
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

    /// Hands on a request that the gate answers with the error, after which the connection closes.
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
    /// Bytes to hand on in their place.
    instead: Option<Vec<u8>>,
}

/// Where in a chunked body the next byte is.
///
/// The HTTP library accepts everything that this accepts, and ends the body at the same byte. It
/// ignores extensions and trailers, does not bound them, and accepts any line as a trailer.
#[derive(Debug, Default)]
struct Chunks {
    at: InChunk,
    /// Digits of the size so far.
    digits: u8,
    /// The size of the chunk as far as it was read, then the bytes left of it.
    left: u64,
    /// Bytes of extensions and trailers so far.
    extras: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum InChunk {
    #[default]
    Size,
    /// In spaces after a size.
    SizeSpace,
    Extension,
    /// Before the LF of a size.
    SizeLf,
    Data,
    /// Before the CR of a chunk.
    DataCr,
    DataLf,
    /// At the beginning of a line after the last chunk.
    TrailerStart,
    /// In the name of a trailer.
    TrailerName,
    /// In the value of a trailer.
    Trailer,
    TrailerLf,
    /// Before the LF that ends the body.
    EndLf,
    End,
}

impl Chunks {
    fn is_at_end(&self) -> bool {
        self.at == InChunk::End
    }

    /// Follows the chunks through `bytes`; returns how many bytes belong to the body.
    fn follow(&mut self, bytes: &[u8]) -> Result<usize, &'static str> {
        let mut passed = 0;
        while passed < bytes.len() && self.at != InChunk::End {
            if self.at == InChunk::Data {
                let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len() - passed);
                passed += count;
                self.left -= count as u64;
                if self.left == 0 {
                    self.at = InChunk::DataCr;
                }
                continue;
            }
            self.at = self.step(bytes[passed])?;
            passed += 1;
        }
        Ok(passed)
    }

    fn step(&mut self, byte: u8) -> Result<InChunk, &'static str> {
        use InChunk::{
            Data, DataCr, DataLf, End, EndLf, Extension, Size, SizeLf, SizeSpace, Trailer, TrailerLf, TrailerName,
            TrailerStart,
        };
        if matches!(self.at, SizeSpace | Extension | TrailerStart | TrailerName | Trailer) {
            self.extras += 1;
            if self.extras > CHUNK_EXTRAS_BYTES_MAX {
                return Err("its chunk extensions and trailers are too long");
            }
        }
        match (self.at, byte) {
            (Size, _) if byte.is_ascii_hexdigit() => {
                if self.digits == 16 {
                    return Err("the size of a chunk must have at most 16 digits");
                }
                self.digits += 1;
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                self.left = self.left << 4 | u64::from(digit);
                Ok(Size)
            }
            (Size, _) if self.digits == 0 => Err("the size of a chunk must be a hexadecimal number"),
            (Size | SizeSpace, b' ' | b'\t') => Ok(SizeSpace),
            (Size | SizeSpace, b';') => Ok(Extension),
            (Size | SizeSpace | Extension, b'\r') => Ok(SizeLf),
            (Size | SizeSpace, _) => Err("the size of a chunk must be a hexadecimal number that ends with CR LF"),
            (Extension | Trailer, 0..=8 | 10..=12 | 14..=31 | 127) => {
                Err("a chunk extension or trailer contains a control character")
            }
            (Extension, _) => Ok(Extension),
            (SizeLf, b'\n') => {
                self.digits = 0;
                Ok(if self.left == 0 { TrailerStart } else { Data })
            }
            (DataCr, b'\r') => Ok(DataLf),
            (DataLf, b'\n') => Ok(Size),
            (TrailerStart, b'\r') => Ok(EndLf),
            (TrailerStart | TrailerName, _) if head::is_token(byte) => Ok(TrailerName),
            (TrailerName, b':') => Ok(Trailer),
            (TrailerStart | TrailerName, _) => Err("a trailer must be a name, a colon and a value"),
            (Trailer, b'\r') => Ok(TrailerLf),
            (Trailer, _) => Ok(Trailer),
            (TrailerLf, b'\n') => Ok(TrailerStart),
            (EndLf, b'\n') => Ok(End),
            (DataCr | DataLf, _) => Err("a chunk is longer than its size"),
            (SizeLf | TrailerLf | EndLf, _) => Err("a CR stands alone among the chunks"),
            (Data | End, _) => Err("the chunks have ended"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::TestRunner;

    use super::*;
    use crate::fuzzing::connection;

    /// The bytes handed on when these pieces are read, one part per request.
    fn handed_on(pieces: &[&[u8]], room: usize) -> Vec<Vec<u8>> {
        let mut intake = Intake::new(Rc::default(), 10);
        // A read brings no more than there is room for.
        let mut pieces = pieces.iter().flat_map(|piece| piece.chunks(room));
        let mut parts = vec![Vec::new()];
        let mut space = vec![0; room];
        let context = Context::from_waker(Waker::noop());
        loop {
            let mut buffer = ReadBuf::new(&mut space);
            match intake.next(&context) {
                Next::Read => {
                    let Some(piece) = pieces.next() else { return parts };
                    buffer.put_slice(piece);
                    intake.take(&mut buffer, 0);
                }
                Next::HandOn | Next::Begin => intake.hand_on(&mut buffer),
                Next::Wait => {
                    if intake.exchange.end(false) {
                        return parts;
                    }
                    parts.push(Vec::new());
                }
                Next::End => return parts,
            }
            parts.last_mut().unwrap().extend_from_slice(buffer.filled());
            let is_whole = matches!(intake.at, At::End) && intake.released == 0 && intake.held.is_empty();
            if is_whole && !parts.last().unwrap().is_empty() && !intake.exchange.end(false) {
                parts.push(Vec::new());
            }
        }
    }

    fn texts(parts: Vec<Vec<u8>>) -> Vec<String> {
        parts.into_iter().map(|part| String::from_utf8(part).unwrap()).filter(|part| !part.is_empty()).collect()
    }

    const REQUESTS: [&str; 6] = [
        "GET /a HTTP/1.1\r\nhost: x\r\n\r\n",
        "PUT /b HTTP/1.1\r\nhost: x\r\ncontent-length: 12\r\n\r\nGET / HTTP/1",
        "PUT /c HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3;e=\"x\"\r\nabc\r\n0A \r\n0123456789\r\n0\r\nt: u\r\n\r\n",
        "HEAD /d HTTP/1.1\r\nhost: x\r\n\r\n",
        "POST /e HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: 0\r\n\r\n",
        "GET /f HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\n\n",
    ];

    /// However the bytes of requests are divided, each is handed on alone, and as it came.
    ///
    /// Method: six requests with empty lines between them, in two pieces, divided at each byte, and byte by byte.
    #[test]
    fn requests_are_handed_on_one_by_one() {
        let stream = REQUESTS.join("\r\n");
        let expected: Vec<String> = REQUESTS.iter().map(|request| (*request).to_owned()).collect();
        let trimmed = |parts| -> Vec<String> {
            texts(parts).into_iter().map(|part| part.trim_start_matches("\r\n").to_owned()).collect()
        };
        for room in [1, 20, 8192] {
            for position in 0..=stream.len() {
                let (first, second) = stream.as_bytes().split_at(position);
                assert_eq!(trimmed(handed_on(&[first, second], room)), expected, "at {position} with room for {room}");
            }
        }
    }

    /// After a request that closes the connection, is rejected, or whose chunks are broken, nothing is handed on.
    #[test]
    fn nothing_follows_an_end() {
        let next = REQUESTS[1];
        let head = "PUT / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
        let broken = format!("{head}1\r\nxx{next}");
        for piece in [broken.len(), 1] {
            let pieces: Vec<&[u8]> = broken.as_bytes().chunks(piece).collect();
            let handed = texts(handed_on(&pieces, 8192));
            assert!(handed.len() == 1 && handed[0].starts_with(head) && !handed[0].contains("xx"), "{handed:?}");
        }
        for (first, handed) in [
            ("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", None),
            ("GET / HTTP/1.0\r\n\r\n", None),
            ("GET /# HTTP/1.1\r\nhost: x\r\n\r\n", Some("GET / HTTP/1.1\r\nhost:\r\nconnection: close\r\n\r\n")),
            ("HEAD /# HTTP/1.0\r\nhost: x\r\n\r\n", Some("HEAD / HTTP/1.0\r\nhost:\r\nconnection: close\r\n\r\n")),
        ] {
            let stream = format!("{first}{next}");
            for piece in [stream.len(), 1] {
                let pieces: Vec<&[u8]> = stream.as_bytes().chunks(piece).collect();
                assert_eq!(texts(handed_on(&pieces, 8192)), [handed.unwrap_or(first)], "{first:?} in {piece}s");
            }
        }
    }

    /// A request of HTTP/1.0 without a length gets one, and what follows it is not lost.
    #[test]
    fn a_missing_length_is_added() {
        let post = "POST /a HTTP/1.0\r\nconnection: keep-alive\r\n\r\n";
        let expected = "POST /a HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: 0\r\n\r\n";
        let stream = [post, REQUESTS[0], post].concat();
        for piece in [stream.len(), 1, 7] {
            for room in [1, 30, 8192] {
                let pieces: Vec<&[u8]> = stream.as_bytes().chunks(piece).collect();
                assert_eq!(texts(handed_on(&pieces, room)), [expected, REQUESTS[0], expected], "{piece}, {room}");
            }
        }
    }

    /// Many small pieces of a long head cost no more than a few looks at each byte.
    ///
    /// Method: empty lines, and a value without end, one byte at a time, up to the limit of a head.
    #[test]
    fn long_heads_in_small_pieces() {
        for text in ["\r\n".repeat(70_000), format!("GET / HTTP/1.1\r\nx: {}", "v".repeat(140_000))] {
            let pieces: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
            assert_eq!(texts(handed_on(&pieces, 8192)), ["GET / HTTP/1.1\r\nhost:\r\nconnection: close\r\n\r\n"]);
        }
    }

    /// Parts that requests are made of, right and wrong ones.
    fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
        let parts = prop::sample::select(vec![
            "GET ",
            "HEAD ",
            "POST ",
            "PUT ",
            "/",
            "a",
            "?",
            "#",
            "%2F",
            " ",
            "HTTP/1.1",
            "HTTP/1.0",
            "\r\n",
            "\r\n\r\n",
            "\n",
            "\r",
            "host: x\r\n",
            "content-length: 3\r\n",
            "content-length: 0\r\n",
            "transfer-encoding: chunked\r\n",
            "connection: close\r\n",
            "connection: keep-alive\r\n",
            "connection: upgrade\r\n",
            "upgrade: websocket\r\n",
            "expect: 100-continue\r\n",
            "x: y\r\n",
            ": ",
            "\0",
            "\u{e9}",
            "3\r\nabc\r\n",
            "0\r\n\r\n",
            "0\r\n",
            "1;x\r\n",
            "abc",
            "GET / HTTP/1.1\r\nhost: x\r\n\r\n",
            "PUT /a HTTP/1.1\r\nhost: x\r\n",
            "POST / HTTP/1.0\r\nconnection: keep-alive\r\n",
        ]);
        let random = prop::collection::vec(any::<u8>(), 1..3);
        let part = prop_oneof![20 => parts.prop_map(|part| part.as_bytes().to_vec()), 1 => random];
        let stream = prop::collection::vec(part, 1..20).prop_map(|parts| parts.concat());
        (1..40_u8, stream).prop_map(|(piece_bytes, stream)| [vec![piece_bytes], stream].concat())
    }

    /// The HTTP library finds the same requests as the intake, in whatever pieces they arrive.
    ///
    /// Method: random bytes and parts of requests, to the check that the fuzzer runs.
    #[test]
    fn the_library_agrees() {
        let mut runner =
            TestRunner::new(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) });
        runner
            .run(&any_bytes(), |bytes| {
                connection(&bytes);
                Ok(())
            })
            .unwrap();
    }
}
