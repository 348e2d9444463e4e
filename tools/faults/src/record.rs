//! Writes the figures of a run into a document, between two markers.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

/// Replaces the text between `<!-- name:begin -->` and `<!-- name:end -->`.
pub fn record(document: &Path, name: &str, figures: &str) -> Result<()> {
    let text = fs::read_to_string(document).with_context(|| format!("cannot read `{}`", document.display()))?;
    let (begin, end) = (format!("<!-- {name}:begin -->\n"), format!("<!-- {name}:end -->"));
    let missing = || format!("`{}` must contain the markers {begin:?} and {end:?}", document.display());
    let (before, rest) = text.split_once(&begin).with_context(missing)?;
    let (_, after) = rest.split_once(&end).with_context(missing)?;
    let heading = format!("{}, on {}, at revision {}.", said("date", &["-u", "+%F %R UTC"]), machine(), revision());
    let command: Vec<String> = std::env::args().skip(1).collect();
    let command = format!("Command: `raft-key-value-faults {}`", command.join(" "));
    let text = format!("{before}{begin}{heading}\n{command}\n\n```text\n{}\n```\n{end}{after}", figures.trim());
    fs::write(document, text).with_context(|| format!("cannot write `{}`", document.display()))
}

fn machine() -> String {
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{processors} cores, Linux {}", said("uname", &["-r"]))
}

/// The revision of the sources, with a note if they have changed since.
fn revision() -> String {
    let changed = !said("git", &["status", "--porcelain", "--", "src", "tools", "Cargo.lock"]).is_empty();
    let revision = said("git", &["rev-parse", "--short", "HEAD"]);
    if changed { format!("{revision} with changes") } else { revision }
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or_else(|_| "?".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
