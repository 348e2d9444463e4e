//! What web pages can do to a node that their reader's browser can reach: nothing.

use reqwest::Method;

use crate::harness::{ALL, Answer, CALM, TestCluster};

const FOREIGN: &str = "http://evil.example";

/// A request to every route that changes or reads something; `{key}` is `key`.
fn requests(cluster: &TestCluster) -> Vec<(Method, String, String)> {
    let set = r#"{"Set":{"key":"key","value":"stolen"}}"#.to_owned();
    let txn = r#"{"success":[{"put":{"key":"key","value":"stolen"}}]}"#.to_owned();
    let learner = format!(r#"[2,"{}"]"#, cluster.addr(2));
    let rows = [
        (Method::PUT, "/v1/kv/key", "stolen".to_owned()),
        (Method::GET, "/v1/kv/key", String::new()),
        (Method::GET, "/v1/kv/key?raw&consistency=stale", String::new()),
        (Method::DELETE, "/v1/kv/key", String::new()),
        (Method::POST, "/v1/kv/key/touch?ttl=1s", String::new()),
        (Method::GET, "/v1/kv", String::new()),
        (Method::DELETE, "/v1/kv?all", String::new()),
        (Method::POST, "/v1/txn", txn),
        (Method::GET, "/v1/watch?initial", String::new()),
        (Method::GET, "/v1/cluster/hash", String::new()),
        (Method::GET, "/v1/snapshot", String::new()),
        (Method::POST, "/write", set),
        (Method::POST, "/read", "\"key\"".to_owned()),
        (Method::POST, "/consistent_read", "\"key\"".to_owned()),
        (Method::POST, "/init", String::new()),
        (Method::POST, "/add-learner", learner),
        (Method::POST, "/change-membership", "[1]".to_owned()),
        (Method::GET, "/metrics", String::new()),
        (Method::GET, "/docs", String::new()),
        (Method::GET, "/openapi.json", String::new()),
        (Method::GET, "/raft-identity", String::new()),
        (Method::GET, "/raft-status", String::new()),
        (Method::GET, "/v1/cluster", String::new()),
        (Method::GET, "/no-such-route", String::new()),
        (Method::OPTIONS, "/v1/kv/key", String::new()),
    ];
    rows.map(|(method, path, body)| (method, path.to_owned(), body)).into()
}

fn assert_forbidden(answer: &Answer, path: &str, context: &str) {
    if path.starts_with("/v1/") {
        answer.assert_rejected(403, "forbidden");
    } else {
        answer.assert_error(403, "Forbidden", "not_applied");
    }
    for name in ["access-control-allow-origin", "etag"] {
        assert_eq!(answer.header(name), "", "{context}");
    }
}

/// No page of another server can read or change anything, whatever headers it sends.
///
/// Method: send requests to each route with each kind of foreign origin, with the content types that a page may send
/// without a preflight, and with foreign hosts, as after DNS rebinding. In the end the data and the membership are
/// unchanged.
#[tokio::test]
async fn foreign_pages_are_rejected() {
    let cluster = TestCluster::form("browsers-foreign", &ALL, CALM).await;
    let before = cluster.put(1, "/v1/kv/key", "mine").await.done();
    let own = format!("http://{}", cluster.addr(1));
    let port = cluster.addr(1).rsplit_once(':').unwrap().1;
    let rebound = format!("evil.example:{port}");
    let rebound_origin = format!("http://{rebound}");
    let headers: [&[(&str, &str)]; 13] = [
        &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")],
        // A page of another port of the same host, or of another name in the same domain.
        &[("sec-fetch-site", "same-site"), ("sec-fetch-mode", "no-cors")],
        &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")],
        &[("sec-fetch-site", "same-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "object")],
        &[("origin", FOREIGN)],
        &[("origin", FOREIGN), ("content-type", "text/plain")],
        &[("origin", FOREIGN), ("content-type", "application/x-www-form-urlencoded")],
        &[("origin", "null")],
        &[("origin", "http://127.0.0.1")],
        &[("origin", &own), ("origin", FOREIGN)],
        &[("host", &rebound)],
        &[("host", &rebound), ("origin", &rebound_origin)],
        &[("host", "127.0.0.1.evil.example")],
    ];
    for headers in headers {
        for (method, path, body) in requests(&cluster) {
            let context = format!("{method} {path} with {headers:?}");
            let answer = cluster.http().request(method, cluster.addr(1), &path, headers, body).await.unwrap();
            assert_forbidden(&answer, &path, &context);
        }
        // A page may send RPCs too, though it cannot read the response.
        if headers.iter().any(|(name, _)| *name == "origin") {
            let answer = cluster.http().request(Method::POST, cluster.addr(1), "/raft-vote", headers, "x").await;
            assert_forbidden(&answer.unwrap(), "/raft-vote", "an RPC");
        }
    }
    // The message recommends the flag for a host name only.
    for (host, hint) in [("Evil.example.:1", true), (":80", false), (".", false), ("a,b", false)] {
        let answer = cluster.http().request(Method::GET, cluster.addr(1), "/metrics", &[("host", host)], "").await;
        let message = answer.unwrap().text();
        assert_eq!(message.contains("--allowed-hosts evil.example\""), hint, "{message}");
        assert_eq!(message.contains("--allowed-hosts"), hint, "{message}");
    }
    let found = cluster.get(1, "/v1/kv/key").await.done();
    assert_eq!((&found["value"], &found["revision"]), (&"mine".into(), &before["revision"]));
    cluster.membership_is(&ALL, &ALL, &[]).await;
}

/// The node's own pages, and programs that send no origin, are served under each of the node's names.
#[tokio::test]
async fn own_pages_and_programs_are_served() {
    let cluster = TestCluster::form("browsers-own", &[1], CALM).await;
    let addr = cluster.addr(1).to_owned();
    let port = addr.rsplit_once(':').unwrap().1;
    let system = rustix::system::uname().nodename().to_string_lossy().into_owned();
    for host in [addr.clone(), format!("localhost:{port}"), format!("[::1]:{port}"), "10.0.0.1".into(), system] {
        let origin = format!("http://{host}");
        for headers in [vec![("host", host.as_str())], vec![("host", host.as_str()), ("origin", origin.as_str())]] {
            let answer = cluster.http().request(Method::PUT, &addr, "/v1/kv/key", &headers, "v").await.unwrap();
            answer.done();
            assert_eq!(answer.header("access-control-allow-origin"), "", "{headers:?}");
        }
    }
}

/// A link to one of the node's pages may be followed from anywhere, and other nodes may forward requests under any
/// name.
#[tokio::test]
async fn links_and_other_nodes_are_served() {
    let cluster = TestCluster::form("browsers-links", &ALL, CALM).await;
    let navigation = ("sec-fetch-mode", "navigate");
    let followed: [&[(&str, &str)]; 5] = [
        &[("sec-fetch-site", "cross-site"), navigation],
        &[("sec-fetch-site", "cross-site"), navigation, ("sec-fetch-dest", "document")],
        &[("sec-fetch-site", "same-site"), navigation, ("sec-fetch-dest", "document")],
        // A page of the node embeds something of its own.
        &[("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "no-cors"), ("sec-fetch-dest", "image")],
        // The address was typed.
        &[("sec-fetch-site", "none"), navigation, ("sec-fetch-dest", "document")],
    ];
    for headers in followed {
        let answer = cluster.http().request(Method::GET, cluster.addr(1), "/docs", headers, "").await.unwrap();
        assert_eq!(answer.status, 200, "{headers:?}");
    }
    for id in ALL {
        cluster.put(id, "/v1/kv/key", "v").await.done();
    }
}

/// Pages and names that the operator allows are served, and a page may read the responses.
///
/// Method: on a node with both flags, send a preflight, the request itself, one that fails, and a watch; also origins
/// and hosts that are almost the allowed ones.
#[tokio::test]
async fn allowed_pages_are_served() {
    const PAGE: &str = "https://console.example:8443";
    let flags =
        ["--allowed-origins", "https://Console.example:8443,http://a.example", "--allowed-hosts", "proxy.example"];
    let cluster = TestCluster::form("browsers-allowed", &[1], &[CALM, &flags].concat()).await;
    let ask = async |method: Method, path: &str, headers: &[(&str, &str)]| {
        let headers = [&[("origin", PAGE), ("host", "proxy.example")], headers].concat();
        let answer = cluster.http().request(method, cluster.addr(1), path, &headers, "").await.unwrap();
        assert_eq!(answer.header("access-control-allow-origin"), PAGE, "{path}: {answer:?}");
        assert_eq!(answer.header("vary"), "Origin", "{path}: {answer:?}");
        assert!(answer.header("access-control-expose-headers").contains("Raft-Revision"), "{path}: {answer:?}");
        answer
    };
    let asked = [
        ("access-control-request-method", "PUT"),
        ("access-control-request-headers", "if-match,idempotency-key"),
        ("access-control-request-private-network", "true"),
    ];
    let preflight = ask(Method::OPTIONS, "/v1/kv/key", &asked).await;
    assert_eq!((preflight.status, preflight.body.len()), (204, 0));
    assert!(preflight.header("access-control-allow-methods").contains("PUT"), "{preflight:?}");
    let headers = preflight.headers.get_all("access-control-allow-headers").iter().map(|value| value.to_str().unwrap());
    let headers: Vec<_> = headers.collect();
    assert!(headers.contains(&"if-match") && headers.contains(&"idempotency-key"), "{headers:?}");
    assert_eq!(preflight.header("access-control-allow-private-network"), "true");

    ask(Method::PUT, "/v1/kv/key", &[("if-none-match", "*")]).await.done();
    ask(Method::PUT, "/v1/kv/key", &[("if-none-match", "*")]).await.assert_rejected(412, "condition_failed");
    ask(Method::POST, "/write", &[]).await.assert_error(400, "BadRequest", "not_applied");
    let headers = [("origin", PAGE)];
    let watch = cluster.http().open(Method::GET, cluster.addr(1), "/v1/watch", &headers, "").await.unwrap();
    assert_eq!(
        (watch.status().as_u16(), &watch.headers()["access-control-allow-origin"]),
        (200, &PAGE.parse().unwrap())
    );

    for (name, value) in [("origin", "https://console.example"), ("host", "sub.proxy.example"), ("origin", "null")] {
        let answer = cluster.http().request(Method::GET, cluster.addr(1), "/metrics", &[(name, value)], "").await;
        assert_forbidden(&answer.unwrap(), "/metrics", value);
    }
}

/// A browser does not execute stored bytes.
#[tokio::test]
async fn raw_values_are_inert() {
    let cluster = TestCluster::form("browsers-raw", &[1], CALM).await;
    cluster.put(1, "/v1/kv/page.html", "<script>alert(1)</script>").await.done();
    let raw = cluster.get(1, "/v1/kv/page.html?raw").await;
    assert_eq!(raw.header("content-type"), "application/octet-stream");
    assert_eq!(raw.header("x-content-type-options"), "nosniff");
    assert_eq!(raw.header("content-security-policy"), "default-src 'none'; sandbox");
}
