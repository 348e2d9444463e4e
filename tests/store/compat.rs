//! Data directories that older versions wrote (see `tests/compat/README.md`).

use std::fs;
use std::path::{Path, PathBuf};

use openraft::RaftLogReader;
use raft_key_value::ExampleStateMachine;
use raft_key_value::access::TokenRole;
use raft_key_value::level::Level;
use raft_key_value::store::snapshot::format::{load, meta_of, write};
use raft_key_value::store::state_machine::access::AccessMode;
use raft_key_value::store::{ClusterId, ExampleStore, Identity};
use raft_key_value::types::{Command, Entry, Payload};
use tempfile::TempDir;

use crate::support::*;

const SNAPSHOT: u64 = 59;
const LAST: u64 = 103;

fn copy_of(fixture: &str) -> TempDir {
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compat").join(fixture))
}

fn format_1() -> TempDir {
    copy_of("format-1")
}

fn identity_path(data_dir: &Path) -> PathBuf {
    node_directory(data_dir).join("IDENTITY")
}

/// The format in `IDENTITY`.
fn format_of(data_dir: &Path) -> u64 {
    let line: serde_json::Value = serde_json::from_slice(&fs::read(identity_path(data_dir)).unwrap()).unwrap();
    line["format"].as_u64().unwrap()
}

/// The last value written to a key.
fn expected_value(key: &str) -> String {
    match key {
        "empty" => String::new(),
        "a/b ü" => "last".to_owned(),
        _ => {
            let number: u64 = key.strip_prefix("key-").unwrap().parse().unwrap();
            let last = if number < 20 { number + 80 } else { number + 40 };
            format!("value {last} é")
        }
    }
}

/// Asserts that all keys exist. Keys that were written before revisions existed have the revision 1.
#[track_caller]
fn assert_all(machine: &ExampleStateMachine) {
    let mut keys: Vec<String> = (0..40).map(|number| format!("key-{number}")).collect();
    keys.extend(["empty".to_owned(), "a/b ü".to_owned()]);
    keys.sort();
    assert_eq!(machine.data.keys().map(|key| key.to_string()).collect::<Vec<_>>(), keys);
    for (key, record) in &machine.data {
        assert_eq!(text_of(&record.value), expected_value(key), "{key}");
        let numbers = (record.revision, record.create_revision, record.version, record.expires_at_ms);
        assert_eq!(numbers, (1, 1, 1, 0), "{key}");
    }
    assert_eq!((machine.revision, machine.clock_ms), (1, 0));
    assert_eq!((machine.history.oldest(), machine.history.iter().len()), (2, 0));
    assert_eq!(machine.last_applied.map(|log_id| log_id.index), Some(LAST));
}

/// Opens a directory, checks that it is complete, and closes it.
#[track_caller]
fn assert_opens(data_dir: &Path) -> Identity {
    let store = open(data_dir);
    run(apply_from_log(&store, LAST));
    store.state_machine.read(assert_all);
    store.identity()
}

/// A directory of format 1 opens with all its data, is converted to the current format, and is the same when it is
/// opened again.
///
/// Method: open it three times. Between the last two, take a snapshot, which must have the new format and hold the same
/// data.
#[test]
fn format_1_is_opened() {
    let directory = format_1();
    assert_eq!(format_of(directory.path()), 1);
    let store = open(directory.path());
    assert_eq!(format_of(directory.path()), 3);
    let identity = store.identity();
    assert_eq!(identity.cluster_id.map(|id| id.0), Some(0xed8f_2ccf_b8ca_a0bb));
    assert_eq!((identity.node_id, identity.incarnation), (1, 0x9110_fce2_fa73_157d));
    let applied = store.state_machine.read(|machine| machine.last_applied);
    assert_eq!(applied.map(|log_id| log_id.index), Some(SNAPSHOT), "it begins at the snapshot");
    run(apply_from_log(&store, LAST));
    store.state_machine.read(assert_all);
    drop(store);

    let store = open(directory.path());
    assert_eq!(store.identity(), identity);
    run(apply_from_log(&store, LAST));
    run(build_snapshot(&store));
    let path = snapshot_path(directory.path(), LAST);
    assert_eq!(fs::read(&path).unwrap()[8..12], 2_u32.to_be_bytes());
    let (_, loaded) = load(&path).unwrap();
    store.state_machine.read(|machine| assert!(loaded == *machine, "the snapshot holds something else"));
    drop(store);

    let store = open(directory.path());
    store.state_machine.read(|machine| {
        assert_all(machine);
        assert!(loaded == *machine);
    });
}

/// All entries that the node had applied: those that are still in the log, and before them the original writes, because
/// the log was purged after the snapshot.
fn all_entries(store: &ExampleStore) -> Vec<Entry> {
    let membership = store.state_machine.read(|machine| machine.last_membership.clone());
    let first =
        Entry { log_id: membership.log_id().unwrap(), payload: Payload::Membership(membership.membership().clone()) };
    let set = |index: u64| {
        let number = index - 2;
        let (key, value) = (format!("key-{}", number % 40).into(), format!("value {number} é").into());
        Entry { log_id: log_id(1, index), payload: Payload::Normal(Command::Set { key, value }) }
    };
    let rest = run(store.log.clone().try_get_log_entries(..)).unwrap();
    let before_rest = rest[0].log_id.index;
    assert!((2..=SNAPSHOT + 1).contains(&before_rest), "the log begins at {before_rest}");
    [first, blank(1, 1)].into_iter().chain((2..before_rest).map(set)).chain(rest).collect()
}

/// A node that starts from a snapshot and one that applies the whole log are equal, and stay equal when they apply more
/// writes.
///
/// Method: open the snapshot with the log after it, and apply all entries to an empty state.
#[test]
fn snapshot_and_log_make_the_same_state() {
    let directory = format_1();
    let store = open(directory.path());
    let entries = all_entries(&store);
    assert_eq!(entries.len() as u64, LAST + 1);
    let former = |entry: &&Entry| matches!(&entry.payload, Payload::Normal(Command::Set { .. }));
    assert_eq!(entries.iter().filter(former).count(), 102);
    run(apply_from_log(&store, LAST));
    let mut from_empty = ExampleStateMachine::default();
    entries.into_iter().for_each(|entry| drop(from_empty.apply(entry)));
    assert_all(&from_empty);

    for step in 0..3 {
        let entry = set(1, LAST + 1 + step, ["key-1", "key-2", "new"][step as usize], "new");
        let revision = from_empty.apply(entry.clone()).revision;
        assert_eq!(revision, Some(2 + step));
        run(apply(&store, [entry]));
        store.state_machine.read(|machine| {
            assert!(*machine == from_empty, "after {step} writes more");
            assert_eq!(machine.hash(), from_empty.hash());
        });
    }
    let version = |key| from_empty.get(key).map(|record| (record.create_revision, record.version));
    assert_eq!((version("key-1"), version("new")), (Some((1, 2)), Some((4, 1))));
}

/// If the process is killed at any step while a directory is converted to the current format, the directory can still
/// be opened.
///
/// Method: try the old and the new file, each with every possible remainder of an interrupted write of the new one:
/// none, each part, and all of it.
#[test]
fn crashes_while_the_format_changes() {
    let new_file = {
        let directory = format_1();
        assert_opens(directory.path());
        fs::read(identity_path(directory.path())).unwrap()
    };
    let whole = new_file.len();
    let leftovers = [None, Some(0), Some(1), Some(whole / 2), Some(whole - 1), Some(whole)];
    let mut identities = Vec::new();
    for leftover in leftovers {
        for published in [false, true] {
            let directory = format_1();
            let path = identity_path(directory.path());
            if published {
                fs::write(&path, &new_file).unwrap();
            }
            if let Some(bytes) = leftover {
                fs::write(path.with_extension("tmp"), &new_file[..bytes]).unwrap();
            }
            identities.push(assert_opens(directory.path()));
            assert_eq!(fs::read(&path).unwrap(), new_file);
            assert!(!path.with_extension("tmp").exists());
            identities.push(assert_opens(directory.path()));
        }
    }
    assert!(identities.iter().all(|identity| *identity == identities[0]), "{identities:?}");
}

/// A directory of format 1 that is rejected stays unchanged, so that the program that wrote it can still use it.
///
/// Method: flip a bit in every 19th byte of the log, in every 7th of the snapshot, without which the log is incomplete,
/// and in each byte of `IDENTITY`.
#[test]
fn format_1_that_is_refused_stays_so() {
    let directory = format_1();
    let [log] = log_files(directory.path()).try_into().unwrap();
    let snapshot = snapshot_path(directory.path(), SNAPSHOT);
    for (path, step) in [(log, 19), (snapshot, 7), (identity_path(directory.path()), 1)] {
        let whole = fs::read(&path).unwrap();
        for position in (0..whole.len()).step_by(step) {
            let mut damaged = whole.clone();
            damaged[position] ^= 1 << (position % 8);
            fs::write(&path, damaged).unwrap();
            let before = files(directory.path());
            let error = open_small(directory.path()).unwrap_err();
            assert!(error.to_string().contains(&path.display().to_string()), "byte {position}: {error}");
            assert_eq!(files(directory.path()), before, "byte {position}: {error}");
        }
        fs::write(&path, &whole).unwrap();
    }
    assert_eq!(format_of(directory.path()), 1);
    assert_opens(directory.path());
}

/// The index of the snapshot in the directory of format 2, and that of its last entry.
const FORMAT_2: (u64, u64) = (99, 117);
/// The hash that every later version must compute from it, because snapshots hold such hashes.
const FORMAT_2_HASH: &str = "3dc09ce11f8f6bb7cb4df49000d031fb";

#[track_caller]
fn assert_all_of_format_2(machine: &ExampleStateMachine) {
    assert_eq!((machine.revision, machine.data.len(), machine.requests.len()), (114, 36, 4));
    let found = |key: &str| {
        let record = machine.get(key).unwrap();
        let value = record.value.as_bytes().to_vec();
        (value, record.revision, record.create_revision, record.version, record.expires_at_ms > 0)
    };
    assert_eq!(found("key-7"), ("value 87 é".into(), 94, 13, 3, false));
    assert_eq!(found("key-8"), ("value 88 é".into(), 95, 55, 2, false));
    assert_eq!(found("a/b ü"), (b"last".to_vec(), 108, 108, 1, false));
    assert_eq!(found("bytes"), (vec![0xff, 2], 112, 4, 2, false));
    assert_eq!(found("txn"), (b"2".to_vec(), 110, 2, 2, false));
    assert_eq!(found("expiring"), (b"2".to_vec(), 113, 5, 2, true));
    assert!(machine.get("key-3").is_none() && machine.get("key-39").is_none());
    assert_eq!((machine.history.oldest(), machine.history.iter().len()), (0, 125));
    assert_eq!(machine.hash(), machine.hash_of_all());
    assert_eq!(machine.hash().to_string(), FORMAT_2_HASH);
}

/// A directory of format 2, whose snapshots have no hash, opens with all its data, is converted to the current format,
/// and is the same when it is opened again.
///
/// Method: open it three times. Between the last two, take a snapshot, which must hold the same data.
#[test]
fn format_2_is_opened() {
    let (snapshot, last) = FORMAT_2;
    let directory = copy_of("format-2");
    assert_eq!(format_of(directory.path()), 2);
    let mut identities = Vec::new();
    for _ in 0..2 {
        let store = open(directory.path());
        assert_eq!(format_of(directory.path()), 3);
        identities.push(store.identity());
        let applied = store.state_machine.read(|machine| machine.last_applied);
        assert_eq!(applied.map(|log_id| log_id.index), Some(snapshot), "it begins at the snapshot");
        run(apply_from_log(&store, last));
        store.state_machine.read(assert_all_of_format_2);
        if identities.len() == 2 {
            run(build_snapshot(&store));
        }
    }
    assert_eq!(identities[0], identities[1]);
    let (_, loaded) = load(&snapshot_path(directory.path(), last)).unwrap();
    let store = open(directory.path());
    store.state_machine.read(|machine| {
        assert_all_of_format_2(machine);
        assert!(loaded == *machine);
    });
}

/// The same indexes for the directory of format 3.
const FORMAT_3: (u64, u64) = (99, 126);
/// The response of the version that wrote it to `GET /v1/cluster/hash`.
const FORMAT_3_HASH: &str = "8d959d3b0e18953627683740d57b14a9";

#[track_caller]
fn assert_all_of_format_3(machine: &ExampleStateMachine) {
    assert_eq!((machine.revision, machine.data.len()), (117, 37));
    let found = |key: &str| {
        let record = machine.get(key).unwrap();
        (record.value.as_bytes().to_vec(), record.revision, record.create_revision, record.version)
    };
    assert_eq!(found("key-8"), ("value 88 é".into(), 95, 55, 2));
    assert_eq!(found("bytes"), (vec![0xff, 2], 114, 4, 2));
    assert_eq!(found("set"), ("é".into(), 117, 117, 1));
    assert!(machine.get("short").is_none() && machine.get("key-39").is_none());
    let results: Vec<String> =
        machine.requests.iter().map(|(key, request)| format!("{key} {:?}", request.result)).collect();
    let kinds = results.iter().map(|result| result.split(['(', '{']).next().unwrap().trim_end());
    let expected = [
        "put-1 Put",
        "txn-1 Txn",
        "touch-1 Touch",
        "delete Delete",
        "put-2 Put",
        "txn-2 Txn",
        "touch-2 Touch",
        "condition ConditionFailed",
        "no-key NoSuchKey",
        "prefix Delete",
    ];
    assert!(kinds.eq(expected), "{results:?}");
    assert_eq!(machine.hash(), machine.hash_of_all());
    assert_eq!(machine.hash().to_string(), FORMAT_3_HASH);
}

/// A directory of format 3 opens with all its data, and is the same when it is opened again.
///
/// Method: open it three times. Between the last two, take a snapshot, which must hold the same data.
#[test]
fn format_3_is_opened() {
    let (snapshot, last) = FORMAT_3;
    let directory = copy_of("format-3");
    let before = fs::read(identity_path(directory.path())).unwrap();
    for round in 0..2 {
        let store = open(directory.path());
        let recorded = store.recorded_clock().map(|reading| (reading.log_ms, reading.wall_ms));
        assert_eq!(recorded, Some((1_795_804_100_671, 1_795_804_100_671)));
        let applied = store.state_machine.read(|machine| machine.last_applied);
        assert_eq!(applied.map(|log_id| log_id.index), Some(snapshot), "it begins at the snapshot");
        run(apply_from_log(&store, last));
        store.state_machine.read(assert_all_of_format_3);
        if round == 1 {
            run(build_snapshot(&store));
        }
    }
    assert_eq!(fs::read(identity_path(directory.path())).unwrap(), before, "`IDENTITY` was written again");
    let (_, loaded) = load(&snapshot_path(directory.path(), last)).unwrap();
    let store = open(directory.path());
    store.state_machine.read(|machine| {
        assert_all_of_format_3(machine);
        assert!(loaded == *machine);
    });
}

/// The format of a directory is that of the highest level in it: it is raised before something of that level arrives,
/// never falls, and survives what else changes `IDENTITY`.
///
/// Method: raise the level of a new directory, join a cluster, and open it again. Then put a snapshot of the level into a
/// directory of format 3, as no crash can leave it, and open that.
#[test]
fn levels_are_formats() {
    let directory = scratch();
    let store = open(directory.path());
    assert_eq!(format_of(directory.path()), 3, "a new directory can be used by the former version");
    for level in [Level(3), Level(4), Level(3)] {
        store.raise_level(level).unwrap();
        assert_eq!(format_of(directory.path()), u64::from(store.identity().level.0));
    }
    store.join_cluster(ClusterId(9)).unwrap();
    let identity = store.identity();
    assert_eq!((identity.level, identity.cluster_id), (Level(4), Some(ClusterId(9))));
    drop(store);
    assert_eq!(open(directory.path()).identity(), identity);

    let (_, last) = FORMAT_3;
    let directory = copy_of("format-3");
    let store = open(directory.path());
    run(apply_from_log(&store, last));
    let mut machine = store.state_machine.read(Clone::clone);
    drop(store);
    machine.level = Level(4);
    let path = snapshot_path(directory.path(), last);
    write(&machine, &meta_of(&machine), &mut fs::File::create(&path).unwrap()).unwrap();
    let store = open(directory.path());
    assert_eq!(store.identity().level, Level(4));
    assert_eq!(format_of(directory.path()), 4);
    store.state_machine.read(|state| assert!(*state == machine));
}

/// A directory of format 4 opens with all its data, its level and the same hash, and is not changed.
#[test]
fn format_4_is_opened() {
    let directory = copy_of("format-4");
    let before = fs::read(identity_path(directory.path())).unwrap();
    for _ in 0..2 {
        let store = open(directory.path());
        let (level, applied) = store.state_machine.read(|machine| (machine.level, machine.last_applied));
        assert_eq!((level, applied.map(|log_id| log_id.index)), (Level(4), Some(99)), "it begins at the snapshot");
        run(apply_from_log(&store, 106));
        let (level, hash) = store.state_machine.read(|machine| (machine.level, machine.hash()));
        assert_eq!((level, hash.to_string().as_str()), (Level(4), "f2d076b54a16d9c0a0df1707e5e3e656"));
    }
    assert_eq!(fs::read(identity_path(directory.path())).unwrap(), before, "`IDENTITY` was written again");
}

/// A directory of format 5 opens with its tokens and the same hash, and is not changed.
#[test]
fn format_5_is_opened() {
    let directory = copy_of("format-5");
    let before = fs::read(identity_path(directory.path())).unwrap();
    let names = |machine: &ExampleStateMachine| machine.access.tokens().keys().map(ToString::to_string).collect();
    for _ in 0..2 {
        let store = open(directory.path());
        let (applied, tokens): (_, Vec<String>) =
            store.state_machine.read(|machine| (machine.last_applied, names(machine)));
        assert_eq!(applied.map(|log_id| log_id.index), Some(99), "it begins at the snapshot");
        assert_eq!(tokens, ["early", "writer"]);
        run(apply_from_log(&store, 108));
        store.state_machine.read(|machine| {
            assert_eq!((machine.level, names(machine)), (Level(5), vec!["admin".to_owned(), "writer".to_owned()]));
            assert_eq!(machine.access.mode(), AccessMode::Required);
            let writer = &machine.access.tokens()["writer"];
            assert_eq!((writer.role, writer.prefixes.len()), (TokenRole::Write, 2));
            assert!(writer.expires_at_ms > 1_795_846_825_928);
            assert_eq!(machine.hash().to_string(), "fa9db1489587c273b6d6f4c7b87c8876");
        });
    }
    assert_eq!(fs::read(identity_path(directory.path())).unwrap(), before, "`IDENTITY` was written again");
}
