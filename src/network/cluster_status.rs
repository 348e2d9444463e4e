//! `GET /v1/cluster`: the members of the cluster, and how each of them is.
//!
//! A node collects the status of all members (`GET /raft-status`), and adds the leader's figures about its followers. It
//! queries each member once for all requests that arrive at the same time or shortly afterwards.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix_web::http::StatusCode;
use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use tokio::sync::Semaphore;

use super::access::{Caller, ToRead};
use super::lag::LogEnds;
use super::node_status::{self, OnDisk, own_status};
use super::openapi::answers::ClusterErrors;
use super::parameters::Parameters;
use super::peer::Ids;
use super::reply::encode;
use super::request_body::reject_body;
use super::v1;
use crate::app::ExampleApp;
use crate::body::{ClusterAnswer, ClusterMember, MemberRole};
use crate::clock::wall_ms;
use crate::config::{
    CLOCK_ROUND_TRIP_MAX, CLUSTER_STATUS_AT_ONCE, CLUSTER_STATUS_DEADLINE, CLUSTER_STATUS_FIRST_DEADLINE,
    CLUSTER_STATUS_KEPT, Config, PEER_RESPONSE_BYTES_MAX,
};
use crate::connection::{Dialer, read_response};
use crate::error::ApiError;
use crate::headers::{CLUSTER, ENVELOPE};
use crate::node_status::{KnownMember, NodeStatus};
use crate::proofs::Purpose;
use crate::tls::Tls;
use crate::types::NodeId;

/// The parts of a node that describe it and its cluster.
#[derive(Debug)]
pub struct ClusterView {
    /// Where this node's log ended, while it leads.
    pub log_ends: LogEnds,
    /// The last look at the disk.
    pub disk: Kept<OnDisk>,
    /// Held while the disk is examined.
    pub disk_turn: Arc<Semaphore>,
    /// The shortest election timeout.
    pub election_timeout_ms: u64,
    /// The last response.
    cluster: Kept<Bytes>,
    /// Not the connections to Raft's thread, which does not serve these requests.
    http: Dialer,
}

impl ClusterView {
    /// Creates the parts of a node with these settings.
    pub fn new(config: &Config, tls: Option<Arc<Tls>>) -> Self {
        ClusterView {
            log_ends: LogEnds::default(),
            disk: Kept::default(),
            disk_turn: node_status::disk_turn(),
            election_timeout_ms: config.election_timeout_min_ms,
            cluster: Kept::default(),
            http: Dialer::new(tls),
        }
    }
}

/// A result that is computed once for all concurrent callers, and kept for a while.
#[derive(Debug)]
pub struct Kept<T> {
    /// Held by the caller that computes it. If that caller is dropped, another one computes it.
    turn: tokio::sync::Mutex<()>,
    last: Mutex<Option<(Instant, T)>>,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Kept { turn: tokio::sync::Mutex::new(()), last: Mutex::new(None) }
    }
}

impl<T: Clone> Kept<T> {
    /// The last result if it is at most this old, and otherwise a new one.
    pub async fn get(&self, age_max: Duration, make: impl Future<Output = T>) -> T {
        if let Some(last) = self.last(age_max) {
            return last;
        }
        let _turn = self.turn.lock().await;
        // Another request may have made it in the meantime.
        if let Some(last) = self.last(age_max) {
            return last;
        }
        let made = make.await;
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), made.clone()));
        made
    }

    fn last(&self, age_max: Duration) -> Option<T> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().filter(|(at, _)| at.elapsed() <= age_max).map(|(_, made)| made.clone())
    }
}

/// Returns the members of the cluster, with the state of each.
///
/// Every node responds, with or without a leader, within about a second. It queries all members; the leader knows how far
/// they lag. If the leader does not respond, the response is partial: `partial` says why, the members are those that
/// this node knows, and their lag is null. Other figures are null if the member does not respond, or has an older
/// version. Requests at the same time, and up to 0.25 s later, get the same response.
#[utoipa::path(
    get,
    path = "/v1/cluster",
    operation_id = "cluster_status",
    tag = "The cluster",
    responses(
        (
            status = 200,
            description = "The members, ordered by id.",
            body = ClusterAnswer,
            example = json!({
                "cluster_id": "6b4f0d8ed5b7a1c2",
                "leader": 1,
                "term": 3,
                "format_level": 5,
                "members": [
                    {
                        "id": 1, "role": "leader", "address": "127.0.0.1:21001", "version": "0.1.0", "format_level": 5,
                        "reachable": true,
                        "applied_index": 12345, "lag_entries": 0, "lag_ms": 0,
                        "snapshot_index": 12000, "snapshot_age_ms": 60000,
                        "disk_used_bytes": 9000000, "disk_free_bytes": 50000000000_u64,
                        "quota_used_bytes": 4000000, "quota_bytes": 8000000000_u64, "fsync_p99_us": 900,
                        "clock_offset_ms": 0
                    },
                    {
                        "id": 2, "role": "voter", "address": "127.0.0.1:21002", "version": null, "format_level": null,
                        "reachable": false,
                        "applied_index": null, "lag_entries": 700, "lag_ms": 4100,
                        "snapshot_index": null, "snapshot_age_ms": null,
                        "disk_used_bytes": null, "disk_free_bytes": null,
                        "quota_used_bytes": null, "quota_bytes": null, "fsync_p99_us": null,
                        "clock_offset_ms": null
                    }
                ]
            }),
        ),
        ClusterErrors,
    ),
)]
pub async fn cluster_status(app: Caller<ToRead>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    v1::answer(&app, status_of_cluster(&app, &request, payload).await)
}

async fn status_of_cluster(
    app: &ExampleApp,
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    reject_body(app, request, payload).await?;
    Parameters::of(request, &[])?;
    let made = async { Bytes::from(encode(&collect(app).await, 1024)) };
    let body = app.cluster_view.cluster.get(CLUSTER_STATUS_KEPT, made).await;
    let json = (header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    Ok(HttpResponse::build(StatusCode::OK).insert_header(json).body(body))
}

/// The response of a member.
#[derive(Debug, Default)]
struct Heard {
    /// Whether the node with this id, cluster and directory responded.
    reachable: bool,
    /// Whether the node with this id responded, on another data directory.
    is_other_directory: bool,
    /// `None` from a node of an older version.
    status: Option<NodeStatus>,
    clock_offset_ms: Option<i64>,
}

/// Describes the cluster.
pub(super) async fn collect(app: &ExampleApp) -> ClusterAnswer {
    merged(app.id, ask_members(app).await)
}

/// The status of the node that leads, if it is another one that responds.
pub async fn status_of_leader(app: &ExampleApp) -> Option<NodeStatus> {
    let heard = ask_members(app).await;
    leader_in(&heard).filter(|leader| leader.node != app.id).cloned()
}

/// Asks all members for their status.
async fn ask_members(app: &ExampleApp) -> BTreeMap<NodeId, Heard> {
    let begun = Instant::now();
    let own = own_status(app).await;
    let first = ask_all(app, own.members.clone(), begun + CLUSTER_STATUS_FIRST_DEADLINE).await;
    let mut heard: BTreeMap<NodeId, Heard> = first.into_iter().collect();
    heard.insert(app.id, Heard { reachable: true, status: Some(own), clock_offset_ms: Some(0), ..Heard::default() });
    // A node that is behind does not know the newest members.
    let unasked: Vec<KnownMember> = leader_in(&heard).map_or_else(Vec::new, |leader| {
        leader.members.iter().filter(|member| !heard.contains_key(&member.id)).cloned().collect()
    });
    if !unasked.is_empty() {
        heard.extend(ask_all(app, unasked, begun + CLUSTER_STATUS_DEADLINE).await);
    }
    heard
}

async fn ask_all(app: &ExampleApp, members: Vec<KnownMember>, until: Instant) -> Vec<(NodeId, Heard)> {
    let others = members.into_iter().filter(|member| member.id != app.id);
    let asked = others.map(|member| async move {
        let left = until.saturating_duration_since(Instant::now());
        let heard = tokio::time::timeout(left, ask(app, &member)).await;
        (member.id, heard.ok().flatten().unwrap_or_default())
    });
    stream::iter(asked).buffer_unordered(CLUSTER_STATUS_AT_ONCE).collect().await
}

/// Asks a member; `None` if it does not respond, or if another node has its address. A node with its id and another
/// directory is not reachable.
async fn ask(app: &ExampleApp, member: &KnownMember) -> Option<Heard> {
    // The other node may not know the name in its address as its own (`network::browser`).
    let dialer = &app.cluster_view.http;
    let request = dialer.to(Some(member.id)).get(dialer.url(&member.address, "/raft-status"));
    let request = request.header("host", "localhost");
    // The other node does not check this; it names the sender to a person who reads the traffic.
    let ids = Ids::to(&app.store, member.id, member.incarnation).ok()?;
    let request = request.header(ENVELOPE.as_str(), ids.header());
    let (sent_at, sent_ms) = (Instant::now(), wall_ms());
    let response = app.peers.proofs.send(request, Purpose::Own).await.ok()?;
    let round_trip = sent_at.elapsed();
    let status = response.status();
    let cluster_id = response.headers().get(CLUSTER.as_str()).and_then(|value| value.to_str().ok()).map(str::to_owned);
    // A node without a cluster has just been added, and has received nothing yet.
    if cluster_id.is_some() && cluster_id != app.store.identity().cluster_id.map(|own| own.to_string()) {
        return None;
    }
    if status.as_u16() == 404 {
        return Some(Heard { reachable: true, ..Heard::default() });
    }
    let body = read_response(response, PEER_RESPONSE_BYTES_MAX).await.ok()?;
    let status: Result<NodeStatus, ApiError> = serde_json::from_slice(&body).ok()?;
    let status = status.ok()?;
    if status.node != member.id {
        return None;
    }
    if ![0, status.incarnation].contains(&member.incarnation) {
        return Some(Heard { is_other_directory: true, ..Heard::default() });
    }
    let clock_offset_ms = status.clock_ms.and_then(|clock_ms| clock_offset_ms(clock_ms, sent_ms, round_trip));
    Some(Heard { reachable: true, status: Some(status), clock_offset_ms, ..Heard::default() })
}

/// How far another node's clock is ahead of this node's, if the other one was read in the middle of the round trip. It
/// may have been read at any moment of it, so after a long one the result would mean little.
fn clock_offset_ms(clock_ms: u64, sent_ms: u64, round_trip: Duration) -> Option<i64> {
    if round_trip > CLOCK_ROUND_TRIP_MAX {
        return None;
    }
    let middle_ms = sent_ms.saturating_add(round_trip.as_millis() as u64 / 2);
    i64::try_from(i128::from(clock_ms) - i128::from(middle_ms)).ok()
}

/// The node that leads in the newest term, of those that responded.
fn leader_in(heard: &BTreeMap<NodeId, Heard>) -> Option<&NodeStatus> {
    let statuses = heard.values().filter_map(|heard| heard.status.as_ref());
    statuses.filter(|status| status.leads()).max_by_key(|status| status.term)
}

/// The description of the cluster, as node `own_id` gives it.
fn merged(own_id: NodeId, heard: BTreeMap<NodeId, Heard>) -> ClusterAnswer {
    let own = heard.get(&own_id).and_then(|heard| heard.status.clone()).unwrap_or_default();
    let leader = leader_in(&heard);
    let known = leader.unwrap_or(&own);
    // A follower may have learned of a newer leader that does not respond.
    let is_old = leader.is_some_and(|leader| own.leader.is_some_and(|_| own.term > leader.term));
    // The former leader, which this node still follows, may have noticed first that it does not lead any more.
    let followed = own.leader.filter(|id| heard.get(id).is_none_or(|heard| heard.status.is_none()));
    let leader_id = if is_old { own.leader } else { leader.map(|leader| leader.node).or(followed) };
    let partial = match (leader, leader_id) {
        (Some(_), _) if !is_old => None,
        (_, Some(id)) => Some(format!(
            "node {id}, which leads, did not send its status in time: the members are those that node {own_id} knows, and \
             how far they lag is unknown"
        )),
        _ if own.cluster_id.is_none() => Some(format!("node {own_id} belongs to no cluster")),
        _ => Some(format!(
            "node {own_id} knows no leader, and no member says that it leads: the members are those that node {own_id} \
             knows, and how far they lag is unknown"
        )),
    };
    let known = if is_old { &own } else { known };
    let members = known.members.iter().map(|member| {
        let heard = heard.get(&member.id);
        let status = heard.and_then(|heard| heard.status.as_ref());
        let leads = leader_id == Some(member.id);
        let follower = leader.filter(|_| !is_old).and_then(|leader| leader.follower(member.id));
        // What the leader knows of the member is about the directory that it had.
        let is_other_directory = heard.is_some_and(|heard| heard.is_other_directory);
        let lag = |of_follower: Option<u64>| match of_follower {
            _ if leads && partial.is_none() => Some(0),
            of_follower => of_follower.filter(|_| !is_other_directory),
        };
        ClusterMember {
            id: member.id,
            role: if leads { MemberRole::Leader } else { member.role },
            address: member.address.clone(),
            version: status.and_then(|status| status.version.clone()),
            format_level: status.and_then(|status| status.format_level),
            reachable: heard.is_some_and(|heard| heard.reachable),
            applied_index: status.and_then(|status| status.applied_index),
            lag_entries: lag(follower.and_then(|follower| follower.lag_entries)),
            lag_ms: lag(follower.and_then(|follower| follower.lag_ms)),
            snapshot_index: status.and_then(|status| status.snapshot_index),
            snapshot_age_ms: status.and_then(|status| status.snapshot_age_ms),
            disk_used_bytes: status.and_then(|status| status.disk_used_bytes),
            disk_free_bytes: status.and_then(|status| status.disk_free_bytes),
            quota_used_bytes: status.and_then(|status| status.quota_used_bytes),
            quota_bytes: status.and_then(|status| status.quota_bytes),
            fsync_p99_us: status.and_then(|status| status.fsync_p99_us),
            clock_offset_ms: heard.and_then(|heard| heard.clock_offset_ms),
        }
    });
    ClusterAnswer {
        cluster_id: own.cluster_id.clone(),
        leader: leader_id,
        term: known.term.max(own.term),
        format_level: known.state_level.max(own.state_level),
        members: members.collect(),
        partial,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;

    use super::*;
    use crate::node_status::KnownFollower;

    /// A node that knows these members.
    fn status(node: NodeId, leader: Option<NodeId>, term: u64, members: &[NodeId]) -> NodeStatus {
        let member = |id: &NodeId| KnownMember {
            id: *id,
            role: MemberRole::Voter,
            address: format!("10.0.0.{id}:1"),
            incarnation: 7,
        };
        NodeStatus {
            node,
            leader,
            term,
            cluster_id: Some("c".to_owned()),
            members: members.iter().map(member).collect(),
            ..NodeStatus::default()
        }
    }

    fn heard(status: NodeStatus) -> (NodeId, Heard) {
        (status.node, Heard { reachable: true, status: Some(status), clock_offset_ms: Some(3), ..Heard::default() })
    }

    /// The members are the leader's, with the lag that it knows, even if the asked node does not know them all.
    #[test]
    fn merged_with_the_leader() {
        let follower = KnownFollower { id: 3, lag_entries: Some(70), lag_ms: Some(900), silent_ms: None };
        let leader = NodeStatus { followers: vec![follower], ..status(1, Some(1), 4, &[1, 2, 3]) };
        let answer = merged(2, [heard(status(2, Some(1), 4, &[1, 2])), heard(leader)].into());
        assert_eq!((answer.leader, answer.term, &answer.partial), (Some(1), 4, &None));
        let rows: Vec<_> =
            answer.members.iter().map(|row| (row.id, row.reachable, row.role, row.lag_entries)).collect();
        let expected = [
            (1, true, MemberRole::Leader, Some(0)),
            (2, true, MemberRole::Voter, None),
            (3, false, MemberRole::Voter, Some(70)),
        ];
        assert_eq!(rows, expected);
        assert_eq!((answer.members[2].lag_ms, answer.members[2].clock_offset_ms), (Some(900), None));
    }

    /// Without the leader's response the description is partial, and says so.
    #[test]
    fn merged_without_the_leader() {
        let silent = merged(2, [heard(status(2, Some(1), 4, &[1, 2])), (1, Heard::default())].into());
        assert!(silent.partial.as_ref().unwrap().starts_with("node 1, which leads, did not send"), "{silent:?}");
        assert_eq!((silent.leader, silent.members[0].role), (Some(1), MemberRole::Leader));
        assert_eq!((silent.members[0].lag_entries, silent.members[0].reachable), (None, false));
        let none = merged(2, [heard(status(2, None, 4, &[1, 2])), heard(status(1, None, 9, &[1, 2]))].into());
        assert!(none.partial.as_ref().unwrap().contains("knows no leader"), "{none:?}");
        assert_eq!(none.leader, None);
        let resigned = merged(2, [heard(status(2, Some(1), 4, &[1, 2])), heard(status(1, None, 4, &[1, 2]))].into());
        assert_eq!(resigned.leader, None, "{resigned:?}");
        let alone = merged(2, [heard(NodeStatus { cluster_id: None, ..status(2, None, 0, &[]) })].into());
        assert_eq!(alone.partial.as_deref(), Some("node 2 belongs to no cluster"));
        assert!(alone.members.is_empty() && alone.cluster_id.is_none());
        // A deposed leader that has not noticed yet.
        let deposed =
            merged(2, [heard(status(2, Some(3), 5, &[1, 2, 3])), heard(status(1, Some(1), 4, &[1, 2, 3]))].into());
        assert_eq!((deposed.leader, deposed.term), (Some(3), 5));
        assert!(deposed.partial.unwrap().starts_with("node 3, which leads, did not"));
    }

    /// The offset is the difference to the middle of a round trip, and unknown after a long one.
    #[test]
    fn clock_offsets() {
        let ms = Duration::from_millis;
        assert_eq!(clock_offset_ms(1050, 1000, ms(100)), Some(0));
        assert_eq!(clock_offset_ms(1000, 5000, ms(10)), Some(-4005));
        assert_eq!(clock_offset_ms(0, 1000, ms(0)), Some(-1000));
        assert_eq!(clock_offset_ms(u64::MAX, 0, ms(0)), None, "more than fits");
        assert_eq!(clock_offset_ms(1000, 1000, CLOCK_ROUND_TRIP_MAX + ms(1)), None);
    }

    /// A thousand requests at once make one result, also if the first of them ends.
    ///
    /// Method: making hangs for the first request, which is dropped.
    #[tokio::test]
    async fn made_once() {
        let (kept, made) = (Kept::default(), AtomicUsize::new(0));
        let make = || async {
            if made.fetch_add(1, Ordering::Relaxed) == 0 {
                std::future::pending::<()>().await;
            }
            tokio::task::yield_now().await;
            made.load(Ordering::Relaxed)
        };
        const LONG: Duration = Duration::from_secs(3600);
        let first = tokio::time::timeout(Duration::from_millis(20), kept.get(LONG, make()));
        let others = join_all((0..1000).map(|_| kept.get(LONG, make())));
        let (first, others) = tokio::join!(first, others);
        assert!(first.is_err());
        assert!(others.iter().all(|result| *result == 2), "made {made:?} times");
        assert_eq!(kept.get(Duration::ZERO, make()).await, 3, "too old");
    }
}
