//! The result of each start, by what the data directory contains.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use openraft::storage::RaftLogStorage;
use raft_key_value::store::{ClusterId, ExampleStore, StoreError};

use crate::support::*;

/// A member with several log files and a snapshot.
fn member(data_dir: &Path) -> Observed {
    let store = open_small(data_dir).unwrap();
    store.join_cluster(CLUSTER).unwrap();
    run(async {
        store.log.clone().save_vote(&vote(1, true)).await.unwrap();
        append(&store, (0..12).map(|index| set(1, index, "key", &format!("a somewhat longer value {index}")))).await;
        apply_from_log(&store, 8).await;
        build_snapshot(&store).await;
    });
    drop(store);
    observe(&open_small(data_dir).unwrap())
}

/// Opening fails with the error that `check` expects, and changes nothing.
#[track_caller]
fn assert_refused(data_dir: &Path, check: impl FnOnce(&StoreError) -> bool) -> String {
    let before = files(data_dir);
    let error = open_small(data_dir).unwrap_err();
    assert!(check(&error), "{error}");
    assert_eq!(files(data_dir), before, "a refused directory was changed: {error}");
    let message = error.to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

/// A new directory gets an identity and no other state, and keeps the identity.
#[test]
fn new_directory() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("not/yet/there");
    let store = ExampleStore::open(&data_dir, NODE).unwrap();
    let identity = store.identity();
    assert_eq!((identity.cluster_id, identity.node_id), (None, NODE));
    assert_ne!(identity.incarnation, 0);
    assert_eq!(observe(&store), Observed::default());
    drop(store);
    let store = ExampleStore::open(&data_dir, NODE).unwrap();
    assert_eq!(store.identity(), identity);

    assert_eq!(store.join_cluster(CLUSTER).unwrap(), CLUSTER);
    assert_eq!(store.join_cluster(ClusterId(2)).unwrap(), CLUSTER, "a node joins once, for good");
    drop(store);
    let store = ExampleStore::open(&data_dir, NODE).unwrap();
    assert_eq!(store.identity().cluster_id, Some(CLUSTER));
    assert_eq!(store.identity().incarnation, identity.incarnation);
    assert_eq!(store.directory(), node_directory(&data_dir));
}

/// A directory that another process uses is not touched, and the error names the process.
///
/// Method: this process holds the lock, and another one starts on the directory.
#[test]
fn locked() {
    let directory = tempfile::tempdir().unwrap();
    member(directory.path());
    let _held = open_small(directory.path()).unwrap();
    let before = files(directory.path());
    let message = assert_refused(
        directory.path(),
        |error| matches!(error, StoreError::Locked { holder, .. } if *holder == std::process::id().to_string()),
    );
    assert!(message.contains(&format!("is locked by process {}", std::process::id())), "{message}");
    let lock = node_directory(directory.path()).join("LOCK");
    assert_eq!(fs::read_to_string(&lock).unwrap().trim(), std::process::id().to_string());

    let server = Command::new(env!("CARGO_BIN_EXE_raft-key-value"))
        .args(["--id", "1", "--http-addr", "127.0.0.1:0", "--data-dir"])
        .arg(directory.path())
        .output()
        .unwrap();
    assert_eq!(server.status.code(), Some(73), "{}", String::from_utf8_lossy(&server.stderr));
    assert_eq!(files(directory.path()), before);
    assert_eq!(fs::read_to_string(&lock).unwrap().trim(), std::process::id().to_string());
}

/// A lock file that remains from a killed process does not prevent a start.
#[test]
fn stale_lock() {
    let directory = tempfile::tempdir().unwrap();
    let expected = member(directory.path());
    fs::write(node_directory(directory.path()).join("LOCK"), "4000000\n").unwrap();
    assert_eq!(observe(&open_small(directory.path()).unwrap()), expected);
}

/// Data without an identity is rejected, whichever files exist.
#[test]
fn identity_is_missing() {
    let directory = scratch();
    member(directory.path());
    let node = node_directory(directory.path());
    let damaged = |error: &StoreError| matches!(error, StoreError::Damaged { path, .. } if path.ends_with("IDENTITY"));
    fs::remove_file(node.join("IDENTITY")).unwrap();
    assert_refused(directory.path(), damaged);
    // A partial temporary file from a crash is not an identity either.
    fs::write(node.join("IDENTITY.tmp"), "{").unwrap();
    assert_refused(directory.path(), damaged);
    fs::remove_dir_all(node.join("log")).unwrap();
    assert_refused(directory.path(), damaged);
    fs::remove_dir_all(node.join("snapshots")).unwrap();
    open_small(directory.path()).unwrap();
}

/// An identity from before the node joined its cluster contradicts a vote, a log or a snapshot.
#[test]
fn identity_is_older_than_the_data() {
    let directory = scratch();
    member(directory.path());
    let node = node_directory(directory.path());
    let unjoined = scratch();
    drop(open_small(unjoined.path()).unwrap());
    fs::copy(node_directory(unjoined.path()).join("IDENTITY"), node.join("IDENTITY")).unwrap();
    let damaged = |error: &StoreError| matches!(error, StoreError::Damaged { path, .. } if path.ends_with("IDENTITY"));
    assert_refused(directory.path(), damaged);
}

/// A damaged identity is rejected. (For each of its bytes: `flips::identity`.)
#[test]
fn identity_is_damaged() {
    let directory = scratch();
    member(directory.path());
    let path = node_directory(directory.path()).join("IDENTITY");
    let whole = fs::read_to_string(&path).unwrap();
    let (front, back) = whole.split_at(whole.len() / 2);
    let damages =
        [String::new(), front.into(), back.into(), format!("{whole}{whole}"), format!("{whole} "), "{}".into()];
    for damaged in damages {
        fs::write(&path, &damaged).unwrap();
        assert_refused(
            directory.path(),
            |error| matches!(error, StoreError::Damaged { path: named, .. } if *named == path),
        );
    }
}

/// Another node's directory is rejected, and the error names that node.
#[test]
fn other_node() {
    let directory = scratch();
    let other = ExampleStore::open(directory.path(), 7).unwrap();
    drop(other);
    fs::rename(directory.path().join("node-7"), node_directory(directory.path())).unwrap();
    let message =
        assert_refused(directory.path(), |error| matches!(error, StoreError::OtherNode { found: 7, wanted: NODE, .. }));
    assert!(message.contains("start it with --id 7"), "{message}");
}

/// Data of a newer version is rejected as such, not as damaged.
///
/// Method: use an `IDENTITY` of format 6, and a snapshot of format 6 with a valid checksum.
#[test]
fn newer_format() {
    let directory = scratch();
    member(directory.path());
    let newer = |path: &Path, format: u32| {
        let (path, former) = (path.to_owned(), format - 1);
        let check = move |error: &StoreError| matches!(error, StoreError::NewerFormat { path: named, found, known } if (named, *found, *known) == (&path, format, former));
        let message = assert_refused(directory.path(), check);
        let expected = format!("has format {format}, but this program supports formats up to {former}");
        assert!(message.contains(&expected), "{message}");
    };

    let path = snapshot_path(directory.path(), 8);
    let whole = fs::read(&path).unwrap();
    let meta_bytes = u32::from_be_bytes(whole[12..16].try_into().unwrap()) as usize;
    let mut bytes = whole.clone();
    bytes[11] = 6;
    let checksum = crc32fast::hash(&bytes[..16 + meta_bytes]);
    bytes[16 + meta_bytes..20 + meta_bytes].copy_from_slice(&checksum.to_be_bytes());
    fs::write(&path, bytes).unwrap();
    newer(&path, 6);
    fs::write(&path, whole).unwrap();

    let path = node_directory(directory.path()).join("IDENTITY");
    fs::write(&path, "{\"format\":6,\"cluster\":\"with other fields\"}\n").unwrap();
    newer(&path, 6);
}

/// A member's log must exist, because the member has voted or joined.
///
/// Method: remove in turn the log's directory, all its files, its first file, and one in between.
#[test]
fn log_files_are_missing() {
    let directory = scratch();
    let expected = member(directory.path());
    let whole = files(directory.path());
    let paths = log_files(directory.path());
    assert!(paths.len() >= 4);
    let log = log_directory(directory.path());

    fs::remove_dir_all(&log).unwrap();
    let (path, offset, what) = assert_damaged(directory.path());
    assert_eq!((&path, offset), (&log, None));
    assert!(what.contains("belongs to cluster 00000000000000c1"), "{what}");
    restore(directory.path(), &whole);

    paths.iter().for_each(|path| fs::remove_file(path).unwrap());
    let (path, offset, _) = assert_damaged(directory.path());
    assert_eq!((&path, offset), (&log, None));
    restore(directory.path(), &whole);

    fs::remove_file(&paths[0]).unwrap();
    let (path, _, what) = assert_damaged(directory.path());
    assert_eq!(path, log);
    assert!(what.contains("the entries from index 0 to"), "{what}");
    restore(directory.path(), &whole);

    for missing in 1..paths.len() - 1 {
        fs::remove_file(&paths[missing]).unwrap();
        let bytes = whole[&paths[missing]].as_ref().unwrap().len();
        let before = whole[&paths[missing - 1]].as_ref().unwrap().len();
        let (path, offset, what) = assert_damaged(directory.path());
        assert_eq!((&path, offset), (&paths[missing - 1], Some(before as u64)));
        assert!(what.contains(&format!("{bytes} bytes or whole files are missing")), "{what}");
        restore(directory.path(), &whole);
    }
    assert_eq!(observe(&open_small(directory.path()).unwrap()), expected);
}

/// A log file that exists twice, or under another name, is not ignored.
#[test]
fn log_files_are_renamed() {
    let directory = scratch();
    member(directory.path());
    let whole = files(directory.path());
    let paths = log_files(directory.path());
    for name in ["copy of the log.wal", "r-00_000_000_000_000_000_00x.wal", "r-1.wal"] {
        let path = paths[1].with_file_name(name);
        fs::rename(&paths[1], &path).unwrap();
        assert_eq!(assert_damaged(directory.path()).0, path);
        restore(directory.path(), &whole);
    }
    let path = paths[1].with_file_name("r-00_000_000_000_000_000_001.wal");
    fs::copy(&paths[1], &path).unwrap();
    let (named, _, what) = assert_damaged(directory.path());
    assert_eq!(named, paths[0]);
    assert!(what.contains("begins before the end of this file"), "{what}");
    restore(directory.path(), &whole);

    fs::write(paths[1].with_file_name("notes.txt"), "not ours").unwrap();
    open_small(directory.path()).unwrap();
}

/// A log whose beginning was purged requires the snapshot of that part.
#[test]
fn gap_between_snapshot_and_log() {
    let directory = scratch();
    member(directory.path());
    let store = open_small(directory.path()).unwrap();
    run(async {
        apply_from_log(&store, 10).await;
        build_snapshot(&store).await;
        store.log.clone().purge(log_id(1, 9)).await.unwrap();
        store.log.flush().await.unwrap();
    });
    drop(store);
    fs::remove_file(snapshot_path(directory.path(), 10)).unwrap();
    let snapshots = node_directory(directory.path()).join("snapshots");
    let (path, _, what) = assert_damaged(directory.path());
    assert_eq!((&path, what.as_str()), (&snapshots, "the log begins after T1-N1.9, but the snapshots end at T1-N1.8"));
    fs::remove_file(snapshot_path(directory.path(), 8)).unwrap();
    let (path, _, what) = assert_damaged(directory.path());
    assert_eq!((&path, what.as_str()), (&snapshots, "the log begins after T1-N1.9, but the snapshots end at nothing"));
    fs::remove_dir(&snapshots).unwrap();
    assert_eq!(assert_damaged(directory.path()).0, snapshots);
}

/// Partial files from a crash are deleted, and no others.
#[test]
fn temporary_files_are_deleted() {
    let directory = scratch();
    let expected = member(directory.path());
    let node = node_directory(directory.path());
    let leftovers: [PathBuf; 4] =
        ["IDENTITY.tmp", "snapshots/new-0.tmp", "snapshots/new-7.tmp", "snapshots/8.tmp"].map(|name| node.join(name));
    for path in &leftovers {
        fs::write(path, "half").unwrap();
    }
    fs::write(node.join("notes.txt"), "mine").unwrap();
    let (store, _) = logged(|| open_small(directory.path()).unwrap());
    assert_eq!(observe(&store), expected);
    assert!(leftovers.iter().all(|path| !path.exists()));
    assert!(node.join("notes.txt").exists());
}

/// A rejected directory keeps even its torn records and partial files.
///
/// Method: combine everything that opening would clean up with each reason to reject the directory.
#[test]
fn nothing_is_tidied_up_on_refusal() {
    type Damage = fn(&Path);
    let damages: [Damage; 3] = [
        |node| fs::write(node.join("snapshots/8.snap"), "damaged").unwrap(),
        |node| fs::remove_dir_all(node.join("snapshots")).unwrap(),
        |node| fs::write(node.join("IDENTITY"), "damaged").unwrap(),
    ];
    for damage in damages {
        let directory = scratch();
        member(directory.path());
        let store = open_small(directory.path()).unwrap();
        run(store.log.clone().purge(log_id(1, 7))).unwrap();
        drop(store);
        let node = node_directory(directory.path());
        damage(&node);
        fs::write(node.join("IDENTITY.tmp"), "half").unwrap();
        let last = log_files(directory.path()).pop().unwrap();
        let bytes = fs::metadata(&last).unwrap().len();
        fs::OpenOptions::new().write(true).open(&last).unwrap().set_len(bytes - 1).unwrap();
        assert_damaged(directory.path());
    }
}

/// An error of the operating system is reported with operation, object and cause.
///
/// Method: put a file in place of a directory, and a directory in place of a file. (Permissions do not restrict root,
/// which may run this test.)
#[test]
fn system_errors() {
    type Obstacle = fn(&Path);
    let rows: [(&str, &str, Obstacle); 6] = [
        ("create", "node-1", |node| fs::write(node, "").unwrap()),
        ("open", "LOCK", |node| fs::create_dir_all(node.join("LOCK")).unwrap()),
        ("read", "IDENTITY", |node| fs::create_dir_all(node.join("IDENTITY")).unwrap()),
        ("write", "IDENTITY", |node| fs::create_dir_all(node.join("IDENTITY.tmp")).unwrap()),
        ("list", "log", |node| obstacle_in_new_directory(node, "log")),
        ("list", "snapshots", |node| obstacle_in_new_directory(node, "snapshots")),
    ];
    for (action, object, obstacle) in rows {
        let directory = scratch();
        let node = node_directory(directory.path());
        obstacle(&node);
        let error = open_small(directory.path()).unwrap_err();
        let StoreError::Io { action: tried, path, source } = &error else { panic!("{error}") };
        assert_eq!((*tried, path.ends_with(object)), (action, true), "{error}");
        assert_eq!(error.to_string(), format!("cannot {action} `{}`: {source}", path.display()));
    }
}

fn obstacle_in_new_directory(node: &Path, name: &str) {
    drop(open_small(node.parent().unwrap()).unwrap());
    fs::remove_dir_all(node.join(name)).unwrap();
    fs::write(node.join(name), "").unwrap();
}

/// A path that raft-log does not support is rejected, and no other path is used.
#[test]
fn path_that_is_not_utf8() {
    use std::os::unix::ffi::OsStrExt;
    let directory = scratch();
    let data_dir = directory.path().join(std::ffi::OsStr::from_bytes(b"d\xff"));
    let error = open_small(&data_dir).unwrap_err();
    assert!(error.to_string().ends_with("the path must be UTF-8"), "{error}");
    assert!(matches!(error, StoreError::Io { .. }));
}
