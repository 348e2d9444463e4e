//! A lock that is released when its holder crashes, and that a former holder cannot misuse.
//!
//! The lock is a key with a TTL, written on the condition that it does not exist. Its holder renews the TTL well before
//! the key expires. A holder that was paused may not notice in time that the lock has passed to another one. So the
//! data that the lock protects is written in transactions that compare the revision at which the lock was created. Each
//! holder has a different one, so a late write is not applied.
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

/// Runs the example on a running cluster.
pub async fn run(client: &ExampleClient) -> Result<(), ClientError> {
    let fence = lock(client).await?;
    println!("locked, at revision {fence}");
    tokio::select! {
        worked = work(client, fence) => worked?,
        // Losing the lock ends the work, whose writes the fence would reject anyway.
        lost = keep_alive(client, fence) => lost?,
    }
    unlock(client, fence).await?;
    println!("unlocked");
    Ok(())
}

/// Waits for the lock. Returns the revision at which it was created, which identifies this holder.
async fn lock(client: &ExampleClient) -> Result<u64, ClientError> {
    let owner = std::process::id().to_string();
    loop {
        let error = match client.put(LOCK, &owner).if_missing().ttl(TTL).await {
            Ok(put) => return Ok(put.revision),
            Err(error) => error,
        };
        let Some(failed) = error.condition_failed() else { return Err(error) };
        println!("waiting for another holder");
        let Some(revision) = failed.current_revision else { continue };
        // Watch from that revision on, so that no change before the watch starts is missed.
        let mut events = client.watch_key(LOCK).from(revision + 1).stream();
        while let Some(event) = events.next().await {
            if matches!(event?, WatchEvent::Delete(_) | WatchEvent::Expire(_)) {
                break;
            }
        }
    }
}

/// Renews the lock. Returns only with an error, such as when the lock is lost.
async fn keep_alive(client: &ExampleClient, fence: u64) -> Result<(), ClientError> {
    loop {
        tokio::time::sleep(TTL / 3).await;
        // A touch does not change the revision; a write by another holder does.
        client.touch(LOCK, TTL).if_revision(fence).await?;
    }
}

/// Works for longer than the TTL of the lock.
async fn work(client: &ExampleClient, fence: u64) -> Result<(), ClientError> {
    for page in 1..=5 {
        tokio::time::sleep(TTL / 4).await;
        let print = client.txn().when(Compare::create_revision(LOCK, Relation::Equal, fence));
        let printed = print.then(TxnOperation::put("printer/page", page.to_string())).await?;
        println!("page {page}: {}", if printed.succeeded { "printed" } else { "not printed, the lock was lost" });
    }
    Ok(())
}

/// Releases the lock, if this holder still has it.
async fn unlock(client: &ExampleClient, fence: u64) -> Result<(), ClientError> {
    match client.delete(LOCK).if_revision(fence).await {
        Err(error) if error.condition_failed().is_none() => Err(error),
        _ => Ok(()),
    }
}
