//! The command line.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

const BINARY: &str = "target/release/raft-key-value";
const SECONDS: u64 = 900;
const SCALE: f64 = 1.0;

/// The codes are those of `verdict.rs`.
const EXIT_CODES: &str = "\
Exit codes:
  0  passed
  1  violation: the system did what a correct one never does; `selftest`: a bug was not caught, or
     a server without bugs was found guilty; `outage`: writes failed for longer than with etcd
  2  the command line is invalid
  3  incomplete: no violation, but not everything was shown: a fault found nothing to break too
     often, there was too little load, the checker could not decide, or a tool or the machine failed
  4  error: there is no verdict: not root, a missing tool or binary, an interruption";

/// Breaks machines and networks under a cluster, and checks every answer it gave.
///
/// Needs root, and Debian's iproute2, nftables, strace, xfsprogs, e2fsprogs and libfaketime. All hosts, disks and
/// processes are its own, in a sandbox that the kernel takes away with it.
#[derive(Debug, Parser)]
#[command(after_help = EXIT_CODES)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// All lanes at the same time, each with its faults.
    Run(RunArguments),
    /// One run after another, each with a seed of its own, for hours; all of them are judged together.
    Soak(SoakArguments),
    /// Checks the history that a run has left.
    Check {
        /// The `history.json` of a lane
        history: PathBuf,
    },
    /// The same load, some of the same faults and the same checker on etcd: what they make of a store that is trusted.
    Control(ControlArguments),
    /// How long nobody can write after `kill -9` of the leader: raft-key-value and etcd in turn.
    Outage(OutageArguments),
    /// Servers with bugs, each of which must be found.
    Selftest(SelftestArguments),
}

/// How a run is to be.
#[derive(Clone, Debug, Args)]
pub struct RunArguments {
    /// The program that nodes run
    #[arg(long, env = "RKV_BINARY", default_value = BINARY)]
    pub binary: PathBuf,

    /// Nodes of each cluster [default: 5 where networks break, else 3]
    #[arg(long)]
    pub nodes: Option<u64>,

    /// Only these lanes
    #[arg(long, value_delimiter = ',')]
    pub lanes: Vec<String>,

    #[command(flatten)]
    pub schedule: ScheduleArguments,
}

/// How long to go on.
#[derive(Clone, Debug, Args)]
pub struct SoakArguments {
    /// For how many hours
    #[arg(long)]
    pub hours: f64,

    #[command(flatten)]
    pub run: RunArguments,
}

/// Which bugs are to be looked for.
#[derive(Clone, Debug, Args)]
pub struct SelftestArguments {
    /// A server that was built with the feature `seeded-bugs`
    #[arg(long, env = "RKV_BINARY", default_value = "target/selftest/raft-key-value")]
    pub binary: PathBuf,

    /// Where histories, logs and data go
    #[arg(long, default_value = "target/faults-selftest")]
    pub folder: PathBuf,

    /// What all chances are drawn from
    #[arg(long)]
    pub seed: Option<u64>,

    /// For how many seconds a bug is looked for at most
    #[arg(long, default_value_t = 90)]
    pub seconds: u64,

    /// Only these bugs
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
}

/// How the control is to be.
#[derive(Clone, Debug, Args)]
pub struct ControlArguments {
    #[command(flatten)]
    pub etcd: EtcdArguments,

    #[command(flatten)]
    pub schedule: ScheduleArguments,
}

/// How outages are measured.
#[derive(Clone, Debug, Args)]
pub struct OutageArguments {
    /// The program that nodes run
    #[arg(long, env = "RKV_BINARY", default_value = BINARY)]
    pub binary: PathBuf,

    #[command(flatten)]
    pub etcd: EtcdArguments,

    /// Where logs and data go
    #[arg(long, default_value = "target/outage")]
    pub folder: PathBuf,

    /// How often each system's leader is killed
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repetitions: u32,

    /// Put the figures into this document, between the marks for them, if ours are at most etcd's in the median
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
}

/// Which etcd.
#[derive(Clone, Debug, Args)]
pub struct EtcdArguments {
    /// The etcd that nodes run
    #[arg(long, env = "ETCD_BIN", default_value = "target/etcd/etcd")]
    pub etcd: PathBuf,
}

/// Which faults come, and for how long.
#[derive(Clone, Debug, Args)]
pub struct ScheduleArguments {
    /// Where histories, logs and data go
    #[arg(long, default_value = "target/faults")]
    pub folder: PathBuf,

    /// What the harness draws all its chances from: the same seed, the same faults in the same order
    ///
    /// Which packets are lost under `loss` is the kernel's chance, and what nodes and clients are at when a
    /// fault comes is a matter of time: both are others in the next run.
    #[arg(long)]
    pub seed: Option<u64>,

    /// For how many seconds faults are begun at most
    #[arg(long, default_value_t = SECONDS)]
    pub seconds: u64,

    /// How often each fault comes, against what is planned: 0.1 is a tenth
    #[arg(long, default_value_t = SCALE)]
    pub scale: f64,

    /// Keep histories, logs and data of runs that pass, too
    #[arg(long)]
    pub keep: bool,

    /// Put the figures into this document, between the marks for them, if nothing was found
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,

    /// Only these faults, by the words the report has them by, such as "kill leader"
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
}

impl RunArguments {
    pub fn wants(&self, lane: &str) -> bool {
        self.lanes.is_empty() || self.lanes.iter().any(|wanted| wanted == lane)
    }

    /// The command that makes the faults of a seed again, those of one round of a soak as well.
    pub fn command_again(&self, seed: u64) -> String {
        let nodes = self.nodes.map(|nodes| format!("--nodes {nodes}"));
        let lanes = (!self.lanes.is_empty()).then(|| format!("--lanes {}", self.lanes.join(",")));
        let binary = (self.binary != Path::new(BINARY)).then(|| format!("--binary \"{}\"", self.binary.display()));
        let options = [nodes, lanes, binary].into_iter().flatten();
        make_command("faults", self.schedule.options_again(seed).into_iter().chain(options))
    }
}

impl ControlArguments {
    /// The command that makes the faults of a seed again.
    pub fn command_again(&self, seed: u64) -> String {
        make_command("faults-control", self.schedule.options_again(seed)) // Which names the etcd.
    }
}

fn make_command(target: &str, options: impl IntoIterator<Item = String>) -> String {
    let options: Vec<String> = options.into_iter().collect();
    format!("make {target} FAULTS_ARGUMENTS='{}'", options.join(" "))
}

impl ScheduleArguments {
    /// Part of a run, for a first look, need not show all.
    pub fn is_complete(&self) -> bool {
        self.scale >= 1.0
    }

    /// Those that decide which faults come, if they are not what they are by default.
    fn options_again(&self, seed: u64) -> Vec<String> {
        let scale = (self.scale != SCALE).then(|| format!("--scale {}", self.scale));
        let seconds = (self.seconds != SECONDS).then(|| format!("--seconds {}", self.seconds));
        let only = (!self.only.is_empty()).then(|| format!("--only \"{}\"", self.only.join(",")));
        [Some(format!("--seed {seed}")), scale, seconds, only].into_iter().flatten().collect()
    }

    pub fn time_max(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::{EXIT_ERROR, Verdict};

    /// The help lists the exit codes that the harness uses.
    #[test]
    fn help_lists_the_exit_codes() {
        let help = <Arguments as clap::CommandFactory>::command().render_help().to_string();
        let clap = clap::error::ErrorKind::UnknownArgument;
        let invalid = Arguments::try_parse_from(["faults", "--no-such-flag"]).unwrap_err();
        assert_eq!((invalid.kind(), invalid.exit_code()), (clap, 2));
        for (code, word) in [
            (Verdict::Passed.exit_code(), "passed"),
            (Verdict::Violation.exit_code(), "violation: "),
            (2, "the command line is invalid"),
            (Verdict::Incomplete.exit_code(), "incomplete: "),
            (EXIT_ERROR, "error: "),
        ] {
            assert!(help.contains(&format!("\n  {code}  {word}")), "{help}");
        }
    }

    fn command_again(line: &str) -> String {
        let words = line.split_whitespace().map(|word| word.replace('_', " "));
        match Arguments::parse_from(std::iter::once("faults".to_owned()).chain(words)).command {
            Command::Run(arguments) => arguments.command_again(7),
            Command::Soak(arguments) => arguments.run.command_again(7),
            Command::Control(arguments) => arguments.command_again(7),
            other => panic!("{other:?} has no seed that is drawn"),
        }
    }

    /// A failed run names the whole command that makes its faults again, and in it no default, nor what
    /// does not decide which faults come.
    #[test]
    fn a_run_can_be_made_again() {
        let binary = format!("--binary {BINARY}"); // Else the environment may name another.
        let by_default = command_again(&format!("run {binary} --keep --folder f --record d --seed 3 --scale 1.0"));
        assert_eq!(by_default, "make faults FAULTS_ARGUMENTS='--seed 7'");
        let soak = command_again(&format!("soak --hours 2 {binary} --nodes 3 --scale 0.3 --seed 3"));
        assert_eq!(soak, "make faults FAULTS_ARGUMENTS='--seed 7 --scale 0.3 --nodes 3'");
        let all = command_again("run --binary b --nodes 5 --lanes disk,expiry --only kill_all,flip --seconds 60");
        let wanted = "--seed 7 --seconds 60 --only \"kill all,flip\" --nodes 5 --lanes disk,expiry --binary \"b\"";
        assert_eq!(all, format!("make faults FAULTS_ARGUMENTS='{wanted}'"));
        let control = command_again("control --etcd e --scale 0.5 --only halves");
        assert_eq!(control, "make faults-control FAULTS_ARGUMENTS='--seed 7 --scale 0.5 --only \"halves\"'");
    }
}
