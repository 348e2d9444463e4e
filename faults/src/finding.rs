//! What no correct cluster does, and how it shows.

use std::fmt;

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
    /// Anything else, such as a node that ends or does not serve: it may come of many things.
    Other,
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
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fault {
            Some(fault) => write!(f, "under {fault}: {}", self.text),
            None => f.write_str(&self.text),
        }
    }
}
