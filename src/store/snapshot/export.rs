//! A snapshot for a client: written into a file without a name, and read while it is being written.
//!
//! Its length is known before its first byte, because adding up the lengths of all records is quick. The
//! file never has a name, so the system deletes it once it is closed, even after a crash. What is written is released to
//! the reader after each sync. The footer, without which no reader accepts the snapshot, is released last: after the
//! hash of the state was computed again from everything that was written.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use super::format::{self, meta_of};
use super::{OpenFile, SnapshotDirectory, check_room, open_for_reading};
use crate::config::EXPORT_PIECE_BYTES;
use crate::store::durable;
use crate::store::error::StoreError;
use crate::store::state_machine::ExampleStateMachine;
use crate::types::SnapshotMeta;

/// A snapshot that is being written for a client.
#[derive(Debug)]
pub struct Export {
    /// The last log id that it covers, and the membership.
    pub meta: SnapshotMeta,
    /// The revision of the state.
    pub revision: u64,
    /// Its length, in bytes.
    pub bytes: u64,
    file: Arc<OpenFile>,
    progress: watch::Receiver<Progress>,
}

/// How far the file is written.
#[derive(Clone, Debug)]
enum Progress {
    /// Up to this offset.
    Written(u64),
    /// No further, for this reason.
    Failed(String),
    /// All of it, and the state is not as it was applied.
    MemoryChanged,
}

/// Why no snapshot is written for a client.
#[derive(Debug)]
pub enum ExportError {
    /// The disk has too little room for a file of this length.
    NoRoom(u64),
    /// The file cannot be created, or the state cannot be encoded.
    Failed(io::Error),
}

impl Export {
    /// The bytes from `offset` on, at most [`EXPORT_PIECE_BYTES`] of them, as soon as there are any; none at the end.
    ///
    /// # Errors
    ///
    /// If the file cannot be written or read, or if there is no more room for it.
    pub async fn read_at(&mut self, offset: u64) -> io::Result<Bytes> {
        if offset >= self.bytes {
            return Ok(Bytes::new());
        }
        let is_ahead = |progress: &Progress| !matches!(progress, Progress::Written(written) if *written <= offset);
        let written = match self.progress.wait_for(is_ahead).await.as_deref() {
            Ok(Progress::Written(written)) => *written,
            Ok(Progress::Failed(why)) => return Err(io::Error::other(why.clone())),
            Ok(Progress::MemoryChanged) => return Err(io::Error::other(StoreError::MemoryChanged)),
            Err(_) => return Err(io::Error::other("the thread that writes it ended")),
        };
        let length = usize::try_from(written - offset).unwrap_or(usize::MAX).min(EXPORT_PIECE_BYTES);
        let file = self.file.clone();
        let read = move || {
            let mut piece = vec![0; length];
            file.read_exact_at(&mut piece, offset)?;
            Ok(piece.into())
        };
        tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
    }
}

impl Export {
    /// Whether the state turned out not to be as it was applied, so that the node must stop.
    pub fn found_changed_memory(&self) -> bool {
        matches!(*self.progress.borrow(), Progress::MemoryChanged)
    }
}

/// Writes a snapshot of `machine`, and hands it to `begun` before its first byte is written. Blocks on the disk.
///
/// `has_room` says whether this many more bytes may be written. It is called before the file is created, and after each
/// sync with the bytes that are left. Writing ends early once it returns false, or once the [`Export`] is dropped. The reader gets all errors.
pub fn write(
    machine: &ExampleStateMachine,
    snapshots: &SnapshotDirectory,
    has_room: impl Fn(u64) -> bool,
    begun: oneshot::Sender<Result<Export, ExportError>>,
) {
    let meta = meta_of(machine);
    let prepared = format::length_of(machine, &meta).map_err(ExportError::Failed).and_then(|bytes| {
        let is_room = has_room(bytes) && check_room(bytes, durable::free_bytes(&snapshots.path)).is_ok();
        if is_room { Ok(bytes) } else { Err(ExportError::NoRoom(bytes)) }
    });
    let prepared = prepared.and_then(|bytes| {
        let (file, readable) = unnamed_file(snapshots).map_err(ExportError::Failed)?;
        Ok((bytes, file, readable))
    });
    let (bytes, mut file, readable) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            // An error means that the client has left.
            let _ = begun.send(Err(error));
            return;
        }
    };
    let (progress_tx, progress) = watch::channel(Progress::Written(0));
    let export = Export { meta: meta.clone(), revision: machine.revision, bytes, file: readable, progress };
    if begun.send(Ok(export)).is_err() {
        return;
    }
    let mut note = |written: u64| {
        if progress_tx.is_closed() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if !has_room(bytes.saturating_sub(written)) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        progress_tx.send_replace(Progress::Written(written));
        Ok(())
    };
    let written = format::write_watched(machine, &meta, &mut file, &mut note);
    let length = file.metadata().map(|metadata| metadata.len());
    progress_tx.send_replace(match (written, length) {
        (Ok(true), Ok(length)) if length == bytes => Progress::Written(bytes),
        (Ok(true), length) => Progress::Failed(format!("it has {length:?} bytes instead of {bytes}")),
        (Ok(false), _) => Progress::MemoryChanged,
        (Err(error), _) => Progress::Failed(error.to_string()),
    });
}

/// A new file in the directory of the snapshots, for writing and for reading, which is deleted once both are closed.
fn unnamed_file(snapshots: &SnapshotDirectory) -> io::Result<(File, Arc<OpenFile>)> {
    let temporary = snapshots.temporary_file();
    let file = temporary.create()?;
    let readable = open_for_reading(&temporary.path)?;
    // Dropping `temporary` deletes the name.
    Ok((file, readable.file))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::store::log::check::CheckedLog;
    use crate::store::state_machine::record::tests::new_record;

    fn machine_of(keys: usize, value: &str) -> ExampleStateMachine {
        let mut machine = ExampleStateMachine { revision: 1, ..ExampleStateMachine::default() };
        for number in 0..keys {
            let key = format!("key {number:06}");
            let record = Arc::new(new_record(&key, value.into(), 1));
            machine.insert_record(key.as_str().into(), record);
        }
        machine
    }

    fn directory() -> (tempfile::TempDir, SnapshotDirectory) {
        let directory = tempfile::tempdir().unwrap();
        let (snapshots, _) = SnapshotDirectory::open(directory.path(), &CheckedLog::default()).unwrap();
        (directory, snapshots)
    }

    async fn all_of(mut export: Export) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        loop {
            let piece = export.read_at(bytes.len() as u64).await?;
            if piece.is_empty() {
                return Ok(bytes);
            }
            assert!(piece.len() <= EXPORT_PIECE_BYTES);
            bytes.extend_from_slice(&piece);
        }
    }

    fn start(
        machine: ExampleStateMachine,
        snapshots: SnapshotDirectory,
        has_room: impl Fn(u64) -> bool + Send + 'static,
    ) -> (oneshot::Receiver<Result<Export, ExportError>>, std::thread::JoinHandle<()>) {
        let (begun_tx, begun) = oneshot::channel();
        (begun, std::thread::spawn(move || write(&machine, &snapshots, has_room, begun_tx)))
    }

    /// A reader gets the bytes of a snapshot file, of the announced length. The directory has no file meanwhile.
    ///
    /// Method: states without keys, with one frame, with many syncs, and with a value longer than a frame.
    #[tokio::test]
    async fn all_bytes_arrive() {
        let long = "v".repeat(1 << 20);
        for (keys, value) in [(0, ""), (1, "v"), (3000, "value"), (9, long.as_str()), (90_000, "a value of some bytes")]
        {
            let (path, snapshots) = directory();
            let machine = machine_of(keys, value);
            let (begun, writer) = start(machine.clone(), snapshots, |_| true);
            let export = begun.await.unwrap().unwrap();
            assert_eq!(fs::read_dir(path.path()).unwrap().count(), 0, "{keys} keys");
            let announced = export.bytes;
            let bytes = all_of(export).await.unwrap();
            writer.join().unwrap();
            assert_eq!(bytes.len() as u64, announced, "{keys} keys");
            let file = path.path().join("copy");
            fs::write(&file, bytes).unwrap();
            assert_eq!(format::load(&file).unwrap().1, machine, "{keys} keys");
        }
    }

    /// Nothing is written without room, and writing ends when there is none left, or when the reader leaves.
    #[tokio::test]
    async fn writing_ends_early() {
        let (path, snapshots) = directory();
        let (begun, writer) = start(machine_of(10, "v"), snapshots, |_| false);
        assert!(matches!(begun.await.unwrap(), Err(ExportError::NoRoom(_))));
        writer.join().unwrap();
        assert_eq!(fs::read_dir(path.path()).unwrap().count(), 0);

        let value = "v".repeat(64 << 10);
        let (_path, snapshots) = directory();
        // Room until 4 MiB are written.
        let (begun, writer) = start(machine_of(200, &value), snapshots, |left| left > 8 << 20);
        let error = all_of(begun.await.unwrap().unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("space"), "{error}");
        writer.join().unwrap();

        let (_path, snapshots) = directory();
        let (begun, writer) = start(machine_of(200, &value), snapshots, |left| {
            assert!(left > 4 << 20, "writing continues without a reader");
            true
        });
        drop(begun.await.unwrap().unwrap());
        writer.join().unwrap();
    }

    /// A state that changed in memory by itself is never released as a whole.
    #[tokio::test]
    async fn changed_memory_is_not_released() {
        let (_path, snapshots) = directory();
        let mut machine = machine_of(10, "v");
        machine.data.insert("key 000003".into(), Arc::new(new_record("key 000003", "w".into(), 1)));
        let (begun, writer) = start(machine, snapshots, |_| true);
        let mut export = begun.await.unwrap().unwrap();
        writer.join().unwrap();
        assert!(export.found_changed_memory());
        assert!(export.read_at(0).await.is_err());
    }
}
