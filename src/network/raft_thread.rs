//! The thread that runs Raft and serves the connections of other nodes.
//!
//! Of the clients' work, only proposed writes reach this thread. A step of Raft takes well below a millisecond, and a
//! late heartbeat causes an election.

use std::io;
use std::thread::JoinHandle;

use actix_http::Protocol;
use actix_service::{Service, ServiceFactory};
use actix_web::web;
use tokio::sync::{mpsc, watch};

use super::browser::Browsers;
use super::listener::connection::Connection;
use super::listener::connection_limits::Shares;
use super::listener::handshake::Caller;
use super::listener::stream::{Detached, Stream};
use super::listener::{clients_max, http_service};
use super::worker::Worker;
use crate::app::ExampleApp;
use crate::config::ARRIVALS_MAX;

/// The thread that runs Raft.
pub struct RaftThread {
    arrivals: Arrivals,
    ends: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

/// Hands connections of other nodes to Raft's thread.
#[derive(Clone)]
pub struct Arrivals(mpsc::Sender<Arrival>);

/// A connection, and the bytes that were read from it.
struct Arrival {
    stream: Detached,
    /// What the TLS handshake told of the other node, if there was one.
    caller: Option<Caller>,
    first: Box<[u8]>,
}

impl Arrivals {
    /// Has Raft's thread serve a connection. Closes it if too many wait.
    pub fn hand_over(&self, stream: Stream, caller: Option<Caller>, first: &[u8]) {
        // The sender gets no response, as if the connection had broken before the request.
        if let Ok(stream) = stream.detach() {
            let _ = self.0.try_send(Arrival { stream, caller, first: first.into() });
        }
    }
}

impl RaftThread {
    /// Starts Raft on a thread of its own.
    ///
    /// # Errors
    ///
    /// The system cannot start a thread.
    pub fn start(app: web::Data<ExampleApp>, browsers: Browsers) -> io::Result<Self> {
        let (arrivals, arriving) = mpsc::channel(ARRIVALS_MAX);
        let (ends, ending) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("raft".to_owned()).spawn(move || {
            let essential = app.essential("Raft's thread");
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, run(app, browsers, arriving, ending));
            essential.fulfilled();
        })?;
        Ok(RaftThread { arrivals: Arrivals(arrivals), ends, thread })
    }

    /// The handle that hands connections of other nodes to this thread.
    pub fn arrivals(&self) -> Arrivals {
        self.arrivals.clone()
    }

    /// Ends the thread with all that runs on it, and waits until it has ended.
    pub async fn end(self) {
        self.ends.send_replace(true);
        // An error means that the thread panicked, which ends the node by itself.
        let _ = tokio::task::spawn_blocking(move || self.thread.join()).await;
    }
}

async fn run(
    app: web::Data<ExampleApp>,
    browsers: Browsers,
    mut arriving: mpsc::Receiver<Arrival>,
    mut ending: watch::Receiver<bool>,
) {
    app.raft.run();
    let worker = Worker::of_this_thread(&app, Shares::of_nodes(clients_max()));
    let Ok(http) = http_service(&app, &browsers, ending.clone()).new_service(()).await else { return };
    loop {
        let arrival = tokio::select! {
            biased;
            _ = ending.wait_for(|ending| *ending) => return,
            arrival = arriving.recv() => arrival,
        };
        let Some(Arrival { stream, caller, first }) = arrival else { return };
        if worker.connections.is_overfull() {
            continue;
        }
        let peer = stream.peer_addr();
        let Ok(stream) = stream.attach() else { continue };
        let state = worker.connections.accept(&worker.queue);
        if let Some(caller) = caller {
            state.set_caller(caller);
        }
        // RPCs have limits of their own.
        let mut connection = Connection::new(stream, state, usize::MAX);
        connection.begin_with(&first);
        let served = http.call((connection, Protocol::Http1, peer));
        tokio::task::spawn_local(async move {
            // The HTTP library has sent the error to the other side.
            let _ = served.await;
        });
    }
}
