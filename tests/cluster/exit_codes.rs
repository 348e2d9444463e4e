//! How a process exits, and what it reports.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{
    BINARY, CALM, DEADLINE, Ended, Http, OFTEN, TestCluster, TestNode, command, copy_directory, files_below, free_port,
    run, send_signal,
};

/// Asserts that a process printed one error line and nothing else, and returns it.
fn one_line(ended: &Ended) -> &str {
    let line = ended.stderr.strip_suffix('\n').unwrap_or_else(|| panic!("no newline at the end: {ended:?}"));
    assert!(!line.contains('\n'), "more than one line: {ended:?}");
    assert!(line.starts_with("error: "), "{ended:?}");
    assert_eq!(ended.stdout, "", "an error belongs on standard error: {ended:?}");
    line
}

/// Asserts that these arguments are rejected with exit code 2 and one line that names the fault.
fn assert_usage_error(arguments: &[&str], named: &str) {
    let ended = run(arguments, &[]);
    assert_eq!(ended.code, Some(2), "{arguments:?}: {ended:?}");
    assert!(one_line(&ended).contains(named), "{arguments:?}: {ended:?}");
}

/// The error on the last line of standard error, after the log.
fn last_line(ended: &Ended) -> &str {
    let line = ended.stderr.lines().last().unwrap_or_else(|| panic!("nothing on standard error: {ended:?}"));
    assert!(line.starts_with("error: "), "{ended:?}");
    line
}

/// An invalid flag or variable is reported in one line that names it, with exit code 2.
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
        (&["--join", "nowhere"], "--join"),
        (&["--join", ","], "--join"),
        (&["--join", "127.0.0.1:0"], "--join"),
        (&["--join", "0.0.0.0:1"], "--join"),
        (&["--join", "127.0.0.1:1"], "--join"),
        (&["--join", "127.0.0.1:2", "--join-as", "leader"], "--join-as"),
        (&["--join-as", "learner"], "--join-as"),
        (&["--bootstrap", "--join-as", "learner"], "--join-as"),
        (&["--bootstrap", "--join", "127.0.0.1:2", "--join-as", "learner"], "--join-as"),
        (&["--bootstrap=maybe"], "--bootstrap"),
        (&["--log-format", "xml"], "--log-format"),
        (&["--log-level", "==="], "--log-level"),
        (&["--log-level", "loud"], "--log-level"),
        (&["--log-level", "hyper"], "--log-level"),
        (&["--log-level", ","], "--log-level"),
        (&["--id", "2"], "--id"),
    ];
    for (arguments, named) in rows {
        let arguments: Vec<&str> = base.iter().chain(*arguments).copied().collect();
        assert_usage_error(&arguments, named);
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
        assert_usage_error(arguments, named);
    }
    let unspecified = ["0", "0.0", "0x0", "0.0.0.0", "000.0.0.0", "[::]", "[0:0::0]", "[::ffff:0.0.0.0]"];
    for host in unspecified {
        let ended = run(&["--id", "1", "--http-addr", &format!("{host}:1")], &[]);
        assert_eq!(ended.code, Some(2), "{host}: {ended:?}");
        let line = one_line(&ended);
        assert!(line.contains("every address of this machine") && line.contains("--advertise-addr"), "{host}: {line}");
    }
}

/// An error names the variable or the flag that held the invalid value. A flag overrides its variable.
///
/// Method: pass values that the parser rejects, and values that only validation rejects, in variables. Then pass each
/// in the flag, with a valid value in the variable.
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
        ("RKV_JOIN", "nowhere", "127.0.0.1:2"),
        ("RKV_JOIN_AS", "leader", "voter"),
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

/// `--help` and `--version` succeed, and need no other flag.
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

/// Each flag has an environment variable, and the flag takes precedence.
///
/// Method: start a node whose id, address and directory are only in the environment. A second process on the same
/// directory, with a flag that overrides the address, must get as far as the lock.
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
    assert_eq!(ended.code, Some(73), "the flag's address is free, so the lock must be what fails: {ended:?}");
}

/// Environment variables of a process.
type Variables = &'static [(&'static str, &'static str)];

/// Starts a node with these settings, stops it, and returns its log.
fn logged(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let addr = format!("127.0.0.1:{}", free_port());
    let mut command = command(["--id", "1", "--http-addr", &addr, "--data-dir", directory.path().to_str().unwrap()]);
    command.args(arguments).envs(environment.iter().copied()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let started = Instant::now();
    // The node listens after it has opened its directory, and handles SIGTERM from even earlier.
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

/// `RUST_LOG` sets the log level unless a flag or variable does. Invalid parts of it are ignored, with one warning.
///
/// Method: start and stop a node with the level in the flag, in its own variable and in `RUST_LOG`. Its log contains
/// lines of the enabled levels, and no others.
#[test]
fn rust_log_applies_if_nothing_else_is_given() {
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

/// An empty variable counts as unset, for nodes and for client commands.
///
/// Method: leave every variable empty except the two that a node requires: it starts. With those empty too, the error
/// names the missing flags, not an invalid value.
#[test]
fn empty_variables_are_unset() {
    let help = run(&["--help"], &[]).stdout;
    let names: Vec<&str> = help.split("[env: ").skip(1).map(|rest| rest.split(['=', ']']).next().unwrap()).collect();
    assert!(names.len() >= 15 && names.contains(&"RKV_MAX_KEY_BYTES"), "{names:?}");
    let empty: Vec<(&str, &str)> = names.iter().map(|name| (*name, "")).collect();
    assert!(logged(&[], &empty).contains(" INFO "), "the node must start with all defaults");
    let ended = run(&[], &empty);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    let line = one_line(&ended);
    assert!(line.contains("--id") && line.contains("--http-addr"), "{line}");
    let ended = run(&["get", "k", "--retry-for", "100ms"], &[("RKV_ENDPOINTS", ""), ("RKV_ID", "")]);
    // A node may or may not serve the default endpoints on this machine.
    assert_ne!(ended.code, Some(2), "the default endpoints must be used: {ended:?}");
}

/// A second process on a data directory leaves it untouched, names the process that holds it, and exits with code 73.
#[tokio::test]
async fn a_second_process_is_rejected() {
    let mut cluster = TestCluster::form("locked", &[1], CALM).await;
    let node = cluster.node(1);
    let addr = format!("127.0.0.1:{}", free_port());
    let before = contents(&node.directory());
    let ended = run(&["--id", "1", "--http-addr", &addr, "--data-dir", node.data_dir().to_str().unwrap()], &[]);
    assert_eq!(ended.code, Some(73), "{ended:?}");
    let line = last_line(&ended);
    assert!(
        line.contains(&format!("process {}", node.pid())),
        "the error must name the holder, process {}: {line}",
        node.pid()
    );
    assert_eq!(contents(&node.directory()), before, "the directory must not change");
    cluster.write(1, "k", "v").await;
    cluster.assert_alive();
}

/// The error for an address that is in use names it, with exit code 69, and no directory is created.
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
    assert!(!data_dir.exists(), "no directory may be created");
}

/// The error for an address of another machine says so, and explains the two flags.
///
/// Method: use an address reserved for documentation, which no machine has.
#[test]
fn a_foreign_address_is_explained() {
    for (arguments, environment, named) in [
        (&["--id", "1", "--http-addr", "192.0.2.1:1", "--insecure"][..], &[][..], "--http-addr is where"),
        (&["--id", "1", "--insecure"], &[("RKV_HTTP_ADDR", "192.0.2.1:1")], "RKV_HTTP_ADDR is where"),
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

/// A node listens on every address of a name, and exits with code 69 if one of them is in use, naming it.
///
/// Method: in a mount namespace, if the system allows one, a hosts file gives a name four addresses, the last of which
/// this machine does not have; otherwise use `localhost`. The node must respond on every address that can be bound.
#[test]
fn a_node_listens_on_all_addresses_of_a_name() {
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
    let flags = ["--id", "1", "--http-addr", &addr, "--data-dir", data_dir.to_str().unwrap(), "--insecure"];
    let (arguments, without_insecure) = (&flags[..], &flags[..flags.len() - 1]);
    let program = || if has_namespaces { in_namespace(BINARY, arguments) } else { command(arguments) };
    if has_namespaces {
        let ended = in_namespace(BINARY, without_insecure).output().unwrap();
        let stderr = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(78), "one of the addresses is not loopback: {stderr}");
        assert!(stderr.contains("--insecure"), "{stderr}");
    }

    let taken = TcpListener::bind((hosts[hosts.len() - 1], port)).unwrap();
    let ended = program().output().unwrap();
    let stderr = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(69), "{stderr}");
    let taken_addr = taken.local_addr().unwrap().to_string();
    assert!(stderr.contains(&addr) && stderr.contains(&taken_addr), "{stderr}");
    assert!(!data_dir.exists(), "no directory may be created");
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
    assert!(missing.is_empty(), "no response on {missing:?}: {log}");
    assert_eq!(output.status.code(), Some(0), "{log}");
    assert!(hosts.iter().all(|host| log.contains(&SocketAddr::new(*host, port).to_string())), "{log}");
    assert_eq!(log.contains(&format!("not listening on 192.0.2.1:{port}")), has_namespaces, "{log}");
}

/// Whether node 1 responds at an address.
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

/// A directory that belongs to another node, or that is damaged, is rejected with its own exit code and left unchanged.
///
/// Method: a node creates a directory with a cluster, a log and a snapshot, and stops. Each row damages a copy of it in
/// one way.
#[tokio::test]
async fn unusable_directories_are_rejected() {
    let mut cluster = TestCluster::form("rejected", &[1], OFTEN).await;
    cluster.write_many(1, "k", 120).await;
    cluster.metrics_say(1, "a purged log", |metrics| metrics.purged).await;
    // Stop it gracefully, so that everything is on disk.
    assert_eq!(cluster.stop(1).await, Some(0));
    let original = cluster.node(1).directory();
    let copies = tempfile::tempdir().unwrap();

    let rows: &[(&str, u64, i32, &str, Damage)] = &[
        ("another node's", 2, 78, "belongs to node 1", |_| {}),
        ("a newer format", 1, 78, "format 6", |directory| {
            fs::write(directory.join("IDENTITY"), "{\"format\":6,\"more\":true}\n").unwrap();
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
        assert!(line.contains(said), "{what}: the error must contain {said:?}: {line}");
        assert_eq!(
            changed(&before, &contents(&directory)),
            Vec::<PathBuf>::new(),
            "{what}: the directory must not change"
        );
    }
}

/// The files that differ, except the lock.
fn changed(before: &BTreeMap<PathBuf, Vec<u8>>, after: &BTreeMap<PathBuf, Vec<u8>>) -> Vec<PathBuf> {
    let all = before.keys().chain(after.keys());
    let mut paths: Vec<_> =
        all.filter(|path| !path.ends_with("LOCK") && before.get(*path) != after.get(*path)).cloned().collect();
    paths.dedup();
    paths
}

/// The contents of all files below a directory.
fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    files_below(directory).into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// Flips a bit in the log at the position of these bytes.
fn flip_in_log(directory: &Path, written: &[u8]) {
    let found = contents(directory).into_iter().find_map(|(path, bytes)| {
        let position = bytes.windows(written.len()).position(|window| window == written)?;
        Some((path, position))
    });
    let (path, position) = found.expect("the log must contain these bytes");
    flip(&path, position);
}

fn flip(path: &Path, position: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[position] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// A node that other machines could reach does not start with neither TLS nor tokens unless `--insecure` is set, and then warns at
/// each start. `config check` says the same.
///
/// Method: use the unspecified addresses, and some that are reserved for documentation. In a namespace without a
/// network, if the system allows one, start a node with the flag on all addresses, and again on its data.
#[test]
fn an_unprotected_node_stays_on_loopback() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("data");
    let port = free_port();
    for host in ["0.0.0.0", "[::]", "0", "[::ffff:0.0.0.0]", "192.0.2.1", "[2001:db8::1]", "[::ffff:192.0.2.1]"] {
        let addr = format!("{host}:{port}");
        let mut arguments = vec!["--id", "1", "--http-addr", &addr, "--advertise-addr", "127.0.0.1:1"];
        arguments.extend(["--data-dir", data_dir.to_str().unwrap()]);
        let checked = run(&[&["config", "check"], &arguments[..]].concat(), &[]);
        assert_eq!(checked.code, Some(2), "{host}: {checked:?}");
        let ended = run(&arguments, &[]);
        assert_eq!(ended.code, Some(78), "{host}: {ended:?}");
        for line in [last_line(&checked), last_line(&ended)] {
            for words in [
                &addr,
                "--tls-cert",
                "--tls-key",
                "--tls-ca",
                "tls init",
                "--root-token-file",
                "127.0.0.1",
                "--insecure",
            ] {
                assert!(line.contains(words), "{host}: {line}");
            }
        }
        assert!(!data_dir.exists(), "no directory may be created");
        let checked = run(&[&["config", "check", "--insecure"], &arguments[..]].concat(), &[]);
        assert_eq!(checked.code, Some(0), "{host}: {checked:?}");
    }
    for host in ["127.0.0.1", "127.9.9.9", "[::1]", "[::ffff:127.0.0.1]", "localhost", "no-such-host.invalid"] {
        let checked = run(&["config", "check", "--id", "1", "--http-addr", &format!("{host}:{port}")], &[]);
        assert_eq!(checked.code, Some(0), "{host}: {checked:?}");
    }

    let without_network = |program: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net", program]).stdin(Stdio::null());
        command
    };
    if !without_network("true").output().is_ok_and(|output| output.status.success()) {
        eprintln!("no node is started on all addresses: this system has no namespaces for users");
        return;
    }
    for start in ["the first start", "the next start"] {
        let mut node = without_network(BINARY);
        node.args(["--id", "1", "--insecure", "--http-addr", "0.0.0.0:1", "--advertise-addr", "127.0.0.1:1"]);
        let mut child = node.arg("--data-dir").arg(&data_dir).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let log: Vec<String> = lines.by_ref().take_while(|line| !line.contains("listening on 0.0.0.0:1")).collect();
        send_signal(child.id(), "TERM");
        assert_eq!(child.wait().unwrap().code(), Some(0), "{start}: {log:?}");
        let warning = "WARN --insecure: everyone who can reach this node";
        assert!(log.iter().any(|line| line.contains(warning)), "{start}: {log:?}");
    }
}
