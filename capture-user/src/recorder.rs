//! One worker's packet record: frames go into the segment being filled, segments come from the
//! keeper and go back to it.

use std::path::PathBuf;
use std::sync::Arc;

use capture_flow::frame::{LinkType, PcapPosition};
use capture_flow::key::FlowHash;
use capture_flow::sink::Mark;
use capture_store::drops::DropReason;
use capture_store::segment::{self, ActiveSegment, PrepareError, SegmentSpec};

use crate::account::RecordCounts;
use crate::keeper::Lane;
use crate::source::{BATCH, SourceFrame};

/// Segments of other link types that a replay keeps open beside the current one.
const OPEN_LINK_TYPES: usize = 8;

/// Where segments come from.
pub enum Supply {
    /// The keeper prepares them ahead; none ready means that frames are dropped under a reason.
    Ahead,
    /// The recorder prepares them itself and takes the time that needs: a replay.
    OnDemand(OnDemand),
}

/// What a recorder needs to prepare segments itself.
pub struct OnDemand {
    /// The worker's directory in the store.
    pub dir: PathBuf,
    /// Sequence number of the next segment.
    pub next_sequence: u64,
    /// What a segment shall be; the link type is the frames'.
    pub spec: SegmentSpec,
}

/// How many frames can be taken next, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// So many frames, at least one if there is any.
    pub frames: usize,
    /// They cannot be recorded, for this reason.
    pub refused: Option<DropReason>,
}

/// Records one worker's frames.
pub struct Recorder {
    worker: u16,
    lane: Arc<Lane>,
    supply: Supply,
    current: Option<ActiveSegment>,
    /// Segments of other link types; always empty when live.
    others: Vec<ActiveSegment>,
    snaplen: usize,
    counts: RecordCounts,
    /// Of the segments that are finished.
    unindexed: u64,
    error: Option<PrepareError>,
}

impl Recorder {
    /// A recorder that has no segment yet.
    #[must_use]
    pub fn new(worker: u16, lane: Arc<Lane>, supply: Supply, snaplen: u32) -> Self {
        Self {
            worker,
            lane,
            supply,
            current: None,
            others: Vec::new(),
            snaplen: snaplen as usize,
            counts: RecordCounts::default(),
            unindexed: 0,
            error: None,
        }
    }

    /// Makes room for the next frames of a batch: changes the segment where it is full or of
    /// another link type. A piece of a batch always lies in one segment, so that its frames can
    /// be noted under their sessions before the segment changes.
    pub fn room(&mut self, frames: &[SourceFrame<'_>]) -> Room {
        let Some(link) = frames.first().map(|frame| frame.link) else {
            return Room { frames: 0, refused: None };
        };
        let (mut alike, mut bytes) = (0, 0);
        for frame in frames.iter().take(BATCH).take_while(|frame| frame.link == link) {
            alike += 1;
            bytes += frame.captured_len();
        }
        // Nearly always there is room for the whole batch.
        if let Some(current) = &mut self.current
            && current.link_type() == link
            && current.fits(alike, bytes)
        {
            return Room { frames: alike, refused: None };
        }
        self.make_room(link, frames, alike)
    }

    #[cold]
    fn make_room(&mut self, link: LinkType, frames: &[SourceFrame<'_>], alike: usize) -> Room {
        if let Some(fitting) = self.fitting(link, frames, alike) {
            return Room { frames: fitting, refused: None };
        }
        if let Err(reason) = self.change_segment(link) {
            return Room { frames: alike, refused: Some(reason) };
        }
        match self.fitting(link, frames, alike) {
            Some(fitting) => Room { frames: fitting, refused: None },
            None => Room { frames: 1, refused: Some(DropReason::TooLarge) },
        }
    }

    /// How many of the first `alike` frames surely fit the current segment; `None` if not one.
    fn fitting(
        &mut self,
        link: LinkType,
        frames: &[SourceFrame<'_>],
        alike: usize,
    ) -> Option<usize> {
        let current = self.current.as_mut().filter(|segment| segment.link_type() == link)?;
        let mut count = alike;
        while count > 0 {
            let bytes = frames.iter().take(count).map(SourceFrame::captured_len).sum();
            if current.fits(count, bytes) {
                return Some(count);
            }
            count /= 2;
        }
        None
    }

    #[cold]
    fn change_segment(&mut self, link: LinkType) -> Result<(), DropReason> {
        if let Some(current) = self.current.take() {
            if current.link_type() == link {
                self.hand_over(current);
            } else {
                self.others.push(current);
            }
        }
        if let Some(known) = self.others.iter().position(|segment| segment.link_type() == link) {
            self.current = Some(self.others.remove(known));
            return Ok(());
        }
        if self.others.len() >= OPEN_LINK_TYPES {
            let oldest = self.others.remove(0);
            self.hand_over(oldest);
        }
        let prepared = match &mut self.supply {
            Supply::Ahead => self.lane.take_ready(),
            Supply::OnDemand(demand) => {
                let spec = SegmentSpec { link_type: link, ..demand.spec };
                match segment::prepare(&demand.dir, demand.next_sequence, &spec) {
                    Ok(prepared) => {
                        demand.next_sequence = demand.next_sequence.saturating_add(1);
                        Ok(prepared)
                    }
                    Err(error) => {
                        let reason = match error {
                            PrepareError::DiskFull { .. } => DropReason::DiskFull,
                            _ => DropReason::SegmentFailed,
                        };
                        self.error = Some(error);
                        Err(reason)
                    }
                }
            }
        };
        self.current = Some(prepared?.activate());
        Ok(())
    }

    /// Records one frame of a piece for which [`Recorder::room`] was asked.
    #[inline]
    pub fn record(
        &mut self,
        frame: &SourceFrame<'_>,
        refused: Option<DropReason>,
    ) -> Option<PcapPosition> {
        let outcome = match (refused, &mut self.current) {
            (None, Some(segment)) => segment
                .append(frame.ts, frame.wire_len, frame.parts)
                .map(|offset| (segment.sequence(), offset))
                .map_err(|_| DropReason::NoSegment),
            (Some(reason), _) => Err(reason),
            (None, None) => Err(DropReason::NoSegment),
        };
        match outcome {
            Ok((segment, offset)) => {
                self.counts.frames += 1;
                self.counts.bytes += frame.captured_len().min(self.snaplen) as u64;
                Some(PcapPosition { worker: self.worker, segment, offset })
            }
            Err(reason) => {
                if let Some(count) = self.counts.dropped.get_mut(reason.index()) {
                    *count += 1;
                }
                None
            }
        }
    }

    /// Notes a recorded frame under its session.
    #[inline]
    pub fn touch(&mut self, at: PcapPosition, flow: FlowHash, mark: &mut Mark) {
        match &mut self.current {
            Some(current) if self.others.is_empty() || current.sequence() == at.segment => {
                current.touch(at, flow, mark);
            }
            _ => self.touch_elsewhere(at, flow, mark),
        }
    }

    /// Notes a frame that is not of the current segment, or while there is none.
    #[cold]
    fn touch_elsewhere(&mut self, at: PcapPosition, flow: FlowHash, mark: &mut Mark) {
        let other = self.others.iter_mut().find(|segment| segment.sequence() == at.segment);
        match other.or(self.current.as_mut()) {
            Some(segment) => segment.touch(at, flow, mark),
            // A fragment of a segment that is sealed already, and no journal to note it in.
            None => self.unindexed = self.unindexed.saturating_add(1),
        }
    }

    /// Lets readers see what was recorded and noted. Once a batch.
    #[inline]
    pub fn publish(&mut self) {
        let mut unindexed = self.unindexed;
        for segment in self.current.iter_mut().chain(&mut self.others) {
            segment.publish();
            unindexed += segment.unnoted();
        }
        self.counts.unindexed = unindexed;
    }

    /// What was counted so far.
    #[must_use]
    pub fn counts(&self) -> &RecordCounts {
        &self.counts
    }

    /// Why the last segment could not be prepared, for a recorder that prepares them itself.
    pub fn take_error(&mut self) -> Option<PrepareError> {
        self.error.take()
    }

    /// Hands every open segment to be sealed.
    pub fn finish(&mut self) {
        for segment in std::mem::take(&mut self.others).into_iter().chain(self.current.take()) {
            self.hand_over(segment);
        }
    }

    fn hand_over(&mut self, segment: ActiveSegment) {
        self.unindexed = self.unindexed.saturating_add(segment.unnoted());
        self.counts.unindexed = self.unindexed;
        self.lane.fill(segment.finish());
    }
}

#[cfg(test)]
mod tests {
    use capture_flow::frame::IfaceId;
    use capture_flow::time::Nanos;

    use super::*;

    fn recorder(dir: &std::path::Path, bytes: u64) -> Recorder {
        let spec = SegmentSpec::new(0, bytes, LinkType::ETHERNET);
        let demand = OnDemand { dir: dir.to_owned(), next_sequence: 1, spec };
        Recorder::new(0, Arc::new(Lane::new(0)), Supply::OnDemand(demand), spec.snaplen)
    }

    fn take(recorder: &mut Recorder, frames: &[SourceFrame<'_>]) -> Vec<Option<PcapPosition>> {
        let mut positions = Vec::new();
        let mut rest = frames;
        while !rest.is_empty() {
            let room = recorder.room(rest);
            let (piece, later) = rest.split_at(room.frames);
            positions.extend(piece.iter().map(|frame| recorder.record(frame, room.refused)));
            rest = later;
        }
        recorder.publish();
        positions
    }

    fn frame<'a>(link: LinkType, parts: &'a [&'a [u8]]) -> SourceFrame<'a> {
        SourceFrame { ts: Nanos(1), wire_len: 2000, link, iface: IfaceId(0), parts }
    }

    #[test]
    fn a_full_segment_is_followed_by_the_next_and_no_frame_is_lost() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut recorder = recorder(dir.path(), SegmentSpec::MIN_BYTES);
        let bytes = [7; 2000];
        let parts: [&[u8]; 1] = [&bytes];
        let frames = [frame(LinkType::ETHERNET, &parts); BATCH];
        let positions = take(&mut recorder, &frames);
        assert!(positions.iter().all(Option::is_some));
        let segments: std::collections::BTreeSet<u64> =
            positions.iter().flatten().map(|at| at.segment).collect();
        // 64 KiB hold 32 records of 2016 bytes.
        assert_eq!(segments.len(), 2);
        assert_eq!(recorder.counts().frames, BATCH as u64);
        assert_eq!(recorder.counts().bytes, 2000 * BATCH as u64);
        recorder.finish();
        assert_eq!(recorder.lane.unsealed(), 2);
    }

    #[test]
    fn link_types_in_turn_share_their_segments() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut recorder = recorder(dir.path(), SegmentSpec::MIN_BYTES);
        let parts: [&[u8]; 2] = [&[1, 2, 3], &[4, 5]];
        let frames: Vec<_> = (0..10)
            .map(|i| {
                let link = if i % 2 == 0 { LinkType::ETHERNET } else { LinkType::RAW };
                frame(link, &parts)
            })
            .collect();
        let positions = take(&mut recorder, &frames);
        let segments: Vec<u64> = positions.iter().flatten().map(|at| at.segment).collect();
        assert_eq!(segments, [1, 2, 1, 2, 1, 2, 1, 2, 1, 2]);
    }

    #[test]
    fn a_frame_that_no_journal_can_note_is_counted() {
        let dir = tempfile::tempdir().expect("a directory");
        let older = PcapPosition { worker: 0, segment: 0, offset: 24 };
        let mut live = Recorder::new(0, Arc::new(Lane::new(0)), Supply::Ahead, 65_535);
        live.touch(older, FlowHash(1), &mut Mark::default());
        live.publish();
        assert_eq!(live.counts().unindexed, 1);

        // A segment that was put aside for another link type is still there to note it.
        let mut recorder = recorder(dir.path(), SegmentSpec::MIN_BYTES);
        let parts: [&[u8]; 1] = [&[1, 2, 3]];
        let positions = take(&mut recorder, &[frame(LinkType::ETHERNET, &parts)]);
        let at = positions[0].expect("recorded");
        if let Supply::OnDemand(demand) = &mut recorder.supply {
            demand.dir = dir.path().join("missing");
        }
        assert_eq!(take(&mut recorder, &[frame(LinkType::RAW, &parts)]), [None]);
        recorder.touch(at, FlowHash(1), &mut Mark::default());
        recorder.publish();
        assert_eq!(recorder.counts().unindexed, 0);
        recorder.finish();
        assert_eq!(recorder.lane.unsealed(), 1);
    }

    #[test]
    fn what_cannot_be_recorded_is_counted_under_its_reason() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut recorder = recorder(dir.path(), SegmentSpec::MIN_BYTES);
        let huge = vec![0; 100_000];
        let parts: [&[u8]; 1] = [&huge];
        let positions = take(&mut recorder, &[frame(LinkType::ETHERNET, &parts)]);
        assert_eq!(positions, [None]);
        assert_eq!(recorder.counts().dropped[DropReason::TooLarge.index()], 1);

        let lane = Arc::new(Lane::new(3));
        let mut live = Recorder::new(3, lane, Supply::Ahead, 65_535);
        let parts: [&[u8]; 1] = [&[1, 2, 3]];
        assert_eq!(take(&mut live, &[frame(LinkType::ETHERNET, &parts); 5]), [None; 5]);
        assert_eq!(live.counts().dropped[DropReason::NoSegment.index()], 5);
    }
}
