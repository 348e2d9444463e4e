//! `/v1/kv/<key>`: keys in paths, conditions, TTLs, parameters, bodies; and routes next to it.

use reqwest::Method;

use super::{MARKER, REQUEST_BYTES_MAX, Row};

/// The path of an existing key.
const KNOWN: &str = "/v1/kv/known";

/// Strings that are not a list of entity tags.
const BAD_TAGS: &[&str] = &[
    "",
    ",",
    "-1",
    "+1",
    "1, -1",
    "\"1\", abc",
    "1000000000000000000000000000000",
    "18446744073709551616",
    "abc",
    "\"",
    "\"1",
    "1\"",
    "\"1\", \"2",
    "\"1\" \"2\"",
    "\"1\"\"2\"",
    "w/\"1\"",
    "W/1",
    "W/",
    "W/ \"1\"",
    "'1'",
    "0x1",
    "1.0",
    "1e3",
    "\"1 \"",
    "\"a\tb\"",
    "**",
    "*\"1\"",
];

/// Strings that are not a TTL, neither as part of a query nor decoded.
pub const BAD_TIMES: &[&str] = &[
    "",
    "0",
    "0s",
    "-1",
    "-1s",
    "1",
    "30",
    "s",
    "1.5s",
    "99999999999999999999d",
    "18446744073709551615d",
    "30 s",
    " 30s",
    "30S",
    "30Ms",
    "10y",
    "1w",
    "NaN",
    "inf",
    "99ms",
    "3651d",
    "1e3s",
    "0x10s",
    "+30s",
    "30s30s",
    "1h30m",
    "30sec",
    "٣s",
];

pub fn rows() -> Vec<Row> {
    let lists = [keys(), conditions(), times(), parameters(), bodies(), request_ids(), routes()];
    lists.into_iter().flatten().collect()
}

/// One row for each method that takes a key, with a body for `PUT`.
fn on_each_method(path: &str, what: &str) -> [Row; 4] {
    [
        Row::bare(Method::GET, path, what),
        Row::bare(Method::PUT, path, what).body(MARKER),
        Row::bare(Method::DELETE, path, what),
        touch(path, what),
    ]
}

fn touch(path: &str, what: &str) -> Row {
    Row::post(&format!("{path}/touch?ttl=30s"), what, "")
}

fn put(path: &str, what: &str) -> Row {
    Row::bare(Method::PUT, path, what).body(MARKER)
}

fn keys() -> Vec<Row> {
    let mut rows = Vec::new();
    let long = "k".repeat(1025);
    let long_encoded = "%C3%A9".repeat(513);
    let marked = MARKER.repeat(50);
    let cases: Vec<(&str, &str, u16, &'static str)> = vec![
        ("an empty key", "", 400, "key_empty"),
        ("% and two letters", "%zz", 400, "invalid_encoding"),
        ("% and one digit", "%4", 400, "invalid_encoding"),
        ("% at the end", "known%", 400, "invalid_encoding"),
        ("% alone", "%", 400, "invalid_encoding"),
        ("% and a sign", "%+1", 400, "invalid_encoding"),
        ("% and half a number", "%2", 400, "invalid_encoding"),
        ("%% for %", "a%%b", 400, "invalid_encoding"),
        ("%u and four digits", "%u0041", 400, "invalid_encoding"),
        ("a byte that is not UTF-8", "%ff", 400, "invalid_encoding"),
        ("truncated UTF-8", "%e2%82", 400, "invalid_encoding"),
        ("overlong UTF-8", "%c0%af", 400, "invalid_encoding"),
        ("a surrogate in UTF-8", "%ed%a0%80", 400, "invalid_encoding"),
        ("a code point beyond Unicode", "%f5%80%80%80", 400, "invalid_encoding"),
        ("a NUL", "%00", 400, "invalid_key"),
        ("a NUL in a key", "known%00known", 400, "invalid_key"),
        ("a segment that is ..", "a%2f..%2fb", 400, "invalid_key"),
        ("a segment that is .. at the end", "a%2F..", 400, "invalid_key"),
        ("a segment that is .. at the start", "..%2Fknown", 400, "invalid_key"),
        ("a segment that is .", "a%2f.%2fb", 400, "invalid_key"),
        ("a segment that is .. with one dot escaped", "a%2f.%2e%2fb", 400, "invalid_key"),
        ("a key of 1,025 bytes", &long, 413, "key_too_large"),
        ("a key of 1,026 bytes in 513 characters", &long_encoded, 413, "key_too_large"),
        ("a key of 1,250 bytes", &marked, 413, "key_too_large"),
    ];
    for (what, key, status, code) in cases {
        for row in on_each_method(&format!("/v1/kv/{key}"), what) {
            let row = row.gives_v1(status, code);
            let row = if status == 413 { row.field("limit", 1024) } else { row };
            rows.push(row);
        }
    }
    rows
}

fn conditions() -> Vec<Row> {
    let mut rows = Vec::new();
    let writes = |what: &str| [put(KNOWN, what), Row::bare(Method::DELETE, KNOWN, what), touch(KNOWN, what)];
    for name in ["if-match", "if-none-match"] {
        for tag in BAD_TAGS {
            let read = Row::bare(Method::GET, KNOWN, &format!("a read with {name}: {tag}"));
            for row in writes(&format!("{name}: {tag}")).into_iter().chain([read]) {
                rows.push(row.header(name, *tag).gives_v1(400, "invalid_condition"));
            }
        }
        for row in writes("a good line and a bad one") {
            rows.push(row.header(name, "\"1\"").header(name, "\"2").gives_v1(400, "invalid_condition"));
        }
        for row in writes("* and a tag") {
            rows.push(row.header(name, "\"1\"").header(name, "*").gives_v1(400, "invalid_condition"));
        }
        for row in writes("more revisions than a transaction compares") {
            let tags: Vec<String> = (1..=129).map(|revision| format!("\"{revision}\"")).collect();
            let row = row.header(name, tags.join(", ")).gives_v1(400, "invalid_condition");
            rows.push(row.naming(&["at most 128 revisions", "got 129"]));
        }
    }
    for row in writes("both conditions") {
        let row = row.header("if-match", "*").header("if-none-match", "*");
        rows.push(row.gives_v1(400, "conflicting_conditions"));
    }
    for name in ["if-match", "if-none-match"] {
        let txn = Row::post("/v1/txn", "a condition", r#"{"success":[{"delete":{"key":"known"}}]}"#);
        let delete = Row::bare(Method::DELETE, "/v1/kv?prefix=known", "a condition where none applies");
        rows.extend([txn, delete].map(|row| row.header(name, "*").gives_v1(400, "invalid_condition")));
    }
    rows
}

fn times() -> Vec<Row> {
    let mut rows = Vec::new();
    for time in BAD_TIMES {
        let encoded = percent_encoding::utf8_percent_encode(time, percent_encoding::NON_ALPHANUMERIC);
        let what = format!("a TTL of {time:?}");
        rows.push(put(&format!("{KNOWN}?ttl={encoded}"), &what).gives_v1(400, "invalid_ttl"));
        rows.push(Row::post(&format!("{KNOWN}/touch?ttl={encoded}"), &what, "").gives_v1(400, "invalid_ttl"));
    }
    rows.push(Row::post(&format!("{KNOWN}/touch"), "a touch without a TTL", "").gives_v1(400, "invalid_ttl"));
    rows.push(put(&format!("{KNOWN}?ttl"), "a TTL without a value").gives_v1(400, "invalid_ttl"));
    rows
}

fn parameters() -> Vec<Row> {
    let get = |query: &str, what: &str| Row::bare(Method::GET, &format!("{KNOWN}?{query}"), what);
    let put = |query: &str, what: &str| put(&format!("{KNOWN}?{query}"), what);
    let delete = |query: &str, what: &str| Row::bare(Method::DELETE, &format!("{KNOWN}?{query}"), what);
    let touch = |query: &str, what: &str| Row::post(&format!("{KNOWN}/touch?{query}"), what, "");
    let mut rows = Vec::new();
    for query in ["foo", "foo=bar", "RAW", "ttl=30s", "raw&foo", "%72aw%00", "revision=1", "wait=1"] {
        let row = get(query, "an unknown parameter").gives_v1(400, "unknown_parameter");
        rows.push(row.naming(&["raw", "consistency"]));
    }
    for query in ["foo", "TTL=30s", "raw", "ttl=30s&lease=1", "prev_kv"] {
        rows.push(put(query, "an unknown parameter").gives_v1(400, "unknown_parameter").naming(&["ttl"]));
        rows.push(touch(query, "an unknown parameter").gives_v1(400, "unknown_parameter").naming(&["ttl"]));
    }
    for query in ["foo", "prefix=a", "all", "ttl=30s"] {
        rows.push(delete(query, "an unknown parameter").gives_v1(400, "unknown_parameter").naming(&["none"]));
    }
    rows.push(put("ttl=30s&ttl=30s", "a parameter twice").gives_v1(400, "repeated_parameter").naming(&["ttl"]));
    rows.push(touch("ttl=30s&%74tl=1h", "a parameter twice").gives_v1(400, "repeated_parameter").naming(&["ttl"]));
    rows.push(get("raw&raw", "a flag twice").gives_v1(400, "repeated_parameter").naming(&["raw"]));
    let twice = get("consistency=stale&consistency=linearizable", "a parameter twice");
    rows.push(twice.gives_v1(400, "repeated_parameter"));
    for flag in ["yes", "1", "0", "TRUE", "True", "on", "%00"] {
        rows.push(
            get(&format!("raw={flag}"), "a flag that is neither true nor false").gives_v1(400, "invalid_parameter"),
        );
    }
    for consistency in ["", "=", "=quick", "=Stale", "=stale,linearizable", "=%20stale", "=serializable"] {
        let row = get(&format!("consistency{consistency}"), "an unknown consistency");
        rows.push(row.gives_v1(400, "invalid_parameter").naming(&["linearizable", "stale"]));
    }
    for query in ["%zz", "raw=%", "consistency=%ff", "%ff=1", "raw=%4"] {
        rows.push(get(query, "a parameter that cannot be decoded").gives_v1(400, "invalid_encoding"));
    }
    rows
}

fn bodies() -> Vec<Row> {
    let mut rows = Vec::new();
    for kind in ["multipart/form-data; boundary=x", "multipart/mixed", "Multipart/Form-Data", "MULTIPART/related"] {
        rows.push(put(KNOWN, "a form").header("content-type", kind).gives_v1(415, "unsupported_media_type"));
    }
    for encoding in ["gzip", "GZIP", "br", "deflate", "zstd", "gzip, identity", "identity, gzip", "identityx", ""] {
        let row = put(KNOWN, "an encoded body").header("content-encoding", encoding);
        rows.push(row.gives_v1(415, "unsupported_media_type"));
    }
    let part = put(KNOWN, "a part of a value").header("content-range", "bytes 0-0/5");
    rows.push(part.gives_v1(400, "unexpected_range").naming(&["Content-Range"]));
    let twice = put(KNOWN, "two encodings").header("content-encoding", "identity").header("content-encoding", "gzip");
    rows.push(twice.gives_v1(415, "unsupported_media_type"));
    for row in [
        Row::bare(Method::GET, KNOWN, "a read with a body"),
        Row::bare(Method::HEAD, KNOWN, "a read with a body"),
        Row::bare(Method::DELETE, KNOWN, "a deletion with a body"),
        touch(KNOWN, "a touch with a body"),
    ] {
        rows.push(row.body(MARKER).gives_v1(400, "unexpected_body"));
    }
    let chunks = vec![MARKER.into(), MARKER.into()];
    let touch_path = format!("{KNOWN}/touch?ttl=30s");
    rows.push(Row::post_chunked(&touch_path, "a body in chunks", chunks).gives_v1(400, "unexpected_body"));

    let value = vec![b'v'; (1 << 20) + 1];
    let row = put(KNOWN, "a value of 1 MiB and a byte").body(value.clone());
    rows.push(row.gives_v1(413, "value_too_large").field("limit", 1 << 20).field("size", (1 << 20) + 1));
    let chunks = value.chunks(100_000).map(<[u8]>::to_vec).collect();
    let row = put(KNOWN, "the same in chunks").body_in(chunks);
    rows.push(row.gives_v1(413, "value_too_large").field("limit", 1 << 20).field("size", (1 << 20) + 1));
    let row = put(KNOWN, "a body that is too long by its Content-Length").body(vec![b'v'; REQUEST_BYTES_MAX + 1]);
    let row = row.gives_v1(413, "request_too_large").field("limit", REQUEST_BYTES_MAX);
    rows.push(row.field("size", REQUEST_BYTES_MAX + 1));
    let chunks = vec![vec![b'v'; 100_000]; 12];
    let row = put(KNOWN, "a body that is too long, in chunks").body_in(chunks);
    rows.push(row.gives_v1(413, "request_too_large").field("limit", REQUEST_BYTES_MAX));
    rows
}

/// Each kind of write with each invalid `Idempotency-Key`.
fn request_ids() -> Vec<Row> {
    let mut rows = Vec::new();
    let txn = r#"{"success":[{"delete":{"key":"known"}}]}"#;
    let writes = || {
        [
            put(KNOWN, ""),
            Row::bare(Method::DELETE, KNOWN, ""),
            touch(KNOWN, ""),
            Row::bare(Method::DELETE, "/v1/kv?prefix=known", ""),
            Row::post("/v1/txn", "", txn),
        ]
    };
    let write = |what: &str| Row::post("/write", what, r#"{"Set":{"key":"known","value":"other"}}"#);
    for (what, id) in [("nothing", String::new()), ("129 bytes", "i".repeat(129)), ("spaces", "   ".into())] {
        let what = format!("an Idempotency-Key of {what}");
        for row in writes() {
            let row = Row { what: what.clone(), ..row }.header("idempotency-key", id.clone());
            rows.push(row.gives_v1(400, "invalid_idempotency_key"));
        }
        rows.push(write(&what).header("idempotency-key", id).gives_bad_request("invalid_idempotency_key"));
    }
    for row in writes() {
        let row = Row { what: "an Idempotency-Key that is not ASCII".into(), ..row };
        rows.push(row.header("idempotency-key", "schlüssel").gives_v1(400, "invalid_header"));
    }
    for row in writes() {
        let row = Row { what: "an Idempotency-Key twice".into(), ..row };
        rows.push(row.header("idempotency-key", "a").header("idempotency-key", "a").gives_v1(400, "repeated_header"));
    }
    rows
}

fn routes() -> Vec<Row> {
    let mut rows = Vec::new();
    let brew = Method::from_bytes(b"BREW").unwrap();
    for method in [Method::PATCH, Method::OPTIONS, Method::TRACE, brew.clone()] {
        for (path, allow) in [
            (KNOWN, "GET, HEAD, PUT, DELETE"),
            ("/v1/kv/known/touch", "GET, HEAD, PUT, DELETE, POST"),
            ("/v1/kv/", "GET, HEAD, PUT, DELETE"),
            ("/v1/kv", "GET, HEAD, DELETE"),
            ("/v1/txn", "POST"),
            ("/v1/watch", "GET, HEAD"),
            ("/v1/cluster/hash", "GET, HEAD"),
        ] {
            let row = Row::bare(method.clone(), path, "the wrong method").gives_v1(405, "method_not_allowed");
            rows.push(Row { allow: Some(allow), ..row });
        }
    }
    let others = [
        ("/v1/kv", "GET, HEAD, DELETE", vec![Method::POST, Method::PUT]),
        ("/v1/txn", "POST", vec![Method::GET, Method::HEAD, Method::PUT, Method::DELETE]),
        ("/v1/watch", "GET, HEAD", vec![Method::POST, Method::PUT, Method::DELETE]),
        ("/v1/cluster/hash", "GET, HEAD", vec![Method::POST, Method::PUT, Method::DELETE]),
    ];
    for (path, allow, methods) in others {
        for method in methods {
            let row = Row::bare(method, path, "the wrong method").gives_v1(405, "method_not_allowed");
            rows.push(Row { allow: Some(allow), ..row });
        }
    }
    let unknown = ["/v1", "/v1/", "/v1/foo", "/v1/KV/known", "/v1/kvs", "/v1/txn/", "/v1/txn/1", "/v1/watch/known"];
    let in_cluster = ["/v1/cluster", "/v1/cluster/", "/v1/cluster/hash/", "/v1/cluster/Hash", "/v1/hash"];
    for path in unknown.into_iter().chain(in_cluster) {
        for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE] {
            rows.push(Row::bare(method, path, "no such route").gives_v1(404, "no_such_route"));
        }
    }
    for path in [KNOWN, "/v1/kv/touch", "/v1/kv/known/touch/", "/v1/kv/known/Touch", "/v1/kv/known/renew"] {
        let row = Row::post(&format!("{path}?ttl=30s"), "no such action", "").gives_v1(405, "method_not_allowed");
        rows.push(Row { allow: Some("GET, HEAD, PUT, DELETE"), ..row });
    }
    for path in ["/v1x", "/V1/kv/known", "/v2/kv/known", "/v1%2fkv%2fknown", "/kv/known"] {
        rows.push(Row::bare(Method::PUT, path, "no such route").body(MARKER).gives(404, "NotFound"));
    }
    rows
}
