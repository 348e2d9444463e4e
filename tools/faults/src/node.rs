//! One node of a cluster: its host, its files, its process.

use std::fs::{self, File};
use std::io::{PipeReader, PipeWriter, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::disk::Disk;
use crate::history::NodeId;
use crate::network::Host;
use crate::process::Process;
use crate::proxy::Proxy;
use crate::renames;
use crate::store::System;

/// Debian's library that tells a process another time than it is.
pub const LIBFAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// Tells a server that was made for it which bug to have.
pub const BUG_VARIABLE: &str = "RKV_SEEDED_BUG";

/// The lines of a log that a finding has room for.
const LOG_TAIL_LINES: usize = 10;

/// Which ends of a node's process are no surprise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// It is to run until it is killed.
    None,
    /// It may end, with one of these codes.
    Exit(&'static [i32]),
    /// Something else than the harness kills it.
    Killed,
}

/// Which of a node's processes it is, and on which of its disks: both are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Life {
    pub disk: u64,
    pub process: u64,
}

/// Where a node's log is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LostLog {
    /// In a pipe that is full and unread.
    FullPipe,
    /// In a pipe whose reader is gone.
    ClosedPipe,
    /// On a full disk.
    FullDisk,
}

/// A node, running or not.
#[derive(Debug)]
pub struct Node {
    /// The first to be dropped: a disk cannot go while a process uses it.
    process: Option<Process>,
    pub host: Host,
    pub proxy: Option<Proxy>,
    pub disk: Option<Disk>,
    /// The bug that it has on purpose.
    pub bug: Option<&'static str>,
    /// Whether its calls that rename and sync files are written down.
    pub traces_renames: bool,
    system: System,
    binary: PathBuf,
    flags: Vec<String>,
    /// Where its data directory, its log and its clock are.
    folder: PathBuf,
    paused: bool,
    false_clock: bool,
    expected: Expected,
    /// Keeps a pipe open that the node's log goes to and that is not read.
    unread_log: Option<PipeReader>,
    /// Shared with who must know whether two answers are of one process.
    life: Arc<Mutex<Life>>,
    /// The ends of its process that nobody wanted.
    findings: Vec<String>,
}

impl Node {
    pub fn new(system: System, binary: &Path, folder: &Path, host: Host, flags: Vec<String>) -> Self {
        Node {
            host,
            proxy: None,
            disk: None,
            bug: None,
            traces_renames: false,
            system,
            binary: binary.to_owned(),
            flags,
            folder: folder.to_owned(),
            process: None,
            paused: false,
            false_clock: false,
            expected: Expected::None,
            unread_log: None,
            life: Arc::default(),
            findings: Vec::new(),
        }
    }

    pub fn id(&self) -> NodeId {
        self.host.id
    }

    /// The life that it lives; gone when the node is.
    pub fn life(&self) -> Weak<Mutex<Life>> {
        Arc::downgrade(&self.life)
    }

    /// From now on it has other data than it had: it need not know what it knew.
    pub fn count_disk(&self) {
        self.life.lock().expect("no thread panics with it").disk += 1;
    }

    /// Where raft-key-value's other nodes dial it: through its proxy, if it has one.
    pub fn advertised(&self) -> SocketAddr {
        if self.proxy.is_some() { self.host.peer() } else { self.host.http() }
    }

    /// Where the node's files are.
    pub fn data_directory(&self) -> PathBuf {
        let below = match &self.disk {
            Some(disk) => disk.directory().to_owned(),
            None => self.folder.clone(),
        };
        below.join("data")
    }

    /// Where its snapshots are, and those that it builds or receives.
    pub fn snapshot_directory(&self) -> PathBuf {
        self.data_directory().join(format!("node-{}", self.id())).join("snapshots")
    }

    /// What it has said.
    pub fn log_path(&self) -> PathBuf {
        self.folder.join(format!("node-{}.log", self.id()))
    }

    /// What it has renamed and synced, if that is written down.
    pub fn renames_path(&self) -> PathBuf {
        self.folder.join(format!("node-{}.renames", self.id()))
    }

    /// The calls that the last `strace` of it has seen.
    fn strace_path(&self) -> PathBuf {
        self.folder.join(format!("node-{}.strace", self.id()))
    }

    fn clock_path(&self) -> PathBuf {
        self.folder.join(format!("node-{}.clock", self.id()))
    }

    pub fn is_running(&mut self) -> Result<bool> {
        match &mut self.process {
            Some(process) => Ok(process.status()?.is_none()),
            None => Ok(false),
        }
    }

    pub fn is_paused(&self) -> bool {
        self.paused
    }

    pub fn start(&mut self) -> Result<()> {
        if !self.traces_renames {
            return self.start_under(&[]);
        }
        self.start_under(&renames::tracer(&self.renames_path()))
    }

    /// Starts it as a child of another program, such as `strace`.
    pub fn start_under(&mut self, wrapper: &[String]) -> Result<()> {
        let command = self.prepare(wrapper)?;
        self.process = Some(Process::start(command, &self.log_path())?);
        Ok(())
    }

    /// Starts it with a log that is lost, until it is started again.
    pub fn start_with_lost_log(&mut self, lost: LostLog) -> Result<()> {
        let command = self.prepare(&[])?;
        let log: OwnedFd = match lost {
            LostLog::FullDisk => File::options().write(true).open("/dev/full").context("cannot open /dev/full")?.into(),
            LostLog::FullPipe | LostLog::ClosedPipe => {
                let (reader, mut writer) = std::io::pipe().context("cannot make a pipe")?;
                if lost == LostLog::FullPipe {
                    fill(&mut writer)?;
                    self.unread_log = Some(reader);
                }
                writer.into()
            }
        };
        self.process = Some(Process::start_with_output(command, log)?);
        Ok(())
    }

    /// The command of a new process, which is to be started next.
    fn prepare(&mut self, wrapper: &[String]) -> Result<Command> {
        if self.is_running()? {
            bail!("node {} runs already", self.id());
        }
        self.notice_end()?;
        let mut command = self.host.command();
        if self.false_clock {
            // `env` within the host, so that `nsenter` itself keeps its time.
            command.arg("env").arg(format!("LD_PRELOAD={LIBFAKETIME}"));
            command.arg(format!("FAKETIME_TIMESTAMP_FILE={}", self.clock_path().display()));
            // Only the clock on the wall is wrong; and it is looked up each time.
            command.args(["FAKETIME_DONT_FAKE_MONOTONIC=1", "FAKETIME_NO_CACHE=1"]);
        }
        command.args(wrapper);
        self.system.add_command(&mut command, &self.binary, self);
        if let Some(bug) = self.bug {
            command.env(BUG_VARIABLE, bug);
        }
        command.args(&self.flags);
        // Before it can answer.
        self.life.lock().expect("no thread panics with it").process += 1;
        self.paused = false;
        self.expected = Expected::None;
        self.unread_log = None;
        Ok(command)
    }

    /// SIGKILL; nothing if it does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.notice_end()?;
        self.paused = false;
        match self.process.take() {
            Some(mut process) => process.kill(),
            None => Ok(()),
        }
    }

    /// Until it is started again, or [`Node::expect_no_end`], it may end with one of these codes.
    pub fn expect_exit(&mut self, codes: &'static [i32]) {
        self.expected = Expected::Exit(codes);
    }

    /// Until it is started again, or [`Node::expect_no_end`], something may kill it.
    pub fn expect_kill(&mut self) {
        self.expected = Expected::Killed;
    }

    /// What could end it is over. An end until now is judged by what was expected until now.
    pub fn expect_no_end(&mut self) -> Result<()> {
        self.notice_end()?;
        self.expected = Expected::None;
        Ok(())
    }

    /// Looks whether it has ended, and remembers an end that nobody wanted. Whoever
    /// ends it, or starts it again, must look first: the end would be hidden.
    pub fn notice_end(&mut self) -> Result<()> {
        let Some(process) = &mut self.process else { return Ok(()) };
        let Some(status) = process.status()? else { return Ok(()) };
        let expected = match self.expected {
            Expected::None => false,
            Expected::Exit(codes) => status.code().is_some_and(|code| codes.contains(&code)),
            Expected::Killed => status.signal() == Some(libc::SIGKILL),
        };
        if !expected {
            let tail = self.log_tail(LOG_TAIL_LINES);
            self.findings.push(format!("node {} ended by itself, with {status}:\n{tail}", self.id()));
        }
        self.process = None;
        Ok(())
    }

    /// The ends of its process that nobody wanted.
    pub fn take_findings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.findings)
    }

    pub fn pause(&mut self) -> Result<()> {
        self.paused = true;
        self.signal(libc::SIGSTOP)
    }

    /// It says nothing more, whatever the kernel still does for it; to be killed next.
    pub async fn freeze(&mut self) -> Result<()> {
        match &mut self.process {
            Some(process) => process.freeze().await,
            None => Ok(()),
        }
    }

    pub fn resume(&mut self) -> Result<()> {
        self.paused = false;
        self.signal(libc::SIGCONT)
    }

    /// SIGTERM: it is to end, with 0.
    pub fn terminate(&mut self) -> Result<()> {
        self.notice_end()?;
        self.expected = Expected::Exit(&[0]);
        self.signal(libc::SIGTERM)
    }

    /// How it ended, if it does within a time.
    pub async fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        match &mut self.process {
            Some(process) => process.wait(limit).await,
            None => Ok(None),
        }
    }

    pub fn process_id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    fn signal(&mut self, signal: libc::c_int) -> Result<()> {
        match &mut self.process {
            Some(process) => process.signal(signal),
            None => Ok(()),
        }
    }

    /// Sets the clock on the wall ahead or back, from now on; a node that was
    /// started with the true clock has to be started again.
    pub fn set_clock(&mut self, ahead_seconds: i64) -> Result<()> {
        self.false_clock = true;
        fs::write(self.clock_path(), format!("{ahead_seconds:+}\n")).context("cannot set a clock")
    }

    /// From its next start on it has the true time.
    pub fn true_clock(&mut self) {
        self.false_clock = false;
    }

    /// Removes all its data, as if it had a new disk.
    pub fn wipe(&mut self) -> Result<()> {
        self.count_disk();
        let directory = self.data_directory();
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("cannot wipe a node"),
            _ => Ok(()),
        }
    }

    /// Starts `strace` on the running node, which breaks system calls as `inject` says.
    pub fn strace(&self, calls: &str, inject: &str) -> Result<Process> {
        self.strace_files(calls, inject, &[])
    }

    /// The same, only for calls on some files, if any are given.
    pub fn strace_files(&self, calls: &str, inject: &str, files: &[PathBuf]) -> Result<Process> {
        let id = self.process_id().context("the node does not run")?;
        let mut command = Command::new("strace");
        command.args(["-f", "-q", "-p", &id.to_string(), "-o"]).arg(self.strace_path());
        command.args(["-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:{inject}")]);
        for file in files {
            command.arg("-P").arg(file);
        }
        Process::start(command, &self.folder.join(format!("node-{}.strace.log", self.id())))
    }

    /// Whether the last `strace` of it, which must be gone, has broken a call.
    pub fn strace_injected(&self) -> Result<bool> {
        let calls = fs::read(self.strace_path()).context("cannot read what `strace` wrote")?;
        Ok(String::from_utf8_lossy(&calls).contains("(INJECTED)"))
    }

    /// All that it has said.
    pub fn log(&self) -> String {
        let log = fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// The end of what it has said.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

/// Writes to a pipe until nothing more fits in.
fn fill(writer: &mut PipeWriter) -> Result<()> {
    set_flags(writer, libc::O_NONBLOCK)?;
    for size in [4096, 1] {
        let piece = vec![b'.'; size];
        while writer.write(&piece).is_ok() {}
    }
    // The node must find a pipe that blocks, as any shell makes it.
    set_flags(writer, 0)
}

fn set_flags(pipe: &PipeWriter, flags: libc::c_int) -> Result<()> {
    // SAFETY: it only changes how the open pipe behaves.
    match unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETFL, flags) } {
        -1 => Err(std::io::Error::last_os_error()).context("cannot prepare a pipe"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// A full pipe has no room for a single byte, until it is read.
    #[test]
    fn a_full_pipe_is_full() {
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        fill(&mut writer).unwrap();
        let is_writable = |writer: &PipeWriter| {
            let mut polled = libc::pollfd { fd: writer.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
            // SAFETY: there is one file to look at, and it does not wait.
            unsafe { libc::poll(&mut polled, 1, 0) == 1 && polled.revents & libc::POLLOUT != 0 }
        };
        assert!(!is_writable(&writer));
        let mut read = vec![0; 1 << 16];
        reader.read_exact(&mut read).unwrap();
        assert!(is_writable(&writer));
    }
}
