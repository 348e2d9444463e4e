//! A process of a node, and what is done to it.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::Instant;

/// A process that runs, or ran. It ends with this value.
#[derive(Debug)]
pub struct Process {
    child: Child,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts a command with its output appended to a file.
    pub fn start(mut command: Command, log: &Path) -> Result<Self> {
        let log = File::options().create(true).append(true).open(log).context("cannot open a node's log")?;
        let errors = log.try_clone().context("cannot share a node's log")?;
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        let child = command.spawn().with_context(|| format!("cannot start `{}`", command.get_program().display()))?;
        Ok(Process { child, status: None })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did.
    pub fn status(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.child.try_wait().context("cannot wait for a process")?;
        }
        Ok(self.status)
    }

    /// How it ended; `None` if it still runs after a time.
    pub async fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        loop {
            match self.status()? {
                None if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(5)).await,
                status => return Ok(status),
            }
        }
    }

    /// Sends a signal, unless it has ended: its number may be another's by then.
    pub fn signal(&mut self, signal: libc::c_int) -> Result<()> {
        if self.status()?.is_none() {
            // SAFETY: it has not been waited for, so that the number is still its own.
            unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
        }
        Ok(())
    }

    /// SIGKILL, and gone when this returns.
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
