//! A log whose last file ends in the middle of a record, as a crash leaves it.

use std::fs;
use std::path::Path;

use openraft::storage::RaftLogStorage;
use raft_key_value::store::{ExampleStore, LogSizes};

use crate::support::*;

/// Writes a record of each type, and an entry of each kind, and notes after each where in the log it ends
/// and what the store holds then.
fn write_records(store: &ExampleStore, data_dir: &Path) -> Vec<(u64, Observed)> {
    let mut log = store.log.clone();
    let mut states = Vec::new();
    let mut note = || {
        run(store.log.flush()).unwrap();
        let last = log_files(data_dir).pop().unwrap();
        // A file that was just begun repeats what the one before it said.
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

/// Where in the log a file begins, as its name says.
fn start_of(path: &Path) -> u64 {
    let name = path.file_name().unwrap().to_str().unwrap();
    name.chars().filter(char::is_ascii_digit).collect::<String>().parse().unwrap()
}

fn cut(path: &Path, bytes: u64) {
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(bytes).unwrap();
}

/// Cuts the last file to every length from `from` on, and checks the state after each cut.
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

/// A node that is killed while it is started for the first time starts anew.
///
/// Method: the only file cut at every byte, before the node has joined a cluster.
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
/// cut off. A cut within the very first record, which was synced before the node joined its cluster, is damage.
///
/// Method: a log in one file, cut at every byte.
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

/// As above, for the last of several files; a cut within its first record leaves
/// what the files before it hold.
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

/// The only file that is left after a purge begins with what was known before:
/// a cut within that is damage, whether or not the file is the log's first.
///
/// Method: a log purged until one file is left, cut at every byte of its first record.
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
    // The purge record may be in the file before the last: opening deletes that.
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

/// Zeros after the last record are cut off as a torn write is: a file system may
/// make a file longer before it has written what belongs there.
///
/// Method: zeros appended, of lengths around those of records and of a page.
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
        cut(&path, bytes + zeros); // Which makes it longer, with zeros.
        let (store, warnings) = logged(|| open(directory.path()));
        assert_eq!(observe(&store), states.last().unwrap().1, "{zeros} zeros");
        let warning = format!("cut {zeros} bytes off `{}` at offset {bytes}:", path.display());
        assert!(warnings.contains(&warning), "{warnings}");
    }
}

/// A record that is not whole is no torn write if whole ones follow it in another file.
///
/// Method: every file but the last, cut at every byte; each must be refused, with
/// the file and the offset where the log breaks off.
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
