//! `/v1/watch`.

use reqwest::Method;

use super::{MARKER, Row};

fn watch(query: &str, what: &str) -> Row {
    Row::bare(Method::GET, &format!("/v1/watch?{query}"), what)
}

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for from in ["", "0", "-1", "abc", "1.5", "0x1", "1e3", "%2B1", "18446744073709551616"] {
        rows.push(watch(&format!("from={from}"), "a bad revision").gives_v1(400, "invalid_parameter"));
    }
    for from in ["1000000", "18446744073709551615"] {
        rows.push(watch(&format!("from={from}"), "a future revision").gives_v1(400, "revision_in_future"));
    }
    rows.push(watch("from=1&initial", "from and initial").gives_v1(400, "invalid_parameter"));
    rows.push(watch("initial=true&from=1", "from and initial").gives_v1(400, "invalid_parameter"));
    for query in ["key=known&prefix=k", "prefix=&key=known", "key=known&prefix"] {
        rows.push(watch(query, "a key and a prefix").gives_v1(400, "invalid_parameter"));
    }
    let long = MARKER.repeat(50);
    rows.push(watch("key=", "an empty key").gives_v1(400, "key_empty"));
    rows.push(watch("key=%00", "a NUL").gives_v1(400, "invalid_key"));
    rows.push(watch("key=a/../b", "a segment that is ..").gives_v1(400, "invalid_key"));
    rows.push(watch("key=%ff", "a key that is not UTF-8").gives_v1(400, "invalid_encoding"));
    rows.push(watch("prefix=%e2%82", "a prefix that is not UTF-8").gives_v1(400, "invalid_encoding"));
    rows.push(watch("prefix=%", "a prefix with a broken %").gives_v1(400, "invalid_encoding"));
    rows.push(watch(&format!("key={long}"), "a long key").gives_v1(413, "key_too_large").field("limit", 1024));
    rows.push(watch(&format!("prefix={long}"), "a long prefix").gives_v1(413, "prefix_too_large").field("limit", 1024));
    for query in ["foo", "limit=1", "revision=1", "From=1", "last-event-id=1"] {
        let row = watch(query, "an unknown parameter").gives_v1(400, "unknown_parameter");
        rows.push(row.naming(&["prefix", "key", "from", "initial", "consistency"]));
    }
    for query in ["from=1&from=1", "prefix=a&prefix=b", "key=a&key=a", "initial&initial"] {
        rows.push(watch(query, "a parameter twice").gives_v1(400, "repeated_parameter"));
    }
    for query in ["initial=1", "initial=yes", "consistency=quick", "consistency="] {
        rows.push(watch(query, "an invalid value").gives_v1(400, "invalid_parameter"));
    }
    for id in
        ["", "abc", "-1", "1.", ".1", "1.2.3", "1.-1", "1,2", "0x1", "18446744073709551615", "1.4294967295", "1 2"]
    {
        let row = watch("", "an id that no event can have").header("last-event-id", id);
        rows.push(row.gives_v1(400, "invalid_last_event_id"));
    }
    rows.push(watch("", "an id that is not ASCII").header("last-event-id", "é").gives_v1(400, "invalid_header"));
    let twice = watch("", "two ids").header("last-event-id", "1").header("last-event-id", "2");
    rows.push(twice.gives_v1(400, "repeated_header").naming(&["last-event-id"]));
    for id in ["1000000", "1000000.5", "18446744073709551614"] {
        let row = watch("", "a future id").header("last-event-id", id);
        rows.push(row.gives_v1(400, "revision_in_future"));
    }
    rows.push(watch("", "a body where none is allowed").body(MARKER).gives_v1(400, "unexpected_body"));
    rows
}
