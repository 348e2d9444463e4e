//! `/v1/kv`: listing keys, and deleting them by prefix.

use reqwest::Method;

use super::{MARKER, Row};

const LIST_NAMES: &[&str] =
    &["prefix", "start", "end", "start_after", "limit", "keys_only", "reverse", "revision", "consistency"];

fn list(query: &str, what: &str) -> Row {
    Row::bare(Method::GET, &format!("/v1/kv?{query}"), what)
}

fn delete(query: &str, what: &str) -> Row {
    Row::bare(Method::DELETE, &format!("/v1/kv{query}"), what)
}

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for limit in ["", "0", "-1", "1001", "1e3", "0x10", "1.0", "+1", "%2B1", "1,000", "ten", "99999999999999999999"] {
        let row = list(&format!("limit={limit}"), "a bad limit");
        rows.push(row.gives_v1(400, "invalid_parameter").naming(&["limit", "1000"]));
    }
    for flag in ["keys_only", "reverse"] {
        for value in ["1", "yes", "True", "no"] {
            let row = list(&format!("{flag}={value}"), "a flag that is neither true nor false");
            rows.push(row.gives_v1(400, "invalid_parameter").naming(&["true", "false"]));
        }
        rows.push(list(&format!("{flag}&{flag}"), "a flag twice").gives_v1(400, "repeated_parameter"));
    }
    for revision in ["", "abc", "-1", "1.5", "0x1", "18446744073709551616", "1000000000000000000000000000000"] {
        rows.push(list(&format!("revision={revision}"), "a bad revision").gives_v1(400, "invalid_parameter"));
    }
    for revision in ["1000000", "18446744073709551615"] {
        rows.push(list(&format!("revision={revision}"), "a future revision").gives_v1(400, "revision_in_future"));
    }
    for (name, code) in [
        ("prefix", "prefix_too_large"),
        ("start", "start_too_large"),
        ("end", "end_too_large"),
        ("start_after", "start_after_too_large"),
    ] {
        let row = list(&format!("{name}={}", MARKER.repeat(50)), "a bound of 1,250 bytes");
        rows.push(row.gives_v1(413, code).field("limit", 1024).field("size", 1250));
        rows.push(list(&format!("{name}=%ff"), "a bound that is not UTF-8").gives_v1(400, "invalid_encoding"));
        rows.push(list(&format!("{name}=%zz"), "a bound with a broken %").gives_v1(400, "invalid_encoding"));
        rows.push(list(&format!("{name}=a&{name}=b"), "a bound twice").gives_v1(400, "repeated_parameter"));
    }
    for query in ["foo", "key=known", "from=1", "Prefix=a", "keysonly", "sort=key", "%00=1"] {
        let row = list(query, "an unknown parameter").gives_v1(400, "unknown_parameter");
        rows.push(row.naming(LIST_NAMES));
    }
    for consistency in ["", "quick", "STALE"] {
        rows.push(
            list(&format!("consistency={consistency}"), "an unknown consistency").gives_v1(400, "invalid_parameter"),
        );
    }
    rows.push(list("", "a body where none is allowed").body(MARKER).gives_v1(400, "unexpected_body"));
    rows.extend(deletions());
    rows
}

fn deletions() -> Vec<Row> {
    let mut rows = Vec::new();
    for query in ["", "?", "?prefix", "?prefix=", "?all=false", "?prefix=&all=false"] {
        rows.push(delete(query, "neither a prefix nor all").gives_v1(400, "invalid_parameter").naming(&["all"]));
    }
    for query in ["?prefix=known&all", "?prefix=&all", "?all=true&prefix=known"] {
        rows.push(delete(query, "a prefix and all").gives_v1(400, "invalid_parameter"));
    }
    for query in ["?all=yes", "?all=1", "?all=TRUE", "?prefix=known&all=no"] {
        rows.push(delete(query, "a flag that is neither true nor false").gives_v1(400, "invalid_parameter"));
    }
    for query in ["?prefix=known&limit=1", "?prefix=known&start=a", "?key=known", "?prefix=known&revision=1", "?ALL"] {
        let row = delete(query, "an unknown parameter").gives_v1(400, "unknown_parameter");
        rows.push(row.naming(&["prefix", "all"]));
    }
    rows.push(delete("?prefix=known&prefix=k", "a prefix twice").gives_v1(400, "repeated_parameter"));
    rows.push(delete("?all&all", "a flag twice").gives_v1(400, "repeated_parameter"));
    rows.push(delete("?prefix=%ff", "a prefix that is not UTF-8").gives_v1(400, "invalid_encoding"));
    rows.push(delete("?prefix=known%", "a prefix with a broken %").gives_v1(400, "invalid_encoding"));
    let long = format!("?prefix={}", MARKER.repeat(50));
    rows.push(delete(&long, "a prefix of 1,250 bytes").gives_v1(413, "prefix_too_large").field("limit", 1024));
    rows.push(delete("?prefix=known", "a body where none is allowed").body(MARKER).gives_v1(400, "unexpected_body"));
    rows
}
