//! Load shedding: when a node rejects requests, and how many.
//!
//! Rejecting a request costs the leader a third to a half of a write, so a node that rejected every excess request
//! would have no time for the others. Once the first in the queue have waited for more than [`QUEUE_WAIT_MAX`] for
//! [`OVERLOAD_AFTER`], each turn sheds a few of the newest, which have hardly waited. All others are processed in their
//! order, but late.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::config::{OVERLOAD_AFTER, QUEUE_WAIT_MAX, SERVED_PER_SHED, SHED_INTERVAL_MAX, STALL_MIN};

/// Whether one thread is overloaded, and how many requests it has shed.
pub struct LoadShedding {
    /// The last time at which the first in the queue had waited for at most [`QUEUE_WAIT_MAX`].
    pub(super) short_at: Cell<Instant>,
    is_overloaded: Cell<bool>,
    /// Admitted requests that do not yet allow another one to be shed.
    admitted_unpaid: Cell<usize>,
    turn_at: Cell<Instant>,
    shed_at: Cell<Instant>,
}

impl LoadShedding {
    /// A thread that is not overloaded.
    pub fn new(now: Instant) -> Self {
        LoadShedding {
            short_at: Cell::new(now),
            is_overloaded: Cell::default(),
            admitted_unpaid: Cell::default(),
            turn_at: Cell::new(now),
            shed_at: Cell::new(now),
        }
    }

    /// Whether the thread sheds requests.
    pub fn is_overloaded(&self) -> bool {
        self.is_overloaded.get()
    }

    /// Notes for how long the first in the queue has waited.
    pub fn note_wait(&self, waited: Duration, now: Instant) {
        // Do not count the time while the whole process was suspended. A turn of large requests may take as long as
        // 2 * STALL_MIN.
        let stood_still = now.saturating_duration_since(self.turn_at.replace(now)).saturating_sub(2 * STALL_MIN);
        self.short_at.set(self.short_at.get() + stood_still);
        if waited <= QUEUE_WAIT_MAX {
            if self.is_overloaded.get() && waited <= QUEUE_WAIT_MAX / 2 {
                self.is_overloaded.set(false);
                self.admitted_unpaid.set(0);
                tracing::info!("the overload has ended: all requests are admitted again");
            }
            if !self.is_overloaded.get() {
                self.short_at.set(now);
            }
        } else if !self.is_overloaded.get() && now.saturating_duration_since(self.short_at.get()) > OVERLOAD_AFTER {
            self.is_overloaded.set(true);
            tracing::warn!("overloaded: requests wait in the admission queue, and some are shed");
        }
    }

    /// How many requests a turn may shed that has admitted `admitted`.
    pub fn allowance(&self, admitted: usize, now: Instant) -> usize {
        if !self.is_overloaded.get() {
            return 0;
        }
        let unpaid = self.admitted_unpaid.get() + admitted;
        // An allowance that finds no request to shed expires.
        self.admitted_unpaid.set(unpaid % SERVED_PER_SHED);
        match unpaid / SERVED_PER_SHED {
            0 if now.saturating_duration_since(self.shed_at.get()) >= SHED_INTERVAL_MAX => 1,
            allowance => allowance,
        }
    }

    /// Notes that requests were shed.
    pub fn note_shed(&self, now: Instant) {
        self.shed_at.set(now);
    }
}
