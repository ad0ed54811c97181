//! Notes in the journal, as the session table has them made.

use capture_flow::key::FlowHash;
use capture_flow::sink::Mark;
use capture_store::drops::DropReason;
use capture_user::recorder::Recorder;
use capture_user::source::{BATCH, SourceFrame};

/// Sessions to which frames belong in turn.
pub(super) struct Noting {
    sessions: Vec<(FlowHash, Mark)>,
    next: usize,
}

impl Noting {
    /// So many sessions, at least one.
    pub(super) fn new(sessions: usize) -> Self {
        let hash = |n: u64| FlowHash((n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let sessions = (0..sessions.max(1) as u64).map(|n| (hash(n), Mark::default())).collect();
        Self { sessions, next: 0 }
    }

    /// Records a piece of a batch, then notes it: in the order of a worker.
    #[inline]
    pub(super) fn record(
        &mut self,
        recorder: &mut Recorder,
        piece: &[SourceFrame<'_>],
        refused: Option<DropReason>,
    ) {
        let mut places = [None; BATCH];
        for (place, frame) in places.iter_mut().zip(piece) {
            *place = recorder.record(frame, refused);
        }
        for place in places.into_iter().flatten() {
            if let Some((flow, mark)) = self.sessions.get_mut(self.next) {
                recorder.touch(place, *flow, mark);
            }
            self.next += 1;
            if self.next >= self.sessions.len() {
                self.next = 0;
            }
        }
    }
}
