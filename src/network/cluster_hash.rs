//! `GET /v1/cluster/hash`: what this node's state is, for it to be compared with that of the others.

use actix_web::http::StatusCode;
use actix_web::http::header::HeaderValue;
use actix_web::{HttpRequest, HttpResponse, web};

use super::forward::stopping;
use super::openapi::answers::HashErrors;
use super::openapi::parameters::HashParameters;
use super::parameters::Parameters;
use super::reply::refuse_body;
use super::v1::{self, json_answer};
use crate::app::ExampleApp;
use crate::body::{CheckedHash, HashAnswer};
use crate::config::{APPLIED_WAITING_MAX, REQUEST_DEADLINE};
use crate::error::{ApiError, AppliedPassed, Details, Outcome, Retry};
use crate::headers::REVISION;
use crate::store::{SelfCheck, TooManyWaits};

/// Says what this node's data is, as a hash.
///
/// Nodes that have applied the same entries have the same hash. With `applied`, the answer is for exactly that index:
/// ask the first node without it, and the others for the `applied_index` of its answer. While there are writes, ask
/// all nodes for the next multiple of 10,000, which each remembers for a while. Needs no other node. On each node 64
/// requests may wait for an index.
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
pub async fn cluster_hash(app: web::Data<ExampleApp>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    v1::answer(&app, hash_of(&app, &request, payload).await)
}

async fn hash_of(app: &ExampleApp, request: &HttpRequest, payload: web::Payload) -> Result<HttpResponse, ApiError> {
    refuse_body(app, request, payload).await?;
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

/// The last entry that was applied, and what the state is now.
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
            return Err(ApiError::DeadlinePassed(Details::not_applied(format!(
                "this node did not apply entry {wanted} in time; nothing was changed"
            ))));
        }
    };
    let state = state.map_err(|TooManyWaits| {
        let message = format!("{APPLIED_WAITING_MAX} requests wait for entries to be applied on this node already");
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
                "this node has gone on from entry {wanted} to {applied_index}, and does not remember what its state \
                 was; ask for an index to come, or for the last multiple of {}",
                crate::config::SELF_CHECK_ENTRIES
            ),
            applied_index,
            outcome: Outcome::NotApplied,
        })
    })
}
