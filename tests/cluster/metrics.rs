//! Do `/v1/metrics` and `/metrics` say what a node does, in the formats of Prometheus, whatever clients send?

use std::collections::{BTreeMap, BTreeSet};

use raft_key_value::level::Level;
use reqwest::Method;

use crate::harness::{ALL, CALM, DEADLINE, Http, TestCluster, eventually, others};

/// The samples of a text by their name with labels. Panics unless the text is in the Prometheus format, with `HELP` and
/// `TYPE` before each family.
fn samples_of(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let (mut helped, mut family, mut kind) = (String::new(), String::new(), String::new());
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap();
            assert!(help.len() > 3, "{line}");
            helped = name.to_owned();
        } else if let Some(described) = line.strip_prefix("# TYPE ") {
            let (name, found) = described.split_once(' ').unwrap();
            assert_eq!(name, helped, "its help comes before its type: {line}");
            assert!(["counter", "gauge", "histogram"].contains(&found), "{line}");
            assert_eq!(found == "counter", name.ends_with("_total"), "{line}");
            (family, kind) = (name.to_owned(), found.to_owned());
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            let suffix = name.strip_prefix(&family).unwrap_or_else(|| panic!("{line} is not in {family}"));
            let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(name.starts_with("rkv_") && suffixes.contains(&suffix), "{line}");
            let former = samples.insert(series.to_owned(), value.parse().unwrap());
            assert_eq!(former, None, "{series} is there twice");
        }
    }
    samples
}

async fn scrape(cluster: &TestCluster, id: u64) -> BTreeMap<String, f64> {
    let answer = cluster.get(id, "/v1/metrics").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "text/plain; version=0.0.4; charset=utf-8"));
    samples_of(&answer.text())
}

/// Waits until a series has a value.
async fn series_is(cluster: &TestCluster, id: u64, series: &str, value: f64) {
    eventually(&format!("{series} of node {id} is {value}"), DEADLINE, async || {
        let found = scrape(cluster, id).await.get(series).copied();
        if found == Some(value) { Ok(()) } else { Err(found) }
    })
    .await;
}

/// The metrics count requests, entries, keys and members, and the buckets of each histogram add up.
///
/// Method: three nodes and known requests. Then kill a follower, and compare what the leader says of it.
#[tokio::test]
async fn metrics_say_what_happened() {
    let mut cluster = TestCluster::form("metrics", &ALL, CALM).await;
    let leader = cluster.leader_of(&ALL).await;
    for number in 0..7 {
        cluster.put(leader, &format!("/v1/kv/key-{number}"), "12345").await.done();
    }
    cluster.put(leader, "/v1/kv/key-0", "123").await.done();
    cluster.delete(leader, "/v1/kv/key-1").await.done();
    assert_eq!(cluster.get(leader, "/v1/kv/missing").await.status, 404);
    cluster.all_applied(&ALL).await;

    let key = |method: &str, status: &str| {
        format!(r#"rkv_http_requests_total{{method="{method}",route="/v1/kv/{{key}}",status="{status}"}}"#)
    };
    series_is(&cluster, leader, &key("PUT", "2xx"), 8.0).await;
    let samples = scrape(&cluster, leader).await;
    for (series, value) in [
        (key("DELETE", "2xx").as_str(), 1.0),
        (&key("GET", "4xx"), 1.0),
        ("rkv_store_keys", 6.0),
        ("rkv_store_bytes", 6.0 * 5.0 + 5.0 * 5.0 + 3.0),
        ("rkv_store_revision", 9.0),
        ("rkv_store_format_level", f64::from(Level::NEWEST.0)),
        ("rkv_raft_voters", 3.0),
        ("rkv_raft_voters_reachable", 3.0),
        ("rkv_raft_failures_tolerated", 1.0),
        ("rkv_raft_leader_id", leader as f64),
        ("rkv_raft_is_leader", 1.0),
        (r#"rkv_ready{check="leader"}"#, 1.0),
        ("rkv_raft_proposal_duration_seconds_count", 9.0),
        ("rkv_disk_is_full", 0.0),
    ] {
        assert_eq!(samples.get(series), Some(&value), "{series}");
    }
    for (series, count) in samples.iter().filter(|(series, _)| series.contains("_count")) {
        let bucket = match series.replace("_count", "_bucket").strip_suffix('}') {
            Some(labels) => format!(r#"{labels},le="+Inf"}}"#),
            None => series.replace("_count", "_bucket") + r#"{le="+Inf"}"#,
        };
        assert_eq!(samples.get(&bucket), Some(count), "{bucket}");
    }
    for more in [
        "rkv_raft_elections_total",
        "rkv_raft_leader_changes_total",
        "rkv_log_sync_duration_seconds_count",
        "rkv_process_cpu_seconds_total",
        "rkv_disk_free_bytes",
    ] {
        assert!(samples.get(more).is_some_and(|value| *value > 0.0), "{more}: {:?}", samples.get(more));
    }
    let applied = samples["rkv_raft_applied_index"];
    for id in others(leader) {
        series_is(&cluster, leader, &format!(r#"rkv_raft_peer_lag_entries{{peer="{id}"}}"#), 0.0).await;
        let samples = scrape(&cluster, id).await;
        assert_eq!(samples["rkv_raft_is_leader"], 0.0);
        assert_eq!((samples["rkv_raft_leader_id"], samples["rkv_raft_applied_index"]), (leader as f64, applied));
        assert!(!samples.contains_key("rkv_raft_voters_reachable"), "only the leader knows");
    }

    let lost = others(leader)[0];
    cluster.kill(lost);
    series_is(&cluster, leader, "rkv_raft_failures_tolerated", 0.0).await;
    cluster.put(leader, "/v1/kv/key-8", "v").await.done();
    series_is(&cluster, leader, &format!(r#"rkv_raft_peer_lag_entries{{peer="{lost}"}}"#), 1.0).await;
}

/// What clients send adds no series: unknown paths and methods, keys, and members that do not exist.
///
/// Method: count the series after one request of each kind, and again after many.
#[tokio::test]
async fn clients_choose_no_labels() {
    let cluster = TestCluster::form("metrics-labels", &[1], CALM).await;
    let send = async |number: usize| {
        let brew = Method::from_bytes(format!("BREW{number}").as_bytes()).unwrap();
        for (method, path) in [
            (Method::GET, format!("/unknown-{number}")),
            (Method::GET, format!("/v1/unknown-{number}")),
            (Method::GET, format!("/v1/kv/{number}/{number}?consistency=stale")),
            (Method::DELETE, format!("/v1/cluster/members/{}", 1000 + number)),
            (Method::GET, format!("/v1/cluster/unknown-{number}")),
            (brew, "/write".to_owned()),
        ] {
            cluster.http().request(method, cluster.addr(1), &path, &[], "").await.unwrap();
        }
        scrape(&cluster, 1).await;
    };
    send(0).await;
    let other = r#"rkv_http_requests_total{method="other",route="other",status="4xx"}"#;
    series_is(&cluster, 1, other, 4.0).await;
    // A scrape counts itself only in the next text.
    eventually("the scrapes are counted", DEADLINE, async || {
        let samples = scrape(&cluster, 1).await;
        let scrapes = r#"rkv_http_requests_total{method="GET",route="/v1/metrics",status="2xx"}"#;
        if samples.contains_key(scrapes) { Ok(()) } else { Err(samples.len()) }
    })
    .await;
    let before: BTreeSet<String> = scrape(&cluster, 1).await.into_keys().collect();
    for number in 1..30 {
        send(number).await;
    }
    series_is(&cluster, 1, other, 120.0).await;
    let after: BTreeSet<String> = scrape(&cluster, 1).await.into_keys().collect();
    assert_eq!(after, before);
}

/// `/metrics` returns JSON unless `Accept` prefers a format of Prometheus, on every node, also on one that belongs to
/// no cluster.
#[tokio::test]
async fn accept_decides_the_format() {
    let cluster = TestCluster::start("metrics-accept", &[1], CALM).await;
    for (accept, content_type, start) in [
        (None, "application/json", r#"{"Ok":{"#),
        (Some("*/*"), "application/json", r#"{"Ok":{"#),
        (Some("text/plain"), "text/plain; version=0.0.4; charset=utf-8", "# HELP rkv_"),
        (
            Some("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"),
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            "# HELP rkv_",
        ),
    ] {
        let headers: Vec<_> = accept.map(|accept| ("accept", accept)).into_iter().collect();
        let answer = cluster.http().request(Method::GET, cluster.addr(1), "/metrics", &headers, "").await.unwrap();
        assert_eq!((answer.status, answer.header("content-type")), (200, content_type), "{accept:?}");
        assert!(answer.text().starts_with(start), "{accept:?}: {}", answer.text());
        assert_eq!(answer.text().ends_with("# EOF\n"), content_type.contains("openmetrics"), "{accept:?}");
        assert_eq!(answer.header("vary"), "Accept");
    }
    let samples = samples_of(&cluster.http().get(cluster.addr(1), "/v1/metrics").await.unwrap().text());
    assert_eq!((samples["rkv_raft_leader_id"], samples[r#"rkv_ready{check="leader"}"#]), (0.0, 0.0));
}

/// Every metric is described in the documents, and nothing else is.
///
/// Method: compare the names in the table of docs/operations.md with those that a leader with TLS returns.
#[tokio::test]
async fn every_metric_is_documented() {
    let cluster = TestCluster::form_tls("metrics-documents", &[1], CALM).await;
    // Log time is known once a leader has written.
    cluster.put(1, "/v1/kv/a", "v").await.done();
    let text = cluster.get(1, "/v1/metrics").await.text();
    let served: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let document = include_str!("../../docs/operations.md");
    let rows = document.lines().filter(|line| line.starts_with("| `rkv_"));
    let documented: BTreeSet<&str> = rows
        .flat_map(|row| row.split(" | ").next().unwrap().split('`').filter(|part| part.starts_with("rkv_")))
        .collect();
    let documented: BTreeSet<&str> = documented.iter().map(|name| name.split('{').next().unwrap()).collect();
    assert_eq!(documented, served);
}

/// Many clients that scrape at once get the text, while others write. Where the system allows few open files, the node
/// closes some of their connections, and they try again.
///
/// Method: 300 clients, while another one writes.
#[tokio::test]
async fn many_scrape_at_once() {
    let cluster = TestCluster::form("metrics-crowd", &[1], CALM).await;
    let scrapes = (0..300).map(async |_| {
        let text = eventually("a scrape among many", DEADLINE, async || {
            let sent = Http::new().get(cluster.addr(1), "/v1/metrics").await;
            let answer = sent.map_err(|error| format!("{error:?}"))?;
            if answer.status == 200 { Ok(answer.text()) } else { Err(answer.text()) }
        })
        .await;
        assert!(samples_of(&text).contains_key("rkv_raft_term"));
    });
    let writes = async {
        for number in 0..50 {
            cluster.put(1, &format!("/v1/kv/{number}"), "v").await.done();
        }
    };
    futures_util::future::join(futures_util::future::join_all(scrapes), writes).await;
}
