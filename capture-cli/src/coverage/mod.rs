//! What the ledger says about a window: covered, lossy, or blind.

mod rules;
mod show;

use std::collections::BTreeMap;

use capture_flow::time::Nanos;
use capture_store::ledger::{Damage, LedgerLine};
use serde::Serialize;

pub use show::{write_json, write_text};

use crate::times::Window;

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
}

/// Why a part of a window is not covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// No sensor ran.
    NoSensor,
    /// The sensor was killed or the machine failed, and what it still held in memory is gone.
    UncleanEnd,
    /// The log is not complete through it yet; asking again later can tell.
    NotYet,
    /// The ledger has no line for it although the run went on.
    LineMissing,
    /// A line of the ledger cannot be read.
    LedgerDamaged,
    /// A link was down.
    LinkDown,
    /// Frames were lost between the program and its socket.
    RingLoss,
    /// Frames were lost in the NIC.
    NicLoss,
    /// A queue had no socket.
    NoSocket,
    /// The XDP program failed on frames.
    XdpAborted,
    /// Rows of sessions were lost.
    RowsLost,
    /// Packets were counted but could not be kept.
    PacketsNotWritten,
    /// The accounts do not balance.
    Unaccounted,
    /// The wall clock stepped.
    ClockStepped,
    /// A replayed capture ends in the middle of a frame.
    CaptureCut,
    /// The session log was removed to keep its budget.
    SessionsRetired,
}

impl Reason {
    /// The name in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoSensor => "no_sensor",
            Self::UncleanEnd => "unclean_end",
            Self::NotYet => "not_yet",
            Self::LineMissing => "line_missing",
            Self::LedgerDamaged => "ledger_damaged",
            Self::LinkDown => "link_down",
            Self::RingLoss => "ring_loss",
            Self::NicLoss => "nic_loss",
            Self::NoSocket => "no_socket",
            Self::XdpAborted => "xdp_aborted",
            Self::RowsLost => "rows_lost",
            Self::PacketsNotWritten => "packets_not_written",
            Self::Unaccounted => "unaccounted",
            Self::ClockStepped => "clock_stepped",
            Self::CaptureCut => "capture_cut",
            Self::SessionsRetired => "sessions_retired",
        }
    }

    /// For people.
    #[must_use]
    pub const fn explain(self) -> &'static str {
        match self {
            Self::NoSensor => "no sensor ran",
            Self::UncleanEnd => "the sensor ended uncleanly",
            Self::NotYet => "the log is not complete through this yet",
            Self::LineMissing => "the ledger has no line for this",
            Self::LedgerDamaged => "the ledger is damaged here",
            Self::LinkDown => "the link was down",
            Self::RingLoss => "frames were lost before the sensor took them",
            Self::NicLoss => "frames were lost in the NIC",
            Self::NoSocket => "a queue had no socket",
            Self::XdpAborted => "the XDP program failed on frames",
            Self::RowsLost => "session rows were lost",
            Self::PacketsNotWritten => "packets were counted but not kept",
            Self::Unaccounted => "the accounts do not balance",
            Self::ClockStepped => "the wall clock stepped",
            Self::CaptureCut => "the replayed capture is cut off",
            Self::SessionsRetired => "the session log was retired by its budget",
        }
    }

    /// Whether nothing at all is known of the time, as against something missing from it.
    #[must_use]
    pub const fn is_blind(self) -> bool {
        matches!(
            self,
            Self::NoSensor
                | Self::UncleanEnd
                | Self::NotYet
                | Self::LineMissing
                | Self::LedgerDamaged
                | Self::LinkDown
                | Self::SessionsRetired
        )
    }
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
    /// What a sensor's ledger lines say about a window. `lines` must reach from the window's
    /// begin to the ledger's end, since what is written later (a recovery, a retirement) tells
    /// about times before.
    #[must_use]
    pub fn of(
        sensor: &str,
        lines: &[LedgerLine],
        damage: &[Damage],
        window: Window,
        now: Nanos,
    ) -> Self {
        rules::coverage(sensor, lines, damage, window, now)
    }

    /// Nanoseconds of the window that no gap touches, and of the whole window.
    #[must_use]
    pub fn covered(&self) -> (u64, u64) {
        covered(self.window, std::iter::once(self))
    }

    /// Frames lost in all gaps.
    #[must_use]
    pub fn frames_lost(&self) -> u64 {
        self.gaps.iter().fold(0, |sum, gap| sum.saturating_add(gap.frames_lost))
    }
}

/// Nanoseconds of a window that no gap of any sensor touches, and of the window.
fn covered<'a>(
    window: Option<(Nanos, Nanos)>,
    sensors: impl Iterator<Item = &'a Coverage>,
) -> (u64, u64) {
    let Some((from, to)) = window else { return (0, 0) };
    let whole = length(from, to);
    let mut spans: Vec<_> =
        sensors.flat_map(|s| &s.gaps).map(|gap| (gap.from.max(from), gap.to.min(to))).collect();
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
