//! etcd 3.4, by its JSON gateway: the control.
use super::{Attempt, NodeStatus, Sink, WatchPlace};
use crate::history::{Call, FinalState, NodeId, Outcome};
use crate::node::Node;
use anyhow::{Result, bail};
use reqwest::Client;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
pub fn add_command(_command: &mut Command, _binary: &Path, _node: &Node) {}
pub async fn call(_http: &Client, _node: SocketAddr, _call: &Call, _deadline: Duration) -> Attempt {
    Attempt { outcome: Outcome::NotApplied, replayed: false, reason: String::new() }
}
pub async fn status(_http: &Client, _node: SocketAddr) -> Result<NodeStatus> {
    bail!("-")
}
pub async fn final_state(_http: &Client, _id: NodeId, _node: SocketAddr) -> Result<FinalState> {
    bail!("-")
}
pub async fn watch(_http: &Client, _node: SocketAddr, _place: &mut WatchPlace, _sink: Sink<'_>) -> Result<()> {
    bail!("-")
}
