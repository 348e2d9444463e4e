//! Backups that are saved during faults, and restored as new clusters.
//!
//! A backup must be the state at its index. Its content is compared with the history: it is recorded as a list of all
//! keys, called when the command began. Its hash is compared with that of a follower after the same entry: the follower
//! is isolated before the backup begins, so that it has not applied that entry yet.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use harness::http::{self, Method, StatusCode};
use harness::process::{Process, log_tail, remove_variables};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use super::membership::isolate;
use super::{CLIENT_OF_FAULTS, Scene, Who};
use crate::cluster::CONVERGENCE_DEADLINE;
use crate::finding::Symptom;
use crate::history::{Answer, Call, CallResult, Consistency, FinalState, NodeId, Operation, Outcome, Text};
use crate::node::Node;
use crate::store::Client;

/// A state of this many keys takes long enough to save that a kill meets it.
const KEYS: usize = 16;
const VALUE_BYTES: usize = 64 << 10;
/// How long a command may take, including faults.
const COMMAND_DEADLINE: Duration = Duration::from_secs(60);
/// A node waits at most 5 seconds for an entry.
const HASH_DEADLINE: Duration = Duration::from_secs(7);
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
/// Maximum time from the start of a command to the kill, in milliseconds; halved each time that it was too late.
const KILL_MS_MAX: u64 = 60;
/// Nodes of a restored cluster.
const RESTORED_NODES: usize = 3;

/// The command of a backup, and its file.
struct Saving {
    process: Process,
    file: PathBuf,
    output: PathBuf,
    called_ns: u64,
}

/// What `snapshot inspect` says of a file.
#[derive(Debug, Deserialize)]
struct Backup {
    index: Option<u64>,
    revision: u64,
    keys: usize,
    hash: String,
}

/// Saves a backup while a follower is isolated, and compares it with the state of the follower and with the history.
pub async fn backup(scene: &mut Scene<'_>) -> Result<String> {
    write_keys(scene).await?;
    let mut nodes = scene.choose(Who::All).await?;
    let follower = nodes.pop().context("no node")?;
    isolate(scene, follower)?;
    scene.hold(50..200).await;
    scene.random.shuffle(&mut nodes);
    let saving = start(scene, &nodes)?;
    let output = saving.output.clone();
    let failed = || format!("no backup is saved, although a majority remains: {}", log_tail(&output, 10));
    let (backup, times) = finish(scene, saving).await?.with_context(failed)?;
    let index = backup.index.context("a backup without an index")?;
    let host = scene.cluster.node(follower)?.host.http();
    let client = scene.cluster.client.clone();
    let hash = tokio::spawn(async move {
        let request = http::get(&format!("/v1/cluster/hash?applied={index}"));
        client.http().send(host, request, HASH_DEADLINE).await
    });
    scene.hold(100..200).await;
    scene.cluster.heal()?;
    let answer = hash.await.context("a request panicked")??;
    if answer.status() == StatusCode::OK {
        let state: Value = serde_json::from_slice(answer.body())?;
        if (state["hash"].as_str(), state["revision"].as_u64()) != (Some(&backup.hash), Some(backup.revision)) {
            scene.symptom(Symptom::Backup, format!("the backup is {backup:?}, and node {follower} has {state}"));
        }
    } else {
        // It got a snapshot, for example.
        scene.did_nothing();
    }
    if !scene.did_nothing {
        restore(scene, &backup, times).await?;
    }
    Ok(format!("index {index}, {} keys, while node {follower} was isolated", backup.keys))
}

/// Kills the node that sends a backup, or the command that receives it. The file must be whole or missing.
pub async fn backup_under_kill(scene: &mut Scene<'_>) -> Result<String> {
    write_keys(scene).await?;
    let mut nodes = scene.choose(Who::All).await?;
    scene.random.shuffle(&mut nodes);
    let mut saving = start(scene, &nodes)?;
    scene.hold(0..(KILL_MS_MAX >> scene.repeats.min(5)).max(1)).await;
    if saving.process.status()?.is_some() {
        scene.did_nothing();
    }
    let kills_command = scene.random.u8(..3) == 0;
    if kills_command {
        saving.process.kill()?;
    } else {
        scene.cluster.node(nodes[0])?.kill()?;
    }
    scene.hold(50..500).await;
    scene.cluster.heal()?;
    let saved = if kills_command && !saving.file.exists() { None } else { finish(scene, saving).await? };
    let (backup, times) = match saved {
        Some(saved) => saved,
        None => {
            let again = start(scene, &nodes)?;
            finish(scene, again).await?.context("no backup can be saved after everything is healed")?
        }
    };
    if !scene.did_nothing {
        restore(scene, &backup, times).await?;
    }
    let killed = if kills_command { "the command".to_owned() } else { format!("node {}", nodes[0]) };
    Ok(format!("revision {}, {} keys, {killed} was killed", backup.revision, backup.keys))
}

/// Writes long values, unless an earlier fault has.
async fn write_keys(scene: &mut Scene<'_>) -> Result<()> {
    let hosts: Vec<_> = scene.cluster.nodes.iter().map(|node| node.host.clone()).collect();
    for number in 0..KEYS {
        let key: Text = format!("backup/{number}").into();
        scene.put_until_done(&hosts[number % hosts.len()], &key, VALUE_BYTES).await?;
    }
    Ok(())
}

/// Starts the command that saves a backup from the first of some nodes that serves it.
fn start(scene: &mut Scene<'_>, nodes: &[NodeId]) -> Result<Saving> {
    let folder = &scene.cluster.plan.folder;
    let (file, output) = (folder.join("backup.snap"), folder.join("backup.log"));
    remove(&file)?;
    let mut endpoints = Vec::new();
    for id in nodes {
        endpoints.push(scene.cluster.node(*id)?.host.http().to_string());
    }
    let mut command = command(scene, &["snapshot", "save"]);
    command.arg(&file).args(["--output", "json", "--endpoints", &endpoints.join(",")]);
    let log = File::create(&output).context("cannot create the log of a command")?;
    let called_ns = scene.recorder.now_ns();
    Ok(Saving { process: Process::start_with_output(command, log.into())?, file, output, called_ns })
}

fn remove(file: &Path) -> Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("cannot remove a backup"),
        _ => Ok(()),
    }
}

fn command(scene: &Scene<'_>, arguments: &[&str]) -> Command {
    let mut command = Command::new(&scene.cluster.plan.binary);
    remove_variables(&mut command, "RKV_");
    command.args(arguments);
    command
}

/// When a backup was begun and complete.
type Times = (u64, u64);

/// Waits for the end of the command, and inspects the file; `None` if there is none.
async fn finish(scene: &mut Scene<'_>, mut saving: Saving) -> Result<Option<(Backup, Times)>> {
    let status = saving.process.wait(COMMAND_DEADLINE).await?;
    let times = (saving.called_ns, scene.recorder.now_ns());
    let said = log_tail(&saving.output, 10);
    let code = status.context("a backup takes too long")?.code();
    if code == Some(65) {
        scene.symptom(Symptom::Backup, format!("a node sends a damaged backup: {said}"));
    }
    let is_saved = code == Some(0);
    if is_saved != saving.file.exists() && code.is_some() {
        scene.finding(format!("the command of a backup ended with {code:?}, but its file says otherwise: {said}"));
    }
    if !saving.file.exists() {
        return Ok(None);
    }
    let mut inspect = command(scene, &["snapshot", "inspect", "--output", "json"]);
    let inspected = inspect.arg(&saving.file).stdin(Stdio::null()).output().context("cannot start a command")?;
    if !inspected.status.success() {
        let said = String::from_utf8_lossy(&inspected.stderr);
        bail!("a backup was saved, but is not whole: {said}");
    }
    Ok(Some((serde_json::from_slice(&inspected.stdout)?, times)))
}

/// Restores the backup as a cluster of its own, and checks the state of its nodes.
async fn restore(scene: &mut Scene<'_>, backup: &Backup, (called_ns, returned_ns): Times) -> Result<()> {
    let mut nodes = Vec::new();
    for _ in 0..RESTORED_NODES {
        nodes.push(scene.cluster.create_node()?);
    }
    let (first, others) = nodes.split_first_mut().context("no nodes")?;
    let (id, address) = (first.id().to_string(), first.advertised().to_string());
    let mut restore = command(scene, &["snapshot", "restore"]);
    restore.arg(scene.cluster.plan.folder.join("backup.snap")).arg("--data-dir").arg(first.data_directory());
    restore.args(["--id", &id, "--advertise-addr", &address]).stdin(Stdio::null());
    let restored = restore.output().context("cannot start a command")?;
    if !restored.status.success() {
        bail!("a backup cannot be restored: {}", String::from_utf8_lossy(&restored.stderr));
    }
    first.start()?;
    for node in others {
        node.add_flags(&["--join", &address]);
        node.start()?;
    }
    let client = scene.cluster.client.clone();
    let checked = check_restored(scene, &client, &nodes, backup, (called_ns, returned_ns)).await;
    for node in &mut nodes {
        node.notice_end()?;
        for finding in node.take_findings() {
            scene.finding(format!("in a restored cluster: {finding}"));
        }
    }
    checked
}

async fn check_restored(
    scene: &mut Scene<'_>,
    client: &Client,
    nodes: &[Node],
    backup: &Backup,
    (called_ns, returned_ns): Times,
) -> Result<()> {
    let states = states_of(client, nodes).await?;
    let (first, others) = states.split_first().context("no nodes")?;
    for state in &states {
        if (state.revision, &state.hash, state.records.len()) != (backup.revision, &backup.hash, backup.keys) {
            let FinalState { node, revision, records, hash } = state;
            let keys = records.len();
            let text = format!("node {node} was restored from {backup:?}, and has {keys} keys at {revision}, {hash}");
            scene.symptom(Symptom::Backup, text);
        }
    }
    if others.iter().any(|other| other.records != first.records) {
        scene.symptom(Symptom::Backup, "the nodes of a restored cluster have different data".to_owned());
    }
    let call = Call::List { prefix: "".into(), consistency: Consistency::Linearizable };
    let answer = Answer { revision: first.revision, result: CallResult::List(first.records.clone()) };
    let (client_id, outcome) = (CLIENT_OF_FAULTS, Outcome::Done(answer));
    let operation = Operation { client: client_id, node: first.node, called_ns, returned_ns, call, outcome };
    scene.recorder.add_operation(operation);
    let last = nodes.last().context("no nodes")?.host.http();
    let put = http::request(Method::PUT, "/v1/kv/restored", "1");
    let answer = client.http().send(last, put, REQUEST_DEADLINE).await.context("a restored cluster serves no write")?;
    let body: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
    if body["revision"].as_u64() != Some(backup.revision + 1) {
        let status = answer.status();
        let text = format!("the first write after a restore of revision {} returns {status} {body}", backup.revision);
        scene.symptom(Symptom::Backup, text);
    }
    Ok(())
}

/// The states of all nodes of a restored cluster, once all are voters and have applied the same entries.
async fn states_of(client: &Client, nodes: &[Node]) -> Result<Vec<FinalState>> {
    let deadline = Instant::now() + CONVERGENCE_DEADLINE;
    loop {
        match try_states_of(client, nodes).await {
            Ok(states) => return Ok(states),
            Err(error) if Instant::now() > deadline => {
                let tail = nodes[0].log_tail(10);
                return Err(error
                    .context(format!("a restored cluster is not complete within {CONVERGENCE_DEADLINE:?}:\n{tail}")));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn try_states_of(client: &Client, nodes: &[Node]) -> Result<Vec<FinalState>> {
    let mut applied = 0;
    for node in nodes {
        let status = client.status(node.host.http()).await?;
        if status.leader.is_none() || status.voters.len() < nodes.len() {
            bail!("node {} has {status:?}", node.id());
        }
        applied = applied.max(status.last_log);
    }
    let mut states = Vec::new();
    for node in nodes {
        states.push(client.final_state(node.id(), node.host.http(), applied).await?);
    }
    Ok(states)
}
