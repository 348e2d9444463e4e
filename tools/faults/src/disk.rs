//! Disks that lose power or fill up; or plain directories.
//!
//! A disk is a file system in a file, mounted through a loop device. Cutting its power shuts the file system
//! down: data that was written but not synced is lost, because the kernel drops its caches instead of writing
//! them back.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::sandbox::run;

/// Large enough for the file system's journal, the node's log, and two snapshots.
const IMAGE_BYTES: u64 = 512 << 20;

/// The type of the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    Xfs,
    Ext4,
}

/// The disk of one node.
#[derive(Debug)]
pub struct Disk {
    pub file_system: FileSystem,
    image: PathBuf,
    directory: PathBuf,
}

impl Disk {
    /// Creates a disk, and mounts it.
    pub fn create(file_system: FileSystem, folder: &Path, name: &str) -> Result<Self> {
        let disk = Disk {
            file_system,
            image: folder.join(format!("{name}.image")),
            directory: folder.join(format!("{name}.disk")),
        };
        let image = File::create(&disk.image).context("cannot create a disk's image")?;
        image.set_len(IMAGE_BYTES).context("cannot create a disk's image")?;
        fs::create_dir_all(&disk.directory).context("cannot create a directory")?;
        let path = disk.image.display().to_string();
        match file_system {
            FileSystem::Xfs => run("mkfs.xfs", &["-q", "-f", &path])?,
            FileSystem::Ext4 => run("mkfs.ext4", &["-q", "-F", &path])?,
        }
        disk.mount()?; // If this fails, the unmount on drop has no effect.
        Ok(disk)
    }

    /// The mount point.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn mount(&self) -> Result<()> {
        run("mount", &["-o", "loop", &self.image.display().to_string(), &self.directory.display().to_string()])
    }

    /// Simulates a file system that has become read-only after an error. No process may use it.
    pub fn make_read_only(&self) -> Result<()> {
        run("mount", &["-o", "remount,ro", &self.directory.display().to_string()])
    }

    pub fn make_writable(&self) -> Result<()> {
        run("mount", &["-o", "remount,rw", &self.directory.display().to_string()])
    }

    /// Cuts the power: nothing reaches the disk any more, and all calls fail.
    pub fn cut_power(&self) -> Result<()> {
        run("xfs_io", &["-x", "-c", "shutdown", &self.directory.display().to_string()])
    }

    /// Restores the power after its processes have ended, as when a machine starts again.
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
