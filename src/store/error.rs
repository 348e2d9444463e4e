//! Why a data directory cannot be used.

use std::io;
use std::path::{Path, PathBuf};

use crate::agreement::{OlderCopy, OtherEntry};
use crate::hash::StateHash;
use crate::types::NodeId;

/// Why a data directory was refused or failed, or what it holds cannot be trusted.
/// Nothing in it was changed, except where [`StoreError::Io`] struck in the middle
/// of a write.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process runs on the directory.
    #[error(
        "`{}` is held by process {}; stop that process, or give this node another --data-dir",
        path.display(), if holder.is_empty() { "(not named)" } else { holder }
    )]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// The holder's process id as it wrote it down; may be empty.
        holder: String,
    },

    /// A file does not hold what was once written to it.
    #[error(
        "`{}` is damaged{}: {what}; nothing was changed. Replace the node: add one with a new id \
         and an empty directory, and put it in the place of this one with POST /change-membership \
         (an older copy of this directory is no replacement: it has forgotten what the node promised since)",
        path.display(), offset.map(|offset| format!(" at offset {offset}")).unwrap_or_default()
    )]
    Damaged {
        /// The damaged file, or the directory in which files do not fit together.
        path: PathBuf,
        /// Where in the file, in bytes, if that is known.
        offset: Option<u64>,
        /// What is wrong with it.
        what: String,
    },

    /// This node's state is not the leader's.
    #[error(
        "at log index {index} the state of this node has the hash {own}, and that of the leader, node {leader_id}, \
         has {leaders}: one of the two holds other data than was written, and this node stopped. Compare \
         `GET /v1/cluster/hash` of all nodes, or what those that stopped said. If it is this node that differs from \
         the majority, replace it: add a node with a new id and an empty directory, and put it in the place of this \
         one with POST /change-membership. If it is the leader, start this node again, and replace that one"
    )]
    OtherState {
        /// After which entry.
        index: u64,
        /// What this node's state was.
        own: StateHash,
        /// Who led.
        leader_id: NodeId,
        /// What the leader's state was.
        leaders: StateHash,
    },

    /// The state is not what this node made it.
    #[error(
        "the state changed in memory by itself, and this node stopped before it wrote that into a snapshot: its \
         memory is probably defective. Start it on another machine, or replace it: add a node with a new id and \
         an empty directory, and put it in the place of this one with POST /change-membership"
    )]
    MemoryChanged,

    /// The directory lacks entries that this node acknowledged.
    #[error(
        "`{}` is older than what this node acknowledged: node {}, which leads in term {}, has this node's \
         acknowledgement of the entries up to index {}, and its log ends {}. An older copy of the directory was put \
         back, or the disk lost what was synced. Start the node with the newest directory if you still have it. \
         Otherwise replace it: add a node with a new id and an empty directory, and put it in the place of this one \
         with POST /change-membership",
        path.display(), found.leader_id, found.term, found.acknowledged,
        found.last.map_or_else(|| "before the first entry".to_owned(), |last| format!("at index {last}"))
    )]
    OlderCopy {
        /// The directory.
        path: PathBuf,
        /// What the leader counts on, and what there is.
        found: OlderCopy,
    },

    /// The log has another entry than the leader's.
    #[error(
        "the log in `{}` has another entry at index {} of term {} than node {}, which leads in term {}: this node took \
         an entry that the leader did not send, or the disk or memory of one of the two changed it. Replace this node: \
         add a node with a new id and an empty directory, and put it in the place of this one with \
         POST /change-membership. Anyone who reaches the nodes' ports can send such entries: run nodes on a trusted \
         network",
        path.display(), found.index, found.entry_term, found.leader_id, found.term
    )]
    OtherEntry {
        /// The directory.
        path: PathBuf,
        /// Which entry, and who has another one.
        found: OtherEntry,
    },

    /// The directory belongs to another node.
    #[error(
        "`{}` belongs to node {found}, not to node {wanted}; start it with --id {found}, or give this node another --data-dir",
        path.display()
    )]
    OtherNode {
        /// The identity file.
        path: PathBuf,
        /// The node it names.
        found: NodeId,
        /// The node that was started.
        wanted: NodeId,
    },

    /// Users other than the one that runs the node could change the directory, or a file leads out of it.
    #[error("`{}` {what}; nothing was changed", path.display())]
    NotPrivate {
        /// The directory or file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        what: String,
    },

    /// A later version of this program wrote the directory.
    #[error(
        "`{}` has format {found}, and this program knows formats up to {known}; start the version that wrote it, or a later one",
        path.display()
    )]
    NewerFormat {
        /// The file that says so.
        path: PathBuf,
        /// Its format version.
        found: u32,
        /// The newest that this program knows.
        known: u32,
    },

    /// The operating system failed.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
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

    /// What is damaged and how, without what to do about it.
    pub(crate) fn finding(&self) -> String {
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
