//! Commands about snapshots: `save`, `inspect`, `restore` and `load`.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use bytes::{Buf, Bytes};
use raft_key_value::client::{Compare, Relation, SnapshotDownload, TxnOperation};
use raft_key_value::config::{TTL_MS_MAX, TTL_MS_MIN, check_address};
use raft_key_value::store::snapshot::format::{self, Scanned, Summary};
use raft_key_value::store::{StoreError, durable, ownership, rebuild};
use raft_key_value::{ClientError, ExampleClient, NodeId};
use rustix::process::setpriority_process;
use serde::Serialize;
use tokio::sync::mpsc;

use super::arguments::{SnapshotInspect, SnapshotLoad, SnapshotRestore, SnapshotSave};
use super::failure::Failure;
use super::output::{Output, printable};
use super::progress::{Progress, size_of};

/// Downloads that are begun before a command gives up. A node that fails meanwhile ends one.
const ATTEMPTS_MAX: usize = 3;
/// Pieces of a download that wait to be verified and written. With more, each piece would use memory that is not in the
/// processor's cache.
const PIECES_WAITING_MAX: usize = 4;
/// Nice value of `save`.
const SAVE_NICENESS: i32 = 10;
/// Prefixes that `inspect` shows.
const PREFIXES_SHOWN: usize = 10;
/// Keys in one transaction of `load`: fewer than a node allows by default.
const LOAD_KEYS_MAX: usize = 100;
/// Length of such a transaction as JSON, in bytes: less than a node allows by default.
const LOAD_BYTES_MAX: usize = 1 << 20;
/// Transactions that are read ahead.
const LOADS_WAITING_MAX: usize = 2;

/// What `save` and `inspect` print.
#[derive(Debug, Serialize)]
struct Contents {
    file: PathBuf,
    format: u32,
    bytes: u64,
    index: Option<u64>,
    term: Option<u64>,
    revision: u64,
    oldest_revision: u64,
    log_time_ms: u64,
    keys: usize,
    expiring_keys: usize,
    key_bytes: u64,
    value_bytes: u64,
    changes: usize,
    requests: usize,
    #[serde(skip_serializing_if = "is_zero")]
    tokens: usize,
    hash: String,
    members: Vec<Member>,
    #[serde(skip_serializing_if = "Option::is_none")]
    largest_prefixes: Option<Vec<Group>>,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

#[derive(Debug, Serialize)]
struct Member {
    node: NodeId,
    role: &'static str,
    addr: String,
}

impl Contents {
    fn of(file: &Path, summary: Summary, largest_prefixes: Option<Vec<Group>>) -> Self {
        let membership = summary.meta.last_membership.membership();
        let voters: Vec<NodeId> = membership.voter_ids().collect();
        let role_of = |id: &NodeId| if voters.contains(id) { "voter" } else { "learner" };
        let members =
            membership.nodes().map(|(id, node)| Member { node: *id, role: role_of(id), addr: node.addr.clone() });
        Contents {
            file: file.to_owned(),
            format: summary.format,
            bytes: summary.bytes,
            index: summary.meta.last_log_id.map(|log_id| log_id.index),
            term: summary.meta.last_log_id.map(|log_id| log_id.leader_id.term),
            revision: summary.revision,
            oldest_revision: summary.oldest_revision,
            log_time_ms: summary.clock_ms,
            keys: summary.keys,
            expiring_keys: summary.expiring_keys,
            key_bytes: summary.key_bytes,
            value_bytes: summary.value_bytes,
            changes: summary.changes,
            requests: summary.requests,
            tokens: summary.tokens,
            hash: summary.hash.to_string(),
            members: members.collect(),
            largest_prefixes,
        }
    }

    fn line(&self) -> String {
        let index = self.index.map_or_else(|| "none".to_owned(), |index| index.to_string());
        let (keys, size, hash) = (self.keys, size_of(self.bytes), &self.hash);
        format!("{keys} keys, {size}, index {index}, revision {}, hash {hash}", self.revision)
    }
}

/// `snapshot save`
pub async fn save(client: &ExampleClient, mut output: Output, save: SnapshotSave) -> Result<(), Failure> {
    if save.file.is_dir() || save.file.file_name().is_none() {
        return Err(Failure::Usage(format!("`{}` must be a file, not a directory", save.file.display())));
    }
    // A node on this machine has priority. Later threads inherit the value. If it cannot be set, saving delays requests
    // more.
    let _ = setpriority_process(None, SAVE_NICENESS);
    let mut name = save.file.clone().into_os_string();
    name.push(".part");
    let part = PathBuf::from(name);
    let mut attempts = 1..=ATTEMPTS_MAX;
    loop {
        let _ = attempts.next();
        // Before the request: a file that cannot be written costs the cluster nothing.
        let file = ownership::create_file(&part).map_err(|error| cannot("create", &part, &error))?;
        let saved = save_once(client, &save, file, &part).await;
        match saved {
            Ok(summary) => {
                let contents = Contents::of(&save.file, summary, None);
                let text = format!("saved `{}`: {}", save.file.display(), contents.line());
                output.line(&contents, text)?;
                return Ok(output.flush()?);
            }
            Err(failure) => {
                // Only a whole file gets the name; a part of one is of no use.
                let _ = fs::remove_file(&part);
                let is_lost = matches!(&failure, Failure::Client(ClientError::AnswerLost { .. }));
                if !is_lost || attempts.is_empty() {
                    return Err(failure);
                }
            }
        }
    }
}

async fn save_once(client: &ExampleClient, save: &SnapshotSave, file: File, part: &Path) -> Result<Summary, Failure> {
    let download = if save.stale { client.snapshot_stale().await? } else { client.snapshot().await? };
    let (announced, addr) = (download.bytes, download.addr.clone());
    let (summary, file) = receive(download, file, part).await?;
    if summary.bytes != announced {
        return Err(Failure::Unavailable(format!("the node at {addr} sent another snapshot than it announced")));
    }
    durable::publish(&file, part, &save.file).map_err(|error| cannot("write", &save.file, &error))?;
    Ok(summary)
}

/// Writes a snapshot into a file, and verifies it while it arrives.
async fn receive(mut download: SnapshotDownload<'_>, file: File, part: &Path) -> Result<(Summary, File), Failure> {
    let (pieces_tx, pieces) = mpsc::channel(PIECES_WAITING_MAX);
    let path = part.to_owned();
    let verify = move || {
        let mut source = Arriving { pieces, piece: Bytes::new(), file, failure: None };
        let verified = format::scan_from(&mut source, &path, &mut |_| Ok(()));
        match (source.failure, verified) {
            (Some(error), _) => Err(cannot("write", &path, &error)),
            (None, Ok(summary)) => Ok((summary, source.file)),
            (None, Err(error)) => Err(Failure::Store(error)),
        }
    };
    // Not on the blocking pool: the runtime would wait for it when the command is interrupted.
    let verifier = thread::Builder::new().name("verifier".to_owned()).spawn(verify);
    let verifier = verifier.map_err(|error| Failure::Input(format!("cannot start a thread: {error}")))?;
    let mut progress = Progress::new("saving");
    let mut received = 0;
    let lost = loop {
        match download.chunk().await {
            Ok(Some(piece)) => {
                received += piece.len() as u64;
                progress.show(received, download.bytes);
                if pieces_tx.send(piece).await.is_err() {
                    break None;
                }
            }
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    progress.end();
    drop(pieces_tx);
    let verified = verifier.join().unwrap_or_else(|_| Err(Failure::Input("the verifier panicked".to_owned())));
    match (lost, verified) {
        // The file ends early only because of this.
        (Some(error), Ok(_) | Err(Failure::Store(_))) => Err(Failure::Client(error)),
        (_, verified) => verified,
    }
}

/// A snapshot that arrives, and is written into a file as it is read.
struct Arriving {
    pieces: mpsc::Receiver<Bytes>,
    piece: Bytes,
    file: File,
    /// Why the file could not be written.
    failure: Option<io::Error>,
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() {
            let Some(piece) = self.pieces.blocking_recv() else { return Ok(0) };
            if let Err(error) = self.file.write_all(&piece) {
                let kind = error.kind();
                self.failure = Some(error);
                return Err(kind.into());
            }
            self.piece = piece;
        }
        let length = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

/// `snapshot inspect`
pub fn inspect(mut output: Output, inspect: SnapshotInspect) -> Result<(), Failure> {
    let (mut groups, mut alone) = ([Groups::at(1), Groups::at(2)], Group::default());
    let summary = format::scan(&inspect.file, &mut |record| {
        if let Scanned::Key(key, record) = record {
            let value_bytes = record.value.len();
            groups.iter_mut().for_each(|groups| groups.add(key, value_bytes));
            if !key.contains('/') {
                alone.add(key, value_bytes);
            }
        }
        Ok(())
    })?;
    let mut largest: Vec<Group> = groups.into_iter().flat_map(Groups::largest).collect();
    largest.sort_by(|one, other| other.bytes.cmp(&one.bytes).then_with(|| one.prefix.cmp(&other.prefix)));
    largest.truncate(PREFIXES_SHOWN);
    // Last, whatever its size: it is no prefix.
    largest.extend((alone.keys > 0).then_some(alone));
    let contents = Contents::of(&inspect.file, summary, Some(largest));
    if output.is_json() {
        output.line(&contents, "")?;
        return Ok(output.flush()?);
    }
    let number = |number: Option<u64>| number.map_or_else(|| "none".to_owned(), |number| number.to_string());
    let members = contents.members.iter().map(|it| format!("{} ({}, {})", it.node, it.role, printable(&it.addr)));
    let rows = [
        ("format", contents.format.to_string()),
        ("length", size_of(contents.bytes)),
        ("log index", format!("{}, term {}", number(contents.index), number(contents.term))),
        ("revision", format!("{}, watches resume from {}", contents.revision, contents.oldest_revision)),
        ("keys", format!("{}, of which {} expire", contents.keys, contents.expiring_keys)),
        ("keys and values", format!("{}, {}", size_of(contents.key_bytes), size_of(contents.value_bytes))),
        ("history", format!("{} changes", contents.changes)),
        ("requests", format!("{} remembered", contents.requests)),
        ("hash", contents.hash.clone()),
        ("members", members.collect::<Vec<_>>().join(", ")),
    ];
    output.table(&rows.map(|(name, value)| vec![name.to_owned(), value]))?;
    let largest = contents.largest_prefixes.unwrap_or_default();
    if !largest.is_empty() {
        let mut rows = vec![["PREFIX", "KEYS", "SIZE"].map(str::to_owned).to_vec()];
        let name = |it: &Group| if it.prefix.is_empty() { "(no slash)".to_owned() } else { printable(&it.prefix) };
        rows.extend(largest.iter().map(|it| vec![name(it), it.keys.to_string(), size_of(it.bytes)]));
        output.line(&(), "")?;
        output.table(&rows)?;
    }
    Ok(output.flush()?)
}

/// The keys with a prefix that ends in `/`, or those without a slash.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct Group {
    /// Empty for the keys without a slash.
    prefix: String,
    keys: u64,
    /// Bytes of the keys and values.
    bytes: u64,
}

impl Group {
    fn add(&mut self, key: &str, value_bytes: usize) {
        self.keys += 1;
        self.bytes += (key.len() + value_bytes) as u64;
    }
}

/// The largest groups of keys with the same parts up to a number of slashes. Keys come in order, so that each group is
/// complete when the next one begins.
struct Groups {
    slashes: usize,
    current: Option<Group>,
    largest: Vec<Group>,
}

impl Groups {
    fn at(slashes: usize) -> Self {
        Groups { slashes, current: None, largest: Vec::new() }
    }

    fn add(&mut self, key: &str, value_bytes: usize) {
        let end = key.match_indices('/').nth(self.slashes - 1).map(|(position, _)| position + 1);
        let Some(prefix) = end.map(|end| &key[..end]) else { return };
        if self.current.as_ref().is_none_or(|current| current.prefix != prefix) {
            self.finish();
            self.current = Some(Group { prefix: prefix.to_owned(), keys: 0, bytes: 0 });
        }
        if let Some(current) = &mut self.current {
            current.add(key, value_bytes);
        }
    }

    fn finish(&mut self) {
        let Some(group) = self.current.take() else { return };
        let position = self.largest.partition_point(|other| other.bytes >= group.bytes);
        self.largest.insert(position, group);
        self.largest.truncate(PREFIXES_SHOWN);
    }

    fn largest(mut self) -> Vec<Group> {
        self.finish();
        self.largest
    }
}

/// What `restore` prints.
#[derive(Debug, Serialize)]
struct Restored {
    directory: PathBuf,
    cluster_id: String,
    node: NodeId,
    addr: String,
    index: Option<u64>,
    revision: u64,
    keys: usize,
    hash: String,
}

/// `snapshot restore`
pub async fn restore(mut output: Output, restore: SnapshotRestore) -> Result<(), Failure> {
    let addr = &restore.advertise_addr;
    check_address("--advertise-addr", addr).map_err(|error| Failure::Usage(error.to_string()))?;
    let (founded, summary) = rebuild::restore(&restore.file, &restore.data_dir, restore.id, addr).await?;
    let restored = Restored {
        directory: founded.directory.clone(),
        cluster_id: founded.identity.cluster_id.map(|id| id.to_string()).unwrap_or_default(),
        node: restore.id,
        addr: founded.addr,
        index: summary.meta.last_log_id.map(|log_id| log_id.index),
        revision: summary.revision,
        keys: summary.keys,
        hash: summary.hash.to_string(),
    };
    let Restored { directory, cluster_id, node, addr, revision, keys, hash, .. } = &restored;
    let text = format!(
        "`{}` is node {node} at {addr}, the first of the new cluster {cluster_id}: {keys} keys, revision {revision}, \
         hash {hash}\nstart it, and then add the other nodes, each with an empty directory",
        directory.display()
    );
    output.line(&restored, text)?;
    Ok(output.flush()?)
}

/// What `load` prints.
#[derive(Debug, Default, Serialize)]
struct Loaded {
    /// Keys that were put.
    loaded: usize,
    /// Keys that had the value already.
    unchanged: usize,
    /// The revision of the store after the last one.
    revision: Option<u64>,
}

/// A key to load.
struct Item {
    key: String,
    value: Vec<u8>,
    ttl: Option<Duration>,
}

/// `snapshot load`
pub async fn load(client: &ExampleClient, mut output: Output, load: SnapshotLoad) -> Result<(), Failure> {
    // Nothing is loaded from a file that is damaged anywhere.
    let summary = format::scan(&load.file, &mut |_| Ok(()))?;
    let total = summary.key_bytes + summary.value_bytes;
    let (batches_tx, mut batches) = mpsc::channel(LOADS_WAITING_MAX);
    let (file, prefix) = (load.file.clone(), load.prefix);
    let read = move || read_batches(&file, &prefix, &batches_tx);
    let reader = thread::Builder::new().name("reader".to_owned()).spawn(read);
    let reader = reader.map_err(|error| Failure::Input(format!("cannot start a thread: {error}")))?;
    let mut progress = Progress::new("loading");
    let mut loaded = Loaded::default();
    while let Some((batch, done)) = batches.recv().await {
        if let Err(error) = load_batch(client, batch, &mut loaded).await {
            progress.end();
            return Err(Failure::Partly { loaded: loaded.loaded, error: Box::new(error) });
        }
        progress.show(done, total);
    }
    progress.end();
    reader.join().map_err(|_| Failure::Input("the reader panicked".to_owned()))??;
    let Some(revision) = loaded.revision else {
        return Err(Failure::No("no key in the file has the prefix".to_owned()));
    };
    let Loaded { loaded: count, unchanged, .. } = loaded;
    let text = format!("loaded {count} keys, {unchanged} had their values already, revision {revision}");
    output.line(&loaded, text)?;
    Ok(output.flush()?)
}

/// Reads the keys with a prefix, and sends them in batches, each with the bytes of all keys of the file before its end.
fn read_batches(file: &Path, prefix: &str, batches: &mpsc::Sender<(Vec<Item>, u64)>) -> Result<(), StoreError> {
    let (mut batch, mut batch_bytes, mut done, mut clock_ms) = (Vec::new(), 0, 0, 0);
    let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    format::scan(file, &mut |record| {
        let (key, record) = match record {
            Scanned::State(machine) => {
                clock_ms = machine.clock_ms;
                return Ok(());
            }
            Scanned::Key(key, record) => (key, record),
            _ => return Ok(()),
        };
        let value = record.value;
        done += (key.len() + value.len()) as u64;
        if !key.starts_with(prefix) {
            return Ok(());
        }
        let ttl = record.expires_in_ms(clock_ms).map(|left_ms| left_ms.clamp(TTL_MS_MIN, TTL_MS_MAX));
        let item = Item { key: key.to_string(), value: value.to_vec(), ttl: ttl.map(Duration::from_millis) };
        // The value is in a comparison and in a put.
        let bytes = 2 * json_bytes(&item);
        if !batch.is_empty() && (batch.len() == LOAD_KEYS_MAX || batch_bytes + bytes > LOAD_BYTES_MAX) {
            batches.blocking_send((std::mem::take(&mut batch), done)).map_err(gone)?;
            batch_bytes = 0;
        }
        batch_bytes += bytes;
        batch.push(item);
        Ok(())
    })?;
    if !batch.is_empty() {
        // An error means that the command has failed.
        let _ = batches.blocking_send((batch, done));
    }
    Ok(())
}

fn json_bytes(item: &Item) -> usize {
    serde_json::to_vec(&TxnOperation::put(item.key.as_str(), &item.value)).map_or(usize::MAX / 4, |json| json.len())
}

/// Puts the keys of a batch, unless all of them have their values. So a command that is repeated changes only what it
/// has not loaded yet.
async fn load_batch(client: &ExampleClient, batch: Vec<Item>, loaded: &mut Loaded) -> Result<(), ClientError> {
    if let [item] = batch.as_slice()
        && 2 * json_bytes(item) > LOAD_BYTES_MAX
    {
        return load_long(client, item, loaded).await;
    }
    let count = batch.len();
    let mut txn = client.txn();
    // A TTL cannot be compared.
    let may_be_unchanged = batch.iter().all(|item| item.ttl.is_none());
    for item in &batch {
        if may_be_unchanged {
            txn = txn.when(Compare::value(item.key.as_str(), Relation::Equal, &item.value));
        }
        let put = match item.ttl {
            None => TxnOperation::put(item.key.as_str(), &item.value),
            Some(ttl) => TxnOperation::put_with_ttl(item.key.as_str(), &item.value, ttl),
        };
        txn = if may_be_unchanged { txn.otherwise(put) } else { txn.then(put) };
    }
    let answer = txn.await?.answer;
    if may_be_unchanged && answer.succeeded {
        loaded.unchanged += count;
    } else {
        loaded.loaded += count;
    }
    loaded.revision = Some(answer.revision);
    Ok(())
}

/// Puts a key whose value is too long for a transaction.
async fn load_long(client: &ExampleClient, item: &Item, loaded: &mut Loaded) -> Result<(), ClientError> {
    let current = client.get(&item.key).await?;
    if item.ttl.is_none()
        && let Some(current) = current
        && current.expires_in_ms.is_none()
        && current.bytes().is_some_and(|bytes| *bytes == item.value)
    {
        loaded.unchanged += 1;
        loaded.revision = loaded.revision.max(Some(current.revision));
        return Ok(());
    }
    let mut put = client.put(item.key.as_str(), &item.value);
    if let Some(ttl) = item.ttl {
        put = put.ttl(ttl);
    }
    let answer = put.await?.answer;
    loaded.loaded += 1;
    loaded.revision = Some(answer.revision);
    Ok(())
}

fn cannot(action: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::File(format!("cannot {action} `{}`: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// The largest groups are found, with the sums of their keys, however many groups there are.
    ///
    /// Method: keys in order, in more groups than are kept, against sums of all.
    #[test]
    fn largest_groups() {
        let mut keys: Vec<String> = (0..40).flat_map(|a| (0..=a % 7).map(move |b| format!("{a:02}/{b}/key"))).collect();
        keys.push("no slash".to_owned());
        keys.sort();
        for slashes in [1, 2] {
            let mut groups = Groups::at(slashes);
            let mut expected: BTreeMap<String, Group> = BTreeMap::new();
            for key in &keys {
                groups.add(key, 10);
                let parts: Vec<&str> = key.split('/').collect();
                if parts.len() > slashes {
                    let prefix = parts[..slashes].join("/") + "/";
                    let group = expected.entry(prefix.clone()).or_insert(Group { prefix, keys: 0, bytes: 0 });
                    (group.keys, group.bytes) = (group.keys + 1, group.bytes + key.len() as u64 + 10);
                }
            }
            let mut expected: Vec<Group> = expected.into_values().collect();
            expected.sort_by_key(|group| std::cmp::Reverse(group.bytes));
            expected.truncate(PREFIXES_SHOWN);
            assert_eq!(groups.largest(), expected, "{slashes} slashes");
        }
    }
}
