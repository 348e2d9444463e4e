//! `/v1/txn`, and transactions as a `/write`.

use serde_json::{Value, json};

use super::shapes::BAD_TTLS;
use super::{MARKER, Row};

/// An operation whose effect would be visible.
fn put() -> Value {
    json!({"put": {"key": "known", "value": MARKER}})
}

fn txn(what: &str, body: &Value) -> Row {
    Row::post("/v1/txn", what, body.to_string())
}

fn after(compare: Value) -> Value {
    json!({"compare": [compare], "success": [put()], "failure": [put()]})
}

pub fn rows() -> Vec<Row> {
    let mut rows = shapes();
    rows.extend(comparisons());
    rows.extend(operations());
    rows.extend(counts());
    rows
}

/// Bodies that are not a transaction.
fn shapes() -> Vec<Row> {
    let m = MARKER;
    let texts: Vec<(&str, String)> = vec![
        ("a list in place of the fields", r#"[[],[{"delete":{"key":"known"}}],[]]"#.into()),
        ("a field twice", r#"{"success":[{"delete":{"key":"known"}}],"success":[]}"#.into()),
        ("an unknown field", r#"{"success":[{"delete":{"key":"known"}}],"then":[]}"#.into()),
        ("a field in the wrong case", r#"{"Success":[{"delete":{"key":"known"}}]}"#.into()),
        ("the body of /write", format!(r#"{{"Set":{{"key":"known","value":"{m}"}}}}"#)),
        ("success that is an object", r#"{"success":{"delete":{"key":"known"}}}"#.into()),
        ("success that is null", r#"{"success":null}"#.into()),
        ("success that is a string", format!(r#"{{"success":"{m}"}}"#)),
        ("compare that is an object", r#"{"compare":{},"success":[{"delete":{"key":"known"}}]}"#.into()),
        ("compare that is a number", r#"{"compare":1,"success":[{"delete":{"key":"known"}}]}"#.into()),
        ("an operation that is a string", r#"{"success":["delete"]}"#.into()),
        ("an operation that is null", r#"{"success":[null]}"#.into()),
        ("an empty operation", r#"{"success":[{}]}"#.into()),
        ("two operations in one", r#"{"success":[{"delete":{"key":"known"},"get":{"key":"known"}}]}"#.into()),
        ("an unknown operation", r#"{"success":[{"increment":{"key":"known"}}]}"#.into()),
        ("an operation in the wrong case", r#"{"success":[{"Delete":{"key":"known"}}]}"#.into()),
        ("10,000 nested lists of operations", format!(r#"{{"success":{}"#, "[".repeat(10_000))),
        ("10,000 nested objects", r#"{"success":[{"put":"#.repeat(10_000)),
        (
            "10,000 nested lists as a value",
            format!(r#"{{"success":[{{"put":{{"key":"known","value":{}"#, "[".repeat(10_000)),
        ),
    ];
    let mut rows: Vec<Row> =
        texts.into_iter().map(|(what, text)| Row::post("/v1/txn", what, text).gives_v1(400, "invalid_json")).collect();
    let empty = [json!({}), json!({"success": []}), json!({"compare": [{"key": "known", "exists": true}]})];
    for body in empty {
        rows.push(txn("no operation", &body).gives_v1(400, "invalid_txn"));
        let row = Row::post("/write", "no operation", json!({"Txn": body}).to_string());
        rows.push(row.gives_bad_request("invalid_txn"));
    }
    rows
}

fn comparisons() -> Vec<Row> {
    let none_or_many = [
        json!({"key": "known"}),
        json!({"key": "known", "op": "="}),
        json!({"key": "known", "exists": null}),
        json!({"key": "known", "exists": true, "version": 1}),
        json!({"key": "known", "value": "value", "revision": 1}),
        json!({"key": "known", "revision": 1, "create_revision": 1, "version": 1}),
        json!({"key": "known", "encoding": "base64"}),
        json!({"key": "known", "encoding": "base64", "exists": true}),
        json!({"key": "known", "exists": true, "op": "<"}),
        json!({"key": "known", "exists": true, "op": "<="}),
        json!({"key": "known", "exists": false, "op": ">"}),
        json!({"key": "known", "exists": false, "op": ">="}),
    ];
    let mut rows: Vec<Row> = none_or_many
        .into_iter()
        .map(|compare| txn(&format!("{compare}"), &after(compare)).gives_v1(400, "invalid_txn").naming(&["compare[0]"]))
        .collect();
    let no_json = [
        json!({}),
        json!({"exists": true}),
        json!({"key": 1, "exists": true}),
        json!({"key": null, "exists": true}),
        json!({"key": "known", "exists": 1}),
        json!({"key": "known", "exists": "true"}),
        json!({"key": "known", "value": 1}),
        json!({"key": "known", "value": ["value"]}),
        json!({"key": "known", "revision": "1"}),
        json!({"key": "known", "revision": -1}),
        json!({"key": "known", "revision": 1.5}),
        json!({"key": "known", "revision": 1e30}),
        json!({"key": "known", "version": true}),
        json!({"key": "known", "version": 1, "op": "=="}),
        json!({"key": "known", "version": 1, "op": ""}),
        json!({"key": "known", "version": 1, "op": "Equal"}),
        json!({"key": "known", "version": 1, "op": 1}),
        json!({"key": "known", "version": 1, "op": "<>"}),
        json!({"key": "known", "value": "value", "encoding": "gzip"}),
        json!({"key": "known", "value": "value", "encoding": "Base64"}),
        json!({"key": "known", "version": 1, "target": "version"}),
        json!({"key": "known", "lease": 1}),
        json!("known"),
        json!(["known", "=", true]),
        json!(null),
    ];
    rows.extend(
        no_json.into_iter().map(|compare| txn(&format!("{compare}"), &after(compare)).gives_v1(400, "invalid_json")),
    );
    let bad_base64 = json!({"key": "known", "value": "%%%", "encoding": "base64"});
    rows.push(txn("a value that is not base64", &after(bad_base64)).gives_v1(400, "invalid_base64"));
    for (what, key, status, code) in bad_keys() {
        let row = txn(what, &after(json!({"key": key, "exists": true})));
        rows.push(row.gives_v1(status, code).naming(&["compare[0]"]));
    }
    rows
}

fn bad_keys() -> Vec<(&'static str, String, u16, &'static str)> {
    vec![
        ("an empty key", "".into(), 400, "key_empty"),
        ("a NUL", "known\0".into(), 400, "invalid_key"),
        ("a segment that is ..", "a/../b".into(), 400, "invalid_key"),
        ("a key that is .", ".".into(), 400, "invalid_key"),
        ("a key of 1,025 bytes", "k".repeat(1025), 413, "key_too_large"),
        ("a key of 1,026 bytes in 513 characters", "é".repeat(513), 413, "key_too_large"),
    ]
}

fn operations() -> Vec<Row> {
    let mut rows = Vec::new();
    for list in ["success", "failure"] {
        let second = |operation: Value| json!({list: [{"delete": {"key": "other"}}, operation]});
        let named: &[&str] = if list == "success" { &["success[1]"] } else { &["failure[1]"] };
        for (what, key, status, code) in bad_keys() {
            for operation in [
                json!({"put": {"key": key, "value": MARKER}}),
                json!({"delete": {"key": key}}),
                json!({"get": {"key": key}}),
                json!({"touch": {"key": key, "ttl": "30s"}}),
            ] {
                rows.push(txn(what, &second(operation)).gives_v1(status, code).naming(named));
            }
        }
        let twice = [
            json!({"put": {"key": "other", "value": MARKER}}),
            json!({"delete": {"key": "other"}}),
            json!({"touch": {"key": "other", "ttl": "30s"}}),
        ];
        for operation in twice {
            rows.push(txn("a key twice", &second(operation)).gives_v1(400, "key_twice").naming(named));
        }
        for value in ["%%%", "YQ", "YQ==\n", "YQ= =", "Y", "_-_-", MARKER] {
            let put = json!({"put": {"key": "known", "value": value, "encoding": "base64"}});
            rows.push(txn("a value that is not base64", &second(put)).gives_v1(400, "invalid_base64"));
        }
        let large = json!({"put": {"key": "known", "value": "v".repeat((1 << 20) + 1)}});
        let row = txn("a value of 1 MiB and a byte", &second(large)).gives_v1(413, "value_too_large");
        rows.push(row.field("limit", 1 << 20).field("size", (1 << 20) + 1).naming(named));
    }
    for ttl in BAD_TTLS {
        for operation in ["put", "touch"] {
            let mut fields = json!({"key": "known", "ttl": ttl});
            if operation == "put" {
                fields["value"] = json!(MARKER);
            }
            let row = txn(&format!("a TTL of {ttl:?}"), &json!({"success": [{operation: fields}]}));
            rows.push(row.gives_v1(400, "invalid_ttl").naming(&["success[0]"]));
        }
    }
    let no_json = [
        json!({"put": {"key": "known"}}),
        json!({"put": {"value": MARKER}}),
        json!({"put": {"key": "known", "value": 1}}),
        json!({"put": {"key": "known", "value": null}}),
        json!({"put": {"key": "known", "value": {"a": 1}}}),
        json!({"put": {"key": 1, "value": MARKER}}),
        json!({"put": {"key": "known", "value": MARKER, "ttl": 30}}),
        json!({"put": {"key": "known", "value": MARKER, "encoding": "hex"}}),
        json!({"put": {"key": "known", "value": MARKER, "if_match": 1}}),
        json!({"put": null}),
        json!({"put": ["known", MARKER]}),
        json!({"delete": ["known"]}),
        json!({"put": "known"}),
        json!({"delete": {}}),
        json!({"delete": {"key": "known", "value": MARKER}}),
        json!({"delete": {"prefix": "k"}}),
        json!({"delete": {"key": "known", "prefix": true}}),
        json!({"get": {"key": ["known"]}}),
        json!({"get": {"key": "known", "raw": true}}),
        json!({"touch": {"key": "known", "ttl": 30}}),
        json!({"touch": {"ttl": "30s"}}),
        json!({"txn": {"success": []}}),
    ];
    for operation in no_json {
        let what = format!("{operation}");
        rows.push(txn(&what, &json!({"success": [operation.clone()]})).gives_v1(400, "invalid_json"));
        rows.push(txn(&what, &json!({"success": [put()], "failure": [operation]})).gives_v1(400, "invalid_json"));
    }
    rows
}

/// One operation too many, in each list.
fn counts() -> Vec<Row> {
    let compare: Vec<_> = (0..129).map(|number| json!({"key": format!("k{number}"), "version": 0})).collect();
    let steps: Vec<_> = (0..129).map(|number| json!({"put": {"key": format!("k{number}"), "value": MARKER}})).collect();
    let gets = vec![json!({"get": {"key": "known"}}); 129];
    let cases = [
        ("compare", json!({"compare": compare, "success": [put()]})),
        ("success", json!({"success": steps})),
        ("success", json!({"success": gets})),
        ("failure", json!({"success": [put()], "failure": steps})),
    ];
    let mut rows = Vec::new();
    for (list, body) in cases {
        let row = txn("129 entries", &body).gives_v1(400, "too_many_operations");
        rows.push(row.naming(&[list, "129", "128"]));
        let row = Row::post("/write", "129 entries", json!({"Txn": body}).to_string());
        rows.push(row.gives_bad_request("too_many_operations"));
    }
    rows
}
