//! Outgoing HTTP: how this program connects to nodes, and how it reads their responses.

use bytes::{Bytes, BytesMut};

use crate::config::{CONNECT_DEADLINE, CONNECTION_IDLE_MAX, is_unspecified_ip};

/// Connections to nodes, which are kept and used again.
pub fn connections() -> reqwest::Client {
    reqwest::Client::builder()
        .no_proxy() // Nodes are dialed directly, whatever the environment says.
        .redirect(reqwest::redirect::Policy::none())
        .tcp_nodelay(true)
        .connect_timeout(CONNECT_DEADLINE)
        .pool_idle_timeout(CONNECTION_IDLE_MAX)
        .build()
        .expect("a client without TLS and without proxies needs nothing that could be missing")
}

/// Whether a name resolves to an address that stands for all addresses of a machine.
pub async fn resolves_to_every_address(addr: &str) -> bool {
    match tokio::time::timeout(CONNECT_DEADLINE, tokio::net::lookup_host(addr)).await {
        Ok(Ok(mut found)) => found.any(|found| is_unspecified_ip(found.ip())),
        // Connecting to it gives the reason.
        Ok(Err(_)) | Err(_) => false,
    }
}

/// Why a request failed, by its innermost cause, which says the most.
pub fn reason_of(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "it did not respond in time".to_owned();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Why the body of a response was not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection broke, or the deadline of the request passed.
    #[error("{}", reason_of(.0))]
    Broken(reqwest::Error),
    /// No node sends so much in response to this request.
    #[error("its response is longer than {limit} bytes")]
    TooLong {
        /// The longest body that is read, in bytes.
        limit: usize,
    },
}

/// Reads the body of a response of at most `bytes_max` bytes.
///
/// A request may name any address, and what listens there may send without end. The deadline of
/// the request bounds how long it may take.
///
/// # Errors
///
/// If the body is longer, or does not arrive. The connection is closed then.
pub async fn read_response(mut response: reqwest::Response, bytes_max: usize) -> Result<Bytes, BodyError> {
    let too_long = || BodyError::TooLong { limit: bytes_max };
    if response.content_length().is_some_and(|length| length > bytes_max as u64) {
        return Err(too_long());
    }
    let mut next = async || response.chunk().await.map_err(BodyError::Broken);
    // Nearly every body comes in one piece, and is not copied.
    let Some(first) = next().await? else { return Ok(Bytes::new()) };
    let mut chunk = match next().await? {
        None if first.len() <= bytes_max => return Ok(first),
        None => return Err(too_long()),
        Some(second) => second,
    };
    let mut body = BytesMut::from(&first[..]);
    loop {
        if body.len() + chunk.len() > bytes_max {
            return Err(too_long());
        }
        body.extend_from_slice(&chunk);
        match next().await? {
            Some(next) => chunk = next,
            None => return Ok(body.freeze()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// A response is read up to the limit, and not beyond, whether it says how long it is or not.
    #[tokio::test]
    async fn responses_are_bounded() {
        const LIMIT: usize = 300_000;
        for (length, is_read) in [(0, true), (1, true), (LIMIT, true), (LIMIT + 1, false), (10 * LIMIT, false)] {
            for announced in [true, false] {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                let addr = listener.local_addr().unwrap();
                let server = std::thread::spawn(move || {
                    let (mut stream, _) = listener.accept().unwrap();
                    let _ = stream.read(&mut [0; 4096]).unwrap();
                    let header = if announced { format!("content-length: {length}\r\n") } else { String::new() };
                    let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\n{header}\r\n");
                    // The reader closes the connection when it has had enough.
                    let _ = stream.write_all(&[head.into_bytes(), vec![b'x'; length]].concat());
                });
                let response = connections().get(format!("http://{addr}/")).send().await.unwrap();
                let result = read_response(response, LIMIT).await;
                match result {
                    Ok(body) => assert!(is_read && body.len() == length, "{length}: {}", body.len()),
                    Err(BodyError::TooLong { limit }) => assert!(!is_read && limit == LIMIT, "{length}"),
                    Err(error) => panic!("{length}: {error}"),
                }
                server.join().unwrap();
            }
        }
    }
}
