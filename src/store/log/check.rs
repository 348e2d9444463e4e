//! Checks a log before it is opened, without changing anything.
//!
//! While raft-log opens a log, it cuts off a torn record and deletes a file that
//! was only just begun. It does not say which file is damaged, and does not notice
//! that a file at the beginning of the log is missing. So everything that makes
//! this node reject a log is checked here first.
//!
//! A record is one of three:
//! * whole: its checksum matches;
//! * torn: it runs past the end of the file, or it and all bytes after it are zero.
//!   A crash during a write leaves this at the end of the last file, and of files
//!   that were begun after it. A torn record was never acknowledged;
//! * damaged: everything else, and a torn record with whole ones after it.
//!
//! Records are decoded with raft-log's own code, so the two cannot disagree about
//! what is whole. (See [`super::codec`] for why a flipped byte never looks like a
//! torn record.) A whole record must also follow from the records before it, by
//! raft-log's rules and a few stricter ones that its own records satisfy.
//!
//! Caveats: a file that lost whole records at its end, and a missing newest file,
//! look like a crash before these were written.

use std::fs::{self, File};
use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use raft_log::codeq::Decode;
use raft_log::{ChunkId, RaftLogAction, RaftLogRecord, WALRecord};

use super::LogTypes;
use super::codec::LogIdRecord;
use crate::seeded_bug::{self, SeededBug};
use crate::store::error::StoreError;
use crate::types::{LeaderId, LogId, Payload, Vote};

const READ_BUFFER_BYTES: usize = 256 << 10;

/// The state of a log that was checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckedLog {
    /// The vote that was saved last.
    pub vote: Option<Vote>,
    /// The last log id that was removed from the log's beginning.
    pub purged: Option<LogId>,
    /// The last log id that the log says is committed. More entries may be.
    pub committed: Option<LogId>,
    /// The last log id in the log, or `purged` if the log is empty.
    pub last: Option<LogId>,
    /// The torn records that opening the log cuts off.
    pub torn: Vec<TornTail>,
}

/// The end of a file that was being written when the node stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The log file.
    pub path: PathBuf,
    /// Offset of the torn record in the file, in bytes.
    pub offset: u64,
    /// Bytes from there to the end of the file.
    pub bytes: u64,
}

impl CheckedLog {
    /// Checks the log in `directory`. A log that was never begun is accepted only if `may_be_new`.
    ///
    /// # Errors
    ///
    /// [`StoreError::Damaged`] with file and offset, or [`StoreError::Io`].
    pub fn read(directory: &Path, may_be_new: bool) -> Result<Self, StoreError> {
        let files = log_files(directory)?;
        let mut replay = Replay::default();
        let mut chain = Chain::default();
        for (start, path) in &files {
            let scan = scan(path, &mut replay, &mut |_, _| Ok(()))?;
            let end = start.checked_add(scan.whole_bytes + scan.torn_bytes);
            end.ok_or_else(|| StoreError::damaged(path, None, "the offset in its name is too large"))?;
            chain.append(*start, path, &scan)?;
        }
        if chain.end.is_none() {
            // The first record of the first file is synced before the node joins a cluster or begins a second file.
            let is_first_start = match files.as_slice() {
                [] => true,
                [(start, _)] => *start == 0,
                _ => false,
            };
            if !(may_be_new && is_first_start) {
                let path = files.first().map_or(directory, |(_, path)| path);
                return Err(StoreError::damaged(path, files.first().map(|_| 0), "its first record is missing"));
            }
        }
        if let Some(contradiction) = replay.contradiction.take() {
            return Err(contradiction);
        }
        replay.check_entries(directory)?;
        let Replay { vote, purged, committed, last, .. } = replay;
        Ok(CheckedLog { vote, purged, committed, last, torn: chain.torn })
    }

    /// Whether the log never had a vote or an entry.
    pub fn is_pristine(&self) -> bool {
        self.vote.is_none() && self.last.is_none()
    }
}

/// A record of the log.
#[derive(Clone, Copy, Debug)]
pub enum LogRecord<'a> {
    /// The node gave this vote.
    Vote(Vote),
    /// An entry was appended.
    Entry(LogId, &'a Payload),
    /// The entries up to this one are committed.
    Committed(LogId),
    /// The entries after this one, or all, were removed.
    TruncatedAfter(Option<LogId>),
    /// The entries up to this one were removed.
    PurgedUpto(LogId),
    /// The state of the log where a file begins.
    State {
        /// See [`CheckedLog::vote`].
        vote: Option<Vote>,
        /// See [`CheckedLog::purged`].
        purged: Option<LogId>,
        /// See [`CheckedLog::committed`].
        committed: Option<LogId>,
        /// See [`CheckedLog::last`].
        last: Option<LogId>,
    },
}

/// Called with the offset of each record in its file, in bytes, and with the record.
pub type VisitRecord<'a> = &'a mut dyn FnMut(u64, LogRecord<'_>) -> io::Result<()>;

impl<'a> From<&'a RaftLogRecord<LogTypes>> for LogRecord<'a> {
    fn from(record: &'a RaftLogRecord<LogTypes>) -> Self {
        let log_id = |record: Option<&LogIdRecord>| record.map(|record| record.0);
        match record {
            WALRecord::Action(RaftLogAction::SaveVote(vote)) => LogRecord::Vote(vote.0),
            WALRecord::Action(RaftLogAction::Append(log_id, payload)) => LogRecord::Entry(log_id.0, &payload.0),
            WALRecord::Action(RaftLogAction::Commit(log_id)) => LogRecord::Committed(log_id.0),
            WALRecord::Action(RaftLogAction::TruncateAfter(kept)) => LogRecord::TruncatedAfter(log_id(kept.as_ref())),
            WALRecord::Action(RaftLogAction::PurgeUpto(log_id)) => LogRecord::PurgedUpto(log_id.0),
            WALRecord::Checkpoint(state) => LogRecord::State {
                vote: state.vote().map(|record| record.0),
                purged: log_id(state.purged()),
                committed: log_id(state.committed()),
                last: log_id(state.last()),
            },
        }
    }
}

/// The files of a log, oldest first.
///
/// # Errors
///
/// [`StoreError::Damaged`] for a file whose name is not that of a log file; [`StoreError::Io`].
pub fn files(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    Ok(log_files(directory)?.into_iter().map(|(_, path)| path).collect())
}

/// Visits the records of one file up to the first damaged one, one at a time in memory. Returns the torn end of the
/// file, if it has one. Whether the records follow from each other is not checked.
///
/// # Errors
///
/// [`StoreError::Damaged`] or [`StoreError::Io`]; the latter also with an error of `visit`.
pub fn visit(path: &Path, visit: VisitRecord<'_>) -> Result<Option<TornTail>, StoreError> {
    let Scan { whole_bytes: offset, torn_bytes: bytes } = scan(path, &mut Replay::default(), visit)?;
    Ok((bytes > 0).then(|| TornTail { path: path.to_owned(), offset, bytes }))
}

/// Visits the entries that a log has, in order, one at a time in memory. `directory` must have passed
/// [`CheckedLog::read`] and must not have changed since.
///
/// # Errors
///
/// As [`visit`].
pub fn visit_entries(
    directory: &Path,
    visit_entry: &mut dyn FnMut(LogId, &Payload) -> io::Result<()>,
) -> Result<(), StoreError> {
    let files = files(directory)?;
    // Each truncation, by the number of records before it, with the first index that it removed. There is at most one
    // for each term.
    let mut truncations: Vec<(u64, u64)> = Vec::new();
    let mut count = 0;
    for path in &files {
        visit(path, &mut |_, record| {
            if let LogRecord::TruncatedAfter(kept) = record {
                truncations.push((count, next_index(kept)));
            }
            count += 1;
            Ok(())
        })?;
    }
    // For each truncation, the first index that it or a later one removed.
    let mut least = u64::MAX;
    for (_, first_removed) in truncations.iter_mut().rev() {
        least = least.min(*first_removed);
        *first_removed = least;
    }
    let mut truncations = truncations.into_iter().peekable();
    count = 0;
    for path in &files {
        visit(path, &mut |_, record| {
            while truncations.next_if(|(position, _)| *position < count).is_some() {}
            count += 1;
            let first_removed = truncations.peek().map_or(u64::MAX, |(_, first_removed)| *first_removed);
            match record {
                LogRecord::Entry(log_id, payload) if log_id.index < first_removed => visit_entry(log_id, payload),
                _ => Ok(()),
            }
        })?;
    }
    Ok(())
}

/// All files of a log, oldest first, each with the offset in the log at which it begins.
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
            // raft-log would ignore it, and lose its records.
            _ => return Err(StoreError::damaged(&path, None, "its name is not that of a log file")),
        }
    }
    files.sort();
    Ok(files)
}

/// How the files that were read so far follow each other.
#[derive(Default)]
struct Chain {
    /// The last file with a whole record, and the end of that record as an offset in the file and in the log.
    end: Option<(PathBuf, u64, u64)>,
    /// The place of the first torn record. No whole record may follow it.
    torn_at: Option<(PathBuf, u64)>,
    torn: Vec<TornTail>,
}

impl Chain {
    fn append(&mut self, start: u64, path: &Path, scan: &Scan) -> Result<(), StoreError> {
        if scan.whole_bytes > 0 {
            if let Some((torn, offset)) = &self.torn_at {
                let what = format!("a record ends too early, and `{}` continues the log after it", name_of(path));
                return Err(StoreError::damaged(torn, Some(*offset), what));
            }
            if let Some((before, offset, end)) = self.end.as_ref().filter(|(_, _, end)| *end != start) {
                let what = if *end < start {
                    let missing = start - end;
                    format!("it ends here, and {missing} bytes or whole files are missing before `{}`", name_of(path))
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

/// The bytes of a file.
struct Scan {
    whole_bytes: u64,
    torn_bytes: u64,
}

fn scan(path: &Path, replay: &mut Replay, visit: VisitRecord<'_>) -> Result<Scan, StoreError> {
    let failed = |error| StoreError::io("read", path, error);
    let file = File::open(path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    let mut reader = Counted { reader: BufReader::with_capacity(READ_BUFFER_BYTES, file), offset: 0 };
    while reader.offset < bytes {
        let offset = reader.offset;
        match RaftLogRecord::<LogTypes>::decode(&mut reader) {
            Ok(record) => {
                if replay.contradiction.is_none() {
                    let applied = replay.apply(&record);
                    replay.contradiction = applied.err().map(|what| StoreError::damaged(path, Some(offset), what));
                }
                let visited = visit(offset, LogRecord::from(&record));
                visited.map_err(|error| StoreError::io("pass on the records of", path, error))?;
            }
            Err(error) => {
                let torn = match error.kind() {
                    ErrorKind::UnexpectedEof => true,
                    ErrorKind::InvalidData if seeded_bug::is_on(SeededBug::DamageCutAsTorn) => {
                        let file = File::options().write(true).open(path);
                        file.and_then(|file| file.set_len(offset)).map_err(failed)?;
                        true
                    }
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

/// The state that the records make of an empty log, by raft-log's rules, without the entries themselves.
#[derive(Default)]
struct Replay {
    vote: Option<Vote>,
    purged: Option<LogId>,
    committed: Option<LogId>,
    last: Option<LogId>,
    /// The index of the first entry in the log.
    first_index: Option<u64>,
    /// The leaders of the entries in the log, with the index of the first entry of each.
    leaders: Vec<(u64, LeaderId)>,
    /// Whether a record was applied.
    begun: bool,
    /// The first record that does not follow from the records before it. The other files are still read, since a
    /// missing file is a better explanation.
    contradiction: Option<StoreError>,
}

impl Replay {
    /// Applies a record. The error says why it was never written here.
    fn apply(&mut self, record: &RaftLogRecord<LogTypes>) -> Result<(), &'static str> {
        let begun = std::mem::replace(&mut self.begun, true);
        match record {
            WALRecord::Action(RaftLogAction::SaveVote(vote)) => {
                ensure(Some(vote.0) >= self.vote, "a vote is followed by an older one")?;
                self.vote = Some(vote.0);
            }
            WALRecord::Action(RaftLogAction::Append(log_id, _)) => self.append(log_id.0)?,
            WALRecord::Action(RaftLogAction::Commit(log_id)) => {
                let committed = Some(log_id.0);
                ensure(committed >= self.committed, "its commit index is lower than the one before")?;
                ensure(committed <= self.last, "it commits a missing entry")?;
                self.committed = committed;
            }
            WALRecord::Action(RaftLogAction::TruncateAfter(log_id)) => {
                let kept = log_id.map(|log_id| log_id.0);
                ensure(kept >= self.committed, "it removes committed entries")?;
                ensure(kept.is_none_or(|kept| kept.index < u64::MAX), INDEX_TOO_LARGE)?;
                let (next, is_within) = (next_index(kept), kept <= self.last);
                let is_there = is_within && next <= next_index(self.last) && self.has(kept);
                ensure(is_there, "it truncates the log to a missing entry")?;
                self.last = kept;
                self.first_index = self.first_index.filter(|first| *first < next);
                self.leaders.retain(|(first, _)| *first < next);
            }
            WALRecord::Action(RaftLogAction::PurgeUpto(log_id)) => self.purge(log_id.0)?,
            WALRecord::Checkpoint(state) => {
                let log_id = |record: Option<&LogIdRecord>| record.map(|record| record.0);
                let vote = state.vote().map(|record| record.0);
                let (purged, committed) = (log_id(state.purged()), log_id(state.committed()));
                let last = log_id(state.last());
                let found = (vote, purged, committed, last);
                let expected = (self.vote, self.purged, self.committed, self.last);
                ensure(!begun || found == expected, "it must repeat the state of the records before it, but differs")?;
                ensure(purged <= last && committed <= last, "its state is inconsistent")?;
                for log_id in [purged, committed, last].into_iter().flatten() {
                    ensure(log_id.index < u64::MAX, INDEX_TOO_LARGE)?;
                }
                (self.vote, self.purged, self.committed, self.last) = found;
            }
        }
        Ok(())
    }

    fn append(&mut self, log_id: LogId) -> Result<(), &'static str> {
        ensure(log_id.index < u64::MAX, INDEX_TOO_LARGE)?;
        ensure(Some(log_id) > self.last, "an entry is older than the previous one")?;
        // A log that continues a snapshot may begin anywhere; `check_entries` checks where.
        let follows = self.last.is_none() || log_id.index == next_index(self.last);
        ensure(follows, "the entries before it are missing")?;
        self.first_index.get_or_insert(log_id.index);
        if self.leaders.last().is_none_or(|(_, leader)| *leader != log_id.leader_id) {
            self.leaders.push((log_id.index, log_id.leader_id));
        }
        self.last = Some(log_id);
        Ok(())
    }

    fn purge(&mut self, log_id: LogId) -> Result<(), &'static str> {
        ensure(log_id.index < u64::MAX, INDEX_TOO_LARGE)?;
        ensure(Some(log_id) > self.purged, "it purges entries that were already purged")?;
        // A snapshot replaces all entries, even those that it contradicts.
        let within = log_id.index < next_index(self.last).saturating_sub(1);
        ensure(!within || self.has(Some(log_id)), "it purges up to a missing entry")?;
        self.purged = Some(log_id);
        self.last = self.last.max(self.purged);
        let next = log_id.index + 1;
        let any_left = next_index(self.last) > next;
        self.first_index = self.first_index.map(|first| first.max(next)).filter(|_| any_left);
        if !any_left {
            self.leaders.clear();
        }
        Ok(())
    }

    /// Whether an entry agrees with what is known of the log at its index. Nothing is known of entries that were purged
    /// together with their file.
    fn has(&self, log_id: Option<LogId>) -> bool {
        let Some(log_id) = log_id else { return self.purged.is_none() };
        let known = self.leaders.iter().rfind(|(first, _)| *first <= log_id.index).map(|(_, leader)| *leader);
        match self.purged {
            Some(purged) if purged.index >= log_id.index => purged == log_id,
            _ => known.is_none_or(|leader| leader == log_id.leader_id),
        }
    }

    /// Checks that the log has all entries after `purged`, up to `last`.
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

const INDEX_TOO_LARGE: &str = "it has an index that is too large";

fn ensure(holds: bool, otherwise: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(otherwise) }
}

fn next_index(log_id: Option<LogId>) -> u64 {
    log_id.map_or(0, |log_id| log_id.index + 1)
}

fn name_of(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}

#[cfg(test)]
mod tests {
    use openraft::vote::RaftLeaderId;
    use raft_log::codeq::Encode;

    use super::*;
    use crate::store::log::codec::{PayloadRecord, VoteRecord};

    type Record = RaftLogRecord<LogTypes>;

    fn id(term: u64, index: u64) -> LogIdRecord {
        LogIdRecord(LogId::new(RaftLeaderId::new(term, 1), index))
    }

    fn append(term: u64, index: u64) -> Record {
        WALRecord::Action(RaftLogAction::Append(id(term, index), PayloadRecord(Payload::Blank)))
    }

    fn truncate(kept: Option<LogIdRecord>) -> Record {
        WALRecord::Action(RaftLogAction::TruncateAfter(kept))
    }

    fn purge(term: u64, index: u64) -> Record {
        WALRecord::Action(RaftLogAction::PurgeUpto(id(term, index)))
    }

    fn commit(term: u64, index: u64) -> Record {
        WALRecord::Action(RaftLogAction::Commit(id(term, index)))
    }

    fn vote(term: u64) -> Record {
        let vote = Vote { leader_id: RaftLeaderId::new(term, 1), committed: false };
        WALRecord::Action(RaftLogAction::SaveVote(VoteRecord(vote)))
    }

    /// Checks a log of one file: the first record of a new log, followed by these.
    fn check(records: &[Record]) -> Result<CheckedLog, (u64, String)> {
        let mut bytes = Vec::new();
        let mut last_offset = 0;
        for record in [WALRecord::Checkpoint(Default::default())].iter().chain(records) {
            last_offset = bytes.len() as u64;
            record.encode(&mut bytes).unwrap();
        }
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("r-00_000_000_000_000_000_000.wal"), bytes).unwrap();
        CheckedLog::read(directory.path(), false).map_err(|error| match error {
            StoreError::Damaged { offset, what, .. } => {
                assert!(offset.is_none_or(|offset| offset == last_offset), "{what} at {offset:?}, not {last_offset}");
                (last_offset, what)
            }
            other => panic!("{other}"),
        })
    }

    /// Records that follow from each other are accepted, and the resulting state is known.
    #[test]
    fn records_that_follow() {
        let rows: [(&[Record], Option<LogIdRecord>, Option<LogIdRecord>); 7] = [
            (&[], None, None),
            (&[append(1, 0), append(1, 1), truncate(None), append(2, 0)], None, Some(id(2, 0))),
            (&[append(1, 0), append(2, 1), append(2, 2), truncate(Some(id(1, 0))), append(3, 1)], None, Some(id(3, 1))),
            (&[append(1, 0), commit(1, 0), append(1, 1), purge(1, 0)], Some(id(1, 0)), Some(id(1, 1))),
            // A snapshot of another node replaces all entries.
            (&[append(1, 0), purge(3, 9), append(3, 10)], Some(id(3, 9)), Some(id(3, 10))),
            (&[append(1, 0), append(1, 1), purge(2, 1), append(2, 2)], Some(id(2, 1)), Some(id(2, 2))),
            (&[purge(3, 9), append(3, 10), truncate(Some(id(3, 9))), append(4, 10)], Some(id(3, 9)), Some(id(4, 10))),
        ];
        for (number, (records, purged, last)) in rows.into_iter().enumerate() {
            let checked = check(records).unwrap();
            let ids = (checked.purged.map(LogIdRecord), checked.last.map(LogIdRecord));
            assert_eq!(ids, (purged, last), "row {number}");
        }
    }

    /// Exactly the entries that no later record removed are visited, in order.
    ///
    /// Method: random appends and truncations over several files, against a list in memory.
    #[test]
    fn entries_after_truncations() {
        let mut random: u64 = 1;
        let mut below = move |end: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % end
        };
        for round in 0..100 {
            let directory = tempfile::tempdir().unwrap();
            let mut expected: Vec<LogIdRecord> = Vec::new();
            let (mut start, mut term) = (0, 1);
            for _file in 0..=below(3) {
                let mut bytes = Vec::new();
                for _record in 0..below(12) {
                    let record = if below(4) == 0 {
                        expected.truncate(below(expected.len() as u64 + 1) as usize);
                        term += 1;
                        truncate(expected.last().copied())
                    } else {
                        expected.push(id(term, expected.len() as u64));
                        append(term, expected.len() as u64 - 1)
                    };
                    record.encode(&mut bytes).unwrap();
                }
                let name = raft_log::chunked_wal::Config::chunk_file_name(ChunkId(start));
                start += bytes.len() as u64;
                if !bytes.is_empty() {
                    fs::write(directory.path().join(name), bytes).unwrap();
                }
            }
            let mut found = Vec::new();
            visit_entries(directory.path(), &mut |log_id, _| {
                found.push(LogIdRecord(log_id));
                Ok(())
            })
            .unwrap();
            assert_eq!(found, expected, "round {round}");
        }
    }

    /// A record that cannot follow those before it is damage, at its offset. raft-log would reject it only after it
    /// began to change files, or accept a log with a gap.
    #[test]
    fn records_that_contradict() {
        let rows: [(&[Record], &str); 14] = [
            (&[vote(2), vote(1)], "older one"),
            (&[append(1, 0), append(1, 0)], "older than the previous one"),
            (&[append(2, 0), append(1, 1)], "older than the previous one"),
            (&[append(1, 0), append(1, 2)], "the entries before it are missing"),
            (&[append(1, u64::MAX)], "too large"),
            (&[append(1, 0), commit(1, 1)], "commits a missing entry"),
            (&[append(1, 0), append(1, 1), commit(1, 1), commit(1, 0)], "lower than the one before"),
            (&[append(1, 0), append(1, 1), commit(1, 1), truncate(Some(id(1, 0)))], "it removes committed entries"),
            (
                &[append(1, 0), append(2, 1), append(2, 2), truncate(Some(id(1, 1)))],
                "truncates the log to a missing entry",
            ),
            (&[append(1, 0), append(3, 1), truncate(Some(id(2, u64::MAX)))], "too large"),
            (&[append(1, 0), append(1, 1), purge(2, 0)], "purges up to a missing entry"),
            (&[purge(2, 7), purge(2, 7)], "already purged"),
            (&[purge(2, u64::MAX)], "too large"),
            (&[append(1, 0), WALRecord::Checkpoint(Default::default())], "repeat the state"),
        ];
        for (number, (records, expected)) in rows.into_iter().enumerate() {
            let (_, what) = check(records).unwrap_err();
            assert!(what.contains(expected), "row {number}: {what}");
        }
    }
}
