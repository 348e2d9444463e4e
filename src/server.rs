//! A node from start to stop.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::dev::ServerHandle;
use actix_web::web;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::Fatal;
use openraft::metrics::RaftMetrics;
use rustix::io::Errno;
use tokio::sync::watch;

use crate::access::AccessChange;
use crate::app::{ExampleApp, Failure, Role, may_stand};
use crate::auth::Auth;
use crate::compaction;
use crate::config::{
    CLOCK_CHECK_INTERVAL, Config, ConfigError, EXPIRY_INTERVAL, PORT_ATTEMPTS_MAX, REQUIRE_TOKENS_INTERVAL,
    SELF_CHECK_INTERVAL, SHUTDOWN_DEADLINE, STARTING_AFTER,
};
use crate::level::Level;
use crate::network::browser::Browsers;
use crate::network::consensus::propose;
use crate::network::joining;
use crate::network::lag;
use crate::network::leader_loss;
use crate::network::levels;
use crate::network::listener::serve_http;
use crate::network::raft_network_impl::ExampleNetworkFactory;
use crate::network::raft_thread::RaftThread;
use crate::network::starting::Starting;
use crate::network::{removal, transfer};
use crate::operation::Operation;
use crate::peers::Peers;
use crate::secret::Secret;
use crate::store::state_machine::access::AccessMode;
use crate::store::{ExampleRaft, ExampleStateMachine, ExampleStore, StoreError};
use crate::telemetry::traces::Traces;
use crate::tls::Tls;
use crate::types::TypeConfig;

/// Why a node did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The settings are invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The node cannot listen on the address.
    #[error("cannot listen on {addr}: {source}; {}", listen_advice(source))]
    Listen {
        /// The address.
        addr: String,
        /// The error of the system.
        source: io::Error,
    },
    /// The data directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The HTTP server failed.
    #[error("the HTTP server failed: {0}")]
    Http(io::Error),
    /// The thread that sends traces did not start.
    #[error("cannot start sending traces to --otlp-endpoint: {0}")]
    Traces(io::Error),
    /// The disk failed while the node was running.
    #[error("the disk failed, and the node stopped without acknowledging any more requests: {0}")]
    Storage(String),
    /// A background task that the node needs ended.
    #[error("the task `{0}` ended unexpectedly (see the log); start the node again to recover")]
    Task(&'static str),
    /// Other machines could reach this node, and nothing would protect it.
    #[error("{0}")]
    Unprotected(ConfigError),
    /// `--bootstrap` would found a second cluster.
    #[error("{0}")]
    SecondCluster(String),
    /// The root token cannot be used, or is missing.
    #[error("{0}")]
    RootToken(String),
    /// Raft stopped by itself.
    #[error("Raft stopped: {0}; start the node again to recover")]
    Raft(String),
}

/// What to do if the node cannot listen on an address.
fn listen_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "stop the process that uses it, or choose another --http-addr",
        io::ErrorKind::PermissionDenied => "ports below 1024 may be reserved; choose another --http-addr",
        _ if is_not_here(error) => {
            "it is not an address of this machine: --http-addr is where the node listens, and --advertise-addr is what \
             other nodes dial"
        }
        _ => "choose another --http-addr",
    }
}

impl ServeError {
    /// The node cannot listen on the address in `config`.
    pub fn listen(config: &Config, source: io::Error) -> Self {
        ServeError::Listen { addr: config.http_addr.clone(), source }
    }

    fn listen_on(config: &Config, addr: SocketAddr, source: io::Error) -> Self {
        let named = match addr.to_string() {
            addr if addr == config.http_addr => addr,
            addr => format!("{} ({addr})", config.http_addr),
        };
        ServeError::Listen { addr: named, source }
    }

    /// The exit code of a process that ends with this error, after `sysexits.h`.
    pub fn exit_code(&self) -> u8 {
        match self {
            ServeError::Config(_) => 2,
            ServeError::Store(error) => error.exit_code(),
            ServeError::Listen { .. } => 69,
            ServeError::Raft(_) | ServeError::Http(_) | ServeError::Traces(_) | ServeError::Task(_) => 70,
            ServeError::Storage(_) => 74,
            ServeError::Unprotected(_) | ServeError::SecondCluster(_) | ServeError::RootToken(_) => 78,
        }
    }
}

impl From<Fatal<TypeConfig>> for ServeError {
    fn from(fatal: Fatal<TypeConfig>) -> Self {
        match fatal {
            Fatal::StorageError(error) => ServeError::Storage(error.to_string()),
            Fatal::Panicked | Fatal::Stopped => ServeError::Raft(fatal.to_string()),
        }
    }
}

fn failure_error(failure: Failure, store: &ExampleStore) -> ServeError {
    match failure {
        Failure::Disk(why) => ServeError::Storage(why),
        Failure::OlderCopy(found) => StoreError::OlderCopy { path: store.directory().to_owned(), found }.into(),
        Failure::OtherEntry(found) => StoreError::OtherEntry { path: store.directory().to_owned(), found }.into(),
        Failure::MemoryChanged => StoreError::MemoryChanged.into(),
        Failure::Task(task) => ServeError::Task(task),
        Failure::SecondCluster(why) => ServeError::SecondCluster(why),
        Failure::NoRootToken => no_root_token(),
    }
}

/// Listens on every address of `--http-addr`.
///
/// An address that this machine does not have, such as `::1` without IPv6, is omitted with a warning unless it is the
/// only one. With port 0, all listeners have the port that the system chooses for the first.
///
/// # Errors
///
/// [`ServeError::Config`] if there is no address, [`ServeError::Unprotected`] if other machines could reach a node
/// with neither TLS nor tokens and `--insecure` is not set, [`ServeError::Listen`] if an address is in use or all are unavailable.
pub fn listen(config: &Config) -> Result<Vec<TcpListener>, ServeError> {
    let addrs = config.socket_addrs()?;
    config.check_protection(&addrs).map_err(ServeError::Unprotected)?;
    let mut attempts = 1..=PORT_ATTEMPTS_MAX;
    loop {
        let _ = attempts.next();
        match listen_on(&addrs) {
            Ok(listeners) => return Ok(listeners),
            // The port that the system chose for the first address may be in use on another.
            Err((addr, source))
                if source.kind() == io::ErrorKind::AddrInUse && addr.port() == 0 && !attempts.is_empty() => {}
            Err((addr, source)) => return Err(ServeError::listen_on(config, addr, source)),
        }
    }
}

/// Listens on the addresses that this machine has. An error names the address as it was given.
fn listen_on(addrs: &[SocketAddr]) -> Result<Vec<TcpListener>, (SocketAddr, io::Error)> {
    let mut listeners: Vec<TcpListener> = Vec::new();
    let mut left_out = Vec::new();
    for addr in addrs {
        let mut wanted = *addr;
        if let (0, Some(first)) = (addr.port(), listeners.first()) {
            wanted.set_port(first.local_addr().map_err(|error| (*addr, error))?.port());
        }
        match TcpListener::bind(wanted) {
            Ok(listener) => listeners.push(listener),
            Err(error) if is_not_here(&error) => left_out.push((*addr, error)),
            Err(error) => return Err((*addr, error)),
        }
    }
    if listeners.is_empty()
        && let Some(left_out) = left_out.pop()
    {
        return Err(left_out);
    }
    for (addr, error) in left_out {
        tracing::warn!("not listening on {addr}: {error}");
    }
    Ok(listeners)
}

/// Whether this machine does not have the address, or its family.
fn is_not_here(error: &io::Error) -> bool {
    let unsupported = Errno::AFNOSUPPORT.raw_os_error();
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(unsupported)
}

/// Runs a node on `listener` until `shutdown` completes or the node fails.
///
/// On shutdown it stops accepting connections, completes the requests under way (for at most 5 s), syncs its data, and
/// returns.
///
/// # Errors
///
/// See [`ServeError`]. After an error no part of the node is left running.
pub async fn serve(
    listener: TcpListener,
    config: Config,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    serve_on(vec![listener], config, shutdown).await
}

/// Like [`serve`], on several listeners, such as those of [`listen`].
///
/// # Errors
///
/// See [`ServeError`]. After an error no part of the node is left running.
pub async fn serve_on(
    listeners: Vec<TcpListener>,
    config: Config,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    config.validate()?;
    let local_addrs: Result<Vec<SocketAddr>, io::Error> = listeners.iter().map(TcpListener::local_addr).collect();
    let local_addrs = local_addrs.map_err(|source| ServeError::listen(&config, source))?;
    let Some(local_addr) = local_addrs.first() else {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "no listener is given");
        return Err(ServeError::listen(&config, source));
    };
    let advertised = match &config.advertise_addr {
        Some(addr) => addr.clone(),
        // With port 0 the system chose the port, and other nodes must dial it.
        None if config.http_addr.ends_with(":0") => local_addr.to_string(),
        None => config.http_addr.clone(),
    };
    config.check_protection(&local_addrs).map_err(ServeError::Unprotected)?;
    if config.is_open_to_all(&local_addrs) {
        tracing::warn!("--insecure: everyone who can reach this node can read, write, and act as a node");
    }
    let tls = Tls::of(&config)?;
    let root = config.root_token_file.as_deref().map(Secret::read_root).transpose();
    let root = root.map_err(|why| ServeError::RootToken(format!("--root-token-file: {why}")))?;
    let peers = Arc::new(Peers::with_proofs(root.as_ref(), config.id, tls.is_some()));
    // First: if it fails, there is nothing to stop.
    let traces = Traces::start(&config).map_err(ServeError::Traces)?.map(Arc::new);
    let opening = open(&config, &peers, tls.clone());
    let (store, at_start, raft) = while_starting(&listeners, tls.as_ref(), opening).await?;
    let auth = Auth::new(&store, root.as_ref(), config.public_metrics);
    let app = ExampleApp::new(advertised, raft.clone(), store.clone(), peers, traces.clone(), tls, auth, &config);
    let app = web::Data::new(app);
    let (stopping, stopping_rx) = watch::channel(false);
    let browsers = Browsers::new(&config);
    let raft_thread = RaftThread::start(app.clone(), browsers.clone()).map_err(ServeError::Http)?;
    // Before Raft has begun, its metrics are empty, and clients would take them for this node's state. An error means
    // that Raft has ended, which is noticed below.
    let _ = raft.with_raft_state(|_| ()).await;
    let http = serve_http(listeners, app.clone(), browsers, config.http_threads, &raft_thread, stopping_rx)
        .map_err(ServeError::Http)?;
    let http_handle = http.handle();
    let recovery = tokio::spawn(recover(app.clone(), at_start));
    let compaction_task = tokio::spawn(app.essential("compaction").run(compaction::run(app.clone(), config.clone())));
    let expiry = tokio::spawn(app.essential("expiry").run(expire(app.clone())));
    let clock_record = tokio::spawn(app.essential("clock record").run(record_clock(app.clone())));
    let self_check = tokio::spawn(app.essential("self-check").run(announce_hashes(app.clone())));
    let leader_watch = tokio::spawn(app.essential("leader").run(leader_loss::watch_leader(app.clone())));
    let require_tokens = tokio::spawn(require_tokens(app.clone()));
    let joining = tokio::spawn(join(app.clone(), config.clone()));
    let lag_watch = tokio::spawn(app.essential("lag").run(lag::watch(app.clone())));
    let levels = tokio::spawn(app.essential("levels").run(levels::raise(app.clone())));
    let removal_watch = tokio::spawn(app.essential("removal").run(removal::watch(app.clone())));
    let tls_watch = app.tls.clone().map(|tls| tokio::spawn(app.essential("TLS files").run(tls.watch())));
    let address_watch = tokio::spawn(app.essential("address").run(watch_address(app.clone(), config.clone())));
    let listens_on = local_addrs.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(" and ");
    tracing::info!(
        "node {} listening on {listens_on} (advertised as {}), data in `{}`",
        config.id,
        app.addr,
        store.directory().display()
    );

    let http = tokio::spawn(http);
    let result = tokio::select! {
        () = shutdown => Ok(()),
        fatal = core_stopped(&raft, &app) => Err(state_error(&store).unwrap_or_else(|| ServeError::from(fatal))),
        failure = app.failed() => Err(failure_error(failure, &store)),
        result = http => match result {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(ServeError::Http(error)),
            Err(error) => Err(ServeError::Http(io::Error::other(error))),
        },
    };
    recovery.abort();
    compaction_task.abort();
    expiry.abort();
    clock_record.abort();
    self_check.abort();
    leader_watch.abort();
    require_tokens.abort();
    joining.abort();
    lag_watch.abort();
    levels.abort();
    address_watch.abort();
    removal_watch.abort();
    tls_watch.inspect(|watch| watch.abort());
    let result = match result {
        Ok(()) => {
            // A load balancer should send no more requests from now on.
            app.set_will_stop();
            // First: until another node leads, requests wait, and then go there.
            transfer::hand_over(&app).await;
            app.set_stopping();
            // Idle connections are closed. Requests under way get their responses first.
            let _ = stopping.send(true);
            stop(&http_handle, &raft, &store).await
        }
        Err(error) => {
            // No half-alive node: requests under way are cut off, with an unknown outcome.
            http_handle.stop(false).await;
            Err(error)
        }
    };
    raft_thread.end().await;
    if let Some(traces) = traces {
        // It blocks for a bounded time.
        let _ = tokio::task::spawn_blocking(move || traces.stop()).await;
    }
    result
}

/// Completes `opening`. If it takes long, answers requests meanwhile.
async fn while_starting<T>(
    listeners: &[TcpListener],
    tls: Option<&Arc<Tls>>,
    opening: impl Future<Output = Result<T, ServeError>>,
) -> Result<T, ServeError> {
    let mut opening = std::pin::pin!(opening);
    // Most starts are quick, and then clients that connect early need not retry.
    if let Ok(opened) = tokio::time::timeout(STARTING_AFTER, &mut opening).await {
        return opened;
    }
    tracing::info!("opening the data takes long: until it is open, requests get 503");
    let starting = Starting::begin(listeners, tls).map_err(ServeError::Http)?;
    let opened = opening.await;
    starting.end().await;
    opened
}

/// Opens the data directory, and builds Raft, which applies the entries that are known to be committed.
async fn open(
    config: &Config,
    peers: &Arc<Peers>,
    tls: Option<Arc<Tls>>,
) -> Result<(Arc<ExampleStore>, AtStart, ExampleRaft), ServeError> {
    let store = open_store(config).await?;
    let at_start = AtStart::of(&store).map_err(|error| ServeError::Storage(error.to_string()))?;
    check_root_token(&store, peers)?;
    let raft = build_raft(config, &store, peers, tls).await.map_err(|error| state_error(&store).unwrap_or(error))?;
    Ok((store, at_start, raft))
}

/// Rejects a start without TLS and the root token in a cluster that requires tokens: the node could not tell other nodes
/// from anyone else.
fn check_root_token(store: &ExampleStore, peers: &Peers) -> Result<(), ServeError> {
    if store.state_machine.access().mode() != AccessMode::Required || peers.proofs.can_tell_nodes() {
        return Ok(());
    }
    Err(no_root_token())
}

fn no_root_token() -> ServeError {
    ServeError::RootToken(
        "the cluster of this node requires tokens: start the node with --root-token-file, as its other nodes are, or with \
         TLS (or end the requirement with `raft-key-value auth disable`)"
            .to_owned(),
    )
}

async fn open_store(config: &Config) -> Result<Arc<ExampleStore>, ServeError> {
    let data_dir = config.data_dir.clone();
    let (id, sizes) = (config.id, config.log_sizes());
    let opened = tokio::task::spawn_blocking(move || ExampleStore::open_with(&data_dir, id, sizes)).await;
    let store = opened.map_err(|error| ServeError::Raft(format!("opening the data directory: {error}")))??;
    Ok(Arc::new(store))
}

/// Why the state cannot be trusted, if that ended Raft: only the state machine knows.
fn state_error(store: &ExampleStore) -> Option<ServeError> {
    store.state_machine.self_checks().take_failure().map(ServeError::Store)
}

async fn build_raft(
    config: &Config,
    store: &Arc<ExampleStore>,
    peers: &Arc<Peers>,
    tls: Option<Arc<Tls>>,
) -> Result<ExampleRaft, ServeError> {
    let raft_config = config
        .raft_config()
        .validate()
        .map_err(|error| ServeError::Raft(format!("the settings do not fit together: {error}")))?;
    let network = ExampleNetworkFactory::new(store.clone(), peers.clone(), tls);
    let log = store.log.clone();
    let state_machine = store.state_machine.clone();
    Ok(ExampleRaft::build(config.id, Arc::new(raft_config), network, log, state_machine).await?)
}

/// The contents of the log before Raft began.
#[derive(Clone, Copy)]
struct AtStart {
    /// Whether it had neither a vote nor an entry.
    pristine: bool,
    /// The last index of the log.
    last_index: Option<u64>,
}

impl AtStart {
    fn of(store: &ExampleStore) -> io::Result<Self> {
        Ok(AtStart { pristine: store.log.is_pristine()?, last_index: store.log.last_index()? })
    }

    /// Whether everything in the log at the start is either applied or known never to have been committed. (openraft's
    /// own wait is for the current end of the log, which may never come while there are writes. Before Raft has begun,
    /// its metrics are empty.)
    fn has_recovered(self, metrics: &RaftMetrics<TypeConfig>) -> bool {
        let needed = self.last_index.min(metrics.last_log_index);
        let committed = metrics.cluster_committed.map(|log_id| log_id.index);
        let applied = metrics.last_applied.map(|log_id| log_id.index);
        committed.is_some() && committed >= needed && applied >= needed
    }
}

/// Waits until the node has applied everything that it had acknowledged or shown before it was started.
async fn recover(app: web::Data<ExampleApp>, at_start: AtStart) {
    let has_recovered = |metrics: &RaftMetrics<TypeConfig>| at_start.has_recovered(metrics);
    let essential = app.essential("recovery");
    let wait = app.raft.wait(None);
    if at_start.pristine || wait.metrics(has_recovered, "the entries of the start are applied").await.is_ok() {
        app.set_recovered();
    }
    // Its work is complete. Or Raft has stopped, which is reported elsewhere.
    essential.fulfilled();
}

/// Forms or joins a cluster, if the settings say so.
async fn join(app: web::Data<ExampleApp>, config: Config) {
    let essential = app.essential("joining");
    joining::run(&app, &config).await;
    // Its work is complete.
    essential.fulfilled();
}

/// Logs each change of the leader, keeps elections to members, passes on their addresses, and completes once Raft has
/// stopped.
async fn core_stopped(raft: &ExampleRaft, app: &ExampleApp) -> Fatal<TypeConfig> {
    let elections = &app.peers.elections;
    let mut metrics = raft.server_metrics();
    let mut said = (0, None);
    loop {
        let (term, leader, may_stand, is_new) = {
            let metrics = metrics.borrow_watched();
            let members = metrics.membership_config.membership().nodes();
            app.peers.set_addresses(members.map(|(id, node)| (*id, node.incarnation, node.addr.clone())));
            // A voter that is alone sends no requests for votes. It may lead before it was seen as a candidate.
            if metrics.state == ServerState::Candidate || metrics.current_leader == Some(app.id) {
                elections.note_election(metrics.vote.leader_id.term);
            }
            let is_new = metrics.committed_membership_config.voter_ids().next().is_none();
            (metrics.vote.leader_id.term, metrics.current_leader, may_stand(&metrics, &app.store.identity()), is_new)
        };
        raft.runtime_config().elect(may_stand);
        if (term, leader) != said {
            said = (term, leader);
            match leader {
                Some(leader) => {
                    elections.leader_changes.increment();
                    tracing::info!("node {leader} leads in term {term}");
                }
                // The first election of a new cluster is no cause for concern.
                None if is_new => tracing::debug!("no leader is known in term {term}"),
                None => tracing::info!("no leader is known in term {term}"),
            }
        }
        if metrics.changed().await.is_err() {
            let running_state = raft.metrics().borrow_watched().running_state.clone();
            return running_state.err().unwrap_or(Fatal::Stopped);
        }
    }
}

/// As leader, deletes expired keys. On every node, frees states that listings no longer need, and takes back what slow
/// watches hold.
async fn expire(app: web::Data<ExampleApp>) {
    let mut interval = tokio::time::interval(EXPIRY_INTERVAL);
    loop {
        interval.tick().await;
        take_back(&app);
        let mut taken_back = Instant::now();
        // Each entry deletes a limited number of keys.
        while app.role() == Role::Leader {
            let now_ms = app.store.clock().leader_now_ms();
            let next_ms = app.store.state_machine.read(ExampleStateMachine::next_expiry_ms);
            if next_ms.is_none_or(|next_ms| next_ms > now_ms) {
                break;
            }
            // If it fails, another leader or the next attempt deletes them.
            if propose(&app, None, Operation::Expire, Duration::ZERO, None).await.is_err() {
                break;
            }
            // Keys may expire for as long as clients add some. Each call examines all watches.
            if taken_back.elapsed() >= EXPIRY_INTERVAL {
                take_back(&app);
                taken_back = Instant::now();
            }
        }
    }
}

/// Frees what listings and slow watches hold for too long, or too much.
fn take_back(app: &ExampleApp) {
    let (oldest, replaced_bytes) =
        app.store.state_machine.read(|machine| (machine.history.oldest(), machine.replaced_bytes()));
    let unused = app.store.state_machine.listings().take_unused(replaced_bytes);
    let too_slow = app.watches_held.take_back(oldest, replaced_bytes);
    if !unused.is_empty() || !too_slow.is_empty() {
        // Freeing a large map is slow.
        tokio::task::spawn_blocking(move || drop((unused, too_slow)));
    }
}

/// As leader with the root token, makes the cluster require tokens, unless an administrator has ended that.
///
/// Warns if this node has no root token although the cluster requires tokens, or has one although it does not.
async fn require_tokens(app: web::Data<ExampleApp>) {
    let mut interval = tokio::time::interval(REQUIRE_TOKENS_INTERVAL);
    let mut said = AccessMode::Open;
    let mut is_start = true;
    loop {
        interval.tick().await;
        let mode = app.auth.mode();
        // The entry may be in the log and not in the snapshot, so that it is applied only now.
        if is_start && app.recovered() {
            is_start = false;
            if mode == AccessMode::Required && !app.peers.proofs.can_tell_nodes() {
                app.set_no_root_token();
            }
        }
        match mode {
            // Before all members support tokens, this node alone requires the root token.
            AccessMode::Open
                if app.auth.has_root()
                    && app.role() == Role::Leader
                    && app.recovered()
                    && levels::level_of(&app) >= Level::TOKENS =>
            {
                let operation = Operation::Access(Arc::new(AccessChange::Require { required: true }));
                // If it fails, another leader or the next attempt does it.
                if propose(&app, None, operation, Duration::ZERO, None).await.is_ok() {
                    tracing::info!("the cluster requires tokens from now on");
                }
            }
            AccessMode::Required if said != mode && !app.peers.proofs.can_tell_nodes() => tracing::error!(
                "the cluster requires tokens, and this node was started without --root-token-file: it accepts requests of \
                 other nodes from anyone, and will not start again without the file"
            ),
            AccessMode::Disabled if said != mode && app.auth.has_root() => tracing::warn!(
                "requests to this cluster need no token, because an administrator has ended that; \
                 `raft-key-value auth enable` makes them need one again"
            ),
            _ => {}
        }
        said = mode;
    }
}

/// As leader, makes all nodes compare the hash of its state with theirs.
async fn announce_hashes(app: web::Data<ExampleApp>) {
    let mut interval = tokio::time::interval(SELF_CHECK_INTERVAL);
    loop {
        interval.tick().await;
        // Before the recovery, the log may already have such an entry.
        if app.role() != Role::Leader || !app.recovered() {
            continue;
        }
        let Some(own) = app.store.state_machine.self_checks().to_announce() else { continue };
        // If it fails, another leader or the next attempt proposes it. Proposing it twice does no harm.
        let operation = Operation::SelfCheck { index: own.index, hash: own.hash };
        if let Err(error) = propose(&app, None, operation, Duration::ZERO, None).await {
            tracing::debug!("the hash of the state at index {} was not proposed: {error}", own.index);
        }
    }
}

/// Records log time and the wall clock for the next start: when the wall clock was set, and every minute.
async fn record_clock(app: web::Data<ExampleApp>) {
    let mut interval = tokio::time::interval(CLOCK_CHECK_INTERVAL);
    let mut has_failed = false;
    loop {
        interval.tick().await;
        let Some(reading) = app.store.clock().reading() else { continue };
        if app.store.recorded_clock().is_some_and(|recorded| !reading.is_due_after(recorded)) {
            continue;
        }
        let store = app.store.clone();
        match tokio::task::spawn_blocking(move || store.record_clock(reading)).await {
            // No acknowledged write depends on this record.
            Ok(Err(error)) if !has_failed => {
                tracing::warn!(
                    "{error}: if all nodes stop now, the time until they run again may not count toward TTLs"
                );
                has_failed = true;
            }
            Ok(result) => has_failed = result.is_err(),
            Err(_) => {}
        }
    }
}

/// Warns if the membership has this node at another address than it advertises, once for each such address, and reports
/// the new one until a leader has committed it.
async fn watch_address(app: web::Data<ExampleApp>, config: Config) {
    let mut metrics = app.raft.server_metrics();
    let mut said = None;
    loop {
        let moved = app.moved();
        if moved != said {
            match &moved {
                Some(moved) => tracing::warn!("{moved}"),
                None => tracing::info!("the membership has node {} at {}, which it advertises", app.id, app.addr),
            }
            said = moved;
        }
        if app.moved().is_some() {
            joining::report_address(&app, &config).await;
            continue;
        }
        if metrics.changed().await.is_err() {
            // Raft has stopped, which is reported elsewhere.
            std::future::pending::<()>().await;
        }
    }
}

async fn stop(http: &ServerHandle, raft: &ExampleRaft, store: &ExampleStore) -> Result<(), ServeError> {
    tracing::info!("stopping: completing the requests under way");
    http.stop(true).await;
    // If the shutdown takes too long, Raft ends with its thread. Either way the log is flushed below, and reports a
    // failure.
    let _ = tokio::time::timeout(SHUTDOWN_DEADLINE, raft.shutdown()).await;
    store.log.flush().await.map_err(|error| ServeError::Storage(error.to_string()))?;
    if let Some(reading) = store.clock().reading()
        && let Err(error) = store.record_clock(reading)
    {
        tracing::warn!("{error}");
    }
    tracing::info!("stopped");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{LeaderId, LogId};

    /// A node listens on all addresses that the machine has, with one port. An address in use is an error that names
    /// it.
    ///
    /// Method: two loopback addresses and one reserved for documentation, in several orders, with port 0; then a port
    /// that is in use on one of them.
    #[test]
    fn all_addresses_are_listened_on() {
        let addr = |text: &str, port| SocketAddr::new(text.parse().unwrap(), port);
        let (one, two, foreign) = (addr("127.0.0.1", 0), addr("127.0.0.2", 0), addr("192.0.2.1", 0));
        for addrs in [[one, two, foreign], [foreign, two, one], [two, foreign, one]] {
            let listeners = listen_on(&addrs).unwrap();
            let local: Vec<SocketAddr> = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
            let expected: Vec<_> = addrs.iter().filter(|addr| **addr != foreign).map(SocketAddr::ip).collect();
            assert_eq!(local.iter().map(SocketAddr::ip).collect::<Vec<_>>(), expected);
            assert!(local.iter().all(|addr| addr.port() == local[0].port() && addr.port() > 0), "{local:?}");
        }
        let (named, error) = listen_on(&[foreign]).unwrap_err();
        assert_eq!((named, error.kind()), (foreign, io::ErrorKind::AddrNotAvailable));
        let taken = TcpListener::bind(two).unwrap().local_addr().unwrap();
        let holder = TcpListener::bind(taken).unwrap();
        let (named, error) = listen_on(&[addr("127.0.0.1", taken.port()), taken]).unwrap_err();
        assert_eq!((named, error.kind()), (taken, io::ErrorKind::AddrInUse), "{holder:?}");
    }

    /// A node has recovered when it has applied the entries that its log had at the start, or those that remain, and
    /// not before it knows the committed index of the cluster.
    #[test]
    fn recovery() {
        let at_start = AtStart { pristine: false, last_index: Some(5) };
        let mut metrics = RaftMetrics::<TypeConfig>::new_initial(1);
        assert!(!at_start.has_recovered(&metrics), "before Raft has begun");
        for (last, committed, applied, has_recovered) in [
            (5, None, None, false),
            (5, Some(4), Some(4), false),
            (5, Some(5), Some(4), false),
            (9, Some(5), Some(5), true),
            (4, Some(4), Some(4), true),
        ] {
            let log_id = |index| LogId { leader_id: LeaderId { term: 1, node_id: 1 }, index };
            metrics.last_log_index = Some(last);
            metrics.cluster_committed = committed.map(log_id);
            metrics.last_applied = applied.map(log_id);
            assert_eq!(at_start.has_recovered(&metrics), has_recovered, "{last} {committed:?} {applied:?}");
        }
    }
}
