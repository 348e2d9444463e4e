//! The data directory of a node: log, vote, snapshots, identity.
//!
//! ```text
//! <data-dir>/node-<id>/
//!   LOCK                     held while running
//!   IDENTITY                 whose directory it is
//!   log/                     entries, vote, committed, purged
//!   snapshots/<index>.snap   the state machine at that log index
//! ```
//!
//! Opening it either gives a node that has all it ever acknowledged, or an
//! error that says what is wrong; it never drops data to get going.

pub mod codec;
pub mod durable;
pub mod error;
pub mod identity;
pub mod log;
pub mod snapshot;
pub mod state_machine;
pub mod state_machine_store;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use self::error::StoreError;
pub use self::identity::{ClusterId, Identity};
pub use self::log::LogStore;
pub use self::state_machine::ExampleStateMachine;
pub use self::state_machine_store::StateMachineStore;

use self::identity::{DirectoryLock, IdentityFile};
use self::snapshot::SnapshotDirectory;
use crate::types::NodeId;

/// An open data directory.
#[derive(Debug)]
pub struct ExampleStore {
    /// The log and the vote.
    pub log: LogStore,
    /// The state machine and its snapshots.
    pub state_machine: StateMachineStore,
    identity: Mutex<Identity>,
    identity_file: IdentityFile,
    directory: PathBuf,
    _lock: DirectoryLock,
}

impl ExampleStore {
    /// Opens the directory of a node below `data_dir`, making it if there is none.
    ///
    /// # Errors
    ///
    /// See [`StoreError`]. A directory that is refused is left as it was.
    pub fn open(data_dir: &Path, node_id: NodeId) -> Result<Self, StoreError> {
        let directory = data_dir.join(format!("node-{node_id}"));
        durable::create_directory(&directory).map_err(|error| StoreError::io("create", &directory, error))?;
        let lock = DirectoryLock::acquire(&directory)?;

        let identity_file = IdentityFile::in_directory(&directory);
        let log_directory = directory.join("log");
        let snapshot_directory = directory.join("snapshots");
        let identity = match identity_file.read()? {
            Some(identity) if identity.node_id != node_id => {
                let path = identity_file.path().to_owned();
                return Err(StoreError::OtherNode { path, found: identity.node_id, wanted: node_id });
            }
            Some(identity) => {
                check_log_is_there(&identity, &log_directory)?;
                identity
            }
            None => {
                check_nothing_is_there(&identity_file, &log_directory, &snapshot_directory)?;
                identity_file.create(node_id)?
            }
        };
        durable::remove_temporary_files(&directory).map_err(|error| StoreError::io("clean", &directory, error))?;

        for path in [&log_directory, &snapshot_directory] {
            durable::create_directory(path).map_err(|error| StoreError::io("create", path, error))?;
        }
        let log = LogStore::open(&log_directory)?;
        let purged = log.purged().map_err(|error| StoreError::io("read", &log_directory, error))?;
        let (snapshots, machine) = SnapshotDirectory::open(&snapshot_directory, purged)?;
        Ok(ExampleStore {
            log,
            state_machine: StateMachineStore::new(machine, snapshots),
            identity: Mutex::new(identity),
            identity_file,
            directory,
            _lock: lock,
        })
    }

    /// Who this node is.
    pub fn identity(&self) -> Identity {
        *self.lock_identity()
    }

    /// Makes the node a member of a cluster, durably; once, and for good.
    ///
    /// Returns the cluster that the node belongs to afterwards: another than
    /// `cluster_id` if it already belonged to that.
    pub fn join_cluster(&self, cluster_id: ClusterId) -> Result<ClusterId, StoreError> {
        let mut identity = self.lock_identity();
        if let Some(current) = identity.cluster_id {
            return Ok(current);
        }
        let joined = Identity { cluster_id: Some(cluster_id), ..*identity };
        self.identity_file.write(&joined)?;
        *identity = joined;
        Ok(cluster_id)
    }

    /// The node's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn lock_identity(&self) -> MutexGuard<'_, Identity> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A member of a cluster has voted or promised to: its log must be there.
fn check_log_is_there(identity: &Identity, log_directory: &Path) -> Result<(), StoreError> {
    if identity.cluster_id.is_none() {
        return Ok(());
    }
    let chunks = match log::chunk_paths(log_directory) {
        Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other?,
    };
    // The first record of the first chunk is synced before a node joins a
    // cluster, so a log without any is not a torn write.
    let bytes = match chunks.as_slice() {
        [only] => fs::metadata(only).map_err(|error| StoreError::io("inspect", only, error))?.len(),
        [] => 0,
        _ => u64::MAX,
    };
    if bytes < LogStore::FIRST_RECORD_BYTES {
        let what =
            format!("`IDENTITY` says that the node belongs to cluster {}, and its log is gone", text_of(identity));
        return Err(StoreError::damaged(log_directory, None, what));
    }
    Ok(())
}

/// Without an identity there must be no data either.
fn check_nothing_is_there(
    identity_file: &IdentityFile,
    log_directory: &Path,
    snapshot_directory: &Path,
) -> Result<(), StoreError> {
    for path in [log_directory, snapshot_directory] {
        if path.exists() {
            let what = format!("it is missing beside `{}`", path.display());
            return Err(StoreError::damaged(identity_file.path(), None, what));
        }
    }
    Ok(())
}

fn text_of(identity: &Identity) -> String {
    identity.cluster_id.map(|id| id.to_string()).unwrap_or_default()
}
