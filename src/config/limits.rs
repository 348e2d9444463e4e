//! Every bound and default, with its unit and its reason. The build checks how they relate.

use std::time::Duration;

// ---- settings ----

/// Data directory unless set by `--data-dir`.
pub(super) const DATA_DIR_DEFAULT: &str = "./raft-key-value-data";
/// Interval between heartbeats unless set by `--heartbeat-interval-ms`, in milliseconds.
pub(super) const HEARTBEAT_INTERVAL_MS_DEFAULT: u64 = 100;
/// Least value of `--heartbeat-interval-ms`.
pub(super) const HEARTBEAT_INTERVAL_MS_LEAST: u64 = 10;
/// Shortest election timeout unless set by `--election-timeout-min-ms`, in milliseconds.
pub(super) const ELECTION_TIMEOUT_MIN_MS_DEFAULT: u64 = 300;
/// Longest election timeout unless set by `--election-timeout-max-ms`, in milliseconds.
pub(super) const ELECTION_TIMEOUT_MAX_MS_DEFAULT: u64 = 600;
/// Greatest value of `--election-timeout-max-ms`: a minute.
pub(super) const ELECTION_TIMEOUT_MAX_MS_LIMIT: u64 = 60_000;
/// Time after which a request counts as slow unless set by `--slow-request-ms`, in milliseconds.
pub(super) const SLOW_REQUEST_MS_DEFAULT: u64 = 300;
/// Share of requests that are traced unless set by `--otlp-sample-ratio`.
pub(super) const OTLP_SAMPLE_RATIO_DEFAULT: f64 = 0.01;
/// Log level unless set by `--log-level` or `RUST_LOG`.
pub(super) const LOG_LEVEL_DEFAULT: &str = "info";

const _: () = assert!(HEARTBEAT_INTERVAL_MS_LEAST <= HEARTBEAT_INTERVAL_MS_DEFAULT);
const _: () = assert!(2 * HEARTBEAT_INTERVAL_MS_DEFAULT <= ELECTION_TIMEOUT_MIN_MS_DEFAULT);
const _: () = assert!(ELECTION_TIMEOUT_MIN_MS_DEFAULT < ELECTION_TIMEOUT_MAX_MS_DEFAULT);
const _: () = assert!(ELECTION_TIMEOUT_MAX_MS_DEFAULT <= ELECTION_TIMEOUT_MAX_MS_LIMIT);

// ---- requests ----

/// Longest key unless set by `--max-key-bytes`, in bytes.
pub const KEY_BYTES_MAX_DEFAULT: usize = 1024;
/// Greatest value of `--max-key-bytes`.
pub const KEY_BYTES_MAX_LIMIT: usize = 4096;
/// Longest value unless set by `--max-value-bytes`, in bytes.
pub const VALUE_BYTES_MAX_DEFAULT: usize = 1 << 20;
/// Greatest value of `--max-value-bytes`.
pub const VALUE_BYTES_MAX_LIMIT: usize = 3 << 20;
/// Operations of a transaction unless set by `--max-txn-operations`; also the most comparisons of a transaction.
pub const TXN_OPERATIONS_MAX_DEFAULT: usize = 128;
/// Greatest value of `--max-txn-operations`.
pub const TXN_OPERATIONS_MAX_LIMIT: usize = 4096;
/// Keys of a page unless set by `--max-page-keys`.
pub const PAGE_KEYS_MAX_DEFAULT: usize = 1000;
/// Greatest value of `--max-page-keys`.
pub const PAGE_KEYS_MAX_LIMIT: usize = 100_000;
/// Bytes of keys and values after which a page ends, unless set by `--max-page-bytes`.
pub const PAGE_BYTES_MAX_DEFAULT: usize = 1 << 20;
/// Greatest value of `--max-page-bytes`.
pub const PAGE_BYTES_MAX_LIMIT: usize = 16 << 20;
/// Longest request body unless set by `--max-request-bytes`, in bytes: the largest value, and half as much again for
/// escapes.
pub const REQUEST_BYTES_MAX_DEFAULT: usize = 3 << 19;
/// Least value of `--max-request-bytes`.
pub(super) const REQUEST_BYTES_MAX_LEAST: usize = 1024;
/// Greatest value of `--max-request-bytes`: more than five bytes of body for each byte of the largest value.
pub const REQUEST_BYTES_MAX_LIMIT: usize = 16 << 20;
/// Shortest TTL that a request may set, in milliseconds.
pub const TTL_MS_MIN: u64 = 100;
/// Longest TTL that a request may set, in milliseconds: ten years.
pub const TTL_MS_MAX: u64 = 10 * 365 * 24 * 3600 * 1000;
/// Longest `Idempotency-Key`, in bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 128;
/// Nodes that a body of `/init` may list: the node that founds the cluster sends each of them several requests.
pub const INIT_MEMBERS_MAX: usize = 64;

const _: () = assert!(KEY_BYTES_MAX_DEFAULT + VALUE_BYTES_MAX_DEFAULT < REQUEST_BYTES_MAX_DEFAULT);
const _: () = assert!(REQUEST_BYTES_MAX_DEFAULT <= REQUEST_BYTES_MAX_LIMIT);
const _: () = assert!(5 * VALUE_BYTES_MAX_LIMIT < REQUEST_BYTES_MAX_LIMIT);

// ---- the state machine: the same on all nodes, so there are no flags ----

/// Changes in the history, from which watches resume.
pub const HISTORY_CHANGES_MAX: usize = 100_000;
/// Bytes of the history. Beyond either bound the oldest changes are dropped.
pub const HISTORY_BYTES_MAX: usize = 64 << 20;
/// Requests with an `Idempotency-Key` that are remembered: the last ten seconds at 25,000 requests a second, which is
/// how long `ExampleClient` retries.
pub const REQUESTS_REMEMBERED_MAX: usize = 250_000;
/// Bytes of these requests and their results. Beyond either bound the oldest are forgotten.
pub const REQUESTS_REMEMBERED_BYTES_MAX: usize = 128 << 20;
/// Most tokens of a cluster.
pub const TOKENS_MAX: usize = 1000;
/// Keys that one entry of a delete by prefix removes. Applying it takes milliseconds; longer deletes take several
/// entries.
pub const DELETE_STEP_KEYS_MAX: usize = 1000;
/// Neighboring keys that a delete by prefix skips together if all have changed since it began. With longer runs, a step
/// examines more keys to find those that it deletes; with shorter ones, more runs to find that there are none.
pub const RUN_KEYS_MAX: usize = 32;
/// A run with fewer keys is merged with the next one.
pub const RUN_KEYS_MIN: usize = 8;
/// Expired keys that one entry removes.
pub const EXPIRE_KEYS_MAX: usize = 1000;
/// Interval, in entries, at which nodes record the hash of their state and compare it with the leader's.
pub const SELF_CHECK_ENTRIES: u64 = 10_000;
/// Requests that wait on one node until an entry is applied.
pub const APPLIED_WAITING_MAX: usize = 64;
/// Bytes of values that one transaction may read.
pub const TXN_ANSWER_BYTES_MAX: usize = 4 << 20;

// A run that is split leaves two valid ones.
const _: () = assert!(RUN_KEYS_MAX / 2 >= RUN_KEYS_MIN);

// ---- log time and expiry ----

/// Interval at which a leader looks for expired keys.
pub const EXPIRY_INTERVAL: Duration = Duration::from_millis(100);
/// A follower follows the highest log time that the leader sent in this window and the one before it. Clocks that
/// differ by 100 parts per million drift apart by 1 ms in one window.
pub const LEADER_TIME_WINDOW: Duration = Duration::from_secs(10);
/// Highest log time that a node accepts from another node or from a wall clock, in milliseconds since 1970: the end of
/// the year 9999.
pub const LOG_TIME_MS_MAX: u64 = 253_402_300_799_999;
/// Interval at which a node compares its wall clock with log time.
pub const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// If the difference between the two has changed by this much since the last record, the node records them at once.
pub const CLOCK_STEP_MIN: Duration = Duration::from_millis(100);
/// Greatest age of the record.
pub const CLOCK_RECORD_INTERVAL_MAX: Duration = Duration::from_secs(60);
/// Interval at which a leader checks for a state hash to propose.
pub const SELF_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Interval at which a node checks whether it is the leader and should raise the level of formats.
pub const LEVEL_CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// Interval at which a leader asks the members for the levels that they support, until it can raise the level.
pub const LEVEL_RAISE_INTERVAL: Duration = Duration::from_secs(2);
/// How long `POST /init` waits for the level of a new cluster.
pub const LEVEL_RAISE_WAIT_MAX: Duration = Duration::from_secs(1);
/// State hashes that a node keeps for comparison: those from one [`SELF_CHECK_INTERVAL`], which passes before the
/// leader proposes a hash, and from the entries queued in front of that proposal.
pub const SELF_CHECKS_KEPT: usize = 64;

// ---- watches and listings ----

/// Batches of changes that a watch may fall behind before it reads from the history again.
pub const WATCH_BATCHES_MAX: usize = 16;
/// Approximate bytes of changes that a watch reads from the history at once while it catches up.
pub const WATCH_BATCH_BYTES: usize = 128 << 10;
/// Approximate bytes that a key takes in JSON in addition to the key itself and its value.
pub const KEY_VALUE_EXTRA_BYTES: usize = 128;
/// Approximate number of changes in the history that a watch examines at once. No entry is applied meanwhile, and other
/// requests on the same thread wait; this many take well below a millisecond.
pub const WATCH_EXAMINED_MAX: usize = 4096;
/// Approximate bytes of changes in one batch that a node hands to its watches. A batch is longer if one revision is, or
/// if so much is applied at once that there would be too many batches.
pub const WATCH_HANDED_OUT_BATCH_BYTES: usize = 32 << 10;
/// Bytes of batches that a node keeps for its watches, as changes and as encoded events, in addition to one batch of
/// any length. Data that several batches share counts once. A watch that is further behind reads the history.
pub const WATCH_HANDED_OUT_BYTES_MAX: usize = 32 << 20;
/// Changes of at least this length, in bytes, are encoded once for all watches of the node.
pub const WATCH_LONG_EVENT_BYTES: usize = 16 << 10;
/// Bytes of these encoded events that a node keeps although no watch needs them, in addition to one of any length.
pub const WATCH_LONG_EVENTS_BYTES_MAX: usize = 16 << 20;
/// Bytes of batches that all watches together may hold although the history no longer has them. Their readers are slow
/// and cannot continue; above this, the oldest are cut off.
pub const WATCH_GONE_BYTES_MAX: usize = 64 << 20;
/// Bytes of events that a watch hands to its connection at once.
pub const WATCH_PIECE_BYTES_MAX: usize = 64 << 10;
/// Interval between heartbeats on a watch without events.
pub const WATCH_HEARTBEAT: Duration = Duration::from_secs(10);
/// Greatest age of a leader confirmation that a watch reuses for its heartbeat, so that many watches share one.
pub const WATCH_CONFIRMATION_AGE_MAX: Duration = Duration::from_secs(1);
/// How long the one watch that requests a confirmation for all of them waits for the leader's response.
pub const WATCH_CONFIRMATION_DEADLINE: Duration = Duration::from_secs(1);
/// How long a new watch waits for a leader, with its connection open.
pub const WATCH_LEADER_DEADLINE: Duration = Duration::from_secs(30);
/// Interval between attempts to reach a leader, each made by one watch for all that wait.
pub const WATCH_LEADER_INTERVAL: Duration = Duration::from_millis(500);
/// Store states that are kept for listings of several pages; beyond that the least recently used is dropped.
pub const LISTINGS_KEPT_MAX: usize = 32;
/// How long a state is kept after its last page was read.
pub const LISTING_KEPT: Duration = Duration::from_secs(60);
/// Bytes of values that may be replaced or removed before an older state is dropped: it holds the old values in
/// addition to those that replaced them.
pub const STATE_REPLACED_BYTES_MAX: u64 = 128 << 20;

const _: () = assert!(WATCH_BATCHES_MAX * WATCH_HANDED_OUT_BATCH_BYTES < WATCH_HANDED_OUT_BYTES_MAX);
const _: () = assert!(WATCH_LONG_EVENT_BYTES < WATCH_HANDED_OUT_BATCH_BYTES);
const _: () = assert!(WATCH_CONFIRMATION_AGE_MAX.as_secs() < WATCH_HEARTBEAT.as_secs());
// A watch takes part in several attempts within one deadline.
const _: () = assert!(2 * WATCH_CONFIRMATION_DEADLINE.as_millis() < REQUEST_DEADLINE.as_millis());

// ---- admission queue, concurrency limits, load shedding ----

/// Writes in progress at once, unless set by `--max-writes-waiting`; further ones are rejected with 503. This bounds
/// the memory that requests hold, and their latency.
pub const WRITES_WAITING_MAX_DEFAULT: usize = 1024;
/// Greatest value of `--max-writes-waiting`.
pub const WRITES_WAITING_MAX_LIMIT: usize = 65_536;
/// Requests that a thread reads in one turn. Then everything else that is ready runs, so that responses do not wait
/// behind a burst of requests.
pub const REQUESTS_PER_TURN: usize = 64;
/// Share of a turn, in requests, for those that other nodes forwarded while this node's own clients wait too: two
/// thirds, as with clients spread evenly over three nodes.
pub const FORWARDED_PER_TURN: usize = 42;
/// Requests for probes and metrics in a turn that are read without queueing.
pub const METRICS_REQUESTS_PER_TURN: usize = 4;
/// Bytes of keys and values in one batch of proposals; a thread sends Raft what its clients write in one turn as one
/// batch, or as several if it is longer.
pub const PROPOSED_BYTES_PER_BATCH: usize = 256 << 10;
/// Consecutive turns that may add to a batch of proposals before it is sent to Raft.
pub const GATHERING_TURNS_MAX: usize = 4;
/// Confirmations of linearizable reads that one thread has in progress. Reads that arrive meanwhile share the next one.
pub const CONFIRMATIONS_AT_ONCE: usize = 2;
/// Time in the admission queue above which the node counts as overloaded, once it lasts for [`OVERLOAD_AFTER`]. On one
/// core it takes some thousand concurrent clients.
pub const QUEUE_WAIT_MAX: Duration = Duration::from_millis(250);
/// How long the queueing time must exceed [`QUEUE_WAIT_MAX`] before requests are shed: a short burst is served.
pub const OVERLOAD_AFTER: Duration = Duration::from_millis(500);
/// Requests that are served for each one that is shed. Shedding one costs a third to a half of what a write costs the
/// leader, so more than nine tenths of the time are left for requests that are served.
pub const SERVED_PER_SHED: usize = 8;
/// While overloaded, a node sheds at least one new request in this interval, however few it serves.
pub const SHED_INTERVAL_MAX: Duration = Duration::from_millis(10);
/// Longest time that a request may have been queued and still be shed, so that its client gets the response within
/// 100 ms.
pub const SHED_WAIT_MAX: Duration = Duration::from_millis(50);
/// If no write completes for this long, the writes in progress no longer hold back the admission queue.
pub const STALL_MIN: Duration = Duration::from_millis(100);
/// Bytes of a shed request's body that are read, so that its connection can be reused.
pub const SHED_BODY_BYTES_MAX: usize = 64 << 10;
/// Value of the `Retry-After` header in a 503.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);

const _: () = assert!(FORWARDED_PER_TURN < REQUESTS_PER_TURN);
const _: () = assert!(SERVED_PER_SHED < REQUESTS_PER_TURN);
const _: () = assert!(SHED_INTERVAL_MAX.as_millis() < SHED_WAIT_MAX.as_millis());
const _: () = assert!(SHED_WAIT_MAX.as_millis() < 100);
// A shed request has never been queued for long.
const _: () = assert!(SHED_WAIT_MAX.as_millis() < QUEUE_WAIT_MAX.as_millis());
const _: () = assert!(STALL_MIN.as_millis() < QUEUE_WAIT_MAX.as_millis());

// ---- the quota ----

/// Memory that each key takes in addition to its own bytes and its value's, in bytes, rounded up from what
/// `bench key-value` measures.
pub const KEY_MEMORY_BYTES: u64 = 200;
/// Least value of `--quota-bytes`.
pub const QUOTA_BYTES_LEAST: u64 = 1 << 20;

// ---- the settings file ----

/// Maximum length of the settings file, in bytes.
pub const CONFIG_FILE_BYTES_MAX: u64 = 1 << 20;

// ---- threads and connections ----

/// Greatest default of `--http-threads`.
pub const HTTP_THREADS_DEFAULT_MAX: usize = 8;
/// Greatest value of `--http-threads`.
pub const HTTP_THREADS_LIMIT: usize = 64;
/// Bytes of a new connection that are read to decide which thread serves it.
pub const FIRST_READ_BYTES: usize = 4 << 10;
/// Connections of other nodes that wait to move to Raft's thread; one more is closed.
pub const ARRIVALS_MAX: usize = 256;
/// Client connections that one node admits, if the limit on open files is at least five times that plus
/// [`FILES_RESERVED`].
pub const CLIENTS_MAX: usize = 25_000;
/// Client connections for each connection that is reserved for other nodes and operators.
pub const CLIENTS_PER_RESERVED_CONNECTION: usize = 4;
/// Least number of connections for operators; one more closes the oldest.
pub const OPERATORS_MIN: usize = 8;
/// Least number of node connections that Raft's thread accepts before it closes those not yet known to be a node's.
pub const NODE_CONNECTIONS_MIN: usize = 32;
/// RPC connections per member that are never closed to make room. A node uses three: for appends, for heartbeats, and
/// for snapshots.
pub const CONNECTIONS_KEPT_PER_MEMBER: usize = 8;
/// Interval of idle reaping, which closes connections whose request head does not end and, while hardly any connections
/// are free, those idle for one to two intervals.
pub const REAPING_INTERVAL: Duration = Duration::from_secs(1);
/// Open files that are reserved for the node itself: its log ([`LOG_FILES_MAX`]), its snapshots, its peers.
pub const FILES_RESERVED: usize = 128;
/// How long an idle connection is kept while there is room, from its start or its last response. Longer than
/// [`CONNECTION_IDLE_MAX`], so that the caller closes it and no request meets a closing connection. (The time runs
/// until a request is read: a connection that waits in the admission queue for this long is closed.)
pub const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// How long this program keeps its own idle connections to other nodes.
pub const CONNECTION_IDLE_MAX: Duration = Duration::from_secs(30);
/// Deadline for connecting to another node.
pub const CONNECT_DEADLINE: Duration = Duration::from_millis(1000);
/// Ports that are tried if the system chooses one for several addresses and it is in use on one of them.
pub const PORT_ATTEMPTS_MAX: usize = 16;
/// How long a client that is still sending is given to read the response.
pub const DISCONNECT_DEADLINE: Duration = Duration::from_secs(1);
/// How long a peer may accept none of the bytes written to it before its connection is closed: they take memory.
pub const WRITE_STALL_MAX: Duration = Duration::from_secs(30);
/// How long a node that stops waits for the requests in progress.
pub const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(5);
/// How long a browser may cache the response to a preflight request, in seconds.
pub const BROWSER_PREFLIGHT_SECONDS: u32 = 600;

const _: () = assert!(WATCH_HEARTBEAT.as_secs() < KEEP_ALIVE.as_secs());
const _: () = assert!(CONNECTION_IDLE_MAX.as_secs() < KEEP_ALIVE.as_secs());

// ---- deadlines of requests ----

/// How long a proposed request may take before its outcome is reported as unknown.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
/// Deadline for a request that is forwarded to the leader: the leader's wait for memory, its own deadline, and time for
/// the response to arrive.
pub const FORWARD_DEADLINE: Duration = Duration::from_secs(8);
/// Deadline for a membership change: a new node may need all data first.
pub const MEMBERSHIP_DEADLINE: Duration = Duration::from_secs(60);
/// Shortest time that voters have to respond before a membership change that needs them is rejected; otherwise it is
/// the longest election timeout.
pub const MEMBERS_ANSWER_MIN: Duration = Duration::from_secs(1);
/// Longest time that voters have to respond before a membership change that needs them is rejected.
pub const MEMBERS_ANSWER_MAX: Duration = Duration::from_secs(5);
/// Interval between the heartbeats that request those responses.
pub const MEMBERS_PROBE_INTERVAL: Duration = Duration::from_millis(100);
/// Entries that a voter may lack of those in the leader's log when a membership change was requested. Voters that take
/// part in commits satisfy this under load: they only need to catch up that far in time.
pub const MEMBER_LAG_ENTRIES_MAX: u64 = 100;
/// How long a request to add or promote a node waits for the node to catch up. The response says how far it is, and the
/// same request continues.
pub const CATCH_UP_WAIT: Duration = Duration::from_secs(10);
/// How long a learner must keep up, without a gap, before it becomes a voter.
pub const CAUGHT_UP_FOR: Duration = Duration::from_secs(1);
/// How far behind the leader, in time, a learner may be that keeps up.
pub const KEEPS_UP_WITHIN: Duration = Duration::from_millis(300);
/// Requests of `/v1/cluster/members` that may be under way on a leader; further ones get 503. Each of them that waits for
/// a node has the leader send ten heartbeats a second.
pub const MEMBER_CHANGES_MAX: usize = 16;
/// Shortest and longest pause of a joining node between two requests.
pub const JOIN_PAUSE_MIN: Duration = Duration::from_millis(100);
/// See [`JOIN_PAUSE_MIN`].
pub const JOIN_PAUSE_MAX: Duration = Duration::from_secs(3);
/// Interval at which a node that hears no leader asks whether it was removed.
pub const REMOVAL_CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// How long the other members have to send their status for `GET /v1/cluster`, from the first request to the last.
pub const CLUSTER_STATUS_DEADLINE: Duration = Duration::from_millis(1000);
/// How much of that those have which this node knows. The rest is for members that only the leader knows.
pub const CLUSTER_STATUS_FIRST_DEADLINE: Duration = Duration::from_millis(750);
/// How long the description of the cluster is returned to further requests.
pub const CLUSTER_STATUS_KEPT: Duration = Duration::from_millis(250);
/// Members that are asked for their status at once. Each response takes at most [`PEER_RESPONSE_BYTES_MAX`].
pub const CLUSTER_STATUS_AT_ONCE: usize = 64;
/// Longest round trip by which the clock of another node is compared: its reading is uncertain by half of that.
pub const CLOCK_ROUND_TRIP_MAX: Duration = Duration::from_millis(200);
/// How long a node waits for its disk before it reports its status without the space on it.
pub const DISK_STATUS_DEADLINE: Duration = Duration::from_millis(250);
/// Interval at which a leader notes the end of its log, by which it tells how far back followers are.
pub const LAG_INTERVAL: Duration = Duration::from_millis(100);
/// Such notes that a leader keeps.
pub const LAG_NOTES_MAX: usize = 512;
/// How long a node is reserved for a cluster that is being founded with it.
pub const FOUNDING_HOLD: Duration = Duration::from_secs(5);
/// How long a TLS handshake may take, from the client's first byte.
pub const TLS_HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// TLS handshakes that wait for the client's first message at a thread, and as many that have it. The oldest is closed
/// for one more: a good one takes a few round trips.
pub const TLS_HANDSHAKES_MAX: usize = 512;
/// Steps of TLS handshakes that a thread makes before everything else that is ready runs: at most about 0.5 ms.
pub const TLS_HANDSHAKE_STEPS_PER_TURN: usize = 1;
/// Interval at which a node looks whether its TLS files have changed.
pub const TLS_POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Longest TLS file, in bytes.
pub const TLS_FILE_BYTES_MAX: u64 = 1 << 20;
/// Certificates of open connections of which a node remembers whether they are valid with its current TLS files; of more
/// than these each connection is checked. They take at most 4 MiB.
pub const TLS_CHAINS_KEPT: usize = 64;
/// Nodes to which a thread keeps TLS clients; no cluster has so many.
pub const TLS_NODES_MAX: usize = 256;
/// How long a client may take to send the head of a request, from its first byte.
pub const REQUEST_HEAD_DEADLINE: Duration = Duration::from_secs(5);
/// How long a client may take to send the body of a request.
pub const REQUEST_BODY_DEADLINE: Duration = Duration::from_secs(10);
/// Interval between log messages about slow requests.
pub const SLOW_REPORT_INTERVAL: Duration = Duration::from_secs(5);
/// Longest `X-Request-Id`, in bytes.
pub const REQUEST_ID_BYTES_MAX: usize = 128;
/// Bytes of metrics that scrapes may hold until their clients have read them: more than a hundred at once.
pub const METRICS_BYTES_MAX: usize = 8 << 20;
/// Age up to which the text of the metrics is sent again.
pub const METRICS_KEPT: Duration = Duration::from_secs(1);
/// How long opening the data may take before requests that arrive meanwhile get 503. Until then they wait.
pub const STARTING_AFTER: Duration = Duration::from_secs(1);
/// Connections that are served while a node opens its data.
pub const STARTING_CONNECTIONS_MAX: usize = 256;
/// How many of them stay open while they wait for a TLS handshake or a request; for one more, the oldest is closed.
pub const STARTING_CONNECTIONS_KEPT: usize = 192;
const _: () = assert!(STARTING_CONNECTIONS_KEPT < STARTING_CONNECTIONS_MAX);
/// How long a node whose data is open waits for the requests that it got meanwhile.
pub const STARTING_SHUTDOWN_DEADLINE: Duration = Duration::from_secs(1);
/// How long a leader that stops waits for a voter that responds and is caught up.
pub const HAND_OVER_ANSWER_MAX: Duration = Duration::from_secs(1);
/// How long a former leader waits for the next one to be known, before it reports an unknown outcome.
pub const HAND_OVER_DEADLINE: Duration = Duration::from_secs(1);
/// How long a leader holds new requests while the next leader gets the rest of the log.
pub const HAND_OVER_CATCH_UP_MAX: Duration = Duration::from_millis(200);
/// How long requests take at most from the check that this node leads until Raft has them.
pub const HAND_OVER_SETTLE: Duration = Duration::from_millis(3);
/// How long a former leader that stops still serves, at most: other nodes may forward requests to it until they have
/// heard from the next leader, which takes a heartbeat interval.
pub const HAND_OVER_LINGER_MAX: Duration = Duration::from_millis(250);
/// How long a connection to the leader's address may take, to find out whether a process listens there.
pub const LEADER_PROBE_DEADLINE: Duration = Duration::from_millis(200);
/// Deadline of the requests by which a node that has lost its leader finds a majority that has, too.
pub const LEADER_LOSS_RPC_DEADLINE: Duration = Duration::from_millis(200);
/// How much later than the voter with the next greater id a voter asks the others.
pub const LEADER_LOSS_STAGGER: Duration = Duration::from_millis(10);
/// First pause before a node that may have lost its leader tries again.
pub const LEADER_LOSS_PAUSE_MIN: Duration = Duration::from_millis(5);
/// Longest pause before a node that may have lost its leader tries again.
pub const LEADER_LOSS_PAUSE_MAX: Duration = Duration::from_millis(200);
/// How long a request waits for the next leader if its node has just lost the last one.
pub const NEXT_LEADER_WAIT_MAX: Duration = Duration::from_millis(500);

// A forwarded request may also wait until its receiver leads.
const _: () = assert!(
    FORWARD_DEADLINE.as_millis()
        > MEMORY_WAIT_MAX.as_millis() + REQUEST_DEADLINE.as_millis() + NEXT_LEADER_WAIT_MAX.as_millis()
);
const _: () =
    assert!(HAND_OVER_CATCH_UP_MAX.as_millis() + HAND_OVER_SETTLE.as_millis() < NEXT_LEADER_WAIT_MAX.as_millis());
const _: () = assert!(MEMBERS_PROBE_INTERVAL.as_millis() < MEMBERS_ANSWER_MIN.as_millis());
const _: () = assert!(MEMBERS_PROBE_INTERVAL.as_millis() < KEEPS_UP_WITHIN.as_millis());
const _: () = assert!(KEEPS_UP_WITHIN.as_millis() + CAUGHT_UP_FOR.as_millis() < CATCH_UP_WAIT.as_millis());
const _: () = assert!(
    CATCH_UP_WAIT.as_millis() + MEMBERS_ANSWER_MAX.as_millis() + 2 * REQUEST_DEADLINE.as_millis()
        < MEMBERSHIP_DEADLINE.as_millis()
);
const _: () = assert!(MEMBERS_ANSWER_MIN.as_millis() < MEMBERS_ANSWER_MAX.as_millis());
const _: () = assert!(MEMBERS_ANSWER_MAX.as_secs() < MEMBERSHIP_DEADLINE.as_secs());

// ---- memory, and work on long bodies ----

/// Bytes that clients may make a node hold, unless set by `--client-memory-bytes`; an eighth of the machine's memory if
/// that is less.
pub const CLIENT_MEMORY_BYTES_DEFAULT: usize = 256 << 20;
/// Least value of `--client-memory-bytes`: room for two requests and a response with the largest default value.
pub const CLIENT_MEMORY_BYTES_LEAST: usize = 16 << 20;
/// Greatest value of `--client-memory-bytes`.
pub const CLIENT_MEMORY_BYTES_LIMIT: usize = 1 << 40;
/// Bodies and values shorter than this, in bytes, are not counted: the number of connections bounds them.
pub const MEMORY_COUNTED_MIN: usize = 4 << 10;
/// How long a request waits for memory in total before it is rejected.
pub const MEMORY_WAIT_MAX: Duration = Duration::from_secs(2);
/// Bytes that a request takes for each byte of its body: the body, and the decoded operation.
pub const REQUEST_BYTES_PER_BYTE: usize = 2;
/// Bytes that a response may take for each byte of a value: a copy of it, and six where JSON escapes a control
/// character.
pub const ENCODED_BYTES_PER_BYTE_MAX: usize = 7;
/// Bytes of a long response that are handed to its connection at once.
pub const BODY_PIECE_BYTES: usize = 64 << 10;
/// Bytes of a body of several pieces for which room is reserved before they arrive.
pub const BODY_BYTES_RESERVED_MAX: usize = 256 << 10;
/// Bytes of a long body that are read or written at a time.
pub const SLICE_BYTES: usize = 64 << 10;
/// Bytes of such slices that a thread moves before everything else that is ready runs: about 300 µs.
pub const SLICE_BYTES_PER_TURN: usize = 512 << 10;
/// A slice shorter than this, in bytes, is written at once.
pub const SLICE_BYTES_MIN: usize = 4 << 10;
/// Bodies from this length on, in bytes, are decoded or encoded on another thread.
pub const LONG_WORK_BYTES: usize = 64 << 10;
/// Threads that do such work at once. This bounds the CPU that they take from Raft's thread where cores are few.
pub const LONG_WORK_AT_ONCE: usize = 2;
/// Bytes of long writes that are proposed and not applied at once. A short write waits for those before it, which pass
/// through three disks and two connections.
pub const PROPOSED_BYTES_MAX: usize = 4 << 20;

const _: () = assert!(
    2 * REQUEST_BYTES_PER_BYTE * REQUEST_BYTES_MAX_DEFAULT + ENCODED_BYTES_PER_BYTE_MAX * VALUE_BYTES_MAX_DEFAULT
        < CLIENT_MEMORY_BYTES_LEAST
);

// ---- HTTP ----

/// Bytes that one byte of a chunked body counts as, since each chunk may hold a single byte.
pub const CHUNKED_BYTE_COST: usize = 8;
/// Longest head of a request, in bytes; the HTTP library's own limit.
pub const HEAD_BYTES_MAX: usize = 128 << 10;
/// Longest target of a request, in bytes; the HTTP library's own limit.
pub const TARGET_BYTES_MAX: usize = u16::MAX as usize - 1;
/// Most header fields of a request; the HTTP library's own limit.
pub const HEADERS_MAX: usize = 96;
/// Longest name of a header field, in bytes. Names over 65,535 bytes make the HTTP library panic.
pub const HEADER_NAME_BYTES_MAX: usize = 1024;
/// Total length of the extensions and trailers of a chunked body, in bytes; they are ignored.
pub const CHUNK_EXTRAS_BYTES_MAX: usize = 16 << 10;
/// Bytes of a rejected request that are read and dropped before its connection closes.
pub const REJECTED_BYTES_READ_MAX: usize = 8 << 20;
/// Longest quotation from a request in an error message, in characters.
pub const MESSAGE_CHARACTERS_MAX: usize = 500;
/// How long a body that is not read to its end is held, so that the response is sent first and the connection is closed
/// then. The HTTP library reads a dropped body to its end, however long that takes.
pub const REJECTED_BODY_KEPT: Duration = Duration::from_millis(500);
/// Longest response to an RPC or to `GET /raft-identity` that is read, in bytes. A node's responses have some hundred
/// bytes, and its errors quote up to [`MESSAGE_CHARACTERS_MAX`].
pub const PEER_RESPONSE_BYTES_MAX: usize = 64 << 10;
/// Longest response to a forwarded request, in bytes: all that a transaction may read, with every byte escaped.
pub const PASSED_ON_RESPONSE_BYTES_MAX: usize = 32 << 20;

const _: () = assert!(PEER_RESPONSE_BYTES_MAX > 16 * MESSAGE_CHARACTERS_MAX);
const _: () = assert!(6 * TXN_ANSWER_BYTES_MAX + 256 * TXN_OPERATIONS_MAX_LIMIT < PASSED_ON_RESPONSE_BYTES_MAX);
// The response to `/write` has the value.
const _: () = assert!(6 * VALUE_BYTES_MAX_LIMIT < PASSED_ON_RESPONSE_BYTES_MAX);
const _: () = assert!(PASSED_ON_RESPONSE_BYTES_MAX < RESPONSE_BYTES_MAX);

// ---- the client ----

/// How long `ExampleClient` retries by default: elections and restarts take less.
pub const RETRY_DEADLINE_DEFAULT: Duration = Duration::from_secs(10);
/// Longest pause before the first retry; it doubles with each retry. The pause is random.
pub const RETRY_PAUSE_FIRST: Duration = Duration::from_millis(50);
/// Longest pause between two attempts, unless a node asks for a longer one by `Retry-After`.
pub const RETRY_PAUSE_MAX: Duration = Duration::from_secs(1);
/// How long a watch may be silent before the client drops its connection: three heartbeats, so that a late one does no
/// harm.
pub const WATCH_SILENCE_MAX: Duration = Duration::from_secs(3 * WATCH_HEARTBEAT.as_secs());
/// Longest response that the client reads, in bytes: the largest page of a listing and one more of the largest values,
/// with every byte escaped, and half as much again for the names of fields.
pub const RESPONSE_BYTES_MAX: usize = 192 << 20;
/// Longest event of a watch that the client reads, in bytes: the largest value with every byte escaped, and as much
/// again.
pub const WATCH_EVENT_BYTES_MAX: usize = 40 << 20;

const _: () = assert!(RETRY_DEADLINE_DEFAULT.as_secs() > 5 * RETRY_AFTER.as_secs());
const _: () = assert!(RETRY_PAUSE_FIRST.as_millis() < RETRY_PAUSE_MAX.as_millis());
const _: () = assert!(WATCH_HEARTBEAT.as_secs() + REQUEST_DEADLINE.as_secs() < WATCH_SILENCE_MAX.as_secs());
const _: () = assert!(WATCH_SILENCE_MAX.as_secs() > 2 * WATCH_HEARTBEAT.as_secs());
const _: () = assert!(6 * (PAGE_BYTES_MAX_LIMIT + VALUE_BYTES_MAX_LIMIT) / 2 * 3 < RESPONSE_BYTES_MAX);
// A byte of a value takes at most six bytes, as `\u0000`.
const _: () = assert!(2 * 6 * VALUE_BYTES_MAX_LIMIT < WATCH_EVENT_BYTES_MAX);

// ---- Raft ----

/// Most entries in one append.
pub const APPEND_ENTRIES_MAX: u64 = 4096;
/// Bytes after which no further entry is added to an append.
pub const APPEND_BYTES_MAX: usize = 4 << 20;
/// RPC bodies longer than [`SMALL_RPC_BYTES_MAX`] that a node receives from members at once.
pub const LARGE_RPCS_MAX: usize = 4;
/// How long such an RPC waits for one of these places.
pub const LARGE_RPC_WAIT_MAX: Duration = Duration::from_secs(1);
/// Slowest network on which appends must succeed, in bytes a second.
pub const APPEND_BYTES_PER_SECOND_MIN: f64 = 1_000_000.0;
/// Longest body of an append, in bytes: one that was filled up to its limit, which field names at most double for small
/// entries, and then the largest entry.
pub const APPEND_RPC_BYTES_MAX: usize = 2 * APPEND_BYTES_MAX + LOG_PAYLOAD_BYTES_MAX + SMALL_RPC_BYTES_MAX;
/// Longest body of an RPC without entries, in bytes: a vote, a leader transfer, a read index.
pub const SMALL_RPC_BYTES_MAX: usize = 128 << 10;
/// Longest head of a snapshot, in bytes. It holds the membership: some hundred members fit.
pub const SNAPSHOT_HEAD_BYTES_MAX: usize = 256 << 10;
/// Deepest nesting of an RPC. Valid ones need far less, and deeper ones could overflow the stack.
pub const RPC_DEPTH_MAX: usize = 64;
/// How far the term in an RPC may exceed the node's own. A candidate's term is compared with the last term that had a
/// leader, and half as much is allowed while the node hears from a leader. Each election adds 1, so no cluster gets
/// that far while a node is down, and a forged term that is adopted leaves room for later elections.
pub const TERM_STEP_MAX: u64 = 1 << 32;
/// How far a term may exceed the node's own even beyond [`TERM_MAX`], so that elections remain possible there.
pub const TERM_STEP_MIN: u64 = 1 << 20;
/// Largest term that a node accepts before it knows its cluster.
pub const TERM_MAX: u64 = 1 << 62;
/// Largest index of an entry: 36,000 years at a million entries a second.
pub const LOG_INDEX_MAX: u64 = 1 << 60;
/// Longest address of a member, in bytes: the longest host name, a colon, a port, and some room.
pub const MEMBER_ADDRESS_BYTES_MAX: usize = 300;
/// Longest payload of an entry, in bytes.
pub const LOG_PAYLOAD_BYTES_MAX: usize = 32 << 20;
/// Entries applied under one lock.
pub const APPLY_ENTRIES_MAX: usize = 256;
/// Bytes of entries that are read from the log at once to be applied.
pub const APPLY_BYTES_MAX: usize = 4 << 20;
/// Heartbeat intervals that an append waits for the leader's heartbeat if the node does not know the leader's view of
/// it yet: less than the leader waits for the response.
pub const LEADER_VIEW_INTERVALS: u32 = 3;
/// A node stops once a leader has relied on a lost entry, or sent an entry that differs from the log, at least this many
/// times over at least [`EVIDENCE_MIN`].
pub const EVIDENCE_COUNT_MIN: u32 = 5;
/// Least time between the first and the last of these events.
pub const EVIDENCE_MIN: Duration = Duration::from_secs(3);

// A request is all that a payload holds, and the names of the fields at most double it.
const _: () = assert!(2 * REQUEST_BYTES_MAX_LIMIT <= LOG_PAYLOAD_BYTES_MAX);
const _: () = assert!(SMALL_RPC_BYTES_MAX < SNAPSHOT_HEAD_BYTES_MAX);
const _: () = assert!(TERM_STEP_MIN < TERM_STEP_MAX && TERM_STEP_MAX < TERM_MAX);

// ---- snapshots and compaction ----

/// Entries after which a snapshot is taken, unless set by `--snapshot-entries`.
pub const SNAPSHOT_ENTRIES_DEFAULT: u64 = 100_000;
/// Entries kept in the log after a snapshot, unless set by `--snapshot-keep-entries`: more than there are between two
/// snapshots, so that the older snapshot can replace a damaged newest one.
pub const SNAPSHOT_KEEP_ENTRIES_DEFAULT: u64 = 110_000;
/// Bytes of log after which a snapshot is taken, unless set by `--snapshot-bytes`, or the length of the newest snapshot
/// if that is more: snapshots then at most double the bytes written.
pub const SNAPSHOT_BYTES_DEFAULT: u64 = 256 << 20;
/// Least value of `--snapshot-bytes`.
pub const SNAPSHOT_BYTES_LEAST: u64 = 1 << 20;
/// Bytes kept in the log after a snapshot, unless set by `--snapshot-keep-bytes`: more than there are between two
/// snapshots, for the same reason.
pub const SNAPSHOT_KEEP_BYTES_DEFAULT: u64 = 288 << 20;
/// Length from which the log is purged although the older snapshot needs it, in halves of the length between two
/// snapshots: less than 1 GiB with the defaults.
pub const LOG_HALVES_MAX: u64 = 7;
/// Interval at which a node checks the length of its log. At 500 MB a second the log grows by 50 MB meanwhile.
pub const COMPACTION_INTERVAL: Duration = Duration::from_millis(100);
/// How long a leader postpones a purge for a follower that is receiving those entries; then the follower gets a
/// snapshot.
pub const PURGE_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long a requested snapshot may take before it is requested again. One that is being written continues.
pub const SNAPSHOT_RETRY: Duration = Duration::from_secs(10);
/// Snapshots that are kept.
pub const SNAPSHOTS_KEPT: usize = 2;
/// Approximate length of a frame of a snapshot, in bytes.
pub const SNAPSHOT_FRAME_BYTES: usize = 128 << 10;
/// Longest frame that is read, in bytes: a full one, and then the largest record.
pub const SNAPSHOT_FRAME_BYTES_MAX: usize = 8 << 20;
/// Frames that are synced at once while a snapshot is written: 2 MiB.
pub const SNAPSHOT_FRAMES_PER_SYNC: u64 = 16;
/// Nice value of a thread that writes a snapshot: requests and the log have priority.
pub const SNAPSHOT_NICENESS: i32 = 10;
/// Deadline for sending a whole snapshot.
pub const SNAPSHOT_DEADLINE: Duration = Duration::from_secs(600);
/// How long a peer may pause while it sends a snapshot.
pub const SNAPSHOT_PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long an incoming snapshot waits for the one before it to end, and for a heartbeat from the leader that sends it:
/// some heartbeat intervals.
pub const SNAPSHOT_WAIT_MAX: Duration = Duration::from_secs(2);
/// Snapshots that clients download from a node at once. Each takes its length of disk space until it is read.
pub const EXPORTS_AT_ONCE: usize = 1;
/// How long a request for a snapshot waits until the node has sent the one before.
pub const EXPORT_WAIT_MAX: Duration = Duration::from_secs(2);
/// Bytes of a snapshot that are read from its file at once for a client. Three times as much is in memory.
pub const EXPORT_PIECE_BYTES: usize = 512 << 10;
/// A client must download a snapshot in this time, plus a second for each [`EXPORT_BYTES_A_SECOND_MIN`] of it.
pub const EXPORT_DEADLINE_LEAST: Duration = Duration::from_secs(60);
/// The slowest download of a snapshot, in bytes a second.
pub const EXPORT_BYTES_A_SECOND_MIN: u64 = 1 << 20;
/// How long a client waits for the next bytes of a snapshot that it downloads.
pub const EXPORT_SILENCE_MAX: Duration = Duration::from_secs(30);
/// Bytes of an incoming snapshot after which the free disk space is checked again.
pub const SNAPSHOT_BYTES_PER_CHECK: u64 = 16 << 20;

const _: () = assert!(SNAPSHOT_KEEP_ENTRIES_DEFAULT > SNAPSHOT_ENTRIES_DEFAULT);
const _: () = assert!(SNAPSHOT_KEEP_BYTES_DEFAULT > SNAPSHOT_BYTES_DEFAULT);
const _: () = assert!(SNAPSHOT_WAIT_MAX.as_secs() < SNAPSHOT_DEADLINE.as_secs());
const _: () =
    assert!(SNAPSHOT_FRAME_BYTES + 2 * (KEY_BYTES_MAX_LIMIT + VALUE_BYTES_MAX_LIMIT) < SNAPSHOT_FRAME_BYTES_MAX);
// The result of a transaction: values as base64, and the field names of each result.
const _: () = assert!(
    SNAPSHOT_FRAME_BYTES + TXN_ANSWER_BYTES_MAX / 2 * 3 + 256 * TXN_OPERATIONS_MAX_LIMIT < SNAPSHOT_FRAME_BYTES_MAX
);

// ---- log files ----

/// Length at which a log file is closed and the next one begun, with the default `--snapshot-bytes`. Entries of the
/// open file stay in memory, so this bounds memory too. Only whole files are deleted.
pub const LOG_CHUNK_BYTES_MAX: usize = 16 << 20;
/// Log files between two snapshots; each holds a file descriptor.
pub const LOG_FILES_PER_SNAPSHOT: u64 = 16;
/// Least length of a log file, for any `--snapshot-bytes`.
pub const LOG_CHUNK_BYTES_LIMIT_LEAST: usize = 1 << 20;
/// Greatest length of a log file, for any `--snapshot-bytes`.
pub const LOG_CHUNK_BYTES_LIMIT_MOST: usize = 64 << 20;
/// Log files that a node may have; more only if the limit on open files exceeds what all clients can use. With that
/// many, writes are rejected until a snapshot is written.
pub const LOG_FILES_MAX: usize = 80;
/// Log files that a node may have, however many open files the system allows.
pub const LOG_FILES_LIMIT: usize = 4096;
/// Bytes of entries that may wait for a leader's disk; beyond that writes are rejected. A majority commits without that
/// disk, so the queue of a stalled disk would otherwise grow without bound.
pub const LOG_UNSYNCED_BYTES_MAX: usize = 256 << 20;
/// Bytes of uncommitted entries in a leader's log; beyond that writes are rejected. While no majority confirms them,
/// the log would otherwise grow without bound, and no snapshot could shorten it. Long writes are rejected earlier
/// ([`PROPOSED_BYTES_MAX`]).
pub const LOG_UNCOMMITTED_BYTES_MAX: usize = 32 << 20;
/// Memory for entries of closed log files, for followers that are a little behind, in bytes.
pub const LOG_CACHE_BYTES_MAX: usize = 16 << 20;

/// When the log closes a file, and how much of closed files stays in memory.
#[derive(Clone, Copy, Debug)]
pub struct LogSizes {
    /// See [`LOG_CHUNK_BYTES_MAX`].
    pub chunk_bytes_max: usize,
    /// See [`LOG_CACHE_BYTES_MAX`].
    pub cache_bytes_max: usize,
}

impl Default for LogSizes {
    fn default() -> Self {
        LogSizes { chunk_bytes_max: LOG_CHUNK_BYTES_MAX, cache_bytes_max: LOG_CACHE_BYTES_MAX }
    }
}

const _: () = assert!(LOG_CHUNK_BYTES_MAX as u64 == SNAPSHOT_BYTES_DEFAULT / LOG_FILES_PER_SNAPSHOT);
// raft-log queues 1,024 requests, up to three for each file that it begins.
const _: () = assert!(LOG_UNSYNCED_BYTES_MAX / LOG_CHUNK_BYTES_LIMIT_LEAST * 3 < 1024);
// The default number of writes in progress never reaches this bound.
const _: () =
    assert!(PROPOSED_BYTES_MAX + WRITES_WAITING_MAX_DEFAULT * MEMORY_COUNTED_MIN < LOG_UNCOMMITTED_BYTES_MAX / 2);
// Uncommitted entries take few of the log's files.
const _: () = assert!(LOG_UNCOMMITTED_BYTES_MAX / LOG_CHUNK_BYTES_MAX <= LOG_FILES_MAX / 5);
// The other reserved files are for sockets, the runtime and snapshots.
const _: () = assert!(LOG_FILES_MAX + 40 < FILES_RESERVED);
// Sixteen files more than the defaults keep, before and after a snapshot.
const _: () = assert!(
    LOG_FILES_MAX as u64 > (SNAPSHOT_BYTES_DEFAULT + SNAPSHOT_KEEP_BYTES_DEFAULT) / LOG_CHUNK_BYTES_MAX as u64 + 16
);

// ---- disk space ----

/// Free disk space below which a leader rejects writes that store data, with 507, in bytes: room for entries in
/// progress, the next log file, deletes and expiry, and for an operator to act. The room for the next snapshot, which
/// writes may not use, is added to it.
pub const DISK_FREE_BYTES_MIN: u64 = 128 << 20;
/// Free disk space that is left for votes and the like, even by snapshots, in bytes: a full disk stops the node.
pub const DISK_FREE_BYTES_LEAST: u64 = 1 << 20;
/// Free disk space that a snapshot leaves while it is written or received, in bytes. If there is not this much plus
/// room for the next snapshot, a node accepts no entry, as leader or as follower. Entries are subtracted until the free
/// space is checked again.
pub const SNAPSHOT_LEAVES_BYTES: u64 = DISK_FREE_BYTES_LEAST + SNAPSHOT_BYTES_PER_CHECK;
/// If less than this remains beyond what writes need, in bytes, a node keeps no log for followers and takes snapshots
/// more often.
pub const DISK_TIGHT_BYTES: u64 = 128 << 20;
/// Free disk space below which a node does not purge, in bytes: recording a purge takes some bytes.
pub const PURGE_FREE_BYTES_LEAST: u64 = 64 << 10;
/// While puts are rejected for lack of space, a snapshot is taken if any entry was applied since the last one: deleted
/// data takes space until then. It starts this long after the last one, plus a millisecond for each
/// [`SNAPSHOT_PAUSE_BYTES_PER_MS`] of it.
pub const SNAPSHOT_PAUSE_LEAST: Duration = Duration::from_secs(3);
/// Bytes of the last snapshot for each millisecond of the pause after it.
pub const SNAPSHOT_PAUSE_BYTES_PER_MS: u64 = 20_000;
/// Interval at which the free disk space is checked.
pub const DISK_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes of entries after which it is checked at once.
pub const DISK_BYTES_PER_CHECK: u64 = 16 << 20;
/// Least interval between log messages about how much space the disk has.
pub const DISK_REPORT_INTERVAL: Duration = Duration::from_secs(10);

const _: () = assert!(DISK_FREE_BYTES_LEAST < DISK_FREE_BYTES_MIN / 8);

// ---- traces ----

/// Spans of requests that wait to be sent; further ones are dropped. A span takes less than 2 KiB.
pub const SPANS_QUEUED_MAX: usize = 2048;
/// Spans in a message to the collector.
pub const SPANS_PER_EXPORT_MAX: usize = 512;
/// Attributes of a span.
pub const SPAN_ATTRIBUTES_MAX: u32 = 16;
/// How long the collector may take to accept a message.
pub const SPANS_EXPORT_DEADLINE: Duration = Duration::from_secs(5);
/// How long a node that stops waits until its last spans are sent.
pub const SPANS_FLUSH_DEADLINE: Duration = Duration::from_secs(1);

// ---- log output ----

/// Bytes of log lines that wait to be written; lines that do not fit are dropped and counted. The thread that writes
/// them holds as much again.
pub const LOG_QUEUE_BYTES_MAX: usize = 1 << 20;
/// Pause before the next write to a non-blocking standard error that is full.
pub const LOG_RETRY_PAUSE: Duration = Duration::from_millis(10);
/// How long a process that exits waits until its last log lines are written.
pub const LOG_FLUSH_DEADLINE: Duration = Duration::from_secs(1);

// ---- tokens ----

/// Length of a token's name, in bytes.
pub const TOKEN_NAME_BYTES_MAX: usize = 64;
/// Key prefixes of one token.
pub const TOKEN_PREFIXES_MAX: usize = 32;
/// Processes of other nodes whose proofs are remembered, at about half a kilobyte each.
pub const PROOF_RUNS_MAX: usize = 256;
/// How far requests of one process may overtake each other.
pub const PROOF_WINDOW: usize = 4096;
/// Longest body that is hashed for a proof on the thread that has it, in bytes, which takes less than 0.3 ms. Longer
/// ones are hashed on another thread.
pub const HASHED_AT_ONCE_BYTES_MAX: usize = 64 << 10;
/// Addresses whose challenges are remembered.
pub const CHALLENGES_MAX: usize = 1024;
/// How often a leader with the root token looks whether requests need a token yet.
pub const REQUIRE_TOKENS_INTERVAL: Duration = Duration::from_millis(100);
