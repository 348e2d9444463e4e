//! Progress of long commands, on standard error.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use raft_key_value::telemetry::logging::say;

/// Interval at which a terminal shows progress.
const TERMINAL_INTERVAL: Duration = Duration::from_millis(200);
/// A file or pipe gets its first line after this time.
const FIRST_LINE_AFTER: Duration = Duration::from_secs(1);
/// Interval between the lines after that.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Shows how far a command is: on a terminal in one line, otherwise in a line now and then, and only if it takes longer
/// than a second.
pub struct Progress {
    what: &'static str,
    began: Instant,
    next: Instant,
    is_terminal: bool,
    is_shown: bool,
}

impl Progress {
    pub fn new(what: &'static str) -> Self {
        let (began, is_terminal) = (Instant::now(), io::stderr().is_terminal());
        let next = began + if is_terminal { TERMINAL_INTERVAL } else { FIRST_LINE_AFTER };
        Progress { what, began, next, is_terminal, is_shown: false }
    }

    /// Shows that `done` of `total` bytes are done, if it is time for that.
    pub fn show(&mut self, done: u64, total: u64) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        let percent = (done * 100).checked_div(total).unwrap_or(100);
        let seconds = now.duration_since(self.began).as_secs_f64();
        let rate = size_of((done as f64 / seconds) as u64);
        let text = format!("{}: {} of {} ({percent} %), {rate}/s", self.what, size_of(done), size_of(total));
        if self.is_terminal {
            // To the beginning of the line, and clear the rest of it.
            say(&format!("\r{text}\x1b[K"));
            self.next = now + TERMINAL_INTERVAL;
        } else {
            say(&format!("{text}\n"));
            self.next = now + LINE_INTERVAL;
        }
        self.is_shown = true;
    }

    /// Ends the line of a terminal.
    pub fn end(&mut self) {
        if self.is_terminal && self.is_shown {
            say("\r\x1b[K");
        }
        self.is_shown = false;
    }
}

/// A length for people.
pub fn size_of(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    let mut size = bytes as f64;
    let mut unit = "bytes";
    for next in UNITS {
        if size < 1000.0 {
            break;
        }
        (size, unit) = (size / 1000.0, next);
    }
    if unit == "bytes" { format!("{bytes} bytes") } else { format!("{size:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lengths have a unit that keeps them short.
    #[test]
    fn sizes() {
        let rows = [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (340_000_000, "340.0 MB")];
        for (bytes, text) in rows {
            assert_eq!(size_of(bytes), text);
        }
        assert_eq!(size_of(u64::MAX), "18446744.1 TB");
    }
}
