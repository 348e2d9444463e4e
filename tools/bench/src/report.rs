//! The results of a run: Markdown between markers, and raw figures as JSON.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::arguments::CommonArguments;

const HEADING: &str = "# Benchmarks\n\nWritten by `tools/bench`, see `tools/bench/README.md`.\n";

/// Where and how the figures were measured.
#[derive(Serialize)]
pub struct Environment {
    date: String,
    command: String,
    revision: String,
    /// As printed by `--version`.
    versions: Vec<String>,
    rustc: String,
    kernel: String,
    cpu: String,
    cores: usize,
}

/// A required minimum or maximum of a figure.
#[derive(Serialize)]
pub struct Goal {
    pub what: String,
    pub limit: Limit,
    pub measured: f64,
    /// `×` for a ratio.
    pub unit: &'static str,
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    AtLeast(f64),
    AtMost(f64),
}

impl Environment {
    pub fn gather(servers: &[&Path]) -> Result<Self> {
        let mut versions = Vec::new();
        for server in servers {
            versions.push(version_of(server)?);
        }
        let cpu_info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpu_info
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map_or("unknown", |(_, model)| model);
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease");
        let mut words = std::env::args();
        let program = words.next().unwrap_or_default();
        let program = program.rsplit('/').next().unwrap_or_default().to_owned();
        let words: Vec<String> = std::iter::once(program).chain(words).collect();
        Ok(Self {
            date: output_of("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
            command: words.join(" "),
            revision: output_of("git", &["-C", env!("CARGO_MANIFEST_DIR"), "rev-parse", "--short", "HEAD"]),
            versions,
            rustc: output_of("rustc", &["--version"]),
            kernel: kernel.map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned()),
            cpu: cpu.to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
        })
    }

    pub fn markdown(&self) -> String {
        format!(
            "{}, on {} ({} cores, shared by the servers and the load), Linux {}, at revision {}.\n\
             \n\
             - command: `{}`\n\
             - servers: {}\n\
             - toolchain: {}\n",
            self.date,
            self.cpu,
            self.cores,
            self.kernel,
            self.revision,
            self.command,
            self.versions.join(", "),
            self.rustc,
        )
    }
}

/// The first line that `program --version` prints.
fn version_of(program: &Path) -> Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .with_context(|| format!("cannot run `{}`", program.display()))?;
    if !output.status.success() {
        bail!(
            "`{} --version` failed ({}): {}",
            program.display(),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(first_line(&output.stdout))
}

fn output_of(program: &str, arguments: &[&str]) -> String {
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => first_line(&output.stdout),
        _ => "unknown".to_owned(),
    }
}

fn first_line(output: &[u8]) -> String {
    String::from_utf8_lossy(output).lines().next().unwrap_or_default().to_owned()
}

impl Goal {
    pub fn is_met(&self) -> bool {
        match self.limit {
            Limit::AtLeast(limit) => self.measured >= limit,
            Limit::AtMost(limit) => self.measured <= limit,
        }
    }

    pub fn table(goals: &[Goal]) -> String {
        let mut table = String::from("| goal | wanted | measured | |\n| --- | --- | --- | --- |\n");
        for goal in goals {
            let wanted = match goal.limit {
                Limit::AtLeast(limit) => format!("at least {limit}{}", goal.unit),
                Limit::AtMost(limit) => format!("at most {limit}{}", goal.unit),
            };
            let verdict = if goal.is_met() { "pass" } else { "**fail**" };
            table += &format!("| {} | {wanted} | {:.2}{} | {verdict} |\n", goal.what, goal.measured, goal.unit);
        }
        table
    }
}

/// Prints the report, and writes it where the arguments say.
pub fn publish(
    common: &CommonArguments,
    section: &str,
    markdown: &str,
    figures: &impl Serialize,
    write_by_default: bool,
) -> Result<()> {
    println!("\n{markdown}");
    if let Some(path) = &common.json {
        let json = serde_json::to_string_pretty(figures)? + "\n";
        std::fs::write(path, json).with_context(|| format!("cannot write `{}`", path.display()))?;
        println!("raw figures: {}", path.display());
    }
    if common.output.is_some() || (write_by_default && !common.print_only) {
        let path = common.output();
        update_section(&path, section, markdown)?;
        println!("updated: {}", path.display());
    }
    Ok(())
}

fn update_section(path: &Path, section: &str, content: &str) -> Result<()> {
    let old = match std::fs::read_to_string(path) {
        Ok(old) => old,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => HEADING.to_owned(),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read `{}`", path.display()));
        }
    };
    let new = replace_section(&old, section, content).with_context(|| format!("cannot update `{}`", path.display()))?;
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot create `{}`", directory.display()))?;
    }
    std::fs::write(path, new).with_context(|| format!("cannot write `{}`", path.display()))
}

/// Returns `document` with `content` between the section's markers. Appends the markers if they are missing,
/// and keeps everything else.
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

    #[test]
    fn half_a_pair_of_markers_is_refused() {
        assert!(replace_section("<!-- one:begin -->\n", "one", "1").is_err());
    }

    #[test]
    fn a_goal_is_met_at_its_limit() {
        let goal = |limit, measured| Goal { what: String::new(), limit, measured, unit: "×" };
        assert!(goal(Limit::AtLeast(1.6), 1.6).is_met());
        assert!(!goal(Limit::AtLeast(1.6), 1.59).is_met());
        assert!(goal(Limit::AtMost(0.65), 0.65).is_met());
        assert!(!goal(Limit::AtMost(0.65), 0.66).is_met());
    }
}
