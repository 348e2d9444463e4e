//! Can a request be followed through the cluster in a tracing system?

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use prost::Message;
use reqwest::Method;

use crate::harness::{ALL, CALM, DEADLINE, StandIn, TestCluster, eventually, others, respond, run};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// A span as a collector receives it.
#[derive(Clone, Debug)]
struct Received {
    /// The `--id` of the node.
    node: String,
    name: String,
    trace: String,
    id: String,
    parent: String,
    attributes: BTreeMap<String, String>,
}

/// A collector, and the spans that it has received.
fn collector() -> (StandIn, Arc<Mutex<Vec<Received>>>) {
    let received = Arc::<Mutex<Vec<Received>>>::default();
    let sink = received.clone();
    let collector = StandIn::start(move |path, body, stream| {
        assert_eq!(path, "/v1/traces");
        sink.lock().unwrap().extend(spans_of(&ExportTraceServiceRequest::decode(body).unwrap()));
        respond(stream, "200 OK", b"");
    });
    (collector, received)
}

fn spans_of(message: &ExportTraceServiceRequest) -> Vec<Received> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let texts = |attributes: &[opentelemetry_proto::tonic::common::v1::KeyValue]| {
        let text = |value: &Value| match value {
            Value::StringValue(text) => text.clone(),
            Value::IntValue(number) => number.to_string(),
            other => panic!("{other:?}"),
        };
        let text_of = |it: &opentelemetry_proto::tonic::common::v1::KeyValue| {
            text(it.value.as_ref().unwrap().value.as_ref().unwrap())
        };
        attributes.iter().map(|it| (it.key.clone(), text_of(it))).collect::<BTreeMap<_, _>>()
    };
    let mut spans = Vec::new();
    for of_node in &message.resource_spans {
        let resource = texts(&of_node.resource.as_ref().unwrap().attributes);
        assert_eq!(resource["service.name"], "raft-key-value");
        for span in of_node.scope_spans.iter().flat_map(|scope| &scope.spans) {
            spans.push(Received {
                node: resource["service.instance.id"].clone(),
                name: span.name.clone(),
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                attributes: texts(&span.attributes),
            });
        }
    }
    spans
}

fn flags(endpoint: &str, ratio: &'static str) -> Vec<&'static str> {
    let endpoint: &'static str = format!("http://{endpoint}").leak();
    CALM.iter().copied().chain(["--otlp-endpoint", endpoint, "--otlp-sample-ratio", ratio]).collect()
}

/// A request that its client traces has a span on the node that received it, and one below that on the leader. Spans
/// have the route, the status and the times, but not the key. Other requests have no span.
///
/// Method: trace nothing by default. Through a follower, write without the header, and with it; with one that is not
/// valid, with a long one, and with two. Stop the nodes, which sends their spans.
#[tokio::test]
async fn a_traced_request_has_a_span_on_each_node() {
    let (collector, received) = collector();
    let mut cluster = TestCluster::form("traces", &ALL, &flags(&collector.addr, "0")).await;
    let leader = cluster.leader_of(&ALL).await;
    let follower = others(leader)[0];
    let long = format!("{PARENT}{}", "0".repeat(4000));
    for headers in [
        &[][..],
        &[("traceparent", PARENT)],
        &[("traceparent", "00-nonsense-01")],
        &[("traceparent", &long)],
        &[("traceparent", PARENT), ("traceparent", PARENT)],
    ] {
        let answer = cluster.v1(follower, Method::PUT, "/v1/kv/sEcReT", headers, "v").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    for id in ALL {
        assert_eq!(cluster.node_mut(id).stop().await, Some(0));
    }
    let spans = received.lock().unwrap().clone();
    let of = |node: u64| spans.iter().find(|span| span.node == node.to_string()).unwrap_or_else(|| panic!("{spans:?}"));
    let (first, second) = (of(follower), of(leader));
    assert_eq!(spans.len(), 2, "{spans:?}");
    assert_eq!((first.trace.as_str(), first.parent.as_str()), (&PARENT[3..35], &PARENT[36..52]));
    assert_eq!((&second.trace, &second.parent), (&first.trace, &first.id));
    for (span, part) in [(first, "rkv.leader_us"), (second, "rkv.proposal_us")] {
        assert_eq!(span.name, "PUT /v1/kv/{key}");
        assert_eq!(span.attributes["http.route"], "/v1/kv/{key}");
        assert_eq!(span.attributes["http.request.method"], "PUT");
        assert_eq!(span.attributes["http.response.status_code"], "200");
        assert!(span.attributes[part].parse::<u64>().unwrap() > 0, "{span:?}");
        assert!(!format!("{span:?}").contains("sEcReT"), "{span:?}");
    }
    assert_eq!(first.attributes["rkv.request_id"], second.attributes["rkv.request_id"]);
}

/// With a ratio of 1, each request is traced, with a trace of its own. RPCs are not.
///
/// Method: writes to the leader, and a request for a route that does not exist.
#[tokio::test]
async fn every_request_can_be_traced() {
    const WRITES: usize = 20;
    let (collector, received) = collector();
    let mut cluster = TestCluster::form("traces-all", &[1, 2], &flags(&collector.addr, "1")).await;
    let leader = cluster.leader_of(&[1, 2]).await;
    for _ in 0..WRITES {
        assert_eq!(cluster.put(leader, "/v1/kv/a", "v").await.status, 200);
    }
    let answer = cluster.http().request(Method::GET, cluster.addr(leader), "/sEcReT", &[], "").await.unwrap();
    assert_eq!(answer.status, 404);
    for id in [1, 2] {
        assert_eq!(cluster.node_mut(id).stop().await, Some(0));
    }
    let spans = received.lock().unwrap().clone();
    let mut traces: Vec<_> =
        spans.iter().filter(|span| span.name.starts_with("PUT ")).map(|span| &span.trace).collect();
    traces.sort();
    traces.dedup();
    assert_eq!(traces.len(), WRITES, "{spans:?}");
    assert!(spans.iter().any(|span| span.name == "other other"), "{spans:?}");
    assert!(spans.iter().all(|span| !span.name.contains("/raft-") && !format!("{span:?}").contains("sEcReT")));
}

/// A collector that never responds holds up no request and no stop, and the log says once that traces are dropped.
///
/// Method: a collector that reads requests and does not answer, and one that refuses connections. Write more than the
/// queue holds.
#[tokio::test]
async fn a_dead_collector_holds_up_nothing() {
    let silent = StandIn::start(|_, _, _| std::thread::sleep(DEADLINE * 2));
    let refusing = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for endpoint in [&silent.addr, &refusing] {
        let mut cluster = TestCluster::form("traces-dead", &[1], &flags(endpoint, "1")).await;
        cluster.write_many(1, "k", 3000).await;
        eventually("the log says that traces are dropped", DEADLINE, async || {
            let log = cluster.node(1).log();
            if log.contains("traces cannot be sent") { Ok(()) } else { Err(log) }
        })
        .await;
        cluster.write_many(1, "l", 1000).await;
        assert_eq!(cluster.node_mut(1).stop().await, Some(0));
        let log = cluster.node(1).log();
        assert_eq!(log.matches("traces cannot be sent").count(), 1, "{log}");
    }
}

/// A URL that traces cannot be sent to, and a ratio that is none, are rejected before anything starts.
#[tokio::test]
async fn invalid_settings_are_rejected() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().to_str().unwrap();
    for (flag, value) in [
        ("--otlp-endpoint", "collector:4318"),
        ("--otlp-endpoint", "https://collector"),
        ("--otlp-endpoint", "http://"),
        ("--otlp-endpoint", "http://user:word@collector"),
        ("--otlp-endpoint", "http://collector/?token=1"),
        ("--otlp-sample-ratio", "1.5"),
        ("--otlp-sample-ratio", "-1"),
        ("--otlp-sample-ratio", "NaN"),
    ] {
        let flag_and_value = format!("{flag}={value}");
        let ended = run(&["--id", "1", "--http-addr", "127.0.0.1:0", "--data-dir", data, &flag_and_value], &[]);
        assert_eq!(ended.code, Some(2), "{flag_and_value}: {}", ended.stderr);
        assert!(ended.stderr.contains(flag), "{flag_and_value}: {}", ended.stderr);
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}
