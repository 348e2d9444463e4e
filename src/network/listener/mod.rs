//! The HTTP server on its listeners: admission, concurrency limits and load shedding.

pub(super) mod admission;
pub(super) mod admission_queue;
mod chunks;
pub(super) mod connection;
pub(super) mod connection_limits;
pub(super) mod connection_state;
pub(crate) mod handshake;
mod head;
mod idle_reaping;
pub(crate) mod intake;
mod load_shedding;
pub(super) mod slices;
pub(crate) mod stream;

use std::cell::RefCell;
use std::future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use actix_http::error::DispatchError;
use actix_http::{Extensions, HttpService, Protocol};
use actix_server::Server;
use actix_service::{IntoServiceFactory, ServiceFactory, ServiceFactoryExt, apply_fn_factory, fn_service, map_config};
use actix_web::dev::AppConfig;
use actix_web::{App, web};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpStream;
use tokio::sync::watch;

use self::admission_queue::Kind;
use self::connection::Connection;
use self::connection_limits::Shares;
use self::connection_state::ConnectionState;
use self::stream::Stream;
use super::browser::Browsers;
use super::cluster_header;
use super::raft_thread::{Arrivals, RaftThread};
use super::routes;
use super::worker::Worker;
use crate::app::ExampleApp;
use crate::config::{
    CLIENTS_MAX, CLIENTS_PER_RESERVED_CONNECTION, DISCONNECT_DEADLINE, FILES_RESERVED, KEEP_ALIVE,
    NODE_CONNECTIONS_MIN, REQUEST_HEAD_DEADLINE, SHUTDOWN_DEADLINE,
};
use crate::tls::Tls;

/// Serves clients on `http_threads` threads, and other nodes on Raft's thread.
///
/// The first bytes of a connection tell its use. A connection on which another node sends RPCs moves to [`RaftThread`],
/// so that heartbeats never wait for clients' work.
///
/// Once `stopping` is true, connections are closed as they become idle.
pub fn serve_http(
    listeners: Vec<TcpListener>,
    app: web::Data<ExampleApp>,
    browsers: Browsers,
    http_threads: usize,
    raft_thread: &RaftThread,
    stopping: watch::Receiver<bool>,
) -> io::Result<Server> {
    let shares = Shares::of_clients(clients_max().div_ceil(http_threads));
    let mut server = Server::build()
        .workers(http_threads)
        .max_concurrent_connections(shares.total)
        .shutdown_timeout(SHUTDOWN_DEADLINE.as_secs())
        .disable_signals();
    for listener in listeners {
        let (app, browsers) = (app.clone(), browsers.clone());
        let (stopping, arrivals) = (stopping.clone(), raft_thread.arrivals());
        server = server.listen("http", listener, move || {
            let worker = Worker::of_this_thread(&app, shares);
            let http = http_service(&app, &browsers, stopping.clone());
            let (app, stopping, arrivals) = (app.clone(), stopping.clone(), arrivals.clone());
            let body_bytes_max = app.limits.request_bytes;
            fn_service(move |stream: TcpStream| {
                // Responses are written at once: waiting for more bytes would only delay them.
                let _ = stream.set_nodelay(true);
                let peer = stream.peer_addr().ok();
                let state = worker.connections.accept(&worker.queue);
                let (app, worker) = (app.clone(), worker.clone());
                let (stopping, arrivals) = (stopping.clone(), arrivals.clone());
                async move {
                    let stream = match &app.tls {
                        None => Stream::Plain(stream),
                        // Boxed, so that connections without TLS take no memory for it.
                        Some(tls) => Box::pin(encrypted(&app, tls, &worker, &state, stream, stopping.clone())).await?,
                    };
                    let connection = Connection::new(stream, state, body_bytes_max).in_slices(&worker.slices);
                    Ok((begin(connection, stopping, arrivals).await?, Protocol::Http1, peer))
                }
            })
            .and_then(http)
        })?;
    }
    Ok(server.run())
}

/// The service for the requests of a connection.
pub(super) fn http_service(
    app: &web::Data<ExampleApp>,
    browsers: &Browsers,
    stopping: watch::Receiver<bool>,
) -> impl ServiceFactory<
    (Connection, Protocol, Option<SocketAddr>),
    Config = (),
    Response = (),
    Error = DispatchError,
    InitError = (),
> + use<> {
    let routes = App::new().app_data(app.clone()).configure(routes);
    let routes = routes.into_factory().map_err(|error: actix_web::Error| error.error_response());
    let routes = map_config(routes, |()| AppConfig::default());
    let for_cluster = app.clone();
    let routes =
        apply_fn_factory(routes, move |request, routes: &_| cluster_header::pass(&for_cluster, request, routes));
    let (app, browsers) = (app.clone(), browsers.clone());
    let routes = apply_fn_factory(routes, move |request, routes: &_| {
        cluster_header::named(app.clone(), admission::pass(&app, &browsers, request, routes))
    });
    HttpService::build()
        .keep_alive(KEEP_ALIVE)
        .client_request_timeout(REQUEST_HEAD_DEADLINE)
        .client_disconnect_timeout(DISCONNECT_DEADLINE)
        .on_connect_ext(|connection: &Connection, extensions: &mut Extensions| {
            connection.share_with_requests(extensions);
        })
        .graceful_shutdown_signal(move || {
            let mut stopping = stopping.clone();
            // An error means that the node has ended, which is a reason to stop too.
            async move { drop(stopping.wait_for(|stopping| *stopping).await) }
        })
        .finish(routes)
}

/// Makes the TLS handshake of a connection.
async fn encrypted(
    app: &ExampleApp,
    tls: &Arc<Tls>,
    worker: &Worker,
    state: &Rc<ConnectionState>,
    stream: TcpStream,
    mut stopping: watch::Receiver<bool>,
) -> Result<Stream, DispatchError> {
    let first = |context: &mut Context<'_>| handshake::poll_begins_tls(&stream, context);
    let is_quiet = || Stream::is_quiet(&stream);
    match first_bytes(state, &mut stopping, first, is_quiet).await? {
        Some(true) => {}
        Some(false) => {
            state.observer().meters.tls_handshakes_failed.increment();
            handshake::reject_plain(stream).await;
            return Err(DispatchError::DisconnectTimeout);
        }
        None => return Err(DispatchError::DisconnectTimeout),
    }
    let shaken = tokio::select! {
        biased;
        _ = stopping.wait_for(|stopping| *stopping) => None,
        shaken = handshake::shake_hands(app, tls, &worker.handshakes, state, stream) => shaken,
    };
    let Some((stream, caller)) = shaken else { return Err(DispatchError::DisconnectTimeout) };
    state.set_caller(caller);
    Ok(stream)
}

/// Waits for the first request of a connection, and until it is admitted. So the time that the HTTP library allows for
/// the head does not pass in the admission queue.
///
/// Clients open connections that they use later, or never. A connection without a first request counts as idle, with
/// the same limit, and is closed without a response: a 408 that crosses a request would be taken for its response.
async fn begin(
    mut connection: Connection,
    mut stopping: watch::Receiver<bool>,
    arrivals: Arrivals,
) -> Result<Connection, DispatchError> {
    let state = connection.state().clone();
    let shared = RefCell::new(&mut connection);
    let first = |context: &mut Context<'_>| shared.borrow_mut().poll_first(context);
    let is_quiet = || shared.borrow().has_nothing_to_do();
    let kind = first_bytes(&state, &mut stopping, first, is_quiet).await?;
    if kind == Kind::Rpc {
        let (stream, first) = connection.into_parts();
        arrivals.hand_over(stream, state.caller().cloned(), &first);
        return Err(DispatchError::DisconnectTimeout);
    }
    tokio::select! {
        biased;
        _ = stopping.wait_for(|stopping| *stopping) => Err(DispatchError::DisconnectTimeout),
        () = future::poll_fn(|context| state.poll_turn(context, |_| kind)) => Ok(connection),
    }
}

/// Waits for the first bytes of a connection, which is idle until then. `is_quiet` tells whether none have arrived.
async fn first_bytes<T>(
    state: &ConnectionState,
    stopping: &mut watch::Receiver<bool>,
    mut poll_first: impl FnMut(&mut Context<'_>) -> Poll<io::Result<T>>,
    is_quiet: impl Fn() -> bool,
) -> Result<T, DispatchError> {
    loop {
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => return Err(DispatchError::DisconnectTimeout),
            first = future::poll_fn(&mut poll_first) => return Ok(first?),
            () = future::poll_fn(|context| state.poll_closing(context, false)) => {}
            () = tokio::time::sleep(KEEP_ALIVE) => {}
        }
        // After the process was suspended, the timer may fire before the bytes that arrived meanwhile are seen.
        if state.is_leaving() || is_quiet() {
            return Err(DispatchError::DisconnectTimeout);
        }
        state.stay();
        // The runtime has not seen the bytes that have arrived.
        tokio::task::yield_now().await;
    }
}

/// How many clients the system's limit of open files allows, besides the node's own files.
///
/// Each connection takes a file descriptor. A node without one for its log would have to stop.
pub(super) fn clients_max() -> usize {
    let limit = getrlimit(Resource::Nofile);
    // The soft limit is commonly 1,024; any process may raise it to the hard limit.
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let files = if raised.is_ok() { limit.maximum } else { limit.current };
    let files = files.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX));
    clients_of(files)
}

/// How many clients so many open files allow. A client that writes and reads over a connection to a follower takes two
/// more files, from the follower to the leader. Two idle connections to a former leader may remain, and a fraction of
/// one is reserved for each client, on the threads for clients and on Raft's (see [`Shares`]).
fn clients_of(files: usize) -> usize {
    let files_a_client = 5 * CLIENTS_PER_RESERVED_CONNECTION + 2;
    let files = files.saturating_sub(FILES_RESERVED + NODE_CONNECTIONS_MIN).min(CLIENTS_MAX * 6);
    (files * CLIENTS_PER_RESERVED_CONNECTION / files_a_client).clamp(16, CLIENTS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The clients' connections leave files for connections to the leader, idle connections, other nodes, and the node
    /// itself.
    #[test]
    fn connections_leave_files() {
        for (files, clients) in [(0, 16), (256, 17), (1024, 157), (4096, 715), (1 << 20, CLIENTS_MAX)] {
            assert_eq!(clients_of(files), clients, "{files}");
            let Shares { total, clients, .. } = Shares::of_clients(clients);
            let nodes = Shares::of_nodes(clients).total;
            assert!(files < 256 || FILES_RESERVED + 4 * clients + total + nodes <= files + 2, "{files}");
        }
    }
}
