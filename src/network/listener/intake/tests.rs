use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;
use crate::fuzzing::connection;

/// The bytes handed on when these pieces are read, one part per request.
fn handed_on(pieces: &[&[u8]], room: usize) -> Vec<Vec<u8>> {
    let mut intake = Intake::new(Rc::default(), 10);
    // A read fills at most the buffer.
    let mut pieces = pieces.iter().flat_map(|piece| piece.chunks(room));
    let mut parts = vec![Vec::new()];
    let mut space = vec![0; room];
    let context = Context::from_waker(Waker::noop());
    loop {
        let mut buffer = ReadBuf::new(&mut space);
        match intake.next(&context) {
            Next::Read => {
                let Some(piece) = pieces.next() else { return parts };
                buffer.put_slice(piece);
                intake.take(&mut buffer, 0);
            }
            Next::HandOn | Next::Begin => intake.hand_on(&mut buffer),
            Next::Wait => {
                if intake.exchange.end(false) {
                    return parts;
                }
                parts.push(Vec::new());
            }
            Next::End => return parts,
        }
        parts.last_mut().unwrap().extend_from_slice(buffer.filled());
        let is_whole = matches!(intake.at, At::End) && intake.released == 0 && intake.held.is_empty();
        if is_whole && !parts.last().unwrap().is_empty() && !intake.exchange.end(false) {
            parts.push(Vec::new());
        }
    }
}

fn texts(parts: Vec<Vec<u8>>) -> Vec<String> {
    parts.into_iter().map(|part| String::from_utf8(part).unwrap()).filter(|part| !part.is_empty()).collect()
}

const REQUESTS: [&str; 6] = [
    "GET /a HTTP/1.1\r\nhost: x\r\n\r\n",
    "PUT /b HTTP/1.1\r\nhost: x\r\ncontent-length: 12\r\n\r\nGET / HTTP/1",
    "PUT /c HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3;e=\"x\"\r\nabc\r\n0A \r\n0123456789\r\n0\r\nt: u\r\n\r\n",
    "HEAD /d HTTP/1.1\r\nhost: x\r\n\r\n",
    "POST /e HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: 0\r\n\r\n",
    "GET /f HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\n\n",
];

/// However the bytes of requests are divided, each request is handed on alone and unchanged.
///
/// Method: six requests with empty lines between them, in two pieces, divided at each byte, and byte by byte.
#[test]
fn requests_are_handed_on_one_by_one() {
    let stream = REQUESTS.join("\r\n");
    let expected: Vec<String> = REQUESTS.iter().map(|request| (*request).to_owned()).collect();
    let trimmed = |parts| -> Vec<String> {
        texts(parts).into_iter().map(|part| part.trim_start_matches("\r\n").to_owned()).collect()
    };
    for room in [1, 20, 8192] {
        for position in 0..=stream.len() {
            let (first, second) = stream.as_bytes().split_at(position);
            assert_eq!(trimmed(handed_on(&[first, second], room)), expected, "at {position} with room for {room}");
        }
    }
}

/// After a request that closes the connection, is rejected, or whose chunks are broken, nothing is handed on.
#[test]
fn nothing_follows_an_end() {
    let next = REQUESTS[1];
    let head = "PUT / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    let broken = format!("{head}1\r\nxx{next}");
    for piece in [broken.len(), 1] {
        let pieces: Vec<&[u8]> = broken.as_bytes().chunks(piece).collect();
        let handed = texts(handed_on(&pieces, 8192));
        assert!(handed.len() == 1 && handed[0].starts_with(head) && !handed[0].contains("xx"), "{handed:?}");
    }
    for (first, handed) in [
        ("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", None),
        ("GET / HTTP/1.0\r\n\r\n", None),
        ("GET /# HTTP/1.1\r\nhost: x\r\n\r\n", Some("GET / HTTP/1.1\r\nhost:\r\nconnection: close\r\n\r\n")),
        ("HEAD /# HTTP/1.0\r\nhost: x\r\n\r\n", Some("HEAD / HTTP/1.0\r\nhost:\r\nconnection: close\r\n\r\n")),
    ] {
        let stream = format!("{first}{next}");
        for piece in [stream.len(), 1] {
            let pieces: Vec<&[u8]> = stream.as_bytes().chunks(piece).collect();
            assert_eq!(texts(handed_on(&pieces, 8192)), [handed.unwrap_or(first)], "{first:?} in {piece}s");
        }
    }
}

/// A request of HTTP/1.0 without a length gets one, and the bytes after it are kept.
#[test]
fn a_missing_length_is_added() {
    let post = "POST /a HTTP/1.0\r\nconnection: keep-alive\r\n\r\n";
    let expected = "POST /a HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: 0\r\n\r\n";
    let stream = [post, REQUESTS[0], post].concat();
    for piece in [stream.len(), 1, 7] {
        for room in [1, 30, 8192] {
            let pieces: Vec<&[u8]> = stream.as_bytes().chunks(piece).collect();
            assert_eq!(texts(handed_on(&pieces, room)), [expected, REQUESTS[0], expected], "{piece}, {room}");
        }
    }
}

/// Many small pieces of a long head cost no more than a few looks at each byte.
///
/// Method: empty lines, and a value without end, one byte at a time, up to the limit of a head.
#[test]
fn long_heads_in_small_pieces() {
    for text in ["\r\n".repeat(70_000), format!("GET / HTTP/1.1\r\nx: {}", "v".repeat(140_000))] {
        let pieces: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        assert_eq!(texts(handed_on(&pieces, 8192)), ["GET / HTTP/1.1\r\nhost:\r\nconnection: close\r\n\r\n"]);
    }
}

/// Parts of valid and invalid requests.
fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let parts = prop::sample::select(vec![
        "GET ",
        "HEAD ",
        "POST ",
        "PUT ",
        "/",
        "a",
        "?",
        "#",
        "%2F",
        " ",
        "HTTP/1.1",
        "HTTP/1.0",
        "\r\n",
        "\r\n\r\n",
        "\n",
        "\r",
        "host: x\r\n",
        "content-length: 3\r\n",
        "content-length: 0\r\n",
        "transfer-encoding: chunked\r\n",
        "connection: close\r\n",
        "connection: keep-alive\r\n",
        "connection: upgrade\r\n",
        "upgrade: websocket\r\n",
        "expect: 100-continue\r\n",
        "x: y\r\n",
        ": ",
        "\0",
        "\u{e9}",
        "3\r\nabc\r\n",
        "0\r\n\r\n",
        "0\r\n",
        "1;x\r\n",
        "abc",
        "GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        "PUT /a HTTP/1.1\r\nhost: x\r\n",
        "POST / HTTP/1.0\r\nconnection: keep-alive\r\n",
    ]);
    let random = prop::collection::vec(any::<u8>(), 1..3);
    let part = prop_oneof![20 => parts.prop_map(|part| part.as_bytes().to_vec()), 1 => random];
    let stream = prop::collection::vec(part, 1..20).prop_map(|parts| parts.concat());
    (1..40_u8, stream).prop_map(|(piece_bytes, stream)| [vec![piece_bytes], stream].concat())
}

/// The HTTP library finds the same requests as the intake, in whatever pieces they arrive.
///
/// Method: random bytes and parts of requests, to the check that the fuzzer runs.
#[test]
fn the_library_agrees() {
    let mut runner = TestRunner::new(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) });
    runner
        .run(&any_bytes(), |bytes| {
            connection(&bytes);
            Ok(())
        })
        .unwrap();
}
