//! Output that is accepted at once, however slow its reader is.
//!
//! The pages of a listing show one revision, which a node keeps for a minute after each page. A reader that takes
//! longer than that for a page, such as a pager, must not delay the next request. So the spool keeps output in memory
//! and, beyond a bound, in a temporary file, and a thread writes it to the reader.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

/// Most bytes in memory.
const MEMORY_BYTES_MAX: usize = 8 << 20;
/// Bytes of the file that are written to the reader at once.
const PIECE_BYTES: usize = 64 << 10;

/// Accepts all output, and writes it in order.
pub struct Spool {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

/// Output that the reader has not got yet.
///
/// Invariant: the bytes in memory come before those in the file.
#[derive(Default)]
struct Waiting {
    memory: Vec<u8>,
    file: Option<File>,
    /// Where the file is read and written next; both are 0 if it is empty.
    read_at: u64,
    written_at: u64,
    /// Whether all output was written to the spool.
    ended: bool,
    /// Why the reader gets no more output.
    failed: Option<io::Error>,
}

impl Spool {
    /// Starts the thread that writes to `target`.
    pub fn start(target: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let reader = thread::Builder::new().name("spool".to_owned()).spawn({
            let shared = shared.clone();
            move || shared.pass_on(target)
        })?;
        Ok(Spool { shared, reader: Some(reader) })
    }
}

impl Write for Spool {
    /// Fails once the reader is gone, or if the temporary file cannot be written.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut waiting = self.shared.lock();
        if let Some(error) = waiting.failed.take() {
            return Err(error);
        }
        waiting.take(bytes)?;
        self.shared.changed.notify_one();
        Ok(bytes.len())
    }

    /// Waits until the reader has got everything, and ends the spool.
    fn flush(&mut self) -> io::Result<()> {
        self.shared.lock().ended = true;
        self.shared.changed.notify_one();
        if let Some(reader) = self.reader.take() {
            // `failed` has its errors.
            let _ = reader.join();
        }
        self.shared.lock().failed.take().map_or(Ok(()), Err)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass_on(&self, mut target: impl Write) {
        loop {
            let piece = {
                let mut waiting = self.lock();
                while waiting.is_empty() && !waiting.ended {
                    waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                }
                waiting.next_piece()
            };
            let passed_on = match piece {
                Ok(piece) if piece.is_empty() => return,
                Ok(piece) => target.write_all(&piece).and_then(|()| target.flush()),
                Err(error) => Err(error),
            };
            if let Err(error) = passed_on {
                self.lock().failed = Some(error);
                return;
            }
        }
    }
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.memory.is_empty() && self.read_at == self.written_at
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        let file_is_empty = self.read_at == self.written_at;
        if file_is_empty && self.memory.len() + bytes.len() <= MEMORY_BYTES_MAX {
            self.memory.extend_from_slice(bytes);
            return Ok(());
        }
        let file = match &self.file {
            Some(file) => file,
            None => self.file.insert(unnamed_file()?),
        };
        file.write_all_at(bytes, self.written_at).map_err(|error| {
            let directory = std::env::temp_dir();
            io::Error::new(
                error.kind(),
                format!("a temporary file in `{}`: {error}; set TMPDIR to another directory", directory.display()),
            )
        })?;
        self.written_at += bytes.len() as u64;
        Ok(())
    }

    /// The next bytes for the reader; empty if there are none.
    fn next_piece(&mut self) -> io::Result<Vec<u8>> {
        if !self.memory.is_empty() {
            return Ok(std::mem::take(&mut self.memory));
        }
        let Some(file) = &self.file else { return Ok(Vec::new()) };
        let left = self.written_at - self.read_at;
        let mut piece = vec![0; PIECE_BYTES.min(usize::try_from(left).unwrap_or(PIECE_BYTES))];
        file.read_exact_at(&mut piece, self.read_at)?;
        self.read_at += piece.len() as u64;
        if self.read_at == self.written_at && self.read_at > 0 {
            // Otherwise the file would never shrink.
            file.set_len(0)?;
            (self.read_at, self.written_at) = (0, 0);
        }
        Ok(piece)
    }
}

/// Creates a file without a name: it is deleted when it is closed, and other processes cannot open it.
fn unnamed_file() -> io::Result<File> {
    let directory = std::env::temp_dir();
    let path = directory.join(format!("raft-key-value-{}-{:08x}", std::process::id(), getrandom::u32().unwrap_or(0)));
    let cannot = |error: io::Error| {
        let what = format!("a temporary file in `{}`: {error}; set TMPDIR to another directory", directory.display());
        io::Error::new(error.kind(), what)
    };
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path).map_err(cannot)?;
    fs::remove_file(&path).map_err(cannot)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Accepts one piece for each message in `go_on`.
    struct Slow {
        go_on: mpsc::Receiver<()>,
        taken: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.go_on.recv().map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
            self.taken.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The spool accepts all output at once and writes it in order, from memory and file in turn.
    ///
    /// Method: write three times what fits into memory; after each third the reader takes some pieces, and at the end
    /// the rest.
    #[test]
    fn a_slow_reader_holds_nothing_up() {
        let (go_on_tx, go_on) = mpsc::channel();
        let taken = Arc::new(Mutex::new(Vec::new()));
        let mut spool = Spool::start(Slow { go_on, taken: taken.clone() }).unwrap();
        let mut written = Vec::new();
        let mut number = 0_u64;
        for round in 0..3 {
            let until = (round + 1) * MEMORY_BYTES_MAX;
            while written.len() < until {
                let line = format!("{number:0999}\n");
                spool.write_all(line.as_bytes()).unwrap();
                written.extend_from_slice(line.as_bytes());
                number += 1;
            }
            for _ in 0..20 {
                go_on_tx.send(()).unwrap();
            }
        }
        (0..1000).try_for_each(|_| go_on_tx.send(())).unwrap();
        spool.flush().unwrap();
        assert!(*taken.lock().unwrap() == written, "{} of {} bytes", taken.lock().unwrap().len(), written.len());
    }

    /// After the reader is gone, the next write or the flush fails.
    #[test]
    fn a_reader_that_is_gone_is_noticed() {
        let (go_on_tx, go_on) = mpsc::channel();
        let mut spool = Spool::start(Slow { go_on, taken: Arc::default() }).unwrap();
        drop(go_on_tx);
        let _ = spool.write_all(b"line");
        let error = spool.flush().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
