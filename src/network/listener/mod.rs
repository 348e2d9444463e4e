//! The HTTP server on its listeners: admission, concurrency limits and load shedding.

pub(super) mod admission;
pub(super) mod admission_queue;
mod chunks;
pub(super) mod connection;
pub(super) mod connection_limits;
mod connection_state;
mod head;
mod idle_reaping;
pub(crate) mod intake;
mod load_shedding;
pub(super) mod slices;

use std::future;
use std::io;
use std::net::{SocketAddr, TcpListener};

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
use super::browser::Browsers;
use super::cluster_header;
use super::raft_thread::{Arrivals, RaftThread};
use super::routes;
use super::worker::Worker;
use crate::app::ExampleApp;
use crate::config::{
    CLIENTS_A_RESERVED_CONNECTION, CLIENTS_MAX, DISCONNECT_DEADLINE, FILES_RESERVED, KEEP_ALIVE, NODE_CONNECTIONS_MIN,
    REQUEST_HEAD_DEADLINE, SHUTDOWN_DEADLINE,
};

/// Serves clients on `http_threads` threads, and other nodes on Raft's.
///
/// What a connection is for is known from its first bytes. One on which another node sends RPCs moves to
/// [`RaftThread`], so that heartbeats never wait for what clients do.
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
            let (stopping, arrivals) = (stopping.clone(), arrivals.clone());
            let body_bytes_max = app.limits.request_bytes;
            fn_service(move |stream: TcpStream| {
                // An answer is written at once: waiting for more would only delay it.
                let _ = stream.set_nodelay(true);
                let peer = stream.peer_addr().ok();
                let state = worker.connections.accept(&worker.queue);
                let begun = begin(
                    Connection::new(stream, state, body_bytes_max).in_slices(&worker.slices),
                    stopping.clone(),
                    arrivals.clone(),
                );
                async move { Ok((begun.await?, Protocol::Http1, peer)) }
            })
            .and_then(http)
        })?;
    }
    Ok(server.run())
}

/// What serves the requests of a connection.
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
            // An error means that the node is gone, which is a reason to stop too.
            async move { drop(stopping.wait_for(|stopping| *stopping).await) }
        })
        .finish(routes)
}

/// Waits for the first request of a connection, and for its turn. So the time that the HTTP
/// library gives a client for the head of it is not spent in the queue.
///
/// Clients keep connections for later that they opened for nothing. One that has not been used
/// yet is like any other that is idle: it may be so for as long, and is closed without a word. A
/// 408 that crosses a request would be taken for its answer.
async fn begin(
    mut connection: Connection,
    mut stopping: watch::Receiver<bool>,
    arrivals: Arrivals,
) -> Result<Connection, DispatchError> {
    let state = connection.state().clone();
    let kind = loop {
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => return Err(DispatchError::DisconnectTimeout),
            kind = future::poll_fn(|context| connection.poll_first(context)) => break kind?,
            () = future::poll_fn(|context| state.poll_let_go(context, false)) => {}
            () = tokio::time::sleep(KEEP_ALIVE) => {}
        }
        // After the process stood still, a timer may be heard before what has come meanwhile.
        if state.is_leaving() || connection.has_nothing_to_do() {
            return Err(DispatchError::DisconnectTimeout);
        }
        state.stay();
        // The runtime has not heard yet of what has come.
        tokio::task::yield_now().await;
    };
    if kind == Kind::Rpc {
        let (stream, first) = connection.into_parts();
        arrivals.hand_over(stream, &first);
        return Err(DispatchError::DisconnectTimeout);
    }
    tokio::select! {
        biased;
        _ = stopping.wait_for(|stopping| *stopping) => Err(DispatchError::DisconnectTimeout),
        () = future::poll_fn(|context| state.poll_turn(context, |_| kind)) => Ok(connection),
    }
}

/// As many clients as the system lets this process have connections of besides its files.
///
/// Each connection takes a file descriptor; without one for its log a node would have to stop.
pub(super) fn clients_max() -> usize {
    let limit = getrlimit(Resource::Nofile);
    // Commonly 1,024 unless asked for more, which any process may up to the hard limit.
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let files = if raised.is_ok() { limit.maximum } else { limit.current };
    let files = files.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX));
    clients_of(files)
}

/// Of so many open files. A client that writes and reads over a connection to a follower takes two more, from
/// that to the leader; two may be left idle that led to a former leader; and a part of one is reserved
/// for each, on the threads for clients and on Raft's (see [`Shares`]).
fn clients_of(files: usize) -> usize {
    let files_a_client = 5 * CLIENTS_A_RESERVED_CONNECTION + 2;
    let files = files.saturating_sub(FILES_RESERVED + NODE_CONNECTIONS_MIN).min(CLIENTS_MAX * 6);
    (files * CLIENTS_A_RESERVED_CONNECTION / files_a_client).clamp(16, CLIENTS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection from a client leaves files for those to the leader, for idle ones, for other nodes,
    /// and for the node itself.
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
