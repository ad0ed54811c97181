//! Why a frame or a row was lost: one list for the counters, the ledger and the messages.

use serde::{Deserialize, Serialize};

/// Why a received frame is in no segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DropReason {
    /// The segment was full and the next one was not ready yet: the disk is too slow.
    NoSegment,
    /// The disk was full, so no segment could be prepared.
    DiskFull,
    /// A segment could not be prepared for another reason (permission, I/O error).
    SegmentFailed,
    /// The frame is larger than a whole segment.
    TooLarge,
    /// The frame's buffers did not make a whole frame (descriptors out of range, missing end).
    Broken,
}

impl DropReason {
    /// Every reason, in the order of [`DropReason::index`].
    pub const ALL: [Self; 5] =
        [Self::NoSegment, Self::DiskFull, Self::SegmentFailed, Self::TooLarge, Self::Broken];

    /// Position in an array of counters with one place for each reason.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The name in the ledger.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoSegment => "no_segment",
            Self::DiskFull => "disk_full",
            Self::SegmentFailed => "segment_failed",
            Self::TooLarge => "too_large",
            Self::Broken => "broken",
        }
    }

    /// What an operator is told.
    #[must_use]
    pub const fn explain(self) -> &'static str {
        match self {
            Self::NoSegment => "no segment was ready in time; the disk is slower than the link",
            Self::DiskFull => "the disk is full; lower the packet budget or free space",
            Self::SegmentFailed => "a segment could not be prepared; see the log for the cause",
            Self::TooLarge => "the frame is larger than a segment",
            Self::Broken => "the frame's buffers did not make a whole frame",
        }
    }
}

/// Why a session row did not reach the session log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowLossReason {
    /// The hand-off from the worker to the flush thread was full.
    HandOffFull,
    /// The session log could not be written for so long that its buffer was full.
    LogUnwritable,
}

impl RowLossReason {
    /// Every reason, in the order of [`RowLossReason::index`].
    pub const ALL: [Self; 2] = [Self::HandOffFull, Self::LogUnwritable];

    /// Position in an array of counters with one place for each reason.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The name in the ledger.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HandOffFull => "hand_off_full",
            Self::LogUnwritable => "log_unwritable",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_positions_agree_with_serde() {
        for (position, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), position);
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
        for (position, reason) in RowLossReason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), position);
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
    }
}
