//! Reads the directory of a stopped node without changing it: whether everything in it is whole (`check`), and all
//! that is in it (`dump`).
//!
//! Both hold one record or frame in memory at a time, and the history and the remembered requests of a snapshot, which
//! are bounded. They read a directory that refuses to start, too, and one that another user owns.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::clock_file::ClockFile;
use super::error::StoreError;
use super::identity::{DirectoryLock, Identity, IdentityFile};
use super::log::check::{self, CheckedLog, LogRecord};
use super::snapshot::format::{self, Scanned};
use super::snapshot::{check_log_covers, index_of, snapshot_files};
use super::state_machine::access::AccessMode;
use super::state_machine::history::ChangeKind;
use crate::access::TokenRole;
use crate::operation::{Key, Value, WriteResult};
use crate::types::{LogId, NodeId, Payload, StoredMembership, Vote};

/// What was found in a file or directory.
#[derive(Debug)]
pub struct Finding {
    /// The file or directory.
    pub path: PathBuf,
    /// Its content in words, or why it is rejected.
    pub outcome: Result<String, StoreError>,
}

/// Locks the directory of a stopped node for reading. A node cannot be started on it meanwhile.
///
/// # Errors
///
/// [`StoreError::Locked`] if a node runs on it; [`StoreError::Io`], also if it is not the directory of a node.
pub fn lock(directory: &Path) -> Result<Option<DirectoryLock>, StoreError> {
    let has_any = ["IDENTITY", "log", "snapshots"].iter().any(|name| directory.join(name).symlink_metadata().is_ok());
    if !has_any {
        let listed = std::fs::read_dir(directory).map_err(|error| StoreError::io("list", directory, error))?;
        let names = listed.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut nodes: Vec<String> = names.filter(|name| name.starts_with("node-")).collect();
        nodes.sort();
        let hint = if nodes.is_empty() { String::new() } else { format!("; it has {}", nodes.join(", ")) };
        let what = format!("it is not the directory of a node{hint}");
        return Err(StoreError::io("read", directory, io::Error::new(io::ErrorKind::NotFound, what)));
    }
    DirectoryLock::acquire_for_reading(directory)
}

/// Verifies everything in the directory of a stopped node, and calls `report` with each finding.
pub fn check(directory: &Path, report: &mut dyn FnMut(Finding)) {
    let identity_file = IdentityFile::in_directory(directory);
    let found = identity_file.read();
    let identity = found.as_ref().ok().copied().flatten();
    let joined = identity.is_some_and(|identity| identity.cluster_id.is_some());
    let (log_directory, snapshot_directory) = (directory.join("log"), directory.join("snapshots"));
    let is_readable = found.is_ok();
    let outcome = found.and_then(|identity| {
        super::check_directories(&identity_file, identity.as_ref(), [&log_directory, &snapshot_directory])?;
        Ok(identity.map_or_else(|| "missing, as in the directory of a new node".to_owned(), text_of_identity))
    });
    report(Finding { path: identity_file.path().to_owned(), outcome });
    let outcome = ClockFile::open(directory).map(|clock| match clock.recorded() {
        None => "missing, as in the directory of a new node".to_owned(),
        Some(reading) => format!("log time {} ms, wall clock {} ms", reading.log_ms, reading.wall_ms),
    });
    report(Finding { path: directory.join("CLOCK"), outcome });

    // A damaged identity does not say whether the node has joined: then any log is accepted.
    let (log, outcome) = match CheckedLog::read(&log_directory, !joined || !is_readable) {
        Ok(log) => {
            let text = text_of_log(&log);
            (Some(log), Ok(text))
        }
        Err(error) => (None, Err(error)),
    };
    report(Finding { path: log_directory, outcome });
    let snapshots = check_snapshots(&snapshot_directory, report);
    if let (Some(log), Some(Covered { applied, damaged: None })) = (log, snapshots)
        && let Err(error) = check_log_covers(&snapshot_directory, &log, applied, None)
    {
        report(Finding { path: snapshot_directory, outcome: Err(error) });
    }
}

/// What the snapshots hold together.
struct Covered {
    /// The last log id of the newest whole snapshot.
    applied: Option<LogId>,
    /// The index of a newer snapshot that is damaged, which is reported with that snapshot.
    damaged: Option<u64>,
}

/// Reports each snapshot. `None` if the directory cannot be read.
fn check_snapshots(directory: &Path, report: &mut dyn FnMut(Finding)) -> Option<Covered> {
    let files = match snapshot_files(directory) {
        Ok(files) => files,
        Err(error) => {
            report(Finding { path: directory.to_owned(), outcome: Err(error) });
            return None;
        }
    };
    let mut covered = Covered { applied: None, damaged: None };
    for (index, path) in files {
        let outcome = format::scan(&path, &mut |_| Ok(())).and_then(|summary| {
            let found = index_of(&summary.meta);
            if found == index {
                return Ok(summary);
            }
            Err(StoreError::damaged(&path, None, format!("it is the snapshot at index {found} under another name")))
        });
        match &outcome {
            Ok(summary) => covered = Covered { applied: summary.meta.last_log_id, damaged: None },
            Err(_) => covered.damaged = Some(index),
        }
        let outcome = outcome
            .map(|summary| format!("{} keys at revision {}, hash {}", summary.keys, summary.revision, summary.hash));
        report(Finding { path, outcome });
    }
    Some(covered)
}

fn text_of_identity(identity: Identity) -> String {
    match identity.cluster_id {
        Some(cluster_id) => format!("node {} of cluster {cluster_id}", identity.node_id),
        None => format!("node {}, of no cluster", identity.node_id),
    }
}

fn text_of_log(log: &CheckedLog) -> String {
    let index = |log_id: Option<LogId>| log_id.map_or_else(|| "none".to_owned(), |log_id| log_id.index.to_string());
    let (last, committed, purged) = (index(log.last), index(log.committed), index(log.purged));
    let mut text = format!("last index {last}, committed {committed}, purged {purged}");
    for torn in &log.torn {
        text += &format!(
            "; the last {} bytes of `{}` are a record that was being written when the node stopped",
            torn.bytes,
            torn.path.display()
        );
    }
    text
}

/// A line of a dump.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[allow(missing_docs)] // docs/operations.md describes the fields.
pub enum Line<'a> {
    Identity {
        file: &'a Path,
        node_id: NodeId,
        cluster_id: Option<String>,
        incarnation: String,
    },
    Clock {
        file: &'a Path,
        log_ms: u64,
        wall_ms: u64,
    },
    Snapshot {
        file: &'a Path,
        format: u32,
        last_log_id: Option<LogId>,
        membership: &'a StoredMembership,
    },
    State {
        revision: u64,
        oldest_revision: u64,
        clock_ms: u64,
    },
    Key {
        key: &'a str,
        value: &'a Value,
        revision: u64,
        create_revision: u64,
        version: u64,
        expires_at_ms: u64,
    },
    Change {
        revision: u64,
        position: u32,
        key: &'a str,
        change: &'static str,
        value: Option<&'a Value>,
    },
    Request {
        key: &'a str,
        fingerprint: [u64; 2],
        result: &'a WriteResult,
    },
    Access {
        mode: AccessMode,
    },
    Token {
        name: &'a str,
        role: TokenRole,
        prefixes: &'a [Key],
        expires_at_ms: u64,
    },
    Vote {
        file: &'a Path,
        offset: u64,
        vote: Vote,
    },
    Entry {
        file: &'a Path,
        offset: u64,
        log_id: LogId,
        payload: &'a Payload,
    },
    Committed {
        file: &'a Path,
        offset: u64,
        log_id: LogId,
    },
    TruncatedAfter {
        file: &'a Path,
        offset: u64,
        log_id: Option<LogId>,
    },
    PurgedUpto {
        file: &'a Path,
        offset: u64,
        log_id: LogId,
    },
    LogState {
        file: &'a Path,
        offset: u64,
        vote: Option<Vote>,
        purged: Option<LogId>,
        committed: Option<LogId>,
        last: Option<LogId>,
    },
    Torn {
        file: &'a Path,
        offset: u64,
        bytes: u64,
    },
    Damaged {
        file: &'a Path,
        what: String,
    },
}

/// Why a dump ends early, or is incomplete.
#[derive(Debug)]
pub enum DumpError {
    /// A line cannot be printed.
    Output(io::Error),
    /// A file is damaged or cannot be read: the first of those that have a line of the kind `damaged`.
    Store(StoreError),
}

/// Prints all that is in the directory of a stopped node: the identity, the newest snapshot that is whole, and the
/// records of the log. Of a damaged file it prints what precedes the damage, and continues with the next file.
///
/// # Errors
///
/// See [`DumpError`].
pub fn dump(directory: &Path, print: &mut dyn FnMut(&Line<'_>) -> io::Result<()>) -> Result<(), DumpError> {
    let mut dump = Dump { print, output: None, damage: None };
    let identity_file = IdentityFile::in_directory(directory);
    match identity_file.read() {
        Ok(Some(Identity { cluster_id, node_id, incarnation, .. })) => {
            let (cluster_id, incarnation) = (cluster_id.map(|id| id.to_string()), format!("{incarnation:016x}"));
            dump.line(&Line::Identity { file: identity_file.path(), node_id, cluster_id, incarnation })?;
        }
        Ok(None) => {}
        Err(error) => dump.damaged(identity_file.path(), error)?,
    }
    let clock = directory.join("CLOCK");
    match ClockFile::open(directory).map(|clock| clock.recorded()) {
        Ok(Some(reading)) => {
            dump.line(&Line::Clock { file: &clock, log_ms: reading.log_ms, wall_ms: reading.wall_ms })?;
        }
        Ok(None) => {}
        Err(error) => dump.damaged(&clock, error)?,
    }
    let snapshots = directory.join("snapshots");
    match snapshot_files(&snapshots) {
        Ok(files) => {
            for (_, path) in files.into_iter().rev() {
                if dump.snapshot(&path)? {
                    break;
                }
            }
        }
        Err(error) => dump.damaged(&snapshots, error)?,
    }
    let log = directory.join("log");
    match check::files(&log) {
        Ok(files) => files.iter().try_for_each(|path| dump.log_file(path))?,
        Err(error) => dump.damaged(&log, error)?,
    }
    dump.damage.map_or(Ok(()), |error| Err(DumpError::Store(error)))
}

struct Dump<'a> {
    print: &'a mut dyn FnMut(&Line<'_>) -> io::Result<()>,
    /// Why a line could not be printed.
    output: Option<io::Error>,
    /// The first damage.
    damage: Option<StoreError>,
}

impl Dump<'_> {
    fn line(&mut self, line: &Line<'_>) -> Result<(), DumpError> {
        (self.print)(line).map_err(DumpError::Output)
    }

    /// Prints a line from within a visit, which ends if that fails.
    fn visited(&mut self, line: &Line<'_>) -> io::Result<()> {
        (self.print)(line).map_err(|error| {
            self.output = Some(error);
            io::Error::other("the output failed")
        })
    }

    fn damaged(&mut self, file: &Path, error: StoreError) -> Result<(), DumpError> {
        if let Some(error) = self.output.take() {
            return Err(DumpError::Output(error));
        }
        self.line(&Line::Damaged { file, what: error.finding() })?;
        self.damage.get_or_insert(error);
        Ok(())
    }

    /// Prints a snapshot; returns whether it is whole.
    fn snapshot(&mut self, path: &Path) -> Result<bool, DumpError> {
        let (format, meta) = match format::read_meta(path) {
            Ok(found) => found,
            Err(error) => return self.damaged(path, error).map(|()| false),
        };
        let (last_log_id, membership) = (meta.last_log_id, &meta.last_membership);
        self.line(&Line::Snapshot { file: path, format, last_log_id, membership })?;
        let scanned = format::scan(path, &mut |record| match record {
            Scanned::State(machine) => self.visited(&Line::State {
                revision: machine.revision,
                oldest_revision: machine.history.oldest(),
                clock_ms: machine.clock_ms,
            }),
            Scanned::Key(key, record) => self.visited(&Line::Key {
                key,
                value: &Value::from(record.value),
                revision: record.revision,
                create_revision: record.create_revision,
                version: record.version,
                expires_at_ms: record.expires_at_ms,
            }),
            Scanned::Change(change) => {
                let (kind, value) = match &change.kind {
                    ChangeKind::Put(record) => ("put", Some(&record.value)),
                    ChangeKind::Delete => ("delete", None),
                    ChangeKind::Expire => ("expire", None),
                };
                let (revision, position, key) = (change.revision, change.position, change.key.as_str());
                self.visited(&Line::Change { revision, position, key, change: kind, value })
            }
            Scanned::Request(key, remembered) => {
                let (fingerprint, result) = (remembered.fingerprint, &remembered.result);
                self.visited(&Line::Request { key, fingerprint, result })
            }
            Scanned::Access(mode) => self.visited(&Line::Access { mode }),
            Scanned::Token(name, token) => {
                let (role, prefixes, expires_at_ms) = (token.role, &*token.prefixes, token.expires_at_ms);
                self.visited(&Line::Token { name, role, prefixes, expires_at_ms })
            }
        });
        match scanned {
            Ok(_) => Ok(true),
            Err(error) => self.damaged(path, error).map(|()| false),
        }
    }

    fn log_file(&mut self, file: &Path) -> Result<(), DumpError> {
        let visited = check::visit(file, &mut |offset, record| {
            self.visited(&match record {
                LogRecord::Vote(vote) => Line::Vote { file, offset, vote },
                LogRecord::Entry(log_id, payload) => Line::Entry { file, offset, log_id, payload },
                LogRecord::Committed(log_id) => Line::Committed { file, offset, log_id },
                LogRecord::TruncatedAfter(log_id) => Line::TruncatedAfter { file, offset, log_id },
                LogRecord::PurgedUpto(log_id) => Line::PurgedUpto { file, offset, log_id },
                LogRecord::State { vote, purged, committed, last } => {
                    Line::LogState { file, offset, vote, purged, committed, last }
                }
            })
        });
        match visited {
            Ok(None) => Ok(()),
            Ok(Some(torn)) => self.line(&Line::Torn { file, offset: torn.offset, bytes: torn.bytes }),
            Err(error) => self.damaged(file, error),
        }
    }
}
