//! `GET /v1/snapshot`: a snapshot of this node's state as a file, for backups.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use actix_web::body::{BodySize, MessageBody};
use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::access::{Caller, ToManage};
use super::openapi::answers::{RawValue, SnapshotErrors};
use super::openapi::parameters::{ForwardHeader, SnapshotParameters};
use super::parameters::Parameters;
use super::request_body::reject_body;
use super::v1::{self, ready_to_read};
use crate::app::ExampleApp;
use crate::config::{BODY_PIECE_BYTES, EXPORT_BYTES_A_SECOND_MIN, EXPORT_DEADLINE_LEAST, EXPORT_WAIT_MAX};
use crate::error::{ApiError, Details, Retry};
use crate::headers::{REVISION, SNAPSHOT_INDEX};
use crate::store::snapshot::export::{Export, ExportError};

/// Downloads a snapshot.
///
/// The body is a snapshot file: the state of the store at one log index, with checksums, which
/// `raft-key-value snapshot restore` makes a new cluster of. Writes continue meanwhile. A node sends one snapshot at a
/// time; another request waits up to 2 s, and then gets 503. A download that takes longer than 60 s and a second for each MiB is cut off.
#[utoipa::path(
    get,
    path = "/v1/snapshot",
    operation_id = "get_snapshot",
    tag = "The cluster",
    params(SnapshotParameters, ForwardHeader),
    responses(
        (
            status = 200,
            description = "The snapshot. `Content-Length` is known from the start. A body that ends earlier is \
                incomplete, and its checksums are missing.",
            body = inline(RawValue),
            content_type = "application/octet-stream",
            headers(("Raft-Snapshot-Index" = u64, description = "The index of the last log entry in the snapshot.")),
        ),
        SnapshotErrors,
    ),
)]
pub async fn snapshot(app: Caller<ToManage>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    v1::answer(&app, begin(&app, &request, payload).await)
}

async fn begin(app: &Caller<ToManage>, request: &HttpRequest, payload: web::Payload) -> Result<HttpResponse, ApiError> {
    reject_body(app, request, payload).await?;
    let stale = Parameters::of(request, &["consistency"])?.stale()?;
    ready_to_read(app, request, &app.may_read_all()?, stale).await?;
    let permit = tokio::time::timeout(EXPORT_WAIT_MAX, app.exports.clone().acquire_owned()).await;
    let Ok(Ok(permit)) = permit else {
        let message = "this node already sends a snapshot to a client; retry, or use another node";
        return Err(ApiError::Overloaded(Retry::soon(message)));
    };
    let disk = app.disk.clone();
    let export = app.store.state_machine.export(move |bytes| disk.has_room_for(bytes)).await;
    let export = export.map_err(|error| match error {
        ExportError::NoRoom(bytes) => ApiError::DiskSpaceLow(Details::not_applied(format!(
            "the disk of this node has too little space for a snapshot of {bytes} bytes in addition to what writes \
             need: free some space, or use another node"
        ))),
        ExportError::Failed(error) => ApiError::internal(format!("cannot write the snapshot: {error}")),
    })?;
    let index = export.meta.last_log_id.map_or(0, |log_id| log_id.index);
    let (revision, bytes) = (export.revision, export.bytes);
    let file_name = format!("attachment; filename=\"snapshot-{index}.snap\"");
    let mut response = HttpResponse::build(StatusCode::OK);
    response.insert_header((header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")));
    response.insert_header((header::CONTENT_DISPOSITION, file_name));
    response.insert_header((REVISION.clone(), HeaderValue::from(revision)));
    response.insert_header((SNAPSHOT_INDEX.clone(), HeaderValue::from(index)));
    let (pieces_tx, pieces) = mpsc::channel(1);
    actix_web::rt::spawn(send(web::Data::clone(app), export, pieces_tx, permit));
    Ok(response.body(Download { pieces, piece: Bytes::new(), left: bytes }))
}

/// Reads the file of a snapshot as fast as its client does, until its deadline. A client that reads nothing holds no
/// disk space after that.
async fn send(
    app: web::Data<ExampleApp>,
    mut export: Export,
    pieces: mpsc::Sender<io::Result<Bytes>>,
    permit: OwnedSemaphorePermit,
) {
    let deadline = EXPORT_DEADLINE_LEAST + Duration::from_secs(export.bytes / EXPORT_BYTES_A_SECOND_MIN);
    let ended = ended(send_all(&mut export, &pieces), &pieces, app.stopped(), deadline).await;
    if export.found_changed_memory() {
        app.set_memory_changed();
    }
    if let Err(error) = ended {
        tracing::warn!("a client did not get a whole snapshot of {} bytes: {error}", export.bytes);
        // The body ends early in any case.
        let _ = pieces.try_send(Err(error));
    }
    drop((export, permit));
}

/// Sends until all is sent, the client has disconnected, the node stops, or the deadline has passed.
async fn ended(
    sending: impl Future<Output = io::Result<()>>,
    pieces: &mpsc::Sender<io::Result<Bytes>>,
    stopped: impl Future<Output = ()>,
    deadline: Duration,
) -> io::Result<()> {
    tokio::select! {
        biased;
        sent = sending => sent,
        () = pieces.closed() => Ok(()),
        () = stopped => Err(io::Error::other("the node is stopping")),
        () = tokio::time::sleep(deadline) => {
            Err(io::Error::other(format!("the client did not read it within {} s", deadline.as_secs())))
        }
    }
}

async fn send_all(export: &mut Export, pieces: &mpsc::Sender<io::Result<Bytes>>) -> io::Result<()> {
    let mut offset = 0;
    loop {
        let piece = export.read_at(offset).await?;
        offset += piece.len() as u64;
        if piece.is_empty() || pieces.send(Ok(piece)).await.is_err() {
            return Ok(());
        }
    }
}

/// The body of a response with a snapshot.
struct Download {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    /// The rest of the piece that is being sent.
    piece: Bytes,
    /// Bytes of the snapshot that are not sent.
    left: u64,
}

impl MessageBody for Download {
    type Error = io::Error;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.left)
    }

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        if self.piece.is_empty() {
            self.piece = match ready!(self.pieces.poll_recv(context)) {
                Some(Ok(piece)) => piece,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(Some(Err(io::Error::other("the snapshot ends early")))),
            };
        }
        let length = self.piece.len().min(BODY_PIECE_BYTES);
        self.left -= length as u64;
        Poll::Ready(Some(Ok(self.piece.split_to(length))))
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    /// A client that reads nothing is cut off at the deadline, so that it does not hold the file, and the turn of other
    /// clients, forever. One that disconnects ends it at once, and so does the node when it stops.
    ///
    /// Method: send pieces and take none out of the channel.
    #[tokio::test]
    async fn a_client_that_reads_nothing_is_cut_off() {
        let (soon, never) = (Duration::from_millis(50), Duration::from_secs(3600));
        let sending = |pieces: &mpsc::Sender<io::Result<Bytes>>| {
            let pieces = pieces.clone();
            async move {
                while pieces.send(Ok(Bytes::from_static(b"piece"))).await.is_ok() {}
                Ok(())
            }
        };
        let (pieces, unread) = mpsc::channel(1);
        let cut_off = ended(sending(&pieces), &pieces, pending(), soon);
        let error = tokio::time::timeout(Duration::from_secs(30), cut_off).await.expect("it ends").unwrap_err();
        assert!(error.to_string().contains("did not read it within"), "{error}");
        let error = ended(sending(&pieces), &pieces, std::future::ready(()), never).await.unwrap_err();
        assert!(error.to_string().contains("the node is stopping"), "{error}");
        drop(unread);
        ended(pending(), &pieces, pending(), never).await.unwrap();
    }
}
