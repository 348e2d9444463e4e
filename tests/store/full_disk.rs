//! A full disk.
//!
//! A limit on the length of files simulates it: any user can set one, and the same call fails. The limit holds for a
//! whole process, so the tests start themselves again, under a shell that sets it.

use std::path::PathBuf;
use std::process::Command;

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use openraft::{RaftSnapshotBuilder, storage::RaftStateMachine};
use raft_key_value::TypeConfig;
use raft_key_value::store::{ExampleStore, StoreError};

use crate::support::*;

/// Tells the child process which directory to use.
const DIRECTORY: &str = "RKV_TEST_FULL_DISK";

/// Runs a test of this module in a process whose files may have at most 64 or 128 KiB (shells count in blocks of 512 or
/// 1,024 bytes), and returns its output.
fn run_limited(name: &str, data_dir: &std::path::Path) -> String {
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ && ulimit -f 128 && exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture"])
        .env(DIRECTORY, data_dir)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    text
}

/// The directory that the parent test passed to this process; `None` in the parent.
fn directory_from_environment() -> Option<PathBuf> {
    std::env::var_os(DIRECTORY).map(PathBuf::from)
}

/// The first failed write is reported to its caller, all later ones are rejected, and acknowledged entries exist after
/// a restart.
///
/// Method: append entries of 1 KiB until the file is full. Then open the directory without the limit.
#[test]
fn append() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    store.join_cluster(CLUSTER).unwrap();
    drop(store);
    let output = run_limited("full_disk::append_until_full", directory.path());
    let acknowledged: u64 = output.split("acknowledged: ").nth(1).unwrap().split('.').next().unwrap().parse().unwrap();
    assert!((50..130).contains(&acknowledged), "{output}");

    let store = open(directory.path());
    let found = observe(&store);
    assert_eq!(found.last, Some(log_id(1, acknowledged - 1)));
    run(crate::support::append(&store, [blank(2, acknowledged)]));
}

#[test]
#[ignore = "run under a limit by `cargo test --test store full_disk::append`"]
fn append_until_full() {
    let Some(directory) = directory_from_environment() else { return };
    let store = open(&directory);
    let mut log = store.log.clone();
    run(async {
        let mut acknowledged = 0;
        let error = loop {
            let (tx, rx) = TypeConfig::oneshot();
            let entry = set(1, acknowledged, "key", &"v".repeat(1024));
            log.append([entry], IOFlushed::signal(tx)).await.unwrap();
            match rx.await.unwrap() {
                Ok(()) => acknowledged += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), std::io::ErrorKind::FileTooLarge, "{error}");
        let (tx, mut rx) = TypeConfig::oneshot();
        let refused = [
            log.append([blank(1, acknowledged + 1)], IOFlushed::signal(tx)).await,
            log.save_vote(&vote(2, false)).await,
            log.flush().await,
        ];
        for result in refused {
            assert_eq!(result.unwrap_err().to_string(), error.to_string());
        }
        assert!(rx.try_recv().is_err());
        #[expect(clippy::print_stdout, reason = "the test that started this reads it")]
        {
            println!("acknowledged: {acknowledged}.");
        }
    });
}

/// A snapshot that cannot be written returns an error, leaves no file, and keeps the older one.
///
/// Method: use a state that is larger than a file may be. Then open the directory without the limit.
#[test]
fn snapshot() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    store.join_cluster(CLUSTER).unwrap();
    run(async {
        crate::support::append(&store, (0..3).map(|index| set(1, index, "key", "value"))).await;
        apply_from_log(&store, 2).await;
        build_snapshot(&store).await;
    });
    let expected = observe(&store);
    drop(store);
    run_limited("full_disk::snapshot_over_the_limit", directory.path());
    assert_eq!(observe(&open(directory.path())), expected);
}

#[test]
#[ignore = "run under a limit by `cargo test --test store full_disk::snapshot`"]
fn snapshot_over_the_limit() {
    let Some(directory) = directory_from_environment() else { return };
    let store = open(&directory);
    run(apply(&store, (3..500).map(|index| set(1, index, &format!("key {index}"), &"v".repeat(1024)))));
    let snapshots = node_directory(&directory).join("snapshots");
    let before = files(&snapshots);
    run(async {
        let mut builder = store.state_machine.clone().get_snapshot_builder().await;
        let error = builder.build_snapshot().await.map(|snapshot| snapshot.meta).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::FileTooLarge, "{error}");
        assert!(error.to_string().contains("cannot write `"), "{error}");
    });
    assert_eq!(files(&snapshots), before);
    assert_eq!(observe(&store).snapshot.unwrap().last_log_id, Some(log_id(1, 2)));
}

/// A directory in which nothing can be written is rejected because of the disk, not as damaged.
///
/// Method: start the server with a limit of 0 bytes.
#[test]
fn open_with_nothing_left() {
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ && ulimit -f 0 && exec \"$0\" --id 1 --http-addr 127.0.0.1:0 --data-dir \"$1\""])
        .arg(env!("CARGO_BIN_EXE_raft-key-value"))
        .arg(directory.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(74), "{}", String::from_utf8_lossy(&output.stderr));
    // No partial file prevents the next start.
    let store = ExampleStore::open(directory.path(), NODE);
    assert!(!matches!(store, Err(StoreError::Damaged { .. })), "{store:?}");
    assert_eq!(observe(&store.unwrap()), Observed::default());
}
