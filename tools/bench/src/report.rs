//! The results of a run: Markdown between markers, and raw figures as JSON.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use harness::document;
use serde::{Deserialize, Serialize};

use crate::Verdict;
use crate::arguments::CommonArguments;

const HEADING: &str = "# Runs of the benchmarks\n\nWritten by `tools/bench`, see `tools/bench/README.md`.\n";

/// Where and how the figures were measured.
#[derive(Deserialize, Serialize)]
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
        let mut words = std::env::args();
        let program = words.next().unwrap_or_default();
        let program = program.rsplit('/').next().unwrap_or_default().to_owned();
        let words: Vec<String> = std::iter::once(program).chain(words).collect();
        Ok(Self {
            date: document::date(),
            command: words.join(" "),
            revision: document::revision(),
            versions,
            rustc: document::output_of("rustc", &["--version"]),
            kernel: document::kernel(),
            cpu: cpu.to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
        })
    }

    /// The same in a line.
    pub fn caption(&self) -> String {
        format!("{}, {} ({} cores), revision {}", self.date, self.cpu, self.cores, self.revision)
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
    Ok(document::first_line(&output.stdout))
}

impl Goal {
    pub fn verdict(goals: &[Goal]) -> Verdict {
        if goals.iter().all(Goal::is_met) { Verdict::Met } else { Verdict::GoalMissed }
    }

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
        document::update(&path, HEADING, section, markdown)?;
        println!("updated: {}", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_met_at_its_limit() {
        let goal = |limit, measured| Goal { what: String::new(), limit, measured, unit: "×" };
        assert!(goal(Limit::AtLeast(1.6), 1.6).is_met());
        assert!(!goal(Limit::AtLeast(1.6), 1.59).is_met());
        assert!(goal(Limit::AtMost(0.65), 0.65).is_met());
        assert!(!goal(Limit::AtMost(0.65), 0.66).is_met());
    }
}
