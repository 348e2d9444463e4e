//! The directory of one run's data, and checks before anything starts.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::arguments::CommonArguments;
use crate::ours::OursOptions;

/// A new directory below the data root. It is removed after a run that succeeded, and kept with its logs
/// after one that failed.
pub struct Workspace {
    directory: PathBuf,
    keep: bool,
}

impl Workspace {
    pub fn create(common: &CommonArguments, subcommand: &str) -> Result<Self> {
        let root = common.data_root();
        let directory = root.join(format!("{subcommand}-{}", std::process::id()));
        // `create_dir` fails if the parents are missing; `create_dir_all` would reuse the directory of an
        // earlier run with the same pid.
        std::fs::create_dir_all(&root).with_context(|| format!("cannot create `{}`", root.display()))?;
        refuse_tmpfs(&root)?;
        std::fs::create_dir(&directory).with_context(|| format!("cannot create `{}`", directory.display()))?;
        println!("data and logs: {}", directory.display());
        Ok(Self { directory, keep: common.keep_data })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Removes one cluster's data and waits for the disk, so that the next cluster does not pay for writing
    /// back this one's data.
    pub fn discard(&self, data_directory: &Path) -> Result<()> {
        if !self.keep {
            std::fs::remove_dir_all(data_directory)
                .with_context(|| format!("cannot remove `{}`", data_directory.display()))?;
        }
        // SAFETY: sync takes no arguments and cannot fail.
        unsafe { libc::sync() };
        Ok(())
    }

    /// Keeps the data, to inspect a failure.
    pub fn keep(&mut self) {
        self.keep = true;
        println!("kept for inspection: {}", self.directory.display());
    }

    pub fn finish(self) -> Result<()> {
        if self.keep {
            return Ok(());
        }
        std::fs::remove_dir_all(&self.directory)
            .with_context(|| format!("cannot remove `{}`", self.directory.display()))
    }
}

/// Rejects tmpfs, where fsync does nothing and figures mean nothing.
fn refuse_tmpfs(directory: &Path) -> Result<()> {
    let path = CString::new(directory.as_os_str().as_bytes())?;
    // SAFETY: `statfs` is plain data; the call fills it, or fails.
    let file_system = unsafe {
        let mut file_system: libc::statfs = std::mem::zeroed();
        if libc::statfs(path.as_ptr(), &mut file_system) != 0 {
            return Err(std::io::Error::last_os_error())
                .with_context(|| format!("cannot inspect `{}`", directory.display()));
        }
        file_system
    };
    ensure!(
        file_system.f_type != libc::TMPFS_MAGIC,
        "`{}` is on tmpfs, where fsync does nothing; pass a directory on a disk with --data-root",
        directory.display()
    );
    Ok(())
}

/// The server to measure, which must exist.
pub fn our_server(common: &CommonArguments) -> Result<OursOptions> {
    server_at(common, &common.server())
}

/// Another server to measure, which must exist.
pub fn server_at(common: &CommonArguments, path: &Path) -> Result<OursOptions> {
    ensure!(
        path.is_file(),
        "no server at `{}`: run `cargo build --release` in the repository's root, or pass the path of another \
         binary",
        path.display()
    );
    Ok(OursOptions { server: path.to_owned(), server_arguments: common.server_arguments.clone() })
}
