//! What the bench and its programs in the kernel agree on: the frames of a traffic, the pace at
//! which they are made, and the counters of who makes them.
//!
//! The frames are made by the same code on both sides ([`traffic`]): whatever sends them, frame
//! number n of a recipe is the same frame, byte by byte.
#![cfg_attr(not(any(test, feature = "user")), no_std)]

pub mod traffic;

pub use traffic::{Head, Recipe, Walk};

/// The program that makes frames.
pub const GENERATE: &str = "generate";
/// Map with the one [`Recipe`] (`BPF_MAP_TYPE_ARRAY`).
pub const RECIPE: &str = "RECIPE";
/// Map with the [`Maker`] of each CPU (`BPF_MAP_TYPE_PERCPU_ARRAY`).
pub const MAKER: &str = "MAKER";
/// Map with the one interface that frames leave by (`BPF_MAP_TYPE_DEVMAP`).
pub const OUTLET: &str = "OUTLET";

/// The program of the bare receiver.
pub const DISCARD: &str = "discard";
/// Map of the bare receiver's sockets, one place per receive queue (`BPF_MAP_TYPE_XSKMAP`).
pub const SOCKETS: &str = "SOCKETS";

/// Binary places behind the point of [`Pace::interval`].
pub const FRACTION_BITS: u32 = 12;

/// How often one run of the program looks at the clock while it waits; it then leaves the frame
/// to the next run.
pub const PATIENT_LOOKS: u32 = 1 << 13;

/// When a CPU makes its frames.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// From frame to frame, in 1/4096 nanoseconds; 0 is as fast as it goes. 52 days fit.
    pub interval: u64,
    /// How far a CPU that could not keep up may run after its plan, in nanoseconds. What is
    /// beyond is given up and counted as [`Made::forgiven_ns`]: a generator that had been held up
    /// would otherwise make up for it with a burst that nobody asked for.
    pub patience_ns: u64,
    /// When the first frame was made (`CLOCK_MONOTONIC`), moved by what was given up. 0 before.
    pub start_ns: u64,
    /// When the next frame is due, from `start_ns` on, in 1/4096 nanoseconds.
    pub due: u64,
    /// Frames that are wanted; the program's runs after the last of them do nothing.
    pub goal: u64,
}

/// What a CPU has made. Every frame is counted exactly once as handed over, refused or misshapen.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// Frames handed over to the outlet. The link may still refuse them: its counters tell.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames for which there was no outlet.
    pub refused: u64,
    /// Frames that could not be brought to their length.
    pub misshapen: u64,
    /// When the first frame was made (`CLOCK_MONOTONIC`).
    pub first_ns: u64,
    /// When the last frame was made; without a pace, one of the last 64.
    pub last_ns: u64,
    /// Time spent waiting for a frame's moment.
    pub waited_ns: u64,
    /// Time by which the plan was moved because the CPU could not keep up.
    pub forgiven_ns: u64,
}

/// One CPU at work: where it is in its traffic, its pace, its counters.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Maker {
    /// Where it is.
    pub walk: Walk,
    /// When the next frame is due.
    pub pace: Pace,
    /// What it has done.
    pub made: Made,
}

const _: () = assert!(core::mem::size_of::<Pace>() == 40);
const _: () = assert!(core::mem::size_of::<Made>() == 64);
const _: () = assert!(core::mem::size_of::<Maker>() == core::mem::size_of::<Walk>() + 104);

#[cfg(feature = "user")]
// SAFETY: repr(C), integers only, no padding (asserted above): every bit pattern is a value.
unsafe impl aya::Pod for Maker {}

#[cfg(feature = "user")]
// SAFETY: repr(C), integers only, no padding (asserted in its module): every bit pattern is a value.
unsafe impl aya::Pod for Recipe {}
