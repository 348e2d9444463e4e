//! Keeps the log short, and the disk from becoming full.
//!
//! openraft takes snapshots and purges by the number of entries, but a disk fills up by bytes. This task examines the
//! log's files several times a second. It requests a snapshot when those since the last one are longer than
//! `--snapshot-bytes`, and purges all but `--snapshot-keep-entries` or `--snapshot-keep-bytes` of those before it,
//! whichever is less. It decides from what is on disk alone, so after a restart it completes what was left undone: a
//! snapshot without the purge that follows it.
//!
//! When the disk has little space, it keeps no log for followers, and takes snapshots sooner. Snapshots may use space
//! that writes may not.
//!
//! [`plan`] decides, [`requests`] remembers what Raft was asked for, [`report`] logs.

mod plan;
mod report;
mod requests;

use std::io;
use std::time::Instant;

use actix_web::web;

use self::plan::{Bounds, FilesRoom, OnDisk, Plan, Reached, files_limit};
use self::report::Reports;
use self::requests::Requested;
use crate::app::ExampleApp;
use crate::config::{COMPACTION_INTERVAL, Config, DISK_CHECK_INTERVAL};

/// Plans and acts at intervals, for as long as the node runs.
pub async fn run(app: web::Data<ExampleApp>, config: Config) {
    let mut bounds = Bounds::of(&config);
    let mut interval = tokio::time::interval(COMPACTION_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut looked: Option<(Instant, u64)> = None;
    let mut reports = Reports::default();
    let mut requested = Requested::default();
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
        reports.failure(app.store.directory(), failure);
        let Some(plan) = plan else { continue };
        reports.space(app.disk.space());
        reports.files(plan.files, plan.files_room);
        app.set_log_is_full(plan.files_room == FilesRoom::None);
        // The limit may decrease, but never increases again.
        bounds.files_limit = bounds.files_limit.min(files_limit(plan.files, bounds.files_max, bounds.open_files_max));
        if requested.act(&app, &plan).await.is_err() {
            // Raft has stopped, which is reported elsewhere.
            std::future::pending::<()>().await;
        }
    }
}

/// Examines the disk, deletes older snapshots if the plan says so, and returns the plan. Also returns why the free
/// space is unknown, if it is.
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
