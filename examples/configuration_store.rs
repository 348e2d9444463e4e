//! Settings that several programs share and change without losing each other's changes.
//!
//! Each setting is a key with the prefix `config/`. A program that changes a setting reads it first, and writes it on
//! the condition that its revision is unchanged. If another program was faster, the write fails and the program starts
//! over. Two settings that belong together are changed in one transaction, and all settings are listed at one revision.
//!
//! ```console
//! $ cargo run --example configuration_store [HOST:PORT…]
//! ```

#![allow(clippy::print_stdout)]

use raft_key_value::client::{Compare, Relation, TxnOperation};
use raft_key_value::{ClientError, ExampleClient};

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
    // Only the first program sets the default.
    match client.put("config/workers", "4").if_missing().await {
        Ok(put) => println!("workers = 4, at revision {}", put.revision),
        Err(error) if error.condition_failed().is_some() => println!("workers is set already"),
        Err(error) => return Err(error),
    }

    // Any number of programs may do this at once: no increment is lost.
    let workers = increment(client, "config/workers").await?;
    println!("workers = {workers}");

    // Set both or neither, and only if `workers` has not changed since.
    let answer = client
        .txn()
        .when(Compare::value("config/workers", Relation::Equal, workers.to_string()))
        .then(TxnOperation::put("config/queue", (10 * workers).to_string()))
        .then(TxnOperation::put("config/changed-by", "configuration_store"))
        .await?;
    println!("queue is {}", if answer.succeeded { "ten times as long" } else { "unchanged" });

    for setting in client.list("config/").collect().await? {
        println!("{} = {}", setting.key, setting.text().unwrap_or("(not text)"));
    }
    Ok(())
}

/// Adds one to a number, even while other programs do so too.
async fn increment(client: &ExampleClient, key: &str) -> Result<u64, ClientError> {
    loop {
        let found = client.get(key).await?;
        let number = found.as_ref().and_then(|found| found.text()?.parse().ok()).unwrap_or(0) + 1;
        let put = client.put(key, u64::to_string(&number));
        let put = match found {
            Some(found) => put.if_revision(found.revision),
            None => put.if_missing(),
        };
        match put.await {
            Ok(_) => return Ok(number),
            Err(error) if error.condition_failed().is_some() => {}
            Err(error) => return Err(error),
        }
    }
}
