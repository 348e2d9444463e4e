//! `/v1/cluster/hash` and `/v1/cluster/members`.

use reqwest::Method;

use super::{MARKER, Row};

fn hash(query: &str, what: &str) -> Row {
    Row::bare(Method::GET, &format!("/v1/cluster/hash?{query}"), what)
}

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for index in ["", "-1", "+1", "%2B1", "1e3", "0x10", "1.0", "1,000", "now", "9223372036854775808"] {
        let row = hash(&format!("applied={index}"), "a bad index").gives_v1(400, "invalid_parameter");
        rows.push(row.naming(&["applied"]));
    }
    rows.push(hash("applied", "an index without a value").gives_v1(400, "invalid_parameter"));
    rows.push(hash("applied=%ff", "an index that is not UTF-8").gives_v1(400, "invalid_encoding"));
    rows.push(hash("applied=%zz", "an index with a broken %").gives_v1(400, "invalid_encoding"));
    rows.push(hash("applied=1&applied=1", "an index twice").gives_v1(400, "repeated_parameter"));
    for query in ["foo", "Applied=1", "index=1", "revision=1", "consistency=stale", "applied=1&node=1", "%00=1"] {
        let row = hash(query, "an unknown parameter").gives_v1(400, "unknown_parameter");
        rows.push(row.naming(&["applied"]));
    }
    for index in ["0", "00", "1"] {
        rows.push(hash(&format!("applied={index}"), "an index in the past").gives_v1(410, "applied_passed"));
    }
    rows.push(hash("", "a body where none is allowed").body(MARKER).gives_v1(400, "unexpected_body"));
    rows.extend(member_rows());
    rows
}

fn member_rows() -> Vec<Row> {
    let member = |id: &str, what: &str| Row::bare(Method::DELETE, &format!("/v1/cluster/members/{id}"), what);
    let mut rows = Vec::new();
    for id in [
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
    ] {
        rows.push(member(id, "a bad node id").gives_v1(400, "invalid_node_id").naming(&["number"]));
    }
    for id in ["77", "18446744073709551615"] {
        rows.push(member(id, "a node that is not a member").gives_v1(404, "member_not_found"));
    }
    for query in ["force", "dry_run", "id=1", "Force=true"] {
        rows.push(member(&format!("77?{query}"), "an unknown parameter").gives_v1(400, "unknown_parameter"));
    }
    rows.push(member("77", "a body where none is allowed").body(MARKER).gives_v1(400, "unexpected_body"));
    for name in ["if-match", "if-none-match"] {
        let row = member("77", "a condition").header(name, "*").gives_v1(400, "invalid_condition");
        rows.push(row.naming(&["/v1/cluster/members/77", "/v1/kv/"]));
    }
    for path in ["/v1/cluster/members", "/v1/cluster/members/", "/v1/cluster/members/77/", "/v1/cluster/members/77/x"] {
        for method in [Method::DELETE, Method::GET, Method::POST] {
            rows.push(Row::bare(method, path, "no such route").gives_v1(404, "no_such_route"));
        }
    }
    for method in [Method::GET, Method::PUT, Method::POST, Method::PATCH, Method::OPTIONS] {
        rows.push(
            Row { allow: Some("DELETE"), ..Row::bare(method, "/v1/cluster/members/77", "the wrong method") }
                .gives_v1(405, "method_not_allowed"),
        );
    }
    rows
}
