//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::load::Workload;
use crate::target::System;

/// The root of the repository.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Measures raft-key-value beside etcd, and its promises under load
#[derive(Parser)]
#[command(version, about)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// The same load on three of our nodes and on three of etcd's, in turn
    Compare(CompareArguments),
    /// What snapshots do to the latency of writes, with a million keys
    Snapshots(SnapshotsArguments),
    /// That the term and the leader stay the same under full load
    Elections(ElectionsArguments),
    /// That no acknowledged write is lost when all nodes are killed at once
    KillAll(KillAllArguments),
    /// What the key-value API costs, beside the original's routes and by itself
    KeyValue(KeyValueArguments),
    /// What a cluster does when it is offered four times what it can carry (as root)
    Overload(OverloadArguments),
    /// What share of a write's CPU the nodes' comparing of their data takes
    SelfCheck(SelfCheckArguments),
    /// What hostile and odd clients do to a cluster
    Hostile(HostileArguments),
}

impl Command {
    pub fn common(&self) -> &CommonArguments {
        match self {
            Command::Compare(arguments) => &arguments.common,
            Command::Snapshots(arguments) => &arguments.common,
            Command::Elections(arguments) => &arguments.common,
            Command::KillAll(arguments) => &arguments.common,
            Command::KeyValue(arguments) => &arguments.common,
            Command::Overload(arguments) => &arguments.common,
            Command::SelfCheck(arguments) => &arguments.common,
            Command::Hostile(arguments) => &arguments.common,
        }
    }
}

#[derive(Args)]
pub struct CommonArguments {
    /// The raft-key-value to measure [default: target/release/raft-key-value]
    #[arg(long, value_name = "FILE")]
    pub server: Option<PathBuf>,

    /// One more argument for each of our nodes (repeatable)
    #[arg(long = "server-arg", value_name = "ARGUMENT", allow_hyphen_values = true)]
    pub server_arguments: Vec<String>,

    /// Where fresh data directories are made, on a disk [default: target/bench-data]
    #[arg(long, value_name = "DIRECTORY")]
    pub data_root: Option<PathBuf>,

    /// Leave the data and the servers' logs there
    #[arg(long)]
    pub keep_data: bool,

    /// Threads of the load generator; with two cores, one costs least and suits etcd best
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub load_threads: u16,

    /// The Markdown file to update, between its markers [default: docs/benchmarks.md]
    #[arg(long, value_name = "FILE", conflicts_with = "print_only")]
    pub output: Option<PathBuf>,

    /// Print the report and write no Markdown
    #[arg(long)]
    pub print_only: bool,

    /// Also write the raw figures there
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Exit with 1 when a goal is missed
    #[arg(long)]
    pub enforce: bool,
}

impl CommonArguments {
    pub fn server(&self) -> PathBuf {
        let built = || PathBuf::from(ROOT).join("target/release/raft-key-value");
        self.server.clone().unwrap_or_else(built)
    }

    pub fn data_root(&self) -> PathBuf {
        let under_target = || PathBuf::from(ROOT).join("target/bench-data");
        self.data_root.clone().unwrap_or_else(under_target)
    }

    pub fn output(&self) -> PathBuf {
        let in_parent = || PathBuf::from(ROOT).join("docs/benchmarks.md");
        self.output.clone().unwrap_or_else(in_parent)
    }
}

#[derive(Args)]
pub struct CompareArguments {
    #[command(flatten)]
    pub common: CommonArguments,

    /// The etcd to compare with [default: target/etcd/etcd, from tools/fetch-etcd.sh]
    #[arg(long, env = "ETCD_BIN", value_name = "FILE")]
    etcd: Option<PathBuf>,

    /// Rounds; each starts both systems afresh
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,

    /// Length of each measured point
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: u64,

    /// Length of the load before each measured point
    #[arg(long, value_name = "SECONDS", default_value_t = 2)]
    pub warm_up: u64,

    /// Keys, all of them written before the first point
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub keys: u64,

    /// Only one system (prints the figures, writes no file unless told where)
    #[arg(long)]
    pub only: Option<System>,

    /// Only these numbers of clients [default: writes 1,16,64,256; reads 64]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub clients: Vec<u16>,

    /// Only these workloads [default: write,read]
    #[arg(long, value_delimiter = ',')]
    pub workloads: Vec<Workload>,

    /// HTTP/2 connections to etcd, shared by the clients; of several numbers, each
    /// is measured [default: the fastest found for each point]
    #[arg(
        long,
        value_name = "COUNTS",
        value_delimiter = ',',
        value_parser = clap::value_parser!(u16).range(1..=4096)
    )]
    pub etcd_connections: Vec<u16>,

    /// Spread the clients of our cluster over all its nodes, instead of sending all to the leader
    #[arg(long, requires = "only")]
    pub all_nodes: bool,
}

impl CompareArguments {
    pub fn etcd(&self) -> PathBuf {
        let fetched = || PathBuf::from(ROOT).join("target/etcd/etcd");
        self.etcd.clone().unwrap_or_else(fetched)
    }

    /// Part of the comparison only, so no replacement for a published one.
    pub fn is_partial(&self) -> bool {
        self.only.is_some()
            || !self.clients.is_empty()
            || !self.workloads.is_empty()
            || !self.etcd_connections.is_empty()
    }
}

#[derive(Args)]
pub struct SnapshotsArguments {
    #[command(flatten)]
    pub common: CommonArguments,

    /// Length of each measured run
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: u64,

    /// How often each of the two settings is run
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,

    /// Keys loaded first
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub keys: u64,

    /// Entries between snapshots, in the runs that make them
    #[arg(long, default_value_t = 100_000)]
    pub snapshot_entries: u64,
}

#[derive(Args)]
pub struct ElectionsArguments {
    #[command(flatten)]
    pub common: CommonArguments,

    /// Length of the load
    #[arg(long, default_value_t = 5.0)]
    pub minutes: f64,
}

#[derive(Args)]
pub struct KillAllArguments {
    #[command(flatten)]
    pub common: CommonArguments,

    /// How often all nodes are killed
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub times: u32,

    /// Seed of the keys, the values and the moments of the kills [default: random, printed]
    #[arg(long)]
    pub seed: Option<u64>,
}

#[derive(Args)]
pub struct KeyValueArguments {
    #[command(flatten)]
    pub common: CommonArguments,

    /// How often each point is measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,

    /// Length of each measured point
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: u64,

    /// Keys for the listings and the memory they take
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(10_000..))]
    pub keys: u64,

    /// Only these loads, by name, such as put,batch; prints the figures and nothing else
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,

    /// Watches of other keys
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    pub watchers: u64,
}

#[derive(Args)]
// One thread offers less than four times the peak.
#[command(mut_arg("load_threads", |argument| argument.default_value("2").help("Threads of the load generator")))]
pub struct OverloadArguments {
    #[command(flatten)]
    pub common: CommonArguments,

    /// Length of the overload
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,

    /// Length of each measured point of the search for the peak
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    pub peak_seconds: u64,

    /// How many times the peak is offered
    #[arg(long, default_value_t = 4.0)]
    pub factor: f64,

    /// The part of a core that each node may use
    #[arg(long, value_name = "CORES", default_value_t = 0.3)]
    pub node_cores: f64,

    /// Which nodes the overload is sent to
    #[arg(long, value_name = "NODES", default_value = "all")]
    pub spread: Receivers,

    /// Connections that send it, in all
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u16).range(3..=16384))]
    pub connections: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Receivers {
    /// All three, in turn
    All,
    Leader,
}

#[derive(Args)]
pub struct SelfCheckArguments {
    #[command(flatten)]
    pub common: CommonArguments,

    /// How often each point is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,

    /// Length of each measured point
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: u64,
}

#[derive(Args)]
pub struct HostileArguments {
    #[command(flatten)]
    pub common: CommonArguments,

    /// Only these loads, by name, such as watch-initial-50,hang-up; prints the figures and writes no file
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub only: Vec<String>,

    /// Print the names of the loads and what each does, and run none
    #[arg(long)]
    pub list: bool,

    /// Length of each load at most [default: 10, with --quick 1]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=300))]
    seconds: Option<u64>,

    /// The fraction of clients and keys to use [default: 1, with --quick 0.1]
    #[arg(long, value_name = "FRACTION", value_parser = scale)]
    scale: Option<f64>,

    /// Run small loads (all of them take about a minute), judge elections and memory, and exit with 1 if a goal is missed
    #[arg(long)]
    pub quick: bool,
}

impl HostileArguments {
    pub fn seconds(&self) -> u64 {
        self.seconds.unwrap_or(if self.quick { 1 } else { 10 })
    }

    pub fn scale(&self) -> f64 {
        self.scale.unwrap_or(if self.quick { 0.1 } else { 1.0 })
    }

    /// Not what the documentation is to show.
    pub fn is_partial(&self) -> bool {
        self.quick || self.scale() != 1.0 || !self.only.is_empty()
    }
}

fn scale(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(scale) if scale > 0.0 && scale <= 1.0 => Ok(scale),
        _ => Err("must be more than 0 and at most 1".to_owned()),
    }
}
