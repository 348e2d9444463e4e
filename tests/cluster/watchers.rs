//! Many watches on one node that writes at full speed.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::try_join_all;
use serde_json::{Value, json};

use crate::harness::{ALL, CALM, TestCluster, plain_client, raise_open_files};

const WATCHES: usize = 1000;
const WRITERS: usize = 48;
const WRITES: u64 = 3000;
/// How often a write changes several keys, or deletes.
const TXN_EVERY: u64 = 25;
const DELETE_EVERY: u64 = 10;

/// The events that the watches with one filter must see, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    count: usize,
    hash: u64,
}

/// A thousand watches on the leader each deliver every change that they watch, once and in order, while it writes at
/// full speed.
///
/// Method: 48 writers put, delete and change several keys at once, through all nodes. Half of the watches cover all
/// keys, the others one writer's keys each. The responses say which change has which revision. The last write changes a
/// key under each watched prefix and ends all streams. The first stream is compared with the responses, event by event,
/// and all others with its events under their prefix.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_watches_see_every_change_once() {
    raise_open_files(WATCHES as u64 + 500);
    let cluster = TestCluster::form("watchers", &ALL, CALM).await;
    let leader = cluster.leader_of(&ALL).await;

    let filters: Vec<String> = (0..WATCHES).map(filter_of).collect();
    let http = plain_client().build().unwrap();
    let opened = filters
        .iter()
        .map(|prefix| http.get(format!("http://{}/v1/watch?prefix={prefix}&from=1", cluster.addr(leader))).send());
    let streams = try_join_all(opened).await.unwrap();
    assert!(streams.iter().all(|stream| stream.status() == 200));
    let mut streams = filters.iter().cloned().zip(streams);
    let (_, first) = streams.next().unwrap();
    let first = tokio::spawn(read_to_the_end(first));
    let others: Vec<_> = streams.map(|(prefix, stream)| (prefix, tokio::spawn(seen_by(stream)))).collect();

    let expected = write_all(&cluster).await;
    let events = first.await.unwrap();
    let found: Vec<(u64, Value)> = events.iter().map(|event| parsed(event)).collect();
    let wanted: Vec<(u64, Value)> = expected
        .iter()
        .flat_map(|(revision, changes)| changes.iter().map(|change| (*revision, change.clone())))
        .collect();
    assert_eq!(found.len(), wanted.len());
    for (found, wanted) in found.iter().zip(&wanted) {
        assert_eq!(found, wanted);
    }

    for (prefix, seen) in others {
        let seen = seen.await.unwrap();
        let wanted = if prefix == "w/" { seen_in(&events) } else { seen_in(&only(&events, &prefix)) };
        assert_eq!(seen, wanted, "by a watch of {prefix}");
    }
}

/// The prefix of a watch: every other one covers all keys.
fn filter_of(number: usize) -> String {
    if number.is_multiple_of(2) { "w/".to_owned() } else { format!("w/{:02}/", (number / 2) % WRITERS) }
}

/// Writes, and returns the changes of each revision.
async fn write_all(cluster: &TestCluster) -> BTreeMap<u64, Vec<Value>> {
    let next = Arc::new(AtomicU64::new(0));
    let writers = (0..WRITERS).map(|writer| {
        let next = next.clone();
        let addr = cluster.addr(1 + writer as u64 % 3).to_owned();
        tokio::spawn(async move { write_some(&addr, writer, &next).await })
    });
    let mut changes = BTreeMap::new();
    for written in try_join_all(writers).await.unwrap() {
        for (revision, change) in written {
            assert!(changes.insert(revision, change).is_none(), "revision {revision} twice");
        }
    }
    // The last event of every stream, all at one revision.
    let keys: Vec<String> = (0..WRITERS).map(|writer| format!("w/{writer:02}/end")).collect();
    let (revision, change) = put_several(&plain_client().build().unwrap(), cluster.addr(1), &keys, "end").await;
    changes.insert(revision, change);
    changes
}

async fn write_some(addr: &str, writer: usize, next: &AtomicU64) -> Vec<(u64, Vec<Value>)> {
    let http = plain_client().build().unwrap();
    let mut written = Vec::new();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= WRITES {
            return written;
        }
        let key = format!("w/{writer:02}/{}", number % 7);
        let url = format!("http://{addr}/v1/kv/{key}");
        if number.is_multiple_of(TXN_EVERY) {
            let keys: Vec<String> = (0..3).map(|other| format!("w/{:02}/txn", (writer + other) % WRITERS)).collect();
            written.push(put_several(&http, addr, &keys, &number.to_string()).await);
        } else if number.is_multiple_of(DELETE_EVERY) {
            let answer = answer_of(http.delete(url)).await;
            if answer["deleted"] == 1 {
                let revision = answer["revision"].as_u64().unwrap();
                written.push((revision, vec![json!({"type": "delete", "key": key})]));
            }
        } else {
            let value = format!("{number}");
            let answer = answer_of(http.put(url).body(value.clone())).await;
            let change = json!({"type": "put", "key": key, "value": value});
            written.push((answer["revision"].as_u64().unwrap(), vec![change]));
        }
    }
}

async fn put_several(http: &reqwest::Client, addr: &str, keys: &[String], value: &str) -> (u64, Vec<Value>) {
    let puts: Vec<Value> = keys.iter().map(|key| json!({"put": {"key": key, "value": value}})).collect();
    let body = json!({"success": puts}).to_string();
    let answer = answer_of(http.post(format!("http://{addr}/v1/txn")).body(body)).await;
    let changes = keys.iter().map(|key| json!({"type": "put", "key": key, "value": value})).collect();
    (answer["revision"].as_u64().unwrap(), changes)
}

async fn answer_of(request: reqwest::RequestBuilder) -> Value {
    let answer = request.send().await.unwrap();
    let status = answer.status();
    let body = answer.bytes().await.unwrap();
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).unwrap()
}

/// Calls `take` with each event of a stream, until it returns true.
async fn for_each_event(mut stream: reqwest::Response, mut take: impl FnMut(&str) -> bool) {
    let mut text = Vec::new();
    while let Some(chunk) = stream.chunk().await.unwrap() {
        text.extend_from_slice(&chunk);
        let mut begin = 0;
        while let Some(length) = text[begin..].windows(2).position(|pair| pair == b"\n\n") {
            let event = std::str::from_utf8(&text[begin..begin + length]).unwrap();
            begin += length + 2;
            if !event.starts_with(':') && take(event) {
                return;
            }
        }
        text.drain(..begin);
    }
    panic!("the stream ended before its last event");
}

/// All events of a stream, up to the last event of the last prefix.
async fn read_to_the_end(stream: reqwest::Response) -> Vec<String> {
    let mut events = Vec::new();
    let last = format!("\"w/{:02}/end\"", WRITERS - 1);
    for_each_event(stream, |event| {
        events.push(event.to_owned());
        event.contains(&last)
    })
    .await;
    events
}

/// The same, as a count and a hash. A watch of one prefix ends with that prefix's last event.
async fn seen_by(stream: reqwest::Response) -> Seen {
    let all = stream.url().query().unwrap().contains("prefix=w/&");
    let last = if all { format!("/{:02}/end\"", WRITERS - 1) } else { "/end\"".to_owned() };
    let mut seen = Seen { count: 0, hash: 0 };
    for_each_event(stream, |event| {
        seen.add(event);
        event.contains(&last)
    })
    .await;
    seen
}

impl Seen {
    fn add(&mut self, event: &str) {
        self.count += 1;
        let mut hasher = DefaultHasher::new();
        (self.hash, data_of(event), revision_of(event)).hash(&mut hasher);
        self.hash = hasher.finish();
    }
}

fn seen_in<Event: AsRef<str>>(events: &[Event]) -> Seen {
    let mut seen = Seen { count: 0, hash: 0 };
    events.iter().for_each(|event| seen.add(event.as_ref()));
    seen
}

fn only(events: &[String], prefix: &str) -> Vec<String> {
    let key = format!("\"key\":\"{prefix}");
    events.iter().filter(|event| event.contains(&key)).cloned().collect()
}

fn data_of(event: &str) -> &str {
    event.lines().find_map(|line| line.strip_prefix("data: ")).unwrap_or_else(|| panic!("no data: {event:?}"))
}

/// The revision in an event's id, which may be followed by a position.
fn revision_of(event: &str) -> u64 {
    let id = event.lines().find_map(|line| line.strip_prefix("id: ")).unwrap_or_else(|| panic!("no id: {event:?}"));
    id.split('.').next().unwrap().parse().unwrap()
}

/// The revision of an event, and its change.
fn parsed(event: &str) -> (u64, Value) {
    let data: Value = serde_json::from_str(data_of(event)).unwrap();
    assert_eq!(data["revision"], revision_of(event), "{event}");
    let mut change = json!({"type": data["type"], "key": data["key"]});
    if data["type"] == "put" {
        change["value"] = data["value"].clone();
    }
    (revision_of(event), change)
}
