//! How a cluster behaves while its disks are nearly full.
//!
//! A flag sets the threshold, so any user can run these tests. Tests that need a small disk run themselves again in a
//! mount namespace with a file system of that size, where the system lets users mount one.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use raft_key_value::NodeId;
use raft_key_value::config::{
    LOG_UNCOMMITTED_BYTES_MAX, MEMORY_COUNTED_MIN, PROPOSED_BYTES_MAX, SNAPSHOT_LEAVES_BYTES,
};
use raft_key_value::store::{ExampleStateMachine, ExampleStore, durable};
use raft_key_value::types::{self, Entry, LeaderId, LogId, Payload};
use reqwest::Method;
use serde_json::json;

use crate::harness::{
    ALL, Answer, CALM, CALM_BUT_QUICK, DEADLINE, TestCluster, Wire, eventually, files_below, mib_of, others,
    raise_open_files,
};

/// More free space than any disk has.
const LOW: &str = "--min-disk-free-bytes=1000000000000000000";

/// Restarts all nodes, and waits until each responds with this status to a put.
async fn restart_all(cluster: &mut TestCluster, change: impl Fn(&mut TestCluster, NodeId), status: u16) {
    for id in ALL {
        assert_eq!(cluster.stop(id).await, Some(0));
        change(cluster, id);
    }
    cluster.restart_all(&ALL).await;
    for id in ALL {
        puts_are_answered(cluster, id, status).await;
    }
}

/// Waits until a node responds to a put with this status. A node checks its free space only after it has started.
async fn puts_are_answered(cluster: &TestCluster, id: NodeId, status: u16) {
    eventually(&format!("node {id} responds with {status} to a put"), DEADLINE, async || {
        let answer = cluster.persistently(id, Method::PUT, "/v1/kv/probe", &[], "v").await;
        if answer.status == status { Ok(()) } else { Err(answer.text()) }
    })
    .await;
}

async fn write(cluster: &TestCluster, id: NodeId, body: &str) -> Answer {
    cluster.post(id, "/write", body.to_owned()).await
}

/// Asserts that puts are rejected on a leader and through a follower, that each response says `not_applied`, and that
/// nothing is stored.
async fn assert_puts_are_rejected(cluster: &TestCluster, id: NodeId) {
    let rejected = cluster.put(id, "/v1/kv/new", "v").await;
    rejected.assert_rejected(507, "disk_space_low");
    cluster.put(id, "/v1/kv/kept", "other").await.assert_rejected(507, "disk_space_low");
    for branches in [
        json!({"success": [{"put": {"key": "new", "value": "v"}}]}),
        json!({"compare": [{"key": "kept", "exists": true}], "success": [{"delete": {"key": "kept"}}],
               "failure": [{"put": {"key": "new", "value": "v"}}]}),
    ] {
        cluster.txn(id, &branches).await.assert_rejected(507, "disk_space_low");
    }
    for body in [
        r#"{"Set":{"key":"new","value":"v"}}"#,
        r#"{"Txn":{"success":[{"delete":{"key":"kept"}},{"put":{"key":"new","value":"v"}}]}}"#,
    ] {
        write(cluster, id, body).await.assert_error(507, "DiskSpaceLow", "not_applied");
    }
    assert_eq!(cluster.get(id, "/v1/kv/kept").await.done()["value"], "v");
    cluster.get(id, "/v1/kv/new").await.assert_rejected(404, "key_not_found");
}

/// Asserts that requests that delete, touch and read succeed.
async fn assert_the_rest_passes(cluster: &TestCluster, id: NodeId) {
    let deleted = |count: u64, answer: Answer| assert_eq!(answer.done()["deleted"], count, "{}", answer.text());
    deleted(1, cluster.delete(id, &format!("/v1/kv/one-{id}")).await);
    deleted(2, cluster.delete(id, &format!("/v1/kv?prefix=many-{id}/")).await);
    let touched = cluster.v1(id, Method::POST, "/v1/kv/kept/touch?ttl=2h", &[], "").await.done();
    assert_eq!(touched["expires_in_ms"], 7_200_000);
    let txn = json!({
        "compare": [{"key": "kept", "exists": true}],
        "success": [{"delete": {"key": format!("txn-{id}")}}, {"touch": {"key": "kept", "ttl": "1h"}},
                    {"get": {"key": "kept"}}],
        "failure": [{"delete": {"key": "kept"}}],
    });
    let done = cluster.txn(id, &txn).await.done();
    assert_eq!((&done["succeeded"], &done["results"][0]["delete"]["deleted"]), (&json!(true), &json!(1)), "{done}");
    for body in [
        format!(r#"{{"Delete":{{"key":"write-{id}"}}}}"#),
        format!(r#"{{"Txn":{{"success":[{{"delete":{{"key":"write-txn-{id}"}}}}]}}}}"#),
    ] {
        write(cluster, id, &body).await.ok().unwrap();
    }
    for name in ["one", "many", "txn", "write", "write-txn"] {
        assert_eq!(cluster.list_all(id, &format!("prefix={name}-{id}")).await, Vec::<serde_json::Value>::new());
    }
}

/// Asserts that a repeated request gets its first response, and that another request with its key is rejected.
async fn assert_replays(cluster: &TestCluster, id: NodeId, first: &Answer, original: &Answer) {
    let key = [("idempotency-key", "first")];
    let again = cluster.v1(id, Method::PUT, "/v1/kv/kept?ttl=1h", &key, "v").await;
    assert_eq!((again.done(), again.header("raft-replayed")), (first.done(), "true"));
    let other = cluster.v1(id, Method::PUT, "/v1/kv/kept?ttl=1h", &key, "w").await;
    other.assert_rejected(422, "idempotency_key_reused");
    let key = [("idempotency-key", "original")];
    let body = r#"{"Set":{"key":"set","value":"v"}}"#;
    let again = cluster.http().request(Method::POST, cluster.addr(id), "/write", &key, body).await.unwrap();
    assert_eq!(again.header("raft-replayed"), "true");
    assert_eq!(again.ok().unwrap()["data"]["value"], original.ok().unwrap()["data"]["value"]);
    let key = [("idempotency-key", "never-seen")];
    cluster.v1(id, Method::PUT, "/v1/kv/new", &key, "v").await.assert_rejected(507, "disk_space_low");
}

/// While disks are nearly full, every node rejects requests that store data with 507. Deletes, touches, expiry, reads,
/// membership changes and leader changes still work.
///
/// Method: write data for each kind of request, and send two requests with an `Idempotency-Key`. Restart all nodes with
/// disks that count as nearly full, and send each request to each node. Touch a key so that it expires in a second, add
/// a learner, and stop the leader. Then restart all nodes with enough space.
#[tokio::test]
async fn space_can_be_freed() {
    let mut cluster = TestCluster::form("disk-low", &ALL, CALM_BUT_QUICK).await;
    let key = [("idempotency-key", "first")];
    let first = cluster.v1(1, Method::PUT, "/v1/kv/kept?ttl=1h", &key, "v").await;
    let key = [("idempotency-key", "original")];
    let body = r#"{"Set":{"key":"set","value":"v"}}"#;
    let original = cluster.http().request(Method::POST, cluster.addr(1), "/write", &key, body).await.unwrap();
    cluster.put(1, "/v1/kv/lock?ttl=1h", "v").await.done();
    for id in ALL {
        for name in ["one-{}", "many-{}/1", "many-{}/2", "txn-{}", "write-{}", "write-txn-{}"] {
            cluster.put(1, &format!("/v1/kv/{}", name.replace("{}", &id.to_string())), "v").await.done();
        }
    }
    restart_all(&mut cluster, |cluster, id| cluster.node_mut(id).add_flag(LOW), 507).await;
    let mut watch = cluster.watch(2, "prefix=lock").await;
    for id in ALL {
        assert_puts_are_rejected(&cluster, id).await;
        assert_the_rest_passes(&cluster, id).await;
        assert_replays(&cluster, id, &first, &original).await;
    }
    cluster.v1(3, Method::POST, "/v1/kv/lock/touch?ttl=1s", &[], "").await.done();
    assert_eq!(watch.take(1).await[0].kind(), "expire");
    for id in ALL {
        cluster.get(id, "/v1/kv/lock").await.assert_rejected(404, "key_not_found");
    }

    cluster.add_node(4).await;
    cluster.add_learner(1, 4).await;
    cluster.change_membership(2, &ALL).await;
    let leader = cluster.leader_of(&ALL).await;
    assert_eq!(cluster.stop(leader).await, Some(0));
    let rest = others(leader);
    cluster.leader_of(&rest).await;
    for id in rest {
        puts_are_answered(&cluster, id, 507).await;
        cluster.delete(id, "/v1/kv/set").await.done();
    }
    cluster.restart(leader).await;
    restart_all(&mut cluster, |cluster, id| cluster.node_mut(id).remove_flag(LOW), 200).await;
}

/// A node that cannot look up its free space logs that once, and once when it can again. Until then it decides about
/// writes by the last known value.
///
/// Method: move the data directory of one of three nodes away and back, twice. Its files stay open, and writes
/// continue.
#[tokio::test]
async fn free_space_that_cannot_be_looked_up() {
    let cluster = TestCluster::form("disk-unknown", &ALL, CALM_BUT_QUICK).await;
    let (node, away) = (cluster.node(2), cluster.node(2).data_dir().join("away"));
    let has_logged = async |words: &str, times: usize| {
        eventually(&format!("node 2 logs {words:?} {times} times"), DEADLINE, async || {
            let found = node.log().matches(words).count();
            if found == times { Ok(()) } else { Err(found) }
        })
        .await;
    };
    for round in 1..=2 {
        std::fs::rename(node.directory(), &away).unwrap();
        has_logged("cannot check the free disk space", round).await;
        cluster.put(2, "/v1/kv/k", "v").await.done();
        std::fs::rename(&away, node.directory()).unwrap();
        has_logged("can be checked again", round).await;
        cluster.put(2, "/v1/kv/k", "v").await.done();
    }
    let log = node.log();
    assert_eq!(log.matches("cannot check the free disk space").count(), 2, "{log}");
}

/// Set for a test that runs on a small disk.
const SMALL_DISK: &str = "RKV_TEST_SMALL_DISK";

/// Runs a test of this module with its temporary files on a disk of this size; returns whether the system allows that.
fn run_on_small_disk(name: &str, mib: usize) -> bool {
    run_on_disk(name, &format!("size={mib}M"))
}

/// The same with other mount options.
fn run_on_disk(name: &str, options: &str) -> bool {
    let directory = tempfile::tempdir().unwrap();
    let mount = format!("mount -t tmpfs -o {options} none \"$TMPDIR\"");
    let in_namespace = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", script, "sh"]);
        command.arg(std::env::current_exe().unwrap()).args(["--exact", name, "--ignored", "--nocapture"]);
        command.env("TMPDIR", directory.path()).env(SMALL_DISK, "yes").output()
    };
    if !in_namespace(&mount).is_ok_and(|output| output.status.success()) {
        eprintln!("{name} is not run: this system does not let users mount a file system");
        return false;
    }
    let output = in_namespace(&format!("{mount} && exec \"$@\"")).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    eprintln!("{text}");
    true
}

/// A small disk does not stay full of log: one key can be rewritten without end, and a rejected put is accepted a
/// moment later.
///
/// Method: on a disk of 320 MiB, 128 MiB of which are reserved, put 400 MiB to one key. Repeat each put that returns
/// 507 until it is accepted.
#[test]
fn a_log_makes_room() {
    run_on_small_disk("disk_low::rewrite_on_a_small_disk", 320);
}

#[tokio::test]
#[ignore = "run on a small disk by `cargo test --test cluster disk_low::a_log_makes_room`"]
async fn rewrite_on_a_small_disk() {
    if std::env::var_os(SMALL_DISK).is_none() {
        return;
    }
    let mut cluster = TestCluster::form("small-disk", &[1], CALM_BUT_QUICK).await;
    let mut rejected = 0;
    for number in 0..400 {
        let value = mib_of(&number.to_string());
        eventually(&format!("put {number} is accepted"), DEADLINE, async || {
            let answer = cluster.put(1, "/v1/kv/rewritten", value.clone()).await;
            match answer.status {
                200 => Ok(()),
                507 => {
                    rejected += 1;
                    Err(answer.text())
                }
                _ => panic!("{}", answer.text()),
            }
        })
        .await;
    }
    eprintln!("small-disk: {rejected} puts were first rejected and then accepted");
    cluster.assert_alive();
    cluster.crash(&[1]).await;
    cluster.assert_mib(1, "rewritten", "399").await;
}

/// Fills the disk of `directory` up to this much free space; returns the filler file.
fn fill(directory: &Path, free_bytes: u64) -> PathBuf {
    let filler = directory.join("filler");
    let stat = rustix::fs::statvfs(directory).unwrap();
    let bytes = stat.f_bavail * stat.f_frsize - free_bytes;
    let mut file = std::fs::File::create(&filler).unwrap();
    std::io::copy(&mut std::io::repeat(1).take(bytes), &mut file).unwrap();
    filler
}

/// Adds a learner with a disk of its own. Works in a test on a small disk only.
async fn add_node_with_disk(cluster: &mut TestCluster, id: NodeId, size: &str) {
    let directory = cluster.node(1).data_dir().join(format!("node-{id}"));
    std::fs::create_dir(&directory).unwrap();
    let options = format!("size={size},mode=700");
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(&directory).status();
    assert!(mount.unwrap().success());
    cluster.add_node(id).await;
    cluster.add_learner(1, id).await;
}

/// A disk filled by something else stops no node, neither leader nor follower, and a node recovers once there is space.
///
/// Method: three nodes on a disk of 300 MiB, and a file that takes all but 10 MiB of it. Writes and deletes return 507,
/// and reads on the leader succeed. Delete the file: each node accepts writes again without a restart.
#[test]
fn nodes_recover_from_a_full_disk() {
    run_on_small_disk("disk_low::fill_a_small_disk", 300);
}

#[tokio::test]
#[ignore = "run on a small disk by `cargo test --test cluster disk_low::nodes_recover_from_a_full_disk`"]
async fn fill_a_small_disk() {
    if std::env::var_os(SMALL_DISK).is_none() {
        return;
    }
    let mut cluster = TestCluster::form("filled-disk", &ALL, CALM_BUT_QUICK).await;
    cluster.put(1, "/v1/kv/kept", "before").await.done();
    let filler = fill(&std::env::temp_dir(), 10 << 20);
    for id in ALL {
        eventually(&format!("node {id} rejects deletes"), DEADLINE, async || {
            let answer = cluster.delete(id, "/v1/kv/none").await;
            if answer.status == 507 { Ok(()) } else { Err(answer.text()) }
        })
        .await;
    }
    eventually("a node with a full disk is alive and not ready", DEADLINE, async || {
        let probe = async |path| cluster.http().get(cluster.addr(1), path).await.unwrap();
        let (livez, readyz) = (probe("/livez").await, probe("/readyz").await);
        assert_eq!(livez.status, 200, "{}", livez.text());
        if readyz.status == 503 && readyz.text().starts_with("[-]disk: ") { Ok(()) } else { Err(readyz.text()) }
    })
    .await;
    // A follower may lack an entry that the leader logged just before, and then cannot confirm a read until there is
    // space.
    let leader = cluster.leader_of(&ALL).await;
    assert_eq!(cluster.get(leader, "/v1/kv/kept").await.done()["value"], "before");
    cluster.assert_alive();
    std::fs::remove_file(&filler).unwrap();
    for id in ALL {
        puts_are_answered(&cluster, id, 200).await;
    }
    cluster.all_applied(&ALL).await;
    cluster.assert_alive();
}

/// A disk that is full of data still accepts deletes, and accepts puts again after deletes, even though deletes produce
/// hardly any log that could be freed.
///
/// Method: on a disk of 400 MiB, put keys of 1 MiB until they are rejected permanently. Then delete all but one, and
/// put.
#[test]
fn deletes_make_room_for_puts() {
    run_on_small_disk("disk_low::delete_on_a_small_disk", 400);
}

#[tokio::test]
#[ignore = "run on a small disk by `cargo test --test cluster disk_low::deletes_make_room_for_puts`"]
async fn delete_on_a_small_disk() {
    /// Longer than a node needs to free space, if it can.
    const FOR_GOOD: Duration = Duration::from_secs(25);
    if std::env::var_os(SMALL_DISK).is_none() {
        return;
    }
    let mut cluster = TestCluster::form("full-of-data", &[1], CALM_BUT_QUICK).await;
    let mut count = 0;
    let mut accepted_at = Instant::now();
    while accepted_at.elapsed() < FOR_GOOD {
        let answer = cluster.put(1, &format!("/v1/kv/data/{count}"), "v".repeat(1 << 20)).await;
        match answer.status {
            200 => {
                count += 1;
                accepted_at = Instant::now();
            }
            507 => tokio::time::sleep(Duration::from_millis(100)).await,
            _ => panic!("{}", answer.text()),
        }
    }
    eprintln!("full-of-data: {count} MiB fit");
    assert!(count > 60, "{count} MiB of data on a disk of 400 MiB");
    for number in 1..count {
        cluster.delete(1, &format!("/v1/kv/data/{number}")).await.done();
    }
    puts_are_answered(&cluster, 1, 200).await;
    cluster.assert_alive();
    cluster.crash(&[1]).await;
    assert_eq!(cluster.get(1, "/v1/kv/data/0").await.done()["version"], 1);
    cluster.get(1, "/v1/kv/data/1").await.assert_rejected(404, "key_not_found");
}

/// A follower with a much smaller disk than the others appends entries as it has room for them. It does not stop: it
/// rejects what would fill its disk, frees space, and catches up in the end. The others continue.
///
/// Method: on a disk of 2 GiB, mount one of 220 MiB for a node that joins two others. Put 200 MiB to one key; the
/// leader and the other follower accept every put.
#[test]
fn a_follower_with_a_small_disk_catches_up() {
    run_on_small_disk("disk_low::follow_on_a_small_disk", 2048);
}

#[tokio::test]
#[ignore = "run on a small disk by `cargo test --test cluster disk_low::a_follower_with_a_small_disk_catches_up`"]
async fn follow_on_a_small_disk() {
    if std::env::var_os(SMALL_DISK).is_none() {
        return;
    }
    let mut cluster = TestCluster::form("small-follower", &[1, 2], CALM).await;
    add_node_with_disk(&mut cluster, 3, "220M").await;
    cluster.change_membership(1, &ALL).await;
    for number in 0..200 {
        cluster.put(1, "/v1/kv/rewritten", mib_of(&number.to_string())).await.done();
    }
    cluster.assert_alive();
    cluster.all_applied(&ALL).await;
    let log = cluster.node(3).log();
    assert!(log.contains("the disk is low on space") || log.contains("the disk is nearly full"), "{log}");
    cluster.assert_mib(3, "rewritten", "199").await;
}

/// A snapshot that outgrows both the newest one and the free space reuses the space of the oldest one.
///
/// Method: on a disk of 400 MiB, take two snapshots of a growing state. Then fill the disk, and leave less than the
/// third snapshot needs.
#[test]
fn a_snapshot_takes_the_room_of_the_one_before() {
    run_on_small_disk("disk_low::snapshot_that_grows", 400);
}

#[test]
#[ignore = "run on a small disk by `cargo test --test cluster disk_low::a_snapshot_takes_the_room_of_the_one_before`"]
fn snapshot_that_grows() {
    if std::env::var_os(SMALL_DISK).is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let store = ExampleStore::open(directory.path(), 1).unwrap();
    let snapshots = store.state_machine.snapshots();
    let mut machine = ExampleStateMachine::default();
    let value: Arc<str> = "v".repeat(1 << 20).into();
    let mut build_with = |keys: u64| {
        let from = machine.last_applied.map_or(0, |last| last.index);
        for index in from + 1..=keys {
            let set = types::Command::Set { key: format!("key-{index}").into(), value: value.clone() };
            let payload = Payload::Normal(set);
            machine.apply(Entry { log_id: LogId::new(LeaderId { term: 1, node_id: 1 }, index), payload });
        }
        (snapshots.build(&machine).unwrap().0.last_log_id, machine.last_applied)
    };
    for keys in [40, 60] {
        let (snapshot, applied) = build_with(keys);
        assert_eq!(snapshot, applied);
    }
    // By the size of the newest snapshot, 60 MiB, there is room. The next one needs 100 MiB, of which the oldest holds
    // 40 MiB.
    fill(&std::env::temp_dir(), (80 << 20) + SNAPSHOT_LEAVES_BYTES);
    assert!(snapshots.has_room());
    let (snapshot, applied) = build_with(100);
    assert_eq!(snapshot, applied, "the snapshot was abandoned");
}

/// A node that cannot even create a snapshot's file continues without a snapshot, and takes one as soon as it can.
///
/// Method: on a disk with room for 400 files, create empty files until no more fit. Write more entries than lie between
/// two snapshots. Delete the files, and write as many again.
#[test]
fn a_snapshot_without_room_for_its_file_is_abandoned() {
    run_on_disk("disk_low::snapshot_without_a_file", "size=300M,nr_inodes=400");
}

#[tokio::test]
#[ignore = "run by `cargo test --test cluster disk_low::a_snapshot_without_room_for_its_file_is_abandoned`"]
async fn snapshot_without_a_file() {
    if std::env::var_os(SMALL_DISK).is_none() {
        return;
    }
    let mut cluster = TestCluster::form("no-files", &[1], &[&["--snapshot-entries", "50"], CALM].concat()).await;
    let fillers = std::env::temp_dir().join("fillers");
    std::fs::create_dir(&fillers).unwrap();
    let mut number = 0;
    while std::fs::File::create(fillers.join(number.to_string())).is_ok() {
        number += 1;
    }
    let given_up = "cannot take a snapshot at index";
    cluster.write_many(1, "full", 120).await;
    eventually("a snapshot is abandoned", DEADLINE, async || {
        let log = cluster.node(1).log();
        if log.contains(given_up) { Ok(()) } else { Err(log) }
    })
    .await;
    cluster.assert_alive();
    assert_eq!(cluster.metrics(1).await.snapshot, None);
    std::fs::remove_dir_all(&fillers).unwrap();
    cluster.write_many(1, "free", 120).await;
    cluster.metrics_say(1, "a snapshot", |metrics| metrics.snapshot).await;
    cluster.assert_alive();
}

/// A snapshot for a client is not written to a disk without room for it: the request returns 507, and nothing is left.
/// The node works on, and sends it once there is room.
///
/// Method: on a disk of 400 MiB, put 24 MiB and fill the disk up to 8 MiB. Then delete the filler.
#[test]
fn a_snapshot_is_not_sent_from_a_full_disk() {
    run_on_small_disk("disk_low::snapshot_of_a_full_disk", 400);
}

#[tokio::test]
#[ignore = "run on a small disk by `cargo test --test cluster disk_low::a_snapshot_is_not_sent_from_a_full_disk`"]
async fn snapshot_of_a_full_disk() {
    if std::env::var_os(SMALL_DISK).is_none() {
        return;
    }
    const LEFT_BYTES: u64 = 8 << 20;
    let mut cluster = TestCluster::form("snapshot-full", &[1], CALM).await;
    for number in 0..24 {
        cluster.put(1, &format!("/v1/kv/{number}"), mib_of("v")).await.done();
    }
    let directory = cluster.node(1).directory();
    let filler = std::env::temp_dir().join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while durable::free_bytes(&directory).unwrap() > LEFT_BYTES {
        file.write_all(&[1; 1 << 20]).unwrap();
    }
    let rejected = eventually("the snapshot is rejected", DEADLINE, async || {
        let answer = cluster.get(1, "/v1/snapshot?consistency=stale").await;
        if answer.status == 507 { Ok(answer) } else { Err(answer.status) }
    })
    .await;
    let error = rejected.assert_rejected(507, "disk_space_low");
    assert!(error["message"].as_str().unwrap().contains("too little space for a snapshot"), "{error}");
    // The node itself tries to write a snapshot from time to time, and removes the unfinished file.
    eventually("no unfinished file is left", DEADLINE, async || {
        let mut left = files_below(&directory);
        left.retain(|path| path.extension().is_some_and(|extension| extension == "tmp"));
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
    assert!(durable::free_bytes(&directory).unwrap() >= LEFT_BYTES - (1 << 20), "something takes the rest");
    assert_eq!(cluster.get(1, "/v1/kv/0?consistency=stale").await.status, 200);
    cluster.assert_alive();
    drop(file);
    std::fs::remove_file(&filler).unwrap();
    let sent = eventually("the snapshot is sent", DEADLINE, async || {
        let answer = cluster.get(1, "/v1/snapshot").await;
        if answer.status == 200 { Ok(answer) } else { Err(answer.status) }
    })
    .await;
    assert!(sent.body.len() > 24 << 20);
}

/// A leader whose followers reject entries does not let its log grow without bound. It soon rejects long writes, and
/// later short ones, and accepts both again once the followers accept entries. A request that was applied before still
/// gets its first response.
///
/// Method: on a disk of 2 GiB, mount one of 300 MiB for each of two followers, and fill it with a file, so that they
/// respond to heartbeats but reject entries. Put 1 MiB to one key until a put is rejected. Then put short values, with
/// 2,000 clients at a time, until one is rejected. Delete the files.
#[test]
fn an_uncommitted_log_is_bounded() {
    run_on_small_disk("disk_low::fill_the_followers", 2048);
}

#[tokio::test]
#[ignore = "run on a small disk by `cargo test --test cluster disk_low::an_uncommitted_log_is_bounded`"]
async fn fill_the_followers() {
    const LONG_BYTES: usize = 1 << 20;
    const SHORT_BYTES: usize = MEMORY_COUNTED_MIN - 100;
    const CLIENTS: usize = 2000;
    if std::env::var_os(SMALL_DISK).is_none() {
        return;
    }
    let flags = [&["--max-writes-waiting", "4096"], CALM].concat();
    let mut cluster = TestCluster::form("unconfirmed", &[1], &flags).await;
    for id in [2, 3] {
        add_node_with_disk(&mut cluster, id, "300M").await;
    }
    cluster.change_membership(1, &ALL).await;
    let key = [("idempotency-key", "first")];
    let first = cluster.v1(1, Method::PUT, "/v1/kv/first", &key, "v").await;
    let fillers = [2, 3].map(|id| fill(&cluster.node(id).directory(), 10 << 20));
    for id in [2, 3] {
        eventually(&format!("node {id} reports that its disk is full"), DEADLINE, async || {
            let log = cluster.node(id).log();
            if log.contains("the disk is nearly full") { Ok(()) } else { Err(log) }
        })
        .await;
    }
    let last_index = async || cluster.metrics(1).await.last_log_index.unwrap();

    let before = last_index().await;
    let long = || cluster.put(1, "/v1/kv/long", "v".repeat(LONG_BYTES));
    for answer in join_all((0..2 * PROPOSED_BYTES_MAX / LONG_BYTES).map(|_| long())).await {
        if answer.status == 503 {
            let error = answer.assert_rejected(503, "overloaded");
            assert_eq!(error["outcome"], "not_applied", "{error}");
            assert!(error.to_string().contains("is not keeping up with large writes"), "{error}");
        } else {
            assert_eq!((answer.status, answer.header("raft-outcome")), (504, "unknown"), "{}", answer.text());
        }
    }
    let long_entries = last_index().await - before;
    assert!((1..=PROPOSED_BYTES_MAX / LONG_BYTES).contains(&(long_entries as usize)), "{long_entries} entries");

    let put = format!(
        "PUT /v1/kv/short HTTP/1.1\r\nhost: {}\r\ncontent-length: {SHORT_BYTES}\r\n\r\n{}",
        cluster.addr(1),
        "v".repeat(SHORT_BYTES)
    );
    raise_open_files(CLIENTS as u64 + 500);
    let mut clients = join_all((0..CLIENTS).map(|_| Wire::open(cluster.addr(1)))).await;
    let (mut unknown, mut rejected) = (0, 0);
    while rejected == 0 {
        let response_to_put = async |client: &mut Wire| {
            client.send(&put).await;
            client.response_to("PUT").await
        };
        for response in join_all(clients.iter_mut().map(response_to_put)).await {
            let outcome = response.header("raft-outcome");
            match (response.status, outcome) {
                (504, Some("unknown")) => unknown += 1,
                (503, Some("not_applied")) if response.text().contains("too few nodes are keeping up") => rejected += 1,
                _ => panic!("{response:?}: {}", response.text()),
            }
        }
        let bytes = long_entries as usize * LONG_BYTES + unknown * SHORT_BYTES;
        eprintln!("{bytes} bytes in the log; {unknown} unknown, {rejected} rejected");
        assert!(bytes < LOG_UNCOMMITTED_BYTES_MAX + CLIENTS * SHORT_BYTES, "none of {unknown} puts was rejected");
        assert!(rejected == 0 || bytes > LOG_UNCOMMITTED_BYTES_MAX / 10 * 9, "rejected after only {unknown} puts");
    }
    let again = cluster.v1(1, Method::PUT, "/v1/kv/first", &key, "v").await;
    assert_eq!((again.done(), again.header("raft-replayed")), (first.done(), "true"));
    for filler in fillers {
        std::fs::remove_file(filler).unwrap();
    }
    puts_are_answered(&cluster, 1, 200).await;
    cluster.all_applied(&ALL).await;
    assert_eq!(cluster.get(1, "/v1/kv/long").await.done()["version"], long_entries);
    assert_eq!(cluster.get(1, "/v1/kv/short").await.done()["value"], "v".repeat(SHORT_BYTES));
    cluster.assert_alive();
}
