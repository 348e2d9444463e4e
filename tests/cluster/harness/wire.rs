//! A connection that sends raw bytes, and reads responses one by one.

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::eventually::DEADLINE;

/// A connection to a node.
pub struct Wire {
    stream: BufReader<TcpStream>,
}

/// One response, framed according to RFC 9112.
#[derive(Debug)]
pub struct WireResponse {
    /// The version of the status line, such as `HTTP/1.1`.
    pub version: String,
    /// The HTTP status.
    pub status: u16,
    /// The header lines, in lower case.
    pub headers: Vec<String>,
    /// The body, without its transfer coding.
    pub body: Vec<u8>,
}

impl Wire {
    /// Connects to a node.
    pub async fn open(addr: &str) -> Self {
        Wire { stream: BufReader::new(TcpStream::connect(addr).await.unwrap()) }
    }

    /// Sends bytes.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Closes the sending half.
    pub async fn finish(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// Reads the response to a request with this method.
    pub async fn response_to(&mut self, method: &str) -> WireResponse {
        let read = self.read_response(method);
        tokio::time::timeout(DEADLINE, read).await.unwrap_or_else(|_| panic!("no whole response to {method}"))
    }

    async fn read_response(&mut self, method: &str) -> WireResponse {
        let mut response = self.read_head().await;
        if method == "HEAD" || response.status == 304 {
            return response;
        }
        if response.header("transfer-encoding") == Some("chunked") {
            loop {
                let size = self.line().await;
                let size = usize::from_str_radix(&size, 16).unwrap_or_else(|_| panic!("{size:?} after {response:?}"));
                let mut chunk = vec![0; size + 2];
                self.stream.read_exact(&mut chunk).await.unwrap();
                if size == 0 {
                    return response;
                }
                response.body.extend_from_slice(&chunk[..size]);
            }
        }
        match response.header("content-length") {
            Some(length) => {
                response.body = vec![0; length.parse().unwrap()];
                self.stream.read_exact(&mut response.body).await.unwrap();
            }
            None => {
                self.stream.read_to_end(&mut response.body).await.unwrap();
            }
        }
        response
    }

    /// Reads the head of a response.
    pub async fn read_head(&mut self) -> WireResponse {
        let line = self.line().await;
        let mut parts = line.splitn(3, ' ');
        let version = parts.next().unwrap_or_default().to_owned();
        let status = parts.next().and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("not a status line: {line:?}"));
        let mut headers = Vec::new();
        loop {
            let header = self.line().await;
            if header.is_empty() {
                return WireResponse { version, status, headers, body: Vec::new() };
            }
            headers.push(header.to_ascii_lowercase());
        }
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).await.unwrap();
        assert!(line.ends_with("\r\n"), "the node closed the connection after {line:?}");
        line.truncate(line.len() - 2);
        line
    }

    /// Reads until a text has arrived; returns everything up to its end.
    pub async fn read_until(&mut self, text: &str) -> String {
        let mut read = Vec::new();
        let find = async {
            while !String::from_utf8_lossy(&read).contains(text) {
                let byte = self.stream.read_u8().await.unwrap_or_else(|error| panic!("{error} before {text:?}"));
                read.push(byte);
            }
        };
        let found = tokio::time::timeout(DEADLINE, find).await;
        let read = String::from_utf8_lossy(&read).into_owned();
        assert!(found.is_ok(), "no {text:?} in {read:?}");
        read
    }

    /// Asserts that the node closes the connection without another byte.
    pub async fn assert_closed(mut self, what: &str) {
        let mut rest = Vec::new();
        let read = tokio::time::timeout(DEADLINE, self.stream.read_to_end(&mut rest)).await;
        let read = read.unwrap_or_else(|_| panic!("{what}: the connection stays open"));
        let rest = String::from_utf8_lossy(&rest);
        assert!(read.is_ok() && rest.is_empty(), "{what}: {read:?}, {rest:?}");
    }
}

impl WireResponse {
    /// The value of a header, in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|header| header.strip_prefix(name)?.strip_prefix(':').map(str::trim))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Connects to a node, and sends these bytes.
pub async fn connect_and_send(addr: &str, bytes: impl AsRef<[u8]>) -> TcpStream {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(bytes.as_ref()).await.unwrap();
    stream
}

/// Reads the start of a response, and returns its status.
pub async fn read_status(stream: &mut TcpStream) -> u16 {
    let mut line = [0; 12];
    tokio::time::timeout(DEADLINE, stream.read_exact(&mut line)).await.expect("the node must respond").unwrap();
    String::from_utf8_lossy(&line[9..]).parse().unwrap()
}
