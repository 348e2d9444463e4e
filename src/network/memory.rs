//! Memory that clients may make this node hold, in bytes.
//!
//! The budget has three parts: one half for requests, from before the body is read until the result is known; three
//! eighths for responses, from before a value is encoded until the client has read it; and one eighth for the events of
//! watches that are not shared. A request without memory stays in its socket. A request that holds memory may wait for
//! the memory of its response, but a response never waits for that of a request, so there is no deadlock.
//!
//! Requests wait in their order, and are rejected after [`MEMORY_WAIT_MAX`] for all waits of one request together. A
//! node that forwarded the request waits little longer, and would report an unknown outcome. Requests and responses
//! shorter than [`MEMORY_COUNTED_MIN`] are not counted: the number of connections bounds them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::body::{BodySize, BoxBody, MessageBody};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::config::{
    BODY_PIECE_BYTES, ENCODED_BYTES_PER_BYTE_MAX, MEMORY_COUNTED_MIN, MEMORY_WAIT_MAX, METRICS_BYTES_MAX,
    PROPOSED_BYTES_MAX, REQUEST_BYTES_PER_BYTE,
};
use crate::error::{ApiError, Retry};

/// The unit of counting. A semaphore counts its permits with 32 bits.
const UNIT_BYTES: usize = 1 << 10;

/// The memory that all clients of a node together may make it hold.
#[derive(Debug)]
pub struct ClientMemory {
    requests: Part,
    responses: Part,
    watches: Part,
    proposals: Part,
    metrics: Part,
}

#[derive(Debug)]
struct Part {
    free: Arc<Semaphore>,
    units: u32,
}

/// A part of a node's memory for clients. Dropping it returns the memory.
#[derive(Debug, Default)]
#[must_use = "it counts while it is held"]
pub struct HeldMemory {
    taken: Option<OwnedSemaphorePermit>,
    waited: Duration,
}

impl ClientMemory {
    /// A budget of `bytes` bytes.
    pub fn new(bytes: usize) -> Self {
        ClientMemory {
            requests: Part::of(bytes / 2),
            responses: Part::of(bytes / 8 * 3),
            watches: Part::of(bytes / 8),
            proposals: Part::of(PROPOSED_BYTES_MAX),
            metrics: Part::of(METRICS_BYTES_MAX),
        }
    }

    /// The bytes that are held, by what they are for.
    pub fn used_bytes(&self) -> [(&'static str, u64); 5] {
        [
            ("requests", self.requests.used_bytes()),
            ("responses", self.responses.used_bytes()),
            ("watches", self.watches.used_bytes()),
            ("proposals", self.proposals.used_bytes()),
            ("metrics", self.metrics.used_bytes()),
        ]
    }

    /// Memory for a request with a body of `bytes` bytes: for the body, and for the operation decoded from it.
    ///
    /// # Errors
    ///
    /// [`ApiError::Overloaded`] if other requests do not return enough memory in time.
    pub async fn for_request(&self, body_bytes: usize) -> Result<HeldMemory, ApiError> {
        let bytes = body_bytes.saturating_mul(REQUEST_BYTES_PER_BYTE);
        self.requests.take(body_bytes, bytes, Duration::ZERO).await.ok_or_else(|| {
            ApiError::Overloaded(Retry::soon(
                "other clients use all memory of this node for requests (--client-memory-bytes)",
            ))
        })
    }

    /// A permit to propose a write of `bytes` bytes, held until it is applied. It takes no memory beyond that of the
    /// request, but bounds how long Raft is busy with the writes before. The request has waited for `waited` before.
    ///
    /// # Errors
    ///
    /// [`ApiError::Overloaded`] if the writes before it take too long.
    pub async fn for_proposal(&self, bytes: usize, waited: Duration) -> Result<HeldMemory, ApiError> {
        self.proposals.take(bytes, bytes, waited).await.ok_or_else(|| {
            ApiError::Overloaded(Retry::soon("the cluster is not keeping up with large writes such as this one"))
        })
    }

    /// Memory for a response with `data_bytes` bytes of keys and values, before it is encoded or its write is proposed.
    /// The request has waited for `waited` before.
    ///
    /// # Errors
    ///
    /// [`ApiError::Overloaded`] if other responses do not return enough memory in time.
    pub async fn for_response(&self, data_bytes: usize, waited: Duration) -> Result<HeldMemory, ApiError> {
        let bytes = data_bytes.saturating_mul(ENCODED_BYTES_PER_BYTE_MAX);
        self.responses.take(data_bytes, bytes, waited).await.ok_or_else(|| {
            ApiError::Overloaded(Retry::soon(
                "other clients use all memory of this node for responses (--client-memory-bytes)",
            ))
        })
    }

    /// Memory for the metrics as text, apart from that of other responses: operators need them most when those hold all
    /// memory.
    ///
    /// # Errors
    ///
    /// [`ApiError::Overloaded`] if other scrapes do not return enough memory in time.
    pub async fn for_metrics(&self, bytes: usize) -> Result<HeldMemory, ApiError> {
        self.metrics.take(bytes, bytes, Duration::ZERO).await.ok_or_else(|| {
            ApiError::Overloaded(Retry::soon("responses to other scrapes hold all memory for metrics on this node"))
        })
    }

    /// Memory for a piece of a watch's events with `data_bytes` bytes of keys and values.
    ///
    /// # Errors
    ///
    /// [`ApiError::Overloaded`] if other watches do not return enough memory in time.
    pub async fn for_watch(&self, data_bytes: usize) -> Result<HeldMemory, ApiError> {
        let bytes = data_bytes.saturating_mul(ENCODED_BYTES_PER_BYTE_MAX);
        self.watches.take(data_bytes, bytes, Duration::ZERO).await.ok_or_else(|| {
            ApiError::Overloaded(Retry::soon(
                "slow readers of other watches use all memory of this node for watches (--client-memory-bytes)",
            ))
        })
    }
}

impl Part {
    fn of(bytes: usize) -> Self {
        let units = u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX).clamp(1, u32::MAX >> 3);
        Part { free: Arc::new(Semaphore::new(units as usize)), units }
    }

    fn used_bytes(&self) -> u64 {
        ((self.units as usize).saturating_sub(self.free.available_permits()) * UNIT_BYTES) as u64
    }

    /// Takes `bytes` for data that is `length` bytes long. A request for more than the whole part gets the whole part.
    async fn take(&self, length: usize, bytes: usize, waited: Duration) -> Option<HeldMemory> {
        if length < MEMORY_COUNTED_MIN {
            return Some(HeldMemory { taken: None, waited });
        }
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).min(self.units);
        if let Ok(taken) = self.free.clone().try_acquire_many_owned(units) {
            return Some(HeldMemory { taken: Some(taken), waited });
        }
        let began = Instant::now();
        let taken = self.free.clone().acquire_many_owned(units);
        let taken = tokio::time::timeout(MEMORY_WAIT_MAX.saturating_sub(waited), taken).await.ok()?.ok()?;
        Some(HeldMemory { taken: Some(taken), waited: waited + began.elapsed() })
    }
}

impl HeldMemory {
    /// A response that holds the memory until it is written or given up. Its body is written piece by piece, as the
    /// connection takes it, so that it is not copied as a whole.
    pub fn until_written(mut self, response: HttpResponse) -> HttpResponse {
        if self.taken.is_none() {
            return response;
        }
        response.map_body(|_, body| match body.try_into_bytes() {
            Ok(bytes) => {
                self.keep(bytes.len());
                BoxBody::new(Pieces { bytes, _held: self })
            }
            Err(body) => body,
        })
    }

    /// Returns the memory that a request with a body of `body_bytes` bytes does not need.
    pub fn keep_for_request(&mut self, body_bytes: usize) {
        self.keep(body_bytes.saturating_mul(REQUEST_BYTES_PER_BYTE));
    }

    /// How long the request has waited for memory so far.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Pieces of a watch's events, of which the last one to be dropped returns the memory.
    pub fn around(mut self, pieces: Vec<Bytes>) -> Vec<Bytes> {
        if self.taken.is_none() {
            return pieces;
        }
        self.keep(pieces.iter().map(Bytes::len).sum());
        let held = Arc::new(self);
        pieces.into_iter().map(|bytes| Bytes::from_owner(HeldPiece { bytes, _held: held.clone() })).collect()
    }

    /// Returns all memory but `bytes` bytes.
    fn keep(&mut self, bytes: usize) {
        if let Some(taken) = &mut self.taken {
            let surplus = taken.num_permits().saturating_sub(bytes.div_ceil(UNIT_BYTES));
            drop(taken.split(surplus));
        }
    }
}

struct HeldPiece {
    bytes: Bytes,
    _held: Arc<HeldMemory>,
}

impl AsRef<[u8]> for HeldPiece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A body that is written piece by piece.
struct Pieces {
    bytes: Bytes,
    _held: HeldMemory,
}

impl MessageBody for Pieces {
    type Error = std::convert::Infallible;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.bytes.len() as u64)
    }

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        if self.bytes.is_empty() {
            return Poll::Ready(None);
        }
        let length = self.bytes.len().min(BODY_PIECE_BYTES);
        Poll::Ready(Some(Ok(self.bytes.split_to(length))))
    }
}

#[cfg(test)]
mod tests {
    use actix_web::body::to_bytes;
    use futures_util::poll;

    use super::*;

    /// Memory is returned: that of a request when it is dropped, that of a response when it is written, and at once
    /// what the response turns out not to need.
    #[tokio::test]
    async fn memory_is_given_back() {
        const RESPONSES: usize = 1536;
        let memory = ClientMemory::new(4 << 20);
        let free = || (memory.requests.free.available_permits(), memory.responses.free.available_permits());
        let request = memory.for_request(1 << 20).await.unwrap();
        assert_eq!(free(), (0, RESPONSES));
        assert!(poll!(Box::pin(memory.for_request(MEMORY_COUNTED_MIN))).is_pending());
        let small = memory.for_request(MEMORY_COUNTED_MIN - 1).await.unwrap();
        drop((request, small));
        assert_eq!(free(), (2048, RESPONSES));

        let held = memory.for_response(200 << 10, Duration::ZERO).await.unwrap();
        assert_eq!(free(), (2048, RESPONSES - 200 * ENCODED_BYTES_PER_BYTE_MAX));
        let value = Bytes::from(vec![b'v'; 200 << 10]);
        let response = held.until_written(HttpResponse::Ok().body(value.clone()));
        assert_eq!(free(), (2048, RESPONSES - 200));
        assert_eq!(response.body().size(), BodySize::Sized(value.len() as u64));
        assert_eq!(to_bytes(response.into_body()).await.unwrap(), value);
        assert_eq!(free(), (2048, RESPONSES));

        let all = memory.for_response(1 << 30, Duration::ZERO).await.unwrap();
        assert!(poll!(Box::pin(memory.for_response(1 << 20, Duration::ZERO))).is_pending());
        drop(all);
        assert_eq!(free(), (2048, RESPONSES));
    }

    /// Requests wait in their order: a short one does not pass a long one.
    #[tokio::test]
    async fn large_ones_wait_their_turn() {
        let memory = ClientMemory::new(4 << 20);
        let first = memory.for_request(512 << 10).await.unwrap();
        let mut large = Box::pin(memory.for_request(1 << 20));
        let mut small = Box::pin(memory.for_request(MEMORY_COUNTED_MIN));
        assert!(poll!(&mut large).is_pending());
        assert!(poll!(&mut small).is_pending());
        drop(first);
        let large = large.await.unwrap();
        assert!(poll!(&mut small).is_pending());
        drop(large);
        drop(small.await.unwrap());
    }
}
