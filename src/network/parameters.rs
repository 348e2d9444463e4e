//! The parts of a request outside its body: the key in the path, the parameters after `?`, and the headers that all
//! writes accept. Conditions have a module of their own.

use std::sync::Arc;

use actix_web::HttpRequest;
use actix_web::http::header::{self, HeaderMap, HeaderName};
use percent_encoding::percent_decode_str;

use crate::config::{KEY_BYTES_MAX_DEFAULT, Limits, check_idempotency_key};
use crate::duration;
use crate::error::{ApiError, Details};
use crate::headers::IDEMPOTENCY_KEY;
use crate::operation::{Operation, RequestId};

/// The path before a key.
const KEY_PREFIX: &str = "/v1/kv/";

/// The key in the path of a request.
pub fn key_of(request: &HttpRequest, limits: &Limits) -> Result<String, ApiError> {
    key_from(encoded_key(request), limits)
}

/// The key in the path, still percent-encoded. The router decodes paths, so this may be `/%761/kv/a`.
pub fn encoded_key(request: &HttpRequest) -> &str {
    let path = request.uri().path();
    path.strip_prefix(KEY_PREFIX).or_else(|| path.splitn(4, '/').nth(3)).unwrap_or_default()
}

/// The key in the path of a request that ends with `/<action>`.
pub fn key_with_action(request: &HttpRequest, action: &str, limits: &Limits) -> Result<String, ApiError> {
    match encoded_key(request).strip_suffix(action).and_then(|rest| rest.strip_suffix('/')) {
        Some(key) => key_from(key, limits),
        None => {
            let message = format!("POST on a key must name an action after it: POST {KEY_PREFIX}<key>/{action}");
            Err(ApiError::NotFound(Details::not_applied(message)))
        }
    }
}

pub(crate) fn key_from(encoded: &str, limits: &Limits) -> Result<String, ApiError> {
    let key = percent_decode("the key in the path", encoded)?;
    check_key(&key, limits)?;
    Ok(key)
}

/// Checks a key for `/v1`: its length, and whether a URL can contain it.
pub fn check_key(key: &str, limits: &Limits) -> Result<(), ApiError> {
    check_key_length(key, limits)?;
    let invalid = |why: &str| Err(ApiError::bad_request("invalid_key", why));
    if key.contains('\0') {
        return invalid("a key must not contain NUL");
    }
    // Clients and proxies remove such parts from a path before they send it.
    if key.split('/').any(|part| part == "." || part == "..") {
        return invalid(
            "no part of a key between slashes may be `.` or `..`: a URL with such a part names another key",
        );
    }
    Ok(())
}

/// Checks the length of a key.
pub fn check_key_length(key: &str, limits: &Limits) -> Result<(), ApiError> {
    if key.is_empty() {
        let message = format!("key must be 1 to {} bytes, got 0", limits.key_bytes);
        return Err(ApiError::bad_request("key_empty", message));
    }
    if key.len() > limits.key_bytes {
        return Err(ApiError::too_large("key", limits.key_bytes, key.len()));
    }
    Ok(())
}

/// Checks the length of a value.
pub fn check_value_length(value: &[u8], limits: &Limits) -> Result<(), ApiError> {
    if value.len() > limits.value_bytes {
        return Err(ApiError::too_large("value", limits.value_bytes, value.len()));
    }
    Ok(())
}

fn percent_decode(what: &str, encoded: &str) -> Result<String, ApiError> {
    let invalid = |why: &str| ApiError::bad_request("invalid_encoding", format!("{what} {why}"));
    let mut rest = encoded.as_bytes();
    while let Some(position) = rest.iter().position(|byte| *byte == b'%') {
        match rest.get(position + 1..position + 3) {
            Some(digits) if digits.iter().all(u8::is_ascii_hexdigit) => rest = &rest[position + 3..],
            _ => return Err(invalid("must have two hexadecimal digits after each %; write % itself as %25")),
        }
    }
    match percent_decode_str(encoded).decode_utf8() {
        Ok(decoded) => Ok(decoded.into_owned()),
        Err(_) => Err(invalid("must be UTF-8 when it is decoded")),
    }
}

/// The parameters of a request: each known, and given at most once.
pub struct Parameters {
    pairs: Vec<(&'static str, String)>,
}

impl Parameters {
    /// The parameters of a request to a route that accepts those in `known`.
    pub fn of(request: &HttpRequest, known: &[&'static str]) -> Result<Self, ApiError> {
        let mut pairs: Vec<(&'static str, String)> = Vec::new();
        let query = request.uri().query().unwrap_or_default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            // As in HTML forms.
            let decode = |what: &str, text: &str| percent_decode(what, &text.replace('+', " "));
            let name = decode("the name of a parameter", name)?;
            let Some(name) = known.iter().find(|known| **known == name) else {
                return Err(unknown(&name, known));
            };
            if pairs.iter().any(|(other, _)| other == name) {
                let message = format!("the parameter `{name}` is given twice");
                return Err(ApiError::bad_request("repeated_parameter", message));
            }
            pairs.push((name, decode(&format!("the parameter `{name}`"), value)?));
        }
        Ok(Parameters { pairs })
    }

    /// The value of a parameter, if it is given.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(other, _)| *other == name).map(|(_, value)| value.as_str())
    }

    /// A prefix or a bound of a range, no longer than a key may be.
    pub fn key_part(&self, name: &str, limits: &Limits) -> Result<Option<&str>, ApiError> {
        match self.text(name) {
            // Keys from before the limit was lowered still exist, and can be named.
            Some(text) if text.len() > limits.key_bytes.max(KEY_BYTES_MAX_DEFAULT) => {
                Err(ApiError::too_large(name, limits.key_bytes.max(KEY_BYTES_MAX_DEFAULT), text.len()))
            }
            text => Ok(text),
        }
    }

    /// Whether a parameter is given, alone or as `true`.
    pub fn flag(&self, name: &str) -> Result<bool, ApiError> {
        match self.text(name) {
            None | Some("false") => Ok(false),
            Some("" | "true") => Ok(true),
            Some(text) => Err(invalid(name, &format!("must be `true` or `false`, or have no value, got `{text}`"))),
        }
    }

    /// An integer parameter, if it is given.
    pub fn number(&self, name: &str, least: u64, most: u64) -> Result<Option<u64>, ApiError> {
        let Some(text) = self.text(name) else { return Ok(None) };
        match whole_number(text) {
            Some(number) if (least..=most).contains(&number) => Ok(Some(number)),
            _ => Err(invalid(name, &format!("must be an integer from {least} to {most}, got `{text}`"))),
        }
    }

    /// The TTL, if it is given.
    pub fn ttl_ms(&self) -> Result<Option<u64>, ApiError> {
        self.text("ttl").map(ttl_ms).transpose()
    }

    /// Whether the read may be stale.
    pub fn stale(&self) -> Result<bool, ApiError> {
        match self.text("consistency") {
            None | Some("linearizable") => Ok(false),
            Some("stale") => Ok(true),
            Some(text) => Err(invalid("consistency", &format!("must be `linearizable` or `stale`, got `{text}`"))),
        }
    }
}

fn unknown(name: &str, known: &[&str]) -> ApiError {
    let name: String = name.chars().take(100).collect();
    let known = match known {
        [] => "none".to_owned(),
        known => known.join(", "),
    };
    let message = format!("unknown parameter {name:?}; this route accepts {known}");
    ApiError::bad_request("unknown_parameter", message)
}

/// An invalid parameter. The message is its name and `what`.
pub fn invalid(name: &str, what: &str) -> ApiError {
    ApiError::bad_request("invalid_parameter", format!("`{name}` {what}"))
}

/// Digits only: no sign, no point, no exponent.
pub(super) fn whole_number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

/// A TTL such as `30s`, in milliseconds.
pub fn ttl_ms(text: &str) -> Result<u64, ApiError> {
    duration::ttl_ms(text).map_err(|message| ApiError::bad_request("invalid_ttl", message))
}

/// The `Idempotency-Key` of a request, with a hash of the operation.
pub fn request_id(
    request: &HttpRequest,
    owner: Option<&str>,
    operation: &Operation,
) -> Result<Option<Arc<RequestId>>, ApiError> {
    let Some(key) = one_header(request, &IDEMPOTENCY_KEY)? else { return Ok(None) };
    check_idempotency_key(key).map_err(|message| ApiError::bad_request("invalid_idempotency_key", message))?;
    let request = RequestId::new(key.into(), owner, operation)
        .map_err(|error| ApiError::internal(format!("cannot hash the request: {error}")))?;
    Ok(Some(Arc::new(request)))
}

/// Whether any line of a header is `no`.
pub fn says_no(headers: &HeaderMap, name: &HeaderName) -> bool {
    headers.get_all(name).any(|value| value.as_bytes().eq_ignore_ascii_case(b"no"))
}

/// A header that may be given at most once, as text without surrounding spaces.
pub fn one_header<'a>(request: &'a HttpRequest, name: &HeaderName) -> Result<Option<&'a str>, ApiError> {
    let mut values = request.headers().get_all(name);
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(ApiError::bad_request("repeated_header", format!("the header {name} is given twice")));
    }
    match value.to_str() {
        Ok(text) => Ok(Some(text.trim())),
        Err(_) => Err(ApiError::bad_request("invalid_header", format!("the header {name} must be visible ASCII"))),
    }
}

/// Rejects a body that a client wants decoded, and that the store would keep encoded.
pub fn check_body_type(request: &HttpRequest) -> Result<(), ApiError> {
    let reject = |message: &str| Err(ApiError::UnsupportedMediaType(Details::not_applied(message)));
    let headers = request.headers();
    const FORM: &[u8] = b"multipart/";
    let is_form = headers
        .get_all(header::CONTENT_TYPE)
        .any(|value| value.as_bytes().get(..FORM.len()).is_some_and(|found| found.eq_ignore_ascii_case(FORM)));
    if is_form {
        return reject(
            "the body is stored unchanged, so it must not be a form; with curl use --data-binary or -T, not -F",
        );
    }
    let encoded = |value: &header::HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"identity");
    if headers.get_all(header::CONTENT_ENCODING).any(encoded) {
        return reject("the body is stored unchanged, so it must not be compressed; send it without Content-Encoding");
    }
    // RFC 9110, section 14.5. The part would replace the whole value.
    if headers.contains_key(header::CONTENT_RANGE) {
        let message = "a part of a value cannot be written; send the whole value without Content-Range";
        return Err(ApiError::bad_request("unexpected_range", message));
    }
    Ok(())
}
