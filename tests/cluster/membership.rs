//! Who belongs to the cluster, and who is kept out.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;

use serde_json::json;

use crate::harness::{CALM, DEADLINE, TestCluster, eventually, free_port, identity_of};

const ALL: [u64; 3] = [1, 2, 3];

fn others(id: u64) -> Vec<u64> {
    ALL.into_iter().filter(|other| *other != id).collect()
}

/// A cluster shrinks to one node and grows back, and takes writes at every size.
///
/// Method: take one voter after the other away, asking another node each time;
/// then add them again as learners and voters. The nodes keep running, and
/// keep their directories. After each step: membership, a write, all reads.
#[tokio::test]
async fn a_cluster_shrinks_and_grows() {
    let cluster = TestCluster::form("shrink-grow", &ALL, CALM).await;
    let leader = cluster.leader_of(&ALL).await;
    let rest = others(leader);
    let sizes = [vec![leader, rest[0], rest[1]], vec![leader, rest[0]], vec![leader]];
    let mut data = BTreeMap::new();
    for (step, members) in sizes.iter().chain(sizes.iter().rev().skip(1)).enumerate() {
        let mut voters = members.clone();
        voters.sort_unstable();
        if step > 2 {
            let new = *members.last().unwrap();
            // Any node of the cluster passes it on to the leader.
            let asked = members[members.len() - 2];
            let answer = cluster.post(asked, "/add-learner", json!([new, cluster.addr(new)]).to_string()).await;
            answer.ok().unwrap();
            let old: Vec<u64> = voters.iter().copied().filter(|id| *id != new).collect();
            cluster.membership_is(&voters, &old, &[new]).await;
        }
        let asked = if step > 2 { members[members.len() - 2] } else { *members.last().unwrap() };
        let answer = cluster.post(asked, "/change-membership", json!(voters).to_string()).await.ok().unwrap();
        assert_eq!(answer["membership"]["configs"], json!([voters]), "{answer}");
        let nodes = answer["membership"]["nodes"].as_object().unwrap();
        assert_eq!(nodes.len(), voters.len(), "who is no voter any more has left entirely: {answer}");
        cluster.membership_is(&voters, &voters, &[]).await;

        let (key, value) = (format!("step {step}"), format!("with {voters:?}"));
        cluster.write(*members.last().unwrap(), &key, &value).await;
        data.insert(key, value);
        for id in &voters {
            for (key, value) in &data {
                assert_eq!(cluster.consistent_read(*id, key).await.as_ref(), Ok(value), "on node {id}");
            }
            cluster.assert_holds(*id, &data).await;
        }
    }
}

/// A leader can be asked to remove itself: the others go on, and it answers nothing stale.
#[tokio::test]
async fn the_leader_can_be_removed() {
    let mut cluster = TestCluster::form("remove-leader", &ALL, &[]).await;
    cluster.write(1, "k", "old").await;
    let leader = cluster.leader_of(&ALL).await;
    let rest = others(leader);
    let answer = cluster.post(leader, "/change-membership", json!(rest).to_string()).await.ok().unwrap();
    assert_eq!(answer["membership"]["configs"], json!([rest]), "{answer}");
    cluster.leader_of(&rest).await;
    cluster.membership_is(&rest, &rest, &[]).await;
    cluster.write(rest[0], "k", "new").await;
    cluster.all_applied(&rest).await;

    let read = cluster.consistent_read(leader, "k").await;
    assert_ne!(read.as_deref(), Ok("old"), "a removed node must not take its own state for the cluster's");
    let answer = cluster.post(leader, "/write", r#"{"Set":{"key":"k","value":"through the removed"}}"#).await;
    assert!(matches!(answer.status, 200 | 503 | 504), "{} {}", answer.status, answer.text());
    for id in &rest {
        let found = cluster.consistent_read(*id, "k").await.unwrap();
        match (answer.status, answer.header("raft-outcome")) {
            (200, _) => assert_eq!(found, "through the removed", "on node {id}"),
            (_, "not_applied") => assert_eq!(found, "new", "on node {id}"),
            (_, outcome) => assert_eq!(outcome, "unknown", "{}", answer.text()),
        }
    }
    says_that_it_was_removed(&cluster, leader).await;
    // It may be shut down then, and is not missed.
    assert_eq!(cluster.stop(leader).await, Some(0));
    cluster.write(rest[1], "k", "newest").await;
}

/// Waits until a removed node knows it, and asserts that it says what to do.
async fn says_that_it_was_removed(cluster: &TestCluster, id: u64) {
    eventually(&format!("node {id} knows that it was removed"), DEADLINE, async || {
        let answer = cluster.post(id, "/consistent_read", r#""k""#).await;
        assert_ne!(answer.status, 200, "{}", answer.text());
        if answer.error().0 == "NotMember" { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    for (path, body) in [
        ("/consistent_read", r#""k""#.to_owned()),
        ("/write", r#"{"Set":{"key":"k","value":"v"}}"#.to_owned()),
        ("/change-membership", json!(ALL).to_string()),
    ] {
        let fields = cluster.post(id, path, body).await.assert_error(503, "NotMember", "not_applied");
        let message = fields["message"].as_str().unwrap();
        assert!(message.contains(&format!("node {id} was removed")) && message.contains("/add-learner"), "{message}");
    }
    cluster.get(id, "/v1/kv/k").await.refused(503, "not_member");
}

/// A follower that was removed says so, instead of waiting for entries that never come,
/// also after a restart; and works again as soon as it is taken in again.
///
/// Method: remove a follower and read on it linearizably: no answer is 504. What it
/// holds can still be read. Start it again, read again. Take it in again.
#[tokio::test]
async fn a_removed_follower_says_so() {
    let mut cluster = TestCluster::form("remove-follower", &ALL, CALM).await;
    cluster.write(1, "k", "old").await;
    cluster.all_applied(&ALL).await;
    let leader = cluster.leader_of(&ALL).await;
    let (second, removed) = (others(leader)[0], others(leader)[1]);
    cluster.post(leader, "/change-membership", json!([leader, second]).to_string()).await.ok().unwrap();
    cluster.write(leader, "k", "new").await;
    cluster.post(removed, "/consistent_read", r#""k""#).await.assert_error(503, "NotMember", "not_applied");
    says_that_it_was_removed(&cluster, removed).await;
    assert_eq!(cluster.read(removed, "k").await.as_deref(), Ok("old"), "its own state can be read all the same");
    assert_eq!(cluster.get(removed, "/v1/kv/k?consistency=stale").await.done()["value"], "old");
    assert_eq!(cluster.node(removed).log().matches("was removed from the cluster").count(), 1, "it is said once");

    cluster.kill(removed);
    cluster.restart(removed).await;
    says_that_it_was_removed(&cluster, removed).await;

    cluster.post(leader, "/add-learner", json!([removed, cluster.addr(removed)]).to_string()).await.ok().unwrap();
    assert_eq!(cluster.consistent_read(removed, "k").await.as_deref(), Ok("new"), "as a learner");
    cluster.post(removed, "/change-membership", json!(ALL).to_string()).await.ok().unwrap();
    cluster.write(removed, "k", "newest").await;
}

/// Who cannot be a member is refused at once, and the membership stays as it was.
///
/// Method: one impossible learner a row, asked of the leader and of a follower:
/// nobody there, somebody who does not answer, another program, another node,
/// a node of another cluster, this very node elsewhere.
#[tokio::test]
async fn impossible_learners_are_refused() {
    let mut cluster = TestCluster::form("impossible", &ALL, CALM).await;
    cluster.add_node(4).await;
    cluster.post(4, "/init", "").await.ok().unwrap();
    cluster.add_node(5).await;
    let leader = cluster.leader_of(&ALL).await;
    let nobody = format!("127.0.0.1:{}", free_port());
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let other_program = other_program();
    let rows = [
        ("nobody listens", 6, nobody.clone(), 503, "Unreachable"),
        ("nobody answers", 6, silent.local_addr().unwrap().to_string(), 503, "Unreachable"),
        ("another program", 6, other_program, 409, "Conflict"),
        ("another node's number", 6, cluster.addr(5).to_owned(), 409, "Conflict"),
        ("a voter's number", 3 - (leader == 3) as u64, cluster.addr(5).to_owned(), 409, "Conflict"),
        ("a node of another cluster", 4, cluster.addr(4).to_owned(), 409, "Conflict"),
        ("the leader, elsewhere", leader, nobody, 400, "BadRequest"),
    ];
    let before = cluster.metrics(leader).await;
    for (what, id, addr, status, name) in rows {
        for asked in ALL {
            eprintln!("{what}, asked of node {asked}");
            let answer = cluster.post(asked, "/add-learner", json!([id, addr]).to_string()).await;
            answer.assert_error(status, name, "not_applied");
            assert_eq!(answer.header("retry-after"), if status == 503 { "1" } else { "" }, "{what}");
        }
    }
    let after = cluster.metrics(leader).await;
    assert_eq!(after.membership_config, before.membership_config);
    assert_eq!(after.last_log_index, before.last_log_index, "nothing was proposed");
    assert_eq!(identity_of(&cluster, 5).await.cluster_id, None, "who was only asked for its name belongs to nobody");
}

/// Answers every connection as some other HTTP server would.
fn other_program() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    // Ends with the process: it waits for connections that no longer come.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}");
        }
    });
    addr
}
