//! Why a data directory cannot be used.

use std::io;
use std::path::{Path, PathBuf};

use crate::agreement::{OlderCopy, OtherEntry};
use crate::hash::StateHash;
use crate::types::NodeId;

/// Why a data directory was rejected or failed, or why its content cannot be trusted.
/// Nothing in it was changed, except if [`StoreError::Io`] interrupted a write.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process runs on the directory.
    #[error(
        "`{}` is locked by {}; stop that process, or give this node another --data-dir",
        path.display(), if holder.is_empty() { "another process".to_owned() } else { format!("process {holder}") }
    )]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// The holder's process id, from the file; may be empty.
        holder: String,
    },

    /// The content of a file is not what was written to it.
    #[error(
        "`{}` is damaged{}: {what}; nothing was changed. Start a node with a new id and an empty directory, and replace \
         this node with it (`raft-key-value members replace`). Do not restore an older copy of this directory: it lacks \
         votes and entries that the node has acknowledged since",
        path.display(), offset.map(|offset| format!(" at offset {offset}")).unwrap_or_default()
    )]
    Damaged {
        /// The damaged file, or the directory in which files do not fit together.
        path: PathBuf,
        /// The offset in the file, in bytes, if it is known.
        offset: Option<u64>,
        /// How it is damaged.
        what: String,
    },

    /// This node's state differs from the leader's.
    #[error(
        "at log index {index}, the state of this node has the hash {own}, but the state of the leader, node \
         {leader_id}, has the hash {leaders}: one of the two nodes has wrong data, and this node stopped. Compare `GET \
         /v1/cluster/hash` on all nodes, or the messages of the nodes that stopped. If this node differs from the \
         majority, start a node with a new id and an empty directory, and replace this node with it (`raft-key-value \
         members replace`). If the leader differs, start this node again and replace the leader"
    )]
    OtherState {
        /// The index of the last entry in both states.
        index: u64,
        /// The hash of this node's state.
        own: StateHash,
        /// The node that was the leader.
        leader_id: NodeId,
        /// The hash of the leader's state.
        leaders: StateHash,
    },

    /// The state in memory changed without a write.
    #[error(
        "the state changed in memory without a write, and this node stopped before storing it in a snapshot: the \
         memory of this machine is probably defective. Start the node on another machine. Otherwise start a node with \
         a new id and an empty directory, and replace this node with it (`raft-key-value members replace`)"
    )]
    MemoryChanged,

    /// The directory lacks entries that this node acknowledged.
    #[error(
        "`{}` lacks entries that this node acknowledged: it acknowledged the entries up to index {} to node {}, the \
         leader of term {}, but its log {}. An older copy of the directory was restored, or the disk lost synced data. \
         Start the node with the newest directory if you still have it. Otherwise start a node with a new id and an \
         empty directory, and replace this node with it (`raft-key-value members replace`)",
        path.display(), found.acknowledged, found.leader_id, found.term,
        found.last.map_or_else(|| "is empty".to_owned(), |last| format!("ends at index {last}"))
    )]
    OlderCopy {
        /// The directory.
        path: PathBuf,
        /// The entries that the leader relies on, and the entries of this node.
        found: OlderCopy,
    },

    /// An entry of the log differs from the leader's.
    #[error(
        "the log in `{}` differs from the log of node {}, the leader of term {}, in the entry at index {} of term {}: \
         this node accepted an entry that the leader did not send, or the disk or memory of one of the two nodes \
         changed it. Start a node with a new id and an empty directory, and replace this node with it (`raft-key-value \
         members replace`). Anyone who can reach the nodes' ports can send such entries: run nodes on a trusted \
         network only",
        path.display(), found.leader_id, found.term, found.index, found.entry_term
    )]
    OtherEntry {
        /// The directory.
        path: PathBuf,
        /// The entry, and the leader whose entry differs.
        found: OtherEntry,
    },

    /// The directory belongs to another node.
    #[error(
        "`{}` belongs to node {found}, not to node {wanted}; start it with --id {found}, or give this node another --data-dir",
        path.display()
    )]
    OtherNode {
        /// The file `IDENTITY`.
        path: PathBuf,
        /// The node in that file.
        found: NodeId,
        /// The node that was started.
        wanted: NodeId,
    },

    /// Users other than the one that runs the node could change the directory, or a file leads out of it.
    #[error("`{}` {what}; nothing was changed", path.display())]
    NotPrivate {
        /// The directory or file.
        path: PathBuf,
        /// Why it is rejected, and what to do.
        what: String,
    },

    /// A later version of this program wrote the directory.
    #[error(
        "`{}` has format {found}, but this program supports formats up to {known}; start the version that wrote it, or \
         a later one",
        path.display()
    )]
    NewerFormat {
        /// The file with the newer format.
        path: PathBuf,
        /// The version of its format.
        found: u32,
        /// The newest version that this program knows.
        known: u32,
    },

    /// The operating system failed.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// The operation, as a verb.
        action: &'static str,
        /// Its file or directory.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

impl StoreError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        StoreError::Io { action, path: path.to_owned(), source }
    }

    /// Whether the disk is full, or the user's quota of it is used up.
    pub(crate) fn is_out_of_space(&self) -> bool {
        matches!(self, StoreError::Io { source, .. } if is_out_of_space(source))
    }

    /// The exit code of a process that ends with this error, after `sysexits.h`.
    pub fn exit_code(&self) -> u8 {
        match self {
            StoreError::Damaged { .. }
            | StoreError::OtherState { .. }
            | StoreError::OlderCopy { .. }
            | StoreError::OtherEntry { .. }
            | StoreError::MemoryChanged => 65,
            StoreError::Locked { .. } => 73,
            StoreError::Io { .. } => 74,
            StoreError::OtherNode { .. } | StoreError::NewerFormat { .. } | StoreError::NotPrivate { .. } => 78,
        }
    }

    /// What is damaged and how, without advice.
    pub fn finding(&self) -> String {
        match self {
            StoreError::Damaged { path, offset, what } => {
                let offset = offset.map(|offset| format!(" at offset {offset}")).unwrap_or_default();
                format!("`{}`{offset}: {what}", path.display())
            }
            other => other.to_string(),
        }
    }

    pub(crate) fn damaged(path: &Path, offset: Option<u64>, what: impl Into<String>) -> Self {
        StoreError::Damaged { path: path.to_owned(), offset, what: what.into() }
    }
}

/// Whether an operation failed because the disk is full, or because the user's quota of it is used up.
pub fn is_out_of_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Io { ref source, .. } => io::Error::new(source.kind(), error.to_string()),
            other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
        }
    }
}
