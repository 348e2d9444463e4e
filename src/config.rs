//! Every setting, default and limit, with its unit and the reason for it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::num::NonZero;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::types::NodeId;

// ---- what a request may hold ----

/// Longest key unless set by `--max-key-bytes`, in bytes.
pub const KEY_BYTES_MAX_DEFAULT: usize = 1024;
/// What `--max-key-bytes` may be set to at most.
pub const KEY_BYTES_MAX_LIMIT: usize = 4096;
/// Longest value unless set by `--max-value-bytes`, in bytes.
pub const VALUE_BYTES_MAX_DEFAULT: usize = 1 << 20;
/// What `--max-value-bytes` may be set to at most.
pub const VALUE_BYTES_MAX_LIMIT: usize = 3 << 20;
/// Operations of a transaction unless set by `--max-txn-operations`; as many
/// comparisons may go before them.
pub const TXN_OPERATIONS_MAX_DEFAULT: usize = 128;
/// What `--max-txn-operations` may be set to at most.
pub const TXN_OPERATIONS_MAX_LIMIT: usize = 4096;
/// Keys of a page unless set by `--max-page-keys`.
pub const PAGE_KEYS_MAX_DEFAULT: usize = 1000;
/// What `--max-page-keys` may be set to at most.
pub const PAGE_KEYS_MAX_LIMIT: usize = 100_000;
/// Bytes of keys and values after which a page ends, unless set by `--max-page-bytes`.
pub const PAGE_BYTES_MAX_DEFAULT: usize = 1 << 20;
/// What `--max-page-bytes` may be set to at most.
pub const PAGE_BYTES_MAX_LIMIT: usize = 16 << 20;
/// Longest request body unless set by `--max-request-bytes`: a value of the
/// largest size and half as much again, for its escapes.
pub const REQUEST_BYTES_MAX_DEFAULT: usize = 3 << 19;
/// What `--max-request-bytes` may be set to at most: every byte of the largest
/// value escaped as `\u0000`, and as much again.
pub const REQUEST_BYTES_MAX_LIMIT: usize = 16 << 20;

// ---- the state: the same on all nodes, so not to be set ----

/// Changes that are kept for watches to resume from.
pub const HISTORY_CHANGES_MAX: usize = 100_000;
/// Bytes of changes that are kept; the older ones go first.
pub const HISTORY_BYTES_MAX: usize = 64 << 20;
/// Requests with an `Idempotency-Key` that are remembered: those of the last ten
/// seconds at 25,000 a second, which is how long `ExampleClient` tries again.
pub const REQUESTS_REMEMBERED_MAX: usize = 250_000;
/// Bytes of such requests and their results; the older ones go first.
pub const REQUESTS_REMEMBERED_BYTES_MAX: usize = 128 << 20;
/// Keys that are deleted at one revision by a prefix, so that applying it takes
/// milliseconds; more are deleted in several steps.
pub const DELETE_STEP_KEYS_MAX: usize = 1000;
/// Neighboring keys that a deletion by prefix passes over at once if all have changed since it began. With more, a step
/// looks at more keys to find those that it deletes; with fewer, it looks at more runs to find that there are none.
pub const RUN_KEYS_MAX: usize = 32;
/// A run with fewer keys is joined with the next one.
pub const RUN_KEYS_MIN: usize = 8;
/// Keys whose time is over that one entry removes at most.
pub const EXPIRE_KEYS_MAX: usize = 1000;
/// After each so many entries all nodes note the hash of their state, and compare it with the leader's.
pub const SELF_CHECK_ENTRIES: u64 = 10_000;
/// Requests that wait on one node until an entry is applied.
pub const APPLIED_WAITING_MAX: usize = 64;
/// Bytes of values that one transaction reads at most.
pub const TXN_ANSWER_BYTES_MAX: usize = 4 << 20;

// ---- watches and listings ----

/// Batches of changes that a watch may fall behind those that watch the same,
/// before it has to read them again from the history.
pub const WATCH_BATCHES_MAX: usize = 16;
/// About how many bytes of changes are read from the history at once, for a watch
/// that catches up.
pub const WATCH_BATCH_BYTES: usize = 128 << 10;
/// About how long a key is as JSON besides the key itself and its value, in bytes.
pub const KEY_VALUE_EXTRA_BYTES: usize = 128;
/// About how many changes a watch looks at in the history at once, to find those of its keys. Entries are not applied
/// meanwhile, and other requests of its thread wait: so many take well below a millisecond.
pub const WATCH_LOOKED_AT_MAX: usize = 4096;
/// About how many bytes of changes go into one batch that is handed out, unless a revision has more or
/// so much is applied at once that there would be too many batches.
pub const WATCH_HANDED_OUT_BATCH_BYTES: usize = 32 << 10;
/// Bytes of batches that a node keeps for its watches, as changes and as they are sent, beside one of
/// any length. What several batches share counts once. A watch that is further behind reads the history.
pub const WATCH_HANDED_OUT_BYTES_MAX: usize = 32 << 20;
/// Changes from this length on, in bytes, are encoded once for all watches of the node.
pub const WATCH_LONG_EVENT_BYTES: usize = 16 << 10;
/// Bytes of such events that a node keeps though no watch holds them, beside one of any length.
pub const WATCH_LONG_EVENTS_BYTES_MAX: usize = 16 << 20;
/// Bytes that all watches together may hold of batches which the history no longer has. They are at the end of what they
/// can be sent, and read slowly; the oldest are cut off if there are more.
pub const WATCH_GONE_BYTES_MAX: usize = 64 << 20;
/// Bytes of a watch's events that are given to its connection at once.
pub const WATCH_PIECE_BYTES_MAX: usize = 64 << 10;
/// How often a watch with nothing to say says that it is there.
pub const WATCH_HEARTBEAT: Duration = Duration::from_secs(10);
/// How old a confirmation with the leader may be that a watch takes at its heartbeat, so that many
/// watches share it.
pub const WATCH_CONFIRMATION_AGE_MAX: Duration = Duration::from_secs(1);
/// How long the leader has to answer the watch that asks for all. Until it answers, no other one asks.
pub const WATCH_CONFIRMATION_DEADLINE: Duration = Duration::from_secs(1);
/// How long a watch that begins waits for a leader, with its connection open.
pub const WATCH_LEADER_DEADLINE: Duration = Duration::from_secs(30);
/// How long it is between two attempts, each of one watch for all that wait.
pub const WATCH_LEADER_INTERVAL: Duration = Duration::from_millis(500);
/// States of the store that are kept for listings of several pages; the one that
/// was not used for longest goes first.
pub const LISTINGS_KEPT_MAX: usize = 32;
/// How long such a state is kept after its last page was read.
pub const LISTING_KEPT: Duration = Duration::from_secs(60);
/// Bytes of values that may be replaced or removed before a state from before that is not kept any more, for a listing
/// or the beginning of a watch: such a state holds them, in addition to those that took their place.
pub const STATE_REPLACED_BYTES_MAX: u64 = 128 << 20;
/// How often a leader looks for keys whose time is over.
pub const EXPIRY_INTERVAL: Duration = Duration::from_millis(100);
/// For how long a follower keeps the best of the log times that the leader sent, and as long again: two clocks that
/// differ by 100 parts in a million drift apart by 1 ms in that time.
pub const LEADER_TIME_WINDOW: Duration = Duration::from_secs(10);
/// The highest log time that is taken from another node or from a wall clock: the end of the year 9999.
pub const LOG_TIME_MS_MAX: u64 = 253_402_300_799_999;
/// How often a node compares its wall clock with log time.
pub const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Difference between the two, against what is recorded, at which the node records them again at once.
pub const CLOCK_STEP_MIN: Duration = Duration::from_millis(100);
/// How old the record may become.
pub const CLOCK_RECORD_INTERVAL_MAX: Duration = Duration::from_secs(60);
/// How often a leader looks whether there is a hash of its state to be compared.
pub const SELF_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Hashes of its state that a node keeps to compare them: those of the
/// [`SELF_CHECK_INTERVAL`] that passes before the leader proposes it, and of the
/// entries that wait in front of that.
pub const SELF_CHECKS_KEPT: usize = 64;
/// Shortest time to live that can be asked for, in milliseconds.
pub const TTL_MS_MIN: u64 = 100;
/// Longest time to live that can be asked for, in milliseconds: ten years.
pub const TTL_MS_MAX: u64 = 10 * 365 * 24 * 3600 * 1000;
/// Longest `Idempotency-Key`, in bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 128;

// ---- queues and waiting ----

/// Writes that may wait at once, unless set by `--max-writes-waiting`; one more is
/// refused with 503. Bounds the memory that requests hold, and how late an answer can be.
pub const WRITES_WAITING_MAX_DEFAULT: usize = 1024;
/// What `--max-writes-waiting` may be set to at most.
pub const WRITES_WAITING_MAX_LIMIT: usize = 65_536;
/// Requests that are read before all else that is ready goes on: about 600 µs of them. With half of
/// that Raft has smaller batches, and a write takes a few hundredths more of the CPU.
pub const REQUESTS_A_TURN: usize = 64;
/// Bytes of keys and values after which what a thread's clients write in one turn goes to Raft in another batch.
pub const PROPOSED_BYTES_A_BATCH: usize = 256 << 10;
/// How many turns in a row may add to a batch before it goes to Raft.
pub const GATHERING_TURNS_MAX: usize = 4;
/// How many confirmations of linearizable reads one thread waits for at once. Those that come meanwhile
/// share the next.
pub const CONFIRMATIONS_AT_ONCE: usize = 2;
/// How many bytes of a new connection are read to see what it is for.
pub const FIRST_READ_BYTES: usize = 4 << 10;
/// Connections of other nodes that wait to be taken over by Raft's thread; one more is closed.
pub const ARRIVALS_MAX: usize = 256;
/// What `--http-threads` is by default at most.
pub const HTTP_THREADS_DEFAULT_MAX: usize = 8;
/// What `--http-threads` may be set to at most.
pub const HTTP_THREADS_LIMIT: usize = 64;
/// How many of them may be such as other nodes pass on, while this node's own clients wait
/// too: as many as come when clients are spread over three nodes.
pub const PASSED_ON_A_TURN: usize = 42;
/// How many requests for `/metrics` are read in a turn ahead of those in line.
pub const LOOKS_A_TURN: usize = 4;
/// How long a request may wait until it is read before some are refused. On one core it
/// takes some thousand clients at once until one does.
pub const LINE_WAIT_MAX: Duration = Duration::from_millis(250);
/// How long the first in line must have waited for longer than that until some are refused:
/// a crowd that comes at once is served.
pub const OVERLOAD_AFTER: Duration = Duration::from_millis(500);
/// Requests that are done for each that is refused then. A refusal costs a third to a half of
/// what a write costs the leader, so this leaves more than nine tenths of the time for what is done.
pub const REQUESTS_A_REFUSAL: usize = 8;
/// How long it takes at most until one of those who come is refused then, whatever is done.
pub const REFUSAL_INTERVAL_MAX: Duration = Duration::from_millis(10);
/// How long a request may have waited at most that is refused: it hears of it within 100 ms.
pub const REFUSED_WAIT_MAX: Duration = Duration::from_millis(50);
/// How long no write has its answer until those in line are no longer held back by the writes
/// that wait.
pub const STALL_MIN: Duration = Duration::from_millis(100);
/// How much of the body of a request that is refused unseen is read, so that its
/// connection can be used again, in bytes.
pub const REFUSED_BODY_BYTES_MAX: usize = 64 << 10;
/// Clients' connections that one node admits at once, if the system allows it five times as many
/// open files and [`FILES_RESERVED`] more.
pub const CLIENTS_MAX: usize = 25_000;
/// Clients' connections for each that is reserved for other nodes and for operators.
pub const CLIENTS_A_RESERVED_CONNECTION: usize = 4;
/// Connections that operators may have at once at least; one more closes the oldest of them.
pub const OPERATORS_MIN: usize = 8;
/// Connections of other nodes that Raft's thread has room for at least, before it closes such as have not shown
/// to be a node's.
pub const NODE_CONNECTIONS_MIN: usize = 32;
/// Connections of one member with Raft's RPCs that are never closed to make room. A node uses three: appends,
/// heartbeats and snapshots have each their own.
pub const CONNECTIONS_KEPT_A_MEMBER: usize = 8;
/// How often a node looks for connections that only take up room: heads that do not end, and
/// while it has hardly any room, connections that have done nothing for that long, or up to twice that.
pub const CROWD_LOOK: Duration = Duration::from_secs(1);
/// Open files that are kept for the node's own: its log ([`LOG_FILES_MAX`]), its snapshots, its peers.
pub const FILES_RESERVED: usize = 128;
/// How long a request that was proposed may take until its outcome is called unknown.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
/// How long a passed-on request is waited for: as long as it may wait for memory at the leader, the leader's own
/// deadline, and time to hear of it.
pub const FORWARD_DEADLINE: Duration = Duration::from_secs(8);
/// How long a change of the membership may take: a new node may need all data first.
pub const MEMBERSHIP_DEADLINE: Duration = Duration::from_secs(60);
/// Shortest time that voters have to answer before a membership change that needs them is rejected; otherwise it is
/// the largest election timeout.
pub const MEMBERS_ANSWER_MIN: Duration = Duration::from_secs(1);
/// Longest time that voters have to answer before a membership change that needs them is rejected.
pub const MEMBERS_ANSWER_MAX: Duration = Duration::from_secs(5);
/// Interval between the heartbeats that ask them.
pub const MEMBERS_PROBE_INTERVAL: Duration = Duration::from_millis(100);
/// How many entries a voter may lack of those that were in the leader's log when a membership change was asked for.
/// Voters that take part in commits pass while they are under load: they only need to come so far in time.
pub const MEMBER_LAG_ENTRIES_MAX: u64 = 100;
/// Nodes that a list for `/init` may name: each is asked several times.
pub const INIT_MEMBERS_MAX: usize = 64;
/// How long a node is reserved for a cluster that is being founded with it.
pub const FOUNDING_HOLD: Duration = Duration::from_secs(5);
/// How long a client may take to send the head of a request, once there is some of it.
pub const REQUEST_HEAD_DEADLINE: Duration = Duration::from_secs(5);
/// How long a client may take to send the body of a request.
pub const REQUEST_BODY_DEADLINE: Duration = Duration::from_secs(10);
/// Room that is made for a body of several pieces before it has come, in bytes.
pub const BODY_BYTES_RESERVED_MAX: usize = 256 << 10;
/// What clients may make a node hold, in bytes, unless set by `--client-memory-bytes`; an eighth of the memory that
/// there is, if that is less.
pub const CLIENT_MEMORY_BYTES_DEFAULT: usize = 256 << 20;
/// What `--client-memory-bytes` may be set to at least: two requests and a response of the largest size.
pub const CLIENT_MEMORY_BYTES_LEAST: usize = 16 << 20;
/// What `--client-memory-bytes` may be set to at most.
pub const CLIENT_MEMORY_BYTES_LIMIT: usize = 1 << 40;
/// Bodies and values shorter than this, in bytes, do not count for it. The number of connections bounds them.
pub const MEMORY_COUNTED_MIN: usize = 4 << 10;
/// How long a request waits for others to give memory back, in all, until it is refused.
pub const MEMORY_WAIT_MAX: Duration = Duration::from_secs(2);
/// What a request takes for each byte of its body: the body, and the operation that it becomes.
pub const REQUEST_BYTES_A_BYTE: usize = 2;
/// What a response may take for each byte of a value: a copy of it, and six where JSON escapes a control character.
pub const ENCODED_BYTES_A_BYTE_MAX: usize = 7;
/// A long response is handed to its connection in pieces of so many bytes.
pub const BODY_PIECE_BYTES: usize = 64 << 10;
/// How many bytes of a long body are read or written at a time.
pub const SLICE_BYTES: usize = 64 << 10;
/// How many such bytes a thread moves before all else that is ready runs: some 300 µs of them.
pub const SLICE_BYTES_A_TURN: usize = 512 << 10;
/// What is written at once if it is shorter than this, in bytes.
pub const SLICE_BYTES_MIN: usize = 4 << 10;
/// Bytes from which a body is decoded, or a response encoded, by another thread.
pub const LONG_WORK_BYTES: usize = 64 << 10;
/// How many threads do such work at once. It bounds what they take from Raft's thread where cores are few.
pub const LONG_WORK_AT_ONCE: usize = 2;
/// Bytes of long writes that Raft has at once and that are not applied: a short one waits for those before it,
/// which go through three disks and two connections.
pub const PROPOSED_BYTES_MAX: usize = 8 << 20;
/// A byte of a chunked body counts as so many, since each chunk may hold one.
pub const CHUNKED_BYTE_COST: usize = 8;
/// Longest head of a request, as much as the HTTP library takes, in bytes.
pub const HEAD_BYTES_MAX: usize = 128 << 10;
/// Longest target of a request, as much as the HTTP library takes, in bytes.
pub const TARGET_BYTES_MAX: usize = u16::MAX as usize - 1;
/// Most header fields of a request, as many as the HTTP library takes.
pub const HEADERS_MAX: usize = 96;
/// Longest name of a header field, in bytes. Names over 65,535 bytes make the HTTP library panic.
pub const HEADER_NAME_BYTES_MAX: usize = 1024;
/// Longest extensions and trailers of a chunked body together, in bytes; they are ignored.
pub const CHUNK_EXTRAS_BYTES_MAX: usize = 16 << 10;
/// Bytes of a rejected request that are read and dropped before its connection closes.
pub const REJECTED_BYTES_READ_MAX: usize = 8 << 20;
/// How much of what is wrong with a request its error quotes, in characters.
pub const MESSAGE_CHARACTERS_MAX: usize = 500;
/// How long a body that is not read to its end is kept, so that the answer goes
/// out first and the connection is closed then: a body that was let go is read
/// to its end by the HTTP library, however long that takes.
pub const REFUSED_BODY_KEPT: Duration = Duration::from_millis(500);
/// How long a client that is still sending may take to hear of the answer.
pub const DISCONNECT_DEADLINE: Duration = Duration::from_secs(1);
/// How long the other side of a connection may take nothing of what is written to
/// it, until the connection is closed: what waits for it takes memory.
pub const WRITE_STALL_MAX: Duration = Duration::from_secs(30);
/// How long a browser may remember what a page of an allowed origin may send, in seconds.
pub const BROWSER_PREFLIGHT_SECONDS: u32 = 600;
/// How deep an RPC may be nested; it takes far less, and more could use up the stack.
pub const RPC_DEPTH_MAX: usize = 64;
/// How long a peer may pause while it sends a snapshot.
pub const SNAPSHOT_PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long an idle connection is kept, one that was not used yet as well, while there is room. Longer than
/// [`CONNECTION_IDLE_MAX`], so that it is the caller who closes, and no request meets a closing connection. (It counts
/// until a request is read: one that then stands in line for so long is cut off.)
pub const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// How long this program keeps a connection of its own idle.
pub const CONNECTION_IDLE_MAX: Duration = Duration::from_secs(30);
/// How long connecting to another node may take.
pub const CONNECT_DEADLINE: Duration = Duration::from_millis(1000);
/// Longest response to an RPC or to `GET /raft-identity` that is read, in bytes: those of nodes have some hundred bytes,
/// and their errors quote [`MESSAGE_CHARACTERS_MAX`].
pub const PEER_RESPONSE_BYTES_MAX: usize = 64 << 10;
/// Longest response to a request that was passed on, in bytes: all that a transaction may read, with every byte
/// escaped.
pub const PASSED_ON_RESPONSE_BYTES_MAX: usize = 32 << 20;
/// How long requests that are under way are waited for when the node stops.
pub const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(5);
/// How long a leader that stops waits for another to take over.
pub const HAND_OVER_DEADLINE: Duration = Duration::from_secs(1);
/// How many ports are tried if the system is to choose one for several addresses, and one is taken on one of them.
pub const PORT_ATTEMPTS_MAX: usize = 16;
/// When to come back after a 503.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);

// ---- the client ----

/// How long `ExampleClient` tries again, unless it is told otherwise: an election
/// or a restart is over by then.
pub const RETRY_DEADLINE_DEFAULT: Duration = Duration::from_secs(10);
/// How long it waits at most before it tries a second time; twice as long each time after.
pub const RETRY_PAUSE_FIRST: Duration = Duration::from_millis(50);
/// How long it waits at most between two attempts, beside what a node asks for.
pub const RETRY_PAUSE_MAX: Duration = Duration::from_secs(1);
/// How long a watch may be silent until its connection is given up: three
/// heartbeats, so that a late one does no harm.
pub const WATCH_SILENCE_MAX: Duration = Duration::from_secs(3 * WATCH_HEARTBEAT.as_secs());
/// Longest response that the client reads, in bytes: the largest page of a listing and one more of the largest values,
/// with every byte escaped, and half as much again for the names of fields.
pub const RESPONSE_BYTES_MAX: usize = 192 << 20;
/// Longest event of a watch that the client reads: the largest value with every
/// byte escaped, and as much again.
pub const WATCH_EVENT_BYTES_MAX: usize = 40 << 20;

// ---- Raft ----

/// Entries that one append carries at most.
pub const APPEND_ENTRIES_MAX: u64 = 4096;
/// Bytes after which no further entry is added to an append.
pub const APPEND_BYTES_MAX: usize = 4 << 20;
/// Bodies of RPCs longer than [`SMALL_RPC_BYTES_MAX`] that a node receives from members at once.
pub const LARGE_RPCS_MAX: usize = 4;
/// How long such an RPC waits for its place.
pub const LARGE_RPC_WAIT_MAX: Duration = Duration::from_secs(1);
/// How slow a network may be that appends are to get through, in bytes a second.
pub const APPEND_BYTES_PER_SECOND_MIN: f64 = 1_000_000.0;
/// Longest body of an append: one that was filled up to its limit, which the names of the fields at
/// most double for small entries, and then got the largest entry.
pub const APPEND_RPC_BYTES_MAX: usize = 2 * APPEND_BYTES_MAX + LOG_PAYLOAD_BYTES_MAX + SMALL_RPC_BYTES_MAX;
/// Longest body of an RPC without entries: a vote, a leader transfer, a read index.
pub const SMALL_RPC_BYTES_MAX: usize = 128 << 10;
/// Longest head of a snapshot, which holds the membership: room for some hundred members.
pub const SNAPSHOT_HEAD_BYTES_MAX: usize = 256 << 10;
/// How far the term in an RPC may be above the node's own; in a candidate's, above the last term that had a leader,
/// and half as far while the node hears one. Each election adds 1, so no cluster gets
/// that far while a node is away; and a forged term that is adopted leaves room for the elections to come.
pub const TERM_STEP_MAX: u64 = 1 << 32;
/// How far above a node's own term another may be even beyond [`TERM_MAX`], so that elections go on there.
pub const TERM_STEP_MIN: u64 = 1 << 20;
/// Largest term that a node takes that does not yet know its cluster.
pub const TERM_MAX: u64 = 1 << 62;
/// Largest index of an entry: at a million entries a second, 36,000 years.
pub const LOG_INDEX_MAX: u64 = 1 << 60;
/// Longest address of a member, in bytes: the longest host name, a colon and a port, and some room.
pub const MEMBER_ADDRESS_BYTES_MAX: usize = 300;
/// Longest payload in the log.
pub const LOG_PAYLOAD_BYTES_MAX: usize = 32 << 20;
/// Entries applied under one lock.
pub const APPLY_ENTRIES_MAX: usize = 256;
/// Bytes of entries read from the log at once to be applied.
pub const APPLY_BYTES_MAX: usize = 4 << 20;
/// How long sending a whole snapshot may take.
pub const SNAPSHOT_DEADLINE: Duration = Duration::from_secs(600);
/// How many heartbeat intervals an append waits for the leader's heartbeat, if the node does not yet know
/// what the leader counts on: less than the leader waits for the response.
pub const LEADER_VIEW_INTERVALS: u32 = 3;
/// How often a leader must have counted on a lost entry, or sent another one than the log has, until the node stops.
pub const EVIDENCE_COUNT_MIN: u32 = 5;
/// For how long it must have done so until the node stops.
pub const EVIDENCE_MIN: Duration = Duration::from_secs(3);
/// How long a snapshot waits until the one before it is dealt with, and until this node has heard
/// from the leader that sends it: some heartbeats.
pub const SNAPSHOT_WAIT_MAX: Duration = Duration::from_secs(2);
/// After how many bytes of a snapshot that is being received the free disk space is looked up again.
pub const SNAPSHOT_BYTES_A_LOOK: u64 = 16 << 20;
/// Entries after which a snapshot is taken, unless set by `--snapshot-entries`.
pub const SNAPSHOT_ENTRIES_DEFAULT: u64 = 100_000;
/// Entries kept in the log after a snapshot, unless set by
/// `--snapshot-keep-entries`: more than there are between two snapshots, so that
/// the one before the newest can stand in for it.
pub const SNAPSHOT_KEEP_ENTRIES_DEFAULT: u64 = 110_000;
/// Bytes of log after which a snapshot is taken, unless set by `--snapshot-bytes`, or as many as the newest snapshot
/// has, if that is longer: snapshots then at most double what is written.
pub const SNAPSHOT_BYTES_DEFAULT: u64 = 256 << 20;
/// Least that `--snapshot-bytes` may be set to.
pub const SNAPSHOT_BYTES_LEAST: u64 = 1 << 20;
/// Bytes kept in the log after a snapshot, unless set by `--snapshot-keep-bytes`: more than there are between two
/// snapshots, for the same reason.
pub const SNAPSHOT_KEEP_BYTES_DEFAULT: u64 = 288 << 20;
/// How long a log may be until it is purged although the former snapshot needs it, in halves of what there is between two
/// snapshots: less than 1 GiB with the defaults.
pub const LOG_HALVES_MAX: u64 = 7;
/// How often a node looks whether its log has grown. With 500 MB a second it grows by 50 MB meanwhile.
pub const COMPACTION_INTERVAL: Duration = Duration::from_millis(100);
/// How long a leader puts off a purge for a follower that is being sent those entries; then it gets a snapshot.
pub const PURGE_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long a snapshot that was asked for is waited for, until it is asked for again. One that is being written goes on.
pub const SNAPSHOT_RETRY: Duration = Duration::from_secs(10);

// ---- files ----

/// Length at which a log file is closed and the next begun, for the default of `--snapshot-bytes`. Entries in the open
/// file stay in memory, so this bounds memory too. Only whole files are deleted.
pub const LOG_CHUNK_BYTES_MAX: usize = 16 << 20;
/// Files of a log between two snapshots: each holds a file descriptor.
pub const LOG_FILES_A_SNAPSHOT: u64 = 16;
/// Least length of a log file: what `--snapshot-bytes` may make of it.
pub const LOG_CHUNK_BYTES_LIMIT_LEAST: usize = 1 << 20;
/// Greatest length of a log file: what `--snapshot-bytes` may make of it.
pub const LOG_CHUNK_BYTES_LIMIT_MOST: usize = 64 << 20;
/// Log files that a node may have, each of which holds a file descriptor. More are allowed only if the system allows
/// more open files than all clients can use. With that many, writes are rejected until a snapshot is there.
pub const LOG_FILES_MAX: usize = 80;
/// Log files that a node may have at most, however many open files the system allows.
pub const LOG_FILES_LIMIT: usize = 4096;
/// Bytes of entries that may wait for a leader's disk; beyond that writes are
/// refused. A majority commits without that disk, so a disk that stalls would
/// otherwise let the queue grow without end.
pub const LOG_UNSYNCED_BYTES_MAX: usize = 256 << 20;
/// Bytes of entries that a leader's log may have which are not committed; beyond that writes are rejected. While too few
/// nodes confirm them, the log would otherwise grow without end, and no snapshot could shorten it. Long writes are
/// rejected before ([`PROPOSED_BYTES_MAX`]).
pub const LOG_UNCOMMITTED_BYTES_MAX: usize = 32 << 20;
/// Memory for entries of closed log files, for followers that are a little behind.
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

/// About how long a frame of a snapshot is.
pub const SNAPSHOT_FRAME_BYTES: usize = 128 << 10;
/// Frames of a snapshot that are synced at once while it is written: 2 MiB.
pub const SNAPSHOT_FRAMES_PER_SYNC: u64 = 16;
/// How much a thread that writes a snapshot steps back, as a nice value: requests
/// and the log go first.
pub const SNAPSHOT_NICENESS: i32 = 10;
/// Longest frame that is read: a full one, and then the largest record.
pub const SNAPSHOT_FRAME_BYTES_MAX: usize = 8 << 20;
/// Snapshots that are kept.
pub const SNAPSHOTS_KEPT: usize = 2;
/// Free disk space below which a leader rejects what stores data, with 507: room for what is
/// under way, the next log file, deletes and expiry, and for an operator to act.
/// Room for the next snapshot, which no write may use, comes on top.
pub const DISK_FREE_BYTES_MIN: u64 = 128 << 20;
/// Free disk space that is left for votes and the like, by snapshots too: a disk that is full ends the node.
pub const DISK_FREE_BYTES_LEAST: u64 = 1 << 20;
/// Free disk space that a snapshot leaves while it is written or received. With less, and room for the next
/// snapshot on top, a node takes no entry, as leader or as follower. Entries are subtracted until the free space
/// is looked up again.
pub const SNAPSHOT_LEAVES_BYTES: u64 = DISK_FREE_BYTES_LEAST + SNAPSHOT_BYTES_A_LOOK;
/// Free disk space that must be left beyond what writes need, until a node keeps no log for followers and takes
/// snapshots more often.
pub const DISK_TIGHT_BYTES: u64 = 128 << 20;
/// Free disk space below which a node does not even note that it purges: that takes some bytes.
pub const PURGE_FREE_BYTES_LEAST: u64 = 64 << 10;
/// While puts are rejected for want of space, a snapshot is taken if anything was applied since the last one: what was
/// deleted takes space until then. So long after the last at the earliest, and a millisecond more for so many bytes of it.
pub const SNAPSHOT_PAUSE_LEAST: Duration = Duration::from_secs(3);
/// See [`SNAPSHOT_PAUSE_LEAST`].
pub const SNAPSHOT_PAUSE_BYTES_A_MS: u64 = 20_000;
/// How often the free disk space is looked up.
pub const DISK_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How often a node logs at most that its disk has more or less space than before.
pub const DISK_REPORT_INTERVAL: Duration = Duration::from_secs(10);
/// After how many bytes of entries it is looked up at once.
pub const DISK_BYTES_A_LOOK: u64 = 16 << 20;

// ---- log output ----

/// Bytes of log lines that wait to be written; what does not fit is dropped and counted. The
/// thread that writes them holds as much again.
pub const LOG_QUEUE_BYTES_MAX: usize = 1 << 20;
/// How long to wait before writing again to a non-blocking standard error that is full.
pub const LOG_RETRY_PAUSE: Duration = Duration::from_millis(10);
/// How long a process that ends waits for its last log lines to be written.
pub const LOG_FLUSH_DEADLINE: Duration = Duration::from_secs(1);

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One readable line per event.
    #[default]
    Text,
    /// One JSON object per event.
    Json,
}

/// What a request may hold, as the settings have it.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest request body, in bytes.
    pub request_bytes: usize,
    /// Longest key, in bytes.
    pub key_bytes: usize,
    /// Longest value, in bytes.
    pub value_bytes: usize,
    /// Operations of a transaction.
    pub txn_operations: usize,
    /// Keys of a page.
    pub page_keys: usize,
    /// Bytes of keys and values after which a page ends.
    pub page_bytes: usize,
}

/// The command line, the environment and the defaults.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "raft-key-value",
    version,
    about = "A replicated key-value store: one binary, three nodes, data on disk, plain HTTP.",
    long_about = "A replicated key-value store: one binary, three nodes, data on disk, plain HTTP.\n\n\
        Nodes keep the same data through Raft. A write is answered once a majority of them has it on disk; \
        any node takes any request.",
    after_long_help = "\
Examples:
  Three nodes on one machine, each in a terminal of its own:
    raft-key-value --id 1 --http-addr 127.0.0.1:21001
    raft-key-value --id 2 --http-addr 127.0.0.1:21002
    raft-key-value --id 3 --http-addr 127.0.0.1:21003

  Make them a cluster, once:
    curl 127.0.0.1:21001/init -d ''
    curl 127.0.0.1:21001/add-learner -d '[2,\"127.0.0.1:21002\"]'
    curl 127.0.0.1:21001/add-learner -d '[3,\"127.0.0.1:21003\"]'
    curl 127.0.0.1:21001/change-membership -d '[1,2,3]'

  Write on one node, read on another:
    curl 127.0.0.1:21001/write -d '{\"Set\":{\"key\":\"foo\",\"value\":\"bar\"}}'
    curl 127.0.0.1:21003/consistent_read -d '\"foo\"'

  Use the cluster through the commands above:
    raft-key-value put foo bar
    raft-key-value get foo
    raft-key-value status

  A node whose address for other nodes differs from where it listens:
    raft-key-value --id 1 --http-addr 0.0.0.0:21001 --advertise-addr node1.example:21001

Exit codes of commands:
   0  the request succeeded, or the reader of the output closed it
   1  the key does not exist, a condition or comparison does not hold, or the revision to watch
      from is no longer kept
   2  the request is invalid
   3  no node could serve the request, a listing is incomplete, an endpoint of `status` does not
      serve requests, or the outcome is unknown: the message says which
  74  the output cannot be written; a write was applied, and the message has its result

Exit codes of a node:
   0  stopped by SIGTERM or SIGINT
   2  a wrong flag or environment variable
  65  damaged data, other data than the leader's, or an older copy of the data; nothing was changed
  69  cannot listen on --http-addr
  70  Raft or a background task stopped after an error; starting again recovers
  73  another process runs on this data directory
  74  the disk failed or is full
  78  the data belongs to another node, another user or a newer version, or a file in it is a link"
)]
pub struct Config {
    /// Number of this node, at least 1; no two nodes of a cluster may share one
    #[arg(long, env = "RKV_ID", value_name = "N")]
    pub id: NodeId,

    /// Address to listen on, HOST:PORT; a name with several addresses listens on all of them
    #[arg(long, env = "RKV_HTTP_ADDR", value_name = "HOST:PORT")]
    pub http_addr: String,

    /// Directory for data; this node's files are in its subdirectory node-N
    #[arg(long, env = "RKV_DATA_DIR", value_name = "DIR", default_value = "./raft-key-value-data")]
    pub data_dir: PathBuf,

    /// Address that other nodes dial, HOST:PORT [default: the --http-addr]
    #[arg(long, env = "RKV_ADVERTISE_ADDR", value_name = "HOST:PORT")]
    pub advertise_addr: Option<String>,

    /// Interval between leader heartbeats, in milliseconds
    #[arg(long, env = "RKV_HEARTBEAT_INTERVAL_MS", value_name = "MS", default_value_t = 100)]
    pub heartbeat_interval_ms: u64,

    /// Shortest time that a node waits before it stands for election, in milliseconds, after it has heard
    /// nothing from the leader for --election-timeout-max-ms
    #[arg(long, env = "RKV_ELECTION_TIMEOUT_MIN_MS", value_name = "MS", default_value_t = 300)]
    pub election_timeout_min_ms: u64,

    /// Longest time that it waits, in milliseconds; each wait is random between the two
    #[arg(long, env = "RKV_ELECTION_TIMEOUT_MAX_MS", value_name = "MS", default_value_t = 600)]
    pub election_timeout_max_ms: u64,

    /// Log entries after which a snapshot is taken
    #[arg(long, env = "RKV_SNAPSHOT_ENTRIES", value_name = "N", default_value_t = SNAPSHOT_ENTRIES_DEFAULT)]
    pub snapshot_entries: u64,

    /// Log entries kept after a snapshot, for followers that are behind
    #[arg(long, env = "RKV_SNAPSHOT_KEEP_ENTRIES", value_name = "N", default_value_t = SNAPSHOT_KEEP_ENTRIES_DEFAULT)]
    pub snapshot_keep_entries: u64,

    /// Bytes of log after which a snapshot is taken, even if --snapshot-entries is not reached; the length of the
    /// newest snapshot, if that is more
    #[arg(long, env = "RKV_SNAPSHOT_BYTES", value_name = "BYTES", default_value_t = SNAPSHOT_BYTES_DEFAULT)]
    pub snapshot_bytes: u64,

    /// Bytes of log kept after a snapshot, even if those are less than --snapshot-keep-entries; more in proportion
    /// if the newest snapshot is longer than --snapshot-bytes
    #[arg(long, env = "RKV_SNAPSHOT_KEEP_BYTES", value_name = "BYTES", default_value_t = SNAPSHOT_KEEP_BYTES_DEFAULT)]
    pub snapshot_keep_bytes: u64,

    /// Longest request body, in bytes
    #[arg(long, env = "RKV_MAX_REQUEST_BYTES", value_name = "BYTES", default_value_t = REQUEST_BYTES_MAX_DEFAULT)]
    pub max_request_bytes: usize,

    /// Longest key, in bytes
    #[arg(long, env = "RKV_MAX_KEY_BYTES", value_name = "BYTES", default_value_t = KEY_BYTES_MAX_DEFAULT)]
    pub max_key_bytes: usize,

    /// Longest value, in bytes
    #[arg(long, env = "RKV_MAX_VALUE_BYTES", value_name = "BYTES", default_value_t = VALUE_BYTES_MAX_DEFAULT)]
    pub max_value_bytes: usize,

    /// Most operations of one transaction
    #[arg(long, env = "RKV_MAX_TXN_OPERATIONS", value_name = "N", default_value_t = TXN_OPERATIONS_MAX_DEFAULT)]
    pub max_txn_operations: usize,

    /// Most keys of one page of a listing
    #[arg(long, env = "RKV_MAX_PAGE_KEYS", value_name = "N", default_value_t = PAGE_KEYS_MAX_DEFAULT)]
    pub max_page_keys: usize,

    /// Bytes of keys and values after which a page of a listing ends
    #[arg(long, env = "RKV_MAX_PAGE_BYTES", value_name = "BYTES", default_value_t = PAGE_BYTES_MAX_DEFAULT)]
    pub max_page_bytes: usize,

    /// Writes that may wait at once; further ones are rejected with 503
    #[arg(long, env = "RKV_MAX_WRITES_WAITING", value_name = "N", default_value_t = WRITES_WAITING_MAX_DEFAULT)]
    pub max_writes_waiting: usize,

    /// What clients may make this node hold at once, in bytes: bodies that are read, and answers that are written;
    /// by default 268435456, or an eighth of the memory if that is less. Requests wait for it, and are
    /// rejected with 503 if they wait for long
    #[arg(long, env = "RKV_CLIENT_MEMORY_BYTES", value_name = "BYTES", default_value_t = client_memory_default(), hide_default_value = true)]
    pub client_memory_bytes: usize,

    /// Threads that serve clients; by default one less than the machine has cores, at least 1 and at most 8.
    /// Raft has one of its own
    #[arg(long, env = "RKV_HTTP_THREADS", value_name = "N", default_value_t = http_threads_default(), hide_default_value = true)]
    pub http_threads: usize,

    /// Free disk space below which a leader rejects what stores data, in bytes; not in the help, since
    /// other values than the default are for tests
    #[arg(long, hide = true, value_name = "BYTES", default_value_t = DISK_FREE_BYTES_MIN)]
    pub min_disk_free_bytes: u64,

    /// Origins of web pages that may use this node, besides its own, such as `https://console.example`,
    /// separated by commas
    #[arg(long, env = "RKV_ALLOWED_ORIGINS", value_name = "LIST", value_delimiter = ',', value_parser = parse_origin)]
    pub allowed_origins: Vec<String>,

    /// Names to accept in the Host header, separated by commas, besides IP addresses, localhost, the machine's
    /// name and those in --http-addr and --advertise-addr; needed behind a proxy that forwards another name
    #[arg(long, env = "RKV_ALLOWED_HOSTS", value_name = "LIST", value_delimiter = ',', value_parser = parse_host)]
    pub allowed_hosts: Vec<String>,

    /// Format of log lines
    #[arg(long, env = "RKV_LOG_FORMAT", value_name = "FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,

    /// Log level: error, warn, info, debug, trace, or a filter such as `info,openraft=debug`; RUST_LOG applies if
    /// neither this nor RKV_LOG_LEVEL is set
    #[arg(long, env = "RKV_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    pub log_level: String,
}

/// A setting that cannot be used: what is wrong and how to put it right.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    /// A `--log-level` that cannot be understood.
    pub fn log_level(config: &Config, why: &str) -> Self {
        ConfigError(format!("--log-level {:?} cannot be used: {why}", config.log_level))
    }
}

/// One core for Raft, the others for clients.
fn http_threads_default() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    cores.saturating_sub(1).clamp(1, HTTP_THREADS_DEFAULT_MAX)
}

/// An eighth of what this process may use, by the system and by its control group, up to the default.
fn client_memory_default() -> usize {
    let system = rustix::system::sysinfo();
    #[allow(clippy::useless_conversion)] // It has 32 bits on some machines.
    let total = u64::from(system.totalram).saturating_mul(u64::from(system.mem_unit));
    let of_group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let of_group = of_group.and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(u64::MAX);
    let eighth = usize::try_from(total.min(of_group) / 8).unwrap_or(usize::MAX);
    eighth.clamp(CLIENT_MEMORY_BYTES_LEAST, CLIENT_MEMORY_BYTES_DEFAULT)
}

impl Config {
    /// The settings of a node that was given nothing but its number and address.
    pub fn new(id: NodeId, http_addr: impl Into<String>) -> Self {
        let http_addr = http_addr.into();
        // The defaults are written down once, above; the environment is not asked.
        Config {
            id,
            http_addr,
            data_dir: PathBuf::from("./raft-key-value-data"),
            advertise_addr: None,
            heartbeat_interval_ms: 100,
            election_timeout_min_ms: 300,
            election_timeout_max_ms: 600,
            snapshot_entries: SNAPSHOT_ENTRIES_DEFAULT,
            snapshot_keep_entries: SNAPSHOT_KEEP_ENTRIES_DEFAULT,
            snapshot_bytes: SNAPSHOT_BYTES_DEFAULT,
            snapshot_keep_bytes: SNAPSHOT_KEEP_BYTES_DEFAULT,
            max_request_bytes: REQUEST_BYTES_MAX_DEFAULT,
            max_key_bytes: KEY_BYTES_MAX_DEFAULT,
            max_value_bytes: VALUE_BYTES_MAX_DEFAULT,
            max_txn_operations: TXN_OPERATIONS_MAX_DEFAULT,
            max_page_keys: PAGE_KEYS_MAX_DEFAULT,
            max_page_bytes: PAGE_BYTES_MAX_DEFAULT,
            max_writes_waiting: WRITES_WAITING_MAX_DEFAULT,
            client_memory_bytes: client_memory_default(),
            http_threads: http_threads_default(),
            min_disk_free_bytes: DISK_FREE_BYTES_MIN,
            allowed_origins: Vec::new(),
            allowed_hosts: Vec::new(),
            log_format: LogFormat::default(),
            log_level: "info".to_owned(),
        }
    }

    /// What a request may hold.
    pub fn limits(&self) -> Limits {
        Limits {
            request_bytes: self.max_request_bytes,
            key_bytes: self.max_key_bytes,
            value_bytes: self.max_value_bytes,
            txn_operations: self.max_txn_operations,
            page_keys: self.max_page_keys,
            page_bytes: self.max_page_bytes,
        }
    }

    /// When a log file is closed: there are several of them between two snapshots, since only whole files are deleted.
    pub fn log_sizes(&self) -> LogSizes {
        let chunk_bytes = usize::try_from(self.snapshot_bytes / LOG_FILES_A_SNAPSHOT).unwrap_or(usize::MAX);
        LogSizes {
            chunk_bytes_max: chunk_bytes.clamp(LOG_CHUNK_BYTES_LIMIT_LEAST, LOG_CHUNK_BYTES_LIMIT_MOST),
            ..LogSizes::default()
        }
    }

    /// What other nodes dial.
    pub fn advertised(&self) -> &str {
        self.advertise_addr.as_deref().unwrap_or(&self.http_addr)
    }

    /// Where to listen: every address of the host in `--http-addr`, each once.
    ///
    /// # Errors
    ///
    /// If the host has no address, or one that other nodes cannot dial while no other is advertised.
    pub fn socket_addrs(&self) -> Result<Vec<SocketAddr>, ConfigError> {
        let wrong = |why: String| {
            ConfigError(format!(
                "--http-addr `{}` {why}; HOST must be an address or a name of this machine",
                self.http_addr
            ))
        };
        let found = self.http_addr.to_socket_addrs().map_err(|error| wrong(format!("cannot be used: {error}")))?;
        let mut addrs: Vec<SocketAddr> = Vec::new();
        for addr in found {
            if !addrs.contains(&addr) {
                addrs.push(addr);
            }
        }
        if addrs.is_empty() {
            return Err(wrong("has no address".into()));
        }
        // `0` and names may stand for all addresses too, which only the lookup tells.
        if self.advertise_addr.is_none() && addrs.iter().any(|addr| addr.ip().to_canonical().is_unspecified()) {
            return Err(self.not_dialable());
        }
        Ok(addrs)
    }

    fn not_dialable(&self) -> ConfigError {
        ConfigError(format!(
            "--http-addr {} is every address of this machine, which other nodes cannot dial; \
             say which one they can with --advertise-addr",
            self.http_addr
        ))
    }

    /// Checks what a single flag's parser cannot: how the settings fit together.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let check = |good: bool, what: String| if good { Ok(()) } else { Err(ConfigError(what)) };
        check(self.id > 0, "--id must be at least 1".into())?;
        check_address("--http-addr", &self.http_addr)?;
        check_address("--advertise-addr", self.advertised())?;
        if self.advertise_addr.is_some() {
            check_dialable("--advertise-addr", self.advertised())?;
        }
        if self.advertise_addr.is_none() && is_unspecified(&self.http_addr) {
            return Err(self.not_dialable());
        }
        check(self.heartbeat_interval_ms >= 10, "--heartbeat-interval-ms must be at least 10".into())?;
        check(
            self.election_timeout_min_ms >= 2 * self.heartbeat_interval_ms,
            format!(
                "--election-timeout-min-ms is {} and must be at least twice --heartbeat-interval-ms, which is {}",
                self.election_timeout_min_ms, self.heartbeat_interval_ms
            ),
        )?;
        check(
            self.election_timeout_max_ms > self.election_timeout_min_ms,
            format!(
                "--election-timeout-max-ms is {} and must be above --election-timeout-min-ms, which is {}",
                self.election_timeout_max_ms, self.election_timeout_min_ms
            ),
        )?;
        check(
            self.election_timeout_max_ms <= 60_000,
            "--election-timeout-max-ms must be at most 60000, a minute".into(),
        )?;
        check(self.snapshot_entries > 0, "--snapshot-entries must be at least 1".into())?;
        check(
            self.snapshot_bytes >= SNAPSHOT_BYTES_LEAST,
            format!("--snapshot-bytes must be at least {SNAPSHOT_BYTES_LEAST}, 1 MiB"),
        )?;
        let ranges = [
            ("--max-request-bytes", self.max_request_bytes, 1024..=REQUEST_BYTES_MAX_LIMIT),
            ("--max-key-bytes", self.max_key_bytes, 1..=KEY_BYTES_MAX_LIMIT),
            ("--max-value-bytes", self.max_value_bytes, 1..=VALUE_BYTES_MAX_LIMIT),
            ("--max-txn-operations", self.max_txn_operations, 1..=TXN_OPERATIONS_MAX_LIMIT),
            ("--max-page-keys", self.max_page_keys, 1..=PAGE_KEYS_MAX_LIMIT),
            ("--max-page-bytes", self.max_page_bytes, 1..=PAGE_BYTES_MAX_LIMIT),
            ("--max-writes-waiting", self.max_writes_waiting, 1..=WRITES_WAITING_MAX_LIMIT),
            ("--client-memory-bytes", self.client_memory_bytes, CLIENT_MEMORY_BYTES_LEAST..=CLIENT_MEMORY_BYTES_LIMIT),
            ("--http-threads", self.http_threads, 1..=HTTP_THREADS_LIMIT),
        ];
        for (flag, value, range) in ranges {
            let (least, most) = (range.start(), range.end());
            check(range.contains(&value), format!("{flag} must be from {least} to {most}"))?;
        }
        Ok(())
    }

    /// How openraft is to run.
    pub fn raft_config(&self) -> openraft::Config {
        openraft::Config {
            cluster_name: "raft-key-value".into(),
            heartbeat_interval: self.heartbeat_interval_ms,
            election_timeout_min: self.election_timeout_min_ms,
            election_timeout_max: self.election_timeout_max_ms,
            install_snapshot_timeout: SNAPSHOT_DEADLINE.as_millis() as u64,
            max_payload_entries: APPEND_ENTRIES_MAX,
            max_append_entries: Some(APPEND_ENTRIES_MAX),
            snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(self.snapshot_entries),
            // `compaction` purges, by entries and by bytes. Two that decide would contradict each other: openraft
            // asserts that what it is to purge never becomes less.
            max_in_snapshot_log_to_keep: u64::MAX,
            // Until the membership names this node with its own data directory: see `server`.
            enable_elect: false,
            // A node that was cut off must not force an election when it comes back.
            enable_pre_vote: Some(true),
            // A leader that lost its followers finds out by itself (openraft #2080).
            quorum_loss_probe_interval: Some(2 * self.election_timeout_max_ms),
            // A leader that restarts must not go on in its old term: it may have sent
            // entries before they were on its own disk, and would give their log ids
            // to others. Followers that have acknowledged them would never notice.
            enable_leader_restore: Some(false),
            // A follower whose log went back has lost acknowledged data.
            allow_log_reversion: Some(false),
            ..openraft::Config::default()
        }
    }
}

/// Checks an entry of `--allowed-origins`; returns it as browsers send it.
pub(crate) fn parse_origin(text: &str) -> Result<String, String> {
    let wrong = || "an origin must be http://HOST[:PORT] or https://HOST[:PORT], without a path".to_owned();
    let origin = text.trim().to_ascii_lowercase();
    let (scheme, authority) = origin.split_once("://").ok_or_else(wrong)?;
    let default_port = match scheme {
        "http" => "80",
        "https" => "443",
        _ => return Err(wrong()),
    };
    let (host, port) = match authority.rsplit_once(':') {
        // The colons of an IPv6 address stand in brackets.
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let is_host =
        !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte));
    if !is_host || port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return Err(wrong());
    }
    Ok(match port {
        Some(port) if port != default_port => format!("{scheme}://{host}:{port}"),
        _ => format!("{scheme}://{host}"),
    })
}

/// Checks an entry of `--allowed-hosts`.
pub(crate) fn parse_host(text: &str) -> Result<String, String> {
    let host = text.trim();
    let host = host.strip_suffix('.').unwrap_or(host);
    let is_valid = !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if is_valid { Ok(host.to_ascii_lowercase()) } else { Err("a host must be a name, without port or path".to_owned()) }
}

/// Checks an `Idempotency-Key`, for clients and nodes alike.
///
/// # Errors
///
/// A message that says what the key must be.
pub fn check_idempotency_key(key: &str) -> Result<(), String> {
    // A tab may be in a header, too.
    let is_printable = key.bytes().all(|byte| matches!(byte, b' ' | b'\t') || byte.is_ascii_graphic());
    if is_printable && (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len()) {
        return Ok(());
    }
    Err(format!("an Idempotency-Key must be 1 to {IDEMPOTENCY_KEY_BYTES_MAX} printable ASCII characters"))
}

/// Checks that an address is `HOST:PORT`, without looking the host up.
pub fn check_address(name: &str, addr: &str) -> Result<(), ConfigError> {
    let valid = |host: &str, port: &str| {
        let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(host) => host.parse::<Ipv6Addr>().is_ok(),
            // 253 bytes is the longest name of a host (RFC 1035).
            None => {
                (1..=253).contains(&host.len())
                    && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
            }
        };
        is_host && is_number && port.parse::<u16>().is_ok()
    };
    if addr.rsplit_once(':').is_some_and(|(host, port)| valid(host, port)) {
        Ok(())
    } else {
        // Debug formatting, so that a control character cannot reach a terminal.
        Err(ConfigError(format!("{name} {addr:?} is not HOST:PORT, such as 127.0.0.1:21001")))
    }
}

/// Reads an entry of a list of endpoints, `HOST:PORT` or `http://HOST:PORT`, as `HOST:PORT`; `None` if it is empty.
///
/// # Errors
///
/// If it is not an address, or asks for TLS.
pub fn parse_endpoint(text: &str) -> Result<Option<String>, String> {
    let addr = text.trim();
    if addr.is_empty() {
        return Ok(None);
    }
    let addr = match addr.split_once("://") {
        None => addr,
        Some((scheme, addr)) if scheme.eq_ignore_ascii_case("http") => addr,
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => {
            return Err("nodes do not support TLS; an endpoint must be HOST:PORT, or http://HOST:PORT".to_owned());
        }
        Some(_) => return Err("an endpoint must be HOST:PORT, or http://HOST:PORT".to_owned()),
    };
    let addr = addr.strip_suffix('/').unwrap_or(addr);
    check_address("the endpoint", addr).map_err(|_| "an endpoint must be HOST:PORT, such as 127.0.0.1:21001")?;
    Ok(Some(addr.to_owned()))
}

/// Checks that an address is one that another node can dial.
pub fn check_dialable(name: &str, addr: &str) -> Result<(), ConfigError> {
    check_address(name, addr)?;
    let port = addr.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    if port == Some(0) || is_unspecified(addr) {
        return Err(ConfigError(format!("{name} {addr} is not an address that other nodes can dial")));
    }
    Ok(())
}

/// Whether `HOST:PORT` stands for all addresses of a machine, in any spelling that a resolver takes for it.
///
/// Besides `0.0.0.0` and `[::]` these are the old forms of IPv4 addresses, of one to four numbers, each decimal, octal
/// or hexadecimal (`0`, `0x0`, `000.0`), and an IPv4 address within an IPv6 one. Names are not resolved.
pub fn is_unspecified(addr: &str) -> bool {
    let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host);
    if let Some(host) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return host.parse::<Ipv6Addr>().is_ok_and(|ip| is_unspecified_ip(ip.into()));
    }
    let is_zero = |number: &str| {
        let digits = number.strip_prefix("0x").or_else(|| number.strip_prefix("0X")).unwrap_or(number);
        digits.bytes().all(|digit| digit == b'0') && !number.is_empty()
    };
    // A name may end with a dot, and some resolvers take an address with one.
    let numbers = host.strip_suffix('.').unwrap_or(host).split('.');
    numbers.clone().count() <= 4 && numbers.into_iter().all(is_zero)
}

/// Whether an IP address stands for all addresses of a machine, that of IPv4 within IPv6 too.
pub fn is_unspecified_ip(ip: IpAddr) -> bool {
    ip.to_canonical().is_unspecified()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Config {
        let base = ["raft-key-value", "--id", "1", "--http-addr", "127.0.0.1:21001"];
        Config::try_parse_from(base.iter().chain(arguments)).unwrap()
    }

    /// The limits fit into each other, so that what one accepts the next can carry.
    #[test]
    fn limits_fit_together() {
        const {
            assert!(KEY_BYTES_MAX_DEFAULT + VALUE_BYTES_MAX_DEFAULT < REQUEST_BYTES_MAX_DEFAULT);
            assert!(REQUEST_BYTES_MAX_DEFAULT <= REQUEST_BYTES_MAX_LIMIT);
            // A request is all that a payload holds, and the names of the fields at most double it.
            assert!(2 * REQUEST_BYTES_MAX_LIMIT <= LOG_PAYLOAD_BYTES_MAX);
            assert!(SMALL_RPC_BYTES_MAX < SNAPSHOT_HEAD_BYTES_MAX);
            assert!(TERM_STEP_MAX < TERM_MAX && SNAPSHOT_WAIT_MAX.as_secs() < SNAPSHOT_DEADLINE.as_secs());
            assert!(
                SNAPSHOT_FRAME_BYTES + 2 * (KEY_BYTES_MAX_LIMIT + VALUE_BYTES_MAX_LIMIT) < SNAPSHOT_FRAME_BYTES_MAX
            );
            // Values as base64, and each result with its names.
            assert!(
                SNAPSHOT_FRAME_BYTES + TXN_ANSWER_BYTES_MAX / 2 * 3 + 256 * TXN_OPERATIONS_MAX_LIMIT
                    < SNAPSHOT_FRAME_BYTES_MAX
            );
            assert!(WATCH_BATCHES_MAX * WATCH_HANDED_OUT_BATCH_BYTES < WATCH_HANDED_OUT_BYTES_MAX);
            assert!(WATCH_LONG_EVENT_BYTES < WATCH_HANDED_OUT_BATCH_BYTES);
            // Both halves of a run that is divided are long enough.
            assert!(RUN_KEYS_MAX / 2 >= RUN_KEYS_MIN);
            assert!(WATCH_CONFIRMATION_AGE_MAX.as_secs() < WATCH_HEARTBEAT.as_secs());
            // A watch that is due takes part in several attempts.
            assert!(2 * WATCH_CONFIRMATION_DEADLINE.as_millis() < REQUEST_DEADLINE.as_millis());
            assert!((WATCH_HEARTBEAT.as_secs() + REQUEST_DEADLINE.as_secs()) < WATCH_SILENCE_MAX.as_secs());
            assert!(WATCH_HEARTBEAT.as_secs() < KEEP_ALIVE.as_secs());
            assert!(WATCH_SILENCE_MAX.as_secs() > 2 * WATCH_HEARTBEAT.as_secs());
            // A byte of a value takes six at most, as \u0000.
            assert!(2 * 6 * VALUE_BYTES_MAX_LIMIT < WATCH_EVENT_BYTES_MAX);
            assert!(RETRY_DEADLINE_DEFAULT.as_secs() > 5 * RETRY_AFTER.as_secs());
            assert!(RETRY_PAUSE_FIRST.as_millis() < RETRY_PAUSE_MAX.as_millis());
            assert!(SNAPSHOT_KEEP_ENTRIES_DEFAULT > SNAPSHOT_ENTRIES_DEFAULT);
            assert!(SNAPSHOT_KEEP_BYTES_DEFAULT > SNAPSHOT_BYTES_DEFAULT);
            assert!(LOG_CHUNK_BYTES_MAX as u64 == SNAPSHOT_BYTES_DEFAULT / LOG_FILES_A_SNAPSHOT);
            // raft-log queues 1,024 requests, up to three for each file it begins.
            assert!(LOG_UNSYNCED_BYTES_MAX / LOG_CHUNK_BYTES_LIMIT_LEAST * 3 < 1024);
            // As many as wait by default are no reason to reject one.
            assert!(
                PROPOSED_BYTES_MAX + WRITES_WAITING_MAX_DEFAULT * MEMORY_COUNTED_MIN < LOG_UNCOMMITTED_BYTES_MAX / 2
            );
            // They take few of the log's files.
            assert!(LOG_UNCOMMITTED_BYTES_MAX / LOG_CHUNK_BYTES_MAX <= LOG_FILES_MAX / 5);
            // The others are for sockets, the runtime and snapshots.
            assert!(LOG_FILES_MAX + 40 < FILES_RESERVED);
            // Sixteen files more than the defaults keep, before and after a snapshot.
            assert!(
                LOG_FILES_MAX as u64
                    > (SNAPSHOT_BYTES_DEFAULT + SNAPSHOT_KEEP_BYTES_DEFAULT) / LOG_CHUNK_BYTES_MAX as u64 + 16
            );
            assert!(KEEP_ALIVE.as_secs() > CONNECTION_IDLE_MAX.as_secs());
            assert!(PASSED_ON_A_TURN < REQUESTS_A_TURN);
            assert!(REQUESTS_A_REFUSAL < REQUESTS_A_TURN);
            assert!(REFUSAL_INTERVAL_MAX.as_millis() < REFUSED_WAIT_MAX.as_millis());
            // Who is refused hears of it within 100 ms, and was none of those who wait.
            assert!(REFUSED_WAIT_MAX.as_millis() < 100);
            assert!(REFUSED_WAIT_MAX.as_millis() < LINE_WAIT_MAX.as_millis());
            assert!(STALL_MIN.as_millis() < LINE_WAIT_MAX.as_millis());
            assert!(FORWARD_DEADLINE.as_millis() > MEMORY_WAIT_MAX.as_millis() + REQUEST_DEADLINE.as_millis());
            assert!(MEMBERS_PROBE_INTERVAL.as_millis() < MEMBERS_ANSWER_MIN.as_millis());
            assert!(MEMBERS_ANSWER_MIN.as_millis() < MEMBERS_ANSWER_MAX.as_millis());
            assert!(MEMBERS_ANSWER_MAX.as_secs() < MEMBERSHIP_DEADLINE.as_secs());
            assert!(PEER_RESPONSE_BYTES_MAX > 16 * MESSAGE_CHARACTERS_MAX);
            assert!(6 * (PAGE_BYTES_MAX_LIMIT + VALUE_BYTES_MAX_LIMIT) / 2 * 3 < RESPONSE_BYTES_MAX);
            assert!(6 * TXN_ANSWER_BYTES_MAX + 256 * TXN_OPERATIONS_MAX_LIMIT < PASSED_ON_RESPONSE_BYTES_MAX);
            // `/write` returns the value.
            assert!(6 * VALUE_BYTES_MAX_LIMIT < PASSED_ON_RESPONSE_BYTES_MAX);
            assert!(PASSED_ON_RESPONSE_BYTES_MAX < RESPONSE_BYTES_MAX);
            assert!(DISK_FREE_BYTES_LEAST < DISK_FREE_BYTES_MIN / 8);
        }
    }

    /// The library's defaults are the command line's, and openraft takes them.
    #[test]
    fn defaults_agree_and_are_valid() {
        let config = parse(&[]);
        assert_eq!(format!("{config:?}"), format!("{:?}", Config::new(1, "127.0.0.1:21001")));
        config.validate().unwrap();
        config.raft_config().validate().unwrap();
    }

    /// Settings that do not fit together are refused in one line that names the flag.
    #[test]
    fn bad_settings_are_named() {
        let rows: &[(&[&str], &str)] = &[
            (&["--heartbeat-interval-ms", "5"], "--heartbeat-interval-ms"),
            (&["--election-timeout-min-ms", "150"], "--election-timeout-min-ms"),
            (&["--election-timeout-max-ms", "300"], "--election-timeout-max-ms"),
            (&["--election-timeout-max-ms", "60001"], "--election-timeout-max-ms"),
            (&["--snapshot-entries", "0"], "--snapshot-entries"),
            (&["--snapshot-bytes", "1048575"], "--snapshot-bytes"),
            (&["--max-request-bytes", "1023"], "--max-request-bytes"),
            (&["--max-request-bytes", "999999999"], "--max-request-bytes"),
            (&["--max-key-bytes", "0"], "--max-key-bytes"),
            (&["--max-value-bytes", "99999999"], "--max-value-bytes"),
            (&["--max-writes-waiting", "0"], "--max-writes-waiting"),
            (&["--advertise-addr", "nowhere"], "--advertise-addr"),
            (&["--advertise-addr", "host:0"], "--advertise-addr"),
            (&["--advertise-addr", "host:00"], "--advertise-addr"),
            (&["--advertise-addr", "0.0.0.0:21001"], "--advertise-addr"),
            (&["--advertise-addr", "0:21001"], "--advertise-addr"),
        ];
        for (arguments, flag) in rows {
            let message = parse(arguments).validate().unwrap_err().to_string();
            assert!(message.contains(flag), "{arguments:?}: {message}");
            assert!(!message.contains('\n'), "{arguments:?}: {message}");
        }
    }

    /// Every spelling of the unspecified address is known as such, and no other address is.
    #[test]
    fn unspecified_addresses() {
        for host in [
            "0",
            "00",
            "0x0",
            "0X00",
            "0x",
            "0.0",
            "0.0.0",
            "0.0.0.0",
            "0.0.0.0.",
            "000.0.0.0",
            "0x0.0.00.0",
            "[::]",
            "[0:0:0:0:0:0:0:0]",
            "[0::0]",
            "[::0.0.0.0]",
            "[::ffff:0.0.0.0]",
            "[::ffff:0:0]",
        ] {
            let addr = format!("{host}:21001");
            assert!(is_unspecified(&addr), "{addr}");
            assert!(check_address("it", &addr).is_ok(), "{addr}");
            assert!(check_dialable("it", &addr).is_err(), "{addr}");
            let mut config = Config::new(1, addr.clone());
            let message = config.validate().unwrap_err().to_string();
            assert!(message.contains("--advertise-addr"), "{addr}: {message}");
            config.advertise_addr = Some("127.0.0.1:21001".to_owned());
            assert_eq!(config.validate(), Ok(()), "{addr}");
        }
        for host in [
            "1",
            "0x1",
            "0.1",
            "127.0.0.1",
            "0.0.0.1",
            "10.0.0.0",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "zero",
            "0.example",
            "x0",
            "0-0",
            "0x0x0",
            "0.0.0.0.0",
            "o",
        ] {
            let addr = format!("{host}:21001");
            assert!(!is_unspecified(&addr), "{addr}");
            assert_eq!(check_dialable("it", &addr), Ok(()), "{addr}");
        }
    }

    /// What is and what is not an address.
    #[test]
    fn addresses() {
        for good in ["127.0.0.1:21001", "[::1]:80", "node-1.example:65535", "localhost:1"] {
            assert_eq!(check_address("it", good), Ok(()), "{good}");
        }
        let too_long = format!("{}:80", "h".repeat(254));
        assert!(check_address("it", &too_long).is_err());
        for bad in [
            "h:+80",
            "[]:80",
            "[1]:80",
            "%:80",
            "[fe80::1%eth0]:80",
            "",
            ":",
            "host",
            "host:",
            ":80",
            "host:65536",
            "host:-1",
            "::1:80",
            "a b:80",
            "http://a:80",
            "a/b:80",
            "a\n:80",
        ] {
            assert!(check_address("it", bad).is_err(), "{bad:?}");
        }
    }

    /// Endpoints may be written with spaces, `http://` and a slash at the end; what is not an address is rejected.
    #[test]
    fn endpoints() {
        for (text, parsed) in [
            ("127.0.0.1:1", "127.0.0.1:1"),
            (" host:1\t", "host:1"),
            ("http://host:1", "host:1"),
            (" HTTP://[::1]:80/ ", "[::1]:80"),
            ("host:1/", "host:1"),
        ] {
            assert_eq!(parse_endpoint(text), Ok(Some(parsed.to_owned())), "{text:?}");
        }
        for empty in ["", " ", "\t"] {
            assert_eq!(parse_endpoint(empty), Ok(None), "{empty:?}");
        }
        for (bad, why) in [
            ("host", "HOST:PORT"),
            ("http://", "HOST:PORT"),
            ("http://host", "HOST:PORT"),
            ("http://host:1/v1", "HOST:PORT"),
            ("host:1//", "HOST:PORT"),
            ("host :1", "HOST:PORT"),
            ("https://host:1", "TLS"),
            ("HTTPS://host:1/", "TLS"),
            ("ftp://host:1", "or http://HOST:PORT"),
        ] {
            let message = parse_endpoint(bad).unwrap_err();
            assert!(message.contains(why), "{bad:?}: {message}");
        }
    }

    /// Entries of the flags that could never match are rejected.
    #[test]
    fn flags() {
        for (good, parsed) in [
            ("https://A.example", "https://a.example"),
            ("https://a.example:443", "https://a.example"),
            ("https://a.example:8443", "https://a.example:8443"),
            (" http://[::1]:80", "http://[::1]"),
        ] {
            assert_eq!(parse_origin(good).as_deref(), Ok(parsed));
        }
        for bad in [
            "a.example",
            "https://",
            "http://:80",
            "http://a:x",
            "ftp://a",
            "https://a.example/",
            "*",
            "null",
            "https://a b",
        ] {
            assert!(parse_origin(bad).is_err(), "{bad:?}");
        }
        assert_eq!(parse_host("Proxy.Example.").as_deref(), Ok("proxy.example"));
        for bad in ["", "a.example:80", "https://a", "*"] {
            assert!(parse_host(bad).is_err(), "{bad:?}");
        }
    }
}
