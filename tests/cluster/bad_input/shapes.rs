//! Shapes of bad requests that are the same for many routes.

use reqwest::Method;
use serde_json::{Value, json};

use super::{MARKER, REQUEST_BYTES_MAX, Row};

const KNOWN: &str = "/v1/kv/known";
const TOUCH: &str = "/v1/kv/known/touch";
const TXN: &str = r#"{"success":[{"delete":{"key":"known"}}]}"#;

/// All of these rows. `id` and `addr` belong to the receiving node, which is a member of a cluster.
pub fn rows(id: u64, addr: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    for route in json_routes(id, addr) {
        rows.extend(bad_json(&route));
        rows.extend(long_bodies(&Method::POST, route.path));
    }
    rows.extend(long_bodies(&Method::PUT, KNOWN));
    rows.extend(unexpected_bodies());
    for (method, path, parameters) in PARAMETERS {
        rows.extend(bad_parameters(method, path, parameters));
    }
    rows.extend(unexpected_conditions(id));
    rows.extend(bad_idempotency_keys());
    rows.extend(encoded_bodies());
    rows
}

/// The same for the routes of tokens, which need one.
pub fn token_shapes() -> Vec<Row> {
    let valid = |value: Value| value.to_string();
    let routes = [
        JsonRoute {
            path: "/v1/tokens",
            valid: valid(json!({"name": MARKER, "role": "read"})),
            around_text: &[
                (r#"{"role":"read","name":""#, r#""}"#),
                (r#"{"name":"a","role":"read","prefixes":[""#, r#""]}"#),
            ],
            except: &[],
        },
        JsonRoute { path: "/v1/auth", valid: valid(json!({"required": false})), around_text: &[], except: &[] },
    ];
    let mut rows = Vec::new();
    for route in &routes {
        rows.extend(bad_json(route));
        rows.extend(long_bodies(&Method::POST, route.path));
        rows.extend(bad_parameters(&Method::POST, route.path, &[]));
    }
    rows.extend(bad_parameters(&Method::GET, "/v1/tokens", &[]));
    rows.extend(bad_parameters(&Method::DELETE, "/v1/tokens/known-token", &[]));
    rows
}

/// A route that reads JSON.
struct JsonRoute {
    path: &'static str,
    valid: String,
    /// The JSON before and after a string that the route reads.
    around_text: &'static [(&'static str, &'static str)],
    /// The shapes of [`documents`] that this route accepts, or rejects for another reason.
    except: &'static [&'static str],
}

fn json_routes(id: u64, addr: &str) -> Vec<JsonRoute> {
    let route =
        |path, valid: Value, around_text, except| JsonRoute { path, valid: valid.to_string(), around_text, except };
    vec![
        route(
            "/write",
            json!({"Set": {"key": "known", "value": MARKER}}),
            &[(r#"{"Set":{"key":"known","value":""#, r#""}}"#), (r#"{"Set":{"key":""#, r#"","value":"v"}}"#)],
            &[],
        ),
        route("/read", json!("known"), &[("\"", "\"")], &["a string"]),
        route("/consistent_read", json!("known"), &[("\"", "\"")], &["a string"]),
        route(
            "/init",
            json!([[id, addr]]),
            &[(r#"[[2,""#, r#":1"]]"#)],
            &["nothing", "spaces", "an empty list", "an empty object"],
        ),
        route("/add-learner", json!([77, "127.0.0.1:1"]), &[(r#"[2,""#, r#":1"]"#)], &[]),
        route("/change-membership", json!([id]), &[(r#"[2,""#, r#""]"#)], &["an empty list"]),
        route("/v1/cluster/leader", json!({"id": id}), &[(r#"{"id":""#, r#""}"#)], &[]),
        route(
            "/v1/txn",
            serde_json::from_str(TXN).unwrap(),
            &[(r#"{"success":[{"delete":{"key":""#, r#""}}]}"#)],
            &["an empty object"],
        ),
    ]
}

fn bad_json(route: &JsonRoute) -> Vec<Row> {
    let documents = documents(&route.valid).into_iter().filter(|(what, _)| !route.except.contains(what));
    let texts = route.around_text.iter().flat_map(|(before, after)| {
        BAD_TEXTS.iter().map(move |(what, text)| (*what, [before.as_bytes(), text, after.as_bytes()].concat()))
    });
    documents
        .chain(texts)
        .map(|(what, body)| Row::post(route.path, what, body).gives_code(400, "invalid_json"))
        .collect()
}

/// Bodies that hardly any route accepts as JSON; some are made from a valid one.
fn documents(valid: &str) -> Vec<(&'static str, Vec<u8>)> {
    let m = MARKER;
    let (start, end) = valid.split_at(valid.len() - 1);
    let mut documents: Vec<(&'static str, Vec<u8>)> = [
        ("nothing", String::new()),
        ("spaces", "  \r\n\t ".into()),
        ("a word", m.into()),
        ("null", "null".into()),
        ("true", "true".into()),
        ("a number", "42".into()),
        ("a number that is too large", "1e999".into()),
        ("a number of 100,000 digits", "9".repeat(100_000)),
        ("not a number", "NaN".into()),
        ("a string", format!("{m:?}")),
        ("an empty list", "[]".into()),
        ("a list of strings", format!(r#"["Set","{m}"]"#)),
        ("an empty object", "{}".into()),
        ("an object with an unknown field", format!(r#"{{"{m}":"{m}"}}"#)),
        ("an object with an empty name", r#"{"":{"key":"known"}}"#.into()),
        ("an unterminated list", "[".into()),
        ("an unterminated object", "{".into()),
        ("10,000 nested lists", "[".repeat(10_000)),
        ("10,000 nested objects", r#"{"Set":"#.repeat(10_000)),
        ("half a body", valid[..valid.len() / 2].into()),
        ("a body without its last byte", start.into()),
        ("trailing data", format!("{valid}{m}")),
        ("a trailing bracket", format!("{valid}]")),
        ("two bodies", format!("{valid}{valid}")),
        ("a comment", format!("{valid} // why")),
        ("a NUL at the end", format!("{valid}\0")),
        ("a byte order mark", format!("\u{feff}{valid}")),
    ]
    .into_iter()
    .map(|(what, text)| (what, text.into_bytes()))
    .collect();
    documents.push(("NUL bytes", vec![0; 1000]));
    documents.push(("UTF-16", valid.encode_utf16().flat_map(u16::to_le_bytes).collect()));
    let value: Value = serde_json::from_str(valid).unwrap();
    documents.push(("MessagePack", rmp_serde::to_vec_named(&value).unwrap()));
    if valid.contains('"') {
        documents.push(("single quotes", valid.replace('"', "'").into()));
        documents.push(("no quotes", valid.replace('"', "").into()));
    }
    if end != "\"" {
        documents.push(("a trailing comma", format!("{start},{end}").into()));
    }
    documents
}

/// Bytes that are invalid in a JSON string.
const BAD_TEXTS: &[(&str, &[u8])] = &[
    ("an unknown escape", br"\x41"),
    ("a truncated escape", br"\u00"),
    ("a lone high surrogate", br"\ud800"),
    ("a lone low surrogate", br"\udc00"),
    ("surrogates in reverse order", br"\udc00\ud800"),
    ("a high surrogate before a letter", br"\ud800a"),
    ("a line break in a string", b"a\nb"),
    ("a NUL in a string", b"a\0b"),
    ("an unterminated string", b"known\\"),
    ("invalid UTF-8", b"\xff\xfe"),
    ("truncated UTF-8", b"\xe2\x82"),
    ("overlong UTF-8", b"\xc0\xaf"),
    ("a surrogate in UTF-8", b"\xed\xa0\x80"),
    ("a code point beyond Unicode in UTF-8", b"\xf5\x80\x80\x80"),
];

/// Bodies above the limit, with a length and in chunks.
fn long_bodies(method: &Method, path: &str) -> [Row; 2] {
    let row = |what| Row::bare(method.clone(), path, what).gives_code(413, "request_too_large");
    let bytes = vec![b' '; REQUEST_BYTES_MAX + 1];
    let chunks = bytes.chunks(100_000).map(<[u8]>::to_vec).collect();
    [
        row("a body that is too long by its Content-Length").field("size", bytes.len()).body(bytes),
        row("a body that is too long, in chunks").body_in(chunks),
    ]
    .map(|row| row.field("limit", REQUEST_BYTES_MAX))
}

fn unexpected_bodies() -> Vec<Row> {
    let routes = [
        (Method::GET, KNOWN),
        (Method::HEAD, KNOWN),
        (Method::DELETE, KNOWN),
        (Method::POST, "/v1/kv/known/touch?ttl=30s"),
        (Method::GET, "/v1/kv"),
        (Method::DELETE, "/v1/kv?prefix=known"),
        (Method::GET, "/v1/watch"),
        (Method::GET, "/v1/cluster"),
        (Method::GET, "/v1/cluster/hash"),
        (Method::GET, "/v1/metrics"),
        (Method::GET, "/livez"),
        (Method::GET, "/readyz?verbose"),
        (Method::GET, "/health"),
        (Method::GET, "/v1/snapshot"),
        (Method::DELETE, "/v1/cluster/members/77"),
        (Method::POST, "/v1/cluster/members/77/promote"),
    ];
    let mut rows = Vec::new();
    for (method, path) in routes {
        let row = |what| Row::bare(method.clone(), path, what).gives_code(400, "unexpected_body");
        rows.push(row("an unexpected body").body(MARKER));
        // The HTTP library sends no chunks with GET and HEAD.
        if !matches!(method, Method::GET | Method::HEAD) {
            rows.push(row("an unexpected body in chunks").body_in(vec![MARKER.into(), MARKER.into()]));
        }
    }
    rows
}

/// The values that a parameter accepts.
enum Kind {
    Flag,
    Consistency,
    Number,
    Ttl,
    /// A prefix or bound of at most 1,024 bytes, with the error code for longer ones.
    Part(&'static str),
}

type Parameters = &'static [(&'static str, Kind)];

const MEMBER_PARAMETERS: Parameters = &[("dry_run", Kind::Flag), ("force", Kind::Flag)];

/// The parameters of each route.
const PARAMETERS: &[(Method, &str, Parameters)] = &[
    (Method::GET, KNOWN, &[("raw", Kind::Flag), ("consistency", Kind::Consistency)]),
    (Method::PUT, KNOWN, &[("ttl", Kind::Ttl)]),
    (Method::DELETE, KNOWN, &[]),
    (Method::POST, TOUCH, &[("ttl", Kind::Ttl)]),
    (
        Method::GET,
        "/v1/kv",
        &[
            ("prefix", Kind::Part("prefix_too_large")),
            ("start", Kind::Part("start_too_large")),
            ("end", Kind::Part("end_too_large")),
            ("start_after", Kind::Part("start_after_too_large")),
            ("limit", Kind::Number),
            ("keys_only", Kind::Flag),
            ("reverse", Kind::Flag),
            ("revision", Kind::Number),
            ("consistency", Kind::Consistency),
        ],
    ),
    (Method::DELETE, "/v1/kv", &[("prefix", Kind::Part("prefix_too_large")), ("all", Kind::Flag)]),
    (Method::POST, "/v1/txn", &[]),
    (
        Method::GET,
        "/v1/watch",
        &[
            ("prefix", Kind::Part("prefix_too_large")),
            ("key", Kind::Part("key_too_large")),
            ("from", Kind::Number),
            ("initial", Kind::Flag),
            ("consistency", Kind::Consistency),
        ],
    ),
    (Method::GET, "/v1/cluster", &[]),
    (Method::GET, "/v1/cluster/hash", &[("applied", Kind::Number)]),
    (Method::GET, "/v1/snapshot", &[("consistency", Kind::Consistency)]),
    (Method::GET, "/v1/metrics", &[]),
    (Method::GET, "/livez", &[("verbose", Kind::Flag)]),
    (Method::GET, "/readyz", &[("verbose", Kind::Flag)]),
    (Method::GET, "/health", &[]),
    (Method::POST, "/v1/cluster/members", MEMBER_PARAMETERS),
    (Method::DELETE, "/v1/cluster/members/77", MEMBER_PARAMETERS),
    (Method::POST, "/v1/cluster/members/77/promote", MEMBER_PARAMETERS),
    (Method::POST, "/v1/cluster/members/77/replace", MEMBER_PARAMETERS),
    (Method::POST, "/v1/cluster/leader", &[]),
];

/// Names that other routes accept, or none.
const UNKNOWN_PARAMETERS: &[&str] = &[
    "foo",
    "foo=bar",
    "%00=1",
    "all",
    "applied=1",
    "dry_run",
    "force",
    "from=1",
    "id=1",
    "index=1",
    "initial",
    "key=known",
    "keysonly",
    "last-event-id=1",
    "lease=1",
    "limit=1",
    "node=1",
    "prefix=a",
    "prev_kv",
    "raw",
    "revision=1",
    "sort=key",
    "start=a",
    "ttl=30s",
    "wait=1",
    "consistency=stale",
];

fn bad_parameters(method: &Method, path: &str, parameters: Parameters) -> Vec<Row> {
    let row = |query: &str, what: &str| {
        let row = Row::bare(method.clone(), &format!("{path}?{query}"), what);
        match *method {
            Method::PUT => row.body(MARKER),
            _ if path == "/v1/txn" => row.body(TXN),
            _ => row,
        }
    };
    let is_known = |query: &str| parameters.iter().any(|(name, _)| query.split('=').next() == Some(name));
    let known: Vec<&str> =
        if parameters.is_empty() { vec!["none"] } else { parameters.iter().map(|(name, _)| *name).collect() };
    let mut unknown: Vec<String> =
        UNKNOWN_PARAMETERS.iter().filter(|query| !is_known(query)).map(|query| query.to_string()).collect();
    let mut rows = Vec::new();
    for query in ["%zz", "%", "%ff=1"] {
        rows.push(row(query, "a broken escape in a name").gives_code(400, "invalid_encoding"));
    }
    for (name, kind) in parameters {
        let valid = format!("{name}{}", kind.sample());
        let capitalized = format!("{}{}", name[..1].to_uppercase(), &valid[1..]);
        unknown.extend([name.to_uppercase(), capitalized, format!("{name}%00"), format!("{valid}&foo")]);
        let escaped = format!("{valid}&%{:02x}{}{}", name.as_bytes()[0], &name[1..], kind.sample());
        for query in [format!("{valid}&{valid}"), escaped] {
            rows.push(row(&query, "a repeated parameter").gives_code(400, "repeated_parameter").naming(&[name]));
        }
        for value in ["%", "%4", "%zz", "%ff", "%e2%82"] {
            rows.push(row(&format!("{name}={value}"), "a broken escape").gives_code(400, "invalid_encoding"));
        }
        let (code, values, named) = kind.bad_values();
        for value in values {
            let row = row(&format!("{name}{value}"), "an invalid value").gives_code(400, code);
            rows.push(row.naming(named));
        }
        if let Kind::Part(code) = kind {
            let row = row(&format!("{name}={}", MARKER.repeat(50)), "a value of 1,250 bytes");
            rows.push(row.gives_code(413, code).field("limit", 1024).field("size", 1250));
        }
    }
    rows.extend(
        unknown
            .iter()
            .map(|query| row(query, "an unknown parameter").gives_code(400, "unknown_parameter").naming(&known)),
    );
    rows
}

impl Kind {
    /// A valid value, as it follows the name.
    fn sample(&self) -> &'static str {
        match self {
            Kind::Flag => "",
            Kind::Consistency => "=stale",
            Kind::Number => "=1",
            Kind::Ttl => "=30s",
            Kind::Part(_) => "=known",
        }
    }

    /// The error code for invalid values, the values as they follow the name, and words of the message.
    fn bad_values(&self) -> (&'static str, Vec<String>, &'static [&'static str]) {
        let values = |values: &[&str]| values.iter().map(|value| format!("={value}")).collect::<Vec<_>>();
        let alone = String::new();
        match self {
            Kind::Flag => {
                let flags = values(&["0", "1", "yes", "no", "on", "TRUE", "True", "%00"]);
                ("invalid_parameter", flags, &["true", "false"])
            }
            Kind::Consistency => {
                let names = ["", "quick", "STALE", "Stale", "stale,linearizable", "%20stale", "serializable"];
                ("invalid_parameter", [values(&names), vec![alone]].concat(), &["linearizable", "stale"])
            }
            Kind::Number => ("invalid_parameter", [values(BAD_NUMBERS), vec![alone]].concat(), &[]),
            Kind::Ttl => {
                let encode = |ttl| percent_encoding::utf8_percent_encode(ttl, percent_encoding::NON_ALPHANUMERIC);
                let ttls = BAD_TTLS.iter().map(|ttl| format!("={}", encode(ttl)));
                ("invalid_ttl", ttls.chain([alone]).collect(), &[])
            }
            Kind::Part(_) => ("", Vec::new(), &[]),
        }
    }
}

const BAD_NUMBERS: &[&str] = &[
    "",
    "-1",
    "+1",
    "%2B1",
    "1.0",
    "1.5",
    "1e3",
    "0x1",
    "0x10",
    "1,000",
    "abc",
    "now",
    "ten",
    "18446744073709551616",
    "99999999999999999999",
    "1000000000000000000000000000000",
];

/// Strings that are not a TTL.
pub const BAD_TTLS: &[&str] = &[
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

/// Conditions on routes that have none. Without the condition, each request would have an effect or another error.
fn unexpected_conditions(id: u64) -> Vec<Row> {
    let routes: [(Method, &str, &'static str, String); 9] = [
        (Method::POST, "/init", "/init", String::new()),
        (Method::POST, "/add-learner", "/add-learner", r#"[77,"127.0.0.1:1"]"#.into()),
        (Method::POST, "/change-membership", "/change-membership", json!([id]).to_string()),
        (Method::POST, "/v1/txn", "/v1/txn", TXN.into()),
        (Method::DELETE, "/v1/kv?prefix=known", "/v1/kv", String::new()),
        (Method::DELETE, "/v1/cluster/members/77", "/v1/cluster/members/77", String::new()),
        (Method::POST, "/v1/cluster/leader", "/v1/cluster/leader", json!({"id": id}).to_string()),
        (Method::POST, "/v1/cluster/members", "/v1/cluster/members", r#"{"id":77,"address":"127.0.0.1:1"}"#.into()),
        (Method::POST, "/v1/cluster/members/77/promote", "/v1/cluster/members/77/promote", String::new()),
    ];
    let mut rows = Vec::new();
    for (method, path, named, body) in routes {
        for name in ["if-match", "if-none-match"] {
            for tag in ["*", "\"1\""] {
                let row =
                    Row::bare(method.clone(), path, "an unexpected condition").body(body.clone()).header(name, tag);
                rows.push(row.gives_code(400, "invalid_condition").naming(&[named, "/v1/kv/"]));
            }
        }
    }
    rows
}

fn bad_idempotency_keys() -> Vec<Row> {
    let mut rows = Vec::new();
    for (method, path, body) in [
        (Method::PUT, KNOWN, MARKER),
        (Method::DELETE, KNOWN, ""),
        (Method::POST, "/v1/kv/known/touch?ttl=30s", ""),
        (Method::DELETE, "/v1/kv?prefix=known", ""),
        (Method::POST, "/v1/txn", TXN),
        (Method::POST, "/write", r#"{"Set":{"key":"known","value":"other"}}"#),
    ] {
        let row = |what, key: &str| Row::bare(method.clone(), path, what).body(body).header("idempotency-key", key);
        let long = "i".repeat(129);
        for key in ["", "   ", &long] {
            rows.push(row("an invalid Idempotency-Key", key).gives_code(400, "invalid_idempotency_key"));
        }
        rows.push(row("an Idempotency-Key that is not ASCII", "schlüssel").gives_code(400, "invalid_header"));
        let twice = row("a repeated Idempotency-Key", "a").header("idempotency-key", "a");
        rows.push(twice.gives_code(400, "repeated_header"));
    }
    rows
}

/// Bodies that would have to be decoded or unpacked, and parts of a body.
fn encoded_bodies() -> Vec<Row> {
    let kinds = ["multipart/form-data; boundary=x", "multipart/mixed", "Multipart/Form-Data", "MULTIPART/related"];
    let encodings = ["gzip", "GZIP", "br", "deflate", "zstd", "gzip, identity", "identity, gzip", "identityx", ""];
    let mut rows = Vec::new();
    for (method, path, body) in [(Method::PUT, KNOWN, MARKER), (Method::POST, "/v1/txn", TXN)] {
        let row = |what| Row::bare(method.clone(), path, what).body(body);
        let forms = kinds.map(|kind| row("a form").header("content-type", kind));
        let encoded = encodings.map(|encoding| row("an encoded body").header("content-encoding", encoding));
        let twice = row("two encodings").header("content-encoding", "identity").header("content-encoding", "gzip");
        let unsupported = forms.into_iter().chain(encoded).chain([twice]);
        rows.extend(unsupported.map(|row| row.gives_v1(415, "unsupported_media_type")));
        let part = row("part of a body").header("content-range", "bytes 0-0/5");
        rows.push(part.gives_v1(400, "unexpected_range").naming(&["Content-Range"]));
    }
    rows
}
