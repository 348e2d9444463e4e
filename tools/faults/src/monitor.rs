//! Whether what a node says of itself goes back.
//!
//! Every node of ours is asked all the time for its vote and for how far it has come:
//!
//! | never goes back | while its process runs | over its restarts on the same disk |
//! | --- | --- | --- |
//! | the vote, a term and a node | yes | yes: it is told only once it is synced |
//! | what is committed | yes | no: where it was is not synced |
//! | what is applied | yes | not behind the snapshot that it told of: that is synced |
//!
//! And no two nodes have different entries at one index, nor an entry of a later leader before
//! one of an earlier leader, where both are committed: so it would be if two led at the same time.
//!
//! That two nodes lead in one term is no finding. A leader here is a term and a node (openraft's
//! `leader_id_adv`): of two in one term the one with the higher number takes over from the other,
//! just as one of a later term does. Nor is a term that goes back with a restart: a candidate
//! whose disk fails tells the term of a vote that was never saved.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::history::NodeId;
use crate::node::{Life, Node};
use crate::store::{Client, LeaderId, LogId, RaftState};

/// How long a node is left alone after it has answered.
const INTERVAL: Duration = Duration::from_millis(150);
/// How many findings are kept: one is enough.
const FINDINGS_MAX: usize = 10;

/// What the nodes of a cluster said of themselves. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Monitor {
    told: Arc<Mutex<Told>>,
}

impl Monitor {
    /// Asks a node, whichever of its processes runs, until it is gone for good.
    pub fn watch(&self, client: &Client, node: &Node) {
        let (id, http, life) = (node.id(), node.host.http(), node.life());
        let (client, told) = (client.clone(), self.told.clone());
        let life_now = move || life.upgrade().map(|life| *life.lock().expect("no thread panics with it"));
        tokio::spawn(async move {
            while let Some(life) = life_now() {
                let status = client.status(http).await;
                // Else it is not known which of its processes has answered.
                if life_now() == Some(life)
                    && let Some(state) = status.ok().and_then(|status| status.raft)
                {
                    told.lock().expect("no thread panics with it").take(id, life, state);
                }
                tokio::time::sleep(INTERVAL).await;
            }
        });
    }

    /// How often a node said something.
    pub fn answers(&self) -> usize {
        self.told.lock().expect("no thread panics with it").answers
    }

    pub fn take_findings(&self) -> Vec<String> {
        std::mem::take(&mut self.told.lock().expect("no thread panics with it").findings)
    }
}

#[derive(Debug, Default)]
struct Told {
    /// What each node said last, and in which life.
    last: HashMap<NodeId, (Life, RaftState)>,
    /// By index, who proposed the entry that is committed there.
    proposers: BTreeMap<u64, LeaderId>,
    answers: usize,
    findings: Vec<String>,
}

impl Told {
    /// What a node says now, after all that it said before.
    fn take(&mut self, id: NodeId, life: Life, state: RaftState) {
        if is_blank(&state) {
            return; // It serves already, and has not yet told what it read from its disk.
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

    /// A committed entry that cannot be in one log with this one.
    fn contradiction(&self, entry: LogId) -> Option<LogId> {
        let before = self.proposers.range(..=entry.index).next_back().filter(|(_, leader)| **leader > entry.leader_id);
        let after = self.proposers.range(entry.index..).next().filter(|(_, leader)| **leader < entry.leader_id);
        before.or(after).map(|(index, leader_id)| LogId { leader_id: *leader_id, index: *index })
    }
}

fn is_blank(state: &RaftState) -> bool {
    state.vote.term == 0 && state.committed.is_none() && state.applied.is_none() && state.snapshot.is_none()
}

/// What of a node's state is less than it was before, on the same disk.
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

    /// What a correct node may say is no finding: it goes on; it is started again and has only
    /// its vote and its snapshot; it has another disk; it says nothing yet; another is ahead.
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
        // What is said before it has read its disk hides nothing that comes after it.
        let lower = RaftState { vote: LeaderId { term: 4, node_id: 9 }, ..state() };
        let told = [(1, LIFE, state()), (1, RESTARTED, blank), (1, RESTARTED, lower)];
        assert_eq!(findings(&told).len(), 1);
    }

    /// Whatever goes back that must not is found, once.
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

    /// Committed entries of two nodes that cannot be of one log are found: different ones at one
    /// index, one of an earlier leader after one of a later, and the other way round.
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
