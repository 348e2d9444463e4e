//! `/v1/watch`.

use reqwest::Method;

use super::Row;

fn watch(query: &str, what: &str) -> Row {
    Row::bare(Method::GET, &format!("/v1/watch?{query}"), what)
}

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    rows.push(watch("from=0", "revision 0").gives_v1(400, "invalid_parameter"));
    for from in ["1000000", "18446744073709551615"] {
        rows.push(watch(&format!("from={from}"), "a future revision").gives_v1(400, "revision_in_future"));
    }
    for query in ["from=1&initial", "initial=true&from=1"] {
        rows.push(watch(query, "from and initial").gives_v1(400, "invalid_parameter"));
    }
    for query in ["key=known&prefix=k", "prefix=&key=known", "key=known&prefix"] {
        rows.push(watch(query, "a key and a prefix").gives_v1(400, "invalid_parameter"));
    }
    rows.push(watch("key=", "an empty key").gives_v1(400, "key_empty"));
    rows.push(watch("key=%00", "a NUL").gives_v1(400, "invalid_key"));
    rows.push(watch("key=a/../b", "a segment that is ..").gives_v1(400, "invalid_key"));
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
    rows
}
