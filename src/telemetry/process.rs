//! What the system knows of this process, from `/proc`. Values that it does not have are `None`.

use std::fs;

use rustix::process::{Resource, getrlimit};

/// Resources that this process uses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessUse {
    /// CPU time since the start, in seconds.
    pub cpu_seconds: Option<f64>,
    /// Memory that is in RAM, in bytes.
    pub resident_bytes: Option<u64>,
    /// Open files.
    pub open_files: Option<u64>,
    /// The limit of open files.
    pub open_files_max: Option<u64>,
    /// Threads.
    pub threads: Option<u64>,
    /// When the process was started, in seconds since 1970.
    pub started_at: Option<f64>,
}

impl ProcessUse {
    /// Reads the current values. Blocks on the system for as long as it takes to list the open files.
    pub fn read() -> Self {
        let ticks_a_second = rustix::param::clock_ticks_per_second() as f64;
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // The name of the program comes before, in parentheses, and may contain spaces.
        let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        // `man 5 proc` numbers the state 3.
        let field = |number: usize| fields.get(number - 3).and_then(|text| text.parse::<u64>().ok());
        let cpu_ticks = field(14).zip(field(15)).map(|(user, system)| user + system);
        let page_bytes = rustix::param::page_size() as u64;
        ProcessUse {
            cpu_seconds: cpu_ticks.map(|ticks| ticks as f64 / ticks_a_second),
            resident_bytes: field(24).map(|pages| pages * page_bytes),
            open_files: fs::read_dir("/proc/self/fd").ok().map(|files| files.count() as u64),
            open_files_max: getrlimit(Resource::Nofile).current,
            threads: field(20),
            started_at: field(22).and_then(|ticks| started_at(ticks as f64 / ticks_a_second)),
        }
    }
}

/// The time that is so many seconds after the system was started. The system gives its start in whole seconds, which
/// do not change with each reading.
fn started_at(seconds: f64) -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let booted_at = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    Some(booted_at.trim().parse::<f64>().ok()? + seconds)
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    /// On Linux all values are known and plausible.
    #[test]
    #[cfg(target_os = "linux")]
    fn this_process() {
        let used = ProcessUse::read();
        assert!(used.cpu_seconds.is_some_and(|seconds| seconds < 3600.0), "{used:?}");
        assert!(used.resident_bytes.is_some_and(|bytes| (1 << 20..1 << 40).contains(&bytes)), "{used:?}");
        assert!(used.open_files.is_some_and(|files| files > 2), "{used:?}");
        assert!(used.open_files_max > used.open_files, "{used:?}");
        assert!(used.threads.is_some_and(|threads| threads > 0), "{used:?}");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(used.started_at.is_some_and(|at| (0.0..86400.0).contains(&(now - at + 2.0))), "{used:?}");
    }
}
