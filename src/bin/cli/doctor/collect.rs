//! Asks the endpoints, and all members that they name, what they know.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::stream::{self, StreamExt};
use raft_key_value::body::{ClusterAnswer, MemberRole};
use raft_key_value::node_status::{KnownFollower, KnownMember, NodeStatus};
use raft_key_value::{ClientError, ExampleClient};

use crate::cli::arguments::Connector;

/// Deadline of a request.
const DEADLINE: Duration = Duration::from_secs(3);
/// Addresses that are asked: a member's address comes from other nodes, which may be anything.
const ADDRESSES_MAX: usize = 256;
/// Of those, how many at once.
const AT_ONCE: usize = 32;

/// What was learned of an address.
#[derive(Clone, Debug)]
pub struct Seen {
    pub address: String,
    pub answer: Answer,
    /// The clock of the node, compared with this machine's.
    pub clock: Option<Clock>,
    /// The cluster as the node describes it: `GET /v1/cluster`.
    pub view: Option<ClusterAnswer>,
}

/// What responded at an address.
#[derive(Clone, Debug)]
pub enum Answer {
    /// A node. Of one whose version does not have the status route, only what its metrics say; it has no version then.
    Node(Box<NodeStatus>),
    /// Another server, with what it returned.
    NotANode(String),
    /// Nothing, with the reason.
    Silent(String),
}

/// A clock that was read at some moment of a round trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// How far it was ahead if it was read in the middle.
    pub offset_ms: i64,
    /// Half of the round trip.
    pub uncertain_ms: i64,
}

impl Seen {
    /// The node at the address, if one responded.
    pub fn status(&self) -> Option<&NodeStatus> {
        if let Answer::Node(status) = &self.answer { Some(status) } else { None }
    }

    /// Its cluster, if it said one.
    pub fn cluster_id(&self) -> Option<&str> {
        self.status()?.cluster_id.as_deref()
    }
}

/// Asks these endpoints, then the members that they name, and so on.
pub async fn collect(connector: &Connector, endpoints: &[String]) -> Vec<Seen> {
    let mut seen: Vec<Seen> = Vec::new();
    let mut known: BTreeSet<String> = BTreeSet::new();
    let mut next: Vec<String> = endpoints.to_vec();
    loop {
        next.retain(|address| known.len() < ADDRESSES_MAX && known.insert(address.clone()));
        if next.is_empty() {
            return seen;
        }
        let asked = stream::iter(std::mem::take(&mut next)).map(|address| ask(connector, address)).buffered(AT_ONCE);
        let found: Vec<Seen> = asked.collect().await;
        let members = found.iter().filter_map(Seen::status).flat_map(|status| &status.members);
        next.extend(members.map(|member| member.address.clone()));
        seen.extend(found);
    }
}

async fn ask(connector: &Connector, address: String) -> Seen {
    let client = match connector.connect([address.clone()]) {
        Ok(client) => client.with_deadline(DEADLINE).with_retry_deadline(Duration::ZERO),
        Err(error) => return Seen { address, answer: Answer::Silent(error.to_string()), clock: None, view: None },
    };
    let (sent_at, sent_ms) = (Instant::now(), wall_ms());
    let answer = client.node_status().await;
    let round_trip = sent_at.elapsed();
    match answer {
        Ok(status) => {
            let clock = status.clock_ms.map(|clock_ms| clock_of(clock_ms, sent_ms, round_trip));
            let view = client.cluster().await.ok();
            Seen { address, answer: Answer::Node(Box::new(status)), clock, view }
        }
        Err(error) => {
            let answer = without_status(&client, error).await;
            Seen { address, answer, clock: None, view: None }
        }
    }
}

/// What responds at an address without the status route.
async fn without_status(client: &ExampleClient, error: ClientError) -> Answer {
    match error {
        ClientError::Unreachable { reason, .. } => Answer::Silent(reason),
        // It responded, or began to.
        ClientError::AnswerLost { reason, .. } if !reason.starts_with("it is invalid") => Answer::Silent(reason),
        error => match client.metrics().await {
            Ok(metrics) => {
                let status = NodeStatus { cluster_id: client.cluster_id(), ..of_metrics(&metrics) };
                Answer::Node(Box::new(status))
            }
            Err(_) => Answer::NotANode(error.to_string()),
        },
    }
}

fn of_metrics(metrics: &openraft::RaftMetrics<raft_key_value::TypeConfig>) -> NodeStatus {
    let membership = metrics.membership_config.membership();
    let voters: BTreeSet<u64> = membership.voter_ids().collect();
    let members = membership.nodes().map(|(id, node)| KnownMember {
        id: *id,
        role: if voters.contains(id) { MemberRole::Voter } else { MemberRole::Learner },
        address: node.addr.clone(),
        incarnation: node.incarnation,
    });
    let last_index = metrics.last_log_index.unwrap_or_default();
    let followers = metrics.replication.iter().flatten().filter(|(id, _)| **id != metrics.id);
    let followers = followers.map(|(id, matched)| KnownFollower {
        id: *id,
        lag_entries: matched.map(|log_id| last_index.saturating_sub(log_id.index)),
        ..KnownFollower::default()
    });
    NodeStatus {
        node: metrics.id,
        term: metrics.current_term,
        leader: metrics.current_leader,
        members: members.collect(),
        last_log_index: metrics.last_log_index,
        applied_index: metrics.last_applied.map(|log_id| log_id.index),
        snapshot_index: metrics.snapshot.map(|log_id| log_id.index),
        followers: followers.collect(),
        ..NodeStatus::default()
    }
}

fn wall_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn clock_of(clock_ms: u64, sent_ms: u64, round_trip: Duration) -> Clock {
    let uncertain_ms = i64::try_from(round_trip.as_millis()).unwrap_or(i64::MAX) / 2 + 1;
    let clamped = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    let middle_ms = clamped(sent_ms).saturating_add(uncertain_ms);
    Clock { offset_ms: clamped(clock_ms).saturating_sub(middle_ms), uncertain_ms }
}
