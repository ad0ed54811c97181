//! What the disk itself takes, one large write after the other.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use rustix::fs::{FallocateFlags, fallocate, fstatfs};

/// Bytes of a write past the page cache, and of one through it.
const DIRECT_WRITE: usize = 4 << 20;
const CACHED_WRITE: usize = 1 << 20;
/// What a disk wants the memory of a direct write to be aligned to.
const ALIGNMENT: usize = 4096;

/// How bytes get to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writing {
    /// O_DIRECT into allocated files: the device's own rate, as one writer sees it.
    Direct,
    /// write(2) and fsync(2) of each file.
    Cached,
}

/// Whether a directory is memory: then there is no device to compare with.
pub(super) fn is_memory(dir: &Path) -> Result<bool> {
    const TMPFS: i64 = 0x0102_1994;
    const RAMFS: i64 = 0x8584_58f6;
    let opened =
        File::open(dir).with_context(|| format!("--dir: cannot open {}", dir.display()))?;
    let kind = fstatfs(opened).with_context(|| format!("--dir: {}", dir.display()))?.f_type;
    Ok([TMPFS, RAMFS].contains(&(kind as i64)))
}

/// Waits until everything that was written before is on the disk, so that nobody pays for it.
pub(super) fn settle(dir: &Path) -> Result<()> {
    let opened = File::open(dir).with_context(|| format!("cannot open {}", dir.display()))?;
    rustix::fs::syncfs(opened).with_context(|| format!("cannot sync {}", dir.display()))
}

/// Writes `bytes` into files of `file_bytes`, each safe on the disk before the next is begun;
/// returns bytes a second. The files are removed outside of the time.
pub(super) fn write(dir: &Path, bytes: u64, file_bytes: u64, way: Writing) -> Result<f64> {
    let dir = tempfile::Builder::new()
        .prefix("stillwire-bench-")
        .tempdir_in(dir)
        .with_context(|| format!("--dir: cannot write to {}", dir.display()))?;
    let mut memory = vec![0xa5_u8; DIRECT_WRITE + ALIGNMENT];
    let skip = memory.as_ptr().align_offset(ALIGNMENT);
    let memory = &mut memory[skip..skip + DIRECT_WRITE];
    settle(dir.path())?;
    let begun = Instant::now();
    let mut written = 0;
    for number in 0..bytes.div_ceil(file_bytes) {
        let path = dir.path().join(number.to_string());
        write_file(&path, file_bytes, memory, way)
            .with_context(|| format!("cannot write {}", path.display()))?;
        written += file_bytes;
    }
    Ok(written as f64 / begun.elapsed().as_secs_f64())
}

fn write_file(path: &Path, bytes: u64, memory: &[u8], way: Writing) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    let step = match way {
        Writing::Direct => {
            options.custom_flags(libc::O_DIRECT);
            DIRECT_WRITE
        }
        Writing::Cached => CACHED_WRITE,
    };
    let mut file = options.open(path)?;
    if way == Writing::Direct {
        fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
    }
    let mut left = bytes;
    while left > 0 {
        let here = usize::try_from(left).unwrap_or(step).min(step);
        file.write_all(&memory[..here])?;
        left -= here as u64;
    }
    file.sync_all()
}
