//! Observations that no correct cluster permits, and how they show.

use std::error::Error;
use std::fmt;
use std::io;

use crate::checker::report::Kind;
use crate::fault::Fault;

/// How a problem shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Symptom {
    /// Clients got responses that no correct store can have sent.
    History,
    /// A node's final state differs from the expected one, or from another node's.
    States,
    /// A node's vote or progress went back.
    WentBack,
    /// A system call is missing.
    SystemCall,
    /// A node started although it should have refused.
    Start,
    /// A key expired too early or too late.
    Expiry,
    /// A node became a voter too early.
    Membership,
    /// A backup is not the state at its index, or a cluster that was restored from it differs.
    Backup,
    /// Growth was accepted beyond the quota, or something else was rejected because of it.
    Quota,
    /// A node served a request whose token was revoked.
    Token,
    /// Anything else, such as a node that ended or does not serve. It may have many causes.
    Other,
    /// The harness, or the machine that it runs on, failed. This is not a violation: it says nothing about
    /// the cluster.
    Harness,
}

/// A failure of the harness, or of the machine that it runs on.
#[derive(Debug)]
pub struct HarnessError(pub String);

impl fmt::Display for HarnessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for HarnessError {}

/// Whether an error is the harness's own: a tool that is missing or fails, or a file or process that the
/// operating system denies.
///
/// Everything else counts against the cluster. In particular a node that does not respond counts against it,
/// although the network library also reports an I/O error.
pub fn is_of_harness(error: &anyhow::Error) -> bool {
    let is_of_node = error.chain().any(|cause| cause.is::<harness::http::Error>());
    !is_of_node && error.chain().any(|cause| cause.is::<HarnessError>() || cause.is::<io::Error>())
}

impl From<Kind> for Symptom {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::FinalState | Kind::FinalRevision | Kind::FinalHash => Symptom::States,
            _ => Symptom::History,
        }
    }
}

/// An observation that no correct cluster permits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub symptom: Symptom,
    pub text: String,
    /// The fault in force, or the one that was just healed; `None` if unknown.
    pub fault: Option<Fault>,
}

impl Finding {
    pub fn new(symptom: Symptom, text: String) -> Self {
        Finding { symptom, text, fault: None }
    }

    pub fn other(text: String) -> Self {
        Finding::new(Symptom::Other, text)
    }

    pub fn harness(text: String) -> Self {
        Finding::new(Symptom::Harness, text)
    }

    /// An error that ended a fault or a lane.
    pub fn of_error(error: &anyhow::Error) -> Self {
        let symptom = if is_of_harness(error) { Symptom::Harness } else { Symptom::Other };
        Finding::new(symptom, format!("{error:#}"))
    }

    pub fn is_violation(&self) -> bool {
        self.symptom != Symptom::Harness
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fault {
            Some(fault) => write!(f, "under {fault}: {}", self.text),
            None => f.write_str(&self.text),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use anyhow::{Context, anyhow};
    use harness::http;

    use super::*;

    /// Only failures of the harness itself are not violations. A node that does not respond is a violation,
    /// although its cause is an I/O error, too.
    #[tokio::test]
    async fn errors_of_the_harness_are_no_violations() {
        let missing = std::fs::File::open("/no/such/file").context("cannot read a log").unwrap_err();
        let tool = anyhow::Error::new(HarnessError("`nft` failed".to_owned())).context("lane network");
        for error in [missing, tool] {
            assert!(!Finding::of_error(&error).is_violation(), "{error:#}");
        }
        // Nothing listens on this port.
        let client = http::Client::new(None, Duration::from_secs(5));
        let response = client.send(([127, 0, 0, 1], 1).into(), http::get("/"), Duration::from_secs(5)).await;
        let refused = response.context("node 1 does not respond").unwrap_err();
        for error in [refused, anyhow!("no write succeeds within 30 s")] {
            assert!(Finding::of_error(&error).is_violation(), "{error:#}");
        }
    }
}
