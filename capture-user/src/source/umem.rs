//! One AF_XDP socket with its rings and its memory: the unsafe half of the source.
//!
//! The memory is cut into chunks. A chunk is either the kernel's (in the fill ring or being
//! filled), or in the receive ring, or ours, and then it is in [`Rings::held`]. Bytes are lent from
//! `&self` and chunks go back through `&mut self`, so no slice can outlive the moment at which the
//! kernel may write again.
//!
//! The kernel has every chunk that is not in our hands, in calm too. It uses them in turn, so deep
//! rings go past the caches; that costs less than what a burst loses where the kernel has few and
//! the worker that would give it more does not run for some milliseconds (docs/PERFORMANCE.md).

use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;

use capture_common::FrameStamp;
use rustix::net::RecvFlags;
use xsk_rs::config::{
    BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig,
};
use xsk_rs::socket::XdpStatistics;
use xsk_rs::umem::frame::FrameDesc;
use xsk_rs::{CompQueue, FillQueue, RxQueue, Socket, TxQueue, Umem};

use super::BATCH;
use crate::memory;

/// Pieces of a frame at most. 64 KiB, more than any frame has, are 37 of the smallest chunks.
pub(super) const MAX_PIECES: usize = 64;
/// Descriptors that can be in our hands: the pieces of a frame whose end has not come, and a batch.
pub(super) const MAX_HELD: usize = MAX_PIECES + BATCH;

/// Bytes of a chunk in front of the frame that are ours to choose. The kernel adds its own 256
/// (`XDP_PACKET_HEADROOM`). A stamp's length, so that the stamp begins a cache line and shares it
/// with the headers of the frame: without, every frame would cost one line more.
const STAMP_ROOM: u32 = FrameStamp::LEN as u32;
/// Bytes of a chunk that no frame uses.
pub(super) const HEADROOM: u32 = 256 + STAMP_ROOM;

/// Nothing is ever sent, but xsk-rs always sets up these two rings: the smallest will do.
const UNUSED_RING: u32 = 2;

/// How a socket is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Binding {
    /// The driver receives straight into our memory.
    pub(super) zero_copy: bool,
    /// Frames larger than a chunk are taken, in pieces.
    pub(super) multi_buffer: bool,
}

/// Sizes of a socket's rings and memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Slots of the receive ring, a power of two.
    pub(super) ring: u32,
    /// Chunks of memory, a power of two: the fill ring has as many slots, so that there is always
    /// room to give a chunk back.
    pub(super) chunks: u32,
    /// Bytes of a chunk, [`HEADROOM`] included: 2048 or 4096.
    pub(super) chunk_bytes: u32,
}

/// One piece of a frame, on loan.
pub(super) struct Piece<'a> {
    /// Its bytes.
    pub(super) bytes: &'a [u8],
    /// Whether the next descriptor continues the frame.
    pub(super) continues: bool,
}

/// A bound socket.
#[derive(Debug)]
pub(super) struct Rings {
    rx: RxQueue,
    fill: FillQueue,
    _tx: TxQueue,
    _completion: CompQueue,
    _umem: Umem,
    memory: Memory,
    /// Chunks in our hands, oldest first; the first `count` are valid.
    held: [FrameDesc; MAX_HELD],
    count: usize,
}

impl Rings {
    /// Allocates the memory on the calling thread, binds to a queue, and gives the kernel every
    /// chunk. Frames come once the socket is in the XSKMAP.
    pub(super) fn bind(
        iface: &str,
        queue: u32,
        sizes: Sizes,
        binding: Binding,
    ) -> io::Result<Self> {
        let umem = UmemConfig::builder()
            .frame_size(FrameSize::new(sizes.chunk_bytes).map_err(invalid)?)
            .fill_queue_size(QueueSize::new(sizes.chunks).map_err(invalid)?)
            .comp_queue_size(QueueSize::new(UNUSED_RING).map_err(invalid)?)
            .frame_headroom(STAMP_ROOM)
            .build()
            .map_err(invalid)?;
        let chunks = NonZeroU32::new(sizes.chunks).ok_or(io::ErrorKind::InvalidInput)?;
        let (umem, chunks) = Umem::new(umem, chunks, false).map_err(system)?;
        let memory = Memory::of(&umem, &chunks, sizes)
            .ok_or_else(|| io::Error::other("no memory to receive into"))?;

        let mut flags = if binding.zero_copy {
            // The driver may sleep until it is woken.
            BindFlags::XDP_ZEROCOPY | BindFlags::XDP_USE_NEED_WAKEUP
        } else {
            // Without XDP_USE_NEED_WAKEUP: in copy mode the kernel would take the flag for a wish
            // to send, and look through the send path at every poll.
            BindFlags::XDP_COPY
        };
        if binding.multi_buffer {
            flags |= BindFlags::XDP_USE_SG;
        }
        let config = SocketConfig::builder()
            .rx_queue_size(QueueSize::new(sizes.ring).map_err(invalid)?)
            .tx_queue_size(QueueSize::new(UNUSED_RING).map_err(invalid)?)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(flags)
            .build();
        let name: Interface = iface.parse().map_err(invalid)?;
        // SAFETY: the duty is about several sockets sharing a UMEM and a queue. This UMEM was made
        // for this one socket, and the program is ours, not libxdp's.
        let bound = unsafe { Socket::new(config, &umem, &name, queue) };
        let (tx, rx, rings) = bound.map_err(system)?;
        let (mut fill, completion) =
            rings.ok_or_else(|| io::Error::other("the queue is bound already"))?;

        // SAFETY: the descriptors are all of this UMEM's, and none has been given away before.
        let given = unsafe { fill.produce(&chunks) };
        if given < chunks.len() {
            return Err(io::Error::other("the kernel does not take all the memory"));
        }
        let mut rings = Self {
            rx,
            fill,
            _tx: tx,
            _completion: completion,
            _umem: umem,
            memory,
            held: [FrameDesc::default(); MAX_HELD],
            count: 0,
        };
        rings.wake();
        Ok(rings)
    }

    /// Takes up to [`BATCH`] descriptors out of the receive ring. How many there were.
    #[inline]
    pub(super) fn take(&mut self) -> usize {
        let end = self.count.saturating_add(BATCH).min(MAX_HELD);
        let Some(room) = self.held.get_mut(self.count..end) else { return 0 };
        // SAFETY: the ring and the memory belong together, they were made in `bind`.
        let taken = unsafe { self.rx.consume(room) };
        // Another core has just written the frames. Fetching all their first lines at once takes
        // a good quarter off the time that a batch of small frames takes here.
        for descriptor in room.iter().take(taken) {
            self.memory.prefetch(descriptor.addr().saturating_sub(FrameStamp::LEN));
        }
        self.count = self.count.saturating_add(taken);
        taken
    }

    /// Whether nothing is there: in our hands, or in the ring at this moment.
    pub(super) fn is_empty(&mut self) -> bool {
        self.count == 0 && self.rx.nb_avail_exact() == 0
    }

    /// Descriptors in our hands.
    #[inline]
    pub(super) fn held(&self) -> usize {
        self.count
    }

    /// The bytes of a held descriptor; `None` if there is no such one, or if it does not lie in
    /// the memory, which a correct kernel never says.
    #[inline]
    pub(super) fn piece(&self, index: usize) -> Option<Piece<'_>> {
        let descriptor = self.held.get(..self.count)?.get(index)?;
        let bytes = self.memory.bytes(descriptor.addr(), descriptor.lengths().data())?;
        Some(Piece { bytes, continues: descriptor.has_more_frames() })
    }

    /// Whether the frame goes on after a held descriptor.
    #[inline]
    pub(super) fn continues(&self, index: usize) -> bool {
        self.held
            .get(..self.count)
            .and_then(|held| held.get(index))
            .is_some_and(FrameDesc::has_more_frames)
    }

    /// Takes the stamp from in front of a held descriptor. A second call finds none: a chunk is
    /// used again and again, and an old stamp must not be taken for the next frame's.
    #[inline]
    pub(super) fn take_stamp(&mut self, index: usize) -> Option<FrameStamp> {
        let descriptor = self.held.get(..self.count)?.get(index)?;
        self.memory.take_stamp(descriptor.addr())
    }

    /// Is done with the oldest `count` held chunks: the kernel gets them back.
    #[inline]
    pub(super) fn release(&mut self, count: usize) {
        let Some(done) = self.held.get(..count.min(self.count)) else { return };
        // SAFETY: these are chunks of this memory, taken from the receive ring and not yet given
        // back (they leave `held` below). No slice of them is alive: it would borrow `self`.
        let given = unsafe { self.fill.produce(done) };
        // The fill ring has a slot for every chunk.
        debug_assert_eq!(given, done.len());
        let released = done.len();
        self.held.copy_within(released..self.count, 0);
        self.count = self.count.saturating_sub(released);
    }

    /// Whether the kernel sleeps until [`Rings::wake`].
    #[inline]
    pub(super) fn sleeps(&self) -> bool {
        self.fill.needs_wakeup()
    }

    /// Makes the driver look at the fill ring. One that cannot just now (its link is down, its
    /// queues are being set up) is woken by the next poll.
    pub(super) fn wake(&mut self) {
        if self.sleeps() {
            // A receive of nothing is the documented way to wake only the receiving side.
            let _ = rustix::net::recv(self.fd(), &mut [0_u8; 0], RecvFlags::DONTWAIT);
        }
    }

    /// The kernel's counters of this socket.
    pub(super) fn statistics(&self) -> io::Result<XdpStatistics> {
        self.rx.fd().xdp_statistics()
    }

    /// The socket.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket is open as long as its queues are alive, and `rx` is ours.
        unsafe { BorrowedFd::borrow_raw(self.rx.fd().as_raw_fd()) }
    }
}

impl AsRawFd for Rings {
    fn as_raw_fd(&self) -> RawFd {
        self.rx.fd().as_raw_fd()
    }
}

/// The shared memory, by its address. xsk-rs lends the bytes from a descriptor on; the stamp lies
/// in front of them.
#[derive(Debug)]
struct Memory {
    base: *mut u8,
    len: usize,
}

// SAFETY: the mapping belongs to the process and not to a thread, and only the owner of `Rings`,
// which has the one `Memory` of its mapping, reaches into it.
unsafe impl Send for Memory {}

impl Memory {
    fn of(umem: &Umem, descriptors: &[FrameDesc], sizes: Sizes) -> Option<Self> {
        let first = descriptors.first()?;
        // SAFETY: a descriptor of this UMEM, not given to the kernel yet.
        let data = unsafe { umem.data(first) };
        let base = data.contents().as_ptr().expose_provenance().checked_sub(first.addr())?;
        let len = usize::try_from(u64::from(sizes.chunks) * u64::from(sizes.chunk_bytes)).ok()?;
        // The memory is a mapping, which no Rust allocation describes: its address is all there is.
        Some(Self { base: ptr::with_exposed_provenance_mut(base), len })
    }

    /// Asks the cache for the line of a byte that will be read soon.
    #[inline]
    fn prefetch(&self, at: usize) {
        memory::prefetch(self.base.wrapping_add(at));
    }

    #[inline]
    fn bytes(&self, at: usize, len: usize) -> Option<&[u8]> {
        if at.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: within the mapping, which lives as long as `self` (see `Rings`). The caller holds
        // the chunk, so the kernel does not write to it while the slice is alive.
        Some(unsafe { std::slice::from_raw_parts(self.base.add(at), len) })
    }

    #[inline]
    fn take_stamp(&mut self, frame_at: usize) -> Option<FrameStamp> {
        let at = frame_at.checked_sub(FrameStamp::LEN)?;
        if frame_at > self.len {
            return None;
        }
        // SAFETY: [at, at + LEN) is within the mapping and in front of the frame, in a chunk that
        // we hold: neither the kernel nor any slice touches it. Every bit pattern is a value.
        unsafe {
            let place = self.base.add(at).cast::<FrameStamp>();
            let stamp = place.read_unaligned();
            (&raw mut (*place).magic).write_unaligned(0);
            (stamp.magic == FrameStamp::MAGIC).then_some(stamp)
        }
    }
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}

/// The system's own answer inside an error of xsk-rs.
fn system(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    let number = std::error::Error::source(&error)
        .and_then(|cause| cause.downcast_ref::<io::Error>())
        .and_then(io::Error::raw_os_error);
    number.map_or_else(|| io::Error::other(error), io::Error::from_raw_os_error)
}
