//! Frames from one receive queue of one interface, through an AF_XDP socket.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use capture_flow::frame::{IfaceId, LinkType};
use capture_flow::time::Nanos;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

use super::clock::{self, StampTime};
use super::missing::{Look, Missing};
use super::umem::{Binding, HEADROOM, MAX_HELD, MAX_PIECES, Rings, Sizes};
use super::{BATCH, Received, Source, SourceCounters, SourceError, SourceFrame};
use crate::link::Link;
use crate::live::since_boot;
use crate::privilege;
use crate::program::{AttachMode, Program, ProgramError, Steered};

/// Ethernet header and two VLAN tags, which an MTU does not count.
const LINK_HEADERS: u32 = 14 + 8;
/// Chunks of memory besides those that can wait, at most, in zero-copy mode: the driver fills its own
/// ring with them.
const DRIVER_RING: u32 = 8192;
/// Slots and chunks of a socket that is only to find out what a driver can.
const TRIAL: u32 = 1024;
/// How long a queue is waited for that a closed socket has not left yet: the kernel takes sockets
/// apart in the background.
const BUSY_TRIES: u32 = 40;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// What a queue's socket should be like.
#[derive(Clone, Copy, Debug)]
pub struct AfXdpConfig {
    /// Number of the interface within the run.
    pub iface: IfaceId,
    /// Receive queue.
    pub queue: u32,
    /// Slots of the receive ring, a power of two: so many frames wait at most. There is as much
    /// memory for them.
    pub ring_size: u32,
    /// Bytes of a chunk of memory, 2048 or 4096. A frame that does not fit in one, less 272 bytes
    /// of headroom, takes several.
    pub frame_size: u32,
}

/// How a queue is received from, for the log and the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Where the XDP program runs.
    pub attached: AttachMode,
    /// The driver receives straight into the sensor's memory.
    pub zero_copy: bool,
    /// Frames larger than a chunk are received. Without it, they are lost and counted as such.
    pub multi_buffer: bool,
}

impl AfXdpConfig {
    /// Frames that can be on their way through a socket's memory at most, in whatever way it is
    /// bound.
    #[must_use]
    pub fn most_on_their_way(ring_size: u32) -> u64 {
        u64::from(Self::chunks(ring_size, true))
    }

    /// Chunks of a socket's memory: as many as can wait. A zero-copy driver fills its own ring
    /// besides.
    fn chunks(ring_size: u32, zero_copy: bool) -> u32 {
        let besides = if zero_copy { ring_size.min(DRIVER_RING) } else { 0 };
        ring_size.saturating_add(besides).next_power_of_two()
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let copy = if self.zero_copy { "zero-copy" } else { "copy" };
        write!(f, "{} XDP, {copy}", self.attached)?;
        if !self.multi_buffer {
            f.write_str(", no jumbo frames")?;
        }
        Ok(())
    }
}

/// Why a queue cannot be received from.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A capability is missing.
    #[error("not permitted to open an AF_XDP socket on {name}: {reason}")]
    NotPermitted {
        /// Interface and queue.
        name: String,
        /// Which capability is missing, and what to do.
        reason: String,
    },
    /// The memory for frames may not be locked.
    #[error(
        "not permitted to lock {mebibytes} MiB of memory for {name}: give CAP_IPC_LOCK, raise the \
         limit (`ulimit -l`, LimitMEMLOCK= in a systemd unit) or choose a smaller --memory"
    )]
    MemoryLock {
        /// Interface and queue.
        name: String,
        /// What was asked for.
        mebibytes: u64,
    },
    /// The queue belongs to another socket.
    #[error("{name} is taken by another AF_XDP socket (`ss --xdp` shows whose)")]
    Occupied {
        /// Interface and queue.
        name: String,
    },
    /// The kernel refused in every way that was tried.
    #[error("cannot bind an AF_XDP socket to {name}")]
    Bind {
        /// Interface and queue.
        name: String,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// Frames could not be steered to the socket.
    #[error(transparent)]
    Program(#[from] crate::program::ProgramError),
}

/// One receive queue.
#[derive(Debug)]
pub struct AfXdp {
    name: String,
    iface: IfaceId,
    backend: Backend,
    rings: Rings,
    time: StampTime,
    /// The frame that is arriving is beyond use; its remaining pieces are thrown away.
    skipping: bool,
    gone: bool,
    counters: SourceCounters,
    steered: Steered,
    missing: Missing,
    /// Whether looking failed and that was said.
    cannot_look: bool,
}

impl AfXdp {
    /// Opens a socket on a queue and has the program steer the queue's frames to it. To be called
    /// on the core that will receive: the memory comes from its node. A queue that another socket
    /// has just left is waited for, up to two seconds.
    ///
    /// # Errors
    /// [`OpenError`], with what to do about it.
    pub fn open(
        config: &AfXdpConfig,
        link: &Link,
        program: &Program,
        attached: AttachMode,
    ) -> Result<Self, OpenError> {
        let mut tries = 0;
        loop {
            match Self::open_now(config, link, program, attached) {
                Err(OpenError::Occupied { .. }) if tries < BUSY_TRIES => {
                    tries += 1;
                    std::thread::sleep(BUSY_PAUSE);
                }
                other => return other,
            }
        }
    }

    /// As [`AfXdp::open`], without waiting.
    ///
    /// # Errors
    /// As [`AfXdp::open`].
    pub fn open_now(
        config: &AfXdpConfig,
        link: &Link,
        program: &Program,
        attached: AttachMode,
    ) -> Result<Self, OpenError> {
        let name = format!("{} queue {}", link.name, config.queue);
        raise_memory_lock_limit();
        let (rings, binding) = bind(config, link, attached, &name)?;
        let steered = program.steered(config.queue);
        let time = StampTime::new(program.clock());
        let missing = Missing::new(&look(&steered, &time, || true)?);
        let source = Self {
            name,
            iface: config.iface,
            backend: Backend {
                attached,
                zero_copy: binding.zero_copy,
                multi_buffer: binding.multi_buffer,
            },
            rings,
            time,
            skipping: false,
            gone: false,
            counters: SourceCounters::default(),
            steered,
            missing,
            cannot_look: false,
        };
        // Last: some drivers lose buffers if frames come before the fill ring has any.
        program.steer(config.queue, &source.rings)?;
        Ok(source)
    }

    /// How frames are received.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Finds the whole frames among the held descriptors and reads their stamps.
    #[inline]
    fn outline(&mut self) -> Outline {
        let mut outline = Outline::default();
        let mut first = 0;
        let mut sound = true;
        for index in 0..self.rings.held() {
            let continues = match self.rings.piece(index) {
                Some(piece) => piece.continues,
                None => {
                    sound = false;
                    self.rings.continues(index)
                }
            };
            if continues {
                continue;
            }
            let end = index + 1;
            if sound && !self.skipping {
                let ts = self.arrival(first);
                outline.push(Span { first, end, ts });
            } else {
                self.counters.malformed = self.counters.malformed.saturating_add(1);
            }
            self.skipping = false;
            sound = true;
            first = end;
        }
        outline.descriptors = first;
        outline
    }

    /// When the frame arrived whose first descriptor this is.
    #[inline]
    fn arrival(&mut self, first: usize) -> Nanos {
        match self.rings.take_stamp(first) {
            Some(stamp) => {
                self.missing.came(stamp.arrival_ns);
                self.time.utc(stamp.arrival_ns)
            }
            None => {
                self.missing.came_unstamped();
                self.counters.unstamped = self.counters.unstamped.saturating_add(1);
                clock::now()
            }
        }
    }

    /// Lends the frames' bytes to `consume`. How many bytes there were.
    #[inline]
    fn hand_over(&self, outline: &Outline, consume: &mut dyn FnMut(&[SourceFrame<'_>])) -> u64 {
        // Both arrays live on the stack: the pieces of all frames, and the frames that point into
        // them.
        let mut pieces: [&[u8]; MAX_HELD] = [&[]; MAX_HELD];
        for (index, slot) in pieces.iter_mut().enumerate().take(outline.descriptors) {
            *slot = self.rings.piece(index).map_or(&[], |piece| piece.bytes);
        }
        let mut frames = [SourceFrame {
            ts: Nanos(0),
            wire_len: 0,
            link: LinkType::ETHERNET,
            iface: self.iface,
            parts: &[],
        }; BATCH];
        let mut bytes = 0_u64;
        for (frame, span) in frames.iter_mut().zip(outline.frames()) {
            frame.ts = span.ts;
            frame.parts = pieces.get(span.first..span.end).unwrap_or_default();
            let len = frame.captured_len();
            frame.wire_len = u32::try_from(len).unwrap_or(u32::MAX);
            bytes = bytes.saturating_add(len as u64);
        }
        consume(frames.get(..outline.frames().len()).unwrap_or_default());
        bytes
    }

    /// Looks for frames that were steered here and never came.
    fn miss(&mut self) {
        if !self.missing.is_due(since_boot().0.cast_unsigned()) {
            return;
        }
        match look(&self.steered, &self.time, || self.rings.is_empty()) {
            Ok(look) => {
                self.missing.look(&look, self.counters.frames);
                self.counters.missing = self.missing.found();
            }
            Err(failure) if !self.cannot_look => {
                self.cannot_look = true;
                let cause = crate::chain(&failure);
                warn!(
                    "{}: frames that no counter tells of are missed at the end: {cause}",
                    self.name
                );
            }
            Err(_) => {}
        }
    }

    fn error(&self, doing: &'static str, source: io::Error) -> SourceError {
        SourceError::Io { doing, name: self.name.clone(), source }
    }

    fn gone_error(&self) -> SourceError {
        let iface = self.name.split(' ').next().unwrap_or_default().to_owned();
        SourceError::InterfaceGone { iface }
    }
}

impl Source for AfXdp {
    fn receive(
        &mut self,
        consume: &mut dyn FnMut(&[SourceFrame<'_>]),
    ) -> Result<Received, SourceError> {
        if self.rings.take() == 0 {
            return if self.gone { Err(self.gone_error()) } else { Ok(Received::Idle) };
        }
        let outline = self.outline();
        let frames = outline.frames().len();
        if frames > 0 {
            self.counters.bytes =
                self.counters.bytes.saturating_add(self.hand_over(&outline, consume));
            self.counters.frames = self.counters.frames.saturating_add(frames as u64);
        }
        self.rings.release(outline.descriptors);
        if self.rings.held() >= MAX_PIECES {
            // No frame has so many pieces: the rest of it is thrown away when it comes.
            self.rings.release(self.rings.held());
            self.skipping = true;
        }
        self.rings.wake();
        Ok(if frames == 0 { Received::Idle } else { Received::Frames(frames) })
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.rings.fd())
    }

    fn counters(&mut self) -> Result<SourceCounters, SourceError> {
        // When an interface is deleted nothing else tells: poll stays silent and the rings stay.
        match rustix::net::sockopt::socket_error(self.rings.fd()) {
            Ok(Err(rustix::io::Errno::NETDOWN)) => self.gone = true,
            Ok(Err(error)) => return Err(self.error("receive", error.into())),
            Err(error) => return Err(self.error("ask for errors", error.into())),
            Ok(Ok(())) => {}
        }
        let kernel =
            self.rings.statistics().map_err(|error| self.error("read the counters", error))?;
        self.counters.ring_full = kernel.rx_ring_full();
        self.counters.dropped = kernel.rx_dropped();
        self.counters.fill_ring_empty = kernel.rx_fill_ring_empty_descs();
        self.counters.invalid_descs = kernel.rx_invalid_descs();
        self.miss();
        Ok(self.counters)
    }
}

/// What was steered by now, when that is, and whether the ring is empty then.
fn look(
    steered: &Steered,
    time: &StampTime,
    ring_is_empty: impl FnOnce() -> bool,
) -> Result<Look, ProgramError> {
    let steered = steered.frames()?;
    let (stamp_ns, boot_ns) = (time.now(), since_boot().0.cast_unsigned());
    Ok(Look { steered, stamp_ns, boot_ns, ring_is_empty: ring_is_empty() })
}

/// One whole frame: its descriptors among the held ones, and its time.
#[derive(Clone, Copy, Default)]
struct Span {
    first: usize,
    end: usize,
    ts: Nanos,
}

/// The whole frames among the held descriptors.
struct Outline {
    spans: [Span; BATCH],
    count: usize,
    /// Descriptors up to the end of the last whole frame, unsound ones included: these are done
    /// with once the frames have been handed over.
    descriptors: usize,
}

impl Default for Outline {
    fn default() -> Self {
        Self { spans: [Span::default(); BATCH], count: 0, descriptors: 0 }
    }
}

impl Outline {
    /// There is room: a batch ends at most as many frames as it has descriptors.
    #[inline]
    fn push(&mut self, span: Span) {
        if let Some(slot) = self.spans.get_mut(self.count) {
            *slot = span;
            self.count += 1;
        }
    }

    #[inline]
    fn frames(&self) -> &[Span] {
        self.spans.get(..self.count).unwrap_or_default()
    }
}

/// Binds in the best way that the driver and the kernel take.
fn bind(
    config: &AfXdpConfig,
    link: &Link,
    attached: AttachMode,
    name: &str,
) -> Result<(Rings, Binding), OpenError> {
    let fits = link.mtu.saturating_add(LINK_HEADERS) <= config.frame_size.saturating_sub(HEADROOM);
    // Best first. Zero-copy is native XDP's; without multi-buffer only where no frame needs it, or
    // where the kernel (before 6.6) has none.
    let ways = [
        (attached == AttachMode::Native, Binding { zero_copy: true, multi_buffer: true }),
        (attached == AttachMode::Native && fits, Binding { zero_copy: true, multi_buffer: false }),
        (true, Binding { zero_copy: false, multi_buffer: true }),
        (true, Binding { zero_copy: false, multi_buffer: false }),
    ];
    let mut refusal = io::Error::from(io::ErrorKind::Unsupported);
    for (_, binding) in ways.into_iter().filter(|(sensible, _)| *sensible) {
        // Most drivers know no zero-copy, and say so only to a socket with memory: a little of it
        // will do, for the memory of deep rings takes long to be had.
        let mut patience = 0;
        if binding.zero_copy && config.ring_size > TRIAL {
            let sizes = Sizes { ring: TRIAL, chunks: TRIAL, chunk_bytes: config.frame_size };
            match Rings::bind(&link.name, config.queue, sizes, binding) {
                // The kernel takes this socket apart in the background.
                Ok(_) => patience = BUSY_TRIES,
                Err(error) if !speaks_of_the_queue(&error) => {
                    refusal = error;
                    continue;
                }
                Err(_) => {}
            }
        }
        let chunks = AfXdpConfig::chunks(config.ring_size, binding.zero_copy);
        let sizes = Sizes { ring: config.ring_size, chunks, chunk_bytes: config.frame_size };
        let bound = loop {
            match Rings::bind(&link.name, config.queue, sizes, binding) {
                Err(error) if patience > 0 && error.raw_os_error() == Some(libc::EBUSY) => {
                    patience -= 1;
                    std::thread::sleep(BUSY_PAUSE);
                }
                other => break other,
            }
        };
        match bound {
            Ok(rings) => return Ok((rings, binding)),
            Err(error) => match error.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => {
                    let reason = privilege::explain_socket();
                    return Err(OpenError::NotPermitted { name: name.to_owned(), reason });
                }
                // Zero-copy takes twice the memory: copy mode may still be allowed its part.
                Some(libc::ENOBUFS) if !binding.zero_copy => {
                    let bytes = u64::from(chunks) * u64::from(config.frame_size);
                    let mebibytes = bytes.div_ceil(1 << 20);
                    return Err(OpenError::MemoryLock { name: name.to_owned(), mebibytes });
                }
                Some(libc::EBUSY) => return Err(OpenError::Occupied { name: name.to_owned() }),
                _ => refusal = error,
            },
        }
    }
    Err(OpenError::Bind { name: name.to_owned(), source: refusal })
}

/// Whether a refusal is about who asks or who has the queue, and not about the way of binding.
fn speaks_of_the_queue(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::EBUSY))
}

/// Lets the process lock as much memory as it is allowed to: without CAP_IPC_LOCK the kernel
/// counts the sockets' memory against this limit. What cannot be raised shows when a socket is
/// opened, and is explained there.
fn raise_memory_lock_limit() {
    let unlimited = Rlimit { current: None, maximum: None };
    if setrlimit(Resource::Memlock, unlimited).is_err() {
        let maximum = getrlimit(Resource::Memlock).maximum;
        // Raising the soft limit to the hard one needs no privilege and cannot fail.
        let _ = setrlimit(Resource::Memlock, Rlimit { current: maximum, maximum });
    }
}
