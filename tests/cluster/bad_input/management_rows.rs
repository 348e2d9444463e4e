//! `/init`, `/add-learner` and `/change-membership`.

use serde_json::json;

use super::{MARKER, Row};

/// `id` and `addr` belong to the receiving node, which is a member of a cluster.
pub fn rows(id: u64, addr: &str) -> Vec<Row> {
    let mut rows = init_rows(id, addr);
    rows.extend(add_learner_rows());
    rows.extend(change_membership_rows());
    rows
}

/// Strings that are not the `HOST:PORT` of a node.
pub fn bad_addresses() -> Vec<(&'static str, String)> {
    vec![
        ("an empty address", String::new()),
        ("no port", "127.0.0.1".into()),
        ("an empty port", "127.0.0.1:".into()),
        ("no host", ":21001".into()),
        ("a port that is too large", "127.0.0.1:65536".into()),
        ("a negative port", "127.0.0.1:-1".into()),
        ("a port with a sign", "127.0.0.1:+80".into()),
        ("a port that is a word", "127.0.0.1:http".into()),
        ("port 0", "127.0.0.1:0".into()),
        ("the unspecified address", "0.0.0.0:21001".into()),
        ("the unspecified address as one number", "0:21001".into()),
        ("the unspecified address as two numbers", "0.0:21001".into()),
        ("the unspecified address in hexadecimal", "0x0:21001".into()),
        ("the unspecified address in octal", "000.0.0.0:21001".into()),
        ("the unspecified address of IPv6", "[::]:21001".into()),
        ("the unspecified address of IPv4 within IPv6", "[::ffff:0.0.0.0]:21001".into()),
        ("a URL", "http://127.0.0.1:21001".into()),
        ("a path", format!("127.0.0.1:21001/{MARKER}")),
        ("a path before the port", format!("127.0.0.1/{MARKER}:80")),
        ("a query", "127.0.0.1:21001?a".into()),
        ("a query before the port", "127.0.0.1?a:80".into()),
        ("a fragment before the port", "127.0.0.1#a:80".into()),
        ("a user", format!("{MARKER}@127.0.0.1:21001")),
        ("a user and a password", format!("user:{MARKER}@127.0.0.1:21001")),
        ("a space", "127.0.0.1 :21001".into()),
        ("a line break", "127.0.0.1\r\nx-injected: 1\r\n:21001".into()),
        ("a NUL", "127.0.0.1\0:21001".into()),
        ("a terminal control sequence", format!("\u{1b}[31m{MARKER}:21001")),
        ("a backslash", "127.0.0.1\\x:21001".into()),
        ("letters that are not ASCII", "nöde:21001".into()),
        ("IPv6 without brackets", "::1:21001".into()),
        ("an open bracket", "[::1:21001".into()),
        ("empty brackets", "[]:21001".into()),
        ("a percent sign", "%:21001".into()),
        ("an escape", "%31:21001".into()),
        ("a host of 300 letters", format!("{}:21001", "h".repeat(300))),
    ]
}

/// JSON values that are not a node id.
pub const BAD_JSON_IDS: &[(&str, &str)] = &[
    ("a negative number", "-1"),
    ("a number that is too large", "18446744073709551616"),
    ("a fraction", "1.5"),
    ("a fraction without a remainder", "2.0"),
    ("an exponent", "2e0"),
    ("a number in quotes", r#""2""#),
    ("null instead of a number", "null"),
    ("a list instead of a number", "[2]"),
];

fn init_rows(id: u64, addr: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    for (what, body) in [
        ("a list of numbers", "[1,2,3]".to_owned()),
        ("an empty member", "[[]]".to_owned()),
        ("a member without an address", "[[1]]".to_owned()),
        ("a member with an extra item", format!(r#"[[1,"127.0.0.1:1","{MARKER}"]]"#)),
        ("a member in reverse order", r#"[["127.0.0.1:1",1]]"#.to_owned()),
        ("members as an object", r#"{"1":"127.0.0.1:1"}"#.to_owned()),
    ] {
        rows.push(Row::post("/init", what, body).gives_bad_json());
    }
    for (what, bad_id) in BAD_JSON_IDS {
        rows.push(Row::post("/init", what, format!(r#"[[{bad_id},"127.0.0.1:1"]]"#)).gives_bad_json());
    }
    for (what, address) in bad_addresses() {
        let members = json!([[id, addr], [id + 1, address]]).to_string();
        rows.push(Row::post("/init", what, members).gives_bad_request("invalid_address"));
    }
    let twice = json!([[id, addr], [77, "127.0.0.1:1"], [77, "127.0.0.1:2"]]).to_string();
    let same_address = json!([[id, addr], [77, "node:1"], [78, "NODE:1"]]).to_string();
    let many: Vec<_> = (1..=65).map(|id| json!([id, format!("127.0.0.1:{id}")])).collect();
    rows.extend([
        Row::post("/init", "an address twice", same_address).gives_bad_request("address_twice"),
        Row::post("/init", "65 nodes", json!(many).to_string()).gives_bad_request("too_many_nodes"),
        Row::post("/init", "node 0", json!([[0, "127.0.0.1:1"]]).to_string()).gives_bad_request("invalid_node_id"),
        Row::post("/init", "a node twice", twice).gives_bad_request("node_twice"),
        Row::post("/init", "without the receiving node", r#"[[77,"127.0.0.1:1"]]"#).gives_bad_request("not_in_members"),
    ]);
    for body in ["", "{}", "[]"] {
        rows.push(Row::post("/init", "a cluster that exists", body).gives(409, "NotAllowed"));
    }
    rows
}

fn add_learner_rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (what, body) in [
        ("only a number", "[2]".to_owned()),
        ("an extra item", format!(r#"[2,"127.0.0.1:1","{MARKER}"]"#)),
        ("in reverse order", r#"["127.0.0.1:1",2]"#.to_owned()),
        ("an object", format!(r#"{{"id":2,"addr":"{MARKER}"}}"#)),
        ("an address that is an object", r#"[2,{"addr":"127.0.0.1:1"}]"#.to_owned()),
        ("an address that is null", "[2,null]".to_owned()),
        ("a list of learners", r#"[[2,"127.0.0.1:1"]]"#.to_owned()),
    ] {
        rows.push(Row::post("/add-learner", what, body).gives_bad_json());
    }
    for (what, bad_id) in BAD_JSON_IDS {
        rows.push(Row::post("/add-learner", what, format!(r#"[{bad_id},"127.0.0.1:1"]"#)).gives_bad_json());
    }
    for (what, address) in bad_addresses() {
        rows.push(
            Row::post("/add-learner", what, json!([77, address]).to_string()).gives_bad_request("invalid_address"),
        );
    }
    rows.push(Row::post("/add-learner", "node 0", r#"[0,"127.0.0.1:1"]"#).gives_bad_request("invalid_node_id"));
    rows
}

fn change_membership_rows() -> Vec<Row> {
    let mut rows = vec![Row::post("/change-membership", "nested lists", "[[1]]").gives_bad_json()];
    for (what, bad_id) in BAD_JSON_IDS {
        rows.push(Row::post("/change-membership", what, format!("[1,{bad_id}]")).gives_bad_json());
    }
    rows.push(Row::post("/change-membership", "no voter", "[]").gives_bad_request("no_voters"));
    for body in ["[1,1]", "[1,2,3,2]", "[77,77]"] {
        rows.push(Row::post("/change-membership", "a voter twice", body).gives_bad_request("node_twice"));
    }
    // Only the leader knows the learners; a follower returns the leader's rejection.
    for body in ["[0]", "[77]", "[1,2,3,77]", "[18446744073709551615]"] {
        rows.push(Row::post("/change-membership", "a voter that is not a learner", body).gives(409, "Conflict"));
    }
    rows
}
