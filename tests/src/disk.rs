//! Small disks that are full when a test wants them to be.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use tempfile::TempDir;

use crate::netns::run;

/// A filesystem in memory, unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    dir: TempDir,
}

/// A file that takes what is free on a disk; what it took is free again when it is dropped.
#[derive(Debug)]
pub struct Ballast {
    path: PathBuf,
}

impl SmallDisk {
    /// A disk of so many MiB.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN.
    pub fn new(mebibytes: u32) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("stillwire-disk-").tempdir()?;
        let size = format!("size={mebibytes}M");
        let mount = ["-t", "tmpfs", "-o", &size, "stillwire-test"];
        run(Command::new("mount").args(mount).arg(dir.path())).context("mounting a small disk")?;
        Ok(Self { dir })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Takes all that is free but for so many bytes.
    ///
    /// # Errors
    /// Where there is less.
    pub fn fill(&self, but_for: u64) -> Result<Ballast> {
        let path = self.path().join("ballast");
        let file = File::create_new(&path)?;
        let ballast = Ballast { path };
        let mut taken = 0;
        loop {
            let disk = rustix::fs::statvfs(self.path())?;
            let free = disk.f_bavail * disk.f_frsize;
            ensure!(taken > 0 || free >= but_for, "only {free} bytes are free");
            let Some(bytes) = free.checked_sub(but_for).filter(|bytes| *bytes > 0) else {
                return Ok(ballast);
            };
            // Others take and free space meanwhile: what is left then is taken next.
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), taken, bytes) {
                Ok(()) => taken += bytes,
                Err(Errno::NOSPC) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: whoever still has a file open there is about to end.
        if let Err(error) = run(Command::new("umount").arg("--lazy").arg(self.path())) {
            eprintln!("leaving {} mounted: {error:#}", self.path().display());
        }
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        // What is left goes with the disk.
        let _ = std::fs::remove_file(&self.path);
    }
}
