//! Why a command failed, with the message and the exit code.

use std::io;
use std::process::ExitCode;

use raft_key_value::ClientError;
use raft_key_value::error::Outcome;
use raft_key_value::store::StoreError;
use raft_key_value::store::rebuild::RebuildError;
use raft_key_value::telemetry::logging::say;

/// The key does not exist, a condition does not hold, or a revision is no longer kept. Or `doctor` has a warning.
const EXIT_NO: u8 = 1;
/// The request is invalid, or names a file that does not exist.
const EXIT_USAGE: u8 = 2;
/// A file is damaged: `EX_DATAERR` of `sysexits.h`.
const EXIT_DATA: u8 = 65;
/// No node could serve the request, or its outcome is unknown.
const EXIT_UNAVAILABLE: u8 = 3;
/// `doctor` has a critical finding.
const EXIT_CRITICAL: u8 = 4;
/// The output cannot be written, although the request succeeded: `EX_IOERR` of `sysexits.h`.
pub const EXIT_OUTPUT: u8 = 74;

/// Why a command fails.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The result is negative: see [`EXIT_NO`].
    #[error("{0}")]
    No(String),
    /// The request is invalid.
    #[error("{0}")]
    Usage(String),
    /// The input cannot be read, or another local resource is not available.
    #[error("{0}")]
    Input(String),
    /// The output of a read cannot be written.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    /// The request was applied, but its result cannot be written.
    #[error("the request was applied ({result}), but its result cannot be written: {error}")]
    Unwritten {
        /// The first line of the result.
        result: String,
        error: io::Error,
    },
    /// The cluster did not serve the request.
    #[error("{}{_0}", prefix(_0))]
    Client(#[from] ClientError),
    /// A listing ended before its last key.
    #[error("the list is incomplete, only {printed} keys were printed: {error}")]
    Incomplete { printed: usize, error: Box<ClientError> },
    /// A local file or directory is damaged, held by a node, or cannot be used.
    #[error("{}", text_of(_0))]
    Store(#[from] StoreError),
    /// A local file cannot be written.
    #[error("{0}")]
    File(String),
    /// No node was made of a snapshot or of a former node.
    #[error("{}", match _0 { RebuildError::Store(error) => text_of(error), other => other.to_string() })]
    Rebuild(#[from] RebuildError),
    /// Some keys of a snapshot were put into the cluster.
    #[error("{loaded} keys were loaded, and then: {}{error}; repeat the command to load the rest", prefix(error))]
    Partly { loaded: usize, error: Box<ClientError> },
    /// Some endpoints do not serve requests.
    #[error("{0}")]
    Unavailable(String),
    /// `doctor` printed a warning.
    #[error("the cluster needs attention")]
    Warnings,
    /// `doctor` printed a critical finding.
    #[error("the cluster is in a critical state")]
    Critical,
}

impl Failure {
    /// Whether the reader of the output closed it, which is no failure of the command.
    fn is_closed_pipe(&self) -> bool {
        match self {
            Failure::Output(error) | Failure::Unwritten { error, .. } => error.kind() == io::ErrorKind::BrokenPipe,
            _ => false,
        }
    }
}

/// The result of a command: `verdict`, unless its output cannot be written. A closed pipe does not count.
pub fn verdict(written: Result<(), Failure>, verdict: Result<(), Failure>) -> Result<(), Failure> {
    match written {
        Err(failure) if !failure.is_closed_pipe() => Err(failure),
        _ => verdict,
    }
}

/// The message of an error, without advice about running nodes.
fn text_of(error: &StoreError) -> String {
    match error {
        StoreError::Damaged { .. } => format!("damaged: {}; nothing was changed", error.finding()),
        StoreError::Locked { path, holder } => {
            let holder = if holder.is_empty() { "not named" } else { holder };
            format!("a node runs on the directory: process {holder} holds `{}`; stop it first", path.display())
        }
        other => other.to_string(),
    }
}

/// Whether the arguments name a file or a directory that does not exist.
fn is_missing(error: &StoreError) -> bool {
    matches!(error, StoreError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

fn prefix(error: &ClientError) -> &'static str {
    match (exit_code_of(error), error.outcome()) {
        (EXIT_UNAVAILABLE, Outcome::Unknown) => "the outcome is unknown: ",
        (EXIT_UNAVAILABLE, Outcome::NotApplied) => "no node could serve the request, and nothing was changed: ",
        _ => "",
    }
}

fn exit_code_of(error: &ClientError) -> u8 {
    if matches!(error, ClientError::InvalidRequest { .. }) {
        return EXIT_USAGE;
    }
    match (error.code(), error.status()) {
        (Some("key_not_found" | "condition_failed" | "revision_gone"), _) => EXIT_NO,
        (_, Some(408 | 421)) => EXIT_UNAVAILABLE,
        (_, Some(400..=499)) => EXIT_USAGE,
        _ => EXIT_UNAVAILABLE,
    }
}

/// Prints why a command failed, if it did, and returns its exit code.
pub fn exit_code(ended: Result<(), Failure>) -> ExitCode {
    let failure = match ended {
        Ok(()) => return ExitCode::SUCCESS,
        Err(failure) if failure.is_closed_pipe() => return ExitCode::SUCCESS,
        Err(failure) => failure,
    };
    let code = match &failure {
        // The findings were printed.
        Failure::Warnings => return ExitCode::from(EXIT_NO),
        Failure::Critical => return ExitCode::from(EXIT_CRITICAL),
        Failure::No(_) => EXIT_NO,
        Failure::Usage(_) | Failure::Input(_) => EXIT_USAGE,
        Failure::Client(error) => exit_code_of(error),
        Failure::Partly { error, .. } => exit_code_of(error),
        Failure::Store(error) | Failure::Rebuild(RebuildError::Store(error)) if is_missing(error) => EXIT_USAGE,
        Failure::Store(error) | Failure::Rebuild(RebuildError::Store(error)) => error.exit_code(),
        Failure::Rebuild(RebuildError::NoEntry(_)) => EXIT_DATA,
        Failure::Rebuild(RebuildError::NoExchange { .. }) => EXIT_OUTPUT,
        Failure::Rebuild(_) => EXIT_USAGE,
        Failure::Output(_) | Failure::Unwritten { .. } | Failure::File(_) => EXIT_OUTPUT,
        Failure::Incomplete { .. } | Failure::Unavailable(_) => EXIT_UNAVAILABLE,
    };
    say(&format!("error: {failure}\n"));
    ExitCode::from(code)
}
