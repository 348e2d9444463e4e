//! Files that are whole after a crash, and free disk space.
//!
//! A file appears in one way only: it is written under a temporary name,
//! synced, renamed, and its directory is synced. After a crash at any point the
//! name has all the old bytes or all the new ones. The next start deletes leftover
//! temporary files.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::ownership::{self, TEMPORARY_EXTENSION};
use crate::seeded_bug::{self, SeededBug};

/// The temporary name under which `path` is written before it is published.
pub fn temporary_path(path: &Path) -> PathBuf {
    path.with_extension(TEMPORARY_EXTENSION)
}

/// Replaces a file. After a crash it has all the old bytes or all the new ones.
pub fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary_path(path);
    let mut file = ownership::create_file(&temporary)?;
    file.write_all(bytes)?;
    publish(&file, &temporary, path)
}

/// Gives a complete temporary file its final name, durably.
pub fn publish(file: &File, temporary: &Path, path: &Path) -> io::Result<()> {
    file.sync_all()?; // Before the rename: otherwise a crash could publish a torn file.
    fs::rename(temporary, path)?;
    sync_directory(parent_of(path))
}

/// Makes the names in a directory durable: new ones, renamed ones, removed ones.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    if seeded_bug::is_on(SeededBug::DirectoryNotSynced) {
        return Ok(());
    }
    File::open(path)?.sync_all()
}

/// Free bytes on the disk of a directory or file that this user may take.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    Ok(available(rustix::fs::statvfs(path)?))
}

/// The same of an open file.
pub fn free_bytes_of(file: &File) -> io::Result<u64> {
    Ok(available(rustix::fs::fstatvfs(file)?))
}

fn available(disk: rustix::fs::StatVfs) -> u64 {
    disk.f_bavail.saturating_mul(disk.f_frsize)
}

/// Creates a directory and its parents, durably. Does not change existing ones.
pub fn create_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = parent_of(path);
    create_directory(parent)?;
    match ownership::create_directory(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        other => other?,
    }
    sync_directory(parent)
}

/// Deletes the temporary files of interrupted writes in a directory, and returns their paths.
pub fn remove_temporary_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == TEMPORARY_EXTENSION) && path.is_file() {
            fs::remove_file(&path)?;
            removed.push(path);
        }
    }
    Ok(removed)
}

/// The directory of a path.
pub fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A replaced file has the new bytes, and no temporary file remains.
    #[test]
    fn replaces_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("IDENTITY");
        replace_file(&path, b"old").unwrap();
        replace_file(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    /// Only files of interrupted writes are deleted.
    #[test]
    fn removes_only_temporary_files() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("7.tmp"), b"half").unwrap();
        fs::write(directory.path().join("7.snap"), b"whole").unwrap();
        let removed = remove_temporary_files(directory.path()).unwrap();
        assert_eq!(removed, [directory.path().join("7.tmp")]);
        assert!(directory.path().join("7.snap").exists());
    }

    /// Directories are created together with their parents. Creating them again does nothing.
    #[test]
    fn creates_nested_directories() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/c");
        create_directory(&path).unwrap();
        create_directory(&path).unwrap();
        assert!(path.is_dir());
    }
}
