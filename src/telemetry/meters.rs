//! What a node measures of itself: counters, gauges and histograms of fixed buckets, all of atomic numbers.
//!
//! Recording takes no lock and allocates nothing, and each part of a node owns its meters. `/v1/metrics` reads them.
//! Threads that serve clients have meters of their own ([`HttpMeters`]), so that they share no cache line.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::operations::OPERATIONS;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Adds a number.
    pub fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    /// The current value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number of things that exist now.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets it.
    pub fn set(&self, number: u64) {
        self.0.store(number, Ordering::Relaxed);
    }

    /// One more.
    pub fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One less.
    pub fn decrement(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// The current value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of the buckets for requests and syncs, in microseconds, inclusive.
pub const LATENCY_US: &[u64] = &[
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000,
];

/// The same for snapshots.
pub const SNAPSHOT_US: &[u64] =
    &[10_000, 50_000, 250_000, 1_000_000, 5_000_000, 15_000_000, 60_000_000, 300_000_000, 900_000_000];

/// How long things took, by buckets.
#[derive(Debug)]
pub struct Histogram {
    bounds_us: &'static [u64],
    /// One for each bound, and one above all of them.
    buckets: Box<[AtomicU64]>,
    sum_us: AtomicU64,
}

impl Histogram {
    /// An empty histogram.
    pub fn new(bounds_us: &'static [u64]) -> Self {
        debug_assert!(bounds_us.is_sorted_by(|one, next| one < next));
        let buckets = (0..=bounds_us.len()).map(|_| AtomicU64::default()).collect();
        Histogram { bounds_us, buckets, sum_us: AtomicU64::default() }
    }

    /// Adds a duration.
    pub fn record(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = self.bounds_us.iter().position(|bound| us <= *bound).unwrap_or(self.bounds_us.len());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// The sum of all durations.
    pub fn total(&self) -> Duration {
        Duration::from_micros(self.sum_us.load(Ordering::Relaxed))
    }

    /// The current values.
    pub fn read(&self) -> HistogramReading {
        let mut reading = HistogramReading::default();
        reading.add(self);
        reading
    }
}

/// The values of a histogram, or of several.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HistogramReading {
    /// The upper bound of each bucket in seconds, and the number of durations in it alone.
    pub buckets: Vec<(f64, u64)>,
    /// In seconds.
    pub sum: f64,
    /// Of all buckets.
    pub count: u64,
}

impl HistogramReading {
    /// Adds the values of a histogram, which has the same bounds.
    pub fn add(&mut self, histogram: &Histogram) {
        if self.buckets.is_empty() {
            let bounds = histogram.bounds_us.iter().map(|us| *us as f64 / 1e6).chain([f64::INFINITY]);
            self.buckets = bounds.map(|bound| (bound, 0)).collect();
        }
        debug_assert_eq!(self.buckets.len(), histogram.buckets.len());
        for ((_, total), bucket) in self.buckets.iter_mut().zip(&histogram.buckets) {
            let count = bucket.load(Ordering::Relaxed);
            *total += count;
            self.count += count;
        }
        self.sum += histogram.total().as_secs_f64();
    }
}

/// How a request ended, by its status. The last one had no response: its client disconnected.
pub const STATUSES: [&str; 5] = ["2xx", "3xx", "4xx", "5xx", "canceled"];

/// The meters of one thread that serves connections.
#[derive(Debug)]
pub struct HttpMeters {
    /// From the arrival of a request until its response is ready, by operation and status.
    requests: Box<[[Histogram; STATUSES.len()]]>,
    /// Requests that have no response yet.
    pub in_flight: Gauge,
    /// Open connections.
    pub connections: Gauge,
    /// Open watches.
    pub watches: Gauge,
    /// Requests that were shed.
    pub shed: Counter,
    /// Requests that were rejected because a limit of connections was reached.
    pub over_limit: Counter,
    /// TLS handshakes that succeeded.
    pub tls_handshakes: Counter,
    /// TLS handshakes that failed, were cut off, or were plain HTTP.
    pub tls_handshakes_failed: Counter,
    /// Requests that took longer than `--slow-request-ms`.
    pub slow: Counter,
    /// Time in the admission queue, of requests that waited there.
    pub admission: Histogram,
    /// From the proposal of a write until it is applied.
    pub proposals: Histogram,
    /// Until the leader had confirmed a linearizable read, and this node had applied what it must show.
    pub confirmations: Histogram,
}

impl Default for HttpMeters {
    fn default() -> Self {
        let latency = || Histogram::new(LATENCY_US);
        HttpMeters {
            requests: OPERATIONS.iter().map(|_| std::array::from_fn(|_| latency())).collect(),
            in_flight: Gauge::default(),
            connections: Gauge::default(),
            watches: Gauge::default(),
            shed: Counter::default(),
            over_limit: Counter::default(),
            tls_handshakes: Counter::default(),
            tls_handshakes_failed: Counter::default(),
            slow: Counter::default(),
            admission: latency(),
            proposals: latency(),
            confirmations: latency(),
        }
    }
}

impl HttpMeters {
    /// Notes the end of a request. `status` is that of the response, if there is one.
    pub fn note_request(&self, operation: usize, status: Option<u16>, took: Duration) {
        let ended = match status {
            Some(..300) => 0,
            Some(300..400) => 1,
            Some(400..500) => 2,
            Some(500..) => 3,
            None => 4,
        };
        if let Some(requests) = self.requests.get(operation) {
            requests[ended].record(took);
        }
    }

    /// The requests of an operation that ended in one way.
    pub fn requests(&self, operation: usize, ended: usize) -> &Histogram {
        &self.requests[operation][ended]
    }
}

/// The meters of the log.
#[derive(Debug)]
pub struct LogMeters {
    /// From an append, or a vote, until it is on disk.
    pub append: Histogram,
    /// Each write and sync of the log.
    pub sync: Histogram,
}

impl Default for LogMeters {
    fn default() -> Self {
        LogMeters { append: Histogram::new(LATENCY_US), sync: Histogram::new(LATENCY_US) }
    }
}

/// The meters of the state machine and its snapshots.
#[derive(Debug)]
pub struct StateMeters {
    /// Each batch of entries.
    pub apply: Histogram,
    /// Entries that were applied since the start.
    pub applied_entries: Counter,
    /// Snapshots that were written.
    pub build: Histogram,
    /// Snapshots that could not be written.
    pub build_failures: Counter,
    /// Snapshots of the leader that were installed.
    pub install: Histogram,
    /// Snapshots of the leader that could not be installed.
    pub install_failures: Counter,
}

impl Default for StateMeters {
    fn default() -> Self {
        StateMeters {
            apply: Histogram::new(LATENCY_US),
            applied_entries: Counter::default(),
            build: Histogram::new(SNAPSHOT_US),
            build_failures: Counter::default(),
            install: Histogram::new(SNAPSHOT_US),
            install_failures: Counter::default(),
        }
    }
}

/// The meters of elections and of RPCs to other nodes.
#[derive(Debug, Default)]
pub struct ElectionMeters {
    /// The last term in which this node stood for election.
    term: AtomicU64,
    /// Elections in which this node stood.
    pub elections: Counter,
    /// How often this node learned of a new leader, or of a leader in a new term.
    pub leader_changes: Counter,
    /// Snapshots that were sent to other nodes.
    pub snapshots_sent: Counter,
    /// Snapshots of which the sending failed.
    pub snapshots_unsent: Counter,
}

impl ElectionMeters {
    /// Notes that this node stands for election in a term, which it may do several times.
    pub fn note_election(&self, term: u64) {
        if self.term.fetch_max(term, Ordering::Relaxed) < term {
            self.elections.increment();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A duration is in the first bucket whose bound it does not exceed, and in the sum.
    #[test]
    fn buckets() {
        let histogram = Histogram::new(&[10, 100]);
        for us in [0, 10, 11, 100, 101, 5_000_000] {
            histogram.record(Duration::from_micros(us));
        }
        let mut reading = histogram.read();
        assert_eq!(reading.buckets, [(1e-5, 2), (1e-4, 2), (f64::INFINITY, 2)]);
        assert_eq!((reading.count, reading.sum), (6, 5.000222));
        reading.add(&histogram);
        assert_eq!((reading.count, reading.buckets[2].1), (12, 4));
    }

    /// Requests are counted by how they ended.
    #[test]
    fn statuses() {
        let meters = HttpMeters::default();
        for (status, ended) in [(Some(200), 0), (Some(304), 1), (Some(404), 2), (Some(503), 3), (None, 4)] {
            meters.note_request(3, status, Duration::ZERO);
            assert_eq!(meters.requests(3, ended).read().count, 1, "{status:?}");
        }
        // A number that no operation has is a fault, but must not end the thread.
        meters.note_request(usize::MAX, None, Duration::ZERO);
    }

    /// An election counts once, however many votes it requests.
    #[test]
    fn elections() {
        let meters = ElectionMeters::default();
        for term in [3, 3, 3, 4, 4, 7, 7] {
            meters.note_election(term);
        }
        assert_eq!(meters.elections.get(), 3);
    }
}
