//! `/v1/kv/<key>`: keys in paths, conditions, parameters and values.

use reqwest::Method;

use super::{MARKER, Row};

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

pub fn rows() -> Vec<Row> {
    let lists = [keys(), conditions(), parameters(), bodies()];
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
    rows
}

fn parameters() -> Vec<Row> {
    let get = |query: &str, what: &str| Row::bare(Method::GET, &format!("{KNOWN}?{query}"), what);
    let mut rows = vec![
        Row::post(&format!("{KNOWN}/touch"), "a touch without a TTL", "").gives_v1(400, "invalid_ttl"),
        get("consistency==stale", "a consistency with =").gives_v1(400, "invalid_parameter"),
    ];
    let twice = get("consistency=stale&consistency=linearizable", "two values of a parameter");
    rows.push(twice.gives_v1(400, "repeated_parameter"));
    rows
}

fn bodies() -> Vec<Row> {
    let value = vec![b'v'; (1 << 20) + 1];
    let chunks = value.chunks(100_000).map(<[u8]>::to_vec).collect();
    let rows = [
        put(KNOWN, "a value of 1 MiB and a byte").body(value),
        put(KNOWN, "a value of 1 MiB and a byte, in chunks").body_in(chunks),
    ];
    let rows =
        rows.map(|row| row.gives_v1(413, "value_too_large").field("limit", 1 << 20).field("size", (1 << 20) + 1));
    rows.into()
}
