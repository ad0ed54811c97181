//! What the XDP program and user space agree on, byte by byte.
//!
//! Nothing here outlives a build: both sides are compiled from the same source, and the files
//! on disk never use these types.
#![cfg_attr(not(feature = "user"), no_std)]

/// The XDP program's name in the object and in the kernel.
pub const PROGRAM: &str = "stillwire";
/// The map of AF_XDP sockets, one place per receive queue (`BPF_MAP_TYPE_XSKMAP`).
pub const SOCKETS: &str = "SOCKETS";
/// The map of [`QueueCounters`], one place per receive queue and one more for the queues that
/// came after the program was loaded (`BPF_MAP_TYPE_PERCPU_ARRAY`).
pub const COUNTERS: &str = "COUNTERS";
/// Load-time constant (`u32`): the receive queues known when the program was loaded.
pub const QUEUES: &str = "QUEUES";
/// Load-time constant (`u32`): a [`StampClock`].
pub const STAMP_CLOCK: &str = "STAMP_CLOCK";

/// The clock that stamps are read from.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StampClock {
    /// `bpf_ktime_get_ns`, Linux's `CLOCK_MONOTONIC`: on every kernel. User space adds the
    /// distance to UTC that it measured.
    Monotonic = 0,
    /// `bpf_ktime_get_tai_ns`, Linux's `CLOCK_TAI` (kernel 6.1): UTC but for whole seconds.
    Tai = 1,
}

/// Written by the XDP program into the metadata area, directly in front of the frame.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameStamp {
    /// Arrival time in nanoseconds, on the clock named by the program's load-time constant
    /// ([`StampClock`]).
    pub arrival_ns: u64,
    /// [`FrameStamp::MAGIC`]: a driver without a metadata area leaves something else here.
    pub magic: u32,
    /// Receive queue the frame arrived on.
    pub rx_queue: u32,
}

impl FrameStamp {
    /// Marks a stamp as written by this program.
    pub const MAGIC: u32 = 0x5377_4653; // "SwFS"
    /// Bytes that the stamp takes in front of the frame.
    pub const LEN: usize = core::mem::size_of::<Self>();
}

const _: () = assert!(FrameStamp::LEN == 16);
const _: () =
    assert!(FrameStamp::LEN.is_multiple_of(4), "bpf_xdp_adjust_meta wants a multiple of four");

/// Per receive queue and per CPU: what the XDP program did with every frame.
///
/// `seen == steered + passed + no_socket + aborted` holds at every instant that no program runs.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounters {
    /// Frames that entered the program.
    pub seen: u64,
    /// Bytes of those frames, all fragments of a multi-buffer frame included.
    pub seen_bytes: u64,
    /// Frames redirected to an AF_XDP socket.
    pub steered: u64,
    /// Frames passed to the host by a pass rule.
    pub passed: u64,
    /// Frames passed to the host because no socket serves their queue.
    pub no_socket: u64,
    /// Frames that the program could not handle.
    pub aborted: u64,
    /// Frames (among the steered ones) for which the driver refused the metadata area, so that
    /// they carry no stamp. Not a loss: it overlaps with `steered`.
    pub unstamped: u64,
}

#[cfg(feature = "user")]
// SAFETY: repr(C), only u64 fields, no padding: every bit pattern is a value.
unsafe impl aya::Pod for QueueCounters {}

const _: () = assert!(core::mem::size_of::<QueueCounters>() == 56);
