//! The handles that all HTTP handlers share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use actix_web::http::header::HeaderValue;
use openraft::ServerState;
use openraft::alias::WatchReceiverOf;
use openraft::async_runtime::WatchReceiver;
use openraft::metrics::{RaftMetrics, RaftServerMetrics};
use tokio::sync::{Semaphore, watch};

use crate::agreement::{Agreement, OlderCopy, OtherEntry};
use crate::auth::Auth;
use crate::config::{
    Config, EXPORTS_AT_ONCE, JoinAs, Limits, MEMBER_CHANGES_MAX, MEMBERS_ANSWER_MAX, MEMBERS_ANSWER_MIN,
    NEXT_LEADER_WAIT_MAX,
};
use crate::confirmations::Confirmations;
use crate::connection::Dialer;
use crate::disk::Disk;
use crate::network::cluster_status::ClusterView;
use crate::network::long_work::LongWork;
use crate::network::memory::ClientMemory;
use crate::network::metrics::MetricsText;
use crate::network::observer::{Observer, SlowRequests};
use crate::network::watch_held::WatchesHeld;
use crate::peers::Peers;
use crate::store::{ClusterId, ExampleRaft, ExampleStore, Identity};
use crate::telemetry::meters::{Counter, HttpMeters};
use crate::telemetry::traces::Traces;
use crate::tls::Tls;
use crate::types::{ExampleNode, LeaderId, LogId, Membership, NodeId, StoredMembership, TypeConfig, Vote};

/// The state of a node that handlers need.
pub struct ExampleApp {
    /// This node's id.
    pub id: NodeId,
    /// The address that other nodes dial.
    pub addr: String,
    /// Raft.
    pub raft: ExampleRaft,
    /// The data directory.
    pub store: Arc<ExampleStore>,
    /// Dials other nodes for requests besides Raft's.
    pub http: Dialer,
    /// The certificates of this node, if it speaks TLS.
    pub tls: Option<Arc<Tls>>,
    /// Memory that clients may make this node hold.
    pub client_memory: ClientMemory,
    /// What watches hold, to take it back from slow ones.
    pub watches_held: WatchesHeld,
    /// Runs long work on other threads.
    pub long_work: LongWork,
    /// One permit for each snapshot that a client may download at a time.
    pub exports: Arc<Semaphore>,
    /// One permit for each write that may wait.
    pub writes_waiting: Semaphore,
    /// Limits of requests.
    pub limits: Limits,
    /// The cluster that this node is reserved for while it is being founded. Locked while the node joins a cluster.
    pub founding: tokio::sync::Mutex<Option<FoundingHold>>,
    /// Held while this node founds a cluster, which it does once at a time.
    pub founding_turn: tokio::sync::Mutex<()>,
    /// Held while a request of `/v1/cluster/members` proposes a membership change as leader, one at a time.
    pub members_turn: tokio::sync::Mutex<()>,
    /// One permit for each such request that may be under way.
    pub members_room: Semaphore,
    /// What this node waits for to form or to join a cluster; `None` if it does neither.
    pub joining: Mutex<Option<String>>,
    /// The role in which this node wants to join a cluster, if it does.
    pub joins_as: Option<JoinAs>,
    /// How long voters have to respond before a membership change that needs them is rejected.
    pub members_answer_deadline: Duration,
    /// Which requests this node serves.
    pub auth: Auth,
    /// What this node remembers of received RPCs.
    pub peers: Arc<Peers>,
    /// Whether this node has the entries that its leader counts on.
    pub agreement: Agreement,
    /// Confirmations by the leader, shared by watches.
    pub confirmations: Confirmations,
    /// Held while this node transfers its leadership.
    pub transfer_turn: tokio::sync::Mutex<()>,
    /// The parts that describe this node and its cluster.
    pub cluster_view: ClusterView,
    /// Held while Raft gets entries of a leader, until they are on disk.
    pub appending: Arc<tokio::sync::Mutex<()>>,
    /// Free disk space.
    pub disk: Arc<Disk>,
    /// Memory for keys and values, in bytes, beyond which this node as leader lets no write add data.
    pub quota_bytes: u64,
    /// The writes that it rejected for that reason.
    pub quota_rejections: QuotaRejections,
    /// The last text for Prometheus.
    pub metrics_text: MetricsText,
    /// One for each thread that serves connections.
    http_meters: Mutex<Vec<Arc<HttpMeters>>>,
    slow_requests: Arc<SlowRequests>,
    traces: Option<Arc<Traces>>,
    // The part of the metrics that only changes with the leader or the membership.
    metrics: WatchReceiverOf<TypeConfig, RaftServerMetrics<TypeConfig>>,
    all_metrics: WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>,
    leader_lease_ms: u64,
    heartbeat_interval: Duration,
    /// Set once: a node joins one cluster for good.
    cluster_header: OnceLock<HeaderValue>,
    writes_waiting_max: usize,
    recovered: AtomicBool,
    log_is_full: AtomicBool,
    exclusion: watch::Sender<Option<Exclusion>>,
    /// The last entry that a leader declared committed. Raft learns only of entries in the log (`Append`).
    said_committed: watch::Sender<Option<LogId>>,
    /// Set at SIGTERM, before the node hands over its leadership.
    will_stop: AtomicBool,
    stopping: watch::Sender<bool>,
    /// The term in which this node, as leader, proposes no more because it hands over its leadership.
    handing_over: watch::Sender<Option<u64>>,
    /// The last term in which this node led before a majority had responded, and since when a request knows that.
    unconfirmed: Mutex<Option<(u64, Instant)>>,
    /// Why the node must exit, if it must.
    failure: watch::Sender<Option<Failure>>,
}

/// Why a node must exit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Writing a file failed, so the contents of the disk are unknown.
    Disk(String),
    /// The node lost entries that it acknowledged.
    OlderCopy(OlderCopy),
    /// The log has another entry than the leader's.
    OtherEntry(OtherEntry),
    /// The state changed in memory by itself.
    MemoryChanged,
    /// A background task ended, whose work no other task does.
    Task(&'static str),
    /// `--bootstrap` would found a second cluster.
    SecondCluster(String),
    /// The cluster requires tokens, and this node was started without the root token.
    NoRootToken,
}

/// Held by a background task that must run as long as its node. If the task ends or panics, the node exits.
#[derive(Debug)]
pub struct Essential {
    /// The task's name, until its work is done.
    task: Option<&'static str>,
    failure: watch::Sender<Option<Failure>>,
}

impl Essential {
    /// Runs a task that must not end.
    pub async fn run(self, task: impl Future<Output = ()>) {
        task.await;
    }

    /// Lets the task end, because its work is complete.
    pub fn fulfilled(mut self) {
        self.task = None;
    }
}

impl Drop for Essential {
    fn drop(&mut self) {
        if let Some(task) = self.task {
            fail(&self.failure, Failure::Task(task));
        }
    }
}

/// Keeps the first failure, since later ones may follow from it.
fn fail(sender: &watch::Sender<Option<Failure>>, failure: Failure) {
    sender.send_if_modified(|known| {
        let is_first = known.is_none();
        known.get_or_insert(failure);
        is_first
    });
}

/// Writes that were rejected because they would have exceeded the quota.
#[derive(Debug, Default)]
pub struct QuotaRejections {
    count: Counter,
    last: Mutex<Option<Instant>>,
}

impl QuotaRejections {
    /// Notes one.
    pub fn note(&self) {
        self.count.increment();
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Their number since the node started.
    pub fn count(&self) -> u64 {
        self.count.get()
    }

    /// The time of the last one.
    pub fn last(&self) -> Option<Instant> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The role of a node now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// The node leads.
    Leader,
    /// The node knows the leader.
    Follower {
        /// The leader's id.
        leader_id: NodeId,
        /// The leader's address.
        leader_node: ExampleNode,
    },
    /// The node knows no leader: an election is under way, or there is no quorum.
    NoLeader,
}

/// A leader whose process may have ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// Its vote.
    pub vote: Vote,
    /// Its address.
    pub leader: ExampleNode,
}

/// Why a node is not a member of a cluster, as the nodes of that cluster told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exclusion {
    /// A member with the node's id has another data directory, which is probably lost.
    OtherDirectory {
        /// The cluster of that member.
        cluster_id: ClusterId,
    },
    /// The membership of the leader does not have the node any more.
    Removed,
}

/// The reservation of a node that belongs to no cluster.
#[derive(Clone, Copy, Debug)]
pub struct FoundingHold {
    /// The cluster that is being founded.
    pub cluster_id: ClusterId,
    /// The node that founds the cluster.
    pub founder: NodeId,
    /// When the reservation expires if the cluster was not founded.
    pub until: Instant,
}

/// What a node knows of its cluster when an RPC arrives.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its last vote.
    pub vote: Vote,
    /// The last committed entry of its log.
    pub committed: Option<LogId>,
    /// The last entry that a leader declared committed, which the log may not have yet.
    pub cluster_committed: Option<LogId>,
    /// The log id of the committed membership, if there is one.
    pub membership: Option<LogId>,
}

impl Default for Known {
    /// The knowledge of a new node.
    fn default() -> Self {
        let vote = Vote { leader_id: LeaderId { term: 0, node_id: 0 }, committed: false };
        Known { vote, committed: None, cluster_committed: None, membership: None }
    }
}

impl Known {
    fn of(metrics: &RaftMetrics<TypeConfig>, said_committed: Option<LogId>) -> Self {
        let membership = &metrics.committed_membership_config;
        Known {
            vote: metrics.vote,
            committed: metrics.local_committed,
            cluster_committed: metrics.cluster_committed.max(said_committed),
            // Without an allocation, because this runs for each RPC.
            membership: membership.membership().get_joint_config().iter().flatten().next().and(*membership.log_id()),
        }
    }
}

/// How many more requests may be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Until one more is rejected.
    pub free: usize,
    /// Of those, how many are reserved for requests that bypass the admission queue.
    pub kept: usize,
}

impl ExampleApp {
    /// Creates the handles of a node.
    #[expect(clippy::too_many_arguments, reason = "each is a part of the node, and the one caller names them all")]
    pub fn new(
        addr: String,
        raft: ExampleRaft,
        store: Arc<ExampleStore>,
        peers: Arc<Peers>,
        traces: Option<Arc<Traces>>,
        tls: Option<Arc<Tls>>,
        auth: Auth,
        config: &Config,
    ) -> Self {
        let metrics = raft.server_metrics();
        ExampleApp {
            id: config.id,
            addr,
            store,
            http: Dialer::new(tls.clone()),
            client_memory: ClientMemory::new(config.client_memory_bytes),
            long_work: LongWork::default(),
            exports: Arc::new(Semaphore::new(EXPORTS_AT_ONCE)),
            writes_waiting: Semaphore::new(config.max_writes_waiting),
            writes_waiting_max: config.max_writes_waiting,
            limits: config.limits(),
            founding: tokio::sync::Mutex::new(None),
            founding_turn: tokio::sync::Mutex::new(()),
            members_turn: tokio::sync::Mutex::new(()),
            members_room: Semaphore::new(MEMBER_CHANGES_MAX),
            joining: Mutex::new(None),
            joins_as: (config.bootstrap || !config.join.is_empty()).then_some(config.join_as),
            members_answer_deadline: Duration::from_millis(config.election_timeout_max_ms)
                .clamp(MEMBERS_ANSWER_MIN, MEMBERS_ANSWER_MAX),
            peers,
            auth,
            agreement: Agreement::default(),
            confirmations: Confirmations::default(),
            watches_held: WatchesHeld::default(),
            transfer_turn: tokio::sync::Mutex::new(()),
            metrics_text: MetricsText::default(),
            http_meters: Mutex::default(),
            traces,
            slow_requests: Arc::new(SlowRequests::over_ms(config.slow_request_ms)),
            cluster_view: ClusterView::new(config, tls.clone()),
            tls,
            appending: Arc::default(),
            heartbeat_interval: Duration::from_millis(config.heartbeat_interval_ms),
            cluster_header: OnceLock::new(),
            all_metrics: raft.metrics(),
            leader_lease_ms: config.election_timeout_max_ms,
            raft,
            metrics,
            recovered: AtomicBool::new(false),
            disk: Arc::default(),
            quota_bytes: config.quota_bytes,
            quota_rejections: QuotaRejections::default(),
            log_is_full: AtomicBool::new(false),
            exclusion: watch::Sender::new(None),
            said_committed: watch::Sender::new(None),
            will_stop: AtomicBool::new(false),
            stopping: watch::Sender::new(false),
            handing_over: watch::Sender::new(None),
            unconfirmed: Mutex::default(),
            failure: watch::Sender::new(None),
        }
    }

    /// The role of this node, as far as it knows.
    pub fn role(&self) -> Role {
        let metrics = self.metrics.borrow_watched();
        match metrics.current_leader {
            Some(leader_id) if leader_id == self.id && metrics.state == ServerState::Leader => {
                // A removed leader leads until another does, but accepts no more requests. Neither does one that hands
                // over its leadership.
                let is_leaving = *self.handing_over.borrow() == Some(metrics.vote.leader_id.term);
                if self.has_quorum() && is_member_in(&metrics, self.id) && !is_leaving {
                    Role::Leader
                } else {
                    Role::NoLeader
                }
            }
            // Its process has ended, and an election is about to begin.
            Some(leader_id) if leader_id != self.id && self.peers.is_gone(&metrics.vote) => Role::NoLeader,
            Some(leader_id) if leader_id != self.id => {
                match metrics.membership_config.membership().get_node(&leader_id) {
                    Some(node) => {
                        Role::Follower { leader_id, leader_node: self.peers.located(leader_id, node.clone()) }
                    }
                    None => Role::NoLeader,
                }
            }
            _ => Role::NoLeader,
        }
    }

    /// How many more writes may wait.
    pub fn room_for_writes(&self) -> Room {
        Room { free: self.writes_waiting.available_permits(), kept: self.writes_waiting_max / 2 }
    }

    /// The limit of writes that may wait.
    pub fn writes_waiting_max(&self) -> usize {
        self.writes_waiting_max
    }

    /// The observer of a new thread that serves connections.
    pub fn observer(&self) -> Observer {
        let meters = Arc::<HttpMeters>::default();
        self.http_meters().push(meters.clone());
        Observer::new(meters, self.slow_requests.clone(), self.traces.clone())
    }

    /// The meters of the threads that serve connections.
    pub fn http_meters(&self) -> MutexGuard<'_, Vec<Arc<HttpMeters>>> {
        self.http_meters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long a leader leads, or a member counts as reachable, after its last response.
    pub fn leader_lease(&self) -> Duration {
        Duration::from_millis(self.leader_lease_ms)
    }

    /// The term, as far as this node knows.
    pub fn term(&self) -> u64 {
        self.metrics.borrow_watched().vote.leader_id.term
    }

    /// Whether a majority has responded to this leader lately. A leader that is cut off must reject requests before it
    /// proposes anything, while their outcome is certain; so must a new one that no majority has responded to yet, from
    /// which Raft takes no writes.
    fn has_quorum(&self) -> bool {
        self.millis_since_quorum().is_some_and(|silent_ms| silent_ms < self.leader_lease_ms)
    }

    /// The time since this leader sent the last request that a majority has responded to, in milliseconds; `None` if it
    /// is not the leader, or no majority has responded yet.
    fn millis_since_quorum(&self) -> Option<u64> {
        let metrics = self.all_metrics.borrow_watched();
        // openraft recommends keeping the time ourselves. That would give the same result: the metrics are renewed with
        // every tick.
        #[allow(deprecated)]
        metrics.millis_since_quorum_ack
    }

    /// This node's address in the membership.
    pub fn own_address(&self) -> Option<String> {
        let metrics = self.metrics.borrow_watched();
        metrics.membership_config.membership().get_node(&self.id).map(|node| node.addr.clone())
    }

    /// Whether a node is a member, as far as this node knows.
    pub fn has_member(&self, id: NodeId) -> bool {
        is_member_in(&self.metrics.borrow_watched(), id)
    }

    /// The id of its cluster as a header value, once it belongs to one.
    pub fn cluster_header(&self) -> Option<&HeaderValue> {
        if let Some(header) = self.cluster_header.get() {
            return Some(header);
        }
        let cluster_id = self.store.identity().cluster_id?;
        let header = HeaderValue::from_str(&cluster_id.to_string()).ok()?;
        Some(self.cluster_header.get_or_init(|| header))
    }

    /// What this node knows of its cluster when an RPC arrives.
    pub fn known(&self) -> Known {
        Known::of(&self.all_metrics.borrow_watched(), *self.said_committed.borrow())
    }

    /// Notes that a leader declared the entries up to this one committed.
    pub fn note_said_committed(&self, log_id: LogId) {
        self.said_committed.send_if_modified(|said| {
            let is_more = *said < Some(log_id);
            if is_more {
                *said = Some(log_id);
            }
            is_more
        });
    }

    /// Waits until this node follows the leader with this vote, and then until the entries that leaders declared
    /// committed are as expected.
    pub async fn wait_for_leader(&self, vote: &Vote, is_expected: impl Fn(&Known) -> bool) {
        // An error means that Raft has stopped, which is reported elsewhere.
        let _ = self.raft.wait(None).metrics(|metrics| metrics.vote == *vote, "the leader heartbeats").await;
        let mut said = self.said_committed.subscribe();
        // Cannot fail: the sender is in `self`.
        while !is_expected(&self.known()) && said.changed().await.is_ok() {}
    }

    /// The term and the leader, as far as this node knows.
    pub fn term_and_leader(&self) -> TermAndLeader {
        term_and_leader(&self.metrics.borrow_watched())
    }

    /// Completes once the leader or the term is another one than at the call.
    pub fn leader_changed(&self) -> impl Future<Output = ()> + use<> {
        self.leader_changed_since(self.term_and_leader())
    }

    /// Completes once the leader or the term is another one than `before`.
    pub fn leader_changed_since(&self, before: TermAndLeader) -> impl Future<Output = ()> + use<> {
        let mut metrics = self.metrics.clone();
        async move {
            if metrics.wait_until(|metrics| term_and_leader(metrics) != before).await.is_err() {
                // Raft has stopped, which is reported elsewhere.
                std::future::pending().await
            }
        }
    }

    /// Makes this node propose nothing more in this term, in which it leads.
    pub fn set_handing_over(&self, term: u64) {
        // Until the next leader is known, this node has just had one: itself.
        self.peers.note_leader();
        self.handing_over.send_replace(Some(term));
    }

    /// Lets this node propose again.
    pub fn clear_handing_over(&self) {
        self.handing_over.send_replace(None);
    }

    /// Whether a leader is likely within a moment: this node hands over its leadership, has just lost its leader, or has
    /// just been elected and no majority has responded to it yet.
    pub fn is_between_leaders(&self) -> bool {
        if self.is_stopping() || self.role() != Role::NoLeader {
            return false;
        }
        let metrics = self.metrics.borrow_watched();
        *self.handing_over.borrow() == Some(metrics.vote.leader_id.term)
            || self.has_just_heard_a_leader()
            || (metrics.state == ServerState::Leader && self.is_just_elected(metrics.vote.leader_id.term))
    }

    /// Whether no majority has responded to this leader yet, and may do so within a moment. A leader that was cut off
    /// right after its election is not just elected for longer than its lease.
    fn is_just_elected(&self, term: u64) -> bool {
        if self.millis_since_quorum().is_some() {
            return false;
        }
        let mut unconfirmed = self.unconfirmed.lock().unwrap_or_else(PoisonError::into_inner);
        time_unconfirmed(&mut unconfirmed, term, Instant::now()) < self.leader_lease()
    }

    /// The leader that this node follows and has accepted an append of, if it has no open connection to this node.
    pub fn suspect(&self) -> Option<Suspect> {
        let metrics = self.metrics.borrow_watched();
        let (vote, leader_id) = (metrics.vote, metrics.vote.leader_id.node_id);
        let follows =
            metrics.current_leader == Some(leader_id) && leader_id != self.id && self.agreement.is_with(&vote);
        if !follows || self.peers.has_link(leader_id) {
            return None;
        }
        let leader = metrics.membership_config.membership().get_node(&leader_id)?.clone();
        Some(Suspect { vote, leader: self.peers.located(leader_id, leader) })
    }

    /// This node's vote.
    pub fn vote(&self) -> Vote {
        self.metrics.borrow_watched().vote
    }

    /// The members, as far as this node knows.
    pub fn membership(&self) -> Membership {
        self.metrics.borrow_watched().membership_config.membership().clone()
    }

    /// Whether this node is a voter that may stand for election.
    pub fn may_stand(&self) -> bool {
        let metrics = self.metrics.borrow_watched();
        let is_voter = metrics.membership_config.voter_ids().any(|id| id == self.id);
        is_voter && may_stand(&metrics, &self.store.identity())
    }

    /// Whether this node received something from a leader within an election timeout.
    pub fn has_just_heard_a_leader(&self) -> bool {
        self.peers.heard_a_leader(self.leader_lease_ms)
    }

    /// Waits for the next leader if it is likely within a moment, so that a change of the leader costs no error.
    pub async fn wait_between_leaders(&self) {
        // All of them: a new leader accepts requests once a majority has responded to it.
        let mut metrics = self.all_metrics.clone();
        let (mut handing_over, mut gone) = (self.handing_over.subscribe(), self.peers.gone());
        let settled = async {
            while self.is_between_leaders() {
                tokio::select! {
                    // Raft has stopped, which is reported elsewhere.
                    changed = metrics.changed() => if changed.is_err() { return },
                    // These cannot fail: the senders are in `self`.
                    _ = handing_over.changed() => {}
                    _ = gone.changed() => {}
                }
            }
        };
        // The request is rejected afterwards if no leader is known by then.
        let _ = tokio::time::timeout(NEXT_LEADER_WAIT_MAX, settled).await;
    }

    /// Whether this node leads with a majority, or follows a member from which it received something within an election
    /// timeout.
    pub fn hears_a_leader(&self) -> bool {
        match self.role() {
            Role::Leader => true,
            Role::Follower { leader_id, .. } => {
                self.has_member(leader_id) && self.peers.heard_a_leader(self.leader_lease_ms)
            }
            Role::NoLeader => false,
        }
    }

    /// What to do if the membership has this node at another address than it advertises. Other nodes dial
    /// that address, so they do not reach this node unless both lead to it.
    pub fn moved(&self) -> Option<String> {
        let metrics = self.metrics.borrow_watched();
        // The last one, committed or not: after a restart a node knows what is committed only once a leader tells it.
        let member = metrics.membership_config.membership().get_node(&self.id)?;
        // The member is another incarnation of the node, which may be elsewhere.
        if member.addr == self.addr || member.incarnation != self.store.identity().incarnation {
            return None;
        }
        Some(format!(
            "the membership has node {} at {}, where the other nodes dial it, but the node advertises {}: it reports the \
             new address until the leader has committed it; to keep the old one, start it with --advertise-addr {}. If \
             another process runs as node {} at that address, stop this one: it runs on a copy of the data",
            self.id, member.addr, self.addr, member.addr, self.id
        ))
    }

    /// Whether this node knows the members and is not one of them.
    pub fn is_left_out(&self) -> bool {
        let metrics = self.metrics.borrow_watched();
        let is_known = metrics.committed_membership_config.voter_ids().next().is_some();
        is_known && !is_member_in(&metrics, self.id)
    }

    /// Why this node is not a member, if other nodes told it so.
    pub fn exclusion(&self) -> Option<Exclusion> {
        *self.exclusion.borrow()
    }

    /// Notes that other nodes do not have this node as a member; returns whether that is new.
    pub fn set_exclusion(&self, exclusion: Exclusion) -> bool {
        self.exclusion.send_if_modified(|known| {
            let is_news = known.is_none();
            known.get_or_insert(exclusion);
            is_news
        })
    }

    /// Notes that this node is a member after all: other nodes treat it as one.
    pub fn clear_exclusion(&self) {
        self.exclusion.send_if_modified(|known| known.take().is_some());
    }

    /// Whether the node has applied everything that it had before its last start.
    pub fn recovered(&self) -> bool {
        self.recovered.load(Ordering::Acquire)
    }

    /// Notes that the node has applied everything that it had before its last start.
    pub fn set_recovered(&self) {
        self.recovered.store(true, Ordering::Release);
    }

    /// Whether the node was told to stop. It still serves while it hands over its leadership.
    pub fn will_stop(&self) -> bool {
        self.will_stop.load(Ordering::Relaxed)
    }

    /// Notes that the node was told to stop.
    pub fn set_will_stop(&self) {
        self.will_stop.store(true, Ordering::Relaxed);
    }

    /// Whether the node is stopping and accepts no more requests.
    pub fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Completes once the node accepts no more requests.
    pub async fn stopped(&self) {
        // Cannot fail: the sender is in `self`.
        let _ = self.stopping.subscribe().wait_for(|stopping| *stopping).await;
    }

    /// Makes the node accept no more requests.
    pub fn set_stopping(&self) {
        self.stopping.send_replace(true);
    }

    /// Notes that writing a file failed: the node must exit.
    pub fn set_disk_failure(&self, why: String) {
        fail(&self.failure, Failure::Disk(why));
    }

    /// The guard of a background task that the node needs; `task` names it.
    pub fn essential(&self, task: &'static str) -> Essential {
        Essential { task: Some(task), failure: self.failure.clone() }
    }

    /// Completes once the node must exit.
    pub async fn failed(&self) -> Failure {
        let mut failure = self.failure.subscribe();
        loop {
            if let Some(failure) = failure.borrow_and_update().clone() {
                return failure;
            }
            // Cannot fail: the sender is in `self`.
            let _ = failure.changed().await;
        }
    }

    /// Interval between a leader's heartbeats, if all nodes have the same settings.
    pub fn heartbeat_interval(&self) -> Duration {
        self.heartbeat_interval
    }

    /// Notes that this node has lost entries that it acknowledged: it must exit.
    pub fn set_older_copy(&self, found: OlderCopy) {
        fail(&self.failure, Failure::OlderCopy(found));
    }

    /// Notes that the log has another entry than the leader's: the node must exit.
    pub fn set_other_entry(&self, found: OtherEntry) {
        fail(&self.failure, Failure::OtherEntry(found));
    }

    /// Makes the node exit, because it has no root token.
    pub fn set_no_root_token(&self) {
        fail(&self.failure, Failure::NoRootToken);
    }

    /// Notes that this node would found a second cluster: it must exit.
    pub fn set_second_cluster(&self, why: String) {
        fail(&self.failure, Failure::SecondCluster(why));
    }

    /// The role of this node in the committed membership, if that has it with this data directory.
    pub fn own_role(&self) -> Option<JoinAs> {
        self.role_in(&self.metrics.borrow_watched().committed_membership_config)
    }

    /// The same in the last membership, which may not be committed.
    pub fn last_known_role(&self) -> Option<JoinAs> {
        self.role_in(&self.metrics.borrow_watched().membership_config)
    }

    fn role_in(&self, stored: &StoredMembership) -> Option<JoinAs> {
        let membership = stored.membership();
        let own = self.store.identity().incarnation;
        // 0 stands for unknown.
        membership.get_node(&self.id).filter(|member| member.incarnation == own || member.incarnation == 0)?;
        let votes = membership.voter_ids().any(|voter| voter == self.id);
        Some(if votes { JoinAs::Voter } else { JoinAs::Learner })
    }

    /// The addresses of the other members, as far as this node knows.
    pub fn other_members(&self) -> Vec<String> {
        let metrics = self.metrics.borrow_watched();
        let nodes = metrics.membership_config.membership().nodes();
        nodes.filter(|(id, _)| **id != self.id).map(|(_, node)| node.addr.clone()).collect()
    }

    /// Notes that the state in memory is not as it was applied: the node must exit.
    pub fn set_memory_changed(&self) {
        fail(&self.failure, Failure::MemoryChanged);
    }

    /// Whether the log has as many files as it may have, until some are deleted after a snapshot.
    pub fn log_is_full(&self) -> bool {
        self.log_is_full.load(Ordering::Relaxed)
    }

    /// Notes whether the log has as many files as it may have.
    pub fn set_log_is_full(&self, is_full: bool) {
        self.log_is_full.store(is_full, Ordering::Relaxed);
    }
}

/// How long the leader of `term` has been known to be without a response of a majority, which `unconfirmed` remembers.
fn time_unconfirmed(unconfirmed: &mut Option<(u64, Instant)>, term: u64, now: Instant) -> Duration {
    let known = unconfirmed.filter(|(known, _)| *known == term);
    let (_, since) = *unconfirmed.insert(known.unwrap_or((term, now)));
    now.duration_since(since)
}

/// A term, and its leader if it is known.
pub type TermAndLeader = (u64, Option<NodeId>);

fn term_and_leader(metrics: &RaftServerMetrics<TypeConfig>) -> TermAndLeader {
    (metrics.vote.leader_id.term, metrics.current_leader)
}

/// Whether a node may stand for election: the membership must name it with its own data directory.
///
/// A removed number may be used again. Its new node receives the log from the beginning, where it may find a membership
/// in which the former node was the only voter. openraft would have it elect itself at once, with a log that ends
/// there, while the cluster has another leader.
pub fn may_stand(metrics: &RaftServerMetrics<TypeConfig>, own: &Identity) -> bool {
    [&metrics.membership_config, &metrics.committed_membership_config].into_iter().any(|stored| {
        let member = stored.membership().get_node(&own.node_id);
        // 0 stands for unknown.
        member.is_some_and(|member| member.incarnation == own.incarnation || member.incarnation == 0)
    })
}

/// Whether a node is a voter or a learner in the committed membership, or in the next one.
fn is_member_in(metrics: &RaftServerMetrics<TypeConfig>, id: NodeId) -> bool {
    let memberships = [&metrics.membership_config, &metrics.committed_membership_config];
    memberships.into_iter().any(|stored| stored.membership().get_node(&id).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A leader that gets no response from a majority stops counting as new: the time starts when this is first noticed
    /// in its term, continues over later calls, and starts again in another term.
    #[test]
    fn time_without_a_response_is_counted_by_term() {
        let (mut unconfirmed, start, moment) = (None, Instant::now(), Duration::from_millis(100));
        for (term, asked_after, expected) in [(3, 0, 0), (3, 1, 1), (3, 5, 5), (4, 6, 0), (4, 8, 2)] {
            let time = time_unconfirmed(&mut unconfirmed, term, start + asked_after * moment);
            assert_eq!(time, expected * moment, "term {term} after {asked_after} moments");
        }
    }

    /// A task that panics or returns ends the node. A task that has completed its work does not.
    #[tokio::test]
    async fn essential_tasks() {
        let failure = watch::Sender::new(None);
        let essential = |task| Essential { task: Some(task), failure: failure.clone() };
        essential("recovery").fulfilled();
        assert_eq!(*failure.borrow(), None);
        let panicking = async { assert_eq!(1, 2, "a panic that this test wants") };
        tokio::spawn(essential("expiry").run(panicking)).await.unwrap_err();
        assert_eq!(*failure.borrow(), Some(Failure::Task("expiry")));
        tokio::spawn(essential("self-check").run(async {})).await.unwrap();
        assert_eq!(*failure.borrow(), Some(Failure::Task("expiry")), "the first one counts");
    }
}
