//! Reads a log through before it is opened, and changes nothing.
//!
//! raft-log cuts a torn record off, and deletes a file that was only just begun,
//! while it opens a log; it does not say in which file damage is, and does not
//! miss entries whose file is gone from the log's beginning. So all that could
//! make us refuse a log is looked for first, here.
//!
//! A record is one of three:
//! * whole: its checksum matches;
//! * torn: it ends with the file, or it and all that follows is zero. A crash
//!   during a write leaves that at the end of the last file, and of files that
//!   were begun after it. Nothing torn was ever acknowledged;
//! * damaged: anything else, and a torn record with whole ones after it.
//!
//! Records are decoded by the code that raft-log decodes them with, so the two
//! cannot disagree about what is whole. (See [`super::codec`] for why a flipped
//! byte never looks like a torn record.)
//!
//! Caveats: a file that lost whole records at its end, and a newest file that is
//! gone, look like a crash before these were written.

use std::fs::{self, File};
use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use raft_log::codeq::Decode;
use raft_log::{ChunkId, RaftLogAction, RaftLogRecord, WALRecord};

use super::codec::LogTypes;
use super::error::StoreError;
use crate::types::{LogId, Vote};

const READ_BUFFER_BYTES: usize = 256 << 10;

/// What a log holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckedLog {
    /// The vote that was saved last.
    pub vote: Option<Vote>,
    /// The last log id that was removed from the log's beginning.
    pub purged: Option<LogId>,
    /// The last log id in the log, or `purged` if there is none.
    pub last: Option<LogId>,
    /// What opening the log cuts off.
    pub torn: Vec<TornTail>,
}

/// The end of a file that was being written when the node stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The file.
    pub path: PathBuf,
    /// Where in it the torn record begins, in bytes.
    pub offset: u64,
    /// How many bytes there are from there on.
    pub bytes: u64,
}

impl CheckedLog {
    /// Reads the log in `directory` through.
    ///
    /// A log that was never begun is right only if `may_be_new`.
    ///
    /// # Errors
    ///
    /// [`StoreError::Damaged`] with file and offset, or [`StoreError::Io`].
    pub fn read(directory: &Path, may_be_new: bool) -> Result<Self, StoreError> {
        let files = log_files(directory)?;
        let mut replay = Replay::default();
        let mut chain = Chain::default();
        for (start, path) in &files {
            let scan = scan(path, &mut replay)?;
            chain.append(*start, path, &scan)?;
        }
        if chain.end.is_none() {
            // The first record of the first file is synced before the node joins
            // a cluster or begins a second file.
            let is_first_start = match files.as_slice() {
                [] => true,
                [(start, _)] => *start == 0,
                _ => false,
            };
            if !(may_be_new && is_first_start) {
                let path = files.first().map_or(directory, |(_, path)| path);
                return Err(StoreError::damaged(path, files.first().map(|_| 0), "its first record is gone"));
            }
        }
        replay.check_entries(directory)?;
        let Replay { vote, purged, last, .. } = replay;
        Ok(CheckedLog { vote, purged, last, torn: chain.torn })
    }

    /// Whether there is neither a vote nor an entry, nor ever was.
    pub fn is_pristine(&self) -> bool {
        self.vote.is_none() && self.last.is_none()
    }
}

/// All files of a log with the position in the log at which each begins, oldest first.
fn log_files(directory: &Path) -> Result<Vec<(u64, PathBuf)>, StoreError> {
    let failed = |error| StoreError::io("list", directory, error);
    let mut files = Vec::new();
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(files),
        other => other.map_err(failed)?,
    };
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_none_or(|extension| extension != "wal") {
            continue;
        }
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        match raft_log::chunked_wal::Config::parse_chunk_file_name(name) {
            Ok(start) if raft_log::chunked_wal::Config::chunk_file_name(ChunkId(start)) == name => {
                files.push((start, path));
            }
            // raft-log would pass it over, and lose what is in it.
            _ => return Err(StoreError::damaged(&path, None, "its name is not that of a log file")),
        }
    }
    files.sort();
    Ok(files)
}

/// How the files that were read so far join up.
#[derive(Default)]
struct Chain {
    /// The last file with a whole record, where in it the last of them ends, and where in the log that is.
    end: Option<(PathBuf, u64, u64)>,
    /// Where the first torn record is: nothing whole may follow it.
    torn_at: Option<(PathBuf, u64)>,
    torn: Vec<TornTail>,
}

impl Chain {
    fn append(&mut self, start: u64, path: &Path, scan: &Scan) -> Result<(), StoreError> {
        if scan.whole_bytes > 0 {
            if let Some((torn, offset)) = &self.torn_at {
                let what = format!("a record ends too early, and `{}` goes on after it", name_of(path));
                return Err(StoreError::damaged(torn, Some(*offset), what));
            }
            if let Some((before, offset, end)) = self.end.as_ref().filter(|(_, _, end)| *end != start) {
                let what = if *end < start {
                    let missing = start - end;
                    format!("it ends here, and {missing} bytes, or whole files, are missing until `{}`", name_of(path))
                } else {
                    format!("`{}` begins before the end of this file", name_of(path))
                };
                return Err(StoreError::damaged(before, Some(*offset), what));
            }
            self.end = Some((path.to_owned(), scan.whole_bytes, start + scan.whole_bytes));
        }
        if scan.torn_bytes > 0 {
            let (path, offset, bytes) = (path.to_owned(), scan.whole_bytes, scan.torn_bytes);
            self.torn.push(TornTail { path, offset, bytes });
        }
        if scan.torn_bytes > 0 || scan.whole_bytes == 0 {
            self.torn_at.get_or_insert((path.to_owned(), scan.whole_bytes));
        }
        Ok(())
    }
}

/// What a file holds, in bytes.
struct Scan {
    whole_bytes: u64,
    torn_bytes: u64,
}

fn scan(path: &Path, replay: &mut Replay) -> Result<Scan, StoreError> {
    let failed = |error| StoreError::io("read", path, error);
    let file = File::open(path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    let mut reader = Counted { reader: BufReader::with_capacity(READ_BUFFER_BYTES, file), offset: 0 };
    while reader.offset < bytes {
        let offset = reader.offset;
        match RaftLogRecord::<LogTypes>::decode(&mut reader) {
            Ok(record) => replay.apply(&record),
            Err(error) => {
                let torn = match error.kind() {
                    ErrorKind::UnexpectedEof => true,
                    ErrorKind::InvalidData => is_zero_from(reader.reader, offset).map_err(failed)?,
                    _ => return Err(failed(error)),
                };
                return if torn {
                    Ok(Scan { whole_bytes: offset, torn_bytes: bytes - offset })
                } else {
                    Err(StoreError::damaged(path, Some(offset), format!("a record cannot be read: {error}")))
                };
            }
        }
    }
    Ok(Scan { whole_bytes: bytes, torn_bytes: 0 })
}

fn is_zero_from(mut reader: BufReader<File>, offset: u64) -> io::Result<bool> {
    reader.seek(SeekFrom::Start(offset))?;
    for byte in reader.bytes() {
        if byte? != 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

struct Counted {
    reader: BufReader<File>,
    offset: u64,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.offset += count as u64;
        Ok(count)
    }
}

/// What the records make of an empty log, as raft-log has it, without the entries themselves.
#[derive(Default)]
struct Replay {
    vote: Option<Vote>,
    purged: Option<LogId>,
    last: Option<LogId>,
    /// The index of the first entry that is there.
    first_index: Option<u64>,
}

impl Replay {
    fn apply(&mut self, record: &RaftLogRecord<LogTypes>) {
        match record {
            WALRecord::Action(RaftLogAction::SaveVote(vote)) => self.vote = Some(vote.0),
            WALRecord::Action(RaftLogAction::Append(log_id, _)) => {
                self.first_index.get_or_insert(log_id.0.index);
                self.last = Some(log_id.0);
            }
            WALRecord::Action(RaftLogAction::Commit(_)) => {}
            WALRecord::Action(RaftLogAction::TruncateAfter(log_id)) => {
                let kept = log_id.map(|log_id| log_id.0);
                self.last = self.last.min(kept);
                self.first_index = self.first_index.filter(|first| *first < next_index(kept));
            }
            WALRecord::Action(RaftLogAction::PurgeUpto(log_id)) => {
                self.purged = self.purged.max(Some(log_id.0));
                self.last = self.last.max(Some(log_id.0));
                let next = log_id.0.index + 1;
                let any_left = next_index(self.last) > next;
                self.first_index = self.first_index.map(|first| first.max(next)).filter(|_| any_left);
            }
            WALRecord::Checkpoint(state) => {
                self.vote = state.vote().map(|record| record.0);
                self.purged = state.purged().map(|record| record.0);
                self.last = state.last().map(|record| record.0);
            }
        }
    }

    /// The entries that are there must be those after `purged`, up to `last`.
    fn check_entries(&self, directory: &Path) -> Result<(), StoreError> {
        let expected = next_index(self.purged);
        let found = self.first_index.unwrap_or(next_index(self.last));
        if found == expected {
            return Ok(());
        }
        let what = format!("the entries from index {expected} to {found} (exclusive) are missing at its beginning");
        Err(StoreError::damaged(directory, None, what))
    }
}

fn next_index(log_id: Option<LogId>) -> u64 {
    log_id.map_or(0, |log_id| log_id.index + 1)
}

fn name_of(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}
