//! `doctor` finds problems of a cluster, and says what to do about each.
//!
//! | module | content |
//! | --- | --- |
//! | `collect` | the status of all nodes |
//! | `judge` | findings from that status |

mod collect;
mod judge;
#[cfg(test)]
mod tests;

use std::io;
use std::time::Duration;

use self::collect::Seen;
use self::judge::{Finding, Severity};
use super::arguments::Connector;
use super::failure::{Failure, verdict};
use super::output::{Output, printable};

/// How long to wait at most until a leader must have heard from a member again.
const SILENCE_WAIT_MAX: Duration = Duration::from_secs(5);

/// `doctor`
pub async fn doctor(mut output: Output, connector: &Connector, endpoints: &[String]) -> Result<(), Failure> {
    let mut seen = collect::collect(connector, endpoints).await;
    let mut findings = judge::judge(&seen);
    // A member that has just stopped counts as heard by the leader for a while.
    if findings.iter().any(|finding| finding.code == "unreachable_from_here") {
        tokio::time::sleep(judge::silence_max(&seen).min(SILENCE_WAIT_MAX)).await;
        seen = collect::collect(connector, endpoints).await;
        findings = judge::judge(&seen);
    }
    let written = write(&mut output, &seen, &findings).map_err(Failure::Output);
    let found = match findings.iter().map(|finding| finding.severity).max() {
        None | Some(Severity::Info) => Ok(()),
        Some(Severity::Warning) => Err(Failure::Warnings),
        Some(Severity::Critical) => Err(Failure::Critical),
    };
    verdict(written, found)
}

fn write(output: &mut Output, seen: &[Seen], findings: &[Finding]) -> io::Result<()> {
    for finding in findings {
        let Finding { severity, code, seen, advice, .. } = finding;
        let name = severity.name();
        output.line(finding, format!("{name}: {code}\n  seen: {}\n  do:   {}", printable(seen), printable(advice)))?;
    }
    if !output.is_json() {
        let nodes = seen.iter().filter(|seen| seen.status().is_some()).count();
        let count = |severity: Severity| findings.iter().filter(|finding| finding.severity == severity).count();
        let counts = format!(
            "{} critical, {} warning, {} info",
            count(Severity::Critical),
            count(Severity::Warning),
            count(Severity::Info)
        );
        let text = format!("{nodes} of {} addresses responded as nodes; findings: {counts}", seen.len());
        output.line(&(), text)?;
    }
    output.flush()
}
