//! `--bootstrap` and `--join`: one command a node forms a cluster, from empty directories and ever after.

use std::collections::BTreeSet;

use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};
use raft_key_value::network::peer::Envelope;
use raft_key_value::{NodeId, TypeConfig};
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{
    ALL, CALM, CALM_BUT_QUICK, DEADLINE, StandIn, TestCluster, eventually, free_port, identity_of, others, respond,
};

/// The exit code of a node that would found a second cluster.
const EXIT_SECOND_CLUSTER: Option<i32> = Some(78);

/// Prepares nodes with these flags, in which `@N` stands for the address of node `N`. None of them is started.
async fn prepared(name: &'static str, flags: &[&'static str], nodes: &[(NodeId, &[&str])]) -> TestCluster {
    let mut cluster = TestCluster::start(name, &[], flags).await;
    let addrs: Vec<String> = (0..=9).map(|_| format!("127.0.0.1:{}", free_port())).collect();
    for (id, flags) in nodes {
        let flags: Vec<String> = flags.iter().map(|flag| with_addresses(flag, &addrs)).collect();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        cluster.prepare_node(*id, addrs[usize::try_from(*id).unwrap()].clone(), &flags);
    }
    cluster
}

fn with_addresses(flag: &str, addrs: &[String]) -> String {
    addrs.iter().enumerate().fold(flag.to_owned(), |flag, (id, addr)| flag.replace(&format!("@{id}"), addr))
}

/// A first node that forms a cluster with two others, which join it.
const FORMED_BY_THE_FIRST: &[(NodeId, &[&str])] =
    &[(1, &["--bootstrap", "--join", "@2,@3"]), (2, &["--join", "@1,@3"]), (3, &["--join", "@1,@2"])];

/// The distinct clusters to which running nodes belong.
async fn clusters_of(cluster: &TestCluster, ids: &[NodeId]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for id in ids {
        found.extend(identity_of(cluster, *id).await.cluster_id.map(|id| id.to_string()));
    }
    found
}

/// Three commands, one a node, form a cluster of three voters, and restart its nodes ever after.
///
/// Method: start the joining nodes before the first one; one of them knows only another joining node. Each says what it
/// waits for, in its log and in its responses. Then start the first node. Kill all nodes, and start them again by the
/// same commands: they are the same cluster, with its data.
#[tokio::test]
async fn one_command_a_node() {
    let nodes: &[(NodeId, &[&str])] = &[(1, &["--bootstrap"]), (2, &["--join", "@1"]), (3, &["--join", "@2"])];
    let mut cluster = prepared("three-commands", CALM_BUT_QUICK, nodes).await;
    for id in [3, 2] {
        cluster.restart(id).await;
    }
    let first = cluster.addr(1).to_owned();
    cluster.logs(2, &["waiting to join a cluster", &first]).await;
    let second = cluster.addr(2).to_owned();
    cluster.logs(3, &[&format!("waiting to join a cluster: {second} belongs to no cluster yet")]).await;
    // What the other node waits for is in the log of that node.
    for line in cluster.node(3).log().lines() {
        assert!(line.matches("waiting to").count() <= 1, "{line}");
    }
    let answer = cluster.http().get(cluster.addr(3), "/v1/kv/k").await.unwrap();
    let message = answer.assert_rejected(503, "no_leader")["message"].to_string();
    assert!(message.contains("waiting to join a cluster"), "{message}");

    cluster.restart(1).await;
    cluster.logs(1, &["formed cluster", "of node 1 at", &first]).await;
    cluster.membership_is(&ALL, &ALL, &[]).await;
    for id in [2, 3] {
        cluster.logs(id, &["joined cluster"]).await;
    }
    let formed = clusters_of(&cluster, &ALL).await;
    assert_eq!(formed.len(), 1);
    cluster.write(3, "k", "v").await;
    cluster.crash(&ALL).await;
    cluster.membership_is(&ALL, &ALL, &[]).await;
    cluster.value_is(&ALL, "k", "v").await;
    assert_eq!(clusters_of(&cluster, &ALL).await, formed);
    let said = cluster.node(1).log().matches("formed cluster").count();
    assert_eq!(said, 1, "a restart forms nothing: {}", cluster.node(1).log());
}

/// A node joins as a learner if it says so, and becomes a voter once it is started with the other role.
#[tokio::test]
async fn a_learner_stays_one() {
    let nodes: &[(NodeId, &[&str])] = &[(1, &["--bootstrap"]), (2, &["--join", "@1", "--join-as", "learner"])];
    let mut cluster = prepared("joins-as-learner", CALM, nodes).await;
    for id in [1, 2] {
        cluster.restart(id).await;
    }
    cluster.logs(2, &["joined cluster"]).await;
    cluster.membership_is(&[1, 2], &[1], &[2]).await;
    cluster.kill(2);
    cluster.restart(2).await;
    cluster.write(2, "k", "v").await;
    cluster.membership_is(&[1, 2], &[1], &[2]).await;
    cluster.kill(2);
    cluster.node_mut(2).remove_flag("learner");
    cluster.node_mut(2).add_flag("voter");
    cluster.restart(2).await;
    cluster.membership_is(&[1, 2], &[1, 2], &[]).await;
}

/// A node that is killed while it joins becomes a voter once it is started again, under whichever leader.
///
/// Method: three voters. Kill a fourth node once it belongs to the cluster, and once it is a learner, and kill the
/// leader, too, in every other round. Start what was killed again.
#[tokio::test]
async fn an_interrupted_join_goes_on() {
    for round in 0..4 {
        let mut cluster = TestCluster::form("join-killed", &ALL, CALM_BUT_QUICK).await;
        cluster.write_many(1, "k", 200).await;
        let leader = cluster.leader_of(&ALL).await;
        let join = ALL.map(|id| cluster.addr(id).to_owned()).join(",");
        cluster.prepare_node(4, format!("127.0.0.1:{}", free_port()), &["--join", &join]);
        cluster.restart(4).await;
        if round / 2 == 0 {
            eventually("node 4 belongs to the cluster", DEADLINE, async || {
                identity_of(&cluster, 4).await.cluster_id.ok_or("not yet")
            })
            .await;
        } else {
            cluster.membership_is(&[leader], &ALL, &[4]).await;
        }
        cluster.kill(4);
        if round % 2 == 1 {
            cluster.kill(leader);
        }
        cluster.restart(4).await;
        let alive: Vec<NodeId> = if round % 2 == 1 { others(leader) } else { ALL.to_vec() };
        cluster.membership_is(&[alive.clone(), vec![4]].concat(), &[1, 2, 3, 4], &[]).await;
        if round % 2 == 1 {
            cluster.restart(leader).await;
        }
        cluster.leader_of(&[1, 2, 3, 4]).await;
        cluster.write(4, "k", "v").await;
        cluster.value_is(&[1, 2, 3, 4], "k", "v").await;
    }
}

/// A learner becomes a voter only once it has all data and responds.
///
/// Method: a stand-in for node 9 responds to heartbeats, and never to appends with entries; and a real learner that is
/// paused. Adding and promoting either returns 202 with the reason. The real one becomes a voter after it has resumed,
/// by the same request.
#[tokio::test]
async fn only_a_learner_that_keeps_up_is_promoted() {
    let mut cluster = TestCluster::form("keeps-up", &[1], CALM).await;
    cluster.write_many(1, "k", 300).await;
    let stand_in = StandIn::start(|path, body, stream| match path {
        "/raft-identity" => {
            respond(stream, "200 OK", br#"{"Ok":{"node_id":9,"cluster_id":null,"incarnation":5,"format_level":5}}"#)
        }
        "/raft-append" => {
            let sent: Envelope<AppendEntriesRequest<TypeConfig>> = rmp_serde::from_slice(body).unwrap();
            if sent.rpc.entries.is_empty() {
                let success = AppendEntriesResponse::<TypeConfig>::Success;
                respond(stream, "200 OK", &rmp_serde::to_vec_named(&success).unwrap());
            }
        }
        _ => respond(stream, "503 Service Unavailable", b""),
    });
    let add = async |cluster: &TestCluster, id: NodeId, addr: &str, role: &str| {
        let body = json!({"id": id, "address": addr, "role": role}).to_string();
        cluster.v1(1, Method::POST, "/v1/cluster/members", &[], body).await
    };
    let promote = async |cluster: &TestCluster, id: NodeId| {
        cluster.v1(1, Method::POST, &format!("/v1/cluster/members/{id}/promote"), &[], "").await
    };
    let is_unfinished = |status: u16, answer: &Value, parts: &[&str]| {
        let message = answer["message"].as_str().unwrap();
        assert_eq!((status, &answer["done"]), (202, &json!(false)), "{answer}");
        assert!(parts.iter().all(|part| message.contains(part)), "{answer}");
    };
    let (stand_in_added, added) = tokio::join!(add(&cluster, 9, &stand_in.addr, "voter"), async {
        cluster.membership_is(&[1], &[1], &[9]).await;
        promote(&cluster, 9).await
    });
    for answer in [stand_in_added, added] {
        is_unfinished(answer.status, &answer.json(), &["node 9 is a learner", "node 9 responds", "entries"]);
    }

    cluster.add_node(2).await;
    let addr = cluster.addr(2).to_owned();
    let answer = add(&cluster, 2, &addr, "learner").await.done();
    assert_eq!((&answer["id"], &answer["done"]), (&json!(2), &json!(true)), "{answer}");
    cluster.membership_is(&[1, 2], &[1], &[2, 9]).await;
    cluster.node(2).pause();
    let answer = promote(&cluster, 2).await;
    is_unfinished(answer.status, &answer.json(), &["node 2 is a learner", "not responded"]);
    cluster.membership_is(&[1], &[1], &[2, 9]).await;
    cluster.node(2).resume();
    for answer in [promote(&cluster, 2).await.done(), promote(&cluster, 2).await.done()] {
        assert_eq!(answer["members"][1], json!({"id": 2, "role": "voter", "address": addr}), "{answer}");
    }
    cluster.membership_is(&[1, 2], &[1, 2], &[9]).await;
    let fields = add(&cluster, 2, &addr, "learner").await.assert_rejected(409, "conflict");
    assert!(fields["message"].as_str().unwrap().contains("voter already"), "{fields}");
    promote(&cluster, 77).await.assert_rejected(404, "member_not_found");
    cluster.write(2, "k", "v").await;
}

/// A first node with `--join` waits until all others respond, and forms one cluster of all of them.
#[tokio::test]
async fn a_first_node_waits_for_the_others() {
    let mut cluster = prepared("waits-for-others", CALM_BUT_QUICK, FORMED_BY_THE_FIRST).await;
    for id in [1, 2] {
        cluster.restart(id).await;
    }
    let third = cluster.addr(3).to_owned();
    cluster.logs(1, &["waiting to form a cluster", &third, "does not respond"]).await;
    assert_eq!(clusters_of(&cluster, &[1, 2]).await, BTreeSet::new());
    cluster.restart(3).await;
    cluster.membership_is(&ALL, &ALL, &[]).await;
    assert_eq!(clusters_of(&cluster, &ALL).await.len(), 1);
    cluster.write(2, "k", "v").await;
    cluster.crash(&ALL).await;
    cluster.value_is(&ALL, "k", "v").await;
}

/// Three nodes with the same kind of command, each to form the cluster with the other two, form one.
#[tokio::test]
async fn nodes_that_all_form_a_cluster_form_one() {
    let nodes: &[(NodeId, &[&str])] = &[
        (1, &["--bootstrap", "--join", "@1,@2,@3"]),
        (2, &["--bootstrap", "--join", "@1,@2,@3"]),
        (3, &["--bootstrap", "--join", "@1,@2,@3"]),
    ];
    for _ in 0..4 {
        let mut cluster = prepared("all-form", CALM_BUT_QUICK, nodes).await;
        for id in ALL {
            cluster.restart(id).await;
        }
        cluster.membership_is(&ALL, &ALL, &[]).await;
        assert_eq!(clusters_of(&cluster, &ALL).await.len(), 1);
        cluster.write(3, "k", "v").await;
        cluster.crash(&ALL).await;
        cluster.value_is(&ALL, "k", "v").await;
        cluster.assert_alive();
    }
}

/// A learner does not take part in forming a cluster, and joins it afterwards.
#[tokio::test]
async fn a_learner_joins_after_the_cluster_is_formed() {
    let nodes: &[(NodeId, &[&str])] = &[
        (1, &["--bootstrap", "--join", "@2,@3"]),
        (2, &["--join", "@1"]),
        (3, &["--join", "@1", "--join-as", "learner"]),
    ];
    let mut cluster = prepared("forms-with-learner", CALM_BUT_QUICK, nodes).await;
    for id in ALL {
        cluster.restart(id).await;
    }
    cluster.membership_is(&ALL, &[1, 2], &[3]).await;
}

/// A first node whose disk is wiped never founds a second cluster, at whichever stage of forming it happens.
///
/// Method: kill the first node once it waits for the last one, once it belongs to a cluster itself, once the second
/// does, once the third does, and once it leads; wipe its directory, and start it again by the same command. If
/// another node belongs to a cluster by then, it exits with 78 and says what to do. Otherwise no cluster has ever had a
/// leader, and all three form one.
#[tokio::test]
async fn a_wiped_first_node_founds_no_second_cluster() {
    let mut refused = 0;
    for stage in 0..5_u64 {
        let mut cluster = prepared("wiped-first", CALM_BUT_QUICK, FORMED_BY_THE_FIRST).await;
        for id in [2, 1] {
            cluster.restart(id).await;
        }
        let third = cluster.addr(3).to_owned();
        cluster.logs(1, &["waiting to form a cluster", &third]).await;
        if stage > 0 {
            cluster.restart(3).await;
        }
        match stage {
            0 => {}
            4 => drop(cluster.leader_of(&ALL).await),
            id => drop(
                eventually("the node belongs to a cluster", DEADLINE, async || {
                    identity_of(&cluster, id).await.cluster_id.ok_or("not yet")
                })
                .await,
            ),
        }
        cluster.kill(1);
        cluster.wipe(1);
        if stage == 0 {
            cluster.restart(3).await;
        }
        // A request of the killed node that is under way may still arrive.
        let mut formed = clusters_of(&cluster, &[2, 3]).await;
        if formed.is_empty() && stage > 1 {
            panic!("stage {stage}: a node belonged to a cluster, and no longer does");
        }
        let code = if formed.is_empty() {
            cluster.restart(1).await;
            let formed_or_ended = eventually("node 1 forms a cluster or exits", DEADLINE, async || {
                match cluster.node(1).log().lines().last().unwrap_or_default() {
                    line if line.starts_with("error: ") => Ok(false),
                    _ if cluster.node(1).log().contains("formed cluster") => Ok(true),
                    line => Err(line.to_owned()),
                }
            })
            .await;
            if formed_or_ended { None } else { cluster.node_mut(1).ends().await }
        } else {
            cluster.exits(1).await
        };
        match code {
            None => {
                cluster.membership_is(&ALL, &ALL, &[]).await;
                assert_eq!(clusters_of(&cluster, &ALL).await.len(), 1, "stage {stage}");
            }
            code => {
                refused += 1;
                assert_eq!(code, EXIT_SECOND_CLUSTER, "stage {stage}: {}", cluster.node(1).log());
                formed.extend(clusters_of(&cluster, &[2, 3]).await);
                assert_eq!(formed.len(), 1, "stage {stage}");
                let log = cluster.node(1).log();
                let line = log.lines().last().unwrap();
                for part in ["error: ", "must not found a second cluster", "new --id", "--join"] {
                    assert!(line.contains(part), "stage {stage}: {line}");
                }
            }
        }
        if stage == 4 {
            // The others have all that was acknowledged, and continue.
            cluster.leader_of(&[2, 3]).await;
            cluster.write(2, "k", "v").await;
            // With either of them down, too.
            for down in [2, 3] {
                cluster.kill(down);
                assert_eq!(cluster.exits(1).await, EXIT_SECOND_CLUSTER, "node {down} is down");
                cluster.restart(down).await;
            }
            // With both of them down, it waits.
            for down in [2, 3] {
                cluster.kill(down);
            }
            cluster.restart(1).await;
            let log_bytes = cluster.node(1).log().len();
            cluster.restart(3).await;
            assert_eq!(cluster.node_mut(1).ends().await, EXIT_SECOND_CLUSTER);
            assert!(cluster.node(1).log()[log_bytes..].contains("must not found a second cluster"));
        }
    }
    assert!(refused >= 3, "only {refused} of the stages were refused");
}

/// A removed node does not join again by itself, neither at once nor at a restart by the same command.
///
/// Method: remove a node that joined by itself, and restart it, also after it has learned of its removal.
#[tokio::test]
async fn a_removed_node_stays_out() {
    let nodes: &[(NodeId, &[&str])] = &[(1, &["--bootstrap"]), (2, &["--join", "@1"]), (3, &["--join", "@1"])];
    let mut cluster = prepared("stays-out", CALM_BUT_QUICK, nodes).await;
    for id in ALL {
        cluster.restart(id).await;
    }
    cluster.membership_is(&ALL, &ALL, &[]).await;
    let leader = cluster.leader_of(&ALL).await;
    let removed = others(leader)[1];
    cluster.v1(leader, Method::DELETE, &format!("/v1/cluster/members/{removed}?force"), &[], "").await.done();
    let left = others(removed);
    for _ in 0..2 {
        cluster.kill(removed);
        cluster.restart(removed).await;
        let answer = cluster.v1(removed, Method::GET, "/v1/kv/k", &[], "").await;
        assert_eq!(answer.status, 503, "{}", answer.text());
        cluster.write(left[0], "k", "v").await;
        cluster.membership_is(&left, &left, &[]).await;
    }
    // With an empty directory it is a new node.
    cluster.kill(removed);
    cluster.wipe(removed);
    cluster.restart(removed).await;
    cluster.membership_is(&ALL, &ALL, &[]).await;
}

/// A joining node whose directory is lost says what to do, and joins by itself once its member is removed.
#[tokio::test]
async fn a_wiped_joiner_waits_until_its_member_is_removed() {
    let nodes: &[(NodeId, &[&str])] = &[(1, &["--bootstrap"]), (2, &["--join", "@1"]), (3, &["--join", "@1,@2"])];
    let mut cluster = prepared("wiped-joiner", CALM_BUT_QUICK, nodes).await;
    for id in ALL {
        cluster.restart(id).await;
    }
    cluster.membership_is(&ALL, &ALL, &[]).await;
    cluster.write(1, "k", "v").await;
    cluster.kill(3);
    cluster.wipe(3);
    cluster.restart(3).await;
    cluster.logs(3, &["waiting to join a cluster", "different data directory", "members remove 3"]).await;
    cluster.v1(1, Method::DELETE, "/v1/cluster/members/3", &[], "").await.done();
    cluster.membership_is(&ALL, &ALL, &[]).await;
    cluster.value_is(&[3], "k", "v").await;
}
