//! `/v1/cluster/members`: adds, promotes, replaces and removes members, one at a time.
//!
//! A request that takes long returns 202 with what is missing, and the same request continues: everything that it needs to
//! know is in the membership.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use tokio::sync::{MutexGuard, SemaphorePermit};

use super::access::{Caller, ToManage};
use super::consensus::write_error;
use super::management::{check_member, check_same_directory, member_at, on_leader};
use super::members::{self, Changed, Missing, Options, Wanted, check_member_exists, wait_until_caught_up};
use super::openapi::answers::MemberErrors;
use super::openapi::parameters::{ForwardHeader, MemberInPath, MemberParameters};
use super::parameters::Parameters;
use super::peer::{self, Silence};
use super::request_body::{check_lists, parse_json, read_client_body, reject_body};
use super::v1::{self, json_answer};
use crate::app::ExampleApp;
use crate::body::{AddMember, AddedRole, Member, MemberChanged, MemberRemoved, MemberRole, ReplaceMember};
use crate::config::{CAUGHT_UP_FOR, REQUEST_DEADLINE};
use crate::error::{ApiError, Details, Retry};
use crate::seeded_bug::{self, SeededBug};
use crate::types::{ExampleNode, Membership, NodeId};

const ADD_BODY: &str = r#"{"id":4,"address":"127.0.0.1:21004","role":"voter"}"#;
const REPLACE_BODY: &str = r#"{"id":4,"address":"127.0.0.1:21004"}"#;

/// Adds a node, and makes it a voter once it has all data.
///
/// The node must be running, with an empty data directory. It is a learner at first. Once it has had all data for a
/// second and responds, it becomes a voter, unless `role` is `learner`. If that takes more than about ten seconds, the
/// response is 202 and says what is missing; the same request continues from there. A request for a member that is
/// already what it should be succeeds. A member with the same data directory and another address moves to that address.
#[utoipa::path(
    post,
    path = "/v1/cluster/members",
    operation_id = "add_member",
    tag = "The cluster",
    params(MemberParameters, ForwardHeader),
    request_body(content = AddMember, example = json!({"id": 3, "address": "127.0.0.1:21003", "role": "voter"})),
    responses(
        (
            status = 200,
            description = "The node is a member with that role, and has all data.",
            body = MemberChanged,
            example = json!({
                "id": 3,
                "done": true,
                "message": "node 3 is a voter",
                "members": [
                    {"id": 1, "role": "leader", "address": "127.0.0.1:21001"},
                    {"id": 2, "role": "voter", "address": "127.0.0.1:21002"},
                    {"id": 3, "role": "voter", "address": "127.0.0.1:21003"}
                ]
            }),
        ),
        (
            status = 202,
            description = "The node is a learner so far. Send the same request again to continue.",
            body = MemberChanged,
            example = json!({
                "id": 3,
                "done": false,
                "message": "node 3 is a learner until it has all data: node 3 responds, but is 52000 entries behind",
                "members": [
                    {"id": 1, "role": "leader", "address": "127.0.0.1:21001"},
                    {"id": 3, "role": "learner", "address": "127.0.0.1:21003"}
                ]
            }),
        ),
        MemberErrors,
    ),
)]
pub async fn add_member(app: Caller<ToManage>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    v1::answer(&app, receive_add(&app, &request, payload).await)
}

async fn receive_add(
    app: &Caller<ToManage>,
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let (body, _memory) = read_client_body(app, request, payload).await?;
    let options = options_of(request)?;
    let wanted: AddMember = parse_json(&body, ADD_BODY)?;
    check_lists(&body, usize::MAX, ADD_BODY)?;
    check_member(wanted.id, &wanted.address)?;
    let leader = web::Data::clone(app);
    let change = async move { add(&leader, wanted, options).await };
    on_leader(app, request, body, change, progress).await
}

/// Makes a learner a voter.
///
/// The learner must have all data and respond, for a second. If it does not within about ten seconds, the response is
/// 202 and says what is missing. A request for a voter succeeds.
#[utoipa::path(
    post,
    path = "/v1/cluster/members/{id}/promote",
    operation_id = "promote_member",
    tag = "The cluster",
    params(MemberInPath, MemberParameters, ForwardHeader),
    responses(
        (
            status = 200,
            description = "The node is a voter.",
            body = MemberChanged,
            example = json!({
                "id": 2,
                "done": true,
                "message": "node 2 is a voter",
                "members": [
                    {"id": 1, "role": "leader", "address": "127.0.0.1:21001"},
                    {"id": 2, "role": "voter", "address": "127.0.0.1:21002"}
                ]
            }),
        ),
        (
            status = 202,
            description = "The node is still a learner. Send the same request again to continue.",
            body = MemberChanged,
        ),
        MemberErrors,
    ),
)]
pub async fn promote_member(app: Caller<ToManage>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    v1::answer(&app, receive_promote(&app, &request, payload).await)
}

async fn receive_promote(
    app: &Caller<ToManage>,
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    reject_body(app, request, payload).await?;
    let options = options_of(request)?;
    let id = node_id_from(request.match_info().query("id"))?;
    let leader = web::Data::clone(app);
    let change = async move {
        let _room = room(&leader)?;
        promote(&leader, id, options).await
    };
    on_leader(app, request, Bytes::new(), change, progress).await
}

/// Puts a new node in the place of a member, which may be down.
///
/// The new node must be running, with an empty data directory. It is a learner until it has all data; then it takes the
/// place and the role of the member, which is removed, in one step. Fault tolerance does not drop meanwhile. If that
/// takes more than about ten seconds, the response is 202; the same request continues from there.
#[utoipa::path(
    post,
    path = "/v1/cluster/members/{id}/replace",
    operation_id = "replace_member",
    tag = "The cluster",
    params(MemberInPath, MemberParameters, ForwardHeader),
    request_body(content = ReplaceMember, example = json!({"id": 4, "address": "127.0.0.1:21004"})),
    responses(
        (
            status = 200,
            description = "The new node has the place of the member.",
            body = MemberChanged,
            example = json!({
                "id": 4,
                "done": true,
                "message": "node 4 took the place of node 3",
                "members": [
                    {"id": 1, "role": "leader", "address": "127.0.0.1:21001"},
                    {"id": 2, "role": "voter", "address": "127.0.0.1:21002"},
                    {"id": 4, "role": "voter", "address": "127.0.0.1:21004"}
                ]
            }),
        ),
        (
            status = 202,
            description = "The new node is a learner so far. Send the same request again to continue.",
            body = MemberChanged,
        ),
        MemberErrors,
    ),
)]
pub async fn replace_member(app: Caller<ToManage>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    v1::answer(&app, receive_replace(&app, &request, payload).await)
}

async fn receive_replace(
    app: &Caller<ToManage>,
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let (body, _memory) = read_client_body(app, request, payload).await?;
    let options = options_of(request)?;
    let old = node_id_from(request.match_info().query("id"))?;
    let new: ReplaceMember = parse_json(&body, REPLACE_BODY)?;
    check_lists(&body, usize::MAX, REPLACE_BODY)?;
    check_member(new.id, &new.address)?;
    if new.id == old {
        let message = format!("node {old} cannot replace itself: give the new node another id");
        return Err(ApiError::bad_request("node_twice", message));
    }
    let leader = web::Data::clone(app);
    let change = async move { replace(&leader, old, new, options).await };
    on_leader(app, request, body, change, progress).await
}

/// Removes a member, which may be down.
///
/// The member may be a learner, a voter or the leader. Returns 409 if no majority of the remaining voters responds and is
/// caught up, or if no voter could fail afterwards although one could before. The id of a removed node may be used again,
/// with another data directory.
#[utoipa::path(
    delete,
    path = "/v1/cluster/members/{id}",
    operation_id = "remove_member",
    tag = "The cluster",
    params(MemberInPath, MemberParameters, ForwardHeader),
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
pub async fn remove_member(app: Caller<ToManage>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    v1::answer(&app, remove(&app, &request, payload).await)
}

async fn remove(
    app: &Caller<ToManage>,
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    reject_body(app, request, payload).await?;
    let options = options_of(request)?;
    let id = node_id_from(request.match_info().query("id"))?;
    let leader = web::Data::clone(app);
    let change = async move {
        let _room = room(&leader)?;
        change_in_turn(&leader, &Wanted::Without(id), options).await
    };
    let leader_id = app.id;
    on_leader(app, request, Bytes::new(), change, |changed| {
        let (members, risk) = (members_of(changed, leader_id), changed.risk.clone());
        json_answer(StatusCode::OK, &MemberRemoved { removed: id, members, dry_run: options.dry_run, risk })
    })
    .await
}

/// Parses a node id. It must be in canonical decimal form, so that each id has one path.
pub(crate) fn node_id_from(text: &str) -> Result<NodeId, ApiError> {
    let id = text.parse().ok().filter(|id: &NodeId| *id > 0 && id.to_string() == text);
    let message = format!("a node id must be an integer from 1 to {}, without a sign or leading zeros", NodeId::MAX);
    id.ok_or_else(|| ApiError::bad_request("invalid_node_id", message))
}

/// The options of a request.
fn options_of(request: &HttpRequest) -> Result<Options, ApiError> {
    let parameters = Parameters::of(request, &["dry_run", "force"])?;
    Ok(Options { force: parameters.flag("force")?, dry_run: parameters.flag("dry_run")?, keeps_spare: true })
}

fn members_of(changed: &Changed, leader_id: NodeId) -> Vec<Member> {
    let role_of = |id| match changed.voters.contains(&id) {
        true if id == leader_id => MemberRole::Leader,
        true => MemberRole::Voter,
        false => MemberRole::Learner,
    };
    let nodes = changed.nodes.iter();
    nodes.map(|(id, node)| Member { id: *id, role: role_of(*id), address: node.addr.clone() }).collect()
}

/// Admits a request, which may wait for a node to catch up.
fn room(app: &ExampleApp) -> Result<SemaphorePermit<'_>, ApiError> {
    let full = |_| ApiError::Overloaded(Retry::soon("too many membership changes are under way"));
    app.members_room.try_acquire().map_err(full)
}

/// Waits until no other request proposes a change: openraft rejects a change while another one is not committed.
async fn turn(app: &ExampleApp) -> Result<MutexGuard<'_, ()>, ApiError> {
    let turn = tokio::time::timeout(REQUEST_DEADLINE, app.members_turn.lock()).await;
    turn.map_err(|_| ApiError::Overloaded(Retry::soon("another membership change is under way")))
}

fn membership_of(app: &ExampleApp) -> Membership {
    app.raft.metrics().borrow_watched().membership_config.membership().clone()
}

fn is_voter(membership: &Membership, id: NodeId) -> bool {
    membership.voter_ids().any(|voter| voter == id)
}

/// Makes a node a learner, unless it is a member already; then its address becomes that of `node`, at which process
/// `run` responded.
async fn admit(app: &ExampleApp, id: NodeId, node: ExampleNode, run: Option<u64>) -> Result<(), ApiError> {
    let _turn = turn(app).await?;
    // Again: another request may have added a node with this id meanwhile.
    check_same_directory(app, id, &node)?;
    let (based_on, member) = {
        let metrics = app.raft.metrics();
        let metrics = metrics.borrow_watched();
        let stored = &metrics.membership_config;
        (*stored.log_id(), stored.membership().get_node(&id).cloned())
    };
    match member {
        None => drop(app.raft.add_learner(id, node, false).await.map_err(|error| write_error(&error))?),
        Some(member) if member.addr == node.addr => {}
        Some(member) => {
            check_has_left(app, id, &member, run).await?;
            tracing::info!("node {id} moves from {member} to {node}");
            members::set_node(app, id, node, based_on).await?;
        }
    }
    Ok(())
}

/// Rejects a move while another process than `run` responds as node `id` at its former address: one of the two runs on
/// a copy of the data.
async fn check_has_left(app: &ExampleApp, id: NodeId, former: &ExampleNode, run: Option<u64>) -> Result<(), ApiError> {
    match peer::introduced(app, &former.addr).await {
        Ok(found) if (found.identity.node_id, found.identity.incarnation) == (id, former.incarnation) => {
            if run.is_some() && found.run == run {
                return Ok(()); // The same process has two names.
            }
            let message = format!(
                "another process runs as node {id} at {former}, the address of the membership: stop one of the two, \
                 since one of them runs on a copy of the data"
            );
            Err(ApiError::Conflict(Details::not_applied(message)))
        }
        Err(Silence::Unreachable(error)) if !error.is_connect() => Err(ApiError::Unreachable(Retry::soon(format!(
            "a process at {former}, the address of node {id} in the membership, accepts connections and does not \
                 respond: if it is that node, stop it"
        )))),
        _ => Ok(()),
    }
}

/// What a change would lead to that adds `node` first: the judgement is made once it has all data.
async fn expected(
    app: &ExampleApp,
    (id, node): (NodeId, ExampleNode),
    options: Options,
    then: impl FnOnce(&mut Changed),
) -> Result<Changed, ApiError> {
    let voters = membership_of(app).get_joint_config().last().cloned().unwrap_or_default();
    // Only a leader that a majority confirms knows the members.
    let mut changed = members::change_with(app, &Wanted::Voters(voters), options).await?;
    changed.nodes.insert(id, node);
    then(&mut changed);
    Ok(changed)
}

async fn add(app: &ExampleApp, wanted: AddMember, options: Options) -> Result<MemberChanged, ApiError> {
    let AddMember { id, address, role } = wanted;
    let _room = room(app)?;
    let (node, run) = member_at(app, id, address).await?;
    let membership = membership_of(app);
    if role == AddedRole::Learner && is_voter(&membership, id) {
        let message = format!("node {id} is a voter already: remove it first to add it as a learner");
        return Err(ApiError::Conflict(Details::not_applied(message)));
    }
    if options.dry_run && membership.get_node(&id).is_none() {
        let voter = role == AddedRole::Voter;
        let changed = expected(app, (id, node), options, |changed| {
            if voter {
                changed.voters.insert(id);
            }
        });
        let then = if voter { ", and a voter once it has all data and keeps up" } else { "" };
        return Ok(answer(app, id, format!("node {id} would be a learner{then}"), options, &changed.await?));
    }
    if options.dry_run && membership.get_node(&id).is_some_and(|member| member.addr != node.addr) {
        let message = format!("node {id} would move to {node}");
        return Ok(answer(app, id, message, options, &expected(app, (id, node), options, |_| {}).await?));
    }
    if !options.dry_run {
        admit(app, id, node, run).await?;
    }
    match role {
        AddedRole::Voter => promote(app, id, options).await,
        AddedRole::Learner if options.dry_run => Ok(state(app, id, None, options)),
        AddedRole::Learner => {
            let missing = wait_until_caught_up(app, id, Duration::ZERO).await?;
            Ok(state(app, id, missing, options))
        }
    }
}

async fn promote(app: &ExampleApp, id: NodeId, options: Options) -> Result<MemberChanged, ApiError> {
    let membership = membership_of(app);
    check_member_exists(&membership, id)?;
    if is_voter(&membership, id) {
        return Ok(state(app, id, None, options));
    }
    if !options.force
        && !options.dry_run
        && !seeded_bug::is_on(SeededBug::PromotedBeforeCaughtUp)
        && let Some(missing) = wait_until_caught_up(app, id, CAUGHT_UP_FOR).await?
    {
        return Ok(state(app, id, Some(missing), options));
    }
    let changed = change_in_turn(app, &Wanted::With(id), options).await?;
    let verb = if options.dry_run { "would be" } else { "is" };
    Ok(answer(app, id, format!("node {id} {verb} a voter"), options, &changed))
}

async fn replace(
    app: &ExampleApp,
    old: NodeId,
    new: ReplaceMember,
    options: Options,
) -> Result<MemberChanged, ApiError> {
    let ReplaceMember { id, address } = new;
    let _room = room(app)?;
    let membership = membership_of(app);
    if membership.get_node(&old).is_none() && membership.get_node(&id).is_some() {
        // An earlier request did it.
        return Ok(state(app, id, None, options));
    }
    check_member_exists(&membership, old)?;
    let (node, run) = member_at(app, id, address).await?;
    let votes = is_voter(&membership, old);
    if is_voter(&membership, id) {
        let message =
            format!("node {id} is a voter already: to remove node {old}, use DELETE /v1/cluster/members/{old}");
        return Err(ApiError::Conflict(Details::not_applied(message)));
    }
    if options.dry_run && membership.get_node(&id).is_none() {
        let changed = expected(app, (id, node), options, |changed| {
            changed.nodes.remove(&old);
            if changed.voters.remove(&old) {
                changed.voters.insert(id);
            }
        });
        let message = format!("node {id} would be a learner, and take the place of node {old} once it has all data");
        return Ok(answer(app, id, message, options, &changed.await?));
    }
    if !options.dry_run {
        admit(app, id, node, run).await?;
        let steady_for = if votes { CAUGHT_UP_FOR } else { Duration::ZERO };
        if !options.force
            && let Some(missing) = wait_until_caught_up(app, id, steady_for).await?
        {
            return Ok(state(app, id, Some(missing), options));
        }
    }
    let wanted = if votes { Wanted::Swap { old, new: id } } else { Wanted::Without(old) };
    let changed = change_in_turn(app, &wanted, options).await?;
    let verb = if options.dry_run { "would take" } else { "took" };
    Ok(answer(app, id, format!("node {id} {verb} the place of node {old}"), options, &changed))
}

async fn change_in_turn(app: &ExampleApp, wanted: &Wanted, options: Options) -> Result<Changed, ApiError> {
    let _turn = turn(app).await?;
    members::change_with(app, wanted, options).await
}

fn answer(app: &ExampleApp, id: NodeId, message: String, options: Options, changed: &Changed) -> MemberChanged {
    let (members, risk) = (members_of(changed, app.id), changed.risk.clone());
    MemberChanged { id, done: true, message, members, dry_run: options.dry_run, risk }
}

/// The state of a member, which lacks `missing`.
fn state(app: &ExampleApp, id: NodeId, missing: Option<Missing>, options: Options) -> MemberChanged {
    let membership = membership_of(app);
    let role = if is_voter(&membership, id) { "voter" } else { "learner" };
    let message = match &missing {
        None => format!("node {id} is a {role}"),
        Some(missing) => format!("node {id} is a {role} that does not have all data yet: {missing}"),
    };
    MemberChanged { done: missing.is_none(), ..answer(app, id, message, options, &Changed::of(&membership)) }
}

fn progress(changed: &MemberChanged) -> HttpResponse {
    json_answer(if changed.done { StatusCode::OK } else { StatusCode::ACCEPTED }, changed)
}
