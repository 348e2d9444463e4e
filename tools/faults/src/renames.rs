//! Whether every file that is renamed has its name for good.
//!
//! A name that was not synced may be gone after a power cut. Yet no power cut here
//! shows that: the file systems write a rename to their journal with whatever sync of
//! any file comes next, and the log's are milliseconds apart. Others need not. So the
//! calls themselves are looked at: after a rename its thread must sync the directory
//! before it does anything else of the kind.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// The calls that are written down.
const CALLS: &str = "trace=rename,renameat,renameat2,fsync,unlink,unlinkat";

/// The program that writes down what a node does, in front of the node's command.
/// The node is the harness's child all the same, so that signals reach it (`-D`).
pub fn tracer(path: &Path) -> Vec<String> {
    let path = path.display().to_string();
    ["strace", "-D", "-f", "-y", "-A", "-s", "4096", "--seccomp-bpf", "-e", CALLS, "-e", "signal=none", "-o", &path]
        .map(str::to_owned)
        .to_vec()
}

/// What was renamed and not synced.
pub fn check(path: &Path) -> Result<Vec<String>> {
    let trace = fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    Ok(check_trace(&trace))
}

fn check_trace(trace: &str) -> Vec<String> {
    let mut findings = Vec::new();
    // By thread: the path to which it renamed a file last, if it has not yet synced that.
    let mut unsynced: HashMap<&str, &str> = HashMap::new();
    for line in trace.lines() {
        let Some((thread, event)) = line.split_once(' ').map(|(thread, event)| (thread, event.trim_start())) else {
            continue;
        };
        if event.starts_with("<...") {
            continue; // The end of a call whose beginning was looked at.
        }
        if event.starts_with("+++ killed") {
            unsynced.remove(thread); // It had no time to.
            continue;
        }
        if let Some(renamed) = unsynced.remove(thread)
            && !syncs_directory_of(event, renamed)
        {
            findings.push(format!("`{renamed}` is renamed, and its directory not synced before: {event}"));
        }
        if event.starts_with("rename")
            && let Some(renamed) = event.split('"').nth(3)
        {
            unsynced.insert(thread, renamed);
        }
    }
    findings
}

/// `fsync(12</data/snapshots>)` after a rename to `/data/snapshots/7.snap`.
fn syncs_directory_of(event: &str, renamed: &str) -> bool {
    let synced = event.strip_prefix("fsync(").and_then(|rest| rest.split_once('<')?.1.split_once('>'));
    let parent = Path::new(renamed).parent();
    synced.is_some_and(|(synced, _)| parent == Some(Path::new(synced)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A rename is found that is not followed by a sync of its own directory, by its own thread.
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
