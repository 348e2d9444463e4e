//! When a request is retried, and what its outcome is when it is not.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::error::ClientError;
use crate::config::{RETRY_PAUSE_FIRST, RETRY_PAUSE_MAX};
use crate::error::Outcome;

/// The attempts of one request.
///
/// Once an attempt may have been applied, the rejection of a later one says nothing about it: the outcome of the
/// request stays unknown, unless the replicated state itself decides.
#[derive(Debug)]
pub(super) struct Retries {
    /// `None` if retries never end.
    until: Option<Instant>,
    attempts: u32,
    /// The error of the first attempt with an unknown outcome.
    unknown: Option<Box<ClientError>>,
}

impl Retries {
    /// No attempt begins later than `deadline` from now.
    pub(super) fn new(deadline: Duration) -> Self {
        // The sum overflows only for durations near `Duration::MAX`.
        Retries { until: Instant::now().checked_add(deadline), attempts: 0, unknown: None }
    }

    /// How long to wait before the next attempt; `None` if a retry is useless or too late.
    pub(super) fn delay(&mut self, error: &ClientError) -> Option<Duration> {
        let pause = error.retry_after()? + self.backoff();
        let is_late = self.until.is_some_and(|until| Instant::now() + pause >= until);
        (!is_late).then_some(pause)
    }

    /// Waits until the next attempt is due.
    ///
    /// # Errors
    ///
    /// The error of the whole request, if a retry is useless or too late.
    pub(super) async fn pause(&mut self, error: ClientError) -> Result<(), ClientError> {
        let Some(pause) = self.delay(&error) else { return Err(self.resolve(error)) };
        if error.outcome() == Outcome::Unknown {
            self.unknown.get_or_insert_with(|| Box::new(error));
        }
        sleep(pause).await;
        Ok(())
    }

    /// A random pause whose upper bound doubles, so that clients that failed together do not retry together.
    fn backoff(&mut self) -> Duration {
        let most = RETRY_PAUSE_FIRST.saturating_mul(1 << self.attempts.min(10)).min(RETRY_PAUSE_MAX);
        self.attempts += 1;
        // Without random numbers the pause is the longest one, which does no harm.
        let random = getrandom::u32().unwrap_or(u32::MAX);
        most.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }

    fn resolve(&mut self, last: ClientError) -> ClientError {
        match self.unknown.take() {
            Some(unknown) if last.outcome() == Outcome::NotApplied && !last.is_decided() => {
                ClientError::Unresolved { unknown, last: Box::new(last) }
            }
            _ => last,
        }
    }
}

/// A random `Idempotency-Key` of 128 bits, so that no two requests share one.
pub(super) fn idempotency_key() -> Result<String, ClientError> {
    let mut bits = [0; 16];
    getrandom::fill(&mut bits).map_err(|error| ClientError::InvalidRequest {
        reason: format!("cannot generate a random Idempotency-Key: {error}"),
    })?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bits)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RETRY_AFTER;
    use crate::error::{ApiError, ConditionFailed, Details, NotApplied, Retry};

    fn rejected(error: &ApiError) -> ClientError {
        ClientError::Rejected { addr: "a:1".into(), status: error.status(), error: Box::new(error.to_body().error) }
    }

    fn lost() -> ClientError {
        ClientError::AnswerLost { addr: "a:1".into(), reason: "it broke".into(), outcome: Outcome::Unknown }
    }

    /// After a lost response, a rejection leaves the outcome unknown; a decision of the replicated state does not.
    #[test]
    fn unknown_until_the_state_decides() {
        let unavailable = || rejected(&ApiError::NoLeader(Retry::soon("no leader")));
        let full = || rejected(&ApiError::DiskSpaceLow(Details::not_applied("full")));
        let failed = || {
            rejected(&ApiError::ConditionFailed(ConditionFailed {
                message: "no".into(),
                current_revision: Some(3),
                outcome: NotApplied::NotApplied,
            }))
        };
        let rows = [
            (Some(lost()), unavailable(), Outcome::Unknown),
            (Some(lost()), full(), Outcome::Unknown),
            (Some(lost()), failed(), Outcome::NotApplied),
            (None, unavailable(), Outcome::NotApplied),
            (None, lost(), Outcome::Unknown),
        ];
        for (unknown, last, outcome) in rows {
            let what = format!("{unknown:?}, then {last}");
            let mut retry = Retries { unknown: unknown.map(Box::new), ..Retries::new(Duration::ZERO) };
            assert_eq!(retry.resolve(last).outcome(), outcome, "{what}");
        }
    }

    /// Without time for a retry there is none, and after a 503 there is none before `Retry-After`.
    #[tokio::test]
    async fn pauses_are_kept() {
        let unavailable = || rejected(&ApiError::NoLeader(Retry::soon("no leader")));
        assert!(Retries::new(Duration::ZERO).pause(lost()).await.is_err());
        assert!(Retries::new(RETRY_AFTER / 2).pause(unavailable()).await.is_err());
        let before = Instant::now();
        Retries::new(3 * RETRY_AFTER).pause(unavailable()).await.unwrap();
        assert!(before.elapsed() >= RETRY_AFTER);
        assert!(Retries::new(Duration::MAX).delay(&unavailable()).is_some(), "retries never end");
    }
}
