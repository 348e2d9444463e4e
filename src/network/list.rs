//! Routes of many keys: listing them page by page, and deleting them by prefix.

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::HeaderValue;
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use serde::Serialize;

use super::access::{Caller, ToRead, ToWrite};
use super::conditions::reject_conditions;
use super::memory::HeldMemory;
use super::openapi::answers::{DeletePrefixErrors, ListErrors};
use super::openapi::parameters::{DeletePrefixParameters, ForwardHeader, ListParameters, WriteHeaders};
use super::parameters::{Parameters, invalid};
use super::reply::{encode, json};
use super::request_body::reject_body;
use super::v1::{self, WriteOutcome, ready_to_read, unexpected, written};
use crate::app::{ExampleApp, Role};
use crate::auth::Keys;
use crate::body::{DeleteAnswer, KeyValueRef, ListAnswer};
use crate::config::KEY_VALUE_EXTRA_BYTES;
use crate::error::{ApiError, Interrupted, NotApplied, RevisionGone};
use crate::headers::{IDEMPOTENCY_KEY, REVISION};
use crate::operation::{Key, Operation, WriteResult};
use crate::store::state_machine::listing::Range;
use crate::store::{Data, Record};

const LIST_PARAMETERS: &[&str] =
    &["prefix", "start", "end", "start_after", "limit", "keys_only", "reverse", "revision", "consistency"];

/// Lists keys.
///
/// Keys are in the order of their bytes, in pages of at most 1,000 keys or 1 MiB. If the page has a `next`, it is the
/// `start_after` of the next page. With the `revision` of the first page, all pages show the same state.
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
pub async fn list(app: Caller<ToRead>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    v1::answer(&app, list_keys(&app, &request, payload).await)
}

/// Deletes many keys.
///
/// At most 1,000 keys are deleted at one revision. More are deleted in several steps, which skip keys that changed
/// meanwhile.
#[utoipa::path(
    delete,
    path = "/v1/kv",
    operation_id = "delete_keys",
    tag = "Keys",
    params(DeletePrefixParameters, WriteHeaders),
    responses(
        (
            status = 200,
            description = "The keys no longer exist.",
            body = DeleteAnswer,
            example = json!({"revision": 6, "deleted": 2}),
        ),
        DeletePrefixErrors,
    ),
)]
pub async fn delete_prefix(app: Caller<ToWrite>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    v1::answer(&app, delete_keys(&app, &request, payload).await)
}

/// What a page must contain.
struct Page {
    range: Range,
    keys_max: usize,
    bytes_max: usize,
    keys_only: bool,
    /// The time from which the rest of a TTL is computed.
    now_ms: u64,
}

async fn list_keys(
    app: &Caller<ToRead>,
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    reject_body(app, request, payload).await?;
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
    let permit = match &range.end {
        Some(end) if range.prefix.is_empty() => app.may_read(Keys::Between(&range.start, end))?,
        _ => app.may_read(Keys::Prefix(&range.prefix))?,
    };
    ready_to_read(app, request, &permit, parameters.stale()?).await?;
    let (revision, data, replaced_bytes) = state_of(app, wanted)?;
    // Read the clock after the state: otherwise a key that was put meanwhile would have more than its TTL left.
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

/// The state to list: the current one, or the one that an earlier page showed.
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
                    "the state at revision {wanted} is not kept on node {}: request all pages of a list from one node, \
                     each soon after the previous one; start again without `revision`",
                    app.id
                ),
                oldest_revision: revision,
                outcome: NotApplied::NotApplied,
            })),
        },
    }
}

/// A revision that the store has not reached, so that no response can have shown it.
pub fn revision_in_future(wanted: u64, revision: u64) -> ApiError {
    ApiError::bad_request(
        "revision_in_future",
        format!("revision {wanted} does not exist yet: the store is at revision {revision}"),
    )
}

/// The keys of one page.
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
        let next = records.records.last().filter(|_| records.more).map(|(key, _)| key.as_str());
        let items = records.records.iter().map(|(key, record)| {
            let expires_in_ms = record.expires_in_ms(self.now_ms);
            match self.keys_only {
                true => v1::outline(key, record, expires_in_ms),
                false => v1::key_value(key, record, expires_in_ms),
            }
        });
        encode(&ListRef { revision, items: items.collect(), next }, records.bytes)
    }
}

/// A [`ListAnswer`] to be written, without copies.
#[derive(Serialize)]
struct ListRef<'a> {
    revision: u64,
    items: Vec<KeyValueRef<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<&'a str>,
}

async fn delete_keys(
    app: &Caller<ToWrite>,
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    reject_body(app, request, payload).await?;
    let parameters = Parameters::of(request, &["prefix", "all"])?;
    reject_conditions(request)?;
    let all = parameters.flag("all")?;
    let prefix = match (parameters.key_part("prefix", &app.limits)?, all) {
        (Some(prefix), false) if !prefix.is_empty() => prefix,
        (None, true) => "",
        (Some(_), true) => return Err(invalid("all", "and `prefix` must not be given together")),
        (_, false) => return Err(invalid("prefix", "must not be empty; use `all` to delete every key")),
    };
    let mut revision_max = None;
    let mut deleted_before = 0;
    let mut is_first_step = true;
    // With an Idempotency-Key the state machine remembers the position.
    let is_remembered = request.headers().contains_key(&IDEMPOTENCY_KEY);
    loop {
        // Another leader would start again, and delete keys that changed meanwhile.
        if !is_first_step && !is_remembered && app.role() != Role::Leader {
            return Err(half_done("the leader changed"));
        }
        let operation = Operation::DeletePrefix { prefix: prefix.into(), revision_max };
        let write = match app.may_write(operation) {
            Err(error) if is_first_step => return Err(error),
            Err(error) => return Err(half_done(&error.to_string())),
            Ok(write) => write,
        };
        match v1::write(app, request, Bytes::new(), HeldMemory::default(), write).await {
            Ok(WriteOutcome::Response(answer)) if is_first_step => return Ok(answer),
            Ok(WriteOutcome::Response(answer)) if is_remembered && answer.status().is_success() => return Ok(answer),
            Ok(WriteOutcome::Response(_)) => return Err(half_done("the leader changed")),
            Ok(WriteOutcome::Here(response, _)) => match response.result {
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

/// Some steps of a deletion are applied, and some are not.
fn half_done(why: &str) -> ApiError {
    ApiError::OutcomeUnknown(Interrupted::unknown(format!(
        "some keys were deleted before the request failed: {why}; retry to delete the rest"
    )))
}
