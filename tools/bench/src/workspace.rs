//! The directory of one run's data, and what is checked before anything starts.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::arguments::CommonArguments;
use crate::ours::OursOptions;

/// A fresh directory below the data root; removed at the end of a run that
/// succeeded, kept after one that failed, for its logs.
pub struct Workspace {
    directory: PathBuf,
    keep: bool,
}

impl Workspace {
    pub fn create(common: &CommonArguments, subcommand: &str) -> Result<Self> {
        let root = common.data_root();
        let directory = root.join(format!("{subcommand}-{}", std::process::id()));
        // `create_dir` would fail for the parents, `create_dir_all` would take
        // over what a run with the same pid left behind.
        std::fs::create_dir_all(&root).with_context(|| format!("cannot create `{}`", root.display()))?;
        refuse_tmpfs(&root)?;
        std::fs::create_dir(&directory).with_context(|| format!("cannot create `{}`", directory.display()))?;
        println!("data and logs: {}", directory.display());
        Ok(Self { directory, keep: common.keep_data })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Removes one cluster's data and lets the disk come to rest, so that the
    /// next cluster does not pay for the write-back of this one.
    pub fn discard(&self, data_directory: &Path) -> Result<()> {
        if !self.keep {
            std::fs::remove_dir_all(data_directory)
                .with_context(|| format!("cannot remove `{}`", data_directory.display()))?;
        }
        // SAFETY: sync takes nothing and cannot fail.
        unsafe { libc::sync() };
        Ok(())
    }

    /// Leaves the data for whoever looks into what went wrong.
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

/// fsync on tmpfs does nothing, so nothing measured there says anything.
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
        "`{}` is on tmpfs, where fsync costs nothing; choose a disk with --data-root",
        directory.display()
    );
    Ok(())
}

/// Our server, found to be there.
pub fn our_server(common: &CommonArguments) -> Result<OursOptions> {
    let server = common.server();
    if !server.is_file() {
        bail!(
            "there is no server at `{}`; run `cargo build --release` in the repository's root, \
             or name one with --server",
            server.display()
        );
    }
    Ok(OursOptions { server, server_arguments: common.server_arguments.clone() })
}
