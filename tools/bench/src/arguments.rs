//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use harness::etcd::EtcdArguments;
use serde::Serialize;

use crate::load::Workload;
use crate::target::System;

/// The root of the repository.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Measure raft-key-value and etcd side by side, and check raft-key-value's guarantees under load
#[derive(Parser)]
#[command(version, about)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Compare three nodes of raft-key-value with three of etcd under the same load
    Compare(CompareArguments),
    /// Measure what snapshots do to write latency with a million keys
    Snapshots(SnapshotsArguments),
    /// Measure the speed of `snapshot save`, and what it does to write latency with a million keys
    SnapshotSave(SnapshotSaveArguments),
    /// Measure how fast an empty node joins, and what it does to write latency with a million keys
    Join(JoinArguments),
    /// Check that full load causes no election
    Elections(ElectionsArguments),
    /// Check that no acknowledged write is lost when all nodes are killed at once
    KillAll(KillAllArguments),
    /// Measure the cost of the key-value API and compare it with the original routes
    KeyValue(KeyValueArguments),
    /// Offer a cluster four times the load that it can carry (as root)
    Overload(OverloadArguments),
    /// Measure the share of a write's CPU time that the nodes' self-check takes
    SelfCheck(SelfCheckArguments),
    /// Measure what hostile and odd clients do to a cluster
    Hostile(HostileArguments),
    /// Measure what TLS costs the nodes: for each write and read on kept connections, and for each handshake
    Tls(TlsArguments),
    /// Measure what tokens cost the nodes, with TLS and without
    Tokens(TokensArguments),
    /// Draw the plots of a comparison again, from the file that `compare --json` wrote
    Plot(PlotArguments),
}

impl Command {
    /// `None` if the command measures nothing.
    pub fn common(&self) -> Option<&CommonArguments> {
        match self {
            Command::Compare(arguments) => Some(&arguments.common),
            Command::Snapshots(arguments) => Some(&arguments.common),
            Command::SnapshotSave(arguments) => Some(&arguments.common),
            Command::Join(arguments) => Some(&arguments.common),
            Command::Elections(arguments) => Some(&arguments.common),
            Command::KillAll(arguments) => Some(&arguments.common),
            Command::KeyValue(arguments) => Some(&arguments.common),
            Command::Overload(arguments) => Some(&arguments.common),
            Command::SelfCheck(arguments) => Some(&arguments.common),
            Command::Hostile(arguments) => Some(&arguments.common),
            Command::Tls(arguments) => Some(&arguments.common),
            Command::Tokens(arguments) => Some(&arguments.common),
            Command::Plot(_) => None,
        }
    }
}

#[derive(Args)]
pub struct CommonArguments {
    /// The raft-key-value binary to measure [default: target/release/raft-key-value]
    #[arg(long, value_name = "FILE")]
    pub server: Option<PathBuf>,

    /// Extra argument for each node of raft-key-value (repeatable)
    #[arg(long = "server-arg", value_name = "ARGUMENT", allow_hyphen_values = true)]
    pub server_arguments: Vec<String>,

    /// Directory for the nodes' data, not on tmpfs [default: target/bench-data]
    #[arg(long, value_name = "DIRECTORY")]
    pub data_root: Option<PathBuf>,

    /// Keep the nodes' data and logs
    #[arg(long)]
    pub keep_data: bool,

    /// Threads of the load generator; on two cores, one costs the least and suits etcd best
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub load_threads: u16,

    /// Markdown file to update between its markers [default: docs/runs/benchmarks.md]
    #[arg(long, value_name = "FILE", conflicts_with = "print_only")]
    pub output: Option<PathBuf>,

    /// Print the report without writing Markdown
    #[arg(long)]
    pub print_only: bool,

    /// Write the raw figures to this file as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Exit with code 1 if a goal is missed
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
        let in_parent = || PathBuf::from(ROOT).join("docs/runs/benchmarks.md");
        self.output.clone().unwrap_or_else(in_parent)
    }
}

#[derive(Args)]
pub struct TokensArguments {
    #[command(flatten)]
    pub common: CommonArguments,

    /// Number of rounds; each measures all clusters in turn
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,

    /// Length of each measured point, in seconds
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: u64,

    /// Number of clients, each with a connection that it keeps
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub clients: u16,

    /// Number of keys
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub keys: u64,

    /// Number of tokens that the cluster has, one of which the clients use
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub tokens: u32,
}

#[derive(Args)]
pub struct TlsArguments {
    #[command(flatten)]
    pub common: CommonArguments,

    /// Number of rounds; each starts a cluster with TLS and one without
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,

    /// Length of each measured point, in seconds
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: u64,

    /// Number of clients, each with a connection that it keeps
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub clients: u16,

    /// Number of keys
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub keys: u64,

    /// Handshakes in each round
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub handshakes: u32,
}

#[derive(Args)]
pub struct CompareArguments {
    #[command(flatten)]
    pub common: CommonArguments,

    #[command(flatten)]
    pub etcd: EtcdArguments,

    /// Number of rounds; each starts both systems on empty data
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,

    /// Length of each measured point, in seconds
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: u64,

    /// Length of the load before each measured point
    #[arg(long, value_name = "SECONDS", default_value_t = 2)]
    pub warm_up: u64,

    /// Number of keys; all are written before the first point
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub keys: u64,

    /// Another binary of raft-key-value to measure in turn, such as that of an earlier revision; its nodes get
    /// the same --server-arg; writes no Markdown unless --output is given
    #[arg(long, value_name = "FILE")]
    pub former: Option<PathBuf>,

    /// Measure one of the two systems only, and --former if it is given; writes no Markdown unless --output is
    /// given
    #[arg(long)]
    pub only: Option<System>,

    /// Numbers of clients to measure [default: write, put and put-once 1,16,64,256; others 64]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub clients: Vec<u16>,

    /// Workloads to measure; etcd supports write and read [default: write,read]
    #[arg(long, value_delimiter = ',')]
    pub workloads: Vec<Workload>,

    /// HTTP/2 connections that the clients share; each of several numbers is measured [default: the fastest
    /// for each point]
    #[arg(
        long,
        value_name = "COUNTS",
        value_delimiter = ',',
        value_parser = clap::value_parser!(u16).range(1..=4096)
    )]
    pub etcd_connections: Vec<u16>,

    /// Spread the clients of raft-key-value over all nodes, instead of sending all to the leader
    #[arg(long, requires = "only")]
    pub all_nodes: bool,

    /// Directory for the plots [default: docs/plots, if docs/runs/benchmarks.md is updated; otherwise none]
    #[arg(long, value_name = "DIRECTORY")]
    plots: Option<PathBuf>,
}

impl CompareArguments {
    /// Whether the run covers something else than the complete comparison with etcd. Such a run must not
    /// replace a published one.
    pub fn is_partial(&self) -> bool {
        self.only.is_some()
            || self.former.is_some()
            || !self.clients.is_empty()
            || !self.workloads.is_empty()
            || !self.etcd_connections.is_empty()
    }

    /// Where to write plots, if at all. The default plots belong to the table in the default document.
    pub fn plots(&self) -> Option<PathBuf> {
        let is_published = !self.is_partial() && !self.common.print_only && self.common.output.is_none();
        self.plots.clone().or_else(|| is_published.then(default_plots))
    }
}

#[derive(Args)]
pub struct PlotArguments {
    /// File that `compare --json` wrote
    #[arg(long, value_name = "FILE")]
    pub json: PathBuf,

    /// Directory for the plots [default: docs/plots]
    #[arg(long, value_name = "DIRECTORY")]
    plots: Option<PathBuf>,
}

impl PlotArguments {
    pub fn plots(&self) -> PathBuf {
        self.plots.clone().unwrap_or_else(default_plots)
    }
}

fn default_plots() -> PathBuf {
    PathBuf::from(ROOT).join("docs/plots")
}

#[derive(Args)]
pub struct SnapshotsArguments {
    #[command(flatten)]
    pub common: CommonArguments,

    /// Length of each measured run, in seconds
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: u64,

    /// Number of runs with each of the two settings
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,

    /// Number of keys to load first
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub keys: u64,

    /// Number of entries between snapshots in the runs that take them
    #[arg(long, default_value_t = 100_000)]
    pub snapshot_entries: u64,
}

#[derive(Args)]
pub struct SnapshotSaveArguments {
    #[command(flatten)]
    pub common: CommonArguments,

    /// Length of each measured run, in seconds
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: u64,

    /// Number of runs with saves, and of runs without
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,

    /// Number of keys to load first
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub keys: u64,

    /// Number of clients that write
    #[arg(long, default_value_t = 64)]
    pub clients: usize,
}

#[derive(Args)]
pub struct JoinArguments {
    #[command(flatten)]
    pub common: CommonArguments,

    /// Length of each measured run, in seconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: u64,

    /// Number of runs with a node that joins, and of runs without
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,

    /// Number of keys to load first
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub keys: u64,

    /// Number of clients that write; 16 make about half of the peak load
    #[arg(long, default_value_t = 16)]
    pub clients: usize,
}

#[derive(Args)]
pub struct ElectionsArguments {
    #[command(flatten)]
    pub common: CommonArguments,

    /// Length of the load, in minutes
    #[arg(long, default_value_t = 5.0)]
    pub minutes: f64,
}

#[derive(Args)]
pub struct KillAllArguments {
    #[command(flatten)]
    pub common: CommonArguments,

    /// Number of times that all nodes are killed
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub times: u32,

    /// Seed for the keys, the values and the times of the kills [default: random, printed]
    #[arg(long)]
    pub seed: Option<u64>,
}

#[derive(Args)]
pub struct KeyValueArguments {
    #[command(flatten)]
    pub common: CommonArguments,

    /// Number of times that each point is measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,

    /// Length of each measured point, in seconds
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: u64,

    /// Number of keys for the listings and the memory figures
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(10_000..))]
    pub keys: u64,

    /// Loads to run, by name, such as put,batch; prints the figures and writes no file
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,

    /// Number of watches on other keys
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    pub watchers: u64,
}

#[derive(Args)]
// One thread cannot offer four times the peak.
#[command(mut_arg("load_threads", |argument| argument.default_value("2").help("Threads of the load generator")))]
pub struct OverloadArguments {
    #[command(flatten)]
    pub common: CommonArguments,

    /// Length of the overload, in seconds
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,

    /// Parts of the overload; the peak is measured before and after each of them
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=60))]
    pub parts: u16,

    /// Length of each measurement of the peak
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    pub peak_seconds: u64,

    /// Load to offer, as a multiple of the peak
    #[arg(long, default_value_t = 4.0)]
    pub factor: f64,

    /// Share of a core that each node may use
    #[arg(long, value_name = "CORES", default_value_t = 0.3)]
    pub node_cores: f64,

    /// Nodes that receive the overload
    #[arg(long, value_name = "NODES", default_value = "all")]
    pub spread: Receivers,

    /// Total number of connections that send the overload
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u16).range(3..=16384))]
    pub connections: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Receivers {
    /// All three nodes in turn
    All,
    Leader,
}

#[derive(Args)]
pub struct SelfCheckArguments {
    #[command(flatten)]
    pub common: CommonArguments,

    /// Number of times that each point is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,

    /// Length of each measured point, in seconds
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: u64,
}

#[derive(Args)]
pub struct HostileArguments {
    #[command(flatten)]
    pub common: CommonArguments,

    /// Loads to run, by name, such as watch-initial-50,hang-up; prints the figures and writes no file
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub only: Vec<String>,

    /// Print the name and description of each load, and exit
    #[arg(long)]
    pub list: bool,

    /// Maximum length of each load, in seconds [default: 10, with --quick 1]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=300))]
    seconds: Option<u64>,

    /// Fraction of the clients and keys to use [default: 1, with --quick 0.1]
    #[arg(long, value_name = "FRACTION", value_parser = scale)]
    scale: Option<f64>,

    /// Run small loads (about a minute in all), judge elections and memory, and exit with code 1 if a goal is
    /// missed
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

    /// Whether the run is smaller than what the documentation shows.
    pub fn is_partial(&self) -> bool {
        self.quick || self.scale() != 1.0 || !self.only.is_empty()
    }
}

fn scale(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(scale) if scale > 0.0 && scale <= 1.0 => Ok(scale),
        _ => Err(format!("must be more than 0 and at most 1, got `{text}`")),
    }
}
