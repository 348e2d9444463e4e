//! What can be done with each token, without one, and with a forged proof?

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use raft_key_value::network;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{
    ALL, Answer, CALM, DEADLINE, OFTEN, TestCluster, Wire, command, eventually, files_below, free_port,
};

/// The root token.
pub const ROOT: &str = "root-token-of-the-tests-0123456789abcdef";
/// The value of keys that no token of a test may read.
const HIDDEN: &str = "hidden-value";

/// A file with the root token, in a directory that lasts as long as the tests.
pub fn root_file(text: &str, mode: u32) -> &'static str {
    let directory = tempfile::Builder::new().prefix("rkv-test-token-").tempdir().unwrap().keep();
    let path = directory.join("root.token");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    Box::leak(path.display().to_string().into_boxed_str())
}

/// A cluster with a root token, to which the test sends that token. It requires tokens.
pub async fn secured(name: &'static str, ids: &[u64], flags: &[&'static str]) -> TestCluster {
    let flags: Vec<&'static str> =
        flags.iter().copied().chain(["--root-token-file", root_file(&format!("{ROOT}\n"), 0o600)]).collect();
    let mut cluster = TestCluster::start(name, &[], &flags).await;
    cluster.set_token(ROOT);
    for id in ids {
        cluster.add_node(*id).await;
    }
    cluster.found(ids).await;
    for id in ids {
        requires(&cluster, *id, true).await;
    }
    cluster
}

/// Waits until a node has applied whether tokens are required.
pub async fn requires(cluster: &TestCluster, id: u64, required: bool) {
    eventually("the node knows whether tokens are required", DEADLINE, async || {
        let list = cluster.http().get(cluster.addr(id), "/v1/tokens").await.map_err(|error| error.to_string())?;
        if list.status == 200 && list.json()["required"] == required { Ok(()) } else { Err(list.text()) }
    })
    .await;
}

/// Creates a token; returns its text.
async fn create(cluster: &TestCluster, body: Value) -> String {
    create_through(cluster, 1, body).await
}

/// The same through this node. No cache may keep the response.
async fn create_through(cluster: &TestCluster, id: u64, body: Value) -> String {
    let created = cluster.v1(id, Method::POST, "/v1/tokens", &[], body.to_string()).await;
    assert_eq!(created.header("cache-control"), "no-store", "{created:?}");
    created.done()["token"].as_str().unwrap().to_owned()
}

/// Sends a request with this token; without one if it is empty.
async fn with(cluster: &TestCluster, id: u64, token: &str, method: &Method, path: &str, body: &str) -> Answer {
    let authorization = if token.is_empty() { String::new() } else { format!("Bearer {token}") };
    let headers = [("authorization", authorization.as_str())];
    let response =
        cluster.http().open(method.clone(), cluster.addr(id), path, &headers, body.to_owned()).await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    // A watch does not end.
    let is_stream = status == 200 && path.starts_with("/v1/watch");
    let body = if is_stream { Vec::new() } else { response.bytes().await.unwrap().into() };
    Answer { status, headers, body }
}

/// Asserts a rejection that says nothing; returns the `needs` of a 403.
#[track_caller]
fn assert_denied(answer: &Answer, path: &str, status: u16, what: &str) -> Value {
    let is_v1 = path.starts_with("/v1");
    let json = if answer.body.is_empty() { Value::Null } else { answer.json() };
    let (code, name) = if status == 401 { ("unauthorized", "Unauthorized") } else { ("not_permitted", "NotPermitted") };
    let error = if is_v1 { &json["error"] } else { &json["Err"][name] };
    assert_eq!(answer.status, status, "{what}: {}", answer.text());
    assert_eq!(error["outcome"], "not_applied", "{what}: {}", answer.text());
    assert!(!is_v1 || error["code"] == code, "{what}: {}", answer.text());
    assert_eq!(answer.header("raft-outcome"), "not_applied", "{what}");
    assert_eq!(answer.header("raft-revision"), "", "{what}");
    assert_eq!(answer.header("www-authenticate") == "Bearer", status == 401, "{what}");
    assert!(!answer.text().contains(HIDDEN), "{what}: {}", answer.text());
    error["needs"].clone()
}

/// What a route needs.
#[derive(Clone, Copy, PartialEq)]
enum Need {
    Nothing,
    /// A role, whatever the keys.
    Role(&'static str),
    /// A role for the key `app/key`.
    Key(&'static str),
    /// To be another node.
    Node,
}

/// For each route of the route table: what it needs, a path of it, and a body. With the right token, the request is
/// valid, or is rejected for another reason than the token.
fn row_of(method: &str, path: &str) -> (Need, String, &'static str) {
    let own = |need, body| (need, path.to_owned(), body);
    let at = |need, path: &str, body| (need, path.to_owned(), body);
    match (method, path) {
        ("get" | "head", "/v1/kv/{key}") => at(Need::Key("read"), "/v1/kv/app/key", ""),
        ("put", "/v1/kv/{key}") => at(Need::Key("write"), "/v1/kv/app/key", "new"),
        ("delete", "/v1/kv/{key}") => at(Need::Key("write"), "/v1/kv/app/key", ""),
        ("post", "/v1/kv/{key}/touch") => at(Need::Key("write"), "/v1/kv/app/key/touch?ttl=1h", ""),
        ("get" | "head", "/v1/kv") => at(Need::Key("read"), "/v1/kv?prefix=app/", ""),
        ("delete", "/v1/kv") => at(Need::Key("write"), "/v1/kv?prefix=app/", ""),
        ("post", "/v1/txn") => own(Need::Key("write"), r#"{"success":[{"put":{"key":"app/key","value":"new"}}]}"#),
        ("get", "/v1/watch") => at(Need::Key("read"), "/v1/watch?prefix=app/", ""),
        ("head", "/v1/watch") => at(Need::Key("read"), "/v1/watch?key=app/key", ""),
        ("post", "/write") => own(Need::Key("write"), r#"{"Set":{"key":"app/key","value":"new"}}"#),
        ("post", "/read" | "/consistent_read") => own(Need::Key("read"), r#""app/key""#),
        ("get" | "head", "/openapi.json" | "/docs" | "/livez" | "/readyz" | "/health") => own(Need::Nothing, ""),
        ("get" | "head", "/metrics" | "/v1/metrics" | "/v1/cluster") => own(Need::Role("read"), ""),
        ("get" | "head", "/v1/cluster/hash" | "/v1/snapshot" | "/v1/tokens") => own(Need::Role("admin"), ""),
        ("post", "/init" | "/add-learner" | "/change-membership") => own(Need::Role("admin"), "[0]"),
        ("post", "/v1/cluster/members" | "/v1/cluster/leader" | "/v1/tokens" | "/v1/auth") => {
            own(Need::Role("admin"), r#"{"id":0}"#)
        }
        ("delete", "/v1/cluster/members/{id}") => at(Need::Role("admin"), "/v1/cluster/members/9", ""),
        ("post", "/v1/cluster/members/{id}/promote") => at(Need::Role("admin"), "/v1/cluster/members/9/promote", ""),
        ("post", "/v1/cluster/members/{id}/replace") => {
            at(Need::Role("admin"), "/v1/cluster/members/9/replace", r#"{"id":0}"#)
        }
        ("delete", "/v1/tokens/{name}") => at(Need::Role("admin"), "/v1/tokens/nobody", ""),
        // It says what `doctor` and `/v1/cluster` show, and is no RPC.
        ("get", "/raft-status") => own(Need::Role("read"), ""),
        ("get" | "post", _) if path.starts_with("/raft-") => own(Need::Node, ""),
        _ => panic!("{method} {path} has no row: say what it needs"),
    }
}

/// Every route rejects requests without the right token, with the right status and body, changes nothing, and says
/// nothing.
///
/// Method: for each route of the route table, a request without a token, with garbage, with tokens that have expired or
/// were revoked, with too low a role, and for other keys; then with the right token, and with the root token.
#[tokio::test]
async fn auth_walks_every_route() {
    let cluster = secured("auth-routes", &[1], CALM).await;
    for key in ["app/key", "secret/key"] {
        cluster.put(1, &format!("/v1/kv/{key}"), HIDDEN).await.done();
    }
    let revoked = create(&cluster, json!({"name": "revoked", "role": "admin"})).await;
    cluster.delete(1, "/v1/tokens/revoked").await.done();
    let expired = create(&cluster, json!({"name": "expired", "role": "admin", "ttl": "100ms"})).await;
    eventually("the token expires", DEADLINE, async || {
        let list = cluster.get(1, "/v1/tokens").await.done();
        if list["tokens"].as_array().unwrap().is_empty() { Ok(()) } else { Err(list) }
    })
    .await;
    let mut tokens = std::collections::HashMap::new();
    for role in ["read", "write", "admin"] {
        tokens.insert((role, "all"), create(&cluster, json!({"name": role, "role": role})).await);
        if role != "admin" {
            for (place, prefix) in [("app", "app/"), ("other", "application/")] {
                let body = json!({"name": format!("{role}-{place}"), "role": role, "prefixes": [prefix]});
                tokens.insert((role, place), create(&cluster, body).await);
            }
        }
    }
    let garbage = format!("{}x", tokens[&("admin", "all")]);
    let invalid =
        [("no token", ""), ("garbage", garbage.as_str()), ("expired", expired.as_str()), ("revoked", revoked.as_str())];
    let table = network::table();
    let routes: BTreeSet<(&str, &str)> =
        table.iter().flat_map(|endpoint| endpoint.operations.iter().copied().chain(endpoint.of_nodes)).collect();
    assert!(routes.len() > 40, "{routes:?}");
    for (method, route) in routes {
        let (need, path, body) = row_of(method, route);
        let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
        let revision = cluster.get(1, "/v1/kv/secret/key").await.revision();
        let mut denied: Vec<(&str, &str, u16)> = Vec::new();
        let mut right: Vec<&str> = vec![ROOT];
        let role_below = |role: &str| if role == "admin" { Some("write") } else { (role == "write").then_some("read") };
        match need {
            Need::Nothing => right.push(""),
            Need::Node => {
                denied.extend(invalid.map(|(what, token)| (what, token, 401)));
                denied.extend([("admin", tokens[&("admin", "all")].as_str(), 401), ("root", ROOT, 401)]);
                right.clear();
            }
            Need::Role(role) | Need::Key(role) => {
                denied.extend(invalid.map(|(what, token)| (what, token, 401)));
                denied.extend(role_below(role).map(|below| ("wrong role", tokens[&(below, "all")].as_str(), 403)));
                right.push(&tokens[&(role, "all")]);
                right.push(&tokens[&("admin", "all")]);
                if let Need::Key(_) = need {
                    denied.push(("wrong prefix", &tokens[&(role, "other")], 403));
                    denied.extend(role_below(role).map(|below| ("wrong role", tokens[&(below, "app")].as_str(), 403)));
                    right.push(&tokens[&(role, "app")]);
                } else if role == "read" {
                    right.push(&tokens[&(role, "other")]);
                }
            }
        }
        for (what, token, status) in denied {
            let what = format!("{method} {path} with {what}");
            let answer = with(&cluster, 1, token, &method, &path, body).await;
            if method == Method::HEAD {
                assert_eq!(answer.status, status, "{what}");
                continue;
            }
            let needs = assert_denied(&answer, &path, status, &what);
            if let (403, Need::Role(role) | Need::Key(role)) = (status, need) {
                assert_eq!(needs["role"], role, "{what}: {}", answer.text());
            }
        }
        let now = cluster.get(1, "/v1/kv/secret/key").await;
        assert_eq!((now.revision(), now.json()["value"].as_str()), (revision, Some(HIDDEN)), "{method} {path}");
        for token in right {
            let answer = with(&cluster, 1, token, &method, &path, body).await;
            assert!(![401, 403].contains(&answer.status), "{method} {path}: {} {}", answer.status, answer.text());
        }
    }
    requires(&cluster, 1, true).await;
}

/// A token for some keys reads and writes nothing else, whichever part of a request names it.
///
/// Method: requests that name the keys of the token and one other key each, in every place where a request can name
/// one; the same requests with the token's own keys only; and then the other keys, which must be as before.
#[tokio::test]
async fn auth_of_every_part_of_a_request() {
    let cluster = secured("auth-parts", &[1], CALM).await;
    cluster.put(1, "/v1/kv/secret/key", HIDDEN).await.done();
    cluster.put(1, "/v1/kv/app/key", "own").await.done();
    let writer = create(&cluster, json!({"name": "writer", "role": "write", "prefixes": ["app/", "b/"]})).await;
    let reader = create(&cluster, json!({"name": "reader", "role": "read", "prefixes": ["app/"]})).await;
    let own_put = r#"{"put":{"key":"app/key","value":"own"}}"#;
    let txn = |compare: &str, success: &str, failure: &str| {
        format!(r#"{{"compare":[{compare}],"success":[{success}],"failure":[{failure}]}}"#)
    };
    let wrapped = |txn: &str| format!(r#"{{"Txn":{txn}}}"#);
    let mut rows: Vec<(Method, &str, String)> = Vec::new();
    for part in [
        r#"{"get":{"key":"KEY"}}"#,
        r#"{"put":{"key":"KEY","value":"x"}}"#,
        r#"{"delete":{"key":"KEY"}}"#,
        r#"{"touch":{"key":"KEY","ttl":"1h"}}"#,
    ] {
        for (success, failure) in [(part, ""), (own_put, part)] {
            rows.push((Method::POST, "/v1/txn", txn("", success, failure)));
            rows.push((Method::POST, "/write", wrapped(&txn("", success, failure))));
        }
    }
    for operand in [r#""value":"x""#, r#""exists":true"#, r#""revision":1"#, r#""version":1"#, r#""create_revision":1"#]
    {
        let compare = format!(r#"{{"key":"KEY",{operand}}}"#);
        rows.push((Method::POST, "/v1/txn", txn(&compare, own_put, own_put)));
        rows.push((Method::POST, "/write", wrapped(&txn(&compare, own_put, own_put))));
    }
    rows.push((Method::POST, "/write", r#"{"Set":{"key":"KEY","value":"x"}}"#.to_owned()));
    rows.push((Method::POST, "/write", r#"{"Delete":{"key":"KEY"}}"#.to_owned()));
    rows.push((Method::POST, "/read", r#""KEY""#.to_owned()));
    rows.push((Method::POST, "/consistent_read", r#""KEY""#.to_owned()));
    for path in [
        "/v1/kv/KEY",
        "/v1/kv/KEY?raw",
        "/v1/kv/KEY?consistency=stale",
        "/v1/kv?prefix=KEY",
        "/v1/kv?prefix=KEY&keys_only&reverse",
        "/v1/kv?start=KEY&end=KEYz",
        "/v1/watch?prefix=KEY",
        "/v1/watch?key=KEY",
        "/v1/watch?prefix=KEY&initial",
        "/v1/watch?prefix=KEY&from=1",
    ] {
        rows.push((Method::GET, path, String::new()));
    }
    rows.push((Method::DELETE, "/v1/kv?prefix=KEY", String::new()));
    rows.push((Method::DELETE, "/v1/kv/KEY", String::new()));
    for (method, path, body) in &rows {
        let request = |key: &str| (path.replace("KEY", key), body.replace("KEY", key));
        for foreign in ["secret/key", "app", "ap", "c"] {
            let (path, body) = request(foreign);
            let what = format!("{method} {path} {body}");
            let answer = with(&cluster, 1, &writer, method, &path, &body).await;
            let needs = assert_denied(&answer, &path, 403, &what);
            let named = [&needs["key"], &needs["prefix"], &needs["range"][0]];
            assert!(named.into_iter().any(|name| *name == foreign), "{what}: {needs}");
        }
        let (path, body) = request("app/key");
        let answer = with(&cluster, 1, &writer, method, &path, &body).await;
        assert!([200, 404].contains(&answer.status), "{method} {path} {body}: {}", answer.text());
        // A reader may send the same request only if it writes nothing in either branch.
        let answer = with(&cluster, 1, &reader, method, &path, &body).await;
        let writes =
            ["put", "Set", "elete", "touch"].iter().any(|word| body.contains(word)) || *method == Method::DELETE;
        assert_eq!(answer.status == 403, writes, "{method} {path} {body}: {}", answer.text());
        cluster.put(1, "/v1/kv/app/key", "own").await.done();
    }
    let whole = [
        (Method::GET, "/v1/kv"),
        (Method::GET, "/v1/kv?start=app/&end=b"),
        (Method::GET, "/v1/kv?start=app/"),
        (Method::GET, "/v1/watch"),
        (Method::DELETE, "/v1/kv?all"),
    ];
    for (method, path) in whole {
        let answer = with(&cluster, 1, &writer, &method, path, "").await;
        assert_denied(&answer, path, 403, path);
    }
    let found = cluster.get(1, "/v1/kv/secret/key").await.json();
    assert_eq!((found["value"].as_str(), found["version"].as_u64()), (Some(HIDDEN), Some(1)));
    // Bad tokens to create, each with its reason; none is created.
    for body in [
        json!({"name": "", "role": "read"}),
        json!({"name": "a/b", "role": "read"}),
        json!({"name": "x".repeat(65), "role": "read"}),
        json!({"name": "x", "role": "root"}),
        json!({"name": "x", "role": "read", "prefixes": []}),
        json!({"name": "x", "role": "read", "prefixes": [""]}),
        json!({"name": "x", "role": "admin", "prefixes": ["a"]}),
        json!({"name": "x", "role": "read", "prefixes": vec!["a"; 33]}),
        json!({"name": "x", "role": "read", "ttl": "soon"}),
        json!({"name": "x", "role": "read", "hash": "x"}),
    ] {
        let answer = cluster.v1(1, Method::POST, "/v1/tokens", &[], body.to_string()).await;
        assert_eq!(answer.status, 400, "{body}: {}", answer.text());
    }
    let again = cluster.v1(1, Method::POST, "/v1/tokens", &[], r#"{"name":"reader","role":"admin"}"#).await;
    again.assert_rejected(409, "conflict");
    cluster.delete(1, "/v1/tokens/x").await.assert_rejected(404, "token_not_found");
    assert_eq!(cluster.get(1, "/v1/tokens").await.done()["tokens"].as_array().unwrap().len(), 2);
}

/// A request that is sent again gets its first result only with the same token. The keys of one token are not those of
/// another: the same key with each token is a request of its own. A key that was used without a token cannot be used
/// with one, because the request may be the same.
///
/// Method: the same request with the same key and each of three tokens, again after what it reads has changed, and again
/// after a restart. Then end the requirement of tokens, use a key without a token, and require tokens again.
#[tokio::test]
async fn auth_of_replays() {
    let mut cluster = secured("auth-replays", &[1], CALM).await;
    let one = create(&cluster, json!({"name": "one", "role": "write"})).await;
    let other = create(&cluster, json!({"name": "other", "role": "write"})).await;
    let send = async |cluster: &TestCluster, token: &str, key: &str| {
        let authorization = if token.is_empty() { String::new() } else { format!("Bearer {token}") };
        let headers = [("authorization", authorization.as_str()), ("idempotency-key", key)];
        let read = r#"{"success":[{"get":{"key":"app/key"}},{"put":{"key":"x","value":"1"}}]}"#;
        cluster.v1(1, Method::POST, "/v1/txn", &headers, read).await
    };
    let mut firsts = Vec::new();
    for (token, value) in [(one.as_str(), HIDDEN), (&other, "of the other"), (ROOT, "of the root token")] {
        cluster.put(1, "/v1/kv/app/key", value).await.done();
        let first = send(&cluster, token, "shared").await;
        assert_eq!(first.header("raft-replayed"), "", "{value}");
        assert_eq!(first.done()["results"][0]["get"]["value"], value);
        firsts.push((token, first));
    }
    for restarts in [false, true] {
        if restarts {
            cluster.stop(1).await;
            cluster.restart(1).await;
            cluster.leader_of(&[1]).await;
        }
        for (token, first) in &firsts {
            let again = send(&cluster, token, "shared").await;
            assert_eq!((again.status, again.header("raft-replayed")), (200, "true"));
            assert_eq!(again.text(), first.text());
        }
    }
    let require = async |cluster: &TestCluster, required: bool| {
        let body = json!({"required": required}).to_string();
        cluster.v1(1, Method::POST, "/v1/auth", &[], body).await.done();
    };
    require(&cluster, false).await;
    assert_eq!(send(&cluster, "", "early").await.status, 200);
    require(&cluster, true).await;
    send(&cluster, &one, "early").await.assert_rejected(422, "idempotency_key_reused");
    assert_eq!(send(&cluster, &one, "late").await.status, 200);
}

/// A watch ends when its token is revoked or expires, on every node, and cannot be resumed.
#[tokio::test]
async fn auth_ends_watches() {
    let cluster = secured("auth-watches", &ALL, CALM).await;
    for (name, ttl) in [("revoked", None), ("expiring", Some("10s"))] {
        let token = create(&cluster, json!({"name": name, "role": "read", "prefixes": ["app/"], "ttl": ttl})).await;
        let authorization = format!("Bearer {token}");
        let headers = [("authorization", authorization.as_str())];
        let mut watches = Vec::new();
        for id in ALL {
            let path = "/v1/watch?prefix=app/&initial";
            let open = async || {
                let opened = cluster.http().open(Method::GET, cluster.addr(id), path, &headers, "").await;
                let opened = opened.map_err(|error| error.to_string())?;
                if opened.status() == 200 { Ok(opened) } else { Err(format!("{opened:?}")) }
            };
            // A follower may not have applied the token yet.
            watches.push(eventually("the watch begins", DEADLINE, open).await);
        }
        if ttl.is_none() {
            cluster.delete(1, "/v1/tokens/revoked").await.done();
        }
        for watch in watches {
            let text = tokio::time::timeout(DEADLINE, watch.text()).await.expect("the watch ends").unwrap();
            assert!(text.contains(r#""type":"end""#) && text.contains(r#""code":"unauthorized""#), "{text}");
        }
        for id in ALL {
            let answer = with(&cluster, id, &token, &Method::GET, "/v1/watch?prefix=app/", "").await;
            assert_denied(&answer, "/v1/watch", 401, "resuming");
        }
    }
}

/// Resuming a watch shows a token its own keys only, whatever it resumes after, and a rejection is the same whether there
/// are events or not.
///
/// Method: changes of keys within and outside the token's prefix, some in one transaction. Resume after every id that the
/// root token saw, and after ids that no event had: with the right token, and with one for other keys, a revoked one and
/// none.
#[tokio::test]
async fn auth_of_resumed_watches() {
    let cluster = secured("auth-resumed", &[1], CALM).await;
    for number in 0..3 {
        cluster.put(1, "/v1/kv/app/key", format!("own-{number}")).await.done();
        cluster.put(1, "/v1/kv/secret/key", HIDDEN).await.done();
        let put = |key: &str, value: &str| json!({"put": {"key": key, "value": value}});
        let steps = [put("secret/a", HIDDEN), put("app/b", "own"), put("secret/c", HIDDEN), put("app/d", "own")];
        cluster.txn(1, &json!({"success": steps})).await.done();
        cluster.delete(1, "/v1/kv/secret/key").await.done();
    }
    let last = cluster.put(1, "/v1/kv/app/last", "own").await.revision();
    let all = cluster.watch(1, "from=1").await.until_revision(last).await;
    assert_eq!(all.len(), 3 * 7 + 1);
    let right = create(&cluster, json!({"name": "right", "role": "read", "prefixes": ["app/"]})).await;
    let revoked = create(&cluster, json!({"name": "revoked", "role": "read", "prefixes": ["app/"]})).await;
    let wrong = create(&cluster, json!({"name": "wrong", "role": "read", "prefixes": ["other/"]})).await;
    cluster.v1(1, Method::DELETE, "/v1/tokens/revoked", &[], "").await.done();
    let known = all.iter().map(|event| event.id.clone().unwrap());
    let ids: Vec<String> = known.chain(["0", "3.0", "3.9", "999999", "no id"].map(str::to_owned)).collect();
    let resume = async |token: &str, query: &str, id: &str| {
        let authorization = if token.is_empty() { String::new() } else { format!("Bearer {token}") };
        let headers = [("authorization", authorization.as_str()), ("last-event-id", id)];
        let path = format!("/v1/watch?{query}");
        cluster.http().open(Method::GET, cluster.addr(1), &path, &headers, "").await.unwrap()
    };
    for (token, query, status) in [
        (wrong.as_str(), "prefix=app/", 403),
        (&wrong, "key=app/key", 403),
        (&right, "prefix=secret/", 403),
        (&right, "prefix=", 403),
        (&right, "key=secret/key&from=1", 403),
        (&revoked, "prefix=app/", 401),
        ("", "prefix=app/", 401),
    ] {
        let mut bodies = BTreeSet::new();
        for id in &ids {
            let response = resume(token, query, id).await;
            let (found, headers) = (response.status().as_u16(), response.headers().clone());
            // The body of a watch does not end.
            assert_eq!(found, status, "{query} after {id}");
            let answer = Answer { status, headers, body: response.bytes().await.unwrap().into() };
            assert_denied(&answer, "/v1/watch", status, &format!("{query} after {id}"));
            bodies.insert(answer.text());
        }
        assert_eq!(bodies.len(), 1, "{query}: {bodies:?}");
    }
    let place = |id: &str| {
        let (revision, position) = id.split_once('.').unwrap_or((id, "999"));
        (revision.parse::<u64>().unwrap(), position.parse::<u64>().unwrap())
    };
    for id in ids.iter().filter(|id| ![last.to_string().as_str(), "3.9", "999999", "no id"].contains(&id.as_str())) {
        let response = resume(&right, "prefix=app/", id).await;
        assert_eq!(response.status(), 200, "{id}");
        let mut response = response;
        let mut text = String::new();
        while !text.contains("app/last") {
            let chunk = tokio::time::timeout(DEADLINE, response.chunk()).await.expect("the last event arrives");
            text += std::str::from_utf8(&chunk.unwrap().expect("the watch does not end")).unwrap();
        }
        assert!(!text.contains(HIDDEN) && !text.contains("secret"), "{id}: {text}");
        let keys: Vec<String> = text
            .lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .map(|data| serde_json::from_str::<Value>(data).unwrap()["key"].as_str().unwrap().to_owned())
            .collect();
        let later = all.iter().filter(|event| place(event.id.as_deref().unwrap()) > place(id));
        let own: Vec<&str> = later.map(|event| event.key()).filter(|key| key.starts_with("app/")).collect();
        assert_eq!(keys, own, "after {id}");
    }
}

/// A request is served only if its token is still valid when its last byte arrives: a sender that holds the body back
/// until after a revocation gets nothing, and changes nothing.
///
/// Method: an admin's requests of each kind (stale and linearizable reads, a snapshot, a put, a change of the members, a
/// leader transfer), without their last bytes. Revoke the token, wait until the node has applied that, and send the rest.
/// The same requests with the root token succeed, or fail for another reason.
#[tokio::test]
async fn auth_ends_with_the_revocation() {
    let cluster = secured("auth-held", &[1], CALM).await;
    cluster.put(1, "/v1/kv/k", HIDDEN).await.done();
    let token = create(&cluster, json!({"name": "held", "role": "admin"})).await;
    let addr = cluster.addr(1);
    let rows = [
        ("GET", "/v1/kv/k?consistency=stale", ""),
        ("GET", "/v1/kv/k", ""),
        ("GET", "/v1/kv?consistency=stale", ""),
        ("GET", "/v1/snapshot?consistency=stale", ""),
        ("PUT", "/v1/kv/k", "new"),
        ("POST", "/write", r#"{"Set":{"key":"k","value":"new"}}"#),
        ("POST", "/change-membership", "[1]"),
        ("POST", "/v1/cluster/leader", r#"{"id":1}"#),
        ("DELETE", "/v1/cluster/members/9", ""),
        ("POST", "/init", "{}"),
        ("POST", "/v1/tokens", r#"{"name":"another","role":"admin"}"#),
    ];
    let head = |method: &str, path: &str, body: &str, token: &str| {
        format!(
            "{method} {path} HTTP/1.1\r\nhost: {addr}\r\nauthorization: Bearer {token}\r\ntransfer-encoding: chunked\r\n\r\n\
             {}",
            if body.is_empty() { String::new() } else { format!("{:x}\r\n{body}\r\n", body.len()) }
        )
    };
    let mut held = Vec::new();
    for (method, path, body) in rows {
        let mut wire = Wire::open(addr).await;
        wire.send(head(method, path, body, &token)).await;
        held.push((method, path, wire));
    }
    // Requests that were sent later are served, so all that was sent above has been read.
    for _ in 0..20 {
        assert_eq!(with(&cluster, 1, &token, &Method::GET, "/v1/kv/k", "").await.status, 200);
    }
    cluster.v1(1, Method::DELETE, "/v1/tokens/held", &[], "").await.done();
    eventually("the node has applied the revocation", DEADLINE, async || {
        let answer = with(&cluster, 1, &token, &Method::GET, "/v1/kv/k?consistency=stale", "").await;
        if answer.status == 401 { Ok(()) } else { Err(answer.status) }
    })
    .await;
    for (method, path, mut wire) in held {
        wire.send("0\r\n\r\n").await;
        let response = wire.response_to(method).await;
        assert_eq!(response.status, 401, "{method} {path}: {}", response.text());
        assert!(!response.text().contains(HIDDEN), "{method} {path}: {}", response.text());
    }
    assert_eq!(cluster.get(1, "/v1/kv/k").await.done()["value"], HIDDEN);
    for (method, path, body) in rows {
        let mut wire = Wire::open(addr).await;
        wire.send(head(method, path, body, ROOT) + "0\r\n\r\n").await;
        let status = wire.response_to(method).await.status;
        assert!(![401, 403].contains(&status), "{method} {path}: {status}");
    }
}

/// A connection on which a token is valid is served with no other text, with each token as that token allows, and with
/// none that has been revoked, has expired, or has the name of a later one.
///
/// Method: one connection to each node for all requests, on which a token is used, then texts that differ from it a
/// little, tokens with another role, and the root token. Change other tokens meanwhile, revoke the token, and create
/// another one with its name. Then kill two nodes, and wait until a token expires that no entry removes any more.
#[tokio::test]
async fn auth_of_kept_connections() {
    async fn status(wire: &mut Wire, method: &str, query: &str, token: &str) -> u16 {
        wire.send(format!(
            "{method} /v1/kv/app/k{query} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\ncontent-length: 0\r\n\r\n"
        ))
        .await;
        wire.response_to(method).await.status
    }
    let mut cluster = secured("auth-kept", &ALL, CALM).await;
    cluster.put(1, "/v1/kv/app/k", "v").await.done();
    let body = |name: &str, role: &str| json!({"name": name, "role": role, "prefixes": ["app/"]});
    let writer = create(&cluster, body("writer", "write")).await;
    let reader = create(&cluster, body("reader", "read")).await;
    let mut wires = Vec::new();
    for id in ALL {
        let is_applied = async || match with(&cluster, id, &reader, &Method::GET, "/v1/kv/app/k", "").await {
            answer if answer.status == 200 => Ok(()),
            answer => Err(answer.text()),
        };
        eventually("the node has applied the tokens", DEADLINE, is_applied).await;
        wires.push(Wire::open(cluster.addr(id)).await);
    }
    for wire in &mut wires {
        assert_eq!(status(wire, "GET", "", &reader).await, 200);
        let (start, end) = reader.split_at(reader.len() - 1);
        let near = [start.to_owned() + if end == "A" { "B" } else { "A" }, start.to_owned(), reader.clone() + "A"];
        for text in near.iter().chain([&reader.replace("rkv_", "rkw_")]) {
            assert_eq!(status(wire, "GET", "", text).await, 401);
            assert_eq!(status(wire, "GET", "", &reader).await, 200);
        }
        assert_eq!(status(wire, "PUT", "", &reader).await, 403);
        assert_eq!(status(wire, "PUT", "", &writer).await, 200);
        assert_eq!(status(wire, "PUT", "", &reader).await, 403);
        assert_eq!(status(wire, "PUT", "", ROOT).await, 200);
        assert_eq!(status(wire, "PUT", "", &reader).await, 403);
    }
    // The others stay valid.
    cluster.delete(1, "/v1/tokens/writer").await.done();
    for wire in &mut wires {
        assert_eq!(status(wire, "GET", "", &reader).await, 200);
        assert_eq!(status(wire, "GET", "", &reader).await, 200);
        assert_eq!(status(wire, "PUT", "", &writer).await, 401);
        assert_eq!(status(wire, "GET", "", &reader).await, 200);
    }
    cluster.delete(1, "/v1/tokens/reader").await.done();
    for wire in &mut wires {
        assert_eq!(status(wire, "GET", "", &reader).await, 401);
        assert_eq!(status(wire, "GET", "", ROOT).await, 200);
    }
    let again = create(&cluster, body("reader", "write")).await;
    for (id, wire) in ALL.into_iter().zip(&mut wires) {
        eventually("the node has applied the token", DEADLINE, async || {
            let answer = with(&cluster, id, &again, &Method::GET, "/v1/kv/app/k", "").await;
            if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
        })
        .await;
        assert_eq!(status(wire, "PUT", "", &again).await, 200);
        assert_eq!(status(wire, "GET", "", &reader).await, 401);
    }
    let short = create(&cluster, json!({"name": "short", "role": "read", "ttl": "10s"})).await;
    let wire = &mut wires[2];
    for (what, expected) in [("the node has applied the token", 200), ("the token has expired", 401)] {
        eventually(what, DEADLINE, async || {
            let answer = with(&cluster, 3, &short, &Method::GET, "/v1/kv/app/k?consistency=stale", "").await;
            if answer.status == expected { Ok(()) } else { Err(answer.text()) }
        })
        .await;
        assert_eq!(status(wire, "GET", "?consistency=stale", &short).await, expected);
        if expected == 200 {
            cluster.kill(1);
            cluster.kill(2);
        }
    }
}

/// Nodes with the root token work together, and no other node or client passes for one of them.
///
/// Method: three nodes, writes and reads on all of them, a fourth that joins with the root token and one that tries
/// without; then RPCs and forwarded requests of a client with every token and with forged proofs.
#[tokio::test]
async fn auth_between_nodes() {
    let mut cluster = secured("auth-nodes", &ALL, CALM).await;
    for id in ALL {
        let path = format!("/v1/kv/from-{id}");
        cluster.put(id, &path, "value").await.done();
        for reader in ALL {
            assert_eq!(cluster.get(reader, &path).await.done()["value"], "value");
        }
        assert!(cluster.get(id, "/v1/cluster").await.done()["partial"].is_null());
    }
    let join = format!("{},{}", cluster.addr(1), cluster.addr(2));
    cluster.prepare_node(4, format!("127.0.0.1:{}", free_port()), &["--join", &join]);
    cluster.restart(4).await;
    eventually("node 4 is a voter", DEADLINE, async || {
        let status = cluster.get(1, "/v1/cluster").await.done();
        let members = status["members"].as_array().unwrap();
        let is_voter = members.iter().any(|member| member["id"] == 4 && member["role"] == "voter");
        if is_voter { Ok(()) } else { Err(status) }
    })
    .await;
    assert_eq!(cluster.get(4, "/v1/kv/from-1").await.done()["value"], "value");

    // Another root token, and none, make no member.
    let directory = tempfile::tempdir().unwrap();
    let other_root = root_file("another-root-token-0123456789abcdefgh", 0o600);
    for (id, flags) in [("8", vec!["--root-token-file", other_root]), ("9", vec![])] {
        let addr = format!("127.0.0.1:{}", free_port());
        let data_dir = directory.path().join(id).display().to_string();
        let own = ["--id", id, "--http-addr", &addr, "--data-dir", &data_dir, "--join", &join];
        let log = fs::File::create(directory.path().join("log")).unwrap();
        let mut child = command(own.into_iter().chain(flags)).stderr(log).stdout(Stdio::null()).spawn().unwrap();
        eventually("the node logs why it cannot join", DEADLINE, async || {
            let log = fs::read_to_string(directory.path().join("log")).unwrap();
            if log.contains("waiting to join a cluster") && log.contains("token") { Ok(()) } else { Err(log) }
        })
        .await;
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let members = cluster.get(1, "/v1/cluster").await.done()["members"].as_array().unwrap().len();
    assert_eq!(members, 4);

    let leader = cluster.leader_of(&[1, 2, 3, 4]).await;
    let follower = if leader == 1 { 2 } else { 1 };
    let admin = create_through(&cluster, follower, json!({"name": "admin", "role": "admin"})).await;
    create_through(&cluster, leader, json!({"name": "other", "role": "admin"})).await;
    for proof in ["", "own/1/0000000000000001/1/00", "forwarded/2/0000000000000002/18446744073709551615/ff"] {
        for token in ["", ROOT, &admin] {
            let authorization = if token.is_empty() { String::new() } else { format!("Bearer {token}") };
            let headers = [("authorization", authorization.as_str()), ("raft-proof", proof)];
            let sent = cluster.http().request(Method::POST, cluster.addr(follower), "/raft-vote", &headers, "x").await;
            assert_denied(&sent.unwrap(), "/raft-vote", 401, "an RPC");
            let headers = [headers[0], headers[1], ("raft-forwarded", "1"), ("raft-forwarded-to", "x")];
            let sent = cluster.http().request(Method::PUT, cluster.addr(leader), "/v1/kv/forged", &headers, "x").await;
            assert_eq!(sent.unwrap().status, 401);
        }
    }
    assert_eq!(cluster.get(leader, "/v1/kv/forged").await.status, 404);
}

/// With TLS, nodes know each other by their certificates: they need no proof and no root token. Clients need tokens, even
/// with a certificate, and none of them passes for a node.
///
/// Method: over TLS, nodes 1 and 2 have the root token and node 3 has none; node 4, without one too, joins by itself
/// through node 3. Send writes and reads with a token through each node. Then send RPCs, and requests that claim to be
/// forwarded or a node's own, as a client with a certificate. Restart node 3.
#[tokio::test]
async fn auth_with_tls() {
    let mut cluster = TestCluster::start_tls("auth-tls", &[CALM, &["--public-metrics"]].concat()).await;
    cluster.set_token(ROOT);
    let root = root_file(ROOT, 0o600);
    for id in [1, 2, 3, 4] {
        cluster.add_node(id).await;
        let join = cluster.addr(3.min(id)).to_owned();
        match id {
            1 | 2 => cluster.node_mut(id).add_flags(&["--root-token-file", root]),
            4 => cluster.node_mut(id).add_flags(&["--join", &join]),
            _ => continue,
        }
        cluster.stop(id).await;
        if id < 3 {
            cluster.restart(id).await;
        }
    }
    cluster.found(&ALL).await;
    if cluster.leader_of(&ALL).await == 3 {
        cluster.v1(1, Method::POST, "/v1/cluster/leader", &[], r#"{"id":1}"#).await.done();
    }
    for id in [1, 2] {
        requires(&cluster, id, true).await;
    }
    let admin = create(&cluster, json!({"name": "admin", "role": "admin"})).await;
    let app = create(&cluster, json!({"name": "app", "role": "write", "prefixes": ["app/"]})).await;
    cluster.restart(4).await;
    eventually("node 4 is a voter", DEADLINE, async || {
        let status = cluster.get(1, "/v1/cluster").await.done();
        let members = status["members"].as_array().unwrap();
        let is_voter = members.iter().any(|member| member["id"] == 4 && member["role"] == "voter");
        if is_voter && status["partial"].is_null() { Ok(()) } else { Err(status) }
    })
    .await;
    let ids = [1, 2, 3, 4];
    for id in ids {
        let written = eventually("the node knows the token", DEADLINE, async || {
            let answer = with(&cluster, id, &app, &Method::PUT, "/v1/kv/app/key", "value").await;
            if answer.status == 200 { Ok(answer) } else { Err(answer.text()) }
        });
        written.await;
        let answer = with(&cluster, id, &app, &Method::GET, "/v1/kv/app/key", "").await;
        assert_eq!(answer.done()["value"], "value");
        let answer = with(&cluster, id, &app, &Method::PUT, "/v1/kv/other", "value").await;
        assert_denied(&answer, "/v1/kv/other", 403, "another key");
        assert_eq!(with(&cluster, id, &admin, &Method::GET, "/v1/tokens", "").await.done()["required"], true);
        let answer = with(&cluster, id, ROOT, &Method::GET, "/v1/tokens", "").await;
        assert_eq!(answer.status, if id < 3 { 200 } else { 401 }, "node {id} and the root token");

        // The client has a certificate, which names no node.
        for proof in ["", "own", "forwarded"] {
            for token in ["", "Bearer an-unknown-token"] {
                let mut headers = vec![("authorization", token), ("raft-proof", proof)];
                for path in ["/raft-identity", "/raft-status", "/v1/kv/app/key", "/v1/cluster"] {
                    let sent = cluster.http().request(Method::GET, cluster.addr(id), path, &headers, "").await;
                    assert_denied(&sent.unwrap(), path, 401, path);
                }
                let sent = cluster.http().request(Method::POST, cluster.addr(id), "/raft-vote", &headers, "x").await;
                assert_eq!(sent.unwrap().status, 403, "an RPC");
                headers.extend([("raft-forwarded", "1"), ("raft-forwarded-to", "x")]);
                let sent =
                    cluster.http().request(Method::PUT, cluster.addr(id), "/v1/kv/app/forged", &headers, "x").await;
                assert_denied(&sent.unwrap(), "/v1/kv/app/forged", 401, "a forwarded request");
            }
        }
    }
    assert_eq!(cluster.get(1, "/v1/kv/app/forged").await.status, 404);
    cluster.stop(3).await;
    cluster.restart(3).await;
    eventually("node 3 serves requests again", DEADLINE, async || {
        let answer = with(&cluster, 3, &app, &Method::GET, "/v1/kv/app/key", "").await;
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    assert_eq!(with(&cluster, 3, "", &Method::GET, "/v1/kv/app/key", "").await.status, 401);
}

/// Tokens survive restarts, snapshots and backups. Requiring them ends only by `auth disable`, and begins again by `auth
/// enable`. A node of the cluster does not start without the root token.
#[tokio::test]
async fn auth_is_kept() {
    let flags = [CALM, OFTEN].concat();
    let mut cluster = secured("auth-kept", &[1], &flags).await;
    let token = create(&cluster, json!({"name": "app", "role": "write", "prefixes": ["app/"]})).await;
    for number in 0..120 {
        cluster.put(1, "/v1/kv/app/key", format!("{number}")).await.done();
    }
    let read = async |cluster: &TestCluster, token: &str| {
        with(cluster, 1, token, &Method::GET, "/v1/kv/app/key?consistency=stale", "").await.status
    };
    for _ in 0..2 {
        cluster.stop(1).await;
        cluster.restart(1).await;
        cluster.leader_of(&[1]).await;
        requires(&cluster, 1, true).await;
        assert_eq!((read(&cluster, &token).await, read(&cluster, "").await), (200, 401));
    }
    cluster.stop(1).await;
    let file =
        cluster.node(1).files().into_iter().find(|path| path.extension().is_some_and(|it| it == "snap")).unwrap();
    let inspected = command(["snapshot", "inspect", file.to_str().unwrap(), "--output", "json"]).output().unwrap();
    let inspected: Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!((inspected["format"].as_u64(), inspected["tokens"].as_u64()), (Some(5), Some(1)), "{inspected}");
    let data_dir = cluster.node(1).data_dir().display().to_string();
    let addr = cluster.addr(1).to_owned();
    let refused = command(["--id", "1", "--http-addr", &addr, "--data-dir", &data_dir]).output().unwrap();
    let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(78), "{stderr}");
    assert!(stderr.contains("--root-token-file"), "{stderr}");
    cluster.restart(1).await;
    cluster.leader_of(&[1]).await;

    let auth = |action: &str, token: &str| {
        let mut command = command(["auth", action, "--endpoints", &addr]);
        command.env("RKV_TOKEN", token);
        command.output().unwrap()
    };
    assert!(!auth("disable", &token).status.success(), "only an administrator may");
    let disabled = auth("disable", ROOT);
    assert!(disabled.status.success(), "{disabled:?}");
    assert_eq!((read(&cluster, &token).await, read(&cluster, "").await), (200, 200));
    cluster.stop(1).await;
    cluster.restart(1).await;
    cluster.leader_of(&[1]).await;
    cluster.put(1, "/v1/kv/app/key", "open").await.done();
    assert_eq!(read(&cluster, "").await, 200, "it stays open");
    let unauthorized = with(&cluster, 1, "", &Method::POST, "/v1/auth", r#"{"required":true}"#).await;
    assert_eq!(unauthorized.status, 401, "only an administrator can lock others out");
    assert!(auth("enable", ROOT).status.success());
    assert_eq!((read(&cluster, &token).await, read(&cluster, "").await), (200, 401));
}

/// A root token that others can read, or guess, is refused.
#[tokio::test]
async fn auth_refuses_bad_root_tokens() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().display().to_string();
    let missing = directory.path().join("missing").display().to_string();
    let good = format!("{ROOT}\n");
    let rows = [
        (root_file(&good, 0o640), "mode 0640"),
        (root_file(&good, 0o604), "mode 0604"),
        (root_file("short", 0o600), "at least 32 bytes"),
        (root_file("", 0o600), "visible ASCII"),
        (missing.as_str(), "cannot read"),
    ];
    for (file, expected) in rows {
        let addr = format!("127.0.0.1:{}", free_port());
        let own = ["--id", "1", "--http-addr", &addr, "--data-dir", &data_dir, "--root-token-file", file];
        let output = command(own).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{stderr}");
        assert!(stderr.contains(expected) && !stderr.contains(ROOT), "{stderr}");
        assert!(!directory.path().join("node-1").exists(), "nothing is touched");
    }
}

/// The commands create, list and revoke tokens, and send one; the token is not among the arguments.
#[tokio::test]
async fn auth_commands() {
    let cluster = secured("auth-cli", &[1], CALM).await;
    let root = root_file(ROOT, 0o600);
    let run = |arguments: &[&str], token_file: &str| {
        let own = ["--endpoints", cluster.addr(1), "--token-file", token_file];
        let output = command(arguments.iter().copied().chain(own)).output().unwrap();
        let text = [&output.stdout[..], &output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    let (code, secret) = run(&["token", "create", "app", "--role", "write", "--prefix", "app/", "--ttl", "1h"], root);
    assert!(code == Some(0) && secret.starts_with("rkv_") && secret.ends_with('\n'), "{secret}");
    let app = root_file(&secret, 0o600);
    assert_eq!(run(&["put", "app/key", "value"], app).0, Some(0));
    assert_eq!(run(&["get", "app/key"], app), (Some(0), "value".to_owned()));
    let (code, text) = run(&["put", "other", "value"], app);
    assert!(code != Some(0) && text.contains("role `write` for this key"), "{text}");
    for command in [&["doctor"][..], &["cluster", "status"], &["members"]] {
        let (code, text) = run(command, app);
        assert!([Some(0), Some(1)].contains(&code) && !text.contains("needs a token"), "{command:?}: {text}");
    }
    let (code, text) = run(&["token", "list"], root);
    assert!(code == Some(0) && text.contains("app/") && !text.contains(secret.trim()), "{text}");
    assert_ne!(run(&["token", "list"], app).0, Some(0));
    assert_eq!(run(&["token", "revoke", "app"], root).0, Some(0));
    assert_ne!(run(&["get", "app/key"], app).0, Some(0));
    let (code, text) = run(&["get", "app/key"], root_file(ROOT, 0o644));
    assert!(code == Some(2) && text.contains("mode 0644"), "{text}");
}

/// No secret is in a log, an error, a metric, an argument or a file.
///
/// Method: three nodes that log everything, requests with valid and invalid tokens on each, tokens that are created and
/// revoked, a snapshot and a join; then look for the secrets in all of these.
#[tokio::test]
async fn auth_keeps_secrets() {
    let flags = [CALM, OFTEN, &["--log-level", "trace"]].concat();
    let cluster = secured("auth-secrets", &ALL, &flags).await;
    let token = create(&cluster, json!({"name": "app", "role": "write"})).await;
    let unknown = "an-unknown-token-0123456789";
    let mut responses = String::new();
    for id in ALL {
        for number in 0..60 {
            let path = format!("/v1/kv/{number}");
            let answer = with(&cluster, id, &token, &Method::PUT, &path, "value").await;
            responses += &format!("{:?} {}\n", answer.headers, answer.text());
        }
        for path in ["/v1/kv/1", "/metrics", "/v1/metrics", "/v1/cluster", "/v1/tokens"] {
            for token in [unknown, &token, ROOT] {
                let answer = with(&cluster, id, token, &Method::GET, path, "").await;
                responses += &format!("{:?} {}\n", answer.headers, answer.text());
            }
        }
        let sent = with(&cluster, id, ROOT, &Method::GET, "/v1/snapshot", "").await;
        assert_eq!(sent.status, 200);
        responses += &sent.text();
    }
    cluster.delete(1, "/v1/tokens/app").await.done();
    let mut places = vec![("the responses".to_owned(), responses.into_bytes())];
    for id in ALL {
        let node = cluster.node(id);
        assert!(node.log().contains("TRACE"), "node {id} logs everything");
        places.push((format!("the log of node {id}"), node.log().into_bytes()));
        let process = format!("/proc/{}/cmdline", node.pid());
        places.push((process.clone(), fs::read(process).unwrap()));
        for path in files_below(&node.directory()) {
            places.push((path.display().to_string(), fs::read(&path).unwrap_or_default()));
        }
    }
    assert!(places.len() > 15);
    for secret in [ROOT, &token, unknown] {
        for (place, bytes) in &places {
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{secret} is in {place}");
        }
    }
}
