//! How what is found is written.

use std::fmt::Display;
use std::io::{self, BufWriter, Stdout, Write};

use raft_key_value::body::write_json_line;
use serde::Serialize;

use super::arguments::Format;

/// Standard output.
pub struct Output {
    format: Format,
    stdout: BufWriter<Stdout>,
}

impl Output {
    pub fn new(format: Format) -> Self {
        Output { format, stdout: BufWriter::new(io::stdout()) }
    }

    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// A line for programs, or else one for people.
    pub fn line(&mut self, value: &impl Serialize, text: impl Display) -> io::Result<()> {
        if self.is_json() {
            write_json_line(&mut self.stdout, value)?;
            writeln!(self.stdout)
        } else {
            writeln!(self.stdout, "{text}")
        }
    }

    /// Bytes, as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stdout.write_all(bytes)
    }

    /// Columns, as wide as what is in them; the first row is their names.
    pub fn table(&mut self, rows: &[Vec<String>]) -> io::Result<()> {
        let columns = rows.first().map_or(0, Vec::len);
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in rows {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            writeln!(self.stdout, "{}", cells.join("  ").trim_end())?;
        }
        Ok(())
    }

    /// Lets out what was written; a command ends with it.
    pub fn flush(&mut self) -> io::Result<()> {
        self.stdout.flush()
    }
}

/// A text in one line that does nothing to a terminal.
pub fn printable(text: &str) -> String {
    // These two split lines too, and are no control characters by Unicode.
    let splits = |character: char| character.is_control() || matches!(character, '\u{2028}' | '\u{2029}');
    let escaped = |character: char| {
        if splits(character) { character.escape_default().to_string() } else { character.to_string() }
    };
    text.chars().map(escaped).collect()
}
