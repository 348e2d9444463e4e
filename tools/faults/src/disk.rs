//! Disks that lose power, fill up, or are just a directory.
//!
//! A disk is a file system in a file, mounted by a loop device. Cutting its power
//! shuts the file system down: what was written and not synced is gone, as the
//! kernel's own caches are dropped and not written back.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::sandbox::run;

/// Large enough for the file system's own log, the node's and two snapshots.
const IMAGE_BYTES: u64 = 512 << 20;

/// Which file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    Xfs,
    Ext4,
}

/// A disk of one node.
#[derive(Debug)]
pub struct Disk {
    pub file_system: FileSystem,
    image: PathBuf,
    directory: PathBuf,
}

impl Disk {
    /// Makes a disk, and mounts it.
    pub fn create(file_system: FileSystem, folder: &Path, name: &str) -> Result<Self> {
        let disk = Disk {
            file_system,
            image: folder.join(format!("{name}.image")),
            directory: folder.join(format!("{name}.disk")),
        };
        let image = File::create(&disk.image).context("cannot make a disk's image")?;
        image.set_len(IMAGE_BYTES).context("cannot make a disk's image")?;
        fs::create_dir_all(&disk.directory).context("cannot make a directory")?;
        let path = disk.image.display().to_string();
        match file_system {
            FileSystem::Xfs => run("mkfs.xfs", &["-q", "-f", &path])?,
            FileSystem::Ext4 => run("mkfs.ext4", &["-q", "-F", &path])?,
        }
        disk.mount()?; // If that fails, there is nothing to unmount: harmless.
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn mount(&self) -> Result<()> {
        run("mount", &["-o", "loop", &self.image.display().to_string(), &self.directory.display().to_string()])
    }

    /// As after an error that the file system does not trust itself after; no process may use it.
    pub fn make_read_only(&self) -> Result<()> {
        run("mount", &["-o", "remount,ro", &self.directory.display().to_string()])
    }

    pub fn make_writable(&self) -> Result<()> {
        run("mount", &["-o", "remount,rw", &self.directory.display().to_string()])
    }

    /// Cuts the power: from now on nothing reaches the disk, and all calls fail.
    pub fn cut_power(&self) -> Result<()> {
        run("xfs_io", &["-x", "-c", "shutdown", &self.directory.display().to_string()])
    }

    /// After the power was cut and its processes are gone: what a machine finds that starts again.
    pub fn restore_power(&self) -> Result<()> {
        run("umount", &[&self.directory.display().to_string()])?;
        self.mount()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = run("umount", &[&self.directory.display().to_string()]) {
            eprintln!("{error:#}");
        }
    }
}
