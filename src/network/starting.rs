//! Answers while a node opens its data, which may take minutes: `/livez` says that the process works, and everything
//! else that the node is starting.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{self, ready};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use actix_http::body::BoxBody;
use actix_http::error::DispatchError;
use actix_http::{HttpService, KeepAlive, Protocol, Request, Response};
use actix_server::{Server, ServerHandle};
use actix_service::{ServiceFactoryExt, fn_service};
use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpResponse, ResponseError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::listener::handshake;
use super::listener::stream::{Socket, Stream};
use super::reply::is_v1;
use super::v1;
use crate::config::{
    REQUEST_HEAD_DEADLINE, STARTING_CONNECTIONS_KEPT, STARTING_CONNECTIONS_MAX, STARTING_SHUTDOWN_DEADLINE,
    TLS_HANDSHAKE_DEADLINE,
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
        // They share the connections of the server.
        let kept = STARTING_CONNECTIONS_KEPT / listeners.len().max(1);
        for listener in listeners {
            let (listener, tls) = (listener.try_clone()?, tls.cloned());
            server = server.listen("starting", listener, move || {
                let (tls, places) = (tls.clone(), Rc::new(Places::new(kept)));
                let http = HttpService::build()
                    // The client's next request is for the node itself.
                    .keep_alive(KeepAlive::Disabled)
                    .client_request_timeout(REQUEST_HEAD_DEADLINE)
                    .finish(|request: Request| ready(Ok::<_, Infallible>(answer(request.path()))));
                fn_service(move |stream: TcpStream| accept(tls.clone(), places.enter(), stream)).and_then(http)
            })?;
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

/// The connections of a listener, oldest first; some have ended.
///
/// Clients that connect and send nothing must not keep others from being accepted, as a started node's connection
/// limits ensure. Each connection carries one request, so all of them wait for it.
struct Places {
    kept: usize,
    places: RefCell<VecDeque<Weak<Place>>>,
}

/// A connection among the others.
#[derive(Default)]
struct Place {
    is_to_end: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

impl Places {
    fn new(kept: usize) -> Self {
        Places { kept, places: RefCell::default() }
    }

    /// Adds a connection. Closes the oldest one if they are too many.
    fn enter(&self) -> Rc<Place> {
        let mut places = self.places.borrow_mut();
        places.retain(|place| place.strong_count() > 0);
        if places.len() >= self.kept
            && let Some(oldest) = places.pop_front().and_then(|oldest| oldest.upgrade())
        {
            oldest.is_to_end.set(true);
            if let Some(waker) = oldest.waker.take() {
                waker.wake();
            }
        }
        let place = Rc::new(Place::default());
        places.push_back(Rc::downgrade(&place));
        place
    }
}

impl Place {
    /// Ready once the connection is to be closed.
    fn poll_end(&self, context: &Context<'_>) -> Poll<()> {
        if self.is_to_end.get() {
            return Poll::Ready(());
        }
        self.waker.set(Some(context.waker().clone()));
        Poll::Pending
    }
}

/// A connection that ends early if it is closed to make room.
struct Placed {
    stream: Stream,
    place: Rc<Place>,
}

/// Makes a TLS handshake, if the node speaks TLS.
async fn accept(
    tls: Option<Arc<Tls>>,
    place: Rc<Place>,
    stream: TcpStream,
) -> Result<(Placed, Protocol, Option<SocketAddr>), DispatchError> {
    let peer = stream.peer_addr().ok();
    let stream = match tls {
        None => Some(Stream::Plain(stream)),
        Some(tls) => tokio::select! {
            biased;
            () = future::poll_fn(|context| place.poll_end(context)) => None,
            shaken = tokio::time::timeout(TLS_HANDSHAKE_DEADLINE, encrypted(&tls, stream)) => shaken.ok().flatten(),
        },
    };
    let stream = stream.ok_or(DispatchError::DisconnectTimeout)?;
    Ok((Placed { stream, place }, Protocol::Http1, peer))
}

async fn encrypted(tls: &Tls, stream: TcpStream) -> Option<Stream> {
    if !future::poll_fn(|context| handshake::poll_begins_tls(&stream, context)).await.ok()?? {
        handshake::reject_plain(stream).await;
        return None;
    }
    match TlsAcceptor::from(tls.server()).accept(Socket::new(stream)).into_fallible().await {
        Ok(session) => Some(Stream::Tls(Box::new(session))),
        Err((_, socket)) => {
            // The client must get the alert, which says why.
            handshake::end_with(socket.into_inner()?, &[]).await;
            None
        }
    }
}

impl AsyncRead for Placed {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let placed = self.get_mut();
        match placed.place.poll_end(context) {
            Poll::Ready(()) => Poll::Ready(Ok(())),
            Poll::Pending => Pin::new(&mut placed.stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Placed {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
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

    use tokio::io::AsyncWriteExt;

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

    /// A node with TLS answers during a start over TLS, and says so to clients without it.
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
            for path in ["/livez", "/v1/kv/a", "/write"] {
                let plain = tokio::task::spawn_blocking(move || get(addr, path)).await.unwrap();
                assert!(plain.starts_with("HTTP/1.1 400 ") && plain.contains("this node speaks TLS"), "{plain}");
                assert_eq!(plain.contains(r#"{"error":{"code":"tls_required""#), path.starts_with("/v1/"), "{plain}");
            }
            starting.end().await;
        }
    }

    /// Connections that send nothing, a part of a handshake or a part of a request do not delay probes.
    ///
    /// Method: on two listeners, open more of them than are accepted, and request `/livez` well before their deadlines.
    #[tokio::test]
    async fn silent_connections_do_not_delay_probes() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        let node = NewNode { id: 1, hosts: vec!["127.0.0.1".to_owned()] };
        issue::init(directory.path(), &[node], 1).unwrap();
        let files = NodeFiles { certificate: file("node-1.pem"), key: file("node-1-key.pem"), ca: file("ca.pem") };
        let tls = Arc::new(Tls::open(1, files, false).unwrap());
        let (hello, head) = (&[22, 3, 1, 1, 0, 1][..], &b"GET /livez HTTP/1.1\r\n"[..]);
        for (tls, begun) in [(None, &[][..]), (None, head), (Some(&tls), &[][..]), (Some(&tls), hello)] {
            let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
            let addrs = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
            let addr = addrs[0];
            let starting = Starting::begin(&listeners, tls).unwrap();
            let http = connections_with(ClientTls::from_ca(&file("ca.pem")).unwrap().config());
            let mut silent = Vec::new();
            for number in 0..2 * STARTING_CONNECTIONS_MAX {
                let mut stream = tokio::net::TcpStream::connect(addrs[number % 2]).await.unwrap();
                stream.write_all(begun).await.unwrap();
                silent.push(stream);
            }
            let scheme = if tls.is_some() { "https" } else { "http" };
            let request = http.get(format!("{scheme}://{addr}/livez")).timeout(REQUEST_HEAD_DEADLINE / 2);
            let response = request.send().await.unwrap_or_else(|error| panic!("{scheme} {begun:?}: {error:?}"));
            assert_eq!(response.status(), 200);
            drop(silent);
            starting.end().await;
        }
    }

    fn get(addr: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(addr).unwrap();
        // At once: of a plain request to a node with TLS, only the first bytes that arrive are examined.
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes()).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response
    }
}
