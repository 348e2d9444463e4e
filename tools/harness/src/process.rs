//! Processes, whose output goes to a file or pipe and which end with their [`Process`].

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::Instant;

/// A process, running or ended. Dropping this value kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts a command and appends its output to a file.
    pub fn start(command: Command, log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log);
        let file = file.with_context(|| format!("cannot open `{}`", log.display()))?;
        Process::start_with_output(command, file.into())
    }

    /// Starts a command with its standard output and standard error going to a file or pipe.
    pub fn start_with_output(mut command: Command, log: OwnedFd) -> Result<Self> {
        let errors = log.try_clone().context("cannot share a log file")?;
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        let child = command.spawn().with_context(|| format!("cannot start `{}`", command.get_program().display()))?;
        Ok(Process { child, status: None })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The exit status, if the process has ended.
    pub fn status(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.child.try_wait().context("cannot wait for a process")?;
        }
        Ok(self.status)
    }

    /// Waits for the process to end; returns its exit status, or `None` if it is still running after `limit`.
    pub async fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        loop {
            match self.status()? {
                None if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(5)).await,
                status => return Ok(status),
            }
        }
    }

    /// Sends a signal, unless the process has ended: its id may have been reused since.
    pub fn signal(&mut self, signal: libc::c_int) -> Result<()> {
        if self.status()?.is_none() {
            // SAFETY: the process has not been waited for, so its id has not been reused.
            unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
        }
        Ok(())
    }

    /// Sends SIGKILL, and waits until the process has ended.
    pub fn kill(&mut self) -> Result<()> {
        if self.status()?.is_none() {
            self.child.kill().context("cannot kill a process")?;
            self.status = Some(self.child.wait().context("cannot wait for a process")?);
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// The last lines of a log; empty if the log does not exist.
pub fn log_tail(log: &Path, lines: usize) -> String {
    let log = fs::read(log).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let all: Vec<&str> = log.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Removes inherited variables that begin with `prefix`, which would change a program's settings unnoticed.
pub fn remove_variables(command: &mut Command, prefix: &str) {
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(prefix.as_bytes()) {
            command.env_remove(name);
        }
    }
}
