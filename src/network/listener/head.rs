//! Checks the head of a request before the HTTP library gets it, and finds how its body is framed.
//!
//! The HTTP library drops the fragment of a target, accepts lines that end with a bare LF, begins
//! upgrades that this node does not offer, and rejects a bad head without a reason. Every check
//! here is at least as strict as the library's own, so a head that passes means the same to both.
//! The rules are those of RFC 9110 and RFC 9112.

use std::mem::MaybeUninit;
use std::ops::Range;

use actix_web::http::Method;
use actix_web::http::uri::Authority;

use crate::config::{HEAD_BYTES_MAX, HEADER_NAME_BYTES_MAX, HEADERS_MAX, TARGET_BYTES_MAX};
use crate::error::{ApiError, Details};

/// Added to a request of HTTP/1.0 without a length, which the HTTP library would reject.
pub const LENGTH_OF_NO_BODY: &[u8] = b"content-length: 0\r\n";

/// A valid head.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    /// Its length with the empty line that ends it, in bytes.
    pub bytes: usize,
    /// How the body is framed.
    pub body: Body,
    /// Whether the connection closes after the response.
    pub closes: bool,
    /// Whether the HTTP library would reject the head because it has no length, which HTTP/1.0 allows.
    pub needs_length: bool,
}

/// How the body of a request is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// By its length in bytes; 0 if there is no body.
    Length(u64),
    /// In chunks.
    Chunked,
}

/// A rejected head.
#[derive(Debug)]
pub struct Rejection {
    /// Why.
    pub error: ApiError,
    /// Whether the response must not have a body.
    pub is_head: bool,
    /// Whether the client speaks HTTP/1.0.
    pub is_http_1_0: bool,
}

impl Rejection {
    /// The rejection of too many empty lines.
    pub fn of_empty_lines() -> Self {
        Rejection { error: head_too_long(), is_head: false, is_http_1_0: false }
    }
}

/// Parses the head at the beginning of `bytes`; `None` if it is incomplete.
///
/// Requests for an upgrade are overwritten with spaces. A server that does not want an upgrade
/// ignores them (RFC 9110, section 7.8), but the HTTP library closes the connection. `Expect` is
/// overwritten if the body has more than `body_bytes_max` bytes: the library would ask for the body
/// with 100 before the route rejects its length.
pub fn parse(bytes: &mut [u8], body_bytes_max: usize) -> Result<Option<Head>, Rejection> {
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut []);
    let parsed = match request.parse_with_uninit_headers(bytes, &mut headers) {
        Ok(httparse::Status::Partial) if bytes.len() <= HEAD_BYTES_MAX => return Ok(None),
        Ok(httparse::Status::Partial) => Err(too_long(bytes)),
        Ok(httparse::Status::Complete(length)) => check(&request, &bytes[..length], body_bytes_max),
        Err(error) => Err(diagnose(bytes, error)),
    };
    match parsed {
        Ok((head, blanks)) => {
            blanks.into_iter().for_each(|range| bytes[range].fill(b' '));
            Ok(Some(head))
        }
        Err(error) => {
            let line = first_line(bytes);
            let (is_head, is_http_1_0) = (line.starts_with(b"HEAD "), line.ends_with(b" HTTP/1.0"));
            Err(Rejection { error, is_head, is_http_1_0 })
        }
    }
}

/// Checks a parsed head; also returns the parts of it to overwrite.
fn check(
    request: &httparse::Request<'_, '_>,
    bytes: &[u8],
    body_bytes_max: usize,
) -> Result<(Head, Vec<Range<usize>>), ApiError> {
    if bytes.len() > HEAD_BYTES_MAX {
        return Err(too_long(bytes));
    }
    if memchr::memchr_iter(b'\n', bytes).any(|position| position == 0 || bytes[position - 1] != b'\r') {
        return Err(invalid("a line ends with LF alone; every line of the head must end with CR LF"));
    }
    let method = request.method.unwrap_or_default();
    // The library rejects some methods that the parser accepts, such as `#GET`.
    if Method::from_bytes(method.as_bytes()).is_err() {
        return Err(invalid("the method contains a character that no method has"));
    }
    if method == "CONNECT" {
        return Err(invalid("CONNECT is for proxies; this node is not a proxy"));
    }
    check_target(method, request.path.unwrap_or_default().as_bytes())?;
    let is_http_1_0 = request.version == Some(0);
    let mut fields = Fields::default();
    for header in request.headers.iter() {
        fields.note(header, bytes)?;
    }
    if !is_http_1_0 && !fields.has_host {
        return Err(invalid("the header Host is missing; HTTP/1.1 requires it"));
    }
    let body = match (fields.length, fields.is_chunked) {
        (Some(_), true) => return Err(invalid("Content-Length and Transfer-Encoding must not be given together")),
        (_, true) if is_http_1_0 => {
            return Err(invalid("Transfer-Encoding must not be given in HTTP/1.0; use Content-Length"));
        }
        (_, true) => Body::Chunked,
        (length, false) => Body::Length(length.unwrap_or_default()),
    };
    let needs_length = is_http_1_0 && method == "POST" && fields.length.is_none();
    // The added length must fit, too.
    if needs_length && request.headers.len() == HEADERS_MAX {
        return Err(too_many_headers());
    }
    if needs_length && bytes.len() + LENGTH_OF_NO_BODY.len() > HEAD_BYTES_MAX {
        return Err(head_too_long());
    }
    if matches!(body, Body::Length(length) if length > body_bytes_max as u64) {
        fields.blanks.append(&mut fields.expectations);
    }
    let closes = fields.closes || is_http_1_0 && !fields.keeps_alive;
    Ok((Head { bytes: bytes.len(), body, closes, needs_length }, fields.blanks))
}

/// The headers that frame the request.
#[derive(Default)]
struct Fields {
    has_host: bool,
    length: Option<u64>,
    is_chunked: bool,
    closes: bool,
    keeps_alive: bool,
    /// The ranges to overwrite.
    blanks: Vec<Range<usize>>,
    /// The values of `Expect`.
    expectations: Vec<Range<usize>>,
}

impl Fields {
    fn note(&mut self, header: &httparse::Header<'_>, head: &[u8]) -> Result<(), ApiError> {
        let (name, value) = (header.name, header.value);
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        // The length rules out most headers without comparing names.
        match name.len() {
            4 if is("host") => self.note_host(value),
            6 if is("expect") => {
                self.expectations.push(range_in(head, value));
                Ok(())
            }
            7 if is("upgrade") => {
                self.blanks.push(range_in(head, value));
                Ok(())
            }
            10 if is("connection") => {
                self.note_connection(value, head);
                Ok(())
            }
            14 if is("content-length") => self.note_length(value),
            17 if is("transfer-encoding") => self.note_coding(value),
            ..=HEADER_NAME_BYTES_MAX => Ok(()),
            bytes => Err(ApiError::HeadTooLarge(Details::not_applied(format!(
                "a header name must have at most {HEADER_NAME_BYTES_MAX} bytes, got {bytes}"
            )))),
        }
    }

    fn note_host(&mut self, value: &[u8]) -> Result<(), ApiError> {
        if self.has_host {
            return Err(invalid("the header Host must be given only once"));
        }
        self.has_host = true;
        // A name or the zone of an IPv6 address may be percent-encoded.
        match value.iter().find(|byte| !is_in_authority(**byte) && **byte != b'%') {
            None => Ok(()),
            Some(byte) => {
                Err(invalid(format!("the header Host must be HOST or HOST:PORT; it contains {}", named(*byte))))
            }
        }
    }

    fn note_length(&mut self, value: &[u8]) -> Result<(), ApiError> {
        if self.length.is_some() {
            return Err(invalid("the header Content-Length must be given only once"));
        }
        let digits = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        self.length = digits.and_then(|digits| digits.parse().ok());
        match self.length {
            Some(_) => Ok(()),
            None => Err(invalid("the header Content-Length must be one decimal number below 2^64")),
        }
    }

    fn note_coding(&mut self, value: &[u8]) -> Result<(), ApiError> {
        if self.is_chunked {
            return Err(invalid("the header Transfer-Encoding must be given only once"));
        }
        self.is_chunked = value.eq_ignore_ascii_case(b"chunked");
        if self.is_chunked { Ok(()) } else { Err(invalid("the header Transfer-Encoding must be chunked")) }
    }

    fn note_connection(&mut self, value: &[u8], head: &[u8]) {
        for option in value.split(|byte| *byte == b',') {
            let option = option.trim_ascii();
            if option.eq_ignore_ascii_case(b"close") {
                self.closes = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keeps_alive = true;
            } else if option.eq_ignore_ascii_case(b"upgrade") {
                self.blanks.push(range_in(head, option));
            }
        }
    }
}

/// The range of a part of the head.
fn range_in(head: &[u8], part: &[u8]) -> Range<usize> {
    let start = part.as_ptr() as usize - head.as_ptr() as usize;
    start..start + part.len()
}

/// Rejects a target that the HTTP library would reject, cut short, or read as another one.
fn check_target(method: &str, target: &[u8]) -> Result<(), ApiError> {
    if target.len() > TARGET_BYTES_MAX {
        return Err(target_too_long());
    }
    check_characters(target)?;
    if target.starts_with(b"/") || target == b"*" && method == "OPTIONS" {
        return Ok(());
    }
    const HTTP: &[u8] = b"http://";
    if !target.get(..HTTP.len()).is_some_and(|scheme| scheme.eq_ignore_ascii_case(HTTP)) {
        return Err(invalid("the target must begin with / or with http://"));
    }
    let rest = &target[HTTP.len()..];
    let authority = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).map_or(rest, |end| &rest[..end]);
    // The library rejects some that consist of such bytes only, such as `a:b:c`.
    if !authority.iter().all(|byte| is_in_authority(*byte)) || Authority::try_from(authority).is_err() {
        return Err(invalid("the authority of the target must be HOST or HOST:PORT"));
    }
    Ok(())
}

fn check_characters(target: &[u8]) -> Result<(), ApiError> {
    let mut allowed = IN_PATH;
    for (position, byte) in target.iter().enumerate() {
        if CHARACTERS[*byte as usize] & allowed == 0 {
            return Err(bad_character(&target[position..]));
        }
        if *byte == b'?' {
            allowed = IN_QUERY;
        }
    }
    Ok(())
}

/// The error about the character with which the rest of a target begins.
fn bad_character(rest: &[u8]) -> ApiError {
    if rest[0] == b'#' {
        return invalid(
            "the target contains `#`, which begins a fragment and must not be sent; percent-encode it as %23",
        );
    }
    let text = rest.utf8_chunks().next().map_or("", |chunk| chunk.valid());
    let Some(character) = text.chars().next() else {
        let byte = named(rest[0]);
        return invalid(format!("the target contains {byte}, which is not UTF-8; percent-encode UTF-8"));
    };
    let name = match character {
        _ if character.is_ascii() => named(rest[0]),
        _ if character.is_alphanumeric() => format!("`{character}`"),
        _ => format!("U+{:04X}", u32::from(character)),
    };
    let encoded: String = rest[..character.len_utf8()].iter().map(|byte| format!("%{byte:02X}")).collect();
    invalid(format!("the target contains {name}; percent-encode it as {encoded}"))
}

const IN_PATH: u8 = 1;
const IN_QUERY: u8 = 2;
const IN_AUTHORITY: u8 = 4;

/// Where a byte may occur. In a path and a query the HTTP library keeps these bytes unchanged; RFC 3986
/// allows fewer.
const CHARACTERS: [u8; 256] = {
    let mut characters = [0; 256];
    let mut byte: u8 = 0x21;
    while byte < 0x7F {
        let in_path = !matches!(byte, b'#' | b'<' | b'>' | b'`');
        let in_query = !matches!(byte, b'#' | b'<' | b'>' | b'"');
        let in_authority = byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'-' | b'.'
                    | b'_'
                    | b'~'
                    | b':'
                    | b'['
                    | b']'
                    | b'!'
                    | b'$'
                    | b'&'
                    | b'\''
                    | b'('
                    | b')'
                    | b'*'
                    | b'+'
                    | b','
                    | b';'
                    | b'='
            );
        characters[byte as usize] =
            (in_path as u8 * IN_PATH) | (in_query as u8 * IN_QUERY) | (in_authority as u8 * IN_AUTHORITY);
        byte += 1;
    }
    characters
};

/// Whether a host, with a port or without, may contain a byte.
fn is_in_authority(byte: u8) -> bool {
    CHARACTERS[byte as usize] & IN_AUTHORITY != 0
}

/// Finds why the parser rejected a head. Slow: it reads the head again, line by line.
fn diagnose(bytes: &[u8], error: httparse::Error) -> ApiError {
    // The record type and the version with which every TLS connection begins.
    if bytes[0] == 0x16 {
        return invalid("the client speaks TLS; this port speaks plain HTTP");
    }
    if error == httparse::Error::TooManyHeaders {
        return too_many_headers();
    }
    let rest = without_empty_lines(bytes);
    if let Some(position) = memchr::memchr_iter(b'\r', rest).find(|position| rest.get(position + 1) != Some(&b'\n')) {
        // The LF after a CR at the end may not have arrived yet.
        if position + 1 < rest.len() {
            return invalid("a CR stands alone; CR must be followed by LF");
        }
    }
    let mut lines = rest.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let line = lines.next().unwrap_or_default();
    let found = request_line_fault(line).or_else(|| lines.take_while(|line| !line.is_empty()).find_map(header_fault));
    found.unwrap_or_else(|| invalid(format!("this is not an HTTP/1.1 request: {error}")))
}

/// The fault of a request line, if it has one.
fn request_line_fault(line: &[u8]) -> Option<ApiError> {
    let mut parts = line.split(|byte| *byte == b' ');
    let method = parts.next().unwrap_or_default();
    if method.is_empty() {
        return Some(invalid("the request line must begin with a method"));
    }
    if let Some(byte) = method.iter().find(|byte| !is_token(**byte)) {
        return Some(invalid(format!("the method contains {}", named(*byte))));
    }
    let rest = line.get(method.len() + 1..)?;
    let version_start = rest.iter().rposition(|byte| *byte == b' ');
    let version = version_start.map_or(b"".as_slice(), |start| &rest[start + 1..]);
    if !version.starts_with(b"HTTP/") {
        // Without a version the line may be cut off at a byte that a target must not contain.
        let position = rest.iter().position(|byte| !byte.is_ascii_graphic() && *byte != b' ');
        return Some(position.map_or_else(
            || invalid("the request line must end with the version HTTP/1.1 or HTTP/1.0"),
            |position| bad_character(&rest[position..]),
        ));
    }
    let target = &rest[..version_start?];
    if target.is_empty() || target.contains(&b' ') {
        return Some(invalid(
            "method, target and version must be separated by one space each; write a space in the target as %20",
        ));
    }
    if let Some(position) = target.iter().position(|byte| CHARACTERS[*byte as usize] == 0) {
        return Some(bad_character(&target[position..]));
    }
    if version != b"HTTP/1.1" && version != b"HTTP/1.0" {
        let is_short = version.len() == 8 && version.is_ascii();
        let version = if is_short { String::from_utf8_lossy(version) } else { "this version".into() };
        return Some(invalid(format!("{version} is not supported; this node speaks HTTP/1.1 and HTTP/1.0")));
    }
    None
}

/// The fault of a header line, if it has one.
fn header_fault(line: &[u8]) -> Option<ApiError> {
    if matches!(line[0], b' ' | b'\t') {
        return Some(invalid("a header line begins with a space; folded header lines are not supported"));
    }
    let name_end = line.iter().position(|byte| !is_token(*byte));
    let name_end = name_end?;
    if line[name_end] != b':' {
        return Some(invalid(format!(
            "a header name contains {}; a colon must follow the name",
            named(line[name_end])
        )));
    }
    if name_end == 0 {
        return Some(invalid("a header has no name"));
    }
    let byte = line[name_end..].iter().find(|byte| byte.is_ascii_control() && **byte != b'\t');
    byte.map(|byte| invalid(format!("a header value contains {}", named(*byte))))
}

/// Whether a method, or the name of a header or trailer, may contain a byte.
pub fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A byte, as it appears in an error.
fn named(byte: u8) -> String {
    match byte {
        b' ' => "a space (0x20)".to_owned(),
        0x21..=0x7E => format!("`{}`", char::from(byte)),
        _ => format!("the byte 0x{byte:02X}"),
    }
}

fn too_long(bytes: &[u8]) -> ApiError {
    let rest = without_empty_lines(bytes);
    if rest.len() > TARGET_BYTES_MAX && memchr::memchr(b'\n', rest).is_none() {
        return target_too_long();
    }
    head_too_long()
}

fn too_many_headers() -> ApiError {
    let message = format!("a request must have at most {HEADERS_MAX} header fields");
    ApiError::HeadTooLarge(Details::not_applied(message))
}

fn head_too_long() -> ApiError {
    let message = format!("the head of a request must have at most {HEAD_BYTES_MAX} bytes");
    ApiError::HeadTooLarge(Details::not_applied(message))
}

fn target_too_long() -> ApiError {
    let message = format!("the target of a request must have at most {TARGET_BYTES_MAX} bytes");
    ApiError::HeadTooLarge(Details::not_applied(message))
}

fn first_line(bytes: &[u8]) -> &[u8] {
    let rest = without_empty_lines(bytes);
    let line = memchr::memchr(b'\n', rest).map_or(rest, |end| &rest[..end]);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// A request without the empty lines that may precede it.
pub fn without_empty_lines(mut bytes: &[u8]) -> &[u8] {
    while let Some(rest) = bytes.strip_prefix(b"\r\n") {
        bytes = rest;
    }
    bytes
}

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::bad_request("invalid_http", message)
}

#[cfg(test)]
mod tests;
