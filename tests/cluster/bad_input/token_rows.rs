//! `/v1/tokens` and `/v1/auth`, with a token that may use them.

use reqwest::Method;
use serde_json::json;

use super::shapes::{BAD_TTLS, token_shapes};
use super::{MARKER, Row};
use crate::auth::ROOT;

const TOKENS: &str = "/v1/tokens";
const AUTH: &str = "/v1/auth";
/// The name of a token that exists.
pub const KNOWN_TOKEN: &str = "known-token";

pub fn rows() -> Vec<Row> {
    let mut rows = token_shapes();
    let create = |what: &str, body: serde_json::Value| Row::post(TOKENS, what, body.to_string());
    let long = "n".repeat(65);
    for (what, name) in [
        ("no name", ""),
        ("a name of 65 bytes", long.as_str()),
        ("a slash in a name", "a/b"),
        ("a space in a name", "a b"),
        ("a NUL in a name", "a\0"),
        ("a letter beyond ASCII in a name", "é"),
        ("a name that is this directory in a path", "."),
        ("a name that is the parent directory in a path", ".."),
    ] {
        let body = json!({"name": name, "role": "read"});
        rows.push(create(what, body).gives_v1(400, "invalid_token").naming(&["name", "64"]));
    }
    for role in [json!(MARKER), json!("Read"), json!("root"), json!(null), json!(1), json!(["read"])] {
        rows.push(create("a bad role", json!({"name": "a", "role": role})).gives_v1(400, "invalid_json"));
    }
    for (what, prefixes, status, code) in [
        ("no prefixes in a list", json!([]), 400, "invalid_token"),
        ("null instead of prefixes", json!(null), 400, "invalid_token"),
        ("too many prefixes", json!(vec!["a"; 33]), 400, "invalid_token"),
        ("an empty prefix", json!(["a", ""]), 400, "key_empty"),
        ("a prefix with a NUL", json!(["a\0"]), 400, "invalid_key"),
        ("a prefix that no URL can name", json!(["../a"]), 400, "invalid_key"),
        ("a prefix of 1,025 bytes", json!(["a".repeat(1025)]), 413, "key_too_large"),
        ("a prefix that is no string", json!([1]), 400, "invalid_json"),
        ("prefixes that are no list", json!("a"), 400, "invalid_json"),
    ] {
        let body = json!({"name": "a", "role": "read", "prefixes": prefixes});
        rows.push(create(what, body).gives_v1(status, code));
    }
    let body = json!({"name": "a", "role": "admin", "prefixes": ["a"]});
    rows.push(create("an administrator of some keys", body).gives_v1(400, "invalid_token").naming(&["admin"]));
    for ttl in BAD_TTLS {
        let body = json!({"name": "a", "role": "read", "ttl": ttl});
        rows.push(create("a bad TTL", body).gives_v1(400, "invalid_ttl"));
    }
    for body in [
        json!({"name": "a"}),
        json!({"role": "read"}),
        json!({"name": "a", "role": "read", MARKER: 1}),
        json!({"name": "a", "role": "read", "ttl": 1000}),
        json!({"name": 1, "role": "read"}),
    ] {
        rows.push(create("fields that are not those of a token", body).gives_v1(400, "invalid_json"));
    }
    let list = json!(["ci", "write"]);
    rows.push(create("a list instead of an object", list).gives_v1(400, "invalid_json").naming(&["list"]));
    let twice = r#"{"name":"a","name":"b","role":"read"}"#;
    rows.push(Row::post(TOKENS, "a field twice", twice).gives_v1(400, "invalid_json"));
    let body = json!({"name": KNOWN_TOKEN, "role": "read"});
    rows.push(create("a name in use", body).gives_v1(409, "conflict").naming(&["exists"]));
    for body in ["{}", r#"{"required":null}"#, r#"{"required":"false"}"#, r#"{"required":0}"#, r#"{"disabled":true}"#] {
        rows.push(Row::post(AUTH, "not whether tokens are required", body).gives_v1(400, "invalid_json"));
    }
    let valid = json!({"name": "a", "role": "read"}).to_string();
    let known = format!("{TOKENS}/{KNOWN_TOKEN}");
    for (method, path, body) in [
        (Method::POST, TOKENS, valid.as_str()),
        (Method::POST, AUTH, r#"{"required":false}"#),
        (Method::DELETE, known.as_str(), ""),
    ] {
        let row = |what: &str| Row::bare(method.clone(), path, what).body(body);
        let with_key = row("an Idempotency-Key").header("idempotency-key", MARKER);
        rows.push(with_key.gives_v1(400, "invalid_header").naming(&["Idempotency-Key"]));
        for name in ["if-match", "if-none-match"] {
            rows.push(row("a condition").header(name, "*").gives_v1(400, "invalid_condition"));
        }
    }
    for (method, path) in [(Method::GET, TOKENS), (Method::DELETE, known.as_str())] {
        rows.push(Row::bare(method, path, "a body").body("{}").gives_v1(400, "unexpected_body"));
    }
    for name in ["%20", "a%2Fb", "%00", "%ff", "%zz", &"n".repeat(65), "%C3%A9"] {
        let path = format!("{TOKENS}/{name}");
        rows.push(Row::bare(Method::DELETE, &path, "a bad name").gives_v1(400, "invalid_token"));
    }
    rows.push(Row::bare(Method::DELETE, &format!("{TOKENS}/{MARKER}"), "no token").gives_v1(404, "token_not_found"));
    rows.into_iter().map(|row| row.header("authorization", format!("Bearer {ROOT}"))).collect()
}
