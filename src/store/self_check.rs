//! Compares this node's state with the leader's while both run.
//!
//! Every node records the hash of its state after each [`SELF_CHECK_ENTRIES`]
//! entries. The leader proposes its own ([`Operation::SelfCheck`]). A node that
//! applies this entry and has recorded another hash for the same index must stop:
//! its state or the leader's has data that was never written.
//!
//! These records belong to one node, and are not a part of the replicated state. A
//! node that began at a snapshot after the index has nothing to compare, and waits
//! for the next entry of this kind.

use std::collections::VecDeque;

use super::error::StoreError;
use super::state_machine::ExampleStateMachine;
use crate::config::{SELF_CHECK_ENTRIES, SELF_CHECKS_KEPT};
use crate::hash::StateHash;
use crate::operation::{Operation, Write};
use crate::types::{Command, Entry, LogId, NodeId, Payload};

/// The hash of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SelfCheck {
    /// The index of the last entry that was applied.
    pub index: u64,
    /// The revision of the store after it.
    pub revision: u64,
    /// The hash of the state after it.
    pub hash: StateHash,
}

impl SelfCheck {
    /// That of the current state.
    pub fn of(machine: &ExampleStateMachine) -> Self {
        let index = machine.last_applied.map_or(0, |log_id| log_id.index);
        SelfCheck { index, revision: machine.revision, hash: machine.hash() }
    }
}

/// The hashes that a node recorded, and the results of comparing them.
#[derive(Debug, Default)]
pub struct SelfChecks {
    /// Oldest first; at most [`SELF_CHECKS_KEPT`].
    noted: VecDeque<SelfCheck>,
    /// The largest index for which a leader has announced its hash.
    announced: u64,
    /// The index of the last entry in the log when the node started.
    started_with: u64,
    /// The last one that was equal to the leader's.
    confirmed: Option<SelfCheck>,
    /// Why the node must stop.
    failure: Option<StoreError>,
}

/// A leader's hash in an entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Announced {
    /// The index of that entry.
    entry_index: u64,
    leader_id: NodeId,
    index: u64,
    hash: StateHash,
}

impl Announced {
    /// The hash in an entry; `None` if the entry is of another kind.
    pub fn in_entry(entry: &Entry) -> Option<Self> {
        let Payload::Normal(Command::Write(Write { operation, .. })) = &entry.payload else { return None };
        let Operation::SelfCheck { index, hash } = *operation else { return None };
        let LogId { leader_id, index: entry_index } = entry.log_id;
        Some(Announced { entry_index, leader_id: leader_id.node_id, index, hash })
    }
}

/// Whether to record the state after this entry. (The entry of index 0 initializes the cluster.)
pub(super) fn is_due(index: u64) -> bool {
    index > 0 && index.is_multiple_of(SELF_CHECK_ENTRIES)
}

impl SelfChecks {
    /// The state after an entry, if it was recorded.
    pub fn at(&self, index: u64) -> Option<SelfCheck> {
        self.noted.iter().copied().find(|noted| noted.index == index)
    }

    /// The last state that was equal to the leader's.
    pub fn confirmed(&self) -> Option<SelfCheck> {
        self.confirmed
    }

    /// The newest recorded state, unless a leader has announced its own already.
    pub fn to_announce(&self) -> Option<SelfCheck> {
        self.noted.back().copied().filter(|noted| noted.index > self.announced)
    }

    /// Takes the reason why the node must stop, if any.
    pub fn take_failure(&mut self) -> Option<StoreError> {
        self.failure.take()
    }

    /// Ignores announcements in entries up to this one, which the node had before it started. It may have stopped
    /// because of one of them while the leader's state was the wrong one. The majority that stopped must be able to
    /// start again, and to check the others.
    pub(super) fn start_after(&mut self, last_log_index: u64) {
        self.started_with = last_log_index;
    }

    /// Records the current state.
    pub(super) fn note(&mut self, machine: &ExampleStateMachine) {
        if self.noted.len() == SELF_CHECKS_KEPT {
            self.noted.pop_front();
        }
        let state = SelfCheck::of(machine);
        debug_assert!(self.noted.back().is_none_or(|last| last.index < state.index), "states are noted in order");
        self.noted.push_back(state);
    }

    /// Compares a leader's hash with this node's own. Returns false if the node must stop.
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

    /// Records why the node must stop. The first reason stays.
    pub(super) fn fail(&mut self, why: StoreError) {
        self.failure.get_or_insert(why);
    }

    /// Forgets the recorded states after a snapshot has replaced the state.
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
        // Each state has another hash.
        let machine = ExampleStateMachine { last_applied, revision: index, ..ExampleStateMachine::default() };
        checks.note(&machine);
        machine.hash()
    }

    fn announced(index: u64, hash: StateHash) -> Announced {
        Announced { entry_index: index + 5, leader_id: 7, index, hash }
    }

    /// Equal hashes are confirmed, different ones stop the node with a reason, and those without a counterpart are
    /// ignored.
    #[test]
    fn comparing() {
        let mut checks = SelfChecks::default();
        assert!(checks.compare(announced(10_000, StateHash(1))), "it has nothing to compare");
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

    /// An announcement that made a node stop does not prevent it from starting again. Later ones are compared.
    #[test]
    fn starting_again() {
        let mut checks = SelfChecks::default();
        checks.start_after(10_005);
        noted_at(&mut checks, 10_000);
        assert!(checks.compare(announced(10_000, StateHash(1))), "the log had the entry at the start");
        assert_eq!(checks.confirmed(), None);
        noted_at(&mut checks, 20_000);
        assert!(!checks.compare(announced(20_000, StateHash(1))));
    }

    /// A leader announces its newest state once, even if another leader did it.
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

    /// The number of recorded states is bounded.
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
