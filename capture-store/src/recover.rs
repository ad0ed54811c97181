//! What a new start does about what the last run left open.

use std::io;

use capture_flow::time::Nanos;
use serde::{Deserialize, Serialize};

use crate::store::Store;

/// What was recovered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryReport {
    /// Segments that were open and are sealed now.
    pub segments: u64,
    /// Frames in them.
    pub frames: u64,
    /// Bytes of packets in them, headers included.
    pub bytes: u64,
    /// Bytes that the journals had committed but that are not there: only a power loss or a
    /// damaged disk takes them.
    pub bytes_lost: u64,
    /// Whether the machine was restarted since, so that pages may be missing.
    pub rebooted: bool,
    /// Live tails of the session log that were sealed.
    pub live_files: u64,
    /// Rows in them.
    pub rows: u64,
    /// Bytes behind the last whole batch of rows, which were left out.
    pub torn_bytes: u64,
    /// Files without content that were removed.
    pub removed: u64,
    /// Files that could not be recovered and were left as they are, each with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<String>,
    /// The last sign of life of the run that ended uncleanly: its last frame or row.
    #[serde(with = "crate::time::rfc3339::option", default)]
    pub last_sign: Option<Nanos>,
    /// When the recovery ran: until then no sensor was watching.
    #[serde(with = "crate::time::rfc3339::option", default)]
    pub recovered_at: Option<Nanos>,
}

impl RecoveryReport {
    /// Whether anything had been left open: the last run did not end in order.
    #[must_use]
    pub fn was_unclean(&self) -> bool {
        self.segments > 0 || self.live_files > 0 || !self.left.is_empty()
    }
}

pub(crate) fn recover(_store: &Store) -> io::Result<RecoveryReport> {
    Ok(RecoveryReport::default())
}
