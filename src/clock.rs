//! Log time: the time with which leaders stamp entries, and in which TTLs are counted.
//!
//! Log time advances while any node runs, at the rate of that node's monotonic clock (the one that also counts while
//! the machine is suspended). A node learns it from:
//!
//! 1. the entries that it applies: log time is never behind the state's clock;
//! 2. the leader, which sends its log time with every append and heartbeat;
//! 3. the voters, which send theirs with the vote, so that a candidate that has just started learns it from any voter
//!    that was running;
//! 4. the wall clocks, but only if it is the leader, and neither it nor any of its voters has known log time since they
//!    started: then no majority was running. Each of them adds the time that has passed on its wall clock since it last
//!    recorded both clocks ([`Reading`], the file `CLOCK`), or nothing if that is negative. The least of these counts, so
//!    that one wrong clock cannot expire keys early.
//!
//! Before 2, 3 or 4, a node knows only a lower bound, which it does not send to other nodes. Every value that arrives
//! is a lower bound as well, since it is already old. So a higher value is always better.
//!
//! Caveat: while a hypervisor pauses a virtual machine, its monotonic clock may stop too.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::config::{CLOCK_RECORD_INTERVAL_MAX, CLOCK_STEP_MIN, LEADER_TIME_WINDOW, LOG_TIME_MS_MAX};
use crate::seeded_bug::{self, SeededBug};

/// The system's wall clock, in milliseconds since 1970; 0 if it is before that.
pub fn wall_ms() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// Log time and wall clock of a node at one moment, in milliseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    pub log_ms: u64,
    pub wall_ms: u64,
}

impl Reading {
    /// Log time according to a later wall clock. A wall clock that went backwards counts as one that stood still.
    fn log_ms_at(self, wall_ms: u64) -> u64 {
        self.log_ms.saturating_add(wall_ms.saturating_sub(self.wall_ms))
    }

    /// Whether this must replace `recorded`, because the wall clock was set since or because `recorded` is old.
    pub fn is_due_after(self, recorded: Reading) -> bool {
        let ahead = |reading: Reading| i128::from(reading.wall_ms) - i128::from(reading.log_ms);
        let step_ms = ahead(self).abs_diff(ahead(recorded));
        let age_ms = self.log_ms.abs_diff(recorded.log_ms);
        step_ms >= CLOCK_STEP_MIN.as_millis() || age_ms >= millis(CLOCK_RECORD_INTERVAL_MAX)
    }
}

/// A node's clock of log time.
///
/// All times are in milliseconds: `elapsed_ms` since the node started, by its monotonic clock; `log_ms` since 1970, in
/// log time.
#[derive(Debug)]
pub struct LogClock {
    started_ms: u64,
    last_reading: Reading,
    /// Log time minus elapsed time.
    offset_ms: AtomicU64,
    is_known: AtomicBool,
    /// The least offset according to the wall clocks of voters that did not know log time.
    voters_offset_ms: AtomicU64,
    /// Locked while `offset_ms` changes.
    samples: Mutex<Samples>,
}

/// The values that log time is derived from.
#[derive(Debug, Default)]
struct Samples {
    /// The state's clock.
    state_ms: u64,
    /// When the current window began, in elapsed time.
    window_began_ms: u64,
    /// The highest offset that the leader sent in the current window.
    highest_ms: u64,
    /// The highest offset in the previous window.
    highest_before_ms: u64,
}

impl LogClock {
    /// The clock of a node that starts, with the last reading that it recorded. Without one, log time is the wall
    /// clock, as in older versions.
    pub fn new(last_reading: Option<Reading>) -> Self {
        let last_reading = last_reading.unwrap_or_default();
        LogClock {
            started_ms: boot_ms(),
            last_reading,
            offset_ms: AtomicU64::new(last_reading.log_ms),
            is_known: AtomicBool::new(false),
            voters_offset_ms: AtomicU64::new(u64::MAX),
            samples: Mutex::default(),
        }
    }

    /// The time since the node started.
    pub fn elapsed_ms(&self) -> u64 {
        boot_ms().saturating_sub(self.started_ms)
    }

    /// Log time as far as this node knows it; never behind the clock of its state.
    pub fn now_ms(&self) -> u64 {
        self.now_at(self.elapsed_ms())
    }

    /// Log time on the leader. If no voter knew it, the wall clocks decide.
    pub fn leader_now_ms(&self) -> u64 {
        if seeded_bug::is_on(SeededBug::ExpiryFollowsWallClock) {
            return wall_ms();
        }
        if !self.is_known.load(Ordering::Acquire) {
            self.count_wall_clock(self.elapsed_ms(), wall_ms());
        }
        self.now_ms()
    }

    /// Log time for other nodes; `None` if this node knows only a lower bound.
    pub fn known_ms(&self) -> Option<u64> {
        self.is_known.load(Ordering::Acquire).then(|| self.now_ms())
    }

    /// Log time according to this node's wall clock, for a candidate, if this node does not know log time.
    pub fn by_wall_ms(&self) -> u64 {
        self.now_ms().max(self.last_reading.log_ms_at(wall_ms())).min(LOG_TIME_MS_MAX)
    }

    /// Both clocks, to be recorded for the next start; `None` if this node knows only a lower bound.
    pub fn reading(&self) -> Option<Reading> {
        self.known_ms().map(|log_ms| Reading { log_ms, wall_ms: wall_ms() })
    }

    /// Notes the clock of the state after entries were applied or a snapshot was installed.
    pub fn applied(&self, state_ms: u64) {
        self.applied_at(state_ms, self.elapsed_ms());
    }

    /// Notes the log time that a voter sent.
    pub fn told_by_voter(&self, log_ms: u64) {
        self.raise_at(log_ms, self.elapsed_ms());
        self.is_known.store(true, Ordering::Release);
    }

    /// Notes the log time that a voter derived from its wall clock.
    pub fn told_by_wall(&self, log_ms: u64) {
        self.told_by_wall_at(log_ms, self.elapsed_ms());
    }

    /// Notes the log time that the leader sent, which arrived at `elapsed_ms`.
    pub fn told_by_leader(&self, log_ms: u64, elapsed_ms: u64) {
        self.follow_at(log_ms, elapsed_ms);
        self.is_known.store(true, Ordering::Release);
    }

    fn now_at(&self, elapsed_ms: u64) -> u64 {
        self.offset_ms.load(Ordering::Acquire).saturating_add(elapsed_ms)
    }

    fn applied_at(&self, state_ms: u64, elapsed_ms: u64) {
        let mut samples = self.lock_samples();
        samples.state_ms = state_ms;
        self.offset_ms.fetch_max(state_ms.saturating_sub(elapsed_ms), Ordering::AcqRel);
    }

    fn raise_at(&self, log_ms: u64, elapsed_ms: u64) {
        let _samples = self.lock_samples();
        self.offset_ms.fetch_max(log_ms.saturating_sub(elapsed_ms), Ordering::AcqRel);
    }

    /// Follows the leader's clock: the highest of the last values arrived with the least delay. Older ones are dropped,
    /// so that a node whose clock runs fast does not drift ahead of the leader.
    fn follow_at(&self, log_ms: u64, elapsed_ms: u64) {
        let offset_ms = log_ms.saturating_sub(elapsed_ms);
        let mut samples = self.lock_samples();
        let window_ms = millis(LEADER_TIME_WINDOW);
        let age_ms = elapsed_ms.saturating_sub(samples.window_began_ms);
        if age_ms >= window_ms {
            samples.highest_before_ms = samples.highest_ms;
            (samples.highest_ms, samples.window_began_ms) = (offset_ms, elapsed_ms);
        } else {
            samples.highest_ms = samples.highest_ms.max(offset_ms);
        }
        let highest_ms = samples.highest_ms.max(samples.highest_before_ms);
        let state_offset_ms = samples.state_ms.saturating_sub(elapsed_ms);
        self.offset_ms.store(highest_ms.max(state_offset_ms), Ordering::Release);
    }

    fn told_by_wall_at(&self, log_ms: u64, elapsed_ms: u64) {
        self.voters_offset_ms.fetch_min(log_ms.saturating_sub(elapsed_ms), Ordering::AcqRel);
    }

    fn count_wall_clock(&self, elapsed_ms: u64, wall_ms: u64) {
        let before_ms = self.now_at(elapsed_ms);
        let voters_ms = self.voters_offset_ms.load(Ordering::Acquire).saturating_add(elapsed_ms);
        let log_ms = self.last_reading.log_ms_at(wall_ms).min(voters_ms).min(LOG_TIME_MS_MAX);
        self.raise_at(log_ms, elapsed_ms);
        if !self.is_known.swap(true, Ordering::AcqRel) && self.last_reading != Reading::default() {
            let passed = Duration::from_millis(log_ms.saturating_sub(before_ms));
            tracing::info!(
                "all voters were stopped: according to the wall clocks, {passed:?} of every TTL passed meanwhile"
            );
        }
    }

    fn lock_samples(&self) -> MutexGuard<'_, Samples> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The time since the machine booted, including suspends. It is never compared between nodes.
fn boot_ms() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    // Neither field is negative.
    (time.tv_sec as u64) * 1000 + (time.tv_nsec as u64) / 1_000_000
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;
    /// Any moment.
    const NOON_MS: u64 = 1_700_000_000_000;

    fn clock(log_ms: u64, wall_ms: u64) -> LogClock {
        LogClock::new(Some(Reading { log_ms, wall_ms }))
    }

    /// Makes a clock that of a leader without a voter that knows log time.
    fn lead(clock: &LogClock, elapsed_ms: u64, wall_ms: u64) -> u64 {
        clock.count_wall_clock(elapsed_ms, wall_ms);
        clock.now_at(elapsed_ms)
    }

    fn hear(clock: &LogClock, log_ms: u64, elapsed_ms: u64) {
        clock.follow_at(log_ms, elapsed_ms);
        clock.is_known.store(true, Ordering::Release);
    }

    /// On a leader, log time advances with the monotonic clock, wherever it begins.
    ///
    /// Method: try states whose clocks are behind and ahead of the wall clock, or unset.
    #[test]
    fn monotonic_while_it_leads() {
        for (state_ms, wall_ms, expected_ms) in [
            (0, NOON_MS, NOON_MS),
            (NOON_MS - HOUR_MS, NOON_MS, NOON_MS),
            (NOON_MS + HOUR_MS, NOON_MS, NOON_MS + HOUR_MS),
            (NOON_MS, 0, NOON_MS),
        ] {
            let clock = LogClock::new(None);
            clock.applied_at(state_ms, 0);
            assert_eq!(lead(&clock, 0, wall_ms), expected_ms);
            for elapsed_ms in [1, 2000, HOUR_MS, 1000 * HOUR_MS] {
                assert_eq!(clock.now_at(elapsed_ms), expected_ms + elapsed_ms);
            }
        }
    }

    /// The time during which no node ran counts once, according to the wall clock, and never backwards.
    ///
    /// Method: a node is down for an hour, with a wall clock that is right, ahead, behind, or always off by a day. It
    /// becomes leader, and restarts at once, with and without having recorded its clock.
    #[test]
    fn down_time_counts_once() {
        const DAY_MS: u64 = 24 * HOUR_MS;
        for (wall_before_ms, wall_after_ms, passed_ms) in [
            (NOON_MS, NOON_MS + HOUR_MS, HOUR_MS),
            (NOON_MS, NOON_MS + 3 * HOUR_MS, 3 * HOUR_MS),
            (NOON_MS, NOON_MS - 3 * HOUR_MS, 0),
            (NOON_MS, 0, 0),
            (NOON_MS + DAY_MS, NOON_MS + DAY_MS + HOUR_MS, HOUR_MS),
            (NOON_MS - DAY_MS, NOON_MS - DAY_MS + HOUR_MS, HOUR_MS),
        ] {
            let first = clock(NOON_MS, wall_before_ms);
            first.applied_at(NOON_MS - 1000, 0);
            assert_eq!(lead(&first, 0, wall_after_ms), NOON_MS + passed_ms);
            for last in [clock(NOON_MS + passed_ms, wall_after_ms), clock(NOON_MS, wall_before_ms)] {
                last.applied_at(NOON_MS + passed_ms, 0);
                assert_eq!(lead(&last, 0, wall_after_ms), NOON_MS + passed_ms);
            }
        }
    }

    /// A single wall clock that is ahead expires nothing early: the least of the voters' clocks counts.
    ///
    /// Method: combine a leader's and a voter's wall clock, each right, ahead or behind, after an hour. The voter also
    /// voted in an earlier election.
    #[test]
    fn least_wall_clock_counts() {
        for (own_hours, voter_hours, passed_hours) in [(1, 1, 1), (9, 1, 1), (1, 9, 1), (0, 1, 0), (1, 0, 0), (9, 9, 9)]
        {
            let leader = clock(NOON_MS, NOON_MS);
            for elapsed_ms in [0, 60_000] {
                leader.told_by_wall_at(NOON_MS + voter_hours * HOUR_MS + elapsed_ms, elapsed_ms);
            }
            let now_ms = lead(&leader, 60_000, NOON_MS + own_hours * HOUR_MS + 60_000);
            assert_eq!(now_ms, NOON_MS + passed_hours * HOUR_MS + 60_000, "{own_hours} {voter_hours}");
        }
    }

    /// A node that has learned log time does not use its wall clock. A node with only a lower bound does not send it.
    #[test]
    fn wall_clock_is_the_last_resort() {
        for told_by_leader in [false, true] {
            let clock = clock(NOON_MS, 0);
            assert_eq!((clock.known_ms(), clock.reading()), (None, None));
            let now_ms = NOON_MS + HOUR_MS;
            if told_by_leader {
                clock.told_by_leader(now_ms, clock.elapsed_ms());
            } else {
                clock.told_by_voter(now_ms);
            }
            // According to this machine's wall clock, decades have passed.
            let leader_ms = clock.leader_now_ms();
            assert!((now_ms..now_ms + HOUR_MS).contains(&leader_ms), "{leader_ms}");
            assert!(clock.known_ms() >= Some(leader_ms) && clock.reading().is_some());
        }
    }

    /// A follower that becomes leader counts the time without entries once.
    ///
    /// Method: send heartbeats for an hour, then nothing for a minute.
    #[test]
    fn idle_hour_before_a_failover() {
        let follower = clock(0, 0);
        follower.applied_at(NOON_MS, 5);
        for elapsed_ms in (0..=HOUR_MS).step_by(100) {
            hear(&follower, NOON_MS + elapsed_ms, elapsed_ms + 3);
        }
        let elapsed_ms = HOUR_MS + 60_000;
        assert_eq!(follower.now_at(elapsed_ms), NOON_MS + elapsed_ms - 3);
    }

    /// A follower whose monotonic clock is fast or slow stays with the leader's, although appends are delayed.
    ///
    /// Method: send heartbeats for a day, each delayed by up to a second, to clocks that are off by 0.1 %.
    #[test]
    fn drift_does_not_add_up() {
        for (numerator, denominator) in [(1001, 1000), (999, 1000)] {
            let follower = clock(0, 0);
            for sent_ms in (0..24 * HOUR_MS).step_by(250) {
                let delay_ms = [900, 20, 300, 1000, 70][(sent_ms / 250 % 5) as usize];
                let elapsed_ms = (sent_ms + delay_ms) * numerator / denominator;
                hear(&follower, NOON_MS + sent_ms, elapsed_ms);
                if sent_ms > 20_000 {
                    let error_ms = follower.now_at(elapsed_ms).abs_diff(NOON_MS + sent_ms + delay_ms);
                    assert!(error_ms <= 20 + 21, "off by {error_ms} ms after {sent_ms} ms");
                }
            }
        }
    }

    /// Heartbeats that arrive late, as after a pause, do not set the clock back, and nothing sets it behind the clock
    /// of the state.
    #[test]
    fn late_heartbeats() {
        let follower = clock(0, 0);
        hear(&follower, NOON_MS, 1000);
        hear(&follower, NOON_MS + 100, 61_000);
        assert_eq!(follower.now_at(61_000), NOON_MS + 60_000);
        follower.applied_at(NOON_MS + 60_500, 61_000);
        hear(&follower, NOON_MS + 200, 91_000);
        hear(&follower, NOON_MS + 300, 121_000);
        assert!(follower.now_at(121_000) >= NOON_MS + 60_500);
    }

    /// A reading is recorded when the wall clock was set and every minute, but not more often.
    #[test]
    fn readings_are_renewed() {
        let recorded = Reading { log_ms: NOON_MS, wall_ms: NOON_MS };
        let due = |log_ms, wall_ms| Reading { log_ms, wall_ms }.is_due_after(recorded);
        assert!(!due(NOON_MS, NOON_MS));
        assert!(!due(NOON_MS + 30_000, NOON_MS + 30_010));
        assert!(due(NOON_MS + 60_000, NOON_MS + 60_000));
        assert!(due(NOON_MS + 1000, NOON_MS + 3000));
        assert!(due(NOON_MS + 1000, NOON_MS - HOUR_MS));
        assert!(due(NOON_MS, 0) && due(NOON_MS, u64::MAX) && due(u64::MAX, 0));
    }

    /// Extreme numbers do not overflow.
    #[test]
    fn extreme_numbers() {
        let clock = clock(u64::MAX, 0);
        clock.applied_at(u64::MAX, u64::MAX);
        hear(&clock, u64::MAX, 1);
        hear(&clock, 0, u64::MAX);
        assert_eq!(lead(&clock, u64::MAX, u64::MAX), u64::MAX);
    }
}
