//! Long work on a request's data runs on other threads than those that serve clients.
//!
//! Decoding or encoding a mebibyte of JSON takes milliseconds, and all other clients of the thread would wait for it.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::rejections::{stopping, task_ended};
use crate::config::{LONG_WORK_AT_ONCE, LONG_WORK_BYTES};
use crate::error::ApiError;

/// Bounds how many threads long work takes.
#[derive(Debug)]
pub struct LongWork {
    permits: Arc<Semaphore>,
}

impl Default for LongWork {
    fn default() -> Self {
        LongWork { permits: Arc::new(Semaphore::new(LONG_WORK_AT_ONCE)) }
    }
}

impl LongWork {
    /// Runs `work` on `bytes` bytes of data: at once if they are few, otherwise on a thread of the blocking pool once
    /// a permit is free.
    ///
    /// `bytes` is called again at that time, since another request may have done the work.
    ///
    /// # Errors
    ///
    /// The error of `work`; [`ApiError::Stopping`] if the node stops meanwhile; [`ApiError::Internal`] if `work`
    /// panics.
    pub async fn run<T: Send + 'static>(
        &self,
        bytes: impl Fn() -> usize,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        if bytes() < LONG_WORK_BYTES {
            return work();
        }
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| stopping())?;
        if bytes() < LONG_WORK_BYTES {
            return work();
        }
        let work = move || {
            // Held until the work is done, even if the client disconnects.
            let _permit = permit;
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| task_ended(&error))?
    }
}
