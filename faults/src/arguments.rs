//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

/// Breaks machines and networks under a cluster, and checks every answer it gave.
///
/// Needs root, and Debian's iproute2, nftables, strace, xfsprogs, e2fsprogs and libfaketime. All hosts, disks and
/// processes are its own, in a sandbox that the kernel takes away with it.
#[derive(Debug, Parser)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// All lanes at the same time, each with its faults.
    Run(RunArguments),
    /// One run after another, each with a seed of its own, for hours.
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
    #[arg(long, env = "RKV_BINARY", default_value = "target/release/raft-key-value")]
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
    #[arg(long, env = "RKV_BINARY", default_value = "target/release/raft-key-value")]
    pub binary: PathBuf,

    #[command(flatten)]
    pub etcd: EtcdArguments,

    /// Where logs and data go
    #[arg(long, default_value = "target/outage")]
    pub folder: PathBuf,

    /// How often each system's leader is killed
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repetitions: u32,
}

/// Which etcd.
#[derive(Clone, Debug, Args)]
pub struct EtcdArguments {
    /// The etcd that nodes run: 3.4, as Debian 12 has it
    #[arg(long, env = "ETCD_BIN", default_value = "/usr/bin/etcd")]
    pub etcd: PathBuf,
}

/// Which faults come, and for how long.
#[derive(Clone, Debug, Args)]
pub struct ScheduleArguments {
    /// Where histories, logs and data go
    #[arg(long, default_value = "target/faults")]
    pub folder: PathBuf,

    /// What all chances are drawn from: the same seed, the same faults in the same order
    #[arg(long)]
    pub seed: Option<u64>,

    /// For how many seconds faults are begun at most
    #[arg(long, default_value_t = 900)]
    pub seconds: u64,

    /// How often each fault comes, against what is planned: 0.1 is a tenth
    #[arg(long, default_value_t = 1.0)]
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
}

impl ScheduleArguments {
    /// Part of a run, for a first look, need not show all.
    pub fn is_complete(&self) -> bool {
        self.scale >= 1.0
    }

    pub fn time_max(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}
