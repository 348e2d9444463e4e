//! A lock that is free again when its holder dies, and that no late holder can misuse.
//!
//! The lock is a key with a time to live, written on the condition that it is
//! missing. Its holder touches it well before the time is over. No clock can
//! promise that a holder which was stopped for a while notices in time that the
//! lock is another's by now. So what the lock protects is written in a
//! transaction that compares the revision at which the key was created: another
//! holder has another one, and the late write does nothing.
//!
//! ```console
//! $ cargo run --example lock [HOST:PORT…]
//! ```

#![allow(clippy::print_stdout)]

use std::time::Duration;

use futures_util::StreamExt;
use raft_key_value::client::{Compare, Relation, TxnOperation, WatchEvent};
use raft_key_value::{ClientError, ExampleClient};

const LOCK: &str = "locks/printer";
const TTL: Duration = Duration::from_secs(4);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), ClientError> {
    let mut endpoints: Vec<String> = std::env::args().skip(1).collect();
    if endpoints.is_empty() {
        endpoints.push("127.0.0.1:21001".to_owned());
    }
    run(&ExampleClient::connect(endpoints)?).await
}

/// All of the example, on a cluster that is there.
pub async fn run(client: &ExampleClient) -> Result<(), ClientError> {
    let fence = lock(client).await?;
    println!("locked, at revision {fence}");
    tokio::select! {
        worked = work(client, fence) => worked?,
        // Losing the lock ends the work, which the fence would refuse anyway.
        lost = keep_alive(client, fence) => lost?,
    }
    unlock(client, fence).await?;
    println!("unlocked");
    Ok(())
}

/// Waits for the lock; returns the revision that this holder alone has.
async fn lock(client: &ExampleClient) -> Result<u64, ClientError> {
    let owner = std::process::id().to_string();
    loop {
        let error = match client.put(LOCK, &owner).if_missing().ttl(TTL).await {
            Ok(put) => return Ok(put.revision),
            Err(error) => error,
        };
        let Some(failed) = error.condition_failed() else { return Err(error) };
        println!("another one holds the lock; waiting");
        let Some(revision) = failed.current_revision else { continue };
        // What was changed after that is seen, also if it was before the watch begins.
        let mut events = client.watch_key(LOCK).from(revision + 1).stream();
        while let Some(event) = events.next().await {
            if matches!(event?, WatchEvent::Delete(_) | WatchEvent::Expire(_)) {
                break;
            }
        }
    }
}

/// Renews the lock as long as it is this holder's; returns only with an error.
async fn keep_alive(client: &ExampleClient, fence: u64) -> Result<(), ClientError> {
    loop {
        tokio::time::sleep(TTL / 3).await;
        // The revision stays while nobody else writes the key.
        client.touch(LOCK, TTL).if_revision(fence).await?;
    }
}

/// Longer than the lock lives without being renewed.
async fn work(client: &ExampleClient, fence: u64) -> Result<(), ClientError> {
    for page in 1..=5 {
        tokio::time::sleep(TTL / 4).await;
        let print = client.txn().when(Compare::create_revision(LOCK, Relation::Equal, fence));
        let printed = print.then(TxnOperation::put("printer/page", page.to_string())).await?;
        println!("page {page}: {}", if printed.succeeded { "printed" } else { "refused, the lock is another's" });
    }
    Ok(())
}

/// Lets go of the lock, if it is still this holder's.
async fn unlock(client: &ExampleClient, fence: u64) -> Result<(), ClientError> {
    match client.delete(LOCK).if_revision(fence).await {
        Err(error) if error.condition_failed().is_none() => Err(error),
        _ => Ok(()),
    }
}
