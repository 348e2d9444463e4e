//! The data directory of a node: log, vote, snapshots, identity.
//!
//! ```text
//! <data-dir>/node-<id>/
//!   LOCK                     held while running
//!   IDENTITY                 whose directory it is
//!   CLOCK                    log time beside the wall clock, at one moment
//!   log/                     entries, vote, committed, purged
//!   snapshots/<index>.snap   the state machine at that log index
//! ```
//!
//! Opening it gives either a node with everything that it ever acknowledged, or an
//! error that names the cause. It never drops data in order to start.

pub mod applied;
pub mod clock_file;
pub mod durable;
pub mod error;
pub mod examine;
pub mod identity;
pub mod log;
pub mod ownership;
pub mod rebuild;
pub mod self_check;
pub mod snapshot;
pub mod state_machine;
pub mod state_machine_store;
pub mod watch;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use self::applied::TooManyWaits;
pub use self::error::StoreError;
pub use self::identity::{ClusterId, Identity};
pub use self::log::{LogFile, LogStore};
pub use self::self_check::{SelfCheck, SelfChecks};
pub use self::state_machine::ExampleStateMachine;
pub use self::state_machine::history::{Change, ChangeKind};
pub use self::state_machine::record::{Data, Record, RecordParts};
pub use self::state_machine_store::{AccessCell, StateMachineStore};
pub use self::watch::{Filter, LongEvents, Subscription, WatchError};
pub use crate::config::LogSizes;
pub use crate::hash::StateHash;
/// Where the original has them.
pub use crate::types::{ExampleRequest, ExampleResponse};

use self::clock_file::ClockFile;
use self::identity::{DirectoryLock, IdentityFile};
use self::log::check::CheckedLog;
use self::snapshot::SnapshotDirectory;
use crate::clock::{LogClock, Reading};
use crate::level::Level;
use crate::types::{NodeId, TypeConfig};

/// The Raft instance of a node.
pub type ExampleRaft = openraft::Raft<TypeConfig, StateMachineStore>;

/// An open data directory.
#[derive(Debug)]
pub struct ExampleStore {
    /// The log and the vote.
    pub log: LogStore,
    /// The state machine and its snapshots.
    pub state_machine: StateMachineStore,
    identity: Mutex<Identity>,
    /// Held while the identity changes on disk.
    changing: Mutex<()>,
    identity_file: IdentityFile,
    clock_file: ClockFile,
    directory: PathBuf,
    _lock: DirectoryLock,
}

impl ExampleStore {
    /// Opens the directory of a node below `data_dir`; creates it if it does not exist.
    ///
    /// # Errors
    ///
    /// See [`StoreError`]. A rejected directory is not changed.
    pub fn open(data_dir: &Path, node_id: NodeId) -> Result<Self, StoreError> {
        Self::open_with(data_dir, node_id, LogSizes::default())
    }

    /// As [`ExampleStore::open`], with other sizes for the log.
    ///
    /// # Errors
    ///
    /// The same.
    pub fn open_with(data_dir: &Path, node_id: NodeId, sizes: LogSizes) -> Result<Self, StoreError> {
        let directory = data_dir.join(format!("node-{node_id}"));
        ownership::check(data_dir, &directory)?;
        durable::create_directory(&directory).map_err(|error| StoreError::io("create", &directory, error))?;
        let lock = DirectoryLock::acquire(&directory)?;

        // First check everything, so that a rejected directory is not changed.
        let identity_file = IdentityFile::in_directory(&directory);
        let log_directory = directory.join("log");
        let snapshot_directory = directory.join("snapshots");
        let found = identity_file.read()?;
        let clock_file = ClockFile::open(&directory)?;
        check_owner(&identity_file, found.as_ref(), node_id)?;
        check_directories(&identity_file, found.as_ref(), [&log_directory, &snapshot_directory])?;
        let joined = found.is_some_and(|identity| identity.cluster_id.is_some());
        let checked = CheckedLog::read(&log_directory, !joined)?;
        let (snapshots, machine) = SnapshotDirectory::open(&snapshot_directory, &checked)?;
        let has_data = !checked.is_pristine() || !snapshots.is_empty();
        if has_data && !joined {
            let what = "it says that the node never joined a cluster, but the directory has a log or snapshots";
            return Err(StoreError::damaged(identity_file.path(), None, what));
        }

        // From here on the directory is written to.
        durable::remove_temporary_files(&directory).map_err(|error| StoreError::io("clean", &directory, error))?;
        let identity = match found {
            Some(identity) => {
                let level = identity.level.max(Level::FIRST).max(machine.level);
                let upgraded = Identity { level, ..identity };
                if upgraded != identity {
                    identity_file.write(&upgraded)?;
                }
                upgraded
            }
            None => identity_file.create(node_id)?,
        };
        for path in [&log_directory, &snapshot_directory] {
            durable::create_directory(path).map_err(|error| StoreError::io("create", path, error))?;
        }
        ownership::restrict(&directory)?;
        snapshots.clean()?;
        // A killed process may leave names that are visible but not durable.
        for path in [durable::parent_of(&directory), &directory, &log_directory, &snapshot_directory] {
            durable::sync_directory(path).map_err(|error| StoreError::io("sync", path, error))?;
        }
        let log = LogStore::open(&log_directory, &checked, sizes)?;
        let clock = Arc::new(LogClock::new(clock_file.recorded()));
        let state_machine = StateMachineStore::new(machine, snapshots, clock);
        state_machine.self_checks().start_after(checked.last.map_or(0, |last| last.index));
        let identity = Mutex::new(identity);
        let changing = Mutex::default();
        Ok(ExampleStore { log, state_machine, identity, changing, identity_file, clock_file, directory, _lock: lock })
    }

    /// The identity in the file `IDENTITY`.
    pub fn identity(&self) -> Identity {
        *self.lock_identity()
    }

    /// Makes the node a member of a cluster, durably. A node joins once, and never changes its cluster.
    ///
    /// Returns the cluster of the node afterwards, which is not `cluster_id` if it already belonged to another one.
    pub fn join_cluster(&self, cluster_id: ClusterId) -> Result<ClusterId, StoreError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let identity = self.identity();
        if let Some(current) = identity.cluster_id {
            return Ok(current);
        }
        self.change_identity(Identity { cluster_id: Some(cluster_id), ..identity })?;
        Ok(cluster_id)
    }

    /// Makes the format of the directory at least this level, durably, before anything of that level is written to it.
    /// Blocks on the disk the first time.
    pub fn raise_level(&self, level: Level) -> Result<(), StoreError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let identity = self.identity();
        if identity.level >= level { Ok(()) } else { self.change_identity(Identity { level, ..identity }) }
    }

    /// Replaces the identity on disk, then in memory, so that no reader waits for the disk.
    fn change_identity(&self, changed: Identity) -> Result<(), StoreError> {
        self.identity_file.write(&changed)?;
        *self.lock_identity() = changed;
        Ok(())
    }

    /// The node's clock of log time.
    pub fn clock(&self) -> &Arc<LogClock> {
        self.state_machine.clock()
    }

    /// Log time and wall clock in the file `CLOCK`, for the next start; `None` if it does not exist.
    pub fn recorded_clock(&self) -> Option<Reading> {
        self.clock_file.recorded()
    }

    /// Replaces `CLOCK`, durably. Blocks on the disk.
    pub fn record_clock(&self, reading: Reading) -> Result<(), StoreError> {
        self.clock_file.record(reading)
    }

    /// The path of the node's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn lock_identity(&self) -> MutexGuard<'_, Identity> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Checks that the directory is this node's.
fn check_owner(file: &IdentityFile, found: Option<&Identity>, node_id: NodeId) -> Result<(), StoreError> {
    match found {
        Some(identity) if identity.node_id != node_id => {
            Err(StoreError::OtherNode { path: file.path().to_owned(), found: identity.node_id, wanted: node_id })
        }
        _ => Ok(()),
    }
}

/// Checks that data has an identity, and that a member of a cluster has both directories: it has had them since before
/// it joined.
fn check_directories(
    file: &IdentityFile,
    found: Option<&Identity>,
    directories: [&PathBuf; 2],
) -> Result<(), StoreError> {
    for path in directories {
        let exists = path.symlink_metadata().is_ok();
        match found.map(|identity| identity.cluster_id) {
            None if exists => {
                let what = format!("it is missing, but `{}` exists", path.display());
                return Err(StoreError::damaged(file.path(), None, what));
            }
            Some(Some(cluster_id)) if !exists => {
                let what = format!("it is missing, but `IDENTITY` says that the node belongs to cluster {cluster_id}");
                return Err(StoreError::damaged(path, None, what));
            }
            _ => {}
        }
    }
    Ok(())
}
