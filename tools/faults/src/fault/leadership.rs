//! The leadership moves by request, and nodes are restarted one after another, as in an upgrade.

use std::time::Duration;

use anyhow::{Result, bail};
use harness::http::{self, Method};
use serde_json::json;

use super::{Scene, Who};
use crate::lane::calm;

/// How long a transfer may take, including its checks.
const TRANSFER_DEADLINE: Duration = Duration::from_secs(15);
const TRANSFERS: usize = 5;
/// How long a node may take to finish its work in progress.
const STOP_DEADLINE: Duration = Duration::from_secs(15);

/// Moves the leadership a few times, each time by a request to any node. The nodes are in order, so each request must
/// succeed unless the leader changes meanwhile.
pub async fn transfer(scene: &mut Scene<'_>) -> Result<String> {
    let mut moved = Vec::new();
    for _ in 0..TRANSFERS {
        let nodes = scene.choose(Who::All).await?;
        let (to, through) = (nodes[1], nodes[scene.random.usize(..nodes.len())]);
        let asked = scene.cluster.node(through)?.host.http();
        let request = http::json(Method::POST, "/v1/cluster/leader", &json!({"id": to}));
        let answer = scene.cluster.client.http().send(asked, request, TRANSFER_DEADLINE).await?;
        match answer.status().as_u16() {
            200 => moved.push(to),
            503 | 504 => {}
            status => {
                let body = String::from_utf8_lossy(answer.body()).into_owned();
                scene.finding(format!("a transfer to node {to} through node {through} returns {status}: {body}"));
            }
        }
        scene.hold(50..500).await;
    }
    if moved.is_empty() {
        scene.did_nothing();
    }
    Ok(format!("to nodes {moved:?}"))
}

/// Stops and restarts each node in turn, and waits until it is up to date.
pub async fn rolling_restart(scene: &mut Scene<'_>) -> Result<String> {
    let nodes = scene.choose(Who::All).await?;
    for id in &nodes {
        scene.cluster.node(*id)?.terminate()?;
        if scene.cluster.node(*id)?.wait(STOP_DEADLINE).await?.is_none() {
            bail!("node {id} does not stop within {STOP_DEADLINE:?}");
        }
        scene.hold(0..200).await;
        scene.cluster.heal()?;
        calm(scene.cluster).await?;
    }
    Ok(format!("nodes {nodes:?}"))
}
