//! Downloads of snapshots.

use bytes::Bytes;
use reqwest::Method;
use tokio::time::timeout;

use super::ExampleClient;
use super::error::ClientError;
use super::request::{Effect, Request, rejection, target_of};
use crate::config::{EXPORT_SILENCE_MAX, RESPONSE_BYTES_MAX};
use crate::connection::{read_response, reason_of};
use crate::headers::{REVISION, SNAPSHOT_INDEX};

/// A snapshot that a node sends: the state of the store at one log index, as a file.
///
/// Its checksums are those of the file format, which `raft-key-value snapshot inspect` verifies. [`chunk`](Self::chunk)
/// verifies the length alone.
#[derive(Debug)]
pub struct SnapshotDownload<'a> {
    /// The length of the file, in bytes.
    pub bytes: u64,
    /// The index of the last log entry in it.
    pub index: u64,
    /// The revision of the state.
    pub revision: u64,
    /// The node that sends it.
    pub addr: String,
    client: &'a ExampleClient,
    request: Request,
    response: reqwest::Response,
    received: u64,
}

impl ExampleClient {
    /// Begins to download a snapshot, from any node. It has every write that was acknowledged before the call.
    pub async fn snapshot(&self) -> Result<SnapshotDownload<'_>, ClientError> {
        self.snapshot_with(&[]).await
    }

    /// Begins to download a snapshot of the state of one node, which may be stale. It needs no leader.
    pub async fn snapshot_stale(&self) -> Result<SnapshotDownload<'_>, ClientError> {
        self.snapshot_with(&[("consistency", "stale".to_owned())]).await
    }

    async fn snapshot_with(&self, parameters: &[(&'static str, String)]) -> Result<SnapshotDownload<'_>, ClientError> {
        let target = target_of("/v1/snapshot", parameters)?;
        let request = &Request::new(Method::GET, target, Effect::ReadsOnly, self.deadline);
        self.with_retries(|addr| async move {
            let begun = timeout(request.deadline, self.begin_snapshot(&addr, request)).await;
            begun.unwrap_or_else(|_| Err(request.lost(&addr, "it timed out")))
        })
        .await
    }

    async fn begin_snapshot(&self, addr: &str, request: &Request) -> Result<SnapshotDownload<'_>, ClientError> {
        let response = self.begin(addr, request).await?;
        let status = response.status().as_u16();
        if status != 200 {
            let body = read_response(response, RESPONSE_BYTES_MAX).await;
            let body = body.map_err(|error| request.lost(addr, error.to_string()))?;
            let refused = rejection(addr, status, &body);
            return Err(refused.unwrap_or_else(|error| request.lost(addr, format!("it is invalid: {error}"))));
        }
        let number = |name: &str| {
            let value = response.headers().get(name).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
            value.ok_or_else(|| request.lost(addr, format!("it has no {name} header")))
        };
        Ok(SnapshotDownload {
            bytes: number("content-length")?,
            index: number(SNAPSHOT_INDEX.as_str())?,
            revision: number(REVISION.as_str())?,
            addr: addr.to_owned(),
            client: self,
            request: request.clone(),
            response,
            received: 0,
        })
    }
}

impl SnapshotDownload<'_> {
    /// The next bytes of the file, or `None` at its end.
    ///
    /// # Errors
    ///
    /// [`ClientError::AnswerLost`] if the connection breaks or the node sends nothing for 30 s. A new download begins
    /// at another node.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        let lost = |reason: String| self.request.lost(&self.addr, reason);
        let next = match timeout(EXPORT_SILENCE_MAX, self.response.chunk()).await {
            Ok(Ok(Some(chunk))) => {
                self.received += chunk.len() as u64;
                Ok(Some(chunk))
            }
            Ok(Ok(None)) if self.received == self.bytes => Ok(None),
            Ok(Ok(None)) => Err(lost(format!("the snapshot ends after {} of {} bytes", self.received, self.bytes))),
            Ok(Err(error)) => Err(lost(reason_of(&error))),
            Err(_) => Err(lost(format!("the node sent nothing for {} s", EXPORT_SILENCE_MAX.as_secs()))),
        };
        next.inspect_err(|_| self.client.turn_from(&self.addr))
    }
}
