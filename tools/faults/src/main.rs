//! Breaks nodes, disks and networks under a cluster, and checks every response.
//!
//! A run consists of a few lanes at the same time (`lane`). Each has a cluster on hosts of its own
//! (`sandbox`, `network`, `disk`), under load (`load`, `hostile`, `watcher`, `tokens`), with one fault after another
//! (`fault`). The requests and responses of the clients are the `history`; `checker` decides whether a
//! correct store can have produced it.

mod arguments;
mod checker;
mod cluster;
mod disk;
mod fault;
mod finding;
mod history;
mod hostile;
mod lane;
mod lease;
mod load;
mod monitor;
mod network;
mod node;
mod outage;
mod plans;
mod process;
mod proxy;
mod record;
mod renames;
mod report;
mod sandbox;
mod selftest;
mod stall;
mod store;
mod tokens;
mod total;
mod verdict;
mod watcher;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use arguments::{Arguments, Command};
use history::History;
use verdict::{EXIT_ERROR, Verdict};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments.command) {
        Ok(verdict) => {
            println!("{}", verdict.conclusion());
            ExitCode::from(verdict.exit_code())
        }
        Err(error) => {
            eprintln!("ERROR (exit code {EXIT_ERROR}): no verdict: {error:#}");
            ExitCode::from(EXIT_ERROR)
        }
    }
}

fn run(command: &Command) -> Result<Verdict> {
    if let Command::Check { history } = command {
        return check(history);
    }
    sandbox::enter()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the harness's threads")?;
    let verdict = runtime.block_on(async {
        tokio::select! {
            verdict = dispatch(command) => verdict,
            // The first process of a PID namespace gets only signals for which it has a handler.
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        }
    });
    runtime.shutdown_background();
    verdict
}

fn check(path: &Path) -> Result<Verdict> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let history: History = serde_json::from_slice(&bytes).context("the file is not the history of a run")?;
    let report = checker::check(&history);
    println!("{report}");
    Ok(report.verdict().into())
}

async fn dispatch(command: &Command) -> Result<Verdict> {
    match command {
        Command::Run(arguments) => plans::run(arguments).await,
        Command::Check { history } => check(history),
        Command::Soak(arguments) => plans::soak(arguments).await,
        Command::Control(arguments) => plans::control(arguments).await,
        Command::Outage(arguments) => outage::run(arguments).await,
        Command::Selftest(arguments) => selftest::run(arguments).await,
    }
}
