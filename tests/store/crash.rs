//! The process is killed between any two steps of an operation on the store's files.
//!
//! Each test lists the steps of one operation in order, builds the directory as it is after each of them (from copies
//! of real ones), and opens it.

use std::fs;
use std::path::Path;

use openraft::storage::{RaftLogStorage, RaftStateMachine};
use raft_key_value::ExampleStateMachine;
use raft_key_value::store::ExampleStore;

use crate::support::*;

/// The store accepts and keeps a vote, entries and a snapshot.
fn assert_goes_on(data_dir: &Path, context: &str) {
    let store = open_small(data_dir).unwrap_or_else(|error| panic!("{context}: {error}"));
    store.join_cluster(CLUSTER).unwrap();
    let before = observe(&store);
    let next = before.last.map_or(0, |last| last.index + 1);
    run(async {
        store.log.clone().save_vote(&vote(9, false)).await.unwrap();
        append(&store, [set(9, next, "after", "the crash"), blank(9, next + 1)]).await;
        apply_from_log(&store, next + 1).await;
        build_snapshot(&store).await;
    });
    let expected = observe(&store);
    drop(store);
    let store = open_small(data_dir).unwrap();
    assert_eq!(observe(&store), expected, "{context}");
    assert_eq!(store.identity().cluster_id, Some(CLUSTER), "{context}");
}

/// All prefixes of a file's content, including the whole content.
fn prefixes(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    (0..=bytes.len()).map(|length| &bytes[..length])
}

/// Steps: directory; LOCK; IDENTITY.tmp, byte by byte; its renaming; log/;
/// snapshots/; log/LOCK; the first log file, byte by byte.
#[test]
fn making_a_directory() {
    let made = scratch();
    drop(open_small(made.path()).unwrap());
    let node = node_directory(made.path());
    let identity = fs::read(node.join("IDENTITY")).unwrap();
    let [log_file] = log_files(made.path()).try_into().unwrap();
    let log_name = log_file.file_name().unwrap();
    let log_bytes = fs::read(&log_file).unwrap();

    let check = |context: &str, steps: &dyn Fn(&Path)| {
        let directory = scratch();
        let node = node_directory(directory.path());
        fs::create_dir(&node).unwrap();
        steps(&node);
        assert_goes_on(directory.path(), context);
        let store = open_small(directory.path()).unwrap();
        let kept = fs::read_dir(&node).unwrap().count();
        assert_eq!(kept, 4, "{context}: LOCK, IDENTITY, log, snapshots");
        store.identity().incarnation
    };
    check("directory", &|_| {});
    check("LOCK", &|node| fs::write(node.join("LOCK"), "").unwrap());
    for prefix in prefixes(&identity) {
        check("IDENTITY.tmp", &|node| fs::write(node.join("IDENTITY.tmp"), prefix).unwrap());
    }

    let with_identity = |node: &Path| fs::write(node.join("IDENTITY"), &identity).unwrap();
    let with_directories = |node: &Path| {
        with_identity(node);
        fs::create_dir(node.join("log")).unwrap();
        fs::create_dir(node.join("snapshots")).unwrap();
    };
    let incarnation = check("IDENTITY", &with_identity);
    let same = |context: &str, steps: &dyn Fn(&Path)| assert_eq!(check(context, steps), incarnation, "{context}");
    same("log/", &|node| {
        with_identity(node);
        fs::create_dir(node.join("log")).unwrap();
    });
    same("snapshots/", &with_directories);
    same("log/LOCK", &|node| {
        with_directories(node);
        fs::write(node.join("log/LOCK"), "").unwrap();
    });
    for prefix in prefixes(&log_bytes) {
        same("first log file", &|node| {
            with_directories(node);
            fs::write(node.join("log").join(log_name), prefix).unwrap();
        });
    }
}

/// Steps: IDENTITY.tmp, byte by byte; its renaming over IDENTITY.
#[test]
fn joining_a_cluster() {
    let directory = scratch();
    let store = open_small(directory.path()).unwrap();
    let before = store.identity();
    let unjoined = files(directory.path());
    store.join_cluster(CLUSTER).unwrap();
    let joined = store.identity();
    drop(store);
    let path = node_directory(directory.path()).join("IDENTITY");
    let bytes = fs::read(&path).unwrap();
    for prefix in prefixes(&bytes) {
        restore(directory.path(), &unjoined);
        fs::write(path.with_extension("tmp"), prefix).unwrap();
        assert_eq!(open_small(directory.path()).unwrap().identity(), before);
        assert!(!path.with_extension("tmp").exists());
    }
    fs::write(&path, bytes).unwrap();
    assert_eq!(open_small(directory.path()).unwrap().identity(), joined);
    assert_goes_on(directory.path(), "joined");
}

/// A member with entries 0 to 11, of which 0 to 9 are applied, and snapshots at 3 and 6.
fn member(data_dir: &Path) -> ExampleStore {
    let store = open_small(data_dir).unwrap();
    store.join_cluster(CLUSTER).unwrap();
    run(async {
        store.log.clone().save_vote(&vote(1, true)).await.unwrap();
        append(&store, (0..12).map(|index| varied(1, index))).await;
        for index in [3, 6] {
            apply_from_log(&store, index).await;
            build_snapshot(&store).await;
        }
        apply_from_log(&store, 9).await;
    });
    store
}

/// What the member must hold after a restart, with the snapshot at `snapshot` as its newest.
fn assert_member(data_dir: &Path, snapshot: u64, purged: Option<u64>, context: &str) {
    let store = open_small(data_dir).unwrap_or_else(|error| panic!("{context}: {error}"));
    let found = observe(&store);
    assert_eq!(found.vote, Some(vote(1, true)), "{context}");
    assert_eq!(found.applied, Some(log_id(1, snapshot)), "{context}");
    assert_eq!(found.snapshot.unwrap().last_log_id, found.applied, "{context}");
    assert_eq!(found.purged.map(|log_id| log_id.index), purged, "{context}");
    assert_eq!(found.last, Some(log_id(1, 11)), "{context}");
    run(apply_from_log(&store, 11));
    let mut expected = ExampleStateMachine::default();
    (0..12).for_each(|index| drop(expected.apply(varied(1, index))));
    store.state_machine.read(|machine| assert!(*machine == expected, "{context}"));
    drop(store);
    assert_goes_on(data_dir, context);
}

/// Steps: the temporary file, part by part; its renaming; the removal of the oldest snapshot; the purge record; the
/// removal of each log file that is no longer needed, the oldest first.
#[test]
fn building_a_snapshot_and_purging() {
    let directory = scratch();
    let store = member(directory.path());
    let before = copy(directory.path());
    run(build_snapshot(&store));
    let after_build = copy(directory.path());
    run(store.log.clone().purge(log_id(1, 6))).unwrap();
    drop(store);
    let purged = files(directory.path());
    let names = |data_dir: &Path| {
        let names = log_files(data_dir).into_iter().map(|path| path.file_name().unwrap().to_owned());
        names.collect::<Vec<_>>()
    };
    let kept = names(directory.path());
    let superfluous: Vec<_> = names(after_build.path()).into_iter().filter(|name| !kept.contains(name)).collect();
    assert!(superfluous.len() >= 2, "{superfluous:?}");
    let bytes = fs::read(snapshot_path(after_build.path(), 9)).unwrap();

    for prefix in prefixes(&bytes).step_by(7).chain([bytes.as_slice()]) {
        let crashed = copy(before.path());
        let temporary = node_directory(crashed.path()).join("snapshots/new-2.tmp");
        fs::write(&temporary, prefix).unwrap();
        assert_member(crashed.path(), 6, None, "temporary file");
        assert!(!temporary.exists());
    }
    let crashed = copy(before.path());
    fs::write(snapshot_path(crashed.path(), 9), &bytes).unwrap();
    assert_member(crashed.path(), 9, None, "renamed");
    for index in [3, 6] {
        assert!(!snapshot_path(crashed.path(), index).exists(), "the next snapshot must remove the one at {index}");
    }
    assert_member(copy(after_build.path()).path(), 9, None, "oldest snapshot removed");

    // The purge record is in the file that was the last one, or in a later one.
    for gone in 0..=superfluous.len() {
        let crashed = copy(after_build.path());
        for path in log_files(directory.path()) {
            let to = log_directory(crashed.path()).join(path.file_name().unwrap());
            fs::write(to, purged[&path].as_ref().unwrap()).unwrap();
        }
        for name in &superfluous[..gone] {
            fs::remove_file(log_directory(crashed.path()).join(name)).unwrap();
        }
        assert_member(crashed.path(), 9, Some(6), &format!("{gone} log files removed"));
        let left = names(crashed.path());
        assert!(!superfluous.iter().any(|name| left.contains(name)), "opening removes the rest of them: {left:?}");
    }
}

/// Steps: the truncation of entries that contradict the snapshot; the temporary file; its renaming; the purge record;
/// the removal of log files.
#[test]
fn installing_a_snapshot() {
    let (directory, leader_directory) = (scratch(), scratch());
    let leader = open_small(leader_directory.path()).unwrap();
    leader.join_cluster(CLUSTER).unwrap();
    run(async {
        append(&leader, (0..10).map(|index| varied(1, index))).await;
        append(&leader, (10..21).map(|index| varied(2, index))).await;
        apply_from_log(&leader, 20).await;
        build_snapshot(&leader).await;
    });
    let store = member(directory.path());
    let mut log = store.log.clone();
    let assert_installed = |data_dir: &Path, last: u64| {
        let store = open_small(data_dir).unwrap();
        let found = observe(&store);
        assert_eq!(found.applied, Some(log_id(2, 20)));
        let same = |found: &_| leader.state_machine.read(|leader| found == leader);
        assert!(store.state_machine.read(same), "another state than the leader's");
        // openraft purges up to the last applied entry if the log ends before it.
        if last < 20 {
            assert_eq!(found.last, Some(log_id(1, last)));
            run(store.log.clone().purge(log_id(2, 20))).unwrap();
        }
        drop(store);
        let found = observe(&open_small(data_dir).unwrap());
        assert_eq!((found.last, found.purged), (Some(log_id(2, 20)), Some(log_id(2, 20))));
        assert_goes_on(data_dir, "installed");
    };

    run(log.truncate_after(Some(log_id(1, 9)))).unwrap();
    let truncated = copy(directory.path());
    let found = observe(&open_small(truncated.path()).unwrap());
    assert_eq!((found.last, found.applied), (Some(log_id(1, 9)), Some(log_id(1, 6))), "on disk when it returns");

    let temporary = store.state_machine.snapshots().temporary_file();
    fs::copy(snapshot_path(leader_directory.path(), 20), temporary.path()).unwrap();
    let received = copy(directory.path());
    assert_eq!(observe(&open_small(received.path()).unwrap()), found, "received, not installed");

    let (meta, snapshot) = store.state_machine.snapshots().verify(temporary).unwrap();
    run(store.state_machine.clone().install_snapshot(&meta, snapshot)).unwrap();
    let renamed = copy(directory.path());
    assert_installed(renamed.path(), 9);

    run(log.purge(log_id(2, 20))).unwrap();
    run(log.flush()).unwrap();
    assert_installed(copy(directory.path()).path(), 20);
}

/// Steps: the last record of a file, byte by byte; the next file, empty; its first record, byte by byte; and a second
/// file after it, because files are created ahead of the writes.
#[test]
fn beginning_a_log_file() {
    let directory = scratch();
    let store = open_small(directory.path()).unwrap();
    store.join_cluster(CLUSTER).unwrap();
    run(append(&store, (0..3).map(|index| set(1, index, "key", &"v".repeat(20)))));
    let before = observe(&store);
    assert_eq!(log_files(directory.path()).len(), 1);
    // Fill the file.
    run(append(&store, [set(1, 3, "key", &"v".repeat(200))]));
    run(store.log.flush()).unwrap();
    let after = observe(&store);
    drop(store);
    let [full, next] = log_files(directory.path()).try_into().unwrap();
    let offsets = record_offsets(&full);
    let whole = files(directory.path());
    let full_bytes = fs::read(&full).unwrap();
    let next_bytes = fs::read(&next).unwrap();
    let next_but_one = next.with_file_name("r-00_000_000_000_000_009_999.wal");

    let check = |full_length: usize, next_length: Option<usize>, third: bool| {
        restore(directory.path(), &whole);
        fs::write(&full, &full_bytes[..full_length]).unwrap();
        match next_length {
            None => fs::remove_file(&next).unwrap(),
            Some(length) => fs::write(&next, &next_bytes[..length]).unwrap(),
        }
        if third {
            fs::write(&next_but_one, "").unwrap();
        }
        let context = format!("{full_length} bytes, then {next_length:?}, third: {third}");
        let store = open_small(directory.path()).unwrap_or_else(|error| panic!("{context}: {error}"));
        let expected = if full_length == full_bytes.len() { &after } else { &before };
        assert_eq!(observe(&store), *expected, "{context}");
        drop(store);
        assert!(!next_but_one.exists(), "{context}");
        assert_goes_on(directory.path(), &context);
    };
    for full_length in offsets[offsets.len() - 2] as usize..=full_bytes.len() {
        check(full_length, None, false);
        check(full_length, Some(0), false);
        check(full_length, Some(0), true);
    }
    for next_length in 1..=next_bytes.len() {
        check(full_bytes.len(), Some(next_length), false);
        check(full_bytes.len(), Some(next_length), next_length % 2 == 0);
    }
}
