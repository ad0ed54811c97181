//! Files for a segment that is to come.

use std::io;
use std::path::{Path, PathBuf};

use crate::journal::Journal;
use crate::layout;
use crate::mapped::{MapError, MappedFile};

use super::{JOURNAL, PCAP, PreparedSegment, SegmentSpec};

/// Why a segment cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// No space left.
    #[error("the disk under {path} is full")]
    DiskFull {
        /// The segment.
        path: PathBuf,
    },
    /// Allocated space is not reserved on this filesystem.
    #[error(
        "{filesystem} under {path} can run out of space below a mapped file: put the store on \
         ext4, xfs or tmpfs"
    )]
    CopyOnWrite {
        /// The segment.
        path: PathBuf,
        /// The filesystem's name.
        filesystem: &'static str,
    },
    /// The filesystem cannot allocate ahead or map for writing.
    #[error("the filesystem under {path} cannot allocate or map files: use ext4, xfs or tmpfs")]
    Unsupported {
        /// The segment.
        path: PathBuf,
    },
    /// The wish itself is wrong.
    #[error("no such segment can be: {0}")]
    Spec(&'static str),
    /// Anything else that the kernel said.
    #[error("cannot prepare {path}")]
    Io {
        /// The segment.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl PrepareError {
    pub(super) fn map(path: &Path, error: MapError) -> Self {
        let path = path.to_owned();
        match error {
            MapError::CopyOnWrite(filesystem) => Self::CopyOnWrite { path, filesystem },
            MapError::Io(source) => match source.raw_os_error() {
                Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => Self::DiskFull { path },
                Some(libc::EOPNOTSUPP | libc::ENODEV) => Self::Unsupported { path },
                _ => Self::Io { path, source },
            },
        }
    }
}

/// Prepares a segment in `dir` (the worker's directory): creates both files, allocates their
/// blocks and makes their pages present. Blocks for milliseconds to seconds: call it on a helper
/// thread, ahead of need.
///
/// # Errors
/// See [`PrepareError`]; nothing stays behind.
pub fn prepare(
    dir: &Path,
    sequence: u64,
    spec: &SegmentSpec,
) -> Result<PreparedSegment, PrepareError> {
    spec.check().map_err(PrepareError::Spec)?;
    let pcap_path = dir.join(layout::segment_name(sequence, PCAP));
    let journal_path = dir.join(layout::segment_name(sequence, JOURNAL));
    // The journal first: a segment without one would have to be scanned at recovery.
    let journal = Journal::create(&journal_path, spec.fixed(sequence))
        .map_err(|error| PrepareError::map(&journal_path, error))?;
    let file = MappedFile::create(&pcap_path, spec.bytes as usize).map_err(|error| {
        // The first error is the one worth telling.
        let _ = layout::remove_if_there(&journal_path);
        PrepareError::map(&pcap_path, error)
    })?;
    Ok(PreparedSegment::begin(file, journal, pcap_path, journal_path))
}
