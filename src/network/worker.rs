//! The state of each thread that serves connections.

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use actix_web::web;

use super::listener::admission_queue::AdmissionQueue;
use super::listener::connection_limits::{Connections, Shares};
use super::listener::handshake::Handshakes;
use super::listener::slices::Slices;
use super::proposals::Proposals;
use super::read_index::SharedReads;
use crate::app::{ExampleApp, Room};
use crate::config::REQUESTS_PER_TURN;
use crate::connection::Dialer;

/// The state of a thread that serves connections. All listeners share it.
pub struct Worker {
    /// Its connections.
    pub connections: Rc<Connections>,
    /// The connections that wait to be read.
    pub queue: Rc<AdmissionQueue>,
    /// Slices of long bodies.
    pub slices: Rc<Slices>,
    /// Writes that Raft has not got yet.
    pub proposals: Rc<Proposals>,
    /// Reads that wait to be confirmed.
    pub shared_reads: SharedReads,
    /// TLS handshakes.
    pub handshakes: Handshakes,
    /// Dials the leader.
    pub http: Dialer,
    /// Dials the leader for forwarded requests. They wait in the leader's admission queue, as its own clients' requests
    /// do, and must not delay requests between nodes.
    pub forwarding_http: Dialer,
}

thread_local! {
    // Weak, so that the end of the thread does not drop the node: its parts may need other thread-local values, which
    // are gone by then.
    static WORKER: RefCell<Weak<Worker>> = const { RefCell::new(Weak::new()) };
}

impl Worker {
    /// The worker of this thread. A new one begins its background tasks.
    pub fn of_this_thread(app: &web::Data<ExampleApp>, shares: Shares) -> Rc<Self> {
        if let Some(worker) = Self::current() {
            return worker;
        }
        let connections_of_this = Connections::new(shares, app.observer());
        let queue = AdmissionQueue::new({
            let (app, are_nodes) = (app.clone(), connections_of_this.are_nodes());
            // RPCs do not count as writes under way.
            move || if are_nodes { Room { free: REQUESTS_PER_TURN, kept: 0 } } else { app.room_for_writes() }
        });
        tokio::task::spawn_local(app.essential("admission").run(queue.clone().take_turns()));
        tokio::task::spawn_local(app.essential("idle reaping").run(connections_of_this.clone().keep_room()));
        let slices = Slices::new();
        tokio::task::spawn_local(app.essential("slices of long bodies").run(slices.clone().take_turns()));
        let handshakes = Handshakes::new();
        if app.tls.is_some() {
            tokio::task::spawn_local(app.essential("TLS handshakes").run(handshakes.steps.clone().take_turns()));
        }
        let worker = Rc::new(Worker {
            connections: connections_of_this,
            queue,
            slices,
            proposals: Proposals::new(app.raft.clone()),
            shared_reads: SharedReads::new(app.clone()),
            handshakes,
            http: Dialer::new(app.tls.clone()),
            forwarding_http: Dialer::new(app.tls.clone()),
        });
        WORKER.with(|known| known.replace(Rc::downgrade(&worker)));
        worker
    }

    /// The worker of this thread, if the thread serves connections.
    pub fn current() -> Option<Rc<Self>> {
        WORKER.with(|known| known.borrow().upgrade())
    }
}
