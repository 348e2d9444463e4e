//! A log whose last file ends within a record, as after a crash.

use std::fs;
use std::path::Path;

use openraft::storage::RaftLogStorage;
use raft_key_value::store::{ExampleStore, LogSizes};

use crate::support::*;

/// Writes a record of each type and an entry of each kind. Notes after each where in the log it ends and what the store
/// holds.
fn write_records(store: &ExampleStore, data_dir: &Path) -> Vec<(u64, Observed)> {
    let mut log = store.log.clone();
    let mut states = Vec::new();
    let mut note = || {
        run(store.log.flush()).unwrap();
        let last = log_files(data_dir).pop().unwrap();
        // A new file repeats the state from the end of the one before it.
        let records = record_offsets(&last);
        let end = if records.len() == 2 { 0 } else { *records.last().unwrap() };
        states.push((start_of(&last) + end, observe(store)));
    };
    note();
    run(log.save_vote(&vote(1, false))).unwrap();
    note();
    run(append(store, [membership(1, 0, &[1, 2, 3])]));
    note();
    run(append(store, [blank(1, 1)]));
    note();
    run(append(store, [set(1, 2, "foo", "bar")]));
    note();
    run(log.save_committed(Some(log_id(1, 1)))).unwrap();
    note();
    run(log.truncate_after(Some(log_id(1, 1)))).unwrap();
    note();
    run(log.save_vote(&vote(2, true))).unwrap();
    note();
    for index in 2..2 + KINDS {
        run(append(store, [varied(2, index)]));
        note();
    }
    run(append(store, [set(2, 2 + KINDS, "foo", "long ".repeat(20).as_str())]));
    note();
    states
}

/// The offset in the log at which a file begins, from its name.
fn start_of(path: &Path) -> u64 {
    let name = path.file_name().unwrap().to_str().unwrap();
    name.chars().filter(char::is_ascii_digit).collect::<String>().parse().unwrap()
}

fn cut(path: &Path, bytes: u64) {
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(bytes).unwrap();
}

/// Truncates the last file to every length from `from` on, and checks the state after each truncation.
fn cut_everywhere(data_dir: &Path, sizes: LogSizes, states: &[(u64, Observed)], from: u64) {
    let open = || ExampleStore::open_with(data_dir, NODE, sizes).unwrap();
    let whole = files(data_dir);
    let last = log_files(data_dir).pop().unwrap();
    let offsets = record_offsets(&last);
    for length in from..=*offsets.last().unwrap() {
        restore(data_dir, &whole);
        cut(&last, length);

        let (_, expected) = states.iter().rfind(|(end, _)| *end <= start_of(&last) + length).unwrap();
        let (store, warnings) = logged(open);
        assert_eq!(observe(&store), *expected, "cut to {length} bytes");

        let offset = *offsets.iter().rfind(|offset| **offset <= length).unwrap();
        let warning = format!("cut {} bytes off `{}` at offset {offset}:", length - offset, last.display());
        assert_eq!(warnings.contains(&warning), length > offset, "cut to {length} bytes: {warnings}");
        assert_eq!(warnings.contains("cut "), length > offset, "cut to {length} bytes: {warnings}");

        let next = expected.last.map_or(0, |last| last.index + 1);
        run(append(&store, [set(3, next, "after", "the cut")]));
        let after = observe(&store);
        drop(store);
        let (store, warnings) = logged(open);
        assert_eq!(observe(&store), after, "cut to {length} bytes, then reopened");
        assert!(!warnings.contains("cut "), "cut twice: {warnings}");
    }
}

/// A node that is killed during its first start can be started again.
///
/// Method: truncate the only file at every byte, before the node has joined a cluster.
#[test]
fn first_file_of_a_new_node() {
    let directory = scratch();
    drop(open(directory.path()));
    let whole = files(directory.path());
    let path = log_files(directory.path()).remove(0);
    for length in 0..*record_offsets(&path).last().unwrap() {
        restore(directory.path(), &whole);
        cut(&path, length);
        let store = open(directory.path());
        assert_eq!(observe(&store), Observed::default(), "cut to {length} bytes");
        store.join_cluster(CLUSTER).unwrap();
        run(append(&store, [blank(1, 0)]));
        drop(store);
        assert_eq!(observe(&open(directory.path())).last, Some(log_id(1, 0)), "cut to {length} bytes");
    }
}

/// Whatever part of the last record is missing, the store opens with exactly the records before it, and logs what it
/// truncated. A truncation within the very first record, which was synced before the node joined its cluster, is
/// damage.
///
/// Method: truncate a log of one file at every byte.
#[test]
fn only_file_of_a_member() {
    let directory = scratch();
    let store = open(directory.path());
    store.join_cluster(CLUSTER).unwrap();
    let states = write_records(&store, directory.path());
    drop(store);

    let whole = files(directory.path());
    let path = log_files(directory.path()).remove(0);
    let first_record_bytes = record_offsets(&path)[1];
    for length in 0..first_record_bytes {
        cut(&path, length);
        let (named, offset, what) = assert_damaged(directory.path());
        assert_eq!((&named, offset), (&path, Some(0)), "cut to {length} bytes: {what}");
        restore(directory.path(), &whole);
    }
    cut_everywhere(directory.path(), LogSizes::default(), &states, first_record_bytes);
}

/// The same for the last of several files. After a truncation within its first record, the store holds the content of
/// the files before it.
#[test]
fn last_of_several_files() {
    let directory = scratch();
    let store = open_small(directory.path()).unwrap();
    store.join_cluster(CLUSTER).unwrap();
    let states = write_records(&store, directory.path());
    drop(store);
    assert!(log_files(directory.path()).len() > 1);
    cut_everywhere(directory.path(), SMALL, &states, 0);
}

/// The only file that remains after a purge begins with the state before it. A truncation within that is damage,
/// whether or not the file is the log's first one.
///
/// Method: purge a log until one file remains, and truncate it at every byte of its first record.
#[test]
fn only_file_after_a_purge() {
    let directory = scratch();
    let store = open_small(directory.path()).unwrap();
    store.join_cluster(CLUSTER).unwrap();
    run(store.log.clone().save_vote(&vote(1, true))).unwrap();
    let entries: Vec<_> = (0..20).map(|index| set(1, index, "key", "value")).collect();
    run(append(&store, entries.clone()));
    run(apply(&store, entries));
    run(build_snapshot(&store));
    run(store.log.clone().purge(log_id(1, 19))).unwrap();
    run(store.log.flush()).unwrap();
    drop(store);
    // The purge record may be in the file before the last one, which opening deletes.
    drop(open_small(directory.path()).unwrap());
    let [path] = log_files(directory.path()).try_into().unwrap();
    assert!(start_of(&path) > 0);

    let whole = files(directory.path());
    for length in 0..record_offsets(&path)[1] {
        cut(&path, length);
        let (named, offset, what) = assert_damaged(directory.path());
        assert_eq!((&named, offset), (&path, Some(0)), "cut to {length} bytes: {what}");
        restore(directory.path(), &whole);
    }
}

/// Zeros after the last record are truncated like a torn write, because a file system may extend a file before it
/// writes the data.
///
/// Method: append zeros, of lengths close to those of records and of a page.
#[test]
fn zeros_at_the_end() {
    let directory = scratch();
    let store = open(directory.path());
    store.join_cluster(CLUSTER).unwrap();
    let states = write_records(&store, directory.path());
    drop(store);
    let whole = files(directory.path());
    let path = log_files(directory.path()).remove(0);
    let bytes = *record_offsets(&path).last().unwrap();
    for zeros in (1..60).chain([4095, 4096, 70_000]) {
        restore(directory.path(), &whole);
        cut(&path, bytes + zeros); // Extends the file with zeros.
        let (store, warnings) = logged(|| open(directory.path()));
        assert_eq!(observe(&store), states.last().unwrap().1, "{zeros} zeros");
        let warning = format!("cut {zeros} bytes off `{}` at offset {bytes}:", path.display());
        assert!(warnings.contains(&warning), "{warnings}");
    }
}

/// An incomplete record is not a torn write if complete records follow it in another file.
///
/// Method: truncate every file except the last at every byte. Each must be rejected, with the file and the offset where
/// the log is interrupted.
#[test]
fn cut_before_the_end_of_the_log() {
    let directory = scratch();
    let store = open_small(directory.path()).unwrap();
    store.join_cluster(CLUSTER).unwrap();
    write_records(&store, directory.path());
    drop(store);
    let whole = files(directory.path());
    let mut paths = log_files(directory.path());
    paths.pop();
    for path in paths {
        let offsets = record_offsets(&path);
        for length in 0..*offsets.last().unwrap() {
            cut(&path, length);
            let (named, offset, what) = assert_damaged(directory.path());
            let expected = *offsets.iter().rfind(|offset| **offset <= length).unwrap();
            assert_eq!((&named, offset), (&path, Some(expected)), "cut to {length} bytes: {what}");
            restore(directory.path(), &whole);
        }
    }
}
