//! Writes of long values, one after another, and their deletion.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::Instant;

use super::{CLIENT_OF_FAULTS, Scene};
use crate::history::{Call, Outcome, Text, abridged};
use crate::network::Host;
use crate::store::{Attempt, CLIENT_DEADLINE};

/// Begins the reason of an attempt that the quota prevented.
const OVER_QUOTA: &str = "507 quota_exceeded";
/// How long an operation is repeated that no fault prevents any more.
const DEADLINE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(50);

/// What became of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    Done,
    /// The quota prevented it.
    OverQuota,
}

impl Scene<'_> {
    /// Makes one attempt at an operation, as part of the history.
    async fn attempt(&self, host: &Host, call: Call) -> Attempt {
        let called_ns = self.recorder.now_ns();
        let attempt = self.cluster.client.call(host.http(), &call, None, CLIENT_DEADLINE).await;
        let call = match call {
            Call::Put { key, value, condition } => Call::Put { key, value: abridged(&value), condition },
            other => other,
        };
        self.recorder.add(CLIENT_OF_FAULTS, host.id, called_ns, call, attempt.outcome.clone());
        attempt
    }

    /// Repeats an operation at a host until it is done, or prevented by the quota. A repeated put has another value.
    pub async fn until_done(&self, host: &Host, mut call: impl FnMut() -> Call) -> Result<Came> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let attempt = self.attempt(host, call()).await;
            match attempt.outcome {
                Outcome::Done(_) => return Ok(Came::Done),
                Outcome::NotApplied if attempt.reason.starts_with(OVER_QUOTA) => return Ok(Came::OverQuota),
                Outcome::NotApplied | Outcome::Unknown => {}
            }
            if Instant::now() > deadline {
                bail!("node {} does not serve within {DEADLINE:?}: {}", host.id, attempt.reason);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    pub async fn put_until_done(&self, host: &Host, key: &Text, bytes: usize) -> Result<Came> {
        self.until_done(host, || Call::Put { key: key.clone(), value: self.value_of(bytes), condition: None }).await
    }

    /// A value of this length that no other operation has.
    fn value_of(&self, bytes: usize) -> Text {
        let mut value = format!("fault-{:020}-", self.recorder.now_ns());
        value.extend(std::iter::repeat_n('x', bytes.saturating_sub(value.len())));
        value.into()
    }
}
