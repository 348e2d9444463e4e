//! One node of a cluster: its host, its files, and its process.

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
use harness::process::{self, Process};

use crate::disk::Disk;
use crate::history::NodeId;
use crate::network::Host;
use crate::process::freeze;
use crate::proxy::Proxy;
use crate::renames;
use crate::store::System;

/// Debian's library that fakes a process's time.
pub const LIBFAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// Selects the bug of a server with seeded bugs.
pub const BUG_VARIABLE: &str = "RKV_SEEDED_BUG";

/// Number of lines of a log that a finding quotes.
const LOG_TAIL_LINES: usize = 10;

/// The ends of a node's process that are expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// None: it must run until the harness kills it.
    None,
    /// It may end with one of these codes.
    Exit(&'static [i32]),
    /// Something other than the harness kills it.
    Killed,
    /// SIGTERM stops it.
    Stopped,
}

/// The number of a node's process, and of its disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Life {
    pub disk: u64,
    pub process: u64,
}

/// How a node's log is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LostLog {
    /// In a full pipe that is not read.
    FullPipe,
    /// In a pipe without a reader.
    ClosedPipe,
    /// On a full disk.
    FullDisk,
}

/// A node, running or not.
#[derive(Debug)]
pub struct Node {
    /// Dropped first: a disk cannot be unmounted while a process uses it.
    process: Option<Process>,
    pub host: Host,
    pub proxy: Option<Proxy>,
    pub disk: Option<Disk>,
    /// How often it has moved to another address.
    pub moves: u16,
    /// Its seeded bug.
    pub bug: Option<&'static str>,
    /// Whether its calls that rename and sync files are traced.
    pub traces_renames: bool,
    system: System,
    binary: PathBuf,
    flags: Vec<String>,
    /// Directory of its data, log and clock.
    folder: PathBuf,
    paused: bool,
    false_clock: bool,
    expected: Expected,
    /// Keeps a pipe for the node's log open, without reading it.
    unread_log: Option<PipeReader>,
    /// Shared with the monitor, which must know whether two responses come from the same process.
    life: Arc<Mutex<Life>>,
    /// Unexpected ends of its process.
    findings: Vec<String>,
}

impl Node {
    pub fn new(system: System, binary: &Path, folder: &Path, host: Host, flags: Vec<String>) -> Self {
        Node {
            host,
            proxy: None,
            disk: None,
            moves: 0,
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

    /// Adds flags from the next start on.
    pub fn add_flags(&mut self, flags: &[&str]) {
        self.flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
    }

    /// Its current life; the reference is dead once the node is removed.
    pub fn life(&self) -> Weak<Mutex<Life>> {
        Arc::downgrade(&self.life)
    }

    /// Records that the node has a new disk, and need not know what it knew before.
    pub fn count_disk(&self) {
        self.life.lock().expect("no thread panics while holding the lock").disk += 1;
    }

    /// The address at which other nodes of raft-key-value reach it: its proxy, if it has one.
    pub fn advertised(&self) -> SocketAddr {
        self.proxy.as_ref().map_or(self.host.http(), |proxy| proxy.address)
    }

    /// Directory of the node's files.
    pub fn data_directory(&self) -> PathBuf {
        let below = match &self.disk {
            Some(disk) => disk.directory().to_owned(),
            None => self.folder.clone(),
        };
        below.join("data")
    }

    /// Directory of its snapshots, including those that it builds or receives.
    pub fn snapshot_directory(&self) -> PathBuf {
        self.data_directory().join(format!("node-{}", self.id())).join("snapshots")
    }

    /// Its log file.
    pub fn log_path(&self) -> PathBuf {
        self.folder.join(format!("node-{}.log", self.id()))
    }

    /// The trace of its renames and syncs, if they are traced.
    pub fn renames_path(&self) -> PathBuf {
        self.folder.join(format!("node-{}.renames", self.id()))
    }

    /// The calls that its last `strace` recorded.
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

    /// Starts it with a log that is lost, until the next start.
    pub fn start_with_lost_log(&mut self, lost: LostLog) -> Result<()> {
        let command = self.prepare(&[])?;
        let log: OwnedFd = match lost {
            LostLog::FullDisk => File::options().write(true).open("/dev/full").context("cannot open /dev/full")?.into(),
            LostLog::FullPipe | LostLog::ClosedPipe => {
                let (reader, mut writer) = std::io::pipe().context("cannot create a pipe")?;
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

    /// Prepares a new process, and returns the command to start it.
    fn prepare(&mut self, wrapper: &[String]) -> Result<Command> {
        if self.is_running()? {
            bail!("node {} is already running", self.id());
        }
        self.notice_end()?;
        let mut command = self.host.command();
        if self.false_clock {
            // `env` runs within the host, so that `nsenter` itself has the true time.
            command.arg("env").arg(format!("LD_PRELOAD={LIBFAKETIME}"));
            command.arg(format!("FAKETIME_TIMESTAMP_FILE={}", self.clock_path().display()));
            // Only the wall clock is wrong, and it is read again each time.
            command.args(["FAKETIME_DONT_FAKE_MONOTONIC=1", "FAKETIME_NO_CACHE=1"]);
        }
        command.args(wrapper);
        self.system.add_command(&mut command, &self.binary, self);
        if let Some(bug) = self.bug {
            command.env(BUG_VARIABLE, bug);
        }
        command.args(&self.flags);
        // Before the process can respond.
        self.life.lock().expect("no thread panics while holding the lock").process += 1;
        self.paused = false;
        self.expected = Expected::None;
        self.unread_log = None;
        Ok(command)
    }

    /// Sends SIGKILL if it runs.
    pub fn kill(&mut self) -> Result<()> {
        self.notice_end()?;
        self.paused = false;
        match self.process.take() {
            Some(mut process) => process.kill(),
            None => Ok(()),
        }
    }

    /// Until the next start, or [`Node::expect_no_end`], it may end with one of these codes.
    pub fn expect_exit(&mut self, codes: &'static [i32]) {
        self.expected = Expected::Exit(codes);
    }

    /// Until the next start, or [`Node::expect_no_end`], it may be killed.
    pub fn expect_kill(&mut self) {
        self.expected = Expected::Killed;
    }

    /// Ends an expectation. An end before this call is still judged by it.
    pub fn expect_no_end(&mut self) -> Result<()> {
        self.notice_end()?;
        self.expected = Expected::None;
        Ok(())
    }

    /// Checks whether it has ended, and records an unexpected end. Must be called before the node is ended or
    /// restarted, which would hide that end.
    pub fn notice_end(&mut self) -> Result<()> {
        let Some(process) = &mut self.process else { return Ok(()) };
        let Some(status) = process.status()? else { return Ok(()) };
        let expected = match self.expected {
            Expected::None => false,
            Expected::Exit(codes) => status.code().is_some_and(|code| codes.contains(&code)),
            Expected::Killed => status.signal() == Some(libc::SIGKILL),
            // etcd ends by the signal that it has handled.
            Expected::Stopped => match self.system {
                System::Ours => status.code() == Some(0),
                System::Etcd => status.code() == Some(0) || status.signal() == Some(libc::SIGTERM),
            },
        };
        if !expected {
            let tail = self.log_tail(LOG_TAIL_LINES);
            self.findings.push(format!("node {} ended unexpectedly with {status}:\n{tail}", self.id()));
        }
        self.process = None;
        Ok(())
    }

    /// Unexpected ends of its process.
    pub fn take_findings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.findings)
    }

    pub fn pause(&mut self) -> Result<()> {
        self.paused = true;
        self.signal(libc::SIGSTOP)
    }

    /// Stops all its threads, whatever the kernel still does for them. It must be killed next.
    pub async fn freeze(&mut self) -> Result<()> {
        match &mut self.process {
            Some(process) => freeze(process).await,
            None => Ok(()),
        }
    }

    pub fn resume(&mut self) -> Result<()> {
        self.paused = false;
        self.signal(libc::SIGCONT)
    }

    /// Sends SIGTERM: it must stop by itself.
    pub fn terminate(&mut self) -> Result<()> {
        self.notice_end()?;
        self.expected = Expected::Stopped;
        self.signal(libc::SIGTERM)
    }

    /// Its exit status, if it ends within a time.
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

    /// Sets the wall clock ahead or back from now on. A node that runs with the true clock must be restarted
    /// first.
    pub fn set_clock(&mut self, ahead_seconds: i64) -> Result<()> {
        self.false_clock = true;
        fs::write(self.clock_path(), format!("{ahead_seconds:+}\n")).context("cannot set a clock")
    }

    /// Restores the true time from the next start on.
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

    /// Runs `strace` on the node, which makes system calls fail as `inject` says.
    pub fn strace(&self, calls: &str, inject: &str) -> Result<Process> {
        self.strace_files(calls, inject, &[])
    }

    /// Like [`Node::strace`], but only for calls on some files, if any are given.
    pub fn strace_files(&self, calls: &str, inject: &str, files: &[PathBuf]) -> Result<Process> {
        let id = self.process_id().context("the node is not running")?;
        let mut command = Command::new("strace");
        command.args(["-f", "-q", "-p", &id.to_string(), "-o"]).arg(self.strace_path());
        command.args(["-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:{inject}")]);
        for file in files {
            command.arg("-P").arg(file);
        }
        Process::start(command, &self.folder.join(format!("node-{}.strace.log", self.id())))
    }

    /// Whether its last `strace`, which must have ended, made a call fail.
    pub fn strace_injected(&self) -> Result<bool> {
        let calls = fs::read(self.strace_path()).context("cannot read the output of `strace`")?;
        Ok(String::from_utf8_lossy(&calls).contains("(INJECTED)"))
    }

    /// Its whole log.
    pub fn log(&self) -> String {
        let log = fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// The end of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        process::log_tail(&self.log_path(), lines)
    }
}

/// Fills a pipe.
fn fill(writer: &mut PipeWriter) -> Result<()> {
    set_flags(writer, libc::O_NONBLOCK)?;
    for size in [4096, 1] {
        let piece = vec![b'.'; size];
        while writer.write(&piece).is_ok() {}
    }
    // The node must get a blocking pipe, like any pipe of a shell.
    set_flags(writer, 0)
}

fn set_flags(pipe: &PipeWriter, flags: libc::c_int) -> Result<()> {
    // SAFETY: the call only changes how the open pipe behaves.
    match unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETFL, flags) } {
        -1 => Err(std::io::Error::last_os_error()).context("cannot prepare a pipe"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// A full pipe has no room for a single byte until it is read.
    #[test]
    fn a_full_pipe_is_full() {
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        fill(&mut writer).unwrap();
        let is_writable = |writer: &PipeWriter| {
            let mut polled = libc::pollfd { fd: writer.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
            // SAFETY: there is one descriptor, and the call does not wait.
            unsafe { libc::poll(&mut polled, 1, 0) == 1 && polled.revents & libc::POLLOUT != 0 }
        };
        assert!(!is_writable(&writer));
        let mut read = vec![0; 1 << 16];
        reader.read_exact(&mut read).unwrap();
        assert!(is_writable(&writer));
    }
}
