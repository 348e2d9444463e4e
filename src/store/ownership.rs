//! Restricts a data directory to the user that runs the node.
//!
//! A user with write access could change data, votes and identity; a user with read access could read every key.
//! So the node creates directories with mode 0700 and files with mode 0600, sets both on what a former
//! version created, and rejects a directory that another user owns. It also rejects symbolic links, hard links and
//! special files where a file of its own must be: opening `LOCK` through a link would overwrite
//! the file it leads to. Other files in the directory are left alone.
//!
//! `log` and `snapshots` may be symbolic links to directories of the same user, so that each
//! can be on a disk of its own.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::process::geteuid;

use super::error::StoreError;

/// The extension of a file that is being written, and has not got its name yet.
pub const TEMPORARY_EXTENSION: &str = "tmp";
const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// The user that every other user has to trust.
const ROOT: u32 = 0;

/// Rejects a data directory that is not this user's alone to change. Changes nothing; what does not
/// exist yet is accepted.
///
/// `data_dir` may belong to root as well; `node_directory`, below it, must be this user's.
///
/// # Errors
///
/// [`StoreError::NotPrivate`] if another user owns one of the directories, or if a file that the node
/// opens is a link or not a regular file; [`StoreError::Io`] if that cannot be found out.
pub fn check(data_dir: &Path, node_directory: &Path) -> Result<(), StoreError> {
    check_owner(data_dir, true)?;
    // The link could be another user's, and lead to any directory of this one.
    let is_link = existing(fs::symlink_metadata(node_directory), node_directory)?.is_some_and(|it| it.is_symlink());
    if is_link {
        return Err(not_private(node_directory, "must be a directory, not a symbolic link; remove it".to_owned()));
    }
    for directory in directories_of(node_directory) {
        check_owner(&directory, false)?;
    }
    own_files(node_directory)?.iter().try_for_each(|path| check_file(path))
}

/// Sets the modes of a node's directories and files to those that this program creates them with.
///
/// # Errors
///
/// [`StoreError::Io`], for instance on a read-only disk.
pub fn restrict(node_directory: &Path) -> Result<(), StoreError> {
    for directory in directories_of(node_directory) {
        set_mode(&directory, DIRECTORY_MODE)?;
    }
    own_files(node_directory)?.iter().try_for_each(|path| set_mode(path, FILE_MODE))
}

/// The files in a node's directories that have names which the node uses.
fn own_files(node_directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let [_, log, snapshots] = directories_of(node_directory);
    let of = |directory: &Path, is_own: fn(&str, &str) -> bool| -> Result<Vec<PathBuf>, StoreError> {
        let mut entries = entries_of(directory)?;
        entries.retain(|path| {
            let part = |part: Option<&OsStr>| part.and_then(OsStr::to_str).unwrap_or_default().to_owned();
            is_own(&part(path.file_name()), &part(path.extension()))
        });
        Ok(entries)
    };
    let mut files = of(node_directory, |name, extension| {
        ["LOCK", "IDENTITY", "CLOCK"].contains(&name) || extension == TEMPORARY_EXTENSION
    })?;
    files.extend(of(&log, |name, extension| name == "LOCK" || extension == "wal")?);
    files.extend(of(&snapshots, |_, extension| ["snap", TEMPORARY_EXTENSION].contains(&extension))?);
    Ok(files)
}

/// Creates a directory that only this user can reach, whatever the process's umask.
///
/// # Errors
///
/// As [`fs::create_dir`].
pub fn create_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(DIRECTORY_MODE).create(path)?;
    fs::set_permissions(path, Permissions::from_mode(DIRECTORY_MODE))
}

/// Creates a file that only this user can reach, for writing. A leftover of the same name is deleted first.
///
/// # Errors
///
/// As [`File::create_new`].
pub fn create_file(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path)
}

/// Options to open a file of the data directory with: not through a symbolic link, without waiting
/// for the other end of a pipe, and only for this user if it is created.
pub fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    options.mode(FILE_MODE).custom_flags(flags.bits().cast_signed());
    options
}

fn directories_of(node_directory: &Path) -> [PathBuf; 3] {
    [node_directory.to_owned(), node_directory.join("log"), node_directory.join("snapshots")]
}

/// The entries of a directory; none if it does not exist, or is a file, which is for others to report.
fn entries_of(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let listed = fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>());
    match listed {
        Err(error) if is_missing(&error) => Ok(Vec::new()),
        listed => listed.map_err(|error| StoreError::io("list", directory, error)),
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// The metadata of what exists at a path.
fn existing(found: io::Result<Metadata>, path: &Path) -> Result<Option<Metadata>, StoreError> {
    match found {
        Err(error) if is_missing(&error) => Ok(None),
        found => found.map(Some).map_err(|error| StoreError::io("inspect", path, error)),
    }
}

fn check_owner(directory: &Path, may_be_root: bool) -> Result<(), StoreError> {
    let Some(found) = existing(fs::metadata(directory), directory)? else { return Ok(()) };
    let own = geteuid().as_raw();
    if found.uid() == own || may_be_root && found.uid() == ROOT {
        return Ok(());
    }
    Err(not_private(
        directory,
        format!(
            "belongs to user {}, and this process runs as user {own}; run it as that user, or change the owner \
             with `chown -R {own}`",
            found.uid()
        ),
    ))
}

fn check_file(path: &Path) -> Result<(), StoreError> {
    // A file may disappear meanwhile, while another process runs on the directory.
    let Some(found) = existing(fs::symlink_metadata(path), path)? else { return Ok(()) };
    let kind = found.file_type();
    let what = if kind.is_symlink() {
        "must be a regular file, not a symbolic link; remove it"
    } else if !kind.is_file() && !kind.is_dir() {
        "must be a regular file; remove it"
    } else if found.nlink() > 1 && !kind.is_dir() && is_rewritten(path) {
        "is a hard link to another file, which would be overwritten; remove it"
    } else {
        return Ok(());
    };
    Err(not_private(path, what.to_owned()))
}

/// Whether a file is written to in place. (The others are replaced, or may be linked to by a backup.)
fn is_rewritten(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "LOCK") || path.extension().is_some_and(|extension| extension == "wal")
}

fn not_private(path: &Path, what: String) -> StoreError {
    StoreError::NotPrivate { path: path.to_owned(), what }
}

fn set_mode(path: &Path, mode: u32) -> Result<(), StoreError> {
    let failed = |error| StoreError::io("restrict access to", path, error);
    // A file may disappear meanwhile.
    let Some(found) = existing(fs::metadata(path), path)? else { return Ok(()) };
    // What belongs to another user is for that user to change, and a link may be the name of another file.
    let is_other = found.uid() != geteuid().as_raw() || found.is_file() && found.nlink() > 1;
    if is_other || found.permissions().mode() & 0o7777 == mode {
        return Ok(());
    }
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed)
}
