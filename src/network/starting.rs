//! Answers while a node opens its data, which may take minutes: `/livez` says that the process works, and everything
//! else that the node is starting.

use std::convert::Infallible;
use std::future::ready;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use actix_http::body::BoxBody;
use actix_http::error::DispatchError;
use actix_http::{HttpService, KeepAlive, Protocol, Request, Response};
use actix_server::{Server, ServerHandle};
use actix_service::{ServiceFactoryExt, fn_service};
use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpResponse, ResponseError};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::reply::is_v1;
use super::v1;
use crate::config::{
    REQUEST_HEAD_DEADLINE, STARTING_CONNECTIONS_MAX, STARTING_SHUTDOWN_DEADLINE, TLS_HANDSHAKE_DEADLINE,
};
use crate::error::{ApiError, Retry};
use crate::tls::Tls;

/// A server on the node's listeners, until the node serves them itself.
pub struct Starting {
    handle: ServerHandle,
    server: JoinHandle<io::Result<()>>,
}

impl Starting {
    /// Begins to answer.
    ///
    /// # Errors
    ///
    /// The system has no more files or threads.
    pub fn begin(listeners: &[TcpListener], tls: Option<&Arc<Tls>>) -> io::Result<Self> {
        let mut server = Server::build()
            .workers(1)
            .max_concurrent_connections(STARTING_CONNECTIONS_MAX)
            .shutdown_timeout(STARTING_SHUTDOWN_DEADLINE.as_secs())
            .disable_signals();
        for listener in listeners {
            let listener = listener.try_clone()?;
            server = match tls {
                None => server.listen("starting", listener, || {
                    HttpService::build()
                        // The client's next request is for the node itself.
                        .keep_alive(KeepAlive::Disabled)
                        .client_request_timeout(REQUEST_HEAD_DEADLINE)
                        .finish(|request: Request| ready(Ok::<_, Infallible>(answer(request.path()))))
                        .tcp()
                })?,
                Some(tls) => {
                    let tls = tls.clone();
                    server.listen("starting", listener, move || {
                        let http = HttpService::build()
                            .keep_alive(KeepAlive::Disabled)
                            .client_request_timeout(REQUEST_HEAD_DEADLINE)
                            .finish(|request: Request| ready(Ok::<_, Infallible>(answer(request.path()))));
                        let tls = tls.clone();
                        fn_service(move |stream: TcpStream| encrypted(tls.clone(), stream)).and_then(http)
                    })?
                }
            };
        }
        let server = server.run();
        Ok(Starting { handle: server.handle(), server: tokio::spawn(server) })
    }

    /// Stops answering. Connections that wait to be accepted stay for the node.
    pub async fn end(self) {
        self.handle.stop(true).await;
        // An error would only mean that it has ended already.
        let _ = self.server.await;
    }
}

/// Makes a TLS handshake.
async fn encrypted(
    tls: Arc<Tls>,
    stream: TcpStream,
) -> Result<(TlsStream<TcpStream>, Protocol, Option<SocketAddr>), DispatchError> {
    let peer = stream.peer_addr().ok();
    let accept = TlsAcceptor::from(tls.server()).accept(stream);
    match tokio::time::timeout(TLS_HANDSHAKE_DEADLINE, accept).await {
        Ok(Ok(stream)) => Ok((stream, Protocol::Http1, peer)),
        Ok(Err(_)) | Err(_) => Err(DispatchError::DisconnectTimeout),
    }
}

fn answer(path: &str) -> Response<BoxBody> {
    const STARTING: &str = "this node is opening its data; retry, or use another node";
    let text_type = (header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    let response = match path {
        "/livez" => HttpResponse::Ok().insert_header(text_type).body("ok\n"),
        "/readyz" => {
            let text = format!("[-]started: {STARTING}\nreadyz failed\n");
            HttpResponse::build(StatusCode::SERVICE_UNAVAILABLE).insert_header(text_type).body(text)
        }
        "/health" => HttpResponse::build(StatusCode::SERVICE_UNAVAILABLE)
            .json(serde_json::json!({"health": "false", "reason": format!("started: {STARTING}")})),
        path => {
            let error = ApiError::Recovering(Retry::soon(STARTING));
            if is_v1(path) { v1::error_answer(&error) } else { error.error_response() }
        }
    };
    response.into()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;
    use crate::connection::connections_with;
    use crate::tls::issue::{self, NewNode};
    use crate::tls::{ClientTls, NodeFiles};

    /// While a node opens its data, its probes and its errors say so. A connection that is not yet accepted when the
    /// node is ready is served by the node.
    ///
    /// Method: send requests, end the server, connect, and accept the connection from the original listener.
    #[tokio::test]
    async fn probes_are_answered_during_a_start() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let starting = Starting::begin(std::slice::from_ref(&listener), None).unwrap();
        for (path, status, part) in [
            ("/livez", 200, "ok\n"),
            ("/livez?verbose", 200, "ok\n"),
            ("/readyz", 503, "[-]started: "),
            ("/health", 503, r#"{"health":"false","#),
            ("/v1/kv/a", 503, r#"{"error":{"code":"recovering","#),
            ("/write", 503, r#"{"Err":{"Recovering":"#),
        ] {
            let response = tokio::task::spawn_blocking(move || get(addr, path)).await.unwrap();
            assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {response}");
            assert!(response.contains(part), "{path}: {response}");
        }
        starting.end().await;
        let mut client = TcpStream::connect(addr).unwrap();
        listener.set_nonblocking(false).unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        client.write_all(b"x").unwrap();
        let mut byte = [0];
        accepted.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    /// A node with TLS answers during a start over TLS, and to nothing else.
    #[tokio::test]
    async fn probes_are_answered_over_tls() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        let node = NewNode { id: 1, hosts: vec!["127.0.0.1".to_owned()] };
        issue::init(directory.path(), &[node], 1).unwrap();
        let files = NodeFiles { certificate: file("node-1.pem"), key: file("node-1-key.pem"), ca: file("ca.pem") };
        let ca = file("ca.pem");
        let (certificate, key) = (file("client.pem"), file("client-key.pem"));
        for demands_certificates in [false, true] {
            let tls = Arc::new(Tls::open(1, files.clone(), demands_certificates).unwrap());
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let addr = listener.local_addr().unwrap();
            let starting = Starting::begin(std::slice::from_ref(&listener), Some(&tls)).unwrap();
            let known = connections_with(ClientTls::from_files(&ca, &certificate, &key).unwrap().config());
            for (path, status, part) in
                [("/livez", 200, "ok\n"), ("/v1/kv/a", 503, "recovering"), ("/raft-status", 503, "Recovering")]
            {
                let response = known.get(format!("https://{addr}{path}")).send().await.unwrap();
                assert_eq!(response.status().as_u16(), status, "{path}");
                let text = response.text().await.unwrap();
                assert!(text.contains(part), "{path}: {text}");
            }
            let unknown = connections_with(ClientTls::from_ca(&ca).unwrap().config());
            let answered = unknown.get(format!("https://{addr}/livez")).send().await;
            assert_eq!(answered.is_ok(), !demands_certificates, "{answered:?}");
            let plain = tokio::task::spawn_blocking(move || {
                let mut stream = TcpStream::connect(addr).unwrap();
                write!(stream, "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
                let mut response = Vec::new();
                // The connection may be reset.
                let _ = stream.read_to_end(&mut response);
                String::from_utf8_lossy(&response).into_owned()
            });
            let plain = plain.await.unwrap();
            assert!(!plain.contains("HTTP/"), "{plain}");
            starting.end().await;
        }
    }

    fn get(addr: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(addr).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response
    }
}
