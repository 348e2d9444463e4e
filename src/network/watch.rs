//! `GET /v1/watch`: changes as server-sent events, from any revision that is kept.
//!
//! The `id` of an event is its revision. A revision may change several keys; of
//! those only the last has the plain revision, the others have
//! `<revision>.<position>`, so that a watch which breaks between them is taken up
//! again at the right one, and nothing comes twice or not at all.

use std::io::Write;
use std::sync::Arc;

use actix_web::http::ConnectionType;
use actix_web::http::header::{self, HeaderMap, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use futures_util::stream;
use serde::Serialize;
use tokio::time::Instant;

use super::api::linearize_if_answered;
use super::forward;
use super::list::revision_in_future;
use super::listener::admission::state_of;
use super::listener::connection_limits::WatchPermit;
use super::openapi::answers::{EventStream, WatchErrors};
use super::openapi::parameters::{WatchHeaders, WatchParameters};
use super::parameters::{Parameters, check_key, invalid, one_header, says_no};
use super::reply::refuse_body;
use super::v1::{self, may_read, ready_to_read};
use super::watch_held::{InitialState, WatchHeld};
use crate::app::{ExampleApp, Exclusion};
use crate::body::{EncodedValue, Encoding, WatchEnd, WatchEvent, write_json_line};
use crate::config::{
    KEY_VALUE_EXTRA_BYTES, REQUEST_DEADLINE, WATCH_BATCH_BYTES, WATCH_CONFIRMATION_DEADLINE, WATCH_HEARTBEAT,
    WATCH_LEADER_DEADLINE, WATCH_LEADER_INTERVAL, WATCH_PIECE_BYTES_MAX,
};
use crate::confirmations::Wanted;
use crate::error::{ApiError, Outcome, Retry, RevisionGone};
use crate::headers::{LAST_EVENT_ID, REVISION, WAIT};
use crate::operation::Key;
use crate::store::state_machine::listing::Range;
use crate::store::{Change, ChangeKind, Filter, LongEvents, Record, Subscription, WatchError};

/// Sends changes as they happen.
///
/// Server-sent events, one a change, each with a `WatchEvent` as its `data`. Its `id` is the revision (and
/// `<revision>.<n>` for all but the last, when a request changed several keys), and is where a watch goes on, on any
/// node, after the connection broke. The last 100,000 changes (or 64 MiB of them) are kept.
///
/// While no leader is known, a watch that begins waits for one for up to 30 seconds, with comments meanwhile, and
/// then ends with an `end` event; so an `EventSource` connects again. An error status says that the request is wrong, or
/// that the node has as many watches as it admits.
#[utoipa::path(
    get,
    path = "/v1/watch",
    operation_id = "watch",
    tag = "Watches",
    params(WatchParameters, WatchHeaders),
    responses(
        (
            status = 200,
            description = "Events, without end.",
            body = EventStream,
            content_type = "text/event-stream",
            example = json!("id: 3\ndata: {\"type\":\"put\",\"key\":\"config/color\",\"value\":\"green\",\
                \"revision\":3,\"create_revision\":3,\"version\":1}\n\n"),
        ),
        WatchErrors,
    ),
)]
pub async fn watch(app: web::Data<ExampleApp>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    let started = start_watch(&app, &request, payload).await;
    let is_crowded = matches!(started, Err(ApiError::Overloaded(_)));
    let mut response = v1::answer(&app, started);
    if is_crowded {
        // Its connection would take the place of another client's.
        response.head_mut().set_connection_type(ConnectionType::Close);
    }
    response
}

async fn start_watch(
    app: &web::Data<ExampleApp>,
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    refuse_body(app, request, payload).await?;
    let parameters = Parameters::of(request, &["prefix", "key", "from", "initial", "consistency"])?;
    let filter = match (parameters.key_part("prefix", &app.limits)?, parameters.text("key")) {
        (Some(_), Some(_)) => return Err(invalid("key", "and `prefix` are not given together")),
        (_, Some(key)) => {
            check_key(key, &app.limits)?;
            Filter::Key(key.into())
        }
        (prefix, None) => Filter::Prefix(prefix.unwrap_or_default().into()),
    };
    let from = parameters.number("from", 1, u64::MAX)?;
    let initial = parameters.flag("initial")?;
    let stale = parameters.stale()?;
    if initial && from.is_some() {
        return Err(invalid("from", "and `initial` are not given together: the one begins then, the other now"));
    }
    let begin = Begin { resumed: resumed_after(request)?, filter, from, initial, stale };
    let Some(permit) = state_of(request).map(|state| state.admit_watch()) else {
        return Err(forward::stopping()); // Every connection of this server has one.
    };
    let Some(permit) = permit else {
        return Err(ApiError::Overloaded(Retry::soon("the watch limit of this node is reached; use another node")));
    };
    let asked = Instant::now();
    let may_wait = !says_no(request.headers(), &WAIT);
    let ready = ready_to_read(app, request, stale);
    let ready = if may_wait {
        // The headers are not held back while a leader is asked that does not answer.
        tokio::time::timeout(WATCH_LEADER_INTERVAL, ready).await.unwrap_or_else(|_| Err(forward::no_leader(app)))
    } else {
        ready.await
    };
    let held = app.watches_held.of_new_watch();
    let (state, revision) = match ready {
        Ok(()) => {
            let (watching, revision) = begin.now(app, &held)?;
            (State::Watching(watching), Some(revision))
        }
        // A browser's EventSource never tries again after an error status.
        Err(error) if may_wait && may_pass(app, &error) => {
            (State::Waiting(Waiting::new(app, begin, asked, error)), None)
        }
        Err(error) => return Err(error),
    };
    let watch = Watch { app: app.clone(), state, held, stale, _permit: permit };
    let mut response = HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")))
        .insert_header((header::CACHE_CONTROL, HeaderValue::from_static("no-store")))
        .streaming(stream::unfold(watch, |watch| async { watch.next().await }));
    if let Some(revision) = revision {
        response.headers_mut().insert(REVISION.clone(), HeaderValue::from(revision));
    }
    Ok(response)
}

/// Where a watch begins, as its request says.
struct Begin {
    /// What comes after the last event that the reader has.
    resumed: Option<(u64, u32)>,
    filter: Filter,
    from: Option<u64>,
    initial: bool,
    stale: bool,
}

impl Begin {
    /// Begins with what this node holds now, which is that of the revision returned.
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
        // A node that is behind will get there; one that is not has never been there.
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

/// What comes after the last event that the reader has.
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
        None => Err(ApiError::bad_request("invalid_last_event_id", "Last-Event-ID is the `id` of an event")),
    }
}

fn gone(oldest: u64) -> ApiError {
    ApiError::RevisionGone(RevisionGone {
        message: format!(
            "changes before revision {oldest} are no longer kept; begin again with `initial`, \
             or from revision {oldest} if what came before does not matter"
        ),
        oldest_revision: oldest,
        outcome: Outcome::NotApplied,
    })
}

/// A watch, which lasts until its connection ends or it does.
struct Watch {
    app: web::Data<ExampleApp>,
    state: State,
    /// What comes before anything else, and the state at its beginning.
    held: WatchHeld,
    stale: bool,
    /// Counts it among the watches of this node.
    _permit: WatchPermit,
}

enum State {
    /// No leader could confirm yet that this node is up to date.
    Waiting(Waiting),
    Watching(Watching),
    Ended,
}

/// A watch that has not begun.
struct Waiting {
    begin: Begin,
    /// The revision after which it begins if the request does not say where.
    revision: u64,
    /// When it was asked for, and up to when it waits.
    asked: Instant,
    until: Instant,
    /// Why it did not begin the last time, and when that was known.
    error: ApiError,
    failed: Instant,
    /// When the last comment was sent.
    said: Option<Instant>,
}

impl Waiting {
    /// A watch from now on must miss nothing that is written while it waits. What this node holds now
    /// may be old, so it may also see changes from shortly before its request.
    fn new(app: &ExampleApp, mut begin: Begin, asked: Instant, error: ApiError) -> Self {
        let revision = app.store.state_machine.read(|machine| machine.revision);
        if !begin.initial {
            begin.from.get_or_insert(revision + 1);
        }
        let now = Instant::now();
        Waiting { begin, revision, asked, until: now + WATCH_LEADER_DEADLINE, error, failed: now, said: None }
    }

    /// Says that the watch waits; and where a watch from now on is resumed if it is cut off meanwhile.
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
    /// What is still to be sent of the state at the beginning.
    initial: Option<Initial>,
}

/// How much of the state at its beginning a watch has sent.
struct Initial {
    filter: Filter,
    after: Option<Key>,
}

impl Watch {
    /// The next piece of the body, a short one: the connection copies it, and holds the copy until its
    /// reader takes it.
    async fn next(mut self) -> Option<(Result<Bytes, actix_web::Error>, Self)> {
        loop {
            match self.held.next(WATCH_PIECE_BYTES_MAX) {
                Ok(None) => self.advance().await?,
                Ok(Some(piece)) => return Some((Ok(piece), self)),
                // The rest of an event must not look like its end.
                Err(cut) => return Some((Err(std::io::Error::other(cut).into()), self)),
            }
        }
    }

    /// Waits for something to send; `None` if nothing will come any more.
    async fn advance(&mut self) -> Option<()> {
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

    /// Waits until the watch can begin, the reader is due a word, or it has waited for too long.
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
                () = self.app.stopped() => waiting.error = forward::stopping(),
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
            // An id without data is no event, and is where a reader resumes.
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
            return may_read(&self.app, &HeaderMap::new(), true).await;
        }
        let wanted = Wanted { confirmed_since: waiting.asked, failed_since: waiting.failed };
        self.app.confirmations.confirm(wanted, ask_leader(&self.app)).await
    }
}

/// Whether this node reaches the leader, and has all that was written before.
async fn ask_leader(app: &ExampleApp) -> Result<(), ApiError> {
    let headers = HeaderMap::new();
    loop {
        let leader_changed = app.leader_changed();
        tokio::select! {
            biased;
            asked = linearize_if_answered(app, &headers, WATCH_CONFIRMATION_DEADLINE) => return asked,
            // The former leader may never answer.
            () = leader_changed => {}
        }
    }
}

/// Waits until a watch with nothing to say is due a word, and may be given it.
async fn heartbeat_due(app: &ExampleApp, stale: bool) -> Result<(), WatchEnd> {
    tokio::time::sleep(WATCH_HEARTBEAT).await;
    if stale {
        return Ok(());
    }
    // A node that is cut off believes in its leader for as long as it hears nothing.
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
            message: "this node reaches no leader, so it may miss changes; another one may know".to_owned(),
        }),
    }
}

impl Watching {
    async fn send_initial(&mut self, app: &ExampleApp, initial: Initial, held: &WatchHeld) -> Result<(), WatchEnd> {
        // Keeping an old state takes memory while the store changes, so who reads
        // it slowly must keep up with the history.
        let oldest = app.store.state_machine.read(|machine| machine.history.oldest());
        let Some(InitialState { data, revision, .. }) = held.initial().filter(|state| oldest <= state.revision + 1)
        else {
            return Err(too_slow(oldest));
        };
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
            () = app.stopped() => Err(end_of(&forward::stopping())),
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

    /// Says that the watch goes on, and up to where the reader has everything.
    fn heartbeat(&mut self) -> Bytes {
        match self.subscription.caught_up() {
            // An id without data is no event, and is where a reader resumes.
            Some(revision) => format!(": heartbeat\nid: {revision}\n\n").into(),
            None => Bytes::from_static(b": heartbeat\n\n"),
        }
    }
}

/// Whether the error is temporary. A node that was removed may be added again; one that lost its data never
/// is, and one that never had a cluster needs an operator.
fn may_pass(app: &ExampleApp, error: &ApiError) -> bool {
    matches!(error.status(), 503 | 504)
        && app.store.identity().cluster_id.is_some()
        && !matches!(app.exclusion(), Some(Exclusion::OtherDirectory { .. }))
}

/// How a watch ends that would have been answered with this error if it had not begun.
fn end_of(error: &ApiError) -> WatchEnd {
    WatchEnd { code: error.code().to_owned(), message: error.to_string() }
}

fn end_event(end: WatchEnd) -> Bytes {
    let mut event = Vec::new();
    write_event(&mut event, None, &WatchEvent::End(end));
    event.into()
}

fn too_slow(oldest: u64) -> WatchEnd {
    WatchEnd {
        code: "too_slow".to_owned(),
        message: format!(
            "the changes that come next are no longer kept (the oldest revision is {oldest}): this watch was read \
             more slowly than the store changes; begin again with `initial`"
        ),
    }
}

/// [`WatchEvent`] without copies.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum EventRef<'a> {
    Initial(KeyValueRef<'a>),
    Synced { revision: u64 },
    Put(KeyValueRef<'a>),
    Delete { key: &'a str, revision: u64 },
    Expire { key: &'a str, revision: u64 },
}

#[derive(Serialize)]
struct KeyValueRef<'a> {
    key: &'a str,
    value: std::borrow::Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<Encoding>,
    revision: u64,
    create_revision: u64,
    version: u64,
}

impl<'a> KeyValueRef<'a> {
    fn of(key: &'a str, record: &'a Record) -> Self {
        let (value, encoding) = match record.value.as_text() {
            Some(text) => (text.into(), None),
            None => {
                let EncodedValue { value, encoding } = EncodedValue::of(record.value.as_bytes());
                (value.into(), encoding)
            }
        };
        let Record { revision, create_revision, version, .. } = *record;
        KeyValueRef { key, value, encoding, revision, create_revision, version }
    }
}

/// Changes of whole revisions, as they are sent. Long events are pieces of their own.
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

/// Keys as they were when a watch began; with the revision that this was, if these are the last.
fn encode_initial(records: &[(Key, Arc<Record>)], synced: Option<u64>) -> Bytes {
    let mut events = Vec::new();
    for (key, record) in records {
        write_event(&mut events, None, &EventRef::Initial(KeyValueRef::of(key, record)));
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

/// What was written, without the room that the vector has beside it: up to as much again, which nothing counts.
fn piece_of(events: Vec<u8>) -> Bytes {
    events.into_boxed_slice().into()
}

fn event_of(change: &Change) -> EventRef<'_> {
    let (key, revision) = (change.key.as_ref(), change.revision);
    match &change.kind {
        ChangeKind::Put(record) => EventRef::Put(KeyValueRef::of(key, record)),
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

/// Writes the data of an event, and its end. It has only text and numbers, so this cannot fail.
fn write_data(events: &mut Vec<u8>, event: &impl Serialize) {
    events.extend_from_slice(b"data: ");
    if let Err(error) = write_json_line(&mut *events, event) {
        tracing::error!("an event cannot be written as JSON: {error}");
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

    /// What is kept to be sent takes no more memory than its length, by which it is counted.
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
            let whole = piece.try_into_mut().expect("nobody shares it");
            assert_eq!(whole.capacity(), length);
        }
    }
}
