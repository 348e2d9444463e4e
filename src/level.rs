//! The level of formats of a cluster: what its log and its snapshots may contain.
//!
//! | level | since this level |
//! | --- | --- |
//! | 3 | everything that a node of a version without levels writes |
//! | 4 | an entry can raise the level (`Operation::RaiseLevel`) |
//! | 5 | tokens (`Operation::Access`), in the log and in snapshots |
//!
//! Every node can read all levels up to [`Level::NEWEST`], and reports that number to the others. The level of the
//! cluster is a part of the replicated state. It begins at [`Level::FIRST`] and never decreases. The leader raises it, by
//! an entry, once all members report that they can read a higher one (`network/levels.rs`).
//!
//! **To add something to the log or to snapshots that older nodes cannot read:** add a row here, increase
//! [`Level::NEWEST`], return the level in `Operation::level`, and do not propose the operation before the state has that
//! level.
//!
//! The data directory has the format of the highest level that may be in it, so that an older program rejects it as a
//! whole instead of taking an entry that it cannot read for damage. A node that gets an entry or a snapshot of a
//! higher level first writes that format to `IDENTITY`. Until then the directory can be used by an older program.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A level of formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Level(pub u32);

impl Level {
    /// The level of a new cluster, and of a node that reports none.
    pub const FIRST: Level = Level(3);
    /// The highest level that this program reads and writes.
    pub const NEWEST: Level = Level(5);
    /// The level that has tokens.
    pub const TOKENS: Level = Level(5);
}

impl Default for Level {
    fn default() -> Self {
        Level::FIRST
    }
}

impl From<Level> for u32 {
    fn from(Level(level): Level) -> Self {
        level
    }
}

/// Of what is stored: a level that this program cannot read is rejected, as an operation that it does not know is.
impl TryFrom<u32> for Level {
    type Error = String;

    fn try_from(level: u32) -> Result<Self, String> {
        if (Level::FIRST.0..=Level::NEWEST.0).contains(&level) {
            return Ok(Level(level));
        }
        Err(format!("formats of level {level} are not supported, only up to level {}", Level::NEWEST))
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
