//! Whether a membership change may be proposed, and `DELETE /v1/cluster/members/{id}`.
//!
//! openraft proposes every change that it is given. A change to voters that are down cannot be committed, and blocks
//! the old majority too: once a leader has appended the joint configuration, it needs both majorities. So the leader
//! judges a change first, by heartbeats that it sends for this purpose: of each set of voters that the change needs, a
//! majority must respond and must have the log. This does not detect a node that dies between the judgment and the
//! commit.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use openraft::alias::InstantOf;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, PreconditionFailed, RaftError};
use openraft::metrics::RaftMetrics;
use openraft::raft::{ClientWriteResponse, Precondition};
use openraft::{ChangeMembers, Instant, ServerState};

use super::consensus::write_error;
use super::management::on_leader;
use super::openapi::answers::MemberErrors;
use super::openapi::parameters::{ForwardHeader, MemberInPath};
use super::parameters::Parameters;
use super::peer;
use super::rejections::{no_leader, raft_ended, unconfirmed};
use super::request_body::reject_body;
use super::v1::{self, json_answer};
use crate::app::ExampleApp;
use crate::body::{Member, MemberRemoved, MemberRole};
use crate::config::{MEMBER_LAG_ENTRIES_MAX, MEMBERS_PROBE_INTERVAL, REQUEST_DEADLINE};
use crate::error::{ApiError, Details, Interrupted};
use crate::types::{ExampleNode, ExampleResponse, LogId, NodeId, TypeConfig};

type Metrics = RaftMetrics<TypeConfig>;
type Response = ClientWriteResponse<TypeConfig>;

/// A requested membership.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// These voters. Voters that are not among them leave.
    Voters(BTreeSet<NodeId>),
    /// The current members without this one.
    Without(NodeId),
}

/// A change to be proposed.
struct Plan {
    change: ChangeMembers<NodeId, ExampleNode>,
    voters: BTreeSet<NodeId>,
    /// The log id of the membership that it was judged by.
    based_on: Option<LogId>,
}

/// Changes the membership as leader, unless that would leave no majority that responds and has the log.
pub async fn change(app: &ExampleApp, wanted: &Wanted) -> Result<Response, ApiError> {
    let plan = judge(app, wanted).await?;
    let change = std::pin::pin!(propose(app, &plan));
    if plan.voters.contains(&app.id) {
        return change.await;
    }
    finish_without_leading(app, &plan, change).await
}

async fn propose(app: &ExampleApp, plan: &Plan) -> Result<Response, ApiError> {
    let unchanged = Precondition::LastMembershipLogId { last_membership_log_id: plan.based_on };
    let changed = app.raft.change_membership_if(plan.change.clone(), false, [unchanged]).await;
    changed.map_err(|error| match &error {
        RaftError::APIError(ClientWriteError::PreconditionFailed(
            PreconditionFailed::LastMembershipLogIdMismatch { expected, .. },
        )) if *expected == plan.based_on => ApiError::Conflict(Details::not_applied(
            "another membership change was made first: check /metrics, and retry if needed",
        )),
        _ => write_error(&error),
    })
}

/// Waits for a change that removes this leader.
///
/// The other voters may elect a leader before this node learns that the change is committed; a single remaining voter
/// does so at once. This node then gets no more entries, and asks the new voters whether it is still a member.
async fn finish_without_leading(
    app: &ExampleApp,
    plan: &Plan,
    mut change: Pin<&mut impl Future<Output = Result<Response, ApiError>>>,
) -> Result<Response, ApiError> {
    let wait = app.raft.wait(None);
    tokio::select! {
        biased;
        result = &mut change => return result,
        _ = wait.metrics(|metrics| metrics.state != ServerState::Leader, "this node is no longer the leader") => {}
    }
    let deposed_at = InstantOf::<TypeConfig>::now();
    while deposed_at.elapsed() < REQUEST_DEADLINE {
        if let Ok(result) = tokio::time::timeout(MEMBERS_PROBE_INTERVAL, &mut change).await {
            return result;
        }
        let last = app.raft.metrics().borrow_watched().membership_config.clone();
        let membership = last.membership();
        // Until the second of the two entries this node is a member, and learns the result of the change.
        if membership.get_joint_config().as_slice() != [plan.voters.clone()] {
            continue;
        }
        for (id, node) in membership.nodes().filter(|(id, _)| plan.voters.contains(id)) {
            let answered = peer::ask_read_index(app, *id, node, REQUEST_DEADLINE).await;
            if let (Err(ApiError::NotMember(_)), Some(log_id)) = (answered, *last.log_id()) {
                let membership = Some(membership.clone());
                return Ok(ClientWriteResponse { log_id, data: ExampleResponse::default(), membership });
            }
        }
    }
    Err(ApiError::OutcomeUnknown(Interrupted::unknown(
        "the leader changed during the request: the membership change may or may not have been made; check /metrics on \
         another node",
    )))
}

/// Waits until the voters that a change needs have responded, for at most [`ExampleApp::members_answer_deadline`].
async fn judge(app: &ExampleApp, wanted: &Wanted) -> Result<Plan, ApiError> {
    let asked_at = InstantOf::<TypeConfig>::now();
    let log_end = app.raft.metrics().borrow_watched().last_log_index.unwrap_or_default();
    let judge = |metrics: &Metrics| Judgment { app, metrics, asked_at, log_end }.of(wanted);
    loop {
        app.raft.trigger().heartbeat().await.map_err(|fatal| raft_ended(&fatal))?;
        let wait = app.raft.wait(Some(MEMBERS_PROBE_INTERVAL));
        let decided = |metrics: &Metrics| !matches!(judge(metrics), Verdict::NotYet(_));
        let metrics = match wait.metrics(decided, "the voters respond").await {
            Ok(metrics) => metrics,
            Err(_) => app.raft.metrics().borrow_watched().clone(),
        };
        match judge(&metrics) {
            Verdict::Ready(plan) => return Ok(plan),
            Verdict::Rejected(error) => return Err(error),
            Verdict::NotYet(error) if asked_at.elapsed() >= app.members_answer_deadline => return Err(error),
            Verdict::NotYet(_) => {}
        }
    }
}

enum Verdict {
    Ready(Plan),
    Rejected(ApiError),
    /// Not decided yet. The error is for the case that the deadline expires.
    NotYet(ApiError),
}

/// What a leader knows of the members since the change was requested.
struct Judgment<'a> {
    app: &'a ExampleApp,
    metrics: &'a Metrics,
    /// Responses to earlier requests do not count.
    asked_at: InstantOf<TypeConfig>,
    /// The last index of the log at that time.
    log_end: u64,
}

impl Judgment<'_> {
    fn of(&self, wanted: &Wanted) -> Verdict {
        if self.metrics.state != ServerState::Leader {
            return Verdict::Rejected(no_leader(self.app));
        }
        let membership = self.metrics.membership_config.membership();
        let current = membership.get_joint_config();
        // Only a leader that a majority confirms knows the members.
        if !current.iter().all(|voters| is_majority(voters, |id| self.answers(id))) {
            return Verdict::NotYet(unconfirmed());
        }
        let plan = match self.plan(wanted) {
            Ok(plan) => plan,
            Err(error) => return Verdict::Rejected(error),
        };
        let named = current.iter().map(|voters| ("current", voters)).chain([("new", &plan.voters)]);
        for (which, voters) in named {
            if !is_majority(voters, |id| self.answers(id) && self.lag(id).is_some_and(is_small)) {
                let message = self.unready(which, voters);
                return Verdict::NotYet(ApiError::Conflict(Details::not_applied(message)));
            }
        }
        Verdict::Ready(plan)
    }

    fn plan(&self, wanted: &Wanted) -> Result<Plan, ApiError> {
        let membership = self.metrics.membership_config.membership();
        let based_on = *self.metrics.membership_config.log_id();
        let rejected = |message: String| Err(ApiError::Conflict(Details::not_applied(message)));
        match wanted {
            Wanted::Voters(voters) => {
                if let Some(id) = voters.iter().find(|id| membership.get_node(id).is_none()) {
                    return rejected(format!("node {id} is not a member; add it with POST /add-learner first"));
                }
                let change = ChangeMembers::ReplaceAllVoters(voters.clone());
                Ok(Plan { change, voters: voters.clone(), based_on })
            }
            Wanted::Without(id) => {
                if membership.get_node(id).is_none() {
                    let message = format!("node {id} is not a member of the cluster");
                    return Err(ApiError::MemberNotFound(Details::not_applied(message)));
                }
                let voters = membership.get_joint_config().last().cloned().unwrap_or_default();
                let left: BTreeSet<NodeId> = voters.into_iter().filter(|voter| voter != id).collect();
                if left.is_empty() {
                    return rejected(format!("node {id} is the only voter, and a cluster must have one"));
                }
                let one = BTreeSet::from([*id]);
                let votes = membership.voter_ids().any(|voter| voter == *id);
                let change = if votes { ChangeMembers::RemoveVoters(one) } else { ChangeMembers::RemoveNodes(one) };
                Ok(Plan { change, voters: left, based_on })
            }
        }
    }

    /// Whether a node has responded since the change was requested.
    fn answers(&self, id: NodeId) -> bool {
        id == self.app.id || self.last_answer(id).is_some_and(|answered_at| answered_at >= self.asked_at)
    }

    /// When the last request was sent to which a node has responded.
    fn last_answer(&self, id: NodeId) -> Option<InstantOf<TypeConfig>> {
        let heartbeats = self.metrics.heartbeat.as_ref()?;
        heartbeats.get(&id).copied().flatten().map(|answered| answered.into_inner())
    }

    /// How many of the entries in the log a node lacks; `None` if nothing is known of its log.
    fn lag(&self, id: NodeId) -> Option<u64> {
        if id == self.app.id {
            return Some(0);
        }
        let matched = self.metrics.replication.as_ref()?.get(&id).copied().flatten()?;
        Some(self.log_end.saturating_sub(matched.index))
    }

    /// The voters that are missing from a majority, and why.
    fn unready(&self, which: &str, voters: &BTreeSet<NodeId>) -> String {
        let faults: Vec<String> = voters.iter().filter_map(|id| self.fault_of(*id)).collect();
        let (needed, ready) = (voters.len() / 2 + 1, voters.len() - faults.len());
        let listed: Vec<String> = voters.iter().map(NodeId::to_string).collect();
        format!(
            "the change was not proposed: {needed} of the {which} voters [{}] must respond and be caught up, and {ready} \
             {}: {}",
            listed.join(", "),
            if ready == 1 { "does" } else { "do" },
            faults.join("; "),
        )
    }

    fn fault_of(&self, id: NodeId) -> Option<String> {
        if !self.answers(id) {
            return Some(match self.last_answer(id) {
                Some(answered_at) => format!("node {id} has not responded for {}", seconds(answered_at.elapsed())),
                None => format!("node {id} has not responded to this leader yet"),
            });
        }
        match self.lag(id) {
            Some(lag) if is_small(lag) => None,
            Some(lag) => Some(format!("node {id} responds, but is {lag} entries behind")),
            None => {
                Some(format!("node {id} responds, but has not received any of the {} entries yet", self.log_end + 1))
            }
        }
    }
}

fn is_small(lag: u64) -> bool {
    lag <= MEMBER_LAG_ENTRIES_MAX
}

fn is_majority(voters: &BTreeSet<NodeId>, counts: impl Fn(NodeId) -> bool) -> bool {
    2 * voters.iter().filter(|id| counts(**id)).count() > voters.len()
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// Removes a member, which may be down.
///
/// The member may be a learner, a voter or the leader. Returns 409 unless a majority of the remaining voters responds
/// and is caught up. The id of a removed node may be used again, with another data directory.
#[utoipa::path(
    delete,
    path = "/v1/cluster/members/{id}",
    operation_id = "remove_member",
    tag = "The cluster",
    params(MemberInPath, ForwardHeader),
    responses(
        (
            status = 200,
            description = "The node is no longer a member.",
            body = MemberRemoved,
            example = json!({
                "removed": 3,
                "members": [
                    {"id": 1, "role": "leader", "address": "127.0.0.1:21001"},
                    {"id": 2, "role": "voter", "address": "127.0.0.1:21002"}
                ]
            }),
        ),
        MemberErrors,
    ),
)]
pub async fn remove_member(app: web::Data<ExampleApp>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    v1::answer(&app, remove(&app, &request, payload).await)
}

async fn remove(
    app: &web::Data<ExampleApp>,
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    reject_body(app, request, payload).await?;
    Parameters::of(request, &[])?;
    let id = node_id_from(request.match_info().query("id"))?;
    let leader = app.clone();
    let change = async move { change(&leader, &Wanted::Without(id)).await };
    let leader_id = app.id;
    on_leader(app, request, Bytes::new(), change, |response| {
        let members = members_after(response, leader_id);
        json_answer(StatusCode::OK, &MemberRemoved { removed: id, members })
    })
    .await
}

/// Parses a node id. It must be in canonical decimal form, so that each id has one path.
pub(crate) fn node_id_from(text: &str) -> Result<NodeId, ApiError> {
    let id = text.parse().ok().filter(|id: &NodeId| *id > 0 && id.to_string() == text);
    let message = format!("a node id must be an integer from 1 to {}, without a sign or leading zeros", NodeId::MAX);
    id.ok_or_else(|| ApiError::bad_request("invalid_node_id", message))
}

fn members_after(response: &Response, leader_id: NodeId) -> Vec<Member> {
    let Some(membership) = &response.membership else { return Vec::new() };
    let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
    let role_of = |id| match voters.contains(&id) {
        true if id == leader_id => MemberRole::Leader,
        true => MemberRole::Voter,
        false => MemberRole::Learner,
    };
    let members = membership.nodes();
    members.map(|(id, node)| Member { id: *id, role: role_of(*id), address: node.addr.clone() }).collect()
}
