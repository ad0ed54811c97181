//! Files written through memory, with a name or without: the only unsafe code of this crate.
//!
//! A store to a mapped page that has no disk block behind it kills the process with SIGBUS on a
//! full disk. So every block is allocated (`fallocate`) and every page made present and writable
//! (`MADV_POPULATE_WRITE`) before the first store; what goes wrong then is an error.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::AtomicU64;

use memmap2::{Advice, MmapMut, MmapOptions};
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, fstatfs, memfd_create};

use crate::layout;

/// A page, for filesystems whose kernel cannot populate in one call.
const PAGE: usize = 4096;

/// What stands in the way of a mapped file.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The filesystem copies on write: space that was allocated can still run out at a store.
    #[error("{0} can run out of space below a mapped file")]
    CopyOnWrite(&'static str),
    /// The kernel's answer.
    #[error("cannot allocate or map the file")]
    Io(#[from] io::Error),
}

/// A new file of fixed size, allocated, mapped and present in memory.
#[derive(Debug)]
pub struct MappedFile {
    map: MmapMut,
    file: File,
}

impl MappedFile {
    /// Creates the file with `bytes` zero bytes; on any error it is removed again. Blocks for as
    /// long as the kernel needs to zero the pages.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn create(path: &Path, bytes: usize) -> Result<Self, MapError> {
        let file = layout::create_new(path)?;
        Self::fill(file, bytes).inspect_err(|_| {
            // The caller learns of the first error.
            let _ = layout::remove_if_there(path);
        })
    }

    /// The same in memory alone: the file has no name, and its pages belong to no disk.
    pub(crate) fn in_memory(bytes: usize) -> Result<Self, MapError> {
        let file = memfd_create("stillwire", MemfdFlags::CLOEXEC).map_err(io::Error::from)?;
        Self::fill(File::from(file), bytes)
    }

    fn fill(file: File, bytes: usize) -> Result<Self, MapError> {
        if let Some(name) = copy_on_write(&file)? {
            return Err(MapError::CopyOnWrite(name));
        }
        fallocate(&file, FallocateFlags::empty(), 0, bytes as u64).map_err(io::Error::from)?;
        // Readers use read(2), never a map, and look only at bytes below the committed length.
        // SAFETY: `create_new` made the file in the store's directory, which only the holder of
        // its lock changes; nobody truncates it while it is mapped: sealing drops the map first.
        // One in memory has no name by which anybody else could come to it.
        let map = unsafe { MmapOptions::new().len(bytes).map_mut(&file) }?;
        let mut mapped = Self { map, file };
        match mapped.map.advise(Advice::PopulateWrite) {
            Ok(()) => {}
            // Kernels before 5.14: touch each page. The blocks are allocated, so this cannot
            // fail for lack of space.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                for page in mapped.map.chunks_mut(PAGE) {
                    page[0] = 0;
                }
            }
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => {
                return Err(MapError::Io(io::Error::from_raw_os_error(libc::ENOSPC)));
            }
            Err(error) => return Err(error.into()),
        }
        Ok(mapped)
    }

    /// All bytes.
    #[inline]
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.map
    }

    /// All bytes as 64-bit words in the machine's byte order.
    #[inline]
    pub(crate) fn words(&self) -> &[AtomicU64] {
        let words = self.map.len() / size_of::<AtomicU64>();
        // The result borrows `self`, and `bytes_mut` needs `&mut self`: no plain reference to the
        // same bytes is alive that could be written through.
        // SAFETY: a map begins at a page, so it is aligned for u64; `words` words lie within it,
        // and it stays mapped for as long as `self` is borrowed.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast::<AtomicU64>(), words) }
    }

    /// Unmaps and gives the file back.
    pub(crate) fn into_file(self) -> File {
        self.file
    }
}

/// Has the kernel begin to write a part of a file to the disk. Waits for nothing but room in the
/// disk's queue. Where it cannot, nothing is lost: fsync follows and says what is wrong.
pub(crate) fn begin_write_out(file: &File, from: u64, len: u64) {
    let (Ok(from), Ok(len)) = (i64::try_from(from), i64::try_from(len)) else { return };
    // SAFETY: takes numbers alone; the descriptor is open for as long as `file` is borrowed.
    unsafe { libc::sync_file_range(file.as_raw_fd(), from, len, libc::SYNC_FILE_RANGE_WRITE) };
}

/// The name of the filesystem under `file` if allocated space can run out there all the same.
fn copy_on_write(file: &File) -> io::Result<Option<&'static str>> {
    const BTRFS: i64 = 0x9123_683e;
    const ZFS: i64 = 0x2fc1_2fc1;
    const BCACHEFS: i64 = 0xca45_1a4e;
    const NFS: i64 = 0x6969;
    const NILFS: i64 = 0x3434;
    Ok(match fstatfs(file).map_err(io::Error::from)?.f_type as i64 & 0xffff_ffff {
        BTRFS => Some("btrfs"),
        ZFS => Some("zfs"),
        BCACHEFS => Some("bcachefs"),
        NFS => Some("nfs"),
        NILFS => Some("nilfs2"),
        _ => None,
    })
}
