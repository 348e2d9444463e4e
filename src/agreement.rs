//! Whether this node still has what its leader counts on.
//!
//! A leader remembers up to which entry each node has acknowledged its log, and never sends those
//! entries again. A node that was started on an older copy of its data directory has forgotten some
//! of them. openraft does not notice (in a debug build, the leader panics): the leader goes on to
//! count the node's former acknowledgements, and the node never gets an entry again.
//!
//! The node itself can notice. **An append without entries says what the leader counts on**: its
//! `prev_log_id` is the last entry that the leader knows this node to have. It knows that only from
//! this node's own response, to an append or a snapshot of the same leader in the same term; and no
//! leader ever removes what it has replicated itself. So if the entry is missing, the node has lost
//! it, or its disk has. An append *with* entries says nothing: while a leader looks for the point up
//! to which a log agrees with its own, it tries entries that the node need not have.
//!
//! So after each start, and for each new leader, a node first has to **agree** with the leader: it
//! accepts an append, which proves that it has what the leader counts on. From then on its log only
//! grows under this leader. Until then
//!
//! * an append without entries that refers to a missing entry is rejected, and is evidence;
//! * an append with entries that refers to one waits for the leader's next heartbeat, since openraft's
//!   response, a conflict, would be wrong if the leader counts on the entry;
//! * a snapshot of a leader that counts on a missing entry is rejected: it would hide what happened.
//!
//! The node gives up on its data after [`EVIDENCE_COUNT_MIN`] rejections over [`EVIDENCE_MIN`], if
//! meanwhile no append was accepted, and the leader, its term and the end of the log stayed the same.
//! That is more than certainty requires; it is for what nobody thought of.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::config::{EVIDENCE_COUNT_MIN, EVIDENCE_MIN};
use crate::types::{LogId, NodeId, Vote};

/// What a node found out about its data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OlderCopy {
    /// Who leads.
    pub leader_id: NodeId,
    /// In which term.
    pub term: u64,
    /// The last entry that this node has acknowledged to that leader.
    pub acknowledged: u64,
    /// The last entry of its log, if there is one.
    pub last: Option<u64>,
}

/// Whether this node still has what its leader counts on.
#[derive(Debug)]
pub struct Agreement {
    /// The leader that it agrees with.
    agreed: watch::Sender<Option<Vote>>,
    evidence: Mutex<Option<Evidence>>,
    /// Whether there is some: an accepted append need not take the lock otherwise.
    has_evidence: AtomicBool,
}

#[derive(Debug)]
struct Evidence {
    vote: Vote,
    acknowledged: LogId,
    last: Option<LogId>,
    since: Instant,
    count: u32,
}

impl Default for Agreement {
    fn default() -> Self {
        Agreement { agreed: watch::Sender::new(None), evidence: Mutex::default(), has_evidence: AtomicBool::new(false) }
    }
}

impl Agreement {
    /// Whether this node has accepted an append of this leader since it was started.
    pub fn is_with(&self, leader: &Vote) -> bool {
        self.agreed.borrow().as_ref() == Some(leader)
    }

    /// An append of this leader was accepted.
    pub fn note_accepted(&self, leader: &Vote) {
        if self.has_evidence.load(Ordering::Relaxed) {
            *self.lock() = None;
            self.has_evidence.store(false, Ordering::Relaxed);
        }
        self.agreed.send_if_modified(|agreed| agreed.replace(*leader) != Some(*leader));
    }

    /// Whether this leader counts on an entry that is missing here.
    pub fn is_in_doubt(&self, leader: &Vote) -> bool {
        self.has_evidence.load(Ordering::Relaxed)
            && self.lock().as_ref().is_some_and(|evidence| evidence.vote == *leader)
    }

    /// Waits until an append of this leader was accepted; returns whether that happened in time.
    pub async fn wait_for(&self, leader: &Vote, within: Duration) -> bool {
        let mut agreed = self.agreed.subscribe();
        let accepted = agreed.wait_for(|agreed| agreed.as_ref() == Some(leader));
        tokio::time::timeout(within, accepted).await.is_ok()
    }

    /// This leader counts on an entry that is missing here, where the log ends with `last`. Returns
    /// what that means, once it is certain.
    pub fn note_missing(&self, leader: &Vote, acknowledged: LogId, last: Option<LogId>) -> Option<OlderCopy> {
        self.note_missing_at(leader, acknowledged, last, Instant::now())
    }

    fn note_missing_at(
        &self,
        leader: &Vote,
        acknowledged: LogId,
        last: Option<LogId>,
        now: Instant,
    ) -> Option<OlderCopy> {
        let mut held = self.lock();
        self.has_evidence.store(true, Ordering::Relaxed);
        let found = held.get_or_insert(Evidence { vote: *leader, acknowledged, last, since: now, count: 0 });
        if found.vote != *leader || found.last != last || acknowledged.index < found.acknowledged.index {
            *found = Evidence { vote: *leader, acknowledged, last, since: now, count: 0 };
        }
        found.acknowledged = acknowledged;
        found.count += 1;
        let is_certain = found.count >= EVIDENCE_COUNT_MIN && now.duration_since(found.since) >= EVIDENCE_MIN;
        is_certain.then_some(OlderCopy {
            leader_id: leader.leader_id.node_id,
            term: leader.leader_id.term,
            acknowledged: acknowledged.index,
            last: last.map(|last| last.index),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Evidence>> {
        self.evidence.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::LeaderId;

    fn leader(term: u64) -> Vote {
        Vote { leader_id: LeaderId { term, node_id: 1 }, committed: true }
    }

    fn log_id(index: u64) -> LogId {
        LogId { leader_id: LeaderId { term: 1, node_id: 1 }, index }
    }

    /// Notes a missing entry at each of these times; returns the first at which that was certain.
    fn certain_at(agreement: &Agreement, start: Instant, times_ms: impl Iterator<Item = u64>) -> Option<u64> {
        times_ms.into_iter().find(|time_ms| {
            let now = start + Duration::from_millis(*time_ms);
            agreement.note_missing_at(&leader(1), log_id(9), Some(log_id(5)), now).is_some()
        })
    }

    /// Evidence counts only if there is enough of it over enough time.
    #[test]
    fn evidence_takes_time_and_repetition() {
        let start = Instant::now();
        let least_ms = EVIDENCE_MIN.as_millis() as u64;
        assert_eq!(certain_at(&Agreement::default(), start, (0..).step_by(100).take(1000)), Some(least_ms));
        assert_eq!(certain_at(&Agreement::default(), start, 0..least_ms), None, "often, and in too short a time");
        let rare = certain_at(&Agreement::default(), start, (0..).step_by(10_000).take(1000));
        assert_eq!(rare, Some(10_000 * (u64::from(EVIDENCE_COUNT_MIN) - 1)), "long enough, and seldom");
    }

    /// An accepted append, another leader, another end of the log, or an earlier entry ends the evidence.
    #[test]
    fn evidence_ends() {
        let start = Instant::now();
        let later = start + Duration::from_secs(60);
        let last = Some(log_id(5));
        type Change = fn(&Agreement, Instant) -> Option<OlderCopy>;
        let changes: [Change; 4] = [
            |agreement, _| {
                agreement.note_accepted(&leader(1));
                None
            },
            |agreement, now| agreement.note_missing_at(&leader(2), log_id(9), Some(log_id(5)), now),
            |agreement, now| agreement.note_missing_at(&leader(1), log_id(9), Some(log_id(6)), now),
            |agreement, now| agreement.note_missing_at(&leader(1), log_id(8), Some(log_id(5)), now),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let agreement = Agreement::default();
            assert_eq!(certain_at(&agreement, start, 0..1000), None);
            assert_eq!(change(&agreement, later), None, "change {number}");
            assert_eq!(agreement.note_missing_at(&leader(1), log_id(8), last, later), None, "change {number}");
        }
        let agreement = Agreement::default();
        assert_eq!(certain_at(&agreement, start, 0..1000), None);
        let found = agreement.note_missing_at(&leader(1), log_id(9), last, later);
        assert_eq!(found, Some(OlderCopy { leader_id: 1, term: 1, acknowledged: 9, last: Some(5) }));
    }

    /// A node agrees with one leader at a time.
    #[tokio::test]
    async fn agreement() {
        let agreement = Agreement::default();
        assert!(!agreement.is_with(&leader(1)));
        assert!(!agreement.wait_for(&leader(1), Duration::from_millis(1)).await);
        let first = leader(1);
        let (agrees, ()) = tokio::join!(agreement.wait_for(&first, Duration::from_secs(60)), async {
            tokio::task::yield_now().await;
            agreement.note_accepted(&leader(1));
        });
        assert!(agrees && agreement.is_with(&leader(1)) && !agreement.is_with(&leader(2)));
    }
}
