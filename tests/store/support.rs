//! Helpers of the store's tests: entries, observations of a store, files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::future::Future;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use openraft::storage::{IOFlushed, RaftLogStorage, RaftStateMachine};
use openraft::type_config::TypeConfigExt;
use openraft::vote::RaftLeaderId;
use openraft::{Membership, RaftLogReader, RaftSnapshotBuilder};
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use raft_key_value::operation::{
    self, Comparison, Condition, Delete, Operand, Operation, Put, Relation, RequestId, Touch, Txn, TxnStep, Value,
};
use raft_key_value::store::log::LogTypes;
use raft_key_value::store::{ClusterId, ExampleStore, LogSizes, StoreError};
use raft_key_value::types::{Command, Entry, LogId, Payload, SnapshotMeta, StoredMembership, Vote};
use raft_key_value::{ExampleNode, TypeConfig};
use raft_log::RaftLogRecord;
use raft_log::codeq::Decode;
use tempfile::TempDir;

/// The node whose directory the tests use.
pub const NODE: u64 = 1;

/// The cluster it joins.
pub const CLUSTER: ClusterId = ClusterId(0xc1);

/// Small log files, so that a few entries fill several, and a nearly empty cache.
pub const SMALL: LogSizes = LogSizes { chunk_bytes_max: 400, cache_bytes_max: 100 };

/// A directory for a test that opens stores thousands of times. It is in memory if possible, because such a test is not
/// about power loss.
pub fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Runs a future to completion on this thread.
pub fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Opens the node's store, which must succeed.
pub fn open(data_dir: &Path) -> ExampleStore {
    ExampleStore::open(data_dir, NODE).unwrap()
}

/// Opens the node's store with small log files.
pub fn open_small(data_dir: &Path) -> Result<ExampleStore, StoreError> {
    ExampleStore::open_with(data_dir, NODE, SMALL)
}

/// The node's own directory.
pub fn node_directory(data_dir: &Path) -> PathBuf {
    data_dir.join(format!("node-{NODE}"))
}

pub fn log_directory(data_dir: &Path) -> PathBuf {
    node_directory(data_dir).join("log")
}

pub fn snapshot_path(data_dir: &Path, index: u64) -> PathBuf {
    node_directory(data_dir).join(format!("snapshots/{index}.snap"))
}

pub fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(RaftLeaderId::new(term, NODE), index)
}

pub fn vote(term: u64, committed: bool) -> Vote {
    Vote { leader_id: RaftLeaderId::new(term, NODE), committed }
}

pub fn blank(term: u64, index: u64) -> Entry {
    Entry { log_id: log_id(term, index), payload: Payload::Blank }
}

pub fn set(term: u64, index: u64, key: &str, value: &str) -> Entry {
    write(term, index, 0, None, Operation::Put(put_of(key, value)))
}

pub fn put_of(key: &str, value: &str) -> Put {
    Put { key: key.into(), value: value.into(), ttl_ms: None, condition: None }
}

pub fn write(term: u64, index: u64, at_ms: u64, request: Option<&str>, operation: Operation) -> Entry {
    let request = request.map(|key| Arc::new(RequestId { key: key.into(), fingerprint: [index, u64::MAX] }));
    let write = operation::Write { at_ms, request, operation };
    Entry { log_id: log_id(term, index), payload: Payload::Normal(Command::Write(write)) }
}

/// The number of kinds of writes in [`varied`].
pub const KINDS: u64 = 8;

/// A write of a different kind at each index, so that [`KINDS`] consecutive ones have everything that an entry can
/// have.
///
/// A state after the first five has everything that a snapshot can have.
pub fn varied(term: u64, index: u64) -> Entry {
    let request = format!("request {index}");
    let (request, plain) = (Some(request.as_str()), None);
    let (request, operation) = match index % KINDS {
        1 => (request, Operation::Txn(Arc::new(a_txn()))),
        2 => (request, Operation::Put(put_of("a", "2"))),
        3 => (plain, Operation::Delete(Delete { key: "c".into(), condition: Some(Condition::Present) })),
        // The TTL of 250 ms that the transaction set has passed by now.
        4 => (plain, Operation::Expire),
        5 => {
            let missing = Some(Condition::Missing);
            (plain, Operation::Put(Put { ttl_ms: Some(10_000), condition: missing, ..put_of("d", "é") }))
        }
        6 => {
            let condition = Some(Condition::Revision(5));
            (request, Operation::Touch(Touch { key: "d".into(), ttl_ms: Some(20_000), condition }))
        }
        7 => (request, Operation::DeletePrefix { prefix: "a".into(), revision_max: None }),
        _ => (plain, Operation::DeletePrefix { prefix: "".into(), revision_max: Some(1) }),
    };
    write(term, index, 100 * index, request, operation)
}

fn a_txn() -> Txn {
    let comparison = |relation, operand| Comparison { key: "a".into(), relation, operand };
    let compare = vec![
        comparison(Relation::Equal, Operand::Exists(false)),
        comparison(Relation::NotEqual, Operand::Value("1".into())),
        comparison(Relation::Less, Operand::Revision(7)),
        comparison(Relation::LessOrEqual, Operand::CreateRevision(7)),
        comparison(Relation::GreaterOrEqual, Operand::Version(0)),
    ];
    let success = vec![
        TxnStep::Put(put_of("a", "1")),
        TxnStep::Put(Put { ttl_ms: Some(200), ..put_of("b", "1") }),
        TxnStep::Put(put_of("c", "1")),
        TxnStep::Touch(Touch { key: "b".into(), ttl_ms: Some(250), condition: None }),
        TxnStep::Delete(Delete { key: "none".into(), condition: None }),
        TxnStep::Get("b".into()),
    ];
    Txn { compare, success, failure: vec![TxnStep::Get("a".into())] }
}

pub fn membership(term: u64, index: u64, voters: &[u64]) -> Entry {
    let node = |id: &u64| (*id, ExampleNode { addr: format!("127.0.0.1:{}", 21000 + id), incarnation: 7 * id });
    let nodes: BTreeMap<_, _> = voters.iter().map(node).collect();
    let voters: BTreeSet<_> = voters.iter().copied().collect();
    let membership = Membership::new(vec![voters], nodes).unwrap();
    Entry { log_id: log_id(term, index), payload: Payload::Membership(membership) }
}

/// Appends entries and waits until they are acknowledged.
pub async fn append(store: &ExampleStore, entries: impl IntoIterator<Item = Entry> + Send) {
    let (tx, rx) = TypeConfig::oneshot();
    let entries: Vec<Entry> = entries.into_iter().collect();
    store.log.clone().append(entries, IOFlushed::signal(tx)).await.unwrap();
    rx.await.unwrap().unwrap();
}

/// Applies entries, as openraft does once they are committed.
pub async fn apply(store: &ExampleStore, entries: impl IntoIterator<Item = Entry>) {
    let entries: Vec<_> = entries.into_iter().map(|entry| Ok((entry, None))).collect();
    store.state_machine.clone().apply(futures_util::stream::iter(entries)).await.unwrap();
}

/// Applies the entries in the log up to an index, starting after the last applied one.
pub async fn apply_from_log(store: &ExampleStore, last: u64) {
    let applied = store.state_machine.read(|machine| machine.last_applied);
    let next = applied.map_or(0, |log_id| log_id.index + 1);
    let entries = store.log.clone().try_get_log_entries(next..last + 1).await.unwrap();
    assert_eq!(entries.len() as u64, (last + 1).saturating_sub(next), "the log lacks entries from {next} to {last}");
    apply(store, entries).await;
}

/// Takes a snapshot of the current state.
pub async fn build_snapshot(store: &ExampleStore) -> SnapshotMeta {
    store.state_machine.clone().get_snapshot_builder().await.build_snapshot().await.unwrap().meta
}

/// Installs the newest snapshot of `from` in `to`, by the same path as one that was received.
pub async fn install_snapshot(from: &ExampleStore, to: &ExampleStore) {
    let snapshot = from.state_machine.clone().get_current_snapshot().await.unwrap().unwrap();
    let temporary = to.state_machine.snapshots().temporary_file();
    io::copy(&mut &**snapshot.snapshot.file, &mut fs::File::create(temporary.path()).unwrap()).unwrap();
    let (meta, received) = to.state_machine.snapshots().verify(temporary).unwrap();
    assert_eq!(meta, snapshot.meta);
    to.state_machine.clone().install_snapshot(&meta, received).await.unwrap();
}

/// The observable state of a store.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    pub vote: Option<Vote>,
    pub purged: Option<LogId>,
    pub last: Option<LogId>,
    pub committed: Option<LogId>,
    pub entries: Vec<Entry>,
    pub applied: Option<LogId>,
    pub membership: StoredMembership,
    pub data: BTreeMap<String, String>,
    pub snapshot: Option<SnapshotMeta>,
}

pub fn observe(store: &ExampleStore) -> Observed {
    run(async {
        let mut log = store.log.clone();
        let state = log.get_log_state().await.unwrap();
        let snapshot = store.state_machine.clone().get_current_snapshot().await.unwrap();
        let (applied, membership, data) = store.state_machine.read(|machine| {
            let data = machine.data.iter().map(|(key, record)| (key.to_string(), text_of(&record.value))).collect();
            (machine.last_applied, machine.last_membership.clone(), data)
        });
        Observed {
            vote: log.read_vote().await.unwrap(),
            purged: state.last_purged_log_id,
            last: state.last_log_id,
            committed: log.read_committed().await.unwrap(),
            entries: log.try_get_log_entries(..).await.unwrap(),
            applied,
            membership,
            data,
            snapshot: snapshot.map(|snapshot| snapshot.meta),
        }
    })
}

/// An entry of a directory: the bytes of a file, or `None` for a directory.
pub type Files = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// All files and directories below a directory, except lock files, which may change with each attempt.
pub fn files(directory: &Path) -> Files {
    try_files(directory).unwrap()
}

fn try_files(directory: &Path) -> io::Result<Files> {
    let mut found = Files::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(try_files(&path)?);
            found.insert(path, None);
        } else if path.file_name().unwrap() != "LOCK" {
            let bytes = fs::read(&path)?;
            found.insert(path, Some(bytes));
        }
    }
    Ok(found)
}

/// Replaces the content of a directory, except lock files.
pub fn restore(directory: &Path, wanted: &Files) {
    for (path, found) in files(directory).into_iter().rev() {
        match (found, wanted.get(&path)) {
            (Some(_), None) => fs::remove_file(&path).unwrap(),
            (None, None) => fs::remove_dir_all(&path).unwrap(),
            _ => {}
        }
    }
    for (path, content) in wanted {
        match content {
            None => fs::create_dir_all(path).unwrap(),
            Some(bytes) => fs::write(path, bytes).unwrap(),
        }
    }
}

/// A copy of a data directory, as a crash of the process would leave it.
pub fn copy(data_dir: &Path) -> TempDir {
    let copy = scratch();
    // An open store may be deleting a log file at this moment.
    let found = std::iter::repeat_with(|| try_files(data_dir)).find_map(Result::ok).unwrap();
    let moved = found.into_iter();
    let moved = moved.map(|(path, content)| (copy.path().join(path.strip_prefix(data_dir).unwrap()), content));
    restore(copy.path(), &moved.collect());
    copy
}

/// The log files of a store, oldest first.
pub fn log_files(data_dir: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(log_directory(data_dir)).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|end| end == "wal")).collect();
    paths.sort();
    paths
}

/// Asserts that opening fails because of damage in a file, and changes nothing. Returns the file, the offset and the
/// message.
#[track_caller]
pub fn assert_damaged(data_dir: &Path) -> (PathBuf, Option<u64>, String) {
    let before = files(data_dir);
    let error = open_small(data_dir).unwrap_err();
    assert_eq!(files(data_dir), before, "a refused directory was changed: {error}");
    let StoreError::Damaged { path, offset, what } = error else { panic!("{error}") };
    (path, offset, what)
}

/// The offsets of the records in a log file, followed by the file's length.
pub fn record_offsets(path: &Path) -> Vec<u64> {
    let bytes = fs::read(path).unwrap();
    let mut rest = bytes.as_slice();
    let mut offsets = vec![0];
    while !rest.is_empty() {
        RaftLogRecord::<LogTypes>::decode(&mut rest).unwrap();
        offsets.push((bytes.len() - rest.len()) as u64);
    }
    offsets
}

/// The log output of this thread while `work` ran.
pub fn logged<T>(work: impl FnOnce() -> T) -> (T, String) {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let result = tracing::subscriber::with_default(subscriber, work);
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    (result, text)
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A value as text.
pub fn text_of(value: &Value) -> String {
    value.as_text().unwrap().to_owned()
}

/// Checks random cases: this many, unless PROPTEST_CASES is set. A failure names the seed and the simplest failing
/// case.
pub fn any_of<S: Strategy>(test: &str, cases: u32, strategy: S, check: impl Fn(S::Value)) {
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    let seed = match config.rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
    };
    config.rng_seed = RngSeed::Fixed(seed);
    let result = TestRunner::new(config).run(&strategy, |case| {
        check(case);
        Ok(())
    });
    if let Err(failure) = result {
        panic!("again: PROPTEST_RNG_SEED={seed} cargo test --test store {test}\n{failure}");
    }
}
