//! What clients make this node hold, in bytes.
//!
//! One budget in three parts: a half for requests, from before a body is read until its result is known; three
//! eighths for responses, from before a value is encoded until the client has taken it; and an eighth for
//! what watches are sent and do not share. What a request is not given stays in
//! its socket. A request that has its own memory may wait for that of its response, and never the other way
//! round, so no two requests wait for each other.
//!
//! Requests that get nothing at once wait in their order, and are refused after [`MEMORY_WAIT_MAX`], all waits of one
//! request together: a node that passed it on waits little longer, and would call its outcome unknown. What is
//! shorter than [`MEMORY_COUNTED_MIN`] is not counted: the number of connections bounds it.

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
    BODY_PIECE_BYTES, ENCODED_BYTES_A_BYTE_MAX, MEMORY_COUNTED_MIN, MEMORY_WAIT_MAX, PROPOSED_BYTES_MAX,
    REQUEST_BYTES_A_BYTE,
};
use crate::error::{ApiError, Retry};

/// What is counted together. Permits of a semaphore are counted with 32 bits.
const UNIT_BYTES: usize = 1 << 10;

/// What all clients of a node together may make it hold.
#[derive(Debug)]
pub struct ClientMemory {
    requests: Part,
    responses: Part,
    watches: Part,
    proposals: Part,
}

#[derive(Debug)]
struct Part {
    free: Arc<Semaphore>,
    units: u32,
}

/// Some of a node's memory for clients. Dropping it gives it back.
#[derive(Debug, Default)]
#[must_use = "it counts while it is held"]
pub struct HeldMemory {
    taken: Option<OwnedSemaphorePermit>,
    waited: Duration,
}

impl ClientMemory {
    /// A budget of so many bytes.
    pub fn new(bytes: usize) -> Self {
        ClientMemory {
            requests: Part::of(bytes / 2),
            responses: Part::of(bytes / 8 * 3),
            watches: Part::of(bytes / 8),
            proposals: Part::of(PROPOSED_BYTES_MAX),
        }
    }

    /// For a request with a body of so many bytes: the body, and the operation that it becomes.
    ///
    /// # Errors
    ///
    /// [`ApiError::Overloaded`], if others do not give back enough in time.
    pub async fn for_request(&self, body_bytes: usize) -> Result<HeldMemory, ApiError> {
        let bytes = body_bytes.saturating_mul(REQUEST_BYTES_A_BYTE);
        self.requests.take(body_bytes, bytes, Duration::ZERO).await.ok_or_else(|| {
            ApiError::Overloaded(Retry::soon(
                "requests of other clients hold all memory that this node has for them (--client-memory-bytes)",
            ))
        })
    }

    /// A place among the writes that Raft has and that are not applied yet, for one with so many bytes. It holds no
    /// memory beyond that of its request; it bounds for how long Raft is busy with what came before. The request has
    /// waited for `waited` before.
    ///
    /// # Errors
    ///
    /// [`ApiError::Overloaded`], if those before it take too long.
    pub async fn for_proposal(&self, bytes: usize, waited: Duration) -> Result<HeldMemory, ApiError> {
        self.proposals.take(bytes, bytes, waited).await.ok_or_else(|| {
            ApiError::Overloaded(Retry::soon("the cluster does not keep up with writes as long as this one"))
        })
    }

    /// For a response with so many bytes of keys and values in it; before it is encoded, and before a write is proposed.
    /// The request has waited for `waited` before.
    ///
    /// # Errors
    ///
    /// [`ApiError::Overloaded`], if others do not give back enough in time.
    pub async fn for_response(&self, data_bytes: usize, waited: Duration) -> Result<HeldMemory, ApiError> {
        let bytes = data_bytes.saturating_mul(ENCODED_BYTES_A_BYTE_MAX);
        self.responses.take(data_bytes, bytes, waited).await.ok_or_else(|| {
            ApiError::Overloaded(Retry::soon(
                "responses to other clients hold all memory that this node has for them (--client-memory-bytes)",
            ))
        })
    }

    /// For a part of what a watch is sent, with so many bytes of keys and values in it.
    ///
    /// # Errors
    ///
    /// [`ApiError::Overloaded`], if others do not give back enough in time.
    pub async fn for_watch(&self, data_bytes: usize) -> Result<HeldMemory, ApiError> {
        let bytes = data_bytes.saturating_mul(ENCODED_BYTES_A_BYTE_MAX);
        self.watches.take(data_bytes, bytes, Duration::ZERO).await.ok_or_else(|| {
            ApiError::Overloaded(Retry::soon(
                "other watches that read slowly hold all memory that this node has for them (--client-memory-bytes)",
            ))
        })
    }
}

impl Part {
    fn of(bytes: usize) -> Self {
        let units = u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX).clamp(1, u32::MAX >> 3);
        Part { free: Arc::new(Semaphore::new(units as usize)), units }
    }

    /// `bytes` for something that is `length` long. What needs more than there is gets all.
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
    /// A response that holds it until it is written, or given up. Its body comes in pieces, as the connection takes
    /// them, so that it is not copied as a whole.
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

    /// Gives back what is more than a request with a body of so many bytes takes.
    pub fn keep_for_request(&mut self, body_bytes: usize) {
        self.keep(body_bytes.saturating_mul(REQUEST_BYTES_A_BYTE));
    }

    /// How long its request has waited for memory so far.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// The pieces of what a watch is sent, of which the last one that is left gives it back.
    pub fn around(mut self, pieces: Vec<Bytes>) -> Vec<Bytes> {
        if self.taken.is_none() {
            return pieces;
        }
        self.keep(pieces.iter().map(Bytes::len).sum());
        let held = Arc::new(self);
        pieces.into_iter().map(|bytes| Bytes::from_owner(HeldPiece { bytes, _held: held.clone() })).collect()
    }

    /// Gives back what is more than so many bytes.
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

    /// What is taken is given back: of a request when it is dropped, of a response when it is written, and what
    /// the response turns out not to need at once.
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
        assert_eq!(free(), (2048, RESPONSES - 200 * ENCODED_BYTES_A_BYTE_MAX));
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

    /// They wait in their order: a short request does not pass a long one.
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
