//! `/v1/cluster/hash` and `/v1/cluster/members`.

use reqwest::Method;

use super::{MARKER, Row};

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
    rows
}
