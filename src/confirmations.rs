//! Confirmations by the leader, shared by the watches of a node.
//!
//! Each watch must confirm from time to time that its node still reaches a leader. One watch asks the leader, and all
//! others use the result, so that many watches cost no more than one.

use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use crate::config::{WATCH_CONFIRMATION_AGE_MAX, WATCH_LEADER_INTERVAL};
use crate::error::ApiError;

/// The results of one node.
#[derive(Debug, Default)]
pub struct Confirmations {
    /// Held by the watch that asks. If it ends, another one asks.
    turn: Mutex<()>,
    last: watch::Sender<Option<Outcome>>,
}

#[derive(Clone, Debug)]
struct Outcome {
    began: Instant,
    ended: Instant,
    result: Result<(), ApiError>,
}

/// Which results are recent enough.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// The beginning of the oldest accepted confirmation.
    pub confirmed_since: Instant,
    /// The beginning of the oldest accepted failure.
    pub failed_since: Instant,
}

impl Wanted {
    /// For the heartbeat of a watch: a confirmation no older than [`WATCH_CONFIRMATION_AGE_MAX`]. An earlier failure
    /// may have passed, and must not end the watch.
    pub fn at_heartbeat() -> Self {
        let now = Instant::now();
        Wanted { confirmed_since: now.checked_sub(WATCH_CONFIRMATION_AGE_MAX).unwrap_or(now), failed_since: now }
    }

    fn is_met_by(&self, outcome: &Outcome) -> bool {
        outcome.began >= if outcome.result.is_ok() { self.confirmed_since } else { self.failed_since }
    }
}

impl Confirmations {
    /// The result of the last `ask` of any watch, or of the next one. After a failure, the next `ask` waits for
    /// [`WATCH_LEADER_INTERVAL`].
    ///
    /// # Errors
    ///
    /// The error of `ask`.
    pub async fn confirm(
        &self,
        wanted: Wanted,
        ask: impl Future<Output = Result<(), ApiError>>,
    ) -> Result<(), ApiError> {
        let mut last = self.last.subscribe();
        let turn = loop {
            if let Some(outcome) = last.borrow_and_update().as_ref().filter(|outcome| wanted.is_met_by(outcome)) {
                return outcome.result.clone();
            }
            tokio::select! {
                biased;
                // Cannot fail: the sender is in `self`.
                _ = last.changed() => {}
                turn = self.turn.lock() => break turn,
            }
        };
        let before = self.last.borrow().clone();
        if let Some(outcome) = before {
            // Another watch may have received the result before this one's turn.
            if wanted.is_met_by(&outcome) {
                return outcome.result;
            }
            if outcome.result.is_err() {
                tokio::time::sleep_until(outcome.ended + WATCH_LEADER_INTERVAL).await;
            }
        }
        let began = Instant::now();
        let result = ask.await;
        self.last.send_replace(Some(Outcome { began, ended: Instant::now(), result: result.clone() }));
        drop(turn);
        result
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use futures_util::future::join_all;

    use super::*;
    use crate::error::Retry;

    const WATCHES: usize = 1000;

    fn failure() -> ApiError {
        ApiError::NoLeader(Retry::soon("no leader"))
    }

    /// A thousand watches with heartbeats at different times ask only as often as results grow too old, and each result
    /// is recent enough.
    ///
    /// Method: three heartbeats each, a second apart; asking takes 10 ms.
    #[tokio::test]
    async fn heartbeats_share() {
        let (confirmations, asked) = (Confirmations::default(), AtomicUsize::new(0));
        let start = Instant::now();
        let ask = || async {
            asked.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(10)).await;
            Ok(())
        };
        join_all((0..WATCHES as u64).map(|number| {
            let (confirmations, ask) = (&confirmations, &ask);
            async move {
                for heartbeat in 0..3 {
                    tokio::time::sleep_until(start + Duration::from_millis(1000 * heartbeat + number)).await;
                    let now = Instant::now();
                    confirmations.confirm(Wanted::at_heartbeat(), ask()).await.unwrap();
                    let began = confirmations.last.borrow().as_ref().map(|outcome| outcome.began);
                    assert!(began.is_some_and(|began| began + WATCH_CONFIRMATION_AGE_MAX >= now));
                }
            }
        }))
        .await;
        let asked_max = start.elapsed().as_millis() / WATCH_CONFIRMATION_AGE_MAX.as_millis() + 1;
        assert!((asked.load(Ordering::Relaxed) as u128) <= asked_max, "{asked:?} of {asked_max}");
    }

    /// A failure before a heartbeat does not end a watch.
    ///
    /// Method: asking fails for one heartbeat, and would succeed for the next one.
    #[tokio::test]
    async fn no_old_failure_at_a_heartbeat() {
        let confirmations = Confirmations::default();
        assert!(confirmations.confirm(Wanted::at_heartbeat(), async { Err(failure()) }).await.is_err());
        confirmations.confirm(Wanted::at_heartbeat(), async { Ok(()) }).await.unwrap();
    }

    /// Waiting watches ask once for all of them, ask again after a pause, and continue together. If the asking watch
    /// ends, another one asks.
    ///
    /// Method: asking hangs for the first watch, which gives up, and then fails, until it succeeds after 2 s.
    #[tokio::test]
    async fn waiting_watches_share() {
        let (confirmations, asked) = (Confirmations::default(), AtomicUsize::new(0));
        let start = Instant::now();
        let ask = || async {
            if asked.fetch_add(1, Ordering::Relaxed) == 0 {
                return std::future::pending().await;
            }
            if start.elapsed() < Duration::from_secs(2) { Err(failure()) } else { Ok(()) }
        };
        let hangs = tokio::time::timeout(
            Duration::from_millis(50),
            confirmations.confirm(Wanted { confirmed_since: start, failed_since: start }, ask()),
        );
        let others = join_all((0..WATCHES).map(|_| async {
            let mut failed_since = start;
            let mut failures = 0;
            while confirmations.confirm(Wanted { confirmed_since: start, failed_since }, ask()).await.is_err() {
                failures += 1;
                failed_since = Instant::now();
            }
            failures
        }));
        let (hung, failures) = tokio::join!(hangs, others);
        assert!(hung.is_err());
        let asked = asked.load(Ordering::Relaxed);
        let asked_max = start.elapsed().as_millis() / WATCH_LEADER_INTERVAL.as_millis() + 2;
        assert!((3..=asked_max).contains(&(asked as u128)), "{asked} of {asked_max}");
        assert!(failures.iter().all(|failures| (1..asked).contains(failures)), "{failures:?} of {asked}");
    }
}
