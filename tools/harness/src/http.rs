//! A small HTTP/1.1 client, which does not hide how a request failed.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use http::header::{AUTHORIZATION, HOST};
pub use http::{HeaderMap, Method, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Body;
pub use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// A request whose body is in memory.
pub type Request = http::Request<Full<Bytes>>;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How a request failed. The causes are part of the message.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing was sent.
    #[error("cannot connect to {address}: {error}")]
    Connect { address: SocketAddr, error: io::Error },
    /// The connection failed. The request may have been sent.
    #[error("{0}")]
    Failed(BoxError),
    /// The response was not complete in time. The request may have been sent.
    #[error("no response within {0:?}")]
    TimedOut(Duration),
}

impl Error {
    fn failed(error: hyper::Error) -> Self {
        use std::error::Error as _;
        match error.source() {
            Some(source) => Error::Failed(format!("{error}: {source}").into()),
            None => Error::Failed(error.into()),
        }
    }
}

/// Connects a socket that sends small writes at once. The kernel doubles the size of the receive buffer, and
/// enforces a minimum.
pub async fn connect_socket(
    address: SocketAddr,
    local: Option<IpAddr>,
    receive_buffer_bytes: Option<u32>,
) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if let Some(bytes) = receive_buffer_bytes {
        socket.set_recv_buffer_size(bytes)?;
    }
    if let Some(local) = local {
        socket.bind(SocketAddr::new(local, 0))?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

pub fn request(method: Method, target: &str, body: impl Into<Bytes>) -> Request {
    let mut request = Request::new(Full::new(body.into()));
    *request.method_mut() = method;
    *request.uri_mut() = target.parse().expect("the target is a path with a query");
    request
}

pub fn get(target: &str) -> Request {
    request(Method::GET, target, Bytes::new())
}

pub fn json(method: Method, target: &str, body: &impl Serialize) -> Request {
    let body = serde_json::to_vec(body).expect("the body has string keys");
    with_header(request(method, target, body), "content-type", "application/json")
}

pub fn with_header(mut request: Request, name: &'static str, value: &str) -> Request {
    request.headers_mut().insert(name, HeaderValue::from_str(value).expect("the value is printable"));
    request
}

/// A connection with one request in progress at a time.
pub struct Connection<B = Full<Bytes>> {
    requests: SendRequest<B>,
    host: HeaderValue,
    authorization: Option<HeaderValue>,
}

impl<B> Connection<B>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    /// With `tls` the connection is encrypted, and the node's certificate must have the address.
    pub async fn connect(
        address: SocketAddr,
        local: Option<IpAddr>,
        tls: Option<&TlsConnector>,
        limit: Duration,
    ) -> Result<Self, Error> {
        let connecting = async {
            let stream = connect_socket(address, local, None).await?;
            match tls {
                None => Self::over(stream, address).await,
                Some(tls) => Self::over(tls.connect(ServerName::from(address.ip()), stream).await?, address).await,
            }
        };
        let connected = timeout(limit, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        connected.map_err(|error| Error::Connect { address, error })
    }

    async fn over(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        address: SocketAddr,
    ) -> io::Result<Self> {
        let (requests, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        // An error of the connection also fails the requests that wait for it.
        tokio::spawn(connection);
        let host = HeaderValue::try_from(address.to_string()).expect("an address is printable");
        Ok(Connection { requests, host, authorization: None })
    }

    /// Adds the headers that all requests have.
    fn add_headers(&self, request: &mut http::Request<B>) {
        let headers = request.headers_mut();
        headers.entry(HOST).or_insert_with(|| self.host.clone());
        if let Some(authorization) = &self.authorization {
            headers.entry(AUTHORIZATION).or_insert_with(|| authorization.clone());
        }
    }

    pub fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }

    /// Sends a request after the response to the one before was read. Returns the response once its head has
    /// arrived.
    pub async fn open(&mut self, mut request: http::Request<B>) -> Result<Response<Incoming>, Error> {
        self.add_headers(&mut request);
        self.requests.ready().await.map_err(Error::failed)?;
        self.requests.send_request(request).await.map_err(Error::failed)
    }

    /// Sends a request, and returns the complete response.
    pub async fn send(&mut self, request: http::Request<B>) -> Result<Response<Bytes>, Error> {
        complete(self.open(request).await?).await
    }
}

/// Reads the body of a response.
async fn complete(response: Response<Incoming>) -> Result<Response<Bytes>, Error> {
    let (head, body) = response.into_parts();
    let body = body.collect().await.map_err(Error::failed)?.to_bytes();
    Ok(http::Response::from_parts(head, body))
}

/// The next piece of a body; `None` at its end.
pub async fn next_chunk(body: &mut Incoming) -> Result<Option<Bytes>, Error> {
    while let Some(frame) = body.frame().await {
        if let Ok(chunk) = frame.map_err(Error::failed)?.into_data() {
            return Ok(Some(chunk));
        }
    }
    Ok(None)
}

/// A client that keeps its connections for the next requests. Clones share them.
pub struct Client<B = Full<Bytes>> {
    local: Option<IpAddr>,
    tls: Option<TlsConnector>,
    authorization: Option<HeaderValue>,
    connect_limit: Duration,
    kept: Arc<Mutex<HashMap<SocketAddr, Vec<Connection<B>>>>>,
}

impl<B> Clone for Client<B> {
    fn clone(&self) -> Self {
        let Client { local, tls, authorization, connect_limit, kept } = self;
        let (tls, authorization, kept) = (tls.clone(), authorization.clone(), kept.clone());
        Client { local: *local, tls, authorization, connect_limit: *connect_limit, kept }
    }
}

impl<B> fmt::Debug for Client<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("local", &self.local).finish_non_exhaustive()
    }
}

impl<B> Client<B>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    /// `local` is the address from which it connects.
    pub fn new(local: Option<IpAddr>, connect_limit: Duration) -> Self {
        Client { local, tls: None, authorization: None, connect_limit, kept: Arc::default() }
    }

    /// The same client with encrypted connections.
    pub fn with_tls(self, tls: TlsConnector) -> Self {
        Client { tls: Some(tls), kept: Arc::default(), ..self }
    }

    /// The same client, which sends a token with each request. It has connections of its own.
    pub fn with_token(self, token: &str) -> Self {
        let authorization = HeaderValue::try_from(format!("Bearer {token}")).expect("a token is printable");
        Client { authorization: Some(authorization), kept: Arc::default(), ..self }
    }

    /// Opens a connection that no other request uses.
    pub async fn connect(&self, address: SocketAddr) -> Result<Connection<B>, Error> {
        let mut connection = Connection::connect(address, self.local, self.tls.as_ref(), self.connect_limit).await?;
        connection.authorization.clone_from(&self.authorization);
        Ok(connection)
    }

    /// Sends a request. Returns the response once its head has arrived, however long that takes.
    pub async fn open(&self, address: SocketAddr, mut request: http::Request<B>) -> Result<Response<Incoming>, Error> {
        loop {
            let kept = self.take(address);
            let is_new = kept.is_none();
            let mut connection = match kept {
                Some(connection) => connection,
                None => self.connect(address).await?,
            };
            connection.add_headers(&mut request);
            match connection.requests.try_send_request(request).await {
                Ok(response) => {
                    self.keep(address, connection);
                    return Ok(response);
                }
                // The node had closed the connection, so nothing was sent.
                Err(mut error) => match error.take_message() {
                    Some(unsent) if !is_new => request = unsent,
                    _ => return Err(Error::failed(error.into_error())),
                },
            }
        }
    }

    /// Sends a request, and returns the complete response.
    pub async fn send(
        &self,
        address: SocketAddr,
        request: http::Request<B>,
        limit: Duration,
    ) -> Result<Response<Bytes>, Error> {
        let response = async { complete(self.open(address, request).await?).await };
        timeout(limit, response).await.unwrap_or(Err(Error::TimedOut(limit)))
    }

    /// A kept connection whose last response was read completely.
    fn take(&self, address: SocketAddr) -> Option<Connection<B>> {
        let mut kept = self.kept.lock().expect("no thread panics while holding the lock");
        let connections = kept.get_mut(&address)?;
        connections.retain(|connection| !connection.is_closed());
        let ready = connections.iter().position(|connection| connection.requests.is_ready())?;
        Some(connections.swap_remove(ready))
    }

    fn keep(&self, address: SocketAddr, connection: Connection<B>) {
        let mut kept = self.kept.lock().expect("no thread panics while holding the lock");
        kept.entry(address).or_default().push(connection);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    /// Accepts a connection, and answers so many requests on it.
    async fn serve(listener: &TcpListener, requests: usize) {
        let (mut stream, _) = listener.accept().await.unwrap();
        for _ in 0..requests {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        }
    }

    /// Requests share a connection, and a request that finds it closed is sent on a new one.
    ///
    /// Method: a server that closes its first connection after two requests.
    #[tokio::test]
    async fn connections_are_reused_until_they_close() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            serve(&listener, 2).await;
            serve(&listener, 1).await;
        });
        let client = Client::new(None, LIMIT);
        for _ in 0..3 {
            let response = client.send(address, get("/"), LIMIT).await.unwrap();
            assert_eq!((response.status().as_u16(), response.body().as_ref()), (200, b"ok".as_ref()));
        }
        server.await.unwrap();
    }

    /// A failure tells whether something may have been sent.
    ///
    /// Method: a server that reads a request and closes the connection, then one that does not respond; then no
    /// server.
    #[tokio::test]
    async fn failures_are_distinguished() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let client = Client::new(None, LIMIT);
        let closing = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await.unwrap();
        };
        let (failed, ()) = tokio::join!(client.send(address, get("/"), LIMIT), closing);
        assert!(matches!(failed, Err(Error::Failed(_))), "{failed:?}");
        let silent = client.send(address, get("/"), Duration::from_millis(50)).await;
        assert!(matches!(silent, Err(Error::TimedOut(_))), "{silent:?}");
        drop(listener);
        let refused = Client::new(None, LIMIT).send(address, get("/"), LIMIT).await;
        assert!(matches!(refused, Err(Error::Connect { .. })), "{refused:?}");
    }
}
