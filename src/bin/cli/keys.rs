//! Commands about keys and values.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::stream::StreamExt;
use futures_util::{Stream, TryStreamExt};
use raft_key_value::body::TxnRequest;
use raft_key_value::client::{KeyValue, KeyWrite, TxnResult, WatchEvent};
use raft_key_value::config::REQUEST_BYTES_MAX_LIMIT;
use raft_key_value::error::explain_json;
use raft_key_value::telemetry::logging::say;
use raft_key_value::{ClientError, ExampleClient};

use super::arguments::{Completions, Delete, Get, Input, List, Put, Shell, Touch, Txn, Watch, WriteOptions};
use super::failure::{Failure, verdict};
use super::output::{Output, output_is_closed, printable};

/// Longest part of a value in a table, in characters.
const VALUE_CHARS_SHOWN: usize = 60;
/// A listing with a smaller `--limit` is read as one page of that length.
const SHORT_LISTING_KEYS: usize = 100;

/// How long no node must have served a watch before the command reports it: elections take less.
const LOSS_REPORTED_AFTER: Duration = Duration::from_secs(1);

/// `get`
pub async fn get(client: &ExampleClient, mut output: Output, get: Get) -> Result<(), Failure> {
    let found = if get.stale { client.get_stale(&get.key).await? } else { client.get(&get.key).await? };
    let found = found.ok_or_else(|| Failure::No("the key does not exist".to_owned()))?;
    if output.is_json() {
        output.line(&found, "")?;
    } else {
        output.bytes(&found.bytes().unwrap_or_default())?;
    }
    Ok(output.flush()?)
}

/// `put`
pub async fn put(client: &ExampleClient, mut output: Output, put: Put) -> Result<(), Failure> {
    let mut write = with_options(client.put(put.key, bytes_of(put.value, "value")?), put.options);
    if put.if_missing {
        write = write.if_missing();
    }
    if let Some(ttl) = put.ttl {
        write = write.ttl(ttl);
    }
    let answer = write.await?.answer;
    output.result(&answer, &format!("revision {}, version {}", answer.revision, answer.version))
}

/// `delete`
pub async fn delete(client: &ExampleClient, mut output: Output, delete: Delete) -> Result<(), Failure> {
    let answer = match (delete.key, delete.prefix) {
        (Some(key), _) => with_options(client.delete(key), delete.options).await?,
        (None, prefix) => client.delete_prefix(&prefix.unwrap_or_default()).await?,
    };
    output.result(&answer.answer, &format!("deleted {}, revision {}", answer.deleted, answer.revision))
}

/// `touch`
pub async fn touch(client: &ExampleClient, mut output: Output, touch: Touch) -> Result<(), Failure> {
    let answer = with_options(client.touch(touch.key, touch.ttl), touch.options).await?.answer;
    let left = time_left(answer.expires_in_ms);
    output.result(&answer, &format!("revision {}, version {}, expires in {left}", answer.revision, answer.version))
}

fn with_options<'a, Answer>(mut write: KeyWrite<'a, Answer>, options: WriteOptions) -> KeyWrite<'a, Answer> {
    if options.if_present {
        write = write.if_present();
    }
    if let Some(revision) = options.if_revision {
        write = write.if_revision(revision);
    }
    match options.idempotency_key {
        Some(key) => write.idempotency_key(key),
        None => write,
    }
}

/// `list`
pub async fn list(client: &ExampleClient, mut output: Output, list: List) -> Result<(), Failure> {
    let limit = list.limit.unwrap_or(usize::MAX);
    let mut listing = client.list(list.prefix);
    if let Some(start) = list.start {
        listing = listing.start(start);
    }
    if let Some(end) = list.end {
        listing = listing.end(end);
    }
    if list.reverse {
        listing = listing.reverse();
    }
    if list.keys_only {
        listing = listing.keys_only();
    }
    if list.stale {
        listing = listing.stale();
    }
    if (1..SHORT_LISTING_KEYS).contains(&limit) {
        listing = listing.page_size(limit);
    }
    let mut items = listing.stream().take(limit);
    if output.is_json() || list.keys_only {
        return print_lines(&mut output.spooled()?, items).await;
    }
    let mut rows = vec![["KEY", "REVISION", "VERSION", "EXPIRES IN", "VALUE"].map(str::to_owned).to_vec()];
    while let Some(item) = items.try_next().await? {
        let numbers = [item.revision.to_string(), item.version.to_string(), time_left(item.expires_in_ms)];
        let mut row = vec![printable(&item.key)];
        row.extend(numbers);
        row.push(shown(&item));
        rows.push(row);
    }
    output.table(&rows)?;
    Ok(output.flush()?)
}

/// Prints items as they arrive, including those before an error, which says how many they are.
async fn print_lines<W: Write>(
    output: &mut Output<W>,
    mut items: impl Stream<Item = Result<KeyValue, ClientError>> + Unpin,
) -> Result<(), Failure> {
    let mut printed = 0;
    while let Some(item) = items.next().await {
        match item {
            Ok(item) => output.line(&item, printable(&item.key))?,
            Err(error) if printed == 0 => return Err(error.into()),
            Err(error) => {
                output.flush()?;
                return Err(Failure::Incomplete { printed, error: Box::new(error) });
            }
        }
        printed += 1;
    }
    Ok(output.flush()?)
}

/// `txn`
pub async fn txn(client: &ExampleClient, mut output: Output, txn: Txn) -> Result<(), Failure> {
    let body = bytes_of(txn.body, "transaction")?;
    let request: TxnRequest = serde_json::from_slice(&body).map_err(|error| {
        let place = format!("line {}, column {}", error.line(), error.column());
        Failure::Usage(format!(
            "the transaction is invalid: {} ({place}); see `raft-key-value txn --help`",
            explain_json(&error)
        ))
    })?;
    let mut write = client.txn_of(request);
    if let Some(key) = txn.idempotency_key {
        write = write.idempotency_key(key);
    }
    let answer = write.await?.answer;
    let branch = if answer.succeeded { "success" } else { "failure" };
    let results = answer.results.iter().map(|result| format!("\n{}", text_of_result(result)));
    let text = format!("{branch}, revision {}{}", answer.revision, results.collect::<String>());
    let holds = if answer.succeeded { Ok(()) } else { Err(Failure::No("a comparison does not hold".to_owned())) };
    verdict(output.result(&answer, &text), holds)
}

fn text_of_result(result: &TxnResult) -> String {
    match result {
        TxnResult::Put(put) => format!("put: revision {}, version {}", put.revision, put.version),
        TxnResult::Delete(deleted) => format!("delete: {}", deleted.deleted),
        TxnResult::Get(None) => "get: the key does not exist".to_owned(),
        TxnResult::Get(Some(found)) => {
            format!("get: revision {}, version {}: {}", found.revision, found.version, shown(found))
        }
        TxnResult::Touch(None) => "touch: the key does not exist".to_owned(),
        TxnResult::Touch(Some(touched)) => format!("touch: expires in {}", time_left(touched.expires_in_ms)),
    }
}

/// `watch`
pub async fn watch(client: &ExampleClient, mut output: Output, watch: Watch) -> Result<(), Failure> {
    let mut watching = match watch.key {
        Some(key) => client.watch_key(key),
        None => client.watch(watch.prefix),
    };
    if let Some(revision) = watch.from {
        watching = watching.from(revision);
    }
    if watch.initial {
        watching = watching.initial();
    }
    let endpoints = watch.common.endpoints().len();
    let report = ConnectionReport::default();
    let mut events = watching.on_connection(|state| report.tell(state, endpoints)).stream();
    let mut closed = pin!(output_is_closed());
    loop {
        let event = tokio::select! {
            biased;
            () = &mut closed => return Ok(()),
            event = events.try_next() => event?,
        };
        let Some(event) = event else { return Ok(()) };
        output.line(&event, text_of_event(&event))?;
        output.flush()?;
    }
}

/// Reports on standard error that no endpoint serves a watch and, afterwards, that one does again, each once.
#[derive(Default)]
struct ConnectionReport(Mutex<Connectivity>);

#[derive(Default)]
struct Connectivity {
    /// When the connection broke, or the first attempt failed.
    failing_since: Option<Instant>,
    /// Failures since then.
    failures: usize,
    /// Whether a node has served the watch before.
    was_connected: bool,
    loss_is_reported: bool,
}

impl ConnectionReport {
    fn tell(&self, state: Result<&str, &ClientError>, endpoints: usize) {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match state {
            Ok(addr) => {
                if now.loss_is_reported {
                    say(&format!("the watch continues at {addr}\n"));
                }
                *now = Connectivity { was_connected: true, ..Connectivity::default() };
            }
            Err(error) => {
                now.failures += 1;
                let lasts = now.failing_since.get_or_insert_with(Instant::now).elapsed() >= LOSS_REPORTED_AFTER;
                // The first failure of a watch that was connected is the loss of that connection.
                let all_were_tried = now.failures >= endpoints + usize::from(now.was_connected);
                if lasts && all_were_tried && !now.loss_is_reported {
                    now.loss_is_reported = true;
                    let error = printable(&error.to_string());
                    say(&format!("no endpoint serves the watch, retrying: {error}\n"));
                }
            }
        }
    }
}

fn text_of_event(event: &WatchEvent) -> String {
    let found = |what: &str, found: &KeyValue| {
        format!("{} {what} {} = {}", found.revision, printable(&found.key), shown(found))
    };
    match event {
        WatchEvent::Initial(entry) => found("initial", entry),
        WatchEvent::Put(entry) => found("put", entry),
        WatchEvent::Synced { revision } => format!("{revision} synced"),
        WatchEvent::Delete(gone) => format!("{} delete {}", gone.revision, printable(&gone.key)),
        WatchEvent::Expire(gone) => format!("{} expire {}", gone.revision, printable(&gone.key)),
        WatchEvent::End(end) => format!("end {}", printable(&end.message)),
    }
}

/// The beginning of a value, as part of one line.
fn shown(item: &KeyValue) -> String {
    let Some(text) = item.text() else {
        return format!("({} bytes)", item.bytes().unwrap_or_default().len());
    };
    match text.char_indices().nth(VALUE_CHARS_SHOWN) {
        None => printable(text),
        Some((end, _)) => format!("{}… ({} bytes)", printable(&text[..end]), text.len()),
    }
}

fn time_left(expires_in_ms: Option<u64>) -> String {
    expires_in_ms.map_or("-".to_owned(), |left_ms| format!("{:?}", Duration::from_millis(left_ms)))
}

/// Reads the value or body from the argument, a file, or standard input.
fn bytes_of(input: Input, what: &str) -> Result<Vec<u8>, Failure> {
    match (input.value, input.file) {
        (_, Some(path)) => {
            let read = fs::File::open(&path).and_then(read_all);
            read.map_err(|error| Failure::Input(format!("cannot read `{}`: {error}", path.display())))
        }
        (Some(value), None) if value == "-" => {
            read_all(io::stdin()).map_err(|error| Failure::Input(format!("cannot read standard input: {error}")))
        }
        (Some(value), None) => Ok(value.as_bytes().to_vec()),
        // Do not read standard input by default: without a terminal it is often empty, and the value would be too.
        (None, None) => {
            Err(Failure::Usage(format!("no {what}: pass VALUE, --file FILE, or `-` to read standard input")))
        }
    }
}

fn read_all(source: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(REQUEST_BYTES_MAX_LIMIT as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > REQUEST_BYTES_MAX_LIMIT {
        return Err(io::Error::other(format!(
            "it is longer than {REQUEST_BYTES_MAX_LIMIT} bytes, the most that a node accepts"
        )));
    }
    Ok(bytes)
}

impl Completions {
    /// `completions`
    pub fn print(&self, program: &mut clap::Command) -> Result<(), Failure> {
        let shell = match self.shell {
            Shell::Bash => clap_complete::Shell::Bash,
            Shell::Zsh => clap_complete::Shell::Zsh,
            Shell::Fish => clap_complete::Shell::Fish,
        };
        // Generate it in memory: `generate` panics if it writes to a closed pipe.
        let mut script = Vec::new();
        clap_complete::generate(shell, program, "raft-key-value", &mut script);
        let mut output = io::stdout();
        output.write_all(&script)?;
        Ok(output.flush()?)
    }
}
