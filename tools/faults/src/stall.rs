//! Detects whether the machine let the harness run.
//!
//! A cluster that does not recover within a deadline has violated its guarantee, unless the machine was so
//! busy, or paused for so long, that nothing could run on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Error;

use crate::finding::{Finding, HarnessError};

const INTERVAL: Duration = Duration::from_millis(100);
/// From this length on a stall explains a missed deadline: a third of the deadline for recovery.
const STALL_MAX: Duration = Duration::from_secs(10);

/// Measures the longest time for which a periodic thread did not get to run.
#[derive(Debug)]
pub struct StallMeter {
    longest_ms: Arc<AtomicU64>,
}

impl StallMeter {
    /// Starts the thread, which ends when the value is dropped.
    pub fn start() -> Self {
        let longest_ms = Arc::new(AtomicU64::new(0));
        let shared = Arc::downgrade(&longest_ms);
        thread::spawn(move || {
            let mut before = Instant::now();
            while let Some(longest_ms) = shared.upgrade() {
                thread::sleep(INTERVAL);
                let late = before.elapsed().saturating_sub(INTERVAL);
                longest_ms.fetch_max(late.as_millis() as u64, Ordering::Relaxed);
                before = Instant::now();
            }
        });
        StallMeter { longest_ms }
    }

    /// The longest stall since the last call.
    pub fn take(&self) -> Duration {
        Duration::from_millis(self.longest_ms.swap(0, Ordering::Relaxed))
    }
}

/// The finding for an error that ended a fault, during which the longest stall was `stall`.
pub fn finding_of_error(error: &Error, stall: Duration) -> Finding {
    let finding = Finding::of_error(error);
    if stall < STALL_MAX || !finding.is_violation() {
        return finding;
    }
    let text = format!("{error:#}; the machine did not run the harness for {:.1} s meanwhile", stall.as_secs_f64());
    Finding::of_error(&HarnessError(text).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A missed deadline is a violation, unless the machine stalled.
    #[test]
    fn a_stall_excuses_a_missed_deadline() {
        let missed = anyhow::anyhow!("no write succeeds within 30s");
        assert!(finding_of_error(&missed, STALL_MAX - INTERVAL).is_violation());
        let excused = finding_of_error(&missed, Duration::from_millis(12_340));
        assert!(!excused.is_violation());
        let text = "no write succeeds within 30s; the machine did not run the harness for 12.3 s meanwhile";
        assert_eq!(excused.text, text);
    }
}
