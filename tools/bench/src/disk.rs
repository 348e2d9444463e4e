//! The current speed of the disk, independent of either system.
//!
//! Writes wait for fsync, so other use of the disk slows all of them. Measured before each point, this
//! distinguishes a slow system from a busy disk.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

const APPENDS: usize = 41;
/// About the size of a log entry.
const APPEND_BYTES: usize = 600;

/// The median time of an append with fdatasync, to a scratch file.
pub fn sync_time(directory: &Path) -> Result<Duration> {
    let path = directory.join("sync-probe");
    let times = time_appends(&path).with_context(|| format!("cannot use `{}`", path.display()))?;
    Ok(times[times.len() / 2])
}

fn time_appends(path: &Path) -> std::io::Result<Vec<Duration>> {
    let mut file = File::create(path)?;
    let mut times = Vec::with_capacity(APPENDS);
    for _ in 0..APPENDS {
        let started = Instant::now();
        file.write_all(&[0; APPEND_BYTES])?;
        file.sync_data()?;
        times.push(started.elapsed());
    }
    std::fs::remove_file(path)?;
    times.sort();
    Ok(times)
}
