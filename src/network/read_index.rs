//! Linearizable reads that wait at the same time share what confirms them.
//!
//! A read needs a log id that the leader named after the read came, and may be served once that is
//! applied here. All reads of a thread that come while others are being confirmed wait for the next
//! confirmation, and share it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use actix_web::web;
use openraft::ReadPolicy;
use openraft::raft::linearizable_read::{Linearizer, ReadLogId};
use tokio::sync::oneshot;

use super::api::read_error;
use super::forward::{self, Destination};
use super::peer;
use crate::app::ExampleApp;
use crate::config::{CONFIRMATIONS_AT_ONCE, REQUEST_DEADLINE};
use crate::error::ApiError;

/// The reads of one thread that wait for a confirmation.
pub struct SharedReads {
    app: web::Data<ExampleApp>,
    current: RefCell<Option<Rc<Round>>>,
}

/// The reads that are confirmed by the same leader.
struct Round {
    destination: Destination,
    waiting: RefCell<Vec<oneshot::Sender<Result<(), ApiError>>>>,
    under_way: Cell<usize>,
}

impl SharedReads {
    /// None yet.
    pub fn new(app: web::Data<ExampleApp>) -> Self {
        SharedReads { app, current: RefCell::default() }
    }

    /// The result comes once this node has applied all that was written before; none comes if it stops.
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
            // The task runs after those that are ready now, and confirms what they read with it.
            tokio::task::spawn_local(async move { under_way.run(&app).await });
        }
        confirmed
    }

    /// Requests that wait for a former leader do not hold up those that ask the present one.
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
                // Its client may have gone.
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

/// Waits until this node has applied all that was written before, whichever node leads. One that is another
/// must answer within `answer_deadline`.
pub async fn confirm(app: &ExampleApp, destination: &Destination, answer_deadline: Duration) -> Result<(), ApiError> {
    match destination {
        Destination::Here => {
            app.raft.ensure_linearizable(ReadPolicy::ReadIndex).await.map_err(|error| read_error(app, &error))?;
        }
        Destination::Leader { leader_id, leader_node } => {
            let read_log_id = peer::ask_read_index(app, *leader_id, leader_node, answer_deadline).await?;
            let linearizer = Linearizer::new(*leader_id, ReadLogId::from_log_id(read_log_id), None);
            linearizer.await_ready(&app.raft).await.map_err(|_| forward::stopping())?;
        }
    }
    Ok(())
}
