//! Measures raft-key-value and etcd side by side, and checks raft-key-value's guarantees under load.
//!
//! `arguments` parses the command line, and each subcommand is a module of the same name. They share `load`
//! (closed-loop clients that send to a `target`), the clusters of both systems (`ours` and `etcd`, which use
//! `process`) and `report`.

mod arguments;
mod compare;
mod cpu;
mod disk;
mod elections;
mod etcd;
mod hostile;
mod join;
mod key_value;
mod kill_all;
mod load;
mod ours;
mod overload;
mod plot;
mod process;
mod report;
mod self_check;
mod snapshot_save;
mod snapshots;
mod statistics;
mod target;
mod tls;
mod tokens;
mod workspace;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use arguments::{Arguments, Command};

/// The outcome of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Met,
    /// A performance goal was missed. This is a failure only with `--enforce`.
    GoalMissed,
    /// A guarantee was broken, such as a lost write. This is always a failure.
    PromiseBroken,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let enforce = arguments.command.common().is_some_and(|common| common.enforce);
    match run(arguments.command) {
        Ok(Verdict::Met) => ExitCode::SUCCESS,
        Ok(Verdict::GoalMissed) if !enforce => ExitCode::SUCCESS,
        Ok(Verdict::GoalMissed | Verdict::PromiseBroken) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<Verdict> {
    let threads = command.common().map_or(1, |common| common.load_threads);
    let runtime = match threads {
        1 => tokio::runtime::Builder::new_current_thread().enable_all().build(),
        _ => tokio::runtime::Builder::new_multi_thread().worker_threads(threads.into()).enable_all().build(),
    }
    .context("cannot start the load generator's threads")?;
    // `block_on` keeps the subcommand on this thread, as `ServerProcess` requires.
    runtime.block_on(async {
        match command {
            Command::Compare(arguments) => compare::run(&arguments).await,
            Command::Snapshots(arguments) => snapshots::run(&arguments).await,
            Command::SnapshotSave(arguments) => snapshot_save::run(&arguments).await,
            Command::Join(arguments) => join::run(&arguments).await,
            Command::Elections(arguments) => elections::run(&arguments).await,
            Command::KillAll(arguments) => kill_all::run(&arguments).await,
            Command::KeyValue(arguments) => key_value::run(&arguments).await,
            Command::Overload(arguments) => overload::run(&arguments).await,
            Command::SelfCheck(arguments) => self_check::run(&arguments).await,
            Command::Hostile(arguments) => hostile::run(&arguments).await,
            Command::Tls(arguments) => tls::run(&arguments).await,
            Command::Tokens(arguments) => tokens::run(&arguments).await,
            Command::Plot(arguments) => plot::run(&arguments),
        }
    })
}
