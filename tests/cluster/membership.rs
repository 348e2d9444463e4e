//! Who belongs to the cluster, and who is kept out.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;

use openraft::raft::{AppendEntriesRequest, VoteRequest};
use openraft::vote::RaftLeaderId;
use raft_key_value::TypeConfig;
use raft_key_value::types::Vote;
use serde_json::json;

use crate::harness::{CALM, TestCluster, envelope, free_port, identity_of};

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
    // It may be shut down then, and is not missed.
    assert_eq!(cluster.stop(leader).await, Some(0));
    cluster.write(rest[1], "k", "newest").await;
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

/// A node whose directory was wiped has forgotten the votes it gave, so under
/// its old number it is kept out; under a new number it is welcome.
///
/// Method: wipe a follower and start it again with the same number and
/// address; it must refuse what is meant for the node it was, hold nothing,
/// and not count towards a majority. Then remove it, and add a new number.
#[tokio::test]
async fn a_wiped_node_is_kept_out() {
    let mut cluster = TestCluster::form("wiped", &ALL, CALM).await;
    let leader = cluster.leader_of(&ALL).await;
    let (second, wiped) = (others(leader)[0], others(leader)[1]);
    let mut data = cluster.write_many(leader, "before-", 20).await;
    let identity_before = identity_of(&cluster, wiped).await;
    cluster.kill(wiped);
    fs::remove_dir_all(cluster.node(wiped).directory()).unwrap();
    cluster.restart(wiped).await;

    // What its peers still send to the node that it was.
    let cluster_id = identity_before.cluster_id.unwrap();
    let vote = |committed| Vote { leader_id: RaftLeaderId::new(99, leader), committed };
    let append = AppendEntriesRequest::<TypeConfig> {
        vote: vote(true),
        prev_log_id: None,
        entries: Vec::new(),
        leader_commit: None,
    };
    let request = VoteRequest::<TypeConfig>::new(vote(false), None);
    let messages = [
        ("/raft-append", envelope(leader, &identity_before, cluster_id, &append)),
        ("/raft-vote", envelope(leader, &identity_before, cluster_id, &request)),
        ("/raft-pre-vote", envelope(leader, &identity_before, cluster_id, &request)),
    ];
    for (path, message) in messages {
        eprintln!("{path} to the wiped node");
        cluster.post(wiped, path, message).await.assert_error(421, "WrongNode", "not_applied");
    }
    assert_ne!(identity_of(&cluster, wiped).await.incarnation, identity_before.incarnation);

    // Two of three go on; with one more gone there is no majority, whoever listens.
    data.append(&mut cluster.write_many(second, "meanwhile-", 20).await);
    cluster.kill(second);
    let answer = cluster.post(leader, "/write", r#"{"Set":{"key":"lonely","value":"v"}}"#).await;
    assert!(matches!(answer.status, 503 | 504), "{} {}", answer.status, answer.text());
    cluster.restart(second).await;
    cluster.write(second, "with a majority again", "v").await;
    let metrics = cluster.metrics(wiped).await;
    assert_eq!((metrics.last_log_index, metrics.current_leader), (None, None), "{metrics}");
    assert_eq!(metrics.membership_config.voter_ids().count(), 0, "{metrics}");
    assert_eq!(identity_of(&cluster, wiped).await.cluster_id, None);

    let voters = json!([leader, second]).to_string();
    cluster.post(second, "/change-membership", voters).await.ok().unwrap();
    cluster.add_node(4).await;
    cluster.post(leader, "/add-learner", json!([4, cluster.addr(4)]).to_string()).await.ok().unwrap();
    cluster.post(leader, "/change-membership", json!([leader, second, 4]).to_string()).await.ok().unwrap();
    let mut voters = vec![leader, second, 4];
    voters.sort_unstable();
    cluster.membership_is(&voters, &voters, &[]).await;
    cluster.kill(second);
    let majority = [leader, 4];
    cluster.leader_of(&majority).await;
    data.append(&mut cluster.write_many(4, "after-", 20).await);
    cluster.all_applied(&majority).await;
    cluster.assert_holds(4, &data).await;
}

/// Taking a wiped node in again under its old number is refused at once, and says what to do.
///
/// Method: wipe a follower that is still a voter, start it again, and ask for
/// it as a learner.
#[tokio::test]
async fn a_wiped_node_is_not_taken_in_under_its_number() {
    let mut cluster = TestCluster::form("wiped-again", &ALL, CALM).await;
    let leader = cluster.leader_of(&ALL).await;
    let wiped = others(leader)[1];
    cluster.kill(wiped);
    fs::remove_dir_all(cluster.node(wiped).directory()).unwrap();
    cluster.restart(wiped).await;
    let before = cluster.metrics(leader).await.membership_config;
    let answer = cluster.post(leader, "/add-learner", json!([wiped, cluster.addr(wiped)]).to_string()).await;
    answer.assert_error(409, "Conflict", "not_applied");
    assert_eq!(cluster.metrics(leader).await.membership_config, before);
}
