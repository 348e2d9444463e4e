//! Figures in a document, between two markers, and where they were measured.

use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Replaces the text between the markers of a section. Appends the markers if they are missing, and begins a
/// missing document with `heading`.
pub fn update(document: &Path, heading: &str, section: &str, content: &str) -> Result<()> {
    let old = match std::fs::read_to_string(document) {
        Err(error) if error.kind() == ErrorKind::NotFound => heading.to_owned(),
        read => read.with_context(|| format!("cannot read `{}`", document.display()))?,
    };
    let new = replace_section(&old, section, content);
    let new = new.with_context(|| format!("cannot update `{}`", document.display()))?;
    if let Some(directory) = document.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot create `{}`", directory.display()))?;
    }
    std::fs::write(document, new).with_context(|| format!("cannot write `{}`", document.display()))
}

fn replace_section(document: &str, section: &str, content: &str) -> Result<String> {
    let begin = format!("<!-- {section}:begin -->");
    let end = format!("<!-- {section}:end -->");
    let (before, after) = match (document.find(&begin), document.find(&end)) {
        (None, None) => (format!("{}\n\n", document.trim_end()), "\n"),
        (Some(begin_at), Some(end_at)) if begin_at < end_at => {
            (document[..begin_at].to_owned(), &document[end_at + end.len()..])
        }
        _ => bail!("the document must contain `{begin}` and `{end}` once each, in this order"),
    };
    Ok(format!("{before}{begin}\n{}\n{end}{after}", content.trim_end()))
}

/// The time of the measurement, in UTC.
pub fn date() -> String {
    output_of("date", &["-u", "+%Y-%m-%d %H:%M UTC"])
}

/// The revision of the sources, with a note if they have changed since.
pub fn revision() -> String {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let revision = output_of("git", &["-C", root, "rev-parse", "--short", "HEAD"]);
    let changes = output_of("git", &["-C", root, "status", "--porcelain", "--", "src", "tools", "Cargo.lock"]);
    if changes.is_empty() { revision } else { format!("{revision} with changes") }
}

/// The release of the kernel.
pub fn kernel() -> String {
    output_of("uname", &["-r"])
}

/// The first line of a program's output; `unknown` if the program fails.
pub fn output_of(program: &str, arguments: &[&str]) -> String {
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => first_line(&output.stdout),
        _ => "unknown".to_owned(),
    }
}

pub fn first_line(output: &[u8]) -> String {
    String::from_utf8_lossy(output).lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A section is replaced in place, or appended if it is new; the rest of the document stays.
    #[test]
    fn a_section_is_replaced_and_the_rest_kept() {
        let first = replace_section("# B\n", "one", "1\n").unwrap();
        assert_eq!(first, "# B\n\n<!-- one:begin -->\n1\n<!-- one:end -->\n");
        let both = replace_section(&first, "two", "2").unwrap() + "tail\n";
        let replaced = replace_section(&both, "one", "new").unwrap();
        assert_eq!(
            replaced,
            "# B\n\n<!-- one:begin -->\nnew\n<!-- one:end -->\n\n\
             <!-- two:begin -->\n2\n<!-- two:end -->\ntail\n"
        );
    }

    /// A document with one marker of a pair is rejected.
    #[test]
    fn half_a_pair_of_markers_is_rejected() {
        assert!(replace_section("<!-- one:begin -->\n", "one", "1").is_err());
    }
}
