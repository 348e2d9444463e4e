//! `doctor` and `cluster status`: does `doctor` find each problem?
//!
//! Each test breaks one thing of a real cluster and waits for the finding. Stand-ins report what cannot be broken here:
//! clocks, slow disks and other versions.

use std::fs;

use raft_key_value::NodeId;
use raft_key_value::body::MemberRole;
use raft_key_value::node_status::{KnownFollower, KnownMember, NodeStatus};
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{ALL, CALM, CALM_BUT_QUICK, DEADLINE, Links, StandIn, TestCluster, eventually, free_port};
use crate::harness::{others, respond, run};

/// More free space than any disk has.
const LOW: &str = "--min-disk-free-bytes=1000000000000000000";

/// What `doctor` printed, and how it exited.
#[derive(Debug)]
struct Diagnosis {
    code: i32,
    findings: Vec<Value>,
}

impl Diagnosis {
    fn of(&self, code: &str) -> Option<&Value> {
        self.findings.iter().find(|finding| finding["code"] == code)
    }

    fn codes(&self) -> Vec<&str> {
        self.findings.iter().map(|finding| finding["code"].as_str().unwrap()).collect()
    }
}

/// Runs `doctor` with these endpoints, on another thread, since the test may serve the requests.
async fn diagnose(endpoints: &[&str]) -> Diagnosis {
    let endpoints = endpoints.join(",");
    let ended =
        tokio::task::spawn_blocking(move || run(&["doctor", "--output", "json", "--endpoints", &endpoints], &[]))
            .await
            .unwrap();
    assert_eq!(ended.stderr, "", "{}", ended.stdout);
    let findings: Vec<Value> = ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for finding in &findings {
        assert!(
            finding["seen"].is_string() && finding["advice"].is_string() && finding["nodes"].is_array(),
            "{finding}"
        );
    }
    let has = |severity: &str| findings.iter().any(|finding| finding["severity"] == severity);
    let expected = if has("critical") { 4 } else { i32::from(has("warning")) };
    assert_eq!(ended.code, Some(expected), "{findings:?}");
    Diagnosis { code: expected, findings }
}

/// Waits until `doctor` has a finding, and returns the diagnosis.
async fn finds(endpoints: &[&str], severity: &str, code: &str, nodes: &[NodeId], named: &[&str]) -> Diagnosis {
    eventually(&format!("doctor finds {code}"), DEADLINE, async || {
        let diagnosis = diagnose(endpoints).await;
        let is_expected = |finding: &Value| {
            let seen = finding["seen"].as_str().unwrap();
            (&finding["severity"], &finding["nodes"]) == (&json!(severity), &json!(nodes))
                && named.iter().all(|part| seen.contains(part))
        };
        if diagnosis.of(code).is_some_and(is_expected) { Ok(diagnosis) } else { Err(diagnosis) }
    })
    .await
}

/// Waits until `doctor` has exactly these findings.
async fn finds_only(endpoints: &[&str], codes: &[&str]) -> Diagnosis {
    eventually(&format!("doctor finds {codes:?}"), DEADLINE, async || {
        let diagnosis = diagnose(endpoints).await;
        if diagnosis.codes() == codes { Ok(diagnosis) } else { Err(diagnosis) }
    })
    .await
}

/// A healthy cluster has no findings, from whichever node, and the figures of `cluster status` are those of the API.
#[tokio::test]
async fn a_healthy_cluster_has_no_findings() {
    let mut cluster = TestCluster::form("doctor-healthy", &ALL, CALM).await;
    cluster.write(1, "k", "v").await;
    for id in ALL {
        assert_eq!(finds_only(&[cluster.addr(id)], &[]).await.code, 0);
    }
    let endpoints = cluster.addr(1).to_owned();
    let text = run(&["cluster", "doctor", "--endpoints", &endpoints], &[]);
    assert_eq!(text.stdout, "3 of 3 addresses responded as nodes; findings: 0 critical, 0 warning, 0 info\n");
    let json = run(&["cluster", "status", "--endpoints", &endpoints, "--output", "json"], &[]);
    let printed: Value = serde_json::from_str(&json.stdout).unwrap();
    let described = cluster.get(1, "/v1/cluster").await.done();
    for field in ["cluster_id", "leader", "term", "format_level"] {
        assert_eq!(printed[field], described[field], "{printed} {described}");
    }
    let table = run(&["cluster", "status", "--endpoints", &endpoints], &[]);
    assert_eq!((table.code, table.stdout.lines().count()), (Some(0), 6), "{}", table.stdout);
    let lines: Vec<&str> = table.stdout.lines().collect();
    assert!(lines[0].contains(&format!("leader {}", described["leader"])), "{}", table.stdout);
    assert_eq!(lines[1], format!("format level {}", described["format_level"]), "{}", table.stdout);
    assert!(lines[2].starts_with("NODE  ROLE") && lines[3].starts_with("1  "), "{}", table.stdout);

    cluster.kill(2);
    cluster.kill(3);
    let partial = eventually("the description is partial", DEADLINE, async || {
        let ended = run(&["cluster", "status", "--endpoints", &endpoints], &[]);
        if ended.code == Some(3) && ended.stdout.contains("no known leader") { Ok(ended) } else { Err(ended) }
    })
    .await;
    assert!(partial.stderr.starts_with("error: node 1 knows no leader"), "{}", partial.stderr);
}

/// A voter that is down or hangs is found, and that one more loss stops the cluster; then the loss of the majority, with
/// what each voter thinks; then that nothing responds.
///
/// Method: pause a follower, kill it, and then the leader; ask the remaining node, and then an address without a node.
#[tokio::test]
async fn losses_are_found() {
    let mut cluster = TestCluster::form("doctor-losses", &ALL, CALM_BUT_QUICK).await;
    let leader = cluster.leader_of(&ALL).await;
    let [down, left] = others(leader)[..] else { unreachable!() };
    let endpoint = cluster.addr(left).to_owned();
    let address = cluster.addr(down).to_owned();
    cluster.node(down).pause();
    finds(&[&endpoint], "warning", "member_down", &[down], &[&address, "timed out"]).await;
    cluster.node(down).resume();
    finds_only(&[&endpoint], &[]).await;

    // At once, although it responded to the leader a moment ago.
    cluster.kill(down);
    let diagnosis = diagnose(&[&endpoint]).await;
    let finding = diagnosis.of("member_down").unwrap_or_else(|| panic!("{diagnosis:?}"));
    assert_eq!(finding["nodes"], json!([down]), "{diagnosis:?}");
    let diagnosis = finds(&[&endpoint], "warning", "member_down", &[down], &[&address, "refused"]).await;
    assert_eq!((diagnosis.code, diagnosis.codes()), (1, ["member_down", "no_spare_voter"].to_vec()));
    let spare = diagnosis.of("no_spare_voter").unwrap();
    assert!(spare["seen"].as_str().unwrap().starts_with("2 of 3 voters"), "{spare}");

    cluster.kill(leader);
    let mut missing = [down, leader];
    missing.sort_unstable();
    let view = format!("node {left} responds, and knows no leader");
    let diagnosis = finds(&[&endpoint], "critical", "no_leader", &missing, &["2 of 3 voters", &view, "refused"]).await;
    assert_eq!(diagnosis.code, 4);
    let text = run(&["doctor", "--endpoints", &endpoint], &[]);
    assert!(text.stdout.starts_with("critical: no_leader\n  seen: no node leads"), "{}", text.stdout);
    assert_eq!((text.code, text.stderr.as_str()), (Some(4), ""));

    cluster.kill(left);
    let diagnosis = diagnose(&[&endpoint]).await;
    assert_eq!(diagnosis.codes(), ["no_node_responds"]);
    assert!(diagnosis.findings[0]["seen"].as_str().unwrap().contains(&endpoint), "{diagnosis:?}");
}

/// A member that the leader has never reached is told apart from one that was lost.
///
/// Method: kill a follower, then make the other one the leader by restarting the first leader.
#[tokio::test]
async fn a_member_that_was_never_reached_is_found() {
    let mut cluster = TestCluster::form("doctor-never", &ALL, CALM_BUT_QUICK).await;
    let leader = cluster.leader_of(&ALL).await;
    let [down, next] = others(leader)[..] else { unreachable!() };
    cluster.kill(down);
    assert_eq!(cluster.stop(leader).await, Some(0));
    cluster.restart(leader).await;
    // Another election may follow, of the old leader: it has not reached the node either then.
    finds(&[cluster.addr(next)], "warning", "never_reached", &[down], &["has not responded to node"]).await;
}

/// A node that is cut off from the others lags, knows no leader, and is not reached by them, while it responds.
///
/// Method: cut the links of a follower and write. Heal them, cut them again, and remove the follower meanwhile.
#[tokio::test]
async fn an_isolated_node_is_found() {
    let links = Links::default();
    let cluster = TestCluster::form_over(&links, "doctor-isolated", &ALL, CALM_BUT_QUICK).await;
    let leader = cluster.leader_of(&ALL).await;
    let [isolated, other] = others(leader)[..] else { unreachable!() };
    links.isolate(isolated, &[leader, other]);
    cluster.write_many(leader, "k", 20).await;
    let endpoints = [cluster.addr(leader), cluster.addr(isolated)];
    let why = format!("the leader, node {leader}, has not heard from it");
    let id = format!("node {isolated} at");
    finds(&endpoints, "warning", "member_lags", &[isolated], &[&why, &id]).await;
    finds(&endpoints, "warning", "leader_disputed", &[isolated], &["knows no leader"]).await;
    let diagnosis = finds(&endpoints, "warning", "no_spare_voter", &[isolated], &["2 of 3"]).await;
    let cuts: Vec<_> = diagnosis.findings.iter().filter(|finding| finding["code"] == "cut_off").collect();
    for (from, to) in [(leader, isolated), (isolated, leader)] {
        assert!(cuts.iter().any(|finding| finding["nodes"] == json!([from, to])), "{from} to {to}: {cuts:?}");
    }
    links.heal();
    finds_only(&endpoints, &[]).await;

    // Removed while it is isolated, it does not learn of it until it reaches the others again.
    links.isolate(isolated, &[leader, other]);
    let path = format!("/v1/cluster/members/{isolated}?force");
    cluster.http().request(Method::DELETE, cluster.addr(leader), &path, &[], "").await.unwrap().done();
    finds(&endpoints, "warning", "not_a_member", &[isolated], &["was removed"]).await;
    links.heal();
    finds(&endpoints, "info", "removed_node", &[isolated], &["was removed"]).await;
}

/// Nodes that do not fit the membership: removed, wiped, in the place of another one; and nodes without a cluster.
///
/// Method: a cluster of three, of which one is removed while it is down; restart it, then wipe another follower, and
/// start a new node at the address of a member that is down.
#[tokio::test]
async fn nodes_that_are_not_what_they_seem_are_found() {
    let mut cluster = TestCluster::form("doctor-identities", &ALL, CALM_BUT_QUICK).await;
    cluster.add_node(4).await;
    let leader = cluster.leader_of(&ALL).await;
    let [removed, other] = others(leader)[..] else { unreachable!() };
    let stays = cluster.addr(leader).to_owned();

    finds(&[&stays, cluster.addr(4)], "info", "no_cluster", &[4], &[]).await;
    let unused = format!("127.0.0.1:{}", free_port());
    finds(&[&stays, &unused], "info", "endpoint_down", &[], &[&unused, "refused"]).await;
    let server = StandIn::start(|_, _, stream| respond(stream, "404 Not Found", b"nothing here"));
    finds(&[&stays, &server.addr], "warning", "not_a_node", &[], &[&server.addr]).await;

    cluster.kill(removed);
    let path = format!("/v1/cluster/members/{removed}");
    cluster.http().request(Method::DELETE, &stays, &path, &[], "").await.unwrap().done();
    cluster.restart(removed).await;
    // It asks the others.
    finds(&[&stays, cluster.addr(removed)], "info", "removed_node", &[removed], &["was removed"]).await;
    // With two voters, the cluster needs both.
    finds_only(&[&stays], &["no_fault_tolerance"]).await;
    cluster.kill(removed);

    // Back to three voters, one of which may fail.
    let learner = cluster.add_learner(leader, 4).await;
    assert!(learner["membership"].is_object(), "{learner}");
    cluster.change_membership(leader, &[leader, other, 4]).await;
    finds_only(&[&stays], &[]).await;
    cluster.kill(other);
    fs::remove_dir_all(cluster.node(other).directory()).unwrap();
    cluster.restart(other).await;
    finds(&[&stays], "warning", "member_unaware", &[other], &["another data directory", "no cluster"]).await;
    // What the leader knows is about the former directory.
    let described = eventually("its lag is unknown", DEADLINE, async || {
        let described = cluster.get(leader, "/v1/cluster").await.done();
        let row = described["members"].as_array().unwrap().iter().find(|row| row["id"] == other).cloned().unwrap();
        if (&row["lag_entries"], &row["lag_ms"]) == (&Value::Null, &Value::Null) { Ok(row) } else { Err(row) }
    })
    .await;
    assert_eq!(described["reachable"], false, "{described}");
    // The advice of the node names the command, once.
    let probe = eventually("the node knows that its directory is another one", DEADLINE, async || {
        let probe = cluster.http().get(cluster.addr(other), "/readyz").await.unwrap();
        let text = probe.text();
        if text.contains("different data directory") { Ok(text) } else { Err(text) }
    })
    .await;
    let advice = format!("raft-key-value members replace {other} ");
    assert_eq!(probe.matches(&advice).count(), 1, "{probe}");
    assert!(!probe.contains("/add-learner") && !probe.contains("/change-membership"), "{probe}");

    // Node 4 is stopped, and a new node 9 runs in its place.
    let place = cluster.addr(4).to_owned();
    cluster.add_node(9).await;
    for id in [4, 9] {
        cluster.kill(id);
    }
    cluster.node_mut(9).addr.clone_from(&place);
    cluster.restart(9).await;
    finds(&[&stays], "warning", "wrong_node", &[4, 9], &[&place]).await;
}

/// A member that runs at another address than the membership has is found, until a leader has committed the address.
///
/// Method: kill all nodes, and start one alone, at another port. Then start the others.
#[tokio::test]
async fn a_node_that_moved_is_found() {
    let mut cluster = TestCluster::form("doctor-moved", &ALL, CALM_BUT_QUICK).await;
    for id in ALL {
        cluster.kill(id);
    }
    let former = cluster.addr(2).to_owned();
    cluster.node_mut(2).addr = format!("127.0.0.1:{}", free_port());
    cluster.restart(2).await;
    let new = cluster.addr(2).to_owned();
    let diagnosis = finds(&[&new], "warning", "moved", &[2], &[&former, &new]).await;
    let (down, lost) = (diagnosis.of("member_down").unwrap(), diagnosis.of("no_leader").unwrap());
    assert_ne!(down["nodes"], json!([2]), "{diagnosis:?}");
    assert!(lost["seen"].as_str().unwrap().contains(&format!("it responds at {new} instead")), "{lost}");
    for id in [1, 3] {
        cluster.restart(id).await;
    }
    finds_only(&[&new], &[]).await;
}

/// A node that was removed while it ran, and still runs, is named.
#[tokio::test]
async fn a_node_that_was_removed_and_runs_is_found() {
    let cluster = TestCluster::form("doctor-removed", &ALL, CALM_BUT_QUICK).await;
    let leader = cluster.leader_of(&ALL).await;
    let removed = others(leader)[0];
    let path = format!("/v1/cluster/members/{removed}");
    cluster
        .http()
        .request(Method::DELETE, cluster.addr(leader), &format!("{path}?force"), &[], "")
        .await
        .unwrap()
        .done();
    // It learns of its removal from the log, or from the leader when a client asks it to read.
    eventually("doctor finds the removed node", DEADLINE, async || {
        let _ = cluster.consistent_read(removed, "k").await;
        let diagnosis = diagnose(&[cluster.addr(leader), cluster.addr(removed)]).await;
        let finding = diagnosis.of("removed_node").or(diagnosis.of("not_a_member")).cloned();
        match finding {
            Some(finding) if finding["nodes"] == json!([removed]) => Ok(()),
            _ => Err(diagnosis),
        }
    })
    .await;
}

/// Nodes of two clusters behind one list of endpoints, each a cluster of one.
#[tokio::test]
async fn two_clusters_are_found() {
    let cluster = TestCluster::start("doctor-two", &[1, 2], CALM).await;
    for id in [1, 2] {
        cluster.post(id, "/init", "").await.ok().unwrap();
    }
    let one = cluster.get(1, "/v1/cluster").await.header("raft-cluster").to_owned();
    let two = cluster.get(2, "/v1/cluster").await.header("raft-cluster").to_owned();
    let endpoints = [cluster.addr(1), cluster.addr(2)];
    let diagnosis = finds(&endpoints, "critical", "two_clusters", &[], &[&one, &two]).await;
    assert_eq!(diagnosis.codes(), ["two_clusters", "no_fault_tolerance", "no_fault_tolerance"]);
    assert_eq!(diagnose(&endpoints[..1]).await.codes(), ["no_fault_tolerance"]);
}

/// Too little space on a disk is critical before writes fail for any other reason.
#[tokio::test]
async fn little_space_is_found() {
    let cluster = TestCluster::form("doctor-space", &[1], &[LOW]).await;
    finds(&[cluster.addr(1)], "critical", "disk_low", &[1], &["iB free", "rejects writes"]).await;
    cluster.put(1, "/v1/kv/k", "v").await.assert_rejected(507, "disk_space_low");
}

/// A quota that is nearly used up is found, and one that rejects writes; metrics and alerts have both figures.
///
/// Method: fill the least quota to more than four fifths, then put a value that exceeds it.
#[tokio::test]
async fn a_used_up_quota_is_found() {
    let cluster = TestCluster::form("doctor-quota", &[1], &["--quota-bytes=1048576"]).await;
    let endpoint = cluster.addr(1);
    cluster.put(1, "/v1/kv/k", "v".repeat(900 << 10)).await.done();
    finds(&[endpoint], "warning", "quota_low", &[1], &["of the quota of 1 MiB"]).await;
    cluster.put(1, "/v1/kv/l", "v".repeat(200 << 10)).await.assert_rejected(507, "quota_exceeded");
    finds(&[endpoint], "critical", "quota_full", &[1], &["rejected a write"]).await;
    let table = run(&["cluster", "status", "--endpoints", endpoint], &[]);
    assert!(table.stdout.contains("  QUOTA  ") && table.stdout.contains("  88%  "), "{}", table.stdout);
    let metrics = eventually("the metrics have the rejection", DEADLINE, async || {
        let text = cluster.get(1, "/v1/metrics").await.text();
        if text.contains("\nrkv_quota_rejections_total 1\n") { Ok(text) } else { Err(text) }
    })
    .await;
    assert!(
        metrics.contains("\nrkv_quota_bytes 1048576\n") && metrics.contains("\nrkv_quota_used_bytes 92"),
        "{metrics}"
    );
}

/// A stand-in that reports this status. Its address is that of the member with its id in the status.
fn reporting(status: impl Fn(&str) -> NodeStatus + Send + Sync + 'static) -> StandIn {
    StandIn::start(move |path, _, stream| {
        if path != "/raft-status" {
            return respond(stream, "404 Not Found", b"{}");
        }
        // The stand-in does not know its address before it has started.
        let own = stream.local_addr().unwrap().to_string();
        respond(stream, "200 OK", json!({"Ok": status(&own)}).to_string().as_bytes());
    })
}

/// The status of the only voter of a cluster, which leads.
fn alone(address: &str) -> NodeStatus {
    let member = KnownMember { id: 1, role: MemberRole::Voter, address: address.to_owned(), incarnation: 5 };
    NodeStatus {
        node: 1,
        incarnation: 5,
        cluster_id: Some("00000000000000aa".to_owned()),
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        address: Some(address.to_owned()),
        is_member: true,
        term: 3,
        leader: Some(1),
        members: vec![member],
        heartbeat_interval_ms: Some(100),
        election_timeout_ms: Some(1000),
        ..NodeStatus::default()
    }
}

/// The same with a learner at another address.
fn with_learner(address: &str, learner: &str) -> NodeStatus {
    let mut status = alone(address);
    status.members.push(KnownMember { id: 2, role: MemberRole::Learner, address: learner.to_owned(), incarnation: 6 });
    status.followers = vec![KnownFollower { id: 2, lag_entries: Some(0), lag_ms: Some(0), silent_ms: Some(30) }];
    status
}

/// A slow disk is found, a clock that is apart, another version, and a node that only the leader reaches.
///
/// Method: stand-ins that report such figures; the other figures of the same nodes are sound.
#[tokio::test]
async fn reported_figures_are_judged() {
    let slow = reporting(|own| NodeStatus { fsync_p99_us: Some(250_000), ..alone(own) });
    let diagnosis = finds(&[&slow.addr], "warning", "slow_disk", &[1], &["250 ms", "100 ms"]).await;
    assert_eq!(diagnosis.codes(), ["slow_disk", "no_fault_tolerance"]);
    let stalled = reporting(|own| NodeStatus { fsync_p99_us: Some(30_000_000), ..alone(own) });
    finds(&[&stalled.addr], "critical", "slow_disk", &[1], &["30.0 s"]).await;

    let now_ms = || std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
    let learner_of = |change: fn(&mut NodeStatus)| {
        reporting(move |own| {
            let mut status = NodeStatus { node: 2, incarnation: 6, clock_ms: Some(now_ms()), ..alone("") };
            status.address = Some(own.to_owned());
            status.members.clear();
            change(&mut status);
            status
        })
    };
    let leader_of = |learner: &str| {
        let learner = learner.to_owned();
        reporting(move |own| NodeStatus { clock_ms: Some(now_ms()), ..with_learner(own, &learner) })
    };
    let fast = learner_of(|status| *status.clock_ms.as_mut().unwrap() += 3_660_000);
    let leader = leader_of(&fast.addr);
    finds(&[&leader.addr], "warning", "clocks_apart", &[1, 2], &["60 min", "node 2 +36"]).await;
    let next = learner_of(|status| status.version = Some("0.2.7".to_owned()));
    let leader = leader_of(&next.addr);
    finds(&[&leader.addr], "info", "versions_apart", &[], &["0.2.7 on nodes 2"]).await;
    let later = learner_of(|status| status.version = Some("7.0.0".to_owned()));
    let leader = leader_of(&later.addr);
    finds(&[&leader.addr], "warning", "versions_apart", &[], &["7.0.0 on nodes 2"]).await;
    let unaware = learner_of(|status| status.is_member = false);
    let leader = leader_of(&unaware.addr);
    finds(&[&leader.addr], "warning", "member_unaware", &[2], &["does not know it"]).await;
    let hidden = format!("127.0.0.1:{}", free_port());
    let leader = leader_of(&hidden);
    finds(&[&leader.addr], "info", "unreachable_from_here", &[2], &["but it does respond to the leader"]).await;
}

/// Whatever a server returns, `doctor` ends with findings.
#[tokio::test]
async fn nonsense_is_judged() {
    let answers: [(&str, &[u8]); 7] = [
        ("200 OK", b""),
        ("200 OK", b"{}"),
        ("200 OK", b"{\"Ok\":null}"),
        ("200 OK", b"{\"Ok\":{\"node\":-1}}"),
        ("500 Internal Server Error", b"\xff"),
        ("204 No Content", b""),
        ("200 OK", b"{\"Ok\":{\"node\":1,\"members\":[{\"id\":2,\"role\":\"voter\",\"address\":\"no address\"}]}}"),
    ];
    for (status, body) in answers {
        let server = StandIn::start(move |_, _, stream| respond(stream, status, body));
        let diagnosis = diagnose(&[&server.addr]).await;
        assert_eq!(diagnosis.code, 4, "{status} {body:?}: {diagnosis:?}");
    }
}

/// The runbook has each finding.
///
/// Method: look for the code of each finding that the judgment adds.
#[test]
fn the_runbook_has_each_finding() {
    let read = |path: &str| fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let (judgment, runbook) = (read("src/bin/cli/doctor/judge.rs"), read("docs/operations.md"));
    let added = judgment.split("self.add(").skip(1).map(|rest| rest.split('"').nth(1).unwrap());
    let added: std::collections::BTreeSet<&str> = added.collect();
    assert!(added.len() > 15 && added.contains("no_leader"), "{added:?}");
    for code in added {
        assert!(runbook.contains(&format!("\n| `{code}` |")), "{code} is not in docs/operations.md");
    }
}
