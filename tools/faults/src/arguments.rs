//! The command line.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use harness::etcd::EtcdArguments;

use crate::outage::Loss;

const BINARY: &str = "target/release/raft-key-value";
const SECONDS: u64 = 900;
const SCALE: f64 = 1.0;

/// The codes are those of `verdict.rs`.
const EXIT_CODES: &str = "\
Exit codes:
  0  passed
  1  violation: the system did something that a correct one never does; `selftest`: a bug was not
     caught, or a server without bugs failed; `outage`: writes failed for longer than with etcd
  2  the command line is invalid
  3  incomplete: no violation, but not everything was shown: a fault had no effect too often, the
     load was too small, the checker could not decide, or a tool or the machine failed
  4  error: no verdict: not root, a missing tool or binary, or an interruption";

/// Break nodes, disks and networks under clusters of raft-key-value, and check every response
///
/// Requires root and Debian's iproute2, nftables, strace, xfsprogs, e2fsprogs and libfaketime. All hosts,
/// disks and processes live in a sandbox that the kernel removes at the end.
#[derive(Debug, Parser)]
#[command(after_help = EXIT_CODES)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run all lanes at the same time, each with its own faults
    Run(RunArguments),
    /// Repeat `run` for hours with a new seed each time, and judge all runs together
    Soak(SoakArguments),
    /// Check the history that a run has recorded
    Check {
        /// The `history.json` of a lane
        history: PathBuf,
    },
    /// Run the same load, a subset of the faults and the same checker on etcd, as a control
    Control(ControlArguments),
    /// Measure how long writes fail after the leader was killed, stopped or paused, of raft-key-value and etcd in turn
    Outage(OutageArguments),
    /// Run servers with seeded bugs, each of which the harness must find
    Selftest(SelftestArguments),
}

/// Options of a run.
#[derive(Clone, Debug, Args)]
pub struct RunArguments {
    /// The raft-key-value binary to run
    #[arg(long, env = "RKV_BINARY", default_value = BINARY)]
    pub binary: PathBuf,

    /// Number of nodes in each cluster [default: 5 where networks break, otherwise 3]
    #[arg(long)]
    pub nodes: Option<u64>,

    /// Lanes to run [default: all]
    #[arg(long, value_delimiter = ',')]
    pub lanes: Vec<String>,

    #[command(flatten)]
    pub schedule: ScheduleArguments,
}

/// Options of a soak.
#[derive(Clone, Debug, Args)]
pub struct SoakArguments {
    /// Duration in hours
    #[arg(long)]
    pub hours: f64,

    #[command(flatten)]
    pub run: RunArguments,
}

/// Options of the self-test.
#[derive(Clone, Debug, Args)]
pub struct SelftestArguments {
    /// A server built with the feature `seeded-bugs`
    #[arg(long, env = "RKV_BINARY", default_value = "target/selftest/raft-key-value")]
    pub binary: PathBuf,

    /// Directory for histories, logs and data
    #[arg(long, default_value = "target/faults-selftest")]
    pub folder: PathBuf,

    /// Seed for all random choices [default: random, printed]
    #[arg(long)]
    pub seed: Option<u64>,

    /// Maximum time to look for a bug, in seconds
    #[arg(long, default_value_t = 90)]
    pub seconds: u64,

    /// Bugs to look for [default: all]
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
}

/// Options of the control.
#[derive(Clone, Debug, Args)]
pub struct ControlArguments {
    #[command(flatten)]
    pub etcd: EtcdArguments,

    #[command(flatten)]
    pub schedule: ScheduleArguments,
}

/// Options of the outage measurement.
#[derive(Clone, Debug, Args)]
pub struct OutageArguments {
    /// The raft-key-value binary to run
    #[arg(long, env = "RKV_BINARY", default_value = BINARY)]
    pub binary: PathBuf,

    #[command(flatten)]
    pub etcd: EtcdArguments,

    /// Directory for logs and data
    #[arg(long, default_value = "target/outage")]
    pub folder: PathBuf,

    /// Number of times that each system loses its leader in each way
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repetitions: u32,

    /// How the leaders are lost
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Loss::ALL)]
    pub losses: Vec<Loss>,

    /// Write the figures into this document between their markers, if the promises are kept
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
}

/// Options that decide the faults and their number.
#[derive(Clone, Debug, Args)]
pub struct ScheduleArguments {
    /// Directory for histories, logs and data
    #[arg(long, default_value = "target/faults")]
    pub folder: PathBuf,

    /// Seed for the harness's random choices: the same seed gives the same faults in the same order
    ///
    /// The seed does not determine which packets the kernel drops under `loss`, or what nodes and clients are
    /// doing when a fault begins. Both differ from run to run.
    #[arg(long)]
    pub seed: Option<u64>,

    /// Start no fault after this many seconds
    #[arg(long, default_value_t = SECONDS)]
    pub seconds: u64,

    /// Number of faults, as a multiple of the planned number: 0.1 is a tenth
    #[arg(long, default_value_t = SCALE)]
    pub scale: f64,

    /// Keep histories, logs and data of runs that pass, too
    #[arg(long)]
    pub keep: bool,

    /// Write the figures into this document between their markers, if nothing was found
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,

    /// Faults to run, by the names in the report, such as "kill leader" [default: all]
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
}

impl RunArguments {
    pub fn wants(&self, lane: &str) -> bool {
        self.lanes.is_empty() || self.lanes.iter().any(|wanted| wanted == lane)
    }

    /// The command that repeats the faults of a seed, also those of one round of a soak.
    pub fn command_again(&self, seed: u64) -> String {
        let nodes = self.nodes.map(|nodes| format!("--nodes {nodes}"));
        let lanes = (!self.lanes.is_empty()).then(|| format!("--lanes {}", self.lanes.join(",")));
        let binary = (self.binary != Path::new(BINARY)).then(|| format!("--binary \"{}\"", self.binary.display()));
        let options = [nodes, lanes, binary].into_iter().flatten();
        make_command("faults", self.schedule.options_again(seed).into_iter().chain(options))
    }
}

impl ControlArguments {
    /// The command that repeats the faults of a seed.
    pub fn command_again(&self, seed: u64) -> String {
        // The make target passes no etcd: `ETCD_BIN` names it.
        make_command("faults-control", self.schedule.options_again(seed))
    }
}

fn make_command(target: &str, options: impl IntoIterator<Item = String>) -> String {
    let options: Vec<String> = options.into_iter().collect();
    format!("make {target} FAULTS_ARGUMENTS='{}'", options.join(" "))
}

impl ScheduleArguments {
    /// A run with fewer faults than planned need not show everything.
    pub fn is_complete(&self) -> bool {
        self.scale >= 1.0
    }

    /// The options that decide which faults run, except those with their default value.
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
            other => panic!("{other:?} has no random seed"),
        }
    }

    /// A failed run prints the whole command that repeats its faults. The command contains neither defaults
    /// nor options that do not affect the faults.
    #[test]
    fn a_run_can_be_made_again() {
        let binary = format!("--binary {BINARY}"); // The environment may name another.
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
