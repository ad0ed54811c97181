//! From the kernel's stamps to UTC.

use capture_common::StampClock;
use capture_flow::time::Nanos;
use rustix::time::{ClockId, DynamicClockId, Timespec, clock_gettime, clock_gettime_dynamic};

/// How long a measured distance between the clocks is used. Short, so that a corrected clock shows
/// at once in the times of frames; long against the two clock reads that a measurement takes.
const REFRESH_NS: u64 = 10_000_000;
/// A measurement that took longer was interrupted and says little.
const UNDISTURBED_NS: i64 = 50_000;
const TRIES: u32 = 5;

/// Turns stamps of one clock into UTC.
#[derive(Clone, Copy, Debug)]
pub(super) struct StampTime {
    clock: StampClock,
    /// To be added to a stamp.
    offset_ns: i64,
    /// The stamp for which `offset_ns` was measured; `None` before the first.
    measured_for: Option<u64>,
}

impl StampTime {
    pub(super) fn new(clock: StampClock) -> Self {
        Self { clock, offset_ns: 0, measured_for: None }
    }

    /// The clock of the stamps as it stands now.
    pub(super) fn now(&self) -> u64 {
        stamp_now(self.clock).cast_unsigned()
    }

    /// The moment of a stamp.
    pub(super) fn utc(&mut self, stamp_ns: u64) -> Nanos {
        if self.measured_for.is_none_or(|last| last.abs_diff(stamp_ns) > REFRESH_NS) {
            self.offset_ns = measure(self.clock);
            self.measured_for = Some(stamp_ns);
        }
        Nanos(stamp_ns.cast_signed().saturating_add(self.offset_ns))
    }
}

/// The machine's clock.
pub(super) fn now() -> Nanos {
    Nanos(nanos(clock_gettime(ClockId::Realtime)))
}

/// A stamp clock as it stands now.
fn stamp_now(clock: StampClock) -> i64 {
    match clock {
        StampClock::Monotonic => nanos(clock_gettime(ClockId::Monotonic)),
        // The kernel knows CLOCK_TAI since 3.10; the program that stamps needs 5.18.
        StampClock::Tai => clock_gettime_dynamic(DynamicClockId::Tai).map_or(0, nanos),
    }
}

/// How far UTC is ahead of a stamp clock now, in nanoseconds.
fn measure(clock: StampClock) -> i64 {
    let mut best = (i64::MAX, 0);
    for _ in 0..TRIES {
        let before = now().0;
        let stamp = stamp_now(clock);
        let after = now().0;
        let took = after.saturating_sub(before).saturating_abs();
        let middle = before.saturating_add(after.saturating_sub(before) / 2);
        if took < best.0 {
            best = (took, middle.saturating_sub(stamp));
        }
        if took <= UNDISTURBED_NS {
            break;
        }
    }
    match clock {
        StampClock::Monotonic => best.1,
        // Exactly whole seconds: 0 until a time daemon has told the kernel the leap seconds.
        StampClock::Tai => round_to_second(best.1),
    }
}

fn round_to_second(ns: i64) -> i64 {
    const SECOND: i64 = 1_000_000_000;
    ns.saturating_add(SECOND / 2).div_euclid(SECOND).saturating_mul(SECOND)
}

fn nanos(time: Timespec) -> i64 {
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_of_now_is_now() {
        for clock in [StampClock::Monotonic, StampClock::Tai] {
            let mut time = StampTime::new(clock);
            let before = now();
            let stamp = stamp_now(clock);
            let after = now();
            let utc = time.utc(stamp.cast_unsigned());
            // An interrupted measurement is off by at most the time it took; this only has to
            // tell a wrong clock (hours) or a wrong sign from a right one.
            assert!((utc - before).0.abs() < 1_000_000_000, "{clock:?}: {before} {utc} {after}");
        }
    }

    #[test]
    fn tai_is_whole_seconds_away() {
        assert_eq!(measure(StampClock::Tai) % 1_000_000_000, 0);
        assert_eq!(round_to_second(-37_000_000_060), -37_000_000_000);
        assert_eq!(round_to_second(-36_999_999_940), -37_000_000_000);
        assert_eq!(round_to_second(-40), 0);
        assert_eq!(round_to_second(40), 0);
    }
}
