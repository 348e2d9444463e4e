//! Many keys: listing them page by page, and deleting them by prefix.

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::HeaderValue;
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;

use super::conditions::refuse_conditions;
use super::memory::HeldMemory;
use super::openapi::answers::{DeletePrefixErrors, ListErrors};
use super::openapi::parameters::{DeletePrefixParameters, ForwardHeader, ListParameters, WriteHeaders};
use super::parameters::{Parameters, invalid};
use super::reply::{encode, json, refuse_body};
use super::v1::{self, Written, ready_to_read, unexpected, written};
use crate::app::{ExampleApp, Role};
use crate::body::{DeleteAnswer, KeyValue, ListAnswer};
use crate::config::KEY_VALUE_EXTRA_BYTES;
use crate::error::{ApiError, Details, Outcome, RevisionGone};
use crate::headers::{IDEMPOTENCY_KEY, REVISION};
use crate::operation::{Key, Operation, WriteResult};
use crate::store::state_machine::listing::Range;
use crate::store::{Data, Record};

const LIST_PARAMETERS: &[&str] =
    &["prefix", "start", "end", "start_after", "limit", "keys_only", "reverse", "revision", "consistency"];

/// Lists keys.
///
/// In the order of their bytes, page by page. A page has up to 1,000 keys or 1 MiB; `next`, if it is there, is the
/// `start_after` of the next one. With the `revision` of the first page all pages show the same state.
#[utoipa::path(
    get,
    path = "/v1/kv",
    operation_id = "list_keys",
    tag = "Keys",
    params(ListParameters, ForwardHeader),
    responses(
        (
            status = 200,
            description = "One page.",
            body = ListAnswer,
            example = json!({"revision": 3, "items": [
                {"key": "config/color", "value": "green", "revision": 3, "create_revision": 3, "version": 1}
            ]}),
        ),
        ListErrors,
    ),
)]
pub async fn list(app: web::Data<ExampleApp>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    v1::answer(&app, list_keys(&app, &request, payload).await)
}

/// Removes many keys.
///
/// Up to 1,000 keys go at one revision. More go in several steps, which spare keys that were changed meanwhile.
#[utoipa::path(
    delete,
    path = "/v1/kv",
    operation_id = "delete_keys",
    tag = "Keys",
    params(DeletePrefixParameters, WriteHeaders),
    responses(
        (
            status = 200,
            description = "The keys are gone.",
            body = DeleteAnswer,
            example = json!({"revision": 6, "deleted": 2}),
        ),
        DeletePrefixErrors,
    ),
)]
pub async fn delete_prefix(app: web::Data<ExampleApp>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    v1::answer(&app, delete_keys(&app, &request, payload).await)
}

/// What one page is to show.
struct Page {
    range: Range,
    keys_max: usize,
    bytes_max: usize,
    keys_only: bool,
    /// What the time that a key has left is counted from.
    now_ms: u64,
}

async fn list_keys(app: &ExampleApp, request: &HttpRequest, payload: web::Payload) -> Result<HttpResponse, ApiError> {
    refuse_body(app, request, payload).await?;
    let parameters = Parameters::of(request, LIST_PARAMETERS)?;
    let limits = &app.limits;
    let part = |name| parameters.key_part(name, limits).map(|text| text.map(str::to_owned));
    let range = Range {
        prefix: part("prefix")?.unwrap_or_default(),
        start: part("start")?.unwrap_or_default(),
        end: part("end")?,
        start_after: part("start_after")?,
        reverse: parameters.flag("reverse")?,
    };
    let keys_max = parameters.number("limit", 1, limits.page_keys as u64)?.unwrap_or(limits.page_keys as u64);
    let keys_only = parameters.flag("keys_only")?;
    let wanted = parameters.number("revision", 0, u64::MAX)?;
    ready_to_read(app, request, parameters.stale()?).await?;
    let (revision, data, replaced_bytes) = state_of(app, wanted)?;
    // Not before the state: a key put meanwhile would have longer to live than its TTL.
    let now_ms = app.store.clock().now_ms();
    let page = Page { range, keys_max: keys_max as usize, bytes_max: limits.page_bytes, keys_only, now_ms };
    let records = page.records_of(&data);
    let (bytes, more) = (records.bytes, records.more);
    let memory = app.client_memory.for_response(bytes, Duration::ZERO).await?;
    let body = app.long_work.run(|| bytes, move || Ok(page.encode(revision, &records))).await?;
    if more {
        let surplus = app.store.state_machine.listings().keep(revision, &data, replaced_bytes);
        if surplus.is_some() {
            tokio::task::spawn_blocking(move || drop(surplus));
        }
    }
    let mut response = json(StatusCode::OK, body);
    response.headers_mut().insert(REVISION.clone(), HeaderValue::from(revision));
    Ok(memory.until_written(response))
}

/// The state to be listed: the current one, or one that an earlier page showed.
fn state_of(app: &ExampleApp, wanted: Option<u64>) -> Result<(u64, Data, u64), ApiError> {
    let (revision, data, replaced_bytes) =
        app.store.state_machine.read(|machine| (machine.revision, machine.data.clone(), machine.replaced_bytes()));
    match wanted {
        None => Ok((revision, data, replaced_bytes)),
        Some(wanted) if wanted == revision => Ok((revision, data, replaced_bytes)),
        Some(wanted) if wanted > revision => Err(revision_in_future(wanted, revision)),
        Some(wanted) => match app.store.state_machine.listings().get(wanted) {
            Some((data, replaced_bytes)) => Ok((wanted, data, replaced_bytes)),
            None => Err(ApiError::RevisionGone(RevisionGone {
                message: format!(
                    "the state of revision {wanted} is not kept on node {}: pages of one listing come from one node, \
                     and not long after each other; begin again without `revision`",
                    app.id
                ),
                oldest_revision: revision,
                outcome: Outcome::NotApplied,
            })),
        },
    }
}

/// A revision that no answer of this cluster can have had.
pub fn revision_in_future(wanted: u64, revision: u64) -> ApiError {
    ApiError::bad_request("revision_in_future", format!("revision {wanted} is not reached: the store is at {revision}"))
}

/// What is on one page.
struct Records {
    records: Vec<(Key, Arc<Record>)>,
    /// About how many bytes the page has before it is encoded.
    bytes: usize,
    /// Whether there is another page.
    more: bool,
}

impl Page {
    fn records_of(&self, data: &Data) -> Records {
        let mut found = Records { records: Vec::new(), bytes: 0, more: false };
        let mut keys = self.range.of(data).peekable();
        let mut page_bytes = 0;
        while found.records.len() < self.keys_max && page_bytes < self.bytes_max {
            let Some((key, record)) = keys.next() else { break };
            page_bytes += key.len() + if self.keys_only { 0 } else { record.value.as_bytes().len() };
            found.records.push((key.clone(), record.clone()));
        }
        found.more = keys.peek().is_some();
        found.bytes = page_bytes + KEY_VALUE_EXTRA_BYTES * found.records.len();
        found
    }

    fn encode(&self, revision: u64, records: &Records) -> Vec<u8> {
        let key_value = |(key, record): &(Key, Arc<Record>)| match self.keys_only {
            true => record.outline(key, self.now_ms),
            false => record.to_key_value(key, self.now_ms),
        };
        let items: Vec<KeyValue> = records.records.iter().map(key_value).collect();
        let next = items.last().filter(|_| records.more).map(|item| item.key.clone());
        encode(&ListAnswer { revision, items, next }, records.bytes)
    }
}

async fn delete_keys(app: &ExampleApp, request: &HttpRequest, payload: web::Payload) -> Result<HttpResponse, ApiError> {
    refuse_body(app, request, payload).await?;
    let parameters = Parameters::of(request, &["prefix", "all"])?;
    refuse_conditions(request)?;
    let all = parameters.flag("all")?;
    let prefix = match (parameters.key_part("prefix", &app.limits)?, all) {
        (Some(prefix), false) if !prefix.is_empty() => prefix,
        (None, true) => "",
        (Some(_), true) => return Err(invalid("all", "and `prefix` are not given together")),
        (_, false) => return Err(invalid("prefix", "must not be empty; to delete every key, say `all`")),
    };
    let mut revision_max = None;
    let mut deleted_before = 0;
    let mut is_first_step = true;
    // With an Idempotency-Key the state machine knows where it was.
    let is_remembered = request.headers().contains_key(&IDEMPOTENCY_KEY);
    loop {
        // Another leader would begin anew, and not spare what was changed meanwhile.
        if !is_first_step && !is_remembered && app.role() != Role::Leader {
            return Err(half_done("the leader changed"));
        }
        let operation = Operation::DeletePrefix { prefix: prefix.into(), revision_max };
        match v1::write(app, request, Bytes::new(), HeldMemory::default(), operation).await {
            Ok(Written::Answered(answer)) if is_first_step => return Ok(answer),
            Ok(Written::Answered(answer)) if is_remembered && answer.status().is_success() => return Ok(answer),
            Ok(Written::Answered(_)) => return Err(half_done("the leader changed")),
            Ok(Written::Here(response, _)) => match response.result {
                Some(WriteResult::Delete { deleted, revision, unfinished: None }) => {
                    let deleted = deleted_before + deleted;
                    return Ok(written(&response, &DeleteAnswer { revision, deleted }, None));
                }
                Some(WriteResult::Delete { deleted, unfinished, .. }) => {
                    is_first_step = false;
                    if !is_remembered {
                        revision_max = unfinished;
                        deleted_before += deleted;
                    }
                }
                ref other => return Err(unexpected(other.as_ref())),
            },
            Err(error) if !is_first_step => return Err(half_done(&error.to_string())),
            Err(error) => return Err(error),
        }
    }
}

/// Some steps of a deletion are done and some are not.
fn half_done(why: &str) -> ApiError {
    ApiError::OutcomeUnknown(Details::unknown(format!(
        "some keys were deleted, and then: {why}; try again to delete the rest"
    )))
}
