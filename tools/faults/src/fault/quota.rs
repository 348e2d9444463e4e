//! Keys and values take as much memory as the quota permits.

use std::time::Duration;

use anyhow::{Context, Result};
use harness::http;
use tokio::time::Instant;

use super::filler::Came;
use super::{Scene, Who};
use crate::finding::Symptom;
use crate::history::{Call, Consistency, Text};
use crate::lane::calm;
use crate::network::Host;

/// The quota of the lane, in bytes.
pub const QUOTA_BYTES: u64 = 3 << 20;
/// Length of the first values. The other clients' keys have less in all.
const VALUE_BYTES: usize = 64 << 10;
/// Length of the last values, which leave no room for one of the first length, whatever other clients delete.
const LEAST_BYTES: usize = 1 << 10;
/// More than what the other clients may have deleted since a write was rejected.
const SLACK_BYTES: u64 = 32 << 10;
/// A node counts each key as this many bytes in addition to its own and its value's.
const KEY_BYTES: u64 = 200;
/// A node's metrics may be this old.
const METRICS_AGE: Duration = Duration::from_millis(1100);
const METRICS_DEADLINE: Duration = Duration::from_secs(5);
/// How long growth may be rejected after everything was deleted.
const RECOVERY_DEADLINE: Duration = Duration::from_secs(5);

/// Writes until the quota is reached, optionally kills nodes, and checks what each node accepts. Everything is then
/// deleted, and the nodes must accept growth again.
pub async fn quota(scene: &mut Scene<'_>, kills: bool) -> Result<String> {
    let keys = fill(scene).await?;
    let mut detail = format!("{} keys", keys.len());
    if kills {
        let who = if scene.random.bool() { Who::Leader } else { Who::All };
        let killed = scene.choose(who).await?;
        for id in &killed {
            scene.cluster.node(*id)?.kill()?;
        }
        scene.hold(50..500).await;
        scene.cluster.heal()?;
        calm(scene.cluster).await?;
        detail.push_str(&format!(", nodes {killed:?} killed"));
    }
    tokio::time::sleep(METRICS_AGE).await;
    check_amount(scene).await?;
    for host in hosts(scene) {
        check_full(scene, &host, &keys).await?;
    }
    empty(scene, &keys).await?;
    Ok(detail)
}

fn hosts(scene: &Scene<'_>) -> Vec<Host> {
    scene.cluster.nodes.iter().map(|node| node.host.clone()).collect()
}

/// Writes shorter and shorter values until none fits; returns the keys, the longest values first.
async fn fill(scene: &mut Scene<'_>) -> Result<Vec<Text>> {
    let hosts = hosts(scene);
    let (mut keys, mut accepted, mut bytes) = (Vec::new(), 0, VALUE_BYTES);
    loop {
        let key: Text = format!("quota/{}", keys.len()).into();
        let host = &hosts[scene.random.usize(..hosts.len())];
        match scene.put_until_done(host, &key, bytes).await? {
            Came::Done => {
                keys.push(key);
                accepted += bytes as u64;
            }
            Came::OverQuota if bytes > LEAST_BYTES => bytes /= 2,
            Came::OverQuota => return Ok(keys),
        }
        if accepted > QUOTA_BYTES {
            let text = format!("{accepted} bytes of values were accepted, and the quota is {QUOTA_BYTES} bytes");
            scene.symptom(Symptom::Quota, text);
            return Ok(keys);
        }
    }
}

/// The leader must have rejected growth because of the quota, and not long before it.
async fn check_amount(scene: &mut Scene<'_>) -> Result<()> {
    let leader = scene.choose(Who::Leader).await?[0];
    let host = scene.cluster.node(leader)?.host.clone();
    let answer = scene.cluster.client.http().send(host.http(), http::get("/v1/metrics"), METRICS_DEADLINE).await;
    let page = String::from_utf8_lossy(answer?.body()).into_owned();
    let gauge = |name: &str| {
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse::<u64>().ok());
        line.with_context(|| format!("node {leader} has no metric `{name}`"))
    };
    let used = gauge("rkv_store_bytes")? + KEY_BYTES * gauge("rkv_store_keys")?;
    // Each of the other clients may have had a write in progress.
    if !(QUOTA_BYTES - SLACK_BYTES..=QUOTA_BYTES + SLACK_BYTES).contains(&used) {
        let text = format!("node {leader} rejects growth at {used} bytes, and the quota is {QUOTA_BYTES} bytes");
        scene.symptom(Symptom::Quota, text);
    }
    Ok(())
}

/// A node must reject a write that adds data, and accept one that does not, a read and a deletion.
async fn check_full(scene: &mut Scene<'_>, host: &Host, keys: &[Text]) -> Result<()> {
    let id = host.id;
    let (Some(longest), Some(shortest)) = (keys.first(), keys.last()) else { return Ok(()) };
    let new: Text = format!("quota/new-{id}").into();
    if scene.put_until_done(host, &new, VALUE_BYTES).await? == Came::Done {
        scene.symptom(Symptom::Quota, format!("node {id} accepts a write that exceeds the quota"));
    }
    if scene.put_until_done(host, longest, VALUE_BYTES).await? == Came::OverQuota {
        scene.symptom(Symptom::Quota, format!("node {id} rejects a write that adds no data"));
    }
    let (get, delete) = (longest.clone(), shortest.clone());
    scene.until_done(host, || Call::Get { key: get.clone(), consistency: Consistency::Linearizable }).await?;
    if scene.until_done(host, || Call::Delete { key: delete.clone(), condition: None }).await? == Came::OverQuota {
        scene.symptom(Symptom::Quota, format!("node {id} rejects a deletion"));
    }
    Ok(())
}

/// Deletes all of it. Each node must then accept growth.
async fn empty(scene: &mut Scene<'_>, keys: &[Text]) -> Result<()> {
    let hosts = hosts(scene);
    let new = hosts.iter().map(|host| format!("quota/new-{}", host.id).into());
    let all: Vec<Text> = keys.iter().cloned().chain(new).collect();
    for key in &all {
        let host = &hosts[scene.random.usize(..hosts.len())];
        scene.until_done(host, || Call::Delete { key: key.clone(), condition: None }).await?;
    }
    let deleted_at = Instant::now();
    for host in &hosts {
        let key: Text = format!("quota/after-{}", host.id).into();
        while scene.put_until_done(host, &key, VALUE_BYTES).await? == Came::OverQuota {
            if deleted_at.elapsed() > RECOVERY_DEADLINE {
                let text =
                    format!("node {} rejects growth {RECOVERY_DEADLINE:?} after everything was deleted", host.id);
                scene.symptom(Symptom::Quota, text);
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        scene.until_done(host, || Call::Delete { key: key.clone(), condition: None }).await?;
    }
    Ok(())
}
