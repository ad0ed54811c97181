//! What a session table counts.

use crate::decode::Undecodable;

/// Counters of one worker's sessions, since its start. Plain numbers: the engine reads them
/// between batches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowStats {
    /// Frames observed: `decoded + undecodable + held`.
    pub frames: u64,
    /// Bytes of those frames on the wire.
    pub frame_bytes: u64,
    /// Frames counted to a session, fragments of completed or given-up datagrams included.
    pub decoded: u64,
    /// Frames that count to no session, by [`Undecodable::index`].
    pub undecodable: [u64; Undecodable::ALL.len()],
    /// Frames that count to a session and carry a tunnel of which something counts to none: it
    /// could not be decoded.
    pub inner_undecodable: u64,
    /// The same because it lies too deep in other tunnels.
    pub inner_too_deep: u64,
    /// Frames held as fragments right now: neither decoded nor undecodable yet.
    pub held: u64,
    /// Datagrams given up incomplete; their frames were counted to a session without ports.
    pub datagrams_incomplete: u64,
    /// Datagrams whose fragments overlapped inconsistently.
    pub datagrams_inconsistent: u64,
    /// Sessions in the table right now.
    pub sessions: u64,
    /// Sessions that the table can hold.
    pub capacity: u64,
    /// Sessions begun.
    pub created: u64,
    /// Sessions written out early because the table was full.
    pub evicted: u64,
    /// Rows handed to the sink, interim rows included.
    pub rows: u64,
    /// Interim rows among them.
    pub interim_rows: u64,
}

impl FlowStats {
    /// Frames that count to no session, whatever the reason.
    #[must_use]
    pub fn undecodable_frames(&self) -> u64 {
        self.undecodable.iter().sum()
    }
}
