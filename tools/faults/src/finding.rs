//! What no correct cluster does, and how it shows.

use std::error::Error;
use std::fmt;
use std::io;

use crate::checker::report::Kind;
use crate::fault::Fault;

/// How something that is wrong shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Symptom {
    /// Clients were told what no correct store can have told them.
    History,
    /// A node holds something else at the end than it should, or than another.
    States,
    /// A node's vote, or how far it had come, went back.
    WentBack,
    /// A system call is missing.
    SystemCall,
    /// A node started, and should have refused.
    Start,
    /// A key expired too early or too late.
    Expiry,
    /// Anything else, such as a node that ends or does not serve: it may come of many things.
    Other,
    /// The harness, or the machine that it runs on, could not do its part. It is no violation: it says
    /// nothing about the cluster.
    Harness,
}

/// The harness, or the machine that it runs on, could not do its part.
#[derive(Debug)]
pub struct HarnessError(pub String);

impl fmt::Display for HarnessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for HarnessError {}

/// Whether an error is the harness's own: a tool that is missing or fails, a file or a process that the
/// operating system refuses.
///
/// Everything else counts against the cluster. In particular a node that does not respond is one of its
/// failures, although the network library reports that as an I/O error as well.
pub fn is_of_harness(error: &anyhow::Error) -> bool {
    let is_of_node = error.chain().any(|cause| cause.is::<reqwest::Error>());
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

/// Something that no correct cluster does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub symptom: Symptom,
    pub text: String,
    /// What was broken when it was found, or had just been mended; none if that is not known.
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
    use anyhow::{Context, anyhow};

    use super::*;

    /// Only what the harness itself could not do is no violation. A node that does not respond is one,
    /// although the cause of that error is an I/O error, too.
    #[tokio::test]
    async fn errors_of_the_harness_are_no_violations() {
        let missing = std::fs::File::open("/no/such/file").context("cannot read a log").unwrap_err();
        let tool = anyhow::Error::new(HarnessError("`nft` failed".to_owned())).context("lane network");
        for error in [missing, tool] {
            assert!(!Finding::of_error(&error).is_violation(), "{error:#}");
        }
        // Nothing listens on this port.
        let refused = reqwest::get("http://127.0.0.1:1/").await.context("node 1 does not respond").unwrap_err();
        for error in [refused, anyhow!("no write succeeds within 30 s")] {
            assert!(Finding::of_error(&error).is_violation(), "{error:#}");
        }
    }
}
