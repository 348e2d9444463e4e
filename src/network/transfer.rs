//! Leader transfer: `POST /v1/cluster/leader`, and before a leader stops.
//!
//! openraft's transfer is final: once it is triggered, the leader proposes nothing more in its term and sends no more
//! heartbeats, whether or not the target takes over. So the leader first makes sure that the target responds and is
//! caught up, while writes continue. Then it holds new requests, waits until the target has the whole log, and only then
//! triggers the transfer. The target stands for election at once, without a pre-vote, and the voters grant it their
//! votes although they still hear the leader. The requests that were held go to the new leader.
//!
//! Nothing that was proposed is lost: the target has it, and its results still arrive at the former leader, which
//! applies the entries as a follower.

use std::collections::BTreeSet;
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use openraft::alias::InstantOf;
use openraft::async_runtime::WatchReceiver;
use openraft::metrics::RaftMetrics;
use openraft::{Instant, ServerState};

use super::access::{Caller, ToManage};
use super::conditions::reject_conditions;
use super::consensus::check_on_leader;
use super::forward;
use super::openapi::answers::LeaderErrors;
use super::openapi::parameters::ForwardHeader;
use super::parameters::Parameters;
use super::readiness::Destination;
use super::rejections::{no_leader, raft_ended};
use super::request_body::{parse_json, read_client_body};
use super::v1::{self, json_answer};
use crate::app::{ExampleApp, Role};
use crate::body::{LeaderTransferred, NextLeader};
use crate::config::{
    HAND_OVER_ANSWER_MAX, HAND_OVER_CATCH_UP_MAX, HAND_OVER_DEADLINE, HAND_OVER_LINGER_MAX, HAND_OVER_SETTLE,
    MEMBER_LAG_ENTRIES_MAX, MEMBERS_PROBE_INTERVAL,
};
use crate::error::{ApiError, Details, Interrupted};
use crate::types::{NodeId, TypeConfig};

type Metrics = RaftMetrics<TypeConfig>;

const BODY: &str = r#"the id of a voter, such as {"id":2}"#;

/// Makes another voter the leader.
///
/// Returns once the new leader is known. Returns 409, and changes nothing, if the node is not a voter, does not respond,
/// or is not caught up. Writes and reads wait meanwhile, for a few milliseconds.
#[utoipa::path(
    post,
    path = "/v1/cluster/leader",
    operation_id = "transfer_leader",
    tag = "The cluster",
    params(ForwardHeader),
    request_body(
        content = NextLeader,
        content_type = "application/json",
        description = "The id of a voter.",
        example = json!({"id": 2}),
    ),
    responses(
        (
            status = 200,
            description = "The node leads.",
            body = LeaderTransferred,
            example = json!({"id": 2, "address": "127.0.0.1:21002", "term": 2}),
        ),
        LeaderErrors,
    ),
)]
pub async fn transfer_leader(app: Caller<ToManage>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    v1::answer(&app, transfer_on_leader(&app, &request, payload).await)
}

async fn transfer_on_leader(
    app: &Caller<ToManage>,
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let (body, _memory) = read_client_body(app, request, payload).await?;
    reject_conditions(request)?;
    Parameters::of(request, &[])?;
    let NextLeader { id } = parse_json(&body, BODY)?;
    match forward::next_destination(app, request.headers()).await? {
        Destination::Here => {
            check_on_leader(app, app.who()).await?;
            let leader = web::Data::clone(app);
            // A task of its own: a transfer that has begun must be completed even if the client disconnects.
            let transfer = tokio::spawn(async move { transfer(&leader, id).await });
            let leader = transfer.await.unwrap_or_else(|error| {
                let lost = Interrupted::unknown("the transfer was interrupted: see /metrics");
                Err(if error.is_panic() { ApiError::Internal(lost) } else { ApiError::OutcomeUnknown(lost) })
            })?;
            Ok(json_answer(StatusCode::OK, &leader))
        }
        Destination::Leader { leader_id, leader_node } => {
            forward::to_leader(app, request, body, leader_id, &leader_node).await
        }
    }
}

async fn transfer(app: &ExampleApp, to: NodeId) -> Result<LeaderTransferred, ApiError> {
    let Ok(_turn) = app.transfer_turn.try_lock() else {
        return refused("another leader transfer is under way".to_owned());
    };
    if to != app.id {
        wait_until_ready(app, to).await?;
        transfer_to_ready(app, to).await?;
    }
    let metrics = app.raft.metrics().borrow_watched().clone();
    let node = metrics.membership_config.membership().get_node(&to);
    let address = node.map(|node| node.addr.clone()).unwrap_or_default();
    Ok(LeaderTransferred { id: to, address, term: metrics.current_term })
}

/// Makes another voter the leader before this node stops, so that no client has to wait for an election: the voter with
/// the most entries that responds and is caught up. If there is none, this node stops as leader.
pub async fn hand_over(app: &ExampleApp) {
    // After a removed leader another one is elected anyway.
    if app.role() != Role::Leader {
        return;
    }
    if other_voters(app, &app.raft.metrics().borrow_watched()).is_empty() {
        return;
    }
    let Ok(_turn) = tokio::time::timeout(HAND_OVER_DEADLINE, app.transfer_turn.lock()).await else { return };
    let candidates = ready_voters(app).await;
    if candidates.is_empty() {
        tracing::warn!("no other voter responds and is caught up: an election will follow");
    }
    for to in candidates {
        match transfer_to_ready(app, to).await {
            Ok(()) => {
                tracing::info!("node {to} leads now");
                // Other nodes forward requests to this one until the new leader's first append.
                tokio::time::sleep(app.heartbeat_interval().min(HAND_OVER_LINGER_MAX)).await;
                return;
            }
            Err(ApiError::Conflict(Details { message, .. })) => tracing::warn!("{message}"),
            Err(error) => {
                tracing::warn!("{error}");
                return;
            }
        }
    }
}

/// What a leader knows of a node since `asked_at`.
struct Follower<'a> {
    metrics: &'a Metrics,
    id: NodeId,
    asked_at: InstantOf<TypeConfig>,
}

impl Follower<'_> {
    /// When the last request was sent to which the node has responded.
    fn last_answer(&self) -> Option<InstantOf<TypeConfig>> {
        let answered = self.metrics.heartbeat.as_ref()?.get(&self.id).copied().flatten()?;
        Some(answered.into_inner())
    }

    /// The entries of the leader's log that the node lacks.
    fn lag(&self) -> u64 {
        let matched = self.metrics.replication.as_ref().and_then(|nodes| nodes.get(&self.id).copied().flatten());
        let entries = |last: Option<u64>| last.map_or(0, |index| index.saturating_add(1));
        entries(self.metrics.last_log_index).saturating_sub(entries(matched.map(|log_id| log_id.index)))
    }

    /// Why the node cannot take over within a moment, if it cannot.
    fn fault(&self) -> Option<String> {
        let Follower { id, asked_at, .. } = self;
        match self.last_answer() {
            Some(answered_at) if answered_at < *asked_at => {
                Some(format!("node {id} has not responded for {:.1} s", answered_at.elapsed().as_secs_f64()))
            }
            None => Some(format!("node {id} has not responded to this leader yet")),
            Some(_) if self.lag() > MEMBER_LAG_ENTRIES_MAX => {
                Some(format!("node {id} is {} entries behind", self.lag()))
            }
            Some(_) => None,
        }
    }
}

/// Waits until a node responds and is nearly caught up, for at most [`ExampleApp::members_answer_deadline`].
async fn wait_until_ready(app: &ExampleApp, id: NodeId) -> Result<(), ApiError> {
    let asked_at = InstantOf::<TypeConfig>::now();
    let fault = |metrics: &Metrics| Follower { metrics, id, asked_at }.fault();
    let decided = |metrics: &Metrics| metrics.state != ServerState::Leader || fault(metrics).is_none();
    loop {
        let metrics = heartbeat(app, decided).await?;
        if metrics.state != ServerState::Leader {
            return Err(no_leader(app));
        }
        check_voter(&metrics, id)?;
        match fault(&metrics) {
            None => return Ok(()),
            Some(fault) if asked_at.elapsed() >= app.members_answer_deadline => {
                return refused(format!("the leadership was not transferred: {fault}"));
            }
            Some(_) => {}
        }
    }
}

/// The voters after a membership change that is under way, without this node.
fn other_voters(app: &ExampleApp, metrics: &Metrics) -> BTreeSet<NodeId> {
    let mut voters = metrics.membership_config.membership().get_joint_config().last().cloned().unwrap_or_default();
    voters.remove(&app.id);
    voters
}

/// The other voters that respond and are nearly caught up, those with the most entries first. Waits for all of them for
/// a moment, and longer until there is one.
async fn ready_voters(app: &ExampleApp) -> Vec<NodeId> {
    let asked_at = InstantOf::<TypeConfig>::now();
    let voters = |metrics: &Metrics| other_voters(app, metrics);
    let fault = |metrics: &Metrics, id| Follower { metrics, id, asked_at }.fault();
    let all_ready = |metrics: &Metrics| {
        metrics.state != ServerState::Leader || voters(metrics).into_iter().all(|id| fault(metrics, id).is_none())
    };
    loop {
        let Ok(metrics) = heartbeat(app, all_ready).await else { return Vec::new() };
        if metrics.state != ServerState::Leader {
            return Vec::new();
        }
        let mut ready: Vec<NodeId> = voters(&metrics).into_iter().filter(|id| fault(&metrics, *id).is_none()).collect();
        ready.sort_by_key(|id| Follower { metrics: &metrics, id: *id, asked_at }.lag());
        let is_late = asked_at.elapsed() >= HAND_OVER_ANSWER_MAX;
        if !ready.is_empty() || voters(&metrics).is_empty() || is_late {
            return ready;
        }
    }
}

/// Sends heartbeats, and waits a moment for responses that decide something.
async fn heartbeat(app: &ExampleApp, decided: impl Fn(&Metrics) -> bool + Send) -> Result<Metrics, ApiError> {
    app.raft.trigger().heartbeat().await.map_err(|fatal| raft_ended(&fatal))?;
    let wait = app.raft.wait(Some(MEMBERS_PROBE_INTERVAL));
    Ok(match wait.metrics(decided, "the nodes answer").await {
        Ok(metrics) => metrics,
        Err(_) => app.raft.metrics().borrow_watched().clone(),
    })
}

fn check_voter(metrics: &Metrics, id: NodeId) -> Result<(), ApiError> {
    let membership = metrics.membership_config.membership();
    if membership.get_node(&id).is_none() {
        return refused(format!("only a voter can lead, and node {id} is not a member of the cluster"));
    }
    let configs = membership.get_joint_config();
    if !configs.last().is_some_and(|voters| voters.contains(&id)) {
        return refused(format!(
            "only a voter can lead, and node {id} is not a voter: `raft-key-value members promote {id}` makes it one"
        ));
    }
    // The leader proposes the second step of a change, which it could not do any more.
    if configs.len() > 1 {
        return refused("a membership change is under way: wait for it, or repeat it if it was interrupted".to_owned());
    }
    Ok(())
}

/// Transfers the leadership to a voter that responds.
///
/// # Errors
///
/// [`ApiError::Conflict`] if nothing has changed. Otherwise this node proposes nothing more in its term.
async fn transfer_to_ready(app: &ExampleApp, to: NodeId) -> Result<(), ApiError> {
    let (term, leader) = app.term_and_leader();
    if leader != Some(app.id) {
        return Err(no_leader(app));
    }
    let held = Held::begin(app, term);
    // Requests that saw this node lead are about to be proposed.
    tokio::time::sleep(HAND_OVER_SETTLE).await;
    let asked_at = InstantOf::<TypeConfig>::now();
    let has_all = |metrics: &Metrics| Follower { metrics, id: to, asked_at }.lag() == 0;
    let is_settled = |metrics: &Metrics| metrics.state != ServerState::Leader || has_all(metrics);
    let wait = app.raft.wait(Some(HAND_OVER_CATCH_UP_MAX));
    match wait.metrics(is_settled, "the next leader has the log").await {
        Ok(metrics) if metrics.state == ServerState::Leader => {}
        Ok(_) => return Err(no_leader(app)),
        Err(_) => {
            return refused(format!(
                "the leadership was not transferred: node {to} did not receive the rest of the log in time"
            ));
        }
    }
    held.keep();
    app.raft.trigger().transfer_leader(to).await.map_err(|_| {
        ApiError::OutcomeUnknown(Interrupted::unknown("this node stopped meanwhile: see /metrics on another node"))
    })?;
    let has_next = |metrics: &Metrics| metrics.current_term > term && metrics.current_leader.is_some();
    match app.raft.wait(Some(HAND_OVER_DEADLINE)).metrics(has_next, "another leader").await {
        Ok(metrics) if metrics.current_leader == Some(to) => Ok(()),
        Ok(metrics) => Err(ApiError::OutcomeUnknown(Interrupted::unknown(format!(
            "node {} became the leader instead of node {to}",
            metrics.current_leader.unwrap_or_default()
        )))),
        Err(_) => Err(ApiError::DeadlinePassed(Interrupted::unknown(format!(
            "node {to} has not become the leader within {}: an election will follow; see /metrics",
            seconds(HAND_OVER_DEADLINE)
        )))),
    }
}

/// Holds new requests until the transfer has failed or another term has begun.
struct Held<'a> {
    app: &'a ExampleApp,
    is_kept: bool,
}

impl<'a> Held<'a> {
    fn begin(app: &'a ExampleApp, term: u64) -> Self {
        app.set_handing_over(term);
        Held { app, is_kept: false }
    }

    /// openraft rejects all proposals of this term from now on.
    fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            self.app.clear_handing_over();
        }
    }
}

fn refused<T>(message: String) -> Result<T, ApiError> {
    Err(ApiError::Conflict(Details::not_applied(message)))
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs())
}
