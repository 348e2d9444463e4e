//! `/v1/cluster/hash`, `/v1/cluster/members` and `/v1/cluster/leader`.

use reqwest::Method;

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
    for id in ["77", "18446744073709551615"] {
        rows.push(member(id, "a node that is not a member").gives_v1(404, "member_not_found"));
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
    rows
}
