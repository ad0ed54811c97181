//! What a simulation has found out, and which part was the limit.

use std::fmt;
use std::time::Duration;

use capture_store::DropReason;

use super::Simulation;
use crate::account::WorkerCounts;
use crate::units::{Bytes, Grouped, Rate};

/// From here on a worker had no time left: what it misses of all is the kernel's and its own
/// coming and going.
const BUSY: f64 = 0.9;

/// What a simulation has counted.
#[derive(Clone, Debug)]
pub struct Summary {
    /// What was simulated.
    pub simulation: Simulation,
    /// From the first moment to the last at which frames came.
    pub lasted: Duration,
    /// From there until everything was written and sealed.
    pub settled: Duration,
    /// Frames lost in front of the workers.
    pub ring_losses: u64,
    /// Session rows lost.
    pub rows_lost: u64,
    /// What each worker counted, and the processor time that it took.
    pub workers: Vec<(WorkerCounts, Duration)>,
}

impl Summary {
    fn sum(&self, of: impl Fn(&WorkerCounts) -> u64) -> u64 {
        self.workers.iter().fold(0, |sum, (counts, _)| sum.saturating_add(of(counts)))
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.sum(|counts| counts.dropped.get(reason.index()).copied().unwrap_or(0))
    }

    /// The share of the time that the busiest worker had its core.
    fn busiest(&self) -> f64 {
        let lasted = self.lasted.as_secs_f64().max(1e-9);
        self.workers.iter().map(|(_, took)| took.as_secs_f64() / lasted).fold(0.0, f64::max)
    }

    /// Which part was the limit, and what that means, in words.
    #[must_use]
    pub fn bottleneck(&self) -> String {
        let busy = format!("{:.0} %", self.busiest().min(1.0) * 100.0);
        let failing = [DropReason::DiskFull, DropReason::SegmentFailed];
        let failed = failing.into_iter().fold(0, |sum, reason| sum + self.dropped(reason));
        let late = self.dropped(DropReason::NoSegment);
        let flood = self.simulation.capture.is_some_and(|made| made.per_second.is_none());
        if failed > 0 {
            "the disk is full or fails: no segment could be made (see above)".to_owned()
        } else if late > 0 && self.simulation.disk {
            "the cores: the thread that hands out segments did not run in time, although there was \
             no disk to wait for"
                .to_owned()
        } else if late > 0 {
            "the disk: no segment was ready in time. It takes what was recorded, not more"
                .to_owned()
        } else if self.rows_lost > 0 {
            "the session log: rows came faster than they were written".to_owned()
        } else if self.ring_losses > 0 && self.busiest() >= BUSY {
            format!(
                "the workers: the busiest had its core for {busy} of the time. More queues and \
                 cores, or fewer sessions, would help; a disk would not"
            )
        } else if self.ring_losses > 0 {
            format!(
                "the way to the workers: frames were lost in front of them although the busiest \
                 had its core for only {busy} of the time. Larger rings (--ring-size), or cores \
                 that the kernel's side and others leave alone, would help"
            )
        } else if flood && self.simulation.disk {
            "the workers: so much do sessions and copying alone take".to_owned()
        } else if flood {
            "the workers: the disk took all that they made".to_owned()
        } else {
            format!(
                "none: everything that came was taken, and the busiest worker had its core for \
                 {busy} of the time"
            )
        }
    }
}

/// Frames, their share of all, and what they are in a second.
fn frames(f: &mut fmt::Formatter<'_>, name: &str, count: u64, seconds: f64) -> fmt::Result {
    let rate = Rate(count as f64 / seconds).to_string();
    writeln!(f, "  {name:<10} {:>16} frames  {rate}pps", Grouped(count))
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.lasted.as_secs_f64().max(1e-9);
        let received = self.sum(|counts| counts.received);
        let recorded = self.sum(|counts| counts.recorded);
        let bits = |bytes: u64| Rate(bytes as f64 * 8.0 / seconds).to_string();
        writeln!(f, "SIMULATED ({}), {seconds:.1} s:", self.simulation)?;
        frames(f, "offered", received.saturating_add(self.ring_losses), seconds)?;
        frames(f, "received", received, seconds)?;
        writeln!(f, "  {:<10} {}bit/s", "", bits(self.sum(|counts| counts.wire_bytes)))?;
        frames(f, "recorded", recorded, seconds)?;
        let bytes = self.sum(|counts| counts.recorded_bytes);
        let place = if self.simulation.disk {
            "in memory, and forgotten".to_owned()
        } else {
            let all = seconds + self.settled.as_secs_f64();
            let rate = Bytes((bytes as f64 / all) as u64);
            format!("{rate}/s until it was sealed, {:.1} s later", self.settled.as_secs_f64())
        };
        writeln!(f, "  {:<10} {}bit/s, {} {place}", "", bits(bytes), Bytes(bytes))?;
        let mut lost = vec![("before the worker".to_owned(), self.ring_losses)];
        let reasons = DropReason::ALL.iter();
        lost.extend(reasons.map(|reason| (reason.as_str().to_owned(), self.dropped(*reason))));
        lost.push(("session rows".to_owned(), self.rows_lost));
        lost.retain(|(_, count)| *count > 0);
        let lost: Vec<_> =
            lost.iter().map(|(why, count)| format!("{} {why}", Grouped(*count))).collect();
        let lost = if lost.is_empty() { "nothing".to_owned() } else { lost.join(", ") };
        writeln!(f, "  {:<10} {lost}", "lost")?;
        for (number, (counts, took)) in self.workers.iter().enumerate() {
            let each = took.as_nanos() as f64 / counts.received.max(1) as f64;
            let share = took.as_secs_f64() / seconds * 100.0;
            writeln!(
                f,
                "  {:<10} {share:.0} % of its core, {each:.0} ns a frame",
                format!("worker {number}")
            )?;
        }
        write!(f, "  {:<10} {}", "bottleneck", self.bottleneck())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::MadeFrames;

    fn summary(disk: bool, capture: Option<Option<u64>>, busy: f64) -> Summary {
        let made = |per_second| MadeFrames { frame_bytes: 100, sessions: 1, per_second };
        let counts = WorkerCounts {
            received: 20_000_000,
            wire_bytes: 2_000_000_000,
            recorded: 20_000_000,
            recorded_bytes: 2_000_000_000,
            ..WorkerCounts::default()
        };
        Summary {
            simulation: Simulation { disk, capture: capture.map(made) },
            lasted: Duration::from_secs(10),
            settled: Duration::from_secs(2),
            ring_losses: 0,
            rows_lost: 0,
            workers: vec![(counts, Duration::from_secs_f64(10.0 * busy))],
        }
    }

    fn drop_some(mut summary: Summary, reason: DropReason) -> Summary {
        summary.workers[0].0.dropped[reason.index()] = 3;
        summary
    }

    #[test]
    fn the_part_that_loses_frames_is_the_bottleneck() {
        let begins = |summary: &Summary, words: &str| {
            let said = summary.bottleneck();
            assert!(said.starts_with(words), "{said}");
        };
        let late = DropReason::NoSegment;
        begins(&drop_some(summary(false, Some(None), 1.0), late), "the disk: ");
        begins(&drop_some(summary(true, None, 0.5), late), "the cores: ");
        let full = drop_some(summary(false, Some(None), 1.0), late);
        begins(&drop_some(full, DropReason::DiskFull), "the disk is full");
        let lossy = |busy| Summary { ring_losses: 5, ..summary(true, None, busy) };
        begins(&lossy(0.97), "the workers: ");
        begins(&lossy(0.4), "the way to the workers: ");
        begins(&Summary { rows_lost: 1, ..summary(false, Some(None), 1.0) }, "the session log");
        begins(&summary(false, Some(None), 1.0), "the workers: the disk took all");
        begins(&summary(true, Some(None), 1.0), "the workers: so much");
        begins(&summary(true, None, 0.4), "none: ");
        begins(&summary(false, Some(Some(10)), 0.4), "none: ");
    }

    #[test]
    fn it_says_all_that_there_is_to_know() {
        let summary = drop_some(summary(false, Some(None), 0.5), DropReason::NoSegment);
        let text = Summary { ring_losses: 7, ..summary }.to_string();
        let expected = "\
SIMULATED (no capture: the sensor made the frames itself), 10.0 s:
  offered          20,000,007 frames  2.00 Mpps
  received         20,000,000 frames  2.00 Mpps
             1.60 Gbit/s
  recorded         20,000,000 frames  2.00 Mpps
             1.60 Gbit/s, 1.86 GiB 159 MiB/s until it was sealed, 2.0 s later
  lost       7 before the worker, 3 no_segment
  worker 0   50 % of its core, 250 ns a frame
  bottleneck the disk: no segment was ready in time. It takes what was recorded, not more";
        assert_eq!(text, expected);
    }
}
