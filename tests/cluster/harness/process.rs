//! Processes and ports.

use std::ffi::OsStr;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::eventually::DEADLINE;

/// The program under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_raft-key-value");

/// The program of a former version, if `RKV_FORMER` names it; `tools/build-former.sh` builds it.
pub fn former_program() -> Option<PathBuf> {
    std::env::var_os("RKV_FORMER").filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// A free port of this machine, returned only once.
///
/// It is below 32768, where systems start to allocate ports for outgoing connections, since a restarted node must find
/// its port free.
pub fn free_port() -> u16 {
    const FIRST: u32 = 22_000;
    const COUNT: u32 = 10_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Concurrent test runs start at different ports.
    let start = std::process::id().wrapping_mul(61);
    for _ in 0..COUNT {
        let number = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(FIRST + number % COUNT).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free from {FIRST} on");
}

/// The program with these arguments and an empty environment.
pub fn command<I: AsRef<OsStr>>(arguments: impl IntoIterator<Item = I>) -> Command {
    command_of(Path::new(BINARY), arguments)
}

/// The same, of another program.
pub fn command_of<I: AsRef<OsStr>>(program: &Path, arguments: impl IntoIterator<Item = I>) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().stdin(Stdio::null());
    command
}

/// The same, after shell commands that set what the process inherits, such as `ulimit -n 100`.
pub fn command_after<I: AsRef<OsStr>>(shell: &str, program: &Path, arguments: impl IntoIterator<Item = I>) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &format!(r#"{shell} && exec "$@""#), "sh"]).arg(program);
    command.args(arguments).env_clear().stdin(Stdio::null());
    command
}

/// Raises this process's limit of open files if it is below `wanted`.
pub fn raise_open_files(wanted: u64) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    }
}

/// Sends a signal by its name for `kill`, such as `TERM`.
pub fn send_signal(pid: u32, signal: &str) {
    let status = Command::new("kill").args(["-s", signal, &pid.to_string()]).status();
    assert!(status.as_ref().is_ok_and(|status| status.success()), "kill -s {signal} {pid}: {status:?}");
}

/// A process that has exited.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Runs the program until it exits by itself, which must be soon.
pub fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Ended {
    let mut command = command(arguments);
    command.envs(environment.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Read while it runs: a pipe holds 64 KiB, and a process whose output is longer waits for a reader.
    let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let stdout = std::thread::spawn(move || io::read_to_string(stdout).unwrap());
    let stderr = std::thread::spawn(move || io::read_to_string(stderr).unwrap());
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > DEADLINE {
            child.kill().unwrap();
            child.wait().unwrap();
            let stderr = stderr.join().unwrap();
            panic!("{arguments:?} with {environment:?} did not exit within {DEADLINE:?}: {stderr}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let status = child.wait().unwrap();
    Ended { code: status.code(), stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

/// Waits until all threads of a process that was sent SIGSTOP have stopped.
///
/// The signal goes to one of the threads, and that one stops the others once it is scheduled. On a busy machine, the
/// others run for a while meanwhile, and may even accept a request.
pub fn wait_until_stopped(pid: u32) {
    let deadline = Instant::now() + DEADLINE;
    while thread_states(pid).iter().any(|state| !matches!(state, 'T' | 't' | 'Z' | 'X')) {
        assert!(Instant::now() < deadline, "process {pid} does not stop");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The state of each thread of a process, as described in proc(5).
fn thread_states(pid: u32) -> Vec<char> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    // A thread may have ended meanwhile, and a name may contain parentheses.
    let stats = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("stat")).ok());
    stats.filter_map(|stat| stat.rsplit_once(") ")?.1.chars().next()).collect()
}
