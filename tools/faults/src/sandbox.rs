//! A sandbox with its own network, mounts and process ids, which ends with the run.
//!
//! The harness restarts itself under `unshare`. It only uses addresses of hosts that it creates inside, which
//! cannot be reached from outside and cannot reach the outside. When the first process of the sandbox ends,
//! for whatever reason, the kernel kills its other processes and removes its mounts, loop devices and
//! networks. Only files remain.

use std::env;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::finding::HarnessError;
use crate::node::LIBFAKETIME;

const INSIDE: &str = "RKV_FAULTS_SANDBOX";

/// The programs that the faults need, with their Debian packages.
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

/// Continues inside the sandbox; never returns outside of it.
pub fn enter() -> Result<()> {
    if env::var_os(INSIDE).is_some() {
        // An empty /run avoids clashes of network names.
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
    // SAFETY: the call only returns a number.
    if unsafe { libc::geteuid() } != 0 {
        bail!("must run as root, to create networks and mounts and to trace processes");
    }
    let path = env::var("PATH").unwrap_or_default();
    let missing = TOOLS.iter().filter(|(tool, _)| !path.split(':').any(|folder| Path::new(folder).join(tool).exists()));
    let mut packages: Vec<&str> = missing.map(|(_, package)| *package).collect();
    packages.dedup();
    if !Path::new(LIBFAKETIME).exists() {
        packages.push("libfaketime");
    }
    if !packages.is_empty() {
        bail!("missing tools: run `apt-get install {}`", packages.join(" "));
    }
    Ok(())
}

/// Runs a command to its end; an error contains its output.
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
