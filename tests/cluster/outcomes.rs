//! What a response says about the outcome when something fails after a request was accepted.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use raft_key_value::config::{REQUEST_DEADLINE, REQUEST_HEAD_DEADLINE};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::harness::{ALL, CALM, STEADY, TestCluster, others, read_status};

fn set(key: &str) -> String {
    json!({"Set": {"key": key, "value": "v"}}).to_string()
}

/// The outcome of a write that was proposed and found no majority is unknown. A write that arrives when the leader
/// knows that it has no majority is not applied.
///
/// Method: pause both followers and write at once, while the leader still counts on them: 504 after the deadline, not
/// earlier. Write again: 503. Resume the followers: the second write is on no node.
#[tokio::test]
async fn a_write_without_a_majority_is_unknown_and_then_rejected() {
    let cluster = TestCluster::form("no-majority", &ALL, CALM).await;
    let leader = cluster.leader_of(&ALL).await;
    let followers = others(leader);
    followers.iter().for_each(|id| cluster.node(*id).pause());

    let sent = Instant::now();
    let answer = cluster.post(leader, "/write", set("proposed")).await;
    answer.assert_error(504, "DeadlinePassed", "unknown");
    assert!(sent.elapsed() >= REQUEST_DEADLINE, "the deadline passed after only {:?}", sent.elapsed());

    let answer = cluster.post(leader, "/write", set("rejected")).await;
    answer.assert_error(503, "NoLeader", "not_applied");
    assert_eq!(answer.header("retry-after"), "1");
    let answer = cluster.post(leader, "/consistent_read", "\"proposed\"").await;
    answer.assert_error(503, "NoLeader", "not_applied");

    followers.iter().for_each(|id| cluster.node(*id).resume());
    let leader = cluster.leader_of(&ALL).await;
    cluster.write(leader, "after", "v").await;
    cluster.all_applied(&ALL).await;
    for id in ALL {
        assert_eq!(cluster.read(id, "rejected").await.unwrap(), "", "node {id}");
    }
}

/// A node accepts as many waiting writes as its limit says, and rejects further ones at once.
///
/// Method: set a limit of 20, and election timeouts so long that the leader counts on its followers throughout. Pause
/// both followers, so that no write completes, and send more writes at once than the limit. The excess is rejected with
/// 503, the others are unknown after their deadline, and then the node works again.
#[tokio::test]
async fn writes_above_the_limit_are_rejected() {
    const WAITING_MAX: usize = 20;
    const OVER: usize = 30;
    let cluster = TestCluster::form("overload", &ALL, &[&["--max-writes-waiting", "20"], STEADY].concat()).await;
    let leader = cluster.leader_of(&ALL).await;
    let followers = others(leader);
    followers.iter().for_each(|id| cluster.node(*id).pause());

    let writes = (0..WAITING_MAX + OVER).map(|number| {
        let body = set(&format!("key-{number}"));
        async { cluster.post(leader, "/write", body).await }
    });
    let answers = join_all(writes).await;
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    let (rejected, unknown): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 503);
    assert_eq!(rejected.len(), OVER, "{statuses:?}");
    for answer in rejected {
        answer.assert_error(503, "Overloaded", "not_applied");
    }
    for answer in unknown {
        answer.assert_error(504, "DeadlinePassed", "unknown");
    }

    followers.iter().for_each(|id| cluster.node(*id).resume());
    cluster.write(leader, "after", "v").await;
    cluster.all_applied(&ALL).await;
}

/// An unused connection stays open for longer than a request's head may take. No unrequested 408 arrives on it, which
/// would pass for the response to the next request. A request that arrives while the process is stopped is served,
/// however long that takes.
///
/// Method: connect twice, and stop the process. Send a request on one connection, and resume the process after the
/// deadline for a head. It returns 200, and sends nothing on the other connection until that one is used, too.
#[tokio::test]
async fn an_unused_connection_stays_open() {
    const PUT: &[u8] = b"PUT /v1/kv/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\n\r\n1";
    let cluster = TestCluster::form("stopped", &[1], &[]).await;
    let mut stream = TcpStream::connect(cluster.addr(1)).await.unwrap();
    let mut unused = TcpStream::connect(cluster.addr(1)).await.unwrap();
    // The node accepts connections in order, so these are accepted by the time that the next one is served.
    cluster.write(1, "before", "v").await;
    cluster.node(1).pause();
    stream.write_all(PUT).await.unwrap();
    tokio::time::sleep(REQUEST_HEAD_DEADLINE + Duration::from_millis(200)).await;
    cluster.node(1).resume();
    assert_eq!(read_status(&mut stream).await, 200);
    let nothing = unused.try_read(&mut [0]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    unused.write_all(PUT).await.unwrap();
    assert_eq!(read_status(&mut unused).await, 200);
}
