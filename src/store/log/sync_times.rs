//! How long the log's syncs took lately.
//!
//! A fixed amount of memory, and one short lock per sync: the last minute in slots of ten seconds, each with a count for
//! every quarter of a power of two.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a slot collects durations.
const SLOT: Duration = Duration::from_secs(10);
/// The current slot, and those of the minute before it.
const SLOTS: usize = 7;
/// Buckets per power of two. So a percentile is at most a quarter too high.
const STEPS: usize = 4;
/// Up to 2^27 µs, which is two minutes. A longer duration counts as that.
const BUCKETS: usize = 27 * STEPS;

/// The durations of a log's syncs.
#[derive(Debug)]
pub struct SyncTimes {
    started: Instant,
    times: Mutex<Times>,
}

#[derive(Debug)]
struct Times {
    slots: [Slot; SLOTS],
    /// When the sync began that is under way.
    began: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// The number of slots before it, since the start.
    number: u64,
    counts: [u32; BUCKETS],
    us_max: u64,
}

impl Default for SyncTimes {
    fn default() -> Self {
        let empty = Slot { number: 0, counts: [0; BUCKETS], us_max: 0 };
        SyncTimes { started: Instant::now(), times: Mutex::new(Times { slots: [empty; SLOTS], began: None }) }
    }
}

impl SyncTimes {
    /// Notes that a sync begins.
    pub fn begin(&self) {
        let now = self.started.elapsed();
        self.times.lock().unwrap_or_else(PoisonError::into_inner).began = Some(now);
    }

    /// Notes that the sync ended.
    pub fn end(&self) {
        let now = self.started.elapsed();
        self.times.lock().unwrap_or_else(PoisonError::into_inner).end(now);
    }

    /// The duration that 99 % of the syncs of the last minute did not exceed, in microseconds. A sync that has been
    /// under way for longer counts instead: a disk that hangs completes none. `None` if there was no sync.
    pub fn p99_us(&self) -> Option<u64> {
        let now = self.started.elapsed();
        self.times.lock().unwrap_or_else(PoisonError::into_inner).p99_us(now)
    }
}

impl Times {
    fn end(&mut self, now: Duration) {
        let Some(began) = self.began.take() else { return };
        let (number, us) = (slot_at(now), micros(now.saturating_sub(began)));
        let slot = &mut self.slots[position(number)];
        if slot.number != number {
            *slot = Slot { number, counts: [0; BUCKETS], us_max: 0 };
        }
        slot.counts[bucket_of(us)] += 1;
        slot.us_max = slot.us_max.max(us);
    }

    fn p99_us(&self, now: Duration) -> Option<u64> {
        let oldest = slot_at(now).saturating_sub(SLOTS as u64 - 1);
        let recent = || self.slots.iter().filter(|slot| slot.number >= oldest);
        let total: u64 = recent().flat_map(|slot| slot.counts).map(u64::from).sum();
        let us_max = recent().map(|slot| slot.us_max).max().unwrap_or_default();
        let mut above = total - total / 100;
        let bucket = (0..BUCKETS).find(|bucket| {
            above = above.saturating_sub(recent().map(|slot| u64::from(slot.counts[*bucket])).sum());
            above == 0
        });
        let ended = bucket.filter(|_| total > 0).map(|bucket| end_of(bucket).min(us_max));
        let under_way = self.began.map(|began| micros(now.saturating_sub(began)));
        // `None` is less than any duration. A first sync that has just begun tells nothing.
        if total == 0 { under_way.filter(|us| *us >= 1_000_000) } else { ended.max(under_way) }
    }
}

fn slot_at(now: Duration) -> u64 {
    now.as_secs() / SLOT.as_secs()
}

fn position(number: u64) -> usize {
    (number % SLOTS as u64) as usize
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The bucket of a duration. The first ones, below 4 µs, have one duration each or none.
fn bucket_of(us: u64) -> usize {
    let us = us.max(1);
    let power = us.ilog2() as usize;
    // The two bits below the highest.
    let step = if power >= 2 { (us >> (power - 2)) & 3 } else { (us << (2 - power)) & 3 };
    (power * STEPS + step as usize).min(BUCKETS - 1)
}

/// The end of a bucket, in microseconds.
fn end_of(bucket: usize) -> u64 {
    let (power, step) = (bucket / STEPS, bucket % STEPS);
    ((STEPS + step + 1) as u64) << power >> 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times() -> Times {
        SyncTimes::default().times.into_inner().unwrap()
    }

    fn sync(times: &mut Times, began: Duration, us: u64) {
        times.began = Some(began);
        times.end(began + Duration::from_micros(us));
    }

    /// A percentile is never below the duration, and at most a quarter above it.
    #[test]
    fn buckets() {
        for us in (0..5000).chain([1 << 20, (1 << 20) + 1, 99_999_999]) {
            let end = end_of(bucket_of(us));
            assert!(end >= us && end <= us.max(1) + us / 4 + 1, "{us} µs: {end}");
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    /// One slow sync of a hundred does not count, two do.
    #[test]
    fn percentile() {
        let mut times = times();
        let at = Duration::from_secs(3);
        assert_eq!(times.p99_us(at), None);
        for _ in 0..99 {
            sync(&mut times, at, 1000);
        }
        sync(&mut times, at, 700_000);
        let usual = times.p99_us(at).unwrap();
        assert!((1000..=1250).contains(&usual), "{usual}");
        sync(&mut times, at, 700_000);
        assert_eq!(times.p99_us(at), Some(700_000), "not above the longest");
    }

    /// Syncs of more than about a minute ago do not count.
    #[test]
    fn window() {
        let mut times = times();
        sync(&mut times, Duration::from_secs(5), 9000);
        assert_eq!(times.p99_us(Duration::from_secs(69)), Some(9000));
        assert_eq!(times.p99_us(Duration::from_secs(70)), None);
        // The slot is used again.
        sync(&mut times, Duration::from_secs(71), 50);
        assert_eq!(times.p99_us(Duration::from_secs(72)), Some(50));
    }

    /// A disk that hangs is noticed although the sync does not end.
    #[test]
    fn a_sync_under_way() {
        let mut times = times();
        let at = Duration::from_secs(1);
        times.began = Some(at);
        assert_eq!(times.p99_us(at + Duration::from_millis(3)), None);
        assert_eq!(times.p99_us(at + Duration::from_secs(3)), Some(3_000_000));
        times.began = None;
        sync(&mut times, at, 100);
        times.began = Some(at);
        assert_eq!(times.p99_us(at + Duration::from_micros(40)), Some(100));
        assert_eq!(times.p99_us(at + Duration::from_micros(140)), Some(140));
    }
}
