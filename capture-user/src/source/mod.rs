//! Where frames come from.
//!
//! A [`Source`] is one stream of frames: one receive queue of one interface, or one capture
//! file. A worker owns the sources of its core and asks each for what is there.

pub mod af_xdp;
mod clock;
pub mod file;
pub mod made;
mod missing;
mod pcapng;
mod umem;

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use capture_flow::frame::{IfaceId, LinkType};
use capture_flow::time::Nanos;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Frames in one batch at most: enough that the cost of a batch disappears in it, few enough
/// that headers touched early in the batch are still in the cache at its end.
pub const BATCH: usize = 64;

/// One received frame, valid while its batch is being consumed.
#[derive(Clone, Copy, Debug)]
pub struct SourceFrame<'a> {
    /// Arrival time.
    pub ts: Nanos,
    /// Length on the wire in bytes.
    pub wire_len: u32,
    /// How to read the first byte.
    pub link: LinkType,
    /// Where the frame arrived.
    pub iface: IfaceId,
    /// The captured bytes in order; a jumbo frame lies in several pieces, any other in one.
    /// Never empty.
    pub parts: &'a [&'a [u8]],
}

impl SourceFrame<'_> {
    /// Captured bytes over all parts.
    #[inline]
    #[must_use]
    pub fn captured_len(&self) -> usize {
        match self.parts {
            [whole] => whole.len(),
            parts => parts.iter().map(|part| part.len()).sum(),
        }
    }
}

/// What a call to [`Source::receive`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// So many frames (at least one) were handed over and consumed; there may be more.
    Frames(usize),
    /// Nothing is there now.
    Idle,
    /// Nothing will come any more: the end of a file.
    End,
}

/// What a source counted since it was opened.
///
/// The kernel's counters overlap (kernel `net/xdp/xsk.c`), so none of them is a loss by itself:
/// the loss is what the XDP program steered and the source did not receive. They say why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceCounters {
    /// Frames handed over.
    pub frames: u64,
    /// Their captured bytes.
    pub bytes: u64,
    /// Frames (among `frames`) without an arrival stamp, for which user space read the clock
    /// when it took them from the ring.
    pub unstamped: u64,
    /// Frames that came out of the ring but could not be put together: more pieces than any
    /// frame has, or a descriptor outside the shared memory. Not among `frames`.
    pub malformed: u64,
    /// Kernel: frames lost because the receive ring was full (`rx_ring_full`).
    pub ring_full: u64,
    /// Kernel: frames lost because they were oversize or, in copy mode, no buffer was free
    /// (`rx_dropped`).
    pub dropped: u64,
    /// Kernel: failed refills (`rx_fill_ring_empty_descs`). In copy mode it repeats `dropped`,
    /// in zero-copy mode it does not count frames: for explanation only, never to be added.
    pub fill_ring_empty: u64,
    /// Kernel: buffers we gave that it refused (`rx_invalid_descs`).
    pub invalid_descs: u64,
    /// Frames that were steered to the source some time ago and have not come, whatever became of
    /// them: those that the counters above tell of, and any other. At least so many; the last ones
    /// are found when others have come after them, or none do.
    pub missing: u64,
}

impl SourceCounters {
    /// Frames that the source itself says it lost. Frames that came out of the ring and made no
    /// whole frame are lost there as well.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.dropped.saturating_add(self.ring_full).saturating_add(self.malformed)
    }

    /// These counts on top of those of the source before.
    #[must_use]
    pub fn after(&self, before: &Self) -> Self {
        Self {
            frames: self.frames.saturating_add(before.frames),
            bytes: self.bytes.saturating_add(before.bytes),
            unstamped: self.unstamped.saturating_add(before.unstamped),
            malformed: self.malformed.saturating_add(before.malformed),
            ring_full: self.ring_full.saturating_add(before.ring_full),
            dropped: self.dropped.saturating_add(before.dropped),
            fill_ring_empty: self.fill_ring_empty.saturating_add(before.fill_ring_empty),
            invalid_descs: self.invalid_descs.saturating_add(before.invalid_descs),
            missing: self.missing.saturating_add(before.missing),
        }
    }
}

/// Why a source stopped giving frames.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The interface was removed from the system.
    #[error("interface {iface} is gone: it was removed while the capture ran")]
    InterfaceGone {
        /// Its name.
        iface: String,
    },
    /// The kernel refused an operation on the source.
    #[error("cannot {doing} on {name}")]
    Io {
        /// What was being tried.
        doing: &'static str,
        /// The source: interface and queue, or file.
        name: String,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// A capture file that cannot be read on.
    #[error("{name}: {reason}")]
    BadFile {
        /// The file.
        name: String,
        /// What is wrong with it, and where.
        reason: String,
    },
}

/// One stream of frames.
pub trait Source {
    /// Takes up to [`BATCH`] frames that are there now, without waiting, and hands them to
    /// `consume` as one batch, in order of arrival. When `consume` returns, the memory of the
    /// frames goes back to where they came from. `consume` is called once, or not at all if
    /// there is no whole frame.
    ///
    /// # Errors
    /// [`SourceError`] when the source can give no more frames, now or ever. Frames handed over
    /// before stay valid work.
    fn receive(
        &mut self,
        consume: &mut dyn FnMut(&[SourceFrame<'_>]),
    ) -> Result<Received, SourceError>;

    /// What becomes readable when frames arrive; `None` if frames are always ready (files).
    fn readiness(&self) -> Option<BorrowedFd<'_>>;

    /// What was counted so far. May ask the kernel; not for the hot path.
    ///
    /// # Errors
    /// [`SourceError::InterfaceGone`], or the kernel's refusal.
    fn counters(&mut self) -> Result<SourceCounters, SourceError>;
}

impl<S: Source + ?Sized> Source for Box<S> {
    fn receive(
        &mut self,
        consume: &mut dyn FnMut(&[SourceFrame<'_>]),
    ) -> Result<Received, SourceError> {
        (**self).receive(consume)
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        (**self).readiness()
    }

    fn counters(&mut self) -> Result<SourceCounters, SourceError> {
        (**self).counters()
    }
}

/// Why [`wait`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// A source may have frames.
    Frames,
    /// The bell was rung: it is readable.
    Called,
    /// The time passed.
    TimedOut,
}

/// Waits until one of the sources may have frames, `bell` becomes readable, or the time has
/// passed. Polling an AF_XDP socket also makes the kernel look at its rings, so waiting is never
/// longer than `timeout`, even for a driver that stalled.
///
/// # Errors
/// What `poll` answers, other than an interrupted call, which counts as time passed.
pub fn wait<S: Source>(
    sources: &[S],
    bell: BorrowedFd<'_>,
    timeout: Duration,
) -> io::Result<Woken> {
    let mut fds = Vec::with_capacity(sources.len() + 1);
    fds.push(PollFd::from_borrowed_fd(bell, PollFlags::IN));
    for source in sources {
        match source.readiness() {
            Some(fd) => fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN)),
            None => return Ok(Woken::Frames),
        }
    }
    let timeout = Timespec::try_from(timeout).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
    match poll(&mut fds, Some(&timeout)) {
        Ok(0) | Err(rustix::io::Errno::INTR) => Ok(Woken::TimedOut),
        Ok(_) if fds.first().is_some_and(|bell| !bell.revents().is_empty()) => Ok(Woken::Called),
        Ok(_) => Ok(Woken::Frames),
        Err(error) => Err(error.into()),
    }
}
