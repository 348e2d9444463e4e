//! Server processes, whose output goes to a file and which never outlive the bench.
//!
//! A server ends with its `ServerProcess`, also when the bench panics, and with the bench itself, also when
//! the bench is killed. Each is killed by its own pid.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use harness::process::{Process, log_tail};

const STOP_SECONDS_MAX: u64 = 10;
const LOG_TAIL_LINES: usize = 15;

pub struct ServerProcess {
    name: String,
    process: Process,
    log_path: PathBuf,
}

impl ServerProcess {
    /// Starts `command` and appends its output to `log_path`.
    ///
    /// Must be called from the main thread: Linux sends the parent-death signal when the *thread* that
    /// spawned the child ends, so a child started from a pooled thread would be killed with that thread.
    pub fn start(name: &str, mut command: Command, log_path: &Path) -> Result<Self> {
        // SAFETY: prctl is async-signal-safe, and the closure does not allocate.
        unsafe {
            command.pre_exec(|| {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let process = Process::start(command, log_path)?;
        Ok(Self { name: name.to_owned(), process, log_path: log_path.to_owned() })
    }

    pub fn pid(&self) -> libc::pid_t {
        self.process.id() as libc::pid_t
    }

    pub fn resident_bytes(&self) -> Result<u64> {
        self.memory_bytes("VmRSS:")
    }

    /// Maximum resident memory since `reset_peak`.
    pub fn peak_bytes(&self) -> Result<u64> {
        self.memory_bytes("VmHWM:")
    }

    pub fn reset_peak(&self) -> Result<()> {
        let path = format!("/proc/{}/clear_refs", self.pid());
        fs::write(&path, "5").with_context(|| format!("cannot write `{path}`"))
    }

    fn memory_bytes(&self, field: &str) -> Result<u64> {
        let path = format!("/proc/{}/status", self.pid());
        let status = fs::read_to_string(&path).with_context(|| format!("cannot read `{path}`"))?;
        // A zombie process has no such line.
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let line = line.with_context(|| format!("{} has no memory because it has ended", self.name))?;
        let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kibibytes * 1024)
    }

    /// Returns an error that quotes the end of the server's log if the server has exited.
    pub fn check_running(&mut self) -> Result<()> {
        if let Some(status) = self.process.status()? {
            let tail = log_tail(&self.log_path, LOG_TAIL_LINES);
            bail!("{} exited ({status}); the end of `{}`:\n{tail}", self.name, self.log_path.display());
        }
        Ok(())
    }
}

/// Sends SIGTERM to all at once, then SIGKILL to those that have not ended in time.
pub async fn stop_all(mut servers: Vec<ServerProcess>) -> Result<()> {
    for server in &mut servers {
        server.process.signal(libc::SIGTERM)?;
    }
    let deadline = Instant::now() + Duration::from_secs(STOP_SECONDS_MAX);
    for server in &mut servers {
        if server.process.wait(deadline.saturating_duration_since(Instant::now())).await?.is_none() {
            eprintln!("{} did not stop within {STOP_SECONDS_MAX} s of SIGTERM; sending SIGKILL", server.name);
        }
    }
    Ok(())
}

/// Sends SIGKILL to all at once, so that none notices another's end and reacts to it.
pub fn kill_all(mut servers: Vec<ServerProcess>) -> Result<()> {
    for server in &mut servers {
        server.check_running()?;
    }
    servers.iter_mut().try_for_each(|server| server.process.signal(libc::SIGKILL))
}

/// Raises the limit of open files, which is 1,024 in most shells, to its maximum.
pub fn raise_open_files_limit() -> Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` outlives both calls; the first fills it, the second reads it.
    let failed = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) != 0 || {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit) != 0
        }
    };
    if failed {
        return Err(std::io::Error::last_os_error()).context("cannot raise the limit of open files");
    }
    Ok(())
}

/// Ports that are free now and that no outgoing connection will take later.
///
/// They are below Linux's default ephemeral range (32768 and up). Otherwise the load's own connections could
/// occupy the port of a node that is down.
pub fn free_ports(count: usize) -> Result<Vec<u16>> {
    const FIRST: u16 = 20_000;
    const LAST: u16 = 32_000;
    const ATTEMPTS_MAX: usize = 1_000;

    // Held until all are found, so that none is chosen twice.
    let mut listeners = Vec::new();
    for _ in 0..ATTEMPTS_MAX {
        let port = fastrand::u16(FIRST..=LAST);
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            listeners.push((port, listener));
        }
        if listeners.len() == count {
            return Ok(listeners.into_iter().map(|(port, _)| port).collect());
        }
    }
    bail!("cannot find {count} free ports between {FIRST} and {LAST}")
}

pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}
