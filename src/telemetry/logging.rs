//! A queue for log lines in front of standard error.
//!
//! A node must not depend on the reader of its log. Standard error may be a full pipe without a reader, a closed pipe,
//! or a file on a full disk. So the node's threads do not write there. They copy each line into a queue of at most
//! [`LOG_QUEUE_BYTES_MAX`] bytes, and one thread writes the queue. A line that does not fit or cannot be written is
//! dropped and counted, and the count is logged as soon as lines can be written again.

use std::io::{self, Write};
use std::panic::PanicHookInfo;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing_subscriber::fmt::MakeWriter;

use crate::config::{LOG_FLUSH_DEADLINE, LOG_QUEUE_BYTES_MAX, LOG_RETRY_PAUSE};

/// Queues log lines for one thread that writes them. Clones share the queue.
///
/// Writing to it never blocks on the destination and never fails.
#[derive(Clone, Debug)]
pub struct LogWriter {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    /// Signaled when a line is queued, and when everything queued has been written or dropped.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    /// Whole lines, at most [`LOG_QUEUE_BYTES_MAX`] bytes.
    lines: Vec<u8>,
    /// Lines dropped since the last time their number was logged.
    dropped: u64,
    /// Whether the thread is writing lines that it has taken off the queue.
    is_writing: bool,
}

impl LogWriter {
    /// Starts the thread that writes to `destination` until the process exits.
    ///
    /// `drop_notice` returns the line that reports how many lines were dropped.
    ///
    /// # Errors
    ///
    /// If the thread cannot be started.
    pub fn start(
        destination: impl Write + Send + 'static,
        drop_notice: impl Fn(u64) -> String + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared { queue: Mutex::default(), changed: Condvar::new() });
        let writer = LogWriter { shared: shared.clone() };
        std::thread::Builder::new()
            .name("log-output".into())
            .spawn(move || write_lines(&shared, destination, drop_notice))?;
        Ok(writer)
    }

    /// Waits until every queued line is written or dropped, for `deadline` at most.
    pub fn flush(&self, deadline: Duration) {
        let deadline = Instant::now() + deadline;
        let mut queue = self.shared.lock();
        while queue.is_writing || !queue.lines.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.shared.changed.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for LogWriter {
    /// Queues `line`, or drops it if the queue is full.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut queue = self.shared.lock();
        if queue.lines.len() + line.len() > LOG_QUEUE_BYTES_MAX {
            queue.dropped += 1;
        } else {
            queue.lines.extend_from_slice(line);
            self.shared.changed.notify_all();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

fn write_lines(shared: &Shared, destination: impl Write, drop_notice: impl Fn(u64) -> String) {
    let mut output = Output { destination, is_torn: false };
    // The queue and this buffer are swapped, so neither is reallocated.
    let mut lines = Vec::new();
    // After a failure, report dropped lines only when there is something else to write.
    let mut has_failed = false;
    loop {
        let mut dropped = take_lines(shared, &mut lines, has_failed);
        let lost = output.write_lines(&lines);
        if lost == 0 && dropped > 0 && output.write_lines(drop_notice(dropped).as_bytes()) == 0 {
            dropped = 0;
        }
        lines.clear();
        has_failed = lost + dropped > 0;
        let mut queue = shared.lock();
        queue.dropped += dropped + lost;
        queue.is_writing = false;
        shared.changed.notify_all();
    }
}

/// Waits for lines, or for dropped lines to report. Takes all lines, and returns how many were dropped before them.
fn take_lines(shared: &Shared, lines: &mut Vec<u8>, has_failed: bool) -> u64 {
    let mut queue = shared.lock();
    while queue.lines.is_empty() && (has_failed || queue.dropped == 0) {
        queue = shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
    }
    std::mem::swap(&mut queue.lines, lines);
    queue.is_writing = true;
    std::mem::take(&mut queue.dropped)
}

struct Output<W> {
    destination: W,
    /// Whether the last line written is incomplete.
    is_torn: bool,
}

impl<W: Write> Output<W> {
    /// Writes whole lines; returns how many of them were lost.
    fn write_lines(&mut self, lines: &[u8]) -> u64 {
        if self.is_torn && !write_all(&mut self.destination, b"\n").is_empty() {
            return lines_in(lines);
        }
        let unwritten = write_all(&mut self.destination, lines);
        let written = &lines[..lines.len() - unwritten.len()];
        self.is_torn = !written.is_empty() && !written.ends_with(b"\n");
        lines_in(unwritten)
    }
}

fn lines_in(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// Writes `bytes`; returns the part that the destination did not accept.
fn write_all<'a>(destination: &mut impl Write, mut bytes: &'a [u8]) -> &'a [u8] {
    while !bytes.is_empty() {
        match destination.write(bytes) {
            Ok(0) => return bytes,
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Another process that shares the pipe or terminal may have made it non-blocking.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(LOG_RETRY_PAUSE),
            // There is nowhere else to report it.
            Err(_) => return bytes,
        }
    }
    bytes
}

/// Writes a line to standard error. Gives up after [`LOG_FLUSH_DEADLINE`], since it may have no reader.
pub fn say(line: &str) {
    // If no thread can be started, write directly. A failure cannot be reported anywhere.
    match LogWriter::start(io::stderr(), |_| String::new()) {
        Ok(mut writer) => {
            let _ = writer.write_all(line.as_bytes());
            LogWriter::flush(&writer, LOG_FLUSH_DEADLINE);
        }
        Err(_) => drop(io::stderr().write_all(line.as_bytes())),
    }
}

/// Describes a panic: the thread, the place and the message.
///
/// The standard hook writes to standard error directly, which may block forever. `tracing` needs thread-local values,
/// which no longer exist if a thread panics while it ends.
pub fn describe_panic(panic: &PanicHookInfo<'_>) -> String {
    let name = std::fs::read_to_string("/proc/thread-self/comm").unwrap_or_default();
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
    format!("thread '{}' panicked at {place}: {}", name.trim_end(), text.unwrap_or("no message"))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    /// A destination whose writes succeed or fail as the test says.
    struct Gate {
        answers: Receiver<io::Result<()>>,
        written: Written,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.answers.recv().unwrap_or(Ok(()))?;
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    type Written = Arc<Mutex<Vec<u8>>>;

    fn start() -> (LogWriter, SyncSender<io::Result<()>>, Written) {
        let (answers_tx, answers) = sync_channel(100);
        let written = Written::default();
        let gate = Gate { answers, written: written.clone() };
        let writer = LogWriter::start(gate, |dropped| format!("dropped {dropped}\n")).unwrap();
        (writer, answers_tx, written)
    }

    fn text(written: &Mutex<Vec<u8>>) -> String {
        String::from_utf8(written.lock().unwrap().clone()).unwrap()
    }

    /// While the destination blocks, writes return at once, memory is bounded, and the number of dropped lines is
    /// reported afterwards.
    ///
    /// Method: block the destination, write twice as many lines as the queue holds, then unblock it.
    #[test]
    fn a_destination_that_blocks() {
        let (mut writer, answers, written) = start();
        writer.write_all(b"first\n").unwrap();
        while !writer.shared.lock().is_writing {
            std::thread::yield_now();
        }
        let line = [vec![b'x'; 1023], vec![b'\n']].concat();
        let lines = 2 * LOG_QUEUE_BYTES_MAX / line.len();
        for _ in 0..lines {
            writer.write_all(&line).unwrap();
        }
        assert!(writer.shared.lock().lines.len() <= LOG_QUEUE_BYTES_MAX);
        writer.flush(Duration::from_millis(1));
        assert_eq!(text(&written), "", "a flush does not wait longer than its deadline");
        drop(answers);
        writer.flush(Duration::from_secs(60));
        let text = text(&written);
        assert!(text.starts_with("first\nxxx"), "{}", &text[..20]);
        assert!(text.ends_with(&format!("\ndropped {}\n", lines / 2)), "{}", &text[text.len() - 40..]);
    }

    /// Lines that cannot be written are dropped and counted, and later lines are written.
    #[test]
    fn a_destination_that_fails() {
        let (mut writer, answers, written) = start();
        for failure in [io::ErrorKind::BrokenPipe, io::ErrorKind::StorageFull] {
            answers.send(Err(failure.into())).unwrap();
            writer.write_all(b"lost\n").unwrap();
            writer.flush(Duration::from_secs(60));
        }
        for failure in [io::ErrorKind::Interrupted, io::ErrorKind::WouldBlock] {
            answers.send(Err(failure.into())).unwrap();
        }
        // Let the line and the drop notice through.
        drop(answers);
        writer.write_all(b"kept\n").unwrap();
        writer.flush(Duration::from_secs(60));
        assert_eq!(text(&written), "kept\ndropped 2\n");
    }
}
