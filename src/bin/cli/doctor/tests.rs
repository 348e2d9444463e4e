//! Judgments by rows: what the nodes say, and the findings that follow.

use raft_key_value::body::{ClusterAnswer, ClusterMember, MemberRole};
use raft_key_value::node_status::{KnownFollower, KnownMember, NodeStatus};

use super::collect::{Answer, Clock, Seen};
use super::judge::{Severity, judge};

use Severity::{Critical, Info, Warning};

const LEADER: u64 = 1;

fn address(id: u64) -> String {
    format!("10.0.0.{id}:21001")
}

fn member(id: u64, role: MemberRole) -> KnownMember {
    KnownMember { id, role, address: address(id), incarnation: 100 + id }
}

/// A member of a healthy cluster of so many voters, of which node 1 leads.
fn healthy(node: u64, voters: u64) -> NodeStatus {
    let follower = |id| KnownFollower { id, lag_entries: Some(3), lag_ms: Some(0), silent_ms: Some(40) };
    NodeStatus {
        node,
        incarnation: 100 + node,
        cluster_id: Some("00000000000000aa".to_owned()),
        version: Some("0.1.0".to_owned()),
        address: Some(address(node)),
        is_member: true,
        term: 7,
        leader: Some(LEADER),
        members: (1..=voters).map(|id| member(id, MemberRole::Voter)).collect(),
        last_log_index: Some(500),
        applied_index: Some(500),
        disk_free_bytes: Some(50 << 30),
        disk_low_bytes: Some(128 << 20),
        quota_used_bytes: Some(500 << 20),
        quota_bytes: Some(1000 << 20),
        fsync_p99_us: Some(900),
        heartbeat_interval_ms: Some(100),
        election_timeout_ms: Some(1000),
        clock_ms: Some(1),
        followers: if node == LEADER { (2..=voters).map(follower).collect() } else { Vec::new() },
        ..NodeStatus::default()
    }
}

fn seen(status: NodeStatus) -> Seen {
    let address = address(status.node);
    let clock = Some(Clock { offset_ms: 5, uncertain_ms: 2 });
    Seen { address, answer: Answer::Node(Box::new(status)), clock, view: None }
}

fn silent(id: u64) -> Seen {
    Seen { address: address(id), answer: Answer::Silent("connection refused".to_owned()), clock: None, view: None }
}

/// The statuses of a healthy cluster, to be changed.
fn all_of(voters: u64) -> Vec<NodeStatus> {
    (1..=voters).map(|id| healthy(id, voters)).collect()
}

fn seen_of(statuses: Vec<NodeStatus>) -> Vec<Seen> {
    statuses.into_iter().map(seen).collect()
}

/// Removes what the leader knows of a node that does not respond to it either.
fn unheard(leader: &mut NodeStatus, id: u64) {
    let follower = leader.followers.iter_mut().find(|follower| follower.id == id).unwrap();
    *follower = KnownFollower { id, lag_entries: Some(40), lag_ms: Some(61_000), silent_ms: Some(62_000) };
}

type Expected<'a> = &'a [(Severity, &'static str, &'a [u64])];

#[track_caller]
fn finds(what: &str, seen: &[Seen], expected: Expected<'_>) {
    let findings = judge(seen);
    let found: Vec<_> = findings.iter().map(|it| (it.severity, it.code, it.nodes.as_slice())).collect();
    assert_eq!(found, expected, "{what}: {findings:#?}");
    for finding in &findings {
        assert!(!finding.advice.is_empty() && finding.seen.len() > 20, "{what}: {finding:?}");
    }
}

/// A healthy cluster has no findings, whatever its usual fluctuations.
#[test]
fn healthy_clusters() {
    finds("three", &seen_of(all_of(3)), &[]);
    finds("five", &seen_of(all_of(5)), &[]);
    finds("one", &seen_of(all_of(1)), &[(Info, "no_fault_tolerance", &[])]);
    finds("two", &seen_of(all_of(2)), &[(Warning, "no_fault_tolerance", &[])]);
    // Under load.
    let mut busy = all_of(3);
    busy[0].followers[0] = KnownFollower { id: 2, lag_entries: Some(4000), lag_ms: Some(300), silent_ms: Some(400) };
    finds("busy", &seen_of(busy), &[]);
    // An endpoint by another name.
    let mut twice = seen_of(all_of(3));
    twice.push(Seen { address: "node-1.example:21001".to_owned(), ..twice[0].clone() });
    finds("another name", &twice, &[]);
}

/// Silent members are told apart by what the leader knows of them.
#[test]
fn silent_members() {
    let mut statuses = all_of(3);
    statuses.truncate(2);
    unheard(&mut statuses[0], 3);
    let mut one_down = seen_of(statuses.clone());
    one_down.push(silent(3));
    finds("one of three", &one_down, &[(Warning, "member_down", &[3]), (Warning, "no_spare_voter", &[3])]);
    let text = &judge(&one_down)[0].seen;
    for part in ["10.0.0.3:21001", "connection refused", "for 62.0 s", "40 entries", "61.0 s old"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }

    statuses[0].followers[1] = KnownFollower { id: 3, ..KnownFollower::default() };
    let mut never = seen_of(statuses.clone());
    never.push(silent(3));
    finds("never", &never, &[(Warning, "never_reached", &[3]), (Warning, "no_spare_voter", &[3])]);

    // Only this machine does not reach it.
    statuses[0].followers[1] = healthy(1, 3).followers[1];
    let mut from_here = seen_of(statuses);
    from_here.push(silent(3));
    finds("from here", &from_here, &[(Info, "unreachable_from_here", &[3])]);

    let mut five = all_of(5);
    unheard(&mut five[0], 5);
    five.truncate(4);
    let mut five = seen_of(five);
    five.push(silent(5));
    finds("one of five", &five, &[(Warning, "member_down", &[5])]);

    let mut learner = all_of(3);
    for status in &mut learner {
        status.members.push(member(4, MemberRole::Learner));
    }
    learner[0].followers.push(KnownFollower { id: 4, ..healthy(1, 3).followers[0] });
    unheard(&mut learner[0], 4);
    let mut learner = seen_of(learner);
    learner.push(silent(4));
    finds("a learner", &learner, &[(Warning, "member_down", &[4])]);
}

/// Without a leader, the finding says which voters respond and what each of them thinks.
#[test]
fn no_leader() {
    let mut alone = healthy(2, 3);
    alone.leader = None;
    let lost = [silent(1), seen(alone.clone()), silent(3)];
    finds(
        "no majority",
        &lost,
        &[(Critical, "no_leader", &[1, 3]), (Warning, "member_down", &[1]), (Warning, "member_down", &[3])],
    );
    let finding = &judge(&lost)[0];
    for part in ["2 of 3 voters", "1 respond", "node 2 responds, and knows no leader in term 7", "log up to 500"] {
        assert!(finding.seen.contains(part), "{part} is not in {}", finding.seen);
    }
    assert!(finding.advice.contains("nodes 1, 3"), "{}", finding.advice);

    let follows = NodeStatus { leader: Some(1), ..healthy(3, 3) };
    let elects = [silent(1), seen(alone), seen(follows)];
    let findings = judge(&elects);
    assert_eq!((findings[0].code, findings[0].nodes.as_slice()), ("no_leader", &[1][..]));
    assert!(findings[0].seen.contains("node 3 responds, and takes node 1 for the leader"), "{}", findings[0].seen);
    assert!(findings[0].advice.contains("not to each other"), "{}", findings[0].advice);

    finds("nothing", &[silent(1), silent(2)], &[(Critical, "no_node_responds", &[])]);
    let not_a_node = Answer::NotANode("404".to_owned());
    let server = Seen { answer: not_a_node, ..silent(1) };
    finds("a web server", &[server], &[(Critical, "no_node_responds", &[])]);
}

/// A follower that is behind has a cause.
#[test]
fn lag() {
    let behind = |silent_ms| KnownFollower { id: 3, lag_entries: Some(9000), lag_ms: Some(8000), silent_ms };
    let full = |status: &mut NodeStatus| status.disk_free_bytes = Some(1 << 20);
    let slow = |status: &mut NodeStatus| status.fsync_p99_us = Some(400_000);
    let nothing = |_: &mut NodeStatus| {};
    type Change<'a> = &'a dyn Fn(&mut NodeStatus);
    let rows: [(Change<'_>, KnownFollower, &str, &[&str]); 5] = [
        (&nothing, behind(Some(50)), "more slowly than", &["member_lags", "no_spare_voter"]),
        (&nothing, behind(Some(9000)), "has not heard from it for 9.0 s", &["member_lags", "no_spare_voter"]),
        (&slow, behind(Some(50)), "its disk is slow", &["member_lags", "no_spare_voter", "slow_disk"]),
        (&full, behind(Some(50)), "too little space", &["disk_low", "member_lags", "no_spare_voter"]),
        (
            &nothing,
            KnownFollower { id: 3, silent_ms: Some(50), ..KnownFollower::default() },
            "being sent a snapshot",
            &["member_lags", "no_spare_voter"],
        ),
    ];
    for (change, follower, cause, codes) in rows {
        let mut statuses = all_of(3);
        statuses[0].followers[1] = follower;
        change(&mut statuses[2]);
        let findings = judge(&seen_of(statuses));
        let found: Vec<_> = findings.iter().map(|finding| finding.code).collect();
        assert_eq!(found, codes, "{cause}: {findings:#?}");
        let lag = findings.iter().find(|finding| finding.code == "member_lags").unwrap();
        assert!(lag.seen.contains(cause), "{cause} is not in {}", lag.seen);
        assert_eq!((lag.severity, lag.nodes.as_slice()), (Warning, &[3][..]));
    }
}

/// Figures on both sides of their limits.
#[test]
fn limits() {
    type Change = fn(&mut NodeStatus);
    type Found = Option<(Severity, &'static str)>;
    let rows: [(&str, Change, Found); 16] = [
        ("a sync below a heartbeat", |it| it.fsync_p99_us = Some(99_999), None),
        ("a sync of a heartbeat", |it| it.fsync_p99_us = Some(100_000), Some((Warning, "slow_disk"))),
        ("a sync below an election", |it| it.fsync_p99_us = Some(999_999), Some((Warning, "slow_disk"))),
        ("a sync of an election", |it| it.fsync_p99_us = Some(1_000_000), Some((Critical, "slow_disk"))),
        ("no sync", |it| it.fsync_p99_us = None, None),
        ("space", |it| it.disk_free_bytes = Some(256 << 20), None),
        ("little space", |it| it.disk_free_bytes = Some((256 << 20) - 1), Some((Warning, "disk_low"))),
        ("hardly any space", |it| it.disk_free_bytes = Some(128 << 20), Some((Warning, "disk_low"))),
        ("too little space", |it| it.disk_free_bytes = Some((128 << 20) - 1), Some((Critical, "disk_low"))),
        ("unknown space", |it| it.disk_free_bytes = None, None),
        ("a part of the quota", |it| it.quota_used_bytes = Some(799 << 20), None),
        ("most of the quota", |it| it.quota_used_bytes = Some(801 << 20), Some((Warning, "quota_low"))),
        ("an unknown quota", |it| it.quota_bytes = None, None),
        ("a former leader's rejection", |it| it.quota_rejected_ms_ago = Some(5), None),
        ("the next version", |it| it.version = Some("0.2.0".to_owned()), Some((Info, "versions_apart"))),
        ("a later version", |it| it.version = Some("0.3.0-rc.1".to_owned()), Some((Warning, "versions_apart"))),
    ];
    for (what, change, expected) in rows {
        let mut statuses = all_of(3);
        change(&mut statuses[1]);
        let findings = judge(&seen_of(statuses));
        let found: Vec<_> = findings.iter().map(|finding| (finding.severity, finding.code)).collect();
        assert_eq!(found, Vec::from_iter(expected), "{what}: {findings:?}");
    }
    for (offset_ms, uncertain_ms, is_apart) in
        [(1005, 2, false), (1010, 2, true), (-1010, 2, true), (2000, 1500, false), (i64::MIN, i64::MAX, false)]
    {
        let mut clocks = seen_of(all_of(3));
        clocks[1].clock = Some(Clock { offset_ms, uncertain_ms });
        let expected: Expected<'_> = match offset_ms {
            _ if !is_apart => &[],
            1.. => &[(Warning, "clocks_apart", &[1, 2])],
            _ => &[(Warning, "clocks_apart", &[2, 1])],
        };
        let found = judge(&clocks);
        let mut nodes: Vec<_> = found.iter().map(|it| (it.severity, it.code, it.nodes.clone())).collect();
        // Nodes 1 and 3 have the same clock.
        for (.., nodes) in &mut nodes {
            nodes.iter_mut().filter(|id| **id == 3).for_each(|id| *id = 1);
        }
        let expected: Vec<_> = expected.iter().map(|it| (it.0, it.1, it.2.to_vec())).collect();
        assert_eq!(nodes, expected, "{offset_ms} ± {uncertain_ms} ms");
    }
}

/// Certificates that expire soon or have expired, by the clock of their node, and files that a node does not use.
#[test]
fn certificates() {
    const DAY_S: i64 = 24 * 60 * 60;
    let expected: [(i64, Option<Severity>); 5] =
        [(31, None), (30, None), (29, Some(Warning)), (0, Some(Warning)), (-1, Some(Critical))];
    for (days, severity) in expected {
        let mut nodes = all_of(3);
        nodes[1].clock_ms = Some(1_700_000_000_000);
        nodes[1].certificate_expires_s = Some(1_700_000_000 + days * DAY_S);
        let found: Vec<_> =
            severity.map(|severity| (severity, "certificate_expires", &[2_u64][..])).into_iter().collect();
        finds(&format!("{days} days"), &seen_of(nodes), &found);
    }
    let mut nodes = all_of(3);
    nodes[2].tls_files_rejected = Some("`a.pem`: it is not valid PEM".to_owned());
    finds("rejected files", &seen_of(nodes), &[(Warning, "tls_files_rejected", &[3])]);
}

/// Nodes that are not what the membership says, or what they believe to be.
#[test]
fn identities() {
    // Removed while it was down, and while it ran.
    let mut removed = all_of(3);
    removed.push(NodeStatus { leader: None, ..healthy(4, 4) });
    finds("removed unknowingly", &seen_of(removed.clone()), &[(Warning, "not_a_member", &[4])]);
    removed[3].is_member = false;
    finds("removed knowingly", &seen_of(removed), &[(Info, "removed_node", &[4])]);

    // It does not know yet that it is a member.
    let mut unaware = all_of(3);
    unaware[2].is_member = false;
    finds("unaware", &seen_of(unaware), &[(Warning, "member_unaware", &[3])]);

    // Its directory was lost.
    let mut wiped = all_of(3);
    unheard(&mut wiped[0], 3);
    wiped[2] = NodeStatus { cluster_id: None, is_member: false, leader: None, ..healthy(3, 0) };
    wiped[2].incarnation = 999;
    let findings = judge(&seen_of(wiped));
    let found: Vec<_> = findings.iter().map(|finding| (finding.code, finding.nodes.as_slice())).collect();
    assert_eq!(found, [("member_unaware", &[3][..]), ("no_spare_voter", &[3])], "{findings:#?}");
    assert!(findings[0].seen.contains("another data directory"), "{}", findings[0].seen);

    // It runs at another address.
    let mut moved = all_of(3);
    unheard(&mut moved[0], 3);
    moved[2].address = Some("10.0.0.9:21001".to_owned());
    let mut moved = seen_of(moved);
    moved[2].address = "10.0.0.9:21001".to_owned();
    moved.push(silent(3));
    let findings = judge(&moved);
    let finding = findings.iter().find(|finding| finding.code == "moved").unwrap();
    assert!(finding.seen.contains("10.0.0.9:21001") && finding.seen.contains("10.0.0.3:21001"), "{}", finding.seen);
    assert!(!findings.iter().any(|finding| finding.code == "member_down"), "{findings:#?}");

    // Another node has its address.
    let mut other = all_of(3);
    other.truncate(2);
    let mut other = seen_of(other);
    other
        .push(Seen { address: address(3), ..seen(NodeStatus { cluster_id: None, is_member: false, ..healthy(8, 0) }) });
    finds("another node", &other, &[(Warning, "wrong_node", &[3, 8])]);

    // A node that was never in a cluster, and an endpoint that is down.
    let mut alone = seen_of(all_of(3));
    alone.push(seen(NodeStatus { cluster_id: None, is_member: false, leader: None, ..healthy(8, 0) }));
    alone.push(silent(9));
    finds("beside the cluster", &alone, &[(Info, "endpoint_down", &[]), (Info, "no_cluster", &[8])]);
}

/// Two clusters are found, and each of them is judged.
#[test]
fn two_clusters() {
    let mut both = seen_of(all_of(3));
    let second = |node| NodeStatus { cluster_id: Some("00000000000000bb".to_owned()), ..healthy(node, 1) };
    both.push(Seen { address: "10.1.0.1:21001".to_owned(), ..seen(second(1)) });
    let findings = judge(&both);
    assert_eq!((findings[0].severity, findings[0].code), (Critical, "two_clusters"));
    for part in ["00000000000000aa", "00000000000000bb", "10.1.0.1:21001"] {
        assert!(findings[0].seen.contains(part), "{part} is not in {}", findings[0].seen);
    }
}

/// Nodes that see another leader, or do not reach each other.
#[test]
fn views() {
    let mut old = all_of(3);
    old[2].leader = Some(2);
    old[2].term = 6;
    finds("a former leader", &seen_of(old), &[(Warning, "leader_disputed", &[3])]);
    let mut deposed = all_of(3);
    deposed[1] = NodeStatus { leader: Some(2), term: 6, ..healthy(2, 3) };
    let findings = judge(&seen_of(deposed));
    assert!(findings[0].seen.contains("believes that it leads in term 6"), "{findings:?}");

    let row = |id: u64, reachable| ClusterMember {
        id,
        role: MemberRole::Voter,
        address: address(id),
        format_level: None,
        version: None,
        reachable,
        applied_index: None,
        lag_entries: None,
        lag_ms: None,
        snapshot_index: None,
        snapshot_age_ms: None,
        disk_used_bytes: None,
        disk_free_bytes: None,
        quota_used_bytes: None,
        quota_bytes: None,
        fsync_p99_us: None,
        clock_offset_ms: None,
    };
    let view = |reached: [bool; 3]| ClusterAnswer {
        cluster_id: None,
        leader: None,
        term: 7,
        format_level: None,
        members: [row(1, reached[0]), row(2, reached[1]), row(3, reached[2])].into(),
        partial: None,
    };
    let mut cut = seen_of(all_of(3));
    cut[0].view = Some(view([true, true, true]));
    cut[1].view = Some(view([true, true, false]));
    finds("one link is cut", &cut, &[(Warning, "cut_off", &[2, 3])]);
}

/// Nodes of older versions, which say little, are not taken for faulty ones.
#[test]
fn older_versions() {
    let older = |node| NodeStatus {
        node,
        cluster_id: healthy(node, 3).cluster_id,
        term: 7,
        leader: Some(LEADER),
        members: (1..=3).map(|id| KnownMember { incarnation: 0, ..member(id, MemberRole::Voter) }).collect(),
        followers: if node == LEADER {
            (2..=3).map(|id| KnownFollower { id, lag_entries: Some(3), ..KnownFollower::default() }).collect()
        } else {
            Vec::new()
        },
        ..NodeStatus::default()
    };
    finds("all", &seen_of((1..=3).map(older).collect()), &[]);
    let mixed = seen_of(vec![healthy(1, 3), older(2), older(3)]);
    finds("two of three", &mixed, &[(Info, "versions_apart", &[])]);
    let mixed = seen_of(vec![older(1), healthy(2, 3), healthy(3, 3)]);
    let findings = judge(&mixed);
    assert!(findings.iter().all(|finding| finding.severity == Info), "{findings:#?}");
}
