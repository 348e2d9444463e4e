//! The client commands: what they print, and how they exit.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use raft_key_value::config::{LISTINGS_KEPT_MAX, RETRY_DEADLINE_DEFAULT};
use serde_json::{Value, json};

use crate::harness::{ALL, CALM, DEADLINE, TestCluster, command, eventually, free_port};

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

    /// Runs a command with `stdin` as its standard input.
    fn run_with(&self, arguments: &[&str], stdin: &[u8]) -> Output {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        // A command may exit without reading its input; the tests judge its output and exit code.
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

    /// The JSON objects that a command prints, one per line.
    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Vec<Value> {
        let text = self.text(&[arguments, &["--output", "json"]].concat());
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// `put`, `get`, `touch`, `list` and `delete` work with every option and every source of a value.
///
/// Method: run each command with each of its options on one node, in text and in JSON. The value comes from the
/// argument, from a file and from standard input.
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
    assert!(cli.run_with(&["put", "a/3", "-"], &binary[128..]).status.success());
    assert_eq!(cli.bytes(&["get", "a/3"]), &binary[128..]);
    cli.text(&["put", "negative", "--", "-5"]);
    assert_eq!(cli.text(&["get", "negative"]), "-5");

    // Conditions and TTLs.
    cli.fails(&["put", "a/1", "v", "--if-missing"], 1, "at revision 2");
    cli.text(&["put", "a/1", "v", "--if-revision", "2"]);
    cli.fails(&["put", "none", "v", "--if-present"], 1, "does not exist");
    let put = ["put", "once", "v", "--idempotency-key", "word"];
    assert_eq!(cli.text(&put), cli.text(&put));
    cli.text(&["put", "lock", "me", "--if-missing", "--ttl", "1h"]);
    assert!(cli.text(&["touch", "lock", "--ttl", "2h"]).ends_with("expires in 7200s\n"));
    assert!(cli.json(&["get", "lock"])[0]["expires_in_ms"].as_u64() > Some(3_600_000));
    cli.fails(&["touch", "none", "--ttl", "1s"], 1, "does not exist");
    cli.fails(&["get", "none"], 1, "does not exist");

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

    // Each entry stays on one line, also for a reader that ends lines at more than `\n`.
    let split = "l/\u{85}\u{2028}\u{2029}\n";
    cli.text(&["put", split, split]);
    for arguments in [&["list", "l/", "--output", "json"][..], &["list", "l/", "--keys-only"], &["list", "l/"]] {
        let text = cli.text(arguments);
        assert!(!text.contains(['\u{85}', '\u{2028}', '\u{2029}']), "{text:?}");
    }
    assert_eq!(cli.json(&["list", "l/"])[0]["value"], split);
    assert_eq!(cli.text(&["get", split]), split, "the output is exactly the value's bytes");

    // Deletions.
    cli.fails(&["delete", "a/1", "--if-revision", "1"], 1, "condition");
    assert!(cli.text(&["delete", "a/1", "--if-present"]).starts_with("deleted 1, "));
    assert_eq!(cli.json(&["delete", "a/1"])[0]["deleted"], 0);
    assert!(cli.text(&["delete", "--prefix", "a/"]).starts_with("deleted 2, "));
}

/// A transaction is read from the argument, a file or standard input, and the exit code tells whether its comparison
/// succeeded.
#[tokio::test]
async fn a_transaction_sets_the_exit_code() {
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
    for (arguments, stdin) in [(&["txn", "--file", file.to_str().unwrap()][..], ""), (&["txn", "-"], &txn)] {
        let ended = cli.run_with(arguments, stdin.as_bytes());
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        let expected = "failure, revision 1\nget: revision 1, version 1: v\nget: the key does not exist\ntouch: expires in 3600s\n";
        assert_eq!(String::from_utf8(ended.stdout).unwrap(), expected);
    }
    let ended = cli.run_with(&["txn", &txn, "--output", "json"], b"");
    let answer: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!((ended.status.code(), &answer["succeeded"]), (Some(1), &json!(false)));
    cli.fails(&["txn", "{}"], 2, "at least one operation");
    cli.fails(&["txn", "{"], 2, "the JSON ends inside an object (line 1, column 1)");
}

/// The lines of a pipe, read until the receiver is dropped.
fn lines_of(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (line_tx, line_rx) = channel();
    std::thread::spawn(move || BufReader::new(pipe).lines().try_for_each(|line| line_tx.send(line.unwrap())));
    line_rx
}

/// A watch prints each event as one line as soon as it happens, and survives the death of its node.
///
/// Method: run watches with and without the initial state, and read their lines while keys change. Kill the node that
/// serves them halfway through.
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
        (child, move || lines.recv_timeout(DEADLINE).expect("the watch prints a line"))
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

    // A closed pipe is not a failure of the watch.
    drop(line);
    let what = "the watch exits after its reader closed the pipe";
    let status = eventually(what, DEADLINE, async || {
        cli.text(&["put", "w/d", "v"]);
        text.try_wait().unwrap().ok_or("still running")
    });
    assert_eq!(status.await.code(), Some(0));
    json.kill().unwrap();
    json.wait().unwrap();
    cli.fails(&["watch", "--from", "1000"], 2, "revision");
}

/// The commands below `members` change the members, say what they did or would do, and fail with the reason.
///
/// Method: add a learner and a voter, promote, replace and remove, with and without `--dry-run` and `--force`, through
/// one follower. A node that is paused makes `add` wait, and end with 3 once `--wait` is over.
#[tokio::test]
async fn members_are_changed() {
    let mut cluster = TestCluster::form("cli-members", &ALL, CALM).await;
    let leader = cluster.leader_of(&ALL).await;
    let cli = Cli::of(&cluster, &[1 + leader % 3]);
    for id in [4, 5, 6] {
        cluster.add_node(id).await;
    }
    let addr = |id: u64| cluster.addr(id).to_owned();
    let table = |message: &str, members: &[(u64, &str)]| {
        let role_width = if members.iter().any(|(_, role)| *role == "learner") { 7 } else { 5 };
        let rows = members.iter().map(|(id, role)| format!("{id}     {role:role_width$}  {}\n", addr(*id)));
        format!("{message}\nNODE  {:role_width$}  ADDRESS\n{}", "ROLE", rows.collect::<String>())
    };
    let voters = [(1, "voter"), (2, "voter"), (3, "voter")];
    let with = |more: &[(u64, &'static str)]| [&voters[..], more].concat();
    let (fourth, fifth) = (addr(4), addr(5));
    let text = cli.text(&["members", "add", "4", &fourth, "--dry-run"]);
    let expected = "node 4 would be a learner, and a voter once it has all data and keeps up";
    assert_eq!(text, table(expected, &with(&[(4, "voter")])));
    assert_eq!(cli.text(&["members", "list"]), cli.text(&["members"]));
    let text = cli.text(&["members", "add", "4", &fourth, "--learner"]);
    assert_eq!(text, table("node 4 is a learner", &with(&[(4, "learner")])));
    let text = cli.text(&["members", "promote", "4"]);
    assert_eq!(text, table("node 4 is a voter", &with(&[(4, "voter")])));
    let text = cli.text(&["members", "replace", "4", "5", &fifth]);
    assert_eq!(text, table("node 5 took the place of node 4", &with(&[(5, "voter")])));
    let removed = cli.json(&["members", "remove", "5"]);
    assert_eq!((removed.len(), &removed[0]["removed"]), (1, &json!(5)), "{removed:?}");

    let follower = (1 + leader % 3).to_string();
    cli.fails(&["members", "remove", &follower], 2, "one more node may fail");
    let ended = cli.run_with(&["members", "remove", &follower, "--force", "--dry-run"], b"");
    let (stdout, stderr) = (String::from_utf8(ended.stdout).unwrap(), String::from_utf8(ended.stderr).unwrap());
    assert_eq!(ended.status.code(), Some(0), "{stderr}");
    assert!(stderr.starts_with("warning: without --force") && stderr.lines().count() == 1, "{stderr}");
    assert!(stdout.starts_with(&format!("node {follower} would be removed\n")), "{stdout}");
    cli.fails(&["members", "remove", "77"], 2, "node 77 is not a member");
    cli.fails(&["members", "promote", "0"], 2, "0");
    cli.fails(&["members", "add", "6", "nowhere"], 2, "nowhere");
    cli.fails(&["members", "add", "6", "127.0.0.1:1", "--retry-for", "0s"], 3, "cannot reach node 6");

    let sixth = addr(6);
    cli.text(&["members", "add", "6", &sixth, "--learner"]);
    cluster.node(6).pause();
    let waiting = ["members", "promote", "6", "--wait", "0s"];
    cli.fails(&waiting, 3, "node 6 is a learner that does not have all data yet");
    cluster.node(6).resume();
    cli.text(&["members", "promote", "6"]);
    cluster.membership_is(&[1, 2, 3, 6], &[1, 2, 3, 6], &[]).await;
}

/// `status` shows every node, and why a node does not respond. `members` shows the nodes of the cluster and their
/// roles.
#[tokio::test]
async fn status_and_members_show_the_cluster() {
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
    assert!(table.contains("no: ") && table.contains("belongs to no cluster"), "{table}");

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

    // The last of three nodes has no majority: it responds, but cannot serve, and is called no leader.
    cluster.kill(1 + gone % 3);
    let alone = Cli::of(&cluster, &[leader]);
    eventually("the last node reports that it cannot serve", DEADLINE, async || {
        let ended = alone.run_with(&["status"], b"");
        let table = String::from_utf8(ended.stdout).unwrap();
        let is_said = table.contains("  leader without majority  -  ") && table.contains("  no: ");
        if ended.status.code() == Some(3) && is_said { Ok(()) } else { Err(table) }
    })
    .await;
}

/// The exit code tells an invalid request from an unavailable cluster, and the message tells an unavailable cluster
/// from an unknown outcome.
///
/// Method: send requests to an endpoint without a listener, and to a node that accepts a request and never responds.
#[tokio::test]
async fn exit_codes_tell_what_happened() {
    let unreachable = Cli { endpoints: format!("127.0.0.1:{}", free_port()) };
    for arguments in [&["get", "k"][..], &["put", "k", "v"], &["list"], &["watch"], &["members"]] {
        unreachable.fails(
            &[arguments, &["--retry-for", "100ms"]].concat(),
            3,
            "no node could serve the request, and nothing was changed: ",
        );
    }
    unreachable.fails(&["status"], 3, "1 of 1 endpoints");
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

/// A command that cannot write its output exits with code 74; after a write, its message says that the write was
/// applied, and the result. A closed pipe is not a failure and changes no exit code.
///
/// Method: run each command with standard output on `/dev/full`, and on a pipe whose reader is closed. After each
/// write, the store's revision shows that it was applied.
#[tokio::test]
async fn output_that_cannot_be_written() {
    let cluster = TestCluster::form("cli-full", &[1], &[]).await;
    let cli = Cli::of(&cluster, &[1]);
    cli.text(&["put", "k", "v", "--ttl", "1h"]);
    cli.text(&["put", "j", "v"]);
    let fails =
        r#"{"compare":[{"key":"k","exists":false}],"failure":[{"put":{"key":"k","value":"third","ttl":"1h"}}]}"#;
    // Each command with its exit code for a closed pipe, and its result as the message gives it.
    let writes: &[(&[&str], i32, &str)] = &[
        (&["put", "k", "other", "--ttl", "1h"], 0, "revision N, version "),
        (&["delete", "j"], 0, "deleted 1, revision N"),
        (&["put", "j/1", "v"], 0, "revision N, version "),
        (&["delete", "--prefix", "j"], 0, "deleted 1, revision N"),
        (&["put", "j", "v"], 0, "revision N, version 1"),
        (&["txn", r#"{"success":[{"put":{"key":"k","value":"v","ttl":"1h"}}]}"#], 0, "success, revision N"),
        (&["txn", fails], 1, "failure, revision N"),
    ];
    let run = |arguments: &[&str], stdout: Stdio| {
        let ended = cli.command(arguments).stdout(stdout).output().unwrap();
        (ended.status.code(), String::from_utf8(ended.stderr).unwrap())
    };
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    let closed = || Stdio::from(std::io::pipe().unwrap().1);
    let mut revision = 2;
    for format in ["text", "json"] {
        for is_full in [true, false] {
            for (arguments, code, result) in writes {
                let arguments = [arguments, &["--output", format][..]].concat();
                let ended = run(&arguments, if is_full { full() } else { closed() });
                revision += 1;
                assert_eq!(cli.json(&["status"])[0]["revision"], revision, "{arguments:?} was applied");
                let (found, stderr) = &ended;
                if is_full {
                    let result =
                        format!("error: the request was applied ({}", result.replace('N', &revision.to_string()));
                    assert_eq!(*found, Some(74), "{arguments:?}: {stderr}");
                    assert!(stderr.starts_with(&result) && stderr.lines().count() == 1, "{arguments:?}: {stderr}");
                } else {
                    assert_eq!((*found, stderr.is_empty()), (Some(*code), *code == 0), "{arguments:?}: {stderr}");
                }
            }
            let touch = ["touch", "k", "--ttl", "1h", "--output", format];
            let (code, stderr) = run(&touch, if is_full { full() } else { closed() });
            assert_eq!((code, stderr.contains("applied (revision ")), (Some(if is_full { 74 } else { 0 }), is_full));
        }
        let reads: &[&[&str]] =
            &[&["get", "k"], &["list"], &["list", "--keys-only"], &["status"], &["members"], &["watch", "--from", "1"]];
        for arguments in reads {
            let arguments = [arguments, &["--output", format][..]].concat();
            let (code, stderr) = run(&arguments, full());
            assert_eq!(code, Some(74), "{arguments:?}: {stderr}");
            assert!(stderr.starts_with("error: cannot write the output: "), "{arguments:?}: {stderr}");
            assert_eq!(run(&arguments, closed()), (Some(0), String::new()), "{arguments:?}");
        }
    }
    for arguments in [&["--help"][..], &["--version"], &["get", "--help"], &["completions", "bash"]] {
        assert_eq!(run(arguments, full()).0, Some(74), "{arguments:?}");
        assert_eq!(run(arguments, closed()), (Some(0), String::new()), "{arguments:?}");
    }
    let unreachable = Cli { endpoints: format!("127.0.0.1:{}", free_port()) };
    let ended = unreachable.command(&["status"]).stdout(closed()).output().unwrap();
    assert_eq!(ended.status.code(), Some(3), "{ended:?}");
}

/// A list of endpoints may contain spaces, empty items, `http://` and trailing slashes, in the flag and in the
/// variable.
///
/// Method: pass lists of a node and of an address without a listener; `status` shows which endpoints were parsed.
#[tokio::test]
async fn endpoints_are_read_in_every_form() {
    let cluster = TestCluster::form("cli-endpoints", &[1], &[]).await;
    let (node, unreachable) = (cluster.addr(1), format!("127.0.0.1:{}", free_port()));
    let run = |list: &str, by_flag: bool, command: &[&str]| {
        let cli = Cli { endpoints: if by_flag { "unused".to_owned() } else { list.to_owned() } };
        let flag = if by_flag { vec!["--endpoints", list] } else { Vec::new() };
        cli.run_with(&[command, &flag[..]].concat(), b"")
    };
    let good: &[(String, &[&str])] = &[
        (format!(" {node} "), &[node]),
        (format!("{unreachable}, {node}"), &[&unreachable, node]),
        (format!(",{node},, "), &[node]),
        (format!("http://{node}"), &[node]),
        (format!("HTTP://{node}/ , http://{unreachable}/"), &[node, &unreachable]),
        (format!("{node}/"), &[node]),
    ];
    let bad = [
        ("ftp://127.0.0.1:1", "HOST:PORT"),
        ("http://127.0.0.1:1/v1", "HOST:PORT"),
        ("nowhere", "HOST:PORT"),
        (" , ", "no endpoints"),
    ];
    for by_flag in [true, false] {
        for (list, expected) in good {
            let ended = run(list, by_flag, &["status", "--output", "json"]);
            let lines = String::from_utf8(ended.stdout).unwrap();
            let found = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["endpoint"].clone());
            assert_eq!(found.collect::<Vec<_>>(), *expected, "{list}");
            assert_eq!(run(list, by_flag, &["list"]).status.code(), Some(0), "{list}");
        }
        for list in ["https://127.0.0.1:1", "127.0.0.1:1,HTTPS://127.0.0.1:1/"] {
            let ended = run(list, by_flag, &["list"]);
            let stderr = String::from_utf8(ended.stderr).unwrap();
            assert_eq!(ended.status.code(), Some(2), "{list}: {stderr}");
            assert!(stderr.contains("https://127.0.0.1:1 needs --tls-ca"), "{list}: {stderr}");
        }
        for (list, why) in bad {
            let ended = run(list, by_flag, &["list"]);
            let stderr = String::from_utf8(ended.stderr).unwrap();
            assert_eq!(ended.status.code(), Some(2), "{list}: {stderr}");
            assert!(stderr.starts_with("error: ") && stderr.lines().count() == 1, "{list}: {stderr}");
            assert!(stderr.contains(why), "{list}: {stderr}");
            let (named, other) = if by_flag { ("--endpoints", "RKV_") } else { ("RKV_ENDPOINTS", "'--endpoints") };
            assert!(stderr.contains(named) && (list == " , " || !stderr.contains(other)), "{list}: {stderr}");
        }
    }
}

/// Commands against a server that closes each connection at once, and the number of its connections.
fn with_counted_connections() -> (Cli, Arc<AtomicUsize>) {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let cli = Cli { endpoints: server.local_addr().unwrap().to_string() };
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    std::thread::spawn(move || server.incoming().for_each(|_| _ = counted.fetch_add(1, Ordering::SeqCst)));
    (cli, connections)
}

/// A key that is longer than any node accepts, or too long for a request, is rejected before anything is sent.
///
/// Method: run each command with keys that are too long, before or after escaping, against a server that counts
/// connections.
#[test]
fn keys_that_are_too_long_are_not_sent() {
    let (cli, connections) = with_counted_connections();
    for key in ["k".repeat(4097), "k".repeat(70_000), "ü".repeat(35_000)] {
        let rows: &[(&[&str], &str)] = &[
            (&["get", &key], "key"),
            (&["get", &key, "--stale"], "key"),
            (&["put", &key, "v"], "key"),
            (&["delete", &key], "key"),
            (&["touch", &key, "--ttl", "1s"], "key"),
            (&["watch", "--key", &key], "key"),
            (&["delete", "--prefix", &key], "prefix"),
            (&["list", &key], "prefix"),
            (&["watch", &key], "prefix"),
            (&["list", "--start", &key], "start"),
            (&["list", "--end", &key], "end"),
        ];
        for (arguments, named) in rows {
            cli.fails(arguments, 2, &format!("the {named} must be at most 4096 bytes, got {}", key.len()));
        }
    }
    for word in ["", "two\nlines", "ü", &"w".repeat(129)] {
        for command in [&["put", "k", "v"][..], &["txn", r#"{"success":[{"delete":{"key":"k"}}]}"#]] {
            cli.fails(&[command, &["--idempotency-key", word]].concat(), 2, "Idempotency-Key must be 1 to 128");
        }
    }
    assert_eq!(connections.load(Ordering::SeqCst), 0, "no connection may be opened");
}

/// Standard input is read only on request, so a command without a value does not store anything by accident.
///
/// Method: run `put` and `txn` with no argument, file or `-`, with empty and with nonempty standard input. The key and
/// its revision do not change. An explicit empty value is stored.
#[tokio::test]
async fn standard_input_is_read_only_on_request() {
    let cluster = TestCluster::form("cli-unasked", &[1], &[]).await;
    let cli = Cli::of(&cluster, &[1]);
    cli.text(&["put", "k", "v"]);
    for stdin in ["", "value", r#"{"success":[{"delete":{"key":"k"}}]}"#] {
        for (arguments, missing) in
            [(&["put", "k"][..], "no value"), (&["put", "k", "--ttl", "1h"], "no value"), (&["txn"], "no transaction")]
        {
            let ended = cli.run_with(arguments, stdin.as_bytes());
            let stderr = String::from_utf8(ended.stderr).unwrap();
            assert_eq!((ended.status.code(), ended.stdout.len()), (Some(2), 0), "{arguments:?}: {stderr}");
            let expected = format!("error: {missing}: pass VALUE, --file FILE, or `-` to read standard input\n");
            assert_eq!(stderr, expected, "{arguments:?}");
        }
    }
    assert_eq!(cli.json(&["get", "k"])[0]["revision"], 1);
    cli.text(&["put", "k", ""]);
    assert_eq!(cli.text(&["get", "k"]), "");
    assert!(cli.run_with(&["put", "k", "-"], b"").status.success());
    assert_eq!(cli.json(&["get", "k"])[0]["version"], 3);
}

/// Client commands need no settings of a node, and ignore them.
///
/// Method: run each command in the environment of a node, once with valid values and once with unusable or empty ones.
#[tokio::test]
async fn a_nodes_environment_does_not_matter() {
    let cluster = TestCluster::form("cli-env", &[1], &[]).await;
    let cli = Cli::of(&cluster, &[1]);
    let good = [("RKV_ID", "1"), ("RKV_HTTP_ADDR", "127.0.0.1:1"), ("RKV_LOG_FORMAT", "json")];
    let bad = [
        ("RKV_ID", "rkv-0"),
        ("RKV_HTTP_ADDR", "nowhere"),
        ("RKV_MAX_KEY_BYTES", ""),
        ("RKV_MAX_VALUE_BYTES", "many"),
        ("RKV_LOG_FORMAT", "xml"),
        ("RKV_LOG_LEVEL", "loud"),
        ("RUST_LOG", "==="),
    ];
    let commands: &[&[&str]] = &[
        &["put", "k", "v"],
        &["get", "k"],
        &["list"],
        &["touch", "k", "--ttl", "1h"],
        &["txn", r#"{"success":[{"get":{"key":"k"}}]}"#],
        &["delete", "k"],
        &["status"],
        &["members"],
        &["cluster", "status"],
        &["cluster", "doctor"],
        &["doctor"],
        &["completions", "bash"],
        &["get", "--help"],
        &["help", "get"],
        &["help"],
        &["--help"],
        &["--version"],
    ];
    for environment in [&good[..], &bad] {
        for arguments in commands {
            let mut command = cli.command(arguments);
            let ended = command.envs(environment.iter().copied()).output().unwrap();
            let stderr = String::from_utf8_lossy(&ended.stderr);
            assert_eq!((ended.status.code(), &*stderr), (Some(0), ""), "{arguments:?} with {environment:?}");
        }
        let ended = cli.command(&["get"]).envs(environment.iter().copied()).output().unwrap();
        let stderr = String::from_utf8_lossy(&ended.stderr);
        assert!(
            ended.status.code() == Some(2) && stderr.contains("KEY"),
            "the command's own usage error is reported: {stderr}"
        );
    }
}

/// `--retry-for 0s` sends a request once; a longer duration allows retries.
///
/// Method: run commands against a server that closes each connection at once and counts them.
#[test]
fn retries_can_be_turned_off() {
    let (cli, attempts) = with_counted_connections();
    for arguments in [&["get", "k"][..], &["put", "k", "v"], &["list"], &["watch"], &["members"]] {
        for (time, is_retried) in [("0s", false), ("0ms", false), ("2s", true)] {
            attempts.store(0, Ordering::SeqCst);
            let ended = cli.run_with(&[arguments, &["--retry-for", time]].concat(), b"");
            assert_eq!(ended.status.code(), Some(3), "{arguments:?}: {ended:?}");
            let attempts = attempts.load(Ordering::SeqCst);
            assert_eq!(attempts > 1, is_retried, "{arguments:?} --retry-for {time}: {attempts} attempts");
            assert!(attempts >= 1);
        }
    }
    for bad in ["soon", "", "10", "-1s", "1.5s", "s", "99999999999999999999s"] {
        cli.fails(&["get", "k", &format!("--retry-for={bad}")], 2, "--retry-for");
    }
}

/// A watch retries without end. It reports once that no endpoint serves it, and once that an endpoint does again.
///
/// Method: watch two endpoints, one of which never responds. Kill the node, and keep it down until the watch has
/// retried for longer than any other command would; do so twice. The watch prints the events of writes that follow.
#[tokio::test]
async fn a_watch_outlasts_the_cluster() {
    let mut cluster = TestCluster::form("cli-outlast", &[1], &[]).await;
    let writer = Cli::of(&cluster, &[1]);
    // Never responds, but accepts connections, so that each attempt is noticed.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let watcher = Cli { endpoints: format!("{},{}", cluster.addr(1), silent.local_addr().unwrap()) };
    let last_attempt = Arc::new(Mutex::new(Instant::now()));
    std::thread::spawn({
        let last_attempt = last_attempt.clone();
        move || silent.incoming().for_each(|_| *last_attempt.lock().unwrap() = Instant::now())
    });
    cluster.kill(1);
    let mut child = watcher.command(&["watch", "--from", "1"]).spawn().unwrap();
    let lines = lines_of(child.stdout.take().unwrap());
    let said = lines_of(child.stderr.take().unwrap());
    for round in 1..=2 {
        let killed = Instant::now();
        let line = said.recv_timeout(DEADLINE).expect("the watch reports that no endpoint serves it");
        assert!(line.starts_with("no endpoint serves the watch, retrying: "), "{line}");
        if round == 1 {
            eventually("the watch still retries after 11 s", DEADLINE, async || {
                let tried_for = last_attempt.lock().unwrap().saturating_duration_since(killed);
                if tried_for > RETRY_DEADLINE_DEFAULT + Duration::from_secs(1) { Ok(()) } else { Err(tried_for) }
            })
            .await;
        }
        cluster.restart(1).await;
        assert_eq!(said.recv_timeout(DEADLINE).unwrap(), format!("the watch continues at {}", cluster.addr(1)));
        writer.text(&["put", "k", &format!("round {round}")]);
        assert_eq!(lines.recv_timeout(DEADLINE).unwrap(), format!("{round} put k = round {round}"));
        assert!(said.try_recv().is_err(), "each change must be reported once");
        cluster.kill(1);
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

/// A watch exits when its reader closes the pipe, without waiting for an event or a cluster. A watch that writes to a
/// file continues.
///
/// Method: close the output of a watch on a quiet store and of a watch without a cluster; a third one writes to a file.
#[tokio::test]
async fn a_watch_ends_with_its_output() {
    let cluster = TestCluster::form("cli-closed", &[1], &[]).await;
    let cli = Cli::of(&cluster, &[1]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events");
    let mut to_file = cli.command(&["watch", "--from", "1"]).stdout(File::create(&path).unwrap()).spawn().unwrap();
    let mut quiet = cli.command(&["watch", "--from", "1"]).spawn().unwrap();
    cli.text(&["put", "k", "v"]);
    let mut line = String::new();
    let mut output = BufReader::new(quiet.stdout.take().unwrap());
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "1 put k = v\n");
    drop(output);
    let unreachable = Cli { endpoints: format!("127.0.0.1:{}", free_port()) };
    let mut lost = unreachable.command(&["watch"]).spawn().unwrap();
    drop(lost.stdout.take());
    for child in [&mut quiet, &mut lost] {
        let ended =
            eventually("the watch exits", DEADLINE, async || child.try_wait().unwrap().ok_or("still running")).await;
        assert_eq!(ended.code(), Some(0));
    }
    cli.text(&["delete", "k"]);
    eventually("the file has all events", DEADLINE, async || {
        let events = std::fs::read_to_string(&path).unwrap();
        if events == "1 put k = v\n2 delete k\n" { Ok(()) } else { Err(events) }
    })
    .await;
    to_file.kill().unwrap();
    to_file.wait().unwrap();
}

/// A listing shows one revision, however slowly it is read.
///
/// Method: start a listing of several pages and leave its output unread, behind a proxy that notices the last key. Then
/// make the node drop the listing's state, by writes and by as many other listings as it keeps. Then read the output:
/// it has every key as of the first page.
#[tokio::test]
async fn a_slow_reader_gets_the_whole_listing() {
    const KEYS: usize = 5000;
    let cluster = TestCluster::form("cli-slow-list", &[1], &[]).await;
    let revision = cluster.put_many(1, "k", KEYS).await;
    for format in ["text", "json"] {
        let (addr, seen) = proxy_that_sees(cluster.addr(1), format!("k{:06}", KEYS - 1));
        let arguments = ["list", "k", "--keys-only", "--output", format];
        let mut child = Cli { endpoints: addr }.command(&arguments).spawn().unwrap();
        let what = "the last key is fetched ahead of the reader";
        eventually(what, DEADLINE, async || seen.load(Ordering::SeqCst).then_some(()).ok_or("not yet")).await;
        for number in 0..=LISTINGS_KEPT_MAX {
            cluster.put(1, "/v1/kv/other", number.to_string()).await.done();
            cluster.get(1, "/v1/kv?limit=1").await.done();
        }
        let forgotten = cluster.get(1, &format!("/v1/kv?limit=1&revision={revision}")).await;
        forgotten.assert_rejected(410, "revision_gone");
        let lines: Vec<String> = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap).collect();
        let ended = child.wait_with_output().unwrap();
        assert_eq!((ended.status.code(), ended.stderr.len()), (Some(0), 0), "{ended:?}");
        assert_eq!(lines.len(), KEYS);
        assert!((0..KEYS).all(|number| lines[number].contains(&format!("k{number:06}"))));
        let mut head = Cli::of(&cluster, &[1]).command(&arguments).spawn().unwrap();
        drop(head.stdout.take());
        let ended = head.wait_with_output().unwrap();
        assert_eq!((ended.status.code(), ended.stderr.len()), (Some(0), 0), "a reader may close the pipe: {ended:?}");
    }
}

/// A listing that cannot continue prints the keys it has read, and reports that it is incomplete.
///
/// Method: a server returns one page of two keys and then 410, like a node that no longer keeps the state.
#[test]
fn an_incomplete_listing_says_so() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let cli = Cli { endpoints: server.local_addr().unwrap().to_string() };
    std::thread::spawn(move || {
        let item = |key: &str| json!({"key": key, "value": "v", "revision": 2, "create_revision": 2, "version": 1});
        let page = json!({"revision": 5, "items": [item("a"), item("b")], "next": "b"});
        let gone =
            json!({"error": {"code": "revision_gone", "message": "revision 5 is not kept", "outcome": "not_applied"}});
        for stream in server.incoming() {
            let mut stream = stream.unwrap();
            let mut head = String::new();
            BufReader::new(stream.try_clone().unwrap()).read_line(&mut head).unwrap();
            let (status, body) = if head.contains("start_after") { ("410 Gone", &gone) } else { ("200 OK", &page) };
            let body = body.to_string();
            let length = body.len();
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    let ended = cli.run_with(&["list", "--keys-only"], b"");
    let stderr = String::from_utf8(ended.stderr).unwrap();
    assert_eq!((ended.status.code(), ended.stdout.as_slice()), (Some(3), &b"a\nb\n"[..]), "{stderr}");
    assert!(stderr.starts_with("error: the list is incomplete, only 2 keys were printed: "), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

/// Forwards connections to a node, and notices when the node sends a text.
fn proxy_that_sees(addr: &str, text: String) -> (String, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.local_addr().unwrap().to_string();
    let (addr, seen) = (addr.to_owned(), Arc::new(AtomicBool::new(false)));
    let noticed = seen.clone();
    std::thread::spawn(move || {
        for caller in listener.incoming() {
            let (mut from_caller, mut from_node) = (caller.unwrap(), TcpStream::connect(&addr).unwrap());
            let (mut to_caller, mut to_node) = (from_caller.try_clone().unwrap(), from_node.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from_caller, &mut to_node));
            let (text, noticed) = (text.clone(), noticed.clone());
            std::thread::spawn(move || {
                let (mut piece, mut tail) = (vec![0; 64 << 10], Vec::new());
                while let Ok(length @ 1..) = from_node.read(&mut piece) {
                    tail.extend_from_slice(&piece[..length]);
                    if to_caller.write_all(&piece[..length]).is_err() {
                        return;
                    }
                    if tail.windows(text.len()).any(|window| window == text.as_bytes()) {
                        noticed.store(true, Ordering::SeqCst);
                    }
                    tail.drain(..tail.len().saturating_sub(text.len()));
                }
            });
        }
    });
    (own, seen)
}

/// Every command has help with examples, and every shell has completions. Both can be written to a closed pipe.
#[test]
fn help_and_completions_are_complete() {
    let cli = Cli { endpoints: "127.0.0.1:1".to_owned() };
    let help = cli.text(&["--help"]);
    for name in [
        "get",
        "put",
        "delete",
        "list",
        "txn",
        "watch",
        "touch",
        "status",
        "members",
        "leader",
        "doctor",
        "completions",
    ] {
        assert!(help.contains(&format!("\n  {name} ")), "{help}");
        let help = cli.text(&[name, "--help"]);
        assert!(help.contains("Examples:\n") && help.contains(&format!("raft-key-value {name}")), "{help}");
    }
    assert!(help.contains("\n  cluster "), "{help}");
    for name in ["status", "doctor"] {
        let help = cli.text(&["cluster", name, "--help"]);
        assert!(help.contains("--endpoints <LIST>"), "{help}");
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
