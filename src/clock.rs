//! The time that a leader stamps entries with.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The system's time when the process started, and how long ago that is.
///
/// So it never goes back or jumps while the process runs, whatever is done to
/// the system's clock: keys with a time to live would go early or stay.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
    started_ms: u64,
}

impl Clock {
    /// A clock that starts at the system's time.
    pub fn new() -> Self {
        // Before 1970 there is no time but 0.
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { started: Instant::now(), started_ms: since_1970.as_millis() as u64 }
    }

    /// Milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        self.started_ms + self.started.elapsed().as_millis() as u64
    }
}

impl Default for Clock {
    fn default() -> Self {
        Clock::new()
    }
}
