//! Listings, page by page, and deletion by prefix.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use raft_key_value::config::DELETE_STEP_KEYS_MAX;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{ALL, CALM, Random, TestCluster};

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// A page of any range, in either direction, matches a sorted map.
///
/// Method: put some hundred random keys, many with common prefixes and with characters of every length in UTF-8, in
/// transactions. List random ranges with every combination of parameters, on any node, follow `next` to the end, and
/// compare with the same ranges of a sorted map.
#[tokio::test]
async fn listings_match_a_sorted_map() {
    const KEYS: usize = 400;
    const LISTINGS: usize = 80;
    const PARTS: &[&str] = &["a", "b", "/", "é", "€", "😀", "\u{d7ff}", "\u{e000}", "\u{ffff}", "\u{10ffff}", " ", "~"];
    let cluster = TestCluster::form("list-model", &ALL, CALM).await;
    let mut random = Random::new("list-model");
    let text = |random: &mut Random, length_max: usize| -> String {
        let length = random.below(length_max + 1);
        (0..length).map(|_| *random.one_of(PARTS)).collect()
    };
    let mut model: BTreeMap<String, String> = BTreeMap::new();
    while model.len() < KEYS {
        let key = text(&mut random, 5);
        if !key.is_empty() {
            model.insert(key, format!("value {}", model.len()));
        }
    }
    let puts: Vec<Value> = model.iter().map(|(key, value)| json!({"put": {"key": key, "value": value}})).collect();
    for puts in puts.chunks(128) {
        cluster.txn(1, &json!({"success": puts})).await.done();
    }
    for number in 0..LISTINGS {
        let id = ALL[number % 3];
        let mut optional = |length| (random.below(2) == 0).then(|| text(&mut random, length));
        let (prefix, start, end, after) = (optional(1), optional(2), optional(2), optional(3));
        let (reverse, keys_only) = (random.below(2) == 0, random.below(3) == 0);
        let limit = 1 + random.below(120);
        let mut query = format!("limit={limit}");
        for (name, value) in [("prefix", &prefix), ("start", &start), ("end", &end), ("start_after", &after)] {
            if let Some(value) = value {
                query += &format!("&{name}={}", encoded(value));
            }
        }
        query += if reverse { "&reverse" } else { "" };
        query += if keys_only { "&keys_only=true" } else { "" };
        let mut expected: Vec<(&String, &String)> = model
            .iter()
            .filter(|(key, _)| key.starts_with(prefix.as_deref().unwrap_or_default()))
            .filter(|(key, _)| start.as_ref().is_none_or(|start| *key >= start))
            .filter(|(key, _)| end.as_ref().is_none_or(|end| *key < end))
            .filter(|(key, _)| after.as_ref().is_none_or(|after| if reverse { *key < after } else { *key > after }))
            .collect();
        if reverse {
            expected.reverse();
        }
        let mut pages = 0;
        let mut query_of_page = query.clone();
        loop {
            let page = cluster.get(id, &format!("/v1/kv?{query_of_page}")).await.done();
            let items = page["items"].as_array().unwrap();
            let rest = expected.split_off(items.len().min(expected.len()));
            let found: Vec<_> = items.iter().map(|item| (item["key"].as_str(), item["value"].as_str())).collect();
            let wanted: Vec<_> = expected
                .iter()
                .map(|(key, value)| (Some(key.as_str()), (!keys_only).then_some(value.as_str())))
                .collect();
            assert_eq!(found, wanted, "page {pages} of {query} on node {id}");
            pages += 1;
            expected = rest;
            let Some(next) = page["next"].as_str() else { break };
            assert_eq!(items.len(), limit, "every page but the last must be full: {query}");
            assert_eq!(Some(next), found[limit - 1].0);
            let without_after: Vec<&str> = query.split('&').filter(|pair| !pair.starts_with("start_after=")).collect();
            query_of_page =
                format!("{}&start_after={}&revision={}", without_after.join("&"), encoded(next), page["revision"]);
        }
        assert!(expected.is_empty(), "{query} on node {id} lacks {expected:?}");
    }
}

/// Pages of one revision show one state, whatever is written between them.
///
/// Method: while a task changes, deletes and adds keys, read listings of many pages, in both directions. Each must show
/// the state of a single moment: every key has the same value, and none is missing or listed twice.
#[tokio::test]
async fn pages_of_one_revision_show_one_state() {
    const KEYS: usize = 128;
    const LISTINGS: usize = 15;
    let cluster = TestCluster::form("list-pages", &ALL, CALM).await;
    let writing = AtomicBool::new(true);
    let round_of = async |round: usize| {
        // Put one half of the keys, all with the same value, and delete the other half.
        let key = |number: usize, parity: usize| format!("k{}", 2 * number + parity % 2);
        let puts = (0..KEYS / 2).map(|number| json!({"put": {"key": key(number, round), "value": round.to_string()}}));
        let deletes = (0..KEYS / 2).map(|number| json!({"delete": {"key": key(number, round + 1)}}));
        let operations: Vec<Value> = puts.chain(deletes).collect();
        cluster.txn(1, &json!({"success": operations})).await.done();
    };
    round_of(0).await;
    let write = async || {
        let mut round = 1;
        while writing.load(Ordering::Relaxed) {
            round_of(round).await;
            round += 1;
        }
        round
    };
    let read = async || {
        for number in 0..LISTINGS {
            let id = ALL[number % 3];
            let reverse = if number % 2 == 0 { "" } else { "&reverse" };
            let items = cluster.list_all(id, &format!("limit=7{reverse}")).await;
            let values: Vec<_> = items.iter().map(|item| item["value"].as_str().unwrap()).collect();
            assert!(
                items.len() == KEYS / 2 && values.iter().all(|value| value == &values[0]),
                "on node {id}: {values:?}"
            );
            let parity = values[0].parse::<usize>().unwrap() % 2;
            let key_number = |item: &Value| item["key"].as_str().unwrap()[1..].parse::<usize>().unwrap();
            assert!(items.iter().all(|item| key_number(item) % 2 == parity), "on node {id}: {items:?}");
        }
        writing.store(false, Ordering::Relaxed);
    };
    let (rounds, ()) = tokio::join!(write(), read());
    assert!(rounds > LISTINGS, "only {rounds} rounds were written meanwhile");

    // A revision is kept only after a listing of several pages, and only on the node that served its first page.
    let first = cluster.get(1, "/v1/kv?limit=7").await.done();
    let revision = first["revision"].as_u64().unwrap();
    let changed = cluster.put(1, "/v1/kv/k", "v").await.revision();
    assert_eq!(cluster.get(1, &format!("/v1/kv?limit=7&revision={revision}")).await.done(), first);
    let gone =
        cluster.get(2, &format!("/v1/kv?limit=7&revision={revision}")).await.assert_rejected(410, "revision_gone");
    assert_eq!(gone["oldest_revision"], changed);
    assert!(gone["message"].as_str().unwrap().contains("node 2"), "{gone}");
    // Revisions whose second page was never read are dropped first.
    let once = cluster.get(1, "/v1/kv?limit=7").await.done()["revision"].clone();
    for number in 0..40 {
        cluster.put(1, "/v1/kv/k", format!("{number}")).await.done();
        cluster.get(1, "/v1/kv?limit=7").await.done();
    }
    cluster.get(1, &format!("/v1/kv?limit=7&revision={once}")).await.assert_rejected(410, "revision_gone");
    assert_eq!(cluster.get(1, &format!("/v1/kv?limit=7&revision={revision}")).await.done(), first);
    let future = cluster.get(1, &format!("/v1/kv?revision={}", changed + 100)).await;
    future.assert_rejected(400, "revision_in_future");
}

/// A page ends when it reaches the byte limit, and holds at least one key.
///
/// Method: set a limit of 1,000 bytes, and put values of random lengths, some of them longer than that. Each page must
/// end with the key that reaches the limit.
#[tokio::test]
async fn a_page_ends_at_the_byte_limit() {
    const BYTES_MAX: usize = 1000;
    let flags = [CALM, &["--max-page-bytes", "1000", "--max-page-keys", "20"]].concat();
    let cluster = TestCluster::form("list-bytes", &[1], &flags).await;
    let mut random = Random::new("list-bytes");
    for number in 0..60 {
        let value = "v".repeat(random.below(400) * random.below(2) + 1500 * (random.below(10) / 9));
        cluster.put(1, &format!("/v1/kv/k{number:02}"), value).await.done();
    }
    for keys_only in ["", "&keys_only"] {
        let (mut after, mut seen) = (String::new(), 0);
        loop {
            let page = cluster.get(1, &format!("/v1/kv?prefix=k{keys_only}{after}")).await.done();
            let lengths: Vec<usize> = page["items"].as_array().unwrap().iter().map(bytes_of).collect();
            seen += lengths.len();
            let bytes: usize = lengths.iter().sum();
            let last = lengths.last().copied().unwrap_or_default();
            assert!(lengths.len() <= 20 && bytes - last < BYTES_MAX, "{lengths:?}");
            let Some(next) = page["next"].as_str() else { break };
            assert!(bytes >= BYTES_MAX || lengths.len() == 20, "a page ended early: {lengths:?}");
            after = format!("&start_after={next}");
        }
        assert_eq!(seen, 60);
    }
    let answer = cluster.get(1, "/v1/kv?limit=21").await;
    assert!(answer.assert_rejected(400, "invalid_parameter")["message"].as_str().unwrap().contains("20"));
}

fn bytes_of(item: &Value) -> usize {
    item["key"].as_str().unwrap().len() + item["value"].as_str().map_or(0, str::len)
}

/// More keys than one step can delete are deleted in several steps, and no other keys.
///
/// Method: put 3,500 keys with a prefix, and some before and after it. Delete by prefix through a follower, once
/// without and once with an `Idempotency-Key`. A repetition returns the same response and deletes nothing.
#[tokio::test]
async fn a_prefix_of_many_keys_is_deleted_in_steps() {
    const KEYS: usize = 3500;
    let steps = KEYS.div_ceil(DELETE_STEP_KEYS_MAX) as u64;
    let cluster = TestCluster::form("list-delete", &ALL, CALM).await;
    let leader = cluster.leader_of(&ALL).await;
    let follower = 1 + leader % 3;
    for key in ["a", "many", "many0", "manz", "z"] {
        cluster.put(leader, &format!("/v1/kv/{key}"), "v").await.done();
    }
    let others = cluster.list_all(1, "keys_only").await;
    for key in [None, Some("delete them")] {
        let before = cluster.put_many(leader, "many/", KEYS).await;
        let headers: Vec<(&str, &str)> = key.into_iter().map(|key| ("idempotency-key", key)).collect();
        let delete = async |id| cluster.v1(id, Method::DELETE, "/v1/kv?prefix=many/", &headers, "").await;
        let answer = delete(follower).await;
        assert_eq!(answer.done(), json!({"revision": before + steps, "deleted": KEYS}), "in {steps} steps");
        assert_eq!(cluster.list_all(follower, "keys_only").await, others);
        if key.is_some() {
            cluster.put(leader, "/v1/kv/many/later", "v").await.done();
            let again = delete(leader).await;
            assert_eq!((again.header("raft-replayed"), &again.done()["deleted"]), ("true", &json!(KEYS)));
            cluster.get(follower, "/v1/kv/many/later").await.done();
        }
    }
    let answer = cluster.delete(follower, "/v1/kv?all").await.done();
    assert_eq!(answer["deleted"], others.len() + 1);
    assert!(cluster.list_all(leader, "").await.is_empty());
}
