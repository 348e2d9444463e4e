//! `/write`, `/read` and `/consistent_read`.

use serde_json::json;

use super::{MARKER, REQUEST_BYTES_MAX, Row};

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (what, body) in bad_writes() {
        rows.push(Row::post("/write", what, body).gives_bad_json());
    }
    for (what, body) in bad_keys() {
        rows.push(Row::post("/read", what, body.clone()).gives_bad_json());
        rows.push(Row::post("/consistent_read", what, body).gives_bad_json());
    }
    for path in ["/read", "/consistent_read"] {
        rows.push(Row::post(path, "an empty key", r#""""#).gives_bad_request("key_empty"));
        let long = json!(MARKER.repeat(50)).to_string();
        rows.push(Row::post(path, "a key of 1,250 bytes", long).gives_too_large("key_too_large"));
        rows.push(
            Row::post(path, "an oversized body", vec![b'['; REQUEST_BYTES_MAX + 1])
                .gives_too_large("request_too_large"),
        );
    }
    rows.extend(sizes());
    rows.extend(order_book());
    rows
}

/// Requests of the order-book example, as its programs send them and with other content.
fn order_book() -> Vec<Row> {
    let order = json!({"live": "Limit", "side": "Buy", "price": 4000.0, "volume": 4.4, "id": 1, "sequance": 0});
    let mut rows = Vec::new();
    for name in ["Place", "Cancel"] {
        for content in [json!({"order": order}), json!({}), json!(null), json!([MARKER])] {
            let row = Row::post("/write", "a request of the order-book example", json!({name: content}).to_string());
            rows.push(row.gives_bad_request("order_book_request").naming(&["order-book example", name, "Set"]));
        }
        let both = json!({name: {"order": order}, "Set": {"key": "known", "value": MARKER}}).to_string();
        rows.push(Row::post("/write", "two requests in one", both).gives_bad_json());
        let cut = format!(r#"{{"{name}":{{"order":"#);
        rows.push(Row::post("/write", "half a request of the order-book example", cut).gives_bad_json());
        rows.push(
            Row::post("/v1/txn", "a request of the order-book example", json!({name: {"order": order}}).to_string())
                .gives_v1(400, "invalid_json"),
        );
    }
    rows
}

fn write(key: &str, value: &str) -> Vec<u8> {
    json!({"Set": {"key": key, "value": value}}).to_string().into()
}

fn sizes() -> Vec<Row> {
    // Each byte as an escape: short enough as a value, too long as a body.
    let escaped = format!(r#"{{"Set":{{"key":"k","value":"{}"}}}}"#, "\\u0041".repeat(200_000));
    let spaces = |count: usize| [vec![b' '; count], write("k", MARKER)].concat();
    let chunks: Vec<Vec<u8>> = spaces(REQUEST_BYTES_MAX).chunks(100_000).map(<[u8]>::to_vec).collect();
    vec![
        Row::post("/write", "an empty key", write("", MARKER)).gives_bad_request("key_empty"),
        Row::post("/write", "a key of 1,025 bytes", write(&"k".repeat(1025), MARKER)).gives_too_large("key_too_large"),
        Row::post("/write", "a key of 1,026 bytes in 513 characters", write(&"é".repeat(513), MARKER))
            .gives_too_large("key_too_large"),
        Row::post("/write", "a value of 1 MiB and a byte", write("known", &"v".repeat((1 << 20) + 1)))
            .gives_too_large("value_too_large"),
        Row::post("/write", "a value of more than 1 MiB in fewer characters", write("known", &"€".repeat(350_000)))
            .gives_too_large("value_too_large"),
        Row::post("/write", "a body longer than its value", escaped).gives_too_large("request_too_large"),
        Row::post("/write", "a body that is too long by its Content-Length", spaces(REQUEST_BYTES_MAX))
            .gives_too_large("request_too_large"),
        Row::post_chunked("/write", "a body that is too long, in chunks", chunks).gives_too_large("request_too_large"),
        Row::post_chunked("/write", "a broken body in chunks", vec![b"{\"Set\":".to_vec(), b"\"x\"".to_vec()])
            .gives_bad_json(),
        Row::post("/write", "a compressed body", b"\x1f\x8b\x08\0\0\0\0\0\0\x03\x03\0\0\0\0\0\0\0\0\0".to_vec())
            .header("content-encoding", "gzip")
            .gives_bad_json(),
        Row::post("/write", "a form", format!("key=known&value={MARKER}"))
            .header("content-type", "application/x-www-form-urlencoded")
            .gives_bad_json(),
    ]
}

/// Bodies that are not `{"Set":{"key":"…","value":"…"}}`.
fn bad_writes() -> Vec<(&'static str, Vec<u8>)> {
    let m = MARKER;
    let texts: Vec<(&'static str, String)> = vec![
        ("nothing", String::new()),
        ("spaces", "  \r\n\t ".into()),
        ("a word", m.into()),
        ("null", "null".into()),
        ("true", "true".into()),
        ("a number", "42".into()),
        ("a number that is too large", "1e999".into()),
        ("not a number", "NaN".into()),
        ("a string", format!("{m:?}")),
        ("the name alone", r#""Set""#.into()),
        ("an empty list", "[]".into()),
        ("a list", format!(r#"["Set","{m}"]"#)),
        ("an empty object", "{}".into()),
        ("truncated in the name", r#"{"Se"#.into()),
        ("truncated in the value", format!(r#"{{"Set":{{"key":"known","value":"{m}"#)),
        ("truncated before the end", format!(r#"{{"Set":{{"key":"known","value":"{m}"}}"#)),
        ("null instead of fields", r#"{"Set":null}"#.into()),
        ("a string instead of fields", format!(r#"{{"Set":"{m}"}}"#)),
        ("a number instead of fields", r#"{"Set":1}"#.into()),
        ("a list with one field", format!(r#"{{"Set":["{m}"]}}"#)),
        ("a list in place of the fields", format!(r#"{{"Set":["known","{m}"]}}"#)),
        ("a list in place of a transaction", r#"{"Txn":[[],[{"delete":{"key":"known"}}]]}"#.into()),
        ("a list in place of an operation", r#"{"Txn":{"success":[{"delete":["known"]}]}}"#.into()),
        ("no fields", r#"{"Set":{}}"#.into()),
        ("no value", format!(r#"{{"Set":{{"key":"{m}"}}}}"#)),
        ("no key", format!(r#"{{"Set":{{"value":"{m}"}}}}"#)),
        ("a key that is a number", format!(r#"{{"Set":{{"key":1,"value":"{m}"}}}}"#)),
        ("a key that is null", format!(r#"{{"Set":{{"key":null,"value":"{m}"}}}}"#)),
        ("a key that is a list", format!(r#"{{"Set":{{"key":["known"],"value":"{m}"}}}}"#)),
        ("a value that is a number", r#"{"Set":{"key":"known","value":42}}"#.into()),
        ("a value that is null", r#"{"Set":{"key":"known","value":null}}"#.into()),
        ("a value that is true", r#"{"Set":{"key":"known","value":true}}"#.into()),
        ("a value that is an object", format!(r#"{{"Set":{{"key":"known","value":{{"a":"{m}"}}}}}}"#)),
        ("a value that is a list", format!(r#"{{"Set":{{"key":"known","value":["{m}"]}}}}"#)),
        ("an extra field", format!(r#"{{"Set":{{"key":"known","value":"v","ttl":"{m}"}}}}"#)),
        ("a field in the wrong case", format!(r#"{{"Set":{{"Key":"known","value":"{m}"}}}}"#)),
        ("a field twice", format!(r#"{{"Set":{{"key":"known","key":"known","value":"{m}"}}}}"#)),
        ("the value twice", format!(r#"{{"Set":{{"key":"known","value":"a","value":"{m}"}}}}"#)),
        ("a name in lower case", format!(r#"{{"set":{{"key":"known","value":"{m}"}}}}"#)),
        ("an unknown name", r#"{"Remove":{"key":"known"}}"#.into()),
        ("a deletion without a key", r#"{"Delete":{}}"#.into()),
        ("a deletion with a value", format!(r#"{{"Delete":{{"key":"known","value":"{m}"}}}}"#)),
        ("a transaction that is a list", r#"{"Txn":[{"delete":{"key":"known"}}]}"#.into()),
        ("a transaction with an unknown field", r#"{"Txn":{"then":[{"delete":{"key":"known"}}]}}"#.into()),
        ("an empty name", r#"{"":{"key":"known"}}"#.into()),
        ("no name", format!(r#"{{"key":"known","value":"{m}"}}"#)),
        ("two names", format!(r#"{{"Set":{{"key":"known","value":"{m}"}},"Get":{{"key":"known"}}}}"#)),
        ("the name twice", format!(r#"{{"Set":{{"key":"known","value":"1"}},"Set":{{"key":"known","value":"{m}"}}}}"#)),
        ("a list of writes", format!(r#"[{{"Set":{{"key":"known","value":"{m}"}}}}]"#)),
        ("trailing data", format!(r#"{{"Set":{{"key":"known","value":"v"}}}}{m}"#)),
        ("two bodies", format!("{0}{0}", r#"{"Set":{"key":"known","value":"twice"}}"#)),
        ("a trailing comma", r#"{"Set":{"key":"known","value":"v",}}"#.into()),
        ("single quotes", "{'Set':{'key':'known','value':'v'}}".into()),
        ("no quotes", "{Set:{key:known,value:v}}".into()),
        ("a comment", r#"{"Set":{"key":"known","value":"v"}} // why"#.into()),
        ("an unknown escape", r#"{"Set":{"key":"known","value":"\x41"}}"#.into()),
        ("a truncated escape", r#"{"Set":{"key":"known","value":"\u00"}}"#.into()),
        ("a lone high surrogate", r#"{"Set":{"key":"known","value":"\ud800"}}"#.into()),
        ("a lone low surrogate", r#"{"Set":{"key":"known","value":"\udc00"}}"#.into()),
        ("surrogates in reverse order", r#"{"Set":{"key":"\udc00\ud800","value":"v"}}"#.into()),
        ("a high surrogate before a letter", r#"{"Set":{"key":"\ud800a","value":"v"}}"#.into()),
        ("a line break in a string", "{\"Set\":{\"key\":\"known\",\"value\":\"a\nb\"}}".into()),
        ("a NUL in a string", "{\"Set\":{\"key\":\"known\",\"value\":\"a\0b\"}}".into()),
        ("a NUL at the end", "{\"Set\":{\"key\":\"known\",\"value\":\"v\"}}\0".into()),
        ("a byte order mark", "\u{feff}{\"Set\":{\"key\":\"known\",\"value\":\"v\"}}".into()),
        ("10,000 nested lists", "[".repeat(10_000)),
        ("10,000 nested objects", r#"{"Set":"#.repeat(10_000)),
        (
            "10,000 nested lists in place of a value",
            format!(r#"{{"Set":{{"key":"known","value":{}"#, "[".repeat(10_000)),
        ),
        ("10,000 nested lists in an extra field", format!(r#"{{"Set":{{"{m}":{}"#, "[".repeat(10_000))),
        ("a number of 100,000 digits", "9".repeat(100_000)),
    ];
    let mut rows: Vec<(&'static str, Vec<u8>)> =
        texts.into_iter().map(|(what, text)| (what, text.into_bytes())).collect();
    let with_value = |value: &[u8]| [br#"{"Set":{"key":"known","value":""#.as_slice(), value, br#""}}"#].concat();
    let utf_16 = r#"{"Set":{"key":"known","value":"v"}}"#.encode_utf16().flat_map(u16::to_le_bytes).collect();
    rows.extend([
        ("invalid UTF-8", with_value(b"\xff\xfe")),
        ("truncated UTF-8", with_value(b"\xe2\x82")),
        ("overlong UTF-8", with_value(b"\xc0\xaf")),
        ("a surrogate in UTF-8", with_value(b"\xed\xa0\x80")),
        ("a code point beyond Unicode in UTF-8", with_value(b"\xf5\x80\x80\x80")),
        ("UTF-16", utf_16),
        ("NUL bytes", vec![0; 1000]),
        ("MessagePack", rmp_serde::to_vec_named(&json!({"Set": {"key": "known", "value": m}})).unwrap()),
    ]);
    rows
}

/// Bodies that are not a key as a JSON string.
fn bad_keys() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("nothing", b"".to_vec()),
        ("a word without quotes", MARKER.into()),
        ("a number", b"1".to_vec()),
        ("null", b"null".to_vec()),
        ("a list", br#"["known"]"#.to_vec()),
        ("an object", br#"{"key":"known"}"#.to_vec()),
        ("an unterminated string", br#""known"#.to_vec()),
        ("two strings", br#""known""known""#.to_vec()),
        ("a lone surrogate", br#""\ud800""#.to_vec()),
        ("a NUL in the string", b"\"a\0b\"".to_vec()),
        ("invalid UTF-8", b"\"\xff\"".to_vec()),
        ("10,000 nested lists", b"[".repeat(10_000)),
    ]
}
