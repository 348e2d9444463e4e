//! Members of etcd.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;

use crate::process::remove_variables;

/// Variables by which etcd or its gateway would send requests through a proxy.
const PROXY_VARIABLES: [&str; 6] = ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];

/// The etcd to run.
#[derive(Clone, Debug, Args)]
pub struct EtcdArguments {
    /// The etcd binary to run [default: target/etcd/etcd, from tools/fetch-etcd.sh]
    #[arg(long, env = "ETCD_BIN", value_name = "FILE")]
    etcd: Option<PathBuf>,
}

impl EtcdArguments {
    /// The absolute path of the binary, which exists.
    pub fn binary(&self) -> Result<PathBuf> {
        let fetched = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/etcd/etcd");
        let path = self.etcd.clone().unwrap_or_else(fetched);
        match path.canonicalize() {
            Ok(binary) if binary.is_file() => Ok(binary),
            _ => {
                bail!(
                    "no etcd at `{}`: run `tools/fetch-etcd.sh`, or pass its path with --etcd or ETCD_BIN",
                    path.display()
                )
            }
        }
    }
}

/// Adds the flags of a member, without settings from the environment.
pub fn add_arguments(
    command: &mut Command,
    name: &str,
    data_directory: &Path,
    client_address: SocketAddr,
    peer_address: SocketAddr,
) {
    remove_variables(command, "ETCD_");
    for variable in PROXY_VARIABLES {
        command.env_remove(variable);
    }
    let (clients, peers) = (format!("http://{client_address}"), format!("http://{peer_address}"));
    command.args(["--name", name]).arg("--data-dir").arg(data_directory);
    command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
    command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
}

/// The flags by which the members of a new cluster know each other.
pub fn cluster_arguments(members: impl IntoIterator<Item = (String, SocketAddr)>) -> Vec<String> {
    let members: Vec<String> = members.into_iter().map(|(name, peer)| format!("{name}=http://{peer}")).collect();
    vec!["--initial-cluster-state".to_owned(), "new".to_owned(), "--initial-cluster".to_owned(), members.join(",")]
}
