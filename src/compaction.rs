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
    APPEND_RPC_BYTES_MAX, CLIENTS_MAX, COMPACTION_INTERVAL, Config, DISK_CHECK_INTERVAL, DISK_REPORT_INTERVAL,
    DISK_TIGHT_BYTES, FILES_RESERVED, LOG_FILES_LIMIT, LOG_FILES_MAX, LOG_HALVES_MAX, PURGE_FREE_BYTES_LEAST,
    PURGE_WAIT_MAX, SNAPSHOT_LEAVES_BYTES, SNAPSHOT_PAUSE_BYTES_A_MS, SNAPSHOT_PAUSE_LEAST, SNAPSHOT_RETRY,
};
use crate::disk::{DiskLimits, DiskSpace};
use crate::store::snapshot::SnapshotSizes;
use crate::store::{ExampleStore, LogFile, durable};
use crate::types::LogId;

/// What the settings say.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    snapshot_bytes: u64,
    keep_bytes: u64,
    keep_entries: u64,
    chunk_bytes: u64,
    disk_free_bytes_min: u64,
    /// Whether they keep at least as much of what a snapshot covers as there is between two.
    keeps_former: bool,
    /// Files that the log may have.
    files_max: usize,
    /// With how many files it takes no more entries: see [`files_limit`].
    files_limit: usize,
    open_files_max: usize,
}

impl Bounds {
    fn of(config: &Config) -> Self {
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

    /// Files of the log since the newest snapshot, and as many before it, so that what is appended
    /// while a snapshot is written finds room for its files too.
    fn files_a_part(&self) -> usize {
        self.files_max / 10 * 3
    }
}

/// How many files the log may have if the system allows so many open files. Clients come first.
fn log_files_max(open_files_max: usize) -> usize {
    let spare = open_files_max.saturating_sub(FILES_RESERVED + CLIENTS_MAX * 6);
    LOG_FILES_MAX.saturating_add(spare / 2).min(LOG_FILES_LIMIT)
}

/// With how many files a log that has `files` takes no more entries.
///
/// That is as many as it may have. A log that a former version has left may have more, in smaller files; it may then
/// grow until a snapshot covers it, unless the system allows too few open files for that.
fn files_limit(files: usize, files_max: usize, open_files_max: usize) -> usize {
    files_max.max((files + files_max / 2).min(open_files_max / 2))
}

/// How far Raft has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Reached {
    /// The last entry in the newest snapshot.
    snapshot: Option<LogId>,
    applied: Option<LogId>,
}

impl Reached {
    fn of(app: &ExampleApp) -> Self {
        let metrics = app.raft.metrics();
        let metrics = metrics.borrow_watched();
        Reached { snapshot: metrics.snapshot, applied: metrics.last_applied }
    }
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
    /// What it was made for.
    reached: Reached,
    disk_limits: DiskLimits,
    /// Up to which index the log may be purged.
    purge_to: Option<u64>,
    /// How long after the last attempt another snapshot is worth taking, if it is.
    snapshot_after: Option<Duration>,
    /// How long after an attempt that failed it is worth another.
    retry_after: Duration,
    /// Whether the snapshots before the newest are to be deleted.
    delete_older: bool,
    files: usize,
    files_room: FilesRoom,
}

/// Whether the log may have more files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FilesRoom {
    Enough,
    /// Not until some are deleted, after a snapshot if need be.
    None,
    /// It should not, but none can be deleted: their entries are not applied. To take no entries would keep it so, as
    /// entries are only committed if more can follow. A leader bounds them by their bytes
    /// ([`LOG_UNCOMMITTED_BYTES_MAX`](crate::config::LOG_UNCOMMITTED_BYTES_MAX)).
    NoneToDelete,
}

impl Plan {
    fn new(bounds: &Bounds, found: &OnDisk, reached: Reached) -> Self {
        let SnapshotSizes { newest_bytes, older_bytes, former_index, unfinished_bytes } = found.snapshots;
        let since = Since::of(&found.files, reached);
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
        let may_gain_files = found.files.len() > 1
            && reached.applied.is_some()
            && found.files[0].last <= reached.applied.max(reached.snapshot);
        let files_room = match found.files.len() >= bounds.files_limit {
            false => FilesRoom::Enough,
            true if may_gain_files => FilesRoom::None,
            true => FilesRoom::NoneToDelete,
        };
        let has_too_many_files = files_room != FilesRoom::Enough;

        // Where space is short, not for each little of log either: a snapshot takes long.
        let tight_bytes = bounds.chunk_bytes.max(newest_bytes / 2).min(snapshot_bytes);
        let is_long = since.applied_bytes > snapshot_bytes || since.applied_files > bounds.files_a_part();
        let is_worth_it = since.to_gain_bytes > 0
            && (is_long || has_too_many_files || (is_tight && since.to_gain_bytes > tight_bytes));
        // Deletes take hardly any log, and give the space back only with the next snapshot. And afterwards less must be
        // reserved for the one after it; an append that would leave too little is rejected as a whole until then.
        let edge = disk_limits.low.max(disk_limits.exhausted.saturating_add(APPEND_RPC_BYTES_MAX as u64));
        let pause = Duration::from_millis(newest_bytes / SNAPSHOT_PAUSE_BYTES_A_MS);
        let snapshot_after = if reached.applied <= reached.snapshot {
            None
        } else if is_worth_it {
            Some(Duration::ZERO)
        } else {
            (free_bytes < edge).then_some(SNAPSHOT_PAUSE_LEAST + pause)
        };
        // As long as they are no longer than the next, they keep room for it.
        // Once there is no room even for that, purging may take the last bytes, and deleting them takes none.
        let delete_older = (is_low && older_bytes > newest_bytes + since.bytes)
            || (free_bytes < SNAPSHOT_LEAVES_BYTES && older_bytes > 0);

        let keep_bytes = u128::from(bounds.keep_bytes) * u128::from(snapshot_bytes) / u128::from(bounds.snapshot_bytes);
        let keep_bytes = u64::try_from(keep_bytes).unwrap_or(u64::MAX);
        let purge_to = reached.snapshot.filter(|_| free_bytes >= PURGE_FREE_BYTES_LEAST).and_then(|snapshot| {
            if is_tight || has_too_many_files {
                return Some(snapshot.index);
            }
            let by_entries = snapshot.index.checked_sub(bounds.keep_entries);
            let purge_to = by_entries.max(purge_to(&found.files, snapshot, keep_bytes, bounds.files_a_part()))?;
            // Otherwise the former snapshot would be of no use any more: neither to a follower to which it is being
            // sent, nor in place of a damaged newest. But while a snapshot is written, a log may become very long.
            let log_bytes = found.files.last().map_or(0, |last| last.end - found.files[0].start);
            let reaches_back = bounds.keeps_former && log_bytes <= snapshot_bytes.saturating_mul(LOG_HALVES_MAX) / 2;
            Some(purge_to.min(former_index.filter(|_| reaches_back).unwrap_or(u64::MAX)))
        });
        Plan {
            reached,
            disk_limits,
            purge_to,
            snapshot_after,
            retry_after: SNAPSHOT_RETRY + pause,
            delete_older,
            files: found.files.len(),
            files_room,
        }
    }
}

/// What the log has of entries after a snapshot; up to a file more than that, if the snapshot ends within one.
#[derive(Default)]
struct Since {
    bytes: u64,
    /// Those with applied entries, which a snapshot would cover.
    applied_bytes: u64,
    applied_files: usize,
    /// Length of the files that could be deleted after a snapshot: those with nothing else, but for the one that is
    /// written to.
    to_gain_bytes: u64,
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
        let gained = closed.iter().take_while(|file| file.last <= reached.applied);
        let to_gain_bytes = gained.last().map_or(0, |file| file.end - first.start);
        let applied_files = since.iter().position(|file| file.last >= reached.applied).unwrap_or(closed.len()) + 1;
        let applied_bytes = since[applied_files - 1].end - first.start;
        Since { bytes, applied_bytes, applied_files, to_gain_bytes }
    }
}

/// Up to which index to purge the log, so that no more than so many bytes and files are left of what a snapshot covers.
fn purge_to(files: &[LogFile], snapshot: LogId, keep_bytes: u64, keep_files: usize) -> Option<u64> {
    // The file that holds the end of the snapshot counts as a whole: only whole files are deleted.
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
    // Its last entries may have been replaced: those of a later term begin at a lower index.
    let from_there_on = files.iter().filter_map(|file| file.last).filter(|log_id| *log_id >= last);
    from_there_on.map(|log_id| log_id.index).chain([snapshot.index]).min()
}

/// Looks at the disk and the log again and again, and does what follows.
pub async fn run(app: web::Data<ExampleApp>, config: Config) {
    let mut bounds = Bounds::of(&config);
    let mut interval = tokio::time::interval(COMPACTION_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut looked: Option<(Instant, u64)> = None;
    let mut said = (DiskSpace::Enough, None);
    let mut said_files = (FilesRoom::Enough, None);
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
        say_files(&plan, &mut said_files);
        app.set_log_is_full(plan.files_room == FilesRoom::None);
        // It becomes less, and not more again.
        bounds.files_limit = bounds.files_limit.min(files_limit(plan.files, bounds.files_max, bounds.open_files_max));
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
        let reached = Reached::of(app);
        let looked = tokio::task::spawn_blocking(move || {
            let look = || {
                let (found, failure) = OnDisk::look(&store, last_known_bytes)?;
                let plan = Plan::new(&bounds, &found, reached);
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
    if !is_news(said, found) {
        return;
    }
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

/// Logs whether the log has room for more files, in the same way.
fn say_files(plan: &Plan, said: &mut (FilesRoom, Option<Instant>)) {
    if !is_news(said, plan.files_room) {
        return;
    }
    let files = plan.files;
    match plan.files_room {
        FilesRoom::Enough => tracing::info!("the log has {files} files, few enough: entries are taken again"),
        FilesRoom::None => tracing::warn!(
            "the log has {files} files, as many as it may have: this node takes no entries until a snapshot is written"
        ),
        FilesRoom::NoneToDelete => tracing::warn!(
            "the log has {files} files, more than it should have, and none can be deleted until their entries are \
             committed and applied"
        ),
    }
}

/// Notes what was found. Returns whether it is to be logged: it has changed, and the last change is a while ago.
fn is_news<T: Copy + PartialEq>(said: &mut (T, Option<Instant>), found: T) -> bool {
    let is_news = said.0 != found && said.1.is_none_or(|at| at.elapsed() >= DISK_REPORT_INTERVAL);
    if is_news {
        *said = (found, Some(Instant::now()));
    }
    is_news
}

/// What was asked of Raft.
#[derive(Debug, Default)]
struct Asked {
    purge_to: Option<u64>,
    /// Since when a purge is put off, and up to where the log was purged then.
    put_off: Option<(Instant, Option<u64>)>,
    /// When a snapshot was asked for, and up to where the newest reached then.
    snapshot: Option<(Instant, Option<LogId>)>,
}

impl Asked {
    async fn act(&mut self, app: &ExampleApp, plan: &Plan) -> Result<(), ()> {
        let (purged, leads) = {
            let metrics = app.raft.metrics();
            let metrics = metrics.borrow_watched();
            (metrics.purged.map(|log_id| log_id.index), metrics.state.is_leader())
        };
        if let Some(purge_to) = self.purge_to_ask_for(plan.purge_to, purged, leads) {
            app.raft.trigger().purge_log(purge_to).await.map_err(drop)?;
            self.purge_to = Some(purge_to);
        }
        app.store.log.withhold_before(self.withhold_before(plan.purge_to, purged, leads, Instant::now()));
        let reached = Reached::of(app);
        if self.wants_snapshot(plan, reached, Instant::now()) {
            // Does nothing while one is being written.
            app.raft.trigger().snapshot().await.map_err(drop)?;
            self.snapshot = Some((Instant::now(), reached.snapshot));
        }
        Ok(())
    }

    /// Up to which index to ask Raft to purge, if there is anything to ask for.
    ///
    /// A leader puts a purge off while a follower is being sent those entries. If it loses the leadership meanwhile, it
    /// does nothing until it is asked for more than before; then it does it at once.
    fn purge_to_ask_for(&self, wanted: Option<u64>, purged: Option<u64>, leads: bool) -> Option<u64> {
        let wanted = wanted.filter(|wanted| Some(*wanted) > purged)?;
        match self.purge_to {
            Some(asked) if asked < wanted => Some(wanted),
            None => Some(wanted),
            Some(_) if leads => None,
            // Raft goes no further than its snapshot.
            Some(asked) => Some(asked + 1),
        }
    }

    /// Before which index a leader sends no entries any more, 0 if it sends all.
    ///
    /// A follower that is slower than writes come keeps those entries from being purged for as long as it is sent them. It
    /// is so far behind that a snapshot is less, or there is no room for the log.
    fn withhold_before(&mut self, wanted: Option<u64>, purged: Option<u64>, leads: bool, now: Instant) -> u64 {
        let Some(wanted) = wanted.filter(|wanted| leads && Some(*wanted) > purged) else {
            self.put_off = None;
            return 0;
        };
        match self.put_off {
            Some((since, before)) if before == purged => {
                if now.duration_since(since) < PURGE_WAIT_MAX {
                    0
                } else {
                    wanted + 1
                }
            }
            _ => {
                self.put_off = Some((now, purged));
                0
            }
        }
    }

    fn wants_snapshot(&self, plan: &Plan, reached: Reached, now: Instant) -> bool {
        // There is another since the plan was made.
        if plan.reached.snapshot != reached.snapshot {
            return false;
        }
        let Some(after) = plan.snapshot_after else { return false };
        self.snapshot.is_none_or(|(at, before)| {
            // It is being written, or was given up for want of space and would only be given up again.
            let after = if before == reached.snapshot { after.max(plan.retry_after) } else { after };
            now.duration_since(at) >= after
        })
    }
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

    /// All of these files is applied.
    fn reached(files: &[LogFile], snapshot: Option<u64>) -> Reached {
        let applied = files.last().and_then(|file| file.last);
        Reached { snapshot: snapshot.map(|index| log_id(1, index)), applied }
    }

    /// A log of files that have 10 entries and this many MiB each.
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
            assert_eq!(found.snapshot_after, expected.then_some(Duration::ZERO), "{what}");
            assert_eq!(found.files_room, FilesRoom::Enough, "{what}");
        }
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
        let plan = |bounds, snapshot| Plan::new(bounds, &found, reached(&found.files, snapshot));
        assert_eq!(plan(&by_entries, Some(39)).purge_to, Some(19));
        assert_eq!(plan(&by_entries, Some(19)).purge_to, None);
        let none_kept = Bounds { keep_bytes: 0, ..BOUNDS };
        assert_eq!(plan(&none_kept, Some(35)).purge_to, Some(35));
    }

    /// What is kept reaches back to the former snapshot, also if that is more than the settings say: that snapshot may be
    /// on its way to a follower. It does not if the settings keep less than there is between two snapshots, if space is
    /// short, or if the log has too many files.
    #[test]
    fn the_former_snapshot_stays_useful() {
        let files = log_of(60, 16);
        // Thirty files were appended between the two snapshots, six more than are kept: the state has 480 MiB.
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

    /// A snapshot is only asked for if it would hold more than the newest, and counts only what is applied: an end of the
    /// log that is not committed brings no snapshots, however long it is.
    #[test]
    fn what_is_not_applied_brings_no_snapshot() {
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

    /// Entries of a later term may have replaced those at the end of a file, so its last index may be higher than those of
    /// the files after it. Such a file counts as covered once the later entries are, and can be deleted then.
    #[test]
    fn entries_that_were_replaced() {
        let mut files = log_of(4, 16);
        // The first file ended with 9 in term 1; 5 was the first of term 2.
        for (number, file) in files.iter_mut().enumerate().skip(1) {
            file.last = Some(log_id(2, 6 + number as u64));
        }
        let snapshot = log_id(2, 7);
        let reached = Reached { snapshot: Some(snapshot), applied: Some(snapshot) };
        assert_eq!(Since::of(&files, reached).bytes, 2 * 16 * MIB, "of the third file on");
        assert_eq!(purge_to(&files, snapshot, 16 * MIB, 9), Some(7), "9 is of no entry that there is");
        let before = Reached { snapshot: None, applied: Some(log_id(2, 6)) };
        assert_eq!(Since::of(&files, before).to_gain_bytes, 16 * MIB, "all that is left of the first file is applied");
    }

    /// A log that has as many files as it may have takes no entries as long as files can be deleted, now or after a
    /// snapshot. If none can, it takes them: otherwise it would never come to that.
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

    /// A log with more files than it may have, as a former version leaves it, may grow a little.
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

    /// A snapshot is asked for once, and again only after a while: if it was given up, or if it gains little.
    #[test]
    fn snapshots_are_asked_for_now_and_then() {
        let files = log_of(5, 16);
        let found = |free_bytes| OnDisk { free_bytes, snapshots: SnapshotSizes::default(), files: files.clone() };
        let now = Instant::now();
        let reached = reached(&files, Some(9));
        let urgent = Plan::new(&BOUNDS, &found(200 * MIB), reached);
        let pause = SNAPSHOT_PAUSE_LEAST;
        assert_eq!((urgent.snapshot_after, urgent.retry_after), (Some(Duration::ZERO), SNAPSHOT_RETRY));
        let mut asked = Asked::default();
        assert!(asked.wants_snapshot(&urgent, reached, now));
        asked.snapshot = Some((now, reached.snapshot));
        assert!(!asked.wants_snapshot(&urgent, reached, now + SNAPSHOT_RETRY / 2), "it is being written");
        assert!(asked.wants_snapshot(&urgent, reached, now + SNAPSHOT_RETRY), "it was given up");

        let after = Reached { snapshot: Some(log_id(1, 45)), ..reached };
        assert!(!asked.wants_snapshot(&urgent, after, now + SNAPSHOT_RETRY), "there is another since");
        let at_the_edge = Plan::new(&BOUNDS, &found(20 * MIB), after);
        assert_eq!(at_the_edge.snapshot_after, Some(pause));
        assert!(!asked.wants_snapshot(&at_the_edge, after, now + pause / 2));
        assert!(asked.wants_snapshot(&at_the_edge, after, now + pause));
        let next = Plan { snapshot_after: Some(Duration::ZERO), ..at_the_edge };
        assert!(asked.wants_snapshot(&next, after, now), "it gains much");
    }

    /// Entries whose purge was put off for long are sent no more, until they are purged, or this node no longer leads.
    #[test]
    fn a_purge_is_not_put_off_for_good() {
        let now = Instant::now();
        let later = now + PURGE_WAIT_MAX;
        let mut asked = Asked::default();
        assert_eq!(asked.withhold_before(Some(9), Some(5), true, now), 0);
        assert_eq!(asked.withhold_before(Some(9), Some(5), true, now + PURGE_WAIT_MAX / 2), 0);
        assert_eq!(asked.withhold_before(Some(12), Some(5), true, later), 13);
        assert_eq!(asked.withhold_before(Some(20), Some(12), true, later), 0, "it was purged a little");
        assert_eq!(asked.withhold_before(Some(20), Some(12), true, later + PURGE_WAIT_MAX), 21);
        assert_eq!(asked.withhold_before(Some(20), Some(12), false, later + PURGE_WAIT_MAX), 0);
        assert_eq!(asked.withhold_before(Some(20), Some(12), true, later + PURGE_WAIT_MAX), 0, "it leads again");
        assert_eq!(asked.withhold_before(Some(20), Some(20), true, later + 3 * PURGE_WAIT_MAX), 0);
    }

    /// A purge is asked for once; again only if a leader put it off and leads no more.
    #[test]
    fn purges_are_asked_for_once() {
        let asked = |purge_to| Asked { purge_to, ..Asked::default() };
        for (before, wanted, purged, leads, expected) in [
            (None, None, Some(5), true, None),
            (None, Some(9), None, true, Some(9)),
            (None, Some(9), Some(5), false, Some(9)),
            (None, Some(9), Some(9), true, None),
            (Some(7), Some(9), Some(5), true, Some(9)),
            (Some(9), Some(9), Some(5), true, None),
            (Some(9), Some(9), Some(5), false, Some(10)),
            (Some(10), Some(9), Some(5), false, Some(11)),
            (Some(10), Some(9), Some(10), false, None),
        ] {
            let found = asked(before).purge_to_ask_for(wanted, purged, leads);
            assert_eq!(found, expected, "{before:?} {wanted:?} {purged:?} {leads}");
        }
    }

    /// With little space, nothing is kept for followers, and the log is shortened as long as that gains anything. The space
    /// that a snapshot needs is not there for writes.
    #[test]
    fn little_space() {
        let tight = plan(310, 65, log_of(5, 16), Some(9));
        assert_eq!(tight.purge_to, Some(9));
        let at_once = Some(Duration::ZERO);
        assert_eq!(tight.snapshot_after, at_once, "48 MiB are to be gained");
        assert_eq!(tight.disk_limits.low, (128 + 64) * MIB);
        assert_eq!(tight.disk_limits.exhausted, SNAPSHOT_LEAVES_BYTES + 64 * MIB);
        assert_eq!(plan(300, 65, log_of(4, 16), Some(9)).snapshot_after, None, "32 MiB are less than it is worth");
        // Not again and again: it takes long, and gains little.
        let later = Some(SNAPSHOT_PAUSE_LEAST + Duration::from_millis(65 * MIB / SNAPSHOT_PAUSE_BYTES_A_MS));
        assert_eq!(plan(150, 65, log_of(4, 16), Some(9)).snapshot_after, later, "puts are rejected");
        assert_eq!(plan(100, 65, log_of(2, 16), Some(18)).snapshot_after, later, "something may have been deleted");
        assert_eq!(plan(30, 65, log_of(2, 16), Some(9)).snapshot_after, later, "no entry is taken");
        assert_eq!(plan(30, 65, log_of(2, 16), Some(19)).snapshot_after, None, "nothing was applied since");
        assert_eq!(plan(1000, 65, log_of(2, 16), Some(18)).snapshot_after, None, "there is enough space");
        // The longest append must fit while none is wanted.
        let small_reserve = Bounds { disk_free_bytes_min: 0, ..BOUNDS };
        let found = |free_bytes| OnDisk { free_bytes, snapshots: SnapshotSizes::default(), files: log_of(1, 1) };
        let fits = SNAPSHOT_LEAVES_BYTES + MIB + APPEND_RPC_BYTES_MAX as u64;
        let plan_at = |free_bytes| Plan::new(&small_reserve, &found(free_bytes), reached(&log_of(1, 1), None));
        assert_eq!(plan_at(fits - 1).snapshot_after, Some(SNAPSHOT_PAUSE_LEAST));
        assert_eq!(plan_at(fits).snapshot_after, None);
        let full = OnDisk { free_bytes: 0, snapshots: SnapshotSizes::default(), files: log_of(3, 16) };
        assert_eq!(Plan::new(&BOUNDS, &full, reached(&full.files, Some(9))).purge_to, None);

        let deleted = plan(140, 65, log_of(2, 16), Some(18));
        assert!(!deleted.delete_older, "it is room for the next");
        let snapshots = SnapshotSizes { newest_bytes: 10 * MIB, older_bytes: 65 * MIB, ..SnapshotSizes::default() };
        let smaller = OnDisk { free_bytes: 100 * MIB, snapshots, files: log_of(1, 16) };
        assert!(Plan::new(&BOUNDS, &smaller, reached(&smaller.files, Some(5))).delete_older);
    }

    /// The room that is kept for the next snapshot becomes less as that is written: it takes the same space.
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

    /// The log has more files only where clients cannot use them.
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
