//! Whether other users of the machine can reach a node's files, and what happens to files they plant.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use crate::harness::{ALL, CALM_BUT_QUICK, Ended, OFTEN, TestCluster, TestNode, files_below, run};

/// A user other than the one who runs the tests.
const SOMEBODY: u32 = 12_345;

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Asserts that only the owner can reach a node's directories and files.
#[track_caller]
fn assert_private(node: &TestNode) {
    let directory = node.directory();
    for path in [directory.clone(), directory.join("log"), directory.join("snapshots")] {
        assert_eq!(mode_of(&path), 0o700, "{}", path.display());
    }
    for path in node.files() {
        assert_eq!(mode_of(&path), 0o600, "{}", path.display());
    }
}

/// Directories are created with mode 0700 and files with mode 0600, whatever the umask.
///
/// Method: start nodes with several umasks. Build snapshots, start a new log file, and send a node a snapshot. Then
/// check every mode.
#[tokio::test]
async fn files_are_private_whatever_the_umask() {
    for umask in ["000", "022", "777"] {
        let flags = [CALM_BUT_QUICK, OFTEN].concat();
        let mut cluster = TestCluster::start("umask", &[], &flags).await;
        cluster.set_umask(umask);
        for id in [1, 2] {
            cluster.add_node(id).await;
        }
        cluster.post(1, "/init", "").await.ok().unwrap();
        cluster.write_many(1, "k", 120).await;
        cluster.metrics_say(1, "a snapshot", |metrics| metrics.snapshot).await;
        cluster.add_learner(1, 2).await;
        cluster.metrics_say(2, "a snapshot", |metrics| metrics.snapshot).await;
        for id in [1, 2] {
            assert_private(cluster.node(id));
        }
    }
}

/// A directory that an older version left open to other users is made private at the next start.
#[tokio::test]
async fn an_open_directory_is_made_private() {
    let mut cluster = TestCluster::form("open-directory", &ALL, CALM_BUT_QUICK).await;
    assert_eq!(cluster.stop(2).await, Some(0));
    let directory = cluster.node(2).directory();
    for path in [directory.clone(), directory.join("log"), directory.join("snapshots")] {
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    }
    for path in cluster.node(2).files() {
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    }
    cluster.restart(2).await;
    assert_private(cluster.node(2));
}

/// Runs a node that must reject its directory.
fn start_on(data_dir: &Path) -> Ended {
    let data_dir = data_dir.to_str().unwrap();
    run(&["--id", "1", "--http-addr", "127.0.0.1:0", "--data-dir", data_dir], &[])
}

/// A file that leads outside the directory is rejected, whatever its name, and its target is not touched.
///
/// Method: in a new and in a used directory, put a symbolic link, a pipe, or a dangling link in place of each file that
/// a node opens or creates.
#[tokio::test]
async fn files_that_lead_elsewhere_are_rejected() {
    let directory = tempfile::tempdir().unwrap();
    let victim = directory.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    let names =
        ["LOCK", "IDENTITY", "IDENTITY.tmp", "CLOCK", "CLOCK.tmp", "log/LOCK", "log/r-00_000_000_000_000_000_000.wal"];
    let names = names.into_iter().chain(["snapshots/5.snap", "snapshots/new-0.tmp"]);
    for name in names {
        for plant in ["link", "dangling", "pipe"] {
            let data_dir = directory.path().join(format!("{}-{plant}", name.replace('/', "-")));
            let planted = data_dir.join("node-1").join(name);
            fs::create_dir_all(planted.parent().unwrap()).unwrap();
            match plant {
                "link" => symlink(&victim, &planted).unwrap(),
                "dangling" => symlink(directory.path().join("nothing"), &planted).unwrap(),
                _ => assert!(Command::new("mkfifo").arg(&planted).status().unwrap().success()),
            }
            let before = files_below(&data_dir);
            let ended = start_on(&data_dir);
            assert_eq!(ended.code, Some(78), "{name} as {plant}: {ended:?}");
            assert!(ended.stderr.contains(planted.to_str().unwrap()), "{name} as {plant}: {ended:?}");
            assert_eq!(files_below(&data_dir), before, "{name} as {plant}");
        }
    }
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    assert!(!directory.path().join("nothing").exists());
}

/// A hard link in place of a file that the node writes is rejected, and so is a link in place of the node's directory.
#[tokio::test]
async fn links_to_foreign_files_are_rejected() {
    let directory = tempfile::tempdir().unwrap();
    let victim = directory.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    fs::set_permissions(&victim, Permissions::from_mode(0o644)).unwrap();
    let data_dir = directory.path().join("hard");
    fs::create_dir_all(data_dir.join("node-1")).unwrap();
    fs::hard_link(&victim, data_dir.join("node-1/LOCK")).unwrap();
    let ended = start_on(&data_dir);
    assert_eq!(ended.code, Some(78), "{ended:?}");
    assert_eq!((fs::read_to_string(&victim).unwrap().as_str(), mode_of(&victim)), ("precious", 0o644));

    let (elsewhere, data_dir) = (directory.path().join("elsewhere"), directory.path().join("linked"));
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("draft.tmp"), "precious").unwrap();
    fs::create_dir(&data_dir).unwrap();
    symlink(&elsewhere, data_dir.join("node-1")).unwrap();
    let ended = start_on(&data_dir);
    assert_eq!(ended.code, Some(78), "{ended:?}");
    assert_eq!(files_below(&elsewhere), [elsewhere.join("draft.tmp")]);
}

/// A node leaves files alone that are not its own.
#[tokio::test]
async fn other_files_are_left_alone() {
    let mut cluster = TestCluster::form("other-files", &[1], CALM_BUT_QUICK).await;
    assert_eq!(cluster.stop(1).await, Some(0));
    let directory = cluster.node(1).directory();
    let note = directory.join("NOTE");
    fs::write(&note, "not the node's").unwrap();
    fs::set_permissions(&note, Permissions::from_mode(0o644)).unwrap();
    symlink("/nowhere", directory.join("link")).unwrap();
    if rustix::process::geteuid().is_root() {
        chown(&note, Some(SOMEBODY), None).unwrap();
    }
    cluster.restart(1).await;
    assert_eq!(mode_of(&note), 0o644);
}

/// `log` and `snapshots` may be links to directories on other disks.
#[tokio::test]
async fn the_log_may_be_on_another_disk() {
    let mut cluster = TestCluster::form("log-elsewhere", &[1], CALM_BUT_QUICK).await;
    cluster.write(1, "key", "value").await;
    assert_eq!(cluster.stop(1).await, Some(0));
    let (log, elsewhere) = (cluster.node(1).directory().join("log"), cluster.node(1).data_dir().join("elsewhere"));
    fs::rename(&log, &elsewhere).unwrap();
    symlink(&elsewhere, &log).unwrap();
    cluster.restart(1).await;
    cluster.value_is(&[1], "key", "value").await;
}

/// A directory that another user owns is rejected, and left unchanged.
///
/// Method: as root, give one of the directories to another user. Other users cannot do that.
#[tokio::test]
async fn a_directory_of_another_user_is_rejected() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not tested: only root can give a directory away");
        return;
    }
    let mut cluster = TestCluster::form("other-owner", &[1], CALM_BUT_QUICK).await;
    assert_eq!(cluster.stop(1).await, Some(0));
    let (data_dir, directory) = (cluster.node(1).data_dir().to_owned(), cluster.node(1).directory());
    let root = fs::metadata(&directory).unwrap().uid();
    for path in [data_dir.clone(), directory.clone(), directory.join("log"), directory.join("snapshots")] {
        chown(&path, Some(SOMEBODY), None).unwrap();
        let ended = start_on(&data_dir);
        assert_eq!(ended.code, Some(78), "{}: {ended:?}", path.display());
        let said = format!("`{}` belongs to user {SOMEBODY}", path.display());
        assert!(ended.stderr.contains(&said), "{ended:?}");
        chown(&path, Some(root), None).unwrap();
    }
    cluster.restart(1).await;
}
