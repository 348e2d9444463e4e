//! Measures what hostile and odd clients do to a cluster.
//!
//! Each load (`rows`) gets a new cluster of three nodes. During the load, and for a while after it, an
//! ordinary client keeps writing (`observer`), and terms and memory are recorded (`stage`). The loads are
//! sent from raw sockets (`client`).

mod client;
mod markdown;
mod observer;
mod progress;
mod rows;
mod stage;

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::Verdict;
use crate::arguments::HostileArguments;
use crate::ours::OursOptions;
use crate::process::raise_open_files_limit;
use crate::report::{Environment, Goal, Limit, publish};
use crate::statistics::{mebibytes, thousands};
use crate::workspace::{Workspace, our_server};

use rows::{ROWS, Row};
use stage::Stage;

const GAP_MS_MAX: f64 = 300.0;
const MEMORY_MIB_MAX: f64 = 256.0;
/// How long a cluster is observed after a load.
const REST: Duration = Duration::from_secs(2);
const REST_QUICK: Duration = Duration::from_millis(500);
/// Maximum number of times that `--quick` runs a load: other work on the machine may disturb one run.
const QUICK_ATTEMPTS_MAX: usize = 2;

#[derive(Serialize)]
struct Figures {
    environment: Environment,
    seconds: u64,
    scale: f64,
    rows: Vec<RowFigures>,
}

#[derive(Serialize)]
struct RowFigures {
    name: &'static str,
    outcome: RowOutcome,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum RowOutcome {
    Measured(Box<stage::Figures>),
    /// A node ended, or the load could not be prepared.
    Failed(String),
}

pub async fn run(arguments: &HostileArguments) -> Result<Verdict> {
    let rows = chosen(arguments)?;
    if arguments.list {
        for row in rows {
            println!("{:<22} {}", row.name, row.what);
        }
        return Ok(Verdict::Met);
    }
    let options = our_server(&arguments.common)?;
    let environment = Environment::gather(&[&options.server])?;
    raise_open_files_limit()?;
    let mut workspace = Workspace::create(&arguments.common, "hostile")?;
    let mut figures = Figures { environment, seconds: arguments.seconds(), scale: arguments.scale(), rows: Vec::new() };
    let mut quick_missed = Vec::new();
    for row in rows {
        let mut attempts = 0;
        let measured = loop {
            attempts += 1;
            let measured = run_row(row, arguments, &options, &workspace).await?;
            println!("{}", measured.line());
            match measured.quick_complaint() {
                Some(complaint) if arguments.quick && attempts == QUICK_ATTEMPTS_MAX => {
                    quick_missed.push(complaint);
                }
                Some(complaint) if arguments.quick => {
                    println!("retrying: {complaint}");
                    continue;
                }
                _ => {}
            }
            break measured;
        };
        figures.rows.push(measured);
    }
    let has_failed = figures.rows.iter().any(|row| matches!(row.outcome, RowOutcome::Failed(_)));
    if has_failed {
        workspace.keep();
    }
    workspace.finish()?;

    publish(&arguments.common, "hostile", &figures.markdown(), &figures, !arguments.is_partial())?;
    for complaint in &quick_missed {
        println!("FAILED: {complaint}");
    }
    Ok(if has_failed || !quick_missed.is_empty() {
        Verdict::PromiseBroken
    } else if figures.goals().iter().all(Goal::is_met) || arguments.quick {
        Verdict::Met
    } else {
        Verdict::GoalMissed
    })
}

fn chosen(arguments: &HostileArguments) -> Result<Vec<&'static Row>> {
    if arguments.only.is_empty() {
        return Ok(ROWS.iter().collect());
    }
    let by_name = |name: &String| {
        let row = ROWS.iter().find(|row| row.name == name);
        row.with_context(|| format!("unknown load `{name}`; --list prints all names"))
    };
    arguments.only.iter().map(by_name).collect()
}

async fn run_row(
    row: &'static Row,
    arguments: &HostileArguments,
    options: &OursOptions,
    workspace: &Workspace,
) -> Result<RowFigures> {
    let directory = workspace.path(row.name);
    let length = Duration::from_secs(arguments.seconds());
    let rest = if arguments.quick { REST_QUICK } else { REST };
    let mut stage = Stage::create(options, &directory, arguments.scale(), length).await?;
    let measuring = async {
        (row.load)(&mut stage).await?;
        stage.finish(rest).await
    };
    let measured = measuring.await;
    // That a node has ended explains more than the errors that follow from it.
    let measured = match stage.check_running() {
        Ok(()) => measured,
        Err(ended) => Err(ended),
    };
    stage.kill();
    let outcome = match measured {
        Ok(figures) => {
            workspace.discard(&directory)?;
            RowOutcome::Measured(Box::new(figures))
        }
        Err(error) => {
            // Move the directory away, so that the next attempt can use its name.
            let kept = directory.with_extension(format!("failed-{}", fastrand::u16(..)));
            std::fs::rename(&directory, &kept).context("cannot rename the data of a load that failed")?;
            RowOutcome::Failed(format!("{error:#} (data and logs: {})", kept.display()))
        }
    };
    Ok(RowFigures { name: row.name, outcome })
}

impl RowFigures {
    fn goals(&self) -> Vec<Goal> {
        let RowOutcome::Measured(figures) = &self.outcome else { return Vec::new() };
        let goal = |what: &str, max, measured, unit| Goal {
            what: format!("`{}`: {what}", self.name),
            limit: Limit::AtMost(max),
            measured,
            unit,
        };
        vec![
            goal("elections", 0.0, figures.elections() as f64, ""),
            goal("longest gap of the probe", GAP_MS_MAX, figures.probe.gap_us as f64 / 1e3, " ms"),
            self.memory_goal(figures),
        ]
    }

    fn memory_goal(&self, figures: &stage::Figures) -> Goal {
        Goal {
            what: format!("`{}`: memory beyond the data and what is configured", self.name),
            limit: Limit::AtMost(MEMORY_MIB_MAX),
            measured: figures.unexpected_bytes() as f64 / f64::from(1 << 20),
            unit: " MiB",
        }
    }

    /// Why `--quick` rejects the load's figures, if it does.
    fn quick_complaint(&self) -> Option<String> {
        match &self.outcome {
            RowOutcome::Failed(error) => Some(format!("{}: {error}", self.name)),
            RowOutcome::Measured(figures) if figures.elections() > 0 => {
                Some(format!("{}: {} elections", self.name, figures.elections()))
            }
            RowOutcome::Measured(figures) if !self.memory_goal(figures).is_met() => {
                let beyond = mebibytes(&[figures.unexpected_bytes()]);
                Some(format!("{}: a node took {beyond} MiB beyond the data and what is configured", self.name))
            }
            RowOutcome::Measured(_) => None,
        }
    }

    /// A line of progress for the terminal.
    fn line(&self) -> String {
        match &self.outcome {
            RowOutcome::Failed(error) => format!("{:<22} FAILED: {error}", self.name),
            RowOutcome::Measured(figures) => format!(
                "{:<22} elections {}+{}  gap {} ms  p99 {} ms  memory +{} MiB  {}",
                self.name,
                figures.elections_during,
                figures.elections_after,
                thousands(figures.probe.gap_us as f64 / 1e3),
                thousands(figures.probe.us_p99 as f64 / 1e3),
                mebibytes(&[figures.growth_bytes()]),
                figures.became(),
            ),
        }
    }
}

impl Figures {
    fn goals(&self) -> Vec<Goal> {
        self.rows.iter().flat_map(RowFigures::goals).collect()
    }
}
