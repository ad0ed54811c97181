//! What the ledger says about a window: covered, lossy, or blind.

mod reason;
mod rings;
mod rules;
mod show;

use std::collections::BTreeMap;

use capture_flow::time::Nanos;
use capture_store::Store;
use capture_store::ledger::{Chain, FileProblem, FilesCheck, LedgerRead};
use serde::Serialize;

pub use reason::Reason;
pub use show::{gap_json, write_json, write_short, write_text};

use crate::times::Window;

/// The moment of a question to a store.
#[derive(Clone, Copy, Debug)]
pub struct AskedAt {
    /// The wall clock.
    pub now: Nanos,
    /// Whether a sensor writes to the store; `None` where that cannot be told.
    pub is_written: Option<bool>,
}

impl AskedAt {
    /// Asks a store now. To be taken before its ledger is read: a sensor that ends in between has
    /// written its last line then.
    #[must_use]
    pub fn of(store: &Store, now: Nanos) -> Self {
        Self { now, is_written: store.is_being_written().ok() }
    }
}

/// A part of a window that is not covered, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Its first moment.
    pub from: Nanos,
    /// Its last moment.
    pub to: Nanos,
    /// Why.
    pub reason: Reason,
    /// Frames known to be lost in it; 0 where nobody can know.
    pub frames_lost: u64,
    /// What exactly: an interface, a number, a file.
    pub detail: String,
    /// Whose wire.
    pub sensor: String,
    /// Whether it concerns the packets alone: the sessions of the time are complete.
    pub packets_only: bool,
}

/// Frames of one queue, or of one replayed file, over the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Frames that reached the XDP program, or were read from the file.
    pub seen: u64,
    /// Frames that a worker took.
    pub received: u64,
    /// Frames passed to the host by rule.
    pub passed: u64,
    /// Frames lost.
    pub lost: u64,
}

/// Frames of all workers over the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// Frames that count to a session.
    pub decoded: u64,
    /// Frames that count to none.
    pub undecodable: u64,
    /// Frames in segments.
    pub written: u64,
    /// Frames in no segment.
    pub dropped: u64,
    /// Session rows written.
    pub rows: u64,
}

/// One sensor's ledger over a window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// The sensor.
    pub sensor: String,
    /// The window that was looked at, first and last moment; `None` where neither the question
    /// nor the ledger gives one.
    pub window: Option<(Nanos, Nanos)>,
    /// What is not covered, by time. Gaps may overlap.
    pub gaps: Vec<Gap>,
    /// Lines in the window.
    pub lines: u64,
    /// By interface and queue, or by file.
    pub totals: BTreeMap<(String, Option<u32>), Totals>,
    /// All workers.
    pub kept: Kept,
    /// Every session with a frame before this has a row.
    pub complete_through: Option<Nanos>,
    /// Packets up to here were removed to keep the budget.
    pub packets_retired_through: Option<Nanos>,
}

impl Coverage {
    /// What a sensor's ledger says about a window. `read` must reach from the window's begin to
    /// the ledger's end, since what is written later (a recovery, a retirement) tells about times
    /// before.
    #[must_use]
    pub fn of(sensor: &str, read: &LedgerRead, window: Window, at: AskedAt) -> Self {
        rules::coverage(sensor, read, window, at)
    }

    /// Adds a gap, cut to the window; one outside is dropped.
    pub fn add(&mut self, span: (Nanos, Nanos), reason: Reason, detail: String) {
        let Some(window) = self.window else { return };
        let (from, to) = (span.0.max(window.0), span.1.min(window.1));
        if from > to {
            return;
        }
        let sensor = self.sensor.clone();
        let (frames_lost, packets_only) = (0, false);
        self.gaps.push(Gap { from, to, reason, frames_lost, detail, sensor, packets_only });
        self.gaps.sort_by_key(|gap| (gap.from, gap.to, gap.reason));
    }

    /// Leaves all of the window open if the chain of a ledger that was read does not hold. What is
    /// written later tells about times before (a recovery, a retirement, a file that was altered),
    /// and what was written before names the files that must be there: no line can be missed.
    pub fn add_chain(&mut self, chain: &Chain) {
        /// Breaks that are told one by one.
        const TOLD: usize = 16;
        let Some(window) = self.window else { return };
        for broken in chain.breaks.iter().take(TOLD) {
            let detail = format!("{}: {}", broken.place, broken.why);
            self.add(window, Reason::ChainBroken, detail);
        }
        let more = chain.breaks.len().saturating_sub(TOLD) as u64;
        let more = more.saturating_add(chain.more_breaks);
        if more > 0 {
            self.add(window, Reason::ChainBroken, format!("{more} more"));
        }
    }

    /// Adds the times of sessions whose files are not what the ledger says. A file of another time
    /// may have told of a session that was open in the window without a frame.
    pub fn add_files(&mut self, check: &FilesCheck) {
        let Some(window) = self.window else { return };
        for finding in &check.findings {
            let reason = match finding.problem {
                FileProblem::Missing => Reason::SessionsMissing,
                FileProblem::Unreadable(_) => Reason::SessionsUnreadable,
                _ => Reason::SessionsChanged,
            };
            let detail = format!("{}: {}", finding.path, finding.problem);
            let inside = finding.from <= window.1 && finding.to >= window.0;
            self.add(if inside { (finding.from, finding.to) } else { window }, reason, detail);
        }
    }

    /// Nanoseconds of the window that no gap touches, and of the whole window.
    #[must_use]
    pub fn covered(&self) -> (u64, u64) {
        covered(self.window, self.gaps.iter())
    }

    /// Frames lost in all gaps.
    #[must_use]
    pub fn frames_lost(&self) -> u64 {
        self.gaps.iter().fold(0, |sum, gap| sum.saturating_add(gap.frames_lost))
    }
}

/// Nanoseconds of a window that no gap touches, and of the window.
pub(crate) fn covered<'a>(
    window: Option<(Nanos, Nanos)>,
    gaps: impl Iterator<Item = &'a Gap>,
) -> (u64, u64) {
    let Some((from, to)) = window else { return (0, 0) };
    let whole = length(from, to);
    let mut spans: Vec<_> = gaps.map(|gap| (gap.from.max(from), gap.to.min(to))).collect();
    spans.sort_unstable();
    let (mut open, mut reached) = (0u64, from);
    for (start, end) in spans {
        let start = start.max(reached);
        if end > start {
            open = open.saturating_add(length(start, end));
            reached = end;
        }
    }
    (whole.saturating_sub(open), whole)
}

fn length(from: Nanos, to: Nanos) -> u64 {
    u64::try_from(to.0.saturating_sub(from.0)).unwrap_or(0)
}
