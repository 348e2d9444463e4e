//! `/write`, `/read` and `/consistent_read`.

use serde_json::json;

use super::{MARKER, Row};

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (what, body) in bad_writes() {
        rows.push(Row::post("/write", what, body).gives_bad_json());
    }
    for path in ["/read", "/consistent_read"] {
        rows.push(Row::post(path, "a list", r#"["known"]"#).gives_bad_json());
        rows.push(Row::post(path, "an object", r#"{"key":"known"}"#).gives_bad_json());
        rows.push(Row::post(path, "an empty key", r#""""#).gives_bad_request("key_empty"));
        let long = json!(MARKER.repeat(50)).to_string();
        rows.push(Row::post(path, "a key of 1,250 bytes", long).gives_too_large("key_too_large"));
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
fn bad_writes() -> Vec<(&'static str, String)> {
    let m = MARKER;
    vec![
        ("the name alone", r#""Set""#.into()),
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
        ("no name", format!(r#"{{"key":"known","value":"{m}"}}"#)),
        ("two names", format!(r#"{{"Set":{{"key":"known","value":"{m}"}},"Get":{{"key":"known"}}}}"#)),
        ("the name twice", format!(r#"{{"Set":{{"key":"known","value":"1"}},"Set":{{"key":"known","value":"{m}"}}}}"#)),
        ("a list of writes", format!(r#"[{{"Set":{{"key":"known","value":"{m}"}}}}]"#)),
        ("a trailing comma", r#"{"Set":{"key":"known","value":"v",}}"#.into()),
        ("10,000 nested lists as a value", format!(r#"{{"Set":{{"key":"known","value":{}"#, "[".repeat(10_000))),
        ("10,000 nested lists in an extra field", format!(r#"{{"Set":{{"{m}":{}"#, "[".repeat(10_000))),
    ]
}
