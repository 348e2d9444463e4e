//! Linearizable reads that wait at the same time share one confirmation by the leader.
//!
//! A read needs a log id that the leader named after the read arrived, and may be served once that entry is applied
//! here. All reads of a thread that arrive while others are being confirmed share the next confirmation.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use actix_web::web;
use openraft::ReadPolicy;
use openraft::raft::linearizable_read::{Linearizer, ReadLogId};
use tokio::sync::oneshot;

use super::consensus::read_error;
use super::peer;
use super::readiness::Destination;
use super::rejections::stopping;
use crate::app::ExampleApp;
use crate::config::{CONFIRMATIONS_AT_ONCE, REQUEST_DEADLINE};
use crate::error::ApiError;

/// The reads of one thread that wait for confirmation.
pub struct SharedReads {
    app: web::Data<ExampleApp>,
    current: RefCell<Option<Rc<Round>>>,
}

/// The reads that the same leader confirms.
struct Round {
    destination: Destination,
    waiting: RefCell<Vec<oneshot::Sender<Result<(), ApiError>>>>,
    under_way: Cell<usize>,
}

impl SharedReads {
    /// A thread without reads.
    pub fn new(app: web::Data<ExampleApp>) -> Self {
        SharedReads { app, current: RefCell::default() }
    }

    /// The result arrives once this node has applied all that was written before the call. If the node stops, none
    /// arrives.
    pub fn confirm(&self, destination: Destination) -> oneshot::Receiver<Result<(), ApiError>> {
        let (sender, confirmed) = oneshot::channel();
        let round = self.round_of(destination);
        let is_first = {
            let mut waiting = round.waiting.borrow_mut();
            waiting.push(sender);
            waiting.len() == 1
        };
        if is_first && round.under_way.get() < CONFIRMATIONS_AT_ONCE {
            let under_way = UnderWay::begin(round);
            let app = self.app.clone();
            // The task runs after all tasks that are ready now, so it confirms their reads too.
            tokio::task::spawn_local(async move { under_way.run(&app).await });
        }
        confirmed
    }

    /// Requests that wait for a former leader do not delay those to the current one.
    fn round_of(&self, destination: Destination) -> Rc<Round> {
        let mut current = self.current.borrow_mut();
        match &*current {
            Some(round) if round.destination == destination => round.clone(),
            _ => {
                let (waiting, under_way) = (RefCell::default(), Cell::default());
                current.insert(Rc::new(Round { destination, waiting, under_way })).clone()
            }
        }
    }
}

struct UnderWay(Rc<Round>);

impl UnderWay {
    fn begin(round: Rc<Round>) -> Self {
        round.under_way.set(round.under_way.get() + 1);
        UnderWay(round)
    }

    async fn run(self, app: &ExampleApp) {
        loop {
            let waiting = self.0.waiting.take();
            if waiting.is_empty() {
                return;
            }
            let confirmed = confirm(app, &self.0.destination, REQUEST_DEADLINE).await;
            for one in waiting {
                // The client may have disconnected.
                let _ = one.send(confirmed.clone());
            }
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.set(self.0.under_way.get() - 1);
    }
}

/// Waits until this node has applied all that was written before the call, whichever node leads. If another node leads,
/// it must respond within `answer_deadline`.
pub async fn confirm(app: &ExampleApp, destination: &Destination, answer_deadline: Duration) -> Result<(), ApiError> {
    match destination {
        Destination::Here => {
            app.raft.ensure_linearizable(ReadPolicy::ReadIndex).await.map_err(|error| read_error(app, &error))?;
        }
        Destination::Leader { leader_id, leader_node } => {
            let read_log_id = peer::ask_read_index(app, *leader_id, leader_node, answer_deadline).await?;
            let linearizer = Linearizer::new(*leader_id, ReadLogId::from_log_id(read_log_id), None);
            linearizer.await_ready(&app.raft).await.map_err(|_| stopping())?;
        }
    }
    Ok(())
}
