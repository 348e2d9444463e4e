//! A node's process, and signals to it.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::Instant;

use crate::finding::HarnessError;

/// How long a process may take to stop.
const FREEZE_DEADLINE: Duration = Duration::from_secs(5);

/// A process, running or ended. Dropping this value ends it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts a command and appends its output to a file.
    pub fn start(command: Command, log: &Path) -> Result<Self> {
        let log = File::options().create(true).append(true).open(log).context("cannot open a node's log")?;
        Process::start_with_output(command, log.into())
    }

    /// Starts a command with its standard output and standard error going to a file or pipe.
    pub fn start_with_output(mut command: Command, log: OwnedFd) -> Result<Self> {
        let errors = log.try_clone().context("cannot share a node's log")?;
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        let child = command.spawn().with_context(|| format!("cannot start `{}`", command.get_program().display()))?;
        Ok(Process { child, status: None })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its exit status, if it has ended.
    pub fn status(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.child.try_wait().context("cannot wait for a process")?;
        }
        Ok(self.status)
    }

    /// Its exit status; `None` if it still runs after a time.
    pub async fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        loop {
            match self.status()? {
                None if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(5)).await,
                status => return Ok(status),
            }
        }
    }

    /// Sends a signal, unless it has ended: another process may have its number by then.
    pub fn signal(&mut self, signal: libc::c_int) -> Result<()> {
        if self.status()?.is_none() {
            // SAFETY: the process has not been waited for, so the number is still its own.
            unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
        }
        Ok(())
    }

    /// Sends SIGSTOP, and waits until none of its threads runs, whatever the kernel still does for them: they
    /// do not see the results of pending calls.
    pub async fn freeze(&mut self) -> Result<()> {
        self.signal(libc::SIGSTOP)?;
        let deadline = Instant::now() + FREEZE_DEADLINE;
        while self.status()?.is_none() && self.threads()?.chars().any(|state| !"TtDZX".contains(state)) {
            if Instant::now() > deadline {
                bail!(HarnessError(format!("process {} does not stop", self.id())));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// The state of each of its threads, as described in proc(5).
    fn threads(&self) -> Result<String> {
        let mut states = String::new();
        for thread in fs::read_dir(format!("/proc/{}/task", self.id())).context("cannot read the state of a process")? {
            // The thread may have ended meanwhile.
            let Ok(stat) =
                fs::read_to_string(thread.context("cannot read the state of a process")?.path().join("stat"))
            else {
                continue;
            };
            // The name of a program may contain parentheses, too.
            states.extend(stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()));
        }
        Ok(states)
    }

    /// Sends SIGKILL, and waits until it has ended.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A frozen process does nothing until it is continued.
    ///
    /// Method: a shell writes continuously; after a while its output is no longer than before.
    #[tokio::test]
    async fn frozen() {
        let log = std::env::temp_dir().join(format!("raft-key-value-frozen-{}", std::process::id()));
        let mut command = Command::new("sh");
        command.args(["-c", "while :; do echo x; done"]);
        let mut process = Process::start(command, &log).unwrap();
        let length = || log.metadata().unwrap().len();
        while length() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        process.freeze().await.unwrap();
        assert_eq!(process.threads().unwrap(), "T");
        let written = length();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(length(), written);
        process.signal(libc::SIGCONT).unwrap();
        while length() == written {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(process);
        fs::remove_file(log).unwrap();
    }
}
