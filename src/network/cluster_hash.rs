//! `GET /v1/cluster/hash`: the hash of this node's state, to compare nodes.

use actix_web::http::StatusCode;
use actix_web::http::header::HeaderValue;
use actix_web::{HttpRequest, HttpResponse, web};

use super::access::{Caller, ToManage};
use super::openapi::answers::HashErrors;
use super::openapi::parameters::HashParameters;
use super::parameters::Parameters;
use super::rejections::stopping;
use super::request_body::reject_body;
use super::v1::{self, json_answer};
use crate::app::ExampleApp;
use crate::body::{CheckedHash, HashAnswer};
use crate::config::{APPLIED_WAITING_MAX, REQUEST_DEADLINE};
use crate::error::{ApiError, AppliedPassed, Interrupted, NotApplied, Retry};
use crate::headers::REVISION;
use crate::store::{SelfCheck, TooManyWaits};

/// Returns a hash of this node's data.
///
/// Nodes that have applied the same entries have the same hash. With `applied`, the response is for exactly that index.
/// Request the hash of the first node without it, and those of the others with the `applied_index` of the first
/// response. While there are writes, request the next multiple of 10,000 of all nodes: each remembers it for a while.
/// The node needs no other node for this. At most 64 requests may wait for an index on a node.
#[utoipa::path(
    get,
    path = "/v1/cluster/hash",
    operation_id = "cluster_hash",
    tag = "The cluster",
    params(HashParameters),
    responses(
        (
            status = 200,
            description = "The hash.",
            body = HashAnswer,
            example = json!({
                "node": 1,
                "applied_index": 12345,
                "revision": 12340,
                "hash": "5d1f09aa0c7be1429e3b6f7702d4a85b",
                "last_self_check": {"index": 10000, "hash": "c3a91e7f6620b4d8115f0e9d7ab2364c"}
            }),
        ),
        HashErrors,
    ),
)]
pub async fn cluster_hash(app: Caller<ToManage>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    v1::answer(&app, hash_of(&app, &request, payload).await)
}

async fn hash_of(app: &ExampleApp, request: &HttpRequest, payload: web::Payload) -> Result<HttpResponse, ApiError> {
    reject_body(app, request, payload).await?;
    let wanted = Parameters::of(request, &["applied"])?.number("applied", 0, i64::MAX as u64)?;
    let (applied_index, state) = match wanted {
        None => current(app),
        Some(wanted) => {
            let state = exactly(app, wanted).await?;
            (Some(state.index), state)
        }
    };
    let last_self_check = app.store.state_machine.self_checks().confirmed();
    let last_self_check = last_self_check.map(|it| CheckedHash { index: it.index, hash: it.hash.to_string() });
    let (revision, hash) = (state.revision, state.hash.to_string());
    let body = HashAnswer { node: app.id, applied_index, revision, hash, last_self_check };
    let mut answer = json_answer(StatusCode::OK, &body);
    answer.headers_mut().insert(REVISION.clone(), HeaderValue::from(revision));
    Ok(answer)
}

/// The index of the last entry that was applied, and the current state.
fn current(app: &ExampleApp) -> (Option<u64>, SelfCheck) {
    app.store.state_machine.read(|machine| (machine.last_applied.map(|log_id| log_id.index), SelfCheck::of(machine)))
}

/// The state after an entry, once it is applied.
async fn exactly(app: &ExampleApp, wanted: u64) -> Result<SelfCheck, ApiError> {
    let state = tokio::select! {
        biased;
        state = app.store.state_machine.state_after(wanted) => state,
        () = app.stopped() => return Err(stopping()),
        () = tokio::time::sleep(REQUEST_DEADLINE) => {
            return Err(ApiError::DeadlinePassed(Interrupted::not_applied(format!(
                "this node did not apply entry {wanted} in time; nothing was changed"
            ))));
        }
    };
    let state = state.map_err(|TooManyWaits| {
        let message = format!(
            "this node has reached its limit of {APPLIED_WAITING_MAX} requests that wait for an entry to be applied"
        );
        ApiError::Overloaded(Retry::soon(message))
    })?;
    let state = state.ok_or_else(stopping)?;
    if state.index == wanted {
        return Ok(state);
    }
    app.store.state_machine.self_checks().at(wanted).ok_or_else(|| {
        let applied_index = state.index;
        ApiError::AppliedPassed(AppliedPassed {
            message: format!(
                "this node has already applied entry {applied_index} and no longer has the hash of its state after \
                 entry {wanted}; request an index that it has not applied yet, or the last multiple of {}",
                crate::config::SELF_CHECK_ENTRIES
            ),
            applied_index,
            outcome: NotApplied::NotApplied,
        })
    })
}
