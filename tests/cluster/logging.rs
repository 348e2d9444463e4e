//! A log that cannot be written, or that no process reads, must not stop or delay a node.

use std::fs::{File, OpenOptions};
use std::io::{PipeReader, PipeWriter, Write, pipe};
use std::process::Stdio;

use serde_json::Value;
use tokio::io::AsyncReadExt;

use crate::harness::{ALL, CALM_BUT_QUICK, DEADLINE, Http, TestCluster, TestNode, command, eventually, others};

/// The capacity of a pipe on Linux, before a write to it blocks.
const PIPE_BYTES: usize = 64 << 10;
/// Logs every request and heartbeat, so that the node keeps writing to a full pipe.
const LOG_EVERYTHING: [&str; 2] = ["--log-level", "trace"];

/// A pipe that accepts no more until it is read.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = pipe().unwrap();
    writer.write_all(&[b'x'; PIPE_BYTES]).unwrap();
    (reader, writer)
}

fn full_device() -> File {
    OpenOptions::new().write(true).open("/dev/full").unwrap()
}

/// Restarts all nodes, with standard error as `log_to` sets it.
async fn restart_all(cluster: &mut TestCluster, flags: &[&str], mut log_to: impl FnMut(&mut TestNode)) {
    for id in ALL {
        assert_eq!(cluster.stop(id).await, Some(0), "node {id}");
    }
    for id in ALL {
        let node = cluster.node_mut(id);
        node.add_flags(flags);
        log_to(node);
        cluster.restart(id).await;
    }
    cluster.leader_of(&ALL).await;
}

/// Whatever is wrong with their logs, nodes serve, survive the loss of the leader, and exit with code 0.
///
/// Method: write through each node, and send SIGTERM to the leader, which makes the others log. They must elect another
/// leader and serve. Then restart the former leader, and stop all nodes by SIGTERM.
async fn serves_and_stops(cluster: &mut TestCluster) {
    for id in ALL {
        cluster.write(id, "key", &format!("through {id}")).await;
    }
    let leader = cluster.leader_of(&ALL).await;
    assert_eq!(cluster.stop(leader).await, Some(0), "the leader");
    let rest = others(leader);
    cluster.leader_of(&rest).await;
    for id in &rest {
        cluster.write(*id, "key", &format!("after the leader, through {id}")).await;
    }
    cluster.assert_alive();
    cluster.restart(leader).await;
    cluster.write(leader, "key", "through the former leader").await;
    cluster.assert_alive();
    for id in ALL {
        assert_eq!(cluster.stop(id).await, Some(0), "node {id}");
    }
}

/// A log whose reader has closed the pipe does no harm.
///
/// Method: standard error is a pipe whose other end is closed.
#[tokio::test]
async fn a_log_whose_reader_is_gone() {
    let mut cluster = TestCluster::form("log-closed", &ALL, CALM_BUT_QUICK).await;
    restart_all(&mut cluster, &LOG_EVERYTHING, |node| node.log_to(pipe().unwrap().1)).await;
    serves_and_stops(&mut cluster).await;
}

/// A log that no process reads does no harm.
///
/// Method: standard error is a full pipe whose other end is open.
#[tokio::test]
async fn a_log_that_is_not_read() {
    let mut cluster = TestCluster::form("log-unread", &ALL, CALM_BUT_QUICK).await;
    let mut readers = Vec::new();
    restart_all(&mut cluster, &LOG_EVERYTHING, |node| {
        let (reader, writer) = full_pipe();
        node.log_to(writer);
        readers.push(reader);
    })
    .await;
    serves_and_stops(&mut cluster).await;
}

/// A log on a full disk does no harm.
///
/// Method: standard error is `/dev/full`, which fails each write with ENOSPC.
#[tokio::test]
async fn a_log_on_a_full_disk() {
    let mut cluster = TestCluster::form("log-full", &ALL, CALM_BUT_QUICK).await;
    restart_all(&mut cluster, &LOG_EVERYTHING, |node| node.log_to(full_device())).await;
    serves_and_stops(&mut cluster).await;
}

/// Dropped lines are counted, and reported once the log can be written again.
///
/// Method: fill the pipe, have the node log more than its queue holds, as JSON, and then read the pipe. The report is
/// valid JSON with a time and the number.
#[tokio::test]
async fn dropped_lines_are_counted() {
    use std::io::{BufRead, BufReader};
    let directory = tempfile::tempdir().unwrap();
    let http = Http::new();
    let mut node = TestNode::start(1, directory.path(), &[], &http).await;
    http.post(&node.addr, "/init", "").await.unwrap().ok().unwrap();
    assert_eq!(node.stop().await, Some(0));
    let (reader, writer) = full_pipe();
    node.add_flags(&LOG_EVERYTHING);
    node.add_flags(&["--log-format", "json"]);
    node.log_to(writer);
    node.restart(&http).await;
    // Enough at `trace`: each request alone logs kilobytes.
    for _ in 0..2000 {
        http.get(&node.addr, "/metrics").await.unwrap().ok().unwrap();
    }
    let lines = BufReader::new(reader).lines();
    // The bytes that filled the pipe precede the first line.
    let said = tokio::task::spawn_blocking(move || {
        let mut lines = lines.map_while(Result::ok).filter_map(|line| serde_json::from_str::<Value>(&line).ok());
        lines.find(|line| line["fields"]["dropped"].is_u64())
    });
    eventually("the node reports how many lines were dropped", DEADLINE, async || {
        http.get(&node.addr, "/metrics").await.unwrap();
        if said.is_finished() { Ok(()) } else { Err("not yet") }
    })
    .await;
    let said = said.await.unwrap().expect("the log ended without the report");
    assert!(said["fields"]["dropped"].as_u64() > Some(0) && said["level"] == "WARN", "{said}");
    assert!(said["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{said}");
    assert_eq!(node.stop().await, Some(0));
}

/// A node that cannot start exits with the right code, even if its error cannot be written.
///
/// Method: use a data directory of another node (78), an unknown host (2), and other errors, with each kind of log.
#[tokio::test]
async fn exit_codes_do_not_depend_on_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let mut node = TestNode::start(1, directory.path(), &[], &Http::new()).await;
    node.kill();
    std::fs::rename(node.directory(), node.data_dir().join("node-2")).unwrap();
    let data_dir = node.data_dir().to_str().unwrap().to_owned();
    let rows: [(&[&str], i32); 4] = [
        (&["--no-such-flag"], 2),
        (&["get", "key", "--endpoints", "127.0.0.1:1", "--retry-for", "0s"], 3),
        (&["--id", "2", "--http-addr", "127.0.0.1:0", "--data-dir", &data_dir], 78),
        (&["--id", "2", "--http-addr", "no-such-host.invalid:1", "--data-dir", &data_dir], 2),
    ];
    for (arguments, code) in rows {
        let (_reader, unread) = full_pipe();
        for stderr in [Stdio::from(pipe().unwrap().1), Stdio::from(unread), Stdio::from(full_device())] {
            let mut child = command(arguments).stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
            let what = format!("{arguments:?} exits");
            let ended = eventually(&what, DEADLINE, async || child.try_wait().unwrap().ok_or("still running")).await;
            assert_eq!(ended.code(), Some(code), "{arguments:?}");
        }
    }
}

/// A node that cannot reach another logs each reason once, however often it tries.
///
/// Method: kill two of three nodes. A listener takes the place of one of them, and closes every connection. Once it has
/// closed ten, the third node's log has two lines about that node at most: connections were refused, and then closed.
#[tokio::test]
async fn a_failure_is_logged_once() {
    let mut cluster = TestCluster::form("log-once", &ALL, &[]).await;
    let leader = cluster.leader_of(&ALL).await;
    let (gone, left) = (others(leader)[0], others(leader)[1]);
    cluster.kill(leader);
    cluster.kill(gone);
    let listener = tokio::net::TcpListener::bind(cluster.addr(gone)).await.unwrap();
    for _ in 0..10 {
        let (mut connection, _) = tokio::time::timeout(DEADLINE, listener.accept()).await.unwrap().unwrap();
        // Closed with the request unread, it would sometimes be reset instead.
        assert!(connection.read(&mut [0; 1 << 14]).await.unwrap() > 0);
    }
    let log = cluster.node(left).log();
    let about = format!("to node {gone} at ");
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("WARN") && line.contains(&about)).collect();
    assert!((1..=2).contains(&lines.len()), "{lines:#?}");
}
