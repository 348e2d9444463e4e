//! One node: its process, its address, its directory and its log.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Child;

use raft_key_value::NodeId;
use serde_json::Value;

use super::eventually::{DEADLINE, eventually};
use super::http::Http;
use super::process::{self, free_port};

/// The exit code of a node that cannot listen on its address.
const EXIT_CANNOT_LISTEN: i32 = 69;
/// How many ports to try, since another process may take a free port first.
const STARTS_MAX: usize = 5;

/// A node as a child process, which is killed when this is dropped.
#[derive(Debug)]
pub struct TestNode {
    /// Its node id.
    pub id: NodeId,
    /// Its address, the same across restarts.
    pub addr: String,
    program: PathBuf,
    data_dir: PathBuf,
    log_path: PathBuf,
    settings: Settings,
    /// Shell commands before the program that set what the process inherits.
    shell: Option<String>,
    stderr: Option<OwnedFd>,
    child: Option<Child>,
}

/// How the process is configured.
#[derive(Debug)]
enum Settings {
    /// By these flags, in addition to the node's own.
    Flags(Vec<String>),
    /// By the environment alone.
    Environment,
}

impl TestNode {
    /// Starts a node on a free port, with its data below `directory`, and waits until it responds.
    pub async fn start(id: NodeId, directory: &Path, flags: &[&str], http: &Http) -> Self {
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        Self::start_with(id, directory, Settings::Flags(flags), None, http).await
    }

    /// The same, of another program.
    pub async fn start_program(program: &Path, id: NodeId, directory: &Path, flags: &[&str], http: &Http) -> Self {
        let mut node = Self::at(String::new(), id, directory, flags);
        node.set_program(program);
        node.start_on_free_port(http).await;
        node
    }

    /// The same, after shell commands that set what the process inherits, such as `umask 022`.
    pub async fn start_after(shell: String, id: NodeId, directory: &Path, flags: &[&str], http: &Http) -> Self {
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        Self::start_with(id, directory, Settings::Flags(flags), Some(shell), http).await
    }

    /// The same, configured by the environment alone.
    pub async fn start_by_environment(id: NodeId, directory: &Path, http: &Http) -> Self {
        Self::start_with(id, directory, Settings::Environment, None, http).await
    }

    async fn start_with(id: NodeId, directory: &Path, settings: Settings, shell: Option<String>, http: &Http) -> Self {
        let mut node = TestNode {
            id,
            addr: String::new(),
            program: PathBuf::from(process::BINARY),
            data_dir: directory.join("data"),
            log_path: directory.join(format!("node-{id}.log")),
            settings,
            shell,
            stderr: None,
            child: None,
        };
        node.start_on_free_port(http).await;
        node
    }

    async fn start_on_free_port(&mut self, http: &Http) {
        let id = self.id;
        for _ in 0..STARTS_MAX {
            self.addr = format!("127.0.0.1:{}", free_port());
            match self.spawn(http).await {
                Ok(()) => return,
                Err(Some(EXIT_CANNOT_LISTEN)) => {} // Another process took the port.
                Err(code) => panic!("node {id} ended with exit code {code:?}:\n{}", self.log()),
            }
        }
        panic!("node {id} found no free port in {STARTS_MAX} attempts:\n{}", self.log());
    }

    /// A node that is not started yet, at this address. `restart` or `try_to_start` starts it.
    pub fn at(addr: String, id: NodeId, directory: &Path, flags: &[&str]) -> Self {
        TestNode {
            id,
            addr,
            program: PathBuf::from(process::BINARY),
            data_dir: directory.join("data"),
            log_path: directory.join(format!("node-{id}.log")),
            settings: Settings::Flags(flags.iter().map(|flag| (*flag).to_owned()).collect()),
            shell: None,
            stderr: None,
            child: None,
        }
    }

    /// Starts a stopped node that may exit by itself; returns the exit code if it does before it responds.
    pub async fn try_to_start(&mut self, http: &Http) -> Result<(), Option<i32>> {
        assert!(self.child.is_none(), "node {} is running", self.id);
        self.spawn(http).await
    }

    /// Restarts the process on the same directory and address.
    pub async fn restart(&mut self, http: &Http) {
        assert!(self.child.is_none(), "node {} is running", self.id);
        eventually("the node's port is free again", DEADLINE, async || match self.spawn(http).await {
            Ok(()) => Ok(()),
            Err(Some(EXIT_CANNOT_LISTEN)) => Err("taken"),
            Err(code) => panic!("node {} ended with exit code {code:?} at a restart:\n{}", self.id, self.log()),
        })
        .await;
    }

    /// Starts the process, and waits until it responds; returns the exit code if it exits instead.
    async fn spawn(&mut self, http: &Http) -> Result<(), Option<i32>> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log_path).unwrap();
        let mut command = match &self.settings {
            Settings::Flags(_) => match &self.shell {
                None => process::command_of(&self.program, self.arguments()),
                Some(shell) => process::command_after(shell, &self.program, self.arguments()),
            },
            Settings::Environment => {
                let mut command = process::command_of::<&str>(&self.program, []);
                command.env("RKV_ID", self.id.to_string()).env("RKV_HTTP_ADDR", &self.addr);
                command.env("RKV_DATA_DIR", &self.data_dir);
                command
            }
        };
        // The limits of a node depend on its threads, so tests need the same number of threads on every machine.
        command.env("RKV_HTTP_THREADS", "1");
        command.stdout(log.try_clone().unwrap());
        match &self.stderr {
            None => command.stderr(log),
            Some(stderr) => command.stderr(stderr.try_clone().unwrap()),
        };
        let child = self.child.insert(command.spawn().unwrap());
        let identity_path = self.data_dir.join(format!("node-{}/IDENTITY", self.id));
        let what = format!("node {} responds at {}", self.id, self.addr);
        let ready = eventually(&what, DEADLINE, async || {
            if let Some(status) = child.try_wait().unwrap() {
                return Ok(Err(status.code()));
            }
            let answer = http.get(&self.addr, "/raft-identity").await.map_err(|error| error.to_string())?;
            // With tokens, it responds to other nodes only.
            if answer.status == 401 {
                return Ok(Ok(()));
            }
            let identity = answer.ok()?;
            // If another node took the port, that node responds.
            if identity["incarnation"].as_u64() == incarnation_in(&identity_path) {
                Ok(Ok(()))
            } else {
                Err(answer.text())
            }
        })
        .await;
        if ready.is_err() {
            self.child = None;
        }
        ready
    }

    fn arguments(&self) -> Vec<String> {
        let id = self.id.to_string();
        let data_dir = self.data_dir.display().to_string();
        let own = ["--id", &id, "--http-addr", &self.addr, "--data-dir", &data_dir];
        let flags: &[String] = if let Settings::Flags(flags) = &self.settings { flags } else { &[] };
        own.into_iter().map(str::to_owned).chain(flags.iter().cloned()).collect()
    }

    /// Makes another program of the node, from its next start.
    pub fn set_program(&mut self, program: &Path) {
        self.program = program.to_owned();
    }

    /// Limits the open files of the process, from its next start.
    pub fn limit_files(&mut self, files_max: u64) {
        self.shell = Some(format!("ulimit -n {files_max}"));
    }

    /// Makes the running process unable to open files or connections, or ends that.
    pub fn set_out_of_files(&self, is_out: bool) {
        // The hard limit stays. The descriptors below it are those that a node keeps open.
        let limit = if is_out { "--nofile=4:" } else { "--nofile=1024:" };
        let status = std::process::Command::new("prlimit").args(["--pid", &self.pid().to_string(), limit]).status();
        assert!(status.unwrap().success(), "prlimit failed");
    }

    /// Makes the process log to this descriptor instead of a file, from its next start.
    pub fn log_to(&mut self, stderr: impl Into<OwnedFd>) {
        self.stderr = Some(stderr.into());
    }

    /// Adds flags, from the next start.
    pub fn add_flags(&mut self, more: &[&str]) {
        if let Settings::Flags(flags) = &mut self.settings {
            flags.extend(more.iter().map(|flag| (*flag).to_owned()));
        }
    }

    /// Adds a flag, from the next start.
    pub fn add_flag(&mut self, flag: &str) {
        let Settings::Flags(flags) = &mut self.settings else { panic!("node {} takes no flags", self.id) };
        flags.push(flag.to_owned());
    }

    /// Removes a flag that was added.
    pub fn remove_flag(&mut self, flag: &str) {
        let Settings::Flags(flags) = &mut self.settings else { panic!("node {} takes no flags", self.id) };
        flags.retain(|other| other != flag);
    }

    /// Whether the process exists, paused or not.
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Asserts that the process has not exited by itself.
    pub fn assert_alive(&mut self) {
        let id = self.id;
        let child = self.child.as_mut().unwrap_or_else(|| panic!("node {id} was stopped"));
        let status = child.try_wait().unwrap();
        assert!(status.is_none(), "node {id} exited by itself: {status:?}");
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap_or_else(|| panic!("node {} is not running", self.id)).id()
    }

    /// The resident memory of the process now, in KiB.
    pub fn memory_kib(&self) -> usize {
        self.memory("VmRSS:")
    }

    /// The peak resident memory of the process, in KiB.
    pub fn memory_peak_kib(&self) -> usize {
        self.memory("VmHWM:")
    }

    fn memory(&self, name: &str) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// How many files and connections the process has open.
    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Kills the process with SIGKILL, as a crash would.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap_or_else(|| panic!("node {} is not running", self.id));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Stops the process with SIGTERM, and returns its exit code.
    pub async fn stop(&mut self) -> Option<i32> {
        process::send_signal(self.pid(), "TERM");
        self.ends().await
    }

    /// Waits until the process has exited, and returns its exit code.
    pub async fn ends(&mut self) -> Option<i32> {
        let child = self.child.as_mut().unwrap_or_else(|| panic!("node {} is not running", self.id));
        let what = format!("node {} exits", self.id);
        let status = eventually(&what, DEADLINE, async || child.try_wait().unwrap().ok_or("still running")).await;
        self.child = None;
        status.code()
    }

    /// Stops the process with SIGSTOP, and waits until all its threads have stopped.
    pub fn pause(&self) {
        process::send_signal(self.pid(), "STOP");
        process::wait_until_stopped(self.pid());
    }

    /// Continues a paused process.
    pub fn resume(&self) {
        process::send_signal(self.pid(), "CONT");
    }

    /// The node's own directory.
    pub fn directory(&self) -> PathBuf {
        self.data_dir.join(format!("node-{}", self.id))
    }

    /// All files in the node's directory.
    pub fn files(&self) -> Vec<PathBuf> {
        files_below(&self.directory())
    }

    /// The parent of the node's directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Everything that the node has logged since its first start.
    pub fn log(&self) -> String {
        fs::read(&self.log_path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The command line that starts the node by hand.
    pub fn command_line(&self) -> String {
        format!("{} {}", self.program.display(), self.arguments().join(" "))
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have exited by itself, which the test must detect.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// All files below a directory, sorted.
pub fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.append(&mut files_below(&path));
        } else {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Copies a directory with all that it contains. A running node may delete a file meanwhile.
pub fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, target) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if path.is_dir() {
            copy_directory(&path, &target);
        } else if let Err(error) = fs::copy(&path, target) {
            assert_eq!(error.kind(), ErrorKind::NotFound, "cannot copy {}: {error}", path.display());
        }
    }
}

fn incarnation_in(identity_path: &Path) -> Option<u64> {
    let identity: Value = serde_json::from_slice(&fs::read(identity_path).ok()?).ok()?;
    u64::from_str_radix(identity["incarnation"].as_str()?, 16).ok()
}
