//! Protection against web pages: a page must not use a node unless the operator allows it.
//!
//! A browser on a machine that reaches a node sends requests for any page that it shows. Pages cannot forge two headers
//! that tell such requests apart:
//!
//! * `Origin` names the page's own server. A request with an origin that is neither this node nor one of
//!   `--allowed-origins` is rejected, whatever its method and content type.
//! * `Host` names the server that the browser believes it is talking to. If a page's server makes its own name resolve
//!   to a node's address (DNS rebinding), the browser takes the node for that server and sends no foreign origin, but
//!   the name remains in `Host`. So a host must be an IP address, `localhost`, a name of this node, or one of
//!   `--allowed-hosts`.
//!
//! Responses to an allowed origin have the CORS headers that let the page read them.

use std::net::{IpAddr, Ipv6Addr};

use actix_http::header::HeaderMap;
use actix_http::{HttpMessage, Method, Request, StatusCode};
use actix_web::http::header::{self, HeaderName, HeaderValue};

use super::forward;
use crate::app::ExampleApp;
use crate::config::{BROWSER_PREFLIGHT_SECONDS, Config, parse_host, parse_origin};
use crate::error::{ApiError, Details, shortened};
use crate::headers::{FORWARD, IDEMPOTENCY_KEY, LAST_EVENT_ID, REQUEST_ID, TRACEPARENT, WAIT};

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, PUT, POST, DELETE");
/// Headers of responses that a page may read.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "ETag, Retry-After, Raft-Revision, Raft-Term, Raft-Node, Raft-Cluster, Raft-Outcome, Raft-Replayed, \
     Raft-Snapshot-Index, X-Request-Id",
);
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");
const PRIVATE_NETWORK_REQUEST: HeaderName = HeaderName::from_static("access-control-request-private-network");
const PRIVATE_NETWORK_ALLOW: HeaderName = HeaderName::from_static("access-control-allow-private-network");

/// Which hosts and origins a node accepts.
#[derive(Clone, Debug)]
pub struct Browsers {
    /// Names of this node, in lower case, besides IP addresses and `localhost`.
    hosts: Vec<String>,
    /// Origins such as `https://console.example`, in lower case.
    origins: Vec<String>,
}

/// The origin of a page that may read the response.
#[derive(Debug, PartialEq, Eq)]
pub struct AllowedOrigin(HeaderValue);

impl Browsers {
    /// The hosts and origins that a node with these settings accepts.
    pub fn new(config: &Config) -> Self {
        let own = [config.http_addr.as_str(), config.advertised()].map(|addr| host_of(addr).to_owned());
        let system = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let hosts = own.into_iter().chain([system]).chain(config.allowed_hosts.iter().cloned());
        Browsers {
            hosts: hosts.map(|host| normalized(host.as_str())).filter(|host| !host.is_empty()).collect(),
            origins: config.allowed_origins.iter().map(|origin| origin.to_ascii_lowercase()).collect(),
        }
    }

    /// Checks the headers of a request. Returns the page's origin if it is foreign and allowed.
    ///
    /// # Errors
    ///
    /// [`ApiError::Forbidden`].
    pub fn check(&self, app: &ExampleApp, request: &Request) -> Result<Option<AllowedOrigin>, ApiError> {
        let headers = request.headers();
        if request.method() == Method::POST && request.path().starts_with("/raft-") {
            // Nodes of a former version send RPCs to whatever name the membership has. No node sends an origin.
            return match headers.get(header::ORIGIN) {
                None => Ok(None),
                Some(_) => Err(forbidden("web pages must not call `/raft-` routes".to_owned())),
            };
        }
        // A target with an authority overrides the Host header.
        let authority = request.uri().authority().map(|authority| authority.as_str());
        let host = authority.or_else(|| headers.get(header::HOST).map(|host| host.to_str().unwrap_or_default()));
        // Only HTTP/1.0 allows a request without a host, and no browser speaks that.
        if let Some(host) = host
            && !self.accepts_host(host)
            && !is_advertised(app, host)
            && !forward::is_forwarded(app, headers)
        {
            // Add a hint only if the flag would accept the name.
            let hint = parse_host(host_of(host)).map(|name| format!(", or start it with --allowed-hosts {name}"));
            return Err(forbidden(format!(
                "the host {host:?} does not name this node; use its IP address or its own name{}",
                hint.unwrap_or_default()
            )));
        }
        check_fetch(headers)?;
        self.check_origin(headers)
    }

    fn accepts_host(&self, host: &str) -> bool {
        let name = normalized(host_of(host));
        // A program that has no name for the node sends an empty host. A browser always sends a name.
        host.is_empty() || is_address(&name) || name == "localhost" || self.hosts.contains(&name)
    }

    /// Whether responses depend on the page.
    pub fn vary(&self) -> bool {
        !self.origins.is_empty()
    }

    fn check_origin(&self, headers: &HeaderMap) -> Result<Option<AllowedOrigin>, ApiError> {
        let mut allowed = None;
        for origin in headers.get_all(header::ORIGIN) {
            let text = origin.to_str().unwrap_or_default();
            if is_own(text, headers) {
                continue;
            }
            if !self.origins.iter().any(|known| known.eq_ignore_ascii_case(text)) {
                let hint = parse_origin(text)
                    .map(|origin| format!("; to allow it, start every node with --allowed-origins {origin}"));
                return Err(forbidden(format!(
                    "pages from the origin {text:?} must not use this node{}",
                    hint.unwrap_or_default()
                )));
            }
            allowed = Some(AllowedOrigin(origin.clone()));
        }
        Ok(allowed)
    }
}

impl AllowedOrigin {
    /// Lets the page read the response.
    pub fn insert_into(self, headers: &mut HeaderMap) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, self.0);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    }

    /// The response to a preflight request, which a browser sends before requests other than simple ones.
    pub fn preflight(&self, request: &Request) -> Option<actix_http::Response<actix_http::body::BoxBody>> {
        let headers = request.headers();
        if request.method() != Method::OPTIONS || !headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD) {
            return None;
        }
        let mut response = actix_http::Response::with_body(StatusCode::NO_CONTENT, ()).map_into_boxed_body();
        let sent = response.headers_mut();
        sent.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        let standard = [&header::AUTHORIZATION, &header::CONTENT_TYPE, &header::IF_MATCH, &header::IF_NONE_MATCH];
        for name in
            standard.into_iter().chain([&IDEMPOTENCY_KEY, &LAST_EVENT_ID, &FORWARD, &WAIT, &REQUEST_ID, &TRACEPARENT])
        {
            sent.append(header::ACCESS_CONTROL_ALLOW_HEADERS, name.clone().into());
        }
        sent.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from(BROWSER_PREFLIGHT_SECONDS));
        if headers.contains_key(PRIVATE_NETWORK_REQUEST) {
            sent.insert(PRIVATE_NETWORK_ALLOW, HeaderValue::from_static("true"));
        }
        Some(response)
    }
}

/// Rejects requests for what a foreign page embeds, such as an image or a frame: they have no origin.
///
/// Pages of other ports of the same host are foreign, although their site is the same. A link to a page of the node may
/// be followed from anywhere.
fn check_fetch(headers: &HeaderMap) -> Result<(), ApiError> {
    let says =
        |name: &HeaderName, value: &str| headers.get(name).is_some_and(|found| found.as_bytes() == value.as_bytes());
    let is_foreign = says(&FETCH_SITE, "cross-site") || says(&FETCH_SITE, "same-site");
    // A frame is a navigation too, but not to a document of its own. Old browsers do not say.
    let is_link =
        says(&FETCH_MODE, "navigate") && (says(&FETCH_DEST, "document") || !headers.contains_key(&FETCH_DEST));
    if is_foreign && !is_link && !headers.contains_key(header::ORIGIN) {
        return Err(forbidden("pages of other servers must not embed the responses of this node".to_owned()));
    }
    Ok(())
}

/// Whether a host is that of this node's address in the membership.
fn is_advertised(app: &ExampleApp, host: &str) -> bool {
    app.own_address().is_some_and(|addr| normalized(host_of(&addr)) == normalized(host_of(host)))
}

fn forbidden(message: String) -> ApiError {
    ApiError::Forbidden(Details::not_applied(shortened(message)))
}

/// Whether the node itself served the page, under the name that the request is for.
fn is_own(origin: &str, headers: &HeaderMap) -> bool {
    let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    matches!((authority, host), (Some(authority), Some(host)) if authority.eq_ignore_ascii_case(host))
}

/// The host in `HOST` or `HOST:PORT`.
fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        // The colons of an IPv6 address are in brackets.
        Some((host, port)) if !port.contains(']') => host,
        _ => authority,
    }
}

fn is_address(host: &str) -> bool {
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        // A zone may follow, such as `%25eth0`.
        Some(host) => host.split('%').next().unwrap_or(host).parse::<Ipv6Addr>().is_ok(),
        None => host.parse::<IpAddr>().is_ok(),
    }
}

/// Lower case, without the dot at the end of an absolute name.
fn normalized(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn browsers() -> Browsers {
        let mut config = Config::new(1, "node-1.example:21001");
        config.advertise_addr = Some("public.example:80".to_owned());
        config.allowed_hosts = vec!["proxy.example".to_owned()];
        config.allowed_origins = vec!["https://console.example".to_owned()];
        Browsers::new(&config)
    }

    fn headers(host: Option<&str>, origins: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(host) = host {
            headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
        }
        for origin in origins {
            headers.append(header::ORIGIN, HeaderValue::from_str(origin).unwrap());
        }
        headers
    }

    /// Names and addresses of the node are accepted with any port, others are rejected.
    #[test]
    fn hosts() {
        let browsers = browsers();
        let mut good =
            vec!["127.0.0.1", "10.1.2.3:21001", "[::1]:21001", "[fe80::1%25eth0]:1", "", "localhost", "LOCALHOST.:1"];
        good.extend(["node-1.example", "Node-1.example.:21001", "public.example:80", "proxy.example:443"]);
        for host in good {
            assert!(browsers.accepts_host(host), "{host:?}");
        }
        let bad = ["evil.example", "evil.example:21001", "localhost.evil.example", "127.0.0.1.evil.example", ":80"];
        let odd = ["[::1", "::1]", "[evil]", "2130706433", "0x7f.1", "127.1", "localhost..", "proxy.example:x:1"];
        for host in bad.into_iter().chain(odd) {
            assert!(!browsers.accepts_host(host), "{host:?}");
        }
    }

    /// A page of this node and one of an allowed origin are accepted, others are rejected.
    #[test]
    fn origins() {
        let browsers = browsers();
        let host = Some("127.0.0.1:21001");
        let check = |origins: &[&str]| browsers.check_origin(&headers(host, origins));
        let allowed = |text| AllowedOrigin(HeaderValue::from_static(text));
        assert_eq!(check(&[]).unwrap(), None);
        assert_eq!(check(&["http://127.0.0.1:21001"]).unwrap(), None);
        assert_eq!(check(&["https://console.example"]).unwrap(), Some(allowed("https://console.example")));
        let bad = ["http://127.0.0.1", "http://127.0.0.1:21002", "http://localhost:21001", "null", "", "*"];
        let foreign = ["http://console.example", "https://console.example:8443", "https://console.example/", "file://"];
        for origin in bad.into_iter().chain(foreign) {
            assert!(check(&[origin]).is_err(), "{origin:?}");
            assert!(check(&["http://127.0.0.1:21001", origin]).is_err(), "after one's own: {origin:?}");
        }
        // The hint is one that the flag accepts.
        let message = |origin| check(&[origin]).unwrap_err().to_string();
        assert!(message("https://A.example:443").ends_with("--allowed-origins https://a.example"));
        for origin in ["null", "", "https://console.example/", "file://"] {
            assert!(!message(origin).contains("--allowed-origins"), "{origin:?}");
        }
    }
}
