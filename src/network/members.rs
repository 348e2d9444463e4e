//! Whether a membership change may be proposed, and when a learner may become a voter.
//!
//! openraft proposes every change that it is given. A change to voters that are down cannot be committed, and blocks
//! the old majority too: once a leader has appended the joint configuration, it needs both majorities. So the leader
//! judges a change first, by heartbeats that it sends for this purpose: of each set of voters that the change needs, a
//! majority must respond and must have the log. This does not detect a node that dies between the judgment and the
//! commit.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::Pin;
use std::time::Duration;

use openraft::alias::InstantOf;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, PreconditionFailed, RaftError};
use openraft::metrics::RaftMetrics;
use openraft::raft::{ClientWriteResponse, Precondition};
use openraft::{ChangeMembers, Instant, ServerState};

use super::consensus::write_error;
use super::peer;
use super::rejections::{no_leader, raft_ended, unconfirmed};
use crate::app::ExampleApp;
use crate::config::{CATCH_UP_WAIT, KEEPS_UP_WITHIN, MEMBER_LAG_ENTRIES_MAX, MEMBERS_PROBE_INTERVAL, REQUEST_DEADLINE};
use crate::error::{ApiError, Details, Interrupted};
use crate::types::{ExampleNode, ExampleResponse, LogId, Membership, NodeId, TypeConfig};

type Metrics = RaftMetrics<TypeConfig>;
type Response = ClientWriteResponse<TypeConfig>;

/// A requested membership.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// These voters. Voters that are not among them leave.
    Voters(BTreeSet<NodeId>),
    /// The current voters and this learner.
    With(NodeId),
    /// The current members without this one.
    Without(NodeId),
    /// The current voters with a learner in the place of one of them.
    Swap {
        /// The voter that leaves.
        old: NodeId,
        /// The learner that becomes a voter.
        new: NodeId,
    },
}

/// How strictly a change is judged.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Propose the change in spite of its risk.
    pub force: bool,
    /// Judge the change, and propose nothing.
    pub dry_run: bool,
    /// Whether a change that uses up the last voter that may fail is a risk.
    pub keeps_spare: bool,
}

/// A change to be proposed.
struct Plan {
    change: ChangeMembers<NodeId, ExampleNode>,
    voters: BTreeSet<NodeId>,
    /// The log id of the membership that it was judged by.
    based_on: Option<LogId>,
}

/// The members after a change, or after it would have been made.
pub struct Changed {
    /// The voters.
    pub voters: BTreeSet<NodeId>,
    /// All members.
    pub nodes: BTreeMap<NodeId, ExampleNode>,
    /// Why the change would have been rejected without [`Options::force`].
    pub risk: Option<String>,
}

impl Changed {
    /// The members of a membership.
    pub fn of(membership: &Membership) -> Self {
        let nodes = membership.nodes().map(|(id, node)| (*id, node.clone())).collect();
        Changed { voters: membership.voter_ids().collect(), nodes, risk: None }
    }
}

/// Changes the membership as leader, unless that would leave no majority that responds and has the log.
pub async fn change(app: &ExampleApp, wanted: &Wanted) -> Result<Response, ApiError> {
    let (plan, _) = judge(app, wanted, Options::default()).await?;
    make(app, plan).await
}

/// The same with options; returns the members afterwards.
pub async fn change_with(app: &ExampleApp, wanted: &Wanted, options: Options) -> Result<Changed, ApiError> {
    let (plan, risk) = judge(app, wanted, options).await?;
    if options.dry_run {
        let before = app.raft.metrics().borrow_watched().membership_config.membership().clone();
        let mut changed = Changed { risk, ..Changed::of(&before) };
        // Voters that lose their vote leave.
        changed.nodes.retain(|id, _| !changed.voters.contains(id) || plan.voters.contains(id));
        if let Wanted::Without(id) = wanted {
            changed.nodes.remove(id);
        }
        changed.voters = plan.voters;
        return Ok(changed);
    }
    if let Some(risk) = &risk {
        tracing::warn!("a membership change is made by force: {risk}");
    }
    let response = make(app, plan).await?;
    let membership = response.membership.unwrap_or_default();
    Ok(Changed { risk, ..Changed::of(&membership) })
}

/// Replaces the address of a member as leader, unless the membership is another one than `based_on`.
pub async fn set_node(
    app: &ExampleApp,
    id: NodeId,
    node: ExampleNode,
    based_on: Option<LogId>,
) -> Result<Response, ApiError> {
    let change = ChangeMembers::SetNodes(BTreeMap::from([(id, node)]));
    propose(app, &Plan { change, voters: BTreeSet::new(), based_on }).await
}

async fn make(app: &ExampleApp, plan: Plan) -> Result<Response, ApiError> {
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
///
/// Returns a risky plan, with its risk, only if the options force it.
async fn judge(app: &ExampleApp, wanted: &Wanted, options: Options) -> Result<(Plan, Option<String>), ApiError> {
    let asked_at = InstantOf::<TypeConfig>::now();
    let log_end = app.raft.metrics().borrow_watched().last_log_index.unwrap_or_default();
    let judge = |metrics: &Metrics| Judgment { app, metrics, asked_at, log_end }.of(wanted, options.keeps_spare);
    loop {
        app.raft.trigger().heartbeat().await.map_err(|fatal| raft_ended(&fatal))?;
        let wait = app.raft.wait(Some(MEMBERS_PROBE_INTERVAL));
        let decided = |metrics: &Metrics| !matches!(judge(metrics), Verdict::NotYet(_));
        let metrics = match wait.metrics(decided, "the voters respond").await {
            Ok(metrics) => metrics,
            Err(_) => app.raft.metrics().borrow_watched().clone(),
        };
        match judge(&metrics) {
            Verdict::Ready(plan) => return Ok((plan, None)),
            Verdict::Rejected(error) => return Err(error),
            Verdict::NotYet(late) if asked_at.elapsed() >= app.members_answer_deadline => return late.unless(options),
            Verdict::NotYet(_) => {}
        }
    }
}

enum Verdict {
    Ready(Plan),
    Rejected(ApiError),
    /// Not decided yet.
    NotYet(Late),
}

/// The verdict if nothing more is known at the deadline.
enum Late {
    Ready(Plan),
    Rejected(ApiError),
    Risky {
        plan: Plan,
        risk: String,
        /// What to do instead.
        advice: &'static str,
    },
}

impl Late {
    fn unless(self, options: Options) -> Result<(Plan, Option<String>), ApiError> {
        match self {
            Late::Ready(plan) => Ok((plan, None)),
            Late::Rejected(error) => Err(error),
            Late::Risky { plan, risk, .. } if options.force => Ok((plan, Some(risk))),
            Late::Risky { risk, advice, .. } => {
                // The routes without this option have no `force` either.
                let advice = if options.keeps_spare { advice } else { "" };
                let message = format!("the change was not proposed: {risk}{advice}");
                Err(ApiError::Conflict(Details::not_applied(message)))
            }
        }
    }
}

const ADVICE_NO_MAJORITY: &str =
    "; with `force` it is proposed nevertheless, and then no write succeeds until enough of these nodes are back";
const ADVICE_NO_SPARE: &str = "; add a node first, or replace this one; with `force` the change is made nevertheless";

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
    fn of(&self, wanted: &Wanted, keeps_spare: bool) -> Verdict {
        if self.metrics.state != ServerState::Leader {
            return Verdict::Rejected(no_leader(self.app));
        }
        let membership = self.metrics.membership_config.membership();
        let current = membership.get_joint_config();
        // Only a leader that a majority confirms knows the members.
        if !current.iter().all(|voters| is_majority(voters, |id| self.answers(id))) {
            return Verdict::NotYet(Late::Rejected(unconfirmed()));
        }
        let plan = match self.plan(wanted) {
            Ok(plan) => plan,
            Err(error) => return Verdict::Rejected(error),
        };
        if let Wanted::With(id) | Wanted::Swap { new: id, .. } = wanted
            && let Some(fault) = self.fault_of(*id)
        {
            let risk = format!("a new voter must respond and be caught up, but {fault}");
            return Verdict::NotYet(Late::Risky { plan, risk, advice: ADVICE_NO_MAJORITY });
        }
        let lacking = |which, voters| (self.spare(voters) < 0).then(|| self.lacking(which, voters));
        let risk = current.iter().find_map(|voters| lacking("current", voters));
        if let Some(risk) = risk.or_else(|| lacking("new", &plan.voters)) {
            return Verdict::NotYet(Late::Risky { plan, risk, advice: ADVICE_NO_MAJORITY });
        }
        if keeps_spare && self.spare(&plan.voters) == 0 {
            let before = current.iter().map(|voters| self.spare(voters)).min().unwrap_or_default();
            if before > 0 {
                let risk = format!(
                    "now one more node may fail, and afterwards none: each of the voters {} would be needed for a \
                     majority",
                    listed(&plan.voters)
                );
                return Verdict::NotYet(Late::Risky { plan, risk, advice: ADVICE_NO_SPARE });
            }
            // A voter that has not responded yet may be the spare one.
            if current.iter().any(|voters| voters.len() > 2 && voters.iter().any(|id| !self.answers(*id))) {
                return Verdict::NotYet(Late::Ready(plan));
            }
        }
        Verdict::Ready(plan)
    }

    /// How many of the voters that respond and are caught up may fail before they have no majority; negative if they
    /// have none.
    fn spare(&self, voters: &BTreeSet<NodeId>) -> i64 {
        let ready = voters.iter().filter(|id| self.fault_of(**id).is_none()).count();
        ready as i64 - (voters.len() / 2 + 1) as i64
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
            Wanted::With(id) => {
                check_member_exists(membership, *id)?;
                let mut voters = membership.get_joint_config().last().cloned().unwrap_or_default();
                voters.insert(*id);
                Ok(Plan { change: ChangeMembers::AddVoterIds(BTreeSet::from([*id])), voters, based_on })
            }
            Wanted::Swap { old, new } => {
                check_member_exists(membership, *old)?;
                check_member_exists(membership, *new)?;
                let mut voters = membership.get_joint_config().last().cloned().unwrap_or_default();
                voters.remove(old);
                voters.insert(*new);
                Ok(Plan { change: ChangeMembers::ReplaceAllVoters(voters.clone()), voters, based_on })
            }
            Wanted::Without(id) => {
                check_member_exists(membership, *id)?;
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
    fn lacking(&self, which: &str, voters: &BTreeSet<NodeId>) -> String {
        let faults: Vec<String> = voters.iter().filter_map(|id| self.fault_of(*id)).collect();
        let (needed, ready) = (voters.len() / 2 + 1, voters.len() - faults.len());
        format!(
            "{needed} of the {which} voters {} must respond and be caught up, and {ready} {}: {}",
            listed(voters),
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

/// What a learner lacks to become a voter, for people.
pub type Missing = String;

/// Waits until a node has all data and has kept up with this leader for `steady_for`, but not longer than
/// [`CATCH_UP_WAIT`]. Returns what is missing then.
///
/// A node that keeps up responds, and had each entry within [`KEEPS_UP_WITHIN`], except the last few.
pub async fn wait_until_caught_up(
    app: &ExampleApp,
    id: NodeId,
    steady_for: Duration,
) -> Result<Option<Missing>, ApiError> {
    let begun_at = InstantOf::<TypeConfig>::now();
    let mut probes = VecDeque::new();
    let mut steady_since = None;
    loop {
        app.raft.trigger().heartbeat().await.map_err(|fatal| raft_ended(&fatal))?;
        let metrics = app.raft.metrics().borrow_watched().clone();
        if metrics.state != ServerState::Leader {
            return Err(no_leader(app));
        }
        check_member_exists(metrics.membership_config.membership(), id)?;
        let now = InstantOf::<TypeConfig>::now();
        probes.push_back((now, metrics.last_log_index.unwrap_or_default()));
        // The newest probe that is old enough.
        while probes.get(1).is_some_and(|(asked_at, _)| asked_at.elapsed() >= KEEPS_UP_WITHIN) {
            probes.pop_front();
        }
        let (asked_at, log_end) = probes[0];
        let fault = Judgment { app, metrics: &metrics, asked_at, log_end }.fault_of(id);
        let is_old_enough = asked_at.elapsed() >= KEEPS_UP_WITHIN;
        match &fault {
            Some(_) => steady_since = None,
            None if is_old_enough => {
                let since = *steady_since.get_or_insert(now);
                if since.elapsed() >= steady_for {
                    return Ok(None);
                }
            }
            None => {}
        }
        if begun_at.elapsed() >= CATCH_UP_WAIT {
            return Ok(Some(fault.unwrap_or_else(|| format!("node {id} has only just caught up"))));
        }
        tokio::time::sleep(MEMBERS_PROBE_INTERVAL).await;
    }
}

/// Rejects an id that no member has.
pub fn check_member_exists(membership: &Membership, id: NodeId) -> Result<(), ApiError> {
    if membership.get_node(&id).is_some() {
        return Ok(());
    }
    let message = format!("node {id} is not a member of the cluster");
    Err(ApiError::MemberNotFound(Details::not_applied(message)))
}

fn is_small(lag: u64) -> bool {
    lag <= MEMBER_LAG_ENTRIES_MAX
}

fn is_majority(voters: &BTreeSet<NodeId>, counts: impl Fn(NodeId) -> bool) -> bool {
    2 * voters.iter().filter(|id| counts(**id)).count() > voters.len()
}

fn listed(ids: &BTreeSet<NodeId>) -> String {
    let ids: Vec<String> = ids.iter().map(NodeId::to_string).collect();
    format!("[{}]", ids.join(", "))
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
