//! `/v1/kv`: listing keys, and deleting them by prefix.

use reqwest::Method;

use super::Row;

pub fn rows() -> Vec<Row> {
    let list = |query: &str, what: &str| Row::bare(Method::GET, &format!("/v1/kv?{query}"), what);
    let delete = |query: &str, what: &str| Row::bare(Method::DELETE, &format!("/v1/kv{query}"), what);
    let mut rows = Vec::new();
    for limit in ["0", "1001"] {
        let row = list(&format!("limit={limit}"), "a limit out of range").gives_v1(400, "invalid_parameter");
        rows.push(row.naming(&["limit", "1000"]));
    }
    for revision in ["1000000", "18446744073709551615"] {
        rows.push(list(&format!("revision={revision}"), "a future revision").gives_v1(400, "revision_in_future"));
    }
    for query in ["", "?", "?prefix", "?prefix=", "?all=false", "?prefix=&all=false"] {
        rows.push(delete(query, "neither a prefix nor all").gives_v1(400, "invalid_parameter").naming(&["all"]));
    }
    for query in ["?prefix=known&all", "?prefix=&all", "?all=true&prefix=known"] {
        rows.push(delete(query, "a prefix and all").gives_v1(400, "invalid_parameter"));
    }
    rows.push(delete("?prefix=known&all=no", "a prefix and an invalid flag").gives_v1(400, "invalid_parameter"));
    rows
}
