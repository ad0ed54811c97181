//! Where a table's results go.

use crate::frame::{Frame, PcapPosition};
use crate::key::FlowHash;
use crate::record::SessionRecord;
pub use crate::tcp::HalfStream;
use crate::time::Nanos;

/// Eight bytes per session that belong to the recorder: it notes there under which number the
/// session is known in the segment being filled. The table keeps them and never looks inside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark(pub u64);

/// Receives what a session table finds out, in frame order.
pub trait Sink {
    /// A recorded frame belongs to this session. Called once per session that counts the frame
    /// (twice where a tunnel's outer and inner session both do); fragments are reported with
    /// the session they were reassembled into. A frame that could not be read, or not to its end,
    /// is reported under [`FlowHash::UNREAD`].
    fn touch(&mut self, at: PcapPosition, flow: FlowHash, mark: &mut Mark);

    /// A frame carries no IP but something else, by its EtherType: for whoever speaks a protocol
    /// of his own. Nobody needs to listen.
    fn without_ip(&mut self, _ether_type: u16, _frame: &Frame<'_>) {}

    /// A session has news: an interim row or its last one.
    fn session(&mut self, update: SessionUpdate);
}

/// Collects the news, and leaves the rest.
impl Sink for Vec<SessionUpdate> {
    fn touch(&mut self, _at: PcapPosition, _flow: FlowHash, _mark: &mut Mark) {}

    fn session(&mut self, update: SessionUpdate) {
        self.push(update);
    }
}

/// A row on its way from a worker to the flush thread, with what joining needs.
#[derive(Clone, Debug)]
pub struct SessionUpdate {
    /// The row as this worker sees the session.
    pub record: SessionRecord,
    /// The hash of the session's key, under which halves seen by two workers find each other.
    pub flow: FlowHash,
    /// Zeek's start of the session; the row's `ts` may be an earlier fragment's.
    pub start: Nanos,
    /// Zeek's last_time: `start` plus the duration.
    pub last_time: Nanos,
    /// When it is over unless another frame comes before.
    pub due: Nanos,
    /// Payload bytes of originator and responder, also where the row leaves them unset.
    pub bytes: [u64; 2],
    /// When the letters of the history were written.
    pub letter_times: LetterTimes,
    /// TCP of which one end alone was heard, where another worker may hear the other one.
    pub half: Option<Box<HalfStream>>,
}

/// When the first letters of a history were written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LetterTimes {
    times: [Nanos; Self::CAPACITY],
}

impl LetterTimes {
    /// Letters whose time is kept; later ones count as written with the last of them. Half a
    /// session has its control letters among these unless it resends a lot.
    pub const CAPACITY: usize = 12;

    /// Notes when the letter at a place was written.
    pub(crate) fn note(&mut self, place: usize, at: Nanos) {
        if let Some(time) = self.times.get_mut(place.min(Self::CAPACITY - 1)) {
            *time = at;
        }
    }

    /// When the letter at a place was written.
    #[must_use]
    pub fn get(&self, place: usize) -> Nanos {
        self.times[place.min(Self::CAPACITY - 1)]
    }
}
