//! Makes the directory of the first node of a new cluster: from a snapshot file ([`restore`]), or from the directory of
//! a node that lost its cluster ([`recover`]).
//!
//! The new node is the only voter, and has the state, its revisions and its log time from before. The cluster has a new
//! id, so nodes of the former one never mix with it. Other nodes join with empty directories.
//!
//! **Crashes.** The directory is built beside its final place, under another name, and everything in it is synced.
//! `IDENTITY` comes last: a directory without it is unfinished, and the next attempt deletes it. Then one rename
//! publishes the directory. A recovery exchanges it with the former directory by one system call, so that at every
//! moment the name has either all of the old node or all of the new one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use openraft::Membership;
use openraft::storage::RaftLogStorage;
use openraft::vote::RaftLeaderId;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::clock_file::{self, ClockFile};
use super::error::StoreError;
use super::identity::{ClusterId, DirectoryLock, Identity, IdentityFile, random_nonzero};
use super::log::LogStore;
use super::log::check::{self, CheckedLog};
use super::snapshot::format::{self, Summary};
use super::snapshot::{SnapshotDirectory, file_name_of};
use super::state_machine::ExampleStateMachine;
use super::{durable, ownership};
use crate::config::LogSizes;
use crate::level::Level;
use crate::types::{Entry, ExampleNode, LogId, NodeId, SnapshotMeta, StoredMembership, Vote};

/// Why no directory was made.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// A file or directory was rejected, or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The directory has content.
    #[error("`{}` must be empty or missing; give another --data-dir or --id", .0.display())]
    NotEmpty(PathBuf),
    /// There is no such node.
    #[error("`{}` is not the directory of a node that belonged to a cluster: {why}", path.display())]
    NoMember {
        /// The directory.
        path: PathBuf,
        /// What is missing.
        why: &'static str,
    },
    /// The file holds no state of a cluster.
    #[error("`{}` covers no log entry, so it is not of a cluster", .0.display())]
    NoEntry(PathBuf),
    /// An interrupted recovery left a complete directory behind.
    #[error(
        "`{}` is left from a recovery that was interrupted, and may hold the only copy of the data from before: move \
         it away, and retry",
        .0.display()
    )]
    Leftover(PathBuf),
    /// The address of the new node is not known.
    #[error("the last membership does not have node {0}: set the address that other nodes dial with --advertise-addr")]
    NoAddress(NodeId),
    /// The file system cannot exchange two directories.
    #[error(
        "the file system of `{}` cannot exchange two directories ({error}); the node was not changed, and its \
         replacement is complete: rename `{}` to another name, and `{}` to `{}`",
        old.display(), old.display(), new.display(), old.display()
    )]
    NoExchange {
        /// The node's directory.
        old: PathBuf,
        /// The complete new directory.
        new: PathBuf,
        /// The error of the system.
        error: io::Error,
    },
}

/// The first node of a new cluster.
#[derive(Debug)]
pub struct Founded {
    /// Its directory.
    pub directory: PathBuf,
    /// Its identity.
    pub identity: Identity,
    /// The address that other nodes dial.
    pub addr: String,
    /// Where the former directory of the node is now, if there was one.
    pub former: Option<PathBuf>,
}

/// The state of a node that is to become the first node of a new cluster.
#[derive(Debug)]
pub struct Survivor {
    /// The node's directory.
    pub directory: PathBuf,
    /// The node's identity so far.
    pub identity: Identity,
    /// The address that other nodes are to dial.
    pub addr: String,
    /// The other members of the former cluster, as far as this node knows.
    pub others: BTreeMap<NodeId, ExampleNode>,
    /// The last entry of the log, which the new cluster begins after.
    pub last: LogId,
    /// The last entry that this node knows to be committed.
    pub committed: Option<LogId>,
    /// The state after the last entry.
    pub machine: ExampleStateMachine,
    /// Bytes of a record that was being written when the node stopped, which is dropped.
    pub torn_bytes: u64,
    term: u64,
}

impl Survivor {
    /// Number of entries that are kept although this node does not know whether they were committed.
    pub fn unconfirmed_entries(&self) -> u64 {
        self.last.index - self.committed.map_or(0, |committed| committed.index).min(self.last.index)
    }
}

/// Makes the directory of node `node_id` below `data_dir` from a snapshot file. Blocks on the disk.
///
/// # Errors
///
/// See [`RebuildError`]. The file is verified before anything is created.
pub async fn restore(
    file: &Path,
    data_dir: &Path,
    node_id: NodeId,
    addr: &str,
) -> Result<(Founded, Summary), RebuildError> {
    let unfinished = data_dir.join(format!("node-{node_id}.restoring"));
    let restored = restore_by(file, data_dir, node_id, addr, &mut |_| Ok(())).await;
    restored.inspect_err(|_| clean_up(&unfinished))
}

async fn restore_by(
    file: &Path,
    data_dir: &Path,
    node_id: NodeId,
    addr: &str,
    step: Steps<'_>,
) -> Result<(Founded, Summary), RebuildError> {
    let directory = data_dir.join(format!("node-{node_id}"));
    let unfinished = data_dir.join(format!("node-{node_id}.restoring"));
    let summary = format::scan(file, &mut |_| Ok(()))?;
    let Some(last) = summary.meta.last_log_id else { return Err(RebuildError::NoEntry(file.to_owned())) };
    ownership::check(data_dir, &directory)?;
    let has_entries = match fs::read_dir(&directory) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(StoreError::io("list", &directory, error).into()),
    };
    if has_entries {
        return Err(RebuildError::NotEmpty(directory));
    }
    // What an interrupted attempt left is made from the file again, even if it is complete.
    let lock = begin(&unfinished, true)?;
    let identity = new_identity(node_id, format::level_of(summary.format), &unfinished)?;
    build(&unfinished, &identity, addr, last, last.leader_id.term, Source::File(file), step).await?;
    fs::rename(&unfinished, &directory).map_err(|error| StoreError::io("publish", &directory, error))?;
    sync_directory(data_dir)?;
    drop(lock);
    Ok((Founded { directory, identity, addr: addr.to_owned(), former: None }, summary))
}

/// Reads what [`recover`] would make of node `node_id` below `data_dir`, and changes nothing. Blocks on the disk.
///
/// # Errors
///
/// See [`RebuildError`].
pub fn examine(data_dir: &Path, node_id: NodeId, addr: Option<&str>) -> Result<Survivor, RebuildError> {
    let directory = directory_of(data_dir, node_id)?;
    let _lock = DirectoryLock::acquire_for_reading(&directory)?;
    survivor(directory, node_id, addr)
}

/// Makes a stopped node the first node of a new cluster, with all entries of its log. Its former directory is kept
/// under another name. `addr` is the address that other nodes are to dial; by default that of the last membership.
/// Blocks on the disk.
///
/// # Errors
///
/// See [`RebuildError`]. The node is not changed then.
pub async fn recover(
    data_dir: &Path,
    node_id: NodeId,
    addr: Option<&str>,
) -> Result<(Founded, Survivor), RebuildError> {
    let unfinished = data_dir.join(format!("node-{node_id}.recovering"));
    let recovered = recover_by(data_dir, node_id, addr, &mut |_| Ok(())).await;
    recovered.inspect_err(|error| {
        if !matches!(error, RebuildError::Leftover(_) | RebuildError::NoExchange { .. }) {
            clean_up(&unfinished);
        }
    })
}

async fn recover_by(
    data_dir: &Path,
    node_id: NodeId,
    addr: Option<&str>,
    step: Steps<'_>,
) -> Result<(Founded, Survivor), RebuildError> {
    let directory = directory_of(data_dir, node_id)?;
    ownership::check(data_dir, &directory)?;
    let unfinished = data_dir.join(format!("node-{node_id}.recovering"));
    let lock = DirectoryLock::acquire(&directory)?;
    let mut survivor = survivor(directory.clone(), node_id, addr)?;
    let new_lock = begin(&unfinished, false)?;
    let level = survivor.identity.level.max(survivor.machine.level);
    let identity = new_identity(node_id, level, &unfinished)?;
    if let Some(reading) = ClockFile::open(&directory)?.recorded() {
        let path = unfinished.join("CLOCK");
        durable::replace_file(&path, &clock_file::encode(reading))
            .map_err(|error| StoreError::io("write", &path, error))?;
    }
    let (last, term) = (survivor.last, survivor.term);
    let source = Source::State(&mut survivor.machine);
    build(&unfinished, &identity, &survivor.addr, last, term, source, step).await?;
    step("exchange")?;
    // From here on the old data is under the other name, until it is renamed.
    if let Err(error) = renameat_with(CWD, &unfinished, CWD, &directory, RenameFlags::EXCHANGE) {
        return Err(RebuildError::NoExchange { old: directory, new: unfinished, error: error.into() });
    }
    sync_directory(data_dir)?;
    step("rename")?;
    let former = free_name(data_dir, node_id);
    fs::rename(&unfinished, &former).map_err(|error| StoreError::io("rename", &unfinished, error))?;
    sync_directory(data_dir)?;
    drop((lock, new_lock));
    let founded = Founded { directory, identity, addr: survivor.addr.clone(), former: Some(former) };
    Ok((founded, survivor))
}

/// Called before each step that changes the disk, with its name. Tests end the work there.
type Steps<'a> = &'a mut dyn FnMut(&'static str) -> Result<(), StoreError>;

fn directory_of(data_dir: &Path, node_id: NodeId) -> Result<PathBuf, RebuildError> {
    let path = data_dir.join(format!("node-{node_id}"));
    if path.is_dir() { Ok(path) } else { Err(RebuildError::NoMember { path, why: "it does not exist" }) }
}

/// The state of a stopped node after all entries of its log. Changes nothing.
fn survivor(directory: PathBuf, node_id: NodeId, addr: Option<&str>) -> Result<Survivor, RebuildError> {
    let no_member = |why| RebuildError::NoMember { path: directory.clone(), why };
    let identity_file = IdentityFile::in_directory(&directory);
    let identity = identity_file.read()?.ok_or_else(|| no_member("it has no IDENTITY"))?;
    super::check_owner(&identity_file, Some(&identity), node_id)?;
    identity.cluster_id.ok_or_else(|| no_member("the node never joined a cluster"))?;
    let (log_directory, snapshot_directory) = (directory.join("log"), directory.join("snapshots"));
    super::check_directories(&identity_file, Some(&identity), [&log_directory, &snapshot_directory])?;
    let log = CheckedLog::read(&log_directory, false)?;
    let (_, mut machine) = SnapshotDirectory::open(&snapshot_directory, &log)?;
    let mut gap = None;
    check::visit_entries(&log_directory, &mut |log_id, payload| {
        let applied = machine.last_applied;
        // A snapshot may cover entries of a later term, which were never committed.
        let is_covered = Some(log_id) <= applied || applied.is_some_and(|applied| log_id.index <= applied.index);
        let next = applied.map_or(0, |applied| applied.index + 1);
        if !is_covered && log_id.index != next {
            gap.get_or_insert(next);
        } else if !is_covered {
            machine.apply(Entry { log_id, payload: payload.clone() });
        }
        Ok(())
    })?;
    if let Some(index) = gap {
        let what = format!("the entry at index {index} is missing");
        return Err(StoreError::damaged(&log_directory, None, what).into());
    }
    let last = machine.last_applied.ok_or_else(|| no_member("its log has no entry"))?;
    let membership = machine.last_membership.membership();
    let mut others: BTreeMap<NodeId, ExampleNode> = membership.nodes().map(|(id, node)| (*id, node.clone())).collect();
    let own = others.remove(&node_id).map(|node| node.addr);
    let addr = addr.map(str::to_owned).or(own).ok_or(RebuildError::NoAddress(node_id))?;
    Ok(Survivor {
        identity,
        addr,
        others,
        last,
        committed: log.committed.max(log.purged),
        torn_bytes: log.torn.iter().map(|torn| torn.bytes).sum(),
        term: log.vote.map_or(0, |vote| vote.leader_id.term).max(last.leader_id.term),
        machine,
        directory,
    })
}

fn new_identity(node_id: NodeId, level: Level, directory: &Path) -> Result<Identity, StoreError> {
    let random = || random_nonzero().map_err(|error| StoreError::io("draw a random number for", directory, error));
    Ok(Identity { cluster_id: Some(ClusterId(random()?)), node_id, incarnation: random()?, level })
}

/// Creates and locks the directory that is to be built, and deletes what an interrupted attempt left in it.
fn begin(unfinished: &Path, may_be_complete: bool) -> Result<DirectoryLock, RebuildError> {
    let is_complete = IdentityFile::in_directory(unfinished).path().symlink_metadata().is_ok();
    if is_complete && !may_be_complete {
        return Err(RebuildError::Leftover(unfinished.to_owned()));
    }
    durable::create_directory(unfinished).map_err(|error| StoreError::io("create", unfinished, error))?;
    let lock = DirectoryLock::acquire(unfinished)?;
    let failed = |error| StoreError::io("clean", unfinished, error);
    for entry in fs::read_dir(unfinished).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let removed = match path.file_name() {
            Some(name) if name == "LOCK" => Ok(()),
            _ if path.is_dir() && !path.is_symlink() => fs::remove_dir_all(&path),
            _ => fs::remove_file(&path),
        };
        removed.map_err(failed)?;
    }
    Ok(lock)
}

/// Where the state of the new node comes from.
enum Source<'a> {
    File(&'a Path),
    State(&'a mut ExampleStateMachine),
}

/// Fills a directory: the snapshot, the log, and last the identity.
async fn build(
    directory: &Path,
    identity: &Identity,
    addr: &str,
    last: LogId,
    term: u64,
    source: Source<'_>,
    step: Steps<'_>,
) -> Result<(), RebuildError> {
    let node_id = identity.node_id;
    let node = ExampleNode { addr: addr.to_owned(), incarnation: identity.incarnation };
    let membership = Membership::new(vec![BTreeSet::from([node_id])], BTreeMap::from([(node_id, node)]))
        .map_err(|error| StoreError::io("make the membership of", directory, io::Error::other(error)))?;
    let last_membership = StoredMembership::new(Some(last), membership);
    let meta = SnapshotMeta { last_log_id: Some(last), last_membership };
    let (log_directory, snapshot_directory) = (directory.join("log"), directory.join("snapshots"));
    for path in [&log_directory, &snapshot_directory] {
        step("create a directory")?;
        durable::create_directory(path).map_err(|error| StoreError::io("create", path, error))?;
    }

    step("write the snapshot")?;
    let path = snapshot_directory.join(file_name_of(&meta));
    let failed = |error| StoreError::io("write", &path, error);
    let mut file = ownership::create_file(&path).map_err(failed)?;
    write_snapshot(source, &meta, &path, &mut file)?;
    step("sync the snapshot")?;
    file.sync_all().map_err(failed)?;
    sync_directory(&snapshot_directory)?;

    step("write the log")?;
    let checked = CheckedLog::read(&log_directory, true)?;
    let mut log = LogStore::open(&log_directory, &checked, LogSizes::default())?;
    let failed = |error| StoreError::io("write the log in", &log_directory, error);
    // A vote for itself in a term that the former cluster may have had at most once more: the first election is in a
    // later one, so that log ids keep increasing.
    let vote = Vote { leader_id: RaftLeaderId::new(term + 1, node_id), committed: false };
    log.save_vote(&vote).await.map_err(failed)?;
    log.purge(last).await.map_err(failed)?;
    log.flush().await.map_err(failed)?;
    drop(log);
    sync_directory(&log_directory)?;

    step("write the identity")?;
    IdentityFile::in_directory(directory).write(identity)?;
    step("sync the directory")?;
    sync_directory(directory)?;
    step("publish").map_err(RebuildError::from)
}

fn write_snapshot(source: Source<'_>, meta: &SnapshotMeta, path: &Path, file: &mut File) -> Result<(), StoreError> {
    match source {
        Source::File(from) => format::copy_with_meta(from, meta, path, file),
        Source::State(machine) => {
            let is_as_applied =
                format::write(machine, meta, file).map_err(|error| StoreError::io("write", path, error))?;
            if is_as_applied { Ok(()) } else { Err(StoreError::MemoryChanged) }
        }
    }
}

/// Deletes an unfinished directory after an error, for its space. A failure does not matter: the next attempt deletes
/// it.
fn clean_up(unfinished: &Path) {
    // Otherwise another process works on it.
    if unfinished.exists()
        && let Ok(lock) = begin(unfinished, false)
    {
        let _ = fs::remove_dir_all(unfinished);
        drop(lock);
    }
}

fn sync_directory(path: &Path) -> Result<(), StoreError> {
    durable::sync_directory(path).map_err(|error| StoreError::io("sync", path, error))
}

/// A name for the former directory of a node.
fn free_name(data_dir: &Path, node_id: NodeId) -> PathBuf {
    let names = (1..).map(|number| match number {
        1 => format!("node-{node_id}.before-recovery"),
        number => format!("node-{node_id}.before-recovery-{number}"),
    });
    let mut paths = names.map(|name| data_dir.join(name));
    paths.find(|path| path.symlink_metadata().is_err()).unwrap_or_else(|| data_dir.join("before-recovery"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::{Operation, Put, Write};
    use crate::store::ExampleStore;
    use crate::types::{Command, Payload};

    const ADDR: &str = "127.0.0.1:21009";

    fn put(index: u64) -> Entry {
        let (key, value) = (format!("key {index}").as_str().into(), format!("value {index}").as_str().into());
        let put = Put { key, value, ttl_ms: None, condition: None };
        let command = Command::Write(Write { at_ms: 5, request: None, operation: Operation::Put(put) });
        Entry { log_id: LogId::new(RaftLeaderId::new(3, 2), index), payload: Payload::Normal(command) }
    }

    fn machine(last_index: u64) -> ExampleStateMachine {
        let mut machine = ExampleStateMachine::default();
        (0..=last_index).for_each(|index| drop(machine.apply(put(index))));
        machine
    }

    /// A snapshot file of a state.
    fn snapshot_of(machine: &ExampleStateMachine) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        format::write(machine, &format::meta_of(machine), file.as_file_mut()).unwrap();
        file
    }

    /// A stopped node 1 of a cluster: a snapshot up to index 5, and a log up to 9 of which 7 is committed.
    async fn survivor_in(data_dir: &Path) {
        let node = |addr: &str| ExampleNode { addr: addr.to_owned(), incarnation: 7 };
        let nodes = BTreeMap::from([(1, node(ADDR)), (2, node("127.0.0.1:21002"))]);
        let membership = Membership::new(vec![BTreeSet::from([1, 2])], nodes).unwrap();
        let store = ExampleStore::open(data_dir, 1).unwrap();
        store.join_cluster(ClusterId(9)).unwrap();
        let mut covered = machine(5);
        covered.last_membership = StoredMembership::new(covered.last_applied, membership);
        store.state_machine.snapshots().build(&covered).unwrap();
        let mut log = store.log.clone();
        log.save_vote(&Vote { leader_id: RaftLeaderId::new(8, 2), committed: false }).await.unwrap();
        log.append((0..=9).map(put), openraft::storage::IOFlushed::noop()).await.unwrap();
        log.save_committed(Some(put(7).log_id)).await.unwrap();
        log.purge(put(5).log_id).await.unwrap();
        log.flush().await.unwrap();
    }

    /// All files below a directory with their bytes, except for `LOCK`, which has the process's id.
    fn files_in(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(directory).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files.extend(files_in(&path));
            } else if !path.ends_with("LOCK") {
                files.insert(path.clone(), fs::read(&path).unwrap());
            }
        }
        files
    }

    /// Opens the node as a start does, and returns its state and whether it belongs to a cluster.
    fn opened(data_dir: &Path) -> (ExampleStateMachine, bool) {
        let store = ExampleStore::open(data_dir, 1).unwrap();
        let is_member = store.identity().cluster_id.is_some();
        (store.state_machine.read(ExampleStateMachine::clone), is_member)
    }

    fn assert_founded(data_dir: &Path, founded: &Founded, state: &ExampleStateMachine, term: u64) {
        let store = ExampleStore::open(data_dir, 1).unwrap();
        assert_eq!(store.identity(), founded.identity);
        let vote = futures_util::FutureExt::now_or_never(openraft::RaftLogReader::read_vote(&mut store.log.clone()));
        assert_eq!(vote.unwrap().unwrap().unwrap().leader_id.term, term);
        assert_eq!((store.log.purged().unwrap(), store.log.last().unwrap()), (state.last_applied, state.last_applied));
        let found = store.state_machine.read(ExampleStateMachine::clone);
        let nodes: Vec<_> = found.last_membership.membership().nodes().collect();
        let node = ExampleNode { addr: ADDR.to_owned(), incarnation: founded.identity.incarnation };
        assert_eq!(nodes, [(&1, &node)]);
        assert_eq!(found.hash(), state.hash());
        assert_eq!(found.data, state.data);
        assert_eq!((found.revision, found.last_applied), (state.revision, state.last_applied));
    }

    /// A restored node has the state of the file, under a new identity, and is its only member.
    #[tokio::test]
    async fn restores() {
        let (data_dir, state) = (tempfile::tempdir().unwrap(), machine(40));
        let file = snapshot_of(&state);
        let (founded, summary) = restore(file.path(), data_dir.path(), 1, ADDR).await.unwrap();
        assert_eq!((summary.keys, summary.hash), (41, state.hash()));
        assert_founded(data_dir.path(), &founded, &state, 4);
        let again = restore(file.path(), data_dir.path(), 1, ADDR).await.unwrap_err();
        assert!(matches!(again, RebuildError::NotEmpty(_)), "{again}");
        assert_eq!(fs::read_dir(data_dir.path()).unwrap().count(), 1);
    }

    /// Whatever step a restore ends at, the node either does not exist or is complete, and the next attempt succeeds.
    #[tokio::test]
    async fn a_restore_that_ends_anywhere() {
        let state = machine(40);
        let file = snapshot_of(&state);
        let mut steps = 0;
        loop {
            let data_dir = tempfile::tempdir().unwrap();
            let mut left: u32 = steps;
            let restored = restore_by(file.path(), data_dir.path(), 1, ADDR, &mut |name| {
                let is_end = left == 0;
                left = left.saturating_sub(1);
                if is_end { Err(StoreError::io(name, file.path(), io::ErrorKind::Interrupted.into())) } else { Ok(()) }
            })
            .await;
            if restored.is_ok() {
                break;
            }
            assert!(!data_dir.path().join("node-1").exists(), "step {steps}");
            let (founded, _) = restore(file.path(), data_dir.path(), 1, ADDR).await.unwrap();
            assert_founded(data_dir.path(), &founded, &state, 4);
            assert_eq!(fs::read_dir(data_dir.path()).unwrap().count(), 1, "step {steps}");
            steps += 1;
        }
        assert!(steps > 6, "only {steps} steps");
    }

    /// A file that is damaged anywhere, cut anywhere, or foreign is refused, and nothing is created.
    #[tokio::test]
    async fn damaged_files_are_not_restored() {
        let state = machine(3);
        let bytes = fs::read(snapshot_of(&state).path()).unwrap();
        let data_dir = tempfile::tempdir().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut damaged: Vec<Vec<u8>> = (0..bytes.len()).map(|length| bytes[..length].to_vec()).collect();
        for position in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[position] ^= 1 << (position % 8);
            damaged.push(flipped);
        }
        damaged.push([bytes.as_slice(), b"more"].concat());
        damaged.push(b"a text, and no snapshot at all".to_vec());
        damaged.push(fs::read(snapshot_of(&ExampleStateMachine::default()).path()).unwrap());
        for (number, damaged) in damaged.into_iter().enumerate() {
            fs::write(file.path(), damaged).unwrap();
            let refused = restore(file.path(), data_dir.path(), 1, ADDR).await;
            assert!(refused.is_err(), "file {number} is restored");
            assert_eq!(fs::read_dir(data_dir.path()).unwrap().count(), 0, "file {number}");
        }
    }

    /// A recovered node has the state after all entries of its log, and its former directory is kept unchanged.
    /// Examining it changes nothing.
    #[tokio::test]
    async fn recovers() {
        let data_dir = tempfile::tempdir().unwrap();
        survivor_in(data_dir.path()).await;
        let before = files_in(&data_dir.path().join("node-1"));
        let examined = examine(data_dir.path(), 1, None).unwrap();
        assert_eq!((examined.last, examined.committed), (put(9).log_id, Some(put(7).log_id)));
        assert_eq!((examined.unconfirmed_entries(), examined.others.len(), examined.addr.as_str()), (2, 1, ADDR));
        assert_eq!(files_in(&data_dir.path().join("node-1")), before);

        let (founded, survivor) = recover(data_dir.path(), 1, None).await.unwrap();
        assert_ne!(founded.identity.cluster_id, survivor.identity.cluster_id);
        assert_ne!(founded.identity.incarnation, survivor.identity.incarnation);
        assert_founded(data_dir.path(), &founded, &machine(9), 9);
        let former = founded.former.unwrap();
        let renamed = before
            .into_iter()
            .map(|(path, bytes)| (former.join(path.strip_prefix(data_dir.path().join("node-1")).unwrap()), bytes));
        assert_eq!(files_in(&former), renamed.collect());
        assert_eq!(fs::read_dir(data_dir.path()).unwrap().count(), 2);

        // A second recovery keeps both former directories.
        recover(data_dir.path(), 1, Some("127.0.0.1:21003")).await.unwrap();
        assert_eq!(fs::read_dir(data_dir.path()).unwrap().count(), 3);
    }

    /// Whatever step a recovery ends at, the node is either the old one or the new one as a whole. The next attempt
    /// succeeds, or refuses to delete the former directory.
    #[tokio::test]
    async fn a_recovery_that_ends_anywhere() {
        let (mut steps, mut leftovers) = (0, 0);
        loop {
            let data_dir = tempfile::tempdir().unwrap();
            survivor_in(data_dir.path()).await;
            let mut left: u32 = steps;
            let recovered = recover_by(data_dir.path(), 1, None, &mut |name| {
                let is_end = left == 0;
                left = left.saturating_sub(1);
                let interrupted = || StoreError::io(name, data_dir.path(), io::ErrorKind::Interrupted.into());
                if is_end { Err(interrupted()) } else { Ok(()) }
            })
            .await;
            if recovered.is_ok() {
                break;
            }
            let identity = IdentityFile::in_directory(&data_dir.path().join("node-1")).read().unwrap().unwrap();
            let is_old = identity.cluster_id == Some(ClusterId(9));
            let (state, is_member) = opened(data_dir.path());
            let expected = if is_old { machine(5) } else { machine(9) };
            assert!(is_member && state.data == expected.data, "step {steps}");
            match recover(data_dir.path(), 1, None).await {
                Ok((founded, _)) => assert_founded(data_dir.path(), &founded, &machine(9), 9),
                Err(RebuildError::Leftover(path)) => {
                    leftovers += 1;
                    let leftover = IdentityFile::in_directory(&path).read().unwrap().unwrap();
                    assert_ne!(leftover, identity, "step {steps}");
                    assert!(is_old || leftover.cluster_id == Some(ClusterId(9)), "the old data is gone: step {steps}");
                }
                Err(other) => panic!("step {steps}: {other}"),
            }
            steps += 1;
        }
        assert!(steps > 8 && leftovers > 0, "only {steps} steps, of which {leftovers} left something");
    }

    /// A node without a cluster, a missing one, and a running one are not recovered.
    #[tokio::test]
    async fn what_is_not_recovered() {
        let data_dir = tempfile::tempdir().unwrap();
        let missing = recover(data_dir.path(), 1, None).await.unwrap_err();
        assert!(matches!(missing, RebuildError::NoMember { .. }), "{missing}");
        drop(ExampleStore::open(data_dir.path(), 1).unwrap());
        let new = recover(data_dir.path(), 1, None).await.unwrap_err();
        assert!(matches!(new, RebuildError::NoMember { .. }), "{new}");

        let data_dir = tempfile::tempdir().unwrap();
        survivor_in(data_dir.path()).await;
        let _running = ExampleStore::open(data_dir.path(), 1).unwrap();
        for running in [recover(data_dir.path(), 1, None).await.map(drop), examine(data_dir.path(), 1, None).map(drop)]
        {
            let running = running.unwrap_err();
            assert!(matches!(running, RebuildError::Store(StoreError::Locked { .. })), "{running}");
        }
        assert_eq!(fs::read_dir(data_dir.path()).unwrap().count(), 1);
    }
}
