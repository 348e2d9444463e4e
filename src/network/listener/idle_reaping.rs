//! Idle reaping: closes connections without requests when few more can be accepted.
//!
//! Clients keep connections for later requests, and some never send one. While there is room, a connection may be idle
//! for [`KEEP_ALIVE`](crate::config::KEEP_ALIVE). A node with hardly any room closes the connections that have been
//! idle for longest, except those on which a member sends Raft's RPCs. A client that sends a request at that moment
//! must resend it, as with every idle connection that is closed.
//!
//! A connection whose request has an incomplete head is closed after [`REQUEST_HEAD_DEADLINE`]. (For the first request,
//! the HTTP library does so and returns 408. A client could take a later 408 for the response to another request, so it
//! gets none. The deadline of a head that arrives during the previous request begins when that request ends.)

use std::rc::{Rc, Weak};

use super::connection_limits::Connections;
use super::connection_state::{ConnectionState, Phase};
use crate::config::{REAPING_INTERVAL, REQUEST_HEAD_DEADLINE, REQUESTS_PER_TURN};

/// The number of sweeps that a head may take to arrive.
pub(super) const HEAD_SWEEPS: u64 = (REQUEST_HEAD_DEADLINE.as_millis() / REAPING_INTERVAL.as_millis()) as u64;

impl Connections {
    /// Closes idle connections until the thread ends.
    pub async fn keep_room(self: Rc<Self>) {
        loop {
            tokio::time::sleep(REAPING_INTERVAL).await;
            for some in self.sweep().chunks(REQUESTS_PER_TURN) {
                some.iter().for_each(|(one, phase)| one.close_if_still(*phase));
                // Let all other tasks that are ready run first.
                tokio::task::yield_now().await;
            }
        }
    }

    /// The connections to close, with their phases: those with an incomplete head, and once less than an eighth of all
    /// connections is free, as many idle ones as it takes to free a quarter.
    pub(super) fn sweep(&self) -> Vec<(Rc<ConnectionState>, Phase)> {
        let sweeps = self.sweeps.get() + 1;
        self.sweeps.set(sweeps);
        let (open, max) = (self.open.get(), self.shares.total);
        let clients_max = self.shares.clients;
        let is_short = open + max / 8 > max || self.clients.get() + clients_max / 8 > clients_max;
        self.note_reaping(is_short);
        let (mut leaving, mut idle) = (Vec::new(), Vec::new());
        for one in self.all.borrow().iter().filter_map(Weak::upgrade) {
            if one.caller().is_some_and(|caller| !caller.is_trusted()) {
                // Its certificate was valid with the former TLS files of this node.
                one.leave_now();
                continue;
            }
            let phase = one.phase.get();
            match phase {
                Phase::Arriving { since, .. } if since + HEAD_SWEEPS < sweeps => {
                    leaving.push((one, phase));
                }
                Phase::Idle(since) if is_short && since.sweep + 1 < sweeps && !one.is_kept.get() => {
                    idle.push((since.sweep, one, phase));
                }
                _ => {}
            }
        }
        // Among connections that have been idle for equally long, the oldest go first.
        idle.sort_by_key(|(since, ..)| *since);
        let wanted =
            open.saturating_sub(max - max / 4).max(self.clients.get().saturating_sub(clients_max - clients_max / 4));
        leaving.extend(idle.into_iter().take(wanted).map(|(_, one, phase)| (one, phase)));
        leaving
    }

    fn note_reaping(&self, is_short: bool) {
        let (open, max) = (self.open.get(), self.shares.total);
        if is_short && !self.is_reaping.replace(true) {
            tracing::warn!(
                "{open} of at most {max} connections of one thread are open: closing those that have been idle the \
                 longest (a higher limit of open files may allow more)"
            );
        } else if open <= max / 2 && self.is_reaping.replace(false) {
            tracing::info!("at most half of the connections are open: idle ones are no longer closed");
        }
    }
}
