//! Waiting for a condition, never for a duration.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// How long a condition may take. Generous, since it only costs time in a test
/// that fails, and the machine may be busy.
pub const DEADLINE: Duration = Duration::from_secs(30);

const PAUSE: Duration = Duration::from_millis(20);

/// Probes until it succeeds, and returns what it found.
///
/// # Panics
///
/// After `deadline`, with what the last probe saw instead.
pub async fn eventually<T, E: Debug>(
    what: &str,
    deadline: Duration,
    mut probe: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let started = Instant::now();
    loop {
        match probe().await {
            Ok(found) => return found,
            Err(seen) => assert!(
                started.elapsed() < deadline,
                "not within {deadline:?}: {what}; the last value seen is {seen:?}"
            ),
        }
        tokio::time::sleep(PAUSE).await;
    }
}
