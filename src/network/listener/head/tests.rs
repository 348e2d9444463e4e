use super::*;

fn parsed(text: &str) -> Result<Option<Head>, String> {
    parse(&mut text.as_bytes().to_vec(), 10).map_err(|rejection| rejection.error.to_string())
}

/// A valid head tells the framing of the body, and whether the connection closes.
#[test]
fn valid_heads() {
    let rows = [
        ("GET / HTTP/1.1\r\nhost: x\r\n\r\nGET", 27, Body::Length(0), false, false),
        ("GET / HTTP/1.0\r\n\r\n", 18, Body::Length(0), true, false),
        ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", 42, Body::Length(0), false, false),
        ("POST / HTTP/1.0\r\n\r\n", 19, Body::Length(0), true, true),
        ("POST / HTTP/1.0\r\ncontent-length: 0\r\n\r\n", 38, Body::Length(0), true, false),
        ("PUT / HTTP/1.1\r\nHOST:x\r\nContent-Length: 007 \r\n\r\n", 48, Body::Length(7), false, false),
        ("PUT / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: CHUNKED\r\n\r\n", 55, Body::Chunked, false, false),
        ("GET / HTTP/1.1\r\nhost: x\r\nconnection: a,Close\r\n\r\n", 48, Body::Length(0), true, false),
        ("\r\n\r\nOPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n", 35, Body::Length(0), false, false),
        ("GET / HTTP/1.1\r\nhost: [::1]:80\r\n!#$%&'*+-.^_`|~9aZ: \u{e9}\r\n\r\n", 58, Body::Length(0), false, false),
    ];
    for (text, bytes, body, closes, needs_length) in rows {
        assert_eq!(parsed(text), Ok(Some(Head { bytes, body, closes, needs_length })), "{text:?}");
    }
}

/// No beginning of a valid head is rejected.
#[test]
fn incomplete_heads() {
    let head = "\r\nGET http://x/a?b HTTP/1.1\r\nhost: x\r\nx:\r\ncontent-length: 5\r\n\r\n";
    for end in 0..head.len() {
        assert_eq!(parsed(&head[..end]), Ok(None), "{:?}", &head[..end]);
    }
    assert!(parsed(head).unwrap().is_some());
}

/// A request for an upgrade is removed completely, and nothing else changes.
#[test]
fn upgrades_are_overwritten() {
    let before = "GET / HTTP/1.1\r\nUpgrade: h2c, websocket\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings,upgrade\r\n\
                  upgrade-insecure-requests: 1\r\n\r\nUpgrade: body";
    let after = "GET / HTTP/1.1\r\nUpgrade:               \r\nHost: x\r\nConnection:        , HTTP2-Settings,       \r\n\
                 upgrade-insecure-requests: 1\r\n\r\nUpgrade: body";
    let mut bytes = before.as_bytes().to_vec();
    assert!(!parse(&mut bytes, 10).unwrap().unwrap().closes);
    assert_eq!(String::from_utf8(bytes).unwrap(), after);
}

/// `Expect` is kept only if the body is within the limit.
#[test]
fn expectations_of_long_bodies_are_overwritten() {
    for (length, is_kept) in [("", true), ("content-length: 10\r\n", true), ("content-length: 11\r\n", false)] {
        let head =
            format!("PUT / HTTP/1.1\r\nhost: x\r\nExpect: 100-continue\r\n{length}expect: a, 100-Continue\r\n\r\n");
        let mut bytes = head.clone().into_bytes();
        parse(&mut bytes, 10).unwrap().unwrap();
        let overwritten = head.replace("100-continue", &" ".repeat(12)).replace("a, 100-Continue", &" ".repeat(15));
        assert_eq!(String::from_utf8(bytes).unwrap(), if is_kept { head } else { overwritten });
    }
}

/// A length that is added to a request of HTTP/1.0 counts towards both limits.
#[test]
fn an_added_length_counts() {
    let with_headers =
        |version, count: usize| format!("POST / HTTP/{version}\r\nhost: x\r\n{}\r\n", "x: y\r\n".repeat(count - 1));
    let with_bytes = |version, bytes: usize| {
        let head = format!("POST / HTTP/{version}\r\nhost: x\r\nx:\r\n\r\n");
        head.replace("\r\nx:", &format!("\r\nx:{}", "v".repeat(bytes - head.len())))
    };
    let added = LENGTH_OF_NO_BODY.len();
    for (version, headers, bytes) in
        [("1.1", HEADERS_MAX, HEAD_BYTES_MAX), ("1.0", HEADERS_MAX - 1, HEAD_BYTES_MAX - added)]
    {
        assert!(parsed(&with_headers(version, headers)).is_ok(), "{version}");
        assert!(parsed(&with_headers(version, headers + 1)).unwrap_err().contains("96 header"), "{version}");
        assert!(parsed(&with_bytes(version, bytes)).is_ok(), "{version}");
        assert!(parsed(&with_bytes(version, bytes + 1)).unwrap_err().contains("131072 bytes"), "{version}");
    }
}

/// Each byte of a target is either accepted, as the HTTP library keeps it, or rejected by name.
#[test]
fn every_byte_of_a_target() {
    for (target, taken) in
        [("/a", &b"!\"$%&'()*+,-./0:;=?@A[\\]^_a{|}~"[..]), ("/?", b"!$%&'()*+,-./0:;=?@A[\\]^_`a{|}~")]
    {
        for byte in 0..=255_u8 {
            let head = [b"GET ", target.as_bytes(), &[byte], b"b HTTP/1.1\r\nhost: x\r\n\r\n"].concat();
            let result = parse(&mut head.clone(), 10);
            let is_taken = taken.contains(&byte) || byte.is_ascii_alphanumeric();
            assert_eq!(result.is_ok(), is_taken, "{byte:#x} after {target}");
            let uri = std::str::from_utf8(&head[4..head.len() - 22]).unwrap_or(" ").parse::<actix_web::http::Uri>();
            if is_taken {
                let uri = uri.unwrap();
                assert_eq!(uri.path_and_query().unwrap().as_str().as_bytes(), &head[4..head.len() - 22]);
            } else if !matches!(byte, b'\r' | b'\n' | b' ') {
                let message = result.unwrap_err().error.to_string();
                let sign = if byte.is_ascii() { "%" } else { "0x" };
                assert!(message.contains(&format!("{sign}{byte:02X}")), "{byte:#x}: {message}");
            }
        }
    }
}

/// A rejection tells whether its response may have a body, and the version of the request.
#[test]
fn rejections() {
    for (head, is_head, is_http_1_0) in [
        ("HEAD /# HTTP/1.1\r\nhost: x\r\n\r\n", true, false),
        ("\r\nHEAD /# HTTP/1.0\r\n\r\n", true, true),
        ("GET / HTTP/1.0\r\ncontent-length: x\r\n\r\n", false, true),
        ("\u{16}", false, false),
    ] {
        let rejection = parse(&mut head.as_bytes().to_vec(), 10).unwrap_err();
        assert_eq!((rejection.is_head, rejection.is_http_1_0), (is_head, is_http_1_0), "{head:?}");
    }
}
