//! Can one request be followed through the cluster by its id, and does a node say where the time of a slow one went?

use std::collections::BTreeSet;
use std::time::Duration;

use reqwest::Method;
use serde_json::json;

use crate::harness::{ALL, CALM, DEADLINE, TestCluster, eventually};

const ID: &str = "x-request-id";

/// Every response has an id: the client's if it is valid, otherwise one that the node makes.
///
/// Method: requests that succeed and that fail, with ids of every kind.
#[tokio::test]
async fn every_response_has_an_id() {
    let cluster = TestCluster::form("request-ids", &[1], CALM).await;
    let mut made = BTreeSet::new();
    let longest = "x".repeat(128);
    let too_long = "x".repeat(129);
    for (method, path, status) in [
        (Method::PUT, "/v1/kv/a", 200),
        (Method::GET, "/v1/kv/missing", 404),
        (Method::GET, "/v1/nothing", 404),
        (Method::GET, "/metrics", 200),
        (Method::GET, "/livez", 200),
        (Method::POST, "/write", 400),
        (Method::DELETE, "/write", 405),
    ] {
        let send = async |headers: &[(&str, &str)]| {
            let answer = cluster.http().request(method.clone(), cluster.addr(1), path, headers, "").await.unwrap();
            assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
            assert_eq!(answer.headers.get_all(ID).iter().count(), 1, "{method} {path}");
            answer.header(ID).to_owned()
        };
        for id in ["a", "4bf92f35-77b3-4da6-a3ce-929d0e0e4736", "a:b/c=d", &longest] {
            assert_eq!(send(&[(ID, id)]).await, id, "{method} {path}");
        }
        for headers in [&[][..], &[(ID, "")], &[(ID, "a b")], &[(ID, &too_long)], &[(ID, "a"), (ID, "b")]] {
            let id = send(headers).await;
            assert!(id.len() > 16 && id.len() < 40 && !id.contains('x'), "{method} {path} {headers:?}: {id}");
            assert!(made.insert(id), "{made:?}");
        }
    }
}

/// A slow request is logged with its id on each node that it passes, without its key, and with where the time went.
/// Of many slow requests, a node logs one and counts the others.
///
/// Method: voters 1 and 2, and a learner, which forwards the writes. While node 2 is paused, no write is committed.
#[tokio::test]
async fn slow_requests_are_explained() {
    const REQUESTS: usize = 20;
    const PAUSE: Duration = Duration::from_millis(1500);
    let flags: Vec<&str> = CALM.iter().copied().chain(["--slow-request-ms", "1000"]).collect();
    let cluster = TestCluster::start("slow-requests", &ALL, &flags).await;
    let members = json!([[1, cluster.addr(1)], [2, cluster.addr(2)]]);
    cluster.post(1, "/init", members.to_string()).await.ok().unwrap();
    assert_eq!(cluster.leader_of(&[1, 2]).await, 1);
    cluster.add_learner(1, 3).await;
    cluster.leader_of(&ALL).await;

    cluster.node(2).pause();
    let writes = (0..REQUESTS).map(async |number| {
        let id = format!("slow-{number}");
        let answer = cluster.v1(3, Method::PUT, "/v1/kv/sEcReT", &[(ID, &id)], "v").await;
        assert_eq!((answer.status, answer.header(ID)), (200, id.as_str()), "{}", answer.text());
    });
    let resume = async {
        tokio::time::sleep(PAUSE).await;
        cluster.node(2).resume();
    };
    futures_util::future::join(futures_util::future::join_all(writes), resume).await;

    for (id, part) in [(1, "proposal_ms"), (3, "leader_ms")] {
        let log = eventually(&format!("node {id} logs a slow request"), DEADLINE, async || {
            let log = cluster.node(id).log();
            if log.contains("slow request") { Ok(log) } else { Err(log) }
        })
        .await;
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("slow request")).collect();
        assert_eq!(lines.len(), 1, "{log}");
        let field = |name: &str| lines[0].split(&format!(" {name}=")).nth(1).unwrap().split(' ').next().unwrap();
        assert!(field("request_id").starts_with("\"slow-"), "{}", lines[0]);
        assert_eq!((field("method"), field("route"), field("status")), ("\"PUT\"", "\"/v1/kv/{key}\"", "200"));
        let number = |name| field(name).parse::<u64>().unwrap();
        assert!(number("took_ms") >= 1000 && number(part) >= 900, "{}", lines[0]);
        assert!(!log.contains("sEcReT"), "{log}");
        let slow = cluster.get(id, "/v1/metrics").await.text();
        let slow = slow.lines().find(|line| line.starts_with("rkv_http_slow_requests_total ")).unwrap().to_owned();
        assert_eq!(slow, format!("rkv_http_slow_requests_total {REQUESTS}"));
    }
}
