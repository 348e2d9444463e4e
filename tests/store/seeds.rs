//! The binary seeds of the fuzzer: what nodes write to disk and send each other.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::storage::RaftLogStorage;
use raft_key_value::clock::Reading;
use raft_key_value::error::{ApiError, Details};
use raft_key_value::level::Level;
use raft_key_value::network::peer::{Envelope, PeerIdentity};
use raft_key_value::network::rpc_check::SnapshotHead;
use raft_key_value::store::Identity;
use raft_key_value::store::clock_file::ClockFile;
use raft_key_value::store::identity::IdentityFile;
use raft_key_value::types::{Command, Entry, Payload};
use raft_key_value::{ExampleStateMachine, TypeConfig};
use serde::Serialize;

use crate::support::*;

/// Where the seeds are in the repository.
const SEEDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/fuzz/seeds");
/// Writes the files instead of comparing them.
const WRITE_THEM: &str = "RKV_WRITE_SEEDS";

type Seeds = BTreeMap<String, Vec<u8>>;

/// The fuzzer starts from files and messages that this program writes.
///
/// Method: make the seeds again and compare them with the files. (Seeds that are text, such as requests, are written by
/// hand and are not checked here.)
#[test]
fn seeds_are_what_is_written() {
    let mut seeds = Seeds::new();
    former_format(&mut seeds);
    clock(&mut seeds);
    identities(&mut seeds);
    entries(&mut seeds);
    logs(&mut seeds);
    snapshots(&mut seeds);
    messages(&mut seeds);
    answers(&mut seeds);
    for (name, bytes) in seeds {
        let path = Path::new(SEEDS).join(name);
        if std::env::var_os(WRITE_THEM).is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, bytes).unwrap();
            continue;
        }
        let is_same = fs::read(&path).is_ok_and(|found| found == bytes);
        let again = format!("{WRITE_THEM}=1 cargo test --test store seeds");
        assert!(is_same, "`{}` is not what is written now; write it anew with: {again}", path.display());
    }
}

fn former_format(seeds: &mut Seeds) {
    let node = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compat/format-1/node-1");
    seeds.insert("identity/format-1".to_owned(), fs::read(node.join("IDENTITY")).unwrap());
    seeds.insert("snapshot/format-1".to_owned(), fs::read(node.join("snapshots/59.snap")).unwrap());
    let log = fs::read(node.join("log/r-00_000_000_000_000_000_000.wal")).unwrap();
    seeds.insert("log_file/format-1".to_owned(), log);
}

fn clock(seeds: &mut Seeds) {
    let directory = scratch();
    let reading = Reading { log_ms: 1_764_230_000_000, wall_ms: 1_764_230_000_012 };
    ClockFile::open(directory.path()).unwrap().record(reading).unwrap();
    seeds.insert("clock/recorded".to_owned(), fs::read(directory.path().join("CLOCK")).unwrap());
}

fn identities(seeds: &mut Seeds) {
    for (name, cluster_id) in [("new", None), ("member", Some(CLUSTER))] {
        let directory = scratch();
        let file = IdentityFile::in_directory(directory.path());
        file.write(&Identity { cluster_id, node_id: NODE, incarnation: 0xabc, level: Level::NEWEST }).unwrap();
        seeds.insert(format!("identity/{name}"), fs::read(file.path()).unwrap());
    }
}

/// Writes of all kinds, so that each part of the state is used.
fn all_writes() -> Vec<Entry> {
    (0..3 * KINDS).map(|index| varied(1, index)).collect()
}

fn entries(seeds: &mut Seeds) {
    let former = Payload::Normal(Command::Set { key: "foo".into(), value: "bar".into() });
    let payloads = all_writes().into_iter().map(|entry| entry.payload);
    let payloads = [Payload::Blank, former, membership(1, 0, &[1, 2, 3]).payload].into_iter().chain(payloads);
    let values: Vec<Vec<u8>> = payloads.map(|payload| rmp_serde::to_vec_named(&payload).unwrap()).collect();
    for (number, value) in values.iter().take(3 + KINDS as usize).enumerate() {
        seeds.insert(format!("log_entries/{number}"), value.clone());
    }
    seeds.insert("log_entries/all".to_owned(), values.concat());
    seeds.insert("log_entries/vote".to_owned(), b"V\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x02\x01".to_vec());
    let log_id = b"L\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\x01\x02";
    seeds.insert("log_entries/log-id".to_owned(), log_id.to_vec());
}

fn logs(seeds: &mut Seeds) {
    let directory = scratch();
    let store = open(directory.path());
    let mut log = store.log.clone();
    let mut note = |name: &str| {
        run(store.log.flush()).unwrap();
        let [file] = log_files(directory.path()).try_into().unwrap();
        seeds.insert(format!("log_file/{name}"), fs::read(file).unwrap());
    };
    note("new");
    run(log.save_vote(&vote(1, false))).unwrap();
    run(append(&store, [membership(1, 0, &[1, 2, 3])]));
    run(log.save_vote(&vote(1, true))).unwrap();
    run(append(&store, [blank(1, 1)].into_iter().chain((2..2 + KINDS).map(|index| varied(1, index)))));
    run(log.save_committed(Some(log_id(1, 4)))).unwrap();
    note("entries");
    run(log.truncate_after(Some(log_id(1, 7)))).unwrap();
    run(log.save_vote(&vote(2, true))).unwrap();
    run(append(&store, [blank(2, 8), set(2, 9, "foo", "bar")]));
    note("truncated");
    run(log.purge(log_id(1, 4))).unwrap();
    run(append(&store, [set(2, 10, "foo", "baz")]));
    note("purged");
    let mut torn = seeds["log_file/entries"].clone();
    torn.truncate(torn.len() - 5);
    seeds.insert("log_file/torn".to_owned(), torn);
}

fn snapshots(seeds: &mut Seeds) {
    let states = [("empty", 0), ("some", 5), ("all", 3 * KINDS as usize)];
    for (name, entries) in states {
        let mut machine = ExampleStateMachine::default();
        [membership(1, 0, &[1, 2, 3])].into_iter().chain(all_writes()).take(entries).for_each(|entry| {
            machine.apply(entry);
        });
        let directory = scratch();
        let path = directory.path().join("snapshot");
        let meta = raft_key_value::store::snapshot::format::meta_of(&machine);
        let mut file = fs::File::create(&path).unwrap();
        raft_key_value::store::snapshot::format::write(&machine, &meta, &mut file).unwrap();
        seeds.insert(format!("snapshot/{name}"), fs::read(&path).unwrap());
    }
}

/// A letter for the kind of the message, and the message.
fn message(letter: u8, value: &impl Serialize) -> Vec<u8> {
    [&[letter], rmp_serde::to_vec_named(value).unwrap().as_slice()].concat()
}

fn enveloped<T: Serialize>(letter: u8, rpc: T) -> Vec<u8> {
    message(letter, &Envelope { cluster_id: CLUSTER, from: NODE, to: 2, to_incarnation: 14, rpc })
}

fn messages(seeds: &mut Seeds) {
    type Append = AppendEntriesRequest<TypeConfig>;
    let heartbeat =
        Append { vote: vote(1, true), prev_log_id: Some(log_id(1, 1)), entries: vec![], leader_commit: None };
    let entries = (2..2 + KINDS).map(|index| varied(1, index)).collect();
    let append = Append { entries, leader_commit: Some(log_id(1, 2)), ..heartbeat.clone() };
    let entries = vec![membership(1, 0, &[1, 2, 3]), blank(1, 1)];
    let first = Append { prev_log_id: None, entries, ..heartbeat.clone() };
    let ask = VoteRequest::<TypeConfig>::new(vote(2, false), Some(log_id(1, 9)));
    let transfer = TransferLeaderRequest::<TypeConfig>::new(vote(2, true), 2, Some(log_id(1, 9)));
    let mut machine = ExampleStateMachine::default();
    machine.apply(membership(1, 0, &[1, 2, 3]));
    let meta = raft_key_value::store::snapshot::format::meta_of(&machine);
    let head = SnapshotHead { vote: vote(1, true), meta };
    for (name, bytes) in [
        ("heartbeat", enveloped(b'a', heartbeat)),
        ("append", enveloped(b'a', append)),
        ("append-first", enveloped(b'a', first)),
        ("vote", enveloped(b'v', ask)),
        ("transfer", enveloped(b't', transfer)),
        ("snapshot", enveloped(b's', head)),
        ("read-index", enveloped(b'r', ())),
    ] {
        seeds.insert(format!("rpc/{name}"), bytes);
    }
}

fn answers(seeds: &mut Seeds) {
    type Append = AppendEntriesResponse<TypeConfig>;
    let vote_answer = VoteResponse::<TypeConfig>::new(vote(2, false), Some(log_id(1, 9)), true);
    let transferred: TransferLeaderResponse<TypeConfig> = Ok(());
    let identity = PeerIdentity { node_id: 2, cluster_id: Some(CLUSTER), incarnation: 14, former_cluster_id: None };
    let refusal: Result<(), _> = Err(ApiError::WrongNode(Details::not_applied("this is node 3")));
    let json = |letter: u8, text: String| [&[letter], text.as_bytes()].concat();
    for (name, bytes) in [
        ("append-done", message(b'A', &Append::Success)),
        ("append-part", message(b'A', &Append::PartialSuccess(Some(log_id(1, 3))))),
        ("append-conflict", message(b'A', &Append::Conflict)),
        ("append-outdated", message(b'A', &Append::HigherVote(vote(2, true)))),
        ("vote-answer", message(b'V', &vote_answer)),
        ("snapshot-answer", message(b'S', &SnapshotResponse::<TypeConfig>::new(vote(1, true)))),
        ("transfer-answer", message(b'T', &transferred)),
        ("read-index-answer", message(b'R', &log_id(1, 9))),
        ("identity", json(b'I', format!(r#"{{"Ok":{}}}"#, serde_json::to_string(&identity).unwrap()))),
        ("refusal", json(b'E', serde_json::to_string(&refusal).unwrap())),
    ] {
        seeds.insert(format!("rpc/{name}"), bytes);
    }
}
