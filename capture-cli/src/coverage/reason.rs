//! Why a part of a window is not covered.

use capture_store::ledger::BlindCause;
use serde::Serialize;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $name:ident = $text:literal, $explain:literal;)*) => {
        /// Why a part of a window is not covered.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Reason {
            $($(#[doc = $doc])* $name,)*
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The name in JSON.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// For people, as a sentence without its end.
            #[must_use]
            pub const fn explain(self) -> &'static str {
                match self { $(Self::$name => $explain,)* }
            }
        }
    };
}

reasons! {
    /// No sensor ran.
    NoSensor = "no_sensor", "no sensor ran";
    /// The sensor was killed, and what it still held in memory is gone.
    UncleanEnd = "unclean_end", "the sensor ended uncleanly";
    /// The same, and another start of the machine's kernel wrote the next line.
    MachineRestarted = "machine_restarted",
        "the sensor ended uncleanly and the machine was restarted";
    /// The log is not complete through it yet; asking again later can tell.
    NotYet = "not_yet", "the log is not complete through this yet";
    /// The ledger has no line for it although the run went on.
    LineMissing = "line_missing", "the ledger has no line for this";
    /// A line of the ledger cannot be read.
    LedgerDamaged = "ledger_damaged", "the ledger is damaged here";
    /// A line of the ledger is not the one that its successor was written after, or its
    /// signature is wrong.
    ChainBroken = "chain_broken", "the ledger was changed after it was written";
    /// A link was down.
    LinkDown = "link_down", "the link was down";
    /// An interface was removed.
    InterfaceGone = "interface_gone", "the interface was removed";
    /// The XDP program was taken off an interface.
    XdpRemoved = "xdp_removed", "the XDP program had been removed";
    /// Somebody else's XDP program was on an interface.
    XdpReplaced = "xdp_replaced", "another XDP program was on the interface";
    /// A receive queue that no socket serves.
    QueueUnserved = "queue_unserved", "a receive queue was not served";
    /// A socket failed.
    SourceFailed = "source_failed", "a socket of the sensor failed";
    /// A worker, or the whole process, did not run.
    WorkerStalled = "worker_stalled", "the sensor stood still";
    /// A worker ended.
    WorkerEnded = "worker_ended", "a worker of the sensor had ended";
    /// No frame and no canary for longer than the silence limit.
    Silent = "silent", "the wire was silent, which a dead tap is as well";
    /// Segments could not be written or sealed.
    SegmentsUnwritable = "segments_unwritable", "packet segments could not be written";
    /// The session log could not be written.
    LogBehind = "log_behind", "the session log could not be written";
    /// A simulation.
    Simulated = "simulated", "it was a simulation, which says nothing of any wire";
    /// Frames were lost between the program and its socket.
    RingLoss = "ring_loss", "frames were lost before the sensor took them";
    /// Frames were lost in the NIC.
    NicLoss = "nic_loss", "frames were lost in the NIC";
    /// A queue had no socket.
    NoSocket = "no_socket", "a queue had no socket";
    /// The XDP program failed on frames.
    XdpAborted = "xdp_aborted", "the XDP program failed on frames";
    /// Frames that a pass rule left to the host.
    ExcludedByPolicy = "excluded_by_policy", "frames were excluded by policy";
    /// Sessions were written out early because the table was full.
    TableOverflow = "table_overflow", "the session table overflowed";
    /// Rows of sessions were lost.
    RowsLost = "rows_lost", "session rows were lost";
    /// Packets were counted but could not be kept.
    PacketsNotWritten = "packets_not_written", "packets were counted but not kept";
    /// A segment with frames that the answer rests on is not what the ledger says it was.
    PacketsChanged = "packets_changed", "recorded packets were changed";
    /// The accounts do not balance.
    Unaccounted = "unaccounted", "the accounts do not balance";
    /// The wall clock stepped.
    ClockStepped = "clock_stepped", "the wall clock stepped";
    /// A replayed capture ends in the middle of a frame.
    CaptureCut = "capture_cut", "the replayed capture is cut off";
    /// The session log was removed to keep its budget.
    SessionsRetired = "sessions_retired", "the session log was retired by its budget";
    /// A file of the session log that the ledger names is not there.
    SessionsMissing = "sessions_missing", "a file of the session log is missing";
    /// A file of the session log is not what the ledger says it was.
    SessionsChanged = "sessions_changed", "a file of the session log was changed";
    /// A file of the session log cannot be read.
    SessionsUnreadable = "sessions_unreadable", "a file of the session log cannot be read";
}

impl Reason {
    /// Whether nothing at all is known of the time, as against something missing from it.
    #[must_use]
    pub const fn is_blind(self) -> bool {
        !matches!(
            self,
            Self::SegmentsUnwritable
                | Self::RingLoss
                | Self::NicLoss
                | Self::NoSocket
                | Self::XdpAborted
                | Self::ExcludedByPolicy
                | Self::TableOverflow
                | Self::RowsLost
                | Self::PacketsNotWritten
                | Self::PacketsChanged
                | Self::Unaccounted
                | Self::ClockStepped
                | Self::CaptureCut
        )
    }
}

impl From<BlindCause> for Reason {
    fn from(cause: BlindCause) -> Self {
        match cause {
            BlindCause::LinkDown => Self::LinkDown,
            BlindCause::InterfaceGone => Self::InterfaceGone,
            BlindCause::XdpRemoved => Self::XdpRemoved,
            BlindCause::XdpReplaced => Self::XdpReplaced,
            BlindCause::QueueUnserved => Self::QueueUnserved,
            BlindCause::SourceFailed => Self::SourceFailed,
            BlindCause::WorkerStalled => Self::WorkerStalled,
            BlindCause::WorkerEnded => Self::WorkerEnded,
            BlindCause::Silent => Self::Silent,
            BlindCause::SegmentsUnwritable => Self::SegmentsUnwritable,
            BlindCause::LogBehind => Self::LogBehind,
            BlindCause::Simulated => Self::Simulated,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_keeps_its_name() {
        for cause in BlindCause::ALL {
            assert_eq!(Reason::from(cause).as_str(), cause.as_str());
        }
    }

    #[test]
    fn names_agree_with_serde_and_differ() {
        let names: std::collections::BTreeSet<_> =
            Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        for reason in Reason::ALL {
            assert_eq!(serde_json::to_value(reason).expect("JSON"), reason.as_str());
        }
    }
}
