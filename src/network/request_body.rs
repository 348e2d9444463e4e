//! Reading and decoding the bodies of requests.

use actix_web::error::PayloadError;
use actix_web::http::header;
use actix_web::{HttpRequest, web};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use memchr::memchr2;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::access;
use super::listener::intake::Exchange;
use super::memory::HeldMemory;
use super::observer::{Part, timed};
use crate::app::ExampleApp;
use crate::config::{BODY_BYTES_RESERVED_MAX, REJECTED_BODY_KEPT, REQUEST_BODY_DEADLINE};
use crate::error::{ApiError, Details};

/// Reads the body of a client's request, whatever its `Content-Type`, and reserves memory for it. The memory is
/// reserved first: what is not read stays with the client.
///
/// # Errors
///
/// The body is too long, broken or late, or other requests hold all memory.
pub async fn read_client_body(
    app: &ExampleApp,
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<(Bytes, HeldMemory), ApiError> {
    let bytes_max = app.limits.request_bytes;
    let bytes = if request.headers().contains_key(header::TRANSFER_ENCODING) {
        bytes_max
    } else {
        announced_bytes(request).unwrap_or_default().min(bytes_max)
    };
    let read = async {
        match app.client_memory.for_request(bytes).await {
            Ok(mut held) => {
                let body = read_body(request, payload, bytes_max).await?;
                // The length of a chunked body is known only now.
                held.keep_for_request(body.len());
                Ok((body, held))
            }
            Err(error) => {
                keep_for_a_while(payload);
                Err(error)
            }
        }
    };
    timed(request, Part::Body, read).await
}

fn announced_bytes(request: &HttpRequest) -> Option<usize> {
    request.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads the body of a request, whatever its `Content-Type`.
pub async fn read_body(request: &HttpRequest, payload: web::Payload, bytes_max: usize) -> Result<Bytes, ApiError> {
    let announced = announced_bytes(request);
    if let Some(size) = announced.filter(|size| *size > bytes_max) {
        return Err(ApiError::too_large("request", bytes_max, size));
    }
    let mut payload = payload;
    // A client may announce a length without sending that much, so the buffer grows with the body.
    let announced = announced.unwrap_or_default().min(BODY_BYTES_RESERVED_MAX);
    let collected = collect(request, &mut payload, bytes_max, announced);
    let result = tokio::time::timeout(REQUEST_BODY_DEADLINE, collected).await;
    if !matches!(result, Ok(Ok(_))) {
        keep_for_a_while(payload);
    }
    match result {
        Ok(Ok(body)) => {
            access::check_body(request, &body).await?;
            Ok(body)
        }
        Ok(error) => error,
        Err(_) => Err(ApiError::RequestTimeout(Details::not_applied(format!(
            "the body did not arrive within {} seconds",
            REQUEST_BODY_DEADLINE.as_secs()
        )))),
    }
}

/// Rejects a body on a route that accepts none. A chunked body may be empty, which counts as no body.
pub async fn reject_body(app: &ExampleApp, request: &HttpRequest, payload: web::Payload) -> Result<(), ApiError> {
    let headers = request.headers();
    let unexpected = || {
        let message = format!("{} {} must not have a body on node {}", request.method(), request.path(), app.id);
        Err(ApiError::bad_request("unexpected_body", message))
    };
    if headers.contains_key(header::TRANSFER_ENCODING) {
        return match read_body(request, payload, 0).await {
            Err(ApiError::TooLarge(_)) => unexpected(),
            read => read.map(drop),
        };
    }
    if headers.get(header::CONTENT_LENGTH).is_some_and(|length| length.as_bytes().iter().any(|digit| *digit != b'0')) {
        keep_for_a_while(payload);
        return unexpected();
    }
    Ok(())
}

async fn collect(
    request: &HttpRequest,
    payload: &mut web::Payload,
    bytes_max: usize,
    announced: usize,
) -> Result<Bytes, ApiError> {
    let mut next = async || match payload.next().await {
        None => Ok(None),
        Some(Ok(chunk)) => Ok(Some(chunk)),
        Some(Err(error)) => {
            let why = match (Exchange::broken_body(request), error) {
                (Some(why), _) => why.to_owned(),
                (None, PayloadError::Incomplete(_)) => "the connection ended before the end of the body".to_owned(),
                (None, error) => error.to_string(),
            };
            Err(ApiError::bad_request("broken_body", format!("the body is invalid: {why}")))
        }
    };
    // Nearly every body arrives in one piece, which is not copied.
    let Some(first) = next().await? else { return Ok(Bytes::new()) };
    if first.len() > bytes_max {
        return Err(ApiError::too_large("request", bytes_max, first.len()));
    }
    let Some(second) = next().await? else { return Ok(first) };
    let mut body = BytesMut::with_capacity(announced.max(first.len() + second.len()));
    body.extend_from_slice(&first);
    let mut chunk = second;
    loop {
        if body.len() + chunk.len() > bytes_max {
            return Err(ApiError::too_large("request", bytes_max, body.len() + chunk.len()));
        }
        body.extend_from_slice(&chunk);
        match next().await? {
            Some(next) => chunk = next,
            None => return Ok(body.freeze()),
        }
    }
}

/// Keeps a rejected body until the response is written: dropping it would close the connection first.
pub fn keep_for_a_while(payload: impl Stream + 'static) {
    tokio::task::spawn_local(async move {
        tokio::time::sleep(REJECTED_BODY_KEPT).await;
        drop(payload);
    });
}

/// Decodes a JSON body. The error names what was `expected`.
pub fn parse_json<T: DeserializeOwned>(body: &[u8], expected: &str) -> Result<T, ApiError> {
    if body.trim_ascii().is_empty() {
        return Err(ApiError::bad_request("invalid_json", format!("the body is empty; expected {expected}")));
    }
    serde_json::from_slice(body).map_err(|error| {
        // serde has the same message for valid JSON that does not have the shape of an enum.
        let is_shape = error.to_string().starts_with("expected value");
        if is_shape && serde_json::from_slice::<IgnoredAny>(body).is_ok() {
            return ApiError::bad_request("invalid_json", format!("the JSON has the wrong shape; expected {expected}"));
        }
        ApiError::invalid_json(&error, expected)
    })
}

/// Rejects lists that are not nested in exactly `objects` objects, after the body was decoded.
///
/// The decoder accepts a list of values in place of an object with names. Its meaning would change with each new name.
pub fn check_lists(body: &[u8], objects: usize, expected: &str) -> Result<(), ApiError> {
    let mut depth = 0;
    let mut rest = body.iter();
    while let Some(byte) = rest.next() {
        match byte {
            b'"' => rest = after_string(rest.as_slice()).iter(),
            b'[' if depth != objects => {
                let message = format!("found a list instead of an object; expected {expected}");
                return Err(ApiError::bad_request("invalid_json", message));
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
    }
    Ok(())
}

/// The rest of the JSON after a string, whose first quote has been read.
fn after_string(mut rest: &[u8]) -> &[u8] {
    while let Some(position) = memchr2(b'"', b'\\', rest) {
        if rest[position] == b'"' {
            return &rest[position + 1..];
        }
        rest = rest.get(position + 2..).unwrap_or_default();
    }
    &[]
}
