//! The state machine: what the log's entries make of the data.
//!
//! Nothing here reads a clock, a file or a random number, so that every node
//! which applies the same entries holds the same state.
//!
//! The data is a persistent ordered map: a copy of it takes no time and shares
//! all its memory, so a snapshot is built from a copy while writes go on. A
//! write after a copy copies the few tree nodes above what it changes.

use std::sync::Arc;

use imbl::OrdMap;

use crate::types::{Command, Entry, ExampleResponse, LogId, Payload, StoredMembership};

/// The replicated data of one node, and how far it has come.
///
/// Invariant: it holds what the entries up to `last_applied`, and no others,
/// make of an empty state.
#[derive(Clone, Debug, Default)]
pub struct ExampleStateMachine {
    /// The last entry that was applied.
    pub last_applied: Option<LogId>,
    /// The last membership that was applied.
    pub last_membership: StoredMembership,
    /// The keys and their values.
    pub data: OrdMap<Arc<str>, Arc<str>>,
}

impl ExampleStateMachine {
    /// Applies one entry, and returns what its proposer is told.
    pub fn apply(&mut self, entry: Entry) -> ExampleResponse {
        self.last_applied = Some(entry.log_id);
        match entry.payload {
            Payload::Blank => ExampleResponse::default(),
            Payload::Normal(command) => self.apply_command(command),
            Payload::Membership(membership) => {
                self.last_membership = StoredMembership::new(Some(entry.log_id), membership);
                ExampleResponse::default()
            }
        }
    }

    fn apply_command(&mut self, command: Command) -> ExampleResponse {
        match command {
            Command::Set { key, value } => {
                let response = ExampleResponse { value: Some(value.as_ref().to_owned()) };
                self.data.insert(key, value);
                response
            }
        }
    }

    /// The value of a key, if it is there.
    pub fn get(&self, key: &str) -> Option<Arc<str>> {
        self.data.get(key).cloned()
    }
}

#[cfg(test)]
mod tests {
    use openraft::vote::RaftLeaderId;

    use super::*;

    fn set(index: u64, key: &str, value: &str) -> Entry {
        let command = Command::Set { key: key.into(), value: value.into() };
        Entry { log_id: LogId::new(RaftLeaderId::new(1, 1), index), payload: Payload::Normal(command) }
    }

    /// A copy keeps its state while the original goes on: snapshots rely on it.
    #[test]
    fn a_copy_does_not_change() {
        let mut machine = ExampleStateMachine::default();
        assert_eq!(machine.apply(set(1, "foo", "1")).value.as_deref(), Some("1"));
        let copy = machine.clone();
        machine.apply(set(2, "foo", "2"));
        machine.apply(set(3, "bar", "3"));
        assert_eq!(copy.get("foo").as_deref(), Some("1"));
        assert_eq!(copy.get("bar"), None);
        assert_eq!(copy.last_applied.map(|log_id| log_id.index), Some(1));
        assert_eq!(machine.get("foo").as_deref(), Some("2"));
        assert_eq!(machine.last_applied.map(|log_id| log_id.index), Some(3));
    }
}
