//! CPU control groups that limit each node to a share of a core.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

const ROOT: &str = "/sys/fs/cgroup";
/// Prefix of the name of each group; the bench's pid follows.
const NAME_PREFIX: &str = "raft-key-value-bench-";
/// Short, so that a node that has used up its share waits only for milliseconds. With the kernel's default of
/// 100 ms, the figures would show pauses instead of a slow machine.
const PERIOD_US: u64 = 5_000;
/// The kernel's minimum.
const QUOTA_US_MIN: u64 = 1_000;
const REMOVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Removes the groups when dropped. The processes in them must have ended by then.
pub struct CpuLimits {
    hierarchy: Hierarchy,
    groups: Vec<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Hierarchy {
    /// Mount point of the version 1 `cpu` controller.
    V1(PathBuf),
    V2(PathBuf),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Quota {
    quota_us: u64,
    period_us: u64,
}

impl Quota {
    fn of_cores(cores: f64) -> Self {
        let period_us = PERIOD_US.max((QUOTA_US_MIN as f64 / cores).ceil() as u64);
        Self { quota_us: (cores * period_us as f64).round() as u64, period_us }
    }
}

impl CpuLimits {
    /// Fails if limits are unavailable, before anything is started.
    pub fn prepare() -> Result<Self> {
        // SAFETY: geteuid only reads.
        let is_root = unsafe { libc::geteuid() } == 0;
        ensure!(is_root, "overload must run as root, because it uses CPU control groups");
        let hierarchy = Hierarchy::find(Path::new(ROOT))?;
        if let Hierarchy::V2(directory) = &hierarchy {
            write(&directory.join("cgroup.subtree_control"), "+cpu")?;
        }
        hierarchy.remove_left_over();
        Ok(Self { hierarchy, groups: Vec::new() })
    }

    /// Gives each process a group of its own. A running server has already sized its thread pools by the
    /// whole machine, so the limit only makes the machine slower.
    pub fn apply(&mut self, pids: &[libc::pid_t], cores_each: f64) -> Result<()> {
        let quota = Quota::of_cores(cores_each);
        for (pid, number) in pids.iter().zip(1..) {
            let group = self.hierarchy.directory().join(format!("{NAME_PREFIX}{}-node-{number}", std::process::id()));
            fs::create_dir(&group).with_context(|| format!("cannot create `{}`", group.display()))?;
            self.groups.push(group.clone());
            self.hierarchy.set(&group, quota)?;
            write(&group.join("cgroup.procs"), &pid.to_string())?;
        }
        Ok(())
    }
}

impl Drop for CpuLimits {
    fn drop(&mut self) {
        let deadline = Instant::now() + REMOVE_TIMEOUT;
        for group in &self.groups {
            // A process leaves its group shortly after it was waited for.
            while let Err(error) = fs::remove_dir(group) {
                if Instant::now() >= deadline {
                    eprintln!("cannot remove `{}`: {error}", group.display());
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

impl Hierarchy {
    fn find(root: &Path) -> Result<Self> {
        let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        if controllers.split_whitespace().any(|name| name == "cpu") {
            return Ok(Self::V2(root.to_owned()));
        }
        let v1 = root.join("cpu");
        if !v1.join("cpu.cfs_quota_us").is_file() {
            bail!(
                "no CPU controller: `{root}/cgroup.controllers` (version 2) does not name cpu, and there is no \
                 `{root}/cpu/cpu.cfs_quota_us` (version 1)",
                root = root.display()
            );
        }
        Ok(Self::V1(v1))
    }

    fn directory(&self) -> &Path {
        match self {
            Self::V1(directory) | Self::V2(directory) => directory,
        }
    }

    fn set(&self, group: &Path, Quota { quota_us, period_us }: Quota) -> Result<()> {
        match self {
            Self::V1(_) => {
                write(&group.join("cpu.cfs_period_us"), &period_us.to_string())?;
                write(&group.join("cpu.cfs_quota_us"), &quota_us.to_string())
            }
            Self::V2(_) => write(&group.join("cpu.max"), &format!("{quota_us} {period_us}")),
        }
    }

    /// Removes the groups of killed runs, whose processes have ended with them.
    fn remove_left_over(&self) {
        for entry in fs::read_dir(self.directory()).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let pid = name.to_str().and_then(|name| name.strip_prefix(NAME_PREFIX)?.split('-').next());
            if let Some(pid) = pid
                && !Path::new("/proc").join(pid).exists()
            {
                // A group with processes cannot be removed, and must not be.
                let _ = fs::remove_dir(entry.path());
            }
        }
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    let written: io::Result<()> = fs::write(path, text);
    written.with_context(|| format!("cannot write {text} to `{}`", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The period is short, except for shares of a core that are too small for it.
    #[test]
    fn a_quota_is_its_part_of_the_period() {
        assert_eq!(Quota::of_cores(0.2), Quota { quota_us: 1_000, period_us: 5_000 });
        assert_eq!(Quota::of_cores(0.5), Quota { quota_us: 2_500, period_us: 5_000 });
        assert_eq!(Quota::of_cores(1.5), Quota { quota_us: 7_500, period_us: 5_000 });
        assert_eq!(Quota::of_cores(0.1), Quota { quota_us: 1_000, period_us: 10_000 });
    }

    /// Version 2 is used if it has the controller, otherwise version 1; with neither, `find` fails.
    #[test]
    fn the_hierarchy_is_the_one_with_the_controller() {
        let root = std::env::temp_dir().join(format!("bench-cpu-limit-{}", std::process::id()));
        fs::create_dir_all(root.join("cpu")).unwrap();
        assert!(Hierarchy::find(&root).is_err());
        fs::write(root.join("cpu/cpu.cfs_quota_us"), "-1").unwrap();
        fs::write(root.join("cgroup.controllers"), "cpuset io").unwrap();
        assert_eq!(Hierarchy::find(&root).unwrap(), Hierarchy::V1(root.join("cpu")));
        fs::write(root.join("cgroup.controllers"), "cpuset cpu io").unwrap();
        assert_eq!(Hierarchy::find(&root).unwrap(), Hierarchy::V2(root.clone()));
        fs::remove_dir_all(&root).unwrap();
    }
}
