//! How a process ends, and what it says then.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{
    BINARY, CALM, DEADLINE, Ended, Http, TestCluster, TestNode, command, files_below, free_port, run, send_signal,
};

/// One line on standard error, and no more.
fn one_line(ended: &Ended) -> &str {
    let line = ended.stderr.strip_suffix('\n').unwrap_or_else(|| panic!("the line does not end: {ended:?}"));
    assert!(!line.contains('\n'), "more than one line: {ended:?}");
    assert!(line.starts_with("error: "), "{ended:?}");
    assert_eq!(ended.stdout, "", "an error is for standard error: {ended:?}");
    line
}

/// The last line on standard error, after what was logged.
fn last_line(ended: &Ended) -> &str {
    let line = ended.stderr.lines().last().unwrap_or_else(|| panic!("nothing was said: {ended:?}"));
    assert!(line.starts_with("error: "), "{ended:?}");
    line
}

/// A wrong flag or variable is said in one line that names it, with exit code 2.
#[test]
fn usage_errors_are_one_line() {
    let base = ["--id", "1", "--http-addr", "127.0.0.1:1"];
    let rows: &[(&[&str], &str)] = &[
        (&["--no-such-flag"], "--no-such-flag"),
        (&["something"], "something"),
        (&["--data-dir"], "--data-dir"),
        (&["--heartbeat-interval-ms", "soon"], "--heartbeat-interval-ms"),
        (&["--heartbeat-interval-ms", "-1"], "-1"),
        (&["--heartbeat-interval-ms", "1"], "--heartbeat-interval-ms"),
        (&["--election-timeout-min-ms", "100"], "--election-timeout-min-ms"),
        (&["--election-timeout-max-ms", "18446744073709551616"], "--election-timeout-max-ms"),
        (&["--snapshot-entries", "0"], "--snapshot-entries"),
        (&["--max-request-bytes", "1e6"], "--max-request-bytes"),
        (&["--max-request-bytes", "0"], "--max-request-bytes"),
        (&["--advertise-addr", "http://127.0.0.1:1"], "--advertise-addr"),
        (&["--log-format", "xml"], "--log-format"),
        (&["--log-level", "==="], "--log-level"),
        (&["--log-level", "loud"], "--log-level"),
        (&["--log-level", "hyper"], "--log-level"),
        (&["--log-level", ","], "--log-level"),
        (&["--id", "2"], "--id"),
    ];
    for (arguments, named) in rows {
        let arguments: Vec<&str> = base.iter().chain(*arguments).copied().collect();
        let ended = run(&arguments, &[]);
        assert_eq!(ended.code, Some(2), "{arguments:?}: {ended:?}");
        assert!(one_line(&ended).contains(named), "{arguments:?}: {ended:?}");
    }
    let rows: &[(&[&str], &str)] = &[
        (&[], "--id"),
        (&["--http-addr", "127.0.0.1:1"], "--id"),
        (&["--id", "1"], "--http-addr"),
        (&["--id", "", "--http-addr", "127.0.0.1:1"], "--id"),
        (&["--id", "0", "--http-addr", "127.0.0.1:1"], "--id"),
        (&["--id", "-1", "--http-addr", "127.0.0.1:1"], "-1"),
        (&["--id", "one", "--http-addr", "127.0.0.1:1"], "--id"),
        (&["--id", "1.5", "--http-addr", "127.0.0.1:1"], "--id"),
        (&["--id", "18446744073709551616", "--http-addr", "127.0.0.1:1"], "--id"),
        (&["--id", "1", "--http-addr", ""], "--http-addr"),
        (&["--id", "1", "--http-addr", "21001"], "--http-addr"),
        (&["--id", "1", "--http-addr", "127.0.0.1"], "--http-addr"),
        (&["--id", "1", "--http-addr", "127.0.0.1:65536"], "--http-addr"),
        (&["--id", "1", "--http-addr", "user@127.0.0.1:1"], "--http-addr"),
        (&["--id", "1", "--http-addr", "no-such-host.invalid:1"], "--http-addr"),
    ];
    for (arguments, named) in rows {
        let ended = run(arguments, &[]);
        assert_eq!(ended.code, Some(2), "{arguments:?}: {ended:?}");
        assert!(one_line(&ended).contains(named), "{arguments:?}: {ended:?}");
    }
    let unspecified = ["0", "0.0", "0x0", "0.0.0.0", "000.0.0.0", "[::]", "[0:0::0]", "[::ffff:0.0.0.0]"];
    for host in unspecified {
        let ended = run(&["--id", "1", "--http-addr", &format!("{host}:1")], &[]);
        assert_eq!(ended.code, Some(2), "{host}: {ended:?}");
        let line = one_line(&ended);
        assert!(line.contains("every address of this machine") && line.contains("--advertise-addr"), "{host}: {line}");
    }
}

/// An error names where the wrong value was given: the variable, or the flag that overrides it.
///
/// Method: values that the parser rejects, and values that only the check of all settings rejects, in variables; then
/// each in the flag, with a value in the variable that is right.
#[test]
fn errors_name_the_variable() {
    let rows = [
        ("RKV_ID", "one", "1"),
        ("RKV_ID", "0", "1"),
        ("RKV_ID", "18446744073709551616", "1"),
        ("RKV_LOG_FORMAT", "xml", "text"),
        ("RKV_SNAPSHOT_ENTRIES", "-1", "1"),
        ("RKV_SNAPSHOT_ENTRIES", "0", "1"),
        ("RKV_MAX_KEY_BYTES", "0", "1"),
        ("RKV_ELECTION_TIMEOUT_MIN_MS", "1", "300"),
        ("RKV_ADVERTISE_ADDR", "nowhere", "127.0.0.1:1"),
        ("RKV_ADVERTISE_ADDR", "0.0.0.0:1", "127.0.0.1:1"),
        ("RKV_ALLOWED_ORIGINS", "nowhere", "http://a"),
        ("RKV_LOG_LEVEL", "loud", "info"),
    ];
    for (variable, wrong, right) in rows {
        let flag = variable.replace("RKV", "-").replace('_', "-").to_lowercase();
        let base: &[(&str, &str)] = &[("RKV_ID", "1"), ("RKV_HTTP_ADDR", "127.0.0.1:1")];
        let ended = run(&[], &[base, &[(variable, wrong)]].concat());
        assert_eq!(ended.code, Some(2), "{variable}={wrong}: {ended:?}");
        let line = one_line(&ended);
        assert!(line.contains(variable) && !line.contains(&format!("{flag} ")), "{variable}={wrong}: {line}");
        let ended = run(&[&format!("{flag}={wrong}")], &[base, &[(variable, right)]].concat());
        assert_eq!(ended.code, Some(2), "{flag}={wrong}: {ended:?}");
        let line = one_line(&ended);
        assert!(line.contains(&flag) && !line.contains(variable), "{flag}={wrong}: {line}");
    }
    for (variable, value) in [("RKV_HTTP_ADDR", "0.0.0.0:1"), ("RKV_HTTP_ADDR", "no-such-host.invalid:1")] {
        let ended = run(&["--id", "1"], &[(variable, value)]);
        assert_eq!(ended.code, Some(2), "{value}: {ended:?}");
        assert!(one_line(&ended).contains(&format!("{variable} ")), "{value}: {ended:?}");
    }
    let not_utf8 = std::ffi::OsStr::from_bytes(b"\xff");
    for (arguments, variable) in [(&["--http-addr", "127.0.0.1:1"][..], "RKV_ID"), (&["get", "k"], "RKV_ENDPOINTS")] {
        let ended = command(arguments).env(variable, not_utf8).env("RKV_DATA_DIR", not_utf8).output().unwrap();
        let line = String::from_utf8(ended.stderr).unwrap();
        assert_eq!((ended.status.code(), &*line), (Some(2), &*format!("error: {variable} is not valid UTF-8\n")));
    }
}

/// `--help` and `--version` are no errors, and need nothing else.
#[test]
fn help_and_version_succeed() {
    for (flag, expected) in [
        ("--version", concat!("raft-key-value ", env!("CARGO_PKG_VERSION"))),
        ("-V", "raft-key-value"),
        ("--help", "Exit codes of a node:"),
        ("-h", "--http-addr"),
    ] {
        let ended = run(&[flag], &[]);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{flag}: {ended:?}");
        assert!(ended.stdout.contains(expected), "{flag}: {ended:?}");
    }
}

/// What a flag says, its environment variable says too; the flag wins.
///
/// Method: a node whose number, address and directory are only in the
/// environment; a second process on the same directory with a flag that
/// overrides the address must get as far as the lock.
#[tokio::test]
async fn the_environment_configures_a_node() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().to_str().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_addr = taken.local_addr().unwrap().to_string();
    let ended = run(&[], &[("RKV_ID", "5"), ("RKV_HTTP_ADDR", &taken_addr), ("RKV_DATA_DIR", data_dir)]);
    assert_eq!(ended.code, Some(69), "{ended:?}");
    assert!(last_line(&ended).contains(&taken_addr), "{ended:?}");

    let node = TestNode::start_by_environment(5, directory.path(), &Http::new()).await;
    let metrics = Http::new().get(&node.addr, "/metrics").await.unwrap().ok().unwrap();
    assert_eq!(metrics["id"], 5);
    let other_addr = format!("127.0.0.1:{}", free_port());
    let data_dir = node.data_dir().to_str().unwrap();
    let ended = run(
        &["--http-addr", &other_addr],
        &[("RKV_ID", "5"), ("RKV_HTTP_ADDR", &taken_addr), ("RKV_DATA_DIR", data_dir)],
    );
    assert_eq!(ended.code, Some(73), "the flag's address is free, so the lock is next: {ended:?}");
}

/// The environment of a process.
type Variables = &'static [(&'static str, &'static str)];

/// What a node logs while it starts and stops with these settings.
fn logged(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let addr = format!("127.0.0.1:{}", free_port());
    let mut command = command(["--id", "1", "--http-addr", &addr, "--data-dir", directory.path().to_str().unwrap()]);
    command.args(arguments).envs(environment.iter().copied()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let started = Instant::now();
    // It listens once it has opened its directory, and takes SIGTERM from before that.
    while TcpStream::connect(&addr).is_err() {
        let ended = child.try_wait().unwrap();
        if ended.is_some() || started.elapsed() > DEADLINE {
            let _ = child.kill();
            panic!("{arguments:?} {environment:?}: {ended:?}: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    send_signal(child.id(), "TERM");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// `RUST_LOG` says what is logged if nothing else does. What is wrong in it is left out, with one warning.
///
/// Method: a node that starts and stops, with the level in the flag, the node's own variable and `RUST_LOG`; its log has
/// lines of the levels that it should, and no others.
#[test]
fn rust_log_counts_if_nothing_else_is_given() {
    let rows: &[(&[&str], Variables, bool, bool)] = &[
        (&[], &[], true, false),
        (&[], &[("RUST_LOG", "")], true, false),
        (&[], &[("RUST_LOG", "error")], false, false),
        (&[], &[("RUST_LOG", "off")], false, false),
        (&[], &[("RUST_LOG", "INFO")], true, false),
        (&[], &[("RUST_LOG", "debug")], true, true),
        (&[], &[("RUST_LOG", "raft_key_value=info")], true, false),
        (&[], &[("RUST_LOG", "warn,raft_key_value::server=info")], true, false),
        (&[], &[("RUST_LOG", "raft_key_value,openraft=off,")], true, false),
        (&["--log-level", "info"], &[("RUST_LOG", "error")], true, false),
        (&["--log-level", "info"], &[("RUST_LOG", "===")], true, false),
        (&["--log-level", "warn"], &[("RUST_LOG", "debug")], false, false),
        (&[], &[("RUST_LOG", "debug"), ("RKV_LOG_LEVEL", "warn")], false, false),
        (&[], &[("RUST_LOG", "warn"), ("RKV_LOG_LEVEL", "")], false, false),
    ];
    for (arguments, environment, has_info, has_debug) in rows {
        let log = logged(arguments, environment);
        assert_eq!(log.contains(" INFO "), *has_info, "{arguments:?} {environment:?}: {log}");
        assert_eq!(log.contains(" DEBUG "), *has_debug, "{arguments:?} {environment:?}: {log}");
        assert!(!log.contains("RUST_LOG"), "{arguments:?} {environment:?}: {log}");
    }
    for (filter, ignored, has_info) in [
        ("hyper", "hyper", true),
        ("loud", "loud", true),
        ("===", "===", true),
        ("hyper,tower", "hyper,tower", true),
        ("info,loud", "loud", true),
        ("hyper,error", "hyper", false),
        ("off,loud", "loud", false),
        ("raft_key_value=loud", "raft_key_value=loud", true),
        ("inof,raft_key_value=warn", "inof", false),
    ] {
        let log = logged(&[], &[("RUST_LOG", filter)]);
        let warnings: Vec<&str> = log.lines().filter(|line| line.contains("RUST_LOG")).collect();
        assert!(warnings.len() == 1 && warnings[0].contains(&format!("ignored {ignored:?}")), "{filter}: {log}");
        let (time, warning) = warnings[0].split_once(' ').unwrap();
        assert!(time.ends_with('Z') && warning.trim_start().starts_with("WARN "), "{filter}: {log}");
        assert_eq!(log.contains(" INFO "), has_info, "{filter}: {log}");
    }
    for blank in [" ", ",", " , "] {
        let log = logged(&[], &[("RUST_LOG", blank)]);
        assert!(log.contains(" INFO "), "{blank:?}: {log}");
    }
}

/// An empty variable counts as unset, for a node and for commands.
///
/// Method: every variable of the node but those that it cannot do without is empty, and it starts; with those empty too
/// it says which flags are missing, not that a value is wrong.
#[test]
fn empty_variables_are_unset() {
    let help = run(&["--help"], &[]).stdout;
    let names: Vec<&str> = help.split("[env: ").skip(1).map(|rest| rest.split(['=', ']']).next().unwrap()).collect();
    assert!(names.len() >= 15 && names.contains(&"RKV_MAX_KEY_BYTES"), "{names:?}");
    let empty: Vec<(&str, &str)> = names.iter().map(|name| (*name, "")).collect();
    assert!(logged(&[], &empty).contains(" INFO "), "it runs with all defaults");
    let ended = run(&[], &empty);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    let line = one_line(&ended);
    assert!(line.contains("--id") && line.contains("--http-addr"), "{line}");
    let ended = run(&["get", "k", "--retry-for", "100ms"], &[("RKV_ENDPOINTS", ""), ("RKV_ID", "")]);
    // Whether somebody serves the default endpoints on this machine is not known.
    assert_ne!(ended.code, Some(2), "the default endpoints were asked: {ended:?}");
}

/// A second process on a data directory leaves it alone, says who holds it, and exits 73.
#[tokio::test]
async fn a_second_process_is_refused() {
    let mut cluster = TestCluster::form("locked", &[1], CALM).await;
    let node = cluster.node(1);
    let addr = format!("127.0.0.1:{}", free_port());
    let before = contents(&node.directory());
    let ended = run(&["--id", "1", "--http-addr", &addr, "--data-dir", node.data_dir().to_str().unwrap()], &[]);
    assert_eq!(ended.code, Some(73), "{ended:?}");
    let line = last_line(&ended);
    assert!(line.contains(&format!("process {}", node.pid())), "it names the holder, {}: {line}", node.pid());
    assert_eq!(contents(&node.directory()), before, "nothing was touched");
    cluster.write(1, "k", "v").await;
    cluster.assert_alive();
}

/// An address that is in use is named, with exit code 69, and no directory is made.
#[test]
fn a_taken_port_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let data_dir = directory.path().join("data");
    let ended = run(&["--id", "1", "--http-addr", &addr, "--data-dir", data_dir.to_str().unwrap()], &[]);
    assert_eq!(ended.code, Some(69), "{ended:?}");
    let line = last_line(&ended);
    assert!(line.contains(&addr) && line.contains("stop the process that uses it"), "{line}");
    assert!(!data_dir.exists(), "nothing was made");
}

/// The error of an address that another machine has says so, and which flag is for what.
///
/// Method: an address that is reserved for documentation, which no machine has.
#[test]
fn a_foreign_address_is_explained() {
    for (arguments, environment, named) in [
        (&["--id", "1", "--http-addr", "192.0.2.1:1"][..], &[][..], "--http-addr is where"),
        (&["--id", "1"], &[("RKV_HTTP_ADDR", "192.0.2.1:1")], "RKV_HTTP_ADDR is where"),
    ] {
        let ended = run(arguments, environment);
        assert_eq!(ended.code, Some(69), "{ended:?}");
        let line = last_line(&ended);
        for words in ["192.0.2.1:1", "not an address of this machine", "--advertise-addr", named] {
            assert!(line.contains(words), "{line}");
        }
        assert!(!line.contains("stop the process"), "{line}");
    }
}

/// A name is listened on at all its addresses, and one that is in use is named with exit code 69.
///
/// Method: a mount namespace, where the system allows one, with a hosts file that gives a name four addresses, the last
/// of which this machine does not have; otherwise `localhost`. Each address that can be bound must answer.
#[test]
fn a_name_is_listened_on_at_all_its_addresses() {
    const NAME: &str = "several.test";
    let directory = tempfile::tempdir().unwrap();
    let hosts = directory.path().join("hosts");
    fs::write(&hosts, format!("127.0.0.1 {NAME}\n127.0.0.2 {NAME}\n::1 {NAME}\n192.0.2.1 {NAME}\n")).unwrap();
    let in_namespace = |program: &str, arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c"]);
        command.args([r#"mount --bind "$0" /etc/hosts && exec "$@""#, hosts.to_str().unwrap(), program]);
        command.args(arguments).stdin(Stdio::null());
        command
    };
    let has_namespaces = in_namespace("true", &[]).output().is_ok_and(|output| output.status.success());
    let (name, hosts): (&str, Vec<IpAddr>) = if has_namespaces {
        (NAME, ["127.0.0.1", "127.0.0.2", "::1"].map(|host| host.parse().unwrap()).to_vec())
    } else {
        ("localhost", ("localhost", 0).to_socket_addrs().unwrap().map(|addr| addr.ip()).collect())
    };
    let hosts: Vec<IpAddr> = hosts.into_iter().filter(|host| TcpListener::bind((*host, 0)).is_ok()).collect();
    assert!(!hosts.is_empty());
    let port = free_port();
    let addr = format!("{name}:{port}");
    let data_dir = directory.path().join("data");
    let arguments = ["--id", "1", "--http-addr", &addr, "--data-dir", data_dir.to_str().unwrap()];
    let program = || if has_namespaces { in_namespace(BINARY, &arguments) } else { command(arguments) };

    let taken = TcpListener::bind((hosts[hosts.len() - 1], port)).unwrap();
    let ended = program().output().unwrap();
    let stderr = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(69), "{stderr}");
    let taken_addr = taken.local_addr().unwrap().to_string();
    assert!(stderr.contains(&addr) && stderr.contains(&taken_addr), "{stderr}");
    assert!(!data_dir.exists(), "nothing was made");
    drop(taken);

    let mut child = program().stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    let mut missing = hosts.clone();
    while !missing.is_empty() && started.elapsed() < DEADLINE && child.try_wait().unwrap().is_none() {
        missing.retain(|host| !answers((*host, port).into()));
        std::thread::sleep(Duration::from_millis(10));
    }
    send_signal(child.id(), "TERM");
    let output = child.wait_with_output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(missing.is_empty(), "{missing:?} do not answer: {log}");
    assert_eq!(output.status.code(), Some(0), "{log}");
    assert!(hosts.iter().all(|host| log.contains(&SocketAddr::new(*host, port).to_string())), "{log}");
    assert_eq!(log.contains(&format!("not listening on 192.0.2.1:{port}")), has_namespaces, "{log}");
}

/// Whether a node answers at an address.
fn answers(addr: SocketAddr) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect(addr)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        io::Result::Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"id\":1"))
}

type Damage = fn(&Path);

/// A directory that is not this node's, or that is damaged, is refused with its
/// own exit code and left as it was.
///
/// Method: a node makes a directory with a cluster, a log and a snapshot, and is
/// killed; each row damages a copy of it in one way.
#[tokio::test]
async fn unusable_directories_are_refused() {
    let flags = &["--snapshot-entries", "50", "--snapshot-keep-entries", "20"];
    let mut cluster = TestCluster::form("refused", &[1], flags).await;
    cluster.write_many(1, "k", 120).await;
    cluster.metrics_say(1, "its log was purged", |metrics| metrics.purged).await;
    // In order, so that all this is on disk.
    assert_eq!(cluster.stop(1).await, Some(0));
    let original = cluster.node(1).directory();
    let copies = tempfile::tempdir().unwrap();

    let rows: &[(&str, u64, i32, &str, Damage)] = &[
        ("another node's", 2, 78, "belongs to node 1", |_| {}),
        ("a newer format", 1, 78, "format 4", |directory| {
            fs::write(directory.join("IDENTITY"), "{\"format\":4,\"more\":true}\n").unwrap();
        }),
        ("a flipped byte in IDENTITY", 1, 65, "IDENTITY", |directory| flip(&directory.join("IDENTITY"), 20)),
        ("an empty IDENTITY", 1, 65, "IDENTITY", |directory| fs::write(directory.join("IDENTITY"), "").unwrap()),
        ("no IDENTITY", 1, 65, "IDENTITY", |directory| fs::remove_file(directory.join("IDENTITY")).unwrap()),
        ("a flipped byte in CLOCK", 1, 65, "CLOCK", |directory| flip(&directory.join("CLOCK"), 25)),
        ("a newer CLOCK", 1, 78, "CLOCK", |directory| {
            fs::write(directory.join("CLOCK"), "{\"format\":2,\"more\":true}\n").unwrap();
        }),
        ("no log", 1, 65, "log", |directory| fs::remove_dir_all(directory.join("log")).unwrap()),
        ("a flipped byte in the log", 1, 65, "log", |directory| flip_in_log(&directory.join("log"), b"value 110 of k")),
        ("no snapshots, and a purged log", 1, 65, "snapshots", |directory| {
            fs::remove_dir_all(directory.join("snapshots")).unwrap();
        }),
        ("flipped bytes in all snapshots, and a purged log", 1, 65, ".snap", |directory| {
            for path in files_below(&directory.join("snapshots")) {
                flip(&path, 60);
            }
        }),
    ];
    for (number, (what, id, code, said, damage)) in rows.iter().enumerate() {
        let data_dir = copies.path().join(number.to_string());
        let directory = data_dir.join(format!("node-{id}"));
        copy_directory(&original, &directory);
        damage(&directory);
        let before = contents(&directory);
        let addr = format!("127.0.0.1:{}", free_port());
        let arguments = ["--id", &id.to_string(), "--http-addr", &addr, "--data-dir", data_dir.to_str().unwrap()];
        let ended = run(&arguments, &[]);
        assert_eq!(ended.code, Some(*code), "{what}: {ended:?}");
        let line = last_line(&ended);
        assert!(line.contains(said), "{what}: it should say {said:?}: {line}");
        assert_eq!(
            changed(&before, &contents(&directory)),
            Vec::<PathBuf>::new(),
            "{what}: it should be left as it was"
        );
    }
}

/// The files that differ, the lock aside.
fn changed(before: &BTreeMap<PathBuf, Vec<u8>>, after: &BTreeMap<PathBuf, Vec<u8>>) -> Vec<PathBuf> {
    let all = before.keys().chain(after.keys());
    let mut paths: Vec<_> =
        all.filter(|path| !path.ends_with("LOCK") && before.get(*path) != after.get(*path)).cloned().collect();
    paths.dedup();
    paths
}

/// What is in all files below a directory.
fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    files_below(directory).into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

fn copy_directory(from: &Path, to: &Path) {
    for (path, bytes) in contents(from) {
        let target = to.join(path.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::write(target, bytes).unwrap();
    }
}

/// Flips a bit of what was written, wherever in the log it is.
fn flip_in_log(directory: &Path, written: &[u8]) {
    let found = contents(directory).into_iter().find_map(|(path, bytes)| {
        let position = bytes.windows(written.len()).position(|window| window == written)?;
        Some((path, position))
    });
    let (path, position) = found.expect("it is in the log");
    flip(&path, position);
}

fn flip(path: &Path, position: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[position] ^= 1;
    fs::write(path, bytes).unwrap();
}
