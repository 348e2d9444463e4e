//! Long work on a request's data runs on other threads than those that serve clients.
//!
//! Decoding or encoding a mebibyte of JSON takes milliseconds, and the other clients of a thread would wait for each of
//! those that come together.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::forward;
use crate::config::{LONG_WORK_AT_ONCE, LONG_WORK_BYTES};
use crate::error::ApiError;

/// Bounds how much of a node long work takes.
#[derive(Debug)]
pub struct LongWork {
    turns: Arc<Semaphore>,
}

impl Default for LongWork {
    fn default() -> Self {
        LongWork { turns: Arc::new(Semaphore::new(LONG_WORK_AT_ONCE)) }
    }
}

impl LongWork {
    /// Does work on so many bytes: here if that is short, else on a thread of the blocking pool, when its turn comes.
    ///
    /// `bytes` is called again then, since another request may have done the work.
    ///
    /// # Errors
    ///
    /// What `work` fails with; and [`ApiError::Stopping`], if the node stops meanwhile.
    pub async fn run<T: Send + 'static>(
        &self,
        bytes: impl Fn() -> usize,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        if bytes() < LONG_WORK_BYTES {
            return work();
        }
        let turn = self.turns.clone().acquire_owned().await.map_err(|_| forward::stopping())?;
        if bytes() < LONG_WORK_BYTES {
            return work();
        }
        let work = move || {
            // Until it is done, even if its client has gone.
            let _turn = turn;
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| forward::stopping())?
    }
}
