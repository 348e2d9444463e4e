//! The operations by which requests are counted: a method and the pattern of a route.
//!
//! Clients choose paths and methods, and must not choose labels of metrics: each label takes memory here and in
//! Prometheus. So what is not in the table counts as `other`.

/// The method and the route of each operation; `HEAD` counts as `GET`.
pub const OPERATIONS: [(&str, &str); 43] = [
    (OTHER, OTHER),
    ("GET", "/v1/kv/{key}"),
    ("PUT", "/v1/kv/{key}"),
    ("DELETE", "/v1/kv/{key}"),
    ("POST", "/v1/kv/{key}/touch"),
    ("GET", "/v1/kv"),
    ("DELETE", "/v1/kv"),
    ("POST", "/v1/txn"),
    ("GET", "/v1/watch"),
    ("POST", "/write"),
    ("POST", "/read"),
    ("POST", "/consistent_read"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("POST", "/init"),
    ("POST", "/add-learner"),
    ("POST", "/change-membership"),
    ("GET", "/metrics"),
    ("GET", "/v1/metrics"),
    ("GET", "/livez"),
    ("GET", "/readyz"),
    ("GET", "/health"),
    ("GET", "/v1/cluster/hash"),
    ("GET", "/v1/snapshot"),
    ("GET", "/v1/cluster"),
    ("POST", "/v1/cluster/leader"),
    ("POST", "/v1/cluster/members"),
    ("DELETE", "/v1/cluster/members/{id}"),
    ("POST", "/v1/cluster/members/{id}/promote"),
    ("POST", "/v1/cluster/members/{id}/replace"),
    ("GET", "/v1/tokens"),
    ("POST", "/v1/tokens"),
    ("DELETE", "/v1/tokens/{name}"),
    ("POST", "/v1/auth"),
    ("POST", "/raft-append"),
    ("POST", "/raft-vote"),
    ("POST", "/raft-pre-vote"),
    ("POST", "/raft-snapshot"),
    ("POST", "/raft-transfer-leader"),
    ("POST", "/raft-read-index"),
    ("POST", "/raft-found"),
    ("GET", "/raft-identity"),
    ("GET", "/raft-status"),
];

/// The method and the route of requests that are not in the table.
pub const OTHER: &str = "other";

/// The number of an operation.
pub fn operation_of(method: &str, path: &str) -> usize {
    let route = match path.strip_prefix("/v1/kv") {
        Some("") => "/v1/kv",
        Some(rest) if rest.starts_with('/') => {
            if method == "POST" {
                "/v1/kv/{key}/touch"
            } else {
                "/v1/kv/{key}"
            }
        }
        _ => match path.strip_prefix("/v1/cluster/members/").map(|rest| rest.split_once('/')) {
            Some(None) => "/v1/cluster/members/{id}",
            Some(Some((_, "promote"))) => "/v1/cluster/members/{id}/promote",
            Some(Some((_, "replace"))) => "/v1/cluster/members/{id}/replace",
            Some(Some(_)) => OTHER,
            None if path.strip_prefix("/v1/tokens/").is_some_and(|name| !name.contains('/')) => "/v1/tokens/{name}",
            None => path,
        },
    };
    OPERATIONS.iter().position(|operation| *operation == (method, route)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each operation has one number, whatever the key, and what no route serves is `other`.
    #[test]
    fn numbers() {
        let named = |method, path| OPERATIONS[operation_of(method, path)];
        for (number, (method, route)) in OPERATIONS.into_iter().enumerate().skip(1) {
            assert_eq!(operation_of(method, &route.replace("{key}", "a/b").replace("{id}", "7")), number, "{route}");
        }
        assert_eq!(named("GET", "/v1/kv/"), ("GET", "/v1/kv/{key}"));
        assert_eq!(named("POST", "/v1/kv/a/touch"), ("POST", "/v1/kv/{key}/touch"));
        for (method, path) in [
            ("BREW", "/write"),
            ("PATCH", "/v1/kv/a"),
            ("GET", "/write"),
            ("GET", "/v1/kvs"),
            ("GET", "/v1/nothing"),
            ("GET", "/"),
            ("GET", ""),
        ] {
            assert_eq!(operation_of(method, path), 0, "{method} {path}");
        }
    }
}
