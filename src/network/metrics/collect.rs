//! Reads what a node measures, and describes it.

use std::fmt;
use std::time::Duration;

use actix_web::web;
use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver;
use openraft::metrics::RaftMetrics;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use crate::app::{ExampleApp, Role};
use crate::clock::wall_ms;
use crate::disk::DiskSpace;
use crate::level::Level;
use crate::network::readiness;
use crate::telemetry::meters::{Counter, Gauge, Histogram, HistogramReading, HttpMeters, STATUSES};
use crate::telemetry::operations::OPERATIONS;
use crate::telemetry::process::ProcessUse;
use crate::types::{LogId, NodeId, TypeConfig};

/// Everything that a node measures.
pub struct NodeCollector(pub web::Data<ExampleApp>);

impl fmt::Debug for NodeCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the metrics of node {}", self.0.id)
    }
}

impl Collector for NodeCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let app = &*self.0;
        let mut page = Page(encoder);
        node(&mut page, app)?;
        http(&mut page, app)?;
        raft(&mut page, app)?;
        log(&mut page, app)?;
        state(&mut page, app)?;
        snapshots(&mut page, app)?;
        disk_and_time(&mut page, app)?;
        process(&mut page)
    }
}

/// The text, family by family. The encoder adds `rkv_` to names, and `_total` to those of counters.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn family(&mut self, name: &'static str, help: &str, kind: MetricType) -> Result<MetricEncoder<'_>, fmt::Error> {
        self.0.encode_descriptor(name, help, None, kind)
    }

    fn gauge(&mut self, name: &'static str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
        self.family(name, help, MetricType::Gauge)?.encode_gauge(&value)
    }

    /// Omits a value that is not known.
    fn known(&mut self, name: &'static str, help: &str, value: Option<impl EncodeGaugeValue>) -> fmt::Result {
        value.map_or(Ok(()), |value| self.gauge(name, help, value))
    }

    fn flag(&mut self, name: &'static str, help: &str, is_set: bool) -> fmt::Result {
        self.gauge(name, help, u64::from(is_set))
    }

    fn counter(&mut self, name: &'static str, help: &str, value: u64) -> fmt::Result {
        self.family(name, help, MetricType::Counter)?.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    fn histogram(&mut self, name: &'static str, help: &str, reading: &HistogramReading) -> fmt::Result {
        encode_histogram(self.family(name, help, MetricType::Histogram)?, reading)
    }
}

fn encode_histogram(mut encoder: MetricEncoder<'_>, reading: &HistogramReading) -> fmt::Result {
    encoder.encode_histogram::<NoLabelSet>(reading.sum, reading.count, &reading.buckets, None)
}

fn node(page: &mut Page<'_>, app: &ExampleApp) -> fmt::Result {
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    page.family("build", "Version of the program.", MetricType::Info)?.encode_info(&version)?;
    let cluster = app.store.identity().cluster_id.map(|id| id.to_string()).unwrap_or_default();
    let labels = [("id", app.id.to_string()), ("cluster", cluster)];
    page.family("node", "Ids of the node and of its cluster.", MetricType::Info)?.encode_info(&labels)?;
    let checks = readiness::checks(app);
    let mut family = page.family("ready", "Whether each check of /readyz holds.", MetricType::Gauge)?;
    for check in &checks {
        family.encode_family(&[("check", check.name)])?.encode_gauge(&u64::from(check.result.is_ok()))?;
    }
    Ok(())
}

fn http(page: &mut Page<'_>, app: &ExampleApp) -> fmt::Result {
    let threads = app.http_meters();
    let total = |gauge: fn(&HttpMeters) -> &Gauge| threads.iter().map(|thread| gauge(thread).get()).sum::<u64>();
    let count = |counter: fn(&HttpMeters) -> &Counter| threads.iter().map(|thread| counter(thread).get()).sum::<u64>();
    let all = |histogram: fn(&HttpMeters) -> &Histogram| {
        let mut reading = HistogramReading::default();
        threads.iter().for_each(|thread| reading.add(histogram(thread)));
        reading
    };
    // Operations and statuses that never occurred are omitted.
    let mut requests = Vec::new();
    for (number, (method, route)) in OPERATIONS.into_iter().enumerate() {
        for (ended, status) in STATUSES.into_iter().enumerate() {
            let mut reading = HistogramReading::default();
            threads.iter().for_each(|thread| reading.add(thread.requests(number, ended)));
            if reading.count > 0 {
                requests.push(([("method", method), ("route", route), ("status", status)], reading));
            }
        }
    }
    let help = "Requests by route and by the class of their status; `canceled` if the client disconnected first.";
    let mut family = page.family("http_requests", help, MetricType::Counter)?;
    for (labels, reading) in &requests {
        family.encode_family(labels)?.encode_counter::<NoLabelSet, _, u64>(&reading.count, None)?;
    }
    let help = "Time from the arrival of a request until its response is ready to be written.";
    let mut family = page.family("http_request_duration_seconds", help, MetricType::Histogram)?;
    for (labels, reading) in &requests {
        encode_histogram(family.encode_family(labels)?, reading)?;
    }
    let help = "Time in the admission queue, of requests that waited there.";
    page.histogram("http_admission_wait_seconds", help, &all(|it| &it.admission))?;
    page.gauge("http_requests_in_flight", "Requests that have no response yet.", total(|it| &it.in_flight))?;
    page.gauge("http_connections", "Open connections.", total(|it| &it.connections))?;
    page.counter("http_requests_shed", "Requests that were shed under overload.", count(|it| &it.shed))?;
    let help = "Requests that were rejected because a limit of connections was reached.";
    page.counter("http_connection_limit_rejections", help, count(|it| &it.over_limit))?;
    if let Some(tls) = &app.tls {
        let help = "TLS handshakes that succeeded.";
        page.counter("tls_handshakes", help, count(|it| &it.tls_handshakes))?;
        let help = "TLS handshakes that failed, were cut off, or were plain HTTP.";
        page.counter("tls_handshakes_failed", help, count(|it| &it.tls_handshakes_failed))?;
        let help = "When the certificate of this node expires, in seconds since 1970.";
        page.gauge("tls_certificate_expiry_timestamp_seconds", help, tls.expires_s())?;
        let help = "Whether the TLS files on disk are invalid, so that the former ones are in use.";
        page.flag("tls_files_rejected", help, tls.rejected().is_some())?;
    }
    let help = "Requests that took at least --slow-request-ms.";
    page.counter("http_slow_requests", help, count(|it| &it.slow))?;
    page.gauge("watches", "Open watches.", total(|it| &it.watches))?;
    let limit = app.writes_waiting_max();
    let waiting = limit.saturating_sub(app.room_for_writes().free);
    page.gauge("writes_waiting", "Writes in progress, including forwarded ones.", waiting)?;
    page.gauge("writes_waiting_limit", "Limit of writes in progress.", limit)?;
    let help = "Memory that requests, responses, watches, long proposals and scrapes hold, of that which is counted.";
    let mut family = page.family("client_memory_bytes", help, MetricType::Gauge)?;
    for (part, bytes) in app.client_memory.used_bytes() {
        family.encode_family(&[("part", part)])?.encode_gauge(&bytes)?;
    }
    let help = "Time from the proposal of a write until it is applied, on the leader.";
    page.histogram("raft_proposal_duration_seconds", help, &all(|it| &it.proposals))?;
    let help = "Time until a linearizable read is confirmed and this node has applied what it must show.";
    page.histogram("raft_read_confirmation_duration_seconds", help, &all(|it| &it.confirmations))
}

fn raft(page: &mut Page<'_>, app: &ExampleApp) -> fmt::Result {
    let metrics = app.raft.metrics().borrow_watched().clone();
    let index = |log_id: Option<LogId>| log_id.map_or(0, |log_id| log_id.index);
    let role = app.role();
    page.gauge("raft_term", "Term that the node is in.", metrics.current_term)?;
    page.flag("raft_is_leader", "Whether the node leads, with a majority.", role == Role::Leader)?;
    let help = "Number of the leader that the node has heard lately; 0 if it has heard none.";
    let leader = match &role {
        Role::Leader => app.id,
        Role::Follower { leader_id, .. } if app.hears_a_leader() => *leader_id,
        Role::Follower { .. } | Role::NoLeader => 0,
    };
    page.gauge("raft_leader_id", help, leader)?;
    let elections = &app.peers.elections;
    page.counter("raft_elections", "Elections in which the node stood.", elections.elections.get())?;
    let help = "How often the node learned of a new leader, or of a leader in a new term.";
    page.counter("raft_leader_changes", help, elections.leader_changes.get())?;
    page.gauge("raft_last_log_index", "Index of the last entry in the log.", metrics.last_log_index.unwrap_or(0))?;
    let help = "Index of the last entry that the node knows to be committed.";
    page.gauge("raft_committed_index", help, index(metrics.local_committed))?;
    page.gauge("raft_applied_index", "Index of the last entry that was applied.", index(metrics.last_applied))?;
    page.gauge("raft_snapshot_index", "Index of the last entry in the newest snapshot.", index(metrics.snapshot))?;
    page.gauge("raft_purged_index", "Index of the last entry that was deleted from the log.", index(metrics.purged))?;
    let membership = metrics.membership_config.membership();
    let voters: Vec<NodeId> = membership.voter_ids().collect();
    page.gauge("raft_voters", "Voters, as far as the node knows.", voters.len())?;
    page.gauge("raft_learners", "Learners, as far as the node knows.", membership.learner_ids().count())?;
    let help = "Whether the node is a voter, as far as it knows.";
    page.flag("raft_is_voter", help, voters.contains(&app.id))?;
    if role == Role::Leader { peers(page, app, &metrics, &voters) } else { Ok(()) }
}

/// What only a leader knows.
fn peers(page: &mut Page<'_>, app: &ExampleApp, metrics: &RaftMetrics<TypeConfig>, voters: &[NodeId]) -> fmt::Result {
    let silences: Vec<(NodeId, Option<Duration>)> = metrics
        .heartbeat
        .iter()
        .flatten()
        .filter(|(id, _)| **id != app.id)
        .map(|(id, at)| (*id, at.as_ref().map(|at| at.elapsed())))
        .collect();
    let reachable = silences
        .iter()
        .filter(|(id, silence)| voters.contains(id) && silence.is_some_and(|silence| silence < app.leader_lease()));
    let reachable = reachable.count() + usize::from(voters.contains(&app.id));
    let help = "On the leader: voters that responded within an election timeout, including the leader.";
    page.gauge("raft_voters_reachable", help, reachable)?;
    let quorum = voters.len() / 2 + 1;
    let help = "On the leader: how many more voters may fail before writes stop; negative if they have stopped.";
    page.gauge("raft_failures_tolerated", help, reachable as i64 - quorum as i64)?;
    let last = metrics.last_log_index.unwrap_or(0);
    let help = "On the leader: entries that a member lacks.";
    let mut family = page.family("raft_peer_lag_entries", help, MetricType::Gauge)?;
    for (id, matched) in metrics.replication.iter().flatten().filter(|(id, _)| **id != app.id) {
        let lag = last.saturating_sub(matched.map_or(0, |matched| matched.index));
        family.encode_family(&[("peer", id.to_string())])?.encode_gauge(&lag)?;
    }
    let help = "On the leader: time since a member last responded.";
    let mut family = page.family("raft_peer_silence_seconds", help, MetricType::Gauge)?;
    for (id, silence) in silences {
        if let Some(silence) = silence {
            family.encode_family(&[("peer", id.to_string())])?.encode_gauge(&silence.as_secs_f64())?;
        }
    }
    Ok(())
}

fn log(page: &mut Page<'_>, app: &ExampleApp) -> fmt::Result {
    let log = &app.store.log;
    let help = "Time from an append, or a vote, until it is on disk.";
    page.histogram("log_append_duration_seconds", help, &log.meters().append.read())?;
    let help = "Time of each write and sync of the log.";
    page.histogram("log_sync_duration_seconds", help, &log.meters().sync.read())?;
    page.gauge("log_bytes", "Length of all files of the log.", log.disk_bytes())?;
    page.known("log_files", "Files of the log.", log.files().ok().map(|files| files.len()))?;
    page.gauge("log_unsynced_bytes", "Entries that are not on disk yet.", log.unsynced_bytes())?;
    page.gauge("log_uncommitted_bytes", "Entries that are not known to be committed.", log.uncommitted_bytes())?;
    let help = "Whether the log has its limit of files, and accepts no entries until a snapshot is written.";
    page.flag("log_is_full", help, app.log_is_full())
}

fn state(page: &mut Page<'_>, app: &ExampleApp) -> fmt::Result {
    let meters = app.store.state_machine.meters();
    let help = "Time of each batch of entries that was applied.";
    page.histogram("apply_duration_seconds", help, &meters.apply.read())?;
    page.counter("applied_entries", "Entries that were applied since the start.", meters.applied_entries.get())?;
    struct Sizes {
        keys: usize,
        bytes: u64,
        revision: u64,
        level: Level,
        history: (usize, usize),
        requests: (usize, usize),
    }
    let sizes = app.store.state_machine.read(|machine| Sizes {
        keys: machine.data.len(),
        bytes: machine.data_bytes(),
        revision: machine.revision,
        level: machine.level,
        history: (machine.history.iter().len(), machine.history.bytes()),
        requests: (machine.requests.len(), machine.requests.bytes()),
    });
    page.gauge("store_keys", "Keys.", sizes.keys)?;
    page.gauge("store_bytes", "Length of all keys and values.", sizes.bytes)?;
    page.gauge("store_revision", "Revision of the store.", sizes.revision)?;
    let help = "Level of formats of the cluster, as far as the node has applied entries.";
    page.gauge("store_format_level", help, sizes.level.0)?;
    let help = "Memory that keys and values use, as the quota counts them.";
    page.gauge("quota_used_bytes", help, app.store.state_machine.memory_bytes())?;
    page.gauge("quota_bytes", "Quota, beyond which the node accepts no growth while it leads.", app.quota_bytes)?;
    let help = "Writes that were rejected because they would have exceeded the quota.";
    page.counter("quota_rejections", help, app.quota_rejections.count())?;
    page.gauge("store_history_changes", "Changes that are kept for watches.", sizes.history.0)?;
    page.gauge("store_history_bytes", "Memory of the changes that are kept for watches.", sizes.history.1)?;
    page.gauge("store_idempotency_keys", "Remembered Idempotency-Keys.", sizes.requests.0)?;
    page.gauge("store_idempotency_bytes", "Memory of the remembered Idempotency-Keys.", sizes.requests.1)
}

fn snapshots(page: &mut Page<'_>, app: &ExampleApp) -> fmt::Result {
    let meters = app.store.state_machine.meters();
    page.histogram("snapshot_build_duration_seconds", "Time to write a snapshot.", &meters.build.read())?;
    let help = "Snapshots that were not written: the disk has no space, or failed.";
    page.counter("snapshot_build_failures", help, meters.build_failures.get())?;
    let help = "Time to install a snapshot of the leader, after it was received.";
    page.histogram("snapshot_install_duration_seconds", help, &meters.install.read())?;
    let help = "Snapshots of the leader that could not be installed.";
    page.counter("snapshot_install_failures", help, meters.install_failures.get())?;
    let sent = &app.peers.elections;
    page.counter("snapshots_sent", "Snapshots that other nodes received.", sent.snapshots_sent.get())?;
    let help = "Snapshots of which the sending failed.";
    page.counter("snapshot_send_failures", help, sent.snapshots_unsent.get())?;
    let sizes = app.store.state_machine.snapshots().sizes().ok();
    let help = "Length of the newest snapshot.";
    page.known("snapshot_bytes", help, sizes.map(|sizes| sizes.newest_bytes))
}

fn disk_and_time(page: &mut Page<'_>, app: &ExampleApp) -> fmt::Result {
    let free_bytes = app.disk.free_bytes();
    let help = "Free disk space, less the entries that are being written.";
    // Before the first check it is not known.
    page.known("disk_free_bytes", help, (free_bytes < u64::MAX / 2).then_some(free_bytes))?;
    let space = app.disk.space();
    let help = "Whether the disk is low on space: this node rejects puts while it leads.";
    page.flag("disk_is_low", help, space != DiskSpace::Enough)?;
    let help = "Whether the disk is full: this node accepts no entries.";
    page.flag("disk_is_full", help, space == DiskSpace::Exhausted)?;
    let help = "Wall clock of the node, in seconds since 1970.";
    page.gauge("wall_time_seconds", help, wall_ms() as f64 / 1e3)?;
    let log_ms = app.store.clock().known_ms();
    let help = "Log time, in which TTLs count, in seconds since 1970.";
    page.known("log_time_seconds", help, log_ms.map(|ms| ms as f64 / 1e3))
}

fn process(page: &mut Page<'_>) -> fmt::Result {
    let used = ProcessUse::read();
    if let Some(seconds) = used.cpu_seconds {
        let help = "CPU time that the process has used.";
        let mut family = page.family("process_cpu_seconds", help, MetricType::Counter)?;
        family.encode_counter::<NoLabelSet, _, f64>(&seconds, None)?;
    }
    page.known("process_resident_memory_bytes", "Memory of the process that is in RAM.", used.resident_bytes)?;
    page.known("process_open_fds", "Open files of the process.", used.open_files)?;
    page.known("process_max_fds", "Limit of open files.", used.open_files_max)?;
    page.known("process_threads", "Threads of the process.", used.threads)?;
    let help = "Start of the process, in seconds since 1970.";
    page.known("process_start_time_seconds", help, used.started_at)
}
