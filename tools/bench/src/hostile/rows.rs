//! The loads.

use std::fmt::Write;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use raft_key_value::config::{REQUEST_BYTES_MAX_DEFAULT, TXN_OPERATIONS_MAX_DEFAULT, VALUE_BYTES_MAX_DEFAULT};
use tokio::time::{Instant, timeout, timeout_at};

use super::client::{Client, Request, Tally};
use super::progress::{Arrivals, Search};
use super::stage::{Crowd, Stage};
use crate::statistics::{mebibytes, thousands};

const MEBIBYTE: usize = 1 << 20;

type Running<'stage> = Pin<Box<dyn Future<Output = Result<()>> + 'stage>>;

#[derive(Clone, Copy)]
pub struct Row {
    pub name: &'static str,
    /// What the clients do. They send to the leader unless it says otherwise.
    pub what: &'static str,
    /// Prepares, begins, and runs the load.
    pub load: fn(&mut Stage) -> Running<'_>,
}

const fn row(name: &'static str, what: &'static str, load: fn(&mut Stage) -> Running<'_>) -> Row {
    Row { name, what, load }
}

/// All loads. Each has a cluster of its own.
pub const ROWS: &[Row] = &[
    row("none", "only the probe, which shows the effect of the machine itself", |stage| Box::pin(none(stage))),
    row("watch-initial-50", "50 watches with `initial` begin at once, over 300,000 keys of 100 bytes", |stage| {
        Box::pin(watch_initial(stage, 50))
    }),
    row("watch-initial-200", "the same with 200 watches", |stage| Box::pin(watch_initial(stage, 200))),
    row("values-1mib", "256 clients put values of 1 MiB, each to its own key", |stage| {
        Box::pin(large_values(stage, false))
    }),
    row("values-1mib-follower", "the same, sent to a follower, which forwards the requests", |stage| {
        Box::pin(large_values(stage, true))
    }),
    row("bodies-held-back", "1,000 transactions of 1.5 MiB whose last byte is never sent", |stage| {
        Box::pin(bodies_held_back(stage))
    }),
    row("watch-one-key", "3,000 watches of one key, and one put of 1 MiB", |stage| Box::pin(watch_one_key(stage))),
    row(
        "watch-slow",
        "300 watches of one key that read nothing, and puts of 1 MiB of control characters, which JSON escapes \
         sixfold",
        |stage| Box::pin(watch_slow(stage)),
    ),
    row(
        "watch-slow-history",
        "300 watches that read 2 KiB every 2 s, from 60 revisions of a key, each a put of 1 MiB of control \
         characters",
        |stage| Box::pin(watch_slow_history(stage)),
    ),
    row(
        "txn-gets-unread",
        "50 transactions of four gets of 1 MiB of control characters each; the responses are not read",
        |stage| Box::pin(txn_gets_unread(stage)),
    ),
    row("list-unread", "300 listings with pages of 1 MiB of control characters; the responses are not read", |stage| {
        Box::pin(list_unread(stage))
    }),
    row("txn-refused", "100 clients with transactions of 1.5 MiB and one operation more than the limit", |stage| {
        Box::pin(txn_refused(stage))
    }),
    row(
        "deletes-sent-again",
        "256 unfinished deletions by prefix, retried with their `Idempotency-Key` after all \
         1,000,000 keys were rewritten",
        |stage| Box::pin(deletes_sent_again(stage)),
    ),
    row("delete-all", "16 clients delete all of 300,000 keys at once", |stage| Box::pin(delete_all(stage))),
    row(
        "watch-prefixes",
        "1,000 watches of nested prefixes, and 16 transactions of 128 keys of 1,000 bytes that all of them match",
        |stage| Box::pin(watch_prefixes(stage)),
    ),
    row(
        "applied-waiters",
        "3,000 clients request `?applied=` with an entry that does not exist, and retry after `retry_after_ms`, while \
         32 clients put",
        |stage| Box::pin(applied_waiters(stage)),
    ),
    row(
        "listings-kept",
        "16 listings, each read for one page; all 50,000 keys of 512 bytes are rewritten after each",
        |stage| Box::pin(listings_kept(stage)),
    ),
    row("rewrite-one-key", "8 clients that repeatedly put 1 MiB to one key", |stage| Box::pin(rewrite_one_key(stage))),
    row("byte-by-byte", "1,000 clients that send a put one byte every 100 ms", |stage| Box::pin(byte_by_byte(stage))),
    row("connections-idle", "1,000 connections that send nothing", |stage| Box::pin(connections_idle(stage))),
    row("connections-reset", "64 clients that connect, send half a head, and reset the connection", |stage| {
        Box::pin(connections_reset(stage))
    }),
    row("json-nested", "1,000 clients with bodies of 1.5 MiB of opening brackets", |stage| {
        Box::pin(json(stage, Bytes::from(vec![b'['; REQUEST_BYTES_MAX_DEFAULT])))
    }),
    row(
        "json-long",
        "1,000 clients with bodies of 1.5 MiB that consist of one escaped string, which exceeds the limit for keys",
        |stage| {
            let escaped = r"\u0001".repeat((REQUEST_BYTES_MAX_DEFAULT - 64) / 6);
            Box::pin(json(stage, format!(r#"{{"success":[{{"get":{{"key":"{escaped}"}}}}]}}"#).into()))
        },
    ),
    row("heads-90", "1,000 clients with 90 headers of 1 KiB", |stage| Box::pin(heads(stage))),
    row("pipelined", "200 clients that each pipeline 1,000 gets of 64 KiB and read nothing", |stage| {
        Box::pin(pipelined(stage))
    }),
    row("hang-up", "256 clients that repeatedly put 64 KiB and hang up at once", |stage| Box::pin(hang_up(stage))),
    row("tiny-chunks", "256 clients that put 64 KiB in chunks of one byte", |stage| Box::pin(tiny_chunks(stage))),
    row("expire-at-once", "100,000 keys that expire at the same moment", |stage| Box::pin(expire_at_once(stage))),
    row("idempotency-keys", "64 clients that put with a new `Idempotency-Key` of 128 bytes each time", |stage| {
        Box::pin(idempotency_keys(stage))
    }),
    row("rpc-held-back", "200 clients that pose as nodes and begin an append of 40 MiB", |stage| {
        Box::pin(rpc_held_back(stage))
    }),
];

/// A value that JSON escapes to six times its length.
fn control_characters(bytes: usize) -> Bytes {
    vec![1; bytes].into()
}

fn letters(bytes: usize) -> String {
    "x".repeat(bytes)
}

async fn none(stage: &mut Stage) -> Result<()> {
    stage.begin().await?;
    tokio::time::sleep_until(stage.crowd.deadline).await;
    Ok(())
}

async fn watch_initial(stage: &mut Stage, clients: usize) -> Result<()> {
    let (keys, clients) = (stage.count(300_000), stage.count(clients));
    stage.fill("watched/", keys, &letters(100)).await?;
    stage.begin().await?;
    let synced = Arrivals::default();
    let run = |crowd: Crowd, _| {
        let synced = synced.clone();
        async move {
            let mut client = crowd.connect().await?;
            client.send(&Request::get("/v1/watch?prefix=&initial")).await?;
            let mut search = Search::new(b"\"synced\"");
            while !search.is_found {
                client.read(&mut |bytes| search.feed(bytes)).await?;
            }
            synced.add();
            Ok(())
        }
    };
    stage.run(clients, run).await?;
    stage.note(format!("{} of {clients} watches got the whole state{}", synced.count(), synced.last_after()));
    Ok(())
}

async fn large_values(stage: &mut Stage, to_follower: bool) -> Result<()> {
    let clients = stage.count(256);
    stage.data_bytes = (clients * MEBIBYTE) as u64;
    let value = Bytes::from(letters(VALUE_BYTES_MAX_DEFAULT));
    stage.begin().await?;
    let run = |crowd: Crowd, client| {
        let crowd = if to_follower { Crowd { leader: crowd.follower, ..crowd } } else { crowd };
        crowd.repeat(Request::put(&format!("large-{client}"), value.clone()))
    };
    stage.run(clients, run).await
}

async fn bodies_held_back(stage: &mut Stage) -> Result<()> {
    let rest = r#"{"success":[{"put":{"key":"held","value":""}},{"put":{"key":"back","value":""}}]}"#.len();
    let value = letters((REQUEST_BYTES_MAX_DEFAULT - rest) / 2);
    let body = format!(
        r#"{{"success":[{{"put":{{"key":"held","value":"{value}"}}}},{{"put":{{"key":"back","value":"{value}"}}}}]}}"#
    );
    let mut request = Request::txn(body);
    request.body.truncate(request.body.len() - 1);
    stage.begin().await?;
    stage.run(stage.count(1000), |crowd, _| held_back(crowd, request.clone())).await
}

/// Sends an incomplete request, and waits.
async fn held_back(crowd: Crowd, request: Request) -> io::Result<()> {
    let mut client = crowd.connect().await?;
    client.send(&request).await?;
    client.hold(crowd.deadline).await;
    Ok(())
}

async fn watch_one_key(stage: &mut Stage) -> Result<()> {
    let clients = stage.count(3000);
    stage.data_bytes = MEBIBYTE as u64;
    stage.begin().await?;
    let (begun, got) = (Arrivals::default(), Arrivals::default());
    let run = |crowd: Crowd, _| {
        let (begun, got) = (begun.clone(), got.clone());
        async move {
            let watching = async {
                let mut client = crowd.connect().await?;
                client.send(&Request::get("/v1/watch?key=hot")).await?;
                let status = client.head().await?;
                io::Result::Ok((client, status))
            };
            let watching = watching.await;
            begun.add();
            let (mut client, status) = watching?;
            if status == 200 {
                client.read_body(MEBIBYTE).await?;
                got.add();
            }
            Ok(())
        }
    };
    let running = stage.start(clients, run);
    let latest = Instant::now() + stage.length / 2;
    while begun.count() < clients && Instant::now() < latest {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stage.note(format!("{} of {clients} watches had begun before the put", begun.count()));
    let put_at = Instant::now();
    stage.put("hot", Bytes::from(letters(VALUE_BYTES_MAX_DEFAULT))).await?;
    let put_took = put_at.elapsed();
    stage.finish_clients(running).await?;
    stage.note(format!("the put took {} ms; {} watches got it", put_took.as_millis(), got.count()));
    Ok(())
}

async fn watch_slow(stage: &mut Stage) -> Result<()> {
    stage.data_bytes = MEBIBYTE as u64;
    stage.begin().await?;
    let watching = stage.start(stage.count(300), |crowd, _| unread(crowd, Request::get("/v1/watch?key=hot")));
    tokio::time::sleep(stage.length / 4).await;
    stage.repeat(1, Request::put("hot", control_characters(VALUE_BYTES_MAX_DEFAULT))).await?;
    stage.finish_clients(watching).await
}

/// A node shares the encodings of recent events among all watches. A watch that begins at another event makes
/// the node encode that event again.
async fn watch_slow_history(stage: &mut Stage) -> Result<()> {
    /// As many as the history holds, with some room for the probe.
    const PUTS: usize = 60;
    const SIP_BYTES: usize = 2048;
    const PAUSE: Duration = Duration::from_secs(2);

    let mut revisions = Vec::new();
    for _ in 0..PUTS {
        stage.put("hot", control_characters(VALUE_BYTES_MAX_DEFAULT)).await?;
        revisions.push(stage.revision().await?);
    }
    stage.begin().await?;
    let run = |crowd: Crowd, client: usize| {
        let request = Request::get(&format!("/v1/watch?key=hot&from={}", revisions[client % PUTS]));
        async move {
            let mut client = crowd.connect_unread().await?;
            client.send(&request).await?;
            client.sip(SIP_BYTES, PAUSE).await
        }
    };
    stage.run(stage.count(300), run).await
}

async fn txn_gets_unread(stage: &mut Stage) -> Result<()> {
    let keys = ["get-0", "get-1", "get-2", "get-3"];
    for key in keys {
        // With its keys, the response has the maximum length.
        stage.put(key, control_characters(VALUE_BYTES_MAX_DEFAULT - 1024)).await?;
    }
    let gets = keys.map(|key| format!(r#"{{"get":{{"key":"{key}"}}}}"#)).join(",");
    let request = Request::txn(format!(r#"{{"success":[{gets}]}}"#));
    stage.begin().await?;
    stage.run(stage.count(50), |crowd, _| unread(crowd, request.clone())).await
}

async fn list_unread(stage: &mut Stage) -> Result<()> {
    for number in 0..16 {
        stage.put(&format!("page/{number}"), control_characters(MEBIBYTE / 16)).await?;
    }
    stage.begin().await?;
    stage.run(stage.count(300), |crowd, _| unread(crowd, Request::get("/v1/kv?prefix=page/"))).await
}

/// Sends a request, and reads only the beginning of the response.
async fn unread(crowd: Crowd, request: Request) -> io::Result<()> {
    let mut client = crowd.connect_unread().await?;
    client.send(&request).await?;
    client.head().await?;
    client.ignore(crowd.deadline).await;
    Ok(())
}

async fn txn_refused(stage: &mut Stage) -> Result<()> {
    let operations = TXN_OPERATIONS_MAX_DEFAULT + 1;
    let value = letters(REQUEST_BYTES_MAX_DEFAULT / operations - 64);
    let puts: Vec<String> =
        (0..operations).map(|number| format!(r#"{{"put":{{"key":"refused-{number}","value":"{value}"}}}}"#)).collect();
    let request = Request::txn(format!(r#"{{"success":[{}]}}"#, puts.join(",")));
    stage.begin().await?;
    stage.repeat(stage.count(100), request).await
}

/// Each deletion deletes 1,000 keys per step until its client resets the connection. When it is sent again,
/// every key is newer than the deletion, so it searches all of them in vain.
async fn deletes_sent_again(stage: &mut Stage) -> Result<()> {
    let clients = stage.count(256);
    let keys = stage.count(1_000_000);
    stage.remembers = true;
    stage.fill("deleted/", keys, "").await?;
    let delete = |client: usize| {
        let id = format!("deletion-{client}");
        Request::new("DELETE", "/v1/kv?prefix=deleted/", &[("Idempotency-Key", &id)], Bytes::new())
    };
    let before = stage.revision().await?;
    let mut held = Vec::new();
    for client in 0..clients {
        let mut connection = Client::connect(stage.crowd.leader, &Tally::default()).await?;
        connection.send(&delete(client)).await?;
        held.push(connection);
    }
    let latest = Instant::now() + stage.length;
    while stage.revision().await? < before + clients as u64 && Instant::now() < latest {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for connection in held {
        connection.reset()?;
    }
    // Let the steps in progress end first.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let steps = stage.revision().await? - before;
    stage.fill("deleted/", keys, "").await?;
    stage.note(format!("{steps} of {} steps were done before", keys.div_ceil(1000)));
    stage.begin().await?;
    stage.run(clients, |crowd, client| call_once(crowd, delete(client))).await
}

async fn delete_all(stage: &mut Stage) -> Result<()> {
    stage.fill("deleted/", stage.count(300_000), &letters(100)).await?;
    stage.begin().await?;
    let request = Request::new("DELETE", "/v1/kv?all", &[], Bytes::new());
    stage.run(16, |crowd, _| call_once(crowd, request.clone())).await
}

async fn call_once(crowd: Crowd, request: Request) -> io::Result<()> {
    crowd.connect().await?.call(&request).await.map(drop)
}

async fn watch_prefixes(stage: &mut Stage) -> Result<()> {
    const KEYS: usize = 128;
    const KEY_BYTES: usize = 1000;

    let (watches, transactions) = (stage.count(1000), stage.count(16));
    let long = letters(KEY_BYTES);
    stage.data_bytes = (transactions * KEYS * KEY_BYTES) as u64;
    stage.begin().await?;
    let got = Arrivals::default();
    let watch = |crowd: Crowd, number: usize| {
        let request = Request::get(&format!("/v1/watch?prefix={}", &long[..=number % KEY_BYTES]));
        let got = got.clone();
        async move {
            let mut client = crowd.connect().await?;
            client.send(&request).await?;
            client.read_body(transactions * KEYS * KEY_BYTES).await?;
            got.add();
            Ok(())
        }
    };
    let watching = stage.start(watches, watch);
    tokio::time::sleep(stage.length / 4).await;
    let put = |crowd: Crowd, client: usize| {
        let puts: Vec<String> =
            (0..KEYS).map(|key| format!(r#"{{"put":{{"key":"{long}/{client}/{key}","value":""}}}}"#)).collect();
        call_once(crowd, Request::txn(format!(r#"{{"success":[{}]}}"#, puts.join(","))))
    };
    stage.run(transactions, put).await?;
    stage.finish_clients(watching).await?;
    stage.note(format!("{} of {watches} watches got all changes", got.count()));
    Ok(())
}

async fn applied_waiters(stage: &mut Stage) -> Result<()> {
    const WRITERS: usize = 32;

    stage.length /= 2;
    let write = |tally: Tally| {
        move |crowd: Crowd, writer: usize| {
            let crowd = Crowd { tally: tally.clone(), ..crowd };
            crowd.repeat(Request::put(&format!("writer-{writer}"), Bytes::from_static(b"a small value")))
        }
    };
    let per_second = |tally: &Tally, length: Duration| thousands(tally.counts().of(200) as f64 / length.as_secs_f64());
    let (without, with) = (Tally::default(), Tally::default());
    stage.crowd.deadline = Instant::now() + stage.length;
    stage.run(WRITERS, write(without.clone())).await?;
    stage.begin().await?;
    let request = Request::get("/v1/cluster/hash?applied=4611686018427387904");
    let waiting = stage.start(stage.count(3000), |crowd, _| crowd.repeat_as_asked(request.clone()));
    stage.run(WRITERS, write(with.clone())).await?;
    stage.finish_clients(waiting).await?;
    let (without, with) = (per_second(&without, stage.length), per_second(&with, stage.length));
    stage.note(format!("{without} puts/s before, {with} with them"));
    Ok(())
}

async fn listings_kept(stage: &mut Stage) -> Result<()> {
    const LISTINGS: usize = 16;

    let keys = stage.count(50_000);
    let value = letters(512);
    stage.fill("listed/", keys, &value).await?;
    stage.begin().await?;
    let mut client = stage.crowd.connect().await?;
    let mut opened = 0;
    while opened < LISTINGS {
        client.call(&Request::get("/v1/kv?prefix=listed/&limit=10")).await?;
        opened += 1;
        match timeout_at(stage.crowd.deadline, stage.fill("listed/", keys, &value)).await {
            Ok(filled) => filled?,
            Err(_) => break,
        }
    }
    stage.note(format!("{opened} of {LISTINGS} listings were opened in that time"));
    Ok(())
}

async fn rewrite_one_key(stage: &mut Stage) -> Result<()> {
    stage.data_bytes = MEBIBYTE as u64;
    let request = Request::put("rewritten", Bytes::from(letters(VALUE_BYTES_MAX_DEFAULT)));
    stage.begin().await?;
    stage.repeat(8, request).await?;
    let written = stage.crowd.tally.counts().of(200);
    let log = mebibytes(&stage.log_bytes()?);
    stage.note(format!("log directories of {log} MiB for one key of 1 MiB, after {written} puts"));
    Ok(())
}

async fn byte_by_byte(stage: &mut Stage) -> Result<()> {
    const PAUSE: Duration = Duration::from_millis(100);

    let request = Request::put("slow", Bytes::from_static(b"a small value"));
    let bytes: Arc<[u8]> = [&request.head[..], &request.body[..]].concat().into();
    stage.begin().await?;
    let run = |crowd: Crowd, _| {
        let bytes = Arc::clone(&bytes);
        async move {
            let mut client = crowd.connect().await?;
            crowd.tally.sent(1);
            for byte in bytes.iter() {
                client.send_bytes(std::slice::from_ref(byte)).await?;
                // The node may respond before the last byte is sent.
                if let Ok(answered) = timeout(PAUSE, client.head()).await {
                    return answered.map(drop);
                }
            }
            client.head().await.map(drop)
        }
    };
    stage.run(stage.count(1000), run).await
}

async fn connections_idle(stage: &mut Stage) -> Result<()> {
    stage.begin().await?;
    let run = |crowd: Crowd, _| async move {
        crowd.connect().await?.hold(crowd.deadline).await;
        Ok(())
    };
    stage.run(stage.count(1000), run).await
}

async fn connections_reset(stage: &mut Stage) -> Result<()> {
    const PAUSE: Duration = Duration::from_millis(10);

    stage.begin().await?;
    let run = |crowd: Crowd, _| async move {
        loop {
            let mut client = crowd.connect().await?;
            client.send_bytes(b"GET /v1/kv/x HTTP/1.1\r\nHost: loc").await?;
            client.reset()?;
            tokio::time::sleep(PAUSE).await;
        }
    };
    stage.run(stage.count(64), run).await
}

async fn json(stage: &mut Stage, body: Bytes) -> Result<()> {
    let request = Request::txn(body);
    stage.begin().await?;
    stage.repeat(stage.count(1000), request).await
}

async fn heads(stage: &mut Stage) -> Result<()> {
    let value = letters(1024);
    let names: Vec<String> = (0..90).map(|number| format!("X-Header-{number}")).collect();
    let headers: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), value.as_str())).collect();
    let request = Request::new("GET", "/v1/kv/missing", &headers, Bytes::new());
    stage.begin().await?;
    stage.repeat(stage.count(1000), request).await
}

async fn pipelined(stage: &mut Stage) -> Result<()> {
    const REQUESTS: usize = 1000;

    stage.put("ahead", Bytes::from(letters(64 * 1024))).await?;
    let requests = Bytes::from(Request::get("/v1/kv/ahead").head.repeat(REQUESTS));
    stage.begin().await?;
    let run = |crowd: Crowd, _| {
        let requests = requests.clone();
        async move {
            let mut client = crowd.connect_unread().await?;
            crowd.tally.sent(REQUESTS as u64);
            client.send_bytes(&requests).await?;
            client.head().await?;
            client.ignore(crowd.deadline).await;
            Ok(())
        }
    };
    stage.run(stage.count(200), run).await
}

async fn hang_up(stage: &mut Stage) -> Result<()> {
    /// Long enough for the ports of closed connections to become free again.
    const PAUSE: Duration = Duration::from_millis(200);

    let clients = stage.count(256);
    let value = Bytes::from(letters(64 * 1024));
    stage.data_bytes = (clients * value.len()) as u64;
    stage.begin().await?;
    let run = |crowd: Crowd, client| {
        let request = Request::put(&format!("hang-up-{client}"), value.clone());
        async move {
            loop {
                crowd.connect().await?.send(&request).await?;
                tokio::time::sleep(PAUSE).await;
            }
        }
    };
    stage.run(clients, run).await
}

async fn tiny_chunks(stage: &mut Stage) -> Result<()> {
    let clients = stage.count(256);
    stage.data_bytes = (clients * 64 * 1024) as u64;
    let body = Bytes::from("1\r\nx\r\n".repeat(64 * 1024) + "0\r\n\r\n");
    stage.begin().await?;
    let run = |crowd: Crowd, client| {
        let target = format!("/v1/kv/chunks-{client}");
        let head = Request::new("PUT", &target, &[("Transfer-Encoding", "chunked")], Bytes::new()).head;
        crowd.repeat(Request { head, body: body.clone() })
    };
    stage.run(clients, run).await
}

async fn expire_at_once(stage: &mut Stage) -> Result<()> {
    /// How long filling may take, and how long the probe continues after the keys have expired.
    const FILL: Duration = Duration::from_secs(4);
    const MARGIN: Duration = Duration::from_secs(1);

    let keys = stage.count(100_000);
    let expires_at = Instant::now() + MARGIN + FILL.mul_f64(keys as f64 / 100_000.0);
    stage
        .fill_with(keys, 64, move |number, now| {
            let ttl_ms = expires_at.saturating_duration_since(now).as_millis().max(100);
            format!(r#"{{"put":{{"key":"expiring/{number:08}","value":"","ttl":"{ttl_ms}ms"}}}}"#)
        })
        .await?;
    let before = expires_at.saturating_duration_since(Instant::now());
    stage.length = before + MARGIN;
    stage.begin().await?;
    stage.note(format!("the keys existed {} ms before they expired", before.as_millis()));
    tokio::time::sleep_until(stage.crowd.deadline).await;
    Ok(())
}

async fn idempotency_keys(stage: &mut Stage) -> Result<()> {
    stage.remembers = true;
    stage.begin().await?;
    let run = |crowd: Crowd, client: usize| async move {
        let mut connection = crowd.connect().await?;
        let mut id = String::new();
        for number in 0_u64.. {
            id.clear();
            // Writing to a String cannot fail.
            let _ = write!(id, "{client:064}{number:064}");
            let headers = [("Idempotency-Key", id.as_str())];
            let value = Bytes::from_static(b"a small value");
            connection.call(&Request::new("PUT", &format!("/v1/kv/once-{client}"), &headers, value)).await?;
        }
        Ok(())
    };
    stage.run(stage.count(64), run).await
}

async fn rpc_held_back(stage: &mut Stage) -> Result<()> {
    let length = (40 * MEBIBYTE).to_string();
    let head = Request::new("POST", "/raft-append", &[("Content-Length", &length)], Bytes::new()).head;
    let request = Request { head, body: Bytes::from(vec![b' '; MEBIBYTE]) };
    stage.begin().await?;
    stage.run(stage.count(200), |crowd, _| held_back(crowd, request.clone())).await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The documentation describes each load.
    #[test]
    fn the_documentation_has_every_load() {
        let documentation = include_str!("../../../../docs/benchmarks.md");
        for row in ROWS {
            assert!(documentation.contains(&format!("| `{}` | {} |", row.name, row.what)), "{}", row.name);
        }
    }
}
