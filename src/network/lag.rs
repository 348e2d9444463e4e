//! How far back followers are, in time.
//!
//! Entries have no times. So the leader notes from time to time where its log ends: an entry that a follower lacks is at
//! least as old as the first note behind it.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix_web::web;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;

use crate::app::ExampleApp;
use crate::config::{LAG_INTERVAL, LAG_NOTES_MAX};

/// Where the log of a leader ended, and when.
///
/// Invariants: times and indexes increase; at most [`LAG_NOTES_MAX`] notes. For each note above that, the one is dropped
/// that matters least, so that the intervals between the others grow in proportion to their age.
#[derive(Debug, Default)]
pub struct LogEnds(Mutex<Notes>);

#[derive(Debug, Default)]
struct Notes {
    term: u64,
    ends: VecDeque<(Instant, u64)>,
}

impl LogEnds {
    /// Notes the last index of the log of a leader.
    fn note(&self, term: u64, now: Instant, last_index: u64) {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.term != term {
            *notes = Notes { term, ends: VecDeque::new() };
        }
        let is_more = notes.ends.back().is_none_or(|(_, index)| *index < last_index);
        if !is_more {
            return;
        }
        if notes.ends.len() == LAG_NOTES_MAX {
            notes.drop_one(now);
        }
        notes.ends.push_back((now, last_index));
    }

    fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).ends.clear();
    }

    /// How old the first entry after `index` is at least: the age of the first note behind it. Zero if there is no such
    /// note, so that the entry is newer than the last note, or does not exist.
    pub fn age_after(&self, index: u64, now: Instant) -> Duration {
        let notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = notes.ends.partition_point(|(_, noted)| *noted <= index);
        notes.ends.get(first).map_or(Duration::ZERO, |(at, _)| now.saturating_duration_since(*at))
    }
}

impl Notes {
    /// Drops the note whose neighbors are closest together for their age. The oldest one stays.
    fn drop_one(&mut self, now: Instant) {
        let at = |position: usize| now.saturating_duration_since(self.ends[position].0).as_secs_f64();
        let gap = |position: &usize| (at(position - 1) - at(position + 1)) / at(position - 1).max(f64::MIN_POSITIVE);
        let least = (1..self.ends.len() - 1).min_by(|one, other| gap(one).total_cmp(&gap(other)));
        if let Some(least) = least {
            self.ends.remove(least);
        }
    }
}

/// Notes where the log ends for as long as this node leads.
pub async fn watch(app: web::Data<ExampleApp>) {
    let mut interval = tokio::time::interval(LAG_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let receiver = app.raft.metrics();
    loop {
        interval.tick().await;
        let leads = {
            let metrics = receiver.borrow_watched();
            let leads = metrics.state == ServerState::Leader;
            leads.then(|| (metrics.current_term, metrics.last_log_index.unwrap_or_default()))
        };
        match leads {
            Some((term, last_index)) => app.cluster_view.log_ends.note(term, Instant::now(), last_index),
            None => app.cluster_view.log_ends.clear(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The age of what a follower lacks is known to the interval of the notes, and later to a twentieth of itself.
    ///
    /// Method: one entry per millisecond for ten minutes, noted every 100 ms; then ask for entries of every age.
    #[test]
    fn ages() {
        let ends = LogEnds::default();
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        const TOTAL_MS: u64 = 600_000;
        for ms in (0..=TOTAL_MS).step_by(100) {
            ends.note(3, at(ms), ms);
        }
        assert!(ends.0.lock().unwrap().ends.len() <= LAG_NOTES_MAX);
        for age_ms in (1..TOTAL_MS).step_by(777) {
            // Entry n is appended at n milliseconds.
            let found = ends.age_after(TOTAL_MS - age_ms - 1, at(TOTAL_MS)).as_millis() as u64;
            assert!(found <= age_ms && age_ms <= found + 200 + age_ms / 20, "{age_ms} ms: {found}");
        }
        assert_eq!(ends.age_after(TOTAL_MS, at(TOTAL_MS + 5000)), Duration::ZERO, "nothing is lacking");
    }

    /// An idle log makes no notes, and a new term begins anew.
    #[test]
    fn notes() {
        let ends = LogEnds::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for seconds in 0..1000 {
            ends.note(1, at(seconds), 7);
        }
        assert_eq!(ends.0.lock().unwrap().ends.len(), 1);
        assert_eq!(ends.age_after(6, at(1000)), Duration::from_secs(1000));
        ends.note(2, at(1000), 5);
        assert_eq!(ends.age_after(4, at(1001)), Duration::from_secs(1));
        ends.clear();
        assert_eq!(ends.age_after(0, at(1001)), Duration::ZERO);
    }
}
