//! Unknown routes, and methods that a route does not accept.

use reqwest::Method;

use super::{MARKER, Row, peer_rows};

const GET: &str = "GET, HEAD";
const KEY: &str = "GET, HEAD, PUT, DELETE";

/// The paths and their methods, except those for peers.
const METHODS: &[(&str, &str)] = &[
    ("/write", "POST"),
    ("/read", "POST"),
    ("/consistent_read", "POST"),
    ("/init", "POST"),
    ("/add-learner", "POST"),
    ("/change-membership", "POST"),
    ("/metrics", GET),
    ("/livez", GET),
    ("/readyz?verbose", GET),
    ("/health", GET),
    ("/raft-identity", GET),
    ("/raft-status", GET),
    ("/openapi.json", GET),
    ("/docs", GET),
    ("/v1/kv", "GET, HEAD, DELETE"),
    ("/v1/kv/", KEY),
    ("/v1/kv/known", KEY),
    ("/v1/kv/touch?ttl=30s", KEY),
    ("/v1/kv/known/touch/?ttl=30s", KEY),
    ("/v1/kv/known/Touch?ttl=30s", KEY),
    ("/v1/kv/known/renew?ttl=30s", KEY),
    ("/v1/kv/known/touch", "GET, HEAD, PUT, DELETE, POST"),
    ("/v1/txn", "POST"),
    ("/v1/watch", GET),
    ("/v1/metrics", GET),
    ("/v1/cluster", GET),
    ("/v1/cluster/hash", GET),
    ("/v1/cluster/members", "POST"),
    ("/v1/cluster/members/77", "DELETE"),
    ("/v1/cluster/members/77/promote", "POST"),
    ("/v1/cluster/members/77/replace", "POST"),
    ("/v1/cluster/leader", "POST"),
    ("/v1/tokens", "GET, HEAD, POST"),
    ("/v1/tokens/known-token", "DELETE"),
    ("/v1/auth", "POST"),
];

const UNKNOWN: &[&str] = &[
    "/",
    "/writ",
    "/write/",
    "/writes",
    "/Write",
    "/WRITE",
    "//write",
    "/write/foo",
    "/metrics/",
    "/livez/",
    "/healthz",
    "/readyz/leader",
    "/raft",
    "/raft-",
    "/consistent-read",
    "/add_learner",
    "/index.html",
    "/%00",
    "/%2e%2e/etc/passwd",
    "/..%2f..%2fetc/passwd",
    "/v1x",
    "/V1/kv/known",
    "/v2/kv/known",
    "/v1%2fkv%2fknown",
    "/kv/known",
];

const UNKNOWN_IN_V1: &[&str] = &[
    "/v1",
    "/v1/",
    "/v1/foo",
    "/v1/KV/known",
    "/v1/kvs",
    "/v1/txn/",
    "/v1/txn/1",
    "/v1/watch/known",
    "/v1/hash",
    "/v1/metrics/",
    "/v1/clusters",
    "/v1/Cluster",
    "/v1/cluster/",
    "/v1/cluster/hash/",
    "/v1/cluster/Hash",
    "/v1/cluster/members/",
    "/v1/cluster/members/77/",
    "/v1/cluster/members/77/x",
    "/v1/cluster/members/77/promote/",
    "/v1/token",
    "/v1/tokens/",
    "/v1/tokens/known-token/",
    "/v1/auth/",
];

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let brew = Method::from_bytes(b"BREW").unwrap();
    let all = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS];
    let all = all.into_iter().chain([Method::TRACE, brew.clone()]);
    for (path, allow) in METHODS.iter().copied().chain(peer_rows::ROUTES.iter().map(|path| (*path, "POST"))) {
        for method in all.clone().filter(|method| !allow.split(", ").any(|allowed| allowed == method.as_str())) {
            rows.push(Row::bare(method, path, "the wrong method").gives_wrong_method(allow));
        }
    }
    let body = format!(r#"{{"Set":{{"key":"known","value":"{MARKER}"}}}}"#);
    rows.push(Row::bare(brew, "/write", "an unknown method with a body").body(body).gives_wrong_method("POST"));
    for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE] {
        for path in UNKNOWN {
            let body = if method == Method::PUT { MARKER } else { "" };
            rows.push(Row::bare(method.clone(), path, "an unknown route").body(body).gives(404, "NotFound"));
        }
        for path in UNKNOWN_IN_V1 {
            rows.push(Row::bare(method.clone(), path, "an unknown route").gives_v1(404, "no_such_route"));
        }
    }
    let long = format!("/{}", MARKER.repeat(1000));
    rows.push(Row::post(&long, "a path of 25,000 letters", "x").gives(404, "NotFound"));
    let query = format!("/{MARKER}?{MARKER}");
    rows.push(Row::post(&query, "an unknown route with a query", MARKER).gives(404, "NotFound"));
    rows
}
