//! Time as frames carry it.

use std::fmt;
use std::ops::{Add, Sub};

/// A moment: nanoseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nanos(pub i64);

/// A length of time in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NanosDelta(pub i64);

impl Nanos {
    /// Earlier than every frame.
    pub const MIN: Self = Self(i64::MIN);
    /// Later than every frame.
    pub const MAX: Self = Self(i64::MAX);

    /// A moment from whole seconds and the nanoseconds within the second.
    #[must_use]
    pub const fn from_parts(seconds: i64, subsec_ns: u32) -> Self {
        Self(seconds.saturating_mul(1_000_000_000).saturating_add(subsec_ns as i64))
    }

    /// Whole seconds since the epoch and the nanoseconds within the second.
    #[must_use]
    pub const fn parts(self) -> (i64, u32) {
        (self.0.div_euclid(1_000_000_000), self.0.rem_euclid(1_000_000_000) as u32)
    }
}

impl NanosDelta {
    /// No time at all.
    pub const ZERO: Self = Self(0);

    /// A length of whole seconds.
    #[must_use]
    pub const fn from_secs(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1_000_000_000))
    }

    /// A length of whole milliseconds.
    #[must_use]
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    /// The length in seconds, as Zeek prints an interval.
    #[must_use]
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e9
    }
}

// Packet times are foreign input: a hostile capture can hold any 64-bit value, so arithmetic
// saturates instead of overflowing.
impl Sub for Nanos {
    type Output = NanosDelta;
    fn sub(self, earlier: Self) -> NanosDelta {
        NanosDelta(self.0.saturating_sub(earlier.0))
    }
}

impl Add<NanosDelta> for Nanos {
    type Output = Self;
    fn add(self, delta: NanosDelta) -> Self {
        Self(self.0.saturating_add(delta.0))
    }
}

impl Sub<NanosDelta> for Nanos {
    type Output = Self;
    fn sub(self, delta: NanosDelta) -> Self {
        Self(self.0.saturating_sub(delta.0))
    }
}

/// Seconds with nine decimals, as Zeek prints a time.
impl fmt::Display for Nanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, subsec_ns) = self.parts();
        write!(f, "{seconds}.{subsec_ns:09}")
    }
}
