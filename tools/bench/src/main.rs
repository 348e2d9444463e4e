//! Measures raft-key-value beside etcd, and checks its promises under load.
//!
//! `arguments` reads the command line; each subcommand is a module of its name;
//! they share `load` (the closed-loop clients, against a `target`), the two
//! systems' clusters (`ours`, `etcd`, on `process`) and `report`.

mod arguments;
mod compare;
mod cpu;
mod disk;
mod elections;
mod etcd;
mod hostile;
mod key_value;
mod kill_all;
mod load;
mod ours;
mod overload;
mod process;
mod report;
mod self_check;
mod snapshots;
mod statistics;
mod target;
mod workspace;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use arguments::{Arguments, Command};

/// Whether what was to be shown was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Met,
    /// A goal of speed was missed: a failure with `--enforce` only.
    GoalMissed,
    /// A promise was broken, such as a write lost: always a failure.
    PromiseBroken,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let enforce = arguments.command.common().enforce;
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
    let threads = command.common().load_threads;
    let runtime = match threads {
        1 => tokio::runtime::Builder::new_current_thread().enable_all().build(),
        _ => tokio::runtime::Builder::new_multi_thread().worker_threads(threads.into()).enable_all().build(),
    }
    .context("cannot start the load generator's threads")?;
    // `block_on` keeps the subcommand on this thread, which `ServerProcess` needs.
    runtime.block_on(async {
        match command {
            Command::Compare(arguments) => compare::run(&arguments).await,
            Command::Snapshots(arguments) => snapshots::run(&arguments).await,
            Command::Elections(arguments) => elections::run(&arguments).await,
            Command::KillAll(arguments) => kill_all::run(&arguments).await,
            Command::KeyValue(arguments) => key_value::run(&arguments).await,
            Command::Overload(arguments) => overload::run(&arguments).await,
            Command::SelfCheck(arguments) => self_check::run(&arguments).await,
            Command::Hostile(arguments) => hostile::run(&arguments).await,
        }
    })
}
