//! Checks that what a node reports about itself never goes back.
//!
//! The monitor polls every node of raft-key-value for its vote and its progress:
//!
//! | never decreases | while the process runs | across restarts on the same disk |
//! | --- | --- | --- |
//! | the vote, a term and a node | yes | yes: a vote is reported only after it is synced |
//! | the committed entry | yes | no: it is not synced |
//! | the applied entry | yes | not below the reported snapshot, which is synced |
//!
//! In addition, no two nodes have different committed entries at one index, and no committed entry of a later
//! leader precedes one of an earlier leader. Either would show that two leaders committed at the same time.
//!
//! Two leaders in one term are not a finding. A leader is identified by term and node (openraft's
//! `leader_id_adv`): of two in one term, the one with the higher number takes over from the other, as a leader
//! of a later term does. A term that decreases with a restart is not a finding either: a candidate whose disk
//! fails reports the term of a vote that was never saved.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::history::NodeId;
use crate::node::{Life, Node};
use crate::store::{Client, LeaderId, LogId, RaftState};

/// Pause after each response of a node.
const INTERVAL: Duration = Duration::from_millis(150);
/// Maximum number of findings that are kept; one is enough.
const FINDINGS_MAX: usize = 10;

/// What the nodes of a cluster reported about themselves. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Monitor {
    told: Arc<Mutex<Told>>,
}

impl Monitor {
    /// Polls a node, whichever of its processes runs, until the node is removed.
    pub fn watch(&self, client: &Client, node: &Node) {
        let (id, http, life) = (node.id(), node.host.http(), node.life());
        let (client, told) = (client.clone(), self.told.clone());
        let life_now =
            move || life.upgrade().map(|life| *life.lock().expect("no thread panics while holding the lock"));
        tokio::spawn(async move {
            while let Some(life) = life_now() {
                let status = client.status(http).await;
                // Otherwise it is unknown which of its processes responded.
                if life_now() == Some(life)
                    && let Some(state) = status.ok().and_then(|status| status.raft)
                {
                    told.lock().expect("no thread panics while holding the lock").take(id, life, state);
                }
                tokio::time::sleep(INTERVAL).await;
            }
        });
    }

    /// The number of responses.
    pub fn answers(&self) -> usize {
        self.told.lock().expect("no thread panics while holding the lock").answers
    }

    pub fn take_findings(&self) -> Vec<String> {
        std::mem::take(&mut self.told.lock().expect("no thread panics while holding the lock").findings)
    }
}

#[derive(Debug, Default)]
struct Told {
    /// The last report of each node, with its life.
    last: HashMap<NodeId, (Life, RaftState)>,
    /// By index, the proposer of the committed entry.
    proposers: BTreeMap<u64, LeaderId>,
    answers: usize,
    findings: Vec<String>,
}

impl Told {
    /// Compares a report with all earlier ones.
    fn take(&mut self, id: NodeId, life: Life, state: RaftState) {
        if is_blank(&state) {
            return; // The node serves already, but has not reported the state on its disk yet.
        }
        self.answers += 1;
        if let Some((life_before, before)) = self.last.insert(id, (life, state)) {
            let restarted = life.process != life_before.process;
            if life.disk == life_before.disk {
                let findings = went_back(&before, &state, restarted);
                self.find(findings.into_iter().map(|what| format!("node {id} {what}")));
            }
        }
        for entry in [state.committed, state.applied].into_iter().flatten() {
            match self.contradiction(entry) {
                Some(other) => {
                    self.find([format!("node {id} has committed {entry}, and {other} is committed as well")])
                }
                None => _ = self.proposers.insert(entry.index, entry.leader_id),
            }
        }
    }

    fn find(&mut self, findings: impl IntoIterator<Item = String>) {
        self.findings.extend(findings);
        self.findings.truncate(FINDINGS_MAX);
    }

    /// A committed entry that cannot be in the same log as this one.
    fn contradiction(&self, entry: LogId) -> Option<LogId> {
        let before = self.proposers.range(..=entry.index).next_back().filter(|(_, leader)| **leader > entry.leader_id);
        let after = self.proposers.range(entry.index..).next().filter(|(_, leader)| **leader < entry.leader_id);
        before.or(after).map(|(index, leader_id)| LogId { leader_id: *leader_id, index: *index })
    }
}

fn is_blank(state: &RaftState) -> bool {
    state.vote.term == 0 && state.committed.is_none() && state.applied.is_none() && state.snapshot.is_none()
}

/// The values of a node that are lower than before, on the same disk.
fn went_back(before: &RaftState, now: &RaftState, restarted: bool) -> Vec<String> {
    let mut findings = Vec::new();
    if now.vote < before.vote {
        findings.push(format!("voted for {}, and then for {}", before.vote, now.vote));
    }
    let words = |entry: Option<LogId>| entry.map_or_else(|| "nothing".to_owned(), |entry| entry.to_string());
    let mut compare = |what: &str, before: Option<LogId>, now: Option<LogId>| {
        if now < before {
            findings.push(format!("{what} {}, and then {}", words(before), words(now)));
        }
    };
    if restarted {
        compare("had a snapshot up to", before.snapshot, now.applied);
    } else {
        compare("knew to be committed", before.committed, now.committed);
        compare("had applied", before.applied, now.applied);
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Life = Life { disk: 0, process: 1 };
    const RESTARTED: Life = Life { process: 2, ..LIFE };

    fn entry(term: u64, node_id: NodeId, index: u64) -> Option<LogId> {
        Some(LogId { leader_id: LeaderId { term, node_id }, index })
    }

    fn state() -> RaftState {
        RaftState {
            vote: LeaderId { term: 5, node_id: 2 },
            committed: entry(5, 2, 100),
            applied: entry(5, 2, 98),
            snapshot: entry(5, 1, 50),
        }
    }

    fn findings(told: &[(NodeId, Life, RaftState)]) -> Vec<String> {
        let mut all = Told::default();
        for (id, life, state) in told {
            all.take(*id, *life, *state);
        }
        all.findings
    }

    /// Reports of a correct node are not findings: it makes progress; it restarts with only its vote and its
    /// snapshot; it gets another disk; it has not reported anything yet; another node is ahead.
    #[test]
    fn takes_what_is_right() {
        let on = RaftState { vote: LeaderId { term: 5, node_id: 3 }, committed: entry(5, 3, 101), ..state() };
        let behind = RaftState { committed: entry(5, 1, 60), applied: entry(5, 1, 50), ..state() };
        let empty = RaftState { vote: LeaderId { term: 1, node_id: 1 }, ..RaftState::default() };
        let blank = RaftState { vote: LeaderId { term: 0, node_id: 1 }, ..RaftState::default() };
        let after: [(NodeId, Life, RaftState); 6] = [
            (1, LIFE, state()),
            (1, LIFE, on),
            (1, RESTARTED, behind),
            (1, Life { disk: 1, ..RESTARTED }, empty),
            (1, RESTARTED, blank),
            (2, LIFE, behind),
        ];
        for told in after {
            assert_eq!(findings(&[(1, LIFE, state()), told]), [] as [String; 0], "{told:?}");
        }
        // A report from before the disk was read must not hide later ones.
        let lower = RaftState { vote: LeaderId { term: 4, node_id: 9 }, ..state() };
        let told = [(1, LIFE, state()), (1, RESTARTED, blank), (1, RESTARTED, lower)];
        assert_eq!(findings(&told).len(), 1);
    }

    /// Every value that goes back although it must not is found, once.
    #[test]
    fn finds_what_goes_back() {
        let lower_term = RaftState { vote: LeaderId { term: 4, node_id: 9 }, ..state() };
        let lower_node = RaftState { vote: LeaderId { term: 5, node_id: 1 }, ..state() };
        let uncommitted = RaftState { committed: entry(5, 2, 99), ..state() };
        let unapplied = RaftState { applied: None, ..state() };
        let before_snapshot = RaftState { applied: entry(5, 1, 49), ..state() };
        let wrong = [
            (LIFE, lower_term),
            (RESTARTED, lower_term),
            (LIFE, lower_node),
            (RESTARTED, lower_node),
            (LIFE, uncommitted),
            (LIFE, unapplied),
            (RESTARTED, before_snapshot),
        ];
        for (life, now) in wrong {
            let told = [(1, LIFE, state()), (1, life, now), (1, life, now)];
            assert_eq!(findings(&told).len(), 1, "{life:?} {now:?}");
        }
    }

    /// Committed entries of two nodes that cannot belong to one log are found: different ones at one index,
    /// one of an earlier leader after one of a later leader, and the reverse.
    #[test]
    fn finds_two_leaders_that_commit() {
        let with = |committed| RaftState { committed, applied: None, ..state() };
        for wrong in [entry(5, 3, 100), entry(4, 3, 100), entry(4, 9, 101), entry(6, 1, 99)] {
            let told = [(1, LIFE, with(entry(5, 2, 100))), (2, LIFE, with(wrong))];
            assert_eq!(findings(&told).len(), 1, "{wrong:?}");
        }
        for right in [entry(5, 2, 100), entry(5, 2, 99), entry(4, 9, 99), entry(5, 3, 101), entry(6, 1, 101)] {
            let told = [(1, LIFE, with(entry(5, 2, 100))), (2, LIFE, with(right))];
            assert_eq!(findings(&told), [] as [String; 0], "{right:?}");
        }
    }
}
