//! Which bytes of a stream were seen: gaps, without keeping the bytes (TCP_Reassembler).

use super::endpoint::{Rare, Relative};
use super::half::HalfStream;
use super::{Effect, EndState, Endpoint, Notes, ORIG, Tcp};

/// Data sent before any acknowledgement, beyond which Zeek no longer waits for one
/// (`tcp_max_initial_window`).
const MAX_INITIAL_WINDOW: u64 = 16_384;
/// Data beyond a hole while nothing was acknowledged, beyond which Zeek gives the stream up
/// (`tcp_max_above_hole_without_any_acks`).
const MAX_ABOVE_HOLE_WITHOUT_ACKS: u64 = 16_384;
/// Data without a further acknowledgement, beyond which Zeek gives the stream up
/// (`tcp_excessive_data_without_further_acks`).
pub(super) const MAX_DATA_WITHOUT_FURTHER_ACKS: u64 = 10 * 1024 * 1024;

/// Ranges that one direction may hold beyond its holes. A stream with more holes than that has
/// its smallest ones forgotten.
const MAX_RANGES: usize = 32;

/// Ranges `[start, end)` of relative numbers beyond a hole, ascending and apart, for the
/// originator's and the responder's stream.
#[derive(Debug, Default)]
pub(super) struct OutOfOrder {
    ranges: [Vec<(u64, u64)>; 2],
    /// Holes of half a session that were given up because there were too many, and their bytes.
    given_up: (u32, u64),
}

impl OutOfOrder {
    pub(super) fn swap(&mut self) {
        self.ranges.swap(0, 1);
    }

    fn is_empty(&self) -> bool {
        self.ranges.iter().all(Vec::is_empty) && self.given_up.0 == 0
    }
}

/// Adds a range and melts it with those it touches.
fn insert(ranges: &mut Vec<(u64, u64)>, mut start: u64, mut end: u64) {
    let from = ranges.partition_point(|range| range.1 < start);
    let to = ranges.partition_point(|range| range.0 <= end);
    if let Some(&(first, _)) = ranges.get(from)
        && from < to
    {
        start = start.min(first);
    }
    if from < to
        && let Some(&(_, last)) = ranges.get(to - 1)
    {
        end = end.max(last);
    }
    ranges.splice(from..to, [(start, end)]);
}

fn forget_smallest_hole(ranges: &mut Vec<(u64, u64)>) {
    let holes = ranges.windows(2).map(|pair| pair[1].0 - pair[0].1);
    let Some((at, _)) = holes.enumerate().min_by_key(|&(_, len)| len) else { return };
    let end = ranges[at + 1].1;
    ranges[at].1 = end;
    ranges.remove(at + 1);
}

impl Tcp {
    fn ranges(&self, who: usize) -> &[(u64, u64)] {
        self.beyond.as_ref().map_or(&[], |beyond| &beyond.ranges[who])
    }

    fn is_clean(end: &Endpoint) -> bool {
        match end.state {
            EndState::Established => true,
            EndState::Closed => end.prev_state == EndState::Established,
            _ => false,
        }
    }

    /// Data was acknowledged that never came.
    fn gap(&mut self, who: usize, len: u64, notes: &mut Notes<'_>) {
        // Elsewhere gaps come falsely from resets and from sessions joined in the middle.
        if Self::is_clean(&self.ends[0]) && Self::is_clean(&self.ends[1]) {
            notes.scaled(who == ORIG, &mut self.ends[who].gaps, b'G');
            self.missed_bytes = self.missed_bytes.saturating_add(len);
        }
    }

    /// Moves `delivered` over the ranges that it has reached.
    fn absorb(&mut self, who: usize) {
        let Some(beyond) = &mut self.beyond else { return };
        let ranges = &mut beyond.ranges[who];
        let delivered = &mut self.ends[who].delivered.0;
        let reached = ranges.partition_point(|range| range.0 <= *delivered);
        for (_, end) in ranges.drain(..reached) {
            *delivered = (*delivered).max(end);
        }
        if beyond.is_empty() {
            self.beyond = None;
        }
    }

    /// Payload arrived (DataSent, NewBlock, BlockInserted).
    pub(super) fn data_sent(&mut self, who: usize, seq: u64, len: u64, room: bool) {
        let end = &mut self.ends[who];
        if end.skip {
            return;
        }
        let upper = seq.saturating_add(len);
        let start = seq.max(end.acknowledged()).max(end.trimmed.0);
        if upper <= start {
            return;
        }
        if start <= end.delivered.0 {
            if upper > end.delivered.0 {
                end.delivered = Relative(upper);
                self.absorb(who);
                let end = &mut self.ends[who];
                if end.no_data_acked() && end.size() > MAX_INITIAL_WINDOW {
                    end.trimmed = end.delivered;
                }
            }
        } else if self.beyond.is_none() && !room {
            // Too many sessions with holes at once: this stream is followed no further.
            self.ends[who].skip = true;
        } else {
            let half = self.is_half(who);
            let beyond = self.beyond.get_or_insert_default();
            let ranges = &mut beyond.ranges[who];
            insert(ranges, start, upper);
            if ranges.len() > MAX_RANGES {
                if half {
                    let (start, end) = ranges.remove(0);
                    let delivered = &mut self.ends[who].delivered.0;
                    let (holes, bytes) = &mut beyond.given_up;
                    *holes = holes.saturating_add(1);
                    *bytes = bytes.saturating_add(start.saturating_sub(*delivered));
                    *delivered = end;
                } else {
                    forget_smallest_hole(ranges);
                }
            }
        }
        if !self.is_half(who) {
            self.limit(who);
        }
    }

    /// Whether the acknowledgements of this stream go to another worker, as far as is known.
    fn is_half(&self, who: usize) -> bool {
        self.halves && !self.first_seen[1 - who]
    }

    /// What the only end that was heard tells of the streams of both.
    pub(crate) fn half(&self, rare: &[Rare; 2]) -> Option<HalfStream> {
        let who = usize::from(!self.first_seen[ORIG]);
        if !self.is_half(who) {
            return None;
        }
        let end = &self.ends[who];
        let mut seen = end.delivered.0;
        let mut holes = Vec::new();
        for &(start, end) in self.ranges(who) {
            holes.push((seen, start));
            seen = end;
        }
        Some(HalfStream {
            start_seq: end.start_seq,
            seen,
            fin_seq: end.fin_seen.then_some(rare[who].fin_seq),
            is_followed: !end.skip,
            holes: holes.into_boxed_slice(),
            given_up: self.beyond.as_ref().map_or((0, 0), |beyond| beyond.given_up),
            acked: rare[1 - who].unheard_acked,
        })
    }

    /// Gives a stream up whose acknowledgements do not come (end of DataSent).
    fn limit(&mut self, who: usize) {
        let end = &self.ends[who];
        let in_order = end.delivered.0.saturating_sub(end.trimmed.0);
        let ranges = self.ranges(who);
        let above = ranges.last().map_or(0, |range| range.1.saturating_sub(end.delivered.0));
        let held = ranges.iter().fold(in_order, |sum, range| sum.saturating_add(range.1 - range.0));
        let lost = end.no_data_acked() && above > MAX_ABOVE_HOLE_WITHOUT_ACKS;
        if lost || held > MAX_DATA_WITHOUT_FURTHER_ACKS {
            self.ends[who].skip = true;
            // Zeek clears its blocks: nothing counts as waiting any more.
            self.ends[who].trimmed.0 = self.ends[who].trimmed.0.max(self.ends[who].delivered.0);
            if let Some(beyond) = &mut self.beyond {
                beyond.ranges[who].clear();
                if beyond.is_empty() {
                    self.beyond = None;
                }
            }
        }
    }

    /// The other end acknowledged this one's data (AckReceived, TrimToSeq).
    #[inline]
    pub(super) fn ack_received(
        &mut self,
        who: usize,
        mut seq: u64,
        notes: &mut Notes<'_>,
        rare: &Rare,
        effect: &mut Effect,
    ) {
        let end = &self.ends[who];
        if end.fin_seen && seq >= rare.fin_seq {
            seq = rare.fin_seq.wrapping_sub(1);
        }
        if seq <= end.trimmed.0 {
            return;
        }
        if seq > end.delivered.0 {
            self.undelivered(who, seq, notes);
        }
        self.ends[who].trimmed = Relative(seq);
        self.absorb(who);
        self.check_eof(who, effect);
    }

    /// Everything up to `up_to` will not come any more.
    fn undelivered(&mut self, who: usize, up_to: u64, notes: &mut Notes<'_>) {
        if up_to <= 2 && self.partial {
            // The start of a session joined in the middle is made up: nothing is missing.
            return;
        }
        if !self.ends[who].skip {
            while let Some(&(start, end)) = self.ranges(who).first() {
                let delivered = self.ends[who].delivered.0;
                if start >= up_to {
                    break;
                }
                self.gap(who, start.saturating_sub(delivered), notes);
                self.ends[who].delivered = Relative(end.max(delivered));
                self.absorb(who);
            }
            let delivered = self.ends[who].delivered.0;
            if up_to > delivered {
                self.gap(who, up_to - delivered, notes);
            }
        }
        let delivered = &mut self.ends[who].delivered.0;
        *delivered = (*delivered).max(up_to);
    }

    /// Whether an end's close must wait for data (DataPending).
    pub(super) fn data_pending(&self, who: usize) -> bool {
        let (end, peer) = (&self.ends[who], &self.ends[1 - who]);
        if end.skip || self.is_half(who) {
            return false;
        }
        let delivered = u64::from(end.start_seq).wrapping_add(end.delivered.0);
        let last = end.full_last();
        if last < delivered {
            return false;
        }
        // A FIN takes a number, a RST does not.
        if delivered != last && delivered != last.wrapping_sub(1) {
            return true;
        }
        let peer_waits = peer.delivered.0 > peer.trimmed.0 || !self.ranges(1 - who).is_empty();
        end.state != EndState::Reset && peer_waits
    }

    /// Payload bytes that the originator and the responder sent (TCP_Endpoint::Size).
    pub(crate) fn sizes(&self) -> [u64; 2] {
        [self.size_of(0), self.size_of(1)]
    }

    fn size_of(&self, who: usize) -> u64 {
        let (end, peer) = (&self.ends[who], &self.ends[1 - who]);
        let aborted_attempt = end.prev_state == EndState::SynSent
            && end.state == EndState::Reset
            && peer.state == EndState::Inactive
            && !end.no_data_acked();
        if aborted_attempt { 0 } else { end.size() }
    }
}
