//! Settings: the command line, the environment, the file of `--config`, and the defaults.
//!
//! `limits` has every bound and default, `address` the forms of addresses, `file` the settings file. Their names are
//! re-exported here.

mod address;
mod file;
mod limits;

use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::num::NonZero;
use std::path::{Path, PathBuf};

use clap::builder::Resettable;
use clap::{CommandFactory, FromArgMatches, Parser, ValueEnum};
use serde::{Deserialize, Serialize};

#[doc(hidden)]
pub use self::address::*;
#[doc(hidden)]
pub use self::file::*;
#[doc(hidden)]
pub use self::limits::*;
use crate::types::NodeId;

/// Format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One readable line per event.
    #[default]
    Text,
    /// One JSON object per event.
    Json,
}

/// Role of a node in the cluster that it joins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum JoinAs {
    /// The node votes once it has all data.
    #[default]
    Voter,
    /// The node receives all data, and does not vote.
    Learner,
}

/// Bounds of requests, from the settings.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum length of a request body, in bytes.
    pub request_bytes: usize,
    /// Maximum length of a key, in bytes.
    pub key_bytes: usize,
    /// Maximum length of a value, in bytes.
    pub value_bytes: usize,
    /// Maximum number of operations in a transaction.
    pub txn_operations: usize,
    /// Maximum number of keys in a page of a list.
    pub page_keys: usize,
    /// Bytes of keys and values after which a page of a list ends.
    pub page_bytes: usize,
}

/// The settings of a node.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "raft-key-value",
    version,
    about = "A replicated key-value store: one binary, three nodes, data on disk, plain HTTP.",
    long_about = "A replicated key-value store: one binary, three nodes, data on disk, plain HTTP.\n\n\
        The nodes replicate all data through Raft. A write succeeds once a majority of them has it on disk. \
        Any node accepts any request.",
    after_long_help = "\
Examples:
  Start three nodes on one machine, each in its own terminal, as one cluster:
    raft-key-value --id 1 --http-addr 127.0.0.1:21001 --bootstrap
    raft-key-value --id 2 --http-addr 127.0.0.1:21002 --join 127.0.0.1:21001
    raft-key-value --id 3 --http-addr 127.0.0.1:21003 --join 127.0.0.1:21001

  Write on one node, read on another:
    curl -X PUT 127.0.0.1:21001/v1/kv/foo -d bar
    curl 127.0.0.1:21003/v1/kv/foo

  The same with commands:
    raft-key-value put foo bar
    raft-key-value get foo
    raft-key-value status

  Check the settings in a file, and print what a node would use:
    raft-key-value config check --config node1.toml
    raft-key-value config print --config node1.toml

  Listen on every address, with TLS by the files that `raft-key-value tls init` makes, and tell
  other nodes which address to dial:
    raft-key-value --id 1 --http-addr 0.0.0.0:21001 --advertise-addr node1.example:21001 \\
      --tls-cert tls/node-1.pem --tls-key tls/node-1-key.pem --tls-ca tls/ca.pem

Exit codes of commands:
   0  the request succeeded, or the reader of the output closed it
   1  the key does not exist, a condition or comparison does not hold, or the revision to watch
      from is no longer kept
   2  the request is invalid, or a file to read does not exist
   3  no node could serve the request, a list is incomplete, an endpoint of `status` does not
      serve requests, or the outcome is unknown: the message says which
   4  `doctor` found something critical; 1 after a warning
  65  a snapshot file, or a file in the directory of a node, is damaged
  73  a node runs on the directory
  74  a file cannot be read or written, or the output cannot be written; a write was applied then,
      and the message has its result

Exit codes of a node:
   0  stopped by SIGTERM or SIGINT
   2  a flag, an environment variable or the file of --config is invalid
  65  the data is damaged or an older copy, or its state or a log entry differs from the leader's;
      nothing was changed
  69  cannot listen on --http-addr
  70  Raft or a background task failed; a restart recovers
  73  another process uses this data directory
  74  the disk failed or is full
  78  the data belongs to another node, another user or a newer version, or a file in it is a link;
      --bootstrap would found a second cluster; the root token is missing, or others may read it;
      or other machines could reach a node with neither TLS nor tokens, and --insecure is not set"
)]
pub struct Config {
    /// Id of this node, at least 1 and unique in the cluster
    #[arg(long, env = "RKV_ID", value_name = "N")]
    pub id: NodeId,

    /// Address to listen on, HOST:PORT; if HOST is a name, the node listens on all its addresses
    #[arg(long, env = "RKV_HTTP_ADDR", value_name = "HOST:PORT")]
    pub http_addr: String,

    /// File of settings in TOML, with the names of these flags as keys, such as `http-addr = "10.0.0.1:21001"`; flags
    /// and environment variables override it
    #[arg(long, env = "RKV_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Data directory; this node's files are in its subdirectory node-N
    #[arg(long, env = "RKV_DATA_DIR", value_name = "DIR", default_value = DATA_DIR_DEFAULT)]
    pub data_dir: PathBuf,

    /// Address that other nodes dial, HOST:PORT [default: the --http-addr]
    #[arg(long, env = "RKV_ADVERTISE_ADDR", value_name = "HOST:PORT")]
    pub advertise_addr: Option<String>,

    /// Form a new cluster if the data directory is new: of this node alone, or, with --join, of this node and those
    /// nodes once all of them respond and belong to no cluster
    #[arg(long, env = "RKV_BOOTSTRAP", value_parser = clap::builder::BoolishValueParser::new())]
    pub bootstrap: bool,

    /// Nodes of the cluster to join if the data directory is new, HOST:PORT, separated by commas; retries until one of
    /// them can add this node
    #[arg(long, env = "RKV_JOIN", value_name = "LIST", value_delimiter = ',', value_parser = parse_member)]
    pub join: Vec<String>,

    /// Role of this node in the cluster that it joins: a voter counts towards a majority, a learner only receives the
    /// data
    #[arg(long, env = "RKV_JOIN_AS", value_name = "ROLE", value_enum, default_value_t)]
    pub join_as: JoinAs,

    /// Interval between leader heartbeats, in milliseconds
    #[arg(long, env = "RKV_HEARTBEAT_INTERVAL_MS", value_name = "MS", default_value_t = HEARTBEAT_INTERVAL_MS_DEFAULT)]
    pub heartbeat_interval_ms: u64,

    /// Minimum of the random wait before an election, in milliseconds; the wait starts once a follower has not heard
    /// from the leader for --election-timeout-max-ms
    #[arg(long, env = "RKV_ELECTION_TIMEOUT_MIN_MS", value_name = "MS", default_value_t = ELECTION_TIMEOUT_MIN_MS_DEFAULT)]
    pub election_timeout_min_ms: u64,

    /// Maximum of the random wait before an election, in milliseconds
    #[arg(long, env = "RKV_ELECTION_TIMEOUT_MAX_MS", value_name = "MS", default_value_t = ELECTION_TIMEOUT_MAX_MS_DEFAULT)]
    pub election_timeout_max_ms: u64,

    /// Take a snapshot after this many log entries
    #[arg(long, env = "RKV_SNAPSHOT_ENTRIES", value_name = "N", default_value_t = SNAPSHOT_ENTRIES_DEFAULT)]
    pub snapshot_entries: u64,

    /// Keep this many log entries after a snapshot, for followers that are behind
    #[arg(long, env = "RKV_SNAPSHOT_KEEP_ENTRIES", value_name = "N", default_value_t = SNAPSHOT_KEEP_ENTRIES_DEFAULT)]
    pub snapshot_keep_entries: u64,

    /// Take a snapshot after this many bytes of log, even with fewer entries than --snapshot-entries; after as many
    /// bytes as the newest snapshot has, if that is more
    #[arg(long, env = "RKV_SNAPSHOT_BYTES", value_name = "BYTES", default_value_t = SNAPSHOT_BYTES_DEFAULT)]
    pub snapshot_bytes: u64,

    /// Keep at most this many bytes of log after a snapshot, even with fewer entries than --snapshot-keep-entries;
    /// proportionally more if the newest snapshot is longer than --snapshot-bytes
    #[arg(long, env = "RKV_SNAPSHOT_KEEP_BYTES", value_name = "BYTES", default_value_t = SNAPSHOT_KEEP_BYTES_DEFAULT)]
    pub snapshot_keep_bytes: u64,

    /// Maximum length of a request body, in bytes
    #[arg(long, env = "RKV_MAX_REQUEST_BYTES", value_name = "BYTES", default_value_t = REQUEST_BYTES_MAX_DEFAULT)]
    pub max_request_bytes: usize,

    /// Maximum length of a key, in bytes
    #[arg(long, env = "RKV_MAX_KEY_BYTES", value_name = "BYTES", default_value_t = KEY_BYTES_MAX_DEFAULT)]
    pub max_key_bytes: usize,

    /// Maximum length of a value, in bytes
    #[arg(long, env = "RKV_MAX_VALUE_BYTES", value_name = "BYTES", default_value_t = VALUE_BYTES_MAX_DEFAULT)]
    pub max_value_bytes: usize,

    /// Maximum number of operations in a transaction
    #[arg(long, env = "RKV_MAX_TXN_OPERATIONS", value_name = "N", default_value_t = TXN_OPERATIONS_MAX_DEFAULT)]
    pub max_txn_operations: usize,

    /// Maximum number of keys in a page of a list
    #[arg(long, env = "RKV_MAX_PAGE_KEYS", value_name = "N", default_value_t = PAGE_KEYS_MAX_DEFAULT)]
    pub max_page_keys: usize,

    /// End a page of a list after this many bytes of keys and values
    #[arg(long, env = "RKV_MAX_PAGE_BYTES", value_name = "BYTES", default_value_t = PAGE_BYTES_MAX_DEFAULT)]
    pub max_page_bytes: usize,

    /// Maximum number of writes in progress; further writes are rejected with 503
    #[arg(long, env = "RKV_MAX_WRITES_WAITING", value_name = "N", default_value_t = WRITES_WAITING_MAX_DEFAULT)]
    pub max_writes_waiting: usize,

    /// Memory for the bodies of requests and responses, in bytes; requests wait for it, and are rejected with 503 if
    /// the wait is too long [default: 268435456, or an eighth of the machine's memory if that is less]
    #[arg(long, env = "RKV_CLIENT_MEMORY_BYTES", value_name = "BYTES", default_value_t = client_memory_default(), hide_default_value = true)]
    pub client_memory_bytes: usize,

    /// Threads that serve clients, in addition to Raft's thread [default: one less than the number of cores, from 1
    /// to 8]
    #[arg(long, env = "RKV_HTTP_THREADS", value_name = "N", default_value_t = http_threads_default(), hide_default_value = true)]
    pub http_threads: usize,

    /// Memory for keys and values, in bytes, with 200 bytes more for each key; a leader rejects writes that add data
    /// beyond it with 507; use the same value on all nodes [default: half of the machine's memory]
    #[arg(long, env = "RKV_QUOTA_BYTES", value_name = "BYTES", default_value_t = quota_default(), hide_default_value = true)]
    pub quota_bytes: u64,

    /// Free disk space below which a leader rejects writes that store data, in bytes; hidden, since only tests need
    /// another value than the default
    #[arg(long, hide = true, value_name = "BYTES", default_value_t = DISK_FREE_BYTES_MIN)]
    pub min_disk_free_bytes: u64,

    /// Origins of web pages that may use this node in addition to its own, such as `https://console.example`,
    /// separated by commas
    #[arg(long, env = "RKV_ALLOWED_ORIGINS", value_name = "LIST", value_delimiter = ',', value_parser = parse_origin)]
    pub allowed_origins: Vec<String>,

    /// Names to accept in the Host header, separated by commas, in addition to IP addresses, localhost, the machine's
    /// name, and the names in --http-addr and --advertise-addr; required behind a proxy that forwards another name
    #[arg(long, env = "RKV_ALLOWED_HOSTS", value_name = "LIST", value_delimiter = ',', value_parser = parse_host)]
    pub allowed_hosts: Vec<String>,

    /// Certificate of this node in PEM, which names it by the URI rkv:node:N; with it, the node speaks TLS only; needs
    /// --tls-key and --tls-ca (`raft-key-value tls init` makes all three)
    #[arg(long, env = "RKV_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// Private key of --tls-cert, in PEM
    #[arg(long, env = "RKV_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// Certificates, in PEM, of the CA that signs the certificates of all nodes and clients
    #[arg(long, env = "RKV_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,

    /// Require a certificate of every client, in addition to nodes
    #[arg(long, env = "RKV_TLS_CLIENT_AUTH", value_parser = clap::builder::BoolishValueParser::new())]
    pub tls_client_auth: bool,

    /// Listen on an address that other machines can reach with neither TLS nor tokens: everyone who reaches it can read,
    /// write, and act as a node
    #[arg(long, env = "RKV_INSECURE", value_parser = clap::builder::BoolishValueParser::new())]
    pub insecure: bool,

    /// File with the root token, which allows everything, at least 32 bytes long; other users must not be able to read
    /// it; a cluster whose leader was started with it requires tokens; use the same token on all nodes
    #[arg(long, env = "RKV_ROOT_TOKEN_FILE", value_name = "FILE")]
    pub root_token_file: Option<PathBuf>,

    /// Serve /metrics and /v1/metrics without a token
    #[arg(long, env = "RKV_PUBLIC_METRICS", value_parser = clap::builder::BoolishValueParser::new())]
    pub public_metrics: bool,

    /// Time after which a request counts as slow, in milliseconds; some slow requests are logged, with what took the
    /// time; 0 logs none
    #[arg(long, env = "RKV_SLOW_REQUEST_MS", value_name = "MS", default_value_t = SLOW_REQUEST_MS_DEFAULT)]
    pub slow_request_ms: u64,

    /// OpenTelemetry collector to send traces of requests to by OTLP over HTTP, such as `http://127.0.0.1:4318`;
    /// without a path, `/v1/traces` is added
    #[arg(long, env = "RKV_OTLP_ENDPOINT", value_name = "URL", value_parser = parse_otlp_endpoint)]
    pub otlp_endpoint: Option<String>,

    /// Share of requests to trace, from 0 to 1; a client's header `traceparent` overrides it for the request
    #[arg(long, env = "RKV_OTLP_SAMPLE_RATIO", value_name = "RATIO", default_value_t = OTLP_SAMPLE_RATIO_DEFAULT)]
    pub otlp_sample_ratio: f64,

    /// Format of log lines
    #[arg(long, env = "RKV_LOG_FORMAT", value_name = "FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,

    /// Log level: error, warn, info, debug, trace, or a filter such as `info,openraft=debug`; RUST_LOG applies if
    /// neither this flag nor RKV_LOG_LEVEL is set
    #[arg(long, env = "RKV_LOG_LEVEL", value_name = "LEVEL", default_value = LOG_LEVEL_DEFAULT)]
    pub log_level: String,
}

/// An invalid setting. The message names its flag and says what must hold.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    /// TLS files that cannot be used.
    #[doc(hidden)]
    pub fn tls(error: &impl std::fmt::Display) -> Self {
        ConfigError(format!("the files of --tls-cert, --tls-key and --tls-ca cannot be used: {error}"))
    }

    /// An invalid `--log-level`.
    #[doc(hidden)]
    pub fn log_level(config: &Config, why: &str) -> Self {
        ConfigError(format!("--log-level {:?} is invalid: {why}", config.log_level))
    }
}

/// One core for Raft, the others for clients.
fn http_threads_default() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    cores.saturating_sub(1).clamp(1, HTTP_THREADS_DEFAULT_MAX)
}

/// An eighth of the memory, within the bounds.
fn client_memory_default() -> usize {
    let eighth = usize::try_from(memory_bytes() / 8).unwrap_or(usize::MAX);
    eighth.clamp(CLIENT_MEMORY_BYTES_LEAST, CLIENT_MEMORY_BYTES_DEFAULT)
}

/// Half of the memory.
fn quota_default() -> u64 {
    (memory_bytes() / 2).max(QUOTA_BYTES_LEAST)
}

/// The memory that the system and the control group give this process.
fn memory_bytes() -> u64 {
    let system = rustix::system::sysinfo();
    #[allow(clippy::useless_conversion)] // `totalram` has 32 bits on some architectures.
    let total = u64::from(system.totalram).saturating_mul(u64::from(system.mem_unit));
    let of_group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let of_group = of_group.and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(u64::MAX);
    total.min(of_group)
}

impl Config {
    /// The defaults, whatever the environment says.
    pub fn new(id: NodeId, http_addr: impl Into<String>) -> Self {
        let arguments =
            ["raft-key-value".to_owned(), format!("--id={id}"), format!("--http-addr={}", http_addr.into())];
        let program = Config::command().mut_args(|argument| argument.env(Resettable::Reset));
        let matches = program.try_get_matches_from(arguments);
        matches.and_then(|matches| Config::from_arg_matches(&matches)).expect("the defaults are valid")
    }

    /// The files of the certificate, the key and the CA, if the node speaks TLS.
    pub fn tls_files(&self) -> Option<[&Path; 3]> {
        let (certificate, key, ca) = (self.tls_cert.as_ref()?, self.tls_key.as_ref()?, self.tls_ca.as_ref()?);
        Some([certificate, key, ca])
    }

    /// The bounds of requests.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            request_bytes: self.max_request_bytes,
            key_bytes: self.max_key_bytes,
            value_bytes: self.max_value_bytes,
            txn_operations: self.max_txn_operations,
            page_keys: self.max_page_keys,
            page_bytes: self.max_page_bytes,
        }
    }

    /// Sizes of the log's files: several of them between two snapshots, since only whole files are deleted.
    pub(crate) fn log_sizes(&self) -> LogSizes {
        let chunk_bytes = usize::try_from(self.snapshot_bytes / LOG_FILES_PER_SNAPSHOT).unwrap_or(usize::MAX);
        LogSizes {
            chunk_bytes_max: chunk_bytes.clamp(LOG_CHUNK_BYTES_LIMIT_LEAST, LOG_CHUNK_BYTES_LIMIT_MOST),
            ..LogSizes::default()
        }
    }

    /// The address that other nodes dial, `HOST:PORT`.
    pub fn advertised(&self) -> &str {
        self.advertise_addr.as_deref().unwrap_or(&self.http_addr)
    }

    /// The addresses to listen on: each address of the host in `--http-addr` once.
    ///
    /// # Errors
    ///
    /// If the host has no address, or the unspecified one while `--advertise-addr` is not set.
    pub fn socket_addrs(&self) -> Result<Vec<SocketAddr>, ConfigError> {
        let wrong = |why: String| {
            ConfigError(format!(
                "--http-addr `{}` {why}; HOST must be an address or name of this machine",
                self.http_addr
            ))
        };
        let found = self.http_addr.to_socket_addrs().map_err(|error| wrong(format!("cannot be resolved: {error}")))?;
        let mut addrs: Vec<SocketAddr> = Vec::new();
        for addr in found {
            if !addrs.contains(&addr) {
                addrs.push(addr);
            }
        }
        if addrs.is_empty() {
            return Err(wrong("has no address".into()));
        }
        // A name may resolve to the unspecified address, which `validate` cannot see.
        if self.advertise_addr.is_none() && addrs.iter().any(|addr| addr.ip().to_canonical().is_unspecified()) {
            return Err(self.not_dialable());
        }
        Ok(addrs)
    }

    /// The address to listen on, unless it is a name.
    #[doc(hidden)]
    pub fn literal_addr(&self) -> Option<SocketAddr> {
        let unspecified = || is_unspecified(&self.http_addr).then_some((Ipv4Addr::UNSPECIFIED, 0).into());
        self.http_addr.parse().ok().or_else(unspecified)
    }

    /// Whether other machines can reach one of these addresses while nothing protects the node.
    pub(crate) fn is_open_to_all(&self, addrs: &[SocketAddr]) -> bool {
        self.tls_files().is_none()
            && self.root_token_file.is_none()
            && addrs.iter().any(|addr| !addr.ip().to_canonical().is_loopback())
    }

    /// Checks that no other machine can reach an unprotected node on these addresses, unless `--insecure` allows it.
    ///
    /// # Errors
    ///
    /// If one can. The message names the ways out.
    pub fn check_protection(&self, addrs: &[SocketAddr]) -> Result<(), ConfigError> {
        if self.insecure || !self.is_open_to_all(addrs) {
            return Ok(());
        }
        Err(ConfigError(format!(
            "--http-addr {} may be reached by other machines, and everyone there could read, write, and act as a node: \
             set --tls-cert, --tls-key and --tls-ca (`raft-key-value tls init` makes the files), or --root-token-file, or \
             listen on 127.0.0.1 only; in a network where everyone is trusted, set --insecure",
            self.http_addr
        )))
    }

    /// The nodes of `--join` other than this one, which is at `own_addr`.
    pub(crate) fn join_targets(&self, own_addr: &str) -> impl Iterator<Item = &String> {
        self.join.iter().filter(move |addr| !addr.eq_ignore_ascii_case(own_addr))
    }

    fn not_dialable(&self) -> ConfigError {
        ConfigError(format!(
            "--http-addr {} is every address of this machine, which other nodes cannot dial; \
             set --advertise-addr to the address that they can dial",
            self.http_addr
        ))
    }

    /// Checks the ranges of the settings, and how they fit together.
    ///
    /// # Errors
    ///
    /// The first setting that is invalid.
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
        for addr in &self.join {
            check_dialable("--join", addr)?;
        }
        check(
            self.join.is_empty() || self.bootstrap || self.join_targets(self.advertised()).next().is_some(),
            "--join must list at least one other node".into(),
        )?;
        check(
            self.join_as == JoinAs::Voter || !self.join.is_empty() && !self.bootstrap,
            "--join-as learner needs --join, without --bootstrap: the node that forms a cluster is a voter".into(),
        )?;
        let tls = [("--tls-cert", &self.tls_cert), ("--tls-key", &self.tls_key), ("--tls-ca", &self.tls_ca)];
        if let Some((given, _)) = tls.iter().find(|(_, file)| file.is_some())
            && let Some((missing, _)) = tls.iter().find(|(_, file)| file.is_none())
        {
            return Err(ConfigError(format!("{given} needs {missing}: TLS takes a certificate, its key, and a CA")));
        }
        check(
            !self.tls_client_auth || self.tls_ca.is_some(),
            "--tls-client-auth needs --tls-cert, --tls-key and --tls-ca".into(),
        )?;
        let (heartbeat_ms, min_ms, max_ms) =
            (self.heartbeat_interval_ms, self.election_timeout_min_ms, self.election_timeout_max_ms);
        check(
            heartbeat_ms >= HEARTBEAT_INTERVAL_MS_LEAST,
            format!("--heartbeat-interval-ms must be at least {HEARTBEAT_INTERVAL_MS_LEAST}, got {heartbeat_ms}"),
        )?;
        check(
            min_ms / 2 >= heartbeat_ms,
            format!(
                "--election-timeout-min-ms must be at least twice --heartbeat-interval-ms ({heartbeat_ms}), got {min_ms}"
            ),
        )?;
        check(
            max_ms > min_ms,
            format!(
                "--election-timeout-max-ms must be greater than --election-timeout-min-ms ({min_ms}), got {max_ms}"
            ),
        )?;
        check(
            max_ms <= ELECTION_TIMEOUT_MAX_MS_LIMIT,
            format!("--election-timeout-max-ms must be at most {ELECTION_TIMEOUT_MAX_MS_LIMIT}, got {max_ms}"),
        )?;
        check(self.snapshot_entries > 0, "--snapshot-entries must be at least 1, got 0".into())?;
        check(
            self.snapshot_bytes >= SNAPSHOT_BYTES_LEAST,
            format!("--snapshot-bytes must be at least {SNAPSHOT_BYTES_LEAST} (1 MiB), got {}", self.snapshot_bytes),
        )?;
        check(
            self.quota_bytes >= QUOTA_BYTES_LEAST,
            format!("--quota-bytes must be at least {QUOTA_BYTES_LEAST} (1 MiB), got {}", self.quota_bytes),
        )?;
        let ratio = self.otlp_sample_ratio;
        check((0.0..=1.0).contains(&ratio), format!("--otlp-sample-ratio must be from 0 to 1, got {ratio}"))?;
        let ranges = [
            ("--max-request-bytes", self.max_request_bytes, REQUEST_BYTES_MAX_LEAST..=REQUEST_BYTES_MAX_LIMIT),
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
            check(range.contains(&value), format!("{flag} must be from {least} to {most}, got {value}"))?;
        }
        Ok(())
    }

    /// The settings of openraft.
    pub(crate) fn raft_config(&self) -> openraft::Config {
        openraft::Config {
            cluster_name: "raft-key-value".into(),
            heartbeat_interval: self.heartbeat_interval_ms,
            election_timeout_min: self.election_timeout_min_ms,
            election_timeout_max: self.election_timeout_max_ms,
            install_snapshot_timeout: SNAPSHOT_DEADLINE.as_millis() as u64,
            max_payload_entries: APPEND_ENTRIES_MAX,
            max_append_entries: Some(APPEND_ENTRIES_MAX),
            snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(self.snapshot_entries),
            // `compaction` purges, by entries and by bytes. openraft must not decide as well: it asserts that its
            // purge target never moves backwards.
            max_in_snapshot_log_to_keep: u64::MAX,
            // Until the membership names this node with its own data directory: see `server`.
            enable_elect: false,
            // A node that was cut off must not force an election when it returns.
            enable_pre_vote: Some(true),
            // A leader that lost its followers notices it without a write (openraft #2080).
            quorum_loss_probe_interval: Some(2 * self.election_timeout_max_ms),
            // A leader that restarts must not continue in its old term: it may have sent entries before they were on
            // its own disk, and would reuse their log ids for other entries. Followers that acknowledged the former
            // ones would never notice.
            enable_leader_restore: Some(false),
            // A follower whose log is shorter than before has lost acknowledged data.
            allow_log_reversion: Some(false),
            ..openraft::Config::default()
        }
    }
}

/// Checks an `Idempotency-Key`, for clients and nodes alike.
///
/// # Errors
///
/// A message that says what the key must be.
pub fn check_idempotency_key(key: &str) -> Result<(), String> {
    // A header may also contain tabs.
    let is_printable = key.bytes().all(|byte| matches!(byte, b' ' | b'\t') || byte.is_ascii_graphic());
    if is_printable && (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len()) {
        return Ok(());
    }
    Err(format!("an Idempotency-Key must be 1 to {IDEMPOTENCY_KEY_BYTES_MAX} printable ASCII characters"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Config {
        let base = ["raft-key-value", "--id", "1", "--http-addr", "127.0.0.1:21001"];
        Config::try_parse_from(base.iter().chain(arguments)).unwrap()
    }

    /// The defaults are valid, for this program and for openraft, and are the same for the command line and the
    /// library.
    #[test]
    fn defaults_are_valid() {
        let config = Config::new(1, "127.0.0.1:21001");
        assert_eq!(format!("{config:?}"), format!("{:?}", parse(&[])));
        config.validate().unwrap();
        config.raft_config().validate().unwrap();
    }

    /// Invalid settings are rejected in one line that names the flag.
    #[test]
    fn bad_settings_are_named() {
        let rows: &[(&[&str], &str)] = &[
            (&["--heartbeat-interval-ms", "5"], "--heartbeat-interval-ms"),
            (&["--election-timeout-min-ms", "150"], "--election-timeout-min-ms"),
            (&["--election-timeout-max-ms", "300"], "--election-timeout-max-ms"),
            (&["--election-timeout-max-ms", "60001"], "--election-timeout-max-ms"),
            (&["--snapshot-entries", "0"], "--snapshot-entries"),
            (&["--snapshot-bytes", "1048575"], "--snapshot-bytes"),
            (&["--quota-bytes", "1048575"], "--quota-bytes"),
            (&["--max-request-bytes", "1023"], "--max-request-bytes"),
            (&["--max-request-bytes", "999999999"], "--max-request-bytes"),
            (&["--max-key-bytes", "0"], "--max-key-bytes"),
            (&["--max-value-bytes", "99999999"], "--max-value-bytes"),
            (&["--max-writes-waiting", "0"], "--max-writes-waiting"),
            (&["--tls-cert", "a"], "--tls-key"),
            (&["--tls-key", "a"], "--tls-cert"),
            (&["--tls-cert", "a", "--tls-key", "a"], "--tls-ca"),
            (&["--tls-client-auth"], "--tls-client-auth"),
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
}
