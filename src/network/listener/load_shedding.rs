//! When a node sheds load, and how many requests.
//!
//! To refuse a request costs a third to a half of what a write costs the leader, so a node that refused
//! all that is too much would have no time for the rest. Once the first in the queue have waited for more than
//! [`LINE_WAIT_MAX`] for [`OVERLOAD_AFTER`], a few of the last are refused with each turn:
//! they have just come, and hear of it at once. The others are done, later than they would
//! like, but each after those that came before.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::config::{LINE_WAIT_MAX, OVERLOAD_AFTER, REFUSAL_INTERVAL_MAX, REQUESTS_A_REFUSAL, STALL_MIN};

/// Whether one thread is overloaded, and what it has done about it.
pub struct LoadShedding {
    /// When the first in the queue last had waited for no longer than [`LINE_WAIT_MAX`].
    pub(super) short_at: Cell<Instant>,
    is_overloaded: Cell<bool>,
    /// Requests that were admitted and do not yet make up for one that is shed.
    admitted_unpaid: Cell<usize>,
    turn_at: Cell<Instant>,
    shed_at: Cell<Instant>,
}

impl LoadShedding {
    /// None yet.
    pub fn new(now: Instant) -> Self {
        LoadShedding {
            short_at: Cell::new(now),
            is_overloaded: Cell::default(),
            admitted_unpaid: Cell::default(),
            turn_at: Cell::new(now),
            shed_at: Cell::new(now),
        }
    }

    /// Whether requests have waited for too long, for too long.
    pub fn is_overloaded(&self) -> bool {
        self.is_overloaded.get()
    }

    /// Takes down for how long the first in the queue has waited.
    pub fn note_wait(&self, waited: Duration, now: Instant) {
        // Nobody can be admitted while the whole process stands still: that is not counted, but for
        // what a turn of large requests takes.
        let stood_still = now.saturating_duration_since(self.turn_at.replace(now)).saturating_sub(2 * STALL_MIN);
        self.short_at.set(self.short_at.get() + stood_still);
        if waited <= LINE_WAIT_MAX {
            if self.is_overloaded.get() && waited <= LINE_WAIT_MAX / 2 {
                self.is_overloaded.set(false);
                self.admitted_unpaid.set(0);
                tracing::info!("requests no longer wait for long: all are taken again");
            }
            if !self.is_overloaded.get() {
                self.short_at.set(now);
            }
        } else if !self.is_overloaded.get() && now.saturating_duration_since(self.short_at.get()) > OVERLOAD_AFTER {
            self.is_overloaded.set(true);
            tracing::warn!("more requests come than this node can do: they wait, and some are refused");
        }
    }

    /// How many requests may be shed in a turn that has admitted so many.
    pub fn allowance(&self, admitted: usize, now: Instant) -> usize {
        if !self.is_overloaded.get() {
            return 0;
        }
        let unpaid = self.admitted_unpaid.get() + admitted;
        // What nobody is there for is not made up for later.
        self.admitted_unpaid.set(unpaid % REQUESTS_A_REFUSAL);
        match unpaid / REQUESTS_A_REFUSAL {
            0 if now.saturating_duration_since(self.shed_at.get()) >= REFUSAL_INTERVAL_MAX => 1,
            allowance => allowance,
        }
    }

    /// Some were shed.
    pub fn note_shed(&self, now: Instant) {
        self.shed_at.set(now);
    }
}
