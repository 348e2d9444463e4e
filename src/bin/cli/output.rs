//! Output of commands, as text or JSON.

use std::fmt::Display;
use std::future;
use std::io::{self, BufWriter, Stdout, Write};

use raft_key_value::body::write_json_line;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use serde::Serialize;
use tokio::sync::oneshot;

use super::arguments::Format;
use super::failure::Failure;
use super::spool::Spool;

/// The output of a command: standard output, or a spool in front of it.
pub struct Output<W: Write = BufWriter<Stdout>> {
    format: Format,
    to: W,
}

impl Output {
    pub fn new(format: Format) -> Self {
        Output { format, to: BufWriter::new(io::stdout()) }
    }

    /// Writes through a [`Spool`], which accepts output faster than the reader reads it.
    pub fn spooled(self) -> io::Result<Output<BufWriter<Spool>>> {
        Ok(Output { format: self.format, to: BufWriter::new(Spool::start(io::stdout())?) })
    }
}

impl<W: Write> Output<W> {
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Writes `value` as a line of JSON, or `text` as a line, depending on the format.
    pub fn line(&mut self, value: &impl Serialize, text: impl Display) -> io::Result<()> {
        if self.is_json() {
            write_json_line(&mut self.to, value)?;
            writeln!(self.to)
        } else {
            writeln!(self.to, "{text}")
        }
    }

    /// Writes the result of a write like [`line`](Self::line). The error says that the write was applied.
    pub fn result(&mut self, value: &impl Serialize, text: &str) -> Result<(), Failure> {
        self.line(value, text).and_then(|()| self.flush()).map_err(|error| {
            let result = text.lines().next().unwrap_or_default().to_owned();
            Failure::Unwritten { result, error }
        })
    }

    /// Writes bytes unchanged.
    pub fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.to.write_all(bytes)
    }

    /// Writes columns as wide as their longest cell. The first row has their names.
    pub fn table(&mut self, rows: &[Vec<String>]) -> io::Result<()> {
        let columns = rows.first().map_or(0, Vec::len);
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in rows {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            writeln!(self.to, "{}", cells.join("  ").trim_end())?;
        }
        Ok(())
    }

    /// Flushes the output. A command ends with this.
    pub fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Resolves once the reader of standard output has closed it. A file or a terminal never resolves it.
pub async fn output_is_closed() {
    let (closed_tx, closed_rx) = oneshot::channel();
    let wait = move || {
        let stdout = io::stdout();
        let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
        // Without requested events, poll returns only for an error or a hang-up.
        let result = loop {
            match poll(&mut fds, None) {
                Err(Errno::INTR) => {}
                result => break result,
            }
        };
        if result.is_ok() {
            let _ = closed_tx.send(());
        }
    };
    // The thread waits until the process exits.
    let started = std::thread::Builder::new().name("stdout".to_owned()).spawn(wait);
    if started.is_err() || closed_rx.await.is_err() {
        future::pending::<()>().await;
    }
}

/// Escapes control characters, so that a text is one line and cannot control a terminal.
pub fn printable(text: &str) -> String {
    // Some programs split lines at these two as well, but Unicode does not class them as control characters.
    let splits = |character: char| character.is_control() || matches!(character, '\u{2028}' | '\u{2029}');
    let escaped = |character: char| {
        if splits(character) { character.escape_default().to_string() } else { character.to_string() }
    };
    text.chars().map(escaped).collect()
}
