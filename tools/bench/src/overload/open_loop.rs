//! The open-loop load: requests become due by the clock, independent of the outcome of earlier ones.
//!
//! Each node has a queue of due requests and a fixed number of connections, one task each, that take requests
//! from it. A request costs no task, and no lock is held while it is in progress. A request that finds no
//! free connection in time is not sent.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::plain_http::{Answer, Outcome, PlainConnection};
use crate::load::{latency_histogram, shares};

/// Interval between checks for due requests. A late check queues all that became due since the last one.
const TICK: Duration = Duration::from_millis(1);
/// How long a request waits for a connection.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// Few enough not to overload a node.
const OPENED_AT_ONCE: usize = 32;
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);
/// Time between the last connection and the first request, in which the tasks start.
const LEAD_TIME: Duration = Duration::from_millis(100);

#[derive(Clone, Debug)]
pub struct OpenPlan {
    pub rate_per_second: f64,
    pub seconds: u64,
    /// Total for all nodes.
    pub connections: usize,
    /// Keys are drawn uniformly from the first `key_count`.
    pub key_count: u64,
}

/// A running load, whose figures can be read meanwhile.
pub struct OpenLoop {
    pub schedule: Schedule,
    nodes: Vec<Arc<Node>>,
    late_us_max: Arc<AtomicU64>,
}

/// The tasks of the load. Dropping them ends it.
pub type Tasks = JoinSet<()>;

/// The due times of the requests, evenly spread over time.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    pub begin: Instant,
    pub seconds: u64,
    rate_per_second: f64,
    count: u64,
}

struct Node {
    address: SocketAddr,
    queue: Queue,
    tally: Mutex<Tally>,
}

/// Due times of one node's requests that wait for a connection, in order.
///
/// Each request has a permit, or a connection has taken the permit and is about to take the request. The
/// length is therefore bounded by the requests that become due in `WAIT_MAX`.
struct Queue {
    due: Mutex<VecDeque<Instant>>,
    permits: Semaphore,
    not_sent: AtomicU64,
}

/// Outcomes of the requests.
#[derive(Clone)]
pub struct Tally {
    pub counts: Counts,
    pub refusals_by_code: BTreeMap<String, u64>,
    /// Of a request that was neither done nor rejected.
    pub first_error: Option<String>,
    /// Latency from sending.
    pub done_us: Histogram<u32>,
    pub refused_us: Histogram<u32>,
    pub done_since_due_us: Histogram<u32>,
    /// Responses in each second since the start. Later responses are in none of them.
    pub done_by_second: Vec<u64>,
}

/// The number of requests with each outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub done: u64,
    pub refused: u64,
    pub unknown: u64,
    /// Responses that are neither success nor rejection.
    pub other: u64,
    /// The connection broke, or no response arrived.
    pub broken: u64,
    pub not_sent: u64,
}

impl Schedule {
    fn new(begin: Instant, plan: &OpenPlan) -> Self {
        let count = (plan.rate_per_second * plan.seconds as f64) as u64;
        Self { begin, seconds: plan.seconds, rate_per_second: plan.rate_per_second, count }
    }

    pub fn end(&self) -> Instant {
        self.begin + Duration::from_secs(self.seconds)
    }

    /// The number of requests due by `now`.
    pub fn due_until(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.begin).as_secs_f64();
        ((elapsed * self.rate_per_second) as u64).min(self.count)
    }

    fn due_at(&self, number: u64) -> Instant {
        self.begin + Duration::from_secs_f64((number + 1) as f64 / self.rate_per_second)
    }
}

impl OpenLoop {
    /// Opens all connections, and starts soon afterwards.
    pub async fn start(plan: &OpenPlan, addresses: &[SocketAddr]) -> Result<(Self, Tasks)> {
        let mut nodes = Vec::new();
        let mut connections = Vec::with_capacity(plan.connections);
        for (address, share) in addresses.iter().zip(shares(plan.connections, addresses.len())) {
            let node = Arc::new(Node::new(*address, plan.seconds)?);
            let opened = open_connections(*address, share).await?;
            connections.extend(opened.into_iter().map(|connection| (node.clone(), connection)));
            nodes.push(node);
        }
        let schedule = Schedule::new(Instant::now() + LEAD_TIME, plan);
        let late_us_max = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for ((node, connection), seed) in connections.into_iter().zip(1..) {
            tasks.spawn(serve_queue(node, connection, schedule, plan.key_count, fastrand::Rng::with_seed(seed)));
        }
        tasks.spawn(dispatch(schedule, nodes.clone(), late_us_max.clone()));
        Ok((Self { schedule, nodes, late_us_max }, tasks))
    }

    /// Outcomes so far, over all nodes.
    pub fn tally(&self) -> Result<Tally> {
        let mut total = Tally::new(self.schedule.seconds)?;
        for node in &self.nodes {
            total.counts.not_sent += node.queue.not_sent.load(Ordering::Relaxed);
            total.add(&lock(&node.tally))?;
        }
        Ok(total)
    }

    /// The longest delay of a check: how far the load lagged behind its schedule because the generator had
    /// too little CPU time.
    pub fn late_us_max(&self) -> u64 {
        self.late_us_max.load(Ordering::Relaxed)
    }
}

/// Each connection sends a put at once. A node gives a new connection 5 s for its first request, and would
/// otherwise close it while the remaining ones are opened.
async fn open_connections(address: SocketAddr, count: usize) -> Result<Vec<PlainConnection>> {
    let mut opening: JoinSet<Result<Vec<PlainConnection>>> = JoinSet::new();
    for share in shares(count, OPENED_AT_ONCE) {
        opening.spawn(async move {
            let mut opened = Vec::with_capacity(share);
            for _ in 0..share {
                let mut connection = PlainConnection::connect(address).await?;
                connection.put(0).await?;
                opened.push(connection);
            }
            Ok(opened)
        });
    }
    let mut all = Vec::with_capacity(count);
    while let Some(opened) = opening.join_next().await {
        all.extend(opened.context("a task of the load panicked")?.context("cannot open the load's connections")?);
    }
    Ok(all)
}

/// Waits until every request has an outcome.
pub async fn finish(mut tasks: Tasks) -> Result<()> {
    while let Some(ended) = tasks.join_next().await {
        ended.context("a task of the load panicked")?;
    }
    Ok(())
}

/// Puts due requests into the nodes' queues in turn, and closes the queues at the end.
async fn dispatch(schedule: Schedule, nodes: Vec<Arc<Node>>, late_us_max: Arc<AtomicU64>) {
    let mut ticks = tokio::time::interval_at(schedule.begin.into(), TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next = 0;
    let mut looked = schedule.begin;
    loop {
        ticks.tick().await;
        let now = Instant::now();
        late_us_max.fetch_max((now - looked).as_micros() as u64, Ordering::Relaxed);
        looked = now;
        let until = schedule.due_until(now);
        for (node, first) in nodes.iter().zip(0..) {
            let numbers = (next..until).filter(|number| number % nodes.len() as u64 == first);
            node.queue.push(numbers.map(|number| schedule.due_at(number)));
            node.queue.give_up(now);
        }
        next = until;
        if next == schedule.count && nodes.iter().all(|node| node.queue.is_empty()) {
            break;
        }
    }
    for node in nodes {
        node.queue.permits.close();
    }
}

/// The loop of one connection: takes a due request, sends it, records its outcome.
async fn serve_queue(
    node: Arc<Node>,
    mut connection: PlainConnection,
    schedule: Schedule,
    key_count: u64,
    mut random: fastrand::Rng,
) {
    while let Some(due) = node.queue.take().await {
        let answer = connection.put(random.u64(..key_count)).await;
        lock(&node.tally).record(schedule.begin, due, answer);
        while connection.is_closed() {
            tokio::time::sleep(RECONNECT_PAUSE).await;
            if node.queue.permits.is_closed() {
                return;
            }
            if let Ok(new) = PlainConnection::connect(node.address).await {
                connection = new;
            }
        }
    }
}

impl Node {
    fn new(address: SocketAddr, seconds: u64) -> Result<Self> {
        let queue = Queue { due: Mutex::default(), permits: Semaphore::new(0), not_sent: AtomicU64::new(0) };
        Ok(Self { address, queue, tally: Mutex::new(Tally::new(seconds)?) })
    }
}

impl Queue {
    fn push(&self, due: impl Iterator<Item = Instant>) {
        let mut waiting = lock(&self.due);
        let before = waiting.len();
        waiting.extend(due);
        let count = waiting.len() - before;
        drop(waiting);
        // Added in one call, which wakes as many connections under one lock.
        self.permits.add_permits(count);
    }

    /// The next request that has not waited too long; `None` when the queue is closed and empty.
    async fn take(&self) -> Option<Instant> {
        loop {
            self.permits.acquire().await.ok()?.forget();
            let due = self.pop();
            if due.elapsed() <= WAIT_MAX {
                return Some(due);
            }
            self.not_sent.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Removes requests that have waited too long while every connection was busy.
    fn give_up(&self, now: Instant) {
        let has_expired = || lock(&self.due).front().is_some_and(|due| now.saturating_duration_since(*due) > WAIT_MAX);
        while has_expired()
            && let Ok(permit) = self.permits.try_acquire()
        {
            permit.forget();
            self.pop();
            self.not_sent.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn pop(&self) -> Instant {
        lock(&self.due).pop_front().expect("every permit belongs to a queued request")
    }

    fn is_empty(&self) -> bool {
        lock(&self.due).is_empty()
    }
}

impl Counts {
    pub fn sent(&self) -> u64 {
        self.done + self.refused + self.unknown + self.other + self.broken
    }

    fn add(&mut self, other: Self) {
        self.done += other.done;
        self.refused += other.refused;
        self.unknown += other.unknown;
        self.other += other.other;
        self.broken += other.broken;
        self.not_sent += other.not_sent;
    }
}

impl Tally {
    fn new(seconds: u64) -> Result<Self> {
        Ok(Self {
            counts: Counts::default(),
            refusals_by_code: BTreeMap::new(),
            first_error: None,
            done_us: latency_histogram()?,
            refused_us: latency_histogram()?,
            done_since_due_us: latency_histogram()?,
            done_by_second: vec![0; seconds as usize],
        })
    }

    fn record(&mut self, begin: Instant, due: Instant, answer: Result<Answer<'_>>) {
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                self.counts.broken += 1;
                self.first_error.get_or_insert_with(|| format!("{error:#}"));
                return;
            }
        };
        let since_us = |from: Instant| answer.received.saturating_duration_since(from).as_micros() as u64;
        match answer.outcome {
            Outcome::Done => {
                self.counts.done += 1;
                record_us(&mut self.done_us, since_us(answer.sent));
                record_us(&mut self.done_since_due_us, since_us(due));
                let second = answer.received.saturating_duration_since(begin).as_secs() as usize;
                if let Some(count) = self.done_by_second.get_mut(second) {
                    *count += 1;
                }
                return;
            }
            Outcome::Refused => {
                self.counts.refused += 1;
                record_us(&mut self.refused_us, since_us(answer.sent));
                let code = error_code(answer.body);
                match self.refusals_by_code.get_mut(code) {
                    Some(count) => *count += 1,
                    None => drop(self.refusals_by_code.insert(code.to_owned(), 1)),
                }
                return;
            }
            Outcome::Unknown => self.counts.unknown += 1,
            Outcome::Other => self.counts.other += 1,
        }
        self.first_error.get_or_insert_with(|| {
            format!("the node returned {}: {}", answer.status, String::from_utf8_lossy(answer.body))
        });
    }

    /// Adds the tally of another node in the same seconds.
    fn add(&mut self, other: &Self) -> Result<()> {
        self.add_outcomes(other)?;
        for (sum, count) in self.done_by_second.iter_mut().zip(&other.done_by_second) {
            *sum += count;
        }
        Ok(())
    }

    /// Adds the tally of later seconds.
    pub fn append(&mut self, later: Self) -> Result<()> {
        self.add_outcomes(&later)?;
        self.done_by_second.extend(later.done_by_second);
        Ok(())
    }

    fn add_outcomes(&mut self, other: &Self) -> Result<()> {
        self.counts.add(other.counts);
        for (code, count) in &other.refusals_by_code {
            *self.refusals_by_code.entry(code.clone()).or_default() += count;
        }
        self.first_error = self.first_error.take().or_else(|| other.first_error.clone());
        self.done_us.add(&other.done_us)?;
        self.refused_us.add(&other.refused_us)?;
        self.done_since_due_us.add(&other.done_since_due_us)?;
        Ok(())
    }
}

fn record_us(histogram: &mut Histogram<u32>, latency_us: u64) {
    histogram.record(latency_us).expect("an auto-resizing histogram accepts every latency");
}

/// The value of `code` in an error's JSON. Searched for instead of parsed, to keep the load cheap.
fn error_code(body: &[u8]) -> &str {
    let text = std::str::from_utf8(body).unwrap_or_default();
    let code = text.split_once(r#""code":""#).and_then(|(_, rest)| rest.split_once('"'));
    code.map_or("?", |(code, _)| code)
}

fn lock<Value>(mutex: &Mutex<Value>) -> std::sync::MutexGuard<'_, Value> {
    mutex.lock().expect("no holder of the lock panics")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(rate_per_second: f64, seconds: u64) -> Schedule {
        let plan = OpenPlan { rate_per_second, seconds, connections: 3, key_count: 1 };
        Schedule::new(Instant::now(), &plan)
    }

    /// Seconds of a later part follow those before it; all other figures are summed.
    #[test]
    fn a_later_part_follows() {
        let tally = |done: u64, seconds: &[u64]| {
            let mut tally = Tally::new(seconds.len() as u64).unwrap();
            tally.counts.done = done;
            tally.done_by_second = seconds.to_vec();
            tally.refusals_by_code.insert("overloaded".to_owned(), done);
            tally
        };
        let mut both = tally(3, &[1, 2]);
        both.append(tally(4, &[4])).unwrap();
        assert_eq!((both.counts.done, both.done_by_second), (7, vec![1, 2, 4]));
        assert_eq!(both.refusals_by_code["overloaded"], 7);
    }

    /// A late check finds all requests due by then, and never more than the total.
    #[test]
    fn a_late_look_catches_up() {
        let schedule = schedule(1_000.0, 2);
        let due_after = |ms| schedule.due_until(schedule.begin + Duration::from_millis(ms));
        assert_eq!(schedule.due_until(schedule.begin - Duration::from_secs(1)), 0);
        assert_eq!(due_after(0), 0);
        assert!((9..=10).contains(&due_after(10)));
        assert!((999..=1_000).contains(&due_after(1_000)));
        assert_eq!(due_after(60_000), 2_000);
    }

    #[test]
    fn requests_are_due_when_the_schedule_counts_them() {
        let schedule = schedule(30_011.0, 1);
        for number in [0, 1, 2_999, 30_010] {
            let due = schedule.due_at(number);
            assert!(schedule.due_until(due + Duration::from_micros(1)) > number);
            assert!(schedule.due_until(due - Duration::from_micros(1)) <= number);
        }
    }

    /// Requests leave in order; one that waited too long is counted and never sent; `take` returns `None`
    /// after the queue was closed.
    #[tokio::test]
    async fn a_queue_gives_up_what_waited_too_long() {
        let queue = Node::new(SocketAddr::from(([127, 0, 0, 1], 1)), 1).unwrap().queue;
        let now = Instant::now();
        let long_ago = now - 2 * WAIT_MAX;
        queue.push([long_ago, long_ago, long_ago, now, now + TICK].into_iter());
        assert_eq!(queue.take().await, Some(now));
        assert_eq!(queue.not_sent.load(Ordering::Relaxed), 3);
        queue.give_up(now);
        assert!(!queue.is_empty());
        queue.give_up(now + 2 * WAIT_MAX);
        assert!(queue.is_empty());
        assert_eq!(queue.not_sent.load(Ordering::Relaxed), 4);
        queue.permits.close();
        assert_eq!(queue.take().await, None);
    }

    /// Each outcome is counted once, and latency is recorded only where it is meaningful.
    #[test]
    fn outcomes_are_counted_apart() {
        let mut tally = Tally::new(2).unwrap();
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let answer = |outcome, received| {
            let body = br#"{"error":{"code":"overloaded"}}"#.as_slice();
            Ok(Answer { outcome, status: 500, sent: at(10), received: at(received), body })
        };
        for (outcome, received) in [
            (Outcome::Done, 1_500),
            (Outcome::Done, 2_500),
            (Outcome::Refused, 20),
            (Outcome::Unknown, 20),
            (Outcome::Other, 20),
        ] {
            tally.record(begin, at(5), answer(outcome, received));
        }
        tally.record(begin, at(5), Err(anyhow::anyhow!("broke")));
        assert_eq!(tally.counts, Counts { done: 2, refused: 1, unknown: 1, other: 1, broken: 1, not_sent: 0 });
        assert_eq!(tally.done_by_second, [0, 1]);
        assert_eq!((tally.done_us.len(), tally.refused_us.len()), (2, 1));
        assert_eq!(tally.refusals_by_code, BTreeMap::from([("overloaded".to_owned(), 1)]));
        let mut twice = tally.clone();
        twice.add(&tally).unwrap();
        assert_eq!((twice.counts.sent(), twice.done_us.len(), &twice.done_by_second[..]), (12, 4, &[0, 2][..]));
    }
}
