//! What this task requested from Raft, so that it does not request it again and again.

use std::time::Instant;

use openraft::async_runtime::WatchReceiver;

use super::plan::{Plan, Reached};
use crate::app::ExampleApp;
use crate::config::PURGE_WAIT_MAX;
use crate::types::LogId;

/// The last requests.
#[derive(Debug, Default)]
pub struct Requested {
    purge_to: Option<u64>,
    /// Since when Raft has postponed a purge, and the last index that was purged before it.
    postponed: Option<(Instant, Option<u64>)>,
    /// When a snapshot was requested, and the last entry of the newest snapshot at that time.
    snapshot: Option<(Instant, Option<LogId>)>,
}

impl Requested {
    /// Requests what a plan says and was not requested before. Fails if Raft has stopped.
    pub async fn act(&mut self, app: &ExampleApp, plan: &Plan) -> Result<(), ()> {
        let (purged, leads) = {
            let metrics = app.raft.metrics();
            let metrics = metrics.borrow_watched();
            (metrics.purged.map(|log_id| log_id.index), metrics.state.is_leader())
        };
        if let Some(purge_to) = self.purge_request(plan.purge_to, purged, leads) {
            app.raft.trigger().purge_log(purge_to).await.map_err(drop)?;
            self.purge_to = Some(purge_to);
        }
        app.store.log.withhold_before(self.withhold_before(plan.purge_to, purged, leads, Instant::now()));
        let reached = Reached::of(app);
        if self.wants_snapshot(plan, reached, Instant::now()) {
            // Has no effect while a snapshot is being written.
            app.raft.trigger().snapshot().await.map_err(drop)?;
            self.snapshot = Some((Instant::now(), reached.snapshot));
        }
        Ok(())
    }

    /// Index up to which to request a purge; `None` if there is nothing to request.
    ///
    /// A leader postpones a purge while a follower is receiving those entries. If it loses the leadership meanwhile, it
    /// forgets the purge until a higher index is requested, and then purges at once.
    fn purge_request(&self, wanted: Option<u64>, purged: Option<u64>, leads: bool) -> Option<u64> {
        let wanted = wanted.filter(|wanted| Some(*wanted) > purged)?;
        match self.purge_to {
            Some(requested) if requested < wanted => Some(wanted),
            None => Some(wanted),
            Some(_) if leads => None,
            // Raft does not purge beyond its snapshot.
            Some(requested) => Some(requested + 1),
        }
    }

    /// Index before which a leader sends no entries; 0 if it sends all.
    ///
    /// A follower that catches up more slowly than the log grows would prevent the purge for as long as it receives
    /// those entries. By then a snapshot is shorter for it, or there is no room for the log.
    fn withhold_before(&mut self, wanted: Option<u64>, purged: Option<u64>, leads: bool, now: Instant) -> u64 {
        let Some(wanted) = wanted.filter(|wanted| leads && Some(*wanted) > purged) else {
            self.postponed = None;
            return 0;
        };
        match self.postponed {
            Some((since, before)) if before == purged => {
                if now.duration_since(since) < PURGE_WAIT_MAX {
                    0
                } else {
                    wanted + 1
                }
            }
            _ => {
                self.postponed = Some((now, purged));
                0
            }
        }
    }

    fn wants_snapshot(&self, plan: &Plan, reached: Reached, now: Instant) -> bool {
        // There is a newer snapshot than the plan was made for.
        if plan.reached.snapshot != reached.snapshot {
            return false;
        }
        let Some(after) = plan.snapshot_after else { return false };
        self.snapshot.is_none_or(|(at, before)| {
            // It is being written, or it was abandoned for lack of space and would be again.
            let after = if before == reached.snapshot { after.max(plan.retry_after) } else { after };
            now.duration_since(at) >= after
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use openraft::vote::RaftLeaderId;

    use super::*;
    use crate::compaction::plan::FilesRoom;
    use crate::config::{SNAPSHOT_PAUSE_LEAST, SNAPSHOT_RETRY};
    use crate::disk::DiskLimits;

    /// A snapshot is requested once, and again only after a while: if it was abandoned, or if it frees little.
    #[test]
    fn snapshots_are_requested_now_and_then() {
        let log_id = |index| Some(LogId::new(RaftLeaderId::new(1, 1), index));
        let now = Instant::now();
        let reached = Reached { snapshot: log_id(9), applied: log_id(49) };
        let urgent = Plan {
            reached,
            disk_limits: DiskLimits::default(),
            purge_to: None,
            snapshot_after: Some(Duration::ZERO),
            retry_after: SNAPSHOT_RETRY,
            delete_older: false,
            files: 5,
            files_room: FilesRoom::Enough,
        };
        let mut requested = Requested::default();
        assert!(requested.wants_snapshot(&urgent, reached, now));
        requested.snapshot = Some((now, reached.snapshot));
        assert!(!requested.wants_snapshot(&urgent, reached, now + SNAPSHOT_RETRY / 2), "it is being written");
        assert!(requested.wants_snapshot(&urgent, reached, now + SNAPSHOT_RETRY), "it was abandoned");

        let after = Reached { snapshot: log_id(45), ..reached };
        assert!(!requested.wants_snapshot(&urgent, after, now + SNAPSHOT_RETRY), "there is a newer one");
        let pause = SNAPSHOT_PAUSE_LEAST;
        let at_the_edge = Plan { reached: after, snapshot_after: Some(pause), ..urgent };
        assert!(!requested.wants_snapshot(&at_the_edge, after, now + pause / 2));
        assert!(requested.wants_snapshot(&at_the_edge, after, now + pause));
        let next = Plan { snapshot_after: Some(Duration::ZERO), ..at_the_edge };
        assert!(requested.wants_snapshot(&next, after, now), "it frees much");
    }

    /// Entries whose purge was postponed for too long are withheld until they are purged or this node no longer leads.
    #[test]
    fn a_purge_is_not_postponed_forever() {
        let now = Instant::now();
        let later = now + PURGE_WAIT_MAX;
        let mut requested = Requested::default();
        assert_eq!(requested.withhold_before(Some(9), Some(5), true, now), 0);
        assert_eq!(requested.withhold_before(Some(9), Some(5), true, now + PURGE_WAIT_MAX / 2), 0);
        assert_eq!(requested.withhold_before(Some(12), Some(5), true, later), 13);
        assert_eq!(requested.withhold_before(Some(20), Some(12), true, later), 0, "it was purged a little");
        assert_eq!(requested.withhold_before(Some(20), Some(12), true, later + PURGE_WAIT_MAX), 21);
        assert_eq!(requested.withhold_before(Some(20), Some(12), false, later + PURGE_WAIT_MAX), 0);
        assert_eq!(requested.withhold_before(Some(20), Some(12), true, later + PURGE_WAIT_MAX), 0, "it leads again");
        assert_eq!(requested.withhold_before(Some(20), Some(20), true, later + 3 * PURGE_WAIT_MAX), 0);
    }

    /// A purge is requested once, and again only if a leader postponed it and then lost the leadership.
    #[test]
    fn purges_are_requested_once() {
        let requested = |purge_to| Requested { purge_to, ..Requested::default() };
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
            let found = requested(before).purge_request(wanted, purged, leads);
            assert_eq!(found, expected, "{before:?} {wanted:?} {purged:?} {leads}");
        }
    }
}
