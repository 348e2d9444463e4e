//! Files in which bytes were changed by a disk or by memory.

use std::fs;
use std::path::{Path, PathBuf};

use openraft::storage::RaftLogStorage;
use raft_key_value::store::{ExampleStore, StoreError};
use tempfile::TempDir;

use crate::support::*;

/// The replacements of a byte: each single bit flipped, all zeros, all ones.
fn damages_of(byte: u8) -> impl Iterator<Item = u8> {
    let flipped = (0..8).map(move |bit| byte ^ (1 << bit));
    flipped.chain([0, 0xff]).filter(move |value| *value != byte)
}

/// Damages one byte of a file after the other, in each way, and calls `check` with its position.
fn damage_every_byte(path: &Path, mut check: impl FnMut(usize, u8)) {
    let whole = fs::read(path).unwrap();
    let mut damaged = whole.clone();
    for position in 0..whole.len() {
        for value in damages_of(whole[position]) {
            damaged[position] = value;
            fs::write(path, &damaged).unwrap();
            check(position, value);
        }
        damaged[position] = whole[position];
    }
    fs::write(path, &whole).unwrap();
}

/// A member of a cluster with a log of several files, two snapshots, and a purged beginning.
fn small_node(data_dir: &Path) -> Observed {
    let store = open_small(data_dir).unwrap();
    store.join_cluster(CLUSTER).unwrap();
    run(async {
        let mut log = store.log.clone();
        log.save_vote(&vote(1, true)).await.unwrap();
        let entries = [membership(1, 0, &[1, 2]), blank(1, 1), set(1, 2, "a", "1"), set(1, 3, "b", "2")];
        append(&store, entries.clone()).await;
        apply(&store, entries).await;
        log.save_committed(Some(log_id(1, 3))).await.unwrap();
        build_snapshot(&store).await;
        let entries = [set(1, 4, "a", "3"), set(1, 5, "c", "")];
        append(&store, entries.clone()).await;
        apply(&store, entries).await;
        build_snapshot(&store).await;
        log.purge(log_id(1, 4)).await.unwrap();
        append(&store, [set(1, 6, "d", &"4".repeat(150)), blank(1, 7)]).await;
        log.truncate_after(Some(log_id(1, 6))).await.unwrap();
        log.save_vote(&vote(2, false)).await.unwrap();
        append(&store, [set(2, 7, "e", &"5".repeat(250)), set(2, 8, "d", "6")]).await;
        log.flush().await.unwrap();
    });
    drop(store);
    observe(&open_small(data_dir).unwrap())
}

/// Any damage to any byte of the log is rejected, with the file and the offset of the record, and the directory stays
/// unchanged.
///
/// Method: in a log of several files with records of each type, flip each bit of each byte, and set each byte to 0 and
/// to 255.
#[test]
fn log_of_several_files() {
    let directory = scratch();
    small_node(directory.path());
    let paths = log_files(directory.path());
    assert!(paths.len() >= 3, "{paths:?}");
    for path in paths {
        damage_every_record(directory.path(), &path, 0);
    }
}

fn damage_every_record(data_dir: &Path, path: &Path, from: usize) {
    let offsets = record_offsets(path);
    damage_every_byte(path, |position, value| {
        if position < from {
            return;
        }
        let (named, offset, what) = assert_damaged(data_dir);
        let record = *offsets.iter().rfind(|offset| **offset <= position as u64).unwrap();
        assert_eq!((named.as_path(), offset), (path, Some(record)), "byte {position} = {value}: {what}");
    });
}

/// No damage makes the last record of the last file look like a torn write.
///
/// Method: use logs that end in a record of each type. Flip each bit of each byte of that record, and set each byte to
/// 0 and to 255.
#[test]
fn last_record_of_each_type() {
    type Write = fn(&ExampleStore);
    let writes: [(&str, Write); 9] = [
        ("vote", |store| run(store.log.clone().save_vote(&vote(1, false))).unwrap()),
        ("committed vote", |store| run(store.log.clone().save_vote(&vote(2, true))).unwrap()),
        ("membership", |store| run(append(store, [membership(2, 0, &[1, 2, 3])]))),
        ("blank", |store| run(append(store, [blank(2, 1)]))),
        ("normal", |store| run(append(store, [set(2, 2, "key", "value")]))),
        ("commit", |store| run(store.log.clone().save_committed(Some(log_id(2, 0)))).unwrap()),
        ("truncate", |store| run(store.log.clone().truncate_after(Some(log_id(2, 1)))).unwrap()),
        ("purge", |store| {
            run(apply_from_log(store, 0));
            run(build_snapshot(store));
            run(store.log.clone().purge(log_id(2, 0))).unwrap();
        }),
        ("checkpoint", |store| {
            // Fill the file, so that the next one begins, which repeats the vote, and the last, committed and purged
            // log ids.
            run(append(store, [set(2, 2, "key", "long ".repeat(100).as_str())]));
        }),
    ];
    let directory = member();
    for (name, write) in writes {
        let open = || match name {
            "checkpoint" => open_small(directory.path()),
            _ => ExampleStore::open(directory.path(), NODE),
        };
        let store = open().unwrap();
        write(&store);
        run(store.log.flush()).unwrap();
        drop(store);
        let path = log_files(directory.path()).pop().unwrap();
        let offsets = record_offsets(&path);
        assert_eq!(offsets.len() == 2, name == "checkpoint", "{name}");
        damage_every_record(directory.path(), &path, offsets[offsets.len() - 2] as usize);
    }
}

/// A member of a cluster whose log has no entries.
fn member() -> TempDir {
    let directory = scratch();
    let store = ExampleStore::open(directory.path(), NODE).unwrap();
    store.join_cluster(CLUSTER).unwrap();
    directory
}

/// No damage makes the last entry look like a torn write, whatever the entry contains.
///
/// Method: use logs that end in a write of each kind. Flip each bit of each byte of its record, and set each byte to 0
/// and to 255.
#[test]
fn last_entry_of_each_kind() {
    let directory = member();
    for index in 0..KINDS {
        let store = ExampleStore::open(directory.path(), NODE).unwrap();
        run(append(&store, [varied(1, index)]));
        run(store.log.flush()).unwrap();
        drop(store);
        let path = log_files(directory.path()).pop().unwrap();
        let offsets = record_offsets(&path);
        damage_every_record(directory.path(), &path, offsets[offsets.len() - 2] as usize);
    }
}

/// Any damage to any byte of `IDENTITY` is rejected, and the error names the file.
#[test]
fn identity() {
    let directory = scratch();
    small_node(directory.path());
    let path = node_directory(directory.path()).join("IDENTITY");
    damage_every_byte(&path, |position, value| {
        let before = files(directory.path());
        let error = open_small(directory.path()).unwrap_err();
        let (StoreError::Damaged { path: named, .. } | StoreError::NewerFormat { path: named, .. }) = &error else {
            panic!("byte {position} = {value}: {error}");
        };
        assert_eq!(*named, path, "byte {position} = {value}: {error}");
        assert_eq!(files(directory.path()), before, "byte {position} = {value}: {error}");
    });
}

/// Damage to a snapshot whose entries are no longer in the log is rejected, and the error names the file. Damage to the
/// older snapshot, which is not needed, has no effect.
///
/// Method: flip each bit of each byte of both, and set each byte to 0 and to 255.
#[test]
fn snapshots_that_the_log_does_not_cover() {
    let directory = scratch();
    let whole = small_node(directory.path());
    let [older, newer]: [PathBuf; 2] = [3, 5].map(|index| snapshot_path(directory.path(), index));
    damage_every_byte(&newer, |position, value| {
        let (named, offset, what) = assert_damaged(directory.path());
        assert_eq!(named, newer, "byte {position} = {value}: {what}");
        assert!(offset.is_some_and(|offset| offset <= position as u64), "byte {position} = {value}: {what}");
    });
    damage_every_byte(&older, |position, value| {
        if value & 1 == 0 {
            return; // Opening an intact directory is slow, so test only half of the values.
        }
        let before = files(directory.path());
        let store = open_small(directory.path()).unwrap();
        assert_eq!(observe(&store), whole, "byte {position} = {value}");
        drop(store);
        assert_eq!(files(directory.path()), before, "byte {position} = {value}");
    });
}
