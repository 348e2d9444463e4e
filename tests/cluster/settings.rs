//! The settings file: `--config`, `config print` and `config check`.

use std::fs;
use std::net::TcpListener;

use crate::harness::{Ended, run};

/// A directory with a settings file, and the path of that file.
fn settings(text: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("node.toml");
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (directory, path)
}

fn assert_invalid(ended: &Ended, named: &[&str]) {
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert_eq!((ended.stderr.lines().count(), ended.stdout.as_str()), (1, ""), "{ended:?}");
    assert!(named.iter().all(|name| ended.stderr.contains(name)), "{named:?}: {ended:?}");
}

/// A file, then the environment, then flags: each overrides the one before, and `config print` names the source of
/// each setting. What it prints is a file that gives the same settings.
#[test]
fn sources_override_each_other() {
    let (directory, path) = settings(
        "id = 7\nhttp-addr = \"127.0.0.1:1\"\nsnapshot-entries = 500\nmax-key-bytes = 100\nlog-format = \"json\"\n\
         allowed-hosts = [\"one.example\", \"two.example\"]\n",
    );
    let variables = [("RKV_SNAPSHOT_ENTRIES", "600"), ("RKV_MAX_KEY_BYTES", "200"), ("RKV_LOG_LEVEL", "")];
    let ended = run(&["config", "print", "--config", &path, "--max-key-bytes", "300"], &variables);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    for line in [
        "id = 7 # the file",
        "http-addr = \"127.0.0.1:1\" # the file",
        "snapshot-entries = 600 # RKV_SNAPSHOT_ENTRIES",
        "max-key-bytes = 300 # --max-key-bytes",
        "log-format = \"json\" # the file",
        "allowed-hosts = [\"one.example\", \"two.example\"] # the file",
        "heartbeat-interval-ms = 100 # default",
        "# advertise-addr is not set",
    ] {
        assert!(ended.stdout.lines().any(|printed| printed == line), "{line}: {}", ended.stdout);
    }
    let printed = directory.path().join("printed.toml");
    fs::write(&printed, &ended.stdout).unwrap();
    let again = run(&["config", "print", "--config", printed.to_str().unwrap()], &[]);
    let without_sources = |text: &str| -> Vec<String> {
        text.lines().map(|line| line.split(" # ").next().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(without_sources(&again.stdout), without_sources(&ended.stdout), "{again:?}");

    let by_variable = run(&["config", "check"], &[("RKV_CONFIG", &path)]);
    assert_eq!((by_variable.code, by_variable.stdout.as_str()), (Some(0), "The settings are valid.\n"));
}

/// Invalid files are rejected with exit code 2 and one line that names the file and the key, by a node and by
/// `config check`. `--help`, `--version` and commands that need no settings of a node work nevertheless.
#[test]
fn invalid_files_are_named() {
    let rows: &[(&str, &[&str])] = &[
        ("id = ", &["line 1"]),
        ("htp-addr = \"h:1\"", &["unknown key `htp-addr`", "`http-addr`"]),
        ("id = \"one\"", &["id: ", "integer"]),
        ("id = 0", &["id in", "at least 1"]),
        ("heartbeat-interval-ms = 5", &["heartbeat-interval-ms in", "at least"]),
        ("log-level = \"wran\"", &["log-level in", "wran"]),
    ];
    for (text, named) in rows {
        // Keys of the row come first, so the line numbers are theirs.
        let rest = if text.starts_with("id") { "" } else { "\nid = 1" };
        let (_directory, path) = settings(&format!("{text}{rest}\nhttp-addr = \"127.0.0.1:1\"\n"));
        let named = [&[path.as_str()], *named].concat();
        assert_invalid(&run(&["config", "check", "--config", &path], &[]), &named);
        assert_invalid(&run(&["--config", &path], &[]), &named);
        assert_invalid(&run(&[], &[("RKV_CONFIG", &path)]), &named);
        for arguments in [&["--help"][..], &["--version"], &["completions", "bash"], &["config", "check", "--help"]] {
            let ended = run(arguments, &[("RKV_CONFIG", &path)]);
            assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{arguments:?}: {ended:?}");
        }
    }
    assert_invalid(&run(&["--config", "/no/such/file.toml"], &[]), &["/no/such/file.toml", "cannot be read"]);
    assert_invalid(&run(&["--config"], &[]), &["--config"]);
    assert_invalid(&run(&["config", "check"], &[]), &["--id"]);
}

/// A node uses the settings of a file, and a flag overrides them.
///
/// Method: take the address in the file, so that a node which listens on it must fail, and name another by a flag.
#[test]
fn a_file_configures_a_node() {
    let taken = [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap()];
    let addrs = taken.each_ref().map(|listener| listener.local_addr().unwrap().to_string());
    let (directory, path) = settings("");
    let text = format!("id = 6\nhttp-addr = \"{}\"\ndata-dir = \"{}\"\n", addrs[0], directory.path().display());
    fs::write(&path, text).unwrap();
    for (arguments, addr) in [(&[][..], &addrs[0]), (&["--http-addr", &addrs[1]], &addrs[1])] {
        let ended = run(&[&["--config", path.as_str()], arguments].concat(), &[]);
        assert_eq!(ended.code, Some(69), "{ended:?}");
        assert!(ended.stderr.lines().last().is_some_and(|line| line.contains(addr)), "{ended:?}");
    }
}
