//! Where a table's results go.

use crate::frame::PcapPosition;
use crate::key::FlowHash;
use crate::record::SessionRecord;

/// Eight bytes per session that belong to the recorder: it notes there under which number the
/// session is known in the segment being filled. The table keeps them and never looks inside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark(pub u64);

/// Receives what a session table finds out, in frame order.
pub trait Sink {
    /// A recorded frame belongs to this session. Called once per session that counts the frame
    /// (twice where a tunnel's outer and inner session both do); fragments are reported with
    /// the session they were reassembled into.
    fn touch(&mut self, at: PcapPosition, flow: FlowHash, mark: &mut Mark);

    /// A session has news: an interim row or its last one.
    fn session(&mut self, update: SessionUpdate);
}

/// A row on its way from a worker to the flush thread, with what joining needs.
#[derive(Clone, Debug)]
pub struct SessionUpdate {
    /// The row as this worker sees the session.
    pub record: SessionRecord,
    /// The hash of the session's key, under which halves seen by two workers find each other.
    pub flow: FlowHash,
}
