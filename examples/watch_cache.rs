//! A local copy of all keys with a prefix, always consistent with one revision of the store.
//!
//! The watch first returns all keys, then every later change, once and in order, even across reconnects. So after the
//! last event of a revision, the map equals the store at that revision, and reading it needs no request. Here some keys
//! are changed, and the copy is compared with a listing at the end.
//!
//! ```console
//! $ cargo run --example watch_cache [HOST:PORT…]
//! ```

#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use raft_key_value::client::{KeyValue, WatchEvent};
use raft_key_value::{ClientError, ExampleClient};

const PREFIX: &str = "cache/";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), ClientError> {
    let mut endpoints: Vec<String> = std::env::args().skip(1).collect();
    if endpoints.is_empty() {
        endpoints.push("127.0.0.1:21001".to_owned());
    }
    run(&ExampleClient::connect(endpoints)?).await
}

/// Runs the example on a running cluster.
pub async fn run(client: &ExampleClient) -> Result<(), ClientError> {
    client.put("cache/before", "the watch").await?;

    let mut cache = BTreeMap::new();
    let mut events = client.watch(PREFIX).initial().stream();
    let begun_at = follow(&mut events, &mut cache, None).await?;
    println!("the copy begins at revision {begun_at}, with {} keys", cache.len());

    let written_at = write(client).await?;
    let seen_at = follow(&mut events, &mut cache, Some(written_at)).await?;
    println!("{} keys, as at revision {seen_at}:", cache.len());
    for entry in cache.values() {
        println!("{} = {}", entry.key, entry.text().unwrap_or("(not text)"));
    }
    let listed = client.list(PREFIX).collect().await?;
    println!("the copy is {}", if cache.into_values().eq(listed) { "exact" } else { "behind" });
    Ok(())
}

/// Applies events up to a revision or, with `None`, up to the end of the initial state. Returns the last revision.
async fn follow(
    events: &mut BoxStream<'_, Result<WatchEvent, ClientError>>,
    cache: &mut BTreeMap<String, KeyValue>,
    until: Option<u64>,
) -> Result<u64, ClientError> {
    let mut seen_at = 0;
    while let Some(event) = events.next().await {
        match event? {
            WatchEvent::Initial(entry) => drop(cache.insert(entry.key.clone(), entry)),
            WatchEvent::Synced { revision } => return Ok(revision),
            WatchEvent::Put(entry) => {
                seen_at = entry.revision;
                cache.insert(entry.key.clone(), entry);
            }
            WatchEvent::Delete(gone) | WatchEvent::Expire(gone) => {
                seen_at = gone.revision;
                cache.remove(&gone.key);
            }
            WatchEvent::End(_) => {}
        }
        if until.is_some_and(|until| seen_at >= until) {
            break;
        }
    }
    Ok(seen_at)
}

/// Changes some keys; returns the revision of the last change.
async fn write(client: &ExampleClient) -> Result<u64, ClientError> {
    for number in 0..10 {
        client.put(format!("cache/{}", number % 4), number.to_string()).await?;
    }
    client.delete("cache/2").await?;
    Ok(client.put("cache/last", "").await?.revision)
}
