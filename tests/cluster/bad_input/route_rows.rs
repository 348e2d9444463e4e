//! Unknown routes, and methods that a route does not accept.

use reqwest::Method;

use super::{MARKER, Row, RowBody, peer_rows};

/// The routes for POST only, except those between nodes.
const POST_ROUTES: &[&str] = &["/write", "/read", "/consistent_read", "/init", "/add-learner", "/change-membership"];

const GET_ROUTES: &[&str] = &["/metrics", "/raft-identity", "/openapi.json", "/docs"];

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let empty = || RowBody::Whole(Vec::new());
    for path in POST_ROUTES.iter().chain(peer_rows::ROUTES) {
        for method in [Method::GET, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS] {
            rows.push(Row::new(method, path, "the wrong method", empty()).gives_wrong_method("POST"));
        }
    }
    for path in GET_ROUTES {
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS] {
            rows.push(Row::new(method, path, "the wrong method", empty()).gives_wrong_method("GET, HEAD"));
        }
    }
    let brew = Method::from_bytes(b"BREW").unwrap();
    let body = RowBody::Whole(format!(r#"{{"Set":{{"key":"known","value":"{MARKER}"}}}}"#).into());
    rows.push(Row::new(brew, "/write", "an unknown method", body).gives_wrong_method("POST"));
    let unknown = [
        "/",
        "/writ",
        "/write/",
        "/writes",
        "/Write",
        "/WRITE",
        "//write",
        "/write/foo",
        "/metrics/",
        "/raft",
        "/raft-",
        "/consistent-read",
        "/add_learner",
        "/index.html",
        "/%00",
        "/%2e%2e/etc/passwd",
        "/..%2f..%2fetc/passwd",
    ];
    for path in unknown {
        for method in [Method::GET, Method::POST] {
            rows.push(Row::new(method, path, "no such route", empty()).gives(404, "NotFound"));
        }
    }
    let long = format!("/{}", MARKER.repeat(1000));
    rows.push(Row::post(&long, "a path of 25,000 letters", "x").gives(404, "NotFound"));
    rows.push(Row::post(&format!("/{MARKER}?{MARKER}"), "no such route with a query", MARKER).gives(404, "NotFound"));
    rows
}
