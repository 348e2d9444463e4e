//! The commands beside the server's: what they print, and how they end.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{ChildStdout, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};

use serde_json::{Value, json};

use crate::harness::{CALM, DEADLINE, TestCluster, command, eventually, free_port};

const ALL: [u64; 3] = [1, 2, 3];

/// Runs commands against these endpoints.
struct Cli {
    endpoints: String,
}

impl Cli {
    fn of(cluster: &TestCluster, ids: &[u64]) -> Self {
        let endpoints: Vec<&str> = ids.iter().map(|id| cluster.addr(*id)).collect();
        Cli { endpoints: endpoints.join(",") }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command(arguments);
        command.env("RKV_ENDPOINTS", &self.endpoints).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a command that reads this.
    fn run_with(&self, arguments: &[&str], stdin: &[u8]) -> Output {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        // One that does not read it is no concern of this.
        let _ = input.write_all(stdin);
        drop(input);
        child.wait_with_output().unwrap()
    }

    #[track_caller]
    fn fails(&self, arguments: &[&str], code: i32, named: &str) {
        let ended = self.run_with(arguments, b"");
        let stderr = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(named), "{arguments:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{arguments:?}: {stderr}");
    }

    #[track_caller]
    fn bytes(&self, arguments: &[&str]) -> Vec<u8> {
        let ended = self.run_with(arguments, b"");
        let stderr = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!((ended.status.code(), stderr.as_str()), (Some(0), ""), "{arguments:?}");
        ended.stdout
    }

    #[track_caller]
    fn text(&self, arguments: &[&str]) -> String {
        String::from_utf8(self.bytes(arguments)).unwrap()
    }

    /// The objects that a command prints, one a line.
    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Vec<Value> {
        let text = self.text(&[arguments, &["--output", "json"]].concat());
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Keys are put, got, touched, listed and deleted, with values from everywhere.
///
/// Method: on one node, each command with each of its options, in text and in
/// JSON; the value comes from the argument, a file and standard input.
#[tokio::test]
async fn keys_are_written_and_read() {
    let cluster = TestCluster::form("cli-keys", &[1], &[]).await;
    let cli = Cli::of(&cluster, &[1]);
    let binary: Vec<u8> = (0..=255).collect();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("value");
    std::fs::write(&file, &binary).unwrap();

    assert_eq!(cli.text(&["put", "a/1", "green"]), "revision 1, version 1\n");
    assert_eq!(cli.text(&["get", "a/1"]), "green");
    assert_eq!(cli.json(&["put", "a/1", "blue"]), [json!({"revision": 2, "version": 2})]);
    let found = json!({"key": "a/1", "value": "blue", "revision": 2, "create_revision": 1, "version": 2});
    assert_eq!(cli.json(&["get", "a/1"]), [found]);
    cli.text(&["put", "a/2", "--file", file.to_str().unwrap()]);
    assert_eq!(cli.bytes(&["get", "a/2", "--stale"]), binary);
    for arguments in [&["put", "a/3", "-"][..], &["put", "a/3"]] {
        assert!(cli.run_with(arguments, &binary[128..]).status.success());
        assert_eq!(cli.bytes(&["get", "a/3"]), &binary[128..]);
    }
    cli.text(&["put", "negative", "--", "-5"]);
    assert_eq!(cli.text(&["get", "negative"]), "-5");

    // Conditions and time.
    cli.fails(&["put", "a/1", "v", "--if-missing"], 1, "at revision 2");
    cli.text(&["put", "a/1", "v", "--if-revision", "2"]);
    cli.fails(&["put", "none", "v", "--if-present"], 1, "not there");
    let put = ["put", "once", "v", "--idempotency-key", "word"];
    assert_eq!(cli.text(&put), cli.text(&put));
    cli.text(&["put", "lock", "me", "--if-missing", "--ttl", "1h"]);
    assert!(cli.text(&["touch", "lock", "--ttl", "2h"]).ends_with("expires in 7200s\n"));
    assert!(cli.json(&["get", "lock"])[0]["expires_in_ms"].as_u64() > Some(3_600_000));
    cli.fails(&["touch", "none", "--ttl", "1s"], 1, "no such key");
    cli.fails(&["get", "none"], 1, "no such key");

    // Listings.
    let table = cli.text(&["list", "a/"]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines[0], "KEY  REVISION  VERSION  EXPIRES IN  VALUE");
    assert!(lines[1].starts_with("a/1  ") && lines[1].ends_with("  -           v"), "{table}");
    assert!(lines[2].ends_with("(256 bytes)") && lines[3].ends_with("(128 bytes)"), "{table}");
    assert_eq!(cli.text(&["list", "a/", "--keys-only", "--reverse", "--limit", "2"]), "a/3\na/2\n");
    assert_eq!(cli.text(&["list", "--start", "a/2", "--end", "a/3", "--keys-only", "--stale"]), "a/2\n");
    let listed = cli.json(&["list", "a/"]);
    assert_eq!((listed.len(), &listed[1]["encoding"]), (3, &json!("base64")));

    // One line each, also for who takes more than \n for its end.
    let split = "l/\u{85}\u{2028}\u{2029}\n";
    cli.text(&["put", split, split]);
    for arguments in [&["list", "l/", "--output", "json"][..], &["list", "l/", "--keys-only"], &["list", "l/"]] {
        let text = cli.text(arguments);
        assert!(!text.contains(['\u{85}', '\u{2028}', '\u{2029}']), "{text:?}");
    }
    assert_eq!(cli.json(&["list", "l/"])[0]["value"], split);
    assert_eq!(cli.text(&["get", split]), split, "the bytes of the value, and nothing else");

    // Deletions.
    cli.fails(&["delete", "a/1", "--if-revision", "1"], 1, "condition");
    assert!(cli.text(&["delete", "a/1", "--if-present"]).starts_with("deleted 1, "));
    assert_eq!(cli.json(&["delete", "a/1"])[0]["deleted"], 0);
    assert!(cli.text(&["delete", "--prefix", "a/"]).starts_with("deleted 2, "));
}

/// A transaction is taken from everywhere, and its verdict is the exit code.
#[tokio::test]
async fn a_transaction_has_a_verdict() {
    let cluster = TestCluster::form("cli-txn", &[1], &[]).await;
    let cli = Cli::of(&cluster, &[1]);
    let txn = json!({
        "compare": [{"key": "k", "exists": false}],
        "success": [{"put": {"key": "k", "value": "v"}}, {"delete": {"key": "x"}}],
        "failure": [{"get": {"key": "k"}}, {"get": {"key": "x"}}, {"touch": {"key": "k", "ttl": "1h"}}],
    })
    .to_string();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("txn");
    std::fs::write(&file, &txn).unwrap();

    assert_eq!(cli.text(&["txn", &txn]), "success, revision 1\nput: revision 1, version 1\ndelete: 0\n");
    for (arguments, stdin) in
        [(&["txn", "--file", file.to_str().unwrap()][..], ""), (&["txn", "-"], &txn), (&["txn"], &txn)]
    {
        let ended = cli.run_with(arguments, stdin.as_bytes());
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        let expected =
            "failure, revision 1\nget: revision 1, version 1: v\nget: there is no such key\ntouch: expires in 3600s\n";
        assert_eq!(String::from_utf8(ended.stdout).unwrap(), expected);
    }
    let ended = cli.run_with(&["txn", &txn, "--output", "json"], b"");
    let answer: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!((ended.status.code(), &answer["succeeded"]), (Some(1), &json!(false)));
    cli.fails(&["txn", "{}"], 2, "an operation at least");
    cli.fails(&["txn", "{"], 2, "not what one looks like");
}

/// The lines of a pipe, read until nobody wants them any more.
fn lines_of(pipe: ChildStdout) -> Receiver<String> {
    let (line_tx, line_rx) = channel();
    std::thread::spawn(move || BufReader::new(pipe).lines().try_for_each(|line| line_tx.send(line.unwrap())));
    line_rx
}

/// Each event is a line, as soon as it happens, and survives the node that sent it.
///
/// Method: watches with and without the state at the beginning, of which lines
/// are read as changes are made; the node that one is on is killed in the middle.
#[tokio::test]
async fn events_are_lines() {
    let mut cluster = TestCluster::form("cli-watch", &ALL, &[]).await;
    let leader = cluster.leader_of(&ALL).await;
    let (watched, other) = (1 + leader % 3, 1 + (leader + 1) % 3);
    let cli = Cli::of(&cluster, &[leader, other]);
    cli.text(&["put", "w/a", "one\ntwo"]);
    let start = |arguments: &[&str]| {
        let mut child = Cli::of(&cluster, &[watched, other]).command(arguments).spawn().unwrap();
        let lines = lines_of(child.stdout.take().unwrap());
        (child, move || lines.recv_timeout(DEADLINE).expect("a line comes"))
    };
    let (mut text, line) = start(&["watch", "w/", "--initial"]);
    let (mut json, object) = start(&["watch", "--key", "w/b", "--from", "1", "--output", "json"]);
    assert_eq!(line(), "1 initial w/a = one\\ntwo");
    assert_eq!(line(), "1 synced");
    cli.text(&["put", "w/b", "v"]);
    assert_eq!(line(), "2 put w/b = v");
    let event: Value = serde_json::from_str(&object()).unwrap();
    assert_eq!(
        event,
        json!({"type": "put", "key": "w/b", "value": "v", "revision": 2, "create_revision": 2, "version": 1})
    );

    cluster.kill(watched);
    cli.text(&["delete", "w/b"]);
    assert_eq!(line(), "3 delete w/b");
    cli.text(&["put", "w/c", "v", "--ttl", "100ms"]);
    assert_eq!(line(), "4 put w/c = v");
    assert_eq!(line(), "5 expire w/c");
    let event: Value = serde_json::from_str(&object()).unwrap();
    assert_eq!(event, json!({"type": "delete", "key": "w/b", "revision": 3}));

    // A reader that has seen enough is no failure.
    drop(line);
    let what = "the watch ends once nobody reads it";
    let status = eventually(what, DEADLINE, async || {
        cli.text(&["put", "w/d", "v"]);
        text.try_wait().unwrap().ok_or("it runs")
    });
    assert_eq!(status.await.code(), Some(0));
    json.kill().unwrap();
    json.wait().unwrap();
    cli.fails(&["watch", "--from", "1000"], 2, "revision");
}

/// `status` shows each node and why one does not answer; `members` shows who belongs to the cluster.
#[tokio::test]
async fn the_cluster_is_shown() {
    let mut cluster = TestCluster::form("cli-status", &ALL, CALM).await;
    cluster.add_node(4).await;
    let leader = cluster.leader_of(&ALL).await;
    cluster.client(leader).add_learner((4, cluster.addr(4).to_owned())).await.unwrap();
    let cli = Cli::of(&cluster, &ALL);
    cli.text(&["put", "k", "v"]);
    cluster.all_applied(&[leader, 1, 2, 3, 4]).await;

    let nodes = cli.json(&["status"]);
    for (id, node) in (1..).zip(&nodes) {
        let role = if id == leader { "leader" } else { "follower" };
        assert_eq!((&node["node"], &node["role"], &node["reachable"]), (&json!(id), &json!(role), &json!(true)));
        assert_eq!((&node["serves"], &node["error"]), (&json!(true), &Value::Null), "{node}");
        assert_eq!((&node["leader"], &node["revision"]), (&json!(leader), &json!(1)), "{node}");
        assert!(node["term"].as_u64() > Some(0) && node["applied"].as_u64() > Some(0), "{node}");
    }
    let table = cli.text(&["members"]);
    assert!(table.starts_with("NODE  ROLE     ADDRESS\n1     voter    127.0.0.1:"), "{table}");
    let members = cli.json(&["members"]);
    let roles: Vec<&str> = members.iter().map(|member| member["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["voter", "voter", "voter", "learner"]);
    assert_eq!(members[3]["addr"], cluster.addr(4));

    cluster.add_node(5).await;
    let ended = Cli::of(&cluster, &[5]).run_with(&["status"], b"");
    let table = String::from_utf8(ended.stdout).unwrap();
    assert_eq!(ended.status.code(), Some(3), "{table}");
    assert!(table.contains("yes, but") && table.contains("belongs to no cluster"), "{table}");

    Cli::of(&cluster, &[5]).fails(&["members"], 3, "node 5 belongs to no cluster");

    let gone = 1 + leader % 3;
    cluster.kill(gone);
    let ended = cli.run_with(&["status"], b"");
    let table = String::from_utf8(ended.stdout).unwrap();
    assert_eq!(ended.status.code(), Some(3), "{table}");
    let row = table.lines().nth(gone as usize).unwrap();
    assert!(row.starts_with(cluster.addr(gone)) && row.contains("no: cannot connect"), "{table}");
    assert_eq!(table.lines().filter(|line| line.ends_with("yes")).count(), 2, "{table}");
    cli.text(&["members"]);

    // The last one of three has no majority: it answers, and can do nothing.
    let last = 1 + gone % 3;
    let other = 1 + last % 3;
    cluster.kill(other);
    let alone = Cli::of(&cluster, &[last]);
    eventually("the last node says that it serves nobody", DEADLINE, async || {
        let ended = alone.run_with(&["status"], b"");
        let table = String::from_utf8(ended.stdout).unwrap();
        if ended.status.code() == Some(3) && table.contains("yes, but") { Ok(()) } else { Err(table) }
    })
    .await;
}

/// Exit codes tell wrong requests from clusters that cannot do it, and those from what nobody knows.
///
/// Method: endpoints where nobody listens, and one that takes a request and never answers.
#[tokio::test]
async fn exit_codes_tell_what_happened() {
    let nobody = Cli { endpoints: format!("127.0.0.1:{}", free_port()) };
    for arguments in [&["get", "k"][..], &["put", "k", "v"], &["list"], &["watch"], &["members"]] {
        nobody.fails(&[arguments, &["--retry-for", "100ms"]].concat(), 3, "unavailable, and nothing was changed: ");
    }
    nobody.fails(&["status"], 3, "1 of 1 endpoints");
    let cluster = TestCluster::form("cli-codes", &[1], &[]).await;
    let cli = Cli::of(&cluster, &[1]);
    cluster.node(1).pause();
    cli.fails(&["put", "k", "v", "--retry-for", "100ms"], 3, "the outcome is unknown: ");
    cluster.node(1).resume();

    cli.fails(&["put", "a/../b", "v"], 2, "`..`");
    cli.fails(&["put", &"k".repeat(1025), "v"], 2, "1024");
    cli.fails(&["put", "k", "v", "--ttl", "soon"], 2, "--ttl");
    cli.fails(&["put", "k", "v", "--if-missing", "--if-revision", "1"], 2, "--if-missing");
    cli.fails(&["delete", "--prefix", ""], 2, "--prefix");
    cli.fails(&["put", "k", "--file", "/no/such/file"], 2, "/no/such/file");
    cli.fails(&["delete"], 2, "KEY");
    cli.fails(&["get", "k", "--endpoints", "nowhere"], 2, "nowhere");
    cli.fails(&["nonsense"], 2, "nonsense");
    cli.fails(&["--id", "1", "get", "k"], 2, "get");
}

/// Commands need nothing of a node's settings, and are not confused by them.
#[tokio::test]
async fn a_nodes_environment_does_not_matter() {
    let cluster = TestCluster::form("cli-env", &[1], &[]).await;
    let cli = Cli::of(&cluster, &[1]);
    let mut put = cli.command(&["put", "k", "v"]);
    put.env("RKV_ID", "1").env("RKV_HTTP_ADDR", "127.0.0.1:1").env("RKV_LOG_FORMAT", "json");
    let ended = put.output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
}

/// Every command teaches itself, and every shell gets its completions, also into a closed pipe.
#[test]
fn help_and_completions_are_there() {
    let cli = Cli { endpoints: "127.0.0.1:1".to_owned() };
    let help = cli.text(&["--help"]);
    for name in ["get", "put", "delete", "list", "txn", "watch", "touch", "status", "members", "completions"] {
        assert!(help.contains(&format!("\n  {name} ")), "{help}");
        let help = cli.text(&[name, "--help"]);
        assert!(help.contains("Examples:\n") && help.contains(&format!("raft-key-value {name}")), "{help}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = cli.text(&["completions", shell]);
        assert!(script.contains("if-revision") && script.contains("snapshot-entries"), "{shell}: {script}");
        let mut child = cli.command(&["completions", shell]).spawn().unwrap();
        drop(child.stdout.take());
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(0), ""));
    }
}
