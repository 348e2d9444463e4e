//! `/v1/cluster/hash`, `/v1/cluster/members` and `/v1/cluster/leader`.

use reqwest::Method;
use serde_json::{Value, json};

use super::management_rows::{BAD_JSON_IDS, bad_addresses};
use super::{MARKER, Row};

const LEADER: &str = "/v1/cluster/leader";

const BAD_IDS: &[&str] = &[
    "0",
    "00",
    "01",
    "-1",
    "+1",
    "%2B1",
    "1e0",
    "1.0",
    "0x1",
    "one",
    "1,2",
    "%5B1%5D",
    "%221%22",
    "%20",
    "1%20",
    "1%00",
    "18446744073709551616",
    "99999999999999999999999999",
    MARKER,
    "%ff",
    "%zz",
    "%F0%9F%98%80",
    "1%2F2",
    "..%2f1",
];

pub fn rows() -> Vec<Row> {
    let hash = |index: &str, what: &str| Row::bare(Method::GET, &format!("/v1/cluster/hash?applied={index}"), what);
    let member = |id: &str, what: &str| Row::bare(Method::DELETE, &format!("/v1/cluster/members/{id}"), what);
    let mut rows = Vec::new();
    let row = hash("9223372036854775808", "an index that is too large").gives_v1(400, "invalid_parameter");
    rows.push(row.naming(&["applied"]));
    for index in ["0", "00", "1"] {
        rows.push(hash(index, "an index in the past").gives_v1(410, "applied_passed"));
    }
    for id in BAD_IDS {
        rows.push(member(id, "a bad node id").gives_v1(400, "invalid_node_id").naming(&["id"]));
    }
    let promote = |id: &str, what: &str| Row::post(&format!("/v1/cluster/members/{id}/promote"), what, "");
    for id in BAD_IDS.iter().filter(|id| !id.contains("%2")) {
        rows.push(promote(id, "a bad node id").gives_v1(400, "invalid_node_id").naming(&["id"]));
    }
    for id in ["77", "18446744073709551615"] {
        rows.push(member(id, "a node that is not a member").gives_v1(404, "member_not_found"));
        rows.push(promote(id, "a node that is not a member").gives_v1(404, "member_not_found"));
    }
    for body in [
        r#"{"id":-1}"#,
        r#"{"id":1.5}"#,
        r#"{"id":1e0}"#,
        r#"{"id":"1"}"#,
        r#"{"id":null}"#,
        r#"{"id":[1]}"#,
        r#"{"id":18446744073709551616}"#,
        r#"{"id":1,"id":1}"#,
        r#"{"id":1,"force":true}"#,
        r#"{"node":1}"#,
        "1",
    ] {
        rows.push(Row::post(LEADER, "not the id of a node", body).gives_v1(400, "invalid_json"));
    }
    for id in ["0", "77", "18446744073709551615"] {
        let body = format!(r#"{{"id":{id}}}"#);
        rows.push(Row::post(LEADER, "a node that is not a member", body).gives_v1(409, "conflict").naming(&["member"]));
    }
    rows.push(promote("77", "a body").body("{}").gives_v1(400, "unexpected_body"));
    for path in ["/v1/cluster/members/77?dry_run=1", "/v1/cluster/members/77?force=yes"] {
        rows.push(Row::bare(Method::DELETE, path, "a bad flag").gives_v1(400, "invalid_parameter"));
    }
    let twice = "/v1/cluster/members/77?force&force";
    rows.push(Row::bare(Method::DELETE, twice, "a flag twice").gives_v1(400, "repeated_parameter"));
    for id in BAD_IDS.iter().filter(|id| !id.contains("%2")) {
        let replace = Row::post(&format!("/v1/cluster/members/{id}/replace"), "a bad node id", VALID);
        rows.push(replace.gives_v1(400, "invalid_node_id").naming(&["id"]));
    }
    let replace = |body: &str, what: &str| Row::post("/v1/cluster/members/78/replace", what, body);
    rows.push(replace(VALID, "a node that is not a member").gives_v1(404, "member_not_found"));
    let itself = r#"{"id":78,"address":"127.0.0.1:1"}"#;
    rows.push(replace(itself, "a node by itself").gives_v1(400, "node_twice"));
    let role = r#"{"id":77,"address":"127.0.0.1:1","role":"voter"}"#;
    rows.push(replace(role, "a role").gives_v1(400, "invalid_json"));
    for path in ["/v1/cluster/members", "/v1/cluster/members/78/replace"] {
        rows.extend(body_rows(path));
    }
    rows.extend(add_rows());
    rows
}

const VALID: &str = r#"{"id":77,"address":"127.0.0.1:1"}"#;

/// Bodies that do not name a node.
fn body_rows(path: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    for (what, body) in [
        ("no body", String::new()),
        ("not JSON", MARKER.to_owned()),
        ("null", "null".to_owned()),
        ("no address", r#"{"id":77}"#.to_owned()),
        ("no id", r#"{"address":"127.0.0.1:1"}"#.to_owned()),
        ("a list instead of the object", r#"[77,"127.0.0.1:1","voter"]"#.to_owned()),
        ("a list of objects", r#"[{"id":77,"address":"127.0.0.1:1"}]"#.to_owned()),
        ("an unknown field", format!(r#"{{"id":77,"address":"127.0.0.1:1","{MARKER}":1}}"#)),
        ("a field twice", r#"{"id":77,"id":78,"address":"127.0.0.1:1"}"#.to_owned()),
        ("an address that is an object", r#"{"id":77,"address":{"addr":"127.0.0.1:1"}}"#.to_owned()),
        ("an address that is null", r#"{"id":77,"address":null}"#.to_owned()),
        ("two objects", r#"{"id":77,"address":"127.0.0.1:1"}{}"#.to_owned()),
    ] {
        rows.push(Row::post(path, what, body).gives_v1(400, "invalid_json"));
    }
    for (what, bad_id) in BAD_JSON_IDS {
        let body = format!(r#"{{"id":{bad_id},"address":"127.0.0.1:1"}}"#);
        rows.push(Row::post(path, what, body).gives_v1(400, "invalid_json"));
    }
    for (what, address) in bad_addresses() {
        let body = json!({"id": 77, "address": address}).to_string();
        rows.push(Row::post(path, what, body).gives_v1(400, "invalid_address"));
    }
    let zero = r#"{"id":0,"address":"127.0.0.1:1"}"#;
    rows.push(Row::post(path, "node 0", zero).gives_v1(400, "invalid_node_id"));
    rows.push(Row::post(&format!("{path}?x=1"), "a parameter", VALID).gives_v1(400, "unknown_parameter"));
    rows
}

fn add_rows() -> Vec<Row> {
    const PATH: &str = "/v1/cluster/members";
    let mut rows = Vec::new();
    for (what, role) in [
        ("an unknown role", json!(MARKER)),
        ("the role of a leader", json!("leader")),
        ("a role in upper case", json!("Voter")),
        ("a role that is null", Value::Null),
    ] {
        let body = json!({"id": 77, "address": "127.0.0.1:1", "role": role}).to_string();
        rows.push(Row::post(PATH, what, body).gives_v1(400, "invalid_json"));
    }
    rows.push(Row::post(PATH, "an address where no node is", VALID).gives_v1(503, "unreachable"));
    rows
}
