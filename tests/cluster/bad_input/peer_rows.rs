//! The routes between nodes.

use std::collections::BTreeMap;
use std::fs;

use openraft::Membership;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use openraft::vote::RaftLeaderId;
use raft_key_value::network::founding::Step;
use raft_key_value::network::peer::PeerIdentity;
use raft_key_value::network::rpc_check::SnapshotHead;
use raft_key_value::store::ClusterId;
use raft_key_value::types::{Command, Entry, LogId, Payload, SnapshotMeta, StoredMembership, Vote};
use raft_key_value::{ExampleNode, TypeConfig};
use serde::Serialize;
use serde_json::json;

use super::{MARKER, Row};
use crate::harness::{TestCluster, envelope, envelope_header, framed, identity_of, index_of};

type Append = AppendEntriesRequest<TypeConfig>;

/// The routes for RPCs, except `GET /raft-identity`.
pub const ROUTES: &[&str] = &[
    "/raft-append",
    "/raft-vote",
    "/raft-pre-vote",
    "/raft-snapshot",
    "/raft-transfer-leader",
    "/raft-read-index",
    "/raft-found",
];
/// The longest body that `/raft-found` accepts, in bytes.
const FOUND_BYTES_MAX: usize = 64 << 10;

/// What a forger needs to know; any client can ask a node for it.
struct Forger {
    /// The node that receives the RPCs.
    to: PeerIdentity,
    /// The node that they claim to be from.
    from: u64,
    cluster_id: ClusterId,
    /// The term of the cluster.
    term: u64,
    /// The last index that the receiver knows to be committed.
    committed: u64,
    /// Whether the sender is the receiver's leader.
    is_leader: bool,
}

pub async fn rows(cluster: &TestCluster, leader: u64, target: u64) -> Vec<Row> {
    let to = identity_of(cluster, target).await;
    // A follower receives RPCs in its leader's name, and the leader in the name of another node that claims to lead.
    let from = if target == leader { 1 + leader % 3 } else { leader };
    let term = cluster.metrics(leader).await.current_term;
    let committed = index_of(cluster.metrics(target).await.local_committed);
    let forger = Forger { to, from, cluster_id: to.cluster_id.unwrap(), term, committed, is_leader: from == leader };
    let snapshot = cluster.node(target).files().into_iter().rfind(|path| path.extension().is_some_and(|e| e == "snap"));
    let snapshot = fs::read(snapshot.unwrap()).unwrap();
    let mut rows = unreadable(&forger);
    rows.extend(misdirected(&forger));
    rows.extend(forged_appends(&forger));
    rows.extend(forged_votes(&forger));
    rows.extend(forged_transfers(&forger));
    rows.extend(mislabeled(&forger));
    rows.extend(oversized(&forger));
    rows.extend(forged_snapshots(&forger, &snapshot));
    rows
}

impl Forger {
    fn envelope(&self, rpc: impl Serialize) -> Vec<u8> {
        envelope(self.from, &self.to, self.cluster_id, rpc)
    }

    /// The body for a route with this envelope.
    fn framed(path: &str, envelope: Vec<u8>) -> Vec<u8> {
        if path == "/raft-snapshot" { framed(envelope, &[]) } else { envelope }
    }

    fn vote(&self, node_id: u64, committed: bool) -> Vote {
        Vote { leader_id: RaftLeaderId::new(self.term, node_id), committed }
    }

    fn vote_in(&self, term: u64, committed: bool) -> Vote {
        Vote { leader_id: RaftLeaderId::new(term, self.from), committed }
    }

    /// The node that is neither sender nor receiver.
    fn third_node(&self) -> u64 {
        6 - self.from - self.to.node_id
    }

    fn log_id(&self, term: u64, index: u64) -> LogId {
        LogId::new(RaftLeaderId::new(term, self.from), index)
    }

    fn append(&self) -> Append {
        Append { vote: self.vote(self.from, true), prev_log_id: None, entries: Vec::new(), leader_commit: None }
    }
}

fn unreadable(forger: &Forger) -> Vec<Row> {
    let valid = forger.envelope(forger.append());
    let bodies: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("zeros", vec![0; 100]),
        ("garbage", (0..=255).cycle().skip(7).take(10_000).map(|byte: u8| byte.wrapping_mul(31)).collect()),
        ("text", MARKER.into()),
        ("JSON", json!({"cluster_id": 1, "from": 1, "to": 1, "to_incarnation": 1, "rpc": MARKER}).to_string().into()),
        ("a number", vec![42]),
        ("a list", rmp_serde::to_vec(&[1, 2, 3]).unwrap()),
        ("no fields", rmp_serde::to_vec_named(&json!({})).unwrap()),
        ("a body for another route", forger.envelope(json!({"rpc": MARKER}))),
        ("a list of a claimed 4 billion items", b"\xdd\xff\xff\xff\xff".to_vec()),
        ("a claimed 4 billion bytes", b"\xc6\xff\xff\xff\xff".to_vec()),
        ("a claimed 4 billion fields", b"\xdf\xff\xff\xff\xff".to_vec()),
        ("100,000 nested lists", vec![0x91; 100_000]),
        ("100,000 nested lists in an unknown field", [b"\x81\xa1x".to_vec(), vec![0x91; 100_000]].concat()),
    ];
    let mut rows = Vec::new();
    for path in ROUTES {
        for (what, body) in &bodies {
            // For the route that takes no body, everything after the envelope is valid.
            if *path == "/raft-read-index" && *what == "a body of another kind" {
                continue;
            }
            if *path == "/raft-found" && body.len() > FOUND_BYTES_MAX {
                rows.push(Row::post(path, what, body.clone()).gives_too_large("request_too_large"));
                continue;
            }
            rows.push(Row::post(path, what, Forger::framed(path, body.clone())).gives_bad_request("invalid_rpc"));
        }
    }
    for length in [1, 10, valid.len() / 2, valid.len() - 1] {
        let what = format!("the first {length} bytes of an append");
        rows.push(Row::post("/raft-append", &what, valid[..length].to_vec()).gives_bad_request("invalid_rpc"));
    }
    rows
}

/// Envelopes for another node, from another cluster, or for another incarnation.
fn misdirected(forger: &Forger) -> Vec<Row> {
    let to = forger.to;
    let other_cluster = ClusterId(forger.cluster_id.0 ^ 1);
    let cases = [
        ("for another node", forger.from, PeerIdentity { node_id: 77, ..to }, forger.cluster_id),
        (
            "for another incarnation of the node",
            forger.from,
            PeerIdentity { incarnation: to.incarnation ^ 1, ..to },
            forger.cluster_id,
        ),
        ("for an unknown incarnation", forger.from, PeerIdentity { incarnation: 0, ..to }, forger.cluster_id),
        ("from another cluster", forger.from, to, other_cluster),
        ("from the node itself", to.node_id, to, forger.cluster_id),
    ];
    let mut rows = Vec::new();
    for (what, from, to, cluster_id) in cases {
        let vote = VoteRequest::<TypeConfig>::new(forger.vote(from, false), None);
        let transfer = TransferLeaderRequest::<TypeConfig>::new(forger.vote(from, true), forger.to.node_id, None);
        let head = SnapshotHead { vote: forger.vote(from, true), meta: SnapshotMeta::default() };
        let messages = [
            (
                "/raft-append",
                envelope(from, &to, cluster_id, Append { vote: forger.vote(from, true), ..forger.append() }),
            ),
            ("/raft-vote", envelope(from, &to, cluster_id, &vote)),
            ("/raft-pre-vote", envelope(from, &to, cluster_id, &vote)),
            ("/raft-transfer-leader", envelope(from, &to, cluster_id, &transfer)),
            ("/raft-read-index", envelope(from, &to, cluster_id, ())),
            ("/raft-found", envelope(from, &to, cluster_id, Step::Reserve)),
            ("/raft-found", envelope(from, &to, cluster_id, Step::Release)),
            ("/raft-snapshot", envelope(from, &to, cluster_id, &head)),
        ];
        for (path, message) in messages {
            rows.push(Row::post(path, what, Forger::framed(path, message)).gives(421, "WrongNode"));
        }
    }
    rows
}

fn forged_appends(forger: &Forger) -> Vec<Row> {
    let entry = |term, index| Entry {
        log_id: forger.log_id(term, index),
        payload: Payload::Normal(Command::Set { key: "known".into(), value: MARKER.into() }),
    };
    let (term, previous) = (forger.term, Some(forger.log_id(forger.term, 1)));
    let other = forger.third_node();
    let cases: Vec<(&str, Append)> = vec![
        ("a vote for another leader", Append { vote: forger.vote(other, true), ..forger.append() }),
        ("a vote that no quorum granted", Append { vote: forger.vote(forger.from, false), ..forger.append() }),
        (
            "a gap before the first entry",
            Append { prev_log_id: previous, entries: vec![entry(term, 3)], ..forger.append() },
        ),
        ("a gap from the start", Append { entries: vec![entry(term, 1)], ..forger.append() }),
        (
            "a gap between entries",
            Append { prev_log_id: previous, entries: vec![entry(term, 2), entry(term, 4)], ..forger.append() },
        ),
        (
            "an entry twice",
            Append { prev_log_id: previous, entries: vec![entry(term, 2), entry(term, 2)], ..forger.append() },
        ),
        (
            "entries backwards",
            Append { prev_log_id: previous, entries: vec![entry(term, 2), entry(term, 1)], ..forger.append() },
        ),
        ("terms backwards", Append { prev_log_id: previous, entries: vec![entry(term - 1, 2)], ..forger.append() }),
        (
            "an entry newer than its leader",
            Append { prev_log_id: previous, entries: vec![entry(term + 1, 2)], ..forger.append() },
        ),
        (
            "an entry after the last possible index",
            Append {
                prev_log_id: Some(forger.log_id(term, u64::MAX)),
                entries: vec![entry(term, 0)],
                ..forger.append()
            },
        ),
    ];
    let row = |what: &str, append| Row::post("/raft-append", what, forger.envelope(append));
    let mut rows: Vec<Row> =
        cases.into_iter().map(|(what, append)| row(what, append).gives_bad_request("invalid_rpc")).collect();
    rows.extend(impossible_appends(forger).map(|(what, append)| row(what, append).gives_bad_request("invalid_rpc")));
    rows.extend(contradicting_appends(forger).map(|(what, append)| row(what, append).gives(409, "Conflict")));
    rows
}

fn far_terms(forger: &Forger) -> [(&'static str, u64); 3] {
    [
        ("the last possible term", u64::MAX),
        ("a term 2^33 ahead", forger.term + (1 << 33)),
        ("a term that is one too far ahead", forger.term + (1 << 32) + 1),
    ]
}

/// Appends with numbers that no cluster can reach, or with an impossible membership.
fn impossible_appends(forger: &Forger) -> impl Iterator<Item = (&'static str, Append)> {
    let far =
        far_terms(forger).map(|(what, term)| (what, Append { vote: forger.vote_in(term, true), ..forger.append() }));
    let at_end = Some(forger.log_id(forger.term, u64::MAX));
    let newer = Some(forger.log_id(forger.term + 1, 1));
    let previous = Some(forger.log_id(forger.term, 1));
    let without_voters = Payload::Membership(Membership::new_with_defaults(Vec::new(), [1, 2, 3]));
    let without_addresses = Payload::Membership(Membership::new_with_defaults(vec![[1, 2].into()], []));
    let membership = |payload| Append {
        prev_log_id: previous,
        entries: vec![Entry { log_id: forger.log_id(forger.term, 2), payload }],
        ..forger.append()
    };
    far.into_iter().chain([
        ("a commit at the last possible index", Append { leader_commit: at_end, ..forger.append() }),
        ("a previous entry at the last possible index", Append { prev_log_id: at_end, ..forger.append() }),
        ("a commit newer than its leader", Append { leader_commit: newer, ..forger.append() }),
        ("a membership without voters", membership(without_voters)),
        ("a membership without addresses", membership(without_addresses)),
    ])
}

/// Appends of a later leader that would change committed entries.
fn contradicting_appends(forger: &Forger) -> impl Iterator<Item = (&'static str, Append)> {
    let later = forger.term + 1;
    let entry = |index| Entry { log_id: forger.log_id(later, index), payload: Payload::Blank };
    let at_committed = Some(forger.log_id(later, forger.committed));
    let append = Append { vote: forger.vote_in(later, true), ..forger.append() };
    let with_first = Append { entries: vec![entry(0), entry(1)], ..forger.append() };
    [
        ("another entry where one is committed", Append { prev_log_id: at_committed, ..append.clone() }),
        ("another commit where one is known", Append { leader_commit: at_committed, ..append.clone() }),
        ("the log again from the start", Append { vote: append.vote, ..with_first }),
    ]
    .into_iter()
}

fn forged_votes(forger: &Forger) -> Vec<Row> {
    let other = forger.third_node();
    let mut rows = Vec::new();
    for path in ["/raft-vote", "/raft-pre-vote"] {
        for (what, vote) in [
            ("a vote for another candidate", forger.vote(other, false)),
            ("a vote for the node itself", forger.vote(forger.to.node_id, false)),
            ("a vote that a quorum granted", forger.vote(forger.from, true)),
        ] {
            let request = VoteRequest::<TypeConfig>::new(vote, Some(forger.log_id(u64::MAX, u64::MAX)));
            rows.push(Row::post(path, what, forger.envelope(request)).gives_bad_request("invalid_rpc"));
        }
        let far = far_terms(forger).map(|(what, term)| (what, VoteRequest::new(forger.vote_in(term, false), None)));
        let next = forger.vote_in(forger.term + 1, false);
        let of_own_term = forger.log_id(forger.term + 1, 9);
        let impossible = [
            ("a log that is as new as its candidate", VoteRequest::new(next, Some(of_own_term))),
            ("the longest possible log", VoteRequest::new(next, Some(forger.log_id(forger.term, u64::MAX)))),
        ];
        for (what, request) in far.into_iter().chain(impossible) {
            let request = VoteRequest::<TypeConfig> { leadership_transfer: true, ..request };
            rows.push(Row::post(path, what, forger.envelope(request)).gives_bad_request("invalid_rpc"));
        }
        // A leader's lease does not protect against these, since they claim a leadership transfer by the leader.
        let stranger = VoteRequest::<TypeConfig> {
            leadership_transfer: true,
            ..VoteRequest::new(Vote { leader_id: RaftLeaderId::new(forger.term + 1, 99), committed: false }, None)
        };
        let body = envelope(99, &forger.to, forger.cluster_id, stranger);
        rows.push(Row::post(path, "from a stranger", body).gives(409, "Conflict"));
    }
    let vote = Vote { leader_id: RaftLeaderId::new(forger.term + 1, 99), committed: true };
    let body = envelope(99, &forger.to, forger.cluster_id, Append { vote, ..forger.append() });
    rows.push(Row::post("/raft-append", "from a stranger", body).gives(409, "Conflict"));
    rows
}

/// Leadership transfers by a node other than the leader, or in another term than the current one.
fn forged_transfers(forger: &Forger) -> Vec<Row> {
    let path = "/raft-transfer-leader";
    let other = forger.third_node();
    let row = |what: &str, from, vote| {
        let transfer = TransferLeaderRequest::<TypeConfig>::new(vote, forger.to.node_id, None);
        Row::post(path, what, envelope(from, &forger.to, forger.cluster_id, transfer))
    };
    let (term, from) = (forger.term, forger.from);
    let mut rows = vec![
        row("for another leader", from, forger.vote(other, true)).gives_bad_request("invalid_rpc"),
        row("by a candidate", from, forger.vote(from, false)).gives_bad_request("invalid_rpc"),
        row("in the last possible term", from, forger.vote_in(u64::MAX, true)).gives_bad_request("invalid_rpc"),
        row("in the next term", from, forger.vote_in(term + 1, true)).gives(409, "Conflict"),
        row("in the term before", from, forger.vote_in(term - 1, true)).gives(409, "Conflict"),
        row("by another node", other, forger.vote(other, true)).gives(409, "Conflict"),
    ];
    let stranger = Vote { leader_id: RaftLeaderId::new(term, 99), committed: true };
    rows.push(row("by a stranger", 99, stranger).gives(409, "Conflict"));
    if !forger.is_leader {
        rows.push(row("by a follower to the leader", from, forger.vote(from, true)).gives(409, "Conflict"));
    }
    rows
}

/// Headers that are broken, for another node, or different from the body.
fn mislabeled(forger: &Forger) -> Vec<Row> {
    const HEADER: &str = "raft-envelope";
    let to = forger.to;
    let header = |from, to: &PeerIdentity, cluster_id| envelope_header(from, to, cluster_id);
    let right = header(forger.from, &to, forger.cluster_id);
    let other_cluster = ClusterId(forger.cluster_id.0 ^ 1);
    let other_life = PeerIdentity { incarnation: to.incarnation ^ 1, ..to };
    let misdirected = [
        header(forger.from, &PeerIdentity { node_id: 77, ..to }, forger.cluster_id),
        header(forger.from, &other_life, forger.cluster_id),
        header(forger.from, &to, other_cluster),
        header(to.node_id, &to, forger.cluster_id),
    ];
    let broken = ["", "x", "1/2/3", "/////", "-1/1/1/1", "+1/1/1/1", "1/ 1/1/1", "1/1/1/x", &"9".repeat(1000)];
    let mut rows = Vec::new();
    for path in ROUTES {
        for header in &misdirected {
            // The body is not an RPC, and is not read.
            rows.push(Row::post(path, header, MARKER).header(HEADER, header.clone()).gives(421, "WrongNode"));
        }
        let cluster = Row::post(path, "another cluster", MARKER).header(HEADER, header(0, &other_life, other_cluster));
        rows.push(cluster.gives(421, "WrongNode").naming(&["cluster"]));
        for header in broken {
            let row = Row::post(path, &format!("{header:.20}"), MARKER).header(HEADER, header);
            rows.push(row.gives_bad_request("invalid_rpc"));
        }
        let row = Row::post(path, "a right header", Forger::framed(path, MARKER.into())).header(HEADER, right.clone());
        rows.push(row.gives_bad_request("invalid_rpc"));
    }
    let other = envelope(forger.third_node(), &to, forger.cluster_id, ());
    let row = Row::post("/raft-read-index", "a header of another sender", other).header(HEADER, right);
    rows.push(row.gives_bad_request("invalid_rpc"));
    rows
}

/// RPCs that are too large.
fn oversized(forger: &Forger) -> Vec<Row> {
    let small = ["/raft-vote", "/raft-pre-vote", "/raft-transfer-leader", "/raft-read-index"];
    let bytes = |length| vec![0; length];
    let mut rows = Vec::new();
    for path in small {
        rows.push(Row::post(path, "128 KiB and a byte", bytes((128 << 10) + 1)).gives_too_large("request_too_large"));
        let chunks = vec![bytes(32 << 10); 5];
        rows.push(Row::post_chunked(path, "160 KiB in parts", chunks).gives_too_large("request_too_large"));
    }
    rows.push(Row::post("/raft-append", "48 MiB", bytes(48 << 20)).gives_too_large("request_too_large"));
    let entry = |index| Entry { log_id: forger.log_id(forger.term, index), payload: Payload::Blank };
    let many = Append { entries: (0..4097).map(entry).collect(), ..forger.append() };
    rows.push(Row::post("/raft-append", "4,097 entries", forger.envelope(many)).gives_bad_request("invalid_rpc"));
    let value = "v".repeat((32 << 20) + 1);
    let payload = Payload::Normal(Command::Set { key: "known".into(), value: value.into() });
    let prev_log_id = Some(forger.log_id(forger.term, 1));
    let entries = vec![Entry { log_id: forger.log_id(forger.term, 2), payload }];
    let long = Append { prev_log_id, entries, ..forger.append() };
    rows.push(Row::post("/raft-append", "a long entry", forger.envelope(long)).gives_bad_request("invalid_rpc"));
    rows
}

fn membership_of(voters: &[u64]) -> Membership<u64, ExampleNode> {
    let configs = vec![voters.iter().copied().collect()];
    let nodes = voters.iter().map(|id| (*id, ExampleNode { addr: format!("127.0.0.1:{id}"), incarnation: *id }));
    match voters {
        // `new` rejects this.
        [] => Membership::new_with_defaults(configs, []),
        _ => Membership::new(configs, nodes.collect::<BTreeMap<_, _>>()).unwrap(),
    }
}

fn forged_snapshots(forger: &Forger, snapshot: &[u8]) -> Vec<Row> {
    let path = "/raft-snapshot";
    let other = forger.third_node();
    let vote = forger.vote(forger.from, true);
    let head = |vote, meta| framed(forger.envelope(SnapshotHead { vote, meta }), &[]);
    let valid_head = || head(vote, SnapshotMeta::default());
    let meta = |term, index, voters: &[u64]| SnapshotMeta {
        last_log_id: Some(forger.log_id(term, index)),
        last_membership: StoredMembership::new(Some(forger.log_id(forger.term, 1)), membership_of(voters)),
    };
    let newer = SnapshotMeta { last_log_id: Some(forger.log_id(forger.term + 1, 9)), ..SnapshotMeta::default() };
    let mut flipped = snapshot.to_vec();
    flipped[snapshot.len() / 2] ^= 1;
    let mut bad_footer = snapshot.to_vec();
    *bad_footer.last_mut().unwrap() ^= 1;
    let with_file = |file: &[u8]| [valid_head(), file.to_vec()].concat();
    let cut = snapshot.len() - 1;
    let long = |length: u32| [length.to_be_bytes().as_slice(), MARKER.as_bytes()].concat();

    let mut rows = vec![
        Row::post(path, "a head of 256 KiB and a byte", long((256 << 10) + 1)).gives_too_large("request_too_large"),
        Row::post(path, "a head of 4 GiB", long(u32::MAX)).gives_too_large("request_too_large"),
    ];
    let cases = [
        ("part of a length", vec![0, 0, 0]),
        ("a head shorter than its length", long(1000)),
        ("an empty head", long(0)),
        ("a vote for another leader", head(forger.vote(other, true), SnapshotMeta::default())),
        ("a vote that no quorum granted", head(forger.vote(forger.from, false), SnapshotMeta::default())),
        ("a snapshot newer than its leader", head(vote, newer)),
        ("a membership without voters", head(vote, meta(forger.term, forger.committed + 9, &[]))),
        ("a term 2^33 ahead", head(forger.vote_in(forger.term + (1 << 33), true), SnapshotMeta::default())),
        ("the last possible index", head(vote, meta(forger.term, u64::MAX, &[1, 2, 3]))),
    ];
    rows.extend(cases.into_iter().map(|(what, body)| Row::post(path, what, body).gives_bad_request("invalid_rpc")));
    let later = forger.vote_in(forger.term + 1, true);
    let at_committed = meta(forger.term + 1, forger.committed, &[1, 2, 3]);
    let below = meta(forger.term + 1, forger.committed - 1, &[1, 2, 3]);
    for (what, meta) in [("a later term where an entry is committed", at_committed), ("a later term below", below)] {
        rows.push(Row::post(path, what, head(later, meta)).gives(409, "Conflict"));
    }
    if !forger.is_leader {
        rows.push(Row::post(path, "not from the leader", valid_head()).gives(409, "Conflict"));
        return rows;
    }
    let ahead = meta(forger.term, forger.committed + 1_000_000, &[1, 2, 3]);
    rows.push(Row::post(path, "entries that are not committed", head(vote, ahead)).gives(409, "Conflict"));
    let cases = [
        ("no file", valid_head()),
        ("a file of garbage", with_file(MARKER.repeat(10_000).as_bytes())),
        ("a truncated file", with_file(&snapshot[..cut])),
        ("the first bytes of a file", with_file(&snapshot[..10])),
        ("a file with trailing data", with_file(&[snapshot, b"x"].concat())),
        ("a flipped byte in the file", with_file(&flipped)),
        ("a flipped byte in the checksum", with_file(&bad_footer)),
        ("another snapshot than announced", with_file(snapshot)),
    ];
    rows.extend(cases.into_iter().map(|(what, body)| Row::post(path, what, body).gives_bad_request("invalid_rpc")));
    rows
}
