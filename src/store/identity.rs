//! The owner of a data directory: the files `LOCK` and `IDENTITY`.
//!
//! **On disk: frozen.** `IDENTITY` is one line of JSON with a checksum. It is
//! created with the directory, and replaced once, when the node joins a cluster:
//!
//! ```text
//! {"format":3,"cluster_id":"9f…","node_id":1,"incarnation":"3c…","checksum":"5d1f09aa"}
//! ```
//!
//! The checksum is the CRC-32 of the line's fields in that order. A file is
//! accepted only if encoding its content gives the same bytes again, so that a
//! flipped byte is always noticed.

use std::fmt;
use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::{durable, ownership};
use crate::level::Level;
use crate::types::NodeId;

/// The newest format of directories: 2 since the log has more than sets of text, 3 since it has hashes of the state.
/// Later ones are [levels](crate::level). Opening a directory of format 1 or 2 makes it one of format 3, so that a
/// program which only knows the former rejects it, instead of taking new entries for damage. Formats above 3 are written
/// when the first entry or snapshot of that level arrives.
pub const FORMAT_VERSION: u32 = Level::NEWEST.0;
const FIRST_FORMAT_VERSION: u32 = 1;
/// More than any version writes, in bytes. The rest of a longer file is not read.
const IDENTITY_BYTES_MAX: u64 = 4096;

/// The number that all nodes of a cluster share, never 0; 16 hexadecimal digits as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClusterId(pub u64);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The owner of a data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster the node belongs to; `None` until it founds or joins one.
    pub cluster_id: Option<ClusterId>,
    /// The node's id.
    pub node_id: NodeId,
    /// A random number, drawn when the directory was created. Another directory for the same node has another one.
    pub incarnation: u64,
    /// The highest level of formats in the directory, which is the directory's format.
    pub level: Level,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IdentityLine {
    #[serde(rename = "format")]
    _format: u32,
    cluster_id: String,
    node_id: NodeId,
    incarnation: String,
    #[serde(rename = "checksum")]
    _checksum: String,
}

/// The part of the file that every version has, so that a newer file can be distinguished from a damaged one.
#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

impl Identity {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let Level(format) = self.level;
        let cluster_id = self.cluster_id.map(|id| id.to_string()).unwrap_or_default();
        let incarnation = format!("{:016x}", self.incarnation);
        let mut checksum = crc32fast::Hasher::new();
        checksum.update(&format.to_le_bytes());
        checksum.update(cluster_id.as_bytes());
        checksum.update(&self.node_id.to_le_bytes());
        checksum.update(incarnation.as_bytes());
        let checksum = format!("{:08x}", checksum.finalize());
        format!(
            "{{\"format\":{format},\"cluster_id\":\"{cluster_id}\",\"node_id\":{},\
             \"incarnation\":\"{incarnation}\",\"checksum\":\"{checksum}\"}}\n",
            self.node_id
        )
        .into_bytes()
    }

    pub(crate) fn decode(path: &Path, bytes: &[u8]) -> Result<Self, StoreError> {
        let damaged = |what: &str| StoreError::damaged(path, None, what);
        let FormatOnly { format } = serde_json::from_slice(bytes).map_err(|_| damaged("it is not an identity file"))?;
        if format > FORMAT_VERSION {
            return Err(StoreError::NewerFormat { path: path.to_owned(), found: format, known: FORMAT_VERSION });
        }
        let identity = serde_json::from_slice::<IdentityLine>(bytes).ok().and_then(|line| {
            let cluster_id = match line.cluster_id.as_str() {
                "" => None,
                text => Some(ClusterId(u64::from_str_radix(text, 16).ok()?)),
            };
            let incarnation = u64::from_str_radix(&line.incarnation, 16).ok()?;
            Some(Identity { cluster_id, node_id: line.node_id, incarnation, level: Level(format) })
        });
        match identity {
            Some(identity) if format >= FIRST_FORMAT_VERSION && identity.encode() == bytes => Ok(identity),
            _ => Err(damaged("its fields and its checksum do not match")),
        }
    }
}

/// The file `IDENTITY` in a node's directory.
#[derive(Debug)]
pub struct IdentityFile {
    path: PathBuf,
}

impl IdentityFile {
    /// The identity file of a node's directory.
    pub fn in_directory(directory: &Path) -> Self {
        IdentityFile { path: directory.join("IDENTITY") }
    }

    /// The path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file; `None` if it is missing.
    pub fn read(&self) -> Result<Option<Identity>, StoreError> {
        match self.read_bytes() {
            Ok(bytes) => Identity::decode(&self.path, &bytes).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("read", &self.path, error)),
        }
    }

    fn read_bytes(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = ownership::options().read(true).open(&self.path)?;
        file.take(IDENTITY_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Creates the identity of a new node, with a new incarnation.
    pub fn create(&self, node_id: NodeId) -> Result<Identity, StoreError> {
        let incarnation =
            random_nonzero().map_err(|error| StoreError::io("generate a random number for", &self.path, error))?;
        let identity = Identity { cluster_id: None, node_id, incarnation, level: Level::FIRST };
        self.write(&identity)?;
        Ok(identity)
    }

    /// Replaces the file, durably.
    pub fn write(&self, identity: &Identity) -> Result<(), StoreError> {
        durable::replace_file(&self.path, &identity.encode())
            .map_err(|error| StoreError::io("write", &self.path, error))
    }
}

/// The lock on the file `LOCK`, held until this is dropped. The file contains the holder's process id.
#[derive(Debug)]
pub struct DirectoryLock {
    file: File,
}

impl DirectoryLock {
    /// Takes the lock for reading alone, and writes nothing. `None` if the file does not exist, so that no node runs.
    ///
    /// # Errors
    ///
    /// As [`DirectoryLock::acquire`].
    pub fn acquire_for_reading(directory: &Path) -> Result<Option<Self>, StoreError> {
        let path = directory.join("LOCK");
        let mut file = match ownership::options().read(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("open", &path, error)),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(Some(DirectoryLock { file })),
            Err(TryLockError::WouldBlock) => Err(StoreError::Locked { holder: holder_in(&mut file), path }),
            Err(TryLockError::Error(error)) => Err(StoreError::io("lock", &path, error)),
        }
    }

    /// Takes the lock.
    ///
    /// # Errors
    ///
    /// [`StoreError::Locked`] with the holder's process id, or [`StoreError::Io`].
    pub fn acquire(directory: &Path) -> Result<Self, StoreError> {
        let path = directory.join("LOCK");
        let failed = |action, error| StoreError::io(action, &path, error);
        let mut file = ownership::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false) // The holder's process id must survive our attempt.
            .open(&path)
            .map_err(|error| failed("open", error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::Locked { holder: holder_in(&mut file), path }),
            Err(TryLockError::Error(error)) => return Err(failed("lock", error)),
        }
        let write_pid = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        write_pid(&mut file).map_err(|error| failed("write", error))?;
        Ok(DirectoryLock { file })
    }
}

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        // Closing the file is not sufficient while a child process that is being started has a copy of it.
        let _ = self.file.unlock();
    }
}

/// The process id in a lock file. Empty if the holder has not written it yet.
fn holder_in(file: &mut File) -> String {
    let mut holder = String::new();
    let _ = file.read_to_string(&mut holder);
    holder.trim().to_owned()
}

/// A random number that is not 0: an incarnation, or the id of a cluster that no list founds.
pub fn random_nonzero() -> io::Result<u64> {
    loop {
        let number = getrandom::u64().map_err(io::Error::other)?;
        if number != 0 {
            return Ok(number); // 0 stands for "not known" in the membership.
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Identity {
        Identity { cluster_id: Some(ClusterId(0x1234)), node_id: 7, incarnation: 0xabcdef, level: Level(3) }
    }

    /// The bytes on disk are these.
    #[test]
    fn bytes_are_fixed() {
        let line = "{\"format\":3,\"cluster_id\":\"0000000000001234\",\"node_id\":7,\
                    \"incarnation\":\"0000000000abcdef\",\"checksum\":\"ee9dd2dd\"}\n";
        assert_eq!(String::from_utf8(example().encode()).unwrap(), line);
    }

    /// An identity is read as it was written, with and without a cluster.
    #[test]
    fn round_trip() {
        let directory = tempfile::tempdir().unwrap();
        let file = IdentityFile::in_directory(directory.path());
        assert_eq!(file.read().unwrap(), None);
        for cluster_id in [None, Some(ClusterId(1)), Some(ClusterId(u64::MAX))] {
            for level in [Level::FIRST, Level::NEWEST] {
                let identity = Identity { cluster_id, level, ..example() };
                file.write(&identity).unwrap();
                assert_eq!(file.read().unwrap(), Some(identity));
            }
        }
    }

    /// Damage of one byte, and truncation, are always noticed.
    ///
    /// Method: every byte replaced by every other value, and every shorter length.
    #[test]
    fn every_damage_is_rejected() {
        let bytes = example().encode();
        let path = Path::new("IDENTITY");
        for position in 0..bytes.len() {
            for value in 0..=255 {
                let mut damaged = bytes.clone();
                damaged[position] = value;
                if damaged != bytes {
                    let result = Identity::decode(path, &damaged);
                    let rejected = matches!(result, Err(StoreError::Damaged { .. } | StoreError::NewerFormat { .. }));
                    assert!(rejected, "byte {position} = {value}: {result:?}");
                }
            }
        }
        for length in 0..bytes.len() {
            assert!(Identity::decode(path, &bytes[..length]).is_err(), "cut to {length} bytes");
        }
    }

    /// A file of a later version is distinguished from a damaged one.
    #[test]
    fn newer_format_is_named() {
        let result = Identity::decode(Path::new("IDENTITY"), b"{\"format\":6,\"something\":\"else\"}\n");
        assert!(matches!(result, Err(StoreError::NewerFormat { found: 6, known: 5, .. })), "{result:?}");
    }

    /// The lock is exclusive, and names its holder.
    #[test]
    fn lock_names_its_holder() {
        let directory = tempfile::tempdir().unwrap();
        let held = DirectoryLock::acquire(directory.path()).unwrap();
        let Err(StoreError::Locked { holder, .. }) = DirectoryLock::acquire(directory.path()) else {
            panic!("two holders have the lock");
        };
        assert_eq!(holder, std::process::id().to_string());
        drop(held);
        DirectoryLock::acquire(directory.path()).unwrap();
    }
}
