//! `GET /v1/watch`: changes as server-sent events, from any revision in the history.
//!
//! The `id` of an event is its revision. A revision may change several keys. Only the last of its events has the plain
//! revision as its id; the others have `<revision>.<position>`. So a watch that breaks between them resumes at the
//! right one, and no event is skipped or sent twice.

use std::io::Write;
use std::pin::Pin;
use std::sync::Arc;

use actix_web::http::ConnectionType;
use actix_web::http::header::{self, HeaderMap, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde::Serialize;
use tokio::time::Instant;

use super::access::{Caller, Permit, ToRead};
use super::consensus::linearize;
use super::list::revision_in_future;
use super::listener::admission::state_of;
use super::listener::connection_limits::WatchPermit;
use super::openapi::answers::{EventStream, WatchErrors};
use super::openapi::parameters::{WatchHeaders, WatchParameters};
use super::parameters::{Parameters, check_key, invalid, one_header, says_no};
use super::readiness;
use super::rejections::{no_leader, stopping};
use super::request_body::reject_body;
use super::v1::{self, key_value, ready_to_read};
use super::watch_held::{InitialState, WatchHeld};
use crate::app::{ExampleApp, Exclusion};
use crate::auth::Keys;
use crate::body::{KeyValueRef, WatchEnd, WatchEvent, write_json_line};
use crate::config::{
    KEY_VALUE_EXTRA_BYTES, REQUEST_DEADLINE, STATE_REPLACED_BYTES_MAX, WATCH_BATCH_BYTES, WATCH_CONFIRMATION_DEADLINE,
    WATCH_HEARTBEAT, WATCH_LEADER_DEADLINE, WATCH_LEADER_INTERVAL, WATCH_PIECE_BYTES_MAX,
};
use crate::confirmations::Wanted;
use crate::error::{ApiError, NotApplied, Retry, RevisionGone};
use crate::headers::{LAST_EVENT_ID, REVISION, WAIT};
use crate::operation::Key;
use crate::store::state_machine::listing::Range;
use crate::store::{Change, ChangeKind, Filter, LongEvents, Record, Subscription, WatchError};

/// Streams changes as they happen.
///
/// The response is a stream of server-sent events, one for each change, with a `WatchEvent` as its `data`. The `id` is
/// the revision. If a request changed several keys, all events but the last have `<revision>.<n>`. After a broken
/// connection the watch resumes after the `id` of the last event, on any node. The last 100,000 changes (at most 64 MiB
/// of them) are kept.
///
/// While no leader is known, a new watch waits for one for up to 30 seconds. It sends comments meanwhile, and then ends
/// with an `end` event, so an `EventSource` connects again. An error status means that the request is invalid, or that
/// the watch limit of the node is reached.
#[utoipa::path(
    get,
    path = "/v1/watch",
    operation_id = "watch",
    tag = "Watches",
    params(WatchParameters, WatchHeaders),
    responses(
        (
            status = 200,
            description = "An endless stream of events.",
            body = EventStream,
            content_type = "text/event-stream",
            example = json!("id: 3\ndata: {\"type\":\"put\",\"key\":\"config/color\",\"value\":\"green\",\
                \"revision\":3,\"create_revision\":3,\"version\":1}\n\n"),
        ),
        WatchErrors,
    ),
)]
pub async fn watch(app: Caller<ToRead>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    let started = start_watch(&app, &request, payload).await;
    let is_overloaded = matches!(started, Err(ApiError::Overloaded(_)));
    let mut response = v1::answer(&app, started);
    if is_overloaded {
        // Its connection would take up one of the clients' share.
        response.head_mut().set_connection_type(ConnectionType::Close);
    }
    response
}

async fn start_watch(
    app: &Caller<ToRead>,
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    reject_body(app, request, payload).await?;
    let parameters = Parameters::of(request, &["prefix", "key", "from", "initial", "consistency"])?;
    let filter = match (parameters.key_part("prefix", &app.limits)?, parameters.text("key")) {
        (Some(_), Some(_)) => return Err(invalid("key", "and `prefix` must not be given together")),
        (_, Some(key)) => {
            check_key(key, &app.limits)?;
            Filter::Key(key.into())
        }
        (prefix, None) => Filter::Prefix(prefix.unwrap_or_default().into()),
    };
    let permit = match &filter {
        Filter::Key(key) => app.may_read(Keys::One(key))?,
        Filter::Prefix(prefix) => app.may_read(Keys::Prefix(prefix))?,
    };
    let from = parameters.number("from", 1, u64::MAX)?;
    let initial = parameters.flag("initial")?;
    let stale = parameters.stale()?;
    if initial && from.is_some() {
        return Err(invalid(
            "from",
            "and `initial` must not be given together: `from` begins at a revision, `initial` with the current state",
        ));
    }
    let begin = Begin { resumed: resumed_after(request)?, filter, from, initial, stale };
    let Some(place) = state_of(request).map(|state| state.admit_watch()) else {
        return Err(stopping()); // Every connection of this server has one.
    };
    let Some(place) = place else {
        return Err(ApiError::Overloaded(Retry::soon("this node has reached its limit of watches; use another node")));
    };
    let asked = Instant::now();
    let may_wait = !says_no(request.headers(), &WAIT);
    let ready = ready_to_read(app, request, &permit, stale);
    let ready = if may_wait {
        // Do not delay the headers until a leader responds that may never do so.
        tokio::time::timeout(WATCH_LEADER_INTERVAL, ready).await.unwrap_or_else(|_| Err(no_leader(app)))
    } else {
        ready.await
    };
    let held = app.watches_held.of_new_watch();
    let (state, revision) = match ready {
        Ok(()) => {
            let (watching, revision) = begin.now(app, &held)?;
            (State::Watching(watching), Some(revision))
        }
        // A browser's EventSource does not retry after an error status.
        Err(error) if may_wait && may_pass(app, &error) => {
            (State::Waiting(Waiting::new(app, begin, asked, error)), None)
        }
        Err(error) => return Err(error),
    };
    let ended: PermitEnded = Box::pin(permit.ended(app));
    let watch = Watch { app: web::Data::clone(app), state, held, stale, permit, _place: place };
    let mut response = HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")))
        .insert_header((header::CACHE_CONTROL, HeaderValue::from_static("no-store")))
        .streaming(stream::unfold((watch, ended), |(watch, ended)| watch.next(ended)).fuse());
    if let Some(revision) = revision {
        response.headers_mut().insert(REVISION.clone(), HeaderValue::from(revision));
    }
    Ok(response)
}

/// Where a watch begins.
struct Begin {
    /// The first event after the last one that the reader has.
    resumed: Option<(u64, u32)>,
    filter: Filter,
    from: Option<u64>,
    initial: bool,
    stale: bool,
}

impl Begin {
    /// Begins with this node's current state; also returns its revision.
    fn now(&self, app: &ExampleApp, held: &WatchHeld) -> Result<(Watching, u64), ApiError> {
        let (oldest, state) = app.store.state_machine.read(|machine| {
            let (data, revision, replaced_bytes) = (machine.data.clone(), machine.revision, machine.replaced_bytes());
            (machine.history.oldest(), InitialState { data, revision, replaced_bytes })
        });
        let revision = state.revision;
        let cursor = match (self.resumed, self.from) {
            (Some(cursor), _) => cursor,
            (None, Some(from)) => (from, 0),
            (None, None) => (revision + 1, 0),
        };
        if cursor.0 < oldest {
            return Err(gone(oldest));
        }
        // A node that is behind will reach this revision. One that is up to date has never shown it.
        if cursor.0 > revision + 1 && !self.stale {
            return Err(revision_in_future(cursor.0, revision));
        }
        let filter = self.filter.clone();
        let subscription = app.store.state_machine.watch(filter.clone(), cursor.0, cursor.1);
        let begins_with_state = self.initial && self.resumed.is_none();
        if begins_with_state {
            held.begin_with(state);
        }
        let initial = begins_with_state.then_some(Initial { filter, after: None });
        Ok((Watching { subscription, initial }, revision))
    }
}

/// The first event after the last one that the reader has.
pub(crate) fn resumed_after(request: &HttpRequest) -> Result<Option<(u64, u32)>, ApiError> {
    let Some(text) = one_header(request, &LAST_EVENT_ID)? else { return Ok(None) };
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok());
    let cursor = match text.split_once('.') {
        None => number(text).flatten().and_then(|revision| Some((revision.checked_add(1)?, 0))),
        Some((revision, position)) => {
            let position = number(position).flatten().and_then(|position| u32::try_from(position).ok());
            number(revision).flatten().zip(position).and_then(|(revision, it)| Some((revision, it.checked_add(1)?)))
        }
    };
    match cursor {
        Some(cursor) => Ok(Some(cursor)),
        None => Err(ApiError::bad_request("invalid_last_event_id", "Last-Event-ID must be the `id` of an event")),
    }
}

fn gone(oldest: u64) -> ApiError {
    ApiError::RevisionGone(RevisionGone {
        message: format!(
            "changes before revision {oldest} are no longer kept; start again with `initial`, \
             or from revision {oldest} if the earlier changes do not matter"
        ),
        oldest_revision: oldest,
        outcome: NotApplied::NotApplied,
    })
}

/// Completes once the token of a watch has expired or was revoked. A watch has one for all of its time, because each
/// registers with the changes of the tokens.
type PermitEnded = Pin<Box<dyn Future<Output = ApiError>>>;

/// A watch. It lasts until its connection closes or it ends by itself.
struct Watch {
    app: web::Data<ExampleApp>,
    state: State,
    /// Sent before anything else; and the state at its beginning.
    held: WatchHeld,
    stale: bool,
    /// The right to read its keys, until the token expires or is revoked.
    permit: Permit,
    /// Counts the watch towards the watch limit.
    _place: WatchPermit,
}

enum State {
    /// No leader has confirmed yet that this node is up to date.
    Waiting(Waiting),
    Watching(Watching),
    Ended,
}

/// A watch that has not begun.
struct Waiting {
    begin: Begin,
    /// The revision after which it begins unless the request names one.
    revision: u64,
    /// The time of the request, and the time until which it waits.
    asked: Instant,
    until: Instant,
    /// Why the last attempt failed, and when.
    error: ApiError,
    failed: Instant,
    /// When the last comment was sent.
    said: Option<Instant>,
}

impl Waiting {
    /// A watch from now on must miss nothing that is written while it waits. This node's state may be old, so the watch
    /// may also show changes from shortly before its request.
    fn new(app: &ExampleApp, mut begin: Begin, asked: Instant, error: ApiError) -> Self {
        let revision = app.store.state_machine.read(|machine| machine.revision);
        if !begin.initial {
            begin.from.get_or_insert(revision + 1);
        }
        let now = Instant::now();
        Waiting { begin, revision, asked, until: now + WATCH_LEADER_DEADLINE, error, failed: now, said: None }
    }

    /// A comment while the watch waits. It has the `id` at which a watch from now on resumes if it breaks meanwhile.
    fn comment(&mut self, now: Instant) -> Bytes {
        self.said = Some(now);
        if self.begin.resumed.is_none() && self.begin.from == Some(self.revision + 1) {
            return format!(": waiting for a leader\nid: {}\n\n", self.revision).into();
        }
        Bytes::from_static(b": waiting for a leader\n\n")
    }
}

/// A watch that has begun.
struct Watching {
    subscription: Subscription,
    /// The rest of the initial state.
    initial: Option<Initial>,
}

/// How much of the state at its beginning a watch has sent.
struct Initial {
    filter: Filter,
    after: Option<Key>,
}

impl Watch {
    /// The next piece of the body. Pieces are short: the connection copies a piece, and holds the copy until the reader
    /// takes it.
    async fn next(mut self, mut ended: PermitEnded) -> Option<(Result<Bytes, actix_web::Error>, (Self, PermitEnded))> {
        loop {
            let piece = match self.held.next(WATCH_PIECE_BYTES_MAX) {
                Ok(None) => {
                    self.advance(&mut ended).await?;
                    continue;
                }
                Ok(Some(piece)) => Ok(piece),
                // The rest of an event must not look like its end.
                Err(cut) => Err(std::io::Error::other(cut).into()),
            };
            return Some((piece, (self, ended)));
        }
    }

    /// Waits for something to send, or until the watch must end; `None` if it has ended.
    async fn advance(&mut self, ended: &mut PermitEnded) -> Option<()> {
        if let State::Ended = self.state {
            return None;
        }
        // Log time may have been set forward meanwhile.
        let denied = match self.permit.check_again(&self.app) {
            Err(error) => error,
            Ok(()) => tokio::select! {
                biased;
                error = ended => error,
                advanced = self.advance_permitted() => return advanced,
            },
        };
        // What it was about to send is dropped.
        self.state = State::Ended;
        self.held.push(end_event(end_of(&denied)));
        Some(())
    }

    async fn advance_permitted(&mut self) -> Option<()> {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Ended => return None,
            State::Waiting(waiting) => {
                let (bytes, state) = self.wait(waiting).await;
                self.held.push(bytes);
                self.state = state;
            }
            State::Watching(mut watching) => {
                let sent = match watching.initial.take() {
                    Some(initial) => watching.send_initial(&self.app, initial, &self.held).await,
                    None => watching.send_changes(&self.app, self.stale, &self.held).await,
                };
                match sent {
                    Ok(()) => self.state = State::Watching(watching),
                    Err(end) => self.held.push(end_event(end)),
                }
            }
        }
        Some(())
    }

    /// Waits until the watch can begin, a comment is due, or the watch has waited too long.
    async fn wait(&self, mut waiting: Waiting) -> (Bytes, State) {
        loop {
            let now = Instant::now();
            if now >= waiting.until || self.app.is_stopping() || !may_pass(&self.app, &waiting.error) {
                return (end_event(end_of(&waiting.error)), State::Ended);
            }
            let due = waiting.said.map_or(now, |said| said + WATCH_HEARTBEAT);
            if now >= due {
                return (waiting.comment(now), State::Waiting(waiting));
            }
            tokio::select! {
                () = self.app.stopped() => waiting.error = stopping(),
                () = tokio::time::sleep_until(due.min(waiting.until)) => {}
                confirmed = self.confirm(&waiting) => match confirmed {
                    Ok(()) => return self.begin(waiting),
                    Err(error) => (waiting.error, waiting.failed) = (error, Instant::now()),
                },
            }
        }
    }

    fn begin(&self, waiting: Waiting) -> (Bytes, State) {
        match waiting.begin.now(&self.app, &self.held) {
            // An id without data is not an event, but readers resume after it.
            Ok((watching, revision)) => {
                (format!(": the watch begins\nid: {revision}\n\n").into(), State::Watching(watching))
            }
            Err(error) => (end_event(end_of(&error)), State::Ended),
        }
    }

    /// Waits until this node can serve the watch, or fails again.
    async fn confirm(&self, waiting: &Waiting) -> Result<(), ApiError> {
        if self.stale {
            tokio::time::sleep_until(waiting.failed + WATCH_LEADER_INTERVAL).await;
            return readiness::stale_read(&self.app);
        }
        let wanted = Wanted { confirmed_since: waiting.asked, failed_since: waiting.failed };
        self.app.confirmations.confirm(wanted, ask_leader(&self.app)).await
    }
}

/// Confirms that this node reaches the leader and is up to date.
async fn ask_leader(app: &ExampleApp) -> Result<(), ApiError> {
    let headers = HeaderMap::new();
    loop {
        let leader_changed = app.leader_changed();
        tokio::select! {
            biased;
            asked = linearize(app, &headers, Some(WATCH_CONFIRMATION_DEADLINE)) => return asked,
            // The former leader may never respond.
            () = leader_changed => {}
        }
    }
}

/// Waits until a heartbeat is due and the leader has confirmed that this node is up to date.
async fn heartbeat_due(app: &ExampleApp, stale: bool) -> Result<(), WatchEnd> {
    tokio::time::sleep(WATCH_HEARTBEAT).await;
    if stale {
        return Ok(());
    }
    // A node that is cut off takes its last leader for the current one.
    let mut wanted = Wanted::at_heartbeat();
    let confirmed = async {
        loop {
            match app.confirmations.confirm(wanted, ask_leader(app)).await {
                Err(error) if may_pass(app, &error) => wanted.failed_since = Instant::now(),
                result => return result,
            }
        }
    };
    match tokio::time::timeout(REQUEST_DEADLINE, confirmed).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(WatchEnd {
            code: "no_leader".to_owned(),
            message: "this node reaches no leader, so it may miss changes; use another node".to_owned(),
        }),
    }
}

impl Watching {
    async fn send_initial(&mut self, app: &ExampleApp, initial: Initial, held: &WatchHeld) -> Result<(), WatchEnd> {
        // An old state takes memory while the store changes, so a reader of it must keep up with the history.
        let oldest = app.store.state_machine.read(|machine| machine.history.oldest());
        let Some(InitialState { data, revision, .. }) = held.initial() else {
            return Err(state_taken_back());
        };
        if oldest > revision + 1 {
            return Err(too_slow(oldest));
        }
        let (prefix, end) = match &initial.filter {
            Filter::Prefix(prefix) => (prefix.to_string(), None),
            Filter::Key(key) => (key.to_string(), Some(format!("{key}\0"))),
        };
        let start_after = initial.after.as_deref().map(str::to_owned);
        let range = Range { prefix, end, start_after, ..Range::default() };
        let mut records: Vec<(Key, Arc<Record>)> = Vec::new();
        let mut bytes = 0;
        let mut is_last = true;
        for (key, record) in range.of(&data) {
            if bytes >= WATCH_BATCH_BYTES {
                is_last = false;
                break;
            }
            bytes += KEY_VALUE_EXTRA_BYTES + key.len() + record.value.as_bytes().len();
            records.push((key.clone(), record.clone()));
        }
        drop(data);
        if is_last {
            held.initial_is_sent();
        } else {
            let after = records.last().map(|(key, _)| key.clone());
            self.initial = Some(Initial { after, ..initial });
        }
        let synced = is_last.then_some(revision);
        let memory = app.client_memory.for_watch(bytes).await.map_err(|error| end_of(&error))?;
        let encode = move || Ok(encode_initial(&records, synced));
        let piece = app.long_work.run(|| bytes, encode).await.map_err(|error| end_of(&error))?;
        held.extend(memory.around(vec![piece]), revision);
        Ok(())
    }

    async fn send_changes(&mut self, app: &ExampleApp, stale: bool, held: &WatchHeld) -> Result<(), WatchEnd> {
        tokio::select! {
            biased;
            () = app.stopped() => Err(end_of(&stopping())),
            batch = self.subscription.next() => match batch {
                Ok(batch) => {
                    let memory = app.client_memory.for_watch(batch.unshared_bytes()).await;
                    let memory = memory.map_err(|error| end_of(&error))?;
                    let (store, shared) = (app.store.state_machine.clone(), batch.clone());
                    let encode = move || Ok(store.encoded(&shared, encode).to_vec());
                    let pieces = app.long_work.run(|| batch.bytes_to_encode(), encode).await;
                    let last_revision = batch.changes().last().map_or(0, |change| change.revision);
                    held.extend(memory.around(pieces.map_err(|error| end_of(&error))?), last_revision);
                    Ok(())
                }
                Err(WatchError::Gone { oldest }) => Err(too_slow(oldest)),
            },
            due = heartbeat_due(app, stale) => {
                due?;
                held.push(self.heartbeat());
                Ok(())
            }
        }
    }

    /// A heartbeat, with the `id` up to which the reader has everything.
    fn heartbeat(&mut self) -> Bytes {
        match self.subscription.caught_up() {
            // An id without data is not an event, but readers resume after it.
            Some(revision) => format!(": heartbeat\nid: {revision}\n\n").into(),
            None => Bytes::from_static(b": heartbeat\n\n"),
        }
    }
}

/// Whether the error is temporary. A node that was removed may be added again, but one that lost its data never is, and
/// one without a cluster needs an operator.
fn may_pass(app: &ExampleApp, error: &ApiError) -> bool {
    matches!(error.status(), 500 | 503 | 504)
        && app.store.identity().cluster_id.is_some()
        && !matches!(app.exclusion(), Some(Exclusion::OtherDirectory { .. }))
}

/// The end of a watch that would have been rejected with this error if it had not begun.
fn end_of(error: &ApiError) -> WatchEnd {
    WatchEnd { code: error.code().to_owned(), message: error.to_string() }
}

fn end_event(end: WatchEnd) -> Bytes {
    let mut event = Vec::new();
    write_event(&mut event, None, &WatchEvent::End(end));
    event.into()
}

fn state_taken_back() -> WatchEnd {
    WatchEnd {
        code: "too_slow".to_owned(),
        message: format!(
            "the initial state of this watch is no longer kept: the client read it too slowly, or \
             {STATE_REPLACED_BYTES_MAX} bytes of values were replaced meanwhile; start again with `initial`"
        ),
    }
}

fn too_slow(oldest: u64) -> WatchEnd {
    WatchEnd {
        code: "too_slow".to_owned(),
        message: format!(
            "the next changes are no longer kept (the oldest revision is {oldest}): the client reads this watch more \
             slowly than the store changes; start again with `initial`"
        ),
    }
}

/// A [`WatchEvent`] to be written, without copies.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum EventRef<'a> {
    Initial(KeyValueRef<'a>),
    Synced { revision: u64 },
    Put(KeyValueRef<'a>),
    Delete { key: &'a str, revision: u64 },
    Expire { key: &'a str, revision: u64 },
}

/// Encodes the changes of whole revisions. Long events are pieces of their own.
fn encode(changes: &[Change], long_events: &LongEvents) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    let mut events = Vec::new();
    for (index, change) in changes.iter().enumerate() {
        let revision = change.revision;
        let is_last = changes.get(index + 1).is_none_or(|next| next.revision != revision);
        write_id(&mut events, (revision, (!is_last).then_some(change.position)));
        if long_events.is_for(change) {
            pieces.push(piece_of(std::mem::take(&mut events)));
            pieces.push(long_events.get_or_encode(change, || data_of(change)));
        } else {
            write_data(&mut events, &event_of(change));
        }
    }
    if !events.is_empty() {
        pieces.push(piece_of(events));
    }
    pieces
}

/// Encodes keys as they were when a watch began, and the revision of that state after the last ones.
fn encode_initial(records: &[(Key, Arc<Record>)], synced: Option<u64>) -> Bytes {
    let mut events = Vec::new();
    for (key, record) in records {
        write_event(&mut events, None, &EventRef::Initial(key_value(key, record, None)));
    }
    if let Some(revision) = synced {
        write_event(&mut events, Some((revision, None)), &EventRef::Synced { revision });
    }
    piece_of(events)
}

fn data_of(change: &Change) -> Bytes {
    let mut data = Vec::new();
    write_data(&mut data, &event_of(change));
    piece_of(data)
}

/// A piece without the spare capacity of the vector, which may be as long again and which nothing counts.
fn piece_of(events: Vec<u8>) -> Bytes {
    events.into_boxed_slice().into()
}

fn event_of(change: &Change) -> EventRef<'_> {
    let (key, revision) = (change.key.as_ref(), change.revision);
    match &change.kind {
        ChangeKind::Put(record) => EventRef::Put(key_value(key, record, None)),
        ChangeKind::Delete => EventRef::Delete { key, revision },
        ChangeKind::Expire => EventRef::Expire { key, revision },
    }
}

/// Writes one event.
fn write_event(events: &mut Vec<u8>, id: Option<(u64, Option<u32>)>, event: &impl Serialize) {
    if let Some(id) = id {
        write_id(events, id);
    }
    write_data(events, event);
}

fn write_id(events: &mut Vec<u8>, (revision, position): (u64, Option<u32>)) {
    // Writing to memory cannot fail.
    let _ = match position {
        None => writeln!(events, "id: {revision}"),
        Some(position) => writeln!(events, "id: {revision}.{position}"),
    };
}

/// Writes the data and the end of an event. It contains only strings and numbers, so this cannot fail.
fn write_data(events: &mut Vec<u8>, event: &impl Serialize) {
    events.extend_from_slice(b"data: ");
    if let Err(error) = write_json_line(&mut *events, event) {
        tracing::error!("cannot encode an event as JSON: {error}");
    }
    events.extend_from_slice(b"\n\n");
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::WATCH_LONG_EVENT_BYTES;
    use crate::operation::Value;
    use crate::store::RecordParts;

    /// Pieces take no more memory than their length, by which they are counted.
    ///
    /// Method: short events, long ones (a text, bytes, and a text of which each byte is escaped), and short ones.
    #[test]
    fn pieces_have_no_spare_room() {
        let values = [b'v', 0xff, 1].map(|byte| Value::from(&vec![byte; 1 << 20]));
        let values = [vec![Value::from("short"); 3], values.to_vec(), vec![Value::from("short"); 3]].concat();
        let change = |(revision, value)| {
            let parts = RecordParts { value, revision, create_revision: 1, version: 1, expires_at_ms: 0 };
            let record = Record::new("key", parts);
            Change { revision, position: 0, key: "key".into(), kind: ChangeKind::Put(Arc::new(record)) }
        };
        let changes: Vec<Change> = (1..).zip(values).map(change).collect();
        let long_events = LongEvents::default();
        let mut pieces = encode(&changes, &long_events);
        assert_eq!(pieces.len(), 7);
        // The data of long events is shared with others.
        pieces.retain(|piece| piece.len() < WATCH_LONG_EVENT_BYTES);
        assert_eq!(pieces.len(), 4);
        pieces.extend(changes.iter().filter(|change| long_events.is_for(change)).map(data_of));
        for piece in pieces {
            let length = piece.len();
            let whole = piece.try_into_mut().expect("it is not shared");
            assert_eq!(whole.capacity(), length);
        }
    }
}
