//! Outgoing HTTP: how this program connects to nodes.

use reqwest::header::{HOST, HeaderMap, HeaderValue};

use crate::config::{CONNECT_DEADLINE, CONNECTION_IDLE_MAX};

/// Connections of a client to nodes, which are kept and used again.
pub fn connections() -> reqwest::Client {
    build(HeaderMap::new())
}

/// Connections of a node to others.
///
/// Nodes know each other by whatever address the membership has, which need not be a name that the
/// other node knows for its own (`network::browser`).
pub fn node_connections() -> reqwest::Client {
    build(HeaderMap::from_iter([(HOST, HeaderValue::from_static("localhost"))]))
}

fn build(headers: HeaderMap) -> reqwest::Client {
    reqwest::Client::builder()
        .default_headers(headers)
        .no_proxy() // Nodes are dialled directly, whatever the environment says.
        .redirect(reqwest::redirect::Policy::none())
        .tcp_nodelay(true)
        .connect_timeout(CONNECT_DEADLINE)
        .pool_idle_timeout(CONNECTION_IDLE_MAX)
        .build()
        .expect("a client without TLS and without proxies needs nothing that could be missing")
}

/// Why a request failed, by its innermost cause, which says the most.
pub fn reason_of(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "it did not answer in time".to_owned();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
