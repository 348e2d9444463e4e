//! Freezing a node's process.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use harness::process::Process;
use tokio::time::Instant;

use crate::finding::HarnessError;

/// How long a process may take to stop.
const FREEZE_DEADLINE: Duration = Duration::from_secs(5);

/// Sends SIGSTOP, and waits until none of its threads runs, whatever the kernel still does for them: they do
/// not see the results of pending calls.
pub async fn freeze(process: &mut Process) -> Result<()> {
    process.signal(libc::SIGSTOP)?;
    let deadline = Instant::now() + FREEZE_DEADLINE;
    while process.status()?.is_none() && threads(process)?.chars().any(|state| !"TtDZX".contains(state)) {
        if Instant::now() > deadline {
            bail!(HarnessError(format!("process {} does not stop", process.id())));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// The state of each thread of a process, as described in proc(5).
fn threads(process: &Process) -> Result<String> {
    let mut states = String::new();
    for thread in fs::read_dir(format!("/proc/{}/task", process.id())).context("cannot read the state of a process")? {
        let stat = thread.context("cannot read the state of a process")?.path().join("stat");
        // The thread may have ended meanwhile.
        let Ok(stat) = fs::read_to_string(stat) else { continue };
        // The name of a program may contain parentheses, too.
        states.extend(stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()));
    }
    Ok(states)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// A frozen process does nothing until it is continued.
    ///
    /// Method: a shell writes continuously. While it is frozen, its output does not grow.
    #[tokio::test]
    async fn frozen() {
        let log = std::env::temp_dir().join(format!("raft-key-value-frozen-{}", std::process::id()));
        let mut command = Command::new("sh");
        command.args(["-c", "while :; do echo x; done"]);
        let mut process = Process::start(command, &log).unwrap();
        let length = || log.metadata().unwrap().len();
        while length() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        freeze(&mut process).await.unwrap();
        assert_eq!(threads(&process).unwrap(), "T");
        let written = length();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(length(), written);
        process.signal(libc::SIGCONT).unwrap();
        while length() == written {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(process);
        fs::remove_file(log).unwrap();
    }
}
