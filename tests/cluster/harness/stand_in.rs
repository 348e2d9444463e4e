//! A server at the address of a node that is not one.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

/// Responds to requests as a test specifies.
#[derive(Debug)]
pub struct StandIn {
    /// The address that it listens on.
    pub addr: String,
}

impl StandIn {
    /// Starts the server. `answer` gets the path and the body of each request and writes the response; then the
    /// connection is closed.
    pub fn start(answer: impl Fn(&str, &[u8], &mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let answer = Arc::new(answer);
        // This thread ends with the process, since it waits for further connections.
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let answer = answer.clone();
                std::thread::spawn(move || {
                    if let Some((path, body)) = read_request(&mut stream) {
                        answer(&path, &body, &mut stream);
                    }
                });
            }
        });
        StandIn { addr }
    }
}

/// Writes a whole response.
pub fn respond(stream: &mut TcpStream, status: &str, body: &[u8]) {
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    // The client may have gone.
    let _ = stream.write_all(&[head.as_bytes(), body].concat());
}

/// The path and the body of a request; `None` if it is cut short.
fn read_request(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut received = Vec::new();
    let mut piece = [0; 16 << 10];
    loop {
        if let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&received[..end]).to_ascii_lowercase();
            let path = head.split(' ').nth(1)?.to_owned();
            let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
            let length: usize = length.map_or(Some(0), |length| length.parse().ok())?;
            if received.len() >= end + 4 + length {
                return Some((path, received[end + 4..][..length].to_vec()));
            }
        }
        match stream.read(&mut piece).ok()? {
            0 => return None,
            read => received.extend_from_slice(&piece[..read]),
        }
    }
}
