//! A leader whose process has ended is noticed at once, without waiting for the election timeout.
//!
//! A node is **certain** that its leader is gone if both hold:
//!
//! * All connections on which the leader sent RPCs to it are closed. The system closes them when a process ends. It
//!   does not while a process is slow or paused, and a lost network leaves them open.
//! * New connections to the leader's address are refused: no process listens there. A paused process, and one without
//!   free descriptors, leave connections in the queue of the system, which accepts them. A lost network, and a machine
//!   that is down, let them time out.
//!
//! A firewall may cause both at one node while the leader works. So certainty alone elects no leader. A node that is
//! certain asks the other voters for a pre-vote that says so ([`VoteRequest::leadership_transfer`]). A voter that is
//! certain as well grants it, if the log of the candidate has everything in its own; any other voter judges it like
//! every pre-vote, and denies it as long as its leader's lease lasts. Only with the grants of a majority does the node
//! stand for election. Safety never depends on certainty: a vote needs the same majority and the same log as ever.
//!
//! The candidate stands by a leader transfer to itself, because openraft's voters grant such a vote although they have
//! heard the leader lately. In case of doubt, everything is left to the election timeout.

use std::collections::BTreeSet;
use std::time::Instant;

use actix_web::web;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openraft::network::RPCOption;
use openraft::raft::{TransferLeaderRequest, VoteRequest, VoteResponse};
use openraft::{RaftNetworkFactory, RaftNetworkV2};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::raft_network_impl::ExampleNetworkFactory;
use crate::app::{ExampleApp, Suspect};
use crate::config::{
    LEADER_LOSS_PAUSE_MAX, LEADER_LOSS_PAUSE_MIN, LEADER_LOSS_RPC_DEADLINE, LEADER_LOSS_STAGGER, LEADER_PROBE_DEADLINE,
};
use crate::types::{LeaderId, LogId, NodeId, TypeConfig, Vote};

/// Notices when the leader's process has ended, and then stands for election with a majority that has noticed it, too.
pub async fn watch_leader(app: web::Data<ExampleApp>) {
    // Elections are rare, so its connections are made when they are needed.
    let mut network = ExampleNetworkFactory::quiet(app.store.clone(), app.peers.clone(), app.tls.clone());
    let mut closed = app.peers.closed_links();
    loop {
        closed.borrow_and_update();
        if let Some(suspect) = app.suspect() {
            pursue(&app, &mut network, &suspect).await;
        }
        // Cannot fail: the sender is in `app`.
        let _ = closed.changed().await;
    }
}

/// Whether another node may stand for election because its leader is gone, and this node is certain of that as well.
/// `None` if Raft must judge the pre-vote.
pub fn pre_vote(app: &ExampleApp, request: &VoteRequest<TypeConfig>) -> Option<VoteResponse<TypeConfig>> {
    let own = app.vote();
    if !request.leadership_transfer || !app.peers.is_gone(&own) {
        return None;
    }
    let last = app.store.log.last().ok()?;
    Some(VoteResponse::new(own, last, is_granted(request, &own, last)))
}

fn is_granted(request: &VoteRequest<TypeConfig>, own: &Vote, last: Option<LogId>) -> bool {
    request.vote.leader_id > own.leader_id && request.last_log_id >= last
}

/// Finds out whether the leader is gone. If so, asks the other voters until one of them or this node stands for
/// election, for at most an election timeout.
async fn pursue(app: &ExampleApp, network: &mut ExampleNetworkFactory, suspect: &Suspect) {
    let began = Instant::now();
    let is_over = || app.is_stopping() || app.suspect().as_ref() != Some(suspect);
    let is_late = || began.elapsed() >= app.leader_lease();
    let Suspect { vote, leader } = suspect;
    let leader_id = vote.leader_id.node_id;
    // When a process ends, its listener may be closed after its connections.
    let mut pauses = Pauses::default();
    while !is_refused(&leader.addr).await {
        sleep(pauses.next()).await;
        if is_over() || is_late() {
            return;
        }
        // Not at once: a leader that hands over closes its connections, too, just before the next one is known.
        if pauses.are_three() {
            tracing::info!(
                "node {leader_id} has closed its connections, but its address accepts new ones: it remains the leader \
                 unless its heartbeats stop"
            );
        }
    }
    if is_over() {
        return;
    }
    app.peers.set_gone(*vote);
    tracing::info!("node {leader_id} has ended: its address refuses connections");
    sleep(LEADER_LOSS_STAGGER * rank(app, leader_id)).await;
    let mut pauses = Pauses::default();
    while !is_over() && !is_late() && app.may_stand() {
        let last = app.store.log.last().unwrap_or_default();
        if has_majority(app, network, suspect, last).await {
            if is_over() {
                return;
            }
            let transfer = TransferLeaderRequest::new(*vote, app.id, last);
            // Raft waits until its log is on disk.
            let stood = timeout(LEADER_LOSS_RPC_DEADLINE, app.raft.handle_transfer_leader(transfer)).await;
            tracing::info!("standing for election: a majority has lost the leader");
            tracing::debug!("stood for election: {stood:?}");
        } else if pauses.is_first() {
            tracing::info!("not standing for election: no majority has lost the leader, or has this node's log");
        }
        sleep(pauses.next()).await;
    }
}

/// Pauses that grow, with a random part.
#[derive(Default)]
struct Pauses {
    count: u32,
}

impl Pauses {
    fn is_first(&self) -> bool {
        self.count == 0
    }

    /// Whether the third pause has just passed, about 50 ms after the first began.
    fn are_three(&self) -> bool {
        self.count == 3
    }

    fn next(&mut self) -> std::time::Duration {
        let pause = LEADER_LOSS_PAUSE_MIN.saturating_mul(1 << self.count.min(10)).min(LEADER_LOSS_PAUSE_MAX);
        self.count += 1;
        // Without random numbers the pauses are the same on all nodes.
        let random = getrandom::u32().unwrap_or_default();
        pause + pause.mul_f64(f64::from(random) / f64::from(u32::MAX) / 2.0)
    }
}

/// Whether nothing listens on any of the addresses that a name stands for.
async fn is_refused(addr: &str) -> bool {
    let probe = async {
        let Ok(addrs) = tokio::net::lookup_host(addr).await else { return false };
        let mut is_refused = false;
        for addr in addrs {
            match TcpStream::connect(addr).await {
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => is_refused = true,
                // Also if this node is out of descriptors.
                _ => return false,
            }
        }
        is_refused
    };
    timeout(LEADER_PROBE_DEADLINE, probe).await.unwrap_or(false)
}

/// How many voters ask before this one. If several stand for election, the one with the greatest id wins, so they ask
/// in that order.
fn rank(app: &ExampleApp, leader_id: NodeId) -> u32 {
    let greater = app.membership().voter_ids().filter(|id| *id > app.id && *id != leader_id).count();
    u32::try_from(greater).unwrap_or(u32::MAX).min(10)
}

/// Whether a majority would vote for this node because the leader is gone.
async fn has_majority(
    app: &ExampleApp,
    network: &mut ExampleNetworkFactory,
    suspect: &Suspect,
    last_log_id: Option<LogId>,
) -> bool {
    let Some(term) = suspect.vote.leader_id.term.checked_add(1) else { return false };
    let vote = Vote { leader_id: LeaderId { term, node_id: app.id }, committed: false };
    let request = VoteRequest::<TypeConfig> { vote, last_log_id, leadership_transfer: true };
    let membership = app.membership();
    let leader_id = suspect.vote.leader_id.node_id;
    let mut asked = FuturesUnordered::new();
    for id in membership.voter_ids().filter(|id| ![app.id, leader_id].contains(id)) {
        let Some(node) = membership.get_node(&id) else { continue };
        let (mut client, request) = (network.new_client(id, node).await, request.clone());
        asked.push(async move {
            let answer = client.pre_vote(request, RPCOption::new(LEADER_LOSS_RPC_DEADLINE)).await;
            (id, answer.is_ok_and(|answer| answer.vote_granted))
        });
    }
    let mut granted = BTreeSet::from([app.id]);
    while !is_majority(membership.get_joint_config(), &granted) {
        match asked.next().await {
            Some((id, true)) => {
                granted.insert(id);
            }
            Some((_, false)) => {}
            None => return false,
        }
    }
    true
}

/// Whether these nodes are a majority of each set of voters.
fn is_majority(configs: &[BTreeSet<NodeId>], nodes: &BTreeSet<NodeId>) -> bool {
    !configs.is_empty() && configs.iter().all(|voters| 2 * voters.intersection(nodes).count() > voters.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_id(term: u64, index: u64) -> LogId {
        LogId { leader_id: LeaderId { term, node_id: 3 }, index }
    }

    /// A pre-vote because of a lost leader is granted to a later term whose candidate has the whole log.
    #[test]
    fn pre_votes() {
        let own = Vote { leader_id: LeaderId { term: 4, node_id: 3 }, committed: true };
        let request = |term, last_log_id| VoteRequest::<TypeConfig> {
            vote: Vote { leader_id: LeaderId { term, node_id: 1 }, committed: false },
            last_log_id,
            leadership_transfer: true,
        };
        let last = Some(log_id(4, 9));
        for (term, candidate_last, granted) in [
            (5, Some(log_id(4, 9)), true),
            (5, Some(log_id(4, 10)), true),
            (5, Some(log_id(4, 8)), false),
            (5, Some(log_id(3, 99)), false),
            (5, None, false),
            (4, Some(log_id(4, 9)), false),
            (3, Some(log_id(4, 9)), false),
        ] {
            assert_eq!(is_granted(&request(term, candidate_last), &own, last), granted, "{term} {candidate_last:?}");
        }
        assert!(is_granted(&request(5, None), &own, None));
    }

    /// A majority counts in each set of voters.
    #[test]
    fn majorities() {
        let set = |ids: &[NodeId]| ids.iter().copied().collect::<BTreeSet<_>>();
        let (old, new) = (set(&[1, 2, 3]), set(&[3, 4, 5]));
        assert!(is_majority(std::slice::from_ref(&old), &set(&[1, 2])));
        assert!(!is_majority(std::slice::from_ref(&old), &set(&[1, 4, 5])));
        assert!(!is_majority(&[old.clone(), new.clone()], &set(&[1, 2, 3])));
        assert!(is_majority(&[old, new], &set(&[1, 3, 4])));
        assert!(!is_majority(&[], &set(&[1])), "a node without a membership");
        assert!(!is_majority(&[set(&[1, 2])], &set(&[1])));
    }

    /// An address refuses connections only if nothing listens on it.
    ///
    /// Method: probe a listener, also one whose queue is full, and its address after it was closed.
    #[tokio::test]
    async fn refusals() {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let listens_on = listener.local_addr().unwrap();
        let addr = listens_on.to_string();
        assert!(!is_refused(&addr).await);
        // The listener accepts none of them.
        let connecting = (0..8).map(|_| timeout(LEADER_PROBE_DEADLINE, TcpStream::connect(listens_on)));
        let held = futures_util::future::join_all(connecting).await;
        assert!(!is_refused(&addr).await, "the queue is full");
        drop((listener, held));
        assert!(is_refused(&addr).await);
        assert!(!is_refused("no.such.host.invalid:1").await, "an unknown name proves nothing");
    }
}
