//! A machine of its own: network, mounts and process ids that end with the run.
//!
//! The harness starts itself again under `unshare`. All addresses it uses are
//! those of hosts that it makes itself in there, which nothing outside can
//! reach and which reach nothing outside. When its first process ends, however it
//! ends, the kernel ends all its processes, and takes back its mounts, loop
//! devices and networks: no run leaves anything behind but its files.

use std::env;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::finding::HarnessError;
use crate::node::LIBFAKETIME;

const INSIDE: &str = "RKV_FAULTS_SANDBOX";

/// What the faults are made with, and Debian's packages of them.
const TOOLS: [(&str, &str); 8] = [
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("strace", "strace"),
    ("mkfs.xfs", "xfsprogs"),
    ("xfs_io", "xfsprogs"),
    ("mkfs.ext4", "e2fsprogs"),
];

/// Goes on inside the sandbox: returns there, and never on the outside.
pub fn enter() -> Result<()> {
    if env::var_os(INSIDE).is_some() {
        // A fresh /run, so that names of networks cannot clash with others'.
        run("mount", &["-t", "tmpfs", "tmpfs", "/run"])?;
        run("ip", &["link", "set", "lo", "up"])?;
        return Ok(());
    }
    check_tools()?;
    let program = env::current_exe().context("cannot find the harness itself")?;
    let error = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(program)
        .args(env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec();
    Err(error).context("cannot start `unshare`")
}

fn check_tools() -> Result<()> {
    // SAFETY: it only reads a number.
    if unsafe { libc::geteuid() } != 0 {
        bail!("faults need root: networks, mounts and system calls of other processes are not to be had without");
    }
    let path = env::var("PATH").unwrap_or_default();
    let missing = TOOLS.iter().filter(|(tool, _)| !path.split(':').any(|folder| Path::new(folder).join(tool).exists()));
    let mut packages: Vec<&str> = missing.map(|(_, package)| *package).collect();
    packages.dedup();
    if !Path::new(LIBFAKETIME).exists() {
        packages.push("libfaketime");
    }
    if !packages.is_empty() {
        bail!("tools are missing: run `apt-get install {}`", packages.join(" "));
    }
    Ok(())
}

/// Runs a command to its end; an error with what it printed if it fails.
pub fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{program}`"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(HarnessError(format!("`{program} {}` failed ({}): {}", arguments.join(" "), output.status, said.trim())));
    }
    Ok(())
}
