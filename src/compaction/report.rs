//! Log messages about the disk and the log's files.

use std::io;
use std::path::Path;
use std::time::Instant;

use super::plan::FilesRoom;
use crate::config::DISK_REPORT_INTERVAL;
use crate::disk::DiskSpace;

/// The states that were logged last. A change is logged, but not more often than every [`DISK_REPORT_INTERVAL`].
#[derive(Debug)]
pub struct Reports {
    space: Reported<DiskSpace>,
    files: Reported<FilesRoom>,
    has_failed: bool,
}

#[derive(Debug)]
struct Reported<T> {
    state: T,
    at: Option<Instant>,
}

impl Default for Reports {
    fn default() -> Self {
        Reports {
            space: Reported { state: DiskSpace::Enough, at: None },
            files: Reported { state: FilesRoom::Enough, at: None },
            has_failed: false,
        }
    }
}

impl Reports {
    /// Logs that the disk cannot be examined, and that it can be again.
    pub fn failure(&mut self, directory: &Path, failure: Option<io::Error>) {
        if std::mem::replace(&mut self.has_failed, failure.is_some()) == failure.is_some() {
            return;
        }
        let directory = directory.display();
        match failure {
            Some(error) => tracing::warn!(
                "cannot check the free disk space or the files in `{directory}`: {error}; the last known free space applies"
            ),
            None => tracing::info!("the free disk space in `{directory}` can be checked again"),
        }
    }

    /// Logs which writes the disk has room for.
    pub fn space(&mut self, space: DiskSpace) {
        if !self.space.is_news(space) {
            return;
        }
        match space {
            DiskSpace::Enough => tracing::info!("the disk has enough free space: writes are accepted again"),
            DiskSpace::Low => {
                tracing::warn!("the disk is low on space: this node rejects puts while it is the leader");
            }
            DiskSpace::Exhausted => {
                tracing::error!("the disk is nearly full: this node accepts no entries until there is more free space");
            }
        }
    }

    /// Logs whether the log may have more files.
    pub fn files(&mut self, files: usize, room: FilesRoom) {
        if !self.files.is_news(room) {
            return;
        }
        match room {
            FilesRoom::Enough => {
                tracing::info!("the log has {files} files, below its limit: entries are accepted again")
            }
            FilesRoom::None => tracing::warn!(
                "the log has reached its limit of {files} files: this node accepts no entries until a snapshot is \
                 written"
            ),
            FilesRoom::NoneToDelete => tracing::warn!(
                "the log has {files} files, above its limit, and none can be deleted until their entries are committed \
                 and applied"
            ),
        }
    }
}

impl<T: Copy + PartialEq> Reported<T> {
    /// Whether to log this state; if so, notes that it is logged now.
    fn is_news(&mut self, state: T) -> bool {
        let is_news = self.state != state && self.at.is_none_or(|at| at.elapsed() >= DISK_REPORT_INTERVAL);
        if is_news {
            *self = Reported { state, at: Some(Instant::now()) };
        }
        is_news
    }
}
