//! What the clocks tell: how long it has been silent, and whether somebody has set the time.

use std::time::{Duration, Instant};

use capture_flow::time::{Nanos, NanosDelta};
use capture_store::ledger::Silence;

/// The silence that is going on, and the longest one since the last line.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Quiet {
    last_frame: Option<Nanos>,
    pub(super) longest: Option<Silence>,
}

impl Quiet {
    /// `latest` is the newest frame known, `now` the clock. A silence that ended between two
    /// looks is taken to have lasted until the newest frame: rather too long than too short.
    pub(super) fn look(&mut self, latest: Option<Nanos>, now: Nanos) {
        if let Some(from) = self.last_frame {
            let to = match latest {
                Some(latest) if latest > from => latest,
                _ => now.max(from),
            };
            if self.longest.is_none_or(|longest| to - from > longest.to - longest.from) {
                self.longest = Some(Silence { from, to });
            }
        }
        self.last_frame = self.last_frame.max(latest);
    }
}

/// The wall clock against the monotonic one, at the last line.
#[derive(Clone, Copy, Debug)]
pub(super) struct WallClock {
    wall: Nanos,
    at: Instant,
}

impl WallClock {
    pub(super) fn read() -> Self {
        Self { wall: crate::live::clock(), at: Instant::now() }
    }

    /// How far the wall clock was stepped since; slewing does not count.
    pub(super) fn stepped_ns(&self) -> i64 {
        step(crate::live::clock() - self.wall, self.at.elapsed())
    }
}

/// How much of the distance between two clocks no slewing explains: the kernel slews by at most
/// 500 millionths (`MAXFREQ`), and ten milliseconds may pass between reading one clock and the
/// other.
fn step(wall: NanosDelta, passed: Duration) -> i64 {
    let passed = i64::try_from(passed.as_nanos()).unwrap_or(i64::MAX);
    let moved = wall.0.saturating_sub(passed);
    let slewed = (passed / 2_000).saturating_add(10_000_000);
    if moved.saturating_abs() > slewed { moved } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_told_from_a_slew() {
        let second = Duration::from_secs(1);
        assert_eq!(step(NanosDelta::from_secs(1), second), 0);
        assert_eq!(step(NanosDelta(1_000_400_000), second), 0);
        assert_eq!(step(NanosDelta::from_secs(3), second), 2_000_000_000);
        assert_eq!(step(NanosDelta::from_secs(-3599), second), -3_600_000_000_000);
    }

    #[test]
    fn the_longest_silence_is_kept_and_the_running_one_grows() {
        let mut quiet = Quiet::default();
        quiet.look(None, Nanos(5));
        assert_eq!(quiet.longest, None);
        quiet.look(Some(Nanos(10)), Nanos(12));
        quiet.look(Some(Nanos(10)), Nanos(40));
        assert_eq!(quiet.longest, Some(Silence { from: Nanos(10), to: Nanos(40) }));
        quiet.look(Some(Nanos(45)), Nanos(46));
        quiet.look(Some(Nanos(50)), Nanos(51));
        assert_eq!(quiet.longest, Some(Silence { from: Nanos(10), to: Nanos(45) }));
    }
}
