//! Snapshots for backups, clusters made of them, and directories of stopped nodes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use raft_key_value::NodeId;
use raft_key_value::hash::StateHash;
use raft_key_value::store::ExampleStateMachine;
use raft_key_value::store::log::check::visit_entries;
use raft_key_value::types::Entry;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{
    ALL, Answer, CALM, CALM_BUT_QUICK, DEADLINE, Ended, Random, TestCluster, Writers, command, copy_directory,
    eventually, files_below, mib_of, run,
};

/// Runs a command that must succeed, and returns the object that it prints.
#[track_caller]
fn json_of(arguments: &[&str], environment: &[(&str, &str)]) -> Value {
    let ended = run(&[arguments, &["--output", "json"]].concat(), environment);
    // On a busy machine, a command may take long enough to show its progress.
    let is_progress = |line: &str| line.starts_with("saving: ") || line.starts_with("loading: ");
    assert_eq!(ended.code, Some(0), "{arguments:?}: {}", ended.stderr);
    assert!(ended.stderr.lines().all(is_progress), "{arguments:?}: {}", ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap()
}

/// Runs a command that must fail with an exit code and a message, in one line.
#[track_caller]
fn fails(arguments: &[&str], environment: &[(&str, &str)], code: i32, named: &str) -> Ended {
    let ended = run(arguments, environment);
    assert_eq!(ended.code, Some(code), "{arguments:?}: {}", ended.stderr);
    assert!(ended.stderr.starts_with("error: ") && ended.stderr.contains(named), "{arguments:?}: {}", ended.stderr);
    assert_eq!(ended.stderr.lines().count(), 1, "{arguments:?}: {}", ended.stderr);
    ended
}

/// Dumps a directory. The output is too long for a pipe that is read only at the end.
fn dump(directory: &Path) -> Ended {
    let output = command(["dump", directory.to_str().unwrap()]).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Runs a command on another thread, so that the tasks of the test continue.
async fn on_a_thread<T: Send + 'static>(command: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(command).await.unwrap()
}

fn endpoints(cluster: &TestCluster, ids: &[NodeId]) -> String {
    ids.iter().map(|id| cluster.addr(*id)).collect::<Vec<_>>().join(",")
}

/// Saves a snapshot by the command, and returns what it prints.
async fn save(cluster: &TestCluster, ids: &[NodeId], file: &Path) -> Value {
    let (endpoints, file) = (endpoints(cluster, ids), file.to_str().unwrap().to_owned());
    on_a_thread(move || json_of(&["snapshot", "save", &file], &[("RKV_ENDPOINTS", &endpoints)])).await
}

/// The files below a directory and their bytes.
fn contents_of(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    files_below(directory).into_iter().map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
}

async fn hash_of(cluster: &TestCluster, id: NodeId) -> Value {
    cluster.get(id, "/v1/cluster/hash").await.done()
}

/// The hash of the state after the entry at this index, from the log of a node that has all entries.
fn hash_by_log(node_directory: &Path, index: u64) -> StateHash {
    let mut machine = ExampleStateMachine::default();
    visit_entries(&node_directory.join("log"), &mut |log_id, payload| {
        if log_id.index <= index {
            machine.apply(Entry { log_id, payload: payload.clone() });
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(machine.last_applied.unwrap().index, index);
    machine.hash()
}

/// Makes the data directory of a node in `cluster` from a snapshot, in place of the empty one that it has.
async fn restore(cluster: &mut TestCluster, id: NodeId, file: &Path) -> Value {
    cluster.stop(id).await;
    let (data_dir, directory) = (cluster.node(id).data_dir().to_owned(), cluster.node(id).directory());
    fs::remove_dir_all(directory).unwrap();
    let (file, data_dir) = (file.to_str().unwrap(), data_dir.to_str().unwrap());
    let (id_text, addr) = (id.to_string(), cluster.addr(id).to_owned());
    let restored = json_of(
        &["snapshot", "restore", file, "--data-dir", data_dir, "--id", &id_text, "--advertise-addr", &addr],
        &[],
    );
    cluster.restart(id).await;
    restored
}

/// Adds nodes to the cluster of the first one, as voters.
async fn join(cluster: &TestCluster, first: NodeId, others: &[NodeId]) {
    cluster.leader_of(&[first]).await;
    for id in others {
        cluster.add_learner(first, *id).await;
    }
    let voters: Vec<NodeId> = [first].iter().chain(others).copied().collect();
    cluster.change_membership(first, &voters).await;
    cluster.leader_of(&voters).await;
    cluster.all_applied(&voters).await;
}

/// A snapshot that is saved while 64 clients write is the state at its index, and a new cluster that is made of it
/// has that state on all nodes, with the revisions going on.
///
/// Method: write through all nodes, and save from a follower meanwhile. Compare the hash with that of the log's entries
/// up to the index, and the keys with the acknowledged writes. Restore it as the first of three new nodes, let the
/// others join, and compare the hashes, a watch and the next revision.
#[tokio::test]
async fn a_cluster_is_saved_under_load_and_restored() {
    let mut cluster = TestCluster::form("backup-load", &ALL, CALM).await;
    cluster.put(1, "/v1/kv/expires?ttl=1h", "1").await.done();
    cluster.put(1, "/v1/kv/bytes", vec![0, 159, 146, 150]).await.done();
    let once = [("idempotency-key", "request")];
    cluster.v1(2, Method::PUT, "/v1/kv/once", &once, "1").await.done();
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("backup.snap");
    fs::write(&file, "an older backup").unwrap();
    let follower = 1 + cluster.leader_of(&ALL).await % 3;

    let writers = Writers::start(&cluster, &ALL, 64, "load");
    writers.acknowledged_more(500).await;
    let before = cluster.put(1, "/v1/kv/before", "1").await.done()["revision"].as_u64().unwrap();
    let saved = save(&cluster, &[follower], &file).await;
    let after = cluster.put(1, "/v1/kv/after", "1").await.done()["revision"].as_u64().unwrap();
    writers.acknowledged_more(500).await;
    writers.finish().await;
    let (index, revision) = (saved["index"].as_u64().unwrap(), saved["revision"].as_u64().unwrap());
    assert!((before..after).contains(&revision), "{revision} is not from {before} to {after}");
    assert_eq!(saved["bytes"], fs::metadata(&file).unwrap().len());
    assert_eq!(fs::read_dir(files.path()).unwrap().count(), 1, "a part of a file is left");
    let inspected = json_of(&["snapshot", "inspect", file.to_str().unwrap()], &[]);
    for name in ["hash", "index", "revision", "keys"] {
        assert_eq!(inspected[name], saved[name], "{name}");
    }
    // Keys without a slash have a row of their own.
    let last = inspected["largest_prefixes"].as_array().unwrap().last().cloned().unwrap();
    assert!(last["prefix"] == "" && last["keys"].as_u64() > Some(0), "{inspected}");
    let shown = run(&["snapshot", "inspect", file.to_str().unwrap()], &[]);
    assert!(shown.stdout.lines().last().unwrap().starts_with("(no slash)  "), "{}", shown.stdout);
    cluster.stop(follower).await;
    assert_eq!(saved["hash"], hash_by_log(&cluster.node(follower).directory(), index).to_string());
    drop(cluster);

    let mut restored = TestCluster::start("backup-restored", &ALL, CALM_BUT_QUICK).await;
    let printed = restore(&mut restored, 1, &file).await;
    assert_eq!((&printed["hash"], &printed["keys"]), (&saved["hash"], &saved["keys"]));
    join(&restored, 1, &[2, 3]).await;
    for id in ALL {
        let found = hash_of(&restored, id).await;
        assert_eq!((&found["hash"], &found["revision"]), (&saved["hash"], &saved["revision"]), "node {id}");
    }
    let repeated = restored.v1(3, Method::PUT, "/v1/kv/once", &once, "1").await;
    assert_eq!(repeated.header("raft-replayed"), "true", "a request is applied again after a restore");
    assert_eq!(restored.get(2, "/v1/kv/bytes?raw").await.body, vec![0, 159, 146, 150]);
    let left = restored.get(2, "/v1/kv/expires").await.done()["expires_in_ms"].as_u64().unwrap();
    assert!((1..=3_600_000).contains(&left), "{left}");
    let mut watch = restored.watch(2, &format!("from={revision}")).await;
    let next = restored.put(3, "/v1/kv/next", "1").await.done()["revision"].as_u64().unwrap();
    assert_eq!(next, revision + 1);
    let events = watch.until_revision(next).await;
    assert_eq!(events.iter().map(|event| event.revision()).collect::<Vec<_>>(), [revision, next]);
}

/// A file that is not whole is refused by every command, and nothing is changed: neither a directory nor a cluster.
///
/// Method: flip bytes at random positions, cut the file at random lengths, append to it, and take foreign files.
#[tokio::test]
async fn damaged_files_are_refused() {
    let cluster = TestCluster::form("backup-damage", &[1], CALM).await;
    cluster.put_many(1, "key-", 300).await;
    let files = tempfile::tempdir().unwrap();
    let (good, bad) = (files.path().join("good.snap"), files.path().join("bad.snap"));
    save(&cluster, &[1], &good).await;
    let bytes = fs::read(&good).unwrap();
    let revision = hash_of(&cluster, 1).await["revision"].clone();
    let mut random = Random::new("damaged-backups");
    let mut damaged: Vec<(String, Vec<u8>)> = Vec::new();
    for _ in 0..8 {
        let position = random.below(bytes.len());
        let mut flipped = bytes.clone();
        flipped[position] ^= 1 << random.below(8);
        damaged.push((format!("byte {position} flipped"), flipped));
        let length = random.below(bytes.len());
        damaged.push((format!("cut to {length} bytes"), bytes[..length].to_vec()));
    }
    damaged.push(("something appended".to_owned(), [bytes.as_slice(), b"x"].concat()));
    damaged.push(("empty".to_owned(), Vec::new()));
    damaged.push(("a foreign file".to_owned(), fs::read(env!("CARGO_MANIFEST_PATH")).unwrap()));
    let (bad_text, data_dir) = (bad.to_str().unwrap(), files.path().join("data"));
    let restore = ["snapshot", "restore", bad_text, "--data-dir", data_dir.to_str().unwrap(), "--id", "1"];
    let restore = [&restore[..], &["--advertise-addr", "127.0.0.1:21001"]].concat();
    let environment = [("RKV_ENDPOINTS", cluster.addr(1))];
    for (what, bytes) in damaged {
        eprintln!("{what}");
        fs::write(&bad, bytes).unwrap();
        fails(&["snapshot", "inspect", bad_text], &[], 65, "damaged: ");
        fails(&restore, &[], 65, "nothing was changed");
        fails(&["snapshot", "load", bad_text, "--prefix", ""], &environment, 65, "nothing was changed");
        assert!(!data_dir.exists(), "{what}");
    }
    assert_eq!(hash_of(&cluster, 1).await["revision"], revision);
    // A file to read that does not exist is an invalid argument, whichever command names it.
    let missing_directory = files.path().join("missing");
    let missing_directory = missing_directory.to_str().unwrap();
    let restore = ["snapshot", "restore", "missing.snap", "--data-dir", missing_directory, "--id", "1"];
    let restore = [&restore[..], &["--advertise-addr", "127.0.0.1:1"]].concat();
    let commands: [&[&str]; 8] = [
        &["snapshot", "inspect", "missing.snap"],
        &["snapshot", "load", "missing.snap", "--prefix", ""],
        &restore,
        &["check", missing_directory],
        &["dump", missing_directory],
        &["recover", "--data-dir", missing_directory, "--id", "1"],
        &["config", "check", "--config", "missing.toml"],
        &["put", "k", "--file", "missing.txt"],
    ];
    for arguments in commands {
        fails(arguments, &environment, 2, "missing");
    }
}

/// A file that cannot be saved leaves nothing behind, and an older one of its name stays.
#[tokio::test]
async fn what_cannot_be_saved() {
    let cluster = TestCluster::form("backup-unsaved", &[1], CALM).await;
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("backup.snap");
    fs::write(&file, "an older backup").unwrap();
    let (file_text, directory) = (file.to_str().unwrap(), files.path().to_str().unwrap());
    let here = [("RKV_ENDPOINTS", cluster.addr(1))];
    let nowhere = [("RKV_ENDPOINTS", "127.0.0.1:1")];
    fails(&["snapshot", "save", file_text, "--retry-for", "0s"], &nowhere, 3, "127.0.0.1:1");
    fails(&["snapshot", "save", directory], &here, 2, "must be a file");
    fails(&["snapshot", "save", &format!("{directory}/missing/backup.snap")], &here, 74, "cannot create");
    assert_eq!(fs::read_to_string(&file).unwrap(), "an older backup");
    assert_eq!(fs::read_dir(files.path()).unwrap().count(), 1);
}

/// A node sends one snapshot at a time, and can send the next once a client has left. `HEAD` returns its length.
///
/// Method: begin a download that is longer than all buffers, and read none of it.
#[tokio::test]
async fn one_download_at_a_time() {
    let cluster = TestCluster::form("backup-downloads", &[1], CALM).await;
    for number in 0..96 {
        cluster.put(1, &format!("/v1/kv/long-{number}"), mib_of("v")).await.done();
    }
    let whole = cluster.get(1, "/v1/snapshot").await;
    assert_eq!((whole.status, whole.header("content-type")), (200, "application/octet-stream"));
    assert!(whole.body.starts_with(b"RKVSNAP\0") && whole.body.len() > 96 << 20);
    let index = whole.number("raft-snapshot-index");
    assert_eq!(whole.header("content-disposition"), format!("attachment; filename=\"snapshot-{index}.snap\""));
    let head = cluster.v1(1, Method::HEAD, "/v1/snapshot", &[], "").await;
    assert_eq!((head.status, head.number("content-length")), (200, whole.body.len() as u64));
    assert!(head.body.is_empty());

    let addr = cluster.addr(1).to_owned();
    let answered = |query: &'static str| {
        let (http, addr) = (cluster.http(), addr.clone());
        async move { http.open(Method::GET, &addr, &format!("/v1/snapshot{query}"), &[], "").await.unwrap() }
    };
    let held = eventually("a download begins", DEADLINE, async || {
        let response = answered("?consistency=stale").await;
        if response.status() == 200 { Ok(response) } else { Err(response.status()) }
    })
    .await;
    let rejected = cluster.get(1, "/v1/snapshot").await;
    rejected.assert_rejected(503, "overloaded");
    drop(held);
    let again = eventually("the next download succeeds", DEADLINE, async || {
        let answer: Answer = cluster.get(1, "/v1/snapshot").await;
        if answer.status == 200 { Ok(answer) } else { Err(answer.status) }
    })
    .await;
    assert_eq!(again.body.len(), whole.body.len());
    let leftovers = files_below(&cluster.node(1).directory()).into_iter();
    assert_eq!(leftovers.filter(|path| path.extension().is_some_and(|it| it == "tmp")).count(), 0);
}

/// `snapshot load` puts the keys with a prefix, with their bytes and TTLs, and a repeated one changes nothing.
///
/// Method: save keys of all kinds, in more than one transaction and longer than one. Delete and change some, and add
/// others; then load one prefix, twice.
#[tokio::test]
async fn a_prefix_is_loaded() {
    let cluster = TestCluster::form("backup-load-prefix", &ALL, CALM).await;
    cluster.put_many(1, "in/key-", 250).await;
    let long = mib_of("\u{1}");
    cluster.put(1, "/v1/kv/in/long", long.clone()).await.done();
    cluster.put(1, "/v1/kv/in/bytes", vec![0, 255]).await.done();
    cluster.put(1, "/v1/kv/in/empty", "").await.done();
    cluster.put(1, "/v1/kv/out/key", "1").await.done();
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("backup.snap");
    save(&cluster, &ALL, &file).await;
    cluster.delete(1, "/v1/kv?prefix=in/").await.done();
    cluster.put(1, "/v1/kv/in/key-000007", "changed").await.done();
    cluster.put(1, "/v1/kv/in/new", "stays").await.done();
    cluster.put(1, "/v1/kv/out/key", "2").await.done();

    let (file, endpoints) = (file.to_str().unwrap(), endpoints(&cluster, &ALL));
    let environment = [("RKV_ENDPOINTS", endpoints.as_str())];
    let loaded = json_of(&["snapshot", "load", file, "--prefix", "in/"], &environment);
    assert_eq!((&loaded["loaded"], &loaded["unchanged"]), (&json!(253), &json!(0)));
    assert_eq!(cluster.list_all(1, "prefix=in/&keys_only").await.len(), 254);
    assert_ne!(cluster.get(2, "/v1/kv/in/key-000007?raw").await.text(), "changed");
    assert_eq!(cluster.get(2, "/v1/kv/in/long?raw").await.text(), long);
    assert_eq!(cluster.get(3, "/v1/kv/in/bytes?raw").await.body, vec![0, 255]);
    assert_eq!(cluster.get(3, "/v1/kv/in/new?raw").await.text(), "stays");
    assert_eq!(cluster.get(3, "/v1/kv/out/key?raw").await.text(), "2");
    let revision = hash_of(&cluster, 1).await["revision"].clone();
    let again = json_of(&["snapshot", "load", file, "--prefix", "in/"], &environment);
    assert_eq!((&again["loaded"], &again["unchanged"]), (&json!(0), &json!(253)));
    assert_eq!(hash_of(&cluster, 1).await["revision"], revision, "a repeated load changes something");
    fails(&["snapshot", "load", file, "--prefix", "none/"], &environment, 1, "no key");
}

/// `check` and `dump` read the directory of a stopped node, whole or damaged, and change nothing. That of a running
/// node is refused.
///
/// Method: a node with snapshots and a log; hash all files before and after. Then damage copies: each file flipped in
/// its middle, a torn log, a missing `IDENTITY`.
#[tokio::test]
async fn stopped_nodes_are_checked_and_dumped() {
    let mut cluster = TestCluster::form("backup-check", &[1], &[CALM, &["--snapshot-entries", "100"]].concat()).await;
    let data = cluster.write_many(1, "key-", 330).await;
    cluster.put(1, "/v1/kv/last", "the last value").await.done();
    let directory = cluster.node(1).directory();
    let text = directory.to_str().unwrap();
    fails(&["check", text], &[], 73, "a node runs on the directory");
    fails(&["dump", text], &[], 73, &cluster.node(1).pid().to_string());
    cluster.stop(1).await;

    let before = contents_of(&directory);
    let checked = run(&["check", text], &[]);
    assert_eq!((checked.code, checked.stderr.as_str()), (Some(0), ""), "{}", checked.stdout);
    let lines = checked.stdout.lines().count();
    assert!(lines >= 5 && checked.stdout.lines().all(|line| line.starts_with("ok ")), "{}", checked.stdout);
    let dumped = dump(&directory);
    assert_eq!((dumped.code, dumped.stderr.as_str()), (Some(0), ""));
    let dumped: Vec<Value> = dumped.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |kind: &str| dumped.iter().filter(|line| line["kind"] == kind).cloned().collect::<Vec<_>>();
    assert_eq!((of("identity").len(), of("snapshot").len(), of("state").len(), of("damaged").len()), (1, 1, 1, 0));
    let keys: BTreeMap<String, String> =
        of("key").iter().map(|it| (it["key"].as_str().unwrap().into(), it["value"].as_str().unwrap().into())).collect();
    assert!(keys.len() > 100 && keys.iter().all(|(key, value)| data.get(key) == Some(value)), "{} keys", keys.len());
    let last = of("entry").iter().any(|it| it["payload"].to_string().contains("the last value"));
    assert!(last, "the dump does not have the last entry");
    assert_eq!(contents_of(&directory), before, "reading changes a directory");

    let mut snapshots: Vec<(u64, &PathBuf)> = before
        .keys()
        .filter(|path| path.extension().is_some_and(|it| it == "snap"))
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().parse().unwrap(), path))
        .collect();
    snapshots.sort();
    assert_eq!(snapshots.len(), 2, "{snapshots:?}");
    let older_snapshot = snapshots[0].1.strip_prefix(&directory).unwrap().display().to_string();
    let copies = tempfile::tempdir().unwrap();
    let mut damaged: Vec<(String, PathBuf)> = Vec::new();
    let copy = |name: &str| {
        let copy = copies.path().join(name);
        copy_directory(&directory, &copy);
        copy
    };
    for path in before.keys().filter(|path| !path.ends_with("LOCK") && !before[*path].is_empty()) {
        let name = path.strip_prefix(&directory).unwrap();
        let copy = copy(&name.to_str().unwrap().replace('/', "-"));
        let mut bytes = before[path].clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(copy.join(name), bytes).unwrap();
        damaged.push((name.display().to_string(), copy));
    }
    let without = copy("without-identity");
    fs::remove_file(without.join("IDENTITY")).unwrap();
    damaged.push(("no IDENTITY".to_owned(), without));
    assert!(damaged.len() >= 5, "{damaged:?}");
    for (what, copy) in damaged {
        eprintln!("{what}");
        let before = contents_of(&copy);
        let checked = fails(&["check", copy.to_str().unwrap()], &[], 65, "nothing was changed");
        assert!(checked.stdout.lines().any(|line| line.starts_with("BAD ")), "{what}: {}", checked.stdout);
        let dumped = dump(&copy);
        // The older snapshot is not dumped.
        if what != "no IDENTITY" && what != older_snapshot {
            assert_eq!(dumped.code, Some(65), "{what}: {}", dumped.stderr);
            assert!(dumped.stdout.lines().any(|line| line.contains("\"damaged\"")), "{what}");
        }
        assert_eq!(contents_of(&copy), before, "{what}: reading changes a directory");
    }

    let torn = copy("torn");
    let log = files_below(&torn).into_iter().filter(|path| path.extension().is_some_and(|it| it == "wal")).max();
    let bytes = fs::read(log.as_ref().unwrap()).unwrap();
    fs::write(log.unwrap(), [bytes.as_slice(), &bytes[..7]].concat()).unwrap();
    let checked = run(&["check", torn.to_str().unwrap()], &[]);
    assert_eq!(checked.code, Some(0), "{}", checked.stdout);
    assert!(checked.stdout.contains("being written"), "{}", checked.stdout);
    fails(&["check", directory.parent().unwrap().to_str().unwrap()], &[], 2, "it has node-1");
}

/// After a majority is lost for good, a survivor becomes the first node of a new cluster with all that it had, and
/// other nodes join it. Without the flag nothing is changed.
///
/// Method: write through three nodes, kill -9 all, and delete the directories of two. Recover the third.
#[tokio::test]
async fn a_survivor_is_recovered() {
    let mut cluster = TestCluster::form("backup-recover", &ALL, CALM_BUT_QUICK).await;
    let data = cluster.write_many(1, "key-", 100).await;
    cluster.all_applied(&ALL).await;
    let before = hash_of(&cluster, 3).await;
    for id in ALL {
        cluster.kill(id);
    }
    let (data_dir, directory) = (cluster.node(3).data_dir().to_owned(), cluster.node(3).directory());
    for id in [1, 2] {
        fs::remove_dir_all(cluster.node(id).directory()).unwrap();
    }
    let recover = ["recover", "--data-dir", data_dir.to_str().unwrap(), "--id", "3"];
    let files = contents_of(&directory);
    let examined = fails(&recover, &[], 2, "--i-accept-that-writes-may-be-lost");
    assert!(examined.stdout.contains("nothing was changed"), "{}", examined.stdout);
    assert_eq!(contents_of(&directory), files);

    let recovered = json_of(&[&recover[..], &["--i-accept-that-writes-may-be-lost"]].concat(), &[]);
    assert_eq!((&recovered["hash"], &recovered["former_members"]), (&before["hash"], &json!([1, 2])));
    assert!(recovered["last_index"].as_u64() >= before["applied_index"].as_u64(), "{recovered}");
    assert_ne!(recovered["cluster_id"], recovered["former_cluster_id"]);
    let former = PathBuf::from(recovered["former_directory"].as_str().unwrap());
    assert_eq!(contents_of(&former).len(), files.len());
    cluster.restart(3).await;
    cluster.leader_of(&[3]).await;
    cluster.write(3, "alone", "yes").await;
    cluster.add_node(4).await;
    cluster.add_node(5).await;
    join(&cluster, 3, &[4, 5]).await;
    cluster.kill(3);
    cluster.leader_of(&[4, 5]).await;
    cluster.write(4, "without", "it").await;
    cluster.all_applied(&[4, 5]).await;
    for id in [4, 5] {
        cluster.assert_holds(id, &data).await;
        assert_eq!(cluster.consistent_read(id, "alone").await.unwrap(), "yes");
    }
}
