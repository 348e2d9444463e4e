//! What protects a node: TLS, certificates and keys, tokens and proofs.

use std::fs;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::ready;
use std::time::Duration;

use actix_web::HttpRequest;
use actix_web::http::header::{self, HeaderMap, HeaderValue};
use rcgen::string::Ia5String;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::Acceptor;
use rustls::{ClientConnection, ServerConnection};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};

use super::files::{assert_snapshot_holds, entry, scratch};
use super::network::{LIMITS, assert_json_holds, connection, message_pack, request_of, split_head, taken};
use crate::access::{AccessChange, NewToken, TokenHash};
use crate::config::{TOKEN_NAME_BYTES_MAX, TOKEN_PREFIXES_MAX};
use crate::headers::PROOF;
use crate::level::Level;
use crate::network::access::{Bearer, bearer};
use crate::network::listener::handshake::rejection;
use crate::network::listener::stream::{Socket, Stream};
use crate::network::tokens::{parse_required, parse_wanted};
use crate::operation::{Operation, Write as LoggedWrite};
use crate::proofs::{COVERED, Proofs, Purpose};
use crate::secret::{ROOT_SECRET_BYTES_MIN, Secret};
use crate::store::ExampleStateMachine;
use crate::tls::issue::{self, NewNode};
use crate::tls::{ClientTls, Loaded, NODE_URI, NodeFiles, node_of, why_invalid};
use crate::types::{Command, NodeId, Payload};

/// Longest description of a fault: the log has it.
const DESCRIPTION_BYTES_MAX: usize = 1024;
/// The node whose files are fixed.
const NODE: NodeId = 2;
/// How long reading what was sent may take.
const READ_DEADLINE: Duration = Duration::from_secs(5);

/// Files of `tls init`, made once.
struct Fixed {
    ca: String,
    ca_key: String,
    certificate: String,
    key: String,
    client: String,
    client_key: String,
}

static FIXED: LazyLock<Fixed> = LazyLock::new(|| {
    let directory = scratch();
    let node = NewNode { id: NODE, hosts: vec!["127.0.0.1".to_owned()] };
    issue::init(directory.path(), &[node], 1).expect("certificates are made");
    let read = |name: &str| fs::read_to_string(directory.path().join(name)).expect("it was written");
    Fixed {
        ca: read("ca.pem"),
        ca_key: read("ca-key.pem"),
        certificate: read("node-2.pem"),
        key: read("node-2-key.pem"),
        client: read("client.pem"),
        client_key: read("client-key.pem"),
    }
});

/// Writes the files, and returns the paths of a node's three.
fn written(directory: &Path, certificate: &[u8], key: &[u8], ca: &[u8]) -> NodeFiles {
    let write = |name: &str, bytes: &[u8]| -> PathBuf {
        let path = directory.join(name);
        fs::write(&path, bytes).expect("the file is written");
        path
    };
    NodeFiles {
        certificate: write("certificate.pem", certificate),
        key: write("key.pem", key),
        ca: write("ca.pem", ca),
    }
}

/// A node loads files, or rejects them with an error that quotes nothing. A certificate that passes names the node.
///
/// The first byte selects what the rest is: `f` for the node's certificate, its key and the CA, as PEM with a line `=`
/// in between, of which an empty one stands for a valid one; `d` for a certificate in DER; `n` for lines of names, with
/// which a certificate is made.
pub fn certificates(bytes: &[u8]) {
    match bytes.split_first() {
        Some((b'f', rest)) => files(rest),
        Some((b'd', certificate)) => drop(named(certificate)),
        Some((b'n', names)) => names_of(names),
        _ => {}
    }
}

fn files(bytes: &[u8]) {
    let mut parts: Vec<&[u8]> = Vec::new();
    let mut rest = bytes;
    while let Some(end) = rest.windows(3).position(|window| window == b"\n=\n") {
        parts.push(&rest[..end + 1]);
        rest = &rest[end + 3..];
    }
    parts.push(rest);
    let part = |number: usize, valid: &'static str| {
        parts.get(number).copied().filter(|part| !part.trim_ascii().is_empty()).unwrap_or(valid.as_bytes())
    };
    let (certificate, key) = (part(0, &FIXED.certificate), part(1, &FIXED.key));
    let directory = scratch();
    let files = written(directory.path(), certificate, key, part(2, &FIXED.ca));
    match Loaded::read(&files, NODE, true) {
        Ok(loaded) => {
            let leaf = CertificateDer::from_pem_slice(certificate).expect("it was read");
            assert_eq!(named(&leaf), Some(NODE));
            assert!(loaded.to_node(Some(NODE)).is_ok() && loaded.expires_s > 0);
            // The same files are a client's, too.
            let client = ClientTls::from_files(&files.ca, &files.certificate, &files.key);
            assert!(client.is_ok(), "{:?}", client.err());
        }
        Err(error) => assert_quotes_nothing(&error.to_string(), key),
    }
}

/// Checks that a description is readable, and has no line of a key, which is in Base64. The fuzzer would also find keys
/// that say what a description says: those have spaces and dots.
fn assert_quotes_nothing(description: &str, secret: &[u8]) {
    assert!((1..=DESCRIPTION_BYTES_MAX).contains(&description.len()), "{} bytes", description.len());
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=-_".contains(byte);
    let lines = secret.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    for line in lines.filter(|line| line.len() >= 32 && line.iter().all(is_base64)) {
        let is_quoted = description.as_bytes().windows(line.len()).any(|window| window == line);
        assert!(!is_quoted, "quoted: {description}");
    }
}

/// The node that a certificate names, which then has that name in it, as written.
fn named(certificate: &[u8]) -> Option<NodeId> {
    let id = node_of(certificate)?;
    let uri = format!("{NODE_URI}{id}").into_bytes();
    assert!(id > 0 && certificate.windows(uri.len()).any(|window| window == uri), "{id} is not in the certificate");
    Some(id)
}

/// A certificate names a node if exactly one of its URIs does, in one spelling; others are not loaded.
fn names_of(lines: &[u8]) {
    let lines: Vec<&str> =
        lines.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok()).collect();
    let mut params = CertificateParams::default();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let mut of_nodes = Vec::new();
    for line in lines.into_iter().take(16) {
        let (is_dns, name) = line.strip_prefix("dns ").map_or((false, line), |name| (true, name));
        let Ok(text) = Ia5String::try_from(name) else { continue };
        params.subject_alt_names.push(if is_dns { SanType::DnsName(text) } else { SanType::URI(text) });
        if !is_dns && let Some(id) = name.strip_prefix("rkv:node:") {
            of_nodes.push(id);
        }
    }
    let is_plain = |id: &str| !id.starts_with('0') && id.bytes().all(|byte| byte.is_ascii_digit());
    let expected = match of_nodes[..] {
        [id] if is_plain(id) => id.parse::<NodeId>().ok(),
        _ => None,
    };
    let key = KeyPair::from_pem(&FIXED.key).expect("the key is valid");
    let ca_key = KeyPair::from_pem(&FIXED.ca_key).expect("the key is valid");
    let issuer = Issuer::from_ca_cert_pem(&FIXED.ca, ca_key).expect("the CA is valid");
    let certificate = params.signed_by(&key, &issuer).expect("it is signed");
    assert_eq!(named(certificate.der()), expected);
    let directory = scratch();
    let files = written(directory.path(), certificate.pem().as_bytes(), FIXED.key.as_bytes(), FIXED.ca.as_bytes());
    match Loaded::read(&files, NODE, true) {
        Ok(_) => assert_eq!(expected, Some(NODE)),
        Err(error) => assert_quotes_nothing(&error.to_string(), FIXED.key.as_bytes()),
    }
}

/// A node's side of TLS ends a handshake with an error or a session, never mistakes one client for another, and
/// reads what a client sends in a session.
///
/// The first byte selects what the rest is: `r` for the bytes of a connection, of which the first is the length of the
/// pieces; `m` for changes of the records of a handshake; `s` for what a client sends in a session, after the lengths
/// of the pieces that it writes and that the node reads.
pub fn tls(bytes: &[u8]) {
    match bytes.split_first() {
        Some((b'r', rest)) => raw(rest),
        Some((b'm', changes)) => changed(changes),
        Some((b's', rest)) => session(rest),
        _ => {}
    }
}

fn loaded(demands_certificates: bool) -> Arc<Loaded> {
    static LOADED: LazyLock<[Arc<Loaded>; 2]> = LazyLock::new(|| {
        let directory = scratch();
        let fixed = &FIXED;
        let (certificate, key, ca) = (fixed.certificate.as_bytes(), fixed.key.as_bytes(), fixed.ca.as_bytes());
        let files = written(directory.path(), certificate, key, ca);
        [false, true].map(|demands| Arc::new(Loaded::read(&files, NODE, demands).expect("the files are valid")))
    });
    LOADED[usize::from(demands_certificates)].clone()
}

/// A client, with a certificate or without.
fn client(has_certificate: bool) -> rustls::ClientConfig {
    static CLIENTS: LazyLock<[ClientTls; 2]> = LazyLock::new(|| {
        let directory = scratch();
        let (certificate, key) = (FIXED.client.as_bytes(), FIXED.client_key.as_bytes());
        let files = written(directory.path(), certificate, key, FIXED.ca.as_bytes());
        [ClientTls::from_ca(&files.ca), ClientTls::from_files(&files.ca, &files.certificate, &files.key)]
            .map(|client| client.expect("the files are valid"))
    });
    CLIENTS[usize::from(has_certificate)].config()
}

/// The server's side of a handshake, which reads the client's first message before it has its settings.
enum Side {
    Waits(Box<Acceptor>),
    Begun(Box<ServerConnection>),
}

impl Side {
    /// Takes what a client sends; returns the response, and whether the connection continues.
    fn take(&mut self, mut bytes: &[u8], config: &Arc<rustls::ServerConfig>) -> (Vec<u8>, bool) {
        let mut sent = Vec::new();
        while !bytes.is_empty() {
            let result = match self {
                Side::Waits(acceptor) => {
                    let Ok(_) = acceptor.read_tls(&mut bytes) else { return (sent, false) };
                    match acceptor.accept() {
                        Ok(None) => Ok(None),
                        Ok(Some(accepted)) => accepted.into_connection(config.clone()).map(Some),
                        Err(error) => Err(error),
                    }
                    .map_err(|(error, mut alert)| {
                        alert.write_all(&mut sent).expect("a vector takes it");
                        error
                    })
                }
                Side::Begun(connection) => {
                    let Ok(_) = connection.read_tls(&mut bytes) else { return (sent, false) };
                    let processed = connection.process_new_packets().map(drop);
                    while connection.wants_write() {
                        connection.write_tls(&mut sent).expect("a vector takes it");
                    }
                    processed.map(|()| None)
                }
            };
            match result {
                Ok(Some(mut connection)) => {
                    while connection.wants_write() {
                        connection.write_tls(&mut sent).expect("a vector takes it");
                    }
                    *self = Side::Begun(Box::new(connection));
                }
                Ok(None) => {}
                Err(error) => {
                    assert_quotes_nothing(&why_invalid(&error), b"");
                    return (sent, false);
                }
            }
        }
        (sent, true)
    }

    fn session(&self) -> Option<&ServerConnection> {
        match self {
            Side::Begun(connection) if !connection.is_handshaking() => Some(connection),
            _ => None,
        }
    }
}

/// Bytes without keys never become a session. If they are no TLS, the response is one of HTTP.
fn raw(bytes: &[u8]) {
    let Some((piece_bytes, stream)) = bytes.split_first() else { return };
    let (loaded, mut side) = (loaded(false), Side::Waits(Box::default()));
    for piece in stream.chunks(usize::from(*piece_bytes).max(1)) {
        if !side.take(piece, &loaded.server).1 {
            break;
        }
    }
    assert!(side.session().is_none(), "a handshake without keys is complete");
    let response = rejection(&stream[..stream.len().min(512)]);
    let text = String::from_utf8(response).expect("the response is text");
    let (head, body) = text.split_once("\r\n\r\n").expect("it has a head");
    assert!(
        head.starts_with("HTTP/1.1 400 ") && head.contains(&format!("\r\ncontent-length: {}", body.len())),
        "{text}"
    );
    assert!(serde_json::from_str::<serde_json::Value>(body).is_ok() && head.lines().count() <= 8, "{text}");
}

/// One change of a record.
struct Change<'a> {
    record: u8,
    operation: u8,
    offset: usize,
    value: &'a u8,
}

impl Change<'_> {
    /// The record, which has a valid length, after the change.
    fn apply(&self, mut record: Vec<u8>) -> Vec<u8> {
        const HEAD: usize = 5;
        let body = record.len() - HEAD;
        let place = HEAD + self.offset % body.max(1);
        match self.operation % 7 {
            0 if body > 0 => record[place] ^= self.value,
            1 => record.truncate(place),
            2 => record.clear(),
            3 => record.extend_from_within(..),
            4 => record[0] = *self.value,
            5 => record.extend(std::iter::repeat_n(*self.value, self.offset % 4096)),
            // A message in two records.
            6 if body > 1 && place > HEAD => {
                let rest = record.split_off(place);
                let head = [&record[..3], &(rest.len() as u16).to_be_bytes()].concat();
                let length = (record.len() - HEAD) as u16;
                record[3..5].copy_from_slice(&length.to_be_bytes());
                return [record, head, rest].concat();
            }
            _ => {}
        }
        if self.operation % 7 != 3 && record.len() >= HEAD {
            let length = (record.len() - HEAD) as u16;
            record[3..5].copy_from_slice(&length.to_be_bytes());
        }
        record
    }
}

/// Whatever happens to the records of a client's handshake, the node knows the client's certificate afterwards, or has
/// no session.
fn changed(changes: &[u8]) {
    let Some((flags, changes)) = changes.split_first() else { return };
    let (has_certificate, demands_certificates) = (flags & 1 > 0, flags & 2 > 0);
    let changes: Vec<Change<'_>> = changes
        .chunks_exact(5)
        .map(|bytes| Change {
            record: bytes[0],
            operation: bytes[1],
            offset: usize::from(u16::from_be_bytes([bytes[2], bytes[3]])),
            value: &bytes[4],
        })
        .collect();
    let (loaded, mut side) = (loaded(demands_certificates), Side::Waits(Box::default()));
    let name = ServerName::try_from("127.0.0.1").expect("it is an address");
    let mut client = ClientConnection::new(Arc::new(client(has_certificate)), name).expect("the settings are valid");
    let mut number = 0;
    // A handshake takes three rounds.
    for _ in 0..8 {
        let mut sent = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut sent).expect("a vector takes it");
        }
        let mut passed = Vec::new();
        let mut rest = &sent[..];
        while !rest.is_empty() {
            let length = usize::from(u16::from_be_bytes([rest[3], rest[4]]));
            let (record, following) = rest.split_at(5 + length);
            let mut record = record.to_vec();
            for change in changes.iter().filter(|change| change.record == number) {
                if record.len() >= 5 {
                    record = change.apply(record);
                }
            }
            passed.append(&mut record);
            number += 1;
            rest = following;
        }
        let (answered, goes_on) = side.take(&passed, &loaded.server);
        let mut answered = &answered[..];
        while !answered.is_empty() && client.read_tls(&mut answered).is_ok_and(|length| length > 0) {
            if client.process_new_packets().is_err() {
                break;
            }
        }
        if !goes_on || !client.wants_write() {
            break;
        }
    }
    let Some(session) = side.session() else {
        assert!(!changes.is_empty() || demands_certificates && !has_certificate, "a valid handshake failed");
        return;
    };
    let own = CertificateDer::from_pem_slice(FIXED.client.as_bytes()).expect("it is valid");
    let expected = has_certificate.then_some(&own);
    assert_eq!(session.peer_certificates().and_then(<[_]>::first), expected);
}

/// A node reads exactly what a client sends in a session, in whatever pieces, and does not wait for bytes that it has.
fn session(bytes: &[u8]) {
    let &[written_bytes, read_bytes, ref sent @ ..] = bytes else { return };
    let piece_bytes = usize::from(written_bytes).max(1);
    // More pieces than this show nothing new.
    let piece_bytes = piece_bytes.max(sent.len().div_ceil(256));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    let received = runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a port");
        let addr = listener.local_addr().expect("it has an address");
        let client = async {
            let socket = TcpStream::connect(addr).await.expect("it is accepted");
            let name = ServerName::try_from("127.0.0.1").expect("it is an address");
            let connector = TlsConnector::from(Arc::new(client(false)));
            let mut stream = connector.connect(name, socket).await.expect("the node's certificate is valid");
            for piece in sent.chunks(piece_bytes) {
                stream.write_all(piece).await.expect("the node reads");
            }
            stream.flush().await.expect("the node reads");
            match read_bytes % 2 {
                0 => stream.shutdown().await.expect("the node reads"),
                // Without the message that ends the session.
                _ => stream.get_mut().0.shutdown().await.expect("the node reads"),
            }
            stream
        };
        let node = async {
            let (socket, _) = listener.accept().await.expect("a client connects");
            let begun = LazyConfigAcceptor::new(Acceptor::default(), Socket::new(socket)).await;
            let session = begun.expect("the hello is valid").into_stream(loaded(false).server.clone()).await;
            read_all(Stream::Tls(Box::new(session.expect("the handshake is valid"))), read_bytes).await
        };
        let both = async { tokio::join!(client, node).1 };
        tokio::time::timeout(READ_DEADLINE, both).await.expect("the node waits for nothing")
    });
    assert!(received == sent, "{} bytes were sent, and {} received", sent.len(), received.len());
    let pieces = [&[read_bytes][..], &received].concat();
    connection(&pieces);
}

async fn read_all(mut stream: Stream, piece_bytes: u8) -> Vec<u8> {
    let mut received = Vec::new();
    let mut space = vec![0; usize::from(piece_bytes).max(1) * 16];
    loop {
        let mut buffer = ReadBuf::new(&mut space);
        let read = std::future::poll_fn(|context| {
            ready!(stream.poll_read_ready(context))?;
            Pin::new(&mut stream).poll_read(context, &mut buffer)
        });
        read.await.expect("nothing breaks the connection");
        if buffer.filled().is_empty() {
            return received;
        }
        received.extend_from_slice(buffer.filled());
    }
}

/// A node finds at most one token in a request, takes a proof once, and a token that it creates is one that it can log.
///
/// The bytes are an HTTP request without the version, as for [`request`](super::request). The body of `/root.token` is
/// that file.
pub fn tokens(bytes: &[u8]) {
    let (head, body) = split_head(bytes);
    let Some(request) = request_of(head) else { return };
    authorization(request.headers());
    proof(&request);
    match request.path() {
        "/v1/tokens" => token(body),
        "/v1/auth" => {
            if let Some(required) = taken(parse_required(body)) {
                assert_json_holds(&required);
            }
        }
        "/root.token" => token_file(body),
        _ => {}
    }
}

fn authorization(headers: &HeaderMap) {
    let lines = headers.get_all(header::AUTHORIZATION).count();
    match bearer(headers) {
        Bearer::Missing => assert_eq!(lines, 0),
        Bearer::Malformed => assert!(lines > 0),
        Bearer::Token(text) => {
            assert!(lines == 1 && !text.is_empty() && text.trim_ascii() == text);
            let Some(secret) = std::str::from_utf8(text).ok().and_then(|text| Secret::new(text).ok()) else { return };
            let mut again = HeaderMap::new();
            let value = HeaderValue::from_bytes(secret.authorization().as_bytes()).expect("it is a value");
            again.insert(header::AUTHORIZATION, value);
            assert_eq!(bearer(&again), Bearer::Token(text));
        }
    }
}

/// A proof that the node did not seal is rejected, and one that it did is accepted once.
fn proof(request: &HttpRequest) {
    let Some(proof) = request.headers().get(&PROOF) else { return };
    let root = Secret::new("the-root-token-of-the-fuzzer-which-is-long").expect("it is valid");
    let receiver = Proofs::new(Some(&root), NODE, 1);
    let (method, target) =
        (request.method().as_str(), request.uri().path_and_query().map_or("/", |target| target.as_str()));
    let is_sealed = |headers: &HeaderMap| receiver.check(method, target, headers);
    assert_eq!(is_sealed(request.headers()), None, "the challenge is secret");
    let Some(sealed) = proof.to_str().ok().and_then(|fields| receiver.seal(fields, method, target, request.headers()))
    else {
        return;
    };
    let mut headers = HeaderMap::new();
    for name in COVERED {
        for value in request.headers().get_all(name) {
            headers.append(name.clone(), value.clone());
        }
    }
    headers.insert(PROOF.clone(), HeaderValue::from_str(&sealed).expect("it is a value"));
    let proven = is_sealed(&headers);
    if let Some(proven) = proven {
        assert_eq!(sealed.split('/').next().and_then(Purpose::parse), Some(proven.purpose));
        assert!(proven.body.is_some() && sealed.split('/').nth(4).is_some_and(|body| body.len() == 64));
        assert!(sealed.split('/').nth(3).is_some_and(|count| count.parse::<u64>().is_ok_and(|count| count > 0)));
    }
    assert_eq!(is_sealed(&headers), None, "a proof was accepted twice");
    headers.append(PROOF.clone(), HeaderValue::from_static("own"));
    assert_eq!(is_sealed(&headers), None, "there are two");
}

fn token(body: &[u8]) {
    let Some((wanted, ttl_ms)) = taken(parse_wanted(body, &LIMITS)) else { return };
    assert_json_holds(&wanted);
    let prefixes = wanted.prefixes.unwrap_or_default();
    assert!((1..=TOKEN_NAME_BYTES_MAX).contains(&wanted.name.len()) && prefixes.len() <= TOKEN_PREFIXES_MAX);
    assert!(prefixes.iter().all(|prefix| (1..=LIMITS.key_bytes).contains(&prefix.len())));
    let created = NewToken {
        name: wanted.name.into(),
        role: wanted.role,
        prefixes: prefixes.into_iter().map(Into::into).collect(),
        ttl_ms,
        hash: TokenHash::of(b"token"),
    };
    let operation = Operation::Access(Arc::new(AccessChange::Create(created)));
    let written = message_pack(&operation);
    assert!(rmp_serde::from_slice::<Operation>(&written).is_ok_and(|read| read == operation));
    let mut machine = ExampleStateMachine::default();
    for (index, operation) in [Operation::RaiseLevel { level: Level::NEWEST }, operation].into_iter().enumerate() {
        let write = LoggedWrite { at_ms: 1_000_000, request: None, operation };
        machine.apply(entry(index as u64, Payload::Normal(Command::Write(write))));
    }
    assert_eq!(machine.access.tokens().len(), 1);
    assert_snapshot_holds(&machine);
}

fn token_file(bytes: &[u8]) {
    let directory = scratch();
    let path = directory.path().join("root.token");
    fs::write(&path, bytes).expect("the file is written");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(&path, mode).expect("the file is ours");
    match Secret::read_root(&path) {
        Ok(secret) => {
            let text = secret.reveal();
            assert!(text.len() >= ROOT_SECRET_BYTES_MIN && bytes.starts_with(text.as_bytes()));
            assert!(bytes.len() <= text.len() + 2 && text.bytes().all(|byte| byte.is_ascii_graphic()));
        }
        Err(error) => assert_quotes_nothing(&error, bytes),
    }
}
