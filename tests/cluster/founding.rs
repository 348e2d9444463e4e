//! `/init` with a list founds one cluster, however often and to whichever nodes the list is sent.

use std::collections::BTreeSet;
use std::fs;

use futures_util::future::join_all;
use raft_key_value::NodeId;
use raft_key_value::network::founding::Step;
use raft_key_value::store::ClusterId;
use serde_json::json;

use crate::harness::{
    ALL, Answer, CALM, CALM_BUT_QUICK, DEADLINE, StandIn, TestCluster, copy_directory, envelope, eventually,
    identity_of, respond,
};

/// The body of `/init` with these nodes, in this order.
fn list(cluster: &TestCluster, ids: &[NodeId]) -> String {
    json!(ids.iter().map(|id| json!([id, cluster.addr(*id)])).collect::<Vec<_>>()).to_string()
}

async fn cluster_ids(cluster: &TestCluster, ids: &[NodeId]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for id in ids {
        found.insert(format!("{:?}", identity_of(cluster, *id).await.cluster_id));
    }
    found
}

/// Asserts that a founding request either succeeded, or reported that the cluster already exists.
fn assert_founded_or_late(answer: &Answer) {
    match answer.status {
        200 => assert_eq!(answer.text(), r#"{"Ok":null}"#),
        _ => drop(answer.assert_error(409, "NotAllowed", "not_applied")),
    }
}

/// A list sent to all its nodes at once founds one cluster, which has a leader by the first response.
///
/// Method: twelve rounds with three new nodes each. Send the list to each node at the same time, twice, and in
/// different orders. Afterwards all nodes have the same cluster id and the same leader, accept a write, and reject the
/// list.
#[tokio::test]
async fn a_list_sent_to_all_nodes_at_once_founds_one_cluster() {
    for round in 0..12 {
        let cluster = TestCluster::start("init-at-once", &ALL, &[]).await;
        let mut order = ALL;
        let bodies: Vec<_> = (0..6)
            .map(|number| {
                order.rotate_left(1);
                (ALL[number % 3], list(&cluster, &order))
            })
            .collect();
        let answers = join_all(bodies.iter().map(|(id, body)| cluster.post(*id, "/init", body.clone()))).await;
        assert_eq!(cluster_ids(&cluster, &ALL).await.len(), 1, "round {round}: {answers:?}");
        cluster.leader_of(&ALL).await;
        answers.iter().for_each(assert_founded_or_late);
        assert!(answers.iter().any(|answer| answer.status == 200), "round {round}: {answers:?}");
        cluster.membership_is(&ALL, &ALL, &[]).await;
        for id in ALL {
            cluster.write(id, "k", &format!("from {id}")).await;
            cluster.post(id, "/init", list(&cluster, &ALL)).await.assert_error(409, "NotAllowed", "not_applied");
        }
    }
}

/// A node that founds a cluster logs its leader, but not that none is known before.
///
/// Method: found a cluster of one node, and wait for the line about the leader.
#[tokio::test]
async fn founding_logs_no_missing_leader() {
    let cluster = TestCluster::form("init-log", &[1], &[]).await;
    let log = eventually("the log names the leader", DEADLINE, async || {
        let log = cluster.node(1).log();
        if log.contains("node 1 leads in term 1") { Ok(log) } else { Err(log) }
    })
    .await;
    assert!(!log.contains("no leader is known"), "{log}");
}

/// A list sent to its nodes one after the other founds one cluster; only the first request succeeds.
#[tokio::test]
async fn a_list_sent_to_one_node_after_the_other_founds_one_cluster() {
    let cluster = TestCluster::start("init-in-turn", &ALL, &[]).await;
    for id in [3, 1, 2, 3] {
        let answer = cluster.post(id, "/init", list(&cluster, &ALL)).await;
        assert_founded_or_late(&answer);
        // The node that received the list knows a leader, and serves.
        cluster.write(id, "k", &format!("from {id}")).await;
    }
    assert_eq!(cluster_ids(&cluster, &ALL).await.len(), 1);
    cluster.membership_is(&ALL, &ALL, &[]).await;
}

/// Of overlapping lists that are sent at once, one founds a cluster; the others are rejected and change nothing.
///
/// Method: eight rounds with different members, with another address of the same node, and with a node of its own.
/// Exactly one request succeeds. A node outside that list belongs to no cluster, and founds its own afterwards.
#[tokio::test]
async fn of_conflicting_lists_one_founds_a_cluster() {
    for round in 0..8 {
        let cluster = TestCluster::start("init-conflict", &ALL, &[]).await;
        let other_name = cluster.addr(1).replace("127.0.0.1", "localhost");
        let renamed = json!([[1, other_name], [2, cluster.addr(2)]]).to_string();
        let requests: Vec<(NodeId, Vec<NodeId>, String)> = match round % 4 {
            0 => [(1, vec![1, 2, 3]), (2, vec![1, 2]), (3, vec![2, 3])].to_vec(),
            1 => [(3, vec![1, 2, 3]), (1, vec![1, 2])].to_vec(),
            2 => [(1, vec![1]), (2, vec![1, 2, 3])].to_vec(),
            _ => [(1, vec![1, 2])].to_vec(),
        }
        .into_iter()
        .map(|(asked, ids)| (asked, ids.clone(), list(&cluster, &ids)))
        .chain((round % 4 == 3).then(|| (2, vec![1, 2], renamed)))
        .collect();
        let answers = join_all(requests.iter().map(|(id, _, body)| cluster.post(*id, "/init", body.clone()))).await;
        let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
        let founded: Vec<usize> = (0..statuses.len()).filter(|number| statuses[*number] == 200).collect();
        assert_eq!(founded.len(), 1, "round {round}: {answers:?}");
        for answer in answers.iter().filter(|answer| answer.status != 200) {
            assert_eq!((answer.status, answer.header("raft-outcome")), (409, "not_applied"), "{}", answer.text());
        }
        let members = &requests[founded[0]].1;
        cluster.leader_of(members).await;
        cluster.membership_is(members, members, &[]).await;
        assert_eq!(cluster_ids(&cluster, members).await.len(), 1, "round {round}");
        for id in ALL.iter().filter(|id| !members.contains(id)) {
            assert_eq!(identity_of(&cluster, *id).await.cluster_id, None, "round {round}, node {id}");
            cluster.post(*id, "/init", "").await.ok().unwrap();
        }
    }
}

/// A node that is killed during founding does not split the cluster: repeating the list founds one cluster.
///
/// Method: nine rounds. Send the list to all three nodes at once, and kill one of them at once, or when the first or
/// the last node reports that it belongs to a cluster. Restart it, and send the list to all nodes until each reports
/// that the cluster exists.
#[tokio::test]
async fn a_node_that_is_killed_while_founding_does_not_split_the_cluster() {
    for round in 0..9 {
        let mut cluster = TestCluster::start("init-killed", &ALL, &[]).await;
        let killed = 1 + round % 3;
        let body = list(&cluster, &ALL);
        let sent: Vec<_> = ALL
            .into_iter()
            .map(|id| {
                let (http, addr, body) = (cluster.http().clone(), cluster.addr(id).to_owned(), body.clone());
                tokio::spawn(async move { http.post(&addr, "/init", body).await.map(|answer| answer.status) })
            })
            .collect();
        let awaited = match round / 3 {
            0 => None,
            1 => Some(killed),
            _ => Some(1 + killed % 3),
        };
        if let Some(id) = awaited {
            eventually(&format!("node {id} belongs to a cluster"), DEADLINE, async || {
                identity_of(&cluster, id).await.cluster_id.ok_or("not yet")
            })
            .await;
        }
        cluster.kill(killed);
        let statuses: Vec<_> = join_all(sent).await.into_iter().map(|status| status.unwrap().ok()).collect();
        cluster.restart(killed).await;
        for id in ALL {
            eventually(&format!("node {id} reports that the cluster exists"), DEADLINE, async || {
                let answer = cluster.post(id, "/init", body.clone()).await;
                match answer.status {
                    200 => Ok(()),
                    409 if answer.error().0 == "NotAllowed" => Ok(()),
                    _ => Err(answer.text()),
                }
            })
            .await;
        }
        assert_eq!(cluster_ids(&cluster, &ALL).await.len(), 1, "round {round}: {statuses:?}");
        cluster.leader_of(&ALL).await;
        cluster.membership_is(&ALL, &ALL, &[]).await;
        cluster.write(killed, "k", "v").await;
    }
}

/// A list whose cluster elects no leader in time returns 504, and the same list continues the founding.
///
/// Method: a stand-in for node 2 accepts its reservation, and never votes.
#[tokio::test]
async fn a_cluster_without_a_leader_is_not_reported_as_founded() {
    let cluster = TestCluster::start("init-no-leader", &[1], &[]).await;
    let stand_in = StandIn::start(|path, _, stream| match path {
        "/raft-identity" => respond(stream, "200 OK", br#"{"Ok":{"node_id":2,"cluster_id":null,"incarnation":5}}"#),
        "/raft-found" => respond(stream, "200 OK", br#"{"Ok":{"founder":1}}"#),
        _ => respond(stream, "503 Service Unavailable", b""),
    });
    let body = json!([[1, cluster.addr(1)], [2, stand_in.addr]]).to_string();
    let (first, second) = tokio::join!(cluster.post(1, "/init", body.clone()), cluster.post(1, "/init", body.clone()));
    for answer in [first, second] {
        answer.assert_error(504, "DeadlinePassed", "unknown");
    }
    cluster.post(1, "/init", "").await.assert_error(409, "Conflict", "not_applied");
    cluster.post(1, "/init", body).await.assert_error(504, "DeadlinePassed", "unknown");
}

/// Nodes that stopped after joining, with nothing in their logs yet, continue when the list is sent again.
///
/// Method: found a cluster, kill its nodes, and restore the empty logs from before on one node or on both. A node may
/// even lack the cluster id. Another list is rejected, and the same one founds the cluster.
#[tokio::test]
async fn a_founding_that_was_interrupted_is_completed() {
    for joined in [vec![1], vec![2], vec![1, 2]] {
        let mut cluster = TestCluster::start("init-interrupted", &[1, 2], &[]).await;
        let body = list(&cluster, &[1, 2]);
        let before = tempfile::tempdir().unwrap();
        for id in [1, 2] {
            cluster.kill(id);
            copy_directory(&cluster.node(id).directory(), &before.path().join(id.to_string()));
            cluster.restart(id).await;
        }
        cluster.post(1, "/init", body.clone()).await.ok().unwrap();
        let founded = cluster_ids(&cluster, &[1]).await;
        for id in [1, 2] {
            let directory = cluster.node(id).directory();
            cluster.kill(id);
            let identity = fs::read(directory.join("IDENTITY")).unwrap();
            fs::remove_dir_all(&directory).unwrap();
            copy_directory(&before.path().join(id.to_string()), &directory);
            if joined.contains(&id) {
                fs::write(directory.join("IDENTITY"), identity).unwrap();
            }
        }
        for id in [1, 2] {
            cluster.restart(id).await;
        }
        assert_eq!(cluster.metrics(joined[0]).await.last_log_index, None);
        cluster.post(joined[0], "/init", "").await.assert_error(409, "Conflict", "not_applied");
        cluster.post(2, "/init", body.clone()).await.ok().unwrap();
        cluster.leader_of(&[1, 2]).await;
        assert_eq!(cluster_ids(&cluster, &[1, 2]).await, founded, "the cluster must be the same");
        cluster.write(1, "k", "v").await;
    }
}

/// A node that the first leader did not reach votes for the second one, so a founded cluster survives its founder.
///
/// Method: found a cluster. Kill the leader, and restore one follower's empty directory from before. The two remaining
/// nodes elect a leader, and later all three serve.
#[tokio::test]
async fn a_founder_that_dies_leaves_a_cluster() {
    let mut cluster = TestCluster::start("init-outlived", &ALL, CALM_BUT_QUICK).await;
    let before = tempfile::tempdir().unwrap();
    for id in ALL {
        cluster.kill(id);
        copy_directory(&cluster.node(id).directory(), &before.path().join(id.to_string()));
        cluster.restart(id).await;
    }
    cluster.post(1, "/init", list(&cluster, &ALL)).await.ok().unwrap();
    cluster.membership_is(&ALL, &ALL, &[]).await;
    let leader = cluster.leader_of(&ALL).await;
    let (second, third) = (1 + leader % 3, 1 + (leader + 1) % 3);
    cluster.kill(leader);
    cluster.kill(third);
    fs::remove_dir_all(cluster.node(third).directory()).unwrap();
    copy_directory(&before.path().join(third.to_string()), &cluster.node(third).directory());
    cluster.restart(third).await;
    cluster.leader_of(&[second, third]).await;
    assert_eq!(cluster_ids(&cluster, &[second, third]).await.len(), 1);
    cluster.write(third, "k", "v").await;
    cluster.restart(leader).await;
    cluster.value_is(&ALL, "k", "v").await;
    cluster.assert_alive();
}

/// A reservation expires: a founder that died does not keep a node from joining another cluster.
///
/// Method: reserve a node as a founder would, and do nothing more. Another list is rejected at first, and founds its
/// cluster once the reservation has expired.
#[tokio::test]
async fn a_reservation_expires() {
    let cluster = TestCluster::start("init-reserved", &[1, 2], CALM).await;
    let identity = identity_of(&cluster, 2).await;
    let reserve = envelope(7, &identity, ClusterId(99), Step::Reserve);
    let answer = cluster.post(2, "/raft-found", reserve).await.ok().unwrap();
    assert_eq!(answer, json!({"founder": 7}));
    for body in [list(&cluster, &[1, 2]), list(&cluster, &[2])] {
        let asked = if body.contains("[1,") { 1 } else { 2 };
        let fields = cluster.post(asked, "/init", body).await.assert_error(409, "Conflict", "not_applied");
        assert!(fields["message"].as_str().unwrap().contains("by node 7"), "{fields}");
    }
    let body = list(&cluster, &[1, 2]);
    eventually("the reservation expires", DEADLINE, async || cluster.post(1, "/init", body.clone()).await.ok()).await;
    cluster.membership_is(&[1, 2], &[1, 2], &[]).await;
}

/// A list that gives two nodes the same address, or names a node of another cluster, is rejected.
#[tokio::test]
async fn a_list_that_contradicts_itself_is_rejected() {
    let cluster = TestCluster::start("init-bad-list", &[1, 2], CALM).await;
    let twice = json!([[1, cluster.addr(1)], [2, cluster.addr(1)]]).to_string();
    let fields = cluster.post(1, "/init", twice).await.assert_error(400, "BadRequest", "not_applied");
    assert_eq!(fields["code"], "address_twice");
    cluster.post(2, "/init", "").await.ok().unwrap();
    cluster.post(1, "/init", list(&cluster, &[1, 2])).await.assert_error(409, "Conflict", "not_applied");
    cluster.post(1, "/init", "").await.ok().unwrap();
    assert_eq!(cluster_ids(&cluster, &[1, 2]).await.len(), 2, "each node must have its own cluster");
}
