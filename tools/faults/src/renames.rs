//! Checks that the name of every renamed file is durable.
//!
//! A name that was not synced may be lost in a power cut. No power cut in this harness shows that: the file
//! systems write a rename to their journal with the next sync of any file, and the log is synced every few
//! milliseconds. Other file systems may behave differently. Therefore the calls themselves are checked: after
//! a rename, the thread must sync the directory before its next call of this kind.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// The traced calls.
const CALLS: &str = "trace=rename,renameat,renameat2,fsync,unlink,unlinkat";

/// The program in front of the node's command that traces the node. The node is still the harness's child, so
/// that signals reach it (`-D`).
pub fn tracer(path: &Path) -> Vec<String> {
    let path = path.display().to_string();
    ["strace", "-D", "-f", "-y", "-A", "-s", "4096", "--seccomp-bpf", "-e", CALLS, "-e", "signal=none", "-o", &path]
        .map(str::to_owned)
        .to_vec()
}

/// The renames that were not synced.
pub fn check(path: &Path) -> Result<Vec<String>> {
    let trace = fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    Ok(check_trace(&trace))
}

fn check_trace(trace: &str) -> Vec<String> {
    let mut findings = Vec::new();
    // By thread: the target of its last rename, if it has not been synced yet.
    let mut unsynced: HashMap<&str, &str> = HashMap::new();
    for line in trace.lines() {
        let Some((thread, event)) = line.split_once(' ').map(|(thread, event)| (thread, event.trim_start())) else {
            continue;
        };
        if event.starts_with("<...") {
            continue; // The end of a call whose beginning was checked.
        }
        if event.starts_with("+++ killed") {
            unsynced.remove(thread); // The thread had no time to sync.
            continue;
        }
        if let Some(renamed) = unsynced.remove(thread)
            && !syncs_directory_of(event, renamed)
        {
            findings.push(format!("`{renamed}` was renamed, but its directory was not synced before: {event}"));
        }
        if event.starts_with("rename")
            && let Some(renamed) = event.split('"').nth(3)
        {
            unsynced.insert(thread, renamed);
        }
    }
    findings
}

/// Matches `fsync(12</data/snapshots>)` after a rename to `/data/snapshots/7.snap`.
fn syncs_directory_of(event: &str, renamed: &str) -> bool {
    let synced = event.strip_prefix("fsync(").and_then(|rest| rest.split_once('<')?.1.split_once('>'));
    let parent = Path::new(renamed).parent();
    synced.is_some_and(|(synced, _)| parent == Some(Path::new(synced)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A rename is found if its own thread does not sync its own directory next.
    #[test]
    fn finds_what_is_not_synced() {
        let synced = "7 rename(\"/d/s/new.tmp\", \"/d/s/9.snap\") = 0\n8 fsync(4</d/log>) = 0\n\
                      7 fsync(5</d/s> <unfinished ...>\n8 fsync(4</d/log>) = 0\n7 <... fsync resumed>) = 0\n\
                      7 unlink(\"/d/s/1.snap\") = 0\n7 +++ exited with 0 +++\n";
        assert_eq!(check_trace(synced), [] as [String; 0]);
        let killed = "7 rename(\"/d/s/new.tmp\", \"/d/s/9.snap\") = 0\n7 +++ killed by SIGKILL +++\n";
        assert_eq!(check_trace(killed), [] as [String; 0]);
        for wrong in ["7 +++ exited with 0 +++", "7 unlink(\"/d/s/1.snap\") = 0", "7 fsync(4</d/log>) = 0"] {
            let trace = format!("7 rename(\"/d/s/new.tmp\", \"/d/s/9.snap\") = 0\n8 fsync(5</d/s>) = 0\n{wrong}\n");
            assert_eq!(check_trace(&trace).len(), 1, "{wrong}");
        }
    }
}
