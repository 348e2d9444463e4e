//! Whether this node's state is the leader's, while both run.
//!
//! Every node notes the hash of its state after each [`SELF_CHECK_ENTRIES`]
//! entries. The leader proposes its own ([`Operation::SelfCheck`]); a node that
//! applies this and has noted another one for the same index must not go on: it
//! or the leader holds something that was never written.
//!
//! What is noted here is one node's own, and no part of the replicated state: a
//! node that began at a snapshot past the index has nothing to compare, and waits
//! for the next.

use std::collections::VecDeque;

use super::error::StoreError;
use super::state_machine::ExampleStateMachine;
use crate::config::{SELF_CHECK_ENTRIES, SELF_CHECKS_KEPT};
use crate::hash::StateHash;
use crate::operation::{Operation, Write};
use crate::types::{Command, Entry, LogId, NodeId, Payload};

/// What the state was once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SelfCheck {
    /// The last entry that was applied then.
    pub index: u64,
    /// The store's revision then.
    pub revision: u64,
    /// The hash of the state.
    pub hash: StateHash,
}

impl SelfCheck {
    /// What the state is now.
    pub fn of(machine: &ExampleStateMachine) -> Self {
        let index = machine.last_applied.map_or(0, |log_id| log_id.index);
        SelfCheck { index, revision: machine.revision, hash: machine.hash() }
    }
}

/// What a node knows of its states to compare them.
#[derive(Debug, Default)]
pub struct SelfChecks {
    /// Oldest first; at most [`SELF_CHECKS_KEPT`].
    noted: VecDeque<SelfCheck>,
    /// The largest index for which a leader has said what its hash is.
    announced: u64,
    /// The last entry that was in the log when the node was started.
    started_with: u64,
    /// The last that was the same as the leader's.
    confirmed: Option<SelfCheck>,
    /// Why the node must not go on.
    failure: Option<StoreError>,
}

/// A leader's hash, as it stands in an entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Announced {
    /// The entry that says it.
    entry_index: u64,
    leader_id: NodeId,
    index: u64,
    hash: StateHash,
}

impl Announced {
    /// What an entry says of the leader's state, if it is for that.
    pub fn in_entry(entry: &Entry) -> Option<Self> {
        let Payload::Normal(Command::Write(Write { operation, .. })) = &entry.payload else { return None };
        let Operation::SelfCheck { index, hash } = *operation else { return None };
        let LogId { leader_id, index: entry_index } = entry.log_id;
        Some(Announced { entry_index, leader_id: leader_id.node_id, index, hash })
    }
}

/// Whether the state is to be noted that is reached with this entry. (The first, of index 0, makes a cluster.)
pub(super) fn is_due(index: u64) -> bool {
    index > 0 && index.is_multiple_of(SELF_CHECK_ENTRIES)
}

impl SelfChecks {
    /// The state after an entry, if that was noted.
    pub fn at(&self, index: u64) -> Option<SelfCheck> {
        self.noted.iter().copied().find(|noted| noted.index == index)
    }

    /// The last state that was the same as the leader's.
    pub fn confirmed(&self) -> Option<SelfCheck> {
        self.confirmed
    }

    /// The newest state that was noted, unless a leader has said already what its own was.
    pub fn to_announce(&self) -> Option<SelfCheck> {
        self.noted.back().copied().filter(|noted| noted.index > self.announced)
    }

    /// Why the node must not go on, if that is so; said once.
    pub fn take_failure(&mut self) -> Option<StoreError> {
        self.failure.take()
    }

    /// Passes over what a leader says in entries up to this one, which the node had
    /// before it was started. It may have stopped because of one of them, and the
    /// leader may have been the wrong one: the majority that stopped must be able
    /// to come back, and to check the others.
    pub(super) fn start_after(&mut self, last_log_index: u64) {
        self.started_with = last_log_index;
    }

    pub(super) fn note(&mut self, machine: &ExampleStateMachine) {
        if self.noted.len() == SELF_CHECKS_KEPT {
            self.noted.pop_front();
        }
        self.noted.push_back(SelfCheck::of(machine));
    }

    /// Compares a leader's hash with this node's own; false if the node must not go on.
    pub(super) fn compare(&mut self, announced: Announced) -> bool {
        let Announced { entry_index, leader_id, index, hash } = announced;
        self.announced = self.announced.max(index);
        match self.at(index) {
            _ if entry_index <= self.started_with => true,
            None => true,
            Some(own) if own.hash == hash => {
                self.confirmed = Some(own);
                true
            }
            Some(own) => {
                self.fail(StoreError::OtherState { index, own: own.hash, leader_id, leaders: hash });
                false
            }
        }
    }

    /// Says why the node must not go on. The first reason stays.
    pub(super) fn fail(&mut self, why: StoreError) {
        self.failure.get_or_insert(why);
    }

    /// Forgets what was noted of a state that another one has replaced.
    pub(super) fn forget(&mut self) {
        self.noted.clear();
    }
}

#[cfg(test)]
mod tests {
    use openraft::vote::RaftLeaderId;

    use super::*;
    use crate::types::LogId;

    fn noted_at(checks: &mut SelfChecks, index: u64) -> StateHash {
        let last_applied = Some(LogId::new(RaftLeaderId::new(1, 1), index));
        // Each state is another one.
        let machine = ExampleStateMachine { last_applied, revision: index, ..ExampleStateMachine::default() };
        checks.note(&machine);
        machine.hash()
    }

    fn announced(index: u64, hash: StateHash) -> Announced {
        Announced { entry_index: index + 5, leader_id: 7, index, hash }
    }

    /// What is the same is confirmed, what differs ends the node and says how, and
    /// what cannot be compared is passed over.
    #[test]
    fn comparing() {
        let mut checks = SelfChecks::default();
        assert!(checks.compare(announced(10_000, StateHash(1))), "there is nothing to compare");
        assert_eq!(checks.confirmed(), None);
        let hash = noted_at(&mut checks, 20_000);
        assert!(checks.compare(announced(20_000, hash)));
        assert_eq!(checks.confirmed(), Some(SelfCheck { index: 20_000, revision: 20_000, hash }));
        noted_at(&mut checks, 30_000);
        assert!(!checks.compare(announced(30_000, hash)));
        assert_eq!(checks.confirmed().map(|it| it.index), Some(20_000));
        let failure = checks.take_failure();
        assert!(matches!(failure, Some(StoreError::OtherState { index: 30_000, leader_id: 7, .. })), "{failure:?}");
    }

    /// What made a node stop does not keep it from starting again; what comes afterwards is compared.
    #[test]
    fn starting_again() {
        let mut checks = SelfChecks::default();
        checks.start_after(10_005);
        noted_at(&mut checks, 10_000);
        assert!(checks.compare(announced(10_000, StateHash(1))), "the entry was there at the start");
        assert_eq!(checks.confirmed(), None);
        noted_at(&mut checks, 20_000);
        assert!(!checks.compare(announced(20_000, StateHash(1))));
    }

    /// A leader says once what its newest state was, also if another one led before it.
    #[test]
    fn announcing() {
        let mut checks = SelfChecks::default();
        assert_eq!(checks.to_announce(), None);
        noted_at(&mut checks, 10_000);
        let hash = noted_at(&mut checks, 20_000);
        assert_eq!(checks.to_announce().map(|it| it.index), Some(20_000));
        assert!(checks.compare(announced(20_000, hash)));
        assert_eq!(checks.to_announce(), None);
        noted_at(&mut checks, 30_000);
        checks.forget();
        assert_eq!((checks.to_announce(), checks.at(30_000)), (None, None));
    }

    /// Only the last ones are kept.
    #[test]
    fn bound() {
        let mut checks = SelfChecks::default();
        for number in 1..=SELF_CHECKS_KEPT as u64 + 1 {
            noted_at(&mut checks, number * SELF_CHECK_ENTRIES);
        }
        assert_eq!(checks.noted.len(), SELF_CHECKS_KEPT);
        assert_eq!(checks.at(SELF_CHECK_ENTRIES), None);
        assert!(checks.at(2 * SELF_CHECK_ENTRIES).is_some());
    }
}
