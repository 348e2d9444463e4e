//! The file `CLOCK`: log time beside the node's wall clock, as they were at one moment.
//!
//! It is one line of JSON with a checksum, replaced as a whole:
//!
//! ```text
//! {"format":1,"log_ms":1764230000000,"wall_ms":1764230000012,"checksum":"5d1f09aa"}
//! ```
//!
//! The checksum is the CRC-32 of the two times, each as 8 bytes, little-endian. A
//! file is accepted only if encoding what it says gives the same bytes again.
//!
//! It is used only when the node starts and no other node was running meanwhile
//! ([`crate::clock`]). An old file is as good as a new one unless the wall clock was
//! set since. The directory of a new node, or of a former version, has none.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Deserialize;

use super::error::StoreError;
use super::{durable, ownership};
use crate::clock::Reading;
use crate::config::LOG_TIME_MS_MAX;

const FORMAT_VERSION: u32 = 1;
/// More than any version of the file has.
const CLOCK_BYTES_MAX: u64 = 4096;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClockLine {
    #[serde(rename = "format")]
    _format: u32,
    log_ms: u64,
    wall_ms: u64,
    #[serde(rename = "checksum")]
    _checksum: String,
}

/// What every version of the file has, so that a newer one can be distinguished from a damaged one.
#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

/// The file `CLOCK` in a node's directory.
#[derive(Debug)]
pub struct ClockFile {
    path: PathBuf,
    recorded: Mutex<Option<Reading>>,
}

impl ClockFile {
    /// Opens the file in the directory of a node, which may have none. Changes nothing.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let path = directory.join("CLOCK");
        let recorded = match read_bytes(&path) {
            Ok(bytes) => Some(decode(&path, &bytes)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(StoreError::io("read", &path, error)),
        };
        Ok(ClockFile { path, recorded: Mutex::new(recorded) })
    }

    /// What the file says; `None` if it is missing.
    pub fn recorded(&self) -> Option<Reading> {
        *self.lock_recorded()
    }

    /// Replaces what the file says, durably. Blocks on the disk.
    pub fn record(&self, reading: Reading) -> Result<(), StoreError> {
        let mut recorded = self.lock_recorded();
        durable::replace_file(&self.path, &encode(reading))
            .map_err(|error| StoreError::io("write", &self.path, error))?;
        *recorded = Some(reading);
        Ok(())
    }

    fn lock_recorded(&self) -> MutexGuard<'_, Option<Reading>> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    ownership::options().read(true).open(path)?.take(CLOCK_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

pub(crate) fn encode(reading: Reading) -> Vec<u8> {
    let Reading { log_ms, wall_ms } = reading;
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&log_ms.to_le_bytes());
    checksum.update(&wall_ms.to_le_bytes());
    let checksum = checksum.finalize();
    format!(
        "{{\"format\":{FORMAT_VERSION},\"log_ms\":{log_ms},\"wall_ms\":{wall_ms},\"checksum\":\"{checksum:08x}\"}}\n"
    )
    .into_bytes()
}

pub(crate) fn decode(path: &Path, bytes: &[u8]) -> Result<Reading, StoreError> {
    let damaged = || {
        let what = "its fields and its checksum do not match (it holds no data: if only this file is damaged, \
                    delete it and start the node again)";
        StoreError::damaged(path, None, what)
    };
    let FormatOnly { format } = serde_json::from_slice(bytes).map_err(|_| damaged())?;
    if format > FORMAT_VERSION {
        return Err(StoreError::NewerFormat { path: path.to_owned(), found: format, known: FORMAT_VERSION });
    }
    let line: ClockLine = serde_json::from_slice(bytes).map_err(|_| damaged())?;
    let reading = Reading { log_ms: line.log_ms, wall_ms: line.wall_ms };
    if encode(reading) == bytes && reading.log_ms <= LOG_TIME_MS_MAX { Ok(reading) } else { Err(damaged()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: Reading = Reading { log_ms: 1_764_230_000_000, wall_ms: 1_764_230_000_012 };

    /// What is recorded is read at the next start, and the last record counts.
    #[test]
    fn round_trip() {
        let directory = tempfile::tempdir().unwrap();
        let file = ClockFile::open(directory.path()).unwrap();
        assert_eq!(file.recorded(), None);
        for reading in [EXAMPLE, Reading::default(), Reading { log_ms: LOG_TIME_MS_MAX, wall_ms: u64::MAX }] {
            file.record(reading).unwrap();
            assert_eq!(file.recorded(), Some(reading));
            assert_eq!(ClockFile::open(directory.path()).unwrap().recorded(), Some(reading));
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    /// No damage of one byte and no cut goes unseen.
    ///
    /// Method: every byte replaced by every other value, and every shorter length.
    #[test]
    fn every_damage_is_rejected() {
        let bytes = encode(EXAMPLE);
        let path = Path::new("CLOCK");
        for position in 0..bytes.len() {
            for value in 0..=255 {
                let mut damaged = bytes.clone();
                damaged[position] = value;
                if damaged != bytes {
                    let result = decode(path, &damaged);
                    let rejected = matches!(result, Err(StoreError::Damaged { .. } | StoreError::NewerFormat { .. }));
                    assert!(rejected, "byte {position} = {value}: {result:?}");
                }
            }
        }
        for length in 0..bytes.len() {
            assert!(decode(path, &bytes[..length]).is_err(), "cut to {length} bytes");
        }
    }

    /// A file of a later version is distinguished from a damaged one.
    #[test]
    fn newer_format_is_named() {
        let result = decode(Path::new("CLOCK"), b"{\"format\":2,\"something\":\"else\"}\n");
        assert!(matches!(result, Err(StoreError::NewerFormat { found: 2, known: 1, .. })), "{result:?}");
    }
}
