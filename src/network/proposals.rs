//! Passes the writes of one thread's clients to Raft, which runs on another thread.
//!
//! Waking another thread takes a system call. So all writes that a thread has decoded in one turn go to Raft together,
//! with one wake. Their results return together too, since Raft applies them together.

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;

use futures_util::{Stream, StreamExt};
use openraft::errors::{ClientWriteError, Fatal, RaftError};
use openraft::raft::{ClientWriteResponse, WriteResponse};
use tokio::sync::oneshot;

use super::memory::HeldMemory;
use crate::config::{GATHERING_TURNS_MAX, PROPOSED_BYTES_PER_BATCH};
use crate::store::ExampleRaft;
use crate::types::{Command, TypeConfig};

/// The result of a write.
pub type Proposed = Result<ClientWriteResponse<TypeConfig>, RaftError<TypeConfig, WriteError>>;

type WriteError = ClientWriteError<TypeConfig>;
type WriteResult = Result<WriteResponse<TypeConfig>, WriteError>;

/// The writes of one thread that Raft has not got yet.
pub struct Proposals {
    raft: ExampleRaft,
    waiting: RefCell<Vec<Proposal>>,
    waiting_bytes: Cell<usize>,
}

struct Proposal {
    command: Command,
    outcome: Outcome,
}

/// The receiver of a write's result.
struct Outcome {
    result: oneshot::Sender<Proposed>,
    /// Held while Raft has the write, even if its client has disconnected.
    _memory: HeldMemory,
}

impl Proposals {
    /// A thread without writes.
    pub fn new(raft: ExampleRaft) -> Rc<Self> {
        Rc::new(Proposals { raft, waiting: RefCell::default(), waiting_bytes: Cell::default() })
    }

    /// Proposes a write. `memory` counts it among the writes that Raft has. The result arrives once the write is
    /// applied; none arrives if the node stops first.
    pub fn propose(self: &Rc<Self>, command: Command, memory: HeldMemory) -> oneshot::Receiver<Proposed> {
        let (result, proposed) = oneshot::channel();
        let bytes = self.waiting_bytes.get() + command.payload_bytes();
        let count = {
            let mut waiting = self.waiting.borrow_mut();
            waiting.push(Proposal { command, outcome: Outcome { result, _memory: memory } });
            waiting.len()
        };
        self.waiting_bytes.set(bytes);
        // Long writes go in several batches, between which Raft does other work.
        let batch = (bytes > PROPOSED_BYTES_PER_BATCH).then(|| self.take());
        if let Some(batch) = batch {
            let proposals = self.clone();
            tokio::task::spawn_local(async move { proposals.send(batch).await });
        } else if count == 1 {
            let proposals = self.clone();
            tokio::task::spawn_local(async move { proposals.gather_and_send().await });
        }
        proposed
    }

    /// Sends the waiting writes once a turn adds none: each batch costs Raft a write to the log and an RPC to each
    /// follower, whatever its length.
    async fn gather_and_send(&self) {
        let mut count = 0;
        for _ in 0..GATHERING_TURNS_MAX {
            // All ready tasks run first, and after them those whose input has arrived.
            tokio::task::yield_now().await;
            if self.waiting.borrow().len() <= count {
                break;
            }
            count = self.waiting.borrow().len();
        }
        self.send(self.take()).await;
    }

    fn take(&self) -> Vec<Proposal> {
        self.waiting_bytes.set(0);
        self.waiting.take()
    }

    async fn send(&self, batch: Vec<Proposal>) {
        // A full batch before this one may have taken all.
        if batch.is_empty() {
            return;
        }
        let (commands, outcomes): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|proposal| (proposal.command, proposal.outcome)).unzip();
        let results = match self.raft.client_write_many(commands).await {
            Ok(results) => results,
            Err(fatal) => {
                for outcome in outcomes {
                    let _ = outcome.result.send(Err(RaftError::Fatal(fatal.clone())));
                }
                return;
            }
        };
        pass_on(results, outcomes).await;
    }
}

/// Gives each write its result. If Raft stops, the results end with an error, even if there are more writes, and must
/// not be polled after their end.
async fn pass_on(results: impl Stream<Item = Result<WriteResult, Fatal<TypeConfig>>>, outcomes: Vec<Outcome>) {
    let mut results = pin!(results.fuse());
    for outcome in outcomes {
        let became = match results.next().await {
            Some(Ok(Ok(WriteResponse { log_id, response }))) => {
                Ok(ClientWriteResponse { log_id, data: response, membership: None })
            }
            Some(Ok(Err(error))) => Err(RaftError::APIError(error)),
            Some(Err(fatal)) => Err(RaftError::Fatal(fatal)),
            None => Err(RaftError::Fatal(Fatal::Stopped)),
        };
        // The client may have disconnected.
        let _ = outcome.result.send(became);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, stream};

    use super::*;

    /// Claim: if Raft stops while it has several writes of a batch, each of them gets an error. Method: results that end
    /// after an error, like openraft's, which panic if they are polled again.
    #[test]
    fn each_write_gets_an_error_when_raft_stops() {
        let (outcomes, mut proposed): (Vec<_>, Vec<_>) = (0..3)
            .map(|_| oneshot::channel())
            .map(|(result, proposed)| (Outcome { result, _memory: HeldMemory::default() }, proposed))
            .unzip();
        let results = stream::unfold(Some(()), |more| async move { more.map(|()| (Err(Fatal::Stopped), None)) });
        pass_on(results, outcomes).now_or_never().expect("nothing is awaited");
        for result in &mut proposed {
            assert!(matches!(result.try_recv(), Ok(Err(RaftError::Fatal(Fatal::Stopped)))));
        }
    }
}
