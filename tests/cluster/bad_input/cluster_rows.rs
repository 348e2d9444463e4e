//! `/v1/cluster/hash`.

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
    rows.push(hash("applied", "an index that is not said").gives_v1(400, "invalid_parameter"));
    rows.push(hash("applied=%ff", "an index that is no UTF-8").gives_v1(400, "invalid_encoding"));
    rows.push(hash("applied=%zz", "an index with a broken %").gives_v1(400, "invalid_encoding"));
    rows.push(hash("applied=1&applied=1", "an index twice").gives_v1(400, "repeated_parameter"));
    for query in ["foo", "Applied=1", "index=1", "revision=1", "consistency=stale", "applied=1&node=1", "%00=1"] {
        let row = hash(query, "an unknown parameter").gives_v1(400, "unknown_parameter");
        rows.push(row.naming(&["applied"]));
    }
    for index in ["0", "00", "1"] {
        rows.push(hash(&format!("applied={index}"), "an index that is over").gives_v1(410, "applied_passed"));
    }
    rows.push(hash("", "a body where none is taken").body(MARKER).gives_v1(400, "unexpected_body"));
    rows
}
