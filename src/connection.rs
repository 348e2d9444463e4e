//! Outgoing HTTP: how this program connects to nodes, and how it reads their responses.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use rustls::ClientConfig;

use crate::config::{CONNECT_DEADLINE, CONNECTION_IDLE_MAX, TLS_NODES_MAX, is_unspecified_ip};
use crate::tls::{self, Tls, why_invalid};
use crate::types::NodeId;

/// Connections to nodes, which are kept and used again.
pub fn connections() -> reqwest::Client {
    connections_with(tls::no_tls())
}

/// The same over TLS with these settings.
pub fn connections_with(tls: ClientConfig) -> reqwest::Client {
    reqwest::Client::builder()
        .no_proxy() // Nodes are dialed directly, whatever the environment says.
        .redirect(reqwest::redirect::Policy::none())
        .tcp_nodelay(true)
        .connect_timeout(CONNECT_DEADLINE)
        .pool_idle_timeout(CONNECTION_IDLE_MAX)
        .tls_info(true)
        .tls_backend_preconfigured(tls)
        .build()
        .expect("a client with its own TLS settings and without proxies needs nothing that could be missing")
}

/// How a node dials other nodes for one purpose, with connections of its own.
///
/// With TLS, each node is dialed with settings that accept no other node's certificate. After the TLS files of this
/// node were reloaded, it opens new connections: the other node of an old one may no longer be trusted.
#[derive(Debug)]
pub struct Dialer {
    plain: reqwest::Client,
    tls: Option<OverTls>,
}

#[derive(Debug)]
struct OverTls {
    tls: Arc<Tls>,
    /// By the node's id, or `None` if that is not known, with the number of the TLS files.
    clients: Mutex<HashMap<Option<NodeId>, (u64, reqwest::Client)>>,
}

impl Dialer {
    /// A dialer without connections.
    pub fn new(tls: Option<Arc<Tls>>) -> Self {
        Dialer { plain: connections(), tls: tls.map(|tls| OverTls { tls, clients: Mutex::default() }) }
    }

    /// The client for requests to node `id`; to any node if that is `None`.
    pub fn to(&self, id: Option<NodeId>) -> reqwest::Client {
        let Some(OverTls { tls, clients }) = &self.tls else { return self.plain.clone() };
        let number = tls.number();
        let mut clients = clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made_for, client)) = clients.get(&id)
            && *made_for == number
        {
            return client.clone();
        }
        // Without settings, a request over TLS fails: the client knows no CA.
        let client = tls.to_node(id).map_or_else(|_| self.plain.clone(), connections_with);
        if clients.len() >= TLS_NODES_MAX {
            clients.clear();
        }
        clients.insert(id, (number, client.clone()));
        client
    }

    /// The URL of a path at a node.
    pub fn url(&self, addr: &str, path: &str) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{addr}{path}")
    }
}

/// The node that responded, by its certificate; `None` without TLS.
pub fn certified_node(response: &reqwest::Response) -> Option<NodeId> {
    tls::node_of(response.extensions().get::<reqwest::tls::TlsInfo>()?.peer_certificate()?)
}

/// What ended the TLS handshake, if something did. The other side has then processed no request on the connection.
pub fn tls_error_of(error: &reqwest::Error) -> Option<&rustls::Error> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // The source of an I/O error is that of the error within it, which would be skipped.
        let within = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        cause = match within {
            Some(within) => Some(within),
            None => error.source(),
        };
    }
    None
}

/// Whether a request was never sent, or the other side rejected the TLS connection before it read anything.
pub fn is_unsent(error: &reqwest::Error) -> bool {
    use rustls::AlertDescription::{
        AccessDenied, BadCertificate, CertificateExpired, CertificateRequired, CertificateUnknown, DecryptError,
        HandshakeFailure, ProtocolVersion, UnknownCA, UnsupportedCertificate,
    };
    error.is_connect()
        || matches!(
            tls_error_of(error),
            // The alerts of a handshake. The client may have sent the request together with its last part.
            Some(rustls::Error::AlertReceived(
                AccessDenied
                    | BadCertificate
                    | CertificateExpired
                    | CertificateRequired
                    | CertificateUnknown
                    | DecryptError
                    | HandshakeFailure
                    | ProtocolVersion
                    | UnknownCA
                    | UnsupportedCertificate
            ))
        )
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
    if let Some(error) = tls_error_of(error) {
        return why_invalid(error);
    }
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
