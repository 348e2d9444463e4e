//! Can nodes be upgraded one after another, and can that be undone?
//!
//! These tests run nodes of the last version before there were levels of formats, which `tools/build-former.sh` builds,
//! next to nodes of this one. They are skipped unless `RKV_FORMER` names that program: `make upgrade-check` sets it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use raft_key_value::NodeId;
use raft_key_value::level::Level;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::auth::{ROOT, requires, root_file};
use crate::harness::{
    ALL, BINARY, CALM_BUT_QUICK, DEADLINE, History, OFTEN, TestCluster, Watch, Writers, eventually, former_program,
    index_of, others, run,
};

/// The newest level of this version.
const NEWEST: u32 = Level::NEWEST.0;
/// More entries than the log of a leader keeps after a snapshot, with [`OFTEN`].
const MORE_THAN_THE_LOG: usize = 150;

/// The program of the former version; `None` if the test must be skipped.
fn former(test: &str) -> Option<PathBuf> {
    let former = former_program();
    if former.is_none() {
        eprintln!("SKIPPED {test}: RKV_FORMER is not set; run `make upgrade-check`");
    }
    former
}

fn this() -> &'static Path {
    Path::new(BINARY)
}

/// Forms a cluster of three nodes of the former version.
async fn form(former: &Path, name: &'static str) -> TestCluster {
    let flags: Vec<&str> = CALM_BUT_QUICK.iter().chain(OFTEN).copied().collect();
    let mut cluster = TestCluster::start(name, &[], &flags).await;
    cluster.set_program(former);
    for id in ALL {
        cluster.add_node(id).await;
    }
    let members: Vec<_> = ALL.iter().map(|id| json!([id, cluster.addr(*id)])).collect();
    cluster.post(1, "/init", json!(members).to_string()).await.ok().unwrap();
    cluster.leader_of(&ALL).await;
    cluster
}

/// Stops a node, and restarts it with another program.
async fn change_program(cluster: &mut TestCluster, id: NodeId, program: &Path) {
    assert_eq!(cluster.stop(id).await, Some(0), "node {id}");
    cluster.node_mut(id).set_program(program);
    cluster.restart(id).await;
}

/// Makes a node the leader: by restarting those that lead instead, since the former version cannot move the leadership
/// by request.
async fn make_leader(cluster: &mut TestCluster, members: &[NodeId], wanted: NodeId) {
    loop {
        let leader = cluster.leader_of(members).await;
        if leader == wanted {
            return;
        }
        assert_eq!(cluster.stop(leader).await, Some(0), "node {leader}");
        let rest: Vec<NodeId> = members.iter().copied().filter(|id| *id != leader).collect();
        cluster.leader_of(&rest).await;
        cluster.restart(leader).await;
        cluster.leader_of(members).await;
    }
}

/// Lets a follower miss more entries than the leader's log has, so that the leader must send it a snapshot.
async fn send_snapshot(cluster: &mut TestCluster, leader: NodeId, to: NodeId) {
    let before = cluster.metrics(to).await.last_log_index.unwrap_or_default();
    assert_eq!(cluster.stop(to).await, Some(0), "node {to}");
    cluster.write_many(leader, &format!("missed by {to} from {leader}, "), MORE_THAN_THE_LOG).await;
    cluster
        .metrics_say(leader, "its log begins later", |metrics| (index_of(metrics.purged) > before).then_some(()))
        .await;
    cluster.restart(to).await;
    cluster.metrics_say(to, "it has a snapshot", |metrics| (index_of(metrics.snapshot) > before).then_some(())).await;
    cluster.all_applied(&[leader, to]).await;
}

/// One write of each kind through a node: every kind of entry is in the log, and every kind of record in the state.
async fn write_each_kind(cluster: &TestCluster, through: NodeId, prefix: &str) {
    let key = |name: &str| format!("/v1/kv/{prefix}-{name}");
    let with_key = format!("{prefix}-request");
    let again = [("idempotency-key", with_key.as_str())];
    let persistently = async |method: Method, path: &str, body: &str| {
        let name = format!("{prefix}-{method}-{path}").replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let answer = cluster.persistently(through, method, path, &[("idempotency-key", &name)], body).await;
        answer.done()
    };
    for number in 0..4 {
        persistently(Method::PUT, &key(&format!("many{number}")), "v").await;
    }
    persistently(Method::PUT, &format!("{}?ttl=1h", key("lease")), "v").await;
    persistently(Method::PUT, &format!("{}?ttl=200ms", key("short")), "v").await;
    persistently(Method::POST, &format!("{}/touch?ttl=2h", key("lease")), "").await;
    persistently(Method::DELETE, &key("many0"), "").await;
    persistently(Method::DELETE, &format!("/v1/kv?prefix={prefix}-many"), "").await;
    let binary = cluster.persistently(through, Method::PUT, &key("once"), &again, "1").await;
    let repeated = cluster.persistently(through, Method::PUT, &key("once"), &again, "1").await;
    assert_eq!(binary.done(), repeated.done());
    let txn = json!({
        "compare": [{"key": format!("{prefix}-once"), "version": 1}],
        "success": [
            {"put": {"key": format!("{prefix}-txn"), "value": "w"}},
            {"get": {"key": format!("{prefix}-once")}},
            {"delete": {"key": format!("{prefix}-none")}},
        ],
    });
    let done = persistently(Method::POST, "/v1/txn", &txn.to_string()).await;
    assert_eq!(done["succeeded"], json!(true), "{done}");
}

/// Waits until all these nodes have the same entries, and asserts that their states are equal.
async fn assert_equal(cluster: &TestCluster, ids: &[NodeId]) {
    let states = async || {
        let mut states = Vec::new();
        for id in ids {
            let state = cluster.get(*id, "/v1/cluster/hash").await.done();
            states.push(["applied_index", "revision", "hash"].map(|name| state[name].clone()));
        }
        states
    };
    eventually(&format!("nodes {ids:?} have the same entries"), DEADLINE, async || {
        let states = states().await;
        let is_same = states.iter().all(|[index, ..]| *index == states[0][0]);
        if is_same {
            assert!(states.iter().all(|state| *state == states[0]), "{states:?}");
            Ok(())
        } else {
            Err(states)
        }
    })
    .await;
}

/// A cluster is upgraded node by node, under writes, and any node leads meanwhile: no acknowledged write is lost, no
/// watch misses or repeats a change, snapshots go both ways, members join and leave, and all states are equal.
///
/// Method: three nodes of the former version with frequent snapshots, three writers, and a watch through node 3. Upgrade
/// node 1. Make it the leader, and let it send a snapshot to a node of the former version; then the reverse. With each
/// of them as leader, write one entry of each kind, add a voter of the other version and remove it. Upgrade node 2,
/// kill -9 the leader, and upgrade node 3, after which the level rises. Check every write, and compare the hashes. At the
/// end, add a node of the former version, and start one on a directory of the new level, which are rejected.
#[tokio::test]
async fn nodes_are_upgraded_one_after_another() {
    let Some(former) = former("nodes_are_upgraded_one_after_another") else { return };
    let mut cluster = form(&former, "upgrade").await;
    write_each_kind(&cluster, 1, "former").await;
    let writers = Writers::start(&cluster, &ALL, 3, "w");
    let watched = Watched::start(&cluster, 3);
    writers.acknowledged_more(100).await;

    change_program(&mut cluster, 1, this()).await;
    writers.acknowledged_more(100).await;
    for (leader, other, newcomer, program) in [(1, 2, 4, former.as_path()), (2, 1, 5, this())] {
        make_leader(&mut cluster, &ALL, leader).await;
        write_each_kind(&cluster, other, &format!("led-by-{leader}")).await;
        send_snapshot(&mut cluster, leader, other).await;
        cluster.set_program(program);
        cluster.add_node(newcomer).await;
        cluster.add_learner(other, newcomer).await;
        cluster.all_applied(&[leader, newcomer]).await;
        cluster.change_membership(other, &[1, 2, 3, newcomer]).await;
        writers.acknowledged_more(100).await;
        cluster.change_membership(other, &ALL).await;
        assert_eq!(cluster.stop(newcomer).await, Some(0));
    }

    change_program(&mut cluster, 2, this()).await;
    let leader = cluster.leader_of(&ALL).await;
    let levels = levels(&cluster, 1).await;
    assert_eq!(levels, (json!(3), vec![json!(NEWEST), json!(NEWEST), json!(null)]), "node 3 reports no level");
    doctor_finds(&cluster, &["versions_apart"]).await;
    cluster.kill(leader);
    cluster.leader_of(&others(leader)).await;
    writers.acknowledged_more(100).await;
    cluster.restart(leader).await;
    change_program(&mut cluster, 3, this()).await;
    writers.acknowledged_more(100).await;
    for id in ALL {
        level_is_raised(&cluster, id).await;
    }
    writers.acknowledged_more(100).await;
    let history = writers.finish().await;
    write_each_kind(&cluster, 2, "new").await;

    cluster.leader_of(&ALL).await;
    assert_equal(&cluster, &ALL).await;
    doctor_finds(&cluster, &[]).await;
    assert_kept(&cluster, &history).await;
    watched.assert_complete(&cluster, &history).await;
    cluster.assert_alive();

    cluster.set_program(&former);
    cluster.add_node(6).await;
    let body = json!([6, cluster.addr(6)]).to_string();
    let rejected = cluster.post(1, "/add-learner", body).await;
    let text = rejected.text();
    assert!(rejected.status == 409 && text.contains("level 3") && text.contains(&format!("level {NEWEST}")), "{text}");
    assert_eq!(cluster.stop(2).await, Some(0));
    let before = contents(&cluster, 2);
    cluster.node_mut(2).set_program(&former);
    assert_eq!(cluster.exits(2).await, Some(78), "the former version rejects the directory");
    assert_eq!(contents(&cluster, 2), before, "nothing was changed");
    cluster.node_mut(2).set_program(this());
    cluster.restart(2).await;
    cluster.leader_of(&ALL).await;
    assert_equal(&cluster, &ALL).await;
}

/// Tokens wait until all members can read them, and a cluster that is being upgraded to them can be undone until then.
///
/// Method: form a cluster of the former version. Upgrade nodes 1 and 2 and give them the root token, and let one of them
/// lead. They require the root token of clients, but the cluster does not change: creating a token and requiring tokens is
/// rejected, and node 3, of the former version, takes writes and follows. Then upgrade node 3 as well.
#[tokio::test]
async fn tokens_wait_for_the_level() {
    let Some(former) = former("tokens_wait_for_the_level") else { return };
    let mut cluster = form(&former, "tokens").await;
    cluster.set_token(ROOT);
    let root = root_file(ROOT, 0o600);
    for id in [1, 2] {
        cluster.node_mut(id).add_flags(&["--root-token-file", root]);
        change_program(&mut cluster, id, this()).await;
        cluster.leader_of(&ALL).await;
    }
    make_leader(&mut cluster, &ALL, 2).await;
    let rejected = [
        (Method::POST, "/v1/tokens", r#"{"name":"app","role":"read"}"#),
        (Method::POST, "/v1/auth", r#"{"required":true}"#),
        (Method::DELETE, "/v1/tokens/app", ""),
    ];
    for id in [1, 2] {
        for (method, path, body) in &rejected {
            let answer = cluster.v1(id, method.clone(), path, &[], (*body).to_owned()).await;
            let text = answer.text();
            assert!(answer.status == 409 && text.contains("level 3") && text.contains("not_applied"), "{path}: {text}");
        }
        assert_eq!(cluster.get(id, "/v1/tokens").await.done(), json!({"required": false, "tokens": []}));
    }
    cluster.write_many(2, "mixed", MORE_THAN_THE_LOG).await;
    assert_equal(&cluster, &ALL).await;
    for id in ALL {
        assert_eq!(format_of(&cluster, id), 3, "node {id}");
    }

    cluster.node_mut(3).add_flags(&["--root-token-file", root]);
    change_program(&mut cluster, 3, this()).await;
    for id in ALL {
        level_is_raised(&cluster, id).await;
        requires(&cluster, id, true).await;
    }
    cluster.v1(1, Method::POST, "/v1/tokens", &[], rejected[0].2.to_owned()).await.done();
    assert_equal(&cluster, &ALL).await;
}

/// A node that did not run while the level was raised gets it by a snapshot, and one that is stopped at once keeps it.
///
/// Method: form a cluster of one node of the former version, and add two. Upgrade two of them and remove the third one
/// while it is stopped, so that the level rises. Add a new node of this version, by a snapshot. Kill -9 all nodes, and
/// compare.
#[tokio::test]
async fn the_level_is_in_snapshots() {
    let Some(former) = former("the_level_is_in_snapshots") else { return };
    let mut cluster = form(&former, "level").await;
    for id in [1, 2] {
        change_program(&mut cluster, id, this()).await;
        cluster.leader_of(&ALL).await;
    }
    assert_eq!(cluster.stop(3).await, Some(0));
    cluster.leader_of(&[1, 2]).await;
    assert_eq!(levels(&cluster, 1).await.0, json!(3), "a member does not respond");
    cluster.change_membership(1, &[1, 2]).await;
    level_is_raised(&cluster, 1).await;
    let leader = cluster.leader_of(&[1, 2]).await;
    cluster.write_many(leader, "k", MORE_THAN_THE_LOG).await;
    cluster.metrics_say(leader, "it has a snapshot", |metrics| metrics.purged.map(drop)).await;
    cluster.set_program(this());
    cluster.add_node(4).await;
    assert_eq!(format_of(&cluster, 4), 3, "a new directory can be used by the former version");
    cluster.add_learner(1, 4).await;
    cluster.change_membership(1, &[1, 2, 4]).await;
    for id in [1, 2, 4] {
        level_is_raised(&cluster, id).await;
    }
    cluster.crash(&[1, 2, 4]).await;
    for id in [1, 2, 4] {
        level_is_raised(&cluster, id).await;
    }
    assert_equal(&cluster, &[1, 2, 4]).await;
}

/// Waits until `doctor` finds these problems and no other.
async fn doctor_finds(cluster: &TestCluster, codes: &[&str]) {
    eventually(&format!("doctor finds {codes:?}"), DEADLINE, async || {
        let endpoints = ALL.map(|id| cluster.addr(id).to_owned()).join(",");
        let doctor = move || run(&["doctor", "--output", "json", "--endpoints", &endpoints], &[]);
        let ended = tokio::task::spawn_blocking(doctor).await.unwrap();
        let findings = ended.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let found: Vec<String> = findings.map(|finding| finding["code"].as_str().unwrap().to_owned()).collect();
        if found == codes { Ok(()) } else { Err(ended.stdout) }
    })
    .await;
}

/// The level of the cluster, and those that the members support, as a node reports them.
async fn levels(cluster: &TestCluster, through: NodeId) -> (Value, Vec<Value>) {
    eventually("the leader responds", DEADLINE, async || {
        let status = cluster.get(through, "/v1/cluster").await.done();
        let members = status["members"].as_array().unwrap();
        let levels = members.iter().map(|member| member["format_level"].clone()).collect();
        // A leader of the former version does not send its status.
        if status["leader"].is_null() { Err(status) } else { Ok((status["format_level"].clone(), levels)) }
    })
    .await
}

/// Waits until a node has the newest level, in its state and for its directory.
async fn level_is_raised(cluster: &TestCluster, id: NodeId) {
    eventually(&format!("node {id} has the newest level"), DEADLINE, async || {
        let status = cluster.http().get(cluster.addr(id), "/raft-status").await.map_err(|error| error.to_string())?;
        let status = status.ok()?;
        if status["state_level"] == NEWEST { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    assert_eq!(format_of(cluster, id), u64::from(NEWEST), "node {id}");
}

/// The format of a node's directory.
fn format_of(cluster: &TestCluster, id: NodeId) -> u64 {
    let identity = std::fs::read(cluster.node(id).directory().join("IDENTITY")).unwrap();
    serde_json::from_slice::<Value>(&identity).unwrap()["format"].as_u64().unwrap()
}

/// All files of a stopped node, except for the one that names its process.
fn contents(cluster: &TestCluster, id: NodeId) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = cluster.node(id).files().into_iter().filter(|path| !path.ends_with("LOCK"));
    files.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// While a node of the former version is a member, any node can go back to that version.
///
/// Method: upgrade two of three nodes, and let them lead, write snapshots and entries of each kind. Restart both with
/// the former program, and then all three with this one again.
#[tokio::test]
async fn an_upgrade_that_is_not_complete_can_be_undone() {
    let Some(former) = former("an_upgrade_that_is_not_complete_can_be_undone") else { return };
    let mut cluster = form(&former, "downgrade").await;
    let writers = Writers::start(&cluster, &ALL, 3, "w");
    for id in [1, 2] {
        change_program(&mut cluster, id, this()).await;
        make_leader(&mut cluster, &ALL, id).await;
        write_each_kind(&cluster, id, &format!("up-{id}")).await;
        send_snapshot(&mut cluster, id, 3).await;
    }
    for id in [2, 1] {
        change_program(&mut cluster, id, &former).await;
        make_leader(&mut cluster, &ALL, id).await;
        write_each_kind(&cluster, 3, &format!("down-{id}")).await;
    }
    assert_equal_after(&cluster, writers).await;
    for id in ALL {
        assert_eq!(format_of(&cluster, id), 3, "node {id}");
        change_program(&mut cluster, id, this()).await;
        cluster.leader_of(&ALL).await;
    }
    for id in ALL {
        level_is_raised(&cluster, id).await;
    }
    assert_equal(&cluster, &ALL).await;
}

/// Stops the writers, and asserts that all nodes have their writes and equal states.
async fn assert_equal_after(cluster: &TestCluster, writers: Writers) {
    writers.acknowledged_more(100).await;
    let history = writers.finish().await;
    cluster.leader_of(&ALL).await;
    assert_kept(cluster, &history).await;
    assert_equal(cluster, &ALL).await;
}

/// Asserts that every node has every acknowledged write, and none that was reported as not applied.
async fn assert_kept(cluster: &TestCluster, history: &History) {
    for id in ALL {
        let listed = cluster.list_all(id, "prefix=w-").await;
        let text = |item: &Value, name: &str| item[name].as_str().unwrap().to_owned();
        let mut listed: BTreeMap<_, _> = listed.iter().map(|item| (text(item, "key"), text(item, "value"))).collect();
        for (key, value) in &history.acknowledged {
            assert_eq!(listed.remove(key).as_ref(), Some(value), "on node {id}, acknowledged key {key:?}");
        }
        for (key, value) in listed {
            assert_eq!(history.unknown.get(&key), Some(&value), "on node {id}: {key:?} was not written");
        }
    }
}

/// A watch of the writers' keys that is resumed whenever it ends.
struct Watched {
    seen: Arc<Mutex<Seen>>,
    _task: JoinSet<()>,
}

/// The changes that it delivered.
#[derive(Default)]
struct Seen {
    /// How often each key was put.
    puts: BTreeMap<String, usize>,
    revision: u64,
    times_resumed: usize,
}

impl Watched {
    fn start(cluster: &TestCluster, through: NodeId) -> Self {
        let seen = Arc::<Mutex<Seen>>::default();
        let (http, addr, noted) = (cluster.http().clone(), cluster.addr(through).to_owned(), seen.clone());
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut last_id: Option<String> = None;
            loop {
                let opened = Watch::open(&http, &addr, "prefix=w-&from=1", last_id.as_deref()).await;
                let Ok(Ok(mut watch)) = opened else {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                noted.lock().unwrap().times_resumed += usize::from(last_id.is_some());
                while let Some(event) = watch.next_or_end().await {
                    if event.kind() == "put" {
                        let mut seen = noted.lock().unwrap();
                        *seen.puts.entry(event.key().to_owned()).or_default() += 1;
                        assert!(event.revision() > seen.revision, "{event:?} after revision {}", seen.revision);
                        seen.revision = event.revision();
                    }
                }
                last_id = watch.last_id;
            }
        });
        Watched { seen, _task: task }
    }

    /// Waits until every key that exists was delivered, and asserts that none was delivered twice.
    async fn assert_complete(&self, cluster: &TestCluster, history: &History) {
        let listed = cluster.list_all(1, "prefix=w-&keys_only").await;
        eventually("the watch has delivered every key", DEADLINE, async || {
            let count = self.seen.lock().unwrap().puts.len();
            if count >= listed.len() { Ok(()) } else { Err(format!("{count} of {}", listed.len())) }
        })
        .await;
        let seen = self.seen.lock().unwrap();
        assert!(seen.times_resumed > 0, "the node of the watch was restarted");
        assert!(history.acknowledged.keys().all(|key| seen.puts.get(key) == Some(&1)), "a change is missing");
        assert!(seen.puts.len() == listed.len() && seen.puts.values().all(|count| *count == 1), "a change came twice");
    }
}
