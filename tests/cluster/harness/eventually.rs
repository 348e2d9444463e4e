//! Waits for a condition instead of a duration.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// How long a condition may take. It is generous, since only failing tests wait for it, and the machine may be busy.
pub const DEADLINE: Duration = Duration::from_secs(30);

const PAUSE: Duration = Duration::from_millis(20);

/// Repeats `probe` until it succeeds, and returns its result.
///
/// # Panics
///
/// After `deadline`, with the last result of the probe.
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
