//! What to do about the log and the snapshots, from what is on disk.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use rustix::process::{Resource, getrlimit};

use crate::app::ExampleApp;
use crate::config::{
    APPEND_RPC_BYTES_MAX, CLIENTS_MAX, Config, DISK_TIGHT_BYTES, FILES_RESERVED, LOG_FILES_LIMIT, LOG_FILES_MAX,
    LOG_HALVES_MAX, PURGE_FREE_BYTES_LEAST, SNAPSHOT_LEAVES_BYTES, SNAPSHOT_PAUSE_BYTES_PER_MS, SNAPSHOT_PAUSE_LEAST,
    SNAPSHOT_RETRY,
};
use crate::disk::DiskLimits;
use crate::store::snapshot::SnapshotSizes;
use crate::store::{ExampleStore, LogFile, durable};
use crate::types::LogId;

/// The settings that a plan follows.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    snapshot_bytes: u64,
    keep_bytes: u64,
    keep_entries: u64,
    chunk_bytes: u64,
    disk_free_bytes_min: u64,
    /// Whether the log that is kept after a snapshot is at least as long as the log between two snapshots.
    keeps_former: bool,
    /// Files that the log may have.
    pub files_max: usize,
    /// Files with which the log accepts no more entries: see [`files_limit`].
    pub files_limit: usize,
    /// Files that this process may open.
    pub open_files_max: usize,
}

impl Bounds {
    pub fn of(config: &Config) -> Self {
        let open_files_max = getrlimit(Resource::Nofile).current;
        let open_files_max = open_files_max.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX));
        Bounds {
            snapshot_bytes: config.snapshot_bytes,
            keep_bytes: config.snapshot_keep_bytes,
            keep_entries: config.snapshot_keep_entries,
            chunk_bytes: config.log_sizes().chunk_bytes_max as u64,
            disk_free_bytes_min: config.min_disk_free_bytes,
            keeps_former: config.snapshot_keep_bytes >= config.snapshot_bytes
                && config.snapshot_keep_entries >= config.snapshot_entries,
            files_max: log_files_max(open_files_max),
            files_limit: usize::MAX,
            open_files_max,
        }
    }

    /// Most files since the newest snapshot, and most files before it. The rest is for entries that are appended while
    /// a snapshot is written.
    fn files_a_part(&self) -> usize {
        self.files_max / 10 * 3
    }
}

/// Files that the log may have, given the system's limit on open files. Clients have priority.
fn log_files_max(open_files_max: usize) -> usize {
    let spare = open_files_max.saturating_sub(FILES_RESERVED + CLIENTS_MAX * 6);
    LOG_FILES_MAX.saturating_add(spare / 2).min(LOG_FILES_LIMIT)
}

/// Files with which a log that has `files` accepts no more entries.
///
/// This is usually `files_max`. A log that an older version wrote may have more, smaller files. It may grow until a
/// snapshot covers it, if the system allows enough open files.
pub fn files_limit(files: usize, files_max: usize, open_files_max: usize) -> usize {
    files_max.max((files + files_max / 2).min(open_files_max / 2))
}

/// Raft's progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// The last entry in the newest snapshot.
    pub snapshot: Option<LogId>,
    pub applied: Option<LogId>,
}

impl Reached {
    pub fn of(app: &ExampleApp) -> Self {
        let metrics = app.raft.metrics();
        let metrics = metrics.borrow_watched();
        Reached { snapshot: metrics.snapshot, applied: metrics.last_applied }
    }
}

/// What is on disk.
#[derive(Clone, Debug)]
pub struct OnDisk {
    /// The last known value if the current one is unknown.
    pub free_bytes: u64,
    snapshots: SnapshotSizes,
    /// Oldest first.
    files: Vec<LogFile>,
}

impl OnDisk {
    /// Blocks on the disk. Also returns why the free space is unknown, if it is; `last_known_bytes` apply then.
    pub fn look(store: &ExampleStore, last_known_bytes: u64) -> io::Result<(Self, Option<io::Error>)> {
        let (free_bytes, failure) = match durable::free_bytes(store.directory()) {
            Ok(free_bytes) => (free_bytes, None),
            Err(error) => (last_known_bytes, Some(error)),
        };
        let snapshots = store.state_machine.snapshots().sizes()?;
        Ok((OnDisk { free_bytes, snapshots, files: store.log.files()? }, failure))
    }
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The progress that the plan was made for.
    pub reached: Reached,
    pub disk_limits: DiskLimits,
    /// Index up to which the log may be purged.
    pub purge_to: Option<u64>,
    /// Least time between the last attempt at a snapshot and the next; `None` if no snapshot is worth taking.
    pub snapshot_after: Option<Duration>,
    /// Least time between a failed attempt and the next.
    pub retry_after: Duration,
    /// Whether to delete the snapshots before the newest.
    pub delete_older: bool,
    pub files: usize,
    pub files_room: FilesRoom,
}

/// Whether the log may have more files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilesRoom {
    Enough,
    /// Not until some are deleted, if necessary after a snapshot.
    None,
    /// It has too many, but none can be deleted because their entries are not applied. The node still accepts entries:
    /// otherwise it would never commit these, since commits need later entries. A leader bounds them by their bytes
    /// ([`LOG_UNCOMMITTED_BYTES_MAX`](crate::config::LOG_UNCOMMITTED_BYTES_MAX)).
    NoneToDelete,
}

impl Plan {
    pub fn new(bounds: &Bounds, found: &OnDisk, reached: Reached) -> Self {
        let situation = Situation::new(bounds, found, reached);
        Plan {
            reached,
            disk_limits: situation.disk_limits,
            purge_to: situation.purge_to(),
            snapshot_after: situation.snapshot_after(),
            retry_after: SNAPSHOT_RETRY + situation.pause(),
            delete_older: situation.deletes_older(),
            files: found.files.len(),
            files_room: situation.files_room,
        }
    }
}

/// What a plan is made from.
struct Situation<'a> {
    bounds: &'a Bounds,
    found: &'a OnDisk,
    reached: Reached,
    since: Since,
    disk_limits: DiskLimits,
    files_room: FilesRoom,
    /// Bytes of log after which the next snapshot is taken.
    snapshot_bytes: u64,
    /// Whether there is little space, so that the log must be as short as possible.
    is_tight: bool,
}

impl<'a> Situation<'a> {
    fn new(bounds: &'a Bounds, found: &'a OnDisk, reached: Reached) -> Self {
        let SnapshotSizes { newest_bytes, older_bytes, unfinished_bytes, .. } = found.snapshots;
        let since = Since::of(&found.files, reached);
        // The next snapshot is longer than the newest by no more than the log since. It takes the room of the older
        // ones, and of what is written of it already.
        let room_bytes = (newest_bytes + since.bytes).saturating_sub(older_bytes + unfinished_bytes);
        let disk_limits = DiskLimits {
            low: bounds.disk_free_bytes_min.saturating_add(room_bytes),
            exhausted: SNAPSHOT_LEAVES_BYTES + room_bytes,
        };
        Situation {
            bounds,
            found,
            reached,
            since,
            disk_limits,
            files_room: files_room(bounds, &found.files, reached),
            snapshot_bytes: bounds.snapshot_bytes.max(newest_bytes),
            is_tight: found.free_bytes < disk_limits.low.saturating_add(DISK_TIGHT_BYTES),
        }
    }

    fn has_too_many_files(&self) -> bool {
        self.files_room != FilesRoom::Enough
    }

    fn snapshot_after(&self) -> Option<Duration> {
        if self.reached.applied <= self.reached.snapshot {
            return None;
        }
        let since = &self.since;
        let is_long = since.applied_bytes > self.snapshot_bytes || since.applied_files > self.bounds.files_a_part();
        // Even where space is short, a little log is no reason: a snapshot takes long.
        let tight_bytes = self.bounds.chunk_bytes.max(self.found.snapshots.newest_bytes / 2).min(self.snapshot_bytes);
        let is_worth_it = since.freeable_bytes > 0
            && (is_long || self.has_too_many_files() || (self.is_tight && since.freeable_bytes > tight_bytes));
        if is_worth_it {
            return Some(Duration::ZERO);
        }
        // Deletes take hardly any log, and free space only with the next snapshot, which also reduces the reserve for
        // the one after it. Until then an append that would leave too little space is rejected as a whole.
        let DiskLimits { low, exhausted } = self.disk_limits;
        let edge = low.max(exhausted.saturating_add(APPEND_RPC_BYTES_MAX as u64));
        (self.found.free_bytes < edge).then_some(SNAPSHOT_PAUSE_LEAST + self.pause())
    }

    /// Additional pause after a long snapshot.
    fn pause(&self) -> Duration {
        Duration::from_millis(self.found.snapshots.newest_bytes / SNAPSHOT_PAUSE_BYTES_PER_MS)
    }

    /// Whether to delete the older snapshots: if space is low and they take more than the next snapshot needs, or if
    /// there is no room even for that. Purging may take the last bytes, but deleting a file takes none.
    fn deletes_older(&self) -> bool {
        let SnapshotSizes { newest_bytes, older_bytes, .. } = self.found.snapshots;
        let free_bytes = self.found.free_bytes;
        (free_bytes < self.disk_limits.low && older_bytes > newest_bytes + self.since.bytes)
            || (free_bytes < SNAPSHOT_LEAVES_BYTES && older_bytes > 0)
    }

    fn purge_to(&self) -> Option<u64> {
        let Situation { bounds, found, snapshot_bytes, .. } = self;
        let snapshot = self.reached.snapshot.filter(|_| found.free_bytes >= PURGE_FREE_BYTES_LEAST)?;
        if self.is_tight || self.has_too_many_files() {
            return Some(snapshot.index);
        }
        let keep_bytes =
            u128::from(bounds.keep_bytes) * u128::from(*snapshot_bytes) / u128::from(bounds.snapshot_bytes);
        let keep_bytes = u64::try_from(keep_bytes).unwrap_or(u64::MAX);
        let by_entries = snapshot.index.checked_sub(bounds.keep_entries);
        let purge_to = by_entries.max(purge_to(&found.files, snapshot, keep_bytes, bounds.files_a_part()))?;
        // The older snapshot is useful only with the log after it: to a follower that is receiving it, and as a
        // replacement for a damaged newest one. But a log may become very long while a snapshot is written.
        let log_bytes = found.files.last().map_or(0, |last| last.end - found.files[0].start);
        let reaches_back = bounds.keeps_former && log_bytes <= snapshot_bytes.saturating_mul(LOG_HALVES_MAX) / 2;
        Some(purge_to.min(found.snapshots.former_index.filter(|_| reaches_back).unwrap_or(u64::MAX)))
    }
}

fn files_room(bounds: &Bounds, files: &[LogFile], reached: Reached) -> FilesRoom {
    if files.len() < bounds.files_limit {
        return FilesRoom::Enough;
    }
    let can_delete =
        files.len() > 1 && reached.applied.is_some() && files[0].last <= reached.applied.max(reached.snapshot);
    if can_delete { FilesRoom::None } else { FilesRoom::NoneToDelete }
}

/// The log after the newest snapshot, in whole files: up to one file more if the snapshot ends within one.
#[derive(Default)]
struct Since {
    bytes: u64,
    /// Length of the files with applied entries, which a snapshot would cover.
    applied_bytes: u64,
    applied_files: usize,
    /// Length of the files that could be deleted after a snapshot: all their entries are applied, and they are closed.
    freeable_bytes: u64,
}

impl Since {
    fn of(files: &[LogFile], reached: Reached) -> Self {
        let first = files.iter().position(|file| file.last > reached.snapshot).unwrap_or(files.len());
        let since = &files[first..];
        let (Some(first), Some((last, closed))) = (since.first(), since.split_last()) else {
            return Since::default();
        };
        let bytes = last.end - first.start;
        if reached.applied <= reached.snapshot {
            return Since { bytes, ..Since::default() };
        }
        let freeable = closed.iter().take_while(|file| file.last <= reached.applied);
        let freeable_bytes = freeable.last().map_or(0, |file| file.end - first.start);
        let applied_files = since.iter().position(|file| file.last >= reached.applied).unwrap_or(closed.len()) + 1;
        let applied_bytes = since[applied_files - 1].end - first.start;
        Since { bytes, applied_bytes, applied_files, freeable_bytes }
    }
}

/// Index up to which to purge, so that at most this many bytes and files remain of the log that a snapshot covers.
fn purge_to(files: &[LogFile], snapshot: LogId, keep_bytes: u64, keep_files: usize) -> Option<u64> {
    // The file in which the snapshot ends counts as a whole: only whole files are deleted.
    let mut covered: VecDeque<&LogFile> = VecDeque::new();
    for file in files {
        covered.push_back(file);
        if file.last >= Some(snapshot) {
            break;
        }
    }
    let end = covered.back()?.end;
    let mut last = None;
    while let Some(file) = covered.pop_front() {
        if end - file.start <= keep_bytes && covered.len() < keep_files {
            break;
        }
        last = file.last;
    }
    let last = last?;
    // The last entries of that file may have been replaced by entries of a later term, which begin at a lower index.
    let from_there_on = files.iter().filter_map(|file| file.last).filter(|log_id| *log_id >= last);
    from_there_on.map(|log_id| log_id.index).chain([snapshot.index]).min()
}

#[cfg(test)]
mod tests {
    use openraft::vote::RaftLeaderId;

    use super::*;

    const MIB: u64 = 1 << 20;

    const BOUNDS: Bounds = Bounds {
        snapshot_bytes: 256 * MIB,
        keep_bytes: 288 * MIB,
        keep_entries: 110_000,
        chunk_bytes: 16 * MIB,
        disk_free_bytes_min: 128 * MIB,
        keeps_former: true,
        files_max: LOG_FILES_MAX,
        files_limit: LOG_FILES_MAX,
        open_files_max: 1024,
    };

    fn log_id(term: u64, index: u64) -> LogId {
        LogId::new(RaftLeaderId::new(term, 1), index)
    }

    /// All entries in these files are applied.
    fn reached(files: &[LogFile], snapshot: Option<u64>) -> Reached {
        let applied = files.last().and_then(|file| file.last);
        Reached { snapshot: snapshot.map(|index| log_id(1, index)), applied }
    }

    /// A log whose files have 10 entries and this many MiB each.
    fn log_of(files: u64, mib_each: u64) -> Vec<LogFile> {
        let file = |number| LogFile {
            last: Some(log_id(1, 10 * number + 9)),
            start: number * mib_each * MIB,
            end: (number + 1) * mib_each * MIB,
        };
        (0..files).map(file).collect()
    }

    fn plan(free_mib: u64, newest_mib: u64, files: Vec<LogFile>, snapshot: Option<u64>) -> Plan {
        let (newest_bytes, older_bytes) = (newest_mib * MIB, newest_mib * MIB);
        let snapshots = SnapshotSizes { newest_bytes, older_bytes, ..SnapshotSizes::default() };
        let reached = reached(&files, snapshot);
        Plan::new(&BOUNDS, &OnDisk { free_bytes: free_mib * MIB, snapshots, files }, reached)
    }

    /// A snapshot is due when the log since the newest is longer than the setting and than that snapshot, or has too
    /// many files.
    #[test]
    fn snapshots_by_bytes() {
        const ENOUGH: u64 = 1 << 30;
        for (newest_mib, files, mib_each, snapshot, expected) in [
            (0, 16, 16, None, false),
            (0, 17, 16, None, true),
            // The snapshot covers the first file, or not all of it.
            (1, 17, 16, Some(9), false),
            (1, 17, 16, Some(8), true),
            (1, 17, 16, Some(169), false),
            // A little log is no reason to write a long snapshot.
            (10_000, 20, 16, Some(9), false),
            (10_000, 21, 500, Some(9), false),
            (10_000, 22, 500, Some(9), true),
            // Each file holds a descriptor.
            (10_000, 25, 16, Some(9), false),
            (10_000, 26, 16, Some(9), true),
        ] {
            let found = plan(ENOUGH, newest_mib, log_of(files, mib_each), snapshot);
            let what = format!("{newest_mib} {files} {mib_each} {snapshot:?}");
            assert_eq!(found.snapshot_after, expected.then_some(Duration::ZERO), "{what}");
            assert_eq!(found.files_room, FilesRoom::Enough, "{what}");
        }
    }

    /// Of the log that a snapshot covers, the allowed entries, bytes or files are kept, whichever is least.
    #[test]
    fn purges() {
        const ENOUGH: u64 = 1 << 30;
        for (newest_mib, files, mib_each, snapshot, expected) in [
            (1, 60, 16, None, None),
            (1, 18, 16, Some(179), None),
            (1, 19, 16, Some(189), Some(9)),
            (1, 40, 16, Some(185), Some(9)),
            (1, 40, 16, Some(399), Some(219)),
            // In proportion to a long snapshot.
            (2 * 256, 36, 16, Some(239), None),
            (2 * 256, 36, 16, Some(249), Some(9)),
            (1, 3, 500, Some(15), Some(15)),
        ] {
            let found = plan(ENOUGH, newest_mib, log_of(files, mib_each), snapshot);
            assert_eq!(found.purge_to, expected, "{newest_mib} {files} {mib_each} {snapshot:?}");
        }
        let by_entries = Bounds { keep_entries: 20, ..BOUNDS };
        let snapshots = SnapshotSizes::default();
        let found = OnDisk { free_bytes: u64::MAX, snapshots, files: log_of(4, 1) };
        let plan = |bounds, snapshot| Plan::new(bounds, &found, reached(&found.files, snapshot));
        assert_eq!(plan(&by_entries, Some(39)).purge_to, Some(19));
        assert_eq!(plan(&by_entries, Some(19)).purge_to, None);
        let none_kept = Bounds { keep_bytes: 0, ..BOUNDS };
        assert_eq!(plan(&none_kept, Some(35)).purge_to, Some(35));
    }

    /// The log is kept back to the older snapshot, even if that is more than the settings say: a follower may be
    /// receiving that snapshot. This does not hold if the settings keep less than the log between two snapshots, if
    /// space is short, or if the log has too many files.
    #[test]
    fn the_former_snapshot_stays_useful() {
        let files = log_of(60, 16);
        // Thirty files were appended between the two snapshots, six more than are kept. The state has 480 MiB.
        let snapshots = SnapshotSizes {
            newest_bytes: 480 * MIB,
            older_bytes: 480 * MIB,
            former_index: Some(215),
            ..SnapshotSizes::default()
        };
        let plan = |bounds, free_bytes, files: &[LogFile]| {
            let found = OnDisk { free_bytes, snapshots, files: files.to_vec() };
            Plan::new(bounds, &found, reached(files, Some(515))).purge_to
        };
        assert_eq!(plan(&BOUNDS, u64::MAX, &files), Some(215));
        let keeps_less = Bounds { keeps_former: false, ..BOUNDS };
        assert_eq!(plan(&keeps_less, u64::MAX, &files), Some(279), "24 files");
        assert_eq!(plan(&BOUNDS, u64::MAX, &log_of(60, 29)), Some(339), "1,740 MiB: 18 files, 522 MiB");
        assert_eq!(plan(&BOUNDS, 200 * MIB, &files), Some(515), "space is short");
        assert_eq!(plan(&BOUNDS, u64::MAX, &log_of(LOG_FILES_MAX as u64, 16)), Some(515), "too many files");
    }

    /// Only applied entries make a snapshot due: an uncommitted end of the log does not, however long it is.
    #[test]
    fn unapplied_entries_bring_no_snapshot() {
        let files = log_of(70, 16);
        let plan = |free_mib: u64, snapshot, applied| {
            let found =
                OnDisk { free_bytes: free_mib * MIB, snapshots: SnapshotSizes::default(), files: files.clone() };
            let reached = Reached { snapshot: Some(log_id(1, snapshot)), applied: Some(log_id(1, applied)) };
            Plan::new(&BOUNDS, &found, reached)
        };
        for free_mib in [10, 100, 10_000] {
            assert_eq!(plan(free_mib, 15, 15).snapshot_after, None, "with {free_mib} MiB");
        }
        assert_eq!(plan(10_000, 15, 16).snapshot_after, None, "one entry of a long log");
        assert_eq!(plan(10_000, 15, 150).snapshot_after, None, "15 files");
        assert_eq!(plan(10_000, 15, 170).snapshot_after, Some(Duration::ZERO), "17 files");
        assert_eq!(
            plan(1500, 15, 16).disk_limits.exhausted,
            SNAPSHOT_LEAVES_BYTES + 69 * 16 * MIB,
            "room for all of it"
        );
    }

    /// Entries of a later term may have replaced those at the end of a file, so its last index may be higher than those
    /// of the files after it. Such a file counts as covered once the later entries are, and can then be deleted.
    #[test]
    fn entries_that_were_replaced() {
        let mut files = log_of(4, 16);
        // The first file ended with 9 in term 1; 5 was the first of term 2.
        for (number, file) in files.iter_mut().enumerate().skip(1) {
            file.last = Some(log_id(2, 6 + number as u64));
        }
        let snapshot = log_id(2, 7);
        let reached = Reached { snapshot: Some(snapshot), applied: Some(snapshot) };
        assert_eq!(Since::of(&files, reached).bytes, 2 * 16 * MIB, "from the third file on");
        assert_eq!(purge_to(&files, snapshot, 16 * MIB, 9), Some(7), "no entry has the index 9");
        let before = Reached { snapshot: None, applied: Some(log_id(2, 6)) };
        assert_eq!(Since::of(&files, before).freeable_bytes, 16 * MIB, "all that is left of the first file is applied");
    }

    /// A log with as many files as it may have accepts no entries while files can be deleted, now or after a snapshot.
    /// If none can, it accepts them: otherwise none ever could.
    #[test]
    fn too_many_files() {
        let full = LOG_FILES_MAX as u64;
        for (files, snapshot, applied, expected) in [
            (full - 1, Some(9), Some(100), FilesRoom::Enough),
            (full, Some(9), Some(100), FilesRoom::None),
            (full, Some(9), Some(9), FilesRoom::None),
            (full, None, Some(9), FilesRoom::None),
            (full, Some(8), Some(8), FilesRoom::NoneToDelete),
            (full, None, Some(8), FilesRoom::NoneToDelete),
            (full, None, None, FilesRoom::NoneToDelete),
        ] {
            let found = OnDisk { free_bytes: u64::MAX, snapshots: SnapshotSizes::default(), files: log_of(files, 1) };
            let at = |index: Option<u64>| index.map(|index| log_id(1, index));
            let plan = Plan::new(&BOUNDS, &found, Reached { snapshot: at(snapshot), applied: at(applied) });
            assert_eq!(plan.files_room, expected, "{files} {snapshot:?} {applied:?}");
        }
    }

    /// A log from an older version, with more files than it may have, may grow a little.
    #[test]
    fn more_files_than_allowed_at_the_start() {
        for (files, open_files_max, expected) in [
            (3, 1024, 80),
            (40, 1024, 80),
            (41, 1024, 81),
            (200, 1024, 240),
            (500, 1024, 512),
            (200, 256, 128),
            (12_500, usize::MAX, 12_540),
        ] {
            assert_eq!(files_limit(files, LOG_FILES_MAX, open_files_max), expected, "{files} {open_files_max}");
        }
    }

    /// With little space, no log is kept for followers, and snapshots are taken while they free anything. Writes may
    /// not use the space that a snapshot needs.
    #[test]
    fn little_space() {
        let tight = plan(310, 65, log_of(5, 16), Some(9));
        assert_eq!(tight.purge_to, Some(9));
        let at_once = Some(Duration::ZERO);
        assert_eq!(tight.snapshot_after, at_once, "it frees 48 MiB");
        assert_eq!(tight.disk_limits.low, (128 + 64) * MIB);
        assert_eq!(tight.disk_limits.exhausted, SNAPSHOT_LEAVES_BYTES + 64 * MIB);
        assert_eq!(plan(300, 65, log_of(4, 16), Some(9)).snapshot_after, None, "32 MiB are not worth it");
        // Not again and again: a snapshot takes long, and these free little.
        let later = Some(SNAPSHOT_PAUSE_LEAST + Duration::from_millis(65 * MIB / SNAPSHOT_PAUSE_BYTES_PER_MS));
        assert_eq!(plan(150, 65, log_of(4, 16), Some(9)).snapshot_after, later, "puts are rejected");
        assert_eq!(plan(100, 65, log_of(2, 16), Some(18)).snapshot_after, later, "something may have been deleted");
        assert_eq!(plan(30, 65, log_of(2, 16), Some(9)).snapshot_after, later, "no entry is accepted");
        assert_eq!(plan(30, 65, log_of(2, 16), Some(19)).snapshot_after, None, "nothing was applied since");
        assert_eq!(plan(1000, 65, log_of(2, 16), Some(18)).snapshot_after, None, "there is enough space");
        // While no snapshot is due, the longest append must fit.
        let small_reserve = Bounds { disk_free_bytes_min: 0, ..BOUNDS };
        let found = |free_bytes| OnDisk { free_bytes, snapshots: SnapshotSizes::default(), files: log_of(1, 1) };
        let fits = SNAPSHOT_LEAVES_BYTES + MIB + APPEND_RPC_BYTES_MAX as u64;
        let plan_at = |free_bytes| Plan::new(&small_reserve, &found(free_bytes), reached(&log_of(1, 1), None));
        assert_eq!(plan_at(fits - 1).snapshot_after, Some(SNAPSHOT_PAUSE_LEAST));
        assert_eq!(plan_at(fits - 1).retry_after, SNAPSHOT_RETRY);
        assert_eq!(plan_at(fits).snapshot_after, None);
        let full = OnDisk { free_bytes: 0, snapshots: SnapshotSizes::default(), files: log_of(3, 16) };
        assert_eq!(Plan::new(&BOUNDS, &full, reached(&full.files, Some(9))).purge_to, None);

        let deleted = plan(140, 65, log_of(2, 16), Some(18));
        assert!(!deleted.delete_older, "they keep room for the next");
        let snapshots = SnapshotSizes { newest_bytes: 10 * MIB, older_bytes: 65 * MIB, ..SnapshotSizes::default() };
        let smaller = OnDisk { free_bytes: 100 * MIB, snapshots, files: log_of(1, 16) };
        assert!(Plan::new(&BOUNDS, &smaller, reached(&smaller.files, Some(5))).delete_older);
    }

    /// The room that is reserved for the next snapshot shrinks as that is written.
    #[test]
    fn the_room_for_a_snapshot_counts_once() {
        let limits = |unfinished_mib: u64| {
            let snapshots =
                SnapshotSizes { newest_bytes: 65 * MIB, unfinished_bytes: unfinished_mib * MIB, ..Default::default() };
            let found = OnDisk { free_bytes: (1000 - unfinished_mib) * MIB, snapshots, files: log_of(1, 16) };
            Plan::new(&BOUNDS, &found, reached(&found.files, Some(9))).disk_limits
        };
        let before = limits(0);
        assert_eq!(before.exhausted, SNAPSHOT_LEAVES_BYTES + 65 * MIB);
        for unfinished_mib in [1, 40, 65] {
            let meanwhile = limits(unfinished_mib);
            let less = unfinished_mib * MIB;
            assert_eq!((meanwhile.low, meanwhile.exhausted), (before.low - less, before.exhausted - less));
        }
        assert_eq!(limits(100).exhausted, SNAPSHOT_LEAVES_BYTES);
    }

    /// The log may have more files only if clients cannot need the descriptors.
    #[test]
    fn open_files() {
        let clients = FILES_RESERVED + CLIENTS_MAX * 6;
        for (files, expected) in [
            (256, LOG_FILES_MAX),
            (65_536, LOG_FILES_MAX),
            (clients + 200, LOG_FILES_MAX + 100),
            (1 << 20, LOG_FILES_LIMIT),
            (usize::MAX, LOG_FILES_LIMIT),
        ] {
            assert_eq!(log_files_max(files), expected, "{files}");
        }
    }
}
