//! Checks that keys expire on time, by true time, which is the harness's own clock.
//!
//! Some clients put keys with a TTL, touch them, and read them until they have expired. Each key belongs to
//! one client, so the order of its requests is known. Every read is judged afterwards:
//!
//! - A key that is missing more than [`TOLERANCE`] before its TTL has passed expired too early. The earliest
//!   start of its TTL is when its last put or touch was sent.
//! - A key that exists more than [`TOLERANCE`] after its TTL has passed expired too late. The latest start of
//!   its TTL is when its last put or touch was acknowledged.
//!
//! Nothing can expire during an outage, so a key may exist until [`TOLERANCE`] after the outage. An outage is
//! a time without a successful write. Nodes measure time while they run. If a majority was down, the nodes'
//! wall clocks decide how long that took, and they may be wrong: a key that existed before may expire early,
//! or late by at most the time that the nodes were down.

use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fastrand::Rng;
use harness::http::{self, Method, StatusCode};
use serde_json::Value;
use tokio::time::Instant;

use crate::finding::{Finding, Symptom};
use crate::history::{NodeId, Operation};
use crate::load::{Worker, is_done_write};
use crate::report::Window;

/// Maximum difference between the expiry of a key and the true time.
pub const TOLERANCE: Duration = Duration::from_secs(1);
/// Longest TTL.
pub const TTL_MAX: Duration = Duration::from_millis(6000);
const TTL_MIN: Duration = Duration::from_millis(300);
/// Minimum length of a time without a successful write that counts as an outage.
const OUTAGE_MIN: Duration = Duration::from_millis(200);
/// Maximum number of touches of a key.
const TOUCHES_MAX: usize = 3;
/// Pause between two reads of a key.
const READ_PAUSE: Duration = Duration::from_millis(100);
/// How long a client waits for the response to a read, a put or a touch.
const READ_DEADLINE: Duration = Duration::from_millis(1000);
const WRITE_DEADLINE: Duration = Duration::from_secs(3);
/// A key that still exists after this time is given up. It was judged late long before.
const GIVE_UP_AFTER: Duration = Duration::from_secs(15);
/// Maximum number of findings that are kept.
const FINDINGS_MAX: usize = 10;

/// A successful put or touch.
#[derive(Clone, Copy, Debug)]
struct Renewal {
    called_ns: u64,
    returned_ns: u64,
    ttl: Duration,
}

/// Whether the key existed at some moment between a call and its response, after a renewal.
#[derive(Clone, Copy, Debug)]
struct Sighting {
    called_ns: u64,
    returned_ns: u64,
    /// The node that responded.
    node: NodeId,
    exists: bool,
    /// The last renewal before the sighting.
    renewal: Renewal,
}

/// What one client saw of one key.
#[derive(Clone, Debug)]
pub struct Lease {
    key: String,
    sightings: Vec<Sighting>,
}

/// The outcome of a put or touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    Done,
    /// Rejected as not applied, because the key does not exist.
    Missing,
    NotApplied,
    Unknown,
}

impl Worker {
    /// Holds one lease after another.
    pub async fn keep_leases(mut self) {
        for number in 0_u64.. {
            if self.stopped.load(Ordering::Relaxed) {
                return;
            }
            let key = format!("lease/{}-{number}", self.id);
            let sightings = self.keep_lease(&key).await;
            if !sightings.is_empty() {
                self.recorder.add_lease(Lease { key, sightings });
            }
        }
    }

    /// Puts a key, touches it, and reads it until it has expired. A request of unknown outcome ends the
    /// lease: it may be applied at any later time.
    async fn keep_lease(&mut self, key: &str) -> Vec<Sighting> {
        let mut sightings = Vec::new();
        let (Written::Done, mut renewal) = self.renew(key, true, &mut sightings, None).await else {
            tokio::time::sleep(READ_PAUSE).await;
            return sightings;
        };
        let mut touches = self.random.usize(..=TOUCHES_MAX);
        let mut next_touch = self.next_touch(renewal.ttl);
        let mut given_up = Instant::now() + renewal.ttl + GIVE_UP_AFTER;
        while !self.stopped.load(Ordering::Relaxed) && Instant::now() < given_up {
            tokio::time::sleep(READ_PAUSE).await;
            if touches > 0 && Instant::now() >= next_touch {
                touches -= 1;
                match self.renew(key, false, &mut sightings, Some(renewal)).await {
                    (Written::Done, renewed) => renewal = renewed,
                    (Written::NotApplied, _) => continue,
                    (Written::Missing | Written::Unknown, _) => return sightings,
                }
                next_touch = self.next_touch(renewal.ttl);
                given_up = Instant::now() + renewal.ttl + GIVE_UP_AFTER;
            } else if let Some(sighting) = self.look(key, renewal).await {
                sightings.push(sighting);
                if !sighting.exists {
                    return sightings;
                }
            }
        }
        sightings
    }

    /// A time before the key expires.
    fn next_touch(&mut self, ttl: Duration) -> Instant {
        Instant::now() + ttl.mul_f64(0.2 + 0.6 * self.random.f64())
    }

    /// Sends a put or touch. The response to a touch is a sighting, too.
    async fn renew(
        &mut self,
        key: &str,
        is_put: bool,
        sightings: &mut Vec<Sighting>,
        before: Option<Renewal>,
    ) -> (Written, Renewal) {
        let ttl = random_ttl(&mut self.random);
        let host = self.any_host();
        let called_ns = self.recorder.now_ns();
        let request = if is_put {
            let target = format!("/v1/kv/{key}?ttl={}ms", ttl.as_millis());
            http::request(Method::PUT, &target, self.value().to_string())
        } else {
            http::request(Method::POST, &format!("/v1/kv/{key}/touch?ttl={}ms", ttl.as_millis()), "")
        };
        let written = match self.client.http().send(host.http(), request, WRITE_DEADLINE).await {
            Ok(response) => written(response.status(), response.body()),
            Err(http::Error::Connect { .. }) => Written::NotApplied,
            Err(_) => Written::Unknown,
        };
        let returned_ns = self.recorder.now_ns();
        if let Some(renewal) = before
            && matches!(written, Written::Done | Written::Missing)
        {
            let exists = written == Written::Done;
            sightings.push(Sighting { called_ns, returned_ns, node: host.id, exists, renewal });
        }
        (written, Renewal { called_ns, returned_ns, ttl })
    }

    /// A linearizable read; `None` if the node cannot serve it.
    async fn look(&mut self, key: &str, renewal: Renewal) -> Option<Sighting> {
        let host = self.any_host();
        let called_ns = self.recorder.now_ns();
        let request = http::get(&format!("/v1/kv/{key}"));
        let response = self.client.http().send(host.http(), request, READ_DEADLINE).await.ok()?;
        let exists = match response.status() {
            StatusCode::OK => true,
            StatusCode::NOT_FOUND if error_code(response.body()).as_deref() == Some("key_not_found") => false,
            _ => return None,
        };
        let returned_ns = self.recorder.now_ns();
        Some(Sighting { called_ns, returned_ns, node: host.id, exists, renewal })
    }
}

/// Mostly short, to get many leases.
fn random_ttl(random: &mut Rng) -> Duration {
    let max = if random.bool() { TTL_MAX } else { TTL_MAX / 4 };
    Duration::from_millis(random.u64(TTL_MIN.as_millis() as u64..=max.as_millis() as u64))
}

fn written(status: StatusCode, body: &[u8]) -> Written {
    let is_not_applied = || error(body).is_some_and(|error| error["outcome"] == "not_applied");
    match status {
        StatusCode::OK => Written::Done,
        StatusCode::NOT_FOUND if error_code(body).as_deref() == Some("key_not_found") => Written::Missing,
        _ if is_not_applied() => Written::NotApplied,
        _ => Written::Unknown,
    }
}

fn error(body: &[u8]) -> Option<Value> {
    serde_json::from_slice::<Value>(body).ok()?.get("error").cloned()
}

fn error_code(body: &[u8]) -> Option<String> {
    Some(error(body)?["code"].as_str()?.to_owned())
}

/// A time span, in nanoseconds since the run began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    began_ns: u64,
    ended_ns: u64,
}

/// What is known of the cluster apart from its leases.
#[derive(Debug)]
pub struct Judge<'a> {
    windows: &'a [Window],
    /// Times without a successful write, in order.
    outages: Vec<Span>,
    /// Times in which a majority was down, in order.
    restarts: Vec<Span>,
}

impl<'a> Judge<'a> {
    pub fn new(operations: &[Operation], windows: &'a [Window]) -> Self {
        let mut written: Vec<u64> =
            operations.iter().filter(|one| is_done_write(one)).map(|one| one.returned_ns).collect();
        written.sort_unstable();
        // Nothing is known before the first write and after the last one.
        let began = std::iter::once(0).chain(written.iter().copied());
        let ended = written.iter().copied().chain([u64::MAX]);
        let outages = began.zip(ended).map(|(began_ns, ended_ns)| Span { began_ns, ended_ns });
        let outages = outages.filter(|span| span.ended_ns - span.began_ns >= nanoseconds(OUTAGE_MIN)).collect();
        let restarts = windows.iter().filter(|window| window.fault.stops_a_majority());
        let restarts = restarts.map(|window| {
            let ended_ns = window.healed_ns + nanoseconds(window.recovery);
            Span { began_ns: window.began_ns, ended_ns }
        });
        Judge { windows, outages, restarts: restarts.collect() }
    }

    /// The problems of some leases, each under the last fault that began before it was seen.
    pub fn findings(&self, leases: &[Lease]) -> Vec<Finding> {
        let judged = leases.iter().flat_map(|lease| {
            let wrong = lease.sightings.iter().filter_map(|sighting| self.judge(sighting)).max_by_key(|wrong| wrong.by);
            wrong.map(|wrong| {
                let fault = self.windows.iter().rev().find(|window| window.began_ns <= wrong.seen_ns);
                let text = format!("`{}` {wrong}", lease.key);
                Finding { fault: fault.map(|window| window.fault), ..Finding::new(Symptom::Expiry, text) }
            })
        });
        judged.take(FINDINGS_MAX).collect()
    }

    fn judge(&self, sighting: &Sighting) -> Option<Wrong> {
        let Sighting { called_ns, returned_ns, node, exists, renewal } = *sighting;
        let ttl_ns = nanoseconds(renewal.ttl);
        if exists {
            let latest_ns = self.latest_expiry(renewal.returned_ns, ttl_ns);
            let late = called_ns.checked_sub(latest_ns).filter(|late| *late > 0)?;
            let by = Duration::from_nanos(late) + TOLERANCE;
            return Some(Wrong { node, ttl: renewal.ttl, by, is_early: false, seen_ns: called_ns });
        }
        let lived = Span { began_ns: renewal.called_ns, ended_ns: returned_ns };
        if self.restarts.iter().any(|restart| restart.began_ns < lived.ended_ns && restart.ended_ns > lived.began_ns) {
            return None; // The nodes' wall clocks decide how long it took, and may be wrong.
        }
        let early = (renewal.called_ns + ttl_ns).saturating_sub(returned_ns);
        let early = Duration::from_nanos(early);
        let wrong = Wrong { node, ttl: renewal.ttl, by: early, is_early: true, seen_ns: returned_ns };
        (early > TOLERANCE).then_some(wrong)
    }

    /// The latest moment at which a key may exist.
    fn latest_expiry(&self, returned_ns: u64, ttl_ns: u64) -> u64 {
        let mut due_ns = returned_ns + ttl_ns;
        for restart in &self.restarts {
            if restart.began_ns < due_ns && restart.ended_ns > returned_ns {
                due_ns += restart.ended_ns - restart.began_ns;
            }
        }
        let mut latest_ns = due_ns.saturating_add(nanoseconds(TOLERANCE));
        for outage in &self.outages {
            if outage.began_ns < latest_ns && outage.ended_ns > returned_ns {
                latest_ns = latest_ns.max(outage.ended_ns.saturating_add(nanoseconds(TOLERANCE)));
            }
        }
        latest_ns
    }
}

/// A key that expired too early or too late.
#[derive(Clone, Copy, Debug)]
struct Wrong {
    node: NodeId,
    ttl: Duration,
    by: Duration,
    is_early: bool,
    seen_ns: u64,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Wrong { node, ttl, by, is_early, seen_ns } = self;
        let (ttl, by) = (ttl.as_secs_f64(), by.as_secs_f64());
        let seen = Duration::from_nanos(*seen_ns).as_secs_f64();
        if *is_early {
            write!(f, "expired {by:.2} s too early by true time, of a TTL of {ttl:.2} s")?;
        } else {
            write!(f, "still exists {by:.2} s after a TTL of {ttl:.2} s by true time")?;
        }
        write!(f, ", reported by node {node} {seen:.2} s after the start")
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{Fault, Who};
    use crate::history::{Answer, Call, CallResult, Outcome};

    const MS: u64 = 1_000_000;

    /// A write that succeeded at this time.
    fn write(at_ms: u64) -> Operation {
        let call = Call::Put { key: "a".into(), value: "b".into(), condition: None };
        let outcome = Outcome::Done(Answer { revision: 1, result: CallResult::Put { version: 1 } });
        Operation { client: 1, node: 1, called_ns: at_ms * MS, returned_ns: at_ms * MS, call, outcome }
    }

    fn window(fault: Fault, began_ms: u64, healed_ms: u64) -> Window {
        Window {
            fault,
            detail: String::new(),
            began_ns: began_ms * MS,
            healed_ns: healed_ms * MS,
            recovery: Duration::ZERO,
            operations: 1,
            did_nothing: false,
        }
    }

    /// Writes continuously for 100 s, except in the outages.
    fn writes_except(outages: &[(u64, u64)]) -> Vec<Operation> {
        (0..1000)
            .map(|tenth| tenth * 100)
            .filter(|at| !outages.iter().any(|(began, ended)| (*began..*ended).contains(at)))
            .map(write)
            .collect()
    }

    /// The verdict on a sighting of a key that was put at 10 s, acknowledged at 10.2 s, and has a TTL of 5 s.
    fn verdict(judge: &Judge<'_>, exists: bool, called_ms: u64, returned_ms: u64) -> &'static str {
        let renewal = Renewal { called_ns: 10_000 * MS, returned_ns: 10_200 * MS, ttl: Duration::from_secs(5) };
        let (called_ns, returned_ns) = (called_ms * MS, returned_ms * MS);
        match judge.judge(&Sighting { called_ns, returned_ns, node: 1, exists, renewal }) {
            None => "right",
            Some(Wrong { is_early: true, .. }) => "early",
            Some(_) => "late",
        }
    }

    /// A key may be missing from one second before its TTL has passed since the call, and may exist until one
    /// second after it has passed since the response. A read counts from its call or until its response,
    /// whichever proves less.
    #[test]
    fn a_second_is_tolerated() {
        let judge = Judge::new(&writes_except(&[]), &[]);
        for (exists, called_ms, returned_ms, wanted) in [
            (false, 13_500, 13_990, "early"),
            (false, 13_500, 14_010, "right"),
            (false, 15_000, 15_010, "right"),
            (true, 10_300, 10_310, "right"),
            (true, 16_190, 18_000, "right"),
            (true, 16_210, 18_000, "late"),
        ] {
            assert_eq!(verdict(&judge, exists, called_ms, returned_ms), wanted, "{exists} {called_ms} {returned_ms}");
        }
    }

    /// A key may exist until one second after the end of an outage that began before its expiry. An outage
    /// never makes it expire earlier.
    #[test]
    fn expiry_waits_for_the_end_of_an_outage() {
        let in_time = Judge::new(&writes_except(&[(14_000, 20_000)]), &[]);
        assert_eq!(verdict(&in_time, true, 20_990, 21_000), "right");
        assert_eq!(verdict(&in_time, true, 21_010, 21_020), "late");
        assert_eq!(verdict(&in_time, false, 13_500, 13_990), "early");
        let twice = Judge::new(&writes_except(&[(15_900, 17_000), (17_500, 19_000)]), &[]);
        assert_eq!(verdict(&twice, true, 19_990, 20_000), "right");
        assert_eq!(verdict(&twice, true, 20_010, 20_020), "late");
        let too_late = Judge::new(&writes_except(&[(16_500, 20_000)]), &[]);
        assert_eq!(verdict(&too_late, true, 16_450, 16_460), "late");
    }

    /// If a majority was down during a key's life, the wall clocks count: the key may expire early, or late
    /// by that time. Kills of a minority, and restarts before the put, change nothing.
    #[test]
    fn only_a_majority_that_was_down_excuses() {
        let [all, leader, before] = [
            [window(Fault::ClockRestart, 11_000, 14_000)],
            [window(Fault::Kill(Who::Leader), 11_000, 14_000)],
            [window(Fault::ClockRestart, 5_000, 9_000)],
        ];
        let all = Judge::new(&writes_except(&[]), &all);
        assert_eq!(verdict(&all, false, 14_100, 14_200), "right");
        assert_eq!(verdict(&all, true, 19_190, 19_200), "right");
        assert_eq!(verdict(&all, true, 19_210, 19_220), "late");
        for windows in [leader, before] {
            let other = Judge::new(&writes_except(&[]), &windows);
            assert_eq!(verdict(&other, false, 13_500, 13_990), "early");
            assert_eq!(verdict(&other, true, 16_210, 16_220), "late");
        }
    }

    /// A lease is reported with its worst sighting; a correct lease is not reported.
    #[test]
    fn findings_name_the_key() {
        let renewal = Renewal { called_ns: 0, returned_ns: MS, ttl: Duration::from_secs(3) };
        let sighting = |at_ms, exists| {
            let (called_ns, returned_ns) = (at_ms * MS, at_ms * MS);
            Sighting { called_ns, returned_ns, node: 2, exists, renewal }
        };
        let lease = |key: &str, sightings: &[Sighting]| Lease { key: key.to_owned(), sightings: sightings.to_vec() };
        let leases = [
            lease("right", &[sighting(1000, true), sighting(3100, false)]),
            lease("early", &[sighting(100, true), sighting(500, false)]),
            lease("late", &[sighting(6001, true), sighting(9001, true)]),
        ];
        let wanted = [
            "`early` expired 2.50 s too early by true time, of a TTL of 3.00 s, reported by node 2 0.50 s after the start",
            "under lag: `late` still exists 6.00 s after a TTL of 3.00 s by true time, reported by node 2 9.00 s after the start",
        ];
        let windows = [window(Fault::Lag, 6_000, 7_000), window(Fault::Ring, 9_100, 9_900)];
        let found = Judge::new(&writes_except(&[]), &windows).findings(&leases);
        assert_eq!(found.iter().map(Finding::to_string).collect::<Vec<_>>(), wanted);
    }

    /// A response to a put or touch is interpreted as its status says, and as unknown otherwise.
    #[test]
    fn outcomes_are_told_apart() {
        let body = |code: &str, outcome: &str| format!(r#"{{"error":{{"code":"{code}","outcome":"{outcome}"}}}}"#);
        for (status, body, wanted) in [
            (200, "{}".to_owned(), Written::Done),
            (404, body("key_not_found", "not_applied"), Written::Missing),
            (503, body("no_leader", "not_applied"), Written::NotApplied),
            (504, body("timeout", "unknown"), Written::Unknown),
            (502, String::new(), Written::Unknown),
        ] {
            assert_eq!(written(StatusCode::from_u16(status).unwrap(), body.as_bytes()), wanted, "{status}");
        }
    }
}
