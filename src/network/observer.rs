//! What is observed of each request: its id, how long it takes, and where the time goes.
//!
//! A connection processes one request at a time, so its state has the place for this ([`Spent`]). At the end of a
//! request its duration is recorded ([`HttpMeters`]), and logged if it is long ([`SlowRequests`]).

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use actix_http::{HttpMessage, Request};
use actix_web::HttpRequest;
use actix_web::http::header::HeaderValue;

use super::listener::admission::state_of;
use crate::config::{REQUEST_ID_BYTES_MAX, SLOW_REPORT_INTERVAL};
use crate::headers::{REQUEST_ID, TRACEPARENT};
use crate::telemetry::meters::HttpMeters;
use crate::telemetry::operations::{OPERATIONS, operation_of};
use crate::telemetry::traces::{RequestSpan, Traces};

/// What one thread observes of its requests.
#[derive(Debug, Default)]
pub struct Observer {
    /// Read by `/v1/metrics` on other threads.
    pub meters: Arc<HttpMeters>,
    slow: Arc<SlowRequests>,
    traces: Option<Arc<Traces>>,
    ids: RequestIds,
}

impl Observer {
    /// The observer of a new thread.
    pub fn new(meters: Arc<HttpMeters>, slow: Arc<SlowRequests>, traces: Option<Arc<Traces>>) -> Self {
        Observer { meters, slow, traces, ids: RequestIds::default() }
    }

    /// Begins to observe a request.
    pub fn begin(&self, spent: &Spent, request: &Request) -> Observed {
        let path = request.path();
        let operation = operation_of(request.method().as_str(), path);
        // RPCs are too frequent and too uniform for ids and traces.
        if !path.starts_with("/raft-") {
            spent.request_id.replace(Some(sent_id(request).unwrap_or_else(|| self.ids.make())));
            if let Some(traces) = &self.traces {
                spent.span.replace(Some(traces.begin(operation, sent_parent(request))));
            }
        }
        self.meters.in_flight.increment();
        Observed { operation, began: Instant::now() }
    }

    /// Ends it; `status` is that of the response, if there is one. Returns the id for the response.
    pub fn end(&self, spent: &Spent, observed: Observed, status: Option<u16>) -> Option<HeaderValue> {
        let took = spent.admission.get() + observed.began.elapsed();
        self.meters.in_flight.decrement();
        self.meters.note_request(observed.operation, status, took);
        if self.slow.is_slow(took) && !may_take_long(observed.operation) {
            self.meters.slow.increment();
            self.slow.report(spent, observed.operation, status, took);
        }
        if let Some(span) = spent.span.take() {
            spent.end_span(span, observed.operation, status);
        }
        spent.reset()
    }
}

/// A request under way.
#[derive(Clone, Copy, Debug)]
pub struct Observed {
    operation: usize,
    began: Instant,
}

/// Where the time of the current request of a connection goes. What is not measured stays 0.
#[derive(Debug, Default)]
pub struct Spent {
    request_id: RefCell<Option<HeaderValue>>,
    span: RefCell<Option<RequestSpan>>,
    /// In the admission queue, before the request was read.
    pub admission: Cell<Duration>,
    /// Until its body had arrived, and memory for it was free.
    body: Cell<Duration>,
    /// From the proposal of a write until it was applied.
    proposal: Cell<Duration>,
    /// For how long the log was being synced meanwhile.
    sync: Cell<Duration>,
    /// For how long entries were being applied meanwhile.
    apply: Cell<Duration>,
    /// Until the leader had confirmed a read, and this node had applied what it must show.
    confirmation: Cell<Duration>,
    /// Until a leader was known, and had responded to a forwarded request.
    leader: Cell<Duration>,
}

impl Spent {
    /// The id of the current request, as a header.
    pub fn request_id(&self) -> Option<HeaderValue> {
        self.request_id.borrow().clone()
    }

    /// The header `traceparent` for the leader, if there are traces.
    pub fn traceparent(&self) -> Option<String> {
        self.span.borrow().as_ref().map(RequestSpan::traceparent)
    }

    /// Ends the span of the current request. Its names are OpenTelemetry's where it has one.
    fn end_span(&self, mut span: RequestSpan, operation: usize, status: Option<u16>) {
        if !span.is_recorded() {
            return;
        }
        let (method, route) = OPERATIONS[operation];
        span.set_text("http.request.method", method);
        span.set_text("http.route", route);
        if let Some(id) = self.request_id.borrow().as_ref().and_then(|id| id.to_str().ok()) {
            span.set_text("rkv.request_id", id);
        }
        match status {
            Some(status) => span.set_number("http.response.status_code", status.into()),
            None => span.set_failed("the client disconnected"),
        }
        if status.is_some_and(|status| status >= 500) {
            span.set_failed("the node rejected or failed the request");
        }
        for (name, duration) in [
            ("rkv.admission_us", &self.admission),
            ("rkv.body_us", &self.body),
            ("rkv.proposal_us", &self.proposal),
            ("rkv.sync_us", &self.sync),
            ("rkv.apply_us", &self.apply),
            ("rkv.confirmation_us", &self.confirmation),
            ("rkv.leader_us", &self.leader),
        ] {
            let us = duration.get().as_micros();
            if us > 0 {
                span.set_number(name, i64::try_from(us).unwrap_or(i64::MAX));
            }
        }
        span.end();
    }

    /// Makes it ready for the next request; returns the id of the last.
    fn reset(&self) -> Option<HeaderValue> {
        self.admission.take();
        self.body.take();
        self.proposal.take();
        self.sync.take();
        self.apply.take();
        self.confirmation.take();
        self.leader.take();
        self.request_id.take()
    }
}

/// A part of a request's time.
#[derive(Clone, Copy, Debug)]
pub enum Part {
    /// Until the body had arrived.
    Body,
    /// Until a read was confirmed.
    Confirmation,
    /// Until a leader was known and had responded.
    Leader,
}

/// Completes a part of a request, and notes how long it took.
pub async fn timed<T>(request: &HttpRequest, part: Part, work: impl Future<Output = T>) -> T {
    let Some(state) = state_of(request) else { return work.await };
    let began = Instant::now();
    let done = work.await;
    let took = began.elapsed();
    let spent = match part {
        Part::Body => &state.spent.body,
        Part::Confirmation => &state.spent.confirmation,
        Part::Leader => &state.spent.leader,
    };
    spent.set(spent.get() + took);
    done
}

/// Proposes a write, and notes how long that took, and what this node did meanwhile: `busy` returns for how long it has
/// synced the log and applied entries since its start.
pub async fn timed_proposal<T>(
    request: &HttpRequest,
    busy: impl Fn() -> (Duration, Duration),
    work: impl Future<Output = T>,
) -> T {
    let Some(state) = state_of(request) else { return work.await };
    let (began, (synced, applied)) = (Instant::now(), busy());
    let done = work.await;
    let took = began.elapsed();
    state.observer().meters.proposals.record(took);
    let spent = &state.spent;
    spent.proposal.set(spent.proposal.get() + took);
    let (synced_now, applied_now) = busy();
    spent.sync.set(spent.sync.get() + synced_now.saturating_sub(synced));
    spent.apply.set(spent.apply.get() + applied_now.saturating_sub(applied));
    done
}

/// The valid id in a request.
fn sent_id(request: &Request) -> Option<HeaderValue> {
    let mut sent = request.headers().get_all(&REQUEST_ID);
    let id = sent.next()?;
    (sent.next().is_none() && is_valid_id(id.as_bytes())).then(|| id.clone())
}

/// The parent of a request's span. Of several, none is taken.
fn sent_parent(request: &Request) -> Option<&str> {
    let mut sent = request.headers().get_all(&TRACEPARENT);
    let parent = sent.next()?;
    if sent.next().is_some() { None } else { parent.to_str().ok() }
}

/// Whether an id can be logged and passed on as it is.
fn is_valid_id(id: &[u8]) -> bool {
    (1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

/// Makes ids that no other thread and no other process makes: a random number of the thread, and a counter.
#[derive(Debug)]
struct RequestIds {
    thread: [u8; THREAD_DIGITS],
    next: Cell<u64>,
}

/// Hexadecimal digits of the random number.
const THREAD_DIGITS: usize = 16;

impl Default for RequestIds {
    fn default() -> Self {
        let mut thread = [0; THREAD_DIGITS];
        // Without random numbers the node would not have started.
        write_hex(&mut thread, getrandom::u64().unwrap_or_default());
        RequestIds { thread, next: Cell::default() }
    }
}

impl RequestIds {
    /// A new id: 16 digits, a hyphen, and at least 4 digits.
    fn make(&self) -> HeaderValue {
        let number = self.next.get();
        self.next.set(number.wrapping_add(1));
        let mut id = [b'-'; THREAD_DIGITS + 1 + 16];
        id[..THREAD_DIGITS].copy_from_slice(&self.thread);
        let digits = (16 - number.leading_zeros() as usize / 4).max(4);
        let end = THREAD_DIGITS + 1 + digits;
        write_hex(&mut id[THREAD_DIGITS + 1..end], number);
        HeaderValue::from_bytes(&id[..end]).expect("digits are a valid value")
    }
}

/// Writes the last digits of a number.
fn write_hex(digits: &mut [u8], mut number: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 15) as usize];
        number >>= 4;
    }
}

/// Whether an operation takes long by its nature: it waits for other nodes, for an entry or for a snapshot.
fn may_take_long(operation: usize) -> bool {
    let (_, route) = OPERATIONS[operation];
    route.starts_with("/v1/cluster/")
        || matches!(
            route,
            "/v1/watch" | "/init" | "/add-learner" | "/change-membership" | "/raft-found" | "/raft-snapshot"
        )
}

/// Logs slow requests: one in [`SLOW_REPORT_INTERVAL`], with the number of those before it that were not logged.
#[derive(Debug)]
pub struct SlowRequests {
    /// `None` if none are logged.
    threshold: Option<Duration>,
    started: Instant,
    /// When the next one may be logged, in milliseconds since `started`.
    next_ms: AtomicU64,
    suppressed: AtomicU64,
}

impl Default for SlowRequests {
    fn default() -> Self {
        Self::over_ms(0)
    }
}

impl SlowRequests {
    /// Requests that take this long are slow; none are if it is 0.
    pub fn over_ms(threshold_ms: u64) -> Self {
        SlowRequests {
            threshold: (threshold_ms > 0).then(|| Duration::from_millis(threshold_ms)),
            started: Instant::now(),
            next_ms: AtomicU64::default(),
            suppressed: AtomicU64::default(),
        }
    }

    fn is_slow(&self, took: Duration) -> bool {
        self.threshold.is_some_and(|threshold| took >= threshold)
    }

    /// How many slow requests were not logged since the last one, if this one may be logged.
    fn turn(&self, elapsed: Duration) -> Option<u64> {
        let now_ms = elapsed.as_millis() as u64;
        let next_ms = self.next_ms.load(Ordering::Relaxed);
        let then_ms = now_ms + SLOW_REPORT_INTERVAL.as_millis() as u64;
        let is_mine = now_ms >= next_ms
            && self.next_ms.compare_exchange(next_ms, then_ms, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if !is_mine {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(self.suppressed.swap(0, Ordering::Relaxed))
    }

    /// Does not name the path, which may contain a key.
    #[cold]
    fn report(&self, spent: &Spent, operation: usize, status: Option<u16>, took: Duration) {
        let Some(suppressed) = self.turn(self.started.elapsed()) else { return };
        let (method, route) = OPERATIONS[operation];
        let ms = |duration: &Cell<Duration>| duration.get().as_millis() as u64;
        let id = spent.request_id();
        tracing::warn!(
            request_id = id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or("none"),
            method,
            route,
            // 0: the client disconnected first.
            status = status.unwrap_or_default(),
            took_ms = took.as_millis() as u64,
            admission_ms = ms(&spent.admission),
            body_ms = ms(&spent.body),
            proposal_ms = ms(&spent.proposal),
            sync_ms = ms(&spent.sync),
            apply_ms = ms(&spent.apply),
            confirmation_ms = ms(&spent.confirmation),
            leader_ms = ms(&spent.leader),
            suppressed,
            "slow request"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ids are unique, short and valid.
    #[test]
    fn made_ids() {
        let (one, other) = (RequestIds::default(), RequestIds::default());
        one.next.set(0xfffe);
        let made: Vec<_> =
            [one.make(), one.make(), one.make(), other.make()].map(|id| id.to_str().unwrap().to_owned()).into();
        let ends: Vec<_> = made.iter().map(|id| id.split_once('-').unwrap()).collect();
        assert_eq!([ends[0].1, ends[1].1, ends[2].1, ends[3].1], ["fffe", "ffff", "10000", "0000"]);
        assert_eq!(ends[0].0, ends[2].0);
        assert_ne!(ends[0].0, ends[3].0, "threads have different numbers");
        assert!(made.iter().all(|id| is_valid_id(id.as_bytes())));
        one.next.set(u64::MAX);
        assert_eq!(one.make().len(), THREAD_DIGITS + 1 + 16);
    }

    /// An id is visible ASCII, not empty, and not too long.
    #[test]
    fn valid_ids() {
        let longest = vec![b'x'; REQUEST_ID_BYTES_MAX];
        for id in [&b"a"[..], b"4bf92f35-77b3/4da6:a3ce~!\"{}", &longest] {
            assert!(is_valid_id(id), "{id:?}");
        }
        let too_long = vec![b'x'; REQUEST_ID_BYTES_MAX + 1];
        for id in [&b""[..], b" ", b"a b", b"a\tb", b"a\nb", b"\x7f", "é".as_bytes(), &too_long] {
            assert!(!is_valid_id(id), "{id:?}");
        }
    }

    /// One slow request in each interval is logged, and the others are counted.
    #[test]
    fn reports_are_rare() {
        let slow = SlowRequests::over_ms(300);
        assert!(slow.is_slow(Duration::from_millis(300)) && !slow.is_slow(Duration::from_millis(299)));
        let at = |intervals: f64| SLOW_REPORT_INTERVAL.mul_f64(intervals);
        let turns: Vec<_> = [0.0, 0.1, 0.9, 1.0, 1.5, 5.0].map(|intervals| slow.turn(at(intervals))).into();
        assert_eq!(turns, [Some(0), None, None, Some(2), None, Some(1)]);
        assert!(!SlowRequests::over_ms(0).is_slow(Duration::MAX), "0 switches it off");
    }

    /// Every operation that is logged names no client's words, and operators' requests are not slow.
    #[test]
    fn operators_may_wait() {
        let long = |method, path| may_take_long(operation_of(method, path));
        assert!(long("POST", "/add-learner") && long("DELETE", "/v1/cluster/members/3") && long("GET", "/v1/watch"));
        assert!(!long("PUT", "/v1/kv/a") && !long("POST", "/raft-append") && !long("GET", "/secret"));
    }
}
