//! Single keys: put, get, delete and their conditions, on any node.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{ALL, Answer, CALM, TestCluster, others, path_of};

fn etag(revision: u64) -> String {
    format!("\"{revision}\"")
}

/// Asserts that a write succeeded, and returns its revision and version.
#[track_caller]
fn written(answer: &Answer) -> (u64, u64) {
    let body = answer.done();
    assert_eq!(body["revision"], answer.revision(), "{answer:?}");
    assert_eq!(answer.header("etag"), etag(answer.revision()), "{answer:?}");
    assert_eq!(answer.header("raft-replayed"), "");
    assert_eq!(body.as_object().unwrap().len(), 2, "{body}");
    (answer.revision(), body["version"].as_u64().unwrap())
}

/// A write through one node is visible at once on every other, with the key's full metadata.
///
/// Method: for each pair of nodes, put through one and read on the other, as JSON, as bytes and by HEAD, new keys and
/// changed ones. The store's revision grows by one with each change, and never decreases between responses.
#[tokio::test]
async fn a_write_is_read_at_once_on_every_node() {
    let cluster = TestCluster::form("kv-pairs", &ALL, CALM).await;
    let mut revision = 0;
    for writer in ALL {
        for reader in ALL {
            let key = format!("from {writer}/to {reader}");
            let path = path_of(&key);
            for version in 1..=3 {
                let value = format!("version {version}, “ü”\n");
                assert_eq!(written(&cluster.put(writer, &path, value.clone()).await), (revision + version, version));
                let found = cluster.get(reader, &path).await;
                assert_eq!(found.revision(), revision + version, "on node {reader}");
                assert_eq!(found.number("raft-node"), reader, "a node must serve reads itself");
                assert_eq!(found.header("etag"), etag(revision + version));
                let create_revision = revision + 1;
                let expected = json!({"key": key, "value": value, "revision": revision + version,
                    "create_revision": create_revision, "version": version});
                assert_eq!(found.done(), expected);
            }
            revision += 3;
            let raw = cluster.get(reader, &format!("{path}?raw")).await;
            assert_eq!(raw.header("content-type"), "application/octet-stream");
            assert_eq!((raw.status, raw.text()), (200, "version 3, “ü”\n".to_owned()));
            for query in ["", "?raw"] {
                let whole = cluster.get(reader, &format!("{path}{query}")).await;
                let head = cluster.v1(reader, Method::HEAD, &format!("{path}{query}"), &[], "").await;
                assert_eq!((head.status, head.body.len()), (200, 0));
                for name in ["etag", "content-type", "raft-revision", "raft-node", "raft-term", "content-length"] {
                    assert_eq!(head.header(name), whole.header(name), "{name}");
                }
                assert_eq!(head.header("content-length"), whole.body.len().to_string());
            }
            let deleted = cluster.delete(writer, &path).await;
            revision += 1;
            assert_eq!(deleted.done(), json!({"revision": revision, "deleted": 1}));
            let missing = cluster.get(reader, &path).await;
            assert_eq!(missing.assert_rejected(404, "key_not_found")["revision"], revision);
            let again = cluster.delete(writer, &path).await;
            assert_eq!(
                again.done(),
                json!({"revision": revision, "deleted": 0}),
                "a delete without effect must not be a change"
            );
        }
    }
}

/// Values are bytes: they are returned unchanged, as text if they are UTF-8 and otherwise as base64.
///
/// Method: put each value through a follower and read it on all nodes, as JSON, as bytes, in a listing and by the
/// original route. One value looks like an error of the HTTP library.
#[tokio::test]
async fn values_are_bytes() {
    let cluster = TestCluster::form("kv-bytes", &ALL, CALM).await;
    let follower = 1 + cluster.leader_of(&ALL).await % 3;
    let every_byte: Vec<u8> = (0..=255).collect();
    let error = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_vec();
    let base64 = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+P0BBQkNERUZHSElKS0xN\
        Tk9QUVJTVFVWV1hZWltcXV5fYGFiY2RlZmdoaWprbG1ub3BxcnN0dXZ3eHl6e3x9fn+AgYKDhIWGh4iJiouMjY6PkJGSk5SVlpeYmZqb\
        nJ2en6ChoqOkpaanqKmqq6ytrq+wsbKztLW2t7i5uru8vb6/wMHCw8TFxsfIycrLzM3Oz9DR0tPU1dbX2Nna29zd3t/g4eLj5OXm5+jp\
        6uvs7e7v8PHy8/T19vf4+fr7/P3+/w==";
    let rows: Vec<(&str, Vec<u8>, Option<&str>)> = vec![
        ("nothing", vec![], None),
        ("text", "ü\u{10ffff}\0\r\n\"\\".into(), None),
        ("every byte", every_byte, Some(base64)),
        ("one byte", vec![0xff], Some("/w==")),
        ("cut off", vec![b'a', 0xe2, 0x82], Some("YeKC")),
        ("an error", error.clone(), None),
        ("a long error", [vec![b'v'; 300_000], error].concat(), None),
        ("large", vec![b'v'; 1 << 20], None),
    ];
    for (key, value, encoded) in &rows {
        let path = path_of(key);
        written(&cluster.put(follower, &path, value.clone()).await);
        for id in ALL {
            let found = cluster.get(id, &path).await.done();
            match encoded {
                None => assert_eq!(
                    (found["value"].as_str().map(str::as_bytes), &found["encoding"]),
                    (Some(&value[..]), &Value::Null)
                ),
                Some(encoded) => assert_eq!((&found["value"], &found["encoding"]), (&json!(encoded), &json!("base64"))),
            }
            let raw = cluster.get(id, &format!("{path}?raw")).await;
            assert!((raw.status, &raw.body) == (200, value), "{key} on node {id}: {} bytes came", raw.body.len());
            let text = String::from_utf8_lossy(value).into_owned();
            assert_eq!(cluster.consistent_read(id, key).await, Ok(text), "by the original route");
        }
    }
    let listed = cluster.list_all(follower, "prefix=one").await;
    assert_eq!((&listed[0]["value"], &listed[0]["encoding"]), (&json!("/w=="), &json!("base64")));
}

/// A condition decides whether a write is applied, on whichever node it arrives.
///
/// Method: through the leader and a follower, send each condition with a put, a touch and a delete, of an existing and
/// of a missing key. A failed condition returns 412 with the current revision, and changes nothing.
#[tokio::test]
async fn conditions_are_kept_on_every_node() {
    let cluster = TestCluster::form("kv-conditions", &ALL, CALM).await;
    let leader = cluster.leader_of(&ALL).await;
    for id in [leader, 1 + leader % 3] {
        let path = path_of(&format!("through {id}"));
        let put = async |name: &str, tag: &str| cluster.v1(id, Method::PUT, &path, &[(name, tag)], "v").await;
        let delete = async |name: &str, tag: &str| cluster.v1(id, Method::DELETE, &path, &[(name, tag)], "").await;
        let touch_path = format!("{path}/touch?ttl=1h");
        let touch = async |name: &str, tag: &str| cluster.v1(id, Method::POST, &touch_path, &[(name, tag)], "").await;

        assert!(put("if-match", "*").await.assert_rejected(412, "condition_failed")["current_revision"].is_null());
        assert!(put("if-match", "\"1\"").await.assert_rejected(412, "condition_failed")["current_revision"].is_null());
        let (first, version) = written(&put("if-none-match", "*").await);
        assert_eq!(version, 1);
        let failed = put("if-none-match", "*").await;
        assert_eq!(failed.assert_rejected(412, "condition_failed")["current_revision"], first);
        assert_eq!(failed.header("etag"), etag(first));

        assert_eq!(written(&put("if-match", &etag(first)).await), (first + 1, 2));
        assert_eq!(written(&put("if-match", &(first + 1).to_string()).await), (first + 2, 3), "without quotes");
        assert_eq!(written(&put("if-match", "*").await), (first + 3, 4));
        for answer in [
            put("if-match", &etag(first)).await,
            delete("if-match", &etag(first + 2)).await,
            touch("if-match", "9").await,
        ] {
            assert_eq!(answer.assert_rejected(412, "condition_failed")["current_revision"], first + 3);
            assert_eq!(answer.header("etag"), etag(first + 3));
            assert_eq!(answer.revision(), first + 3, "the revision must not change");
        }
        let touched = touch("if-match", &etag(first + 3)).await;
        assert_eq!(touched.done(), json!({"revision": first + 3, "version": 4, "expires_in_ms": 3_600_000}));
        assert_eq!(
            delete("if-none-match", "*").await.assert_rejected(412, "condition_failed")["current_revision"],
            first + 3
        );
        assert_eq!(delete("if-match", &etag(first + 3)).await.done(), json!({"revision": first + 4, "deleted": 1}));
        assert_eq!(delete("if-none-match", "*").await.done(), json!({"revision": first + 4, "deleted": 0}));

        let (again, version) = written(&put("if-none-match", "*").await);
        assert_eq!(version, 1, "a key that is created again starts at version 1");
        let found = cluster.get(id, &path).await.done();
        assert_eq!((&found["create_revision"], &found["revision"]), (&json!(again), &json!(again)));
    }
}

/// Tags are accepted in every form that proxies and clients produce: weak, with a suffix, in lists, and over several
/// header lines.
///
/// Method: through the leader and a follower, send puts, touches, deletes and reads with each form of a tag that names
/// the key's revision. They must succeed, or return 304 for a read with If-None-Match. Also send several revisions of
/// which one or none is the key's. A repeated request with such a list gets its first response.
#[tokio::test]
async fn tags_are_accepted_in_every_form() {
    let cluster = TestCluster::form("kv-tags", &ALL, CALM).await;
    let leader = cluster.leader_of(&ALL).await;
    for id in [leader, 1 + leader % 3] {
        let path = path_of(&format!("through {id}"));
        let touch_path = format!("{path}/touch?ttl=1h");
        let send = async |method: Method, path: &str, headers: &[(&str, String)]| {
            let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            cluster.v1(id, method, path, &headers, "").await
        };
        let (mut revision, _) = written(&cluster.put(id, &path, "v").await);
        let forms: [fn(u64) -> Vec<String>; 8] = [
            |revision| vec![format!("W/\"{revision}\"")],
            |revision| vec![format!("\"{revision}-gzip\"")],
            |revision| vec![format!("W/\"{revision}-br\"")],
            |revision| vec![format!("\"1-x\", \"{revision}\"")],
            |revision| vec![format!("\"{revision}\",\"{}\"", revision + 100)],
            |revision| vec![format!("\"a,b\",, W/\"{}\" , {revision}, \"9-gzip\"", revision + 7)],
            |revision| vec![format!("\"{}\"", revision + 1), format!("\"{revision}\"")],
            |_| vec!["*".to_owned(), " ,".to_owned()],
        ];
        for form in forms {
            let lines = |name, revision| -> Vec<_> { form(revision).into_iter().map(|line| (name, line)).collect() };
            let touched = send(Method::POST, &touch_path, &lines("if-match", revision)).await;
            assert_eq!(touched.done()["revision"], revision, "{:?}", form(revision));
            assert_eq!(touched.header("etag"), etag(revision));
            for query in ["", "?raw"] {
                let read = format!("{path}{query}");
                assert_eq!(send(Method::GET, &read, &lines("if-match", revision)).await.status, 200);
                for method in [Method::GET, Method::HEAD] {
                    let same = send(method, &read, &lines("if-none-match", revision)).await;
                    assert_eq!((same.status, same.header("etag")), (304, etag(revision).as_str()));
                }
                let both = [lines("if-match", revision + 1000), lines("if-none-match", revision)].concat();
                let expected = if form(1)[0] == "*" { 304 } else { 412 };
                assert_eq!(send(Method::GET, &read, &both).await.status, expected, "If-Match is judged first");
            }
            let rejected = send(Method::PUT, &path, &lines("if-none-match", revision)).await;
            assert_eq!(rejected.assert_rejected(412, "condition_failed")["current_revision"], revision);

            let request = [lines("if-match", revision), vec![("idempotency-key", format!("{id} {revision}"))]].concat();
            let put = send(Method::PUT, &path, &request).await;
            let again = send(Method::PUT, &path, &request).await;
            assert_eq!((again.header("raft-replayed"), &again.body, again.status), ("true", &put.body, 200));
            let deleted = send(Method::DELETE, &path, &lines("if-match", written(&put).0)).await;
            assert_eq!(deleted.done(), json!({"revision": written(&put).0 + 1, "deleted": 1}));
            if form(1)[0] != "*" {
                let missing = send(Method::PUT, &path, &lines("if-match", revision)).await;
                assert!(missing.assert_rejected(412, "condition_failed")["current_revision"].is_null());
                let unless = send(Method::PUT, &path, &lines("if-none-match", revision)).await;
                assert_eq!(written(&unless).1, 1, "a missing key has none of these revisions");
                let touched = send(Method::POST, &touch_path, &lines("if-none-match", revision)).await;
                assert_eq!(touched.done()["version"], 1);
                cluster.delete(id, &path).await.done();
                let touched = send(Method::POST, &touch_path, &lines("if-none-match", revision)).await;
                touched.assert_rejected(404, "key_not_found");
            }
            (revision, _) = written(&cluster.put(id, &path, "v").await);
        }
        let excluded = [("if-match", "*".to_owned()), ("if-none-match", etag(revision + 1))];
        let (again, version) = written(&send(Method::PUT, &path, &excluded).await);
        assert_eq!((again, version), (revision + 1, 2), "the key exists, and has another revision");
        let opaque = [("if-none-match", "\"abc\", W/\"x\"".to_owned())];
        written(&send(Method::PUT, &path, &opaque).await);
        assert_eq!(send(Method::GET, &path, &opaque).await.status, 200, "a tag without a revision must match nothing");
    }
}

/// A tag of revision 0 matches no key, also none that is missing.
///
/// Method: writes to a missing key with `"0"`, alone and in a list.
#[tokio::test]
async fn a_missing_key_matches_no_tag() {
    let cluster = TestCluster::form("kv-tag-0", &[1], CALM).await;
    for tags in ["\"0\"", "\"0\", \"5\"", "0, W/\"0\", \"5-gzip\""] {
        let writes = [(Method::PUT, "k", "v"), (Method::DELETE, "k", ""), (Method::POST, "k/touch?ttl=1h", "")];
        for (method, path, body) in writes {
            let path = format!("/v1/kv/{path}");
            let answer = cluster.v1(1, method.clone(), &path, &[("if-match", tags)], body).await;
            assert!([404, 412].contains(&answer.status), "{method} {tags}: {}", answer.text());
        }
        cluster.get(1, "/v1/kv/k").await.assert_rejected(404, "key_not_found");
        let put = cluster.v1(1, Method::PUT, "/v1/kv/k", &[("if-none-match", tags)], "v").await;
        assert_eq!(written(&put).1, 1, "{tags}");
        cluster.delete(1, "/v1/kv/k").await.done();
    }
}

/// A reader that already has the current revision gets 304 without the value.
///
/// Method: read with `If-None-Match` on each node: 304 with the tag and no body while the tag matches, and 200 as soon
/// as another node has changed the key.
#[tokio::test]
async fn a_reader_that_is_up_to_date_gets_304() {
    let cluster = TestCluster::form("kv-304", &ALL, CALM).await;
    let (mut known, _) = written(&cluster.put(1, "/v1/kv/k", "0").await);
    for id in ALL {
        for query in ["", "?raw", "?consistency=stale"] {
            cluster.reaches(id, known).await;
            let headers = [("if-none-match", etag(known))];
            let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let path = format!("/v1/kv/k{query}");
            let same = cluster.v1(id, Method::GET, &path, &headers, "").await;
            assert_eq!((same.status, same.text().as_str()), (304, ""), "on node {id}");
            assert_eq!(same.header("etag"), etag(known));
            cluster.put(1, "/v1/kv/other", "changes the store, not the key").await;
            assert_eq!(cluster.v1(id, Method::GET, &path, &headers, "").await.status, 304);
            (known, _) = written(&cluster.put(1 + id % 3, "/v1/kv/k", format!("{id}{query}")).await);
            cluster.reaches(id, known).await;
            let changed = cluster.v1(id, Method::GET, &path, &headers, "").await;
            assert_eq!((changed.status, changed.header("etag")), (200, etag(known).as_str()));
        }
    }
}

/// A stale read returns the revision that it shows, and works where a linearizable read cannot.
///
/// Method: pause a follower, write, stop the other two nodes, and resume the follower. Its stale reads show the
/// revision it has, and its linearizable reads return 503.
#[tokio::test]
async fn a_stale_read_shows_its_revision() {
    let mut cluster = TestCluster::form("kv-stale", &ALL, CALM).await;
    let (old, _) = written(&cluster.put(1, "/v1/kv/k", "old").await);
    let leader = cluster.leader_of(&ALL).await;
    let follower = 1 + leader % 3;
    cluster.reaches(follower, old).await;
    cluster.node(follower).pause();
    let (new, _) = written(&cluster.put(leader, "/v1/kv/k", "new").await);
    for id in others(follower) {
        cluster.kill(id);
    }
    cluster.node(follower).resume();
    let stale = cluster.get(follower, "/v1/kv/k?consistency=stale").await;
    // An append sent before the pause may have been waiting for the follower.
    let (seen, value) = if stale.revision() == old { (old, "old") } else { (new, "new") };
    assert_eq!((stale.revision(), stale.header("etag")), (seen, etag(seen).as_str()));
    assert_eq!(stale.done()["value"], value);
    let listed = cluster.get(follower, "/v1/kv?consistency=stale").await;
    assert_eq!(listed.done()["revision"], listed.revision());
    let answer = cluster.http().get(cluster.addr(follower), "/v1/kv/k").await.unwrap();
    assert_eq!((answer.status, answer.header("raft-outcome")), (503, "not_applied"), "{}", answer.text());

    cluster.kill(follower);
    cluster.restart(follower).await;
    let alone = cluster.http().get(cluster.addr(follower), "/v1/kv/k?consistency=stale").await.unwrap();
    let error = alone.assert_rejected(503, "recovering");
    assert_eq!(error["retry_after_ms"], 1000);
    assert_eq!(alone.header("retry-after"), "1");
}

/// A follower forwards a request unchanged, and returns the leader's response.
///
/// Method: send requests with a query, conditions and an `Idempotency-Key` through a follower. Each must take effect,
/// and the response must name the leader. With `Raft-Forward: no`, the follower names the leader instead, for reads and
/// writes alike.
#[tokio::test]
async fn a_follower_forwards_everything() {
    let cluster = TestCluster::form("kv-passed-on", &ALL, CALM).await;
    let leader = cluster.leader_of(&ALL).await;
    let follower = 1 + leader % 3;
    let path = path_of("a/ü?&=+%/b");
    let headers = [("if-none-match", "*"), ("idempotency-key", "first")];
    let put = async || cluster.v1(follower, Method::PUT, &format!("{path}?ttl=1h"), &headers, "v").await;
    let (first, again) = (put().await, put().await);
    assert_eq!((first.number("raft-node"), again.number("raft-node")), (leader, leader));
    let (revision, _) = written(&first);
    assert_eq!((again.status, again.header("raft-replayed"), &again.body), (200, "true", &first.body));
    assert_eq!(again.header("etag"), etag(revision));
    let found = cluster.get(follower, &path).await.done();
    assert_eq!(found["key"], "a/ü?&=+%/b");
    let left = found["expires_in_ms"].as_u64().unwrap();
    assert!((3_500_000..=3_600_000).contains(&left), "{left} ms are left");

    let stay = [("raft-forward", "no")];
    for (method, path, body) in [
        (Method::GET, "/v1/kv/k", ""),
        (Method::GET, "/v1/kv", ""),
        (Method::GET, "/v1/watch", ""),
        (Method::PUT, "/v1/kv/k", "v"),
        (Method::DELETE, "/v1/kv/k", ""),
        (Method::DELETE, "/v1/kv?all", ""),
        (Method::POST, "/v1/kv/k/touch?ttl=1h", ""),
        (Method::POST, "/v1/txn", r#"{"success":[{"delete":{"key":"k"}}]}"#),
    ] {
        let answer = cluster.v1(follower, method, path, &stay, body).await;
        let error = answer.assert_rejected(421, "not_leader");
        assert_eq!(error["leader"], json!({"id": leader, "addr": cluster.addr(leader)}), "{path}");
        assert_eq!(answer.number("raft-node"), follower);
    }
}
