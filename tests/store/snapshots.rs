//! Snapshots that are intact, damaged, renamed or too many.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openraft::RaftSnapshotBuilder;
use openraft::storage::{RaftLogStorage, RaftStateMachine};
use raft_key_value::ExampleStateMachine;
use raft_key_value::config::{KEY_BYTES_MAX_LIMIT, SNAPSHOT_FRAME_BYTES_MAX, VALUE_BYTES_MAX_LIMIT};
use raft_key_value::store::log::check::CheckedLog;
use raft_key_value::store::snapshot::{SnapshotDirectory, SnapshotSizes};
use raft_key_value::store::{ExampleStore, StoreError};

use crate::support::*;

/// The entries in the logs and snapshots of these tests.
fn entries(count: u64) -> Vec<raft_key_value::types::Entry> {
    let entry = |index| match index {
        0 => membership(1, 0, &[1, 2, 3]),
        _ => varied(1, index),
    };
    (0..count).map(entry).collect()
}

/// A member with entries 0 to 8, snapshots at 3 and 5, and a log purged up to `purged`.
fn node_with_two_snapshots(data_dir: &Path, purged: Option<u64>) {
    let store = open(data_dir);
    store.join_cluster(CLUSTER).unwrap();
    run(async {
        append(&store, entries(9)).await;
        apply_from_log(&store, 3).await;
        build_snapshot(&store).await;
        apply_from_log(&store, 5).await;
        build_snapshot(&store).await;
        let mut log = store.log.clone();
        log.save_committed(Some(log_id(1, 8))).await.unwrap();
        if let Some(index) = purged {
            log.purge(log_id(1, index)).await.unwrap();
        }
        log.flush().await.unwrap();
    });
}

/// The state after entries 0 to `last`.
fn state_at(last: u64) -> ExampleStateMachine {
    let mut machine = ExampleStateMachine::default();
    for entry in entries(last + 1) {
        machine.apply(entry);
    }
    machine
}

#[track_caller]
fn assert_state(store: &ExampleStore, expected: &ExampleStateMachine, context: &str) {
    store.state_machine.read(|machine| {
        assert_eq!(machine.last_applied, expected.last_applied, "{context}");
        assert_eq!(machine.data, expected.data, "{context}");
        assert!(machine == expected, "{context}");
    });
}

fn snapshot_names(data_dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(node_directory(data_dir).join("snapshots")).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// All the ways in which the tests damage a file: a flipped bit in every byte, a truncation to every length, and
/// appended bytes.
fn damages(whole: &[u8]) -> impl Iterator<Item = (String, Vec<u8>)> {
    let flips = (0..whole.len()).map(|position| {
        let mut damaged = whole.to_vec();
        damaged[position] ^= 1 << (position % 8);
        (format!("bit in byte {position}"), damaged)
    });
    let cuts = (0..whole.len()).map(|length| (format!("cut to {length} bytes"), whole[..length].to_vec()));
    let tails = [1, 4, 20].map(|count| (format!("{count} zeros after it"), [whole, &vec![0; count]].concat()));
    flips.chain(cuts).chain(tails)
}

/// The snapshots that these tests damage have records of all kinds.
#[test]
fn all_records_are_there() {
    let directory = scratch();
    node_with_two_snapshots(directory.path(), None);
    let bytes = fs::read(snapshot_path(directory.path(), 5)).unwrap();
    let count = |name: &str| bytes.windows(name.len()).filter(|window| *window == name.as_bytes()).count();
    let tagged = |name: &str| {
        let tag = [&[0x81, 0xa0 | name.len() as u8], name.as_bytes()].concat();
        bytes.windows(tag.len()).filter(|window| *window == tag).count()
    };
    let records = ["State", "Key", "Put", "Delete", "Expire", "Request", "Txn"].map(tagged);
    assert!(records.iter().all(|count| *count > 0), "{records:?}");
    assert!(count("former") > 0 && count("expires_at_ms") > 0);
}

/// A damaged newest snapshot is skipped, with a warning that names it, if the log has all entries between it and the
/// older one. The state is then the same.
///
/// Method: change each byte, truncate to each length, and append bytes. Then apply the log again.
#[test]
fn damaged_newest_is_passed_over() {
    let directory = scratch();
    node_with_two_snapshots(directory.path(), Some(3));
    let path = snapshot_path(directory.path(), 5);
    let (at_3, at_8) = (state_at(3), state_at(8));
    for (damage, bytes) in damages(&fs::read(&path).unwrap()) {
        fs::write(&path, bytes).unwrap();
        let before = files(directory.path());
        let (store, warnings) = logged(|| open(directory.path()));
        assert!(warnings.contains(&format!("skipping a damaged snapshot: `{}` at", path.display())), "{warnings}");
        assert_state(&store, &at_3, &damage);
        run(apply_from_log(&store, 8));
        assert_state(&store, &at_8, &damage);
        drop(store);
        assert_eq!(files(directory.path()), before, "{damage}");
    }
}

/// A damaged newest snapshot is rejected, and the error names it, if the log begins after the older one.
///
/// Method: as above, with one more entry purged from the log.
#[test]
fn damaged_newest_that_the_log_does_not_cover() {
    let directory = scratch();
    node_with_two_snapshots(directory.path(), Some(4));
    let path = snapshot_path(directory.path(), 5);
    for (damage, bytes) in damages(&fs::read(&path).unwrap()) {
        fs::write(&path, bytes).unwrap();
        let (named, offset, what) = assert_damaged(directory.path());
        assert_eq!((named.as_path(), offset.is_some()), (path.as_path(), true), "{damage}: {what}");
    }
    fs::remove_file(&path).unwrap();
    let (named, _, what) = assert_damaged(directory.path());
    assert_eq!(named, node_directory(directory.path()).join("snapshots"));
    assert_eq!(what, "the log begins after T1-N1.4, but the snapshots end at T1-N1.3");
}

/// A damaged snapshot that was installed is rejected if the log ends before it, because the leader was told that this
/// node has everything up to it on disk.
///
/// Method: with a log that ends at 5, install a snapshot at 8, and damage it before the log is purged.
#[test]
fn damaged_snapshot_beyond_the_log() {
    let (directory, leader_directory) = (scratch(), scratch());
    let leader = open(leader_directory.path());
    run(apply(&leader, entries(9)));
    run(build_snapshot(&leader));
    let store = open(directory.path());
    store.join_cluster(CLUSTER).unwrap();
    run(append(&store, entries(6)));
    run(apply_from_log(&store, 3));
    run(build_snapshot(&store));
    run(install_snapshot(&leader, &store));
    drop(store);
    assert_state(&open(directory.path()), &state_at(8), "whole");

    let path = snapshot_path(directory.path(), 8);
    let mut bytes = fs::read(&path).unwrap();
    bytes[30] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_eq!(assert_damaged(directory.path()).0, path);
}

/// The newest two snapshots are kept, even across restarts.
///
/// Method: take snapshots at 1 to 6, and restart after every second one.
#[test]
fn two_are_kept() {
    let directory = scratch();
    let mut store = open(directory.path());
    store.join_cluster(CLUSTER).unwrap();
    run(append(&store, entries(9)));
    for index in 1..=6 {
        run(apply_from_log(&store, index));
        run(build_snapshot(&store));
        let expected: Vec<_> = (index.max(2) - 1..=index).map(|index| format!("{index}.snap")).collect();
        assert_eq!(snapshot_names(directory.path()), expected);
        if index % 2 == 0 {
            drop(store);
            store = open(directory.path());
            assert_state(&store, &state_at(index), "reopened");
        }
    }
}

/// An intact snapshot is deleted only when two newer intact ones exist. Skipped damaged ones do not count, and are
/// deleted with it.
///
/// Method: damage the newest snapshot, and then both. Take new ones one after the other.
#[test]
fn damaged_ones_do_not_count() {
    let cases: [(&[u64], &[&[&str]]); 2] = [
        (&[5], &[&["3.snap", "5.snap"], &["3.snap", "6.snap"], &["6.snap", "7.snap"]]),
        (&[3, 5], &[&["3.snap", "5.snap"], &["3.snap", "5.snap", "6.snap"], &["6.snap", "7.snap"]]),
    ];
    for (damaged, expected) in cases {
        let directory = scratch();
        node_with_two_snapshots(directory.path(), None);
        for index in damaged {
            fs::write(snapshot_path(directory.path(), *index), "damaged").unwrap();
        }
        let store = open(directory.path());
        assert_eq!(snapshot_names(directory.path()), expected[0]);
        for (step, index) in [6, 7].into_iter().enumerate() {
            run(apply_from_log(&store, index));
            run(build_snapshot(&store));
            assert_eq!(snapshot_names(directory.path()), expected[step + 1], "{damaged:?} damaged");
        }
        drop(store);
        assert_state(&open(directory.path()), &state_at(7), "reopened");
    }
}

/// A renamed snapshot is damaged: the log must reach as far as both its name and its content require.
///
/// Method: rename the newest of two to a lower and to higher indexes. The log ends at 8.
#[test]
fn names_of_others() {
    for name in ["4.snap", "8.snap", "9.snap"] {
        let directory = scratch();
        node_with_two_snapshots(directory.path(), Some(3));
        let path = snapshot_path(directory.path(), 5);
        let renamed = path.with_file_name(name);
        fs::rename(&path, &renamed).unwrap();
        if name == "9.snap" {
            assert_eq!(assert_damaged(directory.path()).0, renamed);
            continue;
        }
        let (store, warnings) = logged(|| open(directory.path()));
        assert!(warnings.contains("it is the snapshot at index 5 under another name"), "{warnings}");
        assert_state(&store, &state_at(3), name);
    }
}

/// A file whose name is not that of a snapshot is neither used nor deleted, and does not prevent new snapshots.
///
/// Method: rename the newest of two in such ways, and take new snapshots until all older ones are deleted.
#[test]
fn odd_names() {
    for name in ["05.snap", "+5.snap", "5 (copy).snap", "5.snap.bak"] {
        let directory = scratch();
        node_with_two_snapshots(directory.path(), Some(3));
        let path = snapshot_path(directory.path(), 5);
        fs::rename(&path, path.with_file_name(name)).unwrap();
        let (store, warnings) = logged(|| open(directory.path()));
        let ignored = format!("ignoring `{}`", path.with_file_name(name).display());
        assert_eq!(warnings.contains(&ignored), name.ends_with(".snap"), "{warnings}");
        assert_state(&store, &state_at(3), name);
        for index in [5, 6] {
            run(apply_from_log(&store, index));
            run(build_snapshot(&store));
        }
        let mut expected = vec!["5.snap", "6.snap", name];
        expected.sort();
        assert_eq!(snapshot_names(directory.path()), expected);
    }
}

/// The lengths of the frames of a snapshot file.
fn frame_lengths(path: &Path) -> Vec<usize> {
    let bytes = fs::read(path).unwrap();
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let mut at = 16 + number(12) + 4;
    let mut lengths = Vec::new();
    while number(at) != 0 {
        lengths.push(number(at));
        at += 8 + number(at);
    }
    lengths
}

/// A large state is the same after it was read from a snapshot, on this node and on another one.
///
/// Method: use 2,000 keys with values of up to 100 KiB, and several consecutive ones of the largest permitted size,
/// which make the longest frames.
#[test]
fn large_state() {
    let (directory, other_directory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let value = |bytes: usize| "v".repeat(bytes);
    let mut changes: Vec<_> = (0..2000)
        .map(|number| (format!("key {number:04}"), value(if number % 8 == 0 { number * 51 } else { number % 100 })))
        .collect();
    changes
        .extend(["w", "x", "y", "z"].map(|letter| (letter.repeat(KEY_BYTES_MAX_LIMIT), value(VALUE_BYTES_MAX_LIMIT))));

    let store = open(directory.path());
    store.join_cluster(CLUSTER).unwrap();
    let sets = (0u64..).zip(&changes).map(|(index, (key, value))| set(1, index, key, value));
    run(apply(&store, sets));
    let mut log = store.log.clone();
    run(append(&store, [blank(1, 0)]));
    run(build_snapshot(&store));
    run(log.purge(log_id(1, changes.len() as u64 - 1))).unwrap();
    let expected = observe(&store);
    assert_eq!(expected.data.len(), changes.len());

    let lengths = frame_lengths(&snapshot_path(directory.path(), changes.len() as u64 - 1));
    assert!(lengths.len() > 10, "{lengths:?}");
    assert!(lengths.iter().all(|length| *length <= SNAPSHOT_FRAME_BYTES_MAX / 2), "{lengths:?}");

    let other = open(other_directory.path());
    run(install_snapshot(&store, &other));
    assert_eq!(observe(&other).data, expected.data);
    drop((log, store));
    assert_eq!(observe(&open(directory.path())), expected);
}

/// A snapshot that could not be read again is not published.
///
/// Method: use a value that is longer than a frame may be.
#[test]
fn too_large_for_a_frame() {
    let directory = scratch();
    let snapshots = SnapshotDirectory::open(directory.path(), &CheckedLog::default()).unwrap().0;
    let mut machine = ExampleStateMachine::default();
    machine.apply(set(1, 0, "key", &"v".repeat(SNAPSHOT_FRAME_BYTES_MAX)));
    let error = snapshots.build(&machine).unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

/// A snapshot that was being built while a newer one was installed has no effect.
///
/// Method: get a builder at 3, install a snapshot at 8, then run the builder.
#[test]
fn built_while_a_newer_one_is_installed() {
    let (directory, leader_directory) = (scratch(), scratch());
    let leader = open(leader_directory.path());
    run(apply(&leader, entries(9)));
    run(build_snapshot(&leader));
    let store = open(directory.path());
    store.join_cluster(CLUSTER).unwrap();
    run(append(&store, entries(4)));
    run(apply_from_log(&store, 3));
    run(async {
        let mut builder = store.state_machine.clone().get_snapshot_builder().await;
        install_snapshot(&leader, &store).await;
        let built = builder.build_snapshot().await.unwrap();
        assert_eq!(built.meta.last_log_id, Some(log_id(1, 3)));
    });
    assert_eq!(observe(&store).snapshot.unwrap().last_log_id, Some(log_id(1, 8)));
    drop(store);
    assert_state(&open(directory.path()), &state_at(8), "reopened");
}

/// Snapshots that are built and installed concurrently do not delete each other.
///
/// Method: two threads publish snapshots in alternation. After each, the newest one exists and is intact.
#[test]
fn published_at_the_same_time() {
    let directory = scratch();
    let log = CheckedLog::default();
    let snapshots = Arc::new(SnapshotDirectory::open(directory.path(), &log).unwrap().0);
    let threads = [0, 1].map(|odd| {
        let snapshots = snapshots.clone();
        std::thread::spawn(move || {
            for step in 0..100 {
                let machine = state_at(2 * step + odd);
                snapshots.build(&machine).unwrap();
                let newest = snapshots.newest().unwrap().unwrap().0;
                assert!(newest.last_log_id >= machine.last_applied);
            }
        })
    });
    for thread in threads {
        thread.join().unwrap();
    }
    let (_, machine) = SnapshotDirectory::open(directory.path(), &log).unwrap();
    assert_eq!(machine.last_applied, Some(log_id(1, 199)));
    let names: Vec<PathBuf> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

/// A received snapshot that is damaged is rejected, and no file remains.
#[test]
fn damaged_on_the_way() {
    let (directory, leader_directory) = (scratch(), scratch());
    let leader = open(leader_directory.path());
    run(apply(&leader, entries(9)));
    run(build_snapshot(&leader));
    let store = open(directory.path());
    let snapshots = store.state_machine.snapshots();
    for (damage, bytes) in damages(&fs::read(snapshot_path(leader_directory.path(), 8)).unwrap()) {
        let temporary = snapshots.temporary_file();
        fs::write(temporary.path(), bytes).unwrap();
        let error = snapshots.verify(temporary).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{damage}: {error}");
    }
    assert_eq!(snapshot_names(directory.path()), Vec::<String>::new());
    assert_eq!(run(store.state_machine.clone().get_current_snapshot()).unwrap().map(|snapshot| snapshot.meta), None);
}

/// The snapshots before the newest can be deleted to free space, even those of an earlier run of the node. The newest
/// remains, and the directory stays usable.
#[test]
fn older_snapshots_make_room() {
    for reopened in [false, true] {
        let directory = scratch();
        let store = open(directory.path());
        store.join_cluster(CLUSTER).unwrap();
        drop(store);
        let mut store = open(directory.path());
        assert_eq!(store.state_machine.snapshots().sizes().unwrap(), SnapshotSizes::default());
        assert!(!store.state_machine.snapshots().delete_older(), "there is none");
        run(async {
            append(&store, entries(9)).await;
            for last in [3, 5] {
                apply_from_log(&store, last).await;
                build_snapshot(&store).await;
            }
        });
        if reopened {
            drop(store);
            store = open(directory.path());
        }
        let length = |index| fs::metadata(snapshot_path(directory.path(), index)).unwrap().len();
        let snapshots = store.state_machine.snapshots();
        let sizes = SnapshotSizes {
            newest_bytes: length(5),
            older_bytes: length(3),
            former_index: Some(3),
            unfinished_bytes: 0,
        };
        assert_eq!(snapshots.sizes().unwrap(), sizes);
        assert!(snapshots.delete_older());
        assert_eq!(snapshots.sizes().unwrap(), SnapshotSizes { older_bytes: 0, former_index: None, ..sizes });
        assert!(!snapshots.delete_older(), "it is deleted");
        drop(store);
        assert_state(&open(directory.path()), &state_at(5), "from the newest");
    }
}

/// Space that deleting the older snapshots would not free does not count as theirs, and a snapshot that is being
/// written counts as unfinished.
///
/// Method: in addition to two intact snapshots, make a damaged one with a higher index, a file that is not a snapshot,
/// and an unfinished snapshot.
#[test]
fn only_what_can_be_deleted_counts_as_older() {
    let directory = scratch();
    let store = open(directory.path());
    store.join_cluster(CLUSTER).unwrap();
    run(async {
        append(&store, entries(9)).await;
        for last in [3, 5] {
            apply_from_log(&store, last).await;
            build_snapshot(&store).await;
        }
    });
    let snapshots = store.state_machine.snapshots();
    let before = snapshots.sizes().unwrap();
    fs::write(snapshot_path(directory.path(), 7), vec![0; 70_000]).unwrap();
    fs::write(snapshot_path(directory.path(), 7).with_file_name("copy.snap"), vec![0; 80_000]).unwrap();
    let sizes = SnapshotSizes { unfinished_bytes: 90_000, ..before };
    fs::write(snapshot_path(directory.path(), 7).with_file_name("new-9.tmp"), vec![0; 90_000]).unwrap();
    assert_eq!(snapshots.sizes().unwrap(), sizes);
    assert!(snapshots.delete_older());
    assert_eq!(snapshots.sizes().unwrap(), SnapshotSizes { older_bytes: 0, former_index: None, ..sizes });
}

/// A log knows where each of its files begins and ends on disk, and which entry is the last one in it, even after it
/// was opened again and purged.
#[test]
fn the_log_tells_its_files() {
    let directory = scratch();
    let mut store = open_small(directory.path()).unwrap();
    store.join_cluster(CLUSTER).unwrap();
    run(async {
        append(&store, (0..40).map(|index| set(1, index, "key", "value"))).await;
        apply_from_log(&store, 39).await;
        build_snapshot(&store).await;
    });
    for round in 0..3 {
        let files = store.log.files().unwrap();
        assert!(files.len() > 4, "{files:?}");
        assert_eq!(files.last().unwrap().last, Some(log_id(1, 39)), "in round {round}");
        for pair in files.windows(2) {
            assert!(pair[0].end == pair[1].start && pair[0].last <= pair[1].last, "{files:?}");
        }
        let lengths: Vec<u64> = files.iter().map(|file| file.end - file.start).collect();
        let on_disk = log_files(directory.path());
        let on_disk: Vec<u64> = on_disk.iter().map(|path| fs::metadata(path).unwrap().len()).collect();
        assert_eq!(lengths, on_disk, "in round {round}");
        assert_eq!(store.log.disk_bytes(), lengths.iter().sum::<u64>());
        if round == 1 {
            let mut log = store.log.clone();
            let last = files[1].last.unwrap();
            run(async {
                log.purge(last).await.unwrap();
                log.flush().await.unwrap();
            });
            assert_eq!(store.log.files().unwrap()[0].start, files[2].start, "two files are purged");
            drop(log);
        }
        drop(store);
        store = open_small(directory.path()).unwrap();
    }
}
