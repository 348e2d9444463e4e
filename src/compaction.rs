//! Keeps the log short, and the disk from becoming full.
//!
//! openraft asks for a snapshot by the number of entries alone, and purges by it. What a log takes of a disk
//! are bytes: this task looks at the log's files several times a second, asks for a snapshot when those since the last one
//! are longer than `--snapshot-bytes`, and purges all but `--snapshot-keep-entries` or `--snapshot-keep-bytes` of those
//! before it, whichever is less. It decides from what is on disk alone, so it takes up what was left undone when the
//! node stopped: a snapshot without the purge that follows it.
//!
//! When the disk has little space, it keeps nothing for followers, and takes snapshots sooner. They
//! may use space that writes may not.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use actix_web::web;
use openraft::async_runtime::WatchReceiver;
use rustix::process::{Resource, getrlimit};

use crate::app::ExampleApp;
use crate::config::{
    APPEND_BYTES_MAX, CLIENTS_MAX, COMPACTION_INTERVAL, Config, DISK_CHECK_INTERVAL, DISK_REPORT_INTERVAL,
    DISK_TIGHT_BYTES, FILES_RESERVED, LOG_FILES_LIMIT, LOG_FILES_MAX, PURGE_FREE_BYTES_LEAST, SHRINKING_BYTES_A_MS,
    SNAPSHOT_LEAVES_BYTES, SNAPSHOT_RETRY,
};
use crate::disk::{DiskLimits, DiskSpace};
use crate::store::snapshot::SnapshotSizes;
use crate::store::{ExampleStore, LogFile, durable};

/// As much as an append may bring, with some room: one that would leave too little space is rejected as a whole.
const LONG_APPEND_BYTES: u64 = 4 * APPEND_BYTES_MAX as u64;

/// What the settings say.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    snapshot_bytes: u64,
    keep_bytes: u64,
    keep_entries: u64,
    chunk_bytes: u64,
    disk_free_bytes_min: u64,
    /// Files that the log may have.
    files_max: usize,
}

impl Bounds {
    fn of(config: &Config) -> Self {
        Bounds {
            snapshot_bytes: config.snapshot_bytes,
            keep_bytes: config.snapshot_keep_bytes,
            keep_entries: config.snapshot_keep_entries,
            chunk_bytes: config.log_sizes().chunk_bytes_max as u64,
            disk_free_bytes_min: config.min_disk_free_bytes,
            files_max: log_files_max(getrlimit(Resource::Nofile).current),
        }
    }

    /// Files of the log since the newest snapshot, and as many before it, so that what is appended
    /// while a snapshot is written finds room for its files too.
    fn files_a_part(&self) -> usize {
        self.files_max / 10 * 3
    }
}

/// How many files the log may have if the system allows so many open files. Clients come first.
fn log_files_max(open_files_max: Option<u64>) -> usize {
    let open_files_max = open_files_max.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX));
    let spare = open_files_max.saturating_sub(FILES_RESERVED + CLIENTS_MAX * 6);
    LOG_FILES_MAX.saturating_add(spare / 2).min(LOG_FILES_LIMIT)
}

/// What is on disk.
#[derive(Clone, Debug)]
struct OnDisk {
    /// What was last known if it cannot be looked up.
    free_bytes: u64,
    snapshots: SnapshotSizes,
    /// Oldest first.
    files: Vec<LogFile>,
}

impl OnDisk {
    /// Blocks on the disk. Also returns why its free space cannot be looked up, if so; then `last_known_bytes` apply.
    fn look(store: &ExampleStore, last_known_bytes: u64) -> io::Result<(Self, Option<io::Error>)> {
        let (free_bytes, failure) = match durable::free_bytes(store.directory()) {
            Ok(free_bytes) => (free_bytes, None),
            Err(error) => (last_known_bytes, Some(error)),
        };
        let snapshots = store.state_machine.snapshots().sizes()?;
        Ok((OnDisk { free_bytes, snapshots, files: store.log.files()? }, failure))
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plan {
    disk_limits: DiskLimits,
    /// Up to which index the log may be purged.
    purge_to: Option<u64>,
    wants_snapshot: bool,
    /// After which time another snapshot is worth taking because the state may have become smaller, if it is.
    may_shrink_after: Option<Duration>,
    /// Whether the snapshots before the newest are to be deleted.
    delete_older: bool,
    log_is_full: bool,
}

impl Plan {
    /// `snapshot` is the index up to which the newest snapshot reaches, if there is one.
    fn new(bounds: &Bounds, found: &OnDisk, snapshot: Option<u64>) -> Self {
        let SnapshotSizes { newest_bytes, older_bytes, unfinished_bytes, .. } = found.snapshots;
        let since = Since::of(&found.files, snapshot);
        // A state grows by no more than the log does. What is written of the next snapshot needs no more room.
        let room_bytes = (newest_bytes + since.bytes).saturating_sub(older_bytes + unfinished_bytes);
        let disk_limits = DiskLimits {
            low: bounds.disk_free_bytes_min.saturating_add(room_bytes),
            exhausted: SNAPSHOT_LEAVES_BYTES + room_bytes,
        };
        let free_bytes = found.free_bytes;
        let is_low = free_bytes < disk_limits.low;
        let is_tight = free_bytes < disk_limits.low.saturating_add(DISK_TIGHT_BYTES);

        let snapshot_bytes = bounds.snapshot_bytes.max(newest_bytes);
        let log_is_full = found.files.len() >= bounds.files_max;
        // Where space is short, not for each little of log either: a snapshot takes long.
        let tight_bytes = bounds.chunk_bytes.max(newest_bytes / 2).min(snapshot_bytes);
        let wants_snapshot = since.bytes > snapshot_bytes
            || since.files > bounds.files_a_part()
            || (log_is_full && since.to_gain_bytes > 0)
            || (is_tight && since.to_gain_bytes > tight_bytes)
            || (is_low && since.to_gain_bytes > 0)
            // Afterwards less must be reserved for the next; and no long entry is taken until then.
            || (free_bytes < disk_limits.exhausted.saturating_add(LONG_APPEND_BYTES) && since.bytes > 0);

        // Deletes take hardly any log, and give the space back only with the next snapshot.
        let may_shrink_after = (is_low && since.bytes > 0)
            .then(|| SNAPSHOT_RETRY + Duration::from_millis(newest_bytes / SHRINKING_BYTES_A_MS));
        // As long as they are no longer than the next, they keep room for it.
        // Once there is no room even for that, purging may take the last bytes, and deleting them takes none.
        let delete_older = (is_low && older_bytes > newest_bytes + since.bytes)
            || (free_bytes < SNAPSHOT_LEAVES_BYTES && older_bytes > 0);

        let keep_bytes = u128::from(bounds.keep_bytes) * u128::from(snapshot_bytes) / u128::from(bounds.snapshot_bytes);
        let keep_bytes = u64::try_from(keep_bytes).unwrap_or(u64::MAX);
        let purge_to = snapshot.filter(|_| free_bytes >= PURGE_FREE_BYTES_LEAST).and_then(|snapshot| {
            if is_tight || log_is_full {
                return Some(snapshot);
            }
            let by_entries = snapshot.checked_sub(bounds.keep_entries);
            by_entries.max(purge_to(&found.files, snapshot, keep_bytes, bounds.files_a_part()))
        });
        Plan { disk_limits, purge_to, wants_snapshot, may_shrink_after, delete_older, log_is_full }
    }
}

/// What the log has of entries after a snapshot; up to a file more than that, if the snapshot ends within one.
struct Since {
    bytes: u64,
    files: usize,
    /// Length of the files among them that could be deleted after a snapshot: all but the one that is written to.
    to_gain_bytes: u64,
}

impl Since {
    fn of(files: &[LogFile], snapshot: Option<u64>) -> Self {
        let first = files.iter().position(|file| file.last_index > snapshot).unwrap_or(files.len());
        let since = &files[first..];
        let (Some(first), Some(last)) = (since.first(), since.last()) else {
            return Since { bytes: 0, files: 0, to_gain_bytes: 0 };
        };
        Since { bytes: last.end - first.start, files: since.len(), to_gain_bytes: last.start - first.start }
    }
}

/// Up to which index to purge the log, so that no more than so many bytes and files are left of what a snapshot covers.
fn purge_to(files: &[LogFile], snapshot: u64, keep_bytes: u64, keep_files: usize) -> Option<u64> {
    // The file that holds the end of the snapshot counts as a whole: only whole files are deleted.
    let mut covered: VecDeque<&LogFile> = VecDeque::new();
    for file in files {
        covered.push_back(file);
        if file.last_index >= Some(snapshot) {
            break;
        }
    }
    let end = covered.back()?.end;
    let mut purge_to = None;
    while let Some(file) = covered.pop_front() {
        if end - file.start <= keep_bytes && covered.len() < keep_files {
            break;
        }
        purge_to = file.last_index.map(|last| last.min(snapshot));
    }
    purge_to
}

/// Looks at the disk and the log again and again, and does what follows.
pub async fn run(app: web::Data<ExampleApp>, config: Config) {
    let bounds = Bounds::of(&config);
    let mut interval = tokio::time::interval(COMPACTION_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut looked: Option<(Instant, u64)> = None;
    let mut said = (DiskSpace::Enough, None);
    let mut has_failed = false;
    let mut asked = Asked::default();
    loop {
        let much_was_written = tokio::select! {
            _ = interval.tick() => false,
            () = app.disk.look_is_due() => true,
        };
        let log_bytes = app.store.log.disk_bytes();
        let is_due = |(at, bytes): (Instant, u64)| at.elapsed() >= DISK_CHECK_INTERVAL || bytes != log_bytes;
        if !much_was_written && !looked.is_none_or(is_due) {
            continue;
        }
        looked = Some((Instant::now(), log_bytes));
        let (plan, failure) = match look(&app, &bounds).await {
            Ok((plan, failure)) => (Some(plan), failure),
            Err(error) => (None, Some(error)),
        };
        say_failure(&app, failure, &mut has_failed);
        let Some(plan) = plan else { continue };
        say(&app, &mut said);
        app.set_log_is_full(plan.log_is_full);
        if asked.act(&app, &plan).await.is_err() {
            // Raft has stopped, which is reported as that.
            std::future::pending::<()>().await;
        }
    }
}

/// Returns what follows from what is on disk, and why its free space cannot be looked up, if so.
async fn look(app: &ExampleApp, bounds: &Bounds) -> io::Result<(Plan, Option<io::Error>)> {
    let looked = app.disk.look(async {
        let (store, bounds, last_known_bytes) = (app.store.clone(), *bounds, app.disk.free_bytes());
        let snapshot = app.raft.metrics().borrow_watched().snapshot.map(|log_id| log_id.index);
        let looked = tokio::task::spawn_blocking(move || {
            let look = || {
                let (found, failure) = OnDisk::look(&store, last_known_bytes)?;
                let plan = Plan::new(&bounds, &found, snapshot);
                io::Result::Ok((found, plan, failure))
            };
            let looked = look()?;
            if looked.1.delete_older && store.state_machine.snapshots().delete_older() { look() } else { Ok(looked) }
        });
        let (found, plan, failure) = looked.await.unwrap_or_else(|error| Err(io::Error::other(error)))?;
        Ok((failure.is_none().then_some(found.free_bytes), plan.disk_limits, (plan, failure)))
    });
    looked.await
}

/// Logs that the disk cannot be looked at, and that it can be again.
fn say_failure(app: &ExampleApp, failure: Option<io::Error>, has_failed: &mut bool) {
    if std::mem::replace(has_failed, failure.is_some()) == failure.is_some() {
        return;
    }
    let directory = app.store.directory().display();
    match failure {
        Some(error) => tracing::warn!(
            "cannot look up the free space of the disk with `{directory}`, or the node's files on it: {error}; the last \
             known space applies"
        ),
        None => tracing::info!("the free space of the disk with `{directory}` can be looked up again"),
    }
}

/// Logs what the disk has room for if that has changed. A node that makes room again and again says it now and then.
fn say(app: &ExampleApp, said: &mut (DiskSpace, Option<Instant>)) {
    let found = app.disk.space();
    if said.0 == found || said.1.is_some_and(|at| at.elapsed() < DISK_REPORT_INTERVAL) {
        return;
    }
    *said = (found, Some(Instant::now()));
    match found {
        DiskSpace::Enough => tracing::info!("the disk has enough space: writes are accepted again"),
        DiskSpace::Low => {
            tracing::warn!("the disk has little space left: as leader this node rejects puts until there is more");
        }
        DiskSpace::Exhausted => {
            tracing::error!("the disk is nearly full: this node takes no entries until there is more space");
        }
    }
}

/// What was asked of Raft.
#[derive(Default)]
struct Asked {
    purge_to: Option<u64>,
    /// When a snapshot was asked for, and up to where the newest reached then.
    snapshot: Option<(Instant, Option<u64>)>,
}

impl Asked {
    async fn act(&mut self, app: &ExampleApp, plan: &Plan) -> Result<(), ()> {
        let (purged, snapshot) = {
            let metrics = app.raft.metrics();
            let metrics = metrics.borrow_watched();
            (metrics.purged.map(|log_id| log_id.index), metrics.snapshot.map(|log_id| log_id.index))
        };
        if let Some(purge_to) = plan.purge_to.filter(|purge_to| Some(*purge_to) > purged.max(self.purge_to)) {
            // Raft puts it off while a follower is being sent those entries.
            app.raft.trigger().purge_log(purge_to).await.map_err(drop)?;
            self.purge_to = Some(purge_to);
        }
        // One that is refused for want of space would only be refused again at once.
        let is_pending = self.snapshot.is_some_and(|(at, before)| before == snapshot && at.elapsed() < SNAPSHOT_RETRY);
        let may_shrink =
            plan.may_shrink_after.is_some_and(|after| self.snapshot.is_none_or(|(at, _)| at.elapsed() > after));
        if (plan.wants_snapshot && !is_pending) || may_shrink {
            // Does nothing while one is being written.
            app.raft.trigger().snapshot().await.map_err(drop)?;
            self.snapshot = Some((Instant::now(), snapshot));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    const BOUNDS: Bounds = Bounds {
        snapshot_bytes: 256 * MIB,
        keep_bytes: 288 * MIB,
        keep_entries: 110_000,
        chunk_bytes: 16 * MIB,
        disk_free_bytes_min: 128 * MIB,
        files_max: LOG_FILES_MAX,
    };

    /// A log of files that have 10 entries and this many MiB each.
    fn log_of(files: u64, mib_each: u64) -> Vec<LogFile> {
        let file = |number| LogFile {
            last_index: Some(10 * number + 9),
            start: number * mib_each * MIB,
            end: (number + 1) * mib_each * MIB,
        };
        (0..files).map(file).collect()
    }

    fn plan(free_mib: u64, newest_mib: u64, files: Vec<LogFile>, snapshot: Option<u64>) -> Plan {
        let (newest_bytes, older_bytes) = (newest_mib * MIB, newest_mib * MIB);
        let snapshots = SnapshotSizes { newest_bytes, older_bytes, ..SnapshotSizes::default() };
        Plan::new(&BOUNDS, &OnDisk { free_bytes: free_mib * MIB, snapshots, files }, snapshot)
    }

    /// A snapshot is asked for when the log since the last is longer than the setting and than the last, or has too many
    /// files.
    #[test]
    fn snapshots_by_bytes() {
        const ENOUGH: u64 = 1 << 30;
        for (newest_mib, files, mib_each, snapshot, expected) in [
            (0, 16, 16, None, false),
            (0, 17, 16, None, true),
            // Of the first file all is in the snapshot, or not.
            (1, 17, 16, Some(9), false),
            (1, 17, 16, Some(8), true),
            (1, 17, 16, Some(169), false),
            // A long snapshot is not written for each little of log.
            (10_000, 20, 16, Some(9), false),
            (10_000, 21, 500, Some(9), false),
            (10_000, 22, 500, Some(9), true),
            // Each file has a descriptor.
            (10_000, 25, 16, Some(9), false),
            (10_000, 26, 16, Some(9), true),
        ] {
            let found = plan(ENOUGH, newest_mib, log_of(files, mib_each), snapshot);
            let what = format!("{newest_mib} {files} {mib_each} {snapshot:?}");
            assert_eq!(found.wants_snapshot, expected, "{what}");
            assert!(!found.log_is_full, "{what}");
        }
        assert!(plan(ENOUGH, 1, log_of(LOG_FILES_MAX as u64, 16), Some(9)).log_is_full);
    }

    /// Of what a snapshot covers as many entries, bytes and files are kept as allowed, whichever is least.
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
        assert_eq!(Plan::new(&by_entries, &found, Some(39)).purge_to, Some(19));
        assert_eq!(Plan::new(&by_entries, &found, Some(19)).purge_to, None);
        let none_kept = Bounds { keep_bytes: 0, ..BOUNDS };
        assert_eq!(Plan::new(&none_kept, &found, Some(35)).purge_to, Some(35));
    }

    /// With little space, nothing is kept for followers, and the log is shortened as long as that gains anything. The space
    /// that a snapshot needs is not there for writes.
    #[test]
    fn little_space() {
        let tight = plan(310, 65, log_of(5, 16), Some(9));
        assert_eq!(tight.purge_to, Some(9));
        assert!(tight.wants_snapshot, "48 MiB are to be gained");
        assert_eq!(tight.disk_limits.low, (128 + 64) * MIB);
        assert_eq!(tight.disk_limits.exhausted, SNAPSHOT_LEAVES_BYTES + 64 * MIB);
        assert!(!plan(300, 65, log_of(4, 16), Some(9)).wants_snapshot, "32 MiB are less than that snapshot is worth");
        assert!(plan(150, 65, log_of(4, 16), Some(9)).wants_snapshot, "puts are rejected");
        assert!(!plan(100, 65, log_of(2, 16), Some(9)).wants_snapshot, "the file that is written to cannot be deleted");
        assert!(plan(30, 65, log_of(2, 16), Some(9)).wants_snapshot, "no entry is taken");
        let full = Plan::new(
            &BOUNDS,
            &OnDisk { free_bytes: 0, snapshots: SnapshotSizes::default(), files: log_of(3, 16) },
            Some(9),
        );
        assert_eq!(full.purge_to, None);

        let deleted = plan(140, 65, log_of(2, 16), Some(18));
        assert_eq!(
            deleted.may_shrink_after,
            Some(SNAPSHOT_RETRY + Duration::from_millis(65 * MIB / SHRINKING_BYTES_A_MS))
        );
        assert_eq!(plan(120, 65, log_of(2, 16), Some(19)).may_shrink_after, None, "nothing was applied since");
        assert_eq!(plan(1000, 65, log_of(2, 16), Some(18)).may_shrink_after, None, "there is enough space");
        assert!(!deleted.delete_older, "it is room for the next");
        let snapshots = SnapshotSizes { newest_bytes: 10 * MIB, older_bytes: 65 * MIB, ..SnapshotSizes::default() };
        let smaller = OnDisk { free_bytes: 100 * MIB, snapshots, files: log_of(1, 16) };
        assert!(Plan::new(&BOUNDS, &smaller, Some(5)).delete_older);
    }

    /// The room that is kept for the next snapshot becomes less as that is written: it takes the same space.
    #[test]
    fn the_room_for_a_snapshot_counts_once() {
        let limits = |unfinished_mib: u64| {
            let snapshots =
                SnapshotSizes { newest_bytes: 65 * MIB, unfinished_bytes: unfinished_mib * MIB, ..Default::default() };
            let found = OnDisk { free_bytes: (1000 - unfinished_mib) * MIB, snapshots, files: log_of(1, 16) };
            Plan::new(&BOUNDS, &found, Some(9)).disk_limits
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

    /// The log has more files only where clients cannot use them.
    #[test]
    fn open_files() {
        let clients = (FILES_RESERVED + CLIENTS_MAX * 6) as u64;
        for (files, expected) in [
            (Some(256), LOG_FILES_MAX),
            (Some(65_536), LOG_FILES_MAX),
            (Some(clients + 200), LOG_FILES_MAX + 100),
            (Some(1 << 20), LOG_FILES_LIMIT),
            (None, LOG_FILES_LIMIT),
        ] {
            assert_eq!(log_files_max(files), expected, "{files:?}");
        }
    }
}
