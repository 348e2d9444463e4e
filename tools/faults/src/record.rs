//! Writes the figures of a run into a document, between two markers.

use std::path::Path;

use anyhow::Result;
use harness::document;

const HEADING: &str = "# Runs of the fault harness\n\nWritten by `tools/faults`, see docs/reliability.md.\n";

/// Replaces the section of the document that has this name.
pub fn record(document: &Path, name: &str, figures: &str) -> Result<()> {
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let (date, kernel, revision) = (document::date(), document::kernel(), document::revision());
    let command: Vec<String> = std::env::args().skip(1).collect();
    let command = format!("Command: `raft-key-value-faults {}`", command.join(" "));
    let heading = format!("{date}, on {processors} cores, Linux {kernel}, at revision {revision}.");
    let section = format!("{heading}\n{command}\n\n```text\n{}\n```\n", figures.trim());
    document::update(document, HEADING, name, &section)
}
