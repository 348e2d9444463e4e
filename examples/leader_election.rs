//! Workers that elect a leader among them, and a new one when it fails.
//!
//! Each worker tries to write its name to one key with a TTL. The worker that succeeds leads, and renews the TTL. The
//! others watch the key, and try again when it is deleted or expires. Here three workers run in one process, and each
//! leader resigns after a moment. One of them just stops renewing the key, as if it had crashed.
//!
//! ```console
//! $ cargo run --example leader_election [HOST:PORT…]
//! ```

#![allow(clippy::print_stdout)]

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::try_join_all;
use raft_key_value::client::WatchEvent;
use raft_key_value::{ClientError, ExampleClient};

const LEADER: &str = "workers/leader";
const TTL: Duration = Duration::from_secs(2);

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
    try_join_all(["ann", "bob", "cat"].map(|name| work(client, name))).await?;
    println!("each of them has led");
    Ok(())
}

/// Runs one worker until it has led.
async fn work(client: &ExampleClient, name: &str) -> Result<(), ClientError> {
    loop {
        match client.put(LEADER, name).if_missing().ttl(TTL).await {
            Ok(put) => return lead(client, name, put.revision).await,
            Err(error) => match error.condition_failed() {
                Some(failed) => await_vacancy(client, failed.current_revision).await?,
                None => return Err(error),
            },
        }
    }
}

/// Leads for a moment.
async fn lead(client: &ExampleClient, name: &str, revision: u64) -> Result<(), ClientError> {
    println!("{name} leads, since revision {revision}");
    for _ in 0..3 {
        tokio::time::sleep(TTL / 3).await;
        match client.touch(LEADER, TTL).if_revision(revision).await {
            Err(error) if error.condition_failed().is_some() => {
                println!("{name} renewed too late, and leads no more");
                return Ok(());
            }
            touched => touched?,
        };
    }
    if name == "ann" {
        println!("{name} stops renewing");
        return Ok(());
    }
    println!("{name} resigns");
    match client.delete(LEADER).if_revision(revision).await {
        Err(error) if error.condition_failed().is_none() => Err(error),
        _ => Ok(()),
    }
}

/// Waits until the leader of a revision has resigned or its key has expired.
async fn await_vacancy(client: &ExampleClient, revision: Option<u64>) -> Result<(), ClientError> {
    let Some(revision) = revision else { return Ok(()) };
    let mut events = client.watch_key(LEADER).from(revision + 1).stream();
    while let Some(event) = events.next().await {
        if matches!(event?, WatchEvent::Delete(_) | WatchEvent::Expire(_)) {
            return Ok(());
        }
    }
    Ok(())
}
