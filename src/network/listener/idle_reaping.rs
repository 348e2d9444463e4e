//! Closes connections that only take up room.
//!
//! Clients keep connections for later, and some open them and never ask for anything. While there
//! is room they may, for [`KEEP_ALIVE`](crate::config::KEEP_ALIVE). A node with hardly any room closes
//! those that have been without a request for longest, except those on which another node sends
//! Raft's RPCs. A client that sends a request just then has to send it again, as with every idle
//! connection that is closed.
//!
//! A request whose head does not come to its end is given up at any time. (The HTTP library does
//! so for the first one of a connection, and answers it with 408; whoever has used a connection
//! before could take that for the answer to another request, and gets none. The time of a head that
//! arrives during the request before it begins when that request ends.)

use std::rc::{Rc, Weak};

use super::connection_limits::Connections;
use super::connection_state::{ConnectionState, Phase};
use crate::config::{CROWD_LOOK, REQUEST_HEAD_DEADLINE, REQUESTS_A_TURN};

/// How many looks a request may take to come.
pub(super) const HEAD_LOOKS: u64 = (REQUEST_HEAD_DEADLINE.as_millis() / CROWD_LOOK.as_millis()) as u64;

impl Connections {
    /// Lets go of those that only take up room, for as long as the thread runs.
    pub async fn keep_room(self: Rc<Self>) {
        loop {
            tokio::time::sleep(CROWD_LOOK).await;
            for some in self.look().chunks(REQUESTS_A_TURN) {
                some.iter().for_each(|(one, phase)| one.let_go(*phase));
                // All that is ready to run goes first.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Whom to let go, and what each is doing: those whose request does not come to an end; and once
    /// an eighth of all is not free any more, as many of those that do nothing as it takes until a
    /// quarter is, or as there are.
    pub(super) fn look(&self) -> Vec<(Rc<ConnectionState>, Phase)> {
        let looks = self.looks.get() + 1;
        self.looks.set(looks);
        let (open, max) = (self.open.get(), self.shares.total);
        let clients_max = self.shares.clients;
        let is_short = open + max / 8 > max || self.clients.get() + clients_max / 8 > clients_max;
        self.note_crowd(is_short);
        let (mut leaving, mut idle) = (Vec::new(), Vec::new());
        for one in self.all.borrow().iter().filter_map(Weak::upgrade) {
            let phase = one.phase.get();
            match phase {
                Phase::Arriving { since, .. } if since + HEAD_LOOKS < looks => {
                    leaving.push((one, phase));
                }
                Phase::Idle(since) if is_short && since.look + 1 < looks && !one.is_kept.get() => {
                    idle.push((since.look, one, phase));
                }
                _ => {}
            }
        }
        // Of those that have done nothing for as long, those that came first.
        idle.sort_by_key(|(since, ..)| *since);
        let wanted =
            open.saturating_sub(max - max / 4).max(self.clients.get().saturating_sub(clients_max - clients_max / 4));
        leaving.extend(idle.into_iter().take(wanted).map(|(_, one, phase)| (one, phase)));
        leaving
    }

    fn note_crowd(&self, is_short: bool) {
        let (open, max) = (self.open.get(), self.shares.total);
        if is_short && !self.is_crowded.replace(true) {
            tracing::warn!(
                "{open} of the {max} connections that one thread of this node accepts are taken: those that have done nothing for \
                 longest are closed (a higher limit of open files may allow more)"
            );
        } else if open <= max / 2 && self.is_crowded.replace(false) {
            tracing::info!("there is room for connections again");
        }
    }
}
