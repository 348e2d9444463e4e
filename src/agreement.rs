//! Whether this node still has the entries that its leader counts on.
//!
//! A leader remembers up to which entry each node has acknowledged its log, and never resends those entries. A node
//! that was started on an older copy of its data directory has forgotten some of them. openraft does not notice (in a
//! debug build, the leader panics): the leader continues to count the former acknowledgments, and the node never gets
//! an entry again.
//!
//! The node itself can detect this. **An append without entries tells what the leader counts on**: its `prev_log_id` is
//! the last entry that the leader knows this node to have. The leader knows that only from this node's response to an
//! append or a snapshot of the same leader in the same term, and no leader ever removes entries that it has replicated.
//! So if the entry is missing, the node or its disk has lost it. An append *with* entries proves nothing: a leader that
//! searches for the point up to which a log agrees with its own tries entries that the node need not have.
//!
//! So after each start, and for each new leader, a node first has to **agree** with the leader: it accepts an append,
//! which proves that it has the entries that the leader counts on. From then on its log only grows under this leader.
//! Until then
//!
//! * an append without entries that refers to a missing entry is rejected, and is evidence;
//! * an append with entries that refers to a missing entry waits for the leader's next heartbeat, since openraft's
//!   response, a conflict, would be wrong if the leader counts on the entry;
//! * a snapshot of a leader that counts on a missing entry is rejected: installing it would hide the loss.
//!
//! **An append with entries that the log already has** sends them again. openraft compares only log ids, so it would
//! take an entry with the same log id and another payload for the node's own, and the nodes would differ silently. A
//! correct leader has one entry for each log id. So one of the two entries is not the leader's. If it is this node's,
//! the leader continues to send the other, and counts on nothing from that index on until this node has accepted it.
//! Each such append is rejected, and is evidence until an append that covers the index is accepted.
//!
//! The node gives up on its data after [`EVIDENCE_COUNT_MIN`] rejections over [`EVIDENCE_MIN`], if no append that
//! contradicts the evidence was accepted meanwhile, and the leader, its term and the end of the log, or the entry,
//! stayed the same. That is more than certainty requires, as a margin for cases that this reasoning misses.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::config::{EVIDENCE_COUNT_MIN, EVIDENCE_MIN};
use crate::types::{LogId, NodeId, Vote};

/// Evidence that the data directory is an older copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OlderCopy {
    /// The leader.
    pub leader_id: NodeId,
    /// The leader's term.
    pub term: u64,
    /// The last entry that this node has acknowledged to that leader.
    pub acknowledged: u64,
    /// The last entry of its log, if there is one.
    pub last: Option<u64>,
}

/// Evidence that the log has another entry than the leader's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherEntry {
    /// The leader.
    pub leader_id: NodeId,
    /// The leader's term.
    pub term: u64,
    /// The index of the entry.
    pub index: u64,
    /// The term of the entry.
    pub entry_term: u64,
}

/// Whether this node has the entries that its leader counts on.
#[derive(Debug)]
pub struct Agreement {
    /// The leader that the node agrees with.
    agreed: watch::Sender<Option<Vote>>,
    evidence: Mutex<AllEvidence>,
    /// Whether there is evidence. If not, an accepted append need not take the lock.
    has_evidence: AtomicBool,
}

#[derive(Debug, Default)]
struct AllEvidence {
    missing: Option<Missing>,
    other_entry: Option<(Evidence, LogId)>,
}

/// Evidence that an entry is missing which the leader counts on.
#[derive(Debug)]
struct Missing {
    evidence: Evidence,
    acknowledged: LogId,
    last: Option<LogId>,
}

/// How often one leader has sent the same, and since when.
#[derive(Debug)]
struct Evidence {
    vote: Vote,
    since: Instant,
    count: u32,
}

impl Evidence {
    fn new(vote: Vote, since: Instant) -> Self {
        Evidence { vote, since, count: 0 }
    }

    /// Counts one more; returns whether that is certain.
    fn add(&mut self, now: Instant) -> bool {
        self.count += 1;
        self.count >= EVIDENCE_COUNT_MIN && now.duration_since(self.since) >= EVIDENCE_MIN
    }
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

    /// Notes that an append of this leader was accepted, which covers the log up to `last_covered`.
    pub fn note_accepted(&self, leader: &Vote, last_covered: Option<LogId>) {
        if self.has_evidence.load(Ordering::Relaxed) {
            let covered = last_covered.map(|log_id| log_id.index);
            let mut held = self.lock();
            held.missing = None;
            held.other_entry.take_if(|(evidence, log_id)| evidence.vote != *leader || covered >= Some(log_id.index));
            self.has_evidence.store(held.other_entry.is_some(), Ordering::Relaxed);
        }
        self.agreed.send_if_modified(|agreed| agreed.replace(*leader) != Some(*leader));
    }

    /// Whether this leader counts on an entry that is missing here.
    pub fn is_in_doubt(&self, leader: &Vote) -> bool {
        self.has_evidence.load(Ordering::Relaxed)
            && self.lock().missing.as_ref().is_some_and(|missing| missing.evidence.vote == *leader)
    }

    /// Waits until an append of this leader was accepted; returns whether that happened in time.
    pub async fn wait_for(&self, leader: &Vote, within: Duration) -> bool {
        let mut agreed = self.agreed.subscribe();
        let accepted = agreed.wait_for(|agreed| agreed.as_ref() == Some(leader));
        tokio::time::timeout(within, accepted).await.is_ok()
    }

    /// Notes that this leader counts on an entry that is missing here; the log ends with `last`. Returns the evidence
    /// once it is certain.
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
        let new = || Missing { evidence: Evidence::new(*leader, now), acknowledged, last };
        let found = held.missing.get_or_insert_with(new);
        if found.evidence.vote != *leader || found.last != last || acknowledged.index < found.acknowledged.index {
            *found = new();
        }
        found.acknowledged = acknowledged;
        found.evidence.add(now).then_some(OlderCopy {
            leader_id: leader.leader_id.node_id,
            term: leader.leader_id.term,
            acknowledged: acknowledged.index,
            last: last.map(|last| last.index),
        })
    }

    /// Notes that an append of this leader has another entry under this log id than the log, where it is not known to
    /// be committed. Returns the evidence once it is certain.
    pub fn note_other_entry(&self, leader: &Vote, log_id: LogId) -> Option<OtherEntry> {
        self.note_other_entry_at(leader, log_id, Instant::now())
    }

    fn note_other_entry_at(&self, leader: &Vote, log_id: LogId, now: Instant) -> Option<OtherEntry> {
        let mut held = self.lock();
        self.has_evidence.store(true, Ordering::Relaxed);
        let new = || (Evidence::new(*leader, now), log_id);
        let found = held.other_entry.get_or_insert_with(new);
        if found.0.vote != *leader || found.1 != log_id {
            *found = new();
        }
        found.0.add(now).then_some(OtherEntry {
            leader_id: leader.leader_id.node_id,
            term: leader.leader_id.term,
            index: log_id.index,
            entry_term: log_id.leader_id.term,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, AllEvidence> {
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

    /// Notes a missing entry at each of these times; returns the first time at which the evidence was certain.
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
                agreement.note_accepted(&leader(1), None);
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

    /// It is certain that the leader has another entry only if it continues to send it. Evidence ends with an accepted
    /// append that covers the entry, and with another leader or entry, but not with a heartbeat that ends before it.
    #[test]
    fn another_entry() {
        let start = Instant::now();
        let later = start + Duration::from_secs(60);
        let sent =
            |agreement: &Agreement, term, index, now| agreement.note_other_entry_at(&leader(term), log_id(index), now);
        type Change = fn(&Agreement);
        let rows: [(&str, Change, bool); 5] = [
            ("nothing", |_| (), true),
            ("a heartbeat that ends before it", |agreement| agreement.note_accepted(&leader(1), Some(log_id(8))), true),
            ("an append that covers it", |agreement| agreement.note_accepted(&leader(1), Some(log_id(9))), false),
            ("a heartbeat of another leader", |agreement| agreement.note_accepted(&leader(2), None), false),
            ("another entry", |agreement| assert_eq!(agreement.note_other_entry(&leader(1), log_id(7)), None), false),
        ];
        for (what, change, is_certain) in rows {
            let agreement = Agreement::default();
            for _ in 0..100 {
                assert_eq!(sent(&agreement, 1, 9, start), None, "often, and in too short a time");
            }
            change(&agreement);
            let expected = OtherEntry { leader_id: 1, term: 1, index: 9, entry_term: 1 };
            assert_eq!(sent(&agreement, 1, 9, later), is_certain.then_some(expected), "{what}");
        }
        let agreement = Agreement::default();
        assert_eq!(sent(&agreement, 1, 9, start), None);
        assert_eq!(sent(&agreement, 1, 9, later), None, "long enough, and seldom");
        assert!(!agreement.is_in_doubt(&leader(1)), "nothing is missing");
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
            agreement.note_accepted(&leader(1), None);
        });
        assert!(agrees && agreement.is_with(&leader(1)) && !agreement.is_with(&leader(2)));
    }
}
